"""Transition data: data sets, trajectories of other programs, references to compare with.

`openmm_sd.data.dataset` is the file format, `imported` reads trajectories of any engine into it,
`reference` is what a model is validated against.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .dataset import (
        Dataset as Dataset,
        Run as Run,
        merge as merge,
        read_dataset as read_dataset,
        write_dataset as write_dataset,
    )
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".dataset": "Dataset Run merge read_dataset write_dataset",
        },
    )
