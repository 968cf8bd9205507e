"""Run the C++ test under the address sanitizer, and under valgrind.

    python plugin/tests/sanitize.py [FOLDER]

The address sanitizer sees the plugin compiled for it; valgrind the plugin that is installed. FOLDER
keeps what was compiled, for the next time. Exit code 0 if both find nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import openmm.version
import openmm_sd_native
import torch
from openmm_sd_native.__main__ import flags

HERE = Path(__file__).resolve().parent
TEST = HERE / "TestReferenceScoreDynamicsForce.cpp"
ADDRESS = "-g -O1 -fsanitize=address -fno-omit-frame-pointer"
# A Context that cannot be made is leaked by OpenMM itself: leaks are looked for without those.
RUNS = {"all": "detect_leaks=0:detect_stack_use_after_return=1", "leaks": "detect_leaks=1"}


def compile_for_address_sanitizer(folder: Path) -> tuple[Path, Path]:
    """Compile plugin and test; return the test and the folder of the kernels."""
    lib, source = folder / "lib", HERE.parent
    kinds = ("CXX", "SHARED_LINKER", "MODULE_LINKER")
    flags = [f"-DCMAKE_{kind}_FLAGS={ADDRESS}" for kind in kinds]
    configure = ["cmake", "-S", source, "-B", lib, f"-DPython_EXECUTABLE={sys.executable}", *flags]
    subprocess.run(configure, check=True)
    # The kernels need the library.
    kernels = ["--target", "OpenMMScoreDynamicsReference"]
    subprocess.run(["cmake", "--build", lib, "--parallel", *kernels], check=True)
    program = folder / "test-asan"
    openmm_lib = Path(openmm.version.openmm_library_path)
    subprocess.run(
        [
            *("c++", "-std=c++17", *shlex.split(ADDRESS), "-w", str(TEST), "-o", str(program)),
            *(f"-I{source / 'openmmapi/include'}", f"-I{openmm_lib.parent / 'include'}"),
            *(f"-L{lib}", f"-L{openmm_lib}", "-lOpenMMScoreDynamics", "-lOpenMM"),
            f"-Wl,-rpath,{lib}:{openmm_lib}:{Path(torch.__file__).parent / 'lib'}",
        ],
        check=True,
    )
    return program, lib


def main(folder: Path) -> int:
    """Compile and run."""
    subprocess.run([sys.executable, "-W", "ignore", HERE / "write_modules.py", folder], check=True)
    modules = [str(folder / "shift.pt"), str(folder / "fails.pt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    codes = []
    program = folder / "test"
    subprocess.run(["c++", "-g", "-O1", "-w", str(TEST), "-o", str(program), *flags()], check=True)
    print("valgrind:", flush=True)
    command = ["valgrind", "-q", "--error-exitcode=3", "--num-callers=30", str(program), *modules]
    command += [str(openmm_sd_native.PLUGINS), "all"]
    codes.append(subprocess.run(command, env=environment).returncode)

    program, kernels = compile_for_address_sanitizer(folder)
    for what, options in RUNS.items():
        print(f"address sanitizer, {what}:", flush=True)
        environment["ASAN_OPTIONS"] = options
        environment["LSAN_OPTIONS"] = f"suppressions={HERE / 'lsan.supp'}:print_suppressions=0"
        command = [str(program), *modules, str(kernels), what]
        codes.append(subprocess.run(command, env=environment).returncode)
    return 1 if any(codes) else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(exist_ok=True)
        sys.exit(main(Path(sys.argv[1]).resolve()))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(main(Path(made)))
