#!/usr/bin/env python3
"""What does the native bridge cost, and do two Contexts in two threads run side by side?

    python benchmarks/native.py [--platform CPU] [--atoms 2269] [--json]

First the machinery without a model: an integrator that does nothing but ask the jump's force, in a
System of so many particles in which nothing else acts. *Idle* is such a step while no jump is under
way; *empty* one with a module that returns zeros at once; *identity* one with the whole work of a
jump (molecule made whole, handedness, gates) and a kernel that moves nothing. The bridges take
turns. Printed are the wall-clock time of a step, what is left of its CPU time when that of a step
without any bridge, made right before, is taken off, and the ratio of that to the native bridge's.

Then the work of a real model on the Reference platform: jumps a second of one Context, and of two
Contexts in two threads, in turns, and the same in two processes, which share nothing but the
machine: threads cannot do better than those. On a machine that does other work too, what counts is
the figure in which the time that a thread was ready and had no core is taken out (Linux tells it);
time spent waiting for a lock stays in.

Set OMP_NUM_THREADS=1 and OPENMM_CPU_THREADS=1, so that one Context keeps to one core. Printed are
medians, and for ratios the middle half of resampled turns or the quartiles too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# torch before OpenMM, which loads openmm-torch's plugin when it is imported.
import torch  # isort: skip

import numpy as np
import openmm

from openmm_sd import ScoreModel
from openmm_sd.benchmark.bridged import jump_context
from openmm_sd.bridges import BRIDGES, probe
from openmm_sd.jump.jump import Jump, build_gates, gates_of
from openmm_sd.propagator.kernels import Identity


class Empty(torch.nn.Module):
    """Takes what a Jump takes and does nothing."""

    def forward(
        self,
        positions: torch.Tensor,
        box: torch.Tensor,
        number: int,
        attempt: int,
        candidates: int,
        seed: int,
        lag: float,
        max_novelty: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return no displacement."""
        return torch.zeros_like(positions), torch.ones([], dtype=torch.float64)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU time that something takes, of all threads."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def without_waiting(work: Callable[[], object]) -> float:
    """Wall-clock time less that for which this thread was ready and had no core, s."""

    def waited() -> float:
        return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text().split()[1])

    began, before = time.perf_counter(), waited()
    work()
    return time.perf_counter() - began - (waited() - before)


def machinery(arguments: argparse.Namespace) -> list[dict]:
    """Cost of a step of each kind through each bridge."""
    molecule = ScoreModel.load("ala2-water").molecules[0]
    n = molecule.n_atoms
    jump = Jump(Identity(n), molecule, build_gates(molecule, 1.0, []))
    modules = {"empty": Empty(), "identity": jump}
    plain = jump_context(arguments.platform, arguments.atoms, None, molecule.positions)
    contexts = {}
    for bridge in arguments.bridges:
        for kind, module in modules.items():
            force = BRIDGES[bridge].create_force(module, range(n), periodic=True)
            contexts[bridge, kind] = jump_context(
                arguments.platform, arguments.atoms, force, molecule.positions
            )
    kinds = ("idle", "empty", "identity")
    pairs = [(bridge, kind) for kind in kinds for bridge in arguments.bridges]
    walls: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    extras: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    nothing = []
    for turn in range(arguments.repeats + 1):
        for bridge, kind in pairs:
            _, integrator = contexts[bridge, "identity" if kind == "idle" else kind]
            # The step without a bridge right beside it: most of what is timed is alike in both.
            bare = 0.0
            for one in (plain[1], integrator):
                one.setGlobalVariableByName("under_way", float(kind != "idle"))
                wall, cpu = seconds(lambda one=one: one.step(arguments.steps))
                if one is plain[1]:
                    bare = cpu
            if turn:  # the first compiles
                nothing.append(bare / arguments.steps)
                walls[bridge, kind].append(wall / arguments.steps)
                extras[bridge, kind].append((cpu - bare) / arguments.steps)
    rows = [
        {"what": "no bridge", "us_cpu": 1e6 * statistics.median(nothing), "repeats": len(nothing)}
    ]
    for bridge, kind in pairs:
        mine = extras[bridge, kind]
        row = {
            "what": f"{kind}, {bridge}",
            "us_wall": 1e6 * statistics.median(walls[bridge, kind]),
            "us_cpu_of_bridge": 1e6 * statistics.median(mine),
            "repeats": len(mine),
        }
        if bridge != "native" and "native" in arguments.bridges:
            row["over_native"] = ratio(mine, extras["native", kind])
            row["wall_over_native"] = ratio(walls[bridge, kind], walls["native", kind])
        rows.append(row)
    return rows


def ratio(above: list[float], below: list[float]) -> list[float]:
    """Ratio of two medians, and the middle half of what resampled turns give."""
    rng = np.random.default_rng(1)
    pair = np.array([above, below])
    drawn = np.median(pair[:, rng.integers(pair.shape[1], size=(1000, pair.shape[1]))], axis=2)
    middle = np.median(pair, axis=1)
    low, high = np.quantile(drawn[0] / drawn[1], (0.25, 0.75))
    return [float(middle[0] / middle[1]), float(low), float(high)]


def quartiles(values: list[float]) -> list[float]:
    """Median, and first and third quartile."""
    first, middle, third = statistics.quantiles(values, n=4)
    return [middle, first, third]


def jumping(
    arguments: argparse.Namespace, bridge: str, seed: int
) -> tuple[openmm.Context, openmm.CustomIntegrator]:
    """Make a Context in which every step is a jump of the model."""
    model = ScoreModel.load(arguments.model)
    molecule = model.molecules[0]
    jump = Jump(model.propagator, molecule, gates_of(model, molecule), (), model.novelty)
    force = BRIDGES[bridge].create_force(jump, range(molecule.n_atoms), periodic=True)
    context, integrator = jump_context(
        "Reference", arguments.atoms, force, molecule.positions, seed
    )
    integrator.setGlobalVariableByName("under_way", 1.0)
    integrator.step(4)
    return context, integrator


def jump_when_told(arguments: argparse.Namespace, bridge: str, seed: int, pipe: Any) -> None:
    """Answer each message with the time that the jumps took; a process's main function."""
    _context, integrator = jumping(arguments, bridge, seed)
    while pipe.recv():
        pipe.send(without_waiting(lambda: integrator.step(arguments.jumps)))


def side_by_side(arguments: argparse.Namespace) -> list[dict]:
    """Jumps a second of one Context, and of two: in two threads, and in two processes."""
    rows = []
    for bridge in arguments.bridges:
        pair = [jumping(arguments, bridge, seed) for seed in (1, 2)]
        workers, pipes = [], []
        for seed in (1, 2):
            mine, its = multiprocessing.get_context("spawn").Pipe()
            workers.append(
                multiprocessing.get_context("spawn").Process(
                    target=jump_when_told, args=(arguments, bridge, seed, its), daemon=True
                )
            )
            workers[-1].start()
            pipes.append(mine)

        # The same threads all the time, as the processes: a new one begins on a core that is taken.
        pool = ThreadPoolExecutor(2)

        def in_threads(count: int, pair=pair, pool=pool) -> list[float]:
            def work(integrator: openmm.CustomIntegrator) -> float:
                return without_waiting(lambda: integrator.step(arguments.jumps))

            return list(pool.map(work, [one[1] for one in pair[:count]]))

        def in_processes(count: int, pipes=pipes) -> list[float]:
            for pipe in pipes[:count]:
                pipe.send(True)
            return [pipe.recv() for pipe in pipes[:count]]

        for name, ways in (("threads", in_threads), ("processes", in_processes)):
            walls, rates = [], []
            for turn in range(arguments.turns + 1):
                times: list[list[float]] = []
                wall = [
                    seconds(lambda n=n, ways=ways, times=times: times.append(ways(n)))[0]
                    for n in (1, 2)
                ]
                if turn:
                    walls.append(wall)
                    rates.append([sum(1 / t for t in each) for each in times])
            rows.append(
                {
                    "what": f"two {name}, {bridge}",
                    "jumps_per_second_one": arguments.jumps
                    * statistics.median(one for one, _ in rates),
                    "two_over_one": quartiles([two / one for one, two in rates]),
                    "two_over_one_wall": quartiles([2 * one / two for one, two in walls]),
                    "turns": len(rates),
                }
            )
        for pipe in pipes:
            pipe.send(False)
        for worker in workers:
            worker.join()
        pool.shutdown()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--atoms", type=int, default=2269)
    parser.add_argument("--repeats", type=int, default=60, help="turns without a model")
    parser.add_argument("--steps", type=int, default=50, help="steps a turn, without a model")
    parser.add_argument("--turns", type=int, default=15, help="turns with a model")
    parser.add_argument("--jumps", type=int, default=40, help="jumps a turn, with a model")
    parser.add_argument("--model", default="ala2-water")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.bridges = []
    for bridge in BRIDGES:
        found = probe(bridge, arguments.platform)
        if found.ok:
            arguments.bridges.append(bridge)
        else:
            print(f"{bridge} left out: {found.detail}", file=sys.stderr)
    rows = machinery(arguments) + side_by_side(arguments)
    if arguments.json:
        print(json.dumps({"torch_threads": torch.get_num_threads(), "rows": rows}))
        return
    for row in rows:
        name = row.pop("what")
        cells = "  ".join(
            f"{key} {' '.join(f'{v:.4g}' for v in (value if isinstance(value, list) else [value]))}"
            for key, value in row.items()
        )
        print(f"{name:<28} {cells}")


if __name__ == "__main__":
    main()
