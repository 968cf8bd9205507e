"""Butane in water, with a model that learned from ethane, propane, pentane and hexane only."""

from openmm import *
from openmm.app import *
from openmm.unit import *
from openmm_sd import ScoreDynamicsReporter, ScoreModel

model = ScoreModel.load("alkanes-water")
butane = model.member("butane").molecules[0]
forcefield = ForceField("charmm36.xml", "charmm36/water.xml")
modeller = Modeller(butane.to_topology(), butane.positions * nanometer)
modeller.addSolvent(forcefield, padding=1.0 * nanometer)
system = forcefield.createSystem(modeller.topology, nonbondedMethod=PME, constraints=HBonds)
integrator = model.createIntegrator(
    system, modeller.topology, burst=1 * picosecond, lag=10 * picoseconds
)
simulation = Simulation(modeller.topology, system, integrator, Platform.getPlatform("CPU"))
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=100)
simulation.reporters.append(ScoreDynamicsReporter("jumps.csv", 500))
simulation.step(5000)
print(integrator.getStatistics())
