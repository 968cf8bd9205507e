"""Correlation times and errors of populations, of series whose own are known."""

import numpy as np
import pytest
from scipy.signal import lfilter

from openmm_sd.analysis.effective import correlation_time, frames_to_error


def autoregressive(memory, chains, length, seed):
    """Series with the autocorrelation memory**t."""
    kicks = np.random.default_rng(seed).normal(size=(chains, length))
    kicks[:, 0] /= np.sqrt(1 - memory**2)
    return lfilter([1.0], [1.0, -memory], kicks)


def two_states(enter, leave, chains, length, seed):
    """A Markov chain between 0 and 1, from equilibrium; its memory is 1 - enter - leave."""
    rng = np.random.default_rng(seed)
    x = np.empty((chains, length), dtype=bool)
    x[:, 0] = rng.random(chains) < enter / (enter + leave)
    for k in range(1, length):
        inside = x[:, k - 1]
        x[:, k] = np.where(inside, rng.random(chains) >= leave, rng.random(chains) < enter)
    return x


def exact(memory):
    return 0.5 * (1 + memory) / (1 - memory)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("chains", [1, 40])
def test_the_time_of_an_autoregressive_series(memory, chains):
    time, error = correlation_time(autoregressive(memory, chains, 120_000 // chains, 3))
    assert abs(time - exact(memory)) < 4 * error
    assert error < 0.25 * time


def test_the_time_of_a_two_state_chain_and_the_error_of_its_population():
    enter, leave = 0.01, 0.04
    time, error = correlation_time(two_states(enter, leave, 50, 4000, 1))
    assert abs(time - exact(0.95)) < 4 * error
    # As many frames as are said to be enough have the error that was asked for.
    length = round(frames_to_error(0.2, exact(0.95), 0.02))
    assert length == 15_600
    means = two_states(enter, leave, 400, length, 2).mean(1)
    assert means.std() == pytest.approx(0.02, rel=0.12)


def test_the_error_of_a_time_is_its_spread():
    found = np.array([correlation_time(x) for x in autoregressive(0.8, 300, 2000, 5)])
    assert np.isfinite(found).all()
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.4)
    assert found[:, 0].mean() == pytest.approx(exact(0.8), rel=0.08)


def test_chains_that_are_too_short_for_their_memory_say_nothing():
    assert np.isnan(correlation_time(autoregressive(0.99, 1, 300, 1))).all()
    assert np.isnan(correlation_time(autoregressive(0.99, 500, 50, 1))).all()
    assert np.isnan(correlation_time(np.zeros(1000))).all()
    # Nothing was left while it was looked at.
    assert np.isnan(correlation_time(np.arange(2000) < 1000)).all()


def test_chains_that_are_apart_are_not_taken_for_independent_frames():
    """Means of their own would hide that no chain has ever left its state."""
    stuck = np.repeat(np.arange(20) % 2, 500).reshape(20, 500) + 0.01 * autoregressive(
        0.1, 20, 500, 1
    )
    assert np.isnan(correlation_time(stuck)).all()
