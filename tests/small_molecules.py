"""Molecules of a few atoms for the tests, and shaken frames of them."""

import networkx as nx
import numpy as np

from openmm_sd import Molecule

TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3.0)


def make(name, numbers, bonds, positions):
    n = len(numbers)
    return Molecule(name, tuple(numbers), tuple(bonds), ("X",) * n, ("MOL",) * n, ("1",) * n,
                    np.asarray(positions, dtype=float))  # fmt: skip


def ethane():
    arms = 0.109 * TETRAHEDRON[1:]
    carbon = 0.153 * TETRAHEDRON[0]
    positions = np.concatenate([[[0, 0, 0]], [carbon], arms, carbon - arms])
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)]
    return make("ethane", [6, 6, 1, 1, 1, 1, 1, 1], bonds, positions)


def methanol():
    hydrogens = 0.109 * TETRAHEDRON[1:]
    oxygen = 0.142 * TETRAHEDRON[0]
    last = oxygen - 0.096 * TETRAHEDRON[1]
    positions = np.concatenate([[[0, 0, 0]], [oxygen], hydrogens, [last]])
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)]
    return make("methanol", [6, 8, 1, 1, 1, 1], bonds, positions)


def water():
    return make(
        "water", [1, 8, 1], [(0, 1), (1, 2)], [[0.096, 0, 0], [0, 0, 0], [-0.024, 0.093, 0]]
    )


def butyne():
    """CH3-C#C-CH3: all its carbons lie on a line."""
    axis, arms = TETRAHEDRON[0], 0.109 * TETRAHEDRON[1:]
    ends = np.array([0.0, 0.146, 0.266, 0.412])
    carbons = ends[:, None] * axis
    positions = np.concatenate([carbons, arms, carbons[3] - arms])
    bonds = [(0, 1), (1, 2), (2, 3), *((0, k) for k in (4, 5, 6)), *((3, k) for k in (7, 8, 9))]
    return make("2-butyne", [6] * 4 + [1] * 6, bonds, positions)


def carbon_dioxide():
    return make(
        "carbon dioxide", [8, 6, 8], [(0, 1), (1, 2)], [[-0.116, 0, 0], [0, 0, 0], [0.116, 0, 0]]
    )


def grown(elements, bonds):
    """A molecule without rings on a diamond lattice, every atom tetrahedral."""
    graph = nx.Graph(bonds)
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.15 / np.sqrt(3)
    positions = np.zeros((len(elements), 3))
    corner, sign = {0: None}, {0: 1}  # the corner an atom was reached through
    for parent, children in nx.bfs_successors(graph, 0):
        free = [k for k in range(4) if k != corner[parent]]
        for child, k in zip(children, free, strict=False):
            corner[child], sign[child] = k, -sign[parent]
            positions[child] = positions[parent] + sign[parent] * corners[k]
    n = len(elements)
    labels = tuple(f"A{i}" for i in range(n))
    return Molecule(
        "grown", tuple(elements), tuple(bonds), labels, ("MOL",) * n, ("1",) * n, positions
    )


def shaken(molecule, count=200, width=0.003, seed=0):
    generator = np.random.default_rng(seed)
    return molecule.positions + width * generator.normal(size=(count, molecule.n_atoms, 3))


def turned_about(frames, molecule, bond, angles):
    """Frames (T, N, 3) in which all behind bond[1] is turned about the bond, by angles (T,)."""
    graph = molecule.graph()
    graph.remove_edge(*bond)
    behind = sorted(nx.node_connected_component(graph, bond[1]))
    axis = frames[:, bond[1]] - frames[:, bond[0]]
    axis = (axis / np.linalg.norm(axis, axis=1, keepdims=True))[:, None]
    arm = frames[:, behind] - frames[:, [bond[0]]]
    c, s = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    along = (arm * axis).sum(-1, keepdims=True) * axis
    result = frames.copy()
    result[:, behind] = (
        frames[:, [bond[0]]] + along + c * (arm - along) + s * np.cross(axis, arm - along)
    )
    return result


def x_h_bonds(molecule):
    """Heavy atom and hydrogen of each bond to a hydrogen."""
    z = molecule.atomic_numbers
    return [(i, j) if z[j] == 1 else (j, i) for i, j in molecule.bonds if 1 in (z[i], z[j])]


def constrained(frames, molecule, length=0.11):
    result = frames.copy()
    for heavy, hydrogen in x_h_bonds(molecule):
        bond = frames[:, hydrogen] - frames[:, heavy]
        bond *= length / np.linalg.norm(bond, axis=1, keepdims=True)
        result[:, hydrogen] = frames[:, heavy] + bond
    return result


def random_rotation(generator):
    q, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    q[:, 0] *= np.linalg.det(q)
    return q


def rotated(molecule, count=400, width=0.003, seed=0):
    """Shaken frames, oriented at random, in which every bond that can be turned about is."""
    generator = np.random.default_rng(seed)
    frames = shaken(molecule, count, width, seed)
    graph = molecule.graph()
    for bond in molecule.bonds:
        if min(len(graph[k]) for k in bond) > 1:
            frames = turned_about(frames, molecule, bond, generator.uniform(-np.pi, np.pi, count))
    turns = np.stack([random_rotation(generator) for _ in range(count)])
    frames = np.einsum("tni,tij->tnj", frames, turns)
    return frames - frames.mean(1, keepdims=True)


def alkane(n):
    """The straight chain of n carbons, first the carbons in their order."""
    bonds = [(k, k + 1) for k in range(n - 1)]
    for k in range(n):
        first = n + len(bonds) - (n - 1)
        bonds += [(k, first + i) for i in range(3 if k in (0, n - 1) else 2)]
    return grown([6] * n + [1] * (2 * n + 2), bonds)


def chain(n):
    """Carbons in a row without hydrogens."""
    return grown([6] * n, [(k, k + 1) for k in range(n - 1)])


def butane():
    bonds = [(0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (0, 6), (1, 7), (1, 8), (2, 9), (2, 10)]
    return grown([6] * 4 + [1] * 10, [*bonds, (3, 11), (3, 12), (3, 13)])


def isobutane():
    methyls = [(1, 5), (1, 6), (1, 7), (2, 8), (2, 9), (2, 10), (3, 11), (3, 12), (3, 13)]
    return grown([6] * 4 + [1] * 10, [(0, 1), (0, 2), (0, 3), (0, 4), *methyls])


def cyclopropane():
    turn = np.deg2rad([90.0, 210.0, 330.0])
    outwards = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    up = np.array([0.0, 0.0, 0.09])
    carbons = 0.087 * outwards
    positions = np.concatenate([carbons, carbons + 0.06 * outwards + up,
                                carbons + 0.06 * outwards - up])  # fmt: skip
    bonds = [(0, 1), (1, 2), (0, 2), *((k % 3, k) for k in range(3, 9))]
    return make("cyclopropane", [6] * 3 + [1] * 6, bonds, positions)


def formaldehyde():
    positions = [[0, 0, 0], [0.121, 0, 0], [-0.055, 0.094, 0], [-0.055, -0.094, 0]]
    return make("formaldehyde", [6, 8, 1, 1], [(0, 1), (0, 2), (0, 3)], positions)


def acetonitrile():
    """CH3-C#N: its three heavy atoms lie on a line that ends with the nitrogen."""
    axis, arms = TETRAHEDRON[0], 0.109 * TETRAHEDRON[1:]
    positions = np.concatenate([np.array([0.0, 0.146, 0.262])[:, None] * axis, arms])
    bonds = [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5)]
    return make("acetonitrile", [6, 6, 7, 1, 1, 1], bonds, positions)


def bent_line():
    """Five atoms in a row, straight at the middle one."""
    positions = [[-0.05, 0.14, 0], [0, 0, 0], [0.15, 0, 0], [0.3, 0, 0], [0.35, 0.14, 0]]
    return make("line", [6] * 5, [(k, k + 1) for k in range(4)], positions)
