"""Chains of jumps in batches, in memory."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..jump.jump import ERRORS, REJECTIONS, STATUS_ACCEPTED, Jump, JumpError, gates_of
from ..jump.proposal import STATUSES, Draw
from ..model.model import ScoreModel
from ..propagator.device import chosen_device, device_name
from ..propagator.script import script_if_possible
from .settings import RolloutSettings, checked_lag


class StepStopped(Exception):
    """A step was given up; the chains are where they were."""


class Mover:
    """Moves chains of a model's first molecule by one lag: any chains, at any step."""

    def __init__(self, model: ScoreModel, settings: RolloutSettings) -> None:
        self.model, self.settings = model, settings
        self.molecule = model.molecules[0]
        self.lag_ps = checked_lag(model, settings.lag_ps)
        self.device = chosen_device(settings.device)
        propagator = model.propagator
        if any(
            tensor.device != self.device
            for tensor in (*propagator.parameters(), *propagator.buffers())
        ):
            propagator = copy.deepcopy(propagator)
        jump = Jump(
            propagator,
            self.molecule,
            gates_of(model, self.molecule),
            model.constraint_lengths,
        )
        self._jump = jump.to(self.device).eval()
        # Compiled when it is first needed.
        self._draw: torch.nn.Module | None = None

    @torch.no_grad()
    def place(self, frames: NDArray[np.float64], numbers: NDArray[np.int64]) -> Tensor:
        """Return where chains start that begin with the frames of these numbers.

        ValueError if such a frame is a mirror image of the model's molecule.
        """
        places = []
        # Some at a time, here as below: what is made on the way takes several times their memory.
        for begin in range(0, len(numbers), self.settings.batch):
            some = numbers[begin : begin + self.settings.batch]
            start = torch.from_numpy(frames[some]).to(self.device)
            order, mirrored = self._jump.relabel(start)
            if bool(mirrored.any()):
                frame = int(some[int(mirrored.cpu().numpy().argmax())])
                raise ValueError(
                    f"start frame {frame} is a mirror image of the model's {self.molecule.name} "
                    "at a stereocentre"
                )
            start = self._jump.constrain(self._jump.reorder(start, order))
            places.append(_centred(start).to(torch.float32))
        return torch.cat(places)

    @torch.inference_mode()
    def __call__(
        self,
        frames: Tensor,
        step: int,
        first: int = 0,
        stopped: Callable[[], bool] | None = None,
    ) -> tuple[Tensor, Counter[str]]:
        """Move chains by one lag; return where they are then, and what happened on the way.

        `frames` are (chains, N, 3), float32. Steps and chains are counted from 0: `first` is the
        number of the first of these chains, the others follow it. JumpError if what the propagator
        returns is no frame; StepStopped if `stopped`, asked before every batch, says so.
        """
        new = frames.clone()
        chains = len(frames)
        counts: Counter[str] = Counter()
        pending = torch.arange(chains, dtype=torch.int64, device=self.device)
        for attempt in range(self.settings.max_tries):
            failed = torch.zeros(chains, dtype=torch.bool, device=self.device)
            found = torch.zeros(2 + STATUSES, dtype=torch.int64, device=self.device)
            for rows in pending.split(self.settings.batch):
                if stopped is not None and stopped():
                    raise StepStopped
                start = _centred(frames[rows].to(torch.float64))
                moved, status, tallies = self._draws(start, rows + first, step, attempt)
                passed = status == STATUS_ACCEPTED
                new[rows] = torch.where(passed.reshape(-1, 1, 1), moved, new[rows])
                failed[rows] = ~passed
                found += tallies
            # The only places where a GPU is waited for.
            flips, swaps, *statuses = found.tolist()
            counts["chirality_flips"] += flips
            counts["equivalent_swaps"] += swaps
            counts["draws"] += len(pending)
            for code, name in REJECTIONS.items():
                counts[name] += statuses[code]
            failures = len(pending) - statuses[STATUS_ACCEPTED]
            if attempt == 0:
                counts["first_draw_failures"] += failures
            else:
                counts["redraws"] += len(pending)
            pending = pending[:0] if failures == 0 else failed.nonzero().squeeze(1)
            if failures == 0:
                break
        counts["fallbacks"] += len(pending)
        return new, counts

    def _draws(
        self, start: Tensor, rows: Tensor, step: int, attempt: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw once for some chains: frames, statuses, and the counts of what happened."""
        if self._draw is None:
            self._draw = script_if_possible(Draw(self._jump))
        frames, status, tallies, error = self._draw(
            start, rows, step, attempt, self.settings.seed, self.lag_ps
        )
        if error:
            raise JumpError(ERRORS[error])
        return frames, status, tallies


class Rollout:
    """Chains of pure Score Dynamics, moved all at once.

    Parameters
    ----------
    model : ScoreModel
        Of one molecule: of a family give a member.
    settings : RolloutSettings, optional
        `steps` is not used here: call `advance` as often as you like.
    frames : array, shape (M, N, 3), optional
        Frames to start from, nm, whole, in the order of the molecule's atoms. The model's own
        `start_frames` by default. Every chain draws one: with up to M chains no frame is drawn
        twice, with up to 2 M none three times, and so on.

    Attributes
    ----------
    molecule : Molecule
        What the chains hold.
    lag_ps : float
        Of one step.
    device : torch.device
        Where the chains are.

    Raises
    ------
    ValueError
        If the lag is outside the model's range, or there are no frames to start from, or they are
        not the model's molecule.

    Notes
    -----
    One step of a chain: draw noise, call the propagator, put constrained X-H bonds to their length,
    ask the gates; if one says no, draw again, up to `max_tries` times, only then stay; renumber
    equivalent atoms (methyl hydrogens) that came back in another order. The code is that of the
    jumps in a mixed run.

    The noise of a chain depends on the seed, the step, the try and the number of the chain: not on
    how many chains there are, nor on what happens to the others.

    Examples
    --------
    >>> model = ScoreModel.load("ala2-water")                    # doctest: +SKIP
    >>> rollout = Rollout(model, RolloutSettings(chains=100))    # doctest: +SKIP
    >>> frames = rollout.advance()                               # doctest: +SKIP
    """

    def __init__(
        self,
        model: ScoreModel,
        settings: RolloutSettings | None = None,
        frames: ArrayLike | None = None,
    ) -> None:
        self.model = model = model.only()
        self.settings = settings or RolloutSettings()
        self._mover = Mover(model, self.settings)
        self.molecule, self.lag_ps = self._mover.molecule, self._mover.lag_ps
        self.device = self._mover.device
        if frames is None:
            frames = model.start_frames
            if frames is None:
                raise ValueError(
                    "the model carries no start frames: give a structure or trajectory of "
                    f"{self.molecule.name} to start from"
                )
        given = _checked_frames(frames, self.molecule.n_atoms)
        chosen = _draw(len(given), self.settings.chains, self.settings.seed)
        self._frames = self._mover.place(given, chosen)
        self._step = 0
        self._seconds = 0.0
        self._counts: Counter[str] = Counter()

    @property
    def device_kind(self) -> str:
        """Kind of device that the chains are moved on."""
        return self.device.type

    @property
    def device_name(self) -> str:
        """The device for people."""
        return device_name(self.device)

    @property
    def step_number(self) -> int:
        """Number of steps made."""
        return self._step

    @property
    def frames(self) -> NDArray[np.float32]:
        """Where the chains are, (chains, N, 3), nm, each with its centroid at the origin."""
        return self._frames.cpu().numpy().copy()

    def advance(self) -> NDArray[np.float32]:
        """Move every chain by one lag and return the new frames, (chains, N, 3), nm.

        Raises
        ------
        JumpError
            If what the propagator returns is no frame.
        """
        self.step()
        return self.frames

    def step(self, stopped: Callable[[], bool] | None = None) -> bool:
        """Move every chain by one lag and leave the frames on the device.

        Parameters
        ----------
        stopped : callable, optional
            Asked, before every batch and where others have to be waited for, whether to give up;
            nothing is moved then.

        Returns
        -------
        bool
            Whether the chains were moved.
        """
        began = time.perf_counter()
        try:
            self._frames, counts = self._mover(self._frames, self._step, stopped=stopped)
        except StepStopped:
            return False
        self._counts += counts
        self._step += 1
        self._seconds += time.perf_counter() - began
        return True

    def statistics(self) -> dict[str, Any]:
        """Return what was counted so far.

        Returns
        -------
        dict
            ``jumps``: proposals that were accepted; ``draws``: all proposals;
            ``first_draw_failures``: steps of a chain whose first proposal failed; ``rejections``:
            proposals turned down, each by the first gate that said no;
            ``chirality_flips``: proposals with a stereocentre turned over, whatever gate turned
            them down; ``equivalent_swaps``: accepted proposals in which equivalent atoms came back
            in another order; ``redraws``; ``fallbacks``: steps at which a chain stayed where it
            was; ``seconds``: time in `advance`.
        """
        counts = self._counts
        rejections = {name: counts[name] for name in REJECTIONS.values()}
        return {
            "jumps": counts["draws"] - sum(rejections.values()),
            "draws": counts["draws"],
            "first_draw_failures": counts["first_draw_failures"],
            "rejections": rejections,
            "chirality_flips": counts["chirality_flips"],
            "equivalent_swaps": counts["equivalent_swaps"],
            "redraws": counts["redraws"],
            "fallbacks": counts["fallbacks"],
            "seconds": self._seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on exactly: one array, the rest JSON-able."""
        return {
            "frames": self.frames,
            "step": self._step,
            "seconds": self._seconds,
            "counts": dict(self._counts),
            "lag_ps": self.lag_ps,
            "seed": self.settings.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state_dict` of a rollout with the same model and settings.

        Raises
        ------
        ValueError
            If it belongs to another rollout.
        """
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise ValueError(f"state lacks {', '.join(missing)}")
        for key, own in (("lag_ps", self.lag_ps), ("seed", self.settings.seed)):
            if state[key] != own:
                raise ValueError(f"state belongs to {key} = {state[key]}, this rollout has {own}")
        frames = np.asarray(state["frames"], dtype=np.float32)
        if frames.shape != tuple(self._frames.shape):
            raise ValueError(
                f"state has frames of shape {frames.shape}, this rollout "
                f"{tuple(self._frames.shape)}"
            )
        self._frames = torch.from_numpy(frames.copy()).to(self.device)
        self._step = int(state["step"])
        self._seconds = float(state["seconds"])
        self._counts = Counter({str(k): int(n) for k, n in state["counts"].items()})


def _checked_frames(frames: ArrayLike, n_atoms: int) -> NDArray[np.float64]:
    try:
        given = np.asarray(frames, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"start frames must be numbers of shape (M, {n_atoms}, 3), nm") from None
    if given.ndim != 3 or given.shape[0] < 1 or given.shape[1:] != (n_atoms, 3):
        raise ValueError(f"start frames must have shape (M, {n_atoms}, 3), got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("start frames hold NaN or infinity")
    return given


def _draw(available: int, chains: int, seed: int) -> NDArray[np.int64]:
    """Which frame each chain starts from: one shuffled pass over the frames after the other.

    The first chains get the same frames however many chains follow.
    """
    passes = [
        np.random.default_rng([seed, k]).permutation(available)
        for k in range(-(-chains // available))
    ]
    return np.concatenate(passes)[:chains].astype(np.int64)


def _centred(frames: Tensor) -> Tensor:
    return frames - frames.mean(dim=1, keepdim=True)
