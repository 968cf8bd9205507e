"""One long trajectory with uneven steps in time, as a mixed run gives it.

A frame stands for the time from half-way to the frame before to half-way to the one after, so that
a stretch of dense frames counts no more than the same time seen once. Errors come from blocks of
the run that are equally long in time, and the largest of several numbers of blocks counts: with
blocks shorter than what is remembered errors are too small.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sample import Sample, Segment

#: Numbers of blocks of which the largest error is taken.
BLOCKS: Final = (8, 16, 32)
# A block of fewer frames says nothing of its own.
_FRAMES_PER_BLOCK: Final = 2


@dataclass(frozen=True, eq=False)
class Timeline:
    """Times of the frames of one run, (T,) rising, ps."""

    times_ps: NDArray[np.float64]

    @property
    def n_frames(self) -> int:
        return len(self.times_ps)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Time that each frame stands for, over the mean; (T,)."""
        if self.n_frames < 2:
            return np.ones(self.n_frames)
        gaps = np.diff(self.times_ps)
        # The ends stand for as much as the gap beside them, so that even steps weigh the same.
        sides = np.concatenate([gaps[:1], gaps, gaps[-1:]])
        weights = 0.5 * (sides[:-1] + sides[1:])
        total = weights.sum()
        return weights * (self.n_frames / total) if total > 0 else np.ones(self.n_frames)

    def blocks(self, count: int) -> NDArray[np.int64]:
        """Return in which of `count` blocks of equal time every frame lies."""
        middle = np.cumsum(self.weights) - 0.5 * self.weights
        return np.minimum((middle / self.weights.sum() * count).astype(np.int64), count - 1)

    def half(self, second: bool) -> tuple[Timeline, slice]:
        """Return a half of the run, and where its frames are."""
        border = int(np.searchsorted(self.blocks(2), 1))
        part = slice(border, None) if second else slice(0, border)
        return Timeline(self.times_ps[part]), part

    def possible_blocks(self) -> list[int]:
        """Return the numbers of blocks for which there are frames enough."""
        usual = [count for count in BLOCKS if count * _FRAMES_PER_BLOCK <= self.n_frames]
        few = self.n_frames // _FRAMES_PER_BLOCK
        return usual or ([few] if few >= 4 else [])

    def mean(self, values: ArrayLike) -> tuple[float, float]:
        """Return the mean of (T,) values over time, and its error; NaN where there is none."""
        known = np.asarray(values, dtype=np.float64)
        if not self.n_frames:
            return np.nan, np.nan
        value = float((self.weights * known).sum() / self.weights.sum())
        errors = [
            mean_error(
                _sums(self.blocks(count), self.weights * known, count)[:, None],
                _sums(self.blocks(count), self.weights, count),
            )
            for count in self.possible_blocks()
        ]
        return value, float(np.max(errors)) if errors else np.nan

    def shares(
        self, labels: ArrayLike, number: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the share of the time in each state, and its error, (number,).

        Labels are (T,) integers below `number`. An error is at least p (1 - p) over the root of the
        number of visits: blocks know nothing of what a run has seen once or twice. NaN where a
        state was never visited or never left, or where there are too few frames.
        """
        where = np.asarray(labels, dtype=np.int64)
        value = self.grouped(where, number, 1)[0] / max(float(self.weights.sum()), 1e-300)
        errors = [
            mean_error(
                self.grouped(where, number, count),
                _sums(self.blocks(count), self.weights, count),
            )
            for count in self.possible_blocks()
        ]
        error = np.max(errors, axis=0) if errors else np.full(number, np.nan)
        seen = visits(where, number)
        floor = value * (1.0 - value) / np.sqrt(np.maximum(seen, 1))
        settled = (seen == 0) | (value >= 1.0)
        return value, np.where(settled, np.nan, np.maximum(error, floor))

    def grouped(self, labels: ArrayLike, number: int, blocks: int) -> NDArray[np.float64]:
        """Return the weight of the frames in each state, block by block: (blocks, number)."""
        place = self.blocks(blocks) * number + np.asarray(labels, dtype=np.int64)
        return _sums(place, self.weights, blocks * number).reshape(blocks, number)


def mean_error(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of a mean over independent blocks, or runs, (n,).

    `sums`, (blocks, n), is the mean of each block times its weight, (blocks,). NaN for fewer than
    two blocks.
    """
    full = weights > 0
    sums, weights = sums[full], weights[full]
    if len(weights) < 2:
        return np.full(sums.shape[1:], np.nan)
    share = weights / weights.sum()
    away = sums / weights[:, None] - sums.sum(0) / weights.sum()
    count = len(weights)
    return np.sqrt((share[:, None] ** 2 * away**2).sum(0) * count / (count - 1))


def _sums(
    where: NDArray[np.int64], values: NDArray[np.float64], number: int
) -> NDArray[np.float64]:
    """Add up values by where they lie."""
    return np.asarray(np.bincount(where, values, number), dtype=np.float64)


def visits(labels: ArrayLike, number: int) -> NDArray[np.int64]:
    """Return how often each state was entered, the start of the run included."""
    where = np.asarray(labels, dtype=np.int64)
    entered = np.ones(len(where), dtype=bool)
    entered[1:] = where[1:] != where[:-1]
    return np.bincount(where[entered], minlength=number)


def even_steps(
    times_ps: NDArray[np.float64], candidates: NDArray[np.int64], tolerance_ps: float, blocks: int
) -> tuple[list[NDArray[np.int64]], Sample] | None:
    """Find chains of frames that are all the same time apart.

    The times of all frames, (T,), rise, and so do the `candidates` that chains may begin with; the
    usual time between two of these is the step. A time may be off by the tolerance. Returns frame
    numbers chain by chain, and the same as a sample in `blocks` groups of equal time; None if no
    two frames are a step apart.
    """
    if len(candidates) < 2:
        return None
    gaps = np.diff(times_ps[candidates])
    gaps = gaps[gaps > tolerance_ps]
    if not len(gaps):
        return None
    step = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    wanted = times_ps + step
    after = np.searchsorted(times_ps, wanted - tolerance_ps)
    inside = np.minimum(after, len(times_ps) - 1)
    fits = (after < len(times_ps)) & (np.abs(times_ps[inside] - wanted) <= tolerance_ps)
    following = np.where(fits, after, -1).tolist()
    chains: list[NDArray[np.int64]] = []
    free = 0  # frames before this one are in a chain already
    for first in candidates.tolist():
        if first < free:
            continue
        found = [first]
        while following[found[-1]] >= 0:
            found.append(following[found[-1]])
        if len(found) > 1:
            chains.append(np.array(found, dtype=np.int64))
        free = found[-1] + 1
    if not chains:
        return None
    group = Timeline(times_ps).blocks(blocks)
    segments: list[Segment] = []
    for k, chain in enumerate(chains):
        where = group[chain]
        borders = (np.flatnonzero(np.diff(where)) + 1).tolist()
        segments += [
            Segment(k, start, stop, int(where[start]))
            for start, stop in itertools.pairwise([0, *borders, len(where)])
        ]
    runs: tuple[NDArray[Any], ...] = tuple(chains)
    return chains, Sample(runs, step, tuple(segments), blocks)
