"""Bonds, angles, torsions and contacts of a molecule, from its bond graph and its frames.

A molecule is anything with `atomic_numbers`, `bonds`, `atom_names` and `residue_ids`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def distances(frames: ArrayLike, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return distances, (T, M), of pairs (M, 2) of atoms, in the unit of the frames, (T, N, 3)."""
    x = np.asarray(frames, dtype=np.float64)
    return np.linalg.norm(x[:, pairs[:, 0]] - x[:, pairs[:, 1]], axis=-1)


def angles(frames: ArrayLike, triples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return angles, (T, M) in degrees, of triples (M, 3) of atoms, the vertex in the middle."""
    x = np.asarray(frames, dtype=np.float64)
    vertex = x[:, triples[:, 1]]
    a, b = x[:, triples[:, 0]] - vertex, x[:, triples[:, 2]] - vertex
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.rad2deg(np.arctan2(sine, (a * b).sum(-1)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """How means and widths of M lengths or angles differ in two sets of frames, (M,) each.

    `shift` is the mean minus the reference's; `width_ratio` the standard deviation over the
    reference's.
    """

    reference_mean: NDArray[np.float64]
    shift: NDArray[np.float64]
    shift_error: NDArray[np.float64]
    width_ratio: NDArray[np.float64]
    width_ratio_error: NDArray[np.float64]


def compare(values: NDArray[Any], reference: NDArray[Any], blocks: int = 20) -> Comparison:
    """Compare means and widths of values, (T, M), with those of a reference.

    Errors come from blocks of neighbouring frames, left out one at a time.
    """
    (mean, width), many = _moments(values, blocks)
    (other_mean, other_width), other_many = _moments(reference, blocks)
    error, other = _jackknife(many), _jackknife(other_many)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = width / other_width
        relative = np.hypot(error[1] / width, other[1] / other_width)
    return Comparison(
        other_mean, mean - other_mean, np.hypot(error[0], other[0]), ratio, ratio * relative
    )


def _moments(values: NDArray[Any], blocks: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation, and the same with each block left out."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(blocks, len(values)))
    number = np.array([len(part) for part in parts], dtype=np.float64)[:, None]
    # Sums about a centre close by: the variance is a small difference otherwise.
    centre = parts[0].mean(0)
    sums = np.array([(part - centre).sum(0) for part in parts])
    squares = np.array([((part - centre) ** 2).sum(0) for part in parts])

    def moments(n: Any, s: Any, q: Any) -> NDArray[Any]:
        mean = s / n
        return np.array([centre + mean, np.sqrt(np.maximum(q / n - mean**2, 0.0))])

    whole = moments(number.sum(), sums.sum(0), squares.sum(0))
    if len(parts) < 2:
        return whole, np.full((2, 1, values.shape[1]), np.nan)
    rest = moments(number.sum() - number, sums.sum(0) - sums, squares.sum(0) - squares)
    return whole, rest


def _jackknife(many: NDArray[np.float64]) -> NDArray[np.float64]:
    count = many.shape[1]
    return np.sqrt((count - 1) * many.var(axis=1))


def jackknife_mean(values: NDArray[Any], blocks: int = 20) -> tuple[float, float]:
    """Return the mean of (T,) values and its error from blocks of neighbouring values."""
    whole, many = _moments(np.asarray(values)[:, None], blocks)
    return float(whole[0, 0]), float(_jackknife(many)[0, 0])
