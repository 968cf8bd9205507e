"""What a force field says of a molecule: charges, and the terms that hold it together."""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[float, ...]
"""Atoms, then parameters."""


@dataclass(frozen=True)
class ForceFieldTerms:
    """The parameters of a molecule in a force field, in nm, kJ/mol, radians and e.

    Attributes
    ----------
    charges, sigmas, epsilons : tuple of float
        One an atom.
    bonds : tuple of (i, j, length, k)
        k/2 (r - length)^2; constrained bonds too.
    angles : tuple of (i, j, k, angle, k)
        Likewise.
    torsions : tuple of (i, j, k, l, n, phase, k)
        k (1 + cos(n phi - phase)), improper ones among them.
    constrained : tuple of (i, j)
        Bonds of constant length.
    """

    charges: Row
    sigmas: Row
    epsilons: Row
    bonds: tuple[Row, ...]
    angles: tuple[Row, ...]
    torsions: tuple[Row, ...]
    constrained: tuple[tuple[int, int], ...] = ()
