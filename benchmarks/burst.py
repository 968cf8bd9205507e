#!/usr/bin/env python3
"""Do bursts run at the speed of OpenMM's own integrator, and what does a jump cost?

    python benchmarks/burst.py [--platform CPU] [--waters 651] [--repeats 15] [--json]

The contestants take turns on one machine: LangevinMiddleIntegrator, then a ScoreDynamicsIntegrator
on each bridge doing plain MD in chunks of ten steps as ``Simulation.step`` does. Printed are
medians over the repeats and the median and quartiles of the ratio within each turn. A jump is timed
with a kernel that does nothing, so its cost is the machinery's: force evaluations, the step that
draws new velocities, the model's call without the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import openmm

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.bridges import BRIDGES, probe
from openmm_sd.prepare.box import equilibrate, solvate
from openmm_sd.propagator.kernels import Identity


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--waters", type=int, default=651)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100, help="MD steps a turn")
    parser.add_argument("--jumps", type=int, default=20, help="jumps a turn")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    molecule = ScoreModel.load("ala2-implicit").molecules[0]
    model = ScoreModel(Identity(molecule.n_atoms), molecule)
    box = solvate(molecule.to_topology(), molecule.positions, waters=arguments.waters)
    box = equilibrate(box, time=2.0)
    platform = openmm.Platform.getPlatformByName(arguments.platform)
    step = 0.002

    def context_of(system: openmm.System, integrator: openmm.Integrator) -> openmm.Context:
        context = openmm.Context(system, integrator, platform)
        context.setPeriodicBoxVectors(*box.box_vectors)
        context.setPositions(box.positions)
        context.setVelocitiesToTemperature(300, 1)
        return context

    plain = openmm.LangevinMiddleIntegrator(300, 1, step)
    contestants: dict[str, tuple[openmm.Context, openmm.Integrator]] = {
        "LangevinMiddleIntegrator": (
            context_of(openmm.XmlSerializer.clone(box.system), plain),
            plain,
        )
    }
    for bridge in BRIDGES:
        found = probe(bridge, arguments.platform)
        if not found.ok:
            print(f"{bridge} left out: {found.detail}", file=sys.stderr)
            continue
        integrator = ScoreDynamicsIntegrator(model, 300, 1, step, burst=1e6 * step, bridge=bridge)
        system = openmm.XmlSerializer.clone(box.system)
        integrator.attach(system, box.topology)
        contestants[bridge] = (context_of(system, integrator), integrator)

    def finish(context: openmm.Context) -> None:
        context.getState(positions=True)

    times: dict[str, list[float]] = {name: [] for name in contestants}
    jumps: dict[str, list[float]] = {name: [] for name in contestants if name in BRIDGES}
    for turn in range(arguments.repeats + 1):
        for name, (context, integrator) in contestants.items():
            finish(context)
            began = time.perf_counter()
            for _ in range(arguments.steps // 10):
                integrator.step(10)
            finish(context)
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - began) / arguments.steps)
        for name, (context, integrator) in contestants.items():
            if name in jumps:
                integrator.setBurst(step)  # type: ignore[attr-defined]
                finish(context)
                began = time.perf_counter()
                integrator.step(arguments.jumps)
                finish(context)
                spent = (time.perf_counter() - began) / arguments.jumps
                integrator.setBurst(1e6 * step)  # type: ignore[attr-defined]
                if turn:
                    jumps[name].append(spent - times["LangevinMiddleIntegrator"][-1])

    base = times["LangevinMiddleIntegrator"]
    rows = []
    for name, values in times.items():
        ratios = [b / v for b, v in zip(base, values, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "what": name,
                "platform": arguments.platform,
                "steps_per_second": round(1 / statistics.median(values), 1),
                "ratio_to_langevin": round(middle, 4),
                "ratio_quartiles": [round(low, 4), round(high, 4)],
                "us_per_jump_machinery": round(1e6 * statistics.median(jumps[name]))
                if name in jumps
                else None,
                "repeats": arguments.repeats,
            }
        )
    if arguments.json:
        print(json.dumps({"atoms": box.topology.getNumAtoms(), "rows": rows}))
        return
    print(f"{box.topology.getNumAtoms()} atoms on {arguments.platform}")
    for row in rows:
        low, high = row["ratio_quartiles"]
        jump = row["us_per_jump_machinery"]
        print(
            f"{row['what']:<26} {row['steps_per_second']:>8} steps/s   ratio "
            f"{row['ratio_to_langevin']:.3f} ({low:.3f} to {high:.3f})"
            + (f"   {jump} us a jump" if jump is not None else "")
        )


if __name__ == "__main__":
    main()
