"""What members of a family of molecules have in common: kinds of atoms, one way to grow the tree.

Coordinates of two molecules are counterparts when the same rule made them. So the tree is rooted at
the end of a chain, hydrogens on one atom are taken in the order of their hand, and atoms have kinds
that do not depend on the molecule.
"""

# No postponed annotations here: TorchScript reads those of the tensor functions.
import math
from math import tau
from typing import Final

import networkx as nx
import numpy as np
import torch

from ...molecule.graph import Kind, atom_kinds, branch, graph_classes
from ...molecule.molecule import Molecule
from ..alignment import MIN_SINE
from .tree import InternalTree, NotInternal, build_tree, coordinates_of, refuse_straight

MAX_HYDROGENS: Final = 4
"""Hydrogens that a heavy atom can carry."""


_ROUNDING: Final = 1e-6
"""A torsion this much below zero (radians) is zero."""


def family_tree(molecule: Molecule) -> InternalTree:
    """Choose a molecule's internal coordinates so that they have counterparts in its family.

    The root (a, b, c) begins at the end of a chain: a is a heavy atom with one heavy neighbour b,
    as many bonds away from some other heavy atom as there is; c is the neighbour of b with the
    largest branch, a hydrogen where b has no other heavy neighbour. Ties are settled by what the
    bond graph tells apart, then by the atoms' order. The hydrogens on one atom come in the order of
    their torsions in the reference frame, counted from the leading atom from 0 to 360 degrees:
    first the one at +120 degrees. Where a hydrogen leads it is the one nearest to trans.

    NotInternal if the molecule has fewer than four atoms, no two heavy ones that are bonded, a
    ring, three atoms near a line that torsions lean on, or a hydrogen with more than one bond.
    """
    name = molecule.name
    if molecule.n_atoms < 4:
        raise NotInternal(f"internal coordinates need 4 atoms, {name} has fewer")
    if len(molecule.heavy) < 2:
        raise NotInternal(
            f"internal coordinates of a family need two bonded heavy atoms, {name} has "
            f"{len(molecule.heavy)}"
        )
    if molecule.n_rings:
        raise NotInternal(
            f"internal coordinates of a family do without rings, {name} has a ring: the length of "
            "its last bond is no coordinate"
        )
    kinds = atom_kinds(molecule.atomic_numbers, molecule.bonds)
    for atom, (number, hydrogens, heavy) in enumerate(kinds):
        if number == 1 and (hydrogens, heavy) != (0, 1):
            raise NotInternal(f"hydrogen {atom} of {name} is not bonded to one heavy atom alone")
        if hydrogens > MAX_HYDROGENS:
            raise NotInternal(f"atom {atom} of {name} carries more than {MAX_HYDROGENS} hydrogens")
    classes = graph_classes(molecule.atomic_numbers, molecule.bonds).tolist()
    tree = build_tree(molecule, _root(molecule, kinds, classes), classes)
    reference = torch.tensor(molecule.positions)[None]
    _, angles, torsions = coordinates_of(tree, reference)
    refuse_straight(tree, angles)
    # Hydrogens end branches, so those beside each other can be exchanged among their rows.
    turn = torsions[0].tolist()
    whole = [turn[k] + (turn[row[4]] if row[4] >= 0 else 0.0) for k, row in enumerate(tree.rows)]
    rows = list(tree.rows)
    for parent in {row[1] for row in rows}:
        places = [
            k
            for k, row in enumerate(rows)
            if row[1] == parent and molecule.atomic_numbers[row[0]] == 1
        ]
        if not places:
            continue
        first = rows[places[0]]
        if first[4] >= 0:
            start = whole[first[4]]
        elif parent == tree.root[1]:
            start = 0.0
        else:
            # A hydrogen leads: the one nearest to trans.
            start = whole[max(places, key=lambda k: round(abs(math.remainder(whole[k], tau)), 3))]
        places_of_atoms = sorted(places, key=lambda k: (whole[k] - start + _ROUNDING) % tau)
        for k, other in zip(places, places_of_atoms, strict=True):
            rows[k] = (tree.rows[other][0], *tree.rows[k][1:])
    return InternalTree(tree.n_atoms, tree.root, rows)


def _root(molecule: Molecule, kinds: list[Kind], classes: list[int]) -> tuple[int, int, int]:
    """The three atoms that the tree begins with, see `family_tree`."""
    graph = molecule.graph()
    skeleton = graph.subgraph(molecule.heavy)
    reach = nx.eccentricity(skeleton)

    def bent(a: int, b: int, c: int) -> bool:
        u, v = (molecule.positions[k] - molecule.positions[b] for k in (a, c))
        product = np.linalg.norm(u) * np.linalg.norm(v)
        return bool(np.linalg.norm(np.cross(u, v)) > MIN_SINE * product)

    def order(root: tuple[int, int, int]) -> tuple:
        a, b, c = root
        hydrogen = molecule.atomic_numbers[c] == 1
        ends = (kinds[a][2] != 1, -reach[a], -len(branch(graph, c, b)))
        return (hydrogen, *ends, *(classes[k] for k in root), root)

    candidates = [
        (a, b, c)
        for a in molecule.heavy
        for b in skeleton[a]
        for c in graph[b]
        if c != a and bent(a, b, c)
    ]
    if not candidates:
        raise NotInternal(
            f"{molecule.name} has no three bonded atoms, two of them heavy, that are off a line"
        )
    return min(candidates, key=order)


def tree_ancestors(tree: InternalTree) -> dict[int, tuple[int, int, int]]:
    """Return parent, grandparent and reference of every atom of a tree; -1 where there is none.

    The root is read outwards from its first atom.
    """
    a, b, c = tree.root
    ancestors = {a: (-1, -1, -1), b: (a, -1, -1), c: (b, a, -1)}
    for row in tree.rows:
        ancestors[row[0]] = (row[1], row[2], row[3])
    return ancestors
