"""How trajectories of other programs are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..settings import Settings, setting


@dataclass(frozen=True)
class ImportSettings(Settings):
    """How trajectories are read."""

    solute: str | None = setting(
        None,
        "selection in mdtraj's language, of one or several whole molecules of one kind; each "
        "becomes a run",
        shown="the only molecule that is neither water nor an ion",
        metavar="SEL",
    )
    spacing_ps: float | None = setting(
        None, "time from one frame of the files to the next", shown="what the files say"
    )
    stride: int = setting(1, "keep every so-manieth frame")
    name: str | None = setting(None, "what people call the molecule", shown="its residues")
    kind: str = setting("imported", "kind of the runs, e.g. plain or seeded")
    log_weights: str | os.PathLike[str] | None = setting(
        None,
        "text or .npy file with the logarithm of the equilibrium weight of every frame of the one "
        "trajectory, which had a bias; the kind is then biased",
        metavar="FILE",
    )
    provenance: dict[str, Any] = setting(
        factory=dict, text="what is known of how the trajectories were made", option=""
    )
