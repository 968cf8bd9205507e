"""The native bridge: what other bridges cannot do, or do through Python.

That it does what the other bridges do is tested with them, in test_integrator and test_bridges.
"""

import copy
import importlib.util
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from conftest import IMPLICIT, advance, answer, model_of, positions_of

from openmm_sd import Propagator, ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.bridges import BRIDGES, choose_bridge, platform_names
from openmm_sd.bridges.base import FORCE_NAME, LAG, NUMBER, PARAMETERS
from openmm_sd.bridges.probe import attempt, probe_all
from openmm_sd.jump.jump import Jump, build_gates
from openmm_sd.propagator.kernels import Identity, Shift

ROOT = Path(__file__).parents[1]
SHIFT = (0.011, -0.023, 0.017)
STEP = 0.002

if importlib.util.find_spec("openmm_sd_native") is None:
    pytest.skip("openmm-sd-native is not installed", allow_module_level=True)
if not answer("native", "Reference").ok:
    pytest.skip(answer("native", "Reference").detail, allow_module_level=True)

import openmm_sd_native  # noqa: E402


def force_of(kernel, molecule, periodic=False):
    jump = Jump(kernel, molecule, build_gates(molecule, 1.0, []))
    force = BRIDGES["native"].create_force(jump, range(molecule.n_atoms), periodic)
    force.setForceGroup(7)
    return force


def system_with(force, n_atoms):
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    system.addForce(force)
    return system


def jump_of(system, positions, platform="Reference", number=1.0):
    """Displacement and status of a jump."""
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(positions)
    for name in PARAMETERS:
        context.setParameter(name, 1.0)
    context.setParameter(NUMBER, number)
    state = context.getState(forces=True, energy=True, groups={7})
    return np.array(state.getForces(asNumpy=True)._value), state.getPotentialEnergy()._value


def attached(kernel, peptide, molecule, **settings):
    settings = {
        "burst": 4 * STEP,
        "lag": 10.0,
        "stepSize": STEP,
        "maxEnergyRise": None,
        "settleSteps": 0,
        "settleTime": 0,
        "bridge": "native",
        "seed": 5,
    } | settings
    integrator = ScoreDynamicsIntegrator(model_of(kernel, molecule), **settings)
    system = peptide.system()
    integrator.attach(system, peptide.topology)
    return system, integrator


# -- the force as an object ------------------------------------------------------------------------


@pytest.mark.parametrize("periodic", [False, True])
def test_force_and_its_copies(peptide, ala2, periodic):
    force = force_of(Shift(ala2.n_atoms, SHIFT), ala2, periodic)
    contents = openmm_sd_native.read_force(force)
    assert contents.particles == tuple(range(ala2.n_atoms))
    assert contents.periodic is periodic
    assert contents.version == 1
    assert contents.module.startswith(b"PK")  # TorchScript files are zip files
    system = system_with(force, ala2.n_atoms)
    text = openmm.XmlSerializer.serialize(system)
    for twin in (
        system,
        copy.deepcopy(system),
        openmm.XmlSerializer.deserialize(text),
        pickle.loads(pickle.dumps(system)),
    ):
        assert openmm_sd_native.read_force(twin.getForce(0)) == contents
        assert twin.getForce(0).getName() == FORCE_NAME
        assert twin.getForce(0).getForceGroup() == 7
        assert twin.getForce(0).usesPeriodicBoundaryConditions() is periodic
        displacement, status = jump_of(twin, peptide.positions)
        np.testing.assert_allclose(displacement, np.tile(SHIFT, (ala2.n_atoms, 1)), atol=1e-7)
        assert status == 1
        assert not jump_of(twin, peptide.positions, number=0.0)[0].any()


def test_parameters_are_those_of_every_bridge(peptide, ala2):
    system = system_with(force_of(Identity(ala2.n_atoms), ala2), ala2.n_atoms)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001))
    assert dict(context.getParameters()) == dict.fromkeys(PARAMETERS, 0.0)


def test_other_versions_and_damage_are_refused(ala2):
    text = openmm.XmlSerializer.serialize(force_of(Identity(ala2.n_atoms), ala2))
    future = text.replace('version="1"', 'version="3"')
    with pytest.raises(openmm.OpenMMException, match="version 3 of its XML is unknown"):
        openmm.XmlSerializer.deserialize(future)
    start = text.index('module="') + 8
    with pytest.raises(openmm.OpenMMException, match="damaged"):
        openmm.XmlSerializer.deserialize(text[:start] + "####" + text[start:])
    with pytest.raises(ValueError, match="not a ScoreDynamicsForce"):
        openmm_sd_native.read_force(openmm.CustomExternalForce("x"))


def test_what_is_no_module_is_refused():
    force = openmm_sd_native.create_force(b"nonsense", [0], False, "a name")
    system = system_with(force, 1)
    with pytest.raises(openmm.OpenMMException, match="the module cannot be loaded"):
        openmm.Context(system, openmm.VerletIntegrator(0.001))


# -- a Context -------------------------------------------------------------------------------------


class Failing(Propagator):
    """Raises at lag 1; at lag 3 torch does."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 0)

    def forward(self, frame, lag, noise):
        if bool(lag[0] == 1.0):
            raise RuntimeError("broken on purpose")
        if bool(lag[0] == 3.0):
            return frame + torch.ones(frame.shape[1] + 1, 3)
        return frame


class Drifting(Propagator):
    """Moves the molecule as a whole by its noise."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 3)

    def forward(self, frame, lag, noise):
        return frame + 0.01 * noise.reshape(-1, 1, 3)


@pytest.mark.parametrize("platform", ["Reference", "CPU", "OpenCL"])
def test_an_exception_arrives_with_its_text(peptide, ala2, platform):
    if platform not in platform_names():
        pytest.skip(f"OpenMM has no {platform} platform here")
    system = system_with(force_of(Failing(ala2.n_atoms), ala2), ala2.n_atoms)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    context.setPositions(peptide.positions)
    for name in PARAMETERS:
        context.setParameter(name, 1.0)
    for lag, words in ((1.0, "broken on purpose"), (3.0, "must match the size"), (1.0, "broken")):
        context.setParameter(LAG, lag)
        with pytest.raises(openmm.OpenMMException, match=words):
            context.getState(energy=True)
        context.setParameter(LAG, 2.0)
        assert context.getState(energy=True).getPotentialEnergy()._value == 1.0


def test_contexts_in_threads_do_not_disturb_each_other(peptide, ala2):
    """Jumps in three threads at once are those of each alone."""
    system = system_with(force_of(Drifting(ala2.n_atoms), ala2), ala2.n_atoms)
    reference = openmm.Platform.getPlatformByName("Reference")

    def chain(seed, out):
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
        context.setPositions(peptide.positions)
        for name, value in zip(PARAMETERS, (0.0, 0.0, 2.0, seed, 10.0, 1e30), strict=True):
            context.setParameter(name, value)
        for number in range(1, 41):
            context.setParameter(NUMBER, number)
            state = context.getState(positions=True, forces=True, groups={7})
            moved = state.getPositions(asNumpy=True)._value + state.getForces(asNumpy=True)._value
            context.setPositions(moved)
        out[seed] = moved

    alone, together = {}, {}
    for seed in (1, 2, 3):
        chain(seed, alone)
    workers = [threading.Thread(target=chain, args=(seed, together)) for seed in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in (1, 2, 3):
        np.testing.assert_array_equal(together[seed], alone[seed])
    assert np.abs(alone[1] - alone[2]).max() > 1e-4


def test_nothing_is_leaked(peptide):
    """Contexts that come and go do not keep a model of 9 MB each, nor do jumps grow."""
    model = ScoreModel.load(IMPLICIT)
    molecule = model.molecules[0]
    jump = Jump(model.propagator, molecule, build_gates(molecule, 1.0, []))
    force = BRIDGES["native"].create_force(jump, range(molecule.n_atoms), False)
    force.setForceGroup(7)
    system = system_with(force, molecule.n_atoms)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    for _ in range(3):
        jump_of(system, molecule.positions)
    before = resident()
    for _ in range(12):
        jump_of(system, molecule.positions)
    assert resident() - before < 50.0  # MB; twelve models are 108


# -- which torch and OpenMM it was built for -------------------------------------------------------


def test_another_torch_is_a_clear_answer(tmp_path, monkeypatch):
    """A plugin of another torch is not loaded; the reason is one line, and auto goes on."""
    twin = tmp_path / "openmm_sd_native"
    shutil.copytree(openmm_sd_native.FOLDER, twin)
    (twin / "built_for.json").write_text(json.dumps({"openmm": "8.6.1", "torch": "2.0.0+cpu"}))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    detail = probe_all(["native"], ["Reference"])["native", "Reference"].detail
    assert "was built for OpenMM 8.6.1 and torch 2.0.0+cpu" in detail
    assert f"torch {torch.__version__}" in detail
    assert "build it again" in detail
    assert choose_bridge("Reference") == "pythonforce"


def test_a_plugin_of_before_is_a_clear_answer(monkeypatch):
    """One that holds whole modules only."""
    monkeypatch.delattr(openmm_sd_native, "VERSION")
    detail = attempt("native", "Reference").detail
    assert "is older than this openmm-sd: build it again, 'pip install" in detail


def test_auto_takes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Evaluated a moment ago; the package calls a function as it calls this module.
    monkeypatch.setattr(
        sys.modules["openmm_sd.bridges.probe"], "probe", lambda *pair, say: answer(*pair)
    )
    assert choose_bridge("Reference") == "native"


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    pytest.importorskip("cmake")
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    command = [sys.executable, "-m", "cmake", "-G", "Unix Makefiles", "-S", ROOT / "plugin"]
    command += [f"-DCMAKE_MAKE_PROGRAM={make}", "-B"]

    def said(folder):
        done = subprocess.run([*command, tmp_path / folder], capture_output=True, text=True)
        assert done.returncode != 0
        return " ".join(done.stderr.split())

    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler, is not there" in said("named")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    text = said("none")
    assert "there is no C++ compiler" in text
    assert "pythonforce" in text


# -- C++ without Python ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compile a C++ program with the flags that the plugin names."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("programs")

    def ask(what):
        command = [sys.executable, "-m", "openmm_sd_native", what]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def build(source):
        program = folder / source.stem
        command = [compiler, "-O1", "-o", str(program), str(source), *shlex.split(ask("--flags"))]
        subprocess.run(command, check=True)
        return program

    build.plugins = ask("--plugins")
    return build


def test_the_library_from_cpp(compiled, tmp_path):
    program = compiled(ROOT / "plugin/tests/TestReferenceScoreDynamicsForce.cpp")
    writer = ROOT / "plugin/tests/write_modules.py"
    subprocess.run([sys.executable, "-W", "ignore", writer, tmp_path], check=True)
    files = [tmp_path / "shift.pt", tmp_path / "fails.pt"]
    done = subprocess.run(
        [program, *files, openmm_sd_native.PLUGINS, "all"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok\n"


def test_a_mixed_run_without_python(compiled, tmp_path, peptide, ala2):
    """The example's run with jumps of a known shift ends that many shifts from one without."""
    program = compiled(ROOT / "plugin/examples/mixed_run.cpp")
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    assert "libOpenMMScoreDynamics" in needed
    assert "libpython" not in needed
    assert "libtorch_python" not in needed
    jumps = 5
    ends = []
    for kernel in (Identity(ala2.n_atoms), Shift(ala2.n_atoms, SHIFT)):
        system, _ = attached(kernel, peptide, ala2)
        files = [tmp_path / f"{name}.xml" for name in ("system", "state", "end")]
        files[0].write_text(openmm.XmlSerializer.serialize(system))
        context = openmm.Context(system, openmm.VerletIntegrator(STEP))
        context.setPositions(peptide.positions)
        state = context.getState(positions=True)
        files[1].write_text(openmm.XmlSerializer.serialize(state))
        arguments = [compiled.plugins, "Reference", jumps, 6, 10.0, 3]
        command = [program, *files[:2], *map(str, arguments), files[2]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {
            "jumps_tried": jumps,
            "jumps_accepted": jumps,
            "refused": 0,
            "taken_back": 0,
            "md_time_ps": pytest.approx(jumps * 6 * STEP),
            "effective_time_ps": pytest.approx(jumps * 6 * STEP + jumps * 10.0),
        }
        end = openmm.XmlSerializer.deserialize(files[2].read_text())
        ends.append(np.array(end.getPositions(asNumpy=True)._value))
    expected = np.tile(np.multiply(SHIFT, jumps), (ala2.n_atoms, 1))
    np.testing.assert_allclose(ends[1] - ends[0], expected, atol=1e-5)


# -- AOTInductor -----------------------------------------------------------------------------------


class Small(Propagator):
    """A network of the usual kind, small: it sees frames, lag and noise."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 3 * n_atoms)
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3 * n_atoms + 1, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3 * n_atoms)
        )

    def forward(self, frame: torch.Tensor, lag: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([frame.flatten(1), torch.log(lag).unsqueeze(1)], dim=1)
        moved = 0.01 * self.layers(seen) + 0.001 * noise
        return frame + moved.reshape(frame.shape)


COMPILED_SOON = {
    "compile_threads": 1,
    "cpp_cache_precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    # AVX2 where the processor has it, without a try of each kind of vectors.
    "cpp.vec_isa_ok": True,
    "cpp.simdlen": 256,
}


@pytest.mark.filterwarnings("ignore")  # torch's export uses what torch deprecates
def test_a_package_of_aotinductor(peptide, ala2):
    """The same jumps with the propagator compiled to machine code, copied and saved too."""
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    from openmm_sd_native.inductor import compile_propagator
    from torch._inductor import config as inductor

    plain = Small(ala2.n_atoms).eval().requires_grad_(False)
    frame = torch.tensor(ala2.positions, dtype=torch.float32)
    # How well the C++ compiler optimises changes nothing but the time that it takes.
    with inductor.patch(COMPILED_SOON):
        packaged = compile_propagator(plain, frame, 10.0)
    frames = torch.tensor(np.stack([ala2.positions, 1.01 * ala2.positions]), dtype=torch.float32)
    lags, noise = torch.tensor([10.0, 20.0]), torch.randn(2, packaged.noise_size)
    for module in (packaged, copy.deepcopy(packaged)):
        torch.testing.assert_close(
            module(frames, lags, noise), plain(frames, lags, noise), atol=1e-6, rtol=0
        )
    answers = []
    for kernel in (plain, packaged):
        system = system_with(force_of(kernel, ala2), ala2.n_atoms)
        answers.append([jump_of(system, ala2.positions, number=k) for k in (1, 2)])
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=1e-6)
        assert one[1] == other[1] == 1
    assert np.abs(answers[0][0][0] - answers[0][1][0]).max() > 1e-4
    twin = copy.deepcopy(system)
    np.testing.assert_array_equal(jump_of(twin, ala2.positions, number=2)[0], answers[1][1][0])


# -- GPU -------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["single", "mixed", "double"])
def test_on_a_gpu(peptide, ala2, precision):
    """Where torch has the GPU of OpenMM's Context, jumps are those of the Reference platform."""
    if "CUDA" not in platform_names() or not torch.cuda.is_available():
        pytest.skip("there is no GPU that OpenMM's CUDA platform and torch can use")
    assert answer("native", "CUDA").ok, answer("native", "CUDA").detail
    plain = Small(ala2.n_atoms).eval().requires_grad_(False)
    ends = []
    for name, properties in (("Reference", {}), ("CUDA", {"Precision": precision})):
        system, integrator = attached(plain, peptide, ala2, frictionCoeff=0.0)
        platform = openmm.Platform.getPlatformByName(name)
        context = openmm.Context(system, integrator, platform, properties)
        context.setPositions(peptide.positions)
        context.setVelocities(np.zeros((ala2.n_atoms, 3)))
        advance(integrator, 4)
        assert integrator.getNumJumps() == 1
        ends.append(positions_of(context))
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-4)
