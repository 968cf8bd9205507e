"""The trainings of an adaptation: on all MD so far, and short ones on halves of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ..files.atomic import file_sha256
from ..model.model import ScoreModel
from ..progress import Progress, silence
from ..train.data import read_by_molecule
from ..train.driver import train_bundle
from ..train.settings import AUTO, TRANSFERABLE, StageSettings, TrainSettings
from .settings import AdaptSettings
from .subject import Subject

#: Time with which the lags begin that are composed, ps, or half of a run if that is shorter.
_COMPOSE_FROM_PS: Final = 100.0
_BATCH: Final = 128
_WARM_UP_STEPS: Final = 50


def stage_settings(
    subject: Subject,
    settings: AdaptSettings,
    minutes: float,
    init: str | None,
    seed: int,
    without: Sequence[str] = (),
) -> StageSettings:
    """Return the settings of a training that begins with a bundle's weights, or with none."""
    parent = subject.parent
    fresh = TrainSettings(minutes=minutes, seed=seed)
    if parent is None:
        return StageSettings(
            network=AUTO,
            init=init,
            lag_max_ps=settings.run_ps,
            **_of_data(settings, without),
            training=fresh,
        )
    lags = parent.lag_range or (1.0, settings.run_ps)
    return StageSettings(
        network=TRANSFERABLE,
        network_settings=subject.network_settings,
        init=init,
        lag_min_ps=lags[0],
        lag_max_ps=lags[1],
        recommended_lag_ps=parent.recommended_lag,
        recommended_burst_ps=parent.recommended_burst,
        **_of_data(settings, without),
        training=TrainSettings(
            minutes=minutes,
            seed=seed,
            batch_size=_BATCH,
            learning_rate=settings.learning_rate,
            keep=settings.keep,
            warmup_steps=_WARM_UP_STEPS,
        ),
    )


def _of_data(settings: AdaptSettings, without: Sequence[str]) -> dict[str, Any]:
    # Nothing is held out: MD that comes later judges.
    return {
        "held_out": 0.0,
        "without": tuple(without),
        "compose_from_ps": min(_COMPOSE_FROM_PS, settings.run_ps / 2),
        "device": settings.device,
    }


def train_on(
    datasets: Sequence[Path], output: Path, stage: StageSettings, say: Progress
) -> dict[str, Any]:
    """Train on data sets, unless that is done, or go on with it; return what is recorded of it."""
    if not output.exists():
        train_bundle(datasets, output, stage, progress=say)
    training = ScoreModel.load(output).only().card.training
    return {
        "file": output.name,
        "sha256": file_sha256(output),
        "steps": training["steps"],
        "minutes": training["wall_minutes"],
        "frames": training["frames"],
    }


def train_halves(
    datasets: Sequence[Path],
    outputs: Sequence[Path],
    subject: Subject,
    settings: AdaptSettings,
    minutes: float,
    init: str | None,
    say: Progress,
) -> None:
    """Train twice for a short time: with other seeds, each on every other run."""
    data = read_by_molecule(datasets, silence)[0]
    names = [run.name for run in data.runs]
    for k, output in enumerate(outputs):
        seed = settings.seed + 1000 * (k + 1)
        stage = stage_settings(subject, settings, minutes, init, seed, names[1 - k :: 2])
        train_on(datasets, output, stage, say)
