"""Run MD bursts and learned jumps in turn, and write a trajectory.

START is a prepared directory (openmm-sd prepare), or a PDB or mmCIF file of a solvated system with
its box, or of the solute alone, which is completed and gets its water. The same command goes on
where a stopped or killed run was; with a greater length it extends a run. Also: --friction
--solute --precision --checkpoint-seconds --force-field --water-model --padding --cutoff
--equilibration --settle --max-novelty --max-tries --no-report, see docs/running.md; with --copies:
--devices --processes, see docs/clusters.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .outcome import Outcome
from .progress import Progress

EXAMPLE = "openmm-sd run ala2.pdb -o run1 --effective-ns 100"

# Help that fits a screen leaves these to the documentation.
HIDDEN = argparse.SUPPRESS

# Option, field of RunSettings, type, unit, help.
_OPTIONS = (
    ("effective-ns", "effective_ns", float, "NS", "length: MD time plus lags of accepted jumps"),
    ("jumps", "jumps", int, "N", "length: number of jumps tried (100)"),
    ("md-ps", "md_ps", float, "PS", "length: MD time"),
    ("lag", "lag_ps", float, "PS", "time one jump covers (the model's advice)"),
    ("burst", "burst_ps", float, "PS", "MD time between two jumps (the model's advice)"),
    ("step", "step_fs", float, "FS", "MD step (4; as prepared; 2 for other systems)"),
    ("temperature", "temperature_K", float, "K", "(as prepared, else the model's)"),
    ("friction", "friction_per_ps", float, "1/PS", HIDDEN),
    ("pressure", "pressure_bar", float, "BAR", "constant pressure (constant volume)"),
    ("solute", "solute", str, "WHICH", HIDDEN),
    ("waters", "waters", int, "N", "waters to add to a solute (1 nm around it)"),
    ("padding", "padding_nm", float, "NM", HIDDEN),
    ("water-model", "water_model", str, "NAME", HIDDEN),
    ("cutoff", "cutoff_nm", float, "NM", HIDDEN),
    ("equilibration", "equilibration_ps", float, "PS", HIDDEN),
    ("format", "format", str, "F", "xtc (0.001 nm), dcd or h5 (float32) (xtc)"),
    ("every", "every_ps", float, "PS", "MD time between two frames (that of a burst)"),
    ("platform", "platform", str, "P", "OpenMM platform (a GPU's if one works, else CPU)"),
    ("precision", "precision", str, "P", HIDDEN),
    ("bridge", "bridge", str, "B", "auto, native, pythonforce or torchforce (auto)"),
    ("seed", "seed", int, "N", "seed of all random numbers (1)"),
    ("max-novelty", "max_novelty", str, "SCORE", HIDDEN),
    ("max-tries", "max_tries", int, "N", HIDDEN),
    ("settle", "settle_ps", float, "PS", HIDDEN),
    ("checkpoint-seconds", "checkpoint_seconds", float, "S", HIDDEN),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "openmm-sd run START -o DIR [--effective-ns NS] [options]"
    add = parser.add_argument
    add("start", metavar="START", help="where to start from")
    add("-o", "--output", required=True, metavar="DIR", help="directory to write to")
    add("--model", metavar="NAME", help="shipped model or bundle (the shipped one that fits)")
    for option, field, kind, metavar, text in _OPTIONS:
        add(f"--{option}", dest=field, type=kind, metavar=metavar, help=text)
    add("--solute-only", action="store_true", help="save the solute's atoms only")
    add("--copies", type=int, metavar="N", help="so many runs, with seeds of their own, merged")
    add("--devices", metavar="D,D", help=HIDDEN)
    add("--processes", type=int, metavar="K", help=HIDDEN)
    add("--reference", action="append", metavar="DATA", help="MD that the report compares with")
    add("--no-report", action="store_true", help=HIDDEN)
    add("--force-field", action="append", metavar="XML", help=HIDDEN)


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    from ..run import RunSettings, run_ensemble, run_mixed

    given: dict[str, Any] = {field: getattr(arguments, field) for _, field, *_ in _OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if str(given.get("solute", "")).isdecimal():
        given["solute"] = int(given["solute"])
    if "max_novelty" in given:
        given["max_novelty"] = _limit("max_novelty", given["max_novelty"])
    if arguments.force_field:
        given["force_field"] = tuple(arguments.force_field)
    for path in arguments.reference or ():
        # Known before the run, not after it.
        if not Path(path).is_file():
            raise ValueError(f"reference: there is no file {path}")
    settings = RunSettings(**given, solute_only=arguments.solute_only)
    if arguments.copies is not None:
        devices = arguments.devices
        merged = run_ensemble(
            *(arguments.model, arguments.start, arguments.output, settings, arguments.copies),
            devices=None if devices is None else devices.split(","),
            processes=arguments.processes,
            reports=not arguments.no_report,
            reference=arguments.reference or (),
            progress=progress,
        )
        return Outcome(merged, _merged(merged, arguments.output), 1 if merged["failed"] else 0)
    for option in ("devices", "processes"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for several runs (--copies N)")
    summary = run_mixed(
        arguments.model, arguments.start, arguments.output, settings, progress=progress
    )
    report = "" if arguments.no_report else _report(arguments, progress)
    plain, mixed = summary["md_ns_per_day"], summary["effective_ns_per_day"]
    text = (
        f"{summary['jumps_accepted']} of {summary['jumps_tried']} jumps accepted, "
        f"{summary['redraws']} redraws, {summary['fallbacks']} fallbacks\n"
        f"{summary['md_time_ps']:.1f} ps of MD, {summary['effective_time_ps']:.1f} ps effective, "
        f"{summary['frames']} frames\n"
        f"mixed run {_speed(mixed)} effective, plain MD {_speed(plain)} "
        f"({summary['platform']}, {summary['bridge']})\n"
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


def _report(arguments: argparse.Namespace, progress: Progress) -> str:
    """Write the report; return a line on it."""
    from ..files.atomic import one_line
    from ..run.report.page import write_report

    try:
        found = write_report(
            arguments.output,
            model=arguments.model,
            reference=arguments.reference or (),
            progress=progress,
        )
    except Exception as error:  # the run is done and on the disk, whatever its report stumbles over
        hint = f"openmm-sd report {arguments.output} --debug says where"
        return f"no report: {one_line(error)} ({hint})\n"
    return f"report: {found['headline']} ({found['report']})\n"


def _limit(name: str, text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, or off, got {text!r}") from None


def _speed(value: float | None) -> str:
    return "(not measured)" if value is None else f"{value:.1f} ns/day"
