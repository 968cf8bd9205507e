"""Kills: every engine goes on where it was, and nothing that was seen is lost or altered."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_dense import build, frames
from test_run import Killed, settings, stable, visible

from openmm_sd.data.dataset import UNIT_NM, read_dataset
from openmm_sd.files import journal
from openmm_sd.files.trajectories import FORMATS, RawFrames
from openmm_sd.generate import GenerateSettings, generate
from openmm_sd.generate.parts import Parts
from openmm_sd.rollout import RolloutSettings, driver as rollout_driver, read_rollout, run_rollout
from openmm_sd.run import run_mixed
from openmm_sd.train import Part, TrainSettings, TransitionPairs, train

# -- what can be seen, on the way and at the end ---------------------------------------------------


def seen_of_run(folder, format):
    found = visible(folder, format)
    if format == "h5" and not found["trajectory.part"] and (folder / "trajectory.h5").exists():
        # A finished run has its frames in the HDF5 file only.
        raw = folder.with_suffix(".raw")
        RawFrames(22, False).from_hdf5(folder / "trajectory.h5", raw)
        found["trajectory.part"] = raw.read_bytes()
    return found


def seen_of_rollout(folder, format):
    stream = folder / "trajectory.xtc"
    return {
        "bytes": stream.read_bytes() if stream.exists() else b"",
        "frames": read_rollout(folder).tobytes() if (folder / "rollout.json").exists() else b"",
    }


def seen_of_generate(folder, format):
    parts = Parts(folder / "data.h5.parts")
    if not parts.folder.exists() and (folder / "data.h5").exists():
        runs = read_dataset(folder / "data.h5").runs
        return {run.name: np.rint(run.positions / UNIT_NM).astype("i2").tobytes() for run in runs}
    return {
        task: b"".join(parts.load_chunk(path).frames.tobytes() for path in parts.chunks(task))
        for task in ("plain-00000", "plain-00001")
    }


def seen_of_train(folder, format):
    weights = folder / "weights"
    return {"weights": weights.read_bytes()} if weights.exists() else {}


SEEN = {
    "run": seen_of_run,
    "rollout": seen_of_rollout,
    "generate": seen_of_generate,
    "train": seen_of_train,
}
#: Pieces of a data set have seeds of their own, so that it depends on where a run was stopped.
EXACT = ("run", "rollout", "train")


def check(name, format, whole, broken, seen):
    """What was seen before each kill is in what came of it, which is what comes without kills."""
    final = SEEN[name](broken, format)
    for before in seen:
        for file, data in before.items():
            # The last frame may have been cut short by the kill; what there is of it is right.
            assert final[file].startswith(data), file
    assert name == "train" or any(any(before.values()) for before in seen)
    if name in EXACT:
        assert final == SEEN[name](whole, format)
        assert {f.name for f in broken.iterdir()} == {f.name for f in whole.iterdir()}


# -- killed between any two writes, and in the middle of one ---------------------------------------


@pytest.fixture
def engines(vacuum, jitter, pdb, monkeypatch):
    """What each engine makes in a folder, with a checkpoint as often as there can be one."""
    monkeypatch.setattr(rollout_driver, "_CHUNK_FRAMES", 1)
    often = 1e-9

    def run(folder, format):
        chosen = settings(format=format, checkpoint_seconds=often)
        return stable(run_mixed(jitter, vacuum, folder, chosen))

    def rollout(folder, format):
        chosen = RolloutSettings(chains=12, steps=9, seed=5)
        start = jitter.molecules[0].positions[None]
        summary = run_rollout(
            jitter, folder, chosen, start=start, format=format, checkpoint_seconds=often
        )
        return {name: summary[name] for name in ("jumps", "draws", "rejections", "complete")}

    def data(folder, format):
        folder.mkdir(exist_ok=True)
        chosen = GenerateSettings(
            solvent="implicit", plain_runs=2, plain_ps=5.0, warm_up_ps=0.5, seeded_runs=0
        )
        made = generate(pdb, folder / "data.h5", chosen, processes=1, save_seconds=often)
        return made["frames"]

    def training(folder, format):
        folder.mkdir(exist_ok=True)
        model, pairs = build(width=16, depth=1), TransitionPairs([frames(200).numpy()], 1.0)
        chosen = TrainSettings(
            max_steps=6, batch_size=16, bf16=False, report_seconds=0.0, rare_first=False
        )
        train(
            [Part(model, pairs)], chosen, checkpoint=folder / "state", progress=lambda record: None
        )
        state = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
        (folder / "weights").write_bytes(b"".join(state))

    return {"run": run, "rollout": rollout, "generate": data, "train": training}


def die_at(monkeypatch, number):
    """Let the process die at its write of this number."""
    write, replace, left = journal._write, os.replace, number

    def cut(stream, place, data):
        nonlocal left
        left -= 1
        write(stream, place, data if left > 0 else data[: len(data) // 2])
        if left <= 0:
            raise Killed

    def before(source, target):
        nonlocal left
        left -= 1
        if left <= 0:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(journal, "_write", cut)
    monkeypatch.setattr(os, "replace", before)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        *(("run", format) for format in FORMATS),
        *(("rollout", "xtc"), ("rollout", "h5"), ("generate", ""), ("train", "")),
    ],
)
def test_killed_at_any_write(engines, tmp_path, monkeypatch, name, format):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected, found, seen = engines[name](whole, format), Killed, []
    for number in range(2, 90, 3):
        with monkeypatch.context() as patch:
            die_at(patch, number)
            try:
                found = engines[name](broken, format)
                break
            except Killed:
                if broken.exists():
                    seen.append(SEEN[name](broken, format))
    assert found == expected
    assert len(seen) >= 2
    check(name, format, whole, broken, seen)


# -- killed at any moment --------------------------------------------------------------------------

PROGRAMS = {
    "run": """
from openmm_sd.run import RunSettings, run_mixed
settings = RunSettings(
    jumps={amount}, lag_ps=10.0, burst_ps=0.02, every_ps=0.014, platform="Reference",
    bridge="pythonforce", seed=7, format="{format}", checkpoint_seconds=0.05, settle_ps=0.01,
)
run_mixed("{folder}/model.safetensors", "{folder}/prepared", "{out}", settings)
""",
    "rollout": """
from openmm_sd.rollout import RolloutSettings, run_rollout
settings = RolloutSettings(chains=3, steps={amount})
model = "{folder}/model.safetensors"
run_rollout(model, "{out}", settings, start="{pdb}", checkpoint_seconds=0.01)
""",
    "generate": """
import pathlib
from openmm_sd.generate import GenerateSettings, generate
pathlib.Path("{out}").mkdir(exist_ok=True)
settings = GenerateSettings(
    solvent="implicit", plain_runs=2, plain_ps={amount}, warm_up_ps=1.0, seeded_runs=0
)
generate("{pdb}", "{out}/data.h5", settings, processes={format}, save_seconds=0.05)
""",
}


@pytest.mark.parametrize(
    ("name", "format", "amount", "kills"),
    [
        *(("run", "xtc", 1500, 3), ("rollout", "xtc", 1000, 3)),
        *(("generate", 1, 200, 3), ("generate", 2, 200, 3)),
        *(pytest.param("run", name, 20000, 50, marks=pytest.mark.slow) for name in FORMATS),
    ],
)
def test_killed_at_random_moments(on_disk, pdb, tmp_path, name, format, amount, kills):
    out, whole, rng = tmp_path / "out", tmp_path / "whole", random.Random()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def started(folder):
        program = PROGRAMS[name].format(
            folder=on_disk, pdb=pdb, out=folder, format=format, amount=amount
        )
        command = [sys.executable, "-c", program]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    seen, starting, before = [], 1.0, None
    while len(seen) < kills:
        process, began = started(out), time.monotonic()
        if seen and rng.random() < 0.25:
            time.sleep(rng.uniform(0.0, starting))  # while it is being taken up
        else:
            while before == (before := SEEN[name](out, format)) or not any(before.values()):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < began + 120
                time.sleep(0.01)
            starting = time.monotonic() - began
            time.sleep(rng.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before the last kill"
        seen.append(before := SEEN[name](out, format))
    for folder in (out, whole) if name in EXACT else (out,):
        process = started(folder)
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    check(name, format, whole, out, seen)
