"""From a PDB file without hydrogens to a mixed run: MD bursts and learned jumps in water."""

import sys
from openmm import *
from openmm.app import *
from openmm.unit import *
from openmm_sd import ScoreDynamicsIntegrator, ScoreDynamicsReporter, ScoreModel
from openmm_sd.prepare import PrepareSettings, prepare_system

# Hydrogens, water, minimisation and a few ps of MD; prepared.provenance says what was done.
prepared = prepare_system(sys.argv[1], PrepareSettings(waters=400, equilibration_ps=5))
for note in prepared.provenance["notes"]:
    print(note)

model = ScoreModel.load("ala2-water")
integrator = ScoreDynamicsIntegrator(
    model, 300 * kelvin, 1 / picosecond, prepared.step_ps * picoseconds, lag=100 * picoseconds
)
integrator.attach(prepared.system, prepared.topology)
simulation = Simulation(prepared.topology, prepared.system, integrator, Platform.getPlatform("CPU"))
prepared.place(simulation)
simulation.reporters.append(XTCReporter("trajectory.xtc", 250))
simulation.reporters.append(ScoreDynamicsReporter("jumps.csv", 250))
simulation.step(2500)
print(integrator.getStatistics())
