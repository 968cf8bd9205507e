"""A checkpoint, and the files that grow with it, so that a killed run can be taken up exactly.

A checkpoint is one NumPy archive, written whole or not at all. It knows where each growing file
ends, and there are two ways for the two to keep step:

ahead
    The checkpoint holds the bytes that the files get with it, and is written first. Whatever has
    been visible once is in a checkpoint, and is never lost or altered: `GrowingFile.complete`
    appends what a kill has kept from the files.
behind
    The files grow on the way (`GrowingFile.write`) and are brought to the disk before the
    checkpoint that knows their sizes. What they hold beyond it is cut off (`GrowingFile.cut`) and
    made again. This needs no memory for all that is made between two checkpoints.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .atomic import Content, read_arrays, sync, write_arrays


def write_checkpoint(file: Path, **content: ArrayLike | bytes | dict[str, Any]) -> None:
    """Write a checkpoint of arrays, bytes, and dicts that JSON can hold, down to the disk."""
    arrays: dict[str, ArrayLike] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            value = np.array(json.dumps(value, allow_nan=False))
        arrays[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    write_arrays(file, **arrays)


def read_checkpoint(
    file: Path, decode: Callable[[dict[str, Any], Mapping[str, NDArray[Any]]], Content]
) -> Content | None:
    """Return what is made of a checkpoint's ``state``, a dict, and its arrays; None without one."""
    if not file.exists():
        return None
    return read_arrays(file, lambda data: decode(json.loads(str(data["state"])), data))


class GrowingFile:
    """A file that grows, and whose end a checkpoint knows; it is made where it does not exist.

    `end` is its size in bytes, as far as a checkpoint knows it or has been written since.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0

    def complete(self, pieces: Sequence[bytes], patches: Sequence[tuple[int, bytes]] = ()) -> None:
        """Append what a checkpoint holds and the file does not yet, down to the disk.

        `pieces` are frames or lines, of which the file may hold a part already; `patches` say what
        to write into its header afterwards, as (place, bytes). ValueError if the file holds
        something else there. After an OSError it ends behind the last piece that was written whole.
        """
        data = b"".join(pieces)
        new, size = self._size(self.end, self.end + len(data))
        # Unbuffered, so that what fails has failed here.
        with open(self.path, "w+b" if new else "r+b", buffering=0) as stream:
            stream.seek(self.end)
            if stream.read() != data[: size - self.end]:
                raise ValueError(f"output: {self.path} was changed after the run was stopped")
            try:
                _write(stream, size, data[size - self.end :])
                os.fsync(stream.fileno())
            except OSError:
                # A frame that is cut short is a nuisance to readers; whole ones stay.
                written = stream.seek(0, os.SEEK_END) - self.end
                whole = max(k for k in accumulate(map(len, pieces), initial=0) if k <= written)
                with contextlib.suppress(OSError):
                    stream.truncate(self.end + max(whole, 0))
                raise
            for place, values in patches:
                _write(stream, place, values)
            os.fsync(stream.fileno())
        if new:
            sync(self.path.parent)
        self.end += len(data)

    def cut(self, end: int) -> None:
        """Cut off what a checkpoint does not know; a file shorter than that is refused."""
        self.end = end
        self._size(end, math.inf)
        with open(self.path, "ab") as stream:
            stream.truncate(end)

    def write(self, data: bytes) -> None:
        """Append at the end; it is on the disk after `sync`."""
        with open(self.path, "r+b", buffering=0) as stream:
            _write(stream, self.end, data)
        self.end += len(data)

    def sync(self) -> None:
        """Bring what was written down to the disk."""
        sync(self.path)

    def _size(self, least: int, most: float) -> tuple[bool, int]:
        """Return whether the file is new, and its size; refuse one that is not what it was."""
        new = not self.path.exists()
        if not new and not self.path.is_file():
            raise ValueError(f"output: {self.path} is not a regular file")
        size = 0 if new else self.path.stat().st_size
        if not least <= size <= most:
            raise ValueError(
                f"output: {self.path} {'is missing' if new else f'has {size} bytes'}, its "
                f"checkpoint asks for {most if most < math.inf else least}: it was changed after "
                "the run was stopped"
            )
        return new, size


def _write(stream: io.FileIO, place: int, data: bytes) -> None:
    stream.seek(place)
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
