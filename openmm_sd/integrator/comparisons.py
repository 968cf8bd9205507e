"""Whether a simulation is what the model was made for, and the kernel what the integrator can use.

A difference is a `Note`; the caller decides how loudly it is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openmm
import torch
from openmm import unit

from ..model.model import ScoreModel
from ..propagator.internal.family_tree import family_tree
from ..propagator.internal.torsion_potential import largest_difference, turning_potentials
from ..system.solute import Solute, torsion_terms
from .notes import FORCE_FIELD, OTHER, TEMPERATURE, Note

# Hydrogen mass repartitioning goes up to about 4 Da.
_HEAVIEST_HYDROGEN = 4.6
# Barriers that differ by this change rates by a tenth at 300 K, kJ/mol.
_SAME_POTENTIAL = 0.25
# Two temperatures closer than this, K, are the same.
_SAME_TEMPERATURE = 0.5


class DiffersFromModel(UserWarning):
    """The simulation is not what the model was made for; its `note` says how."""

    def __init__(self, note: Note) -> None:
        super().__init__(str(note))
        self.note = note


def dry_run(model: ScoreModel, solute: Solute, lag_ps: float) -> None:
    """Call the kernel once on the molecule's own frame, so that a bad one is refused here."""
    propagator: Any = model.propagator
    frame = torch.tensor(solute.molecule.positions, dtype=torch.float32)
    frame = (frame - frame.mean(0)).unsqueeze(0)
    lag = torch.tensor([lag_ps], dtype=torch.float32)
    noise = torch.zeros(1, int(propagator.noise_size))
    try:
        with torch.no_grad():
            out = propagator(frame, lag, noise)
    except Exception as error:  # the kernel is foreign code
        raise ValueError(
            f"model: its propagator fails on its own molecule ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(out, torch.Tensor) or out.shape != frame.shape:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"model: its propagator must return a Tensor of shape {tuple(frame.shape)}, got {got}"
        )
    if out.dtype != torch.float32:
        raise ValueError(f"model: its propagator must return float32, got {out.dtype}")


def other_temperature(model: ScoreModel, temperature_K: float) -> Iterator[Note]:
    """Yield a note if the model was trained at another temperature."""
    card = model.temperature_K
    if card is not None and abs(card - temperature_K) > _SAME_TEMPERATURE:
        yield Note(
            TEMPERATURE,
            f"temperature is {temperature_K:g} K, but the model was trained at {card:g} K: its "
            f"jumps keep sampling {card:g} K",
        )


def other_system(model: ScoreModel, solute: Solute, system: openmm.System) -> Iterator[Note]:
    """Note where a System differs from the training MD, or in order from the topology."""
    if model.card.constraints == "HBonds" and not solute.constraints:
        yield Note(
            OTHER,
            "system does not constrain the solute's bonds to hydrogen, but the model was "
            "trained with constraints=HBonds: after a jump those bonds lack their vibration",
        )
    yield from _other_masses(solute, system)
    yield from _other_torsions(model, solute, system)


def _other_masses(solute: Solute, system: openmm.System) -> Iterator[Note]:
    for number, particle in zip(solute.molecule.atomic_numbers, solute.particles, strict=True):
        mass = system.getParticleMass(particle).value_in_unit(unit.dalton)
        if (number == 1) != (mass < _HEAVIEST_HYDROGEN):
            kind = "hydrogen" if number == 1 else "a heavy atom"
            yield Note(
                OTHER,
                f"system: particle {particle} has a mass of {mass:g} Da, but is {kind} in the "
                "topology: do the two have the same atom order?",
            )
            return


def _other_torsions(model: ScoreModel, solute: Solute, system: openmm.System) -> Iterator[Note]:
    """Yield a note if the force field hinders turns in another way than the model was told."""
    known = getattr(model.propagator, "hyperparameters", {})
    if not known.get("potentials"):
        return
    molecule = solute.molecule
    tree = family_tree(molecule)
    terms = torsion_terms(system, solute.particles)
    mine = turning_potentials(molecule, tree, known["turning"], terms)
    differences = largest_difference(mine, known["potentials"])
    if differences.max(initial=0.0) > _SAME_POTENTIAL:
        most = int(differences.argmax())
        _, *bond, _, _ = tree.rows[known["turning"][most]]
        first, second = (molecule.atom_names[atom] for atom in bond)
        yield Note(
            FORCE_FIELD,
            f"system: the torsion terms about the bond {first}-{second} are not those that the "
            f"model of {molecule.name} learned, they differ by {differences[most]:.1f} kJ/mol: its "
            "jumps follow its own force field",
        )
