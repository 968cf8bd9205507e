"""GROMACS as the engine of `generate`: the same energies as OpenMM, runs that survive a kill."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from programs import launch

from openmm_sd import Molecule
from openmm_sd.analysis import dihedral
from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.files.trajectories import xtc_bytes
from openmm_sd.generate import GenerateSettings, generate, slow_torsions
from openmm_sd.generate.gromacs import check, find_gromacs, keeper as keeper_module
from openmm_sd.generate.gromacs.runs import count_frames, read_frames
from openmm_sd.generate.gromacs.speed import faster_engine
from openmm_sd.generate.gromacs.start import flexible_system, make_start, solvated
from openmm_sd.generate.gromacs.topology import CannotWriteError, gromacs_topology, pulled
from openmm_sd.generate.peptides import Amides, d_residues
from openmm_sd.generate.start import read_solute

import openmm  # isort: skip
from openmm import app  # isort: skip

needs_gmx = pytest.mark.skipif(shutil.which("gmx") is None, reason="there is no gmx here")


def wet(**changes):
    """A small box with a short cutoff."""
    small = {
        **{"engine": "gromacs", "waters": 150, "cutoff_nm": 0.5, "equilibration_ps": 2.0},
        **{"spacing_ps": 0.2, "plain_ps": 0.4, "warm_up_ps": 0.2},
        **{"seeded_ps": 0.2, "pull_ps": 1.2, "drop_ps": 0.0},
    }
    return GenerateSettings(**(small | changes))


@pytest.fixture(scope="module")
def pdb(peptide, tmp_path_factory):
    """Alanine dipeptide in a file."""
    path = tmp_path_factory.mktemp("solute") / "ala2.pdb"
    with open(path, "w") as file:
        app.PDBFile.writeFile(peptide.topology, 10.0 * peptide.positions, file)
    return path


def solute(settings, path):
    topology, positions = read_solute(path, settings)
    return topology, positions, Molecule.from_topology(topology, positions, "solute")


# -- the topology --------------------------------------------------------------------------------


def written(settings, path):
    """What GROMACS is given: the text, the System it is from, the whole Topology."""
    topology, positions, molecule = solute(settings, path)
    cell = solvated(topology, positions, settings)
    system = flexible_system(cell.topology, settings)
    text = gromacs_topology(system, cell.system, cell.topology, molecule.n_atoms)
    return text, system, cell.topology, molecule


@needs_gmx
def test_energies_and_forces_are_those_of_openmm(pdb, tmp_path):
    settings = wet()
    topology, positions, molecule = solute(settings, pdb)
    folder = tmp_path / "gromacs"
    program = find_gromacs()
    start = make_start(
        topology, positions, molecule, settings, program, 1, folder, lambda what, how_far: None
    )
    facts = json.loads((folder / "box.json").read_text())
    energies = facts["compared"]["energies_kJ_per_mol"]
    assert energies.keys() == {"bonds", "angles", "torsions", "Lennard-Jones", "Coulomb"}
    assert all(abs(one) > 10.0 for one, _ in energies.values())
    assert facts["compared"]["force_difference"]["exact"] < 1e-4
    # The box has the density of water, in the shape asked for.
    volume = np.linalg.det(start.box)
    assert 0.026 < (volume - 0.2) / start.waters < 0.039  # a cutoff so short holds it together less
    assert start.box[2, 0] == pytest.approx(start.box[0, 0] / 2, rel=1e-6)

    # A topology with a mistake does not pass, and the message says where it is.
    cell = solvated(topology, positions, settings)
    system = flexible_system(cell.topology, settings)
    frame = cell.topology, molecule.n_atoms, start.positions, start.box, settings
    compare = functools.partial(check.compare, program, folder, system, *frame)
    compare()
    text = (folder / "system.top").read_text()
    for wrong, term in ((_without_a_torsion(text), "torsions"), (_charged(text), "Coulomb")):
        (folder / "system.top").write_text(wrong)
        with pytest.raises(ValueError, match=rf"do not agree on .*{term}.*nothing was run"):
            compare()


def _without_a_torsion(text):
    lines = text.splitlines()
    place = lines.index("[ dihedrals ]") + 1
    strong = max(range(place, lines.index("; pulled torsions")), key=lambda k: lines[k].split()[6])
    return "\n".join(lines[:strong] + lines[strong + 1 :]) + "\n"


def _charged(text):
    lines = text.splitlines()
    place = lines.index("[ atoms ]") + 2
    fields = lines[place].split()
    fields[6] = f"{float(fields[6]) + 0.05:.6f}"
    return "\n".join([*lines[:place], " ".join(fields), *lines[place + 1 :]]) + "\n"


def test_a_topology_holds_what_the_system_holds(pdb):
    text, system, _, molecule = written(wet(), pdb)
    sections = text.split("[ ")
    count = {name.split(" ]")[0]: len(name.strip().splitlines()) - 1 for name in sections}
    hydrogens = sum(z == 1 for z in molecule.atomic_numbers)
    assert count["constraints"] == hydrogens + 1  # and the line that ends the alternative
    assert text.count("[ moleculetype ]") == 2
    assert text.rstrip().endswith("HOH 150")
    # Heavy hydrogens, whose mass comes from their neighbours.
    rows = text.split("[ atoms ]")[1].splitlines()[1 : molecule.n_atoms + 1]
    masses = [float(row.split()[7]) for row in rows]
    assert sorted(masses)[:hydrogens] == pytest.approx([3.0] * hydrogens, abs=0.01)
    # A pull is one more torsion with one minimum.
    extra = pulled(text, [(4, 6, 8, 14)], [np.pi / 3], 60.0).splitlines()
    assert "5 7 9 15 9 240.000000 60.0000 1" in extra
    assert len(extra) == len(text.splitlines())


def test_what_gromacs_is_not_told_is_refused(pdb):
    text, system, topology, molecule = written(wet(), pdb)
    for force, word in (
        (openmm.CustomBondForce("r"), "CustomBondForce"),
        (openmm.GBSAOBCForce(), "GBSAOBCForce"),
        (openmm.NonbondedForce(), "several nonbonded forces"),
    ):
        copy = openmm.XmlSerializer.clone(system)
        if word == "CustomBondForce":
            force.addBond(0, 1)
        copy.addForce(force)
        with pytest.raises(CannotWriteError, match=rf"{word}.*--engine openmm"):
            gromacs_topology(copy, copy, topology, molecule.n_atoms)


@needs_gmx
def test_charmm_is_written_as_well(pdb, tmp_path):
    """Pair tables, 1-4 pairs of their own, Urey-Bradley terms: butane, as OpenMM's file has it."""
    butane = read_dataset(Path(__file__).parents[1] / "data" / "butane-water.h5").molecule
    path = tmp_path / "butane.pdb"
    with open(path, "w") as file:
        app.PDBFile.writeFile(butane.to_topology(), 10.0 * butane.positions, file)
    settings = wet(force_field=("charmm36.xml", "charmm36/water.xml"))
    topology, positions, molecule = solute(settings, path)
    folder = tmp_path / "gromacs"
    make_start(topology, positions, molecule, settings, find_gromacs(), 1, folder, lambda *_: None)
    text = (folder / "system.top").read_text()
    angles = text.split("[ angles ]")[1].split("[ dihedrals ]")[0].split("\n")
    assert any(line.split()[3:4] == ["5"] for line in angles)
    energies = json.loads((folder / "box.json").read_text())["compared"]["energies_kJ_per_mol"]
    assert all(one != 0.0 for one, _ in energies.values())


# -- the runs ------------------------------------------------------------------------------------


@needs_gmx
def test_plain_and_seeded_runs_make_a_data_set(pdb, tmp_path):
    settings = wet(plain_runs=1, seeded_runs=2, pull_ps=6.0)
    result = generate(pdb, tmp_path / "a.h5", settings, processes=2)
    assert result["complete"]
    assert not result["left_out"]
    data = read_dataset(tmp_path / "a.h5")
    assert [run.name for run in data.runs] == ["plain-00000", "seeded-00000", "seeded-00001"]
    assert [run.n_frames for run in data.runs] == [3, 2, 2]
    assert not list(tmp_path.glob("*.parts"))
    known = data.provenance
    assert known["engine"].startswith("GROMACS 20")
    assert known["integrator"].startswith("sd")
    assert known["box_shape"] == "dodecahedron"
    assert known["waters"] == 150
    assert known["generate"]["engine"] == "gromacs"
    assert known["ions"] == {}
    assert known["compared"]["force_difference"]["exact"] < 1e-4
    assert len(known["constraint_lengths_nm"]) == 12
    assert known["torsion_terms"]
    # Constrained bonds are as long as OpenMM says, seeded runs near where they were pulled to.
    for heavy, hydrogen, length in known["constraint_lengths_nm"]:
        arms = data.runs[0].positions[:, heavy] - data.runs[0].positions[:, hydrogen]
        assert np.linalg.norm(arms, axis=-1) == pytest.approx(length, abs=2e-4)
    for run in data.runs[1:]:
        found = [np.rad2deg(dihedral(run.positions, t)[0]) for t in slow_torsions(data.molecule)]
        off = (np.array(found) - run.info["start_deg"] + 180.0) % 360.0 - 180.0
        assert np.abs(off).max() < 45.0
    assert len({run.info["seed"] for run in data.runs}) == 3
    # Asked for again, there is nothing to do; with OpenMM it would be another data set.
    again = generate(pdb, tmp_path / "a.h5", settings)
    assert again["seconds"] == 0.0
    with pytest.raises(ValueError, match="other settings"):
        generate(pdb, tmp_path / "a.h5", GenerateSettings(waters=150, cutoff_nm=0.5))


def command(pdb, output, *more, ps=3000):
    amounts = ["--plain", "1", "--plain-ps", f"{ps:g}", "--spacing", "0.2", "--warm-up", "0.2"]
    box = ["--waters", "150", "--cutoff", "0.5", "--equilibration", "2", "--engine", "gromacs"]
    return ["generate", str(pdb), "-o", str(output), *amounts, *box, "--save-seconds", "1", *more]


def started(arguments, output, least=20):
    """Begin, and wait until there are frames."""
    process = launch(*arguments, folder=output.parent)
    trajectory = Path(f"{output}.parts") / "gromacs" / "plain-00000.0.xtc"
    until = time.monotonic() + 300.0
    while not trajectory.exists() or count_frames(trajectory)[1] < least:
        assert process.running, process.stderr
        assert time.monotonic() < until
        time.sleep(0.05)
    return process, trajectory


@needs_gmx
def test_killed_and_stopped_runs_go_on(pdb, tmp_path):
    output = tmp_path / "a.h5"
    process, trajectory = started(command(pdb, output, "--processes", "1"), output)
    # What is there at a checkpoint is safe.
    checkpoint, safe = trajectory.with_suffix(".cpt"), 1
    while not checkpoint.exists():
        assert process.running, process.stderr
        safe = count_frames(trajectory)[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # GROMACS, left alone, ends.
    log, until = trajectory.with_suffix(".log"), time.monotonic() + 200.0
    while "Finished mdrun" not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    before = read_frames(trajectory)[0][:safe]
    assert len(before) >= 1

    process, _ = started(command(pdb, output, "--processes", "1"), output, len(before) + 5)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == 130
    part = read_dataset(output)
    assert part.provenance["complete"] is False
    assert len(before) - 1 <= part.n_frames

    # A little more than there is, however fast the machine was.
    ps = 0.2 * (part.n_frames + 9)
    assert main([*command(pdb, output, ps=ps), "--json"]) == 0
    data = read_dataset(output)
    assert data.provenance["complete"] is True
    assert data.n_frames == part.n_frames + 10
    assert not list(tmp_path.glob("*.parts"))
    # What was there before the kill is the beginning of what there is now.
    (run,) = data.runs
    centred = before[: len(before) - 1] - before[: len(before) - 1].mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred[:, 0] - centred[:, 1], axis=-1)
    now = np.linalg.norm(run.positions[:, 0] - run.positions[:, 1], axis=-1)
    assert now[: len(lengths)] == pytest.approx(lengths, abs=3e-4)
    assert np.array_equal(part.runs[0].positions, run.positions[: part.n_frames])


@pytest.mark.parametrize("system", [sys.platform, "darwin"])
def test_a_program_ends_once_with_the_process_that_started_it(tmp_path, system):
    """However many threads that had: GROMACS told twice writes no checkpoint."""
    said = tmp_path / "said"
    script = (
        "import runpy, subprocess, sys\n"
        f"sys.platform = {system!r}\n"
        f"runpy.run_path({keeper_module.__file__!r}, run_name='__main__')"
    )
    keeper = ["-c", script]
    program = (
        f"import signal, time; f = open({str(said)!r}, 'ab', 0); "
        "signal.signal(signal.SIGTERM, lambda *_: f.write(b'told ')); f.write(b'up ')\n"
        "for _ in range(15): time.sleep(0.1)"
    )
    parent = (
        "import os, subprocess, sys, threading, time\n"
        "for _ in range(5): threading.Thread(target=time.sleep, args=(60,)).start()\n"
        f"subprocess.Popen([sys.executable, *{keeper!r}, str(os.getpid()), sys.executable, "
        f"'-c', {program!r}])\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    until = time.monotonic() + 60.0
    while not said.exists() or not said.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(2.0)
    assert said.read_text() == "up told "
    done = subprocess.run([sys.executable, *keeper, str(os.getpid()), sys.executable, "-c", "1/0"])
    assert done.returncode == 1
    killed = "import os; os.kill(os.getpid(), 11)"
    done = subprocess.run([sys.executable, *keeper, str(os.getpid()), sys.executable, "-c", killed])
    assert done.returncode == -signal.SIGSEGV


def test_what_gromacs_cannot_do_is_refused_in_a_line(pdb, tmp_path, monkeypatch):
    for changes, message in (
        ({"solvent": "implicit", "waters": None}, "no implicit solvent.*--engine openmm"),
        ({"copies": 2}, "one solute a box"),
        ({"engine": "amber"}, "one of openmm, gromacs, auto"),
        ({"box_shape": "sphere"}, "one of cube, dodecahedron"),
        ({"box_shape": "dodecahedron", "engine": "openmm"}, "is a cube"),
        ({"box_shape": "dodecahedron", "box_nm": 2.0}, "is a cube"),
    ):
        with pytest.raises(ValueError, match=message):
            wet(**changes)
    with pytest.raises(ValueError, match="Dask"):
        generate(pdb, tmp_path / "a.h5", wet(), dask=1)
    with pytest.raises(ValueError, match="platform is OpenMM's"):
        generate(pdb, tmp_path / "a.h5", wet(), platform="CPU")
    with pytest.raises(ValueError, match=r"gmx names.*--engine gromacs"):
        generate(pdb, tmp_path / "a.h5", GenerateSettings(), gmx="gmx")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ValueError, match=r"no program gmx.*apt-get install gromacs"):
        generate(pdb, tmp_path / "a.h5", wet())
    fake = tmp_path / "gmx"
    fake.write_text("#!/bin/sh\necho 'GROMACS version:    2018.1'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ValueError, match="is GROMACS 2018.1; needed is 2021"):
        generate(pdb, tmp_path / "a.h5", wet())
    assert not list(tmp_path.glob("*.parts"))


def test_settings_of_openmm_are_named_as_before():
    """Data sets from before there was another engine are still the same data sets."""
    assert {"engine", "box_shape"}.isdisjoint(GenerateSettings().identity())
    assert wet().identity()["engine"] == "gromacs"


def test_auto_says_why(pdb, tmp_path):
    said = []
    settings = GenerateSettings(
        engine="auto", solvent="implicit", plain_ps=1.0, warm_up_ps=0.0, spacing_ps=0.2
    )
    result = generate(
        pdb, tmp_path / "a.h5", settings, processes=1, progress=lambda *text: said.append(text)
    )
    assert ("engine openmm", "GROMACS has no implicit solvent") in said
    assert result["provenance"]["engine"].startswith("OpenMM")
    # What is there decides, without another measurement.
    said.clear()
    again = generate(pdb, tmp_path / "a.h5", settings, progress=lambda *text: said.append(text))
    assert again["seconds"] == 0.0
    assert not said


@needs_gmx
def test_auto_measures_both(pdb):
    said = {}
    settings = wet(engine="auto")
    topology, positions, _ = solute(settings, pdb)
    tell = lambda *text: said.update([text])  # noqa: E731
    chosen = faster_engine(settings, topology, positions, "CPU", None, None, tell)
    found = re.search(r"openmm (\S+), gromacs (\S+)", said[f"engine {chosen}"])
    rates = dict(zip(("openmm", "gromacs"), map(float, found.groups()), strict=True))
    assert min(rates.values()) > 0.0
    assert rates[chosen] == max(rates.values())


# -- hands, and sides of peptide bonds -----------------------------------------------------------


def test_d_residues_and_cis_bonds_are_seen(ala2):
    assert d_residues(ala2) == []
    assert Amides(ala2).cis() == []
    assert len(Amides(ala2).torsions) == 2
    mirrored = Molecule.from_dict({**ala2.to_dict(), "positions": (-ala2.positions).tolist()})
    assert d_residues(mirrored) == ["ALA 2"]
    # Turn everything behind the first peptide bond by half a turn.
    c, n = Amides(ala2).torsions[0][1:3]
    x = ala2.positions.copy()
    axis = (x[n] - x[c]) / np.linalg.norm(x[n] - x[c])
    behind = [k for k in range(ala2.n_atoms) if k not in (0, 1, 2, 3, 4, 5)]
    arm = x[behind] - x[c]
    x[behind] = x[c] + 2.0 * np.outer(arm @ axis, axis) - arm
    cis = Molecule.from_dict({**ala2.to_dict(), "positions": x.tolist()})
    assert len(Amides(cis).cis()) == 1
    assert "has turned over" in Amides(ala2).turned(x)


def test_frames_of_a_growing_trajectory_are_counted(tmp_path):
    rng = np.random.default_rng(1)
    for atoms in (5, 22):  # without and with compression
        frames = rng.normal(size=(4, atoms, 3)).astype(np.float32)
        times = np.arange(4, dtype=np.float32)
        boxes = np.tile(3.0 * np.eye(3, dtype=np.float32), (4, 1, 1))
        data = xtc_bytes(frames, times, np.arange(4, dtype=np.int32), boxes, tmp_path)
        path = tmp_path / f"{atoms}.xtc"
        path.write_bytes(data)
        assert count_frames(path) == (len(data), 4)
        path.write_bytes(data[:-5])
        place, count = count_frames(path)
        assert count == 3
        path.write_bytes(data)
        assert count_frames(path, place) == (len(data), 1)
        assert read_frames(path)[0] == pytest.approx(frames, abs=1e-3)
