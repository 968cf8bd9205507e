"""Whether dynamics of a molecule that is its own mirror image treat both hands alike.

    python benchmarks/own_molecule.py gly.safetensors gly-md.h5 chains run

ACE-GLY-NME has no stereocentre, so (phi, psi) and (-phi, -psi) are equally likely in the true
ensemble. Prints, for each source, the share of phi > 0 (exactly 0.5) and the difference between the
shares of each pair of opposite quadrants (exactly 0), with errors over independent parts. A
source is a data set or trajectory, the directory of a rollout, or that of a mixed run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis.sample import Sample
from openmm_sd.data.reference import read_reference
from openmm_sd.molecule.torsions import backbone_torsions
from openmm_sd.validate import ValidateSettings
from openmm_sd.validate.sampling import read_chains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="bundle of the molecule")
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    options = parser.parse_args()
    molecule = ScoreModel.load(options.model).molecules[0]
    pairs = backbone_torsions(molecule)
    if len(pairs) != 1:
        parser.error(f"{molecule.name} has {len(pairs)} pairs of phi and psi, wanted is one")
    for source in options.sources:
        sample = angles(source, molecule, list(pairs[0]))
        print(f"{source}: {sample.n_frames} frames, {sample.n_groups} parts")
        for name, function in FIGURES.items():
            value, error = mean(sample, function)
            print(f"  {name}: {value:+.4f} +- {error:.4f}")


FIGURES = {
    "share of phi > 0": lambda phi, psi: phi > 0,
    "phi, psi > 0 minus phi, psi < 0": lambda phi, psi: (
        (phi > 0) * (psi > 0) - 1.0 * (phi < 0) * (psi < 0)
    ),
    "phi > 0 > psi minus phi < 0 < psi": lambda phi, psi: (
        (phi > 0) * (psi < 0) - 1.0 * (phi < 0) * (psi > 0)
    ),
}


def angles(source: Path, molecule: Molecule, torsions: list) -> Sample:
    """Return phi and psi of a source, cut into parts."""
    if (source / "rollout.json").is_file():
        return read_chains(source, molecule, ValidateSettings(), torsions).sample()
    if source.is_dir():
        # A frame at the end of every burst: all of them count alike.
        trajectory, topology = source / "trajectory.xtc", source / "topology.pdb"
        return read_reference([trajectory], molecule, topology, 1.0).sample(torsions)
    return read_reference([source], molecule).sample(torsions)


def mean(sample: Sample, function) -> tuple[float, float]:
    """Return a mean over frames with its standard error over parts."""
    parts: list[list[np.ndarray]] = [[] for _ in range(sample.n_groups)]
    for group, frames, _ in sample.pairs():
        parts[group].append(np.asarray(function(frames[:, 0], frames[:, 1]), dtype=float))
    means = np.array([np.concatenate(part).mean() for part in parts])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


if __name__ == "__main__":
    main()
