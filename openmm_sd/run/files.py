"""The files of a run: what has been visible once is never lost or altered.

Frames and log lines are gathered in memory and go into the checkpoint, then into the trajectory and
the log: `openmm_sd.files.journal` in its order *ahead*. So whenever the process is killed, a
checkpoint on the disk knows every frame that anybody can have seen.

``checkpoint.npz`` is a NumPy archive: ``state`` (JSON text), ``openmm`` (OpenMM's binary
checkpoint), ``portable`` (OpenMM's State as XML, compressed with zlib) and ``pending_0``,
``pending_1``, the bytes for the trajectory and the log.
"""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from openmm import app

from ..files import journal
from ..files.atomic import write_atomically, write_json, writing
from ..files.journal import GrowingFile
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
from .status import ARRAYS

CHECKPOINT: Final = "checkpoint.npz"
LOG: Final = "log.csv"
SUMMARY: Final = "summary.json"
TOPOLOGY: Final = "topology.pdb"
START: Final = "start"

#: The format of a checkpoint that this package writes and reads.
FORMAT_VERSION: Final = 2


class RunError(RuntimeError):
    """A run cannot go on; all that has been committed is intact."""


@dataclass(frozen=True)
class Layout:
    """What frames look like on the disk; the spacing is the MD time between two of them."""

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

    Numbers and settings, OpenMM's own checkpoint, OpenMM's State as XML, and the bytes that the
    trajectory and the log get with it.
    """

    state: dict[str, Any]
    openmm: bytes
    portable: str
    pending: tuple[bytes, bytes]


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of a run's directory, if there is one.

    ValueError if it is damaged or of another version.
    """
    file = folder / CHECKPOINT
    checkpoint = journal.read_checkpoint(
        file,
        lambda state, data: Checkpoint(
            state,
            data["openmm"].tobytes(),
            zlib.decompress(data["portable"].tobytes()).decode(),
            (data["pending_0"].tobytes(), data["pending_1"].tobytes()),
        ),
    )
    version = FORMAT_VERSION if checkpoint is None else checkpoint.state.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"output: {file} has format version {version!r}, this version of openmm-sd reads "
            f"{FORMAT_VERSION}"
        )
    return checkpoint


class Output:
    """Trajectory, log and checkpoint of a run, of which `frames` are on the disk.

    What is missing behind the last checkpoint is appended by `recover`.
    """

    def __init__(self, folder: Path, layout: Layout, checkpoint: Checkpoint | None) -> None:
        self.folder = folder
        self.layout = layout
        self.frames = 0
        self._files = GrowingFile(folder / layout.stream), GrowingFile(folder / LOG)
        self._held: float | None = None
        self._gathered: list[
            tuple[NDArray[np.float32], float, NDArray[np.float64] | None, tuple[float, ...]]
        ] = []
        self._lines: list[str] = []
        self._raw = RawFrames(layout.n_atoms, layout.periodic, ARRAYS)
        self._last = checkpoint
        if checkpoint is not None:
            self.frames = int(checkpoint.state["frames"])
            self._held = float(checkpoint.state["numbers"]["effective_time_ps"])

    @property
    def waiting_bytes(self) -> int:
        """Size of the frames in memory."""
        return len(self._gathered) * self.layout.n_atoms * 12

    @property
    def has_lines(self) -> bool:
        """Whether the log has any line yet."""
        return bool(self._files[1].end or self._lines)

    @property
    def standing(self) -> str:
        """What is safe, in words."""
        if self._held is None:
            return "nothing has been run yet"
        return f"the last checkpoint is intact and holds {self._held:g} ps of effective time"

    def add(
        self,
        frame: NDArray[np.float32],
        time: float,
        box: NDArray[np.float64] | None,
        status: tuple[float, ...],
        line: str,
    ) -> None:
        """Gather a frame (nm, at an effective time in ps), its status and its log line."""
        self._gathered.append((frame, time, box, status))
        self._lines.append(line)

    def commit(self, state: dict[str, Any], openmm: bytes, portable: str) -> None:
        """Write a checkpoint, then append what was gathered.

        It has numbers and settings that JSON can hold, OpenMM's checkpoint, and OpenMM's State as
        XML.
        """
        with self.writing(self._files[0].path):
            pending = self._encoded(), "".join(self._lines).encode()
        total = self.frames + len(self._gathered)
        state = {
            **state,
            "format_version": FORMAT_VERSION,
            "frames": total,
            "ends": [file.end for file in self._files],
            "layout": vars(self.layout),
        }
        with self.writing(self.folder / CHECKPOINT):
            journal.write_checkpoint(
                self.folder / CHECKPOINT,
                state=state,
                openmm=openmm,
                portable=zlib.compress(portable.encode(), 1),
                pending_0=pending[0],
                pending_1=pending[1],
            )
        self._last = Checkpoint(state, openmm, portable, pending)
        self._held = float(state["numbers"]["effective_time_ps"])
        self.frames = total
        self._gathered.clear()
        self._lines.clear()
        self._append(*pending)

    def recover(self, going_on: bool) -> None:
        """Append what the last checkpoint holds and the files do not.

        `going_on` says whether more will follow. ValueError if a file is not what the checkpoint
        was written for.
        """
        assert self._last is not None
        for file, end in zip(self._files, self._last.state["ends"], strict=True):
            file.end = int(end)
        stream = self._files[0].path
        if self.layout.format == "h5" and not stream.exists() and self._published():
            # A finished run has its frames in the HDF5 file only.
            if going_on:
                with self.writing(stream):
                    self._raw.from_hdf5(self.folder / FORMATS["h5"], stream)
            else:
                self._append(None, self._last.pending[1])
                return
        self._append(*self._last.pending)

    def publish(self, topology: app.Topology, complete: bool) -> None:
        """Make the HDF5 file of the frames on the disk, where that is the format.

        Of a run that is complete the raw frames are not needed any more.
        """
        if self.layout.format != "h5":
            return
        stream, target = self._files[0].path, self.folder / FORMATS["h5"]
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

    def write(self, name: str, content: str | dict[str, Any]) -> None:
        """Write a text, or JSON, whole or not at all."""
        with self.writing(self.folder / name):
            if isinstance(content, str):
                write_atomically(self.folder / name, content)
            else:
                write_json(self.folder / name, content)

    def writing(self, file: Path) -> AbstractContextManager[None]:
        """Say in one line which file could not be written, and what is safe."""
        further = "" if self._held is None else "; the same command resumes from there"
        return writing(file, f"{self.standing}{further}", RunError)

    def _published(self) -> bool:
        return self.frames > 0 and hdf5_frames(self.folder / FORMATS["h5"]) == self.frames

    def _encoded(self) -> bytes:
        """Return the gathered frames as the trajectory gets them."""
        layout, count = self.layout, len(self._gathered)
        header = b""
        if layout.format == "dcd" and not self.frames and not self._files[0].end:
            header = dcd_header(layout.n_atoms, count, layout.periodic, layout.spacing_ps)
        if not count:
            return header
        frames = np.stack([frame for frame, *_ in self._gathered])
        times = np.array([time for _, time, *_ in self._gathered], dtype=np.float32)
        boxes = None
        if layout.periodic:
            boxes = np.array([box for _, _, box, _ in self._gathered], dtype=np.float32)
        if layout.format == "xtc":
            steps = np.arange(self.frames, self.frames + count, dtype=np.int32)
            return xtc_bytes(frames, times, steps, boxes, self.folder)
        if layout.format == "dcd":
            return header + dcd_bytes(frames, boxes)
        return self._raw.encode(frames, times, boxes, [status for *_, status in self._gathered])

    def _split(self, data: bytes) -> list[bytes]:
        """Return the header and the frames that make up some bytes of the trajectory."""
        layout = self.layout
        if layout.format == "xtc":
            return xtc_frames(data)
        if layout.format == "h5":
            size = self._raw.dtype.itemsize
            return [data[k : k + size] for k in range(0, len(data), size)]
        header = not self._files[0].end and bool(data)
        return dcd_frames(data, layout.n_atoms, layout.periodic, header)

    def _append(self, frames: bytes | None, lines: bytes) -> None:
        """Append behind the known ends; None leaves the trajectory alone."""
        stream, log = self._files
        if frames is not None:
            counts = dcd_counts(self.frames) if self.layout.format == "dcd" else []
            with self.writing(stream.path):
                stream.complete(self._split(frames), counts)
        with self.writing(log.path):
            log.complete(lines.splitlines(keepends=True))
