"""The demonstration: a mixed run of a small peptide in water, from nothing to a picture.

A run of the model's own molecule in a box made for it, see `openmm_sd.run`, and then plain MD from
the same start for the same wall-clock time. ``ramachandran.png`` shows (phi, psi) of both side by
side, and ``summary.json`` counts how often each crossed phi and psi. Two frames are saved a burst,
half-way and at its end.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from openmm import app, unit

from ..analysis.equilibrium import peptide_partition
from ..analysis.kinetics import crossings
from ..data.reference import angles_of
from ..files.atomic import why, write_json
from ..files.folder import check_folder, interrupts, locked
from ..model.model import ScoreModel
from ..molecule.torsions import Torsion, backbone_torsions
from ..prepare import read_prepared
from ..progress import Progress, silence
from ..run.driver import run_mixed
from ..run.files import CHECKPOINT, LOG, START, SUMMARY, TOPOLOGY
from ..run.record import RunRecord, read_run
from ..system.plain_md import PlainMD
from .settings import DemoSettings

#: What the demonstration shows.
FILES: Final = ("trajectory.xtc", TOPOLOGY, "ramachandran.png", SUMMARY)
# What else a run leaves in its folder.
_OWN: Final = (*FILES, CHECKPOINT, LOG, "report.html")
# Plain MD is looked at so often, after steps in which kernels are compiled.
_PLAIN_EVERY_PS: Final = 0.25
_WARM_STEPS: Final = 10


def run_demo(
    output: str | os.PathLike[str],
    settings: DemoSettings | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the demonstration in a directory; return what ``summary.json`` holds.

    That is what `run_mixed` says, and ``side_by_side``: plain MD for the same wall-clock time. With
    `force` the files of an earlier run are replaced.
    """
    settings = settings or DemoSettings()
    say = progress or silence
    folder = _output_folder(Path(output), force)
    say("loading the model", settings.model)
    model = ScoreModel.load(settings.model).only()
    molecule = model.molecules[0]
    torsions = next(iter(backbone_torsions(molecule)), None)
    if torsions is None:
        raise ValueError(
            f"model: the demonstration needs a peptide with phi and psi, {molecule.name} "
            f"({molecule.formula}) has none"
        )
    if force:
        _clear(folder)
    until = math.inf

    def tell(what: str, how_far: str) -> None:
        nonlocal until
        if what == "running" and math.isinf(until) and settings.jumps is None:
            until = time.monotonic() + settings.seconds
        if what not in ("stopped", "done"):
            say(what, how_far)

    with interrupts() as asked:
        try:
            run_mixed(
                model,
                app.Modeller(molecule.to_topology(), molecule.positions * unit.nanometer),
                folder,
                settings.of_the_run(),
                progress=tell,
                stopped=lambda: asked() or time.monotonic() > until,
            )
        except KeyboardInterrupt:
            if asked():
                raise
        record = read_run(folder)
        plain = _plain_md(record, torsions, say, asked)
    say("drawing", "ramachandran.png")
    mixed = record.look(torsions, np.empty(0, dtype=np.int64))[0]
    beside = _side_by_side(record.summary, mixed, plain)
    _draw(record, mixed, plain, beside)
    summary = {**record.summary, "side_by_side": beside}
    write_json(folder / SUMMARY, summary)
    say("done", f"files are in {folder}")
    return summary


@dataclass(frozen=True)
class _Plain:
    """Plain MD: (phi, psi) of its frames, (T, 2) rad, the time that it covered, and took."""

    angles: NDArray[np.float32]
    ps: float
    seconds: float


def _plain_md(
    record: RunRecord, torsions: tuple[Torsion, Torsion], say: Progress, stopped: Callable[[], bool]
) -> _Plain:
    """Make plain MD from the start of a run for as long as the run's MD, model and settling took.

    KeyboardInterrupt if stopped.
    """
    summary, start = record.summary, read_prepared(record.folder / START)
    md = PlainMD(
        start.system,
        start.positions,
        start.box_vectors,
        temperature=summary["temperature_K"],
        friction=summary["settings"]["friction_per_ps"],
        step_ps=summary["step_ps"],
        seed=summary["seed"],
        platform=summary["platform"],
        properties={"Precision": summary["precision"]} if summary["precision"] else None,
    )
    steps = max(1, round(_PLAIN_EVERY_PS / summary["step_ps"]))
    md.steps(_WARM_STEPS)
    limit = sum(summary["seconds"].values())
    angles: list[NDArray[np.float32]] = []
    seconds = 0.0
    while seconds < limit:
        if stopped():
            raise KeyboardInterrupt
        seconds += md.steps(steps)
        angles.append(angles_of(md.positions()[None, summary["solute_atoms"]], torsions)[0])
        say("plain MD", f"{seconds:.0f} of {limit:.0f} s")
    return _Plain(
        np.array(angles, dtype=np.float32).reshape(-1, 2),
        len(angles) * steps * summary["step_ps"],
        seconds,
    )


def _side_by_side(
    summary: dict[str, Any], mixed: NDArray[np.float32], plain: _Plain
) -> dict[str, Any]:
    """Return what both did in the same time, and a sentence that says it."""
    covered, stands_for = plain.ps, summary["effective_time_ps"]
    of_plain, of_mixed = _crossings(plain.angles), _crossings(mixed)
    seconds = sum(summary["seconds"].values())
    sentence = (
        f"In {seconds:.0f} s of the same machine plain MD covered {covered / 1000:.3g} ns and "
        f"crossed phi {of_plain['phi']} and psi {of_plain['psi']} times; the mixed run stands for "
        f"{stands_for / 1000:.3g} ns and crossed phi {of_mixed['phi']} and psi {of_mixed['psi']} "
        "times."
    )
    return {
        "seconds": {"plain_md": plain.seconds, "mixed_run": seconds},
        "plain_md": {"time_ps": covered, "crossings": of_plain},
        "mixed_run": {"effective_time_ps": stands_for, "crossings": of_mixed},
        "sentence": sentence,
    }


def _crossings(angles: NDArray[np.float32]) -> dict[str, int]:
    """Return how often a series of (phi, psi) went from well inside one side to the other."""
    cores = peptide_partition().cores
    return {
        name: len(crossings([one.label(angles)]))
        for name, one in zip(("phi", "psi"), cores, strict=True)
    }


def _output_folder(folder: Path, force: bool) -> Path:
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(
            f"output: {folder} holds files already; --force replaces the demonstration's own "
            f"({', '.join(FILES)})"
        )
    return folder


def _clear(folder: Path) -> None:
    with locked(folder, "demonstration"):
        try:
            for name in _OWN:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"output: cannot write to {folder}: {why(error)}") from None


def _draw(
    record: RunRecord, mixed: NDArray[np.float32], plain: _Plain, beside: dict[str, Any]
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = record.summary
    figure = Figure(figsize=(11.0, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    titles = (
        f"plain MD: {plain.ps / 1000:.3g} ns",
        f"mixed run: {summary['effective_time_ps'] / 1000:.3g} ns effective, "
        f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted",
    )
    ticks = range(-180, 181, 60)
    shown = zip(figure.subplots(1, 2), (plain.angles, mixed), titles, strict=True)
    for axes, angles, title in shown:
        axes.axhline(0.0, color="0.88", linewidth=0.8, zorder=0)
        axes.axvline(0.0, color="0.88", linewidth=0.8, zorder=0)
        axes.scatter(*np.rad2deg(angles).T, s=16, color="#4477aa", alpha=0.6)
        axes.set(
            xlim=(-180, 180),
            ylim=(-180, 180),
            xticks=ticks,
            yticks=ticks,
            xlabel="phi (degrees)",
            ylabel="psi (degrees)",
            aspect="equal",
            title=title,
        )
    figure.suptitle(f"{summary['molecule']} in water. {beside['sentence']}", fontsize=9, wrap=True)
    figure.savefig(record.folder / "ramachandran.png")
