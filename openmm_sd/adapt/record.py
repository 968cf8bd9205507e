"""What an adaptation has done: the file that it goes on from, the clock, and what it has cost."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..files.atomic import write_json, writing
from ..files.folder import refuse_others, require_same
from ..progress import Progress

_FILE: Final = "state.json"
_KEPT: Final = "what was made before is kept, the same command resumes"
_GOING_ON: Final = {"finished": None, "budget_s": None}
#: A kill loses so much of the clock, s.
_TICK_SECONDS: Final = 2.0


class Record:
    """The state of an adaptation in its folder, which the caller holds the lock of.

    ``rounds`` has what each round has done, step by step; a step that is there is finished.
    ``seconds`` is the wall-clock time, and ``core_seconds`` what processors have worked, by what
    for; what was at work when the program was killed is not among the latter.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._path = folder / _FILE
        fresh: dict[str, Any] = {"rounds": [], "seconds": 0.0, "core_seconds": {}, "before": 0}
        fresh |= _GOING_ON
        if self._path.exists():
            try:
                self._content = {**fresh, **json.loads(self._path.read_text(encoding="utf-8"))}
                there = dict(self._content["identity"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"output: {self._path} is damaged: {error}") from None
            require_same(f"output: {folder} holds an adaptation", there, identity)
        else:
            refuse_others(folder, "adaptation")
            self._content = {"identity": identity, **fresh}
        self._began = self._told = time.monotonic()
        self._before = float(self._content["seconds"])
        self.save()

    @property
    def seconds(self) -> float:
        """Wall-clock time that the adaptation has taken, all its parts together, s."""
        return self._before + time.monotonic() - self._began

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What was done, round by round."""
        rounds: list[dict[str, Any]] = self._content["rounds"]
        return rounds

    @property
    def core_seconds(self) -> dict[str, float]:
        """What processors have worked, s, by what for."""
        costs: dict[str, float] = self._content["core_seconds"]
        return costs

    @property
    def finished(self) -> str | None:
        """Why it came to its end; None if it has not."""
        reason: str | None = self._content["finished"]
        return reason

    @property
    def before(self) -> int:
        """How many trainings there were when the budget was last enlarged after the end."""
        return int(self._content["before"])

    def finish(self, reason: str, budget_s: float) -> None:
        """Note why it came to its end, and within which budget."""
        self._content |= {"finished": reason, "budget_s": budget_s}
        self.save()

    def go_on(self, budget_s: float) -> bool:
        """Take up what has come to its end, if the budget is larger now; return whether it is."""
        if budget_s <= float(self._content["budget_s"]):
            return False
        self._content |= _GOING_ON
        self._content["before"] = sum("trained" in step for step in self.rounds)
        self.save()
        return True

    def round(self, number: int) -> dict[str, Any]:
        """Return what a round has done, an empty one if it has not begun."""
        while len(self.rounds) <= number:
            self.rounds.append({})
        return self.rounds[number]

    def save(self) -> None:
        """Write everything down."""
        self._content["seconds"] = round(self.seconds, 2)
        self._told = time.monotonic()
        with writing(self._path, _KEPT):
            write_json(self._path, self._content, indent=1)

    def ticking(self, say: Progress) -> Progress:
        """Return a progress that also writes down how late it is."""

        def progress(what: str, how_far: str) -> None:
            if time.monotonic() - self._told > _TICK_SECONDS:
                self.save()
            say(what, how_far)

        return progress

    @contextlib.contextmanager
    def at_work(self, purpose: str) -> Iterator[None]:
        """Count what processors do in here, processes that end in here too."""
        before = _cpu_seconds()
        try:
            yield
        finally:
            worked = _cpu_seconds() - before
            self.core_seconds[purpose] = round(self.core_seconds.get(purpose, 0.0) + worked, 2)
            self.save()


def _cpu_seconds() -> float:
    return sum(os.times()[:4])
