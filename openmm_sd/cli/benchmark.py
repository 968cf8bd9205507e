"""How fast everything is on this machine, side by side: one table from one run.

Plain MD, bursts, mixed runs, rollouts, bridges, the cost of a network like the published one, cost
by batch and by molecule size, memory; and what it is worth: effective samples a second, and the
time to a population's error, of plain MD (GROMACS's too), mixed runs and chains. Contestants take
turns. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse

from ..benchmark.settings import BenchmarkSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (BenchmarkSettings,)
EXAMPLE = "openmm-sd benchmark --output speed.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--output", "-o", metavar="FILE", help="file for the whole result, JSON")
    parser.add_argument(
        "--figure", metavar="FILE", help="picture: error of a population against wall-clock time"
    )
    parser.add_argument(
        *("--reference", "-r"),
        action="append",
        nargs="+",
        metavar="DATA",
        help="MD from which its correlation times are taken (chains of the shortest lag)",
    )
    add_settings(parser, BenchmarkSettings)


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = BenchmarkSettings(**given_of(arguments, BenchmarkSettings))
    from ..benchmark import as_text, run_benchmark

    result = run_benchmark(
        settings,
        output=arguments.output,
        figure=arguments.figure,
        reference=[path for several in arguments.reference or () for path in several],
        progress=progress,
    )
    return Outcome(result["rows"], as_text(result))
