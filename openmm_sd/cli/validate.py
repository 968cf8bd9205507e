"""Compare a model with MD: equilibrium, kinetics and geometry, with errors.

Writes validation.json, validation.html (one page, nothing else needed) and its pictures. Without
--reference the MD is what the model's training held out, of data sets beside the bundle.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd validate ala2-water --reference phi-psi.npy --lags 10,100 -o report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd validate BUNDLE -o DIR [--reference DATA ...] [options]"
    add = parser.add_argument
    add("model", metavar="BUNDLE", help="shipped model, or path of a bundle")
    add(
        *("--reference", "-r"),
        action="append",
        nargs="+",
        metavar="DATA",
        help="MD: data sets, trajectories, .npy of (phi, psi)",
    )
    add("--output", "-o", required=True, metavar="DIR", help="directory to write to")
    add("--topology", metavar="FILE", help="topology of trajectories that have none")
    add("--reference-spacing", type=float, metavar="PS", help="time between frames (arrays: 1)")
    add("--lags", metavar="PS,PS", help="lags of the jumps (10,50,100,500)")
    add("--chains", type=int, metavar="N", help="chains at each lag (512)")
    add("--total-us", type=float, metavar="US", help="all chains of a lag together, us (2)")
    add("--steps", type=int, metavar="N", help="jumps of each chain, instead")
    add("--rollout", action="append", metavar="DIR", help="judge it, run none (repeatable)")
    add("--torsions", nargs="+", metavar="A,B,C,D", help="torsions, atoms from 0")
    add("--molecule", metavar="NAME", help="which one, of a model that knows several")
    add("--seed", type=int, metavar="N", help="seed of all random numbers (1)")
    add("--device", metavar="D", help="cpu, cuda, auto (cpu)")
    add("--batch", type=int, metavar="N", help="chains in the network at once (512)")
    add("--force", action="store_true", help="replace an earlier report")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..validate import FILES, ValidateSettings, validate

    given = {
        field.name: getattr(arguments, field.name)
        for field in fields(ValidateSettings)
        if getattr(arguments, field.name, None) is not None
    }
    if arguments.lags is not None:
        given["lags"] = tuple(_numbers("--lags", arguments.lags, float))
    if arguments.torsions is not None:
        given["torsions"] = tuple(
            tuple(_numbers("--torsions", text, int, 4)) for text in arguments.torsions
        )
    report = validate(
        arguments.model,
        [path for several in arguments.reference for path in several]
        if arguments.reference
        else None,
        arguments.output,
        ValidateSettings(**given),
        progress,
        topology=arguments.topology,
        spacing_ps=arguments.reference_spacing,
        rollouts=arguments.rollout or (),
        force=arguments.force,
        molecule=arguments.molecule,
    )
    kinds = ("agrees", "close", "differs", "undecided")
    lines = []
    for lag, entry in report["lags"].items():
        jsd = entry.get("jsd_phi_psi_bits") or entry["jsd_dihedral_bits"]
        numbers = [sum(row["verdict"] == kind for row in entry["verdicts"]) for kind in kinds]
        lines.append(
            f"{lag:>6} ps: JSD {jsd['value']:.4f} +- {jsd['error']:.4f} bits; figures that "
            + ", ".join(f"{kind}: {n}" for kind, n in zip(kinds, numbers, strict=True))
        )
    lines.append(f"the report is {arguments.output}/{FILES[1]}")
    return Outcome(report, "\n".join(lines))


def _numbers(name: str, text: str, kind: type, count: int | None = None) -> list[float]:
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or (count is not None and len(numbers) != count):
        wanted = f"{count} atom numbers" if count else "numbers"
        raise ValueError(f"{name} takes {wanted} with commas between them, got {text!r}")
    return numbers
