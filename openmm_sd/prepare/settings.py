"""What preparing decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from ..settings import FASTEST, MAX_SEED, TEMPERATURE, Settings, setting

if TYPE_CHECKING:
    from openmm import app

#: Heavy hydrogens allow steps of 4 fs, the usual pair of settings with constrained X-H bonds.
HYDROGEN_MASS_AMU: Final = 3.0
HEAVY_STEP_PS: Final = 0.004
#: Step of a System whose hydrogens are as light as they are, or that somebody else has made, ps.
LIGHT_STEP_PS: Final = 0.002
# What implicit solvent has no use for.
_FOR_WATER: Final = (
    *("water_model", "box_shape", "padding_nm", "waters", "box_nm", "ionic_strength_M"),
    *("positive_ion", "negative_ion", "neutralise", "keep_water", "cutoff_nm", "pressure_bar"),
)


@dataclass(frozen=True)
class PrepareSettings(Settings):
    """Every decision between a structure and a box that is ready to run."""

    solvent: str = setting(
        "explicit", "a box of water, or the solute alone", choices=("explicit", "implicit")
    )
    frame: int | None = setting(None, "which of several models in a file, from 1")
    force_field: tuple[str, ...] | app.ForceField | None = setting(
        None,
        "file for openmm.app.ForceField, repeatable; in Python also one with template generators",
        shown="that of the model that fits, else amber99sbildn with tip3p or with amber99_obc",
        metavar="XML",
    )
    ph: float = setting(
        7.0, "pH by which hydrogens are added; those that are there stay", least=0, most=14
    )
    variants: Mapping[str, str] = setting(
        factory=dict,
        text="chain and number of a residue to its form, as Modeller.addHydrogens calls it",
        metavar="A:5=HIP",
    )
    caps: bool = setting(False, "ACE and NME at ends of protein chains that have none")
    missing_residues: str = setting(
        "none",
        "residues that SEQRES lists and the file lacks: gaps builds those within a chain, all "
        "those at its ends too, none leaves the ends and refuses gaps",
        choices=("none", "gaps", "all"),
    )
    replace_modified: bool = setting(
        False, "residues that the force field does not know become the standard ones"
    )
    keep_water: bool = setting(False, "keep the water of the file")
    drop_heterogens: bool = setting(
        False, "omit everything that is not protein, nucleic acid or water"
    )
    water_model: str | None = setting(
        None,
        "of the boxes that OpenMM has (tip3p, spce, tip4pew, tip5p, swm4ndp)",
        shown="by the force field's files",
        metavar="NAME",
    )
    box_shape: str = setting(
        "cube", "shape of the box", choices=("cube", "dodecahedron", "octahedron")
    )
    padding_nm: float | None = setting(
        None, "least distance between periodic copies of the solute", shown="1"
    )
    waters: int | None = setting(None, "number of water molecules and ions instead")
    box_nm: float | None = setting(None, "width of the box instead")
    ionic_strength_M: float = setting(
        0.0, "salt beyond the ions that neutralise", least=0, option="salt"
    )
    positive_ion: str = setting(
        "Na+", "which ion", choices=("Cs+", "K+", "Li+", "Na+", "Rb+"), metavar="ION"
    )
    negative_ion: str = setting(
        "Cl-", "which ion", choices=("Cl-", "Br-", "F-", "I-"), metavar="ION"
    )
    neutralise: bool = setting(True, "ions for the solute's charge")
    cutoff_nm: float = setting(0.9, "cutoff of PME's direct space and Lennard-Jones")
    hydrogen_mass_amu: float | None = setting(
        HYDROGEN_MASS_AMU,
        "mass of the solute's hydrogens, taken from their heavy atoms; with 3 MD steps have 4 fs, "
        "else 2 fs; off leaves the masses alone",
    )
    temperature_K: float | None = setting(
        None, "temperature", shown="that of the model that fits, else 300", **TEMPERATURE
    )
    pressure_bar: float = setting(1.0, "pressure of the equilibration")
    equilibration_ps: float = setting(
        10.0,
        "MD that relaxes the box, three fifths of it at constant pressure; 0 for the minimisation "
        "alone",
        least=0,
    )
    platform: str | None = setting(
        None,
        "OpenMM platform of the equilibration",
        shown=FASTEST,
    )
    seed: int = setting(
        1,
        "of hydrogens' first places, ions, velocities, thermostat and barostat",
        most=MAX_SEED,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("padding_nm", "waters", "box_nm") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of padding, waters and box, not {' and '.join(given)}")
        if self.solvent == "implicit":
            for one in fields(self):
                if one.name in _FOR_WATER and getattr(self, one.name) != one.default:
                    raise ValueError(f"{one.name} is for explicit water, the solvent is implicit")

    @property
    def step_ps(self) -> float:
        """MD step that the masses allow, ps."""
        heavy = (self.hydrogen_mass_amu or 0.0) >= HYDROGEN_MASS_AMU
        return HEAVY_STEP_PS if heavy else LIGHT_STEP_PS
