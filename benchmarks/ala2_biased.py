"""Water MD of alanine dipeptide under an adaptive bias: how likely phi > 0 is.

    python benchmarks/ala2_biased.py FOLDER --ns 10 --dataset biased.h5

Transitions to phi > 0 are so rare that 50 ns of plain MD would not tell its share. This is one run
of GROMACS under the accelerated weight histogram method, which makes (phi, psi) nearly flat: its
dynamics mean nothing, its free energy says how likely each region is. Box, topology and the
comparison of energies are those of ``openmm-sd generate --engine gromacs``; the data set holds the
frames after the burn-in with their weights, and ``openmm-sd train`` takes it beside others. Stopped
or killed, the same command goes on; a larger ``--ns`` prolongs the run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from openmm_sd import ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.generate import GenerateSettings, slow_torsions
from openmm_sd.generate.gromacs import Gromacs, find_gromacs, make_start, provenance
from openmm_sd.generate.gromacs.mdp import dynamics
from openmm_sd.generate.start import read_solute

import mdtraj  # isort: skip
from openmm import app, unit  # isort: skip

#: Beginning of the run, ps, in which the bias is found; left out.
BURN_IN = 500.0
#: An adaptive bias along phi and psi.
BIAS: dict[str, object] = {
    "nstenergy": 50000,
    "pull": "yes",
    "pull-ngroups": 5,
    **{f"pull-group{k + 1}-name": f"Torsion{k + 1}" for k in range(5)},
    "pull-ncoords": 2,
    "pull-nstxout": 0,
    "pull-nstfout": 0,
    "pull-coord1-groups": "1 2 2 3 3 4",
    "pull-coord2-groups": "2 3 3 4 4 5",
    "awh": "yes",
    "awh-potential": "convolved",
    "awh-nstout": 50000,
    "awh-nbias": 1,
    "awh1-ndim": 2,
    "awh1-error-init": 8,
    "awh1-growth": "exp-linear",
    "awh1-target": "cutoff",
    "awh1-target-cutoff": 45,
}
for _k in (1, 2):
    BIAS |= {
        f"pull-coord{_k}-geometry": "dihedral",
        f"pull-coord{_k}-type": "external-potential",
        f"pull-coord{_k}-potential-provider": "AWH",
        f"awh1-dim{_k}-coord-index": _k,
        f"awh1-dim{_k}-start": -180,
        f"awh1-dim{_k}-end": 180,
        f"awh1-dim{_k}-force-constant": 400,
        f"awh1-dim{_k}-diffusion": 80,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gmx", help="program of GROMACS")
    parser.add_argument("--waters", type=int, default=400)
    parser.add_argument("--ns", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dataset", type=Path, required=True)
    options = parser.parse_args()
    program = find_gromacs(options.gmx)
    settings = GenerateSettings(engine="gromacs", waters=options.waters, seed=options.seed)
    molecule = ScoreModel.load("ala2-water").molecules[0]
    torsions = slow_torsions(molecule)
    options.folder.mkdir(parents=True, exist_ok=True)
    solute, folder = options.folder / "solute.pdb", options.folder / "gromacs"
    if not (folder / "biased.tpr").exists():
        with open(solute, "w") as file:
            app.PDBFile.writeFile(
                molecule.to_topology(), np.asarray(molecule.positions) * unit.nanometer, file
            )
        topology, positions = read_solute(solute, settings)
        make_start(
            topology, positions, molecule, settings, program, 1, folder, lambda *text: print(*text)
        )
        groups = [*torsions[0], torsions[1][3]]
        text = "".join(f"[ Torsion{k + 1} ]\n{atom + 1}\n" for k, atom in enumerate(groups))
        with open(folder / "index.ndx", "a") as file:
            file.write(text)
        mdp = dynamics(settings, options.seed, -1, every=settings.stride)
        bias = BIAS | {"awh-seed": options.seed}
        program.preprocess(folder, "biased", mdp | bias, "start.gro", "system.top")
    steps = settings.steps(1000.0 * options.ns)
    going_on = ("-cpi", "biased.cpt") if (folder / "biased.cpt").exists() else ()
    until = f"{steps * settings.step_fs / 1000.0:.3f}"
    files = ("-s", "biased.tpr", "-o", "longer.tpr")
    program.command(folder, "convert-tpr", *files, "-until", until)
    (folder / "longer.tpr").replace(folder / "biased.tpr")
    program.simulate(folder, "biased", "-cpt", "3", *going_on)
    collect(program, folder, solute, torsions, settings, options.dataset)


def collect(
    program: Gromacs,
    folder: Path,
    solute: Path,
    torsions: list[tuple[int, int, int, int]],
    settings: GenerateSettings,
    dataset: Path,
) -> None:
    """Write the data set: frames after the burn-in, with their weights."""
    cut, weights = folder / "biased-cut.xtc", folder / "weights.npy"
    np.save(weights, log_weights(program, folder, solute, torsions, cut))
    facts = {
        "temperature": settings.temperature_K,
        "friction": settings.friction_per_ps,
        "step-fs": settings.step_fs,
        "hydrogen-mass": settings.hydrogen_mass_amu,
        "cutoff": settings.cutoff_nm,
        "water": settings.water_model,
        "constraints": "HBonds",
        "integrator": "sd (leap-frog)",
        "engine": provenance(folder)["engine"],
        "name": "ACE-ALA-NME",
    }
    command = [sys.executable, "-m", "openmm_sd", "import", str(cut), f"--log-weights={weights}"]
    command += [f"--{key}={value}" for key, value in facts.items()]
    command += [f"--force-field={name}" for name in settings.force_field]
    dataset.unlink(missing_ok=True)
    subprocess.run([*command, f"--topology={solute}", f"--output={dataset}"], check=True)


def log_weights(
    program: Gromacs,
    folder: Path,
    solute: Path,
    torsions: list[tuple[int, int, int, int]],
    cut: Path,
) -> np.ndarray:
    """Return the logarithmic weight of each frame after the burn-in, and write those frames.

    Frames are weighted so that each cell of the grid has the weight of its free energy: what counts
    is the free energy at the end of the run, not the bias as it was when a frame was made.
    """
    for old in folder.glob("pmf*.xvg"):
        old.unlink()
    files = ("-f", "biased.edr", "-s", "biased.tpr", "-o", "pmf.xvg")
    program.command(folder, "awh", *files, "-kt")
    found = folder.glob("pmf*.xvg")
    last = max(found, key=lambda path: float(re.findall(r"_t([\d.]+)\.xvg", path.name)[0]))
    table = [line.split()[:3] for line in last.read_text().splitlines() if line[:1] not in "#@"]
    grid = np.array([row for row in table if len(row) == 3], dtype=float)
    edges = np.unique(grid[:, 0])
    size = edges[1] - edges[0]
    # Where the free energy is not known there is nothing to speak of.
    energy = np.full((len(edges), len(edges)), 100.0)

    def cell(degrees: np.ndarray) -> np.ndarray:
        return np.rint((degrees + 180.0) / size).astype(int) % len(edges)

    energy[cell(grid[:, 0]), cell(grid[:, 1])] = np.minimum(grid[:, 2], 100.0)
    frames = mdtraj.load(str(folder / "biased.xtc"), top=str(solute))
    frames = frames[frames.time > BURN_IN].make_molecules_whole()
    frames.save_xtc(str(cut))
    # Twice as coarse: every cell that matters then holds frames.
    merged = np.exp(-energy)
    for axis in (0, 1):
        merged = np.add.reduceat(merged, np.arange(0, len(edges), 2), axis=axis)
    energy = -np.log(merged)
    place = tuple(cell(np.rad2deg(dihedral(frames.xyz, list(t)))) // 2 for t in torsions)
    counts = np.zeros_like(energy)
    np.add.at(counts, place, 1)
    weights = -energy[place] - np.log(counts[place])
    # Runs that each cover everything count by their lengths.
    length = float(frames.time[-1] - frames.time[0])
    return np.asarray(weights - np.logaddexp.reduce(weights) + np.log(length))


if __name__ == "__main__":
    main()
