"""What a run has left in its directory, read for looking at it.

Only files are read, so a run may be finished, stopped, killed or still going on. Frames are read
in pieces: what is kept of all of them are torsions, and positions of a few hundred.
"""

from __future__ import annotations

import array
import contextlib
import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..analysis.equilibrium import peptide_partition
from ..data.reference import angles_of
from ..files.atomic import one_line
from ..files.trajectories import FORMATS, RAW_FILE, RawFrames, ascii_path
from ..integrator.notes import Note
from ..molecule.molecule import Molecule
from ..molecule.topology import read_topology
from ..molecule.torsions import Torsion, backbone_torsions
from ..prepare import read_prepared
from .files import LOG, START, SUMMARY, read_checkpoint
from .status import ARRAYS

#: Columns of the log that a report uses, and the names that it uses for them.
COLUMNS: Final = {
    "MD Time (ps)": "md_ps",
    "Jumps": "accepted",
    "Effective Time (ps)": "effective_ps",
    "Jumps Tried": "tried",
    "Fallbacks": "fallbacks",
    "Novel": "novel",
    "Potential Energy (kJ/mol)": "energy",
    "Temperature (K)": "temperature",
}

# Bytes of positions that are read at once.
_PIECE_BYTES: Final = 32 * 2**20


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its files tell it.

    Attributes
    ----------
    summary : dict
        ``summary.json``, of the last checkpoint.
    molecule : Molecule
        The solute, in the model's atom order.
    log : dict of ndarray
        Columns of ``log.csv`` under the names of `COLUMNS`, one value a frame.
    n_frames : int
        Frames that both the trajectory and the log hold.
    mismatches : tuple of Note or None
        What the model was not made for, as the last checkpoint knows it; None where it does not.
    """

    folder: Path
    summary: dict[str, Any]
    molecule: Molecule
    log: dict[str, NDArray[np.float64]]
    n_frames: int
    mismatches: tuple[Note, ...] | None = ()

    @property
    def times_ps(self) -> NDArray[np.float64]:
        """Effective time of every frame, ps."""
        return self.log["effective_ps"]

    def frames(self) -> Iterator[NDArray[np.float32]]:
        """Read the solute's positions, nm, some frames at a time."""
        summary, left = self.summary, self.n_frames
        atoms = np.array(summary["solute_atoms"], dtype=np.int64)
        if summary["atoms_saved"] == len(atoms) < summary["atoms"]:
            atoms = np.argsort(np.argsort(atoms))  # the solute alone was saved, in rising order
        # Readers want rising numbers.
        rising, back = np.sort(atoms), np.argsort(np.argsort(atoms))
        for piece in _pieces(self.folder, summary, rising):
            piece = piece[:left]
            left -= len(piece)
            if len(piece):
                yield np.ascontiguousarray(piece[:, back], dtype=np.float32)
            if not left:
                return
        if left:
            raise ValueError(
                f"{self.folder / summary['trajectory']} holds {self.n_frames - left} frames, "
                f"{SUMMARY} says {self.n_frames}: it was changed after the run"
            )

    def to_mdtraj(self) -> Any:
        """Return the solute's frames as an ``mdtraj.Trajectory``; times are effective times, ps."""
        import mdtraj

        topology = mdtraj.Topology.from_openmm(self.molecule.to_topology())
        frames = [*self.frames(), np.empty((0, self.molecule.n_atoms, 3), dtype=np.float32)]
        return mdtraj.Trajectory(np.concatenate(frames), topology, time=self.times_ps)

    def basins(self) -> NDArray[np.int64]:
        """Return the basin of the first (phi, psi) in each frame, as numbers of `analysis.BASINS`.

        Times between frames differ where jumps were dropped: see `times_ps` before counting
        transitions.
        """
        torsions = next(iter(backbone_torsions(self.molecule)), None)
        if torsions is None:
            raise ValueError(f"{self.molecule.name} has no phi and psi")
        angles, _ = self.look(torsions, np.empty(0, dtype=np.int64))
        return peptide_partition().label(angles)

    def look(
        self, torsions: Sequence[Torsion], kept: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read the trajectory once: angles (T, K), rad, and positions (len(kept), N, 3), nm.

        `kept` has the numbers of the frames whose positions are wanted, rising.
        """
        angles = np.empty((self.n_frames, len(torsions)), dtype=np.float32)
        positions = np.empty((len(kept), self.molecule.n_atoms, 3), dtype=np.float32)
        begin = 0
        for piece in self.frames():
            end = begin + len(piece)
            if torsions:
                angles[begin:end] = angles_of(piece, torsions)
            inside = np.flatnonzero((kept >= begin) & (kept < end))
            positions[inside] = piece[kept[inside] - begin]
            begin = end
        return angles, positions


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read what a run has left in its directory.

    ValueError if there is no run, or its files do not fit each other.
    """
    folder = Path(folder)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run with a checkpoint: it has no {SUMMARY}") from None
    except NotADirectoryError:
        raise ValueError(f"{folder} is a file, wanted is the directory of a run") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / SUMMARY} cannot be read: {one_line(error)}") from None
    if not isinstance(summary, dict) or not {"jumps_tried", "solute_atoms"} <= summary.keys():
        raise ValueError(f"{folder / SUMMARY} is not that of a run by this version of openmm-sd")
    log = _read_log(folder / LOG)
    lines = len(log["effective_ps"])
    count = int(summary["frames"])
    if lines < count:
        raise ValueError(
            f"{folder / LOG} has {lines} lines, {SUMMARY} says {count}: it was changed after the "
            "run"
        )
    # A killed run may have written more than the last summary knows of.
    log = {name: values[:count] for name, values in log.items()}
    return RunRecord(folder, summary, _molecule(folder, summary), log, count, _mismatches(folder))


def _mismatches(folder: Path) -> tuple[Note, ...] | None:
    checkpoint = None
    with contextlib.suppress(ValueError):  # a run may be looked at without it
        checkpoint = read_checkpoint(folder)
    if checkpoint is None or "mismatches" not in checkpoint.state:
        return None
    return tuple(Note(kind, text) for kind, text in checkpoint.state["mismatches"])


def _read_log(file: Path) -> dict[str, NDArray[np.float64]]:
    columns = {name: array.array("d") for name in COLUMNS.values()}
    if file.exists():
        with file.open(newline="", encoding="utf-8", errors="replace") as stream:
            lines = csv.reader(stream)
            head = next(lines, [])
            missing = [name for name in COLUMNS if name not in head]
            if head and missing:
                raise ValueError(f"{file} lacks the columns {', '.join(missing)}")
            places = [(head.index(name), columns[new]) for name, new in COLUMNS.items() if head]
            for line in lines:
                if len(line) < len(head):
                    break  # cut short by a kill
                try:
                    for place, column in places:
                        column.append(float(line[place]) if line[place] else math.nan)
                except ValueError as error:
                    raise ValueError(f"{file}, line {lines.line_num}: {error}") from None
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _molecule(folder: Path, summary: dict[str, Any]) -> Molecule:
    prepared = read_prepared(folder / START)
    atoms = [int(atom) for atom in summary["solute_atoms"]]
    table = read_topology(prepared.topology)
    place = {atom: k for k, atom in enumerate(atoms)}
    return Molecule(
        summary["molecule"],
        tuple(table.atomic_numbers[atom] for atom in atoms),
        tuple((place[i], place[j]) for i, j in table.bonds if i in place and j in place),
        tuple(table.names[atom] for atom in atoms),
        tuple(table.residue_names[atom] for atom in atoms),
        tuple(table.residue_ids[atom] for atom in atoms),
        prepared.positions[atoms],
    )


def _pieces(
    folder: Path, summary: dict[str, Any], atoms: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    """Read positions of some atoms (rising), nm, from whatever file holds the frames."""
    from mdtraj.formats import DCDTrajectoryFile, XTCTrajectoryFile

    saved = int(summary["atoms_saved"])
    count = int(summary["frames"])
    size = max(1, _PIECE_BYTES // (12 * saved))
    file = folder / summary["trajectory"]
    if not count:
        return
    if summary["trajectory"] == FORMATS["h5"]:
        yield from _hdf5_pieces(folder, saved, count, size, atoms)
        return
    if not file.exists():
        raise ValueError(f"{folder}: {file.name} is missing")
    xtc = summary["trajectory"] == FORMATS["xtc"]
    with contextlib.ExitStack() as opened:
        left = count
        try:
            name = opened.enter_context(ascii_path(file))
            stream = opened.enter_context((XTCTrajectoryFile if xtc else DCDTrajectoryFile)(name))
            while left:
                piece = stream.read(n_frames=min(size, left), atom_indices=atoms)[0]
                if not len(piece):
                    return
                left -= len(piece)
                yield piece if xtc else piece / 10.0
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file} cannot be read: {one_line(error)}") from error


def _hdf5_pieces(
    folder: Path, saved: int, count: int, size: int, atoms: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    import h5py

    raw = folder / RAW_FILE
    if raw.exists():
        # A run that is not finished: its HDF5 file is missing, or that of an earlier stop.
        described = json.loads((folder / START / "prepared.json").read_text(encoding="utf-8"))
        for block in RawFrames(saved, described["periodic"], ARRAYS).blocks(raw, count):
            yield block["coordinates"][:, atoms]
        return
    file = folder / FORMATS["h5"]
    try:
        content = h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {one_line(error)}") from None
    with content:
        frames = content["coordinates"]
        for begin in range(0, min(count, len(frames)), size):
            yield frames[begin : min(begin + size, count)][:, atoms]
