"""Histograms of torsions, how different they are, and the basins they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .sample import Sample, weighted
from .torsions import BASINS, basins

JSD_BINS = 50
"""Bins along each angle in Jensen-Shannon divergences."""

MARGINAL_BINS = 72
"""Bins of the histogram of one torsion, 5 degrees each."""

_SMOOTHING_DEG = 10.0
# A shoulder of a histogram is no basin: between two there is a barrier of at least this many kT.
_BARRIER_KT = 0.5
_SMALLEST_BASIN = 0.003


def bin_numbers(angles: NDArray[Any], bins: int) -> NDArray[np.int64]:
    """Return the bins, (T,), in which frames with angles (T, K), radians, lie.

    Each angle has `bins` equal bins from -180 degrees on; those of the last angle are adjacent.
    """
    scaled = (np.asarray(angles, dtype=np.float64) + np.pi) / (2 * np.pi) * bins
    cell = np.floor(scaled).astype(np.int64) % bins
    return cell @ bins ** np.arange(cell.shape[1])[::-1]


def histogram_1d(angles: NDArray[Any], bins: int = MARGINAL_BINS) -> NDArray[np.int64]:
    """Return counts of an angle (radians, any shape) in equal bins from -180 degrees on."""
    return np.bincount(bin_numbers(np.reshape(angles, (-1, 1)), bins), minlength=bins)


def histogram_2d(angles: NDArray[Any], bins: int = JSD_BINS) -> NDArray[np.int64]:
    """Return counts of two angles, (T, 2) in radians, as (bins * bins,)."""
    return np.bincount(bin_numbers(angles, bins), minlength=bins * bins)


def grouped_histograms(sample: Sample, columns: Sequence[int]) -> NDArray[np.float64]:
    """Return histograms of one angle (50 bins) or of two (50 x 50) by group, (groups, bins)."""
    chosen = list(columns)
    if len(chosen) == 1:
        return sample.sums(lambda before, _: histogram_1d(before[:, chosen[0]], JSD_BINS))[0]
    return sample.sums(lambda before, _: histogram_2d(before[:, chosen]))[0]


def jensen_shannon(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Jensen-Shannon divergence of histograms in bits.

    0 for the same shape, 1 for histograms that share no bin. Counts, (..., bins), need not be
    normalised.
    """
    p = first / first.sum(-1, keepdims=True)
    q = second / second.sum(-1, keepdims=True)
    middle = 0.5 * (p + q)
    return 0.5 * (_relative_entropy(p, middle) + _relative_entropy(q, middle))


def jsd_phi_psi(first: ArrayLike, second: ArrayLike, bins: int = JSD_BINS) -> float:
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
    p, q = (histogram_2d(np.reshape(sample, (-1, 2)), bins) for sample in (first, second))
    if not p.any() or not q.any():
        raise ValueError("no frames to make a histogram of")
    return float(jensen_shannon(p, q))


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / q), 0.0)
    return terms.sum(-1)


@dataclass(frozen=True)
class Divergence:
    """A Jensen-Shannon divergence with what sampling alone makes of it, in bits.

    Attributes
    ----------
    value : float
        Of all frames of both samples.
    error : float
        Standard deviation when the groups of both samples are resampled.
    expected : float
        What two samples of this size of one and the same law would give: the divergence of each
        from its own resamplings, added up.
    """

    value: float
    error: float
    expected: float


def divergence(
    model: Sequence[NDArray[np.float64]],
    reference: Sequence[NDArray[np.float64]],
    model_weights: NDArray[np.float64],
    reference_weights: NDArray[np.float64],
) -> Divergence:
    """Compare two samples by their grouped histograms.

    Each is a sequence of histograms, (groups, bins) counts, of the same angles; divergences are
    averaged over the sequence. Weights are (resamplings, groups), as many resamplings of each.
    """
    value, own = 0.0, 0.0
    many = np.zeros(len(model_weights))
    for one, other in zip(model, reference, strict=True):
        p, q = one.sum(0), other.sum(0)
        many_p, many_q = weighted(one, model_weights), weighted(other, reference_weights)
        value += float(jensen_shannon(p, q))
        own += float(jensen_shannon(many_p, p[None]).mean())
        own += float(jensen_shannon(many_q, q[None]).mean())
        many += jensen_shannon(many_p, many_q)
    count = len(model)
    return Divergence(value / count, float((many / count).std(ddof=1)), own / count)


@dataclass(frozen=True)
class Cores:
    """Regions well inside some states: a crossing leaves one and reaches another.

    `label` takes angles (..., K) in radians and returns the number of the core, -1 in none.
    """

    states: tuple[str, ...]
    label: Callable[[NDArray[Any]], NDArray[np.int64]]


@dataclass(frozen=True)
class Partition:
    """Named states of one or of several torsions.

    Attributes
    ----------
    label : callable
        Takes angles (..., K) in radians and returns the number of the state, (...,).
    passages : tuple of (str, tuple of int, tuple of int)
        Name, states at the start, states at the end: passages whose mean time is of interest.
    cores : tuple of Cores
        Between which crossings are timed.
    unions : tuple of (str, tuple of int)
        Several states together, whose population is of interest too.
    """

    name: str
    states: tuple[str, ...]
    label: Callable[[NDArray[Any]], NDArray[np.int64]]
    passages: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    cores: tuple[Cores, ...]
    unions: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def inside(self, angles: NDArray[Any]) -> dict[str, NDArray[np.bool_]]:
        """Return of every state and union which of the angles (..., K) are in it."""
        labels = self.label(angles)
        states = {name: labels == k for k, name in enumerate(self.states)}
        return states | {name: np.isin(labels, some) for name, some in self.unions}


def peptide_partition(phi: int = 0, psi: int = 1) -> Partition:
    """Return the five basins of alanine dipeptide, on columns `phi` and `psi` of the angles."""
    negative, positive = (0, 1, 2), (3, 4)
    return Partition(
        "phi, psi",
        BASINS,
        lambda angles: basins(angles[..., phi], angles[..., psi]),
        (
            ("phi<0 -> phi>0", negative, positive),
            ("phi>0 -> phi<0", positive, negative),
            ("beta+PII -> alphaR", (0, 1), (2,)),
            ("alphaR -> beta+PII", (2,), (0, 1)),
            ("alphaR -> alphaL", (2,), (3,)),
            ("alphaL -> alphaR", (3,), (2,)),
            ("beta -> PII", (0,), (1,)),
            ("PII -> beta", (1,), (0,)),
        ),
        (
            Cores(
                ("phi<0", "phi>0"),
                lambda angles: _within(angles[..., phi], ((-150.0, -40.0), (30.0, 100.0))),
            ),
            Cores(
                ("beta+PII", "alphaR"),
                lambda angles: np.where(
                    angles[..., phi] < 0,
                    _within(angles[..., psi], ((120.0, 170.0), (-60.0, -10.0))),
                    -1,
                ),
            ),
        ),
        (("phi>0", positive),),
    )


def _within(angle: NDArray[Any], windows: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    """Return in which window (degrees) each angle (radians) lies, -1 in none."""
    degrees = np.rad2deg(angle)
    result = np.full(degrees.shape, -1, dtype=np.int64)
    for k, (low, high) in enumerate(windows):
        result[(degrees > low) & (degrees < high)] = k
    return result


def well_partition(name: str, column: int, reference: NDArray[Any]) -> Partition | None:
    """Divide a torsion at the minima of its histogram; None if there is one well only.

    `column` is where it stands among the angles; the frames of `reference`, (T,) radians, count.
    """
    edges = wells(reference)
    if len(edges) < 2:
        return None
    where = _WellLabel(0, tuple(edges))(np.asarray(reference)[:, None])
    states, centres = [], []
    for k in range(len(edges)):
        inside = np.asarray(reference, dtype=np.float64)[where == k]
        centres.append(float(np.angle(np.exp(1j * inside).mean())))
        states.append(f"{name} {np.rad2deg(centres[-1]):+.0f}")
    number = range(len(states))
    passages = tuple(
        (f"{states[i]} -> {states[j]}", (i,), (j,)) for i in number for j in number if i != j
    )
    cores = Cores(tuple(states), _CoreLabel(column, tuple(centres)))
    return Partition(name, tuple(states), _WellLabel(column, tuple(edges)), passages, (cores,))


@dataclass(frozen=True)
class _WellLabel:
    """The number of the well: wells begin at the edges, which rise."""

    column: int
    edges: tuple[float, ...]

    def __call__(self, angles: NDArray[Any]) -> NDArray[np.int64]:
        found = np.searchsorted(np.array(self.edges), angles[..., self.column], side="right") - 1
        return (found % len(self.edges)).astype(np.int64)


@dataclass(frozen=True)
class _CoreLabel:
    """The number of the well whose centre is at most 20 degrees away, -1 if none is."""

    column: int
    centres: tuple[float, ...]

    def __call__(self, angles: NDArray[Any]) -> NDArray[np.int64]:
        away = np.cos(angles[..., self.column, None] - np.array(self.centres))
        return np.where(away.max(-1) > np.cos(np.deg2rad(20.0)), away.argmax(-1), -1)


def wells(angles: NDArray[Any]) -> list[float]:
    """Return the angles (radians, rising) at which the wells of a histogram are divided.

    Wells with a barrier of less than half a kT between them count as one, and one with less than
    0.3 per cent of the frames joins its neighbour. Empty if one well is left.
    """
    bins = 5 * MARGINAL_BINS
    counts = histogram_1d(angles, bins).astype(np.float64)
    step = 2 * np.pi / bins
    centres = -np.pi + (np.arange(bins) + 0.5) * step
    kernel = np.exp((np.cos(centres - centres[0]) - 1.0) / np.deg2rad(_SMOOTHING_DEG) ** 2)
    smooth = np.fft.irfft(np.fft.rfft(counts) * np.fft.rfft(kernel / kernel.sum()), bins)
    energy = -np.log(np.maximum(smooth, 1e-3) / smooth.max())
    edges = [
        k for k in range(bins) if energy[k] > energy[k - 1] and energy[k] >= energy[(k + 1) % bins]
    ]
    while len(edges) >= 2:
        # Taking out the lowest barrier first leaves the deepest wells.
        depth = []
        for n, edge in enumerate(edges):
            left = _span(edges[n - 1], edge, bins)
            right = _span(edge, edges[(n + 1) % len(edges)], bins)
            shallow = min(energy[edge] - energy[left].min(), energy[edge] - energy[right].min())
            share = min(counts[left].sum(), counts[right].sum()) / counts.sum()
            depth.append(shallow if share >= _SMALLEST_BASIN else -1.0)
        lowest = int(np.argmin(depth))
        if depth[lowest] >= _BARRIER_KT:
            break
        edges.pop(lowest)
    return [float(centres[k]) for k in edges] if len(edges) >= 2 else []


def _span(start: int, stop: int, bins: int) -> NDArray[np.int64]:
    return np.arange(start, stop if stop > start else stop + bins) % bins
