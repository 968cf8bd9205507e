"""A jump that is due: made with the next MD step, unseen until then."""

import copy
import functools
import io
import zlib

import mdtraj
import numpy as np
import openmm
import pytest
from conftest import LANDING, advance, crossed, model_of, positions_of, velocities_of
from openmm import app
from test_integrator import SHIFT, STEP, Sometimes, noisy, start

from openmm_sd import ScoreDynamicsIntegrator
from openmm_sd.integrator import programs
from openmm_sd.propagator.kernels import Shift

BURST = 4 * STEP


def without_seconds(integrator):
    numbers = integrator.getStatistics()
    del numbers["seconds"]
    return numbers


def whole_state(context):
    return context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )


@crossed
def test_the_end_of_a_burst_is_seen_before_the_jump(engine, peptide, ala2):
    """Positions, energies and clocks are those of MD until the next step is asked for."""
    seen = []
    for jumping in (True, False):
        context, integrator = start(
            engine, Shift(ala2.n_atoms, SHIFT), peptide, ala2, burst=BURST, frictionCoeff=0.0
        )
        context.setVelocitiesToTemperature(300, 3)
        integrator.setJumping(jumping)
        integrator.step(3)
        assert not integrator.isJumpDue()
        integrator.step(1)
        assert integrator.isJumpDue() is jumping
        integrator.step(0)
        state = context.getState(energy=True, forces=True)
        seen.append((positions_of(context), velocities_of(context), state.getPotentialEnergy()))
        numbers = integrator.getStatistics()
        assert numbers["jumps_tried"] == integrator.getNumJumps() == 0
        assert numbers["effective_time_ps"] == pytest.approx(BURST)
        assert integrator.getEffectiveTime() == integrator.getMDTime()
        integrator.step(1)
        assert not integrator.isJumpDue()
        assert integrator.getNumJumps() == integrator.getStatistics()["jumps_tried"] == jumping
        assert integrator.getEffectiveTime()._value == pytest.approx(BURST + STEP + 10 * jumping)
        assert context.getStepCount() == 5
        assert context.getTime()._value == pytest.approx(5 * STEP)
    np.testing.assert_allclose(seen[0][0], seen[1][0], atol=0 if engine.exact else 1e-5)
    np.testing.assert_allclose(seen[0][1], seen[1][1], atol=0 if engine.exact else 2e-2)
    assert abs(seen[0][2] - seen[1][2])._value < 0.1


@crossed
def test_a_jump_made_at_once(engine, peptide, ala2):
    """For whoever looks at it: the solute is where the kernel says, and no step is taken."""
    context, integrator = start(
        engine, Shift(ala2.n_atoms, SHIFT), peptide, ala2, burst=BURST, frictionCoeff=0.0
    )
    context.setVelocitiesToTemperature(300, 3)
    integrator.step(3)
    assert not integrator.makeDueJump()
    integrator.step(1)
    before = positions_of(context)
    assert integrator.makeDueJump()
    moved = positions_of(context) - before
    np.testing.assert_allclose(moved, np.tile(SHIFT, (ala2.n_atoms, 1)), atol=1e-5)
    assert not integrator.makeDueJump()
    assert (integrator.getNumJumps(), context.getStepCount()) == (1, 4)


@pytest.mark.parametrize("settings", [{}, {"settleTime": 3 * STEP, "settleSteps": 4}])
def test_how_steps_are_divided_changes_nothing(reference, peptide, water_box, ala2, settings):
    box = water_box if settings else peptide
    ends = []
    for parts in ([18], [1] * 18, [4] * 4 + [2], [3, 5, 0, 8, 2], "made at once"):
        context, integrator = start(reference, noisy(ala2), box, ala2, burst=BURST, **settings)
        context.setVelocitiesToTemperature(300, 1)
        for steps in [4] * 4 + [2] if parts == "made at once" else parts:
            (advance if parts == "made at once" else type(integrator).step)(integrator, steps)
            context.getState(energy=True, forces=True)
        ends.append((positions_of(context), velocities_of(context), without_seconds(integrator)))
    assert ends[0][2]["jumps_accepted"] == 4
    for x, v, numbers in ends[1:]:
        np.testing.assert_array_equal(x, ends[0][0])
        np.testing.assert_array_equal(v, ends[0][1])
        assert numbers == ends[0][2]


class Frames:
    """A reporter like OpenMM's own that keeps what it is shown."""

    def __init__(self, interval):
        self.interval = interval
        self.frames = []

    def describeNextReport(self, simulation):
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": False, "include": ["positions"]}

    def report(self, simulation, state):
        x = np.array(state.getPositions(asNumpy=True)._value)
        self.frames.append((x, simulation.integrator.getNumJumps()))


@crossed
def test_reporters_see_the_ends_of_bursts(engine, peptide, ala2, tmp_path):
    """Those of OpenMM too; each frame is the one before it, MD and one jump later."""
    integrator = ScoreDynamicsIntegrator(
        *(model_of(Shift(ala2.n_atoms, SHIFT), ala2), 300, 0.0, STEP),
        burst=BURST,
        lag=10,
        bridge=engine.bridge,
        seed=1,
    )
    system = peptide.system(removeCMMotion=False)
    integrator.attach(system, peptide.topology)
    simulation = app.Simulation(peptide.topology, system, integrator, engine.platform)
    simulation.context.setPositions(peptide.positions)
    mine, log, file = Frames(4), io.StringIO(), str(tmp_path / "out.xtc")
    simulation.reporters = [
        mine,
        app.XTCReporter(file, 4),
        app.StateDataReporter(log, 4, step=True, potentialEnergy=True),
    ]
    simulation.step(12)
    assert [jumps for _, jumps in mine.frames] == [0, 1, 2]
    theirs = mdtraj.load(file, top=mdtraj.Topology.from_openmm(peptide.topology))
    np.testing.assert_allclose(theirs.xyz, [x for x, _ in mine.frames], atol=1e-3)
    assert len(log.getvalue().splitlines()) == 4
    # Nothing but a jump moves the whole molecule, and velocities that were drawn after one.
    assert np.abs(mine.frames[0][0].mean(0) - peptide.positions.mean(0)).max() < 2e-3
    np.testing.assert_array_equal(mine.frames[-1][0], positions_of(simulation.context))


# -- what happens to it in between -----------------------------------------------------------------


def due(engine, peptide, ala2, kernel=None, **settings):
    """A Context at the end of a burst."""
    kernel = Shift(ala2.n_atoms, SHIFT) if kernel is None else kernel
    context, integrator = start(
        engine, kernel, peptide, ala2, **{"burst": BURST, "frictionCoeff": 0.0} | settings
    )
    context.setVelocitiesToTemperature(300, 3)
    integrator.step(4)
    assert integrator.isJumpDue()
    return context, integrator


@crossed
def test_it_starts_from_positions_that_are_set(engine, peptide, ala2):
    context, integrator = due(engine, peptide, ala2)
    there = peptide.positions @ np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]) + 0.3
    context.setPositions(there)
    assert integrator.isJumpDue()
    integrator.makeDueJump()
    moved = positions_of(context) - there
    np.testing.assert_allclose(moved, np.tile(SHIFT, (ala2.n_atoms, 1)), atol=1e-5)


@crossed
def test_it_starts_from_a_minimised_structure(engine, peptide, ala2):
    if engine.name == "OpenCL":
        pytest.skip("OpenMM's minimiser kernels crash under pocl")
    context, integrator = due(engine, peptide, ala2)
    before = positions_of(context)
    openmm.LocalEnergyMinimizer.minimize(context, 1.0, 20)
    there = positions_of(context)
    assert np.abs(there - before).max() > 1e-3
    integrator.makeDueJump()
    moved = positions_of(context) - there
    np.testing.assert_allclose(moved, np.tile(SHIFT, (ala2.n_atoms, 1)), atol=1e-5)


@crossed
def test_velocities_that_are_set_are_lost_with_an_accepted_jump(engine, peptide, ala2):
    """And stay where it is dropped."""
    system = openmm.System()
    for atom in peptide.topology.atoms():
        system.addParticle(atom.element.mass)
    drawn = []
    for speed in (0.0, 5.0):
        context, integrator = due(engine, peptide, ala2, system=copy.deepcopy(system))
        context.setVelocities(np.full((ala2.n_atoms, 3), speed))
        integrator.step(1)
        assert integrator.getNumJumps() == 1
        drawn.append(velocities_of(context))
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)
    assert np.abs(drawn[0]).max() > 0.1
    context, integrator = due(
        engine, peptide, ala2, Sometimes(ala2.n_atoms), system=system, settleTime=0
    )
    integrator.setLag(1.0)  # its proposals are NaN
    context.setVelocities(np.full((ala2.n_atoms, 3), 5.0))
    integrator.step(1)
    assert integrator.getStatistics()["fallbacks"] == 1
    np.testing.assert_allclose(velocities_of(context), 5.0, atol=1e-4)


@crossed
@pytest.mark.parametrize("carried", ["checkpoint", "State", "XML", "copy"])
def test_it_is_carried_to_another_context(engine, peptide, ala2, carried):
    """Its numbers are those of the run that goes on itself."""
    context, integrator = due(engine, peptide, ala2, noisy(ala2))
    integrator.step(4)
    saved, state = context.createCheckpoint(), whole_state(context)
    if carried in ("checkpoint", "State"):
        fresh, other = start(
            engine, noisy(ala2), peptide, ala2, burst=BURST, frictionCoeff=0.0, seed=99
        )
        if carried == "checkpoint":
            fresh.loadCheckpoint(saved)
        else:
            fresh.setState(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(state)))
    else:
        if carried == "XML":
            bare = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
            other = ScoreDynamicsIntegrator.restore(bare, integrator.model)
        else:
            other = copy.copy(integrator)
        properties = {"Precision": "mixed"} if engine.name == "OpenCL" else {}
        fresh = openmm.Context(context.getSystem(), other, engine.platform, properties)
        fresh.setPositions(state.getPositions())
        fresh.setVelocities(state.getVelocities())
    assert other.isJumpDue()
    assert without_seconds(other) == without_seconds(integrator)
    assert other.getNumJumps() == 1
    for one in (integrator, other):
        assert one.makeDueJump()
        assert one.getNumJumps() == 2
    np.testing.assert_allclose(
        positions_of(fresh), positions_of(context), rtol=0, atol=LANDING if engine.exact else 1e-5
    )


@crossed
def test_a_checkpoint_goes_on_exactly(engine, peptide, ala2):
    context, integrator = due(engine, peptide, ala2, noisy(ala2), frictionCoeff=1.0)
    saved = context.createCheckpoint()
    ends = []
    for _ in range(2):
        integrator.step(11)
        ends.append((positions_of(context), without_seconds(integrator)))
        context.loadCheckpoint(saved)
        assert integrator.isJumpDue()
        assert integrator.getStatistics()["jumps_tried"] == 0
    np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=0, atol=0 if engine.exact else 2e-3)
    assert ends[0][1] == ends[1][1]
    assert ends[0][1]["jumps_accepted"] == 3


def test_simulation_s_files_carry_it(reference, peptide, ala2, tmp_path):
    shift = model_of(Shift(ala2.n_atoms, SHIFT), ala2)

    def simulate():
        integrator = ScoreDynamicsIntegrator(
            shift, 300, 0.0, STEP, burst=BURST, lag=10, bridge=reference.bridge, seed=1
        )
        system = peptide.system()
        integrator.attach(system, peptide.topology)
        simulation = app.Simulation(peptide.topology, system, integrator, reference.platform)
        simulation.context.setPositions(peptide.positions)
        return simulation

    first = simulate()
    first.step(4)
    first.saveState(str(tmp_path / "state.xml"))
    first.saveCheckpoint(str(tmp_path / "run.chk"))
    for load in ("loadState", "loadCheckpoint"):
        other = simulate()
        file = "state.xml" if load == "loadState" else "run.chk"
        getattr(other, load)(str(tmp_path / file))
        assert other.integrator.isJumpDue()
        other.integrator.makeDueJump()
        moved = positions_of(other.context) - positions_of(first.context)
        np.testing.assert_allclose(moved, np.tile(SHIFT, (ala2.n_atoms, 1)), atol=1e-5)
    # Positions alone say nothing of jumps.
    first.context.setState(other.context.getState(positions=True))
    assert first.integrator.isJumpDue()


def test_what_was_saved_when_jumps_ended_bursts_is_refused(reference, peptide, ala2, monkeypatch):
    """The variables of such a checkpoint are the same; they meant something else."""
    names = (*programs.STATE, *programs.SETTINGS, *programs._SCRATCH)
    before = float(zlib.crc32(",".join(names).encode()))
    assert before != programs.LAYOUT
    with monkeypatch.context() as patch:
        patch.setattr(programs, "LAYOUT", before)
        context, old = start(reference, noisy(ala2), peptide, ala2, burst=BURST)
        old.step(6)
        saved, state = context.createCheckpoint(), whole_state(context)
        xml = openmm.XmlSerializer.serialize(old)
    for load in (lambda c: c.loadCheckpoint(saved), lambda c: c.setState(state)):
        context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=BURST)
        load(context)
        refused = [
            functools.partial(integrator.step, 1),
            integrator.makeDueJump,
            integrator.getStatistics,
            integrator.getEffectiveTime,
            integrator.getMDTime,
            integrator.getNumJumps,
        ]
        for ask in refused:
            with pytest.raises(RuntimeError, match="is of another version of openmm-sd") as e:
                ask()
            assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="not one that this version of openmm-sd wrote"):
        ScoreDynamicsIntegrator.restore(openmm.XmlSerializer.deserialize(xml), old.model)


def test_settings_that_change_while_it_is_due(reference, peptide, ala2):
    _, integrator = due(reference, peptide, ala2)
    # The same burst in other steps is full all the same.
    for size in (STEP / 2, 0.75 * STEP, STEP):
        integrator.setStepSize(size)
        assert integrator.isJumpDue()
    integrator.setBurst(6 * STEP)
    assert not integrator.isJumpDue()
    integrator.step(1)
    assert not integrator.isJumpDue()
    integrator.setBurst(2 * STEP)
    assert integrator.isJumpDue()
    integrator.setBurst(6 * STEP)
    integrator.setStepSize(STEP / 2)  # one step of the old size is left
    integrator.step(1)
    assert not integrator.isJumpDue()
    integrator.step(1)
    assert integrator.isJumpDue()
    integrator.setJumping(False)
    assert not integrator.isJumpDue()
    integrator.step(5)
    assert integrator.getStatistics()["jumps_tried"] == 0
    integrator.setJumping(True)
    assert integrator.isJumpDue()
    integrator.step(1)
    assert integrator.getNumJumps() == 1
    assert integrator.getMDTime()._value == pytest.approx(5 * STEP + 8 * STEP / 2)


def test_no_jump_before_attach(ala2):
    integrator = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2))
    assert not integrator.isJumpDue()
    with pytest.raises(RuntimeError, match="not attached: call attach"):
        integrator.makeDueJump()
