"""The picture: the error of a population against wall-clock time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .statistics import POPULATION_ERROR


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw a line with its band for every row whose statistics are known; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in rows:
        worth = row.get("statistics") or {}
        one = worth.get("seconds_to_population_error")
        if one is None:
            continue
        forgotten = one["of_which_to_forget_the_start"]
        times = forgotten + np.geomspace(1e-3, 1e4, 120) * (one["value"] - forgotten)
        errors = POPULATION_ERROR * np.sqrt(
            (one["value"] - forgotten) / np.maximum(times - forgotten, 1e-12)
        )
        (line,) = axes.plot(times, errors, label=f"{row['what']} ({one['hardest']})")
        share = one["error"] / one["value"]
        axes.fill_betweenx(
            errors,
            times / (1.0 + share),
            times * (1.0 + share),
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    axes.axhline(POPULATION_ERROR, color="0.5", linewidth=0.8, linestyle=":")
    for seconds, name in ((60.0, "a minute"), (3600.0, "an hour"), (86400.0, "a day")):
        axes.axvline(seconds, color="0.85", linewidth=0.8, zorder=0)
        axes.text(seconds, 0.31, name, fontsize=7, color="0.5", rotation=90, va="top", ha="right")
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(0.002, 0.32),
        xlim=(0.1, math.pi * 1e7),
        xlabel="wall-clock time, s",
        ylabel="standard error of the population hardest to know",
        title="How soon a population is known",
    )
    if axes.lines:
        axes.legend(fontsize=8)
    figure.savefig(file)
