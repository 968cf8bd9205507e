"""Training on a molecule whose populations are known exactly and whose rate MD gives.

Everything a user's training goes through is in it: dynamics by OpenMM, pairs, the real trainer, the
sampler, chains. The torsion prefers one hand over the other, so a kernel that mixes up mirror
images fails as well.
"""

import numpy as np
import pytest
import torch
from four_beads import (
    exact_population,
    molecule,
    population,
    relaxation_time,
    simulate,
    torsion,
)

from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.propagator.internal.single import InternalDiffusion
from openmm_sd.train import Part, TrainSettings, TransitionPairs, fit_statistics, train

LAG_PS = 4.0
SPACING_PS = 1.0
#: What a small network trained for seconds may be off by, beside the statistical errors: over seeds
#: populations came out 0.01 to 0.03 too high after 1500 steps, 0.01 to 0.025 after 2500.
POPULATION_TOLERANCE = 0.03
#: Seconds of training leave hops that stop half-way on the barrier, and half of these return.
RATE_TOLERANCE = 0.15
#: Of the widths of bonds, which are coordinates of the network in internal coordinates.
WIDTH_TOLERANCE = 0.04
SIGMA = 2.0
#: A small network for one lag only, which rounds to `LAG_PS`: seconds do not suffice for a range.
SMALL = {"width": 64, "depth": 2, "lag_min_ps": 3.6, "lag_max_ps": 4.4}

LAGS = {"lag_min_ps": 3.0, "lag_max_ps": 6.0}


@pytest.fixture(scope="module")
def md():
    """64 chains of 1 ns."""
    return simulate(64, 1000.0, SPACING_PS)


def bond_widths(frames):
    bonds = np.linalg.norm(frames[..., 1:, :] - frames[..., :-1, :], axis=-1)
    return bonds.std((0, 1))


def complaints(chains, lag_ps, md, population_tolerance, rate_tolerance, width_tolerance=None):
    """What is wrong with chains (chains, T, 4, 3) that should be `lag_ps` apart."""
    if not np.isfinite(chains).all():
        return ["not finite"]
    found = []
    ratio = bond_widths(chains) / bond_widths(md)
    if width_tolerance is not None and np.abs(ratio - 1.0).max() > width_tolerance:
        found.append(f"widths of bonds {ratio}, not 1 within {width_tolerance:.2f}")
    share, share_error = population(chains)
    allowed = population_tolerance + SIGMA * share_error
    if not abs(share - exact_population()) < allowed:
        found.append(f"population {share:.3f}, not {exact_population():.3f} within {allowed:.3f}")
    time, time_error = relaxation_time(chains, lag_ps, lag_ps)
    known, known_error = relaxation_time(md, SPACING_PS, LAG_PS)
    allowed = rate_tolerance * known + SIGMA * np.hypot(time_error, known_error)
    if not abs(time - known) < allowed:
        found.append(f"relaxation time {time:.2f} ps, not {known:.2f} ps within {allowed:.2f} ps")
    return found


@torch.no_grad()
def chains_of(model, md, lag_ps, steps, chains=512):
    """Chains of jumps from frames of the dynamics, (chains, steps, 4, 3) nm."""
    generator = torch.Generator().manual_seed(3)
    starts = md[:, :: md.shape[1] * len(md) // chains].reshape(-1, 4, 3)[:chains]
    frame, lag = torch.from_numpy(starts), torch.full((len(starts),), lag_ps)
    frames = []
    for _ in range(steps):
        frame = model(frame, lag, torch.randn(len(starts), model.noise_size, generator=generator))
        frame = frame - frame.mean(1, keepdim=True)
        frames.append(frame)
    return torch.stack(frames, 1).numpy()


def new_model(network, md, **size):
    torch.manual_seed(1)
    return network.for_molecule(molecule(), md[0], **size)


def trained(network, md, steps, size, **settings):
    pairs = TransitionPairs(list(md), SPACING_PS)
    model = new_model(network, md, **size)
    fit_statistics(model, pairs)
    arguments = {
        "max_steps": steps,
        "minutes": 30.0,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "warmup_steps": 100,
        "ema_decay": 0.995,
        "bf16": False,
    }
    train([Part(model, pairs)], TrainSettings(**(arguments | settings)))
    return model.eval()


def test_the_dynamics_has_the_known_population(md):
    share, error = population(md)
    assert error < 0.01
    assert share == pytest.approx(exact_population(), abs=3.0 * error)
    # Unequal, so that one half on either side would be seen.
    assert abs(exact_population() - 0.5) > 5 * POPULATION_TOLERANCE
    # Two states: the relaxation time does not depend on the lag at which it is read off.
    short, long = (relaxation_time(md, SPACING_PS, lag) for lag in (2.0, LAG_PS))
    assert short[0] == pytest.approx(long[0], abs=3.0 * np.hypot(short[1], long[1]))
    assert long[1] / long[0] < 0.05


def test_training_recovers_population_and_rate(md):
    model = trained(InternalDiffusion, md, 1500, SMALL)
    chains = chains_of(model, md, LAG_PS, steps=80)
    tolerances = (POPULATION_TOLERANCE, RATE_TOLERANCE, WIDTH_TOLERANCE)
    assert complaints(chains, LAG_PS, md, *tolerances) == []

    # The same check turns down: a kernel with the right populations and another rate,
    assert any("relaxation" in line for line in complaints(chains[:, ::3], LAG_PS, md, *tolerances))
    # its mirror image,
    mirrored = chains * np.array([1, 1, -1], dtype=np.float32)
    assert any("population" in line for line in complaints(mirrored, LAG_PS, md, *tolerances))
    # bonds that are a little wider,
    wider = chains + np.float32(0.003) * np.random.default_rng(1).normal(size=chains.shape)
    assert any("widths" in line for line in complaints(wider, LAG_PS, md, *tolerances))
    # and what has not been trained: it knows the widths, and nothing of the torsion.
    untrained = new_model(InternalDiffusion, md, **SMALL)
    untrained.fit_statistics(torch.from_numpy(md[0]), model.scale)
    said = complaints(chains_of(untrained.eval(), md, LAG_PS, 80), LAG_PS, md, *tolerances)
    assert said
    assert not any("widths" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "steps", "size", "settings"),
    [
        (InternalDiffusion, 8000, {"width": 96, "depth": 2, **LAGS}, {"batch_size": 256}),
        (DenseDiffusion, 8000, {"width": 96, "depth": 2, **LAGS}, {"batch_size": 256}),
    ],
)
def test_longer_training_recovers_them_more_closely(network, steps, size, settings):
    md = simulate(64, 4000.0, SPACING_PS)
    model = trained(network, md, steps, size, **settings)
    chains = chains_of(model, md, LAG_PS, steps=200)
    # In Cartesian coordinates bonds come out 12 to 17 % too wide.
    width_tolerance = WIDTH_TOLERANCE if network is InternalDiffusion else None
    assert complaints(chains, LAG_PS, md, 0.02, 0.12, width_tolerance) == []
    # Neither way over the barrier is missing. There is no upper bound on purpose: diffusion leaves
    # too many frames on top of it (after 8000 steps 2.6 times the dynamics' share in the dense
    # network, 1.6 times in internal coordinates), an error that population and rate do not show.
    for angle in (0.0, np.pi):
        share, known = (
            (np.cos(torsion(frames) - angle) > np.cos(np.deg2rad(20))).mean()
            for frames in (chains, md)
        )
        assert share > 0.5 * known
