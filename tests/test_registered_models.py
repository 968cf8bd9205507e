"""Models that other packages register: an entry point is a name and a path, or makes one."""

import json

import pytest

from openmm_sd import BundleError, ScoreModel
from openmm_sd.cli import main
from openmm_sd.propagator.kernels import Identity
from openmm_sd.system.fitting import fitting_model, fitting_models

MODULE = """
from pathlib import Path

PATH = Path(__file__).with_name("one.safetensors")
GONE = "/nowhere/at/all.safetensors"


def text():
    return str(PATH)


def breaks():
    raise RuntimeError("its licence\\nhas run out")
"""
POINTS = """[openmm_sd.models]
a-path = other_models:PATH
a-function = other_models:text
ala2-water = other_models:PATH
broken = other_models:breaks
gone = other_models:GONE
missing = no_such_module:PATH
"""


@pytest.fixture
def other_package(ala2, tmp_path, monkeypatch):
    """A package on the path that registers models, most of them badly."""
    (tmp_path / "other_models.py").write_text(MODULE)
    info = tmp_path / "other_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    ScoreModel(Identity(ala2.n_atoms), ala2).save(tmp_path / "one.safetensors")
    monkeypatch.syspath_prepend(tmp_path)


def test_by_name(other_package):
    names = ["a-function", "a-path", "broken", "gone", "missing"]
    assert ScoreModel.registered() == names
    for name in names[:2]:
        model = ScoreModel.load(name)
        assert model.name == name
        assert isinstance(model.propagator, Identity)


def test_a_shipped_name_is_not_taken(other_package):
    assert not isinstance(ScoreModel.load("ala2-water").propagator, Identity)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "registered by other-models .*RuntimeError: its licence has run out"),
        ("gone", "registered by other-models, which names /nowhere/at/all.safetensors"),
        ("missing", "no_such_module"),
        ("neither", "registered by other packages: a-function, a-path"),
    ],
)
def test_broken_ones_say_why(other_package, name, said):
    with pytest.raises(BundleError, match=said):
        ScoreModel.load(name)


def test_broken_ones_do_not_break_the_rest(other_package, ala2, capsys):
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    names = [model["name"] for model in listed["models"]]
    assert names == [*ScoreModel.shipped(), "a-function", "a-path"]
    assert set(listed["broken"]) == {"broken", "gone", "missing"}
    assert main(["models"]) == 0
    assert "cannot be loaded" in capsys.readouterr().out
    fitting, reasons = fitting_models(ala2.to_topology())
    assert list(fitting) == ["ala2-water", "a-function", "a-path"]
    assert "licence" in reasons["broken"]
    # What ships with the package comes first.
    assert fitting_model(ala2.to_topology()).name == "ala2-water"


def test_without_any(ala2):
    assert ScoreModel.registered() == []
    assert list(fitting_models(ala2.to_topology())[0]) == ["ala2-water"]
