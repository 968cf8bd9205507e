"""The data set file: what goes in comes out, and what is wrong is said in one line."""

import dataclasses
import json
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest

from openmm_sd import Molecule
from openmm_sd.data.dataset import (
    REACH_NM,
    UNIT_NM,
    Dataset,
    Run,
    merge,
    quantise,
    read_dataset,
    write_dataset,
)


@pytest.fixture
def runs(ala2):
    """Two runs of a shaking molecule."""
    random = np.random.default_rng(1)
    shaken = [ala2.positions + random.normal(0, 0.002, (n, ala2.n_atoms, 3)) for n in (30, 7)]
    return [
        Run("plain-0", "plain", shaken[0].astype(np.float32), 1.0, {"seed": 3}),
        Run("seeded-0", "seeded", shaken[1].astype(np.float32), 0.5, {"start_deg": [1.0, 2.0]}),
    ]


@pytest.fixture
def path(ala2, runs, tmp_path):
    """A written data set."""
    path = tmp_path / "data.h5"
    write_dataset(path, ala2, runs, {"temperature_K": 300.0})
    return path


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def test_what_goes_in_comes_out(path, ala2, runs):
    data = read_dataset(path)
    assert data.molecule == Molecule.from_dict(ala2.to_dict())
    assert data.provenance == {"temperature_K": 300.0}
    assert [r.name for r in data.runs] == ["plain-0", "seeded-0"]
    assert data.n_frames == 37
    assert data.total_ps == pytest.approx(29 * 1.0 + 6 * 0.5)
    for one, two in zip(runs, data.runs, strict=True):
        centred = one.positions - one.positions.mean(axis=1, keepdims=True)
        assert two.positions.dtype == np.float32
        assert np.abs(two.positions - centred).max() < 0.51 * UNIT_NM
        assert (two.kind, two.spacing_ps, two.info) == (one.kind, one.spacing_ps, one.info)


def test_writing_what_was_read_changes_nothing(path, tmp_path):
    data = read_dataset(path)
    again = tmp_path / "again.h5"
    write_dataset(again, data.molecule, data.runs, data.provenance)
    assert again.read_bytes() == path.read_bytes()


def test_five_lines_of_h5py_read_it(path, ala2):
    with h5py.File(path) as file:
        molecule = json.loads(file.attrs["molecule"])
        for run in file["runs"].values():
            nm = run["positions"][:] * 1e-4
            assert nm.shape[1:] == (len(molecule["atomic_numbers"]), 3)
            assert np.abs(nm.mean(axis=1)).max() < 1e-4
            assert run.attrs["spacing_ps"] in (1.0, 0.5)


def test_flipped_frame_bytes_are_noticed(path, ala2, runs):
    with h5py.File(path) as file:
        chunk = file["runs/plain-0/positions"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        read_dataset(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_off_file_is_damaged(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="is damaged"):
        read_dataset(path)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("no data")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        read_dataset(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match="not a data set of openmm-sd"):
        read_dataset(other)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_dataset(tmp_path / "none.h5")


def remove_runs(file):
    for name in list(file["runs"]):
        del file["runs"][name]


def float_positions(file):
    del file["runs/plain-0/positions"]
    file["runs/plain-0/positions"] = np.zeros((3, 22, 3))


def fewer_atoms(file):
    del file["runs/plain-0/positions"]
    file["runs/plain-0/positions"] = np.zeros((3, 21, 3), dtype=np.int16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.modify("version", 2), "version 2 of the format, this openmm-sd reads 1"),
        (remove_runs, "holds no runs"),
        (lambda f: f.pop("runs"), "has no runs"),
        (lambda f: f.attrs.pop("molecule"), "has no molecule"),
        (lambda f: f.attrs.modify("molecule", "{}"), "a molecule has the keys"),
        (lambda f: f.attrs.modify("provenance", "[1"), "is damaged"),
        (lambda f: f["runs/plain-0"].attrs.pop("kind"), "run plain-0 has no kind"),
        (lambda f: f["runs/plain-0"].attrs.modify("spacing_ps", 0.0), "no positive spacing"),
        (lambda f: f["runs/plain-0"].pop("positions"), "run plain-0 has no positions"),
        (float_positions, "type float64, wanted is int16"),
        (fewer_atoms, "for 22 atoms"),
    ],
)
def test_each_part_is_checked(path, change, message):
    edit(path, change)
    with pytest.raises(ValueError, match=message):
        read_dataset(path)


def test_what_does_not_fit_is_not_written(ala2, runs, tmp_path):
    path = tmp_path / "data.h5"
    path.write_text("kept")
    far = runs[0].positions.copy()
    far[3, 4, 0] += 4.0
    nan = runs[0].positions.copy()
    nan[3, 4, 0] = np.nan
    replace = dataclasses.replace
    for wrong, message in (
        ([], "at least one run"),
        ([runs[0], runs[0]], "two runs are named"),
        ([replace(runs[0], name="a/b")], "name of a run"),
        ([replace(runs[0], positions=runs[0].positions[:, :5])], "must have shape"),
        ([replace(runs[0], positions=far)], "the format holds 3.28 nm"),
        ([replace(runs[0], positions=nan)], "not finite"),
        ([replace(runs[0], spacing_ps=-1.0)], "spacing"),
        ([replace(runs[0], info={"x": object()})], "JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            write_dataset(path, ala2, wrong, {})
        assert path.read_text() == "kept"
        assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]
    with pytest.raises(ValueError, match="is not a directory"):
        write_dataset(tmp_path / "no" / "data.h5", ala2, runs, {})


def test_the_range_of_the_format():
    edge = np.zeros((1, 2, 3))
    edge[0, :, 0] = (-REACH_NM, REACH_NM)
    assert np.abs(quantise(edge)).max() == 32767
    with pytest.raises(ValueError, match="is the molecule whole"):
        quantise(edge * 1.001)


def test_a_full_disk_leaves_the_old_file(path):
    before = path.read_bytes()
    code = (
        "import sys; from openmm_sd.data.dataset import *; d = read_dataset(sys.argv[1])\n"
        "try: write_dataset(sys.argv[1], d.molecule, d.runs, d.provenance)\n"
        "except OSError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.stdout.startswith(f"cannot write {path}"), done.stderr
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_merge(path, ala2, runs):
    data = read_dataset(path)
    both = merge([data, data])
    assert len(both.runs) == 4
    assert len({r.name for r in both.runs}) == 4
    assert both.provenance == data.provenance
    other = Dataset(data.molecule, {"temperature_K": 300.0, "seed": 2}, data.runs)
    mixed = merge([data, other]).provenance
    assert mixed["temperature_K"] == 300.0
    assert [p.get("seed") for p in mixed["merged"]] == [None, 2]
    assert len(merge([merge([data, other]), data]).provenance["merged"]) == 3

    hot = Dataset(data.molecule, {"temperature_K": 310.0}, data.runs)
    with pytest.raises(ValueError, match="different temperatures, 300.0 and 310.0 K"):
        merge([data, hot])
    mirror = dataclasses.replace(ala2, positions=-ala2.positions)
    with pytest.raises(ValueError, match="the other handedness at atom"):
        merge([data, Dataset(mirror, {}, data.runs)])
    with pytest.raises(ValueError, match="no data sets"):
        merge([])


def test_runs_are_trajectories_of_mdtraj(path):
    data = read_dataset(path)
    found = data.to_mdtraj()
    assert list(found) == ["plain-0", "seeded-0"]
    np.testing.assert_array_equal(found["seeded-0"].xyz, data.runs[1].positions)
    np.testing.assert_allclose(found["seeded-0"].time, 0.5 * np.arange(7))
    assert found["plain-0"].topology.n_bonds == len(data.molecule.bonds)
