"""Architectures by name: a bundle says which network its weights belong to, not how to build it.

A bundle holds no code, so the class must already be installed. Names are looked up among the
classes registered in this process, then those of this package (imported only when asked for), then
the entry points ``openmm_sd.architectures`` of other installed packages::

    [project.entry-points."openmm_sd.architectures"]
    my-network = "my_package.network:MyNetwork"
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import torch

ENTRY_POINT_GROUP: Final = "openmm_sd.architectures"
"""Entry point group under which other packages offer architectures."""

_BUILT_IN: Final[dict[str, str]] = {
    "dense-diffusion": "openmm_sd.propagator.cartesian.dense:DenseDiffusion",
    "internal-diffusion": "openmm_sd.propagator.internal.single:InternalDiffusion",
    "family": "openmm_sd.propagator.internal.family:FamilyDiffusion",
    "transferable": "openmm_sd.propagator.internal.transferable:TransferableDiffusion",
    "identity": "openmm_sd.propagator.kernels:Identity",
    "shift": "openmm_sd.propagator.kernels:Shift",
    "rotation": "openmm_sd.propagator.kernels:Rotation",
    "ornstein-uhlenbeck": "openmm_sd.propagator.kernels:OrnsteinUhlenbeck",
}

_registered: dict[str, type[torch.nn.Module]] = {}


def register_architecture(name: str, cls: type[torch.nn.Module]) -> None:
    """Make a class known under a name, in this process.

    Parameters
    ----------
    name : str
        What bundles call it.
    cls : type
        A ``torch.nn.Module`` class that follows the propagator contract; ``cls(**hyperparameters)``
        must build it, and its instances must have the attribute ``hyperparameters``.

    Raises
    ------
    ValueError
        If the name is taken by another class.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name must be a non-empty string, got {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise ValueError(f"cls must be a subclass of torch.nn.Module, got {cls!r}")
    taken = _registered.get(name)
    if taken is not None and taken is not cls:
        raise ValueError(f"name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    if name in _BUILT_IN and _path(cls) != _BUILT_IN[name]:
        raise ValueError(f"name {name!r} is taken by openmm-sd's own {_BUILT_IN[name]}")
    _registered[name] = cls


def architecture(name: str) -> type[torch.nn.Module]:
    """Return the class of a name, one of :func:`known_architectures`.

    ValueError if nothing is known under that name, or what is known cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        return _checked(name, getattr(importlib.import_module(module), attribute))
    for point in _points():
        if point.name == name:
            try:
                return _checked(name, point.load())
            except (ImportError, AttributeError) as error:
                raise ValueError(
                    f"architecture {name!r} comes from {point.value}, which cannot be imported: "
                    f"{error}"
                ) from error
    raise ValueError(
        f"unknown architecture {name!r}; known are {', '.join(known_architectures())}; others "
        "need the package that defines them, or register_architecture(name, cls)"
    )


def architecture_name(cls: type[torch.nn.Module]) -> str | None:
    """Return the name of a class, or None if it has none: a subclass is another architecture."""
    for name, known in _registered.items():
        if known is cls:
            return name
    # Compared by their path, so that no package has to be imported to find out.
    for name, path in _BUILT_IN.items():
        if path == _path(cls):
            return name
    for point in _points():
        if point.value.replace(" ", "") == _path(cls):
            return point.name
    return None


def known_architectures() -> list[str]:
    """Return all names, sorted."""
    return sorted({*_registered, *_BUILT_IN, *(point.name for point in _points())})


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _checked(name: str, cls: Any) -> type[torch.nn.Module]:
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise ValueError(f"architecture {name!r} is {cls!r}, not a subclass of torch.nn.Module")
    return cls
