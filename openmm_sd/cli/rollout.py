"""Run many chains of pure Score Dynamics: the molecule alone, no water, in batches.

Writes the trajectory of all chains (one file, step by step), topology.pdb and rollout.json. The
same command goes on where a stopped or killed one was.
"""

from __future__ import annotations

import argparse

from ..rollout.settings import RolloutSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (RolloutSettings,)
EXAMPLE = "openmm-sd rollout ala2-water --output chains --chains 500 --steps 1000 --lag 100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="shipped model, or path of a bundle")
    add("--output", "-o", required=True, metavar="DIR", help="directory to write to")
    add_settings(parser, RolloutSettings, skip="device")
    add("--device", default="auto", metavar="D", help="cpu, cuda, cuda:N or auto (auto)")
    add("--molecule", metavar="NAME", help="which one, of a model that knows several")
    add("--start", metavar="FILE", help="structure or trajectory to start from (the model's own)")
    add("--topology", metavar="FILE", help="topology for a --start file without one")
    add("--format", default="xtc", metavar="F", help="xtc (0.001 nm), or h5 (float32) (xtc)")
    add("--every", type=int, default=1, metavar="K", help="record every K-th step (1)")
    add("--minutes", type=float, metavar="M", help="stop after this time; run again to resume")
    add(
        "--dask",
        metavar="WHERE",
        help="workers: local, how many, or a scheduler (docs/clusters.md)",
    )


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    settings = RolloutSettings(**given_of(arguments, RolloutSettings))
    from ..rollout.driver import run_rollout

    summary = run_rollout(
        arguments.model,
        arguments.output,
        settings,
        start=arguments.start,
        topology=arguments.topology,
        format=arguments.format,
        every=arguments.every,
        minutes=arguments.minutes,
        progress=progress,
        molecule=arguments.molecule,
        dask=arguments.dask,
    )
    rejections = ", ".join(f"{name} {count}" for name, count in summary["rejections"].items())
    text = (
        f"{summary['chains']} chains, {summary['steps_done']} of {summary['steps']} steps of "
        f"{summary['lag_ps']:g} ps\n"
        f"{summary['draws']} draws, failed: {rejections}; {summary['chirality_flips']} chirality "
        f"flips, {summary['fallbacks']} fallbacks\n"
        f"{summary['jumps_per_second']:.0f} jumps/s, {summary['effective_ns_per_day']:.0f} ns/day "
        f"over all chains ({summary['device']})\n"
        + ("" if summary["complete"] else "not finished: run the same command again to resume\n")
        + f"files are in {arguments.output}"
    )
    return Outcome(summary, text)
