"""A solute in a box of water: solvated, minimised, equilibrated for a moment.

Made for one whole, complete molecule: nothing is repaired, protonated or capped here.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

# Distance between the solute's periodic copies where the caller names no padding and no waters.
_PADDING_NM = 1.0
# A new box is a few per cent too large, so it needs the barostat more often than production does.
_BAROSTAT_STEPS = 10
# Steps between two progress reports.
_CHUNK_STEPS = 250


@dataclass(frozen=True)
class PreparedBox:
    """A System with a place to start from.

    Attributes
    ----------
    topology : openmm.app.Topology
        Solute first, then water and ions, with the periodic box.
    system : openmm.System
        Without barostat and thermostat.
    positions : ndarray, shape (N, 3)
        nm.
    box_vectors : ndarray, shape (3, 3)
        nm, one vector a row.
    n_waters : int
        Number of water molecules.
    force_field : tuple of str
        Files the System was made from.
    """

    topology: app.Topology
    system: openmm.System
    positions: NDArray[np.float64]
    box_vectors: NDArray[np.float64]
    n_waters: int
    force_field: tuple[str, ...]


def solvate(
    topology: app.Topology,
    positions: Any,
    *,
    waters: int | None = None,
    padding: float | None = None,
    force_field: Sequence[str] = ("amber99sbildn.xml", "tip3p.xml"),
    water_model: str = "tip3p",
    cutoff: float = 0.9,
    hydrogen_mass: float | None = None,
    seed: int | None = None,
) -> PreparedBox:
    """Put a solute into a cubic box of water and make its System; nothing is relaxed yet.

    Parameters
    ----------
    topology : openmm.app.Topology
        The solute, hydrogens and bonds included; `Molecule.to_topology` gives one.
    positions : Quantity or array, shape (N, 3)
        The solute, whole; bare numbers are nm.
    waters : int, optional
        How many water molecules; the box follows from it.
    padding : float, optional
        Least distance from the solute to its next periodic copy, nm, instead of `waters`; 1 nm by
        default.
    force_field : sequence of str
        Files as ``openmm.app.ForceField`` takes them.
    water_model : str
        What ``Modeller.addSolvent`` calls the water of that force field.
    cutoff : float
        Cutoff of PME's direct space and of Lennard-Jones interactions, nm.
    hydrogen_mass : float, optional
        Mass of the solute's hydrogens, amu, taken from their heavy atoms; unchanged by default.
    seed : int, optional
        Of the places of ions, which neutralise a charged solute; Python's own random numbers, and
        their state, are used by default.

    Returns
    -------
    PreparedBox
        With constrained bonds to hydrogen, rigid water and PME. `equilibrate` comes next.
    """
    if waters is not None and padding is not None:
        raise ValueError("give waters or padding, not both")
    if waters is not None and (isinstance(waters, bool) or int(waters) != waters or waters < 1):
        raise ValueError(f"waters must be a whole number of at least 1, got {waters!r}")
    if padding is not None and not padding > 0:
        raise ValueError(f"padding must be a positive number of nm, got {padding!r}")
    if not cutoff > 0:
        raise ValueError(f"cutoff must be a positive number of nm, got {cutoff!r}")
    if not unit.is_quantity(positions):
        positions = np.asarray(positions, dtype=np.float64) * unit.nanometer
    field = app.ForceField(*force_field)
    modeller = app.Modeller(topology, positions)
    with _seeded(seed):
        if waters is not None:
            modeller.addSolvent(field, model=water_model, numAdded=int(waters))
        else:
            distance = _PADDING_NM if padding is None else float(padding)
            modeller.addSolvent(field, model=water_model, padding=distance * unit.nanometer)
    box = _nanometers(modeller.topology.getPeriodicBoxVectors())
    if min(np.diag(box)) <= 2.0 * cutoff:
        raise ValueError(
            f"the box is only {min(np.diag(box)):.2f} nm wide and a cutoff of {cutoff:g} nm needs "
            f"more than {2.0 * cutoff:g} nm: take a shorter cutoff or use more water"
        )
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=cutoff * unit.nanometer,
        constraints=app.HBonds,
        hydrogenMass=None if hydrogen_mass is None else hydrogen_mass * unit.amu,
    )
    return PreparedBox(
        modeller.topology,
        system,
        _nanometers(modeller.positions),
        box,
        sum(residue.name == "HOH" for residue in modeller.topology.residues()),
        tuple(force_field),
    )


def equilibrate(
    box: PreparedBox,
    *,
    temperature: float = 300.0,
    pressure: float = 1.0,
    time: float = 10.0,
    step_size: float = 0.002,
    friction: float = 1.0,
    platform: str = "CPU",
    seed: int = 1,
    report: Callable[[str, str], None] | None = None,
) -> PreparedBox:
    """Minimise a box and run a moment of MD at constant pressure.

    Parameters
    ----------
    box : PreparedBox
        From `solvate`.
    temperature : float
        K.
    pressure : float
        bar.
    time : float
        Length of the MD, ps; 0 for the minimisation alone.
    step_size : float
        MD step, ps.
    friction : float
        Of the Langevin dynamics, 1/ps.
    platform : str
        OpenMM platform of the MD.
    seed : int
        Of velocities, thermostat and barostat.
    report : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    PreparedBox
        The same System, with the relaxed positions and box; its Topology carries the new box.

    Notes
    -----
    Minimising is always done on the CPU platform: the minimiser's kernels of OpenMM 8.6.1 crash
    under pocl, the OpenCL of machines without a GPU.
    """
    say = report or (lambda what, how_far: None)
    say("minimising", "")
    positions = _minimise(box)
    if not np.isfinite(positions).all():
        raise RuntimeError(
            "the box cannot be minimised: positions are not finite; are there atoms on top of each "
            "other?"
        )
    if not time:
        return replace(box, positions=positions)

    system = openmm.XmlSerializer.clone(box.system)
    barostat = openmm.MonteCarloBarostat(pressure, temperature, _BAROSTAT_STEPS)
    barostat.setRandomNumberSeed(seed)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step_size)
    integrator.setRandomNumberSeed(seed)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(temperature, seed)
    steps, done = max(1, round(time / step_size)), 0
    while done < steps:
        say("equilibrating", f"{done * step_size:.1f} of {time:g} ps")
        chunk = min(_CHUNK_STEPS, steps - done)
        integrator.step(chunk)
        done += chunk
    state = context.getState(positions=True)
    vectors = _nanometers(state.getPeriodicBoxVectors())
    relaxed = _nanometers(state.getPositions(asNumpy=True))
    if not np.isfinite(relaxed).all():
        raise RuntimeError("the box did not survive its equilibration: positions are not finite")
    box.topology.setPeriodicBoxVectors(vectors * unit.nanometer)
    box.system.setDefaultPeriodicBoxVectors(*vectors)
    return PreparedBox(box.topology, box.system, relaxed, vectors, box.n_waters, box.force_field)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed Python's random numbers, which OpenMM's Modeller uses, and put them back afterwards."""
    if seed is None:
        yield
        return
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _minimise(box: PreparedBox) -> NDArray[np.float64]:
    context = openmm.Context(
        box.system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("CPU"),
    )
    context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(box.positions)
    # Enough to take the clashes away; the rest is the thermostat's.
    openmm.LocalEnergyMinimizer.minimize(context, 50.0, 100)
    return _nanometers(context.getState(positions=True).getPositions(asNumpy=True))


def _nanometers(values: Any) -> NDArray[np.float64]:
    return np.array(values.value_in_unit(unit.nanometer), dtype=np.float64)
