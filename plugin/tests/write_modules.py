"""Write the TorchScript modules of the C++ test: ``python write_modules.py FOLDER``."""

import sys
from pathlib import Path

import torch
from torch import Tensor


class Shift(torch.nn.Module):
    """Shows the number of the try in the displacement, and that of the jump in the status."""

    def forward(
        self,
        positions: Tensor,
        box: Tensor,
        number: int,
        attempt: int,
        candidates: int,
        seed: int,
        lag: float,
        novelty: float,
    ) -> tuple[Tensor, Tensor]:
        """Take what a jump takes."""
        step = torch.tensor([0.125, 0.25, 0.5], dtype=torch.float64)
        moved = (attempt + 1) * step.expand(positions.shape[0], 3)
        return moved, torch.tensor(1.0 + number, dtype=torch.float64)


class Misfit(torch.nn.Module):
    """Adds what does not fit."""

    def forward(self, positions: Tensor) -> Tensor:
        """Return nothing ever."""
        return positions + torch.ones(positions.shape[0] + 1, 3)


class Fails(torch.nn.Module):
    """Throws: by itself in jumps of an odd number, within torch and a part of its own in others."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Misfit()

    def forward(
        self,
        positions: Tensor,
        box: Tensor,
        number: int,
        attempt: int,
        candidates: int,
        seed: int,
        lag: float,
        novelty: float,
    ) -> tuple[Tensor, Tensor]:
        """Take what a jump takes."""
        if number % 2 == 1:
            raise RuntimeError("broken on purpose")
        return self.part(positions), box.sum()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.jit.script(Shift()).save(str(folder / "shift.pt"))
    torch.jit.script(Fails()).save(str(folder / "fails.pt"))
