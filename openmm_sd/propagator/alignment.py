"""Local coordinate systems: which atoms carry one, which atoms are aligned, and how.

Nothing here knows atom names: the choice comes from the bonds and from how the molecule moves. The
tensor functions are scriptable and are what a propagator calls in a jump.
"""

# No postponed annotations here: TorchScript reads those of the tensor functions.
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..molecule.graph import neighbours_of
from ..molecule.molecule import Molecule
from ..molecule.topology import ELEMENT_SYMBOLS

MIN_SINE: Final = 0.35
"""Three atoms are near a line when the sine of their angle is below this (about 20 degrees)."""

_MIN_EXTENT_NM: Final = 0.02
"""Atoms that stray less than this from one line do not fix a rotation about it."""

_MAX_FRAMES: Final = 1000
"""Frames that are looked at, evenly spaced; more would not change which choice is the best."""


def choose_frame_atoms(
    molecule: Molecule, frames: NDArray[np.floating[Any]]
) -> tuple[int, int, int]:
    """Choose the bonded atoms (a, b, c) that carry a molecule's local coordinate system.

    The origin is at b, in the middle, the first axis points from b to a, and c lies in the plane of
    the first two axes. `frames`, (T, N, 3) nm, whole, show how the molecule moves; their position
    and orientation do not matter. A hundred or more of the training data, spread over it, do well;
    the reference frame alone (T = 1) gives a frame that is sound but not picked for stiffness.

    Of the bonded triples that are never near a line, those with the fewest hydrogens are looked at,
    and of these the one is taken in whose coordinate system the atoms move least (sum of
    variances): a floppy angle swings everything else about, and so does a stiff one at the far end
    of a chain. Ties, as with a single frame, go to the triple whose middle atom is nearest to the
    centroid. The same measure settles the order of a and c. ValueError if the frames do not fit the
    molecule or every bonded triple comes near a line.
    """
    x = np.asarray(frames, dtype=np.float64)
    if x.ndim != 3 or x.shape[1:] != (molecule.n_atoms, 3) or len(x) == 0:
        raise ValueError(
            f"frames must have shape (T, {molecule.n_atoms}, 3) with T at least 1, got {x.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError("frames hold NaN or infinite positions")
    x = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), _MAX_FRAMES)).astype(int))]
    candidates = [t for t in _bonded_triples(molecule) if _sine(x, t).min() >= MIN_SINE]
    if not candidates:
        raise ValueError(
            f"{molecule.name} has no three bonded atoms that stay off a line: its orientation "
            "cannot be told from three atoms"
        )

    def hydrogens(triple: tuple[int, int, int]) -> int:
        return sum(molecule.atomic_numbers[k] == 1 for k in triple)

    fewest = min(map(hydrogens, candidates))
    centroid = x.mean(axis=1)

    def cost(triple: tuple[int, int, int]) -> tuple[float, float, tuple[int, int, int]]:
        # Rounded, so that equivalent triples do not win by the last bit of a sum.
        moves = round(float(_local(x, triple).var(axis=0).sum()), 12)
        remoteness = float(np.linalg.norm(x[:, triple[1]] - centroid, axis=1).mean())
        return moves, round(remoteness, 9), triple

    return min((t for t in candidates if hydrogens(t) == fewest), key=cost)


def alignment_atoms(molecule: Molecule) -> list[int]:
    """Return the atoms on which one frame of a molecule is aligned onto another.

    These are the heavy atoms, or all atoms if there are fewer than three heavy ones or these lie on
    a line, which leaves the rotation about it undetermined. ValueError if all atoms lie on a line.
    """
    heavy = list(molecule.heavy)
    if _off_a_line(molecule.positions[heavy]):
        return heavy
    if _off_a_line(molecule.positions):
        return list(range(molecule.n_atoms))
    symbols = "".join(ELEMENT_SYMBOLS[z] for z in molecule.atomic_numbers)
    raise ValueError(
        f"the atoms of {molecule.name} ({symbols}) lie on a line: a rotation about it is undefined"
    )


def to_local(frame: Tensor, a: int, b: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Express frames (B, N, 3) in the coordinate system of three atoms from `choose_frame_atoms`.

    Returns local (B, N, 3) and origin (B, 1, 3) in the unit of the frames, and axes (B, 3, 3), the
    columns of a proper rotation: ``frame = origin + local @ axes^T``.
    """
    origin = frame[:, b]
    e1 = F.normalize(frame[:, a] - origin, dim=-1)
    in_plane = frame[:, c] - origin
    e2 = F.normalize(in_plane - (in_plane * e1).sum(-1, keepdim=True) * e1, dim=-1)
    axes = torch.stack([e1, e2, torch.linalg.cross(e1, e2, dim=-1)], dim=-1)
    origin = origin.unsqueeze(1)
    return torch.matmul(frame - origin, axes), origin, axes


def align_frames(moving: Tensor, reference: Tensor, atoms: Tensor) -> Tensor:
    """Turn and shift frames (B, N, 3) onto others: Kabsch, proper rotations, unweighted.

    `atoms` are the indices of the atoms whose distances are minimised.
    """
    away, m, centre = _covariance(moving, reference, atoms)
    u, _, v = torch.linalg.svd(m)
    flip = torch.ones_like(u[:, 0])
    flip[:, 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(v))
    rotation = (u * flip.unsqueeze(1)) @ v
    return away @ rotation + centre


def align_far(moving: Tensor, reference: Tensor, atoms: Tensor) -> Tensor:
    """Turn and shift frames as `align_frames` does, however far apart they are.

    The best rotation is the top eigenvector of a 4x4 matrix (Horn 1987), found by squaring the
    matrix again and again and polished by Newton's method: no host synchronisation, no branches.
    """
    away, m, centre = _covariance(moving, reference, atoms)
    turn = torch.stack(
        [m[:, 1, 2] - m[:, 2, 1], m[:, 2, 0] - m[:, 0, 2], m[:, 0, 1] - m[:, 1, 0]], dim=-1
    ).unsqueeze(1)
    trace = torch.diagonal(m, dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    one = torch.eye(4, dtype=m.dtype, device=m.device)
    lower = m + m.transpose(1, 2) - trace * one[:3, :3]
    k = torch.cat(
        [torch.cat([trace, turn], dim=2), torch.cat([turn.transpose(1, 2), lower], dim=2)], dim=1
    )
    # Shifted so that the largest eigenvalue is the largest in size as well.
    size = torch.linalg.vector_norm(k, dim=(1, 2), keepdim=True) + 1e-30
    k = k / size + one
    # Ten squarings: eigenvalues 1 % apart end up separated by a factor of 30000. The largest is 2
    # at most, and 1/2 at least after a division: four squarings stay in range.
    for squarings in (4, 3, 3):
        for _ in range(squarings):
            k = torch.matmul(k, k)
        k = k / torch.linalg.vector_norm(k, dim=(1, 2), keepdim=True)
    # A multiple of q q^T now: its longest column is q up to a factor.
    longest = (k * k).sum(1).argmax(1).view(-1, 1, 1).expand(-1, 4, 1)
    q = F.normalize(k.gather(2, longest).squeeze(2), dim=-1)
    rotation = _polished(_rotation(q[:, 0:1], q[:, 1:]), m, 2)
    return torch.baddbmm(centre, away, rotation.transpose(1, 2))


def align_nearby(moving: Tensor, reference: Tensor, atoms: Tensor, steps: int) -> Tensor:
    """Turn and shift frames as `align_frames` does, if they are nearly aligned already.

    Newton's method on the rotation: unlike a singular value decomposition it needs no host
    synchronisation, and it can be captured in a CUDA graph. Each step squares what is left of the
    error.
    """
    away, m, centre = _covariance(moving, reference, atoms)
    start = torch.eye(3, dtype=m.dtype, device=m.device).expand_as(m)
    rotation = _polished(start, m, steps)
    return torch.baddbmm(centre, away, rotation.transpose(1, 2))


def _covariance(moving: Tensor, reference: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `moving` less its centre, M = sum x target^T, and the centre of the reference."""
    x, target = moving[:, atoms], reference[:, atoms]
    x_centre, target_centre = x.mean(1, keepdim=True), target.mean(1, keepdim=True)
    m = torch.matmul((x - x_centre).transpose(1, 2), target - target_centre)
    return moving - x_centre, m, target_centre


def _polished(rotation: Tensor, m: Tensor, steps: int) -> Tensor:
    """Improve rotations (B, 3, 3) by Newton steps; turned by R, M = sum x target^T becomes R M."""
    for _ in range(steps):
        turned = torch.matmul(rotation, m)
        row0, row1, row2 = turned.unbind(1)
        # The torque is sum x cross target ...
        torque = torch.stack(
            [row1[:, 2] - row2[:, 1], row2[:, 0] - row0[:, 2], row0[:, 1] - row1[:, 0]], dim=-1
        )
        # ... and the Hessian tr(M) - (M + M^T) / 2, inverted by cofactors.
        trace = torch.diagonal(turned, dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        one = torch.eye(3, dtype=m.dtype, device=m.device)
        hessian = trace * one - 0.5 * (turned + turned.transpose(1, 2))
        # Its rows one and two places on: all cofactors are one cross product.
        cofactors = torch.linalg.cross(hessian.roll(-1, 1), hessian.roll(-2, 1), dim=-1)
        determinant = (hessian[:, 0] * cofactors[:, 0]).sum(-1, keepdim=True)
        half = 0.5 * torch.matmul(cofactors, torque.unsqueeze(-1)).squeeze(-1) / determinant
        # The rotation vector as a unit quaternion, exact to second order and always proper.
        w = torch.rsqrt(1.0 + (half * half).sum(-1, keepdim=True))
        rotation = torch.matmul(_rotation(w, half * w), rotation)
    return rotation


def _rotation(w: Tensor, v: Tensor) -> Tensor:
    """Return the matrices (B, 3, 3) of unit quaternions with real parts (B, 1), others (B, 3)."""
    one = torch.eye(3, dtype=v.dtype, device=v.device)
    # The columns are v cross e_k.
    cross = torch.linalg.cross(v.unsqueeze(1), one.unsqueeze(0), dim=-1).transpose(1, 2)
    return one + 2.0 * (w.unsqueeze(2) * cross + torch.matmul(cross, cross))


def _bonded_triples(molecule: Molecule) -> list[tuple[int, int, int]]:
    neighbours = neighbours_of(molecule.n_atoms, molecule.bonds)
    return [
        (a, b, c) for b, around in enumerate(neighbours) for a in around for c in around if a != c
    ]


def _sine(x: NDArray[np.float64], triple: tuple[int, int, int]) -> NDArray[np.float64]:
    a, b, c = triple
    first, second = x[:, a] - x[:, b], x[:, c] - x[:, b]
    product = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    area = np.linalg.norm(np.cross(first, second), axis=1)
    return np.divide(area, product, out=np.zeros_like(area), where=product > 0)


def _local(x: NDArray[np.float64], triple: tuple[int, int, int]) -> NDArray[np.float64]:
    a, b, c = triple
    e1 = x[:, a] - x[:, b]
    e1 /= np.linalg.norm(e1, axis=1, keepdims=True)
    e2 = x[:, c] - x[:, b]
    e2 = e2 - (e2 * e1).sum(axis=1, keepdims=True) * e1
    e2 /= np.linalg.norm(e2, axis=1, keepdims=True)
    axes = np.stack([e1, e2, np.cross(e1, e2)], axis=-1)
    return (x - x[:, b : b + 1]) @ axes


def _off_a_line(positions: NDArray[np.float64]) -> bool:
    if len(positions) < 3:
        return False
    centred = positions - positions.mean(axis=0)
    axis = np.linalg.svd(centred)[2][0]
    across = centred - np.outer(centred @ axis, axis)
    return bool(np.linalg.norm(across, axis=1).max() > _MIN_EXTENT_NM)
