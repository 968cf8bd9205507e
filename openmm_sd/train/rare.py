"""Pairs of frames with rare hops drawn more often."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .pairs import TransitionPairs

#: Pairs in a pool, and as many as are drawn at once for it.
_POOL_SIZE: Final = 1 << 17
_POOL_PART: Final = 1 << 12


class RareFirst:
    """Pairs with rare hops drawn more often, and the weights that make up for it.

    A model must know how likely a hop is that one pair in thousands makes, and would have to see
    millions of pairs to learn it. Here pairs are drawn from a pool in which each class of pairs
    (from which conformation to which, at about which lag) with share f comes up in proportion to
    sqrt(f) instead of f, and counts for as much less: what is expected of the loss stays what it
    was, and what rare hops add to it comes in more and smaller parts.

    If not `active`, or without a Markov model of more than one conformation, pairs are drawn as
    they come. Lags are log-uniform in their range, ps. When `pool_size` pairs were taken, the next
    pool is drawn.
    """

    def __init__(
        self,
        pairs: TransitionPairs,
        lag_min_ps: float,
        lag_max_ps: float,
        seed: int = 1,
        active: bool = True,
        pool_size: int = _POOL_SIZE,
    ) -> None:
        self.pairs = pairs
        self.lag_range = (lag_min_ps, lag_max_ps)
        self.seed = seed
        self.pool_size = pool_size
        self.pool = -1
        self.states = None
        if active and pairs.markov is not None and pairs.markov.n_conformations > 1:
            states = torch.from_numpy(pairs.markov.conformations).to(pairs.frames.device)
            # Frames outside the Markov model are a conformation of their own.
            last = torch.tensor([pairs.markov.n_conformations], device=states.device)
            self.states = torch.cat([states, last])

    def draw(
        self, count: int, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the pairs of a step of training: frame, later frame (nm), lag (ps), weight.

        Frames are (count, N, 3), the rest (count,). The step's number says which pool it takes
        from. Weights are one in the mean over pairs as they come. The generator is on the frames'
        device.
        """
        if self.states is None:
            frame, later, lag = self.pairs.draw(count, *self.lag_range, generator)
            return frame, later, lag, torch.ones_like(lag)
        pool = step // max(1, self.pool_size // count)
        if pool != self.pool:
            self._fill(pool)
        device = self.cumulative.device
        u = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        # One from each of `count` equal parts of the probability, in any order.
        place = (torch.arange(count, device=device) + u) / count
        taken = torch.searchsorted(self.cumulative, place).clamp(max=self.pool_size - 1)
        taken = taken[torch.randperm(count, generator=generator, device=device)]
        frame, later = self.pairs.gather(self.first[taken], self.second[taken], generator)
        return frame, later, self.lag[taken], self.weight[taken]

    def _fill(self, pool: int) -> None:
        generator = torch.Generator(self.pairs.frames.device)
        # Another seed than that of the training itself, which draws from the same kind of stream.
        generator.manual_seed(1_000_003 * (self.seed + 1) + pool)
        parts = [
            self.pairs.draw_places(min(_POOL_PART, self.pool_size - k), *self.lag_range, generator)
            for k in range(0, self.pool_size, _POOL_PART)
        ]
        first, second, lag = (torch.cat(column) for column in zip(*parts, strict=True))
        kind = self._classes(first, second, lag)
        share = torch.bincount(kind).double()[kind] / self.pool_size
        wanted = share.rsqrt()
        wanted = wanted / wanted.mean()
        # Sorted, so that equal parts of the probability hold each class in its proportion.
        order = torch.argsort(kind, stable=True)
        self.first, self.second, self.lag = first[order], second[order], lag[order]
        self.weight = (1.0 / wanted[order]).float()
        self.cumulative = torch.cumsum(wanted[order], 0) / self.pool_size
        self.pool = pool

    def _classes(self, first: Tensor, second: Tensor, lag: Tensor) -> Tensor:
        """Number the pairs by conformations at both ends and by the power of two of the lag."""
        assert self.states is not None
        n = len(self.states)
        start, end = (self.states[self.pairs.cells[place]] for place in (first, second))
        octave = torch.log2(lag / lag.min()).floor().long()
        return (octave * n + start) * n + end
