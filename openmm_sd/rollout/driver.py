"""Rollouts on disk: `run_rollout` writes chains to a directory, from which a stopped run goes on.

``trajectory.xtc`` or ``trajectory.h5``
    The frames of all chains in one file, step by step: first every chain after the first recorded
    step, in the order of the chains, then every chain after the second, and so on. Frame
    ``record * chains + chain`` is chain ``chain`` after step ``(record + 1) * every``; its time is
    that step's number times the lag, in ps. `read_rollout` puts them into an array. XTC rounds
    coordinates to 0.001 nm (bond lengths thus to about as much); HDF5, in mdtraj's layout, holds
    the float32 numbers that were computed (mdtraj needs PyTables to open it, `read_rollout` does
    not), and is written when the run ends.
``topology.pdb``
    The molecule, with the first chain's start.
``rollout.json``
    Counters, speeds and settings, see `run_rollout`.
``checkpoint.npz``
    Where the run stands.

Frames have their centroid at the origin and do not tumble: a learned jump carries no rotation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.atomic import write_atomically, write_json, writing
from ..files.folder import interrupts, locked, refuse_others, require_same
from ..files.journal import GrowingFile, read_checkpoint, write_checkpoint
from ..files.trajectories import (
    FORMATS,
    RAW_FILE,
    XTC_PRECISION_NM,
    ascii_path,
    write_hdf5,
    xtc_bytes,
)
from ..model.model import ScoreModel, model_digest
from ..molecule.topology import mdtraj_topology, pdb_text
from ..progress import Progress, silence
from ..settings import check_number, check_whole
from ..version import versions
from .rollout import Rollout
from .settings import RolloutSettings
from .start import read_start_frames

if TYPE_CHECKING:
    from ..workers.cluster import Where


_CHECKPOINT: Final = "checkpoint.npz"
_SUMMARY: Final = "rollout.json"
_TOPOLOGY: Final = "topology.pdb"
_CHUNK_FRAMES: Final = 8192
"""Frames gathered before they are encoded and written."""

_KEPT: Final = "what was made before is kept, the same command resumes from there"

_REPORT_SECONDS: Final = 0.2
"""Steps of few chains are faster than anyone reads."""


# -- to files ------------------------------------------------------------------------------------


def run_rollout(
    model: ScoreModel | str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: RolloutSettings | None = None,
    *,
    start: Any = None,
    topology: str | os.PathLike[str] | None = None,
    format: str = "xtc",
    every: int = 1,
    minutes: float | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress | None = None,
    molecule: str | None = None,
    dask: Where | None = None,
) -> dict[str, Any]:
    """Run chains of pure Score Dynamics and write them to a directory.

    Called again with the same arguments it goes on where a stopped or killed run was at its last
    checkpoint, and gives, on the CPU with the same number of threads, the same trajectory to the
    last bit.

    Parameters
    ----------
    model : ScoreModel, str or PathLike
        A model, a shipped model's name or a bundle's path.
    output : str or PathLike
        Directory, made where it does not exist; new, empty, or with an unfinished run of the same
        settings.
    settings : RolloutSettings, optional
        What to do.
    start : str, PathLike, mdtraj.Trajectory or array, optional
        For `read_start_frames`, or frames (M, N, 3) in nm; the model's own by default.
    topology : str or PathLike, optional
        Topology for a `start` without one.
    format : str
        ``xtc`` (compressed, rounded to 0.001 nm) or ``h5`` (HDF5, float32).
    every : int
        Record every so many steps.
    minutes : float, optional
        Stop after this time, with a checkpoint; the same call goes on from there.
    checkpoint_seconds : float
        Time between checkpoints, s.
    progress : callable, optional
        Called with what is being done and how far it is.
    molecule : str, optional
        Which of a family's molecules.
    dask : str, int, distributed.Client or cluster, optional
        Have the chains moved by the workers of a Dask cluster: ``"local"`` or a number of workers
        for one that is started here, with a worker a GPU or else a core; the address or the file
        of a scheduler; or an object of Dask. The chains are the same, see `SharedRollout`.

    Returns
    -------
    dict
        What ``rollout.json`` holds: ``chains``, ``steps``, ``steps_done``, ``complete``, ``every``,
        ``frames`` (in the trajectory), ``order`` (of the frames, in words), ``lag_ps``, ``seed``,
        the counters of `Rollout.statistics`, ``gate_failure_fraction`` and
        ``chirality_flip_fraction`` (of all draws), ``jumps_per_second`` and
        ``effective_ns_per_day`` (all chains together, without the writing of files),
        ``wall_seconds``, ``device``, ``versions``, ``model``.

    Raises
    ------
    ValueError
        If an argument is wrong, or the directory holds something else.
    KeyboardInterrupt
        When the user stops it, after the checkpoint is written.
    """
    settings = settings or RolloutSettings()
    if format not in ("xtc", "h5"):
        raise ValueError(f"format must be one of xtc, h5, got {format!r}")
    check_whole("every", every, most=settings.steps)
    check_number("minutes", minutes, "minutes")
    check_number("checkpoint_seconds", checkpoint_seconds, "s")
    say = progress or silence
    if not isinstance(model, ScoreModel):
        say("loading the model", os.fspath(model))
        model = ScoreModel.load(model)
    model = model.only(molecule)
    source = "array"
    frames: Any = start
    if start is None:
        source = "model"
    elif isinstance(start, (str, os.PathLike)) or hasattr(start, "xyz"):
        source = os.fspath(start) if isinstance(start, (str, os.PathLike)) else "trajectory"
        frames = read_start_frames(start, model.molecules[0], topology)
    with ExitStack() as held:
        if dask is None:
            rollout = Rollout(model, settings, frames)
        else:
            from .shared import SharedRollout

            shared = SharedRollout(model, settings, frames, dask, every, say)
            rollout = held.enter_context(closing(shared))
        held.enter_context(locked(Path(output), "rollout"))
        run = _Run(rollout, Path(output), format, every, source)
        return run(minutes, checkpoint_seconds, say)


def read_rollout(output: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read the frames of a rollout, finished or not.

    Parameters
    ----------
    output : str or PathLike
        Directory that `run_rollout` wrote to.

    Returns
    -------
    ndarray, shape (records, chains, N, 3)
        nm. Record k holds the chains after step ``(k + 1) * every``; the start is not among them.

    Raises
    ------
    ValueError
        If there is no rollout.
    """
    folder = Path(output)
    try:
        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        count, chains = int(summary["frames"]), int(summary["chains"])
        n_atoms, file = int(summary["atoms"]), folder / str(summary["trajectory"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no rollout: {error}") from None
    shape = (count // chains, chains, n_atoms, 3)
    if not count:
        return np.zeros(shape, dtype=np.float32)
    raw = folder / RAW_FILE
    if raw.exists():
        frames = np.fromfile(raw, dtype="<f4", count=count * n_atoms * 3)
    elif file.suffix == ".h5":
        import h5py

        with h5py.File(file, "r") as content:
            frames = np.asarray(content["coordinates"], dtype=np.float32)
    else:
        import mdtraj

        with ascii_path(file) as name, mdtraj.formats.XTCTrajectoryFile(name) as content:
            frames = content.read(n_frames=count)[0]
    if frames.size != math.prod(shape):
        raise ValueError(f"{folder}: the trajectory is shorter than {_SUMMARY} says")
    return frames.reshape(shape)


def rollout_chains(output: str | os.PathLike[str]) -> list[Any]:
    """Return each chain of a rollout as an ``mdtraj.Trajectory`` with its times in ps.

    ValueError if there is no rollout.
    """
    import mdtraj

    frames = read_rollout(output)
    summary = json.loads((Path(output) / _SUMMARY).read_text(encoding="utf-8"))
    topology = mdtraj.load_topology(os.fspath(Path(output) / _TOPOLOGY))
    spacing = float(summary["lag_ps"]) * int(summary["every"])
    times = spacing * np.arange(1, len(frames) + 1)
    return [mdtraj.Trajectory(frames[:, k], topology, time=times) for k in range(frames.shape[1])]


class _Run:
    """A rollout and the directory it is written to."""

    def __init__(
        self, rollout: Rollout, folder: Path, format: str, every: int, source: str
    ) -> None:
        self._rollout = rollout
        self._folder = folder
        self._every = every
        self._source = source
        self._trajectory = FORMATS[format]
        self._stream = GrowingFile(folder / (RAW_FILE if format == "h5" else FORMATS[format]))
        self._encode = _raw_bytes if format == "h5" else self._xtc_bytes
        settings = rollout.settings
        self._arguments = {
            "model": model_digest(rollout.model),
            "start": hashlib.sha256(rollout.frames.data).hexdigest(),
            "chains": settings.chains,
            "steps": settings.steps,
            "lag_ps": rollout.lag_ps,
            "seed": settings.seed,
            "max_tries": settings.max_tries,
            "batch": settings.batch,
            "every": every,
            "format": format,
            "device": rollout.device_kind,
        }
        self._wall = 0.0
        self._buffer: list[tuple[int, NDArray[np.float32]]] = []

    def __call__(self, minutes: float | None, interval: float, say: Progress) -> dict[str, Any]:
        rollout, settings = self._rollout, self._rollout.settings
        if self._resume():
            say("done before", f"{self._folder} holds this rollout already")
            return self._told()
        began = last = said = time.monotonic()
        before = self._wall
        begun = 0  # batches of the step that is being made

        def tell(done: float) -> None:
            nonlocal said
            step = f"{round(done, 2):.10g}"
            say("rollout", f"step {step} of {settings.steps}, {settings.chains} chains")
            said = time.monotonic()

        tell(rollout.step_number)
        with interrupts() as interrupted:

            def over() -> bool:
                late = minutes is not None and time.monotonic() - began >= 60.0 * minutes
                return late or interrupted()

            def asked() -> bool:
                nonlocal begun
                share = begun * settings.batch / settings.chains
                begun += 1
                if 0.0 < share < 1.0 and time.monotonic() - said >= _REPORT_SECONDS:
                    tell(rollout.step_number + share)
                return interrupted()

            # A step that begins in time is finished here; workers elsewhere may never answer.
            give_up = asked if isinstance(rollout, Rollout) else over
            while rollout.step_number < settings.steps:
                begun = 0
                if not rollout.step(give_up):
                    break
                self._record()
                now = time.monotonic()
                self._wall = before + now - began
                done = rollout.step_number
                if now - said >= _REPORT_SECONDS or done == settings.steps:
                    tell(done)
                if over():
                    break
                if now - last >= interval:
                    self._checkpoint()
                    last = time.monotonic()
            self._checkpoint()
        self._publish()
        self._wall = before + time.monotonic() - began
        complete = rollout.step_number == settings.steps
        summary = self._summary(complete)
        if complete:
            self._save(complete=True)
            self._drop_raw()
        if interrupted():
            raise KeyboardInterrupt
        return summary

    def _resume(self) -> bool:
        """Take up an earlier run; return whether it was finished."""
        found = read_checkpoint(self._folder / _CHECKPOINT, _decoded)
        if found is None:
            refuse_others(self._folder, "rollout", {_TOPOLOGY}.__contains__)
            self._write_topology()
            self._save(complete=False)
            self._summary(complete=False)
            self._stream.cut(0)
            return False
        state, frames = found
        there, here = state["arguments"], self._arguments
        if "auto" in (there.get("device"), here["device"]):
            here = {**here, "device": there.get("device")}  # workers elsewhere choose their devices
        require_same(f"output: {self._folder} holds a rollout", there, here)
        self._rollout.load_state_dict({**state["rollout"], "frames": frames})
        self._wall = float(state["wall_seconds"])
        if state["complete"]:
            trajectory = self._folder / self._trajectory
            if not trajectory.is_file():
                raise ValueError(
                    f"output: {trajectory} is missing, and the rollout was finished: give a new "
                    "directory to make it again"
                )
            self._drop_raw()
            return True
        self._stream.cut(int(state["size"]))
        return False

    def _told(self) -> dict[str, Any]:
        """Return the summary of a rollout that was finished before, written again if it is gone."""
        try:
            summary = json.loads((self._folder / _SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            summary = None
        return summary if isinstance(summary, dict) else self._summary(complete=True)

    def _record(self) -> None:
        step = self._rollout.step_number
        if step % self._every:
            return
        frames = self._rollout.frames
        for begin in range(0, len(frames), _CHUNK_FRAMES):
            self._buffer.append((step, frames[begin : begin + _CHUNK_FRAMES]))
            if sum(len(some) for _, some in self._buffer) >= _CHUNK_FRAMES:
                self._flush()

    def _flush(self) -> None:
        if self._buffer:
            steps = np.concatenate([np.full(len(f), step) for step, f in self._buffer])
            with writing(self._stream.path, _KEPT):
                self._stream.write(
                    self._encode(np.concatenate([f for _, f in self._buffer]), steps)
                )
            self._buffer.clear()

    def _xtc_bytes(self, frames: NDArray[np.float32], steps: NDArray[np.int64]) -> bytes:
        times = (steps * self._rollout.lag_ps).astype(np.float32)
        return xtc_bytes(frames, times, steps.astype(np.int32), None, self._folder)

    def _checkpoint(self) -> None:
        self._flush()
        with writing(self._stream.path, _KEPT):
            self._stream.sync()
        self._save(complete=False)
        self._summary(complete=False)

    def _save(self, complete: bool) -> None:
        """Write the checkpoint; before this the frames it speaks of are on the disk."""
        rollout = self._rollout.state_dict()
        frames = rollout.pop("frames")
        state = {
            "arguments": self._arguments,
            "rollout": rollout,
            "size": self._stream.end,
            "wall_seconds": self._wall,
            "complete": complete,
        }
        with writing(self._folder / _CHECKPOINT, _KEPT):
            write_checkpoint(self._folder / _CHECKPOINT, frames=frames, state=state)

    def _summary(self, complete: bool) -> dict[str, Any]:
        rollout, settings = self._rollout, self._rollout.settings
        numbers = rollout.statistics()
        draws, seconds = max(numbers["draws"], 1), numbers["seconds"]
        speed = numbers["jumps"] / seconds if seconds > 0 else 0.0
        summary = {
            "chains": settings.chains,
            "steps": settings.steps,
            "steps_done": rollout.step_number,
            "complete": complete,
            "every": self._every,
            "frames": rollout.step_number // self._every * settings.chains,
            "order": "step by step: frame record * chains + chain is that chain after step "
            "(record + 1) * every, both counted from 0; the start is not among them",
            "atoms": rollout.molecule.n_atoms,
            "molecule": rollout.molecule.name,
            "trajectory": self._trajectory,
            "precision_nm": XTC_PRECISION_NM if self._trajectory == FORMATS["xtc"] else None,
            "lag_ps": rollout.lag_ps,
            "seed": settings.seed,
            "max_tries": settings.max_tries,
            "batch": settings.batch,
            "start": self._source,
            **numbers,
            "gate_failure_fraction": sum(numbers["rejections"].values()) / draws,
            "chirality_flip_fraction": numbers["chirality_flips"] / draws,
            "jumps_per_second": speed,
            "effective_ns_per_day": speed * rollout.lag_ps / 1000.0 * 86400.0,
            "wall_seconds": self._wall,
            "device": rollout.device_name,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "model": {"name": rollout.model.name, "sha256": rollout.model.sha256},
        }
        with writing(self._folder / _SUMMARY, _KEPT):
            write_json(self._folder / _SUMMARY, summary)
        return summary

    def _write_topology(self) -> None:
        positions = self._rollout.frames[0].astype(np.float64)
        text = pdb_text(self._rollout.molecule.to_topology(), positions)
        write_atomically(self._folder / _TOPOLOGY, text)

    def _publish(self) -> None:
        """Make the HDF5 file of the raw frames."""
        if self._stream.path.name != RAW_FILE:
            return
        settings, molecule = self._rollout.settings, self._rollout.molecule
        with writing(self._folder / self._trajectory, _KEPT):
            write_hdf5(
                self._folder / self._trajectory,
                mdtraj_topology(molecule.to_topology()),
                self._rollout.step_number // self._every * settings.chains,
                self._blocks(),
                application="openmm-sd rollout",
                title=f"{settings.chains} chains of {molecule.name}, step by step",
            )

    def _drop_raw(self) -> None:
        """Remove the raw frames of a finished rollout: they are in its HDF5 file."""
        if self._stream.path.name == RAW_FILE:
            self._stream.path.unlink(missing_ok=True)

    def _blocks(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Read the raw frames, some records at a time."""
        rollout, chains = self._rollout, self._rollout.settings.chains
        n_atoms, records = rollout.molecule.n_atoms, rollout.step_number // self._every
        per_block = max(1, _CHUNK_FRAMES // chains)
        with open(self._stream.path, "rb") as raw:
            for begin in range(0, records, per_block):
                numbers = np.arange(begin, min(begin + per_block, records)) + 1
                steps = np.repeat(numbers * self._every, chains)
                block = np.fromfile(raw, dtype="<f4", count=len(steps) * n_atoms * 3)
                yield {
                    "coordinates": block.reshape(len(steps), n_atoms, 3),
                    "time": (steps * rollout.lag_ps).astype("<f4"),
                }


def _decoded(
    state: dict[str, Any], data: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, Any], NDArray[Any]]:
    """Return what a checkpoint holds; KeyError where something is missing."""
    names = ("arguments", "rollout", "size", "wall_seconds", "complete")
    return {name: state[name] for name in names}, data["frames"]


def _raw_bytes(frames: NDArray[np.float32], steps: NDArray[np.int64]) -> bytes:
    return frames.astype("<f4").tobytes()
