"""From a molecule to a box of water that is ready to run."""

from .box import PreparedBox, equilibrate, solvate
from .directory import PreparedSystem, read_prepared, write_prepared

__all__ = [
    "PreparedBox",
    "PreparedSystem",
    "equilibrate",
    "read_prepared",
    "solvate",
    "write_prepared",
]
