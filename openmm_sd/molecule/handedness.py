"""Handedness: which way round every four-bonded atom of a molecule is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Final

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .graph import RING_SWAPS, isomorphisms

FLAT: Final = 0.1
"""Below this volume (three unit bond vectors; tetrahedral 0.77) a centre is flat, not handed."""


@dataclass(frozen=True, eq=False)
class Handedness:
    """Which way round every four-bonded atom of a molecule is, and how to turn it over.

    Attributes
    ----------
    centres : ndarray of int, shape (M, 4)
        One row an atom with exactly four neighbours: the centre and its three neighbours with the
        lowest indices, ascending.
    signs : ndarray of int, shape (M,)
        Sign (+1 or -1) of ``det[a - centre, b - centre, c - centre]`` in the reference frame.
    stereo : ndarray of bool, shape (M,)
        True where no relabelling can change the sign: a real stereocentre.
    swaps : ndarray of int, shape (M, N)
        Permutation p that exchanges two equivalent branches of the centre: ``frame[p]`` is the same
        molecule with the other sign there. The identity for a stereocentre.

    Notes
    -----
    A Topology that numbers the three hydrogens of a methyl group the other way round describes the
    same molecule, yet what the network sees is the mirror image of every methyl group it was
    trained on. No atom name settles this: naming conventions differ and are rarely kept. So the
    numbering is settled by geometry at the time of the jump: go through the rows in order, compute
    the sign, and where it is wrong and the row is not ``stereo``, relabel the frame with its swap.
    Rows come with the largest swaps first, because exchanging two methyl groups renumbers the
    hydrogens inside them, and stereocentres last. If any sign is still wrong after the pass, the
    frame is another stereoisomer; this also tells cis from trans in a symmetric ring, where no
    single centre does.

    A centre that is flat in the reference frame (square-planar metals) has no row. Double bonds
    (E and Z), axes and three-coordinate sulphur are not looked at: a jump that inverts them has to
    be caught by the other gates.
    """

    centres: NDArray[np.int64]
    signs: NDArray[np.int64]
    stereo: NDArray[np.bool_]
    swaps: NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.centres, self.signs, self.stereo, self.swaps):
            array.flags.writeable = False

    def measure(self, frame: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Return the sign (+1 or -1) of every row in a frame, shape (N, 3), nm; 0 if undefined."""
        return np.sign(arm_volumes(np.asarray(frame, dtype=np.float64), self.centres)).astype(
            np.int64
        )

    def relabelling(self, frame: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Return the permutation p, (N,), that gives ``frame[p]`` the handedness of the reference.

        The frame, (N, 3) nm, is whole, in the molecule's atom order. Signs that no relabelling can
        repair stay wrong: compare ``measure(frame[p])`` with `signs`.
        """
        relabelling = np.arange(self.swaps.shape[1], dtype=np.int64)
        for row in np.flatnonzero(~self.stereo):
            volume = arm_volumes(np.asarray(frame)[relabelling], self.centres[row : row + 1])[0]
            if volume * self.signs[row] < 0:
                relabelling = relabelling[self.swaps[row]]
        return relabelling


def arm_volumes(
    positions: NDArray[np.floating[Any]], centres: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return det of the unit vectors from each centre to its three neighbours."""
    arms = positions[centres[:, 1:]] - positions[centres[:, :1]]
    lengths = np.linalg.norm(arms, axis=-1, keepdims=True)
    arms = np.divide(arms, lengths, out=np.zeros_like(arms), where=lengths > 0)
    return np.asarray(np.linalg.det(arms), dtype=np.float64)


def signed_volume(positions: ArrayLike, centre: Sequence[int]) -> NDArray[np.float64]:
    """Return (a - c) x (b - c) . (d - c) of atoms (c, a, b, d): its sign is the handedness at c.

    Parameters
    ----------
    positions : array_like
        (..., N, 3).
    centre : sequence of int
        The centre c and three of its neighbours.

    Returns
    -------
    ndarray
        (...,), length cubed.
    """
    x = np.asarray(positions, dtype=np.float64)
    c, a, b, d = (x[..., i, :] for i in centre)
    return (np.cross(a - c, b - c) * (d - c)).sum(-1)


def handedness_of(graph: nx.Graph, positions: NDArray[np.float64]) -> Handedness:
    n = len(graph)
    identity = np.arange(n, dtype=np.int64)
    rows = np.array(
        [[i, *sorted(graph[i])[:3]] for i in graph if len(graph[i]) == 4], dtype=np.int64
    ).reshape(-1, 4)
    volumes = arm_volumes(positions, rows)
    rows = rows[np.abs(volumes) > FLAT]
    signs = np.sign(arm_volumes(positions, rows)).astype(np.int64)
    candidates = [_swaps(graph, int(centre)) for centre in rows[:, 0]]

    # Two branches with the same bonds may still be mirror images of each other (one R, one S).
    # Exchanging them would turn over the stereocentres inside, so such a swap does not count; a
    # centre that loses its last swap is a stereocentre itself and may disqualify others.
    stereo = np.array([not swaps for swaps in candidates], dtype=np.bool_)
    while True:
        for row, swaps in enumerate(candidates):
            candidates[row] = [
                p
                for p in swaps
                if (np.sign(arm_volumes(positions[p], rows[stereo])) == signs[stereo]).all()
            ]
        found = np.array([not swaps for swaps in candidates], dtype=np.bool_)
        if (found == stereo).all():
            break
        stereo = found

    def moved(permutation: NDArray[np.int64]) -> int:
        return int((permutation != identity).sum())

    chosen = [min(swaps, key=moved) if swaps else identity for swaps in candidates]
    order = sorted(range(len(rows)), key=lambda r: (-moved(chosen[r]), int(rows[r, 0])))
    return Handedness(
        rows[order],
        signs[order],
        stereo[order],
        np.array([chosen[r] for r in order], dtype=np.int64).reshape(-1, n),
    )


def _swaps(graph: nx.Graph, centre: int) -> list[NDArray[np.int64]]:
    """Return automorphisms that exchange two neighbours of the centre and leave the rest alone."""
    neighbours = sorted(graph[centre])
    without = graph.subgraph([k for k in graph if k != centre])
    branch = {k: nx.node_connected_component(without, k) for k in neighbours}
    swaps = []
    for u, v in combinations(neighbours, 2):
        if graph.nodes[u]["z"] != graph.nodes[v]["z"] or len(branch[u]) != len(branch[v]):
            continue
        part = graph.subgraph(branch[u] | branch[v] | {centre})
        one = dict(part.nodes(data="z"))
        # Atoms that must stay where they are get a colour of their own.
        one |= {k: ("fixed", k) for k in (centre, *neighbours) if k in one and k not in (u, v)}
        two = dict(one)
        one |= {u: ("u", 0), v: ("v", 0)}
        two |= {v: ("u", 0), u: ("v", 0)}
        # Separate branches exchange as a whole, so every isomorphism moves as many atoms.
        limit = RING_SWAPS if v in branch[u] else 1
        for mapping in islice(isomorphisms(part, part, one, two), limit):
            permutation = np.arange(len(graph), dtype=np.int64)
            permutation[list(mapping)] = list(mapping.values())
            swaps.append(permutation)
    return swaps
