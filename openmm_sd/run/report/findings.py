"""What a run has found: equilibrium, kinetics, energies and jumps, each with an error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from ...analysis import figures
from ...analysis.equilibrium import (
    JSD_BINS,
    Partition,
    bin_numbers,
    divergence,
    grouped_histograms,
    histogram_1d,
    histogram_2d,
)
from ...analysis.figures import Baseline, Staying
from ...analysis.kinetics import Estimate
from ...analysis.sample import Sample, mean_and_error, resamplings
from ...analysis.timeline import Timeline, even_steps, visits
from ...analysis.verdicts import Figure, Figures, figure
from ...data.reference import angles_of
from ...molecule.molecule import Molecule
from ...molecule.torsions import Torsion, backbone_torsions, torsions
from ..record import RunRecord

#: Bins of the free energy of one torsion, 10 degrees each.
PROFILE_BINS: Final = 36
#: Steps of the run below which no Markov state model is made.
FEWEST_STEPS: Final = 200

_RESAMPLINGS: Final = 200
_SEED: Final = 1
# Blocks of divergences and Markov state models.
_BLOCKS: Final = 32
# Lags of Markov state models, in steps of the run.
_MSM_STEPS: Final = (1, 2, 3, 5, 10)
_TIMESCALES: Final = 3
# Bins along an angle of a map, where frames are few and where there are enough.
_MAP_BINS: Final = (24, 36)
_FRAMES_OF_A_FINE_MAP: Final = 2_000
# With fewer, what sampling alone does to the histogram of a divergence is not known well.
_FRAMES_OF_A_DIVERGENCE: Final = 10_000
# Maps and panels beyond these fill pages that nobody reads.
MOST_MAPS: Final = 6
MOST_PANELS: Final = 12


#: A value for each bin, and its error.
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


class Population(Figure):
    """The share of the time in a basin, of the run and of its halves."""

    visits: int  # how often the run came into it
    independent: float  # so many independent frames would have this error
    halves: list[Figure]


class Divergence(Figure):
    """A Jensen-Shannon divergence, bits, with what sampling alone makes of it."""

    expected_of_same_law: float
    of: str


class Timescales(TypedDict):
    """Implied timescales, ps, by the lag of the Markov state model in ps."""

    run: dict[str, Figures]
    reference: dict[str, Figures]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a run is compared with: its name in tables and legends, a sentence on it, and torsions.

    With `in_time` its frames follow each other, so that it has kinetics.
    """

    name: str
    description: str
    sample: Sample
    in_time: bool


def with_start_frames(
    frames: NDArray[Any], molecule: Molecule, model: str
) -> tuple[list[Torsion], Comparison]:
    """Take the equilibrium frames that a model carries for a reference."""
    chosen = torsions(molecule)
    sample = Sample.from_runs([angles_of(frames, chosen)], 1.0)
    return chosen, Comparison(
        "model's frames",
        f"the {len(frames):,} equilibrium frames that {model} carries, drawn from its training "
        "data. They say what the model was to learn, at best as exactly as so many independent "
        "frames can, and hold no times.",
        sample,
        False,
    )


@dataclass(eq=False)
class Findings:
    """All that the report of a run says of its frames.

    The angles are (T, K), rad; `reasons` say what could not be had, and why.
    """

    timeline: Timeline
    torsions: list[Torsion]
    angles: NDArray[np.float32]
    comparison: Comparison | None
    partitions: tuple[Partition, ...] = ()
    populations: dict[str, Population] = field(default_factory=dict)
    profiles: dict[str, dict[str, Curve]] = field(default_factory=dict)
    maps: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    divergence: Divergence | None = None
    crossings: dict[tuple[str, str], int] = field(default_factory=dict)
    step_ps: float | None = None
    n_steps: int = 0
    timescales: dict[str, Timescales] = field(default_factory=dict)
    staying: dict[str, Staying] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def find(
    record: RunRecord,
    chosen: list[Torsion],
    angles: NDArray[np.float32],
    comparison: Comparison | None,
) -> Findings:
    """Work out everything; the angles (T, K), rad, are those of the chosen torsions."""
    found = Findings(Timeline(record.times_ps), chosen, angles, comparison)
    if not chosen:
        found.reasons.append(
            f"{record.molecule.name} has no torsion that can turn: there are no populations, free "
            "energies or kinetics to look at."
        )
        return found
    if record.n_frames < 2:
        found.reasons.append(
            f"The run has {record.n_frames} frame(s): nothing can be said of its ensemble."
        )
        return found
    if comparison is None:
        found.reasons.append(
            "There is nothing to compare with: neither a reference was given nor frames of the "
            "model at hand (openmm-sd report DIR --reference DATA --model BUNDLE)."
        )
    sample = comparison.sample if comparison else Sample.from_runs([angles], 1.0)
    baseline = Baseline.of(record.molecule, chosen, sample, _SEED)
    found.partitions = baseline.partitions
    if not found.partitions:
        found.reasons.append("No torsion has more than one well: there are no basins.")
    if not found.timeline.possible_blocks():
        found.reasons.append(
            f"{record.n_frames} frames are too few for errors: no figure below has one."
        )
    _populations(found, baseline)
    _profiles(found)
    _maps(found, record.molecule)
    _divergence(found, baseline)
    crossed = figures.durations(found.partitions, [angles])
    found.crossings = {pair: len(frames) for pair, frames in crossed.items()}
    _kinetics(found, record)
    return found


# -- equilibrium -----------------------------------------------------------------------------------


def _populations(found: Findings, baseline: Baseline) -> None:
    theirs = figures.populations(baseline, baseline.sample) if found.comparison else {}
    timeline, angles = found.timeline, found.angles
    halves = [timeline.half(second) for second in (False, True)]
    for partition in found.partitions:
        for name, inside in partition.inside(angles).items():
            where = inside.astype(np.int64)
            value, error = (float(one[1]) for one in timeline.shares(where, 2))
            shares = [half.shares(where[part], 2) for half, part in halves if half.n_frames]
            found.populations[name] = Population(
                **figure(value, error, theirs.get(name)),
                visits=int(visits(where, 2)[1]),
                independent=value * (1 - value) / error**2 if error > 0 else math.nan,
                halves=[figure(float(one[1]), float(own[1])) for one, own in shares],
            )


def _profiles(found: Findings) -> None:
    timeline = found.timeline
    for k, torsion in enumerate(found.torsions[:MOST_PANELS]):
        cells = bin_numbers(found.angles[:, [k]], PROFILE_BINS)
        value, error = timeline.shares(cells, PROFILE_BINS)
        one = {"run": _free_energy(value, error)}
        if found.comparison is not None:
            sample = found.comparison.sample
            sums, counts = sample.sums(
                lambda before, _, k=k: histogram_1d(before[:, k], PROFILE_BINS)  # type: ignore[misc]
            )
            weights = resamplings(sample.n_groups, _RESAMPLINGS, _SEED)
            one["reference"] = _free_energy(*mean_and_error(sums, counts, weights))
        found.profiles[torsion.name] = one


def _free_energy(share: NDArray[np.float64], error: NDArray[np.float64]) -> Curve:
    """Return -ln p above its minimum in kT, and its error; NaN where nothing was seen."""
    seen = share > 0
    safe = np.where(seen, share, 1.0)
    energy = np.where(seen, -np.log(safe), np.nan)
    if seen.any():
        energy = energy - np.nanmin(energy)
    return energy, np.where(seen, error / safe, np.nan)


def _maps(found: Findings, molecule: Molecule) -> None:
    where = {frozenset(t.atoms[1:3]): k for k, t in enumerate(found.torsions)}
    bins = _MAP_BINS[found.timeline.n_frames >= _FRAMES_OF_A_FINE_MAP]
    pairs = backbone_torsions(molecule)
    if len(pairs) > MOST_MAPS:
        found.reasons.append(f"Of {len(pairs)} Ramachandran maps the first {MOST_MAPS} are shown.")
    for pair in pairs[:MOST_MAPS]:
        columns = [where.get(frozenset(torsion.atoms[1:3])) for torsion in pair]
        if columns[0] is None or columns[1] is None:
            continue
        chosen = [columns[0], columns[1]]
        cells = bin_numbers(found.angles[:, chosen], bins)
        one = {"run": found.timeline.grouped(cells, bins * bins, 1)[0]}
        if found.comparison is not None:
            one["reference"] = found.comparison.sample.sums(
                lambda before, _, c=chosen: histogram_2d(before[:, c], bins)  # type: ignore[misc]
            )[0].sum(0)
        found.maps[pair[0].name, pair[1].name] = one


def _divergence(found: Findings, baseline: Baseline) -> None:
    if found.comparison is None:
        return
    fewest = min(found.timeline.n_frames, found.comparison.sample.n_frames)
    if fewest < _FRAMES_OF_A_DIVERGENCE:
        found.reasons.append(
            f"A Jensen-Shannon divergence needs {_FRAMES_OF_A_DIVERGENCE:,} frames in run and "
            f"reference to mean anything; the smaller of them has {fewest:,}."
        )
        return
    blocks = _BLOCKS
    ours = []
    for columns in baseline.jsd_columns:
        cells = bin_numbers(found.angles[:, list(columns)], JSD_BINS)
        ours.append(found.timeline.grouped(cells, JSD_BINS ** len(columns), blocks))
    sample = found.comparison.sample
    theirs = [grouped_histograms(sample, columns) for columns in baseline.jsd_columns]
    one = divergence(
        ours,
        theirs,
        resamplings(blocks, _RESAMPLINGS, _SEED),
        resamplings(sample.n_groups, _RESAMPLINGS, _SEED + 1),
    )
    found.divergence = Divergence(
        value=one.value,
        error=one.error,
        expected_of_same_law=one.expected,
        of="torsions" if baseline.peptide is None else "(phi, psi)",
    )


# -- kinetics --------------------------------------------------------------------------------------


def _kinetics(found: Findings, record: RunRecord) -> None:
    accepted = record.log["accepted"]
    if accepted[-1] > accepted[0]:
        # Frames at the end of a burst, just before the jump.
        starts = np.append(np.flatnonzero(np.diff(accepted) > 0), record.n_frames - 1)
    else:
        starts = np.arange(record.n_frames)
    step_ps = float(record.summary["step_ps"])
    stepped = even_steps(record.times_ps, starts, 0.6 * step_ps, _BLOCKS)
    if stepped is None:
        found.reasons.append(
            "No two frames are a lag and a burst apart: there is no kinetics to look at."
        )
        return
    chains, sample = stepped
    found.step_ps = round(sample.spacing_ps, 6)
    found.n_steps = sum(len(chain) - 1 for chain in chains)
    if found.n_steps < FEWEST_STEPS:
        found.reasons.append(
            f"Timescales and the Chapman-Kolmogorov test need {FEWEST_STEPS} steps of "
            f"{found.step_ps:g} ps; the run has {found.n_steps}."
        )
        return
    for partition in found.partitions:
        labels = partition.label(found.angles)
        states = Sample(
            tuple(labels[chain] for chain in chains),
            found.step_ps,
            sample.segments,
            sample.n_groups,
        )
        number = len(partition.states)
        ours, first = _timescales(states, number)
        if first is None:
            found.reasons.append(
                f"{partition.name}: no two basins exchange in both directions often enough for "
                "timescales."
            )
            continue
        theirs: dict[str, Figures] = {}
        their_first, reference = None, None
        if found.comparison is not None and found.comparison.in_time:
            label = partition.label
            reference = found.comparison.sample.map(lambda run, label=label: label(run))  # type: ignore[misc]
            lags = [k * found.step_ps for k in _MSM_STEPS]
            theirs, their_first = _timescales(reference, number, lags)
        found.timescales[partition.name] = Timescales(run=ours, reference=theirs)
        names = partition.states
        test = figures.staying(first, states, names, np.arange(number), number, _SEED)
        if test is not None:
            if their_first is not None and reference is not None:
                other = figures.staying(
                    their_first, reference, names, np.arange(number), number, _SEED
                )
                if other is not None:
                    test["reference"] = other
            found.staying[partition.name] = test
    if found.comparison is not None and not found.comparison.in_time and found.timescales:
        found.reasons.append(
            "Timescales have nothing to be compared with: the model's frames hold no times "
            "(--reference takes MD that does)."
        )


def _timescales(
    states: Sample, number: int, lags: list[float] | None = None
) -> tuple[dict[str, Figures], Estimate | None]:
    """Return implied timescales by lag, and the model of the shortest lag."""
    lags = lags or [k * states.spacing_ps for k in _MSM_STEPS]
    result: dict[str, Figures] = {}
    first: Estimate | None = None
    for lag in lags:
        one = figures.markov_model(states, lag, number, _SEED)
        if one is None:
            continue
        count = min(_TIMESCALES, number - 1)
        value, error = one.timescales(count)
        result[f"{lag:g}"] = Figures(value=value.tolist(), error=error.tolist())
        if first is None and lag == lags[0]:
            first = one
    return (result, first) if first is not None else ({}, None)
