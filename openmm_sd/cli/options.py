"""Command-line options made from settings, see `openmm_sd.settings`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from typing import Any

from ..settings import Settings, declared_fields, default_of, kinds_of, unit_of


class Once(argparse.Action):
    """An option that may be given once: of two values, one would be lost in silence."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, f"_given_{self.dest}"):
            raise argparse.ArgumentError(self, "given more than once")
        setattr(namespace, f"_given_{self.dest}", True)
        setattr(namespace, self.dest, values)


def add_settings(
    parser: argparse.ArgumentParser,
    settings: type[Settings],
    groups: Mapping[str, str] | None = None,
    skip: str = "",
) -> None:
    """Add an option for every setting of a class.

    Parameters
    ----------
    parser : ArgumentParser
        Of a command.
    settings : type
        The class.
    groups : mapping, optional
        Headings, with the names of the settings under each.
    skip : str
        Names of settings that have no option, or one that the command makes itself.
    """
    headed: dict[str, Any] = {}
    for heading, names in (groups or {}).items():
        group = parser.add_argument_group(heading)
        headed |= dict.fromkeys(names.split(), group)
    for one in _with_options(settings):
        if one.name not in skip.split():
            _add(headed.get(one.name, parser), one)


def given_of(arguments: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """Return the settings of a class that were given, by name."""
    return {
        one.name: tuple(value) if isinstance(value := getattr(arguments, one.name), list) else value
        for one in _with_options(settings)
        if hasattr(arguments, one.name)
    }


def _with_options(settings: type[Settings]) -> list[Field[Any]]:
    return [one for one in declared_fields(settings) if one.metadata["declared"].option != ""]


def option_of(one: Field[Any]) -> str:
    """Return the name of a setting's option, without dashes."""
    option: str | None = one.metadata["declared"].option
    if option is not None:
        return option.partition(" ")[0]
    name, unit = one.name, unit_of(one)
    for end in (unit, "per_ps") if unit else ():
        name = name.removesuffix(f"_{end}")
    return name.replace("_", "-")


def _add(parser: Any, one: Field[Any]) -> None:
    declared, kinds = one.metadata["declared"], kinds_of(one)
    text, default, unit = declared.text, default_of(one), unit_of(one)
    if declared.choices and declared.metavar:
        text += f": {', '.join(declared.choices)}"
    if default:
        text += f" ({default})"
    words: dict[str, Any] = {
        "dest": one.name,
        "default": argparse.SUPPRESS,
        "help": text.replace("%", "%%"),
    }
    names = (declared.option or option_of(one)).split()
    flag = [f"--{name}" for name in names]
    if kinds[0] == "bool":
        if one.default is True:
            parser.add_argument(*flag, action=argparse.BooleanOptionalAction, **words)
        else:
            parser.add_argument(*flag, action="store_true", **words)
        return
    first = kinds[0].removeprefix("tuple[").partition(",")[0]
    number = {"int": "N", "float": "X"}.get(first, "TEXT")
    words["metavar"] = declared.metavar or (unit.upper() if unit.isalpha() else unit) or number
    if kinds[0].startswith("tuple[str"):
        parser.add_argument(*flag, action="append", **words)
        return
    if kinds[0].startswith("tuple["):
        member = int if first == "int" else float
        words |= {"type": _several(member), "metavar": declared.metavar or f"{words['metavar']},.."}
    else:
        if declared.choices and not declared.metavar:
            words["metavar"] = f"{{{','.join(declared.choices)}}}"
        words["type"] = _one(kinds, or_off="None" in kinds and one.default is not None)
    parser.add_argument(*flag, **words)


def _one(kinds: Sequence[str], or_off: bool) -> Callable[[str], Any]:
    """Return what reads a value of certain types; the word off is None, where that means so."""

    def read(text: str) -> Any:
        if or_off and text == "off":
            return None
        for name, kind in (("int", int), ("float", float)):
            if name in kinds:
                try:
                    return kind(text)
                except ValueError:
                    if "str" not in kinds:
                        whole = "whole number" if kind is int else "number"
                        wanted = f"a {whole}, or off" if or_off else f"a {whole}"
                        raise argparse.ArgumentTypeError(
                            f"must be {wanted}, got {text!r}"
                        ) from None
        return text

    return read


def _several(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """Return what reads numbers with commas between them."""

    def read(text: str) -> tuple[Any, ...]:
        return numbers(text, kind)

    return read


def numbers(text: str, kind: type = float, count: int | None = None) -> tuple[Any, ...]:
    """Read numbers with commas between them."""
    try:
        found = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or (count is not None and len(found) != count):
        wanted = f"{count} numbers" if count else "numbers"
        raise argparse.ArgumentTypeError(
            f"must be {wanted} with commas between them, got {shlex.quote(text)}"
        )
    return found
