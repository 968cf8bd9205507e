"""Runs a program and ends it when its own parent ends: ``python keeper.py PARENT PROGRAM ...``.

GROMACS writes a checkpoint when it is told to stop, unless it is told twice. Linux tells a child of
a process with several threads once for each of them; this process, which has one, passes on the
first. It imports nothing of the package, so that it starts in no time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1
# How often a system that does not tell is asked whether the parent is still there.
_LOOK_SECONDS = 0.5


def _ended_with_parent(name: int) -> None:
    if sys.platform == "linux":  # elsewhere `keep` looks at who its parent is
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, name)


def keep(parent: int, command: list[str]) -> int:
    """Run a command to its end; return its exit code, or minus the signal that ended it."""
    told = False
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told and process is not None:
            process.send_signal(signal.SIGTERM)
        told = True

    signal.signal(signal.SIGTERM, pass_on)
    _ended_with_parent(signal.SIGTERM)
    # One thread: what runs between fork and exec cannot wait for a lock of another.
    process = subprocess.Popen(command, preexec_fn=lambda: _ended_with_parent(signal.SIGTERM))
    if told or os.getppid() != parent:
        told = True
        process.send_signal(signal.SIGTERM)
    while not told and sys.platform != "linux":
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=_LOOK_SECONDS)
        if os.getppid() != parent:
            pass_on(signal.SIGTERM, None)
    return process.wait()


if __name__ == "__main__":
    code = keep(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL cannot be caught and needs no default
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
