"""Energies and forces of one frame, OpenMM beside GROMACS, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..settings import GenerateSettings
from .mdp import single_point
from .program import Gromacs
from .topology import write_gro

#: Differences that are rounding: kJ/mol and share of bonded terms, share of nonbonded ones, and
#: root mean square of the forces' difference as a share of their own.
_BONDED: Final = (2e-3, 2e-5)
_NONBONDED: Final = 5e-5
_FORCES: Final = 1e-4
# Bonds at their constrained lengths and torsions in their wells would show little. nm.
_SHAKE_NM: Final = 0.006
_BONDED_TERMS: Final = ("bonds", "angles", "torsions")
# GROMACS's names of what OpenMM keeps in one term.
_NAMES: Final = {
    "bonds": ("Bond",),
    "angles": ("Angle", "U-B"),
    "torsions": ("Proper Dih.", "Per. Imp. Dih.", "Improper Dih."),
    "Lennard-Jones": ("LJ-14", "LJ (SR)"),
    "Coulomb": ("Coulomb-14", "Coulomb (SR)", "Coul. recip."),
}


def compare(
    program: Gromacs,
    folder: Path,
    system: openmm.System,
    topology: app.Topology,
    n: int,
    x: NDArray[np.float64],
    box: NDArray[np.float64],
    settings: GenerateSettings,
) -> dict[str, Any]:
    """Compare energies, term by term, and forces of one frame whose solute is distorted.

    `folder` holds ``system.top``, written from `system`, which has a force for every bond and
    angle; `x` and `box` are in nm, and `n` is the number of the solute's atoms. Returns
    ``energies_kJ_per_mol`` (term: OpenMM's and GROMACS's) and ``force_difference``: the root mean
    square of the difference as a share of the forces, with a fine PME grid (``exact``) and as in
    the runs. ValueError if they differ by more than rounding: the topology is not the same.
    """
    x = x.copy()
    x[:n] += np.random.default_rng(1).normal(0.0, _SHAKE_NM, (n, 3))
    x = x.astype(np.float32).astype(np.float64)
    write_gro(folder / "distorted.gro", topology, x, box)
    bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    ours, forces = openmm_point(system, n, x, box, bonded)
    theirs, exact = gromacs_point(program, folder, single_point(settings, exact=True))
    used = gromacs_point(program, folder, single_point(settings, exact=False))[1]
    wrong = []
    energies = {}
    for term, names in _NAMES.items():
        one, other = ours[term], sum(theirs.get(name, 0.0) for name in names)
        energies[term] = [round(one, 4), round(other, 4)]
        least, share = _BONDED if term in _BONDED_TERMS else (0.0, _NONBONDED)
        # Nonbonded terms are small differences of large sums; the whole says how large.
        size = abs(one) if term in _BONDED_TERMS else max(abs(ours[t]) for t in _NAMES)
        if abs(one - other) > max(least, share * size):
            wrong.append(f"{term} ({one:.3f} and {other:.3f} kJ/mol)")
    size = float(np.sqrt((forces**2).sum(-1).mean()))
    off = {
        name: float(np.sqrt(((found - forces) ** 2).sum(-1).mean())) / size
        for name, found in (("exact", exact), ("as in the runs", used))
    }
    if off["exact"] > _FORCES:
        wrong.append(f"forces (by {100 * off['exact']:.3f} %)")
    if wrong:
        raise ValueError(
            f"OpenMM and {program.name} do not agree on {', '.join(wrong)}: the topology that "
            "GROMACS got is not the same; nothing was run"
        )
    return {"energies_kJ_per_mol": energies, "force_difference": off}


def openmm_point(
    system: openmm.System,
    n: int,
    x: NDArray[np.float64],
    box: NDArray[np.float64],
    bonded: set[frozenset[int]],
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return energies by term and all forces; water is rigid, so bonded terms are the solute's."""
    system = openmm.XmlSerializer.clone(system)
    groups: dict[str, set[int]] = {name: set() for name in _NAMES}
    for force in list(system.getForces()):
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, r, _ = force.getBondParameters(k)
                if max(i, j) >= n:
                    force.setBondParameters(k, i, j, r, 0.0)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for k in range(force.getNumAngles()):
                *three, angle, _ = force.getAngleParameters(k)
                if max(three) >= n:
                    force.setAngleParameters(k, *three, angle, 0.0)
        elif isinstance(force, openmm.NonbondedForce):
            force.setUseDispersionCorrection(False)
            force.setEwaldErrorTolerance(1e-6)
    _split(system)
    spring = _urey_bradley(system, bonded)
    for number, force in enumerate(system.getForces()):
        force.setForceGroup(number)
        term = {
            openmm.HarmonicBondForce: "bonds",
            openmm.HarmonicAngleForce: "angles",
            openmm.PeriodicTorsionForce: "torsions",
            openmm.CustomTorsionForce: "torsions",
            openmm.CustomBondForce: "Lennard-Jones",
            openmm.CustomNonbondedForce: "Lennard-Jones",
        }.get(type(force))
        if isinstance(force, openmm.NonbondedForce):
            term = force.getName()
        if number == spring:
            term = "angles"
        if term is not None:
            groups[term].add(number)
    # The Reference platform of OpenMM 8.6.1 misses neighbours in boxes that are no cuboids.
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPeriodicBoxVectors(*box)
    context.setPositions(x)
    energies = {
        name: context.getState(energy=True, groups=numbers).getPotentialEnergy()._value
        if numbers
        else 0.0
        for name, numbers in groups.items()
    }
    forces = context.getState(forces=True).getForces(asNumpy=True)
    return energies, np.array(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer))


def _split(system: openmm.System) -> None:
    """Part the NonbondedForce into Coulomb's and Lennard-Jones', including 1-4 pairs."""
    place = next(
        k for k, f in enumerate(system.getForces()) if isinstance(f, openmm.NonbondedForce)
    )
    coulomb = system.getForce(place)
    other = openmm.XmlSerializer.clone(coulomb)
    coulomb.setName("Coulomb")
    other.setName("Lennard-Jones")
    other.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    other.setReactionFieldDielectric(1.0)
    for k in range(coulomb.getNumParticles()):
        charge, sigma, epsilon = coulomb.getParticleParameters(k)
        coulomb.setParticleParameters(k, charge, sigma, 0.0)
        other.setParticleParameters(k, 0.0, sigma, epsilon)
    for k in range(coulomb.getNumExceptions()):
        i, j, product, sigma, epsilon = coulomb.getExceptionParameters(k)
        coulomb.setExceptionParameters(k, i, j, product, sigma, 0.0)
        other.setExceptionParameters(k, i, j, 0.0, sigma, epsilon)
    system.addForce(other)


def _urey_bradley(system: openmm.System, bonded: set[frozenset[int]]) -> int | None:
    """Put springs between atoms that are not bonded into a force of their own, if there are any."""
    own = openmm.HarmonicBondForce()
    for force in system.getForces():
        if not isinstance(force, openmm.HarmonicBondForce):
            continue
        own.setUsesPeriodicBoundaryConditions(force.usesPeriodicBoundaryConditions())
        for k in range(force.getNumBonds()):
            i, j, r, strength = force.getBondParameters(k)
            if frozenset((i, j)) not in bonded:
                own.addBond(i, j, r, strength)
                force.setBondParameters(k, i, j, r, 0.0)
    return int(system.addForce(own)) if own.getNumBonds() else None


def gromacs_point(
    program: Gromacs, folder: Path, settings: dict[str, Any]
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Return energies by GROMACS's names, and the forces, of ``distorted.gro``."""
    program.preprocess(folder, "point", settings, "distorted.gro", "system.top")
    program.simulate(folder, "point")
    text = (folder / "point.log").read_text()
    block = text[text.index("Energies (kJ/mol)") :].split("\n\n")[0].splitlines()[1:]
    energies: dict[str, float] = {}
    for names, values in zip(block[::2], block[1::2], strict=True):
        split = [names[k : k + 15].strip() for k in range(0, len(names), 15)]
        energies.update(zip(split, map(float, values.split()), strict=False))
    dump = program.command(folder, "dump", "-f", "point.trr")
    found = re.findall(r"f\[\s*\d+\]=\{([^}]*)\}", dump)
    forces = np.array([row.split(",") for row in found], dtype=np.float64)
    for file in folder.glob("point*"):
        file.unlink()
    return energies, forces
