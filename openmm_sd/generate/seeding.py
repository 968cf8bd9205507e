"""Where seeded runs start: the slow torsions of a molecule, and points spread over them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def spread_points(first: int, count: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """Return points that cover a torus evenly, however many of them are taken.

    Parameters
    ----------
    first : int
        Number of the first point in the endless sequence.
    count : int
        How many.
    dimensions : int
        Number of angles.
    seed : int
        Shifts the whole sequence.

    Returns
    -------
    ndarray, shape (count, dimensions)
        Radians, in [-pi, pi).

    Notes
    -----
    An additive recurrence: the steps are the inverse powers of the root of x^(d+1) = x + 1, the
    golden ratio in one dimension and its next of kin in more.
    """
    if dimensions < 1:
        return np.zeros((count, 0))
    root = 1.5
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = np.array([math.pow(root, -(k + 1)) for k in range(dimensions)])
    shift = np.random.default_rng(seed).random(dimensions)
    numbers = np.arange(first, first + count, dtype=np.float64)[:, None]
    return np.asarray(2.0 * np.pi * ((shift + numbers * steps) % 1.0) - np.pi)
