"""What diffusion propagators in Cartesian coordinates share: sampler, local frame, training target.

A network adds `encode` and `denoise`.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import align_frames, align_nearby, to_local
from ..contract import Propagator
from ..sampler import interpolate_by_lag


class CartesianDiffusion(Propagator):
    """Base of networks that diffuse the scaled displacement of every atom.

    Notes
    -----
    Symbols: x is the frame in local coordinates, x' the next frame, s(lag) the typical displacement
    of each atom, y = (x' - x) / s the scaled displacement that is diffused.

    The training target is aligned: x' is turned and shifted onto x (Kabsch, unweighted, heavy
    atoms) before y is formed. `forward` then aligns its proposal to the frame in the same sense, so
    that a jump carries no net translation or rotation even where the network errs.

    The noise is the initial noise only (K = 3N); the solver is deterministic. Bond lengths to
    hydrogens are left as the network gives them.
    """

    hyperparameters: dict[str, Any]
    solver: list[tuple[float, float, float]]
    n_calls: int
    n_lag_nodes: int
    log_lag_min: float
    log_lag_span: float
    axis_atom: int
    origin_atom: int
    plane_atom: int
    alignment_steps: int
    noise_in: torch.nn.Linear
    noise_modulation: torch.nn.Linear
    scale: Tensor
    heavy: Tensor
    levels: Tensor
    noise_frequencies: Tensor

    @torch.jit.ignore
    def with_calls(self, n_calls: int) -> "CartesianDiffusion":
        """Return a copy with the same weights that makes another number of network calls."""
        settings: dict[str, Any] = {**self.hyperparameters, "n_calls": n_calls}
        other = type(self)(**settings)
        other.load_state_dict(self.state_dict())
        return other.to(self.scale.device).eval()

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        """Return the frame one lag later; see `Propagator` for shapes and units."""
        local, origin, axes = self.to_local(frame)
        scale = self.displacement_scale(lag)
        context, modulation = self.encode(local, lag)
        noise_modulation = self.encode_noise(self.levels)
        y = noise.view(-1, self.n_atoms, 3) * self.levels[0]
        before = torch.zeros_like(y)
        for k in range(self.n_calls):
            denoised = self.denoise(
                y, self.levels[k : k + 1], local, scale, context, modulation + noise_modulation[k]
            )
            a, b, c = self.solver[k]
            y = a * y + b * denoised + c * before
            before = denoised
        proposal = self.align(local + scale * y, local)
        return origin + torch.matmul(proposal, axes.transpose(1, 2))

    def encode(self, local: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the denoiser needs to know of frame and lag; made once a jump.

        Parameters
        ----------
        local : Tensor
            (B, N, 3), nm, local coordinates.
        lag : Tensor
            (B,), ps.

        Returns
        -------
        tuple of Tensor
            Context and modulation (B, 2 * depth * width).
        """
        raise TypeError("the network does not define encode")

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
        raise TypeError("the network does not define denoise")

    @torch.no_grad()
    def fit_statistics(self, frames: Tensor, scale: Tensor) -> None:
        """Set the normalisation from data, before training.

        Parameters
        ----------
        frames : Tensor
            (M, N, 3), nm: frames that represent what the model will see.
        scale : Tensor
            (n_lag_nodes, N), nm: from `measure_scale` at the lags of `lag_nodes`.
        """
        raise TypeError("the network does not define fit_statistics")

    def to_local(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return local coordinates, origin and axes; see `alignment.to_local`."""
        return to_local(frame, self.axis_atom, self.origin_atom, self.plane_atom)

    def displacement_scale(self, lag: Tensor) -> Tensor:
        """Return the typical displacement of each atom, (B, N, 1) nm, at lags (B,) in ps."""
        scale = interpolate_by_lag(self.scale, lag, self.log_lag_min, self.log_lag_span)
        return scale.unsqueeze(-1)

    def encode_noise(self, sigma: Tensor) -> Tensor:
        """Return the modulation (L, 2 * depth * width) that belongs to noise levels (L,)."""
        angle = torch.log(sigma).unsqueeze(-1) * self.noise_frequencies
        features = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
        return self.noise_modulation(F.silu(self.noise_in(features)))

    def align(self, moving: Tensor, reference: Tensor) -> Tensor:
        """Turn and shift frames onto others that are nearly aligned, over the heavy atoms."""
        return align_nearby(moving, reference, self.heavy, self.alignment_steps)

    def lag_nodes(self) -> list[float]:
        """Return the lags, in ps, at which the displacement's scale is stored."""
        span = self.log_lag_span / (self.n_lag_nodes - 1)
        return [math.exp(self.log_lag_min + k * span) for k in range(self.n_lag_nodes)]

    # What training needs.

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
        modulation = modulation + self.encode_noise(sigma)
        return self.denoise(noised, sigma, local, scale, context, modulation)
