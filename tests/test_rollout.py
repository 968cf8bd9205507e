"""Rollouts: chains against known answers, independence, exact restart, and the files they write."""

import functools
import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Program, launch
from torch import Tensor

from openmm_sd import JumpError, Molecule, Propagator, ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.cli import main
from openmm_sd.files.folder import locked
from openmm_sd.files.journal import write_checkpoint
from openmm_sd.jump.jump import Jump, build_gates, read_status
from openmm_sd.molecule.topology import pdb_text
from openmm_sd.propagator.kernels import Identity, OrnsteinUhlenbeck, Shift
from openmm_sd.propagator.noise import standard_normal, standard_normal_rows
from openmm_sd.rollout import driver
from openmm_sd.rollout.driver import read_rollout, rollout_chains, run_rollout
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.rollout.start import read_start_frames

CHAIN = Molecule(
    "diatomic",
    (6, 8),
    ((0, 1),),
    ("C", "O"),
    ("MOL",) * 2,
    ("1",) * 2,
    np.array([[0.0, 0.0, 0.0], [0.12, 0.0, 0.0]]),
)


class Faulty(Propagator):
    """Stretches the first bond in a known share of draws, by the first noise value alone."""

    def __init__(self, n_atoms, threshold):
        super().__init__(n_atoms, 3 * n_atoms)
        self.threshold = float(threshold)

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        step = 0.0005 * noise.reshape(-1, self.n_atoms, 3)
        broken = (noise[:, 0] > self.threshold).to(frame.dtype).reshape(-1, 1)
        stretch = torch.zeros_like(frame)
        stretch[:, 0, 0] = 1.0
        return frame + step + stretch * broken.unsqueeze(2)


class Swapping(Propagator):
    """Exchanges two equivalent atoms where the noise is positive, and mirrors where it is large."""

    def __init__(self, swap):
        super().__init__(len(swap), 1)
        self.register_buffer("swap", torch.as_tensor(np.array(swap)))

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        kind = noise.reshape(-1, 1, 1)
        out = torch.where(kind > 0.0, frame[:, self.swap], frame)
        return torch.where(kind > 1.0, out * torch.tensor([1.0, 1.0, -1.0]), out)


class Wrong(Propagator):
    """Returns float64."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 0)

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        return frame.double()


def xh_lengths(molecule, length=0.109):
    numbers = molecule.atomic_numbers
    bonds = [(i, j) if numbers[j] == 1 else (j, i) for i, j in molecule.bonds]
    return [[i, j, length] for i, j in bonds if numbers[j] == 1]


def windows(molecule, low=0.05, high=0.3):
    return [[i, j, low, high] for i, j in molecule.bonds]


@pytest.fixture(scope="module")
def jitter(ala2):
    """A model that shakes all atoms a little, with bond windows, constraints and start frames."""
    card = {
        "bond_windows_nm": windows(ala2),
        "constraint_lengths_nm": xh_lengths(ala2),
        "lag_range_ps": [1, 1000],
        "recommended_lag_ps": 10,
    }
    rng = np.random.default_rng(3)
    start = ala2.positions + rng.normal(scale=0.001, size=(7, ala2.n_atoms, 3))
    return ScoreModel(Faulty(ala2.n_atoms, 0.5), ala2, card, start)


def rolled(model, steps, frames=None, **settings):
    rollout = Rollout(model, RolloutSettings(**settings), frames)
    return np.array([rollout.advance() for _ in range(steps)]), rollout


# -- the noise -----------------------------------------------------------------------------------


def test_rows_of_noise_do_not_depend_on_the_company():
    rows = torch.arange(300)
    whole = standard_normal_rows(4, 2**33 + 1, 2, rows, 66)
    some = torch.tensor([299, 0, 7, 8])
    assert torch.equal(standard_normal_rows(4, 2**33 + 1, 2, some, 66), whole[some])
    assert standard_normal_rows(4, 1, 0, rows[:0], 66).shape == (0, 66)
    assert standard_normal_rows(4, 1, 0, rows, 0).shape == (300, 0)
    values = whole.double().numpy()
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / values.size)
    assert len(np.unique(whole.numpy(), axis=0)) == 300


def test_seed_step_and_try_change_the_noise_of_a_row():
    rows = torch.arange(3)
    seen = [
        standard_normal_rows(seed, step, attempt, rows, 8)
        for seed in (1, 2)
        for step in (0, 1)
        for attempt in (0, 1)
    ]
    seen.append(standard_normal(1, 0, 0, 3, 8, torch.device("cpu")))  # a mixed run's
    assert len({tuple(z.flatten().tolist()) for z in seen}) == len(seen)


# -- known answers -------------------------------------------------------------------------------


def test_ornstein_uhlenbeck_has_its_variance_and_its_correlation():
    tau, sigma, lag, chains, steps = 10.0, 0.05, 5.0, 1000, 10
    model = ScoreModel(OrnsteinUhlenbeck(2, tau, sigma), CHAIN)
    frames, rollout = rolled(model, steps, CHAIN.positions[None], chains=chains, lag_ps=lag)
    vector = (frames[:, :, 1] - frames[:, :, 0]).astype(np.float64)
    a = np.exp(-lag / tau)
    # From the fixed start the mean decays and the variance grows as the process prescribes.
    for k in (1, 3, steps):
        spread = 2 * sigma**2 * (1 - a ** (2 * k))
        error = np.sqrt(spread / chains)
        np.testing.assert_allclose(
            vector[k - 1].mean(axis=0), [0.12 * a**k, 0, 0], atol=4.5 * error
        )
        np.testing.assert_allclose(
            vector[k - 1].var(axis=0), spread, rtol=4.5 * np.sqrt(2 / chains)
        )
    last, before = vector[-1], vector[-3]
    correlation = (last * before).mean() / (before**2).mean()
    assert abs(correlation - a**2) < 4.5 / np.sqrt(3 * chains)
    assert rollout.statistics()["jumps"] == chains * steps
    assert np.abs(frames.mean(axis=2)).max() < 1e-7


def test_identity_stays(ala2):
    model = ScoreModel(Identity(ala2.n_atoms), ala2)
    frames, rollout = rolled(model, 3, ala2.positions[None] + 4, chains=15)
    expected = (ala2.positions - ala2.positions.mean(axis=0)).astype(np.float32)
    assert frames.shape == (3, 15, ala2.n_atoms, 3)
    np.testing.assert_allclose(frames, np.broadcast_to(expected, frames.shape), atol=1e-7)
    assert rollout.step_number == 3
    assert rollout.statistics()["fallbacks"] == 0


def test_shifts_are_taken_out(ala2):
    model = ScoreModel(Shift(ala2.n_atoms, (0.1, 0.0, 0.0)), ala2)
    frames, _ = rolled(model, 40, ala2.positions[None], chains=2)
    assert np.abs(frames.mean(axis=2)).max() < 1e-6


def test_one_step_is_the_jump_of_a_mixed_run(jitter, ala2):
    """The same proposal, gates and constraints as the module that OpenMM runs."""
    gates = build_gates(ala2, jitter.max_displacement, jitter.bond_windows)
    rollout = Rollout(jitter, RolloutSettings(chains=20, max_tries=1))
    before = rollout.frames
    after = rollout.advance()

    class Fixed(Propagator):
        """Hands the noise of one chain to the kernel."""

        def __init__(self, row):
            super().__init__(ala2.n_atoms, 0)
            self.inner = jitter.propagator
            self.noise = standard_normal_rows(
                1, 0, 0, torch.tensor([row]), jitter.propagator.noise_size
            )

        def forward(self, frame, lag, noise):
            return self.inner(frame, lag, self.noise)

    outcomes = []
    for row in range(20):
        jump = Jump(Fixed(row), ala2, gates, jitter.constraint_lengths)
        given = torch.tensor(before[row], dtype=torch.float64)
        no_box = torch.zeros(3, 3, dtype=torch.float64)
        moved, status = jump(given, no_box, 0, 0, 1, 1, 10.0, 1e30)
        landed = (given + moved).numpy()
        np.testing.assert_allclose(after[row], landed - landed.mean(axis=0), atol=1e-7)
        accepted, causes = read_status(int(status))
        outcomes.append("accepted" if accepted else next(k for k, n in causes.items() if n))
    assert {"accepted", "bonds"} == set(outcomes)
    counts = rollout.statistics()
    assert counts["rejections"]["bonds"] == counts["fallbacks"] == outcomes.count("bonds")


# -- failures ------------------------------------------------------------------------------------


def test_failing_draws_are_counted_redrawn_and_given_up(ala2):
    threshold, chains, steps, tries = 0.5, 200, 4, 2
    card = {"bond_windows_nm": windows(ala2)}
    model = ScoreModel(Faulty(ala2.n_atoms, threshold), ala2, card)
    rollout = Rollout(
        model, RolloutSettings(chains=chains, max_tries=tries, seed=8), ala2.positions[None]
    )
    stayed = 0
    for _ in range(steps):
        before = rollout.frames
        stayed += (rollout.advance() == before).all(axis=(1, 2)).sum()
    # What the noise says must have happened.
    rows = torch.arange(chains)
    first = second = both = 0
    for step in range(steps):
        z = [standard_normal_rows(8, step, k, rows, 3 * ala2.n_atoms)[:, 0] for k in range(tries)]
        bad = [(value > threshold) for value in z]
        first += int(bad[0].sum())
        both += int((bad[0] & bad[1]).sum())
    second = first
    counts = rollout.statistics()
    assert both > 50
    assert counts["fallbacks"] == stayed == both
    assert counts["first_draw_failures"] == first
    assert counts["redraws"] == second
    assert counts["rejections"] == {
        "nonfinite": 0,
        "displacement": 0,
        "bonds": first + both,
        "chirality": 0,
    } | {name: 0 for name in counts["rejections"].keys() - {"bonds"}}
    assert counts["draws"] == chains * steps + counts["redraws"]
    assert counts["jumps"] == chains * steps - counts["fallbacks"]


def test_gates_are_asked_in_order_and_flips_are_counted_whatever_failed(ala2):
    stereo = int(np.flatnonzero(ala2.handedness.stereo)[0])
    assert ala2.handedness.stereo[stereo]

    class Bad(Propagator):
        def __init__(self):
            super().__init__(ala2.n_atoms, 1)

        def forward(self, frame, lag, noise):
            z = noise.reshape(-1, 1, 1)
            mirrored = frame * torch.tensor([1.0, 1.0, -1.0])
            out = torch.where(z > 0, mirrored, frame)
            out = torch.where(z > 1, mirrored * 1.5, out)  # bonds fail before chirality
            out = torch.where((z <= 0) & (z > -0.25), frame * 0.9, out)
            out = torch.where(z <= -0.25, frame * 1.03, out)
            out = torch.where(z <= -0.375, frame * 0.97, out)
            out = torch.where(z < -0.5, frame + 90.0, out)
            return torch.where(z < -1, frame * float("nan"), out)

    far = float(np.linalg.norm(ala2.positions[0] - ala2.positions[-1]))
    card = {
        "bond_windows_nm": windows(ala2, 0.07, 0.2),
        "contact_distances_nm": [[0, ala2.n_atoms - 1, 0.95 * far]],
        # Two things to ask of the same pair: what is too long for one passes the other.
        "angle_windows_nm": [[0, ala2.n_atoms - 1, 0.98 * far, 1.05 * far]],
        "torsion_windows_nm": [[0, ala2.n_atoms - 1, 0.9 * far, 1.02 * far]],
    }
    rollout = Rollout(
        ScoreModel(Bad(), ala2, card),
        RolloutSettings(chains=200, max_tries=1),
        ala2.positions[None],
    )
    rollout.advance()
    z = standard_normal_rows(1, 0, 0, torch.arange(200), 1)[:, 0]
    counts = rollout.statistics()
    assert counts["rejections"]["nonfinite"] == int((z < -1).sum())
    assert counts["rejections"]["displacement"] == int(((z < -0.5) & (z >= -1)).sum())
    assert counts["rejections"]["bonds"] == int((z > 1).sum())
    assert counts["rejections"]["chirality"] == int(((z > 0) & (z <= 1)).sum())
    assert counts["rejections"]["contacts"] == int(((z > -0.25) & (z <= 0)).sum())
    assert counts["rejections"]["angles"] == int(((z >= -0.5) & (z <= -0.375)).sum())
    assert counts["rejections"]["torsions"] == int(((z > -0.375) & (z <= -0.25)).sum())
    assert counts["chirality_flips"] == int((z > 0).sum())
    assert min(counts["rejections"].values()) > 4


def test_equivalent_atoms_are_put_back(ala2):
    hand = ala2.handedness
    row = int(np.flatnonzero(~hand.stereo)[0])
    rollout = Rollout(
        ScoreModel(Swapping(hand.swaps[row]), ala2),
        RolloutSettings(chains=100, max_tries=20),
        ala2.positions[None],
    )
    start = rollout.frames
    np.testing.assert_allclose(rollout.advance(), start, atol=1e-7)
    z = standard_normal_rows(1, 0, 0, torch.arange(100), 1)[:, 0]
    counts = rollout.statistics()
    assert counts["equivalent_swaps"] >= int(((z > 0) & (z <= 1)).sum()) > 10
    assert counts["rejections"]["chirality"] >= int((z > 1).sum()) > 5
    # A start whose methyl hydrogens are numbered the other way round is the same start.
    again = Rollout(
        ScoreModel(Identity(ala2.n_atoms), ala2), None, ala2.positions[hand.swaps[row]][None]
    )
    np.testing.assert_allclose(again.frames[0], start[0], atol=1e-7)


def test_bonds_to_hydrogen_are_exact(jitter, ala2):
    frames, _ = rolled(jitter, 5, chains=30)
    for heavy, hydrogen, length in jitter.constraint_lengths:
        found = np.linalg.norm((frames[:, :, hydrogen] - frames[:, :, heavy]).astype(float), axis=2)
        assert np.abs(found - length).max() < 2e-7  # float32 coordinates
    i, j = next((i, j) for i, j in ala2.bonds if 1 not in np.array(ala2.atomic_numbers)[[i, j]])
    free = np.linalg.norm(frames[:, :, i] - frames[:, :, j], axis=2)
    assert free.std() > 1e-4


def test_a_propagator_that_breaks_the_contract(ala2):
    rollout = Rollout(ScoreModel(Wrong(ala2.n_atoms), ala2), None, ala2.positions[None])
    with pytest.raises(JumpError, match="wrong dtype"):
        rollout.advance()


# -- independence and restart --------------------------------------------------------------------


def test_chains_depend_on_neither_batch_nor_company(jitter):
    whole, _ = rolled(jitter, 4, chains=60)
    for settings in ({"chains": 60, "batch": 7}, {"chains": 9}, {"chains": 60, "batch": 1}):
        some, _ = rolled(jitter, 4, **settings)
        np.testing.assert_allclose(some, whole[:, : some.shape[1]], atol=1e-6)
    other, _ = rolled(jitter, 4, chains=60, seed=2)
    assert np.abs(other - whole).max() > 1e-3


def test_starts_are_spread_over_the_frames(jitter, ala2):
    start = Rollout(jitter, RolloutSettings(chains=17)).frames
    own = [
        Rollout(jitter, RolloutSettings(chains=1), f[None]).frames[0] for f in jitter.start_frames
    ]
    which = [int(np.argmin([np.abs(f - o).max() for o in own])) for f in start]
    assert sorted(which[:7]) == sorted(which[7:14]) == list(range(7))
    assert len(set(which[14:])) == 3
    assert np.array_equal(Rollout(jitter, RolloutSettings(chains=5)).frames, start[:5])
    other = Rollout(jitter, RolloutSettings(chains=17, seed=9)).frames
    assert not np.array_equal(other, start)


def test_state_goes_on_exactly(jitter):
    frames, whole = rolled(jitter, 6, chains=40)
    _, half = rolled(jitter, 3, chains=40)
    state = half.state_dict()
    state = {"frames": state.pop("frames"), **json.loads(json.dumps(state))}
    again = Rollout(jitter, RolloutSettings(chains=40))
    again.load_state_dict(state)
    assert np.array_equal(again.frames, frames[2])
    for k in (3, 4, 5):
        assert np.array_equal(again.advance(), frames[k])
    assert again.statistics() | {"seconds": 0} == whole.statistics() | {"seconds": 0}
    with pytest.raises(ValueError, match="belongs to seed = 1, this rollout has 2"):
        Rollout(jitter, RolloutSettings(chains=40, seed=2)).load_state_dict(state)
    with pytest.raises(ValueError, match="frames of shape"):
        Rollout(jitter, RolloutSettings(chains=41)).load_state_dict(state)
    with pytest.raises(ValueError, match="state lacks step"):
        again.load_state_dict({k: v for k, v in state.items() if k != "step"})


# -- files ---------------------------------------------------------------------------------------

SETTINGS = RolloutSettings(chains=12, steps=9, seed=5)


@pytest.mark.parametrize("format", ["xtc", "h5"])
def test_trajectory_holds_what_was_computed(jitter, tmp_path, format):
    import h5py
    import mdtraj

    frames, rollout = rolled(jitter, 9, chains=12, seed=5)
    summary = run_rollout(jitter, tmp_path, SETTINGS, format=format, every=2)
    recorded = frames[1::2]
    tolerance = 0.00051 if format == "xtc" else 0.0
    found = read_rollout(tmp_path)
    chains = rollout_chains(tmp_path)
    assert len(chains) == SETTINGS.chains
    np.testing.assert_array_equal(np.stack([chain.xyz for chain in chains], axis=1), found)
    lag, every = (
        json.loads((tmp_path / "rollout.json").read_text())[k] for k in ("lag_ps", "every")
    )
    np.testing.assert_allclose(chains[3].time, lag * every * np.arange(1, len(found) + 1))
    assert found.shape == (4, 12, *recorded.shape[2:])
    np.testing.assert_allclose(found, recorded, rtol=0, atol=tolerance)
    topology = mdtraj.load_topology(str(tmp_path / "topology.pdb"))
    molecule = jitter.molecules[0]
    assert [a.name for a in topology.atoms] == list(molecule.atom_names)
    assert {(b[0].index, b[1].index) for b in topology.bonds} == set(molecule.bonds)
    times = np.repeat([20.0, 40.0, 60.0, 80.0], 12)
    if format == "xtc":
        trajectory = mdtraj.load(str(tmp_path / "trajectory.xtc"), top=topology)
        np.testing.assert_array_equal(trajectory.time, times)
        np.testing.assert_allclose(
            trajectory.xyz.reshape(recorded.shape), recorded, rtol=0, atol=tolerance
        )
        assert trajectory.unitcell_lengths is None
    else:
        with h5py.File(tmp_path / "trajectory.h5") as file:
            np.testing.assert_array_equal(file["time"], times)
            assert file["coordinates"].attrs["units"] == b"nanometers"
            content = json.loads(file["topology"][0])
            names = [a["name"] for r in content["chains"][0]["residues"] for a in r["atoms"]]
            assert names == list(molecule.atom_names)
    assert summary == json.loads((tmp_path / "rollout.json").read_text())
    counted = rollout.statistics()
    assert {k: summary[k] for k in counted if k != "seconds"} == {
        k: v for k, v in counted.items() if k != "seconds"
    }
    assert (summary["chains"], summary["steps"], summary["frames"]) == (12, 9, 48)
    assert summary["complete"]
    assert summary["lag_ps"] == 10.0
    assert summary["gate_failure_fraction"] == pytest.approx(
        sum(counted["rejections"].values()) / counted["draws"]
    )
    assert summary["jumps_per_second"] == pytest.approx(summary["jumps"] / summary["seconds"])
    assert summary["effective_ns_per_day"] == pytest.approx(
        summary["jumps_per_second"] * 0.01 * 86400
    )
    files = {"topology.pdb", "rollout.json", "checkpoint.npz", f"trajectory.{format}"}
    assert {f.name for f in tmp_path.iterdir()} == files


def test_hdf5_opens_with_mdtraj(jitter, tmp_path):
    pytest.importorskip("tables")
    import mdtraj

    run_rollout(jitter, tmp_path, SETTINGS, format="h5")
    trajectory = mdtraj.load(str(tmp_path / "trajectory.h5"))
    np.testing.assert_array_equal(trajectory.xyz, read_rollout(tmp_path).reshape(108, -1, 3))
    assert {(b[0].index, b[1].index) for b in trajectory.topology.bonds} == set(
        jitter.molecules[0].bonds
    )


LONG = RolloutSettings(chains=3, steps=1000)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def long_run(ala2, tmp_path_factory):
    """A bundle, and what a run with it gives that nobody stops."""
    folder = tmp_path_factory.mktemp("long")
    kernel = OrnsteinUhlenbeck(ala2.n_atoms, 1000.0, 0.05)
    # Bonds that break now and then, so that there are redraws to be repeated.
    card = {"bond_windows_nm": windows(ala2, 0.01, 0.31)}
    ScoreModel(kernel, ala2, card, ala2.positions[None]).save(folder / "model.safetensors")
    summary = run_rollout(folder / "model.safetensors", folder / "whole", LONG)
    return folder / "model.safetensors", summary, (folder / "whole/trajectory.xtc").read_bytes()


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_command_goes_on_bit_for_bit(long_run, tmp_path):
    bundle, whole, trajectory = long_run
    folder = tmp_path / "out"
    process = launch(
        *("rollout", bundle, "-o", folder, "--chains", 3, "--steps", 1000, "--device", "cpu"),
        "--json",
        folder=tmp_path,
        changes={
            **{"openmm_sd.rollout.driver._REPORT_SECONDS": 0.0},
            **{"openmm_sd.cli.progress._INTERVAL": 0.0},
        },
    )
    while "step 3 of 1000" not in process.stderr:
        assert process.running, process.stderr
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code = process.wait(60)
    summary = json.loads((folder / "rollout.json").read_text())
    assert code == 130, process.stderr
    assert process.stdout == ""
    assert "stopped" in process.stderr
    assert 0 < summary["steps_done"] < 1000
    assert not summary["complete"]
    found = run_rollout(bundle, folder, LONG)
    assert found["complete"]
    assert found["redraws"] == whole["redraws"] > 0
    assert (folder / "trajectory.xtc").read_bytes() == trajectory


def test_a_step_is_given_up_between_batches(jitter):
    settings = {"chains": 40, "batch": 8, "seed": 3}
    expected, _ = rolled(jitter, 3, **settings)
    rollout, asked = Rollout(jitter, RolloutSettings(**settings)), []

    def third():
        asked.append(True)
        return len(asked) == 3

    rollout.advance()
    before = rollout.frames
    assert not rollout.step(third)
    assert len(asked) == 3
    np.testing.assert_array_equal(rollout.frames, before)
    np.testing.assert_array_equal([before, rollout.advance(), rollout.advance()], expected)


def test_progress_is_said_within_a_step(jitter, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_REPORT_SECONDS", 0.0)
    said = []
    settings = RolloutSettings(chains=40, steps=1, batch=10)
    run_rollout(jitter, tmp_path, settings, progress=lambda *words: said.append(words))
    steps = [how_far.split(" of ")[0] for what, how_far in said if what == "rollout"]
    assert steps == ["step 0", "step 0.25", "step 0.5", "step 0.75", "step 1"]


def test_stopping_after_some_minutes(jitter, tmp_path):
    summary = run_rollout(jitter, tmp_path, SETTINGS, minutes=1e-9, format="h5")
    assert (summary["complete"], summary["steps_done"]) == (False, 1)
    assert read_rollout(tmp_path).shape[0] == 1
    assert (tmp_path / "trajectory.h5").exists()
    summary = run_rollout(jitter, tmp_path, SETTINGS, format="h5")
    assert (summary["complete"], summary["steps_done"]) == (True, 9)
    np.testing.assert_array_equal(read_rollout(tmp_path), rolled(jitter, 9, chains=12, seed=5)[0])
    before = (tmp_path / "trajectory.h5").stat().st_mtime_ns
    assert run_rollout(jitter, tmp_path, SETTINGS, format="h5") == summary
    assert (tmp_path / "trajectory.h5").stat().st_mtime_ns == before


def resident(name):
    """VmRSS or VmHWM, the peak, of this process, MB."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


def print_memory(bundle, folder, chains):
    """How much memory the second of two rollouts takes, MB."""
    model = ScoreModel.load(bundle)
    start = np.repeat(model.molecules[0].positions[None], 1000, axis=0)
    for count in (1000, chains):
        before = resident("VmRSS")
        run_rollout(
            model,
            folder / str(count),
            RolloutSettings(chains=count, steps=1),
            start=start,
        )
    print(resident("VmHWM") - before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_many_chains(on_disk, tmp_path):
    """Some copies of all frames, and not of all that is made on the way to them."""
    chains, bundle = 50_000, on_disk / "model.safetensors"
    program = Program(functools.partial(print_memory, bundle, tmp_path, chains), tmp_path)
    assert program.wait(60) == 0, program.stderr
    frames = chains * 22 * 12 / 1e6
    assert float(program.stdout) < 7.5 * frames


@pytest.mark.parametrize("format", ["xtc", "h5"])
def test_a_full_disk_is_said_and_the_same_command_goes_on(on_disk, tmp_path, format):
    (tmp_path / "start.pdb").write_text(pdb_text(CHAIN.to_topology(), CHAIN.positions))
    ScoreModel(OrnsteinUhlenbeck(2, 1000.0, 0.01), CHAIN).save(tmp_path / "model.safetensors")
    words = ["rollout", tmp_path / "model.safetensors", "--start", tmp_path / "start.pdb"]
    words += ["--chains", 300, "--steps", 150, "--lag", 10, "--format", format, "-o"]
    full = launch(*words, tmp_path / "out", folder=tmp_path, largest=900_000)
    assert full.wait(60) == 1
    last = full.stderr.strip().splitlines()[-1]
    assert "cannot write" in last
    assert "the same command resumes from there" in last
    assert main([*map(str, words), str(tmp_path / "out")]) == 0
    assert main([*map(str, words), str(tmp_path / "whole")]) == 0
    name = f"trajectory.{format}"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_rollout_of_which_files_are_gone(jitter, tmp_path):
    summary = run_rollout(jitter, tmp_path, SETTINGS)
    for content in (None, "", "[]"):
        (tmp_path / "rollout.json").unlink()
        if content is not None:
            (tmp_path / "rollout.json").write_text(content)
        assert run_rollout(jitter, tmp_path, SETTINGS) == summary
        assert json.loads((tmp_path / "rollout.json").read_text()) == summary
    (tmp_path / "trajectory.xtc").unlink()
    with pytest.raises(ValueError, match="trajectory.xtc is missing, and the rollout was finished"):
        run_rollout(jitter, tmp_path, SETTINGS)
    (tmp_path / "trajectory.xtc").mkdir()
    write_checkpoint(tmp_path / "checkpoint.npz", frames=np.zeros(3), state={"size": 3})
    with pytest.raises(ValueError, match="checkpoint.npz is damaged: it lacks 'arguments'"):
        run_rollout(jitter, tmp_path, SETTINGS)


def test_an_output_that_is_something_else_is_left_alone(jitter, tmp_path):
    folder = tmp_path / "out"
    run_rollout(jitter, folder, SETTINGS)
    for change in ({"seed": 6}, {"chains": 13}, {"steps": 10}, {"lag_ps": 20.0}, {"batch": 5}):
        with pytest.raises(ValueError, match="other settings") as caught:
            run_rollout(jitter, folder, RolloutSettings(**{**SETTINGS.__dict__, **change}))
        assert next(iter(change)) in str(caught.value)
    with pytest.raises(ValueError, match="other settings .*format 'xtc' there, 'h5' here"):
        run_rollout(jitter, folder, SETTINGS, format="h5")
    other = ScoreModel(
        Faulty(22, 0.6), jitter.molecules[0], jitter.card, start_frames=jitter.start_frames
    )
    other.propagator.hyperparameters = {"threshold": 0.6}
    with pytest.raises(ValueError, match="other settings .*model"):
        run_rollout(other, folder, SETTINGS)
    with pytest.raises(ValueError, match="other settings .*start"):
        run_rollout(jitter, folder, SETTINGS, start=jitter.start_frames[:3])

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds files but no rollout .thesis.txt"):
        run_rollout(jitter, tmp_path / "full", SETTINGS)
    with pytest.raises(ValueError, match="is a file, wanted is a directory"):
        run_rollout(jitter, tmp_path / "full" / "thesis.txt", SETTINGS)
    with pytest.raises(ValueError, match="cannot write to"):
        run_rollout(jitter, tmp_path / "full" / "thesis.txt" / "out", SETTINGS)
    with pytest.raises(ValueError, match="holds no rollout"):
        read_rollout(tmp_path / "full")
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["thesis.txt"]

    with locked(folder, "rollout"), pytest.raises(ValueError, match="another rollout is writing"):
        run_rollout(jitter, folder, SETTINGS)
    (folder / "checkpoint.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="checkpoint.npz is damaged: it is not a NumPy archive"):
        run_rollout(jitter, folder, SETTINGS)


def test_a_trajectory_that_was_cut_is_refused(jitter, tmp_path):
    run_rollout(jitter, tmp_path, SETTINGS, minutes=1e-9)
    with open(tmp_path / "trajectory.xtc", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="has 100 bytes, its checkpoint"):
        run_rollout(jitter, tmp_path, SETTINGS)


# -- where chains start --------------------------------------------------------------------------


def _write_pdb(molecule, path):
    from openmm import app, unit

    with open(path, "w", encoding="utf-8") as file:
        app.PDBFile.writeFile(molecule.to_topology(), molecule.positions * unit.nanometer, file)


def test_start_among_waters_broken_across_the_box(ala2, water_box, tmp_path):
    from openmm import app, unit

    vectors = water_box.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)
    box = np.diag([v[i] for i, v in enumerate(vectors)])
    solute = water_box.positions[: ala2.n_atoms]
    broken = water_box.positions - solute.mean(axis=0)
    broken -= np.floor(broken / box.diagonal()) * box.diagonal()
    assert np.ptp(broken[: ala2.n_atoms], axis=0).min() > 1.0
    file = tmp_path / "box.pdb"
    with open(file, "w", encoding="utf-8") as stream:
        app.PDBFile.writeFile(water_box.topology, broken * unit.nanometer, stream)
    frames = read_start_frames(file, ala2)
    assert frames.shape == (1, ala2.n_atoms, 3)
    expected = water_box.positions[: ala2.n_atoms]
    found = Rollout(ScoreModel(Identity(ala2.n_atoms), ala2), None, frames).frames[0]
    plain = Rollout(ScoreModel(Identity(ala2.n_atoms), ala2), None, expected[None]).frames[0]
    np.testing.assert_allclose(found, plain, atol=2e-4)  # the PDB file has 1e-4 nm


def test_start_from_a_trajectory_in_another_numbering(ala2, tmp_path):
    import mdtraj

    rng = np.random.default_rng(1)
    order = rng.permutation(ala2.n_atoms)
    place = np.argsort(order)
    n = ala2.n_atoms
    other = Molecule(
        "ligand",
        tuple(ala2.atomic_numbers[i] for i in order),
        tuple((int(place[i]), int(place[j])) for i, j in ala2.bonds),
        tuple(f"X{k}" for k in range(n)),
        ("LIG",) * n,
        ("1",) * n,
        ala2.positions[order],
    )
    _write_pdb(other, tmp_path / "top.pdb")
    xyz = ala2.positions + rng.normal(scale=0.002, size=(5, n, 3))
    topology = mdtraj.Topology.from_openmm(other.to_topology())
    mdtraj.Trajectory(xyz[:, order], topology).save_xtc(str(tmp_path / "run.xtc"))
    frames = read_start_frames(tmp_path / "run.xtc", ala2, tmp_path / "top.pdb")
    assert frames.shape == xyz.shape
    heavy = list(ala2.heavy)
    np.testing.assert_allclose(frames[:, heavy], xyz[:, heavy], atol=6e-4)
    # Methyl hydrogens may come in another order, which the rollout settles.
    model = ScoreModel(Identity(n), ala2)
    found = Rollout(model, RolloutSettings(chains=5), frames).frames
    expected = Rollout(model, RolloutSettings(chains=5), xyz).frames
    for one, two in zip(found, expected, strict=True):
        distances = np.linalg.norm(one[:, None] - two[None], axis=-1)
        assert distances.min(axis=1).max() < 1.5e-3
        assert model.molecules[0].handedness.relabelling(one).tolist() == list(range(n))
    with pytest.raises(ValueError, match="mdtraj cannot read .*give one"):
        read_start_frames(tmp_path / "run.xtc", ala2)


def test_every_copy_is_a_start(ala2, tmp_path):
    import mdtraj

    one = mdtraj.Topology.from_openmm(ala2.to_topology())
    topology = one.join(one)
    xyz = np.concatenate([ala2.positions, np.add(ala2.positions, [3.0, 0.0, 0.0])])
    mdtraj.Trajectory(xyz[None], topology).save_pdb(str(tmp_path / "two.pdb"))
    frames = read_start_frames(tmp_path / "two.pdb", ala2)
    loaded = mdtraj.load(str(tmp_path / "two.pdb"))
    np.testing.assert_array_equal(read_start_frames(loaded, ala2), frames)
    np.testing.assert_allclose(frames[1] - frames[0], [[3.0, 0.0, 0.0]] * ala2.n_atoms, atol=3e-4)


def test_wrong_starts(jitter, ala2, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_start_frames(tmp_path / "none.pdb", ala2)
    (tmp_path / "text.doc").write_text("hello\n")
    with pytest.raises(ValueError, match="start: mdtraj cannot read"):
        read_start_frames(tmp_path / "text.doc", ala2)
    _write_pdb(ala2, tmp_path / "ala2.pdb")
    with pytest.raises(ValueError, match="does not contain diatomic"):
        read_start_frames(tmp_path / "ala2.pdb", CHAIN)
    mirror = ala2.positions * [1.0, 1.0, -1.0]
    for frames, message in (
        (np.array([ala2.positions, mirror]), "start frame 1 is a mirror image"),
        (np.zeros((2, 3, 3)), r"start frames must have shape \(M, 22, 3\), got \(2, 3, 3\)"),
        (np.full((1, 22, 3), np.inf), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            Rollout(jitter, None, frames)
    with pytest.raises(ValueError, match="carries no start frames"):
        Rollout(ScoreModel(Identity(22), ala2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lag_ps": 2000.0}, "lag is 2000 ps, the model was trained for 1 to 1000 ps"),
        ({"lag_ps": 0.5}, "lag is 0.5 ps, the model was trained for 1 to 1000 ps"),
        ({"lag_ps": 0.0}, "lag_ps must be a positive number"),
        ({"lag_ps": float("nan")}, "lag_ps must be a positive number"),
        ({"chains": 0}, "chains must be a whole number"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"max_tries": 0}, "max_tries must be"),
        ({"batch": True}, "batch must be"),
        ({"device": "abacus"}, "device must be cpu, cuda, cuda:N or auto"),
        ({"device": "meta"}, "device must be cpu, cuda, cuda:N or auto"),
        ({"device": "cuda:99"}, "PyTorch sees"),
    ],
)
def test_wrong_settings(jitter, settings, message):
    with pytest.raises(ValueError, match=message):
        Rollout(jitter, RolloutSettings(**settings))


def test_wrong_arguments_of_a_run(jitter, tmp_path):
    for arguments, message in (
        ({"format": "dcd"}, "format must be one of xtc, h5"),
        ({"every": 10}, "every must be a whole number from 1 to 9"),
        ({"minutes": 0}, "minutes must be a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            run_rollout(jitter, tmp_path / "out", SETTINGS, **arguments)
    assert not (tmp_path / "out").exists()


# -- the command ---------------------------------------------------------------------------------


def test_command(jitter, ala2, tmp_path, capsys):
    bundle = tmp_path / "identity.safetensors"
    ScoreModel(Identity(ala2.n_atoms), ala2, {"lag_range_ps": [1, 100]}, ala2.positions[None]).save(
        bundle
    )
    folder = tmp_path / "out"
    arguments = ["rollout", str(bundle), "-o", str(folder), "--chains", "4", "--steps", "3"]
    assert main([*arguments, "--lag", "50", "--device", "cpu", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((folder / "rollout.json").read_text())
    assert summary["model"]["name"] == str(bundle)
    assert len(summary["model"]["sha256"]) == 64
    assert summary["jumps"] == 12
    assert read_rollout(folder).shape == (3, 4, ala2.n_atoms, 3)
    assert main([*arguments, "--lag", "50", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "4 chains, 3 of 3 steps of 50 ps" in text
    for wrong, message in (
        ([*arguments, "--lag", "500"], "lag is 500 ps, the model was trained for 1 to 100 ps"),
        ([*arguments, "--lag", "20"], "other settings"),
        (["rollout", "no-such-model", "-o", str(folder)], "shipped models"),
        ([*arguments, "--start", str(tmp_path / "none.pdb")], "no such file"),
    ):
        assert main(wrong) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""


def test_peptide_bonds_of_the_shipped_model_stay_trans():
    """An earlier version had four runs with a cis bond in its data, and went there at 100 ps."""
    rollout = Rollout(
        ScoreModel.load("ala2-water"), RolloutSettings(chains=250, lag_ps=100.0, seed=5)
    )
    for _ in range(8):
        frames = rollout.advance()
        for torsion in ((1, 4, 6, 8), (8, 14, 16, 18)):
            assert (np.abs(dihedral(frames, torsion)) > np.pi / 2).all()
    # And no draw had to be turned down for it.
    assert rollout.statistics()["rejections"]["torsions"] == 0
