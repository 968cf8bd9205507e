"""Making transition data: molecular dynamics of a solute, saved frame by frame."""

from ..data.imported import ImportSettings, import_trajectories
from ..molecule.frames import FrameCheck, constraint_lengths
from ..molecule.torsions import parse_torsion, slow_torsions
from .driver import generate
from .seeding import spread_points
from .settings import GenerateSettings

__all__ = [
    "FrameCheck",
    "GenerateSettings",
    "ImportSettings",
    "constraint_lengths",
    "generate",
    "import_trajectories",
    "parse_torsion",
    "slow_torsions",
    "spread_points",
]
