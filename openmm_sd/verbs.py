"""What the commands of ``openmm-sd`` do, as functions under the commands' names.

Each takes its settings as keywords, or as an object of its class of settings, or both: keywords
then replace what the object says. What is no setting is an argument. ``prepare``, ``generate``,
``train``, ``adapt``, ``validate``, ``rollout``, ``run`` and ``report`` are packages too: a package
that is called does what the function here does, see `openmm_sd.lazy.callable_package`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .adapt.settings import AdaptSettings
from .data.settings import ImportSettings
from .generate.settings import GenerateSettings
from .prepare.settings import PrepareSettings
from .progress import Progress
from .rollout.settings import RolloutSettings
from .run.settings import RunSettings
from .settings import Settings
from .train.settings import DistillOptions, TrainOptions
from .validate.settings import ValidateSettings

if TYPE_CHECKING:
    from .model.model import ScoreModel
    from .run.plan import Start
    from .workers.cluster import Where

S = TypeVar("S", bound=Settings)
PathLike = str | os.PathLike[str]

#: What a data set's file says of simulations that were made elsewhere.
PROVENANCE: Final = (
    *("temperature_K", "friction_per_ps", "step_fs", "hydrogen_mass_amu", "cutoff_nm", "water"),
    *("constraints", "integrator", "engine", "force_field"),
)


def prepare(
    source: Any,
    output: PathLike,
    settings: PrepareSettings | None = None,
    *,
    sequence: str | None = None,
    positions: Any = None,
    force: bool = False,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Repair a structure, put it into water and relax it: ``openmm-sd prepare``.

    `source` is what `openmm_sd.prepare.prepare_system` takes, or None with a `sequence` like
    ``"ACE-ALA-NME"``. Returns the record that ``prepared.json`` holds. See
    `openmm_sd.prepare.prepare` for the rest, `openmm_sd.prepare.PrepareSettings` for the settings.
    """
    settings = _settings(PrepareSettings, settings, given)
    from .prepare.driver import prepare as work
    from .prepare.sequence import from_sequence

    if (source is None) == (sequence is None):
        raise ValueError("give a source or a sequence")
    if sequence is not None:
        source, forms = from_sequence(sequence)
        settings = replace(settings, variants={**forms, **settings.variants})
    return work(source, output, settings, positions=positions, force=force, progress=progress)


def generate(
    structure: PathLike,
    output: PathLike,
    settings: GenerateSettings | None = None,
    *,
    torsions: Sequence[str | tuple[int, int, int, int]] = (),
    name: str | None = None,
    minutes: float | None = None,
    platform: str | None = None,
    processes: int | None = None,
    threads: int | None = None,
    gmx: str | None = None,
    dask: Where | None = None,
    save_seconds: float = 30.0,
    force: bool = False,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Make MD of a solute in water, to a data set: ``openmm-sd generate``.

    See `openmm_sd.generate.generate`; the settings are `openmm_sd.generate.GenerateSettings`.
    """
    settings = _settings(GenerateSettings, settings, given)
    from .generate.driver import generate as work

    return work(
        structure,
        output,
        settings,
        torsions=torsions,
        name=name,
        platform=platform,
        processes=processes,
        threads=threads,
        gmx=gmx,
        minutes=minutes,
        save_seconds=save_seconds,
        force=force,
        progress=progress,
        dask=dask,
    )


def import_trajectories(
    trajectories: PathLike | Sequence[PathLike],
    output: PathLike,
    settings: ImportSettings | None = None,
    *,
    topology: PathLike | None = None,
    append: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Make a data set of trajectories that exist already: ``openmm-sd import``.

    What the file is to say of the simulations are keywords too: ``temperature_K``,
    ``friction_per_ps``, ``step_fs``, ``hydrogen_mass_amu``, ``cutoff_nm``, ``water``,
    ``constraints``, ``integrator``, ``engine``, ``force_field``. See
    `openmm_sd.generate.import_trajectories`; the settings are `openmm_sd.generate.ImportSettings`.
    """
    told: dict[str, object] = {name: given.pop(name) for name in PROVENANCE if name in given}
    settings = _settings(ImportSettings, settings, given)
    settings = replace(settings, provenance={**settings.provenance, **told})
    from .data.imported import import_trajectories as work

    several = _paths(trajectories)
    return work(
        *(several, topology, output, settings), append=append, force=force, progress=progress
    )


def train(
    datasets: PathLike | Sequence[PathLike],
    output: PathLike,
    settings: TrainOptions | None = None,
    *,
    also: Iterable[Any] = (),
    novelty_only: PathLike | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any] | None:
    """Train a model on data sets and write its bundle: ``openmm-sd train``.

    `also` has molecules without data, PDB files or `Molecule` objects; `novelty_only` is a bundle
    that gets a novelty score, and nothing is trained. See `openmm_sd.train.train_bundle`; the
    settings are `openmm_sd.train.TrainOptions`.
    """
    from .train.data import read_relative
    from .train.driver import add_novelty, train_bundle, use_threads

    relatives = (
        read_relative(Path(one)) if isinstance(one, (str, os.PathLike)) else one for one in also
    )
    stage = _settings(TrainOptions, settings, given).staged(tuple(relatives))
    use_threads(threads)
    several = [Path(one) for one in _paths(datasets)]
    if novelty_only is not None:
        return add_novelty(Path(novelty_only), several, Path(output), stage, progress=progress)
    return train_bundle(several, Path(output), stage, progress=progress)


def adapt(
    model: PathLike | None,
    structure: PathLike,
    output: PathLike,
    settings: AdaptSettings | None = None,
    *,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Make a model of a molecule from one that serves it, or from nothing: ``openmm-sd adapt``.

    See `openmm_sd.adapt.driver.adapt`; the settings are `openmm_sd.adapt.AdaptSettings`.
    """
    settings = _settings(AdaptSettings, settings, given)
    from .adapt.driver import adapt as work

    return work(model, structure, output, settings, progress=progress)


def distill(
    model: ScoreModel | PathLike,
    output: PathLike,
    settings: DistillOptions | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any] | None:
    """Teach a model to jump in one or two network calls: ``openmm-sd distill``.

    See `openmm_sd.train.distill.distill_bundle`; the settings are `openmm_sd.train.DistillOptions`.
    """
    from .train.distill import distill_bundle
    from .train.driver import use_threads

    stage = _settings(DistillOptions, settings, given).staged()
    use_threads(threads)
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    return distill_bundle(model, Path(output), stage, progress=progress)


def validate(
    model: ScoreModel | PathLike,
    output: PathLike,
    settings: ValidateSettings | None = None,
    *,
    reference: Any = None,
    topology: PathLike | None = None,
    spacing_ps: float | None = None,
    rollouts: Sequence[PathLike] = (),
    molecule: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Compare a model with MD, to a report: ``openmm-sd validate``.

    See `openmm_sd.validate.validate`; the settings are `openmm_sd.validate.ValidateSettings`.
    """
    settings = _settings(ValidateSettings, settings, given)
    from .validate.driver import validate as work

    return work(
        model,
        reference,
        output,
        settings,
        progress,
        topology=topology,
        spacing_ps=spacing_ps,
        rollouts=rollouts,
        force=force,
        molecule=molecule,
    )


def rollout(
    model: ScoreModel | PathLike,
    output: PathLike,
    settings: RolloutSettings | None = None,
    *,
    start: Any = None,
    topology: PathLike | None = None,
    format: str = "xtc",
    every: int = 1,
    minutes: float | None = None,
    molecule: str | None = None,
    dask: Where | None = None,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Run many chains of pure Score Dynamics to a trajectory: ``openmm-sd rollout``.

    See `openmm_sd.rollout.run_rollout`; the settings are `openmm_sd.RolloutSettings`. Unlike there
    the device is ``auto``.
    """
    if settings is None:
        given = {"device": "auto", **given}
    settings = _settings(RolloutSettings, settings, given)
    from .rollout.driver import run_rollout

    return run_rollout(
        model,
        output,
        settings,
        start=start,
        topology=topology,
        format=format,
        every=every,
        minutes=minutes,
        progress=progress,
        molecule=molecule,
        dask=dask,
    )


def run(
    start: Start,
    output: PathLike,
    settings: RunSettings | None = None,
    *,
    model: ScoreModel | PathLike | None = None,
    copies: int | None = None,
    devices: Sequence[str] | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
    **given: object,
) -> dict[str, Any]:
    """Alternate MD bursts and learned jumps, to a trajectory: ``openmm-sd run``.

    No page is written: that is `openmm_sd.report`. See `openmm_sd.run.run_mixed`, and
    `openmm_sd.run.run_ensemble` for `copies`; the settings are `openmm_sd.run.RunSettings`.
    """
    settings = _settings(RunSettings, settings, given)
    from .run.driver import run_mixed
    from .run.ensemble import run_ensemble

    if copies is not None:
        return run_ensemble(
            *(model, start, output, settings, copies),
            devices=devices,
            processes=processes,
            progress=progress,
        )
    if devices is not None or processes is not None:
        raise ValueError("devices and processes are for several runs: give copies")
    return run_mixed(model, start, output, settings, progress=progress)


def report(
    folder: PathLike,
    *,
    model: ScoreModel | PathLike | None = None,
    reference: PathLike | Sequence[PathLike] = (),
    topology: PathLike | None = None,
    spacing_ps: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the page on a run into its directory: ``openmm-sd report``.

    See `openmm_sd.run.write_report`.
    """
    from .run.report.page import write_report

    return write_report(
        folder,
        model=model,
        reference=_paths(reference),
        topology=topology,
        spacing_ps=spacing_ps,
        progress=progress,
    )


def _settings(kind: type[S], settings: S | None, given: Mapping[str, object]) -> S:
    """Return an object of settings in which keywords replace what it says."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(given.keys() - known):
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}")
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    if settings is None:
        return kind(**values)  # type: ignore[arg-type]
    return replace(settings, **values)  # type: ignore[type-var]


def _paths(one_or_several: PathLike | Sequence[PathLike]) -> list[PathLike]:
    if isinstance(one_or_several, (str, os.PathLike)):
        return [one_or_several]
    return list(one_or_several)
