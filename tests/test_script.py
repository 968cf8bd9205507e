"""Modules that are compiled and frozen, with what they were made from gone."""

import subprocess
import sys

import pytest
import torch
from conftest import IMPLICIT

from openmm_sd import ScoreModel
from openmm_sd.propagator.script import script, script_frozen

PROGRAM = """
import gc
import sys

import torch

from openmm_sd import ScoreModel
from openmm_sd.jump.gates import FiniteGate
from openmm_sd.jump.jump import Jump
from openmm_sd.propagator.script import script_frozen


def frozen_jump():
    model = ScoreModel.load(sys.argv[1])
    return script_frozen(Jump(model.propagator, model.molecules[0], [FiniteGate()]))


frozen = frozen_jump()
gc.collect()
for _ in range(3):
    try:
        frozen(torch.zeros(5, 3), torch.zeros(3, 3), 0, 0, 1, 1, 10.0, 0.0)
    except RuntimeError as error:
        print("refused:", "out of bounds" in str(error))
print("alive")
"""


def test_an_exception_in_a_frozen_module_does_not_crash_the_process():
    """With torch.jit.freeze alone this program ends in a segmentation fault."""
    command = [sys.executable, "-c", PROGRAM, str(IMPLICIT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused: True"] * 3 + ["alive"]


@torch.no_grad()
def test_compiled_and_frozen_it_answers_the_same():
    model = ScoreModel.load(IMPLICIT)
    module = model.propagator
    x = torch.tensor(model.molecules[0].positions, dtype=torch.float32).unsqueeze(0)
    lag, noise = torch.tensor([10.0]), torch.randn(1, model.noise_size)
    expected = module(x, lag, noise)
    for compiled in (script(module), script_frozen(module)):
        torch.testing.assert_close(compiled(x, lag, noise), expected, atol=1e-5, rtol=0)
        with pytest.raises(RuntimeError):
            compiled(x[:, :-1], lag, noise)
    assert not script(module).training
    # Weights are constants of a frozen module, and parameters of one that is not.
    assert not list(script_frozen(module).parameters())
    assert list(script(module).parameters())
