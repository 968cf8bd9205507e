"""Preparing: what is repaired, what is refused and how, and that a directory is whole or absent."""

import contextlib
import errno
import gzip
import io
import json
import os
import re
import signal
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from conftest import PDB, turned
from openmm import app, unit
from programs import launch

from openmm_sd import ScoreModel
from openmm_sd.cli import main
from openmm_sd.prepare import (
    PreparedSystem,
    PrepareSettings,
    driver as module,
    equilibrate,
    from_sequence,
    load_structure,
    prepare,
    prepare_system,
    read_prepared,
    repair,
    repairs,
    solvate,
)
from openmm_sd.prepare.sequence import placed
from openmm_sd.system import box as box_module
from openmm_sd.system.fitting import fitting_models
from openmm_sd.system.force_field import DEFAULT_FORCE_FIELD, load_force_field, water_box
from openmm_sd.system.solute import find_solute

GLYCINE = Path(__file__).parents[1] / "examples" / "ace-gly-nme.pdb"

CHARMM = ("charmm36.xml", "charmm36/water.xml")
#: The least that relaxes: a second or two.
SMALL = {"waters": 240, "equilibration_ps": 0.1, "platform": "CPU"}


def fixed(path, **settings):
    return repair(load_structure(path), PrepareSettings(**settings))


def lines(*, without=(), text=None):
    """Lines of ACE-ALA-NME without hydrogens, but for some atoms or residues."""
    text = PDB.read_text() if text is None else text
    return [
        line
        for line in text.splitlines()
        if not (
            line.startswith(("ATOM", "HETATM"))
            and (line[12:16].strip() in without or line[17:20] in without)
        )
    ]


def write(path, content):
    path.write_text("\n".join(content) + "\n")
    return path


def moved(line, shift):
    """A line with its atom elsewhere, angstrom."""
    places = [float(line[k : k + 8]) + d for k, d in zip((30, 38, 46), shift, strict=True)]
    return f"{line[:30]}{places[0]:8.3f}{places[1]:8.3f}{places[2]:8.3f}{line[54:]}"


def pdb_of(topology, positions, path, ids=False):
    with open(path, "w") as file:
        app.PDBFile.writeFile(topology, positions * unit.nanometer, file, keepIds=ids)
    return path


@pytest.fixture(scope="module")
def peptide_pdb(tmp_path_factory):
    """GLY-SER-HIS-ALA, stretched, with charged ends: a backbone, and what PDBFixer adds to it."""
    text, x = [], [np.array(p) for p in ((0.0, 0.1, 0.0), (0.0, 0.0, 0.0), (0.12, 0.0, 0.0))]
    for k, name in enumerate(("GLY", "SER", "HIS", "ALA")):
        for length, angle, torsion in ((0.133, 117, 140), (0.146, 122, 180), (0.153, 111, -110)):
            x.append(placed(*x[-3:], length, angle, torsion))
        n, alpha, c = x[-3:]
        places = {"N": n, "CA": alpha, "C": c, "O": placed(n, alpha, c, 0.123, 120, -40)}
        if name != "GLY":
            # Where it is in an L amino acid: coefficients of ideal geometry, angstrom.
            one, two = 10 * (alpha - n), 10 * (c - alpha)
            arm = -0.5827 * np.cross(one, two) + 0.5680 * one - 0.5407 * two
            places["CB"] = alpha + 0.1 * arm
        for atom, place in places.items():
            text.append(
                f"ATOM  {len(text) + 1:5d}  {atom:<3} {name} A{k + 1:4d}    "
                + "".join(f"{10 * v:8.3f}" for v in place)
                + f"  1.00  0.00{atom[0]:>12}"
            )
    folder = tmp_path_factory.mktemp("peptide")
    made = fixed(write(folder / "in.pdb", text))
    return pdb_of(made.topology, made.positions, folder / "peptide.pdb", ids=True)


@pytest.fixture(scope="module")
def butane(tmp_path_factory):
    """Butane as OpenMM writes it: residue BUT, atoms named as in charmm36; and a Topology."""
    field = load_force_field(CHARMM)
    template = field._templates["BUTA"]
    topology = app.Topology()
    residue = topology.addResidue("BUTA", topology.addChain("A"))
    atoms = [topology.addAtom(a.name, a.element, residue) for a in template.atoms]
    for i, j in template.bonds:
        topology.addBond(atoms[i], atoms[j])
    rng = np.random.default_rng(3)
    system = field.createSystem(topology)
    context = openmm.Context(
        *(system, openmm.VerletIntegrator(0.001)), openmm.Platform.getPlatform("Reference")
    )
    context.setPositions(rng.normal(size=(14, 3)) * 0.2)
    openmm.LocalEnergyMinimizer.minimize(context, 1.0)
    x = np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return topology, x, pdb_of(topology, x, tmp_path_factory.mktemp("butane") / "butane.pdb")


# -- what comes out --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """ACE-ALA-NME without hydrogens, prepared by the command."""
    folder = tmp_path_factory.mktemp("made") / "new" / "out"
    arguments = "--waters 240 --equilibration 0.1 --platform CPU --json"
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        code = main(["prepare", str(PDB), "-o", str(folder), *arguments.split()])
    assert code == 0, said.getvalue()
    return folder, printed.getvalue(), said.getvalue()


def test_a_directory_with_its_record(made):
    folder, printed, said = made
    record = json.loads(printed)
    names = {"topology.cif", "system.xml", "state.xml", "prepared.json", "solute.pdb"}
    assert {file.name for file in folder.iterdir()} == names
    assert [file.name for file in folder.parent.iterdir()] == ["out"]
    prepared = read_prepared(folder)
    assert {**prepared.provenance, "directory": str(folder)} == record
    assert record["repair"]["hydrogens_added"] == 12
    assert record["solvation"]["waters"] == 240
    assert record["models"]["fitting"] == ["ala2-water"]
    assert record["settings"]["force_field"] == list(DEFAULT_FORCE_FIELD)
    assert record["equilibration"]["steps"] == 25
    assert {"openmm", "openmm_sd", "python"} <= record["versions"].keys()
    assert prepared.temperature_K == 300.0
    assert prepared.step_ps == 0.004
    assert prepared.velocities is not None
    assert "12 hydrogens were added" in said
    solute = find_solute(ScoreModel.load("ala2-water").molecules, prepared.topology)
    context = openmm.Context(
        *(prepared.system, openmm.VerletIntegrator(0.001)), openmm.Platform.getPlatform("CPU")
    )
    prepared.place(context)
    state = context.getState(energy=True, positions=True)
    assert state.getPotentialEnergy()._value < -5000.0
    x = state.getPositions(asNumpy=True)._value[list(solute.particles)]
    assert 0.05 < np.linalg.norm(x - x.mean(axis=0), axis=1).max() < 0.6
    again = load_structure(folder / "solute.pdb")
    assert find_solute(ScoreModel.load("ala2-water").molecules, again.topology)


def test_it_is_not_overwritten(made, capfd):
    folder, *_ = made
    before = (folder / "prepared.json").read_bytes()
    assert main(["prepare", str(PDB), "-o", str(folder)]) == 2
    assert "--force replaces it" in capfd.readouterr().err
    (folder / "mine.txt").write_text("mine")
    try:
        assert main(["prepare", str(PDB), "-o", str(folder), "--force"]) == 2
        assert "holds other files (mine.txt)" in capfd.readouterr().err
    finally:
        (folder / "mine.txt").unlink()
    assert (folder / "prepared.json").read_bytes() == before


def test_a_failure_leaves_the_old_one(made, monkeypatch):
    folder, *_ = made
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(prepared, directory):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_prepared", full)
    settings = PrepareSettings(**SMALL | {"equilibration_ps": 0.0})
    with pytest.raises(OSError, match="No space left"):
        prepare(PDB, folder, settings, force=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in folder.parent.iterdir()] == ["out"]


def test_with_force_a_new_one_takes_its_place(made):
    folder, *_ = made
    before = read_prepared(folder)
    settings = PrepareSettings(**SMALL | {"waters": 250, "equilibration_ps": 0.0})
    record = prepare(PDB, folder, settings, force=True)
    assert record["solvation"]["waters"] == 250
    after = read_prepared(folder)
    assert len(after.positions) == len(before.positions) + 30
    assert [file.name for file in folder.parent.iterdir()] == ["out"]


def test_stopped_by_the_user(tmp_path, tmp_path_factory):
    said = tmp_path_factory.mktemp("said")
    process = launch(
        *("prepare", PDB, "-o", tmp_path / "a" / "out", "--waters", 240),
        *("--equilibration", 1000, "--json"),
        folder=said,
    )
    while "equilibrating" not in process.stderr:
        assert process.running, process.stderr
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, process.stderr
    assert process.stdout == ""
    assert "stopped" in process.stderr
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch, capfd):
    def read_only(self, *arguments, **settings):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "out")]) == 2
    assert "cannot write to" in (line := capfd.readouterr().err.splitlines()[-1])
    assert "Read-only file system" in line


# -- repair ----------------------------------------------------------------------------------------


def test_a_structure_that_is_complete_stays_as_it_is(peptide, tmp_path):
    path = pdb_of(peptide.topology, peptide.positions, tmp_path / "whole.pdb")
    found = fixed(path)
    assert found.record["hydrogens_added"] == 0
    assert not found.notes
    np.testing.assert_allclose(found.positions, peptide.positions, atol=6e-5)
    names = [atom.name for atom in peptide.topology.atoms()]
    assert [atom.name for atom in found.topology.atoms()] == names


def test_missing_atoms_of_side_chain_and_end(peptide_pdb, tmp_path):
    text = [t for t in lines(without=("CD2", "HD2", "OXT"), text=peptide_pdb.read_text())]
    found = fixed(write(tmp_path / "torn.pdb", text))
    assert found.record["atoms_added"] == [{"residue": "HIS 3 of chain A", "atoms": ["CD2"]}]
    assert found.record["terminal_atoms_added"][0]["atoms"] == ["OXT"]
    assert "--caps makes it neutral" in " ".join(found.notes)
    whole = load_structure(peptide_pdb)
    assert found.topology.getNumAtoms() == whole.topology.getNumAtoms()


def test_a_minimisation_of_pdbfixer_ends(peptide_pdb, tmp_path, monkeypatch, capfd):
    """It sets no end itself, and C++ hears no signals."""
    minimize = openmm.LocalEnergyMinimizer.minimize
    file = write(tmp_path / "torn.pdb", lines(without=("CD2", "HD2"), text=peptide_pdb.read_text()))
    whole = fixed(file)
    monkeypatch.setattr(repairs, "_MOST_ITERATIONS", 1)
    assert np.abs(fixed(file).positions - whole.positions).max() > 1e-3
    monkeypatch.setattr(repairs, "_SAID_EVERY", 0.0)

    def stop(what, how_far):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(load_structure(file), PrepareSettings(), stop)
    monkeypatch.setattr(repairs, "_MOST_SECONDS", 0.0)
    assert main(["prepare", str(file), "-o", str(tmp_path / "out")]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "cannot build what is missing (the minimisation is not done after 0 s)" in line
    assert openmm.LocalEnergyMinimizer.minimize is minimize
    assert os.listdir(tmp_path) == ["torn.pdb"]


@pytest.mark.parametrize(
    ("settings", "form", "hydrogens"),
    [({"ph": 7.0}, "HID", 1), ({"ph": 4.0}, "HIP", 2), ({"variants": {"A:3": "HIE"}}, "HIE", 1)],
)
def test_protonation(peptide_pdb, tmp_path, settings, form, hydrogens):
    text = [t for t in peptide_pdb.read_text().splitlines() if t[76:78].strip() != "H"]
    found = fixed(write(tmp_path / "bare.pdb", text), **settings)
    assert found.record["protonation"] == [{"residue": "HIS 3 of chain A", "form": form}]
    ring = {a.name for a in found.topology.atoms() if a.residue.name == "HIS"}
    assert len(ring & {"HD1", "HE2"}) == hydrogens


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({"A:9": "HIE"}, "no residue 'A:9'"),
        ({"A:3": "ASH"}, "cannot be ASH; it can be HID, HIE"),
    ],
)
def test_wrong_forms(peptide_pdb, variants, said):
    with pytest.raises(ValueError, match=said):
        fixed(peptide_pdb, variants=variants)


def test_caps_are_trans_and_make_what_a_model_knows(tmp_path):
    alanine = write(tmp_path / "ala.pdb", lines(without=("ACE", "NME")))
    found = fixed(alanine, caps=True)
    assert found.record["caps_added"] == [
        "ACE before ALA 2 of chain A",
        "NME after ALA 2 of chain A",
    ]
    assert list(fitting_models(found.topology)[0]) == ["ala2-water"]
    frame = mdtraj.Trajectory(found.positions, mdtraj.Topology.from_openmm(found.topology))
    at = {(a.residue.name, a.name): a.index for a in found.topology.atoms()}
    bonds = [
        [at["ACE", "CH3"], at["ACE", "C"], at["ALA", "N"], at["ALA", "CA"]],
        [at["ALA", "CA"], at["ALA", "C"], at["NME", "N"], at["NME", "C"]],
    ]
    omega = np.rad2deg(mdtraj.compute_dihedrals(frame, bonds))
    np.testing.assert_allclose(np.abs(omega), 180.0, atol=1.0)
    lengths = [
        np.linalg.norm(np.subtract(*found.positions[[i.index, j.index]]))
        for i, j in found.topology.bonds()
    ]
    assert 0.09 < min(lengths) <= max(lengths) < 0.16


def test_an_amino_acid_alone_is_not_in_the_force_field(tmp_path):
    alanine = write(tmp_path / "ala.pdb", lines(without=("ACE", "NME")))
    with pytest.raises(
        ValueError, match="ALA 2 of chain A is not as .* it has H2, H3, OXT.*--caps"
    ):
        fixed(alanine)


def test_a_cis_peptide_bond_is_said(peptide, tmp_path):
    names = [(a.residue.name, a.name) for a in peptide.topology.atoms()]
    axis = [names.index(("ACE", "C")), names.index(("ALA", "N"))]
    side = [k for k, (residue, _) in enumerate(names) if residue == "ACE" and k != axis[0]]
    path = tmp_path / "cis.pdb"
    x = turned(peptide.positions[None], axis, side, 180.0)[0]
    found = fixed(pdb_of(peptide.topology, x, path))
    assert found.record["cis_peptide_bonds"] == ["ALA 2 of chain A"]
    assert "is cis" in " ".join(found.notes)
    path = pdb_of(peptide.topology, peptide.positions, path)
    assert fixed(path).record["cis_peptide_bonds"] == []


def test_caps_take_the_place_of_charged_ends(peptide_pdb):
    found = fixed(peptide_pdb, caps=True)
    names = [residue.name for residue in found.topology.residues()]
    assert names == ["ACE", "GLY", "SER", "HIS", "ALA", "NME"]
    atoms = {(a.residue.name, a.name) for a in found.topology.atoms()}
    assert not {("ALA", "OXT"), ("GLY", "H2"), ("GLY", "H3")} & atoms
    system = load_force_field(DEFAULT_FORCE_FIELD).createSystem(found.topology)
    assert module._charge(system, found.topology.getNumAtoms()) == pytest.approx(0.0, abs=1e-3)


def test_gaps(peptide_pdb, tmp_path):
    text = peptide_pdb.read_text()
    gap = [f"SEQRES   1 A    4  GLY SER HIS ALA{'':>37}", *lines(without=("HIS",), text=text)]
    path = write(tmp_path / "gap.pdb", gap)
    with pytest.raises(ValueError, match="broken between SER 2 of chain A and ALA 4 of chain A"):
        fixed(path)
    with pytest.raises(ValueError, match="lists HIS between them.*--missing-residues gaps"):
        fixed(path)
    found = fixed(path, missing_residues="gaps")
    assert found.record["missing_residues_built"] == [
        {"chain": "A", "before_residue": 2, "residues": ["HIS"]}
    ]
    assert [r.name for r in found.topology.residues()] == ["GLY", "SER", "HIS", "ALA"]
    with pytest.raises(ValueError, match="or part the chain with a TER record"):
        fixed(write(tmp_path / "silent.pdb", gap[1:]), missing_residues="gaps")


def test_ends_that_are_missing_are_left_out(peptide_pdb, tmp_path):
    text = peptide_pdb.read_text()
    short = [f"SEQRES   1 A    4  GLY SER HIS ALA{'':>37}", *lines(without=("ALA",), text=text)]
    found = fixed(write(tmp_path / "short.pdb", short))
    assert [r.name for r in found.topology.residues()] == ["GLY", "SER", "HIS"]
    assert found.record["missing_residues_left_out"][0]["residues"] == ["ALA"]
    assert "left out" in " ".join(found.notes)


def test_alternate_locations(tmp_path):
    text = PDB.read_text().splitlines()
    place = next(k for k, line in enumerate(text) if line[12:16].strip() == "CB")
    one = f"{text[place][:16]}A{text[place][17:56]}0.40{text[place][60:]}"
    two = moved(f"{one[:16]}B{one[17:56]}0.60{one[60:]}", (0.1, 0.0, 0.0))
    path = write(tmp_path / "alternate.pdb", [*text[:place], one, two, *text[place + 1 :]])
    found = fixed(path)
    assert found.record["alternate_locations"] == [
        {"residue": "ALA 2 of chain A", "locations": ["A", "B"], "kept": "B"}
    ]
    index = next(a.index for a in found.topology.atoms() if a.name == "CB")
    assert 10 * found.positions[index][0] == pytest.approx(float(two[30:38]), abs=1e-3)


def test_mmcif_under_any_name(peptide, tmp_path):
    for name in ("ala2.cif", "ala2.pdb"):
        with open(tmp_path / name, "w") as file:
            places = peptide.positions * unit.nanometer
            app.PDBxFile.writeFile(peptide.topology, places, file)
        found = fixed(tmp_path / name)
        assert found.topology.getNumAtoms() == 22
        np.testing.assert_allclose(found.positions, peptide.positions, atol=6e-5)


def test_several_models(peptide, tmp_path):
    pdb, cif = tmp_path / "models.pdb", tmp_path / "models.cif"
    shifted = [peptide.positions + shift for shift in (0.0, 1.0)]
    for path, writer in ((pdb, app.PDBFile), (cif, app.PDBxFile)):
        with open(path, "w") as file:
            writer.writeHeader(peptide.topology, file)
            for k, x in enumerate(shifted):
                writer.writeModel(peptide.topology, x * unit.nanometer, file, k + 1)
            if writer is app.PDBFile:
                writer.writeFooter(peptide.topology, file)
        with pytest.raises(ValueError, match="holds 2 models .* 1 to 2"):
            load_structure(path)
        for k, x in enumerate(shifted):
            found = load_structure(path, frame=k + 1)
            np.testing.assert_allclose(found.positions, x, atol=6e-5)
            assert found.topology.getNumBonds() == 21
        with pytest.raises(ValueError, match="has no model 3, allowed are 1 to 2"):
            load_structure(path, frame=3)


def test_water_and_heterogens_by_choice(tmp_path):
    extra = [
        "HETATM   90  O   HOH A 101      12.000   0.000   0.000  1.00  0.00           O",
        "HETATM   91  C1  LIG A 102       0.000  12.000   0.000  1.00  0.00           C",
        "HETATM   92  C2  LIG A 102       1.500  12.000   0.000  1.00  0.00           C",
    ]
    path = write(tmp_path / "complex.pdb", [*lines()[:-1], *extra])
    with pytest.raises(ValueError, match="does not know LIG 102 of chain A: it has no bonds"):
        fixed(path)
    found = fixed(path, drop_heterogens=True)
    assert found.topology.getNumAtoms() == 22
    assert found.record["heterogens_dropped"] == ["LIG 102 of chain A"]
    assert found.record["waters_in_file"] == 1
    assert found.record["waters_kept"] == 0
    kept = fixed(path, drop_heterogens=True, keep_water=True)
    assert kept.topology.getNumAtoms() == 25


def test_modified_residues(tmp_path):
    # Norvaline, say: what the table of PDBFixer knows as a modification of alanine.
    path = write(tmp_path / "modified.pdb", [t.replace("ALA", "AIB") for t in lines()])
    with pytest.raises(ValueError, match="does not know AIB 2 of chain A, a modification of ALA"):
        fixed(path)
    found = fixed(path, replace_modified=True)
    assert found.record["residues_replaced"] == [{"residue": "AIB 2 of chain A", "by": "ALA"}]
    assert list(fitting_models(found.topology)[0]) == ["ala2-water"]


# -- force fields ----------------------------------------------------------------------------------


def test_bonds_come_from_the_force_field_by_names(butane, tmp_path):
    topology, x, path = butane
    bare = [t for t in path.read_text().splitlines() if not t.startswith("CONECT")]
    assert " BUT " in bare[1]
    found = fixed(write(tmp_path / "bare.pdb", bare), force_field=CHARMM)
    assert found.record["bonds_from_force_field"] == ["BUT 1 of chain A"]
    wanted = {frozenset((i.name, j.name)) for i, j in topology.bonds()}
    assert {frozenset((i.name, j.name)) for i, j in found.topology.bonds()} == wanted
    heavy = [t for t in bare if t[76:78].strip() != "H"]
    found = fixed(write(tmp_path / "heavy.pdb", heavy), force_field=CHARMM)
    assert found.record["hydrogens_added"] == 10
    assert {frozenset((i.name, j.name)) for i, j in found.topology.bonds()} == wanted


def test_in_implicit_solvent_without_a_box(implicit_installed, tmp_path, capfd):
    """The model is the one of that solvent, and what its card says is taken."""
    words = "--solvent implicit --temperature 310 --equilibration 0.1 --platform Reference --json"
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "out"), *words.split()]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["models"]["fitting"] == []
    assert "at 300 K, and this is for 310 K" in record["models"]["others"]["ala2-implicit"]
    assert record["settings"]["force_field"] == ["amber99sbildn.xml", "amber99_obc.xml"]
    prepared = read_prepared(tmp_path / "out")
    assert prepared.box_vectors is None
    assert not prepared.system.usesPeriodicBoundaryConditions()
    assert (prepared.system.getNumParticles(), prepared.system.getNumConstraints()) == (22, 12)
    forces = [type(force).__name__ for force in prepared.system.getForces()]
    assert "GBSAOBCForce" in forces
    assert prepared.velocities is not None
    assert prepared.temperature_K == 310.0
    words = words.replace("--temperature 310 ", "")
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "room"), *words.split()]) == 0
    assert json.loads(capfd.readouterr().out)["models"]["fitting"] == ["ala2-implicit"]
    assert read_prepared(tmp_path / "room").temperature_K == 300.0


def test_a_temperature_that_no_model_knows_and_what_to_do(butane, tmp_path, capsys):
    *_, path = butane
    command = ["prepare", str(path), "-o", str(tmp_path / "out"), "--waters", "300"]
    for file in CHARMM:
        command += ["--force-field", file]
    command += ["--temperature", "310"]
    assert main([*command, "--equilibration", "0", "--platform", "CPU"]) == 0
    said = capsys.readouterr().out
    assert "no installed model fits" in said
    assert "trained at 300 K, and this is for 310 K" in said
    assert f"openmm-sd generate {tmp_path}/out/solute.pdb" in said
    assert "--force-field charmm36.xml --force-field charmm36/water.xml --temperature 310" in said
    record = read_prepared(tmp_path / "out").provenance
    assert record["models"]["fitting"] == []
    assert "C4H10" in record["models"]["others"]["ala2-water"]
    assert "310 K" in record["models"]["others"]["alkanes-water"]


def test_a_solute_that_no_model_knows(tmp_path, capsys):
    """Glycine between the caps of alanine dipeptide."""
    out, pdb = str(tmp_path / "out"), str(GLYCINE)
    arguments = ["prepare", pdb, "-o", out, "--waters", "300"]
    assert main([*arguments, "--equilibration", "0", "--platform", "CPU"]) == 0
    said = capsys.readouterr().out
    assert "no installed model fits" in said
    assert f"openmm-sd generate {out}/solute.pdb" in said
    record = read_prepared(tmp_path / "out").provenance
    assert record["models"]["fitting"] == []
    assert "ACE-ALA-NME" in record["models"]["others"]["ala2-water"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("charmm36.xml",), "no parameters for water; .* --force-field charmm36/water.xml"),
        (("charmm36.xml", "tip3p.xml"), "do not go together.*--force-field charmm36/water.xml"),
        (DEFAULT_FORCE_FIELD, "does not know BUT 1 of chain A"),
        (("nonsense.xml",), "force field: .*nonsense.xml"),
    ],
)
@pytest.mark.parametrize("command", ["prepare", "generate"])
def test_force_fields_that_do_not_do(butane, files, said, command, tmp_path, capfd):
    *_, path = butane
    arguments = [command, str(path), "-o", str(tmp_path / "out"), "--waters", "300", "--json"]
    for file in files:
        arguments += ["--force-field", file]
    assert main(arguments) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert re.search(said, line), line
    assert not list(tmp_path.iterdir())


def test_a_force_field_that_cannot_choose(ala2):
    with pytest.raises(ValueError, match="charmm36/water.xml. is not unambiguous: .*ALAD, AANM"):
        solvate(ala2.to_topology(), ala2.positions, waters=240, force_field=CHARMM)


def test_a_force_field_object(butane, tmp_path):
    topology, x, _ = butane
    field = load_force_field(CHARMM)
    assert isinstance(field, app.ForceField)
    found = prepare_system(
        topology,
        PrepareSettings(force_field=field, waters=300, equilibration_ps=0.0, platform="CPU"),
        positions=x,
    )
    assert found.force_field == ()
    assert found.provenance["settings"]["force_field"] == "a ForceField object"


def test_waters_of_force_fields():
    assert water_box(DEFAULT_FORCE_FIELD) == "tip3p"
    assert water_box(("amber19-all.xml", "amber19/opc.xml")) == "tip4pew"
    assert water_box(("amber14-all.xml", "amber14/spce.xml")) == "spce"


# -- the box ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["cube", "dodecahedron", "octahedron"])
def test_shapes(ala2, shape):
    box = solvate(ala2.to_topology(), ala2.positions, width=2.6, shape=shape, cutoff=0.7)
    np.testing.assert_allclose(np.linalg.norm(box.box_vectors, axis=1), 2.6, atol=1e-6)
    volume = {"cube": 1.0, "dodecahedron": 0.7071, "octahedron": 0.7698}[shape] * 2.6**3
    assert np.linalg.det(box.box_vectors) == pytest.approx(volume, rel=1e-3)
    # Water at its density, and none where the solute is.
    assert 28.0 < box.n_waters / (volume - 0.2) < 35.0


def test_ions(peptide_pdb):
    found = fixed(peptide_pdb, variants={"A:3": "HIP"})
    box = solvate(found.topology, found.positions, waters=400, ionic_strength=0.2, seed=3)
    again = solvate(found.topology, found.positions, waters=400, ionic_strength=0.2, seed=3)
    count = found.topology.getNumAtoms()
    ions = module.count_ions(box.topology, count)
    # Of one pair in 55.4 / 0.2 waters, and one for the charge of the histidine.
    assert ions == {"NA": 1, "CL": 2}
    assert module._charge(box.system, count) == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_array_equal(box.positions, again.positions)
    bare = solvate(found.topology, found.positions, waters=400, neutralise=False)
    assert module.count_ions(bare.topology, count) == {}


def test_a_box_finds_its_size_and_rests_at_its_temperature(ala2, monkeypatch):
    box = solvate(ala2.to_topology(), ala2.positions, waters=240)
    start = box.box_vectors.copy()
    # Scaled to a liquid's density: TIP3P has 33 molecules in a cubic nanometre.
    assert np.linalg.det(start) == pytest.approx(240 * 0.0305 + 22 * 0.010)
    sizes = []
    real = openmm.LangevinMiddleIntegrator.step

    def look(self, steps):
        real(self, steps)
        sizes.append(
            np.linalg.det(box_module.nanometers(watched[0].getState().getPeriodicBoxVectors()))
        )

    watched, make = [], openmm.Context

    def context(*arguments):
        watched[:] = [make(*arguments)]
        return watched[0]

    monkeypatch.setattr(openmm, "Context", context)
    monkeypatch.setattr(openmm.LangevinMiddleIntegrator, "step", look)
    relaxed = equilibrate(box, time=4.0, step_size=0.004, platform="CPU")
    monkeypatch.undo()
    volume = np.linalg.det(relaxed.box_vectors)
    heated, resting = sizes[: len(sizes) // 5], sizes[-len(sizes) // 5 + 1 :]
    np.testing.assert_allclose(heated, np.linalg.det(start), rtol=1e-6)
    np.testing.assert_allclose(resting, volume, rtol=1e-6)
    assert len(set(np.round(sizes, 9))) > 5
    assert 0.94 < volume / np.linalg.det(start) < 1.06
    masses = [
        relaxed.system.getParticleMass(k)._value for k in range(relaxed.system.getNumParticles())
    ]
    freedom = 3 * len(masses) - relaxed.system.getNumConstraints() - 3
    kelvin = (np.array(masses)[:, None] * relaxed.velocities**2).sum() / (freedom * 0.00831446)
    assert abs(kelvin - 300) < 4 * 300 * np.sqrt(2 / freedom)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--box", "0.7"], "it would reach into its own copies"),
        (["--box", "1.6"], "needs more than 1.8 nm"),
        (["--box", "0"], "box_nm must be a positive number of nm"),
        (["--box", "3", "--padding", "1"], "give one of padding, waters and box"),
        (["--waters", "20"], "use more water"),
        (["--ph", "15"], "ph must be a number from 0 to 14"),
        (["--ph", "-1"], "ph must be a number from 0 to 14"),
        (["--temperature", "27"], "is it in degrees Celsius"),
        (["--temperature", "nan"], "temperature_K must be a number from 150 to 1000 K"),
        (["--box-shape", "ball"], "box_shape must be one of cube"),
        (["--positive-ion", "Ca2+"], "positive_ion must be one of"),
        (["--missing-residues", "some"], "missing_residues must be one of none, gaps, all"),
        (["--equilibration", "-1"], "equilibration_ps must be a number of at least 0"),
        (["--platform", "Abacus"], "platform must be one of"),
        (["--variant", "HIP"], "variant must be CHAIN:NUMBER=FORM"),
        (["--frame", "2"], "has no model 2, allowed are 1 to 1"),
        (["--hydrogen-mass", "heavy"], "--hydrogen-mass: must be a number, or off"),
        (["--seed", "0"], "seed must be a whole number"),
        (["--solvent", "dry"], "solvent must be one of explicit, implicit"),
        (["--solvent", "implicit", "--waters", "9"], "waters is for explicit water"),
        (
            ["--solvent", "implicit", "--force-field", "amber14-all.xml"],
            "the force field (amber14-all.xml) has no implicit solvent",
        ),
    ],
)
def test_wrong_arguments(arguments, said, tmp_path, capfd):
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "out"), *arguments, "--json"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["VAL", "ILE", "THR"])
def test_a_backbone_alone_becomes_an_l_amino_acid(name, tmp_path):
    text = [t.replace("ALA", name) for t in lines(without=("CB",))]
    repaired = repair(load_structure(write(tmp_path / "in.pdb", text)), PrepareSettings())
    atoms = {
        a.name: repaired.positions[a.index] for a in list(repaired.topology.residues())[1].atoms()
    }
    n, c, side = (atoms[one] - atoms["CA"] for one in ("N", "C", "CB"))
    assert np.dot(np.cross(n, c), side) > 0
    assert np.linalg.norm(side) == pytest.approx(0.153, abs=0.01)
    (added,) = repaired.record["atoms_added"]
    assert added["residue"] == f"{name} 2 of chain A"
    assert added["atoms"][0] == "CB"


@pytest.mark.parametrize(
    "sequence",
    [
        "ACE-ALA-ARG-ASN-ASP-NME",
        "ACE-CYS-GLN-GLU-GLY-NME",
        "ACE-HID-HIE-HIP-ILE-NME",
        "ACE-LEU-LYS-MET-PHE-NME",
        "ACE-PRO-SER-THR-TRP-NME",
        "ACE-TYR-VAL-ASH-GLH-NME",
        "AIT",
        "PG",
    ],
)
def test_a_sequence_becomes_an_l_peptide_with_trans_bonds(sequence):
    structure, variants = from_sequence(sequence)
    repaired = repair(structure, PrepareSettings(variants=variants))
    assert repaired.record["cis_peptide_bonds"] == []
    residues = list(repaired.topology.residues())
    for residue in residues:
        at = {atom.name: repaired.positions[atom.index] for atom in residue.atoms()}
        if "CB" in at:
            n, c, side = (at[name] - at["CA"] for name in ("N", "C", "CB"))
            assert np.dot(np.cross(n, c), side) > 0
        if residue.name in ("ILE", "THR"):
            heavy = ("CG1", "CG2") if residue.name == "ILE" else ("OG1", "CG2")
            arms = np.array([at[name] for name in ("CA", *heavy)]) - at["CB"]
            # S in isoleucine and R in threonine; the heavier branch comes first.
            assert np.linalg.det(arms) > 0
    expected = {"HID": {"HD1"}, "HIE": {"HE2"}, "HIP": {"HD1", "HE2"}, "ASH": {"HD2"}}
    expected |= {"GLH": {"HE2"}}
    for place, form in variants.items():
        residue = residues[int(place.partition(":")[2]) - 1]
        protons = {a.name for a in residue.atoms()} & {"HD1", "HD2", "HE2"}
        assert protons - ({"HD2"} if form.startswith("HI") else set()) == expected[form]


def test_a_sequence_is_prepared(tmp_path, capfd):
    out = tmp_path / "out"
    command = ["prepare", "--sequence", "ACE-ALA-NME", "-o", str(out), "--solvent", "implicit"]
    assert main([*command, "--equilibration", "0", "--platform", "Reference", "--json"]) == 0
    json.loads(capfd.readouterr().out)
    assert read_prepared(out).system.getNumParticles() == 22


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sequence", "ACE-NME"], "has caps but no residue"),
        (["--sequence", "ACE-DAL-NME"], "DAL is no standard residue, and only L amino acids"),
        (["--sequence", "NME-ALA-ACE"], "NME is a cap"),
        (["--sequence", "AXA"], "X is no standard residue"),
        (["--sequence", "ACE--NME"], "is no standard residue"),
        (["--sequence", "AAA", str(PDB)], "give a structure or a --sequence"),
        ([], "give a structure or a --sequence"),
    ],
)
def test_wrong_sequences(arguments, said, tmp_path, capfd):
    assert main(["prepare", "-o", str(tmp_path / "out"), *arguments]) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# -- wrong structures ------------------------------------------------------------------------------


def mirrored():
    return [
        moved(t, (0.0, 0.0, -2 * float(t[46:54]))) if t.startswith(("ATOM", "HETATM")) else t
        for t in lines()
    ]


def scaled(factor):
    return [
        moved(t, [(factor - 1) * float(t[k : k + 8]) for k in (30, 38, 46)])
        if t.startswith(("ATOM", "HETATM"))
        else t
        for t in lines()
    ]


def exchanged(one, two):
    text = lines()
    text[one], text[two] = text[two], text[one]
    return text


def with_place(place):
    text = lines()
    text[5] = f"{text[5][:30]}{place}{text[5][54:]}"
    return text


STRUCTURES = {
    "empty": ([], "holds no atoms in PDB format"),
    "text": (["no structure at all"], "holds no atoms in PDB format"),
    "half": ([lines()[4][:40]], "cannot be read"),
    "backbone": (lines(without=("CA",)), "ALA 2 of chain A lacks CA of its backbone"),
    "broken": (
        [moved(t, (9.0, 0.0, 0.0)) if " NME " in t else t for t in lines()],
        "the chain is broken between ALA 2 of chain A and NME 3 of chain A",
    ),
    "torn": (
        [moved(t, (9.0, 0.0, 0.0)) if " CB " in t else t for t in lines()],
        "the bond from CA to CB of ALA 2 of chain A is",
    ),
    "unknown": ([t.replace("ALA", "XXX") for t in lines()], "does not know XXX 2 of chain A"),
    "hand": (mirrored(), "ALA 2 of chain A is a D amino acid"),
    "pieces": (exchanged(1, 9), "ACE 1 of chain A comes twice in the file"),
    "named": ([t.replace("ALA", "DAL") for t in lines()], "DAL 2 of chain A, a modification of"),
    "nan": (with_place("     nan     nan     nan"), "NaN or infinity"),
    "overlap": (with_place(lines()[4][30:54]), "are on top of each other"),
    "nanometers": (scaled(0.1), "in other units"),
    "tenfold": (scaled(10.0), "in other units"),
    "water": (
        ["HETATM   90  O   HOH A 101      12.000   0.000   0.000  1.00  0.00           O"],
        "nothing but water",
    ),
}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("noise.pdb", bytes(range(256)) * 40),
        ("zipped.pdb", gzip.compress(PDB.read_bytes())),
        ("wide.pdb", PDB.read_text().encode("utf-16")),
        ("page.pdb", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        ("noise.cif", bytes(range(256)) * 40),
    ],
)
def test_files_that_are_no_structures(name, data, tmp_path, capfd):
    (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / name), "-o", str(out), "--json"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "holds no atoms" in captured.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["prepare", "run"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_wrong_structures(kind, command, tmp_path, capfd):
    content, said = STRUCTURES[kind]
    path = write(tmp_path / "in.pdb", content)
    arguments = [command, str(path), "-o", str(tmp_path / "out"), "--json"]
    assert main([*arguments, *(["--jumps", "1"] if command == "run" else [])]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert said in line
    assert "in.pdb" in line
    assert len(line.replace(str(tmp_path), "")) < 400
    assert [file.name for file in tmp_path.iterdir()] == ["in.pdb"]


@pytest.mark.parametrize("box", ["    0.000    0.000    0.000", "    1.000    1.000    1.000"])
def test_a_box_without_volume_is_none(box, tmp_path):
    line = f"CRYST1{box}  90.00  90.00  90.00 P 1           1 "
    assert fixed(write(tmp_path / "in.pdb", [line, *lines()])).topology.getNumAtoms() == 22


def test_a_solute_broken_across_the_box_is_made_whole(peptide, tmp_path):
    wrapped = (peptide.positions - peptide.positions[8]) % 3.0
    topology = app.Modeller(peptide.topology, wrapped * unit.nanometer).topology
    topology.setUnitCellDimensions(openmm.Vec3(3, 3, 3) * unit.nanometer)
    found = fixed(pdb_of(topology, wrapped, tmp_path / "wrapped.pdb"))
    assert np.ptp(found.positions, axis=0).max() < 1.2


def test_no_such_file(tmp_path, capfd):
    assert main(["prepare", str(tmp_path / "no.pdb"), "-o", str(tmp_path / "out")]) == 2
    assert "there is no file" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path, capfd):
    (tmp_path / "out").write_text("mine")
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "out")]) == 2
    assert "is a file" in capfd.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "out" / "deeper")]) == 2
    assert "cannot write to" in capfd.readouterr().err
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("mine")
    assert main(["prepare", str(PDB), "-o", str(tmp_path / "others"), "--force"]) == 2
    assert "holds other files (thesis.tex)" in capfd.readouterr().err


# -- objects ---------------------------------------------------------------------------------------


def test_from_objects(peptide, implicit_installed, tmp_path):
    """A Topology, a Modeller, a PDBFile and a trajectory say the same; without water, for speed."""
    path = pdb_of(peptide.topology, peptide.positions, tmp_path / "ala2.pdb")
    settings = PrepareSettings(solvent="implicit", equilibration_ps=0.0, platform="Reference")
    pdb = app.PDBFile(str(path))
    trajectory = mdtraj.load(str(path))
    sources = [
        ((pdb.topology,), {"positions": pdb.positions}),
        ((trajectory.topology,), {"positions": trajectory.xyz[0]}),
        ((pdb,), {}),
        ((app.Modeller(pdb.topology, pdb.positions),), {}),
        ((trajectory,), {}),
    ]
    for one, more in sources:
        found = prepare_system(*one, settings, **more)
        assert found.system.getNumParticles() == 22
        assert found.provenance["models"]["fitting"] == ["ala2-implicit"]
        assert found.provenance["repair"]["hydrogens_added"] == 0


def test_objects_that_are_none(peptide):
    for wrong, positions in ((5, None), (peptide.topology, None), (np.zeros((3, 3)), None)):
        with pytest.raises(ValueError, match="wanted is a PDB or mmCIF file"):
            prepare_system(wrong, positions=positions)
    with pytest.raises(ValueError, match=r"positions must have shape \(22, 3\), got \(21, 3\)"):
        prepare_system(peptide.topology, positions=peptide.positions[1:])
    frames = mdtraj.Trajectory(
        np.stack([peptide.positions] * 2), mdtraj.Topology.from_openmm(peptide.topology)
    )
    with pytest.raises(ValueError, match=r"has 2 frames; give one: traj\[0\]"):
        prepare_system(frames)
    with pytest.raises(ValueError, match="in other units"):
        prepare_system(peptide.topology, positions=peptide.positions * 10)


def test_to_and_from_other_packages(made):
    prepared = read_prepared(made[0])
    frame = prepared.to_mdtraj()
    assert frame.n_atoms == prepared.topology.getNumAtoms()
    np.testing.assert_allclose(frame.unitcell_vectors[0], prepared.box_vectors, atol=1e-6)
    simulation = app.Simulation(
        *(prepared.topology, prepared.system, openmm.LangevinMiddleIntegrator(300, 1, 0.004)),
        openmm.Platform.getPlatform("CPU"),
    )
    prepared.place(simulation)
    simulation.step(2)
    again = PreparedSystem.from_simulation(simulation)
    assert again.step_ps == pytest.approx(0.004)
    assert not np.array_equal(again.positions, prepared.positions)
    np.testing.assert_allclose(again.box_vectors, prepared.box_vectors)
    assert os.path.isdir(made[0])
