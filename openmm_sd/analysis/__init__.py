"""Analysis of trajectories: torsions, populations, kinetics. Knows numpy and nothing of torch."""

from ..molecule.handedness import signed_volume
from ..molecule.torsions import dihedral
from .equilibrium import jsd_phi_psi
from .kinetics import hop_probabilities, implied_timescales, transition_matrix
from .torsions import (
    BASINS,
    basin_populations,
    basins,
    mean_cos_change,
)

__all__ = [
    "BASINS",
    "basin_populations",
    "basins",
    "dihedral",
    "hop_probabilities",
    "implied_timescales",
    "jsd_phi_psi",
    "mean_cos_change",
    "signed_volume",
    "transition_matrix",
]
