"""Figures with errors, and whether two agree, decided by these."""

from __future__ import annotations

import math
from typing import NotRequired, TypedDict

#: A difference within two errors is no finding. One beyond them is still called close up to these
#: sizes: absolute, or relative where the name ends so.
TOLERANCES = {
    "jsd_bits": 0.010,
    "population": 0.03,
    "rare_population_relative": 0.5,
    "timescale_relative": 0.15,
    "passage_relative": 0.30,
    "mean_cos": 0.02,
    "hop_relative": 0.10,
    "gate_failure": 1e-2,
    "chirality": 1e-4,
    "energy_kT": 1.0,
    "bond_shift_nm": 0.002,
    "angle_shift_deg": 1.0,
    "width_ratio": 0.10,
    "clash": 1e-3,
}

AGREES, CLOSE, DIFFERS, UNDECIDED = "agrees", "close", "differs", "undecided"


class Figure(TypedDict):
    """A figure of a report and its error; NaN, or None when read from JSON, where there is none."""

    value: float
    error: float
    reference: NotRequired[Figure | None]


class Figures(TypedDict):
    """Several figures of a kind, by their number: timescales, for instance."""

    value: list[float]
    error: list[float]
    reference: NotRequired[Figures]


class Verdict(TypedDict):
    """Whether a figure agrees with the reference's."""

    what: str
    unit: str
    model: float
    model_error: float
    reference: float
    reference_error: float | None
    verdict: str


def figure(value: float, error: float, reference: tuple[float, float] | None = None) -> Figure:
    """Return a figure, beside which `reference` puts the reference's value and error."""
    if reference is None:
        return Figure(value=value, error=error)
    return Figure(value=value, error=error, reference=figure(*reference))


def judge(difference: float | None, error: float | None, tolerance: float) -> str:
    """Return a verdict on a difference, model minus reference, and its error.

    ``agrees``: within two errors. ``close``: beyond them, but smaller than the tolerance.
    ``differs``: neither. ``undecided``: no figure or no error, or within two errors that are so
    large that twice the tolerance would not be noticed.
    """
    if difference is None or error is None or not known(difference) or not known(error):
        return UNDECIDED
    if abs(difference) <= 2.0 * error:
        return AGREES if error <= tolerance else UNDECIDED
    return CLOSE if abs(difference) <= tolerance else DIFFERS


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def compared(what: str, one: Figure, tolerance: float, relative: bool, unit: str) -> Verdict:
    """Return the verdict on a figure that has a reference.

    The tolerance, see :func:`judge`, is a share of the reference's value if `relative`; `what` and
    `unit` are for people.
    """
    value, error = one["value"], one["error"]
    reference = one.get("reference") or figure(math.nan, math.nan)
    other, other_error = reference["value"], reference["error"]
    if not all(known(v) for v in (value, error, other, other_error)):
        verdict = UNDECIDED
    elif value == other and not error and not other_error:  # neither has ever seen it
        verdict = UNDECIDED
    else:
        allowed = tolerance * abs(other) if relative else tolerance
        verdict = judge(value - other, math.hypot(error, other_error), allowed)
    return Verdict(
        what=what,
        unit=unit,
        model=value,
        model_error=error,
        reference=other,
        reference_error=other_error,
        verdict=verdict,
    )
