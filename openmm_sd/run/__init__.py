"""Mixed runs to a directory: MD bursts and learned jumps in turn, resumable, exact.

`run_mixed` is the driver behind ``openmm-sd run``, `run_ensemble` makes several such runs with
different seeds (``--copies``) and merges what they say. A run's directory holds

``trajectory.xtc``, ``trajectory.dcd`` or ``trajectory.h5``
    Frames in nm (DCD: angstroms), molecules whole, the solute in the middle of the box. Times are
    effective times in ps (a DCD file has none; ``log.csv`` has them). The HDF5 file appears when
    the run ends or is stopped; until then its frames are in ``trajectory.part``.
``topology.pdb``
    The atoms of the trajectory, at the start of the run.
``log.csv``
    One line a frame, in the same order: clocks, jump counters, energy, temperature.
``summary.json``
    Counters, clocks, speeds, settings, and notes in plain language; renewed at every checkpoint.
``checkpoint.npz``
    Where the run stands, see `openmm_sd.run.files`.
``report.html``
    What was found, and whether to believe it; written by `write_report`, which ``openmm-sd run``
    calls at the end.
``start/``
    The prepared directory that the run started from, see `openmm_sd.system.prepared`.
"""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from ..system.fitting import fitting_model as fitting_model
    from .driver import run_mixed as run_mixed
    from .ensemble import merge_runs as merge_runs, run_ensemble as run_ensemble
    from .files import RunError as RunError
    from .record import RunRecord as RunRecord, read_run as read_run
    from .report.page import write_report as write_report
    from .settings import RunSettings as RunSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            "..system.fitting": "fitting_model",
            ".driver": "run_mixed",
            ".ensemble": "merge_runs run_ensemble",
            ".files": "RunError",
            ".record": "RunRecord read_run",
            ".report.page": "write_report",
            ".settings": "RunSettings",
        },
    )

callable_package(__name__)
