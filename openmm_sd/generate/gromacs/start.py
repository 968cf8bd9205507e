"""The box that all runs start from: solvated by OpenMM, compared, relaxed by GROMACS."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ...files.atomic import write_json
from ...molecule.molecule import Molecule
from ...progress import Progress
from ...system.box import PreparedBox, count_ions, solute_width, solvate
from ...system.force_field import make_system
from ...system.structure import nanometers
from ..settings import GenerateSettings
from ..start import Start, filled, minimised, refuse_narrow, run_system
from .check import compare
from .mdp import dynamics, pressure
from .program import BrokenRunError, Gromacs
from .topology import gromacs_topology, index_groups, write_gro

#: Share of an equilibration that heats the box before its size may change, and where the mean of
#: its size begins.
_HEATING, _MEAN_FROM = 0.2, 0.4
#: Frames of the volume that a mean is taken of.
_VOLUMES: Final = 200
#: Volume of a water at 300 K and 1 bar, and of an atom of a solute, nm^3; a guess is enough.
_PER_WATER_NM3, _PER_ATOM_NM3 = 0.0300, 0.009
#: How much larger a box is made until it holds the waters wanted.
_MORE: Final = (1.04, 1.08, 1.12, 1.2)
#: Least distance of copies where nothing else is asked for, nm, and how much more than the least
#: width a box gets, since it shrinks.
_PADDING_NM, _ROOM = 1.0, 1.04
_NAN: Final = "the box did not survive its equilibration"


def make_start(
    topology: app.Topology,
    positions: NDArray[np.float64],
    molecule: Molecule,
    settings: GenerateSettings,
    program: Gromacs,
    threads: int,
    folder: Path,
    say: Progress,
) -> Start:
    """Solvate a solute, write it for GROMACS, compare energies, and relax it.

    `folder` is made anew and gets ``system.top``, ``start.gro``, ``index.ndx`` and ``box.json``.
    `say` may raise to stop it. Returns what a data set and its provenance need. ValueError if the
    force field cannot be written, the energies differ, or the box is too small.
    """
    say("building the system", "")
    n = molecule.n_atoms
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cell = solvated(topology, positions, settings)
    constrained, x, box = cell.system, cell.positions, cell.box_vectors
    assert box is not None
    flexible = flexible_system(cell.topology, settings)
    (folder / "system.top").write_text(gromacs_topology(flexible, constrained, cell.topology, n))
    (folder / "index.ndx").write_text(index_groups(len(x), n))
    say("minimising", "")
    x = minimised(constrained, x, box)
    write_gro(folder / "start.gro", cell.topology, x, box)
    say(f"comparing energies of OpenMM and {program.name}", "")
    compared = compare(program, folder, flexible, cell.topology, n, x, box, settings)
    tail = _tail(flexible)
    x, box = _relaxed(program, folder, cell, n, box, settings, threads, say, tail)
    constrained.setDefaultPeriodicBoxVectors(*box)
    facts = {
        "box_shape": settings.box_shape,
        "box_vectors_nm": np.round(box, 6).tolist(),
        "ions": count_ions(cell.topology, n),
        "compared": compared,
        "version": program.version,
        "simd": program.simd,
    }
    write_json(folder / "box.json", facts)
    edges = np.linalg.norm(box, axis=1)
    return Start(molecule, constrained, x, box, np.arange(n)[None], cell.n_waters, edges)


def provenance(folder: Path) -> dict[str, Any]:
    """Return what a data set says of its engine and box, from the folder of `make_start`."""
    facts = json.loads((folder / "box.json").read_text())
    return {
        "engine": f"GROMACS {facts['version']}",
        "integrator": "sd (leap-frog)",
        **{key: facts[key] for key in ("simd", "box_shape", "box_vectors_nm", "ions", "compared")},
    }


def flexible_system(topology: app.Topology, settings: GenerateSettings) -> openmm.System:
    """Return a System with a force for every bond and angle."""
    return make_system(
        settings.force_field,
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=settings.cutoff_nm * unit.nanometer,
        constraints=None,
        rigidWater=False,
        removeCMMotion=False,
    )


def solvated(
    topology: app.Topology, positions: NDArray[np.float64], settings: GenerateSettings
) -> PreparedBox:
    """Return a solute in its water with the System that is run; nothing is relaxed."""
    if settings.waters is not None and settings.box_shape == "dodecahedron":
        cell = _rhombic(topology, positions, settings)
        return replace(cell, system=run_system(cell.topology, settings))
    width = None
    if settings.box_shape == "dodecahedron":
        # Beside the padding, OpenMM wants the lowest of the box vectors' diagonal twice the cutoff.
        padded = solute_width(positions) + (settings.padding_nm or _PADDING_NM)
        width = max(padded, _ROOM * 2.0 * np.sqrt(2.0) * settings.cutoff_nm)
    return filled(topology, positions, settings, width=width, seed=settings.seed)


def _rhombic(
    topology: app.Topology, positions: NDArray[np.float64], settings: GenerateSettings
) -> PreparedBox:
    """Fill a rhombic dodecahedron with a number of waters.

    OpenMM's Modeller leaves the corners of one that it sizes itself empty, so it gets one that is a
    little too large, and what is too much is taken out.
    """
    assert settings.waters is not None
    volume = settings.waters * _PER_WATER_NM3 + topology.getNumAtoms() * _PER_ATOM_NM3
    for more in _MORE:
        cell = solvate(
            topology,
            positions,
            width=float(np.cbrt(more * volume * np.sqrt(2.0))),
            shape="dodecahedron",
            force_field=settings.force_field,
            water_model=settings.water_model,
            cutoff=settings.cutoff_nm,
            seed=settings.seed,
        )
        if cell.n_waters >= settings.waters:
            break
    waters = [residue for residue in cell.topology.residues() if residue.name == "HOH"]
    too_many = len(waters) - settings.waters
    order = np.random.default_rng(settings.seed).permutation(len(waters))
    modeller = app.Modeller(cell.topology, cell.positions * unit.nanometer)
    modeller.delete([waters[k] for k in order[: max(0, too_many)]])
    x = nanometers(modeller.positions)
    kept = min(settings.waters, len(waters))
    return replace(cell, topology=modeller.topology, positions=x, n_waters=kept)


def _tail(system: openmm.System) -> bool:
    """Whether OpenMM corrects the pressure for Lennard-Jones forces beyond the cutoff."""
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    tables = any(isinstance(f, openmm.CustomNonbondedForce) for f in system.getForces())
    return bool(force.getUseDispersionCorrection()) and not tables


def _relaxed(
    program: Gromacs,
    folder: Path,
    cell: PreparedBox,
    n: int,
    box: NDArray[np.float64],
    settings: GenerateSettings,
    threads: int,
    say: Progress,
    tail: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heat the box up and, where its size is open, give it the mean size at the pressure wanted."""
    total = settings.steps(settings.equilibration_ps)
    heating = round(_HEATING * total)
    step = settings.step_fs / 1000.0
    open_size = settings.box_nm is None
    # Half the step, twice as many: a minimised box is no box at 300 K yet.
    stages: list[tuple[str, dict[str, Any]]] = [
        ("heat", dynamics(settings, settings.seed, 2 * heating, step_ps=step / 2))
    ]
    rest = total - heating
    every = max(1, rest // _VOLUMES)
    more = pressure(settings, tail) if open_size else {}
    goes_on = dynamics(settings, settings.seed + 1, rest, every=every, velocities=False)
    stages.append(("relax", goes_on | more))
    start = "start.gro"
    began = {"what": "", "ps": 0.0}

    def watch() -> None:
        say("equilibrating", f"{began['what']}, {settings.equilibration_ps:g} ps")

    try:
        for name, mdp in stages:
            began["what"] = {"heat": "heating up"}.get(name, "finding its size")
            program.preprocess(folder, name, mdp, start, "system.top")
            program.simulate(folder, name, "-c", f"{name}.g96", threads=threads, watch=watch)
            start = f"{name}.g96"
    except BrokenRunError as error:
        raise RuntimeError(f"{_NAN}: {error}") from error
    x, last = read_g96(folder / start)
    if not np.isfinite(x).all():
        raise RuntimeError(f"{_NAN}: positions are not finite")
    if open_size:
        # Instantaneous boxes scatter; the runs get the mean one.
        box = _mean_box(folder / "relax.xtc", box)
        x = _rescaled(cell.topology, n, x, last, box)
        refuse_narrow(float(np.diag(box).min()), settings)
        say("equilibrated", f"the box vectors are {np.linalg.norm(box[0]):.4f} nm long")
    cell.topology.setPeriodicBoxVectors(box * unit.nanometer)
    write_gro(folder / "start.gro", cell.topology, x, box)
    for name in ("heat", "relax", "distorted"):
        for file in folder.glob(f"{name}.*"):
            file.unlink()
    return x, box


def _mean_box(trajectory: Path, like: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a box of the mean volume over the later part of a trajectory, in the same shape."""
    from .runs import read_frames

    boxes = read_frames(trajectory)[1]
    volumes = np.linalg.det(boxes[round(_MEAN_FROM * len(boxes)) :])
    return np.asarray(like * np.cbrt(volumes.mean() / np.linalg.det(like)))


def _rescaled(
    topology: app.Topology,
    n: int,
    x: NDArray[np.float64],
    old: NDArray[np.float64],
    new: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Move whole molecules by the thousandths that lie between the last box and the mean one."""
    x = x.copy()
    change = np.linalg.inv(old) @ new
    residues = [[atom.index for atom in residue.atoms()] for residue in topology.residues()]
    for atoms in (list(range(n)), *(atoms for atoms in residues if atoms[0] >= n)):
        first = x[atoms[0]].copy()
        x[atoms] += first @ change - first
    return x


def read_g96(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read positions and box vectors (nm, one a row) of a g96 file that GROMACS wrote."""
    blocks: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if line.strip() == "END":
            name = ""
        elif not name:
            name = line.strip()
            blocks[name] = []
        else:
            blocks[name].append(line)
    x = np.array([line[24:].split()[:3] for line in blocks["POSITION"]], dtype=np.float64)
    values = [float(v) for v in " ".join(blocks["BOX"]).split()] + [0.0] * 6
    xx, yy, zz, xy, xz, yx, yz, zx, zy = values[:9]
    return x, np.array([[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]])
