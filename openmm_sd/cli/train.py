"""Train a model on data sets and write its bundle.

Data sets are what 'generate' and 'import' write. A training that was stopped goes on when the same
command is given again. The bundle is written at the end. Also: --learning-rate --condition-noise
--ema-decay --turn-weight --no-rare-first --no-bf16 --no-time-reversal --compose-from --markov-lag
--drop --start-frames --description --recommended-lag --recommended-burst --novelty-only --without
--aside, see docs/training.md.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .outcome import Outcome
from .progress import Progress

if TYPE_CHECKING:
    from ..molecule.molecule import Molecule

EXAMPLE = "openmm-sd train ala2.h5 --output ala2.safetensors --minutes 30"

# Help that fits a screen leaves these to the documentation.
HIDDEN = argparse.SUPPRESS

# What a training without training looks at, beside the data sets and the output.
_FOR_NOVELTY = ("drop_ps", "held_out", "seed", "threads", "without")

# Option, field of the settings, type, unit, help.
_OPTIONS = (
    ("minutes", "minutes", float, "MIN", "wall-clock time of training (10)"),
    ("max-steps", "max_steps", int, "N", "stop after this many steps at the latest"),
    ("batch-size", "batch_size", int, "N", "pairs a step (256)"),
    ("learning-rate", "learning_rate", float, "R", HIDDEN),
    ("condition-noise", "condition_noise_nm", float, "NM", HIDDEN),
    ("ema-decay", "ema_decay", float, "D", HIDDEN),
    ("turn-weight", "turn_weight", float, "W", HIDDEN),
    ("network", "network", str, "NET", "internal, dense, family or auto (auto)"),
    ("width", "width", int, "N", "width of the network"),
    ("depth", "depth", int, "N", "number of its blocks"),
    ("calls", "n_calls", int, "N", "network calls a jump (8 or 10)"),
    ("lag-min", "lag_min_ps", float, "PS", "shortest lag (1)"),
    ("lag-max", "lag_max_ps", float, "PS", "longest lag (1000)"),
    ("compose-from", "compose_from_ps", float, "PS", HIDDEN),
    ("markov-lag", "markov_lag_ps", float, "PS", HIDDEN),
    ("drop", "drop_ps", float, "PS", HIDDEN),
    ("held-out", "held_out", float, "SHARE", "share of the data not trained on (0.1)"),
    ("start-frames", "start_frames", int, "N", HIDDEN),
    ("init", "init", str, "BUNDLE", "take the first weights from this bundle"),
    ("name", "name", str, "TEXT", "name on the card (the molecule's)"),
    ("description", "description", str, "TEXT", HIDDEN),
    ("recommended-lag", "recommended_lag_ps", float, "PS", HIDDEN),
    ("recommended-burst", "recommended_burst_ps", float, "PS", HIDDEN),
    ("seed", "seed", int, "N", "of everything random (1)"),
    ("device", "device", str, "D", "cpu, cuda or auto (auto)"),
    ("threads", "threads", int, "N", "CPU threads (PyTorch's choice)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd train DATA.h5 [DATA.h5 ...] -o MODEL.safetensors [options]"
    add = parser.add_argument
    add("datasets", nargs="+", metavar="DATA.h5", help="data sets, of one molecule or a family")
    add("-o", "--output", required=True, metavar="FILE", help="bundle, ending in .safetensors")
    for option, field, kind, unit, text in _OPTIONS:
        add(f"--{option}", dest=field, type=kind, metavar=unit, help=text)
    add("--also", action="append", metavar="PDB", help="a relative without data (repeatable)")
    add("--aside", action="append", metavar="DATA.h5", help=HIDDEN)
    # The novelty score of a bundle that has none, and runs that it leaves out.
    add("--novelty-only", metavar="BUNDLE", help=HIDDEN)
    add("--without", action="append", metavar="RUN", help=HIDDEN)
    add("--bf16", action=argparse.BooleanOptionalAction, help=HIDDEN)
    add("--rare-first", action=argparse.BooleanOptionalAction, help=HIDDEN)
    add("--time-reversal", action=argparse.BooleanOptionalAction, help=HIDDEN)


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..train.driver import add_novelty, train_bundle, use_threads
    from ..train.settings import StageSettings, TrainSettings

    given: dict[str, Any] = {k: v for k, v in vars(arguments).items() if v is not None}
    if arguments.novelty_only is not None:
        _refuse_idle_options(given)
    use_threads(arguments.threads)
    if given.get("compose_from_ps") == 0:
        given["compose_from_ps"] = None
    network = {name: given[name] for name in ("width", "depth", "n_calls") if name in given}
    training = TrainSettings(
        **{f.name: given[f.name] for f in fields(TrainSettings) if f.name in given}
    )
    given["without"] = tuple(arguments.without or ())
    given["also"] = tuple(_relative(Path(file)) for file in arguments.also or ())
    given["extra_data"] = tuple(arguments.aside or ())
    taken = {f.name: given[f.name] for f in fields(StageSettings) if f.name in given}
    settings = StageSettings(**{**taken, "network_settings": network, "training": training})
    if arguments.novelty_only is not None:
        result = add_novelty(
            arguments.novelty_only,
            arguments.datasets,
            arguments.output,
            settings,
            progress=progress,
        )
        return Outcome(
            result,
            f"a frame is novel beyond {result['threshold']:g}: {result['held_out_fired']} of "
            f"{result['held_out_frames']} held-out frames are, the highest score among them is "
            f"{result['held_out_highest']:g}\nthe bundle is {result['bundle']}",
        )
    made = train_bundle(arguments.datasets, arguments.output, settings, progress=progress)
    if made is None:  # another process writes the bundle and says so
        return Outcome({}, "", quiet=True)
    result = made
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


def _relative(file: Path) -> Molecule:
    """Read a molecule that no data is seen of; its name is the file's."""
    from ..molecule.molecule import Molecule
    from ..system.structure import read_structure

    topology, positions = read_structure(file)
    try:
        return Molecule.from_topology(topology, positions - positions.mean(axis=0), file.stem)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _refuse_idle_options(given: dict[str, Any]) -> None:
    options = {field: option for option, field, *_ in _OPTIONS}
    options |= {"bf16": "bf16", "rare_first": "rare-first", "time_reversal": "time-reversal"}
    for field, option in options.items():
        if field in given and field not in _FOR_NOVELTY:
            raise ValueError(f"--{option} has no effect with --novelty-only: nothing is trained")
