"""The bond graph of a molecule: what is equivalent, near, or connected in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    def atomic_numbers(self) -> tuple[int, ...]: ...

    @property
    def bonds(self) -> tuple[tuple[int, int], ...]: ...

    @property
    def atom_names(self) -> tuple[str, ...]: ...

    @property
    def residue_ids(self) -> tuple[str, ...]: ...


def neighbours_of(n_atoms: int, bonds: Iterable[Sequence[int]]) -> list[list[int]]:
    """Return the atoms that each atom is bonded to, in the order of the bonds."""
    neighbours: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    return neighbours


def branch(neighbours: Mapping[int, Any] | Sequence[Any], atom: int, away: int) -> set[int]:
    """Return the atoms that are reached from one without passing another."""
    seen, todo = {atom, away}, [atom]
    while todo:
        new = [k for k in neighbours[todo.pop()] if k not in seen]
        seen.update(new)
        todo += new
    return seen - {away}


def spanning_edges(n_atoms: int, bonds: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Return bonds by which every atom is reached once, outwards from the first of each piece.

    Each is where one comes from and the atom that is reached; nearer atoms before further ones.
    """
    neighbours = neighbours_of(n_atoms, bonds)
    edges: list[tuple[int, int]] = []
    seen = [False] * n_atoms
    for first in range(n_atoms):
        if seen[first]:
            continue
        seen[first] = True
        reached = [first]
        for here in reached:
            for there in neighbours[here]:
                if not seen[there]:
                    seen[there] = True
                    reached.append(there)
                    edges.append((here, there))
    return edges


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
    """Return the pairs of heavy atoms that are three bonds apart or more, (M, 2).

    With `hydrogens` also pairs with a hydrogen.
    """
    graph, z = bond_graph(molecule), molecule.atomic_numbers
    near = {i: nx.single_source_shortest_path_length(graph, i, cutoff=2) for i in graph}
    atoms = [i for i in graph if hydrogens or z[i] != 1]
    rows = [(i, j) for i in atoms for j in atoms if i < j and j not in near[i]]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def atom_kinds(atomic_numbers: Sequence[int], bonds: Sequence[Sequence[int]]) -> list[Kind]:
    """Return the kind of each atom."""
    hydrogens = [0] * len(atomic_numbers)
    heavy = [0] * len(atomic_numbers)
    for i, j in (*bonds, *((j, i) for i, j in bonds)):
        if atomic_numbers[j] == 1:
            hydrogens[i] += 1
        else:
            heavy[i] += 1
    return list(zip(map(int, atomic_numbers), hydrogens, heavy, strict=True))


def hydrogens_of(molecule: Molecule, atom: int) -> list[int]:
    """Return the hydrogens on an atom, ascending."""
    return sorted(k for k in molecule.graph()[atom] if molecule.atomic_numbers[k] == 1)


def refined(
    graphs: Sequence[Mapping[Any, Iterable[Any]]], colours: Sequence[Mapping[Any, int]]
) -> list[dict[Any, int]]:
    """One round of colour refinement (Weisfeiler-Leman) with a palette common to all graphs.

    A graph maps each node to its neighbours, `colours` to its colour. The new colours are 0, 1, ...
    and do not depend on the order of nodes.
    """
    signs = [
        {node: (own[node], tuple(sorted(own[k] for k in graph[node]))) for node in graph}
        for graph, own in zip(graphs, colours, strict=True)
    ]
    palette = sorted({sign for some in signs for sign in some.values()})
    rank = {sign: k for k, sign in enumerate(palette)}
    return [{node: rank[sign] for node, sign in some.items()} for some in signs]


def graph_classes(
    atomic_numbers: Sequence[int], bonds: Sequence[Sequence[int]]
) -> NDArray[np.int64]:
    """Number the kinds of atoms that a bond graph tells apart: (N,), equal for equivalent atoms.

    The numbers are 0, 1, and so on. Atoms start with their element and are refined until nothing
    new appears.
    """
    neighbours = dict(enumerate(neighbours_of(len(atomic_numbers), bonds)))
    colours = {atom: int(z) for atom, z in enumerate(atomic_numbers)}
    kinds = 0
    while len(set(colours.values())) > kinds:
        kinds = len(set(colours.values()))
        (colours,) = refined([neighbours], [colours])
    return np.array(list(colours.values()), dtype=np.int64)


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
    """Count the nodes of a bond graph by atomic number."""
    return Counter(z for _, z in graph.nodes(data="z"))


def isomorphisms(
    first: nx.Graph, second: nx.Graph, one: Mapping[Any, Any], two: Mapping[Any, Any]
) -> Iterator[dict[Any, Any]]:
    """Yield the isomorphisms from one coloured graph to another.

    The colours are refined first: that settles almost every molecule by itself, and it keeps the
    search that follows from backtracking through equivalent hydrogens.
    """
    palette: dict[Any, int] = {}
    colours = [
        {node: palette.setdefault(colour, len(palette)) for node, colour in own.items()}
        for own in (one, two)
    ]
    classes = 0
    while True:
        ours, theirs = (Counter(own.values()) for own in colours)
        if ours != theirs:
            return
        if len(ours) == classes:
            break
        classes = len(ours)
        colours = refined((first, second), colours)
    coloured = []
    for graph, own in zip((first, second), colours, strict=True):
        copy = nx.Graph()
        copy.add_nodes_from((node, {"colour": own[node]}) for node in graph)
        copy.add_edges_from(graph.edges)
        coloured.append(copy)
    matcher = nx.algorithms.isomorphism.GraphMatcher(
        *coloured, node_match=lambda a, b: a["colour"] == b["colour"]
    )
    for mapping in matcher.isomorphisms_iter():
        yield dict(mapping)
