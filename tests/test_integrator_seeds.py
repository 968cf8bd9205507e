"""Seeds of walkers that share a State or checkpoint."""

import copy

import numpy as np
import openmm
import pytest
from conftest import crossed, model_of, positions_of
from test_integrator import STEP, noisy, start

from openmm_sd import ScoreDynamicsIntegrator

BURST = 4 * STEP


@pytest.fixture
def parent(engine, peptide, ala2):
    """A run with two jumps behind it and one that is due, its State and its checkpoint."""
    context, integrator = start(
        engine, noisy(ala2), peptide, ala2, burst=BURST, frictionCoeff=0.0, seed=5
    )
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(12)
    assert integrator.isJumpDue()
    state = context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )
    return context, integrator, openmm.XmlSerializer.serialize(state), context.createCheckpoint()


def walk(engine, parent, make, seed=None, load="State"):
    """Copy, seed, load, and make the jump that is due: where it ends, and the walker."""
    context, integrator, state, checkpoint = parent
    walker = make(integrator)
    if seed is not None:
        walker.setRandomNumberSeed(seed)
    properties = {"Precision": "mixed"} if engine.name == "OpenCL" else {}
    fresh = openmm.Context(context.getSystem(), walker, engine.platform, properties)
    if load == "State":
        fresh.setState(openmm.XmlSerializer.deserialize(state))
    else:
        fresh.loadCheckpoint(checkpoint)
    if seed is not None and seed:
        assert walker.getRandomNumberSeed() == seed
    walker.makeDueJump()
    assert walker.getNumJumps() == 3
    return positions_of(fresh), walker


@crossed
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("load", ["State", "checkpoint"])
def test_siblings_with_seeds_of_their_own_part(engine, parent, make, load):
    ends = [walk(engine, parent, make, seed, load)[0] for seed in (11, 12, 0, 0)]
    own, _ = walk(engine, parent, make, None, load)
    for k, one in enumerate([*ends, own]):
        for other in [*ends, own][k + 1 :]:
            assert np.abs(one - other).max() > 1e-3
    # The same seed repeats its jump, and without one the parent's is made.
    again, walker = walk(engine, parent, make, 11, load)
    np.testing.assert_allclose(again, ends[0], atol=0 if engine.exact else 1e-5)
    context, integrator, _, _ = parent
    integrator.makeDueJump()
    np.testing.assert_allclose(own, positions_of(context), atol=0 if engine.exact else 1e-5)
    assert integrator.getRandomNumberSeed() == 5
    assert walker.getRandomNumberSeed() == 11


def test_a_seed_by_hand_is_saved_and_stays(reference, peptide, ala2):
    """In what the walker writes, and when it loads another State."""
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=BURST, seed=5)
    integrator.step(9)
    wanted = {"positions": True, "velocities": True, "integratorParameters": True}
    state = context.getState(**wanted)
    walker = copy.copy(integrator)
    walker.setRandomNumberSeed(11)
    fresh = openmm.Context(context.getSystem(), walker, reference.platform)
    for _ in range(2):
        fresh.setState(state)
        assert walker.getRandomNumberSeed() == 11
        walker.step(4)
        assert walker._get("seed") == 11
    xml = openmm.XmlSerializer.serialize(fresh.getState(**wanted))
    assert 'sd_seed="11"' in xml
    # Who takes up the walker's State goes on with the walker's noise.
    child = copy.copy(integrator)
    last = openmm.Context(context.getSystem(), child, reference.platform)
    last.setState(openmm.XmlSerializer.deserialize(xml))
    assert child.getRandomNumberSeed() == 11
    # A copy of a walker has its seed until a State brings another.
    grandchild = copy.copy(walker)
    assert grandchild.getRandomNumberSeed() == 11
    context = openmm.Context(context.getSystem(), grandchild, reference.platform)
    context.setState(state)
    assert grandchild.getRandomNumberSeed() == 5


@pytest.mark.parametrize("seed", [7, 0])
def test_a_seed_of_the_constructor_gives_way(reference, peptide, ala2, seed):
    """A script that is started again goes on with the run in its file."""
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=BURST, seed=5)
    integrator.step(9)
    fresh, other = start(reference, noisy(ala2), peptide, ala2, burst=BURST, seed=seed)
    fresh.loadCheckpoint(context.createCheckpoint())
    assert other.getRandomNumberSeed() == 5
    for one in (other, integrator):
        one.step(5)
    assert other.getNumJumps() == 3
    assert other.getRandomNumberSeed() == 5


def test_openmm_s_own_noise_takes_the_seed_with_a_context(peptide, ala2):
    integrator = ScoreDynamicsIntegrator(model_of(noisy(ala2), ala2), seed=5)
    integrator.attach(peptide.system(), peptide.topology)
    walker = copy.copy(integrator)
    walker.setRandomNumberSeed(11)
    assert [
        walker.getIntegrator(k).getRandomNumberSeed() for k in range(walker.getNumIntegrators())
    ] == [11] * 4
