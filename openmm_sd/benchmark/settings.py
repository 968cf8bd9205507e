"""What a benchmark measures, and how long."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import FASTEST, Settings, setting


@dataclass(frozen=True)
class BenchmarkSettings(Settings):
    """What is measured, and how long."""

    model: str = setting(
        "ala2-water", "shipped model, or path of a bundle, of one molecule", metavar="NAME"
    )
    seconds: float = setting(
        3.0,
        "wall-clock time of each measurement, over all its turns; what takes longer once is done "
        "once a turn",
        option="seconds",
    )
    repeats: int = setting(7, "turns of each contestant")
    only: str | None = setting(
        None,
        "md, burst, mixed, rollout, propagator, published, bridges, atoms, memory or statistics, "
        "or a word of a contestant's name",
        metavar="WORD",
    )
    platform: str | None = setting(None, "OpenMM platform", shown=FASTEST)
    device: str = setting("cpu", "of networks and rollouts: cpu, cuda or cuda:N", metavar="D")
    waters: int = setting(651, "water molecules around the model's molecule")
    equilibration_ps: float = setting(10.0, "MD that relaxes the new box", least=0)
    batches: tuple[int, ...] = setting(
        (16, 64, 256, 1024), "batch sizes; the largest is too large for the published network"
    )
    lags_ps: tuple[float, ...] = setting((10.0, 100.0), "lags of rollouts and mixed runs")
    chain_seconds: float = setting(
        20.0,
        "wall-clock time of the chains of each schedule from which correlation times are found",
        option="chain-seconds",
    )
    gmx: str | None = setting(
        None,
        "GROMACS's gmx to compare with",
        shown="the one that a shell would find, if any",
        metavar="PATH",
    )
    atoms: tuple[int, ...] = setting((22, 100, 400), "sizes of molecules for the cost by size")

    def __post_init__(self) -> None:
        super().__post_init__()
        from ..propagator.device import chosen_device
        from ..system.platforms import known_platform

        chosen_device(self.device)
        if self.platform is not None:
            object.__setattr__(self, "platform", known_platform(self.platform))
