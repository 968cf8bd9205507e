"""A mixed run of an alkane in water against MD: populations, rates, and jumps that are undone.

    openmm-sd prepare butane.pdb -o box --force-field charmm36.xml \\
        --force-field charmm36/water.xml --waters 300
    python benchmarks/mixed_alkanes.py box data/butane-water.h5 [--jumps 1000] [--json FILE]

The torsions C-C-C-C are looked at before each jump, after it and its settling, and after the burst
that follows. Printed are

* the population of gauche after bursts;
* the rates between trans and gauche, from one step of the run (lag and burst) to the next, beside
  those of MD looked at as far apart;
* of the jumps between trans and gauche, how many are back after the burst; beside it how often MD
  is, which has gone the same way within a lag. Where the water has not followed the jump it draws
  the molecule back, and more are.

Errors are standard errors over 20 blocks, of fractions binomial ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from alkanes import GROUPS, TRANS, Chain, blocks_of, measured, states
from numpy.typing import NDArray

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.data.dataset import read_dataset
from openmm_sd.prepare import read_prepared

STEP_PS = 0.004
#: Plain MD that comes first, ps.
WARM_UP_PS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("box", type=Path, help="prepared directory")
    parser.add_argument("reference", type=Path, help="data set of plain runs")
    parser.add_argument("--model", default="alkanes-water")
    parser.add_argument("--lag", type=float, default=10.0, help="ps")
    parser.add_argument("--burst", type=float, default=1.0, help="ps")
    parser.add_argument("--settle", type=float, help="ps (the integrator's default)")
    parser.add_argument("--jumps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--minutes", type=float, help="stop after this time at the latest")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = compared(*mixed(options), options)
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def mixed(options: argparse.Namespace) -> tuple[Any, NDArray[Any], dict[str, Any]]:
    """Return the molecule, its frames (jumps, 3, atoms, 3) and the integrator's counts.

    Frames are those before a jump, after it, and after the burst that follows.
    """
    prepared = read_prepared(options.box)
    integrator = ScoreDynamicsIntegrator(
        *(ScoreModel.load(options.model), 300.0, 1.0, STEP_PS),
        lag=options.lag,
        burst=options.burst,
        seed=options.seed,
        **({} if options.settle is None else {"settleTime": options.settle}),
    )
    solute = integrator.attach(prepared.system, prepared.topology, platform=options.platform)
    atoms = list(solute.particles)
    platform = openmm.Platform.getPlatformByName(options.platform)
    context = openmm.Context(prepared.system, integrator, platform)
    context.setPeriodicBoxVectors(*prepared.box_vectors)
    context.setPositions(prepared.positions)
    context.setVelocitiesToTemperature(300.0, options.seed)
    integrator.setJumping(False)
    integrator.step(round(WARM_UP_PS / STEP_PS))
    integrator.setJumping(True)
    burst = round(options.burst / STEP_PS)

    def frame() -> NDArray[Any]:
        state = context.getState(positions=True, enforcePeriodicBox=False)
        return np.asarray(state.getPositions(asNumpy=True)._value)[atoms]

    before, after = [], []
    began = time.monotonic()
    while len(after) < options.jumps:
        # The burst's last step belongs to the jump, so what comes before it is looked at.
        integrator.step(burst - 1)
        before.append(frame())
        integrator.step(1)
        after.append(frame())
        if options.minutes and time.monotonic() - began > 60.0 * options.minutes:
            break
    integrator.setJumping(False)
    integrator.step(burst - 1)
    before.append(frame())
    seconds = time.monotonic() - began
    rows = np.stack([before[:-1], after, before[1:]], axis=1)
    counts = integrator.getStatistics() | {"wall_seconds": seconds}
    return solute.molecule, rows, counts


def compared(
    molecule: Any, rows: NDArray[Any], counts: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of the run beside those of MD."""
    data = read_dataset(options.reference)
    plain = [run for run in data.runs if run.kind in ("plain", "imported")]
    spacing = plain[0].spacing_ps
    ours, theirs = Chain.of(molecule), Chain.of(data.molecule)
    step = options.lag + options.burst
    mine = measured([part[None] for part in np.array_split(rows[:, 2], GROUPS)], ours, 1, step)
    blocks = [block[None] for block in blocks_of([run.positions for run in plain])]
    md = measured(blocks, theirs, round(step / spacing), step)
    lag, burst = round(options.lag / spacing), round(options.burst / spacing)
    there = [
        states(run.positions, torsion) == TRANS
        for run in plain
        for alike in theirs.torsions
        for torsion in alike
    ]
    here = [states(rows, torsion) == TRANS for alike in ours.torsions for torsion in alike]
    result: dict[str, Any] = {
        "jumps": len(rows),
        "lag_ps": options.lag,
        "burst_ps": options.burst,
        "seed": options.seed,
        "counts": counts,
        "gauche": {"run": mine["gauche"], "md": md["gauche"]},
        "rates_per_ns": {"run": mine.get("rates_per_ns"), "md": md.get("rates_per_ns")},
    }
    for name, trans in (("trans to gauche", True), ("gauche to trans", False)):
        back = np.concatenate(
            [row[:, 2][(row[:, 0] == trans) & (row[:, 1] != trans)] == trans for row in here]
        )
        again = np.concatenate(
            [
                s[lag + burst :][(s[: -lag - burst] == trans) & (s[lag:-burst] != trans)] == trans
                for s in there
            ]
        )
        share, count = float(np.mean(back)) if len(back) else float("nan"), len(back)
        result[f"undone, {name}"] = {
            "jumps": count,
            "back": share,
            "error": float(np.sqrt(max(share * (1.0 - share), 1.0 / max(count, 1)) / count))
            if count
            else float("nan"),
            "md": float(np.mean(again)),
        }
    return result


if __name__ == "__main__":
    main()
