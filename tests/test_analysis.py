"""Known answers for torsions and kinetics."""

import numpy as np
import pytest

from openmm_sd.analysis import (
    BASINS,
    basin_populations,
    basins,
    dihedral,
    hop_probabilities,
    implied_timescales,
    jsd_phi_psi,
    mean_cos_change,
    signed_volume,
    transition_matrix,
)


def chain_with_torsion(angle: float) -> np.ndarray:
    """Four points whose dihedral is `angle` (radians), IUPAC sign."""
    # The middle bond points along +z; seen along it, clockwise is from x to y.
    return np.array(
        [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.5], [np.cos(angle), np.sin(angle), 1.5]]
    )


@pytest.mark.parametrize("degrees", [-179.0, -120.0, -60.0, 0.0, 1.0, 60.0, 90.0, 135.0])
def test_dihedral_has_the_iupac_sign(degrees):
    angle = np.deg2rad(degrees)
    assert dihedral(chain_with_torsion(angle), (0, 1, 2, 3)) == pytest.approx(angle)
    assert dihedral(chain_with_torsion(angle), (3, 2, 1, 0)) == pytest.approx(angle)


def test_dihedral_agrees_with_mdtraj():
    mdtraj = pytest.importorskip("mdtraj")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4, 3)).astype(np.float32)
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(4):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    other = mdtraj.compute_dihedrals(mdtraj.Trajectory(x, topology), [[0, 1, 2, 3]])[:, 0]
    assert np.abs(np.angle(np.exp(1j * (dihedral(x, (0, 1, 2, 3)) - other)))).max() < 1e-4


def test_a_mirror_image_has_the_opposite_torsion_and_volume():
    x = np.random.default_rng(1).normal(size=(20, 4, 3))
    mirrored = x * np.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(dihedral(mirrored, (0, 1, 2, 3)), -dihedral(x, (0, 1, 2, 3)))
    np.testing.assert_allclose(signed_volume(mirrored, range(4)), -signed_volume(x, range(4)))


def test_jsd_of_identical_samples_is_zero_and_of_disjoint_ones_a_bit():
    rng = np.random.default_rng(2)
    a = rng.uniform(-np.pi, 0.0, (5000, 2))
    assert jsd_phi_psi(a, a) == 0.0
    assert jsd_phi_psi(a, np.concatenate([a, a])) == pytest.approx(0.0, abs=1e-12)
    assert jsd_phi_psi(a, a + np.pi) == pytest.approx(1.0)


def test_jsd_of_two_known_histograms():
    # Two cells against one of them: m = (3/4, 1/4), JSD = 0.5 (log2(4/3) + [1 - log2(3)/2]).
    both = np.array([[0.1, 0.1], [2.0, 2.0]])
    one = np.array([[0.1, 0.1]])
    expected = 0.5 * (np.log2(4 / 3) + 0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25))
    assert jsd_phi_psi(both, one) == pytest.approx(expected)
    assert jsd_phi_psi(one, both) == pytest.approx(expected)


def test_jsd_takes_pi_and_minus_pi_for_the_same_angle():
    edge = np.array([[np.pi, np.pi]])
    assert jsd_phi_psi(edge, -edge) == 0.0


def test_mean_cos_change():
    before = np.zeros((4, 2))
    after = np.array([[0.0, np.pi], [0.0, np.pi], [np.pi, np.pi], [2 * np.pi, 3 * np.pi]])
    np.testing.assert_allclose(mean_cos_change(before, after), [0.5, -1.0])


def test_basins_follow_their_definition():
    degrees = {
        "beta_C5": [(-150, 160), (170, 170), (-106, 50), (140, -120)],
        "PII": [(-60, 150), (-104, 45), (-1, -111)],
        "alphaR": [(-60, -40), (-150, 0), (160, 0), (-60, 44)],
        "alphaL": [(60, 40), (0, 0), (135, 109)],
        "C7ax_other": [(60, -60), (60, 180), (10, -31)],
    }
    for name, angles in degrees.items():
        phi, psi = np.deg2rad(np.array(angles, dtype=float)).T
        assert [BASINS[k] for k in basins(phi, psi)] == [name] * len(angles)


def test_populations_and_hops():
    before = np.array([0, 0, 0, 0, 1, 1])
    after = np.array([0, 0, 0, 1, 1, 0])
    np.testing.assert_allclose(basin_populations(before, 3), [4 / 6, 2 / 6, 0.0])
    hops = hop_probabilities(before, after, 3)
    np.testing.assert_allclose(hops[:2], [[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])
    assert np.isnan(hops[2]).all()


@pytest.mark.parametrize("stride", [1, 5])
def test_two_state_chain_has_its_timescale(stride):
    # Leaving with p and q a step: the second eigenvalue is 1 - p - q.
    p, q, spacing_ps = 0.02, 0.03, 2.0
    rng = np.random.default_rng(3)
    chains = np.zeros((200, 2000), dtype=np.int64)
    chains[:, 0] = rng.random(200) < p / (p + q)
    for t in range(1, chains.shape[1]):
        leave = rng.random(200) < np.where(chains[:, t - 1] == 0, p, q)
        chains[:, t] = chains[:, t - 1] ^ leave
    exact = -spacing_ps / np.log(1 - p - q)
    measured = implied_timescales(list(chains), stride, spacing_ps, n_states=2)[0]
    # 400,000 steps hold 9,600 hops, so the estimate is good to about 1.5 per cent.
    assert measured == pytest.approx(exact, rel=0.06)
    # A state that is never visited is dropped.
    assert transition_matrix(list(chains), stride, 4).shape == (2, 2)
