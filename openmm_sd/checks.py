"""Checks of settings: what was wanted, and what was given instead."""

from __future__ import annotations

import math
from typing import Any, Final

# Nothing liquid beyond, nothing that a force field was made for.
_TEMPERATURES_K: Final = (150.0, 1000.0)


def check_number(name: str, value: Any, wanted: str, zero: bool = False) -> None:
    """Refuse what is no positive number.

    Parameters
    ----------
    name : str
        Of the setting.
    value : object
        None is fine.
    wanted : str
        The unit; may be empty.
    zero : bool
        Whether 0 is fine too.

    Raises
    ------
    ValueError
        That says what was wanted.
    """
    if value is None:
        return
    fine = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value > 0 or (zero and value == 0))
    )
    if not fine:
        kind = "a number of at least 0" if zero else "a positive number"
        of = f" of {wanted}" if wanted else ""
        raise ValueError(f"{name} must be {kind}{of}, got {value!r}")


def check_whole(name: str, value: Any, most: int | None = None, least: int = 1) -> None:
    """Refuse what is no whole number in bounds; None is fine.

    Raises
    ------
    ValueError
        That says what was wanted.
    """
    if value is None:
        return
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fine or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")


def check_temperature(value: float | None) -> None:
    """Refuse what is no temperature of a solution in K: one in degrees Celsius, for instance.

    Raises
    ------
    ValueError
        If it is outside of 150 to 1000 K.
    """
    low, high = _TEMPERATURES_K
    if value is not None and not low <= value <= high:
        raise ValueError(
            f"temperature_K must be from {low:g} to {high:g} K, got {value:g}: is it in degrees "
            "Celsius?"
        )
