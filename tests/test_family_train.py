"""The training of a family from data sets to a bundle, and a member without data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from openmm import app, unit
from small_molecules import alkane, constrained, methanol, rotated
from words import shortened

from openmm_sd import ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset
from openmm_sd.propagator.internal.family import FamilyDiffusion
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings

CARBONS = {"ethane": 2, "propane": 3, "butane": 4, "pentane": 5}
LENGTH_NM = 0.11
SMALL = ["--width", "16", "--depth", "1", "--max-steps", "6", "--batch-size", "32", "--no-bf16"]
SMALL += ["--lag-max", "20", "--start-frames", "10", "--device", "cpu", "--recommended-burst", "1"]


def named(name):
    return replace(alkane(CARBONS[name]), name=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets of three molecules, whose torsions are anywhere, and a structure of a fourth."""
    folder = tmp_path_factory.mktemp("family")
    for name in ("ethane", "propane", "pentane"):
        molecule = named(name)
        runs = []
        for seed in range(2):
            frames = constrained(rotated(molecule, 200, seed=seed), molecule, LENGTH_NM)
            runs.append(Run(f"plain{seed}", "plain", frames.astype(np.float32), 1.0))
        write_dataset(folder / f"{name}.h5", molecule, runs, {"temperature_K": 300.0})
    with open(folder / "butane.pdb", "w") as file:
        molecule = named("butane")
        app.PDBFile.writeFile(
            molecule.to_topology(), molecule.positions * unit.nanometer, file, keepIds=True
        )
    return folder


def trained(folder, output, *more, data=("ethane", "propane", "pentane")):
    files = [str(folder / f"{name}.h5") for name in data]
    return main(shortened(["train", *files, "-o", str(output), *SMALL], " ".join(more)))


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("bundle") / "alkanes.safetensors"
    assert trained(folder, output, "--also", str(folder / "butane.pdb")) == 0
    return output


def test_one_bundle_of_all(bundle):
    family = ScoreModel.load(bundle)
    assert family.is_family
    assert [m.name for m in family.molecules] == ["ethane", "propane", "pentane", "butane"]
    assert family.temperature == 300.0
    assert family.recommended_burst == 1.0
    low, high = family.lag_range
    assert (low, high) == (1.0, 20.0)
    training = family.card["training"]
    assert training["molecules"] == ["ethane", "propane", "pentane"]
    assert training["without_data"] == ["butane"]
    assert set(training["held_out_loss_by_lag_ps"]) == {"ethane", "propane", "pentane"}
    assert training["by_molecule"]["pentane"]["spacing_ps"] == 1.0
    assert training["by_molecule"]["pentane"]["markov_lag_ps"] is not None
    weights = family.member("ethane").propagator.weights()
    for member in family.members:
        assert isinstance(member.propagator, FamilyDiffusion)
        assert all(torch.equal(weights[k], v) for k, v in member.propagator.weights().items())
        assert {round(row[2], 4) for row in member.constraint_lengths} == {LENGTH_NM}
        hydrogens = sum(z == 1 for z in member.molecules[0].atomic_numbers)
        assert len(member.constraint_lengths) == hydrogens
        assert member.bond_windows
        assert member.angle_windows
    with_data = family.members[:3]
    assert all(member.novelty is not None for member in with_data)
    assert all(len(member.start_frames) == 10 for member in with_data)


def test_what_the_member_without_data_has(bundle):
    family = ScoreModel.load(bundle)
    butane, pentane = family.member("butane"), family.member("pentane")
    assert butane.novelty is None
    assert len(butane.start_frames) == 1
    assert "no frame of butane" in butane.card["data"]["none"]
    assert any("No data of butane" in line for line in butane.card["limits"])
    # As the relatives: the same kinds of atoms, bonded the same way.
    outer, inner = butane.bond_windows[0], butane.bond_windows[1]
    assert inner[2:] == (
        min(row[2] for row in pentane.bond_windows[1:3]),
        max(row[3] for row in pentane.bond_windows[1:3]),
    )
    ends = [family.member("propane").bond_windows[0], family.member("propane").bond_windows[1]]
    ends += [pentane.bond_windows[0], pentane.bond_windows[3]]
    assert outer[2:] == (min(row[2] for row in ends), max(row[3] for row in ends))
    sizes = [family.member(name).max_displacement for name in ("ethane", "butane", "pentane")]
    assert sizes[0] <= sizes[1] <= 1.5 * sizes[2]


def test_it_makes_chains_of_every_member(bundle, tmp_path, capsys):
    family = ScoreModel.load(bundle)
    for member in family.members:
        rollout = Rollout(member, RolloutSettings(chains=4, max_tries=3, lag_ps=5.0))
        frames = rollout.advance()
        assert frames.shape == (4, member.n_atoms, 3)
        assert np.isfinite(frames).all()
        for heavy, hydrogen, length in member.constraint_lengths:
            gap = np.linalg.norm(frames[:, heavy] - frames[:, hydrogen], axis=-1)
            np.testing.assert_allclose(gap, length, atol=2e-5)
    command = ["rollout", str(bundle), "--molecule", "butane", "--chains", "2", "--steps", "2"]
    assert main([*command, "--device", "cpu", "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chains"] == 2


def test_training_takes_up_a_family(bundle, folder, tmp_path):
    output = tmp_path / "again.safetensors"
    more = ["--init", str(bundle), "--network", "family", "--max-steps", "1"]
    assert trained(folder, output, *more, "--learning-rate", "1e-9", data=("pentane",)) == 0
    family = ScoreModel.load(output)
    assert [m.name for m in family.molecules] == ["pentane"]
    before = ScoreModel.load(bundle).members[0].propagator.weights()
    for name, value in family.members[0].propagator.weights().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_first_weights_of_a_family_make_a_family(bundle, folder, tmp_path):
    """Also where there are data of one molecule only, and nobody says so."""
    output = tmp_path / "one.safetensors"
    assert trained(folder, output, "--init", str(bundle), data=("propane",)) == 0
    assert ScoreModel.load(output).is_family


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        (("ethane", "pentane"), ["--network", "internal"], "only --network family can learn"),
        (("pentane",), ["--also", "butane.pdb"], "can only join a family"),
        (("pentane",), ["--network", "family", "--also", "nothing.pdb"], "there is no file"),
        (("ethane",), ["--network", "family", "--also", "butane.pdb"], "butane"),
        (("ethane", "pentane"), ["--batch-size", "1"], "too small for 2 molecules"),
        (("pentane",), ["--network", "family", "--also", "pentane.pdb"], "name of two"),
        (("pentane",), ["--network", "family", "--also", "other.pdb"], "pentane is it"),
        (("propane", "pentane"), ["--init", "ala2-water"], "holds a InternalDiffusion"),
        (("pentane",), ["--network", "dense", "--init", "FAMILY"], "holds a FamilyDiffusion"),
        (("propane", "methanol"), [], "differ in temperature_K: propane 300.0, methanol 310.0"),
    ],
)
def test_wrong_families(bundle, folder, tmp_path, capsys, data, more, said):
    for name in ("pentane", "other"):
        molecule = named("pentane")
        with open(folder / f"{name}.pdb", "w") as file:
            app.PDBFile.writeFile(molecule.to_topology(), molecule.positions * unit.nanometer, file)
    alcohol = methanol()
    frames = constrained(rotated(alcohol, 60), alcohol, LENGTH_NM).astype(np.float32)
    write_dataset(
        folder / "methanol.h5",
        alcohol,
        [Run("one", "plain", frames, 1.0)],
        {"temperature_K": 310.0},
    )
    more = [str(folder / text) if text.endswith(".pdb") else text for text in more]
    more = [str(bundle) if text == "FAMILY" else text for text in more]
    output = tmp_path / "wrong.safetensors"
    assert trained(folder, output, *more, data=data) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()
