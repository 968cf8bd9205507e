"""Schedules for a purpose: what cards say of them, and who follows."""

import json

import pytest
from openmm import unit

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.cli import main
from openmm_sd.model.card import Card
from openmm_sd.model.listing import read_listed
from openmm_sd.model.schedules import PURPOSES, Schedule, schedule_text
from openmm_sd.propagator.kernels import Identity
from openmm_sd.run.settings import RunSettings

MEASURED = {"jsd_phi_psi_bits": {"value": 0.0041, "error": 0.0012}}
LONG = {"lag_ps": 80.0, "burst_ps": 0.4, "settle_ps": 0.25, "good_for": ["populations"]}


def model_with(ala2, *schedules):
    card = {"lag_range_ps": [1, 100], "recommended_lag_ps": 5.0, "recommended_burst_ps": 2.0}
    return ScoreModel(Identity(ala2.n_atoms), ala2, card | {"schedules": list(schedules)})


def times(integrator):
    return integrator.lag_ps, integrator.burst_ps, integrator.settle_ps


def test_a_purpose_chooses_lag_burst_and_settling(ala2):
    model = model_with(ala2, LONG | {"measured": MEASURED})
    assert times(ScoreDynamicsIntegrator(model)) == (5.0, 2.0, 1.0)
    assert times(ScoreDynamicsIntegrator(model, purpose="populations")) == (80.0, 0.4, 0.25)
    # Not known to be good for it: what the card recommends.
    assert times(ScoreDynamicsIntegrator(model, purpose="kinetics")) == (5.0, 2.0, 1.0)
    # What is given comes first; the rest of the schedule goes with its lag.
    given = {"burst": 0.1, "settleTime": 0 * unit.picosecond}
    assert times(ScoreDynamicsIntegrator(model, purpose="populations", **given)) == (80, 0.1, 0)
    assert times(ScoreDynamicsIntegrator(model, purpose="populations", lag=80)) == (80, 2.0, 1.0)
    with pytest.raises(ValueError, match="purpose must be one of populations, kinetics, got 'x'"):
        ScoreDynamicsIntegrator(model, purpose="x")


def test_a_schedule_says_what_was_measured_of_its_chains(ala2):
    model = model_with(ala2, LONG | {"measured": MEASURED})
    chosen = model.schedule("populations")
    assert chosen.text == (
        "jumps of 80 ps for populations, bursts of 0.4 ps, settling of 0.25 ps; chains of such "
        "jumps: JSD of phi and psi 0.0041 ± 0.0012 bits"
    )
    assert schedule_text(json.loads(json.dumps(chosen.as_json()))) == chosen.text
    assert model.measured_at(80.0) == MEASURED
    assert model.measured_at(5.0) == {}
    assert "80 ps, for populations: JSD" in model.summary()


@pytest.mark.parametrize(
    "change",
    [{"lag_ps": 0}, {"burst_ps": None}, {"settle_ps": -1}, {"good_for": ["paths"]},
     {"measured": {"jsd": {"error": 1}}}, {"measured": 3}],
)  # fmt: skip
def test_schedules_that_are_none_are_refused(ala2, change):
    with pytest.raises(ValueError, match="card: schedules must be a list of schedules with lag_ps"):
        model_with(ala2, LONG | change)


def test_a_schedule_s_lag_is_in_the_model_s_range(ala2):
    with pytest.raises(ValueError, match="a lag of 200 ps outside lag_range_ps 1 to 100"):
        model_with(ala2, LONG | {"lag_ps": 200.0})


def test_shipped_schedules_keep_what_they_promise():
    """Populations: at least 100 times MD by the clock, at a divergence of 0.010 bits at most."""
    known = 0
    for name in ScoreModel.shipped():
        listed = read_listed(name)
        assert ScoreModel.load(name).schedules == listed.schedules
        for one in listed.schedules:
            assert one.measured["jsd_phi_psi_bits"]["error"] > 0
            if "populations" in one.good_for:
                known += 1
                assert one.measured["jsd_phi_psi_bits"]["value"] <= 0.010
                assert (one.lag_ps + one.burst_ps) / (one.settle_ps + one.burst_ps) > 110
            if "kinetics" in one.good_for:
                slowest = one.measured["slowest_timescale_ps"]
                assert abs(slowest["value"] / slowest["md"] - 1) < 0.2
    assert known >= 1
    assert {use for one in read_listed("ala2-water").schedules for use in one.good_for} == set(
        PURPOSES
    )


def test_run_asks_for_populations_by_default_and_says_so(capsys):
    assert RunSettings().purpose == "populations"
    with pytest.raises(ValueError, match="purpose must be one of populations, kinetics"):
        RunSettings(purpose="speed")
    assert main(["models", "--json"]) == 0
    models = {one["name"]: one for one in json.loads(capsys.readouterr().out)["models"]}
    assert [one["lag_ps"] for one in models["ala2-water"]["schedules"] if one["good_for"]]


def test_the_card_reads_and_writes_schedules():
    card = Card()
    card.schedules = [Schedule(10.0, 1.0).as_json()]
    assert card.schedules == (Schedule(10.0, 1.0),)
    assert Card({}).schedules == ()
