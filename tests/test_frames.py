"""The choice of frame atoms and alignment atoms, for molecules of every awkward shape."""

import numpy as np
import pytest
import torch
from four_beads import molecule as four_beads, start_positions
from small_molecules import (
    butyne,
    carbon_dioxide,
    ethane,
    make,
    methanol,
    shaken,
    water,
)

from openmm_sd.propagator.alignment import (
    align_far,
    align_frames,
    align_nearby,
    alignment_atoms,
    choose_frame_atoms,
    to_local,
)


def beads():
    return four_beads()


@pytest.mark.parametrize("build", [ethane, methanol, water, butyne, beads])
@pytest.mark.parametrize("several", [False, True])
def test_frame_atoms_are_bonded_and_off_a_line(build, several):
    molecule = build()
    frames = shaken(molecule) if several else molecule.positions[None]
    a, b, c = choose_frame_atoms(molecule, frames)
    bonds = {frozenset(bond) for bond in molecule.bonds}
    assert {frozenset((a, b)), frozenset((b, c))} <= bonds
    assert a != c
    first, second = frames[:, a] - frames[:, b], frames[:, c] - frames[:, b]
    cosine = (
        (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    )
    assert np.abs(cosine).max() < 0.95


def test_heavy_atoms_come_before_hydrogens(ala2, peptide):
    assert set(choose_frame_atoms(ala2, peptide.positions[None])) <= set(ala2.heavy)
    # Two heavy atoms: one hydrogen, not two.
    for molecule in (ethane(), methanol()):
        chosen = choose_frame_atoms(molecule, shaken(molecule))
        assert sum(molecule.atomic_numbers[k] == 1 for k in chosen) == 1
    # A line of heavy atoms is no frame, however many they are.
    assert (
        sum(butyne().atomic_numbers[k] == 1 for k in choose_frame_atoms(butyne(), shaken(butyne())))
        > 0
    )


def test_the_stiffest_angle_wins_and_its_place_in_the_list_does_not_matter():
    # Six beads in a plane zigzag; the angle at bead 2 stays, all others swing.
    turns = np.deg2rad([60.0, -60.0, 60.0, -60.0])
    generator = np.random.default_rng(1)

    def zigzag(noise):
        heading = np.concatenate([[0.0], np.cumsum(turns + noise)])
        steps = 0.15 * np.stack([np.cos(heading), np.sin(heading), 0 * heading], axis=1)
        return np.concatenate([[[0, 0, 0]], np.cumsum(steps, axis=0)])

    swing = np.array([0.3, 0.01, 0.3, 0.3])
    frames = np.stack([zigzag(swing * generator.normal(size=4)) for _ in range(300)])
    bonds = [(k, k + 1) for k in range(5)]
    molecule = make("zigzag", [6] * 6, bonds, zigzag(np.zeros(4)))
    assert sorted(choose_frame_atoms(molecule, frames)) == [1, 2, 3]
    order = generator.permutation(6)  # the new atom k is the old order[k]
    place = np.argsort(order)
    shuffled = make("zigzag", [6] * 6, [tuple(place[list(b)]) for b in bonds],
                    molecule.positions[order])  # fmt: skip
    chosen = choose_frame_atoms(shuffled, frames[:, order])
    assert sorted(int(order[k]) for k in chosen) == [1, 2, 3]


def test_alignment_atoms(ala2):
    assert alignment_atoms(ala2) == list(ala2.heavy)
    assert alignment_atoms(four_beads()) == [0, 1, 2, 3]
    for molecule in (ethane(), methanol(), water(), butyne()):
        assert alignment_atoms(molecule) == list(range(molecule.n_atoms)), molecule.name


def test_linear_molecules_are_refused():
    line = carbon_dioxide()
    with pytest.raises(ValueError, match="off a line"):
        choose_frame_atoms(line, line.positions[None])
    with pytest.raises(ValueError, match="on a line"):
        alignment_atoms(line)
    # One bent frame of water among many does not help if another is straight.
    frames = np.stack([water().positions, line.positions[[0, 1, 2]]])
    with pytest.raises(ValueError, match="off a line"):
        choose_frame_atoms(water(), frames)


@pytest.mark.parametrize(
    ("frames", "word"),
    [
        (np.zeros((0, 4, 3)), "shape"),
        (np.zeros((2, 3, 3)), "shape"),
        (np.full((2, 4, 3), np.nan), "NaN"),
    ],
)
def test_wrong_frames_are_named(frames, word):
    with pytest.raises(ValueError, match=word):
        choose_frame_atoms(four_beads(), frames)


def test_local_coordinates_and_alignment_undo_a_rotation():
    generator = torch.Generator().manual_seed(1)
    x = torch.tensor(start_positions(), dtype=torch.float32).unsqueeze(0)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    turn = q * torch.linalg.det(q)
    local, origin, axes = to_local(x @ turn.T + 0.4, 0, 1, 2)
    torch.testing.assert_close(local, to_local(x, 0, 1, 2)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        origin + local @ axes.transpose(1, 2), x @ turn.T + 0.4, atol=1e-6, rtol=0
    )
    angle = torch.tensor(0.3)
    small = torch.tensor([[1, 0, 0], [0, angle.cos(), -angle.sin()], [0, angle.sin(), angle.cos()]])
    atoms = torch.tensor([0, 1, 3])
    back = align_nearby(x @ small.T + 0.2, x, atoms, 4)
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)


def axis_rotation(axis, angle):
    axis = axis / np.linalg.norm(axis)
    k = np.cross(np.eye(3), axis)
    return torch.tensor(np.eye(3) + np.sin(angle) * k + (1.0 - np.cos(angle)) * k @ k)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 1.0, 45.0, 90.0, 135.0, 179.0, 179.999, 180.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_frames_are_aligned_as_near_ones(degrees, dtype):
    generator = np.random.default_rng(4)
    molecule = methanol()
    target = torch.tensor(shaken(molecule, 30), dtype=dtype)
    moving = torch.tensor(shaken(molecule, 30, seed=1), dtype=dtype)
    # The first three about an axis of the coordinate system, where elements of the matrix vanish.
    axes = [*np.eye(3), *generator.normal(size=(27, 3))]
    turns = torch.stack([axis_rotation(axis, np.deg2rad(degrees)) for axis in axes]).to(dtype)
    moving = moving @ turns + torch.tensor(generator.normal(size=(30, 1, 3)), dtype=dtype)
    atoms = torch.tensor([0, 1, 2, 5])
    exact = align_frames(moving.double(), target.double(), atoms)
    found = align_far(moving, target, atoms)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-6
    assert float((found.double() - exact).abs().max()) < tolerance

    # A turn and a shift, nothing else: shapes and hands are what they were.
    def shape(x):
        x = x.double()
        return torch.cdist(x, x), torch.linalg.det(x[:, [1, 2, 3]] - x[:, [0]])

    for before, after in zip(shape(moving), shape(found), strict=True):
        torch.testing.assert_close(after, before, atol=tolerance, rtol=0)
    # Frames that are aligned already stay.
    again = align_far(found, target, atoms)
    assert float((again - found).abs().max()) < tolerance
    scripted = torch.jit.script(align_far)
    torch.testing.assert_close(scripted(moving, target, atoms), found, atol=tolerance, rtol=0)


def test_far_frames_of_other_shape_and_hand():
    # Frames that have little in common: the best rotation may be anything.
    generator = torch.Generator().manual_seed(2)
    target, moving = torch.randn(2, 2000, 6, 3, generator=generator, dtype=torch.float64).mul(0.1)
    atoms = torch.arange(6)

    def distance(x):
        return (x - target).square().sum((1, 2))

    exact, found = (align(moving, target, atoms) for align in (align_frames, align_far))
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(moving, moving))
    assert float((found - exact).abs().max()) < 1e-8
    # A mirror image is not turned inside out.
    mirror = target * torch.tensor([1.0, 1.0, -1.0])
    best = align_far(mirror, target, atoms)
    torch.testing.assert_close(torch.linalg.det(best[:, 1:4] - best[:, :1]),
                               torch.linalg.det(mirror[:, 1:4] - mirror[:, :1]))  # fmt: skip
    assert float(distance(best).min()) > 1e-4
