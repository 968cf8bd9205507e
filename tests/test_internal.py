"""The network in internal coordinates: the coordinates, its contract, and a law it must find."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from conftest import IMPLICIT
from contract_checks import assert_contract_kept
from four_beads import molecule as four_beads, torsion as bead_torsion
from small_molecules import (
    acetonitrile,
    bent_line,
    butane,
    butyne,
    constrained,
    cyclopropane,
    ethane,
    formaldehyde,
    isobutane,
    random_rotation,
    shaken,
    turned_about,
    water,
    x_h_bonds,
)

from openmm_sd import ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.molecule.torsions import backbone_torsions
from openmm_sd.propagator.alignment import align_frames, choose_frame_atoms
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.propagator.internal.single import InternalDiffusion
from openmm_sd.propagator.internal.tree import (
    InternalTree,
    NotInternal,
    build_tree,
    constant_lengths,
    coordinates_of,
    positions_of,
    turning_torsions,
    wrap,
)
from openmm_sd.propagator.script import script_frozen
from openmm_sd.train import (
    Part,
    TrainSettings,
    TransitionPairs,
    fit_statistics,
    held_out_loss,
    train,
)
from openmm_sd.train.networks import build_network

LAGS = {"lag_min_ps": 1.0, "lag_max_ps": 100.0}
SMALL = {"width": 48, "depth": 2, **LAGS}
TINY = {"width": 16, "depth": 1, **LAGS}


@functools.cache
def ala2():
    return ScoreModel.load(IMPLICIT).molecules[0]


def beads():
    return four_beads()


MOLECULES = [ala2, beads, ethane, butane, isobutane, cyclopropane, formaldehyde]


def tree_of(molecule):
    return build_tree(molecule, choose_frame_atoms(molecule, molecule.positions[None]))


def rebuilt(tree, lengths, angles, torsions):
    """Positions from internal coordinates, by the tree alone."""
    order = tree.order()
    rows = torch.tensor([[*map(order.index, row[:4]), row[4]] for row in tree.rows])
    place = torch.tensor([order.index(atom) for atom in range(tree.n_atoms)])
    return positions_of(lengths, angles, torsions, rows, place, tree.stage_ends())


def rotors(molecule):
    """The bonds about which parts of alanine dipeptide turn: phi, psi and three methyl groups."""
    ((phi, psi),) = backbone_torsions(molecule)
    graph = molecule.graph()
    hydrogens = [h for _, h in x_h_bonds(molecule)]
    methyls = [k for k in graph if sum(n in hydrogens for n in graph[k]) == 3]
    heavy = [next(n for n in graph[k] if n not in hydrogens) for k in methyls]
    return [phi.atoms[1:3], psi.atoms[1:3], *zip(heavy, methyls, strict=True)]


@functools.cache
def lively(count=400, seed=0):
    """Frames of alanine dipeptide, (count, 22, 3) nm: torsions turn, bonds to hydrogens do not."""
    generator = np.random.default_rng(seed)
    frames = constrained(shaken(ala2(), count, seed=seed), ala2())
    for bond in rotors(ala2()):
        frames = turned_about(frames, ala2(), bond, generator.uniform(-np.pi, np.pi, count))
    turns = [random_rotation(generator) for _ in range(count)]
    frames = np.einsum("tni,tij->tnj", frames, np.stack(turns))
    return frames - frames.mean(1, keepdims=True)


def some_frames(count=8, seed=1):
    return torch.tensor(lively(seed=seed)[:count], dtype=torch.float32)


def build(seed=0, head=0.05, **changes):
    """A small network for alanine dipeptide with random weights, its last layer included."""
    torch.manual_seed(seed)
    model = InternalDiffusion.for_molecule(ala2(), lively(), **(SMALL | changes))
    torch.nn.init.normal_(model.head.weight, std=head) if head else None
    scale = 0.1 + 0.8 * torch.rand(model.n_lag_nodes, model.n_turning)
    model.fit_statistics(torch.tensor(lively()), scale)
    return model.eval().requires_grad_(False)


def largest(difference):
    return float(difference.abs().max())


# The coordinates.


@pytest.mark.parametrize("molecule", MOLECULES)
def test_there_and_back(molecule):
    molecule = molecule()
    tree = tree_of(molecule)
    frames = lively() if molecule is ala2() else shaken(molecule, 50, 0.01)
    x = torch.tensor(frames)
    lengths, angles, torsions = coordinates_of(tree, x)
    n = molecule.n_atoms
    assert [v.shape[1] for v in (lengths, angles, torsions)] == [n - 1, n - 2, n - 3]
    built = rebuilt(tree, lengths, angles, torsions)
    assert largest(align_frames(built, x, torch.arange(n)) - x) < 1e-9
    again = coordinates_of(tree, built)
    assert largest(again[0] - lengths) < 1e-9
    assert largest(again[1] - angles) < 1e-9
    assert largest(wrap(again[2] - torsions)) < 1e-9
    # Another torsion is another frame, and the mirror image is not the molecule.
    other = rebuilt(tree, lengths, angles, torsions + 0.01)
    assert largest(align_frames(other, x, torch.arange(n)) - x) > 1e-4
    mirrored = rebuilt(tree, lengths, angles, -torsions)
    assert largest(align_frames(mirrored, x * torch.tensor([1, 1, -1]), torch.arange(n)) - x) > 1e-4


@pytest.mark.parametrize("molecule", MOLECULES)
def test_the_coordinates_are_what_they_are_called(molecule):
    molecule = molecule()
    tree = tree_of(molecule)
    frames = lively() if molecule is ala2() else shaken(molecule, 50, 0.01)
    lengths, angles, torsions = (v.numpy() for v in coordinates_of(tree, torch.tensor(frames)))
    bonds = {frozenset(bond) for bond in molecule.bonds}
    a, b, c = tree.root
    assert {frozenset((a, b)), frozenset((c, b))} <= bonds
    arms = [(a, b), (c, b), *(row[:2] for row in tree.rows)]
    corners = [(a, b, c), *(row[:3] for row in tree.rows)]
    for k, (i, j) in enumerate(arms):
        assert frozenset((i, j)) in bonds
        np.testing.assert_allclose(
            lengths[:, k], np.linalg.norm(frames[:, i] - frames[:, j], axis=1)
        )
    for k, (i, j, m) in enumerate(corners):
        assert frozenset((j, m)) in bonds
        u, v = frames[:, i] - frames[:, j], frames[:, m] - frames[:, j]
        cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        np.testing.assert_allclose(angles[:, k], np.arccos(cosine), atol=1e-7)
    for k, row in enumerate(tree.rows):
        whole = torsions[:, k] + (torsions[:, row[4]] if row[4] >= 0 else 0.0)
        # Of the other sign than IUPAC's; from the same zero, the eclipsed position.
        expected = -dihedral(frames, row[:4])
        np.testing.assert_allclose(np.exp(1j * whole), np.exp(1j * expected), atol=1e-9)


def test_phi_and_psi_are_coordinates():
    tree = tree_of(ala2())
    torsions = coordinates_of(tree, torch.tensor(lively()))[2].numpy()
    for torsion in backbone_torsions(ala2())[0]:
        rows = [k for k, row in enumerate(tree.rows)
                if row[4] < 0 and row[:4] in (torsion.atoms, torsion.atoms[::-1])]  # fmt: skip
        assert len(rows) == 1, torsion.name
        values = -dihedral(lively(), torsion.atoms)
        np.testing.assert_allclose(torsions[:, rows[0]], values, atol=1e-9)
        assert rows[0] in turning_torsions(tree, lively())


@pytest.mark.parametrize("molecule", MOLECULES)
def test_every_atom_is_placed_once_and_after_what_it_leans_on(molecule):
    molecule = molecule()
    tree = tree_of(molecule)
    assert sorted(tree.order()) == list(range(molecule.n_atoms))
    placed = set(tree.root)
    begin = 0
    for end in tree.stage_ends():
        assert end > begin
        for k in range(begin, end):
            atom, parent, grandparent, reference, leader = tree.rows[k]
            assert {parent, grandparent, reference} <= placed, "a stage leans on earlier ones only"
            if leader >= 0:
                assert leader < k
                assert tree.rows[leader][1:] == (parent, grandparent, reference, -1)
        placed |= {row[0] for row in tree.rows[begin:end]}
        begin = end
    assert begin == len(tree.rows)
    # Not a stage an atom.
    if molecule.n_atoms > 6:
        assert len(tree.stage_ends()) < len(tree.rows)


@pytest.mark.parametrize(
    ("root", "rows", "message"),
    [
        ((0, 1, 2), [(3, 2, 1, 0, -1)], "root of 3 and 2 rows, got 3 and 1"),
        ((0, 1), [(3, 2, 1, 0, -1), (4, 3, 2, 1, -1)], "root of 3 and 2 rows, got 2 and 2"),
        ((0, 1, 1), [(3, 2, 1, 0, -1), (4, 3, 2, 1, -1)], "root must be three different atoms"),
        ((0, 1, 5), [(3, 1, 0, 5, -1), (4, 3, 1, 0, -1)], "root must be three different atoms"),
        ((0, 1, 2), [(2, 1, 0, 2, -1), (4, 2, 1, 0, -1)], "row 0 of tree does not place"),
        ((0, 1, 2), [(3, 2, 1, 0, -1), (3, 2, 1, 0, -1)], "row 1 of tree does not place"),
        ((0, 1, 2), [(3, 2, 1, 0, -1), (5, 2, 1, 0, -1)], "row 1 of tree does not place"),
        ((0, 1, 2), [(3, 2, 1, 0), (4, 2, 1, 0, -1)], "row 0 of tree does not place"),
        ((0, 1, 2), [(3, 4, 1, 0, -1), (4, 2, 1, 0, -1)], "row 0 of tree leans on"),
        ((0, 1, 2), [(3, 2, 1, 1, -1), (4, 2, 1, 0, -1)], "row 0 of tree leans on"),
        ((0, 1, 2), [(3, 2, 1, 0, 0), (4, 2, 1, 0, -1)], "row 0 of tree must be led by"),
        ((0, 1, 2), [(3, 2, 1, 0, -1), (4, 2, 1, 0, -2)], "row 1 of tree must be led by"),
    ],
)
def test_trees_that_cannot_be_built_are_refused(root, rows, message):
    with pytest.raises(ValueError, match=message):
        InternalTree(5, root, rows)


def test_a_leader_is_not_led():
    rows = [(3, 2, 1, 0, -1), (4, 2, 1, 0, 0), (5, 2, 1, 0, 1)]
    with pytest.raises(ValueError, match="row 2 of tree must be led by"):
        InternalTree(6, (0, 1, 2), rows)


@pytest.mark.parametrize("number", range(5))
def test_turning_torsions(number):
    # One bond is turned about: the torsions that lead on it turn, and no others.
    tree, bond = tree_of(ala2()), rotors(ala2())[number]
    generator = np.random.default_rng(3)
    frames = shaken(ala2(), 100)
    assert turning_torsions(tree, frames) == []
    leading = [k for k, row in enumerate(tree.rows)
               if set(row[1:3]) == set(bond) and row[4] < 0]  # fmt: skip
    assert len(leading) == 1
    whole = turned_about(frames, ala2(), bond, generator.uniform(-np.pi, np.pi, 100))
    assert turning_torsions(tree, whole) == leading
    # Staying in one well is not turning, wherever the well is; a single hop is.
    for place in (0.0, 1.0, 3.0):
        angles = place + 0.2 * generator.normal(size=100)
        assert turning_torsions(tree, turned_about(frames, ala2(), bond, angles)) == []
    angles = np.zeros(100)
    angles[17] = 2.1
    assert turning_torsions(tree, turned_about(frames, ala2(), bond, angles)) == leading


def test_constant_lengths():
    tree = tree_of(ala2())
    frames = shaken(ala2(), 200)
    assert constant_lengths(tree, frames) == []
    arms = [tree.root[:2], tree.root[:0:-1], *(row[:2] for row in tree.rows)]
    held = {frozenset(bond) for bond in x_h_bonds(ala2())}
    expected = [k for k, arm in enumerate(arms) if frozenset(arm) in held]
    assert len(expected) == 12
    frames = constrained(frames, ala2())
    assert constant_lengths(tree, frames) == expected
    # A trajectory written to 0.001 nm.
    assert constant_lengths(tree, np.round(frames, 3)) == expected
    # One frame shows nothing.
    assert constant_lengths(tree, frames[:1]) == []


# What it is built for.


@pytest.mark.parametrize("molecule", [bent_line, butyne])
def test_straight_chains_do_not_suit_it(molecule):
    molecule = molecule()
    with pytest.raises(NotInternal, match="near a line"):
        InternalDiffusion.for_molecule(molecule, shaken(molecule), **SMALL)
    network = build_network(molecule, shaken(molecule), TINY)
    assert isinstance(network, DenseDiffusion)
    with pytest.raises(NotInternal, match="near a line"):
        build_network(molecule, shaken(molecule), TINY, "internal")


def test_what_else_does_not_suit_it():
    with pytest.raises(NotInternal, match="frames"):
        InternalDiffusion.for_molecule(ala2(), **SMALL)
    with pytest.raises(NotInternal, match="water has fewer"):
        InternalDiffusion.for_molecule(water(), shaken(water()), **SMALL)


def test_the_network_is_chosen_by_the_molecule(tmp_path):
    assert isinstance(build_network(ala2(), lively(), TINY), InternalDiffusion)
    ring = cyclopropane()
    assert isinstance(build_network(ring, shaken(ring), TINY), DenseDiffusion)
    # Weights that are taken over decide for their network, a name for its own.
    classes = {"internal": InternalDiffusion, "dense": DenseDiffusion}
    for name, cls in classes.items():
        network = build_network(ala2(), lively(), TINY, name)
        assert type(network) is cls
        path = tmp_path / f"{name}.safetensors"
        ScoreModel(network, ala2()).save(path)
        again = build_network(ala2(), lively(), TINY, init=str(path))
        assert type(again) is cls
        assert again.hyperparameters == network.hyperparameters
        if name != "dense":
            with pytest.raises(ValueError, match="wanted is dense"):
                build_network(ala2(), lively(), TINY, "dense", str(path))


@torch.no_grad()
@pytest.mark.parametrize("molecule", [formaldehyde, acetonitrile, cyclopropane, beads])
def test_nothing_turns_everything_is_held_and_other_extremes(molecule):
    molecule = molecule()
    frames = shaken(molecule)
    for case in ("shaken", "rigid"):
        if case == "rigid":
            # All bonds held, as with AllBonds constraints.
            tree = tree_of(molecule)
            lengths, angles, torsions = coordinates_of(tree, torch.tensor(frames))
            lengths = lengths.mean(0).expand_as(lengths)
            frames = rebuilt(tree, lengths, angles, torsions).numpy()
        torch.manual_seed(0)
        model = InternalDiffusion.for_molecule(molecule, frames, **SMALL)
        if case == "rigid" and molecule.name != "cyclopropane":
            assert model.n_free == 0
        model.fit_statistics(torch.tensor(frames), torch.full((12, model.n_turning), 0.3))
        x = torch.tensor(frames[:3], dtype=torch.float32)
        lag, noise = torch.full((3,), 10.0), torch.randn(3, model.noise_size)
        answer = model(x, lag, noise)
        assert torch.isfinite(answer).all()
        assert 1e-4 < largest(answer - x) < 0.3
        torch.testing.assert_close(script_frozen(model)(x, lag, noise), answer, atol=1e-5, rtol=0)


# The contract.


def test_it_keeps_the_contract():
    assert_contract_kept(build(), some_frames(6))


@torch.no_grad()
def test_symmetry_batches_and_what_an_answer_depends_on():
    model, x = build(), some_frames(16)
    lag, noise = torch.full((16,), 10.0), torch.randn(16, model.noise_size)
    answer = model(x, lag, noise)
    assert largest(answer - x) > 0.02, "the model must move something to test this"
    for seed in range(3):
        turn = torch.tensor(random_rotation(np.random.default_rng(seed)), dtype=torch.float32)
        shift = torch.tensor([0.3, -0.8, 0.5])
        assert largest(model(x @ turn.T + shift, lag, noise) - (answer @ turn.T + shift)) < 1e-4
    assert torch.equal(model(x, lag, noise), answer)
    for k in (0, 7):
        alone = model(x[k : k + 1], lag[:1], noise[k : k + 1])
        assert largest(alone - answer[k : k + 1]) < 1e-5
    assert largest(model(x, 8.0 * lag, noise) - answer) > 1e-3
    assert largest(model(x, lag, noise.roll(1, 0)) - answer) > 1e-2
    assert largest(model(x.roll(1, 0), lag, noise).roll(-1, 0) - answer) > 1e-2
    frozen = script_frozen(build())
    assert largest(frozen(x, lag, noise) - answer) < 1e-5


@torch.no_grad()
def test_a_jump_carries_no_net_translation_or_rotation():
    model, x = build(), some_frames(32)
    answer = model(x, torch.full((32,), 50.0), torch.randn(32, model.noise_size))
    heavy = model.heavy
    assert heavy.tolist() == list(ala2().heavy)
    assert largest(answer[:, heavy].mean(1) - x[:, heavy].mean(1)) < 1e-6
    assert largest(align_frames(answer, x, heavy) - answer) < 1e-5


@torch.no_grad()
def test_held_bonds_stay_held():
    model, x = build(head=0.2), some_frames(64)
    assert len(model.hyperparameters["constant"]) == 12
    answer = model(x, torch.full((64,), 10.0), torch.randn(64, model.noise_size))

    def lengths(bonds):
        return torch.stack([(answer[:, i] - answer[:, j]).norm(dim=-1) for i, j in bonds])

    held = x_h_bonds(ala2())
    assert largest(lengths(held) - 0.11) < 1e-6
    free = [bond for bond in ala2().bonds if not {bond, bond[::-1]} & set(held)]
    assert float(lengths(free).std(1).min()) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("n_calls", [4, 8])
def test_untrained_it_has_the_widths_of_the_data(n_calls):
    """Its last layer is zero: the answers of a denoiser of Gaussians that know of nothing else."""
    model = build(head=0.0, n_calls=n_calls)
    count = 4000
    x = torch.tensor(lively())[torch.arange(count) % len(lively())].float()
    # Exactly of mean zero and width one, so that the sampler's own error is all there is to see.
    noise = torch.randn(count, model.noise_size, generator=torch.Generator().manual_seed(2))
    noise = (noise - noise.mean(0)) / noise.std(0)
    answer = model(x, torch.full((count,), 10.0), noise)
    stiff, turned = model.measure(answer.double())
    assert stiff.shape[1] == model.n_stiff == 9 + 20 + 14
    assert largest(stiff.mean(0)) < 0.002
    assert largest(stiff.std(0) - 1.0) < 0.002
    # In nm and radians too: these are the data's means and widths.
    hyperparameters = model.hyperparameters
    rows = [tuple(row) for row in hyperparameters["tree"]]
    tree = InternalTree(22, tuple(hyperparameters["root"]), rows)
    known = coordinates_of(tree, torch.tensor(lively()))[1]
    found = coordinates_of(tree, answer.double())[1]
    assert largest(found.mean(0) - known.mean(0)) < 1e-3
    assert largest(found.std(0) / known.std(0) - 1.0) < 0.02
    assert float(wrap(turned - model.measure(x)[1]).std(0).min()) > 0.1


@torch.no_grad()
def test_the_scale_of_turning():
    """By its definition the plane's two coordinates have mean square one together."""
    model = build().double()
    frame, later = (torch.tensor(lively(seed=seed)) for seed in (5, 6))
    model.scale.copy_(model.measure_scale(frame, later).expand_as(model.scale))
    clean, _ = model.target(frame, later, torch.full((len(frame),), 10.0, dtype=torch.float64))
    along, across = clean[:, model.n_stiff :].split(model.n_turning, dim=-1)
    assert largest((along**2 + across**2).mean(0) - 2.0) < 1e-5
    # What is diffused and the frame give the later frame back.
    _, turned = model.measure(frame)
    scale = model.scale[:1].expand(len(frame), -1)
    built = model.build(clean, turned, scale)
    assert largest(align_frames(built, later, model.heavy) - later) < 1e-6


# Hyperparameters, bundles, arguments.


def test_hyperparameters_and_state_rebuild_it():
    model = build(n_calls=5, sigma_max=20.0, n_lag_nodes=7)
    again = InternalDiffusion(**json.loads(json.dumps(model.hyperparameters)))
    again.load_state_dict(model.state_dict())
    assert again.hyperparameters == model.hyperparameters
    x, lag = some_frames(3), torch.tensor([1.0, 10.0, 100.0])
    noise = torch.randn(3, model.noise_size)
    with torch.no_grad():
        assert torch.equal(again(x, lag, noise), model(x, lag, noise))


@torch.no_grad()
def test_with_calls():
    model, x = build(), some_frames(4)
    lag, noise = torch.full((4,), 10.0), torch.randn(4, model.noise_size)
    same, other = model.with_calls(model.n_calls), model.with_calls(24)
    assert torch.equal(same(x, lag, noise), model(x, lag, noise))
    assert (other.n_calls, other.hyperparameters["n_calls"]) == (24, 24)
    assert len(other.levels) == 24
    moved = largest(other(x, lag, noise) - model(x, lag, noise))
    # Another number of calls, the same law: nearer to this noise's answer than another noise's.
    assert 1e-5 < moved < 0.3 * largest(model(x, lag, noise.roll(1, 0)) - model(x, lag, noise))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    other.head.weight += 1.0
    assert not torch.equal(other.head.weight, model.head.weight), "a copy, not the same weights"


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = ScoreModel(build(), ala2())
    path = tmp_path / "internal.safetensors"
    model.save(path)
    again = ScoreModel.load(path)
    assert isinstance(again.propagator, InternalDiffusion)
    x, lag = some_frames(3), torch.tensor([1.0, 10.0, 100.0])
    noise = torch.randn(3, model.noise_size)
    expected = model.propagator(x, lag, noise)
    assert torch.equal(again.propagator(x, lag, noise), expected)
    assert largest(again.scripted()(x, lag, noise) - expected) < 1e-5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n_atoms": 3, "tree": []}, "n_atoms"),
        ({"n_atoms": 23}, "23 atoms"),
        ({"root": [4, 6, 6]}, "root"),
        ({"root": [4, 6, 22]}, "root"),
        ({"turning": [19]}, "turning"),
        ({"turning": [3, 3]}, "turning"),
        ({"constant": [21]}, "constant"),
        ({"constant": [-1]}, "constant"),
        ({"heavy_atoms": [0, 1]}, "heavy_atoms"),
        ({"heavy_atoms": [0, 1, 22]}, "heavy_atoms"),
        ({"lag_min_ps": 5.0, "lag_max_ps": 1.0}, "lag_min_ps"),
        ({"n_lag_nodes": 1}, "n_lag_nodes"),
        ({"n_calls": 0}, "n_calls"),
        ({"sigma_min": 20.0}, "sigma_min"),
    ],
)
def test_wrong_arguments_are_named(changes, word):
    good = InternalDiffusion.for_molecule(ala2(), lively(), **SMALL).hyperparameters
    InternalDiffusion(**good)
    with pytest.raises(ValueError, match=word):
        InternalDiffusion(**(good | changes))


def test_a_wrong_row_is_named():
    good = InternalDiffusion.for_molecule(ala2(), lively(), **SMALL).hyperparameters
    tree = [list(row) for row in good["tree"]]
    tree[4][0] = tree[3][0]
    with pytest.raises(ValueError, match="row 4 of tree does not place"):
        InternalDiffusion(**(good | {"tree": tree}))


# Training.

SHARE, WELLS, WELL_WIDTH = 0.7, (1.2, -1.6), 0.25
STRETCH_NM = 0.004


def law(count, seed):
    """Frames of the four beads, drawn independently, and which well each is in.

    The torsion lies in one of two wells, and the last bond is longer in the first well than in the
    second: two things that no coordinate has by itself.
    """
    rng = np.random.default_rng(seed)
    first = rng.random(count) < SHARE
    phi = np.where(first, *WELLS) + WELL_WIDTH * rng.normal(size=count)
    r = 0.15 + 0.002 * rng.normal(size=(3, count))
    r[2] += STRETCH_NM * np.where(first, 1.0, -1.0)
    t = np.deg2rad(111.0) + 0.03 * rng.normal(size=(2, count))
    zero = np.zeros(count)
    x = np.stack(
        [
            np.stack([r[0] * np.cos(t[0]), r[0] * np.sin(t[0]), zero], -1),
            np.zeros((count, 3)),
            np.stack([r[1], zero, zero], -1),
            np.stack([r[1] - r[2] * np.cos(t[1]), r[2] * np.sin(t[1]) * np.cos(phi),
                      r[2] * np.sin(t[1]) * np.sin(phi)], -1),
        ],
        axis=1,
    )  # fmt: skip
    assert np.abs(np.sin(bead_torsion(x) - phi)).max() < 1e-9
    x = np.einsum("tni,tij->tnj", x, np.stack([random_rotation(rng) for _ in range(count)]))
    return (x - x.mean(1, keepdims=True)).astype(np.float32)


def test_training_finds_a_known_law():
    pairs, held_out = TransitionPairs([law(3000, 1)], 1.0), TransitionPairs([law(1500, 2)], 1.0)
    torch.manual_seed(0)
    model = InternalDiffusion.for_molecule(four_beads(), law(500, 3), width=64, depth=2, **LAGS)
    assert model.hyperparameters["turning"] == [0]
    fit_statistics(model, pairs)
    how = TrainSettings(
        max_steps=800, minutes=5.0, batch_size=192, learning_rate=3e-3, bf16=False, ema_decay=0.98,
        warmup_steps=50,
    )  # fmt: skip
    frames = law(4000, 5)
    x = torch.from_numpy(frames)
    noise = torch.randn(len(x), model.noise_size, generator=torch.Generator().manual_seed(4))

    def figures():
        with torch.no_grad():
            y = model(x, torch.full((len(x),), 10.0), noise).double().numpy()
        phi = bead_torsion(y)
        first = np.abs(wrap(torch.tensor(phi - WELLS[0])).numpy()) < 1.4
        bond = np.linalg.norm(y[:, 3] - y[:, 2], axis=1)
        was_first = bead_torsion(frames) > 0
        return {
            "share": first.mean(),
            "places": [math.atan2(np.sin(phi[s]).mean(), np.cos(phi[s]).mean())
                       for s in (first, ~first)],
            "width": np.std(wrap(torch.tensor(phi[first] - WELLS[0])).numpy()),
            "stretch": bond[first].mean() - bond[~first].mean(),
            "bond": bond[first].std(),
            "memory": first[was_first].mean() - first[~was_first].mean(),
        }  # fmt: skip

    def loss():
        return held_out_loss(model, held_out, how, [10.0])[10.0]

    before, loss_before = figures(), loss()
    train([Part(model, pairs)], how)
    model.eval()
    assert loss() < 0.85 * loss_before
    after = figures()
    assert after["share"] == pytest.approx(SHARE, abs=0.03)
    assert after["places"] == pytest.approx(WELLS, abs=0.04)
    assert after["width"] == pytest.approx(WELL_WIDTH, rel=0.15)
    assert after["stretch"] == pytest.approx(2.0 * STRETCH_NM, rel=0.12)
    assert after["bond"] == pytest.approx(0.002, rel=0.12)
    # Frames are independent in this data, so the answer must not remember the frame.
    assert abs(after["memory"]) < 0.1
    # The untrained network knows none of it: the test can fail.
    assert abs(before["share"] - SHARE) > 0.06
    assert before["width"] > 2.0 * WELL_WIDTH
    assert abs(before["stretch"]) < STRETCH_NM
    assert before["bond"] > 0.003
    assert before["memory"] > 0.3


def test_weight_of_turns_in_the_loss():
    """The mean weight stays one; turns count as many times more as asked."""
    model = InternalDiffusion.for_molecule(ala2(), lively(), **SMALL)
    plain, heavy = model.loss_weights(1.0), model.loss_weights(5.0)
    assert torch.equal(plain, torch.ones(model.noise_size))
    assert float(heavy.mean()) == pytest.approx(1.0)
    n = model.n_stiff
    assert float(heavy[n:].min() / heavy[:n].max()) == pytest.approx(5.0)
    assert heavy[:n].unique().numel() == heavy[n:].unique().numel() == 1
