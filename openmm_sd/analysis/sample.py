"""Angles of many chains or of a few long trajectories, and errors of what is computed from them.

Frames that follow each other are not independent, so no error here counts frames. A
:class:`Sample` is cut into groups that count as independent: sets of chains, or long blocks of a
trajectory. What is measured is summed up group by group, and resampling the groups (bootstrap)
gives errors of means and of anything computed from sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

GROUPS = 32
"""Groups into which a sample is cut by default: enough to give an error to 13 per cent."""


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` of run number `run`, in group number `group`."""

    run: int
    start: int
    stop: int
    group: int


@dataclass(frozen=True, eq=False)
class Sample:
    """Angles along several runs with one spacing, cut into groups.

    Attributes
    ----------
    runs : tuple of ndarray
        Each (T, K): K angles in radians.
    spacing_ps : float
        Time between frames, ps.
    segments : tuple of Segment
        Every frame lies in one of them.
    """

    runs: tuple[NDArray[Any], ...]
    spacing_ps: float
    segments: tuple[Segment, ...]
    n_groups: int

    @classmethod
    def from_runs(
        cls, runs: Sequence[ArrayLike], spacing_ps: float, groups: int = GROUPS
    ) -> Sample:
        """Cut runs, each (T, K) with the same K, or (T,), into about `groups` groups.

        Runs stay whole if there are at least so many; otherwise they are cut into blocks of about
        the same length. ValueError if there are no frames, or the runs do not belong together.
        """
        if not spacing_ps > 0 or not np.isfinite(spacing_ps):
            raise ValueError(f"spacing must be a positive number of ps, got {spacing_ps!r}")
        arrays = [_two_dimensional(run) for run in runs]
        arrays = [run for run in arrays if len(run)]
        if not arrays:
            raise ValueError("there are no frames")
        if len({run.shape[1] for run in arrays}) > 1:
            raise ValueError(
                "runs must hold the same number of angles, got "
                f"{sorted({run.shape[1] for run in arrays})}"
            )
        segments: list[Segment] = []
        if len(arrays) >= groups:
            for i, run in enumerate(arrays):
                segments.append(Segment(i, 0, len(run), i * groups // len(arrays)))
            count = groups
        else:
            block = max(sum(map(len, arrays)) / groups, 1.0)
            count = 0
            for i, run in enumerate(arrays):
                edges = np.linspace(0, len(run), max(1, round(len(run) / block)) + 1).astype(int)
                for start, stop in itertools.pairwise(edges):
                    segments.append(Segment(i, int(start), int(stop), count))
                    count += 1
        return cls(tuple(arrays), float(spacing_ps), tuple(segments), count)

    @property
    def n_frames(self) -> int:
        return sum(map(len, self.runs))

    @property
    def total_ps(self) -> float:
        """Length of all runs together, ps."""
        return self.n_frames * self.spacing_ps

    @property
    def block_ps(self) -> float:
        """Longest stretch of time in one segment, ps."""
        return max(s.stop - s.start for s in self.segments) * self.spacing_ps

    def map(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Sample:
        """Apply a function that keeps the first axis to every run."""
        runs = tuple(function(run) for run in self.runs)
        return Sample(runs, self.spacing_ps, self.segments, self.n_groups)

    def select(self, columns: Sequence[int]) -> Sample:
        """Return the sample of some of the angles."""
        chosen = list(columns)
        return self.map(lambda run: run[:, chosen])

    def frames(self) -> NDArray[Any]:
        """Return all frames, (T, K)."""
        return np.concatenate(self.runs)

    def stride(self, lag_ps: float) -> int | None:
        """Return a lag in frames; None if it is no multiple of the spacing."""
        frames = lag_ps / self.spacing_ps
        whole = round(frames)
        return whole if whole >= 1 and abs(frames - whole) < 1e-6 * max(whole, 1) else None

    def pairs(self, stride: int = 0) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield group, frames and the frames `stride` later, a segment at a time.

        A pair belongs to the group of its first frame; it never leaves its run.
        """
        for s in self.segments:
            run = self.runs[s.run]
            stop = min(s.stop, len(run) - stride)
            if stop > s.start:
                yield s.group, run[s.start : stop], run[s.start + stride : stop + stride]

    def sums(
        self, function: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], stride: int = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sum a function of pairs over every group.

        The function takes frames and the frames `stride` later, and returns the sum over them, any
        shape. Returns sums, (groups, ...), and how many pairs were summed, (groups,).
        """
        total: NDArray[np.float64] | None = None
        numbers = np.zeros(self.n_groups)
        for group, before, after in self.pairs(stride):
            part = np.asarray(function(before, after), dtype=np.float64)
            if total is None:
                total = np.zeros((self.n_groups, *part.shape))
            total[group] += part
            numbers[group] += len(before)
        if total is None:
            raise ValueError(
                f"no run is longer than {stride} frames ({stride * self.spacing_ps:g} ps)"
            )
        return total, numbers


def _two_dimensional(run: ArrayLike) -> NDArray[Any]:
    array = np.asarray(run)
    return array[:, None] if array.ndim == 1 else array


def resamplings(n_groups: int, number: int, seed: int) -> NDArray[np.float64]:
    """Return how often each group is drawn in each bootstrap resampling, (number, n_groups).

    Each row sums to `n_groups`.
    """
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), size=number)
    return draws.astype(np.float64)


def weighted(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums over groups, (groups, ...), each group taken as often as its weight says.

    Weights are (groups,), or (resamplings, groups) for one sum a resampling, (resamplings, ...).
    """
    return cast("NDArray[np.float64]", np.tensordot(weights, sums, axes=(-1, 0)))


def mean_and_error(
    sums: NDArray[np.float64], numbers: NDArray[np.float64], resampled: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a mean over all groups and its bootstrap error, (...).

    `sums`, (groups, ...), has a sum of each group and `numbers`, (groups,) or of the same shape,
    how many terms it has; `resampled` is from :func:`resamplings`. NaN where there is nothing to
    average; the error of a single group is NaN too.
    """
    while numbers.ndim < sums.ndim:
        numbers = numbers[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = sums.sum(0) / numbers.sum(0)
        many = weighted(sums, resampled) / weighted(numbers, resampled)
    return value, spread(many)


def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation over the first axis, of the finite values only.

    NaN where fewer than half of the values are finite: so many failures leave no error to quote.
    """
    finite = np.isfinite(values)
    number = finite.sum(0)
    safe = np.where(finite, values, 0.0)
    enough = np.maximum(number, 1)
    mean = safe.sum(0) / enough
    square = (np.where(finite, values - mean, 0.0) ** 2).sum(0)
    result = np.sqrt(square / np.maximum(number - 1, 1))
    return np.asarray(np.where(number >= max(2, len(values) / 2), result, np.nan))
