"""Systems that hold a jump: how large they are as XML, and what copies of them need."""

import copy
import gc
import hashlib
import io

import numpy as np
import openmm
import pytest
import torch
from conftest import answer

from openmm_sd import Propagator, ScoreModel, register_architecture
from openmm_sd.bridges import BRIDGES
from openmm_sd.bridges.base import PARAMETERS
from openmm_sd.bridges.parts import FOLDERS, join, split
from openmm_sd.bridges.pythonforce import JumpCallback
from openmm_sd.jump.jump import Jump, gates_of
from openmm_sd.propagator.kernels import OrnsteinUhlenbeck, Shift
from openmm_sd.propagator.script import script_if_possible

#: openmm-torch 1.10 writes all weights, and cannot read what it wrote under OpenMM 8.6.
COPIED = [name for name in BRIDGES if name != "torchforce"]


@pytest.fixture(params=COPIED)
def bridge(request):
    if not answer(request.param, "Reference").ok:
        pytest.skip(answer(request.param, "Reference").detail)
    return request.param


class Layers(Propagator):
    """A network that TorchScript compiles at once."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 3 * n_atoms)
        self.hyperparameters = {"n_atoms": n_atoms}
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3 * n_atoms, 1000), torch.nn.Linear(1000, 3 * n_atoms)
        )

    def forward(self, frame: torch.Tensor, lag: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return frame + 0.01 * self.layers(noise).reshape(frame.shape)


@pytest.fixture
def file(ala2, tmp_path):
    """The file of a model that the test may do away with."""
    register_architecture("layers", Layers)
    path = tmp_path / "model.safetensors"
    ScoreModel(Layers(ala2.n_atoms), ala2).save(path)
    return path


def jump_of(model):
    return Jump(model.propagator, model.molecules[0], gates_of(model, model.molecules[0]))


def system_of(bridge, model):
    n_atoms = model.molecules[0].n_atoms
    force = BRIDGES[bridge].create_force(jump_of(model), range(n_atoms), False, model.file)
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    system.addForce(force)
    return system


def displacement_of(system, model):
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
    context.setPositions(model.molecules[0].positions)
    for name in PARAMETERS:
        context.setParameter(name, 4.0)
    moved = np.array(context.getState(forces=True).getForces(asNumpy=True)._value)
    assert moved.any()
    return moved


def written(bridge, model):
    """A System's XML, its jump, and nothing of it left in this process."""
    system = system_of(bridge, model)
    text, moved = openmm.XmlSerializer.serialize(system), displacement_of(system, model)
    del system
    gc.collect()
    return text, moved


def read(text):
    return openmm.XmlSerializer.deserialize(text)


def test_what_is_written_is_small_and_jumps_alike(bridge):
    name = "ala2-water"
    model = ScoreModel.load(name)
    text, moved = written(bridge, model)
    assert len(text) < 1_000_000
    np.testing.assert_array_equal(displacement_of(read(text), model), moved)
    # Another installation has the model elsewhere.
    assert text.count(model.file) == (1 if bridge == "native" else 0)
    if bridge == "native":
        elsewhere = read(text.replace(model.file, f"/nowhere/{name}.safetensors"))
        np.testing.assert_array_equal(displacement_of(elsewhere, model), moved)


def pickle_of(state):
    """A callback as OpenMM reads it."""
    callback = JumpCallback.__new__(JumpCallback)
    callback.__setstate__(state)
    return callback


def test_a_shipped_model_that_was_elsewhere():
    shipped = ScoreModel.load("ala2-water")
    callback = JumpCallback(script_if_possible(jump_of(shipped)), 22, False, shipped.file)
    state = callback.__getstate__() | {"file": "/nowhere/ala2-water.safetensors"}
    del callback
    gc.collect()
    assert pickle_of(state).jump is not None
    gc.collect()
    with pytest.raises(ValueError, match="needs the model's file /nowhere/b.safetensors"):
        _ = pickle_of(state | {"file": "/nowhere/b.safetensors"}).jump


def test_copies_need_no_file(bridge, file):
    """Copies within a process share the module: nothing is read, compiled or put together."""
    model = ScoreModel.load(file)
    system = system_of(bridge, model)
    first = copy.deepcopy(system)
    file.unlink()
    for twin in (copy.deepcopy(system), copy.deepcopy(first), openmm.XmlSerializer.clone(first)):
        np.testing.assert_array_equal(displacement_of(twin, model), displacement_of(system, model))


def test_without_its_file(bridge, file, tmp_path, monkeypatch):
    model = ScoreModel.load(file)
    text, moved = written(bridge, model)
    aside = tmp_path / "aside"
    aside.mkdir()
    file.rename(aside / file.name)
    with pytest.raises(Exception, match=f"needs the model's file {file}, which is not there") as it:
        displacement_of(read(text), model)
    assert "\n" not in str(it.value).strip()
    monkeypatch.setenv(FOLDERS, f"/nowhere:{aside}")
    np.testing.assert_array_equal(displacement_of(read(text), model), moved)


def test_another_file_in_its_place(bridge, file):
    model = ScoreModel.load(file)
    text, _ = written(bridge, model)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    for changed in (bytes(data), b"", data[: len(data) // 2]):
        file.write_bytes(changed)
        with pytest.raises(Exception, match=f"{file} is not the model's file that this") as it:
            displacement_of(read(text), model)
        assert "\n" not in str(it.value).strip()


@pytest.mark.parametrize("made", ["in memory", "of a file that went"])
def test_a_model_that_is_in_no_file_travels_whole(bridge, file, made):
    model = ScoreModel.load(file)
    if made == "in memory":
        model = ScoreModel(model.propagator, model.molecules, model.card)
        assert model.file is None
    else:
        file.unlink()
    text, moved = written(bridge, model)
    np.testing.assert_array_equal(displacement_of(read(text), model), moved)
    weights = sum(p.numel() * p.element_size() for p in model.propagator.parameters())
    # Once, as hexadecimal digits, beside some code.
    assert 1.3 * weights < len(text) < 2.6 * weights


@pytest.mark.parametrize("scripted", [True, False])
def test_callbacks_of_before(ala2, scripted):
    """What version 0.1.0 wrote is read."""
    jump = Jump(Shift(ala2.n_atoms, (0.1, 0.0, 0.0)), ala2, [])
    buffer = io.BytesIO()
    torch.jit.save(script_if_possible(jump), buffer)
    state = {"script": buffer.getvalue() if scripted else None, "module": None}
    if not scripted:
        state["module"] = jump
    callback = pickle_of(state | {"periodic": False, "n_atoms": ala2.n_atoms})
    again = copy.deepcopy(callback)
    assert isinstance(again.jump, torch.jit.ScriptModule) is scripted


def test_what_torchscript_cannot_read_is_copied(ala2, tmp_path):
    class Jitter(OrnsteinUhlenbeck):
        def forward(self, *arguments):
            return super().forward(*arguments)

    globals()["Jitter"] = Jitter
    Jitter.__qualname__ = "Jitter"
    callback = JumpCallback(Jump(Jitter(ala2.n_atoms, 1000.0, 0.01), ala2, []), ala2.n_atoms, True)
    twin = copy.deepcopy(callback)
    assert twin.jump is not callback.jump
    assert twin.periodic


def test_parts():
    """Numbers of 32 bits in the module may be of 16 bits in the file; parts may come again."""
    from safetensors.numpy import save

    rng = np.random.default_rng(1)
    halves = rng.normal(size=(3, 700)).astype(np.float16)
    floats = rng.normal(size=(20, 30)).astype(np.float32)
    wide = halves[[2, 0, 2]].astype(np.float32).tobytes()
    module = b"head" + wide + floats.tobytes() * 2 + b"tail"
    digest = hashlib.sha256(module).hexdigest()
    assert split(module, None) == [module]
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(save({"halves": halves, "floats": floats}))
        file.flush()
        parts = split(module, file.name)
        assert [type(part) for part in parts] == [bytes, *[tuple] * 5, bytes]
        assert join(parts, file.name, digest) == module
