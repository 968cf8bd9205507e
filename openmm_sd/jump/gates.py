"""Gates: tests that a proposed frame must pass before it may enter a simulation.

A gate sees the frame and the proposal and answers yes or no for each proposal of a batch. Gates are
built from the molecule's bonded graph and the model's card, never from atom names. Each has a
number, which is the status that a jump reports when that gate turned it down, and a name, under
which the integrator counts it. To add one: write the class, give it the next free code, list it in
`GATES` and build it in `openmm_sd.jump.jump.build_gates`.
"""

import math

import torch
from torch import Tensor


class Gate(torch.nn.Module):
    """Base class of gates.

    ``forward(frame, proposal)`` takes two (B, N, 3) float32 tensors in nm, atoms in the molecule's
    order, and returns (B,) bool: True where the proposal passes. Gates are asked in the order of
    their codes; the first that says no gives its code to the jump.
    """

    code: int = 0
    name: str = ""

    def __init__(self) -> None:
        super().__init__()
        # TorchScript sees attributes of the object, not of the class.
        self.code = type(self).code

    def forward(self, frame: Tensor, proposal: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define forward(frame, proposal)")


class FiniteGate(Gate):
    """Every coordinate is a finite number."""

    code = 2
    name = "nonfinite"

    def forward(self, frame: Tensor, proposal: Tensor) -> Tensor:
        return torch.isfinite(proposal).flatten(1).all(dim=1)


class DisplacementGate(Gate):
    """No atom moves further than a bound, nm, in one jump."""

    code = 3
    name = "displacement"

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = float(limit)

    def forward(self, frame: Tensor, proposal: Tensor) -> Tensor:
        moved = torch.linalg.vector_norm(proposal - frame, dim=-1)
        return (moved <= self.limit).all(dim=1)  # a NaN compares false


class BondGate(Gate):
    """Bond lengths stay inside their windows.

    A window is atom, atom, shortest and longest allowed distance, nm.
    """

    code = 4
    name = "bonds"
    first: Tensor
    second: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, windows: list[tuple[int, int, float, float]]) -> None:
        super().__init__()
        self.register_buffer("first", torch.tensor([int(w[0]) for w in windows]))
        self.register_buffer("second", torch.tensor([int(w[1]) for w in windows]))
        self.register_buffer("low", torch.tensor([float(w[2]) for w in windows]))
        self.register_buffer("high", torch.tensor([float(w[3]) for w in windows]))

    def forward(self, frame: Tensor, proposal: Tensor) -> Tensor:
        bond = proposal[:, self.first] - proposal[:, self.second]
        length = torch.linalg.vector_norm(bond, dim=-1)
        return ((length >= self.low) & (length <= self.high)).all(dim=1)  # a NaN compares false


class AngleGate(BondGate):
    """Ends of angles keep their distance, within windows as `BondGate` has them."""

    code = 7
    name = "angles"


class TorsionGate(BondGate):
    """Ends of torsions that do not turn, like that of a peptide bond, keep their distance.

    What is said of `BondGate` holds: a peptide bond that turned cis is told by the distance between
    the two atoms next to it.
    """

    code = 8
    name = "torsions"


class ChiralityGate(Gate):
    """Every stereocentre keeps its hand.

    A centre comes with three of its neighbours, and the sign of det[a - centre, b - centre, c -
    centre], +1 or -1.
    """

    code = 5
    name = "chirality"
    centres: Tensor
    signs: Tensor

    def __init__(self, centres: list[tuple[int, int, int, int]], signs: list[float]) -> None:
        super().__init__()
        self.register_buffer("centres", torch.tensor(centres, dtype=torch.int64).reshape(-1, 4))
        self.register_buffer("signs", torch.tensor(signs, dtype=torch.float32))

    def forward(self, frame: Tensor, proposal: Tensor) -> Tensor:
        return (signed_volumes(proposal, self.centres) * self.signs > 0).all(dim=1)


class ContactGate(BondGate):
    """Atoms that are not bonded neighbours keep their distance.

    A contact is atom, atom and shortest allowed distance, nm.
    """

    code = 6
    name = "contacts"

    def __init__(self, contacts: list[tuple[int, int, float]]) -> None:
        super().__init__([(*contact, math.inf) for contact in contacts])


def signed_volumes(frames: Tensor, centres: Tensor) -> Tensor:
    """Return signed volumes det[a - centre, b - centre, c - centre], (B, M), in frames (B, N, 3).

    They are in the cube of the frames' unit; `centres`, (M, 4) int64, holds centre, a, b, c.
    """
    middle = frames[:, centres[:, 0]]
    a = frames[:, centres[:, 1]] - middle
    b = frames[:, centres[:, 2]] - middle
    c = frames[:, centres[:, 3]] - middle
    return (a * torch.linalg.cross(b, c, dim=-1)).sum(dim=-1)


#: Every gate there is, in the order in which they are asked.
GATES: tuple[type[Gate], ...] = (
    FiniteGate,
    DisplacementGate,
    BondGate,
    ChiralityGate,
    ContactGate,
    AngleGate,
    TorsionGate,
)
