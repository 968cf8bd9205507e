"""What a run does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..model.schedules import PURPOSES, USUAL_SETTLE_PS
from ..settings import FASTEST, MAX_SEED, TEMPERATURE, Settings, setting

#: Lengths of a run, of which one is given, with their units.
LENGTHS: Final = {"effective_ns": "ns", "jumps": "", "md_ps": "ps"}
#: Length of a run that none is given for: enough to see how the jumps fare.
DEFAULT_JUMPS: Final = 100

#: Platforms that compute in a precision of the user's choice.
PRECISE_PLATFORMS: Final = ("CUDA", "HIP", "OpenCL")

_ADVICE: Final = "the model's advice for that purpose"


@dataclass(frozen=True)
class RunSettings(Settings):
    """What a run does; at most one of the three lengths is given."""

    effective_ns: float | None = setting(
        None, "length: MD time plus the lags of accepted jumps", option="effective-ns"
    )
    jumps: int | None = setting(None, f"length: number of jumps tried ({DEFAULT_JUMPS})")
    md_ps: float | None = setting(None, "length: MD time", option="md-ps")
    purpose: str = setting(
        "populations",
        "what the run is for: chooses lag, burst and settling as the model's measurements say",
        choices=PURPOSES,
        option="for",
    )
    lag_ps: float | None = setting(None, "time that a jump covers", shown=_ADVICE)
    burst_ps: float | None = setting(None, "MD time between two jumps", shown=_ADVICE)
    step_fs: float | None = setting(
        None,
        "MD step",
        shown="as prepared; 4 where the System is made here, else 2",
        option="step-fs step",
    )
    temperature_K: float | None = setting(
        None, "temperature", shown="as prepared, else the model's", **TEMPERATURE
    )
    friction_per_ps: float = setting(1.0, "friction of the Langevin dynamics", least=0)
    pressure_bar: float | None = setting(
        None, "pressure, by a Monte Carlo barostat", shown="constant volume"
    )
    solute: int | str | None = setting(
        None,
        "which copy of the molecule jumps, where there are several: its number or its chain's id",
        least=0,
        metavar="WHICH",
    )
    platform: str | None = setting(None, "OpenMM platform", shown=FASTEST)
    precision: str | None = setting(
        None,
        "precision on CUDA, HIP and OpenCL; other platforms have no choice of it",
        choices=("single", "mixed", "double"),
        shown="mixed",
    )
    bridge: str = setting(
        "auto",
        "how the model reaches OpenMM",
        choices=("auto", "native", "pythonforce", "torchforce"),
    )
    seed: int = setting(
        1, "of jumps, velocities, thermostat, barostat and the places of ions", most=MAX_SEED
    )
    format: str = setting(
        "xtc",
        "of the trajectory, rounded to 0.001 nm (xtc) or float32",
        choices=("xtc", "dcd", "h5"),
    )
    every_ps: float | None = setting(
        None,
        "MD time between two frames; by default each is the end of a burst, before the jump",
        shown="that of a burst",
    )
    solute_only: bool = setting(False, "save the solute's atoms only")
    checkpoint_seconds: float = setting(
        60.0,
        "wall-clock time between checkpoints; frames and log lines appear with them",
        option="checkpoint-seconds",
    )
    force_field: tuple[str, ...] | None = setting(
        None,
        "where the System is made here: file for openmm.app.ForceField, repeatable",
        shown="the model's",
        metavar="XML",
    )
    water_model: str | None = setting(
        None, "what OpenMM calls the water to be added", shown="by the force field's files"
    )
    waters: int | None = setting(None, "how many water molecules to add to a solute alone")
    padding_nm: float | None = setting(
        None, "least distance between periodic copies of the solute instead", shown="1"
    )
    cutoff_nm: float = setting(0.9, "cutoff where the System is made here")
    equilibration_ps: float = setting(
        10.0,
        "where the System is made here: MD at constant pressure that relaxes it, after a short "
        "minimisation; 0 for the minimisation alone",
        least=0,
    )
    max_novelty: float | str | None = setting(
        "card",
        "no jump from a frame whose novelty score is higher: a number, card for the model's own "
        "threshold, or off",
        metavar="SCORE",
    )
    max_tries: int = setting(4, "proposals drawn for a jump before it is dropped")
    candidates: int = setting(4, "how many at once after the first has failed", most=7)
    settle_steps: int = setting(
        40,
        "most steps downhill in energy of everything but the solute after a jump; 0 for none",
        least=0,
    )
    settle_ps: float | None = setting(
        None,
        "MD of everything but the solute then, while the solute rests; it does not count",
        least=0,
        shown=f"{_ADVICE}, else {USUAL_SETTLE_PS:g}",
    )
    max_energy_rise: float | None = setting(
        200.0,
        "a jump that raises the potential energy by more, after settling, is undone; or off",
        unit="kJ/mol",
    )
    max_energy_sigma: float | None = setting(
        4.0,
        "so is one that raises it further above its mean in MD, in standard deviations; or off",
    )

    allow_bias: bool = setting(
        False, "accept forces on the solute that are not of its force field; jumps undo their work"
    )

    def __post_init__(self) -> None:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one length: {', '.join(LENGTHS)} (got {', '.join(given)})")
        if not given:
            object.__setattr__(self, "jumps", DEFAULT_JUMPS)
        super().__post_init__()
        if isinstance(self.max_novelty, str) and self.max_novelty != "card":
            raise ValueError(f"max_novelty must be a number, card or off, got {self.max_novelty!r}")
        if self.waters is not None and self.padding_nm is not None:
            raise ValueError("give waters or padding_nm, not both")
        if self.platform is not None:
            from ..system.platforms import known_platform

            object.__setattr__(self, "platform", known_platform(self.platform))
            if self.precision is not None and self.platform not in PRECISE_PLATFORMS:
                raise ValueError(f"precision: the {self.platform} platform has no choice of it")
