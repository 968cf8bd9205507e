"""A family: several molecules of one bundle, and how everything else finds the right one."""

import functools
import json
import math
from dataclasses import replace

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from conftest import Engine, positions_of
from openmm import app, unit
from small_molecules import butane, ethane, isobutane, methanol, rotated, shaken

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.cli import main
from openmm_sd.jump.gates import FiniteGate
from openmm_sd.model.bundle import BundleError, load_bundle, save_bundle
from openmm_sd.model.novelty import fit_novelty
from openmm_sd.prepare import PreparedSystem
from openmm_sd.propagator.internal.family import FamilyDiffusion
from openmm_sd.propagator.internal.statistics import CoordinateStatistics
from openmm_sd.propagator.kernels import Identity
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.run import RunSettings, run_mixed

SMALL = {"width": 16, "depth": 1, "n_calls": 2}
COMMON = {"temperature_K": 300.0, "lag_range_ps": [1.0, 100.0], "description": "Three of a kind."}


@functools.cache
def statistics():
    found = CoordinateStatistics([1.0, 100.0])
    for molecule in (butane(), isobutane(), ethane(), methanol()):
        frames = rotated(molecule)
        x = torch.tensor(frames)
        found.add(molecule, frames, [(x[:-lag], x[lag:]) for lag in (1, 100)])
    return found


def member(molecule, weights=None, **card):
    """A model of a molecule with start frames, windows and a score of its own."""
    torch.manual_seed(4)
    network = FamilyDiffusion.for_molecule(molecule, statistics=statistics(), **SMALL)
    with torch.no_grad():
        network.scale.fill_(0.001 * molecule.n_atoms)
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if weights is not None:
        network.load_weights(weights)
    frames = shaken(molecule, 60, seed=3)
    i, j = molecule.bonds[0]
    entries = {"bond_windows_nm": [[i, j, 0.01 * molecule.n_atoms / 100, 0.5]]}
    return ScoreModel(
        network,
        molecule,
        COMMON | entries | card,
        start_frames=frames[:5],
        novelty=fit_novelty(molecule, frames),
    )


@pytest.fixture(scope="module")
def family():
    first = member(butane())
    weights = first.propagator.weights()
    named = [first, member(ethane(), weights), member(methanol(), weights)]
    return ScoreModel.family(named)


@pytest.fixture(scope="module")
def path(family, tmp_path_factory):
    file = tmp_path_factory.mktemp("family") / "family.safetensors"
    family.save(file)
    return file


NAMES = ("grown", "ethane", "methanol")


def test_round_trip(family, path):
    again = ScoreModel.load(path)
    assert again.is_family
    assert tuple(m.name for m in again.molecules) == NAMES
    assert again.card == family.card
    assert again.card["description"] == "Three of a kind."
    assert "bond_windows_nm" not in again.card
    assert (again.temperature, again.lag_range) == (300.0, (1.0, 100.0))
    assert again.recommended_lag == family.recommended_lag
    for name in NAMES:
        ours, theirs = family.member(name), again.member(name)
        assert ours.card == theirs.card
        assert theirs.bond_windows == ours.bond_windows
        assert theirs.novelty.threshold == ours.novelty.threshold
        assert theirs.sha256 == again.sha256
        np.testing.assert_array_equal(ours.start_frames, theirs.start_frames)
        x = torch.tensor(ours.start_frames[:3])
        noise = torch.randn(3, ours.noise_size, generator=torch.Generator().manual_seed(1))
        lag = torch.full((3,), 10.0)
        torch.testing.assert_close(
            theirs.propagator(x, lag, noise), ours.propagator(x, lag, noise), rtol=0, atol=0
        )
    # The weights are there once.
    tensors, content = load_bundle(path)
    shared = family.members[0].propagator.weights()
    assert set(shared) <= set(tensors)
    assert not any(name.startswith("member") and name[8:] in shared for name in tensors)
    assert len(content["members"]) == 3


def test_what_depends_on_the_molecule_is_asked_of_a_member(family):
    for name in ("n_atoms", "noise_size", "start_frames", "bond_windows", "contact_distances",
                 "angle_windows", "constraint_lengths"):  # fmt: skip
        with pytest.raises(ValueError, match="depends on the molecule: ask a member"):
            getattr(family, name)
    with pytest.raises(ValueError, match="ask a member"):
        family.scripted()
    with pytest.raises(ValueError, match="does not know 'octane', but grown, ethane, methanol"):
        family.member("octane")
    with pytest.raises(ValueError, match="several molecules, name one: grown, ethane, methanol"):
        family.only()
    assert family.only("ethane") is family.members[1]
    assert ScoreModel.family(family.members[:1]).only() is family.members[0]
    assert "3 molecules" in family.summary()
    single = family.members[1]
    assert single.member("ethane") is single.only() is single.members[0] is single
    with pytest.raises(ValueError, match="does not know 'butane', but ethane"):
        single.only("butane")


def test_members_that_do_not_go_together(family):
    first = family.members[0]
    with pytest.raises(ValueError, match="at least one member"):
        ScoreModel.family([])
    with pytest.raises(ValueError, match="grown is there twice"):
        ScoreModel.family([first, member(isobutane(), first.propagator.weights())])
    other = member(ethane())
    with torch.no_grad():
        next(other.propagator.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="grown and ethane have different weights"):
        ScoreModel.family([first, other])
    with pytest.raises(ValueError, match="differ in temperature"):
        ScoreModel.family(
            [first, member(ethane(), first.propagator.weights(), temperature_K=310.0)]
        )
    with pytest.raises(ValueError, match="cannot share its weights"):
        ScoreModel.family([first, ScoreModel(Identity(8), ethane())])
    twin = replace(first.molecules[0], name="twin")
    with pytest.raises(ValueError, match="grown and twin are the same molecule"):
        ScoreModel.family([first, member(twin, first.propagator.weights())])
    with pytest.raises(ValueError, match="must be single models"):
        ScoreModel.family([family])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["members"].pop(), "members must be a list of 3"),
        (lambda c: c["members"].__setitem__(1, 5), "member 1 must be an object"),
        (lambda c: c["members"][0].pop("card"), "member 0 lacks card"),
        (lambda c: c["members"][0].update(card=3), "member 0: card must be an object"),
        (lambda c: c["members"][2].update(more=1), "member 2 has unknown keys: more"),
    ],
)
def test_wrong_content_is_not_written(path, tmp_path, change, said):
    tensors, content = load_bundle(path)
    content = json.loads(json.dumps(content))
    change(content)
    with pytest.raises(BundleError, match=said):
        save_bundle(tmp_path / "wrong.safetensors", tensors, content)


def test_tensors_that_do_not_fit(path, tmp_path):
    for name, said in (("member1.scale", "lack scale"), ("element.weight", "lack element.weight")):
        tensors, content = load_bundle(path)
        del tensors[name]
        save_bundle(tmp_path / "wrong.safetensors", tensors, content)
        with pytest.raises(BundleError, match=said):
            ScoreModel.load(tmp_path / "wrong.safetensors")


def solvated(molecule, name="MOL"):
    """A Topology and a forceless System of the molecule with two atoms of argon beside it."""
    topology = molecule.to_topology()
    chain = topology.addChain()
    for _ in range(2):
        topology.addAtom("AR", app.element.argon, topology.addResidue("AR", chain))
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    positions = np.concatenate([molecule.positions, [[3.0, 0, 0], [0, 3.0, 0]]])
    return topology, system, positions


@pytest.mark.parametrize("name", NAMES)
def test_an_integrator_takes_the_member_it_finds(family, name):
    engine = Engine("pythonforce", "Reference")
    integrator = ScoreDynamicsIntegrator(family, lag=20.0, burst=0.002, bridge="pythonforce")
    assert integrator.getMaxNovelty() is None
    chosen = family.member(name)
    topology, system, positions = solvated(chosen.molecules[0])
    solute = integrator.attach(system, topology)
    assert solute.molecule.name == name
    assert integrator.model is chosen
    assert integrator.getMaxNovelty() == chosen.novelty.threshold
    integrator.setMaxNovelty(None)
    context = openmm.Context(system, integrator, engine.platform)
    context.setPositions(positions)
    integrator.step(4)
    assert integrator.getStatistics()["jumps_tried"] == 3
    assert np.isfinite(positions_of(context)).all()


def test_limits_of_novelty_that_are_set_before_the_molecule_is_known(family):
    for limit, expected in ((None, None), (7.5, 7.5)):
        integrator = ScoreDynamicsIntegrator(family, maxNovelty=limit, bridge="pythonforce")
        topology, system, _ = solvated(family.member("ethane").molecules[0])
        integrator.attach(system, topology)
        assert integrator.getMaxNovelty() == expected
    plain = [
        ScoreModel(one.propagator, one.molecules, {k: v for k, v in one.card.items()
                                                   if k != "novelty"})
        for one in family.members
    ]  # fmt: skip
    integrator = ScoreDynamicsIntegrator(
        ScoreModel.family(plain), maxNovelty=2.0, bridge="pythonforce"
    )
    with pytest.raises(ValueError, match="no novelty statistics"):
        integrator.attach(system, topology)
    assert integrator.solute is None


def test_what_is_restored_needs_the_member(family):
    one = family.member("ethane")
    integrator = ScoreDynamicsIntegrator(family, lag=20.0, bridge="pythonforce")
    topology, system, _ = solvated(one.molecules[0])
    integrator.attach(system, topology)
    bare = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
    with pytest.raises(ValueError, match=r"model must be that of the molecule which jumps"):
        ScoreDynamicsIntegrator.restore(bare, family)
    again = ScoreDynamicsIntegrator.restore(bare, one)
    assert again.getMaxNovelty() == one.novelty.threshold
    topology, system, _ = solvated(one.molecules[0])
    again = ScoreDynamicsIntegrator.restore(bare, family, system, topology)
    assert again.model is one


def test_the_copy_that_was_asked_for_jumps(family, tmp_path):
    """Copies are counted over all molecules of a family, in the plan and in the run alike."""
    topology, positions = app.Topology(), []
    for k, name in enumerate(("methanol", "ethane", "ethane")):
        molecule = family.member(name).molecules[0]
        part = molecule.to_topology()
        modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
        modeller.add(part, np.zeros((molecule.n_atoms, 3)) * unit.nanometer)
        topology = modeller.topology
        positions.append(molecule.positions + np.array([0.0, 0.0, 2.0 * k]))
    system = openmm.System()
    for k, atom in enumerate(topology.atoms()):
        atom.name, atom.residue.chain.id = f"X{k}", "ABC"[atom.residue.index]
        system.addParticle(atom.element.mass)
    prepared = PreparedSystem(topology, system, np.concatenate(positions), None)
    for which, height in ((1, 2.0), (2, 4.0)):
        out = tmp_path / str(which)
        run_mixed(
            family,
            prepared,
            out,
            RunSettings(jumps=1, lag_ps=10.0, burst_ps=0.004, solute=which, solute_only=True,
                        step_fs=1.0, platform="Reference", bridge="pythonforce", format="h5"),
        )  # fmt: skip
        frame = mdtraj.load(str(out / "trajectory.h5"))
        assert frame.n_atoms == 8
        assert abs(frame.xyz[0, :, 2].mean() - height) < 0.5


def test_rollouts_and_commands_name_the_molecule(family, path, tmp_path, capsys):
    with pytest.raises(ValueError, match="name one"):
        Rollout(family)
    rollout = Rollout(family.member("ethane"), RolloutSettings(chains=3, max_tries=1))
    assert rollout.frames.shape == (3, 8, 3)
    command = ["rollout", str(path), "--chains", "2", "--steps", "2", "--device", "cpu", "--json"]
    assert main([*command, "-o", str(tmp_path / "a")]) == 2
    assert "name one: grown, ethane, methanol" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "a"), "--molecule", "methanol"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert math.isclose(summary["lag_ps"], 10.0)
    assert main(["models", str(path), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [entry["atoms"] for entry in described["molecules"]] == [14, 8, 6]


def test_gates_are_the_members(family):
    from openmm_sd.jump.jump import gates_of

    for one in family.members:
        gates = gates_of(one, one.molecules[0])
        assert any(isinstance(gate, FiniteGate) for gate in gates)
        assert one.bond_windows[0][2] == pytest.approx(one.n_atoms * 1e-4)
