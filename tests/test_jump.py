"""The work of one jump, without OpenMM: whole molecules, labels, constraints, gates, status."""

import numpy as np
import pytest
import torch
from conftest import turned

from openmm_sd import Propagator, ScoreModel
from openmm_sd.analysis.geometry import distances
from openmm_sd.jump.gates import (
    GATES,
    BondGate,
    ChiralityGate,
    ContactGate,
    DisplacementGate,
    FiniteGate,
)
from openmm_sd.jump.jump import (
    ERRORS,
    MAX_CANDIDATES,
    REJECTIONS,
    STATUS_BASE,
    STATUS_NOVEL,
    Jump,
    build_gates,
    gates_of,
    read_status,
)
from openmm_sd.molecule.graph import distant_pairs
from openmm_sd.propagator.kernels import Identity, Rotation, Shift
from openmm_sd.propagator.script import script

NO_BOX = torch.zeros(3, 3, dtype=torch.float64)
CUBE = torch.eye(3, dtype=torch.float64) * 2.0
# Reduced vectors of a truncated octahedron.
OCTAHEDRON = 2.0 * torch.tensor(
    [[1.0, 0.0, 0.0], [1 / 3, 2 * np.sqrt(2) / 3, 0.0], [-1 / 3, np.sqrt(2) / 3, np.sqrt(6) / 3]],
    dtype=torch.float64,
)


class Handed(Propagator):
    """Moves everything by the sign of one signed volume: tells labels apart."""

    def __init__(self, n_atoms, centre):
        super().__init__(n_atoms, 0)
        self.centre = tuple(int(c) for c in centre)

    def forward(self, frame, lag, noise):
        c, i, j, k = self.centre
        a = frame[:, i] - frame[:, c]
        b = frame[:, j] - frame[:, c]
        d = frame[:, k] - frame[:, c]
        sign = torch.sign((a * torch.linalg.cross(b, d)).sum(-1))
        return frame + 0.1 * sign.reshape(-1, 1, 1)


class Faulty(Propagator):
    """Returns what the lag asks for."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 0)

    def forward(self, frame, lag, noise):
        if bool(lag[0] == 1.0):
            return frame * float("nan")
        if bool(lag[0] == 2.0):
            return frame + float("inf")
        if bool(lag[0] == 3.0):
            return frame + 50.0
        if bool(lag[0] == 4.0):
            return frame[:, :-1]
        if bool(lag[0] == 5.0):
            return frame.double()
        if bool(lag[0] == 6.0):
            return frame * torch.tensor([1.0, 1.0, -1.0])
        if bool(lag[0] == 7.0):
            return frame * 1.5
        if bool(lag[0] == 8.0):
            return frame * 0.9
        return frame


def run(
    jump, positions, box=NO_BOX, number=0, attempt=0, seed=1, lag=10.0, candidates=1, novelty=0.0
):
    positions = torch.tensor(positions)
    displacement, status = jump(
        positions, box, number, attempt, candidates, seed, lag, float(novelty)
    )
    assert displacement.dtype == torch.float64
    return displacement.numpy(), int(status)


def jump_of(kernel, molecule, windows=(), constraints=(), limit=2.0, contacts=()):
    return Jump(kernel, molecule, build_gates(molecule, limit, windows, contacts), constraints)


@pytest.mark.parametrize("box", [CUBE, OCTAHEDRON], ids=["cube", "octahedron"])
def test_broken_solute_is_made_whole(ala2, box):
    jump = jump_of(Rotation(ala2.n_atoms, 95.0, (1.0, 2.0, 3.0)), ala2)
    whole = ala2.positions + 5.0
    expected, _ = run(jump, whole)
    rng = np.random.default_rng(0)
    for _ in range(5):
        images = rng.integers(-2, 3, size=(ala2.n_atoms, 3))
        broken = whole + images @ box.numpy()
        displacement, status = run(jump, broken, box)
        assert status == 1
        # The first atom stays in its image, the others follow it.
        made = jump.make_whole(torch.as_tensor(broken), box).numpy()
        np.testing.assert_allclose(made - made[0], whole - whole[0], atol=1e-12)
        np.testing.assert_array_equal(made[0], broken[0])
        np.testing.assert_allclose(displacement, expected, atol=1e-7)


def test_any_numbering_of_equivalent_hydrogens(ala2):
    hand = ala2.handedness
    for row in np.flatnonzero(~hand.stereo):
        jump = jump_of(Handed(ala2.n_atoms, hand.centres[row]), ala2)
        expected, status = run(jump, ala2.positions)
        assert status == 1
        assert np.allclose(np.abs(expected), 0.1)
        relabelled = ala2.positions[hand.swaps[row]]
        displacement, status = run(jump, relabelled)
        assert status == 1
        # Without relabelling the kernel would see the mirror image and move the other way.
        np.testing.assert_allclose(displacement, expected, atol=1e-7)


def test_displacements_go_to_the_relabelled_atoms(ala2):
    hand = ala2.handedness
    row = int(np.flatnonzero(~hand.stereo)[0])
    jump = jump_of(Rotation(ala2.n_atoms, 40.0, (0.0, 0.0, 1.0)), ala2)
    expected, _ = run(jump, ala2.positions)
    swap = hand.swaps[row]
    displacement, _ = run(jump, ala2.positions[swap])
    np.testing.assert_allclose(displacement, expected[swap], atol=1e-7)


def test_mirror_image_is_an_error(ala2):
    jump = jump_of(Identity(ala2.n_atoms), ala2)
    displacement, status = run(jump, ala2.positions * [1.0, 1.0, -1.0])
    assert status == -103
    assert not displacement.any()


def test_hydrogens_land_on_their_constraints(ala2):
    hydrogens = [
        (i, j) for i, j in ala2.bonds if 1 in (ala2.atomic_numbers[i], ala2.atomic_numbers[j])
    ]
    constraints = [
        (i, j, 0.105) if ala2.atomic_numbers[j] == 1 else (j, i, 0.105) for i, j in hydrogens
    ]
    assert len(constraints) == 12
    jump = jump_of(Shift(ala2.n_atoms, (0.01, 0.0, 0.0)), ala2, constraints=constraints)
    displacement, status = run(jump, ala2.positions)
    new = ala2.positions + displacement
    assert status == 1
    for heavy, hydrogen, length in constraints:
        assert abs(np.linalg.norm(new[hydrogen] - new[heavy]) - length) < 1e-12
    heavy_atoms = list(ala2.heavy)
    np.testing.assert_allclose(
        displacement[heavy_atoms], [[0.01, 0, 0]] * len(heavy_atoms), atol=1e-7
    )


@pytest.mark.parametrize(
    ("lag", "status"),
    [(1, 2), (2, 2), (3, 3), (4, 101), (5, 102), (6, 5), (7, 4), (8, 6), (10, 1)],
)
@pytest.mark.parametrize("scripted", [False, True])
def test_every_outcome_has_its_status(ala2, lag, status, scripted):
    windows = [(i, j, 0.07, 0.2) for i, j in ala2.bonds]
    pairs = distant_pairs(ala2, hydrogens=True)
    contacts = [
        (*p, 0.95 * d)
        for p, d in zip(pairs, distances(ala2.positions[None], pairs)[0], strict=True)
    ]
    jump = jump_of(Faulty(ala2.n_atoms), ala2, windows, contacts=contacts)
    jump = script(jump) if scripted else jump
    displacement, got = run(jump, ala2.positions, lag=lag)
    assert not displacement.any()  # rejected, or an identity
    if status in ERRORS:
        assert got == -status
        return
    accepted, rejections = read_status(got)
    assert accepted is (status == 1)
    assert {k: n for k, n in rejections.items() if n} == (
        {} if accepted else {REJECTIONS[status]: 1}
    )


class Lottery(Propagator):
    """What the first number of the noise decides; the second says how far the winner goes."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 2)

    def forward(self, frame, lag, noise):
        out = frame + 0.01 * noise[:, 1:2].unsqueeze(2)
        bad = (noise[:, :1] > -0.5).unsqueeze(2)
        far = (noise[:, :1] > 0.8).unsqueeze(2)
        out = torch.where(bad, torch.full_like(out, float("nan")), out)
        return torch.where(far, frame + 3.0, out)


@pytest.mark.parametrize("scripted", [False, True])
def test_candidates_of_a_batch_are_those_drawn_one_by_one(ala2, scripted):
    jump = jump_of(Lottery(ala2.n_atoms), ala2)
    jump = script(jump) if scripted else jump
    outcomes = set()
    for number in range(40):
        expected, counts, tries = np.zeros((ala2.n_atoms, 3)), {}, 0
        for tries in range(1, 7):
            expected, status = run(jump, ala2.positions, number=number, attempt=tries - 1)
            accepted, rejected = read_status(status)
            counts = {name: counts.get(name, 0) + n for name, n in rejected.items()}
            if accepted:
                break
        outcomes.add((tries, accepted))
        for first in (0, 1, 2):
            if first >= tries:
                continue
            displacement, status = run(
                jump, ala2.positions, number=number, attempt=first, candidates=6 - first
            )
            assert read_status(status)[0] is accepted
            assert sum(read_status(status)[1].values()) == tries - first - accepted
            if first == 0:
                assert read_status(status)[1] == counts
            np.testing.assert_allclose(displacement, expected, atol=1e-9)
    assert {(1, True), (3, True), (6, False)} <= outcomes


def test_a_status_holds_as_many_candidates_as_are_allowed(ala2):
    _, status = run(jump_of(Faulty(ala2.n_atoms), ala2), ala2.positions, lag=1.0, candidates=7)
    assert MAX_CANDIDATES == 7
    assert read_status(status) == (False, dict.fromkeys(REJECTIONS.values(), 0) | {"nonfinite": 7})
    # GPUs may carry an energy in single precision: every status must be a number there.
    assert STATUS_BASE ** max(REJECTIONS) <= 2**24


class Stretch(torch.nn.Module):
    """A score: the largest distance from the centroid, nm."""

    def forward(self, frames):
        return torch.linalg.vector_norm(frames, dim=2).amax(1)


@pytest.mark.parametrize("scripted", [False, True])
def test_nothing_is_drawn_from_a_novel_frame(ala2, scripted):
    kernel = Shift(ala2.n_atoms, (0.01, 0.0, 0.0))
    jump = Jump(kernel, ala2, build_gates(ala2, 2.0, []), novelty=Stretch())
    jump = script(jump) if scripted else jump
    x = ala2.positions - ala2.positions.mean(0)
    size = float(np.linalg.norm(x, axis=1).max())
    for novelty, expected in ((1.001 * size, 1), (0.999 * size, STATUS_NOVEL), (1e30, 1)):
        displacement, status = run(jump, ala2.positions, novelty=novelty)
        assert status == expected
        assert displacement.any() == (expected == 1)


class NoNumber(torch.nn.Module):
    """A score that fails."""

    def forward(self, frames):
        return frames.sum(dim=(1, 2)) * float("nan")


def test_a_score_that_is_no_number_is_no_reason_to_trust(ala2):
    jump = Jump(Identity(ala2.n_atoms), ala2, build_gates(ala2, 2.0, []), novelty=NoNumber())
    assert run(jump, ala2.positions, novelty=1e30)[1] == STATUS_NOVEL


def test_positions_that_are_not_finite(ala2):
    positions = ala2.positions.copy()
    positions[3, 1] = np.nan
    assert run(jump_of(Identity(ala2.n_atoms), ala2), positions)[1] == -104


def test_gate_codes_are_unique_and_in_order():
    codes = [gate.code for gate in GATES]
    assert codes == sorted(set(codes))
    assert min(codes) > 1
    assert len({gate.name for gate in GATES}) == len(GATES)


def test_gates_judge_each_of_a_batch(ala2):
    frame = torch.tensor(ala2.positions, dtype=torch.float32).expand(3, -1, -1)
    proposal = frame.clone()
    proposal[1, 0, 0] = float("nan")
    assert FiniteGate()(frame, proposal).tolist() == [True, False, True]
    proposal = frame.clone()
    proposal[2, 4] += 0.3
    assert DisplacementGate(0.5)(frame, proposal).tolist() == [True, True, False]
    assert DisplacementGate(0.6)(frame, proposal).tolist() == [True, True, True]
    i, j = ala2.bonds[0]
    length = float((frame[0, i] - frame[0, j]).norm())
    assert BondGate([(i, j, length - 0.01, length + 0.01)])(frame, frame).tolist() == [True] * 3
    assert BondGate([(i, j, length + 0.01, length + 0.02)])(frame, frame).tolist() == [False] * 3
    row = int(np.flatnonzero(ala2.handedness.stereo)[0])
    gate = ChiralityGate([tuple(ala2.handedness.centres[row])], [float(ala2.handedness.signs[row])])
    proposal = frame.clone()
    proposal[1] *= torch.tensor([1.0, -1.0, 1.0])
    assert gate(frame, proposal).tolist() == [True, False, True]


@pytest.mark.parametrize("scripted", [False, True])
def test_contact_gate(scripted):
    gate = ContactGate([(0, 1, 0.2), (3, 1, 0.15)])
    gate = script(gate) if scripted else gate
    far = torch.eye(4)[:, :3]
    frame = far.expand(5, 4, 3)
    proposal = frame.clone()
    proposal[1, 0] = far[1] + torch.tensor([0.0, 0.0, 0.19])
    proposal[2, 3] = far[1] + torch.tensor([0.0, 0.16, 0.0])
    proposal[3, 2] = far[1]  # a pair without a distance
    proposal[4, 3] = float("nan")
    assert gate(frame, proposal).tolist() == [True, False, True, True, False]


def test_contact_gate_only_with_distances(ala2):
    window = [(0, 1, 0.1, 0.2)]
    names = [gate.name for gate in build_gates(ala2, 1.0, window, [(0, 9, 0.2)], window, window)]
    assert names == [gate.name for gate in GATES]
    assert "contacts" not in [gate.name for gate in build_gates(ala2, 1.0, [])]


def test_gates_of_the_shipped_model_see_bent_angles_and_turned_peptide_bonds():
    model = ScoreModel.load("ala2-water")
    molecule = model.molecules[0]
    gates = {gate.name: gate for gate in gates_of(model, molecule)}
    good = torch.tensor(model.start_frames[:200])
    assert all(bool(gate(good, good).all()) for gate in gates.values())

    def turn(axis, side, degrees):
        return torch.from_numpy(turned(good.numpy(), axis, side, degrees))

    # ACE about the bond from its carbon to alanine's nitrogen; bonds and angles stay as they are.
    cis = turn([4, 6], [0, 1, 2, 3, 5], 180.0)
    assert not gates["torsions"](good, cis).any()
    for name in ("bonds", "angles", "chirality"):
        assert gates[name](good, cis).all()
    # Phi may turn.
    assert gates["torsions"](good, turn([6, 8], [0, 1, 2, 3, 4, 5, 7], 120.0)).all()
    # The side chain's carbon pulled sideways, at its old distance from CA.
    bent = good.clone()
    arm = good[:, 10] - good[:, 8]
    towards = torch.nn.functional.normalize(good[:, 6] - good[:, 8], dim=1)
    length = torch.linalg.vector_norm(arm, dim=1, keepdim=True)
    new = torch.nn.functional.normalize(arm + 0.15 * towards, dim=1) * length
    bent[:, 10] = good[:, 8] + new
    assert gates["bonds"](good, bent).all()
    assert not gates["angles"](good, bent).any()


@pytest.mark.parametrize(
    "gate", [DisplacementGate(1.0), BondGate([(0, 1, 0.0, 1.0)]), ContactGate([(0, 1, 0.0)])]
)
def test_gates_turn_down_nan(gate):
    frame = torch.zeros(1, 3, 3)
    assert gate(frame, frame).tolist() == [True]
    assert gate(frame, frame * float("nan")).tolist() == [False]
