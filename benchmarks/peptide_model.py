"""Train a model on many molecules, and judge it by one-step laws and populations against MD.

python benchmarks/peptide_model.py train OUTPUT.pt DATA.h5 ... [--minutes M]
python benchmarks/peptide_model.py judge OUTPUT.pt DATA.h5 ...
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import openmm
import torch
from openmm import app
from shared import Command, option, run_command

from openmm_sd.data.dataset import read_dataset
from openmm_sd.generate.peptides import Amides
from openmm_sd.propagator.internal.transferable import TransferableDiffusion
from openmm_sd.system.force_field import make_system
from openmm_sd.train.data import TrainingData
from openmm_sd.train.family import terms_of
from openmm_sd.train.networks import build_transferable
from openmm_sd.train.settings import StageSettings, TrainSettings
from openmm_sd.train.together import Together
from openmm_sd.train.trainer import Part, train

RANGE = {"lag_min_ps": 2.0, "lag_max_ps": 100.0}


def taught(paths: list[str]) -> list[TrainingData]:
    found = []
    for path in paths:
        began = time.monotonic()
        data = read_dataset(path)
        amides = Amides(data.molecule)
        turned = tuple(r.name for r in data.runs if amides.turned(r.positions[-1]))
        settings = StageSettings(
            **RANGE,
            compose_from_ps=None,
            held_out=0.0,
            without=turned,
        )
        found.append(TrainingData.of(data, settings, "cpu", lambda *_: None))
        print(path, len(found[-1].pairs), f"{time.monotonic() - began:.1f} s", flush=True)
    return found


def network_for(data: TrainingData, scales: dict[str, list[float]], **sizes: int):
    return TransferableDiffusion.for_molecule(
        data.molecule,
        terms=terms_of(data.molecule, data.dataset),
        turn_scales=scales,
        **RANGE,
        **sizes,
    )


def train_model(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    members = taught(options.data)
    torch.manual_seed(1)
    sizes = {"width": options.width, "depth": options.depth}
    networks = build_transferable(
        [(data.molecule, data.pairs) for data in members],
        (),
        [terms_of(data.molecule, data.dataset) for data in members],
        300.0,
        {**RANGE, **sizes},
        seed=1,
    )
    if options.init:
        networks[0].load_weights(torch.load(options.init)["weights"])
    parts = [
        Part(network, data.pairs, None, float(network.n_units) ** 0.5)
        for network, data in zip(networks, members, strict=True)
    ]
    settings = TrainSettings(
        minutes=options.minutes,
        batch_size=options.batch,
        learning_rate=options.rate,
        optimizer="muon",
        warmup_steps=100,
    )
    task = Together(parts)
    record = train([task], settings, checkpoint=options.output + ".checkpoint")
    content = {
        "weights": task.model.member(0).weights(),
        "scales": networks[0].hyperparameters["turn_scales"],
        "sizes": sizes,
        "history": record.history,
    }
    torch.save(content, options.output)


def turns(network: TransferableDiffusion, frames: torch.Tensor) -> tuple[np.ndarray, list[str]]:
    """Return the torsions of heavy atoms that turn, (T, M) radians, and their names."""
    z = network.hyperparameters["atomic_numbers"]
    rows = network.rows[network.turning].tolist()
    chosen = [k for k, row in enumerate(rows) if z[row[0]] != 1]
    return network.measure(frames)[1][:, chosen].numpy(), [str(rows[k][:4]) for k in chosen]


def cells(angles: np.ndarray) -> np.ndarray:
    """Return which third of a turn torsions are in, counted from eclipsed."""
    return np.floor(np.mod(angles, 2 * np.pi) / (2 * np.pi / 3)).astype(int).clip(0, 2)


def jsd(a: np.ndarray, b: np.ndarray, bins: int = 36) -> float:
    """Return the Jensen-Shannon divergence, bits, of two samples of two angles."""
    edges = [np.linspace(-np.pi, np.pi, bins + 1)] * 2
    p, q = (np.histogram2d(x[:, 0], x[:, 1], edges)[0] / len(x) for x in (a, b))
    m = 0.5 * (p + q)

    def kl(u: np.ndarray) -> float:
        on = u > 0
        return float((u[on] * np.log2(u[on] / m[on])).sum())

    return 0.5 * kl(p) + 0.5 * kl(q)


def energies(data: TrainingData, frames: np.ndarray) -> np.ndarray:
    """Return the energy of frames in the force field of the data, without water, kT."""
    files = [f for f in data.dataset.provenance["force_field"] if "tip3p" not in f]
    if not any("obc" in f for f in files):
        files.append("amber99_obc.xml")
    system = make_system(files, data.molecule.to_topology(), nonbondedMethod=app.NoCutoff)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    found = []
    for x in frames:
        context.setPositions(np.asarray(x, dtype=np.float64))
        found.append(context.getState(energy=True).getPotentialEnergy()._value)
    return np.array(found) / (0.0083144626 * 300.0)


def judge(options: argparse.Namespace) -> None:
    """Compare one-step laws from MD frames, and populations of chains, with MD."""
    content = torch.load(options.output)
    rng = np.random.default_rng(1)
    for data in taught(options.data):
        network = network_for(data, content["scales"], **content["sizes"]).eval()
        network.load_weights(content["weights"])
        generator = torch.Generator().manual_seed(5)
        print(data.molecule.name)
        every = torch.from_numpy(np.concatenate([run.positions for run in data.kept]))
        for lag in (10.0, 100.0):
            frame, later, _ = data.pairs.draw(options.pairs, lag, lag, generator)
            noise = torch.randn(len(frame), network.noise_size, generator=generator)
            with torch.no_grad():
                drawn = torch.cat(
                    [
                        network(f, torch.full((len(f),), lag), n)
                        for f, n in zip(frame.split(250), noise.split(250), strict=True)
                    ]
                )
            (a, names), (b, _), (c, _) = (turns(network, x) for x in (frame, later, drawn))
            print(
                f"  lag {lag:g} ps: JSD of ends",
                [
                    round(jsd(b[:, :2], c[:, :2], 24), 3),
                    "of two halves of MD",
                    round(jsd(b[::2, :2], b[1::2, :2], 24), 3),
                ],
            )
            for k, name in enumerate(names):
                md, model = (np.cos(x[:, k] - a[:, k]).mean() for x in (b, c))
                hop = [(cells(x[:, k]) != cells(a[:, k])).mean() for x in (b, c)]
                print(f"    {name:18s} cos {md:.3f} {model:.3f}  hops {hop[0]:.4f} {hop[1]:.4f}")
            stiff = [network.measure(x)[0] for x in (later, drawn)]
            ratio = (stiff[1].std(0) / stiff[0].std(0)).log2()
            some = rng.permutation(len(frame))[: options.energies]
            high = [energies(data, x[some].numpy()) for x in (later, drawn)]
            wild = float((high[1] > high[0].max() + 10).mean())
            ends = [np.median(h) for h in high]
            print(
                f"    stiff widths off by {float(ratio.abs().median()):.3f} (median, log2), worst "
                f"{float(ratio.abs().max()):.2f}; energy above MD's {ends[1] - ends[0]:.2f} kT "
                f"(median), {wild:.3f} beyond all of MD"
            )
        if options.steps:
            x = every[torch.from_numpy(rng.permutation(len(every))[:250])]
            kept = []
            with torch.no_grad():
                for step in range(options.steps):
                    noise = torch.randn(len(x), network.noise_size, generator=generator)
                    x = network(x, torch.full((len(x),), 10.0), noise)
                    if step >= options.steps // 3:
                        kept.append(turns(network, x)[0])
            weights = data.markov.frame_weights() if data.markov is not None else None
            md, model = turns(network, every)[0], np.concatenate(kept)
            for k, name in enumerate(names):
                shares = [
                    np.bincount(cells(y[:, k]), weights=w, minlength=3)
                    / (len(y) if w is None else w.sum())
                    for y, w in ((md, weights), (model, None))
                ]
                print(f"    {name:18s} thirds {shares[0].round(3)} {shares[1].round(3)}")


if __name__ == "__main__":
    sys.exit(
        run_command(
            __doc__,
            {
                "train": Command(
                    train_model,
                    [
                        option("output"),
                        option("data", nargs="+"),
                        option("--minutes", type=float, default=10.0),
                        option("--width", type=int, default=128),
                        option("--depth", type=int, default=4),
                        option("--batch", type=int, default=256),
                        option("--rate", type=float, default=1e-3),
                        option("--threads", type=int, default=1),
                        option("--init"),
                    ],
                ),
                "judge": Command(
                    judge,
                    [
                        option("output"),
                        option("data", nargs="+"),
                        option("--pairs", type=int, default=2000),
                        option("--energies", type=int, default=200),
                        option("--steps", type=int, default=0),
                    ],
                ),
            },
        )
    )
