"""The integrator with kernels whose answers are known, on every bridge and platform."""

import copy
import functools
import io

import numpy as np
import openmm
import pytest
import torch
from conftest import (
    CROSSED,
    LANDING,
    PLATFORMS,
    Box,
    Engine,
    advance,
    answer,
    crossed,
    model_of,
    positions_of,
    turned,
    velocities_of,
)
from openmm import app, unit

from openmm_sd import JumpError, Molecule, Propagator, ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.bridges import BRIDGES
from openmm_sd.bridges.base import FORCE_NAME, NUMBER
from openmm_sd.integrator.integrator import BOLTZMANN
from openmm_sd.propagator.kernels import Identity, OrnsteinUhlenbeck, Rotation, Shift

STEP = 0.002
SHIFT = (0.011, -0.023, 0.017)


class Sometimes(Propagator):
    """Behaves at lag 10 and goes wrong at the lags below, each in its own way."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 3 * n_atoms)

    def forward(self, frame, lag, noise):
        if bool(lag[0] == 1.0):
            return frame * float("nan")
        if bool(lag[0] == 2.0):
            return frame + float("inf")
        if bool(lag[0] == 3.0):
            return frame + 1e12
        if bool(lag[0] == 4.0):
            return frame[:, :-1]
        if bool(lag[0] == 5.0):
            return frame.double()
        if bool(lag[0] == 6.0):
            return frame + torch.ones(frame.shape[1] + 1, 3)
        if bool(lag[0] == 8.0):
            return frame * 0.8
        # Passes at every other draw or so: the first number of the noise decides.
        if bool(lag[0] == 7.0) and bool(noise[0, 0] > 0.0):
            return frame * float("nan")
        return frame + 0.01


class Loud(Propagator):
    """Says so, on standard output, whenever it is called."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 0)

    def forward(self, frame, lag, noise):
        print("CALLED")
        return frame


class NoGradients(Propagator):
    """Refuses to work while torch takes notes for gradients, which costs as much as the jump."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 0)

    def forward(self, frame, lag, noise):
        if torch.is_grad_enabled():
            raise ValueError("notes are taken for gradients")
        return frame


def start(
    engine, kernel, box, molecule, *, system=None, positions=None, seed=5, solute=None, **settings
):
    """A Context in which the next jump is due after `burst`, one MD step by default."""
    settings = {
        "burst": STEP,
        "lag": 10.0,
        "stepSize": STEP,
        "temperature": 300.0,
        # These kernels know nothing of the water in their way.
        "maxEnergyRise": None,
        "settleSteps": 0,
        "settleTime": 0,
    } | settings
    model = kernel if isinstance(kernel, ScoreModel) else model_of(kernel, molecule)
    integrator = ScoreDynamicsIntegrator(model, bridge=engine.bridge, seed=seed, **settings)
    system = box.system() if system is None else system
    integrator.attach(system, box.topology, solute=solute)
    properties = {"Precision": "mixed"} if engine.name == "OpenCL" else {}
    context = openmm.Context(system, integrator, engine.platform, properties)
    context.setPositions(box.positions if positions is None else positions)
    return context, integrator


def worst_constraint(context):
    system, x = context.getSystem(), positions_of(context)
    worst = 0.0
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        worst = max(worst, abs(np.linalg.norm(x[i] - x[j]) - length._value))
    return worst


def jump_against_identity(engine, kernel, box, molecule, **settings):
    """Displacement of all particles by a jump: the difference to a jump that goes nowhere.

    Friction and velocities are zero, so the MD step before the jump is the same in both.
    """
    ends = []
    system = settings.pop("system", None) or box.system()
    for k in (Identity(molecule.n_atoms), kernel):
        context, integrator = start(
            engine, k, box, molecule, frictionCoeff=0.0, system=system, **settings
        )
        context.setVelocities(np.zeros((context.getSystem().getNumParticles(), 3)))
        advance(integrator, 1)
        assert integrator.getNumJumps() == 1
        ends.append(positions_of(context))
    return ends[1] - ends[0], ends[0], context


def forceless(topology, vectors):
    """A periodic System in which nothing acts."""
    system = openmm.System()
    nothing = openmm.NonbondedForce()
    nothing.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    nothing.setCutoffDistance(0.7)
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
        nothing.addParticle(0.0, 0.1, 0.0)
    system.addForce(nothing)
    system.setDefaultPeriodicBoxVectors(*vectors)
    return system


# -- where a jump lands ----------------------------------------------------------------------------


def test_shift_lands_where_the_kernel_says(engine, water_box, ala2):
    moved, _, context = jump_against_identity(engine, Shift(ala2.n_atoms, SHIFT), water_box, ala2)
    n = ala2.n_atoms
    np.testing.assert_allclose(moved[:n], np.tile(SHIFT, (n, 1)), atol=LANDING)
    np.testing.assert_allclose(moved[n:], 0.0, atol=LANDING)
    assert worst_constraint(context) < LANDING


@crossed
def test_rotation_lands_and_keeps_constraints(engine, water_box, ala2):
    kernel = Rotation(ala2.n_atoms, 95.0, (1.0, 2.0, -1.0))
    moved, before, context = jump_against_identity(engine, kernel, water_box, ala2)
    n = ala2.n_atoms
    centre = before[:n].mean(0)
    turned = (before[:n] - centre) @ kernel.matrix.double().numpy().T + centre
    np.testing.assert_allclose(before[:n] + moved[:n], turned, atol=LANDING)
    np.testing.assert_allclose(moved[n:], 0.0, atol=LANDING)
    assert worst_constraint(context) < LANDING


@crossed
@pytest.mark.parametrize("shape", ["cube", "octahedron"])
def test_solute_across_the_boundary(engine, peptide, ala2, shape):
    """A solute in pieces, every atom in an image of its own, jumps as if it were whole."""
    n = ala2.n_atoms
    vectors = 1.8 * np.eye(3)
    if shape == "octahedron":
        vectors = 1.8 * np.array(
            [[1, 0, 0], [1 / 3, 2 * 2**0.5 / 3, 0], [-1 / 3, 2**0.5 / 3, 6**0.5 / 3]]
        )
    # OpenMM's own bonds and constraints want whole molecules: none here.
    system = forceless(peptide.topology, vectors)
    images = np.random.default_rng(1).integers(-1, 2, size=(n, 3)) @ vectors
    whole = peptide.positions - peptide.positions.mean(0)
    kernel = Rotation(n, 95.0, (1.0, 0.0, 1.0))
    expected = whole @ kernel.matrix.double().numpy().T - whole
    moved, _, _ = jump_against_identity(
        engine, kernel, peptide, ala2, positions=whole + images, system=system
    )
    np.testing.assert_allclose(moved, expected, atol=LANDING)
    assert np.ptp(whole + images, axis=0).min() > 1.0


@crossed
def test_solute_not_first_and_two_copies(engine, water_box, ala2, peptide):
    modeller = app.Modeller(peptide.topology, (peptide.positions + 1.0) * unit.nanometer)
    waters = app.Modeller(water_box.topology, water_box.positions * unit.nanometer)
    waters.delete([next(waters.topology.chains())])
    waters.add(modeller.topology, modeller.positions)
    second = (peptide.positions + np.array([1.0, 1.0, 1.9])) * unit.nanometer
    waters.add(peptide.topology, second)
    box = copy.copy(water_box)
    object.__setattr__(box, "topology", waters.topology)
    object.__setattr__(box, "positions", np.array(waters.positions.value_in_unit(unit.nanometer)))
    kernel = Shift(ala2.n_atoms, SHIFT)
    with pytest.raises(ValueError, match="2 copies"):
        start(engine, kernel, box, ala2)
    n, total = ala2.n_atoms, box.topology.getNumAtoms()
    system = forceless(box.topology, 1.75 * np.eye(3))  # the copies overlap
    for copy_number, first in ((0, total - 2 * n), (1, total - n)):
        moved, _, _ = jump_against_identity(
            engine, kernel, box, ala2, solute=copy_number, system=system
        )
        expected = np.zeros((total, 3))
        expected[first : first + n] = SHIFT
        np.testing.assert_allclose(moved, expected, atol=LANDING)


def test_permuted_solute(reference, peptide, ala2):
    """A Topology that numbers the atoms otherwise: the same atoms move the same way."""
    order = np.random.default_rng(3).permutation(ala2.n_atoms)
    place = np.argsort(order)
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    atoms = [
        topology.addAtom(f"A{k}", app.Element.getByAtomicNumber(ala2.atomic_numbers[old]), residue)
        for k, old in enumerate(order)
    ]
    for i, j in ala2.bonds:
        topology.addBond(atoms[place[i]], atoms[place[j]])
    box = copy.copy(peptide)
    object.__setattr__(box, "topology", topology)
    object.__setattr__(box, "positions", peptide.positions[order])
    kernel = Rotation(ala2.n_atoms, 60.0, (0.0, 1.0, 0.0))

    def system(permute):
        system = openmm.System()
        for k in order if permute else range(ala2.n_atoms):
            system.addParticle(float(ala2.atomic_numbers[k]))
        return system

    plain, _, _ = jump_against_identity(reference, kernel, peptide, ala2, system=None)
    ends = []
    for permute, which in ((False, peptide), (True, box)):
        context, integrator = start(
            reference, kernel, which, ala2, system=system(permute), frictionCoeff=0.0
        )
        advance(integrator, 1)
        ends.append(positions_of(context))
    np.testing.assert_allclose(ends[1], ends[0][order], atol=LANDING)
    assert np.abs(plain).max() > 0.1


# -- statistics ------------------------------------------------------------------------------------


def blocks(values, count=20):
    """Mean and standard error from blocks."""
    parts = np.array_split(np.asarray(values), count)
    means = np.array([p.mean(axis=0) for p in parts])
    return means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(count)


@crossed
def test_identity_kernel_leaves_the_ensemble_alone(engine, peptide, ala2):
    """Temperature, energy and constraints against OpenMM's own integrator, 4 sigma."""
    rounds = 1200 if engine == Engine("pythonforce", "Reference") else 300

    def sample(context, step):
        context.setVelocitiesToTemperature(300, 7)
        step(500)
        energies = []
        for _ in range(rounds):
            step(25)
            state = context.getState(energy=True)
            energies.append([state.getPotentialEnergy()._value, state.getKineticEnergy()._value])
        return blocks(energies)

    # Without a CMMotionRemover, which would take three degrees of freedom from one of the two
    # when energies are read right after a jump.
    system = peptide.system(removeCMMotion=False)
    context, integrator = start(
        engine,
        Identity(ala2.n_atoms),
        peptide,
        ala2,
        system=system,
        burst=10 * STEP,
        frictionCoeff=5.0,
    )
    mine, my_error = sample(context, functools.partial(advance, integrator))
    assert integrator.getNumJumps() == (500 + 25 * rounds) // 10
    assert worst_constraint(context) < 2e-6

    plain = openmm.LangevinMiddleIntegrator(300, 5, STEP)
    plain.setRandomNumberSeed(99)
    other = openmm.Context(peptide.system(removeCMMotion=False), plain, engine.platform)
    other.setPositions(peptide.positions)
    theirs, their_error = sample(other, plain.step)
    sigma = np.abs(mine - theirs) / np.hypot(my_error, their_error)
    assert (sigma < 4).all(), (mine, theirs, sigma)
    # The error bars are tight enough to mean something: 12 K on the temperature.
    degrees = 3 * ala2.n_atoms - system.getNumConstraints()
    assert my_error[1] * 2 / degrees / 0.0083145 < 12.0


@crossed
def test_ornstein_uhlenbeck_through_openmm(engine, ala2):
    """Mean, variance and autocorrelation of a long run, 3 sigma, with the same noise everywhere."""
    tau, sigma, jumps = 30.0, 0.05, 1500
    molecule = Molecule(
        name="pair",
        atomic_numbers=(18, 18),
        bonds=((0, 1),),
        atom_names=("A", "B"),
        residue_names=("PR", "PR"),
        residue_ids=("1", "1"),
        positions=np.array([[0.0, 0.0, 0.0], [0.07, 0.0, 0.0]]),
    )
    system = openmm.System()
    for _ in range(2):
        system.addParticle(1e12)  # too heavy for MD to move it
    topology = molecule.to_topology()
    model = model_of(OrnsteinUhlenbeck(2, tau, sigma), molecule)
    integrator = ScoreDynamicsIntegrator(model, burst=STEP, lag=20.0, bridge=engine.bridge, seed=12)
    integrator.attach(system, topology)
    context = openmm.Context(system, integrator, engine.platform)
    context.setPositions(molecule.positions)
    pair = []
    for _ in range(jumps):
        advance(integrator, 1)
        x = positions_of(context)
        pair.append(x[1] - x[0])
    assert integrator.getNumJumps() == jumps
    d = np.array(pair)[20:]
    a, variance = np.exp(-20.0 / tau), 2 * sigma**2
    n = len(d)
    error = np.sqrt(variance / n * (1 + a) / (1 - a))
    assert np.abs(d.mean(0)).max() < 3 * error
    assert abs(d.var(0).mean() - variance) < 3 * variance * np.sqrt(
        2 / (3 * n) * (1 + a**2) / (1 - a**2)
    )
    correlation = (d[1:] * d[:-1]).mean() / (d**2).mean()
    assert abs(correlation - a) < 3 * np.sqrt((1 - a**2) / (3 * n))
    two = (d[2:] * d[:-2]).mean() / (d**2).mean()
    assert abs(two - a**2) < 3 * np.sqrt((1 + 2 * a**2) * (1 - a**2) / (3 * n))


# -- kernels that go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "lag", "gate"),
    [
        *((pair, 1.0, "nonfinite") for pair in CROSSED),
        (("pythonforce", "Reference"), 2.0, "nonfinite"),
        (("pythonforce", "Reference"), 3.0, "displacement"),
        (("pythonforce", "Reference"), 8.0, "contacts"),
    ],
    indirect=["engine"],
    ids=str,
)
def test_bad_proposals_are_rejected_and_counted(engine, peptide, ala2, lag, gate):
    far = np.linalg.norm(peptide.positions[0] - peptide.positions[ala2.n_atoms - 1])
    contacts = [[0, ala2.n_atoms - 1, 0.9 * float(far)]]
    model = model_of(Sometimes(ala2.n_atoms), ala2, contact_distances_nm=contacts)
    context, integrator = start(engine, model, peptide, ala2, frictionCoeff=0.0)
    context.setVelocitiesToTemperature(300, 3)
    begin = context.getState(positions=True, velocities=True)
    integrator.setLag(lag)
    advance(integrator, 1)
    numbers = integrator.getStatistics()
    assert numbers["jumps_tried"] == 1
    assert numbers["jumps_accepted"] == 0
    assert numbers["fallbacks"] == 1
    assert numbers["redraws"] == integrator.getMaxTries() - 1
    assert numbers["rejections"][gate] == integrator.getMaxTries()
    assert numbers["effective_time_ps"] == pytest.approx(STEP)
    x, v = positions_of(context), velocities_of(context)
    # The same step of plain MD, which has no noise here, ends in the same place.
    context.setPositions(begin.getPositions())
    context.setVelocities(begin.getVelocities())
    integrator.setJumping(False)
    advance(integrator, 1)
    np.testing.assert_allclose(positions_of(context), x, atol=1e-6)
    np.testing.assert_allclose(velocities_of(context), v, atol=2e-3)
    # And the jump goes through once the kernel behaves.
    integrator.setJumping(True)
    integrator.setLag(10.0)
    advance(integrator, 1)
    assert integrator.getNumJumps() == 1


@crossed
def test_jump_onto_the_solvent_is_taken_back(engine, water_box, ala2):
    """Positions as they were to the last bit, velocities too, the count in its own column."""
    kernel = Shift(ala2.n_atoms, (0.25, 0.0, 0.0))
    ends, numbers = [], None
    for limit in (500.0, 500 * unit.kilojoule_per_mole, None):
        context, integrator = start(
            engine, kernel, water_box, ala2, frictionCoeff=0.0, maxEnergyRise=limit
        )
        context.setVelocitiesToTemperature(300, 3)
        integrator.setJumping(limit is not None)
        advance(integrator, 1)
        ends.append((positions_of(context), velocities_of(context)))
        if limit is not None:
            numbers = integrator.getStatistics()
            assert numbers["jumps_tried"] == numbers["fallbacks"] == 1
            assert numbers["jumps_accepted"] == 0
            # Drawn again as often as allowed, which this kernel does not mind.
            assert numbers["rejections"]["energy_rise"] == 4
            assert numbers["redraws"] == 3
            assert numbers["effective_time_ps"] == pytest.approx(STEP)
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=0 if engine.exact else 1e-5)
    # Against the same step of plain MD.
    np.testing.assert_allclose(ends[0][0], ends[2][0], atol=0 if engine.exact else 1e-5)
    np.testing.assert_allclose(ends[0][1], ends[2][1], atol=0 if engine.exact else 2e-2)


@pytest.mark.parametrize(
    ("engine", "which"),
    [
        *((("pythonforce", platform), "tip4pew with ions") for platform in PLATFORMS),
        *(((bridge, "Reference"), "tip3p") for bridge in BRIDGES),
    ],
    indirect=["engine"],
    ids=str,
)
def test_surroundings_give_way(engine, water_box, tip4p_box, ala2, which):
    """The solute stays where the kernel put it, the water moves aside, no time passes.

    What moves aside depends on the platform, not on the bridge, which is not called meanwhile.
    """
    box = water_box if which == "tip3p" else tip4p_box
    n = ala2.n_atoms

    def run(kernel, **settings):
        context, integrator = start(engine, kernel, box, ala2, frictionCoeff=0.0, **settings)
        context.setVelocitiesToTemperature(300, 3)
        advance(integrator, 1)
        return context, integrator

    def rise(context):
        state = context.getState(energy=True, groups=others(context))
        return state.getPotentialEnergy()._value - before

    plain, integrator = start(engine, Identity(n), box, ala2, frictionCoeff=0.0)
    plain.setVelocitiesToTemperature(300, 3)
    integrator.setJumping(False)
    advance(integrator, 1)
    before = plain.getState(energy=True).getPotentialEnergy()._value
    # Ions stand elsewhere in every new box, so how far it takes to meet the water hard differs.
    for distance in (0.12, 0.15, 0.18, 0.21, 0.24):
        kernel = Shift(n, (distance, 0.05, 0.0))
        unsettled, _ = run(kernel)
        if rise(unsettled) > 100:
            break
    assert rise(unsettled) > 100
    context, integrator = run(kernel, settleSteps=60, maxEnergyRise=50.0)
    assert integrator.getStatistics()["jumps_accepted"] == 1
    assert rise(context) < 50
    assert context.getStepCount() == 1
    assert context.getTime()._value == pytest.approx(STEP)
    assert worst_constraint(context) < 5e-6
    start_x, end_x = positions_of(unsettled), positions_of(context)
    np.testing.assert_allclose(end_x[:n], start_x[:n], atol=LANDING)
    moved = np.linalg.norm(end_x[n:] - start_x[n:], axis=1)
    assert 0.001 < moved.max() < 0.3
    context.computeVirtualSites()
    np.testing.assert_allclose(positions_of(context), end_x, atol=1e-5)
    integrator.setJumping(False)  # twenty more of such jumps take twenty times as long
    integrator.step(20)
    assert np.isfinite(context.getState(energy=True).getPotentialEnergy()._value)


def others(context):
    """Force groups but the jump's."""
    used = {f.getForceGroup() for f in context.getSystem().getForces() if f.getName() != FORCE_NAME}
    return used


@crossed
def test_nothing_settles_after_a_jump_that_raises_nothing(engine, water_box, ala2):
    ends = []
    for settings in ({}, {"settleSteps": 40, "maxEnergyRise": 200.0}):
        context, integrator = start(
            engine,
            Identity(ala2.n_atoms),
            water_box,
            ala2,
            burst=2 * STEP,
            frictionCoeff=0.0,
            **settings,
        )
        context.setVelocitiesToTemperature(300, 3)
        advance(integrator, 2)
        assert integrator.getNumJumps() == 1
        ends.append(positions_of(context))
    np.testing.assert_allclose(ends[0], ends[1], atol=LANDING if engine.exact else 1e-5)


def test_settle_settings(ala2):
    integrator = ScoreDynamicsIntegrator(model_of(Identity(ala2.n_atoms), ala2), settleSteps=3)
    assert integrator.getSettleSteps() == 3
    assert copy.deepcopy(integrator).getSettleSteps() == 3
    for bad in (-1, 2.5, True):
        with pytest.raises(ValueError, match="settleSteps must be a whole number of at least 0"):
            integrator.setSettleSteps(bad)


def test_energy_limit_setting(ala2):
    integrator = ScoreDynamicsIntegrator(model_of(Identity(ala2.n_atoms), ala2))
    assert integrator.getMaxEnergyRise() == 200 * unit.kilojoule_per_mole
    integrator.setMaxEnergyRise(None)
    assert integrator.getMaxEnergyRise() is None
    assert copy.deepcopy(integrator).getMaxEnergyRise() is None
    with pytest.raises(ValueError, match="maxEnergyRise must be a positive"):
        integrator.setMaxEnergyRise(-1)


@crossed
def test_redraws_use_new_noise(engine, peptide, ala2):
    context, integrator = start(engine, Sometimes(ala2.n_atoms), peptide, ala2, maxTries=3)
    integrator.setLag(7.0)
    advance(integrator, 40)
    numbers = integrator.getStatistics()
    # Half of the draws pass: one of eight jumps needs more than three.
    assert numbers["jumps_tried"] == 40
    assert 25 <= numbers["jumps_accepted"] < 40
    assert numbers["fallbacks"] == 40 - numbers["jumps_accepted"]
    assert 15 <= numbers["redraws"] <= 55
    assert numbers["rejections"]["nonfinite"] == numbers["redraws"] + numbers["fallbacks"]


@pytest.mark.parametrize(
    ("engine", "lag", "words"),
    [
        *(((bridge, name), 6.0, "size of tensor") for bridge in BRIDGES for name in PLATFORMS),
        *(((bridge, "Reference"), 4.0, "wrong shape") for bridge in BRIDGES),
        *((("pythonforce", name), 5.0, "wrong dtype") for name in PLATFORMS),
    ],
    indirect=["engine"],
    ids=str,
)
def test_broken_kernels_raise_and_leave_no_trace(engine, peptide, ala2, lag, words):
    context, integrator = start(engine, Sometimes(ala2.n_atoms), peptide, ala2, frictionCoeff=0.0)
    context.setVelocitiesToTemperature(300, 3)
    begin = context.getState(positions=True, velocities=True)
    integrator.setJumping(False)
    advance(integrator, 1)
    x, v = positions_of(context), velocities_of(context)
    context.setPositions(begin.getPositions())
    context.setVelocities(begin.getVelocities())
    integrator.setJumping(True)
    integrator.setLag(lag)
    with pytest.raises(JumpError, match=words):
        advance(integrator, 1)
    # The MD step was made, and nothing else.
    np.testing.assert_allclose(positions_of(context), x, atol=1e-6)
    np.testing.assert_allclose(velocities_of(context), v, atol=2e-3)
    assert integrator.getStatistics()["fallbacks"] == 1
    assert context.getParameter(NUMBER) == 0
    group = next(
        f.getForceGroup() for f in context.getSystem().getForces() if f.getName() == FORCE_NAME
    )
    forces = context.getState(forces=True, groups={group}).getForces(asNumpy=True)
    assert not np.any(forces._value)
    integrator.setLag(10.0)
    advance(integrator, 2)
    assert integrator.getNumJumps() == 2


@pytest.mark.parametrize(
    ("lag", "words"), [(4.0, "shape"), (5.0, "float32"), (6.0, "fails on its own molecule")]
)
def test_kernels_that_cannot_work_are_refused_at_once(reference, peptide, ala2, lag, words):
    with pytest.raises(ValueError, match=words):
        start(reference, Sometimes(ala2.n_atoms), peptide, ala2, lag=lag)


@crossed
def test_mirror_image_is_refused(engine, peptide, ala2):
    context, integrator = start(
        engine,
        Identity(ala2.n_atoms),
        peptide,
        ala2,
        positions=peptide.positions * [1.0, 1.0, -1.0],
    )
    integrator.step(1)
    with pytest.raises(JumpError, match="mirror image"):
        integrator.step(1)


# -- the water settles around the solute at rest ---------------------------------------------------

SETTLE_STEPS = 40


@crossed
def test_the_water_settles_around_a_resting_solute(engine, tip4p_box, ala2):
    """MD of everything but the solute, which counts neither as steps nor as time."""
    n, ends, speeds = ala2.n_atoms, [], []
    for length in (0.0, SETTLE_STEPS * STEP):
        context, integrator = start(
            engine,
            Rotation(n, 5.0, (1.0, 2.0, -1.0)),
            tip4p_box,
            ala2,
            frictionCoeff=0.0,
            settleTime=length,
        )
        rng = np.random.default_rng(2)
        context.setVelocities(rng.normal(scale=0.3, size=(tip4p_box.topology.getNumAtoms(), 3)))
        context.applyVelocityConstraints(1e-6)
        advance(integrator, 1)
        assert integrator.getNumJumps() == 1
        assert integrator.getStatistics()["settle"]["time_ps"] == pytest.approx(length)
        assert integrator.getMDTime()._value == pytest.approx(STEP)
        assert context.getStepCount() == 1
        assert context.getTime()._value == pytest.approx(STEP)
        ends.append(positions_of(context))
        speeds.append(velocities_of(context)[:n])
    at_once, settled = ends
    # Those before the jump, so that nobody reads a temperature without the solute's.
    np.testing.assert_allclose(speeds[1], speeds[0], atol=1e-5)
    assert np.abs(speeds[0]).max() > 0.1
    np.testing.assert_allclose(settled[:n], at_once[:n], atol=LANDING)
    oxygens = [
        a.index
        for a in tip4p_box.topology.atoms()
        if a.index >= n and a.element is app.element.oxygen
    ]
    moved = np.linalg.norm(settled - at_once, axis=1)[oxygens]
    assert 0.005 < moved.mean() < 0.1
    assert worst_constraint(context) < 5e-6
    v = velocities_of(context)
    for k in range(context.getSystem().getNumConstraints()):
        i, j, apart = context.getSystem().getConstraintParameters(k)
        if min(i, j) >= n:
            assert abs((v[i] - v[j]) @ (settled[i] - settled[j])) < 1e-2 * apart._value
    context.computeVirtualSites()
    np.testing.assert_allclose(positions_of(context), settled, atol=1e-5)
    advance(integrator, 1)  # and jumps again, after a step that moves the solute
    assert integrator.getStatistics()["settle"]["time_ps"] == pytest.approx(2 * length)
    assert np.isfinite(context.getState(energy=True).getPotentialEnergy()._value)


@crossed
def test_settling_is_at_the_bath_s_temperature(engine, peptide, ala2):
    """Oscillators around a solute, which start at rest and at the bottom of their wells."""
    n, others = ala2.n_atoms, 2000
    topology = copy.deepcopy(peptide.topology)
    chain = topology.addChain()
    system = openmm.System()
    for atom in peptide.topology.atoms():
        system.addParticle(atom.element.mass)
    well = openmm.CustomExternalForce("2500*(x^2+y^2+z^2)")
    for _ in range(others):
        topology.addAtom("AR", app.element.argon, topology.addResidue("AR", chain))
        well.addParticle(system.addParticle(10.0))
    system.addForce(well)
    positions = np.concatenate([peptide.positions, np.zeros((others, 3))])
    context, integrator = start(
        engine,
        Identity(n),
        Box(topology, positions, None),
        ala2,
        system=system,
        frictionCoeff=0.0,
        stepSize=0.01,
        burst=0.02,
        settleTime=6.0,
    )
    for kelvin in (300.0, 450.0):
        integrator.setTemperature(kelvin)
        context.setPositions(positions)
        context.setVelocities(np.zeros((n + others, 3)))
        advance(integrator, 2)
        state = context.getState(energy=True)
        expected = 1.5 * others * BOLTZMANN * kelvin
        for energy in (state.getPotentialEnergy(), state.getKineticEnergy()):
            assert abs(energy._value - expected) < 5 * expected / np.sqrt(1.5 * others)


def test_no_settling_without_surroundings_or_without_a_jump(reference, peptide, tip4p_box, ala2):
    context, integrator = start(reference, Identity(ala2.n_atoms), peptide, ala2, settleTime=1.0)
    advance(integrator, 2)
    assert integrator.getNumJumps() == 2
    assert integrator.getStatistics()["settle"]["time_ps"] == 0
    context, integrator = start(
        reference, Sometimes(ala2.n_atoms), tip4p_box, ala2, lag=1.0, settleTime=1.0, maxTries=1
    )
    advance(integrator, 1)
    assert integrator.getStatistics()["fallbacks"] == 1
    assert integrator.getStatistics()["settle"]["time_ps"] == 0


@pytest.mark.parametrize("carried", ["the same Context", "checkpoint", "State", "XML"])
def test_settling_that_was_interrupted_goes_on(tip4p_box, ala2, monkeypatch, carried):
    """Ctrl-C in its midst loses nothing, and neither does saving right then."""
    engine = Engine("pythonforce", "CPU")
    settings = {"frictionCoeff": 0.0, "settleTime": SETTLE_STEPS * STEP, "burst": 3 * STEP}
    context, integrator = start(engine, Identity(ala2.n_atoms), tip4p_box, ala2, **settings)
    real = openmm.CompoundIntegrator.step

    def stop_midway(self, steps):
        if self.getCurrentIntegrator() == 3 and steps > 1:
            real(self, steps // 3)
            raise KeyboardInterrupt
        real(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(openmm.CompoundIntegrator, "step", stop_midway)
        with pytest.raises(KeyboardInterrupt):
            integrator.step(4)
    assert integrator.getStatistics()["jumps_accepted"] == 1
    done = (1 + (SETTLE_STEPS - 1) // 3) * STEP
    assert integrator.getStatistics()["settle"]["time_ps"] == pytest.approx(done)
    assert context.getStepCount() == 3
    if carried != "the same Context":
        state = context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )
        saved, old = context.createCheckpoint(), integrator
        if carried == "XML":
            xml = openmm.XmlSerializer.serialize(integrator)
            bare = openmm.XmlSerializer.deserialize(xml)
            integrator = ScoreDynamicsIntegrator.restore(bare, old.model)
            first = context  # which keeps the System
            context = openmm.Context(first.getSystem(), integrator, engine.platform)
            context.setState(state)
        else:
            context, integrator = start(engine, Identity(ala2.n_atoms), tip4p_box, ala2, **settings)
            if carried == "checkpoint":
                context.loadCheckpoint(saved)
            else:
                context.setState(state)
    solute = positions_of(context)[: ala2.n_atoms]
    velocities = velocities_of(context)

    def look(self, steps):
        real(self, steps)
        if self.getCurrentIntegrator() == 3:
            seen.append((steps, positions_of(context)[: ala2.n_atoms]))

    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(openmm.CompoundIntegrator, "step", look)
        integrator.step(1)
    ((steps, rested),) = seen
    assert velocities[ala2.n_atoms :].any()
    assert steps == SETTLE_STEPS - 1 - (SETTLE_STEPS - 1) // 3
    np.testing.assert_allclose(rested, solute, atol=LANDING)
    numbers = integrator.getStatistics()
    assert numbers["settle"]["time_ps"] == pytest.approx(SETTLE_STEPS * STEP)
    assert (numbers["jumps_accepted"], context.getStepCount()) == (1, 4)


def bond_energies(engine, peptide, ala2, length, bursts):
    """Energy of the solute's bonds at the end of bursts, and its temperature right after jumps."""
    topology = copy.deepcopy(peptide.topology)
    chain = topology.addChain()
    system = peptide.system(removeCMMotion=False)
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            force.setForceGroup(7)
    for _ in range(2):
        topology.addAtom("AR", app.element.argon, topology.addResidue("AR", chain))
        system.addParticle(39.9)
        for force in system.getForces():
            if isinstance(force, openmm.NonbondedForce):
                force.addParticle(0.0, 0.3, 0.0)
    positions = np.concatenate([peptide.positions, [[5.0, 0, 0], [0, 5.0, 0]]])
    box = Box(topology, positions, None)
    context, integrator = start(
        engine, Identity(ala2.n_atoms), box, ala2, system=system, burst=5 * STEP,
        frictionCoeff=10.0, settleTime=length,
    )  # fmt: skip
    context.setVelocitiesToTemperature(300, 4)
    advance(integrator, 1000)
    n, constraints = ala2.n_atoms, system.getNumConstraints()
    masses = np.array([system.getParticleMass(i)._value for i in range(n)])
    energies, kelvins = [], []
    for _ in range(bursts):
        advance(integrator, 5)
        state = context.getState(energy=True, groups={7})
        energies.append(state.getPotentialEnergy()._value)
        v = velocities_of(context)[:n]
        kelvins.append((masses[:, None] * v**2).sum() / ((3 * n - constraints) * BOLTZMANN))
    return blocks(energies), blocks(kelvins)


def test_a_jump_that_goes_nowhere_leaves_the_solute_as_warm_as_it_was(peptide, ala2):
    """Bonds would contract if the MD after settling began at rest: to 10.1 from 13.3 kJ/mol."""
    engine = Engine("pythonforce", "Reference")
    (plain, error), (warm, warm_error) = bond_energies(engine, peptide, ala2, 0.0, 2000)
    (settled, other), (kelvin, kelvin_error) = bond_energies(engine, peptide, ala2, 2 * STEP, 2000)
    assert abs(settled - plain) < 4 * np.hypot(error, other)
    assert abs(kelvin - warm) < 4 * np.hypot(warm_error, kelvin_error)
    # At this friction it is 0.035; at 1 per ps it would be 0.045, and 0.053 has been seen.
    assert np.hypot(error, other) < 0.05 * plain
    assert abs(kelvin - 300) < 25


def test_unfinished_settling_follows_the_step_size(tip4p_box, ala2, monkeypatch):
    context, integrator = start(
        Engine("pythonforce", "CPU"), Identity(ala2.n_atoms), tip4p_box, ala2, settleTime=20 * STEP
    )
    real = openmm.CompoundIntegrator.step

    def fail(self, steps):
        if self.getCurrentIntegrator() == 3:
            if steps == 1:
                raise openmm.OpenMMException("something else went wrong")
            real(self, 4)
            raise KeyboardInterrupt
        real(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(openmm.CompoundIntegrator, "step", fail)
        with pytest.raises(openmm.OpenMMException, match="something else"):
            advance(integrator, 1)
    # Nothing was done: velocities are still to be drawn.
    assert integrator.getStatistics()["settle"]["time_ps"] == 0
    seen = []

    def look(self, steps):
        if self.getCurrentIntegrator() == 3:
            seen.append((steps, integrator._settler.getGlobalVariableByName("sd_first")))
        real(self, steps)

    integrator.setStepSize(STEP / 2)
    integrator.setJumping(False)
    with monkeypatch.context() as patch:
        patch.setattr(openmm.CompoundIntegrator, "step", look)
        advance(integrator, 1)
    assert seen == [(1, 1.0), (39, 0.0)]
    assert integrator.getStatistics()["settle"]["time_ps"] == pytest.approx(20 * STEP)


def test_a_checkpoint_of_another_version_is_refused(reference, peptide, ala2, monkeypatch):
    """OpenMM reads it without a word, each number into whatever stands in its place."""
    from openmm_sd.integrator import adjustable, programs

    with monkeypatch.context() as patch:
        patch.setattr(adjustable, "STATE", {"older": 7.0, **programs.STATE})
        patch.setattr(programs, "LAYOUT", programs.LAYOUT + 1.0)
        old, integrator = start(reference, noisy(ala2), peptide, ala2, burst=4 * STEP)
        integrator.step(9)
        saved = old.createCheckpoint()
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=4 * STEP)
    context.loadCheckpoint(saved)
    with pytest.raises(RuntimeError, match="of another version of openmm-sd"):
        integrator.step(1)
    with pytest.raises(RuntimeError, match="of another version of openmm-sd"):
        integrator.getStatistics()


def test_settle_time_setting(ala2):
    integrator = ScoreDynamicsIntegrator(model_of(Identity(ala2.n_atoms), ala2))
    assert integrator.getSettleTime() == 1.0 * unit.picosecond
    integrator.setSettleTime(300 * unit.femtosecond)
    assert copy.deepcopy(integrator).getSettleTime().value_in_unit(unit.picosecond) == (
        pytest.approx(0.3)
    )
    integrator.setSettleTime(0)
    assert integrator.getSettleTime() == 0 * unit.picosecond
    for bad in (-1, float("nan"), "long", 1 * unit.nanometer):
        with pytest.raises(ValueError, match="settleTime must be"):
            integrator.setSettleTime(bad)


# -- what a settled jump may cost, and what happens from an unknown frame --------------------------


class Fickle(Propagator):
    """Stays at lag 1, swells at lag 2; in half of the draws goes far at 3 and nowhere at 4."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 3)

    def forward(self, frame, lag, noise):
        if bool(lag[0] == 2.0):
            return frame * 1.06
        if bool(lag[0] > 2.0):
            way = 0.25 if bool(lag[0] == 3.0) else float("nan")
            far = torch.tensor([way, 0.0, 0.0]).expand(frame.shape[0], 3)
            there = torch.where(noise[:, :1] > 0.0, far, 0.001 * noise)
            return frame + there.unsqueeze(1)
        return frame


@crossed
def test_energy_is_judged_by_what_md_reaches(engine, peptide, ala2):
    system = peptide.forcefield.createSystem(peptide.topology)  # bonds that swell cost energy
    ends = []
    for sigma, lag in ((4.0, 2.0), (None, 2.0), (4.0, 1.0)):
        context, integrator = start(
            engine,
            Fickle(ala2.n_atoms),
            peptide,
            ala2,
            system=copy.deepcopy(system) if engine.bridge != "torchforce" else system,
            frictionCoeff=0.0,
            stepSize=0.001,
            burst=0.01,
            lag=2.0,
            maxEnergySigma=sigma,
            maxTries=3,
        )
        context.setVelocitiesToTemperature(300, 3)
        advance(integrator, 10)  # too early to know what MD reaches
        assert integrator.getStatistics()["jumps_accepted"] == 1
        context.setPositions(peptide.positions)
        integrator.setLag(1.0)
        advance(integrator, 300)
        assert integrator.getStatistics()["fallbacks"] == 0
        integrator.setLag(lag)
        advance(integrator, 10)
        numbers = integrator.getStatistics()
        ends.append(positions_of(context))
        refused = sigma is not None and lag == 2.0
        assert numbers["rejections"]["energy"] == (3 if refused else 0)
        assert numbers["fallbacks"] == refused
        assert numbers["redraws"] == 2 * refused
        assert numbers["jumps_accepted"] == 32 - refused
        if not refused:
            assert numbers["settle"]["steps"] in (None, 0.0)
    if engine.exact:
        # What was taken back was never there.
        np.testing.assert_array_equal(ends[0], ends[2])
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_running_energies_forget_a_start_far_from_equilibrium(ala2):
    integrator = ScoreDynamicsIntegrator(model_of(Identity(ala2.n_atoms), ala2))
    rng = np.random.default_rng(1)
    energies = rng.normal(-3e4, 100.0, 3000)
    energies[:5] += [3e4, 1e4, 3e3, 1e3, 300]
    for k, energy in enumerate(energies):
        integrator._learn_energy(energy)
        if k == 50:
            integrator._learn_energy(float("nan"))
        if k in (400, 2999):
            low, high = (60, 250) if k == 400 else (85, 115)
            assert low < np.sqrt(integrator._get("energy_variance")) < high
            assert abs(integrator._get("energy_mean") + 3e4) < 25
    assert integrator._get("energy_count") == 3000
    integrator.setTemperature(300)
    assert integrator._get("energy_count") == 3000
    integrator.setTemperature(310)
    assert integrator._get("energy_count") == 0


@crossed
def test_what_the_water_refuses_is_drawn_again(engine, water_box, ala2):
    context, integrator = start(
        engine, Fickle(ala2.n_atoms), water_box, ala2, lag=3.0, maxEnergyRise=300.0, settleSteps=2
    )
    context.setVelocitiesToTemperature(300, 3)
    advance(integrator, 12)
    numbers = integrator.getStatistics()
    # Half of the draws go into the water: one jump of sixteen finds no other way in four draws.
    assert numbers["rejections"]["energy_rise"] >= 3
    assert numbers["jumps_accepted"] >= 9
    assert numbers["rejections"]["energy_rise"] == numbers["redraws"] + numbers["fallbacks"]
    assert abs(numbers["settle"]["energy_after_kJ_per_mol"]) < 50
    assert 0 <= numbers["settle"]["steps"] <= 2
    assert np.isfinite(positions_of(context)).all()


def test_candidates_decide_about_speed_only(reference, peptide, ala2):
    ends = []
    for candidates in (1, 3, 7):
        context, integrator = start(
            reference, Fickle(ala2.n_atoms), peptide, ala2, maxTries=6, candidates=candidates
        )
        context.setVelocitiesToTemperature(300, 3)
        integrator.setLag(4.0)
        advance(integrator, 1)  # its first draw fails
        landed = positions_of(context)
        advance(integrator, 29)
        numbers = integrator.getStatistics()
        del numbers["seconds"], numbers["settle"]
        ends.append((landed, numbers))
        assert integrator.getCandidates() == candidates
    # Afterwards MD's own random numbers go other ways: the platform has one stream for all.
    assert ends[0][1]["redraws"] > 5
    for positions, numbers in ends[1:]:
        np.testing.assert_array_equal(positions, ends[0][0])
        assert numbers == ends[0][1]


class Size(torch.nn.Module):
    """A novelty score: how far the outermost atom is from the centroid, nm."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, frames):
        return torch.linalg.vector_norm(frames, dim=2).amax(1)


@crossed
def test_md_covers_the_lag_from_a_novel_frame(engine, peptide, ala2):
    model = model_of(Identity(ala2.n_atoms), ala2)
    model.novelty = Size(0.1)
    context, integrator = start(engine, model, peptide, ala2, burst=5 * STEP, lag=20 * STEP)
    assert integrator.getMaxNovelty() == 0.1
    context.setVelocitiesToTemperature(300, 3)
    advance(integrator, 5)
    numbers = integrator.getStatistics()
    assert numbers["novel"] == numbers["jumps_tried"] == 1
    assert integrator.getLastEvent() == "novel"
    assert numbers["fallbacks"] == numbers["redraws"] == sum(numbers["rejections"].values()) == 0
    for steps, tried in ((19, 1), (1, 2), (19, 2), (1, 3)):
        advance(integrator, steps)
        numbers = integrator.getStatistics()
        assert numbers["novel"] == numbers["jumps_tried"] == tried
    # No time is counted but that of the MD.
    assert numbers["effective_time_ps"] == pytest.approx(45 * STEP)
    # A restart in the middle of such a lag goes on with it.
    advance(integrator, 7)
    checkpoint = context.createCheckpoint()
    integrator.setMaxNovelty(10.0)
    for again in range(2):
        advance(integrator, 12)
        assert integrator.getStatistics()["jumps_tried"] == 3
        advance(integrator, 1)
        assert integrator.getStatistics()["jumps_accepted"] == (0 if again else 1)
        # It is restored as well.
        assert integrator.getLastEvent() == ("novel" if again else "jump")
        if not again:
            # The next burst is an ordinary one.
            advance(integrator, 5)
            assert integrator.getStatistics()["jumps_accepted"] == 2
            context.loadCheckpoint(checkpoint)
            assert integrator.getMaxNovelty() == 0.1
    assert integrator.getStatistics()["novel"] == 4


def test_md_instead_of_a_jump_lasts_whole_bursts(reference, peptide, ala2):
    model = model_of(Identity(ala2.n_atoms), ala2)
    model.novelty = Size(0.1)
    for lag, steps in ((18, 20), (20, 20), (21, 25), (2, 5)):
        _, integrator = start(reference, model, peptide, ala2, burst=5 * STEP, lag=lag * STEP)
        advance(integrator, 5)
        for done in range(1, 3):
            advance(integrator, steps - 1)
            assert integrator.getStatistics()["novel"] == done
            advance(integrator, 1)
            assert integrator.getStatistics()["novel"] == done + 1


def test_novelty_settings(ala2):
    model = model_of(Identity(ala2.n_atoms), ala2)
    integrator = ScoreDynamicsIntegrator(model)
    assert integrator.getMaxNovelty() is None
    with pytest.raises(ValueError, match="maxNovelty needs a model that knows its training data"):
        integrator.setMaxNovelty(1.0)
    model.novelty = Size(0.7)
    integrator = ScoreDynamicsIntegrator(model, maxNovelty=2.0)
    assert integrator.getMaxNovelty() == copy.deepcopy(integrator).getMaxNovelty() == 2.0
    integrator.setMaxNovelty()
    assert integrator.getMaxNovelty() == 0.7
    integrator.setMaxNovelty(None)
    assert integrator.getMaxNovelty() is None
    for bad in (-1.0, float("nan"), "none"):
        with pytest.raises(ValueError, match="maxNovelty must be a positive number"):
            integrator.setMaxNovelty(bad)


def test_sigma_and_candidate_settings(ala2):
    integrator = ScoreDynamicsIntegrator(model_of(Identity(ala2.n_atoms), ala2))
    assert integrator.getMaxEnergySigma() == 4.0
    integrator.setMaxEnergySigma(None)
    assert integrator.getMaxEnergySigma() is None
    assert copy.deepcopy(integrator).getMaxEnergySigma() is None
    with pytest.raises(ValueError, match="maxEnergySigma must be a positive number"):
        integrator.setMaxEnergySigma(0)
    for bad in (0, 8, 2.5):
        with pytest.raises(ValueError, match="candidates must be a whole number from 1 to 7"):
            integrator.setCandidates(bad)


# -- compiling -------------------------------------------------------------------------------------


def test_unscriptable_kernel(peptide, ala2):
    class Plain(Propagator):
        def __init__(self):
            super().__init__(ala2.n_atoms, 0)
            self.seen = []

        def forward(self, frame, lag, noise):
            self.seen.append(eval("float(lag[0])"))
            return frame + 0.01

    kernel = Plain()
    context, integrator = start(
        Engine("pythonforce", "Reference"), kernel, peptide, ala2, burst=4 * STEP
    )
    kernel.seen.clear()
    advance(integrator, 12)
    assert kernel.seen == [10.0] * 3
    for bridge in ("torchforce", "native"):
        if answer(bridge, "Reference").ok:
            with pytest.raises(ValueError, match=f"'{bridge}' needs .* TorchScript can compile"):
                start(Engine(bridge, "Reference"), Plain(), peptide, ala2)
    integrator = ScoreDynamicsIntegrator(model_of(Plain(), ala2))
    integrator.attach(peptide.system(), peptide.topology, platform="Reference")
    assert integrator.bridge == "pythonforce"


def test_interrupts_leave_a_sound_state(peptide, ala2, monkeypatch):
    """Ctrl-C within the model, and while the surroundings settle."""

    class Stoppable(Propagator):
        def __init__(self):
            super().__init__(ala2.n_atoms, 0)
            self.stop = False

        def forward(self, frame, lag, noise):
            if self.stop:
                eval("1")  # keeps TorchScript out
                raise KeyboardInterrupt
            return frame + 0.01

    kernel = Stoppable()
    context, integrator = start(
        Engine("pythonforce", "Reference"), kernel, peptide, ala2, settleSteps=5, frictionCoeff=0.0
    )
    kernel.stop = True
    with pytest.raises(KeyboardInterrupt):
        advance(integrator, 1)
    assert context.getParameter(NUMBER) == 0
    assert context.getStepCount() == 1
    kernel.stop = False

    def stop():
        raise KeyboardInterrupt

    before = positions_of(context)
    with monkeypatch.context() as patch:
        patch.setattr(integrator, "_settle", stop)
        with pytest.raises(KeyboardInterrupt):
            advance(integrator, 1)
    assert np.abs(positions_of(context) - before).max() < 0.005  # the jump was taken back
    assert integrator.getNumJumps() == 0
    advance(integrator, 3)
    assert integrator.getNumJumps() == 3
    assert context.getStepCount() == 5


@pytest.mark.parametrize("bridge", ["pythonforce", "torchforce"])
def test_an_interrupt_right_after_the_program(peptide, ala2, monkeypatch, bridge):
    """A signal that came while OpenMM was busy is raised once the jump is already made."""
    context, integrator = start(
        Engine(bridge, "Reference"), Shift(ala2.n_atoms, SHIFT), peptide, ala2, frictionCoeff=0.0
    )
    real = openmm.CompoundIntegrator.step

    def step_then_stop(self, steps):
        real(self, steps)
        if self.getCurrentIntegrator() == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(openmm.CompoundIntegrator, "step", step_then_stop)
        with pytest.raises(KeyboardInterrupt):
            advance(integrator, 1)
    numbers = integrator.getStatistics()
    assert (numbers["jumps_tried"], numbers["jumps_accepted"], numbers["fallbacks"]) == (1, 0, 1)
    x = positions_of(context)
    plain, other = start(
        Engine(bridge, "Reference"), Shift(ala2.n_atoms, SHIFT), peptide, ala2, frictionCoeff=0.0
    )
    other.setJumping(False)
    advance(other, 1)
    np.testing.assert_allclose(x, positions_of(plain), atol=1e-9)
    advance(integrator, 1)
    assert integrator.getNumJumps() == 1


def test_an_interrupt_in_a_burst_keeps_the_clocks(peptide, ala2, monkeypatch):
    context, integrator = start(
        Engine("pythonforce", "Reference"), Identity(ala2.n_atoms), peptide, ala2, burst=50 * STEP
    )
    real = openmm.CompoundIntegrator.step

    def step_then_stop(self, steps):
        real(self, steps)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(openmm.CompoundIntegrator, "step", step_then_stop)
        with pytest.raises(KeyboardInterrupt):
            integrator.step(20)
    assert context.getStepCount() == 20
    assert integrator.getMDTime()._value == pytest.approx(20 * STEP)
    integrator.step(29)
    assert not integrator.isJumpDue()
    integrator.step(1)
    assert integrator.isJumpDue()
    integrator.step(1)
    assert integrator.getNumJumps() == 1


def test_a_context_that_does_not_fit_is_refused_before_the_first_step(peptide, ala2):
    engine = Engine("pythonforce", "Reference")
    model = model_of(Identity(ala2.n_atoms), ala2)

    def made(change):
        integrator = ScoreDynamicsIntegrator(model, bridge=engine.bridge)
        system = peptide.system()
        integrator.attach(system, peptide.topology)
        system = change(system) or system
        context = openmm.Context(system, integrator, engine.platform)
        context.setPositions(peptide.positions)
        return context, integrator

    def crowd(system):
        force = openmm.CustomExternalForce("0*x")
        force.setForceGroup(31)
        system.addForce(force)

    def renumber(system):
        for k, force in enumerate(system.getForces()):
            force.setForceGroup(k)

    for change in (crowd, renumber):
        context, integrator = made(change)
        with pytest.raises(RuntimeError, match="must stay alone in force group 31"):
            integrator.step(1)
    # A System without the force: OpenMM itself misses the force's parameter.
    with pytest.raises(openmm.OpenMMException, match="openmm_sd_seed"):
        made(lambda system: peptide.system())
    late = ScoreDynamicsIntegrator(model, bridge=engine.bridge)
    bound = openmm.Context(peptide.system(), late, engine.platform)
    assert bound.getIntegrator() is late
    with pytest.raises(ValueError, match="before the Context is made"):
        late.attach(peptide.system(), peptide.topology)


# -- how often the model is called -----------------------------------------------------------------


def test_one_call_a_jump_and_none_elsewhere(engine, water_box, ala2, capfd):
    system = water_box.system()
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 3))
    context, integrator = start(
        engine, Loud(ala2.n_atoms), water_box, ala2, system=system, burst=10 * STEP
    )
    capfd.readouterr()
    context.setVelocitiesToTemperature(300, 1)
    context.getState(forces=True, energy=True)
    if engine.name != "OpenCL":  # OpenMM's minimiser kernels crash under pocl
        openmm.LocalEnergyMinimizer.minimize(context, 100.0, 3)
    integrator.step(10)
    context.getState(forces=True, energy=True)
    assert capfd.readouterr().out.count("CALLED") == 0
    integrator.step(1)
    assert capfd.readouterr().out.count("CALLED") == 1
    integrator.step(40)
    assert capfd.readouterr().out.count("CALLED") == 4
    assert integrator.getNumJumps() == 5


# -- repeatable runs, copies, restarts -------------------------------------------------------------


def noisy(ala2):
    return OrnsteinUhlenbeckInPlace(ala2.n_atoms)


class OrnsteinUhlenbeckInPlace(Propagator):
    """Moves the molecule as a whole by its noise, so that every jump matters and none breaks it."""

    def __init__(self, n_atoms):
        super().__init__(n_atoms, 3)

    def forward(self, frame, lag, noise):
        return frame + 0.01 * noise.reshape(-1, 1, 3)


def test_same_seed_same_trajectory(reference, water_box, ala2):
    ends = []
    for seed in (5, 5, 6):
        context, integrator = start(
            reference, noisy(ala2), water_box, ala2, burst=4 * STEP, seed=seed
        )
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(14)
        ends.append(positions_of(context))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


def test_bridges_agree(peptide, ala2):
    ends = []
    for bridge in BRIDGES:
        if not answer(bridge, "Reference").ok:
            continue
        context, integrator = start(
            Engine(bridge, "Reference"), noisy(ala2), peptide, ala2, burst=4 * STEP
        )
        context.setVelocitiesToTemperature(300, 1)
        integrator.step(14)
        ends.append(positions_of(context))
    if len(ends) < 2:
        pytest.skip("only one bridge works here")
    for end in ends[1:]:
        np.testing.assert_array_equal(ends[0], end)


@crossed
def test_jumps_agree_on_every_engine(engine, peptide, ala2):
    kernel = noisy(ala2)
    moved, _, _ = jump_against_identity(engine, kernel, peptide, ala2, seed=77)
    there, _, _ = jump_against_identity(
        Engine("pythonforce", "Reference"), kernel, peptide, ala2, seed=77
    )
    np.testing.assert_allclose(moved, there, atol=LANDING)
    assert np.abs(there).max() > 1e-3


@crossed
def test_no_engine_asks_for_gradients(engine, peptide, ala2):
    _, integrator = start(engine, NoGradients(ala2.n_atoms), peptide, ala2)
    integrator.step(3)
    assert integrator.getStatistics()["jumps_accepted"] >= 2


@crossed
def test_checkpoint_in_the_middle_of_a_burst(engine, peptide, ala2):
    context, integrator = start(engine, noisy(ala2), peptide, ala2, burst=8 * STEP)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(21)  # two jumps and five steps into the third burst
    saved = context.createCheckpoint()
    integrator.step(20)
    end, numbers = positions_of(context), integrator.getStatistics()
    integrator.step(5)
    context.loadCheckpoint(saved)
    assert integrator.getStatistics()["jumps_tried"] == 2
    integrator.step(20)
    again, seconds = positions_of(context), integrator.getStatistics()
    for one in (numbers, seconds):
        one.pop("seconds")
    assert numbers == seconds
    np.testing.assert_allclose(again, end, rtol=0, atol=0 if engine.exact else 2e-3)


def test_checkpoint_in_a_new_process_like_context(reference, peptide, ala2):
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=8 * STEP)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(21)
    saved = context.createCheckpoint()
    integrator.step(20)
    fresh, other = start(reference, noisy(ala2), peptide, ala2, burst=8 * STEP)
    fresh.loadCheckpoint(saved)
    other.step(20)
    np.testing.assert_array_equal(positions_of(fresh), positions_of(context))
    assert other.getEffectiveTime() == integrator.getEffectiveTime()


def test_settings_come_back_with_a_checkpoint(reference, peptide, ala2):
    """The bath's settings too, which OpenMM does not save for its own integrator."""
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=8 * STEP)
    context.setVelocitiesToTemperature(300, 1)
    integrator.setTemperature(350.0)
    integrator.setFriction(3.0)
    integrator.setLag(33.0)
    integrator.setConstraintTolerance(1e-7)
    integrator.step(5)
    saved = context.createCheckpoint()
    integrator.step(20)
    fresh, other = start(reference, noisy(ala2), peptide, ala2, burst=4 * STEP)
    fresh.loadCheckpoint(saved)
    other.step(20)
    np.testing.assert_array_equal(positions_of(fresh), positions_of(context))
    assert other.getTemperature() == 350 * unit.kelvin
    assert other.getFriction() == 3 / unit.picosecond
    assert other.getLag() == 33 * unit.picosecond
    assert other.getConstraintTolerance() == 1e-7
    assert other.getBurst() == integrator.getBurst()


@crossed
def test_state_round_trip_keeps_clocks_and_jump_noise(engine, peptide, ala2):
    context, integrator = start(engine, noisy(ala2), peptide, ala2, burst=8 * STEP)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(21)
    state = context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )
    text = openmm.XmlSerializer.serialize(state)
    fresh, other = start(engine, noisy(ala2), peptide, ala2, burst=8 * STEP, seed=1234)
    fresh.setState(openmm.XmlSerializer.deserialize(text))
    ours, theirs = integrator.getStatistics(), other.getStatistics()
    for one in (ours, theirs):
        one.pop("seconds")
    assert ours == theirs
    assert other.getRandomNumberSeed() == integrator.getRandomNumberSeed()
    other.step(4)  # three to the end of the burst, and one that begins with the jump
    assert other.getNumJumps() == 3


def test_state_continues_exactly_without_langevin_noise(reference, peptide, ala2):
    """A State lacks OpenMM's own random numbers; where none are used it continues exactly."""
    settings = {"burst": 8 * STEP, "frictionCoeff": 0.0}
    context, integrator = start(reference, noisy(ala2), peptide, ala2, **settings)
    context.setVelocitiesToTemperature(300, 1)
    advance(integrator, 5)
    state = context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )
    fresh, other = start(reference, noisy(ala2), peptide, ala2, **settings)
    fresh.setState(state)
    for one in (integrator, other):
        advance(one, 3)  # up to and including the jump, whose noise is counter-based
    np.testing.assert_array_equal(positions_of(fresh), positions_of(context))


def test_deep_copy(reference, peptide, ala2):
    context, integrator = start(
        reference, noisy(ala2), peptide, ala2, burst=8 * STEP, maxTries=7, strict=True
    )
    context.setVelocitiesToTemperature(300, 1)
    integrator.setConstraintTolerance(1e-7)
    integrator.step(21)
    twin = copy.deepcopy(integrator)
    assert type(twin) is ScoreDynamicsIntegrator
    assert twin.solute == integrator.solute
    assert twin.getMaxTries() == 7
    assert twin.getConstraintTolerance() == 1e-7
    for name in ("getMDTime", "getEffectiveTime", "getNumJumps", "getRandomNumberSeed", "getLag"):
        assert getattr(twin, name)() == getattr(integrator, name)()
    other = openmm.Context(context.getSystem(), twin, reference.platform)
    other.setPositions(context.getState(positions=True).getPositions())
    twin.step(4)
    assert twin.getNumJumps() == integrator.getNumJumps() + 1


def test_deep_copy_before_attach(peptide, ala2):
    integrator = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2), lag=12.0, seed=4)
    twin = copy.deepcopy(integrator)
    assert twin.getLag() == 12.0 * unit.picosecond
    twin.attach(peptide.system(), peptide.topology)
    with pytest.raises(RuntimeError, match="not attached"):
        integrator.step(1)


@pytest.mark.parametrize("attach", [False, True], ids=["same system", "attach again"])
def test_xml_and_restore(reference, peptide, ala2, attach):
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=8 * STEP)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(21)
    bare = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
    assert type(bare) is openmm.CompoundIntegrator
    if attach:
        system = peptide.system()
        again = ScoreDynamicsIntegrator.restore(bare, integrator.model, system, peptide.topology)
    else:
        system = context.getSystem()
        again = ScoreDynamicsIntegrator.restore(bare, integrator.model)
    saved = context.createCheckpoint()
    integrator.step(20)
    # Made only now: the Reference platform has one stream of random numbers for all Contexts, and
    # a new Context starts it afresh.
    fresh = openmm.Context(system, again, reference.platform)
    fresh.loadCheckpoint(saved)
    again.step(20)
    np.testing.assert_array_equal(positions_of(fresh), positions_of(context))
    assert again.getEffectiveTime() == integrator.getEffectiveTime()


def test_restore_refuses_other_integrators(ala2):
    with pytest.raises(ValueError, match="CompoundIntegrator"):
        ScoreDynamicsIntegrator.restore(openmm.VerletIntegrator(0.001), model_of(noisy(ala2), ala2))


def test_system_xml_with_pythonforce(peptide, ala2):
    """The System's XML carries the propagator; openmm-torch 1.10 cannot do this on OpenMM 8.6."""
    engine = Engine("pythonforce", "Reference")
    context, integrator = start(engine, Shift(ala2.n_atoms, SHIFT), peptide, ala2)
    text = openmm.XmlSerializer.serialize(context.getSystem())
    system = openmm.XmlSerializer.deserialize(text)
    twin = copy.deepcopy(integrator)
    other = openmm.Context(system, twin, engine.platform)
    other.setPositions(peptide.positions)
    advance(twin, 1)
    assert twin.getNumJumps() == 1


def test_attaching_again_replaces_the_force(peptide, ala2):
    system = peptide.system()
    n = system.getNumForces()
    for seed in (1, 2):
        integrator = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2), seed=seed)
        integrator.attach(system, peptide.topology)
        assert system.getNumForces() == n + 1
    with pytest.raises(ValueError, match="attached already"):
        integrator.attach(system, peptide.topology)


# -- ordinary simulations --------------------------------------------------------------------------


@crossed
def test_simulation_reporters_and_clocks(engine, water_box, ala2, tmp_path):
    integrator = ScoreDynamicsIntegrator(
        model_of(noisy(ala2), ala2), 300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds,
        burst=20 * unit.femtoseconds, lag=0.1 * unit.nanoseconds, bridge=engine.bridge, seed=3,
        settleTime=4 * unit.femtoseconds,
    )  # fmt: skip
    system = water_box.system()
    integrator.attach(system, water_box.topology, platform=engine.platform)
    simulation = app.Simulation(water_box.topology, system, integrator, engine.platform)
    simulation.context.setPositions(water_box.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    log = io.StringIO()
    simulation.reporters.append(app.StateDataReporter(log, 10, step=True, time=True))
    simulation.reporters.append(app.XTCReporter(str(tmp_path / "out.xtc"), 10))
    simulation.step(65)
    assert simulation.currentStep == 65
    assert simulation.context.getStepCount() == 65
    assert simulation.context.getTime()._value == pytest.approx(0.13)
    assert integrator.getMDTime().value_in_unit(unit.femtosecond) == pytest.approx(130)
    assert integrator.getNumJumps() == 6
    assert integrator.getEffectiveTime().value_in_unit(unit.picosecond) == pytest.approx(600.13)
    assert len(log.getvalue().splitlines()) == 7
    simulation.saveCheckpoint(str(tmp_path / "check"))
    simulation.step(20)
    simulation.loadCheckpoint(str(tmp_path / "check"))
    assert integrator.getNumJumps() == 6
    assert simulation.currentStep == 65


@crossed
def test_pressure_coupling(engine, water_box, ala2):
    """Box vectors that change under a barostat reach the model, and the solute stays whole."""
    system = water_box.system()
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 2))
    context, integrator = start(engine, noisy(ala2), water_box, ala2, system=system, burst=5 * STEP)
    context.setVelocitiesToTemperature(300, 1)
    before = context.getState().getPeriodicBoxVolume()
    advance(integrator, 60)
    state = context.getState(positions=True, energy=True)
    assert state.getPeriodicBoxVolume() != before
    assert integrator.getNumJumps() == 12
    assert np.isfinite(state.getPotentialEnergy()._value)
    x = positions_of(context)
    for i, j in ala2.bonds:
        assert np.linalg.norm(x[i] - x[j]) < 0.2
    assert worst_constraint(context) < 5e-6


@crossed
@pytest.mark.parametrize("precision", ["single", "mixed"])
def test_the_shipped_model_with_default_settings(engine, water_box, precision):
    """Learned jumps in water with settling and gates as users get them."""
    if precision == "mixed" and engine.name != "OpenCL":
        pytest.skip("only GPU platforms know precisions")
    integrator = ScoreDynamicsIntegrator(
        ScoreModel.load("ala2-water"),
        burst=0.05,
        lag=100,
        settleTime=0.1,
        bridge=engine.bridge,
        seed=2,
    )
    system = water_box.system()
    solute = integrator.attach(system, water_box.topology)
    properties = {"Precision": precision} if engine.name == "OpenCL" else {}
    context = openmm.Context(system, integrator, engine.platform, properties)
    context.setPositions(water_box.positions)
    context.setVelocitiesToTemperature(300, 1)
    before = positions_of(context)
    integrator.step(4 * 25 + 10)
    numbers = integrator.getStatistics()
    assert numbers["jumps_tried"] == 4
    assert numbers["novel"] == 0
    assert numbers["jumps_accepted"] >= 2
    assert np.abs(positions_of(context) - before)[list(solute.particles)].max() > 0.03
    degrees = 3 * 22 - 12 - 3 + 6 * (len(before) - 22) // 3
    state = context.getState(energy=True)
    kelvin = 2 * state.getKineticEnergy()._value / degrees / 0.00831446
    assert 240 < kelvin < 370
    assert worst_constraint(context) < 5e-6


@pytest.mark.parametrize("engine", [(b, "Reference") for b in BRIDGES], indirect=True, ids=str)
def test_a_cis_peptide_is_left_to_md(engine, peptide):
    """The shipped model has never seen one, and must not be asked what comes next."""
    model = ScoreModel.load("ala2-water")
    for turn in (0.0, 180.0):
        integrator = ScoreDynamicsIntegrator(
            model, stepSize=0.001, burst=0.005, lag=10.0, bridge=engine.bridge, seed=1
        )
        system = peptide.system()
        solute = integrator.attach(system, peptide.topology)
        context = openmm.Context(system, integrator, engine.platform)
        x = peptide.positions.copy()
        own = np.array(solute.particles)
        # ACE turned about the bond from its carbon to alanine's nitrogen.
        x[own] = turned(x[own][None], [4, 6], np.arange(6), turn)[0]
        context.setPositions(x)
        context.setVelocitiesToTemperature(300, 1)
        advance(integrator, 5)
        numbers = integrator.getStatistics()
        assert numbers["jumps_tried"] == 1
        assert numbers["novel"] == (1 if turn else 0)
        assert numbers["jumps_accepted"] == (0 if turn else 1)


@crossed
def test_virtual_sites_ions_and_heavy_hydrogens(engine, tip4p_box, ala2):
    system = tip4p_box.system(hydrogenMass=3 * unit.dalton)
    names = {atom.residue.name for atom in tip4p_box.topology.atoms()}
    assert {"NA", "CL", "HOH"} <= names
    context, integrator = start(
        engine, noisy(ala2), tip4p_box, ala2, system=system, burst=8 * 0.004, stepSize=0.004
    )
    context.setVelocitiesToTemperature(300, 1)
    advance(integrator, 40)
    assert integrator.getNumJumps() == 5
    assert worst_constraint(context) < 5e-6
    x = positions_of(context)
    context.computeVirtualSites()
    np.testing.assert_allclose(positions_of(context), x, atol=1e-5)
    assert np.isfinite(context.getState(energy=True).getPotentialEnergy()._value)


def test_single_precision_opencl(peptide, ala2):
    from openmm_sd.bridges import platform_names

    if "OpenCL" not in platform_names():
        pytest.skip("OpenMM has no OpenCL platform here")
    engine = Engine("pythonforce", "OpenCL")
    integrator = ScoreDynamicsIntegrator(
        model_of(Shift(ala2.n_atoms, SHIFT), ala2),
        frictionCoeff=0.0,
        burst=STEP,
        bridge=engine.bridge,
    )
    system = peptide.system()
    integrator.attach(system, peptide.topology)
    context = openmm.Context(system, integrator, engine.platform, {"Precision": "single"})
    context.setPositions(peptide.positions)
    advance(integrator, 1)
    moved = positions_of(context) - peptide.positions
    np.testing.assert_allclose(moved.mean(0), SHIFT, atol=1e-3)


# -- settings and bad arguments --------------------------------------------------------------------


def test_getters_and_setters(reference, peptide, ala2):
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=8 * STEP)
    for one in (integrator, copy.deepcopy(integrator)):
        one.setTemperature(310 * unit.kelvin)
        assert one.getTemperature() == 310 * unit.kelvin
        one.setFriction(2.5)
        assert one.getFriction().value_in_unit(unit.picosecond**-1) == 2.5
        one.setLag(0.05 * unit.nanoseconds)
        assert one.getLag().value_in_unit(unit.picosecond) == pytest.approx(50)
        one.setBurst(0.1)
        assert one.getBurst() == 0.1 * unit.picosecond
        one.setStepSize(1 * unit.femtosecond)
        assert one.getStepSize().value_in_unit(unit.picosecond) == 0.001
        one.setRandomNumberSeed(17)
        assert one.getRandomNumberSeed() == 17
    integrator.step(101)
    assert integrator.getNumJumps() == 1
    integrator.setJumping(False)
    assert not integrator.getJumping()
    integrator.step(250)
    assert integrator.getNumJumps() == 1


def test_temperature_setting_reaches_both_parts(peptide, ala2):
    system = peptide.system(removeCMMotion=False)
    context, integrator = start(
        Engine("pythonforce", "Reference"),
        Identity(ala2.n_atoms),
        peptide,
        ala2,
        system=system,
        burst=4 * STEP,
        frictionCoeff=10.0,
    )
    integrator.setTemperature(600.0)
    integrator.step(1000)
    kinetic = []
    for _ in range(400):
        integrator.step(10)
        kinetic.append(context.getState(energy=True).getKineticEnergy()._value)
    degrees = 3 * ala2.n_atoms - system.getNumConstraints()
    mean, error = (2 * v / degrees / 0.00831446 for v in blocks(kinetic))
    assert error < 10
    assert abs(mean - 600) < 4 * error + 6  # 1 % of it from the time step


def test_defaults_come_from_the_card(ala2):
    card = {
        "temperature_K": 310.0,
        "lag_range_ps": [1.0, 50.0],
        "recommended_lag_ps": 20.0,
        "recommended_burst_ps": 0.5,
    }
    integrator = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2, **card))
    assert integrator.getTemperature() == 310.0 * unit.kelvin
    assert integrator.getLag() == 20.0 * unit.picosecond
    assert integrator.getBurst() == 0.5 * unit.picosecond
    assert 1 <= integrator.getRandomNumberSeed() < 2**31
    with pytest.raises(ValueError, match=r"lag must be between 1 and 50 ps .* got 60"):
        integrator.setLag(60)
    with pytest.warns(UserWarning, match="trained at 310 K"):
        integrator.setTemperature(350)
    with pytest.raises(ValueError, match="trained at 310 K"):
        ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2, **card), 300.0, strict=True)
    strict = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2, **card), strict=True)
    with pytest.raises(ValueError, match="trained at 310 K"):
        strict.setTemperature(350)
    assert strict.getTemperature() == 310.0 * unit.kelvin
    with pytest.warns(UserWarning, match="2000 fs; a bare number counts ps"):
        ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2), 300, 1, 2, burst=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1}, "temperature must be a positive number .*got -1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be .*'hot'"),
        ({"temperature": 1 * unit.nanometer}, "temperature must be in kelvin"),
        ({"frictionCoeff": -0.1}, "frictionCoeff must be a non-negative"),
        ({"stepSize": 0}, "stepSize must be a positive"),
        ({"burst": 0.0001}, "burst must be at least one MD step"),
        ({"burst": -2}, "burst must be a positive"),
        ({"lag": 0}, "lag must be a positive"),
        ({"lag": -10 * unit.picosecond}, "lag must be a positive"),
        ({"bridge": "telepathy"}, "bridge must be 'auto' or one of"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 2**31}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"maxTries": 0}, "maxTries must be a whole number"),
        ({"maxTries": True}, "maxTries must be a whole number"),
        ({"maxEnergyRise": -5}, "maxEnergyRise must be a positive"),
        ({"bridge": ["pythonforce"]}, "bridge must be 'auto' or one of"),
    ],
)
def test_bad_arguments(ala2, settings, words):
    with pytest.raises(ValueError, match=words):
        ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2), **settings)


def test_model_must_be_a_model(ala2):
    with pytest.raises(ValueError, match="model must be a ScoreModel, got Identity"):
        ScoreDynamicsIntegrator(Identity(22))


def test_attach_says_what_is_wrong(peptide, water_box, ala2):
    integrator = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2), bridge="pythonforce")
    with pytest.raises(ValueError, match="platform must be one of"):
        integrator.attach(peptide.system(), peptide.topology, platform="Abacus")
    with pytest.raises(ValueError, match="AllBonds|constraint"):
        integrator.attach(peptide.system(constraints=app.AllBonds), peptide.topology)
    full = peptide.system()
    for group in range(32):
        force = openmm.CustomExternalForce("0*x")
        force.setForceGroup(group)
        full.addForce(force)
    with pytest.raises(ValueError, match="no free force group"):
        integrator.attach(full, peptide.topology)
    with pytest.raises(ValueError, match="particles|atoms"):
        integrator.attach(water_box.system(), peptide.topology)
    integrator.attach(peptide.system(), peptide.topology)


def test_constraints_other_than_the_card_s(peptide, ala2):
    model = model_of(noisy(ala2), ala2, constraints="HBonds")
    for strict, expectation in (
        (False, pytest.warns(UserWarning, match="does not constrain the solute's bonds")),
        (True, pytest.raises(ValueError, match="does not constrain the solute's bonds")),
    ):
        integrator = ScoreDynamicsIntegrator(model, bridge="pythonforce", strict=strict)
        with expectation:
            integrator.attach(peptide.system(constraints=None), peptide.topology)
    integrator = ScoreDynamicsIntegrator(model, bridge="pythonforce", strict=True)
    integrator.attach(peptide.system(), peptide.topology)


def test_system_in_another_order_than_the_topology(peptide, ala2):
    system = openmm.System()
    for atom in reversed(list(peptide.topology.atoms())):
        system.addParticle(atom.element.mass)
    integrator = ScoreDynamicsIntegrator(
        model_of(noisy(ala2), ala2), bridge="pythonforce", strict=True
    )
    with pytest.raises(ValueError, match="do the two have the same atom order"):
        integrator.attach(system, peptide.topology)


def test_free_force_group_is_found(ala2, peptide):
    system = peptide.system()
    for group in (31, 30):
        force = openmm.CustomExternalForce("0*x")
        force.setForceGroup(group)
        system.addForce(force)
    context, integrator = start(
        Engine("pythonforce", "Reference"), Shift(ala2.n_atoms, SHIFT), peptide, ala2, system=system
    )
    assert [f.getForceGroup() for f in system.getForces()][-1] == 29
    advance(integrator, 2)
    assert integrator.getNumJumps() == 2
