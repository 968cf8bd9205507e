"""Train a model on data sets and write its bundle.

Data sets are what 'generate' and 'import' write. A stopped training resumes when the same
command is given again. The bundle is written at the end. See docs/training.md.
"""

from __future__ import annotations

import argparse

from ..settings import declared_fields
from ..train.settings import NetworkSettings, StageSettings, TrainOptions, TrainSettings
from .options import add_settings, given_of, option_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (
    NetworkSettings,
    StageSettings,
    TrainSettings,
)
EXAMPLE = "openmm-sd train ala2.h5 --output ala2.safetensors --minutes 30"

# What a training without training looks at, beside the data sets and the output.
_FOR_NOVELTY = ("drop_ps", "held_out", "seed", "without")

_GROUPS = {
    "data": "drop_ps held_out without extra_data",
    "lags": "lag_min_ps lag_max_ps time_reversal compose_from_ps markov_lag_ps",
    "bundle": "start_frames name description recommended_lag_ps recommended_burst_ps",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd train DATA.h5 [DATA.h5 ...] -o MODEL.safetensors [options]"
    add = parser.add_argument
    add("datasets", nargs="+", metavar="DATA.h5", help="data sets, of one molecule or a family")
    add("-o", "--output", required=True, metavar="FILE", help="bundle, ending in .safetensors")
    add("--also", action="append", metavar="PDB", help="a relative without data; repeatable")
    add(
        "--novelty-only",
        metavar="BUNDLE",
        help="train nothing: the novelty score of a bundle that has none",
    )
    add_settings(parser, StageSettings, _GROUPS)
    add_settings(parser, NetworkSettings)
    add_settings(parser, TrainSettings, {"training": " ".join(_names(TrainSettings))})
    add("--threads", type=int, metavar="N", help="CPU threads (PyTorch's choice)")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    if arguments.novelty_only is not None:
        _refuse_idle_options(arguments)
    from .. import verbs

    made = verbs.train(
        arguments.datasets,
        arguments.output,
        TrainOptions(**given_of(arguments, TrainOptions)),
        also=arguments.also or (),
        novelty_only=arguments.novelty_only,
        threads=arguments.threads,
        progress=progress,
    )
    if made is None:  # another process writes the bundle and says so
        return Outcome({}, "", quiet=True)
    result = made
    if "kinds" in result:
        return Outcome(
            result,
            f"molecules without data are compared with {result['kinds']} kinds of atoms in "
            f"{len(result['molecules'])} molecules; a frame is novel beyond "
            f"{result['threshold']:g}\nthe bundle is {result['bundle']}",
        )
    if arguments.novelty_only is not None:
        return Outcome(
            result,
            f"a frame is novel beyond {result['threshold']:g}: {result['held_out_fired']} of "
            f"{result['held_out_frames']} held-out frames are, the highest score among them is "
            f"{result['held_out_highest']:g}\nthe bundle is {result['bundle']}",
        )
    losses: dict[str, float] = {}
    for name, found in result.get("held_out_loss_by_lag_ps", {}).items():
        # Of a family by molecule and lag.
        several = found if isinstance(found, dict) else {"": found}
        losses |= {" ".join(filter(None, (name, lag))): loss for lag, loss in several.items()}
    text = (
        f"{result['steps']} steps in {result['wall_minutes']} minutes on {result['device']}, "
        f"{result['ns']} ns of data\n"
        + "".join(f"held-out loss at {lag} ps: {loss}\n" for lag, loss in losses.items())
        + f"recommended lag: {result['recommended_lag_ps']:g} ps\n"
        f"the bundle is {result['bundle']}; 'openmm-sd validate' says how good it is"
    )
    return Outcome(result, text)


def _refuse_idle_options(arguments: argparse.Namespace) -> None:
    idle = {
        one.name: option_of(one)
        for settings in (NetworkSettings, StageSettings, TrainSettings)
        for one in declared_fields(settings)
        if one.name not in _FOR_NOVELTY
    }
    for name, option in idle.items():
        if getattr(arguments, name, None) is not None:
            raise ValueError(f"--{option} has no effect with --novelty-only: nothing is trained")


def _names(settings: type) -> list[str]:
    return [one.name for one in declared_fields(settings)]
