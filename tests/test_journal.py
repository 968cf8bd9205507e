"""Kills: every engine goes on where it was, and nothing that was seen is lost or altered."""

import functools
import os
import random
import signal
import time

import numpy as np
import pytest
from programs import Program
from test_dense import build, frames
from test_run import Killed, settings, stable, visible

from openmm_sd.data.dataset import UNIT_NM, read_dataset
from openmm_sd.files import journal
from openmm_sd.files.trajectories import FORMATS, RawFrames
from openmm_sd.generate import GenerateSettings, generate
from openmm_sd.generate.parts import Parts
from openmm_sd.rollout import RolloutSettings, driver as rollout_driver, read_rollout, run_rollout
from openmm_sd.run import RunSettings, run_mixed
from openmm_sd.run.files import read_checkpoint
from openmm_sd.run.status import ARRAYS
from openmm_sd.train import Part, TrainSettings, TransitionPairs, train

# -- what can be seen, on the way and at the end ---------------------------------------------------


def seen_of_run(folder, format):
    found = visible(folder, format)
    if format == "h5" and not found["trajectory.part"] and (folder / "trajectory.h5").exists():
        # A finished run has its frames in the HDF5 file only.
        raw = folder.with_suffix(".raw")
        RawFrames(22, False, ARRAYS).from_hdf5(folder / "trajectory.h5", raw)
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


def calls(on_disk, pdb, format):
    """What each engine does in a folder: a call, given how much of it."""
    often = 0.05

    def run(folder, jumps):
        settings = RunSettings(
            **{"jumps": jumps, "lag_ps": 10.0, "burst_ps": 0.02, "every_ps": 0.014, "seed": 7},
            **{"platform": "Reference", "bridge": "pythonforce", "settle_ps": 0.01},
            **{"format": format, "checkpoint_seconds": often},
        )
        paths = on_disk / "model.safetensors", on_disk / "prepared"
        return functools.partial(run_mixed, *paths, folder, settings)

    def rollout(folder, steps):
        settings = RolloutSettings(chains=3, steps=steps)
        return functools.partial(
            run_rollout, on_disk / "model.safetensors", folder, settings, start=pdb,
            checkpoint_seconds=0.01,
        )  # fmt: skip

    def data(folder, ps, processes=1):
        folder.mkdir(exist_ok=True)
        settings = GenerateSettings(
            solvent="implicit", plain_runs=2, plain_ps=ps, warm_up_ps=1.0, seeded_runs=0
        )
        return functools.partial(
            generate, pdb, folder / "data.h5", settings, processes=processes, save_seconds=often
        )

    return {
        "run": run,
        "rollout": rollout,
        "generate": data,
        "generate in processes": functools.partial(data, processes=2),
    }


def little_more(name, folder):
    """How much is little more than what a killed engine has made."""
    if name == "rollout":
        return ROLLOUT_STEPS  # it was told so at the start
    if name == "run":
        checkpoint = read_checkpoint(folder)
        return 3 + (checkpoint.state["steps"] // 10 if checkpoint else 0)
    frames = len(max(seen_of_generate(folder, "").values(), key=len)) // (22 * 3 * 2)
    return frames + 20.0  # workers whose parent was killed may save once more


ROLLOUT_STEPS = 600
ENDLESS = {"run": 10**6, "rollout": ROLLOUT_STEPS, "generate": 1e5}


@pytest.mark.parametrize(
    ("name", "format", "kills"),
    [
        *(("run", "xtc", 2), ("rollout", "xtc", 2)),
        *(("generate", "", 2), ("generate in processes", "", 1)),
        *(pytest.param("run", name, 50, marks=pytest.mark.slow) for name in FORMATS),
    ],
)
def test_killed_at_random_moments(on_disk, pdb, tmp_path, name, format, kills):
    """Real processes; what they were at is finished in this one, and little is left to do."""
    out, whole, rng = tmp_path / "out", tmp_path / "whole", random.Random()
    work = calls(on_disk, pdb, format)
    engine = name.split()[0]
    seen, starting, before = [], 0.3, None
    while len(seen) < kills:
        process, began = Program(work[name](out, ENDLESS[engine]), tmp_path), time.monotonic()
        if seen and rng.random() < 0.25:
            time.sleep(rng.uniform(0.0, starting))  # while it is being taken up
        else:
            while before == (before := SEEN[engine](out, format)) or not any(before.values()):
                assert process.running, process.stderr
                time.sleep(0.01)
            starting = time.monotonic() - began
            time.sleep(rng.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0 and engine == "rollout" and seen:
            break  # on a machine that did not let this process kill it in time
        assert process.wait() == -signal.SIGKILL, process.stderr
        seen.append(before := SEEN[engine](out, format))
    amount = little_more(engine, out)
    for folder in (out, whole) if engine in EXACT else (out,):
        work[engine](folder, amount)()
    check(engine, format, whole, out, seen)
