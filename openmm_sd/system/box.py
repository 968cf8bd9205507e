"""A solute in a box of water, or in implicit solvent: minimised, equilibrated for a moment.

Made for one whole, complete molecule: nothing is repaired, protonated or capped here.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..progress import Progress, silence
from .force_field import (
    DEFAULT_FORCE_FIELD,
    IMPLICIT_FORCE_FIELD,
    ForceFieldLike,
    explained,
    file_names,
    load_force_field,
    make_implicit_system,
    make_water_system,
    water_box,
)
from .structure import nanometers

# Distance between the solute's periodic copies where the caller names no padding and no waters.
_PADDING_NM = 1.0
# A new box is a few per cent too large, so it needs the barostat more often than production does.
_BAROSTAT_STEPS = 10
# Shares of an equilibration at constant volume: before the box finds its size, and after it.
_HEATING, _RESTING = 0.2, 0.2
# Room that a water molecule and an atom of a solute take up at 300 K and 1 bar, nm^3.
_PER_WATER, _PER_ATOM = 0.0305, 0.010
# Steps between two progress reports, and two looks at the size.
_CHUNK_STEPS = 50


@dataclass(frozen=True)
class PreparedBox:
    """A System with a place to start from.

    Attributes
    ----------
    topology : openmm.app.Topology
        Solute first, then water and ions, with the periodic box if there is one.
    system : openmm.System
        Without barostat and thermostat.
    positions : ndarray, shape (N, 3)
        nm.
    box_vectors : ndarray, shape (3, 3), or None
        nm, one vector a row; None in implicit solvent.
    force_field : tuple of str
        Files the System was made from.
    velocities : ndarray, shape (N, 3), optional
        nm/ps, of an equilibration.
    """

    topology: app.Topology
    system: openmm.System
    positions: NDArray[np.float64]
    box_vectors: NDArray[np.float64] | None
    n_waters: int
    force_field: tuple[str, ...]
    velocities: NDArray[np.float64] | None = None


def solvate(
    topology: app.Topology,
    positions: Any,
    *,
    waters: int | None = None,
    padding: float | None = None,
    width: float | None = None,
    shape: str = "cube",
    force_field: ForceFieldLike = DEFAULT_FORCE_FIELD,
    water_model: str | None = None,
    ionic_strength: float = 0.0,
    ions: tuple[str, str] = ("Na+", "Cl-"),
    neutralise: bool = True,
    cutoff: float = 0.9,
    hydrogen_mass: float | None = None,
    seed: int | None = None,
) -> PreparedBox:
    """Put a solute into a box of water and make its System; nothing is relaxed yet.

    The System has constrained bonds to hydrogen, rigid water and PME. `equilibrate` comes next.

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
    width : float, optional
        Distance from the box to its next copies, nm, instead of `waters` and `padding`.
    shape : str
        ``cube``, ``dodecahedron`` or ``octahedron``.
    force_field : sequence of str or openmm.app.ForceField
        Files as ``openmm.app.ForceField`` takes them.
    water_model : str, optional
        What ``Modeller.addSolvent`` calls the water of that force field; by its files by default.
    ionic_strength : float
        Of added salt, mol/l.
    ions : tuple of two str
        The positive and the negative ion, as ``Modeller.addSolvent`` calls them.
    neutralise : bool
        Whether ions make up for the solute's charge.
    cutoff : float
        Cutoff of PME's direct space and of Lennard-Jones interactions, nm.
    hydrogen_mass : float, optional
        Mass of the solute's hydrogens, amu, taken from their heavy atoms; unchanged by default.
    seed : int, optional
        Of the places of ions; Python's own random numbers, and their state, are used by default.
    """
    if sum(size is not None for size in (waters, padding, width)) > 1:
        raise ValueError("give waters, padding or width, not both")
    if waters is not None and (isinstance(waters, bool) or int(waters) != waters or waters < 1):
        raise ValueError(f"waters must be a whole number of at least 1, got {waters!r}")
    for name, value in (("padding", padding), ("width", width), ("cutoff", cutoff)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be a positive number of nm, got {value!r}")
    if not unit.is_quantity(positions):
        positions = np.asarray(positions, dtype=np.float64) * unit.nanometer
    across = solute_width(nanometers(positions))
    if width is not None:
        _check_width(width, across, shape, cutoff)
    size: dict[str, Any] = {"boxShape": shape}
    if waters is not None:
        size["numAdded"] = int(waters)
    elif width is not None:
        size = {"boxVectors": tuple(map(openmm.Vec3, *(_vectors(width, shape).T))) * unit.nanometer}
    else:
        size["padding"] = (_PADDING_NM if padding is None else float(padding)) * unit.nanometer
    field = load_force_field(force_field)
    modeller = app.Modeller(topology, positions)
    with seeded(seed), explained(force_field, lambda: modeller.topology):
        modeller.addSolvent(
            field,
            model=water_model or water_box(force_field),
            positiveIon=ions[0],
            negativeIon=ions[1],
            ionicStrength=ionic_strength * unit.molar,
            neutralize=neutralise,
            **size,
        )
    box = nanometers(modeller.topology.getPeriodicBoxVectors())
    _check_width(float(np.linalg.norm(box, axis=1).min()), across, shape, cutoff)
    made = PreparedBox(
        modeller.topology,
        make_water_system(force_field, modeller.topology, cutoff, hydrogen_mass),
        nanometers(modeller.positions),
        box,
        sum(residue.name == "HOH" for residue in modeller.topology.residues()),
        file_names(force_field),
    )
    return made if width is not None else _at_liquid_density(made, cutoff)


def in_implicit_solvent(
    topology: app.Topology,
    positions: NDArray[np.float64],
    *,
    force_field: ForceFieldLike = IMPLICIT_FORCE_FIELD,
    hydrogen_mass: float | None = None,
) -> PreparedBox:
    """Make the System of a solute in implicit solvent; nothing is relaxed yet.

    Positions (N, 3) are in nm. The mass of hydrogens, amu, is taken from their heavy atoms;
    unchanged by default.
    """
    topology.setPeriodicBoxVectors(None)
    system = make_implicit_system(force_field, topology, hydrogen_mass)
    return PreparedBox(topology, system, positions, None, 0, file_names(force_field))


def _at_liquid_density(box: PreparedBox, cutoff: float) -> PreparedBox:
    """Scale a new box of water, which has gaps at its faces, to the volume it will have; nm."""
    assert box.box_vectors is not None
    others = sum(len(r) for r in box.topology.residues() if r.name != "HOH")
    volume = box.n_waters * _PER_WATER + others * _PER_ATOM
    factor = float(np.cbrt(volume / np.linalg.det(box.box_vectors)))
    vectors = factor * box.box_vectors
    if float(np.diag(vectors).min()) <= 2.0 * cutoff:
        return box  # the barostat will say so, if it really comes to that
    context = openmm.Context(
        box.system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(box.positions)
    _resize(context, vectors)
    positions = nanometers(context.getState(positions=True).getPositions(asNumpy=True))
    _set_box(box, vectors)
    return replace(box, positions=positions, box_vectors=vectors)


def _resize(context: openmm.Context, vectors: NDArray[np.float64]) -> None:
    """Give a Context other box vectors, nm, and move whole molecules along."""
    state = context.getState(positions=True)
    x = nanometers(state.getPositions(asNumpy=True))
    change = np.linalg.inv(nanometers(state.getPeriodicBoxVectors())) @ vectors
    for molecule in context.getMolecules():
        atoms = list(molecule)
        centre = x[atoms].mean(axis=0)
        x[atoms] += centre @ change - centre
    context.setPeriodicBoxVectors(*vectors)
    context.setPositions(x)
    context.computeVirtualSites()


def _set_box(box: PreparedBox, vectors: NDArray[np.float64]) -> None:
    box.topology.setPeriodicBoxVectors(vectors * unit.nanometer)
    box.system.setDefaultPeriodicBoxVectors(*vectors)


def solute_width(positions: NDArray[np.float64]) -> float:
    """Return the diameter of the sphere around the middle of all atoms, nm."""
    middle = 0.5 * (positions.min(axis=0) + positions.max(axis=0))
    return 2.0 * float(np.linalg.norm(positions - middle, axis=1).max())


def _check_width(width: float, across: float, shape: str, cutoff: float) -> None:
    if width <= across:
        raise ValueError(
            f"the box is {width:.2f} nm wide and the solute {across:.2f} nm across: it would reach "
            "into its own copies; take a larger box, or use more water"
        )
    # OpenMM's limit is on the diagonal of the box vectors.
    edge = float(np.diag(_vectors(width, shape)).min())
    if edge <= 2.0 * cutoff:
        raise ValueError(
            f"the box is only {edge:.2f} nm wide and a cutoff of {cutoff:g} nm needs "
            f"more than {2.0 * cutoff:g} nm: take a shorter cutoff or use more water"
        )


def _vectors(width: float, shape: str) -> NDArray[np.float64]:
    """Return box vectors in OpenMM's reduced form, one a row, nm."""
    unit_vectors = {
        "cube": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "dodecahedron": [[1, 0, 0], [0, 1, 0], [0.5, 0.5, math.sqrt(0.5)]],
        "octahedron": [
            [1, 0, 0],
            [1 / 3, 2 * math.sqrt(2) / 3, 0],
            [-1 / 3, math.sqrt(2) / 3, math.sqrt(6) / 3],
        ],
    }
    return width * np.array(unit_vectors[shape], dtype=np.float64)


def count_ions(topology: app.Topology, solute_atoms: int) -> dict[str, int]:
    """Return how many of each ion were put behind a solute."""
    names = (
        residue.name
        for residue in topology.residues()
        if len(residue) == 1 and next(residue.atoms()).index >= solute_atoms
    )
    return dict(Counter(names))


def equilibrate(
    box: PreparedBox,
    *,
    temperature: float = 300.0,
    pressure: float = 1.0,
    time: float = 10.0,
    step_size: float = 0.002,
    friction: float = 5.0,
    platform: str = "CPU",
    seed: int = 1,
    progress: Progress | None = None,
) -> PreparedBox:
    """Minimise a box and run a moment of MD, at last at constant volume.

    A fifth of the MD heats the box up, three fifths at constant pressure find the volume, whose
    mean it gets, and the last fifth begins with fresh velocities. Without a box there is no volume
    to find. The result has the same System, with the relaxed
    positions, velocities and box; its Topology carries the new box. Minimising is always done on
    the CPU platform: the minimiser's kernels of OpenMM 8.6.1 crash under pocl, the OpenCL of
    machines without a GPU.

    Parameters
    ----------
    temperature, pressure : float
        K and bar.
    time : float
        Length of the MD, ps; 0 for the minimisation alone.
    step_size : float
        MD step, ps.
    friction : float
        Of the Langevin dynamics, 1/ps: high, to take away the heat of what settles.
    platform : str
        OpenMM platform of the MD.
    seed : int
        Of velocities, thermostat and barostat.
    """
    say = progress or silence
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
    if box.box_vectors is not None:
        system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step_size)
    integrator.setRandomNumberSeed(seed)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    if box.box_vectors is not None:
        context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(temperature, seed)
    steps, done = max(1, round(time / step_size)), 0
    heated, sized = round(_HEATING * steps), round((1.0 - _RESTING) * steps)
    # The Context asks this object at every step, so that it can be switched on and off.
    barostat.setFrequency(0)
    sizes: list[NDArray[np.float64]] = []
    while done < steps:
        if done == heated:
            barostat.setFrequency(_BAROSTAT_STEPS)
        if done == sized:
            barostat.setFrequency(0)
            if sizes:
                _resize(context, np.mean(sizes, axis=0))
            context.setVelocitiesToTemperature(temperature, seed)
        say("equilibrating", f"{done * step_size:.1f} of {time:g} ps")
        ends = [end for end in (heated, sized, steps) if end > done]
        try:
            integrator.step(min(_CHUNK_STEPS, ends[0] - done))
        except openmm.OpenMMException as error:
            if "box size has decreased" in str(error):
                raise ValueError(
                    "the box shrinks to less than twice the cutoff while it relaxes: take a "
                    "shorter cutoff or use more water"
                ) from None
            raise RuntimeError(f"the box did not survive its equilibration: {error}") from error
        done += min(_CHUNK_STEPS, ends[0] - done)
        if box.box_vectors is not None and (heated + sized) / 2 < done <= sized:
            sizes.append(nanometers(context.getState().getPeriodicBoxVectors()))
    state = context.getState(positions=True, velocities=True)
    relaxed = nanometers(state.getPositions(asNumpy=True))
    if not np.isfinite(relaxed).all():
        raise RuntimeError("the box did not survive its equilibration: positions are not finite")
    speed = unit.nanometer / unit.picosecond
    velocities = np.array(state.getVelocities(asNumpy=True).value_in_unit(speed))
    if box.box_vectors is None:
        return replace(box, positions=relaxed, velocities=velocities)
    vectors = nanometers(state.getPeriodicBoxVectors())
    _set_box(box, vectors)
    return replace(box, positions=relaxed, box_vectors=vectors, velocities=velocities)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
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
    if box.box_vectors is not None:
        context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(box.positions)
    # Enough to take the clashes away; the rest is the thermostat's.
    openmm.LocalEnergyMinimizer.minimize(context, 50.0, 100)
    return nanometers(context.getState(positions=True).getPositions(asNumpy=True))
