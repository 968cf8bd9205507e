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
    """Return the periodic images of vectors (M, 3), nm, that lie in the cell around the origin.

    Box vectors, nm, one a row, are lower triangular as OpenMM, GROMACS and mdtraj have them: one
    box, (3, 3), or one for each vector, (M, 3, 3).
    """
    images = vectors.copy()
    for k in (2, 1, 0):  # any vector much shorter than the box is found from the last axis on
        images -= np.round(images[:, k : k + 1] / box[..., k, k, None]) * box[..., k, :]
    return images


def join_bonded(
    frames: NDArray[np.float64], boxes: NDArray[np.float64], edges: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """Bring every atom of frames (T, N, 3) to the image next to the atom that it is bonded to.

    Boxes are (T, 3, 3), as `nearest` takes them, and edges from `spanning_edges`.
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
    """Put molecules together that were cut at the faces of the box, positions (N, 3) in nm.

    The bonds of OpenMM's Topology say what belongs together; virtual sites of the System, which
    have no bonds, go with the particles that they hang on. The box, (3, 3) nm, is in OpenMM's
    reduced form. Positions come back as they are where no molecule is cut.
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
