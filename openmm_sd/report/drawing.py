"""Drawings that follow the page from light to dark, and what the pictures of reports share."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..analysis.figures import Staying
    from ..analysis.verdicts import Figures

    ByLag = Mapping[str, Figures]

#: Text and axes; a quiet line; an error band; a background that is shaded. What a page shows in
#: their place depends on whether it is light or dark.
INK, MUTED, BAND, SHADE = "#22262b", "#5c6570", "#c9cdd2", "#ececef"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d")

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    BAND: "var(--band)",
    SHADE: "var(--shade)",
    **{colour: f"var(--c{k + 1})" for k, colour in enumerate(PALETTE)},
}

#: What pictures of several reports are called, and what is said below them.
MAP_CAPTION = "-ln of the histogram, in kT above its minimum. Blank: never visited."
TIMESCALES_TITLE = "Implied timescales against the lag of the Markov state model"
STAYING_TITLE = "Chapman-Kolmogorov test"
#: Timescales are counted so.
ORDINALS = ("slowest", "second", "third")

#: A picture for a page: SVG, title, caption.
Picture = tuple[str, str, str]

#: Free energies beyond this are drawn as this, kT.
HIGHEST_KT = 8.0


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the reports' style; figures must be made and saved inside."""
    import matplotlib

    settings: dict[Any, Any] = {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.titlecolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.titlesize": 10.0,
        "font.size": 9.0,
        "legend.frameon": False,
        "legend.fontsize": 8.0,
        "svg.fonttype": "none",
        "svg.hashsalt": "openmm-sd",
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches."""
    # Without pyplot: no window, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def grid(count: int, size: tuple[float, float], columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels of a size in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(size[0] * columns, size[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def svg(figure: Figure, name: str) -> str:
    """Return a figure, drawn in `style`, as SVG that can stand in a page.

    The name, of letters, keeps what is referred to by name in one drawing apart from that in
    others.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing, dpi=130, transparent=True)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg ") :]
    drawing = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", drawing)
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", drawing)
    # The browser's own fonts; those of the drawing's layout are a little wider.
    drawing = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    return re.sub(r">\s+<", "><", drawing).strip()


def as_numbers(values: Any) -> NDArray[np.float64]:
    """Return an array of numbers; None becomes NaN."""
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def angle_axis(axis: Axes, name: str, vertical: bool = False) -> None:
    """Mark an axis of angles in degrees."""
    if vertical:
        axis.set_ylim(-180, 180)
        axis.set_yticks(range(-180, 181, 90))
        axis.set_ylabel(f"{name} (deg)")
    else:
        axis.set_xlim(-180, 180)
        axis.set_xticks(range(-180, 181, 90))
        axis.set_xlabel(f"{name} (deg)")


def logarithmic(axis: Axes, both: bool = False) -> None:
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


def free_energy_maps(maps: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> Figure:
    """Draw free energies of two torsions side by side.

    `maps` has histograms (counts or weights of square bins, flat) by the title of their panel,
    `names` those of the torsions.
    """
    count = len(maps)
    figure, axes = grid(count, (3.1, 3.0), count if count <= 3 else -(-count // 2))
    for axis, (title, counts) in zip(axes, maps.items(), strict=True):
        bins = round(len(counts) ** 0.5)
        with np.errstate(divide="ignore", invalid="ignore"):
            energy = -np.log(counts.reshape(bins, bins).T / counts.max())
        axis.imshow(
            np.where(np.isfinite(energy), np.minimum(energy, HIGHEST_KT), np.nan),
            origin="lower",
            extent=(-180, 180, -180, 180),
            cmap="viridis",
            vmin=0.0,
            vmax=HIGHEST_KT,
        )
        axis.set_title(title)
        angle_axis(axis, names[0])
        angle_axis(axis, names[1], vertical=True)
    figure.colorbar(axes[0].images[0], ax=axes, label="free energy (kT)", shrink=0.8)
    return figure


def staying(
    panels: Sequence[tuple[str, int, Sequence[tuple[str, str, Staying]]]], reference: str
) -> Figure:
    """Draw a Chapman-Kolmogorov test, with that of the reference.

    A panel has a title, the number of the state, and what is drawn: label, colour, probabilities.
    """
    figure, axes = grid(len(panels), (3.3, 2.6))
    for axis, (title, k, shown) in zip(axes, panels, strict=True):
        label: str | None = reference
        for name, colour, one in shown:
            if other := one.get("reference"):
                times, y = other["times_ps"], _column(other["stay_found"], k)
                error = _column(other["stay_found_error"], k)
                axis.fill_between(times, y - error, y + error, color=BAND, lw=0)
                axis.plot(times, y, color=INK, lw=1, label=label)
                axis.plot(times, _column(other["stay_predicted"], k), color=MUTED, lw=0.8, ls=":")
                label = None
            times = one["times_ps"]
            axis.plot(times, _column(one["stay_predicted"], k), color=colour, lw=1, ls="--")
            found, error = _column(one["stay_found"], k), _column(one["stay_found_error"], k)
            axis.errorbar(times, found, error, color=colour, ls="", marker="o", ms=4, label=name)
        axis.set_title(title)
        logarithmic(axis)
        axis.set_xlabel("time (ps)")
        axis.set_ylabel("probability to be back")
        axis.set_ylim(0, 1.02)
    axes[0].legend()
    return figure


def was_seen(one: Staying | None, k: int) -> bool:
    """Whether a Chapman-Kolmogorov test has found anything of a state."""
    return one is not None and bool(np.isfinite(_column(one["stay_found"], k)).any())


def _column(rows: Iterable[Sequence[float]], k: int) -> NDArray[np.float64]:
    return as_numbers(row[k] for row in rows)


def timescales(
    panels: Sequence[tuple[str, int, ByLag, Sequence[tuple[str, str, ByLag]]]], reference: str
) -> Figure:
    """Draw implied timescales against the lag of the Markov state model, with the reference's.

    A panel has a title, the number of the timescale, the reference's by lag, and what is drawn:
    label, colour, timescales by lag.
    """
    figure, axes = grid(len(panels), (3.6, 3.0))
    for axis, (title, k, other, shown) in zip(axes, panels, strict=True):
        _timescale_series(axis, other, k, INK, reference, band=True)
        for name, colour, by_lag in shown:
            _timescale_series(axis, by_lag, k, colour, name)
        axis.set_title(title)
        _timescale_axis(axis)
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
            break
    return figure


def _timescale_series(
    axis: Axes, by_lag: ByLag, k: int, colour: str, label: str, band: bool = False
) -> None:
    """Draw one implied timescale against the lag of the Markov state model."""
    x = np.array([float(lag) for lag in by_lag])
    y = as_numbers(one["value"][k] for one in by_lag.values())
    error = as_numbers(one["error"][k] for one in by_lag.values())
    seen = np.isfinite(y) & np.isfinite(error)
    x, y, error = x[seen], y[seen], error[seen]
    if not len(x):
        return
    if band:
        # On a logarithmic axis an error as large as the value has no lower end.
        axis.fill_between(x, np.maximum(y - error, 0.1 * y), y + error, color=BAND, lw=0)
        axis.plot(x, y, color=colour, marker=".", label=label)
    else:
        down = np.minimum(error, 0.9 * y)
        axis.errorbar(x, y, [down, error], color=colour, marker="o", ms=4, capsize=2, label=label)


def _timescale_axis(axis: Axes) -> None:
    """Finish a panel of implied timescales: scales, and the region that cannot be seen."""
    if not np.isfinite(axis.xaxis.get_minpos()):
        axis.text(0.5, 0.5, "lost in the noise", ha="center", transform=axis.transAxes)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    logarithmic(axis, both=True)
    axis.autoscale(False)
    low, high = axis.get_xlim()
    lags = np.geomspace(low, high, 50)
    axis.fill_between(lags, axis.get_ylim()[0], lags, color=SHADE, lw=0, zorder=0)
    axis.set_xlabel("lag of the Markov model (ps)")
    axis.set_ylabel("timescale (ps)")
