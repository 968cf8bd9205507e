"""What a validation is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..settings import Settings, setting

#: Lags of the usual figures, ps; those that the model knows are taken when none are asked for.
USUAL_LAGS = (10.0, 50.0, 100.0, 500.0)

# A chain shorter than this says nothing about kinetics.
_FEWEST_STEPS = 20


@dataclass(frozen=True)
class ValidateSettings(Settings):
    """What a validation is asked to do."""

    lags: tuple[float, ...] | None = setting(
        None,
        "lags of the rollouts",
        unit="ps",
        shown="those of 10,50,100,500 in the model's range, or the recommended one",
    )
    chains: int = setting(512, "chains of each rollout; errors come from comparing them", least=2)
    total_us: float = setting(
        2.0, "length of all chains of a rollout together", unit="us", option="total-us"
    )
    steps: int | None = setting(None, "steps of each chain instead", least=4)
    seed: int = setting(1, "of the rollouts, the clustering and the resampling", least=0)
    device: str = setting("cpu", "where the model runs: cpu, cuda, cuda:N or auto", metavar="D")
    batch: int = setting(512, "chains that go through the network together")
    max_tries: int = setting(10, "draws before a chain stays where it is for a step")
    discard: float = setting(
        0.1, "share of each chain's beginning left out of the figures", least=0, most=0.9
    )
    kept_frames: int = setting(
        20_000, "frames kept, spread over the chains, for geometry and energy"
    )
    one_step_starts: int = setting(8_192, "draws of the one-step test at each lag")
    torsions: tuple[tuple[int, int, int, int], ...] | None = setting(
        None,
        "atoms (from 0) of the torsions to look at, in the order of the columns if the reference "
        "is an array",
        shown="those about all bonds between heavy atoms that can turn",
        metavar="A,B,C,D",
    )

    def steps_at(self, lag_ps: float) -> int:
        """Return the number of steps of each chain at a lag."""
        if self.steps is not None:
            return self.steps
        return max(_FEWEST_STEPS, math.ceil(self.total_us * 1e6 / (self.chains * lag_ps)))
