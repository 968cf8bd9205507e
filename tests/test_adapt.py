"""Adaptation: the loop to its end, killed and resumed, from nothing, and what it refuses."""

import copy
import functools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from openmm import app
from programs import launch

import openmm_sd
from openmm_sd import ScoreModel
from openmm_sd.adapt import AdaptSettings
from openmm_sd.adapt.laws import hold, pooled
from openmm_sd.analysis.verdicts import figure
from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.propagator.internal.transferable import TransferableDiffusion
from openmm_sd.propagator.kernels import Identity
from openmm_sd.system.force_field import IMPLICIT_FORCE_FIELD, make_system
from openmm_sd.system.solute import force_field_terms
from openmm_sd.train import TrainSettings

GLYCINE = Path(__file__).parents[1] / "data" / "peptides-water" / "ACE-GLY-NME.1.h5"
SMALL = {"width": 32, "heads": 4, "depth": 1, "encoder_depth": 1, "pair_width": 8, "n_calls": 2}
LITTLE = {
    "budget": "20m",
    "rounds": 1,
    "run_ps": 20.0,
    "round_ns": 0.08,
    "processes": 1,
    "lags": (2.0, 10.0),
}


# So little MD has Markov models that do not converge.
pytestmark = pytest.mark.filterwarnings("ignore:Reversible transition matrix")

#: What makes an adaptation short, whatever time it has.
CHANGES = {
    "openmm_sd.adapt.tuning.TrainSettings": functools.partial(
        TrainSettings, max_steps=3, report_seconds=0.0
    ),
    "openmm_sd.adapt.explore._CHAINS": 8,
    "openmm_sd.adapt.explore._STEPS": 3,
    "openmm_sd.adapt.driver._MOST_DRAWS": 128,
    "openmm_sd.adapt.tuning._WARM_UP_STEPS": 1,
    # Compiling takes most of the time.
    "openmm_sd.rollout.rollout.script_if_possible": copy.copy,
}


@pytest.fixture(scope="module")
def structure(tmp_path_factory):
    molecule = read_dataset(GLYCINE).molecule
    path = tmp_path_factory.mktemp("structure") / "gly.pdb"
    with open(path, "w") as file:
        app.PDBFile.writeFile(molecule.to_topology(), 10.0 * molecule.positions, file)
    return path


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """An untrained model that serves any molecule."""
    molecule = read_dataset(GLYCINE).molecule
    torch.manual_seed(3)
    system = make_system(
        IMPLICIT_FORCE_FIELD,
        molecule.to_topology(),
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
    )
    terms = force_field_terms(system, range(molecule.n_atoms))
    network = TransferableDiffusion.for_molecule(
        molecule, terms=terms, lag_min_ps=1.0, lag_max_ps=20.0, **SMALL
    )
    card = {
        "temperature_K": 300.0,
        "constraints": "HBonds",
        "solvent": "implicit",
        "force_field": list(IMPLICIT_FORCE_FIELD),
        "lag_range_ps": [1.0, 20.0],
        "recommended_lag_ps": 10.0,
        "data": {"temperature_K": 300.0, "friction_per_ps": 2.0, "step_fs": 4.0},
    }
    path = tmp_path_factory.mktemp("family") / "family.safetensors"
    ScoreModel(network, molecule, card).save(path)
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name, value in CHANGES.items():
        monkeypatch.setattr(name, value)


def test_a_family_becomes_a_model_of_the_molecule(family, structure, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    said = []
    settings = AdaptSettings(**LITTLE)
    result = openmm_sd.adapt(
        family, structure, out, settings, rounds=2, progress=lambda *line: said.append(line)
    )
    folder = tmp_path / "mine.safetensors.adapt"
    assert [one["ns"] for one in result["rounds"]] == pytest.approx([0.08] * 3)
    assert [one["training"] is not None for one in result["rounds"]] == [True, True, False]
    assert result["core_hours"]["md"] > 0.0
    assert result["core_hours"]["training"] > 0.0
    assert any("laws after 0.08 ns of MD" in line for _, line in said)
    data = read_dataset(folder / "md-0.h5")
    assert data.provenance["friction_per_ps"] == 2.0, "MD as the model's was"
    assert data.provenance["water"] == "implicit"
    with np.load(folder / "goals-1.npz") as file:
        goals = np.rad2deg(file["goals"])
    for run, goal in zip(read_dataset(folder / "md-1.h5").runs, goals, strict=True):
        assert run.info["start_deg"] == pytest.approx(goal.tolist(), abs=1e-2)
    # The second round knew what is novel, and two halves to compare.
    assert result["rounds"][0]["explored"]["novel"] is None
    assert result["rounds"][1]["explored"]["novel"] is not None
    assert result["rounds"][1]["explored"]["disagreement"] > 0.0
    model = ScoreModel.load(out).only()
    assert model.molecules[0].name == "ACE-GLY-NME"
    assert model.novelty is not None
    card = model.card
    assert card.adaptation["parent"] == str(family)
    assert card.adaptation["rounds"][0]["data"]["file"] == "md-0.h5"
    assert set(card.fidelity["one_step"]) == {"2", "10"}
    assert card.lag_range == (1.0, 20.0)
    assert [entry["file"] for entry in card.training["data_sets"]] == ["md-0.h5", "md-1.h5"]
    page = (folder / "report.html").read_text()
    assert "What each round bought" in page
    assert "Jumps of 10 ps" in page
    assert not list(folder.glob("half-*"))

    # The same again is done; another molecule or setting is refused.
    again = openmm_sd.adapt(family, structure, out, settings, rounds=2)
    assert again["sha256"] == result["sha256"]
    words = ["adapt", str(family), str(structure), "-o", str(out), "--lags", "2,10"]
    assert main([*words, "--run-ps", "30"]) == 2
    assert "run_ps 20.0 there, 30.0 here" in capsys.readouterr().err


def test_killed_it_goes_on(family, structure, tmp_path):
    out = tmp_path / "mine.safetensors"
    folder = tmp_path / "mine.safetensors.adapt"
    words = ["adapt", str(family), str(structure), "-o", str(out), "--lags", "2,10"]
    words += [
        "--run-ps",
        "20",
        "--processes",
        "1",
        "--round-ns",
        "0.08",
        "--rounds",
        "1",
        "--budget",
        "20m",
    ]
    for awaited in ("md-0.h5", "model-1.safetensors"):
        process = launch(*words, folder=tmp_path, changes=CHANGES)
        while not (folder / awaited).exists():
            assert process.running, process.stderr
            time.sleep(0.02)
        if awaited == "md-0.h5":
            with pytest.raises(ValueError, match="another adaptation is writing"):
                openmm_sd.adapt(family, structure, out, AdaptSettings(**LITTLE))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    spent = json.loads((folder / "state.json").read_text())["seconds"]
    result = openmm_sd.adapt(family, structure, out, AdaptSettings(**LITTLE))
    assert result["seconds"] > spent > 0.0
    assert len(result["rounds"]) == 2
    assert result["ns"] == pytest.approx(0.16)
    assert ScoreModel.load(out).only().card.adaptation["finished"] == result["finished"]


def test_from_nothing(structure, tmp_path):
    out = tmp_path / "mine.safetensors"
    settings = AdaptSettings(from_scratch=True, solvent="implicit", **LITTLE)
    result = openmm_sd.adapt(None, structure, out, settings)
    assert result["parent"] is None
    assert result["rounds"][0]["laws"] == {}
    assert set(result["rounds"][1]["laws"]) == {"2", "10"}
    assert ScoreModel.load(out).only().card.adaptation["parent"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ala2-water", "PDB"], "serves no molecules but its own"),
        (["PDB"], "name one, or begin with none"),
        (["PDB", "--from-scratch"], "say explicit or implicit"),
        (["FAMILY", "PDB", "--solvent", "implicit"], "the model says it"),
        (["FAMILY", "PDB", "--budget", "soon"], "a time such as 90s, 30m or 2h"),
        (["FAMILY", "PDB", "--lags", "10,500"], "twice the longest of the lags"),
        (["FAMILY", "PDB", "--lags", "0.5"], "outside the 1 to 20 ps"),
        (["FAMILY", "WATER", "--lags", "10"], "waters"),
        (
            ["FAMILY", "PDB", "--lags", "10", "--budget", "1s", "--processes", "1"],
            "too small for one round",
        ),
    ],
)
def test_what_is_refused(words, said, family, structure, tmp_path, water_box, capsys):
    water = tmp_path / "water.pdb"
    with open(water, "w") as file:
        app.PDBFile.writeFile(water_box.topology, 10.0 * water_box.positions, file)
    known = {"PDB": str(structure), "FAMILY": str(family), "WATER": str(water)}
    out = tmp_path / "mine.safetensors"
    assert main(["adapt", *(known.get(word, word) for word in words), "-o", str(out)]) == 2
    captured = capsys.readouterr().err.splitlines()
    assert said in captured[-1]
    assert captured[-1].startswith("openmm-sd")
    assert not out.exists()


def test_another_bundle_is_not_replaced(family, structure, tmp_path):
    out = tmp_path / "mine.safetensors"
    ScoreModel(Identity(3), _three()).save(out)
    with pytest.raises(ValueError, match="exists; choose another name"):
        openmm_sd.adapt(family, structure, out)


def _three():
    from small_molecules import make

    return make("water", [1, 8, 1], [(0, 1), (1, 2)], np.eye(3) * 0.1)


def test_pooled_figures_leave_out_what_errors_explain():
    rng = np.random.default_rng(1)
    true = rng.uniform(0.1, 0.9, 400)
    for off in (0.0, 0.2):
        figures = [
            figure(p * (1 + off) + 0.02 * rng.normal(), 0.02, (p + 0.01 * rng.normal(), 0.01))
            for p in true
        ]
        found = pooled(figures)
        assert found["deviation"] == pytest.approx(off, abs=0.02)
        assert found["resolution"] == pytest.approx(0.04, abs=0.01)
    assert pooled([figure(0.5, 0.0, (0.5, 0.0)), figure(float("nan"), 0.1, (0.5, 0.1))]) is None
    good = {"hops": {"deviation": 0.05, "resolution": 0.08}, "turning": None}
    assert hold({"10": good}, 0.1)
    assert not hold({"10": {**good, "hops": {"deviation": 0.05, "resolution": 0.2}}}, 0.1)
    assert not hold({"10": {"hops": None, "turning": None}}, 0.1)
