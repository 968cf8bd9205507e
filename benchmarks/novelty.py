"""On which frames does the novelty score of ala2-water fire, and what does it cost?

python benchmarks/novelty.py --data data --json FILE

Scores frames that should pass (training runs, held-out runs, each region of the map, chains of the
model itself) and frames that should not: cis and half-turned peptide bonds, stretched molecules,
clashes. Some are made from held-out frames by moving atoms rigidly; others are short MD at 300 K
(amber99sbildn, OBC implicit solvent), so that only the peptide bond is unusual. Printed are the
median, the 99th percentile and the largest score, each over the threshold, and the share of frames
that fire.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app
from shared import (
    JSON,
    SEED,
    Command,
    option,
    phi_psi,
    positions_of,
    run_command,
    write_json,
)

from openmm_sd import ScoreModel
from openmm_sd.analysis import BASINS, basins
from openmm_sd.data.dataset import BIASED, Run, merge, read_dataset
from openmm_sd.propagator.script import script_frozen
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.train.data import split_runs

Frames = NDArray[np.floating[Any]]

DATA = ("ala2-water.h5", "ala2-water-more.h5")
#: Axis of each peptide bond, the atoms that turn with it, and its torsion omega.
PEPTIDE_BONDS = {
    "ACE-ALA": ((4, 6), list(range(6, 22)), (1, 4, 6, 8)),
    "ALA-NME": ((14, 16), list(range(16, 22)), (8, 14, 16, 18)),
}
CA, CB, C, O_ACE = 8, 10, 14, 5
#: Force constant of the restraint on omega, kJ/mol: holds it within 10 degrees at 300 K.
RESTRAINT = 500.0
#: Frames of each case that is made.
EACH = 200


def score(options: argparse.Namespace) -> int:
    """Score the frames, and print what was found."""
    model = ScoreModel.load(options.model)
    if model.novelty is None:
        print(f"{options.model} has no novelty score")
        return 2
    scripted = script_frozen(model.novelty)
    threshold = model.novelty.threshold
    cases = cases_of(model, options.data, options.seed)
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
    write_json(options.json, {"threshold": threshold, "rows": rows, "us_per_frame": microseconds})
    return 0


def cases_of(model: ScoreModel, folder: Path, seed: int) -> dict[str, Frames]:
    """Return the frames to score by what they are."""
    rng = np.random.default_rng(seed)
    cases, held_out = dynamics_of_data(model, folder, rng)
    if model.start_frames is not None:
        cases["start frames of the bundle"] = model.start_frames
        for lag in (10.0, 100.0):
            chains = Rollout(model, RolloutSettings(chains=100, lag_ps=lag, seed=seed))
            cases[f"chains of the model, 20 jumps of {lag:g} ps"] = np.concatenate(
                [chains.advance() for _ in range(20)]
            )
    some = held_out[rng.choice(len(held_out), EACH, replace=False)].astype(np.float64)
    return (
        cases
        | unlike(model, some, seed)
        | {"mirror images of held-out MD (D)": held_out * np.array([1.0, 1.0, -1.0])}
    )


def dynamics_of_data(
    model: ScoreModel, folder: Path, rng: np.random.Generator
) -> tuple[dict[str, Frames], Frames]:
    """Return frames of the data sets by what they are, and all held-out ones."""
    entry = model.card.get("novelty", {})
    data = merge([read_dataset(folder / name) for name in DATA])
    kept, held = split_runs([run for run in data.runs if run.kind != BIASED], 0.1, 1)
    left_out = set(entry.get("runs_left_out", []))

    def frames_of(runs: list[Run], out: bool = False) -> Frames:
        # Seeded runs owe their first ps to how they were started; training leaves it out.
        return np.concatenate(
            [
                run.positions[round(1.0 / run.spacing_ps) if run.kind == "seeded" else 0 :]
                for run in runs
                if (run.name in left_out) == out
            ]
        )

    training = frames_of(kept)
    training = training[rng.choice(len(training), 20_000, replace=False)]
    held_out = frames_of(held)
    cases = {"training MD": training, "held-out MD": held_out}
    state = basins(*phi_psi(held_out).T)
    for k, name in enumerate(BASINS):
        if (state == k).any():
            cases[f"held-out MD, {name}"] = held_out[state == k]
    biased = np.concatenate([run.positions[::10] for run in data.runs if run.kind == BIASED])
    cases["MD under a bias (not trained on)"] = biased
    if left_out:
        cases["runs left out: ACE-ALA cis"] = frames_of(kept, out=True)[::10]
    return cases, held_out


def unlike(model: ScoreModel, some: Frames, seed: int) -> dict[str, Frames]:
    """Return frames made from some held-out ones, most of them unlike any MD."""
    cases: dict[str, Frames] = {}
    for name, (axis, side, _) in PEPTIDE_BONDS.items():
        for degrees in (30, 60, 90, 180):
            cases[f"{name} omega turned by {degrees}, rigid"] = turned(some, axis, side, degrees)
    start = some[:1]
    cases["MD in implicit solvent, 300 K"] = dynamics(model, start[0], seed)
    cases["MD in implicit solvent, 600 K"] = dynamics(model, start[0], seed, kelvin=600.0)
    for name, (axis, side, torsion) in PEPTIDE_BONDS.items():
        cis, half = (turned(start, axis, side, degrees)[0] for degrees in (180, 90))
        cases[f"{name} cis, MD at 300 K"] = dynamics(model, cis, seed)
        cases[f"{name} omega held at 90, MD at 300 K"] = dynamics(
            model, half, seed, restrained=torsion
        )
    cases["bond CA-C 10 % longer"] = stretched(some, CA, C, 1.1, slice(14, 22))
    cases["bond CA-C 20 % longer"] = stretched(some, CA, C, 1.2, slice(14, 22))
    cases["bond CA-CB 20 % longer"] = stretched(some, CA, CB, 1.2, slice(10, 14))
    cases["all distances 5 % longer"] = 1.05 * some
    cases["all distances 10 % longer"] = 1.1 * some
    clash = some.copy()
    apart = clash[:, O_ACE] - clash[:, CB]
    clash[:, O_ACE] = clash[:, CB] + 0.15 * apart / np.linalg.norm(apart, axis=1, keepdims=True)
    cases["O of ACE 0.15 nm from CB"] = clash
    return cases


def turned(frames: Frames, axis: tuple[int, int], side: list[int], degrees: float) -> Frames:
    """Return frames (T, N, 3) with the atoms of one side turned about a bond."""
    frames = frames.copy()
    origin = frames[:, axis[:1]]
    direction = frames[:, axis[1:]] - origin
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    angle, arms = np.deg2rad(degrees), frames[:, side] - origin
    along = (arms * direction).sum(axis=2, keepdims=True) * direction
    frames[:, side] = (
        origin + along + (arms - along) * np.cos(angle) + np.cross(direction, arms) * np.sin(angle)
    )
    return frames


def stretched(frames: Frames, still: int, moved: int, factor: float, along: slice) -> Frames:
    """Return frames with a bond longer by a factor; some atoms go along."""
    frames = frames.copy()
    frames[:, along] += ((frames[:, moved] - frames[:, still]) * (factor - 1.0))[:, None]
    return frames


def dynamics(
    model: ScoreModel,
    start: Frames,
    seed: int,
    kelvin: float = 300.0,
    restrained: tuple[int, int, int, int] | None = None,
) -> Frames:
    """Minimise, let 5 ps pass, and return a frame each 0.5 ps; a torsion may be held at 90."""
    molecule = model.molecules[0]
    forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = forcefield.createSystem(molecule.to_topology(), constraints=app.HBonds)
    if restrained is not None:
        force = openmm.CustomTorsionForce(f"{RESTRAINT}*(1-cos(theta-centre))")
        force.addPerTorsionParameter("centre")
        force.addTorsion(*restrained, [np.pi / 2])
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
        frames.append(positions_of(context))
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


COMMANDS = {
    "score": Command(
        score,
        [
            option("--data", type=Path, default=Path("data"), help="folder of the data sets"),
            option("--model", default="ala2-water", help="shipped model or bundle"),
            SEED,
            JSON,
        ],
    )
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS))
