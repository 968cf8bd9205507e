"""Markov state models of torsions: timescales, passage times, and what tests them.

The states are found once, from the reference, and used for the reference and the model alike:
discretisation shortens timescales, but then by as much in both.

deeptime clusters and estimates; it is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .equilibrium import Partition
from .sample import Sample, resamplings, spread, weighted
from .torsions import BASINS

STATES = 200
"""States of a Markov state model where there are frames enough."""

COPIES = 32
"""Resampled Markov state models from which errors are taken."""

# Clustering learns nothing from more frames than this.
_CLUSTERED_FRAMES = 25_000
_FRAMES_PER_STATE = 50
_FEWEST_STATES = 5
# A resampled eigenvalue of pure noise is larger by 41 per cent than the first one, because the
# noise enters twice; that of a process is as large as before.
_LARGEST_INFLATION = 0.08
# Relative error of an eigenvalue beyond which it tells nothing.
_LARGEST_ERROR = 0.33


@dataclass(frozen=True, eq=False)
class Discretisation:
    """Microstates: the cells of k-means centres on the cosines and sines of torsions.

    Centres are (K, 2 D): cosines of D angles, then their sines.
    """

    centres: NDArray[np.float64]

    @classmethod
    def fit(cls, angles: ArrayLike, n_states: int | None = None, seed: int = 1) -> Discretisation:
        """Find centres for angles (T, D) in radians.

        By default there is one for 50 frames, between 5 and 200.
        """
        from deeptime.clustering import KMeans

        angles = np.asarray(angles)
        if n_states is None:
            n_states = int(np.clip(len(angles) // _FRAMES_PER_STATE, _FEWEST_STATES, STATES))
        every = max(1, len(angles) // _CLUSTERED_FRAMES)
        features = circle_features(angles[::every])
        n_states = min(n_states, len(np.unique(features, axis=0)))
        if n_states < 2:
            raise ValueError("the reference's torsions never change: there is no kinetics in it")
        with np.errstate(all="ignore"):
            estimator = KMeans(n_states, max_iter=100, fixed_seed=seed, n_jobs=1)
            model = estimator.fit(features).fetch_model()
        return cls(np.array(model.cluster_centers, dtype=np.float64))

    @property
    def n_states(self) -> int:
        return len(self.centres)

    def assign(self, angles: ArrayLike) -> NDArray[np.int16]:
        """Return the microstate of every frame, (T,), from angles (T, D) in radians."""
        angles = np.asarray(angles)
        result = np.empty(len(angles), dtype=np.int16)
        squares = (self.centres**2).sum(1)
        for start in range(0, len(angles), 20_000):
            block = slice(start, start + 20_000)
            result[block] = (
                squares - 2.0 * circle_features(angles[block]) @ self.centres.T
            ).argmin(1)
        return result


def circle_features(angles: ArrayLike) -> NDArray[np.float64]:
    """Return the cosines and then the sines of angles (T, D) in radians, (T, 2 D)."""
    angles = np.asarray(angles, dtype=np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def pair_counts(before: ArrayLike, after: ArrayLike, n_states: int) -> NDArray[np.int64]:
    """Return how often each state came after each, (n_states, n_states): from, to."""
    pairs = np.asarray(before).reshape(-1).astype(np.int64) * n_states
    pairs += np.asarray(after).reshape(-1)
    return np.bincount(pairs, minlength=n_states * n_states).reshape(n_states, n_states)


def transition_counts(
    trajectories: Sequence[ArrayLike], stride: int, n_states: int
) -> NDArray[np.float64]:
    """Return sliding transition counts of several runs, (n_states, n_states): from, to.

    Runs are (T,) integers below `n_states`; frames in a negative one, whose state is not known,
    count in no pair. The stride is the lag in frames.
    """
    counts = np.zeros((n_states, n_states))
    for run in map(np.asarray, trajectories):
        before, after = run[:-stride], run[stride:]
        known = (before >= 0) & (after >= 0)
        counts += pair_counts(before[known], after[known], n_states)
    return counts


def grouped_counts(states: Sample, stride: int, n_states: int) -> NDArray[np.float64]:
    """Return sliding transition counts of microstates, (groups, n_states, n_states).

    Every pair of frames `stride` apart in one run counts; none is made up by joining the end of a
    run to the beginning of another.
    """
    total, _ = states.sums(lambda before, after: pair_counts(before, after, n_states), stride)
    return total


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """A reversible Markov state model.

    `states` are the m microstates that it knows, the largest connected set; `matrix`, (m, m), has
    the transition probabilities between them, and `stationary`, (m,), their stationary
    probabilities.
    """

    lag_ps: float
    states: NDArray[np.int64]
    matrix: NDArray[np.float64]
    stationary: NDArray[np.float64]

    def eigenvalues(self, count: int) -> NDArray[np.float64]:
        """Return the largest eigenvalues below 1, falling; NaN where there are fewer states."""
        values = np.sort(self._modes()[0])[::-1][1 : count + 1]
        return np.concatenate([values, np.full(count - len(values), np.nan)])

    def timescales(self, count: int) -> NDArray[np.float64]:
        """Return the slowest implied timescales, ps; fewer when there are fewer."""
        values = self.eigenvalues(len(self.stationary) - 1)
        # A one is a set of states that nothing was seen to leave at this lag.
        values = values[(values > 0.0) & (values < 1.0 - 1e-9)][:count]
        return -self.lag_ps / np.log(values)

    def modes(self, count: int, n_states: int) -> NDArray[np.float64]:
        """Return the slowest right eigenvectors on all microstates, (n_states, count).

        Unit variance; zero, their mean, on microstates that the model does not know.
        """
        values, vectors = self._modes()
        order = np.argsort(values)[::-1][1 : count + 1]
        result = np.zeros((n_states, len(order)))
        result[self.states] = vectors[:, order] / np.sqrt(self.stationary)[:, None]
        return result

    def _modes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        root = np.sqrt(self.stationary)
        symmetric = root[:, None] * self.matrix / root[None, :]
        values, vectors = np.linalg.eigh(0.5 * (symmetric + symmetric.T))
        return values, vectors

    def mean_first_passage(self, start: NDArray[np.bool_], end: NDArray[np.bool_]) -> float:
        """Return the mean time from one set of microstates to another, ps.

        Sets are masks over all microstates; the start is taken with its stationary probabilities.
        NaN if the model knows no microstate of one of the sets.
        """
        from_here, to_there = start[self.states], end[self.states]
        if not from_here.any() or not to_there.any():
            return float("nan")
        rest = ~to_there
        transient = self.matrix[np.ix_(rest, rest)]
        times = np.zeros(len(self.states))
        times[rest] = np.linalg.solve(np.eye(len(transient)) - transient, np.ones(len(transient)))
        weight = self.stationary * from_here
        return float((weight * times).sum() / weight.sum() * self.lag_ps)

    def coarse(self, labels: NDArray[np.int64], n_labels: int, steps: int) -> NDArray[np.float64]:
        """Return the probability to be in each state of a partition after some steps of a lag each.

        `labels` says of every microstate in which state it lies. The result is
        (n_labels, n_labels): from, to. NaN where the model knows no state to start from.
        """
        member = np.eye(n_labels)[labels[self.states]]
        weight = member * self.stationary[:, None]
        total = weight.sum(0)[:, None]
        moved = weight.T @ np.linalg.matrix_power(self.matrix, steps) @ member
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, moved / total, np.nan)


def estimate(counts: ArrayLike, lag_ps: float) -> MarkovModel:
    """Estimate a reversible Markov state model on the largest connected set of states.

    By maximum likelihood with detailed balance from (n, n) transition counts, so that chains need
    not start from equilibrium. ValueError if no two states are connected.
    """
    from deeptime.markov import TransitionCountModel
    from deeptime.markov.msm import MaximumLikelihoodMSM

    whole = TransitionCountModel(np.asarray(counts, dtype=np.float64))
    largest = np.sort(whole.connected_sets()[0])
    if len(largest) < 2:
        raise ValueError("no two states exchange in both directions")
    estimator = MaximumLikelihoodMSM(reversible=True, maxerr=1e-7)
    model = estimator.fit(whole.submodel(largest)).fetch_model()
    return MarkovModel(
        float(lag_ps),
        largest.astype(np.int64),
        np.asarray(model.transition_matrix, dtype=np.float64),
        np.asarray(model.stationary_distribution, dtype=np.float64),
    )


def symmetrised(counts: NDArray[np.float64], lag_ps: float) -> MarkovModel:
    """Return the Markov state model of counts that are averaged with their transpose.

    At equilibrium close to :func:`estimate`, and a hundred times quicker. Takes the largest set of
    states that are connected in any direction.
    """
    from deeptime.markov.tools.estimation import connected_sets

    both = counts + counts.T
    sets = sorted(connected_sets(both, directed=False), key=min)
    states = np.sort(max(sets, key=lambda some: both[some].sum()))
    states = states[both[states].sum(1) > 0]
    return _symmetrised(counts, lag_ps, states)


def _symmetrised(
    counts: NDArray[np.float64], lag_ps: float, states: NDArray[np.int64]
) -> MarkovModel:
    both = 0.5 * (counts + counts.T)[np.ix_(states, states)]
    rows = both.sum(1)
    return MarkovModel(float(lag_ps), states, both / rows[:, None], rows / rows.sum())


@dataclass(frozen=True, eq=False)
class Estimate:
    """A Markov state model with errors.

    Errors come from resampled groups. To repeat the maximum likelihood estimate for each would take
    minutes, so the copies are of the quick kind, and their spread is taken relative to the quick
    estimate from all counts.

    Attributes
    ----------
    model : MarkovModel
        By maximum likelihood, from all counts.
    quick : MarkovModel
        By averaging counts with their transpose, from all counts.
    copies : tuple of MarkovModel
        The same from resampled groups.
    """

    model: MarkovModel
    quick: MarkovModel
    copies: tuple[MarkovModel, ...]

    def timescales(self, count: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the slowest implied timescales and their errors, ps.

        NaN where the lag is so long that the eigenvalue is lost in the noise: where it grows by
        more than 8 per cent when the groups are resampled, or its error exceeds a third of it.
        """
        values = _timescales(self.model.eigenvalues(count), self.model.lag_ps)
        once = self.quick.eigenvalues(count)
        many = np.array([copy.eigenvalues(count) for copy in self.copies]).reshape(-1, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = spread(_timescales(many, self.model.lag_ps))
            relative = relative / _timescales(once, self.model.lag_ps)
            lost = ~np.isfinite(relative) | (spread(many) > _LARGEST_ERROR * once)
            if len(many):
                lost |= np.median(many, axis=0) / once - 1.0 > _LARGEST_INFLATION
        return np.where(lost, np.nan, values), np.where(lost, np.nan, values * relative)

    def passage(self, start: NDArray[np.bool_], end: NDArray[np.bool_]) -> tuple[float, float]:
        """Return a mean first passage time and its error, ps."""
        value = self.model.mean_first_passage(start, end)
        once = self.quick.mean_first_passage(start, end)
        many = np.array([copy.mean_first_passage(start, end) for copy in self.copies])
        return value, float(value * spread(many) / once)

    def coarse(
        self, labels: NDArray[np.int64], n_labels: int, steps: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what :meth:`MarkovModel.coarse` predicts, and its error."""
        value = self.model.coarse(labels, n_labels, steps)
        many = np.array([copy.coarse(labels, n_labels, steps) for copy in self.copies])
        return value, spread(many.reshape(-1, n_labels, n_labels))


def _timescales(eigenvalues: NDArray[np.float64], lag_ps: float) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        good = (eigenvalues > 0) & (eigenvalues < 1)
        return np.where(good, -lag_ps / np.log(np.where(good, eigenvalues, 0.5)), np.nan)


def estimate_with_error(grouped: NDArray[np.float64], lag_ps: float, seed: int = 1) -> Estimate:
    """Estimate a Markov state model, and resampled copies of it, from :func:`grouped_counts`.

    ValueError if no two states are connected.
    """
    counts = grouped.sum(0)
    model = estimate(counts, lag_ps)
    drawn = resamplings(len(grouped), COPIES, seed) if len(grouped) > 1 else ()
    return Estimate(
        model,
        symmetrised(counts, lag_ps),
        tuple(symmetrised(weighted(grouped, weights), lag_ps) for weights in drawn),
    )


def microstate_labels(
    states: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]], n_states: int, n_labels: int
) -> NDArray[np.int64]:
    """Return, for every microstate, the state of a partition that most of its frames lie in.

    `states` and `labels` are microstates and states of the partition, frame by frame, run by run.
    """
    table = np.zeros((n_states, n_labels))
    for run, where in zip(states, labels, strict=True):
        pairs = run.reshape(-1).astype(np.int64) * n_labels + where.reshape(-1)
        table += np.bincount(pairs, minlength=n_states * n_labels).reshape(n_states, n_labels)
    return table.argmax(1)


def coarse_counts(
    grouped: NDArray[np.float64], labels: NDArray[np.int64], n_labels: int
) -> NDArray[np.float64]:
    """Add up counts between microstates to counts between states of a partition."""
    member = np.eye(n_labels)[labels]
    return np.einsum("gij,ia,jb->gab", grouped, member, member, optimize=True)


def mode_correlations(grouped: NDArray[np.float64], modes: NDArray[np.float64]) -> NDArray[Any]:
    """Return the correlation of functions of the microstate with themselves a lag later.

    From counts (..., n, n) and functions (n, m): Pearson's correlation over all pairs, (..., m).
    """
    total = grouped.sum((-1, -2))[..., None]
    before, after = grouped.sum(-1), grouped.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.einsum("...ij,im,jm->...m", grouped, modes, modes, optimize=True) / total
        mean_before, mean_after = before @ modes / total, after @ modes / total
        variance_before = before @ modes**2 / total - mean_before**2
        variance_after = after @ modes**2 / total - mean_after**2
        return (both - mean_before * mean_after) / np.sqrt(variance_before * variance_after)


def crossings(cores: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Find crossings from one core to another, (crossings, 3).

    Runs are (T,) numbers of the core, -1 in none. A row is the core left, the core reached, and the
    frames between the last one in the former and the first one in the latter.
    """
    result = [np.zeros((0, 3), dtype=np.int64)]
    for run in cores:
        inside = np.flatnonzero(run >= 0)
        core = run[inside].astype(np.int64)
        change = np.flatnonzero(np.diff(core) != 0)
        frames = inside[change + 1] - inside[change]
        result.append(np.stack([core[change], core[change + 1], frames], axis=1))
    return np.concatenate(result)


def partition_labels(partition: Partition, sample: Sample) -> Sample:
    """Return the states of a partition along every run."""
    return sample.map(lambda run: partition.label(run).astype(np.int16))


def hop_probabilities(
    before: ArrayLike, after: ArrayLike, n_states: int = len(BASINS)
) -> NDArray[np.float64]:
    """Return P[i, j], the share of pairs that start in state i and end in j.

    Parameters
    ----------
    before, after : array_like
        (T,) integers below `n_states`.

    Returns
    -------
    ndarray
        (n_states, n_states); rows sum to 1, or hold NaN where no pair starts.
    """
    counts = pair_counts(before, after, n_states)
    starts = counts.sum(1, keepdims=True)
    return np.where(starts > 0, counts / np.maximum(starts, 1), np.nan)


def transition_matrix(
    trajectories: Sequence[ArrayLike], stride: int, n_states: int
) -> NDArray[np.float64]:
    """Return a reversible transition matrix from sliding counts.

    Counts are symmetrised: right for trajectories at equilibrium, biased for others.

    Parameters
    ----------
    trajectories : sequence of array_like
        Each (T,) integers from 0 to `n_states` - 1.
    stride : int
        Lag in frames.

    Returns
    -------
    ndarray
        (m, m), rows sum to 1, over the m states that were visited, in their order.
    """
    return _of_visited(trajectories, stride, n_states, 1.0).matrix


def _of_visited(
    trajectories: Sequence[ArrayLike], stride: int, n_states: int, spacing_ps: float
) -> MarkovModel:
    counts = transition_counts(trajectories, stride, n_states)
    visited = np.flatnonzero((counts + counts.T).sum(1) > 0)
    return _symmetrised(counts, stride * spacing_ps, visited)


def implied_timescales(
    trajectories: Sequence[ArrayLike],
    stride: int,
    spacing_ps: float,
    n_states: int = len(BASINS),
    count: int = 1,
) -> NDArray[np.float64]:
    """Return the slowest implied timescales, -lag / ln(eigenvalue).

    A coarse estimate: discretisation shortens it, the more so at short lags, so compare only
    estimates made with the same states and lag.

    Parameters
    ----------
    trajectories : sequence of array_like
        Each (T,) integers from 0 to `n_states` - 1, from equilibrium dynamics.
    stride : int
        Lag in frames.
    spacing_ps : float
        Time between frames, ps.
    count : int
        How many timescales.

    Returns
    -------
    ndarray
        (count,) ps, falling; NaN where there are too few states or an eigenvalue is not positive.
    """
    model = _of_visited(trajectories, stride, n_states, spacing_ps)
    return _timescales(model.eigenvalues(count), model.lag_ps)
