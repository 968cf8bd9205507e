"""Output directories of runs that may be stopped, killed and taken up again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from .atomic import why

# Longer settings (digests, molecules) are named, not shown; characters.
_SHOWN: Final = 120


def check_folder(folder: Path) -> None:
    """Refuse an output directory that is no directory, or leads through a link to nowhere.

    ValueError in one line; a long work begins with it.
    """
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            raise ValueError(
                f"output: {place} is a link to {os.readlink(place)}, which is not there"
            )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file, wanted is a directory")


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Make an output directory and keep other processes out of it; `what` names who writes to it.

    ValueError if it is a file, cannot be written, or another process holds it. After an exception a
    directory that was made here is removed, if it is still empty.
    """
    check_folder(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"output: cannot write to {folder}: {why(error)}") from None
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"output: cannot write to {folder}: no permission")
        if not held(handle):
            raise ValueError(f"output: another {what} is writing to {folder}")
        sweep(folder)
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only an empty one goes
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def sole_writer(path: Path, what: str) -> Iterator[None]:
    """Keep other processes from writing to a file (`what` does); ValueError if one is at it."""
    beside = path.with_name(f"{path.name}.lock")
    try:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        said = f"cannot write {path}: {why(error)}; what was there before is intact"
        raise OSError(said) from None
    try:
        if not held(handle):
            raise ValueError(f"another {what} is writing to {path}")
        try:
            yield
        finally:
            beside.unlink(missing_ok=True)
    finally:
        os.close(handle)


def held(handle: int, seconds: float = 0.0) -> bool:
    """Lock an open file or directory against other processes; False if another one keeps it.

    It waits so many seconds for the lock, which lasts until the last copy of the descriptor is
    closed, including those that other processes have inherited.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)
        except OSError:
            return True  # some network file systems cannot lock a directory


def sweep(folder: Path) -> None:
    """Remove what a kill in the middle of writing left in a folder that nobody else writes to."""
    for pattern in (".*.tmp", ".chunk.xtc"):
        for file in folder.glob(pattern):
            file.unlink()


def refuse_others(
    folder: Path, what: str, known: Callable[[str], object] = lambda name: False
) -> None:
    """Refuse a directory that holds files but no `what`, a run for instance.

    Hidden files do not count, nor do names that are `known`.
    """
    others = sorted(
        file.name
        for file in folder.iterdir()
        if not file.name.startswith(".") and not known(file.name)
    )
    if others:
        raise ValueError(
            f"output: {folder} holds files but no {what} ({', '.join(others[:4])}); give a new "
            "directory"
        )


def require_same(
    what: str,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    advice: str = "give a new directory",
) -> None:
    """Refuse to go on with settings other than those that `what` was made with.

    The message names the settings that differ and ends with `advice`.
    """
    if different := _differences(there, here):
        raise ValueError(f"{what} made with other settings ({'; '.join(different)}); {advice}")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    result = []
    for name in sorted({*there, *here}):
        one, two = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            result += _differences(one, two)
        elif one != two:
            long = len(f"{one!r}{two!r}") > _SHOWN
            result.append(f"another {name}" if long else f"{name} {one!r} there, {two!r} here")
    return result


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into an answer, so that it cannot fall between two writes.

    Yields a function that says whether one has come. A second signal does what it did before.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.set()
        restore()  # a second one stops at once

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield seen.is_set
    finally:
        restore()
