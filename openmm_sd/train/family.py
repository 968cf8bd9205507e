"""What data of several molecules must have in common, and what their force field says of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..data.dataset import Dataset
from ..molecule.matching import difference
from ..molecule.molecule import Molecule
from ..molecule.terms import ForceFieldTerms

if TYPE_CHECKING:
    import openmm

#: What must be the same of all data.
_MADE_ALIKE: Final = ("temperature_K", "force_field", "water", "constraints", "friction_per_ps")


def check_family(several: Sequence[Dataset], also: Sequence[Molecule]) -> None:
    """Refuse two molecules of one name, data of what shall have none, and data made differently.

    There is one data set of each molecule with data; `also` are those without.
    """
    seen: set[str] = set()
    for molecule in (*(data.molecule for data in several), *also):
        if molecule.name in seen:
            raise ValueError(
                f"{molecule.name} is the name of two of the molecules: give them different ones"
            )
        seen.add(molecule.name)
    for molecule in also:
        for data in several:
            if not difference(data.molecule, molecule):
                raise ValueError(
                    f"{molecule.name} shall have no data, but {data.molecule.name} is it"
                )
    # One set of weights would mix their laws.
    for key in _MADE_ALIKE:
        values = {data.molecule.name: data.provenance.get(key) for data in several}
        if len({json.dumps(value) for value in values.values()}) > 1:
            found = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ValueError(f"the data sets differ in {key}: {found}")


def torsion_terms_of(
    several: Sequence[Dataset], also: Sequence[Molecule]
) -> list[list[list[float]]]:
    """Return the torsion terms of molecules with data, then of those without (`also`).

    They are as `openmm_sd.system.solute.torsion_terms` has them, from the provenance of the data,
    and of the others from the force field that the data were made with; none at all where no data
    has any. ValueError if some data have them and others do not, or the force field does not know a
    molecule.
    """
    found: list[list[list[float]]] = [
        data.provenance.get("torsion_terms") or [] for data in several
    ]
    without = [data.molecule.name for data, terms in zip(several, found, strict=True) if not terms]
    if len(without) == len(found):
        return [[]] * (len(several) + len(also))
    if without:
        raise ValueError(
            f"the data of {', '.join(without)} do not say what torsion terms the force field has "
            "(torsion_terms in their provenance), those of the others do: make them alike"
        )
    return [*found, *(_terms_without_data(molecule, several[0]) for molecule in also)]


def _terms_without_data(molecule: Molecule, data: Dataset) -> list[list[float]]:
    from ..system.solute import torsion_terms

    return torsion_terms(_system_of(molecule, data), range(molecule.n_atoms))


def terms_of(molecule: Molecule, data: Dataset) -> ForceFieldTerms:
    """Return what the force field of some data says of a molecule, its own or another one.

    ValueError if the data do not say which it is, or it does not know the molecule.
    """
    from ..system.solute import force_field_terms

    return force_field_terms(_system_of(molecule, data), range(molecule.n_atoms))


def _system_of(molecule: Molecule, data: Dataset) -> openmm.System:
    """Return the System of a molecule alone in the force field of some data, constrained alike."""
    from openmm import app

    from ..system.force_field import make_system

    files = data.provenance.get("force_field")
    if not files:
        raise ValueError(
            f"{molecule.name}: the data do not say with which force field they were made, from "
            "which its terms would come"
        )
    return make_system(
        files,
        molecule.to_topology(),
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds if data.provenance.get("constraints") else None,
        flexibleConstraints=True,
    )
