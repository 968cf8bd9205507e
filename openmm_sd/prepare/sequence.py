"""A peptide from its sequence: the backbone and CB of L residues, trans and extended.

Side chains and hydrogens are then built as for any structure that lacks them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from openmm import app

from ..system.structure import Structure

#: Forms of residues by the names that force fields give them, with the residue that each is of.
_FORMS: Final = {
    **{"HID": "HIS", "HIE": "HIS", "HIP": "HIS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS"},
    **{"CYX": "CYS"},
}
_RESIDUES: Final = (
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()
)
_KNOWN: Final = frozenset((*_RESIDUES, *_FORMS))
_LETTERS: Final = dict(zip("ARNDCQEGHILKMFPSTWYV", _RESIDUES, strict=True))
_PHI, _PHI_OF_PROLINE, _PSI = -80.0, -65.0, 145.0

Place = NDArray[np.float64]


def from_sequence(sequence: str) -> tuple[Structure, dict[str, str]]:
    """Build the backbone of a chain of L amino acids.

    Parameters
    ----------
    sequence : str
        Three-letter codes with dashes, caps included: ``"ACE-ALA-NME"``; or one-letter codes
        without: ``"AAG"``. HID, HIE, HIP, ASH, GLH and LYN are forms of their residues. Only ends
        may be ACE or NME, and what is not capped is charged.

    Returns
    -------
    structure : Structure
        Heavy atoms up to CB, nm.
    variants : dict
        Chain and number of a residue (``"A:2"``) to its form, as `PrepareSettings` takes it.
    """
    names = _names(sequence)
    variants = {f"A:{k}": name for k, name in enumerate(names, 1) if name in _FORMS}
    topology, x = app.Topology(), []
    chain = topology.addChain("A")
    before: list[Place] = []  # CA (or CH3) and C of the residue before
    nitrogen = np.zeros(3)
    for k, name in enumerate(names):
        residue = topology.addResidue(_FORMS.get(name, name), chain, str(k + 1))
        atoms, nitrogen, before = _residue(name, nitrogen, before)
        for atom, place in atoms:
            element = app.element.get_by_symbol(atom[0])
            topology.addAtom(atom, element, residue)
            x.append(place / 10.0)
    topology.createStandardBonds()
    return Structure(sequence, topology, np.array(x)), variants


def _names(sequence: str) -> list[str]:
    text = sequence.strip().upper()
    names = [_LETTERS.get(c, c) for c in text] if text.isalpha() and text not in _KNOWN else None
    names = names or text.split("-")
    for k, name in enumerate(names):
        if name in ("ACE", "NME"):
            if k != (0 if name == "ACE" else len(names) - 1):
                raise ValueError(f"sequence: {name} is a cap and stands at the other end or inside")
        elif name not in _KNOWN:
            what = "is no standard residue, and only L amino acids are built"
            raise ValueError(f"sequence: {name or repr(sequence)} {what}")
    if set(names) <= {"ACE", "NME"}:
        raise ValueError(f"sequence: {sequence!r} has caps but no residue")
    return names


def _residue(
    name: str, nitrogen: Place, before: list[Place]
) -> tuple[list[tuple[str, Place]], Place, list[Place]]:
    """Place a residue's atoms, in angstroms; return also where the next N is, and CA and C."""
    if name == "ACE":
        methyl, carbon = np.zeros(3), np.array([1.507, 0.0, 0.0])
        following = placed(np.array([0.0, 1.0, 0.0]), methyl, carbon, 1.329, 116.2, 180.0)
        oxygen = placed(following, methyl, carbon, 1.231, 120.5, 180.0)
        return [("CH3", methyl), ("C", carbon), ("O", oxygen)], following, [methyl, carbon]
    phi = _PHI_OF_PROLINE if name == "PRO" else _PHI
    if before:
        alpha = placed(before[0], before[1], nitrogen, 1.458, 121.7, 180.0)
        if name == "NME":
            return [("N", nitrogen), ("C", alpha)], nitrogen, before
        carbon = placed(before[1], nitrogen, alpha, 1.525, 111.0, phi)
    else:  # the chain begins here
        alpha = np.array([1.458, 0.0, 0.0])
        bend = np.deg2rad(180.0 - 111.0)
        carbon = alpha + 1.525 * np.array([np.cos(bend), np.sin(bend), 0.0])
    oxygen = placed(nitrogen, alpha, carbon, 1.231, 120.5, _PSI + 180.0)
    atoms = [("N", nitrogen), ("CA", alpha), ("C", carbon), ("O", oxygen)]
    if name != "GLY":
        # As seen along CA-N, CB of an L residue is 120 degrees behind C.
        back = before[1] if before else placed(carbon, alpha, nitrogen, 1.0, 120.0, phi)
        atoms.append(("CB", placed(back, nitrogen, alpha, 1.53, 110.5, phi - 120.0)))
    return atoms, placed(nitrogen, alpha, carbon, 1.329, 116.2, _PSI), [alpha, carbon]


def placed(a: Place, b: Place, c: Place, length: float, angle: float, torsion: float) -> Place:
    """Where an atom is that is bonded to `c`; degrees, lengths in the unit of the places."""
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    bend, turn = np.deg2rad(angle), np.deg2rad(torsion)
    side = np.cos(turn) * np.cross(normal, along) + np.sin(turn) * normal
    return np.asarray(c + length * (np.sin(bend) * side - np.cos(bend) * along))
