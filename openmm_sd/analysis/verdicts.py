"""Whether two figures agree, decided by their errors."""

from __future__ import annotations

import math
from typing import Any

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


def judge(difference: float | None, error: float | None, tolerance: float) -> str:
    """Return a verdict on a difference.

    Parameters
    ----------
    difference, error : float or None
        Model minus reference, and the error of that.
    tolerance : float
        Up to which a significant difference is called close.

    Returns
    -------
    str
        ``agrees``: within two errors. ``close``: beyond them, but smaller than the tolerance.
        ``differs``: neither. ``undecided``: no figure or no error, or within two errors that are
        so large that twice the tolerance would not be noticed.
    """
    if difference is None or error is None or not known(difference) or not known(error):
        return UNDECIDED
    if abs(difference) <= 2.0 * error:
        return AGREES if error <= tolerance else UNDECIDED
    return CLOSE if abs(difference) <= tolerance else DIFFERS


def known(value: float | None) -> bool:
    """Whether there is a figure, and a finite one."""
    return value is not None and math.isfinite(value)


def compared(
    what: str, figure: dict[str, Any], tolerance: float, relative: bool, unit: str
) -> dict[str, Any]:
    """Return a row of verdicts on a figure and the reference's.

    Parameters
    ----------
    what : str
        What it is, for people.
    figure : dict
        ``value``, ``error``, and the same of the ``reference``.
    tolerance : float
        See :func:`judge`.
    relative : bool
        Whether the tolerance is a share of the reference's value.
    unit : str
        Of both.

    Returns
    -------
    dict
        ``what``, ``verdict``, ``unit``, ``model``, ``model_error``, ``reference`` and
        ``reference_error``.
    """
    value, error = figure["value"], figure["error"]
    other, other_error = figure["reference"]["value"], figure["reference"]["error"]
    row = {
        "what": what,
        "unit": unit,
        "model": value,
        "model_error": error,
        "reference": other,
        "reference_error": other_error,
    }
    if not all(known(v) for v in (value, error, other, other_error)):
        return {**row, "verdict": UNDECIDED}
    if value == other and not error and not other_error:  # neither has ever seen it
        return {**row, "verdict": UNDECIDED}
    allowed = tolerance * abs(other) if relative else tolerance
    return {**row, "verdict": judge(value - other, math.hypot(error, other_error), allowed)}
