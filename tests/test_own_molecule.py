"""A molecule of one's own, end to end: the commands of docs/own-molecule.md, and the example."""

import contextlib
import io
import json
import re
import runpy
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from words import shortened

from openmm_sd import ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.files.atomic import file_sha256
from openmm_sd.prepare import read_prepared
from openmm_sd.validate import plots

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_molecule.py"
PDB = ROOT / "examples" / "ace-gly-nme.pdb"
FORCE_FIELD = ["amber99sbildn.xml", "amber99_obc.xml"]
# The least of everything; a later option replaces an earlier one.
SMALL = {
    "prepare": "--equilibration 0.2",
    "generate": "--plain 2 --plain-ps 60 --seeded 2 --seeded-ps 20 --processes 1 --warm-up 1 "
    "--pull 6",
    "train": "--max-steps 20 --width 32 --depth 1 --lag-max 20 --held-out 0.4",
    "validate": "--lags 10 --chains 8 --steps 10",
    "run": "--effective-ns 0.03 --lag 10 --bridge pythonforce",
}


LITTLE = {
    '"seeded_ps": 100}': '"seeded_ps": 5, "warm_up_ps": 1, "pull_ps": 6}',
    "**amount))": "**amount), processes=1)",
    "StageSettings(": "StageSettings(held_out=0.3, ",
    "PrepareSettings(": "PrepareSettings(equilibration_ps=0.2, ",
    "ValidateSettings(": "ValidateSettings(chains=8, ",
}


@pytest.fixture(scope="module")
def no_pictures():
    """The validation's pictures take longer than all else; test_validate draws them.

    Nor is there the model that ships for such molecules.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreModel, "shipped", lambda: ["ala2-water"])
        patch.setattr(plots, "draw_all", lambda *arguments: [])
        yield


@pytest.fixture(scope="module")
def walked(no_pictures, tmp_path_factory):
    """A folder in which the page's commands were given, and what each printed, by its output."""
    (block,) = re.findall(
        r"```sh\n(.*?)```", (ROOT / "docs" / "own-molecule.md").read_text(), flags=re.DOTALL
    )
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(PDB, folder)
    said = {}
    with contextlib.chdir(folder):
        for line in block.strip().splitlines():
            program, command, *words = line.split()
            assert program == "openmm-sd"
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                code = main([*shortened([command, *words], SMALL[command]), "--json"])
            assert code == 0, line
            said[words[words.index("-o") + 1]] = json.loads(printed.getvalue())
    return folder, said


def test_every_stage_leaves_what_the_next_one_takes(walked):
    folder, said = walked
    assert list(said) == ["gly", "gly.h5", "gly.safetensors", "gly-md.h5", "report", "run"]
    assert read_prepared(folder / "gly").box_vectors is None
    data, more = (read_dataset(folder / name) for name in ("gly.h5", "gly-md.h5"))
    assert [run.kind for run in data.runs] == ["plain"] * 2 + ["seeded"] * 2
    assert {run.n_frames for run in data.runs} == {61, 21}
    assert not np.array_equal(data.runs[0].positions, more.runs[0].positions)
    report = json.loads((folder / "report" / "validation.json").read_text())
    assert report["lags"]["10"]["jsd_phi_psi_bits"]["value"] > 0
    assert report["reference"]["frames"] == 2 * 61
    frames = mdtraj.load(folder / "run" / "trajectory.xtc", top=folder / "run" / "topology.pdb")
    assert (frames.n_atoms, frames.n_frames) == (19, said["run"]["frames"])
    assert said["run"]["jumps_tried"] >= 1
    assert said["run"]["effective_time_ps"] >= 30.0
    for page in ("report/validation.html", "run/report.html"):
        assert "<html" in (folder / page).read_text()


def test_what_was_done_is_passed_on(walked):
    folder, said = walked
    assert said["gly"]["settings"]["solvent"] == "implicit"
    assert said["gly"]["next"][0].endswith("--solvent implicit")
    bundle, model = folder / "gly.safetensors", ScoreModel.load(folder / "gly.safetensors")
    for made_with in (
        said["gly"]["settings"]["force_field"],
        read_dataset(folder / "gly.h5").provenance["force_field"],
        model.card["force_field"],
        said["run"]["force_field"],
    ):
        assert made_with == FORCE_FIELD
    sources = [{"file": "gly.h5", "sha256": file_sha256(folder / "gly.h5")}]
    assert model.card["training"]["data_sets"] == sources
    assert model.card["data"]["temperature_K"] == said["run"]["temperature_K"] == 300.0
    assert model.molecules[0].formula == "C5H10N2O2"
    assert said["run"]["model"]["sha256"] == file_sha256(bundle)
    assert said["report"]["model"] == "gly.safetensors"
    # The run is where the model was trained, and no note says otherwise.
    assert not [note for note in said["run"]["notes"] if "trained" in note]


def test_the_validation_without_a_reference_takes_what_was_held_out(walked, capsys):
    folder, _ = walked
    words = ["--lags", "10", "--chains", "4", "--steps", "5", "--json"]
    with contextlib.chdir(folder):
        assert main(["validate", "gly.safetensors", "-o", "own", *words]) == 0
        report = json.loads(capsys.readouterr().out)
        assert "held out" in report["notes"][0]
        shutil.copy("gly-md.h5", "gly.h5.kept")
        Path("gly.h5").rename("elsewhere.h5")
        assert main(["validate", "gly.safetensors", "-o", "none", *words]) == 2
        assert "gly.h5 is not next to the bundle" in capsys.readouterr().err
        Path("gly.h5.kept").rename("gly.h5")
        assert main(["validate", "gly.safetensors", "-o", "none", *words]) == 2
        assert "gly.h5 is not the file that it was trained on" in capsys.readouterr().err
        assert not Path("none").exists()
        Path("elsewhere.h5").rename("gly.h5")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    """As it is, but for the numbers that have no option."""
    text = EXAMPLE.read_text()
    for much, little in LITTLE.items():
        assert much in text, much
        text = text.replace(much, little)
    script = tmp_path / "example.py"
    script.write_text(text)
    small = "--plain-ps 60 --lag 5 --seeded 1 --train-steps 5 --width 32 --chain-steps 5 --jumps 1"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", [str(script), str(PDB), "--solvent", "implicit", *small.split()]
    )
    runpy.run_path(str(script), run_name="__main__")
    assert re.search("^[01] of 1 jumps accepted$", capsys.readouterr().out, re.MULTILINE)
    for made in ("system/solute.pdb", "data.h5", "model.safetensors", "report/validation.html"):
        assert (tmp_path / made).stat().st_size > 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"]["sha256"] == file_sha256(tmp_path / "model.safetensors")
