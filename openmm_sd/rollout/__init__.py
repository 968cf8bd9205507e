"""Rollouts: thousands of chains of jumps of the solute alone, without water and without OpenMM.

`Rollout` (in `openmm_sd.rollout.rollout`) holds chains in memory, `SharedRollout` on a cluster;
`run_rollout` writes them to a folder from which a killed rollout resumes exactly (`driver`).
"""

from .driver import read_rollout, run_rollout
from .rollout import Rollout
from .settings import RolloutSettings
from .shared import SharedRollout
from .start import read_start_frames

__all__ = [
    "Rollout",
    "RolloutSettings",
    "SharedRollout",
    "read_rollout",
    "read_start_frames",
    "run_rollout",
]
