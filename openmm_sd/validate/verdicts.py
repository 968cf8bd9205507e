"""What agrees with MD and what does not, decided by errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..analysis.figures import JensenShannon
from ..analysis.verdicts import (
    AGREES,
    CLOSE,
    DIFFERS,
    TOLERANCES,
    UNDECIDED,
    Figure,
    Figures,
    Verdict,
    compared,
    figure,
    judge,
    known,
)

# Probabilities below this are left out: they rest on a handful of hops.
_SMALLEST_HOP = 0.01
# With fewer frames most bins hold one or none, and what sampling does to them is not known well.
_FRAMES_OF_A_HISTOGRAM = 10_000
# Timescales are compared at the shortest lag that is at least so long, ps, for memory in the
# microstates shortens them at short lags.
_TIMESCALE_LAG = 50.0


def verdicts(lag: dict[str, Any], jsd_key: str) -> list[Verdict]:
    """Return the verdicts on one lag, from its entry in the report.

    `jsd_key` is the name of the divergence in it.
    """
    rows = [_jsd(lag[jsd_key], jsd_key), _drift(lag["drift"]["last_half_bits"])]
    for name, one in lag["populations"].items():
        # A rare basin may be wrong by less than what counts for a common one, and yet by far.
        rare = TOLERANCES["rare_population_relative"] * (one["reference"]["value"] or 0.0)
        allowed = min(TOLERANCES["population"], rare)
        rows.append(compared(f"population of {name}", one, allowed, False, ""))
    rows += _timescales(lag["implied_timescales_ps"])
    for name, one in lag["mfpt_ps"].items():
        what = f"mean first passage {name}"
        rows.append(compared(what, one, TOLERANCES["passage_relative"], True, "ps"))
    step = lag.get("one_step")
    if step and step.get("mean_cos_change"):
        rows += step_verdicts(step)
    rows += list(_structure(lag))
    return rows


def step_verdicts(step: dict[str, Any]) -> list[Verdict]:
    """Return the verdicts on one step, from what `openmm_sd.validate.onestep` gives."""
    rows = []
    for name, one in step["mean_cos_change"].items():
        what = f"one step: mean cosine of the change of {name}"
        rows.append(compared(what, one, TOLERANCES["mean_cos"], False, ""))
    for hops in step["hop_probabilities"].values():
        for name, one in hops.items():
            if known(one["reference"]["value"]) and one["reference"]["value"] > _SMALLEST_HOP:
                what = f"one step: probability of {name}"
                rows.append(compared(what, one, TOLERANCES["hop_relative"], True, ""))
    return rows


def _row(what: str, unit: str, one: Figure, verdict: str, reference: float) -> Verdict:
    return Verdict(
        what=what,
        unit=unit,
        model=one["value"],
        model_error=one["error"],
        reference=reference,
        reference_error=None,
        verdict=verdict,
    )


def _jsd(jsd: JensenShannon, key: str) -> Verdict:
    excess = jsd["value"] - jsd["expected_of_exact_model"]
    verdict = judge(max(excess, 0.0), jsd["error"], TOLERANCES["jsd_bits"])
    if verdict == DIFFERS and jsd["value"] <= TOLERANCES["jsd_bits"]:
        verdict = CLOSE
    if verdict == DIFFERS and jsd["frames_of_smaller_sample"] < _FRAMES_OF_A_HISTOGRAM:
        verdict = UNDECIDED
    angles = "(phi, psi)" if "phi" in key else "torsions"
    what = f"Jensen-Shannon divergence of {angles}; beside it what an exact model would give"
    return _row(what, "bits", jsd, verdict, jsd["expected_of_exact_model"])


def _drift(last: Figure) -> Verdict:
    what = "drift: divergence in the last quarter of the chains minus that in the third"
    # A divergence that falls is no drift away from MD.
    verdict = judge(max(last["value"], 0.0), last["error"], TOLERANCES["jsd_bits"])
    return _row(what, "bits", last, verdict, 0.0)


def _timescales(by_lag: dict[str, Figures]) -> Iterator[Verdict]:
    def at(lag: str, k: int) -> Verdict | None:
        ours, theirs = by_lag[lag], by_lag[lag].get("reference")
        if theirs is None or k >= len(ours["value"]):
            return None
        other = theirs["value"][k], theirs["error"][k]
        one = figure(ours["value"][k], ours["error"][k], other)
        what = f"implied timescale number {k + 1} at a lag of {lag} ps"
        return compared(what, one, TOLERANCES["timescale_relative"], True, "ps")

    count = max((len(one["value"]) for one in by_lag.values()), default=0)
    # From 50 ps on the shortest lag, before it the longest.
    order = sorted(by_lag, key=lambda lag: (float(lag) < _TIMESCALE_LAG, abs(float(lag) - 50.0)))
    for k in range(count):
        rows = [row for lag in order if (row := at(lag, k)) is not None]
        decided = [row for row in rows if known(row["model"]) and known(row["reference"])]
        if decided or rows:
            yield (decided or rows)[0]


def _structure(lag: dict[str, Any]) -> Iterator[Verdict]:
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
        wide = [row for row in rows if known(row["width_ratio"]["value"])]
        if wide:
            width = max(wide, key=lambda row: abs(row["width_ratio"]["value"] - 1.0))
            one = width["width_ratio"]
            verdict = judge(one["value"] - 1.0, one["error"], TOLERANCES["width_ratio"])
            what = f"most deviating width among {len(rows)} {key}, over MD's ({width['name']})"
            yield _row(what, "", one, verdict, 1.0)
