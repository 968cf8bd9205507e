#!/usr/bin/env python3
"""On which frames does the novelty score of ala2-water fire, and what does it cost?

    python benchmarks/novelty.py [--data DIR] [--model BUNDLE] [--seed 1] [--json F] [--png F]

Scores frames that should pass (training runs, held-out runs, each region of the map, chains of the
model itself) and frames that should not: cis and half-turned peptide bonds, stretched molecules,
clashes. Some are made from held-out frames by moving atoms rigidly; others are short MD at 300 K
(amber99sbildn, OBC implicit solvent), so that only the peptide bond is unusual. Printed are the
median, the 99th percentile and the largest score, each over the threshold, and the share of frames
that fire.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app

from openmm_sd import ScoreModel
from openmm_sd.analysis import BASINS, basins, dihedral
from openmm_sd.data.dataset import BIASED, merge, read_dataset
from openmm_sd.propagator.script import script_frozen
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.train.data import split_runs

Frames = NDArray[np.floating[Any]]

DATA = ("ala2-water.h5", "ala2-water-more.h5")
#: Axis of each peptide bond, the atoms that turn with it, and its torsion omega.
PEPTIDE_BONDS = {
    "ACE-ALA": ((4, 6), range(6, 22), (1, 4, 6, 8)),
    "ALA-NME": ((14, 16), range(16, 22), (8, 14, 16, 18)),
}
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
CA, CB, C, O_ACE = 8, 10, 14, 5
#: Force constant of the restraint on omega, kJ/mol: holds it within 10 degrees at 300 K.
RESTRAINT = 500.0
EACH = 200
"""Frames of each case that is made."""


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--model", default="ala2-water", help="shipped model or bundle")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write the table here, too")
    parser.add_argument("--png", metavar="FILE", help="draw the scores")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = ScoreModel.load(arguments.model)
    if model.novelty is None:
        sys.exit(f"{arguments.model} has no novelty score")
    scripted = script_frozen(model.novelty)
    threshold = model.novelty.threshold

    cases = cases_of(model, Path(arguments.data), arguments.seed)
    scores = {}
    for name, frames in cases.items():
        parts = torch.tensor(np.asarray(frames, dtype=np.float32)).split(1000)
        scores[name] = torch.cat([scripted(part) for part in parts]).numpy() / threshold
    print(f"threshold {threshold:g}; scores over the threshold:")
    print(f"{'frames':<44} {'number':>7} {'median':>7} {'99 %':>7} {'max':>7} {'fired':>8}")
    rows = []
    for name, found in scores.items():
        row = {
            "frames": name,
            "number": len(found),
            "median": round(float(np.median(found)), 3),
            "p99": round(float(np.quantile(found, 0.99)), 3),
            "max": round(float(found.max()), 3),
            "fired": round(float((found > 1.0).mean()), 5),
        }
        rows.append(row)
        print(
            f"{name:<44} {row['number']:>7} {row['median']:>7.2f} {row['p99']:>7.2f} "
            f"{row['max']:>7.2f} {row['fired']:>8.2%}"
        )
    microseconds = {str(size): cost(scripted, cases["held-out MD"], size) for size in (1, 64)}
    for size, value in microseconds.items():
        print(f"{value:.0f} us a frame in batches of {size}, one thread")
    if arguments.json:
        record = {"threshold": threshold, "rows": rows, "us_per_frame": microseconds}
        Path(arguments.json).write_text(json.dumps(record, indent=1))
    if arguments.png:
        draw(scores, arguments.png)


def cases_of(model: ScoreModel, folder: Path, seed: int) -> dict[str, Frames]:
    """Return the frames to score by what they are."""
    rng = np.random.default_rng(seed)
    entry = model.card.get("novelty", {})
    data = merge([read_dataset(folder / name) for name in DATA])
    # Seeded runs owe their first ps to how they were started; training leaves it out.
    plain = [run for run in data.runs if run.kind != BIASED]
    kept, held = split_runs(plain, 0.1, 1)
    left_out = set(entry.get("runs_left_out", []))

    def frames_of(runs: list[Any]) -> Frames:
        parts = [
            run.positions[round(1.0 / run.spacing_ps) if run.kind == "seeded" else 0 :]
            for run in runs
        ]
        return np.concatenate(parts)

    training = frames_of([run for run in kept if run.name not in left_out])
    training = training[rng.choice(len(training), 20_000, replace=False)]
    held_out = frames_of([run for run in held if run.name not in left_out])
    cases = {"training MD": training, "held-out MD": held_out}
    state = basins(dihedral(held_out, PHI), dihedral(held_out, PSI))
    for k, name in enumerate(BASINS):
        if (state == k).any():
            cases[f"held-out MD, {name}"] = held_out[state == k]
    biased = np.concatenate([run.positions[::10] for run in data.runs if run.kind == BIASED])
    cases["MD under a bias (not trained on)"] = biased
    if left_out:
        cases["runs left out: ACE-ALA cis"] = frames_of(
            [run for run in kept if run.name in left_out]
        )[::10]
    if model.start_frames is not None:
        cases["start frames of the bundle"] = model.start_frames
        for lag in (10.0, 100.0):
            chains = Rollout(model, RolloutSettings(chains=100, lag_ps=lag, seed=seed))
            cases[f"chains of the model, 20 jumps of {lag:g} ps"] = np.concatenate(
                [chains.advance() for _ in range(20)]
            )

    some = held_out[rng.choice(len(held_out), EACH, replace=False)].astype(np.float64)
    for name, (axis, side, _) in PEPTIDE_BONDS.items():
        for degrees in (30, 60, 90, 180):
            cases[f"{name} omega turned by {degrees}, rigid"] = np.array(
                [turned(frame, axis, list(side), degrees) for frame in some]
            )
    start = some[0]
    cases["MD in implicit solvent, 300 K"] = dynamics(model, start, seed)
    cases["MD in implicit solvent, 600 K"] = dynamics(model, start, seed, kelvin=600.0)
    for name, (axis, side, torsion) in PEPTIDE_BONDS.items():
        cis = turned(start, axis, list(side), 180)
        cases[f"{name} cis, MD at 300 K"] = dynamics(model, cis, seed)
        half = turned(start, axis, list(side), 90)
        cases[f"{name} omega held at 90, MD at 300 K"] = dynamics(
            model, half, seed, restrained=(torsion, np.pi / 2)
        )
    cases["bond CA-C 10 % longer"] = np.array([stretched(x, CA, C, 1.1, 14) for x in some])
    cases["bond CA-C 20 % longer"] = np.array([stretched(x, CA, C, 1.2, 14) for x in some])
    cases["bond CA-CB 20 % longer"] = np.array([stretched(x, CA, CB, 1.2, 10, 14) for x in some])
    cases["all distances 5 % longer"] = 1.05 * some
    cases["all distances 10 % longer"] = 1.1 * some
    clash = some.copy()
    apart = clash[:, O_ACE] - clash[:, CB]
    clash[:, O_ACE] = clash[:, CB] + 0.15 * apart / np.linalg.norm(apart, axis=1, keepdims=True)
    cases["O of ACE 0.15 nm from CB"] = clash
    cases["mirror images of held-out MD (D)"] = held_out * np.array([1.0, 1.0, -1.0])
    return cases


def turned(frame: Frames, axis: tuple[int, int], side: list[int], degrees: float) -> Frames:
    """Return the frame with the atoms of one side turned about a bond."""
    frame = frame.copy()
    origin = frame[axis[0]]
    direction = frame[axis[1]] - origin
    direction /= np.linalg.norm(direction)
    angle, arms = np.deg2rad(degrees), frame[side] - origin
    along = np.outer(arms @ direction, direction)
    frame[side] = (
        origin + along + (arms - along) * np.cos(angle) + np.cross(direction, arms) * np.sin(angle)
    )
    return frame


def stretched(
    frame: Frames, still: int, moved: int, factor: float, first: int, end: int = 22
) -> Frames:
    """Return the frame with a bond longer by a factor; atoms `first` to `end` go along."""
    frame = frame.copy()
    frame[first:end] += (frame[moved] - frame[still]) * (factor - 1.0)
    return frame


def dynamics(
    model: ScoreModel,
    start: Frames,
    seed: int,
    kelvin: float = 300.0,
    restrained: tuple[tuple[int, int, int, int], float] | None = None,
) -> Frames:
    """Minimise, let 5 ps pass, and return a frame each 0.5 ps."""
    molecule = model.molecules[0]
    forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = forcefield.createSystem(molecule.to_topology(), constraints=app.HBonds)
    if restrained is not None:
        force = openmm.CustomTorsionForce(f"{RESTRAINT}*(1-cos(theta-centre))")
        force.addPerTorsionParameter("centre")
        force.addTorsion(*restrained[0], [restrained[1]])
        system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(kelvin, 1.0, 0.002)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": "1"})
    context.setPositions(start)
    openmm.LocalEnergyMinimizer.minimize(context)
    context.setVelocitiesToTemperature(kelvin, seed)
    integrator.step(2500)
    frames = []
    for _ in range(EACH):
        integrator.step(250)
        frames.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


def cost(scripted: torch.jit.ScriptModule, frames: Frames, batch: int) -> float:
    """Return the median time that a frame takes, microseconds."""
    part = torch.tensor(np.asarray(frames[:batch], dtype=np.float32))
    times = []
    for turn in range(220):
        began = time.perf_counter()
        scripted(part)
        if turn >= 20:
            times.append(time.perf_counter() - began)
    return round(float(np.median(times)) / batch * 1e6, 1)


def draw(scores: dict[str, Frames], file: str) -> None:
    """Draw the range of each case's scores, half of them thick, and the threshold."""
    figure, axes = plt.subplots(figsize=(8, 0.28 * len(scores) + 1), layout="constrained")
    for place, found in enumerate(reversed(scores.values())):
        low, first, middle, third, high = np.quantile(found, [0, 0.25, 0.5, 0.75, 1])
        axes.plot([low, high], [place, place], color="0.6", linewidth=1)
        axes.plot([first, third], [place, place], color="C0", linewidth=5)
        axes.plot(middle, place, "k|")
    axes.axvline(1.0, color="C3")
    axes.set_xscale("log")
    axes.set_yticks(range(len(scores)), list(reversed(scores)))
    axes.set_xlabel("novelty score / threshold")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
