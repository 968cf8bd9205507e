"""Transition data: data sets, trajectories of other programs, references to compare with.

`openmm_sd.data.dataset` is the file format, `imported` reads trajectories of any engine into it,
`reference` is what a model is validated against.
"""

from .dataset import Dataset, Run, merge, read_dataset, write_dataset

__all__ = ["Dataset", "Run", "merge", "read_dataset", "write_dataset"]
