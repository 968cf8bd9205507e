"""What ``openmm-sd generate`` makes, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from ..settings import TEMPERATURE, Settings, setting

# Above this time step, hydrogens of their own mass are too fast.
_LIGHT_HYDROGEN_FS: Final = 2.0
_HEAVY_HYDROGEN_AMU: Final = 3.0

#: Settings that say how much is made, not how: they may change between a stop and its resumption.
AMOUNTS: Final = ("plain_runs", "plain_ps", "seeded_runs", "seeded_ps")


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """How much data is made and how. Runs are at constant volume."""

    solvent: str = setting("explicit", "the solute's", choices=("explicit", "implicit"))
    force_field: tuple[str, ...] = setting(
        (),
        "file as OpenMM names them, water or implicit solvent included; repeatable",
        shown="amber99sbildn with tip3p, or with amber99_obc",
        metavar="XML",
    )
    water_model: str | None = setting(
        None, "what OpenMM's Modeller calls the water", shown="by the force field's files"
    )
    waters: int | None = setting(None, "number of water molecules of one copy")
    padding_nm: float | None = setting(
        None, "least distance from the solute to its next periodic copy instead", shown="1"
    )
    box_nm: float | None = setting(
        None,
        "edge of the cubic cell of one copy, with waters; without it the cell is relaxed at "
        "constant pressure",
    )
    pressure_bar: float = setting(1.0, "pressure of that relaxation")
    equilibration_ps: float = setting(100.0, "length of that relaxation", least=0)
    cutoff_nm: float = setting(0.9, "cutoff of Lennard-Jones and of PME's direct space")
    temperature_K: float = setting(300.0, "temperature", **TEMPERATURE)
    friction_per_ps: float = setting(1.0, "friction of the Langevin dynamics")
    step_fs: float = setting(4.0, "time step", option="step-fs step")
    hydrogen_mass_amu: float | None = setting(
        None,
        "mass of the solute's hydrogens, taken from the atoms that they are bonded to",
        shown="3 for steps above 2 fs, else left alone",
    )
    spacing_ps: float = setting(1.0, "time from one saved frame to the next")
    copies: int = setting(
        1, "copies of the solute in one box, each in a cell of water of its own, to fill a GPU"
    )
    plain_runs: int = setting(
        1, "how many plain runs; each time as many as copies", option="plain", least=0
    )
    plain_ps: float = setting(1000.0, "length of a plain run", option="plain-ps", least=0)
    seeded_runs: int = setting(
        0, "how many seeded runs; each time as many as copies", option="seeded", least=0
    )
    seeded_ps: float = setting(100.0, "length of a seeded run", option="seeded-ps", least=0)
    warm_up_ps: float = setting(20.0, "left out at the start of a plain run", least=0)
    pull_ps: float = setting(15.0, "how long a seeded run is pulled to its torsions", least=0)
    drop_ps: float = setting(0.5, "left out of a seeded run after its release", least=0)
    seed: int = setting(1, "of everything", least=0)
    engine: str = setting(
        "openmm",
        "who runs the dynamics; auto measures which is faster here",
        choices=("openmm", "gromacs", "auto"),
    )
    box_shape: str | None = setting(
        None,
        "the dodecahedron (rhombic; GROMACS only) holds 29 % less water at the same distance "
        "between copies",
        choices=("cube", "dodecahedron"),
        shown="cube; with GROMACS and without an edge the dodecahedron",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from ..system.force_field import DEFAULT_FORCE_FIELD, IMPLICIT_FORCE_FIELD, water_box

        if not self.force_field:
            explicit = self.solvent == "explicit"
            files = DEFAULT_FORCE_FIELD if explicit else IMPLICIT_FORCE_FIELD
            object.__setattr__(self, "force_field", files)
        if self.water_model is None:
            object.__setattr__(self, "water_model", water_box(self.force_field))
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
        if self.engine == "auto" and self.box_shape is None:
            return  # when the engine is known
        if self.box_shape is None:
            rhombic = self.engine == "gromacs" and self.box_nm is None
            object.__setattr__(self, "box_shape", "dodecahedron" if rhombic else "cube")
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
