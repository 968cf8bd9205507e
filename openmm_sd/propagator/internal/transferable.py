"""A diffusion propagator whose weights serve molecules they were never trained on.

A transformer over heavy atoms with their hydrogens, as `FamilyDiffusion` is, but what a coordinate
is measured in and what an atom is called come from the force field alone, and units hear each other
by how they stand to each other in space: in the frame, and in what the draw looks like so far.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...molecule.graph import atom_kinds
from ...molecule.molecule import Molecule
from ...molecule.terms import ForceFieldTerms
from ...molecule.topology import ELEMENT_SYMBOLS
from ..alignment import alignment_atoms
from ..diffusion import LAG_FEATURES, check_atoms, start_at_zero
from ..sampler import preconditioning
from .backbone import backbone_tree
from .base import HARMONICS, InternalArguments
from .density import InternalDensity
from .family_tree import MAX_HYDROGENS
from .physics import Springs, springs_of
from .shared import SharedWeights
from .symmetry import checked_group, independent_symmetries, relabelled
from .tangents import carried
from .torsion_potential import SIZE as POTENTIAL_SIZE
from .tree import InternalTree, bridged_positions_of
from .units import (
    MAX_DEGREE,
    MAX_PATH,
    PARTS,
    RELATIONS,
    ROLES,
    SLOTS,
    slot_indices,
    unit_indices,
    units_of,
)

_BOTTLENECK = 64
_BIAS_WIDTH = 0.2
# Between two choices of a draw there is no number that float32 noise would miss.
_LAST_SHARE = 1.0 - 1e-6
#: What the force field says of an atom: charge, sigma, epsilon, rest and width of its length and
#: angle, side and width of a stiff torsion, whether it closes a ring, potential of one that turns.
FACTS = 3 + 2 + 2 + 3 + 1 + POTENTIAL_SIZE
# What they are measured in, so that they are of order one.
_CHARGE, _SIGMA_NM, _EPSILON, _POTENTIAL = 0.4, 0.3, 0.5, 2.5
_LENGTH_NM, _LENGTH_WIDTH_NM, _ANGLE_WIDTH = 0.14, 0.003, 0.06
# Distances between units are seen through Gaussians this far apart, nm.
_RINGS = 14
_RING_STEP_NM = 0.08
_FIRST_RING_NM = 0.12
#: Numbers that say how one unit stands to another.
_STANDING = _RINGS + 3
#: What a unit that is not there is heard with.
_ABSENT: Final = -1e4


class _Block(torch.nn.Module):
    """One round of attention between units, and a network in each of them."""

    def __init__(self, width: int, heads: int, pair_width: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.temperature = math.sqrt(width / heads)
        # TorchScript sees attributes of the object, not the module's globals.
        self.absent = _ABSENT
        self.project = torch.nn.Linear(width, 3 * width)
        self.output = torch.nn.Linear(width + heads * pair_width, width)
        self.path_bias = torch.nn.Embedding(MAX_PATH + 1, heads)
        self.relation_bias = torch.nn.Embedding(RELATIONS, heads)
        self.pair_bias = torch.nn.Linear(pair_width, heads, bias=False)
        self.expand = torch.nn.Linear(width, 2 * width)
        self.contract = torch.nn.Linear(2 * width, width)
        for bias in (self.path_bias, self.relation_bias):
            torch.nn.init.normal_(bias.weight, std=_BIAS_WIDTH)

    def forward(
        self,
        h: Tensor,
        tables: Tensor,
        which: Tensor,
        pairs: Tensor,
        gain: Tensor,
        shift: Tensor,
        inner_gain: Tensor,
        inner_shift: Tensor,
    ) -> Tensor:
        """Return the new features (B, U, width).

        `tables`, (M, 3, U, U), hold for each molecule how many bonds there are between two units,
        how they stand in the tree, and one for those that are not there; `which`, (B,), says which
        molecule a row is of, if there are several. `pairs`, (B, U, U, pair width), says how units
        stand in space; the others, (B, U, width) or what broadcasts to it, carry noise level, lag
        and condition.
        """
        batch, n = h.shape[0], h.shape[1]
        z = F.layer_norm(h, [self.width]) * (1.0 + gain) + shift
        query, key, value = (
            self.project(z).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        bonded = self.path_bias(tables[:, 0]) + self.relation_bias(tables[:, 1])
        bonded = bonded.permute(0, 3, 1, 2) + self.absent * tables[:, 2:]
        if tables.shape[0] > 1:
            bonded = bonded.index_select(0, which)
        bias = bonded + self.pair_bias(pairs).permute(0, 3, 1, 2)
        scores = torch.matmul(query, key.transpose(2, 3)) / self.temperature + bias
        share = torch.softmax(scores, dim=-1).to(value.dtype)
        heard = torch.matmul(share, value).transpose(1, 2).flatten(2)
        # Where those listened to stand: (B, U, heads, U) times (B, U, U, pair width).
        seen = torch.matmul(share.transpose(1, 2), pairs.to(share.dtype)).flatten(2)
        h = h + self.output(torch.cat([heard, seen], dim=-1))
        z = F.layer_norm(h, [self.width]) * (1.0 + inner_gain) + inner_shift
        return h + self.contract(F.silu(self.expand(z)))


class TransferableDiffusion(SharedWeights):
    """Lag-conditional diffusion in internal coordinates, for any molecule a force field knows.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom, 1 to 118.
    bonds : sequence of (int, int)
        Pairs of bonded atoms.
    symmetries : sequence of sequence of (int, sequence of int)
        Relabellings that leave the molecule as it is, each as in `FamilyDiffusion`, in groups that
        do not disturb each other; see `independent_symmetries`.
    turn_scales : mapping of str to sequence of float
        How far torsions about bonds of a kind typically turn, at the lags of `lag_nodes`. Known of
        the molecules trained on; other molecules' scales are taken from them, see `turn_kinds`.
    width, heads, pair_width : int
        Features of a unit, attention heads, which must divide them, and features of a pair.
    depth, encoder_depth : int
        Blocks of the denoiser, and of the part that looks at the frame once a jump.
    **coordinates
        The arguments of `InternalPropagator`.

    Notes
    -----
    **What is learned and what is known.** A unit is a heavy atom with its hydrogens, each in a slot
    of its own. The network is told of each atom its charge, Lennard-Jones parameters, where its
    bond, angle and stiff torsion rest and how wide they are when the bonded terms are taken as
    springs, and the potential of a torsion that turns: buffers of the molecule, from
    `for_molecule`. No parameter's shape depends on the molecule.

    **Stiff coordinates are uncoupled.** Angles at one atom and around a ring move together. What is
    diffused is each stiff coordinate without its neighbours' part in it, as far as springs say:
    independent numbers of width one, of which even an untrained network makes structures a few kT
    above those of dynamics.

    **Geometry.** How two units stand to each other (distance, and direction in the frame of the one
    that listens) enters the attention and what is heard, for the frame and for the noised sample,
    shrunk to what is expected of it and rebuilt from internal coordinates at each call. Directions
    tell hands apart.

    **Symmetry** is that of `FamilyDiffusion`, with a noise number for each group.
    """

    element_index: Tensor
    hydrogen_index: Tensor
    degree_index: Tensor
    condition_index: Tensor
    noised_index: Tensor
    answer_index: Tensor
    tables: Tensor
    one: Tensor
    frame_parent: Tensor
    frame_grand: Tensor
    unit_place: Tensor
    rings: Tensor
    facts: Tensor
    coupling: Tensor
    uncoupling: Tensor
    orders: Tensor
    signs: Tensor
    n_elements: list[int]
    first_element: list[int]
    heavy_ends: list[int]

    def __init__(
        self,
        *,
        atomic_numbers: Sequence[int],
        bonds: Sequence[Sequence[int]],
        symmetries: Sequence[Sequence[tuple[int, Sequence[int]]]] = (),
        turn_scales: Mapping[str, Sequence[float]] | None = None,
        width: int = 128,
        heads: int = 8,
        pair_width: int = 24,
        depth: int = 4,
        encoder_depth: int = 2,
        **coordinates: Unpack[InternalArguments],
    ) -> None:
        numbers = [int(z) for z in atomic_numbers]
        pairs = [(int(i), int(j)) for i, j in bonds]
        n_atoms = len(numbers)
        if any(not 1 <= z < len(ELEMENT_SYMBOLS) for z in numbers):
            raise ValueError(
                f"atomic_numbers must lie in 1 to {len(ELEMENT_SYMBOLS) - 1}, got {numbers}"
            )
        check_atoms("bonds", [atom for pair in pairs for atom in pair], n_atoms)
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide width, got {heads} and {width}")
        groups = [checked_group(generators, n_atoms) for generators in symmetries]
        network = {
            "width": width,
            "heads": heads,
            "pair_width": pair_width,
            "depth": depth,
            "encoder_depth": encoder_depth,
        }
        super().__init__(
            n_atoms=n_atoms,
            network={key: int(value) for key, value in network.items()},
            extra_noise=len(groups),
            **coordinates,
        )
        del self.hyperparameters["n_atoms"]
        scales = turn_scales or {}
        self.hyperparameters = {
            "atomic_numbers": numbers,
            "bonds": [list(pair) for pair in pairs],
            "symmetries": [
                [[int(sign), [int(k) for k in order]] for sign, order in generators]
                for generators in symmetries
            ],
            "turn_scales": {k: [float(v) for v in row] for k, row in sorted(scales.items())},
            **self.hyperparameters,
        }
        self.width = int(width)
        self.pair_width = int(pair_width)
        # TorchScript sees attributes of the object, not the module's globals.
        self.last_share = _LAST_SHARE
        self.ring_step = _RING_STEP_NM
        self._lay_out(numbers, pairs)
        self.n_elements = [len(group) for group in groups]
        self.first_element = [sum(self.n_elements[:k]) for k in range(len(groups))]
        elements = [element for group in groups for element in group]
        orders = [list(order) for _, order in elements] or [list(range(n_atoms))]
        self.keep("orders", torch.tensor(orders))
        self.keep("signs", torch.tensor([float(sign) for sign, _ in elements] or [1.0]))

        angles = 2 * HARMONICS
        self.element = torch.nn.Embedding(len(ELEMENT_SYMBOLS), width)
        self.hydrogen_count = torch.nn.Embedding(MAX_HYDROGENS + 1, width)
        self.neighbour_count = torch.nn.Embedding(MAX_DEGREE + 1, width)
        self.kind_in = torch.nn.Linear(ROLES * width, width)
        self.facts_in = torch.nn.Linear(SLOTS * FACTS, width)
        self.facts_out = torch.nn.Linear(width, width, bias=False)
        self.lag_in = torch.nn.Linear(LAG_FEATURES, width, bias=False)
        self.condition_in = torch.nn.Linear(SLOTS * (4 + angles), width, bias=False)
        self.make_modulation(width, _BOTTLENECK, 4 * depth * width)
        self.embed = torch.nn.Linear(SLOTS * (PARTS + 1 + angles), width)
        self.frame_in = torch.nn.Linear(_STANDING, pair_width)
        self.guess_in = torch.nn.Linear(_STANDING, pair_width)
        self.guess_noise = torch.nn.Linear(1, 2 * pair_width)
        self.encoder = torch.nn.ModuleList(
            [_Block(width, heads, pair_width) for _ in range(encoder_depth)]
        )
        self.blocks = torch.nn.ModuleList([_Block(width, heads, pair_width) for _ in range(depth)])
        self.head = torch.nn.Linear(width, SLOTS * PARTS)
        start_at_zero(self.head)

    def _lay_out(self, numbers: list[int], pairs: list[tuple[int, int]]) -> None:
        """Say which coordinate is in which slot of which unit, and how units stand to each other.

        A slot that lacks something reads a zero, which is appended to what is read.
        """
        rows = [tuple(row) for row in self.hyperparameters["tree"]]
        plan = InternalTree(self.n_atoms, tuple(self.hyperparameters["root"]), rows)
        units, slot = units_of(plan, numbers, pairs)
        self.n_units = n = len(units)
        if n < 3 or plan.order()[:n] != units:
            raise ValueError("the tree must place three heavy atoms or more before all hydrogens")
        turning = self.turning.tolist()
        indices = slot_indices(plan, slot, self.free.tolist(), self.stiff.tolist(), turning)
        indices |= unit_indices(plan, units, slot, numbers, pairs)
        del indices["layout_index"]
        # One more number of a torsion that turns: how far it typically does.
        known = self.n_stiff + 2 * HARMONICS * len(turning)
        shown = indices["condition_index"].reshape(n, SLOTS, -1)
        none = known + len(turning)
        shown = np.concatenate([shown, np.full((n, SLOTS, 1), known)], axis=2)
        shown[shown == known] = none
        for k, row in enumerate(turning):
            shown[(*slot[plan.rows[row][0]], -1)] = known + k
        indices["condition_index"] = shown.reshape(-1)
        path, relation = indices.pop("path"), indices.pop("relation")
        indices["tables"] = np.stack([path, relation, np.zeros_like(path)])[None]
        indices["one"] = np.zeros(1)
        for name, array in indices.items():
            self.keep(name, torch.as_tensor(array.astype(np.int64)))
        # Units are in the order of placement, so that places of heavy atoms number units.
        placing = self.placing_rows[: n - 3]
        self.heavy_ends = InternalTree(n, (0, 1, 2), placing.tolist()).stage_ends()
        self.keep("frame_parent", torch.cat([torch.tensor([1, 0, 1]), placing[:, 1]]))
        self.keep("frame_grand", torch.cat([torch.tensor([2, 2, 0]), placing[:, 2]]))
        self.keep("unit_place", torch.arange(n))
        self.keep("rings", _FIRST_RING_NM + _RING_STEP_NM * torch.arange(_RINGS))
        self.register_buffer("facts", torch.zeros(n, SLOTS * FACTS))
        self.register_buffer("coupling", torch.eye(self.n_stiff))
        self.register_buffer("uncoupling", torch.eye(self.n_stiff))

    @classmethod
    def for_molecule(
        cls,
        molecule: Molecule,
        *,
        terms: ForceFieldTerms,
        temperature_K: float = 300.0,
        turn_scales: Mapping[str, Sequence[float]] | None = None,
        **settings: Any,
    ) -> "TransferableDiffusion":
        """Build a network for a molecule from what its force field says of it.

        Parameters
        ----------
        terms : ForceFieldTerms
            Of the molecule.
        temperature_K : float
            Of the data; springs are as wide as it makes them.
        **settings
            The other parameters of the class, lags at least.

        Raises
        ------
        NotInternal
            If the molecule has no such coordinates, see `backbone_tree`.
        """
        tree = backbone_tree(molecule)
        springs = springs_of(molecule, tree, terms, temperature_K)
        network = cls(
            atomic_numbers=molecule.atomic_numbers,
            bonds=molecule.bonds,
            root=tree.root,
            tree=tree.rows,
            turning=springs.turning,
            constant=springs.constant,
            bridged=tree.bridged,
            heavy_atoms=alignment_atoms(molecule),
            symmetries=independent_symmetries(molecule, tree, springs.turning),
            turn_scales=turn_scales,
            **settings,
        )
        network._take(springs, terms)
        network.set_turn_scales(turn_scales or {})
        return network

    def of(
        self, molecule: Molecule, terms: ForceFieldTerms, temperature_K: float
    ) -> "TransferableDiffusion":
        """Return a network of another molecule with the same weights."""
        own = self.hyperparameters
        names = [
            *("turn_scales", "width", "heads", "pair_width", "depth", "encoder_depth"),
            *("lag_min_ps", "lag_max_ps", "n_lag_nodes", "n_calls"),
            *("sigma_min", "sigma_max", "rho"),
        ]
        other = TransferableDiffusion.for_molecule(
            molecule, terms=terms, temperature_K=temperature_K, **{k: own[k] for k in names}
        )
        other.load_weights(self.weights())
        return other

    @torch.jit.ignore
    def drawn_from_springs(self, count: int) -> np.ndarray:
        """Return structures (T, N, 3), nm, with stiff coordinates as wide as the springs are.

        Torsions that turn are anywhere; atoms may overlap.
        """
        generator = torch.Generator().manual_seed(1)
        none = torch.zeros(count, 2 * self.n_turning)
        stiff = torch.randn(count, self.n_stiff, generator=generator)
        turned = 2.0 * math.pi * torch.rand(count, self.n_turning, generator=generator)
        y = torch.cat([stiff, none], dim=1)
        return self.build(y, turned, self.scale[:1].expand(count, -1)).detach().numpy()

    def turn_kinds(self) -> list[list[str]]:
        """Name the bonds about which torsions turn, see `turn_kinds`."""
        known = self.hyperparameters
        rows = [known["tree"][k] for k in known["turning"]]
        return turn_kinds(known["atomic_numbers"], known["bonds"], [row[2:0:-1] for row in rows])

    @torch.no_grad()
    def set_turn_scales(self, scales: Mapping[str, Sequence[float]]) -> None:
        """Take how far torsions typically turn from what is known of their kinds."""
        self.hyperparameters["turn_scales"] = {
            key: [float(v) for v in row] for key, row in sorted(scales.items())
        }
        self.scale.copy_(pooled_scale(self.turn_kinds(), scales, self.n_lag_nodes))

    @torch.no_grad()
    def _take(self, springs: Springs, terms: ForceFieldTerms) -> None:
        """Set what belongs to the molecule."""
        self.length_mean.copy_(springs.length_mean)
        self.stiff_mean.copy_(springs.stiff_mean)
        self.stiff_width.copy_(springs.stiff_width)
        self.coupling.copy_(springs.coupling)
        self.uncoupling.copy_(torch.linalg.inv(springs.coupling.double()))
        plan = springs.tree
        numbers = self.hyperparameters["atomic_numbers"]
        _, slot = units_of(plan, numbers, self.hyperparameters["bonds"])
        table = torch.zeros(self.n_units, SLOTS, FACTS)
        for atom, where in slot.items():
            table[where][:3] = torch.tensor(
                [
                    terms.charges[atom] / _CHARGE,
                    terms.sigmas[atom] / _SIGMA_NM,
                    math.sqrt(terms.epsilons[atom] / _EPSILON),
                ]
            )
        _, b, c = plan.root
        placed = [b, c, *(row[0] for row in plan.rows)]
        for k, length in enumerate(springs.length_mean.tolist()):
            table[slot[placed[k]]][3] = length / _LENGTH_NM
        mean, width = springs.stiff_mean.tolist(), springs.stiff_width.tolist()
        for k, row in enumerate(self.free.tolist()):
            table[slot[placed[row]]][4] = math.log(width[k] / _LENGTH_WIDTH_NM)
        for k, atom in enumerate(placed[1:], self.n_free):
            table[slot[atom]][5:7] = torch.tensor(
                [mean[k] - 2.0, math.log(width[k] / _ANGLE_WIDTH)]
            )
        for k, row in enumerate(self.stiff.tolist(), self.n_straight):
            table[slot[plan.rows[row][0]]][7:10] = torch.tensor(
                [math.sin(mean[k]), math.cos(mean[k]), math.log(width[k] / _ANGLE_WIDTH)]
            )
        for row in plan.bridged:
            table[slot[plan.rows[row][0]]][10] = 1.0
        for row, potential in zip(springs.turning, springs.potentials, strict=True):
            table[slot[plan.rows[row][0]]][11:] = torch.tensor(potential) / _POTENTIAL
        self.facts.copy_(table.flatten(1))

    # Stiff coordinates, uncoupled.

    def coupled(self, stiff: Tensor) -> Tensor:
        return torch.matmul(stiff, self.coupling)

    def uncoupled(self, stiff: Tensor) -> Tensor:
        return torch.matmul(stiff, self.uncoupling)

    # Symmetry.

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        if len(self.n_elements) == 0:
            return self.sample(frame, lag, noise)
        share = 0.5 + 0.5 * torch.erf(noise[:, self.n_coordinates :] / math.sqrt(2.0))
        order, sign = self.chosen(share)
        answer = self.sample(relabelled(frame, order, sign), lag, noise[:, : self.n_coordinates])
        return relabelled(answer, torch.argsort(order, dim=1), sign)

    def chosen(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return a relabelling for each row of numbers from 0 to 1, (B, groups)."""
        order = torch.arange(self.n_atoms, device=share.device).expand(share.shape[0], -1)
        sign = torch.ones_like(share[:, 0])
        for k, (first, size) in enumerate(zip(self.first_element, self.n_elements)):  # noqa: B905
            which = (share[:, k].clamp(0.0, self.last_share) * size).to(torch.long) + first
            order = torch.gather(order, 1, self.orders[which])
            sign = sign * self.signs[which]
        return order, sign

    @torch.jit.ignore
    def draw_equivalent(
        self, frame: Tensor, later: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Relabel pairs of frames (B, N, 3), each pair by an element of the group drawn for it."""
        if not self.n_elements:
            return frame, later
        size = (len(frame), len(self.n_elements))
        share = torch.rand(size, generator=generator, device=frame.device)
        order, sign = self.chosen(share)
        return relabelled(frame, order, sign), relabelled(later, order, sign)

    @torch.jit.ignore
    def transition_density(self) -> InternalDensity:
        """Return the density of the next frame."""
        return InternalDensity(self)

    # The network.

    def encode(self, stiff: Tensor, turned: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return context (B, U, width + U * pair width) and modulation (B, U, 4 * depth * width).

        The context holds the units' features, then how they stand to each other in the frame.
        """
        scale = self.scale_at(lag)
        shown = self.condition(stiff, turned, scale)
        none = torch.zeros_like(scale)
        still = torch.cat([stiff, none, none], dim=-1)
        standing = self.standing(self.places(still, turned, scale))
        own = self.own(self.facts.unsqueeze(0), self.kinds().unsqueeze(0))
        h, pairs = self.look(shown, standing, own, lag, self.tables, self.one)
        return torch.cat([h, pairs.flatten(2)], dim=-1), self.modulation_by_frame(h)

    def encode_noise(self, sigma: Tensor) -> Tensor:
        """Return the modulation (L, 1, 4 * depth * width) that belongs to noise levels (L,)."""
        return self.modulation_by_noise(sigma).unsqueeze(1)

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        noised, standing = self.see(y, sigma, turned, scale)
        answer = self.respond(noised, standing, sigma, context, modulation, self.tables, self.one)
        return self.answered(answer, y, sigma)

    @torch.jit.ignore
    def denoise_tangents(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
        tangents: Tensor,
    ) -> Tensor:
        c_skip, _, c_in = preconditioning(sigma.view(-1, 1))

        def answer(x: Tensor) -> Tensor:
            # As `see`, which hides from training how places depend on the sample.
            noised = self.noised_features(x, c_in * x, turned, scale)
            noised = self._slots(noised, self.noised_index)
            standing = self.standing(self.places(c_skip * x, turned, scale))
            said = self.respond(noised, standing, sigma, context, modulation, self.tables, self.one)
            return self.answered(said, x, sigma)

        return carried(answer, y, tangents)

    # What a network is shown of a molecule, in its slots.

    def condition(self, stiff: Tensor, turned: Tensor, scale: Tensor) -> Tensor:
        """Return what is shown of a frame, (B, U, ...)."""
        parts = [self.squashed(stiff), self.torsion_features(turned), torch.log(scale)]
        return self._slots(torch.cat(parts, dim=-1), self.condition_index)

    def see(self, y: Tensor, sigma: Tensor, turned: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is shown of a noised sample (B, K): in slots, and how units stand."""
        c_skip, _, c_in = preconditioning(sigma.view(-1, 1))
        noised = self._slots(self.noised_features(y, c_in * y, turned, scale), self.noised_index)
        expected = self.places((c_skip * y).detach(), turned, scale)
        return noised, self.standing(expected)

    def answered(self, answer: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
        """Return D, (B, K), from the answer (B, U, SLOTS * PARTS) to a noised sample."""
        c_skip, c_out, _ = preconditioning(sigma.view(-1, 1))
        return c_skip * y + c_out * answer.flatten(1).index_select(1, self.answer_index)

    def kinds(self) -> Tensor:
        """Return what is looked up of each unit, (U, 3, ROLES)."""
        return torch.stack([self.element_index, self.hydrogen_index, self.degree_index], dim=1)

    def places(self, y: Tensor, turned: Tensor, scale: Tensor) -> Tensor:
        """Return where the units are, (B, U, 3) nm, as `build` does."""
        lengths, angles, torsions = self.geometry(y, turned, scale)
        n = self.n_units
        return bridged_positions_of(
            lengths[:, : n - 1],
            angles[:, : n - 2],
            torsions[:, : n - 3],
            self.placing_rows[: n - 3],
            self.unit_place,
            self.heavy_ends,
            self.closes[: n - 3],
        )

    def standing(self, x: Tensor) -> Tensor:
        """Return how units at places (B, U, 3) stand to each other, (B, U, U, ...).

        That is their distance seen through Gaussians, and the direction to the second in the frame
        of the first, which its parent and grandparent in the tree make.
        """
        up = F.normalize(x[:, self.frame_parent] - x, dim=-1)
        side = torch.linalg.cross(up, x[:, self.frame_grand] - x[:, self.frame_parent], dim=-1)
        side = F.normalize(side, dim=-1)
        frame = torch.stack([up, torch.linalg.cross(side, up, dim=-1), side], dim=-1)
        apart = x.unsqueeze(1) - x.unsqueeze(2)
        distance = torch.linalg.vector_norm(apart, dim=-1, keepdim=True)
        direction = torch.matmul(apart, frame) / (distance + self.ring_step)
        seen = torch.exp(-(((distance - self.rings) / self.ring_step) ** 2))
        return torch.cat([seen, direction], dim=-1)

    def _slots(self, features: Tensor, index: Tensor) -> Tensor:
        """Sort features (B, F) into the slots of units, (B, U, ...), zero where there is none."""
        padded = F.pad(features, [0, 1]).index_select(1, index)
        return padded.view(features.shape[0], self.n_units, -1)

    # What is learned: of any molecule, or of several, padded to the same number of units.

    def own(self, facts: Tensor, kinds: Tensor) -> Tensor:
        """Return what units are (B or 1, U, width)."""
        kind = (
            self.element(kinds[:, :, 0])
            + self.hydrogen_count(kinds[:, :, 1])
            + self.neighbour_count(kinds[:, :, 2])
        ).flatten(2)
        return self.kind_in(kind) + self.facts_out(F.silu(self.facts_in(facts)))

    def look(
        self,
        shown: Tensor,
        standing: Tensor,
        own: Tensor,
        lag: Tensor,
        tables: Tensor,
        which: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Look at a frame once a jump; see `encode` and `_Block`."""
        h = own + self.lag_in(self.lag_features(lag)).unsqueeze(1) + self.condition_in(shown)
        h = self.condition_out(F.silu(h))
        pairs = self.frame_in(standing)
        none = torch.zeros([1, 1, 1], dtype=h.dtype, device=h.device)
        for block in self.encoder:
            h = block(h, tables, which, F.silu(pairs), none, none, none, none)
        return h, pairs

    def respond(
        self,
        noised: Tensor,
        standing: Tensor,
        sigma: Tensor,
        context: Tensor,
        modulation: Tensor,
        tables: Tensor,
        which: Tensor,
    ) -> Tensor:
        """Answer to a noised sample, (B, U, SLOTS * PARTS); see `denoise` and `_Block`."""
        n = noised.shape[1]
        pairs = context[:, :, self.width :].unflatten(2, [n, self.pair_width])
        level = torch.log(sigma).view(-1, 1, 1, 1) / 4.0
        gain, shift = self.guess_noise(level).chunk(2, dim=-1)
        pairs = F.silu(pairs + (1.0 + gain) * self.guess_in(standing) + shift)
        h = context[:, :, : self.width] + self.embed(noised)
        parts = modulation.split(self.width, dim=-1)
        for k, block in enumerate(self.blocks):
            h = block(
                h,
                tables,
                which,
                pairs,
                parts[4 * k],
                parts[4 * k + 1],
                parts[4 * k + 2],
                parts[4 * k + 3],
            )
        return self.head(F.layer_norm(h, [self.width]))


def turn_kinds(
    numbers: Sequence[int], bonds: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
) -> list[list[str]]:
    """Name bonds about which torsions turn by the atoms at their ends, special names first."""
    kinds = atom_kinds(numbers, bonds)

    def exact(atom: int) -> str:
        number, hydrogens, heavy = kinds[atom]
        return f"{ELEMENT_SYMBOLS[number]}{f'H{hydrogens}' if hydrogens else ''}.{heavy}"

    def rough(atom: int) -> str:
        # What is at the end of a bond and turns fast, and what does not.
        return "end" if kinds[atom][2] == 1 else "inner"

    return [[f"{of(i)} {of(j)}" for of in (exact, rough)] + ["any"] for i, j in ends]


def pooled_scale(
    kinds: Sequence[Sequence[str]], scales: Mapping[str, Sequence[float]], nodes: int
) -> Tensor:
    """Return how far torsions of some kinds turn, (nodes, M), from what is known of the kinds."""
    plain = [1.0] * nodes
    rows = [next((scales[key] for key in keys if key in scales), plain) for keys in kinds]
    return torch.tensor([list(row) for row in rows]).reshape(len(kinds), nodes).T.contiguous()
