"""A diffusion propagator in internal coordinates whose weights serve a family of molecules.

Coordinates, target and sampler are those of `InternalDiffusion`. The network is a transformer over
heavy atoms with their hydrogens: what it has learned of a CH2 between two others holds for every
such CH2, in molecules of any size, also in those that it was not trained on.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
import math
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...molecule.molecule import Molecule
from ...molecule.topology import ELEMENT_SYMBOLS
from ..alignment import alignment_atoms
from ..diffusion import LAG_FEATURES, check_atoms, start_at_zero
from ..sampler import preconditioning
from .base import HARMONICS, InternalArguments
from .density import InternalDensity
from .family_tree import MAX_HYDROGENS
from .shared import SharedWeights
from .statistics import CoordinateStatistics
from .symmetry import checked_group, relabelled, symmetry_generators
from .torsion_potential import SIZE as POTENTIAL_SIZE, Term, turning_potentials
from .tree import InternalTree
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
# What a potential is measured in, kJ/mol: kT at room temperature.
_POTENTIAL_UNIT = 2.5
# Between two choices of a draw there is no number that float32 noise would miss.
_LAST_SHARE = 1.0 - 1e-6


class _Block(torch.nn.Module):
    """One round of attention between units, and a network in each of them."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.temperature = math.sqrt(width / heads)
        self.project = torch.nn.Linear(width, 3 * width)
        self.output = torch.nn.Linear(width, width)
        self.path_bias = torch.nn.Embedding(MAX_PATH + 1, heads)
        self.relation_bias = torch.nn.Embedding(RELATIONS, heads)
        self.expand = torch.nn.Linear(width, expansion * width)
        self.contract = torch.nn.Linear(expansion * width, width)
        for bias in (self.path_bias, self.relation_bias):
            torch.nn.init.normal_(bias.weight, std=_BIAS_WIDTH)

    def forward(
        self,
        h: Tensor,
        path: Tensor,
        relation: Tensor,
        gain: Tensor,
        shift: Tensor,
        inner_gain: Tensor,
        inner_shift: Tensor,
    ) -> Tensor:
        """Return the new features (B, U, width).

        `path` and `relation` (U, U) say how units are bonded and how they stand in the tree;
        the others, (B, U, width) or what broadcasts to it, carry noise level, lag and condition.
        """
        batch, n = h.shape[0], h.shape[1]
        z = F.layer_norm(h, [self.width]) * (1.0 + gain) + shift
        query, key, value = (
            self.project(z).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        bias = (self.path_bias(path) + self.relation_bias(relation)).permute(2, 0, 1)
        scores = torch.matmul(query, key.transpose(2, 3)) / self.temperature + bias
        heard = torch.matmul(torch.softmax(scores, dim=-1).to(value.dtype), value)
        h = h + self.output(heard.transpose(1, 2).flatten(2))
        z = F.layer_norm(h, [self.width]) * (1.0 + inner_gain) + inner_shift
        return h + self.contract(F.silu(self.expand(z)))


class FamilyDiffusion(SharedWeights):
    """Lag-conditional diffusion in internal coordinates with weights for a family of molecules.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom, 1 to 118.
    bonds : sequence of (int, int)
        Pairs of bonded atoms.
    symmetries : sequence of (int, sequence of int)
        Relabellings that leave the molecule as it is, from which the group is generated: +1, or -1
        for one that goes with a reflection, and the permutation p of the atoms; atom k of the
        relabelled frame is atom p[k].
    potentials : sequence of sequence of float
        What the force field adds to the energy as a torsion turns, for each row of `turning`; see
        `turning_potentials`. Empty where it is not known.
    width, heads : int
        Features of a unit, and attention heads, which must divide them.
    depth, encoder_depth : int
        Blocks of the denoiser, and of the part that looks at the frame once a jump.
    **coordinates
        The arguments of `InternalPropagator`.

    Attributes
    ----------
    n_symmetries : int
        Size of the group.

    Notes
    -----
    **What belongs to the molecule and what to the family.** A unit is a heavy atom with its
    hydrogens. Its coordinates are those of the atoms it is made of, each in its atom's slot; the
    network maps slots to slots and tells units apart by their kinds, by the kinds of the atoms they
    lean on, by what the force field says of their torsions, and by bonds. So no parameter's shape
    depends on the molecule: `weights` returns them, `load_weights` takes them for another member,
    `share_weights` makes two members train the same. Means, widths and scales are buffers of one
    molecule; `CoordinateStatistics` gives them for any molecule by the kinds of its coordinates,
    also for one without data.

    **Symmetry.** Atoms of one kind are numbered, and the tree begins at one end of a chain, but the
    law of the next frame must not depend on that. One more noise number draws a relabelling g of
    the molecule's group, uniformly. The frame is relabelled, propagated, and labelled back: the law
    is the network's, averaged over the group, and therefore symmetric whatever the weights are. The
    group holds exchanges of equivalent heavy atoms, rotations of methyl groups and, for a molecule
    that is its own mirror image, the reflection. In training pairs are relabelled likewise, see
    `draw_equivalent`.
    """

    element_index: Tensor
    hydrogen_index: Tensor
    degree_index: Tensor
    condition_index: Tensor
    noised_index: Tensor
    layout_index: Tensor
    answer_index: Tensor
    potential: Tensor
    path: Tensor
    relation: Tensor
    orders: Tensor
    signs: Tensor

    def __init__(
        self,
        *,
        atomic_numbers: Sequence[int],
        bonds: Sequence[Sequence[int]],
        symmetries: Sequence[tuple[int, Sequence[int]]],
        potentials: Sequence[Sequence[float]] = (),
        width: int = 128,
        heads: int = 4,
        depth: int = 4,
        encoder_depth: int = 1,
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
        sizes = [len(row) for row in potentials]
        n_turning = len(coordinates["turning"])
        if sizes and sizes != [POTENTIAL_SIZE] * n_turning:
            raise ValueError(
                f"potentials must hold {POTENTIAL_SIZE} numbers for each of {n_turning} turning "
                f"torsions, got {sizes}"
            )
        group = checked_group(symmetries, n_atoms)
        super().__init__(
            n_atoms=n_atoms,
            network={
                "width": int(width),
                "heads": int(heads),
                "depth": int(depth),
                "encoder_depth": int(encoder_depth),
            },
            # Noise is drawn by size: a molecule without symmetries needs none for them.
            extra_noise=int(len(group) > 1),
            **coordinates,
        )
        del self.hyperparameters["n_atoms"]
        self.hyperparameters = {
            "atomic_numbers": numbers,
            "bonds": [list(pair) for pair in pairs],
            "symmetries": [[int(sign), [int(k) for k in order]] for sign, order in symmetries],
            "potentials": [[float(v) for v in row] for row in potentials],
            **self.hyperparameters,
        }
        self.width = int(width)
        self.n_symmetries = len(group)
        # TorchScript sees attributes of the object, not the module's globals.
        self.last_share = _LAST_SHARE
        self._lay_out(numbers, pairs)
        orders = torch.tensor([order for _, order in group])
        self.keep("orders", orders)
        self.keep("signs", torch.tensor([float(sign) for sign, _ in group]))

        angles = 2 * HARMONICS
        self.element = torch.nn.Embedding(len(ELEMENT_SYMBOLS), width)
        self.hydrogen_count = torch.nn.Embedding(MAX_HYDROGENS + 1, width)
        self.neighbour_count = torch.nn.Embedding(MAX_DEGREE + 1, width)
        self.kind_in = torch.nn.Linear(ROLES * width, width)
        self.layout_in = torch.nn.Linear(SLOTS * (PARTS + 1), width, bias=False)
        self.potential_in = torch.nn.Linear(SLOTS * POTENTIAL_SIZE, width, bias=False)
        self.lag_in = torch.nn.Linear(LAG_FEATURES, width, bias=False)
        self.condition_in = torch.nn.Linear(SLOTS * (3 + angles), width, bias=False)
        self.make_modulation(width, _BOTTLENECK, 4 * depth * width)
        self.embed = torch.nn.Linear(SLOTS * (PARTS + 1 + angles), width)
        self.encoder = torch.nn.ModuleList([_Block(width, heads, 2) for _ in range(encoder_depth)])
        self.blocks = torch.nn.ModuleList([_Block(width, heads, 2) for _ in range(depth)])
        self.head = torch.nn.Linear(width, SLOTS * PARTS)
        start_at_zero(self.head)

    def _lay_out(self, numbers: list[int], pairs: list[tuple[int, int]]) -> None:
        """Say which coordinate is in which slot of which unit, and how units stand to each other.

        A slot that lacks something reads a zero, which is appended to what is read.
        """
        rows = [tuple(row) for row in self.hyperparameters["tree"]]
        plan = InternalTree(self.n_atoms, tuple(self.hyperparameters["root"]), rows)
        units, slot = units_of(plan, numbers, pairs)
        self.n_units = len(units)
        turning = self.turning.tolist()
        potential = np.zeros((len(units), SLOTS, POTENTIAL_SIZE), dtype=np.float32)
        for k, row in zip(turning, self.hyperparameters["potentials"], strict=False):
            potential[slot[plan.rows[k][0]]] = row
        potential = potential.reshape(len(units), -1) / _POTENTIAL_UNIT
        self.keep("potential", torch.from_numpy(potential))
        indices = slot_indices(plan, slot, self.free.tolist(), self.stiff.tolist(), turning)
        indices |= unit_indices(plan, units, slot, numbers, pairs)
        for name, array in indices.items():
            self.keep(name, torch.as_tensor(array.astype(np.int64)))

    @classmethod
    def for_molecule(
        cls,
        molecule: Molecule,
        *,
        statistics: CoordinateStatistics,
        torsion_terms: Sequence[Term] = (),
        **settings: Any,
    ) -> "FamilyDiffusion":
        """Build a network for a molecule, normalised by its family's statistics.

        Parameters
        ----------
        molecule : Molecule
            A member, with or without data of its own.
        statistics : CoordinateStatistics
            They say which torsions turn and which bonds are constrained, too.
        torsion_terms : sequence of Term
            Periodic torsions of the molecule in the force field, if they are known.
        **settings
            The other parameters of the class. The range of lags is by default the statistics'.

        Raises
        ------
        NotInternal
            If the molecule has no such coordinates, see `family_tree`.
        ValueError
            If the statistics do not cover one of its coordinates, or the lags.
        """
        member = statistics.of(molecule)
        lags = {"lag_min_ps": statistics.lags_ps[0], "lag_max_ps": statistics.lags_ps[-1]}
        network = cls(
            atomic_numbers=molecule.atomic_numbers,
            bonds=molecule.bonds,
            root=member.tree.root,
            tree=member.tree.rows,
            turning=member.turning,
            constant=member.constant,
            heavy_atoms=alignment_atoms(molecule),
            symmetries=symmetry_generators(molecule, member.tree, member.turning),
            potentials=(
                turning_potentials(molecule, member.tree, member.turning, torsion_terms)
                if torsion_terms
                else ()
            ),
            **{**lags, **settings},
        )
        network.length_mean.copy_(member.length_mean)
        network.stiff_mean.copy_(member.stiff_mean)
        network.stiff_width.copy_(member.stiff_width)
        network.scale.copy_(statistics.scale_at(member, network.lag_nodes()))
        return network

    # Symmetry.

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        if self.n_symmetries == 1:
            return self.sample(frame, lag, noise)
        share = 0.5 + 0.5 * torch.erf(noise[:, self.n_coordinates :] / math.sqrt(2.0))
        order, sign = self.chosen(share)
        answer = self.sample(relabelled(frame, order, sign), lag, noise[:, : self.n_coordinates])
        return relabelled(answer, torch.argsort(order, dim=1), sign)

    def chosen(self, share: Tensor) -> tuple[Tensor, Tensor]:
        # Without symmetries there is no number to choose by.
        share = F.pad(share, [0, 1])[:, 0]
        which = (share.clamp(0.0, self.last_share) * self.n_symmetries).to(torch.long)
        return self.orders[which], self.signs[which]

    @torch.jit.ignore
    def draw_equivalent(
        self, frame: Tensor, later: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Relabel pairs of frames (B, N, 3), each pair by an element of the group drawn for it.

        What `forward` does to a frame; training on the outcome spends the data on all of them. The
        generator is on the frames' device.
        """
        if self.n_symmetries == 1:
            return frame, later
        which = torch.randint(
            self.n_symmetries, (len(frame),), generator=generator, device=frame.device
        )
        order, sign = self.orders[which], self.signs[which]
        return relabelled(frame, order, sign), relabelled(later, order, sign)

    @torch.jit.ignore
    def transition_density(self) -> InternalDensity:
        """Return the density of the next frame."""
        return InternalDensity(self)

    # The network.

    def encode(self, stiff: Tensor, turned: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return context (B, U, width) and modulation (B, U, 4 * depth * width) of U units."""
        kind = (
            self.element(self.element_index)
            + self.hydrogen_count(self.hydrogen_index)
            + self.neighbour_count(self.degree_index)
        ).flatten(1)
        torsion = self.stiff_mean[self.n_straight :]
        sides = torch.stack([torch.sin(torsion), torch.cos(torsion)], dim=-1).flatten()
        # What is in a slot, as one and zero, and the side of its stiff torsion.
        one = torch.ones_like(self.stiff_mean[:1])
        known = torch.cat([one, torch.zeros_like(one), sides])
        layout = known[self.layout_index].view(self.n_units, -1)
        own = self.kind_in(kind) + self.layout_in(layout) + self.potential_in(self.potential)
        seen = torch.cat([self.squashed(stiff), self.torsion_features(turned)], dim=-1)
        h = (
            own
            + self.lag_in(self.lag_features(lag)).unsqueeze(1)
            + self.condition_in(self._slots(seen, self.condition_index))
        )
        none = torch.zeros([1, 1, 1], dtype=h.dtype, device=h.device)
        h = self.condition_out(F.silu(h))
        for block in self.encoder:
            h = block(h, self.path, self.relation, none, none, none, none)
        return h, self.modulation_by_frame(h)

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
        c_skip, c_out, c_in = preconditioning(sigma.view(-1, 1))
        noised = self.noised_features(y, c_in * y, turned, scale)
        h = context + self.embed(self._slots(noised, self.noised_index))
        parts = modulation.split(self.width, dim=-1)
        for k, block in enumerate(self.blocks):
            h = block(
                h,
                self.path,
                self.relation,
                parts[4 * k],
                parts[4 * k + 1],
                parts[4 * k + 2],
                parts[4 * k + 3],
            )
        answer = self.head(F.layer_norm(h, [self.width])).flatten(1)
        return c_skip * y + c_out * answer.index_select(1, self.answer_index)

    def _slots(self, features: Tensor, index: Tensor) -> Tensor:
        """Sort features (B, F) into the slots of units, (B, U, ...), zero where there is none."""
        padded = F.pad(features, [0, 1]).index_select(1, index)
        return padded.view(features.shape[0], self.n_units, -1)

    # What training needs.

    @torch.no_grad()
    def fit_statistics(self, frames: Tensor, scale: Tensor) -> None:
        """Set means, widths and scales from this molecule's own data.

        As the base does; the frames are relabelled by the group, one element after another.
        """
        super().fit_statistics(self._spread(frames.to(self.scale.device)), scale)

    @torch.jit.ignore
    def measure_scale(self, frame: Tensor, later: Tensor) -> Tensor:
        return super().measure_scale(self._spread(frame), self._spread(later))

    @torch.jit.ignore
    def _spread(self, frames: Tensor) -> Tensor:
        which = torch.arange(len(frames), device=frames.device) % self.n_symmetries
        return relabelled(frames, self.orders[which], self.signs[which])
