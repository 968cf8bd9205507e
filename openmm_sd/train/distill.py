"""A model that jumps in one or two network calls, taught by one that makes more.

The solver of a diffusion propagator is deterministic: a frame, a lag and noise have one answer. A
student, the same network with fewer noise levels, learns to give that answer: from the noise to the
teacher's sample half-way in its first call, and from there to the teacher's result in its second.
No data set is needed: the frames are those that the teacher's own chains visit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ..model.card import Card, Training
from ..model.model import ScoreModel, model_digest
from ..progress import Progress, silence
from ..propagator.device import chosen_device
from ..propagator.internal.base import InternalPropagator
from ..propagator.internal.family import FamilyDiffusion
from ..propagator.internal.transferable import TransferableDiffusion
from ..propagator.sampler import interpolate_by_lag
from .driver import check_bundle_path, checkpoint_of, finish, history_entry, progress_report
from .networks import Network
from .settings import DistillSettings, TrainSettings
from .team import join_team, leads
from .trainer import Lessons, train

#: The student's second call is at the teacher's noise level nearest to this, in widths of the data.
HALF_WAY: Final = 0.7
#: Batches of the teacher's answers that are kept, and how many steps are made before the next one.
_KEPT: Final = 64
_STEPS_A_BATCH: Final = 4
#: Chains that start anew at a frame of the bundle, instead of going on.
_RESTARTED: Final = 1.0 / 16.0


def distill_bundle(
    model: ScoreModel | Path | str,
    output: Path | str,
    settings: DistillSettings | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Distil a model to one or two network calls a jump and write the bundle.

    Parameters
    ----------
    model : ScoreModel, Path or str
        The teacher: a model in internal coordinates, of one molecule or of a family; the name of a
        shipped one, or a bundle's path.
    output : Path or str
        The bundle, with the ending ``.safetensors``. While it is under way its state is in the file
        of that name with ``.checkpoint`` added; the same call goes on from it.
    settings : DistillSettings, optional
        How.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        The card's training part, and where the bundle is. None in all processes but the first, if
        ``torchrun`` started several.
    """
    settings = settings or DistillSettings()
    say = (progress if leads() else None) or silence
    output = Path(output)
    check_bundle_path(output)
    if not isinstance(model, ScoreModel) and output.resolve() == Path(model).resolve():
        raise ValueError(f"output: {output} is the teacher, give the student a file of its own")
    teacher = model if isinstance(model, ScoreModel) else ScoreModel.load(model)
    with join_team(chosen_device(settings.device)) as team:
        torch.manual_seed(settings.training.seed)
        tasks = [Imitation.of(member, settings.calls, team.device) for member in teacher.members]
        for task in tasks[1:]:
            task.model.share_weights(tasks[0].model)  # type: ignore[operator]
        began = time.monotonic()
        say("distilling", f"{tasks[0].teacher.n_calls} network calls to {settings.calls}")
        record = train(
            tasks,
            settings.training,
            checkpoint=checkpoint_of(output),
            progress=progress_report(settings.training, say),
            team=team,
        )
    if not team.leads:
        return None
    say("writing", output.name)
    # A family has no name of its own; its members are called as their molecules are.
    path = None if isinstance(model, ScoreModel) else Path(model)
    label = path.stem if teacher.is_family and path is not None else teacher.card.name or "a family"
    training: Training = {
        "distilled_from": label,
        "teacher_calls": tasks[0].teacher.n_calls,
        "calls": settings.calls,
        **history_entry(record, settings.training, team),
    }
    own = settings.name or f"{label}-{settings.calls}"
    models = [
        _student(member, task.model, None if teacher.is_family else own, settings, training)
        for member, task in zip(teacher.members, tasks, strict=True)
    ]
    student = ScoreModel.family(models) if teacher.is_family else models[0]
    return finish(student, output, training, began)


@dataclass(frozen=True)
class Imitation:
    """What a student learns of its teacher, one molecule's part of a distillation.

    `model` is the student, on the teacher's device. Chains of the teacher's jumps begin at
    `start_frames`, (T, N, 3), nm. `share` is that of a step's pairs, relative to the other
    molecules', and `digest` that of the teacher's model.
    """

    teacher: InternalPropagator
    model: InternalPropagator
    start_frames: Tensor
    share: float = 1.0
    digest: str = ""

    @classmethod
    def of(cls, member: ScoreModel, calls: int, device: torch.device) -> Imitation:
        """Prepare the imitation of a model of one molecule by a student of so many calls."""
        name = member.molecules[0].name
        teacher = member.propagator
        if not isinstance(teacher, InternalPropagator):
            raise ValueError(
                f"only networks in internal coordinates can be distilled, the model of {name} is a "
                f"{type(teacher).__name__}"
            )
        if teacher.n_calls <= calls:
            raise ValueError(
                f"the model of {name} makes {teacher.n_calls} network calls a jump: nothing to "
                f"distil to {calls}"
            )
        if member.start_frames is None:
            raise ValueError(f"the model of {name} has no start frames for the teacher's chains")
        start = torch.tensor(np.asarray(member.start_frames), dtype=torch.float32)
        heavy = sum(z != 1 for z in member.molecules[0].atomic_numbers)
        # The caller's model stays where it is.
        teacher = copy.deepcopy(teacher).to(device).eval()
        return cls(
            *(teacher, student_of(teacher, calls), start.to(device), float(heavy)),
            digest=model_digest(member),
        )

    @property
    def half_way(self) -> int:
        """The number of the teacher's sample that the student's first of two calls goes to."""
        levels = [float(level) for level in self.teacher.levels]
        return _half_way(levels)

    def describe(self) -> str:
        """Return what a checkpoint belongs to; see `Task`."""
        return (
            f"{self.model.hyperparameters} {self.share:g} of {self.teacher.n_calls} calls of "
            f"{self.digest}"
        )

    def held_out_losses(
        self, model: Network, settings: TrainSettings, lags_ps: Sequence[float]
    ) -> dict[float, float]:
        """Return nothing: every batch of the teacher's answers is new."""
        return {}

    def lessons(self, settings: TrainSettings) -> Lessons:
        """Return how far the student's answers are from the teacher's; see `Task`."""
        chains = _Chains(self, settings)

        def losses(count: int, step: int, generator: torch.Generator, rows: slice) -> Tensor:
            frame, lag, noise, middle, final = (x[rows] for x in chains.draw(count, generator))
            return self.distances(frame, lag, noise, middle, final, settings)

        return losses

    def distances(
        self,
        frame: Tensor,
        lag: Tensor,
        noise: Tensor,
        middle: Tensor,
        final: Tensor,
        settings: TrainSettings,
    ) -> Tensor:
        """Return the mean square distance of the student's answers from the teacher's, (B,).

        Frames and lags are as a propagator takes them; noise is (B, K), of the coordinates only, as
        are the teacher's sample half-way (`middle`) and its result (`final`).
        """
        student = self.model
        stiff, turned, scale = known(student, frame, lag)
        context, modulation = student.encode(stiff, turned, lag)
        by_level = student.encode_noise(student.levels)
        weights = student.loss_weights(settings.turn_weight)

        def answer(y: Tensor, k: int) -> Tensor:
            level = student.levels[k : k + 1]
            return student.denoise(y, level, turned, scale, context, modulation + by_level[k])

        begin = noise * student.begin
        first = answer(begin, 0).float()
        if student.n_calls == 1:
            return (weights * (first - final) ** 2).mean(dim=1)
        a, b, _, _ = student.solver[0]
        there = a * begin + b * first
        second = answer(middle, 1).float()
        return (weights * ((there - middle) ** 2 + (second - final) ** 2)).mean(dim=1)


class _Chains:
    """Chains of the teacher's jumps at lags of all lengths, and a store of its latest answers."""

    def __init__(self, task: Imitation, settings: TrainSettings) -> None:
        self.task = task
        self.settings = settings
        nodes = task.teacher.lag_nodes()
        self.low, self.high = math.log(nodes[0]), math.log(nodes[-1])
        self.frames: Tensor | None = None
        self.store: list[Tensor] = []
        self.filled = self.drawn = 0

    def draw(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Return frames, lags, noise, and the teacher's samples half-way and results."""
        if self.drawn % _STEPS_A_BATCH == 0:
            self._add(count, generator)
        self.drawn += 1
        there = min(self.filled, _KEPT) * count
        rows = torch.randint(there, (count,), generator=generator, device=self.store[0].device)
        return [kept[rows] for kept in self.store]

    @torch.no_grad()
    def _add(self, count: int, generator: torch.Generator) -> None:
        teacher, start = self.task.teacher, self.task.start_frames
        device = start.device

        def begin(n: int) -> Tensor:
            return start[torch.randint(len(start), (n,), generator=generator, device=device)]

        if self.frames is None:
            self.frames = begin(count)
        # Lags cover the range evenly, in another order each time.
        place = torch.arange(count, device=device) + torch.rand(
            count, generator=generator, device=device
        )
        place = place[torch.randperm(count, generator=generator, device=device)] / count
        lag = torch.exp(self.low + (self.high - self.low) * place)
        noise = torch.randn(count, teacher.n_coordinates, generator=generator, device=device)
        jitter = torch.randn(self.frames.shape, generator=generator, device=device)
        with torch.autocast(device.type, enabled=False):
            frame = self.frames
            if isinstance(teacher, FamilyDiffusion | TransferableDiffusion):
                frame, _ = teacher.draw_equivalent(frame, frame, generator)
            frame = frame + self.settings.condition_noise_nm * jitter
        stiff, turned, scale = known(teacher, frame, lag)
        context, modulation = teacher.encode(stiff, turned, lag)
        states = teacher.solve(noise, turned, scale, context, modulation)
        final = states[-1].float()
        with torch.autocast(device.type, enabled=False):
            self.frames = teacher.build(final, turned, scale)
        fresh = max(1, round(_RESTARTED * count))
        self.frames[:fresh] = begin(fresh)
        self.frames = self.frames[torch.randperm(count, generator=generator, device=device)]
        answers = [frame, lag, noise, states[self.task.half_way].float(), final]
        if not self.store:
            self.store = [
                torch.empty((_KEPT * count, *x.shape[1:]), device=device) for x in answers
            ]
        here = self.filled % _KEPT * count
        for kept, new in zip(self.store, answers, strict=True):
            kept[here : here + count] = new
        self.filled += 1


def known(model: InternalPropagator, frame: Tensor, lag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return stiff coordinates, turning torsions and the scale of turning, in full precision."""
    with torch.autocast(frame.device.type, enabled=False):
        stiff, turned = model.measure(frame)
        scale = interpolate_by_lag(model.scale, lag, model.log_lag_min, model.log_lag_span)
    return stiff, turned, scale


def student_of(teacher: InternalPropagator, calls: int) -> InternalPropagator:
    """Return a network with a teacher's weights that makes one or two calls a jump.

    A second call is at one of the teacher's own noise levels.
    """
    settings = dict(teacher.hyperparameters) | {"n_calls": calls}
    if calls == 2:
        levels = [float(level) for level in teacher.levels]
        settings["sigma_min"] = levels[_half_way(levels)]
    student = type(teacher)(**settings)
    student.load_state_dict(teacher.state_dict())
    return student.to(teacher.scale.device)


def _half_way(levels: Sequence[float]) -> int:
    return min(range(1, len(levels)), key=lambda k: abs(math.log(levels[k] / HALF_WAY)))


def _student(
    teacher: ScoreModel,
    network: InternalPropagator,
    name: str | None,
    settings: DistillSettings,
    training: Training,
) -> ScoreModel:
    """Return the student of one molecule, with the teacher's windows and frames."""
    card = teacher.card
    theirs = card.description or ""
    taught = card.training if Card.training.key in card else None
    card.name = name or card.name
    card.description = settings.description or (
        f"{training['distilled_from']} in {settings.calls} network "
        f"call{'s' if settings.calls > 1 else ''} a jump. {theirs}"
    )
    card.training = {**training, "teacher": taught}
    return ScoreModel(
        network.to("cpu").eval(),
        teacher.molecules,
        card,
        start_frames=teacher.start_frames,
        novelty=teacher.novelty,
    )
