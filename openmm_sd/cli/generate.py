"""Molecular dynamics of a solute in water, to a data set for training and validation.

Makes long plain runs, and short seeded runs that start all over the molecule's slow torsions. Only
the solute is kept. After a stop or kill the same command resumes: finished runs are kept.
See docs/dataset-format.md.
"""

from __future__ import annotations

import argparse

from ..generate.settings import GenerateSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (GenerateSettings,)
EXAMPLE = (
    "openmm-sd generate ala2.pdb -o ala2.h5 --waters 651 --box 2.7222 --plain 2 --plain-ps 10000 "
    "--seeded 100 --seeded-ps 100"
)

_GROUPS = {
    "how much": "plain_runs plain_ps seeded_runs seeded_ps copies spacing_ps warm_up_ps pull_ps "
    "drop_ps",
    "system": "solvent force_field water_model waters padding_nm box_nm box_shape pressure_bar "
    "equilibration_ps",
    "molecular dynamics": "engine cutoff_nm temperature_K friction_per_ps step_fs "
    "hydrogen_mass_amu seed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd generate IN.pdb -o DATA.h5 [options]"
    add = parser.add_argument
    add("structure", metavar="IN.pdb", help="the solute alone, with hydrogens")
    add("-o", "--output", required=True, metavar="H5", help="file to write")
    add(
        "--torsion",
        action="append",
        metavar="A,B,C,D",
        help="seed over it (all that turn); repeatable",
    )
    add("--name", metavar="TEXT", help="what people call the molecule (its residues)")
    add("--minutes", type=float, metavar="M", help="stop then, write what there is")
    add("--force", action="store_true", help="replace an existing data set")
    add_settings(parser, GenerateSettings, _GROUPS)
    machine = parser.add_argument_group("machine").add_argument
    machine("--platform", metavar="P", help="OpenMM platform (a GPU's, else CPU)")
    machine("--processes", type=int, metavar="K", help="runs at a time (one a core, GPU: 1)")
    machine("--threads", type=int, metavar="K", help="threads of a run (what the processes leave)")
    machine("--gmx", metavar="PATH", help="GROMACS's program (gmx or gmx_mpi on the PATH)")
    machine("--dask", metavar="WHERE", help="workers: local, how many, or a scheduler")
    machine("--save-seconds", type=float, metavar="S", help="time between two saves of a run")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = GenerateSettings(**given_of(arguments, GenerateSettings))
    from ..generate import generate

    result = generate(
        arguments.structure,
        arguments.output,
        settings,
        torsions=arguments.torsion or (),
        name=arguments.name,
        platform=arguments.platform,
        processes=arguments.processes,
        threads=arguments.threads,
        gmx=arguments.gmx,
        minutes=arguments.minutes,
        **({} if arguments.save_seconds is None else {"save_seconds": arguments.save_seconds}),
        force=arguments.force,
        progress=progress,
        dask=arguments.dask,
    )
    text = (
        f"{result['molecule']} ({result['formula']}), {result['atoms']} atoms: "
        f"{result['runs']} runs, {result['frames']} frames, {result['ns']:.3f} ns\n"
    )
    if result["ns_per_day"] is not None:
        text += (
            f"{result['ns_per_day']:.1f} ns/day ({result['platform']}, {result['processes']} "
            f"process{'es' if result['processes'] > 1 else ''}, {result['seconds']:.0f} s)\n"
        )
    if result["left_out"]:
        text += f"left out, because they blew up twice: {', '.join(result['left_out'])}\n"
    if not result["complete"]:
        text += "not complete: the same command resumes it\n"
    text += f"{result['path']}, sha256 {result['sha256']}"
    return Outcome(result, text, 130 if result["stopped"] else 0)
