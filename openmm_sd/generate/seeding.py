"""Where seeded runs start, points spread over their torsions, and the seeds of each run."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray


def spread_points(first: int, count: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """Return points that cover a torus evenly, however many are taken: (count, dimensions), rad.

    `first` is the number of the first one in the endless sequence, which `seed` shifts. They lie in
    [-pi, pi). An additive recurrence: the steps are the inverse powers of the root of x^(d+1) = x +
    1, the golden ratio in one dimension and its next of kin in more.
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


def own_seed(seed: int, *words: object) -> int:
    """Return the seed that belongs to these words, the same whenever and wherever it is made.

    It is never 0, which means a random seed to OpenMM.
    """
    key = zlib.crc32(repr(words).encode())
    state = np.random.SeedSequence([seed, key]).generate_state(1)
    return int(state[0]) % (2**31 - 2) + 1
