"""One run: from its start, or from where it was stopped, to its end."""

from __future__ import annotations

import time
import zlib
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
from ..molecule.torsions import TorsionAtoms
from .parts import ATTEMPTS, Chunk, Parts, Snapshot, Standing
from .seeding import spread_points
from .settings import GenerateSettings
from .start import PULL, Start, make_context

#: The pull grows in stages, so that it turns the torsions without tearing at the molecule; the last
#: holds them within about 8 degrees at 300 K. kJ/mol.
PULL_KJ: Final = (20.0, 60.0, 120.0)
# A piece is written at the latest when it has so many frames, whatever the clock says.
_CHUNK_FRAMES: Final = 5000


class BlownUp(Exception):
    """A run left what is physically possible."""


@dataclass(frozen=True)
class Machine:
    """Where runs are made.

    Attributes
    ----------
    platform : str
        Name of an OpenMM platform.
    threads : int
        For the CPU platform.
    save_seconds : float
        A piece of a run is written this often.
    gmx : str, optional
        Program of GROMACS, for runs that are made by it.
    """

    platform: str
    threads: int
    save_seconds: float = 30.0
    gmx: str | None = None


def task_name(kind: str, index: int) -> str:
    """Return how the files of a run (of all its copies) are named."""
    return f"{kind}-{index:05d}"


def make_run(
    parts: Parts,
    start: Start,
    settings: GenerateSettings,
    torsions: list[TorsionAtoms],
    kind: str,
    index: int,
    machine: Machine,
    stopped: Callable[[], bool],
    tell: Callable[[float], None],
    warn: Callable[[str], None],
) -> bool:
    """Make a run, or what is missing of it.

    Parameters
    ----------
    parts : Parts
        Where the pieces go.
    start : Start
        Where to start.
    settings, torsions
        What is made.
    kind, index : str, int
        Which run.
    machine : Machine
        Where it is made.
    stopped : callable
        Asked after every frame whether to stop; the piece so far is kept.
    tell : callable
        Called with the ps made since the last call, of all copies together.
    warn : callable
        Called with what went wrong.

    Returns
    -------
    bool
        Whether nothing is left to do.
    """
    task = task_name(kind, index)
    while parts.attempt(task) < ATTEMPTS:
        try:
            standing = parts.standing(task, settings.frames(kind))
            run = PieceByPiece(start, settings, torsions, kind, index, machine, standing)
            with closing(run.pieces(stopped, tell)) as pieces:
                for chunk, snapshot in pieces:
                    parts.save_chunk(task, chunk, snapshot)
            if run.complete:
                parts.finish(task)
            return run.complete
        except BlownUp as error:
            warn(give_up(parts, task, str(error)))
    return True


def give_up(parts: Parts, task: str, reason: str) -> str:
    """Note that a run has blown up, and return what to say of it."""
    parts.fail(task, reason)
    again = parts.attempt(task) < ATTEMPTS
    return f"{task}: {reason}; {'it is made again with another seed' if again else 'left out'}"


class PieceByPiece:
    """A run on its way.

    Parameters
    ----------
    start : Start
        Where every run starts.
    settings, torsions
        What is made.
    kind, index : str, int
        Which run.
    machine : Machine
        Where it is made.
    standing : Standing
        How far it is.

    Attributes
    ----------
    complete : bool
        Whether nothing is left to do.
    """

    def __init__(
        self,
        start: Start,
        settings: GenerateSettings,
        torsions: list[TorsionAtoms],
        kind: str,
        index: int,
        machine: Machine,
        standing: Standing,
    ) -> None:
        self.start, self.settings, self.machine = start, settings, machine
        self.torsions, self.kind, self.index = torsions, kind, index
        self.task = task_name(kind, index)
        self.attempt, self.chunks = standing.attempt, standing.chunks
        self._done, self._snapshot = standing.frames, standing.snapshot
        self.check = FrameCheck(start.molecule)
        self.thermostat_seed = 0
        self.goals: NDArray[np.float64] | None = None
        if kind == "seeded":
            copies = len(start.solutes)
            self.goals = spread_points(index * copies, copies, len(torsions), settings.seed)

    @property
    def complete(self) -> bool:
        return self._done >= self.settings.frames(self.kind)

    def seed(self, purpose: str) -> int:
        """Return a seed of this run's own, the same whenever and wherever it is made."""
        words = (self.kind, self.index, self.attempt, self.chunks, purpose)
        key = zlib.crc32(repr(words).encode())
        state = np.random.SeedSequence([self.settings.seed, key]).generate_state(1)
        return int(state[0]) % (2**31 - 2) + 1  # zero means a random seed to OpenMM

    def pieces(
        self, stopped: Callable[[], bool], tell: Callable[[float], None]
    ) -> Generator[tuple[Chunk, Snapshot], None, None]:
        """Make what is missing, piece by piece.

        Parameters
        ----------
        stopped : callable
            Asked after every frame whether to stop; the piece so far is the last one then.
        tell : callable
            Called with the ps made since the last call, of all copies together.

        Yields
        ------
        Chunk, Snapshot
            Frames, and where the run goes on after them.

        Raises
        ------
        BlownUp
            If the run leaves what is physically possible.
        """
        settings = self.settings
        total = settings.frames(self.kind)
        if self.complete or stopped():
            return
        system = openmm.XmlSerializer.clone(self.start.system)
        if self.goals is None:
            _remove_pull(system)
        self.thermostat_seed = self.seed("thermostat")
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
        context.setVelocitiesToTemperature(settings.temperature_K, self.seed("first velocities"))
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
        context.setVelocitiesToTemperature(settings.temperature_K, self.seed("velocities"))
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
            x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            frames.append(np.asarray(x)[self.start.solutes])
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
        x = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
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
