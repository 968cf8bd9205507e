"""Normalisation of internal coordinates by their kind, pooled over the members of a family.

A molecule without data has no means and widths of its own. It has coordinates, though, of the same
kinds as those of its relatives: the angle between a CH3, a CH2 and another CH2 is the same angle in
butane and in pentane. So statistics are kept by the kinds of the atoms that make a coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ...molecule.graph import atom_kinds
from ...molecule.molecule import Molecule
from ...molecule.topology import ELEMENT_SYMBOLS
from .base import ANGLE_FLOOR, LENGTH_FLOOR_NM, TURN_FLOOR
from .family_tree import family_tree, tree_ancestors
from .symmetry import relabelled, symmetry_generators, symmetry_group
from .tree import (
    CONSTANT_NM,
    TURNS,
    InternalTree,
    NotInternal,
    coordinates_of,
    strays,
    turning_torsions,
    wrap,
)

_PLANAR: Final = 0.5
"""A stiff torsion within this of 0 or 180 degrees (radians) lies in a plane and has no sign."""

_CENTRES: Final = {
    "+": 2.0 * math.pi / 3.0,
    "-": -2.0 * math.pi / 3.0,
    "cis": 0.0,
    "trans": math.pi,
}
"""Where stiff torsions are counted from, so that their means are not split at 180 degrees."""

_LAG_TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class CoordinateKeys:
    """What the coordinates of a molecule are called, most specific names first.

    Attributes
    ----------
    lengths, angles, torsions : list of list of str
        For every length, angle and torsion as `internal_coordinates` orders them.
    bonds : list of list of str
        For every torsion the bond it turns about; empty where it counts from another atom on the
        same bond and so cannot turn.
    sides : list of str
        For every torsion where it stays if it does not turn: "+", "-", "cis" or "trans".
    """

    lengths: list[list[str]]
    angles: list[list[str]]
    torsions: list[list[str]]
    bonds: list[list[str]]
    sides: list[str]


@dataclass(frozen=True)
class MemberStatistics:
    """The coordinates of one molecule and their normalisation, from those of its family.

    Rows whose torsion turns and lengths that never change are as `FamilyDiffusion` takes them.
    `length_mean` is (N - 1,), nm; `stiff_mean` and `stiff_width`, (S,) in nm and radians, are of
    lengths that vary, angles and torsions that do not turn; `scale`, (L, M), says how far torsions
    turn at the lags of the statistics.
    """

    tree: InternalTree
    turning: list[int]
    constant: list[int]
    length_mean: Tensor
    stiff_mean: Tensor
    stiff_width: Tensor
    scale: Tensor


def coordinate_keys(molecule: Molecule, tree: InternalTree) -> CoordinateKeys:
    """Name the coordinates of a molecule by the kinds of the atoms that make them.

    An atom's kind is its element, the hydrogens it carries and its heavy neighbours: ``CH2.2``. The
    last name of each coordinate has elements and numbers of neighbours only: ``C4``. The molecule's
    reference frame says on which side of the leading atom a stiff torsion is.
    """
    kinds = atom_kinds(molecule.atomic_numbers, molecule.bonds)

    def exact(atom: int) -> str:
        number, hydrogens, heavy = kinds[atom]
        return f"{ELEMENT_SYMBOLS[number]}{f'H{hydrogens}' if hydrogens else ''}.{heavy}"

    def rough(atom: int) -> str:
        number, hydrogens, heavy = kinds[atom]
        return f"{ELEMENT_SYMBOLS[number]}{hydrogens + heavy}"

    def pair(what: str, one: int, two: int) -> list[str]:
        return [" ".join([what, *sorted((of(one), of(two)))]) for of in (exact, rough)]

    ancestors = tree_ancestors(tree)
    _, b, c = tree.root
    placed = [b, c, *(row[0] for row in tree.rows)]
    lengths = [pair("length", atom, ancestors[atom][0]) for atom in placed]
    angles = []
    for atom in placed[1:]:
        parent, grandparent, _ = ancestors[atom]
        angles.append(
            [
                " ".join(["angle", of(parent), *sorted((of(atom), of(grandparent)))])
                for of in (exact, rough)
            ]
        )
    reference = coordinates_of(tree, torch.tensor(molecule.positions)[None])[2][0].tolist()
    torsions, bonds, sides = [], [], []
    for row, value in zip(tree.rows, reference, strict=True):
        atom, parent, grandparent, leader = *row[:3], row[4]
        side = "+" if value > 0 else "-"
        if abs(value) < _PLANAR:
            side = "cis"
        elif abs(value) > math.pi - _PLANAR:
            side = "trans"
        if leader < 0 and parent != b:
            what, last = "torsion", row[3]
            bonds.append(pair("turn", parent, grandparent))
        else:
            # Counted from another atom on the same bond: at the root that is c.
            what, last = "beside", tree.rows[leader][0] if leader >= 0 else c
            bonds.append([])
        atoms = (atom, last, parent, grandparent)
        torsions.append(
            [
                " ".join([what, side, *map(exact, atoms)]),
                " ".join([what, side, *map(exact, atoms[:3])]),
                " ".join([what, side, *map(rough, atoms)]),
            ]
        )
        sides.append(side)
    return CoordinateKeys(lengths, angles, torsions, bonds, sides)


class CoordinateStatistics:
    """Means and widths of internal coordinates by kind, from the members of a family.

    Each coordinate of each member counts once, however many frames its member has. Frames are
    relabelled by the molecule's own symmetries, one after another, so that equivalent coordinates
    have equal statistics.

    Parameters
    ----------
    lags_ps : sequence of float
        Rising lags, ps, at which it is kept how far torsions turn.
    """

    def __init__(self, lags_ps: Sequence[float]) -> None:
        lags = [float(lag) for lag in lags_ps]
        if len(lags) < 2 or lags[0] <= 0.0 or sorted(set(lags)) != lags:
            raise ValueError(f"lags_ps must be two or more rising positive lags, got {lags}")
        self.lags_ps = lags
        # By key: how many coordinates, the sum of their means and of their mean squares.
        self._moments: dict[str, list[float]] = {}
        # By key: how far such torsions stray at most; how many, the sum of squares at each lag.
        self._strays: dict[str, float] = {}
        self._turns: dict[str, list[float]] = {}

    def add(
        self,
        molecule: Molecule,
        frames: np.ndarray | Tensor,
        pairs: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Take up a member.

        Parameters
        ----------
        frames : ndarray or Tensor
            (T, N, 3), nm, in the handedness of the molecule's reference frame: frames that
            represent what a model will see.
        pairs : sequence of (Tensor, Tensor)
            For every lag of `lags_ps` frames and later frames, (B, N, 3), nm.

        Raises
        ------
        NotInternal
            If the molecule has no internal coordinates, or its frames show one turned over at an
            atom, as amines do.
        ValueError
            If frames or pairs do not fit.
        """
        x = _frames(frames, molecule)
        if len(x) < 2:
            raise ValueError(f"statistics of {molecule.name} need two frames or more")
        if len(pairs) != len(self.lags_ps):
            raise ValueError(f"{len(self.lags_ps)} lags need as many sets of pairs, {len(pairs)}")
        tree = family_tree(molecule)
        keys = coordinate_keys(molecule, tree)
        turning = turning_torsions(tree, x.numpy())
        for k in turning:
            if not keys.bonds[k]:
                atom, parent = tree.rows[k][:2]
                raise NotInternal(
                    f"atom {atom} of {molecule.name} swings to the other side of atom {parent}: "
                    "coordinates by kind need every atom to keep its side"
                )
        group = symmetry_group(symmetry_generators(molecule, tree, turning), molecule.n_atoms)
        lengths, angles, torsions = coordinates_of(tree, _spread(x, group))
        for levels, values in zip(keys.lengths, lengths.unbind(1), strict=True):
            self._count(levels, values)
        for levels, values in zip(keys.angles, angles.unbind(1), strict=True):
            self._count(levels, values)
        squares = []
        for frame, later in pairs:
            before, after = (_spread(_frames(y, molecule), group) for y in (frame, later))
            turn = coordinates_of(tree, after)[2] - coordinates_of(tree, before)[2]
            # The mean square of (cos d - 1, sin d) over both.
            squares.append((1.0 - torch.cos(turn)).mean(0))
        farthest = strays(torsions).tolist()
        for k, values in enumerate(torsions.unbind(1)):
            if k not in turning:
                centre = _CENTRES[keys.sides[k]]
                self._count(keys.torsions[k], centre + wrap(values - centre))
            for key in keys.bonds[k]:
                self._strays[key] = max(self._strays.get(key, 0.0), farthest[k])
                total = self._turns.setdefault(key, [0.0] * (1 + len(squares)))
                for place, amount in enumerate([1.0, *(float(row[k]) for row in squares)]):
                    total[place] += amount

    def of(self, molecule: Molecule) -> MemberStatistics:
        """Return the coordinates of a molecule, added before or not, and their statistics by kind.

        Raises
        ------
        NotInternal
            If the molecule has no internal coordinates.
        ValueError
            If nothing of the kind of one of its coordinates was added; the message names it.
        """
        tree = family_tree(molecule)
        keys = coordinate_keys(molecule, tree)
        missing: list[str] = []

        def moments(levels: list[str], floor: float) -> tuple[float, float, float]:
            for key in levels:
                if key in self._moments:
                    count, first, second = self._moments[key]
                    mean = first / count
                    width = math.sqrt(max(second / count - mean * mean, 0.0))
                    return mean, max(width, floor), width
            missing.append(levels[0])
            return 0.0, 1.0, 1.0

        turning, scale = [], []
        for k, levels in enumerate(keys.bonds):
            key = next((key for key in levels if key in self._turns), None)
            if levels and key is None:
                missing.append(levels[0])
            elif key is not None and self._strays[key] > TURNS:
                count, *squares = self._turns[key]
                turning.append(k)
                scale.append([max(math.sqrt(s / count), TURN_FLOOR) for s in squares])
        lengths = [moments(levels, LENGTH_FLOOR_NM) for levels in keys.lengths]
        angles = [moments(levels, ANGLE_FLOOR) for levels in keys.angles]
        stiff = [
            moments(levels, ANGLE_FLOOR)
            for k, levels in enumerate(keys.torsions)
            if k not in set(turning)
        ]
        if missing:
            names = sorted(set(missing))
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"the statistics do not cover {molecule.name}: nothing is known of "
                f"{', '.join(map(repr, names[:4]))}{more}; add a molecule that has these"
            )
        constant = [k for k, (_, _, width) in enumerate(lengths) if width < CONSTANT_NM]
        rest = [row for k, row in enumerate(lengths) if k not in set(constant)] + angles + stiff
        return MemberStatistics(
            tree,
            turning,
            constant,
            torch.tensor([mean for mean, _, _ in lengths]),
            torch.tensor([mean for mean, _, _ in rest]),
            torch.tensor([width for _, width, _ in rest]),
            torch.tensor(scale).reshape(len(turning), len(self.lags_ps)).T.contiguous(),
        )

    def scale_at(self, member: MemberStatistics, lags_ps: Sequence[float]) -> Tensor:
        """Return how far a member's torsions turn at other lags, (L, M), linear in log(lag).

        ValueError if a lag lies outside those of the statistics.
        """
        low, high = self.lags_ps[0], self.lags_ps[-1]
        outside = [
            lag
            for lag in lags_ps
            if not low * (1 - _LAG_TOLERANCE) <= lag <= high * (1 + _LAG_TOLERANCE)
        ]
        if outside:
            raise ValueError(
                f"the statistics know lags from {low:g} to {high:g} ps, wanted is {outside[0]:g} ps"
            )
        own, wanted = np.log(self.lags_ps), np.log(np.asarray(lags_ps, dtype=float))
        table = [np.interp(wanted, own, column.numpy()) for column in member.scale.unbind(1)]
        return torch.tensor(np.array(table), dtype=torch.float32).reshape(-1, len(lags_ps)).T

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON-able values."""
        return {
            "lags_ps": list(self.lags_ps),
            "moments": {key: list(value) for key, value in sorted(self._moments.items())},
            "strays": dict(sorted(self._strays.items())),
            "turns": {key: list(value) for key, value in sorted(self._turns.items())},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CoordinateStatistics:
        """Rebuild statistics from what `to_dict` returned.

        ValueError for a missing or unknown key, or tables that do not fit each other.
        """
        wanted = {"lags_ps", "moments", "strays", "turns"}
        if not isinstance(content, Mapping) or set(content) != wanted:
            raise ValueError(f"statistics have the keys {', '.join(sorted(wanted))}")
        new = cls(content["lags_ps"])
        new._moments = {str(k): [float(v) for v in row] for k, row in content["moments"].items()}
        new._strays = {str(k): float(v) for k, v in content["strays"].items()}
        new._turns = {str(k): [float(v) for v in row] for k, row in content["turns"].items()}
        if (
            any(len(row) != 3 for row in new._moments.values())
            or any(len(row) != 1 + len(new.lags_ps) for row in new._turns.values())
            or new._turns.keys() != new._strays.keys()
        ):
            raise ValueError("the tables of the statistics do not fit each other")
        return new

    def _count(self, levels: list[str], values: Tensor) -> None:
        for key in levels:
            total = self._moments.setdefault(key, [0.0, 0.0, 0.0])
            total[0] += 1.0
            total[1] += float(values.mean())
            total[2] += float((values * values).mean())


def _frames(frames: np.ndarray | Tensor, molecule: Molecule) -> Tensor:
    x = torch.as_tensor(frames).detach().to("cpu", torch.float64)
    if x.dim() != 3 or tuple(x.shape[1:]) != (molecule.n_atoms, 3) or len(x) == 0:
        raise ValueError(
            f"frames of {molecule.name} must have shape (T, {molecule.n_atoms}, 3), got "
            f"{tuple(x.shape)}"
        )
    return x


def _spread(x: Tensor, group: list[tuple[int, tuple[int, ...]]]) -> Tensor:
    """Relabel frames by the elements of a group, one after another."""
    which = torch.arange(len(x)) % len(group)
    orders = torch.tensor([order for _, order in group])
    signs = torch.tensor([sign for sign, _ in group])
    return relabelled(x, orders[which], signs[which])
