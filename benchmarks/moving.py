"""A moving picture: phi and psi in plain MD and in a mixed run, for the same number of MD steps.

    python benchmarks/mixed.py prepare FOLDER
    python benchmarks/mixed.py md FOLDER --ps 320 --seed 1
    python benchmarks/mixed.py mixed FOLDER --lag 500 --settle-time 0.5 --burst 0.5 --jumps 300 --seed 1
    python benchmarks/moving.py FOLDER/md-1.npz FOLDER/mixed-lag500-burst0.5-time0.5-1.npz docs/mixed-run.gif

Nothing is simulated here. A mixed run's MD is its bursts and the settling after its jumps.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from shared import Command, option, run_command

FRAMES, FRAMES_A_SECOND = 40, 8
BLUE, RED = "#0072b2", "#d55e00"


def draw(options: argparse.Namespace) -> None:
    """Write the picture."""
    with np.load(options.md) as held:
        plain = np.degrees(np.stack([held["phi"], held["psi"]], axis=1))
        md_ps = json.loads(str(held["about"]))["md_ps"]
    with np.load(options.mixed) as held:
        jumped = np.degrees(held["after"])
        about = json.loads(str(held["about"]))
    told = about["statistics"]
    work_ps = told["md_time_ps"] + told["settle"]["time_ps"]
    shown_ps = min(md_ps, work_ps)
    panels = (
        ("plain MD", BLUE, plain, md_ps, md_ps),
        (
            f"mixed run, jumps of {about['lag_ps']:g} ps",
            RED,
            jumped,
            work_ps,
            told["effective_time_ps"],
        ),
    )
    figure = Figure(figsize=(7.2, 4.1))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.14, top=0.8, wspace=0.25)
    clouds = [(map_of(axis, panel[1]), axis) for axis, panel in zip(axes, panels, strict=True)]

    def show(frame: int) -> None:
        share = (frame + 1) / FRAMES
        for (cloud, axis), (name, _, points, whole_ps, stands_for_ps) in zip(
            clouds, panels, strict=True
        ):
            done = shown_ps * share / whole_ps
            seen = points[: max(1, round(done * len(points)))]
            cloud.set_offsets(seen)
            cloud.set_sizes([6.0] * (len(seen) - 1) + [60.0])
            axis.set_title(f"{name}\nstands for {done * stands_for_ps / 1000:.1f} ns", fontsize=10)
        figure.suptitle(f"alanine dipeptide in water, {share * shown_ps:.0f} ps of MD steps each")

    FuncAnimation(figure, show, frames=FRAMES, init_func=lambda: None).save(
        options.file, PillowWriter(fps=FRAMES_A_SECOND), dpi=80
    )
    for name, _, points, *_ in panels:
        there = points[:, 0] > 0
        print(f"{name}: {there.mean():.3f} of {len(points)} frames at phi > 0,", end=" ")
        print(f"{np.count_nonzero(there[1:] != there[:-1])} crossings")


def map_of(axis: Axes, colour: str) -> PathCollection:
    """Return an empty cloud of points on a map."""
    axis.axvline(0, color="0.8", lw=0.8, zorder=0)
    ticks = (-180, -90, 0, 90, 180)
    axis.set(xlim=(-180, 180), ylim=(-180, 180), xticks=ticks, yticks=ticks)
    axis.set(xlabel="phi, degrees", ylabel="psi, degrees")
    return axis.scatter([], [], c=colour, alpha=0.5, linewidths=0)


if __name__ == "__main__":
    run_command(
        __doc__,
        {
            "draw": Command(
                draw,
                (
                    option("md", type=Path, help="of mixed.py md"),
                    option("mixed", type=Path, help="of mixed.py mixed"),
                    option("file", type=Path, help="the picture, a GIF"),
                ),
            )
        },
    )
