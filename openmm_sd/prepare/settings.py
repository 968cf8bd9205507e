"""What preparing decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from openmm import app

from ..checks import check_number, check_temperature, check_whole
from ..propagator.noise import MAX_SEED

SOLVENTS: Final = ("explicit", "implicit")
SHAPES: Final = ("cube", "dodecahedron", "octahedron")
MISSING: Final = ("none", "gaps", "all")
POSITIVE: Final = ("Cs+", "K+", "Li+", "Na+", "Rb+")
NEGATIVE: Final = ("Cl-", "Br-", "F-", "I-")
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
class PrepareSettings:
    """Every decision between a structure and a box that is ready to run.

    Attributes
    ----------
    solvent : str
        ``explicit`` for a box of water, or ``implicit`` for the solute alone in the implicit
        solvent of the force field.
    frame : int, optional
        Which of several models in a file, from 1.
    force_field : tuple of str or openmm.app.ForceField, optional
        Files for ``openmm.app.ForceField``, or one with template generators of your own; that of
        the model that fits by default, else amber99sbildn with tip3p, or with amber99_obc.
    ph : float
        By which hydrogens are added. Those that are there stay.
    variants : mapping
        Chain and number of a residue (``"A:5"``) to its form, as ``Modeller.addHydrogens`` calls
        it (``"HIP"``, ``"ASH"``).
    caps : bool
        Whether ends of protein chains get ACE and NME, where they have none.
    missing_residues : str
        Residues that SEQRES lists and the file lacks: ``gaps`` builds those within a chain, ``all``
        those at its ends too; ``none`` leaves the ends as they are, and refuses gaps.
    replace_modified : bool
        Whether to replace residues that the force field does not know by the standard ones they
        derive from.
    keep_water, drop_heterogens : bool
        Whether to keep the water of the file, and to leave out all that is no protein, nucleic
        acid or water.
    water_model : str, optional
        Of the boxes that OpenMM has (tip3p, spce, tip4pew, tip5p, swm4ndp); by the force field's
        files by default.
    box_shape : str
        ``cube``, ``dodecahedron`` or ``octahedron``.
    padding_nm : float, optional
        Least distance between periodic copies of the solute, nm; 1 by default.
    waters : int, optional
        Number of water molecules (and ions) instead.
    box_nm : float, optional
        Width of the box instead, nm.
    ionic_strength_M : float
        Of added salt, mol/l.
    positive_ion, negative_ion : str
        Which ions.
    neutralise : bool
        Whether ions make up for the solute's charge.
    cutoff_nm : float
        Of PME's direct space and Lennard-Jones, nm.
    hydrogen_mass_amu : float, optional
        Of the solute's hydrogens, amu, taken from their heavy atoms. With 3 MD steps have 4 fs,
        else 2 fs; None leaves the masses alone.
    temperature_K : float, optional
        K; that of the model that fits by default, else 300.
    pressure_bar : float
        Of the equilibration, bar.
    equilibration_ps : float
        Length of the MD that relaxes the box, ps: a fifth at constant volume, then constant
        pressure. 0 for the minimisation alone.
    platform : str, optional
        OpenMM platform of the equilibration; a GPU's if one works here, else CPU.
    seed : int
        Of hydrogens' first places, ions, velocities, thermostat and barostat.
    """

    solvent: str = "explicit"
    frame: int | None = None
    force_field: tuple[str, ...] | app.ForceField | None = None
    ph: float = 7.0
    variants: Mapping[str, str] = field(default_factory=dict)
    caps: bool = False
    missing_residues: str = "none"
    replace_modified: bool = False
    keep_water: bool = False
    drop_heterogens: bool = False
    water_model: str | None = None
    box_shape: str = "cube"
    padding_nm: float | None = None
    waters: int | None = None
    box_nm: float | None = None
    ionic_strength_M: float = 0.0
    positive_ion: str = "Na+"
    negative_ion: str = "Cl-"
    neutralise: bool = True
    cutoff_nm: float = 0.9
    hydrogen_mass_amu: float | None = HYDROGEN_MASS_AMU
    temperature_K: float | None = None
    pressure_bar: float = 1.0
    equilibration_ps: float = 10.0
    platform: str | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for name, wanted in (
            ("padding_nm", "nm"),
            ("box_nm", "nm"),
            ("cutoff_nm", "nm"),
            ("hydrogen_mass_amu", "amu"),
            ("temperature_K", "K"),
            ("pressure_bar", "bar"),
        ):
            check_number(name, getattr(self, name), wanted)
        check_number("ionic_strength_M", self.ionic_strength_M, "mol/l", zero=True)
        check_number("equilibration_ps", self.equilibration_ps, "ps", zero=True)
        check_temperature(self.temperature_K)
        check_number("ph", self.ph, "", zero=True)
        if self.ph > 14:
            raise ValueError(f"ph must be from 0 to 14, got {self.ph!r}")
        check_whole("frame", self.frame)
        check_whole("waters", self.waters)
        check_whole("seed", self.seed, MAX_SEED)
        given = [n for n in ("padding_nm", "waters", "box_nm") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of padding, waters and box, not {' and '.join(given)}")
        for name, allowed in (
            ("solvent", SOLVENTS),
            ("missing_residues", MISSING),
            ("box_shape", SHAPES),
            ("positive_ion", POSITIVE),
            ("negative_ion", NEGATIVE),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.solvent == "implicit":
            for one in fields(self):
                if one.name in _FOR_WATER and getattr(self, one.name) != one.default:
                    raise ValueError(f"{one.name} is for explicit water, the solvent is implicit")

    @property
    def step_ps(self) -> float:
        """MD step that the masses allow, ps."""
        heavy = (self.hydrogen_mass_amu or 0.0) >= HYDROGEN_MASS_AMU
        return HEAVY_STEP_PS if heavy else LIGHT_STEP_PS
