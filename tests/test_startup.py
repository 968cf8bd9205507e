"""What starts at once: which modules are imported, rather than how long that takes somewhere."""

import json
import subprocess
import sys

import pytest

from openmm_sd import ScoreModel
from openmm_sd.cli.models import _described
from openmm_sd.model.listing import read_listed

# Most of what numpy and networkx take is a tenth of a second, torch and OpenMM many.
HEAVY = ("torch", "openmm", "mdtraj", "scipy", "pandas", "matplotlib", "safetensors", "h5py")
LIGHT = (*HEAVY, "numpy", "networkx", "yaml", "importlib.metadata", "subprocess", "asyncio")


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import openmm_sd", (*LIGHT, "json", "dataclasses", "platform")),
        ("from openmm_sd.cli import main; main(['--help'])", LIGHT),
        ("from openmm_sd.cli import main; main(['--version'])", LIGHT),
        ("from openmm_sd.cli import main; main(['models', '--help'])", LIGHT),
        ("from openmm_sd.cli import main; main(['models'])", HEAVY),
        ("from openmm_sd.cli import main; main(['models', '--json'])", HEAVY),
    ],
)
def test_what_a_start_imports(code, without):
    program = f"import sys; before = set(sys.modules); {code}; "
    program += "print(); print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert "openmm_sd" in loaded
    assert not set(without) & set(loaded)


@pytest.mark.parametrize("name", ScoreModel.shipped())
def test_a_list_says_what_the_model_says(name):
    listed, loaded = (
        json.dumps(_described(name, model)) for model in (read_listed(name), ScoreModel.load(name))
    )
    assert listed == loaded
