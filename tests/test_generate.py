"""Molecular dynamics to a data set: seeding, copies, stopping, killing, going on."""

import itertools
import json
import os
import signal
import threading
import time
import types

import numpy as np
import pytest
from programs import launch

from openmm_sd import Molecule
from openmm_sd.analysis import dihedral
from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.generate import (
    FrameCheck,
    GenerateSettings,
    dynamics,
    generate,
    parse_torsion,
    slow_torsions,
    spread_points,
)
from openmm_sd.generate.parts import Parts
from openmm_sd.prepare import solvate


def implicit(**changes):
    """Seconds of work on the Reference platform."""
    small = {"plain_ps": 10.0, "warm_up_ps": 1.0, "seeded_ps": 2.0, "pull_ps": 6.0}
    return GenerateSettings(solvent="implicit", **(small | changes))


def wet(**changes):
    """A small box with a short cutoff."""
    small = {
        **{"waters": 60, "cutoff_nm": 0.5, "equilibration_ps": 0.4, "plain_ps": 0.4},
        **{"spacing_ps": 0.2, "warm_up_ps": 0.2, "seeded_ps": 0.2, "pull_ps": 0.6},
    }
    return GenerateSettings(**(small | changes))


# -- where seeded runs start ---------------------------------------------------------------------


def names(molecule, torsions):
    return [tuple(molecule.atom_names[i] for i in t) for t in torsions]


def test_phi_and_psi_are_what_turns(ala2):
    assert names(ala2, slow_torsions(ala2)) == [("C", "N", "CA", "C"), ("N", "CA", "C", "N")]


def graph_molecule(elements, bonds):
    z = {"C": 6, "H": 1, "N": 7, "O": 8, "F": 9}
    labels = [f"{e}{i}" for i, e in enumerate(elements)]
    n = len(elements)
    positions = np.random.default_rng(0).normal(size=(n, 3))
    return Molecule(
        "x", tuple(z[e] for e in elements), bonds, labels, ["X"] * n, ["1"] * n, positions
    )


def test_other_molecules_turn_where_chemists_say():
    # butane: only the middle bond
    butane = graph_molecule(
        "CCCC" + "H" * 10,
        [(0, 1), (1, 2), (2, 3)]
        + [(c, 4 + k) for k, c in enumerate((0, 0, 0, 1, 1, 2, 2, 3, 3, 3))],
    )
    assert slow_torsions(butane) == [(0, 1, 2, 3)]
    # 2-butene: a double bond, and methyl groups
    butene = graph_molecule(
        "CCCC" + "H" * 8,
        [(0, 1), (1, 2), (2, 3)] + [(c, 4 + k) for k, c in enumerate((0, 0, 0, 1, 2, 3, 3, 3))],
    )
    assert slow_torsions(butene) == []
    # cyclopropylmethanol's ring does not turn, its arm does; the OH has no heavy atom to turn
    ring = graph_molecule(
        "CCCCO" + "H" * 8,
        [(0, 1), (1, 2), (0, 2), (0, 3), (3, 4)]
        + [(c, 5 + k) for k, c in enumerate((0, 1, 1, 2, 2, 3, 3, 4))],
    )
    assert slow_torsions(ring) == [(1, 0, 3, 4)]
    # 1,1,1-trifluoropropane's CF3 looks the same after a third of a turn
    cf3 = graph_molecule(
        "CCCFFF" + "H" * 5,
        [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5)]
        + [(c, 6 + k) for k, c in enumerate((1, 1, 2, 2, 2))],
    )
    assert slow_torsions(cf3) == []


def test_torsions_can_be_named(ala2):
    phi = slow_torsions(ala2)[0]
    assert parse_torsion("ACE:C,ALA:N,ALA:CA,ALA:C", ala2) == phi
    assert parse_torsion("ACE:C, 2:N, ALA2:CA, ALA:C", ala2) == phi
    assert parse_torsion(",".join(map(str, phi)), ala2) == phi
    for text, message in (
        ("1,2,3", "four atoms"),
        ("0,1,2,99", "no atom 99"),
        ("C,N,CA,C", "3 atoms are named 'C'"),
        ("ALA:XX,ALA:N,ALA:CA,ALA:C", "no atom is named"),
        ("ALA:CB,ALA:N,ALA:CA,ALA:C", "are not bonded"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_torsion(text, ala2)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_points_cover_the_torus_better_than_chance(dimensions):
    points = spread_points(0, 200, dimensions, seed=4)
    assert points.shape == (200, dimensions)
    assert points.min() >= -np.pi
    assert points.max() < np.pi
    assert np.array_equal(spread_points(50, 10, dimensions, seed=4), points[50:60])
    assert not np.allclose(spread_points(0, 200, dimensions, seed=5), points)

    def nearest(x):
        apart = np.abs(x[:, None] - x[None])
        apart = np.sqrt((np.minimum(apart, 2 * np.pi - apart) ** 2).sum(-1))
        np.fill_diagonal(apart, np.inf)
        return apart.min(axis=1).min()

    chance = np.random.default_rng(1).uniform(-np.pi, np.pi, points.shape)
    assert nearest(points) > 2.0 * nearest(chance)


def test_seeded_runs_start_at_their_torsions(pdb, tmp_path):
    output = tmp_path / "data.h5"
    generate(pdb, output, implicit(plain_runs=0, seeded_runs=8, drop_ps=0.0), processes=1)
    data = read_dataset(output)
    assert [run.kind for run in data.runs] == ["seeded"] * 8
    off = []
    for run in data.runs:
        angles = [dihedral(run.positions[0], t) for t in data.provenance["torsions"]]
        difference = np.array(angles) - np.deg2rad(run.info["start_deg"])
        off.append(np.rad2deg(np.abs((difference + np.pi) % (2 * np.pi) - np.pi)))
    # 8 degrees from the thermostat; places where atoms overlap are left by more.
    assert np.median(off) < 15
    assert np.max(off) < 60


# -- implicit solvent ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry(pdb, tmp_path_factory):
    """A finished small data set, and what `generate` said of it."""
    output = tmp_path_factory.mktemp("dry") / "data.h5"
    settings = implicit(plain_runs=2, seeded_runs=2)
    return output, settings, generate(pdb, output, settings, processes=1)


def test_what_a_finished_data_set_holds(dry):
    output, settings, result = dry
    data = read_dataset(output)
    assert [r.name for r in data.runs] == [
        f"{k}-0000{i}" for k in ("plain", "seeded") for i in (0, 1)
    ]
    assert [r.n_frames for r in data.runs] == [11, 11, 3, 3]
    assert result["complete"]
    assert result["frames"] == 28
    assert result["ns"] == pytest.approx(0.024)
    assert result["ns_per_day"] > 0
    assert not (output.parent / "data.h5.parts").exists()
    known = data.provenance
    assert known["force_field"] == ["amber99sbildn.xml", "amber99_obc.xml"]
    assert known["hydrogen_mass_amu"] == 3.0
    assert known["steps_per_s"] > 0
    lengths = {(i, j): length for i, j, length in known["constraint_lengths_nm"]}
    assert len(lengths) == 12
    for run in data.runs:
        for (i, j), length in lengths.items():
            measured = np.linalg.norm(run.positions[:, i] - run.positions[:, j], axis=-1)
            assert np.abs(measured - length).max() < 2e-4
        # neighbouring frames differ, and so do runs
        assert np.abs(np.diff(run.positions, axis=0)).max(axis=(1, 2)).min() > 1e-3
    assert not np.allclose(data.runs[0].positions, data.runs[1].positions)
    assert len({run.info["seed"] for run in data.runs}) == 4


def test_asking_again_makes_nothing_again(dry, pdb, tmp_path):
    output, settings, result = dry
    before = output.stat().st_mtime_ns
    again = generate(pdb, output, settings, processes=1)
    assert output.stat().st_mtime_ns == before
    assert again["sha256"] == result["sha256"]
    with pytest.raises(ValueError, match="made with other settings"):
        generate(pdb, output, implicit(plain_runs=2, seeded_runs=2, temperature_K=310.0))
    assert output.stat().st_mtime_ns == before


def test_processes_make_the_same_runs(dry, pdb, tmp_path):
    output, settings, _ = dry
    other = tmp_path / "data.h5"
    result = generate(pdb, other, settings, processes=2)
    assert result["processes"] == 2
    for one, two in zip(read_dataset(output).runs, read_dataset(other).runs, strict=True):
        # The Reference platform repeats to the last bit.
        assert np.array_equal(one.positions, two.positions)


def long_run(pdb, output, *more):
    arguments = (pdb, "-o", output, "--solvent", "implicit", "--plain", 2, "--plain-ps", 3000)
    return ["generate", *map(str, (*arguments, "--save-seconds", 0.1, *more))]


def interrupt_when(condition):
    """Send this process a Ctrl-C as soon as the condition holds."""

    def watch():
        until = time.monotonic() + 60
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def test_stopped_and_gone_on(pdb, tmp_path, capfd):
    output, parts = tmp_path / "data.h5", tmp_path / "data.h5.parts"
    arguments = long_run(pdb, output, "--processes", 1)
    interrupt_when((parts / "plain-00000.0.00002.npz").exists)
    assert main([*arguments, "--json"]) == 130
    capfd.readouterr()
    kept = sorted(parts.glob("plain-*.0.0000?.npz"))
    before = {path: path.read_bytes() for path in kept}
    frames = [np.load(path)["frames"][:, 0] for path in kept if "plain-00000" in path.name]

    # What there is is written.
    interrupt_when((parts / f"plain-00000.0.{len(frames) + 1:05d}.npz").exists)
    assert main([*arguments, "--json"]) == 130
    answer = json.loads(capfd.readouterr().out)
    assert answer["stopped"]
    assert not answer["complete"]
    assert {path: path.read_bytes() for path in kept} == before
    data = read_dataset(output)
    run = data.runs[0]
    assert run.info["complete"] is False
    stored = np.concatenate(frames)
    assert np.array_equal(np.rint(run.positions[: len(stored)] * 1e4), stored)
    # The run went on from where it was stopped: no jump where the pieces meet.
    FrameCheck(data.molecule)(run.positions.astype(np.float64))
    steps = np.sqrt((aligned_steps(run.positions) ** 2).sum(-1).mean(-1))
    seams = np.cumsum([len(f) for f in frames]) - 1
    assert steps[seams].max() < steps.max() * 1.2

    # Other settings are refused, another amount of the same is not.
    assert main([*arguments, "--temperature", "310"]) == 2
    assert "temperature_K 300.0 there, 310.0 here" in capfd.readouterr().err
    arguments[arguments.index("3000")] = str(run.n_frames - 2)
    arguments[arguments.index("--plain") + 1] = "1"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["complete"]
    assert not parts.exists()
    finished = read_dataset(output)
    assert len(finished.runs) == 1
    assert np.array_equal(finished.runs[0].positions, run.positions)


def aligned_steps(positions):
    """Displacements from frame to frame, without tumbling."""
    steps = []
    for a, b in itertools.pairwise(positions):
        u, _, v = np.linalg.svd(b.T @ a)
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v
        steps.append(b @ turn - a)
    return np.array(steps)


def test_time_is_kept(pdb, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(monotonic=itertools.count(step=1.0).__next__)  # a second a look
    monkeypatch.setattr("openmm_sd.generate.driver.time", clock)
    settings = implicit(plain_runs=1, plain_ps=300.0)
    result = generate(pdb, tmp_path / "data.h5", settings, processes=1, minutes=0.5)
    assert not result["complete"]
    assert not result["stopped"]
    assert 5 < read_dataset(tmp_path / "data.h5").n_frames == result["frames"] <= 30
    Parts(tmp_path / "data.h5.parts").remove()
    with pytest.raises(ValueError, match="is not complete and the folder with its parts"):
        generate(pdb, tmp_path / "data.h5", settings)


def blow_up(monkeypatch, which):
    """Let some attempts at runs end with coordinates that are not numbers."""
    frames = dynamics.PieceByPiece._frames

    def wrong(self, *arguments):
        x, steps, seconds = frames(self, *arguments)
        if (self.task, self.attempt) in which:
            x[-1, 0, 0, 0] = np.nan
        return x, steps, seconds

    monkeypatch.setattr(dynamics.PieceByPiece, "_frames", wrong)


def test_runs_that_blow_up(pdb, tmp_path, monkeypatch):
    blow_up(monkeypatch, {("plain-00000", 0), ("plain-00001", 0), ("plain-00001", 1)})
    said = []
    result = generate(
        pdb,
        tmp_path / "data.h5",
        implicit(plain_runs=3),
        processes=1,
        progress=lambda what, how_far: said.append(f"{what}: {how_far}"),
    )
    assert result["left_out"] == ["plain-00001"]
    assert result["complete"]
    data = read_dataset(tmp_path / "data.h5")
    assert [run.name for run in data.runs] == ["plain-00000", "plain-00002"]
    assert data.provenance["made_again"] == 2
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == 3
    assert "not finite; it is made again with another seed" in warnings[0]
    assert "left out" in warnings[2]


def test_a_full_disk_is_said_and_nothing_is_lost(pdb, tmp_path):
    output, parts = tmp_path / "data.h5", tmp_path / "data.h5.parts"
    words = long_run(pdb, output, "--processes", 1)
    interrupt_when((parts / "plain-00000.0.00001.npz").exists)
    assert main([*words, "--json"]) == 130
    pieces = {path: path.read_bytes() for path in parts.glob("plain-*[0-9].npz")}
    assert pieces
    before = output.read_bytes()
    full = launch(*words, folder=tmp_path, largest=1000)
    assert full.wait(60) == 1
    last = full.stderr.strip().splitlines()[-1]
    assert "cannot write" in last
    assert "is kept" in last
    assert output.read_bytes() == before
    assert all(path.read_bytes() == content for path, content in pieces.items())
    assert not list(parts.glob("*.partial"))


def test_two_programs_do_not_share_a_folder(pdb, tmp_path, monkeypatch):
    monkeypatch.setattr("openmm_sd.generate.parts._LOCK_SECONDS", 0.1)
    folder = tmp_path / "data.h5.parts"
    folder.mkdir()
    lock = Parts(folder).lock()
    with pytest.raises(ValueError, match="another program is at work"):
        generate(pdb, tmp_path / "data.h5", implicit())
    os.close(lock)
    assert generate(pdb, tmp_path / "data.h5", implicit(), processes=1)["complete"]


# -- explicit water ------------------------------------------------------------------------------


def test_copies_in_one_box_stay_apart_and_whole(pdb, tmp_path):
    output = tmp_path / "data.h5"
    settings = wet(copies=2, box_nm=1.35, plain_runs=1, seeded_runs=1)
    result = generate(pdb, output, settings, platform="CPU", processes=1)
    data = read_dataset(output)
    assert [run.name for run in data.runs] == [
        f"{kind}-00000-000{copy}" for kind in ("plain", "seeded") for copy in (0, 1)
    ]
    assert result["runs"] == 4
    check = FrameCheck(data.molecule)
    for run in data.runs:
        check(run.positions.astype(np.float64))  # whole, with the right hand
    assert data.provenance["box_nm"] == [1.35] * 3
    assert data.provenance["waters"] == 60
    assert data.provenance["copies"] == 2
    one, two = data.runs[2:]
    assert one.info["start_deg"] != two.info["start_deg"]
    assert not np.allclose(one.positions, two.positions)


def test_the_lattice_and_its_sites(pdb):
    from openmm_sd.generate import start as module

    assert [module._lattice(n) for n in (1, 2, 8, 12, 64, 7)] == [
        *((1, 1, 1), (1, 1, 2), (2, 2, 2), (2, 2, 3), (4, 4, 4), (1, 1, 7))
    ]
    topology, positions = module.read_solute(pdb, wet())
    molecule = Molecule.from_topology(topology, positions, "x")
    settings = wet(copies=3, box_nm=1.35, equilibration_ps=0.05)
    say = lambda what, how_far: None  # noqa: E731
    start = module.make_start(
        *(topology, positions, molecule, settings, slow_torsions(molecule), "CPU", 1, say)
    )
    per = 22 + 3 * 60
    assert start.system.getNumParticles() == len(start.positions) == 3 * per
    assert np.allclose(np.diag(start.box), (1.35, 1.35, 3 * 1.35))
    centres = start.positions[start.solutes].mean(axis=1)
    assert np.allclose(np.diff(centres, axis=0), [0, 0, 1.35], atol=1e-6)
    sites = [f for f in start.system.getForces() if type(f).__name__ == "CustomCentroidBondForce"]
    assert [f.getNumBonds() for f in sites] == [3]
    for k, centre in enumerate(centres):
        assert np.allclose(sites[0].getBondParameters(k)[1], centre, atol=1e-6)
    # every molecule of the box is there once: no two atoms on one place
    wrapped = start.positions % np.diag(start.box)
    apart = np.linalg.norm(wrapped[:, None] - wrapped[None], axis=-1) + 10 * np.eye(3 * per)
    assert apart.min() > 0.08


def test_without_a_box_the_pressure_settles_it(pdb, peptide, tmp_path):
    new = solvate(peptide.topology, peptide.positions, waters=60, cutoff=0.5)
    generate(pdb, tmp_path / "data.h5", wet(), platform="CPU", processes=1)
    known = read_dataset(tmp_path / "data.h5").provenance
    assert known["waters"] == 60
    # A new box has a liquid's density; in a fraction of a ps the pressure has begun to size it.
    edge = np.diag(new.box_vectors)[0]
    assert 1e-5 < abs(known["box_nm"][0] - edge) < 0.05 * edge


@pytest.mark.slow
def test_the_pressure_gives_the_density_of_water(pdb, tmp_path):
    settings = wet(waters=150, equilibration_ps=40.0, cutoff_nm=0.7)
    generate(pdb, tmp_path / "data.h5", settings, platform="CPU", processes=1)
    box = read_dataset(tmp_path / "data.h5").provenance["box_nm"]
    # The solute takes the place of about five waters; bulk water has 33 molecules a nm^3.
    assert 31 < 155 / np.prod(box) < 35


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_nm": 2.0}, "a box needs a number of waters"),
        ({"waters": 100, "padding_nm": 1.0}, "not both"),
        ({"waters": 100, "box_nm": 1.7}, "needs a cutoff below 0.85 nm"),
        ({"solvent": "implicit", "waters": 10}, "waters is for explicit water"),
        ({"solvent": "implicit", "copies": 2}, "copies is for explicit water"),
        ({"solvent": "dry"}, "one of explicit, implicit"),
        ({"spacing_ps": 0.01}, "whole number of steps"),
        ({"plain_runs": 0}, "nothing to make"),
        ({"plain_ps": 0.5}, "at least one spacing"),
        ({"temperature_K": -1.0}, "temperature_K must be a number from 150 to 1000 K"),
        ({"copies": 0}, "copies must be"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        GenerateSettings(**changes)


def test_wrong_structures_are_refused(pdb, tmp_path):
    output = tmp_path / "data.h5"
    lines = pdb.read_text().splitlines(keepends=True)
    bare = tmp_path / "bare.pdb"
    bare.write_text("".join(s for s in lines if s[76:78] != " H" and s[:6] != "CONECT"))
    for structure, settings, options, message in (
        (tmp_path / "none.pdb", implicit(), {}, "there is no file"),
        (pdb, implicit(force_field=("amber99sbildn.xml",)), {}, "has no implicit solvent"),
        (bare, implicit(), {}, "has no hydrogens; 'openmm-sd prepare' adds them"),
        (pdb, implicit(force_field=("none.xml",)), {}, "force field: Could not locate"),
        (pdb, implicit(), {"platform": "Abacus"}, "platform must be one of"),
        (pdb, implicit(), {"processes": 0}, "processes must be"),
        (pdb, implicit(seeded_runs=1), {"torsions": ["0,1,2"]}, "four atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(structure, output, settings, **options)
    with pytest.raises(ValueError, match="make it first"):
        generate(pdb, tmp_path / "no" / "data.h5", implicit())
    assert not output.exists()


@pytest.mark.slow
def test_the_reference_box(pdb, tmp_path):
    settings = GenerateSettings(
        waters=651, box_nm=2.7222, equilibration_ps=4.0, warm_up_ps=2.0, plain_ps=20.0
    )
    result = generate(pdb, tmp_path / "data.h5", settings, platform="CPU")
    data = read_dataset(tmp_path / "data.h5")
    assert result["complete"]
    assert data.provenance["box_nm"] == [2.7222] * 3
    assert data.provenance["waters"] == 651
    assert data.runs[0].n_frames == 21
