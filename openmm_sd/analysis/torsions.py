"""Torsions of a solute, and what equilibrium and kinetics look like in them.

Angles are in radians, in [-pi, pi), with IUPAC signs, unless a name ends in ``_deg``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

BASINS = ("beta_C5", "PII", "alphaR", "alphaL", "C7ax_other")
"""Names of the basins of alanine dipeptide, in the order of the numbers `basins` returns."""


def jsd_phi_psi(first: ArrayLike, second: ArrayLike, bins: int = 50) -> float:
    """Return the Jensen-Shannon divergence of two samples of (phi, psi).

    Parameters
    ----------
    first, second : array_like
        (T, 2) radians; the samples need not be equally long.
    bins : int
        Bins along each angle, over [-180, 180) degrees.

    Returns
    -------
    float
        Bits: 0 for equal histograms, 1 for disjoint ones.
    """
    p, q = (_histogram(sample, bins) for sample in (first, second))
    middle = 0.5 * (p + q)
    return 0.5 * (_relative_entropy(p, middle) + _relative_entropy(q, middle))


def _histogram(angles: ArrayLike, bins: int) -> NDArray[np.float64]:
    angles = np.asarray(angles, dtype=np.float64).reshape(-1, 2)
    if len(angles) == 0:
        raise ValueError("no frames to make a histogram of")
    cell = np.floor((angles + np.pi) / (2.0 * np.pi) * bins).astype(np.int64) % bins
    counts = np.bincount(cell[:, 0] * bins + cell[:, 1], minlength=bins * bins)
    return counts / len(angles)


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / q[seen])).sum())


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
    """Return the share of frames in each state.

    Parameters
    ----------
    states : array_like
        Integers from 0 to `n_states` - 1, any shape.
    n_states : int
        Number of states.

    Returns
    -------
    ndarray
        (n_states,), sums to 1.
    """
    flat = np.asarray(states).reshape(-1)
    return np.bincount(flat, minlength=n_states) / len(flat)


def hop_probabilities(
    before: ArrayLike, after: ArrayLike, n_states: int = len(BASINS)
) -> NDArray[np.float64]:
    """Return P[i, j], the share of pairs that start in state i and end in j.

    Parameters
    ----------
    before, after : array_like
        (T,) integers.
    n_states : int
        Number of states.

    Returns
    -------
    ndarray
        (n_states, n_states); rows sum to 1, or hold NaN where no pair starts.
    """
    pairs = np.asarray(before) * n_states + np.asarray(after)
    counts = np.bincount(pairs, minlength=n_states * n_states).reshape(n_states, n_states)
    starts = counts.sum(1, keepdims=True)
    return np.where(starts > 0, counts / np.maximum(starts, 1), np.nan)


def transition_matrix(
    trajectories: Sequence[ArrayLike], stride: int, n_states: int
) -> NDArray[np.float64]:
    """Return a reversible transition matrix from sliding counts.

    Counts are symmetrised: right for trajectories at equilibrium, biased for others.

    Parameters
    ----------
    trajectories : sequence of array_like
        Each (T,) integers from 0 to `n_states` - 1.
    stride : int
        Lag in frames.
    n_states : int
        Number of states.

    Returns
    -------
    ndarray
        (m, m), rows sum to 1, over the m states that were visited, in their order.
    """
    counts = np.zeros(n_states * n_states)
    for trajectory in trajectories:
        t = np.asarray(trajectory)
        pairs = t[:-stride] * n_states + t[stride:]
        counts += np.bincount(pairs, minlength=n_states * n_states)
    matrix = counts.reshape(n_states, n_states)
    matrix = 0.5 * (matrix + matrix.T)
    visited = matrix.sum(1) > 0
    matrix = matrix[np.ix_(visited, visited)]
    return matrix / matrix.sum(1, keepdims=True)


def implied_timescales(
    trajectories: Sequence[ArrayLike],
    stride: int,
    spacing_ps: float,
    n_states: int = len(BASINS),
    count: int = 1,
) -> NDArray[np.float64]:
    """Return the slowest implied timescales, -lag / ln(eigenvalue).

    A coarse estimate: discretisation shortens it, the more so at short lags, so compare
    only estimates made with the same states and lag.

    Parameters
    ----------
    trajectories : sequence of array_like
        Each (T,) integers from 0 to `n_states` - 1, from equilibrium dynamics.
    stride : int
        Lag in frames.
    spacing_ps : float
        Time between frames, ps.
    n_states : int
        Number of states.
    count : int
        How many timescales.

    Returns
    -------
    ndarray
        (count,) ps, falling; NaN where there are too few states or an eigenvalue is not positive.
    """
    matrix = transition_matrix(trajectories, stride, n_states)
    # A reversible matrix has real eigenvalues; rounding can leave an imaginary trace.
    values = np.sort(np.linalg.eigvals(matrix).real)[::-1][1 : count + 1]
    result = np.full(count, np.nan)
    good = (values > 0.0) & (values < 1.0)
    result[: len(values)][good] = -stride * spacing_ps / np.log(values[good])
    return result
