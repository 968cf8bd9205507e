"""Teach a model to jump in one or two network calls, by what it answers in many.

No data set is needed: the student learns from chains of the model itself. It is faster and less
exact; 'openmm-sd validate' says how much. A stopped run resumes with the same command. See
docs/distilling.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..train.settings import DistillSettings, StudentSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (
    DistillSettings,
    StudentSettings,
)
EXAMPLE = "openmm-sd distill ala2-water -o ala2-2.safetensors --calls 2 --minutes 30"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd distill MODEL -o STUDENT.safetensors [options]"
    add = parser.add_argument
    add("model", metavar="MODEL", help="shipped model, or path of a bundle")
    add("-o", "--output", required=True, metavar="FILE", help="bundle, ending in .safetensors")
    add_settings(parser, DistillSettings)
    # Noise levels, rare hops and time reversal have no meaning here.
    add_settings(parser, StudentSettings, skip="sigma_min sigma_max rare_first")
    add("--threads", type=int, metavar="N", help="CPU threads (PyTorch's choice)")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = DistillSettings(**given_of(arguments, DistillSettings))
    training = replace(settings.training, **given_of(arguments, StudentSettings))
    settings = replace(settings, training=training)
    from ..train.distill import distill_bundle
    from ..train.driver import use_threads

    use_threads(arguments.threads)
    result = distill_bundle(arguments.model, arguments.output, settings, progress=progress)
    if result is None:  # another process writes the bundle and says so
        return Outcome({}, "", quiet=True)
    return Outcome(
        result,
        f"{result['steps']} steps in {result['wall_minutes']} minutes on {result['device']}\n"
        f"the bundle is {result['bundle']}; 'openmm-sd validate' says how good it is",
    )
