"""The shipped model of alkanes in water, above all butane, which it has never seen."""

from pathlib import Path

import numpy as np
import pytest

from openmm_sd import ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.data.dataset import read_dataset
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def family():
    return ScoreModel.load("alkanes-water")


def carbons(molecule):
    """Carbons from one end to the other."""
    graph, z = molecule.graph(), molecule.atomic_numbers
    beside = {i: [j for j in graph[i] if z[j] == 6] for i in graph if z[i] == 6}
    row = [min(i for i, others in beside.items() if len(others) == 1)]
    while len(row) < len(beside):
        row.append(next(j for j in beside[row[-1]] if j not in row))
    return row


def torsions(frames, molecule):
    """All C-C-C-C torsions of frames (..., N, 3), the last axis along the chain."""
    row = carbons(molecule)
    return np.stack([dihedral(frames, row[k : k + 4]) for k in range(len(row) - 3)], axis=-1)


def test_no_frame_of_butane_was_seen(family):
    assert [m.name for m in family.molecules] == [
        *("ethane", "propane", "pentane", "hexane", "butane")
    ]
    training = family.member("pentane").card["training"]
    assert training["without_data"] == ["butane"]
    taught = [entry["file"] for entry in training["data_sets"]]
    assert "butane-water.h5" not in taught
    assert "none" in family.member("butane").card["data"]


@pytest.mark.parametrize("name", ["butane", "pentane"])
def test_chains_sample_what_md_does(family, name):
    """Populations and hops of short chains, as far as they can tell."""
    member = family.member(name)
    molecule = member.molecules[0]
    data = read_dataset(DATA / f"{name}-water.h5")
    settings = RolloutSettings(chains=150, steps=20, lag_ps=10.0, seed=3)
    # Starts spread over MD's frames; atoms may be numbered otherwise there.
    start = np.concatenate([run.positions for run in data.runs])
    start = start[:: len(start) // 150]
    rollout = Rollout(member, settings, start)
    frames = np.stack([rollout.advance() for _ in range(settings.steps)])
    phi = torsions(frames, molecule)
    md = np.concatenate([torsions(run.positions, data.molecule) for run in data.runs])
    gauche = [(np.abs(x) < 2 * np.pi / 3).mean() for x in (phi[5:], md)]
    assert gauche[0] == pytest.approx(gauche[1], abs=0.1)
    # Symmetric by construction; here to what independent chains can tell.
    side = ((np.abs(phi[5:]) < 2 * np.pi / 3) * np.sign(phi[5:])).mean(axis=(0, 2))
    error = side.std() / np.sqrt(len(side))
    assert error < 0.05
    assert abs(side.mean()) < 3 * error
    now, later = (np.abs(phi[k:][: len(phi) - 1]) < 2 * np.pi / 3 for k in (0, 1))
    hops = (now != later).mean()
    runs = [np.abs(torsions(run.positions, data.molecule)) < 2 * np.pi / 3 for run in data.runs]
    stride = round(10.0 / data.runs[0].spacing_ps)
    expected = np.mean([(x[stride:] != x[:-stride]).mean() for x in runs])
    assert hops == pytest.approx(expected, rel=0.25)
    found = rollout.statistics()
    assert sum(found["rejections"].values()) < 0.03 * found["draws"]
    assert found["fallbacks"] == 0
