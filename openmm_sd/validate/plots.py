"""The pictures of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.drawing import (
    BAND,
    INK,
    MUTED,
    PALETTE,
    angle_axis,
    as_numbers,
    free_energy_maps,
    grid,
    logarithmic,
    new_figure,
    stay,
    stay_model,
    stay_reference,
    style,
    svg,
    timescale_axis,
    timescale_series,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .driver import Drawn

#: The pictures in the order of the page: file name, title, what it shows.
PICTURES = (
    (
        "free-energy.png",
        "Free energy of two torsions",
        "-ln of the histogram, in kT above its minimum. Blank: never visited.",
    ),
    ("marginals.png", "Distribution of every torsion", "MD in grey, the chains in colour."),
    (
        "drift.png",
        "Drift",
        "The divergence from MD in the four quarters of the chains. It should stay level; it is "
        "larger than that of all frames together, for a quarter holds fewer.",
    ),
    (
        "timescales.png",
        "Implied timescales against the lag of the Markov state model",
        "MD with a grey band of one error. Below the grey diagonal a timescale is shorter than the "
        "lag and cannot be seen. Points that noise would make are left out.",
    ),
    (
        "chapman-kolmogorov.png",
        "Chapman-Kolmogorov test",
        "Probability to be in the same state again: symbols and the grey band were found at that "
        "time, broken lines are what the Markov state model of the shortest time predicts "
        "(dotted: MD).",
    ),
    (
        "correlation.png",
        "Mean cosine of the change of a torsion, along the chains",
        "An autocorrelation function: 1 where nothing has moved yet. MD in grey.",
    ),
    (
        "one-step.png",
        "One step from frames of MD",
        "Mean cosine of the change of every torsion in a single step, against what MD does in the "
        "same time. No chain is involved: this is the model itself.",
    ),
    (
        "hops.png",
        "One step: hop probabilities",
        "Each point is the probability to go from one basin to another in a single step.",
    ),
    (
        "geometry.png",
        "Bonds and angles of heavy atoms",
        "Widths over MD's (1 is right) and shifts of means.",
    ),
    (
        "energy.png",
        "Force-field energy of the solute in vacuum",
        "Relative to the mean of MD.",
    ),
)


def draw_all(report: dict[str, Any], folder: Path, drawn: Drawn) -> list[tuple[str, str, str]]:
    """Draw the pictures for which there is something to show, to files too.

    Parameters
    ----------
    report : dict
        The report.
    folder : Path
        Where the files go.
    drawn : Drawn
        Histograms that the report does not hold.

    Returns
    -------
    list of (str, str, str)
        Of each picture: SVG, title, caption.
    """
    lags = report["lags"]
    colours = {lag: PALETTE[k % len(PALETTE)] for k, lag in enumerate(lags)}
    draw = {
        "free-energy.png": lambda: _free_energy(drawn),
        "marginals.png": lambda: _marginals(report, colours),
        "drift.png": lambda: _drift(report, colours),
        "timescales.png": lambda: _timescales(report, colours),
        "chapman-kolmogorov.png": lambda: _chapman_kolmogorov(report, colours),
        "correlation.png": lambda: _correlation(report, colours),
        "one-step.png": lambda: _one_step(report),
        "hops.png": lambda: _hops(report, colours),
        "geometry.png": lambda: _geometry(report, colours),
        "energy.png": lambda: _energy(report, colours),
    }
    made = []
    for name, title, caption in PICTURES:
        (folder / name).unlink(missing_ok=True)
        with style():
            figure = draw[name]()
            if figure is not None:
                figure.savefig(folder / name, dpi=110, facecolor="white")
                made.append((svg(figure, name.split(".")[0]), title, caption))
    return made


def _name(lag: str) -> str:
    return f"{lag} ps"


def _free_energy(drawn: Drawn) -> Figure | None:
    if not drawn.maps:
        return None
    maps = {lag if lag == "MD" else _name(lag): counts for lag, counts in drawn.maps.items()}
    return free_energy_maps(maps, drawn.names)


def _marginals(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    names = list(next(iter(report["lags"].values()))["marginals"])
    figure, axes = grid(len(names), (3.6, 2.6))
    for axis, name in zip(axes, names, strict=True):
        for k, (lag, entry) in enumerate(report["lags"].items()):
            one = entry["marginals"][name]
            edges = np.linspace(-180, 180, len(one["model"]) + 1)
            if k == 0:
                axis.stairs(one["reference"], edges, fill=True, color=BAND, label="MD")
            axis.stairs(one["model"], edges, color=colours[lag], label=_name(lag), lw=1.2)
        axis.set_title(name)
        angle_axis(axis, "angle")
        axis.set_ylabel("density (1/deg)")
        axis.set_ylim(bottom=0)
    axes[0].legend()
    return figure


def _drift(report: dict[str, Any], colours: dict[str, str]) -> Figure:
    figure = new_figure(5.0, 3.2)
    axis = figure.subplots()
    for k, (lag, entry) in enumerate(report["lags"].items()):
        one = entry["drift"]["jsd_quarters_bits"]
        x = np.arange(1, 5) + 0.06 * (k - (len(report["lags"]) - 1) / 2)
        axis.errorbar(
            x,
            one["value"],
            one["error"],
            color=colours[lag],
            marker="o",
            capsize=3,
            label=_name(lag),
        )
    axis.set_xticks(range(1, 5), ["first", "second", "third", "last"])
    axis.set_xlabel("quarter of the chains")
    axis.set_ylabel("divergence (bits)")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def _timescales(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    reference = report["reference"]["implied_timescales_ps"]
    if not reference:
        return None
    count = len(next(iter(reference.values()))["value"])
    figure, axes = grid(count, (3.6, 3.2))
    for k, axis in enumerate(axes):
        timescale_series(axis, reference, k, INK, "MD", band=True)
        for lag, entry in report["lags"].items():
            timescale_series(axis, entry["implied_timescales_ps"], k, colours[lag], _name(lag))
        axis.set_title(("slowest", "second", "third")[k] if k < 3 else f"number {k + 1}")
        timescale_axis(axis)
    if not axes[0].get_legend_handles_labels()[0]:
        return None  # so little data has no timescale
    axes[0].legend()
    return figure


def _chapman_kolmogorov(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    panels: dict[tuple[str, int], str] = {}
    for entry in report["lags"].values():
        for partition, one in entry["chapman_kolmogorov"].items():
            for k, state in enumerate(one["states"]):
                seen = [stay(side, "found", k) for side in (one, one.get("reference")) if side]
                if np.isfinite(np.concatenate(seen)).any():
                    panels.setdefault((partition, k), state)
    if not panels:
        return None
    figure, axes = grid(len(panels), (3.3, 2.6))
    for axis, ((partition, k), state) in zip(axes, panels.items(), strict=True):
        for n, (lag, entry) in enumerate(report["lags"].items()):
            one = entry["chapman_kolmogorov"].get(partition)
            if one is None:
                continue
            other = one.get("reference")
            if other is not None:
                stay_reference(axis, other, k, "MD" if n == 0 else None)
            stay_model(axis, one, k, colours[lag], _name(lag))
        axis.set_title(state)
        logarithmic(axis)
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("probability to be back")
        axis.set_ylim(0, 1.02)
    axes[0].legend()
    return figure


def _correlation(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    reference = report["reference"]["mean_cos_change"]
    figure, axes = grid(len(reference), (3.6, 2.8))
    for axis, (name, by_time) in zip(axes, reference.items(), strict=True):
        x = np.array([float(t) for t in by_time])
        y = as_numbers(one["value"] for one in by_time.values())
        error = as_numbers(one["error"] for one in by_time.values())
        axis.fill_between(x, y - error, y + error, color=BAND, lw=0)
        axis.plot(x, y, color=INK, lw=1, label="MD")
        for lag, entry in report["lags"].items():
            found = entry.get("mean_cos_change", {}).get(name, {})
            axis.errorbar(
                [float(t) for t in found],
                as_numbers(one["value"] for one in found.values()),
                as_numbers(one["error"] for one in found.values()),
                color=colours[lag],
                marker="o",
                ms=3,
                lw=0.8,
                capsize=2,
                label=_name(lag),
            )
        logarithmic(axis)
        axis.set_title(name)
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("mean cosine of the change")
    axes[0].legend()
    return figure


def _one_step(report: dict[str, Any]) -> Figure | None:
    steps = {
        float(lag): entry["one_step"]["mean_cos_change"]
        for lag, entry in report["lags"].items()
        if "mean_cos_change" in entry["one_step"]
    }
    if not steps:
        return None
    lags = sorted(steps)
    names = list(steps[lags[0]])
    figure, axes = grid(len(names), (3.4, 2.8))
    for axis, name in zip(axes, names, strict=True):
        rows = [steps[lag][name] for lag in lags]
        for source, colour, marker, shift in (
            ([row["reference"] for row in rows], INK, "s", 0.97),
            (rows, PALETTE[1], "o", 1.03),
        ):
            axis.errorbar(
                np.array(lags) * shift,
                as_numbers(one["value"] for one in source),
                as_numbers(one["error"] for one in source),
                color=colour,
                marker=marker,
                ms=5,
                lw=1,
                capsize=3,
                label="MD" if colour == INK else "model",
            )
        axis.set_xscale("log")
        axis.set_xticks(lags, [f"{lag:g}" for lag in lags], minor=False)
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel("lag (ps)")
        axis.set_ylabel("mean cosine of the change")
    axes[0].legend()
    return figure


def _hops(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    figure = new_figure(4.6, 4.2)
    axis = figure.subplots()
    shown = False
    for lag, entry in report["lags"].items():
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
            color=colours[lag],
            label=_name(lag),
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


def _geometry(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    first = next(iter(report["lags"].values()))["geometry"]
    kinds = [key for key in ("bonds", "angles") if first and first[key]]
    if not kinds:
        return None
    longest = max(len(first[key]) for key in kinds)
    figure = new_figure(9.0, 1.2 + (0.2 * longest + 1.0) * len(kinds))
    heights = [len(first[key]) + 4 for key in kinds]
    axes = figure.subplots(len(kinds), 2, squeeze=False, height_ratios=heights)
    for row, key in zip(axes, kinds, strict=True):
        unit = "nm" if key == "bonds" else "deg"
        for axis, figure_key, label, zero in (
            (row[0], "width_ratio", f"width of {key} over MD's", 1.0),
            (row[1], f"mean_shift_{unit}", f"shift of {key} ({unit})", 0.0),
        ):
            for n, (lag, entry) in enumerate(report["lags"].items()):
                rows = entry["geometry"][key]
                y = np.arange(len(rows)) + 0.12 * (n - (len(report["lags"]) - 1) / 2)
                axis.errorbar(
                    as_numbers(one[figure_key]["value"] for one in rows),
                    y,
                    xerr=as_numbers(one[figure_key]["error"] for one in rows),
                    ls="",
                    marker="o",
                    ms=3.5,
                    color=colours[lag],
                    label=_name(lag),
                )
            axis.axvline(zero, color=MUTED, lw=1, zorder=0)
            axis.set_yticks(range(len(first[key])), [one["name"] for one in first[key]], fontsize=7)
            axis.set_ylim(len(first[key]) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlabel(label)
    axes[0, 0].legend()
    return figure


def _energy(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    figure = new_figure(5.2, 3.2)
    axis = figure.subplots()
    shown = False
    for lag, entry in report["lags"].items():
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
        axis.stairs(np.array(one["model"]) / width, edges, color=colours[lag], label=_name(lag))
        shown = True
    if not shown:
        return None
    axis.set_xlabel("energy above the mean of MD (kT)")
    axis.set_ylabel("density (1/kT)")
    axis.legend()
    return figure
