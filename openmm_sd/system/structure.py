"""Structures from files and objects, as they are, and what no structure may be.

Reading decides two things only, and says so: of alternate locations the one with the highest
occupancy is kept, and of several models the one that was asked for.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from openmm import app, unit
from scipy.spatial import KDTree

from ..files.atomic import why

_CIF: Final = (".cif", ".mmcif", ".pdbx")
# No two atoms of anything are this close, nm; the shortest bond (H2) is 0.074.
_ON_TOP_NM: Final = 0.05
# Bonds are 0.1 to 0.25 nm; a typical one outside of this is in other units.
_TYPICAL_NM: Final = (0.06, 0.6)


@dataclass(frozen=True)
class Structure:
    """Atoms with their places.

    Attributes
    ----------
    name : str
        Where they come from.
    topology : openmm.app.Topology
        With the box, where there is one.
    positions : ndarray, shape (N, 3)
        nm.
    sha256 : str or None
        Of the file; None for objects.
    sequences, modified : tuple
        SEQRES and MODRES records, as PDBFixer holds them.
    alternates : tuple of dict
        Residues with alternate locations: ``residue``, ``locations``, ``kept``.
    frame : int or None
        Number, from 1, of the model that was read where there are several.
    """

    name: str
    topology: app.Topology
    positions: NDArray[np.float64]
    sha256: str | None = None
    sequences: tuple[Any, ...] = ()
    modified: tuple[Any, ...] = ()
    alternates: tuple[dict[str, Any], ...] = ()
    frame: int | None = None


def load_structure(path: str | os.PathLike[str], frame: int | None = None) -> Structure:
    """Read a PDB or mmCIF file; its content says which of the two it is.

    `frame` says which of several models, from 1. ValueError in one line if there is no such file,
    it holds no atoms, or several models of which none was chosen; or a reader or `check_positions`
    refuses it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {why(error)}") from None
    text = data.decode("utf-8", errors="replace")
    cif = _is_cif(text, file)
    if not _has_atoms(text, cif):
        raise ValueError(f"{file} holds no atoms in {'mmCIF' if cif else 'PDB'} format")
    try:
        with warnings.catch_warnings():
            # Readers warn of atoms that are there twice; `check_positions` refuses those.
            warnings.simplefilter("ignore", UserWarning)
            structure = (_from_cif if cif else _from_pdb)(str(file), text, frame)
    except _Choice as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # readers fail in many ways
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    check_positions(structure)
    _check_residues(structure)
    return replace(structure, sha256=hashlib.sha256(data).hexdigest())


def as_structure(source: Any, positions: Any = None) -> Structure:
    """Take atoms and places from objects of OpenMM or mdtraj.

    These are a Topology of OpenMM or mdtraj with positions (N, 3), of which bare numbers are nm;
    anything of OpenMM that has a ``topology`` and ``positions``; or a trajectory of one frame.
    ValueError if it is none of these, or no structure.
    """
    if hasattr(source, "xyz") and hasattr(source, "topology"):
        if positions is not None:
            raise ValueError("positions: a trajectory has its own")
        if len(source.xyz) != 1:
            raise ValueError(f"the trajectory has {len(source.xyz)} frames; give one: traj[0]")
        topology, positions = source.topology, source.xyz[0]
        vectors = source.unitcell_vectors
        topology = topology.to_openmm()
        if vectors is not None:
            topology.setPeriodicBoxVectors(np.array(vectors[0], dtype=float) * unit.nanometer)
    else:
        if positions is None and hasattr(source, "positions"):
            positions = source.positions
        topology = getattr(source, "topology", source)
        if hasattr(topology, "to_openmm"):
            topology = topology.to_openmm()
    if not isinstance(topology, app.Topology) or positions is None:
        raise ValueError(
            "wanted is a PDB or mmCIF file, an object with topology and positions (PDBFile, "
            f"Modeller, mdtraj.Trajectory), or a Topology with positions=, got "
            f"{type(source).__name__}"
        )
    if unit.is_quantity(positions):
        positions = positions.value_in_unit(unit.nanometer)
    places = np.array(positions, dtype=np.float64)
    if places.shape != (topology.getNumAtoms(), 3):
        raise ValueError(
            f"positions must have shape ({topology.getNumAtoms()}, 3), got {places.shape}"
        )
    structure = Structure("objects", topology, places)
    check_positions(structure)
    return structure


def check_positions(structure: Structure) -> None:
    """Refuse positions that are no numbers, in other units, or on top of each other."""
    x, topology = structure.positions, structure.topology
    atoms = list(topology.atoms())
    if not len(x):
        raise ValueError(f"{structure.name} holds no atoms")
    broken = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{structure.name} holds positions that are NaN or infinity "
            f"({atom_label(atoms[broken[0]])})"
        )
    if len(x) == 1:
        return
    distances, partners = KDTree(x).query(x, k=2)
    nearest, partner = distances[:, 1], partners[:, 1]
    typical = float(np.median(nearest))
    shortest, longest = _TYPICAL_NM
    if 0.002 < typical < shortest or typical > longest:
        raise ValueError(
            f"{structure.name}: neighbouring atoms are typically {typical:.2g} nm apart, which no "
            "molecule is: are the coordinates in other units? Files have angstrom, arrays nm"
        )
    one = int(nearest.argmin())
    if nearest[one] < _ON_TOP_NM:
        two = int(partner[one]) if partner[one] != one else one
        raise ValueError(
            f"{structure.name}: {atom_label(atoms[one])} and {atom_label(atoms[two])} are on top "
            f"of each other ({nearest[one]:.3f} nm apart)"
        )


def _check_residues(structure: Structure) -> None:
    """Refuse a residue in two pieces: what each lacks would be built."""
    for chain in structure.topology.chains():
        seen = set()
        for residue in chain.residues():
            # Numbers of waters and ions begin anew in large boxes.
            if not any(a.element is app.element.carbon for a in residue.atoms()):
                continue
            number = residue.id, residue.insertionCode
            if number in seen:
                raise ValueError(
                    f"{structure.name}: {residue_label(residue)} comes twice in the file: are "
                    "lines out of order, or two residues numbered alike?"
                )
            seen.add(number)


def is_d(atoms: Mapping[str, NDArray[np.float64]]) -> bool:
    """Whether an amino acid with its atoms at these places is D, or flat."""
    if not {"N", "CA", "C", "CB"} <= atoms.keys():
        return False
    n, c, side = (atoms[name] - atoms["CA"] for name in ("N", "C", "CB"))
    return bool(np.dot(np.cross(n, c), side) <= 0.0)


def is_trans(x: NDArray[np.float64]) -> bool:
    """Whether the ends of a torsion of four places (4, 3) are on opposite sides."""
    axis = x[2] - x[1]
    axis /= np.linalg.norm(axis)
    first, second = x[0] - x[1], x[3] - x[2]
    return bool((first - axis * (first @ axis)) @ (second - axis * (second @ axis)) < 0.0)


def nanometers(lengths: unit.Quantity) -> NDArray[np.float64]:
    """Return lengths in nm, without their unit."""
    return np.array(lengths.value_in_unit(unit.nanometer), dtype=np.float64)


def atom_label(atom: Any) -> str:
    """Return what people call an atom."""
    return f"{atom.name} of {residue_label(atom.residue)}"


def residue_label(residue: Any) -> str:
    """Return what people call a residue."""
    return f"{residue.name} {residue.id}{residue.insertionCode.strip()} of chain {residue.chain.id}"


def count_waters(topology: app.Topology) -> int:
    """Return the number of residues that are water, by their elements."""
    return sum(is_water(residue) for residue in topology.residues())


def is_water(residue: Any) -> bool:
    """Whether a residue is a complete water, by its elements."""
    symbols = sorted(a.element.symbol for a in residue.atoms() if a.element is not None)
    return symbols == ["H", "H", "O"]


class _Choice(Exception):
    """What the user has to decide."""


def _is_cif(text: str, file: Path) -> bool:
    for line in text.splitlines():
        if line.startswith(("ATOM  ", "HETATM", "CRYST1")):
            return False
        if line.startswith(("data_", "_atom_site.")):
            return True
    return file.suffix.lower() in _CIF


def _has_atoms(text: str, cif: bool) -> bool:
    """Whether a reader has anything to read; of other files readers say what nobody understands."""
    marks = ("_atom_site.",) if cif else ("ATOM  ", "HETATM")
    return any(line.lstrip().startswith(marks) for line in text.splitlines())


def _from_pdb(name: str, text: str, frame: int | None) -> Structure:
    from pdbfixer import PDBFixer

    lines, count = _one_model(text.splitlines(), frame, name)
    lines, alternates = _one_location(lines)
    fixer = PDBFixer(pdbfile=io.StringIO("\n".join(lines) + "\n"))
    return _structure(name, fixer, fixer.positions, alternates, frame if count > 1 else None)


def _from_cif(name: str, text: str, frame: int | None) -> Structure:
    from pdbfixer import PDBFixer

    count = app.PDBxFile(io.StringIO(text)).getNumFrames()
    _check_frame(count, frame, name)
    fixer = PDBFixer(pdbxfile=io.StringIO(text))
    positions = fixer.positions
    if frame is not None:
        positions = app.PDBxFile(io.StringIO(text)).getPositions(frame=frame - 1)
    return _structure(name, fixer, positions, (), frame if count > 1 else None)


def _structure(
    name: str, fixer: Any, positions: Any, alternates: Any, frame: int | None
) -> Structure:
    return Structure(
        name,
        fixer.topology,
        nanometers(positions),
        None,
        tuple(fixer.sequences),
        tuple(fixer.modifiedResidues),
        tuple(alternates),
        frame,
    )


def _check_frame(count: int, frame: int | None, name: str) -> None:
    if count > 1 and frame is None:
        raise _Choice(
            f"{name} holds {count} models of the structure: leave one in the file, or choose it "
            f"with 'openmm-sd prepare --frame', 1 to {count}"
        )
    if frame is not None and not 1 <= frame <= count:
        raise _Choice(f"frame: {name} has no model {frame}, allowed are 1 to {count}")


def _one_model(lines: list[str], frame: int | None, name: str) -> tuple[list[str], int]:
    """Leave one model of a PDB file, without the lines that part models."""
    count = 0
    numbers = []  # 0 for what belongs to all
    inside = False
    for line in lines:
        if line.startswith("MODEL"):
            count, inside = count + 1, True
        numbers.append(count if inside else 0)
        if line.startswith("ENDMDL"):
            inside = False
    _check_frame(max(1, count), frame, name)
    if not count:
        return lines, 1
    return [
        line
        for line, number in zip(lines, numbers, strict=True)
        if number in (0, frame or 1) and not line.startswith(("MODEL", "ENDMDL"))
    ], count


def _one_location(lines: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Keep, of each residue's alternate locations, the one with the highest occupancy."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    names: dict[tuple[str, str], str] = {}
    for line in lines:
        if _is_atom(line) and len(line) > 26 and line[16] != " ":
            key = (line[21], line[22:27])
            try:
                occupancy = float(line[54:60])
            except ValueError:
                occupancy = 0.0
            found[key][line[16]].append(occupancy)
            names.setdefault(key, line[17:20].strip())
    kept = {
        # Sorting is stable: of equals the first stays.
        key: max(places, key=lambda place: sum(places[place]) / len(places[place]))
        for key, places in found.items()
    }
    if not kept:
        return lines, []
    left = []
    for line in lines:
        if _is_atom(line) or line.startswith("ANISOU"):
            key = (line[21:22], line[22:27])
            if key in kept and line[16] != " ":
                if line[16] != kept[key]:
                    continue
                line = f"{line[:16]} {line[17:]}"
        left.append(line)
    several = [
        {
            "residue": f"{names[key]} {key[1].strip()} of chain {key[0]}",
            "locations": list(places),
            "kept": kept[key],
        }
        for key, places in found.items()
        if len(places) > 1
    ]
    return left, several


def _is_atom(line: str) -> bool:
    return line.startswith(("ATOM  ", "HETATM"))
