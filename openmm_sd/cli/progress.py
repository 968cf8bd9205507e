"""Progress on standard error."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from typing import Final

# Where lines cannot be overwritten (a log file), a stage says how far it is this often, in seconds.
_INTERVAL: Final = 15.0
# On a terminal a stage that says nothing shows for how long, after so many seconds.
_SILENT: Final = 2.0
# How often the clock is looked at, s.
_TICK: Final = 1.0
# "step 3 of 100", "1.5 of 20 ps": of what is counted, rate and time left are known.
_COUNT: Final = re.compile(r"(\d[\d.]*) of (\d[\d.]*)( min\b)?")


class Progress:
    """Says what is being done and how far it is: a line a stage, on standard error.

    Call it with what is being done and how far that is. On a terminal the line is overwritten;
    elsewhere a new line is written now and then. Where it counts ("step 3 of 100") rate and time
    left are added; while a stage is silent, the time that it has taken so far. What is called a
    ``note`` is always written, and stays; `quiet` leaves nothing but notes. With `verbose` every
    call is a line of its own that begins with the seconds since the start.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._stream = sys.stderr
        self._terminal = self._stream.isatty() and not verbose
        self._what = self._how_far = ""
        self._start = self._began = self._called = self._said = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._clock: threading.Thread | None = None

    def __call__(self, what: str, how_far: str) -> None:
        if self._quiet and what != "note":
            return
        with self._lock:
            now = time.monotonic()
            if what == "note":
                start = "\n" if self._terminal and self._what else ""
                self._write(f"{start}{what}: {how_far}\n")
                self._what = ""
                return
            new = what != self._what
            if new:
                self._began, self._first = now, None
            self._how_far = how_far + self._pace(how_far, now)
            self._called = now
            if new or self._terminal or self._verbose or now - self._said > _INTERVAL:
                self._say(what, now, new)
        if self._clock is None:
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()

    def close(self) -> None:
        """End the line."""
        self._over.set()
        with self._lock:
            if self._terminal and self._what:
                self._write("\n")
            self._what = ""

    def _say(self, what: str, now: float, new: bool, for_s: float | None = None) -> None:
        line = f"{what}: {self._how_far}" if self._how_far else what
        if for_s is not None:
            line += f" ({_duration(for_s)})"
        if self._terminal:
            # A line that wraps could not be overwritten.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._write(("\n" if self._what else "") + line if new else f"\r\x1b[K{line}")
        else:
            stamp = f"{now - self._start:8.1f} s  " if self._verbose else ""
            self._write(f"{stamp}{line}\n")
        self._said, self._what = now, what

    def _tick(self) -> None:
        """Show that a silent stage is still at work, and for how long."""
        while not self._over.wait(_TICK):
            with self._lock:
                now = time.monotonic()
                silent = now - self._called > _SILENT
                if self._what and silent and (self._terminal or now - self._said > _INTERVAL):
                    try:
                        self._say(self._what, now, False, now - self._began)
                    except (OSError, ValueError):  # nobody reads: the stream was closed
                        return

    def _pace(self, how_far: str, now: float) -> str:
        """Return rate and time left of a stage that counts."""
        found = _COUNT.search(how_far)
        if found is None or "left" in how_far:
            return ""
        done, count = float(found[1]), float(found[2])
        if self._first is None or self._first[1] != count or done < self._first[0]:
            # What was done before, by an earlier part of the work, took other time.
            self._first, self._began = (done, count), now
        made, seconds = done - self._first[0], now - self._began
        if made <= 0.0 or seconds < _TICK:
            return ""
        rate = made / seconds
        left = f", {_duration((count - done) / rate)} left" if done < count else ""
        if found[3]:
            return left
        return (f", {rate:.3g}/s" if rate >= 1.0 else f", {1.0 / rate:.3g} s each") + left

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60.0)
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
