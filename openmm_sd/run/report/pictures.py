"""The pictures of a run's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ...analysis.timeline import Timeline
from ...report import drawing
from ...report.drawing import (
    BAND,
    INK,
    MAP_CAPTION,
    MUTED,
    ORDINALS,
    PALETTE,
    SHADE,
    STAYING_TITLE,
    TIMESCALES_TITLE,
    Picture,
    angle_axis,
    free_energy_maps,
    grid,
    new_figure,
    style,
    svg,
)
from ..record import RunRecord
from .findings import MOST_PANELS, Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUN: Final = PALETTE[0]
# Dots are an image, which does not follow the page from light to dark: they show on both.
_DOT: Final = {"angle": "#2b8cc9", "energy": "#2b8cc9", "temperature": "#dd7425"}
# More dots than this add nothing but size.
_DOTS: Final = 4_000
_SERIES: Final = 4
_CURVE: Final = 200
_JUMP_BARS: Final = 20
_OUTCOMES: Final = (
    ("accepted", PALETTE[2]),
    ("fallbacks", PALETTE[1]),
    ("novel", PALETTE[3]),
)


@style()
def equilibrium(found: Findings) -> list[Picture]:
    """Draw maps, free energies and running populations."""
    other = found.comparison.name if found.comparison else ""
    drawn = []
    for k, (names, one) in enumerate(found.maps.items()):
        maps = {"run": one["run"]}
        if "reference" in one:
            maps[other] = one["reference"]
        title = f"Free energy of {names[0]} and {names[1]}"
        drawn.append((svg(free_energy_maps(maps, names), f"map{k}"), title, MAP_CAPTION))
    if found.profiles:
        caption = "In kT above the minimum; bars and band are one standard error. "
        if len(found.torsions) > MOST_PANELS:
            caption += f"The first {MOST_PANELS} of {len(found.torsions)} torsions. "
        caption += "A place that was seen in a single visit has a large bar."
        title = "Free energy of every torsion"
        drawn.append((svg(_profiles(found, other), "profiles"), title, caption))
    if found.populations and found.timeline.n_frames > 2:
        caption = (
            "Share of the time in each basin up to that point. A line that still climbs or falls "
            "at the end has not settled."
        )
        if other:
            caption += f" Bands: {other}, one error."
        drawn.append((svg(_running(found), "running"), "Populations so far", caption))
    return drawn


def _profiles(found: Findings, other: str) -> Figure:
    figure, axes = grid(len(found.profiles), (3.6, 2.6))
    for axis, (name, one) in zip(axes, found.profiles.items(), strict=True):
        energy, error = one["run"]
        x = -180.0 + (np.arange(len(energy)) + 0.5) * 360.0 / len(energy)
        if "reference" in one:
            theirs, their_error = one["reference"]
            axis.fill_between(x, theirs - their_error, theirs + their_error, color=BAND, lw=0)
            axis.plot(x, theirs, color=INK, lw=1, label=other)
        axis.errorbar(
            x, energy, error, color=_RUN, marker="o", ms=2.5, lw=1, elinewidth=0.8, label="run"
        )
        axis.set_title(name)
        angle_axis(axis, "angle")
        axis.set_ylabel("free energy (kT)")
        axis.set_ylim(bottom=-0.3)
    axes[0].legend()
    return figure


def _running(found: Findings) -> Figure:
    weights = found.timeline.weights
    times = _nanoseconds(found.timeline)
    total = np.cumsum(weights)
    marks = np.unique(np.linspace(0, len(times) - 1, _CURVE).round().astype(int))
    names = [name for partition in found.partitions for name in partition.states]
    figure, axes = grid(len(found.partitions), (5.2, 3.0), 2)
    for axis, partition in zip(axes, found.partitions, strict=True):
        labels = partition.label(found.angles)
        for k, name in enumerate(partition.states):
            colour = PALETTE[k % len(PALETTE)]
            share = np.cumsum(weights * (labels == k)) / total
            reference = found.populations[name].get("reference")
            if reference is not None:
                low = reference["value"] - reference["error"]
                axis.axhspan(
                    low, reference["value"] + reference["error"], color=colour, alpha=0.25, lw=0
                )
            axis.plot(times[marks], share[marks], color=colour, lw=1.3, label=name)
        axis.set_ylim(0, 1)
        axis.set_xlabel("effective time (ns)")
        axis.set_ylabel("share so far")
        axis.legend(ncols=2 if len(names) > 3 else 1)
    return figure


def _nanoseconds(timeline: Timeline) -> NDArray[np.float64]:
    return timeline.times_ps / 1000.0


def _thinned(count: int) -> str:
    return f", {_DOTS:,} of {count:,}" if count > _DOTS else ""


def _dotted(axis: Axes, x: NDArray[Any], y: NDArray[Any], colour: str) -> None:
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _DOTS)).round().astype(np.int64))
    # As an image: thousands of shapes would make the page slow.
    axis.plot(x[shown], y[shown], ".", ms=2.2, color=colour, rasterized=True, alpha=0.8)


@style()
def along(found: Findings) -> Picture | None:
    """Draw torsions against time."""
    if not found.torsions or found.timeline.n_frames < 2:
        return None
    chosen = found.torsions[:_SERIES]
    figure, axes = grid(len(chosen), (8.6, 1.7), 1)
    times = _nanoseconds(found.timeline)
    for k, (axis, torsion) in enumerate(zip(axes, chosen, strict=True)):
        _dotted(axis, times, np.rad2deg(found.angles[:, k]), _DOT["angle"])
        angle_axis(axis, torsion.name, vertical=True)
    axes[-1].set_xlabel("effective time (ns)")
    caption = f"Dots are frames{_thinned(found.timeline.n_frames)}."
    if len(found.torsions) > _SERIES:
        caption += f" The first {_SERIES} of {len(found.torsions)} torsions."
    return svg(figure, "along"), "Torsions along the run", caption


@style()
def kinetics(found: Findings) -> list[Picture]:
    """Draw implied timescales and the Chapman-Kolmogorov test."""
    other = found.comparison.name if found.comparison else ""
    drawn = []
    panels = [
        (f"{name}, {ORDINALS[k]}", k, one["reference"], [("run", _RUN, one["run"])])
        for name, one in found.timescales.items()
        for k in range(len(next(iter(one["run"].values()))["value"]))
        # What can be seen at two lags at least.
        if np.isfinite([by["value"][k] for by in one["run"].values()]).sum() > 1
    ][:MOST_PANELS]
    if panels:
        caption = (
            "Of Markov state models between the basins, which shortens them: compare only figures "
            "made alike. Effective time. Below the shaded diagonal a timescale is shorter than the "
            "lag and cannot be seen; points that noise would make are left out."
        )
        if any(reference for _, _, reference, _ in panels):
            caption += f" With a band of one error: {other}, made alike."
        figure = drawing.timescales(panels, other)
        drawn.append((svg(figure, "timescales"), TIMESCALES_TITLE, caption))
    stays = [
        (state, k, [("run", _RUN, one)])
        for one in found.staying.values()
        for k, state in enumerate(one["states"])
        if drawing.was_seen(one, k)
    ][:MOST_PANELS]
    if stays:
        caption = (
            "Probability to be in the same basin again: symbols were found at that time, broken "
            "lines are what the Markov state model of the shortest time predicts"
        )
        known = any("reference" in one for one in found.staying.values())
        caption += f"; {other}: a line with a band, dotted." if known else "."
        figure = drawing.staying(stays, other)
        drawn.append((svg(figure, "staying"), STAYING_TITLE, caption))
    return drawn


@style()
def energies(record: RunRecord, timeline: Timeline) -> Picture | None:
    """Draw potential energy and temperature along the run."""
    if record.n_frames < 2:
        return None
    figure, axes = grid(2, (8.6, 2.0), 1)
    times = _nanoseconds(timeline)
    block = timeline.blocks(8)
    for axis, key, label in (
        (axes[0], "energy", "energy (kJ/mol)"),
        (axes[1], "temperature", "temperature (K)"),
    ):
        values = record.log[key]
        _dotted(axis, times, values, _DOT[key])
        for k in range(8):
            inside = np.flatnonzero(block == k)
            if len(inside) < 2:
                continue
            mean, error = Timeline(times[inside]).mean(values[inside])
            ends = times[inside[[0, -1]]]
            if np.isfinite(error):
                axis.fill_between(ends, mean - error, mean + error, color=INK, alpha=0.3, lw=0)
            axis.plot(ends, [mean, mean], color=INK, lw=1.2)
        axis.set_ylabel(label)
    axes[1].axhline(record.summary["temperature_K"], color=MUTED, ls="--", lw=1)
    axes[1].set_xlabel("effective time (ns)")
    return (
        svg(figure, "energies"),
        "Potential energy and temperature in the bursts",
        f"Dots are frames{_thinned(record.n_frames)}; lines with bands are means of eighths of the "
        "run with their errors; broken: the thermostat.",
    )


@style()
def jumps(record: RunRecord) -> Picture | None:
    """Draw what became of the jumps along the run, where something did."""
    tried = record.log["tried"]
    if record.n_frames < 2 or tried[-1] < 2 or tried[-1] == record.log["accepted"][-1]:
        return None
    bars = int(min(_JUMP_BARS, tried[-1]))
    edges = np.linspace(0, tried[-1], bars + 1)
    figure = new_figure(8.6, 2.4)
    axis = figure.subplots()
    bottom = np.zeros(bars)
    for name, colour in _OUTCOMES:
        counts = np.diff(np.interp(edges, tried, record.log[name]))
        axis.bar(edges[:-1], counts, np.diff(edges), bottom, align="edge", color=colour, label=name)
        bottom += counts
    axis.set_facecolor(SHADE)
    axis.set_xlim(0, tried[-1])
    axis.set_xlabel("jumps tried")
    axis.set_ylabel("jumps")
    axis.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, 1.2))
    return (
        svg(figure, "jumps"),
        "What became of the jumps along the run",
        "Counts in equal shares of the jumps that were tried.",
    )
