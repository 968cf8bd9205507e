"""Torsions of a molecule: which there are, which turn slowly, and their angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .graph import Bonded, bond_graph, branch, graph_classes
from .molecule import Molecule

TorsionAtoms = tuple[int, int, int, int]


@dataclass(frozen=True)
class Torsion:
    """Four atoms in a row, with a name for people."""

    name: str
    atoms: tuple[int, int, int, int]


def backbone_torsions(molecule: Bonded) -> list[tuple[Torsion, Torsion]]:
    """Return the (phi, psi) of every amino acid that has both.

    Found by bonds and elements, not by names: a carbon between an amide's nitrogen and another
    amide's carbonyl carbon.
    """
    graph, z = bond_graph(molecule), molecule.atomic_numbers

    def neighbours(atom: int, element: int) -> list[int]:
        return sorted(i for i in graph[atom] if z[i] == element)

    def carbonyl(atom: int) -> bool:
        oxygens = neighbours(atom, 8)
        return z[atom] == 6 and len(graph[atom]) == 3 and any(len(graph[o]) == 1 for o in oxygens)

    found = []
    for alpha in range(len(z)):
        if z[alpha] != 6 or len(graph[alpha]) != 4:
            continue
        for nitrogen in neighbours(alpha, 7):
            before = [c for c in neighbours(nitrogen, 6) if c != alpha and carbonyl(c)]
            for carbon in filter(carbonyl, neighbours(alpha, 6)):
                after = neighbours(carbon, 7)
                if before and after:
                    found.append(
                        (
                            Torsion("phi", (before[0], nitrogen, alpha, carbon)),
                            Torsion("psi", (nitrogen, alpha, carbon, after[0])),
                        )
                    )
    if len(found) < 2:
        return found
    return [
        (
            Torsion(f"phi {molecule.residue_ids[phi.atoms[2]]}", phi.atoms),
            Torsion(f"psi {molecule.residue_ids[psi.atoms[1]]}", psi.atoms),
        )
        for phi, psi in found
    ]


def torsions(molecule: Bonded) -> list[Torsion]:
    """Return one torsion about every bond between heavy atoms that can turn.

    A bond in a ring is left out, and so is one with nothing but hydrogens on a side, unless the
    molecule has no other. The torsions phi and psi of amino acids come first, then the others in
    the order of their atoms.
    """
    graph, z = bond_graph(molecule), molecule.atomic_numbers
    result = [torsion for pair in backbone_torsions(molecule) for torsion in pair]
    taken = {frozenset(torsion.atoms[1:3]) for torsion in result}
    for hydrogens in (False, True):
        for i, j in _turnable(molecule, graph):
            bond = frozenset((i, j))
            if bond in taken:
                continue
            ends = []
            for atom, other in ((i, j), (j, i)):
                outer = [a for a in graph[atom] if a != other and (hydrogens or z[a] != 1)]
                ends.append(min(outer, key=lambda a: (z[a] == 1, a), default=None))
            if ends[0] is not None and ends[1] is not None:
                taken.add(bond)
                atoms = (ends[0], i, j, ends[1])
                result.append(Torsion("-".join(molecule.atom_names[a] for a in atoms), atoms))
        if result:
            break
    names = [torsion.name for torsion in result]
    return [
        Torsion(f"{t.name} ({t.atoms[1]}, {t.atoms[2]})", t.atoms) if names.count(t.name) > 1 else t
        for t in result
    ]


def _turnable(molecule: Bonded, graph: nx.Graph) -> list[tuple[int, int]]:
    """Return the bonds between heavy atoms that are in no ring, in order."""
    z = molecule.atomic_numbers
    bridges = {frozenset(edge) for edge in nx.bridges(graph)}
    return [
        (i, j)
        for i, j in sorted(molecule.bonds)
        if z[i] != 1 and z[j] != 1 and frozenset((i, j)) in bridges
    ]


def neighbouring_pairs(chosen: Sequence[Torsion]) -> list[tuple[int, int]]:
    """Return the pairs of torsions whose middle bonds share an atom."""
    middle = [set(torsion.atoms[1:3]) for torsion in chosen]
    return [(i, j) for i, j in combinations(range(len(chosen)), 2) if middle[i] & middle[j]]


def dihedral(positions: ArrayLike, indices: Sequence[int]) -> NDArray[np.float64]:
    """Return a dihedral angle of each frame.

    Parameters
    ----------
    positions : array_like
        (..., N, 3), any unit of length.
    indices : sequence of int
        Four atoms.

    Returns
    -------
    ndarray
        (...,) radians, IUPAC sign: positive when, looking along the middle bond, the far bond is
        turned clockwise from the near one.
    """
    x = np.asarray(positions, dtype=np.float64)
    a, b, c, d = (x[..., i, :] for i in indices)
    axis = c - b
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    near, far = a - b, d - c
    near = near - (near * axis).sum(-1, keepdims=True) * axis
    far = far - (far * axis).sum(-1, keepdims=True) * axis
    return np.arctan2((np.cross(axis, near) * far).sum(-1), (near * far).sum(-1))


def slow_torsions(molecule: Molecule) -> list[TorsionAtoms]:
    """Find the torsions about bonds that turn freely and change the shape of the molecule.

    One a bond, in the order of the bonds; its ends are the larger branches. For a peptide these are
    phi, psi and the side chain's chi angles.

    A bond counts if it is in no ring, if both its atoms carry another heavy atom, and if one of
    them has four neighbours. The last leaves out double bonds, amides, esters' C-O bonds,
    conjugated and aromatic ones: neither of their atoms is tetrahedral. It also leaves out some
    that turn, such as those between two rings or two sulphur atoms. Ends like -CF3 or tert-butyl,
    which look the same after a third of a turn, are left out too.
    """
    graph = molecule.graph()
    classes = graph_classes(molecule.atomic_numbers, molecule.bonds).tolist()
    found = []
    for i, j in _turnable(molecule, graph):
        if 4 not in (len(graph[i]), len(graph[j])):
            continue
        ends = [_end(graph, classes, a, b) for a, b in ((i, j), (j, i))]
        if ends[0] is not None and ends[1] is not None:
            found.append((ends[0], i, j, ends[1]))
    return found


def _end(graph: nx.Graph, classes: Sequence[int], atom: int, other: int) -> int | None:
    """Return the neighbour that defines the torsion on the side of `atom`; None if none does."""
    around = [k for k in sorted(graph[atom]) if k != other]
    heavy = [k for k in around if graph.nodes[k]["z"] != 1]
    if not heavy:
        return None
    if len(around) == 3 and len({classes[k] for k in around}) == 1:
        return None
    if len(around) == 1 and graph.nodes[atom]["z"] == 6:
        return None  # straight, as in a nitrile: there is no angle to turn

    def size(k: int) -> int:
        return sum(graph.nodes[n]["z"] != 1 for n in branch(graph, k, atom))

    return max(heavy, key=lambda k: (size(k), -k))


def parse_torsion(text: str, molecule: Molecule) -> TorsionAtoms:
    """Read a torsion as people write it: four atoms with commas between them.

    Each is an index from 0, a name (``CA``), or residue and name (``ALA:CA``, ``2:CA`` or
    ``ALA2:CA``). ValueError if an atom is missing or not unique, or the four are not bonded in a
    row.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise ValueError(f"torsion: {text!r} must be four atoms with commas between them")
    a, b, c, d = (_atom(part, molecule) for part in parts)
    bonds = {frozenset(bond) for bond in molecule.bonds}
    for one, two in ((a, b), (b, c), (c, d)):
        if frozenset((one, two)) not in bonds:
            names = molecule.atom_names
            raise ValueError(
                f"torsion: {text!r}: atoms {one} ({names[one]}) and {two} ({names[two]}) are not "
                "bonded"
            )
    if len({a, b, c, d}) < 4:
        raise ValueError(f"torsion: {text!r} must be four different atoms")
    return a, b, c, d


def _atom(text: str, molecule: Molecule) -> int:
    if text.isdigit():
        if int(text) >= molecule.n_atoms:
            raise ValueError(
                f"torsion: there is no atom {text}, allowed are 0 to {molecule.n_atoms - 1}"
            )
        return int(text)
    residue, _, name = text.rpartition(":")
    found = [
        i
        for i in range(molecule.n_atoms)
        if molecule.atom_names[i] == name
        and residue
        in (
            "",
            molecule.residue_names[i],
            molecule.residue_ids[i],
            molecule.residue_names[i] + molecule.residue_ids[i],
        )
    ]
    if len(found) != 1:
        what = "no atom is" if not found else f"{len(found)} atoms are"
        raise ValueError(f"torsion: {what} named {text!r}; write RESIDUE:NAME or the atom's index")
    return found[0]


def check_torsions(torsions: Sequence[TorsionAtoms], seeded_runs: int) -> None:
    """Refuse seeded runs without a torsion to seed."""
    if seeded_runs and not torsions:
        raise ValueError(
            "no torsion of the molecule turns heavy atoms, so seeded runs have nothing to start "
            "all over: make plain runs only (leave --seeded out), or name a torsion (--torsion)"
        )
