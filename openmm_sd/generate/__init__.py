"""Making transition data: molecular dynamics of a solute, saved frame by frame."""

from ..data.imported import ImportSettings, import_trajectories
from ..molecule.frames import FrameCheck, constraint_lengths
from ..molecule.torsions import parse_torsion, slow_torsions
from .driver import generate
from .implicit import (
    ImplicitSettings,
    Run,
    alanine_dipeptide,
    generate_implicit,
    molecule_record,
    read_runs,
)
from .seeding import spread_points
from .settings import GenerateSettings

__all__ = [
    "FrameCheck",
    "GenerateSettings",
    "ImplicitSettings",
    "ImportSettings",
    "Run",
    "alanine_dipeptide",
    "constraint_lengths",
    "generate",
    "generate_implicit",
    "import_trajectories",
    "molecule_record",
    "parse_torsion",
    "read_runs",
    "slow_torsions",
    "spread_points",
]
