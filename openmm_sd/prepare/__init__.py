"""From a molecule to a box of water that is ready to run."""

from .box import PreparedBox, equilibrate, solvate

__all__ = ["PreparedBox", "equilibrate", "solvate"]
