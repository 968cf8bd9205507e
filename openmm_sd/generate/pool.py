"""Who makes the runs of a data set: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from ..molecule.torsions import TorsionAtoms
from ..workers.processes import Helper
from .dynamics import BlownUp, Machine, PieceByPiece, give_up, task_name
from .parts import ATTEMPTS, Chunk, Parts, Snapshot, Standing
from .settings import GenerateSettings
from .start import Start

if TYPE_CHECKING:
    from ..workers.cluster import Made, Where

#: A run: its kind and number.
Task = tuple[str, int]


class Pool(Protocol):
    """Makes several runs at the same time.

    Whatever it is made of, pieces of runs end up in the same folder. Events are dicts:
    ``{"ps": ...}`` (made since the last such event), ``{"warn": ...}``, ``{"lost": task}`` (who
    made it is gone; the run can be started again), ``{"error": ..., "kind": ...}``.
    """

    @property
    def slots(self) -> int:
        """How many runs can be made at the same time."""

    @property
    def busy(self) -> int:
        """How many runs are being made."""

    def start(self, task: Task) -> None:
        """Begin a run, or go on with it."""

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for events, at most so long."""

    def stop(self) -> None:
        """Have what is being made cut short and kept."""

    def close(self) -> None:
        """End all."""


class Processes:
    """Processes of this machine, which write to the folder themselves.

    Parameters
    ----------
    parts : Parts
        The folder.
    settings, torsions
        What is made.
    machine : Machine
        What each process has.
    count : int
        How many there are.
    lock : int
        Descriptor that says to others that somebody is at work in the folder.
    """

    def __init__(
        self,
        parts: Parts,
        settings: GenerateSettings,
        torsions: list[TorsionAtoms],
        machine: Machine,
        count: int,
        lock: int,
    ) -> None:
        self.slots = count
        self._lock = lock
        self._job = {
            "parts": str(parts.folder.resolve()),
            "settings": asdict(settings),
            "torsions": torsions,
            "machine": asdict(machine),
        }
        self._threads = str(machine.threads)
        self._answers: queue.Queue[tuple[Helper, dict[str, Any] | None]] = queue.Queue()
        self._idle: list[Helper] = []
        self._at: dict[Helper, Task] = {}
        self._told = False

    @property
    def busy(self) -> int:
        """How many runs are being made."""
        return len(self._at)

    @property
    def pids(self) -> dict[Task, int]:
        """The process that makes each run."""
        return {task: helper.pid for helper, task in self._at.items()}

    def start(self, task: Task) -> None:
        """Begin a run, or go on with it."""
        if not self._idle:
            environment = {
                name: self._threads for name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS")
            }
            helper = Helper(
                "openmm_sd.generate.worker", self._answers, environment, keep=(self._lock,)
            )
            helper.send(self._job)
            self._idle.append(helper)
        helper = self._idle.pop()
        self._at[helper] = task
        helper.send(task)

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for an event, at most so long."""
        try:
            helper, answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return []
        if answer is None:
            helper.wait()
            if helper in self._idle:
                self._idle.remove(helper)
            task = self._at.pop(helper, None)
            return [] if task is None or self._told else [{"lost": task}]
        if "error" in answer:
            self._at.pop(helper, None)
        elif "done" in answer:
            del self._at[helper]
            self._idle.append(helper)
        return [answer]

    def stop(self) -> None:
        """Have what is being made cut short and kept."""
        self._told = True
        for helper in self._at:
            helper.stop()

    def close(self) -> None:
        """End all."""
        for helper in self._at:
            helper.stop()
        for helper in (*self._at, *self._idle):
            helper.dismiss()
        for helper in (*self._at, *self._idle):
            helper.wait()


class DaskWorkers:
    """Workers of a Dask cluster, which hand in their pieces; they are written here.

    Parameters
    ----------
    where : Where
        Which cluster.
    parts : Parts
        The folder.
    start : Start
        Where every run starts.
    settings, torsions
        What is made.
    platform : str, optional
        OpenMM platform of all workers; by default each chooses for itself.
    save_seconds : float
        Length of a piece, s.
    count : int, optional
        How many workers a cluster gets that is started here.
    """

    def __init__(
        self,
        where: Where,
        parts: Parts,
        start: Start,
        settings: GenerateSettings,
        torsions: list[TorsionAtoms],
        platform: str | None,
        save_seconds: float,
        count: int | None,
    ) -> None:
        from ..workers import cluster

        self._parts, self._settings = parts, settings
        self._copies = len(start.solutes)
        job = PieceMaker(start, settings, torsions, platform, save_seconds)
        self._pool = cluster.Pool(where, job, count)
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
        self._pool.submit((*task, standing), task, worker)

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for pieces, at most so long, write them, and have the next ones made."""
        return [event for made in self._pool.made(seconds) for event in self._keep(made)]

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

    Parameters
    ----------
    start, settings, torsions, platform, save_seconds
        As for `DaskWorkers`.
    """

    def __init__(
        self,
        start: Start,
        settings: GenerateSettings,
        torsions: list[TorsionAtoms],
        platform: str | None,
        save_seconds: float,
    ) -> None:
        self._start, self._settings, self._torsions = start, settings, torsions
        self._platform, self._save_seconds = platform, save_seconds
        self._machine: Machine | None = None
        self._run: PieceByPiece | None = None
        self._pieces: Iterator[tuple[Chunk, Snapshot]] | None = None

    def work(
        self, order: tuple[str, int, Standing], stopped: Callable[[], bool]
    ) -> tuple[Chunk, Snapshot] | str | None:
        """Make the next piece of a run; return why not if it blew up, None if it was stopped."""
        kind, index, standing = order
        run = self._run
        at = run and (run.kind, run.index, run.attempt, run.chunks)
        if at != (kind, index, standing.attempt, standing.chunks):
            # One Context at a time: those of the Reference platform share their random numbers.
            self._run = self._pieces = None
            run = PieceByPiece(
                *(self._start, self._settings, self._torsions, kind, index),
                *(self._here(), standing),
            )
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
            from .driver import chosen_platform

            threads = os.environ.get("OPENMM_CPU_THREADS") or len(os.sched_getaffinity(0))
            platform = chosen_platform(self._platform, self._settings)
            self._machine = Machine(platform, int(threads), self._save_seconds)
        return self._machine
