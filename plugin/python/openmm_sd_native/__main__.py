"""Compiler flags for C++ programs that use the plugin: ``python -m openmm_sd_native --flags``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from . import INCLUDE, LIBRARY, PLUGINS, built_for


def flags() -> list[str]:
    """Return what a compiler needs to be told, for compiling and linking at once."""
    import openmm.version

    openmm_library = Path(openmm.version.openmm_library_path)
    include = openmm_library.parent / "include"
    return [
        "-std=c++17",
        f"-I{INCLUDE}",
        f"-I{include}",
        f"-L{LIBRARY}",
        f"-L{openmm_library}",
        f"-Wl,-rpath,{LIBRARY}:{openmm_library}",
        "-lOpenMMScoreDynamics",
        "-lOpenMM",
    ]


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m openmm_sd_native", description=__doc__)
    parser.add_argument("--flags", action="store_true", help="flags of the C++ compiler")
    parser.add_argument("--plugins", action="store_true", help="folders with kernels, OpenMM's too")
    arguments = parser.parse_args()
    if arguments.flags:
        print(shlex.join(flags()))
    if arguments.plugins:
        import openmm.version

        print(f"{openmm.version.openmm_library_path}/plugins:{PLUGINS}")
    if not (arguments.flags or arguments.plugins):
        print("built for " + ", ".join(f"{k} {v}" for k, v in built_for().items()))


if __name__ == "__main__":
    main()
