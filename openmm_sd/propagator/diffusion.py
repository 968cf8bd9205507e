"""What all diffusion networks share: range of lags, noise levels, and what they are shown of both.

A network is shown a lag as waves of its place in the range, and a noise level as waves of its
logarithm.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
import math
from collections.abc import Sequence
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import Propagator
from .sampler import interpolate_by_lag, karras_levels

_LAG_WAVES: Final = 4
_NOISE_WAVES: Final = 16

LAG_FEATURES: Final = 1 + 2 * _LAG_WAVES
"""Numbers that say what the lag is."""

NOISE_FEATURES: Final = 2 * _NOISE_WAVES
"""Numbers that say what the noise level is."""

_NOISE_WIDTH: Final = 64

# Noise levels and nodes of the scale at most: files name them, and lists are made of them.
_MOST_NODES: Final = 1000


class DiffusionPropagator(Propagator):
    """Base of networks that draw the next frame by diffusion, given this frame and a lag.

    Parameters
    ----------
    n_atoms, noise_size : int
        As in `Propagator`.
    heavy_atoms : sequence of int
        The atoms on which a proposal is aligned to the frame, three or more.
    lag_min_ps, lag_max_ps : float
        Range of lags the model is trained for, ps.
    n_lag_nodes : int
        The scale of what is diffused is stored at this many lags, evenly spaced in log(lag).
    n_calls : int
        Denoiser calls a jump.
    sigma_min, sigma_max, rho : float
        Noise levels of the sampler in widths of the data; see `karras_levels`.
    coordinates, network : dict
        What else there is to keep in `hyperparameters`, in plain JSON types.

    Attributes
    ----------
    hyperparameters : dict
        The arguments of the class in plain JSON types: ``cls(**hyperparameters)`` rebuilds it.
    """

    hyperparameters: dict[str, Any]
    heavy: Tensor
    levels: Tensor
    noise_frequencies: Tensor
    scale: Tensor
    noise_in: torch.nn.Linear
    noise_modulation: torch.nn.Linear
    condition_out: torch.nn.Linear
    condition_neck: torch.nn.Linear
    condition_modulation: torch.nn.Linear

    def __init__(
        self,
        n_atoms: int,
        noise_size: int,
        *,
        heavy_atoms: Sequence[int],
        lag_min_ps: float,
        lag_max_ps: float,
        n_lag_nodes: int,
        n_calls: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        coordinates: dict[str, Any],
        network: dict[str, Any],
    ) -> None:
        super().__init__(n_atoms, noise_size)
        check_atoms("heavy_atoms", heavy_atoms, n_atoms)
        if len(heavy_atoms) < 3:
            raise ValueError(f"heavy_atoms must be at least three, got {list(heavy_atoms)}")
        if not 0.0 < lag_min_ps < lag_max_ps:
            raise ValueError(f"need 0 < lag_min_ps < lag_max_ps, got {lag_min_ps}, {lag_max_ps}")
        for what, value, least in (("n_lag_nodes", n_lag_nodes, 2), ("n_calls", n_calls, 1)):
            if not least <= value <= _MOST_NODES:
                raise ValueError(f"{what} must be {least} to {_MOST_NODES}, got {value}")
        # What a model is known by hashes these in this order.
        self.hyperparameters = {
            "n_atoms": int(n_atoms),
            **coordinates,
            "heavy_atoms": [int(i) for i in heavy_atoms],
            "lag_min_ps": float(lag_min_ps),
            "lag_max_ps": float(lag_max_ps),
            **network,
            "n_lag_nodes": int(n_lag_nodes),
            "n_calls": int(n_calls),
            "sigma_min": float(sigma_min),
            "sigma_max": float(sigma_max),
            "rho": float(rho),
        }
        self.log_lag_min = math.log(lag_min_ps)
        self.log_lag_span = math.log(lag_max_ps / lag_min_ps)
        self.n_lag_nodes = int(n_lag_nodes)
        self.n_calls = int(n_calls)
        # TorchScript sees attributes of the object, not the module's globals.
        self.lag_waves = _LAG_WAVES
        self.keep("heavy", torch.tensor(list(heavy_atoms)))
        self.keep("levels", torch.tensor(karras_levels(sigma_min, sigma_max, n_calls, rho)))
        frequencies = torch.exp(torch.linspace(math.log(0.1), math.log(8.0), _NOISE_WAVES))
        self.keep("noise_frequencies", frequencies)

    def keep(self, name: str, value: Tensor) -> None:
        """Register what follows from the hyperparameters and is not stored with the weights."""
        self.register_buffer(name, value, persistent=False)

    def make_modulation(self, width: int, bottleneck: int, modulation: int) -> None:
        """Make the layers by which frame, lag and noise level modulate a network's blocks."""
        self.condition_out = torch.nn.Linear(width, width)
        self.condition_neck = torch.nn.Linear(width, bottleneck)
        self.condition_modulation = torch.nn.Linear(bottleneck, modulation)
        self.noise_in = torch.nn.Linear(NOISE_FEATURES, _NOISE_WIDTH)
        self.noise_modulation = torch.nn.Linear(_NOISE_WIDTH, modulation)

    def modulation_by_frame(self, context: Tensor) -> Tensor:
        """Return the modulation (..., M) that belongs to what is known of frame and lag."""
        return self.condition_modulation(F.silu(self.condition_neck(F.silu(context))))

    def modulation_by_noise(self, sigma: Tensor) -> Tensor:
        """Return the modulation (L, M) that belongs to noise levels (L,)."""
        return self.noise_modulation(F.silu(self.noise_in(self.noise_features(sigma))))

    @torch.jit.ignore
    def with_calls(self, n_calls: int) -> Self:
        """Return a copy with the same weights that makes another number of network calls."""
        settings: dict[str, Any] = {**self.hyperparameters, "n_calls": n_calls}
        other = type(self)(**settings)
        other.load_state_dict(self.state_dict())
        return other.to(self.scale.device).eval()

    def lag_nodes(self) -> list[float]:
        """Return the lags, in ps, at which the scale of what is diffused is stored."""
        span = self.log_lag_span / (self.n_lag_nodes - 1)
        return [math.exp(self.log_lag_min + k * span) for k in range(self.n_lag_nodes)]

    def scale_at(self, lag: Tensor) -> Tensor:
        """Return the scale of what is diffused at lags (B,), ps: a row of `scale` each."""
        return interpolate_by_lag(self.scale, lag, self.log_lag_min, self.log_lag_span)

    def lag_features(self, lag: Tensor) -> Tensor:
        """Return where lags (B,), ps, stand in the range, (B, LAG_FEATURES)."""
        place = ((torch.log(lag) - self.log_lag_min) / self.log_lag_span).unsqueeze(-1)
        features = [2.0 * place - 1.0]
        for k in range(self.lag_waves):
            angle = place * (math.pi * (k + 1))
            features.append(torch.sin(angle))
            features.append(torch.cos(angle))
        return torch.cat(features, dim=-1)

    def noise_features(self, sigma: Tensor) -> Tensor:
        """Return waves of the logarithm of noise levels (L,), (L, NOISE_FEATURES)."""
        angle = torch.log(sigma).unsqueeze(-1) * self.noise_frequencies
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


def check_atoms(name: str, atoms: Sequence[int], n_atoms: int) -> None:
    """Refuse atoms that the molecule does not have."""
    if any(not 0 <= atom < n_atoms for atom in atoms):
        raise ValueError(f"{name} must lie in 0 to {n_atoms - 1}, got {list(atoms)}")


def start_at_zero(*layers: torch.nn.Linear) -> None:
    """Let a network answer zero before it is trained: the denoiser's skip part is all there is."""
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
