"""Train a model on many molecules, and judge it by one-step laws and populations against MD.

python benchmarks/peptide_model.py train OUTPUT.pt DATA.h5 ... [--minutes M]
python benchmarks/peptide_model.py judge OUTPUT.pt DATA.h5 ...
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch
from openmm import app
from shared import Command, option, run_command

from openmm_sd.data.dataset import read_dataset
from openmm_sd.molecule.molecule import Molecule
from openmm_sd.molecule.terms import ForceFieldTerms
from openmm_sd.propagator.internal.transferable import TransferableDiffusion, turn_kinds
from openmm_sd.propagator.internal.tree import InternalTree
from openmm_sd.system.force_field import make_system
from openmm_sd.system.solute import force_field_terms
from openmm_sd.train.data import TrainingData
from openmm_sd.train.settings import StageSettings, TrainSettings
from openmm_sd.train.together import Together
from openmm_sd.train.trainer import Part, train

LAGS = 2.0, 100.0
NODES = 12


def terms_of(molecule: Molecule, files: list[str]) -> ForceFieldTerms:
    system = make_system(
        files,
        molecule.to_topology(),
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        flexibleConstraints=True,
    )
    return force_field_terms(system, range(molecule.n_atoms))


def taught(paths: list[str], seconds: float) -> list[TrainingData]:
    settings = StageSettings(
        lag_min_ps=LAGS[0],
        lag_max_ps=LAGS[1],
        compose_from_ps=None,
        held_out=0.0,
        training=TrainSettings(minutes=1.0),
    )
    found = []
    for path in paths:
        began = time.monotonic()
        found.append(TrainingData.of(read_dataset(path), settings, "cpu", lambda *_: None))
        print(path, len(found[-1].pairs), f"{time.monotonic() - began:.1f} s", flush=True)
    return found


def network_for(data: TrainingData, scales: dict[str, list[float]], **sizes: int):
    files = data.dataset.provenance["force_field"]
    return TransferableDiffusion.for_molecule(
        data.molecule,
        terms=terms_of(data.molecule, files),
        turn_scales=scales,
        lag_min_ps=LAGS[0],
        lag_max_ps=LAGS[1],
        n_lag_nodes=NODES,
        **sizes,
    )


def scales_of(members: list[TrainingData], networks: list[TransferableDiffusion]):
    squares: dict[str, list[np.ndarray]] = {}
    for data, network in zip(members, networks, strict=True):
        generator = torch.Generator().manual_seed(1)
        rows = []
        for lag in network.lag_nodes():
            frame, later, _ = data.pairs.draw(2048, lag, lag, generator)
            rows.append(network.measure_scale(frame, later).numpy() ** 2)
        table = np.array(rows)
        tree = InternalTree(
            network.n_atoms,
            tuple(network.hyperparameters["root"]),
            [tuple(r) for r in network.hyperparameters["tree"]],
        )
        for k, keys in enumerate(turn_kinds(data.molecule, tree, network.turning.tolist())):
            for key in keys:
                squares.setdefault(key, []).append(table[:, k])
    return {k: np.sqrt(np.mean(v, 0)).clip(0.03).tolist() for k, v in squares.items()}


def train_model(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    members = taught(options.data, 0)
    plain = [network_for(data, {}) for data in members]
    scales = scales_of(members, plain)
    torch.manual_seed(1)
    sizes = {"width": options.width, "depth": options.depth}
    networks = [network_for(data, scales, **sizes) for data in members]
    if options.init:
        networks[0].load_weights(torch.load(options.init)["weights"])
    parts = [
        Part(network, data.pairs, None, float(network.n_units) ** 0.5)
        for network, data in zip(networks, members, strict=True)
    ]
    settings = TrainSettings(
        minutes=options.minutes, batch_size=options.batch, learning_rate=options.rate
    )
    task = Together(parts)
    record = train([task], settings, checkpoint=options.output + ".checkpoint")
    content = {
        "weights": task.model.member(0).weights(),
        "scales": scales,
        "sizes": sizes,
        "history": record.history,
    }
    torch.save(content, options.output)


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
            },
        )
    )
