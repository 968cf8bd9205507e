"""The report as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..analysis.verdicts import AGREES, CLOSE, DIFFERS, UNDECIDED, Figure, Verdict
from ..report.drawing import Picture
from ..report.page import (
    DASH,
    Cell,
    Page,
    details,
    figure,
    number,
    picture,
    plain,
    settings_table,
    small,
    table,
    text,
)

_MEANING = {
    DIFFERS: "beyond two errors, and larger than what counts as close",
    CLOSE: "beyond two errors, but small",
    AGREES: "within two errors",
    UNDECIDED: "too little data to tell, or nothing to compare with",
}


def write_page(report: dict[str, Any], pictures: Sequence[Picture], path: Path) -> None:
    """Write the page of a report and its pictures."""
    page = Page(f"{report['molecule']}: {report['model']} against MD", report["description"])
    page.section("What agrees, what does not")
    page.add(*_verdicts(report))
    page.section("Figures")
    page.add(*_summary(report), *_reference(report))
    page.section("Pictures")
    page.add(*(picture(*one) for one in pictures))
    page.section("How it was made")
    used = {"temperature_K": report["temperature_K"], **report["versions"]}
    page.add(settings_table({**report["settings"], **used}))
    page.write(path)


def _beside(one: Figure | None) -> str:
    """Return a figure with MD's under it."""
    reference = one and one.get("reference")
    return figure(one) + (_md(figure(reference)) if reference else "")


def _md(content: str) -> str:
    return f'<br><span class="small">MD {content}</span>'


def _verdicts(report: dict[str, Any]) -> list[str]:
    order = (DIFFERS, CLOSE, AGREES, UNDECIDED)
    lags = report["lags"]
    body = [
        table(
            ["lag", *order],
            [
                [
                    f"{lag} ps",
                    *(
                        (kind, str(sum(row["verdict"] == kind for row in entry["verdicts"])))
                        for kind in order
                    ),
                ]
                for lag, entry in lags.items()
            ],
        ),
        small(
            "; ".join(f"<b>{kind}</b>: {_MEANING[kind]}" for kind in order)
            + ". Of many figures that are right, one in twenty lies beyond two errors."
        ),
    ]
    for lag, entry in lags.items():
        body.append(f"<h3>Jumps of {lag} ps</h3>")
        rows = sorted(entry["verdicts"], key=lambda row: order.index(row["verdict"]))
        head = ["figure", "model", "MD", "unit", "verdict"]
        loud = [row for row in rows if row["verdict"] in (DIFFERS, CLOSE)]
        quiet = [row for row in rows if row["verdict"] in (AGREES, UNDECIDED)]
        if loud:
            body.append(table(head, map(_verdict_row, loud)))
        else:
            body.append("<p>Nothing differs by more than two errors.</p>")
        if quiet:
            body.append(
                details(
                    f"{len(quiet)} more: those that agree, and the undecided",
                    table(head, map(_verdict_row, quiet)),
                )
            )
    return body


def _verdict_row(row: Verdict) -> list[Cell]:
    return [
        text(row["what"]),
        number(row["model"], row["model_error"]),
        number(row["reference"], row["reference_error"]),
        text(row["unit"]),
        (row["verdict"], row["verdict"]),
    ]


def _summary(report: dict[str, Any]) -> list[str]:
    lags = report["lags"]
    head = ["", *(f"{lag} ps" for lag in lags)]
    entries = list(lags.values())
    first = entries[0]
    jsd = "jsd_phi_psi_bits" if "jsd_phi_psi_bits" in first else "jsd_dihedral_bits"

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("chains", lambda e: f"{e['chains']:,}"),
        ("total time (&micro;s)", lambda e: plain(e["microseconds"], 3)),
        ("JSD (bits)", lambda e: figure(e[jsd])),
        (
            "&nbsp; an exact model would give",
            lambda e: number(e[jsd]["expected_of_exact_model"]),
        ),
        *(
            (f"population of {text(name)}", lambda e, name=name: _beside(e["populations"][name]))
            for name in first["populations"]
        ),
        *(
            (f"{text(name)} (ps)", lambda e, name=name: _beside(e["mfpt_ps"].get(name)))
            for name in first["mfpt_ps"]
        ),
        ("draws that fail a gate", lambda e: figure(e["gate_failure_fraction"])),
        ("draws with a flipped stereocentre", lambda e: figure(e["chirality_flip_fraction"])),
        ("steps dropped after all tries", lambda e: figure(e["fallback_fraction"])),
        ("solute energy above MD (kT)", lambda e: figure(e["solute_energy_excess_kT"])),
        (
            "&nbsp; median",
            lambda e: number(e["solute_energy_excess_kT"].get("median_excess_kT")),
        ),
        ("frames with a clash", lambda e: figure((e["geometry"] or {}).get("clash_fraction"))),
        ("jumps per second here", lambda e: _speed(e["statistics"])),
    ]
    body = [table(head, ([label, *map(cell, entries)] for label, cell in rows))]
    reasons = {e["solute_energy_excess_kT"].get("reason") for e in entries} - {None}
    body += [small(f"No energies: {text(reason)}.") for reason in sorted(reasons)]
    body += [small(f"{text(note)}") for note in report["notes"]]
    if first["mfpt_ps"]:
        used = ", ".join(f"{lag} ps: {e.get('mfpt_msm_lag_ps', 0):g} ps" for lag, e in lags.items())
        body.append(
            small(
                "Passage times are mean first passage times of Markov state models, for model and "
                f"MD at the same lag ({used}): a longer lag misses passages that return within it."
            )
        )
    crossings = sorted({name for e in entries for name in e["crossing_times_ps"]})
    if crossings:
        body.append("<h3>Crossings between cores: mean duration (ps), number</h3>")
        body.append(
            table(
                head,
                (
                    [text(name), *(_crossing(e["crossing_times_ps"].get(name)) for e in entries)]
                    for name in crossings
                ),
            )
        )
        body.append(
            small(
                "MD is looked at as seldom as the chains: a crossing cannot take less than the "
                "time between two frames."
            )
        )
    return body


def _speed(statistics: dict[str, Any]) -> str:
    seconds = statistics.get("seconds") or 0
    return f"{statistics['jumps'] / seconds:,.0f}" if seconds else DASH


def _crossing(one: dict[str, Any] | None) -> str:
    if one is None:
        return DASH
    other = one.get("reference")
    ours = f"{number(one['value'], one['error'])} ({one['crossings']:,})"
    return ours + (_md(_crossing(other)) if other else "")


def _reference(report: dict[str, Any]) -> list[str]:
    reference = report["reference"]
    body = [
        "<h3>The reference</h3>",
        f"<p>{reference['frames']:,} frames, {reference['ns']:,.1f} ns, one every "
        f"{reference['spacing_ps']:g} ps; errors from {reference['groups']} blocks; "
        f"{reference['microstates']} microstates.</p>",
    ]
    for key in ("jsd_phi_psi_bits", "jsd_dihedral_bits"):
        if key in reference:
            body.append(
                f"<p>Two halves of it differ by {number(reference[key]['two_halves'])} bits; all "
                "of it differs from endless MD by about "
                f"{number(reference[key]['whole_from_longer_md'])} bits.</p>"
            )
    body.append(
        table(
            ["run", "frames", "ns", "holds"],
            (
                [
                    text(run["name"]),
                    f"{run['frames']:,}",
                    plain(run["ns"], 4),
                    text(run.get("holds", "")),
                ]
                for run in reference["runs"]
            ),
        )
    )
    return body
