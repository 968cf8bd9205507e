"""An OpenMM System of a solute, water and ions as GROMACS reads it.

What is written comes from the forces of the System, not from the force field's files, so that any
force field goes whose forces GROMACS knows: Amber's, and CHARMM's with its pair tables, 1-4 pairs
of their own and Urey-Bradley terms. Anything else is refused in one line.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

#: Where the torsions that a seeded run is pulled to go in a topology.
PULL_MARK: Final = "; pulled torsions\n"
_TABLES: Final = "acoef(type1, type2)/r^12 - bcoef(type1, type2)/r^6;"
_FOURTEEN: Final = re.compile(r"(\S+)\*epsilon\*\(\(sigma/r\)\^12-\(sigma/r\)\^6\)")
_IMPROPER: Final = re.compile(r"k\*(\(theta-theta0\)\^2|dtheta_torus\^2; .*)")
_HOW_TO_GO_ON: Final = "; OpenMM can run it: --engine openmm"


class CannotWriteError(ValueError):
    """A System has something that this module does not put into GROMACS's words."""

    def __init__(self, what: str) -> None:
        super().__init__(f"GROMACS cannot be given {what}{_HOW_TO_GO_ON}")


@dataclass(frozen=True)
class Terms:
    """What a System says of its solute, in nm, rad, kJ/mol and elementary charges.

    Attributes
    ----------
    bonds, urey_bradley : list of (i, j, length, strength)
        Harmonic, between bonded atoms and between others.
    angles : list of (i, j, k, angle, strength)
        Harmonic.
    torsions : list of (i, j, k, l, n, phase, strength)
        Periodic.
    impropers : list of (i, j, k, l, angle, strength)
        Harmonic, as GROMACS has them: half the strength counts.
    pairs : list of (i, j, charge product, C6, C12)
        Of atoms three bonds apart, mostly.
    exclusions : list of (i, j)
        Pairs without forces but those of `pairs`.
    charges, types : ndarray, shape (particles,)
        Of all particles; a type is a row of `c6` and `c12`.
    c6, c12 : ndarray, shape (types, types)
        kJ/mol nm^6 and nm^12.
    """

    bonds: list[tuple[Any, ...]]
    urey_bradley: list[tuple[Any, ...]]
    angles: list[tuple[Any, ...]]
    torsions: list[tuple[Any, ...]]
    impropers: list[tuple[Any, ...]]
    pairs: list[tuple[Any, ...]]
    exclusions: list[tuple[int, int]]
    charges: NDArray[np.float64]
    types: NDArray[np.int64]
    c6: NDArray[np.float64]
    c12: NDArray[np.float64]


def bare(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return numbers without their units: nm, ps, rad, kJ/mol, elementary charges."""
    system = unit.md_unit_system
    return tuple(v.value_in_unit_system(system) if unit.is_quantity(v) else v for v in values)


def read_terms(system: openmm.System, topology: app.Topology, n: int) -> Terms:
    """Read the terms of a solute, the first `n` atoms, from the forces of a System.

    The System has a force for every bond and angle: it was made without constraints and rigid
    water. CannotWriteError for forces that GROMACS is not told of here.
    """
    springs: list[tuple[Any, ...]] = []
    angles: list[tuple[Any, ...]] = []
    torsions: list[tuple[Any, ...]] = []
    impropers: list[tuple[Any, ...]] = []
    for force in system.getForces():
        name = type(force).__name__
        if isinstance(force, openmm.HarmonicBondForce):
            springs += [bare(force.getBondParameters(k)) for k in range(force.getNumBonds())]
        elif isinstance(force, openmm.HarmonicAngleForce):
            angles += [bare(force.getAngleParameters(k)) for k in range(force.getNumAngles())]
        elif isinstance(force, openmm.PeriodicTorsionForce):
            count = force.getNumTorsions()
            torsions += [bare(force.getTorsionParameters(k)) for k in range(count)]
        elif isinstance(force, openmm.CustomTorsionForce):
            impropers += _impropers(force)
        elif isinstance(force, openmm.CMAPTorsionForce):
            if force.getNumTorsions():
                raise CannotWriteError("the force field's correction maps (CMAP)")
        elif name not in (
            *("NonbondedForce", "CustomNonbondedForce", "CustomBondForce", "CMMotionRemover"),
        ):
            raise CannotWriteError(f"a {name}")
    pairs, exclusions, charges, types, c6, c12 = _nonbonded(system, n)
    bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    springs = [term for term in springs if max(term[:2]) < n]
    return Terms(
        [term for term in springs if frozenset(term[:2]) in bonded],
        [term for term in springs if frozenset(term[:2]) not in bonded],
        [term for term in angles if max(term[:3]) < n],
        [term for term in torsions if max(term[:4]) < n and term[6]],
        [term for term in impropers if max(term[:4]) < n and term[5]],
        *(pairs, exclusions, charges, types, c6, c12),
    )


def _impropers(force: openmm.CustomTorsionForce) -> list[tuple[Any, ...]]:
    """Read CHARMM's harmonic impropers, k (theta - theta0)^2."""
    if not force.getNumTorsions():
        return []
    names = [force.getPerTorsionParameterName(k) for k in range(force.getNumPerTorsionParameters())]
    if sorted(names) != ["k", "theta0"] or not _IMPROPER.match(force.getEnergyFunction()):
        raise CannotWriteError(f"torsions of energy {force.getEnergyFunction()}")
    found = []
    for k in range(force.getNumTorsions()):
        *four, values = force.getTorsionParameters(k)
        known = dict(zip(names, values, strict=True))
        found.append((*four, known["theta0"], 2.0 * known["k"]))
    return found


def _nonbonded(system: openmm.System, n: int) -> tuple[Any, ...]:
    """Return pairs, exclusions, charges, types, C6 and C12; the last four of all particles."""
    forces = system.getForces()
    plain = [f for f in forces if isinstance(f, openmm.NonbondedForce)]
    tables = [f for f in forces if isinstance(f, openmm.CustomNonbondedForce)]
    if len(plain) != 1 or len(tables) > 1:
        raise CannotWriteError("several nonbonded forces")
    (nonbonded,) = plain
    if nonbonded.getNumParticleParameterOffsets() or nonbonded.getNumExceptionParameterOffsets():
        raise CannotWriteError("charges that depend on a parameter")
    particles = range(system.getNumParticles())
    if any(system.isVirtualSite(k) for k in particles):
        raise CannotWriteError("virtual sites, or water of more than three sites")
    given = np.array([bare(nonbonded.getParticleParameters(k)) for k in particles])
    charges = given[:, 0]
    fourteen: dict[frozenset[int], tuple[float, float]] = {}
    if tables:
        if given[:, 2].any():
            raise CannotWriteError("two kinds of Lennard-Jones at the same time")
        types, c6, c12 = _tabulated(tables[0], system.getNumParticles())
        fourteen = _fourteen(forces)
        _same_exclusions(nonbonded, tables[0])
    else:
        kinds, types = np.unique(given[:, 1:], axis=0, return_inverse=True)
        types = types.reshape(-1)
        sigma = 0.5 * (kinds[:, None, 0] + kinds[None, :, 0])
        epsilon = np.sqrt(kinds[:, None, 1] * kinds[None, :, 1])
        c6 = 4.0 * epsilon * sigma**6
        c12 = c6 * sigma**6
        if any(isinstance(f, openmm.CustomBondForce) and f.getNumBonds() for f in forces):
            raise CannotWriteError("a CustomBondForce")
    pairs, exclusions = [], []
    for k in range(nonbonded.getNumExceptions()):
        i, j, product, sigma, epsilon = bare(nonbonded.getExceptionParameters(k))
        one, other = fourteen.pop(frozenset((i, j)), (0.0, 0.0))
        one += 4.0 * epsilon * sigma**6
        other += 4.0 * epsilon * sigma**12
        if max(i, j) >= n:
            if product or one or other:
                raise CannotWriteError("1-4 interactions in water or ions")
            continue
        exclusions.append((i, j))
        if product or one or other:
            pairs.append((i, j, product, one, other))
    if fourteen:
        raise CannotWriteError("1-4 pairs that are not left out elsewhere")
    return pairs, exclusions, charges, types, c6, c12


def _tabulated(force: openmm.CustomNonbondedForce, particles: int) -> tuple[Any, ...]:
    """Return types, C6 and C12 of CHARMM's Lennard-Jones tables."""
    if force.getEnergyFunction() != _TABLES or force.getUseSwitchingFunction():
        raise CannotWriteError(f"nonbonded forces of energy {force.getEnergyFunction()}")
    tables = {}
    for k in range(force.getNumTabulatedFunctions()):
        size, _, values = force.getTabulatedFunction(k).getFunctionParameters()
        tables[force.getTabulatedFunctionName(k)] = np.reshape(values, (size, size)).T
    types = np.array([int(force.getParticleParameters(k)[0]) for k in range(particles)])
    return types, tables["bcoef"], tables["acoef"]


def _fourteen(forces: Sequence[openmm.Force]) -> dict[frozenset[int], tuple[float, float]]:
    """Return C6 and C12 of 1-4 pairs, which CHARMM's force fields keep in a force of their own."""
    found: dict[frozenset[int], tuple[float, float]] = {}
    for force in forces:
        if not isinstance(force, openmm.CustomBondForce) or not force.getNumBonds():
            continue
        form = _FOURTEEN.fullmatch(force.getEnergyFunction())
        if form is None:
            raise CannotWriteError(f"bonds of energy {force.getEnergyFunction()}")
        for k in range(force.getNumBonds()):
            i, j, (sigma, epsilon) = force.getBondParameters(k)
            c6 = float(form.group(1)) * epsilon * sigma**6
            found[frozenset((i, j))] = (c6, c6 * sigma**6)
    return found


def _same_exclusions(nonbonded: openmm.NonbondedForce, tables: openmm.CustomNonbondedForce) -> None:
    one = {
        frozenset(nonbonded.getExceptionParameters(k)[:2])
        for k in range(nonbonded.getNumExceptions())
    }
    other = {frozenset(tables.getExclusionParticles(k)) for k in range(tables.getNumExclusions())}
    if one != other:
        raise CannotWriteError("Coulomb and Lennard-Jones forces that leave out different pairs")


# -- the files -----------------------------------------------------------------------------------


def gromacs_topology(
    system: openmm.System, constrained: openmm.System, topology: app.Topology, n: int
) -> str:
    """Write a System of one solute, three-site water and ions as GROMACS reads it.

    `system` has a force for every bond and angle; `constrained` is the one that is run, with its
    masses, constraints and rigid water. The solute is the first `n` atoms. With ``define =
    -DFLEXIBLE`` its constrained bonds are springs. CannotWriteError for what GROMACS is not told of
    here.
    """
    terms = read_terms(system, topology, n)
    count = constrained.getNumParticles()
    masses = [constrained.getParticleMass(k).value_in_unit(unit.dalton) for k in range(count)]
    lengths = {}
    for k in range(constrained.getNumConstraints()):
        i, j, length = bare(constrained.getConstraintParameters(k))
        lengths[min(i, j), max(i, j)] = length

    def atoms(first: int, names: Sequence[str], residues: Sequence[tuple[str, str]]) -> list[str]:
        return ["[ atoms ]"] + [
            f"{k + 1} T{terms.types[first + k]} {number} {residue} {name} {k + 1} "
            f"{terms.charges[first + k]:.8f} {masses[first + k]:.6f}"
            for k, (name, (residue, number)) in enumerate(zip(names, residues, strict=True))
        ]

    lines = ["; from an OpenMM System", "[ defaults ]", "1 1 no 1.0 1.0"]
    lines += _type_lines(terms)
    solute = [atom for atom in topology.atoms() if atom.index < n]
    # Exclusions are listed, so that they are OpenMM's whatever the molecule.
    lines += ["[ moleculetype ]", "Solute 0"]
    names = [f"{atom.element.symbol}{atom.index + 1}" for atom in solute]
    residues = [(atom.residue.name, str(atom.residue.index + 1)) for atom in solute]
    lines += atoms(0, names, residues)
    lines += _solute_lines(terms, {k: v for k, v in lengths.items() if max(k) < n})
    molecules: list[list[Any]] = [["Solute", 1]]
    known: dict[str, int] = {}
    for residue in topology.residues():
        first = next(residue.atoms()).index
        if first < n:
            continue
        size = len(list(residue.atoms()))
        kind = residue.name
        if kind not in known:
            known[kind] = first
            lines += ["[ moleculetype ]", f"{kind} 0"]
            inner = [atom.name for atom in residue.atoms()]
            lines += atoms(first, inner, [(kind, "1")] * size)
            lines += _solvent_lines(kind, size, first, lengths)
        same = slice(known[kind], known[kind] + size), slice(first, first + size)
        if any(not np.array_equal(v[same[0]], v[same[1]]) for v in (terms.charges, terms.types)):
            raise CannotWriteError(f"several kinds of {kind}")
        if molecules[-1][0] == kind:
            molecules[-1][1] += 1
        else:
            molecules.append([kind, 1])
    lines += ["[ system ]", "a solute in water", "[ molecules ]"]
    lines += [f"{kind} {number}" for kind, number in molecules]
    return "\n".join(lines) + "\n"


def _type_lines(terms: Terms) -> list[str]:
    kinds = sorted({int(kind) for kind in terms.types})

    def strengths(one: int, two: int) -> str:
        return f"{terms.c6[one, two]:.10e} {terms.c12[one, two]:.10e}"

    lines = ["[ atomtypes ]"]
    lines += [f"T{kind} 0.0 0.0 A {strengths(kind, kind)}" for kind in kinds]
    lines.append("[ nonbond_params ]")
    both = itertools.combinations_with_replacement(kinds, 2)
    return lines + [f"T{one} T{two} 1 {strengths(one, two)}" for one, two in both]


def _numbers(*indices: int) -> str:
    return " ".join(str(i + 1) for i in indices)


def _solute_lines(terms: Terms, lengths: dict[tuple[int, int], float]) -> list[str]:
    """Return what a solute's molecule type holds after its atoms."""
    free, fixed = ["[ bonds ]"], ["[ bonds ]"]
    for i, j, r, k in terms.bonds:
        constrained = (min(i, j), max(i, j)) in lengths
        (fixed if constrained else free).append(f"{_numbers(i, j)} 1 {r:.8f} {k:.8f}")
    lines = [*free, "#ifdef FLEXIBLE", *fixed, "#else", "[ constraints ]"]
    lines += [f"{_numbers(*pair)} 1 {length:.8f}" for pair, length in sorted(lengths.items())]
    lines += ["#endif", "[ pairs ]"]
    # With charges of its own, so that any 1-4 scale can be told: the product, and one.
    lines += [
        f"{_numbers(i, j)} 2 1.0 {product:.10f} 1.0 {c6:.10e} {c12:.10e}"
        for i, j, product, c6, c12 in terms.pairs
    ]
    lines.append("[ angles ]")
    ends = {frozenset((i, j)): (r, k) for i, j, r, k in terms.urey_bradley}
    for i, j, k, angle, strength in terms.angles:
        spring = ends.pop(frozenset((i, k)), None)
        end = "" if spring is None else f" {spring[0]:.8f} {spring[1]:.8f}"
        kind = 1 if spring is None else 5
        lines.append(f"{_numbers(i, j, k)} {kind} {math.degrees(angle):.8f} {strength:.8f}{end}")
    if ends:
        raise CannotWriteError("Urey-Bradley terms without an angle")
    lines.append("[ dihedrals ]")
    for *four, times, angle, strength in terms.torsions:
        lines.append(f"{_numbers(*four)} 9 {math.degrees(angle):.8f} {strength:.8f} {times}")
    for *four, angle, strength in terms.impropers:
        lines.append(f"{_numbers(*four)} 2 {math.degrees(angle):.8f} {strength:.8f}")
    lines.append(PULL_MARK.strip())
    lines.append("[ exclusions ]")
    return lines + [_numbers(i, j) for i, j in terms.exclusions]


def _solvent_lines(
    kind: str, size: int, first: int, lengths: dict[tuple[int, int], float]
) -> list[str]:
    """Return what the molecule type of a water or ion holds after its atoms."""
    if size == 1:
        return []
    inner = [lengths.get((first + i, first + j)) for i, j in ((0, 1), (0, 2), (1, 2))]
    if size != 3 or None in inner or inner[0] != inner[1]:
        raise CannotWriteError(f"{kind}: neither an ion nor rigid water of three sites")
    return [
        *("[ settles ]", f"1 1 {inner[0]:.8f} {inner[2]:.8f}"),
        *("[ exclusions ]", "1 2 3", "2 1 3", "3 1 2"),
    ]


def pulled(topology: str, torsions: Sequence[Sequence[int]], goal: Any, strength: float) -> str:
    """Return a topology whose torsions are pulled by strength (1 - cos(angle - goal)).

    `topology` is from `gromacs_topology`; `goal` has an angle for each torsion, rad; `strength` is
    in kJ/mol.
    """
    lines = "".join(
        f"{_numbers(*four)} 9 {math.degrees(angle) + 180.0:.6f} {strength:.4f} 1\n"
        for four, angle in zip(torsions, goal, strict=True)
    )
    return topology.replace(PULL_MARK, lines)


def write_gro(
    path: Path, topology: app.Topology, x: NDArray[np.float64], box: NDArray[np.float64]
) -> None:
    """Write positions and box (nm) with all the digits of single precision."""
    lines = ["a solute in water", f"{len(x):5d}"]
    for atom, place in zip(topology.atoms(), x, strict=True):
        residue = atom.residue
        label = f"{(residue.index + 1) % 100000:5d}{residue.name[:5]:<5}{atom.name[:5]:>5}"
        label += f"{(atom.index + 1) % 100000:5d}"
        lines.append(label + "".join(f"{v:14.9f}" for v in place))
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    lines.append(" ".join(f"{box[i, j]:.9f}" for i, j in order))
    path.write_text("\n".join(lines) + "\n")


def index_groups(particles: int, n: int) -> str:
    """Write the groups System and Solute as GROMACS reads them."""
    text = ""
    for name, count in (("System", particles), ("Solute", n)):
        rows = [range(k, min(k + 15, count + 1)) for k in range(1, count + 1, 15)]
        text += f"[ {name} ]\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows)
    return text
