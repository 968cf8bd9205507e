"""Files that are there whole or not at all, what JSON can hold, and an error in one line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Content = TypeVar("Content")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a name to write to; at the end that file takes the target's place, down to the disk.

    After an exception, which is passed on, what stood there before is untouched.
    """
    # Not tempfile: its files are readable by their owner only, and the mode would stay.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    # The new name itself has to reach the disk, or a power cut brings the old file back.
    sync(target.parent)


def check_target(target: Path) -> None:
    """Raise ValueError, in one line, if no file can be written there; a long work begins with it.

    A link that leads nowhere is refused too: the file would take its place, not the place that it
    names, on a disk that is not mounted for instance.
    """
    if target.is_dir():
        raise ValueError(f"output: {target} is a directory, wanted is the name of a file")
    if target.is_symlink() and not target.exists():
        raise ValueError(f"output: {target} is a link to {os.readlink(target)}, which is not there")
    if target.exists() and not target.is_file():
        raise ValueError(f"output: {target} is not a regular file")
    if not target.parent.is_dir():
        raise ValueError(f"output: {target.parent} is not a directory: make it first")
    # The longest of the names that are written beside it.
    attempt = target.with_name(f".{target.name}.checkpoint.{os.getpid()}.tmp")
    try:
        attempt.touch()
        attempt.unlink()
    except OSError as error:
        raise ValueError(f"output: cannot write to {target.parent}: {why(error)}") from None


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, down to the disk."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(target: Path, data: bytes | memoryview | str) -> None:
    """Write a file that is there whole, and on the disk, or not at all."""
    with replacing(target) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(target: Path, content: Any, indent: int = 2) -> None:
    """Write JSON that any reader takes, whole or not at all; NaN and infinity are refused."""
    write_atomically(target, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_arrays(target: Path, compress: bool = False, /, **arrays: ArrayLike) -> None:
    """Write a NumPy archive, whole or not at all."""
    memory = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if compress else np.savez
    save(memory, **arrays)
    write_atomically(target, memory.getbuffer())


def read_arrays(
    file: Path, decode: Callable[[Mapping[str, NDArray[Any]]], Content], advice: str = ""
) -> Content:
    """Return what `decode` makes of a NumPy archive; ValueError in one line if it is damaged."""
    try:
        memory = io.BytesIO(file.read_bytes())  # NumPy leaves a damaged file open
    except OSError as error:
        raise ValueError(f"output: {file} cannot be read: {why(error)}{advice}") from None
    try:
        with np.load(memory, allow_pickle=False) as content:
            return decode(content)
    except KeyError as error:
        raise ValueError(f"output: {file} is damaged: it lacks {error}{advice}") from None
    except Exception as error:  # a damaged archive fails in many ways
        # NumPy takes anything that it does not know for pickled, and tells how to execute it.
        said = "it is not a NumPy archive" if "pickle" in str(error) else one_line(error)
        raise ValueError(f"output: {file} is damaged: {said}{advice}") from None


def finite(value: Any) -> Any:
    """Return plain numbers for NumPy's, and None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(error: object) -> str:
    """Return what an exception or a warning says in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of what it says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"


def why(error: OSError) -> str:
    """Return the system's own words for what went wrong with a file."""
    return error.strerror or one_line(error)


@contextlib.contextmanager
def writing(file: Path, safe: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Say in one line which file could not be written, and what is safe, in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {file}: {why(error)}; {safe}") from error
