"""The network for molecules it never saw: coordinates, springs, symmetry, padding, training."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contract_checks import assert_contract_kept
from openmm import app, unit

from openmm_sd import Molecule, ScoreModel
from openmm_sd.data.dataset import read_dataset, write_dataset
from openmm_sd.generate.peptides import Amides
from openmm_sd.model.bundle import load_bundle
from openmm_sd.prepare import PrepareSettings, from_sequence, repair
from openmm_sd.propagator.internal.backbone import backbone_tree
from openmm_sd.propagator.internal.members import Members
from openmm_sd.propagator.internal.physics import springs_of
from openmm_sd.propagator.internal.symmetry import independent_symmetries, relabelled
from openmm_sd.propagator.internal.transferable import TransferableDiffusion
from openmm_sd.propagator.internal.tree import NotInternal
from openmm_sd.propagator.kernels import Identity
from openmm_sd.run import RunSettings, run_mixed
from openmm_sd.system.force_field import make_system
from openmm_sd.system.prepared import PreparedSystem
from openmm_sd.system.solute import force_field_terms
from openmm_sd.train import (
    Part,
    StageSettings,
    TrainSettings,
    TransitionPairs,
    driver,
    train,
    train_bundle,
)
from openmm_sd.train.together import Together

WATER = Path(__file__).parents[1] / "data" / "peptides-water"
FIELD = ["amber99sbildn.xml"]
SMALL = {"width": 32, "heads": 4, "depth": 2, "encoder_depth": 1, "pair_width": 8}
LAGS = {"lag_min_ps": 1.0, "lag_max_ps": 100.0}


@functools.cache
def peptide(sequence):
    structure, _ = from_sequence(sequence)
    modeller = repair(structure, PrepareSettings())
    return Molecule.from_topology(modeller.topology, modeller.positions, sequence)


@functools.cache
def data(name):
    return read_dataset(WATER / f"ACE-{name}-NME.1.h5")


@functools.cache
def terms(molecule):
    system = make_system(
        FIELD,
        molecule.to_topology(),
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        flexibleConstraints=True,
    )
    return force_field_terms(system, range(molecule.n_atoms))


def network(molecule, **settings):
    torch.manual_seed(3)
    made = TransferableDiffusion.for_molecule(
        molecule, terms=terms(molecule), **{**LAGS, **SMALL, **settings}
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made.eval()


def frames_of(name, count):
    frames = np.concatenate([run.positions for run in data(name).runs])
    return torch.from_numpy(frames[:: len(frames) // count][:count])


def named_rows(molecule):
    tree = backbone_tree(molecule)
    names = molecule.atom_names
    return tree, {tuple(names[k] for k in row[:4]): row for row in tree.rows}


@pytest.mark.parametrize(
    "sequence", ["ACE-VAL-NME", "ACE-PRO-NME", "ACE-PHE-NME", "ACE-SER-TRP-NME"]
)
def test_coordinates_begin_at_the_backbone(sequence):
    molecule = peptide(sequence)
    tree, rows = named_rows(molecule)
    assert [molecule.atom_names[k] for k in tree.root] == ["CH3", "C", "N"]
    assert ("N", "C", "CA", "N") in rows
    assert rows["C", "CA", "N", "C"][4] == -1, "phi is led by nothing"
    chi1 = {"VAL": "CG2", "PHE": "CG", "TRP": "CG"}.get(sequence.split("-")[-2])
    if chi1:
        assert rows[chi1, "CB", "CA", "N"][4] == -1
    closing = [molecule.atom_names[tree.rows[k][0]] for k in tree.bridged]
    assert closing == {"PRO": ["CG"], "PHE": ["CZ"], "TRP": ["CE2", "CH2"]}.get(
        sequence.split("-")[-2], []
    )
    bonded = {frozenset(pair) for pair in molecule.bonds}
    held = {frozenset(pair) for pair in zip(tree.root, tree.root[1:], strict=False)}
    held |= {frozenset(row[:2]) for row in tree.rows}
    held |= {frozenset((tree.rows[k][0], tree.rows[k][2])) for k in tree.bridged}
    assert held == bonded, "every bond is a coordinate, those of rings too"


def test_the_branches_of_valine_and_isoleucine_are_counterparts():
    turn = {}
    for sequence, pair in (("ACE-VAL-NME", ("CG2", "CG1")), ("ACE-ILE-NME", ("CG1", "CG2"))):
        molecule = peptide(sequence)
        tree, rows = named_rows(molecule)
        led = rows[pair[1], "CB", "CA", "N"]
        assert tree.rows[led[4]][0] == rows[pair[0], "CB", "CA", "N"][0]
        centre = [molecule.atom_names.index(name) for name in ("CB", "CA", *pair)]
        arms = molecule.positions[centre[1:]] - molecule.positions[centre[0]]
        turn[sequence] = np.sign(np.linalg.det(arms))
    assert len(set(turn.values())) == 1


def test_cages_are_refused():
    from small_molecules import make

    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0.5, 0.5, 0.8]]) * 0.15
    bonds = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)]
    with pytest.raises(NotInternal, match="closes two rings"):
        backbone_tree(make("pyramid", [6] * 5, bonds, corners))


@pytest.mark.parametrize("name", ["ALA", "GLY"])
def test_springs_are_as_wide_as_the_dynamics_is(name):
    molecule = data(name).molecule
    made = network(molecule)
    stiff = made.measure(frames_of(name, 1000))[0]
    assert 0.9 < float(stiff.std(0).median()) < 1.1
    assert float(stiff.std(0).min()) > 0.6
    assert float(stiff.std(0).max()) < 1.5
    assert float(stiff.mean(0).abs().max()) < 2.0


def test_uncoupled_coordinates_are_independent():
    """In phenylalanine's ring angles are coupled: their springs say how."""
    molecule = peptide("ACE-PHE-NME")
    springs = springs_of(molecule, backbone_tree(molecule), terms(molecule), 300.0)
    coupling = springs.coupling
    assert torch.allclose(coupling, coupling.T, atol=1e-6)
    correlation = coupling @ coupling
    assert torch.allclose(correlation.diagonal(), torch.ones(len(coupling)), atol=0.02)
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off.abs().max()) > 0.5
    made = network(molecule)
    q = torch.randn(5, made.n_stiff, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(made.uncoupled(made.coupled(q)), q, atol=1e-4)
    stiff = network(data("ALA").molecule).measure(frames_of("ALA", 2000))[0]
    found = torch.corrcoef(stiff.T)
    assert float((found - torch.eye(len(found))).abs().max()) < 0.35


def test_what_turns_is_told_by_the_force_field():
    molecule = peptide("ACE-PHE-NME")
    springs = springs_of(molecule, backbone_tree(molecule), terms(molecule), 300.0)
    names = molecule.atom_names
    turning = {tuple(names[k] for k in springs.tree.rows[row][:4]) for row in springs.turning}
    heavy = {row for row in turning if not row[0].startswith("H")}
    assert heavy == {
        ("C", "CA", "N", "C"),
        ("N", "C", "CA", "N"),
        ("CG", "CB", "CA", "N"),
        ("CD1", "CG", "CB", "CA"),
    }
    springs = springs_of(
        peptide("ACE-PRO-NME"),
        backbone_tree(peptide("ACE-PRO-NME")),
        terms(peptide("ACE-PRO-NME")),
        300.0,
    )
    rows = [springs.tree.rows[k] for k in springs.turning]
    assert ["C", "N", "CA"] not in [
        [peptide("ACE-PRO-NME").atom_names[k] for k in row[:3]] for row in rows
    ], "phi of proline is in a ring"


def test_contract_with_a_ring():
    molecule = peptide("ACE-PRO-NME")
    made = network(molecule)
    rng = np.random.default_rng(1)
    frames = torch.from_numpy(
        (molecule.positions + 0.003 * rng.normal(size=(8, molecule.n_atoms, 3))).astype(np.float32)
    )
    assert_contract_kept(made, frames)


def test_rings_close_whatever_is_drawn():
    molecule = peptide("ACE-PRO-NME")
    made = network(molecule)
    torch.manual_seed(1)
    y = torch.randn(500, made.n_coordinates)
    turned = torch.rand(500, made.n_turning) * 6.28
    x = made.build(y, turned, made.scale_at(torch.full((500,), 10.0)))
    names = list(molecule.atom_names)
    ring = [("N", "CD"), ("CD", "CG"), ("CG", "CB"), ("CB", "CA")]
    residue = [k for k, r in enumerate(molecule.residue_names) if r == "PRO"]
    at = {names[k]: k for k in residue}
    for i, j in ring:
        length = torch.linalg.vector_norm(x[:, at[i]] - x[:, at[j]], dim=-1)
        assert float(length.mean()) == pytest.approx(0.15, abs=0.006)
        assert float(length.std()) < 0.004, (i, j)


def test_the_law_has_the_molecules_symmetry():
    molecule = data("ALA").molecule
    made = network(molecule)
    frame = frames_of("ALA", 1)
    n = made.n_elements[0]
    assert n == 27, "three methyl groups"
    share = (torch.arange(n) + 0.5) / n
    normal = torch.special.ndtri(share)
    torch.manual_seed(2)
    noise = torch.randn(1, made.n_coordinates).expand(n, -1)
    noise = torch.cat([noise, normal.unsqueeze(1)], dim=1)
    lag = torch.full((n,), 10.0)
    with torch.no_grad():
        plain = made(frame.expand(n, -1, -1), lag, noise)
        order, sign = made.orders[5:6], made.signs[5:6]
        other = made(relabelled(frame, order, sign).expand(n, -1, -1), lag, noise)
    back = relabelled(other, torch.argsort(order, dim=1).expand(n, -1), sign.expand(n))
    gap = (plain.unsqueeze(1) - back.unsqueeze(0)).abs().flatten(2).max(2).values.min(1).values
    assert float(gap.max()) < 1e-4


def test_many_methyl_groups_are_drawn_one_by_one():
    molecule = peptide("ACE-VAL-LEU-NME")
    tree = backbone_tree(molecule)
    turning = springs_of(molecule, tree, terms(molecule), 300.0).turning
    groups = independent_symmetries(molecule, tree, turning)
    assert len(groups) == 6, "two caps and four methyl groups"
    made = network(molecule)
    assert made.n_elements == [3] * 6
    torch.manual_seed(1)
    order, _ = made.chosen(torch.rand(20000, 6))
    assert len({tuple(row) for row in order.tolist()}) == 3**6


def test_a_padded_pass_gives_what_single_ones_do():
    made = [network(peptide(s)) for s in ("ACE-GLY-NME", "ACE-PRO-NME", "ACE-SER-NME")]
    members = Members(made)
    assert members.member(1).head.weight is members.member(0).head.weight
    torch.manual_seed(1)
    shares = []
    for one in made:
        x = torch.from_numpy(np.repeat(_start(one)[None], 4, axis=0))
        clean, known = one.target(x, x + 0.002 * torch.randn_like(x), torch.full((4,), 10.0))
        sigma = torch.tensor([0.1, 0.5, 1.0, 5.0])
        shares.append((clean + sigma[:, None] * torch.randn_like(clean), sigma, known))
    together = members.answer([0, 1, 2], shares)
    for one, share, answer in zip(made, shares, together, strict=True):
        assert torch.allclose(one.answer(*share), answer, atol=2e-5)


def _start(made):
    sequence = {19: "ACE-GLY-NME", 26: "ACE-PRO-NME", 23: "ACE-SER-NME"}[made.n_atoms]
    return peptide(sequence).positions.astype(np.float32)


def test_training_together_learns_and_resumes_exactly(tmp_path):
    settings = dict(batch_size=32, optimizer="muon", warmup_steps=5, bf16=False, minutes=60.0)

    def task():
        parts = []
        for name in ("ALA", "GLY"):
            runs = [run.positions for run in data(name).runs]
            pairs = TransitionPairs(runs, data(name).runs[0].spacing_ps)
            made = network(data(name).molecule)
            parts.append(Part(made, pairs))
        return Together(parts)

    def weights(task):
        return torch.cat([v.flatten() for v in task.model.member(0).weights().values()])

    whole = task()
    record = train([whole], TrainSettings(max_steps=30, **settings), progress=lambda _: None)
    assert record.steps == 30
    resumed, seen = task(), []

    def stop(record):
        seen.append(record.steps)
        if record.steps >= 10:
            raise KeyboardInterrupt

    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(
            [resumed],
            TrainSettings(max_steps=30, report_seconds=0.0, **settings),
            checkpoint=path,
            progress=stop,
        )
    assert path.exists()
    assert seen[-1] == 10
    again = task()
    train(
        [again], TrainSettings(max_steps=30, **settings), checkpoint=path, progress=lambda _: None
    )
    assert torch.allclose(weights(again), weights(whole), atol=1e-5)
    first = record.history[-1]["loss"]
    assert first < 1.5


def test_a_pull_holds_amide_bonds():
    amides = Amides(data("ALA").molecule)
    held = amides.held([(4, 6, 8, 14)])
    assert [side for _, side in held] == pytest.approx([np.pi, np.pi])
    assert len(amides.held([held[0][0]])) == 1


def test_a_bundle_serves_a_molecule_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_HELD_OUT_PAIRS", 64)
    settings = StageSettings(
        network="transferable",
        network_settings=SMALL,
        lag_max_ps=50.0,
        start_frames=20,
        also=(peptide("ACE-PRO-NME"),),
        device="cpu",
        training=TrainSettings(max_steps=2, minutes=60.0, batch_size=16, optimizer="muon"),
    )
    files = []
    for name in ("ALA", "GLY"):
        first = data(name).runs[0]
        some = replace(first, positions=first.positions[:400])
        files.append(tmp_path / f"{name}.h5")
        write_dataset(files[-1], data(name).molecule, [some], data(name).provenance)
    train_bundle(files, tmp_path / "m.safetensors", settings)
    model = ScoreModel.load(tmp_path / "m.safetensors")
    assert [m.name for m in model.molecules] == ["ACE-ALA-NME", "ACE-GLY-NME", "ACE-PRO-NME"]
    stored, _ = load_bundle(tmp_path / "m.safetensors")
    weights = model.members[0].propagator.weights()
    large = [name for name, value in weights.items() if value.numel() >= 1000]
    assert any(bool(weights[name].any()) for name in large)
    for name in large:
        assert stored[name].dtype == torch.float16
        assert torch.equal(weights[name], stored[name].float())
    # One novelty score for all.
    assert not any(".novelty." in name or name.startswith("openmm_sd.novelty") for name in stored)
    for member in model.members:
        frame = torch.from_numpy(member.start_frames[:1])
        assert torch.isfinite(member.novelty(frame)).all()
    proline = model.member("ACE-PRO-NME")
    assert proline.propagator.n_bridged == 1
    start = torch.from_numpy(proline.start_frames)
    noise = torch.zeros(1, proline.noise_size)
    lag = torch.tensor([10.0])
    with torch.no_grad():
        assert torch.isfinite(proline.propagator(start, lag, noise)).all()
        assert torch.allclose(
            proline.scripted()(start, lag, noise),
            proline.propagator(start, lag, noise),
            atol=1e-5,
        )


def test_a_run_serves_a_solute_that_was_not_trained_on(water_box, tmp_path):
    known = data("GLY").molecule
    card = {"temperature_K": 300.0, "constraints": "HBonds", "lag_range_ps": [1.0, 100.0]}
    model = ScoreModel(network(known), known, card)
    assert model.serves_others
    out = tmp_path / "out"
    vectors = np.array(water_box.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    start = PreparedSystem(water_box.topology, water_box.system(), water_box.positions, vectors)
    summary = run_mixed(
        model, start, out, RunSettings(jumps=2, burst_ps=0.02, bridge="pythonforce", seed=1)
    )
    assert summary["jumps_tried"] == 2
    said = (out / "summary.json").read_text()
    assert "No frame of ACE-ALA-NME was seen in training" in said
    again = run_mixed(
        model, start, out, RunSettings(jumps=3, burst_ps=0.02, bridge="pythonforce", seed=1)
    )
    assert again["jumps_tried"] == 3, "the same model is made again, and the run goes on"


def test_a_served_molecule_has_windows_from_its_springs():
    known = data("GLY").molecule
    model = ScoreModel(network(known), known, {"temperature_K": 300.0})
    model.file = "/where/the.weights.are"
    proline = model.serve(peptide("ACE-PRO-NME"), terms(peptide("ACE-PRO-NME")))
    assert torch.equal(proline.propagator.head.weight, model.propagator.head.weight)
    assert proline.file == model.file, "of which a System that holds a jump makes use"
    rows = {tuple(row[:2]): row[2:] for row in proline.bond_windows}
    x = peptide("ACE-PRO-NME").positions
    for i, j in peptide("ACE-PRO-NME").bonds:
        if (i, j) in rows:
            assert rows[i, j][0] < np.linalg.norm(x[i] - x[j]) < rows[i, j][1]
    assert len(proline.constraint_lengths) == 14
    assert any("No frame of" in line for line in proline.card.limits)
    plain = ScoreModel(Identity(known.n_atoms), known)
    with pytest.raises(ValueError, match="knows its own molecules only"):
        plain.serve(peptide("ACE-PRO-NME"), terms(peptide("ACE-PRO-NME")))
