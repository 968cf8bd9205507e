"""Figures of a comparison: a model or a run beside a reference, each with an error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..molecule.graph import Bonded, distant_pairs, heavy_angles, heavy_bonds
from ..molecule.torsions import Torsion, backbone_torsions, neighbouring_pairs
from .equilibrium import (
    Partition,
    divergence,
    grouped_histograms,
    histogram_1d,
    jensen_shannon,
    peptide_partition,
    well_partition,
)
from .geometry import angles, compare, distances, jackknife_mean
from .kinetics import (
    Discretisation,
    Estimate,
    coarse_counts,
    crossings,
    estimate_with_error,
    grouped_counts,
    microstate_labels,
    mode_correlations,
    partition_labels,
)
from .sample import Sample, mean_and_error, resamplings, spread, weighted
from .verdicts import Figure, Figures, figure

#: Lags of Markov state models, ps, as far as they are multiples of the spacing.
MSM_LAGS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
#: Passage times and Chapman-Kolmogorov tests are made at this lag, ps, or the next multiple.
PASSAGE_LAG = 20.0

_TIMESCALES = 3
_RESAMPLINGS = 200
_CK_STEPS = (1, 2, 3, 5, 8)
# A lag longer than this share of the longest run leaves too few pairs.
_LONGEST_LAG = 0.25
_MODES = 3
# Two heavy atoms clash when closer than this share of the closest they come in MD.
_CLASH = 0.8
# Kinetics looks at torsions that move: the length of the mean unit vector is below this.
_STIFF = 0.98


class JensenShannon(Figure):
    """A divergence, bits, with what two samples of these sizes of one and the same law give."""

    expected_of_exact_model: float
    frames_of_smaller_sample: int


class Crossings(Figure):
    """Mean duration of crossings between two cores, ps, and how many there were."""

    crossings: int
    per_microsecond: float


class Staying(TypedDict):
    """Probabilities to be in the same state again: a row a time, a column a state.

    Found in the frames, and predicted by the Markov state model of the shortest time.
    """

    states: list[str]
    times_ps: list[float]
    stay_found: list[list[float]]
    stay_found_error: list[list[float]]
    stay_predicted: list[list[float]]
    stay_predicted_error: list[list[float]]
    largest_deviation: float | None
    reference: NotRequired[Staying]


@dataclass(frozen=True, eq=False)
class Baseline:
    """The reference with all that is settled by it: basins, microstates, what is looked at.

    `torsions` are the columns of all angles; the sample has the angles at equilibrium. `peptide`
    holds the columns of phi and psi, if the molecule has one pair.
    """

    torsions: tuple[Torsion, ...]
    sample: Sample
    peptide: tuple[int, int] | None
    seed: int

    @classmethod
    def of(
        cls, molecule: Bonded, torsions: Sequence[Torsion], sample: Sample, seed: int
    ) -> Baseline:
        """Settle what is looked at."""
        pairs = backbone_torsions(molecule)
        where = {frozenset(t.atoms[1:3]): k for k, t in enumerate(torsions)}
        peptide = None
        if len(pairs) == 1:
            phi, psi = (where.get(frozenset(t.atoms[1:3])) for t in pairs[0])
            if phi is not None and psi is not None:
                peptide = (phi, psi)
        return cls(tuple(torsions), sample, peptide, seed)

    @cached_property
    def partitions(self) -> tuple[Partition, ...]:
        """The five basins of a peptide with one (phi, psi), or the wells of every torsion."""
        if self.peptide is not None:
            return (peptide_partition(*self.peptide),)
        frames = self.sample.frames()
        found = (
            well_partition(torsion.name, k, frames[:, k]) for k, torsion in enumerate(self.torsions)
        )
        return tuple(partition for partition in found if partition is not None)

    @cached_property
    def jsd_columns(self) -> list[tuple[int, ...]]:
        """Pairs of neighbouring torsions, or single ones where there are none."""
        if self.peptide is not None:
            return [self.peptide]
        pairs: list[tuple[int, ...]] = list(neighbouring_pairs(self.torsions))
        return pairs or [(k,) for k in range(len(self.torsions))]

    @property
    def jsd_key(self) -> str:
        return "jsd_phi_psi_bits" if self.peptide is not None else "jsd_dihedral_bits"

    @cached_property
    def columns(self) -> list[int]:
        """Torsions of which microstates are made."""
        if self.peptide is not None:
            return list(self.peptide)
        frames = self.sample.frames().astype(np.float64)
        length = np.abs(np.exp(1j * frames).mean(0))
        return [k for k in range(len(self.torsions)) if length[k] < _STIFF]

    @cached_property
    def discretisation(self) -> Discretisation | None:
        """Microstates; None if no torsion moves."""
        if not self.columns:
            return None
        return Discretisation.fit(self.sample.frames()[:, self.columns], seed=self.seed)

    @property
    def n_states(self) -> int:
        return 0 if self.discretisation is None else self.discretisation.n_states

    @cached_property
    def states(self) -> Sample:
        return self.microstates(self.sample)

    def microstates(self, sample: Sample) -> Sample:
        """Return the microstates along another sample."""
        if self.discretisation is None:
            raise ValueError("the reference's torsions never change: there is no kinetics in it")
        columns, assign = self.columns, self.discretisation.assign
        return sample.map(lambda run: assign(run[:, columns]))

    @cached_property
    def labels(self) -> tuple[NDArray[np.int64], ...]:
        """For each partition, in which of its states every microstate lies."""
        if self.discretisation is None:
            return ()
        return tuple(
            microstate_labels(
                self.states.runs,
                partition_labels(partition, self.sample).runs,
                self.discretisation.n_states,
                len(partition.states),
            )
            for partition in self.partitions
        )

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Resamplings of the reference's groups."""
        return resamplings(self.sample.n_groups, _RESAMPLINGS, self.seed)

    @cached_property
    def histograms(self) -> list[NDArray[np.float64]]:
        """Grouped histograms of the divergence."""
        return [grouped_histograms(self.sample, columns) for columns in self.jsd_columns]

    @cached_property
    def modes(self) -> NDArray[np.float64] | None:
        """The slowest modes of the reference, on microstates."""
        lag = passage_lag(self.sample.spacing_ps)
        found = markov_model(self.states, lag, self.n_states, self.seed) if self.n_states else None
        return None if found is None else found.model.modes(_MODES, self.n_states)


# -- equilibrium -----------------------------------------------------------------------------------


def populations(baseline: Baseline, sample: Sample) -> dict[str, tuple[float, float]]:
    """Return the population of every basin, and its error."""
    weights = resamplings(sample.n_groups, _RESAMPLINGS, baseline.seed)
    result: dict[str, tuple[float, float]] = {}
    for partition in baseline.partitions:
        sums, counts = sample.sums(
            lambda before, _, p=partition: np.array(  # type: ignore[misc]
                [inside.sum() for inside in p.inside(before).values()]
            )
        )
        value, error = mean_and_error(sums, counts, weights)
        names = (*partition.states, *(name for name, _ in partition.unions))
        for k, name in enumerate(names):
            result[name] = (float(value[k]), float(error[k]))
    return result


def equilibrium(baseline: Baseline, sample: Sample) -> dict[str, Any]:
    """Compare the equilibrium of chains with the reference's."""
    weights = resamplings(sample.n_groups, _RESAMPLINGS, baseline.seed + 1)
    histograms = [grouped_histograms(sample, columns) for columns in baseline.jsd_columns]
    whole = divergence(histograms, baseline.histograms, weights, baseline.weights)
    jsd = JensenShannon(
        value=whole.value,
        error=whole.error,
        expected_of_exact_model=whole.expected,
        frames_of_smaller_sample=min(sample.n_frames, baseline.sample.n_frames),
    )
    ours, theirs = populations(baseline, sample), populations(baseline, baseline.sample)
    marginals = {
        torsion.name: {
            "model": _density(sample, k),
            "reference": _density(baseline.sample, k),
            "jsd_bits": float(
                jensen_shannon(
                    grouped_histograms(sample, (k,)).sum(0),
                    grouped_histograms(baseline.sample, (k,)).sum(0),
                )
            ),
        }
        for k, torsion in enumerate(baseline.torsions)
    }
    return {
        baseline.jsd_key: jsd,
        "populations": {name: figure(*ours[name], theirs[name]) for name in ours},
        "marginals": marginals,
        "drift": drift(baseline, sample),
    }


def _density(sample: Sample, column: int) -> list[float]:
    counts = sample.sums(lambda before, _: histogram_1d(before[:, column]))[0].sum(0)
    return (counts / counts.sum() / (360.0 / len(counts))).tolist()


def drift(baseline: Baseline, sample: Sample) -> dict[str, Any]:
    """Return the divergence in quarters of the chains, with errors from resampled chains."""
    length = min(map(len, sample.runs))
    edges = np.linspace(0, length, 5).astype(int)
    weights = resamplings(sample.n_groups, _RESAMPLINGS, baseline.seed + 2)
    value, many = np.zeros(4), np.zeros((_RESAMPLINGS, 4))
    reference = [histogram.sum(0) for histogram in baseline.histograms]
    for k in range(4):
        quarter = _window(sample, int(edges[k]), int(edges[k + 1]))
        for columns, other in zip(baseline.jsd_columns, reference, strict=True):
            histogram = grouped_histograms(quarter, columns)
            value[k] += jensen_shannon(histogram.sum(0), other)
            many[:, k] += jensen_shannon(weighted(histogram, weights), other)
    value, many = value / len(reference), many / len(reference)
    return {
        "jsd_quarters_bits": {"value": value.tolist(), "error": many.std(0, ddof=1).tolist()},
        "last_half_bits": figure(
            float(value[3] - value[2]), float((many[:, 3] - many[:, 2]).std(ddof=1))
        ),
    }


def _window(sample: Sample, start: int, stop: int) -> Sample:
    """Some frames of every chain; chains are segments of their own."""
    segments = tuple(
        type(s)(s.run, 0, stop - start, s.group) for s in sample.segments if s.start == 0
    )
    runs = tuple(run[start:stop] for run in sample.runs)
    return Sample(runs, sample.spacing_ps, segments, sample.n_groups)


def reference_equilibrium(baseline: Baseline) -> dict[str, Any]:
    """Return what the reference says of itself: how far two halves of it differ."""
    half = baseline.sample.n_groups // 2
    result: dict[str, Any] = {
        "populations": {
            name: figure(*pair) for name, pair in populations(baseline, baseline.sample).items()
        }
    }
    if half:
        halves = [
            float(jensen_shannon(h[:half].sum(0), h[half:].sum(0))) for h in baseline.histograms
        ]
        own = [
            jensen_shannon(weighted(h, baseline.weights), h.sum(0)).mean()
            for h in baseline.histograms
        ]
        result[baseline.jsd_key] = {
            "two_halves": float(np.mean(halves)),
            "whole_from_longer_md": float(np.mean(own)),
        }
    return result


# -- kinetics --------------------------------------------------------------------------------------


def passage_lag(spacing_ps: float) -> float:
    """Return the first multiple of the spacing that is at least 20 ps."""
    return float(np.ceil(PASSAGE_LAG / spacing_ps - 1e-9) * spacing_ps)


def msm_lags(sample: Sample, spacing_ps: float) -> list[float]:
    """Return the lags of Markov state models for a spacing, ps, as far as a sample reaches."""
    longest = max(map(len, sample.runs)) * sample.spacing_ps * _LONGEST_LAG
    several = {round(k * spacing_ps, 6) for k in (1, 2, 3, 5, 10)} | {passage_lag(spacing_ps)}
    wanted = {lag for lag in MSM_LAGS if _divides(spacing_ps, lag)} | several
    return sorted(lag for lag in wanted if lag <= longest and sample.stride(lag) is not None)


def _divides(spacing: float, lag: float) -> bool:
    return round(lag / spacing) >= 1 and abs(round(lag / spacing) * spacing - lag) < 1e-6 * lag


def markov_model(states: Sample, lag_ps: float, n_states: int, seed: int) -> Estimate | None:
    """Return a Markov state model with errors; None if the data do not suffice."""
    stride = states.stride(lag_ps)
    if stride is None:
        return None
    try:
        return estimate_with_error(grouped_counts(states, stride, n_states), lag_ps, seed=seed)
    except ValueError:  # runs too short for this lag, or nothing connected
        return None


def timescales(
    baseline: Baseline, states: Sample, lags: Iterable[float]
) -> dict[str, dict[str, Figures]]:
    """Return implied timescales and the correlations of the reference's modes, by lag."""
    result: dict[str, dict[str, Figures]] = {"implied_timescales_ps": {}, "slow_modes": {}}
    for lag in lags:
        found = markov_model(states, lag, baseline.n_states, baseline.seed)
        if found is None:
            continue
        value, error = found.timescales(_TIMESCALES)
        result["implied_timescales_ps"][f"{lag:g}"] = Figures(
            value=value.tolist(), error=error.tolist()
        )
        if baseline.modes is not None:
            counts = grouped_counts(states, states.stride(lag) or 1, baseline.n_states)
            weights = resamplings(states.n_groups, _RESAMPLINGS // 4, baseline.seed)
            many = mode_correlations(weighted(counts, weights), baseline.modes)
            result["slow_modes"][f"{lag:g}"] = Figures(
                value=mode_correlations(counts.sum(0), baseline.modes).tolist(),
                error=spread(many).tolist(),
            )
    return result


def passages(
    baseline: Baseline, states: Sample, lag_ps: float
) -> dict[str, tuple[float, float]] | None:
    """Return mean first passage times and errors, ps, from a Markov state model at a lag."""
    found = markov_model(states, lag_ps, baseline.n_states, baseline.seed)
    if found is None:
        return None
    result = {}
    for partition, labels in zip(baseline.partitions, baseline.labels, strict=True):
        for name, start, end in partition.passages:
            result[name] = found.passage(np.isin(labels, start), np.isin(labels, end))
    return result


def chapman_kolmogorov(baseline: Baseline, states: Sample, lag_ps: float) -> dict[str, Staying]:
    """Compare what a Markov state model predicts for longer times with what is found there."""
    found = markov_model(states, lag_ps, baseline.n_states, baseline.seed)
    if found is None:
        return {}
    number, seed = baseline.n_states, baseline.seed
    every = (
        (partition, staying(found, states, partition.states, labels, number, seed))
        for partition, labels in zip(baseline.partitions, baseline.labels, strict=True)
    )
    return {partition.name: one for partition, one in every if one is not None}


def staying(
    found: Estimate,
    states: Sample,
    names: Sequence[str],
    labels: NDArray[np.int64],
    n_states: int,
    seed: int,
) -> Staying | None:
    """Return the probability to be in the same state of a partition again, after several times.

    The model's lag is the shortest time, and it predicts the longer ones; `states` are the
    microstates from which it was estimated, and `labels` says in which of the states called `names`
    every microstate lies. None where the runs are too short to look at any time.
    """
    lag_ps, number = found.model.lag_ps, len(names)
    longest = max(map(len, states.runs)) * states.spacing_ps / 2
    steps = [k for k in _CK_STEPS if k * lag_ps <= longest]
    if not steps:
        return None
    weights = resamplings(states.n_groups, _RESAMPLINGS // 4, seed)
    found_rows, predicted_rows = [], []
    for k in steps:
        stride = states.stride(k * lag_ps) or 1
        counts = grouped_counts(states, stride, n_states)
        coarse = coarse_counts(counts, labels, number)
        found_rows.append(mean_and_error(coarse, coarse.sum(-1)[..., None], weights))
        predicted_rows.append(found.coarse(labels, number, k))

    # Value and error, (times, states) each.
    seen, seen_error = np.diagonal(np.array(found_rows), axis1=2, axis2=3).transpose(1, 0, 2)
    model, model_error = np.diagonal(np.array(predicted_rows), axis1=2, axis2=3).transpose(1, 0, 2)
    deviation = np.abs(model - seen)
    finite = deviation[np.isfinite(deviation)]
    return Staying(
        states=list(names),
        times_ps=[k * lag_ps for k in steps],
        stay_found=seen.tolist(),
        stay_found_error=seen_error.tolist(),
        stay_predicted=model.tolist(),
        stay_predicted_error=model_error.tolist(),
        largest_deviation=float(finite.max()) if len(finite) else None,
    )


def correlations(
    sample: Sample, torsions: Sequence[Torsion], times: Iterable[float]
) -> dict[str, dict[str, Figure]]:
    """Return the mean cosine of the change of every torsion against time."""
    result: dict[str, dict[str, Figure]] = {torsion.name: {} for torsion in torsions}
    weights = resamplings(sample.n_groups, _RESAMPLINGS, 1)
    for time in times:
        stride = sample.stride(time)
        if stride is None or stride >= max(map(len, sample.runs)):
            continue
        value, error = mean_and_error(*sample.sums(_sum_of_cosines, stride), weights)
        for k, torsion in enumerate(torsions):
            result[torsion.name][f"{time:g}"] = figure(float(value[k]), float(error[k]))
    return result


def _sum_of_cosines(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    return np.cos(after.astype(np.float64) - before).sum(0)


def durations(
    partitions: Iterable[Partition], runs: Sequence[NDArray[Any]]
) -> dict[tuple[str, str], NDArray[np.int64]]:
    """Return how many frames each crossing from one core to another takes, by both their names."""
    result = {}
    for partition in partitions:
        for cores in partition.cores:
            found = crossings([cores.label(run) for run in runs])
            for (i, start), (j, end) in itertools.permutations(enumerate(cores.states), 2):
                result[start, end] = found[(found[:, 0] == i) & (found[:, 1] == j), 2]
    return result


def crossing_times(baseline: Baseline, sample: Sample) -> dict[str, Crossings]:
    """Return how many crossings there are between cores, and their mean duration, ps."""
    result: dict[str, Crossings] = {}
    for pair, frames in durations(baseline.partitions, sample.runs).items():
        taken = frames * sample.spacing_ps
        result[" -> ".join(pair)] = Crossings(
            value=float(taken.mean()) if len(taken) > 0 else np.nan,
            error=float(taken.std(ddof=1) / np.sqrt(len(taken))) if len(taken) > 1 else np.nan,
            crossings=len(taken),
            per_microsecond=len(taken) / (sample.total_ps * 1e-6),
        )
    return result


def thinned(sample: Sample, spacing_ps: float) -> Sample | None:
    """Return a sample's frames at a wider spacing, ps; None if the spacings do not fit."""
    stride = sample.stride(spacing_ps)
    if stride is None or stride >= max(map(len, sample.runs)):
        return None
    return Sample.from_runs([run[::stride] for run in sample.runs], spacing_ps)


# -- one step --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StepFigures:
    """Mean cosines of changes, and hop probabilities by partition, with errors."""

    cosines: tuple[NDArray[np.float64], NDArray[np.float64]]
    hops: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]


def step_figures(
    baseline: Baseline,
    before: Sequence[NDArray[Any]],
    after: Sequence[NDArray[Any]],
    weights: Sequence[NDArray[np.float64]] | None = None,
) -> StepFigures:
    """Return the figures of single steps.

    `before` and `after` are (T, torsions) radians each, and the weights, one a step, (T,); each
    entry is a group of its own for errors.
    """
    resampled = resamplings(len(before), _RESAMPLINGS, baseline.seed)
    if weights is None:
        weights = [np.ones(len(part)) for part in before]
    sums = np.array(
        [
            (np.cos(b.astype(np.float64) - a) * w[:, None]).sum(0)
            for a, b, w in zip(before, after, weights, strict=True)
        ]
    )
    total = np.array([w.sum() for w in weights])
    hops = []
    for partition in baseline.partitions:
        n = len(partition.states)
        counts = np.array(
            [
                np.bincount(
                    partition.label(a) * n + partition.label(b), weights=w, minlength=n * n
                ).reshape(n, n)
                for a, b, w in zip(before, after, weights, strict=True)
            ]
        )
        hops.append(mean_and_error(counts, counts.sum(-1)[..., None], resampled))
    return StepFigures(mean_and_error(sums, total, resampled), tuple(hops))


def step_report(baseline: Baseline, model: StepFigures, reference: StepFigures) -> dict[str, Any]:
    """Put the figures of single steps of the model beside the reference's."""
    cosines = {
        torsion.name: figure(
            float(model.cosines[0][k]),
            float(model.cosines[1][k]),
            (float(reference.cosines[0][k]), float(reference.cosines[1][k])),
        )
        for k, torsion in enumerate(baseline.torsions)
    }
    hops = {}
    for partition, ours, theirs in zip(
        baseline.partitions, model.hops, reference.hops, strict=True
    ):
        number = range(len(partition.states))
        hops[partition.name] = {
            f"{partition.states[i]} -> {partition.states[j]}": figure(
                float(ours[0][i, j]),
                float(ours[1][i, j]),
                (float(theirs[0][i, j]), float(theirs[1][i, j])),
            )
            for i in number
            for j in number
        }
    return {"mean_cos_change": cosines, "hop_probabilities": hops}


# -- geometry --------------------------------------------------------------------------------------


def geometry(molecule: Bonded, frames: NDArray[Any], reference: NDArray[Any]) -> dict[str, Any]:
    """Compare bonds, angles and contacts of heavy atoms."""
    names = molecule.atom_names
    result: dict[str, Any] = {}
    for key, atoms, measure, unit in (
        ("bonds", heavy_bonds(molecule), distances, "nm"),
        ("angles", heavy_angles(molecule), angles, "deg"),
    ):
        if not len(atoms):
            result[key] = []
            continue
        found = compare(measure(frames, atoms), measure(reference, atoms))
        result[key] = [
            {
                "atoms": row.tolist(),
                "name": "-".join(names[a] for a in row),
                f"mean_shift_{unit}": figure(float(found.shift[k]), float(found.shift_error[k])),
                "width_ratio": figure(
                    float(found.width_ratio[k]), float(found.width_ratio_error[k])
                ),
                f"reference_mean_{unit}": float(found.reference_mean[k]),
            }
            for k, row in enumerate(atoms)
        ]
    pairs = distant_pairs(molecule)
    if len(pairs):
        closest = distances(reference, pairs).min(0)
        clashing = (distances(frames, pairs) < _CLASH * closest).any(1)
        value, error = jackknife_mean(clashing.astype(np.float64))
        result["clash_fraction"] = figure(value, max(error, 1.0 / len(frames)), (0.0, 0.0))
    return result


def energy_excess(
    energy: Callable[[NDArray[Any]], NDArray[np.float64]],
    frames: NDArray[Any],
    reference: NDArray[np.float64],
    thermal_kj_mol: float,
) -> dict[str, Any]:
    """Compare energies of frames, (T, N, 3) nm, with the reference's, (T',) kJ/mol, in units of kT.

    `energy` gives energies of frames, kJ/mol; `thermal_kj_mol` is kT.
    """
    ours = energy(frames)
    value, error = jackknife_mean(ours)
    other, other_error = jackknife_mean(reference)
    low, middle, high = np.percentile(reference, (2, 50, 98))
    edges = np.linspace(middle - 4 * (middle - low), middle + 5 * (high - middle), 101)
    result: dict[str, Any] = {
        **figure((value - other) / thermal_kj_mol, np.hypot(error, other_error) / thermal_kj_mol)
    }
    result["median_excess_kT"] = float((np.median(ours) - np.median(reference)) / thermal_kj_mol)
    result["width_ratio"] = float(ours.std() / reference.std())
    result["histogram"] = {
        "from_reference_mean_kT": (
            ((edges[:-1] + edges[1:]) / 2 - other) / thermal_kj_mol
        ).tolist(),
        "model": (np.histogram(ours, edges)[0] / len(ours)).tolist(),
        "reference": (np.histogram(reference, edges)[0] / len(reference)).tolist(),
        "model_outside": float(((ours < edges[0]) | (ours > edges[-1])).mean()),
    }
    return result


def counted(number: int, draws: int) -> Figure:
    """Return a fraction of draws; its error assumes one count where there is none."""
    return figure(number / max(draws, 1), float(np.sqrt(max(number, 1))) / max(draws, 1))
