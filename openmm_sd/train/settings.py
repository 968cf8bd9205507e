"""What is trained, on what and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..molecule.molecule import Molecule

AUTO: Final = "auto"
"""What ``--network`` is by default: the network that suits the data."""

FAMILY: Final = "family"
"""The network for several molecules, and what ``auto`` takes for them."""

_NETWORKS: Final = (AUTO, "internal", "dense", FAMILY)


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained.

    Attributes
    ----------
    minutes : float
        Wall time of training, minutes, summed over resumed parts. The learning rate follows it.
    max_steps : int or None
        Stop after this many steps even if time is left; the learning rate then follows the steps.
    batch_size : int
        Pairs a step.
    learning_rate : float
        Peak of the rate, reached after `warmup_steps`; it falls to zero as a cosine.
    warmup_steps : int
        Steps of linear warm-up.
    ema_decay : float
        Decay of the exponential moving average of the weights, which is what is kept.
    condition_noise_nm : float
        Standard deviation of the noise on the conditioning frame, nm. It keeps long rollouts from
        drifting off the frames that dynamics visits.
    sigma_min, sigma_max : float
        Range of noise levels in widths of the data, wider than the sampler's. A third of the draws
        is log-uniform over it, the rest log-normal around the levels where a sample decides
        between conformations and takes its bonds.
    rare_first : bool
        Draw pairs that hop rarely more often, with less weight each; see `RareFirst`.
    turn_weight : float
        Weight of the coordinates that say how torsions turn, relative to bonds, angles and stiff
        torsions, in the loss of a network in internal coordinates. The least of the loss is at the
        same law whatever the weight; it says where the network's effort goes.
    bf16 : bool
        Matrix products in bfloat16. About twice as fast on CPUs that have it.
    seed : int
        Seed of pairs, noise and initial weights' use.
    report_seconds : float
        Time between lines of progress and between checkpoints, s.
    """

    minutes: float = 10.0
    max_steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    ema_decay: float = 0.9995
    condition_noise_nm: float = 0.003
    sigma_min: float = 0.005
    sigma_max: float = 90.0
    rare_first: bool = True
    turn_weight: float = 5.0
    bf16: bool = True
    seed: int = 1
    report_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate", "sigma_min", "turn_weight"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.condition_noise_nm >= 0.0:
            raise ValueError(
                f"condition_noise_nm must not be negative, got {self.condition_noise_nm}"
            )
        if not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"sigma_max must be above sigma_min, got {self.sigma_max} and {self.sigma_min}"
            )


@dataclass(frozen=True)
class StageSettings:
    """What is trained, on what, for how long.

    Attributes
    ----------
    network : str
        ``internal`` (one molecule, internal coordinates), ``dense`` (one molecule, Cartesian) or
        ``family`` (several molecules, internal coordinates). ``auto`` takes ``family`` for several
        molecules; for one ``internal`` where it suits the molecule, which is without rings and
        straight chains, and else ``dense``.
    network_settings : dict
        Arguments of the network's class, e.g. ``{"width": 256}``.
    lag_min_ps, lag_max_ps : float
        Lags the model learns, ps. The longest is cut to what the data supports.
    time_reversal : bool
        Read pairs in both directions, weighted as equilibrium demands.
    compose_from_ps : float or None
        Lags from here on are composed with the Markov model of the data; None: never. Without
        `time_reversal` there is no Markov model.
    markov_lag_ps : float
        Lag of that Markov model, ps.
    drop_ps : float
        Left out at the beginning of every run that is not plain: what it still owes to its start.
    held_out : float
        Share of the data kept for the held-out loss: whole runs, or the ends of long ones.
    without : tuple of str
        Names of runs that are left out.
    also : tuple of Molecule
        Molecules without data that a family's weights shall serve as well.
    extra_data : tuple of str
        Data sets that a family learns from without having their molecules: the same molecules with
        other torsion terms, for instance.
    start_frames : int
        Equilibrium frames that the bundle carries for rollouts.
    init : str or None
        Bundle whose weights are the first ones; the same network for the same number of atoms.
    name, description : str or None
        For the card.
    recommended_lag_ps, recommended_burst_ps : float or None
        For the card; the lag is worked out from the data by default.
    device : str
        ``cpu``, ``cuda``, or ``auto``.
    training : TrainSettings
        How.
    """

    network: str = "auto"
    network_settings: dict[str, Any] = field(default_factory=dict)
    lag_min_ps: float = 1.0
    lag_max_ps: float = 1000.0
    time_reversal: bool = True
    compose_from_ps: float | None = 100.0
    markov_lag_ps: float = 10.0
    drop_ps: float = 1.0
    held_out: float = 0.1
    without: tuple[str, ...] = ()
    also: tuple[Molecule, ...] = ()
    extra_data: tuple[str, ...] = ()
    start_frames: int = 1000
    init: str | None = None
    name: str | None = None
    description: str | None = None
    recommended_lag_ps: float | None = None
    recommended_burst_ps: float | None = None
    device: str = "auto"
    training: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if self.network not in _NETWORKS:
            raise ValueError(f"network must be one of {', '.join(_NETWORKS)}, got {self.network!r}")
        if not 0.0 < self.lag_min_ps < self.lag_max_ps:
            raise ValueError(
                f"the shortest lag must be positive and below the longest, got {self.lag_min_ps:g} "
                f"and {self.lag_max_ps:g} ps"
            )
        if not 0.0 <= self.held_out <= 0.5:
            raise ValueError(f"the held-out share must lie in 0 to 0.5, got {self.held_out:g}")
        if self.start_frames < 1:
            raise ValueError(f"start frames must be at least 1, got {self.start_frames}")


@dataclass(frozen=True)
class DistillSettings:
    """How a model is distilled.

    Attributes
    ----------
    calls : int
        Network calls of a jump: 1 or 2.
    name, description : str or None
        For the card.
    device : str
        ``cpu``, ``cuda``, or ``auto``.
    training : TrainSettings
        How long and how; noise levels, rare hops and time have no meaning here.
    """

    calls: int = 2
    name: str | None = None
    description: str | None = None
    device: str = "auto"
    training: TrainSettings = field(
        default_factory=lambda: TrainSettings(minutes=30.0, batch_size=512, learning_rate=5e-4)
    )

    def __post_init__(self) -> None:
        if self.calls not in (1, 2):
            raise ValueError(f"calls must be 1 or 2, got {self.calls}")
