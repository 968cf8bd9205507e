"""Networks of several molecules with the same weights, answering in one padded pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .transferable import TransferableDiffusion


class Members(torch.nn.Module):
    """Networks of several molecules with the very same parameters: what one trainer trains."""

    def __init__(self, networks: Sequence[TransferableDiffusion]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)
        for network in networks[1:]:
            network.share_weights(networks[0])

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
