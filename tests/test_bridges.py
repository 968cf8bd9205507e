"""Bridges: real evaluations, the choice among them, and crashes that take nothing with them."""

import importlib.util
import sys
import types
from pathlib import Path

import openmm
import pytest
from conftest import answer

from openmm_sd.bridges import BRIDGES, Probe, choose_bridge, platform_names, probe
from openmm_sd.bridges.base import FORCE_NAME, PARAMETERS
from openmm_sd.jump.jump import Jump, build_gates
from openmm_sd.propagator.kernels import Identity

module = sys.modules["openmm_sd.bridges.probe"]


@pytest.mark.parametrize("platform", ["Reference", "CPU", "OpenCL"])
def test_pythonforce_works_on_every_platform(platform):
    if platform not in platform_names():
        pytest.skip(f"OpenMM has no {platform} platform here")
    result = answer("pythonforce", platform)
    assert result.ok, result.detail
    assert result.versions["openmm"] == openmm.__version__


@pytest.mark.parametrize("platform", ["Reference", "CPU", "OpenCL"])
def test_native_works_where_it_is_installed(platform):
    if importlib.util.find_spec("openmm_sd_native") is None:
        pytest.skip("openmm-sd-native is not installed")
    if platform not in platform_names():
        pytest.skip(f"OpenMM has no {platform} platform here")
    result = answer("native", platform)
    assert result.ok, result.detail
    assert "openmm_sd_native" in result.versions


@pytest.mark.parametrize("platform", ["Reference", "CPU", "OpenCL"])
def test_torchforce_works_where_it_is_installed(platform):
    if importlib.util.find_spec("openmmtorch") is None:
        pytest.skip("openmm-torch is not installed")
    if platform not in platform_names():
        pytest.skip(f"OpenMM has no {platform} platform here")
    result = answer("torchforce", platform)
    assert result.ok, result.detail
    assert "openmmtorch" in result.versions


def test_unknown_platform_is_an_answer():
    result = probe("pythonforce", "Abacus")
    assert not result.ok
    assert "Abacus" in result.detail


def script(tmp_path, monkeypatch, text):
    """Let the probe run a program of ours instead of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_a_crash_is_an_answer(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "echo 'some library: symbol lookup error' >&2; exit 127")
    result = probe("pythonforce", "CPU")
    assert not result.ok
    assert "exit code 127" in result.detail
    assert "symbol lookup error" in result.detail
    script(tmp_path, monkeypatch, "kill -SEGV $$")
    assert "killed by signal 11" in probe("pythonforce", "CPU").detail
    script(tmp_path, monkeypatch, "sleep 30")
    assert "no answer within" in probe("pythonforce", "CPU", timeout=0.5).detail


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Probes with answers of the test's own, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    world = types.SimpleNamespace(works={}, asked=[])

    def answer_for(bridge, platform):
        world.asked.append((bridge, platform))
        ok = world.works.get((bridge, platform), False)
        return Probe(bridge, platform, ok, "fine" if ok else "broken on purpose")

    monkeypatch.setattr(module, "probe", answer_for)
    monkeypatch.setattr(module, "platform_names", lambda: ["CPU", "OpenCL"])
    return world


def test_auto_takes_the_first_that_works_everywhere(fake):
    first, second, _ = list(BRIDGES)
    fake.works = {(first, "CPU"): True, (second, "CPU"): True, (second, "OpenCL"): True}
    assert choose_bridge() == second
    assert choose_bridge("CPU") == first


def test_auto_passes_over_what_will_not_do(fake):
    fake.works = {(b, p): True for b in BRIDGES for p in ("CPU", "OpenCL")}
    first, second, _ = list(BRIDGES)
    assert choose_bridge("CPU", [first]) == second


def test_auto_remembers_answers_and_can_ask_again(fake):
    fake.works = {(b, p): True for b in BRIDGES for p in ("CPU", "OpenCL")}
    choose_bridge()
    asked = len(fake.asked)
    choose_bridge()
    assert len(fake.asked) == asked == 2
    module.probe_all([next(iter(BRIDGES))], ["CPU"], fresh=True)
    assert len(fake.asked) == asked + 1


def test_auto_says_why_nothing_works(fake):
    with pytest.raises(RuntimeError, match="no bridge works here .*broken on purpose.*doctor"):
        choose_bridge()


def test_a_damaged_cache_is_no_obstacle(fake):
    fake.works = {(b, p): True for b in BRIDGES for p in ("CPU", "OpenCL")}
    choose_bridge()
    module._cache_file().write_text("{ not json")
    assert choose_bridge() == next(iter(BRIDGES))


def test_every_bridge_builds_the_same_force(ala2):
    for name, bridge in BRIDGES.items():
        if not answer(name, "Reference").ok:
            continue
        jump = Jump(Identity(ala2.n_atoms), ala2, build_gates(ala2, 1.0, []))
        for periodic in (False, True):
            force = bridge.create_force(jump, range(ala2.n_atoms), periodic)
            assert force.getName() == FORCE_NAME
            assert force.usesPeriodicBoundaryConditions() is periodic
            if name == "pythonforce":
                assert list(force.getParticles()) == list(range(ala2.n_atoms))
                assert set(force.getGlobalParameters()) == set(PARAMETERS)
            elif name == "torchforce":
                names = [
                    force.getGlobalParameterName(i) for i in range(force.getNumGlobalParameters())
                ]
                assert tuple(names) == PARAMETERS


def test_openmm_imported_first_still_finds_the_torch_plugin():
    """OpenMM loads plugins when it is imported; before torch, openmm-torch's does not load."""
    if importlib.util.find_spec("openmmtorch") is None:
        pytest.skip("openmm-torch is not installed")
    import subprocess

    code = (
        "import openmm; from openmm_sd.bridges.torchforce import load_plugin; "
        "from openmm_sd.bridges.probe import evaluate; print(evaluate('torchforce', 'CPU').ok)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip().endswith("True"), done.stderr
