"""What the three packages say of themselves agrees, and what they may hold."""

import importlib.util
import re
import sys
import tomllib
import zlib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from openmm_sd import __version__

ROOT = Path(__file__).parents[1]


def project(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def test_every_package_has_the_same_version():
    assert project("plugin")["project"]["version"] == __version__
    assert project("models")["project"]["version"] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    recipes = sorted((ROOT / "conda").glob("*/meta.yaml"))
    assert [recipe.parent.name for recipe in recipes] == ["openmm-sd", "openmm-sd-native"]
    for recipe in recipes:
        (version,) = re.findall(r'set version = "(.*)"', recipe.read_text())
        assert version == __version__


def test_the_extras_take_this_version():
    extras = project(".")["project"]["optional-dependencies"]
    minor = ".".join(__version__.split(".")[:2])
    for name in ("native", "models"):
        assert extras[name] == [f"openmm-sd-{name}=={minor}.*"]


def test_the_wheel_holds_every_file_of_the_package():
    patterns = project(".")["tool"]["setuptools"]["package-data"]["openmm_sd"]
    package = ROOT / "openmm_sd"
    for file in package.rglob("*"):
        if file.is_file() and file.suffix not in (".py", ".pyc") and not file.name.startswith("."):
            assert any(fnmatch(str(file.relative_to(package)), each) for each in patterns), file


def test_the_wheel_stays_below_20_mb():
    left_out = project(".")["tool"]["setuptools"]["exclude-package-data"]["openmm_sd"]
    others = [ROOT / "openmm_sd" / name for name in left_out]
    kept = {file.name for file in (ROOT / "models" / "openmm_sd_models").glob("*.safetensors")}
    assert {file.name for file in others} == kept
    files = [f for f in (ROOT / "openmm_sd").rglob("*") if f.suffix != ".pyc" and f not in others]
    size = sum(len(zlib.compress(file.read_bytes())) for file in files if file.is_file())
    assert 5e6 < size < 20e6


@pytest.fixture
def locate(monkeypatch, tmp_path):
    """The plugin's locate.py, in a world of the test's own."""
    spec = importlib.util.spec_from_file_location("locate", ROOT / "plugin" / "locate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "locate", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SUFFIX", ".so")
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    answer = {"prefix": str(tmp_path), "torch": f"{site}/torch", "openmm": f"{site}/openmm"}
    answer |= {"torch_version": "2.9.1", "openmm_version": "8.6.1"}
    monkeypatch.setattr(module, "_ask", lambda environment: answer)
    return module


def fill(include, library, *names):
    """Headers and libraries, as far as they are looked for."""
    for name in names:
        file = (library if name.endswith(".so") else include) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"...__cxx11...")


OPENMM = ("openmm/common/ComputeContext.h", "libOpenMM.so")
TORCH = ("torch/script.h", "libtorch_cpu.so", "libc10.so")


def test_the_plugin_finds_what_wheels_and_conda_install(locate, tmp_path):
    """Wheels beside their Python packages, conda in the folders of the environment."""
    include, library = tmp_path / "include", tmp_path / "lib"
    fill(include, library, *OPENMM)
    with pytest.raises(locate.CannotBuild, match="there is no torch/script.h in .*torch/include"):
        locate.locate()
    fill(include, library, *TORCH)
    found = locate.locate()
    assert (found.openmm_include, found.torch_include) == (include, include)
    assert (found.openmm_library, found.torch_library) == (library, library)
    wheel = found.site / "torch"
    fill(wheel / "include", wheel / "lib", *TORCH)
    locate.locate.cache_clear()
    assert locate.locate().torch_library == wheel / "lib"
    (wheel / "lib" / "libc10.so").write_bytes(b"of another time")
    locate.locate.cache_clear()
    if sys.platform == "linux":
        with pytest.raises(locate.CannotBuild, match="different C\\+\\+ ABIs"):
            locate.locate()
