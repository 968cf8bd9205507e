"""Force fields: reading them, what they know about residues, and why they refuse one."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, TypeAlias

import openmm
from openmm import app, unit

from ..files.atomic import one_line
from .structure import is_water, residue_label

#: What a System is made from where neither the user nor a model says otherwise.
DEFAULT_FORCE_FIELD: Final = ("amber99sbildn.xml", "tip3p.xml")
#: The same without water.
IMPLICIT_FORCE_FIELD: Final = ("amber99sbildn.xml", "amber99_obc.xml")

# Beginnings of OpenMM's force field files, and the water that goes with each.
_WATER_OF: Final = (
    ("charmm36_2024", "charmm36_2024/water.xml"),
    ("charmm36", "charmm36/water.xml"),
    ("amber19", "amber19/opc.xml"),
    ("amber14", "amber14/tip3pfb.xml"),
    ("amberfb15", "tip3pfb.xml"),
    ("amber", "tip3p.xml"),
)
# Boxes of water that OpenMM has, for files of water models; all others are tip3p.
_BOX_OF: Final = {
    "spce": "spce",
    "opc": "tip4pew",
    "tip4pew": "tip4pew",
    "tip4pfb": "tip4pew",
    "tip4p2005": "tip4pew",
    "tip5p": "tip5p",
    "tip5pew": "tip5p",
    "swm4ndp": "swm4ndp",
}

# What OpenMM's models of implicit solvent are made of.
_IMPLICIT_FORCES: Final = ("GBSAOBCForce", "CustomGBForce", "AmoebaGeneralizedKirkwoodForce")

ForceFieldLike: TypeAlias = Sequence[str] | app.ForceField


def load_force_field(files: ForceFieldLike) -> app.ForceField:
    """Read force field files as ``openmm.app.ForceField`` takes them; an object is taken as it is.

    ValueError in one line: a file is missing or damaged, or files do not go together.
    """
    if isinstance(files, app.ForceField):
        return files
    return _load(tuple(files))


@functools.lru_cache(maxsize=2)
def _load(files: tuple[str, ...]) -> app.ForceField:
    try:
        return app.ForceField(*files)
    except Exception as error:  # a file that is no force field fails in many ways
        reason = one_line(error)
        if "1-4 scales" in reason:
            reason = (
                f"{' and '.join(files)} do not go together: they scale 1-4 interactions in "
                f"different ways{_water_hint(files)}"
            )
        raise ValueError(f"force field: {reason}") from None


def file_names(files: ForceFieldLike) -> tuple[str, ...]:
    """Return the files of a force field; none where it is an object."""
    return () if isinstance(files, app.ForceField) else tuple(files)


def differ(files: Sequence[str], named: Sequence[str]) -> bool:
    """Return whether the files of two force fields are known and are not the same."""
    if not files or not named:
        return False
    return {PurePath(file).name for file in files} != {PurePath(file).name for file in named}


def water_box(files: ForceFieldLike) -> str:
    """Return what ``Modeller.addSolvent`` calls the water of a force field, by its files."""
    stems = [PurePath(file).stem.lower() for file in file_names(files)]
    return next((_BOX_OF[stem] for stem in stems if stem in _BOX_OF), "tip3p")


@contextlib.contextmanager
def explained(files: ForceFieldLike, topology: Callable[[], app.Topology]) -> Iterator[None]:
    """Turn OpenMM's refusal of a residue of this Topology into a line that says what to do."""
    try:
        yield
    except Exception as error:  # some of OpenMM's refusals are nothing more special
        text = one_line(error)
        if "matching templates found" in text:
            names = ", ".join(file_names(files)) or "an object"
            raise ValueError(f"the force field ({names}) is not unambiguous: {text}") from None
        if not isinstance(error, ValueError):
            raise
        found = re.search(r"No template found for residue (\d+) \((.*?)\)", text)
        if found is None:
            raise ValueError(text) from None
        residues = list(topology().residues())
        number = int(found[1])
        if number >= len(residues) or residues[number].name != found[2]:
            raise ValueError(text) from None
        raise ValueError(refusal(residues[number], load_force_field(files), files)) from None


def refusal(residue: Any, field: app.ForceField, files: ForceFieldLike) -> str:
    """Say why a force field has no template for a residue, and what to do.

    `files` are what the force field was made from.
    """
    name = f"the force field ({', '.join(file_names(files)) or 'an object'})"
    label = residue_label(residue)
    atoms = list(residue.atoms())
    if is_water(residue):
        return f"{name} has no parameters for water{_water_hint(file_names(files))}"
    if len(atoms) == 1:
        return (
            f"{name} has no parameters for the ion or atom {label}; add a file that has "
            "(--force-field), or leave it out"
        )
    inside = list(residue.internal_bonds())
    hydrogens = [a for a in atoms if a.element is not None and a.element.symbol == "H"]
    if not inside:
        return (
            f"{name} does not know {label}: it has no bonds, and no residue of the force field has "
            "atoms of these names: add CONECT records to the PDB file, or a file with parameters "
            "(--force-field), or leave it out (openmm-sd prepare --drop-heterogens)"
        )
    if not hydrogens:
        return f"{label} has no hydrogens; 'openmm-sd prepare' adds them where it knows the residue"
    template = field._templates.get(residue.name)
    if template is None:
        return (
            f"{name} does not know {label}: add a file with its parameters (--force-field), for "
            "instance from openmmforcefields, or leave it out (openmm-sd prepare --drop-heterogens)"
        )
    there, wanted = {a.name for a in atoms}, {a.name for a in template.atoms}
    differences = [
        f"{what} {', '.join(sorted(names)[:6])}"
        for what, names in (("it lacks", wanted - there), ("it has", there - wanted))
        if names
    ]
    return (
        f"{label} is not as {name} knows it: "
        f"{' and '.join(differences) or 'its bonds differ'}. A residue at the end of a chain needs "
        "its terminal atoms, or a cap (openmm-sd prepare --caps)"
    )


def make_system(files: ForceFieldLike, topology: app.Topology, **settings: Any) -> openmm.System:
    """Call ``ForceField.createSystem``; errors say what to do."""
    field = load_force_field(files)
    with explained(files, lambda: topology):
        return field.createSystem(topology, **settings)


def make_water_system(
    files: ForceFieldLike, topology: app.Topology, cutoff_nm: float, hydrogen_mass: float | None
) -> openmm.System:
    """Make the System of a box of water: PME, rigid water, constrained bonds to hydrogen.

    The mass of the solute's hydrogens, amu, is taken from their heavy atoms; None leaves it alone.
    """
    return make_system(
        files,
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=cutoff_nm * unit.nanometer,
        constraints=app.HBonds,
        hydrogenMass=None if hydrogen_mass is None else hydrogen_mass * unit.amu,
    )


def has_implicit_solvent(system: openmm.System) -> bool:
    """Return whether a System has a model of implicit solvent."""
    return any(type(force).__name__ in _IMPLICIT_FORCES for force in system.getForces())


def make_implicit_system(
    files: ForceFieldLike, topology: app.Topology, hydrogen_mass: float | None
) -> openmm.System:
    """Make the System of a solute in implicit solvent: no box, no cutoff.

    The mass of its hydrogens, amu, is taken from their heavy atoms; None leaves it alone.
    ValueError if the force field has no implicit solvent: the solute would be in vacuum.
    """
    system = make_system(
        files,
        topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=None if hydrogen_mass is None else hydrogen_mass * unit.amu,
        # One molecule alone loses three of its few degrees of freedom with its momentum.
        removeCMMotion=False,
    )
    if not has_implicit_solvent(system):
        raise ValueError(
            f"the force field ({', '.join(file_names(files)) or 'an object'}) has no implicit "
            "solvent: add a file that has (--force-field), implicit/obc2.xml beside "
            "amber14-all.xml for instance"
        )
    return system


def complete_bonds(topology: app.Topology, field: app.ForceField) -> dict[Any, list[Any]]:
    """Give residues without bonds those of the force field's residue with the same atoms.

    PDB files often have no CONECT records, and hold no more than three letters of a residue's name,
    so what counts is that the names of all heavy atoms are the same. Where several residues of the
    force field fit, the one whose name begins like that of the file is taken. Returns, for each
    residue that got bonds, the (hydrogen, parent) names of all its hydrogens; the hydrogens
    themselves may be missing.
    """
    found: dict[Any, list[Any]] = {}
    for residue in topology.residues():
        atoms = {atom.name: atom for atom in residue.atoms()}
        if len(atoms) < 2 or next(residue.bonds(), None) is not None:
            continue
        template = _template_by_names(residue.name, atoms, field)
        if template is None:
            continue
        hydrogens = []
        for i, j in template.bonds:
            one, two = template.atoms[i], template.atoms[j]
            if one.name in atoms and two.name in atoms:
                topology.addBond(atoms[one.name], atoms[two.name])
            for hydrogen, parent in ((one, two), (two, one)):
                if hydrogen.element is not None and hydrogen.element.symbol == "H":
                    hydrogens.append((hydrogen.name, parent.name))
        found[residue] = hydrogens
    return found


def _template_by_names(name: str, atoms: Mapping[str, Any], field: app.ForceField) -> Any:
    def heavy(pairs: Any) -> set[tuple[str, str]]:
        return {(n, e.symbol) for n, e in pairs if e is not None and e.symbol != "H"}

    mine = heavy((n, a.element) for n, a in atoms.items())
    fitting = [
        template
        for template in field._templates.values()
        if not template.externalBonds
        and heavy((a.name, a.element) for a in template.atoms) == mine
        and set(atoms) <= {a.name for a in template.atoms}
    ]
    for wanted in (
        [t for t in fitting if t.name == name],
        [t for t in fitting if t.name.startswith(name)],
        fitting,
    ):
        if len(wanted) == 1:
            return wanted[0]
        if wanted:
            return None  # names do not tell them apart
    return None


def _water_hint(files: Sequence[str]) -> str:
    for file in files:
        for start, water in _WATER_OF:
            if file.startswith(start):
                return f"; the water that goes with {file} is --force-field {water}"
    return "; add a file that has (--force-field)"
