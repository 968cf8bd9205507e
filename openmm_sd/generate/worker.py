"""A process that makes runs, one at a time, for `openmm_sd.generate.pool`.

Reads a JSON line with the job and then one JSON line a run on standard input; writes JSON lines on
standard output: ``{"ps": ...}`` on the way, ``{"warn": ...}``, ``{"done": bool}`` after each run,
or ``{"error": ..., "kind": ...}``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..workers.processes import serve

# Parents need not hear of every frame.
_TELL_SECONDS = 0.5


def _work(
    orders: TextIO, say: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]
) -> None:
    from .dynamics import Machine
    from .engines import run_maker
    from .parts import Parts
    from .settings import GenerateSettings
    from .start import Plan

    made, said = 0.0, time.monotonic()

    def tell(ps: float) -> None:
        nonlocal made, said
        made += ps
        if time.monotonic() - said > _TELL_SECONDS:
            say({"ps": made})
            made, said = 0.0, time.monotonic()

    job = json.loads(orders.readline())
    parts = Parts(Path(job["parts"]))
    start = parts.load_start()
    assert start is not None
    job["settings"]["force_field"] = tuple(job["settings"]["force_field"])
    settings = GenerateSettings(**job["settings"])
    goals = None if job["goals"] is None else np.array(job["goals"])
    plan = Plan(start, settings, [tuple(t) for t in job["torsions"]], goals)
    machine = Machine(**job["machine"])
    make_run = run_maker(settings.engine)
    for line in iter(orders.readline, ""):
        kind, index = json.loads(line)
        done = make_run(
            *(parts, plan, (kind, index), machine, stopped, tell), lambda text: say({"warn": text})
        )
        say({"ps": made, "done": done})
        made = 0.0
        if stopped():
            return


if __name__ == "__main__":
    serve(_work)
