"""What the README shows is what works."""

import json
import re
import runpy
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import app, unit
from words import shortened

from openmm_sd import ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset

ROOT = Path(__file__).parents[1]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_the_script_runs(tmp_path, monkeypatch, capsys):
    (script,) = blocks(ROOT / "README.md", "python")
    # One burst of 500 steps, its jump, and a little more.
    for much, little in (
        ("simulation.step(5000)", "simulation.step(510)"),
        ("padding=1.0 * nanometer", "boxSize=Vec3(2.1, 2.1, 2.1) * nanometer"),
        ("maxIterations=100", "maxIterations=20"),
    ):
        assert much in script
        script = script.replace(much, little)
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    assert "'jumps_tried': 1" in capsys.readouterr().out
    lines = (tmp_path / "jumps.csv").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('"Step","MD Time (ps)","Jumps","Effective Time (ps)"')


def test_the_preparing_page_runs(tmp_path, monkeypatch):
    """Its script, with a smaller box."""
    (script,) = blocks(ROOT / "docs" / "preparing.md", "python")
    script = script.replace("ionic_strength_M=0.15", "waters=240, equilibration_ps=0")
    shutil.copy(ROOT / "tests" / "data" / "ace-ala-nme.pdb", tmp_path / "ala2.pdb")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(script, names)
    assert names["prepared"].provenance["models"]["fitting"] == ["ala2-water"]
    assert names["record"]["solvation"]["waters"] == 240


def test_getting_started_and_the_how_tos_run(tmp_path, monkeypatch, peptide):
    """Their scripts one after the other, as one program, with shorter bursts and no water."""
    started = blocks(ROOT / "docs" / "getting-started.md", "python")
    recipes = blocks(ROOT / "docs" / "how-to.md", "python")
    assert (len(started), len(recipes)) == (2, 7)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("from openmm import *\nfrom openmm.app import *\nfrom openmm.unit import *", names)
    names |= {"system": peptide.system(), "topology": peptide.topology}
    made = "topology, system, integrator"
    assert f"{made})" in started[0]
    script = started[0].replace(f"{made})", f"{made}, Platform.getPlatform('Reference'))")
    exec(script.replace("burst=1 *", "burst=0.02 *"), names)
    names["simulation"].context.setPositions(peptide.positions * unit.nanometer)
    for script in recipes:
        exec(script.replace("step(5000)", "step(20)").replace("step(100)", "step(4)"), names)
    # Three bursts of ten steps and the four steps after the checkpoint.
    assert names["integrator"].getStatistics()["jumps_tried"] == 3
    assert names["integrator"].getMDTime()._value == pytest.approx((20 + 30 + 4) * 0.002)
    trajectory = mdtraj.load("trajectory.xtc", top=mdtraj.Topology.from_openmm(peptide.topology))
    assert len(trajectory) == 3
    # The walkers have made the jump that was due, each its own.
    one, other = (walker.getState(positions=True) for walker in names["walkers"])
    apart = one.getPositions(asNumpy=True) - other.getPositions(asNumpy=True)
    assert np.abs(apart._value).max() > 1e-3
    assert [walker.getIntegrator().getNumJumps() for walker in names["walkers"]] == [3, 3]
    assert Path("system.xml").stat().st_size < 1_000_000
    exec(started[1], names)


def test_the_other_pages_scripts_run(tmp_path, monkeypatch, capsys):
    """Reading a data set, asking for novelty."""
    monkeypatch.chdir(tmp_path)
    model = ScoreModel.load("ala2-water")
    run = Run("plain0", "plain", model.start_frames[:50], 1.0)
    write_dataset("ala2.h5", model.molecules[0], [run], {"temperature_K": 300.0})
    for script in blocks(ROOT / "docs" / "dataset-format.md", "python"):
        exec(script, {})
        assert "plain0 plain" in capsys.readouterr().out
    (script,) = blocks(ROOT / "docs" / "novelty.md", "python")
    names = {}
    exec(script, names)
    assert not names["novel"].any()


def test_the_propagator_page_runs(tmp_path, monkeypatch, capsys):
    first, second, third = blocks(ROOT / "docs" / "propagators.md", "python")
    prepare = (
        "from openmm_sd import ScoreDynamicsIntegrator\n"
        "shipped = ScoreModel.load('ala2-water').molecules[0]\n"
        "topology, positions = shipped.to_topology(), shipped.positions\n"
    )
    check = (
        "assert check_propagator(kernel).passed\n"
        "again = ScoreModel.load('wiggle.safetensors')\n"
        "assert again.card == model.card\n"
        "print('done', integrator.getLag())\n"
    )
    # Classes that are to be scripted need a file: TorchScript reads their source.
    program = tmp_path / "program.py"
    program.write_text("\n".join([first, prepare, second, third, check]))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(program))
    said = capsys.readouterr().out
    assert "done" in said
    assert "ok    rotation" in said


def test_every_link_to_a_file_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "getting-started.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    from openmm_sd.cli import COMMANDS

    for command in re.findall(r"openmm-sd ([a-z]+)\b", text):
        assert command in COMMANDS, command


def test_the_way_to_a_model_of_your_own(tmp_path, monkeypatch, peptide, capfd):
    """The five commands of the README, with the least of everything."""
    (commands,) = blocks(ROOT / "README.md", "sh")
    small = {
        "generate": "--solvent implicit --plain 2 --plain-ps 60 --seeded 2 --seeded-ps 20 "
        "--processes 1 --warm-up 1 --pull 6",
        "train": "--minutes 1 --max-steps 20 --width 32 --depth 1 --lag-max 20 --threads 1",
        "validate": "--lags 10 --chains 8 --steps 10",
        "rollout": "--chains 4 --steps 3 --lag 10",
    }
    monkeypatch.chdir(tmp_path)
    Path("ala2").mkdir()
    with open("ala2/solute.pdb", "w") as file:
        app.PDBFile.writeFile(peptide.topology, peptide.positions * unit.nanometer, file)
    done = []
    for line in commands.strip().splitlines():
        words = line.split()[1:]
        assert main(shortened(words, small[words[0]])) == 0, capfd.readouterr().err
        done.append(words[0])
    assert done == ["generate", "generate", "train", "validate", "rollout"]
    assert Path("report/validation.html").is_file()
    summary = json.loads(Path("chains/rollout.json").read_text())
    assert (summary["chains"], summary["steps"]) == (4, 3)


def test_the_run_of_your_own(tmp_path, monkeypatch, peptide, capfd):
    """The command of the README and the script of its page, with the least of everything."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^openmm-sd (?:prepare|run) .*$", text, re.MULTILINE)
    assert [line.split()[1] for line in found] == ["prepare", "run"]
    monkeypatch.chdir(tmp_path)
    small = {
        "prepare": "--waters 240 --equilibration 0.2 --platform CPU",
        "run": "--effective-ns 0.01 --burst 0.08 --platform CPU",
    }
    for line in found:
        words = line.split()[1:]
        assert main(shortened(words, small[words[0]])) == 0, capfd.readouterr().err
    files = {file.name for file in Path("run1").iterdir()}
    assert files >= {"trajectory.xtc", "topology.pdb", "log.csv", "summary.json", "report.html"}

    (script,) = blocks(ROOT / "docs" / "running.md", "python")
    script = script.replace("jumps=1000", "jumps=1").replace('"run1"', '"run2"')
    names = {
        "topology": peptide.topology,
        "system": peptide.system(),
        "positions": peptide.positions,
        "box_vectors": None,
    }
    exec(script, names)
    assert names["summary"]["jumps_tried"] == 1

    model = ScoreModel.load("ala2-water")
    more = Run("plain0", "plain", model.start_frames[:200], 1.0)
    write_dataset("more-md.h5", model.molecules[0], [more], {"temperature_K": 300.0})
    (script,) = blocks(ROOT / "docs" / "report.md", "python")
    exec(script, names)
    assert names["found"]["report"].endswith("report.html")
