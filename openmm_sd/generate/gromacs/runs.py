"""One run: from its start, or from its checkpoint, to frames in the folder of parts.

Files of a run are named ``RUN.ATTEMPT.*`` and stand in the folder ``gromacs`` of the parts. GROMACS
keeps the run's state in its own checkpoint (``.cpt``) and frames in its own trajectory (``.xtc``),
which it cuts at the checkpoint when it goes on. They become a piece of the run as a data set has it
whenever GROMACS has come to a stop: then the two say the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...data.dataset import quantise
from ...files.atomic import write_json
from ...files.trajectories import XTC_HEAD, ascii_path, xtc_length
from ...molecule.frames import FrameCheck
from ..dynamics import PULL_KJ, BlownUp, Machine, Task, repeated, task_name
from ..parts import Chunk, Parts
from ..peptides import Amides
from ..seeding import own_seed
from ..start import Plan
from .mdp import dynamics
from .program import Gromacs, find_gromacs
from .topology import pulled

# A checkpoint more often than this slows small systems down. s.
_LEAST_CHECKPOINT: Final = 1.0
# Share of a spacing by which a frame may seem to be off its time, which is a single number.
_TIME_SHARE: Final = 0.1
_TELL_SECONDS: Final = 1.0


def make_run(
    parts: Parts,
    plan: Plan,
    task: Task,
    machine: Machine,
    stopped: Callable[[], bool],
    tell: Callable[[float], None],
    warn: Callable[[str], None],
) -> bool:
    """Make a run with GROMACS, as `openmm_sd.generate.dynamics.make_run` does.

    The folder ``gromacs`` of the parts holds what `make_start` wrote.
    """
    program = find_gromacs(machine.gmx)

    def attempt() -> bool:
        run = GromacsRun(parts, plan, task, machine, program)
        try:
            return run.go_on(stopped, tell)
        except BlownUp:
            run.remove()
            raise

    return repeated(attempt, parts, task_name(*task), warn)


class GromacsRun:
    """A run on its way; its files are named ``RUN.ATTEMPT``."""

    def __init__(
        self, parts: Parts, plan: Plan, task: Task, machine: Machine, program: Gromacs
    ) -> None:
        self.parts, self.molecule, self.settings = parts, plan.start.molecule, plan.settings
        self.torsions, self.machine, self.program = plan.torsions, machine, program
        self.folder = parts.folder / "gromacs"
        self.kind, self.index = task
        self.task = task_name(*task)
        self.attempt = parts.attempt(self.task)
        self.name = f"{self.task}.{self.attempt}"
        self.wanted = plan.settings.frames(self.kind)
        self.goal: NDArray[np.float64] | None = None
        if self.kind == "seeded":
            self.goal = plan.points(self.index)[0]

    def _seed(self, purpose: str) -> int:
        return own_seed(self.settings.seed, self.kind, self.index, self.attempt, purpose)

    def remove(self) -> None:
        """Remove its files."""
        for file in self.folder.glob(f"{self.name}.*"):
            file.unlink()

    def go_on(self, stopped: Callable[[], bool], tell: Callable[[float], None]) -> bool:
        """Make what is missing; return whether nothing is left to do."""
        if self.parts.frames(self.task) >= self.wanted:
            return True
        if stopped():
            return False
        tpr, state = (self.folder / f"{self.name}.{end}" for end in ("tpr", "json"))
        if not (tpr.exists() and state.exists()) and not self._begin(stopped):
            return False
        self._prolong((self.wanted - 1) * self.settings.stride)
        trajectory = self.folder / f"{self.name}.xtc"
        checkpoint = self.folder / f"{self.name}.cpt"
        minutes = max(_LEAST_CHECKPOINT, self.machine.save_seconds) / 60.0
        options = ["-noconfout", "-cpt", f"{minutes:.3f}"]
        if checkpoint.exists():
            options += ["-cpi", checkpoint.name]
        else:
            # What a run left that was killed before its first checkpoint.
            trajectory.unlink(missing_ok=True)
        progress = _Progress(trajectory, self.settings.spacing_ps, tell)
        progress.skip(self.parts.frames(self.task))
        began = time.monotonic()
        self.program.simulate(
            self.folder,
            self.name,
            *options,
            threads=self.machine.threads,
            stopped=stopped,
            watch=progress,
        )
        progress.look()
        self._keep(time.monotonic() - began)
        return self.parts.frames(self.task) >= self.wanted

    # -- before the first frame ------------------------------------------------------------------

    def _begin(self, stopped: Callable[[], bool]) -> bool:
        """Go to where the first frame is and prepare what follows; False if stopped on the way."""
        settings = self.settings
        start = "start.gro"
        text = (self.folder / "system.top").read_text()
        stages: list[tuple[int, str, bool]] = []
        if self.goal is None:
            stages.append((settings.steps(settings.warm_up_ps), text, True))
        else:
            steps = settings.steps(settings.pull_ps / len(PULL_KJ))
            held = Amides(self.molecule).held(self.torsions)
            torsions = [*self.torsions, *(torsion for torsion, _ in held)]
            goal = [*self.goal, *(side for _, side in held)]
            for strength in PULL_KJ:
                pull = pulled(text, torsions, goal, strength)
                stages.append((steps, pull, not stages))
            stages.append((settings.steps(settings.drop_ps), text, True))
        new = True
        for number, (steps, topology, velocities) in enumerate(stages):
            if not steps:
                continue
            part = f"{self.name}.stage{number}"
            (self.folder / f"{part}.top").write_text(topology)
            mdp = dynamics(settings, self._seed(part), steps, velocities=velocities)
            self.program.preprocess(self.folder, part, mdp, start, f"{part}.top")
            options = ("-c", f"{part}.g96")
            if not self.program.simulate(
                self.folder, part, *options, threads=self.machine.threads, stopped=stopped
            ):
                return False
            start, new = f"{part}.g96", False
        steps = (self.wanted - 1) * settings.stride
        seed = self._seed("thermostat")
        mdp = dynamics(settings, seed, steps, every=settings.stride, velocities=new)
        self.program.preprocess(self.folder, self.name, mdp, start, "system.top")
        self._note({"seed": seed, "steps": steps})
        for file in self.folder.glob(f"{self.name}.stage*"):
            file.unlink()
        return True

    def _note(self, facts: dict[str, Any]) -> None:
        write_json(self.folder / f"{self.name}.json", facts)

    def _facts(self) -> dict[str, Any]:
        content = json.loads((self.folder / f"{self.name}.json").read_text())
        assert isinstance(content, dict)
        return content

    def _prolong(self, steps: int) -> None:
        """Make the run as long as it is wanted now."""
        facts = self._facts()
        if facts["steps"] == steps:
            return
        until = f"{steps * self.settings.step_fs / 1000.0:.4f}"
        files = ("-s", f"{self.name}.tpr", "-o", f"{self.name}.new.tpr")
        self.program.command(self.folder, "convert-tpr", *files, "-until", until)
        (self.folder / f"{self.name}.new.tpr").replace(self.folder / f"{self.name}.tpr")
        self._note(facts | {"steps": steps})

    # -- its frames ------------------------------------------------------------------------------

    def _keep(self, seconds: float) -> None:
        """Put the frames that are new into the folder of parts."""
        trajectory = self.folder / f"{self.name}.xtc"
        if not trajectory.exists():
            return
        frames, boxes, times = read_frames(trajectory)
        off = np.abs(times - np.arange(len(times)) * self.settings.spacing_ps)
        if len(off) and off.max() > _TIME_SHARE * self.settings.spacing_ps:
            raise RuntimeError(f"{trajectory}: frame {int(off.argmax())} is not where it should be")
        before = self.parts.frames(self.task)
        frames, boxes = frames[before : self.wanted], boxes[before : self.wanted]
        if not len(frames):
            return
        check = FrameCheck(self.molecule)
        try:
            checked, relabelled = check(check.whole(frames, boxes), before)
            stored = quantise(checked)
        except ValueError as error:
            raise BlownUp(str(error)) from error
        if not before:
            turned = Amides(self.molecule).turned(checked[0])
            if turned:
                raise BlownUp(f"frame 0: {turned}")
        made = len(frames) - (0 if before else 1)
        meta: dict[str, Any] = {
            "seed": self._facts()["seed"],
            "steps": made * self.settings.stride,
            "seconds": round(seconds, 3),
            "platform": f"{self.program.name}, {self.program.simd}",
            "relabelled": relabelled,
        }
        if self.goal is not None:
            meta["start_deg"] = [np.round(np.rad2deg(self.goal), 3).tolist()]
        self.parts.save_chunk(self.task, Chunk(stored[:, None], meta), None)


class _Progress:
    """Tells how many ps were made, by the frames of a growing trajectory."""

    def __init__(self, path: Path, spacing_ps: float, tell: Callable[[float], None]) -> None:
        self._path, self._spacing, self._tell = path, spacing_ps, tell
        self._place = 0
        self._frames = 0
        self._told = 1  # the first frame took no time
        self._last = time.monotonic()

    def skip(self, frames: int) -> None:
        """Leave out what was told in an earlier program."""
        self._told = max(1, frames)

    def __call__(self) -> None:
        if time.monotonic() - self._last > _TELL_SECONDS:
            self.look()

    def look(self) -> None:
        """Count, and tell what is new."""
        self._last = time.monotonic()
        if not self._path.exists():
            return
        if self._path.stat().st_size < self._place:  # cut at the checkpoint
            self._place = self._frames = 0
        self._place, new = count_frames(self._path, self._place)
        self._frames += new
        if self._frames > self._told:
            self._tell((self._frames - self._told) * self._spacing)
            self._told = self._frames


def count_frames(path: Path, place: int = 0) -> tuple[int, int]:
    """Count the complete frames of an XTC file, which may be growing, from the start of a frame on.

    Returns the place of the first frame that is not complete, bytes, and how many come before it.
    """
    size, frames = path.stat().st_size, 0
    with open(path, "rb") as file:
        while True:
            file.seek(place)
            length = xtc_length(file.read(XTC_HEAD))
            if length is None or place + length > size:
                return place, frames
            place, frames = place + length, frames + 1


def read_frames(
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return positions, box vectors (nm) and times (ps) of the complete frames of an XTC file."""
    import mdtraj

    count = count_frames(path)[1]
    if not count:
        return np.zeros((0, 0, 3)), np.zeros((0, 3, 3)), np.zeros(0)
    with ascii_path(path) as name, mdtraj.formats.XTCTrajectoryFile(name) as file:
        frames, times, _, boxes = file.read(count)
    return frames.astype(np.float64), boxes.astype(np.float64), times.astype(np.float64)
