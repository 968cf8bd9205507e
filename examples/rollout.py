"""Chains of learned jumps without water: an mdtraj trajectory, and populations with errors."""

import mdtraj
import numpy as np
from openmm_sd import Rollout, RolloutSettings, ScoreModel
from openmm_sd.analysis import BASINS, basin_populations, basins

model = ScoreModel.load("ala2-water")
chains, steps, forget = 256, 100, 10
rollout = Rollout(model, RolloutSettings(chains=chains, lag_ps=100, seed=1))
frames = np.stack([rollout.advance() for _ in range(steps)], axis=1)  # chain, step, atom, xyz; nm
print(rollout.statistics())

topology = mdtraj.Topology.from_openmm(model.molecules[0].to_topology())
trajectory = mdtraj.Trajectory(frames.reshape(-1, *frames.shape[2:]), topology)
trajectory[:steps].save("chain0.pdb")

# The first steps only forget the start. Chains are independent, frames of a chain are not: the
# error comes from the differences between the chains.
phi = mdtraj.compute_phi(trajectory)[1].reshape(chains, steps)[:, forget:]
psi = mdtraj.compute_psi(trajectory)[1].reshape(chains, steps)[:, forget:]
found = np.array([basin_populations(states) for states in basins(phi, psi)])
error = found.std(axis=0, ddof=1) / np.sqrt(chains)
for name, mean, deviation in zip(BASINS, found.mean(axis=0), error, strict=True):
    print(f"{name:11s} {mean:.3f} +- {deviation:.3f}")
