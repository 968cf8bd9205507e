"""What bridges cost, and whether two threads, or two workers, do twice as much as one.

    OMP_NUM_THREADS=1 OPENMM_CPU_THREADS=1 python benchmarks/speed.py bridges
    OMP_NUM_THREADS=1 OPENMM_CPU_THREADS=1 python benchmarks/speed.py threads
    python benchmarks/speed.py workers --seconds 16

``openmm-sd benchmark`` measures a whole jump, rollouts and mixed runs.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

# torch before OpenMM, which loads openmm-torch's plugin when it is imported.
import torch  # isort: skip

import numpy as np
import openmm
from shared import JSON, PLATFORM, Command, option, run_command, write_json
from torch import Tensor

from openmm_sd import ScoreModel
from openmm_sd.benchmark.bridged import jump_context
from openmm_sd.benchmark.measure import Contestant, Turn, quartiles, seconds_a_jump, take_turns
from openmm_sd.bridges import BRIDGES, probe
from openmm_sd.generate import GenerateSettings, generate
from openmm_sd.jump.jump import Jump, build_gates, gates_of
from openmm_sd.molecule.topology import pdb_text
from openmm_sd.propagator.kernels import Identity
from openmm_sd.rollout.driver import run_rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.workers.cluster import local_cluster
from openmm_sd.workers.shares import shares


def with_quartiles(values: list[float]) -> list[float]:
    """Median, and first and third quartile."""
    return [statistics.median(values), *quartiles(values)]


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print a line each; what is measured first."""
    for row in rows:
        cells = [
            f"{key} {' '.join(f'{v:.4g}' for v in (value if isinstance(value, list) else [value]))}"
            for key, value in row.items()
            if key != "what"
        ]
        print(f"{row['what']:<32} {'  '.join(cells)}", flush=True)


# -- bridges ---------------------------------------------------------------------------------------


class Empty(torch.nn.Module):
    """Takes what a Jump takes and does nothing."""

    def forward(
        self,
        positions: Tensor,
        box: Tensor,
        number: int,
        attempt: int,
        candidates: int,
        seed: int,
        lag: float,
        max_novelty: float,
    ) -> tuple[Tensor, Tensor]:
        """Return no displacement."""
        return torch.zeros_like(positions), torch.ones([], dtype=torch.float64)


def working_bridges(platform: str) -> list[str]:
    """Bridges that pass a real evaluation."""
    found = {bridge: probe(bridge, platform) for bridge in BRIDGES}
    for bridge, answer in found.items():
        if not answer.ok:
            print(f"{bridge} left out: {answer.detail}", file=sys.stderr)
    return [bridge for bridge, answer in found.items() if answer.ok]


def bridges(options: argparse.Namespace) -> None:
    """The cost of each bridge's machinery, without a model.

    An integrator that does nothing but ask the jump's force, in a System of so many particles in
    which nothing else acts. *Idle* is such a step while no jump is under way; *empty* one with a
    module that returns zeros at once; *identity* one with the whole work of a jump (molecule made
    whole, handedness, gates) and a kernel that moves nothing. The bridges take turns. Printed are
    the wall-clock time of a step, what is left of its CPU time when that of a step without any
    bridge in the same turn is taken off, and the ratios of both to the native bridge's: medians,
    and for ratios the middle half of resampled turns.
    """
    molecule = ScoreModel.load("ala2-water").molecules[0]
    positions, n = molecule.positions, molecule.n_atoms
    jump = Jump(Identity(n), molecule, build_gates(molecule, 1.0, []))
    modules = {"empty": Empty(), "identity": jump}
    names = working_bridges(options.platform)
    contexts = {
        (bridge, kind): jump_context(
            options.platform,
            options.atoms,
            BRIDGES[bridge].create_force(module, range(n), periodic=True),
            positions,
        )
        for bridge in names
        for kind, module in modules.items()
    }
    plain = jump_context(options.platform, options.atoms, None, positions)
    contestants = []
    for kind in ("idle", "empty", "identity"):
        going = kind != "idle"
        bare = f"{kind}, no bridge"
        contestants.append(Contestant(bare, stepping(plain, going, options.steps)))
        for bridge in names:
            context = contexts[bridge, kind if going else "identity"]
            work = stepping(context, going, options.steps)
            jumps = float(options.steps)
            contestants.append(Contestant(f"{kind}, {bridge}", work, jumps, minus=(bare, 1.0)))
    turns = take_turns(contestants, options.repeats, 0.0, lambda what, how_far: None)
    rows = [row_of_bridge(one, contestants, turns, options.steps) for one in contestants]
    print_rows(rows)
    write_json(options.json, {"torch_threads": torch.get_num_threads(), "rows": rows})


def stepping(
    pair: tuple[openmm.Context, openmm.CustomIntegrator], under_way: bool, steps: int
) -> Callable[[], float]:
    """Work for a contestant: some steps, with or without a jump in each."""

    def work() -> float:
        pair[1].setGlobalVariableByName("under_way", float(under_way))
        pair[1].step(steps)
        return 0.0

    return work


def row_of_bridge(
    one: Contestant, all_of_them: list[Contestant], turns: dict[str, list[Turn]], steps: int
) -> dict[str, Any]:
    """A line of the table, in microseconds a step."""
    mine = turns[one.what]
    walls = [turn.seconds / steps for turn in mine]
    row: dict[str, Any] = {"what": one.what, "us_wall": 1e6 * statistics.median(walls)}
    if one.minus is None:
        cpu = [turn.cpu_seconds / steps for turn in mine]
        return row | {"us_cpu": 1e6 * statistics.median(cpu), "repeats": len(mine)}
    extras = seconds_a_jump(one, turns, cpu=True)
    row |= {"us_cpu_of_bridge": 1e6 * statistics.median(extras), "repeats": len(mine)}
    kind, bridge = one.what.split(", ")
    native = next((c for c in all_of_them if c.what == f"{kind}, native"), None)
    if native is not None and bridge != "native":
        row["over_native"] = ratio(extras, seconds_a_jump(native, turns, cpu=True))
        clock = [turn.seconds / steps for turn in turns[native.what]]
        row["wall_over_native"] = ratio(walls, clock)
    return row


def ratio(above: list[float], below: list[float]) -> list[float]:
    """Ratio of two medians, and the middle half of what resampled turns give."""
    rng = np.random.default_rng(1)
    pair = np.array([above, below])
    drawn = np.median(pair[:, rng.integers(pair.shape[1], size=(1000, pair.shape[1]))], axis=2)
    middle = np.median(pair, axis=1)
    low, high = np.quantile(drawn[0] / drawn[1], (0.25, 0.75))
    return [float(middle[0] / middle[1]), float(low), float(high)]


# -- two Contexts in two threads -------------------------------------------------------------------


def threads(options: argparse.Namespace) -> None:
    """Whether two Contexts in two threads run side by side.

    The work of a real model on the Reference platform: jumps a second of one Context, and of two
    Contexts in two threads, in turns, and the same in two processes, which share nothing but the
    machine: threads cannot do better than those. On a machine that does other work too, what counts
    is the figure in which the time that a thread was ready and had no core is taken out (Linux
    tells it); time spent waiting for a lock stays in. Printed are medians, and for ratios the
    quartiles.
    """
    rows = []
    for bridge in working_bridges("Reference"):
        for name, opened in (("threads", in_threads), ("processes", in_processes)):
            with opened(options, bridge) as work:
                rows.append({"what": f"two {name}, {bridge}", **side_by_side(work, options)})
                print_rows(rows[-1:])
    write_json(options.json, {"torch_threads": torch.get_num_threads(), "rows": rows})


#: Jumps in so many Contexts at once: the time that each took, s.
SideBySide = Callable[[int], list[float]]


def side_by_side(work: SideBySide, options: argparse.Namespace) -> dict[str, Any]:
    """Jumps a second of one Context, and of two over one."""
    walls, rates = [], []
    for turn in range(options.turns + 1):
        wall, rate = [], []
        for count in (1, 2):
            began = time.perf_counter()
            times = work(count)
            wall.append(time.perf_counter() - began)
            rate.append(sum(1 / each for each in times))
        if turn:  # the first compiles
            walls.append(wall)
            rates.append(rate)
    return {
        "jumps_per_second_one": options.jumps * statistics.median(one for one, _ in rates),
        "two_over_one": with_quartiles([two / one for one, two in rates]),
        "two_over_one_wall": with_quartiles([2 * one / two for one, two in walls]),
        "turns": len(rates),
    }


def jumping(
    options: argparse.Namespace, bridge: str, seed: int
) -> tuple[openmm.Context, openmm.CustomIntegrator]:
    """Make a Context in which every step is a jump of the model."""
    model = ScoreModel.load(options.model)
    molecule = model.molecules[0]
    jump = Jump(model.propagator, molecule, gates_of(model, molecule), (), model.novelty)
    force = BRIDGES[bridge].create_force(jump, range(molecule.n_atoms), periodic=True)
    pair = jump_context("Reference", options.atoms, force, molecule.positions, seed)
    pair[1].setGlobalVariableByName("under_way", 1.0)
    pair[1].step(4)
    return pair


def without_waiting(integrator: openmm.CustomIntegrator, steps: int) -> float:
    """Wall-clock time of some steps less that for which this thread had no core, s."""

    def waited() -> float:
        return 1e-9 * int(Path("/proc/thread-self/schedstat").read_text().split()[1])

    began, before = time.perf_counter(), waited()
    integrator.step(steps)
    return time.perf_counter() - began - (waited() - before)


@contextlib.contextmanager
def in_threads(options: argparse.Namespace, bridge: str) -> Iterator[SideBySide]:
    """Jump in threads of this process."""
    pair = [jumping(options, bridge, seed) for seed in (1, 2)]
    # The same threads all the time, as the processes: a new one begins on a core that is taken.
    with ThreadPoolExecutor(2) as pool:
        yield lambda count: list(
            pool.map(lambda one: without_waiting(one[1], options.jumps), pair[:count])
        )


@contextlib.contextmanager
def in_processes(options: argparse.Namespace, bridge: str) -> Iterator[SideBySide]:
    """Jump in other processes."""
    spawn = multiprocessing.get_context("spawn")
    workers, pipes = [], []
    for seed in (1, 2):
        mine, its = spawn.Pipe()
        arguments = (options.model, options.atoms, options.jumps, bridge, seed, its)
        workers.append(spawn.Process(target=jump_when_told, args=arguments, daemon=True))
        workers[-1].start()
        pipes.append(mine)

    def work(count: int) -> list[float]:
        for pipe in pipes[:count]:
            pipe.send(True)
        return [pipe.recv() for pipe in pipes[:count]]

    yield work
    for pipe in pipes:
        pipe.send(False)
    for worker in workers:
        worker.join()


def jump_when_told(model: str, atoms: int, jumps: int, bridge: str, seed: int, pipe: Any) -> None:
    """Answer each message with the time that the jumps took; a process's main function."""
    _context, integrator = jumping(argparse.Namespace(model=model, atoms=atoms), bridge, seed)
    while pipe.recv():
        pipe.send(without_waiting(integrator, jumps))


# -- workers ---------------------------------------------------------------------------------------

#: Amount of work -> seconds, on a cluster.
Work = Callable[[Any, int], float]


def workers(options: argparse.Namespace) -> None:
    """How much faster two Dask workers are than one, for rollouts and for data sets.

    Two clusters are up on this machine all the time, one of a worker and one of two, each worker
    with one thread. The same work is given to one of them and to the other in turn; its amount is
    chosen so that one worker takes about so many seconds. What counts is the time from the first
    order to the last frame on the disk, by the clock; the process that hands out and writes shares
    the cores. The last line is the ratio of the times, the median over the repeats. It says
    something on a machine with two idle cores or more; 2 would be perfect.
    """
    began = time.monotonic()
    model = ScoreModel.load("ala2-water")
    environment = {**shares(1, [])[0], "OPENMM_CPU_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["MKL_NUM_THREADS"] = "1"
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        one = opened.enter_context(local_cluster([environment]))
        two = opened.enter_context(local_cluster([environment] * 2))
        works = {
            "rollout": rollout(model, folder, options.chains),
            "generate": data_set(model, folder),
        }
        rows = [
            one_and_two(name, work, one, two, options)
            for name, work in works.items()
            if options.only in (None, name)
        ]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f}, {time.monotonic() - began:.0f} s in all")
    for row in rows:
        print(
            f"{row['what']}: two workers are {row['ratio']:.2f} times as fast as one "
            f"({', '.join(f'{each:.2f}' for each in row['ratios'])})"
        )
    write_json(options.json, {"cores": cores, "load": load, "rows": rows})


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
    pdb.write_text(pdb_text(molecule.to_topology(), molecule.positions), encoding="utf-8")
    settings = GenerateSettings(solvent="implicit", plain_runs=8, warm_up_ps=0.0)

    def work(cluster: Any, ps: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            made = replace(settings, plain_ps=float(ps))
            result = generate(pdb, Path(out) / "d.h5", made, dask=cluster, save_seconds=2.0)
        return result["seconds"]

    return work


def one_and_two(
    name: str, work: Work, one: Any, two: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Time the same work on both clusters in turn."""
    amount = 4
    for cluster in (one, two):
        work(cluster, amount)  # workers load what they need
    while (took := work(one, amount)) < 0.3 * options.seconds:
        amount *= 2
    amount = max(amount, round(amount * options.seconds / took))
    times: list[tuple[float, float]] = []
    for _ in range(options.repeats):
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
        "repeats": options.repeats,
    }


MODEL = option("--model", default="ala2-water")
ATOMS = option("--atoms", type=int, default=2269)
COMMANDS = {
    "bridges": Command(
        bridges,
        [
            PLATFORM,
            ATOMS,
            option("--repeats", type=int, default=60, help="turns"),
            option("--steps", type=int, default=50, help="steps a turn"),
            JSON,
        ],
    ),
    "threads": Command(
        threads,
        [
            MODEL,
            ATOMS,
            option("--turns", type=int, default=15),
            option("--jumps", type=int, default=40, help="jumps a turn"),
            JSON,
        ],
    ),
    "workers": Command(
        workers,
        [
            option("--seconds", type=float, default=16.0, help="of one worker, each time"),
            option("--repeats", type=int, default=3),
            option("--chains", type=int, default=1024),
            option("--only", choices=("rollout", "generate")),
            JSON,
        ],
    ),
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS, threads=None))
