"""An ordinary OpenMM script with one integrator exchanged: ScoreDynamicsIntegrator."""

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
system.addForce(MonteCarloBarostat(1 * bar, 300 * kelvin))

integrator = ScoreDynamicsIntegrator(
    model,
    300 * kelvin,
    1 / picosecond,
    2 * femtoseconds,
    burst=1 * picosecond,
    lag=100 * picoseconds,
)
integrator.attach(system, modeller.topology)  # after all other forces
simulation = Simulation(modeller.topology, system, integrator, Platform.getPlatform("CPU"))
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=100)

integrator.setJumping(False)  # equilibrate with MD alone
simulation.step(5000)
integrator.setJumping(True)
simulation.reporters.append(XTCReporter("trajectory.xtc", 500))
simulation.reporters.append(StateDataReporter("md.csv", 500, step=True, temperature=True))
simulation.reporters.append(ScoreDynamicsReporter("jumps.csv", 500))
simulation.step(10000)
simulation.saveCheckpoint("run.chk")
print(integrator.getStatistics())
