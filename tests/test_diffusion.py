"""Noise levels, solvers and tables of the diffusion networks, on data whose denoiser is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from openmm_sd.propagator.sampler import (
    interpolate_by_lag,
    karras_levels,
    multistep_coefficients,
    solver_coefficients,
    starting_width,
)

LEVELS = karras_levels(0.05, 10.0, 10, 10.0)


def sampled(levels, coefficients, start, width, mean=0.0):
    """Where the sampler takes a start, for Gaussian data: the denoiser is linear then."""
    y, answers = start, []
    for sigma, (a, *b) in zip(levels, coefficients, strict=True):
        answers.insert(0, mean + width**2 * (y - mean) / (width**2 + sigma**2))
        y = a * y + sum(factor * answer for factor, answer in zip(b, answers, strict=False))
    return y


def test_levels_fall_from_the_first_to_the_last():
    assert LEVELS[0] == pytest.approx(10.0)
    assert LEVELS[-1] == pytest.approx(0.05)
    assert (np.diff(LEVELS) < 0.0).all()
    assert karras_levels(0.05, 10.0, 1) == [10.0]
    for arguments, word in [((0.05, 10.0, 0), "n_calls"), ((1.0, 1.0, 5), "sigma_min")]:
        with pytest.raises(ValueError, match=word):
            karras_levels(*arguments)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("n_calls", [2, 3, 10])
def test_multistep_rows(order, n_calls):
    levels = karras_levels(0.05, 10.0, n_calls, 10.0)
    rows = multistep_coefficients(levels, order)
    assert len(rows) == n_calls
    assert {len(row) for row in rows} == {order + 1}
    assert rows[-1] == [0.0, 1.0] + [0.0] * (order - 1)
    for k, (a, *b) in enumerate(rows):
        # The first step uses one answer, the second two at most: the rest is padded with zeros.
        assert b[k + 1 :] == [0.0] * len(b[k + 1 :])
        if k < n_calls - 1:
            assert a == pytest.approx(levels[k + 1] / levels[k])
            assert b[0] > 0.0
        # A constant answer is kept once the sample has been centred on it, which the first step
        # does: from noise around zero to noise around the answer.
        assert sum(b) == pytest.approx(1.0 if k == 0 else 1.0 - a, abs=1e-9)


def test_first_order_is_the_exponential_euler_method():
    rows = multistep_coefficients(LEVELS, 1)
    for k in range(1, len(LEVELS) - 1):
        ratio = LEVELS[k + 1] / LEVELS[k]
        assert rows[k] == pytest.approx([ratio, 1.0 - ratio], abs=1e-9)


def test_an_answer_that_is_a_polynomial_is_integrated_exactly():
    # D = 3 - 2 p + p^2 with p = asinh(2 sigma), whatever the sample: dy/dln(sigma) = y - D.
    def answer(sigma):
        p = np.arcsinh(2.0 * sigma)
        return 3.0 - 2.0 * p + p * p

    rows = multistep_coefficients(LEVELS, 3)
    k = 5
    y = 0.7
    stepped = rows[k][0] * y + sum(b * answer(LEVELS[k - j]) for j, b in enumerate(rows[k][1:]))
    steps = 20_000
    grid = np.exp(np.linspace(math.log(LEVELS[k]), math.log(LEVELS[k + 1]), steps + 1))
    h = math.log(grid[1] / grid[0])
    for low, high in itertools.pairwise(grid):
        middle = y + 0.5 * h * (y - answer(low))
        y += h * (middle - answer(math.sqrt(low * high)))
    assert stepped == pytest.approx(y, abs=1e-6)


WIDTHS = (0.4, 0.7, 1.0, 1.3)


@pytest.mark.parametrize(("n_calls", "tolerance"), [(8, 0.04), (10, 0.025), (30, 0.012)])
def test_third_order_ends_with_the_width_of_the_data(n_calls, tolerance):
    levels = karras_levels(0.05, 10.0, n_calls, 10.0)
    rows = multistep_coefficients(levels, 3)
    start = starting_width(levels, rows)
    errors = [sampled(levels, rows, start, width) / width - 1.0 for width in WIDTHS]
    assert max(map(abs, errors)) < tolerance
    # By definition of the start.
    assert sampled(levels, rows, start, 1.0) == pytest.approx(1.0, abs=1e-12)
    if n_calls <= 10:
        # Closer than second order that starts from the width of data and noise together.
        usual, begin = solver_coefficients(levels), math.sqrt(1.0 + levels[0] ** 2)
        second = [sampled(levels, usual, begin, width) / width - 1.0 for width in WIDTHS]
        assert np.abs(errors).mean() < 0.5 * np.abs(second).mean()


@pytest.mark.parametrize("width", [0.2, *WIDTHS])
def test_the_sample_is_centred_on_displaced_data(width):
    # From the middle of the noise to the middle of the data, one width away.
    rows = multistep_coefficients(LEVELS, 3)
    assert sampled(LEVELS, rows, 0.0, width, mean=1.0) == pytest.approx(1.0, abs=0.006)
    centred = solver_coefficients(LEVELS, centred=True)
    assert sampled(LEVELS, centred, 0.0, width, mean=1.0) == pytest.approx(1.0, abs=0.006)
    # Without the first step's share, part of the way is missing: width / sigma_max of it.
    usual = sampled(LEVELS, solver_coefficients(LEVELS), 0.0, width, mean=1.0)
    assert 1.0 - usual == pytest.approx(width / LEVELS[0], rel=0.1)


def test_a_single_call_answers_the_mean():
    levels = karras_levels(0.05, 10.0, 1)
    assert multistep_coefficients(levels, 3) == [[0.0, 1.0, 0.0, 0.0]]
    assert starting_width(levels, multistep_coefficients(levels, 3)) == pytest.approx(
        10.05, abs=0.01
    )
    assert solver_coefficients(levels) == [(0.0, 1.0, 0.0)]


def test_interpolate_by_lag():
    # Nodes at 1, 10, 100 and 1000 ps.
    table = torch.tensor([[1.0, -1.0], [2.0, 5.0], [4.0, 0.0], [0.0, 3.0]])
    first, span = math.log(1.0), math.log(1000.0)
    nodes = interpolate_by_lag(table, torch.tensor([1.0, 10.0, 100.0, 1000.0]), first, span)
    torch.testing.assert_close(nodes, table, atol=1e-5, rtol=0)
    # Half way in the logarithm, and a quarter.
    lags = torch.tensor([10.0**0.5, 10.0**1.25, 10.0**2.5])
    between = interpolate_by_lag(table, lags, first, span)
    expected = torch.tensor([[1.5, 2.0], [2.5, 3.75], [2.0, 1.5]])
    torch.testing.assert_close(between, expected, atol=1e-5, rtol=0)
    # The ends hold beyond.
    beyond = interpolate_by_lag(table, torch.tensor([0.01, 1e6]), first, span)
    torch.testing.assert_close(beyond, table[[0, -1]])
