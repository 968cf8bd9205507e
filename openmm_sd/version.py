"""The version, in one place, and those of what takes part."""

import functools
import importlib.metadata
import platform as machine

__version__ = "0.1.0"

_PACKAGES = ("openmm-sd", "openmm", "torch", "openmmtorch", "numpy", "mdtraj", "h5py")


def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are here, "-" made "_"."""
    found = {package.replace("-", "_"): _version(package) for package in packages}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": machine.python_version(), **known}


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
