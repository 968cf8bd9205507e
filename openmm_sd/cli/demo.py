"""A mixed run of ACE-ALA-NME in water: MD bursts and learned jumps in turn.

Writes trajectory.xtc, topology.pdb, ramachandran.png and summary.json. Plain MD of the same system
is timed beside it. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd demo --output demo-output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--output", "-o", required=True, metavar="DIR", help="directory to write to")
    add("--model", metavar="NAME", help="shipped model, or path of a bundle (ala2-water)")
    add("--seconds", type=float, metavar="S", help="wall-clock time of the sampling (120)")
    add("--jumps", type=int, metavar="N", help="try exactly N jumps instead")
    add("--waters", type=int, metavar="N", help="number of water molecules (651)")
    add("--equilibration", type=float, metavar="PS", help="MD that relaxes the new box (10)")
    add("--lag", type=float, metavar="PS", help="time one jump covers (the model's advice)")
    add("--burst", type=float, metavar="PS", help="MD time between two jumps (1)")
    add("--platform", metavar="P", help="OpenMM platform (a GPU's if one works, else CPU)")
    add("--bridge", metavar="B", help="auto, native, pythonforce or torchforce (auto)")
    add("--seed", type=int, metavar="N", help="seed of all random numbers (1)")
    add("--force", action="store_true", help="replace the files of an earlier run")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..demo import DemoSettings, run_demo

    given = {field.name: getattr(arguments, field.name) for field in fields(DemoSettings)}
    settings = DemoSettings(**{name: value for name, value in given.items() if value is not None})
    summary = run_demo(arguments.output, settings, force=arguments.force, progress=progress)
    text = (
        f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted, "
        f"{summary['redraws']} redraws, {summary['fallbacks']} fallbacks\n"
        f"{summary['md_time_ps']:.1f} ps of MD, {summary['effective_time_ps']:.0f} ps effective\n"
        f"plain MD {summary['md_ns_per_day']:.1f} ns/day, mixed run "
        f"{summary['effective_ns_per_day']:.0f} ns/day effective "
        f"({summary['platform']}, {summary['bridge']})\n"
        + "".join(f"note: {note}\n" for note in summary["notes"])
        + f"files are in {arguments.output}"
    )
    return Outcome(summary, text)
