"""What the gates of a model let pass, measured on frames of its training data.

Windows of distances: of bonds, of the ends of angles and of torsions that do not turn, and how
close atoms may come that are farther apart.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..analysis import dihedral
from ..molecule.graph import bond_graph, distant_pairs, heavy_bonds
from ..molecule.molecule import Molecule

#: Bond windows reach this share of the range seen in the data beyond it, on either side.
_WINDOW_MARGIN: Final = 0.3
#: Contacts may be shorter than the shortest seen by this, nm: with limits from one half of 170,000
#: frames of alanine dipeptide and this margin, 1 in 10,000 of the others is turned down.
_CONTACT_MARGIN_NM: Final = 0.01
#: Pairs that never come closer than this, nm, are not on the card: their shortest distance says
#: which conformations were sampled, not where atoms touch.
_CONTACT_REACH_NM: Final = 0.3
#: Pair vectors that are worked on at once: a few times 12 MB.
_CONTACT_CHUNK: Final = 1 << 20


def bond_windows(molecule: Molecule, frames: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return (atom, atom, shortest, longest nm) of the bonds between heavy atoms, from data."""
    return [_window(frames, i, j) for i, j in heavy_bonds(molecule).tolist()]


def angle_windows(molecule: Molecule, frames: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return (atom, atom, shortest, longest nm) of the ends of all angles, from data."""
    return [_window(frames, i, j) for i, j in angle_ends(molecule)]


def angle_ends(molecule: Molecule) -> list[tuple[int, int]]:
    """Return the ends of all angles, the lower number first, in order."""
    graph = bond_graph(molecule)
    ends = {(i, j) for k in graph for i in graph[k] for j in graph[k] if i < j}
    return [(i, j) for i, j in sorted(ends) if not graph.has_edge(i, j)]


def torsion_windows(molecule: Molecule, frames: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return (atom, atom, shortest, longest nm) of the ends of torsions that never turn in data.

    These are torsions of four heavy atoms, about a peptide bond for instance, that stay within
    90 degrees of their mean.
    """
    graph = bond_graph(molecule)
    apart = {(int(i), int(m)) for i, m in distant_pairs(molecule)}
    stiff = set()
    for j, k in heavy_bonds(molecule).tolist():
        for i, m in product(graph[j], graph[k]):
            ends = min(i, m), max(i, m)
            if ends not in apart:
                continue
            angle = dihedral(frames, (i, j, k, m))
            mean = np.angle(np.exp(1j * angle).mean())
            if np.abs(np.angle(np.exp(1j * (angle - mean)))).max() < 0.5 * np.pi:
                stiff.add(ends)
    return [_window(frames, i, m) for i, m in sorted(stiff)]


def _window(frames: NDArray[np.floating[Any]], i: int, j: int) -> list[float]:
    length = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)
    low, high = float(length.min()), float(length.max())
    margin = _WINDOW_MARGIN * (high - low) + 0.002
    return [i, j, round(max(low - margin, 0.0), 5), round(high + margin, 5)]


def contact_distances(molecule: Molecule, *frames: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return how close atoms may come that are three bonds apart or more: (atom, atom, nm).

    These are the shortest distances in the frames, hydrogens included, less a margin; pairs that
    never come close are left out. The frames, (T, N, 3), nm, in one array or several, are read in
    parts, so that no copy of all is made.
    """
    pairs = distant_pairs(molecule, hydrogens=True)
    if not len(pairs):
        return []
    closest = np.full(len(pairs), np.inf)
    size = max(1, _CONTACT_CHUNK // len(pairs))
    for some in frames:
        for begin in range(0, len(some), size):
            part = some[begin : begin + size]
            apart = part[:, pairs[:, 0]] - part[:, pairs[:, 1]]
            squares = np.einsum("tmk,tmk->tm", apart, apart).min(axis=0)
            closest = np.minimum(closest, np.sqrt(squares))
    return [
        [int(i), int(j), round(max(0.0, float(shortest) - _CONTACT_MARGIN_NM), 5)]
        for (i, j), shortest in zip(pairs, closest, strict=True)
        if shortest <= _CONTACT_REACH_NM
    ]
