"""Chains of a rollout that the workers of a Dask cluster move, block by block."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..model.model import ScoreModel
from ..progress import Progress
from ..propagator.device import device_name
from ..workers.cluster import Pool, Where, is_local, local_workers
from .rollout import Mover, Rollout
from .settings import RolloutSettings

# There are so many blocks, if that leaves a block so many chains. Both are the same whatever the
# number of workers: the results of a network depend by rounding on what it gets at once.
_BLOCKS: Final = 16
_FEWEST_CHAINS: Final = 32
# All blocks together are moved for about this time, and then again, s.
_ROUND_SECONDS: Final = 2.0
_FEWEST_SECONDS: Final = 0.1
# Blocks may be ahead of the slowest one by so much.
_AHEAD_BYTES: Final = 128 * 2**20
_MOST_RECORDS: Final = 4096
_POLL_SECONDS: Final = 0.2

#: Frames of a block after a recorded step, and what happened on the way there.
Record = tuple[NDArray[np.float32], Counter[str]]


@dataclass
class _Block:
    """Some of the chains: where they are after the last record that was handed in.

    `first` is the number of the first of them, `step` that record's step. `records` were handed in
    and not yet taken; `away` says that a worker has the chains.
    """

    first: int
    frames: NDArray[np.float32]
    step: int
    records: deque[Record] = field(default_factory=deque)
    away: bool = False


class SharedRollout(Rollout):
    """A rollout whose chains are moved by the workers of a Dask cluster.

    Chains are cut into blocks. A worker gets where a block is, moves it for some seconds at most,
    and hands in its frames; then anybody gets it. The noise of a chain depends on seed, step, try
    and the number of the chain, and the blocks do not depend on who is there: chains are the same
    whatever the number of workers, to the last bit on workers of one kind (the same processors,
    versions and number of threads), and those of `Rollout` up to the rounding that comes with other
    batches.

    Parameters
    ----------
    model, settings, frames
        As for `Rollout`. A block has at most `settings.batch` chains.
    where : Where
        The cluster; one of this machine is started with the first step.
    every : int
        A step is so many lags here: those between two recorded frames.
    say : callable
        Told when there are no workers to wait for.
    """

    def __init__(
        self,
        model: ScoreModel,
        settings: RolloutSettings,
        frames: ArrayLike | None,
        where: Where,
        every: int,
        say: Progress,
    ) -> None:
        if is_local(where) and settings.device.startswith("cuda:"):
            raise ValueError(
                f"device: each local worker sees one GPU only, ask for cuda, not {settings.device}"
            )
        super().__init__(model, replace(settings, device="cpu"), frames)
        self._where, self._every, self._say = where, every, say
        self._workers = local_workers(where, None)[1]
        self._wanted = settings.device
        self._blocks: list[_Block] = []
        self._devices: set[str] = set()
        self._clock: float | None = None
        record = self._frames.numel() * 4
        self._ahead = int(np.clip(_AHEAD_BYTES // record, 2, _MOST_RECORDS))
        # What is not there is refused now, and nothing is started for a rollout that is done.
        self._pool = None if is_local(where) else self._joined()

    @property
    def device_kind(self) -> str:
        """Kind of device that the chains are moved on; ``auto`` if workers elsewhere choose."""
        if self._wanted == "auto" and is_local(self._where):
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self._wanted.split(":")[0]

    @property
    def device_name(self) -> str:
        """The workers' devices for people."""
        return ", ".join(sorted(self._devices)) or self.device_kind

    def step(self, stopped: Callable[[], bool] | None = None) -> bool:
        """Wait until all chains are at the next recorded step; see `Rollout.step`."""
        if self._pool is None:
            self._pool = self._joined()
        if not self._blocks:
            self._cut()
        while not all(block.records for block in self._blocks):
            self._hand_out()
            for made in self._pool.made(_POLL_SECONDS):
                self._take(made.tag, *made.result)
            if self._clock is None:
                if self._pool.slots:
                    self._clock = time.perf_counter()
                else:
                    self._say("waiting for workers", f"{len(self._blocks)} blocks of chains")
            if stopped is not None and stopped():
                return False
        records = [block.records.popleft() for block in self._blocks]
        self._frames = torch.from_numpy(np.concatenate([frames for frames, _ in records]))
        for _, counts in records:
            self._counts += counts
        self._step = next_record(self._step, self._every, self.settings.steps)
        # Work goes on while frames are written: what counts is the time that passes.
        now = time.perf_counter()
        self._seconds += now - (now if self._clock is None else self._clock)
        self._clock = now
        return True

    def close(self) -> None:
        """Leave the cluster."""
        if self._pool is not None:
            self._pool.close()

    def _joined(self) -> Pool:
        settings = replace(self.settings, device=self._wanted)
        mover = BlockMover(self.model, settings, self._every)
        return Pool(self._where, mover, self._workers)

    def _cut(self) -> None:
        settings = self.settings
        chains, frames = settings.chains, self.frames
        size = min(settings.batch, max(_FEWEST_CHAINS, -(-chains // _BLOCKS)))
        self._blocks = [
            _Block(first, frames[first : first + size], self._step)
            for first in range(0, chains, size)
        ]

    def _hand_out(self) -> None:
        """Give blocks to workers, the one that is furthest behind first."""
        assert self._pool is not None
        most = max(1, self._ahead // 4)
        share = self._pool.slots / len(self._blocks)
        seconds = max(_FEWEST_SECONDS, _ROUND_SECONDS * min(1.0, share))
        # A second one for each worker, so that nobody waits for the next.
        free = 2 * self._pool.slots - self._pool.busy
        waiting = [
            k
            for k, block in enumerate(self._blocks)
            if not block.away
            and block.step < self.settings.steps
            and (not block.records or len(block.records) + most <= self._ahead)
        ]
        waiting.sort(key=lambda k: self._blocks[k].step)
        for k in waiting[: max(0, free)]:
            block = self._blocks[k]
            block.away = True
            self._pool.submit((block.first, block.frames, block.step, most, seconds), k)

    def _take(self, number: int, device: str, records: list[Record]) -> None:
        block = self._blocks[number]
        block.away = False
        self._devices.add(device)
        for frames, counts in records:
            block.records.append((frames, counts))
            block.frames = frames
            block.step = next_record(block.step, self._every, self.settings.steps)


def next_record(step: int, every: int, steps: int) -> int:
    """Return the step of the next recorded frame; a rollout may have been stopped between two."""
    return min(step - step % every + every, steps)


class BlockMover:
    """Moves blocks of chains on a worker, with a record every so many steps."""

    def __init__(self, model: ScoreModel, settings: RolloutSettings, every: int) -> None:
        self._model, self._settings, self._every = model, settings, every
        self._mover: Mover | None = None

    def work(
        self,
        order: tuple[int, NDArray[np.float32], int, int, float],
        stopped: Callable[[], bool],
    ) -> tuple[str, list[Record]]:
        """Move a block for a while."""
        first, where, step, most, seconds = order
        if self._mover is None:
            threads = os.environ.get("OMP_NUM_THREADS")
            if threads is not None:
                torch.set_num_threads(int(threads))
            self._mover = Mover(self._model, self._settings)
        mover, until = self._mover, time.monotonic() + seconds
        frames = torch.from_numpy(np.array(where)).to(mover.device)
        records: list[Record] = []
        while step < self._settings.steps and len(records) < most:
            counts: Counter[str] = Counter()
            for _ in range(next_record(step, self._every, self._settings.steps) - step):
                if stopped():
                    return device_name(mover.device), records
                frames, counted = mover(frames, step, first)
                counts += counted
                step += 1
            records.append((frames.cpu().numpy().copy(), counts))
            # What is left over at the end is no piece of its own.
            left = (self._settings.steps - step) // self._every
            if time.monotonic() > until and left > len(records) // 3:
                break
        return device_name(mover.device), records
