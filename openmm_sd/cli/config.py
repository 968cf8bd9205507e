"""A command's settings from a YAML file, and the file that says what a command would do.

``--config run.yaml`` stands for the options that the file names; what is given on the command line
goes before. ``--print-config`` prints such a file and does nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from ..settings import declared_fields, described
from .options import option_of

# What a file has no say about.
_NOT_IN_A_FILE = ("help", "config", "print_config", "json", "debug", "verbose", "quiet")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the two options."""
    parser.add_argument(
        "--config", metavar="YAML", help="file of settings; options given here override it"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print such a file, with what is given here"
    )


def with_config(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Return a command's words with those that its file of settings stands for.

    A ValueError says so if the file cannot be read, or names what is no option.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", action="append", default=[])
    files = finder.parse_known_args(words)[0].config
    if len(files) != 1:
        return list(words)  # of two the parser itself complains
    options = {
        name: action
        for action in parser._actions
        for name in (action.dest, *(o.lstrip("-").replace("-", "_") for o in action.option_strings))
        if action.option_strings and action.dest not in _NOT_IN_A_FILE
    }
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    more = []
    for name, value in _read(Path(files[0])).items():
        action = options.get(name.replace("-", "_"))
        if action is None:
            raise ValueError(f"{files[0]}: {name} is not a setting of this command")
        if not given & set(action.option_strings) and value is not None:
            more += list(_words(action, value))
    return [*words, *more]


def config_text(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, settings: Sequence[type]
) -> str:
    """Return the settings of a command, as given or by default, as a YAML file with comments."""
    lines, options = [], {action.dest for action in parser._actions}
    for one in (field for kind in settings for field in declared_fields(kind)):
        if one.name not in options or not option_of(one) or one.default is MISSING:
            continue
        value = getattr(arguments, one.name, one.default)
        if value is None and one.default is not None:
            value = "off"
        text = json.dumps(None if value == () else value)
        lines += [f"# {described(one)}", f"{option_of(one).replace('-', '_')}: {text}"]
    return "\n".join(lines)


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    if path.exists() and not path.is_file():  # reading a pipe need not end
        raise ValueError(f"config: {path} is not a file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeError:
        raise ValueError(f"config: {path} is not text") from None
    except (OSError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"config: {path} cannot be read: {reason}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"config: {path} holds no names with values")
    return found


def _words(action: argparse.Action, value: Any) -> Iterator[str]:
    flag = next(option for option in action.option_strings if option.startswith("--"))
    if isinstance(value, bool):
        # YAML reads off, a word of some settings, as False.
        if action.nargs != 0:
            yield f"{flag}={'on' if value else 'off'}"
        elif value:
            yield flag
        elif isinstance(action, argparse.BooleanOptionalAction):
            yield flag.replace("--", "--no-", 1)
    elif isinstance(action, argparse._AppendAction):
        yield from (f"{flag}={one}" for one in (value if isinstance(value, list) else [value]))
    elif isinstance(value, list):
        yield f"{flag}={','.join(map(str, value))}"
    else:
        yield f"{flag}={value}"
