"""Molecules made whole across the sides of a periodic box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .graph import spanning_edges

if TYPE_CHECKING:
    import openmm


def nearest(vectors: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the periodic images of vectors that lie in the cell around the origin.

    Parameters
    ----------
    vectors : ndarray, shape (M, 3)
        nm.
    box : ndarray, shape (3, 3) or (M, 3, 3)
        Box vectors, nm, one a row, lower triangular as OpenMM, GROMACS and mdtraj have them; one
        box, or one for each vector.
    """
    images = vectors.copy()
    for k in (2, 1, 0):  # any vector much shorter than the box is found from the last axis on
        images -= np.round(images[:, k : k + 1] / box[..., k, k, None]) * box[..., k, :]
    return images


def join_bonded(
    frames: NDArray[np.float64], boxes: NDArray[np.float64], edges: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """Bring every atom to the image next to the atom that it is bonded to.

    Parameters
    ----------
    frames : ndarray, shape (T, N, 3)
        nm.
    boxes : ndarray, shape (T, 3, 3)
        nm, as `nearest` takes them.
    edges : sequence of (int, int)
        From `spanning_edges`.
    """
    whole = frames.copy()
    for parent, child in edges:
        whole[:, child] = whole[:, parent] + nearest(whole[:, child] - whole[:, parent], boxes)
    return whole


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
    edges = spanning_edges(len(positions), pairs)
    return join_bonded(positions[None], box[None], edges)[0]
