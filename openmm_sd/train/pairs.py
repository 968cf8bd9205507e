"""Pairs of frames one lag apart, drawn from trajectories.

Three things make short data go further without changing what a pair means, the law of the later
frame given the earlier one:

- *Time reversal.* At equilibrium a pair read backwards is as likely as forwards. Data that is not
  at equilibrium allows the same once the equilibrium weight w of each region relative to its share
  of the data is known: a drawn pair (x, x') is used forwards with probability w' / (w + w') and
  backwards otherwise. Where x' is oversampled, a rare spontaneous event x -> x' thus gives way to
  the many events x' -> x read backwards (multiple importance sampling with the balance heuristic;
  no pair ever has a weight above one).
- *Composition.* At lags much longer than all memory, the later frame depends on the earlier one
  only through its cell of a Markov model, so it is drawn from the model's cells. Short runs then
  teach long lags too, and rare events come with the rates that all the data supports.
- *Equivalent hydrogens.* A methyl group turned by a third is the same molecule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ..molecule.graph import neighbours_of
from ..molecule.molecule import Molecule
from .markov import CellModel

#: Lags (log-uniform) at which the share of each cell among the starts is counted.
_SHARE_NODES: Final = 24


class TransitionPairs:
    """Pairs of frames drawn from trajectories at log-uniform lags.

    Parameters
    ----------
    trajectories : sequence of ndarray
        Each (T, N, 3), nm, whole molecules; overall position and orientation do not matter.
    spacing_ps : float
        Time between frames, ps.
    device : torch.device or str
        Where the frames are held.
    markov : CellModel, optional
        Of the same trajectories. Without it pairs are only read forwards.
    compose_from_ps : float, optional
        From this lag on all pairs are composed with the Markov model.
    rotors : sequence of sequence of int
        Groups of three equivalent atoms that are turned at random; see `methyl_rotors`.
    """

    def __init__(
        self,
        trajectories: Sequence[np.ndarray],
        spacing_ps: float,
        device: torch.device | str = "cpu",
        *,
        markov: CellModel | None = None,
        compose_from_ps: float | None = None,
        rotors: Sequence[Sequence[int]] = (),
    ) -> None:
        if not trajectories:
            raise ValueError("there are no trajectories")
        lengths = [len(t) for t in trajectories]
        self.frames = torch.from_numpy(np.concatenate(trajectories).astype(np.float32)).to(device)
        self.lengths = torch.tensor(lengths, device=device)
        self.starts = torch.cumsum(self.lengths, 0) - self.lengths
        self.spacing_ps = float(spacing_ps)
        self.rotors = torch.tensor([list(r) for r in rotors], device=device).reshape(-1, 3)
        self.compose_from_ps = compose_from_ps if markov is not None else None
        self.markov = markov
        if markov is not None:
            if [len(c) for c in markov.cells] != lengths:
                raise ValueError("the Markov model belongs to other trajectories")
            self._prepare(markov)

    def __len__(self) -> int:
        return len(self.frames)

    def longest_lag_ps(self) -> float:
        """Return the longest lag of which there is a pair, ps."""
        return float((int(self.lengths.max()) - 1) * self.spacing_ps)

    def _prepare(self, markov: CellModel) -> None:
        device = self.frames.device
        cells = np.concatenate(markov.cells)
        self.cells = torch.from_numpy(cells).to(device)
        longest = max(2, int(self.lengths.max()) - 1)
        strides = np.unique(np.geomspace(1, longest, _SHARE_NODES).round().astype(int))
        ratio = np.zeros((len(strides), markov.n_cells))
        lengths = self.lengths.cpu().numpy()
        place = np.concatenate([np.arange(n) for n in lengths])
        total = np.repeat(lengths, lengths)
        for row, stride in enumerate(strides):
            starting = cells[(place + stride < total) & (cells >= 0)]
            share = np.bincount(starting, minlength=markov.n_cells).astype(float)
            with np.errstate(divide="ignore"):
                ratio[row] = np.log(markov.stationary) - np.log(share)
        self.log_strides = torch.from_numpy(np.log(strides)).to(device)
        self.log_ratio = torch.from_numpy(ratio).to(device)

        # Frames sorted by cell, to draw one of a cell.
        order = np.argsort(cells, kind="stable")
        order = order[cells[order] >= 0]
        counts = np.bincount(cells[order], minlength=markov.n_cells)
        self.by_cell = torch.from_numpy(order).to(device)
        self.cell_count = torch.from_numpy(counts).to(device)
        self.cell_start = torch.cumsum(self.cell_count, 0) - self.cell_count
        # Cumulative transition probabilities over 1, 2, 4, ... steps of the Markov model.
        self.powers: list[Tensor] = []
        power = markov.matrix
        for _ in range(16):
            total_to = np.cumsum(power, axis=1)
            self.powers.append(torch.from_numpy(total_to / total_to[:, -1:]).to(device))
            power = power @ power

    def draw(
        self, count: int, lag_min_ps: float, lag_max_ps: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs: frames and later frames, (count, N, 3), nm, and their lags, (count,), ps.

        Lags are log-uniform in the range, rounded to whole frames. The generator is on the frames'
        device.
        """
        first, second, lag = self.draw_places(count, lag_min_ps, lag_max_ps, generator)
        frame, later = self.gather(first, second, generator)
        return frame, later, lag

    def gather(
        self, first: Tensor, second: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the frames at some places, with equivalent hydrogens turned at random."""
        return self._turn_rotors(self.frames[first], self.frames[second], generator)

    def draw_places(
        self, count: int, lag_min_ps: float, lag_max_ps: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs as `draw` does, and return where in `frames` they are, with their lags."""
        device = self.frames.device
        u = torch.rand(3, count, generator=generator, device=device, dtype=torch.float64)
        # The rounding takes half a frame on either side of the ends: no lag is favoured by it.
        low = math.log(lag_min_ps)
        exact = torch.exp(low + u[0] * (math.log(lag_max_ps) - low))
        stride = torch.round(exact / self.spacing_ps).clamp(min=1).long()
        # Every start with room for its lag is equally likely.
        room = (self.lengths.unsqueeze(0) - stride.unsqueeze(1)).clamp(min=0)
        ends = torch.cumsum(room, 1)
        composed = torch.zeros(count, dtype=torch.bool, device=device)
        if self.compose_from_ps is not None:
            composed = exact >= self.compose_from_ps
        missing = (ends[:, -1] == 0) & ~composed
        if bool(missing.any()):
            longest = float(stride[missing].max()) * self.spacing_ps
            raise ValueError(f"no trajectory is longer than the lag of {longest:g} ps")
        pick = (u[1] * ends[:, -1]).long()
        which = torch.searchsorted(ends, pick.unsqueeze(1), right=True).squeeze(1)
        which = which.clamp(max=len(self.lengths) - 1)
        before = torch.where(which > 0, ends.gather(1, (which - 1).clamp(min=0)[:, None])[:, 0], 0)
        first = self.starts[which] + pick - before
        second = torch.where(composed, first, first + stride)
        lag = stride * self.spacing_ps
        if self.markov is not None:
            backwards = u[2] > self._forwards(first, second, stride)
            backwards &= ~composed
            first, second = (
                torch.where(backwards, second, first),
                torch.where(backwards, first, second),
            )
            if bool(composed.any()):
                start, end, time = self._compose(exact[composed], generator)
                first[composed], second[composed], lag[composed] = start, end, time.to(lag.dtype)
        return first, second, lag.to(torch.float32)

    def _forwards(self, first: Tensor, second: Tensor, stride: Tensor) -> Tensor:
        """Return the probability with which each pair is read forwards."""
        node = (torch.log(stride.double()).unsqueeze(1) - self.log_strides).abs().argmin(1)
        a, b = self.cells[first], self.cells[second]
        known = (a >= 0) & (b >= 0)
        difference = self.log_ratio[node, b.clamp(min=0)] - self.log_ratio[node, a.clamp(min=0)]
        # A cell in which no pair starts has an infinite ratio: nothing is read from there.
        return torch.where(known & ~difference.isnan(), torch.sigmoid(difference), 1.0)

    def _compose(self, lag: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw start and end frames whose cells are connected by the Markov model."""
        assert self.markov is not None
        count, device = len(lag), lag.device
        u = torch.rand(2, count, generator=generator, device=device, dtype=torch.float64)
        first = self.by_cell[(u[0] * len(self.by_cell)).long()]
        cell = self.cells[first]
        steps = torch.round(lag / self.markov.lag_ps).clamp(min=1).long()
        for bit, cumulative in enumerate(self.powers):
            take = (steps >> bit) & 1 == 1
            if bool(take.any()):
                v = torch.rand(
                    int(take.sum()), generator=generator, device=device, dtype=torch.float64
                )
                row = cumulative[cell[take]]
                to = torch.searchsorted(row, v.unsqueeze(1), right=True).squeeze(1)
                cell[take] = to.clamp(max=self.markov.n_cells - 1)
        inside = (u[1] * self.cell_count[cell]).long()
        second = self.by_cell[self.cell_start[cell] + inside]
        return first, second, steps * self.markov.lag_ps

    def _turn_rotors(
        self, frame: Tensor, later: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if len(self.rotors) == 0:
            return frame, later
        count, n_atoms = frame.shape[:2]
        device = frame.device
        turn = torch.randint(
            3, (count, len(self.rotors), 1), generator=generator, device=device
        ) + torch.arange(3, device=device)
        order = torch.arange(n_atoms, device=device).expand(count, -1).clone()
        turned = self.rotors.expand(count, -1, -1).gather(2, turn % 3)
        order[:, self.rotors.flatten()] = turned.flatten(1)
        index = order.unsqueeze(-1).expand(-1, -1, 3)
        return frame.gather(1, index), later.gather(1, index)


def methyl_rotors(molecule: Molecule) -> list[tuple[int, int, int]]:
    """Return the hydrogens of every group of three on one atom: methyl, ammonium.

    Turning such a group by a third gives the same molecule with the same handedness.
    """
    neighbours, z = neighbours_of(molecule.n_atoms, molecule.bonds), molecule.atomic_numbers
    rotors = []
    for atoms in neighbours:
        hydrogens = sorted(a for a in atoms if z[a] == 1 and len(neighbours[a]) == 1)
        if len(hydrogens) == 3:
            rotors.append((hydrogens[0], hydrogens[1], hydrogens[2]))
    return rotors
