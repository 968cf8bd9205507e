"""Write report.html into the directory of a run: what it found, and whether to believe it.

One page that opens without a network, made from the files of the run. The run may be finished,
stopped, killed or still going on; what its last checkpoint knows is reported. `openmm-sd run` does
this by itself when it ends. What the page says is explained in docs/report.md.
"""

from __future__ import annotations

import argparse

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd report run1 --reference md.h5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd report DIR [options]"
    add = parser.add_argument
    add("folder", metavar="DIR", help="directory of a run")
    add("--model", metavar="BUNDLE", help="the model of the run, if it is not a shipped one")
    add(
        *("--reference", "-r"),
        action="append",
        nargs="+",
        metavar="DATA",
        help="MD to compare with: data sets, trajectories, .npy of (phi, psi)",
    )
    add("--topology", metavar="FILE", help="topology of trajectories that have none")
    add("--reference-spacing", type=float, metavar="PS", help="time between frames (arrays: 1)")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..run.report.page import write_report

    found = write_report(
        arguments.folder,
        model=arguments.model,
        reference=[path for several in arguments.reference or () for path in several],
        topology=arguments.topology,
        spacing_ps=arguments.reference_spacing,
        progress=progress,
    )
    return Outcome(found, told(found))


def told(found: dict) -> str:
    """Return what people get to read of a report."""
    lines = [
        f"{found['headline']}.",
        *(
            f"{one['question']} {one['answer']}: {one['found']}"
            for one in found["checks"]
            if one["verdict"] != "good"
        ),
        f"the report is {found['report']}",
    ]
    return "\n".join(lines)
