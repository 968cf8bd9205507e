"""A model of your molecule in one command, from a model that serves it or from nothing.

A loop: chains of the model, MD where they go and no MD has been, training on it, and comparison of
the laws of single jumps with MD that was not trained on; until they are MD's or the budget is
spent. Stopped, the same command resumes. MD, state and report are in the folder BUNDLE.adapt. See
docs/adapting.md.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..adapt.settings import AdaptSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (AdaptSettings,)
EXAMPLE = "openmm-sd adapt family.safetensors mol.pdb -o mine.safetensors --budget 30m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd adapt [MODEL] mol.pdb -o BUNDLE.safetensors [options]"
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="name or bundle; none with --from-scratch")
    add("structure", metavar="mol.pdb", help="the molecule alone, with hydrogens")
    add("-o", "--output", required=True, metavar="FILE", help="bundle, ending in .safetensors")
    add_settings(parser, AdaptSettings)


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = AdaptSettings(**given_of(arguments, AdaptSettings))
    from ..adapt.driver import adapt

    result = adapt(
        arguments.model, arguments.structure, arguments.output, settings, progress=progress
    )
    hours = result["core_hours"]
    lines = [
        *map(_line, result["rounds"]),
        f"{result['finished']}: {result['ns']:.3g} ns of MD and "
        f"{result['seconds'] / 60.0:.1f} minutes; core-hours: "
        + ", ".join(f"{what} {spent:.3f}" for what, spent in hours.items()),
        f"the bundle is {result['bundle']}, the report {result['report']}",
    ]
    return Outcome(result, "\n".join(lines))


def _line(one: dict[str, Any]) -> str:
    """Return what a round has found and made."""
    laws = "; ".join(
        f"{lag} ps: "
        + ", ".join(
            f"{what} off by {100 * entry[what]['deviation']:.0f} %"
            for what in ("hops", "turning")
            if entry[what] is not None
        )
        for lag, entry in one["laws"].items()
    )
    trained = one["training"]
    then = f", then {trained['minutes']:.1f} minutes of training" if trained else ""
    return f"round {one['round']}: {one['ns']:.3g} ns of MD{then}" + (f" ({laws})" if laws else "")
