"""Build the plugin against the OpenMM and the torch that are installed.

Nothing but a C++ compiler is needed: both wheels bring their headers and libraries, and OpenMM
compiles GPU kernels itself, at run time.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

VERSION = "0.1.0"
HERE = Path(__file__).resolve().parent
PACKAGE = "openmm_sd_native"

# Library -> its sources; the kernels that OpenMM compiles at run time serve OpenCL and CUDA alike.
COMMON = "platforms/common/src/CommonScoreDynamicsKernels.cpp"
CORE = [
    "openmmapi/src/JumpModule.cpp",
    "openmmapi/src/ModuleParts.cpp",
    "openmmapi/src/PackagedPropagator.cpp",
    "openmmapi/src/ScoreDynamicsForce.cpp",
    "openmmapi/src/ScoreDynamicsForceImpl.cpp",
    "serialization/src/Base64.cpp",
    "serialization/src/ScoreDynamicsForceProxy.cpp",
]
REFERENCE = [
    "platforms/reference/src/ReferenceScoreDynamicsKernelFactory.cpp",
    "platforms/reference/src/ReferenceScoreDynamicsKernels.cpp",
]
GPU = {
    "OpenCL": [COMMON, "platforms/opencl/src/OpenCLScoreDynamicsKernelFactory.cpp"],
    "CUDA": [COMMON, "platforms/cuda/src/CudaScoreDynamicsKernelFactory.cpp"],
}
INCLUDES = ["openmmapi/include", "serialization/src", "platforms/common/src"]

# Asked of the environment's own Python: pip builds in an environment that holds neither package.
# Neither is imported, which takes many seconds, and pip asks more than once.
QUESTION = """
import importlib.util, json, os, runpy
found = {}
for name, version in {"torch": "__version__", "openmm": "short_version"}.items():
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        found = {"missing": name}
        break
    folder = os.path.dirname(os.path.abspath(spec.origin))
    found[name] = runpy.run_path(os.path.join(folder, "version.py"))[version]
    found[name + "_folder"] = folder
print(json.dumps(found))
"""


class CannotBuild(SystemExit):
    """Ends the build with a sentence for the user."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"\nopenmm-sd-native cannot be built: {reason}\n"
            "openmm-sd itself does not need it: bridge='pythonforce' does the same work.\n"
        )


@cache
def installed() -> dict:
    """Which OpenMM and torch there are, and where."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", QUESTION], capture_output=True, text=True, env=environment
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise CannotBuild(f"looking for OpenMM and torch failed: {done.stderr.strip()[-400:]}")
    found = json.loads(lines[-1])
    if "missing" in found:
        raise CannotBuild(
            f"{found['missing']} is not installed; install openmm and torch first, the plugin is "
            "built for the ones that are there"
        )
    found["openmm_folder"] = str(Path(found["openmm_folder"]).parent / "OpenMM.libs")
    if not Path(found["openmm_folder"], "include/openmm/common/ComputeContext.h").exists():
        raise CannotBuild(
            f"there are no OpenMM headers in {found['openmm_folder']}; 'pip install openmm' "
            "(8.6 or newer) brings them"
        )
    cores = (
        Path(found["torch_folder"], "lib/libc10.so"),
        Path(found["openmm_folder"], "lib/libOpenMM.so"),
    )
    if not all(b"__cxx11" in core.read_bytes() for core in cores):
        raise CannotBuild(
            f"torch {found['torch']} and OpenMM {found['openmm']} were compiled for different C++ "
            "ABIs; wheels of torch 2.7 or newer and OpenMM 8.2 or newer fit together"
        )
    return found


def full_version() -> str:
    """This version, with what it is built for: ``0.1.0+openmm.8.6.1.torch.2.12.1.cu130``."""
    found = installed()
    return f"{VERSION}+openmm.{found['openmm']}.torch.{found['torch'].replace('+', '.')}"


class Toolchain:
    """The compiler, and where it finds OpenMM and torch."""

    def __init__(self, objects: Path) -> None:
        found = installed()
        self.objects = objects
        self.openmm = Path(found["openmm_folder"])
        self.torch = Path(found["torch_folder"])
        command = shlex.split(os.environ.get("CXX", ""))
        if not command:
            name = next((n for n in ("c++", "g++", "clang++") if shutil.which(n)), None)
            if name is None:
                raise CannotBuild(
                    "there is no C++ compiler (on Debian or Ubuntu: apt-get install g++)"
                )
            command = [name]
        elif shutil.which(command[0]) is None:
            raise CannotBuild(f"the compiler that CXX names, {command[0]}, is not there")
        self.command = command
        # Torch went from C++17 to C++20 with 2.10 to 2.13.
        newer = tuple(int(n) for n in found["torch"].split(".")[:2]) >= (2, 10)
        self.flags = [f"-std=c++{20 if newer else 17}", "-O2", "-fPIC", "-Wall"]
        # Torch's headers then bring the operators that a file asks for and not all 2,000, whose
        # parsing takes a third of the time.
        self.flags.append("-DAT_PER_OPERATOR_HEADERS")
        self.flags += [*shlex.split(os.environ.get("CXXFLAGS", "")), "-D_GLIBCXX_USE_CXX11_ABI=1"]
        self.flags += [f"-I{HERE / folder}" for folder in INCLUDES]
        # Warnings about other people's headers are theirs.
        for folder in (
            self.openmm / "include",
            self.torch / "include",
            self.torch / "include/torch/csrc/api/include",
        ):
            self.flags += ["-isystem", str(folder)]

    def compile(self, source: str) -> Path:
        """Compile one source file."""
        target = self.objects / (Path(source).stem + ".o")
        self._run([*self.command, *self.flags, "-c", str(HERE / source), "-o", str(target)])
        return target

    def link(self, target: Path, objects: list[Path], libraries: list[str], up: str) -> None:
        """Link a shared library that finds the others from where it lies, ``up`` the package."""
        target.parent.mkdir(parents=True, exist_ok=True)
        folders = [self.openmm / "lib", self.openmm / "lib/plugins", self.torch / "lib"]
        # Beside each other in one site-packages, as pip puts them; else where they are now.
        relative = [
            f"$ORIGIN/{up}/../{'/'.join(f.parts[-n:])}"
            for f, n in zip(folders, (2, 3, 2), strict=True)
        ]
        paths = ["$ORIGIN", "$ORIGIN/..", *relative, *map(str, folders)]
        self._run([
            *self.command, "-shared", "-o", str(target), *map(str, objects),
            *shlex.split(os.environ.get("LDFLAGS", "")),
            *(f"-L{folder}" for folder in (target.parent, target.parent.parent, *folders)),
            *libraries, "-Wl,-rpath," + ":".join(paths),
        ])  # fmt: skip

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        sys.stderr.write(done.stderr)
        if done.returncode:
            raise CannotBuild(f"'{shlex.join(command)}' failed, see above")


class BuildLibraries(build_py):
    """Put the compiled libraries and the public header beside the Python files."""

    def run(self) -> None:
        """Build."""
        super().run()
        package = Path(self.build_lib) / PACKAGE
        objects = Path(self.get_finalized_command("build").build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        tools = Toolchain(objects)
        sources = list(dict.fromkeys([*CORE, *REFERENCE, *(s for g in GPU.values() for s in g)]))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = dict(zip(sources, pool.map(tools.compile, sources), strict=True))

        def of(names: list[str]) -> list[Path]:
            return [compiled[name] for name in names]

        lib = package / "lib"
        torch = ["-ltorch_cpu", "-lc10"]
        core = "libOpenMMScoreDynamics"
        strict = "-Wl,-z,defs"
        named = f"-Wl,-soname,{core}.so"
        tools.link(lib / f"{core}.so", of(CORE), ["-lOpenMM", *torch, strict, named], "..")
        mine = ["-lOpenMMScoreDynamics", "-lOpenMM", *torch]
        plugins = lib / "plugins"
        tools.link(plugins / f"{core}Reference.so", of(REFERENCE), [*mine, strict], "../..")
        for platform, names in GPU.items():
            # What OpenMM's library for the platform defines is found when OpenMM has loaded it,
            # so that this one can be built before a GPU's packages are there.
            extra = [f"-lOpenMM{platform}"]
            if not (tools.openmm / f"lib/plugins/libOpenMM{platform}.so").exists():
                extra = []
            if platform == "CUDA" and (tools.torch / "lib/libtorch_cuda.so").exists():
                # Nothing refers to it; loading it is what gives torch its GPU.
                extra += ["-Wl,--no-as-needed", "-ltorch_cuda"]
            tools.link(plugins / f"{core}{platform}.so", of(names), [*mine, *extra], "../..")
        include = package / "include"
        include.mkdir(exist_ok=True)
        shutil.copy(HERE / "openmmapi/include/ScoreDynamicsForce.h", include)
        found = installed()
        built_for = {"openmm": found["openmm"], "torch": found["torch"]}
        (package / "built_for.json").write_text(json.dumps(built_for))


class BinaryDistribution(Distribution):
    """A wheel for this platform only."""

    def has_ext_modules(self) -> bool:
        """Say yes: the libraries are no Python extensions, but compiled all the same."""
        return True


if __name__ == "__main__":
    setup(
        version=full_version(),
        cmdclass={"build_py": BuildLibraries},
        distclass=BinaryDistribution,
    )
