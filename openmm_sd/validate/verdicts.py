"""What agrees with MD and what does not, decided by errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
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

# Probabilities below this are left out: they rest on a handful of hops.
_SMALLEST_HOP = 0.01
# With fewer frames most bins hold one or none, and what sampling does to them is not known well.
_FRAMES_OF_A_HISTOGRAM = 10_000
# Timescales are compared at the shortest lag that is at least so long, ps, for memory in the
# microstates shortens them at short lags.
_TIMESCALE_LAG = 50.0


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
    if difference is None or error is None or not _known(difference) or not _known(error):
        return UNDECIDED
    if abs(difference) <= 2.0 * error:
        return AGREES if error <= tolerance else UNDECIDED
    return CLOSE if abs(difference) <= tolerance else DIFFERS


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _compared(
    what: str, figure: dict[str, Any], tolerance: float, relative: bool, unit: str
) -> dict[str, Any]:
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
    if not all(_known(v) for v in (value, error, other, other_error)):
        return {**row, "verdict": UNDECIDED}
    if value == other and not error and not other_error:  # neither has ever seen it
        return {**row, "verdict": UNDECIDED}
    allowed = tolerance * abs(other) if relative else tolerance
    return {**row, "verdict": judge(value - other, math.hypot(error, other_error), allowed)}


def verdicts(lag: dict[str, Any], jsd_key: str) -> list[dict[str, Any]]:
    """Return the verdicts on one lag.

    Parameters
    ----------
    lag : dict
        The report's entry for that lag.
    jsd_key : str
        Name of the divergence.

    Returns
    -------
    list of dict
        ``what``, ``verdict``, ``unit``, ``model``, ``model_error``, ``reference`` and
        ``reference_error``.
    """
    rows = [_jsd(lag[jsd_key], jsd_key), _drift(lag["drift"]["last_half_bits"])]
    for name, one in lag["populations"].items():
        # A rare basin may be wrong by less than what counts for a common one, and yet by far.
        rare = TOLERANCES["rare_population_relative"] * (one["reference"]["value"] or 0.0)
        allowed = min(TOLERANCES["population"], rare)
        rows.append(_compared(f"population of {name}", one, allowed, False, ""))
    rows += _timescales(lag["implied_timescales_ps"])
    for name, one in lag["mfpt_ps"].items():
        what = f"mean first passage {name}"
        rows.append(_compared(what, one, TOLERANCES["passage_relative"], True, "ps"))
    step = lag.get("one_step")
    if step and step.get("mean_cos_change"):
        for name, one in step["mean_cos_change"].items():
            what = f"one step: mean cosine of the change of {name}"
            rows.append(_compared(what, one, TOLERANCES["mean_cos"], False, ""))
        for hops in step["hop_probabilities"].values():
            for name, one in hops.items():
                if _known(one["reference"]["value"]) and one["reference"]["value"] > _SMALLEST_HOP:
                    what = f"one step: probability of {name}"
                    rows.append(_compared(what, one, TOLERANCES["hop_relative"], True, ""))
    rows += list(_structure(lag))
    return rows


def _row(what: str, unit: str, one: dict[str, Any], verdict: str, reference: Any) -> dict[str, Any]:
    return {
        "what": what,
        "unit": unit,
        "model": one["value"],
        "model_error": one["error"],
        "reference": reference,
        "reference_error": None,
        "verdict": verdict,
    }


def _jsd(jsd: dict[str, Any], key: str) -> dict[str, Any]:
    excess = jsd["value"] - jsd["expected_of_exact_model"]
    verdict = judge(max(excess, 0.0), jsd["error"], TOLERANCES["jsd_bits"])
    if verdict == DIFFERS and jsd["value"] <= TOLERANCES["jsd_bits"]:
        verdict = CLOSE
    if verdict == DIFFERS and jsd["frames_of_smaller_sample"] < _FRAMES_OF_A_HISTOGRAM:
        verdict = UNDECIDED
    angles = "(phi, psi)" if "phi" in key else "torsions"
    what = f"Jensen-Shannon divergence of {angles}; beside it what an exact model would give"
    return _row(what, "bits", jsd, verdict, jsd["expected_of_exact_model"])


def _drift(last: dict[str, Any]) -> dict[str, Any]:
    what = "drift: divergence in the last quarter of the chains minus that in the third"
    # A divergence that falls is no drift away from MD.
    verdict = judge(max(last["value"], 0.0), last["error"], TOLERANCES["jsd_bits"])
    return _row(what, "bits", last, verdict, 0.0)


def _timescales(by_lag: dict[str, Any]) -> Iterator[dict[str, Any]]:
    def compared(lag: str, k: int) -> dict[str, Any] | None:
        ours, theirs = by_lag[lag], by_lag[lag].get("reference")
        if theirs is None or k >= len(ours["value"]):
            return None
        one = {
            "value": ours["value"][k],
            "error": ours["error"][k],
            "reference": {"value": theirs["value"][k], "error": theirs["error"][k]},
        }
        what = f"implied timescale number {k + 1} at a lag of {lag} ps"
        return _compared(what, one, TOLERANCES["timescale_relative"], True, "ps")

    count = max((len(one["value"]) for one in by_lag.values()), default=0)
    # From 50 ps on the shortest lag, before it the longest.
    order = sorted(by_lag, key=lambda lag: (float(lag) < _TIMESCALE_LAG, abs(float(lag) - 50.0)))
    for k in range(count):
        rows = [row for lag in order if (row := compared(lag, k)) is not None]
        decided = [row for row in rows if _known(row["model"]) and _known(row["reference"])]
        if decided or rows:
            yield (decided or rows)[0]


def _structure(lag: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, what, tolerance in (
        ("gate_failure_fraction", "draws that fail a gate", "gate_failure"),
        ("chirality_flip_fraction", "draws with a flipped stereocentre", "chirality"),
    ):
        one = lag[key]
        few = one["value"] <= TOLERANCES[tolerance]
        verdict = (AGREES if one["value"] <= one["error"] else CLOSE) if few else DIFFERS
        yield _row(what, "", one, verdict, 0.0)
    energy = lag["solute_energy_excess_kT"]
    what = "force-field energy of the solute above MD's"
    verdict = judge(energy["value"], energy["error"], TOLERANCES["energy_kT"])
    yield _row(what, "kT", energy, verdict, 0.0)
    geometry = lag.get("geometry") or {}
    if "clash_fraction" in geometry:
        one = geometry["clash_fraction"]
        verdict = judge(one["value"], one["error"], TOLERANCES["clash"])
        yield _row("frames with a clash of heavy atoms", "", one, verdict, 0.0)
    for key, unit, tolerance in (
        ("bonds", "nm", "bond_shift_nm"),
        ("angles", "deg", "angle_shift_deg"),
    ):
        rows = geometry.get(key) or []
        if not rows:
            continue
        shift = max(rows, key=lambda row: abs(row[f"mean_shift_{unit}"]["value"]))
        one = shift[f"mean_shift_{unit}"]
        verdict = judge(one["value"], one["error"], TOLERANCES[tolerance])
        what = f"largest shift of a mean among {len(rows)} {key} ({shift['name']})"
        yield _row(what, unit, one, verdict, 0.0)
        known = [row for row in rows if _known(row["width_ratio"]["value"])]
        if known:
            width = max(known, key=lambda row: abs(row["width_ratio"]["value"] - 1.0))
            one = width["width_ratio"]
            verdict = judge(one["value"] - 1.0, one["error"], TOLERANCES["width_ratio"])
            what = f"most deviating width among {len(rows)} {key}, over MD's ({width['name']})"
            yield _row(what, "", one, verdict, 1.0)
