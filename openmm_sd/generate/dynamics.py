"""One run: from its start, or from where it was stopped, to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..data.dataset import quantise
from ..files.atomic import one_line
from ..molecule.frames import FrameCheck
from ..system.structure import nanometers
from .parts import ATTEMPTS, Chunk, Parts, Snapshot, Standing
from .seeding import own_seed
from .start import PULL, Plan, make_context

#: The pull grows in stages, so that it turns the torsions without tearing at the molecule; the last
#: holds them within about 8 degrees at 300 K. kJ/mol.
PULL_KJ: Final = (20.0, 60.0, 120.0)
# A piece is written at the latest when it has so many frames, whatever the clock says.
_CHUNK_FRAMES: Final = 5000

#: A run: its kind and number.
Task = tuple[str, int]


class BlownUp(Exception):
    """A run left what is physically possible."""


@dataclass(frozen=True)
class Machine:
    """Where runs are made: an OpenMM platform, and how many threads a run gets on CPUs.

    A piece of a run is written every `save_seconds`. `gmx` is the program of GROMACS.
    """

    platform: str
    threads: int
    save_seconds: float = 30.0
    gmx: str | None = None


def task_name(kind: str, index: int) -> str:
    """Return the name of a run's files, with all its copies."""
    return f"{kind}-{index:05d}"


def make_run(
    parts: Parts,
    plan: Plan,
    task: Task,
    machine: Machine,
    stopped: Callable[[], bool],
    tell: Callable[[float], None],
    warn: Callable[[str], None],
) -> bool:
    """Make a run, or what is missing of it; return whether nothing is left to do.

    `stopped` is asked after every frame; the piece so far is kept. `tell` gets the ps made since
    the last call, of all copies together, and `warn` what went wrong.
    """
    name = task_name(*task)

    def attempt() -> bool:
        standing = parts.standing(name, plan.settings.frames(task[0]))
        run = PieceByPiece(plan, task, machine, standing)
        with closing(run.pieces(stopped, tell)) as pieces:
            for chunk, snapshot in pieces:
                parts.save_chunk(name, chunk, snapshot)
        if run.complete:
            parts.finish(name)
        return run.complete

    return repeated(attempt, parts, name, warn)


def repeated(
    attempt: Callable[[], bool], parts: Parts, name: str, warn: Callable[[str], None]
) -> bool:
    """Attempt a run, and again where it blows up; return whether nothing is left to do."""
    while parts.attempt(name) < ATTEMPTS:
        try:
            return attempt()
        except BlownUp as error:
            warn(give_up(parts, name, str(error)))
    return True


def give_up(parts: Parts, name: str, reason: str) -> str:
    """Note that a run has blown up, and return what to say of it."""
    parts.fail(name, reason)
    again = parts.attempt(name) < ATTEMPTS
    return f"{name}: {reason}; {'it is made again with another seed' if again else 'left out'}"


class PieceByPiece:
    """A run on its way, from where it stands to its end."""

    def __init__(self, plan: Plan, task: Task, machine: Machine, standing: Standing) -> None:
        self.start, self.settings = plan.start, plan.settings
        self.kind, self.index = task
        self.task, self.machine = task_name(*task), machine
        self.attempt, self.chunks = standing.attempt, standing.chunks
        self._done, self._snapshot = standing.frames, standing.snapshot
        self.check = FrameCheck(plan.start.molecule)
        self.thermostat_seed = 0
        self.goals: NDArray[np.float64] | None = None
        if self.kind == "seeded":
            self.goals = plan.points(self.index)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self._done >= self.settings.frames(self.kind)

    def _seed(self, purpose: str) -> int:
        words = (self.kind, self.index, self.attempt, self.chunks, purpose)
        return own_seed(self.settings.seed, *words)

    def pieces(
        self, stopped: Callable[[], bool], tell: Callable[[float], None]
    ) -> Generator[tuple[Chunk, Snapshot], None, None]:
        """Make what is missing: yield pieces, each with where the run goes on after it.

        `stopped` is asked after every frame; the piece so far is the last one then. `tell` gets the
        ps made since the last call, of all copies together. BlownUp if the run leaves what is
        physically possible.
        """
        settings = self.settings
        total = settings.frames(self.kind)
        if self.complete or stopped():
            return
        system = openmm.XmlSerializer.clone(self.start.system)
        if self.goals is None:
            _remove_pull(system)
        self.thermostat_seed = self._seed("thermostat")
        context = make_context(
            system, settings, self.machine.platform, self.machine.threads, self.thermostat_seed
        )
        try:
            # The first frame of a new run is its start; a resumed one has that already.
            first = self._snapshot is None
            if self._snapshot is None:
                if not self._begin(context, stopped):
                    return
            else:
                _restore(context, self._snapshot)
            while not self.complete:
                left = total - self._done
                frames, steps, seconds = self._frames(context, left, first, stopped, tell)
                if len(frames):
                    piece = self._piece(context, frames, steps, seconds)
                    self._done += len(frames)
                    self.chunks += 1
                    yield piece
                first = False
                if not self.complete and stopped():
                    return
        except openmm.OpenMMException as error:
            raise BlownUp(one_line(error)) from error
        finally:
            # Contexts of the Reference platform share their random numbers: only one at a time.
            del context

    def _begin(self, context: openmm.Context, stopped: Callable[[], bool]) -> bool:
        """Go to where the first frame is; False if stopped on the way."""
        settings = self.settings
        if self.start.box is not None:
            context.setPeriodicBoxVectors(*self.start.box)
        context.setPositions(self.start.positions)
        context.setVelocitiesToTemperature(settings.temperature_K, self._seed("first velocities"))
        if self.goals is None:
            return self._step(context, settings.steps(settings.warm_up_ps), stopped)
        force = next(f for f in context.getSystem().getForces() if f.getName() == PULL)
        for k, target in enumerate(self.goals.reshape(-1)):
            atoms = force.getTorsionParameters(k)[:4]
            force.setTorsionParameters(k, *atoms, [float(target)])
        force.updateParametersInContext(context)
        for strength in PULL_KJ:
            context.setParameter(PULL, strength)
            if not self._step(context, settings.steps(settings.pull_ps / len(PULL_KJ)), stopped):
                return False
        context.setParameter(PULL, 0.0)
        context.setVelocitiesToTemperature(settings.temperature_K, self._seed("velocities"))
        return self._step(context, settings.steps(settings.drop_ps), stopped)

    def _step(self, context: openmm.Context, steps: int, stopped: Callable[[], bool]) -> bool:
        while steps > 0:
            some = min(steps, 1000)
            context.getIntegrator().step(some)
            steps -= some
            if stopped():
                return False
        return True

    def _frames(
        self,
        context: openmm.Context,
        most: int,
        first: bool,
        stopped: Callable[[], bool],
        tell: Callable[[float], None],
    ) -> tuple[NDArray[np.float64], int, float]:
        """Return frames (T, copies, N, 3) until it is time to save, with the steps and seconds."""
        integrator, settings = context.getIntegrator(), self.settings
        began, steps = time.monotonic(), 0
        frames: list[NDArray[np.float64]] = []
        while len(frames) < min(most, _CHUNK_FRAMES):
            if not (first and not frames):
                integrator.step(settings.stride)
                steps += settings.stride
                tell(settings.spacing_ps * len(self.start.solutes))
            state = context.getState(positions=True)
            frames.append(nanometers(state.getPositions(asNumpy=True))[self.start.solutes])
            if not np.isfinite(frames[-1]).all():
                raise BlownUp("positions are not finite")
            if stopped() or time.monotonic() - began > self.machine.save_seconds:
                break
        return np.array(frames), steps, time.monotonic() - began

    def _piece(
        self, context: openmm.Context, frames: NDArray[np.float64], steps: int, seconds: float
    ) -> tuple[Chunk, Snapshot]:
        copies = frames.shape[1]
        stored, relabelled = [], 0
        try:
            for k in range(copies):
                checked, changed = self.check(self.check.whole(frames[:, k], None))
                stored.append(quantise(checked))
                relabelled += changed
        except ValueError as error:
            raise BlownUp(str(error)) from error
        state = context.getState(positions=True, velocities=True)
        x = nanometers(state.getPositions(asNumpy=True))
        v = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
        if not (np.isfinite(x).all() and np.isfinite(v).all()):
            raise BlownUp("positions or velocities are not finite")
        meta: dict[str, Any] = {
            "seed": self.thermostat_seed,
            "steps": steps,
            "seconds": round(seconds, 3),
            "platform": self.machine.platform,
            "relabelled": relabelled,
        }
        if self.goals is not None:
            meta["start_deg"] = np.round(np.rad2deg(self.goals), 3).tolist()
        return (
            Chunk(np.stack(stored, axis=1), meta),
            Snapshot(x, np.array(v), self.start.box),
        )


def _restore(context: openmm.Context, snapshot: Snapshot) -> None:
    if snapshot.box is not None:
        context.setPeriodicBoxVectors(*snapshot.box)
    context.setPositions(snapshot.positions)
    context.setVelocities(snapshot.velocities)


def _remove_pull(system: openmm.System) -> None:
    for k, force in enumerate(system.getForces()):
        if force.getName() == PULL:
            system.removeForce(k)
            return
