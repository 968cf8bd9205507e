"""Torsions of a solute, and what equilibrium and kinetics look like in them.

Angles are in radians, in [-pi, pi), with IUPAC signs, unless a name ends in ``_deg``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BASINS = ("beta_C5", "PII", "alphaR", "alphaL", "C7ax_other")
"""Names of the basins of alanine dipeptide, in the order of the numbers `basins` returns."""


def mean_cos_change(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Return the mean cosine of the change of angles: 1 where nothing moves.

    Parameters
    ----------
    before, after : array_like
        (T, ...) radians.

    Returns
    -------
    ndarray
        (...,), mean over the first axis.
    """
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return np.cos(change).mean(axis=0)


def basins(phi: ArrayLike, psi: ArrayLike) -> NDArray[np.int64]:
    """Return the basin of alanine dipeptide in which each frame lies.

    With phi < 0 or phi > 135 degrees: alphaR where -110 < psi < 45, else beta_C5 where phi < -105
    or phi > 135, else PII. With 0 <= phi <= 135: alphaL where -30 < psi < 110, else C7ax_other.

    Parameters
    ----------
    phi, psi : array_like
        (...,) radians.

    Returns
    -------
    ndarray
        (...,) index into `BASINS`.
    """
    phi_deg, psi_deg = np.rad2deg(phi), np.rad2deg(psi)
    left = (phi_deg < 0) | (phi_deg > 135)
    helical = (psi_deg > -110) & (psi_deg < 45)
    extended = (phi_deg < -105) | (phi_deg > 135)
    on_left = np.where(helical, 2, np.where(extended, 0, 1))
    on_right = np.where((psi_deg > -30) & (psi_deg < 110), 3, 4)
    return np.where(left, on_left, on_right).astype(np.int64)


def basin_populations(states: ArrayLike, n_states: int = len(BASINS)) -> NDArray[np.float64]:
    """Return the share of frames in each state, (n_states,), which sums to 1.

    Parameters
    ----------
    states : array_like
        Integers from 0 to `n_states` - 1, any shape.
    """
    flat = np.asarray(states).reshape(-1)
    return np.bincount(flat, minlength=n_states) / len(flat)
