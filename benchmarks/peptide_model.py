"""Judge a model of peptides by MD: residues and sequences it was trained on, and others.

    python benchmarks/peptide_model.py MODEL DATA.h5 ... [--chains N --steps N --pairs N]

A molecule of the model is judged as trained, any other as served: from its structure and force
field alone. Several data sets of one molecule are taken together. For each molecule, worst first:

* populations of chains (basins of phi and psi, wells of chi1) against those of MD, in combined
  standard errors, where transitions of MD connect all states that it was in. Chains start from
  equilibrium frames of MD; their first third is left out. MD's populations come from transitions
  (detailed balance over all runs), their errors from runs drawn anew. Chains' errors are from ten
  groups of chains.
* JSD(phi, psi) above that of an exact model with the same samples: what it would be is estimated
  from runs of MD, and from chains, drawn anew.
* one-step laws from frames of MD, at each lag: how often phi and psi change basin and chi1 its
  well, and the mean cosine of the change. Read forwards in time only, so that the same frames are
  starts of both; errors from blocks of MD. What is pooled is the root mean square of differences
  beyond MD's error, over the root mean square of MD's values.
* draws that fail a gate, and the energy of the solute above MD's (median; in vacuum, or in OBC
  where the model is of water), kT.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app
from shared import (
    JSON,
    SEED,
    Command,
    new_figure,
    option,
    print_head,
    print_row,
    run_command,
    write_json,
)

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.analysis.equilibrium import histogram_2d, jensen_shannon
from openmm_sd.analysis.torsions import BASINS, basins
from openmm_sd.data.dataset import Run
from openmm_sd.jump.jump import REJECTIONS
from openmm_sd.molecule.matching import difference
from openmm_sd.molecule.torsions import backbone_torsions
from openmm_sd.rollout.rollout import Mover
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.system.force_field import make_system
from openmm_sd.train.data import read_by_molecule
from openmm_sd.train.family import terms_of
from openmm_sd.train.markov import Cells

Floats = NDArray[np.float64]
#: Bins along phi and along psi.
BINS = 24
WELLS = ("gauche+", "trans", "gauche-")
#: Times that runs, or groups of chains, are drawn anew.
RESAMPLED = 20
GROUPS = 10
#: Lag at which MD's transitions tell its populations, and length of a block, ps.
WEIGHTS_LAG_PS, BLOCK_PS = 1.0, 100.0
#: Frames left out at the beginning of runs that start from a pulled structure, ps.
DROP_PS = 1.0
KT = 0.0083144626 * 300.0


@dataclass
class Truth:
    """MD of a molecule, and the torsions that it is judged by."""

    molecule: Molecule
    runs: list[Run]
    spacing_ps: float
    force_field: list[str]
    backbone: list[tuple[tuple[int, ...], tuple[int, ...]]]
    chi1: list[tuple[int, ...]]
    angles: list[Floats] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.angles = [self.measure(run.positions) for run in self.runs]

    def measure(self, frames: NDArray[Any]) -> Floats:
        """Return phi and psi of each residue, then chi1 of those that have one, (T, D)."""
        rows = [*(row for pair in self.backbone for row in pair), *self.chi1]
        return np.stack([dihedral(frames, row) for row in rows], axis=-1)

    def states(self, angles: Floats) -> NDArray[np.int64]:
        """Return the basin of each residue, then the well of each chi1, (T, ...)."""
        n = 2 * len(self.backbone)
        here = [basins(angles[:, k], angles[:, k + 1]) for k in range(0, n, 2)]
        wells = np.mod(angles[:, n:], 2 * np.pi) // (2 * np.pi / 3)
        return np.column_stack([*here, wells.astype(np.int64)])

    def names(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return what each column of `states` is, and what its states are called."""
        ids = self.molecule.residue_ids
        return [
            *((f"basins of {ids[phi[2]]}", BASINS) for phi, _ in self.backbone),
            *((f"chi1 of {ids[row[1]]}", WELLS) for row in self.chi1),
        ]

    def weights(self, chosen: NDArray[np.int64]) -> list[Floats]:
        """Return the equilibrium weight of each frame of chosen runs."""
        angles = [self.angles[k] for k in chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells = Cells.of(angles, self.spacing_ps, weights_lag_ps=WEIGHTS_LAG_PS, max_cells=300)
            weights = cells.model(WEIGHTS_LAG_PS).frame_weights()
        return np.split(weights, np.cumsum([len(a) for a in angles])[:-1])


def truth_of(paths: list[str]) -> list[Truth]:
    """Read the MD of each molecule."""
    found = []
    for data in read_by_molecule(paths, lambda *_: None):
        spacing = max(run.spacing_ps for run in data.runs)
        runs = []
        for run in data.runs:
            drop = 0 if run.kind == "plain" else round(DROP_PS / run.spacing_ps)
            kept = run.positions[drop :: round(spacing / run.spacing_ps)]
            if run.kind in ("plain", "seeded") and len(kept) > 1:
                runs.append(Run(**{**vars(run), "positions": kept, "spacing_ps": spacing}))
        molecule = data.molecule
        at = {
            label: k
            for k, label in enumerate(zip(molecule.residue_ids, molecule.atom_names, strict=True))
        }
        backbone = [(phi.atoms, psi.atoms) for phi, psi in backbone_torsions(molecule)]
        chi1 = []
        for phi, _ in backbone:
            place = molecule.residue_ids[phi[2]]
            ends = [at[place, n] for n in ("CG", "CG1", "SG", "OG", "OG1") if (place, n) in at]
            if ends and molecule.residue_names[phi[2]] != "PRO":
                chi1.append((phi[1], phi[2], at[place, "CB"], ends[0]))
        files = list(data.provenance["force_field"])
        found.append(Truth(molecule, runs, spacing, files, backbone, chi1))
    return found


def model_of(model: ScoreModel, truth: Truth, data: Any) -> tuple[ScoreModel, bool]:
    """Return the model of a molecule, and whether it was trained on."""
    for member in model.members:
        if not difference(member.molecules[0], truth.molecule):
            return member, True
    return model.serve(truth.molecule, terms_of(truth.molecule, data)), False


def rms(values: Any) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else float("nan")


def populations(
    states: NDArray[np.int64], sizes: list[int], weights: Floats | None
) -> list[Floats]:
    """Return the populations of the states in each column."""
    total = len(states) if weights is None else weights.sum()
    return [
        np.bincount(column, weights, size) / total
        for column, size in zip(states.T, sizes, strict=True)
    ]


def equilibrium(truth: Truth, move: Mover, options: argparse.Namespace) -> dict[str, Any]:
    """Compare chains with MD: populations, and JSD(phi, psi)."""
    rng = np.random.default_rng(options.seed)
    sizes = [len(names) for _, names in truth.names()]
    every = np.arange(len(truth.runs))
    samples = [every, *(rng.choice(every, len(every)) for _ in range(RESAMPLED))]
    md, maps = [], []
    for chosen in samples:
        weights = np.concatenate(truth.weights(chosen))
        angles = np.concatenate([truth.angles[k] for k in chosen])
        md.append(populations(truth.states(angles), sizes, weights))
        maps.append([_map(angles, k, weights) for k in range(len(truth.backbone))])
        if len(md) == 1:
            known = weights
    frames = np.concatenate([run.positions for run in truth.runs])
    start = frames[rng.choice(len(frames), options.chains, p=known)].astype(np.float64)
    now = move.place(start, np.arange(options.chains))
    move.lag_ps = options.chain_lag
    kept, given_up = [], 0
    for step in range(options.steps):
        now, counts = move(now, step)
        given_up += counts["fallbacks"]
        if step >= options.steps // 3:
            kept.append(truth.measure(now.numpy()))
    chains = np.stack(kept, axis=1)
    groups = np.array_split(np.arange(options.chains), GROUPS)
    drawn = [np.arange(options.chains)]
    drawn += [
        np.concatenate([groups[g] for g in rng.choice(GROUPS, GROUPS)]) for _ in range(RESAMPLED)
    ]
    own, own_maps = [], []
    for chosen in drawn:
        angles = chains[chosen].reshape(-1, chains.shape[-1])
        own.append(populations(truth.states(angles), sizes, None))
        own_maps.append([_map(angles, k) for k in range(len(truth.backbone))])
    rows, told = [], _told(truth, known)
    for k, (what, names) in enumerate(truth.names()):
        errors = [np.std([one[k] for one in side[1:]], axis=0) for side in (md, own)]
        for s, name in enumerate(names):
            error = float(np.hypot(errors[0][s], errors[1][s]))
            a, b = float(md[0][k][s]), float(own[0][k][s])
            # What neither has been to says nothing.
            z = (b - a) / error if told[k] and error > 0.0 and max(a, b) > 0.002 else None
            rows.append(
                {
                    "of": what,
                    "state": name,
                    "md": a if told[k] else None,
                    "model": b,
                    "error": error if told[k] else None,
                    "sigmas": z,
                }
            )
    jsd = [_divergence(maps[0][k], own_maps[0][k]) for k in range(len(truth.backbone))]
    exact = [
        sum(
            float(np.mean([_divergence(side[0][k], one[k]) for one in side[1:]]))
            for side in (maps, own_maps)
        )
        for k in range(len(truth.backbone))
    ]
    return {
        "populations": rows,
        "excess": [a - b for a, b, known in zip(jsd, exact, told, strict=False) if known],
        "maps": list(zip(maps[0], own_maps[0], strict=True)),
        "fallbacks": given_up / (options.chains * options.steps),
    }


def _told(truth: Truth, weights: Floats) -> list[bool]:
    """Return of each column of states whether MD tells how they are populated.

    It does not where frames are in a state that no transition connects with the rest.
    """
    states = truth.states(np.concatenate(truth.angles))
    return [set(column) == set(column[weights > 0.0]) for column in states.T]


def _map(angles: Floats, k: int, weights: Floats | None = None) -> Floats:
    pair = angles[:, 2 * k : 2 * k + 2]
    if weights is None:
        return histogram_2d(pair, BINS).reshape(-1).astype(float)
    edges = [np.linspace(-np.pi, np.pi, BINS + 1)] * 2
    return np.histogram2d(pair[:, 0], pair[:, 1], edges, weights=weights)[0].reshape(-1)


def _divergence(one: Floats, other: Floats) -> float:
    return float(jensen_shannon(one, other))


def one_step(truth: Truth, move: Mover, lag: float, options: argparse.Namespace) -> dict[str, Any]:
    """Compare what becomes of frames of MD after a lag: in MD, and drawn."""
    stride = round(lag / truth.spacing_ps)
    block = max(1, round(BLOCK_PS / truth.spacing_ps))
    rng = np.random.default_rng(options.seed + 1)
    at = np.array(
        [(r, t) for r, run in enumerate(truth.runs) for t in range(len(run.positions) - stride)]
    )
    at = at[rng.permutation(len(at))[: options.pairs]]
    start = np.stack([truth.runs[r].positions[t] for r, t in at])
    before = np.stack([truth.angles[r][t] for r, t in at])
    after = np.stack([truth.angles[r][t + stride] for r, t in at])
    move.lag_ps = lag
    placed = move.place(start.astype(np.float64), np.arange(len(at)))
    moved, counts = move(placed, 0)
    drawn = moved.numpy()
    sides = [_laws(truth, before, after), _laws(truth, before, truth.measure(drawn))]
    # Frames of one block are not independent.
    places = np.column_stack([at[:, 0], at[:, 1] // block])
    blocks = np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)
    size = np.bincount(blocks)[:, None]
    rows = {}
    for name in sides[0]:
        md, own = sides[0][name], sides[1][name]
        mean = md.mean(0)
        sums = np.stack([np.bincount(blocks, column) for column in (md - mean).T], axis=1)
        error = np.sqrt((sums**2).sum(0)) / size.sum()
        noise = own.std(0) / np.sqrt(len(own))
        rows[name] = {
            "md": mean.tolist(),
            "model": own.mean(0).tolist(),
            "error": np.hypot(error, noise).tolist(),
        }
    count = min(options.energies, len(at))
    later = np.stack([truth.runs[r].positions[t + stride] for r, t in at[:count]])
    high = [energies(truth, frames) for frames in (later, drawn[:count])]
    return {
        "laws": rows,
        "gate_failures": counts["first_draw_failures"] / len(at),
        "rejections": {name: counts[name] for name in REJECTIONS.values() if counts[name]},
        "energy_kT": float(np.median(high[1]) - np.median(high[0])),
    }


def _laws(truth: Truth, before: Floats, after: Floats) -> dict[str, Floats]:
    """Return of each pair whether states change, and the cosine of each change, (T, ...)."""
    n = len(truth.backbone)
    hops = (truth.states(before) != truth.states(after)).astype(float)
    cosine = np.cos(after - before)
    found = {
        "hop phi, psi": hops[:, :n],
        "cos phi": cosine[:, 0 : 2 * n : 2],
        "cos psi": cosine[:, 1 : 2 * n : 2],
    }
    if truth.chi1:
        found |= {"hop chi1": hops[:, n:], "cos chi1": cosine[:, 2 * n :]}
    return found


def energies(truth: Truth, frames: NDArray[Any]) -> Floats:
    """Return the energy of frames of the solute, kT."""
    files = [name for name in truth.force_field if "tip3p" not in name]
    if len(files) < len(truth.force_field):
        files.append("amber99_obc.xml")
    system = make_system(files, truth.molecule.to_topology(), nonbondedMethod=app.NoCutoff)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    found = []
    for x in frames:
        context.setPositions(np.asarray(x, dtype=np.float64))
        found.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(found) / KT


def beyond(rows: list[dict[str, Any]]) -> float:
    """Return the rms of differences beyond their error, over the rms of MD's values."""
    md, own, error = (
        np.concatenate([row[key] for row in rows]) for key in ("md", "model", "error")
    )
    return float(np.sqrt(max(0.0, np.mean((own - md) ** 2 - error**2)) / np.mean(md**2)))


def pooled(found: list[dict[str, Any]], lags: list[float]) -> dict[str, Any]:
    """Return the figures of several molecules together."""
    z = [value for one in found for value in _sigmas(one)]
    rows = [row for one in found for row in one["populations"]]
    told = [row for row in rows if row["md"] is not None]
    chi1 = [abs(row["model"] - row["md"]) for row in told if row["of"].startswith("chi1")]
    excess = [value for one in found for value in one["excess"]] or [float("nan")]
    summary: dict[str, Any] = {
        "molecules": len(found),
        "states whose population MD tells, share": len(told) / len(rows),
        "populations, rms of (difference / error)": rms(z),
        "JSD above an exact model's: mean": float(np.mean(excess)),
        "JSD above an exact model's: worst": float(np.max(excess)),
        "chi1 populations: rms difference": rms(chi1),
        "chi1 populations: worst": max(chi1, default=float("nan")),
        "steps given up": float(np.mean([one["fallbacks"] for one in found])),
    }
    for lag in lags:
        steps = [one["steps"][f"{lag:g}"] for one in found]
        for law in ("hop phi, psi", "cos phi", "cos psi", "hop chi1", "cos chi1"):
            rows = [step["laws"][law] for step in steps if law in step["laws"]]
            if rows:
                summary[f"{lag:g} ps: {law}, off by"] = beyond(rows)
        summary[f"{lag:g} ps: draws that fail a gate"] = float(
            np.mean([step["gate_failures"] for step in steps])
        )
        summary[f"{lag:g} ps: energy above MD's, kT: median"] = float(
            np.median([step["energy_kT"] for step in steps])
        )
        summary[f"{lag:g} ps: energy above MD's, kT: worst"] = float(
            np.max([step["energy_kT"] for step in steps])
        )
    return summary


def main(options: argparse.Namespace) -> None:
    """Judge a model by the MD of some molecules."""
    model = ScoreModel.load(options.model)
    data = read_by_molecule(options.data, lambda *_: None)
    found: dict[str, list[dict[str, Any]]] = {"trained": [], "served": []}
    for truth, own in zip(truth_of(options.data), data, strict=True):
        began = time.monotonic()
        member, trained = model_of(model, truth, own)
        move = Mover(member, RolloutSettings(lag_ps=options.chain_lag, seed=options.seed))
        one = {
            "molecule": truth.molecule.name,
            "ns": sum(len(r.positions) for r in truth.runs) * truth.spacing_ps / 1000.0,
            **equilibrium(truth, move, options),
            "steps": {f"{lag:g}": one_step(truth, move, lag, options) for lag in options.lags},
        }
        found["trained" if trained else "served"].append(one)
        print(f"{truth.molecule.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    taken = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    show(found, options.lags)
    if options.figure is not None:
        draw(found, options.figure)
    for one in (*found["trained"], *found["served"]):
        del one["maps"]
    summaries = {kind: pooled(ones, options.lags) for kind, ones in found.items() if ones}
    write_json(options.json, {"settings": taken, "pooled": summaries, **found})


def show(found: dict[str, list[dict[str, Any]]], lags: list[float]) -> None:
    """Print the pooled figures, then those of each molecule, worst first."""
    summaries = {kind: pooled(ones, lags) for kind, ones in found.items() if ones}
    print_head(["figure", *(f"{kind} ({len(found[kind])})" for kind in summaries)])
    for key in list(next(iter(summaries.values()))):
        print_row([key, *(f"{one.get(key, float('nan')):.3g}" for one in summaries.values())])
    print()
    head = [
        "molecule",
        "MD, ns",
        "rms",
        "worst population: MD / model",
        "JSD above an exact model's",
    ]
    print_head([*head, f"hops in {lags[0]:g} ps, MD / model", "energy, kT", "fail a gate"])
    for kind, ones in found.items():
        for one in sorted(ones, key=lambda one: -rms(_sigmas(one))):
            rows = [row for row in one["populations"] if row["sigmas"] is not None]
            worst = max(rows, key=lambda row: abs(row["sigmas"]), default=None)
            step = one["steps"][f"{lags[0]:g}"]
            said = "MD tells none"
            if worst is not None:
                said = f"{worst['of']}, {worst['state']}: {worst['md']:.3f} / "
                said += f"{worst['model']:.3f} ± {worst['error']:.3f}"
            laws = [law for name, law in step["laws"].items() if name.startswith("hop")]
            hops = [
                f"{md:.3f} / {own:.3f}"
                for law in laws
                for md, own in zip(law["md"], law["model"], strict=True)
            ]
            print_row(
                [
                    f"{one['molecule']} ({kind})",
                    f"{one['ns']:.1f}",
                    f"{rms(_sigmas(one)):.2f}",
                    said,
                    ", ".join(f"{value:.4f}" for value in one["excess"]),
                    ", ".join(hops),
                    f"{step['energy_kT']:.1f}",
                    f"{step['gate_failures']:.4f}",
                ]
            )


def _sigmas(one: dict[str, Any]) -> list[float]:
    return [row["sigmas"] for row in one["populations"] if row["sigmas"] is not None]


def draw(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draw the free energy in phi and psi of each residue, of MD above that of the model."""
    maps = [
        (one["molecule"], *pair) for ones in found.values() for one in ones for pair in one["maps"]
    ]
    columns = min(8, len(maps))
    lines = -(-len(maps) // columns)
    figure = new_figure(1.6 * columns, 3.5 * lines)
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for ax in axes.reshape(-1):
        ax.set_axis_off()
    for k, (name, *pair) in enumerate(maps):
        for side, (counts, what) in enumerate(zip(pair, ("MD", "model"), strict=True)):
            ax = axes[2 * (k // columns) + side, k % columns]
            share = counts.reshape(BINS, BINS).T / counts.sum()
            with np.errstate(divide="ignore"):
                ax.imshow(-np.log(share * BINS**2), origin="lower", vmin=-4, vmax=4, cmap="viridis")
            ax.set_title(f"{name}\n{what}" if side == 0 else what, fontsize=7)
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(
        run_command(
            __doc__,
            {
                "judge": Command(
                    main,
                    [
                        option("model"),
                        option("data", nargs="+"),
                        option("--lags", type=float, nargs="+", default=[10.0, 100.0]),
                        option("--chain-lag", type=float, default=100.0, help="lag of chains, ps"),
                        option("--chains", type=int, default=100),
                        option("--steps", type=int, default=60),
                        option("--pairs", type=int, default=2000),
                        option("--energies", type=int, default=300),
                        option("--figure", type=Path, metavar="PNG", help="maps of phi and psi"),
                        SEED,
                        JSON,
                    ],
                ),
            },
        )
    )
