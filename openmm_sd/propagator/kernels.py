"""Kernels whose answer is known in closed form.

They stand in for a learned kernel wherever the machinery around it is to be checked: in the tests,
in ``openmm-sd doctor`` and in a user's own experiments. None of them models any molecule.
"""

import math

import torch
from torch import Tensor

from .contract import Propagator


class Identity(Propagator):
    """Returns the frame it was given."""

    def __init__(self, n_atoms: int) -> None:
        super().__init__(n_atoms, 0)
        self.hyperparameters = {"n_atoms": n_atoms}

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        return frame


class Shift(Propagator):
    """Moves every atom by one constant vector (nm), fixed in the laboratory.

    Meant for checking a bridge: a vector fixed in space does not commute with rotations.
    """

    shift: Tensor

    def __init__(self, n_atoms: int, shift: tuple[float, float, float]) -> None:
        super().__init__(n_atoms, 0)
        self.hyperparameters = {"n_atoms": n_atoms, "shift": [float(s) for s in shift]}
        self.register_buffer("shift", torch.tensor([float(s) for s in shift]))

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        return frame + self.shift


class Rotation(Propagator):
    """Turns the molecule about its centroid, about an axis fixed in the laboratory.

    Parameters
    ----------
    degrees : float
        Angle of the turn.
    axis : tuple of float
        Direction of the axis; any length but zero.
    """

    matrix: Tensor

    def __init__(self, n_atoms: int, degrees: float, axis: tuple[float, float, float]) -> None:
        super().__init__(n_atoms, 0)
        direction = torch.tensor([float(a) for a in axis], dtype=torch.float64)
        length = float(torch.linalg.vector_norm(direction))
        if not length > 0:
            raise ValueError(f"axis must not be zero, got {tuple(axis)}")
        x, y, z = (direction / length).tolist()
        cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
        angle = math.radians(degrees)
        turn = torch.eye(3, dtype=torch.float64)
        turn = turn + math.sin(angle) * cross + (1.0 - math.cos(angle)) * (cross @ cross)
        self.hyperparameters = {
            "n_atoms": n_atoms,
            "degrees": float(degrees),
            "axis": [float(a) for a in axis],
        }
        self.register_buffer("matrix", turn.to(torch.float32))

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        centre = frame.mean(dim=1, keepdim=True)
        return torch.matmul(frame - centre, self.matrix.t()) + centre


class OrnsteinUhlenbeck(Propagator):
    r"""Exact Ornstein-Uhlenbeck step of every atom about the centroid, which stays where it is.

    With :math:`r_i = x_i - \bar x`, :math:`a = e^{-\mathrm{lag}/\tau}` and standard normal
    :math:`\xi_i`, one step is

    .. math:: r_i' = a\, r_i + \sqrt{1 - a^2}\;\sigma\,(\xi_i - \bar\xi),

    so the vector between two atoms has the stationary variance :math:`2\sigma^2` a component and
    the autocorrelation :math:`a^k` after k steps, for any mixture of lags.

    Parameters
    ----------
    n_atoms : int
        At least 2.
    relaxation_time : float
        :math:`\tau`, ps.
    sigma : float
        :math:`\sigma`, nm.
    """

    def __init__(self, n_atoms: int, relaxation_time: float, sigma: float) -> None:
        super().__init__(n_atoms, 3 * n_atoms)
        if n_atoms < 2:
            raise ValueError(f"n_atoms must be at least 2, got {n_atoms}")
        if not relaxation_time > 0 or not sigma > 0:
            raise ValueError(
                "relaxation_time (ps) and sigma (nm) must be positive, "
                f"got {relaxation_time!r} and {sigma!r}"
            )
        self.relaxation_time = float(relaxation_time)
        self.sigma = float(sigma)
        self.hyperparameters = {
            "n_atoms": n_atoms,
            "relaxation_time": self.relaxation_time,
            "sigma": self.sigma,
        }

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        centre = frame.mean(dim=1, keepdim=True)
        kept = torch.exp(-lag / self.relaxation_time).reshape(-1, 1, 1)
        kick = noise.reshape(-1, self.n_atoms, 3)
        kick = kick - kick.mean(dim=1, keepdim=True)
        return centre + kept * (frame - centre) + torch.sqrt(1.0 - kept * kept) * self.sigma * kick
