"""How a model is adapted to a molecule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..settings import Settings, setting

_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class AdaptSettings(Settings):
    """How a model is adapted to a molecule."""

    budget: str = setting(
        "30m", "wall-clock time of everything, such as 90s, 30m or 2h, summed over resumed parts"
    )
    from_scratch: bool = setting(False, "begin with no weights")
    rounds: int = setting(3, "trainings that the budget, or an enlarged one, is shared out to")
    round_ns: float | None = setting(
        None,
        "MD of a round at most",
        shown="what its share of the budget gives",
        option="round-ns",
    )
    run_ps: float = setting(200.0, "length of a run of MD", option="run-ps")
    lags: tuple[float, ...] = setting(
        (10.0, 100.0), "lags at which one-step laws are compared with MD's", unit="ps"
    )
    tolerance: float = setting(
        0.1, "deviation of one-step laws from MD's, as a share of them, that is small enough"
    )
    learning_rate: float = setting(3e-4, "peak of the rate of a fine-tuning")
    # Isoleucine with 0.4 ns, 80 steps at 1e-3: held-out loss 0.688 with it, 0.691 without; of four
    # other residues 0.731 and 0.735; before 0.710 and 0.734. One training each.
    keep: float = setting(
        20.0, "how fast a fine-tuning's weights are drawn back to the model's, see train", least=0
    )
    solvent: str = setting(
        "model",
        "of the MD: the model's; without a model it has to be given",
        choices=("model", "explicit", "implicit"),
    )
    force_field: tuple[str, ...] = setting(
        (),
        "file as OpenMM names them; repeatable; without a model only",
        shown="the model's, or as in generate",
        metavar="XML",
    )
    engine: str = setting(
        "auto", "who runs the MD, see generate", choices=("auto", "openmm", "gromacs")
    )
    platform: str | None = setting(None, "OpenMM platform of the MD", shown="as in generate")
    processes: int | None = setting(
        None, "runs of MD that are made at the same time", shown="as in generate"
    )
    device: str = setting("auto", "of the network: cpu, cuda, cuda:N or auto", metavar="D")
    seed: int = setting(1, "of everything", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget_s <= 0:
            raise ValueError(f"budget must be a positive time, got {self.budget!r}")
        longest = max(self.lags)
        if 2.0 * longest > self.run_ps:
            raise ValueError(
                f"run_ps must be at least twice the longest of the lags, {longest:g} ps, got "
                f"{self.run_ps:g}"
            )

    @property
    def budget_s(self) -> float:
        """The budget, s."""
        found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([smh])", self.budget.strip())
        if found is None:
            raise ValueError(f"budget must be a time such as 90s, 30m or 2h, got {self.budget!r}")
        return float(found[1]) * _SECONDS[found[2]]
