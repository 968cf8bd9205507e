"""What the gates of a model let pass, measured on frames of its training data.

Windows of distances: of bonds, of the ends of angles and of torsions that do not turn, and how
close atoms may come that are further apart. A molecule that no data was seen of takes those of its
relatives: the widest over the same kinds of atoms, bonded the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..analysis import dihedral
from ..model.card import Card, Distance, Entry, Rows, Window
from ..molecule.graph import atom_kinds, bond_graph, distant_pairs, heavy_bonds
from ..molecule.molecule import Molecule

#: Bond windows reach this share of the range seen in the data beyond it, on either side.
_WINDOW_MARGIN: Final = 0.3
#: Contacts may be shorter than the shortest seen by this, nm: with limits from one half of 170,000
#: frames of alanine dipeptide and this margin, 1 in 10,000 of the others is turned down.
_CONTACT_MARGIN_NM: Final = 0.01
#: Pairs that never come closer than this, nm, are not on the card: their shortest distance says
#: which conformations were sampled, not where atoms touch.
_CONTACT_REACH_NM: Final = 0.3
#: Constrained bonds of one kind agree to this, nm.
_SAME_LENGTH_NM: Final = 1e-4
#: Pair vectors that are worked on at once: a few times 12 MB.
_CONTACT_CHUNK: Final = 1 << 20


def bond_windows(molecule: Molecule, frames: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return (atom, atom, shortest, longest nm) of the bonds between heavy atoms, from data."""
    z = molecule.atomic_numbers
    return [_window(frames, i, j) for i, j in molecule.bonds if z[i] != 1 and z[j] != 1]


def angle_windows(molecule: Molecule, frames: NDArray[np.floating[Any]]) -> list[list[float]]:
    """Return (atom, atom, shortest, longest nm) of the ends of all angles, from data."""
    graph = bond_graph(molecule)
    ends = {(i, j) for k in graph for i in graph[k] for j in graph[k] if i < j}
    return [_window(frames, i, j) for i, j in sorted(ends) if not graph.has_edge(i, j)]


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
    """Return how close atoms may come that are three bonds apart or more, from data.

    Parameters
    ----------
    molecule : Molecule
        Says which atoms these are, hydrogens included.
    *frames : ndarray
        (T, N, 3) nm, one array or several. They are read in parts, so that no copy of all is made.

    Returns
    -------
    list of [int, int, float]
        Atom, atom and shortest distance (nm): the shortest in the frames less a margin. Pairs that
        never come close are left out.
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


def windows_of_kin(molecule: Molecule, kin: Sequence[tuple[Molecule, Mapping[str, Any]]]) -> Card:
    """Return the windows of a molecule without data, from those of its relatives.

    Parameters
    ----------
    molecule : Molecule
        The molecule.
    kin : sequence of (Molecule, mapping)
        Relatives and their cards.

    Returns
    -------
    Card
        With windows of bonds, angles and torsions, and contact distances.

    Raises
    ------
    ValueError
        If no relative has a bond or an angle of a kind that the molecule has.
    """
    graph, z = bond_graph(molecule), molecule.atomic_numbers
    found = Card()
    relatives = [(_Kinds(other), card) for other, card in kin]
    own = _Kinds(molecule)
    bonds = [sorted((i, j)) for i, j in molecule.bonds if z[i] != 1 and z[j] != 1]
    ends = {(i, j) for k in graph for i in graph[k] for j in graph[k] if i < j}
    angles = [[i, j] for i, j in sorted(ends) if not graph.has_edge(i, j)]
    found.bond_windows = _alike(bonds, own, _pooled(relatives, Card.bond_windows))
    found.angle_windows = _alike(angles, own, _pooled(relatives, Card.angle_windows))
    for pairs, rows in ((bonds, found.bond_windows), (angles, found.angle_windows)):
        seen = {row[:2] for row in rows}
        for i, j in pairs:
            if (i, j) not in seen:
                raise ValueError(
                    f"{molecule.name}: none of the molecules with data has a distance of the kind "
                    f"between its atoms {i} and {j}"
                )
    # What is not known of a torsion that does not turn, or of a contact, is not asked about.
    apart = distant_pairs(molecule, hydrogens=True).tolist()
    apart = sorted([min(pair), max(pair)] for pair in apart)
    stiff = _pooled(relatives, Card.torsion_windows)
    # What turns in one molecule and not in another turns.
    for kinds, card in relatives:
        kept = {(i, j) for i, j, *_ in Card.torsion_windows.of(card)}
        for pair in kinds.torsion_ends() - kept:
            stiff.pop(kinds.keys(*pair)[0], None)
    found.torsion_windows = _alike(apart, own, stiff, names=1)
    found.contact_distances = _alike(apart, own, _pooled(relatives, Card.contact_distances))
    return found


def constraints_of_kin(
    molecule: Molecule, kin: Sequence[tuple[Molecule, Mapping[str, Any]]]
) -> list[list[float]]:
    """Return the constrained bonds of a molecule without data: (heavy atom, hydrogen, nm).

    Parameters
    ----------
    molecule : Molecule
        The molecule.
    kin : sequence of (Molecule, mapping)
        Relatives and their cards.
    """
    held = [(_Kinds(other), Card.constraint_lengths.of(card)) for other, card in kin]
    if not any(rows for _, rows in held):
        return []
    own = _Kinds(molecule)
    lengths: dict[tuple[Any, ...], list[float]] = {}
    for kinds, rows in held:
        for i, j, length in rows:
            for key in kinds.keys(i, j):
                lengths.setdefault(key, []).append(length)
    found: list[list[float]] = []
    for bond in molecule.bonds:
        heavy, hydrogen = sorted(bond, key=lambda k: molecule.atomic_numbers[k] == 1)
        if molecule.atomic_numbers[hydrogen] != 1:
            continue
        known = next((lengths[key] for key in own.keys(heavy, hydrogen) if key in lengths), None)
        if known is None or np.ptp(known) > _SAME_LENGTH_NM:
            raise ValueError(
                f"{molecule.name}: the molecules with data do not say, or not with one voice, at "
                f"which length the bond between its atoms {heavy} and {hydrogen} is constrained"
            )
        found.append([heavy, hydrogen, round(float(np.mean(known)), 6)])
    return found


class _Kinds:
    """What pairs of atoms of a molecule are called, so that relatives call the same thing alike."""

    def __init__(self, molecule: Molecule) -> None:
        self._atoms = atom_kinds(molecule.atomic_numbers, molecule.bonds)
        self._paths = dict(nx.all_pairs_shortest_path(bond_graph(molecule)))

    def torsion_ends(self) -> set[tuple[int, int]]:
        """Return the ends of all torsions, the lower number first."""
        return {
            (i, j)
            for i in self._paths
            for j, path in self._paths[i].items()
            if i < j and len(path) == 4
        }

    def keys(self, i: int, j: int) -> list[tuple[Any, ...]]:
        """Return the names of a pair, the most specific first."""
        path = self._paths[i][j]
        kinds = tuple(self._atoms[k] for k in path)
        elements = tuple(kind[0] for kind in kinds)
        return [min(kinds, kinds[::-1]), min(elements, elements[::-1])]


def _alike(
    pairs: Sequence[Sequence[int]],
    own: _Kinds,
    known: Mapping[tuple[Any, ...], tuple[float, ...]],
    names: int = 2,
) -> list[list[float]]:
    """Return the pairs whose kind is known, by so many of its names, each with its window."""
    found: list[list[float]] = []
    for i, j in pairs:
        window = next((known[key] for key in own.keys(i, j)[:names] if key in known), None)
        if window is not None:
            found.append([i, j, *window])
    return found


def _pooled(
    relatives: Sequence[tuple[_Kinds, Mapping[str, Any]]],
    entry: Entry[tuple[Window, ...], Rows] | Entry[tuple[Distance, ...], Rows],
) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """Return the widest window of each kind of pair."""
    known: dict[tuple[Any, ...], tuple[float, ...]] = {}
    for kinds, card in relatives:
        for i, j, *window in entry.of(card):
            for key in kinds.keys(i, j):
                if key in known:
                    low = min(known[key][0], window[0])
                    known[key] = (
                        low,
                        *(max(a, b) for a, b in zip(known[key][1:], window[1:], strict=True)),
                    )
                else:
                    known[key] = tuple(window)
    return known
