"""What jumps do to the water around them: a mixed run against MD of the same box.

    python benchmarks/mixed_bias.py prepare FOLDER
    python benchmarks/mixed_bias.py md FOLDER --ps 4000 --seed 1
    python benchmarks/mixed_bias.py mixed FOLDER --lag 100 --burst 1 --jumps 2000 --seed 1
    python benchmarks/mixed_bias.py report FOLDER [--reference phi-psi.npy] [--json FILE]
        [--figure FILE] [--rdf FILE] [--map FILE]

`prepare` makes a box of ACE-ALA-NME in water. `md` and `mixed` sample it and can be repeated with
other settings and seeds; each run that is stopped keeps what it has. At fixed times after every
jump a run notes potential energy, temperature and how the water stands around the solute: pair
distributions of the water's oxygens around the carbonyl oxygens, the amide hydrogens and the
methyl carbons, and how many of them are in the first shell. Errors are standard errors over blocks
of the run. At some time after a jump the figures together agree with MD when the sum of their
squared deviations, in standard errors, is below what chance stays below as often as within two
sigma (95.4 %). Speeds are not compared here: runs that are not made in turn see different
machines; ``openmm-sd demo`` does it. ``phi-psi.npy`` is a long series (T, 2) of radians, a frame
each ps, to compare populations and correlations with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from scipy.stats import chi2

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis import basins, dihedral
from openmm_sd.analysis.geometry import jackknife_mean
from openmm_sd.integrator.integrator import BOLTZMANN
from openmm_sd.integrator.reporter import degrees_of_freedom
from openmm_sd.prepare import equilibrate, solvate

MODEL = "ala2-water"
WATERS = 400
STEP_PS = 0.004
HYDROGEN_MASS_AMU = 3.0
EQUILIBRATION_PS = 100.0
# Times after a jump, ps, as far as the burst reaches.
TIMES_PS = (0.02, 0.04, 0.08, 0.12, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
# Plain MD is looked at this often, ps.
MD_EVERY_PS = 0.5
# Atoms of the solute in the order of the model's molecule, and the first minimum of each pair
# distribution in plain MD, nm.
SITES = {
    "C=O": ("O", 0.35),
    "N-H": ("HN", 0.25),
    "CH3": ("CH3", 0.54),
}
BIN_NM = 0.01
REACH_NM = 0.9
BLOCKS = 20
RESAMPLES = 200
MAP_BINS = 72
# How many relaxation times between conformations to show, the slowest first.
SHOWN_TIMES = 2
BASIN_NAMES = ("beta", "PII", "alphaR")
# Time between two frames of the reference series.
SERIES_PS = 1.0
# How often a normal variable lies within two standard deviations.
TWO_SIGMA = 0.9545
# A torsion that turned further than this in a jump, degrees, has flipped.
FLIP_DEGREES = 60.0
SAVE_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "md", "mixed", "report"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        if name in ("md", "mixed"):
            command.add_argument("--seed", type=int, default=1)
            command.add_argument("--platform", default="CPU")
        if name == "md":
            command.add_argument("--ps", type=float, default=4000.0)
        if name == "mixed":
            command.add_argument("--lag", type=float, default=100.0)
            command.add_argument("--burst", type=float, default=1.0)
            command.add_argument("--jumps", type=int, default=1000)
            command.add_argument("--settle", type=int, default=None, help="settling steps")
            command.add_argument("--settle-time", type=float, default=None, help="ps")
        if name == "report":
            command.add_argument("--reference", type=Path)
            command.add_argument("--json", type=Path)
            command.add_argument("--figure", type=Path)
            command.add_argument("--rdf", type=Path, help="figure of the pair distributions")
            command.add_argument(
                "--map", type=Path, help="figure of phi and psi; needs --reference"
            )
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"prepare": prepare, "md": run_md, "mixed": run_mixed, "report": report}[options.command](
        options
    )


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
    with open(options.folder / "box.pickle", "wb") as file:
        pickle.dump(box, file)


class Observer:
    """What is noted of a box at one moment."""

    def __init__(self, box: Any, solute: list[int]) -> None:
        topology = box.topology
        atoms = list(topology.atoms())
        self.edge = float(box.box_vectors[0, 0])
        self.solute = solute
        chosen = set(solute)
        self.water = np.array(
            [a.index for a in atoms if a.element.symbol == "O" and a.index not in chosen]
        )
        neighbours: dict[int, list[Any]] = {i: [] for i in solute}
        for a, b in topology.bonds():
            if a.index in chosen:
                neighbours[a.index].append(b)
                neighbours[b.index].append(a)
        kinds: dict[str, list[int]] = {"O": [], "HN": [], "CH3": []}
        for i in solute:
            symbol = atoms[i].element.symbol
            hydrogens = sum(n.element.symbol == "H" for n in neighbours[i])
            if symbol == "O":
                kinds["O"].append(i)
            elif symbol == "H" and neighbours[i][0].element.symbol == "N":
                kinds["HN"].append(i)
            elif symbol == "C" and hydrogens == 3:
                kinds["CH3"].append(i)
        self.sites = {name: np.array(kinds[kind]) for name, (kind, _) in SITES.items()}
        self.dof = degrees_of_freedom(box.system)
        self.bins = np.arange(0.0, REACH_NM + BIN_NM / 2, BIN_NM)

    def __call__(self, context: openmm.Context) -> tuple[float, float, NDArray[np.int64]]:
        """Potential energy (kJ/mol), temperature (K), and counts (site, bin)."""
        groups = context.getIntegrator().getIntegrationForceGroups()
        state = context.getState(positions=True, energy=True, groups=groups)
        kinetic = state.getKineticEnergy()._value
        x = np.asarray(state.getPositions(asNumpy=True)._value)
        water = x[self.water]
        counts = []
        for atoms in self.sites.values():
            d = water[None] - x[atoms][:, None]
            d -= self.edge * np.round(d / self.edge)
            r = np.sqrt((d * d).sum(-1)).ravel()
            counts.append(np.histogram(r, self.bins)[0])
        temperature = 2.0 * kinetic / (self.dof * BOLTZMANN)
        return state.getPotentialEnergy()._value, temperature, np.array(counts)

    def torsions(self, context: openmm.Context) -> tuple[float, float]:
        x = np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value)
        x = x[self.solute]
        first = x[0]
        d = x - first
        x = first + d - self.edge * np.round(d / self.edge)  # the molecule is small
        return float(dihedral(x, (4, 6, 8, 14))), float(dihedral(x, (6, 8, 14, 16)))


def _context(box: Any, system: openmm.System, integrator: Any, options: Any) -> openmm.Context:
    properties = {"Threads": "1"} if options.platform == "CPU" else {}
    platform = openmm.Platform.getPlatformByName(options.platform)
    context = openmm.Context(system, integrator, platform, properties)
    context.setPeriodicBoxVectors(*box.box_vectors)
    context.setPositions(box.positions)
    context.setVelocitiesToTemperature(300.0, options.seed)
    return context


def _load(folder: Path) -> Any:
    with open(folder / "box.pickle", "rb") as file:
        return pickle.load(file)


def _save(file: Path, arrays: dict[str, Any], about: dict[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}")
    with open(temporary, "wb") as stream:
        np.savez_compressed(
            stream, about=json.dumps(about), **{k: np.array(v) for k, v in arrays.items()}
        )
    os.replace(temporary, file)


def run_md(options: argparse.Namespace) -> None:
    """Plain MD of the box."""
    box = _load(options.folder)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, STEP_PS)
    integrator.setRandomNumberSeed(options.seed)
    system = openmm.XmlSerializer.clone(box.system)
    context = _context(box, system, integrator, options)
    observe = Observer(box, list(range(22)))
    integrator.step(round(20.0 / STEP_PS))
    every = round(MD_EVERY_PS / STEP_PS)
    arrays: dict[str, list[Any]] = {
        k: [] for k in ("energy", "temperature", "counts", "phi", "psi")
    }
    about = {"kind": "md", "seed": options.seed, "seconds": 0.0, "md_ps": 0.0}
    saved = time.monotonic()
    while about["md_ps"] < options.ps:
        began = time.perf_counter()
        integrator.step(every)
        about["seconds"] += time.perf_counter() - began
        about["md_ps"] += every * STEP_PS
        energy, temperature, counts = observe(context)
        phi, psi = observe.torsions(context)
        for key, value in zip(arrays, (energy, temperature, counts, phi, psi), strict=True):
            arrays[key].append(value)
        if time.monotonic() - saved > SAVE_SECONDS or about["md_ps"] >= options.ps:
            _save(options.folder / f"md-{options.seed}.npz", arrays, about)
            saved = time.monotonic()


def run_mixed(options: argparse.Namespace) -> None:
    """A mixed run of the box, looked at after every jump."""
    box = _load(options.folder)
    model = ScoreModel.load(MODEL)
    settings: dict[str, Any] = {}
    if options.settle is not None:
        settings["settleSteps"] = options.settle
    if options.settle_time is not None:
        settings["settleTime"] = options.settle_time
    integrator = ScoreDynamicsIntegrator(
        model,
        300.0,
        1.0,
        STEP_PS,
        burst=options.burst,
        lag=options.lag,
        seed=options.seed,
        **settings,
    )
    system = openmm.XmlSerializer.clone(box.system)
    solute = list(integrator.attach(system, box.topology, platform=options.platform).particles)
    context = _context(box, system, integrator, options)
    observe = Observer(box, solute)
    integrator.setJumping(False)
    integrator.step(round(20.0 / STEP_PS))
    integrator.setJumping(True)
    burst = round(options.burst / STEP_PS)
    stops = sorted(
        {min(round(t / STEP_PS), burst) for t in TIMES_PS if t < options.burst} | {burst}
    )
    keys = ("energy", "temperature", "counts", "accepted", "before", "after")
    arrays: dict[str, list[Any]] = {k: [] for k in keys}
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
    name += f"-{options.seed}.npz"
    saved = time.monotonic()
    seconds = 0.0
    accepted = False
    before = after = observe.torsions(context)
    for jump in range(options.jumps):
        done = 0
        rows = []
        for stop in stops:
            # The burst's last step belongs to the jump, so what comes before it is looked at.
            steps = stop - done - (stop == burst)
            if steps > 0:
                began = time.perf_counter()
                integrator.step(steps)
                seconds += time.perf_counter() - began
                done += steps
            rows.append(observe(context))
        for k, key in enumerate(("energy", "temperature", "counts")):
            arrays[key].append([row[k] for row in rows])
        arrays["accepted"].append(accepted)
        arrays["before"].append(before)
        arrays["after"].append(after)
        before = observe.torsions(context)
        tried = integrator.getNumJumps()
        began = time.perf_counter()
        integrator.step(burst - done)
        seconds += time.perf_counter() - began
        accepted = integrator.getNumJumps() > tried
        after = observe.torsions(context)
        if time.monotonic() - saved > SAVE_SECONDS or jump + 1 == options.jumps:
            about |= {"seconds": seconds, "statistics": integrator.getStatistics()}
            _save(options.folder / name, arrays, about)
            saved = time.monotonic()


# -- report ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Measured:
    """A figure with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        digits = max(0, 1 - int(np.floor(np.log10(self.error)))) if self.error > 0 else 2
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"

    def minus(self, other: Measured) -> Measured:
        return Measured(self.value - other.value, float(np.hypot(self.error, other.error)))


def blocked(values: NDArray[Any], blocks: int = BLOCKS) -> Measured:
    """Mean with the standard error over blocks along the first axis."""
    return Measured(*jackknife_mean(values, blocks))


def shells(counts: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Number of water oxygens in the first shell of each kind of site, (..., bins) -> (...)."""
    result = {}
    for k, (name, (_, reach)) in enumerate(SITES.items()):
        result[name] = counts[..., k, : round(reach / BIN_NM)].sum(-1)
    return result


def _merged(files: list[Path]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Runs of the same settings, one after the other."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(file.stem.rsplit("-", 1)[0], []).append(file)
    for name, members in sorted(groups.items()):
        loaded = [np.load(file, allow_pickle=False) for file in members]
        abouts = [json.loads(str(content["about"])) for content in loaded]
        keys = [key for key in loaded[0].files if key != "about"]
        yield (
            name,
            {key: np.concatenate([content[key] for content in loaded]) for key in keys},
            {"runs": abouts, **abouts[0]},
        )


def report(options: argparse.Namespace) -> None:
    """Print tables of all runs in the folder."""
    _, md, about = next(_merged(sorted(options.folder.glob("md-*.npz"))))
    reference = {
        "energy": blocked(md["energy"]),
        "temperature": blocked(md["temperature"]),
        **{name: blocked(values) for name, values in shells(md["counts"]).items()},
    }
    width = float(np.std(md["energy"]))
    columns = list(reference)
    series = None if options.reference is None else np.load(options.reference).astype(float)
    limit = float(chi2.ppf(TWO_SIGMA, len(columns)))
    print(f"plain MD: {len(md['energy'])} looks, sd of the energy {width:.0f} kJ/mol")
    print("; ".join(f"{name} {value}" for name, value in reference.items()))
    result: dict[str, Any] = {
        "md": {name: dataclasses.asdict(value) for name, value in reference.items()}
        | {"energy_sd": width},
        "mixed": {},
    }
    for name, data, about in _merged(sorted(options.folder.glob("mixed-*.npz"))):
        after_jump = np.flatnonzero(data["accepted"])
        turned = np.abs(np.angle(np.exp(1j * (data["after"] - data["before"])))).max(1)
        flipped = turned > np.deg2rad(FLIP_DEGREES)
        print(f"\n### {name}: {len(after_jump)} jumps, {flipped[after_jump].mean():.2f} flips\n")
        entry: dict[str, Any] = {"about": _totals(about), "after_jump": {}}
        for kind, rows in (
            ("all", after_jump),
            ("flips", after_jump[flipped[after_jump]]),
        ):
            if len(rows) < 2 * BLOCKS:
                continue
            print(f"| {kind}: ps after the jump | " + " | ".join(columns) + " | together |")
            print("|---" * (len(columns) + 2) + "|")
            table = []
            agrees = None
            for k, stop in enumerate(about["stops_ps"]):
                found = {
                    "energy": blocked(data["energy"][rows, k]),
                    "temperature": blocked(data["temperature"][rows, k]),
                    **{s: blocked(v) for s, v in shells(data["counts"][rows, k]).items()},
                }
                away = {key: found[key].minus(reference[key]) for key in columns}
                sigma = {key: away[key].value / away[key].error for key in columns}
                together = sum(z * z for z in sigma.values())
                agrees = None if together > limit else agrees or stop
                print(
                    f"| {stop:g} | "
                    + " | ".join(str(away[key]) for key in columns)
                    + f" | {together:.1f} of {limit:.1f} |"
                )
                table.append(
                    {"ps": stop, "together": together}
                    | {
                        key: {**dataclasses.asdict(away[key]), "sigma": sigma[key]}
                        for key in columns
                    }
                )
            print("agree from " + ("no time" if agrees is None else f"{agrees:g} ps") + " on\n")
            entry["after_jump"][kind] = table
            entry["after_jump"][f"{kind}: agree from ps on"] = agrees
        totals = entry["about"]
        populations = conformations([data["before"]], 1)
        if series is not None:
            stride = round((about["lag_ps"] + about["burst_ps"]) / SERIES_PS)
            there = conformations([series], stride)
            tau = about["lag_ps"] + about["burst_ps"]
            there |= timescales(series, stride, stride * SERIES_PS)
            populations |= timescales(data["before"], 1, tau)
            print("\n| | MD | mixed | sigma |\n|---|---|---|---|")
            for key, value in populations.items():
                if key not in there:
                    continue
                z = value.minus(there[key])
                print(f"| {key} | {there[key]} | {value} | {z.value / z.error:+.1f} |")
            entry["reference"] = {k: dataclasses.asdict(v) for k, v in there.items()}
            lag, burst = (max(1, round(about[key] / SERIES_PS)) for key in ("lag_ps", "burst_ps"))
            entry["undone"] = undone(data, series, lag, burst)
        print(
            f"\naccepted {totals['accepted_fraction']:.4f}, settling steps a jump "
            f"{totals['settle_steps']:.2f}, energy after the jump {totals['energy_before']:+.0f}, "
            f"settled {totals['energy_after']:+.0f} kJ/mol"
        )
        entry["populations"] = {k: dataclasses.asdict(v) for k, v in populations.items()}
        result["mixed"][name] = entry
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.figure:
        draw(result, options.figure)
    if options.rdf:
        draw_pair_distributions(options)
    if options.map:
        draw_maps(options, series)


def conformations(runs: list[NDArray[np.float64]], stride: int) -> dict[str, Measured]:
    """Populations, and how alike conformations are a step of a mixed run apart.

    The correlation of an indicator function at one lag says how fast it is forgotten; for a
    two-state process it is the exponential of minus the lag over the relaxation time.
    """
    result = {}
    for k, basin in enumerate((*BASIN_NAMES, "phi > 0")):
        inside = [(run[:, 0] > 0) if basin == "phi > 0" else basins(*run.T) == k for run in runs]
        result[f"population of {basin}"] = blocked(np.concatenate(inside))
        mean = float(np.concatenate(inside).mean())
        if basin in ("alphaR", "beta") and 0 < mean < 1:
            away = [x - mean for x in inside]
            pairs = np.concatenate([x[:-stride] * x[stride:] for x in away])
            result[f"correlation of {basin} one step on"] = blocked(pairs / (mean * (1 - mean)))
    return result


def timescales(run: NDArray[np.float64], stride: int, tau_ps: float) -> dict[str, Measured]:
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
        f"t{k + 2}, ps": Measured(float(best[k]), float(high[k] - low[k]) / 2)
        for k in range(SHOWN_TIMES)
        if np.exp(-tau_ps / best[k]) > chance
    }


def undone(
    data: dict[str, Any], series: NDArray[np.float64], lag: int, burst: int
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
        back = float((end == start)[chosen].mean())
        count = int(chosen.sum())
        error = float(np.sqrt(max(back * (1 - back), 1.0 / count) / count))
        md = float(rates[start[chosen], landed[chosen]].mean())
        result[name] = {"jumps": count, "back": back, "error": error, "md": md}
        print(f"jumps {name}: {count}, back after the burst {back:.3f} ± {error:.3f}, MD {md:.3f}")
    return result


def _totals(about: dict[str, Any]) -> dict[str, Any]:
    runs = [run["statistics"] for run in about["runs"]]

    def total(key: str) -> float:
        return sum(run[key] for run in runs)

    accepted = total("jumps_accepted")

    def mean(key: str) -> float:
        parts = [run["settle"][key] * run["jumps_accepted"] for run in runs]
        return sum(parts) / accepted

    return {
        "lag_ps": about["lag_ps"],
        "burst_ps": about["burst_ps"],
        "settle_ps": about["settle_ps"],
        "jumps_tried": total("jumps_tried"),
        "accepted_fraction": accepted / total("jumps_tried"),
        "redraws": total("redraws"),
        "fallbacks": total("fallbacks"),
        "novel": total("novel"),
        "rejections": {
            key: sum(run["rejections"][key] for run in runs) for key in runs[0]["rejections"]
        },
        "settle_steps": mean("steps"),
        "energy_before": mean("energy_before_kJ_per_mol"),
        "energy_after": mean("energy_after_kJ_per_mol"),
        "seconds": {key: sum(run["seconds"][key] for run in runs) for key in runs[0]["seconds"]},
    }


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
        result[name] = (
            counts[:, k].mean(0) * scale,
            parts.std(0, ddof=1) / np.sqrt(BLOCKS) * scale,
        )
    return result


def draw_pair_distributions(options: argparse.Namespace) -> None:
    """Draw g(r) around each kind of site at three times after a jump, over that of plain MD."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _, md, _ = next(_merged(sorted(options.folder.glob("md-*.npz"))))
    observe = Observer(_load(options.folder), list(range(22)))
    plain = pair_distributions(md["counts"], observe)
    runs = list(_merged(sorted(options.folder.glob("mixed-*.npz"))))
    figure = Figure(figsize=(11, 2.9 * len(runs) + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(runs), len(SITES), squeeze=False)
    radii = (np.arange(round(REACH_NM / BIN_NM)) + 0.5) * BIN_NM
    print("\ng(r): differences from MD in standard errors, root mean square over 0.01 nm bins")
    for row, (name, data, about) in zip(axes, runs, strict=True):
        after_jump = np.flatnonzero(data["accepted"])
        stops = about["stops_ps"]
        for k in sorted({0, min(4, len(stops) - 1), len(stops) - 1}):
            found = pair_distributions(data["counts"][after_jump, k], observe)
            said = []
            for axis, (site, (mine, error)) in zip(row, found.items(), strict=True):
                theirs, their_error = plain[site]
                axis.plot(radii, mine, linewidth=1, label=f"{stops[k]:g} ps after a jump")
                both = np.hypot(error, their_error)
                seen = (both > 0) & (theirs > 0.02)
                rms = np.sqrt(np.mean(((mine - theirs)[seen] / both[seen]) ** 2))
                said.append(f"{site} {rms:.2f}")
            print(f"{name}, {stops[k]:g} ps: " + ", ".join(said))
        for axis, (site, (theirs, _)) in zip(row, plain.items(), strict=True):
            axis.plot(radii, theirs, "k--", linewidth=0.9, label="plain MD")
            lag, burst, held = (about[key] for key in ("lag_ps", "burst_ps", "settle_ps"))
            axis.set(
                title=f"{site}: lag {lag:g}, settling {held:g}, burst {burst:g} ps",
                xlabel="distance to water oxygen, nm",
                ylabel="g(r)",
                xlim=(0.15, REACH_NM),
            )
            axis.title.set_fontsize(9)
        row[0].legend(fontsize=7)
    figure.savefig(options.rdf)


def draw_maps(options: argparse.Namespace, series: NDArray[np.float64]) -> None:
    """Draw phi and psi at the end of the bursts of each run over the reference's density."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = list(_merged(sorted(options.folder.glob("mixed-*.npz"))))
    figure = Figure(figsize=(4.6 * len(runs), 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    edges = np.linspace(-180.0, 180.0, MAP_BINS + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    density = np.histogram2d(*np.rad2deg(series.T), bins=edges, density=True)[0]
    # Lines of 1, 2, ... kT above the most visited cell.
    levels = float(density.max()) * np.exp(-np.arange(6.0, 0.0, -1.0))
    for axis, (_, data, about) in zip(axes, runs, strict=True):
        axis.contour(middle, middle, density.T, levels, colors="0.5", linewidths=0.7)
        phi, psi = np.rad2deg(data["before"]).T
        axis.plot(phi, psi, ".", markersize=2.5)
        lag, burst = about["lag_ps"], about["burst_ps"]
        axis.set(
            title=f"{len(phi)} bursts of {burst:g} ps, lag {lag:g} ps",
            xlabel="phi, degrees",
            ylabel="psi, degrees",
            xlim=(-180, 180),
            ylim=(-180, 180),
            aspect="equal",
        )
    figure.savefig(options.map)


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what differs from MD against the time since the jump."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = ("energy", "temperature", *SITES)
    titles = {
        "energy": "potential energy above MD's, kJ/mol",
        "temperature": "temperature above MD's, K",
    }
    titles |= {
        site: f"waters around {site}, MD {result['md'][site]['value']:.1f}" for site in SITES
    }
    figure = Figure(figsize=(11, 6.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    for axis, column in zip(axes, columns, strict=False):
        for entry in result["mixed"].values():
            table = entry["after_jump"].get("all")
            if not table:
                continue
            x = np.array([row["ps"] for row in table])
            y = np.array([row[column]["value"] for row in table])
            e = np.array([row[column]["error"] for row in table])
            about = entry["about"]
            label = (
                f"lag {about['lag_ps']:g} ps, settling {about['settle_ps']:g} ps, "
                f"burst {about['burst_ps']:g} ps"
            )
            axis.errorbar(x, y, 2 * e, marker="o", markersize=3, linewidth=1, label=label)
        axis.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
        axis.set(xscale="log", xlabel="ps after the jump", title=titles.get(column, column))
    axes[-1].axis("off")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center")
    figure.savefig(file)


if __name__ == "__main__":
    main()
