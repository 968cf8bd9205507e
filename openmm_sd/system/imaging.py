"""Periodic images: whole molecules, close to the solute, the solute in the middle of the box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..molecule.whole import nearest


class Imaging:
    """Puts frames of a periodic system into the images that are pleasant to look at.

    `molecules` are all of the system's, as ``Context.getMolecules`` gives them; the centre of the
    solute's atoms goes to the middle of the box.
    """

    def __init__(self, molecules: Sequence[Sequence[int]], solute: Sequence[int]) -> None:
        self._solute = np.array(solute, dtype=np.int64)
        self._order = np.array([i for atoms in molecules for i in atoms], dtype=np.int64)
        self._counts = np.array([len(atoms) for atoms in molecules], dtype=np.int64)
        self._starts = np.cumsum(self._counts) - self._counts

    def __call__(
        self, positions: NDArray[np.float64], box: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return positions (N, 3), nm, with every molecule in the image closest to the solute.

        Molecules come whole, as OpenMM keeps them; box vectors are in OpenMM's reduced form, nm.
        """
        moved = positions - positions[self._solute].mean(axis=0)
        ordered = moved[self._order]
        centres = np.add.reduceat(ordered, self._starts, axis=0) / self._counts[:, None]
        shifts = nearest(centres, box) - centres
        moved[self._order] = ordered + np.repeat(shifts, self._counts, axis=0)
        return moved + 0.5 * box.sum(axis=0)
