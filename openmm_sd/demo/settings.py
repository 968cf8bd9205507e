"""What the demonstration does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..model.schedules import PURPOSES
from ..prepare.settings import HEAVY_STEP_PS
from ..run.settings import RunSettings
from ..settings import FASTEST, Settings, setting

# More jumps than there is time for.
_ENDLESS: Final = 10**9


@dataclass(frozen=True)
class DemoSettings(Settings):
    """What the demonstration does."""

    model: str = setting("ala2-water", "shipped model, or path of a bundle", metavar="NAME")
    seconds: float = setting(
        120.0,
        "wall-clock time of the mixed run, and again of plain MD beside it; building the box comes "
        "on top",
        option="seconds",
    )
    jumps: int | None = setting(None, "number of jumps to try instead")
    waters: int = setting(651, "number of water molecules")
    equilibration: float = setting(
        10.0, "MD at constant pressure that relaxes the new box", unit="ps"
    )
    purpose: str = setting(
        "populations", "what the run is for: chooses the lag", choices=PURPOSES, option="for"
    )
    lag: float | None = setting(
        None, "time that a jump covers", unit="ps", shown="the model's advice for that purpose"
    )
    # A burst is halved: two frames are saved of it.
    burst: float = setting(1.0, "MD time between two jumps", unit="ps", least=2 * HEAVY_STEP_PS)
    platform: str | None = setting(None, "OpenMM platform", shown=FASTEST)
    bridge: str = setting("auto", "how the model reaches OpenMM")
    seed: int = setting(1, "of the jumps, the velocities and the Langevin dynamics")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.of_the_run()

    def of_the_run(self) -> RunSettings:
        """Return the settings of the run."""
        return RunSettings(
            jumps=self.jumps or _ENDLESS,
            purpose=self.purpose,
            lag_ps=self.lag,
            burst_ps=self.burst,
            every_ps=self.burst / 2,
            waters=self.waters,
            equilibration_ps=self.equilibration,
            platform=self.platform,
            bridge=self.bridge,
            seed=self.seed,
            # Plain MD is timed at checkpoints.
            checkpoint_seconds=min(60.0, self.seconds / 5),
        )
