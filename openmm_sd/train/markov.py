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
from deeptime.clustering import RegularSpace
from deeptime.markov import TransitionCountEstimator, TransitionCountModel
from deeptime.markov.msm import MaximumLikelihoodMSM
from deeptime.markov.tools.estimation import connected_sets, transition_matrix
from numpy.typing import NDArray

#: Least distance of two cells' centres, in units of the torsions' cosines and sines: 9 degrees.
_CELL_SIZE: Final = 0.15
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
        values = np.linalg.eigvalsh(0.5 * (symmetric + symmetric.T))[::-1][1 : count + 1]
        # A one is a set of cells that nothing was seen to leave at this lag.
        values = values[(values > 0.0) & (values < 1.0 - 1e-9)]
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
    max_cells : int
        Number of cells at most. They are evenly spread over what was visited, so that barriers are
        resolved as well as basins.
    seed : int
        Seed of the order in which frames are looked at.

    Returns
    -------
    MarkovModel
        Over the largest set of cells that are connected both ways.
    """
    angles = [np.asarray(a, dtype=np.float64) for a in angles]
    stride = max(1, round(lag_ps / spacing_ps))
    short = min(stride, max(1, round(weights_lag_ps / spacing_ps)))
    if not any(len(a) > stride for a in angles):
        raise ValueError(f"no run is longer than the Markov model's lag of {lag_ps:g} ps")
    features = [np.concatenate([np.cos(a), np.sin(a)], axis=1) for a in angles]
    cells = _spread_cells(features, max_cells, seed)
    n_cells = 1 + max(int(c.max()) for c in cells)
    if n_cells == 1:
        return MarkovModel(tuple(cells), np.ones(1), np.ones((1, 1)), stride * spacing_ps)
    counts = _counts(cells, short, n_cells).submodel_largest(connectivity_threshold=0.0)
    reversible = MaximumLikelihoodMSM(reversible=True, maxiter=1_000_000, maxerr=1e-8)
    fine = reversible.fit_fetch(counts)
    kept = np.asarray(fine.count_model.state_symbols)
    weights = np.asarray(fine.stationary_distribution, dtype=np.float64)
    weights = weights / weights.sum()
    place = np.full(n_cells, -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    cells = [place[c] for c in cells]
    pieces = _pieces(cells)
    longer = np.zeros((len(kept), len(kept)))
    if any(len(piece) > stride for piece in pieces):
        longer = _counts(pieces, stride, len(kept)).count_matrix
    return MarkovModel(
        tuple(cells), weights, reversible_transitions(longer, weights), stride * spacing_ps
    )


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
) -> list[NDArray[np.int64]]:
    """Assign frames to the nearest of centres that keep a distance from each other."""
    everything = np.concatenate(features)
    order = np.random.default_rng(seed).permutation(len(everything))[:_FIT_FRAMES]
    distance = _CELL_SIZE
    while True:
        clustering = RegularSpace(dmin=distance, max_centers=max_cells + 1, n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # too many centres: handled here
            model = clustering.fit_fetch(everything[order])
        if len(model.cluster_centers) <= max_cells:
            return [model.transform(f).astype(np.int64) for f in features]
        distance *= 1.15


def _counts(cells: Sequence[NDArray[np.int64]], stride: int, n_cells: int) -> TransitionCountModel:
    estimator = TransitionCountEstimator(stride, "sliding", n_states=n_cells)
    return estimator.fit_fetch([c.astype(np.int32) for c in cells if len(c) > stride])


def _pieces(cells: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Cut runs where they leave the connected set."""
    pieces = []
    for run in cells:
        for piece in np.split(run, np.flatnonzero(np.diff(run < 0)) + 1):
            if len(piece) and piece[0] >= 0:
                pieces.append(piece)
    return pieces
