"""Runs of a data set made by GROMACS, which on CPUs is several times as fast as OpenMM.

OpenMM still makes the System; GROMACS gets its topology from there and proves that it computes the
same energies and forces before anything runs.

- `program`: the ``gmx`` of this machine: its version, its commands, a simulation under way;
- `topology`: an OpenMM System of a solute, water and ions as GROMACS reads it;
- `mdp`: what GROMACS is told of integrator, thermostat, cutoffs and output;
- `check`: energies and forces of one frame, OpenMM beside GROMACS;
- `start`: the box that all runs start from;
- `runs`: one run: from its start, or its checkpoint, to frames in the folder of parts;
- `speed`: which of the two engines is faster here.
"""

from .program import Gromacs, find_gromacs
from .runs import make_run
from .start import make_start, provenance

__all__ = ["Gromacs", "find_gromacs", "make_run", "make_start", "provenance"]
