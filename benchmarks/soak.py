"""A very long mixed run in a small box: no NaN, no leak, no state that jumps cannot leave.

    python benchmarks/soak.py --jumps 100000 [--json FILE]

ACE-ALA-NME in 80 waters with a short cutoff, which is no physics to look at, and bursts of ten
steps, as long as the water settles around the solute at rest. Every hundredth part of the run a
line tells of memory, acceptance, potential energy, temperature and where the molecule is. The
verdicts at the end compare the parts of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import openmm
import torch
from openmm import unit

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis import basins, dihedral
from openmm_sd.prepare import solvate

WATERS = 80
CUTOFF_NM = 0.6
STEP_PS = 0.004
BURST_PS = 0.04
SETTLE_PS = 0.04
LAG_PS = 20.0
PARTS = 100
# Growth of memory that counts as a leak, MiB per 10,000 jumps: 5 % of the whole in 100,000.
LEAK_MIB = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jumps", type=int, default=100_000)
    parser.add_argument("--model", default="ala2-water")
    parser.add_argument("--bridge", default="auto")
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    context, integrator, solute = start(options)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    per_part = max(1, options.jumps // PARTS)
    burst = round(BURST_PS / STEP_PS)
    after = integrator.getStatistics()
    while after["jumps_tried"] < options.jumps:
        before = after
        angles = []
        # From a frame unlike the training data MD covers the lag: then no jump is tried for a time.
        while integrator.getStatistics()["jumps_tried"] < min(
            before["jumps_tried"] + per_part, options.jumps
        ):
            integrator.step(burst)
            x = np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value)
            frame = x[solute]
            angles.append((dihedral(frame, (4, 6, 8, 14)), dihedral(frame, (6, 8, 14, 16))))
        after = integrator.getStatistics()
        groups = integrator.getIntegrationForceGroups()
        state = context.getState(energy=True, groups=groups)
        state_of = basins(*np.array(angles).T)
        row = {
            "jumps": after["jumps_tried"],
            "accepted_fraction": (after["jumps_accepted"] - before["jumps_accepted"])
            / (after["jumps_tried"] - before["jumps_tried"]),
            "novel": after["novel"] - before["novel"],
            "energy_kJ_per_mol": state.getPotentialEnergy()._value,
            "finite": bool(np.isfinite(x).all()),
            "rss_MiB": resident_mib(),
            "hops": int((np.diff(state_of) != 0).sum()),
            "basins": np.bincount(state_of, minlength=5).tolist(),
            "seconds": time.perf_counter() - began,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    found = verdicts(rows)
    result = {
        "settings": vars(options) | {"json": None, "bridge": integrator.bridge},
        "statistics": integrator.getStatistics(),
        "verdicts": found,
        "rows": rows,
    }
    print(json.dumps({k: result[k] for k in ("statistics", "verdicts")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    leak = found["MiB_per_10000_jumps"] > LEAK_MIB
    if leak or not found["all_finite"] or found["hops_fewest_in_a_part"] == 0:
        raise SystemExit(1)


def start(options: argparse.Namespace) -> tuple[openmm.Context, ScoreDynamicsIntegrator, list[int]]:
    model = ScoreModel.load(options.model)
    molecule = model.molecules[0]
    box = solvate(
        molecule.to_topology(),
        molecule.positions,
        waters=WATERS,
        cutoff=CUTOFF_NM,
        hydrogen_mass=3.0,
    )
    for force in box.system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    relaxed = relax(box)
    integrator = ScoreDynamicsIntegrator(
        model,
        300 * unit.kelvin,
        1 / unit.picosecond,
        STEP_PS,
        burst=BURST_PS,
        lag=LAG_PS,
        settleTime=SETTLE_PS,
        bridge=options.bridge,
        seed=options.seed,
    )
    solute = list(integrator.attach(box.system, box.topology, platform=options.platform).particles)
    platform = openmm.Platform.getPlatformByName(options.platform)
    properties = {"Threads": "1"} if options.platform == "CPU" else {}
    context = openmm.Context(box.system, integrator, platform, properties)
    context.setPeriodicBoxVectors(*relaxed.getPeriodicBoxVectors())
    context.setPositions(relaxed.getPositions())
    context.setVelocitiesToTemperature(300.0, options.seed)
    return context, integrator, solute


def relax(box: Any) -> openmm.State:
    """Minimise, and let the box find its density."""
    system = openmm.XmlSerializer.clone(box.system)
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 10))
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.002)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(box.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 50.0, 100)
    context.setVelocitiesToTemperature(300.0, 1)
    for _ in range(20):
        integrator.step(500)
        edge = context.getState().getPeriodicBoxVectors()[0][0]._value
        if edge < 2.02 * CUTOFF_NM:  # it may shrink no further
            break
    return context.getState(positions=True)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def verdicts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tenth = max(1, len(rows) // 10)
    late = rows[tenth:]  # the first part allocates
    jumps = np.array([row["jumps"] for row in late], float)
    memory = np.array([row["rss_MiB"] for row in late])
    slope = float(np.polyfit(jumps, memory, 1)[0]) if len(late) > 2 else float("nan")
    return {
        "jumps": rows[-1]["jumps"],
        "all_finite": all(row["finite"] for row in rows),
        "accepted_fraction_lowest": min(row["accepted_fraction"] for row in rows),
        "hops_fewest_in_a_part": min(row["hops"] for row in rows),
        "rss_MiB_after_a_tenth_and_at_the_end": [memory[0].item(), memory[-1].item()],
        "MiB_per_10000_jumps": 1e4 * slope,
        "energy_kJ_per_mol_first_and_last_half": [
            float(np.mean([row["energy_kJ_per_mol"] for row in half]))
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
            if half
        ],
        "jumps_per_second": rows[-1]["jumps"] / rows[-1]["seconds"],
    }


if __name__ == "__main__":
    main()
