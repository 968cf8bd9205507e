"""How faithful models of small peptides are: tables for model cards and pages.

    python benchmarks/fidelity.py card REPORT/validation.json [MORE/validation.json ...]
    python benchmarks/fidelity.py short-times phi-psi.npy DATA.h5 [DATA.h5 ...]
    python benchmarks/fidelity.py hands gly.safetensors gly-md.h5 chains run
    python benchmarks/fidelity.py calls --out DIR --reference REF [REF ...]
    python benchmarks/fidelity.py variants --out DIR --reference REF [REF ...] --minutes 5
    python benchmarks/fidelity.py ablation --out DIR

``phi-psi.npy`` is a series (T, 2) of phi and psi of alanine dipeptide in radians, a frame each ps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shared import (
    SEED,
    Command,
    figure_text,
    option,
    phi_psi,
    plain_runs,
    print_head,
    print_row,
    run_command,
    write_json,
)

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis import BASINS, basins
from openmm_sd.analysis.geometry import jackknife_mean
from openmm_sd.analysis.sample import Sample
from openmm_sd.data.dataset import Dataset, read_dataset, write_dataset
from openmm_sd.data.reference import read_reference
from openmm_sd.molecule.torsions import Torsion, backbone_torsions
from openmm_sd.propagator.noise import standard_normal
from openmm_sd.train import StageSettings, TrainSettings, train_bundle
from openmm_sd.validate import ValidateSettings, validate
from openmm_sd.validate.sampling import read_chains

# -- the table of a model card ---------------------------------------------------------------------

PASSAGES = (
    "phi<0 -> phi>0",
    "phi>0 -> phi<0",
    "beta+PII -> alphaR",
    "alphaR -> beta+PII",
    "alphaR -> alphaL",
    "alphaL -> alphaR",
    "beta -> PII",
    "PII -> beta",
)
HOPS = ("beta_C5 -> PII", "PII -> beta_C5", "PII -> alphaR", "alphaR -> PII")


def card(options: argparse.Namespace) -> None:
    """The table of a model card from validation reports: a column a lag, beside MD."""
    lags: dict[float, dict[str, Any]] = {}
    reference: dict[str, Any] = {}
    for path in options.reports:
        report = json.loads(path.read_text())
        reference = reference or report["reference"]
        lags.update({float(lag): entry for lag, entry in report["lags"].items()})
    lags = dict(sorted(lags.items()))
    each = list(lags.values())

    def row(name: str, function: Callable[[dict[str, Any]], str], md: str = "") -> None:
        print_row([name, md, *map(function, each)])

    print_row(["lag (ps)", "MD", *(f"{lag:g}" for lag in lags)])
    print_row(["---"] * (2 + len(lags)))
    row("chains x steps", lambda e: f"{e['chains']} x {e['steps']}")
    row("all chains together (µs)", lambda e: f"{e['microseconds']:.1f}")
    row("JSD(phi, psi), bits", lambda e: figure_text(e["jsd_phi_psi_bits"], 4))
    row(
        "— of an exact model, samples of this size",
        lambda e: f"{e['jsd_phi_psi_bits'].get('expected_of_exact_model') or 0:.4f}",
    )
    row(
        "— last quarter of the chains minus third",
        lambda e: figure_text(e["drift"]["last_half_bits"], 4),
    )
    for name in (*BASINS, "phi>0"):
        md = figure_text(reference["populations"][name], 4)
        row(f"population of {name}", lambda e, n=name: figure_text(e["populations"][n], 4), md)
    for number in range(3):
        known = (timescale(e, number, "reference") for e in each)
        md = next((text for text in known if text), "")
        row(f"implied timescale {number + 2} (ps)", lambda e, n=number: timescale(e, n), md)
    for name in PASSAGES:
        row(
            f"mean first passage {name} (ps); in brackets MD's, same MSM lag",
            lambda e, n=name: beside(e["mfpt_ps"].get(n, {}), significant=True),
        )
    for key in ("phi", "psi"):
        row(
            f"one step: mean cos of the change of {key}; in brackets MD's",
            lambda e, k=key: one_step(e, f"mean cosine of the change of {k}"),
        )
    for hop in HOPS:
        row(
            f"one step: probability of {hop}; in brackets MD's",
            lambda e, h=hop: one_step(e, f"probability of {h}"),
        )
    for name, key in (
        ("draws that fail a gate", "gate_failure_fraction"),
        ("draws with a flipped stereocentre", "chirality_flip_fraction"),
    ):
        row(name, lambda e, k=key: f"{e[k]['value']:.1e} ± {e[k]['error']:.0e}")
    energy = "solute_energy_excess_kT"
    row("energy of the solute above MD's (kT), mean", lambda e: figure_text(e[energy], 2))
    row("— median", lambda e: f"{e[energy]['median_excess_kT']:.2f}" if e[energy] else "-")


def timescale(entry: dict[str, Any], number: int, key: str | None = None) -> str:
    """A timescale at the lag nearest to the jumps' own, of 50 ps and more."""
    at, wanted = entry["implied_timescales_ps"], max(50.0, entry["lag_ps"])
    lag = min(at, key=lambda name: abs(float(name) - wanted))
    figure = at[lag] if key is None else at[lag].get(key)
    return f"{figure_text(nth(figure, number), 4, True)} (at {lag} ps)" if figure else ""


def nth(figure: dict[str, Any], number: int) -> dict[str, Any]:
    """One of several values with its error."""
    pick = {key: figure.get(key) or [] for key in ("value", "error")}
    return {key: value[number] if number < len(value) else None for key, value in pick.items()}


def beside(figure: dict[str, Any], significant: bool = False) -> str:
    """A figure, and MD's in brackets."""
    md = figure_text(figure.get("reference"), 3, significant)
    return f"{figure_text(figure, 3, significant)} ({md})"


def one_step(entry: dict[str, Any], what: str) -> str:
    """A figure of the one-step test, and MD's."""
    for line in entry["verdicts"]:
        if line["what"] == f"one step: {what}":
            md = {"value": line["reference"], "error": line["reference_error"]}
            return beside({"value": line["model"], "error": line["model_error"], "reference": md})
    return "-"


# -- alanine dipeptide at short times --------------------------------------------------------------

SHORT_LAGS_PS = (1.0, 2.0, 5.0)
BLOCKS = 20
Figures = dict[str, tuple[float, float]]


def short_times(options: argparse.Namespace) -> None:
    """Whether MD of one data set of alanine dipeptide moves as fast as another's.

    For each basin of phi < 0 the mean cosine of the change of phi and psi, and the chance to be in
    another basin, 1, 2 and 5 ps later. These converge within a few ns of MD, long before any
    population or timescale does, and show differences in mass, friction or water that would change
    those. Errors are those of twenty blocks; of data sets the plain runs count.
    """
    columns = {"reference": at_short_times([np.load(options.reference).astype(float)], 1.0)}
    for path in options.datasets:
        runs = plain_runs(read_dataset(path))
        series = [phi_psi(run.positions) for run in runs]
        columns[path] = at_short_times(series, runs[0].spacing_ps)
    print_head(["figure", *columns])
    for key in columns["reference"]:
        found = [column[key] for column in columns.values()]
        print_row([key, *(f"{value:.4f} ± {error:.4f}" for value, error in found)])
    print(
        "\nHow much more is forgotten in the reference, all basins and lags of 1 and 2 ps together:"
    )
    for name in options.datasets:
        ratio, error = excess(columns["reference"], columns[name])
        print(f"{name}: {100 * ratio:+.1f} ± {100 * error:.1f} %")


def at_short_times(series: list[NDArray[np.float64]], spacing_ps: float) -> Figures:
    """Figures with their errors of series of phi and psi."""
    result = {}
    for lag in SHORT_LAGS_PS:
        step = round(lag / spacing_ps)
        if step < 1:
            raise SystemExit(f"frames are {spacing_ps:g} ps apart: too far for a lag of {lag:g} ps")
        before = np.concatenate([s[:-step] for s in series])
        after = np.concatenate([s[step:] for s in series])
        start, end = basins(*before.T), basins(*after.T)
        for k, name in enumerate(("beta", "PII", "alphaR")):
            here = start == k
            turn = np.cos(after[here] - before[here])
            for j, torsion in enumerate(("phi", "psi")):
                result[f"{name}, {lag:g} ps: mean cos of {torsion}"] = jackknife_mean(
                    turn[:, j], BLOCKS
                )
            result[f"{name}, {lag:g} ps: elsewhere"] = jackknife_mean(end[here] != k, BLOCKS)
    return result


def excess(reference: Figures, other: Figures) -> tuple[float, float]:
    """How much larger 1 - cos of phi is in the reference, relative; phi is the stiffer."""
    values, precisions = [], []
    for key, (mine, my_error) in reference.items():
        if "cos of phi" not in key or "5 ps" in key:
            continue
        theirs, their_error = other[key]
        values.append((1 - mine) / (1 - theirs) - 1)
        precisions.append(1 / ((my_error / (1 - mine)) ** 2 + (their_error / (1 - theirs)) ** 2))
    mean = float(np.average(values, weights=precisions))
    # The two lags hardly tell more than one.
    return mean, float(np.sqrt(2 / np.sum(precisions)))


# -- both hands of a molecule without any ----------------------------------------------------------

OF_HANDS: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "share of phi > 0": lambda phi, psi: phi > 0,
    "phi, psi > 0 minus phi, psi < 0": lambda phi, psi: (
        (phi > 0) * (psi > 0) - 1.0 * (phi < 0) * (psi < 0)
    ),
    "phi > 0 > psi minus phi < 0 < psi": lambda phi, psi: (
        (phi > 0) * (psi < 0) - 1.0 * (phi < 0) * (psi > 0)
    ),
}


def hands(options: argparse.Namespace) -> int:
    """Whether dynamics of a molecule that is its own mirror image treat both hands alike.

    ACE-GLY-NME has no stereocentre, so (phi, psi) and (-phi, -psi) are equally likely in the true
    ensemble. Prints, for each source, the share of phi > 0 (exactly 0.5) and the difference between
    the shares of each pair of opposite quadrants (exactly 0), with errors over independent parts. A
    source is a data set or trajectory, the directory of a rollout, or that of a mixed run.
    """
    molecule = ScoreModel.load(options.model).molecules[0]
    pairs = backbone_torsions(molecule)
    if len(pairs) != 1:
        print(f"{molecule.name} has {len(pairs)} pairs of phi and psi, wanted is one")
        return 2
    for source in options.sources:
        sample = angles_of(source, molecule, list(pairs[0]))
        print(f"{source}: {sample.n_frames} frames, {sample.n_groups} parts")
        for name, function in OF_HANDS.items():
            parts: list[list[NDArray[Any]]] = [[] for _ in range(sample.n_groups)]
            for group, frames, _ in sample.pairs():
                parts[group].append(np.asarray(function(*frames[:, :2].T), dtype=float))
            means = np.array([np.concatenate(part).mean() for part in parts])
            error = means.std(ddof=1) / np.sqrt(len(means))
            print(f"  {name}: {means.mean():+.4f} +- {error:.4f}")
    return 0


def angles_of(source: Path, molecule: Molecule, torsions: list[Torsion]) -> Sample:
    """phi and psi of a source, cut into parts."""
    if (source / "rollout.json").is_file():
        return read_chains(source, molecule, ValidateSettings(), torsions).sample()
    if source.is_dir():
        # A frame at the end of every burst: all of them count alike.
        trajectory, topology = source / "trajectory.xtc", source / "topology.pdb"
        return read_reference([trajectory], molecule, topology, 1.0).sample(torsions)
    return read_reference([source], molecule).sample(torsions)


# -- what matters in a model of alanine dipeptide in water -----------------------------------------

LAGS = (50.0, 500.0)
CALLS = (1, 2, 4, 8, 16, 32)
#: Frames given to the network at once in the timing, and how often that is timed.
BATCH, REPEATS = 512, 5
KEPT = (
    "jsd_phi_psi_bits",
    "populations",
    "implied_timescales_ps",
    "mfpt_ps",
    "mfpt_msm_lag_ps",
    "gate_failure_fraction",
    "chirality_flip_fraction",
    "solute_energy_excess_kT",
)
#: Share of the data, settings of the stage, settings of the training.
VARIANTS: dict[str, tuple[float, dict[str, Any], dict[str, Any]]] = {
    "internal": (1.0, {}, {}),
    "dense": (1.0, {"network": "dense"}, {}),
    "no-condition-noise": (1.0, {}, {"condition_noise_nm": 0.0}),
    "half-of-the-data": (0.5, {}, {}),
    "eighth-of-the-data": (0.125, {}, {}),
    "no-markov-model": (1.0, {"time_reversal": False}, {}),
    "all-coordinates-alike": (1.0, {}, {"turn_weight": 1.0}),
    "pairs-as-they-come": (1.0, {}, {"rare_first": False}),
}


def calls(options: argparse.Namespace) -> None:
    """Run a model with 1 to 32 network calls a jump; nothing is trained again.

    Each is validated at lags of 50 and 500 ps against the reference: the published (phi, psi)
    series for what it knows, a data set for energies and bonds. Finished ones are skipped, so a
    killed run goes on.
    """
    model = ScoreModel.load(options.model)
    for number in CALLS:
        changed = ScoreModel(
            model.propagator.with_calls(number),
            model.molecules[0],
            dict(model.card),
            start_frames=model.start_frames,
            novelty=model.novelty,
        )
        measure(options, f"calls-{number:02d}", changed, {"calls": number})


def variants(options: argparse.Namespace) -> None:
    """Train small budgets of each variant from one data set, and validate each as `calls` does.

    Networks, what training does, size of the training set; each for the same time, with one thread.
    Times are wall times on whatever machine this is, so compare them within one run only.
    """
    data = read_dataset(options.dataset)
    for name, (share, stage, settings) in VARIANTS.items():
        bundle, source = options.out / f"{name}.safetensors", options.dataset
        if share < 1.0:
            source = options.out / f"{name}.h5"
            if not source.exists():
                part = reduced(data, share, options.seed)
                write_dataset(source, part.molecule, part.runs, part.provenance)
        if not bundle.exists() or minutes_of(bundle) != options.minutes:
            print(f"training {name}", flush=True)
            common = {"minutes": options.minutes, "seed": options.seed, "batch_size": 512}
            how = TrainSettings(**(common | settings))
            made = {"network": "internal", "drop_ps": 0.2} | stage
            train_bundle([source], bundle, StageSettings(training=how, **made))
        model = ScoreModel.load(bundle)
        training = model.card["training"]
        facts = {
            "network": training["network"],
            "weights": sum(p.numel() for p in model.propagator.parameters()),
            "ns": training["ns"],
            "pairs": training["steps"] * training["settings"]["batch_size"],
            "calls": model.propagator.n_calls,
        }
        measure(options, name, model, facts)


def minutes_of(bundle: Path) -> float:
    """How long a model was trained."""
    return float(ScoreModel.load(bundle).card["training"]["settings"]["minutes"])


def reduced(data: Dataset, share: float, seed: int) -> Dataset:
    """Return a share of the data: of many short runs some, of long ones the beginning.

    Biased runs keep the weights that all of them gave: less is taken away from what is known of
    populations than from the transitions.
    """
    rng = np.random.default_rng(seed)
    runs = []
    for run in data.runs:
        if run.kind == "seeded" and rng.random() < share:
            runs.append(run)
        elif run.kind != "seeded":
            n = max(2, round(share * run.n_frames))
            weights = None if run.log_weights is None else run.log_weights[:n]
            runs.append(replace(run, positions=run.positions[:n], log_weights=weights))
    return replace(data, runs=tuple(runs))


def measure(
    options: argparse.Namespace, name: str, model: ScoreModel, facts: dict[str, Any]
) -> None:
    """Validate a variant and keep its row."""
    options.out.mkdir(parents=True, exist_ok=True)
    row = options.out / f"{name}.row.json"
    same = {
        "total_us": options.total_us,
        "seed": options.seed,
        "measured_lags_ps": list(LAGS),
    }
    if row.exists():
        known = json.loads(row.read_text())
        if all(known.get(key) == value for key, value in same.items()):
            return
    print(f"measuring {name}", flush=True)
    settings = ValidateSettings(lags=LAGS, total_us=options.total_us, seed=options.seed)
    report = options.out / f"report-{name}"
    result = validate(model, options.reference, report, settings, force=True)
    entries = {lag: {key: entry[key] for key in KEPT} for lag, entry in result["lags"].items()}
    speed = {"jumps_per_second": jumps_per_second(model)}
    write_json(row, {"name": name, **facts, **same, **speed, "lags": entries})


@torch.no_grad()
def jumps_per_second(model: ScoreModel) -> float:
    """Return the median rate of the network alone, batch `BATCH`, this process's threads."""
    network = model.scripted("cpu")
    frames = torch.from_numpy(np.asarray(model.start_frames, dtype=np.float32))
    frames = frames[torch.arange(BATCH) % len(frames)]
    frames = frames - frames.mean(1, keepdim=True)
    lag = torch.full((BATCH,), 10.0)
    noise = standard_normal(1, 0, 0, BATCH, model.propagator.noise_size, frames.device)
    times = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        network(frames, lag, noise)
        times.append(time.perf_counter() - began)
    return BATCH / statistics.median(times[2:])


def ablation(options: argparse.Namespace) -> None:
    """Print what `calls` and `variants` measured, and write it to ablation.json."""
    rows = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.row.json"))]
    write_json(options.out / "ablation.json", rows)
    names = ("lag", "JSD (bits)", "alphaR", "phi>0", "t2 (ps)", "t3 (ps)", "gates", "energy (kT)")
    for trained in (False, True):
        some = [row for row in rows if row["name"].startswith("calls-") != trained]
        if some:
            about = ("variant", "data (ns)", "pairs seen", "calls") if trained else ("calls",)
            print_head([*about, *names, "jumps/s"])
            for row in some:
                for cells in ablation_rows(row, trained):
                    print_row(cells)
            print()


def ablation_rows(row: dict[str, Any], trained: bool) -> Iterator[list[str]]:
    """Lines of a variant, one a lag."""
    first = [str(row["calls"])]
    if trained:
        first = [row["name"], f"{row['ns']:.0f}", f"{row['pairs'] / 1e6:.2f} million", *first]
    speed = f"{row['jumps_per_second']:.0f}"
    for lag, entry in row["lags"].items():
        times = entry["implied_timescales_ps"]
        near = times[min(times, key=lambda key: abs(float(key) - max(50.0, float(lag))))]
        yield [
            *first,
            f"{lag} ps",
            figure_text(entry["jsd_phi_psi_bits"], 4),
            figure_text(entry["populations"]["alphaR"], 3),
            figure_text(entry["populations"]["phi>0"], 4),
            figure_text(nth(near, 0), 0),
            figure_text(nth(near, 1), 0),
            f"{entry['gate_failure_fraction']['value']:.2g}",
            figure_text(entry["solute_energy_excess_kT"], 2),
            speed,
        ]
        first, speed = [""] * len(first), ""


OUT = option("--out", type=Path, required=True, metavar="DIR")
MEASURED = (
    OUT,
    option("--reference", nargs="+", required=True, metavar="REF", help="as in openmm-sd validate"),
    option("--total-us", type=float, default=4.0, help="of each rollout"),
    SEED,
)
COMMANDS = {
    "card": Command(card, [option("reports", nargs="+", type=Path, metavar="validation.json")]),
    "short-times": Command(
        short_times,
        [option("reference", help=".npy of phi and psi"), option("datasets", nargs="+")],
    ),
    "hands": Command(
        hands,
        [
            option("model", help="bundle of the molecule"),
            option("sources", nargs="+", type=Path, metavar="SOURCE"),
        ],
    ),
    "calls": Command(calls, [*MEASURED, option("--model", default="ala2-water")]),
    "variants": Command(
        variants,
        [
            *MEASURED,
            option("--dataset", type=Path, default=Path("data/ala2-water.h5")),
            option("--minutes", type=float, default=5.0, help="of each training"),
        ],
    ),
    "ablation": Command(ablation, [OUT]),
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS))
