"""A propagator of your own in a simulation: methyl groups that hop at a rate you choose.

A methyl group has three equal places. Turning it into the next one only exchanges equal hydrogens,
so this kernel is exact: it changes no energy and no average, whatever the water does.
"""

import math
import torch
from openmm import *
from openmm.app import *
from openmm.unit import *
from openmm_sd import Propagator, ScoreDynamicsIntegrator, ScoreModel, check_propagator


class MethylHops(Propagator):
    """Each methyl group hops to either of its other places with `rate` (1/ps)."""

    def __init__(self, n_atoms: int, methyls: list[list[int]], rate: float):
        super().__init__(n_atoms, noise_size=len(methyls))
        self.rate = rate
        self.register_buffer("methyls", torch.tensor(methyls))  # three hydrogens each

    def forward(self, frame, lag, noise):
        # The exact law of such hops: where a group is after the lag, from one uniform number each.
        stays = ((1 + 2 * torch.exp(-3 * self.rate * lag)) / 3).unsqueeze(1)
        uniform = (1 + torch.erf(noise / math.sqrt(2.0))) / 2
        turns = (uniform > stays).long() + (uniform > (1 + stays) / 2).long()  # 0, 1 or 2 thirds
        # Each hydrogen goes where the one `turns` places on was.
        places = (torch.arange(3, device=frame.device) + turns.unsqueeze(2)) % 3
        hydrogens = self.methyls.unsqueeze(0).expand(len(frame), -1, -1)
        source = torch.arange(self.n_atoms, device=frame.device).repeat(len(frame), 1)
        source.scatter_(1, hydrogens.flatten(1), hydrogens.gather(2, places).flatten(1))
        return frame.gather(1, source.unsqueeze(2).expand(-1, -1, 3))


molecule = ScoreModel.load("ala2-water").molecules[0]  # of your own: Molecule.from_topology
graph = molecule.graph()
methyls = []
for carbon in graph:
    hydrogens = [i for i in graph[carbon] if molecule.atomic_numbers[i] == 1]
    if len(hydrogens) == 3:
        methyls.append(hydrogens)
kernel = MethylHops(molecule.n_atoms, methyls, rate=0.02)
print(check_propagator(kernel))

card = {"temperature_K": 300.0, "lag_range_ps": [1.0, 100.0]}
integrator = ScoreDynamicsIntegrator(
    ScoreModel(kernel, molecule, card), burst=0.2 * picoseconds, lag=20 * picoseconds, settleTime=0
)
topology, positions = molecule.to_topology(), molecule.positions * nanometer
system = ForceField("amber99sbildn.xml").createSystem(topology, constraints=HBonds)
integrator.attach(system, topology)
simulation = Simulation(topology, system, integrator, Platform.getPlatform("Reference"))
simulation.context.setPositions(positions)
simulation.minimizeEnergy()
simulation.step(1000)
found = integrator.getStatistics()
change = found["settle"]["energy_before_kJ_per_mol"]
print(f"{found['jumps_accepted']} of {found['jumps_tried']} jumps accepted")
print(f"mean change of the energy in a jump: {change:.1e} kJ/mol")
