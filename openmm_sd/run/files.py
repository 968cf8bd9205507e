"""The files of a run: what has been visible once is never lost or altered.

Frames and log lines are gathered in memory. A checkpoint is one file, written whole or not at all,
that holds the state of the simulation *and* the bytes that the trajectory and the log get with it,
with their places. Only when it is on the disk are those bytes appended. So whenever the process is
killed, a checkpoint on the disk knows every frame that anybody can have seen, and a run that is
taken up first appends what is missing.

``checkpoint.npz`` is a NumPy archive: ``state`` (JSON text), ``openmm`` (OpenMM's binary
checkpoint), ``portable`` (OpenMM's State as XML, compressed with zlib) and ``pending_0``,
``pending_1``, the bytes for the trajectory and the log.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from openmm import app

from ..files.atomic import write_atomically
from ..files.trajectories import (
    FORMATS,
    RAW_FILE,
    RawFrames,
    dcd_bytes,
    dcd_counts,
    dcd_frames,
    dcd_header,
    hdf5_frames,
    write_hdf5,
    xtc_bytes,
    xtc_frames,
)
from ..molecule.topology import mdtraj_topology

CHECKPOINT: Final = "checkpoint.npz"
LOG: Final = "log.csv"
SUMMARY: Final = "summary.json"
TOPOLOGY: Final = "topology.pdb"
START: Final = "start"

#: The format of a checkpoint that this package writes and reads.
FORMAT_VERSION: Final = 1


class RunError(RuntimeError):
    """A run cannot go on; all that has been committed is intact."""


@dataclass(frozen=True)
class Layout:
    """What frames look like on the disk.

    Attributes
    ----------
    format : str
        ``xtc``, ``dcd`` or ``h5``.
    n_atoms : int
        Atoms of a frame.
    periodic : bool
        Whether frames have a box.
    spacing_ps : float
        MD time between two frames.
    """

    format: str
    n_atoms: int
    periodic: bool
    spacing_ps: float

    @property
    def stream(self) -> str:
        """Name of the file that frames are appended to."""
        return RAW_FILE if self.format == "h5" else FORMATS[self.format]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    state : dict
        Numbers and settings.
    openmm : bytes
        OpenMM's checkpoint.
    portable : str
        OpenMM's State as XML.
    pending : tuple of bytes
        What the trajectory and the log get with it.
    """

    state: dict[str, Any]
    openmm: bytes
    portable: str
    pending: tuple[bytes, bytes]


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of a run; None if there is none.

    Parameters
    ----------
    folder : Path
        The run's directory.

    Raises
    ------
    ValueError
        If it is damaged or of another version.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return None
    try:
        # Through memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            state = json.loads(str(content["state"]))
            version = state["format_version"]
            checkpoint = Checkpoint(
                state,
                content["openmm"].tobytes(),
                zlib.decompress(content["portable"].tobytes()).decode(),
                (content["pending_0"].tobytes(), content["pending_1"].tobytes()),
            )
    except Exception as error:  # a damaged archive fails in many ways
        reason = " ".join(str(error).split())
        raise ValueError(f"output: {file} is damaged: {reason}") from None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"output: {file} has format version {version!r}, this version of openmm-sd reads "
            f"{FORMAT_VERSION}"
        )
    return checkpoint


class Output:
    """Trajectory, log and checkpoint of a run.

    Parameters
    ----------
    folder : Path
        The run's directory.
    layout : Layout
        Of the frames.
    checkpoint : Checkpoint, optional
        The last one; what is missing behind it is appended by `recover`.

    Attributes
    ----------
    frames : int
        Frames on the disk.
    """

    def __init__(self, folder: Path, layout: Layout, checkpoint: Checkpoint | None) -> None:
        self.folder = folder
        self.layout = layout
        self.frames = 0
        self._ends = [0, 0]
        self._held: float | None = None
        self._gathered: list[tuple[NDArray[np.float32], float, NDArray[np.float64] | None]] = []
        self._lines: list[str] = []
        self._raw = RawFrames(layout.n_atoms, layout.periodic)
        self._last = checkpoint
        if checkpoint is not None:
            self.frames = int(checkpoint.state["frames"])
            self._held = float(checkpoint.state["numbers"]["effective_time_ps"])

    @property
    def files(self) -> tuple[Path, Path]:
        """The two files that grow."""
        return self.folder / self.layout.stream, self.folder / LOG

    @property
    def waiting_bytes(self) -> int:
        """Size of the frames in memory."""
        return len(self._gathered) * self.layout.n_atoms * 12

    @property
    def has_lines(self) -> bool:
        """Whether the log has any line yet."""
        return bool(self._ends[1] or self._lines)

    @property
    def standing(self) -> str:
        """What is safe, in words."""
        if self._held is None:
            return "nothing has been run yet"
        return f"the last checkpoint is intact and holds {self._held:g} ps of effective time"

    def add(
        self, frame: NDArray[np.float32], time: float, box: NDArray[np.float64] | None, line: str
    ) -> None:
        """Gather a frame (nm, at an effective time in ps) and its log line."""
        self._gathered.append((frame, time, box))
        self._lines.append(line)

    def commit(self, state: dict[str, Any], openmm: bytes, portable: str) -> None:
        """Write a checkpoint, then append what was gathered.

        Parameters
        ----------
        state : dict
            What JSON can hold.
        openmm : bytes
            OpenMM's checkpoint.
        portable : str
            OpenMM's State as XML.
        """
        stream, _ = self.files
        with self.writing(stream):
            frames = self._encoded()
        lines = [line.encode() for line in self._lines]
        total = self.frames + len(self._gathered)
        pending = (b"".join(frames), b"".join(lines))
        state = {
            **state,
            "format_version": FORMAT_VERSION,
            "frames": total,
            "ends": self._ends,
            "layout": vars(self.layout),
        }
        memory = io.BytesIO()
        np.savez(
            memory,
            state=np.array(json.dumps(state, allow_nan=False)),
            openmm=np.frombuffer(openmm, dtype=np.uint8),
            portable=np.frombuffer(zlib.compress(portable.encode(), 1), dtype=np.uint8),
            pending_0=np.frombuffer(pending[0], dtype=np.uint8),
            pending_1=np.frombuffer(pending[1], dtype=np.uint8),
        )
        with self.writing(self.folder / CHECKPOINT):
            write_atomically(self.folder / CHECKPOINT, memory.getvalue())
        self._last = Checkpoint(state, openmm, portable, pending)
        self._held = float(state["numbers"]["effective_time_ps"])
        self.frames = total
        self._gathered.clear()
        self._lines.clear()
        self._append(frames, lines)

    def recover(self, going_on: bool) -> None:
        """Append what the last checkpoint holds and the files do not.

        Parameters
        ----------
        going_on : bool
            Whether more will be appended.

        Raises
        ------
        ValueError
            If a file is not what the checkpoint was written for.
        """
        assert self._last is not None
        self._ends = [int(end) for end in self._last.state["ends"]]
        stream, _ = self.files
        if self.layout.format == "h5" and not stream.exists() and self._published():
            # A finished run has its frames in the HDF5 file only.
            if going_on:
                with self.writing(stream):
                    self._raw.from_hdf5(self.folder / FORMATS["h5"], stream)
            else:
                self._append(None, self._last.pending[1].splitlines(keepends=True))
                return
        frames, lines = self._last.pending
        self._append(self._split(frames), lines.splitlines(keepends=True))

    def publish(self, topology: app.Topology, complete: bool) -> None:
        """Make the HDF5 file of the frames on the disk, where that is the format.

        Parameters
        ----------
        topology : openmm.app.Topology
            Of the atoms in a frame.
        complete : bool
            Whether the run is finished, so that the raw frames are not needed any more.
        """
        if self.layout.format != "h5":
            return
        stream, target = self.files[0], self.folder / FORMATS["h5"]
        if not stream.exists():
            return
        with self.writing(target):
            write_hdf5(
                target,
                mdtraj_topology(topology),
                self.frames,
                self._raw.blocks(stream, self.frames),
                application="openmm-sd run",
                title="a mixed run: MD bursts and learned jumps, times are effective times",
            )
        if complete:
            stream.unlink()

    def write(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        with self.writing(self.folder / name):
            write_atomically(self.folder / name, text.encode())

    @contextlib.contextmanager
    def writing(self, file: Path) -> Iterator[None]:
        """Say in one line which file could not be written, and what is safe."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            further = "" if self._held is None else "; the same command goes on from there"
            raise RunError(f"cannot write {file}: {reason}; {self.standing}{further}") from error

    def _published(self) -> bool:
        return self.frames > 0 and hdf5_frames(self.folder / FORMATS["h5"]) == self.frames

    def _encoded(self) -> list[bytes]:
        """Return the gathered frames as the pieces that the file gets."""
        layout = self.layout
        pieces: list[bytes] = []
        if layout.format == "dcd" and not self.frames and not self._ends[0]:
            count = len(self._gathered)
            pieces.append(dcd_header(layout.n_atoms, count, layout.periodic, layout.spacing_ps))
        if not self._gathered:
            return pieces
        frames = np.stack([frame for frame, _, _ in self._gathered])
        times = np.array([time for _, time, _ in self._gathered], dtype=np.float32)
        boxes = None
        if layout.periodic:
            boxes = np.array([box for _, _, box in self._gathered], dtype=np.float32)
        if layout.format == "xtc":
            steps = np.arange(self.frames, self.frames + len(frames), dtype=np.int32)
            return xtc_frames(xtc_bytes(frames, times, steps, boxes, self.folder))
        for k in range(len(frames)):
            box = None if boxes is None else boxes[k : k + 1]
            if layout.format == "dcd":
                pieces.append(dcd_bytes(frames[k : k + 1], box))
            else:
                pieces.append(self._raw.encode(frames[k : k + 1], times[k : k + 1], box))
        return pieces

    def _split(self, data: bytes) -> list[bytes]:
        """Return the pieces that were put together into a checkpoint's bytes."""
        layout = self.layout
        if layout.format == "xtc":
            return xtc_frames(data)
        if layout.format == "h5":
            size = self._raw.dtype.itemsize
            return [data[k : k + size] for k in range(0, len(data), size)]
        header = not self._ends[0] and bool(data)
        return dcd_frames(data, layout.n_atoms, layout.periodic, header)

    def _append(self, frames: Sequence[bytes] | None, lines: Sequence[bytes]) -> None:
        """Append pieces behind the known ends; None leaves a file alone."""
        counts = dcd_counts(self.frames) if self.layout.format == "dcd" else []
        for k, (file, pieces, patches) in enumerate(
            zip(self.files, (frames, lines), (counts, []), strict=True)
        ):
            if pieces is not None:
                with self.writing(file):
                    append(file, self._ends[k], pieces, patches)
                self._ends[k] += sum(map(len, pieces))


def append(
    file: Path, end: int, pieces: Sequence[bytes], patches: Sequence[tuple[int, bytes]] = ()
) -> None:
    """Append to a file what it does not hold yet, down to the disk.

    Parameters
    ----------
    file : Path
        Made where it does not exist.
    end : int
        Where the pieces begin. The file may hold a part of them already.
    pieces : sequence of bytes
        Frames or lines.
    patches : sequence of (int, bytes)
        What to write into the file's header afterwards, and where.

    Raises
    ------
    ValueError
        If the file holds something else there.
    OSError
        If it cannot be written; then the file ends behind the last piece that found its place.
    """
    data = b"".join(pieces)
    new = not file.exists()
    size = 0 if new else file.stat().st_size
    if not end <= size <= end + len(data):
        raise ValueError(
            f"output: {file} {'is missing' if new else f'has {size} bytes'}, its checkpoint asks "
            f"for {end + len(data)}: it was changed after the run was stopped"
        )
    # Unbuffered, so that what fails has failed here.
    with open(file, "w+b" if new else "r+b", buffering=0) as stream:
        stream.seek(end)
        if stream.read() != data[: size - end]:
            raise ValueError(f"output: {file} was changed after the run was stopped")
        try:
            _write(stream, size, data[size - end :])
            os.fsync(stream.fileno())
        except OSError:
            # A frame that is cut short is a nuisance to readers; whole ones stay.
            written = stream.seek(0, os.SEEK_END) - end
            whole = max(k for k in accumulate(map(len, pieces), initial=0) if k <= written)
            with contextlib.suppress(OSError):
                stream.truncate(end + max(whole, 0))
            raise
        for place, values in patches:
            _write(stream, place, values)
        os.fsync(stream.fileno())
    if new:
        handle = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(stream: io.FileIO, place: int, data: bytes) -> None:
    stream.seek(place)
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
