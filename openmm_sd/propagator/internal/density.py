"""Transition densities of networks in internal coordinates: of the solver's steps as they are.

The noise z goes to the next frame's coordinates through every call of the network. That map is
inverted and its Jacobian determinant is exact: no trace is estimated, no flow is integrated.

A torsion that turns has two noise numbers and one coordinate: the last call leaves only the
direction of its point in the plane. The logarithm rho of that point's distance from the centre
*before* the last call makes the map square. A draw has a rho of its own; for a frame that is given
it is drawn from a Gaussian a, and q(x', rho | x) / a(rho) averages to q(x' | x).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..alignment import align_far
from ..density import Drawn, TransitionDensity
from .base import InternalPropagator
from .symmetry import relabelled
from .tangents import polar_tangents
from .tree import log_volume, wrap

# Passes over the noise levels, from the last to the first, before Newton's method takes over.
_PASSES = 6
# Jacobians that Newton's method may ask for, and steps with each of them.
_JACOBIANS = 6
_STEPS = 8
# A step must make the residual smaller by this share of what it promises; else it is shortened.
_PROMISE, _SHORTER = 0.1, 0.4
# Largest residual of a map that is inverted, in widths and radians, and how far noise and
# coordinates may be off that should have come back. Float64, condition numbers of up to 1e4.
_RESIDUAL, _SAME = 1e-9, 1e-6
_LOG_NORMAL = 0.5 * math.log(2.0 * math.pi)


@dataclass
class _Known:
    """What a network knows of some frames; the first dimension of each tensor is theirs."""

    turned: Tensor
    scale: Tensor
    context: Tensor
    modulation: Tensor

    def of(self, rows: Tensor) -> _Known:
        return _Known(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass
class _Path:
    """States at the noise levels, and the network's answers to them."""

    states: list[Tensor]
    answers: list[Tensor]


class InternalDensity(TransitionDensity):
    """Transition density of a network in internal coordinates.

    Parameters
    ----------
    propagator : InternalPropagator
        Copied; values are computed in float64, slopes in float32.

    Notes
    -----
    With y = T(z; x) the stiff coordinates, the turns of torsions and rho,

    ``log q(x', rho | x) = log N(z) - log det dT/dz - log(widths) - log(volume of x')``,

    the last two of which lead from the network's coordinates to positions, see `log_volume`.

    **Inverse.** T is inverted by passes backwards over the noise levels, each solving the solver's
    step for its beginning with the answers of the pass before, then by damped Newton steps. T need
    not be one to one everywhere. A draw whose noise is not what the inverse finds has no density
    (NaN), nor has one where the determinant has the wrong sign: what is left is one to one.
    """

    def __init__(self, propagator: InternalPropagator) -> None:
        n = propagator.n_coordinates
        super().__init__(propagator.noise_size, propagator.n_turning, propagator.noise_size - n)
        # Without its gradients: what is derived here is derived forwards.
        self.fine = copy.deepcopy(propagator).double().eval().requires_grad_(False)
        self.rough = copy.deepcopy(propagator).float().eval().requires_grad_(False)
        self.n_coordinates = n
        self._noise_modulation = self.fine.encode_noise(self.fine.levels)
        coupling = self.fine.coupled(torch.eye(self.fine.n_stiff, dtype=torch.float64))
        widths = torch.log(self.fine.stiff_width).sum()
        self._log_widths = float(widths + torch.linalg.slogdet(coupling)[1])

    def fix_lengths(self, constraints: Sequence[tuple[int, int, float]]) -> None:
        """Give the bonds that a System constrains their exact length, see `TransitionDensity`."""
        own, known = self.fine, self.fine.hyperparameters
        a, b, c = known["root"]
        pairs = [(a, b), (c, b), *((row[0], row[1]) for row in known["tree"])]
        given = {frozenset((int(i), int(j))): float(r) for i, j, r in constraints}
        constant = {frozenset(pairs[k]): k for k in known["constant"]}
        for first, second in sorted(map(sorted, given.keys() ^ constant.keys())):
            system = frozenset((first, second)) in given
            which = "the System and not the model" if system else "only the model"
            raise ValueError(
                f"the distance between atoms {first} and {second} is constant in {which}: exact "
                "jumps need a System with the constraints of the model's training data"
            )
        for pair, k in constant.items():
            own.length_mean[k] = given[pair]

    @torch.no_grad()
    def draw(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Drawn:
        order, sign = self._chosen(noise[:, self.n_coordinates :])
        start = relabelled(frame, order, sign)
        known = self._look(start, lag)
        z = noise[:, : self.n_coordinates]
        path, slopes = self._run(z, known, slopes=True)
        assert slopes is not None
        later = self.fine.build(path.states[-1], known.turned, known.scale)
        later = align_far(later, start, self.fine.heavy)
        ends = self._ends(path, known)
        rho = ends[:, self.fine.n_stiff + self.fine.n_turning :]
        # What counts is the frame: its coordinates are not those drawn where an angle was clamped
        # or a stiff torsion went once around.
        goal = torch.cat([self._goal(later, known), rho], dim=1)
        found, _ = self._invert(goal, known)
        off = torch.cat([found - z, self._difference(ends, goal)], dim=1)
        density = self._density(z, slopes, later, rho, known)
        density = torch.where(off.abs().amax(1) < _SAME, density, math.nan)
        return Drawn(relabelled(later, torch.argsort(order, dim=1), sign), density)

    @torch.no_grad()
    def log_density(self, frame: Tensor, later: Tensor, lag: Tensor, auxiliary: Tensor) -> Tensor:
        order, sign = self._chosen(auxiliary[:, self.auxiliary_size :])
        known = self._look(relabelled(frame, order, sign), lag)
        later = relabelled(later, order, sign)
        rho = auxiliary[:, : self.auxiliary_size] * self._spread(known)
        z, found = self._invert(torch.cat([self._goal(later, known), rho], dim=1), known)
        _, slopes = self._run(z, known, slopes=True)
        assert slopes is not None
        density = self._density(z, slopes, later, rho, known)
        return torch.where(found, density, math.nan)

    # The map.

    def _chosen(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the relabellings that numbers choose, (B, N), and their signs, (B,)."""
        return self.fine.chosen(0.5 + 0.5 * torch.erf(noise / math.sqrt(2.0)))

    def _look(self, frame: Tensor, lag: Tensor) -> _Known:
        stiff, turned = self.fine.measure(frame)
        return _Known(turned, self.fine.scale_at(lag), *self.fine.encode(stiff, turned, lag))

    def _answer(self, y: Tensor, k: int, known: _Known) -> Tensor:
        """Return the network's answer at level k."""
        level = self.fine.levels[k : k + 1]
        modulation = known.modulation + self._noise_modulation[k]
        return self.fine.denoise(y, level, known.turned, known.scale, known.context, modulation)

    def _answer_slopes(self, y: Tensor, k: int, known: _Known, slopes: Tensor) -> Tensor:
        """Return the slopes of an answer, (K, B, K), from those of the state."""
        modulation = known.modulation + self._noise_modulation[k]
        given = (known.turned, known.scale, known.context, modulation)
        return self.rough.denoise_tangents(
            y.float(), self.rough.levels[k : k + 1], *(x.float() for x in given), slopes
        )

    def _run(self, z: Tensor, known: _Known, slopes: bool) -> tuple[_Path, Tensor | None]:
        """Go from noise (B, K) through all levels.

        Returns the path, its last state without noise, and the slopes of its `_ends`,
        (B, K of the ends, K of the noise), if they are asked for.
        """
        own = self.fine
        y = z * own.begin
        states, answers = [y], [torch.zeros_like(y)] * 2
        moved = [torch.diag(own.begin).float().unsqueeze(1).expand(-1, len(z), -1)]
        turned = [torch.zeros_like(moved[0])] * 2
        for k, (a, b, c, d) in enumerate(own.solver):
            answers.append(self._answer(y, k, known))
            if slopes:
                turned.append(self._answer_slopes(y, k, known, moved[-1]))
                moved = [
                    moved[-1],
                    a * moved[-1] + b * turned[-1] + c * turned[-2] + d * turned[-3],
                ]
                turned = turned[-2:]
            y = a * y + b * answers[-1] + c * answers[-2] + d * answers[-3]
            states.append(y)
        path = _Path(states, answers[2:])
        if not slopes:
            return path, None
        scale = known.scale.float()
        _, reach = polar_tangents(self.rough, states[-2].float(), scale, moved[0])
        turn, _ = polar_tangents(self.rough, y.float(), scale, moved[1])
        ends = torch.cat([moved[1][..., : own.n_stiff], turn, reach], dim=-1)
        return path, ends.permute(1, 2, 0).double()

    def _turns(self, y: Tensor, known: _Known) -> Tensor:
        across, along = self.fine.plane(y, known.scale)
        return torch.atan2(across, along)

    def _ends(self, path: _Path, known: _Known) -> Tensor:
        """Return what a path leads to, (B, K): stiff coordinates, turns, log distances."""
        across, along = self.fine.plane(path.states[-2], known.scale)
        last = path.states[-1]
        return torch.cat(
            [
                last[:, : self.fine.n_stiff],
                self._turns(last, known),
                0.5 * torch.log(across**2 + along**2),
            ],
            dim=1,
        )

    def _difference(self, ends: Tensor, goal: Tensor) -> Tensor:
        n, off = self.fine.n_stiff, ends - goal
        end = n + self.fine.n_turning
        return torch.cat([off[:, :n], wrap(off[:, n:end]), off[:, end:]], dim=1)

    def _goal(self, later: Tensor, known: _Known) -> Tensor:
        """Return stiff coordinates and turns of frames, (B, S + M)."""
        stiff, turned = self.fine.measure(later)
        return torch.cat([stiff, wrap(turned - known.turned)], dim=1)

    def _spread(self, known: _Known) -> Tensor:
        """Return the width of a(rho), (B, M).

        Data on the unit circle, blurred as it is before the last call. Measured widths were 0.7 to
        1.2 of it, means within 0.1 of zero.
        """
        return known.scale * self.fine.levels[-1]

    def _density(
        self, z: Tensor, slopes: Tensor, later: Tensor, rho: Tensor, known: _Known
    ) -> Tensor:
        own = self.fine
        sign, size = torch.linalg.slogdet(slopes)
        spread = self._spread(known)
        normal = -0.5 * (z * z).sum(1) - _LOG_NORMAL * z.shape[1]
        drawn = -0.5 * ((rho / spread) ** 2).sum(1) - torch.log(spread).sum(1)
        drawn = drawn - _LOG_NORMAL * rho.shape[1]
        density = normal - size - drawn - self._log_widths
        density = density - log_volume(later, own.root, own.rows, own.bridged)
        # A torsion's turn goes with the second number of its point, the distance with the first:
        # each such exchange has the determinant -1.
        good = (sign * (-1) ** rho.shape[1] > 0) & torch.isfinite(density)
        return torch.where(good, density, math.nan)

    # Its inverse.

    def _invert(self, goal: Tensor, known: _Known) -> tuple[Tensor, Tensor]:
        """Return the noise (B, K) that leads to some ends, (B, K), and whether it was found."""
        path = self._first_path(goal, known)
        for _ in range(_PASSES):
            path = self._better_path(path, goal, known)
        z = path.states[0] / self.fine.begin
        return self._newton(z, goal, known)

    def _point(self, stiff: Tensor, turn: Tensor, goal: Tensor, known: _Known) -> Tensor:
        """Return the state (B, K) with these coordinates and the log distances of the goal."""
        own = self.fine
        reach = torch.exp(goal[:, own.n_stiff + own.n_turning :])
        both = torch.cat([reach * torch.cos(turn), reach * torch.sin(turn)], dim=1) - own.centre
        return torch.cat([stiff, both / torch.cat([known.scale, known.scale], dim=1)], dim=1)

    def _split(self, goal: Tensor) -> tuple[Tensor, Tensor]:
        n = self.fine.n_stiff
        return goal[:, :n], goal[:, n : n + self.fine.n_turning]

    def _first_path(self, goal: Tensor, known: _Known) -> _Path:
        """Go back along the flow, with each level's answer for the step before it."""
        states = [self._point(*self._split(goal), goal, known)]
        answers = [self._answer(states[0], self.fine.n_calls - 1, known)]
        for k in range(self.fine.n_calls - 2, -1, -1):
            a, *others = self.fine.solver[k]
            states.insert(0, (states[0] - sum(others) * answers[0]) / a)
            answers.insert(0, self._answer(states[0], k, known))
        return _Path(states, answers)

    def _better_path(self, path: _Path, goal: Tensor, known: _Known) -> _Path:
        """Solve each step of the solver for its beginning, with the last path's earlier answers."""
        own = self.fine
        last = own.n_calls - 1
        wanted, turn = self._split(goal)
        state, answer = path.states[last], path.answers[last]
        stiff = state[:, : own.n_stiff] + wanted - answer[:, : own.n_stiff]
        turn = self._turns(state, known) + wrap(turn - self._turns(answer, known))
        states = [self._point(stiff, turn, goal, known)]
        answers = [self._answer(states[0], last, known)]
        for k in range(last - 1, -1, -1):
            a, b, c, d = own.solver[k]
            state = path.states[k]
            off = a * state + b * path.answers[k] - states[0]
            off = off + c * path.answers[k - 1] if k > 0 else off
            off = off + d * path.answers[k - 2] if k > 1 else off
            # What a Gaussian of width one answers; at the first level answers hardly change.
            gain = b / (1.0 + float(own.levels[k]) ** 2) if k > 0 else 0.0
            states.insert(0, state - off / (a + gain))
            answers.insert(0, self._answer(states[0], k, known))
        return _Path(states, answers)

    def _newton(self, z: Tensor, goal: Tensor, known: _Known) -> tuple[Tensor, Tensor]:
        z = z.clone()
        found = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        left = torch.arange(len(z), device=z.device)
        for _ in range(_JACOBIANS):
            here, some, wanted = z[left], known.of(left), goal[left]
            path, slopes = self._run(here, some, slopes=True)
            assert slopes is not None
            factors, pivots, _ = torch.linalg.lu_factor_ex(slopes)
            off = self._difference(self._ends(path, some), wanted)
            share = torch.ones_like(here[:, :1])
            for _ in range(_STEPS):
                step = torch.linalg.lu_solve(factors, pivots, off.unsqueeze(2)).squeeze(2)
                trial = here - share * step
                there = self._ends(self._run(trial, some, slopes=False)[0], some)
                other = self._difference(there, wanted)
                # Not true of what is no number.
                better = _size(other) < (1.0 - _PROMISE * share) * _size(off)
                here, off = torch.where(better, trial, here), torch.where(better, other, off)
                share = torch.where(better, (2.0 * share).clamp(max=1.0), _SHORTER * share)
                if bool((off.abs().amax(1) < _RESIDUAL).all()):
                    break
            z[left] = here
            found[left] = off.abs().amax(1) < _RESIDUAL
            left = left[~found[left] & torch.isfinite(off).all(1)]
            if len(left) == 0:
                break
        return z, found


def _size(off: Tensor) -> Tensor:
    return torch.linalg.vector_norm(off, dim=1, keepdim=True)
