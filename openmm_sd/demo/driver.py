"""The demonstration: a mixed run of a small peptide in water, from nothing to a picture.

A run of the model's own molecule in a box made for it, see `openmm_sd.run`, and in its folder
``ramachandran.png`` with (phi, psi) of its frames. Two frames are saved a burst, half-way and at
its end.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from openmm import app, unit

from ..files.atomic import why
from ..files.folder import check_folder, interrupts, locked
from ..model.model import ScoreModel
from ..molecule.torsions import Torsion, backbone_torsions
from ..progress import Progress, silence
from ..run.driver import run_mixed
from ..run.files import CHECKPOINT, LOG, SUMMARY, TOPOLOGY
from ..run.record import RunRecord, read_run
from .settings import DemoSettings

#: What the demonstration shows.
FILES: Final = ("trajectory.xtc", TOPOLOGY, "ramachandran.png", SUMMARY)
# What else a run leaves in its folder.
_OWN: Final = (*FILES, CHECKPOINT, LOG, "report.html")


def run_demo(
    output: str | os.PathLike[str],
    settings: DemoSettings | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the demonstration in a directory; return what ``summary.json`` holds, see `run_mixed`.

    With `force` the files of an earlier run are replaced.
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
    say("drawing", "ramachandran.png")
    record = read_run(folder)
    _draw(record, torsions)
    say("done", f"files are in {folder}")
    return record.summary


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


def _draw(record: RunRecord, torsions: tuple[Torsion, Torsion]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = record.summary
    angles, _ = record.look(torsions, np.empty(0, dtype=np.int64))
    figure = Figure(figsize=(6.4, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(0.0, color="0.88", linewidth=0.8, zorder=0)
    axes.axvline(0.0, color="0.88", linewidth=0.8, zorder=0)
    phi, psi = np.rad2deg(angles).T
    axes.scatter(phi, psi, s=16, color="#4477aa", alpha=0.6)
    ticks = range(-180, 181, 60)
    axes.set(
        xlim=(-180, 180),
        ylim=(-180, 180),
        xticks=ticks,
        yticks=ticks,
        xlabel="phi (degrees)",
        ylabel="psi (degrees)",
        aspect="equal",
        title=f"{summary['molecule']} in water: {len(angles)} frames, "
        f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted",
    )
    figure.savefig(record.folder / "ramachandran.png")
