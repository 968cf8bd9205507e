"""What is trained, on what and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from ..settings import Settings, declared_fields, setting

if TYPE_CHECKING:
    from ..molecule.molecule import Molecule

AUTO: Final = "auto"
"""What ``--network`` is by default: the network that suits the data."""

FAMILY: Final = "family"
"""The network for several molecules, and what ``auto`` takes for them."""

TRANSFERABLE: Final = "transferable"
"""The network for several molecules, and others that a force field knows, with rings or without."""

FAMILIES: Final = (FAMILY, TRANSFERABLE)
"""Networks whose weights serve several molecules."""


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How a model is trained."""

    minutes: float = setting(
        10.0,
        "wall-clock time of training, summed over resumed parts; the learning rate follows it",
        option="minutes",
    )
    max_steps: int | None = setting(
        None, "stop after this many steps at the latest; the learning rate then follows the steps"
    )
    batch_size: int = setting(256, "pairs a step")
    learning_rate: float = setting(
        1e-3, "peak of the rate, after the warm-up; it falls to zero as a cosine"
    )
    optimizer: str = setting(
        "adam",
        "muon (of PyTorch 2.9 on) needs about half as many steps for networks of many molecules",
        choices=("adam", "muon"),
    )
    warmup_steps: int = setting(300, "steps of linear warm-up")
    ema_decay: float = setting(
        0.9995,
        "decay of the exponential moving average of the weights, which is what is kept",
        above=0,
        below=1,
    )
    condition_noise_nm: float = setting(
        0.003,
        "standard deviation of the noise on the conditioning frame, which keeps long rollouts from "
        "drifting off the frames that dynamics visits",
        least=0,
    )
    sigma_min: float = setting(
        0.005,
        "lowest noise level, in widths of the data; with the highest, the range is wider than the "
        "sampler's: a third of the draws is log-uniform over it, the rest log-normal around the "
        "levels where a sample decides between conformations and takes its bonds",
    )
    sigma_max: float = setting(90.0, "highest noise level")
    keep: float = setting(
        0.0,
        "how fast weights are drawn back to the first ones, those of --init: a step takes this "
        "times the learning rate off their distance",
        least=0,
    )
    rare_first: bool = setting(True, "draw pairs that hop rarely more often, with less weight each")
    turn_weight: float = setting(
        5.0,
        "weight of the coordinates that say how torsions turn, relative to bonds, angles and stiff "
        "torsions, in the loss in internal coordinates; the least loss is at the same law whatever "
        "it is, it says where the network's effort goes",
    )
    bf16: bool = setting(
        True, "matrix products in bfloat16, about twice as fast on CPUs that have it"
    )
    seed: int = setting(1, "of everything random", least=0)
    report_seconds: float = setting(
        60.0, "time between lines of progress and between checkpoints", least=0, option=""
    )

    def told(self) -> dict[str, Any]:
        """Return them as a card and a checkpoint hold them."""
        values = asdict(self)
        if not self.keep:  # those from before it could be set do not name it
            del values["keep"]
        return values

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"sigma_max must be above sigma_min, got {self.sigma_max} and {self.sigma_min}"
            )


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """How large a network is; each kind has sizes of its own by default."""

    width: int | None = setting(None, "width of the network", shown="by its kind", most=2**14)
    depth: int | None = setting(None, "number of its blocks", shown="by its kind", most=2**10)
    n_calls: int | None = setting(
        None, "network calls a jump", shown="8, or 10", most=2**10, option="calls"
    )


@dataclass(frozen=True)
class _Stage(Settings):
    """What is trained, on what."""

    network: str = setting(
        AUTO,
        "in internal coordinates (internal, one molecule without rings and straight chains), "
        "Cartesian (dense, one molecule), for several molecules (family), or for those and others "
        "that a force field knows, rings included (transferable); auto takes what suits",
        choices=(AUTO, "internal", "dense", *FAMILIES),
    )
    lag_min_ps: float = setting(1.0, "shortest lag that the model learns")
    lag_max_ps: float = setting(1000.0, "longest lag; cut to what the data support")
    time_reversal: bool = setting(True, "read pairs in both directions, weighted by equilibrium")
    compose_from_ps: float | None = setting(
        100.0,
        "lags from here on are composed with the Markov model of the data; off, or 0: never; "
        "without time reversal there is no Markov model",
        least=0,
    )
    markov_lag_ps: float = setting(10.0, "lag of that Markov model")
    drop_ps: float = setting(
        1.0, "left out at the beginning of every run that is not plain", least=0
    )
    held_out: float = setting(
        0.1,
        "share of the data kept for the held-out loss: whole runs, or the ends of long ones",
        least=0,
        most=0.5,
    )
    without: tuple[str, ...] = setting((), "name of a run to leave out; repeatable", metavar="RUN")
    extra_data: tuple[str, ...] = setting(
        (),
        "data set that a family learns from without having its molecule: the same molecule with "
        "other torsion terms, for instance; repeatable",
        option="aside",
        metavar="DATA.h5",
    )
    start_frames: int = setting(1000, "equilibrium frames that the bundle carries for rollouts")
    init: str | None = setting(
        None, "bundle of the same network whose weights are the first ones", metavar="BUNDLE"
    )
    name: str | None = setting(None, "name on the card", shown="the molecule's")
    description: str | None = setting(None, "for the card")
    recommended_lag_ps: float | None = setting(None, "for the card", shown="from the data")
    recommended_burst_ps: float | None = setting(None, "for the card")
    device: str = setting("auto", "cpu, cuda, cuda:N or auto", metavar="D")

    def __post_init__(self) -> None:
        if self.compose_from_ps == 0:
            object.__setattr__(self, "compose_from_ps", None)
        super().__post_init__()
        if not self.lag_min_ps < self.lag_max_ps:
            raise ValueError(
                f"the shortest lag must be below the longest, got {self.lag_min_ps:g} and "
                f"{self.lag_max_ps:g} ps"
            )


@dataclass(frozen=True)
class StageSettings(_Stage):
    """What is trained, on what, for how long."""

    network_settings: dict[str, Any] = setting(
        factory=dict, text='arguments of the network\'s class, e.g. ``{"width": 256}``', option=""
    )
    also: tuple[Molecule, ...] = setting(
        (), "a molecule without data that a family's weights shall serve as well", option=""
    )
    training: TrainSettings = setting(factory=TrainSettings, text="how it is trained", option="")


@dataclass(frozen=True)
class TrainOptions(_Stage, NetworkSettings, TrainSettings):
    """All settings of `openmm_sd.train` in one: data, network and training."""

    def staged(self, also: tuple[Molecule, ...] = ()) -> StageSettings:
        """Return them as the stage takes them, with molecules that have no data."""
        network = {n: v for n, v in _part(self, NetworkSettings).items() if v is not None}
        return StageSettings(
            **_part(self, _Stage),
            network_settings=network,
            also=also,
            training=TrainSettings(**_part(self, TrainSettings)),
        )


@dataclass(frozen=True)
class StudentSettings(TrainSettings):
    """How a student is trained; noise levels and rare hops have no meaning here."""

    minutes: float = setting(30.0, "wall-clock time of training", option="minutes")
    batch_size: int = setting(512, "jumps a step")
    learning_rate: float = setting(5e-4, "peak of the rate, after the warm-up")


@dataclass(frozen=True)
class _Distill(Settings):
    """What a model is distilled to."""

    calls: int = setting(2, "network calls of a jump: 1 or 2", most=2)
    name: str | None = setting(
        None, "name on the card", shown="the model's, and the number of calls"
    )
    description: str | None = setting(None, "for the card")
    device: str = setting("auto", "cpu, cuda, cuda:N or auto", metavar="D")


@dataclass(frozen=True)
class DistillSettings(_Distill):
    """How a model is distilled."""

    training: TrainSettings = setting(factory=StudentSettings, text="how long and how", option="")


@dataclass(frozen=True)
class DistillOptions(_Distill, StudentSettings):
    """All settings of `openmm_sd.distill` in one: what, and how it is trained."""

    def staged(self) -> DistillSettings:
        """Return them as the stage takes them."""
        training = StudentSettings(**_part(self, StudentSettings))
        return DistillSettings(**_part(self, _Distill), training=training)


def _part(settings: Settings, kind: type[Settings]) -> dict[str, Any]:
    return {one.name: getattr(settings, one.name) for one in declared_fields(kind)}
