"""The novelty score: what it must not depend on, what it must see, and its place in a bundle."""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import IMPLICIT, turned
from small_molecules import (
    acetonitrile,
    carbon_dioxide,
    cyclopropane,
    ethane,
    isobutane,
    methanol,
    shaken,
    water,
)

from openmm_sd import ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset
from openmm_sd.model.bundle import NOVELTY, BundleError, load_bundle, save_bundle
from openmm_sd.model.novelty import EnvironmentVectors, Novelty, fit_novelty
from openmm_sd.propagator.kernels import Identity
from openmm_sd.propagator.script import script_frozen

# Where things are in ACE-ALA-NME.
O_ACE, CA, CB, C = 5, 8, 10, 14
PEPTIDE_BONDS = (((4, 6), slice(6, 22)), ((14, 16), slice(16, 22)))


@pytest.fixture(scope="module")
def shipped():
    return ScoreModel.load("ala2-water")


@pytest.fixture(scope="module")
def frames(shipped):
    """Equilibrium frames with both peptide bonds trans."""
    frames = shipped.start_frames
    return frames[np.abs(omega(frames)).min(axis=1) > np.pi / 2].astype(np.float64)


@pytest.fixture(scope="module")
def fitted():
    """A score for methanol, and the molecule."""
    molecule = methanol()
    return molecule, fit_novelty(molecule, shaken(molecule, 400), shaken(molecule, 200, seed=1))


def omega(frames):
    torsions = ((1, 4, 6, 8), (8, 14, 16, 18))
    return np.stack([dihedral(frames, torsion) for torsion in torsions], axis=1)


def tensor(frames):
    return torch.tensor(np.asarray(frames), dtype=torch.float32)


def rotation(seed):
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


# --- the vectors --------------------------------------------------------------------------------


def by_formulas(atomic_numbers, frame):
    """The vectors of one frame (N, 3), nm: equations 3 and 4 of the ANI paper, term by term."""
    x, n = 10.0 * np.asarray(frame, dtype=float), len(atomic_numbers)
    elements = sorted(set(atomic_numbers))
    pairs = [(a, b) for k, a in enumerate(elements) for b in elements[k:]]
    radial_shifts = 0.8 + (5.1 - 0.8) / 16 * np.arange(16)
    angular_shifts = 0.8 + (3.5 - 0.8) / 8 * np.arange(8)
    sections = np.pi / 8 + np.pi / 4 * np.arange(4)
    distance = np.linalg.norm(x[:, None] - x[None, :], axis=2)

    def fade(r, cutoff):
        return 0.5 * np.cos(np.pi * r / cutoff) + 0.5 if r <= cutoff else 0.0

    radial = np.zeros((n, len(elements), 16))
    angular = np.zeros((n, len(pairs), 8, 4))
    for i, j in itertools.permutations(range(n), 2):
        r = distance[i, j]
        # NeuroChem and torchani have a factor of 1/4 here and of 2 below, and 0.95 with the cosine.
        term = 0.25 * np.exp(-19.7 * (r - radial_shifts) ** 2) * fade(r, 5.1)
        radial[i, elements.index(atomic_numbers[j])] += term
        for k in range(j + 1, n):
            if k == i:
                continue
            s = distance[i, k]
            angle = np.arccos(0.95 * (x[j] - x[i]) @ (x[k] - x[i]) / (r * s))
            turn = 2.0 * (0.5 + 0.5 * np.cos(angle - sections)) ** 14.1
            reach = np.exp(-12.5 * (0.5 * (r + s) - angular_shifts) ** 2)
            pair = pairs.index(tuple(sorted((atomic_numbers[j], atomic_numbers[k]))))
            weight = fade(r, 3.5) * fade(s, 3.5)
            angular[i, pair] += weight * reach[:, None] * turn
    return np.concatenate([radial.reshape(n, -1), angular.reshape(n, -1)], axis=1)


@pytest.mark.parametrize(
    "molecule",
    [water(), carbon_dioxide(), ethane(), methanol(), acetonitrile(), cyclopropane(), isobutane()],
    ids=lambda molecule: molecule.name,
)
def test_vectors_are_those_of_the_formulas(molecule):
    """A torchani that comes to mean something else by them is noticed."""
    frames = shaken(molecule, 2, width=0.02)
    found = EnvironmentVectors(molecule.atomic_numbers)(tensor(frames))
    expected = [by_formulas(molecule.atomic_numbers, frame) for frame in frames]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vectors_of_scattered_atoms():
    rng = np.random.default_rng(2)
    numbers, frame = rng.choice([1, 6, 7, 8, 16], 9), rng.uniform(0.0, 0.6, (9, 3))
    found = EnvironmentVectors(numbers.tolist())(tensor(frame[None]))[0]
    expected = by_formulas(numbers.tolist(), frame)
    assert expected[:, 5 * 16 :].any(axis=1).all()  # every atom sees angles
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vectors_are_made_by_torchani(monkeypatch):
    from torchani.aev import AEVComputer

    score = EnvironmentVectors(methanol().atomic_numbers)
    monkeypatch.setattr(AEVComputer, "forward", lambda self, species, x: 2.0 * x + species[0, -1])
    found = score(torch.ones(1, 6, 3))
    torch.testing.assert_close(found, torch.full((1, 6, 3), 20.0))


def test_scores_of_the_shipped_models(shipped):
    """As by the kernels that the shipped bundles' thresholds were made with."""
    pentane = ScoreModel.load("alkanes-water").members[2]
    for model, scores in (
        (shipped, [0.3568876, 0.9666971, 0.4046247, 0.4108275]),
        (pentane, [0.3984852, 0.2465186, 0.2557473, 0.2138914]),
    ):
        found = model.novelty(tensor(model.start_frames[:4]))
        np.testing.assert_allclose(found, scores, rtol=2e-5)


def test_a_bundle_holds_no_vectors(fitted):
    assert sorted(fitted[1].state_dict()) == sorted(Novelty.STATISTICS)


def test_vector_of_a_pair_by_hand():
    """Two hydrogens 0.12 nm apart: one distance, no angle; equation 3 of the ANI paper."""
    vectors = EnvironmentVectors([1, 1])
    found = vectors(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.12, 0.0]]]))[0]
    shifts = 0.8 + (5.1 - 0.8) / 16 * np.arange(16)
    fade = 0.5 * np.cos(np.pi * 1.2 / 5.1) + 0.5
    expected = 0.25 * np.exp(-19.7 * (1.2 - shifts) ** 2) * fade
    np.testing.assert_allclose(found[:, :16], [expected, expected], atol=1e-6)
    assert not found[:, 16:].any()
    far = vectors(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.52, 0.0]]]))
    assert not far.any()


# --- what the score must not depend on ----------------------------------------------------------


def test_rotation_translation_reflection(shipped, frames):
    some = frames[:20]
    expected = shipped.novelty(tensor(some))
    for moved in (some @ rotation(0) + 3.0, some @ rotation(1), some * [1.0, 1.0, -1.0]):
        torch.testing.assert_close(shipped.novelty(tensor(moved)), expected, rtol=1e-3, atol=0)


def test_exchange_of_equivalent_atoms(shipped, frames):
    molecule = shipped.molecules[0]
    hand = molecule.handedness
    swaps = hand.swaps[~hand.stereo]
    assert len(swaps) == 3  # the methyl groups
    expected = shipped.novelty(tensor(frames[:20]))
    for swap in swaps:
        found = shipped.novelty(tensor(frames[:20, swap]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    # Atoms that are not equivalent, of one element.
    order = np.arange(molecule.n_atoms)
    order[[CA, CB]] = CB, CA
    assert (shipped.novelty(tensor(frames[:20, order])) > shipped.novelty.threshold).all()


@pytest.mark.parametrize(
    ("molecule", "classes"),
    [
        (ethane(), [0, 0, 1, 1, 1, 1, 1, 1]),
        (methanol(), [0, 1, 2, 2, 2, 3]),
        (water(), [0, 1, 0]),
        (isobutane(), [0, 1, 1, 1, 2, *[3] * 9]),
        (cyclopropane(), [0] * 3 + [1] * 6),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_equivalent_atoms(molecule, classes):
    assert list(molecule.equivalent_atoms) == classes


def test_batches_of_any_size(fitted):
    molecule, novelty = fitted
    frames = tensor(shaken(molecule, 150, seed=2))
    whole = novelty(frames)
    assert whole.shape == (150,)
    assert whole.dtype == torch.float32
    single = torch.cat([novelty(frame.unsqueeze(0)) for frame in frames])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    assert novelty(frames[:0]).shape == (0,)


def test_scripted_is_eager_and_survives_a_file(fitted, tmp_path):
    molecule, novelty = fitted
    frames = tensor(shaken(molecule, 100, seed=3))
    frames[7, 2, 1] = float("nan")
    scripted = script_frozen(novelty)
    assert torch.equal(scripted(frames), novelty(frames))
    torch.jit.save(scripted, tmp_path / "score.pt")
    assert torch.equal(torch.jit.load(tmp_path / "score.pt")(frames), novelty(frames))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_frames_that_are_none(fitted, value):
    molecule, novelty = fitted
    frames = tensor(shaken(molecule, 4))
    expected = novelty(frames)
    frames[2, 1, 0] = value
    found = novelty(frames)
    assert found[2] > novelty.threshold
    if not np.isfinite(value):
        assert found[2] == float("inf")
    others = torch.tensor([0, 1, 3])
    torch.testing.assert_close(found[others], expected[others], rtol=1e-4, atol=1e-5)
    assert novelty(torch.zeros(1, molecule.n_atoms, 3))[0] > novelty.threshold


# --- what it must see ---------------------------------------------------------------------------


def test_equilibrium_frames_are_not_novel(shipped, frames):
    score = shipped.novelty(tensor(frames))
    assert (score <= shipped.novelty.threshold).all()
    assert 0.2 < score.median() < 0.7


def test_cis_peptide_bonds(shipped, frames):
    for axis, side in PEPTIDE_BONDS:
        cis = turned(frames[:100], axis, side, 180.0)
        assert (shipped.novelty(tensor(cis)) > shipped.novelty.threshold).all()
    # Chains that start cis would stay cis.
    assert (np.abs(omega(shipped.start_frames)) > np.pi / 2).all()


def test_stretched_and_clashing_molecules(shipped, frames):
    novelty, some = shipped.novelty, frames[:100]
    assert (novelty(tensor(1.1 * some)) > novelty.threshold).all()
    longer = some.copy()
    longer[:, C:] += 0.2 * (some[:, C] - some[:, CA])[:, None]
    assert (novelty(tensor(longer)) > novelty.threshold).float().mean() > 0.7
    clash = some.copy()
    apart = some[:, O_ACE] - some[:, CB]
    clash[:, O_ACE] = some[:, CB] + 0.15 * apart / np.linalg.norm(apart, axis=1, keepdims=True)
    assert (novelty(tensor(clash)) > novelty.threshold).all()


def test_one_is_the_edge_of_the_training_frames():
    """By construction: the farthest training frame has the score 1."""
    molecule = methanol()
    known = shaken(molecule, 300)
    novelty = fit_novelty(molecule, known, known)
    scores = novelty.by_atom(tensor(known))
    for k in set(molecule.equivalent_atoms):
        atoms = [i for i, e in enumerate(molecule.equivalent_atoms) if e == k]
        assert float(scores[:, atoms].max()) == pytest.approx(1.0, rel=1e-4)
    assert novelty.threshold == pytest.approx(1.25, rel=1e-3)


def test_threshold_follows_the_held_out_frames():
    molecule = methanol()
    known = shaken(molecule, 500)
    near = fit_novelty(molecule, known, shaken(molecule, 300, seed=1))
    wide = shaken(molecule, 300, width=0.006, seed=1)
    far = fit_novelty(molecule, known, wide)
    assert far.threshold > 1.3 * near.threshold
    assert not (far(tensor(wide)) > far.threshold).any()
    # Without any, the last tenth of the frames takes their place.
    assert fit_novelty(molecule, np.concatenate([known, wide[:50]])).threshold > near.threshold


@pytest.mark.parametrize("components", [1, 8, 10_000])
def test_any_number_of_directions(components):
    molecule = methanol()
    novelty = fit_novelty(molecule, shaken(molecule, 50), components=components)
    frames = tensor(molecule.positions[None])
    assert novelty(frames)[0] < novelty.threshold
    assert novelty(1.2 * frames)[0] > novelty.threshold


@pytest.mark.parametrize(
    ("frames", "held_out", "message"),
    [
        (np.zeros((5, 4, 3)), None, "frames must have shape"),
        (np.full((5, 6, 3), np.nan), None, "frames hold NaN"),
        (np.zeros((2, 6, 3)), None, "at least 2 training frames"),
        (np.zeros((5, 6, 3)), np.zeros((0, 6, 3)), "held_out must have shape"),
    ],
)
def test_wrong_frames(frames, held_out, message):
    with pytest.raises(ValueError, match=message):
        fit_novelty(methanol(), frames, held_out)


# --- its place in a bundle ----------------------------------------------------------------------


@pytest.fixture
def bundle(fitted, tmp_path):
    molecule, novelty = fitted
    path = tmp_path / "small.safetensors"
    ScoreModel(Identity(molecule.n_atoms), molecule, {}, novelty=novelty).save(path)
    return path


def test_bundle_round_trip(fitted, bundle):
    molecule, novelty = fitted
    model = ScoreModel.load(bundle)
    assert model.card["novelty"] == {"threshold": novelty.threshold}
    assert model.novelty.threshold == novelty.threshold
    frames = tensor(shaken(molecule, 50, seed=4))
    assert torch.equal(model.novelty(frames), novelty(frames))
    assert f"beyond {novelty.threshold:g} is novel" in model.summary()
    again = bundle.with_name("again.safetensors")
    model.save(again)
    assert again.read_bytes() == bundle.read_bytes()


def test_bundle_without(tmp_path):
    molecule = methanol()
    path = tmp_path / "plain.safetensors"
    ScoreModel(Identity(molecule.n_atoms), molecule).save(path)
    model = ScoreModel.load(path)
    assert model.novelty is None
    assert "novelty" not in model.card
    assert "novel" not in model.summary()


def test_card_and_score_must_agree(fitted):
    molecule, novelty = fitted
    kernel = Identity(molecule.n_atoms)
    with pytest.raises(ValueError, match="the model has no novelty score"):
        ScoreModel(kernel, molecule, {"novelty": {"threshold": 1.0}})
    with pytest.raises(ValueError, match="threshold 99"):
        ScoreModel(kernel, molecule, {"novelty": {"threshold": 99.0}}, novelty=novelty)
    for wrong in (3.0, {}, {"threshold": -1}, {"threshold": "high"}):
        with pytest.raises(ValueError, match="must hold a positive threshold"):
            ScoreModel(kernel, molecule, {"novelty": wrong}, novelty=novelty)
    with pytest.raises(ValueError, match="other atoms than ethane"):
        ScoreModel(Identity(8), ethane(), novelty=novelty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "wanted are the tensors environment, mean, axes, weight"),
        ({"extra": torch.ones(1)}, "found axes, environment, extra"),
        ({"mean": torch.zeros(4, 5)}, "mean must be torch.float32 of shape"),
        ({"mean": torch.tensor(1.0)}, "environment must lie in 0 to"),
        ({"axes": torch.zeros(4, 5)}, "axes must be torch.float16 of shape"),
        ({"weight": torch.ones(4)}, "weight must be torch.float32 of shape"),
        ({"environment": torch.zeros(6)}, "environment must be int64 of shape"),
        ({"environment": torch.full((6,), 9)}, "environment must lie in 0 to"),
    ],
)
def test_bad_statistics_are_refused(bundle, change, message):
    tensors, content = load_bundle(bundle)
    for name, tensor_ in change.items():
        tensors.pop(NOVELTY + name, None)
        if tensor_ is not None:
            tensors[NOVELTY + name] = tensor_
    save_bundle(bundle, tensors, content)
    with pytest.raises(BundleError, match=message) as caught:
        ScoreModel.load(bundle)
    assert "\n" not in str(caught.value)


def test_statistics_and_card_belong_together(bundle):
    tensors, content = load_bundle(bundle)
    save_bundle(bundle, tensors, content | {"card": {}})
    with pytest.raises(BundleError, match="must hold a positive threshold"):
        ScoreModel.load(bundle)
    save_bundle(bundle, {}, content)
    with pytest.raises(BundleError, match="the model has no novelty score"):
        ScoreModel.load(bundle)


def test_a_changed_threshold_is_saved(fitted, tmp_path):
    molecule, _ = fitted
    novelty = fit_novelty(molecule, shaken(molecule, 60))
    model = ScoreModel(Identity(molecule.n_atoms), molecule, novelty=novelty)
    model.novelty.threshold = 7.5
    model.save(tmp_path / "changed.safetensors")
    assert ScoreModel.load(tmp_path / "changed.safetensors").novelty.threshold == 7.5


def test_wrong_threshold(fitted):
    molecule, novelty = fitted
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="threshold must be a positive number"):
            Novelty(molecule.atomic_numbers, **novelty.state_dict(), threshold=wrong)


# --- from a data set ----------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    molecule = methanol()
    runs = [
        Run(f"plain-{k}", "plain", shaken(molecule, 80, seed=k).astype(np.float32), 1.0)
        for k in range(3)
    ]
    runs.append(Run("odd", "plain", 1.1 * runs[0].positions, 1.0))
    path = tmp_path / "data.h5"
    write_dataset(path, molecule, runs, {"temperature_K": 300.0})
    return molecule, path


def test_a_bundle_is_given_a_score(dataset, tmp_path, capfd):
    molecule, data = dataset
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    card = {"description": "A test.", "temperature_K": 300.0}
    start = shaken(molecule, 5).astype(np.float32)
    ScoreModel(Identity(molecule.n_atoms), molecule, card, start_frames=start).save(old)
    arguments = ["train", str(data), "-o", str(new), "--novelty-only", str(old), "--json"]
    assert main(arguments) == 0
    everything = json.loads(capfd.readouterr().out)
    assert everything["held_out_frames"] > 0
    assert everything["runs_left_out"] == []
    odd = tensor(1.1 * shaken(molecule, 20, seed=9))
    plain = tensor(shaken(molecule, 20, seed=9))
    novelty = ScoreModel.load(new).novelty
    assert (novelty(odd) > novelty.threshold).float().mean() < 0.5

    assert main([*arguments, "--without", "odd"]) == 0
    result = json.loads(capfd.readouterr().out)
    model = ScoreModel.load(new)
    assert (model.novelty(odd) > model.novelty.threshold).all()
    assert (model.novelty(plain) > model.novelty.threshold).float().mean() < 0.2
    entry = model.card["novelty"]
    assert entry["runs_left_out"] == ["odd"]
    assert entry["threshold"] == result["threshold"] == model.novelty.threshold
    assert entry["frames"] + entry["held_out_frames"] == 240
    assert entry["held_out_fired"] == 0
    assert entry["data_sets"][0]["file"] == "data.h5"
    # Everything else is as it was.
    before, after = load_bundle(old), load_bundle(new)
    assert all(torch.equal(after[0][name], tensor_) for name, tensor_ in before[0].items())
    assert {k: v for k, v in after[1]["card"].items() if k != "novelty"} == before[1]["card"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--novelty-only", "OLD", "--without", "nobody"], "there is no run nobody"),
        (["--novelty-only", str(IMPLICIT)], "of another molecule than the data"),
        (["--without", "nobody"], "there is no run nobody"),
        (
            ["--novelty-only", "OLD", "--minutes", "5"],
            "--minutes has no effect with --novelty-only",
        ),
        (["--novelty-only", "OLD", "--no-bf16"], "--bf16 has no effect with --novelty-only"),
    ],
)
def test_wrong_options(dataset, tmp_path, capfd, options, message):
    molecule, data = dataset
    old = tmp_path / "old.safetensors"
    ScoreModel(Identity(molecule.n_atoms), molecule).save(old)
    options = [str(old) if option == "OLD" else option for option in options]
    assert main(["train", str(data), "-o", str(tmp_path / "new.safetensors"), *options]) == 2
    assert message in capfd.readouterr().err
