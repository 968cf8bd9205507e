"""A day on a GPU in one command: tests, benchmark, precisions, data generation; one report.

    python benchmarks/gpu_check.py gpu-check.md
    python benchmarks/gpu_check.py dry.md --dry-run       # a CPU, tiny sizes, seconds

Every step is a process of its own with a limit of time, so that one that fails or hangs leaves the
others alone. The report, Markdown, has a line a step and under it the end of what each printed; it
is written anew after every step. The exit code is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openmm_sd import ScoreModel
from openmm_sd.molecule.topology import pdb_text

ROOT = Path(__file__).resolve().parents[1]
#: Lines of a step's output that the report keeps.
KEPT_LINES = 200
PROGRAM = (sys.executable, "-m", "openmm_sd")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q")


@dataclass(frozen=True)
class Step:
    """A process, and how long it may take, s."""

    name: str
    command: tuple[str, ...]
    limit: float = 1800.0


def program(words: str, folder: Path) -> tuple[str, ...]:
    """Return a command of ``openmm-sd``; DIR in its words is the folder."""
    return *PROGRAM, *(word.replace("DIR", str(folder)) for word in f"{words} --quiet".split())


def steps(folder: Path) -> list[Step]:
    """What a GPU is asked."""
    run = "run DIR/ala2.pdb --platform CUDA --jumps 50 --waters 651"
    asked = {
        "benchmark": "benchmark --platform CUDA --device cuda",
        **{
            f"mixed run, {precision} precision": f"{run} -o DIR/{precision} --precision {precision}"
            for precision in ("single", "mixed", "double")
        },
        "chains": "rollout ala2-water -o DIR/chains --device cuda --chains 65536 --batch 4096 "
        "--steps 20",
        "data": "generate DIR/ala2.pdb -o DIR/data.h5 --platform CUDA --plain-ps 50 --copies 8 "
        "--waters 300",
        "training in bfloat16": "train DIR/data.h5 -o DIR/new.safetensors --minutes 2 "
        "--device cuda --bf16",
    }
    return [
        Step("the machine", ("nvidia-smi",), 60.0),
        Step("what works", program("doctor", folder)),
        # Those that are marked for a GPU, and those of every platform and bridge there is.
        Step("tests of CUDA", (*PYTEST, "tests", "-k", "CUDA or gpu"), 7200.0),
        *(Step(name, program(words, folder), 3600.0) for name, words in asked.items()),
    ]


def dry_steps(folder: Path) -> list[Step]:
    """The same kinds of steps on a CPU, as small as they go: whether the commands are right."""
    small = "--waters 240 --equilibration 0 --platform CPU"
    asked = {
        "what works": "models",
        "benchmark": "benchmark --only atoms --atoms 11 --seconds 0.02 --repeats 1",
        "mixed run": f"run DIR/ala2.pdb -o DIR/run --jumps 1 --burst 0.02 --settle 0.02 "
        f"--no-report {small}",
        "data": f"generate DIR/ala2.pdb -o DIR/data.h5 --plain-ps 1 --warm-up 0 --processes 1 "
        f"{small}",
    }
    return [
        Step("tests of CUDA", (*PYTEST, "tests/test_native.py", "-k", "gpu"), 300.0),
        *(Step(name, program(words, folder), 300.0) for name, words in asked.items()),
    ]


def run(step: Step) -> tuple[str, float, str]:
    """Do a step: how it went, seconds, and what it printed."""
    began = time.monotonic()
    # Nothing is looked for elsewhere: what is needed is here.
    environment = {**os.environ, "PIP_NO_INDEX": "1", "OMP_WAIT_POLICY": "passive"}
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=step.limit,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return f"no end after {step.limit:g} s", time.monotonic() - began, text
    except OSError as error:
        return f"failed: {error}", time.monotonic() - began, ""
    how = "done" if done.returncode == 0 else f"failed: exit code {done.returncode}"
    return how, time.monotonic() - began, done.stdout


def report(file: Path, found: Sequence[tuple[Step, str, float, str]], left: int) -> None:
    """Write what is known so far."""
    lines = [
        "# GPU check",
        "",
        f"{platform.platform()}, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d %H:%M')}" + (f"; {left} steps to go" if left else ""),
        "",
        "| step | how it went | s |",
        "|---|---|---|",
        *(f"| {step.name} | {how} | {seconds:.0f} |" for step, how, seconds, _ in found),
    ]
    for step, _, _, text in found:
        words = " ".join(Path(word).name if os.sep in word else word for word in step.command)
        kept = text.splitlines()[-KEPT_LINES:]
        lines += ["", f"## {step.name}", "", f"`{words}`", "", "```", *kept, "```"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Do all steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="file for the report")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU")
    options = parser.parse_args()
    found: list[tuple[Step, str, float, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        molecule = ScoreModel.load("ala2-water").molecules[0]
        text = pdb_text(molecule.to_topology(), molecule.positions)
        (folder / "ala2.pdb").write_text(text)
        todo = (dry_steps if options.dry_run else steps)(folder)
        for number, step in enumerate(todo, start=1):
            print(f"{number} of {len(todo)}: {step.name}", flush=True)
            found.append((step, *run(step)))
            print(f"  {found[-1][1]}, {found[-1][2]:.0f} s", flush=True)
            report(options.report, found, len(todo) - number)
    print(f"the report is {options.report}")
    return int(any(how != "done" for _, how, _, _ in found))


if __name__ == "__main__":
    sys.exit(main())
