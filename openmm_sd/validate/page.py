"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..propagator.bundle import write_atomically
from .verdicts import AGREES, CLOSE, DIFFERS, UNDECIDED

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66em; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; }
h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05em; margin-bottom: 0.3em; }
table { border-collapse: collapse; margin: 0.6em 0 1.2em; font-size: 0.92em; }
th, td { padding: 0.2em 0.7em; border-bottom: 1px solid #e4e4e4; text-align: right; }
th { background: #f5f5f5; }
th:first-child, td:first-child { text-align: left; }
td.agrees { color: #00602f; } td.close { color: #7a5c00; }
td.differs { color: #a31515; font-weight: 600; } td.undecided { color: #666; }
img { max-width: 100%; height: auto; display: block; margin: 0.4em 0; }
.scroll { overflow-x: auto; } .small { color: #555; font-size: 0.9em; }
"""

_MEANING = {
    DIFFERS: "beyond two errors, and larger than what counts as close",
    CLOSE: "beyond two errors, but small",
    AGREES: "within two errors",
    UNDECIDED: "too little data to tell, or nothing to compare with",
}


def write_page(
    report: dict[str, Any], pictures: Sequence[tuple[str, str, str]], path: Path
) -> None:
    """Write the page.

    Parameters
    ----------
    report : dict
        The report.
    pictures : sequence of (str, str, str)
        File name (beside the page), title and caption; they are put into the page.
    path : Path
        Where to.
    """
    body = [
        f"<h1>{_text(report['molecule'])}: {_text(report['model'])} against MD</h1>",
        f"<p class=small>{_text(report['description'])}</p>",
        "<h2>What agrees, what does not</h2>",
        *_verdicts(report),
        "<h2>Figures</h2>",
        *_summary(report),
        *_reference(report),
        "<h2>Pictures</h2>",
    ]
    for name, title, caption in pictures:
        data = base64.b64encode((path.parent / name).read_bytes()).decode("ascii")
        body.append(
            f"<h3>{_text(title)}</h3><p class=small>{_text(caption)}</p>"
            f'<img src="data:image/png;base64,{data}" alt="{_text(title)}">'
        )
    body += _settings(report)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(report['model'])}: validation</title><style>{_STYLE}</style></head>\n"
        "<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    write_atomically(path, page.encode())


def _text(value: Any) -> str:
    return html.escape(str(value))


def number(value: float | None, error: float | None = None) -> str:
    """Return a figure for people, with as many digits as its error leaves meaningful."""
    if value is None:
        return "&ndash;"
    if error is None or error <= 0 or error != error:
        return _plain(value, 3)
    exponent = _exponent(error)
    # Two digits of the error; more than four places after the point are shown as powers of ten.
    places = 1 - exponent
    if -2 <= -places and max(abs(value), error) < 1e6 and places <= 5:
        places = max(places, 0)
        return f"{value:.{places}f} &plusmn; {error:.{places}f}"
    if places > 5:
        power = _exponent(max(abs(value), error))
        scale = 10.0**power
        digits = max(power - exponent + 1, 0)
        return f"({value / scale:.{digits}f} &plusmn; {error / scale:.{digits}f})e{power:d}"
    places = max(places, 0)
    return f"{value:,.{places}f} &plusmn; {error:,.{places}f}"


def _exponent(value: float) -> int:
    return int(f"{abs(value):e}".split("e")[1])


def _plain(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are HTML already, a cell may carry its class before a bar."""
    lines = ["<div class=scroll><table><tr>", *(f"<th>{cell}</th>" for cell in head), "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>")
    return "".join(lines) + "</table></div>"


def _cell(cell: str) -> str:
    kind, bar, rest = cell.partition("|")
    return f'<td class="{kind}">{rest}</td>' if bar else f"<td>{cell}</td>"


def _figure(one: dict[str, Any] | None) -> str:
    return "&ndash;" if one is None else number(one["value"], one["error"])


def _beside(one: dict[str, Any] | None) -> str:
    """A figure with MD's under it."""
    if one is None:
        return "&ndash;"
    other = one.get("reference")
    below = "" if other is None else f"<br><span class=small>MD {_figure(other)}</span>"
    return _figure(one) + below


def _verdicts(report: dict[str, Any]) -> list[str]:
    order = (DIFFERS, CLOSE, AGREES, UNDECIDED)
    lags = report["lags"]
    body = [
        _table(
            ["lag", *order],
            [
                [
                    f"{lag} ps",
                    *(
                        f"{kind}|{sum(row['verdict'] == kind for row in entry['verdicts'])}"
                        for kind in order
                    ),
                ]
                for lag, entry in lags.items()
            ],
        ),
        "<p class=small>"
        + "; ".join(f"<b>{kind}</b>: {_MEANING[kind]}" for kind in order)
        + ". Of many figures that are right, one in twenty lies beyond two errors.</p>",
    ]
    for lag, entry in lags.items():
        body.append(f"<h3>Jumps of {lag} ps</h3>")
        rows = sorted(entry["verdicts"], key=lambda row: order.index(row["verdict"]))
        head = ["figure", "model", "MD", "unit", "verdict"]
        loud = [row for row in rows if row["verdict"] in (DIFFERS, CLOSE)]
        quiet = [row for row in rows if row["verdict"] in (AGREES, UNDECIDED)]
        if loud:
            body.append(_table(head, map(_verdict_row, loud)))
        else:
            body.append("<p>Nothing differs by more than two errors.</p>")
        if quiet:
            body.append(
                f"<details><summary>{len(quiet)} more: those that agree, and the undecided"
                f"</summary>{_table(head, map(_verdict_row, quiet))}</details>"
            )
    return body


def _verdict_row(row: dict[str, Any]) -> list[str]:
    return [
        _text(row["what"]),
        number(row["model"], row["model_error"]),
        number(row["reference"], row["reference_error"]),
        _text(row["unit"]),
        f"{row['verdict']}|{row['verdict']}",
    ]


def _summary(report: dict[str, Any]) -> list[str]:
    lags = report["lags"]
    head = ["", *(f"{lag} ps" for lag in lags)]
    entries = list(lags.values())
    first = entries[0]
    jsd = "jsd_phi_psi_bits" if "jsd_phi_psi_bits" in first else "jsd_dihedral_bits"

    def row(label: str, cells: Iterable[str]) -> list[str]:
        return [label, *cells]

    rows = [
        row("chains", (f"{entry['chains']:,}" for entry in entries)),
        row("total time (&micro;s)", (_plain(entry["microseconds"], 3) for entry in entries)),
        row("JSD (bits)", (_figure(entry[jsd]) for entry in entries)),
        row(
            "&nbsp; an exact model would give",
            (number(entry[jsd]["expected_of_exact_model"]) for entry in entries),
        ),
        *(
            row(f"population of {_text(name)}", (_beside(e["populations"][name]) for e in entries))
            for name in first["populations"]
        ),
        *(
            row(f"{_text(name)} (ps)", (_beside(e["mfpt_ps"].get(name)) for e in entries))
            for name in first["mfpt_ps"]
        ),
        row("draws that fail a gate", (_figure(e["gate_failure_fraction"]) for e in entries)),
        row(
            "draws with a flipped stereocentre",
            (_figure(e["chirality_flip_fraction"]) for e in entries),
        ),
        row("steps dropped after all tries", (_figure(e["fallback_fraction"]) for e in entries)),
        row(
            "solute energy above MD (kT)", (_figure(e["solute_energy_excess_kT"]) for e in entries)
        ),
        row(
            "&nbsp; median",
            (number(e["solute_energy_excess_kT"].get("median_excess_kT")) for e in entries),
        ),
        row(
            "frames with a clash",
            (_figure((e["geometry"] or {}).get("clash_fraction")) for e in entries),
        ),
        row("jumps per second here", (_speed(entry["statistics"]) for entry in entries)),
    ]
    body = [_table(head, rows)]
    reasons = {e["solute_energy_excess_kT"].get("reason") for e in entries} - {None}
    body += [f"<p class=small>No energies: {_text(reason)}.</p>" for reason in sorted(reasons)]
    body += [f"<p class=small>{_text(note)}</p>" for note in report["notes"]]
    if first["mfpt_ps"]:
        text = ", ".join(f"{lag} ps: {e.get('mfpt_msm_lag_ps', 0):g} ps" for lag, e in lags.items())
        body.append(
            "<p class=small>Passage times are mean first passage times of Markov state models, for "
            f"model and MD at the same lag ({text}): a longer lag misses passages that return "
            "within it.</p>"
        )
    crossings = sorted({name for e in entries for name in e["crossing_times_ps"]})
    if crossings:
        body.append("<h3>Crossings between cores: mean duration (ps), number</h3>")
        body.append(
            _table(
                head,
                (
                    row(_text(name), (_crossing(e["crossing_times_ps"].get(name)) for e in entries))
                    for name in crossings
                ),
            )
        )
        body.append(
            "<p class=small>MD is looked at as seldom as the chains: a crossing cannot take less "
            "than the time between two frames.</p>"
        )
    return body


def _speed(statistics: dict[str, Any]) -> str:
    seconds = statistics.get("seconds") or 0
    return f"{statistics['jumps'] / seconds:,.0f}" if seconds else "&ndash;"


def _crossing(one: dict[str, Any] | None) -> str:
    if one is None:
        return "&ndash;"
    other = one.get("reference")
    text = f"{_figure(one)} ({one['crossings']:,})"
    if other is None:
        return text
    return text + f"<br><span class=small>MD {_figure(other)} ({other['crossings']:,})</span>"


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
        _table(
            ["run", "frames", "ns", "holds"],
            (
                [
                    _text(run["name"]),
                    f"{run['frames']:,}",
                    _plain(run["ns"], 4),
                    _text(run.get("holds", "")),
                ]
                for run in reference["runs"]
            ),
        )
    )
    return body


def _settings(report: dict[str, Any]) -> list[str]:
    items = {**report["settings"], "temperature_K": report["temperature_K"], **report["versions"]}
    rows = [[_text(key), _text("default" if v is None else v)] for key, v in items.items()]
    return ["<h2>How it was made</h2>", _table(["", ""], rows)]
