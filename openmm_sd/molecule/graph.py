"""The bond graph of a molecule: what is equivalent, near, or connected in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import networkx as nx
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .molecule import Molecule


#: Atomic number, hydrogens it carries, heavy atoms it is bonded to.
Kind = tuple[int, int, int]
RING_SWAPS: Final = 64
"""How many automorphisms of a ring are looked at for the one that moves the fewest atoms."""


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


def bond_graph(molecule: Bonded) -> nx.Graph:
    """Return atoms and bonds as a graph."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(molecule.atomic_numbers)))
    graph.add_edges_from(molecule.bonds)
    return graph


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


def atom_kinds(atomic_numbers: Sequence[int], bonds: Sequence[Sequence[int]]) -> list[Kind]:
    """Return the kind of each atom.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom.
    bonds : sequence of (int, int)
        Pairs of bonded atoms.
    """
    hydrogens = [0] * len(atomic_numbers)
    heavy = [0] * len(atomic_numbers)
    for i, j in (*bonds, *((j, i) for i, j in bonds)):
        if atomic_numbers[j] == 1:
            hydrogens[i] += 1
        else:
            heavy[i] += 1
    return list(zip(map(int, atomic_numbers), hydrogens, heavy, strict=True))


def hydrogens_of(molecule: Molecule, atom: int) -> list[int]:
    return sorted(k for k in molecule.graph()[atom] if molecule.atomic_numbers[k] == 1)


def graph_classes(atomic_numbers: Sequence[int], bonds: Sequence[Sequence[int]]) -> np.ndarray:
    """Number the kinds of atoms that a bond graph tells apart.

    Colour refinement: atoms start with their element and take up their neighbours' colours until
    nothing new appears. The numbers do not depend on the order in which atoms are listed.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom.
    bonds : sequence of (int, int)
        Pairs of bonded atoms.

    Returns
    -------
    ndarray of int, shape (N,)
        0, 1, ...; equal for equivalent atoms.
    """
    neighbours: list[list[int]] = [[] for _ in atomic_numbers]
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    colours: list[Any] = [(int(z),) for z in atomic_numbers]
    kinds = 0
    while len(set(colours)) > kinds:
        kinds = len(set(colours))
        rank = {colour: k for k, colour in enumerate(sorted(set(colours)))}
        own = [rank[colour] for colour in colours]
        colours = [(own[i], *sorted(own[j] for j in around)) for i, around in enumerate(neighbours)]
    rank = {colour: k for k, colour in enumerate(sorted(set(colours)))}
    return np.array([rank[colour] for colour in colours], dtype=np.int64)


def bond_paths(n_atoms: int, bonds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number of bonds on the shortest path, (N, N)."""
    path = np.full((n_atoms, n_atoms), n_atoms, dtype=np.int64)
    np.fill_diagonal(path, 0)
    for i, j in bonds:
        path[i, j] = path[j, i] = 1
    for k in range(n_atoms):
        np.minimum(path, path[:, k : k + 1] + path[k : k + 1], out=path)
    return path


def element_counts(graph: nx.Graph) -> Counter[int]:
    return Counter(z for _, z in graph.nodes(data="z"))


def _refine_once(
    first: nx.Graph, second: nx.Graph, one: Mapping[Any, Any], two: Mapping[Any, Any]
) -> tuple[dict[Any, int], dict[Any, int]]:
    """One round of colour refinement (Weisfeiler-Leman) with a palette common to both graphs."""
    palette: dict[Any, int] = {}
    before: dict[Any, int] = {}

    def number(colour: Any) -> int:
        return before.setdefault(colour, len(before))

    def refined(graph: nx.Graph, colours: Mapping[Any, Any]) -> dict[Any, int]:
        result = {}
        for node in graph:
            around = tuple(sorted(number(colours[k]) for k in graph[node]))
            result[node] = palette.setdefault((number(colours[node]), around), len(palette))
        return result

    return refined(first, one), refined(second, two)


def isomorphisms(
    first: nx.Graph, second: nx.Graph, one: Mapping[Any, Any], two: Mapping[Any, Any]
) -> Iterator[dict[Any, Any]]:
    """Yield the isomorphisms from one coloured graph to another.

    The colours are refined first: that settles almost every molecule by itself, and it keeps the
    search that follows from backtracking through equivalent hydrogens.
    """
    classes = -1
    while True:
        if Counter(one.values()) != Counter(two.values()):
            return
        if len(set(one.values())) == classes:
            break
        classes = len(set(one.values()))
        one, two = _refine_once(first, second, one, two)
    coloured = []
    for graph, colours in ((first, one), (second, two)):
        copy = nx.Graph()
        copy.add_nodes_from((node, {"colour": colours[node]}) for node in graph)
        copy.add_edges_from(graph.edges)
        coloured.append(copy)
    matcher = nx.algorithms.isomorphism.GraphMatcher(
        *coloured, node_match=lambda a, b: a["colour"] == b["colour"]
    )
    for mapping in matcher.isomorphisms_iter():
        yield dict(mapping)
