"""What diffusion propagators in internal coordinates share: coordinates, sampler, training target.

A network adds `encode`, `encode_noise` and `denoise`.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ..alignment import align_far
from ..diffusion import DiffusionPropagator
from ..sampler import karras_levels, multistep_coefficients, starting_width
from .tangents import carried
from .tree import (
    InternalTree,
    bridged_positions_of,
    circular_mean,
    internal_coordinates,
    positions_of,
    with_bridges,
    wrap,
)

# Floors of the widths the coordinates are divided by: nm and radians.
LENGTH_FLOOR_NM = 2e-4
ANGLE_FLOOR = 2e-3
TURN_FLOOR = 0.03
# Angles are kept away from a straight line, where torsions lose their meaning.
_ANGLE_MARGIN = 0.05
HARMONICS = 3
_SQUASH = 5.0
# A network is shown the logarithm of how far a torsion's point is from the centre, up to this.
_LOG_REACH = 4.0
_ORDER = 3


class InternalArguments(TypedDict):
    """Arguments of `InternalPropagator` that each network in internal coordinates takes too."""

    root: Sequence[int]
    tree: Sequence[Sequence[int]]
    turning: Sequence[int]
    constant: Sequence[int]
    heavy_atoms: Sequence[int]
    bridged: NotRequired[Sequence[int]]
    lag_min_ps: float
    lag_max_ps: float
    n_lag_nodes: NotRequired[int]
    n_calls: NotRequired[int]
    sigma_min: NotRequired[float]
    sigma_max: NotRequired[float]
    rho: NotRequired[float]


class InternalPropagator(DiffusionPropagator):
    """Base of networks that diffuse a molecule's internal coordinates.

    Parameters
    ----------
    root : sequence of int
        Three bonded atoms (a, b, c), not on a line, b in the middle, that are placed first.
    tree : sequence of (int, int, int, int, int)
        How the other atoms are placed, see `InternalTree`.
    turning : sequence of int
        Rows of `tree` whose torsion turns; the others stay near one value.
    constant : sequence of int
        Which bond lengths (0 and 1: a-b and c-b; 2 + k: row k of `tree`) never change.
    bridged : sequence of int, optional
        Rows of `tree` that close a ring: their angle is a distance, see `InternalTree`.
    extra_noise : int
        Noise numbers of a jump besides those of the coordinates.
    n_atoms, heavy_atoms, lag_min_ps, ..., rho, network
        Those of `DiffusionPropagator`; the scale is how far torsions turn. With 4, 6, 8, 10 and 32
        calls, hops of alanine dipeptide in water from beta to alphaR in 10 ps came out at 0.051,
        0.065, 0.065, 0.065 and 0.064 (MD: 0.063).

    Notes
    -----
    Coordinates, in this order: bond lengths that vary, angles and stiff torsions, each minus its
    mean and over its width in the data; then two for every turning torsion phi, (cos d - 1) / s and
    sin d / s, where d is how far phi turns in the jump and s(lag) how far it typically does. Of
    several atoms on one bond the first carries the torsion, the others the angle between their
    plane and the first one's.

    The noise is the initial noise only; the solver is deterministic. A proposal is placed so that
    its heavy atoms are aligned to the frame's: a jump carries no net translation or rotation.
    """

    solver: list[list[float]]
    stage_ends: list[int]
    root: Tensor
    rows: Tensor
    placing_rows: Tensor
    place: Tensor
    free: Tensor
    bridged: Tensor
    closes: Tensor
    begin: Tensor
    multiple: Tensor
    quarter: Tensor
    centre: Tensor
    turning: Tensor
    stiff: Tensor
    length_mean: Tensor
    stiff_mean: Tensor
    stiff_width: Tensor

    def __init__(
        self,
        *,
        n_atoms: int,
        root: Sequence[int],
        tree: Sequence[Sequence[int]],
        turning: Sequence[int],
        constant: Sequence[int],
        heavy_atoms: Sequence[int],
        bridged: Sequence[int] = (),
        lag_min_ps: float,
        lag_max_ps: float,
        n_lag_nodes: int = 12,
        n_calls: int = 8,
        sigma_min: float = 0.05,
        sigma_max: float = 10.0,
        rho: float = 10.0,
        network: dict[str, Any],
        extra_noise: int = 0,
    ) -> None:
        if n_atoms < 4:
            raise ValueError(f"n_atoms must be at least 4, got {n_atoms}")
        closing = tuple(int(k) for k in bridged)
        plan = InternalTree(n_atoms, tuple(root), [tuple(row) for row in tree], closing)
        rows = n_atoms - 3
        for name, chosen, most in (("turning", turning, rows), ("constant", constant, rows + 2)):
            if any(not 0 <= k < most for k in chosen) or len(set(chosen)) != len(chosen):
                raise ValueError(f"{name} must be different rows below {most}, got {list(chosen)}")
        free = [k for k in range(rows + 2) if k not in set(constant)]
        stiff = [k for k in range(rows) if k not in set(turning)]
        n_stiff = len(free) + (rows + 1) + len(stiff)
        size = n_stiff + 2 * len(turning)
        turns = sorted(int(k) for k in turning)
        super().__init__(
            n_atoms,
            size + extra_noise,
            heavy_atoms=heavy_atoms,
            lag_min_ps=lag_min_ps,
            lag_max_ps=lag_max_ps,
            n_lag_nodes=n_lag_nodes,
            n_calls=n_calls,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            rho=rho,
            coordinates={
                "root": [int(i) for i in root],
                "tree": [[int(i) for i in row] for row in tree],
                "turning": turns,
                "constant": sorted(int(k) for k in constant),
                **({"bridged": list(closing)} if closing else {}),
            },
            network=network,
        )
        self.n_free = len(free)
        self.n_stiff = n_stiff
        self.n_turning = len(turning)
        # TorchScript sees attributes of the object, not the module's globals.
        self.squash = _SQUASH
        self.least_reach, self.most_reach = math.exp(-_LOG_REACH), math.exp(_LOG_REACH)
        self.angle_margin = _ANGLE_MARGIN
        self.stage_ends = plan.stage_ends()
        #: Numbers that are diffused: K.
        self.n_coordinates = size
        #: Lengths and angles come first among the stiff coordinates, then torsions.
        self.n_straight = len(free) + rows + 1

        levels = karras_levels(sigma_min, sigma_max, n_calls, rho)
        self.solver = multistep_coefficients(levels, _ORDER)
        # Right for stiff coordinates, which are nearly Gaussian; the peaks of a torsion that turns
        # would be drawn together by it.
        begin = torch.full((size,), math.sqrt(1.0 + levels[0] ** 2))
        begin[:n_stiff] = starting_width(levels, self.solver)

        order = plan.order()
        place = [order.index(atom) for atom in range(n_atoms)]
        self.keep("root", torch.tensor(list(plan.root)))
        self.keep("rows", torch.tensor([list(row) for row in plan.rows]))
        placing = [[*(place[atom] for atom in row[:4]), row[4]] for row in plan.rows]
        self.keep("placing_rows", torch.tensor(placing))
        self.keep("place", torch.tensor(place))
        self.keep("free", torch.tensor(free, dtype=torch.int64))
        self.keep("turning", torch.tensor(turns, dtype=torch.int64))
        self.keep("stiff", torch.tensor(stiff, dtype=torch.int64))
        self.n_bridged = len(closing)
        rings = torch.tensor(closing, dtype=torch.int64)
        self.keep("bridged", rings)
        self.keep("closes", torch.zeros(rows).index_fill(0, rings, 1.0))
        self.keep("begin", begin)
        multiple = torch.arange(1.0, HARMONICS + 1).repeat_interleave(2)
        self.keep("multiple", multiple.unsqueeze(1))
        self.keep("quarter", torch.tensor([[0.0], [0.5 * math.pi]]).repeat(HARMONICS, 1))
        self.keep("centre", torch.tensor([1.0, 0.0]).repeat_interleave(len(turning)))
        self.register_buffer("length_mean", torch.full((rows + 2,), 0.15))
        self.register_buffer("stiff_mean", torch.zeros(n_stiff))
        self.register_buffer("stiff_width", torch.full((n_stiff,), 0.05))
        self.register_buffer("scale", torch.full((n_lag_nodes, len(turning)), 0.3))

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        return self.sample(frame, lag, noise)

    def sample(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        """Return the frame one lag later, from noise (B, K): one number for each coordinate."""
        stiff, turned = self.measure(frame)
        scale = self.scale_at(lag)
        context, modulation = self.encode(stiff, turned, lag)
        y = self.solve(noise, turned, scale, context, modulation)[-1]
        return align_far(self.build(y, turned, scale), frame, self.heavy)

    def solve(
        self, noise: Tensor, turned: Tensor, scale: Tensor, context: Tensor, modulation: Tensor
    ) -> list[Tensor]:
        """Return the sample (B, K) at each noise level, and last without noise, from noise (B, K).

        `turned` and `scale`, (B, M), are the frame's turning torsions and how far they typically
        turn; context and modulation are from `encode`.
        """
        noise_modulation = self.encode_noise(self.levels)
        y = noise * self.begin
        before = torch.zeros_like(y)
        earlier = torch.zeros_like(y)
        states = [y]
        for k in range(self.n_calls):
            denoised = self.denoise(
                y, self.levels[k : k + 1], turned, scale, context, modulation + noise_modulation[k]
            )
            a, b, c, d = self.solver[k]
            y = torch.add(a * y, denoised, alpha=b)
            y = torch.add(torch.add(y, before, alpha=c), earlier, alpha=d)
            states.append(y)
            earlier = before
            before = denoised
        return states

    def measure(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return stiff coordinates (B, S) in widths, and turning torsions (B, M), of frames."""
        lengths, angles, torsions = internal_coordinates(frame, self.root, self.rows)
        if self.n_bridged > 0:
            angles = with_bridges(angles, frame, self.rows, self.bridged)
        stiff = torch.cat([lengths[:, self.free], angles, torsions[:, self.stiff]], dim=-1)
        difference = stiff - self.stiff_mean
        difference = torch.cat(
            [difference[:, : self.n_straight], wrap(difference[:, self.n_straight :])], dim=-1
        )
        return self.uncoupled(difference / self.stiff_width), torsions[:, self.turning]

    def build(self, y: Tensor, turned: Tensor, scale: Tensor) -> Tensor:
        """Return frames (B, N, 3), placed somewhere, from what is diffused, (B, K).

        `turned` and `scale` are as in `solve`.
        """
        lengths, angles, torsions = self.geometry(y, turned, scale)
        if self.n_bridged > 0:
            return bridged_positions_of(
                lengths,
                angles,
                torsions,
                self.placing_rows,
                self.place,
                self.stage_ends,
                self.closes,
            )
        return positions_of(
            lengths, angles, torsions, self.placing_rows, self.place, self.stage_ends
        )

    def geometry(self, y: Tensor, turned: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return lengths, angles and torsions of all rows from what is diffused, as in `build`."""
        stiff = self.stiff_mean + self.stiff_width * self.coupled(y[:, : self.n_stiff])
        lengths = self.length_mean.expand(y.shape[0], -1)
        lengths = lengths.index_copy(1, self.free, stiff[:, : self.n_free])
        # The distances of bridged rows lie in this range as well.
        angles = stiff[:, self.n_free : self.n_straight].clamp(
            self.angle_margin, math.pi - self.angle_margin
        )
        torsions = torch.zeros_like(lengths[:, 2:])
        torsions = torsions.index_copy(1, self.stiff, stiff[:, self.n_straight :])
        across, along = self.plane(y, scale)
        torsions = torsions.index_copy(1, self.turning, turned + torch.atan2(across, along))
        return lengths, angles, torsions

    def coupled(self, stiff: Tensor) -> Tensor:
        """Return stiff coordinates (B, S) in widths, from those that are diffused."""
        return stiff

    def uncoupled(self, stiff: Tensor) -> Tensor:
        """Return what is diffused, (B, S), from stiff coordinates in widths."""
        return stiff

    def plane(self, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return sine and cosine (not normalised) of how far torsions turn, (B, M) each."""
        both = torch.addcmul(self.centre, y[:, self.n_stiff :], torch.cat([scale, scale], dim=-1))
        return both[:, self.n_turning :], both[:, : self.n_turning]

    def encode(self, stiff: Tensor, turned: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return context and modulation, of whatever shapes the network gives them.

        Made once a jump, they say what the denoiser needs to know of the frame, as `measure` gives
        it, and the lag, (B,) ps.
        """
        raise TypeError("the network does not define encode")

    def encode_noise(self, sigma: Tensor) -> Tensor:
        """Return what is added to the modulation at noise levels (L,), (L, ...)."""
        raise TypeError("the network does not define encode_noise")

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        """Return D, (B, K): what is expected given a noised sample.

        `y` is (B, K), its noise level `sigma` (B,) or (1,); `turned` and `scale` are as in `solve`.
        Context and modulation are from `encode`, with that of `encode_noise` added to the
        modulation.
        """
        raise TypeError("the network does not define denoise")

    def chosen(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return a relabelling for each row of numbers from 0 to 1, (B, G): orders and signs.

        The numbers are those of `extra_noise`; a network without them has none to choose from.
        """
        order = torch.arange(self.n_atoms, device=share.device).expand(share.shape[0], -1)
        return order, share.new_ones([share.shape[0]])

    # What networks are shown.

    def squashed(self, stiff: Tensor) -> Tensor:
        """Return stiff coordinates in widths, kept in range however far out they are."""
        return stiff * torch.rsqrt(1.0 + (stiff / self.squash) ** 2)

    def torsion_features(self, torsions: Tensor) -> Tensor:
        """Return sines and cosines of multiples of torsions (B, M), (B, 2 * HARMONICS * M)."""
        # A cosine is a sine a quarter turn on: one call for all of them.
        waves = torch.addcmul(self.quarter, torsions.unsqueeze(1), self.multiple)
        return torch.sin(waves).flatten(1)

    def noised_features(self, y: Tensor, squeezed: Tensor, turned: Tensor, scale: Tensor) -> Tensor:
        """Return what a network is shown of a noised sample, (B, K + M + 2 * HARMONICS * M).

        `y` is the sample (B, K) and `squeezed` the same brought to width one; `turned` and `scale`
        are as in `solve`.
        """
        # Where each torsion would be now, however blurred by noise, and how blurred.
        across, along = self.plane(y, scale)
        reach = torch.log(torch.hypot(across, along).clamp(self.least_reach, self.most_reach))
        guess = turned + torch.atan2(across, along)
        return torch.cat([squeezed, reach, self.torsion_features(guess)], dim=-1)

    # What densities need.

    @torch.jit.ignore
    def denoise_tangents(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
        tangents: Tensor,
    ) -> Tensor:
        """Return how the answer of `denoise` changes as y moves along tangents, (T, B, K)."""

        def answer(x: Tensor) -> Tensor:
            return self.denoise(x, sigma, turned, scale, context, modulation)

        return carried(answer, y, tangents)

    # What training needs.

    @torch.no_grad()
    def fit_statistics(self, frames: Tensor, scale: Tensor) -> None:
        """Set means, widths and scales from data, before training.

        `frames`, (T, N, 3) nm, represent what the model will see; `scale`, (n_lag_nodes, M), is
        from `measure_scale` at the lags of `lag_nodes`.
        """
        x = frames.to(self.stiff_mean.device, torch.float64)
        lengths, angles, torsions = internal_coordinates(x, self.root, self.rows)
        around = torsions[:, self.stiff]
        centre = circular_mean(around)
        around = centre + wrap(around - centre)
        stiff = torch.cat([lengths[:, self.free], angles, around], dim=-1)
        floor = torch.full_like(self.stiff_width, ANGLE_FLOOR)
        floor[: self.n_free] = LENGTH_FLOOR_NM
        self.length_mean.copy_(lengths.mean(0))
        self.stiff_mean.copy_(stiff.mean(0))
        self.stiff_width.copy_(torch.maximum(stiff.std(0).to(floor), floor))
        self.scale.copy_(scale.clamp(min=TURN_FLOOR))

    @torch.jit.ignore
    def measure_scale(self, frame: Tensor, later: Tensor) -> Tensor:
        """Return how far torsions turn, (M,), in pairs of frames (B, N, 3) at one lag."""
        turn = self.measure(later)[1] - self.measure(frame)[1]
        # The mean square of (cos d - 1, sin d) over both.
        return torch.sqrt((1.0 - torch.cos(turn)).mean(0))

    @torch.jit.ignore
    def target(
        self, frame: Tensor, later: Tensor, lag: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return what is diffused, (B, K) of width one, and what `answer` needs besides."""
        stiff, turned = self.measure(frame)
        wanted, goal = self.measure(later)
        scale = self.scale_at(lag)
        turn = goal - turned
        plane = torch.cat([(torch.cos(turn) - 1.0) / scale, torch.sin(turn) / scale], dim=-1)
        return torch.cat([wanted, plane], dim=-1), (stiff, turned, scale, lag)

    @torch.jit.ignore
    def loss_weights(self, turn_weight: float) -> Tensor:
        """Return the weight of each coordinate in the loss, (K,), one in the mean."""
        weights = torch.ones_like(self.begin)
        weights[self.n_stiff :] = turn_weight
        return weights / weights.mean()

    @torch.jit.ignore
    def answer(self, noised: Tensor, sigma: Tensor, known: tuple[Tensor, ...]) -> Tensor:
        """Return the denoiser's answer to a noised target at noise levels (B,)."""
        stiff, turned, scale, lag = known
        context, modulation = self.encode(stiff, turned, lag)
        modulation = modulation + self.encode_noise(sigma)
        return self.denoise(noised, sigma, turned, scale, context, modulation)
