"""How a force field hinders turns about bonds, as a network of a family is told.

Force fields give like-looking bonds different torsion terms. In CHARMM36 the middle bond of butane
has terms that occur in no other alkane, and turns half as fast for it. Nothing in the bond graph
says so; these numbers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...analysis import dihedral
from ...molecule.molecule import Molecule
from .tree import InternalTree

#: Four atoms, how often the term repeats in a turn, its phase (rad), its strength k (kJ/mol) in
#: k (1 + cos(n phi - phase)).
Term = Sequence[float]

#: Terms repeat up to this often in a turn.
ORDERS: Final = 6
#: Numbers a bond: cosines of orders 1 to `ORDERS`, then sines.
SIZE: Final = 2 * ORDERS
_STEP: Final = np.pi / 3


def turning_potentials(
    molecule: Molecule, tree: InternalTree, turning: Sequence[int], terms: Sequence[Term]
) -> list[list[float]]:
    """Add up the terms about each bond that turns, as a function of the torsion that turns it.

    Returns (a_1 ... a_6, b_1 ... b_6), kJ/mol, for each of the rows `turning` of the tree: V = sum
    a_n cos(n phi) + b_n sin(n phi). `terms` are all periodic torsions of the molecule, whose
    reference frame says how far apart the torsions about one bond are, to the nearest 60 degrees:
    frames vibrate, and kinds of bonds must not differ by it. ValueError if a term repeats more than
    six times a turn, or is not about a bond.
    """
    about: dict[frozenset[int], list[tuple[list[int], int, float, float]]] = {}
    bonds = {frozenset(pair) for pair in molecule.bonds}
    for term in terms:
        atoms, order, phase, strength = [int(k) for k in term[:4]], int(term[4]), term[5], term[6]
        if not 1 <= order <= ORDERS:
            raise ValueError(
                f"a torsion term of {molecule.name} repeats {order} times a turn, more than "
                f"{ORDERS} are not known"
            )
        about.setdefault(frozenset(atoms[1:3]), []).append((atoms, order, phase, strength))
    frame = molecule.positions[None]

    def torsion(atoms: Sequence[int]) -> float:
        return float(dihedral(frame, tuple(atoms))[0])

    potentials = []
    for k in turning:
        atom, parent, grand, reference, _ = tree.rows[k]
        start = torsion((atom, parent, grand, reference))
        waves = np.zeros(ORDERS, dtype=complex)
        for atoms, order, phase, strength in about.get(frozenset((parent, grand)), []):
            if any(frozenset(pair) not in bonds for pair in pairwise(atoms)):
                continue  # an improper torsion keeps a centre flat
            ahead = _STEP * round((torsion(atoms) - start) / _STEP)
            waves[order - 1] += strength * np.exp(-1j * (order * ahead - phase))
        potentials.append([round(float(v), 4) for v in (*waves.real, *waves.imag)])
    return potentials


def largest_difference(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> NDArray[np.float64]:
    """Return by how much two `turning_potentials` of the same bonds differ at most, kJ/mol.

    Each is taken from its mean.
    """
    change = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    phi = np.linspace(-np.pi, np.pi, 73)[:-1]
    turns = np.arange(1, ORDERS + 1)[:, None] * phi
    return np.abs(change @ np.concatenate([np.cos(turns), np.sin(turns)])).max(axis=1, initial=0.0)
