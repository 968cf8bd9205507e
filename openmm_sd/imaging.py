"""Periodic images: whole molecules, close to the solute, the solute in the middle of the box."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray


class Imaging:
    """Puts frames of a periodic system into the images that are pleasant to look at.

    Parameters
    ----------
    molecules : sequence of sequence of int
        Atoms of every molecule, as ``Context.getMolecules`` gives them.
    solute : sequence of int
        Atoms whose centre goes to the middle of the box.
    """

    def __init__(self, molecules: Sequence[Sequence[int]], solute: Sequence[int]) -> None:
        self._solute = np.array(solute, dtype=np.int64)
        self._order = np.array([i for atoms in molecules for i in atoms], dtype=np.int64)
        self._counts = np.array([len(atoms) for atoms in molecules], dtype=np.int64)
        self._starts = np.cumsum(self._counts) - self._counts

    def __call__(
        self, positions: NDArray[np.float64], box: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return positions, nm, with every molecule whole and in the image closest to the solute.

        Parameters
        ----------
        positions : ndarray, shape (N, 3)
            nm; molecules whole, as OpenMM keeps them.
        box : ndarray, shape (3, 3)
            Box vectors in OpenMM's reduced form, nm.
        """
        moved = positions - positions[self._solute].mean(axis=0)
        ordered = moved[self._order]
        centres = np.add.reduceat(ordered, self._starts, axis=0) / self._counts[:, None]
        shifts = nearest(centres, box) - centres
        moved[self._order] = ordered + np.repeat(shifts, self._counts, axis=0)
        return moved + 0.5 * box.sum(axis=0)


def nearest(vectors: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the periodic images of vectors, (M, 3) nm, that lie in the cell around the origin."""
    images = vectors.copy()
    for k in (2, 1, 0):  # in the reduced form each vector reaches no further than its own axis
        images -= np.round(images[:, k : k + 1] / box[k, k]) * box[k]
    return images


def make_whole(
    topology: Any,
    positions: NDArray[np.float64],
    box: NDArray[np.float64],
    system: openmm.System | None = None,
) -> NDArray[np.float64]:
    """Put molecules together that were cut at the faces of the box.

    Parameters
    ----------
    topology : openmm.app.Topology
        Its bonds say what belongs together.
    positions : ndarray, shape (N, 3)
        nm. They come back as they are where no molecule is cut.
    box : ndarray, shape (3, 3)
        Box vectors in OpenMM's reduced form, nm.
    system : openmm.System, optional
        Its virtual sites, which have no bonds, go with the particles that they hang on.
    """
    pairs = [(one.index, two.index) for one, two in topology.bonds()]
    if system is not None:
        pairs += [
            (system.getVirtualSite(particle).getParticle(0), particle)
            for particle in range(system.getNumParticles())
            if system.isVirtualSite(particle)
        ]
    if not pairs:
        return positions
    ends = np.array(pairs)
    bonds = positions[ends[:, 1]] - positions[ends[:, 0]]
    if (nearest(bonds, box) == bonds).all():
        return positions
    neighbours: list[list[int]] = [[] for _ in range(len(positions))]
    for one, two in pairs:
        neighbours[one].append(two)
        neighbours[two].append(one)
    whole = positions.copy()
    seen = np.zeros(len(positions), dtype=bool)
    for first in range(len(positions)):
        if seen[first]:
            continue
        seen[first] = True
        waiting = deque([first])
        while waiting:
            here = waiting.popleft()
            for there in neighbours[here]:
                if not seen[there]:
                    seen[there] = True
                    bond = positions[there] - whole[here]
                    whole[there] = whole[here] + nearest(bond[None], box)[0]
                    waiting.append(there)
    return whole
