"""What jumps do to the water around them: mixed runs against MD of the same box.

    python benchmarks/mixed.py prepare FOLDER
    python benchmarks/mixed.py md FOLDER --ps 4000 --seed 1
    python benchmarks/mixed.py mixed FOLDER --lag 100 --burst 1 --jumps 2000 --seed 1
    python benchmarks/mixed.py report FOLDER --reference phi-psi.npy
    python benchmarks/mixed.py schedules FOLDER 0.5+0.5 0.5+0.7 1+1 --reference phi-psi.npy

The box is ACE-ALA-NME in water. `md` and `mixed` can be repeated with other settings and seeds;
each run that is stopped keeps what it has. At fixed times after every jump a run notes potential
energy, temperature and how the water stands around the solute: pair distributions of the water's
oxygens around the carbonyl oxygens, the amide hydrogens and the methyl carbons, and how many of
them are in the first shell. Errors are standard errors over blocks of the run. Speeds are not
compared here: runs that are not made in turn see different machines; ``openmm-sd demo`` does it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import openmm
from numpy.typing import NDArray
from scipy.stats import chi2
from shared import (
    JSON,
    PLATFORM,
    SEED,
    Command,
    begin,
    fraction,
    new_figure,
    option,
    phi_psi,
    positions_of,
    print_head,
    print_row,
    run_command,
    sigmas,
    with_error,
    write_json,
)

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis import basins
from openmm_sd.analysis.geometry import jackknife_mean
from openmm_sd.integrator.integrator import BOLTZMANN
from openmm_sd.integrator.reporter import degrees_of_freedom
from openmm_sd.prepare import PreparedBox, equilibrate, solvate

MODEL = "ala2-water"
WATERS = 400
STEP_PS = 0.004
HYDROGEN_MASS_AMU = 3.0
EQUILIBRATION_PS = 100.0
#: Plain MD before a run, and how often plain MD is looked at, ps.
WARM_UP_PS, MD_EVERY_PS = 20.0, 0.5
#: Times after a jump, ps, as far as the burst reaches.
TIMES_PS = (0.02, 0.04, 0.08, 0.12, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
#: Sites of the solute, and the first minimum of each pair distribution in plain MD, nm.
SITES = {"C=O": 0.35, "N-H": 0.25, "CH3": 0.54}
BIN_NM, REACH_NM = 0.01, 0.9
BLOCKS, RESAMPLES = 20, 200
MAP_BINS = 72
#: How many relaxation times between conformations to show, the slowest first.
SHOWN_TIMES = 2
BASIN_NAMES = ("beta", "PII", "alphaR")
#: Time between two frames of the reference series.
SERIES_PS = 1.0
#: How often a normal variable lies within two standard deviations.
TWO_SIGMA = 0.9545
#: A torsion that turned further than this in a jump, degrees, has flipped.
FLIP_DEGREES = 60.0
SAVE_SECONDS = 60.0
#: A value and its standard error.
Measured = tuple[float, float]
Series = NDArray[np.float64]

# -- sampling --------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> None:
    """Make the box, once; every run starts from it."""
    options.folder.mkdir(parents=True, exist_ok=True)
    molecule = ScoreModel.load(MODEL).molecules[0]
    box = solvate(
        molecule.to_topology(),
        molecule.positions,
        waters=WATERS,
        hydrogen_mass=HYDROGEN_MASS_AMU,
    )
    box = equilibrate(box, temperature=300.0, time=EQUILIBRATION_PS, step_size=0.002)
    (options.folder / "box.pickle").write_bytes(pickle.dumps(box))


def load_box(folder: Path) -> PreparedBox:
    """The box of a folder."""
    return pickle.loads((folder / "box.pickle").read_bytes())


class Observer:
    """What is noted of a box at one moment."""

    def __init__(self, box: PreparedBox, solute: list[int]) -> None:
        atoms = list(box.topology.atoms())
        self.edge = float(box.box_vectors[0, 0])
        self.solute, chosen = solute, set(solute)
        oxygens = [a.index for a in atoms if a.element.symbol == "O" and a.index not in chosen]
        self.water = np.array(oxygens)
        beside: dict[int, list[str]] = {i: [] for i in solute}
        for a, b in box.topology.bonds():
            if a.index in chosen:
                beside[a.index].append(b.element.symbol)
                beside[b.index].append(a.element.symbol)
        symbols = {i: atoms[i].element.symbol for i in solute}
        self.sites = {
            "C=O": np.array([i for i in solute if symbols[i] == "O"]),
            "N-H": np.array([i for i in solute if symbols[i] == "H" and beside[i][0] == "N"]),
            "CH3": np.array([i for i in solute if symbols[i] == "C" and beside[i].count("H") == 3]),
        }
        self.dof = degrees_of_freedom(box.system)
        self.bins = np.arange(0.0, REACH_NM + BIN_NM / 2, BIN_NM)

    def __call__(self, context: openmm.Context) -> dict[str, Any]:
        """Potential energy (kJ/mol), temperature (K), and counts (site, bin)."""
        groups = context.getIntegrator().getIntegrationForceGroups()
        state = context.getState(positions=True, energy=True, groups=groups)
        x = np.asarray(state.getPositions(asNumpy=True)._value)
        counts = []
        for atoms in self.sites.values():
            d = x[self.water][None] - x[atoms][:, None]
            d -= self.edge * np.round(d / self.edge)
            counts.append(np.histogram(np.sqrt((d * d).sum(-1)).ravel(), self.bins)[0])
        return {
            "energy": state.getPotentialEnergy()._value,
            "temperature": 2.0 * state.getKineticEnergy()._value / (self.dof * BOLTZMANN),
            "counts": np.array(counts),
        }

    def torsions(self, context: openmm.Context) -> NDArray[np.float64]:
        """phi and psi, radians."""
        x = positions_of(context)[self.solute]
        d = x - x[0]
        return phi_psi(x[0] + d - self.edge * np.round(d / self.edge))  # the molecule is small


def save(file: Path, arrays: dict[str, list[Any]], about: dict[str, Any]) -> None:
    """Write what a run has found so far, atomically."""
    temporary = file.with_name(f".{file.name}")
    with open(temporary, "wb") as stream:
        np.savez_compressed(
            stream, about=json.dumps(about), **{k: np.array(v) for k, v in arrays.items()}
        )
    os.replace(temporary, file)


def run_md(options: argparse.Namespace) -> None:
    """Plain MD of the box."""
    box = load_box(options.folder)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, STEP_PS)
    integrator.setRandomNumberSeed(options.seed)
    system = openmm.XmlSerializer.clone(box.system)
    context = begin(system, integrator, box.positions, box.box_vectors, options, threads=1)
    observe = Observer(box, list(range(22)))
    integrator.step(round(WARM_UP_PS / STEP_PS))
    every = round(MD_EVERY_PS / STEP_PS)
    arrays: dict[str, list[Any]] = {
        key: [] for key in ("energy", "temperature", "counts", "phi", "psi")
    }
    about = {"kind": "md", "seed": options.seed, "seconds": 0.0, "md_ps": 0.0}
    saved = time.monotonic()
    while about["md_ps"] < options.ps:
        began = time.perf_counter()
        integrator.step(every)
        about["seconds"] += time.perf_counter() - began
        about["md_ps"] += every * STEP_PS
        phi, psi = observe.torsions(context)
        for key, value in (observe(context) | {"phi": phi, "psi": psi}).items():
            arrays[key].append(value)
        if time.monotonic() - saved > SAVE_SECONDS or about["md_ps"] >= options.ps:
            save(options.folder / f"md-{options.seed}.npz", arrays, about)
            saved = time.monotonic()


def run_mixed(options: argparse.Namespace) -> None:
    """A mixed run of the box, looked at after every jump."""
    box = load_box(options.folder)
    settings = {"settleSteps": options.settle, "settleTime": options.settle_time}
    integrator = ScoreDynamicsIntegrator(
        *(ScoreModel.load(MODEL), 300.0, 1.0, STEP_PS),
        burst=options.burst,
        lag=options.lag,
        seed=options.seed,
        **{key: value for key, value in settings.items() if value is not None},
    )
    system = openmm.XmlSerializer.clone(box.system)
    solute = list(integrator.attach(system, box.topology, platform=options.platform).particles)
    context = begin(system, integrator, box.positions, box.box_vectors, options, threads=1)
    observe = Observer(box, solute)
    integrator.setJumping(False)
    integrator.step(round(WARM_UP_PS / STEP_PS))
    integrator.setJumping(True)
    burst = round(options.burst / STEP_PS)
    times = [t for t in TIMES_PS if t < options.burst]
    stops = sorted({min(round(t / STEP_PS), burst) for t in times} | {burst})
    keys = ("energy", "temperature", "counts", "accepted", "before", "after")
    arrays: dict[str, list[Any]] = {key: [] for key in keys}
    about: dict[str, Any] = {
        "kind": "mixed",
        "lag_ps": options.lag,
        "burst_ps": options.burst,
        "settle_steps": integrator.getSettleSteps(),
        "settle_ps": integrator.getSettleTime()._value,
        "seed": options.seed,
        "stops_ps": [round(s * STEP_PS, 6) for s in stops],
    }
    name = f"mixed-lag{options.lag:g}-burst{options.burst:g}"
    name += "" if options.settle is None else f"-settle{options.settle}"
    name += "" if options.settle_time is None else f"-time{options.settle_time:g}"
    saved = time.monotonic()
    seconds, accepted = 0.0, False
    before = after = observe.torsions(context)
    for jump in range(options.jumps):
        done, rows = 0, []
        for stop in stops:
            began = time.perf_counter()
            integrator.step(stop - done)
            seconds += time.perf_counter() - began
            done = stop
            rows.append(observe(context))
        for key in keys[:3]:
            arrays[key].append([row[key] for row in rows])
        for key, value in zip(keys[3:], (accepted, before, after), strict=True):
            arrays[key].append(value)
        before = observe.torsions(context)
        tried = integrator.getNumJumps()
        began = time.perf_counter()
        integrator.makeDueJump()
        seconds += time.perf_counter() - began
        accepted = integrator.getNumJumps() > tried
        after = observe.torsions(context)
        if time.monotonic() - saved > SAVE_SECONDS or jump + 1 == options.jumps:
            about |= {"seconds": seconds, "statistics": integrator.getStatistics()}
            save(options.folder / f"{name}-{options.seed}.npz", arrays, about)
            saved = time.monotonic()


# -- report ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Runs of the same settings, one after the other."""

    name: str
    arrays: dict[str, NDArray[Any]]
    about: dict[str, Any]


def read_runs(folder: Path, kind: str) -> list[Sampled]:
    """Runs of a folder by their settings; `kind` is md or mixed."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(folder.glob(f"{kind}-*.npz")):
        groups.setdefault(file.stem.rsplit("-", 1)[0], []).append(file)
    found = []
    for name, members in sorted(groups.items()):
        loaded = [np.load(file, allow_pickle=False) for file in members]
        abouts = [json.loads(str(content["about"])) for content in loaded]
        keys = [key for key in loaded[0].files if key != "about"]
        arrays = {key: np.concatenate([content[key] for content in loaded]) for key in keys}
        found.append(Sampled(name, arrays, {"runs": abouts, **abouts[0]}))
    return found


def as_json(figures: dict[str, Measured]) -> dict[str, dict[str, float]]:
    """Figures as they are written."""
    return {name: {"value": value, "error": error} for name, (value, error) in figures.items()}


def of_moments(
    arrays: dict[str, NDArray[Any]], rows: NDArray[np.int64] | slice, *at: int
) -> dict[str, Measured]:
    """Energy, temperature and first shells at some moments of a run."""

    def chosen(key: str) -> NDArray[Any]:
        return arrays[key][rows][(slice(None), *at)]

    found = {key: jackknife_mean(chosen(key), BLOCKS) for key in ("energy", "temperature")}
    for k, (site, reach) in enumerate(SITES.items()):
        shell = chosen("counts")[..., k, : round(reach / BIN_NM)].sum(-1)
        found[site] = jackknife_mean(shell, BLOCKS)
    return found


def report(options: argparse.Namespace) -> None:
    """Print tables of all runs in the folder, and draw them.

    At some time after a jump the figures together agree with MD when the sum of their squared
    deviations, in standard errors, is below what chance stays below as often as within two sigma
    (95.4 %). The reference, a long series (T, 2) of radians, a frame each ps, is what populations
    and correlations are compared with.
    """
    md, runs = read_runs(options.folder, "md")[0], read_runs(options.folder, "mixed")
    plain = of_moments(md.arrays, slice(None))
    width = float(np.std(md.arrays["energy"]))
    series = None if options.reference is None else np.load(options.reference).astype(float)
    print(f"plain MD: {len(md.arrays['energy'])} looks, sd of the energy {width:.0f} kJ/mol")
    print("; ".join(f"{name} {with_error(*value)}" for name, value in plain.items()))
    result: dict[str, Any] = {"md": as_json(plain) | {"energy_sd": width}, "mixed": {}}
    for run in runs:
        result["mixed"][run.name] = about_run(run, plain, series)
    write_json(options.json, result)
    if options.figure:
        draw(result, options.figure)
    if options.rdf:
        draw_pair_distributions(options, md, runs)
    if options.map and series is not None:
        draw_maps(runs, series, options.map)


def schedules(options: argparse.Namespace) -> None:
    """Run what is missing of MD and of each settling+burst, ps, and print how each ends a burst.

    A schedule holds if the figures of the water together agree with MD at the end of the burst and
    jumps are not undone more often than MD undoes them. Runs that are there already are not made
    again, so that a stopped command goes on.
    """
    if not (options.folder / "box.pickle").exists():
        prepare(options)
    if not (options.folder / f"md-{options.seed}.npz").exists():
        run_md(options)
    wanted = []
    for text in options.schedules:
        options.settle_time, options.burst = map(float, text.split("+"))
        name = f"mixed-lag{options.lag:g}-burst{options.burst:g}-time{options.settle_time:g}"
        wanted.append(name)
        if not (options.folder / f"{name}-{options.seed}.npz").exists():
            run_mixed(options)
    md, runs = read_runs(options.folder, "md")[0], read_runs(options.folder, "mixed")
    plain, series = of_moments(md.arrays, slice(None)), np.load(options.reference).astype(float)
    entries = {run.name: about_run(run, plain, series) for run in runs if run.name in wanted}
    limit = float(chi2.ppf(TWO_SIGMA, len(plain)))
    print()
    print_head(
        ["settling + burst, ps", "jumps", *plain, f"together (of {limit:.1f})", "undone, MD"]
    )
    for name in wanted:
        about, undo = entries[name]["about"], entries[name]["undone"]["to another basin"]
        end = entries[name]["after_jump"]["all"][-1]
        cells = [with_error(end[key]["value"], end[key]["error"]) for key in plain]
        print_row(
            [
                f"{about['settle_ps']:g} + {about['burst_ps']:g}",
                about["jumps_tried"],
                *cells,
                f"{end['together']:.1f}",
                f"{with_error(undo['back'], undo['error'])}, {undo['md']:.3f}",
            ]
        )


def about_run(run: Sampled, plain: dict[str, Measured], series: Series | None) -> dict[str, Any]:
    """Print and return what is to be said of runs of the same settings."""
    data, about = run.arrays, run.about
    jumps = np.flatnonzero(data["accepted"])
    turned = np.abs(np.angle(np.exp(1j * (data["after"] - data["before"])))).max(1)
    flipped = turned[jumps] > np.deg2rad(FLIP_DEGREES)
    print(f"\n### {run.name}: {len(jumps)} jumps, {flipped.mean():.2f} flips\n")
    entry: dict[str, Any] = {"about": totals(about), "after_jump": {}}
    for kind, rows in (("all", jumps), ("flips", jumps[flipped])):
        if len(rows) >= 2 * BLOCKS:
            table, agrees = after_jumps(run, kind, rows, plain)
            entry["after_jump"] |= {kind: table, f"{kind}: agree from ps on": agrees}
    populations = conformations(data["before"], 1)
    if series is not None:
        tau = about["lag_ps"] + about["burst_ps"]
        stride = round(tau / SERIES_PS)
        there = conformations(series, stride) | timescales(series, stride, stride * SERIES_PS)
        populations |= timescales(data["before"], 1, tau)
        print()
        print_head(["", "MD", "mixed", "sigma"])
        for key in (key for key in populations if key in there):
            one, other = populations[key], there[key]
            cells = (with_error(*other), with_error(*one), f"{sigmas(one, other):+.1f}")
            print_row([key, *cells])
        entry["reference"] = as_json(there)
        lag, burst = (max(1, round(about[key] / SERIES_PS)) for key in ("lag_ps", "burst_ps"))
        entry["undone"] = undone(data, series, lag, burst)
    total = entry["about"]
    print(
        f"\naccepted {total['accepted_fraction']:.4f}, settling steps a jump "
        f"{total['settle_steps']:.2f}, energy after the jump {total['energy_before']:+.0f}, "
        f"settled {total['energy_after']:+.0f} kJ/mol"
    )
    entry["populations"] = as_json(populations)
    return entry


def after_jumps(
    run: Sampled, kind: str, rows: NDArray[np.int64], plain: dict[str, Measured]
) -> tuple[list[dict[str, Any]], float | None]:
    """Print and return deviations from MD by the time since the jump, and when they end."""
    limit = float(chi2.ppf(TWO_SIGMA, len(plain)))
    print_head([f"{kind}: ps after the jump", *plain, "together"])
    table: list[dict[str, Any]] = []
    agrees = None
    for k, stop in enumerate(run.about["stops_ps"]):
        found = of_moments(run.arrays, rows, k)
        away = {
            key: (value - plain[key][0], float(np.hypot(error, plain[key][1])))
            for key, (value, error) in found.items()
        }
        sigma = {key: value / error for key, (value, error) in away.items()}
        together = sum(z * z for z in sigma.values())
        agrees = None if together > limit else agrees or stop
        cells = [with_error(*value) for value in away.values()]
        print_row([f"{stop:g}", *cells, f"{together:.1f} of {limit:.1f}"])
        figures = {key: {**one, "sigma": sigma[key]} for key, one in as_json(away).items()}
        table.append({"ps": stop, "together": together} | figures)
    print("agree from " + ("no time" if agrees is None else f"{agrees:g} ps") + " on\n")
    return table, agrees


def conformations(run: Series, stride: int) -> dict[str, Measured]:
    """Populations, and how alike conformations are a step of a mixed run apart.

    The correlation of an indicator function at one lag says how fast it is forgotten; for a
    two-state process it is the exponential of minus the lag over the relaxation time.
    """
    result = {}
    for k, basin in enumerate((*BASIN_NAMES, "phi > 0")):
        inside = (run[:, 0] > 0) if basin == "phi > 0" else basins(*run.T) == k
        result[f"population of {basin}"] = jackknife_mean(inside, BLOCKS)
        mean = float(inside.mean())
        if basin in ("alphaR", "beta") and 0 < mean < 1:
            away = inside - mean
            pairs = away[:-stride] * away[stride:] / (mean * (1 - mean))
            result[f"correlation of {basin} one step on"] = jackknife_mean(pairs, BLOCKS)
    return result


def timescales(run: Series, stride: int, tau_ps: float) -> dict[str, Measured]:
    """Relaxation times between beta, PII, alphaR and phi > 0, as one step of `tau_ps` shows them.

    Estimated alike from MD and from mixed runs: counts between the four at that lag, symmetrised,
    and the eigenvalues of their transition matrix. Four conformations are coarse, so that the times
    are shorter than those that finer models give. Errors are half the middle 68 % of what blocks
    drawn with replacement give. Left out is a process whose eigenvalue is no larger than three
    times what chance leaves of none.
    """
    n = len(BASIN_NAMES) + 1
    states = np.minimum(basins(*run.T), n - 1)
    steps = n * states[:-stride] + states[stride:]
    counts = np.array(
        [np.bincount(part, minlength=n * n).reshape(n, n) for part in np.array_split(steps, BLOCKS)]
    )

    def times(total: NDArray[np.float64]) -> NDArray[np.float64]:
        both = total + total.T
        weights = both.sum(1)
        if not (weights > 0).all():
            return np.full(n - 1, np.nan)
        scale = np.sqrt(weights)
        values = np.sort(np.linalg.eigvalsh(both / np.outer(scale, scale)))[::-1]
        return -tau_ps / np.log(np.clip(values[1:], 1e-6, 1 - 1e-12))

    rng = np.random.default_rng(0)
    draws = [times(counts[rng.integers(0, BLOCKS, BLOCKS)].sum(0)) for _ in range(RESAMPLES)]
    best = times(counts.sum(0))
    if not np.isfinite(best).all():
        return {}
    low, high = np.nanpercentile(draws, [16, 84], axis=0)
    chance = 3.0 / np.sqrt(len(run) / stride)
    return {
        f"t{k + 2}, ps": (float(best[k]), float(high[k] - low[k]) / 2)
        for k in range(SHOWN_TIMES)
        if np.exp(-tau_ps / best[k]) > chance
    }


def undone(
    data: dict[str, NDArray[Any]], series: Series, lag: int, burst: int
) -> dict[str, dict[str, float]]:
    """Count jumps to another basin of phi < 0 that are back in the old one after the burst.

    Beside it how often MD, which has gone from the one basin to the other within a lag, is back a
    burst later (`lag` and `burst` in frames of the series).
    """
    # Row k holds the states before and after the jump that its burst follows.
    before, after = basins(*data["before"].T), basins(*data["after"].T)
    start, landed, end = before[1:-1], after[1:-1], before[2:]
    there = basins(*series.T)
    known = range(len(BASIN_NAMES))
    first, second, third = there[: -lag - burst], there[lag:-burst], there[lag + burst :]
    rates = np.array(
        [[float((third[(first == i) & (second == j)] == i).mean()) for j in known] for i in known]
    )
    moved = (start != landed) & (start < len(known)) & (landed < len(known))
    moved &= data["accepted"][1:-1]
    alpha = BASIN_NAMES.index("alphaR")
    result = {}
    for name, chosen in (
        ("to another basin", moved),
        ("from or to alphaR", moved & ((start == alpha) | (landed == alpha))),
    ):
        back, error = fraction((end == start)[chosen])
        count = int(chosen.sum())
        md = float(rates[start[chosen], landed[chosen]].mean())
        result[name] = {"jumps": count, "back": back, "error": error, "md": md}
        print(f"jumps {name}: {count}, back after the burst {back:.3f} ± {error:.3f}, MD {md:.3f}")
    return result


def totals(about: dict[str, Any]) -> dict[str, Any]:
    """Settings, and the integrators' counts of all runs together."""
    runs = [run["statistics"] for run in about["runs"]]

    def total(key: str) -> float:
        return sum(run[key] for run in runs)

    def each(key: str) -> dict[str, float]:
        return {name: sum(run[key][name] for run in runs) for name in runs[0][key]}

    accepted = total("jumps_accepted")

    def mean(key: str) -> float:
        return sum(run["settle"][key] * run["jumps_accepted"] for run in runs) / accepted

    return {
        **{key: about[key] for key in ("lag_ps", "burst_ps", "settle_ps")},
        "jumps_tried": total("jumps_tried"),
        "accepted_fraction": accepted / total("jumps_tried"),
        **{key: total(key) for key in ("redraws", "fallbacks", "novel")},
        "rejections": each("rejections"),
        "settle_steps": mean("steps"),
        "energy_before": mean("energy_before_kJ_per_mol"),
        "energy_after": mean("energy_after_kJ_per_mol"),
        "seconds": each("seconds"),
    }


# -- figures ---------------------------------------------------------------------------------------


def pair_distributions(
    counts: NDArray[np.int64], observe: Observer
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """g(r) and its standard error for each kind of site, from counts (looks, site, bin)."""
    bulk = len(observe.water) / observe.edge**3
    volumes = 4.0 / 3.0 * np.pi * np.diff(observe.bins**3)
    result = {}
    for k, (name, atoms) in enumerate(observe.sites.items()):
        parts = np.array([part.mean(0) for part in np.array_split(counts[:, k], BLOCKS)])
        scale = 1.0 / (len(atoms) * bulk * volumes)
        error = parts.std(0, ddof=1) / np.sqrt(BLOCKS)
        result[name] = (counts[:, k].mean(0) * scale, error * scale)
    return result


def draw_pair_distributions(options: argparse.Namespace, md: Sampled, runs: list[Sampled]) -> None:
    """Draw g(r) around each kind of site at three times after a jump, over that of plain MD."""
    observe = Observer(load_box(options.folder), list(range(22)))
    plain = pair_distributions(md.arrays["counts"], observe)
    figure = new_figure(11, 2.9 * len(runs) + 0.4, 110)
    axes = figure.subplots(len(runs), len(SITES), squeeze=False)
    radii = (np.arange(round(REACH_NM / BIN_NM)) + 0.5) * BIN_NM
    print("\ng(r): differences from MD in standard errors, root mean square over 0.01 nm bins")
    for row, run in zip(axes, runs, strict=True):
        jumps = np.flatnonzero(run.arrays["accepted"])
        stops = run.about["stops_ps"]
        for k in sorted({0, min(4, len(stops) - 1), len(stops) - 1}):
            found = pair_distributions(run.arrays["counts"][jumps, k], observe)
            said = []
            for axis, (site, (mine, error)) in zip(row, found.items(), strict=True):
                theirs, their_error = plain[site]
                axis.plot(radii, mine, linewidth=1, label=f"{stops[k]:g} ps after a jump")
                both = np.hypot(error, their_error)
                seen = (both > 0) & (theirs > 0.02)
                rms = np.sqrt(np.mean(((mine - theirs)[seen] / both[seen]) ** 2))
                said.append(f"{site} {rms:.2f}")
            print(f"{run.name}, {stops[k]:g} ps: " + ", ".join(said))
        for axis, (site, (theirs, _)) in zip(row, plain.items(), strict=True):
            axis.plot(radii, theirs, "k--", linewidth=0.9, label="plain MD")
            lag, burst, held = (run.about[key] for key in ("lag_ps", "burst_ps", "settle_ps"))
            title = f"{site}: lag {lag:g}, settling {held:g}, burst {burst:g} ps"
            axis.set(xlabel="distance to water oxygen, nm", ylabel="g(r)", xlim=(0.15, REACH_NM))
            axis.set_title(title, fontsize=9)
        row[0].legend(fontsize=7)
    figure.savefig(options.rdf)


def draw_maps(runs: list[Sampled], series: Series, file: Path) -> None:
    """Draw phi and psi at the end of the bursts of each run over the reference's density."""
    figure = new_figure(4.6 * len(runs), 4.4, 110)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    edges = np.linspace(-180.0, 180.0, MAP_BINS + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    density = np.histogram2d(*np.rad2deg(series.T), bins=edges, density=True)[0]
    # Lines of 1, 2, ... kT above the most visited cell.
    levels = float(density.max()) * np.exp(-np.arange(6.0, 0.0, -1.0))
    for axis, run in zip(axes, runs, strict=True):
        axis.contour(middle, middle, density.T, levels, colors="0.5", linewidths=0.7)
        phi, psi = np.rad2deg(run.arrays["before"]).T
        axis.plot(phi, psi, ".", markersize=2.5)
        lag, burst = run.about["lag_ps"], run.about["burst_ps"]
        axis.set_title(f"{len(phi)} bursts of {burst:g} ps, lag {lag:g} ps")
        axis.set(xlabel="phi, degrees", ylabel="psi, degrees", aspect="equal")
        axis.set(xlim=(-180, 180), ylim=(-180, 180))
    figure.savefig(file)


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what differs from MD against the time since the jump."""
    columns = ("energy", "temperature", *SITES)
    titles = {
        "energy": "potential energy above MD's, kJ/mol",
        "temperature": "temperature above MD's, K",
    }
    titles |= {
        site: f"waters around {site}, MD {result['md'][site]['value']:.1f}" for site in SITES
    }
    figure = new_figure(11, 6.4, 130)
    axes = figure.subplots(2, 3).ravel()
    for axis, column in zip(axes, columns, strict=False):
        for entry in result["mixed"].values():
            table = entry["after_jump"].get("all")
            if not table:
                continue
            rows = [(row["ps"], row[column]["value"], row[column]["error"]) for row in table]
            x, y, e = np.array(rows).T
            lag, held, burst = (entry["about"][k] for k in ("lag_ps", "settle_ps", "burst_ps"))
            label = f"lag {lag:g} ps, settling {held:g} ps, burst {burst:g} ps"
            axis.errorbar(x, y, 2 * e, marker="o", markersize=3, linewidth=1, label=label)
        axis.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
        axis.set(xscale="log", xlabel="ps after the jump", title=titles[column])
    axes[-1].axis("off")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center")
    figure.savefig(file)


FOLDER = option("folder", type=Path)
COMMANDS = {
    "prepare": Command(prepare, [FOLDER]),
    "md": Command(run_md, [FOLDER, option("--ps", type=float, default=4000.0), SEED, PLATFORM]),
    "mixed": Command(
        run_mixed,
        [
            FOLDER,
            option("--lag", type=float, default=100.0),
            option("--burst", type=float, default=1.0),
            option("--jumps", type=int, default=1000),
            option("--settle", type=int, help="settling steps"),
            option("--settle-time", type=float, help="ps"),
            SEED,
            PLATFORM,
        ],
    ),
    "schedules": Command(
        schedules,
        [
            FOLDER,
            option("schedules", nargs="+", metavar="SETTLING+BURST", help="ps, as in 0.5+0.7"),
            option("--lag", type=float, default=500.0),
            option("--jumps", type=int, default=1000, help="of each schedule"),
            option("--ps", type=float, default=1000.0, help="of plain MD"),
            option("--settle", type=int, help="settling steps"),
            option("--reference", type=Path, required=True, help=".npy of phi and psi"),
            SEED,
            PLATFORM,
        ],
    ),
    "report": Command(
        report,
        [
            FOLDER,
            option("--reference", type=Path, help=".npy of phi and psi"),
            option("--figure", type=Path, metavar="FILE", help="deviations after a jump"),
            option("--rdf", type=Path, metavar="FILE", help="figure of the pair distributions"),
            option("--map", type=Path, metavar="FILE", help="phi and psi; needs --reference"),
            JSON,
        ],
    ),
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS))
