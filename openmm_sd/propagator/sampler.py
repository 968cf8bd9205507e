"""Noise levels, preconditioning and sampler of diffusion propagators.

Everything here is fixed once the levels are: the solver's coefficients are plain numbers worked out
beforehand, so a sampler is a short loop of multiply-adds that scripts, exports and captures in a
CUDA graph.

Symbols: sigma is the noise level in units of the data's width (the data is scaled to width 1 before
it meets the noise); D is the denoiser, the expected clean data given noised data.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor


def karras_levels(
    sigma_min: float, sigma_max: float, n_calls: int, rho: float = 7.0
) -> list[float]:
    """Return the `n_calls` noise levels, falling, at which the denoiser is called.

    Equation 5 of Karras et al. 2022 (arXiv:2206.00364), without the final zero, from `sigma_max` to
    `sigma_min` in units of the data's width; a single level is `sigma_max`. Larger `rho` puts more
    levels at low noise.
    """
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if n_calls < 1:
        raise ValueError(f"n_calls must be at least 1, got {n_calls}")
    if n_calls == 1:
        return [sigma_max]
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return [(high + k / (n_calls - 1) * (low - high)) ** rho for k in range(n_calls)]


def solver_coefficients(
    levels: list[float], centred: bool = False
) -> list[tuple[float, float, float]]:
    """Return DPM-Solver++(2M) as multiply-adds: (a_k, b_k, c_k), one a level.

    With y_k the sample at level k and D_k the denoiser's answer there, one step is
    ``y_(k+1) = a_k y_k + b_k D_k + c_k D_(k-1)``. The last step goes to noise zero and returns D.
    Second order in two denoiser answers, one call a step (Lu et al. 2022, arXiv:2211.01095,
    algorithm 2, written for data prediction with alpha = 1). If `centred`, the first step adds all
    of D; see `multistep_coefficients`.
    """
    coefficients = []
    step_before = 0.0
    for k, sigma in enumerate(levels):
        if k == len(levels) - 1:
            coefficients.append((0.0, 1.0, 0.0))
            break
        ratio = levels[k + 1] / sigma
        step = -math.log(ratio)
        weight = 1.0 - ratio
        extrapolation = 0.5 * step / step_before if k > 0 else 0.0
        coefficients.append((ratio, weight * (1.0 + extrapolation), -weight * extrapolation))
        if k == 0 and centred:
            coefficients[0] = (ratio, 1.0, 0.0)
        step_before = step
    return coefficients


def multistep_coefficients(levels: list[float], order: int) -> list[list[float]]:
    """Return an exponential multistep solver of any order as multiply-adds.

    Each level has (a, b_0, b_1, ...), padded with zeros to the same length:
    ``y_(k+1) = a y_k + b_0 D_k + b_1 D_(k-1) + ...``. The last step goes to noise zero and returns
    D.

    The flow dy/dln(sigma) = y - D is integrated exactly for an answer D that is a polynomial in
    asinh(2 sigma) through the last `order` answers, fewer in the first steps. That variable is even
    in time on the scale where data of width 1 takes shape. With the denoiser of Gaussians of width
    0.4, 0.7, 1 and 1.3, third order, 8 calls and `starting_width`, widths came out -3.6, -0.8, 0
    and +0.1 % wrong; `solver_coefficients` left 2 to 4 %.

    The noise a sample begins with is centred on zero, while the data, a displacement here, has its
    mean m elsewhere. The exact flow would carry that offset along: data of width w would come out
    around m (1 - w / sigma), as if a share w / sigma of the frame were remembered. At the first
    level D is the mean and hardly depends on y, so the first step adds all of it (b_0 = 1 instead
    of 1 - a), and the sample is centred from there on.
    """
    nodes, weights = np.polynomial.legendre.leggauss(32)
    place = np.arcsinh(2.0 * np.asarray(levels))
    coefficients: list[list[float]] = []
    for k, sigma in enumerate(levels[:-1]):
        used = place[max(0, k - order + 1) : k + 1][::-1]
        low, high = math.log(levels[k + 1]), math.log(sigma)
        log_sigma = 0.5 * (high - low) * nodes + 0.5 * (high + low)
        measure = 0.5 * (high - low) * weights * levels[k + 1] / np.exp(log_sigma)
        where = np.arcsinh(2.0 * np.exp(log_sigma))
        row = [levels[k + 1] / sigma]
        for j, here in enumerate(used):
            others = [other for i, other in enumerate(used) if i != j]
            basis = Polynomial.fromroots(others) if others else Polynomial([1.0])
            row.append(float((measure * basis(where)).sum() / basis(here)))
        if k == 0:
            row[1] = 1.0
        coefficients.append(row + [0.0] * (order + 1 - len(row)))
    coefficients.append([0.0, 1.0] + [0.0] * (order - 1))
    return coefficients


def starting_width(levels: list[float], coefficients: list[list[float]]) -> float:
    """Return the width of the noise from which Gaussian data of width 1 comes out with width 1.

    The coefficients are those of `multistep_coefficients` for these levels.
    """
    if len(levels) == 1:
        return math.sqrt(1.0 + levels[0] ** 2)
    y = 1.0
    answers: list[float] = []
    for sigma, (a, *b) in zip(levels, coefficients, strict=True):
        # What the denoiser of such data answers.
        answers.insert(0, y / (1.0 + sigma * sigma))
        y = a * y + sum(factor * answer for factor, answer in zip(b, answers, strict=False))
    return 1.0 / y


def interpolate_by_lag(
    table: Tensor, lag: Tensor, log_lag_min: float, log_lag_span: float
) -> Tensor:
    """Read a table (L, K) of values at lags evenly spaced in log(lag), linearly in between.

    Takes lags (B,) in ps and returns (B, K); beyond the ends the last values hold. `log_lag_min`
    and `log_lag_span` are the logarithms of the first lag and of the ratio of last and first.
    """
    last = table.shape[0] - 1
    place = ((torch.log(lag) - log_lag_min) / log_lag_span * last).clamp(0.0, float(last))
    below = place.floor().clamp(max=float(last - 1)).to(torch.long)
    share = (place - below.to(place.dtype)).unsqueeze(-1)
    return table[below] * (1.0 - share) + table[below + 1] * share


def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (c_skip, c_out, c_in) of Karras et al. 2022, table 1, for data of width 1.

    ``D(y) = c_skip y + c_out F(c_in y)``: the network F always has input and target of width 1.
    Each has the shape of `sigma`.
    """
    width = torch.sqrt(1.0 + sigma * sigma)
    return 1.0 / (width * width), sigma / width, 1.0 / width
