"""The report of a run: one page that says what was found and whether to believe it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...data.reference import chosen_torsions, read_reference
from ...files.atomic import finite
from ...model.model import ScoreModel
from ...model.schedules import schedule_text
from ...molecule.torsions import Torsion, torsions
from ...progress import Progress, silence
from ...report.page import (
    DASH,
    Cell,
    Page,
    answers,
    details,
    figure,
    listed,
    number,
    numbers,
    picture,
    plain,
    settings_table,
    small,
    table,
    text,
)
from ...report.viewer import add_viewer, shown_frames
from ..record import RunRecord, read_run
from . import pictures
from .checks import BAD, CARE, GOOD, OPEN, WORDS, Check, check, overall, reference_verdicts
from .findings import Comparison, Findings, Timescales, find, with_start_frames

#: The file of a report, in the run's directory.
REPORT: Final = "report.html"

Paths = Sequence[str | os.PathLike[str]]

_RATES: Final = (
    "Effective time is not MD time. It counts a whole lag for every accepted jump and leaves out "
    "the settling of the water; dropped jumps are not a random selection, and how fast the "
    "model crosses its barriers is its own: the timescales of a model can be wrong by tens of per "
    "cent where its populations are right. Compare rates and timescales with MD before they are "
    "used."
)


def write_report(
    folder: str | os.PathLike[str],
    *,
    model: ScoreModel | str | os.PathLike[str] | None = None,
    reference: Paths = (),
    topology: str | os.PathLike[str] | None = None,
    spacing_ps: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write ``report.html`` into a run's directory, from the files that are there.

    The run may be finished, stopped, killed or still going on: what its last checkpoint knows is
    reported.

    Parameters
    ----------
    folder : str or PathLike
        The run's directory.
    model : ScoreModel, str or PathLike, optional
        The model of the run, whose frames are compared with. A shipped one is found by itself.
    reference : sequence of str or PathLike
        MD to compare with instead, see `openmm_sd.data.reference.read_reference`.
    topology : str or PathLike, optional
        Of reference trajectories that have none.
    spacing_ps : float, optional
        Time between the reference's frames, ps, where its files do not say.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        ``report`` (the file), ``verdict`` (``good``, ``care`` or ``bad``), ``headline``,
        ``checks``, ``populations``, ``crossings``, ``implied_timescales_ps`` and ``missing``.

    Raises
    ------
    ValueError
        If there is no run, its files do not fit each other, or the reference does not fit it.
    """
    say = progress or silence
    began = time.perf_counter()
    say("reading the run", "")
    record = read_run(folder)
    chosen, comparison, missing = compared_with(record, model, reference, topology, spacing_ps)
    shown = shown_frames(record.n_frames, record.molecule.n_atoms)
    angles, positions = record.look(chosen, shown)
    say("analysing the run", "")
    found = find(record, chosen, angles, comparison)
    found.reasons += missing
    checks = check(record, found)
    kind, headline, sentence = overall(record, checks)
    say("drawing", "")
    page = _page(record, found, checks, (kind, headline, sentence), shown, positions)
    target = record.folder / REPORT
    page.write(target)
    say("done", f"{time.perf_counter() - began:.0f} s, the report is {target}")
    return finite(
        {
            "report": str(target),
            "verdict": kind,
            "headline": headline,
            "checks": [{**vars(one), "answer": WORDS[one.verdict]} for one in checks],
            "populations": found.populations,
            "crossings": {" -> ".join(pair): n for pair, n in found.crossings.items()},
            "implied_timescales_ps": {name: one["run"] for name, one in found.timescales.items()},
            "missing": found.reasons,
        }
    )


# -- what to compare with --------------------------------------------------------------------------


def compared_with(
    record: RunRecord,
    model: ScoreModel | str | os.PathLike[str] | None,
    reference: Paths,
    topology: str | os.PathLike[str] | None = None,
    spacing_ps: float | None = None,
) -> tuple[list[Torsion], Comparison | None, list[str]]:
    """Return the torsions to look at, what they are compared with, and what could not be had."""
    molecule = record.molecule
    if reference:
        read = read_reference(list(reference), molecule, topology, spacing_ps)
        chosen = chosen_torsions(molecule, read)
        sample = read.sample(chosen)
        names = ", ".join(dict.fromkeys(Path(path).name for path in reference))
        description = (
            f"{names}: {sample.n_frames:,} frames, {sample.total_ps / 1000.0:,.4g} ns, in "
            f"{sample.n_groups} blocks."
        )
        return chosen, Comparison("MD", description, sample, True), []
    chosen = torsions(molecule)
    found, missing = _model(record, model)
    frames = None if found is None else found.start_frames
    if found is None or not chosen:
        return chosen, None, missing
    if frames is None or len(frames) < 2:
        return chosen, None, [f"The model {model_name(record)} carries no equilibrium frames."]
    return (*with_start_frames(frames, molecule, model_name(record)), [])


def _model(
    record: RunRecord, model: ScoreModel | str | os.PathLike[str] | None
) -> tuple[ScoreModel | None, list[str]]:
    """Return the model of the run where it is at hand, else the reason why it is not."""
    name, digest = record.summary["model"]["name"], record.summary["model"]["sha256"]
    if model is None:
        # The name of a model that is not shipped is the path it was loaded from.
        known = name is not None and (name in ScoreModel.shipped() or Path(name).is_file())
        if not known:
            return None, [
                f"The model ({model_name(record)}) is not at hand, and so are not its frames "
                "(--model BUNDLE)."
            ]
        model = ScoreModel.load(name)
        if model.sha256 != digest:
            return None, [f"{name} is not the model of this run any more (--model BUNDLE)."]
    elif not isinstance(model, ScoreModel):
        model = ScoreModel.load(model)
    if model.sha256 != digest:
        raise ValueError(
            f"model: {model.name} (sha256 {model.sha256}) is not the one of the run, {name} "
            f"({digest})"
        )
    return model.member(record.summary["molecule"]), []


def model_name(record: RunRecord) -> str:
    """Return the name of a run's model for people."""
    name = record.summary["model"]["name"]
    return "a model without a name" if name is None else Path(name).stem


# -- the page --------------------------------------------------------------------------------------


def _page(
    record: RunRecord,
    found: Findings,
    checks: list[Check],
    verdict: tuple[str, str, str],
    shown: NDArray[np.int64],
    positions: NDArray[np.float32],
) -> Page:
    summary = record.summary
    page = Page(
        f"{summary['molecule']}: a mixed run with {model_name(record)}",
        f"{summary['solute']}; {summary['lag_ps']:g} ps jumps between bursts of "
        f"{summary['burst_ps']:g} ps of MD at {summary['temperature_K']:g} K. " + _state(summary),
    )
    kind, headline, sentence = verdict
    page.add(
        f'<div class="verdict {kind}"><p><strong>{text(headline)}</strong></p>'
        f"<p>{text(sentence)}</p></div>",
        numbers(_first_numbers(summary)),
    )
    page.section("Can it be believed?")
    page.add(*_checks(checks, found))
    page.section("The molecule")
    _viewer(page, record, shown, positions)
    page.section("Equilibrium")
    page.add(*_equilibrium(found))
    page.section("Kinetics")
    page.add(*_kinetics(record, found))
    page.section("Jumps")
    page.add(*_jumps(record))
    page.section("Energies and temperature")
    page.add(*_energies(record, found))
    page.section("Clocks and speed")
    page.add(*_clocks(summary))
    page.section("What could not be had")
    page.add(listed(map(text, found.reasons)) if found.reasons else "<p>Nothing is missing.</p>")
    page.section("Notes of the run")
    page.add(listed(map(text, summary["notes"])))
    page.section("How it was made")
    page.add(*_provenance(record))
    return page


def _state(summary: dict[str, Any]) -> str:
    if summary["complete"]:
        return "The run is complete."
    return "The run is not complete: this is what its last checkpoint holds."


def _first_numbers(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    tried, accepted = summary["jumps_tried"], summary["jumps_accepted"]
    mixed, md = summary["effective_ns_per_day"], summary["md_ns_per_day"]
    ratio = f"plain MD {plain(md, 4)}" if md else "plain MD was not measured"
    return [
        (
            "effective time",
            f"{plain(summary['effective_time_ps'] / 1000.0, 4)} ns",
            "MD time and lags",
        ),
        ("MD time", f"{plain(summary['md_time_ps'], 5)} ps", "in bursts"),
        ("jumps accepted", f"{accepted:,}", f"of {tried:,} tried"),
        ("fallbacks", f"{summary['fallbacks']:,}", f"and {summary['novel']:,} novel frames"),
        ("effective ns/day", plain(mixed, 4), ratio),
        ("frames", f"{summary['frames']:,}", f"one every {summary['every_ps']:g} ps of MD"),
    ]


def _checks(checks: list[Check], found: Findings) -> list[str]:
    order = [BAD, CARE, OPEN, GOOD]
    items = (
        (
            one.verdict,
            WORDS[one.verdict],
            text(one.question),
            text(one.found),
            [f"Wanted: {text(one.wanted)}.", text(one.meaning)],
        )
        for one in sorted(checks, key=lambda one: order.index(one.verdict))
    )
    body = [
        answers(items),
        small(
            "Errors are standard errors from blocks of the run, the largest of those with 8, 16 "
            "and 32 blocks; one in twenty correct figures lies beyond two errors."
        ),
    ]
    if found.comparison is not None:
        body.append(small(f"Compared with {text(found.comparison.description)}"))
    return body


def _viewer(
    page: Page, record: RunRecord, shown: NDArray[np.int64], positions: NDArray[np.float32]
) -> None:
    if not len(shown):
        page.add("<p>There are no frames yet.</p>")
        return
    log = record.log
    labels = [
        f"{log['effective_ps'][k] / 1000.0:,.4f} ns effective, {log['md_ps'][k]:,.3f} ps of MD, "
        f"{log['accepted'][k]:,.0f} jumps"
        for k in shown.tolist()
    ]
    molecule = record.molecule
    what = f"{molecule.name}, {molecule.n_atoms} atoms, in {len(shown)} frames of the run"
    add_viewer(page, positions, molecule.atomic_numbers, molecule.bonds, labels, what)
    page.add(
        small(
            f"{len(shown):,} of {record.n_frames:,} frames, the solute alone, turned onto the "
            "first of them: how it tumbles is not shown."
        )
    )


def _equilibrium(found: Findings) -> list[str]:
    body = []
    if found.populations:
        body.append("<h3>Populations</h3>")
        body.append(_populations(found))
        body.append(
            small(
                "Frames count by the effective time they stand for. <b>Visits</b>: how often the "
                "run came into the basin. <b>Independent</b>: as many independent frames would "
                "have this error. Where a basin was never visited or never left there is no "
                "error: whether it is empty, or the run too short, cannot be said."
            )
        )
    if found.divergence is not None:
        one = found.divergence
        body.append(
            f"<p>Jensen-Shannon divergence of {one['of']} from the reference: {figure(one)} "
            "bits. Two samples of these sizes of one and the same law would give about "
            f"{number(one['expected_of_same_law'])}, too low an estimate where frames are few.</p>"
        )
    body += [picture(*one) for one in pictures.equilibrium(found)]
    along = pictures.along(found)
    if along is not None:
        body.append(picture(*along))
    return body or ["<p>Nothing to show: see what could not be had.</p>"]


def _populations(found: Findings) -> str:
    verdicts = reference_verdicts(found)
    other = found.comparison.name if found.comparison else "reference"
    rows: list[list[Cell]] = []
    for name, one in found.populations.items():
        verdict = verdicts[name]["verdict"] if name in verdicts else None
        halves = [*one["halves"], None, None][:2]
        rows.append(
            [
                text(name),
                "never visited" if not one["visits"] else figure(one),
                figure(one.get("reference")),
                DASH if verdict is None else (verdict, verdict),
                f"{one['visits']:,}",
                plain(one["independent"], 3),
                *(figure(half) if half and half["value"] else "never" for half in halves),
            ]
        )
    head = ["basin", "run", text(other), "verdict", "visits", "independent"]
    return table([*head, "first half", "second half"], rows)


def _kinetics(record: RunRecord, found: Findings) -> list[str]:
    body = [f'<div class="warning">{text(_RATES)}</div>']
    if found.crossings:
        hours = record.summary["effective_time_ps"] / 1000.0
        body.append("<h3>Crossings between basins</h3>")
        body.append(
            table(
                ["from core to core", "number", "per effective ns"],
                (
                    [text(" -> ".join(pair)), f"{count:,}", _rate(count, hours)]
                    for pair, count in found.crossings.items()
                ),
            )
        )
        body.append(
            small(
                "Counted from well inside one basin to well inside another, so that a frame on the "
                "border counts for nothing. The error of a count of n is its root at best."
            )
        )
    for name, one in found.timescales.items():
        body.append(f"<h3>Implied timescales: {text(name)} (ps of effective time)</h3>")
        body.append(_timescales(one, found))
        body.append(small("Those that are lost in the noise are left out."))
    body += [picture(*one) for one in pictures.kinetics(found)]
    if found.step_ps is not None and found.timescales:
        body.append(
            small(
                f"From {found.n_steps:,} steps of {found.step_ps:g} ps: frames that are a lag and "
                "a burst apart. Where a jump was dropped the chain is cut."
            )
        )
    if not found.timescales:
        body.append("<p>There are no timescales: see what could not be had.</p>")
    return body


def _rate(count: int, nanoseconds: float) -> str:
    return number(count / nanoseconds, math.sqrt(count) / nanoseconds) if count else DASH


def _timescales(one: Timescales, found: Findings) -> str:
    other = found.comparison.name if found.comparison else "reference"
    rows: list[list[Cell]] = []
    for lag, ours in one["run"].items():
        theirs = one["reference"].get(lag)
        for k, (value, error) in enumerate(zip(ours["value"], ours["error"], strict=True)):
            if not math.isfinite(value):
                continue  # lost in the noise
            beside = DASH if theirs is None else number(theirs["value"][k], theirs["error"][k])
            rows.append([f"{float(lag):g}", str(k + 1), number(value, error), beside])
    return table(["lag of the Markov model", "number", "run", text(other)], rows)


def _jumps(record: RunRecord) -> list[str]:
    summary = record.summary
    tried = summary["jumps_tried"]
    outcomes = (
        ("accepted", "jumps_accepted", "the lag is counted"),
        ("fallbacks", "fallbacks", "every proposal failed, MD carried on; no lag is counted"),
        ("novel", "novel", "the frame is unlike the training data; MD covered the lag"),
    )
    rows: list[list[Cell]] = [
        [name, f"{summary[key]:,}", _part(summary[key], tried), ("words", what)]
        for name, key, what in outcomes
    ]
    rejected = summary["rejections"]
    settle = summary["settle"]
    body = [
        table([f"of {tried:,} tried", "number", "share", ""], rows),
        "<h3>Rejected proposals, by gate</h3>"
        f"<p>Proposals beyond the first of a jump: {summary['redraws']:,}.</p>",
        table(["gate", "proposals"], ([text(gate), f"{n:,}"] for gate, n in rejected.items())),
        "<h3>Settling</h3>",
        table(
            ["of an accepted jump, on average", ""],
            [
                ["settling steps", plain(settle["steps"], 3)],
                [
                    "potential energy above that before the jump, unsettled (kJ/mol)",
                    plain(settle["energy_before_kJ_per_mol"], 3),
                ],
                ["&nbsp; settled", plain(settle["energy_after_kJ_per_mol"], 3)],
            ],
        ),
    ]
    drawn = pictures.jumps(record)
    return [*body, picture(*drawn)] if drawn is not None else body


def _part(count: int, whole: int) -> str:
    return f"{100.0 * count / whole:.3g} %" if whole else DASH


def _energies(record: RunRecord, found: Findings) -> list[str]:
    timeline, log = found.timeline, record.log
    rows: list[list[Cell]] = []
    for name, key in (("potential energy (kJ/mol)", "energy"), ("temperature (K)", "temperature")):
        cells = [number(*timeline.mean(log[key]))]
        for second in (False, True):
            half, part = timeline.half(second)
            cells.append(number(*half.mean(log[key][part])))
        rows.append([name, *cells, plain(float(log[key].std()) if record.n_frames else None, 3)])
    body = [
        table(["", "mean", "first half", "second half", "standard deviation"], rows),
        small("Of the frames, each at the end of its stretch of MD: the jumps are not in it."),
    ]
    drawn = pictures.energies(record, timeline)
    return [*body, picture(*drawn)] if drawn is not None else body


def _clocks(summary: dict[str, Any]) -> list[str]:
    lags = summary["effective_time_ps"] - summary["md_time_ps"]
    rows: list[list[Cell]] = [
        ["MD time", f"{summary['md_time_ps']:,.10g} ps", ("words", "all atoms move")],
        [
            "jumps",
            f"{lags:,.10g} ps",
            ("words", f"{summary['jumps_accepted']:,} accepted jumps, their lags"),
        ],
        ["effective time", f"{summary['effective_time_ps']:,.10g} ps", ("words", "both together")],
        [
            "settling",
            f"{summary['settle']['time_ps']:,.10g} ps",
            ("words", "the water moves around the solute at rest; in none of the clocks"),
        ],
        ["wall clock", _duration(summary["wall_clock_s"]), ("words", "of all parts of the run")],
    ]
    rows += [
        [f"&nbsp; {text(part)}", f"{seconds:,.1f} s", ""]
        for part, seconds in summary["seconds"].items()
    ]
    mixed, md = summary["effective_ns_per_day"], summary["md_ns_per_day"]
    ratio = mixed / md if mixed and md else None
    speeds: list[list[Cell]] = [
        ["mixed run, effective", plain(mixed, 4)],
        ["plain MD of the same system, here", plain(md, 4)],
        ["ratio", plain(ratio, 3)],
    ]
    schedule = summary.get("schedule")  # runs of earlier versions have none
    return [
        table(["clock", "", ""], rows),
        table(["speed", "ns/day"], speeds),
        f"<p>At this speed: {text(schedule_text(schedule))}.</p>" if schedule else "",
        small(
            "The ratio compares unlike things: MD gives every step between, and all of the water's "
            "motion. It says nothing of how well the jumps are made."
        ),
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min {rest} s"


def _provenance(record: RunRecord) -> list[str]:
    summary = record.summary
    files = {
        file.name: f"{file.stat().st_size:,} bytes"
        for file in sorted(record.folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.name != REPORT
    }
    main = {
        "model": summary["model"]["name"] or model_name(record),
        "model's sha256": summary["model"]["sha256"] or "it came from no bundle",
        "start": summary["start"],
        "force field": summary["force_field"] or "not known",
        "atoms": f"{summary['atoms']:,}, of which {summary['atoms_saved']:,} were saved",
        "temperature (K)": summary["temperature_K"],
        "MD step (ps)": summary["step_ps"],
        "lag, burst (ps)": f"{summary['lag_ps']:g}, {summary['burst_ps']:g}",
        "seed": summary["seed"],
        "platform": " ".join(filter(None, (summary["platform"], summary["precision"]))),
        "bridge": summary["bridge"],
        "parts": f"{summary['parts']} (1 + the number of times the run was taken up again)",
        **{f"version of {name}": value for name, value in summary["versions"].items()},
    }
    return [
        settings_table(main),
        details("All settings", settings_table(summary["settings"])),
        details("Files next to this page", settings_table(files)),
    ]
