"""The benchmark: who takes part, and the table that comes out."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from ..data.reference import read_reference
from ..files.atomic import check_target, finite, write_json
from ..model.model import ScoreModel
from ..progress import Progress, silence
from ..propagator.device import chosen_device
from ..system.platforms import platform_and_bridge
from ..version import versions
from .contestants import GROUPS, PLAIN, Scene, contestants
from .gromacs import gromacs_contestant
from .measure import (
    Contestant,
    Turn,
    machine_line,
    quartiles,
    row_of,
    seconds_a_jump,
    take_turns,
)
from .memory import peak_of_rollout
from .plot import draw
from .settings import BenchmarkSettings
from .statistics import as_lines, judged, lengthen, set_up, torsions_of

_MEMORY_CHAINS: Final = 64
_MEMORY_STEPS: Final = (25, 200)


def run_benchmark(
    settings: BenchmarkSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    figure: str | os.PathLike[str] | None = None,
    reference: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure, with all contestants in turn.

    Parameters
    ----------
    settings : BenchmarkSettings, optional
        What is measured.
    output : str or PathLike, optional
        File for the result, JSON.
    figure : str or PathLike, optional
        File for a picture, PNG: the error of a population against wall-clock time.
    reference : sequence of str or PathLike
        MD from which its own correlation times are taken, see
        `openmm_sd.data.reference.read_reference`; without it those of chains of the shortest lag.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        ``rows``: a list, one entry a measurement, with ``what``, ``platform``, ``device``,
        ``batch``, ``ns_per_day``, ``us_per_jump``, ``ratio_to_md``, ``repeats`` and more, None for
        what does not apply, and ``statistics`` of those that sample; ``ratios``: the comparisons
        that have a target; ``machine``, ``threads``, ``settings``, ``versions``, ``seconds``.

    Raises
    ------
    ValueError
        If nothing has the name asked for.
    """
    settings = settings or BenchmarkSettings()
    say = progress or silence
    began = time.perf_counter()
    for file in (output, figure):
        if file is not None:
            check_target(Path(file))
    wanted = _wanted(settings.only)
    model = ScoreModel.load(settings.model).only()
    known = read_reference(reference, model.molecules[0]) if reference else None
    say("trying the bridges", "")
    platform, bridge = platform_and_bridge(settings.platform, "auto", say)
    scene = Scene(
        model=model,
        platform=platform,
        bridge=bridge,
        device=str(chosen_device(settings.device)),
        waters=settings.waters,
        equilibration_ps=settings.equilibration_ps,
        batches=settings.batches,
        lags_ps=settings.lags_ps,
        atoms=settings.atoms,
        say=say,
    )
    with tempfile.TemporaryDirectory() as place:
        chosen, arena = contestants(scene, wanted), None
        if "statistics" in wanted:
            arena = set_up(scene, torsions_of(scene, known))
            sampling = [*arena.contestants, gromacs_contestant(scene, settings.gmx, Path(place))]
            word = wanted["statistics"] or ""
            chosen += [one for one in sampling if one is not None and word in one.what.lower()]
        if not chosen and "memory" not in wanted:
            raise ValueError(f"only: nothing measured is called {settings.only!r}")
        turns = take_turns(chosen, settings.repeats, settings.seconds / settings.repeats, say)
    rows = [_complete(row_of(contestant, turns, PLAIN)) for contestant in chosen]
    worth: dict[str, dict[str, Any]] = {}
    if arena is not None:
        lengthen(scene, arena, settings.chain_seconds)
        worth = judged(scene, arena, turns, known)
        rows = [row | {"statistics": finite(worth.get(row["what"]))} for row in rows]
    if "memory" in wanted:
        rows += _memory(settings, say)
    result = {
        "rows": rows,
        "ratios": _ratios(scene, chosen, turns),
        "machine": machine_line(),
        "threads": torch.get_num_threads(),
        "openmm_threads": os.environ.get("OPENMM_CPU_THREADS"),
        "platform": platform,
        "bridge": bridge,
        "settings": asdict(settings),
        "versions": versions(),
        "seconds": time.perf_counter() - began,
    }
    if output is not None:
        write_json(Path(output), result, indent=1)
    if figure is not None:
        draw(rows, Path(figure))
    return result


def as_text(result: dict[str, Any]) -> str:
    """Return the table and the ratios of `run_benchmark` for people to read."""
    lines = [
        f"{result['machine']}; {result['threads']} torch threads; platform {result['platform']}",
        f"{'':<46}{'ns/day':>12}{'us a jump':>14}{'to plain MD':>13}",
    ]
    for row in result["rows"]:
        cells = [row["ns_per_day"], row["us_per_jump"], row["ratio_to_md"]]
        if cells == [None] * 3 and row["peak_MiB"] is None:
            continue  # measured to be taken off others
        line = f"{row['what']:<46}" + "".join(
            f"{'' if value is None else _short(value):>{width}}"
            for value, width in zip(cells, (12, 14, 13), strict=True)
        )
        if row["peak_MiB"] is not None:
            line += f"   peak {row['peak_MiB']:.0f} MiB"
        lines.append(line.rstrip())
    for entry in result["ratios"]:
        low, high = entry["quartiles"]
        aim = ""
        if entry["target"] is not None:
            met = "reached" if entry["reached"] else "not reached"
            aim = f"; target {entry['target_text']}: {met}"
        lines.append(
            f"{entry['what']}: {_short(entry['ratio'])} ({_short(low)} to {_short(high)}){aim}"
        )
    worth = {row["what"]: row["statistics"] for row in result["rows"] if row.get("statistics")}
    lines += as_lines(worth)
    lines.append(
        "Effective time is not MD time; do not compare speeds of rollouts with those of mixed runs."
    )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _wanted(only: str | None) -> dict[str, str | None]:
    """Return the groups to set up, each with the word that its contestants must have, or None."""
    if only is None:
        return {name: None for name in GROUPS}
    word = only.lower()
    groups: dict[str, str | None] = {name: None for name in GROUPS if word in name}
    if "published" in groups:
        groups["propagator"] = None  # what its cost is compared with
    if groups:
        return groups
    parts = set(re.findall("[a-z]+", word))
    named: dict[str, str | None] = {
        name: word
        for name, words in GROUPS.items()
        if parts and parts <= set(words.lower().split())
    }
    if not named:
        raise ValueError(
            f"only: nothing measured is called {only!r}; there are {', '.join(GROUPS)}"
        )
    return named


def _complete(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("platform", "device", "batch", "atoms", "lag_ps", "peak_MiB", "note")
    return {**dict.fromkeys(keys), **row}


def _memory(settings: BenchmarkSettings, say: Progress) -> list[dict[str, Any]]:
    rows = []
    for steps in _MEMORY_STEPS:
        say("measuring", f"memory of a rollout of {steps} steps")
        peak = peak_of_rollout(
            settings.model, _MEMORY_CHAINS, steps, settings.lags_ps[-1], settings.device
        )
        row = dict.fromkeys(("ns_per_day", "us_per_jump", "ratio_to_md"))
        row |= {
            "what": f"memory of a rollout, {_MEMORY_CHAINS} chains, {steps} steps",
            "device": settings.device,
            "batch": _MEMORY_CHAINS,
            "lag_ps": settings.lags_ps[-1],
            "peak_MiB": peak,
            "repeats": 1,
        }
        rows.append(_complete(row))
    return rows


# -- ratios --------------------------------------------------------------------------------------


def _ratios(
    scene: Scene, chosen: Sequence[Contestant], turns: dict[str, list[Turn]]
) -> list[dict[str, Any]]:
    """Return the comparisons that were asked for, as far as both sides were measured."""
    here = {contestant.what: contestant for contestant in chosen}
    found = []

    def compare(
        what: str, mine: str, other: str, target: float | None = None, text: str = ""
    ) -> None:
        """Speed of one over that of the other; a target is a least value."""
        if mine in here and other in here:
            values = [
                _pace(here[mine], a) / _pace(here[other], b)
                for a, b in zip(turns[mine], turns[other], strict=True)
            ]
            found.append(_entry(what, values, target, text or f"{target or 0:,.0f}"))

    for name in here:
        if name.startswith("burst"):
            compare(f"{name} / plain MD", name, PLAIN, 0.97, "0.97")
    for lag in scene.lags_ps:
        mixed, alone = f"mixed run, lag {lag:g} ps", f"rollout, lag {lag:g} ps"
        compare(f"{mixed} / plain MD", mixed, PLAIN, 40.0)
        targets = {10.0: 2_000.0, 100.0: 20_000.0}
        compare(f"{alone}, one chain / plain MD", f"{alone}, batch 1", PLAIN, targets.get(lag))
        batched = [f"{alone}, batch {size}" for size in scene.batches]
        batched = [name for name in batched if name in here]
        if batched:
            best = max(
                batched,
                key=lambda name: statistics.median(_pace(here[name], t) for t in turns[name]),
            )
            compare(f"{best}, the best batch / plain MD", best, PLAIN, 50_000.0)
    for size in (1, *scene.batches):
        ours, theirs = f"propagator, batch {size}", f"published network, batch {size}"
        compare(f"cost of the published network / ours, batch {size}", ours, theirs, 100.0)
    for name in here:
        if name.startswith("jump through"):
            for bare in ("jump called directly", "propagator called directly"):
                if bare in here:
                    found.append(_bridge_entry(f"time of {name} / {bare}", name, bare, here, turns))
    return found


def _pace(contestant: Contestant, turn: Turn) -> float:
    """Return how fast a turn was: ps or, where no time passes, jumps a second."""
    if turn.ps:
        return turn.ps / turn.seconds
    return contestant.jumps * turn.count / turn.seconds


def _entry(what: str, values: Sequence[float], target: float | None, text: str) -> dict[str, Any]:
    middle = statistics.median(values)
    return {
        "what": what,
        "ratio": middle,
        "quartiles": quartiles(values),
        "target": target,
        "target_text": text if target is not None else None,
        "reached": None if target is None else middle >= target,
    }


#: What a bridge may cost: a tenth of the jump, or this many seconds.
_BRIDGE_RATIO: Final = 1.10
_BRIDGE_SECONDS: Final = 0.3e-3


def _bridge_entry(
    what: str,
    name: str,
    bare: str,
    here: dict[str, Contestant],
    turns: dict[str, list[Turn]],
) -> dict[str, Any]:
    with_bridge = seconds_a_jump(here[name], turns)
    alone = seconds_a_jump(here[bare], turns)
    entry = _entry(what, [a / b for a, b in zip(with_bridge, alone, strict=True)], None, "")
    extra = statistics.median(a - b for a, b in zip(with_bridge, alone, strict=True))
    cpu = [seconds_a_jump(here[which], turns, cpu=True) for which in (name, bare)]
    return entry | {
        "target": _BRIDGE_RATIO,
        "target_text": f"{_BRIDGE_RATIO:g}, or {1e3 * _BRIDGE_SECONDS:g} ms more at most "
        f"(here {1e3 * extra:.2f})",
        "extra_us": 1e6 * extra,
        "cpu_ratio": statistics.median(a / b for a, b in zip(*cpu, strict=True)),
        "reached": entry["ratio"] <= _BRIDGE_RATIO or extra <= _BRIDGE_SECONDS,
    }
