"""Long physics: run by ``make test-physics``, several minutes."""

import numpy as np
import openmm
import pytest
from conftest import Engine, answer, model_of

from openmm_sd import ScoreDynamicsIntegrator
from openmm_sd.propagator.kernels import Identity

pytestmark = pytest.mark.slow


def sample(box, integrator, system, seed, samples=600, every=50):
    """Potential energy, kinetic energy and volume along a run at constant pressure."""
    barostat = openmm.MonteCarloBarostat(1.0, 300.0, 10)
    barostat.setRandomNumberSeed(seed)
    system.addForce(barostat)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(box.positions)
    context.setVelocitiesToTemperature(300, seed)
    integrator.step(5000)
    rows = []
    for _ in range(samples):
        integrator.step(every)
        state = context.getState(energy=True)
        rows.append(
            [
                state.getPotentialEnergy()._value,
                state.getKineticEnergy()._value,
                state.getPeriodicBoxVolume()._value,
            ]
        )
    parts = np.array_split(np.array(rows), 15)
    means = np.array([p.mean(0) for p in parts])
    return means.mean(0), means.std(0, ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("bridge", ["native", "pythonforce", "torchforce"])
def test_identity_kernel_in_water_at_constant_pressure(water_box, ala2, bridge):
    """Energies and density with jumps that go nowhere, against OpenMM's own integrator."""
    if not answer(bridge, "CPU").ok:
        pytest.skip(f"{bridge}: {answer(bridge, 'CPU').detail}")
    plain = openmm.LangevinMiddleIntegrator(300, 2, 0.002)
    plain.setRandomNumberSeed(8)
    theirs, their_error = sample(water_box, plain, water_box.system(removeCMMotion=False), seed=8)
    engine = Engine(bridge, "CPU")
    mine = ScoreDynamicsIntegrator(
        model_of(Identity(ala2.n_atoms), ala2),
        300,
        2,
        0.002,
        burst=0.1,
        settleTime=0.04,
        bridge=engine.bridge,
        seed=9,
    )
    system = water_box.system(removeCMMotion=False)
    mine.attach(system, water_box.topology)
    ours, our_error = sample(water_box, mine, system, seed=9)
    assert mine.getStatistics()["fallbacks"] == 0
    assert mine.getNumJumps() == (35_000 - 1) // 50
    sigma = np.abs(ours - theirs) / np.hypot(our_error, their_error)
    assert (sigma < 4).all(), (ours, theirs, sigma)
    # Tight enough to tell: 2 % of the kinetic energy.
    assert our_error[1] < 0.02 * ours[1]
