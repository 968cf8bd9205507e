"""What members of a family of molecules have in common: kinds of atoms, one way to grow the tree.

Coordinates of two molecules are counterparts when the same rule made them. So the tree is rooted at
the end of a chain, hydrogens on one atom are taken in the order of their hand, and atoms have kinds
that do not depend on the molecule. Here are also the relabellings that leave a molecule as it is.
"""

# No postponed annotations here: TorchScript reads those of the tensor functions.
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from math import tau
from typing import Final

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from .graph import graph_classes
from .internal_tree import (
    InternalTree,
    NotInternal,
    build_tree,
    coordinates_of,
    refuse_straight,
    wrap,
)
from .molecule import Molecule

#: Atomic number, hydrogens it carries, heavy atoms it is bonded to.
Kind = tuple[int, int, int]

#: A relabelling: +1, or -1 for one that goes with a reflection, and the permutation p: atom k of
#: the relabelled frame is atom p[k] of the frame.
Symmetry = tuple[int, tuple[int, ...]]

MAX_HYDROGENS: Final = 4
"""Hydrogens that a heavy atom can carry."""

MAX_SYMMETRIES: Final = 512
"""Largest group of relabellings; see `symmetry_generators`."""

_MIN_SINE: Final = 0.35
"""As in `choose_frame_atoms`: three atoms are near a line below this sine of their angle."""

_SAME_TORSION: Final = 1.0
"""A stiff torsion that a relabelling changes by less than this (radians) is the same one: others
differ by 2 (a tetrahedron's) or 3 (a plane's)."""


_ROUNDING: Final = 1e-6
"""A torsion this much below zero (radians) is zero."""


def atom_kinds(atomic_numbers: Sequence[int], bonds: Sequence[Sequence[int]]) -> list[Kind]:
    """Return the kind of each atom.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom.
    bonds : sequence of (int, int)
        Pairs of bonded atoms.
    """
    hydrogens = [0] * len(atomic_numbers)
    heavy = [0] * len(atomic_numbers)
    for i, j in (*bonds, *((j, i) for i, j in bonds)):
        if atomic_numbers[j] == 1:
            hydrogens[i] += 1
        else:
            heavy[i] += 1
    return list(zip(map(int, atomic_numbers), hydrogens, heavy, strict=True))


def family_tree(molecule: Molecule) -> InternalTree:
    """Choose a molecule's internal coordinates so that they have counterparts in its family.

    Parameters
    ----------
    molecule : Molecule
        Without rings; its reference frame tells the hydrogens on one atom apart.

    Returns
    -------
    InternalTree
        Its root (a, b, c) begins at the end of a chain: a is a heavy atom with one heavy neighbour
        b, as many bonds away from some other heavy atom as there is; c is the neighbour of b
        with the largest branch, a hydrogen where b has no other heavy neighbour. Ties are settled
        by what the bond graph tells apart, then by the atoms' order. The hydrogens on one atom come
        in the order of their torsions in the reference frame, counted from the leading atom from 0
        to 360 degrees: first the one at +120 degrees. Where a hydrogen leads it is the one nearest
        to trans.

    Raises
    ------
    NotInternal
        If the molecule has fewer than four atoms, two heavy ones that are bonded, a ring, three
        atoms near a line that torsions lean on, or a hydrogen with more than one bond.
    """
    name = molecule.name
    if molecule.n_atoms < 4:
        raise NotInternal(f"internal coordinates need 4 atoms, {name} has fewer")
    if len(molecule.heavy) < 2:
        raise NotInternal(
            f"internal coordinates of a family need two bonded heavy atoms, {name} has "
            f"{len(molecule.heavy)}"
        )
    if len(molecule.bonds) != molecule.n_atoms - 1:
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

    def branch(atom: int, away: int) -> int:
        pieces = graph.subgraph(set(graph) - {away})
        return len(nx.node_connected_component(pieces, atom))

    def bent(a: int, b: int, c: int) -> bool:
        u, v = (molecule.positions[k] - molecule.positions[b] for k in (a, c))
        product = np.linalg.norm(u) * np.linalg.norm(v)
        return bool(np.linalg.norm(np.cross(u, v)) > _MIN_SINE * product)

    def order(root: tuple[int, int, int]) -> tuple:
        a, b, c = root
        hydrogen = molecule.atomic_numbers[c] == 1
        ends = (kinds[a][2] != 1, -reach[a], -branch(c, b))
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


# Relabellings.


def symmetry_generators(
    molecule: Molecule, tree: InternalTree, turning: Sequence[int]
) -> list[Symmetry]:
    """Return relabellings that leave a molecule's bonded geometry as it is.

    Parameters
    ----------
    molecule : Molecule
        The molecule; its reference frame says which hand its centres have.
    tree : InternalTree
        Its internal coordinates.
    turning : sequence of int
        Rows of `tree` whose torsion turns; a relabelling must leave all other torsions near their
        values in the reference frame.

    Returns
    -------
    list of Symmetry
        In this order: the reflection, for a molecule that is its own mirror image; exchanges of
        equivalent heavy atoms with their hydrogens, like the reversal of a chain; for every group
        of three hydrogens on one atom its rotation by a third, for two in a plane their exchange.
        What follows from those before is left out, and so is what would make the group larger
        than `MAX_SYMMETRIES`: then the law has the symmetry of the smaller group only.
    """
    positions = molecule.positions
    hand = molecule.handedness
    stiff = [k for k in range(len(tree.rows)) if k not in set(turning)]
    identity = np.arange(molecule.n_atoms)

    def torsions(x: np.ndarray) -> Tensor:
        return coordinates_of(tree, torch.tensor(x[None]))[2][0, stiff]

    reference = torsions(positions)

    def repaired(order: np.ndarray, sign: int) -> Symmetry | None:
        """The relabelling with its hydrogens put back to their hands, if there is such a one."""
        order = order[hand.relabelling(sign * positions[order])]
        x = sign * positions[order]
        if (hand.measure(x) != hand.signs).any():
            return None
        if len(stiff) and float(wrap(torsions(x) - reference).abs().max()) > _SAME_TORSION:
            return None
        return sign, tuple(order.tolist())

    found = [repaired(identity, -1)]
    for order in islice(_heavy_exchanges(molecule), MAX_SYMMETRIES):
        found.append(repaired(order, 1) or repaired(order, -1))
    for heavy in molecule.heavy:
        hydrogens = _hydrogens(molecule, heavy)
        if len(hydrogens) in (2, 3):
            # Of the two of a CH2 each has its hand, and they come out as they were.
            order = identity.copy()
            order[hydrogens] = np.roll(hydrogens, 1)
            found.append(repaired(order, 1))

    chosen: list[Symmetry] = []
    group = symmetry_group([], molecule.n_atoms)
    for symmetry in found:
        if symmetry is None or symmetry in group:
            continue
        larger = symmetry_group([*chosen, symmetry], molecule.n_atoms)
        if len(larger) <= MAX_SYMMETRIES:
            chosen.append(symmetry)
            group = larger
    return chosen


def symmetry_group(generators: Sequence[Symmetry], n_atoms: int) -> list[Symmetry]:
    """Return all products of some relabellings, the identity first.

    Stops soon after `MAX_SYMMETRIES`: a longer list is no group.
    """
    identity: Symmetry = (1, tuple(range(n_atoms)))
    group = [identity]
    known = {identity}
    for sign, order in group:
        for other_sign, other in generators:
            product = (sign * other_sign, tuple(order[k] for k in other))
            if product not in known:
                known.add(product)
                group.append(product)
        if len(group) > MAX_SYMMETRIES:
            break
    return group


def relabelled(frames: Tensor, order: Tensor, sign: Tensor) -> Tensor:
    """Apply to each frame a relabelling of its own.

    Parameters
    ----------
    frames : Tensor
        (B, N, 3).
    order : Tensor
        (B, N), permutations.
    sign : Tensor
        (B,); -1 reflects the frame through the origin. That is a mirror image in a plane that has
        been turned, and needs no plane to be chosen.

    Returns
    -------
    Tensor
        (B, N, 3).
    """
    picked = torch.gather(frames, 1, order.unsqueeze(-1).expand(-1, -1, 3))
    return picked * sign.to(frames.dtype).view(-1, 1, 1)


def _hydrogens(molecule: Molecule, atom: int) -> list[int]:
    return sorted(k for k in molecule.graph()[atom] if molecule.atomic_numbers[k] == 1)


def _heavy_exchanges(molecule: Molecule) -> Iterator[np.ndarray]:
    """Yield the automorphisms of the skeleton, with hydrogens following their atoms."""
    kinds = atom_kinds(molecule.atomic_numbers, molecule.bonds)
    skeleton = nx.Graph(molecule.graph().subgraph(molecule.heavy))
    for atom in skeleton:
        skeleton.nodes[atom]["kind"] = kinds[atom]
    matcher = nx.algorithms.isomorphism.GraphMatcher(
        skeleton, skeleton, node_match=lambda one, two: one["kind"] == two["kind"]
    )
    carried = {atom: _hydrogens(molecule, atom) for atom in molecule.heavy}
    for mapping in matcher.isomorphisms_iter():
        order = np.arange(molecule.n_atoms)
        for atom, other in mapping.items():
            order[atom] = other
            order[carried[atom]] = carried[other]
        yield order
