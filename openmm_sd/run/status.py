"""The status of a frame: what became of the jumps since the frame before, and how novel it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..integrator.integrator import ScoreDynamicsIntegrator
from ..jump.jump import Jump
from ..model.model import ScoreModel
from ..system.solute import Solute

#: Arrays of the HDF5 file, one number a frame, with their types.
ARRAYS: Final = {
    "new_jumps": "<i4",
    "new_fallbacks": "<i4",
    "new_novel": "<i4",
    "md_instead": "<i4",
    "novelty": "<f4",
}

#: The columns of the log that hold the same.
_COLUMNS: Final = ("New Jumps", "New Fallbacks", "New Novel", "MD Instead", "Novelty")


class FrameStatus:
    """Counts from frame to frame, from the counters `before`: accepted, fallbacks, novel."""

    def __init__(self, model: ScoreModel, solute: Solute, before: Sequence[int]) -> None:
        self.before = list(before)
        self._jump: Jump | None = None
        if model.novelty is not None:
            self._jump = Jump(model.propagator, solute.molecule, (), novelty=model.novelty)

    def __call__(
        self,
        positions: NDArray[np.float64],
        box: NDArray[np.float64] | None,
        integrator: ScoreDynamicsIntegrator,
    ) -> tuple[float, ...]:
        """Return the numbers of `ARRAYS` for a frame of the solute, nm, in the model's order."""
        numbers = integrator.getStatistics()
        now = [int(numbers[name]) for name in ("jumps_accepted", "fallbacks", "novel")]
        new = [count - before for count, before in zip(now, self.before, strict=True)]
        self.before = now
        instead = integrator.getJumping() and integrator.getLastEvent() == "novel"
        return *new, int(instead), self._novelty(positions, box)

    def in_log(self, text: str, status: tuple[float, ...]) -> str:
        """Return a line of the log, perhaps with the header before it, with the status behind."""
        *header, line = text.splitlines()
        *counts, novelty = status
        last = "" if np.isnan(novelty) else f"{novelty:.6g}"
        names = ",".join(f'"{name}"' for name in _COLUMNS)
        lines = [f"{one},{names}" for one in header]
        lines.append(",".join([line, *(f"{count:d}" for count in map(int, counts)), last]))
        return "".join(f"{one}\n" for one in lines)

    def _novelty(self, positions: NDArray[np.float64], box: NDArray[np.float64] | None) -> float:
        """Return the score that a jump from here would be judged by; NaN where there is none."""
        if self._jump is None:
            return np.nan
        jump = self._jump
        frame = jump.make_whole(
            torch.from_numpy(positions), torch.from_numpy(np.zeros((3, 3)) if box is None else box)
        ).unsqueeze(0)
        if jump.n_centres:
            frame = frame[:, jump.relabel(frame)[0][0]]
        frame = frame - frame.mean(dim=1, keepdim=True)
        with torch.no_grad():
            return float(jump.novelty(frame.to(torch.float32))[0])
