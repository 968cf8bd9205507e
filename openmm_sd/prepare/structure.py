"""Structures from files, as they are: nothing is repaired, protonated or capped here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openmm import app, unit

_CIF = (".cif", ".mmcif", ".pdbx")


def read_structure(path: Path) -> tuple[app.Topology, NDArray[np.float64]]:
    """Read a PDB or mmCIF file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    topology : openmm.app.Topology
        With the box, where the file has one.
    positions : ndarray, shape (N, 3)
        nm.

    Raises
    ------
    ValueError
        If there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    reader = app.PDBxFile if path.suffix.lower() in _CIF else app.PDBFile
    try:
        file = reader(str(path))
    except Exception as error:  # readers fail in many ways
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not file.topology.getNumAtoms():
        raise ValueError(f"{path} holds no atoms")
    positions = np.array(file.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    return file.topology, positions


def count_waters(topology: app.Topology) -> int:
    """Return the number of residues that are water, by their elements."""
    count = 0
    for residue in topology.residues():
        symbols = sorted(a.element.symbol for a in residue.atoms() if a.element is not None)
        count += symbols == ["H", "H", "O"]
    return count
