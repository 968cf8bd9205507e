"""One loop for work that several share: give out, take in, repeat what was lost, stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Protocol, TypeVar

Task = TypeVar("Task", bound=Hashable)

#: How often work is given to somebody else after whoever had it was lost.
LOSSES: Final = 3
_POLL_SECONDS: Final = 0.2


class Pool(Protocol[Task]):
    """Makes several tasks at the same time.

    Events are dicts, each with the task that it is about. Two keys mean something to `share_out`:
    ``lost`` (who made the task is gone; it can be started again) and ``error`` (the task has
    failed); all others are between the pool and whoever hears.
    """

    @property
    def slots(self) -> int:
        """How many tasks can be made at the same time."""

    @property
    def busy(self) -> int:
        """How many tasks are being made."""

    def start(self, task: Task) -> None:
        """Begin a task, or resume it."""

    def events(self, seconds: float) -> list[tuple[Task, dict[str, Any]]]:
        """Wait for events, at most so long."""

    def stop(self) -> None:
        """Have what is being made cut short and kept; from now on a loss is no event."""

    def close(self) -> None:
        """End all."""


def share_out(
    tasks: Iterable[Task],
    pool: Pool[Task],
    hear: Callable[[Task, dict[str, Any]], None],
    *,
    stopped: Callable[[], bool],
    look: Callable[[int], None] | None = None,
) -> None:
    """Have tasks made by a pool, in their order; the pool is closed at the end.

    `hear` gets each task's events; a task that was lost too often comes as an ``error``. Once
    `stopped` says so, nothing more is begun and what is being made is cut short. `look` is called
    in every round with the number of tasks that nobody has begun.
    """
    waiting, losses = list(tasks), Counter[Task]()
    told = False
    try:
        while waiting or pool.busy:
            if not told and stopped():
                told = True
                waiting.clear()
                pool.stop()
            while waiting and pool.busy < pool.slots:
                pool.start(waiting.pop(0))
            if look is not None:
                look(len(waiting))
            for task, event in pool.events(_POLL_SECONDS):
                if "lost" in event:
                    losses[task] += 1
                    if losses[task] > LOSSES:
                        event = {"error": f"{losses[task]} processes ended while they made it"}
                    elif not told:
                        waiting.insert(0, task)
                hear(task, event)
    finally:
        pool.close()
