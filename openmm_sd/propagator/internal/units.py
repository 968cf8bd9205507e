"""How a molecule's atoms and coordinates are laid out over the units of a family's network.

A unit is a heavy atom with its hydrogens, each of them in a slot of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...molecule.graph import atom_kinds, bond_paths
from .base import HARMONICS
from .family_tree import MAX_HYDROGENS, tree_ancestors
from .tree import InternalTree

SLOTS: Final = 1 + MAX_HYDROGENS
"""The heavy atom itself and its hydrogens."""

PARTS: Final = 5
"""What can be diffused in a slot: length, angle, stiff torsion, and two for one that turns."""

ROLES: Final = 4
"""Atoms whose kinds a unit is told: its own, and those that its atom leans on in the tree."""

MAX_DEGREE: Final = 6

MAX_PATH: Final = 5
"""Bonds between two heavy atoms are counted up to here; further apart is one kind."""

RELATIONS: Final = 7
"""How two heavy atoms stand in the tree: the same, the other is parent, child, grandparent,
grandchild, sibling, or none of these."""

Slots = dict[int, tuple[int, int]]
"""Unit and slot of every atom."""


def units_of(
    tree: InternalTree, numbers: Sequence[int], bonds: Sequence[tuple[int, int]]
) -> tuple[list[int], Slots]:
    """Return the heavy atom of each unit, in the order of the tree, and where every atom is.

    Hydrogens take their slots in the order of the tree. ValueError if one hangs on anything but one
    heavy atom, or too many on one.
    """
    kinds = atom_kinds(numbers, bonds)
    ancestors = tree_ancestors(tree)
    units = [atom for atom in tree.order() if numbers[atom] != 1]
    slot: Slots = {atom: (k, 0) for k, atom in enumerate(units)}
    taken = [0] * len(units)
    for atom in tree.order():
        if numbers[atom] == 1:
            unit = slot.get(ancestors[atom][0], (-1, 0))[0]
            if unit < 0 or kinds[atom][1:] != (0, 1) or taken[unit] == MAX_HYDROGENS:
                raise ValueError(
                    f"atom {atom} must hang on a heavy atom alone, with {MAX_HYDROGENS - 1} "
                    "other hydrogens at most"
                )
            taken[unit] += 1
            slot[atom] = (unit, taken[unit])
    return units, slot


def slot_indices(
    tree: InternalTree, slot: Slots, free: Sequence[int], stiff: Sequence[int], turning: list[int]
) -> dict[str, NDArray[Any]]:
    """Return what each slot reads of the features that a network is shown, and where it answers.

    `slot` is from `units_of`; `free` are the bond lengths that vary, `stiff` and `turning` the rows
    of the tree whose torsion stays near one value, and whose turns. ``condition_index``,
    ``noised_index``, ``layout_index`` and ``answer_index`` are flat. Where there is nothing to read
    the index is that of a zero after the last feature.
    """
    n_units = 1 + max(unit for unit, _ in slot.values())
    _, b, c = tree.root
    placed = [b, c, *(row[0] for row in tree.rows)]
    m = len(turning)
    n_straight = len(free) + len(placed) - 1
    n_stiff = n_straight + len(stiff)
    size = n_stiff + 2 * m
    # For each coordinate the atom it places, and which part of its slot it is.
    owner = [(placed[k], 0) for k in free]
    owner += [(atom, 1) for atom in placed[1:]]
    owner += [(tree.rows[k][0], 2) for k in stiff]
    turners = [tree.rows[k][0] for k in turning]
    owner += [(atom, 3) for atom in turners] + [(atom, 4) for atom in turners]
    angles = 2 * HARMONICS
    condition = np.full((n_units, SLOTS, 3 + angles), n_stiff + angles * m)
    noised = np.full((n_units, SLOTS, PARTS + 1 + angles), size + m + angles * m)
    # What a slot holds at all, and on which side of the leading atom a stiff torsion keeps it.
    layout = np.full((n_units, SLOTS, PARTS + 1), 1)
    answers = []
    for k, (atom, part) in enumerate(owner):
        unit, place = slot[atom]
        noised[unit, place, part] = k
        answers.append((unit * SLOTS + place) * PARTS + part)
        if k < n_stiff:
            condition[unit, place, part] = k
        if part < 4:
            layout[unit, place, part] = 0
        if part == 2:
            layout[unit, place, 4:] = 2 + 2 * (k - n_straight) + np.arange(2)
    for k, atom in enumerate(turners):
        unit, place = slot[atom]
        noised[unit, place, PARTS] = size + k
        for wave in range(angles):
            condition[unit, place, 3 + wave] = n_stiff + wave * m + k
            noised[unit, place, PARTS + 1 + wave] = size + m + wave * m + k
    return {
        "condition_index": condition.reshape(-1),
        "noised_index": noised.reshape(-1),
        "layout_index": layout.reshape(-1),
        "answer_index": np.array(answers),
    }


def unit_indices(
    tree: InternalTree,
    units: Sequence[int],
    slot: Slots,
    numbers: Sequence[int],
    bonds: Sequence[tuple[int, int]],
) -> dict[str, NDArray[Any]]:
    """Return what the units from `units_of` are, and how they stand to each other.

    ``element_index``, ``hydrogen_index`` and ``degree_index``, (U, `ROLES`), are the kinds of the
    atom and of those that it leans on; ``path`` and ``relation``, (U, U), the bonds between two
    units, and how they stand in the tree.
    """
    kinds = atom_kinds(numbers, bonds)
    ancestors = tree_ancestors(tree)
    # No atom is the element 0, with no neighbours.
    told = [[kinds[k] if k >= 0 else (0, 0, 0) for k in (atom, *ancestors[atom])] for atom in units]
    n = len(units)
    table = np.array(told).reshape(n, ROLES, 3)
    parent = [slot[ancestors[atom][0]][0] if ancestors[atom][0] >= 0 else -1 for atom in units]
    above = [parent[k] if k >= 0 else -1 for k in parent]
    relation = np.full((n, n), RELATIONS - 1)
    for i in range(n):
        for j in range(n):
            stands = (
                i == j,
                parent[i] == j,
                parent[j] == i,
                above[i] == j,
                above[j] == i,
                parent[i] == parent[j],
            )
            if any(stands):
                relation[i, j] = stands.index(True)
    path = bond_paths(len(numbers), bonds)[np.ix_(units, units)]
    return {
        "element_index": table[:, :, 0],
        "hydrogen_index": table[:, :, 1].clip(max=MAX_HYDROGENS),
        "degree_index": table[:, :, 2].clip(max=MAX_DEGREE),
        "path": path.clip(max=MAX_PATH),
        "relation": relation,
    }
