"""Kernels whose answer is known in closed form.

They stand in for a learned kernel wherever the machinery around it is to be checked: in the tests,
in ``openmm-sd doctor`` and in a user's own experiments. None of them models any molecule.
"""

import math

import torch
from torch import Tensor

from .contract import Propagator
from .density import Drawn, TransitionDensity

# Frames this close are one, nm: float64 positions of a box of some nm are rounded by less.
_SAME_PLACE_NM = 1e-9


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

    def transition_density(self) -> "ShiftDensity":
        """Return the density: all of it is at one place."""
        return ShiftDensity(self.shift)


class ShiftDensity(TransitionDensity):
    """Density of `Shift` in numbers of frames: one at the place that it goes to, elsewhere none."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__(0)
        self.shift = shift.to(torch.float64)

    def draw(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Drawn:
        later = frame + self.shift
        return Drawn(later, self.log_density(frame, later, lag, noise))

    def log_density(self, frame: Tensor, later: Tensor, lag: Tensor, auxiliary: Tensor) -> Tensor:
        away = (later - frame - self.shift).abs().flatten(1).amax(1)
        here = torch.where(away < _SAME_PLACE_NM, 0.0, -math.inf).to(torch.float64)
        return torch.where(torch.isnan(away), math.nan, here)


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

    def transition_density(self) -> "OrnsteinUhlenbeckDensity":
        """Return the Gaussian that the next frame is drawn from."""
        return OrnsteinUhlenbeckDensity(self)


class OrnsteinUhlenbeckDensity(TransitionDensity):
    """Density of `OrnsteinUhlenbeck`, in the volume of positions about a centroid that rests."""

    def __init__(self, kernel: OrnsteinUhlenbeck) -> None:
        super().__init__(kernel.noise_size)
        self.kernel = kernel

    def draw(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Drawn:
        later = self.kernel(frame, lag, noise)
        return Drawn(later, self.log_density(frame, later, lag, noise[:, :0]))

    def log_density(self, frame: Tensor, later: Tensor, lag: Tensor, auxiliary: Tensor) -> Tensor:
        centre = frame.mean(dim=1, keepdim=True)
        kept = torch.exp(-lag / self.kernel.relaxation_time)
        width = torch.sqrt(1.0 - kept * kept) * self.kernel.sigma
        away = (later - centre - kept.reshape(-1, 1, 1) * (frame - centre)).flatten(1)
        freedom = 3 * (self.kernel.n_atoms - 1)
        square = (away * away).sum(1) / width**2
        return -0.5 * square - freedom * torch.log(width * math.sqrt(2.0 * math.pi))
