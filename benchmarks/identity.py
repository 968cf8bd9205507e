"""Jumps that go nowhere must change nothing: the identity kernel against OpenMM's own integrator.

    python benchmarks/identity.py [--samples 1500] [--boxes 3] [--seed 1] [--json FILE]

ACE-ALA-NME in small boxes: TIP3P with heavy hydrogens at 4 fs, TIP3P at 2 fs, and TIP4P-Ew (virtual
sites) with sodium and chloride. At constant pressure: density, potential energy and temperature.
Without a thermostat (friction zero): how far the total energy drifts and strays within a burst.
Everything a jump does is done: settling, gates, new velocities, also forces and constraints; only
the place it goes to is the old one. Errors are standard errors over blocks, and the last column is
the difference in standard errors.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app, unit

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis.geometry import jackknife_mean
from openmm_sd.integrator.integrator import BOLTZMANN
from openmm_sd.integrator.reporter import degrees_of_freedom
from openmm_sd.molecule.molecule import Molecule
from openmm_sd.propagator.kernels import Identity

TEMPERATURE_K = 300.0
CUTOFF_NM = 0.75
EDGE_NM = 1.9
BURST_PS = 0.2
SETTLE_PS = 0.2
# Length of the stretches without a thermostat, and time between two looks at the energy, ps.
NVE_BURST_PS = 1.0
NVE_LOOK_PS = 0.1
EQUILIBRATION_PS = 20.0
FORGETFUL_PER_PS = 1e6
LOOK_PS = 0.1
BLOCKS = 15
SYSTEMS = {
    "TIP3P, heavy hydrogens, 4 fs": ("tip3p", 0.004, 3.0, 0.0),
    "TIP3P, 2 fs": ("tip3p", 0.002, None, 0.0),
    "TIP4P-Ew with NaCl, 2 fs": ("tip4pew", 0.002, None, 0.6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--boxes", type=int, default=len(SYSTEMS), help="how many of the boxes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--bridge", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| box | figure | plain MD | with jumps | sigma |\n|---|---|---|---|---|")
    for name, (water, step, mass, salt) in list(SYSTEMS.items())[: options.boxes]:
        topology, positions, system = make_box(water, mass, salt, options.seed)
        for kind, sample in (("NPT", constant_pressure), ("NVE", constant_energy)):
            found = [
                sample(system, topology, positions, step, jumps, options) for jumps in (False, True)
            ]
            for figure in found[0]:
                (a, da), (b, db) = found[0][figure], found[1][figure]
                sigma = (b - a) / float(np.hypot(da, db))
                rows.append(
                    {
                        "box": name,
                        "figure": figure,
                        "plain": [a, da],
                        "jumps": [b, db],
                        "sigma": sigma,
                    }
                )
                print(
                    f"| {name} | {kind}: {figure} | {a:.5g} ± {da:.2g} | {b:.5g} ± {db:.2g} | "
                    f"{sigma:+.1f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def make_box(
    water: str, mass: float | None, salt: float, seed: int
) -> tuple[app.Topology, NDArray[np.float64], openmm.System]:
    """A relaxed box and its System."""
    molecule = ScoreModel.load("ala2-water").molecules[0]
    field = app.ForceField("amber99sbildn.xml", f"{water}.xml")
    modeller = app.Modeller(molecule.to_topology(), molecule.positions * unit.nanometer)
    modeller.addSolvent(
        field,
        model=water,
        boxSize=openmm.Vec3(EDGE_NM, EDGE_NM, EDGE_NM),
        ionicStrength=salt * unit.molar,
    )
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=CUTOFF_NM,
        constraints=app.HBonds,
        hydrogenMass=None if mass is None else mass * unit.dalton,
        # It would take three degrees of freedom away between a jump and the next look.
        removeCMMotion=False,
    )
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, 10.0, 0.001)
    integrator.setRandomNumberSeed(seed)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 20.0, 200)
    context.setVelocitiesToTemperature(TEMPERATURE_K, seed)
    integrator.step(5000)
    x = np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return modeller.topology, x, system


def begin(
    system: openmm.System,
    topology: app.Topology,
    positions: NDArray[np.float64],
    step: float,
    friction: float,
    burst: float | None,
    options: argparse.Namespace,
) -> tuple[openmm.Context, Any]:
    """A Context with OpenMM's own integrator, or with jumps after every burst."""
    integrator: Any
    if burst is None:
        integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, friction, step)
        integrator.setRandomNumberSeed(options.seed)
    else:
        molecule = Molecule.from_topology(solute_topology(topology), positions[:22], "solute")
        integrator = ScoreDynamicsIntegrator(
            ScoreModel(Identity(molecule.n_atoms), molecule),
            TEMPERATURE_K,
            friction,
            step,
            burst=burst,
            settleTime=SETTLE_PS,
            bridge=options.bridge,
            seed=options.seed + 1,
        )
        integrator.attach(system, topology, platform=options.platform)
    platform = openmm.Platform.getPlatformByName(options.platform)
    context = openmm.Context(system, integrator, platform)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(TEMPERATURE_K, options.seed)
    return context, integrator


def solute_topology(topology: app.Topology) -> app.Topology:
    """The solute alone: what stands before the water."""
    modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
    modeller.delete([chain for chain in list(topology.chains())[1:]])
    return modeller.topology


def energies(context: openmm.Context) -> tuple[float, float, float]:
    # At the end of a step the Langevin scheme leaves velocities along constraints, which the next
    # one takes away: at 4 fs they read as 3 K.
    context.applyVelocityConstraints(1e-6)
    groups = context.getIntegrator().getIntegrationForceGroups()
    state = context.getState(energy=True, groups=groups)
    return (
        state.getPotentialEnergy()._value,
        state.getKineticEnergy()._value,
        state.getPeriodicBoxVolume()._value,
    )


def constant_pressure(
    system: openmm.System,
    topology: app.Topology,
    positions: NDArray[np.float64],
    step: float,
    jumps: bool,
    options: argparse.Namespace,
) -> dict[str, tuple[float, float]]:
    system = openmm.XmlSerializer.clone(system)
    barostat = openmm.MonteCarloBarostat(1.0, TEMPERATURE_K, 10)
    barostat.setRandomNumberSeed(options.seed + jumps)
    system.addForce(barostat)
    burst = BURST_PS if jumps else None
    context, integrator = begin(system, topology, positions, step, 2.0, burst, options)
    integrator.step(round(EQUILIBRATION_PS / step))
    rows = []
    for _ in range(options.samples):
        integrator.step(round(LOOK_PS / step))
        rows.append(energies(context))
    potential, kinetic, volume = np.array(rows).T
    masses = [system.getParticleMass(i)._value for i in range(system.getNumParticles())]
    gram_per_ml = 1.66053906660e-3  # of a dalton per cubic nanometre
    return {
        "density, g/ml": jackknife_mean(sum(masses) * gram_per_ml / volume, BLOCKS),
        "potential energy, kJ/mol": jackknife_mean(potential, BLOCKS),
        "temperature, K": jackknife_mean(
            2.0 * kinetic / (degrees_of_freedom(system) * BOLTZMANN), BLOCKS
        ),
    }


def constant_energy(
    system: openmm.System,
    topology: app.Topology,
    positions: NDArray[np.float64],
    step: float,
    jumps: bool,
    options: argparse.Namespace,
) -> dict[str, tuple[float, float]]:
    system = openmm.XmlSerializer.clone(system)
    burst = NVE_BURST_PS if jumps else None
    context, integrator = begin(system, topology, positions, step, 0.0, burst, options)
    look, looks = round(NVE_LOOK_PS / step), round(NVE_BURST_PS / NVE_LOOK_PS)
    slopes, strays = [], []
    # The burst's last step ends in the jump, so the looks stand a step before it.
    integrator.step(round(NVE_BURST_PS / step) - 1)
    for _ in range(max(2 * BLOCKS, options.samples // 10)):
        total = []
        for k in range(looks):
            if k == 0 and not jumps:
                # Velocities forgotten where the jump forgets them: in the middle of a step.
                integrator.step(1)
                integrator.setFriction(FORGETFUL_PER_PS)
                integrator.step(1)
                integrator.setFriction(0.0)
                integrator.step(look - 2)
            else:
                integrator.step(look)
            potential, kinetic, _ = energies(context)
            total.append(potential + kinetic)
        times = NVE_LOOK_PS * np.arange(looks)
        slopes.append(np.polyfit(times, total, 1)[0])
        strays.append(np.std(total))
    return {
        "drift of the total energy in a burst, kJ/mol/ps": jackknife_mean(np.array(slopes), BLOCKS),
        "spread of the total energy in a burst, kJ/mol": jackknife_mean(np.array(strays), BLOCKS),
    }


if __name__ == "__main__":
    main()
