"""Repair a structure, put it into water and relax it: a directory that is ready to run.

Missing atoms and hydrogens are added; what would be a guess is refused with the option that allows
it. Every decision is in prepared.json. Says which models know the solute. Also: --water-model
--positive-ion --negative-ion --cutoff --hydrogen-mass --pressure, see docs/preparing.md.
"""

from __future__ import annotations

import argparse
from typing import Any

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd prepare ala2.pdb -o ala2"

# Help that fits a screen leaves these to the documentation.
HIDDEN = argparse.SUPPRESS

# Option, field of PrepareSettings, type, unit, help.
_OPTIONS = (
    ("solvent", "solvent", str, "WORD", "explicit or implicit (explicit)"),
    ("frame", "frame", int, "N", "which of several models in the file, from 1"),
    ("ph", "ph", float, "PH", "by which hydrogens are added (7)"),
    ("missing-residues", "missing_residues", str, "W", "build those of SEQRES: gaps or all (none)"),
    ("water-model", "water_model", str, "NAME", HIDDEN),
    ("box-shape", "box_shape", str, "S", "cube, dodecahedron or octahedron (cube)"),
    ("padding", "padding_nm", float, "NM", "least distance between copies of the solute (1)"),
    ("waters", "waters", int, "N", "number of water molecules instead"),
    ("box", "box_nm", float, "NM", "width of the box instead"),
    ("salt", "ionic_strength_M", float, "MOLAR", "ions beyond those that neutralise (0)"),
    ("positive-ion", "positive_ion", str, "ION", HIDDEN),
    ("negative-ion", "negative_ion", str, "ION", HIDDEN),
    ("cutoff", "cutoff_nm", float, "NM", HIDDEN),
    ("temperature", "temperature_K", float, "K", "(that of the model that fits, else 300)"),
    ("pressure", "pressure_bar", float, "BAR", HIDDEN),
    (
        "equilibration",
        "equilibration_ps",
        float,
        "PS",
        "length of the MD that relaxes the box (10)",
    ),
    ("platform", "platform", str, "P", "OpenMM platform (a GPU's if one works, else CPU)"),
    ("seed", "seed", int, "N", "seed of all random numbers (1)"),
)
_FLAGS = (
    ("caps", "caps", "put ACE and NME to the ends of peptides"),
    ("replace-modified", "replace_modified", "modified residues become standard ones"),
    ("keep-water", "keep_water", "keep the file's water"),
    ("drop-heterogens", "drop_heterogens", "leave out ligands and ions of the file"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd prepare IN.pdb -o DIR [options]"
    add = parser.add_argument
    add("structure", metavar="IN.pdb", help="PDB or mmCIF file")
    add("-o", "--output", required=True, metavar="DIR", help="directory to make")
    add(
        "--force-field",
        action="append",
        metavar="XML",
        help="repeatable (that of the model that fits)",
    )
    for option, field, kind, metavar, text in _OPTIONS:
        add(f"--{option}", dest=field, type=kind, metavar=metavar, help=text)
    add("--variant", action="append", metavar="A:5=HIP", help="form of a residue; repeatable")
    for option, field, text in _FLAGS:
        add(f"--{option}", dest=field, action="store_true", help=text)
    add("--no-neutralise", action="store_true", help="no ions for the solute's charge")
    add("--hydrogen-mass", metavar="AMU", help=HIDDEN)
    add("--force", action="store_true", help="replace a prepared directory")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..prepare import PrepareSettings, prepare

    given: dict[str, Any] = {field: getattr(arguments, field) for _, field, *_ in _OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {field: getattr(arguments, field) for _, field, _ in _FLAGS}
    if arguments.force_field:
        given["force_field"] = tuple(arguments.force_field)
    if arguments.hydrogen_mass is not None:
        given["hydrogen_mass_amu"] = _mass(arguments.hydrogen_mass)
    record = prepare(
        arguments.structure,
        arguments.output,
        PrepareSettings(
            **given,
            variants=_variants(arguments.variant or ()),
            neutralise=not arguments.no_neutralise,
        ),
        force=arguments.force,
        progress=progress,
    )
    return Outcome(record, _described(record))


def _described(record: dict[str, Any]) -> str:
    solvation, directory = record["solvation"], record["directory"]
    ions = "".join(f", {count} {name}" for name, count in solvation["ions"].items())
    box = record["equilibration"]["box_vectors_nm"]
    solvent = "implicit solvent"
    if box is not None:
        solvent = (
            f"{solvation['waters']} waters{ions}; {solvation['box_shape']} of {box[0][0]:.3f} nm"
        )
    files = record["settings"]["force_field"]
    lines = [
        f"{solvation['solute_atoms']} atoms of solute, {solvent}; "
        f"{', '.join(files) if isinstance(files, list) else files}"
    ]
    lines += [f"note: {note}" for note in record["notes"]]
    fitting = record["models"]["fitting"]
    if fitting:
        lines.append(f"models that fit: {', '.join(fitting)}. Next:")
    else:
        lines.append("no installed model fits:")
        lines += [f"  {name}: {why}" for name, why in record["models"]["others"].items()]
        lines.append("to train one, and run with it:")
    lines += [f"  {step.replace('DIR', directory)}" for step in record["next"]]
    lines.append(f"files are in {directory}")
    return "\n".join(lines)


def _variants(texts: Any) -> dict[str, str]:
    variants = {}
    for text in texts:
        where, equals, form = text.partition("=")
        if not equals or ":" not in where:
            raise ValueError(f"variant must be CHAIN:NUMBER=FORM, as in A:5=HIP, got {text!r}")
        variants[where] = form
    return variants


def _mass(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"hydrogen_mass_amu must be a number, or off, got {text!r}") from None
