"""What a validation is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import check_number, check_whole

#: Lags of the usual figures, ps; those that the model knows are taken when none are asked for.
USUAL_LAGS = (10.0, 50.0, 100.0, 500.0)

# A chain shorter than this says nothing about kinetics.
_FEWEST_STEPS = 20


@dataclass(frozen=True)
class ValidateSettings:
    """What a validation is asked to do.

    Attributes
    ----------
    lags : tuple of float, optional
        Lags of the rollouts, ps. By default those of 10, 50, 100 and 500 that lie in the model's
        range, or the recommended one if none does.
    chains : int
        Number of chains of each rollout.
    total_us : float
        Length of all chains of a rollout together, microseconds.
    steps : int, optional
        Steps of each chain, instead of `total_us`.
    seed : int
        Of the rollouts, the clustering and the resampling.
    device : str
        Where the model runs.
    batch : int
        Chains that go through the network together.
    max_tries : int
        Draws before a chain stays where it is for a step.
    discard : float
        Share of each chain's beginning that is left out of the figures.
    kept_frames : int
        Frames kept, spread over the chains, for geometry and energy.
    one_step_starts : int
        Draws of the one-step test at each lag.
    torsions : tuple of (int, int, int, int), optional
        Atoms (from 0) of the torsions to look at, in the order of the columns if the reference is
        an array; by default those about all bonds between heavy atoms that can turn.
    """

    lags: tuple[float, ...] | None = None
    chains: int = 512
    total_us: float = 2.0
    steps: int | None = None
    seed: int = 1
    device: str = "cpu"
    batch: int = 512
    max_tries: int = 10
    discard: float = 0.1
    kept_frames: int = 20_000
    one_step_starts: int = 8_192
    torsions: tuple[tuple[int, int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        for lag in self.lags if self.lags is not None else ():
            check_number("lags", lag, "ps")
        if self.lags is not None and not self.lags:
            raise ValueError("lags is empty: name at least one lag in ps")
        check_number("total_us", self.total_us, "microseconds")
        for name in ("chains", "batch", "max_tries", "kept_frames", "one_step_starts"):
            check_whole(name, getattr(self, name))
        if self.chains < 2:
            raise ValueError("chains must be at least 2: errors come from comparing chains")
        check_whole("steps", self.steps, least=4)
        if not 0.0 <= self.discard <= 0.9:
            raise ValueError(f"discard must be a share between 0 and 0.9, got {self.discard!r}")

    def steps_at(self, lag_ps: float) -> int:
        """Return the number of steps of each chain at a lag."""
        if self.steps is not None:
            return self.steps
        return max(_FEWEST_STEPS, math.ceil(self.total_us * 1e6 / (self.chains * lag_ps)))
