"""A process that makes runs, one at a time, for `openmm_sd.generate.driver`.

Reads a JSON line with the job and then one JSON line a run on standard input; writes JSON lines on
standard output: ``{"ps": ...}`` on the way, ``{"warn": ...}``, ``{"done": bool}`` after each run,
or ``{"error": ..., "kind": ...}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

# Parents need not hear of every frame.
_TELL_SECONDS = 0.5


def main() -> None:
    """Serve until standard input ends or SIGTERM comes."""
    from pathlib import Path

    from .dynamics import Machine, make_run
    from .parts import Parts
    from .settings import GenerateSettings

    # The parent decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    parent = os.getppid()
    # What libraries print must not get between the lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(content: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(content) + "\n")
            answers.flush()
        except OSError:  # the parent is gone
            stop.append(0)

    def stopped() -> bool:
        return bool(stop) or os.getppid() != parent

    made, said = 0.0, time.monotonic()

    def tell(ps: float) -> None:
        nonlocal made, said
        made += ps
        if time.monotonic() - said > _TELL_SECONDS:
            say({"ps": made})
            made, said = 0.0, time.monotonic()

    try:
        job = json.loads(sys.stdin.readline())
        parts = Parts(Path(job["parts"]))
        start = parts.load_start()
        assert start is not None
        job["settings"]["force_field"] = tuple(job["settings"]["force_field"])
        settings = GenerateSettings(**job["settings"])
        torsions = [tuple(t) for t in job["torsions"]]
        machine = Machine(**job["machine"])
        for line in iter(sys.stdin.readline, ""):
            kind, index = json.loads(line)
            done = make_run(
                *(parts, start, settings, torsions, kind, index, machine, stopped, tell),
                lambda text: say({"warn": text}),
            )
            say({"ps": made, "done": done})
            made = 0.0
            if stopped():
                return
    except Exception as error:
        say({"error": " ".join(str(error).split()), "kind": type(error).__name__})
        raise


if __name__ == "__main__":
    main()
