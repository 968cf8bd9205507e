"""Relabellings of equivalent atoms that leave a molecule's law as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ...molecule.graph import atom_kinds, hydrogens_of, isomorphisms
from ...molecule.molecule import Molecule
from .tree import InternalTree, coordinates_of, wrap

#: A relabelling: +1, or -1 for one that goes with a reflection, and the permutation p: atom k of
#: the relabelled frame is atom p[k] of the frame.
Symmetry = tuple[int, tuple[int, ...]]
MAX_SYMMETRIES: Final = 512
"""Largest group of relabellings; see `symmetry_generators`."""
_SAME_TORSION: Final = 1.0
"""A stiff torsion that a relabelling changes by less than this (radians) is the same one: others
differ by 2 (a tetrahedron's) or 3 (a plane's)."""


def symmetry_generators(
    molecule: Molecule, tree: InternalTree, turning: Sequence[int]
) -> list[Symmetry]:
    """Return relabellings that leave a molecule's bonded geometry as it is.

    In this order: the reflection, for a molecule that is its own mirror image; exchanges of
    equivalent heavy atoms with their hydrogens, like the reversal of a chain; for every group of
    three hydrogens on one atom its rotation by a third, for two in a plane their exchange. What
    follows from those before is left out, and so is what would make the group larger than
    `MAX_SYMMETRIES`: then the law has the symmetry of the smaller group only.

    The reference frame says which hand the molecule's centres have. `turning` are the rows of the
    tree whose torsion turns; a relabelling must leave all other torsions near their values in the
    reference frame.
    """
    positions = molecule.positions
    hand = molecule.handedness
    stiff = [k for k in range(len(tree.rows)) if k not in set(turning)]
    identity = np.arange(molecule.n_atoms)

    def torsions(x: np.ndarray) -> Tensor:
        return coordinates_of(tree, torch.tensor(x[None]))[2][0, stiff]

    reference = torsions(positions)

    def repaired(order: np.ndarray, sign: int) -> Symmetry | None:
        """Return the relabelling with its hydrogens put back to their hands; None if that fails."""
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
        hydrogens = hydrogens_of(molecule, heavy)
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


def independent_symmetries(
    molecule: Molecule, tree: InternalTree, turning: Sequence[int]
) -> list[list[Symmetry]]:
    """Return generators of a molecule's relabellings, sorted into groups to be drawn from in turn.

    One group holds them all if it is not too large. Else each exchange or rotation that moves atoms
    of its own is a group by itself; what moves atoms of several is left out.
    """
    generators = symmetry_generators(molecule, tree, turning)
    identity = np.arange(molecule.n_atoms)
    turned = [_rotation(molecule, heavy) for heavy in molecule.heavy]
    if all(
        order is None or (1, tuple(order)) in symmetry_group(generators, molecule.n_atoms)
        for order in turned
    ):
        return [generators] if generators else []
    moved: set[int] = set()
    groups: list[list[Symmetry]] = []
    for sign, order in sorted(generators, key=lambda g: int((np.array(g[1]) != identity).sum())):
        support = set(np.flatnonzero(np.array(order) != identity).tolist())
        if sign > 0 and not support & moved:
            moved |= support
            groups.append([(sign, order)])
    rest = (tuple(order) for order in turned if order is not None)
    for order in rest:
        support = set(np.flatnonzero(np.array(order) != identity).tolist())
        if not support & moved:
            moved |= support
            groups.append([(1, order)])
    return groups


def _rotation(molecule: Molecule, heavy: int) -> list[int] | None:
    """Return the rotation of three hydrogens on an atom, if it has three."""
    hydrogens = hydrogens_of(molecule, heavy)
    if len(hydrogens) != 3:
        return None
    order = np.arange(molecule.n_atoms)
    order[hydrogens] = np.roll(hydrogens, 1)
    return [int(k) for k in order]


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


def checked_group(symmetries: Sequence[tuple[int, Sequence[int]]], n_atoms: int) -> list[Symmetry]:
    """Return the group that relabellings generate; ValueError if they are none, or too many."""
    generators: list[Symmetry] = []
    for sign, order in symmetries:
        if sign not in (1, -1) or sorted(order) != list(range(n_atoms)):
            raise ValueError(
                f"symmetries must hold +1 or -1 and a permutation of {n_atoms} atoms, got "
                f"{sign} and {list(order)}"
            )
        generators.append((int(sign), tuple(int(k) for k in order)))
    group = symmetry_group(generators, n_atoms)
    if len(group) > MAX_SYMMETRIES:
        raise ValueError(f"symmetries generate more than {MAX_SYMMETRIES} relabellings")
    return group


def relabelled(frames: Tensor, order: Tensor, sign: Tensor) -> Tensor:
    """Apply to each frame, (B, N, 3), a relabelling of its own.

    `order`, (B, N), holds permutations. A `sign`, (B,), of -1 reflects the frame through the
    origin. That is a mirror image in a plane that has been turned, and needs no plane to be chosen.
    """
    picked = torch.gather(frames, 1, order.unsqueeze(-1).expand(-1, -1, 3))
    return picked * sign.to(frames.dtype).view(-1, 1, 1)


def _heavy_exchanges(molecule: Molecule) -> Iterator[np.ndarray]:
    """Yield the automorphisms of the skeleton, with hydrogens following their atoms."""
    kinds = atom_kinds(molecule.atomic_numbers, molecule.bonds)
    skeleton = molecule.graph().subgraph(molecule.heavy)
    colours = {atom: kinds[atom] for atom in molecule.heavy}
    carried = {atom: hydrogens_of(molecule, atom) for atom in molecule.heavy}
    for mapping in isomorphisms(skeleton, skeleton, colours, colours):
        order = np.arange(molecule.n_atoms)
        for atom, other in mapping.items():
            order[atom] = other
            order[carried[atom]] = carried[other]
        yield order
