"""A kernel of the four beads whose law is roughly known, and wrong: for tests of exact jumps.

The answers of its "network" are those of Gaussians, and of a von Mises law of the torsion's turn.
"""

import functools

import numpy as np
import torch
from four_beads import molecule

from openmm_sd.propagator.internal.base import InternalPropagator
from openmm_sd.propagator.internal.single import InternalDiffusion


class WrongLaw(InternalDiffusion):
    """Stiff coordinates too wide and drawn to the wrong place; a torsion that turns at random."""

    width_out, memory, pull, peak = 1.2, 0.4, 0.8, 0.2

    def encode(self, stiff, turned, lag):
        return stiff, torch.zeros_like(stiff[:, :1])

    def encode_noise(self, sigma):
        return torch.zeros_like(sigma).unsqueeze(1)

    def denoise(self, y, sigma, turned, scale, context, modulation):
        level = sigma.view(-1, 1) ** 2
        goal = self.memory * context + self.pull
        share = self.width_out**2 / (self.width_out**2 + level)
        stiff = goal + share * (y[:, : self.n_stiff] - goal)
        across, along = self.plane(y, scale)
        noise = level * scale**2
        toward, sideways = along / noise + self.peak, across / noise
        size = torch.hypot(toward, sideways)
        length = torch.special.i1e(size) / torch.special.i0e(size) / size
        point = torch.cat([length * toward, length * sideways], dim=1) - self.centre
        return torch.cat([stiff, point / torch.cat([scale, scale], dim=1)], dim=1)

    denoise_tangents = InternalPropagator.denoise_tangents


def bead_frames(count, seed=1):
    """(count, 4, 3) float64, nm, with the torsion near -90 degrees."""
    noise = np.random.default_rng(seed).normal(size=(count, 4, 3))
    return torch.tensor(molecule().positions + 0.004 * noise)


@functools.cache
def wrong_kernel():
    """The kernel, for lags of 1 to 100 ps."""
    frames = bead_frames(300, seed=0)
    model = WrongLaw.for_molecule(
        molecule(), frames.numpy(), width=4, depth=1, lag_min_ps=1.0, lag_max_ps=100.0
    )
    # The torsion turns, whatever these frames show.
    model = WrongLaw(**(model.hyperparameters | {"turning": [0]}))
    model.fit_statistics(frames, torch.full((model.n_lag_nodes, 1), 0.7))
    return model.eval().requires_grad_(False)
