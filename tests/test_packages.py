"""What the three packages say of themselves agrees, and what they may hold."""

import re
import tomllib
import zlib
from fnmatch import fnmatch
from pathlib import Path

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
    files = [file for file in (ROOT / "openmm_sd").rglob("*") if file.suffix != ".pyc"]
    size = sum(len(zlib.compress(file.read_bytes())) for file in files if file.is_file())
    assert 5e6 < size < 20e6
