"""What a run does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..bridges import BRIDGES, platform_names
from ..checks import check_number, check_temperature, check_whole
from ..files.trajectories import FORMATS
from ..jump.jump import MAX_CANDIDATES
from ..propagator.noise import MAX_SEED

#: Lengths of a run, of which one is given, with their units.
LENGTHS: Final = {"effective_ns": "ns", "jumps": "", "md_ps": "ps"}
#: Length of a run that none is given for: enough to see how the jumps fare.
DEFAULT_JUMPS: Final = 100

#: Platforms that compute in a precision of the user's choice, and the choices.
PRECISE_PLATFORMS: Final = ("CUDA", "HIP", "OpenCL")
PRECISIONS: Final = ("single", "mixed", "double")


@dataclass(frozen=True)
class RunSettings:
    """What a run does; at most one of the three lengths is given.

    Attributes
    ----------
    effective_ns : float, optional
        Length: effective time, ns. That is MD time plus the lags of accepted jumps.
    jumps : int, optional
        Length: number of jumps tried; 100 where no length is given.
    md_ps : float, optional
        Length: MD time, ps.
    lag_ps, burst_ps : float, optional
        Time that a jump covers, and MD time between two jumps, ps; the model's advice by default.
    step_fs : float, optional
        MD step, fs. By default what a prepared directory says; 4 fs where the System is made here,
        with heavy hydrogens; otherwise 2 fs.
    temperature_K : float, optional
        K. By default what a prepared directory says, else the model's.
    friction_per_ps : float
        Of the Langevin dynamics, 1/ps.
    pressure_bar : float, optional
        With a Monte Carlo barostat at this pressure, bar; constant volume by default.
    solute : int or str, optional
        Which copy of the molecule jumps, where there are several: its number or its chain's id.
    platform : str, optional
        OpenMM platform, in upper or lower case; a GPU's if one works here, else CPU.
    precision : str, optional
        ``single``, ``mixed`` or ``double`` on CUDA, HIP and OpenCL; mixed by default. Other
        platforms have no choice of it.
    bridge : str
        How the model reaches OpenMM.
    seed : int
        Of jumps, velocities, thermostat, barostat and the places of ions.
    format : str
        ``xtc`` (rounded to 0.001 nm), ``dcd`` or ``h5`` (float32).
    every_ps : float, optional
        MD time between two frames, ps; that of a burst by default. A frame is taken one MD step
        before the time is full, so that with the default it shows the end of each burst, just
        before the jump.
    solute_only : bool
        Whether to save the solute's atoms only.
    checkpoint_seconds : float
        Wall-clock time between checkpoints, s. Frames and log lines appear with them.
    force_field : tuple of str, optional
        Where the System is made here: files for ``openmm.app.ForceField``; the model's by default.
    water_model : str, optional
        What OpenMM calls the water of that force field, where water is added; by its files by
        default.
    waters : int, optional
        How many water molecules to add to a solute alone.
    padding_nm : float, optional
        Least distance between periodic copies of the solute instead, nm; 1 nm by default.
    cutoff_nm : float
        Cutoff where the System is made here, nm.
    equilibration_ps : float
        Where the System is made here: length of the MD at constant pressure that relaxes it, ps,
        after a short minimisation. 0 for the minimisation alone.
    max_novelty : float or "card" or None
        From a frame whose novelty score is higher there is no jump. The model's own threshold by
        default; None for no limit.
    max_tries, candidates : int
        How many proposals to draw for a jump before it is dropped, and how many of them at once
        after the first has failed.
    settle_steps : int
        Most steps in which everything but the solute gives way after a jump; 0 for none.
    settle_ps : float
        MD that everything but the solute does then, while the solute rests, ps; it does not count.
        0 for none.
    max_energy_rise : float, optional
        A jump after which, settled, the potential energy is higher by more is taken back, kJ/mol;
        None for no limit.
    max_energy_sigma : float, optional
        So is one that raises it further above its mean in MD, in standard deviations; None for no
        limit.
    """

    effective_ns: float | None = None
    jumps: int | None = None
    md_ps: float | None = None
    lag_ps: float | None = None
    burst_ps: float | None = None
    step_fs: float | None = None
    temperature_K: float | None = None
    friction_per_ps: float = 1.0
    pressure_bar: float | None = None
    solute: int | str | None = None
    platform: str | None = None
    precision: str | None = None
    bridge: str = "auto"
    seed: int = 1
    format: str = "xtc"
    every_ps: float | None = None
    solute_only: bool = False
    checkpoint_seconds: float = 60.0
    force_field: tuple[str, ...] | None = None
    water_model: str | None = None
    waters: int | None = None
    padding_nm: float | None = None
    cutoff_nm: float = 0.9
    equilibration_ps: float = 10.0
    max_novelty: float | str | None = "card"
    max_tries: int = 4
    candidates: int = 4
    settle_steps: int = 40
    settle_ps: float = 1.0
    max_energy_rise: float | None = 200.0
    max_energy_sigma: float | None = 4.0

    def __post_init__(self) -> None:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one length: {', '.join(LENGTHS)} (got {', '.join(given)})")
        if not given:
            object.__setattr__(self, "jumps", DEFAULT_JUMPS)
        for name, wanted in (
            *LENGTHS.items(),
            ("lag_ps", "ps"),
            ("burst_ps", "ps"),
            ("step_fs", "fs"),
            ("temperature_K", "K"),
            ("pressure_bar", "bar"),
            ("every_ps", "ps"),
            ("checkpoint_seconds", "s"),
            ("padding_nm", "nm"),
            ("cutoff_nm", "nm"),
            ("max_energy_rise", "kJ/mol"),
            ("max_energy_sigma", ""),
        ):
            if name != "jumps":
                check_number(name, getattr(self, name), wanted)
        check_number("friction_per_ps", self.friction_per_ps, "1/ps", zero=True)
        check_number("equilibration_ps", self.equilibration_ps, "ps", zero=True)
        check_number("settle_ps", self.settle_ps, "ps", zero=True)
        check_whole("jumps", self.jumps)
        check_whole("waters", self.waters)
        check_whole("seed", self.seed, MAX_SEED)
        check_whole("max_tries", self.max_tries)
        check_whole("candidates", self.candidates, MAX_CANDIDATES)
        check_whole("settle_steps", self.settle_steps, least=0)
        check_temperature(self.temperature_K)
        if self.max_novelty != "card":
            check_number("max_novelty", self.max_novelty, "")
        if self.waters is not None and self.padding_nm is not None:
            raise ValueError("give waters or padding_nm, not both")
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.bridge != "auto" and self.bridge not in BRIDGES:
            raise ValueError(
                f"bridge must be auto or one of {', '.join(BRIDGES)}, got {self.bridge!r}"
            )
        if self.platform is not None:
            here = {name.lower(): name for name in platform_names()}
            if str(self.platform).lower() not in here:
                raise ValueError(
                    f"platform must be one of {', '.join(here.values())}, got {self.platform!r}"
                )
            object.__setattr__(self, "platform", here[str(self.platform).lower()])
        if self.precision is not None:
            if self.precision not in PRECISIONS:
                raise ValueError(
                    f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
                )
            if self.platform is not None and self.platform not in PRECISE_PLATFORMS:
                raise ValueError(f"precision: the {self.platform} platform has no choice of it")
