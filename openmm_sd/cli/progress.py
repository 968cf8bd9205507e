"""Progress on standard error."""

from __future__ import annotations

import shutil
import sys
import time

# Where lines cannot be overwritten (a log file), a stage says how far it is this often, in seconds.
_INTERVAL = 15.0


class Progress:
    """Says what is being done and how far it is: a line a stage, on standard error.

    Call it with what is being done and how far that is. On a terminal the line is overwritten;
    elsewhere a new line is written now and then. What is called a ``note`` is always written, and
    stays; `quiet` leaves nothing but notes.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stream = sys.stderr
        self._terminal = self._stream.isatty()
        self._what = ""
        self._said = 0.0

    def __call__(self, what: str, how_far: str) -> None:
        if self._quiet and what != "note":
            return
        line = f"{what}: {how_far}" if how_far else what
        now = time.monotonic()
        if what == "note":
            start = "\n" if self._terminal and self._what else ""
            self._stream.write(f"{start}{line}\n")
            self._stream.flush()
            self._what = ""
            return
        if self._terminal:
            # A line that wraps could not be overwritten.
            line = line[: shutil.get_terminal_size().columns - 1]
            start = "\r\x1b[K" if what == self._what else "\n" if self._what else ""
            self._stream.write(start + line)
        elif what != self._what or now - self._said > _INTERVAL:
            self._stream.write(line + "\n")
            self._said = now
        self._what = what
        self._stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._terminal and self._what:
            self._stream.write("\n")
            self._stream.flush()
        self._what = ""
