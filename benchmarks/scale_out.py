"""How much faster two Dask workers are than one, for rollouts and for data sets.

    python benchmarks/scale_out.py --seconds 16 --repeats 3

Two clusters are up on this machine all the time, one of a worker and one of two, each worker with
one thread. The same work is given to one of them and to the other in turn; its amount is chosen so
that one worker takes about so many seconds. What counts is the time from the first order to the
last frame on the disk, by the clock; the process that hands out and writes shares the cores. The
last line is the ratio of the times, the median over the repeats. It says something on a machine
with two idle cores or more; 2 would be perfect.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from openmm import app, unit

from openmm_sd import ScoreModel
from openmm_sd.generate import GenerateSettings, generate
from openmm_sd.rollout.driver import run_rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.workers.cluster import local_cluster
from openmm_sd.workers.shares import shares

# Amount of work -> seconds, on a cluster.
Work = Callable[[Any, int], float]


def rollout(model: ScoreModel, folder: Path, chains: int) -> Work:
    """Steps of many chains."""

    def work(cluster: Any, steps: int) -> float:
        settings = RolloutSettings(chains=chains, steps=steps, device="cpu")
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return run_rollout(model, Path(out) / "chains", settings, dask=cluster)["seconds"]

    return work


def data_set(model: ScoreModel, folder: Path) -> Work:
    """Runs of MD in implicit solvent, each of so many ps; pieces of two seconds."""
    molecule = model.molecules[0]
    pdb = folder / "ala2.pdb"
    with open(pdb, "w", encoding="utf-8") as file:
        app.PDBFile.writeFile(molecule.to_topology(), molecule.positions * unit.nanometer, file)
    settings = GenerateSettings(solvent="implicit", plain_runs=8, warm_up_ps=0.0)

    def work(cluster: Any, ps: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            made = replace(settings, plain_ps=float(ps))
            result = generate(pdb, Path(out) / "d.h5", made, dask=cluster, save_seconds=2.0)
        return result["seconds"]

    return work


def measure(name: str, work: Work, one: Any, two: Any, seconds: float, repeats: int) -> dict:
    """Time the same work on both clusters in turn."""
    amount = 4
    for cluster in (one, two):
        work(cluster, amount)  # workers load what they need
    while (took := work(one, amount)) < 0.3 * seconds:
        amount *= 2
    amount = max(amount, round(amount * seconds / took))
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        times.append((work(one, amount), work(two, amount)))
        print(f"{name}: one worker {times[-1][0]:.1f} s, two {times[-1][1]:.1f} s", flush=True)
    ratios = [first / second for first, second in times]
    return {
        "what": name,
        "amount": amount,
        "seconds_one": statistics.median(first for first, _ in times),
        "seconds_two": statistics.median(second for _, second in times),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "repeats": repeats,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=16.0, help="of one worker, each time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chains", type=int, default=1024)
    parser.add_argument("--only", choices=("rollout", "generate"))
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    began = time.monotonic()
    model = ScoreModel.load("ala2-water")
    environment = {**shares(1, [])[0], "OPENMM_CPU_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["MKL_NUM_THREADS"] = "1"
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        one = opened.enter_context(local_cluster([environment]))
        two = opened.enter_context(local_cluster([environment] * 2))
        works = {
            "rollout": rollout(model, folder, arguments.chains),
            "generate": data_set(model, folder),
        }
        rows = [
            measure(name, work, one, two, arguments.seconds, arguments.repeats)
            for name, work in works.items()
            if arguments.only in (None, name)
        ]
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f}, {time.monotonic() - began:.0f} s in all")
    for row in rows:
        print(
            f"{row['what']}: two workers are {row['ratio']:.2f} times as fast as one "
            f"({', '.join(f'{ratio:.2f}' for ratio in row['ratios'])})"
        )
    if arguments.json:
        text = json.dumps({"cores": cores, "load": load, "rows": rows}, indent=1)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
