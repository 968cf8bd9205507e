"""Finds the OpenMM and the torch to build for; as a program it tells CMake where they are.

Wheels have headers and libraries beside the Python package, conda has them in the environment's
folders. Neither package is imported, which takes many seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

QUESTION = """
import importlib.util, json, os, runpy, sys
found = {"prefix": sys.prefix}
for name, version in {"torch": "__version__", "openmm": "short_version"}.items():
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        found = {"missing": name}
        break
    folder = os.path.dirname(os.path.abspath(spec.origin))
    found[name + "_version"] = str(runpy.run_path(os.path.join(folder, "version.py"))[version])
    found[name] = folder
print(json.dumps(found))
"""
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


class CannotBuild(Exception):
    """A sentence for the user."""


@dataclass(frozen=True)
class Found:
    """Where OpenMM and torch are.

    Attributes
    ----------
    openmm_version, torch_version : str
        Their versions, torch's with what it was built for: 2.12.1+cu130.
    openmm_include, torch_include : Path
        Folders of headers.
    openmm_library, torch_library : Path
        Folders of libraries.
    site : Path
        The folder that holds the Python package torch, and will hold openmm_sd_native.
    """

    openmm_version: str
    torch_version: str
    openmm_include: Path
    openmm_library: Path
    torch_include: Path
    torch_library: Path
    site: Path


@cache
def locate() -> Found:
    """Look in the environment of this Python, then in the one that a front end builds in."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    # pip builds with PYTHONPATH set to an environment without torch; this one may have it.
    answer = _ask(own)
    if "missing" in answer:
        answer = _ask(dict(os.environ))
    if "missing" in answer:
        raise CannotBuild(
            f"{answer['missing']} is not installed; install openmm and torch first, the plugin is "
            "built for the ones that are there"
        )
    prefix, torch = Path(answer["prefix"]), Path(answer["torch"])
    wheel = Path(answer["openmm"]).parent / "OpenMM.libs"
    found = Found(
        answer["openmm_version"],
        answer["torch_version"],
        _holding("include", "openmm/common/ComputeContext.h", wheel, prefix),
        _holding("lib", f"libOpenMM{SUFFIX}", wheel, prefix),
        _holding("include", "torch/script.h", torch, prefix),
        _holding("lib", f"libtorch_cpu{SUFFIX}", torch, prefix),
        torch.parent,
    )
    if sys.platform == "linux":
        cores = (found.torch_library / "libc10.so", found.openmm_library / "libOpenMM.so")
        if not all(b"__cxx11" in core.read_bytes() for core in cores):
            raise CannotBuild(
                f"torch {found.torch_version} and OpenMM {found.openmm_version} were compiled for "
                "different C++ ABIs; torch 2.7 or newer and OpenMM 8.2 or newer fit together"
            )
    return found


def _ask(environment: dict[str, str]) -> dict[str, str]:
    command = [sys.executable, "-c", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise CannotBuild(f"looking for OpenMM and torch failed: {done.stderr.strip()[-400:]}")
    return json.loads(lines[-1])


def _holding(kind: str, file: str, *roots: Path) -> Path:
    """Return the first `kind` of these roots that holds a file."""
    folders = [root / kind for root in roots]
    for folder in folders:
        if (folder / file).exists():
            return folder
    raise CannotBuild(
        f"there is no {file} in {' or '.join(map(str, folders))}; OpenMM 8.6 or newer and torch "
        "2.9 or newer bring it, from PyPI or conda-forge"
    )


def main() -> None:
    """Print a list for CMake, in the order in which CMakeLists.txt reads it."""
    try:
        found = locate()
    except CannotBuild as error:
        sys.exit(str(error))
    places = (found.openmm_include, found.openmm_library, found.torch_include, found.torch_library)
    site = [os.path.relpath(p, found.site) for p in (found.openmm_library, found.torch_library)]
    print(";".join([found.openmm_version, found.torch_version, *map(str, places), *site]), end="")


if __name__ == "__main__":
    main()
