"""The reporter's file: columns, totals, appending."""

import csv
import io
from itertools import pairwise

import openmm
import pytest
from conftest import model_of
from openmm import app

from openmm_sd import ScoreDynamicsIntegrator, ScoreDynamicsReporter
from openmm_sd.propagator.kernels import Shift


@pytest.fixture
def simulation(peptide, ala2):
    integrator = ScoreDynamicsIntegrator(
        model_of(Shift(ala2.n_atoms, (0.01, 0.0, 0.0)), ala2),
        burst=0.02,
        lag=25.0,
        bridge="pythonforce",
        seed=1,
    )
    system = peptide.system()
    integrator.attach(system, peptide.topology)
    simulation = app.Simulation(
        peptide.topology, system, integrator, openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(peptide.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


def test_columns_and_clocks(simulation):
    out = io.StringIO()
    simulation.reporters.append(ScoreDynamicsReporter(out, 25))
    simulation.step(100)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [int(row["Step"]) for row in rows] == [25, 50, 75, 100]
    # At the end of a burst its jump is only due.
    assert [int(row["Jumps"]) for row in rows] == [2, 4, 7, 9]
    for row in rows:
        md, jumps = float(row["MD Time (ps)"]), int(row["Jumps"])
        assert md == pytest.approx(0.002 * int(row["Step"]))
        assert float(row["Effective Time (ps)"]) == pytest.approx(md + 25.0 * jumps)
        assert int(row["Jumps Tried"]) == jumps
        assert row["Fallbacks"] == row["Redraws"] == "0"
        assert row["Rejected: bonds"] == row["Rejected: contacts"] == "0"
        assert 50 < float(row["Temperature (K)"]) < 1000
        assert abs(float(row["Potential Energy (kJ/mol)"])) < 1e4
        assert row["Last Event"] == "jump"
        assert row["Novel"] == row["Rejected: energy"] == row["Rejected: energy_rise"] == "0"
        # The identity moves nothing: there is nothing to settle.
        assert float(row["Settle Steps"]) == float(row["Settle Time (ps)"]) == 0
        assert abs(float(row["Jump Energy (kJ/mol)"])) < 1e-3
        assert abs(float(row["Settled Energy (kJ/mol)"])) < 1e-3
    # By the wall clock since the first line.
    assert [float(row["Effective Speed (ns/day)"] or 0) > 0 for row in rows] == [False, *[True] * 3]
    seconds = [[float(row[f"Seconds: {part}"]) for part in ("md", "model")] for row in rows]
    assert all(a < b for one, two in pairwise(seconds) for a, b in zip(one, two, strict=True))


def test_no_mean_without_a_jump(simulation):
    out = io.StringIO()
    simulation.integrator.setJumping(False)
    simulation.reporters.append(ScoreDynamicsReporter(out, 5))
    simulation.step(5)
    (row,) = csv.DictReader(io.StringIO(out.getvalue()))
    assert row["Settled Energy (kJ/mol)"] == row["Settle Steps"] == row["Last Event"] == ""


def test_appending_writes_no_second_header(simulation, tmp_path):
    path = tmp_path / "jumps.csv"
    for append in (False, True):
        simulation.reporters = [ScoreDynamicsReporter(path, 10, append=append)]
        simulation.step(20)
    simulation.reporters = []
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith('"Step","MD Time (ps)"')
    assert [line.split(",")[0] for line in lines[1:]] == ["10", "20", "30", "40"]


def test_appending_to_other_columns_is_refused(simulation, tmp_path):
    path = tmp_path / "jumps.csv"
    path.write_text('"Step","MD Time (ps)"\n10,0.02\n')
    simulation.reporters = [ScoreDynamicsReporter(path, 10, append=True)]
    with pytest.raises(ValueError, match="the file to append to has other columns"):
        simulation.step(10)
    assert path.read_text() == '"Step","MD Time (ps)"\n10,0.02\n'


@pytest.mark.parametrize("interval", [0, -1, 2.5, True])
def test_bad_interval(interval):
    with pytest.raises(ValueError, match="reportInterval must be a whole number"):
        ScoreDynamicsReporter(io.StringIO(), interval)


def test_other_integrators_are_refused(peptide):
    integrator = openmm.VerletIntegrator(0.001)
    simulation = app.Simulation(
        peptide.topology,
        peptide.system(),
        integrator,
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.context.setPositions(peptide.positions)
    simulation.reporters.append(ScoreDynamicsReporter(io.StringIO(), 1))
    with pytest.raises(ValueError, match="needs a simulation with a ScoreDynamicsIntegrator"):
        simulation.step(1)
