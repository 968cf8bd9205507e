"""Repair a structure, put it into water and relax it: a directory that is ready to run.

Missing atoms and hydrogens are added; what would be a guess is refused with the option that allows
it. Every decision is in prepared.json. Says which models know the solute. See docs/preparing.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ..prepare.settings import PrepareSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (PrepareSettings,)
EXAMPLE = "openmm-sd prepare ala2.pdb -o ala2"

_GROUPS = {
    "structure": "frame ph caps missing_residues replace_modified keep_water drop_heterogens",
    "solvent": "solvent force_field water_model box_shape padding_nm waters box_nm "
    "ionic_strength_M positive_ion negative_ion neutralise",
    "molecular dynamics": "cutoff_nm hydrogen_mass_amu temperature_K pressure_bar "
    "equilibration_ps platform seed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd prepare (IN.pdb | --sequence ACE-ALA-NME) -o DIR [options]"
    add = parser.add_argument
    add("structure", nargs="?", metavar="IN.pdb", help="PDB or mmCIF file")
    add("--sequence", metavar="SEQ", help="a chain of L amino acids to build instead: ACE-ALA-NME")
    add("-o", "--output", required=True, metavar="DIR", help="directory to make")
    add("--force", action="store_true", help="replace a prepared directory")
    add("--variant", action="append", metavar="A:5=HIP", help="form of a residue; repeatable")
    add_settings(parser, PrepareSettings, _GROUPS, skip="variants")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    if (arguments.structure is None) == (arguments.sequence is None):
        raise ValueError("give a structure or a --sequence")
    given, variants = given_of(arguments, PrepareSettings), _variants(arguments.variant or ())
    settings = PrepareSettings(**given, variants=variants)
    from ..prepare import prepare

    source = arguments.structure
    if source is None:
        from ..prepare.sequence import from_sequence

        source, forms = from_sequence(arguments.sequence)
        settings = replace(settings, variants={**forms, **variants})
    record = prepare(
        source,
        arguments.output,
        settings,
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
