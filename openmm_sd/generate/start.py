"""The System that is run, and the relaxed place that every run starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..molecule.molecule import Molecule
from ..molecule.torsions import TorsionAtoms
from ..prepare import load_structure
from ..progress import Progress
from ..system.box import PreparedBox, solvate
from ..system.force_field import (
    complete_bonds,
    load_force_field,
    make_implicit_system,
    make_system,
    make_water_system,
)
from ..system.structure import count_waters, nanometers
from .peptides import Amides
from .seeding import spread_points
from .settings import GenerateSettings

#: Name of the Context parameter that switches the pull of seeded runs, kJ/mol.
PULL: Final = "openmm_sd_pull"
# Stiff enough to keep a copy in its cell, soft enough to leave tumbling and shape alone: at 300 K
# the centre of mass stays within half a nanometre. kJ/mol/nm^2.
_SITE_KJ: Final = 20.0
_BAROSTAT_STEPS: Final = 10
# A new box is relaxed in pieces, so that progress can be told and the user can stop it.
_PIECES: Final = 50
_NAN: Final = "the box did not survive its equilibration: positions are not finite"


@dataclass(frozen=True)
class Start:
    """What every run is made of.

    Attributes
    ----------
    system : openmm.System
        All copies with their water, restraints and the pull.
    positions : ndarray, shape (particles, 3)
        nm.
    box : ndarray, shape (3, 3), or None
        nm.
    solutes : ndarray of int, shape (copies, N)
        Particles of each copy, in the molecule's order.
    waters : int
        Water molecules a copy.
    cell_nm : ndarray of float, shape (3,), or None
        Edges of the cell of one copy.
    """

    molecule: Molecule
    system: openmm.System
    positions: NDArray[np.float64]
    box: NDArray[np.float64] | None
    solutes: NDArray[np.int64]
    waters: int
    cell_nm: NDArray[np.float64] | None

    def constraints(self) -> list[list[float]]:
        """Return the constrained bonds to hydrogen as [heavy atom, hydrogen, nm]."""
        number = {int(particle): i for i, particle in enumerate(self.solutes[0])}
        found: list[list[float]] = []
        for k in range(self.system.getNumConstraints()):
            one, two, length = self.system.getConstraintParameters(k)
            if one in number and two in number:
                i, j = number[one], number[two]
                if self.molecule.atomic_numbers[i] == 1:
                    i, j = j, i
                found.append([i, j, round(length.value_in_unit(unit.nanometer), 7)])
        return sorted(found)


@dataclass(frozen=True)
class Plan:
    """What is made: runs from one start.

    Seeded ones are spread over the torsions, or begin at `goals`, (runs * copies, torsions), rad.
    """

    start: Start
    settings: GenerateSettings
    torsions: list[TorsionAtoms]
    goals: NDArray[np.float64] | None = None

    def points(self, run: int) -> NDArray[np.float64]:
        """Return where the copies of a seeded run begin, (copies, torsions), rad."""
        copies = len(self.start.solutes)
        if self.goals is not None:
            return self.goals[run * copies : (run + 1) * copies]
        return spread_points(run * copies, copies, len(self.torsions), self.settings.seed)


def read_solute(path: Path, settings: GenerateSettings) -> tuple[app.Topology, NDArray[np.float64]]:
    """Read a solute and its positions (N, 3), nm, from a PDB or mmCIF file.

    Bonds that it lacks come from the force field; the topology has no box. ValueError if it is no
    solute alone, or not complete.
    """
    structure = load_structure(path)
    topology = structure.topology
    topology.setPeriodicBoxVectors(None)
    waters = count_waters(topology)
    if waters:
        raise ValueError(
            f"{path} holds {waters} waters: wanted is the solute alone, which 'openmm-sd prepare' "
            "writes as solute.pdb"
        )
    complete_bonds(topology, load_force_field(settings.force_field))
    # OpenMM's own refusal says what is missing; a System is made of it later anyway.
    if settings.solvent == "implicit":
        make_implicit_system(settings.force_field, topology, settings.hydrogen_mass_amu)
    else:
        make_system(settings.force_field, topology)
    return topology, structure.positions


def make_start(
    topology: app.Topology,
    positions: NDArray[np.float64],
    molecule: Molecule,
    settings: GenerateSettings,
    torsions: Sequence[TorsionAtoms],
    platform: str,
    threads: int,
    say: Progress,
) -> Start:
    """Solvate, relax and copy a solute whose positions (N, 3) are in nm; add the pull.

    `platform` and `threads` are for the relaxation.
    """
    say("building the system", "")
    n = molecule.n_atoms
    if settings.solvent == "implicit":
        system = run_system(topology, settings)
        start = minimised(system, positions, None)
        _add_pull(system, molecule, np.arange(n)[None], torsions)
        return Start(molecule, system, start, None, np.arange(n)[None], 0, None)

    cell = filled(topology, positions, settings)
    single, box = cell.system, cell.box_vectors
    assert box is not None
    say("minimising", "")
    x = minimised(single, cell.positions, box)
    x, box = _relaxed(single, x, box, settings, platform, threads, say)
    if settings.box_nm is None:
        # Instantaneous boxes scatter; the runs get the mean one.
        mean = np.cbrt(np.prod(np.diag(box)))
        say("equilibrated", f"the cell is {mean:.4f} nm wide")
    cell.topology.setPeriodicBoxVectors(box * unit.nanometer)

    tiled, positions, box, origins = _tiled(cell.topology, x, box, settings.copies)
    say("building the system", f"{settings.copies} copies, {len(positions)} atoms")
    system = single if settings.copies == 1 else run_system(tiled, settings)
    system.setDefaultPeriodicBoxVectors(*box)
    solutes = np.arange(n)[None] + (np.arange(settings.copies) * len(x))[:, None]
    if settings.copies > 1:
        sites = x[:n].mean(axis=0) + origins
        system.addForce(_sites(solutes, sites))
    _add_pull(system, molecule, solutes, torsions)
    edges = np.diag(nanometers(cell.topology.getPeriodicBoxVectors()))
    return Start(molecule, system, positions, box, solutes, cell.n_waters, edges)


def filled(
    topology: app.Topology,
    positions: NDArray[np.float64],
    settings: GenerateSettings,
    *,
    width: float | None = None,
    seed: int | None = None,
) -> PreparedBox:
    """Return a solute in its water with the System that is run; nothing is relaxed.

    A `width` (nm) takes the place of the padding; `seed` is of the places of ions.
    """
    cell = solvate(
        topology,
        positions,
        waters=settings.waters,
        padding=None if width else settings.padding_nm,
        width=width,
        shape=settings.box_shape or "cube",
        force_field=settings.force_field,
        water_model=settings.water_model,
        # A box of given size is scaled below; it was checked against the real cutoff before.
        cutoff=settings.cutoff_nm if settings.box_nm is None else 0.1,
        hydrogen_mass=settings.hydrogen_mass_amu,
        seed=seed,
    )
    if settings.box_nm is not None:
        assert cell.box_vectors is not None
        edges = np.full(3, settings.box_nm)
        old, n = np.diag(cell.box_vectors), topology.getNumAtoms()
        x = _scaled(cell.topology, cell.positions, old, edges, n)
        cell = replace(cell, positions=x, box_vectors=np.diag(edges))
        cell.topology.setPeriodicBoxVectors(cell.box_vectors * unit.nanometer)
    return replace(cell, system=run_system(cell.topology, settings))


def run_system(topology: app.Topology, settings: GenerateSettings) -> openmm.System:
    """Return the System that is run, without restraints and pull."""
    files, mass = settings.force_field, settings.hydrogen_mass_amu
    if settings.solvent == "implicit":
        return make_implicit_system(files, topology, mass)
    return make_water_system(files, topology, settings.cutoff_nm, mass)


def _scaled(
    topology: app.Topology,
    x: NDArray[np.float64],
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    n: int,
) -> NDArray[np.float64]:
    """Move whole molecules into a box of other edges, the solute to its middle.

    Minimising and equilibrating take up the difference.
    """
    x = x - x[:n].mean(axis=0)
    for residue in topology.residues():
        atoms = [atom.index for atom in residue.atoms()]
        if atoms[0] < n:
            continue
        centre = x[atoms[0]].copy()
        place = (centre - old * np.rint(centre / old)) * (new / old)
        x[atoms] += place - centre
    return np.asarray(x + 0.5 * new)


def minimised(
    system: openmm.System, x: NDArray[np.float64], box: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return minimised positions: of a box on the CPU platform, else on Reference."""
    from ..bridges import platform_names

    # Never on the platform of the runs: the minimiser of OpenMM 8.6.1 crashes under pocl.
    cpu = box is not None and "CPU" in platform_names()
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("CPU" if cpu else "Reference"),
        {"Threads": "1"} if cpu else {},
    )
    if box is not None:
        context.setPeriodicBoxVectors(*box)
    context.setPositions(x)
    openmm.LocalEnergyMinimizer.minimize(context, 50.0, 300)
    return _positions(context)


def _relaxed(
    system: openmm.System,
    x: NDArray[np.float64],
    box: NDArray[np.float64],
    settings: GenerateSettings,
    platform: str,
    threads: int,
    say: Progress,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heat the cell up; where its size is open, find the mean size at the pressure wanted."""
    copy = openmm.XmlSerializer.clone(system)
    open_size = settings.box_nm is None
    if open_size:
        barostat = openmm.MonteCarloBarostat(
            settings.pressure_bar, settings.temperature_K, _BAROSTAT_STEPS
        )
        barostat.setRandomNumberSeed(settings.seed)
        copy.addForce(barostat)
    context = make_context(copy, settings, platform, threads, settings.seed)
    context.setPeriodicBoxVectors(*box)
    context.setPositions(x)
    context.setVelocitiesToTemperature(settings.temperature_K, settings.seed)
    steps = settings.steps(settings.equilibration_ps)
    edges = []
    done = 0
    for piece in range(_PIECES):
        goal = steps * (piece + 1) // _PIECES
        ps = done * settings.step_fs / 1000.0
        say("equilibrating", f"{ps:.1f} of {settings.equilibration_ps:g} ps")
        try:
            context.getIntegrator().step(goal - done)
        except openmm.OpenMMException as error:
            raise RuntimeError(_NAN) from error
        done = goal
        if piece >= _PIECES // 2:
            edges.append(np.diag(_box(context)))
    if not np.isfinite(_positions(context)).all():
        raise RuntimeError(_NAN)
    if open_size:
        old, new = np.diag(_box(context)), np.mean(edges, axis=0)
        refuse_narrow(min(new), settings)
        return _rescaled(context, old, new), np.diag(new)
    return _positions(context), box


def refuse_narrow(width: float, settings: GenerateSettings) -> None:
    """Refuse a relaxed box of less than twice the cutoff; `width` is in nm."""
    if width <= 2.0 * settings.cutoff_nm:
        raise ValueError(
            f"the box came out {width:.2f} nm wide and a cutoff of {settings.cutoff_nm:g} nm needs "
            f"more than {2 * settings.cutoff_nm:g} nm: use more water"
        )


def _rescaled(
    context: openmm.Context, old: NDArray[np.float64], new: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Move whole molecules by the thousandths that lie between the last box and the mean one."""
    x = _positions(context)
    for atoms in context.getMolecules():
        atoms = list(atoms)
        centre = x[atoms].mean(axis=0)
        x[atoms] += centre * (new / old - 1.0)
    return x


def _tiled(
    topology: app.Topology, x: NDArray[np.float64], box: NDArray[np.float64], copies: int
) -> tuple[app.Topology, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Put copies of a cell side by side; return also the origin of each copy's cell, nm."""
    edges = np.diag(box)
    counts = _lattice(copies)
    origins = np.array(list(np.ndindex(*counts))) * edges
    if copies == 1:
        return topology, x, box, origins
    # Topologies are added up by doubling: one by one takes minutes for many copies.
    whole = app.Modeller(topology, x * unit.nanometer)
    power: app.Modeller | None = None
    rest = copies
    while rest:
        if rest & 1:
            if power is None:
                power = app.Modeller(whole.topology, whole.positions)
            else:
                power.add(whole.topology, whole.positions)
        rest >>= 1
        if rest:
            whole.add(whole.topology, whole.positions)
    assert power is not None
    positions = (x[None] + origins[:, None]).reshape(-1, 3)
    vectors = np.diag(edges * counts)
    power.topology.setPeriodicBoxVectors(vectors * unit.nanometer)
    return power.topology, positions, vectors, origins


def _lattice(copies: int) -> tuple[int, int, int]:
    """Return three factors of a number, as equal as possible."""
    best = (copies, 1, 1)
    for a in range(1, copies + 1):
        for b in range(1, copies // a + 1):
            c = copies // (a * b)
            if a * b * c == copies and max(a, b, c) - min(a, b, c) < max(best) - min(best):
                best = (a, b, c)
    first, second, third = sorted(best)
    return first, second, third


def _sites(solutes: NDArray[np.int64], sites: NDArray[np.float64]) -> openmm.Force:
    energy = f"0.5*{_SITE_KJ}*pointdistance(x1,y1,z1,x0,y0,z0)^2"
    force = openmm.CustomCentroidBondForce(1, energy)
    for name in ("x0", "y0", "z0"):
        force.addPerBondParameter(name)
    for atoms, site in zip(solutes, sites, strict=True):
        group = force.addGroup([int(i) for i in atoms])
        force.addBond([group], [float(v) for v in site])
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def _add_pull(
    system: openmm.System,
    molecule: Molecule,
    solutes: NDArray[np.int64],
    torsions: Sequence[TorsionAtoms],
) -> None:
    """Add the force that turns torsions to their targets, switched off.

    Amide bonds are held on their side by it, which a pull could turn over.
    """
    force = openmm.CustomTorsionForce(f"{PULL}*(1-cos(theta-target))")
    force.setName(PULL)
    force.addGlobalParameter(PULL, 0.0)
    force.addPerTorsionParameter("target")
    for atoms in solutes:
        for torsion in torsions:
            force.addTorsion(*(int(atoms[i]) for i in torsion), [0.0])
    for torsion, side in Amides(molecule).held(torsions):
        for atoms in solutes:
            force.addTorsion(*(int(atoms[i]) for i in torsion), [side])
    system.addForce(force)


def make_context(
    system: openmm.System, settings: GenerateSettings, platform: str, threads: int, seed: int
) -> openmm.Context:
    """Make a Context with the thermostat of the settings; `threads` are for the CPU platform."""
    integrator = openmm.LangevinMiddleIntegrator(
        settings.temperature_K, settings.friction_per_ps, settings.step_fs * 1e-3
    )
    integrator.setRandomNumberSeed(seed)
    integrator.setConstraintTolerance(1e-6)
    properties = {}
    if platform == "CPU":
        properties = {"Threads": str(threads)}
    elif platform in ("CUDA", "HIP", "OpenCL"):
        properties = {"Precision": "mixed"}
    return openmm.Context(
        system, integrator, openmm.Platform.getPlatformByName(platform), properties
    )


def _positions(context: openmm.Context) -> NDArray[np.float64]:
    return nanometers(context.getState(positions=True).getPositions(asNumpy=True))


def _box(context: openmm.Context) -> NDArray[np.float64]:
    return nanometers(context.getState().getPeriodicBoxVectors(asNumpy=True))
