"""Files of the wrong kind, swapped, empty, folders or pipes: one line, exit code 2, at once."""

import gzip
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from openmm_sd.cli import main

ROOT = Path(__file__).parents[1]
PDB = ROOT / "tests" / "data" / "ace-ala-nme.pdb"
BUNDLE = ROOT / "openmm_sd" / "models" / "ala2-water.safetensors"
NOTHING = b"\x89\xfe\x00" + bytes(range(1, 256)) * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each kind of file under each other kind's name."""
    folder = tmp_path_factory.mktemp("wrong")
    whole = PDB.read_bytes()
    contents = {
        "empty": b"",
        "bytes": NOTHING,
        "gzip": gzip.compress(whole),
        "utf16": whole.decode().encode("utf-16"),
        "page": b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n",
        "bundle": BUNDLE.read_bytes(),
    }
    for name, content in contents.items():
        for ending in ("pdb", "cif", "h5", "xtc", "dcd", "npy", "safetensors", "yaml"):
            if name != "bundle" or ending in ("pdb", "h5", "yaml"):
                (folder / f"{name}.{ending}").write_bytes(content)
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = [1, 2, 3]
    np.save(folder / "object.npy", np.array([{"a": 1}]), allow_pickle=True)
    (folder / "pdb.h5").write_bytes(whole)
    (folder / "pdb.safetensors").write_bytes(whole)
    (folder / "folder.h5").mkdir()
    os.mkfifo(folder / "pipe.h5")
    return folder


COMMANDS = {
    "prepare": ("prepare", "FILE", "-o", "OUT"),
    "run": ("run", "FILE", "-o", "OUT", "--effective-ns=1"),
    "generate": ("generate", "FILE", "-o", "OUT.h5"),
    "train": ("train", "FILE", "-o", "OUT.safetensors"),
    "import": ("import", "FILE", "-o", "OUT.h5"),
    "beside": ("import", "FILE", "-o", "OUT.h5", "--topology", str(PDB)),
    "reference": ("validate", str(BUNDLE), "-o", "OUT", "--reference", "FILE"),
    "start": ("rollout", str(BUNDLE), "-o", "OUT", "--start", "FILE"),
    "rollout": ("rollout", "FILE", "-o", "OUT"),
    "validate": ("validate", "FILE", "-o", "OUT"),
    "distill": ("distill", "FILE", "-o", "OUT.safetensors"),
    "models": ("models", "FILE"),
    "report": ("report", "FILE"),
    "config": ("rollout", str(BUNDLE), "-o", "OUT", "--config", "FILE"),
}
CASES = [
    *((c, f"{k}.pdb", "holds no atoms in PDB format") for c in ("prepare", "run", "generate")
      for k in ("empty", "bytes", "gzip", "utf16", "page", "bundle")),
    ("prepare", "bytes.cif", "holds no atoms in mmCIF format"),
    ("prepare", "folder.h5", "there is no file"),
    ("prepare", "pipe.h5", "there is no file"),
    *(("train", f"{k}.h5", "it is not an HDF5 file") for k in ("empty", "bytes", "bundle", "pdb")),
    ("train", "other.h5", "is not a data set"),
    ("train", "none.h5", "there is no file"),
    ("train", "folder.h5", "is not a file"),
    ("train", "pipe.h5", "is not a file"),
    *((c, "page.h5", "it is not an HDF5 file") for c in ("import", "beside", "start")),
    *((c, "other.h5", "no trajectory of mdtraj's") for c in ("import", "beside", "start")),
    ("beside", "empty.xtc", "it is empty, damaged or not an XTC file"),
    ("beside", "object.npy", "mdtraj knows no trajectories with that ending"),
    ("beside", "pipe.h5", "there is no trajectory"),
    *((c, "bytes.xtc", "give one") for c in ("start", "reference")),
    ("import", "bytes.xtc", "holds no topology: name a file that does"),
    ("reference", "page.h5", "it is not an HDF5 file"),
    ("reference", "object.npy", "not a NumPy file of plain numbers"),
    *((c, "pdb.safetensors", "not a safetensors file")
      for c in ("rollout", "validate", "distill", "models")),
    ("models", "empty.safetensors", "the file is empty"),
    ("models", "folder.h5", "is a directory"),
    ("models", "pipe.h5", "is not a regular file"),
    ("report", "page.h5", "is a file, wanted is the directory of a run"),
    ("report", "folder.h5", "it has no summary.json"),
    ("config", "bytes.yaml", "is not text"),
    ("config", "page.yaml", "holds no names with values"),
    ("config", "pipe.h5", "is not a file"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name", "words"), CASES)
def test_wrong_file(command, name, words, folder, tmp_path, capfd):
    places = {"FILE": folder / name, "OUT": tmp_path / "out"}
    arguments = COMMANDS[command]
    for place, path in places.items():
        arguments = [argument.replace(place, str(path)) for argument in arguments]
    assert main(arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    line = said.err.splitlines()[-1]
    assert words in line
    assert name in line
    assert len(line) < 350
    assert not list(tmp_path.iterdir())
