"""One step of a model from frames of MD, beside what MD did from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..analysis import figures
from ..analysis.sample import Sample
from ..model.model import ScoreModel
from ..progress import Progress
from .sampling import Step, one_step
from .settings import ValidateSettings

#: Groups that the errors of a step come from.
STEP_GROUPS: Final = 32


def step_from_runs(
    baseline: figures.Baseline,
    sample: Sample,
    positions: Sequence[NDArray[np.float32]],
    lag: float,
    model: ScoreModel,
    settings: ValidateSettings,
    say: Progress,
) -> dict[str, Any] | None:
    """Compare a step of a lag, ps, with what MD did from the same frames.

    `positions`, (T, N, 3) nm each, are of the runs whose angles the sample has. Returns what
    `compare_steps` does; None where the runs are too short for the lag, or not a multiple of it.
    """
    stride = sample.stride(lag)
    if stride is None or stride >= max(map(len, sample.runs)):
        return None
    before: list[list[NDArray[Any]]] = [[] for _ in range(sample.n_groups)]
    after: list[list[NDArray[Any]]] = [[] for _ in range(sample.n_groups)]
    for group, first, second in sample.pairs(stride):
        before[group].append(first)
        after[group].append(second)
    full = [k for k in range(sample.n_groups) if before[k]]
    theirs = figures.step_figures(
        baseline,
        [np.concatenate(before[k]) for k in full],
        [np.concatenate(after[k]) for k in full],
    )
    lengths = [max(len(run) - stride, 0) for run in positions]
    total = sum(lengths)
    wanted = min(settings.one_step_starts, total)
    places = (np.arange(wanted) * (total / wanted)).astype(np.int64)
    ends = np.cumsum(lengths)
    where = np.searchsorted(ends, places, side="right")
    starts = np.array(
        [
            positions[r][place - (ends[r] - lengths[r])]
            for r, place in zip(where, places, strict=True)
        ]
    )
    step = one_step(model, settings, lag, starts, baseline.torsions, say)
    groups = step.start * STEP_GROUPS // len(starts)
    source = f"{len(starts)} frames of the reference"
    return compare_steps(baseline, source, step, groups, None, theirs)


def compare_steps(
    baseline: figures.Baseline,
    source: str,
    step: Step,
    groups: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    theirs: figures.StepFigures,
) -> dict[str, Any]:
    """Put a step's figures beside those of MD; `source` says what the step was made from.

    Its errors come from `groups`, one number a row, and its rows may have weights.
    """
    numbers = np.unique(groups).tolist()
    ours = figures.step_figures(
        baseline,
        [step.before[groups == k] for k in numbers],
        [step.after[groups == k] for k in numbers],
        None if weights is None else [weights[groups == k] for k in numbers],
    )
    failed = sum(step.statistics["rejections"].values())
    return {
        "from": source,
        **figures.step_report(baseline, ours, theirs),
        "gate_failure_fraction": figures.counted(failed, step.statistics["draws"]),
    }
