"""Plain MD of the box by GROMACS, which on a CPU is what one would take for plain MD."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..generate.gromacs.mdp import dynamics
from ..generate.gromacs.program import Gromacs, find_gromacs
from ..generate.gromacs.start import flexible_system
from ..generate.gromacs.topology import (
    CannotWriteError,
    gromacs_topology,
    index_groups,
    write_gro,
)
from ..generate.settings import GenerateSettings
from ..prepare.settings import HEAVY_STEP_PS, HYDROGEN_MASS_AMU
from ..run import RunSettings
from ..workers.shares import cores
from .contestants import Scene, in_box
from .measure import Contestant

#: What it is called in the table.
GROMACS = "plain MD by GROMACS"

_STEPS = 2500
# "       Time:       10.000        5.000      200.0": of all cores, by the clock, their ratio.
_TIME = re.compile(r"^\s*Time:\s+\S+\s+(\S+)", re.MULTILINE)


def gromacs_contestant(scene: Scene, gmx: str | None, folder: Path) -> Contestant | None:
    """Return plain MD by GROMACS on the same box and cores; None, with a note, where it cannot be.

    It counts the seconds of its steps by itself: starting does not count. Files are in `folder`.
    """
    try:
        program = find_gromacs(gmx)
        _write(scene, program, folder)
    except (CannotWriteError, ValueError, RuntimeError) as error:
        scene.say("note", f"left out: GROMACS: {error}")
        return None
    threads = int(os.environ.get("OPENMM_CPU_THREADS") or cores())

    def work() -> float:
        program.simulate(folder, "speed", "-noconfout", threads=threads)
        return _STEPS * HEAVY_STEP_PS

    def clock() -> float:
        found = _TIME.search((folder / "speed.log").read_text(encoding="utf-8"))
        if found is None:
            raise RuntimeError("GROMACS has written no time into its log")
        return float(found[1])

    facts = in_box(scene) | {"platform": program.name, "note": f"{program.simd}, {threads} threads"}
    return Contestant(GROMACS, work, clock=clock, facts=facts)


def _write(scene: Scene, program: Gromacs, folder: Path) -> None:
    """Write what GROMACS needs to run the box."""
    settings = GenerateSettings(
        force_field=scene.box.force_field,
        temperature_K=scene.temperature,
        friction_per_ps=RunSettings.friction_per_ps,
        step_fs=1000.0 * HEAVY_STEP_PS,
        hydrogen_mass_amu=HYDROGEN_MASS_AMU,
        engine="gromacs",
    )
    box, n = scene.box, scene.molecule.n_atoms
    assert box.box_vectors is not None
    flexible = flexible_system(box.topology, settings)
    topology = gromacs_topology(flexible, box.system, box.topology, n)
    (folder / "system.top").write_text(topology)
    (folder / "index.ndx").write_text(index_groups(len(box.positions), n))
    write_gro(folder / "start.gro", box.topology, box.positions, box.box_vectors)
    mdp = dynamics(settings, settings.seed, _STEPS)
    program.preprocess(folder, "speed", mdp, "start.gro", "system.top")
