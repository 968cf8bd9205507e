"""Settings of a rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..settings import MAX_SEED, Settings, setting

if TYPE_CHECKING:
    from ..model.model import ScoreModel

_MOST: Final = 2**31 - 1


@dataclass(frozen=True)
class RolloutSettings(Settings):
    """What a rollout does."""

    chains: int = setting(512, "number of independent chains", most=_MOST)
    steps: int = setting(100, "jumps a chain", most=_MOST)
    lag_ps: float | None = setting(
        None, "time that one jump covers", shown="the model's recommendation"
    )
    seed: int = setting(1, "of the noise and of the choice of start frames", least=0, most=MAX_SEED)
    max_tries: int = setting(
        10, "draws of one step before a chain stays where it is for that step", most=_MOST
    )
    device: str = setting("cpu", "where the network runs: cpu, cuda, cuda:N or auto", metavar="D")
    batch: int = setting(
        512,
        "chains given to the network at once; results depend on it by rounding only",
        most=_MOST,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.device, str):
            raise ValueError(f"device must be a string, got {type(self.device).__name__}")


def checked_lag(model: ScoreModel, lag: float | None) -> float:
    """Return a lag in ps that the model was trained for; by default its recommendation."""
    if lag is None:
        return model.recommended_lag
    trained = model.lag_range
    if trained is not None and not trained[0] <= lag <= trained[1]:
        raise ValueError(
            f"lag is {lag:g} ps, the model was trained for {trained[0]:g} to {trained[1]:g} ps"
        )
    return float(lag)
