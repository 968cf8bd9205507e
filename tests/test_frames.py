"""The choice of frame atoms and alignment atoms, for molecules of every awkward shape."""

import numpy as np
import pytest
import torch
from four_beads import molecule as four_beads
from four_beads import start_positions
from small_molecules import (
    butyne,
    carbon_dioxide,
    ethane,
    make,
    methanol,
    shaken,
    water,
)

from openmm_sd.propagator.frames import (
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
