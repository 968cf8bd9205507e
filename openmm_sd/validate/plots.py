"""The pictures of a validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ..analysis.verdicts import Figure, known
from ..report import drawing
from ..report.drawing import (
    BAND,
    INK,
    MAP_CAPTION,
    MUTED,
    ORDINALS,
    PALETTE,
    STAYING_TITLE,
    TIMESCALES_TITLE,
    Picture,
    angle_axis,
    as_numbers,
    free_energy_maps,
    grid,
    logarithmic,
    new_figure,
    style,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True, eq=False)
class MapHistograms:
    """What the free-energy maps show and the report does not hold.

    These are histograms (50 x 50) of a pair of torsions, by lag, and that of the reference under
    ``MD``. Without a pair there are no names.
    """

    names: tuple[str, ...]
    maps: dict[str, NDArray[np.float64]]


class _Content:
    """What pictures are drawn from; `lags` has the report's entries with a label and a colour."""

    def __init__(self, report: dict[str, Any], histograms: MapHistograms) -> None:
        self.report, self.histograms = report, histograms
        self.lags = [
            (f"{lag} ps", PALETTE[k % len(PALETTE)], entry)
            for k, (lag, entry) in enumerate(report["lags"].items())
        ]


def _error_bars(
    axis: Axes,
    x: NDArray[np.float64],
    shown: Sequence[Figure],
    colour: str,
    label: str,
    marker: str = "o",
) -> None:
    value = as_numbers(one["value"] for one in shown)
    error = as_numbers(one["error"] for one in shown)
    axis.errorbar(
        x, value, error, color=colour, marker=marker, ms=4, lw=0.8, capsize=2, label=label
    )


def _free_energy(content: _Content) -> Drawing | None:
    maps = {
        lag if lag == "MD" else f"{lag} ps": one for lag, one in content.histograms.maps.items()
    }
    return free_energy_maps(maps, content.histograms.names) if maps else None


def _marginals(content: _Content) -> Drawing | None:
    names = list(content.lags[0][2]["marginals"])
    figure, axes = grid(len(names), (3.6, 2.6))
    for axis, name in zip(axes, names, strict=True):
        for k, (label, colour, entry) in enumerate(content.lags):
            one = entry["marginals"][name]
            edges = np.linspace(-180, 180, len(one["model"]) + 1)
            if k == 0:
                axis.stairs(one["reference"], edges, fill=True, color=BAND, label="MD")
            axis.stairs(one["model"], edges, color=colour, label=label, lw=1.2)
        axis.set_title(name)
        angle_axis(axis, "angle")
        axis.set_ylabel("density (1/deg)")
        axis.set_ylim(bottom=0)
    axes[0].legend()
    return figure


def _drift(content: _Content) -> Drawing:
    figure = new_figure(5.0, 3.2)
    axis = figure.subplots()
    for k, (label, colour, entry) in enumerate(content.lags):
        one = entry["drift"]["jsd_quarters_bits"]
        x = np.arange(1, 5) + 0.06 * (k - (len(content.lags) - 1) / 2)
        value, error = one["value"], one["error"]
        axis.errorbar(x, value, error, color=colour, marker="o", capsize=3, label=label)
    axis.set_xticks(range(1, 5), ["first", "second", "third", "last"])
    axis.set_xlabel("quarter of the chains")
    axis.set_ylabel("divergence (bits)")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def _timescales(content: _Content) -> Drawing | None:
    key = "implied_timescales_ps"
    reference = content.report["reference"][key]
    every = [reference, *(entry[key] for _, _, entry in content.lags)]
    if not any(known(value) for by in every for one in by.values() for value in one["value"]):
        return None  # so little data has no timescale
    shown = [(label, colour, entry[key]) for label, colour, entry in content.lags]
    count = max(len(one["value"]) for by in every for one in by.values())
    return drawing.timescales(
        [
            (ORDINALS[k] if k < len(ORDINALS) else f"number {k + 1}", k, reference, shown)
            for k in range(count)
        ],
        "MD",
    )


def _chapman_kolmogorov(content: _Content) -> Drawing | None:
    panels: dict[tuple[str, int], str] = {}
    for _, _, entry in content.lags:
        for partition, one in entry["chapman_kolmogorov"].items():
            for k, state in enumerate(one["states"]):
                if drawing.was_seen(one, k) or drawing.was_seen(one.get("reference"), k):
                    panels.setdefault((partition, k), state)
    if not panels:
        return None
    return drawing.staying(
        [
            (
                state,
                k,
                [
                    (label, colour, entry["chapman_kolmogorov"][partition])
                    for label, colour, entry in content.lags
                    if partition in entry["chapman_kolmogorov"]
                ],
            )
            for (partition, k), state in panels.items()
        ],
        "MD",
    )


def _correlation(content: _Content) -> Drawing | None:
    reference = content.report["reference"]["mean_cos_change"]
    figure, axes = grid(len(reference), (3.6, 2.8))
    for axis, (name, by_time) in zip(axes, reference.items(), strict=True):
        x = np.array([float(t) for t in by_time])
        y = as_numbers(one["value"] for one in by_time.values())
        error = as_numbers(one["error"] for one in by_time.values())
        axis.fill_between(x, y - error, y + error, color=BAND, lw=0)
        axis.plot(x, y, color=INK, lw=1, label="MD")
        for label, colour, entry in content.lags:
            found = entry.get("mean_cos_change", {}).get(name, {})
            when = np.array([float(t) for t in found])
            _error_bars(axis, when, list(found.values()), colour, label)
        logarithmic(axis)
        axis.set_title(name)
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("mean cosine of the change")
    axes[0].legend()
    return figure


def _one_step(content: _Content) -> Drawing | None:
    steps = {
        entry["lag_ps"]: entry["one_step"]["mean_cos_change"]
        for _, _, entry in content.lags
        if "mean_cos_change" in entry["one_step"]
    }
    if not steps:
        return None
    lags = sorted(steps)
    names = list(steps[lags[0]])
    figure, axes = grid(len(names), (3.4, 2.8))
    for axis, name in zip(axes, names, strict=True):
        rows = [steps[lag][name] for lag in lags]
        theirs = [row["reference"] for row in rows]
        _error_bars(axis, 0.97 * np.array(lags), theirs, INK, "MD", "s")
        _error_bars(axis, 1.03 * np.array(lags), rows, PALETTE[1], "model")
        axis.set_xscale("log")
        axis.set_xticks(lags, [f"{lag:g}" for lag in lags], minor=False)
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel("lag (ps)")
        axis.set_ylabel("mean cosine of the change")
    axes[0].legend()
    return figure


def _hops(content: _Content) -> Drawing | None:
    figure = new_figure(4.6, 4.2)
    axis = figure.subplots()
    shown = False
    for label, colour, entry in content.lags:
        hops = entry["one_step"].get("hop_probabilities", {})
        rows = [one for partition in hops.values() for one in partition.values()]
        x = as_numbers(one["reference"]["value"] for one in rows)
        y = as_numbers(one["value"] for one in rows)
        seen = (x > 0) & (y > 0)
        if not seen.any():
            continue
        shown = True
        ex = as_numbers(one["reference"]["error"] for one in rows)[seen]
        ey = as_numbers(one["error"] for one in rows)[seen]
        axis.errorbar(
            x[seen],
            y[seen],
            np.array([np.minimum(ey, 0.9 * y[seen]), ey]),
            np.array([np.minimum(ex, 0.9 * x[seen]), ex]),
            ls="",
            marker="o",
            ms=4,
            lw=0.7,
            color=colour,
            label=label,
        )
    if not shown:
        return None
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = min(axis.get_xlim()[0], axis.get_ylim()[0], 0.1)
    axis.plot([low, 1], [low, 1], color=MUTED, lw=1, zorder=0)
    axis.set_xlim(low, 1.3)
    axis.set_ylim(low, 1.3)
    axis.set_aspect("equal")
    axis.set_xlabel("probability in MD")
    axis.set_ylabel("probability in the model")
    axis.legend()
    return figure


def _geometry(content: _Content) -> Drawing | None:
    first = content.lags[0][2]["geometry"]
    kinds = [key for key in ("bonds", "angles") if first and first[key]]
    if not kinds:
        return None
    longest = max(len(first[key]) for key in kinds)
    figure = new_figure(9.0, 1.2 + (0.2 * longest + 1.0) * len(kinds))
    heights = [len(first[key]) + 4 for key in kinds]
    axes = figure.subplots(len(kinds), 2, squeeze=False, height_ratios=heights)
    for row, key in zip(axes, kinds, strict=True):
        unit = "nm" if key == "bonds" else "deg"
        for axis, figure_key, what, zero in (
            (row[0], "width_ratio", f"width of {key} over MD's", 1.0),
            (row[1], f"mean_shift_{unit}", f"shift of {key} ({unit})", 0.0),
        ):
            for n, (label, colour, entry) in enumerate(content.lags):
                rows = entry["geometry"][key]
                y = np.arange(len(rows)) + 0.12 * (n - (len(content.lags) - 1) / 2)
                axis.errorbar(
                    as_numbers(one[figure_key]["value"] for one in rows),
                    y,
                    xerr=as_numbers(one[figure_key]["error"] for one in rows),
                    ls="",
                    marker="o",
                    ms=3.5,
                    color=colour,
                    label=label,
                )
            axis.axvline(zero, color=MUTED, lw=1, zorder=0)
            axis.set_yticks(range(len(first[key])), [one["name"] for one in first[key]], fontsize=7)
            axis.set_ylim(len(first[key]) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlabel(what)
    axes[0, 0].legend()
    return figure


def _energy(content: _Content) -> Drawing | None:
    figure = new_figure(5.2, 3.2)
    axis = figure.subplots()
    shown = False
    for label, colour, entry in content.lags:
        one = entry["solute_energy_excess_kT"].get("histogram")
        if one is None:
            continue
        x = np.array(one["from_reference_mean_kT"])
        width = x[1] - x[0]
        edges = np.append(x - width / 2, x[-1] + width / 2)
        if not shown:
            axis.stairs(
                np.array(one["reference"]) / width, edges, fill=True, color=BAND, label="MD"
            )
        axis.stairs(np.array(one["model"]) / width, edges, color=colour, label=label)
        shown = True
    if not shown:
        return None
    axis.set_xlabel("energy above the mean of MD (kT)")
    axis.set_ylabel("density (1/kT)")
    axis.legend()
    return figure


#: The pictures in the order of the page: how it is drawn, file name, title, what it shows.
PICTURES: Final[tuple[tuple[Callable[[_Content], Drawing | None], str, str, str], ...]] = (
    (
        _free_energy,
        "free-energy.png",
        "Free energy of two torsions",
        MAP_CAPTION,
    ),
    (
        _marginals,
        "marginals.png",
        "Distribution of every torsion",
        "MD in grey, the chains in colour.",
    ),
    (
        _drift,
        "drift.png",
        "Drift",
        "The divergence from MD in the four quarters of the chains. It should stay level; it is "
        "larger than that of all frames together, for a quarter holds fewer.",
    ),
    (
        _timescales,
        "timescales.png",
        TIMESCALES_TITLE,
        "MD with a grey band of one error. Below the grey diagonal a timescale is shorter than the "
        "lag and cannot be seen. Points that noise would make are left out.",
    ),
    (
        _chapman_kolmogorov,
        "chapman-kolmogorov.png",
        STAYING_TITLE,
        "Probability to be in the same state again: symbols and the grey band were found at that "
        "time, broken lines are what the Markov state model of the shortest time predicts "
        "(dotted: MD).",
    ),
    (
        _correlation,
        "correlation.png",
        "Mean cosine of the change of a torsion, along the chains",
        "An autocorrelation function: 1 where nothing has moved yet. MD in grey.",
    ),
    (
        _one_step,
        "one-step.png",
        "One step from frames of MD",
        "Mean cosine of the change of every torsion in a single step, against what MD does in the "
        "same time. No chain is involved: this is the model itself.",
    ),
    (
        _hops,
        "hops.png",
        "One step: hop probabilities",
        "Each point is the probability to go from one basin to another in a single step.",
    ),
    (
        _geometry,
        "geometry.png",
        "Bonds and angles of heavy atoms",
        "Widths over MD's (1 is right) and shifts of means.",
    ),
    (
        _energy,
        "energy.png",
        "Force-field energy of the solute in vacuum",
        "Relative to the mean of MD.",
    ),
)


def draw_all(report: dict[str, Any], folder: Path, histograms: MapHistograms) -> list[Picture]:
    """Draw the pictures for which there is something to show, to files in the folder, too."""
    content = _Content(report, histograms)
    made = []
    for draw, name, title, caption in PICTURES:
        (folder / name).unlink(missing_ok=True)
        with style():
            figure = draw(content)
            if figure is not None:
                figure.savefig(folder / name, dpi=110, facecolor="white")
                made.append((svg(figure, name.split(".")[0]), title, caption))
    return made
