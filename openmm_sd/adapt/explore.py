"""Where the chains of a model go that no MD has been."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis import dihedral
from ..model.model import ScoreModel
from ..molecule.torsions import TorsionAtoms
from ..progress import Progress
from ..rollout.rollout import Rollout
from ..rollout.settings import RolloutSettings

_CHAINS: Final = 128
_STEPS: Final = 24
#: Frames at which two models are compared, and draws from each.
_COMPARED: Final = 256
_DRAWS: Final = 4
#: Starts of MD are at least so far from each other, in one torsion at least, rad.
_APART: Final = np.deg2rad(30.0)


@dataclass(frozen=True, eq=False)
class Explored:
    """Where MD is to start, (count, torsions), rad, and what was found on the way."""

    goals: NDArray[np.float64]
    found: dict[str, Any]


def explore(
    model: ScoreModel,
    halves: Sequence[ScoreModel],
    torsions: Sequence[TorsionAtoms],
    count: int,
    seconds: float,
    settings: RolloutSettings,
    say: Progress,
) -> Explored:
    """Run chains for some time and choose starts of MD; the more telling ones come first.

    Every other start is where MD would tell most: frames that are novel to the model, that no jump
    leads away from because a gate says no, or at which two trainings (`halves`) disagree. The
    others are drawn from the chains as they are, so that what is common is learned as well.
    """
    frames, stuck, statistics = _chains(model, seconds, settings, say)
    rng = np.random.default_rng(settings.seed)
    interest = stuck.astype(np.float64)
    found: dict[str, Any] = {
        "frames": len(frames),
        "jumps_per_second": round(statistics["jumps"] / max(statistics["seconds"], 1e-9), 1),
        "gate_failure_fraction": sum(statistics["rejections"].values()) / statistics["draws"],
        "stuck": int(stuck.sum()),
        "novel": None,
        "disagreement": None,
    }
    if model.novelty is not None:
        say("exploring", f"the novelty of {len(frames)} frames")
        with torch.no_grad():
            scores = model.novelty(torch.from_numpy(frames)).numpy() / model.novelty.threshold
        found["novel"] = int((scores > 1.0).sum())
        interest += np.where(scores > 1.0, np.minimum(scores, 10.0), 0.0)
    if len(halves) == 2:
        some = rng.permutation(len(frames))[:_COMPARED]
        say("exploring", "where two trainings disagree")
        apart = _disagreement(halves, frames[some], torsions, settings)
        found["disagreement"] = float(apart.mean())
        interest[some] += apart / max(float(apart.max()), 1e-9)
    angles = np.stack([dihedral(frames, torsion) for torsion in torsions], axis=1)
    order = np.lexsort((rng.random(len(frames)), -interest))
    telling = _spread(angles, order, (count + 1) // 2)
    # The later half of the chains, which has forgotten its start best.
    later = len(frames) // 2 + rng.permutation(len(frames) - len(frames) // 2)
    usual = np.resize(later, count)
    goals = np.empty((count, len(torsions)))
    goals[0::2] = angles[np.resize(telling, len(goals[0::2]))]
    goals[1::2] = angles[usual[: len(goals[1::2])]]
    return Explored(goals, found)


def _chains(
    model: ScoreModel, seconds: float, settings: RolloutSettings, say: Progress
) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, Any]]:
    """Return the frames of chains, step by step, and from which of them no jump led away."""
    rollout = Rollout(model, settings)
    began = time.monotonic()
    places, stuck = [rollout.frames], []
    for step in range(settings.steps):
        say("exploring", f"step {step + 1} of {settings.steps}, {settings.chains} chains")
        places.append(rollout.advance())
        stuck.append((places[-1] == places[-2]).all(axis=(1, 2)))
        if time.monotonic() - began > seconds:
            break
    none = np.zeros(len(places[-1]), dtype=bool)
    flags = np.concatenate([*stuck, none])
    # Where all chains start was seen before.
    skip = settings.chains if len(stuck) > 1 else 0
    return np.concatenate(places)[skip:], flags[skip:], rollout.statistics()


def chain_settings(lag_ps: float, device: str, seed: int) -> RolloutSettings:
    """Return the settings of the chains."""
    return RolloutSettings(
        chains=_CHAINS, steps=_STEPS, lag_ps=lag_ps, seed=seed, max_tries=3, device=device
    )


@torch.inference_mode()
def _disagreement(
    halves: Sequence[ScoreModel],
    frames: NDArray[np.float32],
    torsions: Sequence[TorsionAtoms],
    settings: RolloutSettings,
) -> NDArray[np.float64]:
    """Return how differently two models answer the same noise, (T,): 0 to 2, in all torsions."""
    generator = torch.Generator().manual_seed(settings.seed)
    start = torch.from_numpy(frames)
    lag = torch.full((len(frames),), settings.lag_ps or halves[0].recommended_lag)
    total = np.zeros(len(frames))
    for _ in range(_DRAWS):
        noise = torch.randn(len(frames), halves[0].noise_size, generator=generator)
        ends = [half.propagator(start, lag, noise).numpy() for half in halves]
        for torsion in torsions:
            one, two = (dihedral(end, torsion) for end in ends)
            total += 1.0 - np.cos(one - two)
    return total / (_DRAWS * len(torsions))


def _spread(angles: NDArray[np.float64], order: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return up to so many rows, in the order given, that are apart from each other."""
    chosen: list[int] = []
    for row in order.tolist():
        gaps = angles[chosen] - angles[row]
        if not len(gaps) or (np.abs((gaps + np.pi) % (2 * np.pi) - np.pi).max(1) > _APART).all():
            chosen.append(row)
        if len(chosen) == count:
            break
    return np.array(chosen, dtype=np.int64)
