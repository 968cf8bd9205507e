"""Force-field energies of solute frames in vacuum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..files.atomic import one_line
from ..molecule.molecule import Molecule

BOLTZMANN_KJ_PER_MOL_K = 0.00831446261815324
"""Boltzmann's constant, kJ/mol/K."""

# An implicit solvent is a property of the surroundings; the solute in vacuum has none.
_SOLVENT_FORCES = ("GBSAOBCForce", "CustomGBForce")


class VacuumEnergy:
    """The potential energy of a solute frame in vacuum, without constraints.

    ValueError if the force field files cannot be read or have no parameters for the molecule.
    """

    def __init__(self, molecule: Molecule, force_field: Sequence[str]) -> None:
        try:
            system = app.ForceField(*force_field).createSystem(
                molecule.to_topology(), nonbondedMethod=app.NoCutoff, constraints=None
            )
        except Exception as error:  # OpenMM raises plain Exceptions for files and for templates
            files = ", ".join(force_field)
            raise ValueError(f"force field {files}: {one_line(error)}") from error
        for k in reversed(range(system.getNumForces())):
            if type(system.getForce(k)).__name__ in _SOLVENT_FORCES:
                system.removeForce(k)
        self._context = openmm.Context(
            system,
            openmm.VerletIntegrator(0.001),
            openmm.Platform.getPlatformByName("Reference"),
        )

    def __call__(self, frames: NDArray[Any]) -> NDArray[np.float64]:
        """Return the energy of every frame, (T,) kJ/mol; frames are (T, N, 3), nm."""
        energies = np.empty(len(frames))
        for k, frame in enumerate(np.asarray(frames, dtype=np.float64)):
            self._context.setPositions(frame)
            state = self._context.getState(energy=True)
            energies[k] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        return energies
