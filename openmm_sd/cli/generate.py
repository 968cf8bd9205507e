"""Molecular dynamics of a solute in water, to a data set for training and validation.

Makes long plain runs, and short seeded runs that start all over the molecule's slow torsions. Only
the solute is kept. Stopped or killed, the same command goes on: finished runs are not made again.
Also: --gmx --threads --box-shape --cutoff --water-model --pressure --equilibration --friction
--hydrogen-mass --warm-up --pull --drop --name --save-seconds, see docs/dataset-format.md; --dask.
"""

from __future__ import annotations

import argparse

from .outcome import Outcome
from .progress import Progress

EXAMPLE = (
    "openmm-sd generate ala2.pdb -o ala2.h5 --waters 651 --box 2.7222 --plain 2 --plain-ps 10000 "
    "--seeded 100 --seeded-ps 100"
)

# Help that fits a screen leaves these to the documentation.
HIDDEN = argparse.SUPPRESS

# Option, field of GenerateSettings, type, unit, help.
_OPTIONS = (
    ("engine", "engine", str, "WORD", "openmm, gromacs, or auto, the faster one (openmm)"),
    ("solvent", "solvent", str, "WORD", "explicit or implicit (explicit)"),
    ("water-model", "water_model", str, "NAME", HIDDEN),
    ("waters", "waters", int, "N", "number of water molecules of one copy"),
    ("padding", "padding_nm", float, "NM", "water around the solute instead (1)"),
    ("box", "box_nm", float, "NM", "edge of the cubic box of one copy, with --waters"),
    ("box-shape", "box_shape", str, "WORD", HIDDEN),
    ("pressure", "pressure_bar", float, "BAR", HIDDEN),
    ("equilibration", "equilibration_ps", float, "PS", HIDDEN),
    ("cutoff", "cutoff_nm", float, "NM", HIDDEN),
    ("temperature", "temperature_K", float, "K", "(300)"),
    ("friction", "friction_per_ps", float, "1/PS", HIDDEN),
    ("step", "step_fs", float, "FS", "time step (4)"),
    ("hydrogen-mass", "hydrogen_mass_amu", float, "AMU", HIDDEN),
    ("spacing", "spacing_ps", float, "PS", "time between saved frames (1)"),
    ("copies", "copies", int, "N", "solutes in one box, to fill a GPU (1)"),
    ("plain", "plain_runs", int, "N", "plain runs (1); each time N copies"),
    ("plain-ps", "plain_ps", float, "PS", "length of a plain run (1000)"),
    ("seeded", "seeded_runs", int, "N", "seeded runs (0); each time N copies"),
    ("seeded-ps", "seeded_ps", float, "PS", "length of a seeded run (100)"),
    ("warm-up", "warm_up_ps", float, "PS", HIDDEN),
    ("pull", "pull_ps", float, "PS", HIDDEN),
    ("drop", "drop_ps", float, "PS", HIDDEN),
    ("seed", "seed", int, "N", "of all random numbers (1)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd generate IN.pdb -o DATA.h5 [options]"
    add = parser.add_argument
    add("structure", metavar="IN.pdb", help="the solute alone, with hydrogens")
    add("-o", "--output", required=True, metavar="H5", help="file to write")
    add(
        "--force-field",
        action="append",
        metavar="XML",
        help="may be repeated (amber99sbildn.xml tip3p.xml)",
    )
    for option, field, kind, metavar, text in _OPTIONS:
        add(f"--{option}", dest=field, type=kind, metavar=metavar, help=text)
    add(
        "--torsion",
        action="append",
        metavar="A,B,C,D",
        help="seed over it (all that turn); may be repeated",
    )
    add("--name", metavar="TEXT", help=HIDDEN)
    add("--platform", metavar="P", help="OpenMM platform (a GPU's, else CPU)")
    add("--processes", type=int, metavar="K", help="runs at the same time (one a core, GPU: 1)")
    add("--threads", type=int, metavar="K", help=HIDDEN)
    add("--gmx", metavar="PATH", help=HIDDEN)
    add("--dask", metavar="WHERE", help=HIDDEN)
    add("--minutes", type=float, metavar="M", help="stop then, write what there is")
    add("--save-seconds", type=float, metavar="S", help=HIDDEN)
    add("--force", action="store_true", help="replace an existing data set")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..generate import GenerateSettings, generate

    given = {field: getattr(arguments, field) for _, field, *_ in _OPTIONS}
    if arguments.force_field:
        given["force_field"] = tuple(arguments.force_field)
    settings = GenerateSettings(**{k: v for k, v in given.items() if v is not None})
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
        text += "not complete: the same command goes on\n"
    text += f"{result['path']}, sha256 {result['sha256']}"
    return Outcome(result, text, 130 if result["stopped"] else 0)
