"""Denoising score matching of a propagator on pairs of frames.

A pair is a frame and the frame one lag later in the same trajectory, at a lag drawn log-uniformly.
The later frame is aligned onto the earlier one, scaled to a displacement of width one and noised;
the network learns to take the noise away. The same code runs on CPU and GPU.
"""

from __future__ import annotations

import copy
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..files.atomic import write_atomically, writing
from ..files.folder import interrupts, require_same, sole_writer
from ..propagator.internal.family import FamilyDiffusion
from ..propagator.internal.members import Members
from ..propagator.internal.transferable import TransferableDiffusion
from .networks import Network
from .pairs import TransitionPairs
from .rare import RareFirst
from .settings import TrainSettings
from .team import Team

#: Number of pairs, step, source of random numbers, and which of the pairs, to losses of the latter.
Lessons = Callable[[int, int, torch.Generator, slice], Tensor]

# Centre and width of the log-normal part of the noise levels drawn in training. With a centre of
# 0.7 alanine dipeptide's hops came out no better.
_LEVEL_CENTRE = 0.25
_LEVEL_LOG_WIDTH = 1.3
_UNIFORM_SHARE = 1.0 / 3.0
# Modules whose matrices Muon learns, and its rate relative to Adam's.
_INNER = (
    "encoder",
    "blocks",
    "kind_in",
    "facts_in",
    "facts_out",
    "condition_out",
    "condition_neck",
)
_MUON_FACTOR = 4.0


@dataclass
class TrainingRecord:
    """Steps and minutes of wall time of a training, and how it went.

    The history has one entry a report: ``step``, ``minutes``, ``loss`` (mean since the last report)
    and ``held_out`` (loss of the averaged weights by lag in ps, when held-out pairs were given).
    """

    steps: int = 0
    minutes: float = 0.0
    history: list[dict] = field(default_factory=list)


def denoising_loss(
    model: Network,
    frame: Tensor,
    later: Tensor,
    lag: Tensor,
    sigma: Tensor,
    settings: TrainSettings,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Tensor:
    """Return each pair's denoising loss, in units in which the untrained network has about 1.

    It is the weighted mean over coordinates of |D - y|^2 / c_out^2 (Karras et al. 2022, equation
    8).

    Parameters
    ----------
    frame, later : Tensor
        (B, N, 3), nm.
    lag : Tensor
        (B,), ps.
    sigma : Tensor
        (B,), noise levels in widths of the data.
    settings : TrainSettings
        For the noise on the conditioning frame and the weight of turning torsions.
    rows : slice, optional
        Only of these pairs. Random numbers are drawn for all of them, so that several processes
        that share a batch use those that one would.
    """
    device, count = frame.device, len(frame)
    if isinstance(model, FamilyDiffusion | TransferableDiffusion):
        frame, later = model.draw_equivalent(frame, later, generator)
    # Geometry stays in float32: bfloat16 products would blur coordinates by 0.001 nm, which is
    # half a bond's thermal width.
    with torch.autocast(device.type, enabled=False):
        jitter = torch.randn(frame.shape, generator=generator, device=device)
        frame = frame + settings.condition_noise_nm * jitter
        frame, later, lag, sigma = frame[rows], later[rows], lag[rows], sigma[rows]
        clean, known = model.target(frame, later, lag)
        level = sigma.view(-1, *(1 for _ in clean.shape[1:]))
        noise = torch.randn((count, *clean.shape[1:]), generator=generator, device=device)
        noised = clean + level * noise[rows]
    error = model.answer(noised, sigma, known).float() - clean
    loss = (model.loss_weights(settings.turn_weight) * error * error).flatten(1).mean(dim=1)
    return loss * (1.0 + sigma * sigma) / (sigma * sigma)


@torch.no_grad()
def held_out_loss(
    model: Network,
    pairs: TransitionPairs,
    settings: TrainSettings,
    lags_ps: Sequence[float],
    count: int = 1024,
) -> dict[float, float]:
    """Return the mean denoising loss at each lag (ps), with the same pairs and noise at every call.

    The pairs, `count` at each lag, are not used in training. The settings say which noise levels,
    and which noise on the conditioning frame.
    """
    device = pairs.frames.device
    losses = {}
    for lag_ps in lags_ps:
        generator = torch.Generator(device).manual_seed(20_000 + round(1000 * lag_ps))
        frame, later, lag = pairs.draw(count, lag_ps, lag_ps, generator)
        sigma = draw_levels(count, settings, generator, device)
        loss = denoising_loss(model, frame, later, lag, sigma, settings, generator)
        losses[float(lag_ps)] = float(loss.mean())
    return losses


class Task(Protocol):
    """What one network is taught: `Part`, or `~openmm_sd.train.distill.Imitation`."""

    @property
    def model(self) -> Network | Members:
        """The network or networks, on their device."""

    @property
    def share(self) -> float:
        """Its part of a step's pairs, relative to the others' shares."""

    def describe(self) -> str:
        """Return what a checkpoint's weights belong to, in a line."""

    def lessons(self, settings: TrainSettings) -> Lessons:
        """Return what gives the losses of a step's pairs.

        Random numbers are drawn for all pairs of a step, whichever of them are asked for.
        """

    def held_out_losses(
        self, model: Any, settings: TrainSettings, lags_ps: Sequence[float]
    ) -> dict[float, float]:
        """Return the loss of other weights on what is held out, by lag in ps.

        The model is a copy of the task's own, with those weights.
        """


@dataclass(frozen=True)
class Part:
    """One molecule of a training.

    The network is on the device of the pairs, and its statistics have been set (`fit_statistics`).
    The loss by lag is reported of what is held out. `share` is that of a step's pairs, relative to
    the other molecules'.
    """

    model: Network
    pairs: TransitionPairs
    held_out: TransitionPairs | None = None
    share: float = 1.0

    def describe(self) -> str:
        """Return what a checkpoint belongs to; see `Task`."""
        return f"{self.model.hyperparameters} {self.share:g} {len(self.pairs)}"

    def lessons(self, settings: TrainSettings) -> Lessons:
        """Return the denoising losses of pairs, rare hops first; see `Task`."""
        nodes = self.model.lag_nodes()
        source = RareFirst(
            self.pairs, float(nodes[0]), float(nodes[-1]), settings.seed, settings.rare_first
        )
        device = self.pairs.frames.device

        def losses(count: int, step: int, generator: torch.Generator, rows: slice) -> Tensor:
            frame, later, lag, weight = source.draw(count, step, generator)
            sigma = draw_levels(count, settings, generator, device)
            return weight[rows] * denoising_loss(
                self.model, frame, later, lag, sigma, settings, generator, rows
            )

        return losses

    def held_out_losses(
        self, model: Network, settings: TrainSettings, lags_ps: Sequence[float]
    ) -> dict[float, float]:
        """Return the loss of other weights on what is held out, by lag in ps."""
        if self.held_out is None:
            return {}
        possible = [lag for lag in lags_ps if lag <= self.held_out.longest_lag_ps()]
        return held_out_loss(model, self.held_out, settings, possible)


def train(
    tasks: Sequence[Task],
    settings: TrainSettings,
    *,
    lags_ps: Sequence[float] = (1.0, 10.0, 100.0),
    checkpoint: Path | str | None = None,
    progress: Callable[[TrainingRecord], None] | None = None,
    team: Team | None = None,
) -> TrainingRecord:
    """Train the networks of one or several molecules in place, to their averaged weights.

    Parameters
    ----------
    tasks : sequence of Task
        The molecules, `Part` for instance. Every step has pairs of each. Several networks must
        share their weights (`FamilyDiffusion.share_weights`).
    settings : TrainSettings
        How.
    lags_ps : sequence of float
        Lags of the reported losses, ps; those outside the model's range are left out.
    checkpoint : Path or str, optional
        Written atomically at every report and at the end; when it exists, training resumes from it.
        One made with other settings (but for `minutes` and `report_seconds`) is refused.
    progress : callable, optional
        Called with the record whenever an entry was added to its history; a line on standard error
        by default.
    team : Team, optional
        Processes that share each step's pairs; alone by default. `batch_size` is that of all
        together. The first of them reports and writes, the others do neither.

    Returns
    -------
    TrainingRecord
        Losses of several molecules are held out by their places in `tasks`, as in ``"1: 10"``.

    Raises
    ------
    KeyboardInterrupt
        On SIGINT or SIGTERM to any of the processes, after the step and the checkpoint.
    """
    return _Training(tasks, settings, lags_ps, checkpoint, progress, team).run()


class _Training:
    """A training under way; parameters as for `train`."""

    def __init__(
        self,
        tasks: Sequence[Task],
        settings: TrainSettings,
        lags_ps: Sequence[float],
        checkpoint: Path | str | None,
        progress: Callable[[TrainingRecord], None] | None,
        team: Team | None,
    ) -> None:
        device = next(tasks[0].model.parameters()).device
        self.team = team = team or Team(device)
        self.tasks, self.settings, self.progress = tasks, settings, progress
        nodes = tasks[0].model.lag_nodes()
        low, high = float(nodes[0]), float(nodes[-1])
        self.lags_ps = [lag for lag in lags_ps if low * 0.999 <= lag <= high * 1.001]
        counts = _counts(settings.batch_size, [task.share for task in tasks])
        if min(counts) < team.size:
            raise ValueError(
                f"a batch of {settings.batch_size} pairs gives {min(counts)} of a molecule to "
                f"{team.size} processes: take a larger batch or fewer processes"
            )
        # One module, so that a copy of it shares weights as the original does.
        self.alone = len(tasks) == 1
        self.model: torch.nn.Module = (
            tasks[0].model if self.alone else torch.nn.ModuleList([task.model for task in tasks])
        )
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        lessons = [task.lessons(settings) for task in tasks]
        self.step_loss = _StepLoss(self.model, lessons, counts, settings, self.generator, team)
        self.shared = team.wrap(self.step_loss)
        self.average = copy.deepcopy(self.model).eval()
        self.optimiser = make_optimiser(self.model, settings)
        kept = self.model.parameters() if settings.keep else ()
        self.first = [value.detach().clone() for value in kept]
        self.record = TrainingRecord()
        self.path = Path(checkpoint) if checkpoint is not None else None
        # What the weights and buffers of a checkpoint belong to.
        self.of_what = [task.describe() for task in tasks]
        self.last_report = time.monotonic()
        # The sum of the losses since then, and their number.
        self.running, self.counted = 0.0, 0

    def run(self) -> TrainingRecord:
        """Train until time or steps are up."""
        if self.path is None or not self.team.leads:
            return self._run()
        with sole_writer(self.path, "training"):
            return self._run()

    def _run(self) -> TrainingRecord:
        self._resume()
        minutes_before = self.record.minutes
        began = self.last_report = time.monotonic()
        # The minutes since then as the leader counts them, and whether anybody was told to stop.
        elapsed, halt = 0.0, 0.0
        with interrupts() as stopped:
            while True:
                self.record.minutes = minutes_before + elapsed
                progress = self._progress()
                now = time.monotonic()
                due = progress >= 1.0 or now - self.last_report > self.settings.report_seconds
                if self.counted and due and self.team.leads:
                    self._tell()
                    self._save()
                    self.running, self.counted, self.last_report = 0.0, 0, now
                if progress >= 1.0:
                    break
                if halt:
                    self._save()
                    raise KeyboardInterrupt
                value = self._step(progress)
                minutes = (time.monotonic() - began) / 60.0 if self.team.leads else 0.0
                value, halt, elapsed = self.team.sums([value, float(stopped()), minutes])
                if not math.isfinite(value):
                    raise ValueError(
                        f"the loss is {value} at step {self.record.steps}: lower the learning rate"
                    )
                self.running += value
                self.counted += 1
        self.model.load_state_dict(self.average.state_dict())
        return self.record

    def _progress(self) -> float:
        """Return how much of the training is done, from 0 to 1 or a little more."""
        progress = self.record.minutes / self.settings.minutes
        if self.settings.max_steps is not None:
            progress = max(progress, self.record.steps / self.settings.max_steps)
        return progress

    def _step(self, progress: float) -> float:
        """Make a step; return what this process adds to its loss."""
        settings, record = self.settings, self.record
        rate = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        rate *= min(1.0, (record.steps + 1) / settings.warmup_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.optimiser.zero_grad(set_to_none=True)
        if self.team.size == 1:
            # Molecule by molecule, so that the memory is that of one.
            value = 0.0
            for k in range(len(self.tasks)):
                loss = self.step_loss.part(k, record.steps)
                loss.backward()
                value += float(loss.detach())
        else:
            loss = self.shared(record.steps)
            # Gradients come out as the mean over processes, wanted is their sum.
            (self.team.size * loss).backward()
            value = float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        if settings.keep:
            # What L2-SP asks for (Li, Grandvalet, Davoine 2018), decoupled from the gradient as
            # weight decay is in AdamW.
            with torch.no_grad():
                share = min(1.0, settings.keep * rate)
                torch._foreach_lerp_(list(self.model.parameters()), self.first, share)
        record.steps += 1
        # The average starts as short as the training is, so that early weights are forgotten.
        decay = min(settings.ema_decay, (1.0 + record.steps) / (10.0 + record.steps))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1.0 - decay
            )
        return value

    def _tell(self) -> None:
        """Add an entry to the history and report it."""
        entry: dict = {
            "step": self.record.steps,
            "minutes": round(self.record.minutes, 2),
            "loss": round(self.running / self.counted, 5),
        }
        averages: list[Network] = [self.average] if self.alone else list(self.average)  # type: ignore
        for k, (task, average) in enumerate(zip(self.tasks, averages, strict=True)):
            before = "" if self.alone else f"{k}: "
            losses = task.held_out_losses(average, self.settings, self.lags_ps)
            if losses:
                entry.setdefault("held_out", {}).update(
                    {f"{before}{lag:g}": round(v, 5) for lag, v in losses.items()}
                )
        self.record.history.append(entry)
        if self.progress is None:
            print(f"train: {entry}", file=sys.stderr, flush=True)
        else:
            self.progress(self.record)

    def _kept(self) -> dict:
        kept = self.settings.told()
        # These may change between the parts of a resumed training.
        del kept["minutes"], kept["report_seconds"]
        return kept

    def _save(self) -> None:
        if self.path is None or not self.team.leads:
            return
        content = {
            "settings": self._kept(),
            "of_what": self.of_what,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state().cpu(),
            "record": asdict(self.record),
        }
        kept = io.BytesIO()  # of a full disk torch says "unexpected pos 704 vs 598"
        torch.save(content, kept)
        safe = "what was there before is intact, the same command resumes from there"
        with writing(self.path, safe):
            write_atomically(self.path, kept.getbuffer())

    def _read(self) -> dict | str | None:
        """Read the checkpoint, if there is one; return why not if it is of another training."""
        if self.path is None or not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            content["settings"], content["record"]
        except Exception:  # a damaged file fails in many ways, of which torch says a page
            return f"{self.path} is damaged, or no checkpoint; remove that file to begin again"
        advice = "give the same settings, or remove that file"
        try:
            require_same(f"{self.path} was", content["settings"], self._kept(), advice)
        except ValueError as error:
            return str(error)
        if content.get("of_what") != self.of_what:
            return f"{self.path} was made with other molecules, data or networks, or another order"
        return content

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one; all processes do, or refuse it."""
        if self.path is None:
            return
        content = self.team.broadcast(self._read() if self.team.leads else None)
        if isinstance(content, str):
            raise ValueError(content)
        if content is not None:
            self.model.load_state_dict(content["model"])
            self.average.load_state_dict(content["average"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.generator.set_state(content["generator"])
            self.record = TrainingRecord(**content["record"])


class _Both(torch.optim.Optimizer):
    """Muon for what maps features to features, Adam for the rest, as one optimiser."""

    def __init__(self, model: torch.nn.Module, rate: float) -> None:
        shared = dict(model.named_parameters())  # each once
        inner = {
            name
            for name, value in shared.items()
            if value.ndim == 2 and any(f".{part}." in f".{name}" for part in _INNER)
        }
        muon = torch.optim.Muon(
            [shared[name] for name in sorted(inner)],
            lr=_MUON_FACTOR * rate,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = [value for name, value in shared.items() if name not in inner]
        adam = torch.optim.Adam(rest, lr=rate, betas=(0.9, 0.99), fused=True)
        self.parts = (muon, adam)
        for group in muon.param_groups:
            group["factor"] = _MUON_FACTOR
        super().__init__(list(shared.values()), {"lr": rate})
        self.param_groups = [*muon.param_groups, *adam.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make a step of both."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:  # type: ignore[override]
        """Return the state of both."""
        return {str(k): part.state_dict() for k, part in enumerate(self.parts)}

    def load_state_dict(self, state_dict: dict) -> None:  # type: ignore[override]
        """Go on from the state of both."""
        for k, part in enumerate(self.parts):
            part.load_state_dict(state_dict[str(k)])
        self.param_groups = [g for part in self.parts for g in part.param_groups]


def make_optimiser(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser that the settings ask for."""
    if settings.optimizer == "muon":
        return _Both(model, settings.learning_rate)
    return torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True
    )


class _StepLoss(torch.nn.Module):
    """The loss of a step: a module, so that PyTorch can average its gradients over processes."""

    def __init__(
        self,
        model: torch.nn.Module,
        lessons: Sequence[Lessons],
        counts: Sequence[int],
        settings: TrainSettings,
        generator: torch.Generator,
        team: Team,
    ) -> None:
        super().__init__()
        self.model = model
        self._lessons, self._counts = lessons, counts
        self._settings, self._generator, self._team = settings, generator, team

    def forward(self, step: int) -> Tensor:
        """Return what this process adds to the loss of all molecules."""
        return torch.stack([self.part(k, step) for k in range(len(self._lessons))]).sum()

    def part(self, k: int, step: int) -> Tensor:
        """Return what this process adds to the loss of one molecule."""
        settings, count = self._settings, self._counts[k]
        rows = self._team.rows(count)
        kind = self._team.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.bf16):
            losses = self._lessons[k](count, step, self._generator, rows)
            return losses.sum() / settings.batch_size


def draw_levels(
    count: int, settings: TrainSettings, generator: torch.Generator, device: torch.device
) -> Tensor:
    # Stratified: every batch covers each part of the range evenly.
    u = torch.rand(count, generator=generator, device=device)
    uniform = round(_UNIFORM_SHARE * count)
    low, high = math.log(settings.sigma_min), math.log(settings.sigma_max)
    spread = low + (torch.arange(uniform, device=device) + u[:uniform]) / uniform * (high - low)
    rest = count - uniform
    place = (torch.arange(rest, device=device) + u[uniform:]) / rest
    centred = math.log(_LEVEL_CENTRE) + _LEVEL_LOG_WIDTH * torch.special.ndtri(
        place.clamp(1e-6, 1.0 - 1e-6)
    )
    return torch.exp(torch.cat([spread, centred]).clamp(low, high))


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Split a step's pairs over the molecules, at least one each."""
    ends = [round(total * sum(shares[: k + 1]) / sum(shares)) for k in range(len(shares))]
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    if min(counts) < 1:
        raise ValueError(f"a batch of {total} pairs is too small for {len(shares)} molecules")
    return counts
