"""Runs to a directory: exact going on, kills, full disks, signals, formats, and what is refused."""

import csv
import functools
import itertools
import json
import os
import random
import re
import signal
import subprocess
import time

import h5py
import mdtraj
import numpy as np
import openmm
import pandas
import pytest
import torch
from conftest import PDB, Jitter, model_of
from openmm import app, unit
from programs import launch
from small_molecules import ethane

from openmm_sd import Molecule, Propagator, ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis import basins
from openmm_sd.cli import main
from openmm_sd.files.trajectories import FORMATS, dcd_bytes, dcd_header, xtc_frames
from openmm_sd.integrator import programs
from openmm_sd.integrator.notes import dropped_jumps, ensemble_notes
from openmm_sd.model.model import model_digest
from openmm_sd.model.novelty import fit_novelty
from openmm_sd.molecule.torsions import backbone_torsions
from openmm_sd.molecule.whole import make_whole
from openmm_sd.prepare import PreparedBox, PreparedSystem, read_prepared, solvate, write_prepared
from openmm_sd.propagator.kernels import Identity
from openmm_sd.run import RunError, RunSettings, driver, files, fitting_model, run_mixed
from openmm_sd.run.record import read_run
from openmm_sd.run.start import open_start, other_force_field

#: Small steps, short bursts: 12 jumps are 120 MD steps.
COMMON = {
    "lag_ps": 10.0,
    "burst_ps": 0.02,
    "every_ps": 0.014,
    "platform": "Reference",
    "bridge": "pythonforce",
    "seed": 7,
    "settle_ps": 0.01,
    # Plain MD is timed for a share of this.
    "checkpoint_seconds": 5.0,
}
# What differs from run to run.
CHANGING = {"seconds", "wall_clock_s", "effective_ns_per_day", "md_ns_per_day", "parts", "settings"}


class Broken(Propagator):
    """Never gives a frame that passes the gates."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 0)
        self.hyperparameters = {"n_atoms": n_atoms}

    def forward(self, frame, lag, noise):
        return frame * float("nan")


class Late(Jitter):
    """Fails at its fifth call; the first is the check at the start."""

    calls = 0

    def forward(self, *arguments):
        Late.calls += 1
        if Late.calls > 4:
            raise RuntimeError("the network is gone")
        return super().forward(*arguments)


def settings(**changes):
    return RunSettings(**{**COMMON, "jumps": 12, **changes})


@pytest.fixture(scope="module")
def watery(water_box):
    vectors = np.array(water_box.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    return PreparedSystem(water_box.topology, water_box.system(), water_box.positions, vectors)


def same(one, two):
    """Compare the visible files of two runs to the last bit."""
    names = {f.name for f in one.iterdir()}
    assert names == {f.name for f in two.iterdir()}
    assert (one / "log.csv").read_bytes() == (two / "log.csv").read_bytes()
    assert (one / "topology.pdb").read_bytes() == (two / "topology.pdb").read_bytes()
    for name in names & {"trajectory.xtc", "trajectory.dcd", "trajectory.part"}:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    if "trajectory.h5" in names:
        found, wanted = (mdtraj.load(str(f / "trajectory.h5")) for f in (one, two))
        np.testing.assert_array_equal(found.xyz, wanted.xyz)
        np.testing.assert_array_equal(found.time, wanted.time)
        if wanted.unitcell_vectors is not None:
            np.testing.assert_array_equal(found.unitcell_vectors, wanted.unitcell_vectors)


def rows_of(folder):
    """Lines of a run's log."""
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def visible(out, format):
    """Bytes of the log and of the frames, without a DCD file's counts."""
    found = {}
    for name in ("log.csv", "trajectory.part" if format == "h5" else FORMATS[format]):
        file = out / name
        data = file.read_bytes() if file.exists() else b""
        found[name] = data[:8] + data[12:20] + data[24:] if format == "dcd" else data
    return found


def stable(summary):
    return {k: v for k, v in summary.items() if k not in CHANGING}


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(FORMATS))
def test_files_of_a_run(watery, jitter, tmp_path, format):
    said = []
    summary = run_mixed(
        *(jitter, watery, tmp_path / "out", settings(jumps=3, format=format)),
        progress=lambda *words: said.append(words),
    )
    names = {"checkpoint.npz", "log.csv", "start", "summary.json", "topology.pdb"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == {*names, FORMATS[format]}
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary
    assert (summary["jumps_tried"], summary["complete"]) == (3, True)
    assert summary["md_time_ps"] == pytest.approx(0.06)
    assert summary["frames"] == 4
    assert summary["md_ns_per_day"] > 0
    assert summary["effective_ns_per_day"] > 0
    assert set(summary["seconds"]) == {"md", "model", "settle"}
    rows = rows_of(tmp_path / "out")
    assert [int(row["Step"]) for row in rows] == [7, 14, 21, 28]
    times = [float(row["Effective Time (ps)"]) for row in rows]
    top = tmp_path / "out/topology.pdb"
    file = str(tmp_path / "out" / FORMATS[format])
    frames = mdtraj.load(file) if format == "h5" else mdtraj.load(file, top=str(top))
    assert frames.n_frames == 4
    assert frames.n_atoms == watery.system.getNumParticles()
    if format != "dcd":
        np.testing.assert_allclose(frames.time, times, rtol=1e-6)
    np.testing.assert_allclose(frames.unitcell_vectors[0], watery.box_vectors, atol=1e-5)
    bonds = [(a.index, b.index) for a, b in mdtraj.load(str(top)).topology.bonds]
    assert mdtraj.compute_distances(frames, bonds, periodic=False).max() < 0.2
    # The solute is in the middle.
    centre = frames.xyz[:, :22].mean(axis=1) - 0.5 * np.diag(watery.box_vectors)
    assert np.abs(centre).max() < 1e-3
    assert said[-1][0] == "done"
    assert any("[####" in how_far for what, how_far in said if what == "running")


def test_every_frame_says_what_happened_since_the_one_before(watery, ala2, tmp_path):
    model = model_of(Jitter(ala2.n_atoms, 1000.0, 0.02), ala2, temperature_K=300.0)
    score = fit_novelty(ala2, watery.positions[:22] + 0.001 * np.zeros((3, 1, 1)))
    model = ScoreModel(model.propagator, ala2, {"temperature_K": 300.0}, novelty=score)
    out, kept = tmp_path / "out", settings(jumps=6, lag_ps=0.05, format="h5", max_novelty=None)
    looks = itertools.count()
    with pytest.raises(KeyboardInterrupt):
        run_mixed(model, watery, out, kept, stopped=lambda: next(looks) > 14)
    summary = run_mixed(model, watery, out, kept)
    assert summary["parts"] == 2
    table = pandas.read_csv(out / "log.csv")
    for name, total in (("New Jumps", "Jumps"), ("New Fallbacks", "Fallbacks")):
        assert (table[name].cumsum() == table[total]).all()
    assert table["New Jumps"].sum() > 0
    assert (table["Novelty"] > 0).all()
    whole = read_run(out).to_mdtraj().xyz
    centred = torch.tensor(whole - whole.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(table["Novelty"], score(centred), rtol=1e-3)
    with h5py.File(out / "trajectory.h5") as file:
        for name in ("New Jumps", "New Fallbacks", "New Novel", "MD Instead", "Novelty"):
            np.testing.assert_allclose(file[name.lower().replace(" ", "_")], table[name], rtol=1e-5)

    run_mixed(model, watery, tmp_path / "novel", settings(jumps=3, lag_ps=0.05, max_novelty=1e-9))
    table = pandas.read_csv(tmp_path / "novel/log.csv")
    assert (table["New Novel"].cumsum() == table["Novel"]).all()
    # The first burst is ordinary; the bursts of the lags that follow are MD instead of a jump.
    assert list(table["MD Instead"]) == list(table["Last Event"] == "novel")
    assert table["MD Instead"].sum() == len(table) - 1


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_folder_may_have_any_name(vacuum, jitter, ala2, tmp_path, format):
    out = tmp_path / "élan Ω"
    run_mixed(jitter, vacuum, out, settings(jumps=5, format=format))
    angles, _ = read_run(out).look(backbone_torsions(ala2)[0], np.empty(0, dtype=np.int64))
    plain = tmp_path / "plain"
    run_mixed(jitter, vacuum, plain, settings(jumps=5, format=format))
    expected, _ = read_run(plain).look(backbone_torsions(ala2)[0], np.empty(0, dtype=np.int64))
    assert len(angles) >= 5
    np.testing.assert_array_equal(angles, expected)


def test_a_run_is_a_trajectory_and_a_row_of_basins(watery, jitter, tmp_path):
    out = tmp_path / "out"
    run_mixed(jitter, watery, out, settings(jumps=5))
    record = read_run(out)
    own, whole = record.to_mdtraj(), mdtraj.load(out / "trajectory.xtc", top=out / "topology.pdb")
    np.testing.assert_allclose(own.time, record.times_ps, rtol=1e-6)
    np.testing.assert_array_equal(own.xyz, whole.xyz[:, read_run(out).summary["solute_atoms"]])
    (phi,), (psi,) = mdtraj.compute_phi(own)[1].T, mdtraj.compute_psi(own)[1].T
    np.testing.assert_array_equal(record.basins(), basins(phi, psi))
    # Every bond is in the file, not those of residues that are no standard ones only.
    text = (out / "topology.pdb").read_text().splitlines()
    pairs = {
        frozenset((line[6:11], line[k : k + 5]))
        for line in text
        if line.startswith("CONECT")
        for k in range(11, len(line), 5)
    }
    again = app.PDBFile(str(out / "topology.pdb")).topology
    assert len(pairs) == watery.topology.getNumBonds() == again.getNumBonds()


def test_frames_are_what_the_simulation_has(vacuum, ala2, tmp_path):
    """By default one a burst, at its end, before the jump."""
    model = model_of(Identity(ala2.n_atoms), ala2, temperature_K=300.0)
    run_mixed(
        model, vacuum, tmp_path / "out", settings(jumps=3, every_ps=None, format="h5", seed=3)
    )
    found = mdtraj.load(str(tmp_path / "out/trajectory.h5"))
    system = openmm.XmlSerializer.clone(vacuum.system)
    integrator = ScoreDynamicsIntegrator(
        model, 300, 1, 0.002, burst=0.02, lag=10, bridge="pythonforce", seed=3
    )
    integrator.attach(system, vacuum.topology)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions(vacuum.positions)
    context.setVelocitiesToTemperature(300, 3)
    for k in range(3):
        integrator.step(10)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        np.testing.assert_array_equal(found.xyz[k], np.asarray(x, dtype=np.float32))
        assert found.time[k] == pytest.approx(integrator.getEffectiveTime()._value)


def test_solute_only(watery, jitter, tmp_path):
    summary = run_mixed(
        jitter, watery, tmp_path / "out", settings(jumps=2, solute_only=True, every_ps=None)
    )
    assert summary["atoms_saved"] == 22
    frames = mdtraj.load(
        str(tmp_path / "out/trajectory.xtc"), top=str(tmp_path / "out/topology.pdb")
    )
    assert (frames.n_frames, frames.n_atoms) == (2, 22)
    assert len(list(frames.topology.bonds)) == 21


def test_dcd_is_what_openmm_writes(watery, tmp_path):
    path = tmp_path / "theirs.dcd"
    with open(path, "wb+") as stream:
        file = app.DCDFile(stream, watery.topology, 0.002)
        file.writeModel(watery.positions, periodicBoxVectors=watery.box_vectors * unit.nanometer)
    header = len(dcd_header(1, 1, True, 1.0))
    mine = dcd_bytes(watery.positions[None].astype(np.float32), watery.box_vectors[None])
    theirs = path.read_bytes()[header:]
    assert mine[56:].__len__() == theirs[56:].__len__()
    values = [np.frombuffer(b[4:52], dtype="<f8") for b in (mine, theirs)]
    np.testing.assert_allclose(*values, atol=1e-12)
    values = [np.frombuffer(b[56:], dtype="<f4") for b in (mine, theirs)]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_xtc_that_was_cut_is_noticed(vacuum, jitter, tmp_path):
    run_mixed(jitter, vacuum, tmp_path / "out", settings())
    data = (tmp_path / "out/trajectory.xtc").read_bytes()
    assert b"".join(xtc_frames(data)) == data
    for cut in (1, 10, 60, 100):
        with pytest.raises(ValueError, match="cut off"):
            xtc_frames(data[:-cut])


# -- going on --------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows it is done."""


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_finished_run_is_extended(watery, jitter, tmp_path, format):
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    expected = run_mixed(jitter, watery, whole, settings(jumps=6, format=format))
    first = run_mixed(jitter, watery, longer, settings(jumps=2, format=format))
    said = []
    again = run_mixed(
        *(jitter, watery, longer, settings(jumps=2, format=format)),
        progress=lambda *words: said.append(words),
    )
    assert stable(again) == stable(first)
    assert said[-1][0] == "done before"
    found = run_mixed(jitter, watery, longer, settings(jumps=6, format=format))
    assert (found["parts"], found["jumps_tried"]) == (2, 6)
    assert stable(found) == stable(expected)
    same(longer, whole)


@pytest.mark.parametrize(
    ("length", "key", "value"),
    [("md_ps", "md_time_ps", 0.1), ("effective_ns", "effective_time_ps", 25.0)],
)
def test_other_lengths(vacuum, jitter, tmp_path, length, key, value):
    given = value / 1000.0 if length == "effective_ns" else value
    summary = run_mixed(jitter, vacuum, tmp_path / "out", settings(jumps=None, **{length: given}))
    assert value - 1e-9 <= summary[key] < value + 10.2
    assert summary["complete"]
    if length == "md_ps":
        assert summary[key] == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "short", "full", "ends"),
    [("md_ps", 0.0355, 0.2, 0.036), ("effective_ns", 0.0300695, 0.06, 30.070)],
)
def test_a_run_ends_where_its_length_is_reached(vacuum, jitter, tmp_path, name, short, full, ends):
    """Between two frames and two jumps; going on from there is as if it had not ended."""
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    first = run_mixed(jitter, vacuum, longer, settings(jumps=None, **{name: short}))
    assert first["complete"]
    clock = "md_time_ps" if name == "md_ps" else "effective_time_ps"
    assert first[clock] == pytest.approx(ends, abs=1e-6)
    assert round(first["md_time_ps"] / 0.002) % 10 in (5, 8)
    found = run_mixed(jitter, vacuum, longer, settings(jumps=None, **{name: full}))
    expected = run_mixed(jitter, vacuum, whole, settings(jumps=None, **{name: full}))
    assert stable(found) == stable(expected)
    same(longer, whole)


def test_another_platform_goes_on_from_the_portable_state(vacuum, jitter, tmp_path, monkeypatch):
    stop_after(monkeypatch, 50)
    with pytest.raises(KeyboardInterrupt):
        run_mixed(jitter, vacuum, tmp_path / "out", settings())
    monkeypatch.undo()
    before = (tmp_path / "out/log.csv").read_bytes()
    summary = run_mixed(jitter, vacuum, tmp_path / "out", settings(platform="CPU"))
    assert summary["platform"] == "CPU"
    assert summary["complete"]
    assert summary["seed"] == 7
    # The noise of the jumps goes on; that of the thermostat starts from another seed.
    assert re.search(r'sd_seed="7"', files.read_checkpoint(tmp_path / "out").portable)
    (note,) = [note for note in summary["notes"] if "portable state" in note]
    assert "Reference there, CPU here" in note
    assert (tmp_path / "out/log.csv").read_bytes().startswith(before)
    assert summary["jumps_tried"] == 12
    rows = rows_of(tmp_path / "out")
    assert [int(row["Step"]) for row in rows] == list(range(7, 120, 7))


def stop_after(monkeypatch, step):
    """A request to stop that comes at an MD step."""
    advance = driver._Run._advance

    def advancing(self, steps):
        advance(self, steps)
        if self._steps >= step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(driver._Run, "_advance", advancing)


@pytest.mark.parametrize("format", list(FORMATS))
def test_a_stopped_run_has_all_its_frames_on_the_disk(
    vacuum, jitter, tmp_path, monkeypatch, format
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_mixed(jitter, vacuum, whole, settings(format=format))
    said = []
    stop_after(monkeypatch, 60)
    with pytest.raises(KeyboardInterrupt):
        run_mixed(
            *(jitter, vacuum, out, settings(format=format)),
            progress=lambda *words: said.append(words),
        )
    monkeypatch.undo()
    assert said[-1][0] == "stopped"
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["frames"] == len((out / "log.csv").read_text().splitlines()) - 1 == 8
    top = str(out / "topology.pdb")
    file = str(out / FORMATS[format])
    frames = mdtraj.load(file) if format == "h5" else mdtraj.load(file, top=top)
    assert frames.n_frames == 8
    run_mixed(jitter, vacuum, out, settings(format=format))
    same(out, whole)


def test_what_does_not_fit_is_left_alone(vacuum, watery, jitter, ala2, tmp_path):
    out = tmp_path / "out"
    run_mixed(jitter, vacuum, out, settings())
    before = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    changes = {"seed": 8, "lag_ps": 11.0, "burst_ps": 0.04, "step_fs": 1.0, "every_ps": 0.02,
               "temperature_K": 300.2, "friction_per_ps": 2.0, "format": "dcd",
               "solute_only": True, "max_tries": 3, "candidates": 2, "settle_steps": 0,
               "settle_ps": 0.02, "max_energy_rise": None, "max_energy_sigma": 5.0}  # fmt: skip
    for name, value in changes.items():
        shown = {"step_fs": "step_ps"}.get(name, name)
        with pytest.raises(ValueError, match=f"other settings .*{shown} .* there, .* here"):
            run_mixed(jitter, vacuum, out, settings(**{name: value}))
    with pytest.raises(ValueError, match="other settings .*start"):
        run_mixed(jitter, watery, out, settings())
    other = model_of(Identity(ala2.n_atoms), ala2, temperature_K=300.0)
    with pytest.raises(ValueError, match="other settings .*model"):
        run_mixed(other, vacuum, out, settings())
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == before

    with driver.locked(out, "run"), pytest.raises(ValueError, match="another run is writing"):
        run_mixed(jitter, vacuum, out, settings())
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds files but no run .thesis.txt"):
        run_mixed(jitter, vacuum, full, settings())
    assert [f.name for f in full.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        run_mixed(jitter, vacuum, full / "thesis.txt", settings())


def test_files_that_were_changed_are_refused(vacuum, jitter, tmp_path):
    out = tmp_path / "out"
    run_mixed(jitter, vacuum, out, settings(checkpoint_seconds=1e-9))
    longer = settings(jumps=20)
    trajectory = (out / "trajectory.xtc").read_bytes()
    for changed in (trajectory[:100], trajectory + b"more"):
        (out / "trajectory.xtc").write_bytes(changed)
        with pytest.raises(ValueError, match="changed after the run was stopped"):
            run_mixed(jitter, vacuum, out, longer)
        assert (out / "trajectory.xtc").read_bytes() == changed
    (out / "trajectory.xtc").unlink()
    with pytest.raises(ValueError, match="is missing, .* changed after the run was stopped"):
        run_mixed(jitter, vacuum, out, longer)
    assert not (out / "trajectory.xtc").exists()
    (out / "trajectory.xtc").write_bytes(trajectory)
    checkpoint = (out / "checkpoint.npz").read_bytes()
    middle = len(checkpoint) // 2
    flipped = checkpoint[:middle] + bytes([checkpoint[middle] ^ 1]) + checkpoint[middle + 1 :]
    for damaged in (b"no archive", checkpoint[:-200], flipped, b""):
        (out / "checkpoint.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint.npz is damaged") as caught:
            run_mixed(jitter, vacuum, out, longer)
        assert "pickle" not in str(caught.value)
    (out / "checkpoint.npz").write_bytes(checkpoint)
    # What a kill in the middle of writing leaves is taken away.
    (out / ".checkpoint.npz.99.tmp").write_bytes(checkpoint[:50])
    run_mixed(jitter, vacuum, out, longer)
    assert not list(out.glob(".*"))
    assert (out / "trajectory.xtc").read_bytes().startswith(trajectory)
    # What the last checkpoint appended is compared with it.
    run_mixed(jitter, vacuum, tmp_path / "once", settings())
    path = tmp_path / "once/trajectory.xtc"
    path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    with pytest.raises(ValueError, match="changed after the run was stopped"):
        run_mixed(jitter, vacuum, tmp_path / "once", longer)
    log = out / "log.csv"
    log.write_bytes(
        log.read_bytes()[:-20] + bytes(range(128, 148)) + b",,,,,,,,,,,,,,,,,,,,,,,,,,,,"
    )
    with pytest.raises(ValueError, match=r"log.csv, line \d+: could not convert string to float"):
        read_run(out)


@pytest.mark.parametrize("jumps", [12, 20])
def test_a_changed_start_is_refused(vacuum, jitter, tmp_path, jumps):
    out = tmp_path / "out"
    run_mixed(jitter, vacuum, out, settings())
    system = out / "start/system.xml"
    text = system.read_text()
    system.write_text(text.replace('mass="12', 'mass="13', 1))
    assert system.read_text() != text
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match="start was changed after the run was started"):
        run_mixed(jitter, vacuum, out, settings(jumps=jumps))
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    system.unlink()
    with pytest.raises(ValueError, match="start was changed after the run was started"):
        run_mixed(jitter, vacuum, out, settings(jumps=jumps))
    system.write_text(text)
    assert run_mixed(jitter, vacuum, out, settings(jumps=jumps))["jumps_tried"] == jumps


def test_neither_checkpoint_nor_portable_state(vacuum, jitter, tmp_path, monkeypatch):
    run_mixed(jitter, vacuum, tmp_path / "out", settings())

    def fails(*arguments):
        raise openmm.OpenMMException("made for another machine")

    monkeypatch.setattr(openmm.Context, "loadCheckpoint", fails)
    monkeypatch.setattr(openmm.Context, "setState", fails)
    with pytest.raises(RunError, match="out/checkpoint.npz cannot be taken up here: neither") as e:
        run_mixed(jitter, vacuum, tmp_path / "out", settings(jumps=20))
    assert str(e.value).count("made for another machine") == 2
    assert "new directory" in str(e.value)


def test_a_run_of_a_version_whose_jumps_ended_bursts(vacuum, jitter, tmp_path, monkeypatch):
    """A finished one is shown, and none goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(programs, "LAYOUT", programs.LAYOUT + 1.0)
        first = run_mixed(jitter, vacuum, tmp_path / "out", settings(jumps=2))
    assert stable(run_mixed(jitter, vacuum, tmp_path / "out", settings(jumps=2))) == stable(first)
    before = {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match="a run that another version of openmm-sd has begun") as e:
        run_mixed(jitter, vacuum, tmp_path / "out", settings(jumps=3))
    assert "\n" not in str(e.value)
    assert {f: f.read_bytes() for f in (tmp_path / "out").rglob("*") if f.is_file()} == before


# -- models that fail ------------------------------------------------------------------------------


@pytest.fixture
def exact_cpu():
    """The CPU platform with forces that are the same every time."""
    platform = openmm.Platform.getPlatformByName("CPU")
    kept = {
        name: platform.getPropertyDefaultValue(name) for name in ("Threads", "DeterministicForces")
    }
    platform.setPropertyDefaultValue("Threads", "1")
    platform.setPropertyDefaultValue("DeterministicForces", "true")
    yield platform
    for name, value in kept.items():
        platform.setPropertyDefaultValue(name, value)


@pytest.mark.usefixtures("exact_cpu")
@pytest.mark.parametrize("kind", ["vacuum", "watery"])
@pytest.mark.parametrize(("platform", "friction"), [("CPU", 1.0), ("Reference", 0.0)])
def test_a_model_that_always_fails_is_plain_md(kind, platform, friction, ala2, tmp_path, request):
    """To the last bit; on Reference without noise, whose stream the jump program shares there."""
    prepared = request.getfixturevalue(kind)
    model = model_of(Broken(ala2.n_atoms), ala2, temperature_K=300.0)
    said = []
    chosen = settings(jumps=8, every_ps=None, platform=platform, friction_per_ps=friction)
    summary = run_mixed(
        *(model, prepared, tmp_path / "out", chosen), progress=lambda *words: said.append(words)
    )
    assert (summary["jumps_tried"], summary["jumps_accepted"]) == (8, 0)
    assert summary["fallbacks"] == 8
    assert "None of 8 jumps was accepted: this is plain MD." in summary["notes"]
    assert summary["effective_time_ps"] == summary["md_time_ps"]
    assert any(what == "note" and "plain MD" in how_far for what, how_far in said)

    integrator = openmm.LangevinMiddleIntegrator(300, friction, 0.002)
    integrator.setRandomNumberSeed(COMMON["seed"])
    context = openmm.Context(
        prepared.system, integrator, openmm.Platform.getPlatformByName(platform)
    )
    if prepared.box_vectors is not None:
        context.setPeriodicBoxVectors(*prepared.box_vectors)
    context.setPositions(prepared.positions)
    context.setVelocitiesToTemperature(300, COMMON["seed"])
    rows = rows_of(tmp_path / "out")
    for k, row in enumerate(rows):
        integrator.step(10)
        energy = context.getState(energy=True).getPotentialEnergy()._value
        assert float(row["Potential Energy (kJ/mol)"]) == energy, k
    assert len(rows) == 8


def test_a_model_that_raises_stops_the_run(vacuum, ala2, tmp_path, monkeypatch):
    monkeypatch.setattr(Late, "calls", 0)
    model = model_of(Late(ala2.n_atoms, 1000.0, 0.01), ala2, temperature_K=300.0)
    with pytest.raises(RunError, match="network is gone.*the last checkpoint is intact") as caught:
        run_mixed(model, vacuum, tmp_path / "out", settings(checkpoint_seconds=1e-9))
    assert "\n" not in str(caught.value)
    assert "the same command" not in str(caught.value)
    assert "would most likely repeat it: the model is what failed" in str(caught.value)
    assert (tmp_path / "out/checkpoint.npz").exists()


def test_md_that_blows_up(vacuum, jitter, tmp_path):
    wild = np.zeros_like(vacuum.positions)
    wild[5] = 1e9
    prepared = PreparedSystem(
        vacuum.topology, vacuum.system, vacuum.positions, velocities=wild, step_ps=0.002
    )
    with pytest.raises(RunError, match="last checkpoint is intact and holds 0 ps") as caught:
        run_mixed(jitter, prepared, tmp_path / "out", settings())
    assert "the same command" not in str(caught.value)
    assert "a smaller step" in str(caught.value)
    assert (tmp_path / "out/log.csv").read_bytes() == b""


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_a_start_with_atoms_on_top_of_each_other(watery, jitter, tmp_path, platform):
    x = watery.positions.copy()
    x[-3:] = x[-6:-3] + 1e-7
    prepared = PreparedSystem(watery.topology, watery.system, x, watery.box_vectors)
    with pytest.raises(RunError, match="plain MD blows up within 10 steps of 2 fs from where"):
        run_mixed(jitter, prepared, tmp_path / "out", settings(platform=platform))
    assert not (tmp_path / "out/checkpoint.npz").exists()


# -- simulations that are not what the model was made for ------------------------------------------


def test_notes_where_force_field_and_temperature_are_others(vacuum, ala2, tmp_path, recwarn):
    files = ["amber99sbildn.xml", "tip3p.xml"]
    kernel = Jitter(ala2.n_atoms, 1000.0, 0.01)
    model = model_of(kernel, ala2, temperature_K=300.0, force_field=files)
    prepared = PreparedSystem(
        vacuum.topology, vacuum.system, vacuum.positions, force_field=("charmm36.xml",)
    )
    said = []
    chosen = settings(jumps=2, temperature_K=310.0)
    for _ in range(2):  # the second time the run is finished already
        summary = run_mixed(
            *(model, prepared, tmp_path / "out", chosen), progress=lambda *words: said.append(words)
        )
        (field,) = [note for note in summary["notes"] if "force field (charmm36.xml)" in note]
        assert "trained with (amber99sbildn.xml, tip3p.xml)" in field
        (warm,) = [note for note in summary["notes"] if "Temperature is 310 K" in note]
        assert "trained at 300 K" in warm
        assert {("note", field), ("note", warm)} <= set(said)
        assert read_run(tmp_path / "out").mismatches == (field, warm)
        said.clear()
    assert not [w for w in recwarn if "temperature" in str(w.message)]


def test_a_force_field_that_is_unknown_or_the_same(ala2):
    model = model_of(Identity(ala2.n_atoms), ala2, force_field=["amber99sbildn.xml", "tip3p.xml"])
    assert other_force_field((), model) is None
    assert other_force_field(("tip3p.xml", "/some/where/amber99sbildn.xml"), model) is None
    assert "amber14" in other_force_field(("amber14-all.xml", "tip3p.xml"), model)
    silent = model_of(Identity(ala2.n_atoms), ala2)
    assert other_force_field(("amber14-all.xml",), silent) is None
    implicit = model_of(
        Identity(ala2.n_atoms), ala2, force_field=["amber99_obc.xml"], solvent="implicit (GB)"
    )
    assert other_force_field(("amber14-all.xml",), implicit) is None
    assert other_force_field(("amber99_obc.xml",), implicit, implicit=True) is None
    assert "amber14-all.xml" in other_force_field(("amber14-all.xml",), implicit, implicit=True)


def test_a_mirror_image_is_refused_before_anything_is_built(vacuum, watery, jitter, tmp_path):
    mirrored = PreparedSystem(vacuum.topology, vacuum.system, vacuum.positions * [-1, 1, 1])
    with pytest.raises(ValueError, match="a mirror image of the model's molecule"):
        run_mixed(jitter, mirrored, tmp_path / "out", settings())
    # A structure that is cut at the faces of the box shows its hand when it is whole.
    x = wrapped(watery)
    for hand, name in ((1, "l.pdb"), (-1, "d.pdb")):
        with open(tmp_path / name, "w") as file:
            positions = (x * [hand, 1, 1]) * unit.nanometer
            app.PDBFile.writeFile(watery.topology, positions, file)
    driver.Plan(jitter, open_start(tmp_path / "l.pdb"), settings())
    with pytest.raises(ValueError, match="d.pdb: .*a mirror image of the model's molecule"):
        run_mixed(jitter, tmp_path / "d.pdb", tmp_path / "out", settings())
    assert not (tmp_path / "out").exists()


def wrapped(prepared):
    """Positions with every atom in the box, the solute in its corner."""
    edges = np.diag(prepared.box_vectors)
    return np.mod(prepared.positions - prepared.positions[:22].mean(axis=0), edges)


def test_molecules_that_are_cut_are_made_whole(watery, jitter, tmp_path):
    summaries = []
    for name, x in (("cut", wrapped(watery)), ("whole", watery.positions)):
        prepared = PreparedSystem(watery.topology, watery.system, x, watery.box_vectors)
        chosen = settings(jumps=1, friction_per_ps=0.0)
        summaries.append(run_mixed(jitter, prepared, tmp_path / name, chosen))
    assert summaries[0]["frames"] == 1
    energies = [
        float(rows_of(tmp_path / name)[0]["Potential Energy (kJ/mol)"]) for name in ("cut", "whole")
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1.0)
    kept = read_prepared(tmp_path / "cut/start")
    ends = np.array([(a.index, b.index) for a, b in kept.topology.bonds()])
    lengths = np.linalg.norm(kept.positions[ends[:, 0]] - kept.positions[ends[:, 1]], axis=1)
    assert lengths.max() < 0.2


def test_virtual_sites_follow_their_molecule(tip4p_box):
    system = tip4p_box.system()
    vectors = np.array(tip4p_box.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    sites = [k for k in range(system.getNumParticles()) if system.isVirtualSite(k)]
    parents = [system.getVirtualSite(k).getParticle(0) for k in sites]
    # The face of the box goes between a site and its oxygen.
    ends = tip4p_box.positions[[sites[0], parents[0]]]
    cut = np.mod(tip4p_box.positions - ends.mean(axis=0), np.diag(vectors))
    assert np.linalg.norm(cut[sites] - cut[parents], axis=1).max() > 1
    whole = make_whole(tip4p_box.topology, cut, vectors, system)
    assert np.linalg.norm(whole[sites] - whole[parents], axis=1).max() < 0.03
    assert make_whole(tip4p_box.topology, whole, vectors, system) is whole


def test_precision_that_the_chosen_platform_does_not_know(vacuum, jitter, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "platform_and_bridge", lambda *_: ("Reference", "pythonforce"))
    with pytest.raises(ValueError, match="precision: the Reference platform.* has no choice"):
        run_mixed(jitter, vacuum, tmp_path / "out", settings(platform=None, precision="double"))
    assert not (tmp_path / "out").exists()
    summary = run_mixed(jitter, vacuum, tmp_path / "out", settings(platform=None, jumps=1))
    assert summary["precision"] is None


def test_settings_of_the_jumps_reach_the_integrator(vacuum, jitter):
    def integrator(**changes):
        plan = driver.Plan(jitter, open_start(vacuum), settings(**changes))
        return plan.integrator("pythonforce", 1)

    plain = ScoreDynamicsIntegrator(jitter, bridge="pythonforce")
    getters = ("MaxNovelty", "MaxTries", "Candidates", "SettleSteps", "SettleTime")
    for name in (*getters, "MaxEnergyRise", "MaxEnergySigma"):
        mine = getattr(integrator(settle_ps=RunSettings.settle_ps), f"get{name}")()
        assert mine == getattr(plain, f"get{name}")()
    changed = integrator(
        max_tries=2, candidates=3, settle_steps=0, max_energy_rise=None, max_energy_sigma=2.5
    )
    assert changed.getSettleTime() == 0.01 * unit.picosecond
    assert (changed.getMaxTries(), changed.getCandidates(), changed.getSettleSteps()) == (2, 3, 0)
    assert changed.getMaxEnergyRise() is None
    assert changed.getMaxEnergySigma() == 2.5
    known = driver.Plan(ScoreModel.load("ala2-water"), open_start(vacuum), settings())
    assert known.identity()["max_novelty"] == known.model.novelty.threshold
    limit = driver.Plan(known.model, known.source, settings(max_novelty=None))
    assert limit.integrator("pythonforce", 1).getMaxNovelty() is None
    assert limit.identity()["max_novelty"] is None


def test_a_model_is_told_apart_by_all_that_it_is(vacuum, peptide, ala2):
    rng = np.random.default_rng(1)
    frames = vacuum.positions + rng.normal(scale=0.003, size=(30, 22, 3))
    kernel = Identity(ala2.n_atoms)
    novelties = [None, fit_novelty(ala2, frames[:20]), fit_novelty(ala2, frames[10:])]
    models = [ScoreModel(kernel, ala2, novelty=novelty) for novelty in novelties]
    other = Molecule.from_topology(peptide.topology, peptide.positions, "another name")
    models.append(ScoreModel(kernel, [ala2, other]))
    assert len({model_digest(model) for model in models}) == 4


def test_ions_are_placed_by_the_seed(ala2):
    topology = ala2.to_topology()
    residue = topology.addResidue("NA", topology.addChain())
    topology.addAtom("NA", app.Element.getBySymbol("Na"), residue)
    x = np.vstack([ala2.positions, np.max(ala2.positions, axis=0) + 0.3])

    def places(seed):
        box = solvate(topology, x, waters=150, cutoff=0.6, seed=seed)
        chlorine = app.Element.getBySymbol("Cl")
        return next(box.positions[a.index] for a in box.topology.atoms() if a.element is chlorine)

    random.seed(5)
    before = random.getstate()
    first = places(1)
    assert random.getstate() == before
    random.seed(6)
    np.testing.assert_array_equal(places(1), first)
    assert any(np.abs(places(seed) - first).max() > 0 for seed in (2, 3, 4))


# -- full disks ------------------------------------------------------------------------------------


GROWING = [
    *("--jumps", 150, "--lag", 10, "--burst", 0.02, "--every", 0.004, "--platform", "Reference"),
    *("--bridge", "pythonforce", "--seed", 7, "--json", "--no-report"),
]
DRIVER = "openmm_sd.run.driver"


def grown(on_disk, out, format, seconds):
    """Words of a command whose files grow to a few hundred kB."""
    words = ["run", on_disk / "prepared", "-o", out, "--model", on_disk / "model.safetensors"]
    words += [*GROWING, "--format", format, "--checkpoint-seconds", seconds]
    return list(map(str, words))


@pytest.fixture(scope="module")
def never_stopped(on_disk, tmp_path_factory):
    """Runs that nothing has stopped, one a format."""

    @functools.cache
    def made(format):
        out = tmp_path_factory.mktemp("whole") / format
        assert main(grown(on_disk, out, format, 1.0)) == 0
        return out

    return made


@pytest.mark.parametrize(
    ("format", "seconds", "size", "named"),
    [
        ("xtc", 0.01, 70_000, r"out/(trajectory|\.chunk)\.xtc"),
        ("dcd", 0.01, 70_000, r"out/trajectory\.dcd"),
        ("h5", 0.01, 70_000, r"out/trajectory\.part"),
        ("dcd", 1e6, 70_000, r"out/checkpoint\.npz"),
        ("xtc", 0.01, 10_000, r"out/start"),
    ],
)
def test_a_file_that_cannot_grow(
    on_disk, never_stopped, tmp_path, capfd, format, seconds, size, named
):
    out = tmp_path / "out"
    words = grown(on_disk, out, format, seconds)
    # Nothing depends on the clock: plain MD is not timed, and no first checkpoint comes early.
    changes = {f"{DRIVER}._PLAIN_SHARE": 0.0, f"{DRIVER}._FIRST_SECONDS": 1e6}
    done = launch(*words, folder=tmp_path, largest=size, changes=changes)
    assert done.wait() == 1, done.stderr
    assert done.stdout == ""
    (line,) = [text for text in done.stderr.splitlines() if "RunError" in text]
    assert line == done.stderr.splitlines()[-1]
    assert re.search(rf"cannot write \S*{named}: File too large; ", line), line
    assert not [f.name for f in out.glob(".*")]
    if "start" in named:
        assert "nothing has been run yet" in line
    else:
        held = float(re.search(r"intact and holds (\S+) ps of effective time", line).group(1))
        state = files.read_checkpoint(out).state
        assert held == pytest.approx(state["numbers"]["effective_time_ps"], rel=1e-4)
    before = visible(out, format)
    assert main(grown(on_disk, out, format, 1.0)) == 0, capfd.readouterr().err
    same(out, never_stopped(format))
    if format != "h5":
        final = visible(out, format)
        assert all(final[name].startswith(data) for name, data in before.items())


def test_a_full_disk(vacuum, jitter, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no small file system can be mounted here")
    try:
        out, ballast = disk / "out", disk / "ballast"
        run_mixed(jitter, vacuum, out, settings(jumps=100))
        before = visible(out, "xtc")
        free = os.statvfs(disk)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 4096))
        longer = settings(jumps=600, checkpoint_seconds=0.05)
        with pytest.raises(RunError, match="No space left on device; the last checkpoint is inta"):
            run_mixed(jitter, vacuum, out, longer)
        assert not list(out.glob(".*"))
        for name, data in before.items():
            assert (out / name).read_bytes().startswith(data)
        ballast.unlink()
        run_mixed(jitter, vacuum, out, longer)
        run_mixed(jitter, vacuum, tmp_path / "whole", longer)
        same(out, tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_command(on_disk, tmp_path, number):
    """What it has in memory is written."""
    out = tmp_path / "out"
    process = launch(
        *("run", on_disk / "prepared", "-o", out, "--model", on_disk / "model.safetensors"),
        *("--effective-ns", 1e6, "--lag", 10, "--burst", 0.02, "--platform", "Reference"),
        *("--bridge", "pythonforce", "--json"),
        folder=tmp_path,
        changes={
            **{f"{DRIVER}._REPORT_SECONDS": 0.0, "openmm_sd.cli.progress._INTERVAL": 0.0},
            f"{DRIVER}._FIRST_SECONDS": 1e6,
        },
    )
    while process.stderr.count("running: ") < 9:
        assert process.running, process.stderr
        time.sleep(0.01)
    assert len((out / "log.csv").read_text().splitlines()) <= 1
    process.send_signal(number)
    assert process.wait(60) == 130, process.stderr
    assert process.stdout == ""
    assert "stopped" in process.stderr.splitlines()[-1]
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["complete"]
    assert summary["frames"] > 0
    assert len((out / "log.csv").read_text().splitlines()) == summary["frames"] + 1


def test_command_from_a_solute_with_the_model_that_fits(ala2, tmp_path, capfd):
    pdb, out = tmp_path / "ala2.pdb", tmp_path / "out"
    with open(pdb, "w") as file:
        positions = np.asarray(ala2.positions) * unit.nanometer
        app.PDBFile.writeFile(ala2.to_topology(), positions, file)
    command = ["run", str(pdb), "-o", str(out), "--waters", "240", "--equilibration", "0.2"]
    command += ["--burst", "0.08", "--lag", "20", "--platform", "CPU", "--bridge", "pythonforce"]
    # Plain MD is timed for a share of that.
    command += ["--settle", "0.2", "--checkpoint-seconds", "2"]
    assert main([*command, "--jumps", "2", "--json"]) == 0
    captured = capfd.readouterr()
    summary = json.loads(captured.out)
    assert summary["settle"]["time_ps"] == pytest.approx(0.2 * summary["jumps_accepted"])
    assert summary["model"]["name"] == "ala2-water"
    assert (summary["jumps_tried"], summary["frames"]) == (2, 2)
    assert (summary["step_ps"], summary["force_field"]) == (
        0.004,
        ["amber99sbildn.xml", "tip3p.xml"],
    )
    prepared = read_prepared(out / "start")
    assert prepared.system.getNumParticles() == 22 + 3 * 240
    assert prepared.step_ps == 0.004
    # Water does not relax to the same place twice: going on takes what is there.
    command += ["--no-report"]
    assert main([*command, "--jumps", "3"]) == 0
    captured = capfd.readouterr()
    assert "of 3 jumps accepted" in captured.out
    assert "building" not in captured.err
    other = ["241" if word == "240" else word for word in command]
    assert main([*other, "--jumps", "3"]) == 2
    assert "waters 240 there, 241 here" in capfd.readouterr().err

    # What it made is a prepared directory, and its structure a solvated file.
    other = ["--lag", "20", "--burst", "0.08", "--platform", "CPU", "--bridge", "pythonforce"]
    other += ["--jumps", "1", "--json", "--no-report", "--checkpoint-seconds", "2"]
    assert main(["run", str(out / "start"), "-o", str(tmp_path / "two"), *other]) == 0
    assert json.loads(capfd.readouterr().out)["step_ps"] == 0.004
    solvated = tmp_path / "solvated.pdb"
    with open(solvated, "w") as file:
        app.PDBFile.writeFile(prepared.topology, prepared.positions * unit.nanometer, file)
    other += ["--equilibration", "0.2", "--pressure", "1"]
    assert main(["run", str(solvated), "-o", str(tmp_path / "three"), *other]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["atoms"] == 22 + 3 * 240


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jumps", "1", "--md-ps", "1"], "one length"),
        (["--jumps", "0"], "jumps"),
        (["--effective-ns", "-1"], "effective_ns"),
        (["--md-ps", "nan"], "md_ps"),
        (["--jumps", "1", "--lag", "-1"], "lag_ps"),
        (["--jumps", "1", "--lag", "99999"], "lag must be between"),
        (["--jumps", "1", "--burst", "0"], "burst_ps"),
        (["--jumps", "1", "--burst", "0.0001"], "burst must be at least one MD step"),
        (["--jumps", "1", "--every", "0"], "every_ps"),
        (["--jumps", "1", "--seed", "0"], "seed"),
        (["--jumps", "1", "--format", "trr"], "format"),
        (["--jumps", "1", "--platform", "Abacus"], "platform"),
        (["--jumps", "1", "--bridge", "drawbridge"], "bridge"),
        (["--jumps", "1", "--platform", "CPU", "--precision", "double"], "precision"),
        (["--jumps", "1", "--temperature", "0"], "temperature_K"),
        (["--jumps", "1", "--temperature", "27"], "is it in degrees Celsius"),
        (["--jumps", "1", "--lag", "-10"], "lag_ps must be a positive number of ps"),
        (["--jumps", "1", "--model", "cut.safetensors"], "cut.safetensors"),
        (["--jumps", "1", "--pressure", "1"], "no pressure"),
        (["--jumps", "1", "--solute", "4"], "solute"),
        (["--jumps", "1", "--model", "no-such-model"], "no-such-model"),
        (["--jumps", "1", "--checkpoint-seconds", "0"], "checkpoint_seconds"),
        (["--jumps", "1", "--every", "0.001"], "every_ps must be at least one MD step of 0.002 ps"),
        (["--jumps", "1", "--waters", "500"], "waters has no effect here: a prepared system"),
        (["--jumps", "1", "--padding", "1"], "padding_nm has no effect here"),
        (["--jumps", "1", "--water-model", "spce"], "water_model has no effect here"),
        (["--jumps", "1", "--cutoff", "1"], "cutoff_nm has no effect here"),
        (["--jumps", "1", "--equilibration", "0"], "equilibration_ps has no effect here"),
        (["--jumps", "1", "--force-field", "charmm36.xml"], "force_field has no effect here"),
        (["--jumps", "1", "--max-novelty", "none"], "max_novelty must be a number, card or off"),
        (["--jumps", "1", "--max-novelty", "-1"], "max_novelty must be a positive number"),
        (["--jumps", "1", "--settle", "-1"], "settle_ps must be a number of at least 0"),
        (["--jumps", "1", "--max-tries", "0"], "max_tries must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments(arguments, said, on_disk, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    # What an interrupted download leaves.
    bundle = (on_disk / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(bundle[: len(bundle) // 2])
    monkeypatch.chdir(tmp_path)
    command = ["run", str(on_disk / "prepared"), "-o", str(out)]
    command += [] if "--model" in arguments else ["--model", "ala2-water"]
    assert main([*command, *arguments, "--json"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]
    assert not out.exists()


def test_wrong_starts(ala2, peptide, tmp_path, capfd, monkeypatch):
    def refused(start, *more):
        command = ["run", str(start), "-o", str(tmp_path / "out"), "--jumps", "1", "--json", *more]
        assert main(command) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        assert not (tmp_path / "out").exists()
        return captured.err.splitlines()[-1]

    def refused_with_advice(start, *more):
        assert main(["run", str(start), "-o", str(tmp_path / "out"), "--jumps", "1", *more]) == 2
        said = capfd.readouterr().err
        assert not (tmp_path / "out").exists()
        assert "openmm-sd train" in said
        return said

    assert "there is no file" in refused(tmp_path / "nothing.pdb")
    (tmp_path / "text.pdb").write_text("no structure at all\n")
    assert "text.pdb holds no atoms in PDB format" in refused(tmp_path / "text.pdb")
    for name, format in (("empty.pdb", "PDB"), ("empty.cif", "mmCIF")):
        (tmp_path / name).write_bytes(b"")
        assert f"{name} holds no atoms in {format} format" in refused(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "is not a prepared directory: it has no prepared.json" in refused(tmp_path / "empty")
    molecule = ethane()
    topology = molecule.to_topology()
    for atom, name in zip(topology.atoms(), "C1 C2 H1 H2 H3 H4 H5 H6".split(), strict=True):
        atom.name = name
    with open(tmp_path / "ethane.pdb", "w") as file:
        app.PDBFile.writeFile(topology, molecule.positions * unit.nanometer, file)
    line = refused(tmp_path / "ethane.pdb")
    assert "the force field (amber99sbildn.xml, tip3p.xml) does not know" in line
    charmm = [w for f in ("charmm36.xml", "charmm36/water.xml") for w in ("--force-field", f)]
    with monkeypatch.context() as without_alkanes:
        without_alkanes.setattr(ScoreModel, "shipped", lambda: ["ala2-water"])
        said = refused_with_advice(tmp_path / "ethane.pdb", *charmm)
        assert "none of the shipped models fits" in said
    with open(tmp_path / "ala2.pdb", "w") as file:
        positions = np.asarray(ala2.positions) * unit.nanometer
        app.PDBFile.writeFile(ala2.to_topology(), positions, file)
    assert "use more water" in refused(tmp_path / "ala2.pdb", "--waters", "20")
    line = refused(tmp_path / "ala2.pdb", "--waters", "100", "--cutoff", "5")
    assert "take a shorter cutoff or use more water" in line
    line = refused(tmp_path / "ala2.pdb", "--solute", "7", "--model", "ala2-water")
    assert "there is no copy 7" in line
    assert "force field" in refused(tmp_path / "ala2.pdb", "--force-field", "nonsense.xml")
    line = refused(tmp_path / "ala2.pdb", "--force-field", "tip3p.xml")
    assert "the force field (tip3p.xml) does not know ACE 1 of chain A" in line
    atoms = (("23  O  ", 9.0, "O"), ("24  H1 ", 9.9, "H"), ("25  H2 ", 8.1, "H"))
    water = [
        f"HETATM   {name} HOH B   1       {x:5.3f}   9.000   9.000  1.00  0.00{element:>12}  "
        for name, x, element in atoms
    ]
    lines = (tmp_path / "ala2.pdb").read_text().splitlines()
    place = next(k for k, text in enumerate(lines) if text.startswith("TER"))
    boxless = [t for t in [*lines[: place + 1], *water, *lines[place + 1 :]] if "CRYST1" not in t]
    (tmp_path / "wet.pdb").write_text("\n".join(boxless) + "\n")
    assert "water but no box" in refused(tmp_path / "wet.pdb")
    boxed = "CRYST1   20.000   20.000   20.000  90.00  90.00  90.00 P 1           1 "
    (tmp_path / "wet.pdb").write_text("\n".join([boxed, *boxless]) + "\n")
    line = refused(tmp_path / "wet.pdb", "--waters", "500", "--model", "ala2-water")
    assert "waters has no effect here: " in line
    assert "holds water already" in line
    line = refused(tmp_path / "wet.pdb", "--cutoff", "5", "--model", "ala2-water")
    assert "take a shorter cutoff" in line


def test_platforms_in_lower_case():
    assert RunSettings(jumps=1, platform="reference").platform == "Reference"
    with pytest.raises(
        ValueError, match="platform must be one of Reference, .*CPU.*, got 'abacus'"
    ):
        RunSettings(jumps=1, platform="abacus")


def test_a_solute_that_is_minimised_only(ala2, jitter, tmp_path):
    pdb, out = tmp_path / "ala2.pdb", tmp_path / "out"
    with open(pdb, "w") as file:
        positions = np.asarray(ala2.positions) * unit.nanometer
        app.PDBFile.writeFile(ala2.to_topology(), positions, file)
    chosen = settings(jumps=2, waters=240, equilibration_ps=0.0, platform="CPU", every_ps=None)
    assert run_mixed(jitter, pdb, out, chosen)["frames"] == 2
    start = read_prepared(out / "start")
    context = openmm.Context(
        *(start.system, openmm.VerletIntegrator(0.001)),
        openmm.Platform.getPlatformByName("CPU"),
    )
    context.setPositions(start.positions)
    assert context.getState(energy=True).getPotentialEnergy()._value < -5000.0


def test_a_solute_without_hydrogens(ala2, jitter, tmp_path):
    """It is completed; stopped and taken up again, it is the same solute."""
    chosen = settings(jumps=1, waters=240, equilibration_ps=0.02, platform="CPU", every_ps=None)
    run_mixed(jitter, PDB, tmp_path / "out", chosen)
    record = read_prepared(tmp_path / "out/start").provenance
    assert record["repair"]["hydrogens_added"] == 12
    assert record["made_by"] == "openmm-sd run"
    longer = settings(jumps=2, waters=240, equilibration_ps=0.02, platform="CPU", every_ps=None)
    summary = run_mixed(jitter, PDB, tmp_path / "out", longer)
    assert (summary["jumps_tried"], summary["parts"]) == (2, 2)


def test_starts_that_are_objects_of_others(watery, peptide, jitter, tmp_path):
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    simulation = app.Simulation(
        *(watery.topology, watery.system, integrator), openmm.Platform.getPlatform("Reference")
    )
    watery.place(simulation)
    found = open_start(simulation)
    np.testing.assert_array_equal(found.positions, watery.positions)
    assert found.prepared.velocities is not None
    assert found.step_ps() == pytest.approx(0.002)
    trajectory = mdtraj.Trajectory(peptide.positions, mdtraj.Topology.from_openmm(peptide.topology))
    modeller = app.Modeller(peptide.topology, peptide.positions * unit.nanometer)
    for start in (trajectory, modeller):
        found = open_start(start)
        assert found.prepared is None
        assert found.repaired.topology.getNumAtoms() == 22
        assert open_start(start).digest == found.digest


def test_objects_that_do_not_fit(vacuum, jitter, peptide, ala2, implicit_installed, tmp_path):
    with pytest.raises(ValueError, match="start must be a prepared directory"):
        run_mixed(jitter, 5, tmp_path / "out", settings())
    with pytest.raises(ValueError, match=r"positions must have shape \(22, 3\)"):
        PreparedSystem(vacuum.topology, vacuum.system, vacuum.positions[1:])
    with pytest.raises(ValueError, match="positions holds NaN"):
        PreparedSystem(vacuum.topology, vacuum.system, vacuum.positions * np.nan)
    attached = peptide.system()
    ScoreDynamicsIntegrator(jitter, bridge="pythonforce").attach(attached, peptide.topology)
    prepared = PreparedSystem(peptide.topology, attached, peptide.positions)
    with pytest.raises(ValueError, match="holds a jump already"):
        run_mixed(jitter, prepared, tmp_path / "out", settings())
    with pytest.raises(ValueError, match="start must be a prepared directory"):
        run_mixed(jitter, np.zeros((22, 3)), tmp_path / "out", settings())
    assert fitting_model(vacuum.topology).name == "ala2-water"
    assert fitting_model(vacuum.topology, implicit=True).name == "ala2-implicit"
    assert (RunSettings().jumps, RunSettings(md_ps=1.0).jumps) == (100, None)
    assert not (tmp_path / "out").exists()


# -- the prepared directory ------------------------------------------------------------------------


def bonds(topology):
    return {frozenset((one.index, two.index)) for one, two in topology.bonds()}


def names(topology):
    return [(a.name, a.element, a.residue.name, a.residue.index) for a in topology.atoms()]


@pytest.mark.parametrize("kind", ["vacuum", "watery", "tip4p_box"])
def test_prepared_directory_comes_back(kind, tmp_path, request):
    prepared = request.getfixturevalue(kind)
    if kind == "tip4p_box":
        box = prepared
        vectors = np.array(box.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
        prepared = PreparedBox(
            box.topology, box.system(), box.positions, vectors, 1, ("amber99sbildn.xml",)
        )
    write_prepared(prepared, tmp_path / "made")
    found = read_prepared(tmp_path / "made")
    assert bonds(found.topology) == bonds(prepared.topology)
    assert names(found.topology) == names(prepared.topology)
    np.testing.assert_array_equal(found.positions, prepared.positions)
    assert found.velocities is None
    if prepared.box_vectors is None:
        assert found.box_vectors is None
        assert found.topology.getPeriodicBoxVectors() is None
    else:
        np.testing.assert_array_equal(found.box_vectors, prepared.box_vectors)
    xml = openmm.XmlSerializer.serialize
    assert xml(found.system) == xml(prepared.system)


def test_prepared_directory_of_an_alkane(tmp_path):
    """No reader knows the bonds of its residue."""
    molecule = ethane()
    topology = molecule.to_topology()
    for atom, name in zip(topology.atoms(), "C1 C2 H1 H2 H3 H4 H5 H6".split(), strict=True):
        atom.name = name
    system = app.ForceField("charmm36.xml").createSystem(topology, constraints=app.HBonds)
    rng = np.random.default_rng(1)
    made = PreparedSystem(
        topology,
        system,
        molecule.positions,
        velocities=rng.normal(size=(8, 3)),
        temperature_K=298.0,
        step_ps=0.004,
        force_field=("charmm36.xml",),
        provenance={"by": "a test"},
    )
    write_prepared(made, tmp_path)
    found = read_prepared(tmp_path)
    assert len(bonds(found.topology)) == 7
    assert bonds(found.topology) == bonds(topology)
    np.testing.assert_array_equal(found.velocities, made.velocities)
    assert (found.temperature_K, found.step_ps) == (298.0, 0.004)
    assert found.force_field == ("charmm36.xml",)
    assert found.provenance == {"by": "a test"}
    for atom in topology.atoms():
        atom.name = "X"
    system_of_twins = PreparedSystem(topology, system, molecule.positions)
    with pytest.raises(ValueError, match="need names of their own"):
        write_prepared(system_of_twins, tmp_path)


def test_damaged_prepared_directories(vacuum, tmp_path):
    write_prepared(vacuum, tmp_path)
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    for name, text in kept.items():
        (tmp_path / name).write_text(text[: len(text) // 2])
        with pytest.raises(ValueError, match=name):
            read_prepared(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"it has no {name}"):
            read_prepared(tmp_path)
        (tmp_path / name).write_text(text)
    (tmp_path / "prepared.json").write_text(
        kept["prepared.json"].replace('"format_version": 1', '"format_version": 99')
    )
    with pytest.raises(ValueError, match="format version 99, this version of openmm-sd reads 1"):
        read_prepared(tmp_path)


# -- reporters of others ---------------------------------------------------------------------------


def test_reporters_of_openmm_and_mdtraj(watery, jitter, tmp_path):
    import mdtraj.reporters

    integrator = ScoreDynamicsIntegrator(
        jitter, 300, 1, 0.002, burst=0.02, lag=10, bridge="pythonforce", seed=1, settleTime=0.01
    )
    system = openmm.XmlSerializer.clone(watery.system)
    integrator.attach(system, watery.topology)
    simulation = app.Simulation(
        watery.topology, system, integrator, openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(watery.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    ours = {
        "openmm.xtc": app.XTCReporter,
        "openmm.dcd": app.DCDReporter,
        "mdtraj.h5": mdtraj.reporters.HDF5Reporter,
        "mdtraj.xtc": mdtraj.reporters.XTCReporter,
    }
    for name, reporter in ours.items():
        simulation.reporters.append(reporter(str(tmp_path / name), 10))
    simulation.step(40)
    assert integrator.getStatistics()["jumps_tried"] == 3
    for reporter in simulation.reporters:
        if hasattr(reporter, "close"):
            reporter.close()
    simulation.reporters.clear()
    top = tmp_path / "top.pdb"
    with open(top, "w") as file:
        app.PDBFile.writeFile(watery.topology, watery.positions * unit.nanometer, file)
    end = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    for name in ours:
        path = str(tmp_path / name)
        frames = mdtraj.load(path) if name.endswith("h5") else mdtraj.load(path, top=str(top))
        assert frames.n_frames == 4
        # Reporters of OpenMM wrap molecules into the box; the solute's shape is the same.
        shape = frames.xyz[-1, :22] - frames.xyz[-1, :1]
        np.testing.assert_allclose(shape, end[:22] - end[:1], atol=2e-3)


def test_notes_say_what_a_run_is_worth(ala2):
    model = model_of(Identity(ala2.n_atoms), ala2)
    numbers = {
        "jumps_tried": 40,
        "jumps_accepted": 40,
        "fallbacks": 0,
        "novel": 0,
        "rejections": {"bonds": 7, "energy": 2, "energy_rise": 1},
        "settle": {"time_ps": 36.0},
    }
    assert dropped_jumps(numbers) is None
    notes = " ".join(ensemble_notes(model, numbers, 10.0, 1.0))
    assert "3 proposals were undone" in notes
    assert "leaves out the 36 ps" in notes
    assert "unlike" not in notes
    few = numbers | {"jumps_accepted": 15, "fallbacks": 25}
    assert "15 of 40 accepted" in dropped_jumps(few)
    novel = numbers | {"jumps_accepted": 10, "novel": 30}
    assert "30 of 40 frames were unlike" in dropped_jumps(novel)
    assert "At 30 of 40 jumps the frame was unlike" in " ".join(
        ensemble_notes(model, novel, 10.0, 1.0)
    )
    assert "None of 40" in dropped_jumps(numbers | {"jumps_accepted": 0, "fallbacks": 40})
    assert dropped_jumps(numbers | {"jumps_tried": 4, "jumps_accepted": 0}) is None
