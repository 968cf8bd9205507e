"""Settings of a rollout, and the checks of what a caller gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from ..files.trajectories import FORMATS as _TRAJECTORIES
from ..model.model import ScoreModel
from ..propagator.noise import MAX_SEED

#: File formats of a trajectory, with the file each one gives.
FORMATS: Final = {name: _TRAJECTORIES[name] for name in ("xtc", "h5")}


@dataclass(frozen=True)
class RolloutSettings:
    """What a rollout does.

    Attributes
    ----------
    chains : int
        Number of independent chains.
    steps : int
        Jumps a chain.
    lag_ps : float, optional
        Time that one jump covers, ps; the model's recommendation by default.
    seed : int
        Of the noise and of the choice of start frames.
    max_tries : int
        Draws of one step before a chain stays where it is for that step.
    device : str
        ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.
    batch : int
        Chains given to the network at once. Results depend on it by rounding only.
    """

    chains: int = 512
    steps: int = 100
    lag_ps: float | None = None
    seed: int = 1
    max_tries: int = 10
    device: str = "cpu"
    batch: int = 512

    def __post_init__(self) -> None:
        for name, limit in (
            ("chains", 2**31 - 1),
            ("steps", 2**31 - 1),
            ("max_tries", 2**31 - 1),
            ("batch", 2**31 - 1),
        ):
            _whole(name, getattr(self, name), 1, limit)
        _whole("seed", self.seed, 0, MAX_SEED)
        lag = self.lag_ps
        if lag is not None and (
            isinstance(lag, bool)
            or not isinstance(lag, (int, float))
            or not (0 < lag < float("inf"))
        ):
            raise ValueError(f"lag must be a positive number of ps, got {lag!r}")
        if not isinstance(self.device, str):
            raise ValueError(f"device must be a string, got {type(self.device).__name__}")


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def checked_lag(model: ScoreModel, lag: float | None) -> float:
    if lag is None:
        return model.recommended_lag
    trained = model.lag_range
    if trained is not None and not trained[0] <= lag <= trained[1]:
        raise ValueError(
            f"lag is {lag:g} ps, the model was trained for {trained[0]:g} to {trained[1]:g} ps"
        )
    return float(lag)


def checked_device(name: str) -> torch.device:
    """Return the device of a name: cpu, cuda, cuda:N, or auto for a GPU where there is one.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device {name}: PyTorch sees {count} CUDA GPUs on this machine")
        return torch.device("cuda", device.index or 0)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a device for people."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return "cpu"
