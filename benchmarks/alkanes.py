"""Chains of jumps of linear alkanes against MD: torsions, rates, distances, bonds and angles.

    python benchmarks/alkanes.py MODEL butane=butane.h5 pentane=pentane.h5 --lag 10

For each molecule of the family MODEL and its data set, which must hold plain runs: chains of jumps
are made and measured in the same way as the runs. A torsion C-C-C-C is trans where it is beyond 120
degrees on either side, else gauche of its sign. Torsions that the symmetry of the chain makes alike
are measured together.

* JSD of the torsions' distributions, base 2, 72 bins, mean over kinds of torsions; beside it that
  of two halves of the MD, which an exact model would not beat.
* population of gauche, and by how much gauche+ and gauche- differ;
* rates of exchange by one lag; also from MD at other lags.
* the share of neighbouring pairs gauche+ gauche-, which are near each other in pentane, relative to
  what independent torsions would have;
* distance from the first carbon to the last; bonds between carbons; angles.

Errors are standard errors over 20 groups of runs or chains, or blocks of them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shared import (
    JSON,
    SEED,
    Command,
    new_figure,
    option,
    plain_runs,
    print_head,
    print_row,
    run_command,
    sigmas,
    with_error,
    write_json,
)

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.analysis.equilibrium import jensen_shannon
from openmm_sd.analysis.geometry import angles as bond_angles, distances
from openmm_sd.data.dataset import read_dataset
from openmm_sd.rollout.rollout import Rollout
from openmm_sd.rollout.settings import RolloutSettings

BINS = 72
TRANS_BEYOND = np.deg2rad(120.0)
GROUPS = 20
RESAMPLES = 200
#: Lags at which MD's own rates are looked at, ps.
LAGS_PS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
#: The first part of every chain is not looked at.
DISCARD = 0.1
TRANS, PLUS, MINUS = 0, 1, 2
#: Sums or histograms of a group of frames, by name.
Sums = dict[str, NDArray[np.float64]]
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Chain:
    """What is measured of a chain molecule.

    Attributes
    ----------
    carbons : list of int
        From one end to the other.
    torsions : list of list of tuple
        C-C-C-C, those that symmetry makes alike together.
    bonds : ndarray
        (M, 2) between carbons.
    angles : dict
        Kind to (M, 3) atoms.
    """

    carbons: list[int]
    torsions: list[list[tuple[int, ...]]]
    bonds: NDArray[np.int64]
    angles: dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, molecule: Molecule) -> Chain:
        """Find them by bonds and elements."""
        graph, z = molecule.graph(), molecule.atomic_numbers
        carbon = [k for k in graph if z[k] == 6]
        beside = {k: sorted(j for j in graph[k] if z[j] == 6) for k in carbon}
        ends = sorted(k for k in carbon if len(beside[k]) == 1)
        if len(ends) != 2 or any(len(row) > 2 for row in beside.values()):
            raise ValueError(f"{molecule.name} is no unbranched chain of carbons")
        row = [ends[0]]
        while len(row) < len(carbon):
            row.append(next(k for k in beside[row[-1]] if k not in row))
        every = [tuple(row[k : k + 4]) for k in range(len(row) - 3)]
        alike = [
            [every[k], every[-1 - k]] if k != len(every) - 1 - k else [every[k]]
            for k in range((len(every) + 1) // 2)
        ]
        kinds: dict[str, list[tuple[int, int, int]]] = {"C-C-C": [], "C-C-H": [], "H-C-H": []}
        for middle in carbon:
            for i, j in itertools.combinations(sorted(graph[middle]), 2):
                kind = "-C-".join(sorted("H" if z[k] == 1 else "C" for k in (i, j)))
                kinds[kind].append((i, middle, j))
        return cls(
            row,
            alike,
            np.array(list(itertools.pairwise(row))),
            {kind: np.array(rows) for kind, rows in kinds.items() if rows},
        )


# -- figures of frames -----------------------------------------------------------------------------


def blocks_of(runs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Cut runs into about GROUPS blocks of equal length, each (1, frames, atoms, 3)."""
    total = sum(len(run) for run in runs)
    blocks = []
    for run in runs:
        blocks += np.array_split(run, max(1, round(GROUPS * len(run) / total)))
    return [block[None] for block in blocks]


def states(x: NDArray[Any], torsion: tuple[int, ...]) -> NDArray[np.int64]:
    """Trans, gauche+ or gauche- of frames (..., N, 3)."""
    phi = dihedral(x.reshape(-1, *x.shape[-2:]), torsion).reshape(x.shape[:-2])
    return np.where(np.abs(phi) > TRANS_BEYOND, TRANS, np.where(phi > 0, PLUS, MINUS))


def histograms(groups: list[NDArray[Any]], chain: Chain) -> NDArray[np.float64]:
    """Histograms of torsions, (kinds, groups, bins), both signs counted together."""
    counts = np.zeros((len(chain.torsions), len(groups), BINS))
    for g, x in enumerate(groups):
        flat = x.reshape(-1, *x.shape[-2:])
        for k, alike in enumerate(chain.torsions):
            for torsion in alike:
                phi = dihedral(flat, torsion)
                counts[k, g] += np.histogram(phi, BINS, (-np.pi, np.pi))[0]
    return counts


def density(counts: NDArray[np.float64]) -> list[list[float]]:
    """Of histograms (kinds, groups, bins), all groups together, per degree."""
    total = counts.sum(1)
    return (total / total.sum(-1, keepdims=True) / (360.0 / BINS)).tolist()


def jsd(one: NDArray[np.float64], two: NDArray[np.float64]) -> dict[str, float]:
    """JSD of histograms (kinds, groups, bins), mean over kinds, with the error of both samples."""

    def of(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.mean(jensen_shannon(a.sum(1), b.sum(1))))

    rng = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        rows = [rng.integers(0, h.shape[1], h.shape[1]) for h in (one, two)]
        draws.append(of(one[:, rows[0]], two[:, rows[1]]))
    return {"value": of(one, two), "error": float(np.std(draws))}


def measured(groups: list[NDArray[Any]], chain: Chain, stride: int, lag: float) -> Figures:
    """Return each figure with its error; groups are (chains, frames, atoms, 3).

    Rates of exchange come from the probabilities p of trans to gauche and q of gauche to trans in
    one lag: k = -ln(1 - p - q) / lag, shared out by the populations.
    """
    parts = [sums(x, chain, stride) for x in groups]
    stacked = {name: np.array([part[name] for part in parts]) for name in parts[0]}

    def figures(rows: NDArray[np.int64]) -> dict[str, float]:
        return figures_of({name: values[rows].sum(0) for name, values in stacked.items()}, lag)

    best = figures(np.arange(len(parts)))
    rng = np.random.default_rng(0)
    draws = [figures(rng.integers(0, len(parts), len(parts))) for _ in range(RESAMPLES)]
    result: Figures = {
        name: {
            "value": float(value),
            "error": float(np.std([draw[name] for draw in draws if name in draw])),
        }
        for name, value in best.items()
    }
    rates = {name: value for name, value in result.items() if name.startswith("rate")}
    return result | ({"rates_per_ns": rates} if rates else {})


def figures_of(total: Sums, lag: float) -> dict[str, float]:
    """Figures from what `sums` adds up; `lag` in ps."""
    found: dict[str, float] = {}
    for name, values in total.items():
        if name.startswith("mean "):
            count, one, two = values
            mean, what = one / count, name.removeprefix("mean ")
            found[what] = mean
            found[f"width of {what}"] = float(np.sqrt(max(two / count - mean**2, 0.0)))
    if "states" in total:
        share = total["states"] / total["states"].sum()
        found["gauche"] = 1.0 - share[TRANS]
        found["gauche+ minus gauche-"] = share[PLUS] - share[MINUS]
        t = total["transitions"] + total["transitions"].T  # equilibrium: both directions
        ends = t[TRANS].sum(), t[PLUS:].sum()
        p, q = t[TRANS, PLUS:].sum() / max(ends[0], 1), t[PLUS:, TRANS].sum() / max(ends[1], 1)
        if min(ends) > 0 and p + q < 1.0:
            k = -np.log(1.0 - p - q) / (lag / 1000.0)
            found["rate trans to gauche, 1/ns"] = k * found["gauche"]
            found["rate gauche to trans, 1/ns"] = k * share[TRANS]
    if "pairs" in total:
        pairs = total["pairs"] / total["pairs"].sum()
        both = pairs[PLUS, MINUS] + pairs[MINUS, PLUS]
        gauche = 0.5 * (pairs[PLUS:].sum() + pairs[:, PLUS:].sum())
        found["gauche+ gauche- over independent"] = both / (0.5 * gauche**2)
    return found


def sums(x: NDArray[Any], chain: Chain, stride: int) -> Sums:
    """What adds up over groups of frames (chains, frames, atoms, 3)."""
    flat = x.reshape(-1, *x.shape[-2:])
    found: Sums = {}

    def mean(name: str, values: NDArray[Any]) -> None:
        v = np.asarray(values, dtype=np.float64).ravel()
        found[f"mean {name}"] = np.array([len(v), v.sum(), (v * v).sum()])

    mean("C-C bond, nm", distances(flat, chain.bonds))
    for kind, triples in chain.angles.items():
        mean(f"{kind}, degrees", bond_angles(flat, triples))
    if len(chain.carbons) > 2:
        ends = np.array([[chain.carbons[0], chain.carbons[-1]]])
        mean("end to end, nm", distances(flat, ends))
    every = sorted({torsion for alike in chain.torsions for torsion in alike})
    if every:
        order = {torsion: states(x, torsion) for torsion in every}
        seen = np.concatenate([s.ravel() for s in order.values()])
        found["states"] = np.bincount(seen, minlength=3).astype(float)
        found["transitions"] = np.zeros((3, 3))
        for s in order.values():
            if s.shape[1] > stride:
                found["transitions"] += counted(s[:, :-stride], s[:, stride:])
        place = {atom: k for k, atom in enumerate(chain.carbons)}
        along = sorted(every, key=lambda torsion: min(place[atom] for atom in torsion))
        if len(along) > 1:
            neighbours = itertools.pairwise(along)
            found["pairs"] = sum(
                (counted(order[one], order[two]) for one, two in neighbours), np.zeros((3, 3))
            )
    return found


def counted(one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often which state goes with which, (3, 3)."""
    return np.bincount((3 * one + two).ravel(), minlength=9).reshape(3, 3).astype(float)


# -- chains of jumps alone -------------------------------------------------------------------------


def chains(options: argparse.Namespace) -> None:
    """Measure each molecule, and print its table."""
    torch.set_num_threads(options.threads)
    model = ScoreModel.load(options.model)
    result = {}
    for reference in options.references:
        name, _, file = reference.partition("=")
        result[name] = compare(model.member(name), Path(file), options)
        tell(name, result[name])
    write_json(options.json, result)
    if options.figure:
        draw(result, options.figure)


def compare(model: ScoreModel, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure MD and chains of jumps of one molecule."""
    data = read_dataset(file)
    plain = plain_runs(data, "imported")
    spacing = plain[0].spacing_ps
    # The model's atoms may be numbered otherwise than those of the data.
    ours, theirs = Chain.of(model.molecules[0]), Chain.of(data.molecule)
    md = blocks_of([run.positions for run in plain])
    began = time.perf_counter()
    settings = RolloutSettings(
        chains=options.chains, steps=options.steps, lag_ps=options.lag, seed=options.seed
    )
    if model.start_frames is None:
        raise SystemExit(f"{model.molecules[0].name} has no frame to start from")
    rollout = Rollout(model, settings, model.start_frames)
    frames = np.stack([rollout.advance() for _ in range(options.steps)], axis=1)
    frames = frames[:, round(DISCARD * options.steps) :]
    statistics = rollout.statistics()
    jumps = [np.asarray(part) for part in np.array_split(frames, min(GROUPS, len(frames)))]
    result: dict[str, Any] = {
        "lag_ps": options.lag,
        "chains": options.chains,
        "steps": options.steps,
        "md_ns": sum(run.length_ps for run in plain) / 1000.0,
        "seconds": time.perf_counter() - began,
        "draws": statistics["draws"],
        "gate_failure_fraction": sum(statistics["rejections"].values()) / statistics["draws"],
        "rejections": statistics["rejections"],
    }
    stride = max(1, round(options.lag / spacing))
    result["md"] = measured(md, theirs, stride, stride * spacing)
    result["jumps"] = measured(jumps, ours, 1, options.lag)
    result["md_rates_per_ns"] = {
        f"{lag:g}": measured(md, theirs, round(lag / spacing), lag).get("rates_per_ns")
        for lag in LAGS_PS
        if lag >= spacing
    }
    if ours.torsions:
        one, two = histograms(md, theirs), histograms(jumps, ours)
        result["jsd_bits"] = jsd(one, two)
        odd, even = one[:, ::2].sum(1), one[:, 1::2].sum(1)
        result["jsd_of_md_halves_bits"] = float(np.mean(jensen_shannon(odd, even)))
        result["densities"] = {"md": density(one), "jumps": density(two)}
    return result


def shown(figure: dict[str, float]) -> str:
    """A figure with its error as text."""
    return with_error(figure["value"], figure["error"], 4)


def tell(name: str, found: dict[str, Any]) -> None:
    """Print the table of one molecule."""
    print(
        f"\n### {name}: {found['chains']} chains of {found['steps']} jumps of {found['lag_ps']:g} "
        f"ps, {found['md_ns']:.1f} ns of MD, {found['gate_failure_fraction']:.1e} of draws failed\n"
    )
    if "jsd_bits" in found:
        print(
            f"JSD {found['jsd_bits']['value']:.4f} ± {found['jsd_bits']['error']:.4f} bits, two "
            f"halves of the MD {found['jsd_of_md_halves_bits']:.4f}\n"
        )
    print_head(["", "MD", "jumps", "sigma"])
    for key, ours in found["jumps"].items():
        theirs = found["md"].get(key)
        if key == "rates_per_ns" or theirs is None:
            continue
        sigma = sigmas((ours["value"], ours["error"]), (theirs["value"], theirs["error"]))
        print_row([key, shown(theirs), shown(ours), f"{sigma:+.1f}"])
    rows = {lag: rates for lag, rates in found["md_rates_per_ns"].items() if rates}
    if rows:
        print()
        print_head(["MD at lag, ps", *next(iter(rows.values()))])
        for lag, rates in rows.items():
            print_row([lag, *(shown(rate) for rate in rates.values())])


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw the distributions of torsions."""
    names = [name for name in result if "densities" in result[name]]
    widest = max(len(result[name]["densities"]["md"]) for name in names)
    figure = new_figure(4.2 * widest, 2.8 * len(names), 120)
    axes = figure.subplots(len(names), widest, squeeze=False)
    middle = -180.0 + 360.0 / BINS * (np.arange(BINS) + 0.5)
    for row, name in zip(axes, names, strict=True):
        densities = result[name]["densities"]
        for k, axis in enumerate(row):
            if k >= len(densities["md"]):
                axis.axis("off")
                continue
            axis.plot(middle, densities["md"][k], "k--", linewidth=1, label="MD")
            axis.plot(middle, densities["jumps"][k], linewidth=1, label="jumps")
            which = "C-C-C-C" if len(densities["md"]) == 1 else f"C-C-C-C, {k + 1} from the end"
            axis.set(title=f"{name}: {which}", xlabel="degrees", ylabel="per degree")
        row[0].legend(fontsize=8)
    figure.savefig(file)


COMMANDS = {
    "chains": Command(
        chains,
        [
            option("model"),
            option("references", nargs="+", metavar="MOLECULE=DATA.h5"),
            option("--lag", type=float, default=10.0, help="ps"),
            option("--chains", type=int, default=256),
            option("--steps", type=int, default=400),
            option("--threads", type=int, default=1),
            option("--figure", type=Path, metavar="FILE"),
            SEED,
            JSON,
        ],
    ),
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS))
