"""A diffusion propagator with a dense network, for one molecule.

It learns the distribution of the next frame given this frame and a lag. Frames are expressed in a
coordinate system tied to three atoms, so the kernel commutes with rotations and translations
pathwise and still tells mirror images apart. The network is a residual MLP over all coordinates
and all pair distances: the fastest to train for a single small molecule, and tied to that one.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...molecule.molecule import Molecule
from ..alignment import align_frames, align_nearby, alignment_atoms, choose_frame_atoms, to_local
from ..diffusion import LAG_FEATURES, DiffusionPropagator, check_atoms, start_at_zero
from ..sampler import karras_levels, preconditioning, solver_coefficients

# Pair distances enter as (d - mean) / width, and X-H bonds of constrained dynamics have no width at
# all: this floor (nm) keeps their feature finite and is a few times the rounding of training data.
_PAIR_WIDTH_FLOOR_NM = 0.002
# Coordinates of the three atoms that define the local frame hardly vary in it.
_COORDINATE_WIDTH_FLOOR_NM = 0.01
# An atom that never moves in the local frame still needs a scale to divide by.
_SCALE_FLOOR_NM = 1e-4
# A standardised distance is squashed to this many widths, so that noised frames stay in range.
_SQUASH = 4.0
# Newton steps of the final alignment. Proposals are nearly aligned already (that is what the
# network learns), and the error is squared at each step.
_ALIGNMENT_STEPS = 4
_BOTTLENECK = 128


class DenseDiffusion(DiffusionPropagator):
    """Lag-conditional diffusion of one molecule's next frame with a dense residual network.

    Parameters
    ----------
    frame_atoms : sequence of int
        Three bonded atoms (a, b, c), not on a line, b in the middle: the local coordinate system
        has its origin at b, its first axis along b to a and c in its first plane. A protein
        residue's N, CA, C do well.
    width, depth : int
        Width of the network and number of its residual blocks.
    centred : bool
        Whether the sampler's first step takes away what the frame's own place would leave in the
        sample; see `multistep_coefficients`. `for_molecule` says yes; models from before it do
        without.
    n_atoms, heavy_atoms, lag_min_ps, ..., rho
        Those of `DiffusionPropagator`. With the default levels, on alanine dipeptide at a lag of
        100 ps, 8, 10, 14 and 24 calls left 4.7, 3.4, 2.9 and 2.7 % of jumps with a bond out of its
        window in a model half way through its training. A `sigma_max` of only a few widths gives
        good equilibria and wrong kinetics.

    Notes
    -----
    Symbols: x is the frame in local coordinates, x' the next frame, s(lag) the typical displacement
    of each atom, y = (x' - x) / s the scaled displacement that is diffused.

    The training target is aligned: x' is turned and shifted onto x (Kabsch, unweighted, heavy
    atoms) before y is formed. `forward` then aligns its proposal to the frame in the same sense, so
    that a jump carries no net translation or rotation even where the network errs.

    The noise is the initial noise only (K = 3N); the solver is deterministic. Bond lengths to
    hydrogens are left as the network gives them.

    `displacement_scale` and the normalisation are buffers: `fit_statistics` sets them from data and
    `state_dict` carries them.
    """

    solver: list[tuple[float, float, float]]
    pair_mean: Tensor
    pair_width: Tensor
    frame_mean: Tensor
    frame_width: Tensor
    first: Tensor
    second: Tensor
    incidence: Tensor

    def __init__(
        self,
        *,
        n_atoms: int,
        frame_atoms: Sequence[int],
        heavy_atoms: Sequence[int],
        lag_min_ps: float,
        lag_max_ps: float,
        width: int = 384,
        depth: int = 4,
        n_lag_nodes: int = 12,
        n_calls: int = 10,
        sigma_min: float = 0.02,
        sigma_max: float = 40.0,
        rho: float = 8.0,
        centred: bool = False,
    ) -> None:
        if len(frame_atoms) != 3 or len(set(frame_atoms)) != 3:
            raise ValueError(f"frame_atoms must be three different atoms, got {list(frame_atoms)}")
        check_atoms("frame_atoms", frame_atoms, n_atoms)
        super().__init__(
            n_atoms,
            3 * n_atoms,
            heavy_atoms=heavy_atoms,
            lag_min_ps=lag_min_ps,
            lag_max_ps=lag_max_ps,
            n_lag_nodes=n_lag_nodes,
            n_calls=n_calls,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            rho=rho,
            coordinates={"frame_atoms": [int(i) for i in frame_atoms]},
            network={"width": int(width), "depth": int(depth)},
        )
        self.hyperparameters["centred"] = bool(centred)
        self.axis_atom, self.origin_atom, self.plane_atom = (int(i) for i in frame_atoms)
        self.width = int(width)
        # TorchScript sees attributes of the object, not the module's globals.
        self.squash = _SQUASH
        self.alignment_steps = _ALIGNMENT_STEPS
        levels = karras_levels(sigma_min, sigma_max, n_calls, rho)
        self.solver = solver_coefficients(levels, centred)

        first, second = torch.triu_indices(n_atoms, n_atoms, offset=1)
        n_pairs = int(first.numel())
        incidence = torch.zeros(n_atoms, n_pairs)
        incidence[first, torch.arange(n_pairs)] = -1.0
        incidence[second, torch.arange(n_pairs)] = 1.0
        self.keep("first", first)
        self.keep("second", second)
        self.keep("incidence", incidence)
        self.register_buffer("scale", torch.full((n_lag_nodes, n_atoms), 0.05))
        self.register_buffer("pair_mean", torch.full((n_pairs,), 0.3))
        self.register_buffer("pair_width", torch.full((n_pairs,), 0.1))
        self.register_buffer("frame_mean", torch.zeros(n_atoms, 3))
        self.register_buffer("frame_width", torch.full((n_atoms, 3), 0.2))

        self.condition_in = torch.nn.Linear(3 * n_atoms + n_pairs + LAG_FEATURES, width)
        self.make_modulation(width, _BOTTLENECK, 2 * depth * width)
        self.embed = torch.nn.Linear(6 * n_atoms + n_pairs, width)
        self.expand = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(depth)])
        self.contract = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(depth)])
        self.vector_head = torch.nn.Linear(width, 3 * n_atoms)
        self.pair_head = torch.nn.Linear(width, n_pairs)
        start_at_zero(self.vector_head, self.pair_head)

    @classmethod
    def for_molecule(
        cls,
        molecule: Molecule,
        frames: np.ndarray | None = None,
        **settings: Any,
    ) -> "DenseDiffusion":
        """Build a network for a molecule.

        Parameters
        ----------
        frames : ndarray, optional
            (T, N, 3), nm, from which `choose_frame_atoms` chooses; the reference frame without.
        **settings
            The other parameters of the class, lags at least.
        """
        if frames is None:
            frames = np.asarray(molecule.positions)[None]
        return cls(
            n_atoms=molecule.n_atoms,
            frame_atoms=choose_frame_atoms(molecule, frames),
            heavy_atoms=alignment_atoms(molecule),
            **{"centred": True, **settings},
        )

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        local, origin, axes = self.to_local(frame)
        scale = self.displacement_scale(lag)
        context, modulation = self.encode(local, lag)
        noise_modulation = self.modulation_by_noise(self.levels)
        y = noise.view(-1, self.n_atoms, 3) * self.levels[0]
        before = torch.zeros_like(y)
        for k in range(self.n_calls):
            denoised = self.denoise(
                y, self.levels[k : k + 1], local, scale, context, modulation + noise_modulation[k]
            )
            a, b, c = self.solver[k]
            y = a * y + b * denoised + c * before
            before = denoised
        proposal = align_nearby(local + scale * y, local, self.heavy, self.alignment_steps)
        return origin + torch.matmul(proposal, axes.transpose(1, 2))

    def to_local(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return local coordinates, origin and axes; see `alignment.to_local`."""
        return to_local(frame, self.axis_atom, self.origin_atom, self.plane_atom)

    def displacement_scale(self, lag: Tensor) -> Tensor:
        """Return the typical displacement of each atom, (B, N, 1) nm, at lags (B,) in ps."""
        return self.scale_at(lag).unsqueeze(-1)

    def encode(self, local: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return context (B, width) and modulation (B, 2 * depth * width); made once a jump.

        They say what the denoiser needs to know of the frame, local (B, N, 3) nm, and the lag, (B,)
        ps.
        """
        features = [self._coordinates(local), self._distances(local)[0], self.lag_features(lag)]
        context = self.condition_out(F.silu(self.condition_in(torch.cat(features, dim=-1))))
        return context, self.modulation_by_frame(context)

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        local: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        """Return D, (B, N, 3): the expected scaled displacement given a noised one.

        `y` is (B, N, 3), its noise level `sigma` (B,) or (1,); `local` (B, N, 3) and `scale`
        (B, N, 1) are in nm. Context and modulation are from `encode`, with that of
        `modulation_by_noise` added to the modulation.
        """
        c_skip, c_out, c_in = preconditioning(sigma.view(-1, 1, 1))
        squeezed = c_in * y
        guess = local + scale * squeezed
        distances, directions = self._distances(guess)
        h = context + self.embed(
            torch.cat([squeezed.flatten(1), self._coordinates(guess), distances], dim=-1)
        )
        parts = modulation.split(self.width, dim=-1)
        for k, (expand, contract) in enumerate(zip(self.expand, self.contract)):  # noqa: B905
            z = expand(F.layer_norm(h, [self.width]))
            z = z * (1.0 + parts[2 * k]) + parts[2 * k + 1]
            h = h + contract(F.silu(z))
        h = F.layer_norm(h, [self.width])
        # A bond's length is corrected along the bond: such answers are easy for the pair head. Each
        # atom takes its part in proportion to its scale, because that is how the noise was shared.
        pulls = torch.matmul(self.incidence, self.pair_head(h).unsqueeze(-1) * directions)
        pulls = pulls * (scale / scale.mean(dim=1, keepdim=True))
        return c_skip * y + c_out * (self.vector_head(h).view(-1, self.n_atoms, 3) + pulls)

    def _coordinates(self, local: Tensor) -> Tensor:
        return ((local - self.frame_mean) / self.frame_width).flatten(1)

    def _pair_vectors(self, local: Tensor) -> tuple[Tensor, Tensor]:
        vectors = local[:, self.second] - local[:, self.first]
        # The tiny constant keeps the gradient finite where two noised atoms meet.
        distance = torch.sqrt((vectors * vectors).sum(-1) + 1e-12)
        return distance, vectors / distance.unsqueeze(-1)

    def _distances(self, local: Tensor) -> tuple[Tensor, Tensor]:
        distance, directions = self._pair_vectors(local)
        standard = (distance - self.pair_mean) / self.pair_width
        return standard * torch.rsqrt(1.0 + (standard / self.squash) ** 2), directions

    # What training needs.

    @torch.no_grad()
    def fit_statistics(self, frames: Tensor, scale: Tensor) -> None:
        """Set the normalisation from data, before training.

        `frames`, (M, N, 3) nm, represent what the model will see; `scale`, (n_lag_nodes, N) nm, is
        the root-mean-square displacement a coordinate of each atom, aligned, at the lags of
        `lag_nodes`.
        """
        local = self.to_local(frames.to(self.scale))[0]
        distance = self._pair_vectors(local)[0]
        self.frame_mean.copy_(local.mean(0))
        self.frame_width.copy_(local.std(0).clamp(min=_COORDINATE_WIDTH_FLOOR_NM))
        self.pair_mean.copy_(distance.mean(0))
        self.pair_width.copy_(distance.std(0).clamp(min=_PAIR_WIDTH_FLOOR_NM))
        self.scale.copy_(scale.clamp(min=_SCALE_FLOOR_NM))

    @torch.jit.ignore
    def measure_scale(self, frame: Tensor, later: Tensor) -> Tensor:
        """Return the scale, (N,), that pairs of frames (B, N, 3) at one lag give."""
        moved = align_frames(later, frame, self.heavy) - frame
        return torch.sqrt((moved * moved).mean(dim=(0, 2)))

    @torch.jit.ignore
    def target(
        self, frame: Tensor, later: Tensor, lag: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what is diffused, (B, N, 3) of width one, and what `answer` needs besides."""
        later = align_frames(later, frame, self.heavy)
        local, origin, axes = self.to_local(frame)
        scale = self.displacement_scale(lag)
        return (torch.matmul(later - origin, axes) - local) / scale, (local, scale, lag)

    @torch.jit.ignore
    def loss_weights(self, turn_weight: float) -> Tensor:
        """Return the weight of each coordinate in the loss: one, whatever turns."""
        return torch.ones((), device=self.scale.device)

    @torch.jit.ignore
    def answer(self, noised: Tensor, sigma: Tensor, known: tuple[Tensor, ...]) -> Tensor:
        """Return the denoiser's answer to a noised target at noise levels (B,)."""
        local, scale, lag = known
        context, modulation = self.encode(local, lag)
        modulation = modulation + self.modulation_by_noise(sigma)
        return self.denoise(noised, sigma, local, scale, context, modulation)
