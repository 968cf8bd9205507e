"""Where commands write to: a place where nothing can be written, and one where another writes."""

import os
from pathlib import Path

import pytest

from openmm_sd.cli import main
from openmm_sd.files.folder import locked

SHIPPED = Path(__file__).parents[1] / "openmm_sd" / "models" / "ala2-water.safetensors"
PDB = Path(__file__).parent / "data" / "ace-ala-nme.pdb"
#: What each command that writes a file, or a folder, reads; before it reads, it looks where to.
FILE = {
    "train": ("x.h5", "out.safetensors"),
    "adapt": (PDB, "out.safetensors"),
    "distill": (SHIPPED, "out.safetensors"),
    "generate": (PDB, "out.h5"),
    "import": (PDB, "out.h5"),
    "benchmark": ("--only=rollout", "out.json"),
}
FOLDER = {
    "prepare": (PDB,),
    "run": (PDB, "--effective-ns=1"),
    "rollout": (SHIPPED, "--chains=2", "--steps=2"),
    "demo": (),
}


def said(capfd, *arguments):
    """The one line that a command refuses its arguments with."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    return err.splitlines()[-1]


@pytest.mark.parametrize("command", FILE)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, capfd):
    source, name = FILE[command]
    # Of the system's own: not even root can write there.
    assert "cannot write to /proc" in said(capfd, command, source, "-o", f"/proc/{name}")
    target = tmp_path / name
    target.symlink_to("/nowhere/data")
    line = said(capfd, command, source, "-o", target)
    assert line.endswith("out" + target.suffix + " is a link to /nowhere/data, which is not there")
    target.unlink()
    os.mkfifo(target)
    assert said(capfd, command, source, "-o", target).endswith("is not a regular file")
    target.unlink()
    target.mkdir()
    assert "is a directory, wanted is the name of a file" in said(
        capfd, command, source, "-o", target
    )
    line = said(capfd, command, source, "-o", tmp_path / "none" / name)
    assert line.endswith("none is not a directory: make it first")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("command", FOLDER)
def test_a_folder_that_cannot_be_written(command, capfd):
    assert "cannot write to /proc" in said(capfd, command, *FOLDER[command], "-o", "/proc/out")


@pytest.mark.parametrize("command", ["run", "copies", "rollout", "demo"])
def test_a_folder_that_another_writes_to(command, tmp_path, capfd):
    (tmp_path / "summary.json").write_text("theirs")
    arguments = {"copies": [*FOLDER["run"], "--copies=2"], "demo": ["--force"]}.get(
        command, FOLDER.get(command)
    )
    with locked(tmp_path, "test"):
        name = "run" if command == "copies" else command
        assert f"is writing to {tmp_path}" in said(capfd, name, *arguments, "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "theirs"


def test_a_demonstration_that_cannot_begin_keeps_what_is_there(tmp_path, capfd):
    (tmp_path / "summary.json").write_text("an earlier one's")
    line = said(capfd, "demo", "--force", "-o", tmp_path, "--model", "./none")
    assert "./none: neither a file nor a shipped model" in line
    assert (tmp_path / "summary.json").read_text() == "an earlier one's"


@pytest.mark.parametrize("command", [*FOLDER, "validate"])
def test_a_folder_by_a_link_to_nowhere_is_refused_before_the_work(command, tmp_path, capfd):
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to("/nowhere/data")
    file.write_text("mine")
    arguments = [command, *FOLDER.get(command, (SHIPPED,))]
    for output in (link, link / "deeper"):
        line = said(capfd, *arguments, "-o", output)
        assert line.endswith("link is a link to /nowhere/data, which is not there")
    assert said(capfd, *arguments, "-o", file).endswith("file is a file, wanted is a directory")
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
