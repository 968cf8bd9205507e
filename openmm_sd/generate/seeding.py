"""Where seeded runs start: the slow torsions of a molecule, and points spread over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..propagator.molecule import Molecule

TorsionAtoms = tuple[int, int, int, int]


def slow_torsions(molecule: Molecule) -> list[TorsionAtoms]:
    """Find the torsions about bonds that turn freely and change the shape of the molecule.

    Parameters
    ----------
    molecule : Molecule
        Any.

    Returns
    -------
    list of (int, int, int, int)
        One torsion a bond, in the order of the bonds; its ends are the larger branches. For a
        peptide these are phi, psi and the side chain's chi angles.

    Notes
    -----
    A bond counts if it is in no ring, if both its atoms carry another heavy atom, and if one of
    them has four neighbours. The last leaves out double bonds, amides, esters' C-O bonds,
    conjugated and aromatic ones: neither of their atoms is tetrahedral. It also leaves out some
    that turn, such as those between two rings or two sulphur atoms. Ends like -CF3 or tert-butyl,
    which look the same after a third of a turn, are left out too.
    """
    graph = molecule.graph()
    ring = set(graph.edges) - set(nx.bridges(graph))
    ring |= {(j, i) for i, j in ring}
    classes = _classes(graph)
    found = []
    for i, j in molecule.bonds:
        if (i, j) in ring or 4 not in (len(graph[i]), len(graph[j])):
            continue
        if 1 in (graph.nodes[i]["z"], graph.nodes[j]["z"]):
            continue
        ends = [_end(graph, classes, a, b) for a, b in ((i, j), (j, i))]
        if ends[0] is not None and ends[1] is not None:
            found.append((ends[0], i, j, ends[1]))
    return found


def _end(graph: nx.Graph, classes: dict[int, int], atom: int, other: int) -> int | None:
    """Return the neighbour that defines the torsion on the side of `atom`; None if none does."""
    around = [k for k in sorted(graph[atom]) if k != other]
    heavy = [k for k in around if graph.nodes[k]["z"] != 1]
    if not heavy:
        return None
    if len(around) == 3 and len({classes[k] for k in around}) == 1:
        return None
    if len(around) == 1 and graph.nodes[atom]["z"] == 6:
        return None  # straight, as in a nitrile: there is no angle to turn
    without = graph.subgraph([k for k in graph if k != atom])

    def size(k: int) -> int:
        return sum(graph.nodes[n]["z"] != 1 for n in nx.node_connected_component(without, k))

    return max(heavy, key=lambda k: (size(k), -k))


def _classes(graph: nx.Graph) -> dict[int, int]:
    """Number atoms so that equivalent ones share a number (colour refinement)."""
    colours = {k: graph.nodes[k]["z"] for k in graph}
    while True:
        signs = {k: (colours[k], tuple(sorted(colours[n] for n in graph[k]))) for k in graph}
        numbers = {sign: n for n, sign in enumerate(sorted(set(signs.values())))}
        refined = {k: numbers[signs[k]] for k in graph}
        if len(numbers) == len(set(colours.values())):
            return refined
        colours = refined


def parse_torsion(text: str, molecule: Molecule) -> TorsionAtoms:
    """Read a torsion as people write it.

    Parameters
    ----------
    text : str
        Four atoms with commas between them: indices from 0, names (``CA``), or residue and name
        (``ALA:CA``, ``2:CA`` or ``ALA2:CA``).
    molecule : Molecule
        Whose atoms are meant.

    Raises
    ------
    ValueError
        If an atom is missing or not unique, or the four are not bonded in a row.
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


def spread_points(first: int, count: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """Return points that cover a torus evenly, however many of them are taken.

    Parameters
    ----------
    first : int
        Number of the first point in the endless sequence.
    count : int
        How many.
    dimensions : int
        Number of angles.
    seed : int
        Shifts the whole sequence.

    Returns
    -------
    ndarray, shape (count, dimensions)
        Radians, in [-pi, pi).

    Notes
    -----
    An additive recurrence: the steps are the inverse powers of the root of x^(d+1) = x + 1, the
    golden ratio in one dimension and its next of kin in more.
    """
    if dimensions < 1:
        return np.zeros((count, 0))
    root = 1.5
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = np.array([math.pow(root, -(k + 1)) for k in range(dimensions)])
    shift = np.random.default_rng(seed).random(dimensions)
    numbers = np.arange(first, first + count, dtype=np.float64)[:, None]
    return np.asarray(2.0 * np.pi * ((shift + numbers * steps) % 1.0) - np.pi)


def check_torsions(torsions: Sequence[TorsionAtoms], seeded_runs: int) -> None:
    """Refuse seeded runs without a torsion to seed."""
    if seeded_runs and not torsions:
        raise ValueError(
            "no torsion of the molecule turns heavy atoms, so seeded runs have nothing to start "
            "all over: make plain runs only (leave --seeded out), or name a torsion (--torsion)"
        )
