"""Internal coordinates that begin at the backbone, rings included.

Coordinates of two molecules are counterparts when the same rule made them: phi, psi, omega and chi1
are then the same coordinates in every amino acid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import networkx as nx
import numpy as np
import torch

from ...molecule.graph import bond_paths, graph_classes
from ...molecule.molecule import Molecule
from .tree import InternalTree, NotInternal, coordinates_of, refuse_straight

#: Two atoms on one bond whose torsions differ by less than this from 180 degrees have no order.
_PLANAR: Final = 0.5


def backbone_tree(molecule: Molecule) -> InternalTree:
    """Choose a molecule's internal coordinates, outwards from its backbone.

    The backbone is the path between two ends of the skeleton of heavy atoms with the most secondary
    amide bonds on it, of these the longest; it begins at the end from which a carbonyl comes before
    its nitrogen. Its first three atoms are the root. Heavy atoms follow by their distance from the
    backbone, then hydrogens. An atom with two bonded neighbours in place closes a ring, see
    `InternalTree.bridged`.

    Of the atoms on one bond the next one of the backbone leads; else the heavy atom with more heavy
    atoms behind it, then the heavier; of two that only the hand tells apart (CG1 and CG2 of valine)
    the one from which the other is at -120 degrees, as isoleucine's and threonine's second branches
    are. Hydrogens come in the order of their torsions.

    NotInternal if there are fewer than three heavy atoms in a row, an atom closes two rings at
    once, or three atoms that torsions lean on are near a line.
    """
    return _Builder(molecule).tree()


class _Builder:
    """A tree under construction."""

    def __init__(self, molecule: Molecule) -> None:
        self.molecule = molecule
        self.graph = molecule.graph()
        self.numbers = molecule.atomic_numbers
        self.classes = graph_classes(molecule.atomic_numbers, molecule.bonds).tolist()
        self.skeleton = self.graph.subgraph(molecule.heavy)
        self.path = _backbone(molecule, self.skeleton, self.classes)
        if len(self.path) < 3:
            raise NotInternal(f"{molecule.name} has no three heavy atoms in a row")
        a, b, c = self.path[:3]
        self.above = {a: b, b: a, c: b}
        self.placed = {a, b, c}
        self.rows: list[tuple[int, ...]] = []
        self.leading: dict[int, int] = {}
        self.bridged: list[int] = []

    def tree(self) -> InternalTree:
        a, b, c = self.path[:3]
        order = self._heavy_order()
        for parent in order:
            for atom in self._children(parent):
                if atom not in self.placed:
                    self._place(atom, parent)
        if len(self.placed) != len(self.molecule.heavy):
            raise NotInternal(f"the heavy atoms of {self.molecule.name} are not connected")
        for parent in order:
            self._place_hydrogens(parent)
        rows = len(self.rows)
        if rows != self.molecule.n_atoms - 3:
            raise NotInternal(f"a hydrogen of {self.molecule.name} is not bonded to one heavy atom")
        tree = InternalTree(self.molecule.n_atoms, (a, b, c), self.rows, tuple(self.bridged))
        x = torch.tensor(self.molecule.positions)[None]
        refuse_straight(tree, coordinates_of(tree, x)[1])
        return tree

    def _heavy_order(self) -> list[int]:
        """Return the heavy atoms: the backbone, then the others by their distance from it."""
        ring: dict[int, int] = nx.multi_source_dijkstra_path_length(self.skeleton, set(self.path))
        place = {atom: k for k, atom in enumerate(self.path)}
        paths = bond_paths(self.molecule.n_atoms, self.molecule.bonds)

        def order(atom: int) -> tuple[int, ...]:
            near = min(self.path, key=lambda k: (paths[atom, k], place[k]))
            return (ring[atom], place[near], self.classes[atom], atom)

        rest = sorted((k for k in self.molecule.heavy if k not in place), key=order)
        # The root's middle atom first: others lean on its neighbours.
        a, b, *others = self.path
        return [b, a, *others, *rest]

    def _children(self, parent: int) -> list[int]:
        """Return the heavy atoms to place on an atom, the leading one first."""
        found = [k for k in self.skeleton[parent] if k not in self.placed]
        behind = {k: _behind(self.skeleton, k, parent) for k in found}
        on_path = set(self.path)
        found.sort(
            key=lambda k: (k not in on_path, -behind[k], -self.numbers[k], self.classes[k], k)
        )
        if len(found) == 2 and self.classes[found[0]] == self.classes[found[1]]:
            one, other = found
            turn = self._torsion(other, parent) - self._torsion(one, parent)
            turn = math.remainder(turn, math.tau)
            if abs(turn) < math.pi - _PLANAR and turn < 0.0:
                found.reverse()
        return found

    def _reference(self, parent: int) -> int:
        """Return what torsions about the bond of an atom to what it was placed from lean on."""
        a, b, c = self.path[:3]
        if parent == b:
            return c
        if parent in (a, c):
            return c if parent == a else a
        return self.above[self.above[parent]]

    def _torsion(self, atom: int, parent: int) -> float:
        x = self.molecule.positions
        return _dihedral(x[[atom, parent, self.above[parent], self._reference(parent)]])

    def _ring_neighbour(self, parent: int) -> int:
        """Return the atom by which a ring goes on from an atom, if it was not placed from it."""
        closing = {self.rows[k][0] for k in self.bridged}
        for k in self.skeleton[parent]:
            from_here = self.above.get(k) == parent and k not in closing
            if k in self.placed and k != self.above[parent] and not from_here:
                return -1 if parent in self.path[:3] else k
        return -1

    def _place(self, atom: int, parent: int) -> None:
        near = [k for k in self.skeleton[atom] if k in self.placed and k != parent]
        if len(near) > 1:
            raise NotInternal(
                f"atom {atom} of {self.molecule.name} closes two rings: internal coordinates do "
                "not suit this molecule"
            )
        if near:
            other = near[0]
            inside = [
                k for k in self.skeleton[parent] if k in self.placed and k not in (atom, other)
            ]
            # In the ring if there is a choice.
            inside.sort(key=lambda k: nx.shortest_path_length(self.skeleton, k, other))
            self.bridged.append(len(self.rows))
            self.rows.append((atom, parent, other, inside[0], -1))
        else:
            self._append(atom, parent)
        self.above[atom] = parent
        self.placed.add(atom)

    def _append(self, atom: int, parent: int) -> None:
        """Add a row for an atom that closes no ring."""
        grandparent = self.above[parent]
        beside = self._ring_neighbour(parent)
        if beside >= 0:
            self.rows.append((atom, parent, grandparent, beside, -1))
            return
        leader = self.leading.get(parent, -1)
        self.rows.append((atom, parent, grandparent, self._reference(parent), leader))
        if leader < 0 and parent != self.path[1]:
            self.leading[parent] = len(self.rows) - 1

    def _place_hydrogens(self, parent: int) -> None:
        found = [k for k in self.graph[parent] if self.numbers[k] == 1]
        if any(len(self.graph[k]) != 1 for k in found):
            raise NotInternal(f"a hydrogen of {self.molecule.name} is not bonded to one heavy atom")
        if not found:
            return
        turn = {k: self._torsion(k, parent) for k in found}
        beside, leader = self._ring_neighbour(parent), self.leading.get(parent, -1)
        if beside >= 0:
            start = self._torsion(beside, parent)
        elif leader >= 0:
            start = self._torsion(self.rows[leader][0], parent)
        elif parent == self.path[1]:
            start = 0.0
        else:
            # A hydrogen leads: the one nearest to trans.
            start = turn[max(found, key=lambda k: round(abs(math.remainder(turn[k], math.tau)), 3))]
        for atom in sorted(found, key=lambda k: (turn[k] - start + 1e-6) % math.tau):
            self._append(atom, parent)


def _backbone(molecule: Molecule, skeleton: nx.Graph, classes: Sequence[int]) -> list[int]:
    """Return the atoms of the backbone, see `backbone_tree`."""
    z, graph = molecule.atomic_numbers, molecule.graph()

    def amide(c: int, n: int) -> bool:
        """Whether a bond is that of a carbonyl's carbon to a nitrogen with another carbon."""
        oxygen = any(z[k] == 8 and len(graph[k]) == 1 for k in graph[c])
        return z[c] == 6 and z[n] == 7 and oxygen and len(skeleton[n]) > 1

    ends = [k for k in skeleton if len(skeleton[k]) == 1] or list(skeleton)
    best: tuple[tuple[float, ...], list[int]] = ((math.inf,), [])
    for source in ends:
        for target, path in nx.single_source_shortest_path(skeleton, source).items():
            if target not in ends or target == source:
                continue
            steps = list(pairwise(path))
            forwards = sum(amide(i, j) for i, j in steps)
            backwards = sum(amide(j, i) for i, j in steps)
            rank = (-forwards - backwards, -forwards, -len(path), *(classes[k] for k in path))
            best = min(best, (rank, path))
    return best[1]


def _behind(skeleton: nx.Graph, atom: int, away: int) -> int:
    """Return how many heavy atoms are reached from one without passing another."""
    return len(nx.node_connected_component(skeleton.subgraph(set(skeleton) - {away}), atom))


def _dihedral(x: np.ndarray) -> float:
    """Return the torsion of four positions, as `internal_coordinates` counts it."""
    tree = InternalTree(4, (1, 2, 3), [(0, 1, 2, 3, -1)])
    return float(coordinates_of(tree, torch.tensor(x[None], dtype=torch.float64))[2])
