"""Runs of a data set made by GROMACS, which on CPUs is several times as fast as OpenMM.

OpenMM still makes the System; GROMACS gets its topology from there and proves that it computes the
same energies and forces before anything runs.
"""

from .program import Gromacs, find_gromacs
from .runs import make_run
from .start import make_start, provenance

__all__ = ["Gromacs", "find_gromacs", "make_run", "make_start", "provenance"]
