"""Whether to believe a run: checks with thresholds, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ...analysis.timeline import Timeline
from ...analysis.verdicts import AGREES, CLOSE, DIFFERS, TOLERANCES, UNDECIDED, Verdict, compared
from ...integrator.notes import TEMPERATURE
from ...report.page import number
from ..record import RunRecord
from .findings import Findings

#: Verdicts, the gravest first.
BAD, CARE, OPEN, GOOD = "bad", "care", "open", "good"
WORDS: Final = {BAD: "no", CARE: "with care", OPEN: "cannot tell", GOOD: "yes"}

#: Above the first (share, number, errors) a check is passed, or below it; beyond the second it is
#: failed; between them care is needed.
THRESHOLDS: Final = {
    "accepted": (0.90, 0.50),
    "fallbacks": (0.02, 0.10),
    "novel": (0.05, 0.50),
    "temperature_relative": (0.01, 0.02),
    "energy_drift_errors": (2.0, 3.0),
    "settled_energy_sd": (0.5, 1.0),
    "crossings": (10, 3),
    "halves_errors": (2.5, 3.5),
    "reference_errors": (2.0, 3.0),
}

# Before so many jumps shares say little, and before so many frames energies do.
_ENOUGH_JUMPS: Final = 20


@dataclass(frozen=True)
class Check:
    """One question to a run: "yes" is good, and the verdict is `GOOD`, `CARE`, `BAD` or `OPEN`.

    Then in words: what was found, the threshold, and what follows from it.
    """

    question: str
    verdict: str
    found: str
    wanted: str
    meaning: str


def check(record: RunRecord, found: Findings) -> list[Check]:
    """Ask all questions."""
    checks = [
        _made_for_this(record),
        _accepted(record),
        _fallbacks(record),
        _novel(record),
        _settled(record),
        _temperature(record, found.timeline),
        _energy(record, found.timeline),
        _crossed(found),
        _halves(found),
        _reference(found),
    ]
    return [one for one in checks if one is not None]


def overall(record: RunRecord, checks: list[Check]) -> tuple[str, str, str]:
    """Return the verdict on the whole: its kind, a headline, and a sentence."""
    kinds = [one.verdict for one in checks]
    marked = {kind: kinds.count(kind) for kind in (BAD, CARE, OPEN, GOOD)}
    tail = (
        "This says nothing of what was not checked. There is no Metropolis test: what is sampled "
        "is the model's ensemble as much as the force field's."
    )
    if marked[BAD]:
        count = f"{marked[BAD]} of {len(kinds)} checks failed"
        return BAD, "Do not rely on this run as it is", f"{count}: see below. {tail}"
    if not record.summary["jumps_accepted"]:
        return (
            CARE,
            "This is plain MD: no jump was made",
            "Its figures are those of ordinary MD of the length of the MD clock.",
        )
    if marked[CARE] or marked[OPEN]:
        parts = [
            f"{marked[kind]} of {len(kinds)} checks {what}"
            for kind, what in ((CARE, "ask for care"), (OPEN, "cannot be answered"))
            if marked[kind]
        ]
        return CARE, "To be used with care", f"{' and '.join(parts)}: see below. {tail}"
    return GOOD, "Nothing that was checked speaks against this run", tail


def _grade(value: float, good: float, bad: float) -> str:
    """Grade a figure that is to be small (good < bad), or large (good > bad)."""
    if not math.isfinite(value):
        return OPEN
    if good > bad:
        return GOOD if value >= good else CARE if value >= bad else BAD
    return GOOD if value <= good else CARE if value <= bad else BAD


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _made_for_this(record: RunRecord) -> Check:
    question = "Is the model made for this system?"
    if record.mismatches is None:
        return Check(
            question,
            OPEN,
            "not known: the checkpoint is not there, or that of an earlier version",
            "a checkpoint that says it",
            "The notes of the run say what differs, if anything does.",
        )
    if record.mismatches:
        gravest = min(record.mismatches, key=lambda note: note.kind == TEMPERATURE)
        return Check(
            question,
            CARE if gravest.kind == TEMPERATURE else BAD,
            gravest,
            "the force field, solvent and temperature that it was trained with",
            "A model samples what it was trained on, whatever it is put into.",
        )
    return Check(
        question,
        GOOD,
        "no difference is known between force field, solvent and temperature of the run and those "
        "on the model's card",
        "the same force field, solvent and temperature",
        "Force fields are compared by the names of their files, where these are known.",
    )


def _share(record: RunRecord, key: str, threshold: str) -> tuple[str, str, str]:
    """Return a share of the jumps that were tried: its verdict, itself and the threshold in words.

    What rests on a few jumps is not praised.
    """
    good, bad = THRESHOLDS[threshold]
    tried = record.summary["jumps_tried"]
    share = record.summary[key] / tried if tried else math.nan
    verdict = _grade(share, good, bad)
    if verdict == GOOD and tried < _ENOUGH_JUMPS:
        verdict = OPEN
    wanted = f"at most {_percent(good)}; more than {_percent(bad)} fails"
    return verdict, f" ({_percent(share)})" if tried else "", wanted


def _accepted(record: RunRecord) -> Check:
    summary = record.summary
    good, bad = THRESHOLDS["accepted"]
    verdict, share, _ = _share(record, "jumps_accepted", "accepted")
    found = "no jump was tried yet"
    if summary["jumps_tried"]:
        found = (
            f"{summary['jumps_accepted']:,} of {summary['jumps_tried']:,} jumps{share}, "
            f"{summary['redraws']:,} redraws"
        )
    return Check(
        "Were most jumps made?",
        verdict,
        found,
        f"at least {_percent(good)} of {_ENOUGH_JUMPS} jumps or more; less than {_percent(bad)} "
        "fails",
        "Dropped jumps are not a random selection: what they would have reached is missing.",
    )


def _fallbacks(record: RunRecord) -> Check:
    verdict, share, wanted = _share(record, "fallbacks", "fallbacks")
    return Check(
        "Were few jumps dropped because every proposal failed?",
        verdict,
        f"{record.summary['fallbacks']:,} fallbacks{share}",
        wanted,
        "After a fallback MD continues; effective time does not count the lag.",
    )


def _novel(record: RunRecord) -> Check:
    question = "Does the model know the frames it jumped from?"
    if record.summary["settings"].get("max_novelty") is None:
        return Check(
            question,
            OPEN,
            "not checked: the novelty score was switched off",
            "a novelty score (--max-novelty)",
            "A model that meets frames unlike its data makes things up.",
        )
    verdict, share, wanted = _share(record, "novel", "novel")
    return Check(
        question,
        verdict,
        f"{record.summary['novel']:,} frames unlike the training data{share}",
        wanted,
        "From such a frame MD covers the lag instead. The score has blind spots, and models "
        "without one call no frame novel.",
    )


def _settled(record: RunRecord) -> Check | None:
    after = record.summary["settle"]["energy_after_kJ_per_mol"]
    energy = record.log["energy"]
    spread = float(energy.std()) if len(energy) > 1 else 0.0
    if after is None or not spread > 0:
        return None
    good, bad = THRESHOLDS["settled_energy_sd"]
    return Check(
        "Did the surroundings give way to the jumps?",
        _grade(after / spread, good, bad),
        f"after settling the potential energy is {after:.3g} kJ/mol above that before the jump, on "
        f"average; its standard deviation in the bursts is {spread:.3g} kJ/mol",
        f"at most {good:g} standard deviations; more than {bad:g} fails",
        "What is left is carried away by the thermostat in the burst.",
    )


def _temperature(record: RunRecord, timeline: Timeline) -> Check:
    wanted = float(record.summary["temperature_K"])
    value, error = timeline.mean(record.log["temperature"])
    good, bad = THRESHOLDS["temperature_relative"]
    away = abs(value - wanted) / wanted
    verdict = _grade(away, good, bad) if math.isfinite(error) else OPEN
    if verdict != GOOD and verdict != OPEN and away * wanted <= 3.0 * error:
        verdict = OPEN  # too few frames to tell
    return Check(
        "Is the temperature in the bursts that of the thermostat?",
        verdict,
        "no frames"
        if not math.isfinite(value)
        else f"{_with(value, error)} K, set to {wanted:g} K",
        f"within {_percent(good)}; beyond {_percent(bad)} and three errors fails",
        "By default frames show the end of a burst, where the shock of a jump must be over.",
    )


def _energy(record: RunRecord, timeline: Timeline) -> Check:
    good, bad = THRESHOLDS["energy_drift_errors"]
    (first, one), (second, two) = (timeline.half(k) for k in (False, True))
    energy = record.log["energy"]
    before, after = first.mean(energy[one]), second.mean(energy[two])
    change, error = after[0] - before[0], math.hypot(before[1], after[1])
    return Check(
        "Is the potential energy steady?",
        _grade(abs(change) / error if error > 0 else math.nan, good, bad),
        "too few frames"
        if not math.isfinite(error)
        else f"second half minus first half {_with(change, error)} kJ/mol",
        f"within {good:g} errors; beyond {bad:g} fails",
        "A run that drifts was not equilibrated, or its jumps put in energy.",
    )


def _crossed(found: Findings) -> Check | None:
    if not found.crossings:
        return None
    good, bad = THRESHOLDS["crossings"]
    rarest: dict[str, int] = {}
    for (start, end), count in found.crossings.items():
        pair = " and ".join(sorted((start, end)))
        rarest[pair] = min(rarest.get(pair, count), count)
    # Wells in a row are crossed through each other: the best link of each tells.
    least, most = min(rarest.values()), max(rarest.values())
    verdict = GOOD if least >= good else CARE if most >= bad else BAD
    rare = sorted(rarest, key=lambda pair: rarest[pair])[:4]
    return Check(
        "Did the run cross between its basins often enough?",
        verdict,
        "; ".join(f"{pair}: {rarest[pair]} each way" for pair in rare),
        f"{good} crossings each way for every pair; fails if no pair has {bad}",
        "What a run has seen a few times it knows badly, whatever the other figures say: the "
        "populations on both sides of a rare crossing rest on these counts.",
    )


def _halves(found: Findings) -> Check | None:
    rows = []
    for name, one in found.populations.items():
        if len(one["halves"]) == 2:
            first, second = one["halves"]
            error = math.hypot(first["error"], second["error"])
            if error > 0 and math.isfinite(error):
                rows.append((abs(second["value"] - first["value"]) / error, name, first, second))
    if not rows:
        return None
    good, bad = THRESHOLDS["halves_errors"]
    worst, name, first, second = max(rows, key=lambda row: row[0])
    return Check(
        "Do the two halves of the run agree?",
        _grade(worst, good, bad),
        f"of {len(rows)} populations {name} differs most: {_with(first['value'], first['error'])} "
        f"and {_with(second['value'], second['error'])}, {worst:.1f} errors",
        f"within {good:g} errors of the difference; beyond {bad:g} fails",
        "Halves that differ show a run shorter than what it has to forget; halves that agree do "
        "not show the opposite.",
    )


def reference_verdicts(found: Findings) -> dict[str, Verdict]:
    """Return the verdicts on the populations that have a reference, by basin."""
    verdicts = {}
    for name, one in found.populations.items():
        if reference := one.get("reference"):
            rare = TOLERANCES["rare_population_relative"] * reference["value"]
            allowed = min(TOLERANCES["population"], rare)
            verdicts[name] = compared(f"population of {name}", one, allowed, False, "")
    return verdicts


def _reference(found: Findings) -> Check | None:
    question = "Do the populations agree with the reference?"
    rows = list(reference_verdicts(found).values())
    if not rows:
        return Check(
            question,
            OPEN,
            "no reference" if found.comparison is None else "no basins to compare",
            "a reference, or a model that carries frames",
            "Nothing else on this page can show that the ensemble is right.",
        )
    good, bad = THRESHOLDS["reference_errors"]
    counts = {kind: sum(row["verdict"] == kind for row in rows) for kind in (DIFFERS, CLOSE)}
    undecided = sum(row["verdict"] == UNDECIDED for row in rows)
    agree = sum(row["verdict"] == AGREES for row in rows)
    worst = max(
        (
            abs(row["model"] - row["reference"])
            / math.hypot(row["model_error"], row["reference_error"] or 0.0)
            for row in rows
            if row["verdict"] == DIFFERS
        ),
        default=0.0,
    )
    if counts[DIFFERS]:
        verdict = BAD if worst > bad else CARE
    elif counts[CLOSE] or (undecided and agree):
        verdict = CARE
    else:
        verdict = GOOD if agree else OPEN
    return Check(
        question,
        verdict,
        f"of {len(rows)} populations {agree} agree, {counts[CLOSE]} are close, {counts[DIFFERS]} "
        f"differ, {undecided} cannot be decided (never visited, or with errors too large)"
        + (f"; the largest difference is {worst:.1f} errors" if worst else ""),
        f"within {good:g} errors that are small enough to tell; beyond {bad:g} errors and the "
        "tolerance fails",
        "The reference is " + (found.comparison.description if found.comparison else ""),
    )


def _with(value: float, error: float) -> str:
    return number(value, error).replace("&plusmn;", "\N{PLUS-MINUS SIGN}").replace("&ndash;", "-")
