"""A reversible Markov model of the training data: what equilibrium looks like, and long lags.

Training data is rarely a Boltzmann sample: seeded runs put frames where dynamics hardly ever is.
That is what a conditional model wants, but it hides two things that the data does know: how likely
each region is at equilibrium, and what happens over times longer than most runs. A reversible
Markov state model over the slow torsions recovers both from transition counts alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from deeptime.clustering import ClusterModel, RegularSpace
from deeptime.markov.tools.analysis import stationary_distribution
from deeptime.markov.tools.estimation import connected_sets, transition_matrix
from numpy.typing import NDArray

from ..analysis.kinetics import MarkovModel, circle_features, transition_counts

#: Least distance of two cells' centres, in units of the torsions' cosines and sines: 9 degrees.
_CELL_SIZE: Final = 0.15
#: Fewer cells than this are no conformation, and are left out if nothing connects them.
_SMALLEST_PART: Final = 5
#: Share of the weight of some cells that biased runs must have been at to be heard about them.
_KNOWN_SHARE: Final = 0.8
#: A process is slow that takes this many steps of the lag at which weights are estimated.
_SLOW_STEPS: Final = 20.0
#: Conformations are parted by processes that take this many steps of the model's lag.
_STATE_STEPS: Final = 2.0
#: A count that decides nothing.
_TRACE: Final = 1e-6
#: Cells at most, where nobody says otherwise.
_MAX_CELLS: Final = 600
#: Frames from which the cells are chosen at most.
_FIT_FRAMES: Final = 200_000


@dataclass(frozen=True, eq=False)
class CellModel(MarkovModel):
    """A Markov model that knows the cell of every frame, and conformations: sets of cells.

    Its states are cells, `stationary` their equilibrium weights. `cells` has one array (T,) a run,
    with -1 where a frame lies in a cell outside the connected part of the data. `conformations`,
    (C,), says which set each cell is in; slow processes part these sets.
    """

    cells: tuple[NDArray[np.int64], ...]
    conformations: NDArray[np.int64]

    @property
    def n_conformations(self) -> int:
        """Number of conformations."""
        return int(self.conformations.max()) + 1

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.stationary)

    def frame_weights(self) -> NDArray[np.float64]:
        """Return the equilibrium weight of every frame, runs one after the other; sums to 1."""
        cells = np.concatenate(self.cells)
        known = cells >= 0
        counts = np.bincount(cells[known], minlength=self.n_cells)
        weights = np.zeros(len(cells))
        weights[known] = (self.stationary / np.maximum(counts, 1))[cells[known]]
        return weights / weights.sum()


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of some runs and their equilibrium weights: what Markov models of any lag share.

    `cells` has one array (T,) a run, with -1 where the weight of a frame's cell is not known;
    `weights`, (C,), sum to 1.
    """

    cells: tuple[NDArray[np.int64], ...]
    weights: NDArray[np.float64]
    spacing_ps: float
    _models: dict[int, CellModel] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        angles: Sequence[NDArray[np.floating]],
        spacing_ps: float,
        *,
        weights_lag_ps: float = 1.0,
        weighted: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]] = (),
        max_cells: int = _MAX_CELLS,
        seed: int = 1,
    ) -> Cells:
        """Choose cells from the torsions of some runs and find their weights.

        Without biased runs these are the largest set of cells that are connected both ways; with
        them, all cells whose weight is known.

        Parameters
        ----------
        angles : sequence of ndarray
            One array (T, D) a run: torsions, radians.
        weights_lag_ps : float
            Lag at which the equilibrium weights are estimated. Weights follow from detailed balance
            at any lag, and a short one sees the small steps across a barrier that nothing crosses
            in one.
        weighted : sequence of (ndarray, ndarray)
            Torsions (T, D) and logarithmic equilibrium weights (T,) of biased runs, up to one
            constant for all of them. Parts of the data that no transitions connect get their
            weights from these. Where both know something, the two sides of a slow process get the
            mean of what they say, each with the error that its crossings from one side to the other
            allow.
        max_cells : int
            They are evenly spread over what was visited, so that barriers are resolved as well as
            basins.
        seed : int
            Of the order in which frames are looked at.
        """
        features = [circle_features(a) for a in angles]
        clustering, size = _spread_cells(features, max_cells, seed)
        cells = [clustering.transform(f).astype(np.int64) for f in features]
        n_cells = len(clustering.cluster_centers)
        if n_cells == 1:
            return cls(tuple(cells), np.ones(1), spacing_ps)
        counts = transition_counts(cells, max(1, round(weights_lag_ps / spacing_ps)), n_cells)
        biased = [
            _cells_nearby(clustering, circle_features(torsions), size) for torsions, _ in weighted
        ]
        populations = _populations(biased, [w for _, w in weighted], n_cells)
        weights = _weights(counts, populations)
        if populations is not None:
            weights = _blended(weights, populations, counts, cells, biased)
        cells, weights = _only(np.flatnonzero(weights > 0.0), cells, weights)
        return cls(tuple(cells), weights, spacing_ps)

    def model(self, lag_ps: float) -> CellModel:
        """Return the Markov model of a lag, ps; it is estimated once.

        The lag must be long enough for the solvent and the faster coordinates to forget.
        """
        stride = max(1, round(lag_ps / self.spacing_ps))
        if not any(len(run) > stride for run in self.cells):
            raise ValueError(f"no run is longer than the Markov model's lag of {lag_ps:g} ps")
        if stride not in self._models:
            self._models[stride] = self._estimated(stride)
        return self._models[stride]

    def _estimated(self, stride: int) -> CellModel:
        lag_ps = stride * self.spacing_ps
        if len(self.weights) == 1:
            one = np.zeros(1, dtype=np.int64)
            return CellModel(lag_ps, one, np.ones((1, 1)), np.ones(1), self.cells, one)
        # Cells that nothing is seen to leave at the long lag, say because only short runs came
        # there, would hold on to whatever is composed through them.
        exchange = transition_counts(self.cells, stride, len(self.weights))
        sets = connected_sets(exchange + exchange.T)
        large = [some for some in sets if len(some) >= _SMALLEST_PART] or sets[:1]
        kept = np.sort(np.concatenate(large))
        cells, weights = _only(kept, self.cells, self.weights)
        transitions = reversible_transitions(exchange[np.ix_(kept, kept)], weights)
        conformations = _conformations(transitions, weights)
        return CellModel(lag_ps, kept, transitions, weights, tuple(cells), conformations)


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
    """Return the weight of each cell; zero where nothing tells.

    Within a set of cells that transitions connect both ways, they tell. How likely such sets are,
    biased runs tell that went to most of what is likely in them; sets of which they do not know
    most are left out, unless that leaves nothing.
    """
    weights = np.zeros(len(counts))
    parts = connected_sets(counts)
    for part in parts:
        inside = np.ones(1)
        if len(part) > 1:
            inside = _by_transitions(counts[np.ix_(part, part)], populations is not None)
        if populations is None:
            weights[part] = inside
            return weights
        there = populations[part] > 0.0
        known = inside[there].sum()
        if known >= _KNOWN_SHARE and (len(part) >= _SMALLEST_PART or len(parts) == 1):
            weights[part] = inside * (populations[part].sum() / known)
    if not weights.any():
        return _weights(counts, None)
    return weights / weights.sum()


def _by_transitions(counts: NDArray[np.float64], helped: bool) -> NDArray[np.float64]:
    """Return the most likely weights of connected cells, by detailed balance."""
    with warnings.catch_warnings():
        if helped:
            # What converges last are the ratios that few transitions tell, and biased runs tell.
            warnings.filterwarnings("ignore", "Reversible transition matrix", RuntimeWarning)
        matrix = transition_matrix(
            counts, reversible=True, maxiter=20_000 if helped else 100_000, maxerr=1e-7
        )
    return stationary_distribution(matrix)


def _cells_nearby(
    clustering: ClusterModel, features: NDArray[np.float64], size: float
) -> NDArray[np.int64]:
    """Return the cell of each frame of a biased run, -1 where no unbiased run ever was."""
    cells = clustering.transform(features).astype(np.int64)
    apart = np.linalg.norm(features - clustering.cluster_centers[cells], axis=1)
    # Cells were chosen from a sample of the frames: some lie a little farther out.
    return np.where(apart <= 1.1 * size, cells, -1)


def _populations(
    biased: Sequence[NDArray[np.int64]],
    log_weights: Sequence[NDArray[np.floating]],
    n_cells: int,
) -> NDArray[np.float64] | None:
    """Return the weight that biased runs give each cell."""
    if not any((cells >= 0).any() for cells in biased):
        return None
    populations = np.zeros(n_cells)
    most = max(float(np.max(logs)) for logs in log_weights)
    for cells, logs in zip(biased, log_weights, strict=True):
        here = cells >= 0
        populations += np.bincount(cells[here], np.exp(logs[here] - most), n_cells)
    return populations / populations.sum()


def _blended(
    weights: NDArray[np.float64],
    populations: NDArray[np.float64],
    counts: NDArray[np.float64],
    cells: Sequence[NDArray[np.int64]],
    biased: Sequence[NDArray[np.int64]],
) -> NDArray[np.float64]:
    """Return weights that take from the biased runs what these know better.

    The slowest process of the cells parts them in two. How likely the sides are, the transitions
    tell with an error that the number of crossings sets, the biased runs likewise with theirs. The
    logarithm of the ratio becomes the mean, weighted with both errors, and each side is parted
    further, until what is left is fast.
    """
    weights = weights.copy()
    waiting = [np.flatnonzero(weights > 0.0)]
    while waiting:
        some = waiting.pop()
        transitions = reversible_transitions(counts[np.ix_(some, some)], weights[some])
        sides = _slow_sides(transitions, weights[some], _SLOW_STEPS)
        if sides is None:
            continue
        side = np.zeros(len(weights), dtype=np.int64)
        side[some] = sides
        share = [weights[side * sign > 0].sum() for sign in (-1, 1)]
        other = [populations[side * sign > 0].sum() for sign in (-1, 1)]
        mine, theirs = _precision(side, cells), _precision(side, biased)
        # A biased run that stays around the barrier crosses it all the time and knows neither side.
        known = [weights[(side * sign > 0) & (populations > 0.0)].sum() for sign in (-1, 1)]
        if theirs > 0.0 and all(k >= _KNOWN_SHARE * s for k, s in zip(known, share, strict=True)):
            ratio = mine * np.log(share[1] / share[0]) + theirs * np.log(other[1] / other[0])
            ratio /= mine + theirs
            total = sum(share)
            for sign, before in zip((-1, 1), share, strict=True):
                weights[side * sign > 0] *= total / (1.0 + np.exp(-sign * ratio)) / before
        waiting += [np.flatnonzero(np.sign(side) == sign) for sign in (-1, 1)]
    return weights


def _conformations(
    transitions: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the conformation of each cell: what no slow process parts."""
    found = np.zeros(len(weights), dtype=np.int64)
    waiting = [np.arange(len(weights))]
    count = 0
    while waiting:
        some = waiting.pop()
        # The process seen only while it is inside.
        flow = weights[some, None] * transitions[np.ix_(some, some)]
        inside = flow.sum(1)
        sides = _slow_sides(flow / inside[:, None], inside, _STATE_STEPS)
        if sides is None:
            found[some] = count
            count += 1
        else:
            waiting += [some[sides < 0], some[sides > 0]]
    return found


def _slow_sides(
    transitions: NDArray[np.float64], weights: NDArray[np.float64], steps: float
) -> NDArray[np.int64] | None:
    """Part cells by their slowest process: -2 and 2 in the cores of its sides, -1 and 1 around.

    None where no process takes as many steps as that.
    """
    if len(weights) < 2 * _SMALLEST_PART:
        return None
    # Between sets that nothing connects no process is slowest: any mixture of them looks the same.
    sets = [some for some in connected_sets(transitions) if len(some) >= _SMALLEST_PART]
    if not sets:
        return None
    side = np.ones(len(weights), dtype=np.int64)
    if len(sets) > 1:
        side[np.concatenate(sets)] = 2
        side[sets[0]] = -2
        return side
    if len(sets[0]) < len(weights):
        some = sets[0]
        sides = _slow_sides(transitions[np.ix_(some, some)], weights[some], steps)
        if sides is None:
            return None
        side[some] = sides
        return side
    root = np.sqrt(weights / weights.sum())
    symmetric = transitions * root[:, None] / root[None, :]
    values, vectors = np.linalg.eigh(0.5 * (symmetric + symmetric.T))
    # What is slow in a few cells alone is no process that counts.
    for k in range(len(values) - 2, -1, -1):
        if values[k] < np.exp(-1.0 / steps):
            return None
        slow = vectors[:, k] / root
        side = np.where(slow > 0.0, 1, -1)
        if min((side > 0).sum(), (side < 0).sum()) >= _SMALLEST_PART:
            break
    else:
        return None
    for sign in (-1, 1):
        here = side == sign
        typical = np.average(np.abs(slow[here]), weights=weights[here])
        side[here & (np.abs(slow) > 0.5 * typical)] *= 2
    return side


def _precision(side: NDArray[np.int64], cells: Sequence[NDArray[np.int64]]) -> float:
    """Return one over the variance of the logarithm of two sides' ratio.

    It follows from the number of crossings from core to core, each way.
    """
    there = back = 0
    for run in cells:
        where = np.where(run >= 0, side[run], 0)
        cores = where[np.abs(where) == 2]
        there += int(((cores[:-1] < 0) & (cores[1:] > 0)).sum())
        back += int(((cores[:-1] > 0) & (cores[1:] < 0)).sum())
    return 1.0 / (1.0 / there + 1.0 / back) if there and back else 0.0


def reversible_transitions(
    counts: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the most likely transition matrix that is reversible with given weights, (C, C).

    The weights, (C,), are the stationary distribution, all positive. A cell without counts keeps to
    itself.
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
) -> tuple[ClusterModel, float]:
    """Choose centres that keep a distance from each other, and return that, too."""
    everything = np.concatenate(features)
    order = np.random.default_rng(seed).permutation(len(everything))[:_FIT_FRAMES]
    distance = _CELL_SIZE
    while True:
        clustering = RegularSpace(dmin=distance, max_centers=max_cells + 1, n_jobs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # too many centres: handled here
            model = clustering.fit_fetch(everything[order])
        if len(model.cluster_centers) <= max_cells:
            return model, distance
        distance *= 1.15
