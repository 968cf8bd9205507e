"""Making transition data: molecular dynamics of a solute, saved frame by frame."""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from ..data.imported import import_trajectories as import_trajectories
    from ..data.settings import ImportSettings as ImportSettings
    from ..molecule.frames import FrameCheck as FrameCheck, constraint_lengths as constraint_lengths
    from ..molecule.torsions import parse_torsion as parse_torsion, slow_torsions as slow_torsions
    from .driver import generate as generate
    from .seeding import spread_points as spread_points
    from .settings import GenerateSettings as GenerateSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            "..data.imported": "import_trajectories",
            "..data.settings": "ImportSettings",
            "..molecule.frames": "FrameCheck constraint_lengths",
            "..molecule.torsions": "parse_torsion slow_torsions",
            ".driver": "generate",
            ".seeding": "spread_points",
            ".settings": "GenerateSettings",
        },
    )

callable_package(__name__)
