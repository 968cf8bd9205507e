"""Try a real jump through each bridge on each OpenMM platform of this machine.

Each try runs in a process of its own, so that a crash is a finding. Exit code 0 if any works.
"""

from __future__ import annotations

import argparse

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd doctor --platform CPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--platform",
        action="append",
        metavar="P",
        help="only this OpenMM platform; may be given several times",
    )


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..doctor import as_text, examine

    findings = examine(arguments.platform, progress=progress)
    works = any(cell["ok"] for row in findings["bridges"].values() for cell in row.values())
    return Outcome(findings, as_text(findings), 0 if works else 1)
