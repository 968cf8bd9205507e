"""The program ``openmm-sd``: what it prints where, its exit codes, and its commands for real."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import launch

from openmm_sd import ScoreModel, __version__
from openmm_sd.bridges import BRIDGES
from openmm_sd.cli import COMMANDS, main, parser_of, progress as progress_module
from openmm_sd.cli.progress import Progress
from openmm_sd.demo import FILES
from openmm_sd.demo.driver import _crossings
from openmm_sd.prepare import solvate
from openmm_sd.prepare.driver import next_steps
from openmm_sd.propagator.kernels import Identity, Shift
from openmm_sd.system.force_field import DEFAULT_FORCE_FIELD

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "openmm_sd"]
SUMMARY = {
    "jumps_tried",
    "jumps_accepted",
    "redraws",
    "fallbacks",
    "rejections",
    "md_time_ps",
    "effective_time_ps",
    "effective_ns_per_day",
    "md_ns_per_day",
    "seconds",
    "model",
    "lag_ps",
    "burst_ps",
    "seed",
    "versions",
    "platform",
    "bridge",
    "notes",
}


def run(*arguments, **kwargs):
    """The program in a process of its own."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, **kwargs
    )


@pytest.fixture(scope="module")
def bundle(ala2, tmp_path_factory):
    """A bundle whose jumps move nothing."""
    path = tmp_path_factory.mktemp("bundle") / "identity.safetensors"
    ScoreModel(Identity(ala2.n_atoms), ala2, {"temperature_K": 300.0}).save(path)
    return path


@pytest.fixture(scope="module")
def tiny_demo(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = run(
        *("demo", "--output", folder, "--model", bundle, "--waters", 240, "--equilibration", 0.2),
        *("--jumps", 3, "--burst", 0.08, "--lag", 20, "--platform", "CPU"),
        *("--bridge", "pythonforce", "--seed", 5, "--json"),
    )
    return folder, done


# -- the program ---------------------------------------------------------------------------------


def cpu_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_ends_with_an_example(command, capsys):
    assert main([*filter(None, [command]), "--help"]) == 0
    assert "example: openmm-sd" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from openmm_sd.cli import COMMANDS, main; "
        "[main([command, '--help']) for command in COMMANDS]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'openmm', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"openmm-sd {__version__}"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo"], ["models", "--nonsense"]])
def test_arguments_that_make_no_sense(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_c_level_noise_stays_off_standard_output(monkeypatch, capfd):
    import ctypes

    from openmm_sd.cli import models
    from openmm_sd.cli.outcome import Outcome

    def noisy(arguments, progress):
        ctypes.CDLL(None).puts(b"noise from C")
        os.write(1, b"noise from the descriptor\n")
        print("noise from Python")
        return Outcome({"answer": 42}, "")

    monkeypatch.setattr(models, "run", noisy)
    assert main(["models", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"answer": 42}
    assert captured.err.count("noise") == 3


def test_a_fault_of_ours_is_no_wrong_input(monkeypatch, capsys):
    from openmm_sd.cli import models

    # A ValueError that comes out of somebody else's code says nothing about the input.
    monkeypatch.setattr(models, "run", lambda arguments, progress: json.loads("nonsense"))
    assert main(["models"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert main(["models", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(monkeypatch, capsys):
    from openmm_sd.cli import models

    def interrupted(arguments, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "run", interrupted)
    assert main(["models", "--json"]) == 130
    assert capsys.readouterr().out == ""


# -- models --------------------------------------------------------------------------------------


def test_models_lists_what_is_shipped(capsys):
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in listed] == ScoreModel.shipped()
    assert all(model["card"] and model["molecules"] for model in listed)


def test_models_with_nothing_shipped(monkeypatch, capsys):
    monkeypatch.setattr("openmm_sd.model.names.shipped", list)
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": []}
    assert main(["models"]) == 0
    assert "no models" in capsys.readouterr().out


def test_models_shows_a_card(bundle, capsys):
    assert main(["models", str(bundle)]) == 0
    assert "22 atoms" in capsys.readouterr().out
    assert main(["models", str(bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["card"] == {"temperature_K": 300.0}
    assert shown["molecules"] == [{"name": "ala2", "formula": "C6H12N2O2", "atoms": 22}]


def test_models_of_an_unknown_name(tmp_path, capsys):
    assert main(["models", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a bundle")
    assert main(["models", str(broken)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- doctor --------------------------------------------------------------------------------------


def test_doctor(tmp_path, monkeypatch, capsys):
    """For real, on one platform."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["doctor", "--platform", "CPU", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"python", "openmm", "torch", "openmmtorch", "openmm_sd"} <= findings["versions"].keys()
    assert set(findings["bridges"]) == {"pythonforce", "torchforce", "native"}
    for row in findings["bridges"].values():
        assert set(row) == {"CPU"}
        for cell in row.values():
            assert isinstance(cell["ok"], bool)
            assert cell["detail"]
    assert findings["bridges"]["pythonforce"]["CPU"]["ok"]
    said = findings["bridges"]["pythonforce"]["CPU"]["detail"]
    assert "landed within" in said
    assert all(f"{name}: jumped at try" in said for name in ScoreModel.shipped())
    # What it found out is remembered for bridge="auto".
    (cache,) = tmp_path.glob("**/bridges-*.json")
    known = json.loads(cache.read_text())
    assert {pair: probe["ok"] for pair, probe in known.items()} == {
        f"{bridge}/CPU": row["CPU"]["ok"] for bridge, row in findings["bridges"].items()
    }
    assert findings["auto"] == {"CPU": next(b for b in BRIDGES if known[f"{b}/CPU"]["ok"])}


def test_doctor_of_several_platforms(tmp_path, monkeypatch, capsys):
    """What processes of our own answer: fine, no jump, a wrong landing, and a crash at once."""
    from openmm_sd import doctor

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = tmp_path / "python"
    answer = '{"bridge": "\'$bridge\'", "platform": "\'$1\'", "ok": true, "detail": "fine"}'
    jumped = '{"platform": "\'$1\'", "ok": true, "detail": "jumped"}'
    program.write_text(
        f"""#!/bin/sh
        echo "$@" >> "$0.asked"
        bridge=$3; shift 3
        while [ $# -gt 0 ]; do
            case $bridge-$1 in native-CPU) echo library missing >&2; exit 127;; esac
            echo '{answer}'
            case $bridge-$1 in
            native-*) kill -SEGV $$;;
            torchforce-CPU) echo '{jumped}' | sed 's/true/false/; s/jumped/astray/';;
            *) echo '{jumped}';;
            esac
            shift
        done"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(doctor, "not_installed", lambda *pair: None)
    assert main(["doctor", "--platform", "CPU", "--platform", "Reference", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    fine = {"ok": True, "detail": "jumped"}
    assert findings["bridges"] == {
        "native": {
            "Reference": {"ok": False, "detail": "no jump: the process was killed by signal 11"},
            "CPU": {
                "ok": False,
                "detail": "the process ended with exit code 127: library missing",
            },
        },
        "torchforce": {"Reference": fine, "CPU": {"ok": False, "detail": "astray"}},
        "pythonforce": {"Reference": fine, "CPU": fine},
    }
    # A process a bridge, and after a crash another one for what is left.
    assert (tmp_path / "python.asked").read_text().count("doctor native") == 2
    assert len((tmp_path / "python.asked").read_text().splitlines()) == 4
    # The evaluations decide about that, not the jumps.
    assert findings["auto"] == {"Reference": "native", "CPU": "pythonforce"}
    assert {hint.split(":")[0].split()[0] for hint in findings["hints"]} >= {"native", "torchforce"}


def test_doctor_of_an_unknown_platform(capsys):
    assert main(["doctor", "--platform", "Abacus"]) == 2
    captured = capsys.readouterr()
    assert "Abacus" in captured.err
    assert captured.out == ""


def test_doctor_where_nothing_works(tmp_path, monkeypatch, capsys):
    from openmm_sd import bridges

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -SEGV $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert main(["doctor", "--platform", "CPU", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert findings["auto"] == {"CPU": None}
    assert set(bridges.BRIDGES) == {hint.split()[0].strip(":") for hint in findings["hints"]}


def test_doctor_without_openmmtorch(monkeypatch, tmp_path):
    from openmm_sd import doctor

    monkeypatch.setattr(doctor, "_OPENCL_DRIVERS", tmp_path)
    cells = {"CPU": {"ok": False, "detail": "openmm-torch cannot be imported"}}
    fine = {"CPU": {"ok": True, "detail": ""}}
    bridges = {"torchforce": cells, "pythonforce": fine, "native": fine}
    (hint, opencl) = doctor._hints(bridges, {"openmmtorch": None, "torch": "2.13.0"}, ["CPU"])
    assert "pip install" in hint
    assert "pocl-opencl-icd" in opencl
    hint = doctor._hints(bridges, {"openmmtorch": "1.10+cpu", "torch": "2.13.0"}, ["OpenCL"])[0]
    assert "2.10 to 2.12" in hint
    bridges["torchforce"] = {"CPU": fine["CPU"], "CUDA": {"ok": False, "detail": "no kernel"}}
    hint = doctor._hints(bridges, {"openmmtorch": "1.10+cpu", "torch": "2.12.1"}, ["CUDA"])[0]
    assert "acellera-openmmtorch-cu13" in hint


def test_doctor_does_not_advise_what_is_installed(monkeypatch, tmp_path):
    from openmm_sd import doctor
    from openmm_sd.bridges.base import Bridge

    monkeypatch.setattr(Bridge, "installed", lambda bridge: True)
    monkeypatch.setattr(doctor, "_OPENCL_DRIVERS", tmp_path)
    (tmp_path / "pocl.icd").touch()
    broken = {name: {"CPU": {"ok": False, "detail": "crashed"}} for name in BRIDGES}
    for torch in ("2.12.1", "2.13.0"):
        here = {"openmmtorch": "1.10+cpu", "torch": torch}
        hints = doctor._hints(broken, here, ["CPU"])
        assert {hint.split()[0].strip(":") for hint in hints} == set(BRIDGES)
        assert not any("pip install" in hint or "pocl" in hint for hint in hints)


def test_a_wrong_landing_is_found(monkeypatch):
    from openmm_sd import doctor

    class Astray(Shift):
        def __init__(self, n_atoms, shift):
            super().__init__(n_atoms, (0.0, 0.0, 0.001))

    monkeypatch.setattr(doctor, "Shift", Astray)
    with pytest.raises(RuntimeError, match="landed 3e-02 nm from where it should"):
        doctor.try_jumps("pythonforce", "Reference")


# -- demo ----------------------------------------------------------------------------------------


def test_demo_writes_its_four_files(tiny_demo):
    import mdtraj

    folder, done = tiny_demo
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} > set(FILES)
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(done.stdout) == summary
    assert summary.keys() >= SUMMARY
    assert summary["jumps_tried"] == 3
    assert summary["jumps_accepted"] + summary["fallbacks"] == 3
    assert set(summary["seconds"]) == {"md", "model", "settle"}
    assert summary["md_time_ps"] == pytest.approx(3 * 0.08)
    assert summary["effective_time_ps"] == pytest.approx(
        summary["md_time_ps"] + 20 * summary["jumps_accepted"]
    )
    assert summary["md_ns_per_day"] > 0
    assert summary["lag_ps"] == 20
    assert (folder / "ramachandran.png").read_bytes().startswith(b"\x89PNG")
    # Plain MD had the same time, and all of it.
    beside = summary["side_by_side"]
    assert beside["seconds"]["mixed_run"] == pytest.approx(sum(summary["seconds"].values()))
    assert beside["seconds"]["plain_md"] >= beside["seconds"]["mixed_run"]
    assert beside["plain_md"]["time_ps"] > 0
    assert beside["mixed_run"]["effective_time_ps"] == summary["effective_time_ps"]
    # A kernel that moves nothing crosses nothing.
    assert beside["mixed_run"]["crossings"] == {"phi": 0, "psi": 0}
    assert "crossed phi 0 and psi 0 times; the mixed run stands for 0.0" in beside["sentence"]

    trajectory = mdtraj.load(str(folder / "trajectory.xtc"), top=str(folder / "topology.pdb"))
    assert trajectory.n_frames == summary["frames"] == 6
    assert trajectory.n_atoms == 22 + 3 * 240
    assert (trajectory.unitcell_lengths > 1.8).all()
    assert (trajectory.time[1:] > trajectory.time[:-1]).all()
    bonds = [(a.index, b.index) for a, b in trajectory.topology.bonds]
    assert mdtraj.compute_distances(trajectory, bonds, periodic=False).max() < 0.2


def test_crossings_go_from_well_inside_to_well_inside():
    beta, alpha, left, between = (-80, 150), (-80, -40), (60, 40), (-20, 40)
    path = np.deg2rad(np.array([beta, alpha, between, alpha, beta, left, between, left, beta]))
    assert _crossings(path.astype(np.float32)) == {"phi": 2, "psi": 2}


def test_demo_does_not_overwrite(tiny_demo, bundle, capsys):
    folder, _ = tiny_demo
    before = (folder / "summary.json").read_text()
    assert main(["demo", "--output", str(folder), "--model", str(bundle)]) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "summary.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--platform", "Abacus"], "platform"),
        (["--bridge", "drawbridge"], "bridge"),
        (["--lag", "-1"], "lag"),
        (["--burst", "0"], "burst"),
        (["--seed", "0"], "seed"),
        (["--seconds", "-3"], "seconds"),
        (["--jumps", "0"], "jumps"),
        (["--waters", "0"], "waters"),
        (["--waters", "20"], "more water"),
        (["--equilibration", "0"], "equilibration"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_demo_refuses_wrong_input(arguments, said, bundle, tmp_path, capfd):
    command = ["demo", "--output", str(tmp_path / "out"), "--platform", "CPU"]
    model = [] if "--model" in arguments else ["--model", str(bundle)]
    assert main([*command, *model, *arguments, "--json"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]


def test_demo_refuses_a_file_as_directory(bundle, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "--output", str(tmp_path / "file"), "--model", str(bundle)]) == 2
    assert "directory" in capsys.readouterr().err


def test_demo_stopped_by_the_user(bundle, tmp_path):
    process = launch(
        *("demo", "--output", tmp_path / "out", "--model", bundle, "--waters", 240, "--json"),
        *("--platform", "CPU", "--bridge", "pythonforce"),
        folder=tmp_path,
    )
    while "equilibrating" not in process.stderr:
        assert process.running, process.stderr
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    assert process.stdout == ""
    assert "stopped" in process.stderr


class Clock:
    """A module `time` whose clock stands still until it is set."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_progress_says_rate_and_time_left(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    progress = Progress(verbose=True)
    for now, how_far in ((0, "step 20 of 100"), (10, "step 40 of 100"), (20, "0.5 of 3 min, fine")):
        clock.now = now
        progress("rollout", how_far)
    clock.now = 50
    progress("rollout", "1.0 of 3 min, fine")
    progress("running", "step 1 of 2, 3 h left")
    progress.close()
    assert [line[12:] for line in capsys.readouterr().err.splitlines()] == [
        "rollout: step 20 of 100",
        # What was made before is in no rate.
        "rollout: step 40 of 100, 2/s, 30 s left",
        "rollout: 0.5 of 3 min, fine",
        "rollout: 1.0 of 3 min, fine, 2 min left",
        "running: step 1 of 2, 3 h left",
    ]


def test_a_silent_stage_shows_that_it_is_at_work(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    monkeypatch.setattr(progress_module, "_TICK", 0.001)
    progress = Progress()
    progress("measuring the coordinates", "4 molecules")
    said, deadline = capsys.readouterr().err, time.monotonic() + 30.0
    for clock.now in (31.0, 62.0):
        before = said
        while said == before and time.monotonic() < deadline:
            said += capsys.readouterr().err
    progress.close()
    what = "measuring the coordinates: 4 molecules"
    assert said.splitlines() == [what, f"{what} (31 s)", f"{what} (62 s)"]


def test_the_clock_ends_where_nobody_reads(monkeypatch):
    clock, stream = Clock(), io.StringIO()
    monkeypatch.setattr(progress_module, "time", clock)
    monkeypatch.setattr(progress_module, "_TICK", 0.001)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress()
    progress("running", "")
    stream.close()
    clock.now = 31.0
    progress._clock.join(30.0)
    assert not progress._clock.is_alive()


def test_completion_in_bash(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for words, expected in (
        (["openmm-sd", "roll"], "rollout"),
        (["openmm-sd", "run", "x.pdb", "--effective"], "--effective-ns"),
        (["openmm-sd", "run", "x.pdb", "--format", "d"], "dcd"),
        (["openmm-sd", "run", "x.p"], ""),
    ):
        line = " ".join(f"'{word}'" for word in words)
        program = f"source {tmp_path / 'script'}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}"
        program += "; _openmm_sd; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected, words


@pytest.mark.parametrize("command", ["run", "validate", "report"])
def test_references_are_given_alike(command):
    words = ["--reference", "a.h5", "b.h5", "-r", "c.h5"]
    output = [] if command == "report" else ["-o", "out"]
    found = parser_of(command).parse_args([*words, *output, "--", "x"])
    assert found.reference == [["a.h5", "b.h5"], ["c.h5"]]


@pytest.mark.parametrize("command", ["run", "generate", "import"])
def test_the_step_is_given_alike(command):
    for option in ("--step-fs", "--step"):
        found = parser_of(command).parse_args(["x", "-o", "out", option, "2"])
        assert found.step_fs == 2.0


def test_run_of_an_unknown_molecule_says_what_prepare_says(capsys, tmp_path):
    molecule = str(ROOT / "examples" / "ace-gly-nme.pdb")
    asked = ["--platform", "CPU", "--temperature", "310"]
    assert main(["run", molecule, "-o", str(tmp_path / "out"), *asked]) == 2
    said = capsys.readouterr().err.splitlines()
    steps = next_steps([], DEFAULT_FORCE_FIELD, False, 310.0, platform="CPU")
    assert all("--platform CPU" in steps[place] for place in (0, -1))
    first = f"openmm-sd prepare {molecule} -o DIR --platform CPU --temperature 310"
    assert said[-5:] == [f"  {command}" for command in (first, *steps)]


def test_notes_stay(capsys):
    progress = Progress()
    for line in (
        ("running", "1 %"),
        ("note", "one thing"),
        ("note", "another"),
        ("running", "2 %"),
    ):
        progress(*line)
    progress.close()
    wanted = ["running: 1 %", "note: one thing", "note: another", "running: 2 %"]
    assert capsys.readouterr().err.splitlines() == wanted


# -- the box it starts from ----------------------------------------------------------------------


def test_box_by_padding(ala2):
    box = solvate(ala2.to_topology(), ala2.positions, padding=0.6, cutoff=0.6, hydrogen_mass=3.0)
    assert box.system.getNumParticles() == len(box.positions) == 22 + 3 * box.n_waters
    copies = min(box.box_vectors.diagonal()) - np.ptp(box.positions[:22], axis=0).max()
    assert copies >= 0.6
    hydrogen = ala2.atomic_numbers.index(1)
    assert box.system.getParticleMass(hydrogen)._value == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"waters": 300, "padding": 1.0}, "not both"),
        ({"waters": 1.5}, "waters"),
        ({"padding": -1.0}, "padding"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"waters": 20}, "more water"),
    ],
)
def test_box_refuses_wrong_input(ala2, wanted, said):
    with pytest.raises(ValueError, match=said):
        solvate(ala2.to_topology(), ala2.positions, **wanted)
