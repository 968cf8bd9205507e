"""Straight-chain alkanes of any length, and untrained networks for them: for timing only."""

from __future__ import annotations

import numpy as np
import torch

from ..molecule.molecule import Molecule
from ..propagator.alignment import alignment_atoms, choose_frame_atoms
from ..propagator.internal.single import InternalDiffusion
from ..propagator.internal.tree import build_tree

# All-trans geometry, nm: rise of the chain a carbon, half its width, and where hydrogens are.
_RISE, _HALF_WIDTH = 0.1258, 0.0438
_OUT, _ASIDE = 0.0629, 0.0890
# How far atoms are shaken, nm, so that every coordinate has a width.
_SHAKE_NM = 0.003


def alkane(atoms: int) -> Molecule:
    """Return the straight-chain alkane that comes nearest to a number of atoms.

    With n carbons, 3 at least, it has 3 n + 2.
    """
    n = max(3, round((atoms - 2) / 3))
    side = np.where(np.arange(-1, n + 1) % 2, 1.0, -1.0)
    zigzag = np.stack([np.arange(-1, n + 1) * _RISE, side * _HALF_WIDTH, np.zeros(n + 2)], axis=1)
    carbons, side = zigzag[1:-1], side[1:-1]
    positions, bonds = list(carbons), [(k, k + 1) for k in range(n - 1)]
    for k in range(n):
        arms = [np.array([0.0, side[k] * _OUT, sign * _ASIDE]) for sign in (1.0, -1.0)]
        for end, beyond in ((0, zigzag[0]), (n - 1, zigzag[-1])):
            if k == end:
                along = beyond - carbons[k]
                arms.append(0.109 * along / np.linalg.norm(along))
        for arm in arms:
            bonds.append((k, len(positions)))
            positions.append(carbons[k] + arm)
    total = len(positions)
    numbers = [6] * n + [1] * (total - n)
    return Molecule(
        name=f"C{n}H{total - n}",
        atomic_numbers=tuple(numbers),
        bonds=tuple(bonds),
        atom_names=tuple(f"{'C' if z == 6 else 'H'}{k}" for k, z in enumerate(numbers)),
        residue_names=("ALK",) * total,
        residue_ids=("1",) * total,
        positions=np.array(positions),
    )


def untrained(molecule: Molecule) -> InternalDiffusion:
    """Return a network for a molecule, as large as the shipped one's by default, untrained.

    Every torsion that leads others turns, and bonds to hydrogen are constant, as in a chain in
    water.
    """
    frames = shaken(molecule, 50)
    root = choose_frame_atoms(molecule, frames)
    tree = build_tree(molecule, root)
    bonded = [root[0], root[2], *(row[0] for row in tree.rows)]
    network = InternalDiffusion(
        n_atoms=molecule.n_atoms,
        root=root,
        tree=tree.rows,
        turning=[k for k, row in enumerate(tree.rows) if row[4] < 0],
        constant=[k for k, atom in enumerate(bonded) if molecule.atomic_numbers[atom] == 1],
        heavy_atoms=alignment_atoms(molecule),
        lag_min_ps=1.0,
        lag_max_ps=1000.0,
    )
    network.fit_statistics(torch.from_numpy(frames), torch.full_like(network.scale, 0.3))
    return network.eval()


def shaken(molecule: Molecule, count: int) -> np.ndarray:
    """Return frames (count, N, 3) float32, nm, centroids at the origin, all a little different."""
    noise = np.random.default_rng(1).normal(0.0, _SHAKE_NM, (count, molecule.n_atoms, 3))
    frames = molecule.positions + noise
    return (frames - frames.mean(axis=1, keepdims=True)).astype(np.float32)
