"""What a model of L peptides with trans bonds must not be fed: D residues, bonds that are cis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..molecule.molecule import Molecule
from ..molecule.torsions import TorsionAtoms
from ..system.structure import is_d, is_trans

#: What to say of each.
REMARKS: Final = {
    "d_residues": "is a D amino acid: models that learned from L do not know it",
    "cis_amides": "is a cis amide bond: it will stay so",
}


class Amides:
    """The bonds between a carbonyl's carbon and an amide's nitrogen that have two sides.

    `torsions` have carbon atoms at the ends, as omega has: of two at the nitrogen the one with more
    heavy neighbours, which in proline is the alpha carbon.
    """

    def __init__(self, molecule: Molecule) -> None:
        self.molecule = molecule
        graph = molecule.graph()
        z = molecule.atomic_numbers
        self.torsions: list[tuple[int, int, int, int]] = []
        for one, two in molecule.bonds:
            for c, n in ((one, two), (two, one)):
                if (z[c], z[n]) != (6, 7) or len(graph[c]) != 3 or len(graph[n]) != 3:
                    continue
                if not any(z[k] == 8 and len(graph[k]) == 1 for k in graph[c]):
                    continue
                before = [k for k in sorted(graph[c]) if z[k] == 6]
                behind = [k for k in sorted(graph[n]) if k != c and z[k] == 6]
                if before and behind:
                    heavy = {k: sum(z[j] != 1 for j in graph[k]) for k in behind}
                    self.torsions.append((before[0], c, n, max(behind, key=heavy.__getitem__)))

    def trans(self, frame: NDArray[np.floating[Any]]) -> list[bool]:
        """Return for each whether its carbons are on opposite sides in a frame (N, 3), nm."""
        return [is_trans(np.asarray(frame, dtype=np.float64)[list(t)]) for t in self.torsions]

    def cis(self) -> list[str]:
        """Return the bonds that are cis in the molecule's own frame, as people name them."""
        names = zip(self.torsions, self.trans(self.molecule.positions), strict=True)
        return [self._name(torsion) for torsion, trans in names if not trans]

    def turned(self, frame: NDArray[np.floating[Any]]) -> str:
        """Say which of them a frame (N, 3) has on the other side than the molecule, or nothing."""
        pairs = zip(self.trans(self.molecule.positions), self.trans(frame), strict=True)
        wrong = [t for t, (one, two) in zip(self.torsions, pairs, strict=True) if one != two]
        if not wrong:
            return ""
        return f"the amide bond {self._name(wrong[0])} has turned over"

    def held(self, pulled: Sequence[TorsionAtoms]) -> list[tuple[tuple[int, int, int, int], float]]:
        """Return what keeps them on their sides while other torsions are pulled: torsion, rad."""
        bonds = {frozenset(torsion[1:3]) for torsion in pulled}
        sides = zip(self.torsions, self.trans(self.molecule.positions), strict=True)
        return [(t, np.pi * trans) for t, trans in sides if frozenset(t[1:3]) not in bonds]

    def _name(self, torsion: tuple[int, int, int, int]) -> str:
        m = self.molecule
        ends = [f"{m.atom_names[k]} of {m.residue_names[k]} {m.residue_ids[k]}" for k in torsion]
        return f"{ends[1]} - {ends[2]}"


def d_residues(molecule: Molecule) -> list[str]:
    """Return the amino acids of a molecule that are D in its own frame, as people name them."""
    residues: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    labels = zip(molecule.residue_names, molecule.residue_ids, strict=True)
    for label, name, place in zip(labels, molecule.atom_names, molecule.positions, strict=True):
        residues.setdefault(label, {})[name] = place
    return [f"{residue} {number}" for (residue, number), x in residues.items() if is_d(x)]


def unusual(molecule: Molecule) -> dict[str, list[str]]:
    """Return what models of L peptides with trans bonds do not know, by its word in data sets."""
    found = {"d_residues": d_residues(molecule), "cis_amides": Amides(molecule).cis()}
    return {what: names for what, names in found.items() if names}
