"""Water MD of ethane to octane with GROMACS: transition data of molecules of several sizes.

    python benchmarks/alkanes_water_md.py prepare --out DIR --molecule butane
    python benchmarks/alkanes_water_md.py run --out DIR --molecule butane --last 3 --ps 10000 &
    python benchmarks/alkanes_water_md.py run --out DIR --molecule butane --kind seeded --last 50 &
    python benchmarks/alkanes_water_md.py collect --out DIR --molecule butane --dataset butane.h5

``openmm-sd generate`` makes the same kind of data with nothing but OpenMM; see
``ala2_water_md.py``, whose settings these are (300 K, sd with 1/ps, 4 fs with solute hydrogens of 3
amu, PME, 0.9 nm), for why there is GROMACS here.

The force field is OpenMM's ``charmm36.xml`` with ``charmm36/water.xml``, whose TIP3P has
Lennard-Jones on the hydrogens. As OpenMM makes it, there is neither a switch nor a long-range
correction. Heptane and octane, which the file does not have, get residues of the same atom types in
``alkane.xml``. The topology is written from the forces of OpenMM's System: pair tables, 1-4 pairs
with parameters of their own, Urey-Bradley terms. `prepare` ends with `check`, which compares
energies term by term, and forces, and stops if they differ.

The box is a cube with 300 waters, which leaves 0.8 nm between periodic copies, at its mean size at
1 bar in OpenMM. Every run begins in a conformer of its own: run 0 with all torsions trans, the next
ones in all other combinations of trans, gauche+ and gauche-, in an order drawn once. It is turned
there in the water by restraints, held while the water relaxes, and released with new velocities.
``plain`` runs leave out what comes first (``--warm-up``). Runs may be killed and started again:
finished ones are skipped, others go on from their checkpoint, and a larger ``--ps`` prolongs them.

``--molecule pentane --like butane`` is pentane with the torsion terms that the force field gives
the bond between the CH2 groups of butane. They are butane's own: no other alkane has them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ala2_water_md import (
    SETTINGS,
    SINGLE_POINT,
    friction_of,
    gmx,
    preprocess,
    single,
    write_settings,
)

from openmm_sd.data.dataset import read_dataset, write_dataset
from openmm_sd.generate import ImportSettings, import_trajectories, slow_torsions
from openmm_sd.molecule.molecule import Molecule
from openmm_sd.prepare import PreparedBox, equilibrate, solvate
from openmm_sd.system.solute import torsion_terms

import mdtraj  # isort: skip
import openmm  # isort: skip
from openmm import app, unit  # isort: skip

FORCE_FIELD = ("charmm36.xml", "charmm36/water.xml")
#: Number of carbon atoms and name of the residue; the last two are not in charmm36.xml.
MOLECULES = {
    "ethane": (2, "ETHA"),
    "propane": (3, "PRPA"),
    "butane": (4, "BUTA"),
    "pentane": (5, "PENT"),
    "hexane": (6, "HEXA"),
    "heptane": (7, "HEPT"),
    "octane": (8, "OCTA"),
}
COMPOSED = ("HEPT", "OCTA")
#: nm: cutoff, what the box is wider than twice the cutoff, least distance of periodic copies.
CUTOFF, MARGIN, GAP = 0.9, 0.05, 0.8
#: Volume of a water of this model at 300 K and 1 bar, nm^3, to guess how many a box needs.
PER_WATER = 0.0296
TEMPERATURE, HYDROGEN_MASS, STEP = 300.0, 3.0, 0.004
#: Torsions of conformers, degrees.
TRANS, GAUCHE = 180.0, 65.0
#: Strength (kJ/mol/rad^2), steps and time step (ps) of the restraints that make a conformer.
STAGES = ((30.0, 3000, 0.001), (300.0, 2000, 0.002), (100.0, 2500, 0.004))
#: Default length of runs, ps.
LENGTHS = {"plain": 10_000.0, "seeded": 100.0}
SEEDS = {"plain": 9_000, "seeded": 500_000}
LENNARD_JONES = "acoef(type1, type2)/r^12 - bcoef(type1, type2)/r^6;"
#: Differences that are rounding: of bonded terms (kJ/mol and share), of others, of forces.
BONDED, NONBONDED, FORCES = (1e-3, 1e-5), 5e-5, 2e-5
#: A shorter trajectory of a run under way holds no two frames for certain.
LEAST_BYTES = 1000
#: Where a molecule type's restraints go in the topology.
MARK = "; restraints\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("prepare", "check", "run", "collect"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--molecule", choices=tuple(MOLECULES), required=True)
    parser.add_argument("--like", choices=tuple(MOLECULES), help="with the inner torsions of this")
    parser.add_argument("--gmx", default="gmx", help="GROMACS 2022 or newer")
    parser.add_argument("--waters", type=int, help="instead of 300, or more for long molecules")
    parser.add_argument("--equilibration", type=float, default=40.0, metavar="PS")
    parser.add_argument("--kind", choices=tuple(LENGTHS), default="plain")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=1, help="one past the last")
    parser.add_argument("--ps", type=float, help="length of each run (plain 10000, seeded 100)")
    parser.add_argument("--spacing", type=float, default=0.5, help="from frame to frame, ps")
    parser.add_argument("--warm-up", type=float, default=100.0, help="of plain runs, ps")
    parser.add_argument("--dataset", type=Path)
    options = parser.parse_args()
    # Inputs are named relative to the directory that gmx runs in.
    options.out = (options.out / named(options)).resolve()
    {"prepare": prepare, "check": check, "run": run, "collect": collect}[options.what](options)


def named(options: argparse.Namespace) -> str:
    """Return the name of directory and molecule."""
    return options.molecule + (f"-like-{options.like}" if options.like else "")


# -- the box -------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> None:
    """Write box, topology and index, and compare the energies."""
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    carbons, residue = MOLECULES[options.molecule]
    topology, x = alkane(carbons, residue)
    files = [*FORCE_FIELD]
    if residue in COMPOSED:
        (out / "alkane.xml").write_text(residue_template(topology, residue))
        files.append(str(out / "alkane.xml"))
    extent = float(np.linalg.norm(x[:, None] - x[None], axis=-1).max())
    edge = max(2 * CUTOFF + MARGIN, extent + GAP)
    waters = options.waters or max(300, math.ceil(edge**3 / PER_WATER))
    box = solvate(
        topology,
        x,
        waters=waters,
        force_field=files,
        cutoff=CUTOFF,
        hydrogen_mass=HYDROGEN_MASS,
        seed=1,
    )
    inner = inner_torsions(options.like) if options.like else {}
    replace_torsions(box.system, topology, inner)
    began = time.monotonic()
    box = mean_box(box, options.equilibration, len(x))
    size = box.box_vectors[0, 0]
    seconds = time.monotonic() - began
    print(f"{waters} waters, cube of {size:.4f} nm, {size - extent:.2f} nm between periodic copies")
    print(f"{seconds:.0f} s of wall time for {options.equilibration:g} ps at constant pressure")
    if size < edge:
        sys.exit(f"the box must be {edge:.3f} nm wide: more --waters")

    system = flexible(box)
    replace_torsions(system, topology, inner)
    (out / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    (out / "system.top").write_text(gromacs_topology(system, box.system, topology, waters))
    labels = [
        f"{(atom.residue.index + 1) % 100000:5d}{atom.residue.name:<5}{atom.name:>5}"
        f"{(atom.index + 1) % 100000:5d}"
        for atom in box.topology.atoms()
    ]
    write_gro(out / "start.gro", labels, box.positions, box.box_vectors)
    count = len(box.positions)
    rows = [range(k, min(k + 15, count + 1)) for k in range(1, count + 1, 15)]
    groups = {"System": rows, "Solute": [range(1, len(x) + 1)]}
    index = "".join(
        f"[ {name} ]\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows)
        for name, rows in groups.items()
    )
    (out / "index.ndx").write_text(index)
    with open(out / "solute.pdb", "w") as file:
        app.PDBFile.writeFile(topology, box.positions[: len(x)] * unit.nanometer, file)
    facts = {
        "force_field": [Path(name).name if name not in FORCE_FIELD else name for name in files],
        "water": "charmm36 tip3p",
        "waters": waters,
        "box_nm": [float(size)] * 3,
        "equilibration_ps": options.equilibration,
        "constraint_lengths_nm": constraints(box.system, topology),
        "versions": {"openmm": openmm.__version__, "mdtraj": mdtraj.__version__},
    }
    (out / "box.json").write_text(json.dumps(facts, indent=1) + "\n")
    check(options)


def alkane(carbons: int, residue: str) -> tuple[app.Topology, np.ndarray]:
    """Return a linear alkane with all torsions trans, nm; each carbon goes before its hydrogens."""
    half = math.radians(112.0) / 2
    along, across = 0.153 * math.sin(half), 0.153 * math.cos(half)
    # One carbon more at each end, where the hydrogens of methyl groups point.
    chain = np.array([[k * along, (k % 2 - 0.5) * across, 0.0] for k in range(-1, carbons + 1)])
    topology = app.Topology()
    place = topology.addResidue(residue, topology.addChain())
    x, last = [], None
    for k in range(1, carbons + 1):
        here, before, after = chain[k], chain[k - 1], chain[k + 1]
        out = here - (before + after) / 2
        out /= np.linalg.norm(out)
        side = np.array([0.0, 0.0, 1.0])
        arms = [0.58 * out + 0.81 * side, 0.58 * out - 0.81 * side]
        arms += [before - here] if k == 1 else []
        arms += [after - here] if k == carbons else []
        atom = topology.addAtom(f"C{k}", app.element.carbon, place)
        x.append(here)
        if last is not None:
            topology.addBond(last, atom)
        last = atom
        for number, arm in enumerate(arms, 1):
            hydrogen = topology.addAtom(f"H{k}{number}", app.element.hydrogen, place)
            topology.addBond(atom, hydrogen)
            x.append(here + 0.1111 * arm / np.linalg.norm(arm))
    return topology, np.array(x)


def residue_template(topology: app.Topology, residue: str) -> str:
    """Write a residue with the atom types and charges that charmm36.xml gives hexane."""
    ends = {f"C{k}": k in (1, _carbons(topology)) for k in range(1, _carbons(topology) + 1)}
    lines = []
    for atom in topology.atoms():
        end = ends["C" + atom.name[1:2]]
        if atom.element is app.element.carbon:
            kind, charge = ("CG331", -0.27) if end else ("CG321", -0.18)
        else:
            kind, charge = ("HGA3" if end else "HGA2"), 0.09
        lines.append(f'   <Atom name="{atom.name}" type="{kind}" charge="{charge}"/>')
    for one, two in topology.bonds():
        lines.append(f'   <Bond atomName1="{one.name}" atomName2="{two.name}"/>')
    head = f'<ForceField>\n <Residues>\n  <Residue name="{residue}">\n'
    return head + "\n".join(lines) + "\n  </Residue>\n </Residues>\n</ForceField>\n"


def _carbons(topology: app.Topology) -> int:
    return sum(atom.element is app.element.carbon for atom in topology.atoms())


def mean_box(box: PreparedBox, ps: float, n: int) -> PreparedBox:
    """Relax a box at constant pressure and give it its mean size over the last three quarters."""
    first = min(10.0, ps / 4)
    box = equilibrate(box, temperature=TEMPERATURE, time=first, step_size=STEP)
    system = openmm.XmlSerializer.clone(box.system)
    barostat = openmm.MonteCarloBarostat(1.0, TEMPERATURE, 10)
    barostat.setRandomNumberSeed(2)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, STEP)
    integrator.setRandomNumberSeed(2)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(box.positions)
    context.setVelocitiesToTemperature(TEMPERATURE, 2)
    volumes = []
    for _ in range(max(1, round((ps - first) / STEP / 50))):
        integrator.step(50)
        state = context.getState(positions=True)
        volumes.append(state.getPeriodicBoxVolume().value_in_unit(unit.nanometer**3))
    x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    old, new = np.cbrt(volumes[-1]), np.cbrt(np.mean(volumes))
    spread = np.std(volumes) / np.mean(volumes)
    print(f"volume {np.mean(volumes):.3f} nm^3, of single frames +- {100 * spread:.1f} %")
    x = x - x[:n].mean(0)
    for oxygen in range(n, len(x), 3):  # waters move rigidly with the box
        place = x[oxygen] / old
        x[oxygen : oxygen + 3] += (place - np.round(place)) * new - x[oxygen]
    vectors = np.eye(3) * new
    box.topology.setPeriodicBoxVectors(vectors * unit.nanometer)
    box.system.setDefaultPeriodicBoxVectors(*vectors)
    return replace(box, positions=x + new / 2, box_vectors=vectors)


def flexible(box: PreparedBox) -> openmm.System:
    """Return the System of a box with a force for every bond and angle."""
    return app.ForceField(*box.force_field).createSystem(
        box.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=CUTOFF * unit.nanometer,
        constraints=None,
        rigidWater=False,
        removeCMMotion=False,
    )


def torsion_force(system: openmm.System) -> openmm.PeriodicTorsionForce:
    """Return the periodic torsions of a System."""
    forces = system.getForces()
    (found,) = (force for force in forces if isinstance(force, openmm.PeriodicTorsionForce))
    return found


def inner_ends(atoms: Sequence[int], topology: app.Topology) -> str | None:
    """Return which ends a torsion about a bond between CH2 groups has, as in CC; else None."""
    elements = [atom.element.symbol for atom in topology.atoms()]
    hydrogens = [0] * len(elements)
    for one, two in topology.bonds():
        hydrogens[one.index] += two.element is app.element.hydrogen
        hydrogens[two.index] += one.element is app.element.hydrogen
    if any(elements[k] != "C" or hydrogens[k] != 2 for k in atoms[1:3]):
        return None
    return "".join(sorted(elements[k] for k in (atoms[0], atoms[3])))


def inner_torsions(name: str) -> dict[str, list[tuple]]:
    """Return a molecule's terms (n, phase, k) about bonds between CH2 groups, by their ends."""
    topology, x = alkane(*MOLECULES[name])
    box = solvate(
        topology, x, waters=400, force_field=FORCE_FIELD, cutoff=CUTOFF, hydrogen_mass=1.008, seed=1
    )
    found: dict[tuple, list[tuple]] = {}
    for *atoms, count, phase, strength in torsion_terms(box.system, range(len(x))):
        found.setdefault(tuple(atoms), []).append((count, phase, strength))
    result: dict[str, list[tuple]] = {}
    for atoms, terms in found.items():
        ends = inner_ends(atoms, topology)
        if ends is not None and result.setdefault(ends, terms) != terms:
            sys.exit(f"{name} has several kinds of inner torsions")
    return result


def replace_torsions(
    system: openmm.System, topology: app.Topology, new: dict[str, list[tuple]]
) -> None:
    """Give torsions about bonds between CH2 groups other terms."""
    if not new:
        return
    old = torsion_force(system)
    force = openmm.PeriodicTorsionForce()
    force.setUsesPeriodicBoundaryConditions(old.usesPeriodicBoundaryConditions())
    done = set()
    for *atoms, count, phase, strength in torsion_terms(system, range(topology.getNumAtoms())):
        ends = inner_ends(atoms, topology)
        if ends is None:
            force.addTorsion(*atoms, count, phase, strength)
        elif tuple(atoms) not in done:
            done.add(tuple(atoms))
            for term in new[ends]:
                force.addTorsion(*atoms, *term)
    place = next(k for k, f in enumerate(system.getForces()) if f.this == old.this)
    system.removeForce(place)
    system.addForce(force)


def constraints(system: openmm.System, topology: app.Topology) -> list[list[float]]:
    """Return the constrained bonds of the solute as [heavy atom, hydrogen, nm]."""
    light = [atom.element is app.element.hydrogen for atom in topology.atoms()]
    found = []
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        if i < len(light) and j < len(light):
            i, j = (j, i) if light[i] else (i, j)
            found.append([i, j, round(length.value_in_unit(unit.nanometer), 7)])
    return sorted(found)


# -- the topology --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """What a System of a solute and water says of the solute, in OpenMM's units.

    Attributes
    ----------
    bonds, urey_bradley : list of (i, j, nm, kJ/mol/nm^2)
        Harmonic, between bonded atoms and between others.
    angles : list of (i, j, k, rad, kJ/mol/rad^2)
        Harmonic.
    torsions : list of (i, j, k, l, n, rad, kJ/mol)
        Periodic.
    pairs : list of (i, j, C6, C12)
        1-4 pairs; their charges are those of the atoms.
    exclusions : list of (i, j)
        The 1-4 pairs too.
    charges : ndarray
        Of all particles.
    types : list of int
        Of all particles, for `c6` and `c12`.
    c6, c12 : ndarray, shape (types, types)
        kJ/mol nm^6 and nm^12.
    """

    bonds: list[tuple]
    urey_bradley: list[tuple]
    angles: list[tuple]
    torsions: list[tuple]
    pairs: list[tuple]
    exclusions: list[tuple]
    charges: np.ndarray
    types: list[int]
    c6: np.ndarray
    c12: np.ndarray


def plain(*values: object) -> tuple:
    """Return bare numbers in nm, ps, rad, kJ/mol and elementary charges."""
    system = unit.md_unit_system
    return tuple(v.value_in_unit_system(system) if unit.is_quantity(v) else v for v in values)


def read_terms(system: openmm.System, topology: app.Topology) -> Terms:
    """Read a solute's terms from the forces of a System; refuse what is not known here."""
    n = topology.getNumAtoms()
    bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    springs: list[tuple] = []
    angles: list[tuple] = []
    torsions: list[tuple] = []
    fourteen: dict[frozenset, tuple] = {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            springs += [plain(*force.getBondParameters(k)) for k in range(force.getNumBonds())]
        elif isinstance(force, openmm.HarmonicAngleForce):
            angles += [plain(*force.getAngleParameters(k)) for k in range(force.getNumAngles())]
        elif isinstance(force, openmm.PeriodicTorsionForce):
            count = force.getNumTorsions()
            torsions += [plain(*force.getTorsionParameters(k)) for k in range(count)]
        elif isinstance(force, openmm.NonbondedForce):
            nonbonded = force
        elif isinstance(force, openmm.CustomNonbondedForce):
            pairwise = force
        elif isinstance(force, openmm.CustomBondForce):
            form = re.fullmatch(
                r"(\S+)\*epsilon\*\(\(sigma/r\)\^12-\(sigma/r\)\^6\)", force.getEnergyFunction()
            )
            if form is None:
                sys.exit(f"cannot write {force.getName()}: {force.getEnergyFunction()}")
            for k in range(force.getNumBonds()):
                i, j, (sigma, epsilon) = force.getBondParameters(k)
                c6 = float(form.group(1)) * epsilon * sigma**6
                fourteen[frozenset((i, j))] = (c6, c6 * sigma**6)
        elif isinstance(force, (openmm.CustomTorsionForce, openmm.CMAPTorsionForce)):
            if force.getNumTorsions():
                sys.exit(f"cannot write {force.getName()}")
        elif not isinstance(force, openmm.CMMotionRemover):
            sys.exit(f"cannot write {force.getName()}")

    if pairwise.getEnergyFunction() != LENNARD_JONES or pairwise.getUseSwitchingFunction():
        sys.exit(f"cannot write {pairwise.getName()}: {pairwise.getEnergyFunction()}")
    tables = {}
    for k in range(pairwise.getNumTabulatedFunctions()):
        size, _, values = pairwise.getTabulatedFunction(k).getFunctionParameters()
        tables[pairwise.getTabulatedFunctionName(k)] = np.reshape(values, (size, size)).T
    particles = range(system.getNumParticles())
    given = [plain(*nonbonded.getParticleParameters(k)) for k in particles]
    if any(depth for *_, depth in given):
        sys.exit("cannot write two kinds of Lennard-Jones at the same time")

    charges = np.array([charge for charge, *_ in given])
    pairs, exclusions = [], []
    left_out = {
        frozenset(pairwise.getExclusionParticles(k)) for k in range(pairwise.getNumExclusions())
    }
    for k in range(nonbonded.getNumExceptions()):
        i, j, product, _, depth = plain(*nonbonded.getExceptionParameters(k))
        key = frozenset((i, j))
        wanted = charges[i] * charges[j] if key in fourteen else 0.0
        if key not in left_out or depth or abs(product - wanted) > 1e-7:
            sys.exit(f"cannot write the exception between atoms {i} and {j}")
        left_out.remove(key)
        if max(key) < n:
            exclusions.append((i, j))
            if key in fourteen:
                pairs.append((i, j, *fourteen[key]))
    if left_out:
        sys.exit("Coulomb and Lennard-Jones forces leave out different pairs")
    springs = [term for term in springs if max(term[:2]) < n]
    return Terms(
        [term for term in springs if frozenset(term[:2]) in bonded],
        [term for term in springs if frozenset(term[:2]) not in bonded],
        [term for term in angles if max(term[:3]) < n],
        [term for term in torsions if max(term[:4]) < n and term[6]],
        pairs,
        exclusions,
        charges,
        [int(pairwise.getParticleParameters(k)[0]) for k in particles],
        tables["bcoef"],
        tables["acoef"],
    )


def gromacs_topology(
    system: openmm.System, constrained: openmm.System, topology: app.Topology, waters: int
) -> str:
    """Write a System of one solute and three-site water as GROMACS reads it.

    Parameters
    ----------
    system : openmm.System
        With a force for every bond and angle.
    constrained : openmm.System
        The one that is run, with its masses and rigid water.
    topology : openmm.app.Topology
        The solute, which comes first.
    waters : int
        How many there are.
    """
    terms = read_terms(system, topology)
    n = topology.getNumAtoms()
    masses = [constrained.getParticleMass(k).value_in_unit(unit.dalton) for k in range(n + 3)]
    for start in range(n, n + 3 * waters, 3):
        same = np.array_equal(terms.charges[start : start + 3], terms.charges[n : n + 3])
        if not same or terms.types[start : start + 3] != terms.types[n : n + 3]:
            sys.exit("cannot write waters of several kinds")
    lengths = {}
    for k in range(constrained.getNumConstraints()):
        i, j, length = plain(*constrained.getConstraintParameters(k))
        lengths[i - n, j - n] = lengths[j - n, i - n] = length

    lines = ["; from an OpenMM System", "[ defaults ]", "1 1 no 1.0 1.0", "[ atomtypes ]"]
    kinds = sorted(set(terms.types))

    def strengths(one: int, two: int) -> str:
        return f"{terms.c6[one, two]:.10e} {terms.c12[one, two]:.10e}"

    lines += [f"T{kind} 0.0 0.0 A {strengths(kind, kind)}" for kind in kinds]
    lines.append("[ nonbond_params ]")
    both = itertools.combinations_with_replacement(kinds, 2)
    lines += [f"T{one} T{two} 1 {strengths(one, two)}" for one, two in both]

    def atoms(residue: str, names: list[str], first: int) -> list[str]:
        return ["[ atoms ]"] + [
            f"{k + 1} T{terms.types[first + k]} 1 {residue} {name} {k + 1} "
            f"{terms.charges[first + k]:.8f} {masses[first + k]:.6f}"
            for k, name in enumerate(names)
        ]

    def numbers(*indices: int) -> str:
        return " ".join(str(i + 1) for i in indices)

    residue = next(topology.residues()).name
    # Exclusions are listed, so that they are OpenMM's whatever the molecule.
    lines += ["[ moleculetype ]", "Solute 0"]
    lines += atoms(residue, [atom.name for atom in topology.atoms()], 0)
    lines.append("[ bonds ]")
    lines += [f"{numbers(i, j)} 1 {r:.8f} {k:.8f}" for i, j, r, k in terms.bonds]
    lines.append("[ pairs ]")
    lines += [f"{numbers(i, j)} 1 {c6:.10e} {c12:.10e}" for i, j, c6, c12 in terms.pairs]
    lines.append("[ angles ]")
    ends = {frozenset((i, j)): (r, k) for i, j, r, k in terms.urey_bradley}
    for i, j, k, angle, strength in terms.angles:
        r, spring = ends.pop(frozenset((i, k)), (0.0, 0.0))
        degrees = math.degrees(angle)
        lines.append(f"{numbers(i, j, k)} 5 {degrees:.8f} {strength:.8f} {r:.8f} {spring:.8f}")
    if ends:
        sys.exit("cannot write Urey-Bradley terms without an angle")
    lines.append("[ dihedrals ]")
    for *four, count, angle, strength in terms.torsions:
        lines.append(f"{numbers(*four)} 9 {math.degrees(angle):.8f} {strength:.8f} {count}")
    lines.append("[ exclusions ]")
    lines += [numbers(i, j) for i, j in terms.exclusions]
    lines.append(MARK.strip())
    lines += ["[ moleculetype ]", "Water 2", *atoms("HOH", ["O", "H1", "H2"], n)]
    lines += ["[ settles ]", f"1 1 {lengths[0, 1]:.8f} {lengths[1, 2]:.8f}"]
    lines += ["[ exclusions ]", "1 2 3", "2 1 3", "3 1 2"]
    lines += ["[ system ]", f"{residue} in water", "[ molecules ]", "Solute 1", f"Water {waters}"]
    return "\n".join(lines) + "\n"


def write_gro(path: Path, labels: list[str], x: np.ndarray, box: np.ndarray) -> None:
    """Write positions with all the digits of single precision."""
    lines = ["alkane in water", f"{len(x):5d}"]
    for label, place in zip(labels, x, strict=True):
        lines.append(label + "".join(f"{v:14.9f}" for v in place))
    lines.append(" ".join(f"{v:.9f}" for v in np.diag(box)))
    path.write_text("\n".join(lines) + "\n")


def read_gro(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read what `write_gro` has written."""
    *lines, edges = path.read_text().splitlines()[2:]
    x = np.array([line[20:].split() for line in lines], dtype=float)
    return [line[:20] for line in lines], x, np.diag([float(edge) for edge in edges.split()])


# -- the comparison ------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> None:
    """Stop unless OpenMM and GROMACS agree on one configuration, whose solute is distorted."""
    out = options.out
    topology = app.PDBFile(str(out / "solute.pdb")).topology
    n = topology.getNumAtoms()
    labels, x, box = read_gro(out / "start.gro")
    # Bonds at their constrained lengths and torsions in their wells would show little.
    x[:n] += np.random.default_rng(1).normal(0.0, 0.006, (n, 3))
    x = x.astype(np.float32).astype(np.float64)
    write_gro(out / "distorted.gro", labels, x, box)
    system = openmm.XmlSerializer.deserialize((out / "system.xml").read_text())
    ours, forces = openmm_point(system, topology, x)
    theirs, tight = gromacs_point(options, SINGLE_POINT | {"coulomb-modifier": "None"})
    terms = {
        "bonds": (ours["bonds"], theirs["Bond"]),
        "angles, U-B": (ours["angles"] + ours["urey-bradley"], theirs["U-B"]),
        "torsions": (ours["torsions"], theirs["Proper Dih."]),
        "1-4 LJ": (ours["pairs"], theirs["LJ-14"]),
        "LJ": (ours["lennard-jones"], theirs["LJ (SR)"]),
        "Coulomb": (
            ours["coulomb"],
            theirs["Coulomb-14"] + theirs["Coulomb (SR)"] + theirs["Coul. recip."],
        ),
    }
    wrong = []
    for name, (one, other) in terms.items():
        print(
            f"{name:<12} OpenMM {one:14.5f}  GROMACS {other:14.5f}  difference {other - one:9.5f} "
            "kJ/mol"
        )
        least, share = BONDED if name not in ("LJ", "Coulomb") else (0.0, NONBONDED)
        if abs(one - other) > max(least, share * abs(one)):
            wrong.append(name)
    used = {key: SETTINGS[key] for key in ("rcoulomb", "rvdw", "fourierspacing")}
    coarse = SINGLE_POINT | used | {"pme-order": 4, "ewald-rtol": 1e-5}
    runs = (("as here", tight), ("as in the runs", gromacs_point(options, coarse)[1]))
    for what, other in runs:
        for who, part in (("solute", slice(0, n)), ("water", slice(n, None))):
            size = np.sqrt((forces[part] ** 2).sum(-1).mean())
            off = np.linalg.norm(other[part] - forces[part], axis=-1)
            print(
                f"forces on {who}, PME {what}: of {size:.1f} kJ/mol/nm, difference "
                f"{np.sqrt((off**2).mean()):.4f} (rms), {off.max():.4f} (max)"
            )
            if what == "as here" and np.sqrt((off**2).mean()) > FORCES * size:
                wrong.append(f"forces on {who}")
    if wrong:
        sys.exit(f"{', '.join(wrong)} differ: the topology is not the same")


def openmm_point(
    system: openmm.System, topology: app.Topology, x: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """Return energies by term, of the solute where they are bonded, and all forces."""
    n = topology.getNumAtoms()
    ends = openmm.HarmonicBondForce()
    bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    names = {
        openmm.HarmonicBondForce: "bonds",
        openmm.HarmonicAngleForce: "angles",
        openmm.PeriodicTorsionForce: "torsions",
        openmm.CustomBondForce: "pairs",
        openmm.CustomNonbondedForce: "lennard-jones",
        openmm.NonbondedForce: "coulomb",
    }
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                i, j, r, strength = force.getBondParameters(k)
                if max(i, j) < n and frozenset((i, j)) in bonded:
                    continue
                if max(i, j) < n:
                    ends.addBond(i, j, r, strength)
                # Water is rigid.
                force.setBondParameters(k, i, j, r, 0.0)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for k in range(force.getNumAngles()):
                *three, angle, _ = force.getAngleParameters(k)
                if max(three) >= n:
                    force.setAngleParameters(k, *three, angle, 0.0)
        elif isinstance(force, openmm.NonbondedForce):
            force.setEwaldErrorTolerance(1e-5)
    system.addForce(ends)
    groups = {}
    for group, force in enumerate(system.getForces()):
        force.setForceGroup(group)
        groups[names.get(type(force), "others")] = group
    groups["urey-bradley"] = system.getNumForces() - 1
    groups["bonds"] = next(
        k for k, f in enumerate(system.getForces()) if isinstance(f, openmm.HarmonicBondForce)
    )
    reference = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
    context.setPositions(x)
    energies = {
        name: context.getState(energy=True, groups={group}).getPotentialEnergy()._value
        for name, group in groups.items()
    }
    forces = context.getState(forces=True).getForces(asNumpy=True)
    return energies, np.array(forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer))


def gromacs_point(
    options: argparse.Namespace, settings: dict
) -> tuple[dict[str, float], np.ndarray]:
    """Return energies by GROMACS's names and the forces before constraints."""
    out = options.out
    rigid = {key: value for key, value in settings.items() if key != "define"}
    write_settings(out / "point.mdp", rigid | {"nstfout": 1})
    log = out / "point.out"
    common = ("-c", "distorted.gro", "-p", "system.top", "-maxwarn", "5")
    gmx(options, log, "grompp", "-f", "point.mdp", *common, "-o", "point.tpr")
    gmx(options, log, *single("point"))
    text = (out / "point.log").read_text()
    block = text[text.index("Energies (kJ/mol)") :].split("\n\n")[0].splitlines()[1:]
    energies: dict[str, float] = {}
    for names, values in zip(block[::2], block[1::2], strict=True):
        split = [names[k : k + 15].strip() for k in range(0, len(names), 15)]
        energies.update(zip(split, map(float, values.split()), strict=False))
    command = [options.gmx, "-quiet", "dump", "-f", str(out / "point.trr")]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"f\[\s*\d+\]=\{([^}]*)\}", dump)
    return energies, np.array([row.split(",") for row in found], dtype=float)


# -- the runs ------------------------------------------------------------------------------------


def conformer(torsions: int, index: int) -> tuple[float, ...]:
    """Return the torsions in degrees at which a run begins; trans, then all others."""
    choices = itertools.product((TRANS, GAUCHE, -GAUCHE), repeat=torsions)
    first, *others = choices
    order = np.random.default_rng(torsions).permutation(len(others))
    return [first, *(others[k] for k in order)][index % (len(others) + 1)]


def solute_of(out: Path) -> Molecule:
    """Return the molecule of a prepared directory."""
    file = app.PDBFile(str(out / "solute.pdb"))
    return Molecule.from_topology(file.topology, file.positions, out.name)


def run(options: argparse.Namespace) -> None:
    """Make runs, or go on with them."""
    # Otherwise gmx would go on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: the same command goes on"))
    for index in range(options.first, options.last):
        began = time.monotonic()
        name = f"{options.kind}{index:03d}"
        steps = round((options.ps or LENGTHS[options.kind]) / STEP)
        if one(options, name, index, steps):
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def one(options: argparse.Namespace, name: str, index: int, steps: int) -> bool:
    """Make one run as long as it is wanted; return whether there was anything to do."""
    out = options.out
    done, tpr, log = out / f"{name}.done", out / f"{name}.tpr", out / f"{name}.out"
    if done.exists() and int(done.read_text()) >= steps:
        return False
    done.unlink(missing_ok=True)
    if not tpr.exists():
        released(options, name, index, steps)
    planned = int(re.search(r"^nsteps = (\d+)", _mdp(out, name), re.MULTILINE).group(1))
    if planned < steps:
        longer = ("-s", f"{name}.tpr", "-until", f"{steps * STEP:.3f}", "-o", f"{name}.long.tpr")
        gmx(options, log, "convert-tpr", *longer)
        settings = re.sub(r"(?m)^nsteps = .*$", f"nsteps = {steps}", _mdp(out, name))
        (out / f"{name}.long.tpr").replace(tpr)
        (out / f"{name}.mdp").write_text(settings)
        planned = steps
    going_on = ("-cpi", f"{name}.cpt") if (out / f"{name}.cpt").exists() else ()
    gmx(options, log, *single(name), "-pin", "off", "-cpt", "3", *going_on)
    if f"Writing checkpoint, step {planned} " not in (out / f"{name}.log").read_text():
        sys.exit(f"{name} was stopped: the same command goes on")
    done.write_text(f"{planned}\n")
    return True


def _mdp(out: Path, name: str) -> str:
    return (out / f"{name}.mdp").read_text()


def released(options: argparse.Namespace, name: str, index: int, steps: int) -> None:
    """Bring the solute into its conformer, relax, and prepare the run."""
    out = options.out
    torsions = slow_torsions(solute_of(out))
    goal = conformer(len(torsions), index)
    seed = SEEDS[options.kind] + 10 * index
    basis = SETTINGS | {"tau-t": 1.0 / options.friction, "dt": STEP, "ref-t": TEMPERATURE}
    quiet = {"nstxout-compressed": 0}
    start = "start.gro"
    for stage, (strength, count, dt) in enumerate(STAGES):
        part = f"{name}_pull{stage}"
        restrain(out / "system.top", out / f"{part}.top", torsions, goal, strength)
        seeds = {"ld-seed": seed + stage, "gen-seed": seed + stage}
        settings = basis | quiet | seeds | {"dt": dt, "nsteps": count}
        if stage:
            settings |= {"gen-vel": "no", "continuation": "yes"}
        preprocess(options, part, start, f"{part}.top", settings)
        gmx(options, out / f"{part}.out", *single(part), "-pin", "off", "-c", f"{part}.g96")
        start = f"{part}.g96"
    if options.kind == "plain" and options.warm_up:
        part = f"{name}_pull{len(STAGES)}"
        seeds = {"ld-seed": seed + 8, "gen-seed": seed + 8}
        settings = basis | quiet | seeds | {"nsteps": round(options.warm_up / STEP)}
        preprocess(options, part, start, "system.top", settings)
        gmx(options, out / f"{part}.out", *single(part), "-pin", "off", "-c", f"{part}.g96")
        start = f"{part}.g96"
    seeds = {"ld-seed": seed + 9, "gen-seed": seed + 9}
    every = round(options.spacing / STEP)
    settings = basis | seeds | {"nsteps": steps, "nstxout-compressed": every}
    preprocess(options, f"{name}.new", start, "system.top", settings)
    info = {"seed": seed, "start_deg": list(goal)}
    if options.kind == "plain":
        info["warm_up_ps"] = options.warm_up
    (out / f"{name}.json").write_text(json.dumps(info) + "\n")
    for suffix in ("out", "mdp", "tpr"):  # the tpr says that all is there
        (out / f"{name}.new.{suffix}").replace(out / f"{name}.{suffix}")
    for file in out.glob(f"{name}_pull*"):
        file.unlink()


def restrain(
    topology: Path,
    target: Path,
    torsions: list[tuple[int, int, int, int]],
    goal: tuple[float, ...],
    strength: float,
) -> None:
    """Write a topology whose solute has its torsions restrained (kJ/mol/rad^2)."""
    lines = "".join(
        " ".join(str(i + 1) for i in atoms) + f" 1 {angle:.3f} 0 {strength}\n"
        for atoms, angle in zip(torsions, goal, strict=True)
    )
    lines = f"[ dihedral_restraints ]\n{lines}" if lines else ""
    target.write_text(topology.read_text().replace(MARK, lines))


# -- the data set --------------------------------------------------------------------------------


def collect(options: argparse.Namespace) -> None:
    """Put the runs into a data set, as far as they are."""
    if options.dataset is None:
        sys.exit("collect needs --dataset")
    out = options.out
    facts = json.loads((out / "box.json").read_text())
    version = subprocess.run([options.gmx, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"GROMACS version:\s*(\S+)", version.stdout)
    gromacs = found.group(1) if found else ""
    facts["versions"]["gromacs"] = gromacs
    facts |= {
        "engine": f"GROMACS {gromacs}".strip(),
        "temperature_K": TEMPERATURE,
        "friction_per_ps": friction_of(out),
        "step_fs": 1000 * STEP,
        "hydrogen_mass_amu": HYDROGEN_MASS,
        "cutoff_nm": CUTOFF,
        "electrostatics": "PME",
        "constraints": "HBonds",
        "integrator": "sd (leap-frog)",
    }
    system = openmm.XmlSerializer.deserialize((out / "system.xml").read_text())
    torsions = torsion_terms(system, range(solute_of(out).n_atoms))
    exact = facts["constraint_lengths_nm"]
    options.dataset.unlink(missing_ok=True)
    for kind in LENGTHS:
        paths = sorted(out.glob(f"{kind}[0-9]*.xtc"))
        files = [found for path in paths if (found := readable(path)) is not None]
        if files:
            settings = ImportSettings(name=named(options), kind=kind, provenance=facts)
            append = options.dataset.exists()
            result = import_trajectories(
                files, out / "solute.pdb", options.dataset, settings, append=append
            )
    for file in out.glob("cut/*.trr"):
        file.unlink()
    if not options.dataset.exists():
        sys.exit("there are no runs yet")
    data = read_dataset(options.dataset)
    runs = []
    for one_run in data.runs:
        known = json.loads((out / f"{one_run.name}.json").read_text())
        known["complete"] = (out / f"{one_run.name}.done").exists()
        runs.append(replace(one_run, info=one_run.info | known))
    # What the frames' means say of constraints is rounded; everything else is common.
    provenance = {k: v for k, v in data.provenance.items() if k != "merged"}
    # Without the folders of this machine.
    command = " ".join(Path(word).name if "/" in word else word for word in sys.argv)
    provenance |= {"constraint_lengths_nm": exact, "command": command}
    provenance["torsion_terms"] = torsions
    write_dataset(options.dataset, data.molecule, runs, provenance)
    print(f"{options.dataset}: {result['runs']} runs, {result['ns']:.3f} ns")


def readable(path: Path) -> Path | None:
    """Return a trajectory without the part of a frame that a run ends with while it is made."""
    if path.with_suffix(".done").exists():
        return path
    if path.stat().st_size < LEAST_BYTES:
        return None
    cut = path.parent / "cut" / f"{path.stem}.trr"
    cut.parent.mkdir(exist_ok=True)
    with mdtraj.open(str(path)) as file:
        frames = file.read(len(file) - 1)
    # In mdtraj's hands an XTC would lose a digit.
    with mdtraj.formats.TRRTrajectoryFile(str(cut), "w", force_overwrite=True) as file:
        file.write(*frames)
    return cut


if __name__ == "__main__":
    main()
