"""The commands as functions: one name for a package and a function, keywords, docs/python.md."""

import contextlib
import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import mdtraj
import pytest

import openmm_sd
from openmm_sd import verbs
from openmm_sd.cli import COMMANDS, _module
from openmm_sd.cli.options import _with_options
from openmm_sd.data.dataset import read_dataset
from openmm_sd.rollout import RolloutSettings
from openmm_sd.train import DistillOptions, StageSettings, TrainOptions, TrainSettings
from openmm_sd.validate import plots

ROOT = Path(__file__).parents[1]
NAMES = [
    *(
        "prepare",
        "generate",
        "import_trajectories",
        "train",
        "adapt",
        "distill",
        "validate",
        "rollout",
    ),
    *("run", "report"),
]
#: What makes the page's examples short; a test fails where one is not found.
LITTLE = {
    'gly", solvent="implicit")': 'gly", solvent="implicit", equilibration_ps=0.2)',
    "plain_ps=10_000)": "plain_ps=60, seeded_runs=0, warm_up_ps=1, processes=1)",
    "minutes=30, lag_max_ps=100": "max_steps=5, lag_max_ps=20, width=32, depth=1, held_out=0.4",
    "calls=2, minutes=10": "calls=2, max_steps=2, batch_size=8",
    "chains=500, steps=100": "chains=8, steps=2",
    "lags=[10], chains=500": "lags=[10], chains=8, steps=10",
    'model="gly.safetensors", jumps=1000': 'model="gly.safetensors", jumps=2, burst_ps=0.1',
    "burst_ps=0.5, jumps=100": "burst_ps=0.1, jumps=1",
}


@pytest.mark.parametrize(
    "program",
    [
        "import openmm_sd; verb = openmm_sd.{0}; import openmm_sd.{0}.settings",
        "import openmm_sd.{0}.settings; from openmm_sd import {0} as verb",
        "from openmm_sd.{0} import settings; import openmm_sd.{0} as verb",
    ],
)
@pytest.mark.parametrize("name", ["prepare", "run"])
def test_a_package_is_a_function_in_any_order(name, program):
    program = program.format(name) + "; import openmm_sd; "
    program += f"assert verb is openmm_sd.{name}; verb(None, None, wrong=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.rstrip().endswith(f"TypeError: {name.title()}Settings has no wrong")


def test_every_command_of_a_stage_is_a_function():
    for name in NAMES:
        verb = getattr(openmm_sd, name)
        assert inspect.signature(verb) == inspect.signature(getattr(verbs, name))
        assert name in openmm_sd.__all__
        command = name.replace("_trajectories", "")
        assert command in COMMANDS
        # Every option is a keyword, or a field of the one class of settings.
        known = {
            one.name
            for kind in vars(verbs).values()
            if inspect.isclass(kind)
            and issubclass(kind, verbs.Settings)
            and f"'{kind.__name__} |" in str(inspect.signature(verb))
            for one in fields(kind)
        }
        for kind in getattr(_module(command), "SETTINGS", ()):
            assert {one.name for one in _with_options(kind)} <= known, name


def test_keywords_replace_what_settings_say(tmp_path):
    kept = RolloutSettings(chains=3, steps=2, seed=5)
    made = openmm_sd.rollout("ala2-water", tmp_path / "out", kept, chains=4)
    assert (made["chains"], made["steps"], made["seed"]) == (4, 2, 5)
    with pytest.raises(TypeError, match=r"^RolloutSettings has no chain, nothing$"):
        openmm_sd.rollout("ala2-water", tmp_path / "no", kept, chain=4, nothing=1)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        openmm_sd.rollout("ala2-water", tmp_path / "no", steps=0)
    with pytest.raises(ValueError, match="give a source or a sequence"):
        openmm_sd.prepare(None, tmp_path / "no")
    with pytest.raises(ValueError, match="give copies"):
        openmm_sd.run("box", tmp_path / "no", processes=2)


def test_one_flat_class_says_all_of_a_training():
    options = TrainOptions(width=32, minutes=2.0, seed=4, lag_max_ps=20.0, compose_from_ps=0)
    assert options.staged() == StageSettings(
        network_settings={"width": 32},
        training=TrainSettings(minutes=2.0, seed=4),
        lag_max_ps=20.0,
        compose_from_ps=None,
    )
    # The student's own defaults.
    assert DistillOptions().staged().training.minutes == 30.0
    with pytest.raises(ValueError, match="shortest lag must be below"):
        TrainOptions(lag_min_ps=5.0, lag_max_ps=2.0)
    with pytest.raises(ValueError, match="sigma_max must be above"):
        TrainOptions(sigma_min=5.0, sigma_max=2.0)
    for name in ("held_out", "width", "learning_rate"):
        assert f"\n    {name} : " in str(TrainOptions.__doc__)


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "draw_all", lambda *arguments: [])
    text = (ROOT / "docs" / "python.md").read_text()
    for much, little in LITTLE.items():
        assert much in text, much
        text = text.replace(much, little)
    scripts = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(scripts) == 3
    shutil.copy(ROOT / "examples" / "ace-gly-nme.pdb", tmp_path)
    names = {}
    with contextlib.chdir(tmp_path):
        exec(scripts[0], names)
        frames = read_dataset("gly.h5").runs[0].positions
        mdtraj.Trajectory(frames, mdtraj.load("gly/solute.pdb").topology).save("md.xtc")
        exec(scripts[1], names)
        exec(scripts[2], names)
        assert read_dataset("imported.h5").provenance["temperature_K"] == 300.0
        for made in ("fast.safetensors", "chains/rollout.json", "validation/validation.html"):
            assert Path(made).stat().st_size > 0
        for folder in ("run1", "copy1", "copy2"):
            assert Path(folder, "trajectory.xtc").exists()
    assert names["summary"]["jumps_tried"] == 2
    assert names["found"]["headline"] in capsys.readouterr().out
