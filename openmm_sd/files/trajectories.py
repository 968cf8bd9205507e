"""Trajectory files as bytes: frames that can be put behind what a file holds already.

A run that may be killed at any moment must know exactly which bytes of a file are its own. XTC and
DCD files are their frames one after the other, DCD behind a header with a count; an HDF5 file that
is open when its writer is killed is lost, so it is made of plain numbers when a run ends.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .atomic import one_line, replacing

#: File formats of a trajectory, with the file each one gives.
FORMATS: Final = {"xtc": "trajectory.xtc", "dcd": "trajectory.dcd", "h5": "trajectory.h5"}

#: XTC rounds coordinates to this, nm.
XTC_PRECISION_NM: Final = 0.001

#: Frames that are on their way into an HDF5 file, as plain numbers.
RAW_FILE: Final = "trajectory.part"

# Header of an XTC frame, bytes: magic, atoms, step, time, box, atoms; then the precision, six
# bounds, an index and the number of bytes that follow. Up to nine atoms are not compressed.
_XTC_PLAIN: Final = 56
_XTC_PACKED: Final = 92
_XTC_SMALL: Final = 9
# Compressed frames beyond 2 GB have a magic number of their own and a longer count.
_XTC_MAGIC, _XTC_LARGE_MAGIC = 1995, 2023
#: So much of an XTC frame says how long it is, bytes.
XTC_HEAD: Final = _XTC_PACKED + 4

# DCD keeps the time between two frames in AKMA units of this many ps.
_AKMA_PS: Final = 0.04888821
# Places of the number of frames and of the last step in a DCD header.
_DCD_FRAMES, _DCD_LAST = 8, 20

# A chunk of an HDF5 file's coordinates, bytes and frames at most.
_CHUNK_BYTES, _CHUNK_FRAMES = 2**20, 256


@contextlib.contextmanager
def ascii_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a file a name that mdtraj's XTC and DCD readers and writers take: they know ASCII only.

    For any other name that is a symbolic link in a temporary folder, to the file where it exists,
    else to its folder.
    """
    whole = os.path.abspath(path)
    if whole.isascii():
        yield whole
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "link"
        if os.path.exists(whole):
            link = link.with_suffix("".join(s for s in Path(whole).suffixes if s.isascii()))
            link.symlink_to(whole)
            yield str(link)
        else:
            link.symlink_to(os.path.dirname(whole))
            yield str(link / os.path.basename(whole))


#: What mdtraj and its libraries say of files that are something else, and what that means.
_PLAIN_WORDS: Final = {
    "HDF5 error": "it is not an HDF5 file",
    "group ``/`` does not have": "it is HDF5, but no trajectory of mdtraj's",
    "Malformed XTC file": "it is empty, damaged or not an XTC file",
    "Could not open file": "it is empty, damaged or of another format than its name says",
    "Sorry, no loader": "mdtraj knows no trajectories with that ending",
    '"top" argument': "its format holds no topology: give one (--topology)",
}


def unreadable(error: BaseException) -> str:
    """Return, in a few words, why mdtraj could not read a file."""
    text = one_line(error)
    if isinstance(error, ImportError) and "PyTables" in text:
        return "reading HDF5 trajectories needs PyTables (pip install tables)"
    return next((plain for said, plain in _PLAIN_WORDS.items() if said in text), text[:300])


def xtc_bytes(
    frames: NDArray[np.float32],
    times: NDArray[np.float32],
    steps: NDArray[np.int32],
    boxes: NDArray[np.float32] | None,
    folder: Path,
) -> bytes:
    """Encode frames (T, N, 3) and boxes (T, 3, 3) in nm, times (T,) in ps, and step numbers.

    An XTC file is its frames one after the other. mdtraj writes to files only: a short-lived one
    stands in `folder`, and OSError says that it could not be written, on a full disk for instance.
    """
    if not len(frames):
        return b""
    import mdtraj

    chunk = folder / ".chunk.xtc"
    try:
        reason = "the file is too short"
        try:
            with (
                ascii_path(chunk) as name,
                mdtraj.formats.XTCTrajectoryFile(name, "w", force_overwrite=True) as file,
            ):
                file.write(
                    frames,
                    time=times.astype(np.float32),
                    step=steps.astype(np.int32),
                    box=None if boxes is None else boxes.astype(np.float32),
                )
            data = chunk.read_bytes()
            # mdtraj does not look whether the last bytes found a place on the disk.
            if len(xtc_frames(data)) == len(frames):
                return data
        except (RuntimeError, ValueError) as error:
            reason = str(error)
        with open(chunk, "wb") as plain:
            # The system's own words, where the disk is the trouble.
            plain.write(frames.tobytes())
        raise OSError(errno.EIO, f"frames cannot be encoded: {reason}", str(chunk))
    finally:
        with contextlib.suppress(OSError):
            chunk.unlink()


def xtc_frames(data: bytes) -> list[bytes]:
    """Take an XTC file apart into its frames; ValueError if one is cut off or it is no XTC file."""
    frames = []
    place = 0
    while place < len(data):
        length = xtc_length(data[place : place + XTC_HEAD])
        if length is None or place + length > len(data):
            raise ValueError("the last frame is cut off")
        frames.append(data[place : place + length])
        place += length
    return frames


def xtc_length(head: bytes) -> int | None:
    """Return the length in bytes of the XTC frame that begins so; None if its header is cut off."""
    if len(head) < 8:
        return None
    magic, atoms = struct.unpack_from(">2i", head)
    if magic not in (_XTC_MAGIC, _XTC_LARGE_MAGIC):
        raise ValueError("this is not an XTC file")
    if atoms <= _XTC_SMALL:
        return _XTC_PLAIN + 12 * int(atoms)
    count, kind = (8, ">q") if magic == _XTC_LARGE_MAGIC else (4, ">i")
    if len(head) < _XTC_PACKED - 4 + count:
        return None
    (size,) = struct.unpack_from(kind, head, _XTC_PACKED - 4)
    return _XTC_PACKED - 4 + count + -(-int(size) // 4) * 4


def dcd_header(n_atoms: int, n_frames: int, periodic: bool, spacing_ps: float) -> bytes:
    """Return the header of a DCD file; `dcd_counts` changes the number of frames in it later.

    `spacing_ps` is the time between two frames: a DCD file has one number for all of them.
    """
    return b"".join(
        (
            struct.pack("<i4s", 84, b"CORD"),
            struct.pack("<9if", n_frames, 1, 1, n_frames, 0, 0, 0, 0, 0, spacing_ps / _AKMA_PS),
            struct.pack("<10i", int(periodic), *[0] * 8, 24),
            struct.pack("<3i", 84, 164, 2),
            struct.pack("<80s80s", b"Created by openmm-sd", b""),
            struct.pack("<4i", 164, 4, n_atoms, 4),
        )
    )


def dcd_counts(n_frames: int) -> list[tuple[int, bytes]]:
    """Return what changes in a DCD header when frames are added, as (place, bytes)."""
    return [(place, struct.pack("<i", n_frames)) for place in (_DCD_FRAMES, _DCD_LAST)]


def dcd_bytes(frames: NDArray[np.float32], boxes: NDArray[np.float32] | None) -> bytes:
    """Encode frames (T, N, 3) and boxes (T, 3, 3), nm, as a DCD file has them, in angstroms."""
    pieces = []
    size = struct.pack("<i", 4 * frames.shape[1])
    for k, frame in enumerate(frames):
        if boxes is not None:
            lengths, angles = cell(boxes[k : k + 1])
            (a, b, c), (alpha, beta, gamma) = 10.0 * lengths[0], np.cos(np.deg2rad(angles[0]))
            pieces.append(struct.pack("<i6di", 48, a, gamma, b, beta, alpha, c, 48))
        for axis in range(3):
            pieces += [size, (10.0 * frame[:, axis]).astype("<f4").tobytes(), size]
    return b"".join(pieces)


def dcd_frames(data: bytes, n_atoms: int, periodic: bool, header: bool) -> list[bytes]:
    """Take bytes of a DCD file apart into the header, where they begin with it, and frames."""
    size = 3 * (4 * n_atoms + 8) + (56 if periodic else 0)
    begin = len(dcd_header(n_atoms, 0, periodic, 1.0)) if header else 0
    frames = [data[k : k + size] for k in range(begin, len(data), size)]
    return [data[:begin], *frames] if header else frames


def cell(boxes: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lengths (nm) and angles (degrees) of boxes, shape (T, 3, 3) -> (T, 3) each."""
    vectors = np.asarray(boxes, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=2)
    pairs = ((1, 2), (0, 2), (0, 1))
    cosines = [
        (vectors[:, i] * vectors[:, j]).sum(1) / (lengths[:, i] * lengths[:, j]) for i, j in pairs
    ]
    return lengths, np.rad2deg(np.arccos(np.clip(np.stack(cosines, axis=1), -1.0, 1.0)))


class RawFrames:
    """Layout of the plain numbers that an HDF5 file is made of.

    `more` names further numbers of a frame, with their types.
    """

    def __init__(self, n_atoms: int, periodic: bool, more: Mapping[str, str] | None = None) -> None:
        self.n_atoms = n_atoms
        self.periodic = periodic
        self._more = dict(more or {})
        fields: list[tuple[Any, ...]] = [("time", "<f4"), *self._more.items()]
        if periodic:
            fields += [("cell_lengths", "<f4", 3), ("cell_angles", "<f4", 3)]
        self.dtype = np.dtype([*fields, ("coordinates", "<f4", (n_atoms, 3))])
        self._per_block = max(1, 16 * _CHUNK_BYTES // self.dtype.itemsize)

    def encode(
        self,
        frames: NDArray[np.float32],
        times: NDArray[np.float32],
        boxes: NDArray[np.float32] | None,
        more: Sequence[tuple[float, ...]] = (),
    ) -> bytes:
        """Return frames (nm), times (ps), box vectors (nm) and further numbers as bytes."""
        records = np.zeros(len(frames), dtype=self.dtype)
        records["time"], records["coordinates"] = times, frames
        if self.periodic:
            records["cell_lengths"], records["cell_angles"] = cell(np.asarray(boxes))
        for name, values in zip(self._more, zip(*more, strict=True), strict=False):
            records[name] = values
        return records.tobytes()

    def blocks(self, file: Path, count: int) -> Iterable[dict[str, NDArray[Any]]]:
        """Read `count` frames, some at a time, as `write_hdf5` takes them."""
        with open(file, "rb") as raw:
            for begin in range(0, count, self._per_block):
                size = min(self._per_block, count - begin)
                records = np.fromfile(raw, dtype=self.dtype, count=size)
                assert self.dtype.names is not None
                yield {name: records[name] for name in self.dtype.names}

    def from_hdf5(self, file: Path, target: Path) -> None:
        """Write the frames of an HDF5 file back as they were before it was made."""
        import h5py

        assert self.dtype.names is not None
        with (
            replacing(target) as temporary,
            h5py.File(file, "r") as content,
            open(temporary, "wb") as raw,
        ):
            count = len(content["coordinates"])
            for begin in range(0, count, self._per_block):
                end = min(begin + self._per_block, count)
                records = np.zeros(end - begin, dtype=self.dtype)
                for name in self.dtype.names:
                    records[name] = content[name][begin:end]
                raw.write(records.tobytes())


def hdf5_frames(file: Path) -> int:
    """Return the number of frames in an HDF5 trajectory; -1 if it cannot be read."""
    import h5py

    try:
        with h5py.File(file, "r") as content:
            return len(content["coordinates"])
    except (OSError, KeyError):
        return -1


def write_hdf5(
    target: Path,
    topology: dict[str, Any],
    count: int,
    blocks: Iterable[dict[str, NDArray[Any]]],
    *,
    application: str,
    title: str,
) -> None:
    """Write an HDF5 trajectory in mdtraj's layout, whole or not at all, also over an existing file.

    `topology` is that of `openmm_sd.molecule.topology.mdtraj_topology`. The `blocks` follow each
    other: ``coordinates`` (T, N, 3) in nm, ``time`` (T,) in ps, and for periodic systems
    ``cell_lengths`` in nm and ``cell_angles`` in degrees, (T, 3) each; others, of any other name,
    have no unit. `count` is the number of frames in all of them.
    """
    import h5py

    units = {
        "coordinates": b"nanometers",
        "time": b"picoseconds",
        "cell_lengths": b"nanometers",
        "cell_angles": b"degrees",
    }
    try:
        with replacing(target) as temporary, h5py.File(temporary, "w") as file:
            for name, text in (
                ("conventions", "Pande"),
                ("conventionVersion", "1.1"),
                ("program", "openmm-sd"),
                ("programVersion", importlib.metadata.version("openmm-sd")),
                ("application", application),
                ("title", title),
            ):
                file.attrs[name] = np.bytes_(text)
            text = json.dumps(topology)
            file.create_dataset("topology", data=np.array([text.encode("ascii")]))
            begin = 0
            for block in blocks:
                for name, values in block.items():
                    if name not in file:
                        shape = values.shape[1:]
                        bytes_each = 4 * int(np.prod(shape))
                        chunk = min(_CHUNK_FRAMES, max(1, _CHUNK_BYTES // bytes_each), count)
                        made = file.create_dataset(
                            name,
                            shape=(count, *shape),
                            maxshape=(None, *shape),
                            chunks=(chunk, *shape),
                            dtype=values.dtype,
                        )
                        if name in units:
                            made.attrs["units"] = np.bytes_(units[name])
                    file[name][begin : begin + len(values)] = values
                begin += len(block["coordinates"])
            if not count:
                atoms = [len(r["atoms"]) for chain in topology["chains"] for r in chain["residues"]]
                shape = (sum(atoms), 3)
                made = file.create_dataset(
                    "coordinates", (0, *shape), "<f4", maxshape=(None, *shape)
                )
                made.attrs["units"] = np.bytes_(units["coordinates"])
                file.create_dataset("time", (0,), "<f4", maxshape=(None,))
    except RuntimeError as error:  # what h5py raises where closing a file fails
        raise OSError(errno.EIO, one_line(error), str(target)) from error
