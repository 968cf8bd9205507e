"""The version, in one place."""

import contextlib
import functools
import importlib.metadata
import platform as machine

__version__ = "0.1.0"

_PACKAGES = ("openmm-sd", "openmm", "torch", "openmmtorch", "numpy", "mdtraj", "h5py")


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": machine.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package.replace("-", "_")] = importlib.metadata.version(package)
    return found
