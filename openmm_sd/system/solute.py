"""Which atoms of a system a model moves.

The solute is found by its bond graph and elements alone: names, atom order, residues and chains are
the user's business. What cannot be moved safely by a learned jump (virtual sites, frozen atoms,
constraints beyond X-H) is refused here, before any Context exists.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openmm
from openmm import unit

from ..molecule.matching import Copy, closest_mismatch, find_copies
from ..molecule.molecule import Molecule
from ..molecule.terms import ForceFieldTerms, Row
from ..molecule.topology import TopologyTable, formula, read_topology

_WATER: Final = Counter({1: 2, 8: 1})
#: Of a bond whose length is constrained, kJ/mol/nm^2.
_X_H_STIFFNESS: Final = 3e5
_LISTED: Final = 8
"""How many kinds of molecules or copies an error message lists."""


class NoSoluteError(ValueError):
    """A Topology does not hold what a model knows; `found` says what there is instead."""

    def __init__(self, wanted: str, found: str) -> None:
        super().__init__(f"{wanted}; {found}")
        self.found = found


@dataclass(frozen=True)
class Solute:
    """The atoms of a System that are a model's molecule.

    ``particles[i]`` is the System's particle for atom i of the molecule. Constraints are (heavy
    atom, hydrogen, nm), both in the molecule's numbering. The description is a line for people.
    """

    molecule: Molecule
    particles: tuple[int, ...]
    constraints: tuple[tuple[int, int, float], ...]
    description: str


def find_solute(
    molecules: Molecule | Sequence[Molecule],
    topology: Any,
    system: openmm.System | None = None,
    solute: int | str | Sequence[int] | None = None,
) -> Solute:
    """Find the molecule a model knows in a Topology.

    Without a System there are no `constraints` in the answer.

    Parameters
    ----------
    molecules : Molecule or sequence of Molecule
        What the model knows (``ScoreModel.molecules``).
    topology : openmm.app.Topology or mdtraj.Topology
        The whole system, with bonds and hydrogens. Atom order, names, residues and chains are free.
    system : openmm.System, optional
        Made from that Topology; checked for what a jump cannot handle, and asked for its
        constraints.
    solute : int, str or sequence of int, optional
        Needed when the Topology holds several copies: the number of the copy in Topology order
        (from 0), the id of the chain it is in, or the indices of all its atoms.

    Raises
    ------
    ValueError
        If there is no copy or no unique one, with what was found instead; if the System does not
        fit the Topology; if the solute has virtual sites, massless atoms or constraints other than
        one a hydrogen with its heavy atom.
    """
    known = (molecules,) if isinstance(molecules, Molecule) else tuple(molecules)
    if not known or not all(isinstance(molecule, Molecule) for molecule in known):
        raise ValueError(f"molecules must be one or more Molecule objects, got {molecules!r}")
    if system is not None and not isinstance(system, openmm.System):
        raise ValueError(f"system must be an openmm.System, got {type(system).__name__}")
    table = read_topology(topology)
    copies = find_copies(known, table)
    if not copies:
        names = " or ".join(f"{molecule.name} ({molecule.formula})" for molecule in known)
        raise NoSoluteError(
            f"topology does not contain {names}, which is what the model knows",
            _nothing_found(known, table),
        )
    chosen = _choose(copies, table, solute)
    _refuse_extra_particles(chosen, table)
    constraints: tuple[tuple[int, int, float], ...] = ()
    if system is not None:
        constraints = _checked_system(chosen, table, system)
    description = (
        f"{chosen.molecule.name} ({chosen.molecule.formula}), {chosen.molecule.n_atoms} atoms: "
        f"{_describe(chosen, table)}"
    )
    return Solute(chosen.molecule, chosen.mapping, constraints, description)


def torsion_terms(system: openmm.System, atoms: Sequence[int]) -> list[list[float]]:
    """Return the periodic torsions of a solute whose particles are given in the order of its atoms.

    Each has four atoms, how often the term repeats in a turn (n), its phase (rad) and its strength
    k (kJ/mol) in k (1 + cos(n phi - phase)). Terms without strength are left out.
    """
    number = {int(particle): place for place, particle in enumerate(atoms)}
    found = []
    for force in system.getForces():
        if not isinstance(force, openmm.PeriodicTorsionForce):
            continue
        for k in range(force.getNumTorsions()):
            *four, order, phase, strength = force.getTorsionParameters(k)
            height = strength.value_in_unit(unit.kilojoule_per_mole)
            if height and all(atom in number for atom in four):
                places = [number[atom] for atom in four]
                found.append([*places, order, phase.value_in_unit(unit.radian), height])
    return found


def force_field_terms(system: openmm.System, atoms: Sequence[int]) -> ForceFieldTerms:
    """Return what the force field says of a solute, in the numbering of `torsion_terms`.

    A constrained bond whose term the System does not hold gets the stiffness of a C-H bond.
    """
    number = {int(particle): place for place, particle in enumerate(atoms)}
    bonds: list[Row] = []
    angles: list[Row] = []
    nonbonded: dict[int, list[float]] = {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            rows = map(force.getBondParameters, range(force.getNumBonds()))
            bonds += _in_numbers(rows, 2, number)
        elif isinstance(force, openmm.HarmonicAngleForce):
            rows = map(force.getAngleParameters, range(force.getNumAngles()))
            angles += _in_numbers(rows, 3, number)
        elif isinstance(force, openmm.NonbondedForce):
            nonbonded = {
                place: [value._value for value in force.getParticleParameters(particle)]
                for particle, place in number.items()
            }
    if not nonbonded:
        raise ValueError("the System has no NonbondedForce, which would say the atoms' charges")
    known = {frozenset(row[:2]) for row in bonds}
    constrained = []
    for k in range(system.getNumConstraints()):
        *pair, length = system.getConstraintParameters(k)
        if all(atom in number for atom in pair):
            i, j = (number[atom] for atom in pair)
            constrained.append((i, j))
            if frozenset((i, j)) not in known:
                bonds.append((i, j, length._value, _X_H_STIFFNESS))
    charges, sigmas, epsilons = zip(*(nonbonded[k] for k in range(len(number))), strict=True)
    torsions = tuple(tuple(row) for row in torsion_terms(system, atoms))
    return ForceFieldTerms(
        charges, sigmas, epsilons, tuple(bonds), tuple(angles), torsions, tuple(constrained)
    )


def _in_numbers(rows: Iterable[list[Any]], n: int, number: dict[int, int]) -> list[Row]:
    """Return the terms of `n` atoms each that are the solute's alone, with bare parameters."""
    return [
        (*(number[k] for k in row[:n]), *(value._value for value in row[n:]))
        for row in rows
        if all(k in number for k in row[:n])
    ]


def _choose(copies: Sequence[Copy], table: TopologyTable, solute: Any) -> Copy:
    if solute is None:
        if len(copies) == 1:
            return copies[0]
        raise ValueError(
            f"topology holds {len(copies)} copies of the solute: {_listing(copies, table)}; choose "
            "one with solute = its number, its chain id, or the list of its atom indices"
        )
    if isinstance(solute, str):
        fitting = [c for c in copies if solute in {table.chain_ids[i] for i in c.atoms}]
        if len(fitting) == 1:
            return fitting[0]
        found = f"holds {len(fitting)} copies of the solute" if fitting else "holds no copy of it"
        if solute not in table.chain_ids:
            found = "does not exist"
        raise ValueError(
            f"solute: chain {solute!r} {found}; copies: {_listing(fitting or copies, table)}"
        )
    try:
        number = None if isinstance(solute, bool) else operator.index(solute)
    except TypeError:
        number = None
    if number is not None:
        if 0 <= number < len(copies):
            return copies[number]
        raise ValueError(
            f"solute: there is no copy {number}, allowed are 0 to {len(copies) - 1}: "
            f"{_listing(copies, table)}"
        )
    if isinstance(solute, bool) or not isinstance(solute, Iterable):
        raise ValueError(
            "solute must be the number of a copy, a chain id or a list of atom indices, "
            f"got {solute!r}"
        )
    try:
        wanted = {operator.index(atom) for atom in solute}
    except TypeError:
        raise ValueError("solute: a list must hold atom indices (integers)") from None
    outside = sorted(atom for atom in wanted if not 0 <= atom < table.n_atoms)
    if outside:
        raise ValueError(
            f"solute: there is no atom {outside[0]}, allowed are 0 to {table.n_atoms - 1}"
        )
    for one in copies:
        if wanted == set(one.atoms):
            return one
    raise ValueError(
        f"solute: the {len(wanted)} atoms given are not exactly those of one copy; copies: "
        f"{_listing(copies, table)}"
    )


def _listing(copies: Sequence[Copy], table: TopologyTable) -> str:
    several = len({copy.molecule.name for copy in copies}) > 1
    return "; ".join(
        f"{k}: {copy.molecule.name + ', ' if several else ''}{_describe(copy, table)}"
        for k, copy in enumerate(copies)
    )


def _describe(copy: Copy, table: TopologyTable) -> str:
    chains = list(dict.fromkeys(table.chain_ids[i] for i in copy.atoms))
    residues = list(
        dict.fromkeys(
            table.residue(i) for i in sorted(copy.atoms, key=lambda i: table.residue_indices[i])
        )
    )
    span = residues[0] if len(residues) == 1 else f"{residues[0]} to {residues[-1]}"
    chain = f"chain{'s' if len(chains) > 1 else ''} {', '.join(chains)}"
    return f"{chain}, {span}, atoms {copy.atoms[0]} to {copy.atoms[-1]}"


def _nothing_found(known: Sequence[Molecule], table: TopologyTable) -> str:
    """Say what is there, and what comes closest."""
    # Particles without an element (the M site of a TIP4P water) are no part of any molecule.
    components = [
        atoms for atoms in table.components() if len(atoms) > 1 or table.atomic_numbers[atoms[0]]
    ]
    if not components:
        return "it has no atoms"
    if not table.bonds:
        return (
            "the Topology has no bonds, and the solute is found by its bonds; call "
            "topology.createStandardBonds(), add CONECT records to the PDB file, or use "
            "Topology.addBond"
        )
    kinds: dict[tuple[tuple[int, int], ...], list[list[int]]] = {}
    waters = 0
    for atoms in components:
        elements = table.elements(atoms)
        if Counter({z: k for z, k in elements.items() if z}) == _WATER:
            waters += 1
        else:
            kinds.setdefault(tuple(sorted(elements.items())), []).append(atoms)
    present = [
        formula(dict(kind)) + (f" ({len(found)} of them)" if len(found) > 1 else "")
        for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1][0]))
    ]
    listing = ", ".join(present[:_LISTED]) + (", ..." if len(present) > _LISTED else "")
    message = f"besides {waters} waters it contains {listing or 'nothing'}"
    pieces = _missing_bonds(known, table, kinds.values())
    if pieces:
        return f"{message}; {pieces}"
    molecule, atoms = min(
        # an ion is never the closest to anything worth a word
        ((m, found[0]) for m in known for found in kinds.values() if len(found[0]) > 1),
        key=lambda pair: _distance(pair[0], table.elements(pair[1])),
        default=(known[0], []),
    )
    if not atoms:
        return message
    reason = closest_mismatch(molecule, table.graph(atoms))
    name = f" to {molecule.name}" if len(known) > 1 else ""
    where = _describe(Copy(molecule, tuple(atoms), ()), table)
    return f"{message}; the closest{name}, {where}, {reason}"


def _distance(molecule: Molecule, elements: Counter[int]) -> tuple[int, int]:
    """Order candidates: by their heavy atoms first, then by their hydrogens."""
    wanted = Counter(molecule.atomic_numbers)
    difference = {z: abs(wanted[z] - elements[z]) for z in wanted | elements}
    return sum(k for z, k in difference.items() if z != 1), difference.get(1, 0)


def _missing_bonds(
    known: Sequence[Molecule], table: TopologyTable, kinds: Iterable[Sequence[Sequence[int]]]
) -> str:
    """Recognise a chain or residue that has the right atoms but falls into pieces."""
    groups: dict[tuple[str, int], list[Sequence[int]]] = {}
    for found in kinds:
        for atoms in found:
            chain = table.chain_indices[atoms[0]]
            groups.setdefault(("chain", chain), []).append(atoms)
            groups.setdefault(("residue", table.residue_indices[atoms[0]]), []).append(atoms)
    for (kind, _), parts in groups.items():
        if len(parts) < 2:
            continue
        elements = table.elements(i for atoms in parts for i in atoms)
        for molecule in known:
            if Counter({z: k for z, k in elements.items() if z}) == Counter(
                molecule.atomic_numbers
            ):
                first = parts[0][0]
                label = (
                    f"chain {table.chain_ids[first]}"
                    if kind == "chain"
                    else f"residue {table.residue(first)}"
                )
                return (
                    f"{label} has the right elements for {molecule.name} but falls into "
                    f"{len(parts)} unconnected pieces: bonds are missing from the Topology (CONECT "
                    "records, residue definitions, or Topology.addBond)"
                )
    return ""


def _refuse_extra_particles(copy: Copy, table: TopologyTable) -> None:
    """Refuse lone pairs and Drude particles: a jump would leave them behind."""
    if all(table.atomic_numbers):
        return
    # The residue is the only link there is: extra particles have no bonds. A residue that the
    # solute shares with water (some files have one for everything) says nothing.
    residues = {table.residue_indices[i] for i in copy.atoms}
    own = set(copy.atoms)
    extra = []
    for i, z in enumerate(table.atomic_numbers):
        if table.residue_indices[i] not in residues or i in own:
            continue
        if z:
            residues.discard(table.residue_indices[i])
        else:
            extra.append(i)
    for i in extra:
        if table.residue_indices[i] in residues:
            raise ValueError(
                f"topology: {table.label(i)} is a virtual site or Drude particle of the solute; "
                "models work on solutes made of atoms only"
            )


def _checked_system(
    copy: Copy, table: TopologyTable, system: openmm.System
) -> tuple[tuple[int, int, float], ...]:
    """Check that a jump can handle the solute in this System; return its X-H constraints."""
    if system.getNumParticles() != table.n_atoms:
        raise ValueError(
            f"system has {system.getNumParticles()} particles, the topology {table.n_atoms} atoms: "
            "both must describe the same system (virtual sites: Modeller.addExtraParticles)"
        )
    index = {particle: i for i, particle in enumerate(copy.mapping)}
    for particle in range(system.getNumParticles()):
        if not system.isVirtualSite(particle):
            continue
        site = system.getVirtualSite(particle)
        parents = [site.getParticle(k) for k in range(site.getNumParticles())]
        if particle in index or any(parent in index for parent in parents):
            raise ValueError(
                f"system: {table.label(particle)} is a virtual site of the solute; models work on "
                "solutes without virtual sites"
            )
    for particle in sorted(index):
        if system.getParticleMass(particle).value_in_unit(unit.dalton) <= 0:
            raise ValueError(
                f"system: {table.label(particle)} of the solute has zero mass and cannot move; "
                "give it a mass, or restrain it with a force instead"
            )
    return _checked_constraints(copy, table, system, index)


def _checked_constraints(
    copy: Copy, table: TopologyTable, system: openmm.System, index: dict[int, int]
) -> tuple[tuple[int, int, float], ...]:
    advice = "make the System with constraints=HBonds or constraints=None"
    bonds = set(copy.molecule.bonds)
    numbers = copy.molecule.atomic_numbers
    found: dict[int, tuple[int, int, float]] = {}
    for k in range(system.getNumConstraints()):
        one, two, distance = system.getConstraintParameters(k)
        if one not in index and two not in index:
            continue
        between = f"system: constraint {k} between {table.label(one)} and {table.label(two)}"
        if one not in index or two not in index:
            raise ValueError(f"{between} ties the solute to something else; remove it")
        i, j = index[one], index[two]
        if numbers[i] == 1:
            i, j = j, i
        if numbers[i] == 1 or numbers[j] != 1 or (min(i, j), max(i, j)) not in bonds:
            what = (
                "two heavy atoms (AllBonds?)" if numbers[j] != 1 else "atoms not bonded (HAngles?)"
            )
            raise ValueError(f"{between} joins {what}, which a jump cannot keep; {advice}")
        if j in found:
            raise ValueError(f"{between} is the second one of that hydrogen; {advice}")
        found[j] = (i, j, float(distance.value_in_unit(unit.nanometer)))
    return tuple(found[j] for j in sorted(found))
