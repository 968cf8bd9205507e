"""Who makes the runs of a data set: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..system.platforms import md_platform
from ..workers.processes import ProcessPool
from ..workers.shares import cores
from .dynamics import BlownUp, Machine, PieceByPiece, Task, give_up, task_name
from .parts import ATTEMPTS, Chunk, Parts, Snapshot, Standing
from .start import Plan

if TYPE_CHECKING:
    from ..workers.cluster import Made, Where


def local_processes(
    parts: Parts, plan: Plan, machine: Machine, count: int, lock: int
) -> ProcessPool[Task]:
    """Return processes of this machine, which write to the folder themselves.

    They inherit `lock`, the descriptor that says to others that somebody is at work in the folder.
    """
    job = {
        "parts": str(parts.folder.resolve()),
        "settings": asdict(plan.settings),
        "torsions": plan.torsions,
        "goals": None if plan.goals is None else plan.goals.tolist(),
        "machine": asdict(machine),
    }
    threads = dict.fromkeys(("OPENMM_CPU_THREADS", "OMP_NUM_THREADS"), str(machine.threads))
    return ProcessPool(
        "openmm_sd.generate.worker", [threads] * count, lambda task: task, job, keep=(lock,)
    )


class DaskWorkers:
    """Workers of a Dask cluster, which hand in pieces of `save_seconds`; they are written here.

    Without a `platform` each worker chooses its own. `count` is how many a cluster gets that is
    started here.
    """

    def __init__(
        self,
        where: Where,
        parts: Parts,
        plan: Plan,
        platform: str | None,
        save_seconds: float,
        count: int | None,
    ) -> None:
        from ..workers import cluster

        self._parts, self._settings = parts, plan.settings
        self._copies = len(plan.start.solutes)
        self._pool = cluster.Pool(where, PieceMaker(plan, platform, save_seconds), count)
        self._told = False

    @property
    def slots(self) -> int:
        """How many workers there are."""
        return self._pool.slots

    @property
    def busy(self) -> int:
        """How many runs are being made."""
        return self._pool.busy

    def start(self, task: Task) -> None:
        """Begin a run, or go on with it."""
        self._order(task, None)

    def _order(self, task: Task, worker: str | None) -> None:
        standing = self._parts.standing(task_name(*task), self._settings.frames(task[0]))
        self._pool.submit((task, standing), task, worker)

    def events(self, seconds: float) -> list[tuple[Task, dict[str, Any]]]:
        """Wait for pieces, at most so long, write them, and have the next ones made."""
        pieces = self._pool.made(seconds)
        return [(made.tag, event) for made in pieces for event in self._keep(made)]

    def _keep(self, made: Made) -> Iterator[dict[str, Any]]:
        task, name = made.tag, task_name(*made.tag)
        if isinstance(made.result, str):
            yield {"warn": give_up(self._parts, name, made.result)}
            if self._parts.attempt(name) >= ATTEMPTS:
                return
        elif made.result is not None:
            chunk, snapshot = made.result
            first = not self._parts.chunks(name)
            self._parts.save_chunk(name, chunk, snapshot)
            yield {"ps": self._settings.spacing_ps * self._copies * (len(chunk.frames) - first)}
            if self._parts.frames(name) >= self._settings.frames(task[0]):
                self._parts.finish(name)
                return
        if not self._told:
            self._order(task, made.worker)

    def stop(self) -> None:
        """Have what is being made cut short and kept."""
        self._told = True
        self._pool.stop()

    def close(self) -> None:
        """Leave the cluster."""
        self._pool.close()


class PieceMaker:
    """Makes pieces of runs on a worker.

    The run of the last piece is kept, so that its next piece goes on as if it had not been cut.
    """

    def __init__(self, plan: Plan, platform: str | None, save_seconds: float) -> None:
        self._plan, self._platform, self._save_seconds = plan, platform, save_seconds
        self._machine: Machine | None = None
        self._run: PieceByPiece | None = None
        self._pieces: Iterator[tuple[Chunk, Snapshot]] | None = None

    def work(
        self, order: tuple[Task, Standing], stopped: Callable[[], bool]
    ) -> tuple[Chunk, Snapshot] | str | None:
        """Make the next piece of a run; return why not if it blew up, None if it was stopped."""
        task, standing = order
        run = self._run
        at = run and (run.task, run.attempt, run.chunks)
        if at != (task_name(*task), standing.attempt, standing.chunks):
            # One Context at a time: those of the Reference platform share their random numbers.
            self._run = self._pieces = None
            run = PieceByPiece(self._plan, task, self._here(), standing)
            self._run, self._pieces = run, run.pieces(stopped, lambda ps: None)
        assert self._pieces is not None
        try:
            return next(self._pieces, None)
        except BlownUp as error:
            self._run = self._pieces = None
            return str(error)

    def _here(self) -> Machine:
        """Return what this worker has."""
        if self._machine is None:
            threads = os.environ.get("OPENMM_CPU_THREADS") or cores()
            platform = md_platform(self._platform, self._plan.settings.solvent == "implicit")
            self._machine = Machine(platform, int(threads), self._save_seconds)
        return self._machine
