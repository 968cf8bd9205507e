"""One-step laws of a model beside those of MD that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from ..analysis.figures import Baseline
from ..analysis.sample import Sample
from ..analysis.verdicts import Figure, known
from ..data.dataset import Dataset
from ..data.reference import angles_of
from ..model.model import ScoreModel
from ..molecule.torsions import torsions
from ..progress import Progress
from ..validate.onestep import STEP_GROUPS, step_from_runs
from ..validate.settings import ValidateSettings

#: Hops that are rarer, and torsions that turn less (1 - mean cosine), say nothing here.
_LEAST: Final = 0.02


def compare_laws(
    model: ScoreModel,
    data: Dataset,
    lags: Sequence[float],
    settings: ValidateSettings,
    say: Progress,
) -> dict[str, Any]:
    """Compare hop probabilities and the mean cosines of torsions' changes, by lag.

    An entry is that of `openmm_sd.validate.onestep.compare_steps`, with what `pooled` makes of its
    figures as ``hops`` and ``turning``. Every run counts: laws are conditional on where a step
    begins, wherever that is.
    """
    chosen = torsions(data.molecule)
    positions = [run.positions for run in data.runs]
    angles = [angles_of(frames, chosen) for frames in positions]
    sample = Sample.from_runs(angles, data.runs[0].spacing_ps, STEP_GROUPS)
    baseline = Baseline.of(data.molecule, chosen, sample, settings.seed)
    entries: dict[str, Any] = {}
    for lag in lags:
        found = step_from_runs(baseline, sample, positions, lag, model, settings, say)
        if found is None:
            raise ValueError(f"no run of the MD is longer than the lag of {lag:g} ps")
        hops = (
            one
            for by_hop in found["hop_probabilities"].values()
            for name, one in by_hop.items()
            if len(set(name.split(" -> "))) == 2
        )
        found["hops"] = pooled(hops)
        found["turning"] = pooled(map(_turned, found["mean_cos_change"].values()))
        entries[f"{lag:g}"] = found
    return entries


def _turned(cosine: Figure) -> Figure:
    """Return 1 minus a mean cosine: how far a torsion has turned."""
    reference = cosine["reference"]
    assert reference is not None
    return Figure(
        value=1.0 - cosine["value"],
        error=cosine["error"],
        reference=Figure(value=1.0 - reference["value"], error=reference["error"]),
    )


def pooled(figures: Iterable[Figure]) -> dict[str, float | int] | None:
    """Pool figures that have references, each by its precision; None if nothing is known.

    ``deviation`` is the root mean square of the differences as a share of the reference's values,
    without what errors alone would give; ``resolution`` is that part: what could not be seen.
    ``z`` is the root mean square of (difference / combined error).
    """
    squares, noise = [], []
    for one in figures:
        other = one["reference"]
        if other is None or not all(
            known(v) for v in (one["value"], one["error"], other["value"], other["error"])
        ):
            continue
        error = math.hypot(one["error"], other["error"])
        if other["value"] < _LEAST or error == 0.0:
            continue
        squares.append(((one["value"] - other["value"]) / error) ** 2)
        noise.append((other["value"] / error) ** 2)
    if not squares:
        return None
    total = sum(noise)
    return {
        "deviation": round(math.sqrt(max(0.0, sum(squares) - len(squares)) / total), 4),
        "resolution": round(math.sqrt(len(squares) / total), 4),
        "z": round(math.sqrt(float(np.mean(squares))), 3),
        "figures": len(squares),
    }


def hold(entries: dict[str, Any], tolerance: float) -> bool:
    """Whether all laws deviate by less than a tolerance, and MD is long enough to tell."""
    parts = [one for entry in entries.values() for one in (entry["hops"], entry["turning"])]
    return any(parts) and all(
        max(one["deviation"], one["resolution"]) <= tolerance for one in parts if one is not None
    )


def in_words(entries: dict[str, Any]) -> str:
    """Return how far laws are from MD's, in a line."""
    words = []
    for lag, entry in entries.items():
        told = [
            f"{what} {100 * one['deviation']:.0f} % (seen to {100 * one['resolution']:.0f} %)"
            for what, one in (("hops", entry["hops"]), ("turning", entry["turning"]))
            if one is not None
        ]
        words.append(f"{lag} ps: {', '.join(told) or 'nothing moves'}")
    return "; ".join(words)
