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
    cif = path.suffix.lower() in _CIF
    reader = app.PDBxFile if cif else app.PDBFile
    if not _has_atoms(path, cif):
        raise ValueError(f"{path} holds no atoms in {'mmCIF' if cif else 'PDB'} format")
    try:
        file = reader(str(path))
    except Exception as error:  # readers fail in many ways
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    positions = np.array(file.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    if not np.isfinite(positions).all():
        raise ValueError(f"{path} holds positions that are NaN or infinity")
    return file.topology, positions


def _has_atoms(path: Path, cif: bool) -> bool:
    """Whether a reader has anything to read; of other files readers say what nobody understands."""
    marks = ("_atom_site.",) if cif else ("ATOM  ", "HETATM")
    with path.open(encoding="utf-8", errors="replace") as lines:
        return any(line.lstrip().startswith(marks) for line in lines)


def count_waters(topology: app.Topology) -> int:
    """Return the number of residues that are water, by their elements."""
    count = 0
    for residue in topology.residues():
        symbols = sorted(a.element.symbol for a in residue.atoms() if a.element is not None)
        count += symbols == ["H", "H", "O"]
    return count
