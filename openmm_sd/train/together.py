"""One set of weights taught by several molecules at once: padded to one size, in one pass.

Each step has pairs of a few of the molecules, of like size, so that little is padded and a step
costs the same however many there are. In the course of some steps it is every molecule's turn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

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


class Members(torch.nn.Module):
    """Networks of several molecules with the very same parameters: what one trainer trains."""

    def __init__(self, networks: Sequence[TransferableDiffusion]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)
        first = dict(networks[0].named_parameters())
        for network in networks[1:]:
            for name, value in first.items():
                module, _, leaf = name.rpartition(".")
                setattr(network.get_submodule(module), leaf, value)

    @property
    def hyperparameters(self) -> dict[str, object]:
        """Those of all members, by their place."""
        return {str(k): network.hyperparameters for k, network in enumerate(self.networks)}

    def lag_nodes(self) -> list[float]:
        """Return the lags, ps, at which the first one's scale is stored."""
        return self.member(0).lag_nodes()

    def member(self, k: int) -> TransferableDiffusion:
        """Return one of the networks."""
        network = self.networks[k]
        assert isinstance(network, TransferableDiffusion)
        return network

    def answer(
        self, which: Sequence[int], shares: Sequence[tuple[Tensor, Tensor, tuple[Tensor, ...]]]
    ) -> list[Tensor]:
        """Return the denoiser's answers to noised targets of several members.

        For each member that is asked (its place in `which`) there are the noised target (B, K), the
        noise levels (B,) and what `InternalPropagator.target` returned besides.
        """
        networks = [self.member(k) for k in which]
        most = max(network.n_units for network in networks)
        # Geometry stays in float32.
        with torch.autocast(shares[0][0].device.type, enabled=False):
            seen = [_seen(n, *share, most) for n, share in zip(networks, shares, strict=True)]
        shown, frame, noised, guess = (torch.cat(column) for column in zip(*seen, strict=True))
        counts = torch.tensor([len(share[0]) for share in shares], device=shown.device)
        core = networks[0]
        facts = torch.stack([_padded(n.facts, 0, most) for n in networks])
        kinds = torch.stack([_padded(n.kinds(), 0, most) for n in networks])
        tables = torch.cat([_padded(_padded(n.tables, 2, most), 3, most) for n in networks])
        for row, network in zip(tables, networks, strict=True):
            row[2, :, network.n_units :] = 1
        which_row = torch.arange(len(networks), device=shown.device).repeat_interleave(counts)
        own = core.own(facts, kinds).index_select(0, which_row)
        sigma = torch.cat([share[1] for share in shares])
        lag = torch.cat([share[2][3] for share in shares])
        h, pairs = core.look(shown, frame, own, lag, tables, which_row)
        modulation = core.modulation_by_frame(h) + core.encode_noise(sigma)
        context = torch.cat([h, pairs.flatten(2)], dim=-1)
        answers = core.respond(noised, guess, sigma, context, modulation, tables, which_row).float()
        parts = answers.split(counts.tolist())
        return [
            network.answered(part[:, : network.n_units], share[0], share[1])
            for network, part, share in zip(networks, parts, shares, strict=True)
        ]


def _seen(
    network: TransferableDiffusion,
    noised: Tensor,
    sigma: Tensor,
    known: tuple[Tensor, ...],
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what is shown of frames and of noised targets, in `most` units."""
    stiff, turned, scale, _ = known
    none = torch.zeros_like(scale)
    still = torch.cat([stiff, none, none], dim=-1)
    frame = network.standing(network.places(still, turned, scale))
    slots, guess = network.see(noised, sigma, turned, scale)
    shown = network.condition(stiff, turned, scale)
    return (
        _padded(shown, 1, most),
        _padded(_padded(frame, 1, most), 2, most),
        _padded(slots, 1, most),
        _padded(_padded(guess, 1, most), 2, most),
    )


def _padded(table: Tensor, dimension: int, most: int) -> Tensor:
    """Add zeros to a dimension for units that are not there."""
    behind = table.dim() - 1 - dimension
    return F.pad(table, [0, 0] * behind + [0, most - table.shape[dimension]])


class Together:
    """What several molecules teach one set of weights; a `~openmm_sd.train.trainer.Task`."""

    share = 1.0

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.model = Members([part.model for part in parts])  # type: ignore[misc]

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
