"""Kernels whose transition density is known: an optional ability, and a check of it.

A kernel that can say how likely it is to go from one frame to another can be corrected: accepted
with ``min(1, pi(x') q(x | x') / (pi(x) q(x' | x)))`` its jumps sample pi, whatever the kernel is
worth. `transition_density` asks a propagator for this; `check_density` tests what it answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Check, Conformance


class Drawn(NamedTuple):
    """Next frames (B, N, 3) float64, nm, and the logarithm of their density, (B,) float64.

    A density that is NaN is not known: such a draw must be turned down.
    """

    frame: Tensor
    log_density: Tensor


class Proposal(NamedTuple):
    """Next frames (B, N, 3) float64, nm, and log q(x | x') - log q(x' | x), (B,) float64.

    A ratio that is NaN is not known: such a proposal must be turned down.
    """

    frame: Tensor
    log_ratio: Tensor


class TransitionDensity:
    """How likely a kernel is to go from one frame to another.

    Parameters
    ----------
    noise_size : int
        Standard normal numbers of a draw: the propagator's.
    auxiliary_size : int
        Standard normal numbers that `log_density` takes besides, see there.
    shared_size : int
        The last so many numbers of the noise choose among kernels, each of which has a density.

    Notes
    -----
    Densities are with respect to the volume of Cartesian positions, nm, on the surface of constant
    bond lengths, with what a jump leaves alone (position, orientation) taken out. All that is
    random is an argument, so that a density is a pure function as its propagator is.
    """

    def __init__(self, noise_size: int, auxiliary_size: int = 0, shared_size: int = 0) -> None:
        self.noise_size = noise_size
        self.auxiliary_size = auxiliary_size
        self.shared_size = shared_size

    def draw(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Drawn:
        """Return next frames with their densities.

        `frame` is (B, N, 3) float64, nm, whole; `lag` (B,) float64, ps; `noise` (B, noise_size)
        float64. The frames are those of the propagator but for rounding.
        """
        raise TypeError(f"{type(self).__name__} does not define draw")

    def log_density(self, frame: Tensor, later: Tensor, lag: Tensor, auxiliary: Tensor) -> Tensor:
        """Return the logarithm of an estimate of the density of `later` given `frame`, (B,).

        `auxiliary` is (B, auxiliary_size + shared_size) standard normal, float64. Averaged over it
        the *exponential* of what is returned is the density; if both sizes are zero it is the
        density itself. A draw's own density is such an estimate too, of which the auxiliary numbers
        are those that the draw happened to use.
        """
        raise TypeError(f"{type(self).__name__} does not define log_density")

    def propose(self, frame: Tensor, lag: Tensor, noise: Tensor, auxiliary: Tensor) -> Proposal:
        """Return next frames with the ratio that a Metropolis-Hastings test takes.

        `auxiliary` is (B, auxiliary_size) standard normal, float64, drawn afresh each time; the
        rest is as in `draw`. The test is exact although densities are estimates: the way back is
        proposed with the same kernel of those that the noise chooses from, and the numbers that
        the estimates used are exchanged along with the frames.
        """
        later, forth = self.draw(frame, lag, noise)
        chosen = noise[:, self.noise_size - self.shared_size :]
        back = self.log_density(later, frame, lag, torch.cat([auxiliary, chosen], dim=1))
        return Proposal(later, back - forth)

    def fix_lengths(self, constraints: Sequence[tuple[int, int, float]]) -> None:
        """Give the bonds that a System constrains their exact length.

        Pairs of atoms with their distance, nm. ValueError if these are not the bonds that the
        kernel keeps constant: its density is that of a surface which the System does not sample.
        """
        if constraints:
            raise ValueError(
                "the kernel moves all lengths, and the System constrains some: build the System "
                "with constraints=None"
            )


def transition_density(propagator: torch.nn.Module) -> TransitionDensity:
    """Return the transition density of a propagator.

    That is what its method ``transition_density()`` gives. ValueError if it has none.
    """
    make = getattr(propagator, "transition_density", None)
    if make is None:
        raise ValueError(
            f"the transition density of {type(propagator).__name__} is not known: exact jumps need "
            "a network in internal coordinates, or a propagator with a method transition_density()"
        )
    density = make()
    if not isinstance(density, TransitionDensity):
        raise ValueError(
            f"{type(propagator).__name__}.transition_density() must return a TransitionDensity, "
            f"got {type(density).__name__}"
        )
    return density


# A ratio of densities that is wrong by less is not worth mentioning.
_TOLERANCE = 1e-3
# Averages of ratios have long tails.
_MAX_SIGMA = 5.0


def check_density(
    propagator: torch.nn.Module,
    frames: Tensor,
    *,
    lag: float = 10.0,
    samples: int = 256,
    seed: int = 0,
) -> Conformance:
    """Measure whether a propagator's transition density is one.

    Parameters
    ----------
    propagator : torch.nn.Module
        The kernel.
    frames : Tensor
        (B, N, 3), nm: frames of the molecule, two at least.
    lag : float
        ps.
    samples : int
        Draws from which averages are taken.
    seed : int
        Of the check's own noise.

    Returns
    -------
    Conformance
        As `check_propagator` gives.
    """
    checks: list[Check] = []
    report = Conformance(checks)
    try:
        density = transition_density(propagator)
    except ValueError as error:
        checks.append(Check("known", False, str(error)))
        return report
    checks.append(Check("known", True, type(density).__name__))
    generator = torch.Generator().manual_seed(seed)
    start = frames.to(torch.float64)
    start = (start - start.mean(1, keepdim=True))[torch.arange(samples) % len(frames)]
    time = torch.full((samples,), float(lag), dtype=torch.float64)

    def normal(size: int) -> Tensor:
        return torch.randn(samples, size, generator=generator, dtype=torch.float64)

    noise = normal(density.noise_size)
    later, forth = density.draw(start, time, noise)
    known = torch.isfinite(forth)
    share = float(known.double().mean())
    checks.append(Check("draws", share > 0.5, f"{share:.0%} have a density"))
    if not share > 0.5:
        return report
    with torch.no_grad():
        there = propagator(start.float(), time.float(), noise.float())
    apart = float((there - later)[known].abs().max())
    checks.append(Check("of this propagator", apart < 1e-4, f"frames differ by {apart:.1e} nm"))
    auxiliary = normal(density.auxiliary_size + density.shared_size)
    back = density.log_density(start, later, time, auxiliary)
    checks.append(_estimates_agree(back[known] - forth[known], auxiliary.shape[1]))
    nearer = density.log_density(start, later, 0.8 * time, auxiliary)
    checks.append(_mean_is_one("normalised", (nearer - forth)[known], "a shorter lag's density"))

    few = slice(0, min(8, samples))

    def again(one: Tensor, other: Tensor) -> float:
        moved = density.log_density(one, other, time[few], auxiliary[few]) - back[few]
        return float(moved[torch.isfinite(back[few])].abs().nan_to_num(nan=math.inf).max())

    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    turn = turn * torch.sign(torch.linalg.det(turn))
    turned = again(start[few] @ turn.T, later[few] @ turn.T)
    checks.append(Check("rotation", turned < _TOLERANCE, f"log densities differ by {turned:.1e}"))
    shift = torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64)
    shifted = again(start[few] + shift, later[few] + shift)
    checks.append(
        Check("translation", shifted < _TOLERANCE, f"log densities differ by {shifted:.1e}")
    )
    spoilt = later[few].clone()
    spoilt[0] = math.nan
    answers = density.log_density(start[few], spoilt, time[few], auxiliary[few])
    others = (answers - back[few])[1:].abs().nan_to_num(nan=0.0)
    alone = bool(torch.isnan(answers[0])) and float(others.max()) < _TOLERANCE
    checks.append(Check("one row a frame", alone, "a NaN is answered by a NaN, in its row alone"))
    return report


def _estimates_agree(difference: Tensor, random_size: int) -> Check:
    """Check that estimates with fresh auxiliary numbers are those of the draws, on average."""
    name = "estimates agree"
    if random_size:
        return _mean_is_one(name, difference, "the density with fresh auxiliary numbers")
    worst = float(difference.nan_to_num(nan=math.inf).abs().max())
    return Check(name, worst < _TOLERANCE, f"log densities differ by {worst:.1e}")


def _mean_is_one(name: str, difference: Tensor, what: str) -> Check:
    """Check that a density over that of the draws is one on average, as it is of any two."""
    ratio = torch.exp(difference.nan_to_num(nan=-math.inf))
    mean = float(ratio.mean())
    error = float(ratio.std() / math.sqrt(len(ratio))) + _TOLERANCE
    away = abs(mean - 1.0) / error
    said = f"{what} over the draws' is {mean:.2f} on average, {away:.1f} sigma from 1"
    return Check(name, away < _MAX_SIGMA, said)
