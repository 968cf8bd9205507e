"""A Context in which nothing happens but jumps through one bridge."""

from __future__ import annotations

import numpy as np
import openmm
from numpy.typing import NDArray

from ..bridges.base import CANDIDATES, LAG, NOVELTY, NUMBER, SEED

_GROUP = 7
_BOX_NM = 3.0
#: A novelty that no frame exceeds.
ANY_NOVELTY = 1e30


def jump_context(
    platform: str,
    atoms: int,
    force: openmm.Force | None,
    positions: NDArray[np.float64],
    seed: int = 1,
) -> tuple[openmm.Context, openmm.CustomIntegrator]:
    """Make a Context whose only work is the jump's force, and the integrator that asks for it.

    The force of a bridge acts on the first particles, whose positions (N, 3) are in nm; the others,
    so many atoms in all, are anywhere. Without a force the same integrator asks for nothing. With
    its global variable ``under_way`` at 1 every step asks for a jump with the next number, at 0 for
    none. No position changes. The seed is that of the jumps.
    """
    system = openmm.System()
    for _ in range(atoms):
        system.addParticle(1.0)
    system.setDefaultPeriodicBoxVectors([_BOX_NM, 0, 0], [0, _BOX_NM, 0], [0, 0, _BOX_NM])
    if force is None:
        # Its parameter stands in for the bridge's.
        force = openmm.CustomExternalForce(f"0*x*{NUMBER}")
        force.addGlobalParameter(NUMBER, 0.0)
    force.setForceGroup(_GROUP)
    system.addForce(force)
    integrator = openmm.CustomIntegrator(0.001)
    for name in ("under_way", "counted", "status"):
        integrator.addGlobalVariable(name, 0.0)
    integrator.addPerDofVariable("displacement", 0.0)
    integrator.addComputeGlobal("counted", "counted+1")
    integrator.addComputeGlobal(NUMBER, "under_way*counted")
    # Positions that are written invalidate the forces, as those of MD do.
    integrator.addComputePerDof("x", "x")
    integrator.addComputePerDof("displacement", f"f{_GROUP}")
    integrator.addComputeGlobal("status", f"energy{_GROUP}")
    integrator.addComputeGlobal(NUMBER, "0")
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    everywhere = np.random.default_rng(1).uniform(0.0, _BOX_NM, (atoms, 3))
    everywhere[: len(positions)] = positions
    context.setPositions(everywhere)
    for name, value in ((CANDIDATES, 1), (SEED, seed), (LAG, 10.0), (NOVELTY, ANY_NOVELTY)):
        if name in context.getParameters():
            context.setParameter(name, value)
    return context, integrator
