"""Denoising score matching of a propagator on pairs of frames.

A pair is a frame and the frame one lag later in the same trajectory, at a lag drawn log-uniformly.
The later frame is aligned onto the earlier one, scaled to a displacement of width one and noised;
the network learns to take the noise away. The same code runs on CPU and GPU.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..files.atomic import replacing
from ..files.folder import interrupts, require_same
from ..molecule.molecule import Molecule
from ..propagator.cartesian.dense import DenseDiffusion
from ..propagator.internal.base import InternalPropagator
from ..propagator.internal.family import FamilyDiffusion
from ..propagator.internal.statistics import CoordinateStatistics
from .pairs import TransitionPairs
from .rare import RareFirst
from .team import Team

#: What can be trained.
Network = DenseDiffusion | InternalPropagator
#: Number of pairs, step, source of random numbers, and which of the pairs, to losses of the latter.
Lessons = Callable[[int, int, torch.Generator, slice], Tensor]

# The largest lags' pairs come from few independent stretches; this many pairs make the scale of a
# displacement good to about one per cent all the same.
_STATISTICS_PAIRS = 8192

# Centre and width of the log-normal part of the noise levels drawn in training. With a centre of
# 0.7 alanine dipeptide's hops came out no better.
_LEVEL_CENTRE = 0.25
_LEVEL_LOG_WIDTH = 1.3
_UNIFORM_SHARE = 1.0 / 3.0


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained.

    Attributes
    ----------
    minutes : float
        Wall time of training, minutes, summed over resumed parts. The learning rate follows it.
    max_steps : int or None
        Stop after this many steps even if time is left; the learning rate then follows the steps.
    batch_size : int
        Pairs a step.
    learning_rate : float
        Peak of the rate, reached after `warmup_steps`; it falls to zero as a cosine.
    warmup_steps : int
        Steps of linear warm-up.
    ema_decay : float
        Decay of the exponential moving average of the weights, which is what is kept.
    condition_noise_nm : float
        Standard deviation of the noise on the conditioning frame, nm. It keeps long rollouts from
        drifting off the frames that dynamics visits.
    sigma_min, sigma_max : float
        Range of noise levels in widths of the data, wider than the sampler's. A third of the draws
        is log-uniform over it, the rest log-normal around the levels where a sample decides
        between conformations and takes its bonds.
    rare_first : bool
        Draw pairs that hop rarely more often, with less weight each; see `RareFirst`.
    turn_weight : float
        Weight of the coordinates that say how torsions turn, relative to bonds, angles and stiff
        torsions, in the loss of a network in internal coordinates. The least of the loss is at the
        same law whatever the weight; it says where the network's effort goes.
    bf16 : bool
        Matrix products in bfloat16. About twice as fast on CPUs that have it.
    seed : int
        Seed of pairs, noise and initial weights' use.
    report_seconds : float
        Time between lines of progress and between checkpoints, s.
    """

    minutes: float = 10.0
    max_steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    ema_decay: float = 0.9995
    condition_noise_nm: float = 0.003
    sigma_min: float = 0.005
    sigma_max: float = 90.0
    rare_first: bool = True
    turn_weight: float = 5.0
    bf16: bool = True
    seed: int = 1
    report_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate", "sigma_min", "turn_weight"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.condition_noise_nm >= 0.0:
            raise ValueError(
                f"condition_noise_nm must not be negative, got {self.condition_noise_nm}"
            )
        if not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"sigma_max must be above sigma_min, got {self.sigma_max} and {self.sigma_min}"
            )


@dataclass
class TrainingRecord:
    """What came of it.

    Attributes
    ----------
    steps : int
        Optimiser steps taken.
    minutes : float
        Wall time, minutes.
    history : list of dict
        One entry a report: ``step``, ``minutes``, ``loss`` (mean since the last report) and
        ``held_out`` (loss of the averaged weights by lag in ps, when held-out pairs were given).
    """

    steps: int = 0
    minutes: float = 0.0
    history: list[dict] = field(default_factory=list)


def fit_statistics(model: Network, pairs: TransitionPairs, seed: int = 0) -> None:
    """Set a model's normalisation and displacement scales from data.

    Parameters
    ----------
    model : Network
        Changed in place.
    pairs : TransitionPairs
        The training data.
    seed : int
        Seed of the pairs drawn for it.
    """
    device = pairs.frames.device
    generator = torch.Generator(device).manual_seed(seed)
    scales = []
    for lag in model.lag_nodes():
        frame, later, _ = pairs.draw(_STATISTICS_PAIRS, lag, lag, generator)
        scales.append(model.measure_scale(frame, later))
    chosen = torch.randint(len(pairs), (4 * _STATISTICS_PAIRS,), generator=generator, device=device)
    model.fit_statistics(pairs.frames[chosen], torch.stack(scales))


def family_statistics(
    members: Sequence[tuple[Molecule, TransitionPairs]],
    lag_min_ps: float,
    lag_max_ps: float,
    n_lag_nodes: int = 12,
    seed: int = 0,
) -> CoordinateStatistics:
    """Measure the normalisation of internal coordinates by kind, from a family's training data.

    Parameters
    ----------
    members : sequence of (Molecule, TransitionPairs)
        Each molecule with its data.
    lag_min_ps, lag_max_ps : float
        Range of lags, ps.
    n_lag_nodes : int
        It is measured how far torsions turn at this many lags, evenly spaced in log(lag).
    seed : int
        Seed of the frames and pairs drawn for it.

    Returns
    -------
    CoordinateStatistics
        From which `FamilyDiffusion.for_molecule` builds members, with or without data.
    """
    if n_lag_nodes < 2:
        raise ValueError(f"n_lag_nodes must be at least 2, got {n_lag_nodes}")
    if not 0.0 < lag_min_ps < lag_max_ps:
        raise ValueError(f"need 0 < lag_min_ps < lag_max_ps, got {lag_min_ps}, {lag_max_ps}")
    growth = math.log(lag_max_ps / lag_min_ps) / (n_lag_nodes - 1)
    statistics = CoordinateStatistics(
        [lag_min_ps * math.exp(k * growth) for k in range(n_lag_nodes)]
    )
    for molecule, pairs in members:
        device = pairs.frames.device
        generator = torch.Generator(device).manual_seed(seed)
        at_lags = []
        for lag in statistics.lags_ps:
            frame, later, _ = pairs.draw(_STATISTICS_PAIRS, lag, lag, generator)
            at_lags.append((frame, later))
        count = 4 * _STATISTICS_PAIRS
        chosen = torch.randint(len(pairs), (count,), generator=generator, device=device)
        statistics.add(molecule, pairs.frames[chosen], at_lags)
    return statistics


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

    Parameters
    ----------
    model : Network
        The network.
    frame, later : Tensor
        (B, N, 3), nm.
    lag : Tensor
        (B,), ps.
    sigma : Tensor
        (B,), noise levels in widths of the data.
    settings : TrainSettings
        For the noise on the conditioning frame and the weight of turning torsions.
    generator : torch.Generator
        Source of random numbers.
    rows : slice, optional
        Only of these pairs. Random numbers are drawn for all of them, so that several processes
        that share a batch use those that one would.

    Returns
    -------
    Tensor
        (B,) or as many as there are rows, the weighted mean over coordinates of
        |D - y|^2 / c_out^2 (Karras et al. 2022, equation 8).
    """
    device, count = frame.device, len(frame)
    if isinstance(model, FamilyDiffusion):
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
    """Return the mean denoising loss at each lag, with the same pairs and noise at every call.

    Parameters
    ----------
    model : Network
        The network.
    pairs : TransitionPairs
        Data not used in training.
    settings : TrainSettings
        For the noise levels and the noise on the conditioning frame.
    lags_ps : sequence of float
        Lags, ps.
    count : int
        Pairs at each lag.

    Returns
    -------
    dict
        Loss by lag.
    """
    device = pairs.frames.device
    losses = {}
    for lag_ps in lags_ps:
        generator = torch.Generator(device).manual_seed(20_000 + round(1000 * lag_ps))
        frame, later, lag = pairs.draw(count, lag_ps, lag_ps, generator)
        sigma = _draw_levels(count, settings, generator, device)
        loss = denoising_loss(model, frame, later, lag, sigma, settings, generator)
        losses[float(lag_ps)] = float(loss.mean())
    return losses


class Task(Protocol):
    """What one network is taught: `Part`, or `~openmm_sd.train.distill.Imitation`."""

    @property
    def model(self) -> Network:
        """The network, on its device."""

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
        self, model: Network, settings: TrainSettings, lags_ps: Sequence[float]
    ) -> dict[float, float]:
        """Return the loss of other weights on what is held out, by lag in ps."""


@dataclass(frozen=True)
class Part:
    """One molecule of a training.

    Attributes
    ----------
    model : Network
        On the same device as the pairs. Its statistics must have been set (`fit_statistics`).
    pairs : TransitionPairs
        Training data.
    held_out : TransitionPairs or None
        Data on which the loss by lag is reported.
    share : float
        Of a step's pairs, relative to the other molecules' shares.
    """

    model: Network
    pairs: TransitionPairs
    held_out: TransitionPairs | None = None
    share: float = 1.0

    def describe(self) -> str:
        """Return what says to what a checkpoint belongs; see `Task`."""
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
            sigma = _draw_levels(count, settings, generator, device)
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
    model: Network,
    pairs: TransitionPairs,
    settings: TrainSettings,
    *,
    held_out: TransitionPairs | None = None,
    lags_ps: Sequence[float] = (1.0, 10.0, 100.0),
    checkpoint: Path | str | None = None,
    report: Callable[[TrainingRecord], None] | None = None,
    crew: Team | None = None,
) -> TrainingRecord:
    """Train a model in place; afterwards it holds the averaged weights.

    Parameters
    ----------
    model : Network
        On the same device as the pairs. Its statistics must have been set (`fit_statistics`).
    pairs : TransitionPairs
        Training data.
    settings : TrainSettings
        How.
    held_out : TransitionPairs, optional
        Data on which the loss by lag is reported.
    lags_ps, checkpoint, report, crew
        As for `train_together`.

    Returns
    -------
    TrainingRecord
        Steps, time and the course of the losses.
    """
    return train_together(
        [Part(model, pairs, held_out)],
        settings,
        lags_ps=lags_ps,
        checkpoint=checkpoint,
        report=report,
        crew=crew,
    )


def train_together(
    parts: Sequence[Task],
    settings: TrainSettings,
    *,
    lags_ps: Sequence[float] = (1.0, 10.0, 100.0),
    checkpoint: Path | str | None = None,
    report: Callable[[TrainingRecord], None] | None = None,
    crew: Team | None = None,
) -> TrainingRecord:
    """Train the networks of one or several molecules, which share their weights, in place.

    Parameters
    ----------
    parts : sequence of Task
        The molecules. Every step has pairs of each. Several networks must share their weights
        (`FamilyDiffusion.share_weights`).
    settings : TrainSettings
        How.
    lags_ps : sequence of float
        Lags of that report, ps; those outside the model's range are left out.
    checkpoint : Path or str, optional
        Written atomically at every report and at the end; when it exists, training resumes from it.
        One made with other settings (but for `minutes` and `report_seconds`) is refused.
    report : callable, optional
        Called with the record whenever an entry was added to its history; a line on standard error
        by default.
    crew : Team, optional
        Processes that share each step's pairs; alone by default. `batch_size` is that of all
        together. The first of them reports and writes, the others do neither.

    Returns
    -------
    TrainingRecord
        Steps, time and the course of the losses; those of several molecules are held out by
        their places in `parts`, as in ``"1: 10"``.

    Raises
    ------
    KeyboardInterrupt
        On SIGINT or SIGTERM to any of the processes, after the step and the checkpoint.
    """
    device = next(parts[0].model.parameters()).device
    crew = crew or Team(device)
    nodes = parts[0].model.lag_nodes()
    low, high = float(nodes[0]), float(nodes[-1])
    lags_ps = [lag for lag in lags_ps if low * 0.999 <= lag <= high * 1.001]
    counts = _counts(settings.batch_size, [part.share for part in parts])
    # One module, so that a copy of it shares weights as the original does.
    alone = len(parts) == 1
    model: torch.nn.Module = (
        parts[0].model if alone else torch.nn.ModuleList([part.model for part in parts])
    )
    if min(counts) < crew.size:
        raise ValueError(
            f"a batch of {settings.batch_size} pairs gives {min(counts)} of a molecule to "
            f"{crew.size} processes: take a larger batch or fewer processes"
        )
    generator = torch.Generator(device).manual_seed(settings.seed)
    lessons = [part.lessons(settings) for part in parts]
    step_loss = _StepLoss(model, lessons, counts, settings, generator, crew)
    shared = crew.wrap(step_loss)
    average = copy.deepcopy(model).eval()
    averages: list[Network] = [average] if alone else list(average)  # type: ignore
    optimiser = torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True
    )
    record = TrainingRecord()
    path = Path(checkpoint) if checkpoint is not None else None
    # What the weights and buffers of a checkpoint belong to.
    of_what = [part.describe() for part in parts]
    if path is not None:
        content = crew.told(_read(path, of_what, settings) if crew.leads else None)
        if isinstance(content, str):
            raise ValueError(content)
        if content is not None:
            _restore(content, model, average, optimiser, generator, record)

    def save() -> None:
        if path is not None and crew.leads:
            _save(path, of_what, settings, model, average, optimiser, generator, record)

    minutes_before = record.minutes
    began = last_report = time.monotonic()
    # The minutes since then as the leader counts them, and whether anybody was told to stop.
    elapsed, halt = 0.0, 0.0
    running, counted = 0.0, 0
    with interrupts() as stopped:
        while True:
            record.minutes = minutes_before + elapsed
            progress = record.minutes / settings.minutes
            if settings.max_steps is not None:
                progress = max(progress, record.steps / settings.max_steps)
            finished = progress >= 1.0
            now = time.monotonic()
            due = finished or now - last_report > settings.report_seconds
            if counted and due and crew.leads:
                entry: dict = {
                    "step": record.steps,
                    "minutes": round(record.minutes, 2),
                    "loss": round(running / counted, 5),
                }
                for k, part in enumerate(parts):
                    before = "" if alone else f"{k}: "
                    losses = part.held_out_losses(averages[k], settings, lags_ps)
                    if losses:
                        entry.setdefault("held_out", {}).update(
                            {f"{before}{lag:g}": round(v, 5) for lag, v in losses.items()}
                        )
                record.history.append(entry)
                if report is None:
                    print(f"train: {entry}", file=sys.stderr, flush=True)
                else:
                    report(record)
                running, counted, last_report = 0.0, 0, now
                save()
            if finished:
                break
            if halt:
                save()
                raise KeyboardInterrupt

            rate = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
            rate *= min(1.0, (record.steps + 1) / settings.warmup_steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            if crew.size == 1:
                # Molecule by molecule, so that the memory is that of one.
                value = 0.0
                for k in range(len(parts)):
                    loss = step_loss.part(k, record.steps)
                    loss.backward()
                    value += float(loss.detach())
            else:
                loss = shared(record.steps)
                # Gradients come out as the mean over processes, wanted is their sum.
                (crew.size * loss).backward()
                value = float(loss.detach())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            record.steps += 1
            # The average starts as short as the training is, so that early weights are forgotten.
            decay = min(settings.ema_decay, (1.0 + record.steps) / (10.0 + record.steps))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(average.parameters()), list(model.parameters()), 1.0 - decay
                )
            minutes = (time.monotonic() - began) / 60.0 if crew.leads else 0.0
            value, halt, elapsed = crew.sums([value, float(stopped()), minutes])
            if not math.isfinite(value):
                raise ValueError(
                    f"the loss is {value} at step {record.steps}: lower the learning rate"
                )
            running += value
            counted += 1
    model.load_state_dict(average.state_dict())
    return record


class _StepLoss(torch.nn.Module):
    """The loss of a step: a module, so that PyTorch can average its gradients over processes."""

    def __init__(
        self,
        model: torch.nn.Module,
        lessons: Sequence[Lessons],
        counts: Sequence[int],
        settings: TrainSettings,
        generator: torch.Generator,
        crew: Team,
    ) -> None:
        super().__init__()
        self.model = model
        self._lessons, self._counts = lessons, counts
        self._settings, self._generator, self._crew = settings, generator, crew

    def forward(self, step: int) -> Tensor:
        """Return what this process adds to the loss of all molecules."""
        return torch.stack([self.part(k, step) for k in range(len(self._lessons))]).sum()

    def part(self, k: int, step: int) -> Tensor:
        """Return what this process adds to the loss of one molecule."""
        settings, count = self._settings, self._counts[k]
        rows = self._crew.rows(count)
        kind = self._crew.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=settings.bf16):
            losses = self._lessons[k](count, step, self._generator, rows)
            return losses.sum() / settings.batch_size


def _draw_levels(
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


def _kept(settings: TrainSettings) -> dict:
    kept = asdict(settings)
    # These may change between the parts of a resumed training.
    del kept["minutes"], kept["report_seconds"]
    return kept


def _save(
    path: Path,
    of_what: list[str],
    settings: TrainSettings,
    model: torch.nn.Module,
    average: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    record: TrainingRecord,
) -> None:
    content = {
        "settings": _kept(settings),
        "of_what": of_what,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state().cpu(),
        "record": asdict(record),
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def _read(path: Path, of_what: list[str], settings: TrainSettings) -> dict | str | None:
    """Read a checkpoint, if there is one; return why not if it does not belong to this training."""
    if not path.exists():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    advice = "give the same settings, or remove that file"
    try:
        require_same(f"{path} was", content["settings"], _kept(settings), advice)
    except ValueError as error:
        return str(error)  # for all processes of the training
    if content.get("of_what") != of_what:
        return f"{path} was made with other molecules, data or networks, or another order"
    return content


def _restore(
    content: dict,
    model: torch.nn.Module,
    average: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    record: TrainingRecord,
) -> None:
    model.load_state_dict(content["model"])
    average.load_state_dict(content["average"])
    optimiser.load_state_dict(content["optimiser"])
    generator.set_state(content["generator"])
    record.steps = content["record"]["steps"]
    record.minutes = content["record"]["minutes"]
    record.history = content["record"]["history"]
