"""What runs that may be stopped, killed and taken up again have in common."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Make an output directory and keep other processes out of it.

    Parameters
    ----------
    folder : Path
        The directory; it is removed again where it was made here and nothing has been written.
    what : str
        What writes to it, for the message.

    Raises
    ------
    ValueError
        If it is a file, cannot be written, or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file, wanted is a directory")
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"output: cannot write to {folder}: {error.strerror or error}") from None
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"output: cannot write to {folder}: no permission")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output: another {what} is writing to {folder}") from None
        except OSError:
            pass  # some network file systems cannot lock a directory
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only an empty one goes
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def interrupts(
    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[Callable[[], bool]]:
    """Turn the first request to stop into an answer, so that it cannot fall between two writes.

    Parameters
    ----------
    numbers : tuple of signal.Signals
        The signals; a second one does what it did before.

    Yields
    ------
    callable
        Whether a signal has come.
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

    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield seen.is_set
    finally:
        restore()
