"""What matters in a model of alanine dipeptide in water: one row a variant, each measured.

    python benchmarks/ala2_ablation.py calls --out DIR --reference REF [REF ...]
    python benchmarks/ala2_ablation.py training --out DIR --reference REF [REF ...] --minutes 5
    python benchmarks/ala2_ablation.py table --out DIR

``calls`` runs the shipped model with 1 to 32 network calls a jump. ``training`` trains small
budgets of every variant (networks, what training does, size of the training set) from one data set,
for the same time each, with one thread. Every variant is validated at lags of 50 and 500 ps against
the reference: the published (phi, psi) series for what it knows, a data set for energies and bonds.
Finished variants are skipped, so a killed run goes on. ``table`` prints the rows as Markdown and
writes ``ablation.json``.

Times are wall times on whatever machine this is, so compare them within one run only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openmm_sd import ScoreModel
from openmm_sd.data.dataset import Dataset, read_dataset, write_dataset
from openmm_sd.propagator.noise import standard_normal
from openmm_sd.train import StageSettings, TrainSettings, train_bundle
from openmm_sd.validate import ValidateSettings, validate

LAGS = (50.0, 500.0)
CALLS = (1, 2, 4, 8, 16, 32)
#: Frames given to the network at once in the timing.
BATCH = 512
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("calls", "training", "table"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--reference", nargs="+", metavar="REF", help="as in openmm-sd validate")
    parser.add_argument("--model", default="ala2-water", help="of `calls`")
    parser.add_argument("--dataset", type=Path, default=Path("data/ala2-water.h5"))
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--total-us", type=float, default=4.0, help="of each rollout")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.what == "table":
        table(options)
        return
    if not options.reference:
        parser.error("--reference is needed")
    (calls if options.what == "calls" else training)(options)


def calls(options: argparse.Namespace) -> None:
    model = ScoreModel.load(options.model)
    for number in CALLS:
        measure(options, f"calls-{number:02d}", with_calls(model, number), {"calls": number})


def with_calls(model: ScoreModel, number: int) -> ScoreModel:
    """Return the model with another number of network calls a jump."""
    network = model.propagator.with_calls(number)
    frames = model.start_frames
    return ScoreModel(network, model.molecules[0], dict(model.card), start_frames=frames)


def training(options: argparse.Namespace) -> None:
    internal = {"network": "internal"}
    variants: dict[str, tuple[float, dict[str, Any], dict[str, Any]]] = {
        "internal": (1.0, internal, {}),
        "dense": (1.0, {"network": "dense"}, {}),
        "no-condition-noise": (1.0, internal, {"condition_noise_nm": 0.0}),
        "half-of-the-data": (0.5, internal, {}),
        "eighth-of-the-data": (0.125, internal, {}),
        "no-markov-model": (1.0, {**internal, "time_reversal": False}, {}),
        "all-coordinates-alike": (1.0, internal, {"turn_weight": 1.0}),
        "pairs-as-they-come": (1.0, internal, {"rare_first": False}),
    }
    data = read_dataset(options.dataset)
    for name, (share, stage, settings) in variants.items():
        bundle = options.out / f"{name}.safetensors"
        source = options.dataset
        if share < 1.0:
            source = options.out / f"{name}.h5"
            if not source.exists():
                part = reduced(data, share, options.seed)
                write_dataset(source, part.molecule, part.runs, part.provenance)
        if not bundle.exists() or minutes_of(bundle) != options.minutes:
            print(f"training {name}", flush=True)
            common = {"minutes": options.minutes, "seed": options.seed, "batch_size": 512}
            how = TrainSettings(**(common | settings))
            train_bundle([source], bundle, StageSettings(drop_ps=0.2, training=how, **stage))
        model = ScoreModel.load(bundle)
        card = model.card["training"]
        facts = {
            "network": card["network"],
            "weights": sum(p.numel() for p in model.propagator.parameters()),
            "ns": card["ns"],
            "pairs": card["steps"] * card["settings"]["batch_size"],
            "calls": model.propagator.n_calls,
        }
        measure(options, name, model, facts)


def minutes_of(bundle: Path) -> float:
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
    row = options.out / f"{name}.row.json"
    same = {"total_us": options.total_us, "seed": options.seed, "measured_lags_ps": list(LAGS)}
    if row.exists():
        known = json.loads(row.read_text())
        if all(known.get(key) == value for key, value in same.items()):
            return
    print(f"measuring {name}", flush=True)
    settings = ValidateSettings(lags=LAGS, total_us=options.total_us, seed=options.seed)
    report = options.out / f"report-{name}"
    result = validate(model, options.reference, report, settings, force=True)
    keys = (
        "jsd_phi_psi_bits",
        "populations",
        "implied_timescales_ps",
        "mfpt_ps",
        "mfpt_msm_lag_ps",
        "gate_failure_fraction",
        "chirality_flip_fraction",
        "solute_energy_excess_kT",
    )
    entries = {lag: {key: entry[key] for key in keys} for lag, entry in result["lags"].items()}
    speed = jumps_per_second(model)
    content = {"name": name, **facts, **same, "jumps_per_second": speed, "lags": entries}
    row.write_text(json.dumps(content, indent=1) + "\n")


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


def table(options: argparse.Namespace) -> None:
    rows = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.row.json"))]
    (options.out / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n")
    for calls_only in (True, False):
        some = [row for row in rows if row["name"].startswith("calls-") == calls_only]
        if some:
            print_table(some)


def print_table(rows: list[dict[str, Any]]) -> None:
    names = ("lag", "JSD (bits)", "alphaR", "phi>0", "t2 (ps)", "t3 (ps)", "gates", "energy (kT)")
    trained = "pairs" in rows[0]
    about = ("variant", "data (ns)", "pairs seen", "calls") if trained else ("calls",)
    print("| " + " | ".join((*about, *names)) + " | jumps/s |")
    print("|---" * (len(about) + len(names) + 1) + "|")
    for row in rows:
        for number, (lag, entry) in enumerate(row["lags"].items()):
            times = entry["implied_timescales_ps"]
            near = times[min(times, key=lambda key: abs(float(key) - max(50.0, float(lag))))]
            first = [str(row["calls"])]
            if trained:
                pairs = f"{row['pairs'] / 1e6:.2f} million"
                first = [row["name"], f"{row['ns']:.0f}", pairs, *first]
            if number > 0:
                first = [""] * len(first)
            cells = [
                *first,
                f"{lag} ps",
                both(entry["jsd_phi_psi_bits"], 4),
                both(entry["populations"]["alphaR"], 3),
                both(entry["populations"]["phi>0"], 4),
                both({k: (near[k] or [None])[0] for k in ("value", "error")}, 0),
                both({k: (near[k] or [None] * 2)[1] for k in ("value", "error")}, 0),
                f"{entry['gate_failure_fraction']['value']:.2g}",
                both(entry["solute_energy_excess_kT"], 2),
                f"{row['jumps_per_second']:.0f}" if number == 0 else "",
            ]
            print("| " + " | ".join(cells) + " |")
    print()


def both(figure: dict[str, Any] | None, digits: int) -> str:
    """Return a value and its error as text."""
    if figure is None or figure.get("value") is None:
        return "-"
    error = figure.get("error")
    return f"{figure['value']:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")


if __name__ == "__main__":
    main()
