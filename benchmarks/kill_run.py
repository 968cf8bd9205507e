"""Kill a mixed run of alanine dipeptide in water at random moments, and see what is left of it.

    python benchmarks/kill_run.py --kills 50 --output /somewhere/kills

A run with the model `ala2-water` is started and killed, again and again: mostly at a random time
after new frames have appeared, sometimes while it is being taken up. After each kill the files are
kept as anybody could have read them. When the run has ended, each of those is compared with the
finished files byte for byte. The table says how much was visible before each kill; the last line,
after how many kills anything was lost or altered. Forces on the CPU platform are not the same to
the last bit from run to run, so nothing here could be made again if it were lost.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from openmm import app, unit

from openmm_sd import ScoreModel
from openmm_sd.files.trajectories import xtc_frames

FILES = ("trajectory.xtc", "log.csv")


def whole_frames(data: bytes) -> int:
    """Count the frames of which all bytes are there."""
    for cut in range(len(data) + 1):
        try:
            return len(xtc_frames(data[: len(data) - cut]))
        except ValueError:
            continue
    return 0


def size(out: Path) -> int:
    """Bytes of the log."""
    log = out / "log.csv"
    return log.stat().st_size if log.exists() else 0


def grown(out: Path, before: int) -> bool:
    """Whether the log has become longer."""
    return size(out) > before


def wait(process: subprocess.Popen, done: Callable[[], bool], seconds: float) -> None:
    """Wait until something is done, the process has ended, or time is up."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None and not done():
        time.sleep(0.002)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="directory for the run (a temporary one)")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--most-seconds", type=float, default=3.0, help="from new frames to kill")
    parser.add_argument("--waters", type=int, default=400)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = Path(arguments.output or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    molecule = ScoreModel.load("ala2-water").molecules[0]
    pdb = folder / "ala2.pdb"
    with open(pdb, "w", encoding="utf-8") as file:
        app.PDBFile.writeFile(molecule.to_topology(), molecule.positions * unit.nanometer, file)
    out = folder / "run"
    command = [sys.executable, "-m", "openmm_sd", "run", str(pdb), "-o", str(out)]
    command += ["--waters", str(arguments.waters), "--equilibration", "1", "--burst", "0.2"]
    command += ["--platform", "CPU", "--bridge", "pythonforce", "--checkpoint-seconds", "0.2"]

    def started(md_ps: float) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--md-ps", str(md_ps), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    print(f"seed {arguments.seed}, files in {folder}")
    print("kill  after s  frames  log lines  bytes visible")
    seen: list[dict[str, bytes]] = []
    starting = 1.0
    while len(seen) < arguments.kills:
        process = started(1e6)
        began = time.monotonic()
        before = size(out)
        if seen and rng.random() < 0.2:
            # While the run is being taken up.
            wait(process, lambda: False, rng.uniform(0.0, starting))
        else:
            wait(process, partial(grown, out, before), 600.0)
            starting = time.monotonic() - began
            wait(process, lambda: False, rng.uniform(0.0, arguments.most_seconds))
        waited = time.monotonic() - began
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        if process.returncode != -signal.SIGKILL:
            print(said)
            return 1
        found = {n: (out / n).read_bytes() if (out / n).exists() else b"" for n in FILES}
        seen.append(found)
        lines = found[FILES[1]].count(b"\n")
        print(
            f"{len(seen):4d}  {waited:7.2f}  {whole_frames(found[FILES[0]]):6d}  "
            f"{lines:9d}  {sum(map(len, found.values())):13d}",
            flush=True,
        )
    # A little more than what the checkpoint holds, so that the run ends.
    done = json.loads((out / "summary.json").read_text())["md_time_ps"]
    process = started(done + 2.0)
    _, said = process.communicate()
    if process.returncode != 0:
        print(said)
        return 1
    final = {name: (out / name).read_bytes() for name in FILES}
    summary = json.loads((out / "summary.json").read_text())
    altered = sum(not all(final[n].startswith(found[n]) for n in FILES) for found in seen)
    print(f"finished: {summary['frames']} frames, {summary['parts']} parts")
    print(f"kills after which anything visible was lost or altered: {altered} of {len(seen)}")
    if arguments.output is None:
        shutil.rmtree(folder)
    return int(altered > 0)


if __name__ == "__main__":
    sys.exit(main())
