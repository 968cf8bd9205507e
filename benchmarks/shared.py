"""What the benchmark scripts share: command lines, Contexts, data, errors, tables and figures."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from openmm_sd.analysis import dihedral
from openmm_sd.data.dataset import Dataset, Run

#: Torsions of alanine dipeptide, in the order of atoms of `ala2-water`.
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)

# -- command lines ---------------------------------------------------------------------------------

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **how: Any) -> Option:
    """An argument as `add_argument` takes it."""
    return names, how


SEED = option("--seed", type=int, default=1)
PLATFORM = option("--platform", default="CPU")
BRIDGE = option("--bridge", default="auto")
JSON = option("--json", type=Path, metavar="FILE", help="write the figures here, too")


@dataclass(frozen=True)
class Command:
    """A subcommand: what it does, with the parsed options, and which it has."""

    run: Callable[[argparse.Namespace], int | None]
    options: Sequence[Option]


def run_command(about: str | None, commands: Mapping[str, Command], threads: int | None = 1) -> int:
    """Parse the command line of a script and do the subcommand; its docstring is its help.

    A single command needs no name. With one thread of torch where not told otherwise: times
    compare, and other cores are for others.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = {name: parser for name in commands}
    if len(commands) > 1:
        added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for name, command in commands.items():
            text = (inspect.getdoc(command.run) or "").replace("%", "%%")
            parsers[name] = added.add_parser(
                name,
                help=text.split("\n\n")[0],
                description=text,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
    for name, command in commands.items():
        for names, how in command.options:
            parsers[name].add_argument(*names, **how)
    options = parser.parse_args()
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = getattr(options, "command", next(iter(commands)))
    return commands[chosen].run(options) or 0


def write_json(file: str | Path | None, content: Any) -> None:
    """Write figures to a file, where one was named."""
    if file is not None:
        Path(file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# -- Contexts --------------------------------------------------------------------------------------


def begin(
    system: openmm.System,
    integrator: openmm.Integrator,
    positions: ArrayLike,
    box_vectors: ArrayLike | None,
    options: argparse.Namespace,
    threads: int | None = None,
) -> openmm.Context:
    """A Context on `options.platform` at 300 K, with velocities from `options.seed`."""
    properties = {"Threads": str(threads)} if threads and options.platform == "CPU" else {}
    platform = openmm.Platform.getPlatformByName(options.platform)
    context = openmm.Context(system, integrator, platform, properties)
    if box_vectors is not None:
        context.setPeriodicBoxVectors(*box_vectors)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300.0, options.seed)
    return context


def positions_of(context: openmm.Context) -> NDArray[np.float64]:
    """Positions as they are, (atoms, 3) in nm: not put back into the box."""
    return np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value)


# -- data ------------------------------------------------------------------------------------------


def phi_psi(frames: ArrayLike) -> NDArray[np.float64]:
    """phi and psi of alanine dipeptide, (..., 2) in radians, from frames (..., 22, 3)."""
    return np.stack([dihedral(frames, PHI), dihedral(frames, PSI)], axis=-1)


def plain_runs(data: Dataset, *others: str) -> list[Run]:
    """Runs at equilibrium of a data set: those of the kind plain, and other kinds."""
    runs = [run for run in data.runs if run.kind in ("plain", *others)]
    if not runs:
        raise SystemExit(f"{data.molecule.name}: the data set holds no plain runs")
    return runs


# -- errors and tables -----------------------------------------------------------------------------


def with_error(value: float, error: float, digits: int = 2) -> str:
    """A value with as many digits as its error has two of; `digits` where it has no error."""
    if error > 0:
        digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def figure_text(figure: Mapping[str, Any] | None, digits: int, significant: bool = False) -> str:
    """A value and its error of a validation report, or a dash."""
    if not figure or figure.get("value") is None:
        return "-"
    value, error = figure["value"], figure.get("error")
    shape = f".{digits}{'g' if significant else 'f'}"
    return f"{value:{shape}}" + (f" ± {error:{'.2g' if significant else shape}}" if error else "")


def sigmas(one: tuple[float, float], other: tuple[float, float]) -> float:
    """How far two values with their errors are apart, in standard errors."""
    error = float(np.hypot(one[1], other[1]))
    return (one[0] - other[0]) / error if error else float("nan")


def fraction(inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of events, and its binomial error; that of a single event where none or all are."""
    count = len(inside)
    if count == 0:
        return float("nan"), float("nan")
    share = float(np.mean(inside))
    return share, float(np.sqrt(max(share * (1.0 - share), 1.0 / count) / count))


def print_row(cells: Iterable[object]) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_head(cells: Sequence[object]) -> None:
    """Print the first two rows of a Markdown table."""
    print_row(cells)
    print("|---" * len(cells) + "|")


# -- figures ---------------------------------------------------------------------------------------


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """A figure of this size, inches, that needs no screen."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
