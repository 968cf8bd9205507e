"""Arguments that OpenMM's users give: Quantities, or bare numbers in OpenMM's units."""

from __future__ import annotations

import math
import operator
from typing import Any

from openmm import unit


def positive(
    name: str, value: Any, wanted: unit.Unit, default: float | None = None, zero: bool = False
) -> float:
    """A positive number in the wanted unit, from a Quantity or a bare number in md units."""
    if value is None:
        value = default
    if unit.is_quantity(value):
        if not value.unit.is_compatible(wanted):
            raise ValueError(f"{name} must be in {wanted} or a unit of that kind, got {value}")
        value = value.value_in_unit(wanted)
    allowed = f"a {'non-negative' if zero else 'positive'} number"
    if wanted != unit.dimensionless:
        allowed += f" of {wanted}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            value = float(value.__float__())  # numpy numbers
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"{name} must be {allowed}, got {value!r}") from None
    value = float(value)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within bounds, numpy's included."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")
    return number
