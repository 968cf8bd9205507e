"""The examples run as they are, with the least of everything."""

import json
import re
import runpy
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PDB = ROOT / "tests" / "data" / "ace-ala-nme.pdb"
#: What makes each of them short; a test fails where one is not found.
LITTLE = {
    "butane": {
        "padding=1.0 * nanometer": "boxSize=Vec3(2.1, 2.1, 2.1) * nanometer",
        "burst=1 * picosecond": "burst=0.1 * picosecond, settleTime=0.1",
        "maxIterations=100": "maxIterations=20",
        ", 500)": ", 50)",
        "step(5000)": "step(110)",
    },
    "plain_integrator": {
        "padding=1.0 * nanometer": "boxSize=Vec3(2.2, 2.2, 2.2) * nanometer",
        "burst=1 * picosecond": "burst=0.1 * picosecond, settleTime=0.1",
        "maxIterations=100": "maxIterations=20",
        ", 500)": ", 50)",
        ", 500, step": ", 50, step",
        "step(5000)": "step(50)",
        "step(10000)": "step(110)",
    },
    "from_pdb": {
        "waters=400, equilibration_ps=5": "waters=240, equilibration_ps=0.1",
        "step(2500)": "step(260)",
    },
    "rollout": {"256, 100, 10": "16, 6, 2"},
    "custom_propagator": {"step(1000)": "step(310)"},
    "alanine_dipeptide": {
        "boxSize=Vec3(2.4, 2.4, 2.4)": "boxSize=Vec3(1.9, 1.9, 1.9)",
        "burst=1 * picosecond": "burst=0.04 * picosecond, settleTime=0.04",
        "maxIterations=200": "maxIterations=20",
        "step(1000)": "step(20)",
        "bursts = 101": "bursts = 3",
        "step(250)": "step(10)",
        "chains = 256": "chains = 8",
        "range(20)": "range(7)",
    },
}


def shortened(text, name):
    for much, little in LITTLE[name].items():
        assert much in text, much
        text = text.replace(much, little)
    return text


@pytest.fixture
def example(tmp_path, monkeypatch, capsys):
    """Runs an example in a folder of its own; gives what it printed, and what it left behind."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        # A file: TorchScript reads the source of the classes in it.
        file = tmp_path / f"{name}.py"
        file.write_text(shortened((EXAMPLES / f"{name}.py").read_text(), name))
        monkeypatch.setattr("sys.argv", [str(file), *arguments])
        names = runpy.run_path(str(file), run_name="example")
        return capsys.readouterr().out, names

    return run


def test_the_plain_integrator(example, tmp_path):
    said, names = example("plain_integrator")
    assert "'jumps_tried': 2" in said
    assert names["integrator"].getMDTime()._value == pytest.approx(0.32)
    # Reporters come before each jump: at the second time only one has been made.
    rows = np.genfromtxt(tmp_path / "jumps.csv", delimiter=",", names=True)
    assert rows["Step"].tolist() == [100, 150]
    assert rows["Jumps"].tolist() == [0, 1]
    for file in ("trajectory.xtc", "md.csv", "run.chk"):
        assert (tmp_path / file).stat().st_size > 50


def test_butane(example):
    """The force field is the one that the model is of: nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        said, names = example("butane")
    assert "'jumps_tried': 2" in said
    assert names["integrator"].getNumJumps() > 0


def test_from_a_pdb_file(example, tmp_path):
    """Of a molecule without hydrogens; one burst and its jump."""
    said, _ = example("from_pdb", str(PDB))
    assert "12 hydrogens were added" in said
    assert "'jumps_tried': 1" in said
    assert (tmp_path / "trajectory.xtc").stat().st_size > 1000


def test_a_rollout(example, tmp_path):
    said, names = example("rollout")
    assert (tmp_path / "chain0.pdb").read_text().count("MODEL") == 6
    shares = [float(value) for value in re.findall(r"^\w+ +([\d.]+) \+- [\d.]+$", said, re.M)]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(1.0, abs=0.003)
    assert names["found"].shape == (16, 5)


def test_a_propagator_of_your_own(example):
    """It exchanges equal hydrogens: energies stay, and hops have the rate that was asked for."""
    said, names = example("custom_propagator")
    assert "no    scriptable" not in said
    assert "3 of 3 jumps accepted" in said
    assert abs(names["change"]) < 0.01
    import torch

    kernel, count = names["kernel"], 4000
    frame = torch.tensor(names["molecule"].positions, dtype=torch.float32).repeat(count, 1, 1)
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    hydrogens = torch.tensor(names["methyls"])
    for lag in (1.0, 20.0):
        moved = kernel(frame, torch.full((count,), lag), noise)
        turned = (moved != frame)[:, hydrogens[:, 0]].any(2).double().mean()
        expected = 2 / 3 * (1 - torch.exp(torch.tensor(-3 * 0.02 * lag)))
        assert float(turned) == pytest.approx(float(expected), abs=0.02)


def test_the_notebook(tmp_path, monkeypatch, capsys):
    """Its cells, one after the other; no output is stored in it."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "alanine_dipeptide.ipynb").read_text())
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    text = shortened("\n\n".join("".join(cell["source"]) for cell in cells), "alanine_dipeptide")
    names = {}
    exec(compile(text, "alanine_dipeptide.ipynb", "exec"), names)
    names["plt"].close("all")
    assert "2 of 2 jumps accepted" in capsys.readouterr().out
    assert names["in_water"].shape == (2, 3)
    # A lag of 0.1 ns between two looks, and next to nothing else.
    assert names["clock"][1] - names["clock"][0] == pytest.approx(0.1, abs=1e-3)
    assert (tmp_path / "alanine_dipeptide.png").stat().st_size > 5_000
