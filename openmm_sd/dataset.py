"""The old home of `openmm_sd.data`, for scripts that import from here."""

from .data import Dataset, Run, merge, read_dataset, write_dataset

__all__ = ["Dataset", "Run", "merge", "read_dataset", "write_dataset"]
