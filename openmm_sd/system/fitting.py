"""Which of the models that are installed know a solute."""

from __future__ import annotations

from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from ..model.model import ScoreModel
from ..molecule.molecule import Molecule
from ..molecule.topology import read_topology
from ..molecule.whole import make_whole
from .force_field import ForceFieldLike, make_system
from .solute import NoSoluteError, find_solute, force_field_terms

#: Molecules of fewer atoms are solvent or ions.
_SMALLEST_SOLUTE = 6


def fitting_models(
    topology: Any, implicit: bool = False
) -> tuple[dict[str, ScoreModel], dict[str, str]]:
    """Look at every installed model: those that ship with the package, and registered ones.

    Returns those that fit, by name, shipped ones first, and by name what is in the way of the
    others. Models of the other kind of solvent, implicit ones in water, are left out where another
    one fits: they are second choice at best. So are models distilled from one that fits.
    """
    fitting: dict[str, ScoreModel] = {}
    reasons: dict[str, str] = {}
    for name in (*ScoreModel.shipped(), *ScoreModel.registered()):
        try:
            model = ScoreModel.load(name)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        try:
            find_solute(model.molecules, topology)
        except NoSoluteError as error:
            # Several models of one molecule miss the same thing.
            known = " or ".join(dict.fromkeys(molecule.name for molecule in model.molecules))
            reasons[name] = f"{known}: {error.found}"
            continue
        except ValueError:
            pass  # it is there; what is wrong with it is said to whoever takes this model
        fitting[name] = model
    alike = {name: model for name, model in fitting.items() if model.card.is_implicit == implicit}
    for name in fitting if alike else ():
        if name not in alike:
            reasons[name] = f"it was trained in {'explicit' if implicit else 'implicit'} solvent"
    fitting = alike or fitting
    for name, model in list(fitting.items()):
        teacher = model.members[0].card.training.get("distilled_from")
        if teacher in fitting and teacher != name:
            del fitting[name]
            reasons[name] = f"it was distilled from {teacher}, which fits and comes first"
    return fitting, reasons


def fitting_model(topology: Any, implicit: bool = False) -> ScoreModel:
    """Return the one model of `fitting_models`; one that ships with the package comes first.

    ValueError if none fits, or several do; it says what there is.
    """
    fitting, reasons = fitting_models(topology, implicit)
    shipped = [name for name in fitting if name in ScoreModel.shipped()]
    candidates = shipped or list(fitting)
    if len(candidates) == 1:
        return fitting[candidates[0]]
    if candidates:
        raise ValueError(f"model: several fit, name one of {', '.join(candidates)}")
    if not reasons:
        raise ValueError("model: name one, no models come with this version of openmm-sd")
    raise NoSoluteError(
        f"none of the shipped models fits ({', '.join(reasons)})",
        "; ".join(dict.fromkeys(reasons.values())),
    )


def serving(
    model: ScoreModel,
    topology: Any,
    positions: NDArray[np.float64],
    system: openmm.System | None = None,
    box: NDArray[np.float64] | None = None,
    files: ForceFieldLike | None = None,
) -> ScoreModel | None:
    """Return the model of what is solvated, which was not trained on, if the network can serve it.

    That is one molecule among solvent and ions, whose structure is taken from the positions, nm,
    and whose terms from the System, or from the files of a force field. None where there is no such
    molecule, or the network knows its own only.
    """
    if not model.serves_others:
        return None
    table = read_topology(topology)
    found = [atoms for atoms in table.components() if len(atoms) >= _SMALLEST_SOLUTE]
    if len(found) != 1 or (system is None and files is None):
        return None
    atoms = found[0]
    if box is not None and box.any():
        positions = make_whole(topology, positions, box)
    number = {atom: k for k, atom in enumerate(atoms)}
    residues = list(dict.fromkeys((table.residue_ids[k], table.residue_names[k]) for k in atoms))
    molecule = Molecule(
        "-".join(name for _, name in residues),
        tuple(table.atomic_numbers[k] for k in atoms),
        tuple((number[i], number[j]) for i, j in table.bonds if i in number),
        tuple(table.names[k] for k in atoms),
        tuple(table.residue_names[k] for k in atoms),
        tuple(table.residue_ids[k] for k in atoms),
        positions[atoms] - positions[atoms].mean(axis=0),
    )
    particles = atoms
    if system is None:
        assert files is not None
        system = make_system(
            files,
            molecule.to_topology(),
            nonbondedMethod=app.NoCutoff,
            constraints=app.HBonds if model.card.constraints else None,
        )
        particles = list(range(len(atoms)))
    return model.serve(molecule, force_field_terms(system, particles))
