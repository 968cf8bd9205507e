"""From a structure to a box of water that is ready to run.

`prepare` makes a prepared directory, `prepare_system` the same in memory. Their parts can be used
alone: `load_structure` reads, `repair` completes, `solvate` adds water, `equilibrate` relaxes.
"""

from ..system.box import PreparedBox, equilibrate, solvate
from ..system.prepared import PreparedSystem, read_prepared, write_prepared
from ..system.structure import Structure, load_structure
from .driver import prepare, prepare_system
from .repair import Repaired, repair
from .settings import PrepareSettings

__all__ = [
    "PrepareSettings",
    "PreparedBox",
    "PreparedSystem",
    "Repaired",
    "Structure",
    "equilibrate",
    "load_structure",
    "prepare",
    "prepare_system",
    "read_prepared",
    "repair",
    "solvate",
    "write_prepared",
]
