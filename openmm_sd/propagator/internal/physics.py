"""What the force field says of internal coordinates: where each of them rests and how far it moves.

Bonds, angles and stiff torsions are taken as a set of coupled springs. Their rest and their thermal
widths are known for any molecule that the force field knows, and need no data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from ...molecule.molecule import Molecule
from ...molecule.terms import ForceFieldTerms
from .base import ANGLE_FLOOR, LENGTH_FLOOR_NM
from .torsion_potential import ORDERS, turning_potentials
from .tree import (
    InternalTree,
    bridged_positions_of,
    coordinates_of,
    with_bridges,
    wrap,
)

_GAS_CONSTANT: Final = 0.0083144626
"""kJ/mol/K."""

_RIGID: Final = 40.0
"""A torsion behind a higher barrier (kJ/mol) does not turn: that of an amide is 80 to 120."""

_PUCKERED: Final = 0.25
"""A ring whose last atom is further than this from its plane (radians) can pucker both ways."""

_LEAST_SHARE: Final = 1e-3
"""Correlated coordinates keep this share of freedom at least."""

_STEPS: Final = 60


@dataclass(frozen=True)
class Springs:
    """Internal coordinates of a molecule as its force field sees them.

    `turning` are the rows of the tree whose torsion turns, `potentials` what `turning_potentials`
    says of them; `constant` are the lengths that never change. `length_mean` is (N - 1,), nm;
    `stiff_mean` and `stiff_width`, (S,) in nm and radians, are of lengths that vary, angles (of
    bridged rows distances) and torsions that do not turn. `coupling`, (S, S), is the symmetric root
    of their correlations: it makes of independent numbers of width one such that move together as
    the springs do, and leaves each as near to itself as can be.
    """

    tree: InternalTree
    turning: list[int]
    constant: list[int]
    potentials: list[list[float]]
    length_mean: Tensor
    stiff_mean: Tensor
    stiff_width: Tensor
    coupling: Tensor


def springs_of(
    molecule: Molecule, tree: InternalTree, terms: ForceFieldTerms, temperature_K: float
) -> Springs:
    """Return where the internal coordinates of a molecule rest and how wide they are.

    The molecule's reference frame says on which side of a double bond, and in which hand, atoms
    are. Of a ring that puckers both ways, means and widths are over both.
    """
    turning, potentials = _turning(molecule, tree, terms)
    model = _Harmonic(molecule, tree, terms, turning)
    start = model.measure(torch.tensor(molecule.positions, dtype=torch.float64)[None])
    n = molecule.n_atoms - 1
    held = {frozenset(pair) for pair in terms.constrained}
    constant = [k for k, pair in enumerate(model.bonds) if frozenset(pair) in held]
    stiff = [k for k in range(3 * n - 3) if k not in set(constant) | model.turning]
    found = [
        model.solve(begin, stiff, _GAS_CONSTANT * temperature_K) for begin in model.puckers(start)
    ]
    first = found[0][0]
    shifts = torch.stack([model.difference(rest, first) for rest, _ in found])
    mean = first + shifts.mean(0)
    apart = (shifts - shifts.mean(0))[:, stiff]
    covariance = torch.stack([own for _, own in found]).mean(0) + apart.T @ apart / len(found)
    floor = torch.full((len(stiff),), ANGLE_FLOOR, dtype=torch.float64)
    floor[: n - len(constant)] = LENGTH_FLOOR_NM
    width = torch.maximum(covariance.diagonal().sqrt(), floor)
    values, vectors = torch.linalg.eigh(covariance / width[:, None] / width)
    coupling = (vectors * values.clamp(min=_LEAST_SHARE).sqrt()) @ vectors.T
    return Springs(
        tree,
        turning,
        constant,
        potentials,
        mean[:n].float(),
        mean[stiff].float(),
        width.float(),
        coupling.float(),
    )


def _turning(
    molecule: Molecule, tree: InternalTree, terms: ForceFieldTerms
) -> tuple[list[int], list[list[float]]]:
    graph = molecule.graph()
    rings = {frozenset(e) for cycle in nx.minimum_cycle_basis(graph) for e in _edges(cycle, graph)}
    candidates = [
        k
        for k, (_, parent, grand, reference, leader) in enumerate(tree.rows)
        if leader < 0
        and k not in tree.bridged
        and parent != tree.root[1]
        and not graph.has_edge(reference, parent)
        and frozenset((parent, grand)) not in rings
    ]
    potentials = turning_potentials(molecule, tree, candidates, terms.torsions)
    phi = np.linspace(-np.pi, np.pi, 73)[:-1]
    waves = np.arange(1, ORDERS + 1)[:, None] * phi
    basis = np.concatenate([np.cos(waves), np.sin(waves)])
    heights = [float(np.ptp(np.asarray(row) @ basis)) for row in potentials]
    chosen = [k for k, height in enumerate(heights) if height < _RIGID]
    return [candidates[k] for k in chosen], [potentials[k] for k in chosen]


def _edges(cycle: list[int], graph: nx.Graph) -> list[tuple[int, int]]:
    return [(i, j) for i in cycle for j in cycle if i < j and graph.has_edge(i, j)]


class _Harmonic:
    """Bonded energy as a function of the internal coordinates, in one vector: lengths, angles,
    torsions."""

    def __init__(
        self,
        molecule: Molecule,
        tree: InternalTree,
        terms: ForceFieldTerms,
        turning: list[int],
    ) -> None:
        self.tree, n = tree, molecule.n_atoms
        self.n = n
        order = tree.order()
        self.place = torch.tensor([order.index(atom) for atom in range(n)])
        rows = [[*(order.index(atom) for atom in row[:4]), row[4]] for row in tree.rows]
        self.placing = torch.tensor(rows)
        self.rows = torch.tensor([list(row) for row in tree.rows])
        self.bridged = torch.tensor(tree.bridged, dtype=torch.int64)
        self.closes = torch.zeros(n - 3).index_fill(0, self.bridged, 1.0)
        self.ends = tree.stage_ends()
        a, b, c = tree.root
        self.bonds = [(a, b), (c, b), *((row[0], row[1]) for row in tree.rows)]
        first_torsion = 2 * n - 3
        self.turning = {first_torsion + k for k in turning}
        self.bridged_distances = [n + k for k in tree.bridged]
        self.flaps = [first_torsion + k for k in tree.bridged]
        self.free = torch.tensor([k for k in range(3 * n - 6) if k not in self.turning])
        # What a spring moves by, roughly.
        self.unit = torch.full((3 * n - 6,), 0.05, dtype=torch.float64)
        self.unit[: n - 1] = 0.003
        self.unit[self.bridged_distances] = 0.003
        for name, rows_of, atoms in (
            ("bond", terms.bonds, 2),
            ("angle", terms.angles, 3),
            ("torsion", terms.torsions, 4),
        ):
            table = torch.tensor([list(row) for row in rows_of], dtype=torch.float64)
            table = table.reshape(-1, atoms + (3 if atoms == 4 else 2))
            setattr(self, f"{name}_atoms", table[:, :atoms].long())
            setattr(self, f"{name}_numbers", table[:, atoms:])

    bond_atoms: Tensor
    bond_numbers: Tensor
    angle_atoms: Tensor
    angle_numbers: Tensor
    torsion_atoms: Tensor
    torsion_numbers: Tensor

    def measure(self, x: Tensor) -> Tensor:
        lengths, angles, torsions = coordinates_of(self.tree, x)
        angles = with_bridges(angles, x, self.rows, self.bridged)
        return torch.cat([lengths, angles, torsions], dim=1)[0]

    def difference(self, q: Tensor, other: Tensor) -> Tensor:
        change = q - other
        first = 2 * self.n - 3
        return torch.cat([change[:first], wrap(change[first:])])

    def puckers(self, q: Tensor) -> list[Tensor]:
        """Return where to begin: as it is, and with all puckered rings turned over."""
        found = [q]
        bent = [k for k in self.flaps if abs(wrap(q[k] - math.pi)) > _PUCKERED]
        if bent:
            other = q.clone()
            other[bent] = -other[bent]
            found.append(other)
        return found

    def energy(self, q: Tensor) -> Tensor:
        """Return the bonded energy, kJ/mol."""
        n = self.n
        lengths, angles, torsions = q[None].split([n - 1, n - 2, n - 3], dim=1)
        x = bridged_positions_of(
            lengths, angles, torsions, self.placing, self.place, self.ends, self.closes
        )[0]
        i, j = self.bond_atoms.T
        rest, k = self.bond_numbers.T
        r = torch.linalg.vector_norm(x[i] - x[j], dim=-1)
        total = (0.5 * k * (r - rest) ** 2).sum()
        i, j, m = self.angle_atoms.T
        rest, k = self.angle_numbers.T
        u, v = x[i] - x[j], x[m] - x[j]
        across = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1)
        theta = torch.atan2(across, (u * v).sum(-1))
        total = total + (0.5 * k * (theta - rest) ** 2).sum()
        i, j, m, last = self.torsion_atoms.T
        turns, phase, k = self.torsion_numbers.T
        b1, b2, b3 = x[j] - x[i], x[m] - x[j], x[last] - x[m]
        n1, n2 = torch.linalg.cross(b1, b2), torch.linalg.cross(b2, b3)
        y = (torch.linalg.vector_norm(b2, dim=-1, keepdim=True) * b1 * n2).sum(-1)
        phi = torch.atan2(y, (n1 * n2).sum(-1))
        return total + (k * (1.0 + torch.cos(turns * phi - phase))).sum()

    def solve(self, begin: Tensor, stiff: list[int], kT: float) -> tuple[Tensor, Tensor]:
        """Return the minimum near a place, turning torsions held, and the thermal covariance.

        The latter is of the coordinates `stiff`, (S, S), when all others are held.
        """

        def moved(s: Tensor) -> Tensor:
            return begin.index_add(0, self.free, s * self.unit[self.free])

        s = torch.zeros(len(self.free), dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS(
            [s], max_iter=_STEPS, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            search.zero_grad()
            value = self.energy(moved(s))
            value.backward()
            return value

        search.step(closure)
        best = s.detach()
        rest = moved(best)
        unit, index = self.unit[stiff], torch.tensor(stiff)
        hessian = torch.func.hessian(lambda z: self.energy(rest.index_add(0, index, z * unit)))(
            torch.zeros(len(stiff), dtype=torch.float64)
        )
        # Directions that no term holds would be infinitely wide.
        values, vectors = torch.linalg.eigh(hessian)
        spread = (vectors / values.clamp(min=1e-2 * kT)) @ vectors.T * kT
        return rest, spread * unit[:, None] * unit
