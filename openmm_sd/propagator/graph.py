"""A diffusion propagator with an equivariant graph network, for families of molecules.

The same task as the dense network's (the distribution of the next frame given this frame and a lag)
with weights that know nothing of a molecule's size or numbering: atoms exchange scalars and vectors
by attention, and what tells them apart is their element, their bonds and where they are.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..molecule.graph import bond_paths, graph_classes, stereo_labels
from ..molecule.molecule import Molecule
from .alignment import alignment_atoms, choose_frame_atoms
from .cartesian.base import CartesianDiffusion
from .sampler import karras_levels, preconditioning, solver_coefficients
from .shared_weights import SharedWeights

# As in the dense network: X-H bonds of constrained dynamics have no width at all.
_PAIR_WIDTH_FLOOR_NM = 0.002
# An atom that never moves still needs a scale to divide by.
_SCALE_FLOOR_NM = 1e-4
# A standardised distance is squashed to this many widths, so that noised frames stay in range.
_SQUASH = 4.0
# Proposals are nearly aligned already: that is what the network learns.
_ALIGNMENT_STEPS = 4
_NOISE_FREQUENCIES = 16
_LAG_FREQUENCIES = 4
_HIDDEN_NOISE = 64
# Bonds between two atoms, counted up to here; further apart is one kind.
_MAX_PATH = 5
_MAX_DEGREE = 6
_MAX_HYDROGENS = 4
_MAX_ELEMENT = 118
# Keeps the square root's gradient finite where two noised atoms meet (nm^2), and normalised vectors
# finite where there is nothing to normalise.
_TINY = 1e-12
_VECTOR_FLOOR = 1e-4


class _Exchange(torch.nn.Module):
    """One round of attention: every atom hears scalars and vectors of every other.

    Scalars (B, N, W) do not change under rotations, vectors (B, N, 3, V) rotate with the molecule.
    Cross products are what makes mirror images differ; everything else would commute with them.
    """

    def __init__(self, width: int, vectors: int, edges: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.vectors = vectors
        self.heads = heads
        self.temperature = math.sqrt(width / heads)
        self.vector_floor = _VECTOR_FLOOR
        self.mix = torch.nn.Linear(vectors, 3 * vectors, bias=False)
        self.project = torch.nn.Linear(width + 2 * vectors, 3 * width)
        self.bias = torch.nn.Linear(edges, heads, bias=False)
        heard = width + heads * edges + 2 * vectors
        n_gates = 3 * vectors + heads + edges
        self.hidden = torch.nn.Linear(width + heard, 2 * width)
        self.update = torch.nn.Linear(2 * width, width + n_gates)
        self.combine = torch.nn.Linear(n_gates, vectors, bias=False)
        with torch.no_grad():
            # Vectors mixed from unit vectors are unit vectors again, or products of three of them,
            # the only thing that tells mirror images apart, would start out too small to be heard.
            self.mix.weight.mul_(math.sqrt(3.0))
            # Each round changes little at the start.
            self.update.weight[:width].mul_(0.1)

    def forward(
        self,
        h: Tensor,
        v: Tensor,
        pairs: Tensor,
        pointed: Tensor,
        gain: Tensor,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the new scalars and vectors.

        `pairs` (B, N, N, 3 + E) holds the direction from an atom to each other one and the pair's
        features, `pointed` (B, N, 3, E) the sum of their products over partners; `gain` and
        `shift` (B, 1, W) carry noise level and lag.
        """
        batch, n = h.shape[0], h.shape[1]
        z = F.layer_norm(h, [self.width]) * (1.0 + gain) + shift
        v = v.float()
        size = torch.sqrt((v * v).sum(dim=2).mean(dim=-1) + self.vector_floor)
        unit = v / size.unsqueeze(-1).unsqueeze(-1)
        first, second, value = self.mix(unit).float().split(self.vectors, dim=-1)
        inner = (first * second).sum(dim=2)
        twist = torch.linalg.cross(first, second, dim=2)
        # The product of three vectors changes sign in the mirror.
        seen = torch.cat([inner, (twist * value).sum(dim=2)], dim=-1)

        query, key, content = self.project(torch.cat([z, seen], dim=-1)).split(self.width, dim=-1)
        query = query.view(batch, n, self.heads, -1).transpose(1, 2)
        key = key.view(batch, n, self.heads, -1).permute(0, 2, 3, 1)
        content = content.view(batch, n, self.heads, -1).transpose(1, 2)
        carried = value.view(batch, n, 3, self.heads, -1).permute(0, 3, 1, 2, 4).flatten(3)
        bias = self.bias(pairs[:, :, :, 3:]).permute(0, 3, 1, 2)
        attention = torch.softmax(torch.matmul(query, key) / self.temperature + bias, dim=-1)
        # Of each atom it listens to: scalars, vectors, the pair's features and direction.
        told = torch.matmul(attention, torch.cat([content, carried.to(content.dtype)], dim=-1))
        scalars = told[:, :, :, : self.width // self.heads].transpose(1, 2).flatten(2)
        passed = told[:, :, :, self.width // self.heads :].unflatten(3, [3, -1])
        passed = passed.permute(0, 2, 3, 1, 4).flatten(3)
        about = torch.matmul(attention.transpose(1, 2), pairs)
        towards = about[:, :, :, :3].transpose(2, 3)
        features = about[:, :, :, 3:].flatten(2)

        hidden = F.silu(self.hidden(torch.cat([z, scalars, features, seen], dim=-1)))
        update = self.update(hidden)
        gates = update[:, :, self.width :].unsqueeze(2)
        parts = torch.cat([unit, twist, passed, towards, pointed], dim=-1)
        return h + update[:, :, : self.width], v + self.combine(parts * gates)


class GraphDiffusion(CartesianDiffusion, SharedWeights):
    """Lag-conditional diffusion of a molecule's next frame with an equivariant graph network.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom, 1 to 118.
    bonds : sequence of (int, int)
        Pairs of bonded atoms.
    stereo : sequence of (int, int)
        Stereocentres and their hand, +1 or -1, as `stereo_labels` gives them. May be empty.
    frame_atoms : sequence of int
        Three bonded atoms (a, b, c), b in the middle, not on a line: they say how the noise is
        turned with respect to the molecule, and nothing else (see Notes).
    heavy_atoms : sequence of int
        The atoms on which a proposal is aligned to the frame.
    lag_min_ps, lag_max_ps : float
        Range of lags the model is trained for, ps.
    width, vectors, edge_width, heads : int
        Number of scalars and of vectors an atom has, of features a pair has, and of attention
        heads, which must divide the first two.
    depth : int
        Rounds of exchange between atoms in the denoiser.
    encoder_depth : int
        Rounds on the conditioning frame, made once a jump.
    n_lag_nodes, n_calls, sigma_min, sigma_max, rho, centred
        As in `DenseDiffusion`.

    Attributes
    ----------
    hyperparameters : dict
        The arguments above in plain JSON types: ``GraphDiffusion(**hyperparameters)`` rebuilds it.

    Notes
    -----
    **What belongs to the molecule and what to the network.** Parameters have shapes that do not
    depend on the molecule: `weights` returns them and `load_weights` takes them for another
    molecule. The statistics (buffers ``scale``, ``pair_mean``, ``pair_width``) belong to one
    molecule. `fit_statistics` sets them from frames of that molecule, averaged over atoms and
    pairs that the bond graph does not tell apart. Each member of a family has statistics from its
    own data and shares the weights; a molecule without data needs some frames for them.

    **Symmetry.** Relabelling the atoms, in the frame, the noise and the hyperparameters alike,
    relabels the answer. So atoms that the bond graph does not tell apart (the hydrogens of a
    methyl group) are exchangeable, by construction and not by training. The network is equivariant
    under proper rotations in any coordinate system; the local one of `frame_atoms` only decides
    which noise gives which answer. Exchanging a frame atom with an equivalent one therefore
    changes the answer to the same noise but not its distribution: normal noise is isotropic.

    Mirror images are told apart by cross products of vectors, and by the hands in `stereo`.

    The training target, the alignment and the noise are those of `DenseDiffusion`. A step costs
    several times as much, so on a CPU batches of about 32 with a learning rate of 4e-3 go furthest.
    """

    scale: Tensor
    pair_mean: Tensor
    pair_width: Tensor
    numbers: Tensor
    hydrogens: Tensor
    degree: Tensor
    hand: Tensor
    path: Tensor
    atom_class: Tensor
    pair_class: Tensor
    heavy: Tensor
    levels: Tensor
    noise_frequencies: Tensor

    def __init__(
        self,
        *,
        atomic_numbers: Sequence[int],
        bonds: Sequence[Sequence[int]],
        stereo: Sequence[Sequence[int]],
        frame_atoms: Sequence[int],
        heavy_atoms: Sequence[int],
        lag_min_ps: float,
        lag_max_ps: float,
        width: int = 64,
        vectors: int = 16,
        edge_width: int = 16,
        heads: int = 4,
        depth: int = 3,
        encoder_depth: int = 1,
        n_lag_nodes: int = 12,
        n_calls: int = 10,
        sigma_min: float = 0.02,
        sigma_max: float = 40.0,
        rho: float = 8.0,
        centred: bool = False,
    ) -> None:
        n_atoms = len(atomic_numbers)
        super().__init__(n_atoms, 3 * n_atoms)
        numbers = [int(z) for z in atomic_numbers]
        if any(not 1 <= z <= _MAX_ELEMENT for z in numbers):
            raise ValueError(f"atomic_numbers must lie in 1 to {_MAX_ELEMENT}, got {numbers}")
        pairs = [(int(i), int(j)) for i, j in bonds]
        hands = [(int(atom), int(sign)) for atom, sign in stereo]
        if len(frame_atoms) != 3 or len(set(frame_atoms)) != 3:
            raise ValueError(f"frame_atoms must be three different atoms, got {list(frame_atoms)}")
        for name, atoms in (
            ("frame_atoms", list(frame_atoms)),
            ("heavy_atoms", list(heavy_atoms)),
            ("bonds", [atom for pair in pairs for atom in pair]),
            ("stereo", [atom for atom, _ in hands]),
        ):
            if any(not 0 <= atom < n_atoms for atom in atoms):
                raise ValueError(f"{name} must lie in 0 to {n_atoms - 1}, got {atoms}")
        if any(sign not in (-1, 1) for _, sign in hands):
            raise ValueError(f"stereo must hold (atom, +1 or -1), got {hands}")
        if len(heavy_atoms) < 3:
            raise ValueError(f"heavy_atoms must be at least three, got {list(heavy_atoms)}")
        if not 0.0 < lag_min_ps < lag_max_ps:
            raise ValueError(f"need 0 < lag_min_ps < lag_max_ps, got {lag_min_ps}, {lag_max_ps}")
        if n_lag_nodes < 2:
            raise ValueError(f"n_lag_nodes must be at least 2, got {n_lag_nodes}")
        if heads < 1 or width % heads or vectors % heads:
            raise ValueError(
                f"heads must divide width and vectors, got {heads}, {width} and {vectors}"
            )
        self.hyperparameters = {
            "atomic_numbers": numbers,
            "bonds": [list(pair) for pair in pairs],
            "stereo": [list(hand) for hand in hands],
            "frame_atoms": [int(i) for i in frame_atoms],
            "heavy_atoms": [int(i) for i in heavy_atoms],
            "lag_min_ps": float(lag_min_ps),
            "lag_max_ps": float(lag_max_ps),
            "width": int(width),
            "vectors": int(vectors),
            "edge_width": int(edge_width),
            "heads": int(heads),
            "depth": int(depth),
            "encoder_depth": int(encoder_depth),
            "n_lag_nodes": int(n_lag_nodes),
            "n_calls": int(n_calls),
            "sigma_min": float(sigma_min),
            "sigma_max": float(sigma_max),
            "rho": float(rho),
            "centred": bool(centred),
        }
        self.axis_atom, self.origin_atom, self.plane_atom = (int(i) for i in frame_atoms)
        self.log_lag_min = math.log(lag_min_ps)
        self.log_lag_span = math.log(lag_max_ps / lag_min_ps)
        self.n_lag_nodes = int(n_lag_nodes)
        self.n_calls = int(n_calls)
        self.width = int(width)
        self.vectors = int(vectors)
        self.edge_width = int(edge_width)
        self.depth = int(depth)
        # TorchScript sees attributes of the object, not the module's globals.
        self.squash = _SQUASH
        self.tiny = _TINY
        self.lag_frequencies = _LAG_FREQUENCIES
        self.alignment_steps = _ALIGNMENT_STEPS

        path = bond_paths(n_atoms, pairs)
        degree = (path == 1).sum(axis=1)
        hydrogens = ((path == 1) & (np.array(numbers) == 1)[None, :]).sum(axis=1)
        classes = graph_classes(numbers, pairs)
        kinds = np.stack(
            [
                np.minimum(classes[:, None], classes[None, :]),
                np.maximum(classes[:, None], classes[None, :]),
                path,
            ],
            axis=-1,
        ).reshape(-1, 3)
        pair_class = np.unique(kinds, axis=0, return_inverse=True)[1].reshape(n_atoms, n_atoms)
        hand = np.zeros(n_atoms, dtype=np.int64)
        for atom, sign in hands:
            hand[atom] = sign
        levels = karras_levels(sigma_min, sigma_max, n_calls, rho)
        self.solver = solver_coefficients(levels, centred)
        # What follows from the hyperparameters is not stored with the weights.
        for name, array in (
            ("numbers", np.array(numbers)),
            ("hydrogens", hydrogens.clip(max=_MAX_HYDROGENS)),
            ("degree", degree.clip(max=_MAX_DEGREE)),
            ("hand", hand + 1),
            ("path", path.clip(max=_MAX_PATH)),
            ("atom_class", classes),
            ("pair_class", pair_class),
            ("heavy", np.array([int(i) for i in heavy_atoms])),
        ):
            self.register_buffer(name, torch.as_tensor(array.astype(np.int64)), persistent=False)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        frequencies = torch.exp(torch.linspace(math.log(0.1), math.log(8.0), _NOISE_FREQUENCIES))
        self.register_buffer("noise_frequencies", frequencies, persistent=False)
        self.register_buffer("scale", torch.full((n_lag_nodes, n_atoms), 0.05))
        self.register_buffer("pair_mean", torch.full((n_atoms, n_atoms), 0.3))
        self.register_buffer("pair_width", torch.full((n_atoms, n_atoms), 0.1))

        n_lag = 1 + 2 * _LAG_FREQUENCIES
        modulation = 2 * depth * width
        self.element = torch.nn.Embedding(_MAX_ELEMENT + 1, width)
        self.hydrogen_count = torch.nn.Embedding(_MAX_HYDROGENS + 1, width)
        self.neighbour_count = torch.nn.Embedding(_MAX_DEGREE + 1, width)
        self.handedness = torch.nn.Embedding(3, width)
        self.bond_path = torch.nn.Embedding(_MAX_PATH + 1, edge_width)
        self.edge_of_atom = torch.nn.Linear(width, edge_width, bias=False)
        self.edge_of_frame = torch.nn.Linear(1, edge_width)
        self.edge_of_guess = torch.nn.Linear(2, edge_width)
        self.lag_in = torch.nn.Linear(n_lag, width)
        self.lag_out = torch.nn.Linear(width, width)
        self.lag_modulation = torch.nn.Linear(width, modulation)
        self.noise_in = torch.nn.Linear(2 * _NOISE_FREQUENCIES, _HIDDEN_NOISE)
        self.noise_modulation = torch.nn.Linear(_HIDDEN_NOISE, modulation)
        self.frame_vectors = torch.nn.Linear(edge_width, vectors, bias=False)
        self.guess_vectors = torch.nn.Linear(edge_width + 1, vectors, bias=False)
        self.encoder = torch.nn.ModuleList(
            [_Exchange(width, vectors, edge_width, heads) for _ in range(encoder_depth)]
        )
        self.exchanges = torch.nn.ModuleList(
            [_Exchange(width, vectors, edge_width, heads) for _ in range(depth)]
        )
        self.vector_head = torch.nn.Linear(width, vectors + 1)
        self.pair_head = torch.nn.Linear(width, edge_width)
        # The untrained network then answers zero and the denoiser falls back on its skip part.
        for layer in (self.vector_head, self.pair_head):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)

    @classmethod
    def for_molecule(
        cls,
        molecule: Molecule,
        frames: np.ndarray | None = None,
        **settings: Any,
    ) -> "GraphDiffusion":
        """Build a network for a molecule.

        Parameters
        ----------
        molecule : Molecule
            The molecule; its reference frame says which way round its stereocentres are.
        frames : ndarray, optional
            (T, N, 3), nm, from which `choose_frame_atoms` chooses; the reference frame without.
        **settings
            The other parameters of the class, lags at least.
        """
        if frames is None:
            frames = molecule.positions[None]
        arguments: dict[str, Any] = {
            "atomic_numbers": list(molecule.atomic_numbers),
            "bonds": [list(bond) for bond in molecule.bonds],
            "stereo": stereo_labels(molecule),
            "frame_atoms": list(choose_frame_atoms(molecule, frames)),
            "heavy_atoms": alignment_atoms(molecule),
            "centred": True,
        }
        return cls(**(arguments | settings))

    def encode(self, local: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the denoiser needs to know of frame and lag; made once a jump.

        Parameters
        ----------
        local : Tensor
            (B, N, 3), nm. Any coordinate system will do; the vectors in the answer are in it.
        lag : Tensor
            (B,), ps.

        Returns
        -------
        tuple of Tensor
            Context (B, N, width + 3 vectors + N edge_width): scalars, vectors and pair features of
            the atoms; modulation (B, 2 depth width).
        """
        place = ((torch.log(lag) - self.log_lag_min) / self.log_lag_span).unsqueeze(-1)
        features = [2.0 * place - 1.0]
        for k in range(self.lag_frequencies):
            angle = place * (math.pi * (k + 1))
            features.append(torch.sin(angle))
            features.append(torch.cos(angle))
        time = F.silu(self.lag_in(torch.cat(features, dim=-1)))

        atom = (
            self.element(self.numbers)
            + self.hydrogen_count(self.hydrogens)
            + self.neighbour_count(self.degree)
            + self.handedness(self.hand)
        )
        share = self.edge_of_atom(atom)
        kind = self.bond_path(self.path) + share.unsqueeze(0) + share.unsqueeze(1)
        distance, directions = self._pairs(local)
        edge_part = kind + self.edge_of_frame(distance.unsqueeze(-1))
        edge = F.silu(edge_part)
        pairs = torch.cat([directions, edge], dim=-1)
        pointed = self._pointed(edge, directions)
        h = (atom + self.lag_out(time).unsqueeze(1)).to(torch.float32)
        v = self.frame_vectors(pointed).to(torch.float32)
        none = torch.zeros([1, 1, 1], dtype=h.dtype, device=h.device)
        for exchange in self.encoder:
            h, v = exchange(h, v, pairs, pointed, none, none)
        context = torch.cat([h, v.flatten(2), edge_part.flatten(2)], dim=-1)
        return context, self.lag_modulation(time)

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        local: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        """Return D: the expected scaled displacement given a noised one.

        Parameters
        ----------
        y : Tensor
            (B, N, 3), noised scaled displacement.
        sigma : Tensor
            (B,) or (1,), its noise level.
        local, scale : Tensor
            (B, N, 3) and (B, N, 1), nm.
        context, modulation : Tensor
            From `encode`, with the modulation of `encode_noise` added.

        Returns
        -------
        Tensor
            (B, N, 3).
        """
        c_skip, c_out, c_in = preconditioning(sigma.view(-1, 1, 1))
        squeezed = c_in * y
        # Where the denoiser will land if it answers zero, and how far from it the noise is.
        guess = local + scale * squeezed
        n = self.n_atoms
        h, v, edge_part = context.split([self.width, 3 * self.vectors, n * self.edge_width], dim=-1)
        v = v.reshape(-1, n, 3, self.vectors)
        distance, directions = self._pairs(guess)
        relative = squeezed.unsqueeze(2) - squeezed.unsqueeze(1)
        along = (relative * directions).sum(-1)
        edge = F.silu(
            edge_part.reshape(-1, n, n, self.edge_width)
            + self.edge_of_guess(torch.stack([distance, along], dim=-1))
        )
        pairs = torch.cat([directions, edge], dim=-1)
        pointed = self._pointed(edge, directions)
        v = v + self.guess_vectors(torch.cat([pointed, squeezed.unsqueeze(-1)], dim=-1))
        parts = modulation.unsqueeze(1).split(self.width, dim=-1)
        for k, exchange in enumerate(self.exchanges):
            h, v = exchange(h, v, pairs, pointed, parts[2 * k], parts[2 * k + 1])
        h = F.layer_norm(h, [self.width])
        gates = self.vector_head(h).float().unsqueeze(2)
        answer = (torch.cat([v, squeezed.unsqueeze(-1)], dim=-1) * gates).sum(-1)
        # A bond's length is corrected along the bond, equally and oppositely; each atom takes its
        # part in proportion to its scale, because that is how the noise was shared.
        pull = torch.matmul(edge, self.pair_head(h).unsqueeze(-1).to(edge.dtype)).squeeze(-1)
        pull = (pull + pull.transpose(1, 2)).float()
        pulls = (pull.unsqueeze(-1) * directions).sum(2)
        pulls = pulls * (scale / scale.mean(dim=1, keepdim=True))
        return c_skip * y + c_out * (answer + pulls)

    @torch.no_grad()
    def fit_statistics(self, frames: Tensor, scale: Tensor) -> None:
        """Set the normalisation of this molecule from its data, before training.

        Parameters
        ----------
        frames : Tensor
            (M, N, 3), nm: frames that represent what the model will see.
        scale : Tensor
            (n_lag_nodes, N), nm: root-mean-square displacement a coordinate of each atom, aligned,
            at the lags of `lag_nodes`. Averaged over atoms that the bond graph does not tell apart.
        """
        x = frames.to(self.scale)
        distance = torch.linalg.vector_norm(x.unsqueeze(2) - x.unsqueeze(1), dim=-1).double()
        mean = _class_means(distance.mean(0).flatten(), self.pair_class.flatten())
        square = _class_means((distance * distance).mean(0).flatten(), self.pair_class.flatten())
        width = torch.sqrt((square - mean * mean).clamp(min=_PAIR_WIDTH_FLOOR_NM**2))
        self.pair_mean.copy_(mean.view_as(self.pair_mean))
        self.pair_width.copy_(width.view_as(self.pair_width))
        mean_square = torch.stack(
            [_class_means(row, self.atom_class) for row in scale.double() ** 2]
        )
        self.scale.copy_(torch.sqrt(mean_square).clamp(min=_SCALE_FLOOR_NM))

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised distances (B, N, N), and unit vectors from each atom to each other one."""
        vectors = x.unsqueeze(1) - x.unsqueeze(2)
        distance = torch.sqrt((vectors * vectors).sum(-1) + self.tiny)
        standard = (distance - self.pair_mean) / self.pair_width
        squashed = standard * torch.rsqrt(1.0 + (standard / self.squash) ** 2)
        return squashed, vectors / distance.unsqueeze(-1)

    def _pointed(self, edge: Tensor, directions: Tensor) -> Tensor:
        """Sum over partners of features times direction, (B, N, 3, edge_width)."""
        return torch.matmul(directions.transpose(2, 3), edge.to(directions.dtype)) / math.sqrt(
            self.n_atoms
        )


def _class_means(values: Tensor, classes: Tensor) -> Tensor:
    """Replace each value by the mean over its class."""
    count = torch.bincount(classes).to(values)
    total = torch.zeros_like(count).index_add_(0, classes, values)
    return (total / count.clamp(min=1.0))[classes]
