"""A mixed run of ACE-ALA-NME in water, MD bursts and learned jumps in turn, beside plain MD.

Writes trajectory.xtc, topology.pdb, ramachandran.png and summary.json. Then plain MD of the same
system gets the same wall-clock time. About five minutes on two cores.
"""

from __future__ import annotations

import argparse

from ..demo.settings import DemoSettings
from ..model.schedules import schedule_text
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (DemoSettings,)
EXAMPLE = "openmm-sd demo --output demo-output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--output", "-o", required=True, metavar="DIR", help="directory to write to")
    add("--force", action="store_true", help="replace the files of an earlier run")
    add_settings(parser, DemoSettings)


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = DemoSettings(**given_of(arguments, DemoSettings))
    from ..demo import run_demo

    summary = run_demo(arguments.output, settings, force=arguments.force, progress=progress)
    text = (
        f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted, "
        f"{summary['redraws']} redraws, {summary['fallbacks']} fallbacks\n"
        f"{summary['md_time_ps']:.1f} ps of MD, {summary['effective_time_ps']:.0f} ps effective\n"
        f"plain MD {summary['md_ns_per_day']:.1f} ns/day, mixed run "
        f"{summary['effective_ns_per_day']:.0f} ns/day effective "
        f"({summary['platform']}, {summary['bridge']})\n"
        f"{schedule_text(summary['schedule'])}\n"
        f"{summary['side_by_side']['sentence']}\n"
        + "".join(f"note: {note}\n" for note in summary["notes"])
        + f"files are in {arguments.output}"
    )
    return Outcome(summary, text)
