"""Bonds, angles, torsions and contacts of a molecule, from its bond graph and its frames.

A molecule is anything with `atomic_numbers`, `bonds`, `atom_names` and `residue_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray


class Bonded(Protocol):
    """What this module asks of a molecule."""

    @property
    def atomic_numbers(self) -> tuple[int, ...]:
        """Atomic number of every atom."""

    @property
    def bonds(self) -> tuple[tuple[int, int], ...]:
        """Pairs of atoms."""

    @property
    def atom_names(self) -> tuple[str, ...]:
        """Names of the atoms."""

    @property
    def residue_ids(self) -> tuple[str, ...]:
        """Residue of every atom."""


@dataclass(frozen=True)
class Torsion:
    """Four atoms in a row, with a name for people."""

    name: str
    atoms: tuple[int, int, int, int]


def bond_graph(molecule: Bonded) -> nx.Graph:
    """Return atoms and bonds as a graph."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(molecule.atomic_numbers)))
    graph.add_edges_from(molecule.bonds)
    return graph


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
    bridges = {frozenset(edge) for edge in nx.bridges(graph)}
    for hydrogens in (False, True):
        for i, j in sorted(molecule.bonds):
            bond = frozenset((i, j))
            if z[i] == 1 or z[j] == 1 or bond in taken or bond not in bridges:
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


def neighbouring_pairs(chosen: Sequence[Torsion]) -> list[tuple[int, int]]:
    """Return the pairs of torsions whose middle bonds share an atom."""
    return [
        (i, j)
        for i in range(len(chosen))
        for j in range(i + 1, len(chosen))
        if set(chosen[i].atoms[1:3]) & set(chosen[j].atoms[1:3])
    ]


def heavy_bonds(molecule: Bonded) -> NDArray[np.int64]:
    """Return the bonds between heavy atoms, (M, 2)."""
    z = molecule.atomic_numbers
    rows = [bond for bond in sorted(molecule.bonds) if z[bond[0]] != 1 and z[bond[1]] != 1]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def heavy_angles(molecule: Bonded) -> NDArray[np.int64]:
    """Return the angles between bonds of heavy atoms, (M, 3) with the vertex in the middle."""
    graph, z = bond_graph(molecule), molecule.atomic_numbers
    rows = []
    for vertex in range(len(z)):
        ends = sorted(a for a in graph[vertex] if z[a] != 1) if z[vertex] != 1 else []
        rows += [(a, vertex, b) for i, a in enumerate(ends) for b in ends[i + 1 :]]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def distant_pairs(molecule: Bonded, hydrogens: bool = False) -> NDArray[np.int64]:
    """Return the pairs of atoms that are three bonds apart or more, (M, 2).

    Parameters
    ----------
    molecule : Bonded
        What has atoms and bonds.
    hydrogens : bool
        Also pairs with a hydrogen; by default those of two heavy atoms only.
    """
    graph, z = bond_graph(molecule), molecule.atomic_numbers
    near = {i: nx.single_source_shortest_path_length(graph, i, cutoff=2) for i in graph}
    atoms = [i for i in graph if hydrogens or z[i] != 1]
    rows = [(i, j) for i in atoms for j in atoms if i < j and j not in near[i]]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def distances(frames: ArrayLike, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return distances, (T, M), in the unit of the frames.

    Parameters
    ----------
    frames : array_like
        (T, N, 3).
    pairs : ndarray
        (M, 2) atoms.
    """
    x = np.asarray(frames, dtype=np.float64)
    return np.linalg.norm(x[:, pairs[:, 0]] - x[:, pairs[:, 1]], axis=-1)


def angles(frames: ArrayLike, triples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return angles, (T, M) in degrees.

    Parameters
    ----------
    frames : array_like
        (T, N, 3).
    triples : ndarray
        (M, 3) atoms, the vertex in the middle.
    """
    x = np.asarray(frames, dtype=np.float64)
    vertex = x[:, triples[:, 1]]
    a, b = x[:, triples[:, 0]] - vertex, x[:, triples[:, 2]] - vertex
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.rad2deg(np.arctan2(sine, (a * b).sum(-1)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Means and widths of several lengths or angles in two sets of frames.

    Attributes
    ----------
    mean, reference_mean : ndarray
        (M,).
    shift, shift_error : ndarray
        (M,) mean minus reference mean.
    width_ratio, width_ratio_error : ndarray
        (M,) standard deviation over that of the reference.
    """

    mean: NDArray[np.float64]
    reference_mean: NDArray[np.float64]
    shift: NDArray[np.float64]
    shift_error: NDArray[np.float64]
    width_ratio: NDArray[np.float64]
    width_ratio_error: NDArray[np.float64]


def compare(values: NDArray[Any], reference: NDArray[Any], blocks: int = 20) -> Comparison:
    """Compare means and widths.

    Parameters
    ----------
    values, reference : ndarray
        (T, M); errors come from blocks of neighbouring frames, left out one at a time.
    blocks : int
        How many blocks.

    Returns
    -------
    Comparison
    """
    (mean, width), many = _moments(values, blocks)
    (other_mean, other_width), other_many = _moments(reference, blocks)
    error, other = _jackknife(many), _jackknife(other_many)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = width / other_width
        relative = np.hypot(error[1] / width, other[1] / other_width)
    return Comparison(
        mean, other_mean, mean - other_mean, np.hypot(error[0], other[0]), ratio, ratio * relative
    )


def _moments(values: NDArray[Any], blocks: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation, and the same with each block left out."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(blocks, len(values)))
    number = np.array([len(part) for part in parts], dtype=np.float64)[:, None]
    # Sums about a centre close by: the variance is a small difference otherwise.
    centre = parts[0].mean(0)
    sums = np.array([(part - centre).sum(0) for part in parts])
    squares = np.array([((part - centre) ** 2).sum(0) for part in parts])

    def moments(n: Any, s: Any, q: Any) -> NDArray[Any]:
        mean = s / n
        return np.array([centre + mean, np.sqrt(np.maximum(q / n - mean**2, 0.0))])

    whole = moments(number.sum(), sums.sum(0), squares.sum(0))
    if len(parts) < 2:
        return whole, np.full((2, 1, values.shape[1]), np.nan)
    rest = moments(number.sum() - number, sums.sum(0) - sums, squares.sum(0) - squares)
    return whole, rest


def _jackknife(many: NDArray[np.float64]) -> NDArray[np.float64]:
    count = many.shape[1]
    return np.sqrt((count - 1) * many.var(axis=1))


def jackknife_mean(values: NDArray[Any], blocks: int = 20) -> tuple[float, float]:
    """Return the mean of (T,) values and its error from blocks of neighbouring values."""
    whole, many = _moments(np.asarray(values)[:, None], blocks)
    return float(whole[0, 0]), float(_jackknife(many)[0, 0])
