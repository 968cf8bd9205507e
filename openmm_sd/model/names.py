"""Models by name: those that come with the package, and those that other packages register."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
from pathlib import Path
from typing import Final

from .bundle import BundleError

#: Group of entry points by which other packages register models: a name, and an object that is the
#: path of a bundle, or a function that returns one.
ENTRY_POINTS: Final = "openmm_sd.models"

_SUFFIX: Final = ".safetensors"


def shipped_folder() -> Path:
    """Return the folder of the models that come with the package."""
    return Path(str(importlib.resources.files("openmm_sd"))) / "models"


def shipped() -> list[str]:
    """Return the names of the models that come with the package, sorted."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in shipped_folder().glob(f"*{_SUFFIX}"))


def registered() -> list[str]:
    """Return the names of models that other packages register, sorted; not whether they load.

    Names of shipped models are not taken.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return sorted({point.name for point in points} - set(shipped()))


def bundle_path(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a model, shipped ones before registered ones before paths.

    BundleError, in one line, if there is none.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise ValueError(
            f"name_or_path must be a name or a path, got {type(name_or_path).__name__}"
        )
    if isinstance(name_or_path, str) and name_or_path in shipped():
        return shipped_folder() / f"{name_or_path}{_SUFFIX}"
    others = registered()
    if isinstance(name_or_path, str) and name_or_path in others:
        return _registered_path(name_or_path)
    path = Path(name_or_path)
    if not path.exists():
        known = f"; registered by other packages: {', '.join(others)}" if others else ""
        raise BundleError(
            f"{name_or_path}: neither a file nor a shipped model; shipped models: "
            f"{', '.join(shipped()) or 'none'}{known}"
        )
    return path


def _registered_path(name: str) -> Path:
    """Ask the package that registers a model for its bundle."""
    point = next(iter(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)))
    owner = point.dist.name if point.dist is not None else "another package"
    try:
        found = point.load()
        path = Path(os.fspath(found() if callable(found) else found))
    except Exception as error:  # code of others fails in any way
        raise BundleError(
            f"{name}: registered by {owner} ({point.value}), which fails: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if not path.is_file():
        raise BundleError(f"{name}: registered by {owner}, which names {path}: there is no file")
    return path
