"""Compare a model with MD: equilibrium, kinetics and geometry, with errors.

Writes validation.json, validation.html (one page, nothing else needed) and its pictures. Without
--reference the MD is what the model's training held out, of data sets next to the bundle.
"""

from __future__ import annotations

import argparse

from ..validate.settings import ValidateSettings
from .options import add_settings, given_of, numbers
from .outcome import Outcome
from .progress import Progress

SETTINGS = (ValidateSettings,)
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
    add("--rollout", action="append", metavar="DIR", help="judge it, run none; repeatable")
    add("--molecule", metavar="NAME", help="which one, of a model that knows several")
    add("--force", action="store_true", help="replace an earlier report")
    add_settings(parser, ValidateSettings, skip="torsions")
    add(
        "--torsions",
        nargs="+",
        type=lambda text: numbers(text, int, 4),
        default=argparse.SUPPRESS,
        metavar="A,B,C,D",
        help="torsions to look at, atoms from 0 (those between heavy atoms that can turn)",
    )


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = ValidateSettings(**given_of(arguments, ValidateSettings))
    from ..validate import FILES, validate

    report = validate(
        arguments.model,
        [path for several in arguments.reference for path in several]
        if arguments.reference
        else None,
        arguments.output,
        settings,
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
