"""Known answers for torsions and kinetics."""

import json
import os
from pathlib import Path

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
from openmm_sd.analysis.equilibrium import (
    divergence,
    grouped_histograms,
    peptide_partition,
    well_partition,
    wells,
)
from openmm_sd.analysis.geometry import angles, compare, distances
from openmm_sd.analysis.kinetics import (
    Discretisation,
    crossings,
    estimate,
    estimate_with_error,
    grouped_counts,
    microstate_labels,
    mode_correlations,
    partition_labels,
)
from openmm_sd.analysis.sample import Sample, mean_and_error, resamplings
from openmm_sd.molecule.graph import distant_pairs, heavy_angles, heavy_bonds
from openmm_sd.molecule.torsions import backbone_torsions, neighbouring_pairs, torsions


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
    for name, places in degrees.items():
        phi, psi = np.deg2rad(np.array(places, dtype=float)).T
        assert [BASINS[k] for k in basins(phi, psi)] == [name] * len(places)


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


# -- samples and their errors --------------------------------------------------------------------


def test_pairs_never_leave_their_run_and_none_is_lost():
    runs = [np.arange(1000.0), np.arange(5000.0, 5400.0)]
    sample = Sample.from_runs(runs, 2.0, groups=8)
    assert sample.n_frames == 1400
    assert sample.stride(6.0) == 3
    assert sample.stride(3.0) is None
    pairs = list(sample.pairs(3))
    assert sum(len(before) for _, before, _ in pairs) == 1400 - 6
    assert all((after - before == 3.0).all() for _, before, after in pairs)
    assert {group for group, _, _ in pairs} == set(range(sample.n_groups))


def test_the_error_of_a_mean_covers_correlated_frames():
    # Each value is repeated 50 times: the error is that of 640 values, not of 32,000.
    rng = np.random.default_rng(5)
    sample = Sample.from_runs([np.repeat(rng.normal(size=640), 50)], 1.0)
    resampled = resamplings(sample.n_groups, 300, 1)
    _, error = mean_and_error(*sample.sums(lambda before, _: before.sum(0)), resampled)
    assert error[0] == pytest.approx(1 / np.sqrt(640), rel=0.4)


def test_wrong_samples_are_refused():
    with pytest.raises(ValueError, match="no frames"):
        Sample.from_runs([np.zeros((0, 2))], 1.0)
    with pytest.raises(ValueError, match="same number of angles"):
        Sample.from_runs([np.zeros((5, 2)), np.zeros((5, 3))], 1.0)
    with pytest.raises(ValueError, match="spacing"):
        Sample.from_runs([np.zeros((5, 2))], 0.0)


# -- equilibrium ---------------------------------------------------------------------------------


def test_divergence_of_one_law_is_what_sampling_makes_of_it():
    rng = np.random.default_rng(6)
    weights = resamplings(32, 100, 1)
    samples = [
        Sample.from_runs(list(rng.normal(0.0, 0.4, (64, 200, 2)) + shift), 1.0)
        for shift in (0.0, 0.0, 0.3)
    ]
    same, other, moved = (grouped_histograms(sample, (0, 1)) for sample in samples)
    alike = divergence([same], [other], weights, weights)
    assert alike.value == pytest.approx(alike.expected, rel=0.2)
    assert 0 < alike.error < alike.value
    assert divergence([moved], [other], weights, weights).value > 3 * alike.value


def test_wells_of_a_known_histogram():
    rng = np.random.default_rng(7)
    centres = np.deg2rad([-60.0, 60.0, 180.0])
    chi = rng.vonmises(np.repeat(centres, [2000, 3000, 5000]), 20.0)
    np.testing.assert_allclose(np.rad2deg(wells(chi)), [-120, 0, 120], atol=25)
    partition = well_partition("chi", 0, chi)
    shares = np.bincount(partition.label(chi[:, None]), minlength=3) / 10_000
    assert sorted(shares) == pytest.approx([0.2, 0.3, 0.5], abs=0.01)
    assert len(partition.passages) == 6
    assert wells(rng.vonmises(np.full(5000, np.pi), 20.0)) == []


# -- kinetics ------------------------------------------------------------------------------------

# A chain of three states in a row, a step of 2 ps.
ROW = np.array([[0.98, 0.02, 0.0], [0.05, 0.85, 0.10], [0.0, 0.04, 0.96]])
ROW_STATIONARY = np.array([1.0, 0.4, 1.0]) / 2.4


def walk(matrix, start, steps, rng):
    states = np.empty((len(start), steps), dtype=np.int16)
    states[:, 0] = start
    cumulative = matrix.cumsum(1)
    for t in range(1, steps):
        states[:, t] = (rng.random((len(start), 1)) > cumulative[states[:, t - 1]]).sum(1)
    return states


def test_exact_counts_give_exact_timescales_and_passage_times():
    model = estimate(1e6 * ROW_STATIONARY[:, None] * ROW, 2.0)
    np.testing.assert_allclose(model.stationary, ROW_STATIONARY, rtol=1e-4)
    exact = np.sort(np.linalg.eigvals(ROW).real)[::-1][1:]
    np.testing.assert_allclose(model.eigenvalues(3)[:2], exact, rtol=1e-4)
    assert np.isnan(model.eigenvalues(3)[2])
    # Out of 0 with a = 0.02, back from 1 with b = 0.05, on with c = 0.10: (1 + b / a) / c from 1.
    from_middle = (1 + 0.05 / 0.02) / 0.10
    first, middle, last = np.eye(3, dtype=bool)
    assert model.mean_first_passage(middle, last) == pytest.approx(2 * from_middle, rel=1e-3)
    assert model.mean_first_passage(first, last) == pytest.approx(2 * (50 + from_middle), rel=1e-3)
    np.testing.assert_allclose(
        model.coarse(np.arange(3), 3, 4), np.linalg.matrix_power(ROW, 4), rtol=1e-3, atol=1e-9
    )


def test_short_chains_out_of_equilibrium_give_the_equilibrium_and_its_errors():
    rng = np.random.default_rng(8)
    states = walk(ROW, np.zeros(400, dtype=int), 60, rng)
    sample = Sample.from_runs(list(states), 2.0)
    found = estimate_with_error(grouped_counts(sample, 1, 3), 2.0)
    np.testing.assert_allclose(found.model.stationary, ROW_STATIONARY, atol=0.06)
    value, error = found.timescales(2)
    exact = -2.0 / np.log(np.sort(np.linalg.eigvals(ROW).real)[::-1][1:])
    assert (np.abs(value - exact) < 4 * error).all()
    assert (error < 0.3 * value).all()
    passage, passage_error = found.passage(*np.eye(3, dtype=bool)[[0, 2]])
    assert abs(passage - 2 * 85.0) < 4 * passage_error


def test_a_timescale_far_below_the_lag_is_lost_in_the_noise():
    rng = np.random.default_rng(9)
    states = rng.integers(0, 20, (64, 400))
    sample = Sample.from_runs(list(states), 1.0)
    value, error = estimate_with_error(grouped_counts(sample, 1, 20), 1.0).timescales(3)
    assert np.isnan(value).all()
    assert np.isnan(error).all()


def test_correlation_of_a_mode_is_its_eigenvalue():
    values, vectors = np.linalg.eig(ROW)
    order = np.argsort(values.real)[::-1][1:]
    counts = ROW_STATIONARY[:, None] * ROW
    found = mode_correlations(counts, vectors.real[:, order])
    np.testing.assert_allclose(found, values.real[order], atol=1e-9)


def test_states_that_do_not_exchange_are_refused():
    with pytest.raises(ValueError, match="exchange"):
        estimate(np.diag([5.0, 5.0]), 1.0)


def test_crossings_and_their_durations():
    run = np.array([0, 0, -1, -1, 1, 1, -1, 1, 0, -1, 0])
    np.testing.assert_array_equal(crossings([run, run[:4]]), [[0, 1, 3], [1, 0, 1]])


def test_microstates_lie_where_the_frames_are():
    rng = np.random.default_rng(10)
    centres = np.array([[-1.0, 3.0], [1.0, 0.5], [2.5, -2.0]])
    places = centres[np.arange(3000) % 3] + rng.normal(0, 0.05, (3000, 2))
    found = Discretisation.fit(places, 3)
    states = found.assign(places)
    assert all(len(set(states[k::3])) == 1 for k in range(3))
    assert len(set(states)) == 3
    # The other side of the circle is the same place.
    assert (found.assign(places + 2 * np.pi) == states).all()
    assert Discretisation.fit(places).n_states == 60
    with pytest.raises(ValueError, match="never change"):
        Discretisation.fit(np.zeros((100, 2)))


# -- geometry ------------------------------------------------------------------------------------


def test_torsions_of_the_dipeptide_are_found_by_bonds(ala2):
    found = torsions(ala2)
    (phi, psi), *others = backbone_torsions(ala2)
    assert not others
    assert [t.name for t in found[:2]] == ["phi", "psi"]
    names = [[ala2.atom_names[a] for a in t.atoms] for t in (phi, psi)]
    assert names == [["C", "N", "CA", "C"], ["N", "CA", "C", "N"]]
    assert len(found) == 4  # and the two amides
    assert len(heavy_bonds(ala2)) == 9
    assert len(heavy_angles(ala2)) == 11
    assert neighbouring_pairs(found[:2]) == [(0, 1)]
    assert all(len({a, b} & set(bond)) < 2 for a, b in distant_pairs(ala2) for bond in ala2.bonds)
    every = {tuple(pair) for pair in distant_pairs(ala2, hydrogens=True).tolist()}
    neighbours = np.bincount(np.ravel(ala2.bonds))
    near = len(ala2.bonds) + (neighbours * (neighbours - 1) // 2).sum()  # it has no ring
    assert len(every) == 22 * 21 // 2 - near
    assert {tuple(pair) for pair in distant_pairs(ala2).tolist()} < every


def test_lengths_and_angles_of_a_right_angle():
    frames = np.array([[[0.3, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.4, 0.0]]])
    assert angles(frames, np.array([[0, 1, 2]]))[0, 0] == pytest.approx(90.0)
    assert distances(frames, np.array([[0, 2]]))[0, 0] == pytest.approx(0.5)


def test_shift_and_width_come_out_with_their_errors():
    rng = np.random.default_rng(11)
    found = compare(rng.normal(1.01, 0.02, (20_000, 3)), rng.normal(1.0, 0.01, (20_000, 3)))
    assert (np.abs(found.shift - 0.01) < 4 * found.shift_error).all()
    assert (found.shift_error < 3e-4).all()
    assert (np.abs(found.width_ratio - 2.0) < 4 * found.width_ratio_error).all()
    assert (found.width_ratio_error < 0.05).all()


# -- against published figures -------------------------------------------------------------------

REFERENCE = Path(
    os.environ.get("OPENMM_SD_ALA2", Path(__file__).parents[2] / "shared" / "data" / "ala2")
)


@pytest.mark.skipif(
    not (REFERENCE / "reference-250ns-phi-psi.npy").exists(), reason="no reference data here"
)
def test_250_ns_of_published_md_give_the_table_of_the_whole_750_ns():
    table = json.loads((REFERENCE / "reference-table.json").read_text())
    phi_psi = np.load(REFERENCE / "reference-250ns-phi-psi.npy")
    sample = Sample.from_runs([phi_psi], 1.0)
    partition = peptide_partition()
    label = partition_labels(partition, sample)
    weights = resamplings(sample.n_groups, 100, 1)
    value, error = mean_and_error(
        *label.sums(lambda before, _: np.bincount(before, minlength=5)), weights
    )
    for k, name in enumerate(BASINS):
        mean, standard = table["populations"][name]
        # The table's error is that of three such trajectories together.
        assert abs(value[k] - mean) < 3 * np.hypot(error[k], np.sqrt(3) * standard)

    found = Discretisation.fit(phi_psi)
    states = sample.map(found.assign)
    assert found.n_states == 200
    for lag in (20, 50):
        times, errors = estimate_with_error(grouped_counts(states, lag, 200), lag).timescales()
        published = table["implied_timescales_ps"][str(lag)]
        assert times[0] == pytest.approx(published[0], rel=0.5)  # rests on 14 crossings
        assert times[1] == pytest.approx(published[1], rel=0.10)
        assert times[2] == pytest.approx(published[2], rel=0.25)
        assert (np.abs(times - published) < 3 * errors).all()

    markov = estimate_with_error(grouped_counts(states, 20, 200), 20.0)
    labels = microstate_labels(states.runs, label.runs, 200, 5)
    for name, start, end in partition.passages:
        mean, standard = markov.passage(np.isin(labels, start), np.isin(labels, end))
        published = table["mfpt_ps_lag20"][name]
        rare = "alphaL" in name or "phi" in name
        assert mean == pytest.approx(published, rel=0.3 if rare else 0.06)
        assert abs(mean - published) < 4 * standard

    for lag in ("1", "10", "50", "100", "500"):
        change = mean_cos_change(phi_psi[: -int(lag)], phi_psi[int(lag) :])
        assert change[0] == pytest.approx(table["mean_cos_dphi"][lag], abs=0.01)
        assert change[1] == pytest.approx(table["mean_cos_dpsi"][lag], abs=0.02)
