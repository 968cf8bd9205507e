"""Data sets from trajectories: broken molecules are made whole, wrong ones are refused."""

import json

import mdtraj
import numpy as np
import pytest
from openmm import app, unit

from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.generate import ImportSettings, import_trajectories

FRAMES = 23
# Two hydrogens of a methyl group, in the order of the fixture `peptide`.
HB1, HB2 = 11, 12


@pytest.fixture(scope="module")
def system(water_box, tmp_path_factory):
    """A solvated trajectory, with molecules broken across the box, and its whole solute."""
    folder = tmp_path_factory.mktemp("import")
    topology = mdtraj.Topology.from_openmm(water_box.topology)
    random = np.random.default_rng(5)
    x = water_box.positions + random.normal(0, 0.001, (FRAMES, len(water_box.positions), 3))
    x += random.uniform(0, 3, (FRAMES, 1, 3))  # the solute meets every face
    solute = x[:, :22] - x[:, :22].mean(axis=1, keepdims=True)
    edge = float(water_box.topology.getPeriodicBoxVectors()[0][0].value_in_unit(unit.nanometer))
    lengths = np.full((FRAMES, 3), edge, dtype=np.float32)
    trajectory = mdtraj.Trajectory(
        (x % edge).astype(np.float32),
        topology,
        np.arange(FRAMES) * 2.0,
        lengths,
        np.full((FRAMES, 3), 90.0),
    )
    bonds = np.array([(a.index, b.index) for a, b in topology.bonds])
    broken = np.linalg.norm(np.diff(trajectory.xyz[:, bonds], axis=2), axis=-1) > 0.5
    assert broken[:, bonds.max(axis=1) < 22].any()
    pdb = folder / "system.pdb"
    with open(pdb, "w") as file:
        app.PDBFile.writeFile(
            water_box.topology, water_box.positions * unit.nanometer, file, keepIds=True
        )
    return folder, pdb, trajectory, solute


def save(system, name, trajectory=None):
    path = system[0] / name
    (system[2] if trajectory is None else trajectory).save(str(path))
    return path


def read(system, trajectory, output, **settings):
    import_trajectories([trajectory], system[1], output, ImportSettings(**settings))
    return read_dataset(output)


@pytest.mark.parametrize(
    ("extension", "given", "tolerance"),
    [("xtc", None, 2e-3), ("trr", None, 2e-4), ("dcd", 2.0, 2e-4), ("pdb", 2.0, 3e-4)],
)
def test_broken_solutes_are_made_whole(system, tmp_path, extension, given, tolerance):
    path = save(system, f"run.{extension}")
    data = read(system, path, tmp_path / "data.h5", spacing_ps=given)
    (run,) = data.runs
    assert (run.name, run.kind, run.spacing_ps) == ("run", "imported", 2.0)
    assert data.molecule.formula == "C6H12N2O2"
    assert np.abs(run.positions - system[3]).max() < tolerance
    assert data.provenance["box_nm"] == pytest.approx([1.75] * 3, abs=0.3)
    assert run.info["source"] == path.name


def test_hdf5_trajectories(system, tmp_path):
    pytest.importorskip("tables")
    data = read(system, save(system, "run.h5"), tmp_path / "data.h5")
    assert np.abs(data.runs[0].positions - system[3]).max() < 2e-4


def test_triclinic_boxes(system, tmp_path):
    pieces = system[2].atom_slice(range(22))
    box = np.array([[1.9, 0.0, 0.0], [-0.6, 1.8, 0.0], [-0.6, -0.8, 1.6]])
    turns = np.random.default_rng(1).integers(-2, 3, (FRAMES, 22, 3))
    pieces.xyz = (system[3] + turns @ box).astype(np.float32)
    pieces.unitcell_vectors = np.repeat(box[None], FRAMES, axis=0).astype(np.float32)
    top = system[0] / "solute.pdb"
    pieces[0].save(str(top))
    output = tmp_path / "data.h5"
    import_trajectories([save(system, "tri.trr", pieces)], top, output)
    assert np.abs(read_dataset(output).runs[0].positions - system[3]).max() < 3e-4


def test_different_boxes_are_not_averaged(system, tmp_path):
    pieces = system[2].atom_slice(range(22))
    pieces.xyz = system[3].astype(np.float32)
    top = system[0] / "solute.pdb"
    pieces[0].save(str(top))
    files = []
    for name, edge in (("small", 2.0), ("large", 3.0)):
        pieces.unitcell_lengths = np.full((FRAMES, 3), edge)
        files.append(save(system, f"{name}.trr", pieces))
    import_trajectories(files, top, tmp_path / "data.h5")
    known = read_dataset(tmp_path / "data.h5").provenance
    assert "box_nm" not in known
    assert known["boxes_nm"] == [[2.0] * 3, [3.0] * 3]


def test_stride_and_pieces(system, tmp_path, monkeypatch):
    monkeypatch.setattr("openmm_sd.data.imported._CHUNK_FRAMES", 5)
    data = read(system, save(system, "run.trr"), tmp_path / "data.h5", stride=4)
    assert data.runs[0].spacing_ps == 8.0
    assert np.abs(data.runs[0].positions - system[3][::4]).max() < 2e-4


def test_several_copies_each_become_a_run(peptide, tmp_path):
    modeller = app.Modeller(peptide.topology, peptide.positions * unit.nanometer)
    modeller.add(peptide.topology, (peptide.positions + 1.5) * unit.nanometer)
    x = np.array(modeller.positions.value_in_unit(unit.nanometer))
    trajectory = mdtraj.Trajectory(
        np.repeat(x[None], 3, 0), mdtraj.Topology.from_openmm(modeller.topology), [0, 1, 2]
    )
    pdb, trr = tmp_path / "two.pdb", tmp_path / "two.trr"
    trajectory[0].save(str(pdb))
    trajectory.save(str(trr))
    with pytest.raises(ValueError, match="2 molecules besides water and ions"):
        import_trajectories([trr], pdb, tmp_path / "data.h5")
    import_trajectories([trr], pdb, tmp_path / "data.h5", ImportSettings(solute="all"))
    data = read_dataset(tmp_path / "data.h5")
    assert [r.name for r in data.runs] == ["two-000", "two-001"]
    assert np.abs(data.runs[0].positions - data.runs[1].positions).max() < 2e-4


@pytest.mark.parametrize("times", [[0, 1, 2, 4, 5], [0, 1, 2, 2, 3], [4, 3, 2, 1, 0], [1] * 5])
def test_uneven_times_are_refused(system, tmp_path, times):
    part = system[2][:5]
    part.time = np.array(times, dtype=float)
    path = save(system, "uneven.xtc", part)
    with pytest.raises(ValueError, match="not evenly spaced: frame"):
        read(system, path, tmp_path / "data.h5")
    # whoever knows better says so
    assert read(system, path, tmp_path / "data.h5", spacing_ps=3.0).runs[0].spacing_ps == 3.0


def test_files_without_times_need_a_spacing(system, tmp_path):
    with pytest.raises(ValueError, match="does not say at what times.*--spacing"):
        read(system, save(system, "run.dcd"), tmp_path / "data.h5")
    with pytest.raises(ValueError, match="single frame"):
        read(system, save(system, "one.xtc", system[2][:1]), tmp_path / "data.h5")


def solute_only(system, change):
    part = system[2].atom_slice(range(22))
    part.unitcell_vectors = None
    x = system[3].copy()
    change(x)
    part.xyz = x.astype(np.float32)
    return part


def mirror_late(x):
    x[FRAMES // 2 :] *= -1


def swap_methyl(x):
    x[:, [HB1, HB2]] = x[:, [HB2, HB1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.__imul__(10.0), "bond between atom .* nm long"),
        (lambda x: x.__setitem__((3, 4), x[3, 4] + 1.0), "frame 3: the bond between"),
        (lambda x: x.__setitem__((3, 4, 0), np.nan), "frame 3 is not finite"),
        (mirror_late, f"frame {FRAMES // 2}: .* other handedness .*not in every frame"),
    ],
)
def test_wrong_frames_are_refused(system, tmp_path, change, message):
    top = system[0] / "solute.pdb"
    solute_only(system, lambda x: None)[0].save(str(top))
    path = save(system, "wrong.trr", solute_only(system, change))
    with pytest.raises(ValueError, match=message):
        import_trajectories([path], top, tmp_path / "data.h5")
    assert not (tmp_path / "data.h5").exists()


def test_equivalent_hydrogens_are_numbered_alike(system, tmp_path):
    top = system[0] / "solute.pdb"
    good = solute_only(system, lambda x: None)
    good[0].save(str(top))
    paths = [
        save(system, "good.trr", good),
        save(system, "swapped.trr", solute_only(system, swap_methyl)),
    ]
    import_trajectories(paths, top, tmp_path / "data.h5")
    one, two = read_dataset(tmp_path / "data.h5").runs
    assert two.info["relabelled_frames"] == FRAMES
    assert "relabelled_frames" not in one.info
    handedness = read_dataset(tmp_path / "data.h5").molecule.handedness
    for run in (one, two):
        assert (handedness.measure(run.positions[7]) == handedness.signs).all()


def test_the_other_enantiomer_is_another_molecule(system, tmp_path):
    top = system[0] / "solute.pdb"
    good = solute_only(system, lambda x: None)
    good[0].save(str(top))
    mirrored = solute_only(system, lambda x: x.__imul__(-1.0))
    paths = [save(system, "good.trr", good), save(system, "mirror.trr", mirrored)]
    with pytest.raises(ValueError, match=r"mirror.trr: frame 0: .*CA.*\(in every frame"):
        import_trajectories(paths, top, tmp_path / "data.h5")


def test_wrong_topologies_are_refused(system, tmp_path):
    path = save(system, "run.xtc")
    output = tmp_path / "data.h5"
    fewer = tmp_path / "fewer.pdb"
    system[2][0].atom_slice(range(22)).save(str(fewer))
    with pytest.raises(ValueError, match="cannot be read with this topology"):
        import_trajectories([path], fewer, output)
    lines = system[1].read_text().splitlines(keepends=True)
    unknown = tmp_path / "unknown.pdb"
    unknown.write_text(
        "".join(s.replace("ALA", "XYZ") for s in lines if not s.startswith("CONECT"))
    )
    with pytest.raises(ValueError, match="has no bonds for atom .*CONECT"):
        import_trajectories([path], unknown, output)
    with pytest.raises(ValueError, match="there is no file"):
        import_trajectories([path], tmp_path / "none.pdb", output)
    for selection, message in (
        ("resname ALA", "cuts a molecule"),
        ("resname NIX", "selects no atom"),
        ("((", "is not a selection"),
        ("resid 0 to 4", "molecules of several kinds"),
    ):
        with pytest.raises(ValueError, match=message):
            read(system, path, output, solute=selection)
    assert not output.exists()


def test_missing_hydrogens_are_noticed(system, tmp_path):
    topology = system[2].topology
    assert [topology.atom(i).name for i in (HB1, HB2)] == ["HB1", "HB2"]
    for gone in ({"H1", "H2", "H3"}, {"HA"}, {"HB1"}, {"HB1", "HB2"}):
        atoms = [i for i in range(22) if topology.atom(i).name not in gone]
        part = solute_only(system, lambda x: None).atom_slice(atoms)
        top, path = tmp_path / "part.pdb", tmp_path / "part.trr"
        part[0].save(str(top))
        part.save(str(path))
        with pytest.raises(ValueError, match="hydrogens are missing: atom"):
            import_trajectories([path], top, tmp_path / "data.h5")


def test_a_cut_off_trajectory_is_refused(system, tmp_path):
    path = tmp_path / "cut.xtc"
    path.write_bytes(save(system, "run.xtc").read_bytes()[:-300])
    with pytest.raises(ValueError, match="cannot be read"):
        read(system, path, tmp_path / "data.h5")


def test_the_command_and_append(system, tmp_path, capfd):
    path, output = save(system, "run.xtc"), tmp_path / "data.h5"
    command = ["import", str(path), "--topology", str(system[1]), "-o", str(output)]
    known = ["--temperature", "300", "--force-field", "a.xml", "--engine", "GROMACS"]
    assert main([*command, *known, "--json"]) == 0
    out, _ = capfd.readouterr()
    result = json.loads(out)
    assert (result["runs"], result["frames"], result["atoms"]) == (1, FRAMES, 22)
    assert result["ns"] == pytest.approx((FRAMES - 1) * 0.002)
    assert len(result["sha256"]) == 64
    data = read_dataset(output)
    assert data.provenance["temperature_K"] == 300.0
    assert data.provenance["force_field"] == ["a.xml"]
    assert data.provenance["engine"] == "GROMACS"

    assert main(command) == 2
    assert "exists" in capfd.readouterr().err
    assert main([*command, "--append", "--kind", "plain"]) == 0
    data = read_dataset(output)
    assert [(r.name, r.kind) for r in data.runs] == [("run", "imported"), ("run-2", "plain")]
    assert np.array_equal(data.runs[0].positions, data.runs[1].positions)
    assert data.provenance["temperature_K"] == 300.0


def test_biased_trajectories_bring_their_weights(system, tmp_path, capfd):
    trajectory, weights = save(system, "run.xtc"), tmp_path / "weights.txt"
    given = np.linspace(-3.0, 2.0, FRAMES)
    np.savetxt(weights, given)
    output = tmp_path / "data.h5"
    command = ["import", str(trajectory), "--topology", str(system[1]), "-o", str(output)]
    assert main([*command, "--log-weights", str(weights), "--stride", "2"]) == 0
    (run,) = read_dataset(output).runs
    assert run.kind == "biased"
    np.testing.assert_allclose(run.log_weights, given[::2])
    # Unbiased runs beside it have none.
    assert main([*command, "--append"]) == 0
    assert [r.log_weights is None for r in read_dataset(output).runs] == [False, True]
    capfd.readouterr()

    for text, message in (("1.0\n2.0\n", "a finite number for each frame"), ("x\n", "weights.txt")):
        weights.write_text(text)
        assert main([*command, "--force", "--log-weights", str(weights)]) == 2
        assert message in capfd.readouterr().err
    assert main([*command, "--force", "--kind", "biased"]) == 2
    assert "need log weights" in capfd.readouterr().err
