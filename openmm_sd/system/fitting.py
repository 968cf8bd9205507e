"""Which of the models that are installed know a solute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app

from ..model.model import ScoreModel
from ..molecule.matching import find_copies
from ..molecule.molecule import Molecule
from ..molecule.topology import read_topology
from ..molecule.whole import make_whole
from .chains import NotServedError, check_served
from .force_field import ForceFieldLike, differ, make_system
from .solute import NoSoluteError, find_solute, force_field_terms

#: Molecules of fewer atoms are solvent or ions.
_SMALLEST_SOLUTE = 6


@dataclass(frozen=True)
class Solvated:
    """What a model is looked for: atoms and bonds, and where known, their places.

    Attributes
    ----------
    topology : openmm.app.Topology or mdtraj.Topology
        With solvent and ions, or without.
    positions : ndarray, shape (N, 3), optional
        nm. Without them only the models fit that were trained on what is there.
    box : ndarray, shape (3, 3), optional
        nm, one vector a row; None or zeros without periodic boundaries.
    system : openmm.System, optional
        Made from the topology.
    files : tuple of str
        Force field that it is, or will be, made from; empty if that is open, or not known.
    implicit : bool
        Whether it is, or will be, in implicit solvent.
    """

    topology: Any
    positions: NDArray[np.float64] | None = None
    box: NDArray[np.float64] | None = None
    system: openmm.System | None = None
    files: tuple[str, ...] = ()
    implicit: bool = False

    @cached_property
    def solute(self) -> tuple[Molecule, list[int]]:
        """The one molecule that is neither solvent nor ion, and its atoms; NotServedError if not.

        Its frame is taken from the positions.
        """
        table = read_topology(self.topology)
        found = [atoms for atoms in table.components() if len(atoms) >= _SMALLEST_SOLUTE]
        if len(found) != 1:
            there = f"here are {len(found)}" if found else "there is none but solvent and ions"
            raise NotServedError(f"it serves one molecule at a time, and {there}")
        assert self.positions is not None
        atoms, positions = found[0], self.positions
        if self.box is not None and self.box.any():
            positions = make_whole(self.topology, positions, self.box)
        number = {atom: k for k, atom in enumerate(atoms)}
        residues = dict.fromkeys((table.residue_ids[k], table.residue_names[k]) for k in atoms)
        molecule = Molecule(
            "-".join(name for _, name in residues),
            tuple(table.atomic_numbers[k] for k in atoms),
            tuple((number[i], number[j]) for i, j in table.bonds if i in number),
            tuple(table.names[k] for k in atoms),
            tuple(table.residue_names[k] for k in atoms),
            tuple(table.residue_ids[k] for k in atoms),
            positions[atoms] - positions[atoms].mean(axis=0),
        )
        return molecule, atoms


def fitting_models(
    topology: Any, implicit: bool = False
) -> tuple[dict[str, ScoreModel], dict[str, str]]:
    """Look at every installed model: those that ship with the package, and registered ones.

    Returns those that fit, by name, shipped ones first, and by name what is in the way of the
    others. Models of the other kind of solvent, implicit ones in water, are left out where another
    one fits, and always if they serve many molecules: they are second choice at best. So are models
    distilled from one that fits. Where no
    model of that solvent was trained on the solute, those fit that serve it all the same, if the
    force field is theirs; that needs positions.

    Parameters
    ----------
    topology : Topology or Solvated
        What is solvated; a `Solvated` says itself whether its solvent is implicit.
    """
    what = topology if isinstance(topology, Solvated) else Solvated(topology, implicit=implicit)
    fitting: dict[str, ScoreModel] = {}
    serving: dict[str, ScoreModel] = {}
    reasons: dict[str, str] = {}
    for name in (*ScoreModel.shipped(), *ScoreModel.registered()):
        try:
            model = ScoreModel.load(name)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        try:
            find_solute(model.molecules, what.topology)
        except NoSoluteError as error:
            if model.card.serves is not None and what.positions is not None:
                if why_not := _why_not_served(model, what):
                    reasons[name] = why_not
                else:
                    serving[name] = model
            else:
                # Several models of one molecule miss the same thing.
                known = " or ".join(dict.fromkeys(molecule.name for molecule in model.molecules))
                reasons[name] = f"{known}: {error.found}"
            continue
        except ValueError:
            pass  # it is there; what is wrong with it is said to whoever takes this model
        fitting[name] = model
    alike = {n: model for n, model in fitting.items() if model.card.is_implicit == what.implicit}
    other = f"it was trained in {'explicit' if what.implicit else 'implicit'} solvent"
    # A model of many molecules is of its own solvent only.
    second = {n: model for n, model in fitting.items() if model.card.serves is None}
    chosen = alike or serving or second
    reasons |= {name: other for name in fitting if name not in chosen}
    reasons |= {name: "another one was trained on it" for name in serving if name not in chosen}
    fitting = chosen
    for name, model in list(fitting.items()):
        teacher = model.members[0].card.training.get("distilled_from")
        if teacher in fitting and teacher != name:
            del fitting[name]
            reasons[name] = f"it was distilled from {teacher}, which fits and comes first"
    return fitting, reasons


def _why_not_served(model: ScoreModel, what: Solvated) -> str:
    """Return what keeps a model from serving a solute that it was not trained on, or nothing."""
    if differ(what.files, model.card.force_field):
        return (
            f"its force field is {', '.join(model.card.force_field)}, not {', '.join(what.files)}"
        )
    try:
        check_served(model, what.solute[0], what.implicit)
    except NotServedError as error:
        return error.found
    return ""


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
    model: ScoreModel, what: Solvated, files: ForceFieldLike | None = None
) -> ScoreModel | None:
    """Return the model of what is solvated, which was not trained on, if the network can serve it.

    That is one molecule among solvent and ions, whose structure is taken from the positions, and
    whose terms from the System, or from the files of a force field. None where the network knows
    its own molecules only; NotServedError where this is none that it serves.
    """
    if not model.serves_others or what.positions is None:
        return None
    if what.system is None and files is None:
        return None
    molecule, atoms = what.solute
    check_served(model, molecule, what.implicit)
    system, particles = what.system, atoms
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


def remarks(served: ScoreModel) -> list[str]:
    """Say of a model from `serving` what was never seen or tested, a line each."""
    found = [served.card.limits[-1]]
    if served.novelty is not None:
        frame = torch.tensor(np.array(served.molecules[0].positions), dtype=torch.float32)
        score = float(served.novelty(frame.unsqueeze(0))[0])
        if score > served.novelty.threshold:
            found.append(
                f"The structure at the start is unlike all that was trained on: novelty "
                f"{score:.3g}, and {served.novelty.threshold:g} is the edge."
            )
    return found


def unseen(
    model: ScoreModel, what: Solvated, files: ForceFieldLike | None = None
) -> ScoreModel | None:
    """Return what `serving` does, but None for a solute that the model was trained on."""
    if find_copies(model.molecules, read_topology(what.topology)):
        return None
    return serving(model, what, files)
