"""The graph diffusion propagator: its contract, its freedom from numbering and size, its labels."""

import json
import math

import numpy as np
import pytest
import torch
from contract_checks import assert_contract_kept
from four_beads import molecule as four_beads

from openmm_sd import Molecule, ScoreModel
from openmm_sd.molecule.graph import graph_classes, stereo_labels
from openmm_sd.propagator.graph import GraphDiffusion
from openmm_sd.train import TrainSettings, TransitionPairs, fit_statistics, held_out_loss, train

SETTINGS = {
    "lag_min_ps": 1.0,
    "lag_max_ps": 100.0,
    "width": 32,
    "vectors": 8,
    "edge_width": 8,
    "depth": 2,
}


def random_rotation(generator):
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q[:, 0] *= torch.linalg.det(q)
    return q.float()


def frames_of(molecule, count, seed=0, width=0.003):
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(molecule.positions, dtype=torch.float32)
    x = x + width * torch.randn(count, *x.shape, generator=generator)
    x = torch.stack([frame @ random_rotation(generator).T for frame in x])
    return x - x.mean(1, keepdim=True)


def build(molecule, seed=0, **changes):
    """A small network with random weights, the zero-initialised heads included."""
    torch.manual_seed(seed)
    model = GraphDiffusion.for_molecule(molecule, **(SETTINGS | changes))
    with torch.no_grad():
        for head in (model.vector_head, model.pair_head):
            head.weight.normal_(std=0.02)
    model.fit_statistics(frames_of(molecule, 64, 1), torch.full((12, molecule.n_atoms), 0.03))
    return model.eval().requires_grad_(False)


def renumbered(molecule, order):
    """The same molecule whose atom k is the old atom order[k]."""
    place = np.argsort(order)
    return Molecule(
        molecule.name,
        tuple(molecule.atomic_numbers[k] for k in order),
        tuple(tuple(int(place[k]) for k in bond) for bond in molecule.bonds),
        tuple(molecule.atom_names[k] for k in order),
        tuple(molecule.residue_names[k] for k in order),
        tuple(molecule.residue_ids[k] for k in order),
        molecule.positions[list(order)],
    )


def test_it_keeps_the_contract(ala2):
    assert_contract_kept(build(ala2), frames_of(ala2, 6))


def test_frozen_and_saved_it_is_the_same(ala2, tmp_path):
    model = ScoreModel(build(ala2), ala2)
    x, lag, noise = frames_of(ala2, 3), torch.tensor([1.0, 10.0, 100.0]), torch.randn(3, 66)
    expected = model.propagator(x, lag, noise)
    torch.testing.assert_close(model.scripted()(x, lag, noise), expected, atol=1e-5, rtol=0)
    path = tmp_path / "graph.safetensors"
    model.save(path)
    again = ScoreModel.load(path).propagator
    assert isinstance(again, GraphDiffusion)
    assert torch.equal(again(x, lag, noise), expected)


def test_renumbering_the_atoms_renumbers_the_answer(ala2):
    model = build(ala2)
    x, lag, noise = frames_of(ala2, 4), torch.full((4,), 10.0), torch.randn(4, 66)
    expected = model(x, lag, noise)
    order = np.random.default_rng(2).permutation(22)
    place = np.argsort(order)
    given = model.hyperparameters
    changed = json.loads(json.dumps(given)) | {
        "atomic_numbers": [given["atomic_numbers"][k] for k in order],
        "bonds": [[int(place[k]) for k in bond] for bond in given["bonds"]],
        "stereo": [[int(place[k]), sign] for k, sign in given["stereo"]],
        "frame_atoms": [int(place[k]) for k in given["frame_atoms"]],
        "heavy_atoms": [int(place[k]) for k in given["heavy_atoms"]],
    }
    other = GraphDiffusion(**changed).eval().requires_grad_(False)
    other.load_weights(model.weights())
    other.fit_statistics(frames_of(ala2, 64, 1)[:, order], torch.full((12, 22), 0.03))
    answer = other(x[:, order], lag, noise.view(4, 22, 3)[:, order].flatten(1))
    assert float((answer - expected[:, order]).abs().max()) < 2e-5
    # Without renumbering the noise the answer is another one.
    wrong = other(x[:, order], lag, noise)
    assert float((wrong - expected[:, order]).abs().max()) > 1e-3


def test_the_weights_of_one_molecule_serve_another(ala2):
    large, small = build(ala2), build(four_beads(), seed=1)
    assert large.n_atoms != small.n_atoms
    before = small.scale.clone(), small.pair_mean.clone()
    small.load_weights(large.weights())
    for name, value in small.named_parameters():
        assert torch.equal(value, dict(large.named_parameters())[name])
    assert torch.equal(before[0], small.scale)
    assert torch.equal(before[1], small.pair_mean)
    x = frames_of(four_beads(), 2)
    assert torch.isfinite(small(x, torch.full((2,), 5.0), torch.randn(2, 12))).all()
    wider = build(ala2, width=64)
    with pytest.raises(ValueError, match="another network"):
        wider.load_weights(large.weights())


def test_statistics_do_not_tell_equivalent_atoms_apart(ala2):
    model = build(ala2)
    classes = graph_classes(ala2.atomic_numbers, ala2.bonds)
    x = frames_of(ala2, 64, 1)
    scale = 0.01 + 0.02 * torch.rand(12, 22)
    model.fit_statistics(x, scale)
    for kind in set(classes.tolist()):
        members = np.flatnonzero(classes == kind)
        mean = scale[:, members].square().mean(1).sqrt()
        for atom in members:
            torch.testing.assert_close(model.scale[:, atom], mean)
    bond = torch.linalg.vector_norm(x[:, ala2.bonds[0][0]] - x[:, ala2.bonds[0][1]], dim=-1)
    i, j = ala2.bonds[0]
    assert float(model.pair_mean[i, j]) == pytest.approx(float(bond.mean()), abs=0.003)
    torch.testing.assert_close(model.pair_mean, model.pair_mean.T)
    lags = torch.tensor([1.0, 100.0])
    torch.testing.assert_close(model.displacement_scale(lags)[:, :, 0], model.scale[[0, -1]])


def test_graph_classes(ala2):
    classes = graph_classes(ala2.atomic_numbers, ala2.bonds)
    kinds = {}
    for atom, kind in enumerate(classes.tolist()):
        kinds.setdefault(kind, set()).add(atom)
    hydrogens = {atom for atom in range(22) if ala2.atomic_numbers[atom] == 1}
    shared = [members for members in kinds.values() if len(members) > 1]
    assert sorted(map(len, shared)) == [3, 3, 3], "three methyl groups and nothing else"
    assert all(members <= hydrogens for members in shared)
    # A chain read from either end.
    assert graph_classes([6] * 5, [(0, 1), (1, 2), (2, 3), (3, 4)]).tolist() == [0, 1, 2, 1, 0]
    order = np.random.default_rng(0).permutation(22)
    again = renumbered(ala2, order)
    assert graph_classes(again.atomic_numbers, again.bonds).tolist() == classes[order].tolist()


def test_stereo_labels_are_of_the_molecule_and_not_of_its_numbering(ala2):
    ((centre, sign),) = stereo_labels(ala2)
    assert ala2.atom_names[centre] == "CA"
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(22)
        ((place, again),) = stereo_labels(renumbered(ala2, order))
        assert (order[place], again) == (centre, sign)
    mirrored = renumbered(ala2, range(22)).to_dict()
    mirrored["positions"] = (ala2.positions * [1, 1, -1]).tolist()
    assert stereo_labels(Molecule.from_dict(mirrored)) == [[centre, -sign]]
    assert stereo_labels(four_beads()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"atomic_numbers": [6, 6, 6, 0]}, "atomic_numbers"),
        ({"bonds": [[0, 4]]}, "bonds"),
        ({"stereo": [[0, 2]]}, "stereo"),
        ({"stereo": [[9, 1]]}, "stereo"),
        ({"frame_atoms": [0, 1, 1]}, "frame_atoms"),
        ({"heavy_atoms": [0, 1]}, "heavy_atoms"),
        ({"lag_min_ps": 5.0, "lag_max_ps": 1.0}, "lag_min_ps"),
        ({"heads": 3}, "heads"),
        ({"n_calls": 0}, "n_calls"),
        ({"n_lag_nodes": 1}, "n_lag_nodes"),
    ],
)
def test_wrong_arguments_are_named(changes, word):
    good = GraphDiffusion.for_molecule(four_beads(), **SETTINGS).hyperparameters
    with pytest.raises(ValueError, match=word):
        GraphDiffusion(**(good | changes))


def test_training_lowers_the_loss():
    molecule = four_beads()
    # Frames drawn independently: bonds breathe by 0.004 nm about their length.
    trajectories = [frames_of(molecule, 400, seed, 0.003).numpy() for seed in (1, 2)]
    pairs, held_out = (TransitionPairs([x], 1.0) for x in trajectories)
    torch.manual_seed(0)
    model = GraphDiffusion.for_molecule(
        molecule, **(SETTINGS | {"width": 16, "vectors": 4, "edge_width": 4})
    )
    fit_statistics(model, pairs)
    settings = TrainSettings(
        max_steps=60, minutes=5.0, batch_size=48, learning_rate=1e-2, warmup_steps=10, bf16=False
    )
    before = held_out_loss(model, held_out, settings, [10.0], 256)[10.0]
    train(model, pairs, settings)
    after = held_out_loss(model, held_out, settings, [10.0], 256)[10.0]
    assert math.isfinite(after)
    assert after < 0.85 * before
