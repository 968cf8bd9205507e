"""Noise levels, preconditioning and sampler of diffusion propagators.

Everything here is fixed once the levels are: the solver's coefficients are plain numbers worked out
beforehand, so a sampler is a short loop of multiply-adds that scripts, exports and captures in a
CUDA graph.

Symbols: sigma is the noise level in units of the data's width (the data is scaled to width 1 before
it meets the noise); D is the denoiser, the expected clean data given noised data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def karras_levels(
    sigma_min: float, sigma_max: float, n_calls: int, rho: float = 7.0
) -> list[float]:
    """Return the falling noise levels at which the denoiser is called.

    Equation 5 of Karras et al. 2022 (arXiv:2206.00364), without the final zero.

    Parameters
    ----------
    sigma_min, sigma_max : float
        Last and first level, in units of the data's width.
    n_calls : int
        How many levels.
    rho : float
        Larger values put more levels at low noise.

    Returns
    -------
    list of float
        `n_calls` levels from `sigma_max` down to `sigma_min`.
    """
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if n_calls < 2:
        raise ValueError(f"n_calls must be at least 2, got {n_calls}")
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return [(high + k / (n_calls - 1) * (low - high)) ** rho for k in range(n_calls)]


def solver_coefficients(levels: list[float]) -> list[tuple[float, float, float]]:
    """Return DPM-Solver++(2M) as multiply-adds.

    With y_k the sample at level k and D_k the denoiser's answer there, one step is
    ``y_(k+1) = a_k y_k + b_k D_k + c_k D_(k-1)``. The last step goes to noise zero and returns D.
    Second order in two denoiser answers, one call a step (Lu et al. 2022, arXiv:2211.01095,
    algorithm 2, written for data prediction with alpha = 1).

    Parameters
    ----------
    levels : list of float
        Falling noise levels.

    Returns
    -------
    list of (float, float, float)
        (a_k, b_k, c_k), one a level.
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
        step_before = step
    return coefficients


def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (c_skip, c_out, c_in) of Karras et al. 2022, table 1, for data of width 1.

    ``D(y) = c_skip y + c_out F(c_in y)``: the network F always has input and target of width 1.

    Parameters
    ----------
    sigma : Tensor
        Noise levels, any shape.

    Returns
    -------
    tuple of Tensor
        Each of the shape of `sigma`.
    """
    width = torch.sqrt(1.0 + sigma * sigma)
    return 1.0 / (width * width), sigma / width, 1.0 / width
