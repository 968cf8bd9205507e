"""What a model does: rollouts and single steps, streamed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.sample import GROUPS, Sample
from ..data.reference import angles_of
from ..model.model import ScoreModel
from ..molecule.molecule import Molecule
from ..molecule.torsions import Torsion
from ..progress import Progress
from ..rollout.driver import read_rollout
from ..rollout.rollout import Rollout
from ..rollout.settings import RolloutSettings
from .settings import ValidateSettings


@dataclass(frozen=True, eq=False)
class Chains:
    """The chains of a rollout, without their discarded beginning.

    Attributes
    ----------
    spacing_ps : float
        Time between the frames, a multiple of the lag.
    angles : ndarray
        (chains, steps, torsions) float32, rad.
    frames : ndarray
        (M, N, 3) nm, some of the frames, evenly spread over chains and steps.
    statistics : dict
        Of the whole rollout, with its beginning.
    steps : int
        All that were made, the discarded ones among them.
    """

    lag_ps: float
    spacing_ps: float
    angles: NDArray[np.float32]
    frames: NDArray[np.float32]
    statistics: dict[str, Any]
    steps: int

    def sample(self) -> Sample:
        """Return the angles as a sample of independent chains."""
        return Sample.from_runs(list(self.angles), self.spacing_ps, min(GROUPS, len(self.angles)))


def run_chains(
    model: ScoreModel,
    settings: ValidateSettings,
    lag_ps: float,
    starts: NDArray[np.float32],
    torsions: Sequence[Torsion],
    progress: Progress,
) -> Chains:
    """Run chains at one lag from starts (M, N, 3), nm, and keep the torsions of every frame."""
    steps = settings.steps_at(lag_ps)
    discarded = max(1, round(settings.discard * steps))
    kept_steps = steps + 1 - discarded
    chains = settings.chains
    rollout = Rollout(model, _rollout_settings(settings, lag_ps, chains, steps), frames=starts)
    angles = np.empty((chains, kept_steps, len(torsions)), dtype=np.float32)
    keeper = _Keeper(min(settings.kept_frames, chains * kept_steps), chains, kept_steps)
    what = f"rollout at {lag_ps:g} ps"
    began = time.monotonic()
    for step in range(1, steps + 1):
        frames = rollout.advance()
        if step >= discarded:
            angles[:, step - discarded] = angles_of(frames, torsions)
            keeper.offer(frames)
        speed = step * chains / max(time.monotonic() - began, 1e-6)
        progress(what, f"step {step} of {steps}, {chains} chains, {speed:.0f} jumps/s")
    return Chains(lag_ps, lag_ps, angles, keeper.frames(), rollout.statistics(), steps)


def _rollout_settings(
    settings: ValidateSettings, lag_ps: float, chains: int, steps: int, seed_shift: int = 0
) -> RolloutSettings:
    return RolloutSettings(
        chains=chains,
        steps=steps,
        lag_ps=lag_ps,
        seed=settings.seed + seed_shift,
        max_tries=settings.max_tries,
        device=settings.device,
        batch=settings.batch,
    )


class _Keeper:
    """Keeps about as many frames as asked for, of other chains at every step."""

    def __init__(self, wanted: int, chains: int, steps: int) -> None:
        self._per_step = wanted / steps
        self._chains = chains
        self._due = 0.0
        self._next = 0
        self._kept: list[NDArray[np.float32]] = []

    def offer(self, frames: NDArray[np.float32]) -> None:
        self._due += self._per_step
        number = min(int(self._due + 1e-9), self._chains)
        self._due -= number
        if number:
            chosen = (self._next + np.arange(number)) % self._chains
            self._next = int(chosen[-1]) + 1
            self._kept.append(frames[chosen])

    def frames(self) -> NDArray[np.float32]:
        return np.concatenate(self._kept)


def read_chains(
    folder: str | os.PathLike[str],
    molecule: Molecule,
    settings: ValidateSettings,
    torsions: Sequence[Torsion],
) -> Chains:
    """Read the chains of a rollout that was run before, in the folder that it was written to.

    `discard` and `kept_frames` of the settings are used. ValueError if there is no rollout, or one
    of another molecule, or it is too short.
    """
    frames = read_rollout(folder)
    try:
        summary = json.loads((Path(folder) / "rollout.json").read_text(encoding="utf-8"))
        lag, every = float(summary["lag_ps"]), int(summary["every"])
        keys = ("jumps", "draws", "rejections", "chirality_flips", "equivalent_swaps")
        statistics = {key: summary[key] for key in (*keys, "redraws", "fallbacks", "seconds")}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"rollout {folder}: rollout.json lacks {error}") from error
    if frames.shape[2] != molecule.n_atoms or summary.get("molecule") != molecule.name:
        raise ValueError(
            f"rollout {folder}: it is of {summary.get('molecule')} with {frames.shape[2]} atoms, "
            f"the model knows {molecule.name} with {molecule.n_atoms}"
        )
    discarded = round(settings.discard * len(frames))
    kept = frames[discarded:]
    if len(kept) < 4 or kept.shape[1] < 2:
        raise ValueError(
            f"rollout {folder}: {kept.shape[1]} chains of {len(kept)} frames are too few; wanted "
            "are at least 2 of 4"
        )
    keeper = _Keeper(min(settings.kept_frames, kept.shape[0] * kept.shape[1]), *kept.shape[1::-1])
    angles = np.empty((kept.shape[1], len(kept), len(torsions)), dtype=np.float32)
    for k, record in enumerate(kept):
        angles[:, k] = angles_of(record, torsions)
        keeper.offer(record)
    return Chains(lag, lag * every, angles, keeper.frames(), statistics, len(frames) * every)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the model from each of many frames: torsions before and after, rad.

    These are (M, torsions). `start`, (M,), says which of the given frames each came from; the
    statistics are the rollout's.
    """

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    start: NDArray[np.int64]
    statistics: dict[str, Any]


def one_step(
    model: ScoreModel,
    settings: ValidateSettings,
    lag_ps: float,
    starts: NDArray[np.float32],
    torsions: Sequence[Torsion],
    progress: Progress,
) -> Step:
    """Make one step from given frames, each about as often as the others; see `run_chains`."""
    from scipy.spatial import cKDTree

    number = settings.one_step_starts
    progress(f"one step of {lag_ps:g} ps", f"from {number} frames")
    # Another seed than the chains', which would repeat their first step.
    rollout = Rollout(
        model, _rollout_settings(settings, lag_ps, number, 1, seed_shift=1), frames=starts
    )
    before = angles_of(rollout.frames, torsions)
    after = angles_of(rollout.advance(), torsions)
    given = angles_of(starts, torsions)
    # A rollout draws its starts itself and centres them; the torsions tell which is which.
    _, start = cKDTree(_circle(given)).query(_circle(before))
    return Step(before, after, np.asarray(start, dtype=np.int64), rollout.statistics())


def _circle(angles: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = angles.astype(np.float64)
    return np.concatenate([np.cos(wide), np.sin(wide)], axis=1)
