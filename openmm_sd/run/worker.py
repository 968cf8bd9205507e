"""A process that makes one copy of a run, for `openmm_sd.run.ensemble`.

Reads one JSON line on standard input: ``model``, ``start``, ``output``, ``settings`` and whether a
``report`` is wanted. Writes JSON lines on standard output: ``{"what": ..., "how_far": ...}`` on the
way; at the end ``{"done": true}``, ``{"stopped": true}`` or ``{"error": ..., "kind": ...}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TextIO

from ..workers.processes import serve


def _work(
    orders: TextIO, say: Callable[[dict[str, Any]], None], stopped: Callable[[], bool]
) -> None:
    order = json.loads(orders.readline())
    # torch before OpenMM, which loads openmm-torch's plugin when it is imported.
    import torch  # noqa: F401

    from .driver import run_mixed
    from .report.page import write_report
    from .settings import RunSettings

    given = order["settings"]
    if given["force_field"] is not None:
        given["force_field"] = tuple(given["force_field"])

    def tell(what: str, how_far: str) -> None:
        say({"what": what, "how_far": how_far})

    try:
        run_mixed(
            *(order["model"], order["start"], order["output"], RunSettings(**given)),
            progress=tell,
            stopped=stopped,
        )
    except KeyboardInterrupt:
        say({"stopped": True})
        return
    if order["report"]:
        try:
            write_report(order["output"], model=order["model"], reference=order["reference"])
        except Exception as error:  # the run is on the disk, whatever its report stumbles over
            say({"what": "note", "how_far": f"no report of {order['output']}: {error}"})
    say({"done": True})


if __name__ == "__main__":
    serve(_work)
