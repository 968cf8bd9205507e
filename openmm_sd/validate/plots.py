"""The pictures of a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .stage import Drawn

_MD = "black"
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
_HIGHEST_KT = 8.0

#: The pictures in the order of the page: file name, title, what it shows.
PICTURES = (
    (
        "free-energy.png",
        "Free energy of two torsions",
        "-ln of the histogram, in kT above its minimum. White: never visited.",
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
    """Draw the pictures for which there is something to show.

    Parameters
    ----------
    report : dict
        The report.
    folder : Path
        Where to.
    drawn : Drawn
        Histograms that the report does not hold.

    Returns
    -------
    list of (str, str, str)
        Of each picture: file name, title, caption.
    """
    lags = report["lags"]
    colours = {lag: _PALETTE[k % len(_PALETTE)] for k, lag in enumerate(lags)}
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
        figure = draw[name]()
        if figure is not None:
            figure.savefig(folder / name, dpi=110)
            made.append((name, title, caption))
    return made


def _figure(width: float, height: float) -> Figure:
    # Without pyplot: no window, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _grid(count: int, size: tuple[float, float], columns: int = 3) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = _figure(size[0] * columns, size[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _log(axis: Axes, both: bool = False) -> None:
    """Make the axis logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for own, scale, limits in (
        (axis.xaxis, axis.set_xscale, axis.get_xlim),
        (axis.yaxis, axis.set_yscale, axis.get_ylim),
    )[: 1 + both]:
        if not np.isfinite(own.get_minpos()):  # nothing was drawn
            continue
        scale("log")
        low, high = limits()
        marks: tuple[float, ...] = (1.0, 2.0, 5.0) if high < 150 * low else (1.0,)
        if high < 5 * low:
            marks = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
        own.set_major_locator(LogLocator(subs=marks))
        own.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        own.set_minor_locator(NullLocator())


def _name(lag: str) -> str:
    return f"{lag} ps"


def _free_energy(drawn: Drawn) -> Figure | None:
    if not drawn.maps:
        return None
    count = len(drawn.maps)
    figure, axes = _grid(count, (3.1, 3.0), count if count <= 3 else -(-count // 2))
    for axis, (lag, counts) in zip(axes, drawn.maps.items(), strict=True):
        bins = round(len(counts) ** 0.5)
        with np.errstate(divide="ignore"):
            energy = -np.log(counts.reshape(bins, bins).T / counts.max())
        axis.imshow(
            np.where(np.isfinite(energy), np.minimum(energy, _HIGHEST_KT), np.nan),
            origin="lower",
            extent=(-180, 180, -180, 180),
            cmap="viridis",
            vmin=0.0,
            vmax=_HIGHEST_KT,
        )
        axis.set_title(lag if lag == "MD" else _name(lag))
        axis.set_xlabel(f"{drawn.names[0]} (deg)")
        axis.set_ylabel(f"{drawn.names[1]} (deg)")
        axis.set_xticks(range(-180, 181, 90))
        axis.set_yticks(range(-180, 181, 90))
    figure.colorbar(axes[0].images[0], ax=axes, label="free energy (kT)", shrink=0.8)
    return figure


def _marginals(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    names = list(next(iter(report["lags"].values()))["marginals"])
    figure, axes = _grid(len(names), (3.6, 2.6))
    for axis, name in zip(axes, names, strict=True):
        for k, (lag, entry) in enumerate(report["lags"].items()):
            one = entry["marginals"][name]
            edges = np.linspace(-180, 180, len(one["model"]) + 1)
            if k == 0:
                axis.stairs(one["reference"], edges, fill=True, color="0.8", label="MD")
            axis.stairs(one["model"], edges, color=colours[lag], label=_name(lag), lw=1.2)
        axis.set_title(name)
        axis.set_xlabel("angle (deg)")
        axis.set_ylabel("density (1/deg)")
        axis.set_xticks(range(-180, 181, 90))
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=7)
    return figure


def _drift(report: dict[str, Any], colours: dict[str, str]) -> Figure:
    figure = _figure(5.0, 3.2)
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
    axis.legend(fontsize=8)
    return figure


def _timescales(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    reference = report["reference"]["implied_timescales_ps"]
    if not reference:
        return None
    count = len(next(iter(reference.values()))["value"])
    figure, axes = _grid(count, (3.6, 3.2))
    for k, axis in enumerate(axes):
        _series(axis, reference, k, _MD, "MD", band=True)
        for lag, entry in report["lags"].items():
            _series(axis, entry["implied_timescales_ps"], k, colours[lag], _name(lag))
        axis.set_title(("slowest", "second", "third")[k] if k < 3 else f"number {k + 1}")
        if not np.isfinite(axis.xaxis.get_minpos()):
            axis.text(0.5, 0.5, "lost in the noise", ha="center", transform=axis.transAxes)
            axis.set_xticks([])
            axis.set_yticks([])
            continue
        _log(axis, both=True)
        axis.autoscale(False)
        low, high = axis.get_xlim()
        grid = np.geomspace(low, high, 50)
        axis.fill_between(grid, axis.get_ylim()[0], grid, color="0.93", zorder=0)
        axis.set_xlabel("lag of the Markov model (ps)")
        axis.set_ylabel("timescale (ps)")
    axes[0].legend(fontsize=8)
    return figure


def _series(
    axis: Axes, by_lag: dict[str, Any], k: int, colour: str, label: str, band: bool = False
) -> None:
    x = np.array([float(lag) for lag in by_lag])
    y = _numbers(one["value"][k] for one in by_lag.values())
    error = _numbers(one["error"][k] for one in by_lag.values())
    seen = np.isfinite(y) & np.isfinite(error)
    x, y, error = x[seen], y[seen], error[seen]
    if not len(x):
        return
    if band:
        # On a logarithmic axis an error as large as the value has no lower end.
        axis.fill_between(x, np.maximum(y - error, 0.1 * y), y + error, color="0.75", lw=0)
        axis.plot(x, y, color=colour, marker=".", label=label)
    else:
        down = np.minimum(error, 0.9 * y)
        axis.errorbar(x, y, [down, error], color=colour, marker="o", ms=4, capsize=2, label=label)


def _chapman_kolmogorov(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    panels: dict[tuple[str, int], str] = {}
    for entry in report["lags"].values():
        for partition, one in entry["chapman_kolmogorov"].items():
            for k, state in enumerate(one["states"]):
                seen = [_stay(side, "found", k) for side in (one, one.get("reference")) if side]
                if np.isfinite(np.concatenate(seen)).any():
                    panels.setdefault((partition, k), state)
    if not panels:
        return None
    figure, axes = _grid(len(panels), (3.3, 2.6))
    for axis, ((partition, k), state) in zip(axes, panels.items(), strict=True):
        for n, (lag, entry) in enumerate(report["lags"].items()):
            one = entry["chapman_kolmogorov"].get(partition)
            if one is None:
                continue
            other = one.get("reference")
            if other is not None:
                times = np.array(other["times_ps"])
                y, error = _stay(other, "found", k), _stay(other, "found_error", k)
                axis.fill_between(times, y - error, y + error, color="0.8", lw=0)
                axis.plot(times, y, color=_MD, lw=1, label="MD" if n == 0 else None)
                axis.plot(times, _stay(other, "predicted", k), color="0.4", lw=0.8, ls=":")
            times = np.array(one["times_ps"])
            axis.plot(times, _stay(one, "predicted", k), color=colours[lag], lw=1, ls="--")
            axis.errorbar(
                times,
                _stay(one, "found", k),
                _stay(one, "found_error", k),
                color=colours[lag],
                ls="",
                marker="o",
                ms=4,
                label=_name(lag),
            )
        axis.set_title(state)
        _log(axis)
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("probability to be back")
        axis.set_ylim(0, 1.02)
    axes[0].legend(fontsize=7)
    return figure


def _stay(one: dict[str, Any], key: str, k: int) -> NDArray[np.float64]:
    return _numbers(row[k] for row in one[f"stay_{key}"])


def _correlation(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    reference = report["reference"]["mean_cos_change"]
    figure, axes = _grid(len(reference), (3.6, 2.8))
    for axis, (name, by_time) in zip(axes, reference.items(), strict=True):
        x = np.array([float(t) for t in by_time])
        y = _numbers(one["value"] for one in by_time.values())
        error = _numbers(one["error"] for one in by_time.values())
        axis.fill_between(x, y - error, y + error, color="0.75", lw=0)
        axis.plot(x, y, color=_MD, lw=1, label="MD")
        for lag, entry in report["lags"].items():
            found = entry.get("mean_cos_change", {}).get(name, {})
            axis.errorbar(
                [float(t) for t in found],
                _numbers(one["value"] for one in found.values()),
                _numbers(one["error"] for one in found.values()),
                color=colours[lag],
                marker="o",
                ms=3,
                lw=0.8,
                capsize=2,
                label=_name(lag),
            )
        _log(axis)
        axis.set_title(name)
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("mean cosine of the change")
    axes[0].legend(fontsize=7)
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
    figure, axes = _grid(len(names), (3.4, 2.8))
    for axis, name in zip(axes, names, strict=True):
        rows = [steps[lag][name] for lag in lags]
        for source, colour, marker, shift in (
            ([row["reference"] for row in rows], _MD, "s", 0.97),
            (rows, _PALETTE[1], "o", 1.03),
        ):
            axis.errorbar(
                np.array(lags) * shift,
                _numbers(one["value"] for one in source),
                _numbers(one["error"] for one in source),
                color=colour,
                marker=marker,
                ms=5,
                lw=1,
                capsize=3,
                label="MD" if colour == _MD else "model",
            )
        axis.set_xscale("log")
        axis.set_xticks(lags, [f"{lag:g}" for lag in lags], minor=False)
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel("lag (ps)")
        axis.set_ylabel("mean cosine of the change")
    axes[0].legend(fontsize=8)
    return figure


def _hops(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    figure = _figure(4.6, 4.2)
    axis = figure.subplots()
    shown = False
    for lag, entry in report["lags"].items():
        hops = entry["one_step"].get("hop_probabilities", {})
        rows = [one for partition in hops.values() for one in partition.values()]
        x = _numbers(one["reference"]["value"] for one in rows)
        y = _numbers(one["value"] for one in rows)
        seen = (x > 0) & (y > 0)
        if not seen.any():
            continue
        shown = True
        ex = _numbers(one["reference"]["error"] for one in rows)[seen]
        ey = _numbers(one["error"] for one in rows)[seen]
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
    axis.plot([low, 1], [low, 1], color="0.6", lw=1, zorder=0)
    axis.set_xlim(low, 1.3)
    axis.set_ylim(low, 1.3)
    axis.set_aspect("equal")
    axis.set_xlabel("probability in MD")
    axis.set_ylabel("probability in the model")
    axis.legend(fontsize=8)
    return figure


def _geometry(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    first = next(iter(report["lags"].values()))["geometry"]
    kinds = [key for key in ("bonds", "angles") if first and first[key]]
    if not kinds:
        return None
    longest = max(len(first[key]) for key in kinds)
    figure = _figure(9.0, 1.2 + (0.2 * longest + 1.0) * len(kinds))
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
                    _numbers(one[figure_key]["value"] for one in rows),
                    y,
                    xerr=_numbers(one[figure_key]["error"] for one in rows),
                    ls="",
                    marker="o",
                    ms=3.5,
                    color=colours[lag],
                    label=_name(lag),
                )
            axis.axvline(zero, color="0.6", lw=1, zorder=0)
            axis.set_yticks(range(len(first[key])), [one["name"] for one in first[key]], fontsize=7)
            axis.set_ylim(len(first[key]) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlabel(label)
    axes[0, 0].legend(fontsize=7)
    return figure


def _energy(report: dict[str, Any], colours: dict[str, str]) -> Figure | None:
    figure = _figure(5.2, 3.2)
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
                np.array(one["reference"]) / width, edges, fill=True, color="0.8", label="MD"
            )
        axis.stairs(np.array(one["model"]) / width, edges, color=colours[lag], label=_name(lag))
        shown = True
    if not shown:
        return None
    axis.set_xlabel("energy above the mean of MD (kT)")
    axis.set_ylabel("density (1/kT)")
    axis.legend(fontsize=8)
    return figure
