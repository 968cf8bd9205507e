"""Pairs, the Markov model behind them, and the training stage."""

import json
from dataclasses import replace

import four_beads
import numpy as np
import pytest
import torch
from conftest import IMPLICIT
from small_molecules import alkane, ethane, methanol, rotated, shaken
from test_internal import lively

from openmm_sd import Molecule, ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import Dataset, Run, write_dataset
from openmm_sd.files.folder import sole_writer
from openmm_sd.model.relatives import constraints_of_relatives, windows_of_relatives
from openmm_sd.model.windows import angle_windows, bond_windows, contact_distances, torsion_windows
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.propagator.internal.family import FamilyDiffusion
from openmm_sd.propagator.internal.single import InternalDiffusion
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.train import (
    Part,
    TrainSettings,
    TransitionPairs,
    denoising_loss,
    family_statistics,
    fit_statistics,
    held_out_loss,
    methyl_rotors,
    train,
    trainer,
)
from openmm_sd.train.data import TrainingData, make_card, split_runs
from openmm_sd.train.markov import Cells, _conformations, reversible_transitions
from openmm_sd.train.networks import NETWORKS
from openmm_sd.train.rare import RareFirst
from openmm_sd.train.settings import StageSettings


def diffuse(start, frames, rng):
    """An overdamped angle in the potential -1.5 cos 2x - cos x (kT)."""
    x = np.array(start, dtype=float)
    result = np.empty((frames, len(x)))
    result[0] = x
    for k in range(1, frames):
        for _ in range(5):
            force = -(3.0 * np.sin(2.0 * x) + np.sin(x))
            x = x + 0.02 * force + np.sqrt(0.04) * rng.normal(size=len(x))
        result[k] = x
    return result


@pytest.fixture(scope="module")
def two_wells():
    """Short runs from everywhere, three long ones from one side, and a long equilibrium sample."""
    rng = np.random.default_rng(1)
    seeded = diffuse(rng.uniform(-np.pi, np.pi, 600), 60, rng)[2:]
    plain = diffuse(np.zeros(3), 3000, rng)
    truth = diffuse(np.where(rng.random(1000) < 0.85, 0.0, np.pi), 600, rng)[150:]
    return [*seeded.T, *plain.T], truth


def fit_markov(angles, spacing_ps, lag_ps, **how):
    return Cells.of(angles, spacing_ps, **how).model(lag_ps)


def exact_population():
    x = np.linspace(-np.pi, np.pi, 20001)[:-1]
    weight = np.exp(1.5 * np.cos(2.0 * x) + np.cos(x))
    return weight[np.cos(x) > 0].sum() / weight.sum()


def on_circle(angles):
    """Three atoms of which the second shows the angle."""
    zero = np.zeros_like(angles)
    return np.stack(
        [
            np.stack([zero, zero, zero], -1),
            np.stack([np.cos(angles), np.sin(angles), zero], -1),
            np.stack([zero, zero, zero + 1.0], -1),
        ],
        axis=-2,
    ).astype(np.float32)


def hops(pairs, lag, seed=1):
    """Chance to leave each side within a lag."""
    generator = torch.Generator().manual_seed(seed)
    frame, later, _ = pairs.draw(100_000, lag, lag, generator)
    before, after = frame[:, 1, 0] > 0, later[:, 1, 0] > 0
    return float((~after[before]).double().mean()), float(after[~before].double().mean())


def test_markov_weights_of_seeded_runs(two_wells):
    """The runs' own share of frames is far off, the Markov model's weights are not."""
    runs, _ = two_wells
    model = fit_markov([run[:, None] for run in runs], 1.0, lag_ps=10.0, weights_lag_ps=2.0)
    side = np.cos(np.concatenate(runs)) > 0
    found = float((model.frame_weights() * side).sum())
    assert abs(side.mean() - exact_population()) > 0.05
    # The spread over seeds is 0.012.
    assert found == pytest.approx(exact_population(), abs=0.04)
    # Between the wells, from long chains: 45 (4) frames over seeds.
    assert 30.0 < model.timescales(1)[0] < 60.0


def test_timescales_of_several_lags_at_once(two_wells):
    angles = [run[:, None] for run in two_wells[0]]
    cells = Cells.of(angles, 1.0, weights_lag_ps=2.0)
    for lag in (5.0, 10.0):
        alone = fit_markov(angles, 1.0, lag_ps=lag, weights_lag_ps=2.0).timescales(2)
        np.testing.assert_allclose(cells.model(lag).timescales(2), alone)


def test_pairs_read_both_ways_keep_the_law(two_wells):
    runs, truth = two_wells
    markov = fit_markov([run[:, None] for run in runs], 1.0, lag_ps=10.0, weights_lag_ps=2.0)
    frames = [on_circle(run) for run in runs]
    both = TransitionPairs(frames, 1.0, markov=markov, compose_from_ps=100.0)
    forwards = TransitionPairs(frames, 1.0)
    right = np.cos(truth) > 0

    def expected(lag):
        before, after = right[:-lag], right[lag:]
        return (~after[before]).mean(), after[~before].mean()

    for lag in (20, 50, 200):
        out, back = expected(lag)
        found = hops(both, lag)
        assert found[0] == pytest.approx(out, rel=0.3)
        assert found[1] == pytest.approx(back, rel=0.12)
        # Detailed balance between the sides, which pairs read forwards do not have.
        p = exact_population()
        assert p * found[0] == pytest.approx((1 - p) * found[1], rel=0.35)
    out, back = expected(200)
    assert abs(hops(forwards, 200)[0] / out - 1) > abs(hops(both, 200)[0] / out - 1)


def test_conformations_of_the_markov_model(two_wells):
    """The wells are found, and nothing else."""
    runs, _ = two_wells
    markov = fit_markov([run[:, None] for run in runs], 1.0, lag_ps=10.0, weights_lag_ps=2.0)
    assert markov.n_conformations == 2
    cells, side = np.concatenate(markov.cells), np.cos(np.concatenate(runs)) > 0
    state = (
        markov.conformations[cells]
        == markov.conformations[cells[np.argmax(np.cos(np.concatenate(runs)))]]
    )
    weights = markov.frame_weights()
    assert (weights * (state == side)).sum() > 0.97


def test_one_well_is_one_conformation():
    """A broad well without barriers, however long its runs."""
    rng = np.random.default_rng(4)
    x, runs = rng.normal(0.0, 0.5, 8), []
    for _ in range(1000):
        x = x - 0.1 * x + 0.22 * rng.normal(size=8)
        runs.append(x)
    model = fit_markov([run[:, None] for run in np.array(runs).T], 1.0, lag_ps=10.0)
    assert model.n_cells >= 15
    assert model.n_conformations == 1


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [([20, 20], 2), ([20, 20, 20], 3), ([40, 1], 1), ([40, 1, 1, 1], 1), ([30, 8, 3], 2)],
)
def test_conformations_that_nothing_connects(blocks, expected):
    """Whatever mixture of the blocks an eigenvector shows, none is cut and none missed."""
    rng = np.random.default_rng(8)
    for _ in range(5):
        n, start = sum(blocks), 0
        counts, owner = np.zeros((n, n)), np.empty(n, dtype=int)
        for number, size in enumerate(blocks):
            part = slice(start, start + size)
            counts[part, part] = rng.uniform(1.0, 2.0, (size, size))
            owner[part] = number
            start += size
        counts = counts + counts.T
        weights = counts.sum(1)
        order = rng.permutation(n)
        transitions = (counts / weights[:, None])[np.ix_(order, order)]
        states = _conformations(transitions, weights[order] / weights.sum())
        assert states.max() + 1 == expected
        for number, size in enumerate(blocks):
            if size >= 5:
                assert len(set(states[owner[order] == number])) == 1


def test_rare_hops_come_first_with_less_weight(two_wells):
    """The same means as of pairs drawn as they come, from many more hops."""
    runs, _ = two_wells
    markov = fit_markov([run[:, None] for run in runs], 1.0, lag_ps=10.0, weights_lag_ps=2.0)
    pairs = TransitionPairs(
        [on_circle(run) for run in runs], 1.0, markov=markov, compose_from_ps=20.0
    )
    rare = RareFirst(pairs, 1.0, 100.0, seed=3, pool_size=1 << 16)
    generator = torch.Generator().manual_seed(5)
    plain = pairs.draw(1 << 16, 1.0, 100.0, generator)
    some = [rare.draw(1024, step, generator) for step in range(64)]
    frame, later, lag, weight = (torch.cat(column) for column in zip(*some, strict=True))

    def out(frame, later, lag):
        """Out of the likelier well, by no more than 8 frames."""
        return ((frame[:, 1, 0] > 0) & (later[:, 1, 0] < 0) & (lag <= 8)).double()

    as_they_come, drawn = out(*plain), out(frame, later, lag)
    assert drawn.mean() > 2.5 * as_they_come.mean()
    assert float((weight * drawn).mean()) == pytest.approx(float(as_they_come.mean()), rel=0.2)
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((weight * lag).mean()) == pytest.approx(float(plain[2].mean()), rel=0.03)
    # Weights and hops do not depend on the place in the batch, which sets the noise level.
    first = weight.view(64, 1024)[:, :512].mean()
    assert float(first) == pytest.approx(1.0, abs=0.05)


def test_rare_hops_of_a_resumed_training(two_wells):
    """What a step draws follows from its number and the generator alone."""
    runs, _ = two_wells
    markov = fit_markov([run[:, None] for run in runs], 1.0, lag_ps=10.0, weights_lag_ps=2.0)
    pairs = TransitionPairs([on_circle(run) for run in runs], 1.0, markov=markov)

    def drawn(steps):
        rare = RareFirst(pairs, 1.0, 50.0, pool_size=1024)
        assert rare.states is not None
        return {k: rare.draw(256, k, torch.Generator().manual_seed(k)) for k in steps}

    # Four steps a pool: 6 lies inside the second one.
    all_of_them, resumed = drawn(range(12)), drawn(range(6, 12))
    for step, columns in resumed.items():
        for one, other in zip(columns, all_of_them[step], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(all_of_them[0][0], all_of_them[4][0])


def test_pairs_without_a_markov_model_come_as_they_are(two_wells):
    runs, _ = two_wells
    pairs = TransitionPairs([on_circle(run) for run in runs], 1.0)
    drawn = RareFirst(pairs, 1.0, 50.0).draw(64, 0, torch.Generator().manual_seed(1))
    plain = pairs.draw(64, 1.0, 50.0, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(drawn, plain, strict=False))
    assert torch.equal(drawn[3], torch.ones(64))


def test_composed_lags_need_no_long_run(two_wells):
    runs, _ = two_wells
    short = [run for run in runs if len(run) < 100]
    markov = fit_markov([run[:, None] for run in short], 1.0, lag_ps=10.0)
    pairs = TransitionPairs([on_circle(r) for r in short], 1.0, markov=markov, compose_from_ps=40.0)
    generator = torch.Generator().manual_seed(3)
    _, later, lag = pairs.draw(20_000, 1000.0, 1000.0, generator)
    assert float(lag.min()) == 1000.0
    share = float((later[:, 1, 0] > 0).double().mean())
    assert share == pytest.approx(exact_population(), abs=0.05)
    with pytest.raises(ValueError, match="no trajectory is longer than the lag of 1000 ps"):
        TransitionPairs([on_circle(r) for r in short], 1.0).draw(8, 1000.0, 1000.0, generator)


def test_reversible_transitions():
    """One-way counts are enough once the weights are known."""
    weights = np.array([0.7, 0.25, 0.05])
    exact = np.array([[0.95, 0.05, 0.0], [0.14, 0.80, 0.06], [0.0, 0.30, 0.70]])
    np.testing.assert_allclose(weights * exact[:, 1], exact[1] * 0.25, atol=1e-12)
    counts = 1e6 * np.array([500.0, 300.0, 200.0])[:, None] * exact
    found = reversible_transitions(counts, weights)
    np.testing.assert_allclose(found, exact, atol=2e-4)
    # Nothing was ever seen to go from 1 to 2.
    counts[1, 2] = 0.0
    found = reversible_transitions(counts, weights)
    np.testing.assert_allclose(found.sum(1), 1.0)
    flow = weights[:, None] * found
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    assert 0.03 < found[1, 2] < 0.09


def test_methyl_rotors(ala2):
    rotors = methyl_rotors(ala2)
    names = [{ala2.atom_names[a] for a in rotor} for rotor in rotors]
    assert len(rotors) == 3
    assert {"HB1", "HB2", "HB3"} in names
    frame = np.asarray(ala2.positions, dtype=np.float32)
    pairs = TransitionPairs([np.stack([frame] * 3)], 1.0, rotors=rotors)
    turned, _, _ = pairs.draw(200, 1.0, 1.0, torch.Generator().manual_seed(1))
    kinds = {
        tuple(np.argmin(np.linalg.norm(t[:, None] - frame, axis=-1), 1)) for t in turned.numpy()
    }
    assert len(kinds) == 27
    for t in turned.numpy():
        assert (ala2.handedness.measure(t) == ala2.handedness.signs).all()


def test_split_runs_share_no_frame():
    rng = np.random.default_rng(0)
    runs = [Run(f"plain{k}", "plain", rng.normal(size=(400, 2, 3)), 1.0) for k in range(2)]
    runs += [Run(f"s{k}", "seeded", rng.normal(size=(30, 2, 3)), 1.0) for k in range(40)]
    kept, held = split_runs(runs, 0.1, 1)
    assert sum(r.n_frames for r in kept) + sum(r.n_frames for r in held) == 2000
    assert sum(r.n_frames for r in held) == 200
    inside = {r.positions[k].tobytes() for r in kept for k in range(r.n_frames)}
    assert not inside & {r.positions[k].tobytes() for r in held for k in range(r.n_frames)}
    assert split_runs(runs, 0.0, 1) == (runs, [])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set: chains of a model in implicit solvent."""
    model = ScoreModel.load(IMPLICIT)
    molecule = model.molecules[0]
    chains = Rollout(
        model,
        RolloutSettings(chains=4, lag_ps=1.0),
        np.asarray(molecule.positions, dtype=np.float32)[None],
    )
    frames = np.stack([chains.advance() for _ in range(60)])
    path = tmp_path_factory.mktemp("data") / "chains.h5"
    runs = [Run(f"plain-{k}", "plain", frames[:, k], 1.0) for k in range(3)]
    runs.append(Run("seeded-0", "seeded", frames[:, 3], 1.0))
    lengths = []
    for i, j in molecule.bonds:
        heavy, hydrogen = (j, i) if molecule.atomic_numbers[i] == 1 else (i, j)
        if molecule.atomic_numbers[hydrogen] == 1:
            gap = np.linalg.norm(frames[..., heavy, :] - frames[..., hydrogen, :], axis=-1)
            lengths.append([heavy, hydrogen, float(gap.mean())])
    provenance = {
        "temperature_K": 300.0,
        "force_field": ["amber99sbildn.xml"],
        "water": "none",
        # The model's chains hold these bonds only roughly.
        "constraint_lengths_nm": lengths,
    }
    write_dataset(path, molecule, runs, provenance)
    return path


SMALL = ["--width", "32", "--depth", "1", "--max-steps", "12", "--batch-size", "32"]
SMALL += [
    "--no-bf16",
    "--lag-max",
    "20",
    "--start-frames",
    "20",
    "--threads",
    "1",
    "--minutes",
    "5",
]


@pytest.mark.parametrize("network", ["auto", "dense"])
def test_train_command(data, tmp_path, capfd, network):
    output = tmp_path / "small.safetensors"
    arguments = [*SMALL, "--held-out", "0.4"]
    # What suits alanine dipeptide is the default.
    arguments += ["--network", network] if network != "auto" else []
    code = main(["train", str(data), "-o", str(output), "--json", *arguments])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    result = json.loads(captured.out)
    assert result["steps"] == 12
    assert result["network"] == {"auto": "internal"}.get(network, network)
    assert set(result["held_out_loss_by_lag_ps"]) == {"1", "2", "5", "10", "20"}
    assert all(0.0 < v < 3.0 for v in result["held_out_loss_by_lag_ps"].values())
    assert not list(tmp_path.glob("*.checkpoint"))

    model = ScoreModel.load(output)
    assert type(model.propagator) is NETWORKS[result["network"]]
    assert model.temperature == 300.0
    assert model.lag_range == (1.0, 20.0)
    assert model.start_frames.shape == (20, 22, 3)
    assert len(model.bond_windows) == 9
    assert len(model.angle_windows) == 36
    assert {frozenset(w[:2]) for w in model.torsion_windows} >= {
        frozenset((1, 8)),  # the carbons next to the two peptide bonds
        frozenset((8, 18)),
    }
    assert model.contact_distances
    assert len(model.constraint_lengths) == 12
    assert model.card["training"]["data_sets"][0]["file"] == "chains.h5"
    entry = model.card["novelty"]
    assert entry["threshold"] == model.novelty.threshold >= 1.25
    assert entry["frames"] == model.card["training"]["frames"]
    assert entry["held_out_frames"] > 0
    assert entry["held_out_fired"] <= 1
    # Its own training frames pass its gates.
    chains = Rollout(model, RolloutSettings(chains=8, lag_ps=1.0))
    chains.advance()
    assert chains.statistics()["draws"] >= 8


def test_training_resumes(data, tmp_path, capfd):
    """A training that was cut off and goes on ends where the uninterrupted one does."""
    from openmm_sd.train.driver import train_bundle

    def settings(**changes):
        training = {"max_steps": 8, "batch_size": 16, "bf16": False, "report_seconds": 0.0}
        return StageSettings(
            network_settings={"width": 16, "depth": 1},
            lag_max_ps=20.0,
            device="cpu",
            training=TrainSettings(**(training | changes)),
        )

    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train_bundle([data], whole, settings())

    class Stop(Exception):
        pass

    calls = []

    def interrupt(what, how_far):
        calls.append(what)
        if calls.count("training") == 4:
            raise Stop

    with pytest.raises(Stop):
        train_bundle([data], parts, settings(), progress=interrupt)
    assert not parts.exists()
    with pytest.raises(ValueError, match="other settings .batch_size"):
        train_bundle([data], parts, settings(batch_size=8))
    checkpoint = tmp_path / "parts.safetensors.checkpoint"
    kept = checkpoint.read_bytes()
    for damaged in (b"", b"no checkpoint", kept[: len(kept) // 2]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, or no checkpoint; remove that file"):
            train_bundle([data], parts, settings())
        assert checkpoint.read_bytes() == damaged
    checkpoint.write_bytes(kept)
    busy = pytest.raises(ValueError, match="another training is writing to .*checkpoint")
    with sole_writer(checkpoint, "training"), busy:
        train_bundle([data], parts, settings())
    train_bundle([data], parts, settings())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]
    one, other = (ScoreModel.load(path).propagator.state_dict() for path in (whole, parts))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value)


def test_init_takes_weights(data, tmp_path):
    from openmm_sd.train.driver import train_bundle

    def run(name, **changes):
        training = TrainSettings(max_steps=1, batch_size=8, bf16=False, learning_rate=1e-9)
        taken = {"network_settings": {"width": 16, "depth": 1}, "lag_max_ps": 20.0} | changes
        path = tmp_path / f"{name}.safetensors"
        train_bundle([data], path, StageSettings(device="cpu", training=training, **taken))
        return path

    first = run("first")
    other = run("other", init=str(first))
    one, two = (ScoreModel.load(p).propagator for p in (first, other))
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)
    assert one.hyperparameters == two.hyperparameters
    with pytest.raises(ValueError, match="another size"):
        run("wider", init=str(first), network_settings={"width": 32, "depth": 1})
    with pytest.raises(ValueError, match="wanted is dense"):
        run("dense", init=str(first), network="dense")
    # Weights belong to their coordinates: of another molecule they would be noise.
    beads = tmp_path / "beads.safetensors"
    positions = four_beads.start_positions()[None].astype(np.float32)
    lags = {"lag_min_ps": 1.0, "lag_max_ps": 20.0}
    network = DenseDiffusion.for_molecule(four_beads.molecule(), positions, **lags)
    ScoreModel(network, four_beads.molecule()).save(beads)
    with pytest.raises(ValueError, match="another molecule"):
        run("foreign", init=str(beads))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--network", "sparse"], "network must be one of auto, internal, dense, family"),
        (["--lag-min", "50", "--lag-max", "20"], "shortest lag must be below"),
        (["--device", "tpu9"], "device must be cpu, cuda, cuda:N or auto"),
        (["-o", "model.bin"], "must end in .safetensors"),
        (["--minutes", "0"], "minutes must be a positive number"),
        (["--batch-size", "0"], "batch_size must be"),
        (["--held-out", "0.9"], "held_out must be a number from 0 to 0.5"),
    ],
)
def test_wrong_settings(data, tmp_path, capfd, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    output = [] if "-o" in change else ["-o", "model.safetensors"]
    arguments = ["train", str(data), *output, *change]
    assert main(arguments) == 2
    assert message in capfd.readouterr().err


def test_bond_windows_hold_the_data(ala2):
    rng = np.random.default_rng(2)
    frames = np.asarray(ala2.positions) + rng.normal(scale=0.002, size=(50, 22, 3))
    windows = bond_windows(ala2, frames)
    assert len(windows) == 9
    for i, j, low, high in windows:
        length = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)
        assert low < length.min() < length.max() < high


def test_torsion_windows_are_of_what_does_not_turn(ala2):
    rng = np.random.default_rng(2)
    frames = np.asarray(ala2.positions) + rng.normal(scale=0.002, size=(50, 22, 3))
    for windows in (angle_windows(ala2, frames), torsion_windows(ala2, frames)):
        for i, j, low, high in windows:
            length = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)
            assert low < length.min() < length.max() < high
    all_pairs = {tuple(w[:2]) for w in torsion_windows(ala2, frames)}
    # ACE turned about phi, half-way round in some frames.
    side = [0, 1, 2, 3, 4, 5, 7]
    axis = frames[:, 8] - frames[:, 6]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    arm = frames[:25, side] - frames[:25, 6:7]
    frames[:25, side] = (
        frames[:25, 6:7]
        + 2 * (arm * axis[:25, None]).sum(-1, keepdims=True) * (axis[:25, None])
        - arm
    )
    turned = {tuple(w[:2]) for w in torsion_windows(ala2, frames)}
    assert {(4, 10), (4, 14)} <= all_pairs
    assert all_pairs - turned == {(4, 10), (4, 14)}
    assert {(0, 8), (5, 8), (8, 18)} <= turned


def chain_of(n_atoms):
    """Carbon atoms in a row, 0.1 nm from one to the next."""
    return Molecule(
        "chain",
        (6,) * n_atoms,
        tuple((k, k + 1) for k in range(n_atoms - 1)),
        tuple(f"C{k}" for k in range(n_atoms)),
        ("CHN",) * n_atoms,
        ("1",) * n_atoms,
        np.array([[0.1 * k, 0.0, 0.0] for k in range(n_atoms)]),
    )


def test_contact_distances_are_the_shortest_of_all_frames(monkeypatch):
    molecule = chain_of(8)
    straight = np.asarray(molecule.positions, dtype=np.float32)
    frames = np.stack([straight * scale for scale in (1.1, 1.2, 1.0, 1.3, 1.4)])
    # In the shortest frame pairs k bonds apart are k times 0.1 nm apart: from six on out of reach.
    monkeypatch.setattr("openmm_sd.model.windows._CONTACT_REACH_NM", 0.55)
    pairs = [(i, j) for i in range(8) for j in range(i + 3, min(i + 6, 8))]
    expected = [[i, j, 0.1 * (j - i) - 0.01] for i, j in pairs]
    found = contact_distances(molecule, frames)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # In parts of two frames, and from several runs: the same.
    monkeypatch.setattr("openmm_sd.model.windows._CONTACT_CHUNK", 2 * 15)
    assert contact_distances(molecule, frames) == found
    assert contact_distances(molecule, frames[:1], frames[1:]) == found
    assert contact_distances(chain_of(3), frames[:, :3]) == []


def test_contacts_of_biased_runs_count(ala2):
    rng = np.random.default_rng(2)
    frames = np.asarray(ala2.positions) + rng.normal(scale=0.001, size=(60, 22, 3))
    frames = frames.astype(np.float32)
    plain = Run("plain", "plain", frames[:40], 1.0)
    biased = Run("biased", "biased", frames[40:].copy(), 1.0, log_weights=np.zeros(20))
    biased.positions[7, 0] = biased.positions[7, 21] + np.float32([0.15, 0.0, 0.0])
    settings = StageSettings(time_reversal=False, held_out=0.0)
    data = TrainingData.of(
        Dataset(ala2, {}, (biased, plain)), settings, "cpu", lambda what, how_far: None
    )
    card = make_card(data, (1.0, 20.0), 10.0, {"network": "dense"}, "ala2", "A test.")
    found = {(i, j): shortest for i, j, shortest in card["contact_distances_nm"]}
    assert found[0, 21] == pytest.approx(0.14, abs=1e-4)


def windows_of(molecule, frames):
    return {
        "bond_windows_nm": bond_windows(molecule, frames),
        "angle_windows_nm": angle_windows(molecule, frames),
        "torsion_windows_nm": torsion_windows(molecule, frames),
        "contact_distances_nm": contact_distances(molecule, frames),
    }


def test_windows_of_a_molecule_without_data():
    kin = []
    for carbons, width in ((3, 0.004), (5, 0.002), (6, 0.003)):
        molecule = alkane(carbons)
        kin.append((molecule, windows_of(molecule, shaken(molecule, 300, width, seed=carbons))))
    found = windows_of_relatives(alkane(4), kin)
    own = windows_of(alkane(4), shaken(alkane(4), 300, 0.003, seed=9))
    for name in ("bond_windows_nm", "angle_windows_nm"):
        assert [row[:2] for row in found[name]] == [row[:2] for row in own[name]]
    ends, middle = found["bond_windows_nm"][0], found["bond_windows_nm"][1]
    # Propane, which is shaken most, has bonds of the outer kind and none between two CH2.
    outer = [row[2:] for row in kin[0][1]["bond_windows_nm"]]
    assert ends[2:] == [min(low for low, _ in outer), max(high for _, high in outer)]
    inner = [row[2:] for row in kin[1][1]["bond_windows_nm"][1:3]]
    inner += [row[2:] for row in kin[2][1]["bond_windows_nm"][1:4]]
    assert middle[2:] == [min(low for low, _ in inner), max(high for _, high in inner)]
    assert ends[2] < middle[2] < middle[3] < ends[3]
    assert {tuple(row[:2]) for row in found["contact_distances_nm"]} >= {
        tuple(row[:2]) for row in own["contact_distances_nm"]
    }
    closest = dict((tuple(row[:2]), row[2]) for row in found["contact_distances_nm"])
    for i, j, shortest in own["contact_distances_nm"]:
        assert closest[i, j] < shortest + 0.01
    # Of itself a molecule gets its own back, as wide as its widest equivalent pair.
    again = windows_of_relatives(alkane(5), [kin[1]])
    for name, rows in kin[1][1].items():
        mine = {tuple(row[:2]): row[2:] for row in again[name]}
        for i, j, *window in rows:
            assert mine[i, j][0] <= window[0]
            assert mine[i, j][1:] >= window[1:]
    with pytest.raises(ValueError, match="none of the molecules with data has a distance"):
        windows_of_relatives(methanol(), kin)


def test_what_turns_in_one_relative_has_no_window():
    stuck, free = (alkane(n) for n in (5, 6))
    cards = [windows_of(stuck, shaken(stuck, 200)), windows_of(free, rotated(free, 200))]
    assert cards[0]["torsion_windows_nm"]
    assert not cards[1]["torsion_windows_nm"]
    found = windows_of_relatives(alkane(7), [(stuck, cards[0]), (free, cards[1])])
    assert not found["torsion_windows_nm"]
    assert windows_of_relatives(alkane(7), [(stuck, cards[0])])["torsion_windows_nm"]


def test_constrained_bonds_of_a_molecule_without_data():
    kin = []
    for carbons in (3, 5):
        molecule = alkane(carbons)
        lengths = [[i, j, 0.111] for i, j in molecule.bonds if j >= carbons]
        kin.append((molecule, {"constraint_lengths_nm": lengths}))
    found = constraints_of_relatives(alkane(4), kin)
    assert sorted(row[1] for row in found) == list(range(4, 14))
    assert {row[2] for row in found} == {0.111}
    assert (
        constraints_of_relatives(alkane(4), [(m, {"constraint_lengths_nm": []}) for m, _ in kin])
        == []
    )
    for row in kin[1][1]["constraint_lengths_nm"]:
        row[2] = 0.1115
    with pytest.raises(ValueError, match="not with one voice"):
        constraints_of_relatives(alkane(4), kin)
    only = [(methanol(), {"constraint_lengths_nm": [[1, 5, 0.096]]})]
    with pytest.raises(ValueError, match="do not say"):
        constraints_of_relatives(alkane(4), only)


def test_molecules_without_rotors():
    water = Molecule(
        "water",
        (8, 1, 1),
        ((0, 1), (0, 2)),
        ("O", "H1", "H2"),
        ("HOH",) * 3,
        ("1",) * 3,
        np.array([[0.0, 0.0, 0.0], [0.096, 0.0, 0.0], [-0.024, 0.093, 0.0]]),
    )
    assert methyl_rotors(water) == []


def test_biased_runs_connect_what_transitions_do_not(two_wells):
    """Runs that never cross, and a biased sample that knows how likely the sides are."""
    runs, _ = two_wells
    apart = [run for run in runs if (np.cos(run) > 0.25).all() or (np.cos(run) < -0.25).all()]
    angles = [run[:, None] for run in apart]
    side = np.cos(np.concatenate(apart)) > 0
    alone = fit_markov(angles, 1.0, lag_ps=10.0)
    assert len({bool(s) for s in side[alone.frame_weights() > 0]}) == 1

    rng = np.random.default_rng(5)
    flat = rng.uniform(-np.pi, np.pi, (20_000, 1))
    log_weights = 1.5 * np.cos(2.0 * flat[:, 0]) + np.cos(flat[:, 0])
    both = fit_markov(angles, 1.0, lag_ps=10.0, weighted=[(flat, log_weights)])
    found = float((both.frame_weights() * side).sum())
    x = np.linspace(-np.pi, np.pi, 20001)[:-1]
    x = x[np.abs(np.cos(x)) > 0.25]
    weight = np.exp(1.5 * np.cos(2.0 * x) + np.cos(x))
    assert found == pytest.approx(weight[np.cos(x) > 0].sum() / weight.sum(), abs=0.02)


def test_biased_runs_correct_what_few_crossings_say():
    """Two sides that plain runs cross a few times; a run without barriers knows better."""
    exact = exact_population()
    rng = np.random.default_rng(11)
    errors_alone, errors_both = [], []
    for _ in range(6):
        runs = list(diffuse(np.where(rng.random(4) < 0.5, 0.0, np.pi), 2000, rng).T)
        angles = [run[:, None] for run in runs]
        # Free diffusion: all of the circle is equally likely.
        flat = np.cumsum(rng.normal(0.0, 0.25, 20_000))[:, None]
        log_weights = 1.5 * np.cos(2.0 * flat[:, 0]) + np.cos(flat[:, 0]) + 7.0
        side = np.cos(np.concatenate(runs)) > 0
        for errors, weighted in ((errors_alone, []), (errors_both, [(flat, log_weights)])):
            model = fit_markov(angles, 1.0, lag_ps=10.0, weighted=weighted)
            found = float((model.frame_weights() * side).sum())
            errors.append(np.log(found / (1 - found)) - np.log(exact / (1 - exact)))
    # Some ten crossings each way allow an error of 0.3 to 0.5, the diffusion's hundreds 0.08.
    both, alone = (np.sqrt(np.mean(np.square(e))) for e in (errors_both, errors_alone))
    # Over seeds 0.12 to 0.15, and 0.2 to 0.4.
    assert both < 0.2
    assert both < alone


def test_biased_runs_that_never_cross_change_nothing():
    rng = np.random.default_rng(12)
    angles = [run[:, None] for run in diffuse(np.zeros(4), 2000, rng).T]
    stays = rng.normal(0.0, 0.3, (5000, 1))
    log_weights = np.zeros(5000)
    alone = fit_markov(angles, 1.0, lag_ps=10.0).frame_weights()
    both = fit_markov(angles, 1.0, lag_ps=10.0, weighted=[(stays, log_weights)]).frame_weights()
    side = np.cos(np.concatenate(angles)[:, 0]) > 0
    assert (both * side).sum() == pytest.approx((alone * side).sum(), abs=1e-3)


def boltzmann(x):
    """The logarithmic weight of angles in the potential of `diffuse`."""
    return 1.5 * np.cos(2.0 * x) + np.cos(x)


def apart(two_wells):
    """Runs that stay on one side, and on which side each frame is."""
    runs = [r for r in two_wells[0] if (np.cos(r) > 0.25).all() or (np.cos(r) < -0.25).all()]
    return [run[:, None] for run in runs], np.cos(np.concatenate(runs)) > 0


def share_of(model, side):
    return float((model.frame_weights() * side).sum())


def expected_share():
    x = np.linspace(-np.pi, np.pi, 20001)[:-1]
    x = x[np.abs(np.cos(x)) > 0.25]
    weight = np.exp(boltzmann(x))
    return weight[np.cos(x) > 0].sum() / weight.sum()


def test_windows_of_one_analysis_share_their_constant(two_wells):
    """Umbrella windows, each a run of its own; none crosses."""
    angles, side = apart(two_wells)
    rng = np.random.default_rng(15)
    windows = []
    for centre in np.linspace(-np.pi, np.pi, 13)[:-1]:
        x = rng.uniform(centre - np.pi / 12, centre + np.pi / 12, (2000, 1))
        windows.append((x, boltzmann(x[:, 0]) - 3.0))
    found = share_of(fit_markov(angles, 1.0, lag_ps=10.0, weighted=windows), side)
    assert found == pytest.approx(expected_share(), abs=0.02)


def test_biased_frames_where_no_other_run_was_are_not_booked_elsewhere(two_wells):
    """Half of the biased weight lies where no unbiased frame is."""
    angles, side = apart(two_wells)
    rng = np.random.default_rng(16)
    flat = rng.uniform(-np.pi, np.pi, (40_000, 1))
    beyond = np.abs(np.cos(flat[:, 0])) < 0.02
    log_weights = boltzmann(flat[:, 0]) + 6.5 * beyond
    assert np.exp(log_weights)[beyond].sum() > 0.3 * np.exp(log_weights).sum()
    found = share_of(fit_markov(angles, 1.0, lag_ps=10.0, weighted=[(flat, log_weights)]), side)
    assert found == pytest.approx(expected_share(), abs=0.03)


def test_biased_run_that_does_not_know_a_third_part():
    """Three wells that nothing connects, a biased run over two of them: the third is left out."""
    rng = np.random.default_rng(17)
    wells = np.array([-2.0, 0.0, 2.0])
    angles = [w + 0.12 * rng.normal(size=(1500, 1)) for w in wells for _ in range(2)]
    where = np.repeat([0, 1, 2], 2 * 1500)
    biased = rng.choice(wells[:2], 4000)[:, None] + 0.12 * rng.normal(size=(4000, 1))
    log_weights = np.where(biased[:, 0] < -1.0, np.log(3.0), 0.0)
    model = fit_markov(angles, 1.0, lag_ps=10.0, weighted=[(biased, log_weights)])
    weights = model.frame_weights()
    found = [weights[where == k].sum() for k in range(3)]
    assert found == pytest.approx([0.75, 0.25, 0.0], abs=0.03)


def test_biased_run_around_the_barrier_is_not_heard():
    """It crosses all the time and knows neither side."""
    rng = np.random.default_rng(18)
    angles = [run[:, None] for run in diffuse(np.zeros(6), 3000, rng).T]
    side = np.cos(np.concatenate(angles)[:, 0]) > 0
    around = 0.5 * np.pi + rng.uniform(-0.5, 0.5, (5000, 1))
    alone = share_of(fit_markov(angles, 1.0, lag_ps=10.0), side)
    # Weights that are wrong, to see whether they are used.
    log_weights = 4.0 * around[:, 0]
    both = share_of(fit_markov(angles, 1.0, lag_ps=10.0, weighted=[(around, log_weights)]), side)
    assert both == pytest.approx(alone, abs=0.01)


def test_little_data_with_biased_runs():
    """Nothing to connect, nothing to stop at."""
    rng = np.random.default_rng(19)
    angles = [rng.uniform(-np.pi, np.pi, (14, 1)) for _ in range(4)]
    flat = rng.uniform(-np.pi, np.pi, (200, 1))
    model = fit_markov(angles, 1.0, lag_ps=10.0, weighted=[(flat, boltzmann(flat[:, 0]))])
    assert model.stationary.sum() == pytest.approx(1.0)


def test_training_follows_the_weights_of_pairs(monkeypatch, ala2):
    """Pairs that weigh nothing teach nothing."""
    frames = lively(40).astype(np.float32)
    pairs = TransitionPairs([frames], 1.0)
    as_they_are = RareFirst.draw

    def weightless(self, *arguments):
        frame, later, lag, weight = as_they_are(self, *arguments)
        return frame, later, lag, 0.0 * weight

    how = TrainSettings(max_steps=5, minutes=1.0, batch_size=8, bf16=False)
    moved = []
    for draw in (as_they_are, weightless):
        monkeypatch.setattr(RareFirst, "draw", draw)
        torch.manual_seed(0)
        model = InternalDiffusion.for_molecule(
            ala2, frames, lag_min_ps=1.0, lag_max_ps=10.0, width=16, depth=1
        )
        fit_statistics(model, pairs)
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        train([Part(model, pairs)], how)
        after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        moved.append(float((after - before).abs().sum()))
    assert moved[0] > 0.0
    assert moved[1] == 0.0


def test_loss_weighs_turns(ala2):
    """The loss is the mixture of stiff and turning parts that the weight asks for."""
    frames = lively(40).astype(np.float32)
    torch.manual_seed(0)
    model = InternalDiffusion.for_molecule(
        ala2, frames, lag_min_ps=1.0, lag_max_ps=10.0, width=16, depth=1
    )
    frame, later = torch.from_numpy(frames[:16]), torch.from_numpy(frames[16:32])
    lag, sigma = torch.full((16,), 5.0), torch.full((16,), 0.5)

    def loss(weight):
        how = TrainSettings(turn_weight=weight)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            return float(denoising_loss(model, frame, later, lag, sigma, how, generator).mean())

    stiff, turning = model.n_stiff, model.noise_size - model.n_stiff
    only_turns, alike = loss(1e9), loss(1.0)
    only_stiff = (alike * (stiff + turning) - only_turns * turning) / stiff
    mixed = (only_stiff * stiff + 5.0 * only_turns * turning) / (stiff + 5.0 * turning)
    assert abs(only_turns - only_stiff) > 0.05 * alike
    assert loss(5.0) == pytest.approx(mixed, rel=1e-3)


# -- several molecules at once ---------------------------------------------------------------------


def trembling(molecule, seed):
    """Atoms that each wander about their place and forget slowly where they were."""
    rng = np.random.default_rng(seed)
    away = np.zeros((400, molecule.n_atoms, 3))
    for k in range(1, len(away)):
        away[k] = 0.98 * away[k - 1] + 0.0015 * rng.normal(size=away[k].shape)
    return (molecule.positions + away).astype(np.float32)


def two_parts():
    parts = []
    members = [(m, TransitionPairs([trembling(m, 1)], 1.0)) for m in (ethane(), methanol())]
    statistics = family_statistics(members, 1.0, 20.0)
    for (molecule, pairs), share in zip(members, (1.0, 3.0), strict=True):
        torch.manual_seed(1)
        network = FamilyDiffusion.for_molecule(molecule, statistics=statistics, width=16, depth=1)
        fit_statistics(network, pairs)
        parts.append(Part(network, pairs, TransitionPairs([trembling(molecule, 2)], 1.0), share))
    parts[1].model.share_weights(parts[0].model)
    return parts


TOGETHER = TrainSettings(
    max_steps=60,
    batch_size=32,
    bf16=False,
    report_seconds=0.0,
    warmup_steps=5,
    learning_rate=1e-2,
    rare_first=False,
)


def test_molecules_that_are_trained_together_share_their_weights(tmp_path):
    parts = two_parts()
    one, other = (part.model for part in parts)
    named = dict(other.named_parameters())
    assert all(parameter is named[name] for name, parameter in one.named_parameters())
    assert one.stiff_mean.shape != other.stiff_mean.shape
    before = [held_out_loss(p.model, p.held_out, TOGETHER, [2.0])[2.0] for p in parts]
    means = [part.model.stiff_mean.clone() for part in parts]
    quiet = replace(TOGETHER, report_seconds=1e9)
    record = train(parts, quiet, lags_ps=[2.0], progress=lambda record: None)
    after = [held_out_loss(p.model, p.held_out, TOGETHER, [2.0])[2.0] for p in parts]
    assert after[0] < 0.97 * before[0], (before, after)
    assert after[1] < 0.97 * before[1], (before, after)
    assert set(record.history[-1]["held_out"]) == {"0: 2", "1: 2"}
    named = dict(other.named_parameters())
    assert all(torch.equal(p, named[name]) for name, p in one.named_parameters())
    for part, mean in zip(parts, means, strict=True):
        assert torch.equal(part.model.stiff_mean, mean)


def test_a_training_of_several_goes_on(tmp_path):
    class Stop(Exception):
        pass

    def interrupt(record):
        if record.steps >= 7:
            raise Stop

    settings = replace(TOGETHER, max_steps=12)
    whole = two_parts()
    nowhere = tmp_path / "none" / "state"
    with pytest.raises(OSError, match="cannot write .*state: No such file .* is intact"):
        train(two_parts(), replace(settings, max_steps=1), checkpoint=nowhere)
    train(whole, settings, progress=lambda record: None)
    file = tmp_path / "state"
    with pytest.raises(Stop):
        train(two_parts(), settings, checkpoint=file, progress=interrupt)
    with pytest.raises(ValueError, match="other molecules, data or networks, or another order"):
        train(two_parts()[::-1], settings, checkpoint=file)
    again = two_parts()
    record = train(again, settings, checkpoint=file, progress=lambda record: None)
    assert record.steps == 12
    for one, other in zip(whole, again, strict=True):
        named = dict(other.model.named_parameters())
        for name, parameter in one.model.named_parameters():
            torch.testing.assert_close(named[name], parameter)


def test_every_molecule_has_pairs_in_each_step(monkeypatch):
    seen = []
    real = trainer.denoising_loss

    def counted(model, frame, *others):
        seen.append(tuple(frame.shape[:2]))
        return real(model, frame, *others)

    monkeypatch.setattr(trainer, "denoising_loss", counted)
    parts = [replace(part, held_out=None) for part in two_parts()]
    train(parts, replace(TOGETHER, max_steps=2), progress=lambda record: None)
    assert seen == [(8, 8), (24, 6)] * 2
    with pytest.raises(ValueError, match="a batch of 1 pairs is too small for 2 molecules"):
        train(parts, replace(TOGETHER, batch_size=1))
