"""The version, in one place, and those of what takes part."""

import functools

__version__ = "0.1.0"

_PACKAGES = ("openmm-sd", "openmm", "torch", "openmmtorch", "numpy", "mdtraj", "h5py")
# Builds of openmm-torch, each of which brings the module openmmtorch; they exclude one another.
_BUILDS = {
    "openmmtorch": {
        "acellera-openmmtorch-cpu": "+cpu",
        "acellera-openmmtorch-cu12": "+cu12",
        "acellera-openmmtorch-cu13": "+cu13",
        "openmmtorch": "",
    }
}


def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are here, "-" made "_".

    ``openmmtorch`` is whichever build of openmm-torch is here, written as torch does: 1.10+cpu.
    """
    import platform

    found = {package.replace("-", "_"): _version(package) for package in packages}
    known = {name: version for name, version in found.items() if version is not None}
    return {"python": platform.python_version(), **known}


@functools.cache
def _version(package: str) -> str | None:
    # Takes longer to import than this package.
    import importlib.metadata

    for name, build in _BUILDS.get(package, {package: ""}).items():
        try:
            return importlib.metadata.version(name) + build
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
