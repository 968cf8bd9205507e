"""Rollouts: thousands of chains of jumps of the solute alone, without water and without OpenMM.

`Rollout` (in `openmm_sd.rollout.rollout`) holds chains in memory, `SharedRollout` on a cluster;
`run_rollout` writes them to a folder from which a killed rollout resumes exactly (`driver`).
"""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from .driver import (
        read_rollout as read_rollout,
        rollout_chains as rollout_chains,
        run_rollout as run_rollout,
    )
    from .rollout import Rollout as Rollout
    from .settings import RolloutSettings as RolloutSettings
    from .shared import SharedRollout as SharedRollout
    from .start import read_start_frames as read_start_frames
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".driver": "read_rollout rollout_chains run_rollout",
            ".rollout": "Rollout",
            ".settings": "RolloutSettings",
            ".shared": "SharedRollout",
            ".start": "read_start_frames",
        },
    )

callable_package(__name__)
