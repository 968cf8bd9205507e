"""Whether jumps disturb what they should not: ensembles, total energy, memory.

python benchmarks/stability.py identity --samples 1500
python benchmarks/stability.py soak --jumps 100000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from shared import (
    BRIDGE,
    JSON,
    PLATFORM,
    SEED,
    Command,
    begin,
    option,
    phi_psi,
    positions_of,
    print_head,
    print_row,
    run_command,
    sigmas,
    write_json,
)

from openmm_sd import Molecule, ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis import basins
from openmm_sd.analysis.geometry import jackknife_mean
from openmm_sd.integrator.integrator import BOLTZMANN
from openmm_sd.integrator.reporter import degrees_of_freedom
from openmm_sd.molecule.topology import subtopology
from openmm_sd.prepare import equilibrate, solvate
from openmm_sd.propagator.kernels import Identity

# -- jumps that go nowhere -------------------------------------------------------------------------

TEMPERATURE_K = 300.0
CUTOFF_NM = 0.75
EDGE_NM = 1.9
BURST_PS = SETTLE_PS = 0.2
#: Length of the stretches without a thermostat, and time between two looks at the energy, ps.
NVE_BURST_PS, NVE_LOOK_PS = 1.0, 0.1
EQUILIBRATION_PS = 20.0
FORGETFUL_PER_PS = 1e6
LOOK_PS = 0.1
BLOCKS = 15
GRAM_PER_ML = 1.66053906660e-3
"""A dalton per cubic nanometre."""
SOLUTE = range(22)
#: Water model, time step (ps), mass of hydrogens (dalton), and salt (mol/l).
SYSTEMS = {
    "TIP3P, heavy hydrogens, 4 fs": ("tip3p", 0.004, 3.0, 0.0),
    "TIP3P, 2 fs": ("tip3p", 0.002, None, 0.0),
    "TIP4P-Ew with NaCl, 2 fs": ("tip4pew", 0.002, None, 0.6),
}
Figures = dict[str, tuple[float, float]]
#: Topology, positions (nm), System, and time step (ps).
Box = tuple[app.Topology, NDArray[np.float64], openmm.System, float]


def identity(options: argparse.Namespace) -> None:
    """Jumps that go nowhere must change nothing: beside OpenMM's own integrator.

    ACE-ALA-NME in small boxes: TIP3P with heavy hydrogens at 4 fs, TIP3P at 2 fs, and TIP4P-Ew
    (virtual sites) with sodium and chloride. At constant pressure: density, potential energy and
    temperature. Without a thermostat (friction zero): how far the total energy drifts and strays
    within a burst. Everything a jump does is done: settling, gates, new velocities, also forces and
    constraints; only the place it goes to is the old one. Errors are standard errors over blocks,
    and the last column is the difference in standard errors.
    """
    rows = []
    print_head(["box", "figure", "plain MD", "with jumps", "sigma"])
    for name, (water, step, mass, salt) in list(SYSTEMS.items())[: options.boxes]:
        box = make_box(water, step, mass, salt, options.seed)
        for kind, sample in (("NPT", constant_pressure), ("NVE", constant_energy)):
            plain, jumps = (sample(box, jumping, options) for jumping in (False, True))
            for figure, (a, da) in plain.items():
                b, db = jumps[figure]
                sigma = sigmas((b, db), (a, da))
                row = {"box": name, "figure": figure, "plain": [a, da], "jumps": [b, db]}
                rows.append(row | {"sigma": sigma})
                values = [f"{value:.5g} ± {error:.2g}" for value, error in ((a, da), (b, db))]
                print_row([name, f"{kind}: {figure}", *values, f"{sigma:+.1f}"])
    write_json(options.json, rows)


def make_box(water: str, step: float, mass: float | None, salt: float, seed: int) -> Box:
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
    return modeller.topology, np.array(positions_of(context)), system, step


def begin_box(
    box: Box,
    system: openmm.System,
    friction: float,
    burst: float | None,
    options: argparse.Namespace,
) -> tuple[openmm.Context, Any]:
    """A Context with OpenMM's own integrator, or with jumps after every burst."""
    topology, positions, _, step = box
    integrator: Any
    if burst is None:
        integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, friction, step)
        integrator.setRandomNumberSeed(options.seed)
    else:
        solute = subtopology(topology, SOLUTE)
        molecule = Molecule.from_topology(solute, positions[SOLUTE], "solute")
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
    return begin(system, integrator, positions, None, options), integrator


def energies(context: openmm.Context) -> tuple[float, float, float]:
    """Potential and kinetic energy (kJ/mol), and the volume (nm^3)."""
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


def constant_pressure(box: Box, jumps: bool, options: argparse.Namespace) -> Figures:
    """Density, potential energy and temperature with a barostat."""
    step = box[3]
    system = openmm.XmlSerializer.clone(box[2])
    barostat = openmm.MonteCarloBarostat(1.0, TEMPERATURE_K, 10)
    barostat.setRandomNumberSeed(options.seed + jumps)
    system.addForce(barostat)
    context, integrator = begin_box(box, system, 2.0, BURST_PS if jumps else None, options)
    integrator.step(round(EQUILIBRATION_PS / step))
    rows = []
    for _ in range(options.samples):
        integrator.step(round(LOOK_PS / step))
        rows.append(energies(context))
    potential, kinetic, volume = np.array(rows).T
    mass = sum(system.getParticleMass(i)._value for i in range(system.getNumParticles()))
    temperature = 2.0 * kinetic / (degrees_of_freedom(system) * BOLTZMANN)
    return {
        "density, g/ml": jackknife_mean(mass * GRAM_PER_ML / volume, BLOCKS),
        "potential energy, kJ/mol": jackknife_mean(potential, BLOCKS),
        "temperature, K": jackknife_mean(temperature, BLOCKS),
    }


def constant_energy(box: Box, jumps: bool, options: argparse.Namespace) -> Figures:
    """Drift and spread of the total energy in bursts without a thermostat."""
    step = box[3]
    system = openmm.XmlSerializer.clone(box[2])
    context, integrator = begin_box(box, system, 0.0, NVE_BURST_PS if jumps else None, options)
    look, looks = round(NVE_LOOK_PS / step), round(NVE_BURST_PS / NVE_LOOK_PS)
    slopes, strays = [], []
    integrator.step(round(NVE_BURST_PS / step))
    for _ in range(max(2 * BLOCKS, options.samples // 10)):
        total = []
        for k in range(looks):
            if k == 0 and not jumps:
                # Velocities forgotten where the jump forgets them: in the middle of a step.
                integrator.setFriction(FORGETFUL_PER_PS)
                integrator.step(1)
                integrator.setFriction(0.0)
                integrator.step(look - 1)
            else:
                integrator.step(look)
            potential, kinetic, _ = energies(context)
            total.append(potential + kinetic)
        slopes.append(np.polyfit(NVE_LOOK_PS * np.arange(looks), total, 1)[0])
        strays.append(np.std(total))
    return {
        "drift of the total energy in a burst, kJ/mol/ps": jackknife_mean(np.array(slopes), BLOCKS),
        "spread of the total energy in a burst, kJ/mol": jackknife_mean(np.array(strays), BLOCKS),
    }


# -- a very long run -------------------------------------------------------------------------------

SOAK_WATERS = 80
SOAK_CUTOFF_NM = 0.6
SOAK_STEP_PS = 0.004
SOAK_BURST_PS = SOAK_SETTLE_PS = 0.04
SOAK_LAG_PS = 20.0
PARTS = 100
#: Growth of memory that counts as a leak, MiB per 10,000 jumps: 5 % of the whole in 100,000.
LEAK_MIB = 4.0


def soak(options: argparse.Namespace) -> int:
    """A very long mixed run in a small box: no NaN, no leak, no state that jumps cannot leave.

    ACE-ALA-NME in 80 waters with a short cutoff, which is no physics to look at, and bursts of ten
    steps, as long as the water settles around the solute at rest. Every hundredth part of the run a
    line tells of memory, acceptance, potential energy, temperature and where the molecule is. The
    verdicts at the end compare the parts of the run.
    """
    context, integrator, solute = begin_soak(options)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    per_part = max(1, options.jumps // PARTS)
    after = integrator.getStatistics()
    while after["jumps_tried"] < options.jumps:
        before = after
        until = min(before["jumps_tried"] + per_part, options.jumps)
        angles = []
        # From a frame unlike the training data MD covers the lag: then no jump is tried for a time.
        while integrator.getStatistics()["jumps_tried"] < until:
            integrator.step(round(SOAK_BURST_PS / SOAK_STEP_PS))
            x = positions_of(context)
            angles.append(phi_psi(x[solute]))
        after = integrator.getStatistics()
        groups = integrator.getIntegrationForceGroups()
        energy = context.getState(energy=True, groups=groups).getPotentialEnergy()._value
        state_of = basins(*np.array(angles).T)
        tried, accepted, novel = (
            after[key] - before[key] for key in ("jumps_tried", "jumps_accepted", "novel")
        )
        row = {
            "jumps": after["jumps_tried"],
            "accepted_fraction": accepted / tried,
            "novel": novel,
            "energy_kJ_per_mol": energy,
            "finite": bool(np.isfinite(x).all()),
            "rss_MiB": resident_mib(),
            "hops": int((np.diff(state_of) != 0).sum()),
            "basins": np.bincount(state_of, minlength=5).tolist(),
            "seconds": time.perf_counter() - began,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    found = verdicts(rows)
    result = {"statistics": integrator.getStatistics(), "verdicts": found}
    print(json.dumps(result, indent=1))
    settings = {key: getattr(options, key) for key in ("jumps", "model", "platform", "seed")}
    settings |= {"bridge": integrator.bridge}
    write_json(options.json, {"settings": settings, **result, "rows": rows})
    leak = found["MiB_per_10000_jumps"] > LEAK_MIB
    return int(leak or not found["all_finite"] or found["hops_fewest_in_a_part"] == 0)


def begin_soak(
    options: argparse.Namespace,
) -> tuple[openmm.Context, ScoreDynamicsIntegrator, list[int]]:
    """The Context, its integrator, and the solute's atoms."""
    model = ScoreModel.load(options.model)
    molecule = model.molecules[0]
    box = solvate(
        molecule.to_topology(),
        molecule.positions,
        waters=SOAK_WATERS,
        cutoff=SOAK_CUTOFF_NM,
        hydrogen_mass=3.0,
    )
    for force in box.system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    box = equilibrate(box, platform="CPU")
    integrator = ScoreDynamicsIntegrator(
        *(model, 300.0, 1.0, SOAK_STEP_PS),
        burst=SOAK_BURST_PS,
        lag=SOAK_LAG_PS,
        settleTime=SOAK_SETTLE_PS,
        bridge=options.bridge,
        seed=options.seed,
    )
    solute = list(integrator.attach(box.system, box.topology, platform=options.platform).particles)
    context = begin(box.system, integrator, box.positions, box.box_vectors, options, threads=1)
    return context, integrator, solute


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def verdicts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the parts of the run say when they are compared."""
    late = rows[max(1, len(rows) // 10) :]  # the first part allocates
    jumps = np.array([row["jumps"] for row in late], float)
    memory = np.array([row["rss_MiB"] for row in late])
    slope = float(np.polyfit(jumps, memory, 1)[0]) if len(late) > 2 else float("nan")
    energy = [row["energy_kJ_per_mol"] for row in rows]
    half = len(rows) // 2
    return {
        "jumps": rows[-1]["jumps"],
        "all_finite": all(row["finite"] for row in rows),
        "accepted_fraction_lowest": min(row["accepted_fraction"] for row in rows),
        "hops_fewest_in_a_part": min(row["hops"] for row in rows),
        "rss_MiB_after_a_tenth_and_at_the_end": [memory[0].item(), memory[-1].item()],
        "MiB_per_10000_jumps": 1e4 * slope,
        "energy_kJ_per_mol_first_and_last_half": [
            float(np.mean(part)) for part in (energy[:half], energy[half:]) if part
        ],
        "jumps_per_second": rows[-1]["jumps"] / rows[-1]["seconds"],
    }


COMMON = (SEED, PLATFORM, BRIDGE, JSON)
COMMANDS = {
    "identity": Command(
        identity,
        [
            option("--samples", type=int, default=1500),
            option("--boxes", type=int, default=len(SYSTEMS), help="how many of the boxes"),
            *COMMON,
        ],
    ),
    "soak": Command(
        soak,
        [
            option("--jumps", type=int, default=100_000),
            option("--model", default="ala2-water"),
            *COMMON,
        ],
    ),
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS))
