"""One draw for many chains of a rollout: what a step of `Rollout` computes, as a scriptable module.

It calls the parts of a :class:`~openmm_sd.jump.jump.Jump`, so that rollouts and mixed runs
share everything that decides on a proposal.
"""

# No postponed annotations here: TorchScript reads those of forward.
import torch
from torch import Tensor

from ..propagator.noise import standard_normal_rows
from .gates import ChiralityGate
from .jump import REJECTIONS, STATUS_ACCEPTED, Jump

#: How many values a status can have.
STATUSES = max(REJECTIONS) + 1


class Draw(torch.nn.Module):
    """One proposal for each of some chains, judged and counted."""

    def __init__(self, jump: Jump) -> None:
        super().__init__()
        self.jump = jump
        self.hand = torch.nn.ModuleList([g for g in jump.gates if isinstance(g, ChiralityGate)])
        self.accepted = int(STATUS_ACCEPTED)
        self.flipped = int(ChiralityGate.code)
        self.statuses = int(STATUSES)

    def forward(
        self, start: Tensor, rows: Tensor, step: int, attempt: int, seed: int, lag: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Draw once, for the frames of a batch of chains.

        `start`, (B, N, 3) float64 nm, is whole, in the model's handedness, centroids at the origin;
        `rows`, (B,) int64, are the chains' numbers; they, step, attempt and seed are for the noise.
        The lag is in ps.

        Returns
        -------
        frames : Tensor
            (B, N, 3) float32, nm, centroids at the origin.
        status : Tensor
            (B,) int64, as `Jump.judge` says.
        tallies : Tensor
            (2 + STATUSES,) int64: proposals with a stereocentre turned over, accepted ones in which
            equivalent atoms came back in another order, and how often each status was found.
        error : int
            0, or a code of `ERRORS`; the rest then means nothing.
        """
        noise = standard_normal_rows(seed, step, attempt, rows, self.jump.noise_size)
        time = torch.full([rows.shape[0]], lag, dtype=torch.float32, device=rows.device)
        moved, error = self.jump.propose(start, time, noise)
        status = self.jump.judge(start, moved)
        order, mirrored = self.jump.relabel(moved)
        # A relation between centres (cis and trans on a ring) has no gate of its own.
        status = torch.where(
            torch.logical_and(status == self.accepted, mirrored),
            torch.full_like(status, self.flipped),
            status,
        )
        flipped = status == self.flipped
        for gate in self.hand:
            wrong = torch.logical_not(gate(start, moved))
            finite = torch.isfinite(moved).flatten(1).all(dim=1)
            flipped = torch.logical_or(flipped, torch.logical_and(wrong, finite))
        plain = torch.arange(order.shape[1], device=order.device)
        swapped = torch.logical_and((order != plain).any(dim=1), status == self.accepted)
        found = torch.zeros([self.statuses], dtype=torch.int64, device=status.device)
        found = found.index_add(0, status, torch.ones_like(status))
        tallies = torch.cat([torch.stack([flipped.sum(), swapped.sum()]), found])
        frames = self.jump.reorder(moved, order)
        frames = frames - frames.mean(dim=1, keepdim=True)
        return frames.to(torch.float32), status, tallies, error
