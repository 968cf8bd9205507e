"""The report of an adaptation as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report.page import DASH, Cell, Page, figure, listed, numbers, plain, small, table, text
from ..validate.verdicts import step_verdicts


def write_page(summary: dict[str, Any], laws: dict[str, Any], path: Path) -> None:
    """Write the page: what `openmm_sd.adapt.adapt` returns, and the laws of the last model."""
    name, parent = summary["molecule"], summary["parent"]
    page = Page(
        f"{name}: a model of its own",
        f"Adapted from {parent}" if parent else "Trained from nothing",
    )
    hours = summary["core_hours"]
    page.add(
        numbers(
            [
                ("laws are MD's", "yes" if summary["targets_hold"] else "no", ""),
                ("MD", f"{summary['ns']:.3g} ns", f"{hours.get('md', 0.0):.3f} core-hours"),
                ("training", f"{hours.get('training', 0.0):.3f} core-hours", ""),
                ("wall-clock", f"{summary['seconds'] / 60.0:.1f} min", ""),
            ]
        )
    )
    page.section("What each round bought")
    page.add(
        _rounds(summary),
        small(
            "Laws of one jump against MD that the model was not trained on: the root mean square "
            "deviation of hop probabilities, and of how far torsions turn (1 minus the mean "
            "cosine), as a share of MD's; in brackets what errors hide. "
            f"Wanted are {100 * summary['tolerance']:g} % or less of both. Round 0 is the model "
            "that was begun with."
        ),
    )
    page.section("The laws of the last model")
    for lag, entry in laws.items():
        page.add(f"<h3>Jumps of {text(lag)} ps</h3>", _laws(entry))
    page.section("Where chains went")
    page.add(_explored(summary))
    page.section("What to do next")
    page.add(
        listed(
            [
                f"<code>openmm-sd validate {text(Path(summary['bundle']).name)} --reference "
                "DATA.h5</code> compares equilibrium and kinetics with plain MD of yours.",
                "The same command with a larger budget continues.",
            ]
        )
    )
    page.write(path)


def _rounds(summary: dict[str, Any]) -> str:
    rounds = summary["rounds"]
    lags = list(next((one["laws"] for one in reversed(rounds) if one["laws"]), {}))
    head = ["model", "MD trained on (ns)"]
    head += [f"{what}, {lag} ps" for lag in lags for what in ("hops", "turning")]
    head += ["draws that fail a gate", "MD made then (ns)", "training (min)"]
    rows: list[list[Cell]] = []
    trained = 0.0
    for one in rounds:
        cells: list[Cell] = [str(one["round"]), f"{trained:.3g}"]
        laws = one["laws"]
        for lag in lags:
            cells += [_share(laws.get(lag, {}).get(what)) for what in ("hops", "turning")]
        first = laws.get(lags[0]) if lags else None
        cells.append(figure(first["gate_failure_fraction"]) if first else DASH)
        training = one["training"]
        cells += [f"{one['ns']:.3g}", f"{training['minutes']:.1f}" if training else DASH]
        rows.append(cells)
        trained += one["ns"]
    return table(head, rows)


def _share(one: dict[str, Any] | None) -> str:
    if one is None:
        return DASH
    return f"{100 * one['deviation']:.0f} % ({100 * one['resolution']:.0f} %)"


def _laws(entry: dict[str, Any]) -> str:
    rows: list[list[Cell]] = [
        [
            text(row["what"]),
            plain(row["model"], 3),
            plain(row["reference"], 3),
            (row["verdict"], row["verdict"]),
        ]
        for row in step_verdicts(entry)
    ]
    return table(["figure", "model", "MD", "verdict"], rows)


def _explored(summary: dict[str, Any]) -> str:
    head = ["model", "frames of chains", "novel", "no jump led away", "disagreement of two halves"]
    rows: list[list[Cell]] = []
    for one in summary["rounds"]:
        found = one["explored"]
        if found is None:
            continue
        rows.append(
            [
                str(one["round"]),
                f"{found['frames']:,}",
                DASH if found["novel"] is None else f"{found['novel']:,}",
                f"{found['stuck']:,}",
                plain(found["disagreement"], 2),
            ]
        )
    return table(head, rows)
