"""Contestants in turn, and what is told of their times."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..progress import Progress
from ..system.plain_md import ns_per_day
from ..workers.shares import cores

# Work before anything is timed: TorchScript watches the first call and compiles in the second.
_WARM = 3


@dataclass(frozen=True)
class Contestant:
    """Something that is timed.

    Attributes
    ----------
    what : str
        Its name in the table.
    work : callable
        Does it once and returns the time of the simulation that passed, ps; 0 where none does.
    jumps : float
        How many jumps doing it once makes; 0 if that is not what it is about.
    minus : (str, float), optional
        Another contestant, and how many times its time is taken off: what is measured then is what
        comes on top of that.
    facts : dict
        What else the table says of it.
    clock : callable, optional
        Seconds that its last work took, where it knows better than a clock beside it: a program
        that has to start first.
    """

    what: str
    work: Callable[[], float]
    jumps: float = 0.0
    minus: tuple[str, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a contestant: how often it did its work, and what that took and gave."""

    count: int
    seconds: float
    cpu_seconds: float
    ps: float


def take_turns(
    contestants: Sequence[Contestant], repeats: int, seconds: float, say: Progress
) -> dict[str, list[Turn]]:
    """Time contestants in turn, so that whatever else the machine does hits all of them alike.

    A turn takes so many seconds; work that takes longer is done once. One more turn before the
    others warms up, with the work done three times at least. The turns of each come by its name.
    """
    turns: dict[str, list[Turn]] = {contestant.what: [] for contestant in contestants}
    for number in range(repeats + 1):
        for contestant in contestants:
            say("measuring", f"turn {number} of {repeats}: {contestant.what}")
            turn = _turn(contestant, seconds, 1 if number else _WARM)
            if number:
                turns[contestant.what].append(turn)
    return turns


def _turn(contestant: Contestant, seconds: float, least: int) -> Turn:
    count, ps, told = 0, 0.0, 0.0
    cpu, began = time.process_time(), time.perf_counter()
    while True:
        ps += contestant.work()
        count += 1
        if contestant.clock is not None:
            told += contestant.clock()
        spent = time.perf_counter() - began
        if spent >= seconds and count >= least:
            taken = spent if contestant.clock is None else told
            return Turn(count, taken, time.process_time() - cpu, ps)


def row_of(contestant: Contestant, turns: dict[str, list[Turn]], plain: str) -> dict[str, Any]:
    """Return a contestant's line of the table; `plain` names plain MD, which may be missing.

    Figures are medians over the turns; ``ns_per_day_quartiles`` and ``us_per_jump_quartiles`` are
    their first and third quartiles, ``ratio_to_md`` the median of the ratios within each turn.
    ``cores`` is the CPU time of the process over the wall-clock time: less than the number of
    threads where others had the cores.
    """
    mine = turns[contestant.what]
    row: dict[str, Any] = {"what": contestant.what, "ns_per_day": None, "us_per_jump": None}
    row["ratio_to_md"] = None
    speeds = [ns_per_day(turn.ps, turn.seconds) for turn in mine]
    if any(speeds):
        row["ns_per_day"] = statistics.median(speeds)
        row["ns_per_day_quartiles"] = quartiles(speeds)
        if plain in turns:
            pairs = zip(mine, turns[plain], strict=True)
            row["ratio_to_md"] = statistics.median(
                (turn.ps / turn.seconds) / (md.ps / md.seconds) for turn, md in pairs
            )
    if contestant.jumps:
        micro = [1e6 * value for value in seconds_a_jump(contestant, turns)]
        row["us_per_jump"] = statistics.median(micro)
        row["us_per_jump_quartiles"] = quartiles(micro)
        row["cpu_us_per_jump"] = 1e6 * statistics.median(seconds_a_jump(contestant, turns, True))
    row["cores"] = statistics.median(turn.cpu_seconds / turn.seconds for turn in mine)
    row["repeats"] = len(mine)
    return row | contestant.facts


def seconds_a_jump(
    contestant: Contestant, turns: dict[str, list[Turn]], cpu: bool = False
) -> list[float]:
    """Return what a jump took in each turn, s, by the clock or in CPU time of the process."""

    def each(what: str) -> list[float]:
        return [(turn.cpu_seconds if cpu else turn.seconds) / turn.count for turn in turns[what]]

    mine = each(contestant.what)
    if contestant.minus is not None:
        other, times = contestant.minus
        less = [times * value for value in each(other)]
        mine = [a - b for a, b in zip(mine, less, strict=True)]
    return [value / contestant.jumps for value in mine]


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first and the third quartile; of a single value that value twice."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def machine_line() -> str:
    """Return the processor's model and the number of cores this process may use."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # other systems have no such file
    return f"{model}, {cores()} cores"
