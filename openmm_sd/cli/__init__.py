"""The program ``openmm-sd``: one file a command.

A command is a module of this package with a docstring (its help), an ``EXAMPLE``, its classes of
settings as ``SETTINGS`` where there are any, a function ``add_arguments(parser)`` and a function
``run(arguments, progress)`` that returns an :class:`~openmm_sd.cli.outcome.Outcome`. It imports
what is heavy inside ``run``, so that ``--help`` answers at once. List it in `COMMANDS`.

With ``--json`` a command prints one JSON object on standard output and nothing else there.
Exit codes: 0 done; 2 the input was wrong; 1 anything else; 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from types import ModuleType

from ..version import __version__
from .config import add_config, config_text, with_config
from .options import Once
from .progress import Progress

#: Every command, in the order of the help, with what it does in a few words.
COMMANDS = {
    "doctor": "try a real jump through each bridge on each platform of this machine",
    "models": "list the models that come with openmm-sd, or show a model's card",
    "prepare": "a structure repaired, in water and relaxed, ready to run",
    "generate": "molecular dynamics of a solute in water, to a data set",
    "import": "a data set from trajectories that you already have",
    "train": "train a model on data sets",
    "adapt": "a model of your molecule in one command: MD where it is needed, and training",
    "distill": "a model's jumps in one or two network calls, faster and less exact",
    "run": "a mixed run of your own system to a trajectory, resumable",
    "report": "one page on a run: what it found, and whether to believe it",
    "rollout": "many chains of pure Score Dynamics to a trajectory",
    "validate": "equilibrium, kinetics and geometry of a model against MD",
    "benchmark": "how fast everything is on this machine, side by side",
    "demo": "a mixed run of a small peptide in water, from nothing to a picture",
    "completion": "a script that completes commands and options in bash or zsh",
}

_PACKAGE = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser, command = _parser(argv)
        words = argv if command is None else with_config(command, argv)
        arguments = parser.parse_args(words)
    except SystemExit as stop:  # argparse has printed its help or one line about the error
        return int(stop.code or 0)
    except ValueError as error:
        print(f"openmm-sd: {error}", file=sys.stderr)
        return 2
    if command is not None and getattr(arguments, "print_config", False):
        print(config_text(command, arguments, _module(arguments.command).SETTINGS))
        return 0
    # Idle OpenMP threads that spin take the cores that OpenMM needs. Read once, by torch's import.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    progress = Progress(arguments.quiet, arguments.verbose)
    try:
        with _quiet_stdout() if arguments.json else contextlib.nullcontext():
            outcome = _module(arguments.command).run(arguments, progress)
            # Serialised in here, so that a result that JSON cannot hold prints nothing.
            text = json.dumps(outcome.result, allow_nan=False) if arguments.json else outcome.text
    except KeyboardInterrupt:
        progress.close()
        print("openmm-sd: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        progress.close()
        if arguments.debug:
            traceback.print_exc()
        message = " ".join(str(error).split()) or "no further message"
        wrong_input = isinstance(error, (ValueError, FileNotFoundError)) and _is_ours(error)
        kind = "" if wrong_input else f"{type(error).__name__}: "
        print(f"openmm-sd {arguments.command}: {kind}{message}", file=sys.stderr)
        for advice in getattr(error, "__notes__", ()):
            print(advice, file=sys.stderr)
        return 2 if wrong_input else 1
    progress.close()
    if not outcome.quiet:
        print(text, flush=True)
    return outcome.code


def _parser(
    argv: Sequence[str],
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """Return a parser that knows every command, and that of the one which is asked for."""
    asked = next((word for word in argv if word in COMMANDS), None)
    wanted = None
    parser = argparse.ArgumentParser(
        prog="openmm-sd",
        description="Score Dynamics for OpenMM: MD bursts alternating with learned jumps.",
        epilog="example: openmm-sd demo --output demo-output\n"
        "'openmm-sd COMMAND --help' says more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"openmm-sd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name != asked:
            commands.add_parser(name, help=summary)
            continue
        module = _module(name)
        wanted = command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.register("action", None, Once)
        module.add_arguments(command)
        command.add_argument(
            "--json",
            action="store_true",
            help="print one JSON object on standard output, all else on standard error",
        )
        says = command.add_mutually_exclusive_group()
        says.add_argument("-q", "--quiet", action="store_true", help="no progress messages")
        says.add_argument(
            *("-v", "--verbose"),
            action="store_true",
            help="all progress messages, a line each, with the time",
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        if hasattr(module, "SETTINGS"):
            add_config(command)
    return parser, wanted


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    parser = _parser([command])[1]
    assert parser is not None
    return parser


def _module(command: str) -> ModuleType:
    # A module cannot be named like a keyword of the language.
    return import_module(f".{command}_" if iskeyword(command) else f".{command}", __name__)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send everything that is written to standard output, by C code too, to standard error."""
    sys.stdout.flush()
    python_stdout = sys.stdout
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = python_stdout
        # What C code has printed may still lie in its buffer, and would come out later.
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error itself; others' ValueErrors are faults, not input."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(_PACKAGE)
