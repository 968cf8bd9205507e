"""Molecules made whole across the sides of a periodic box."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .molecule import Molecule

if TYPE_CHECKING:
    import openmm


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


def whole_frames(
    molecule: Molecule, positions: NDArray[np.float64], box: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Undo breaks across the box, atom by atom along the bonds."""
    neighbours: dict[int, list[int]] = {i: [] for i in range(molecule.n_atoms)}
    for i, j in molecule.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    out = positions.copy()
    done, queue = {0}, [0]
    inverse = np.linalg.inv(box)
    while queue:
        atom = queue.pop()
        for other in neighbours[atom]:
            if other not in done:
                bond = positions[other] - positions[atom]
                out[other] = out[atom] + bond - np.round(bond @ inverse) @ box
                done.add(other)
                queue.append(other)
    return out
