"""What ``openmm-sd generate`` makes, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from ..system.force_field import DEFAULT_FORCE_FIELD, IMPLICIT_FORCE_FIELD, water_box

# Above this time step, hydrogens of their own mass are too fast.
_LIGHT_HYDROGEN_FS: Final = 2.0
_HEAVY_HYDROGEN_AMU: Final = 3.0

#: Settings that say how much is made, not how: they may change between a stop and its resumption.
AMOUNTS: Final = ("plain_runs", "plain_ps", "seeded_runs", "seeded_ps")


@dataclass(frozen=True)
class GenerateSettings:
    """How much data is made and how.

    Attributes
    ----------
    engine : str
        Who runs the dynamics: ``openmm``, ``gromacs``, or ``auto``, which measures which of the two
        is faster.
    solvent : str
        ``explicit`` or ``implicit``.
    force_field : tuple of str
        Force field files as OpenMM names them, water or implicit solvent included. By default
        amber99sbildn with tip3p, or with amber99_obc.
    water_model : str, optional
        What OpenMM's Modeller calls the water of that force field; by its files by default.
    waters : int, optional
        Number of water molecules; `padding` decides by default.
    padding_nm : float, optional
        Least distance from the solute to its next periodic copy, nm; 1 nm by default.
    box_nm : float, optional
        Edge of the cubic cell of one copy, nm; needs `waters`. Without it the cell is relaxed at
        constant pressure. Runs are at constant volume in either case.
    box_shape : str, optional
        ``cube`` or, with GROMACS, ``dodecahedron`` (rhombic), which holds 29 % less water at the
        same distance between copies and is GROMACS's default where `box_nm` is not given.
    pressure_bar : float
        Of that relaxation.
    equilibration_ps : float
        Length of the relaxation, ps.
    cutoff_nm : float
        Cutoff of Lennard-Jones and of PME's direct space, nm.
    temperature_K, friction_per_ps, step_fs : float
        Of the Langevin dynamics.
    hydrogen_mass_amu : float, optional
        Mass of the solute's hydrogens, taken from the atoms that they are bonded to. By default 3
        for steps above 2 fs, else left alone.
    spacing_ps : float
        Time from one saved frame to the next, ps.
    copies : int
        Copies of the solute in one box, each in a cell of water of its own.
    plain_runs, seeded_runs : int
        How many of each kind; with several copies, how many times the box is run: each time gives
        as many runs as there are copies.
    plain_ps, seeded_ps : float
        Length of one run of each kind, ps.
    warm_up_ps : float
        What is left out at the start of a plain run, after drawing its velocities, ps.
    pull_ps : float
        How long a seeded run is pulled to its torsions, ps.
    drop_ps : float
        What is left out of a seeded run after its release, ps.
    seed : int
        Of everything.
    """

    solvent: str = "explicit"
    force_field: tuple[str, ...] = ()
    water_model: str | None = None
    waters: int | None = None
    padding_nm: float | None = None
    box_nm: float | None = None
    pressure_bar: float = 1.0
    equilibration_ps: float = 100.0
    cutoff_nm: float = 0.9
    temperature_K: float = 300.0
    friction_per_ps: float = 1.0
    step_fs: float = 4.0
    hydrogen_mass_amu: float | None = None
    spacing_ps: float = 1.0
    copies: int = 1
    plain_runs: int = 1
    plain_ps: float = 1000.0
    seeded_runs: int = 0
    seeded_ps: float = 100.0
    warm_up_ps: float = 20.0
    pull_ps: float = 15.0
    drop_ps: float = 0.5
    seed: int = 1
    engine: str = "openmm"
    box_shape: str | None = None

    def __post_init__(self) -> None:
        if self.solvent not in ("explicit", "implicit"):
            raise ValueError(f"solvent must be explicit or implicit, got {self.solvent!r}")
        if not self.force_field:
            explicit = self.solvent == "explicit"
            files = DEFAULT_FORCE_FIELD if explicit else IMPLICIT_FORCE_FIELD
            object.__setattr__(self, "force_field", files)
        if self.water_model is None:
            object.__setattr__(self, "water_model", water_box(self.force_field))
        self._check_numbers()
        self._check_box()
        self._check_engine()
        if self.hydrogen_mass_amu is None and self.step_fs > _LIGHT_HYDROGEN_FS:
            object.__setattr__(self, "hydrogen_mass_amu", _HEAVY_HYDROGEN_AMU)
        steps = self.spacing_ps * 1000.0 / self.step_fs
        if abs(steps - round(steps)) > 1e-6 or steps < 0.5:
            raise ValueError(
                f"spacing must be a whole number of steps: {self.spacing_ps:g} ps is {steps:g} "
                f"steps of {self.step_fs:g} fs"
            )
        if self.plain_runs + self.seeded_runs == 0:
            raise ValueError("there is nothing to make: give a number of plain or seeded runs")
        for kind in ("plain", "seeded"):
            if getattr(self, f"{kind}_runs") and getattr(self, f"{kind}_ps") < self.spacing_ps:
                raise ValueError(f"{kind} runs must be at least one spacing long")

    def _check_numbers(self) -> None:
        for name in ("temperature_K", "friction_per_ps", "step_fs", "spacing_ps", "cutoff_nm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        for name in ("waters", "padding_nm", "box_nm", "hydrogen_mass_amu"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in (
            *("equilibration_ps", "warm_up_ps", "pull_ps", "drop_ps", "plain_ps", "seeded_ps"),
            *("plain_runs", "seeded_runs", "seed"),
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if self.copies < 1:
            raise ValueError(f"copies must be a whole number of at least 1, got {self.copies!r}")

    def _check_box(self) -> None:
        given = [n for n in ("waters", "padding_nm", "box_nm") if getattr(self, n) is not None]
        if self.solvent == "implicit":
            if given or self.copies > 1:
                raise ValueError(
                    f"{given[0] if given else 'copies'} is for explicit water, the solvent is "
                    "implicit"
                )
            return
        if self.waters is not None and self.padding_nm is not None:
            raise ValueError("give the number of waters or the padding, not both")
        if self.box_nm is not None and self.waters is None:
            raise ValueError("a box needs a number of waters; give both or neither")
        if self.box_nm is not None and self.box_nm <= 2.0 * self.cutoff_nm:
            raise ValueError(
                f"a box of {self.box_nm:g} nm needs a cutoff below {self.box_nm / 2:g} nm, got "
                f"{self.cutoff_nm:g}"
            )

    def _check_engine(self) -> None:
        if self.engine not in ("openmm", "gromacs", "auto"):
            raise ValueError(f"engine must be openmm, gromacs or auto, got {self.engine!r}")
        if self.engine == "auto" and self.box_shape is None:
            return  # when the engine is known
        if self.box_shape is None:
            rhombic = self.engine == "gromacs" and self.box_nm is None
            object.__setattr__(self, "box_shape", "dodecahedron" if rhombic else "cube")
        if self.box_shape not in ("cube", "dodecahedron"):
            raise ValueError(f"box_shape must be cube or dodecahedron, got {self.box_shape!r}")
        if self.box_shape != "cube" and (self.box_nm is not None or self.engine == "openmm"):
            why = "a box of given edge" if self.box_nm is not None else "a box of OpenMM's runs"
            raise ValueError(f"box_shape: {why} is a cube")
        if self.engine != "gromacs":
            return
        if self.solvent == "implicit":
            raise ValueError("GROMACS has no implicit solvent: use --engine openmm")
        if self.copies > 1:
            raise ValueError("copies are for GPUs: GROMACS runs one solute a box here")

    @property
    def stride(self) -> int:
        """MD steps from one frame to the next."""
        return round(self.spacing_ps * 1000.0 / self.step_fs)

    def steps(self, ps: float) -> int:
        """Return how many MD steps come closest to a time in ps."""
        return round(ps * 1000.0 / self.step_fs)

    def frames(self, kind: str) -> int:
        """Return how many frames a run of a kind has."""
        return round(getattr(self, f"{kind}_ps") / self.spacing_ps) + 1

    def tasks(self) -> list[tuple[str, int]]:
        """Return kind and number of each run, so ordered that both kinds get on equally."""
        order = []
        for kind in ("plain", "seeded"):
            count = getattr(self, f"{kind}_runs")
            order += [((i + 1) / count, kind, i) for i in range(count)]
        return [(kind, index) for _, kind, index in sorted(order)]

    def identity(self) -> dict[str, Any]:
        """Return what must not change between a stop and its resumption, in JSON types."""
        values = {k: v for k, v in asdict(self).items() if k not in AMOUNTS}
        if self.engine == "openmm":
            # Data sets from before there was another engine do not name it.
            del values["engine"], values["box_shape"]
        return {**values, "force_field": list(self.force_field)}
