"""Run MD bursts and learned jumps in turn, and write a trajectory.

START is a prepared directory (openmm-sd prepare), or a PDB or mmCIF file of a solvated system with
its box, or of the solute alone, which is completed and gets its water. The same command
resumes a stopped or killed run; with a greater length it extends one. See docs/running.md, and
docs/clusters.md for --copies.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..model.schedules import schedule_text
from ..run.settings import RunSettings
from .options import add_settings, given_of
from .outcome import Outcome
from .progress import Progress

SETTINGS = (RunSettings,)
EXAMPLE = "openmm-sd run ala2.pdb -o run1 --effective-ns 100"

_GROUPS = {
    "length, one of": "effective_ns jumps md_ps",
    "jumps": "purpose lag_ps burst_ps solute max_novelty max_tries candidates settle_steps "
    "settle_ps max_energy_rise max_energy_sigma allow_bias",
    "molecular dynamics": "step_fs temperature_K friction_per_ps pressure_bar seed",
    "the System, where START is not a prepared directory": "force_field water_model waters "
    "padding_nm cutoff_nm equilibration_ps",
    "files": "format every_ps solute_only checkpoint_seconds",
    "machine": "platform precision bridge",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd run START -o DIR [--effective-ns NS] [options]"
    add = parser.add_argument
    add("start", metavar="START", help="where to start from")
    add("-o", "--output", required=True, metavar="DIR", help="directory to write to")
    add("--model", metavar="NAME", help="shipped model or bundle (the shipped one that fits)")
    add(
        *("--reference", "-r"),
        action="append",
        nargs="+",
        metavar="DATA",
        help="MD that the report compares with",
    )
    add("--no-report", action="store_true", help="write no report.html")
    add_settings(parser, RunSettings, _GROUPS)
    several = parser.add_argument_group("several runs")
    several.add_argument(
        "--copies", type=int, metavar="N", help="this many runs with different seeds, merged"
    )
    several.add_argument("--devices", metavar="D,D", help="the GPUs to use (all)")
    several.add_argument(
        "--processes", type=int, metavar="K", help="runs at a time (one a GPU, else one a core)"
    )


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    reference = [path for several in arguments.reference or () for path in several]
    for path in reference:
        # Known before the run, not after it.
        if not Path(path).is_file():
            raise ValueError(f"reference: there is no file {path}")
    settings = RunSettings(**given_of(arguments, RunSettings))
    from ..run import run_ensemble, run_mixed

    if arguments.copies is not None:
        devices = arguments.devices
        merged = run_ensemble(
            *(arguments.model, arguments.start, arguments.output, settings, arguments.copies),
            devices=None if devices is None else devices.split(","),
            processes=arguments.processes,
            reports=not arguments.no_report,
            reference=reference,
            progress=progress,
        )
        return Outcome(merged, _merged(merged, arguments.output), 1 if merged["failed"] else 0)
    for option in ("devices", "processes"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for several runs (--copies N)")
    summary = run_mixed(
        arguments.model, arguments.start, arguments.output, settings, progress=progress
    )
    report = "" if arguments.no_report else _report(arguments, reference, progress)
    plain, mixed = summary["md_ns_per_day"], summary["effective_ns_per_day"]
    ratio = f", {mixed / plain:.3g} times" if plain and mixed else ""
    text = (
        f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted, "
        f"{summary['redraws']} redraws, {summary['fallbacks']} fallbacks\n"
        f"{summary['md_time_ps']:.1f} ps of MD, {summary['effective_time_ps']:.1f} ps effective, "
        f"{summary['frames']} frames\n"
        f"mixed run {_speed(mixed)} effective, plain MD {_speed(plain)}{ratio} "
        f"({summary['platform']}, {summary['bridge']})\n"
        f"{schedule_text(summary['schedule'])}\n"
        + "".join(f"note: {note}\n" for note in summary["notes"])
        + report
        + f"files are in {arguments.output}"
    )
    return Outcome(summary, text)


def _merged(merged: dict[str, Any], folder: str) -> str:
    """Return what people read of several runs."""
    runs = len(merged["runs"])
    populations = "".join(
        f"population of {name}: {one['value']:.4f}"
        + (f" +- {one['error']:.4f}" if one["error"] is not None else "")
        + "\n"
        for name, one in merged["populations"].items()
    )
    return (
        f"{runs} run{'s' if runs > 1 else ''}: {merged['jumps_accepted']} of "
        f"{merged['jumps_tried']} jumps accepted, {merged['redraws']} redraws, "
        f"{merged['fallbacks']} fallbacks\n"
        f"{merged['md_time_ps']:.1f} ps of MD, {merged['effective_time_ps']:.1f} ps effective in "
        f"all, {_speed(merged['effective_ns_per_day'])} effective a run\n"
        + populations
        + "".join(f"{name} failed: {reason}\n" for name, reason in merged["failed"].items())
        + f"files are in {folder}"
    )


def _report(arguments: argparse.Namespace, reference: list[str], progress: Progress) -> str:
    """Write the report; return a line on it."""
    from ..files.atomic import one_line
    from ..run.report.page import write_report

    try:
        found = write_report(
            arguments.output,
            model=arguments.model,
            reference=reference,
            progress=progress,
        )
    except Exception as error:  # the run is done and on the disk, whatever its report stumbles over
        hint = f"openmm-sd report {arguments.output} --debug says where"
        return f"no report: {one_line(error)} ({hint})\n"
    return f"report: {found['headline']} ({found['report']})\n"


def _speed(value: float | None) -> str:
    return "(not measured)" if value is None else f"{value:.1f} ns/day"
