"""A module as its parts: what stands in the model's file, and the rest.

A System that holds a jump holds a module of megabytes, nearly all of which are weights that stand
in the model's file as well. What is written of it names those places instead, and the file. A part
is either bytes or a place: offset and length in the file, and whether numbers of 16 bits there are
of 32 bits in the module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..model.names import shipped_folder

Part: TypeAlias = bytes | tuple[int, int, bool]

#: Folders in which a model's file is looked for that is not at its place, with colons between them.
FOLDERS = "OPENMM_SD_MODELS"

#: Tensors of fewer bytes are not looked for: naming their place would take as much.
_LEAST = 1024


def split(module: bytes, file: str | None) -> list[Part]:
    """Return the parts of a module; without a file, or if nothing of it is there, only one."""
    found: list[tuple[int, int, Part]] = []
    try:
        data = Path(file).read_bytes() if file else b""
    except OSError:
        data = b""  # gone since the model was loaded
    for place, content in _tensors(data) if data else ():
        start = module.find(content)
        while start >= 0:
            found.append((start, -len(content), place))
            start = module.find(content, start + len(content))
    parts: list[Part] = []
    done = 0
    for start, size, place in sorted(found, key=lambda one: one[:2]):
        if start < done:
            continue  # within another one
        if start > done:
            parts.append(module[done:start])
        parts.append(place)
        done = start - size
    return [*parts, module[done:]] if done < len(module) else parts


def join(parts: Sequence[Part], file: str | None, digest: str) -> bytes:
    """Put a module together again, whose SHA-256 is the digest.

    ValueError, in one line, if the model's file is not there or another one.
    """
    other = None
    for place in _places(file) if file else (None,):
        try:
            data = b"" if place is None else place.read_bytes()
        except OSError:
            continue
        module = b"".join(_content(part, data) for part in parts)
        if hashlib.sha256(module).hexdigest() == digest:
            return module
        other = other or place or "it"
    if other is not None:
        raise ValueError(
            f"openmm-sd: {other} is not the model's file that this System was made with"
        )
    raise ValueError(
        f"openmm-sd: this System needs the model's file {file}, which is not there; {FOLDERS} can "
        "name its folder"
    )


def _places(file: str) -> Iterator[Path]:
    """Where a model's file may be."""
    yield Path(file)
    name = Path(file).name
    for folder in os.environ.get(FOLDERS, "").split(":"):
        if folder:
            yield Path(folder) / name
    yield shipped_folder() / name


def _tensors(data: bytes) -> Iterator[tuple[Part, bytes]]:
    """Give the places in a bundle that a module may hold, with what would stand in the module."""
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in tensor["data_offsets"])
        if end - begin >= _LEAST:
            yield (begin, end - begin, False), data[begin:end]
        if tensor["dtype"] == "F16" and tensor["shape"]:
            # The novelty score has one row of these for each atom of a kind.
            row = (end - begin) // tensor["shape"][0]
            for offset in range(begin, end, row) if row >= _LEAST else ():
                yield (offset, row, True), _widened(data[offset : offset + row])


def _content(part: Part, data: bytes) -> bytes:
    if isinstance(part, bytes):
        return part
    offset, length, widened = part
    content = data[offset : offset + length]
    return _widened(content[: len(content) // 2 * 2]) if widened else content


def _widened(halves: bytes) -> bytes:
    return np.frombuffer(halves, dtype=np.float16).astype(np.float32).tobytes()
