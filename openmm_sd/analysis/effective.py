"""How many independent samples a series is worth, and how long it must be for an error.

The integrated autocorrelation time tau, in frames, is 1/2 plus the sum of the normalised
autocorrelation at 1, 2, ... frames: a mean of N frames has the variance of one of N / (2 tau)
independent ones. The sum ends at the first frame beyond five times itself (Sokal; Madras and Sokal,
J. Stat. Phys. 50, 109, 1988, whose error is given, too): further on there is noise alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The window, in correlation times.
_WINDOW: Final = 5.0
# With a larger relative error than this nothing is known but the order of magnitude.
_LARGEST_ERROR: Final = 0.5


def correlation_time(series: ArrayLike) -> tuple[float, float]:
    """Return the integrated autocorrelation time and its error, frames.

    Parameters
    ----------
    series : array_like
        (T,), or (chains, T) of chains of one law, which are taken about their common mean.

    Returns
    -------
    tuple of float
        NaN twice where the series is too short for its memory, or never changes.
    """
    values = np.atleast_2d(np.asarray(series, dtype=np.float64))
    length = values.shape[1]
    unknown = float("nan"), float("nan")
    if length < 2 or values.min() == values.max():
        return unknown
    covariance = _autocovariance(values - values.mean())
    times = 0.5 + np.cumsum(covariance[1:] / covariance[0])
    window = np.arange(1, length)
    ends = np.flatnonzero(window >= _WINDOW * np.maximum(times, 1.0))
    if not len(ends):
        return unknown
    last = int(window[ends[0]])
    frames = values.size
    # The mean is that of the series itself, which takes away a part of all correlations.
    time = float(times[ends[0]]) * (1.0 + (2 * last + 1) / frames)
    relative = np.sqrt(2.0 * (2 * last + 1) / frames)
    if relative > _LARGEST_ERROR or time <= 0.0:
        return unknown
    return time, float(time * relative)


def _autocovariance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean product of values some frames apart, (T,), over all chains (chains, T)."""
    length = values.shape[1]
    size = 1 << (2 * length - 1).bit_length()
    total = np.zeros(length)
    for chain in values:  # one at a time: what is made on the way is several times as large
        power = np.abs(np.fft.rfft(chain, size)) ** 2
        total += np.fft.irfft(power, size)[:length]
    return total / (len(values) * (length - np.arange(length)))


def frames_to_error(population: float, time: float, error: float) -> float:
    """Return how many frames of a state's indicator give its population to a standard error.

    `time` is the indicator's correlation time in frames.
    """
    return population * (1.0 - population) * 2.0 * time / error**2
