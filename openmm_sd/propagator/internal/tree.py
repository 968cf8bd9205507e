"""Internal coordinates of a molecule: which there are, and the way to and from positions.

The tensor functions are scriptable and are what a propagator calls in a jump.
"""

# No postponed annotations here: TorchScript reads those of the tensor functions.
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...molecule.graph import branch, neighbours_of
from ...molecule.molecule import Molecule

CONSTANT_NM: Final = 5e-4
"""A bond whose length varies less than this (standard deviation) is constrained: others vary by
0.002 nm and more at room temperature, rounded trajectories show 0.0001 nm."""

TURNS: Final = 1.2
"""A torsion that strays further than this from its mean (radians) is one that turns."""

_STRAIGHT: Final = math.radians(165.0)
"""Beyond this angle the torsions about a bond are ill defined."""


class NotInternal(ValueError):
    """Internal coordinates do not suit the molecule."""


@dataclass(frozen=True)
class InternalTree:
    """How a molecule of N atoms is built up atom by atom.

    Attributes
    ----------
    root : (int, int, int)
        Atoms (a, b, c), bonded a-b-c, that are placed first.
    rows : list of (int, int, int, int, int)
        For every other atom in the order of placement: the atom, its parent p (bonded to it),
        grandparent g, reference r, and the row that leads or -1. The atom lies at its distance from
        p, at its angle to p-g, and at its torsion to p-g-r, which is counted from the leading row's
        where there is one.
    bridged : tuple of int
        Rows whose atom closes a ring: it is bonded to both p and g, which are not bonded to each
        other, and its distance from g takes the place of the angle. So all bonds of a ring are
        coordinates, and rings close whatever their values.
    """

    n_atoms: int
    root: tuple[int, ...]
    rows: list[tuple[int, ...]]
    bridged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.root) != 3 or len(self.rows) != self.n_atoms - 3:
            raise ValueError(
                f"{self.n_atoms} atoms need a root of 3 and {self.n_atoms - 3} rows, got "
                f"{len(self.root)} and {len(self.rows)}"
            )
        placed = {atom for atom in self.root if 0 <= atom < self.n_atoms}
        if len(placed) != 3:
            raise ValueError(
                f"root must be three different atoms below {self.n_atoms}, got {list(self.root)}"
            )
        for k, row in enumerate(self.rows):
            if len(row) != 5 or not 0 <= row[0] < self.n_atoms or row[0] in placed:
                raise ValueError(f"row {k} of tree does not place a new atom: {list(row)}")
            if not placed >= set(row[1:4]) or len(set(row[1:4])) != 3:
                raise ValueError(f"row {k} of tree leans on what is not placed: {list(row)}")
            if row[4] != -1 and not (0 <= row[4] < k and self.rows[row[4]][4] == -1):
                raise ValueError(
                    f"row {k} of tree must be led by an earlier row that is not led itself, or "
                    f"-1: {list(row)}"
                )
            placed.add(row[0])

    def order(self) -> list[int]:
        """Return the atoms in the order of placement."""
        return [*self.root, *(row[0] for row in self.rows)]

    def stage_ends(self) -> list[int]:
        """Return the row after each group of rows that can be placed at once."""
        ends: list[int] = []
        now: set[int] = set()
        for k, row in enumerate(self.rows):
            if now & set(row[1:4]):
                ends.append(k)
                now = set()
            now.add(row[0])
        return [*ends, len(self.rows)] if self.rows else []


def build_tree(
    molecule: Molecule, root: Sequence[int], rank: Sequence[int] | None = None
) -> InternalTree:
    """Choose the internal coordinates of a connected molecule, outwards from a root.

    The root is three bonded atoms (a, b, c), b in the middle. Of the atoms on one bond the one with
    the largest branch leads; of branches of one size the one of lower `rank`, one number an atom,
    comes first, by default that of the lower index.
    """
    tie = [0] * molecule.n_atoms if rank is None else rank
    neighbours = neighbours_of(molecule.n_atoms, molecule.bonds)
    a, b, c = (int(k) for k in root)

    above = {a: b, b: a, c: b}
    placed = {a, b, c}
    rows: list[tuple[int, ...]] = []
    queue = [b, a, c]
    while queue:
        parent = queue.pop(0)
        found = sorted(
            (k for k in neighbours[parent] if k not in placed),
            key=lambda k: (
                -len(branch(neighbours, k, parent)),
                molecule.atomic_numbers[k] == 1,
                tie[k],
                k,
            ),
        )
        grandparent = above[parent]
        if parent == b:
            reference = c
        elif parent in (a, c):
            reference = c if parent == a else a
        else:
            # The grandparent of a child of b is b, above which a was put.
            reference = above[grandparent]
        leader = -1
        for atom in found:
            rows.append((atom, parent, grandparent, reference, leader))
            if leader < 0 and parent != b:
                leader = len(rows) - 1
            placed.add(atom)
            above[atom] = parent
            queue.append(atom)
    return InternalTree(molecule.n_atoms, (a, b, c), rows)


def turning_torsions(tree: InternalTree, frames: NDArray[np.floating[Any]]) -> list[int]:
    """Return the rows whose torsion turns in some frames (T, N, 3).

    NotInternal if three atoms that a torsion leans on come near a line.
    """
    x = torch.as_tensor(np.asarray(frames, dtype=np.float64))
    _, angles, torsions = coordinates_of(tree, x)
    refuse_straight(tree, angles)
    return torch.nonzero(strays(torsions) > TURNS).flatten().tolist()


def strays(torsions: Tensor) -> Tensor:
    """Return how far torsions (B, K) stray from their mean direction at most, (K,) radians."""
    return wrap(torsions - circular_mean(torsions)).abs().max(0).values


def refuse_straight(tree: InternalTree, angles: Tensor) -> None:
    """Raise NotInternal if three atoms that a torsion leans on come near a line.

    The angles, (B, N - 2), are as `internal_coordinates` returns them.
    """
    straight = torch.nonzero(angles.max(0).values > _STRAIGHT).flatten().tolist()
    supporting = {frozenset(row[1:4]) for row in tree.rows}
    for k in straight:
        atoms = tree.root if k == 0 else (*tree.rows[k - 1][:3],)
        if frozenset(atoms) in supporting:
            raise NotInternal(
                f"atoms {', '.join(map(str, atoms))} come near a line, so torsions about them are "
                "undefined: internal coordinates do not suit this molecule"
            )


def constant_lengths(tree: InternalTree, frames: NDArray[np.floating[Any]]) -> list[int]:
    """Return which bond lengths (0: a-b, 1: c-b, 2 + k: row k) are constrained in some frames."""
    lengths, _, _ = coordinates_of(tree, torch.as_tensor(np.asarray(frames, dtype=np.float64)))
    if len(lengths) < 2:
        return []
    return torch.nonzero(lengths.std(0) < CONSTANT_NM).flatten().tolist()


def coordinates_of(tree: InternalTree, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return lengths, angles and torsions of frames; see `internal_coordinates`."""
    rows = torch.tensor([list(row) for row in tree.rows], dtype=torch.int64).reshape(-1, 5)
    return internal_coordinates(x, torch.tensor(tree.root), rows)


def internal_coordinates(x: Tensor, root: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Measure the internal coordinates of frames (B, N, 3), nm.

    `root`, (3,), and `rows`, (N - 3, 5), are as in `InternalTree`. Returns lengths (B, N - 1), nm:
    a-b, c-b, then every row's atom to its parent; angles (B, N - 2): a-b-c, then every row's
    atom-parent-grandparent; and torsions (B, N - 3), each from -pi to pi:
    atom-parent-grandparent-reference, counted from the leading row's where there is one.
    """
    atom, parent = x[:, rows[:, 0]], x[:, rows[:, 1]]
    grandparent, reference = x[:, rows[:, 2]], x[:, rows[:, 3]]
    middle = x[:, root[1:2]]
    bond = torch.cat([x[:, root[0:1]] - middle, x[:, root[2:3]] - middle, atom - parent], dim=1)
    lengths = torch.linalg.vector_norm(bond, dim=-1)
    back = torch.cat([bond[:, 1:2], grandparent - parent], dim=1)
    out = torch.cat([bond[:, 0:1], bond[:, 2:]], dim=1)
    cross = torch.linalg.cross(out, back, dim=-1)
    angles = torch.atan2(torch.linalg.vector_norm(cross, dim=-1), (out * back).sum(-1))
    first, axis = atom - parent, grandparent - parent
    normal1 = torch.linalg.cross(first, axis, dim=-1)
    normal2 = torch.linalg.cross(axis, reference - grandparent, dim=-1)
    upright = torch.linalg.cross(normal1, F.normalize(axis, dim=-1), dim=-1)
    # In the plane across the axis: zero where atom and reference are eclipsed.
    torsions = torch.atan2(-(upright * normal2).sum(-1), -(normal1 * normal2).sum(-1))
    leader = rows[:, 4]
    led = (leader >= 0).to(torsions.dtype)
    return lengths, angles, wrap(torsions - led * torsions[:, leader.clamp(min=0)])


def with_bridges(angles: Tensor, x: Tensor, rows: Tensor, bridged: Tensor) -> Tensor:
    """Put distances from the grandparent, nm, in the place of the angles of bridged rows.

    The angles, (B, N - 2), and rows are as in `internal_coordinates`, the positions x (B, N, 3).
    """
    closing = rows[bridged]
    far = torch.linalg.vector_norm(x[:, closing[:, 0]] - x[:, closing[:, 2]], dim=-1)
    return angles.index_copy(1, bridged + 1, far)


def bridged_positions_of(
    lengths: Tensor,
    angles: Tensor,
    torsions: Tensor,
    rows: Tensor,
    place: Tensor,
    ends: list[int],
    bridged: Tensor,
) -> Tensor:
    """Build positions as `positions_of` does, of a tree with rings.

    `angles` are from `with_bridges`; `bridged`, (N - 3,), is one for the rows that close a ring,
    zero for the others. Where two distances cannot be met the atom lies on the line between.
    """
    leader = rows[:, 4]
    led = (leader >= 0).to(torsions.dtype)
    turn = torsions + led * torsions[:, leader.clamp(min=0)]
    cosine, sine = torch.cos(turn), torch.sin(turn)
    zero = torch.zeros_like(lengths[:, 0])
    a = torch.stack([lengths[:, 0], zero, zero], dim=-1)
    far = lengths[:, 1]
    c = torch.stack([far * torch.cos(angles[:, 0]), far * torch.sin(angles[:, 0]), zero], dim=-1)
    x = torch.stack([a, torch.zeros_like(a), c], dim=1)
    length, bend = lengths[:, 2:], angles[:, 1:]
    along, across = length * torch.cos(bend), length * torch.sin(bend)
    begin = 0
    for end in ends:
        parent, grandparent = x[:, rows[begin:end, 1]], x[:, rows[begin:end, 2]]
        reference = x[:, rows[begin:end, 3]]
        axis = grandparent - parent
        gap = torch.linalg.vector_norm(axis, dim=-1).clamp(min=1e-3)
        own, other = length[:, begin:end], bend[:, begin:end]
        # The law of cosines; the height is kept real.
        foot = 0.5 * (own * own - other * other + gap * gap) / gap
        foot = torch.minimum(torch.maximum(foot, -own), own)
        height = torch.sqrt((own * own - foot * foot).clamp(min=1e-8))
        closes = bridged[begin:end] > 0
        part1 = torch.where(closes, foot, along[:, begin:end]).unsqueeze(-1)
        reach = torch.where(closes, height, across[:, begin:end])
        part2 = (reach * cosine[:, begin:end]).unsqueeze(-1)
        part3 = (reach * sine[:, begin:end]).unsqueeze(-1)
        e1 = axis / gap.unsqueeze(-1)
        e3 = F.normalize(torch.linalg.cross(e1, reference - grandparent, dim=-1), dim=-1)
        e2 = torch.linalg.cross(e3, e1, dim=-1)
        x = torch.cat([x, parent + part1 * e1 + part2 * e2 + part3 * e3], dim=1)
        begin = end
    return x[:, place]


def positions_of(
    lengths: Tensor, angles: Tensor, torsions: Tensor, rows: Tensor, place: Tensor, ends: list[int]
) -> Tensor:
    """Build positions (B, N, 3), nm: the inverse of `internal_coordinates`.

    b is at the origin, a on the first axis, c in the plane of the first two. `rows`, (N - 3, 5),
    are the tree's with atoms replaced by their place in the order of placement; `place`, (N,), is
    the place of each atom in that order, and `ends` is `InternalTree.stage_ends`.
    """
    leader = rows[:, 4]
    led = (leader >= 0).to(torsions.dtype)
    turn = torsions + led * torsions[:, leader.clamp(min=0)]
    zero = torch.zeros_like(lengths[:, 0])
    a = torch.stack([lengths[:, 0], zero, zero], dim=-1)
    far = lengths[:, 1]
    c = torch.stack([far * torch.cos(angles[:, 0]), far * torch.sin(angles[:, 0]), zero], dim=-1)
    x = torch.stack([a, torch.zeros_like(a), c], dim=1)
    reach = lengths[:, 2:] * torch.sin(angles[:, 1:])
    step = torch.stack(
        [
            lengths[:, 2:] * torch.cos(angles[:, 1:]),
            reach * torch.cos(turn),
            reach * torch.sin(turn),
        ],
        dim=-1,
    )
    begin = 0
    for end in ends:
        parent, grandparent = x[:, rows[begin:end, 1]], x[:, rows[begin:end, 2]]
        reference = x[:, rows[begin:end, 3]]
        e1 = F.normalize(grandparent - parent, dim=-1)
        e3 = F.normalize(torch.linalg.cross(e1, reference - grandparent, dim=-1), dim=-1)
        e2 = torch.linalg.cross(e3, e1, dim=-1)
        part = step[:, begin:end]
        new = parent + part[:, :, 0:1] * e1 + part[:, :, 1:2] * e2 + part[:, :, 2:3] * e3
        x = torch.cat([x, new], dim=1)
        begin = end
    return x[:, place]


def log_volume(x: Tensor, root: Tensor, rows: Tensor, bridged: Tensor) -> Tensor:
    """Return the logarithm of the volume of positions that one of internal coordinates has, (B,).

    Less position and orientation, the volume element of positions x, (B, N, 3) nm, is that of
    lengths, angles and torsions times r^2 sin(angle) for each angle and r^2 for the first bond; of
    a bridged row, with two distances r and d from atoms that are g apart, times r d / g. `root` and
    `rows` are as in `internal_coordinates`, `bridged` the numbers of the rows that close a ring.
    """
    lengths, angles, _ = internal_coordinates(x, root, rows)
    each = 2.0 * torch.log(lengths[:, 1:]) + torch.log(torch.sin(angles))
    closing = rows[bridged]
    far = torch.linalg.vector_norm(x[:, closing[:, 0]] - x[:, closing[:, 2]], dim=-1)
    gap = torch.linalg.vector_norm(x[:, closing[:, 1]] - x[:, closing[:, 2]], dim=-1)
    ring = torch.log(lengths[:, bridged + 2] * far / gap)
    return 2.0 * torch.log(lengths[:, 0]) + each.index_copy(1, bridged + 1, ring).sum(1)


def wrap(angle: Tensor) -> Tensor:
    """Return angles from -pi to pi."""
    return angle - 2.0 * math.pi * torch.round(angle / (2.0 * math.pi))


def circular_mean(angles: Tensor) -> Tensor:
    """Return the mean direction of angles (B, K) over the batch."""
    return torch.atan2(torch.sin(angles).mean(0), torch.cos(angles).mean(0))
