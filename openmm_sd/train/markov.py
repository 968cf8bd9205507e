"""A reversible Markov model of the training data: what equilibrium looks like, and long lags.

Training data is rarely a Boltzmann sample: seeded runs put frames where dynamics hardly ever is.
That is what a conditional model wants, but it hides two things that the data does know: how likely
each region is at equilibrium, and what happens over times longer than most runs. A reversible
Markov state model over the slow torsions recovers both from transition counts alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from deeptime.clustering import ClusterModel, RegularSpace
from deeptime.markov.tools.analysis import stationary_distribution
from deeptime.markov.tools.estimation import connected_sets, transition_matrix
from numpy.typing import NDArray

#: Least distance of two cells' centres, in units of the torsions' cosines and sines: 9 degrees.
_CELL_SIZE: Final = 0.15
#: Cells that are connected both ways and fewer than this are left out next to biased runs.
_SMALLEST_PART: Final = 5
#: Transitions between two cells, both ways together, that tie their weights to each other.
_FIRM_COUNTS: Final = 10
#: A count that decides nothing.
_TRACE: Final = 1e-6
#: Frames from which the cells are chosen at most.
_FIT_FRAMES: Final = 200_000


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """Cells, their equilibrium weights and the transitions between them.

    Attributes
    ----------
    cells : tuple of ndarray
        One array (T,) a run: the cell of each frame, -1 where the frame lies in a cell outside the
        connected part of the data.
    weights : ndarray
        (C,), equilibrium probability of each cell, sums to 1.
    transitions : ndarray
        (C, C), transition matrix over `lag_ps`; reversible with respect to `weights`.
    lag_ps : float
        ps.
    """

    cells: tuple[NDArray[np.int64], ...]
    weights: NDArray[np.float64]
    transitions: NDArray[np.float64]
    lag_ps: float

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.weights)

    def timescales(self, count: int) -> NDArray[np.float64]:
        """Return the slowest implied timescales, ps; fewer when there are fewer."""
        root = np.sqrt(self.weights)
        symmetric = self.transitions * root[:, None] / root[None, :]
        values = np.linalg.eigvalsh(0.5 * (symmetric + symmetric.T))[::-1]
        # A one is a set of cells that nothing was seen to leave at this lag.
        values = values[(values > 0.0) & (values < 1.0 - 1e-9)][:count]
        return -self.lag_ps / np.log(values)

    def frame_weights(self) -> NDArray[np.float64]:
        """Return the equilibrium weight of every frame, runs one after the other; sums to 1."""
        cells = np.concatenate(self.cells)
        known = cells >= 0
        counts = np.bincount(cells[known], minlength=self.n_cells)
        weights = np.zeros(len(cells))
        weights[known] = (self.weights / np.maximum(counts, 1))[cells[known]]
        return weights / weights.sum()


def fit_markov(
    angles: Sequence[NDArray[np.floating]],
    spacing_ps: float,
    lag_ps: float = 10.0,
    *,
    weights_lag_ps: float = 1.0,
    weighted: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]] = (),
    max_cells: int = 600,
    seed: int = 1,
) -> MarkovModel:
    """Fit a Markov model to the torsions of some runs.

    Parameters
    ----------
    angles : sequence of ndarray
        One array (T, D) a run: torsions, radians.
    spacing_ps : float
        Time between frames, ps.
    lag_ps : float
        Lag of the transitions: long enough for the solvent and the faster coordinates to forget.
    weights_lag_ps : float
        Lag at which the equilibrium weights are estimated. Weights follow from detailed balance at
        any lag, and a short one sees the small steps across a barrier that nothing crosses in one.
    weighted : sequence of (ndarray, ndarray)
        Torsions (T, D) and logarithmic equilibrium weights (T,) of biased runs. Parts of the data
        between which the transitions do not decide get their weights from these.
    max_cells : int
        Number of cells at most. They are evenly spread over what was visited, so that barriers are
        resolved as well as basins.
    seed : int
        Seed of the order in which frames are looked at.

    Returns
    -------
    MarkovModel
        Without biased runs, over the largest set of cells that are connected both ways; with them,
        over all cells whose weight is known.
    """
    angles = [np.asarray(a, dtype=np.float64) for a in angles]
    stride = max(1, round(lag_ps / spacing_ps))
    short = min(stride, max(1, round(weights_lag_ps / spacing_ps)))
    if not any(len(a) > stride for a in angles):
        raise ValueError(f"no run is longer than the Markov model's lag of {lag_ps:g} ps")
    features = [np.concatenate([np.cos(a), np.sin(a)], axis=1) for a in angles]
    clustering = _spread_cells(features, max_cells, seed)
    cells = [clustering.transform(f).astype(np.int64) for f in features]
    n_cells = len(clustering.cluster_centers)
    if n_cells == 1:
        return MarkovModel(tuple(cells), np.ones(1), np.ones((1, 1)), stride * spacing_ps)
    counts = _counts(cells, short, n_cells)
    weights = _weights(counts, _populations(clustering, weighted))
    cells, weights = _only(np.flatnonzero(weights > 0.0), cells, weights)
    # Cells that nothing is seen to leave at the long lag, say because only short runs came there,
    # would hold on to whatever is composed through them.
    exchange = _counts(cells, stride, len(weights))
    sets = connected_sets(exchange + exchange.T)
    large = [some for some in sets if len(some) >= _SMALLEST_PART] or sets[:1]
    cells, weights = _only(np.sort(np.concatenate(large)), cells, weights)
    transitions = reversible_transitions(_counts(cells, stride, len(weights)), weights)
    return MarkovModel(tuple(cells), weights, transitions, stride * spacing_ps)


def _only(
    kept: NDArray[np.int64], cells: Sequence[NDArray[np.int64]], weights: NDArray[np.float64]
) -> tuple[list[NDArray[np.int64]], NDArray[np.float64]]:
    """Leave out all cells but some: -1 in the runs, and weights that sum to 1."""
    # One more place, for the cells that were left out already.
    place = np.full(len(weights) + 1, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    return [place[run] for run in cells], weights[kept] / weights[kept].sum()


def _weights(
    counts: NDArray[np.float64], populations: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return the weight of each cell; zero where nothing tells."""
    weights = np.zeros(len(counts))
    parts = connected_sets(counts)
    if populations is None:
        parts = parts[:1]
    else:
        # Transitions seen a few times do not decide how likely two parts are.
        firm = np.where(counts + counts.T >= _FIRM_COUNTS, counts, 0.0)
        firm_parts = [part for part in connected_sets(firm) if len(part) >= _SMALLEST_PART]
        parts = _grown(firm_parts, counts) or parts[:1]
    for part in parts:
        share = 1.0 if populations is None else populations[part].sum()
        if len(part) == 1:
            weights[part] = share
            continue
        block = transition_matrix(
            counts[np.ix_(part, part)], reversible=True, maxiter=100_000, maxerr=1e-7
        )
        weights[part] = share * stationary_distribution(block)
    return weights


def _grown(parts: list[NDArray[np.int64]], counts: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Give each cell outside the parts to the one it exchanges most with.

    Such cells are no parts of their own: a biased run's weight of them is too rough. Leaving them
    out would lose the transitions through them, and what is left would look slower than it is.
    """
    exchange = counts + counts.T
    np.fill_diagonal(exchange, 0.0)
    owner = np.full(len(counts), -1)
    for number, part in enumerate(parts):
        owner[part] = number
    while len(parts):
        belongs = (owner[:, None] == np.arange(len(parts))).astype(float)
        ties = exchange @ belongs
        new = np.flatnonzero((owner < 0) & (ties.max(1) > 0.0))
        if not len(new):
            break
        owner[new] = ties[new].argmax(1)
    grown = []
    for number, part in enumerate(parts):
        cells = np.flatnonzero(owner == number)
        # Connected both ways, and with the part itself.
        sets = connected_sets(counts[np.ix_(cells, cells)])
        grown.append(next(cells[some] for some in sets if part[0] in cells[some]))
    return grown


def _populations(
    clustering: ClusterModel,
    weighted: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> NDArray[np.float64] | None:
    """Return the weight that biased runs give each cell."""
    if not weighted:
        return None
    populations = np.zeros(len(clustering.cluster_centers))
    most = max(float(np.max(log_weights)) for _, log_weights in weighted)
    for torsions, log_weights in weighted:
        cell = clustering.transform(np.concatenate([np.cos(torsions), np.sin(torsions)], axis=1))
        populations += np.bincount(
            cell, weights=np.exp(log_weights - most), minlength=len(populations)
        )
    return populations / populations.sum()


def reversible_transitions(
    counts: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the most likely transition matrix that is reversible with given weights.

    Parameters
    ----------
    counts : ndarray
        (C, C) transition counts.
    weights : ndarray
        (C,), the stationary distribution, all positive.

    Returns
    -------
    ndarray
        (C, C). A cell without counts keeps to itself.
    """
    # A rare event may have been seen in one direction only, which the estimator refuses: a trace of
    # each count the other way round, and of a stay in each cell, leaves the maximum where it is.
    counts = counts + _TRACE * (counts.T + np.eye(len(weights)))
    transitions = np.eye(len(weights))
    for part in connected_sets(counts):
        if len(part) > 1:
            some = weights[part] / weights[part].sum()
            block = counts[np.ix_(part, part)]
            transitions[np.ix_(part, part)] = transition_matrix(
                block, reversible=True, mu=some, maxiter=100_000, maxerr=1e-8
            )
    return transitions


def _spread_cells(
    features: Sequence[NDArray[np.float64]], max_cells: int, seed: int
) -> ClusterModel:
    """Choose centres that keep a distance from each other."""
    everything = np.concatenate(features)
    order = np.random.default_rng(seed).permutation(len(everything))[:_FIT_FRAMES]
    distance = _CELL_SIZE
    while True:
        clustering = RegularSpace(dmin=distance, max_centers=max_cells + 1, n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # too many centres: handled here
            model = clustering.fit_fetch(everything[order])
        if len(model.cluster_centers) <= max_cells:
            return model
        distance *= 1.15


def _counts(cells: Sequence[NDArray[np.int64]], stride: int, n_cells: int) -> NDArray[np.float64]:
    """Count the pairs of frames in known cells, whatever lies between them."""
    counts = np.zeros(n_cells * n_cells)
    for run in cells:
        before, after = run[:-stride], run[stride:]
        known = (before >= 0) & (after >= 0)
        pairs = before[known] * n_cells + after[known]
        counts += np.bincount(pairs, minlength=n_cells * n_cells)
    return counts.reshape(n_cells, n_cells)
