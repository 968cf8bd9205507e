"""From a structure to a box of water that is ready to run.

`prepare` makes a prepared directory, `prepare_system` the same in memory. Their parts can be used
alone: `load_structure` reads, `repair` completes, `solvate` adds water, `equilibrate` relaxes.
"""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from ..system.box import (
        PreparedBox as PreparedBox,
        equilibrate as equilibrate,
        solvate as solvate,
    )
    from ..system.prepared import (
        PreparedSystem as PreparedSystem,
        read_prepared as read_prepared,
        write_prepared as write_prepared,
    )
    from ..system.structure import Structure as Structure, load_structure as load_structure
    from .driver import prepare as prepare, prepare_system as prepare_system
    from .repairs import Repaired as Repaired, repair as repair
    from .sequence import from_sequence as from_sequence
    from .settings import PrepareSettings as PrepareSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            "..system.box": "PreparedBox equilibrate solvate",
            "..system.prepared": "PreparedSystem read_prepared write_prepared",
            "..system.structure": "Structure load_structure",
            ".driver": "prepare prepare_system",
            ".repairs": "Repaired repair",
            ".sequence": "from_sequence",
            ".settings": "PrepareSettings",
        },
    )

callable_package(__name__)
