"""Water MD of alanine dipeptide with GROMACS: the data that ``ala2-water`` is trained on.

    python benchmarks/ala2_water_md.py prepare --out DIR
    python benchmarks/ala2_water_md.py run --out DIR --kind plain --first 0 --last 1 &
    python benchmarks/ala2_water_md.py run --out DIR --kind barrier --first 0 --last 300 &
    python benchmarks/ala2_water_md.py collect --out DIR --dataset ala2-water.h5

``openmm-sd generate`` makes the same kind of data with nothing but OpenMM. This script is here
because GROMACS, compiled for the machine (``-DGMX_SIMD=AVX2_256``), makes several times as much of
it on CPUs. The topology is OpenMM's own System, written out by ParmEd (``pip install parmed``);
`prepare` compares the energies of one frame term by term and stops if they differ.

Force field and settings are those of the published reference data (amber99sbildn, tip3p, PME, 0.9
nm, constrained X-H bonds, 300 K, friction 1/ps) but for the time step, 4 fs with solute hydrogens
of 3 amu, and for the box: with ``--waters 380`` a rhombic dodecahedron at the same density of water
as the reference's cube with 651. Runs may be killed and started again: finished ones are skipped,
plain ones go on from their checkpoint.

Kinds of runs: ``plain``, without end; ``grid``, 30 ps from starts spread over all of (phi, psi);
``barrier``, 6 ps from starts along the barriers of phi; ``right``, 1 ns from phi > 0. Starts are
pulled to their torsions with a restraint, relaxed, and released with fresh velocities. ``awh`` is
one run without end under an adaptive bias that makes (phi, psi) nearly flat: its dynamics mean
nothing, its free energy says how likely phi > 0 is, which 50 ns of plain MD would not tell.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from openmm_sd import ScoreModel
from openmm_sd.analysis import dihedral

import mdtraj  # isort: skip
import openmm  # isort: skip
from openmm import app, unit  # isort: skip

#: Edge of the reference's cube (nm) with 651 waters, and the solute's volume in it (nm^3).
REFERENCE_EDGE, REFERENCE_WATERS, SOLUTE_VOLUME = 2.7222, 651, 0.21
#: Atoms of phi and psi, counted from 1 as GROMACS does.
PHI, PSI = (5, 7, 9, 15), (7, 9, 15, 17)
FORCE_FIELD = ("amber99sbildn.xml", "tip3p.xml")
#: Relative difference of an energy term that is put down to the way it is computed.
SAME = 2e-4

SETTINGS = {
    "integrator": "sd",
    "dt": 0.004,
    "nsteps": -1,
    "tc-grps": "System",
    "tau-t": 1.0,
    "ref-t": 300,
    "cutoff-scheme": "Verlet",
    "coulombtype": "PME",
    "rcoulomb": 0.9,
    "rvdw": 0.9,
    "fourierspacing": 0.115,
    "constraints": "h-bonds",
    "nstcomm": 100,
    "nstlist": 20,
    "nstenergy": 0,
    "nstlog": 0,
    "nstxout-compressed": 50,
    "compressed-x-grps": "Solute",
    "compressed-x-precision": 10000,
    "gen-vel": "yes",
    "gen-temp": 300,
}
#: Accelerated weight histogram method: an adaptive bias along phi and psi.
BIAS = {
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
#: Beginning of the biased run, ps, in which the bias is found; left out.
BIAS_BURN_IN = 500.0
SINGLE_POINT = {
    "integrator": "md",
    "dt": 0.001,
    "nsteps": 0,
    "cutoff-scheme": "Verlet",
    "coulombtype": "PME",
    "rcoulomb": 0.9,
    "rvdw": 0.9,
    "vdw-modifier": "None",
    "pme-order": 6,
    "fourierspacing": 0.06,
    "ewald-rtol": 1e-6,
    "nstenergy": 1,
    "continuation": "yes",
    "constraints": "none",
    "define": "-DFLEXIBLE",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("prepare", "run", "collect"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--gmx", default="gmx", help="GROMACS 2022 or newer")
    parser.add_argument("--waters", type=int, default=380, help="651 makes the reference's cube")
    parser.add_argument(
        "--kind", choices=("plain", "awh", "grid", "barrier", "right"), default="plain"
    )
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=1, help="one past the last")
    parser.add_argument("--dataset", type=Path)
    options = parser.parse_args()
    # Inputs are named relative to the directory that gmx runs in.
    options.out = options.out.resolve()
    {"prepare": prepare, "run": run, "collect": collect}[options.what](options)


def gmx(options: argparse.Namespace, log: Path, *arguments: str) -> None:
    environment = {**os.environ, "GMX_MAXBACKUP": "-1"}
    with open(log, "a") as file:
        subprocess.run(
            [options.gmx, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=options.out,
            env=environment,
            check=True,
        )


def write_settings(path: Path, settings: dict) -> None:
    path.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))


def prepare(options: argparse.Namespace) -> None:
    """Box, topology with and without heavy hydrogens, and the comparison of energies."""
    import parmed

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    molecule = ScoreModel.load("ala2-implicit").molecules[0]
    topology = molecule.to_topology()
    topology.setPeriodicBoxVectors(None)
    field = app.ForceField(*FORCE_FIELD)
    modeller = app.Modeller(topology, np.asarray(molecule.positions) * unit.nanometer)
    shape = "cube" if options.waters == REFERENCE_WATERS else "dodecahedron"
    modeller.addSolvent(field, numAdded=options.waters, model="tip3p", boxShape=shape)
    vectors = modeller.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)
    box = np.array([list(vector) for vector in vectors])
    per_water = (REFERENCE_EDGE**3 - SOLUTE_VOLUME) / REFERENCE_WATERS
    volume = options.waters * per_water + SOLUTE_VOLUME
    wanted = box * (volume / np.linalg.det(box)) ** (1 / 3)
    x = np.array(modeller.positions.value_in_unit(unit.nanometer))
    n = molecule.n_atoms
    x -= x[:n].mean(0)
    for oxygen in range(n, len(x), 3):  # waters move rigidly with the box
        place = x[oxygen] @ np.linalg.inv(box)
        x[oxygen : oxygen + 3] += (place - np.round(place)) @ wanted - x[oxygen]
    x += wanted.sum(0) / 2
    modeller.topology.setPeriodicBoxVectors(wanted * unit.nanometer)
    pme = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9 * unit.nanometer}
    system = field.createSystem(modeller.topology, constraints=app.HBonds, **pme)
    integrator = openmm.LangevinMiddleIntegrator(300, 5, 0.001)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(x)
    openmm.LocalEnergyMinimizer.minimize(context, 10, 500)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(3000)
    x = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)

    flexible = field.createSystem(modeller.topology, constraints=None, rigidWater=False, **pme)
    structure = parmed.openmm.load_topology(modeller.topology, flexible, xyz=x * unit.nanometer)
    structure.save(str(out / "system.top"), overwrite=True)
    structure.save(str(out / "rounded.gro"), overwrite=True)
    lines = (out / "rounded.gro").read_text().splitlines()
    exact = [*lines[:2]]
    exact += [lines[2 + k][:20] + "".join(f"{v:14.9f}" for v in x[k]) for k in range(len(x))]
    order = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    exact.append(" ".join(f"{wanted[i, j]:.9f}" for i, j in order))
    (out / "start.gro").write_text("\n".join(exact) + "\n")
    (out / "heavy.top").write_text(heavy_hydrogens((out / "system.top").read_text()))
    rows = [" ".join(map(str, range(k, min(k + 15, len(x) + 1)))) for k in range(1, len(x) + 1, 15)]
    solute = " ".join(map(str, range(1, n + 1)))
    index = "[ System ]\n" + "\n".join(rows) + f"\n[ Solute ]\n{solute}\n"
    for k, atom in enumerate((*PHI, PSI[-1])):
        index += f"[ Torsion{k + 1} ]\n{atom}\n"
    (out / "index.ndx").write_text(index)
    with open(out / "solute.pdb", "w") as file:
        app.PDBFile.writeFile(topology, x[:n] * unit.nanometer, file)
    compare(options, flexible, x)


def compare(options: argparse.Namespace, system: openmm.System, x: np.ndarray) -> None:
    """Stop unless OpenMM and GROMACS agree on the energy of the first frame, term by term."""
    for index, force in enumerate(system.getForces()):
        force.setForceGroup(index)
        if isinstance(force, openmm.NonbondedForce):
            force.setUseDispersionCorrection(False)
            force.setEwaldErrorTolerance(1e-5)
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
    context.setPositions(x)
    ours = {}
    for index, force in enumerate(system.getForces()):
        state = context.getState(energy=True, groups={index})
        ours[force.getName()] = state.getPotentialEnergy()._value
    out = options.out
    write_settings(out / "point.mdp", SINGLE_POINT)
    log = out / "point.out"
    common = ("-c", "start.gro", "-p", "system.top", "-maxwarn", "5")
    gmx(options, log, "grompp", "-f", "point.mdp", *common, "-o", "point.tpr")
    gmx(options, log, "mdrun", "-s", "point.tpr", "-deffnm", "point", "-nt", "1")
    text = (out / "point.log").read_text()
    block = text[text.index("Energies (kJ/mol)") :].splitlines()[1:7]
    theirs: dict[str, float] = {}
    for names, values in zip(block[::2], block[1::2], strict=True):
        split = [names[k : k + 15].strip() for k in range(0, len(names), 15)]
        theirs.update(zip(split, map(float, values.split()), strict=False))
    nonbonded = ("LJ-14", "Coulomb-14", "LJ (SR)", "Coulomb (SR)", "Coul. recip.")
    terms = {
        "bonds": (ours["HarmonicBondForce"], theirs["Bond"]),
        "angles": (ours["HarmonicAngleForce"], theirs["Angle"]),
        "torsions": (
            ours["PeriodicTorsionForce"],
            theirs["Proper Dih."] + theirs.get("Per. Imp. Dih.", 0.0),
        ),
        "nonbonded": (ours["NonbondedForce"], sum(theirs[name] for name in nonbonded)),
    }
    for name, (one, other) in terms.items():
        print(f"{name:<10} OpenMM {one:12.3f}  GROMACS {other:12.3f} kJ/mol")
        if abs(one - other) > SAME * max(abs(one), 1.0):
            sys.exit(f"{name} differ: the topology is not the same")


def heavy_hydrogens(topology: str, mass: float = 3.0) -> str:
    """Give the hydrogens of the first molecule type a mass taken from their heavy atoms."""
    lines = topology.splitlines()
    starts = [k for k, line in enumerate(lines) if line.strip() == "[ moleculetype ]"]
    section, atoms, bonds = "", {}, []
    for k in range(starts[0], starts[1]):
        line = lines[k].split(";")[0].strip()
        if line.startswith("["):
            section = line
        elif line and section == "[ atoms ]":
            atoms[int(line.split()[0])] = (k, line.split()[:8])
        elif line and section == "[ bonds ]":
            bonds.append([int(v) for v in line.split()[:2]])
    masses = {atom: float(fields[7]) for atom, (_, fields) in atoms.items()}
    for pair in bonds:
        light = [a for a in pair if atoms[a][1][4].startswith("H")]
        if len(light) == 1:
            other = pair[0] if pair[1] == light[0] else pair[1]
            masses[other] -= mass - masses[light[0]]
            masses[light[0]] = mass
    for atom, (k, fields) in atoms.items():
        lines[k] = "  ".join([*fields[:7], f"{masses[atom]:.6f}"])
    return "\n".join(lines) + "\n"


def start_of(kind: str, index: int) -> tuple[float, float]:
    """Return the (phi, psi) in degrees at which a run begins."""
    steps = ((np.sqrt(5.0) - 1.0) / 2.0, 0.7548776662466927)
    shift = (0.13, 0.57) if kind == "grid" else (0.31, 0.77)
    u, v = ((index * step + move) % 1.0 for step, move in zip(steps, shift, strict=True))
    if kind == "grid":
        return 360.0 * u - 180.0, 360.0 * v - 180.0
    if kind == "barrier":  # phi from -45 to 30 and from 95 to 175
        phi = -45.0 + 155.0 * u
        return (phi if phi < 30.0 else phi + 65.0), 360.0 * v - 180.0
    centre = (57.0, 40.0) if index % 4 != 3 else (65.0, -60.0)
    phi, psi = np.random.default_rng(100 + index).normal(centre, 8.0)
    return float(phi), float(psi)


def run(options: argparse.Namespace) -> None:
    for index in range(options.first, options.last):
        began = time.monotonic()
        if options.kind in ("plain", "awh"):
            endless(options, options.kind, index)
        else:
            seeded(options, options.kind, index)
        print(f"{options.kind} {index}: {time.monotonic() - began:.0f} s", flush=True)


def single(name: str) -> tuple[str, ...]:
    return ("mdrun", "-s", f"{name}.tpr", "-deffnm", name, "-ntmpi", "1", "-ntomp", "1")


def endless(options: argparse.Namespace, kind: str, index: int) -> None:
    name, out = f"{kind}{index:03d}", options.out
    log = out / f"{name}.out"
    if not (out / f"{name}.tpr").exists():
        seeds = {"ld-seed": 9000 + index, "gen-seed": 9000 + index}
        bias = BIAS | {"awh-seed": 9000 + index} if kind == "awh" else {}
        settings = SETTINGS | {"tau-t": 1.0 / options.friction} | seeds | bias
        preprocess(options, name, "start.gro", "heavy.top", settings)
    going_on = ("-cpi", f"{name}.cpt") if (out / f"{name}.cpt").exists() else ()
    gmx(options, log, *single(name), "-pin", "off", "-cpt", "3", *going_on)


def seeded(options: argparse.Namespace, kind: str, index: int) -> None:
    name, out = f"{kind}{index:03d}", options.out
    if (out / f"{name}.done").exists():
        return
    phi, psi = start_of(kind, index)
    length = {"grid": 30.0, "barrier": 6.0, "right": 1000.0}[kind]
    seed = {"grid": 10_000, "barrier": 200_000, "right": 50_000}[kind] + 10 * index
    first, second = (1000, 1000) if kind == "barrier" else (1500, 2000)
    start = "start.gro"
    for stage, (strength, steps, dt) in enumerate(((30, first, 0.001), (300, second, 0.002))):
        part = f"{name}_pull{stage}"
        restrain(out / "heavy.top", out / f"{part}.top", (phi, psi), strength)
        settings = SETTINGS | {
            "dt": dt,
            "nsteps": steps,
            "nstxout-compressed": 0,
            "ld-seed": seed + stage,
            "gen-seed": seed + stage,
            "gen-vel": "yes" if stage == 0 else "no",
            "continuation": "no" if stage == 0 else "yes",
        }
        preprocess(options, part, start, f"{part}.top", settings)
        gmx(options, out / f"{part}.out", *single(part), "-c", f"{part}.g96")
        start = f"{part}.g96"
    steps = round(length / float(SETTINGS["dt"]))
    seeds = {"ld-seed": seed + 5, "gen-seed": seed + 5}
    settings = SETTINGS | {"tau-t": 1.0 / options.friction, "nsteps": steps} | seeds
    preprocess(options, name, start, "heavy.top", settings)
    gmx(options, out / f"{name}.out", *single(name), "-pin", "off")
    (out / f"{name}.done").write_text(f"{phi:.3f} {psi:.3f}\n")
    for file in out.glob(f"{name}_pull*"):
        file.unlink()


def preprocess(
    options: argparse.Namespace, name: str, start: str, topology: str, settings: dict
) -> None:
    write_settings(options.out / f"{name}.mdp", settings)
    arguments = ("-c", start, "-p", topology, "-n", "index.ndx", "-maxwarn", "5")
    log = options.out / f"{name}.out"
    gmx(options, log, "grompp", "-f", f"{name}.mdp", *arguments, "-o", f"{name}.tpr")


def restrain(topology: Path, target: Path, goal: tuple[float, float], strength: float) -> None:
    """Write a topology whose first molecule type has its torsions restrained (kJ/mol/rad^2)."""
    head, solute, rest = re.split(r"\[ moleculetype \]", topology.read_text(), maxsplit=2)
    lines = "".join(
        " ".join(map(str, atoms)) + f" 1 {angle:.3f} 0 {strength}\n"
        for atoms, angle in zip((PHI, PSI), goal, strict=True)
    )
    mark = "[ moleculetype ]"
    target.write_text(f"{head}{mark}{solute}\n[ dihedral_restraints ]\n{lines}\n{mark}{rest}")


def collect(options: argparse.Namespace) -> None:
    """Put the runs into a data set; plain runs as far as they are."""
    if options.dataset is None:
        sys.exit("collect needs --dataset")
    version = subprocess.run([options.gmx, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"GROMACS version:\s*(\S+)", version.stdout)
    facts = {
        "temperature": 300,
        "friction": friction_of(options.out),
        "step-fs": 4,
        "hydrogen-mass": 3,
        "cutoff": 0.9,
        "water": "tip3p",
        "constraints": "HBonds",
        "integrator": "sd (leap-frog)",
        "engine": f"GROMACS {found.group(1) if found else ''}".strip(),
        "name": "ACE-ALA-NME",
    }
    command = [sys.executable, "-m", "openmm_sd", "import"]
    common = [f"--{key}={value}" for key, value in facts.items()]
    common += [f"--force-field={name}" for name in FORCE_FIELD]
    common += [f"--topology={options.out / 'solute.pdb'}", f"--output={options.dataset}"]
    options.dataset.unlink(missing_ok=True)
    long = sorted(options.out.glob("plain*.xtc"))
    short = sorted(path.with_suffix(".xtc") for path in options.out.glob("*.done"))
    batches = [(long, ["--kind=plain"]), (short, ["--kind=seeded"])]
    for path in sorted(options.out.glob("awh*.xtc")):
        weights = path.with_suffix(".weights.npy")
        cut = options.out / f"cut-{path.name}"
        np.save(weights, log_weights(options, path, cut))
        batches.append(([cut], [f"--log-weights={weights}"]))
    for files, extra in batches:
        if files:
            more = ["--append"] if options.dataset.exists() else []
            subprocess.run([*command, *map(str, files), *common, *extra, *more], check=True)


def friction_of(out: Path) -> float:
    """Return the friction that all runs were made with, 1/ps."""
    times = set()
    for path in out.glob("*.xtc"):
        settings = path.with_suffix(".mdp")
        if settings.exists():
            found = re.search(r"^tau-t = (\S+)", settings.read_text(), re.MULTILINE)
            times.add(float(found.group(1)) if found else 0.0)
    if len(times) != 1:
        sys.exit(f"runs of different friction: tau-t = {sorted(times)}")
    return 1.0 / times.pop()


def log_weights(options: argparse.Namespace, trajectory: Path, cut: Path) -> np.ndarray:
    """Return the logarithmic weight of each frame of a biased run after its burn-in.

    Frames are weighted so that each cell of the grid has the weight of its free energy: what counts
    is the free energy at the end of the run, not the bias as it was when a frame was made.
    """
    name = trajectory.stem
    for old in options.out.glob(f"{name}-pmf*.xvg"):
        old.unlink()
    arguments = ("-f", f"{name}.edr", "-s", f"{name}.tpr", "-o", f"{name}-pmf.xvg", "-kt")
    gmx(options, options.out / f"{name}.pmf.out", "awh", *arguments)
    found = options.out.glob(f"{name}-pmf*.xvg")
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
    frames = mdtraj.load(str(trajectory), top=str(options.out / "solute.pdb"))
    frames = frames[frames.time > BIAS_BURN_IN].make_molecules_whole()
    frames.save_xtc(str(cut))
    # Twice as coarse: every cell that matters then holds frames.
    merged = np.exp(-energy)
    for axis in (0, 1):
        merged = np.add.reduceat(merged, np.arange(0, len(edges), 2), axis=axis)
    energy = -np.log(merged)
    place = [
        cell(np.rad2deg(dihedral(frames.xyz, [atom - 1 for atom in atoms]))) // 2
        for atoms in (PHI, PSI)
    ]
    counts = np.zeros_like(energy)
    np.add.at(counts, tuple(place), 1)
    weights = -energy[tuple(place)] - np.log(counts[tuple(place)])
    # Runs that each cover everything count by their lengths.
    length = float(frames.time[-1] - frames.time[0])
    return weights - np.logaddexp.reduce(weights) + np.log(length)


if __name__ == "__main__":
    main()
