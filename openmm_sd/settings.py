"""Settings: one definition of each gives its check, its documentation and its command-line option.

A class of settings is a frozen dataclass on `Settings` whose fields are made by `setting`::

    @dataclass(frozen=True)
    class RunSettings(Settings):
        lag_ps: float | None = setting(None, "time that a jump covers")

A name's end is its unit. `Settings` refuses values outside of the bounds and adds every field to
the class's docstring; ``openmm_sd.cli.options`` makes the options. What several fields decide
together is checked by the class itself, after ``super().__post_init__()``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

#: Largest seed, that of OpenMM: a positive 32-bit signed integer.
MAX_SEED: Final = 2**31 - 1

# Larger numbers of any unit here overflow somewhere, after hours at worst.
_NOBODY_MEANS: Final = 1e9

#: The OpenMM platform that is taken where none is named.
FASTEST: Final = "a GPU's if one works here, else CPU"

#: Bounds of a temperature: nothing is liquid beyond, and no force field was made for it.
TEMPERATURE: Final[dict[str, Any]] = {
    "least": 150.0,
    "most": 1000.0,
    "hint": "is it in degrees Celsius?",
}


#: Units by the ends of names.
_UNITS: Final = {
    **{"ns": "ns", "ps": "ps", "fs": "fs", "nm": "nm", "K": "K", "bar": "bar", "amu": "amu"},
    **{"us": "us", "M": "mol/l", "minutes": "minutes", "seconds": "s", "per_ps": "1/ps"},
}


@dataclass(frozen=True)
class Declared:
    """What is known of a setting beside its name, its type and its default.

    Attributes
    ----------
    text : str
        What it is, in a phrase.
    default : str
        What people read in place of the default.
    above, least, most, below : float, optional
        Bounds of a number; those of `above` and `below` are outside. Without a lower bound whole
        numbers are at least 1, others positive.
    unit : str, optional
        By the end of the name where it is None.
    choices : tuple of str
        The words it may be.
    option : str, optional
        Name of the command-line option, perhaps others behind it; the name without its unit by
        default.
    metavar : str
        What stands for the value in help.
    hint : str
        What a refusal adds.
    """

    text: str
    default: str = ""
    above: float | None = None
    least: float | None = None
    most: float | None = None
    below: float | None = None
    unit: str | None = None
    choices: tuple[str, ...] = ()
    option: str | None = None
    metavar: str = ""
    hint: str = ""


def setting(
    default: T | None = None,
    text: str = "",
    *,
    factory: Callable[[], T] | None = None,
    shown: str = "",
    **more: Any,
) -> T:
    """Declare a setting: a default (or its `factory`), what it is, and the rest of `Declared`.

    `shown` is what people read in place of the default.
    """
    metadata = {"declared": Declared(text, shown, **more)}
    if factory is not None:
        return cast("T", field(default_factory=factory, metadata=metadata))
    return cast("T", field(default=default, metadata=metadata))


class Settings:
    """What a class of settings inherits: the checks of single values, and its documentation."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known: dict[str, Field[Any]] = {}
        for base in reversed(cls.__mro__[1:]):
            known |= base.__dict__.get("__dataclass_fields__", {})
        for name, kind in inspect.get_annotations(cls).items():
            one = cls.__dict__.get(name)
            if isinstance(one, Field) and "declared" in one.metadata:
                one.name, one.type = name, kind  # as dataclass will, after this
                known[name] = one
        lines = []
        for name, one in known.items():
            text = described(one)
            lines += [f"    {name} : {one.type}", f"        {text[:1].upper()}{text[1:]}."]
        if lines:
            heading = [(cls.__doc__ or "").rstrip(), "", "    Attributes", "    ----------"]
            cls.__doc__ = "\n".join([*heading, *lines, ""])

    def __post_init__(self) -> None:
        for one in declared_fields(type(self)):
            value = getattr(self, one.name)
            if value is not None or "None" not in kinds_of(one):
                _check(one, value)


def declared_fields(settings: type) -> list[Field[Any]]:
    """Return the fields of a class of settings that `setting` made, in their order."""
    return [one for one in fields(settings) if "declared" in one.metadata]


def kinds_of(one: Field[Any]) -> list[str]:
    """Return the types that a field's annotation names."""
    return [part.strip() for part in str(one.type).split("|")]


def unit_of(one: Field[Any]) -> str:
    """Return the unit of a field; empty if it has none."""
    unit: str | None = one.metadata["declared"].unit
    ends = (e for e in sorted(_UNITS, key=len, reverse=True) if f"_{one.name}".endswith(f"_{e}"))
    return _UNITS.get(next(ends, ""), "") if unit is None else unit


def _check(one: Field[Any], value: Any) -> None:
    """Refuse a value that is out of bounds, in one line that says what is wanted."""
    declared, kinds = one.metadata["declared"], kinds_of(one)
    kind = kinds[0]
    members = kind.removeprefix("tuple[").partition(",")[0]
    if kind.startswith("tuple[") and members in ("int", "float"):
        if not isinstance(value, tuple) or not value:
            raise ValueError(f"{one.name} must be a tuple of numbers, got {value!r}")
        for member in value:
            _check_number(one.name, member, declared, members == "int", unit_of(one))
    elif declared.choices:
        if value not in declared.choices:
            wanted = ", ".join(declared.choices)
            raise ValueError(f"{one.name} must be one of {wanted}, got {value!r}")
    elif kind in ("int", "float") and not (isinstance(value, str) and "str" in kinds):
        _check_number(one.name, value, declared, kind == "int", unit_of(one))


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse an argument that is no whole number within bounds; None is fine."""
    if value is not None:
        _check_number(name, value, Declared("", least=least, most=most), True, "")


def check_number(name: str, value: Any, unit: str = "") -> None:
    """Refuse an argument that is no positive number; None is fine."""
    if value is not None:
        _check_number(name, value, Declared(""), False, unit)


def _check_number(name: str, value: Any, declared: Declared, whole: bool, unit: str) -> None:
    above, least, most, below = declared.above, declared.least, declared.most, declared.below
    limit = _NOBODY_MEANS if most is None and not whole else math.inf
    if above is None and least is None:
        above, least = (None, 1.0) if whole else (0.0, None)
    kinds: Any = Integral if whole else Real
    fine = (
        isinstance(value, kinds)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (below is None or value < below)
        and value <= limit
    )
    if fine:
        return
    kind = "whole number" if whole else "number"
    if above is not None and below is not None:
        wanted = f"a {kind} between {above:g} and {below:g} {unit}"
    elif most is not None:
        wanted = f"a {kind} from {above if least is None else least:g} to {most:.10g} {unit}"
    elif above == 0:
        wanted = f"a positive {kind}" + (f" of {unit}" if unit else "")
    else:
        wanted = f"a {kind} of at least {above if least is None else least:g} {unit}"
    hint = f": {declared.hint}" if declared.hint else ""
    if isinstance(value, (int, float)) and value > limit:
        wanted = f"{wanted.strip()} below {limit:g}"
    raise ValueError(f"{name} must be {wanted.strip()}, got {value!r}{hint}")


def default_of(one: Field[Any]) -> str:
    """Return what people read of a field's default; empty if there is nothing to say."""
    if one.metadata["declared"].default:
        return str(one.metadata["declared"].default)
    default = one.default
    if default is MISSING or default is None or isinstance(default, bool) or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(str(member) for member in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def described(one: Field[Any]) -> str:
    """Return what people read of a field: what it is, its unit, its choices and its default."""
    declared: Declared = one.metadata["declared"]
    text, default = declared.text, default_of(one)
    if unit_of(one):
        text += f", {unit_of(one)}"
    if declared.choices:
        text += f": {', '.join(declared.choices[:-1])} or {declared.choices[-1]}"
    return f"{text} ({default})" if default else text
