"""Water MD of capped amino acids and pairs of them, for a model of peptides.

    python benchmarks/peptides.py structures FOLDER [VAL LEU-SER ...]
    python benchmarks/peptides.py md FOLDER [--gmx GMX] [--only NAME]
    python benchmarks/peptides.py implicit FOLDER [--only NAME]

``structures`` builds ACE-X-NME and ACE-X-Y-NME as ``openmm-sd prepare --sequence`` does, hydrogens
and charges as at pH 7 (HID, HIE and HIP by name), minimised in implicit solvent. Handedness at CA
and at CB, amide bonds and the total charge are checked. ``md`` makes 2 ns a pass of each: a plain
run and short ones from starts spread over phi, psi and chi1, with ``openmm-sd generate``'s GROMACS
engine (amber99sbildn, tip3p, 300 K, a dodecahedron with a counter-ion where it is charged).
``implicit`` makes the first pass of each in implicit solvent (amber99_obc) with OpenMM, some 5 ns
where water takes 2. Data sets appear one by one, ``NAME.PASS.h5`` in FOLDER/data or
``NAME.h5`` in FOLDER/implicit; killed, the same command resumes.

`HELD_OUT` and `HELD_OUT_PAIRS` are for judging a model: nothing is trained on them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shared import Command, option, run_command

from openmm_sd.generate import GenerateSettings, generate
from openmm_sd.generate.peptides import REMARKS, unusual
from openmm_sd.molecule.molecule import Molecule
from openmm_sd.prepare import PrepareSettings, from_sequence, repair

import openmm  # isort: skip
from openmm import app, unit  # isort: skip

TRAINED = "ALA GLY VAL SER LEU ASP LYS TYR THR GLU ASN PRO ARG MET CYS TRP HID HIP".split()
HELD_OUT = "GLN ILE PHE HIE".split()
PAIRS = (
    "ALA-ALA GLY-ALA LEU-SER ALA-GLY VAL-LEU ASP-LYS TYR-ALA SER-VAL LEU-ASP THR-TYR GLU-LYS "
    "ASN-GLY ALA-PRO PRO-ALA VAL-THR LYS-LEU GLY-ASN GLU-ALA PRO-GLU LEU-PRO ARG-GLU MET-ALA "
    "TRP-GLY CYS-SER ASP-ARG ALA-TRP HID-ALA LEU-MET THR-CYS GLY-HIP"
).split()
HELD_OUT_PAIRS = "ALA-VAL SER-LEU GLN-ILE LYS-GLU GLY-PHE VAL-PRO".split()
#: Passes in the order in which a model can use them.
PASSES = [
    *((name, 1) for name in TRAINED + HELD_OUT),
    *((name, 2) for name in TRAINED),
    *((name, 1) for name in PAIRS),
    *((name, 3) for name in TRAINED),
    *((name, number) for number in (2, 3) for name in HELD_OUT),
    *((name, 1) for name in HELD_OUT_PAIRS),
]
#: Charges at pH 7, e; which atom chi1 ends at where it is not CG.
CHARGES = {"ASP": -1, "GLU": -1, "LYS": 1, "ARG": 1, "HIP": 1}
CHI1 = {"VAL": "CG1", "ILE": "CG1", "SER": "OG", "THR": "OG1", "CYS": "SG"}
#: Forms whose protonation PDBFixer would guess.
FORMS = ("HID", "HIE", "HIP", "ASP", "GLU", "LYS", "CYS")
#: Least distance between periodic copies and least width of the box, nm; volume of a water and of
#: an atom of the solute, nm^3.
GAP, LEAST_WIDTH, PER_WATER, PER_ATOM = 1.0, 2.6, 0.0305, 0.009
FOLDER = option("folder", type=Path, metavar="FOLDER")
Place = NDArray[np.float64]


def standard(form: str) -> str:
    """What a PDB file calls a form of a residue."""
    return "HIS" if form.startswith("HI") else form


def completed(forms: list[str]) -> tuple[app.Topology, Place, float]:
    """Side chains and hydrogens put to a backbone, minimised; positions in nm, charge in e."""
    reference = openmm.Platform.getPlatformByName("Reference")
    structure, _ = from_sequence("-".join(("ACE", *forms, "NME")))
    variants = {f"A:{k}": form for k, form in enumerate(forms, 2) if form in FORMS}
    modeller = repair(structure, PrepareSettings(variants=variants))
    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds
    )
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), reference)
    context.setPositions(modeller.positions * unit.nanometer)
    openmm.LocalEnergyMinimizer.minimize(context, 5.0, 400)
    state = context.getState(positions=True)
    x = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    charges = (force.getParticleParameters(k)[0]._value for k in range(len(x)))
    return modeller.topology, x, float(sum(charges))


def check(name: str, molecule: Molecule, forms: list[str], charge: float) -> None:
    """Refuse what is not L, trans and of the charge that was meant."""
    for what, where in unusual(molecule).items():
        raise ValueError(f"{name}: {', '.join(where)} {REMARKS[what]}")
    labels = zip(molecule.residue_ids, molecule.atom_names, strict=True)
    at = {label: molecule.positions[k] for k, label in enumerate(labels)}
    ids = list(dict.fromkeys(molecule.residue_ids))
    for number, form in zip(ids[1:-1], forms, strict=True):
        if form in ("ILE", "THR"):
            heavy = ("CG1", "CG2") if form == "ILE" else ("OG1", "CG2")
            centre, *arms = (at[number, atom] for atom in ("CB", "CA", *heavy))
            # S in isoleucine, R in threonine: CA, the heavier branch and CG2 turn alike.
            if np.linalg.det(np.array(arms) - centre) <= 0.0:
                raise ValueError(f"{name}: {form} has the other hand at CB")
    if abs(charge - sum(CHARGES.get(form, 0) for form in forms)) > 1e-3:
        raise ValueError(f"{name}: the charge is {charge:g}")


def seeded_torsions(forms: list[str]) -> list[str]:
    """Torsions that short runs are spread over: phi, psi and chi1 of each residue."""
    names = ["ACE", *map(standard, forms), "NME"]
    ids = [f"{name}{k}" for k, name in enumerate(names, 1)]
    found = []
    for k, form in enumerate(forms, 1):
        before, own, behind = ids[k - 1 : k + 2]
        if form != "PRO":
            found.append(f"{before}:C,{own}:N,{own}:CA,{own}:C")
        found.append(f"{own}:N,{own}:CA,{own}:C,{behind}:N")
        if form not in ("GLY", "ALA", "PRO"):
            found.append(f"{own}:N,{own}:CA,{own}:CB,{own}:{CHI1.get(form, 'CG')}")
    return found


def structures(options: argparse.Namespace) -> None:
    """Build structures and what the runs of each need to know."""
    folder = options.folder / "structures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or [*TRAINED, *HELD_OUT, *PAIRS, *HELD_OUT_PAIRS]:
        forms = name.split("-")
        topology, x, charge = completed(forms)
        check(name, Molecule.from_topology(topology, x, name), forms, charge)
        with open(folder / f"ACE-{name}-NME.pdb", "w") as file:
            app.PDBFile.writeFile(topology, x * unit.nanometer, file, keepIds=True)
        across = 2.0 * float(np.linalg.norm(x - (x.min(0) + x.max(0)) / 2, axis=1).max())
        width = max(LEAST_WIDTH, across + GAP)
        room = width**3 * np.sqrt(0.5) - PER_ATOM * len(x)  # a rhombic dodecahedron
        waters = int(np.ceil(room / PER_WATER / 10) * 10)
        facts = {"waters": waters, "torsions": seeded_torsions(forms), "charge": round(charge)}
        (folder / f"ACE-{name}-NME.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(f"{name}: {len(x)} atoms, charge {round(charge)}, {waters} waters", flush=True)


def md(options: argparse.Namespace) -> int:
    """Make the passes that are missing; 130 where it was stopped."""
    for name, number in PASSES:
        single = "-" not in name
        settings = GenerateSettings(
            engine="gromacs",
            waters=facts_of(options.folder, name)["waters"],
            plain_ps=600.0 if single else 500.0,
            seeded_runs=7 if single else 5,
            seeded_ps=200.0,
            equilibration_ps=80.0,
            spacing_ps=0.5,
            pull_ps=9.0,
            seed=number,
        )
        target = options.folder / "data" / f"ACE-{name}-NME.{number}.h5"
        if options.only in (None, name) and not made(options, name, target, settings):
            return 130
    return 0


def implicit(options: argparse.Namespace) -> int:
    """Make what is missing in implicit solvent; 130 where it was stopped."""
    for name in (*TRAINED, *HELD_OUT, *PAIRS, *HELD_OUT_PAIRS):
        single = "-" not in name
        settings = GenerateSettings(
            solvent="implicit",
            plain_ps=1500.0 if single else 600.0,
            seeded_runs=16 if single else 12,
            seeded_ps=220.0 if single else 150.0,
            pull_ps=9.0,
        )
        target = options.folder / "implicit" / f"ACE-{name}-NME.h5"
        if options.only in (None, name) and not made(options, name, target, settings):
            return 130
    return 0


def facts_of(folder: Path, name: str) -> dict[str, Any]:
    """Return what `structures` found out about a molecule."""
    facts: dict[str, Any] = json.loads((folder / "structures" / f"ACE-{name}-NME.json").read_text())
    return facts


def made(options: argparse.Namespace, name: str, target: Path, settings: GenerateSettings) -> bool:
    """Make a data set that is missing; say whether it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.with_name(f"{target.name}.parts").exists():
        return True
    result = generate(
        options.folder / "structures" / f"ACE-{name}-NME.pdb",
        target,
        settings,
        torsions=facts_of(options.folder, name)["torsions"],
        name=f"ACE-{name}-NME",
        processes=1,
        threads=1,
        gmx=getattr(options, "gmx", None),
    )
    print(f"{target.name}: {result['ns']:.2f} ns, {result['ns_per_day']} ns/day", flush=True)
    return not result["stopped"]


if __name__ == "__main__":
    only = option("--only", metavar="NAME")
    sys.exit(
        run_command(
            __doc__,
            {
                "structures": Command(structures, [FOLDER, option("names", nargs="*")]),
                "md": Command(md, [FOLDER, option("--gmx"), only]),
                "implicit": Command(implicit, [FOLDER, only]),
            },
        )
    )
