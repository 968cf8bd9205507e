"""Who runs the dynamics of a data set: OpenMM, or GROMACS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..progress import Progress
from .parts import Parts
from .settings import GenerateSettings


def run_maker(engine: str) -> Callable[..., bool]:
    """Return the function that makes a run with an engine, called as `dynamics.make_run`."""
    if engine == "gromacs":
        from .gromacs import make_run as with_gromacs

        return with_gromacs
    from .dynamics import make_run

    return make_run


def settled_engine(
    settings: GenerateSettings,
    parts: Parts,
    target: Path,
    solute: tuple[Any, Any],
    platform: str | None,
    gmx: str | None,
    dask: Any,
    say: Progress,
) -> GenerateSettings:
    """Return settings that name an engine which is there.

    For ``auto``, what there is already (in `parts` or `target`) says which engine goes on, else the
    faster one is measured. The workers of a cluster (`dask`) have OpenMM only. `solute` is topology
    and positions; `platform` and `gmx` are what was asked for; `say` is told what was chosen and
    why.
    """
    if settings.engine == "auto":
        engine = _known(parts, target)
        if engine is None:
            from .gromacs.speed import faster_engine

            engine = faster_engine(settings, *solute, platform, gmx, dask, say)
        settings = replace(settings, engine=engine)
    if settings.engine == "gromacs":
        if dask is not None:
            raise ValueError("the workers of a Dask cluster run OpenMM: use --engine openmm")
        if platform is not None:
            raise ValueError("a platform is OpenMM's, and the engine is GROMACS")
        from .gromacs import find_gromacs

        find_gromacs(gmx)
    elif gmx is not None and settings.engine == "openmm":
        raise ValueError("gmx names the program of GROMACS: use --engine gromacs with it")
    return settings


def _known(parts: Parts, target: Path) -> str | None:
    """Return the engine of what there is already; None if there is nothing."""
    if parts.started:
        return str(parts.describe()["settings"].get("engine", "openmm"))
    if target.exists():
        from ..data.dataset import read_dataset

        found = read_dataset(target).provenance.get("generate") or {}
        return str(found.get("engine", "openmm"))
    return None
