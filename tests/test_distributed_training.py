"""Training over several processes: the same as over one, and stopped and taken up by any number."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from programs import Program
from small_molecules import alkane, constrained, rotated

from openmm_sd import ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset
from openmm_sd.train.driver import train_bundle
from openmm_sd.train.settings import StageSettings, TrainSettings
from openmm_sd.train.team import Team

# A rate at which a few steps of the warm-up move the weights.
SMALL = ["--width", "16", "--depth", "1", "--max-steps", "6", "--batch-size", "34", "--no-bf16"]
SMALL += ["--lag-max", "20", "--start-frames", "10", "--device", "cpu", "--learning-rate", "0.3"]
SMALL += ["--held-out", "0"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets of ethane and propane, whose torsions are anywhere."""
    folder = tmp_path_factory.mktemp("several")
    for name, carbons in (("ethane", 2), ("propane", 3)):
        molecule = replace(alkane(carbons), name=name)
        runs = []
        for seed in range(2):
            frames = constrained(rotated(molecule, 200, seed=seed), molecule, 0.11)
            runs.append(Run(f"plain{seed}", "plain", frames.astype(np.float32), 1.0))
        write_dataset(folder / f"{name}.h5", molecule, runs, {"temperature_K": 300.0})
    return folder


def weights(path):
    state = ScoreModel.load(path).members[0].propagator.weights()
    return torch.cat([value.flatten() for value in state.values()]).double()


def test_two_processes_train_what_one_does(folder, tmp_path, capfd):
    files = [str(folder / f"{name}.h5") for name in ("ethane", "propane")]
    alone, shared = tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"
    assert main(["train", *files, "-o", str(alone), "--json", *SMALL]) == 0
    one = json.loads(capfd.readouterr().out)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    command += ["-m", "openmm_sd", "train", *files, "-o", str(shared), "--json", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, env=QUIET, timeout=400)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)  # of one process only
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["steps"] == two["steps"] == 6
    course = [ScoreModel.load(path).card["training"]["history"][-1] for path in (alone, shared)]
    assert course[0]["loss"] == pytest.approx(course[1]["loss"], abs=1e-4)
    # The weights have moved by about a hundred times as much as they differ.
    before, after = weights(alone), weights(shared)
    assert float((before - after).norm() / before.norm()) < 1e-4
    assert not list(tmp_path.glob("*.checkpoint"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_stopped_together_and_taken_up_by_one(folder, tmp_path):
    output = tmp_path / "model.safetensors"
    checkpoint = tmp_path / "model.safetensors.checkpoint"
    data = str(folder / "ethane.h5")

    def settings(**changes):
        training = {"max_steps": 10**6, "batch_size": 16, "bf16": False, "report_seconds": 0.0}
        return StageSettings(
            network_settings={"width": 16, "depth": 1},
            lag_max_ps=20.0,
            device="cpu",
            held_out=0.0,
            training=TrainSettings(**(training | changes)),
        )

    # What torchrun sets.
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_WORLD_SIZE": "2"}
    processes = []
    for rank in range(2):
        own = tmp_path / f"said by {rank}"
        own.mkdir()
        work = functools.partial(train_bundle, [data], output, settings())
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(Program(work, own, environment=common | ranks))
    while not checkpoint.exists():
        assert all(process.running for process in processes), [one.stderr for one in processes]
        time.sleep(0.01)
    # One of them is told, and not the one that writes.
    processes[1].send_signal(signal.SIGTERM)
    codes = [process.wait(120) for process in processes]
    assert codes == [130, 130], [process.stderr for process in processes]
    assert not output.exists()
    made = torch.load(checkpoint, weights_only=True)["record"]["steps"]
    assert made > 0

    with pytest.raises(ValueError, match="other settings .batch_size"):
        train_bundle([data], output, settings(batch_size=8))
    result = train_bundle([data], output, settings(minutes=1e-6))
    assert result["steps"] == made
    assert result["processes"] == 1
    assert not checkpoint.exists()


def test_rows_are_shared_out_without_rest():
    for count in (2, 7, 64):
        for size in (1, 2, 3):
            if count >= size:
                parts = [Team(torch.device("cpu"), k, size).rows(count) for k in range(size)]
                assert [i for part in parts for i in range(count)[part]] == list(range(count))
                lengths = [part.stop - part.start for part in parts]
                assert max(lengths) - min(lengths) <= 1
