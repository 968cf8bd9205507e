"""Work shared out: Dask workers that are killed, chains that stay the same, runs that go on."""

import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from counted_work import Counted

from openmm_sd import ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.generate import FrameCheck, GenerateSettings, generate
from openmm_sd.generate.parts import Parts
from openmm_sd.propagator.kernels import OrnsteinUhlenbeck
from openmm_sd.rollout.driver import read_rollout, run_rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.workers.processes import ProcessPool
from openmm_sd.workers.shares import cores, shares

pytest.importorskip("distributed", reason="Dask is not installed (the extra 'cluster')")

from openmm_sd.rollout import shared
from openmm_sd.workers import cluster as module


@pytest.fixture(scope="module")
def workers():
    """A cluster of two workers on this machine."""
    with module.local_cluster(shares(2)) as cluster:
        yield cluster


def dry(**changes):
    """Seconds of work on the Reference platform."""
    small = {"plain_ps": 8.0, "warm_up_ps": 0.4, "seeded_ps": 2.0, "pull_ps": 3.0}
    return GenerateSettings(solvent="implicit", **(small | changes))


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# -- workers that die ------------------------------------------------------------------------------


def test_the_work_of_a_killed_worker_is_done_elsewhere(workers, tmp_path):
    log = tmp_path / "log"
    pool = module.Pool(workers, Counted(log, 0.3))
    try:
        for k in range(8):
            pool.submit(k, f"piece {k}")
        made, killed, before = {}, None, []
        while pool.busy:
            for one in pool.made(0.1):
                pid, square = one.result
                made[one.tag] = square
                if killed is None:
                    killed = pid
                    # It has handed in one and is at another.
                    wait_for(lambda pid=pid: log.read_text().count(f" {pid}\n") == 2)
                    before = log.read_text().split("\n")
                    os.kill(pid, signal.SIGKILL)
    finally:
        pool.close()
    assert made == {f"piece {k}": k**2 for k in range(8)}
    lines = Counter(log.read_text().split("\n"))
    handed_in = next(iter(made))
    assert lines[f"done {handed_in[6:]}"] == 1
    # What a worker had finished when the other died was made once, by whomever.
    for k in range(8):
        assert lines[f"done {k}"] <= 1 + (f"done {k}" in before and f"piece {k}" != handed_in)
    # What the killed worker was at was begun again, by another process.
    begun = [line.split()[1:] for line in lines if line.startswith("begun")]
    lost = [k for k, pid in begun if int(pid) == killed][-1]
    assert {int(pid) for k, pid in begun if k == lost} > {killed}


def test_a_data_set_survives_a_killed_worker(workers, pdb, tmp_path, monkeypatch):
    saved, kept = Counter(), {}
    save = Parts.save_chunk

    def save_and_kill(self, task, chunk, snapshot):
        number = len(self.chunks(task))
        saved[task, number] += 1
        save(self, task, chunk, snapshot)
        if sum(saved.values()) == 2:
            kept.update({t: self.load_chunk(self.chunks(t)[0]).frames for t, _ in saved})
            client = module.distributed.Client(workers)
            pids = client.run(os.getpid)
            client.close()
            os.kill(next(iter(pids.values())), signal.SIGKILL)

    monkeypatch.setattr(Parts, "save_chunk", save_and_kill)
    output = tmp_path / "data.h5"
    settings = dry(plain_runs=3, seeded_runs=1)
    result = generate(pdb, output, settings, dask=workers, save_seconds=0.2)
    assert result["complete"]
    assert set(saved.values()) == {1}
    data = read_dataset(output)
    assert [run.n_frames for run in data.runs] == [9, 9, 9, 3]
    check = FrameCheck(data.molecule)
    for run in data.runs:
        check(run.positions.astype(np.float64))
    found = {run.name: np.rint(run.positions * 1e4) for run in data.runs}
    for task, frames in kept.items():
        assert np.array_equal(found[task][: len(frames)], frames[:, 0])
    assert not (tmp_path / "data.h5.parts").exists()


def test_stopped_workers_hand_in_what_they_have(workers, pdb, tmp_path, monkeypatch):
    save, saved = Parts.save_chunk, []

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        saved.append(arguments)
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Parts, "save_chunk", save_and_stop)
    output = tmp_path / "data.h5"
    result = generate(
        *(pdb, output, dry(plain_runs=2, plain_ps=1e5)), dask=workers, save_seconds=0.2
    )
    assert result["stopped"]
    assert not result["complete"]
    made = read_dataset(output).runs
    assert sum(run.n_frames for run in made) == sum(len(chunk.frames) for _, chunk, _ in saved)
    # Without Dask, one of them goes on.
    name = made[0].name
    index, frames = int(name[-5:]), made[0].n_frames
    again = generate(pdb, output, dry(plain_runs=index + 1, plain_ps=frames + 1.0), processes=1)
    assert again["complete"]
    run = next(run for run in read_dataset(output).runs if run.name == name)
    assert run.n_frames == frames + 2
    assert np.array_equal(run.positions[:frames], made[0].positions)


def test_a_process_that_is_killed_is_replaced(pdb, tmp_path, monkeypatch):
    killed = []
    start = ProcessPool.start

    def start_and_kill(self, task):
        start(self, task)
        if not killed:
            killed.append(task)
            pid = self.pids[task]
            threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()

    monkeypatch.setattr(ProcessPool, "start", start_and_kill)
    said = []
    result = generate(
        *(pdb, tmp_path / "data.h5", dry(plain_runs=2, seeded_runs=1)),
        processes=2,
        progress=lambda what, how_far: said.append(f"{what}: {how_far}"),
    )
    assert result["complete"]
    assert any("plain-00000: its process ended; another takes over" in line for line in said)
    assert [run.n_frames for run in read_dataset(tmp_path / "data.h5").runs] == [9, 9, 3]


def test_pieces_of_one_run_go_on_where_they_were(workers, pdb, tmp_path):
    """Uncut pieces on one worker are those of a run that nobody shares out."""
    settings = dry(plain_runs=1, plain_ps=5.0)
    generate(pdb, tmp_path / "alone.h5", settings, processes=1)
    generate(pdb, tmp_path / "shared.h5", settings, dask=workers, save_seconds=1e-6)
    one, other = (read_dataset(tmp_path / name).runs[0] for name in ("alone.h5", "shared.h5"))
    # On the Reference platform to the last bit.
    assert np.array_equal(one.positions, other.positions)


# -- rollouts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaken(ala2):
    """Chains that noise moves, atom by atom."""
    start = ala2.positions + np.random.default_rng(3).normal(scale=0.001, size=(7, 22, 3))
    card = {"lag_range_ps": [1, 1000], "recommended_lag_ps": 10}
    return ScoreModel(OrnsteinUhlenbeck(22, 50.0, 0.01), ala2, card, start)


def test_chains_are_the_same_whoever_moves_them(workers, shaken, tmp_path):
    settings = RolloutSettings(chains=70, steps=7, seed=4)
    one = run_rollout(shaken, tmp_path / "one", settings, format="h5", every=2)
    two = run_rollout(shaken, tmp_path / "two", settings, format="h5", every=2, dask=workers)
    assert np.array_equal(read_rollout(tmp_path / "one"), read_rollout(tmp_path / "two"))
    for key in ("jumps", "draws", "rejections", "fallbacks", "steps_done", "frames", "complete"):
        assert one[key] == two[key]
    assert two["jumps_per_second"] > 0


def test_a_network_gives_two_workers_what_it_gives_one(workers):
    """Blocks do not depend on who is there, so that not even rounding differs."""
    model = ScoreModel.load("ala2-water")
    settings = RolloutSettings(chains=40, steps=2, lag_ps=10.0)

    def together():
        return shared.SharedRollout(model, settings, None, workers, 1, lambda *_: None)

    rollout = together()
    try:
        found = [rollout.advance() for _ in range(2)]
    finally:
        rollout.close()
    alone = shared.BlockMover(model, settings, 1)
    start = together().frames
    blocks = [alone.work((k, start[k : k + 32], 0, 2, 99.0), lambda: False)[1] for k in (0, 32)]
    for step in range(2):
        expected = np.concatenate([records[step][0] for records in blocks])
        assert np.array_equal(found[step], expected)


def test_a_shared_rollout_goes_on_alone(workers, shaken, tmp_path, monkeypatch):
    monkeypatch.setattr("openmm_sd.rollout.driver._REPORT_SECONDS", 0.0)
    settings = RolloutSettings(chains=40, steps=9, seed=4)

    def interrupt(what, how_far):
        if how_far.startswith("step 3 of 9"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_rollout(shaken, tmp_path / "cut", settings, dask=workers, progress=interrupt)
    assert len(read_rollout(tmp_path / "cut")) == 3
    whole = run_rollout(shaken, tmp_path / "cut", settings)
    assert whole["complete"]
    run_rollout(shaken, tmp_path / "whole", settings)
    assert np.array_equal(read_rollout(tmp_path / "cut"), read_rollout(tmp_path / "whole"))


@pytest.mark.parametrize("format", ["xtc", "h5"])
def test_a_rollout_stopped_between_two_records_goes_on_with_workers(
    workers, shaken, tmp_path, monkeypatch, format
):
    monkeypatch.setattr("openmm_sd.rollout.driver._REPORT_SECONDS", 0.0)
    settings = RolloutSettings(chains=40, steps=11, seed=4, device="cpu")

    def interrupt(what, how_far):
        if how_far.startswith("step 5 of 11"):
            os.kill(os.getpid(), signal.SIGINT)

    common = {"format": format, "every": 3}
    with pytest.raises(KeyboardInterrupt):
        run_rollout(shaken, tmp_path / "cut", settings, progress=interrupt, **common)
    assert json.loads((tmp_path / "cut" / "rollout.json").read_text())["steps_done"] == 5
    # The workers choose their devices here, which is no other setting.
    later = replace(settings, device="auto")
    assert run_rollout(shaken, tmp_path / "cut", later, dask=workers, **common)["complete"]
    run_rollout(shaken, tmp_path / "whole", settings, **common)
    found = read_rollout(tmp_path / "cut")
    assert len(found) == 3
    assert np.array_equal(found, read_rollout(tmp_path / "whole"))


def test_what_waits_to_be_written_is_bounded(workers, shaken, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_AHEAD_BYTES", 1)
    rollout = shared.SharedRollout(
        *(shaken, RolloutSettings(chains=64, steps=40), None, workers, 1), lambda *_: None
    )
    try:
        for _ in range(5):
            rollout.step()
            assert max(len(block.records) for block in rollout._blocks) <= 2
    finally:
        rollout.close()


# -- what is refused -------------------------------------------------------------------------------


def test_each_process_gets_its_share_of_the_machine(monkeypatch):
    assert [one["CUDA_VISIBLE_DEVICES"] for one in shares(3, ["2", "5"])] == ["2", "5", "2"]
    assert shares(cores(), [])[0]["OPENMM_CPU_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in shares(1, [])[0]
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert shares(os.cpu_count(), [])[0]["OPENMM_CPU_THREADS"] == "1"
    with pytest.raises(ValueError, match="at least 1"):
        shares(0, [])


def test_a_numbered_gpu_is_refused_where_each_worker_sees_one(shaken, tmp_path):
    settings = RolloutSettings(chains=40, steps=2, device="cuda:1")
    with pytest.raises(ValueError, match="ask for cuda, not cuda:1"):
        run_rollout(shaken, tmp_path / "out", settings, dask=2)


def test_clusters_that_are_none_are_refused(pdb, shaken, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.3)
    shaken.save(tmp_path / "model.safetensors")
    command = ["rollout", str(tmp_path / "model.safetensors"), "-o", str(tmp_path / "out")]
    assert main([*command, "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "dask: no scheduler answers at tcp://127.0.0.1:9" in capfd.readouterr().err
    assert main([*command, "--dask", "0"]) == 2
    assert "at least 1" in capfd.readouterr().err
    with pytest.raises(ValueError, match="already has the workers that it has"):
        generate(pdb, tmp_path / "d.h5", dry(), dask="tcp://127.0.0.1:9", processes=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_other_versions_are_refused(monkeypatch):
    plugin = module._Preparation(Counted("log", 0.0), "name", own=False)
    plugin.version = "0.0.1"

    class Worker:
        address = "tcp://there"

    with pytest.raises(ValueError, match="tcp://there has openmm-sd .*, wanted is 0.0.1"):
        plugin.setup(Worker())
    assert "name" not in module._jobs
