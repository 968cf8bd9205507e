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


@pytest.fixture
def installed(monkeypatch):
    """As if every bridge's package were there."""
    monkeypatch.setattr(module, "not_installed", lambda *pair: None)


def test_a_crash_is_an_answer(tmp_path, monkeypatch, installed):
    script(tmp_path, monkeypatch, "echo 'some library: symbol lookup error' >&2; exit 127")
    result = probe("torchforce", "CPU")
    assert not result.ok
    assert "exit code 127" in result.detail
    assert "symbol lookup error" in result.detail
    script(tmp_path, monkeypatch, "kill -SEGV $$")
    assert "killed by signal 11" in probe("torchforce", "CPU").detail
    assert not probe("torchforce", "CPU").timed_out
    script(tmp_path, monkeypatch, "sleep 30")
    late = probe("torchforce", "CPU", timeout=0.5)
    assert "no answer within" in late.detail
    script(tmp_path, monkeypatch, "kill -KILL $$")  # as Linux does where memory is short
    killed = probe("torchforce", "CPU")
    assert "killed by signal 9, which is no verdict" in killed.detail
    assert late.timed_out
    assert killed.timed_out


def test_an_answer_is_waited_for(tmp_path, monkeypatch, installed):
    """However busy the machine is; after a moment it is said what takes so long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    slow = """while [ ! -e "$0.go" ]; do sleep 0.02; done
        echo '{"bridge": "native", "platform": "CPU", "ok": true, "detail": "fine"}'"""
    script(tmp_path, monkeypatch, slow)
    said = []

    def say(what, how_far):
        said.append(f"{what}: {how_far}")
        (tmp_path / "python.go").touch()  # the bridge answers after this was said

    assert choose_bridge("CPU", say=say) == "native"
    assert said == ["trying the bridge: native on CPU"]
    monkeypatch.setattr(module, "_read_cache", dict)
    monkeypatch.setattr(module, "_on_stderr", say)
    (tmp_path / "python.go").unlink()
    assert choose_bridge("CPU") == "native"
    assert len(said) == 2
    assert choose_bridge("CPU") == "native"  # at once, in silence
    assert module.probe.__defaults__[0] is None  # no time-out


def test_what_is_known_says_nothing(fake, capsys):
    fake.works = {(b, "CPU"): True for b in BRIDGES}
    choose_bridge("CPU")
    assert capsys.readouterr() == ("", "")


def test_no_answer_is_no_verdict(fake):
    """What did not answer is asked again by the next."""
    late = Probe(
        "native", "CPU", False, "no answer within 1 s, which is no verdict", timed_out=True
    )
    module.remember({("native", "CPU"): late})
    assert module._read_cache() == {}
    fake.works = {("native", "CPU"): True}
    assert choose_bridge("CPU") == "native"


def test_pythonforce_is_tried_in_this_process(tmp_path, monkeypatch):
    """It is made of nothing that this process has not loaded."""
    script(tmp_path, monkeypatch, "kill -SEGV $$")
    assert probe("pythonforce", "Reference").ok


def test_the_cache_knows_the_environment(tmp_path, monkeypatch):
    """Python under another name has the same answers, another plugin or torch has not."""
    file = module._cache_file()
    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python3")
    assert module._cache_file() == file
    monkeypatch.setattr(module, "versions", lambda packages: {"torch": "9.9"})
    assert module._cache_file() != file
    monkeypatch.undo()
    (tmp_path / "openmmtorch.py").touch()
    monkeypatch.delitem(sys.modules, "openmmtorch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert module._cache_file() != file


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Probes with answers of the test's own, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    world = types.SimpleNamespace(works={}, asked=[])

    def answer_for(bridge, platform, say=None):
        world.asked.append((bridge, platform))
        ok = world.works.get((bridge, platform), False)
        return Probe(bridge, platform, ok, "fine" if ok else "broken on purpose")

    monkeypatch.setattr(module, "probe", answer_for)
    monkeypatch.setattr(module, "default_platform", lambda: "OpenCL")
    return world


def test_auto_asks_about_the_platform_that_is_used(fake):
    first, second, _ = list(BRIDGES)
    fake.works = {(first, "CPU"): True, (second, "CPU"): True, (second, "OpenCL"): True}
    assert choose_bridge() == second
    assert fake.asked == [(first, "OpenCL"), (second, "OpenCL")]
    assert choose_bridge("CPU") == first
    assert fake.asked[2:] == [(first, "CPU")]


def test_the_default_platform_is_that_of_a_context():
    system = openmm.System()
    system.addParticle(1.0)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001))
    assert module.default_platform() == context.getPlatform().getName()


def test_auto_passes_over_what_will_not_do(fake):
    fake.works = {(b, p): True for b in BRIDGES for p in ("CPU", "OpenCL")}
    first, second, _ = list(BRIDGES)
    assert choose_bridge("CPU", [first]) == second


def test_auto_remembers_answers_and_can_ask_again(fake):
    fake.works = {(b, p): True for b in BRIDGES for p in ("CPU", "OpenCL")}
    choose_bridge()
    asked = len(fake.asked)
    choose_bridge()
    assert len(fake.asked) == asked == 1
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
