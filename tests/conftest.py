"""Systems that the tests share, and the loop over bridges and platforms."""

import functools
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# One thread a process where several share the cores: two that both want all of them are slower.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

# torch before OpenMM, which loads openmm-torch's plugin when it is imported.
import torch  # noqa: F401  # isort: skip
import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_sd import Molecule, ScoreModel
from openmm_sd.bridges import BRIDGES, Probe, platform_names, probe
from openmm_sd.prepare import PreparedSystem, write_prepared
from openmm_sd.propagator.kernels import OrnsteinUhlenbeck
from openmm_sd.system import force_field

# It takes seconds to read a force field, and the tests ask for a few again and again.
force_field._load = functools.cache(force_field._load.__wrapped__)

PLATFORMS = ("Reference", "CPU", "OpenCL")
PDB = Path(__file__).parent / "data" / "ace-ala-nme.pdb"
#: A small trained model of ACE-ALA-NME in implicit solvent, see data/README.md.
IMPLICIT = Path(__file__).parent / "data" / "ala2-implicit.safetensors"
#: Largest deviation allowed where a kernel says to what place the solute goes, nm.
LANDING = 1e-6

#: Files that take a minute and more; they begin first, so that no process is left alone with one.
SLOW_FILES = (
    *("test_integrator", "test_prepare", "test_integrator_due", "test_native", "test_run"),
    *("test_distributed_training", "test_journal", "test_train", "test_own_molecule", "test_cli"),
    *("test_gromacs", "test_integrator_seeds", "test_readme", "test_family", "test_known_answer"),
    *("test_examples", "test_ensemble", "test_validate", "test_benchmark", "test_cluster"),
)


def pytest_collection_modifyitems(items):
    """Put the tests of slow files first."""
    order = {name: k for k, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


EVALUATE = """
import json, sys
from dataclasses import asdict
from openmm_sd.bridges.probe import attempt
for pair in json.loads(sys.argv[1]):
    print(json.dumps(asdict(attempt(*pair))), flush=True)
"""


@functools.cache
def answers():
    """What real evaluations say, all in one process, which a bridge that does not work may end."""
    pairs = [(bridge, platform) for bridge in BRIDGES for platform in platform_names()]
    command = [sys.executable, "-c", EVALUATE, json.dumps(pairs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
    found = [Probe(**json.loads(x)) for x in done.stdout.splitlines() if x.startswith("{")]
    return {(one.bridge, one.platform): one for one in found}


@functools.cache
def answer(bridge, platform):
    """What a real evaluation of the bridge says, once a session."""
    return answers().get((bridge, platform)) or probe(bridge, platform)


@dataclass(frozen=True)
class Engine:
    """A bridge on a platform."""

    bridge: str
    name: str

    @property
    def platform(self):
        return openmm.Platform.getPlatformByName(self.name)

    @property
    def exact(self):
        """Whether forces are deterministic, so that trajectories repeat to the last bit."""
        return self.name == "Reference"


@pytest.fixture(params=[pytest.param((b, p), id=f"{b}-{p}") for b in BRIDGES for p in PLATFORMS])
def engine(request):
    """Every bridge on every platform; those that fail a real evaluation are left out, aloud."""
    bridge, platform = request.param
    if platform not in platform_names():
        pytest.skip(f"OpenMM has no {platform} platform here")
    result = answer(bridge, platform)
    if not result.ok:
        pytest.skip(f"{bridge} does not work on {platform}: {result.detail}")
    return Engine(bridge, platform)


#: Every bridge on one platform, and one bridge on every platform: enough for what depends on the
#: bridge or on the platform, but not on the two together.
CROSSED = [(b, p) for b in BRIDGES for p in PLATFORMS if b == "pythonforce" or p == "Reference"]
crossed = pytest.mark.parametrize("engine", CROSSED, indirect=True, ids=map("-".join, CROSSED))


@pytest.fixture(params=list(BRIDGES))
def reference(request):
    """Every bridge on the Reference platform, where forces are deterministic."""
    if not answer(request.param, "Reference").ok:
        pytest.skip(f"{request.param}: {answer(request.param, 'Reference').detail}")
    return Engine(request.param, "Reference")


@dataclass(frozen=True)
class Box:
    """A Topology with relaxed positions (nm), its box vectors, and what makes its System."""

    topology: app.Topology
    positions: np.ndarray
    forcefield: app.ForceField
    water: str = "tip3p"

    def system(self, **changes):
        """A System with HBonds constraints and a cutoff that fits the small box."""
        periodic = self.topology.getPeriodicBoxVectors() is not None
        settings = {
            "nonbondedMethod": app.CutoffPeriodic if periodic else app.NoCutoff,
            "nonbondedCutoff": 0.7 * unit.nanometer,
            "constraints": app.HBonds,
        }
        return self.forcefield.createSystem(self.topology, **(settings | changes))


def relax(topology, positions, forcefield, steps=200):
    """Minimise and shake for a moment, on the CPU platform."""
    periodic = topology.getPeriodicBoxVectors() is not None
    system = forcefield.createSystem(
        topology,
        nonbondedMethod=app.CutoffPeriodic if periodic else app.NoCutoff,
        nonbondedCutoff=0.7 * unit.nanometer,
        constraints=app.HBonds,
    )
    integrator = openmm.LangevinMiddleIntegrator(300, 10, 0.001)
    integrator.setRandomNumberSeed(1)
    # The same box in every session: how hard a test's jump meets the water depends on it.
    cpu = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, cpu, {"DeterministicForces": "true"})
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 200)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(steps)
    return np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)


@pytest.fixture
def implicit_installed(tmp_path_factory, monkeypatch):
    """Another package registers the model in implicit solvent, under the name ala2-implicit.

    The shipped one for peptides is not there.
    """
    others = [name for name in ScoreModel.shipped() if name != "peptides-implicit"]
    monkeypatch.setattr(ScoreModel, "shipped", lambda: others)
    folder = tmp_path_factory.mktemp("package")
    (folder / "implicit_models.py").write_text(f"PATH = {str(IMPLICIT)!r}\n")
    info = folder / "implicit_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: implicit-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[openmm_sd.models]\nala2-implicit = implicit_models:PATH\n"
    )
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="session")
def peptide():
    """ACE-ALA-NME in vacuum."""
    forcefield = app.ForceField("amber99sbildn.xml")
    pdb = app.PDBFile(str(PDB))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(forcefield, platform=openmm.Platform.getPlatformByName("Reference"))
    modeller.topology.setPeriodicBoxVectors(None)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    return Box(modeller.topology, relax(modeller.topology, positions, forcefield), forcefield)


@pytest.fixture(scope="session")
def ala2(peptide):
    """The molecule of `peptide`."""
    return Molecule.from_topology(peptide.topology, peptide.positions, "ala2")


def solvate(peptide, water="tip3p", **kwargs):
    forcefield = app.ForceField("amber99sbildn.xml", f"{water}.xml")
    modeller = app.Modeller(peptide.topology, peptide.positions * unit.nanometer)
    settings = {"model": water, "boxSize": openmm.Vec3(1.75, 1.75, 1.75)} | kwargs
    random.seed(1)  # ions are placed with it
    modeller.addSolvent(forcefield, **settings)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    positions = relax(modeller.topology, positions, forcefield)
    return Box(modeller.topology, positions, forcefield, water)


@pytest.fixture(scope="session")
def water_box(peptide):
    """ACE-ALA-NME in about 150 TIP3P waters."""
    return solvate(peptide)


@pytest.fixture(scope="session")
def tip4p_box(peptide):
    """ACE-ALA-NME in TIP4P-Ew water, which has virtual sites, with ions."""
    return solvate(peptide, "tip4pew", ionicStrength=0.5 * unit.molar)


def model_of(kernel, molecule, **card):
    """A model that wraps a kernel."""
    return ScoreModel(kernel, molecule, card)


def advance(integrator, steps):
    """MD steps, and the jump that is due at their end."""
    integrator.step(steps)
    integrator.makeDueJump()


def positions_of(context):
    """Positions in nm."""
    return np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)


def velocities_of(context):
    """Velocities in nm/ps."""
    return np.array(context.getState(velocities=True).getVelocities(asNumpy=True)._value)


def turned(frames, axis, side, degrees):
    """Frames with the atoms of one side turned about a bond."""
    frames = frames.copy()
    origin = frames[:, axis[:1]]
    direction = frames[:, axis[1:]] - origin
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    arms = frames[:, side] - origin
    along = (arms * direction).sum(axis=2, keepdims=True) * direction
    angle = np.deg2rad(degrees)
    frames[:, side] = (
        origin + along + (arms - along) * np.cos(angle) + np.cross(direction, arms) * np.sin(angle)
    )
    return frames


@pytest.fixture(scope="module")
def pdb(peptide, tmp_path_factory):
    """ACE-ALA-NME, complete, as a file."""
    path = tmp_path_factory.mktemp("structure") / "ala2.pdb"
    with open(path, "w") as file:
        app.PDBFile.writeFile(peptide.topology, peptide.positions * unit.nanometer, file)
    return path


class Jitter(OrnsteinUhlenbeck):
    """Needs noise; TorchScript, which takes seconds, cannot read it."""

    def forward(self, *arguments):
        return super().forward(*arguments)


@pytest.fixture(scope="module")
def vacuum(peptide):
    return PreparedSystem(peptide.topology, peptide.system(), peptide.positions)


@pytest.fixture(scope="module")
def jitter(ala2):
    """Jumps that need noise, most of which are accepted in vacuum."""
    return model_of(Jitter(ala2.n_atoms, 1000.0, 0.01), ala2, temperature_K=300.0)


@pytest.fixture(scope="module")
def on_disk(vacuum, ala2, tmp_path_factory):
    """A prepared directory and a bundle."""
    folder = tmp_path_factory.mktemp("disk")
    write_prepared(vacuum, folder / "prepared")
    kernel = OrnsteinUhlenbeck(ala2.n_atoms, 1000.0, 0.01)
    ScoreModel(kernel, ala2, {"temperature_K": 300.0}).save(folder / "model.safetensors")
    return folder
