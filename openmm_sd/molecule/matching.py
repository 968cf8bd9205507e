"""Whether two molecules are the same one, atom by atom, and where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import networkx as nx
import numpy as np

from .graph import RING_SWAPS, element_counts, isomorphisms, refined
from .molecule import Molecule
from .topology import ELEMENT_SYMBOLS, TopologyTable


def difference(one: Molecule, two: Molecule) -> str:
    """Say in what two molecules differ, atom by atom; nothing if they do not."""
    if one.atomic_numbers != two.atomic_numbers:
        return f"{one.formula} and {two.formula}, or another order of the atoms"
    if one.bonds != two.bonds:
        return "other bonds, or another order of the atoms"
    ours, theirs = one.handedness, two.handedness
    if not np.array_equal(ours.centres, theirs.centres):
        return "other stereocentres"
    wrong = np.flatnonzero(ours.signs != theirs.signs)
    if len(wrong):
        centre = int(ours.centres[wrong[0], 0])
        return f"the other handedness at atom {centre} ({one.atom_names[centre]})"
    return ""


def match_atoms(molecule: Molecule, candidate: nx.Graph) -> list[int] | None:
    """Find the molecule in a bond graph; None if the two are not the same molecule.

    The graph's nodes have the attributes ``z`` (atomic number) and, if there are any, ``name``.
    Entry i of what is returned is its node for atom i of the molecule. Where symmetry leaves a
    choice, a mapping under which all atom names agree is preferred, then one under which those of
    the heavy atoms agree, then any.
    """
    graph = molecule.graph()
    if (
        len(graph) != len(candidate)
        or graph.number_of_edges() != candidate.number_of_edges()
        or element_counts(graph) != element_counts(candidate)
    ):
        return None

    def elements(_: int, data: Mapping[str, Any]) -> object:
        return data["z"]

    def heavy_names(_: int, data: Mapping[str, Any]) -> object:
        return (data["z"], data.get("name") if data["z"] != 1 else None)

    def names(_: int, data: Mapping[str, Any]) -> object:
        return (data["z"], data.get("name"))

    for colour in (names, heavy_names, elements):
        mapping = next(
            isomorphisms(
                graph,
                candidate,
                {node: colour(node, data) for node, data in graph.nodes(data=True)},
                {node: colour(node, data) for node, data in candidate.nodes(data=True)},
            ),
            None,
        )
        if mapping is not None:
            return [mapping[i] for i in range(molecule.n_atoms)]
    return None


@dataclass(frozen=True)
class Copy:
    """One place in a Topology where a molecule is: its atoms there, ascending.

    `mapping` is the same in the order of the molecule.
    """

    molecule: Molecule
    atoms: tuple[int, ...]
    mapping: tuple[int, ...]


def find_copies(known: Sequence[Molecule], table: TopologyTable) -> list[Copy]:
    """Find all places where one of some molecules is, in the order of the Topology."""
    # Size and elements come first: they dismiss a hundred thousand waters before any graph is made.
    sizes = {molecule.n_atoms for molecule in known}
    counts = [(molecule, Counter(molecule.atomic_numbers)) for molecule in known]
    copies = []
    for atoms in table.components():
        if len(atoms) not in sizes:
            continue
        elements = table.elements(atoms)
        graph = None
        for molecule, wanted in counts:
            if elements != wanted:
                continue
            graph = table.graph(atoms) if graph is None else graph
            mapping = match_atoms(molecule, graph)
            if mapping is not None:
                copies.append(Copy(molecule, tuple(atoms), tuple(mapping)))
                break
    return copies


def closest_mismatch(molecule: Molecule, candidate: nx.Graph) -> str:
    """Say in one phrase why a bond graph is not the molecule, for error messages.

    Its nodes have the attributes ``z``, ``name`` and ``residue``.
    """
    graph = molecule.graph()
    ours, theirs = element_counts(graph), element_counts(candidate)
    if {z: k for z, k in ours.items() if z != 1} != {z: k for z, k in theirs.items() if z != 1}:
        different = sorted(z for z in ours | theirs if ours[z] != theirs[z])
        listing = ", ".join(f"{ELEMENT_SYMBOLS[z]} {theirs[z]} vs {ours[z]}" for z in different)
        return f"element counts differ: {listing}"
    if ours[1] != theirs[1]:
        if theirs[1] == 0:
            return (
                f"has the same heavy atoms but 0 of {ours[1]} hydrogens: add hydrogens first "
                "(openmm.app.Modeller.addHydrogens)"
            )
        return (
            f"has the same heavy atoms but {theirs[1]} hydrogens instead of {ours[1]}"
            f"{_protonation(graph, candidate)}"
        )
    if graph.number_of_edges() != candidate.number_of_edges():
        return (
            f"has the same atoms but {candidate.number_of_edges()} bonds instead of "
            f"{graph.number_of_edges()}{_bonding(graph, candidate)}"
        )
    return f"has the same atoms bonded differently{_bonding(graph, candidate)}"


def _protonation(graph: nx.Graph, candidate: nx.Graph) -> str:
    """Say which heavy atom has another number of hydrogens, if the skeletons agree."""
    ours = graph.subgraph([n for n, z in graph.nodes(data="z") if z != 1])
    theirs = candidate.subgraph([n for n, z in candidate.nodes(data="z") if z != 1])

    def hydrogens(whole: nx.Graph, node: int) -> int:
        return sum(whole.nodes[k]["z"] == 1 for k in whole[node])

    best: list[tuple[int, int]] | None = None
    # Symmetry offers several alignments of the skeletons; the one with the fewest differences is
    # what a chemist would say.
    colours = (dict(ours.nodes(data="z")), dict(theirs.nodes(data="z")))
    for mapping in islice(isomorphisms(ours, theirs, *colours), RING_SWAPS):
        wrong = [
            (i, j) for i, j in mapping.items() if hydrogens(graph, i) - hydrogens(candidate, j)
        ]
        if best is None or len(wrong) < len(best):
            best = wrong
    if not best:
        return ""
    i, j = min(best, key=lambda pair: pair[1])
    return (
        f" (protonation or missing hydrogens): {_label(candidate, j)} carries "
        f"{hydrogens(candidate, j)}, the model's {_label(graph, i)} carries {hydrogens(graph, i)}"
    )


def _bonding(graph: nx.Graph, candidate: nx.Graph) -> str:
    """Name an atom of the candidate whose surroundings do not occur in the molecule."""
    colours: list[dict[Any, int]] = [dict(one.nodes(data="z")) for one in (graph, candidate)]
    for reach in range(1, len(graph) + 1):
        ours, theirs = colours = refined((graph, candidate), colours)
        surplus = Counter(theirs.values()) - Counter(ours.values())
        if surplus:
            node = next(n for n in candidate if theirs[n] in surplus)
            partners = ", ".join(str(candidate.nodes[k].get("name")) for k in candidate[node])
            which = (
                "which occurs less often in the model"
                if reach == 1
                else f"but its surroundings within {reach} bonds do not occur so in the model"
            )
            return f": {_label(candidate, node)} is bonded to {partners or 'nothing'}, {which}"
    return ""


def _label(graph: nx.Graph, node: int) -> str:
    data = graph.nodes[node]
    return f"atom {node} ({data.get('name')} of {data.get('residue')})"
