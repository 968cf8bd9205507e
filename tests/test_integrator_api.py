"""What OpenMM's users expect: one call to make it, Quantities and floats, seeds, whole bursts."""

import copy
import inspect

import numpy as np
import openmm
import pytest
from conftest import advance, model_of, positions_of
from openmm import unit
from test_integrator import STEP, noisy, start

import openmm_sd
from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.bridges.base import FORCE_NAME
from openmm_sd.propagator.noise import MAX_SEED

# -- making one ------------------------------------------------------------------------------------


def makers(model):
    """The ways to an attached integrator."""

    def by_hand(system, topology, *arguments, solute=None, platform=None, **settings):
        integrator = ScoreDynamicsIntegrator(model, *arguments, **settings)
        integrator.attach(system, topology, solute, platform)
        return integrator

    def constructor(system, topology, *arguments, **settings):
        return ScoreDynamicsIntegrator(
            model, *arguments, system=system, topology=topology, **settings
        )

    return by_hand, constructor, model.createIntegrator


def test_all_ways_make_the_same_integrator(peptide, ala2):
    ends = []
    for make in makers(model_of(noisy(ala2), ala2)):
        system = peptide.system()
        integrator = make(
            system, peptide.topology, 310 * unit.kelvin, 2.0, STEP, burst=4 * STEP, lag=20.0,
            seed=3, bridge="pythonforce", platform="Reference", solute=0,
        )  # fmt: skip
        assert type(integrator) is ScoreDynamicsIntegrator
        assert integrator.solute.particles == tuple(range(22))
        assert [f.getName() for f in system.getForces()].count(FORCE_NAME) == 1
        assert integrator.getTemperature() == 310 * unit.kelvin
        context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
        context.setPositions(peptide.positions)
        context.setVelocitiesToTemperature(310, 1)
        integrator.step(10)
        assert integrator.getNumJumps() == 2
        ends.append(positions_of(context))
    for end in ends[1:]:
        np.testing.assert_array_equal(end, ends[0])


def test_create_integrator_takes_what_the_constructor_takes(peptide, ala2):
    model = model_of(noisy(ala2), ala2, temperature_K=310.0, recommended_lag_ps=20.0)
    plain = model.createIntegrator(peptide.system(), peptide.topology, bridge="pythonforce")
    assert plain.getTemperature() == 310 * unit.kelvin
    assert plain.getLag() == 20 * unit.picosecond
    named = model.createIntegrator(
        peptide.system(), peptide.topology, temperature=310, frictionCoeff=3, stepSize=0.001,
        bridge="pythonforce", maxTries=2,
    )  # fmt: skip
    assert (named.friction_per_ps, named.step_ps, named.getMaxTries()) == (3, 0.001, 2)
    with pytest.raises(TypeError, match="bursts"):
        model.createIntegrator(peptide.system(), peptide.topology, bursts=1)


def test_a_system_that_does_not_fit_is_left_as_it_was(peptide, water_box, ala2):
    model = model_of(noisy(ala2), ala2)
    system = water_box.system()
    count = system.getNumForces()
    for make in makers(model)[1:]:
        with pytest.raises(ValueError, match="particles|atoms"):
            make(system, peptide.topology, bridge="pythonforce")
    assert system.getNumForces() == count
    with pytest.raises(ValueError, match="give system and topology, or neither"):
        ScoreDynamicsIntegrator(model, system=system)
    with pytest.raises(ValueError, match="give system and topology, or neither"):
        ScoreDynamicsIntegrator(model, topology=water_box.topology)
    with pytest.raises(ValueError, match="solute and platform go with system and topology"):
        ScoreDynamicsIntegrator(model, platform="CPU")


def test_a_family_makes_one_for_the_member_it_finds():
    model = ScoreModel.load("alkanes-water")
    butane = model.member("butane").molecules[0]
    system = openmm.System()
    for number in butane.atomic_numbers:
        system.addParticle(1.0 if number == 1 else 12.0)
    with pytest.warns(UserWarning, match="not constrain|torsion terms"):
        integrator = model.createIntegrator(system, butane.to_topology(), bridge="pythonforce")
    assert integrator.model is model.member("butane")


# -- Quantities and floats -------------------------------------------------------------------------

PAIRS = {
    "temperature_K": ("getTemperature", unit.kelvin),
    "friction_per_ps": ("getFriction", unit.picosecond**-1),
    "step_ps": ("getStepSize", unit.picosecond),
    "burst_ps": ("getBurst", unit.picosecond),
    "lag_ps": ("getLag", unit.picosecond),
    "settle_ps": ("getSettleTime", unit.picosecond),
    "md_time_ps": ("getMDTime", unit.picosecond),
    "effective_time_ps": ("getEffectiveTime", unit.picosecond),
}


def test_every_float_is_a_quantity_too(reference, peptide, ala2):
    _, integrator = start(reference, noisy(ala2), peptide, ala2, burst=4 * STEP)
    integrator.step(6)
    for name, (getter, wanted) in PAIRS.items():
        value, quantity = getattr(integrator, name), getattr(integrator, getter)()
        assert type(value) is float, name
        assert unit.is_quantity(quantity), getter
        assert quantity.value_in_unit(wanted) == value
        with pytest.raises(AttributeError):
            setattr(integrator, name, 1.0)
    assert integrator.effective_time_ps == pytest.approx(6 * STEP + 10)
    properties = {
        name
        for name, _ in inspect.getmembers(type(integrator), lambda x: isinstance(x, property))
        if name not in {"thisown"}
    }
    assert properties == set(PAIRS)
    # What has a unit and a name in camelCase is a Quantity.
    for name in ("getMaxEnergyRise", *(getter for getter, _ in PAIRS.values())):
        integrator.setMaxEnergyRise(100)
        assert unit.is_quantity(getattr(integrator, name)()), name


def test_a_model_s_floats_have_their_unit_in_the_name(ala2):
    card = {"temperature_K": 310.0, "lag_range_ps": [1.0, 50.0], "recommended_lag_ps": 20.0}
    model = model_of(noisy(ala2), ala2, **card)
    assert model.temperature_K == model.temperature == 310
    assert tuple(model.lag_range_ps) == tuple(model.lag_range) == (1, 50)
    assert model.recommended_lag_ps == model.recommended_lag == 20
    assert model.recommended_burst_ps == model.recommended_burst
    assert model.max_displacement_nm == model.max_displacement


# -- bursts are whole steps ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("burst", "step", "steps"),
    [(1.0005, 0.002, 500), (1.0015, 0.002, 501), (0.0011, 0.002, 1), (0.7, 0.002, 350),
     (0.01, 0.003, 3), (1.0, 0.004, 250)],
)  # fmt: skip
def test_what_is_done_is_what_get_burst_says(ala2, burst, step, steps):
    model = model_of(noisy(ala2), ala2)
    integrator = ScoreDynamicsIntegrator(model, burst=burst * unit.picosecond, stepSize=step)
    assert integrator.getBurst().value_in_unit(unit.picosecond) == pytest.approx(steps * step)
    assert integrator.burst_ps == integrator.getBurst()._value
    if abs(burst - steps * step) < 1e-9:
        assert integrator.burst_ps == burst  # not 0.7000000000000001
    twin = copy.copy(integrator)
    assert twin.getBurst() == integrator.getBurst()


def test_a_burst_between_two_numbers_of_steps(reference, peptide, ala2):
    context, integrator = start(reference, noisy(ala2), peptide, ala2, burst=3.4 * STEP)
    assert integrator.getBurst()._value == pytest.approx(3 * STEP)
    steps = round(integrator.getBurst() / integrator.getStepSize())
    for k in range(1, 4):
        integrator.step(steps)
        assert integrator.isJumpDue()
        assert integrator.getStatistics()["jumps_tried"] == k - 1
    # What was asked for is not forgotten: in other steps it is the nearest number again.
    integrator.setStepSize(0.4 * STEP)
    assert integrator.getBurst()._value == pytest.approx(8 * 0.4 * STEP)
    assert integrator.isJumpDue()


# -- seeds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, None])
def test_no_seed_is_one_at_random(ala2, seed):
    model = model_of(noisy(ala2), ala2)
    made = [ScoreDynamicsIntegrator(model, seed=seed) for _ in range(3)]
    seeds = {integrator.getRandomNumberSeed() for integrator in made}
    assert len(seeds) == 3
    assert all(1 <= found <= MAX_SEED for found in seeds)
    made[0].setRandomNumberSeed(0)
    assert made[0].getRandomNumberSeed() not in {0, *seeds}


def test_copies_of_an_integrator_without_a_seed_have_their_own(reference, peptide, ala2):
    """As copies of OpenMM's integrators do; XML is another matter, which restarts use."""
    context, integrator = start(reference, noisy(ala2), peptide, ala2, seed=0)
    copies = [copy.copy(integrator), copy.deepcopy(integrator), copy.copy(copy.copy(integrator))]
    seeds = {one.getRandomNumberSeed() for one in (integrator, *copies)}
    assert len(seeds) == 4
    for one in copies:
        for k in range(one.getNumIntegrators()):
            assert one.getIntegrator(k).getRandomNumberSeed() == one.getRandomNumberSeed()
    bare = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
    restored = ScoreDynamicsIntegrator.restore(bare, integrator.model)
    assert restored.getRandomNumberSeed() == integrator.getRandomNumberSeed()
    fixed = ScoreDynamicsIntegrator(integrator.model, seed=7)
    assert copy.copy(fixed).getRandomNumberSeed() == 7
    advance(integrator, 1)
    assert integrator.getNumJumps() == 1


def test_importing_a_model_imports_no_integrator():
    """`createIntegrator` asks the package when it is called."""
    from test_architecture import IMPORTS

    assert ("openmm_sd", False) in IMPORTS["openmm_sd.model.model"]
    assert ("openmm_sd", True) not in IMPORTS["openmm_sd.model.model"]
    assert openmm_sd.ScoreDynamicsIntegrator is ScoreDynamicsIntegrator
