"""The dense diffusion propagator: its contract, its solver, and that training finds a known law."""

import json

import numpy as np
import pytest
import torch
from contract_checks import assert_contract_kept

from openmm_sd.propagator.alignment import align_frames
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.propagator.sampler import karras_levels, preconditioning, solver_coefficients
from openmm_sd.train import (
    Part,
    TrainSettings,
    TransitionPairs,
    fit_statistics,
    held_out_loss,
    train,
)

N_ATOMS = 7
# A crooked, chiral molecule, nm.
SHAPE = torch.tensor(
    [
        [0.15, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [-0.05, 0.14, 0.0],
        [-0.05, -0.06, 0.12],
        [0.21, 0.1, 0.07],
        [-0.18, 0.17, 0.06],
        [0.02, -0.15, 0.2],
    ]
)


def random_rotation(generator: torch.Generator) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q[:, 0] *= torch.linalg.det(q)
    return q.float()


def build(seed: int = 0, **changes: object) -> DenseDiffusion:
    """A small model with random weights, the zero-initialised heads included."""
    arguments: dict = {
        "n_atoms": N_ATOMS,
        "frame_atoms": [0, 1, 2],
        "heavy_atoms": [0, 1, 2, 3, 4],
        "lag_min_ps": 1.0,
        "lag_max_ps": 100.0,
        "width": 48,
        "depth": 2,
    }
    torch.manual_seed(seed)
    model = DenseDiffusion(**{**arguments, **changes})
    with torch.no_grad():
        for head in (model.vector_head, model.pair_head):
            head.weight.normal_(std=0.1)
        model.fit_statistics(frames(256, 1), 0.01 + 0.01 * torch.rand(12, N_ATOMS))
    return model.eval()


def frames(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = SHAPE + 0.01 * torch.randn(count, N_ATOMS, 3, generator=generator)
    x = torch.stack([f @ random_rotation(generator).T for f in x])
    return x - x.mean(1, keepdim=True)


def test_it_keeps_the_contract():
    assert_contract_kept(build(), frames(6))


@torch.no_grad()
def test_rotating_the_frame_rotates_the_answer_and_reflecting_it_does_not():
    model, x = build(), frames(32)
    lag, noise = torch.full((32,), 10.0), torch.randn(32, model.noise_size)
    answer = model(x, lag, noise)
    assert float((answer - x).abs().max()) > 0.005, "the model must move something to test this"
    for seed in range(3):
        turn = random_rotation(torch.Generator().manual_seed(seed))
        assert float((model(x @ turn.T, lag, noise) - answer @ turn.T).abs().max()) < 1e-4
    mirror = torch.tensor([1.0, 1.0, -1.0])
    assert float((model(x * mirror, lag, noise) - answer * mirror).abs().max()) > 0.005


@torch.no_grad()
def test_a_jump_carries_no_net_translation_or_rotation():
    model, x = build(), frames(32)
    answer = model(x, torch.full((32,), 50.0), torch.randn(32, model.noise_size))
    heavy = model.heavy
    assert float((answer[:, heavy].mean(1) - x[:, heavy].mean(1)).abs().max()) < 1e-6
    again = align_frames(answer, x, heavy)
    assert float((again - answer).abs().max()) < 1e-5
    # The test would notice: the proposal that went in was turned.
    turned = answer @ random_rotation(torch.Generator().manual_seed(1)).T
    assert float((align_frames(turned, x, heavy) - turned).abs().max()) > 0.01


@torch.no_grad()
def test_it_depends_on_lag_noise_and_nothing_else():
    model, x = build(), frames(4)
    noise = torch.randn(4, model.noise_size)
    short, long = (model(x, torch.full((4,), lag), noise) for lag in (2.0, 80.0))
    assert float((short - long).abs().max()) > 1e-3
    other = model(x, torch.full((4,), 2.0), torch.randn(4, model.noise_size))
    assert float((short - other).abs().max()) > 1e-3
    alone = model(x[2:3], torch.full((1,), 2.0), noise[2:3])
    assert float((alone - short[2:3]).abs().max()) < 1e-5
    assert torch.equal(model(x, torch.full((4,), 2.0), noise), short)


def test_hyperparameters_and_state_rebuild_it():
    model = build(n_calls=5, sigma_max=20.0)
    arguments = json.loads(json.dumps(model.hyperparameters))
    again = DenseDiffusion(**arguments)
    again.load_state_dict(model.state_dict())
    x, lag, noise = frames(3), torch.tensor([1.0, 10.0, 100.0]), torch.randn(3, 3 * N_ATOMS)
    with torch.no_grad():
        assert torch.equal(again(x, lag, noise), model(x, lag, noise))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"frame_atoms": [0, 1, 1]}, "frame_atoms"),
        ({"frame_atoms": [0, 1, 7]}, "frame_atoms"),
        ({"heavy_atoms": [0, 1]}, "heavy_atoms"),
        ({"lag_min_ps": 5.0, "lag_max_ps": 1.0}, "lag_min_ps"),
        ({"n_calls": 0}, "n_calls"),
        ({"sigma_min": 50.0}, "sigma_min"),
    ],
)
def test_wrong_arguments_are_named(changes, word):
    with pytest.raises(ValueError, match=word):
        build(**changes)


@pytest.mark.parametrize(("n_calls", "tolerance"), [(8, 0.06), (48, 0.012)])
def test_the_solver_reproduces_a_gaussian(n_calls, tolerance):
    # For data N(m, w^2) the denoiser is known, and the flow maps noise to data linearly. Starting
    # from 40 widths of noise instead of infinitely many shifts the mean by 0.005.
    mean, width = 0.7, 0.3
    levels = karras_levels(0.01, 40.0, n_calls)
    start = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    y, before = levels[0] * start, torch.zeros(5, dtype=torch.float64)
    for sigma, (a, b, c) in zip(levels, solver_coefficients(levels), strict=True):
        denoised = (width**2 * y + sigma**2 * mean) / (width**2 + sigma**2)
        y, before = a * y + b * denoised + c * before, denoised
    assert float((y - (mean + width * start)).abs().max()) < tolerance


def test_preconditioning_keeps_the_network_at_width_one():
    sigma = torch.tensor([0.01, 1.0, 40.0])
    c_skip, c_out, c_in = preconditioning(sigma)
    torch.testing.assert_close(c_in**2 * (1 + sigma**2), torch.ones(3))
    # The target (y - c_skip (y + sigma n)) / c_out has width one for unit data and noise.
    target = ((1 - c_skip) ** 2 + (c_skip * sigma) ** 2) / c_out**2
    torch.testing.assert_close(target, torch.ones(3))


def toy_trajectory(count: int, seed: int) -> np.ndarray:
    """Frames drawn independently: one bond breathes about 0.19 nm by 0.008, the rest hardly."""
    generator = torch.Generator().manual_seed(seed)
    x = SHAPE + 0.001 * torch.randn(count, N_ATOMS, 3, generator=generator)
    arm = torch.nn.functional.normalize(SHAPE[6] - SHAPE[1], dim=0)
    reach = 0.19 + 0.008 * torch.randn(count, 1, generator=generator)
    x[:, 6] = x[:, 1] + reach * arm
    return torch.stack([f @ random_rotation(generator).T for f in x]).numpy()


def test_training_finds_a_known_law(tmp_path):
    pairs = TransitionPairs([toy_trajectory(1500, s) for s in range(2)], 1.0)
    held_out = TransitionPairs([toy_trajectory(1500, 9)], 1.0)
    torch.manual_seed(0)
    model = DenseDiffusion(
        n_atoms=N_ATOMS,
        frame_atoms=[0, 1, 2],
        heavy_atoms=[0, 1, 2, 3, 4],
        lag_min_ps=1.0,
        lag_max_ps=100.0,
        width=64,
        depth=2,
    )
    fit_statistics(model, pairs)
    settings = TrainSettings(
        max_steps=500, minutes=5.0, batch_size=192, learning_rate=3e-3, bf16=False, ema_decay=0.98
    )

    x = torch.from_numpy(toy_trajectory(1500, 5))
    x = x - x.mean(1, keepdim=True)
    noise = torch.randn(len(x), model.noise_size, generator=torch.Generator().manual_seed(4))

    def reach() -> torch.Tensor:
        with torch.no_grad():
            y = model(x, torch.full((len(x),), 10.0), noise)
        return torch.linalg.vector_norm(y[:, 6] - y[:, 1], dim=-1)

    untrained_loss = held_out_loss(model, held_out, settings, [10.0])[10.0]
    untrained = reach()
    checkpoint = tmp_path / "training.checkpoint"
    parts = [Part(model, pairs, held_out)]
    record = train(parts, settings, lags_ps=[10.0], checkpoint=checkpoint)
    model.eval()
    assert record.steps == 500
    assert held_out_loss(model, held_out, settings, [10.0])[10.0] < 0.9 * untrained_loss
    trained = reach()
    assert float(trained.mean()) == pytest.approx(0.19, abs=0.001)
    assert float(trained.std()) == pytest.approx(0.008, rel=0.15)
    # The same questions to the untrained model have other answers: the test can fail.
    assert abs(float(untrained.std()) / 0.008 - 1.0) > 0.3
    # Frames are independent in this data, so the answer must not remember the frame.
    start = torch.linalg.vector_norm(x[:, 6] - x[:, 1], dim=-1)
    assert abs(float(torch.corrcoef(torch.stack([start, trained]))[0, 1])) < 0.25

    # A finished training is not repeated, and one with other settings is not taken up.
    assert train(parts, settings, checkpoint=checkpoint).steps == 500
    other = TrainSettings(**{**settings.__dict__, "learning_rate": 1e-3})
    with pytest.raises(ValueError, match="learning_rate"):
        train(parts, other, checkpoint=checkpoint)


def test_pairs_are_one_lag_apart_and_never_cross_trajectories():
    lengths = (5, 40, 300)
    trajectories = []
    for k, length in enumerate(lengths):
        time = np.arange(length, dtype=np.float32) + 1000.0 * k
        trajectories.append(np.broadcast_to(time[:, None, None], (length, 3, 3)))
    pairs = TransitionPairs(trajectories, 2.0)
    generator = torch.Generator().manual_seed(0)
    frame, later, lag = pairs.draw(20_000, 2.0, 70.0, generator)
    torch.testing.assert_close((later - frame)[:, 0, 0] * 2.0, lag)
    assert float(lag.min()) == 2.0
    assert float(lag.max()) == 70.0
    # Log-uniform: as many lags below the geometric mean as above.
    assert float((lag < np.sqrt(2.0 * 70.0)).float().mean()) == pytest.approx(0.5, abs=0.06)
    with pytest.raises(ValueError, match="longer than the lag"):
        pairs.draw(10, 800.0, 800.0, generator)


def test_alignment_recovers_a_rotation_and_is_proper():
    x = frames(8)
    generator = torch.Generator().manual_seed(3)
    turned = torch.stack([f @ random_rotation(generator).T + 0.3 for f in x])
    atoms = torch.arange(N_ATOMS)
    assert float((align_frames(turned, x, atoms) - x).abs().max()) < 1e-5
    mirrored = turned * torch.tensor([1.0, 1.0, -1.0])
    assert float((align_frames(mirrored, x, atoms) - x).abs().max()) > 0.01
