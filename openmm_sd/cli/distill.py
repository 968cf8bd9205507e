"""Teach a model to jump in one or two network calls, by what it answers in many.

No data set is needed: the student learns from chains of the model itself. It is faster and less
exact; 'openmm-sd validate' says how much. Stopped, the same command goes on. Also: --learning-rate
--ema-decay --turn-weight --condition-noise --no-bf16 --description, see docs/distilling.md.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd distill ala2-water -o ala2-2.safetensors --calls 2 --minutes 30"

# Help that fits a screen leaves these to the documentation.
HIDDEN = argparse.SUPPRESS

# Option, field of the settings, type, unit, help.
_OPTIONS = (
    ("calls", "calls", int, "N", "network calls a jump, 1 or 2 (2)"),
    ("minutes", "minutes", float, "MIN", "wall-clock time of training (30)"),
    ("max-steps", "max_steps", int, "N", "stop after this many steps at the latest"),
    ("batch-size", "batch_size", int, "N", "jumps a step (512)"),
    ("learning-rate", "learning_rate", float, "R", HIDDEN),
    ("ema-decay", "ema_decay", float, "D", HIDDEN),
    ("turn-weight", "turn_weight", float, "W", HIDDEN),
    ("condition-noise", "condition_noise_nm", float, "NM", HIDDEN),
    ("name", "name", str, "TEXT", "name on the card (the model's, and the number of calls)"),
    ("description", "description", str, "TEXT", HIDDEN),
    ("seed", "seed", int, "N", "of everything random (1)"),
    ("device", "device", str, "D", "cpu, cuda or auto (auto)"),
    ("threads", "threads", int, "N", "CPU threads (PyTorch's choice)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd distill MODEL -o STUDENT.safetensors [options]"
    add = parser.add_argument
    add("model", metavar="MODEL", help="shipped model, or path of a bundle")
    add("-o", "--output", required=True, metavar="FILE", help="bundle, ending in .safetensors")
    for option, field, kind, unit, text in _OPTIONS:
        add(f"--{option}", dest=field, type=kind, metavar=unit, help=text)
    add("--bf16", action=argparse.BooleanOptionalAction, help=HIDDEN)


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..train.distill import distill_bundle
    from ..train.driver import use_threads
    from ..train.settings import DistillSettings

    given = {k: v for k, v in vars(arguments).items() if v is not None}
    use_threads(arguments.threads)
    settings = DistillSettings(
        **{f.name: given[f.name] for f in fields(DistillSettings) if f.name in given}
    )
    training = {f.name: given[f.name] for f in fields(settings.training) if f.name in given}
    settings = replace(settings, training=replace(settings.training, **training))
    result = distill_bundle(arguments.model, arguments.output, settings, progress=progress)
    if result is None:  # another process writes the bundle and says so
        return Outcome({}, "", quiet=True)
    return Outcome(
        result,
        f"{result['steps']} steps in {result['wall_minutes']} minutes on {result['device']}\n"
        f"the bundle is {result['bundle']}; 'openmm-sd validate' says how good it is",
    )
