"""Copies of a run: ordinary runs with seeds of their own, and what they say together."""

import json
import os
import queue
import signal
import threading
from dataclasses import asdict

import numpy as np
import pytest
from conftest import model_of

from openmm_sd import ScoreModel
from openmm_sd.analysis.timeline import Timeline
from openmm_sd.cli import main
from openmm_sd.prepare import PreparedSystem, write_prepared
from openmm_sd.propagator.kernels import OrnsteinUhlenbeck
from openmm_sd.run import RunSettings, ensemble, merge_runs, run_ensemble, run_mixed
from openmm_sd.workers import processes
from openmm_sd.workers.processes import Helper

COMMON = {
    **{"lag_ps": 10.0, "burst_ps": 0.02, "platform": "Reference", "bridge": "pythonforce"},
    **{"seed": 7, "settle_ps": 0.01, "checkpoint_seconds": 5.0, "jumps": 6},
}


@pytest.fixture(scope="module")
def model(ala2):
    return model_of(OrnsteinUhlenbeck(ala2.n_atoms, 1000.0, 0.01), ala2, temperature_K=300.0)


@pytest.fixture(scope="module")
def two(vacuum, model, tmp_path_factory):
    """An ensemble of two runs, of which one process was killed, and what was said."""
    folder = tmp_path_factory.mktemp("ensemble") / "out"
    said = []
    helpers = []

    class Killed(Helper):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            helpers.append(self)
            if len(helpers) == 1:
                threading.Timer(0.5, os.kill, (self.pid, signal.SIGKILL)).start()

    patch = pytest.MonkeyPatch()
    patch.setattr(processes, "Helper", Killed)
    try:
        merged = run_ensemble(
            *(model, vacuum, folder, RunSettings(**COMMON), 2),
            processes=2,
            progress=lambda what, how_far: said.append(f"{what}: {how_far}"),
        )
    finally:
        patch.undo()
    return folder, merged, said


def test_copies_are_ordinary_runs(two, vacuum, model, tmp_path):
    folder, merged, said = two
    assert any("run-000: its process ended (-9); another takes over" in line for line in said)
    assert sorted(f.name for f in folder.iterdir()) == [
        *("ensemble.json", "model.safetensors", "run-000", "run-001", "start")
    ]
    run_mixed(model, vacuum, tmp_path / "one", RunSettings(**COMMON | {"seed": 8}))
    for name in ("trajectory.xtc", "log.csv"):
        same = (tmp_path / "one" / name).read_bytes()
        assert (folder / "run-001" / name).read_bytes() == same
        assert (folder / "run-000" / name).read_bytes() != same
    assert json.loads((folder / "ensemble.json").read_text()) == merged


def test_what_is_added_up(two):
    folder, merged, _ = two
    runs = [json.loads((folder / f"run-00{k}" / "summary.json").read_text()) for k in (0, 1)]
    assert merged["complete"]
    assert not merged["failed"]
    assert [run["seed"] for run in merged["runs"]] == [7, 8]
    for key in ("jumps_tried", "jumps_accepted", "redraws", "fallbacks", "frames"):
        assert merged[key] == runs[0][key] + runs[1][key]
    assert merged["jumps_tried"] == 12
    for gate, count in merged["rejections"].items():
        assert count == runs[0]["rejections"][gate] + runs[1]["rejections"][gate]
    assert merged["effective_time_ps"] == pytest.approx(sum(r["effective_time_ps"] for r in runs))
    assert merged["effective_ns_per_day"] == pytest.approx(
        np.mean([r["effective_ns_per_day"] for r in runs])
    )
    assert merged["populations"]
    alone = [merge_runs([folder / f"run-00{k}"])["populations"] for k in (0, 1)]
    for name, one in merged["populations"].items():
        own = [single[name]["value"] for single in alone]
        assert one["runs"] == pytest.approx(own)
        assert alone[0][name]["error"] is None
        weights = [r["effective_time_ps"] for r in runs]
        assert one["value"] == pytest.approx(np.average(own, weights=weights), abs=1e-3)


def test_the_command_goes_on_with_an_ensemble(two, tmp_path, capfd):
    """And a reference that is none costs no run."""
    folder, merged, _ = two
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"nothing")
    frames = (folder / "run-000" / "trajectory.xtc").read_bytes()
    command = ["run", str(folder / "start"), "-o", str(folder), "--copies", "1"]
    command += ["--model", str(folder / "model.safetensors"), "--platform", "Reference"]
    command += ["--reference", str(bad)]
    command += ["--bridge", "pythonforce", "--lag", "10", "--burst", "0.02", "--settle", "0.01"]
    command += ["--checkpoint-seconds", "5", "--seed", "7", "--jumps", "6"]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert f"1 run: {merged['runs'][0]['jumps_accepted']} of 6 jumps accepted" in printed
    assert "population of " in printed
    assert (folder / "run-000" / "trajectory.xtc").read_bytes() == frames
    found = json.loads((folder / "ensemble.json").read_text())
    assert len(found["runs"]) == 1
    assert found["complete"]
    assert any("Not compared with the reference" in note for note in found["notes"])


def test_another_ensemble_is_not_gone_on_with(two, vacuum, model, ala2):
    folder, _, _ = two
    other = model_of(OrnsteinUhlenbeck(ala2.n_atoms, 2000.0, 0.01), ala2, temperature_K=300.0)
    with pytest.raises(ValueError, match="holds an ensemble of another model"):
        run_ensemble(other, vacuum, folder, RunSettings(**COMMON), 3)
    moved = PreparedSystem(vacuum.topology, vacuum.system, vacuum.positions + 0.01)
    with pytest.raises(ValueError, match="holds an ensemble with another start"):
        run_ensemble(model, moved, folder, RunSettings(**COMMON), 3)
    assert not (folder / "run-002").exists()


def test_populations_of_independent_runs():
    """The mean of three runs, and its error from how they differ."""
    even = Timeline(np.arange(1.0, 11.0))
    inside = [np.array([1] * k + [0] * (10 - k)) for k in (2, 4, 6)]
    found = ensemble.population([even] * 3, inside, [10.0] * 3)
    assert found["runs"] == pytest.approx([0.2, 0.4, 0.6])
    assert found["value"] == pytest.approx(0.4)
    assert found["error"] == pytest.approx(0.2 / np.sqrt(3.0))
    assert found["visits"] == 3
    # A run that is three times as long counts three times.
    long = ensemble.population([even] * 2, inside[:2], [10.0, 30.0])
    assert long["value"] == pytest.approx(0.35)
    assert ensemble.population([even], inside[:1], [10.0])["error"] is None
    # Over many ensembles the error is the spread of the means.
    rng = np.random.default_rng(2)
    means, errors = [], []
    for _ in range(300):
        drawn = [(rng.random(10) < 0.3).astype(int) for _ in range(8)]
        one = ensemble.population([even] * 8, drawn, [10.0] * 8)
        means.append(one["value"])
        errors.append(one["error"] or 0.0)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.15)


def test_runs_of_two_kinds_are_not_merged(two, vacuum, model, tmp_path):
    warmer = RunSettings(**COMMON | {"temperature_K": 310.0})
    run_mixed(model, vacuum, tmp_path / "warm", warmer)
    with pytest.raises(ValueError, match=r"no runs of one kind: temperature \(K\) 310.0 and 300"):
        merge_runs([two[0] / "run-000", tmp_path / "warm"], model=model)


def test_a_copy_told_to_stop_before_it_has_begun_stops(vacuum, model, tmp_path):
    """A signal while it loads the model, when its run does not listen yet."""
    answers = queue.Queue()
    write_prepared(vacuum, tmp_path / "start")
    model.save(tmp_path / "model.safetensors")
    helper = Helper("openmm_sd.run.worker", answers)
    helper.send(
        {
            "model": str(tmp_path / "model.safetensors"),
            "start": str(tmp_path / "start"),
            "output": str(tmp_path / "out"),
            "settings": asdict(RunSettings(**COMMON | {"jumps": 10_000})),
            "report": False,
            "reference": [],
        }
    )
    while answers.get(timeout=120)[1]["what"] != "loading the model":
        pass
    helper.stop()
    said = []
    while (answer := answers.get(timeout=120)[1]) is not None:
        said.append(answer)
    helper.wait()
    assert said[-1] == {"stopped": True}


def test_what_is_refused(vacuum, model, ala2, tmp_path, capfd):
    settings = RunSettings(**COMMON)
    for copies, options, message in (
        (0, {}, "copies must be .*at least 1"),
        (2, {"devices": ["0"]}, "devices are GPUs, and platform is Reference"),
        (2, {"processes": 0}, "processes must name at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            run_ensemble(model, vacuum, tmp_path / "out", settings, copies, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds files but no ensemble \(mine.txt\)"):
        run_ensemble(model, vacuum, tmp_path / "full", settings, 2)
    assert not (tmp_path / "out").exists()
    write_prepared(vacuum, tmp_path / "start")
    ScoreModel(model.propagator, ala2, model.card).save(tmp_path / "model.safetensors")
    command = ["run", str(tmp_path / "start"), "-o", str(tmp_path / "out"), "--jumps", "2"]
    command += ["--model", str(tmp_path / "model.safetensors"), "--devices", "0"]
    assert main(command) == 2
    assert "--devices is for several runs" in capfd.readouterr().err
