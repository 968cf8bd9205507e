"""Alanine dipeptide in water: MD bursts and learned jumps, as in the README."""

from openmm import *
from openmm.app import *
from openmm.unit import *
from openmm_sd import ScoreDynamicsIntegrator, ScoreDynamicsReporter, ScoreModel

model = ScoreModel.load("ala2-water")
molecule = model.molecules[0]
forcefield = ForceField("amber99sbildn.xml", "tip3p.xml")
modeller = Modeller(molecule.to_topology(), molecule.positions * nanometer)
modeller.addSolvent(forcefield, padding=1.0 * nanometer)
system = forcefield.createSystem(modeller.topology, nonbondedMethod=PME, constraints=HBonds)
integrator = ScoreDynamicsIntegrator(model, burst=1 * picosecond, lag=100 * picoseconds)
integrator.attach(system, modeller.topology)
simulation = Simulation(modeller.topology, system, integrator, Platform.getPlatform("CPU"))
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=100)
simulation.reporters.append(ScoreDynamicsReporter("jumps.csv", 500))
simulation.step(5000)
print(integrator.getStatistics())
