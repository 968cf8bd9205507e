"""One set of weights taught by several molecules at once: padded to one size, in one pass.

Each step has pairs of a few of the molecules, of like size, so that little is padded and a step
costs the same however many there are. In the course of some steps it is every molecule's turn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor

from ..propagator.internal.members import Members
from ..propagator.internal.transferable import TransferableDiffusion
from .rare import RareFirst
from .settings import TrainSettings
from .trainer import Lessons, Part, draw_levels, held_out_loss

#: Molecules in a step.
_AT_ONCE: Final = 8
#: Pairs of a molecule that are drawn at once; a step takes few of each.
_POOL_SIZE: Final = 1 << 15
#: By how much of their size molecules may differ that are of like size.
_JITTER: Final = 0.4


class Together:
    """What several molecules teach one set of weights; a `~openmm_sd.train.trainer.Task`."""

    share = 1.0

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        networks = [part.model for part in parts]
        assert all(isinstance(network, TransferableDiffusion) for network in networks)
        self.model = Members(cast(list[TransferableDiffusion], networks))

    def describe(self) -> str:
        """Return what a checkpoint belongs to."""
        return " ".join(part.describe() for part in self.parts)

    def lessons(self, settings: TrainSettings) -> Lessons:
        """Return the denoising losses of pairs, rare hops first."""
        nodes = self.model.lag_nodes()
        ends = float(nodes[0]), float(nodes[-1])
        sources = [
            RareFirst(part.pairs, *ends, settings.seed + k, settings.rare_first, _POOL_SIZE)
            for k, part in enumerate(self.parts)
        ]

        def losses(count: int, step: int, generator: torch.Generator, rows: slice) -> Tensor:
            turn, which = self._turn(step, settings.seed)
            n = len(which)
            counts = [count // n + (k < count % n) for k in range(n)]
            cleans, shares, factors = [], [], []
            wanted = set(range(count)[rows])
            begin = 0
            for k, size in zip(which, counts, strict=True):
                network = self.model.member(k)
                frame, later, lag, weight = sources[k].draw(size, turn, generator)
                sigma = draw_levels(size, settings, generator, frame.device)
                frame, later = network.draw_equivalent(frame, later, generator)
                jitter = torch.randn(frame.shape, generator=generator, device=frame.device)
                own = [i for i in range(size) if begin + i in wanted]
                begin += size
                with torch.autocast(frame.device.type, enabled=False):
                    frame = frame + settings.condition_noise_nm * jitter
                    clean, known = network.target(frame, later, lag)
                    noise = torch.randn(clean.shape, generator=generator, device=frame.device)
                    noised = clean + sigma.unsqueeze(1) * noise
                if not own:
                    continue
                cleans.append(clean[own])
                shares.append((noised[own], sigma[own], tuple(v[own] for v in known)))
                factors.append((k, weight[own]))
            answers = self.model.answer([k for k, _ in factors], shares)
            found = []
            for clean, answer, (_, sigma, _), (k, weight) in zip(
                cleans, answers, shares, factors, strict=True
            ):
                error = answer - clean
                scaled = self.model.member(k).loss_weights(settings.turn_weight) * error * error
                found.append(weight * scaled.mean(1) * (1.0 + sigma * sigma) / (sigma * sigma))
            return torch.cat(found)

        return losses

    def _turn(self, step: int, seed: int) -> tuple[int, list[int]]:
        """Return whose turn it is in a step: the number of the round, and the molecules."""
        n = len(self.parts)
        groups = -(-n // _AT_ONCE)
        turn = step // groups
        generator = torch.Generator().manual_seed(7_919 * (seed + 1) + turn)
        size = torch.tensor([self.model.member(k).n_units for k in range(n)])
        order = torch.argsort(size * (1.0 + _JITTER * torch.rand(n, generator=generator)))
        group = torch.randperm(groups, generator=generator)[step % groups]
        return turn, order.tensor_split(groups)[int(group)].tolist()

    def held_out_losses(
        self, model: torch.nn.Module, settings: TrainSettings, lags_ps: Sequence[float]
    ) -> dict[float, float]:
        """Return the loss of other weights on what is held out, by lag in ps: the mean of all."""
        assert isinstance(model, Members)
        found: dict[float, list[float]] = {}
        for k, part in enumerate(self.parts):
            if part.held_out is None:
                continue
            possible = [lag for lag in lags_ps if lag <= part.held_out.longest_lag_ps()]
            losses = held_out_loss(model.member(k), part.held_out, settings, possible, 64)
            for lag, value in losses.items():
                found.setdefault(lag, []).append(value)
        return {lag: sum(values) / len(values) for lag, values in found.items()}
