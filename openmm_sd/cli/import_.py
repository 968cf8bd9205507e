"""A data set for training and validation from trajectories of any MD engine.

Reads what mdtraj reads (XTC, TRR, DCD, NetCDF, PDB, ...), takes the solute out, makes it whole,
checks every frame, and writes one compact file. Each trajectory becomes a run.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..data.settings import ImportSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (ImportSettings,)
EXAMPLE = "openmm-sd import run1.xtc run2.xtc --topology system.pdb -o data.h5 --temperature 300"

# Option, type, unit or example, help: what the file's provenance says of the simulations.
_PROVENANCE = (
    ("temperature", "temperature_K", float, "K", "temperature of the simulations"),
    ("friction", "friction_per_ps", float, "1/PS", "friction of the thermostat"),
    ("step-fs", "step_fs", float, "FS", "time step"),
    ("hydrogen-mass", "hydrogen_mass_amu", float, "AMU", "mass of the solute's hydrogens"),
    ("cutoff", "cutoff_nm", float, "NM", "cutoff of nonbonded interactions"),
    ("water", "water", str, "TEXT", "water model, or the implicit solvent"),
    ("constraints", "constraints", str, "TEXT", "e.g. HBonds"),
    ("integrator", "integrator", str, "TEXT", "e.g. LangevinMiddleIntegrator"),
    ("engine", "engine", str, "TEXT", "program and version"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd import TRAJ [TRAJ ...] -o DATA.h5 [--topology PDB] [options]"
    add = parser.add_argument
    add("trajectories", nargs="+", metavar="TRAJ", help="trajectories, a run each")
    add("--topology", metavar="PDB", help="the whole system, with bonds (that of the first TRAJ)")
    add("-o", "--output", required=True, metavar="H5", help="file to write")
    add_settings(parser, ImportSettings)
    add("--append", action="store_true", help="add to an existing data set")
    add("--force", action="store_true", help="replace an existing file")
    group = parser.add_argument_group("what the file says about the simulations")
    for option, key, kind, metavar, text in _PROVENANCE:
        also = ["--step"] if option == "step-fs" else []
        group.add_argument(f"--{option}", *also, dest=key, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--force-field", action="append", metavar="TEXT", help="force field; may be repeated"
    )


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    provenance: dict[str, Any] = {
        key: getattr(arguments, key)
        for key in ("force_field", *(key for _, key, *_ in _PROVENANCE))
        if getattr(arguments, key) is not None
    }
    settings = ImportSettings(provenance=provenance, **given_of(arguments, ImportSettings))
    from ..data.imported import import_trajectories

    result = import_trajectories(
        arguments.trajectories,
        arguments.topology,
        arguments.output,
        settings,
        append=arguments.append,
        force=arguments.force,
        progress=progress,
    )
    text = (
        f"{result['molecule']} ({result['formula']}), {result['atoms']} atoms: "
        f"{result['runs']} runs, {result['frames']} frames, {result['ns']:.3f} ns\n"
        f"{result['path']}, sha256 {result['sha256']}"
    )
    if "temperature_K" not in result["provenance"]:
        text += "\nnote: the file does not say at which temperature it was made (--temperature)"
    return Outcome(result, text)
