"""The table of a model card from validation reports.

    python benchmarks/card_table.py REPORT/validation.json [MORE/validation.json ...]

Prints one Markdown column a lag beside the reference, with errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

POPULATIONS = ("beta_C5", "PII", "alphaR", "alphaL", "C7ax_other", "phi>0")
PASSAGES = (
    "phi<0 -> phi>0",
    "phi>0 -> phi<0",
    "beta+PII -> alphaR",
    "alphaR -> beta+PII",
    "alphaR -> alphaL",
    "alphaL -> alphaR",
    "beta -> PII",
    "PII -> beta",
)
HOPS = ("beta_C5 -> PII", "PII -> beta_C5", "PII -> alphaR", "alphaR -> PII")


def main() -> None:
    lags: dict[float, dict[str, Any]] = {}
    reference: dict[str, Any] = {}
    for path in sys.argv[1:]:
        report = json.loads(Path(path).read_text())
        reference = reference or report["reference"]
        lags.update({float(lag): entry for lag, entry in report["lags"].items()})
    lags = dict(sorted(lags.items()))
    row("lag (ps)", "MD", [f"{lag:g}" for lag in lags])
    row("---", "---", ["---"] * len(lags))
    each = list(lags.values())
    row("chains x steps", "", [f"{e['chains']} x {e['steps']}" for e in each])
    row("all chains together (µs)", "", [f"{e['microseconds']:.1f}" for e in each])
    row(
        "JSD(phi, psi), bits",
        "",
        [text(e["jsd_phi_psi_bits"], 4) for e in each],
    )
    row(
        "— of an exact model, samples of this size",
        "",
        [f"{e['jsd_phi_psi_bits'].get('expected_of_exact_model') or 0:.4f}" for e in each],
    )
    drift = [text(e["drift"]["last_half_bits"], 4) for e in each]
    row("— last quarter of the chains minus third", "", drift)
    for name in POPULATIONS:
        md = text(reference["populations"][name], 4)
        row(f"population of {name}", md, [text(e["populations"][name], 4) for e in each])
    for number in (0, 1, 2):
        cells, md = [], ""
        for e in each:
            at = e["implied_timescales_ps"]
            lag = min(at, key=lambda key: abs(float(key) - max(50.0, e["lag_ps"])))
            cells.append(f"{text(nth(at[lag], number), 4, significant=True)} (at {lag} ps)")
            if not md and at[lag].get("reference"):
                md = f"{text(nth(at[lag]['reference'], number), 4, significant=True)} (at {lag} ps)"
        row(f"implied timescale {number + 2} (ps)", md, cells)
    for name in PASSAGES:
        cells = []
        for e in each:
            one = e["mfpt_ps"].get(name, {})
            md = text(one.get("reference"), 3, significant=True)
            cells.append(f"{text(one, 3, significant=True)} ({md})")
        row(f"mean first passage {name} (ps); in brackets MD's, same MSM lag", "", cells)
    for key in ("phi", "psi"):
        cells = [step(e, f"mean_cos_change.{key}") for e in each]
        row(f"one step: mean cos of the change of {key}; in brackets MD's", "", cells)
    for hop in HOPS:
        cells = [step(e, f"hop.{hop}") for e in each]
        row(f"one step: probability of {hop}; in brackets MD's", "", cells)
    row("draws that fail a gate", "", [share(e["gate_failure_fraction"]) for e in each])
    row(
        "draws with a flipped stereocentre", "", [share(e["chirality_flip_fraction"]) for e in each]
    )
    energy = [e["solute_energy_excess_kT"] for e in each]
    row("energy of the solute above MD's (kT), mean", "", [text(e, 2) for e in energy])
    row("— median", "", [f"{e['median_excess_kT']:.2f}" if e else "-" for e in energy])


def nth(figure: dict[str, Any], number: int) -> dict[str, Any]:
    pick = {key: (figure.get(key) or [None] * 3) for key in ("value", "error")}
    return {key: value[number] if number < len(value) else None for key, value in pick.items()}


def step(entry: dict[str, Any], what: str) -> str:
    """Return a figure of the one-step test, and MD's."""
    kind, name = what.split(".", 1)
    label = (
        f"one step: mean cosine of the change of {name}"
        if kind == "mean_cos_change"
        else f"one step: probability of {name}"
    )
    for line in entry["verdicts"]:
        if line["what"] == label:
            one = {"value": line["model"], "error": line["model_error"]}
            md = {"value": line["reference"], "error": line["reference_error"]}
            return f"{text(one, 3)} ({text(md, 3)})"
    return "-"


def share(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.1e} ± {figure['error']:.0e}"


def text(figure: dict[str, Any] | None, digits: int, significant: bool = False) -> str:
    if not figure or figure.get("value") is None:
        return "-"
    value, error = figure["value"], figure.get("error")
    shape = f".{digits}g" if significant else f".{digits}f"
    return f"{value:{shape}}" + (f" ± {error:{'.2g' if significant else shape}}" if error else "")


def row(name: str, reference: str, cells: list[str]) -> None:
    print("| " + " | ".join([name, reference, *cells]) + " |")


if __name__ == "__main__":
    main()
