#!/usr/bin/env python3
"""What does the native bridge cost, and do two Contexts in two threads run side by side?

    python benchmarks/native.py [--platform CPU] [--atoms 2269] [--repeats 15] [--json]

First the machinery without a model: an integrator that does nothing but ask the jump's force, in a
System of so many particles in which nothing else acts. *Idle* is such a step while no jump is under
way; *empty* one with a module that returns zeros at once; *identity* one with the whole work of a
jump (molecule made whole, handedness, gates) and a kernel that moves nothing. The bridges take
turns. Printed are wall-clock and CPU time a step, what is left of the CPU time when that of a step
without any bridge is taken off, and the ratio of that to the native bridge's, within each turn.

Then the work of a real model on the Reference platform: jumps a second of one Context, and of two
Contexts in two threads, in turns. On a machine that does other work too, what counts is the figure
in which the time that a thread was ready and had no core is taken out (Linux tells it); time spent
waiting for a lock stays in.

Set OMP_NUM_THREADS=1 and OPENMM_CPU_THREADS=1, so that one Context keeps to one core. Printed are
medians, and for ratios the quartiles too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# torch before OpenMM, which loads openmm-torch's plugin when it is imported.
import torch  # isort: skip

from openmm_sd import ScoreModel
from openmm_sd.benchmark.bridged import jump_context
from openmm_sd.bridges import BRIDGES, probe
from openmm_sd.propagator.jump import Jump, build_gates, gates_of
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
    molecule = ScoreModel.load("ala2-implicit").molecules[0]
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
        bare: dict[str, float] = {}
        for kind in kinds:
            plain[1].setGlobalVariableByName("under_way", float(kind != "idle"))
            bare[kind] = seconds(lambda: plain[1].step(arguments.steps))[1] / arguments.steps
        if turn:  # the first compiles
            nothing.append(bare["idle"])
        for bridge, kind in pairs:
            _, integrator = contexts[bridge, "identity" if kind == "idle" else kind]
            integrator.setGlobalVariableByName("under_way", float(kind != "idle"))
            wall, cpu = seconds(lambda i=integrator: i.step(arguments.steps))
            if turn:
                walls[bridge, kind].append(wall / arguments.steps)
                extras[bridge, kind].append(cpu / arguments.steps - bare[kind])
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
            native = zip(mine, extras["native", kind], strict=True)
            row["over_native"] = quartiles([a / b for a, b in native])
            both = zip(walls[bridge, kind], walls["native", kind], strict=True)
            row["wall_over_native"] = quartiles([a / b for a, b in both])
        rows.append(row)
    return rows


def quartiles(values: list[float]) -> list[float]:
    """Median, and first and third quartile."""
    first, middle, third = statistics.quantiles(values, n=4)
    return [middle, first, third]


def threads(arguments: argparse.Namespace) -> list[dict]:
    """Jumps a second of one Context, and of two in two threads."""
    model = ScoreModel.load(arguments.model)
    molecule = model.molecules[0]
    jump = Jump(model.propagator, molecule, gates_of(model, molecule), (), model.novelty)
    rows = []
    for bridge in arguments.bridges:
        pair = []
        for seed in (1, 2):
            force = BRIDGES[bridge].create_force(jump, range(molecule.n_atoms), periodic=True)
            context, integrator = jump_context(
                "Reference", arguments.atoms, force, molecule.positions, seed
            )
            integrator.setGlobalVariableByName("under_way", 1.0)
            integrator.step(4)
            pair.append((context, integrator))

        def run(index: int, out: list[float], pair=pair) -> None:
            integrator = pair[index][1]
            out.append(without_waiting(lambda: integrator.step(arguments.jumps)))

        walls, rates = [], []
        for _ in range(arguments.repeats):
            one: list[float] = []
            wall_one = seconds(lambda one=one: run(0, one))[0]
            two: list[float] = []

            def both(two=two) -> None:
                workers = [threading.Thread(target=run, args=(index, two)) for index in (0, 1)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()

            wall_two = seconds(both)[0]
            walls.append((wall_one, wall_two))
            rates.append((1 / one[0], sum(1 / t for t in two)))
        rows.append(
            {
                "what": f"two threads, {bridge}",
                "jumps_per_second_one": arguments.jumps * statistics.median(r[0] for r in rates),
                "jumps_per_second_two": arguments.jumps * statistics.median(r[1] for r in rates),
                "two_over_one": quartiles([b / a for a, b in rates]),
                "two_over_one_wall": quartiles([2 * a / b for a, b in walls]),
                "repeats": len(rates),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--atoms", type=int, default=2269)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100, help="steps a turn, without a model")
    parser.add_argument("--jumps", type=int, default=20, help="jumps a turn, with a model")
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
    rows = machinery(arguments) + threads(arguments)
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
