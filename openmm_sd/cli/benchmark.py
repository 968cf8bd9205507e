"""How fast everything is on this machine, side by side: one table from one run.

Plain MD, bursts, mixed runs, rollouts, bridges, the cost of a network like the published one, cost
by batch and by molecule size, memory. Contestants take turns. Less than ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd benchmark --output speed.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--output", "-o", metavar="FILE", help="file for the whole result, JSON")
    add("--model", metavar="NAME", help="shipped model, or path of a bundle (ala2-water)")
    add("--seconds", type=float, metavar="S", help="time of each measurement, all turns (3)")
    add("--repeats", type=int, metavar="N", help="turns of each contestant (7)")
    add(
        "--only",
        metavar="WORD",
        help="md, burst, mixed, rollout, propagator, published, bridges, atoms or memory, or a "
        "word of a contestant's name",
    )
    add("--platform", metavar="P", help="OpenMM platform (a GPU's if one works, else CPU)")
    add("--device", metavar="D", help="of networks and rollouts: cpu or cuda (cpu)")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..benchmark import BenchmarkSettings, as_text, run_benchmark

    names = [field.name for field in fields(BenchmarkSettings) if hasattr(arguments, field.name)]
    given = {name: getattr(arguments, name) for name in names}
    settings = BenchmarkSettings(**{name: v for name, v in given.items() if v is not None})
    result = run_benchmark(settings, output=arguments.output, progress=progress)
    return Outcome(result["rows"], as_text(result))
