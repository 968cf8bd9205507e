"""make gpu-check without a GPU: that its commands are right, and that a failure is told."""

import importlib.util
import sys
from pathlib import Path

import pytest

from openmm_sd.cli import parser_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # where dataclasses look for its names
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


def test_a_dry_run_does_every_kind_of_step(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path / "dry.md"), "--dry-run"])
    assert gpu_check.main() == 0, (tmp_path / "dry.md").read_text()
    text = (tmp_path / "dry.md").read_text()
    assert text.count("| done |") == len(gpu_check.dry_steps(tmp_path))
    assert "test_native.py" in text
    assert "1 of 1 jumps accepted" in text


def test_a_step_that_fails_or_hangs_is_told_and_the_rest_goes_on(gpu_check, tmp_path, monkeypatch):
    python = (sys.executable, "-c")
    hanging = "import time; print('so far', flush=True); time.sleep(60)"
    monkeypatch.setattr(
        gpu_check,
        "steps",
        lambda folder: [
            gpu_check.Step("fails", (*python, "print('why'); exit(3)")),
            gpu_check.Step("hangs", (*python, hanging), 1.0),
            gpu_check.Step("is not there", ("/nowhere/at/all",)),
            gpu_check.Step("works", (*python, "print('fine')")),
        ],
    )
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path / "report.md")])
    assert gpu_check.main() == 1
    text = (tmp_path / "report.md").read_text()
    assert "| fails | failed: exit code 3 |" in text
    assert "| hangs | no end after 1 s |" in text
    assert "| is not there | failed: " in text
    assert "| works | done |" in text
    assert "\nwhy\n" in text
    assert "\nfine\n" in text


def test_every_option_of_the_real_run_exists(gpu_check, tmp_path):
    """Of commands that no test can run here; the parsers refuse what they do not know."""
    asked = 0
    for step in gpu_check.steps(tmp_path):
        if step.command[: len(gpu_check.PROGRAM)] == gpu_check.PROGRAM:
            command, *arguments = step.command[len(gpu_check.PROGRAM) :]
            parser_of(command).parse_args(arguments)
            asked += 1
    assert asked >= 6
