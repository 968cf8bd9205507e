"""The headline: how soon a population is known, by plain MD, a mixed run and chains.

Speeds come from the turns. How many looks make one independent sample comes from the chains of each
schedule's lag, which are cheap, and for a mixed run from its own looks once they are fifty
correlation times long; for plain MD from a reference, or else from chains of the shortest lag, with
effective time taken for MD's. What is known of a state is its population p and the correlation time
of being in it: an error e takes p (1 - p) / e^2 independent samples, and before that a start is
forgotten.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..analysis.effective import correlation_time, frames_to_error
from ..analysis.figures import Baseline
from ..analysis.sample import Sample
from ..data.reference import Reference, angles_of, chosen_torsions
from ..model.schedules import PURPOSES, Schedule
from ..molecule.torsions import Torsion, torsions
from ..prepare.settings import HEAVY_STEP_PS
from ..rollout.rollout import Rollout
from ..rollout.settings import RolloutSettings
from .contestants import MD_STEPS, PLAIN, Scene, in_box, of_network, start_frames
from .gromacs import GROMACS
from .measure import Contestant, Turn

#: The error of a population that the time is told for.
POPULATION_ERROR: Final = 0.02

# Chains of each schedule: enough of them for a small error, few enough for long ones.
_CHAINS: Final = 64
# Left out at the beginning of chains, and the correlation times in which a start is forgotten.
_DISCARD, _FORGET = 0.1, 3.0
# A run's own looks count from so many correlation times on; shorter ones miss the rare states.
_OWN_TIMES: Final = 50.0
_SEED: Final = 1

Angles = NDArray[np.floating[Any]]
Measured = tuple[float, float]
"""A value and its standard error."""


@dataclass(frozen=True)
class Looks:
    """One way to sample, look by look.

    Attributes
    ----------
    what : str
        The contestant that it is.
    ps : float
        Time of the slow motion that passes from one look to the next; of plain MD, a step's work.
    chains : int
        How many look at once.
    angles : list of ndarray
        Torsions of each look, (chains, K), as far as it is looked at.
    """

    what: str
    ps: float
    chains: int = 1
    angles: list[Angles] = field(default_factory=list)

    def series(self) -> Angles:
        """Return (chains, looks, K), the beginning left out."""
        return np.stack(self.angles[math.ceil(_DISCARD * len(self.angles)) :], axis=1)


@dataclass(frozen=True)
class Field:
    """The contestants of a model's schedules, and the series that they leave."""

    torsions: tuple[Torsion, ...]
    contestants: tuple[Contestant, ...]
    mixed: tuple[Looks, ...]
    chains: tuple[Looks, ...]
    rollouts: tuple[Rollout, ...]


def schedules_of(scene: Scene) -> dict[str, Schedule]:
    """Return the model's schedules by purpose; one for both has one entry."""
    found: dict[str, Schedule] = {}
    for purpose in PURPOSES:
        one = replace(scene.model.schedule(purpose), good_for=())
        if one not in found.values():
            found[purpose] = one
    return found


def set_up(scene: Scene, chosen: Sequence[Torsion]) -> Field:
    """Set up a mixed run and chains of each schedule, which note the torsions of every look."""
    contestants, mixed, chains, rollouts = [], [], [], []
    for purpose, schedule in schedules_of(scene).items():
        facts = {"lag_ps": schedule.lag_ps}
        looks = Looks(f"mixed run for {purpose}", schedule.lag_ps + schedule.burst_ps)
        contestants.append(_mixed(scene, schedule, looks, chosen, facts))
        mixed.append(looks)
        alone = Looks(f"chains for {purpose}, {_CHAINS} at once", schedule.lag_ps, _CHAINS)
        settings = RolloutSettings(
            chains=_CHAINS, batch=_CHAINS, lag_ps=schedule.lag_ps, device=scene.device, seed=_SEED
        )
        rollout = Rollout(scene.model, settings, start_frames(scene))
        contestants.append(
            Contestant(
                alone.what,
                _advancing(rollout, alone, chosen),
                jumps=float(_CHAINS),
                facts=of_network(scene, _CHAINS) | facts,
            )
        )
        chains.append(alone)
        rollouts.append(rollout)
    return Field(tuple(chosen), tuple(contestants), tuple(mixed), tuple(chains), tuple(rollouts))


def _mixed(
    scene: Scene,
    schedule: Schedule,
    looks: Looks,
    chosen: Sequence[Torsion],
    facts: dict[str, Any],
) -> Contestant:
    context, integrator = scene.jumping(
        scene.model,
        scene.bridge,
        lag=schedule.lag_ps,
        burst=schedule.burst_ps,
        settleTime=schedule.settle_ps,
    )
    assert integrator.solute is not None
    solute = list(integrator.solute.particles)
    steps = max(1, round(schedule.burst_ps / HEAVY_STEP_PS))

    def work() -> float:
        before = integrator.effective_time_ps
        integrator.step(steps)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        looks.angles.append(angles_of(np.asarray(x)[None, solute], chosen))
        return float(integrator.effective_time_ps - before)

    more = {"bridge": scene.bridge, "burst_ps": schedule.burst_ps, "settle_ps": schedule.settle_ps}
    return Contestant(looks.what, work, facts=in_box(scene) | more | facts)


def _advancing(rollout: Rollout, looks: Looks, chosen: Sequence[Torsion]) -> Callable[[], float]:
    def work() -> float:
        looks.angles.append(angles_of(rollout.advance(), chosen))
        return looks.ps * looks.chains

    return work


def lengthen(scene: Scene, arena: Field, seconds: float) -> None:
    """Let the chains of each schedule go on for some time: their turns were short."""
    for looks, rollout in zip(arena.chains, arena.rollouts, strict=True):
        work, until = _advancing(rollout, looks, arena.torsions), time.monotonic() + seconds
        while time.monotonic() < until:
            scene.say("measuring", f"{looks.what}: {len(looks.angles)} jumps each")
            work()


# -- what comes out --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Of each state its population and the correlation time of being in it, looks, with errors."""

    origin: str
    states: Mapping[str, tuple[Measured, Measured]]


def judged(
    scene: Scene, arena: Field, turns: Mapping[str, Sequence[Turn]], reference: Reference | None
) -> dict[str, dict[str, Any]]:
    """Return the statistics of every contestant that was measured, by its name."""
    states, md = _baseline(scene, arena, reference)
    slow = _slowest(md)
    found: dict[str, dict[str, Any]] = {}
    for looks, memory in _sampled(arena, states, md):
        if looks.what in turns:
            found[looks.what] = _judged(looks, memory, turns[looks.what], slow)
    plain = found.get(PLAIN)
    for one in found.values():
        mine, other = one["effective_samples_per_s"], plain and plain["effective_samples_per_s"]
        one["effective_samples_over_md"] = _ratio(mine, other) if mine and other else None
    return found


def _baseline(
    scene: Scene, arena: Field, reference: Reference | None
) -> tuple[Callable[[Angles], Mapping[str, NDArray[np.bool_]]], Memory]:
    """Return what tells the states, and MD's memory, in ps."""
    shortest = min(arena.chains, key=lambda looks: looks.ps)
    if reference is not None:
        sample = reference.sample(arena.torsions)
        origin, spacing, runs = "reference", sample.spacing_ps, sample.runs
    else:
        series = shortest.series()
        origin, spacing = f"chains of {shortest.ps:g} ps", shortest.ps
        runs = tuple(series)
        sample = Sample.from_runs(list(runs), spacing)
    partitions = Baseline.of(scene.molecule, arena.torsions, sample, _SEED).partitions

    def states(angles: Angles) -> Mapping[str, NDArray[np.bool_]]:
        return {name: at for one in partitions for name, at in one.inside(angles).items()}

    # Runs of different lengths count as pieces of the shortest one's.
    length = min(map(len, runs))
    cut = np.stack(
        [run[k : k + length] for run in runs for k in range(0, len(run) - length + 1, length)]
    )
    return states, _memory(origin, states(cut), spacing)


def _memory(origin: str, inside: Mapping[str, NDArray[np.bool_]], scale: float = 1.0) -> Memory:
    """Return populations and correlation times of states, (chains, looks); times scaled."""
    found = {}
    for name, where in inside.items():
        time_, error = correlation_time(where)
        if not math.isnan(time_):
            population = float(where.mean())
            spread = math.sqrt(population * (1.0 - population) * 2.0 * time_ / where.size)
            found[name] = ((population, spread), (time_ * scale, error * scale))
    return Memory(origin, found)


def _slowest(md: Memory) -> str | None:
    """Return the state that MD remembers longest; None where no time is known."""
    return max(md.states, key=lambda name: md.states[name][1][0], default=None)


def _sampled(
    arena: Field, states: Callable[[Angles], Mapping[str, NDArray[np.bool_]]], md: Memory
) -> Iterator[tuple[Looks, Memory]]:
    """Yield every contestant with its memory in looks of its own."""
    step = MD_STEPS * HEAVY_STEP_PS
    for what in (PLAIN, GROMACS):
        scaled = {
            name: (population, (value / step, error / step))
            for name, (population, (value, error)) in md.states.items()
        }
        yield Looks(what, step), Memory(md.origin, scaled)
    for mixed, chains in zip(arena.mixed, arena.chains, strict=True):
        known = _memory("its own chains", states(chains.series()))
        yield chains, known
        longest = max((found[1][0] for found in known.states.values()), default=math.inf)
        if len(mixed.angles) >= _OWN_TIMES * longest:
            yield mixed, _memory("its own looks", states(mixed.series()))
        else:
            yield mixed, Memory(f"chains of {chains.ps:g} ps", known.states)


def _judged(
    looks: Looks, memory: Memory, turns: Sequence[Turn], slow: str | None
) -> dict[str, Any]:
    """Return what one contestant's looks are worth."""
    seconds = _seconds_a_look(turns, looks)
    result: dict[str, Any] = {
        "slowest": slow,
        "correlation_times_from": memory.origin,
        "correlation_time_ps": None,
        "effective_samples_per_s": None,
        "seconds_to_population_error": None,
        "population_error": POPULATION_ERROR,
        "populations": {name: _as_json(one[0]) for name, one in memory.states.items()},
    }
    if slow is None or slow not in memory.states:
        return result
    length, error = memory.states[slow][1]
    result["correlation_time_ps"] = _as_json((length * looks.ps, error * looks.ps))
    rate = looks.chains / (2.0 * length * seconds[0])
    result["effective_samples_per_s"] = _as_json(
        (rate, rate * math.hypot(error / length, seconds[1] / seconds[0]))
    )
    needed = {}
    for name, ((population, _), (tau, tau_error)) in memory.states.items():
        frames = frames_to_error(population, tau, POPULATION_ERROR) / looks.chains
        needed[name] = (frames, frames * tau_error / tau)
    hardest = max(needed, key=lambda name: needed[name][0])
    total = needed[hardest][0] + _FORGET * length
    spread = math.hypot(needed[hardest][1], _FORGET * error)
    whole = total * seconds[0]
    result["seconds_to_population_error"] = {
        **_as_json((whole, whole * math.hypot(spread / total, seconds[1] / seconds[0]))),
        "hardest": hardest,
        "of_which_to_forget_the_start": _FORGET * length * seconds[0],
    }
    return result


def _seconds_a_look(turns: Sequence[Turn], looks: Looks) -> Measured:
    """Return the wall-clock time from one look to the next, and its error from the turns."""
    each = [turn.seconds / (turn.ps / (looks.ps * looks.chains)) for turn in turns if turn.ps]
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return statistics.fmean(each), error


def _ratio(mine: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    ratio = mine["value"] / other["value"]
    relative = math.hypot(mine["error"] / mine["value"], other["error"] / other["value"])
    return _as_json((ratio, ratio * relative))


def _as_json(one: Measured) -> dict[str, float]:
    return {"value": one[0], "error": one[1]}


def as_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the statistics for people to read."""
    if not found:
        return []
    slow = next(iter(found.values()))["slowest"]
    head = f"slowest state: {slow}" if slow else "the chains are too short for their memory"
    lines = [f"{head:<46}{'samples/s':>18}{'over plain MD':>18}{'s to +-0.02':>22}"]
    for what, one in found.items():
        cells = [
            _short(one[key])
            for key in (
                *("effective_samples_per_s", "effective_samples_over_md"),
                "seconds_to_population_error",
            )
        ]
        lines.append(
            f"{what:<46}"
            + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (18, 18, 22), strict=True))
        )
    return lines


def _short(one: Mapping[str, float] | None) -> str:
    return "not known" if one is None else f"{one['value']:.3g} +- {one['error']:.1g}"


def torsions_of(scene: Scene, reference: Reference | None) -> tuple[Torsion, ...]:
    """Return the torsions that are looked at: what a reference of angles holds, or all."""
    if reference is None:
        return tuple(torsions(scene.molecule))
    return tuple(chosen_torsions(scene.molecule, reference))
