"""Forces on the solute that jumps know nothing of are refused; a force field's own are not."""

import copy

import numpy as np
import openmm
import pytest
from conftest import model_of
from openmm import app, unit
from test_integrator import noisy

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.integrator.biases import find_biases
from openmm_sd.prepare import PreparedSystem, write_prepared
from openmm_sd.run import RunSettings, run_mixed
from openmm_sd.system.solute import find_solute

#: Atoms of ACE-ALA-NME by their names in the topology.
PHI, PSI = ("C", "N", "CA", "C"), ("N", "CA", "C", "N")


def torsion(topology, names):
    """Atoms of a torsion along the chain."""
    residues = list(topology.residues())[:3]
    first = 0 if names == PHI else 1
    by_name = [{a.name: a.index for a in residue.atoms()} for residue in residues]
    places = [first, 1, 1, 1] if names == PHI else [1, 1, 1, 2]
    return [by_name[k][name] for k, name in zip(places, names, strict=True)]


@pytest.fixture(scope="module")
def model(ala2):
    return model_of(noisy(ala2), ala2)


# -- what is a bias --------------------------------------------------------------------------------


def on_phi(topology):
    force = openmm.CustomTorsionForce("theta")
    force.addTorsion(*torsion(topology, PHI))
    return force


def metadynamics(system, topology, particles):
    variable = app.BiasVariable(on_phi(topology), -np.pi, np.pi, 0.35, True)
    app.Metadynamics(system, [variable], 300.0, 5.0, 1.0, 100)


def umbrella(system, topology, particles):
    force = openmm.CustomCVForce("100*(phi-1)^2")
    force.addCollectiveVariable("phi", on_phi(topology))
    system.addForce(force)


def rmsd(system, topology, particles):
    positions = np.random.default_rng(1).random((system.getNumParticles(), 3))
    force = openmm.CustomCVForce("100*rmsd")
    force.addCollectiveVariable("rmsd", openmm.RMSDForce(positions, particles[:5]))
    system.addForce(force)


def rmsd_of_all(system, topology, particles):
    positions = np.random.default_rng(1).random((system.getNumParticles(), 3))
    system.addForce(openmm.RMSDForce(positions, []))


def gyration(system, topology, particles):
    system.addForce(openmm.RGForce(particles))


def orientation(system, topology, particles):
    positions = np.random.default_rng(1).random((system.getNumParticles(), 3))
    system.addForce(openmm.OrientationRestraintForce(10.0, positions, particles))


def custom_torsion(system, topology, particles):
    force = openmm.CustomTorsionForce("10*(1-cos(theta-centre))")
    force.addPerTorsionParameter("centre")
    force.addTorsion(*torsion(topology, PSI), [0.5])
    system.addForce(force)


def torsion_with_parameter(system, topology, particles):
    force = openmm.CustomTorsionForce("k*(1-cos(theta))")
    force.addGlobalParameter("k", 0.0)
    force.addTorsion(*torsion(topology, PSI))
    system.addForce(force)


def periodic_torsion(system, topology, particles):
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(*torsion(topology, PHI), 1, 0.5, 100.0)
    system.addForce(force)


def torsion_of_none(system, topology, particles):
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(particles[0], particles[7], particles[12], particles[20], 1, 0.5, 100.0)
    system.addForce(force)


def distance(system, topology, particles):
    force = openmm.HarmonicBondForce()
    force.addBond(particles[1], particles[18], 0.5, 1000.0)
    system.addForce(force)


def custom_distance(system, topology, particles):
    force = openmm.CustomBondForce("1000*(r-0.5)^2")
    force.addBond(particles[1], particles[18])
    system.addForce(force)


def angle_of_none(system, topology, particles):
    force = openmm.CustomAngleForce("theta^2")
    force.addAngle(particles[0], particles[8], particles[18])
    system.addForce(force)


def position(system, topology, particles):
    force = openmm.CustomExternalForce("1000*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    force.addParticle(particles[8], [0.0, 0.0, 0.0])
    system.addForce(force)


def centroids(system, topology, particles):
    force = openmm.CustomCentroidBondForce(2, "distance(g1,g2)^2")
    force.addGroup(particles[:6])
    force.addGroup(particles[16:])
    force.addBond([0, 1])
    system.addForce(force)


def compound(system, topology, particles):
    force = openmm.CustomCompoundBondForce(4, "dihedral(p1,p2,p3,p4)^2")
    force.addBond(torsion(topology, PHI))
    system.addForce(force)


def alchemy(system, topology, particles):
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    force.addGlobalParameter("lambda", 1.0)
    force.addParticleParameterOffset("lambda", particles[3], 0.1, 0.0, 0.0)


def alchemical_exceptions(system, topology, particles):
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    force.addGlobalParameter("lambda", 1.0)
    pairs = [force.getExceptionParameters(k)[:2] for k in range(force.getNumExceptions())]
    mine = next(k for k, pair in enumerate(pairs) if set(pair) <= set(particles))
    force.addExceptionParameterOffset("lambda", mine, 0.1, 0.0, 0.0)


def softcore(system, topology, particles):
    force = openmm.CustomNonbondedForce("lambda_sterics/(1+r)")
    force.addGlobalParameter("lambda_sterics", 1.0)
    for _ in range(system.getNumParticles()):
        force.addParticle()
    force.addInteractionGroup(particles, range(system.getNumParticles()))
    system.addForce(force)


def contacts(system, topology, particles):
    force = openmm.CustomNonbondedForce("-1/(1+r)")
    for _ in range(system.getNumParticles()):
        force.addParticle()
    force.addInteractionGroup(particles[:6], particles[16:])
    system.addForce(force)


def decoupled(system, topology, particles):
    force = openmm.CustomNonbondedForce("lambda_sterics/(1+r)")
    force.addGlobalParameter("lambda_sterics", 1.0)
    for _ in range(system.getNumParticles()):
        force.addParticle()
    force.addInteractionGroup(particles, set(range(system.getNumParticles())) - set(particles))
    system.addForce(force)


def transfer(system, topology, particles):
    force = openmm.ATMForce(0.5, 0.5, 0, 0, 0, 0, 0, 0, 1)
    for k in range(system.getNumParticles()):
        force.addParticle(openmm.Vec3(float(k in particles), 0, 0))
    system.addForce(force)


def python_function(system, topology, particles):
    force = openmm.PythonForce(_nothing)
    force.setParticles(particles[:3])
    system.addForce(force)


def _nothing(state):
    return 0.0, np.zeros((3, 3))


BIASES = {
    metadynamics: "CustomCVForce.* acts on the collective variable 'cv0': atoms C, N, CA, C of the",
    umbrella: "CustomCVForce.* acts on the collective variable 'phi'",
    rmsd: "CustomCVForce.* acts on the collective variable 'rmsd'",
    rmsd_of_all: "RMSDForce.* acts on 22 atoms of the solute",
    gyration: "RGForce.* acts on 22 atoms",
    orientation: "OrientationRestraintForce.* acts on 22 atoms",
    custom_torsion: "CustomTorsionForce.* acts on the torsion of atoms N, CA, C, N",
    torsion_with_parameter: "CustomTorsionForce.* depends on the parameter 'k'",
    periodic_torsion: "PeriodicTorsionForce.* acts on the torsion of atoms C, N, CA, C",
    torsion_of_none: "PeriodicTorsionForce.* acts on the torsion of .* which has no such",
    distance: "HarmonicBondForce.* acts on the distance of atoms",
    custom_distance: "CustomBondForce.* acts on the distance of atoms",
    angle_of_none: "CustomAngleForce.* acts on the angle of .* which has no such",
    position: "CustomExternalForce.* acts on atom CA of the solute",
    centroids: "CustomCentroidBondForce.* acts on 12 atoms",
    compound: "CustomCompoundBondForce.* acts on atoms C, N, CA, C",
    alchemy: "NonbondedForce.* changes atom .* of the solute by the parameter 'lambda'",
    alchemical_exceptions: "NonbondedForce.* changes atoms .* by the parameter 'lambda'",
    softcore: "CustomNonbondedForce.* acts on the solute and depends on the parameter 'lambda_st",
    contacts: "CustomNonbondedForce.* acts on atoms .* of the solute alone",
    decoupled: "CustomNonbondedForce.* acts on 22 atoms of the solute alone",
    transfer: "ATMForce.* displaces atom .* of the solute",
    python_function: "PythonForce.* acts on atoms",
}


@pytest.mark.parametrize("bias", BIASES, ids=lambda bias: bias.__name__)
def test_a_bias_on_what_jumps_is_refused(peptide, model, bias):
    system = peptide.system()
    bias(system, peptide.topology, list(range(22)))
    count = system.getNumForces()
    integrator = ScoreDynamicsIntegrator(model, bridge="pythonforce")
    words = f"{BIASES[bias]}.*; jumps do not know of it .* pass allowBias=True"
    with pytest.raises(ValueError, match=words) as refused:
        integrator.attach(system, peptide.topology)
    assert "\n" not in str(refused.value)
    assert system.getNumForces() == count
    assert integrator.solute is None
    with pytest.raises(ValueError, match="jumps do not know of it"):
        model.createIntegrator(system, peptide.topology, bridge="pythonforce")
    integrator.attach(system, peptide.topology, allowBias=True)
    assert integrator.solute is not None
    assert model.createIntegrator(system, peptide.topology, bridge="pythonforce", allowBias=True)


def test_several_biases_are_counted(peptide, model):
    system = peptide.system()
    for bias in (position, distance, umbrella):
        bias(system, peptide.topology, list(range(22)))
    with pytest.raises(ValueError, match=r"CustomExternalForce.* \(and 2 more\); jumps"):
        model.createIntegrator(system, peptide.topology, bridge="pythonforce")


@pytest.mark.parametrize(
    "bias", [rmsd, position, centroids, alchemy, softcore, decoupled, distance, transfer, gyration,
             python_function, contacts],
    ids=lambda bias: bias.__name__,
)  # fmt: skip
def test_the_same_on_other_molecules_is_accepted(water_box, model, bias):
    system = water_box.system()
    bias(system, water_box.topology, list(range(22, 22 + 30)))
    integrator = model.createIntegrator(system, water_box.topology, bridge="pythonforce")
    assert integrator.solute.particles == tuple(range(22))


def test_what_ties_the_solute_to_others_is_refused(water_box, model):
    for force, add in (
        (openmm.HarmonicBondForce(), lambda f: f.addBond(4, 100, 0.3, 100.0)),
        (openmm.CustomBondForce("r"), lambda f: f.addBond(100, 4)),
        (openmm.CustomAngleForce("theta"), lambda f: f.addAngle(100, 4, 5)),
        (openmm.CustomTorsionForce("theta"), lambda f: f.addTorsion(100, 101, 4, 5)),
    ):
        system = water_box.system()
        add(force)
        system.addForce(force)
        with pytest.raises(ValueError, match="ties .* of the solute to other particles"):
            model.createIntegrator(system, water_box.topology, bridge="pythonforce")


# -- what comes later ------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", [False, True])
def test_metadynamics_made_after_attach(peptide, model, allow):
    system = peptide.system()
    integrator = model.createIntegrator(
        system, peptide.topology, bridge="pythonforce", allowBias=allow, burst=0.01, seed=1
    )
    variable = app.BiasVariable(on_phi(peptide.topology), -np.pi, np.pi, 0.35, True)
    meta = app.Metadynamics(system, [variable], 300.0, 5.0, 1.0, 5)
    # What may be asked of a copy is asked of it as well.
    for one in (copy.copy(integrator), integrator):
        simulation = app.Simulation(
            peptide.topology, system, one, openmm.Platform.getPlatform("Reference")
        )
        simulation.context.setPositions(peptide.positions)
        if allow:
            meta.step(simulation, 12)
            assert one.getStatistics()["jumps_tried"] == 2
        else:
            for _ in range(2):
                with pytest.raises(ValueError, match="CustomCVForce.*jumps do not know"):
                    simulation.step(1)
        del simulation


def test_a_barostat_made_after_attach(water_box, model):
    system = water_box.system()
    integrator = model.createIntegrator(system, water_box.topology, bridge="pythonforce")
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("CPU"))
    context.setPositions(water_box.positions)
    integrator.step(2)


def test_restore_looks_too(peptide, model):
    system = peptide.system()
    integrator = model.createIntegrator(system, peptide.topology, bridge="pythonforce")
    bare = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
    umbrella(system, peptide.topology, None)
    given = (bare, model, system, peptide.topology)
    with pytest.raises(ValueError, match="jumps do not know of it"):
        ScoreDynamicsIntegrator.restore(*given, bridge="pythonforce")
    assert ScoreDynamicsIntegrator.restore(*given, bridge="pythonforce", allowBias=True)


def test_a_run_refuses_it_before_anything_is_built(peptide, model, tmp_path):
    system = peptide.system()
    position(system, peptide.topology, list(range(22)))
    write_prepared(PreparedSystem(peptide.topology, system, peptide.positions), tmp_path / "start")
    with pytest.raises(
        ValueError, match="CustomExternalForce.*jumps do not know.*: run it without"
    ):
        run_mixed(model, tmp_path / "start", tmp_path / "out", RunSettings(jumps=1))
    assert not (tmp_path / "out" / "start").exists()
    allowed = RunSettings(
        jumps=1, burst_ps=0.01, lag_ps=10.0, platform="Reference", bridge="pythonforce",
        settle_ps=0.0, allow_bias=True,
    )  # fmt: skip
    assert run_mixed(model, tmp_path / "start", tmp_path / "out", allowed)["jumps_tried"] == 1


# -- force fields are none -------------------------------------------------------------------------

FIELDS = {
    "amber99sbildn": ["amber99sbildn.xml"],
    "amber14": ["amber14-all.xml"],
    "amber19": ["amber19-all.xml"],
    "OBC": ["amber99sbildn.xml", "amber99_obc.xml"],
    "OBC2": ["amber14-all.xml", "implicit/obc2.xml"],
    "GBn2": ["amber14-all.xml", "implicit/gbn2.xml"],
    "HCT": ["amber14-all.xml", "implicit/hct.xml"],
    "AMOEBA": ["amoeba2018.xml"],
    "AMOEBA, implicit": ["amoeba2018.xml", "amoeba2018_gk.xml"],
}


@pytest.mark.parametrize("files", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("constraints", [None, app.HBonds], ids=["flexible", "HBonds"])
def test_force_fields_are_no_bias(peptide, ala2, files, constraints):
    if constraints is not None and "amoeba" in files[0]:
        pytest.skip("AMOEBA is used without constraints")
    system = app.ForceField(*files).createSystem(peptide.topology, constraints=constraints)
    system.addForce(openmm.AndersenThermostat(300.0, 1.0))
    found = find_solute(ala2, peptide.topology, system)
    assert find_biases(system, found) == []


def test_a_peptide_in_charmm(ala2):
    """CMAP, Urey-Bradley terms, impropers of a custom force, 1-4 pairs of another."""
    topology = app.Topology()
    residue = topology.addResidue("ALAD", topology.addChain())
    elements = [app.Element.getByAtomicNumber(number) for number in ala2.atomic_numbers]
    atoms = [
        topology.addAtom(name, element, residue)
        for name, element in zip(ala2.atom_names, elements, strict=True)
    ]
    for i, j in ala2.bonds:
        topology.addBond(atoms[i], atoms[j])
    field = app.ForceField("charmm36.xml")
    # The caps of charmm36.xml are patches: the whole molecule is one of its residues.
    system = field.createSystem(topology, residueTemplates={residue: "ALAD"})
    kinds = {type(force).__name__ for force in system.getForces() if _size(force)}
    assert {"CustomTorsionForce", "CustomBondForce", "CustomNonbondedForce"} <= kinds
    found = find_solute(ala2, topology, system)
    assert find_biases(system, found) == []


def _size(force):
    """Number of terms; 1 for forces that have none."""
    for name in ("getNumBonds", "getNumTorsions"):
        if hasattr(force, name):
            return getattr(force, name)()
    return 1


@pytest.mark.parametrize("kind", ["XML", "cutoff and barostats", "PME"])
def test_boxes_of_water_are_no_bias(water_box, model, kind):
    system = water_box.system()
    if kind == "PME":
        system = water_box.system(nonbondedMethod=app.PME)
    if kind == "XML":
        system = openmm.XmlSerializer.clone(system)
    if kind == "cutoff and barostats":
        system.addForce(openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(1, 1, 1), 300.0))
        system.addForce(openmm.MonteCarloFlexibleBarostat(1.0, 300.0))
        system.addForce(openmm.CustomVolumeForce("0.01*v"))
    for _ in range(2):  # the second time with the first one's jump in it
        integrator = model.createIntegrator(system, water_box.topology, bridge="pythonforce")
        assert integrator.solute is not None


@pytest.mark.parametrize("name", ["ethane", "propane", "butane", "hexane"])
def test_small_alkanes_in_charmm(name):
    try:
        molecule = ScoreModel.load("alkanes-water").member(name).molecules[0]
    except ValueError:
        pytest.skip(f"no {name}")
    field = app.ForceField("charmm36.xml", "charmm36/water.xml")
    modeller = app.Modeller(molecule.to_topology(), molecule.positions * unit.nanometer)
    modeller.addSolvent(field, boxSize=openmm.Vec3(1.9, 1.9, 1.9))
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9, constraints=app.HBonds
    )
    solute = find_solute(molecule, modeller.topology, system)
    assert find_biases(system, solute) == []
    # The least restraint that there can be, on the smallest molecule: one term of many.
    carbons = [k for k, z in enumerate(molecule.atomic_numbers) if z == 6][:2]
    graph = molecule.graph()
    first, last = (next(n for n in graph[c] if n not in carbons) for c in carbons)
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(*(solute.particles[k] for k in (first, *carbons, last)), 1, 0.0, 5.0)
    system.addForce(force)
    assert "torsion of" in find_biases(system, solute)[0]
