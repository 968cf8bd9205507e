"""Which engine is faster here: both run the same box for a moment, on one thread.

What counts is processor time, so that other programs at work on the machine do not decide.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from openmm import app

from ...progress import Progress
from ...system.platforms import working_platform
from ..settings import GenerateSettings
from ..start import make_context, minimised
from .mdp import dynamics
from .program import Gromacs, find_gromacs
from .start import flexible_system, solvated
from .topology import CannotWriteError, gromacs_topology, index_groups, write_gro

#: Steps of OpenMM's measurement, after some that are not timed; steps of two runs of GROMACS, whose
#: difference counts: how it starts does not.
_OPENMM_FIRST, _OPENMM_STEPS = 50, 300
_GROMACS_STEPS: Final = (400, 2400)
_DAY_S: Final = 86400.0


def faster_engine(
    settings: GenerateSettings,
    topology: app.Topology,
    positions: NDArray[np.float64],
    platform: str | None,
    gmx: str | None,
    dask: Any,
    say: Progress,
) -> str:
    """Return ``openmm`` or ``gromacs``, and say why.

    `platform` and `gmx` are what was asked for; the workers of a cluster (`dask`) have OpenMM only.
    """
    reason = ""
    if settings.solvent == "implicit":
        reason = "GROMACS has no implicit solvent"
    elif settings.copies > 1 or dask is not None:
        reason = "several copies and workers elsewhere are OpenMM's"
    elif (chosen := working_platform(platform)) != "CPU":
        reason = f"it has the {chosen} platform"
    if not reason:
        try:
            program = find_gromacs(gmx)
            rates = _measured(
                replace(settings, engine="gromacs"), topology, positions, program, say
            )
        except (CannotWriteError, ValueError) as error:
            reason = str(error)
    if reason:
        say("engine openmm", reason)
        return "openmm"
    engine = max(rates, key=rates.__getitem__)
    both = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    say(f"engine {engine}", f"ns/day of one core: {both}")
    return engine


def _measured(
    settings: GenerateSettings,
    topology: app.Topology,
    positions: NDArray[np.float64],
    program: Gromacs,
    say: Progress,
) -> dict[str, float]:
    """Return ns a day of each engine."""
    n = topology.getNumAtoms()
    say("measuring which engine is faster", "")
    cell = solvated(topology, positions, settings)
    system, box = cell.system, cell.box_vectors
    assert box is not None
    system.setDefaultPeriodicBoxVectors(*box)
    text = gromacs_topology(flexible_system(cell.topology, settings), system, cell.topology, n)
    x = minimised(system, cell.positions, box)
    context = make_context(system, settings, "CPU", 1, settings.seed)
    context.setPeriodicBoxVectors(*box)
    context.setPositions(x)
    context.setVelocitiesToTemperature(settings.temperature_K, settings.seed)
    context.getIntegrator().step(_OPENMM_FIRST)
    began = time.process_time()
    context.getIntegrator().step(_OPENMM_STEPS)
    context.getState(energy=True)
    ours = _OPENMM_STEPS / (time.process_time() - began)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "system.top").write_text(text)
        (folder / "index.ndx").write_text(index_groups(len(x), n))
        write_gro(folder / "start.gro", cell.topology, x, box)
        seconds = []
        for steps in _GROMACS_STEPS:
            mdp = dynamics(settings, settings.seed, steps)
            program.preprocess(folder, "speed", mdp, "start.gro", "system.top")
            began = _seconds_of_children()
            program.simulate(folder, "speed", "-noconfout")
            seconds.append(_seconds_of_children() - began)
    theirs = (_GROMACS_STEPS[1] - _GROMACS_STEPS[0]) / max(seconds[1] - seconds[0], 1e-3)
    ns = settings.step_fs / 1e6 * _DAY_S
    return {"openmm": ours * ns, "gromacs": theirs * ns}


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
