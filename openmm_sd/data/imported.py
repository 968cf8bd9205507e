"""A data set from trajectories that somebody has already, of any MD engine that mdtraj reads."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..files.atomic import check_target
from ..files.trajectories import ascii_path, unreadable
from ..molecule.frames import FrameCheck, constraint_lengths, missing_hydrogens
from ..molecule.matching import match_atoms
from ..molecule.molecule import Molecule
from ..molecule.topology import TopologyTable, formula, read_topology
from ..progress import Progress, silence
from ..version import __version__
from .dataset import (
    BIASED,
    Dataset,
    Run,
    described,
    merge,
    quantise,
    read_dataset,
    restore,
    write_dataset,
)
from .settings import ImportSettings

# mdtraj numbers the frames of all other formats and calls that time.
_WITH_TIMES: Final = (
    *(".xtc", ".trr", ".nc", ".netcdf", ".ncdf", ".h5", ".hdf5", ".gro"),
    *(".tng", ".dtr", ".stk"),
)
# These carry a topology of their own, which is compared with the one given.
_WITH_TOPOLOGY: Final = (".pdb", ".pdb.gz", ".ent", ".h5", ".hdf5", ".gro")
_CHUNK_FRAMES: Final = 200
# Share of the spacing by which a frame's time may be off: rounding in a file, not a lost frame.
_UNEVEN: Final = 0.01
# Boxes are one box if their edges differ by no more than this share.
_SAME_BOX: Final = 0.02
# What is found as a molecule of one atom. Anything else alone has lost its bonds.
_SINGLE: Final = frozenset(
    (2, 3, *range(9, 13), *range(17, 21), *range(25, 31), *range(35, 39), 48, *range(53, 57))
)
_LISTED: Final = 6


def import_trajectories(
    trajectories: Sequence[str | os.PathLike[str]],
    topology: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    settings: ImportSettings | None = None,
    *,
    append: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a data set from trajectories, a run a file.

    Parameters
    ----------
    trajectories : sequence of path
        What mdtraj reads: XTC, TRR, DCD, NetCDF, PDB, ...; read in pieces, so their size does not
        matter.
    topology : path, optional
        A PDB file, or another that mdtraj takes a topology from, with the bonds of the solute; None
        for that of the first trajectory, where it has one.
    output : path
        The data set.
    settings : ImportSettings, optional
        How to read.
    append : bool
        Whether to add to an existing data set of the same molecule.
    force : bool
        Whether to replace an existing file.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        ``path``, ``runs``, ``frames``, ``ns``, ``atoms``, ``seconds``, ``sha256``; of the whole
        data set.

    Raises
    ------
    ValueError
        One line, for whatever of topology, times or frames cannot be used.
    """
    settings = settings or ImportSettings()
    if settings.log_weights is not None:
        if len(trajectories) != 1:
            raise ValueError("log weights belong to one trajectory: import biased ones one by one")
        settings = replace(settings, kind=BIASED)
    elif settings.kind == BIASED:
        raise ValueError(f"runs of kind {BIASED} need log weights")
    say = progress or silence
    began = time.monotonic()
    target = Path(output)
    check_target(target)
    if not trajectories:
        raise ValueError("there are no trajectories to import")
    if append and force:
        raise ValueError("append adds to a file and force replaces it: give one of them")
    if target.exists() and not (append or force):
        raise ValueError(f"{target} exists: add to it (--append), replace it (--force)")
    old = read_dataset(target) if append and target.exists() else None

    if topology is None:
        topology = trajectories[0]
        if not str(topology).lower().endswith(_WITH_TOPOLOGY):
            raise ValueError(f"{topology} holds no topology: name a file that does (--topology)")
    say("topology", str(topology))
    solute = _read_solute(Path(topology), settings)
    taken = [] if old is None else [run.name for run in old.runs]
    reader = _Reader(solute, settings, None if old is None else old.molecule, say)
    for path in trajectories:
        reader.read(Path(path), taken)
    new = Dataset(reader.molecule, reader.provenance(), tuple(reader.runs()))
    whole = new if old is None else merge([old, new])
    say("writing", str(target))
    write_dataset(target, whole.molecule, whole.runs, whole.provenance)
    return {**described(whole, target), "seconds": time.monotonic() - began}


# -- the solute ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Solute:
    """Where the solute's copies are in the files, and what mdtraj calls their atoms."""

    topology: Any
    table: TopologyTable
    copies: tuple[tuple[int, ...], ...]
    name: str


def _read_solute(path: Path, settings: ImportSettings) -> _Solute:
    import mdtraj

    if not path.is_file():
        raise ValueError(f"topology: there is no file {path}")
    try:
        with ascii_path(path) as name:
            topology = _quietly(mdtraj.load_topology, name)
    except Exception as error:
        raise ValueError(f"topology: {path} cannot be read: {unreadable(error)}") from error
    _add_bonds(topology, path)
    table = read_topology(topology)
    components = table.components()
    if settings.solute is None:
        copies = [list(_only_molecule(table, components, path))]
    else:
        copies = _selected(topology, table, components, settings.solute)
    residues = dict.fromkeys((table.residue_indices[i], table.residue_names[i]) for i in copies[0])
    name = settings.name or "-".join(residue for _, residue in residues)
    return _Solute(topology, table, tuple(tuple(copy) for copy in copies), name)


def _add_bonds(topology: Any, path: Path) -> None:
    """Add the bonds that OpenMM's residue templates know and mdtraj's do not."""
    if path.suffix.lower() not in (".pdb", ".ent"):
        return
    from openmm import app

    try:
        other = _quietly(app.PDBFile, str(path)).topology
    except Exception:
        return  # mdtraj has read it, which is what counts
    atoms = list(topology.atoms)
    if other.getNumAtoms() != len(atoms):
        return
    present = {frozenset((a.index, b.index)) for a, b in topology.bonds}
    for one, two in other.bonds():
        if frozenset((one.index, two.index)) not in present:
            topology.add_bond(atoms[one.index], atoms[two.index])


def _only_molecule(
    table: TopologyTable, components: Sequence[Sequence[int]], path: Path
) -> Sequence[int]:
    candidates, loose = [], []
    for atoms in components:
        numbers = Counter(table.atomic_numbers[i] for i in atoms)
        numbers.pop(0, None)  # the extra sites of four-point water
        if not numbers or numbers == {1: 2, 8: 1}:
            continue
        if sum(numbers.values()) == 1:
            if next(iter(numbers)) not in _SINGLE and not _is_water(table, atoms[0]):
                loose.append(atoms[0])
            continue
        candidates.append(atoms)
    if loose:
        raise ValueError(
            f"topology: {path} has no bonds for {table.label(loose[0])} and {len(loose) - 1} other "
            "atoms: add CONECT records for residues that are not standard, or take the topology "
            "from a file that has bonds"
        )
    if not candidates:
        raise ValueError(f"topology: {path} holds nothing but water and ions")
    if len(candidates) > 1:
        parts = [_describe(table, atoms) for atoms in candidates[:_LISTED]]
        more = "" if len(candidates) <= _LISTED else f", and {len(candidates) - _LISTED} more"
        raise ValueError(
            f"topology: {path} holds {len(candidates)} molecules besides water and ions: "
            f"{', '.join(parts)}{more}; choose with --solute (e.g. --solute 'resname LIG'), or, if "
            "they are parts of one molecule, add the missing bonds as CONECT records"
        )
    return candidates[0]


def _is_water(table: TopologyTable, atom: int) -> bool:
    return table.residue_names[atom] in {"HOH", "WAT", "SOL", "TIP3", "TP3", "H2O", "SPC", "TIP4"}


def _selected(
    topology: Any, table: TopologyTable, components: Sequence[Sequence[int]], selection: str
) -> list[list[int]]:
    try:
        wanted = {int(i) for i in topology.select(selection)}
    except Exception as error:
        reason = unreadable(error)
        raise ValueError(f"solute: {selection!r} is not a selection: {reason}") from error
    if not wanted:
        raise ValueError(f"solute: {selection!r} selects no atom")
    copies: list[list[int]] = []
    for atoms in components:
        inside = wanted.intersection(atoms)
        if not inside:
            continue
        if len(inside) != len(atoms):
            outside = next(i for i in atoms if i not in inside)
            raise ValueError(
                f"solute: {selection!r} cuts a molecule: {table.label(min(inside))} is selected "
                f"and {table.label(outside)}, which bonds join to it, is not"
            )
        copies.append(list(atoms))
    first = Counter(table.atomic_numbers[i] for i in copies[0])
    for atoms in copies[1:]:
        if Counter(table.atomic_numbers[i] for i in atoms) != first:
            raise ValueError(
                f"solute: {selection!r} selects molecules of several kinds: "
                f"{_describe(table, copies[0])}, {_describe(table, atoms)}; if they are parts of "
                "one molecule, add the missing bonds as CONECT records"
            )
    return copies


def _describe(table: TopologyTable, atoms: Sequence[int]) -> str:
    counts = Counter(table.atomic_numbers[i] for i in atoms)
    where = table.residue(atoms[0])
    return f"{formula(counts)} ({where})"


# -- the frames ----------------------------------------------------------------------------------


class _Reader:
    """Reads trajectories one after the other; the first frame ever defines the molecule."""

    def __init__(
        self, solute: _Solute, settings: ImportSettings, molecule: Molecule | None, say: Progress
    ) -> None:
        self._solute = solute
        self._settings = settings
        self._say = say
        self._check: FrameCheck | None = None
        self._known = molecule
        self._orders: list[NDArray[np.int64]] = []
        self._stored: list[tuple[str, NDArray[np.int16], float, dict[str, Any]]] = []
        self._boxes: list[NDArray[np.float64]] = []
        self._constraints: list[list[float]] = []

    @property
    def molecule(self) -> Molecule:
        """The one whose frames were read."""
        assert self._check is not None
        return self._check.molecule

    def runs(self) -> Iterator[Run]:
        """Yield what was read."""
        for name, stored, spacing, info in self._stored:
            weights = _log_weights(self._settings, len(stored))
            yield Run(name, self._settings.kind, restore(stored), spacing, info, weights)

    def provenance(self) -> dict[str, Any]:
        """Return what the user knows and what the files tell."""
        result = dict(self._settings.provenance)
        if self._boxes and "box_nm" not in result:
            boxes = np.array(self._boxes)
            # A barostat moves a box by less than this; the mean of different boxes is nobody's.
            if (np.ptp(boxes, axis=0) <= _SAME_BOX * boxes.mean(axis=0)).all():
                result["box_nm"] = [round(float(x), 5) for x in boxes.mean(axis=0)]
            else:
                result["boxes_nm"] = np.unique(boxes.round(2), axis=0).tolist()
        if self._constraints:
            result["constraint_lengths_nm"] = self._constraints
        result["command"] = " ".join(sys.argv) if sys.argv and sys.argv[0] else "import"
        result["versions"] = {**result.get("versions", {}), "openmm-sd": __version__}
        return result

    def read(self, path: Path, taken: list[str]) -> None:
        """Read one file into as many runs as there are copies of the solute."""
        pieces: list[list[NDArray[np.int16]]] = [[] for _ in self._solute.copies]
        times: list[NDArray[np.float64]] = []
        relabelled = [0] * len(pieces)
        frames = 0
        for chunk in self._chunks(path):
            positions, box = chunk.xyz, chunk.unitcell_vectors
            times.append(np.asarray(chunk.time, dtype=np.float64))
            if box is not None and not (np.isfinite(box).all() and (_edges(box) > 0).all()):
                box = None
            first = frames
            # The stride is counted through the file, whatever the size of the pieces.
            keep = np.flatnonzero((first + np.arange(len(positions))) % self._settings.stride == 0)
            frames += len(positions)
            if len(keep):
                kept_box = None if box is None else box[keep]
                if kept_box is not None:
                    self._boxes.append(_edges(kept_box).mean(axis=0))
                for k in range(len(pieces)):
                    stored, changed = self._frames(path, k, positions[keep], kept_box, first)
                    pieces[k].append(stored)
                    relabelled[k] += changed
            self._say("reading", f"{path.name}, {frames} frames")
        if not frames:
            raise ValueError(f"{path} holds no frames")
        spacing, source = self._spacing(path, np.concatenate(times))
        for k, parts in enumerate(pieces):
            stem = f"{path.stem}-{k:03d}" if len(pieces) > 1 else path.stem
            name = _free_name(stem, taken)
            taken.append(name)
            info: dict[str, Any] = {
                "source": path.name,
                "source_frames": frames,
                "stride": self._settings.stride,
                "spacing_from": source,
            }
            if len(pieces) > 1:
                info["copy"] = k
            if relabelled[k]:
                info["relabelled_frames"] = relabelled[k]
            self._stored.append(
                (name, np.concatenate(parts), spacing * self._settings.stride, info)
            )

    def _chunks(self, path: Path) -> Iterator[Any]:
        import mdtraj

        if not path.is_file():
            raise ValueError(f"there is no trajectory {path}")
        own = path.name.lower().endswith(_WITH_TOPOLOGY)
        arguments = {} if own else {"top": self._solute.topology}
        with ascii_path(path) as name:
            chunks = None
            while True:
                try:
                    # All atoms: with a choice of atoms, mdtraj takes any topology for right.
                    if chunks is None:
                        chunks = mdtraj.iterload(name, chunk=_CHUNK_FRAMES, **arguments)
                    chunk = _quietly(next, chunks, None)
                except Exception as error:
                    raise ValueError(
                        f"{path} cannot be read with this topology: {unreadable(error)}"
                    ) from error
                if chunk is None:
                    return
                if own:
                    self._compare(path, chunk.topology)
                yield chunk

    def _compare(self, path: Path, topology: Any) -> None:
        """Refuse a file whose own topology has other atoms than the one given."""
        ours = self._solute.table.atomic_numbers
        theirs = [0 if a.element is None else a.element.atomic_number for a in topology.atoms]
        if len(ours) != len(theirs):
            raise ValueError(f"{path} has {len(theirs)} atoms, the topology {len(ours)}")
        for copy in self._solute.copies:
            for i in copy:
                if ours[i] != theirs[i]:
                    raise ValueError(
                        f"{path} and the topology disagree on the element of "
                        f"{self._solute.table.label(i)}"
                    )

    def _frames(
        self,
        path: Path,
        copy: int,
        positions: NDArray[np.float32],
        box: NDArray[np.float32] | None,
        first: int,
    ) -> tuple[NDArray[np.int16], int]:
        """Return one copy's frames as they are stored, and how many were relabelled."""
        try:
            if self._check is None:
                self._define(positions, box)
            assert self._check is not None
            own = positions[:, self._orders[copy]]
            frames, relabelled = self._check(self._check.whole(own, box), first)
            return quantise(frames), relabelled
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _define(self, positions: NDArray[np.float32], box: NDArray[np.float32] | None) -> None:
        """Make the molecule from the first frames; find the same atoms in the other copies."""
        solute = self._solute
        atoms = np.array(solute.copies[0])
        topology = solute.topology.subset(atoms)
        raw = np.asarray(positions[:, atoms], dtype=np.float64)
        finite = np.isfinite(raw).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(f"frame {int(np.argmin(finite))} is not finite")
        # Bonds are enough to make it whole; its handedness is not known before that.
        table = read_topology(topology)
        draft = Molecule(
            solute.name,
            tuple(table.atomic_numbers),
            tuple(table.bonds),
            tuple(table.names),
            tuple(table.residue_names),
            tuple(table.residue_ids),
            raw[0],
        )
        check = FrameCheck(draft)
        whole = check.whole(raw, box)
        molecule = Molecule.from_topology(topology, whole[0] - whole[0].mean(0), solute.name)
        FrameCheck(molecule).bonds(whole[:1], 0)
        lacking = missing_hydrogens(molecule, whole)
        if lacking:
            raise ValueError(lacking)
        if self._known is not None:
            self._take_over(molecule)
        else:
            self._orders.append(atoms)
            self._check = FrameCheck(molecule)
            self._constraints = constraint_lengths(molecule, whole)
        assert self._check is not None
        for copy in solute.copies[len(self._orders) :]:
            order = match_atoms(self._check.molecule, solute.table.graph(copy))
            if order is None:
                raise ValueError(
                    f"solute: {_describe(solute.table, copy)} is another molecule than "
                    f"{_describe(solute.table, solute.copies[0])}"
                )
            self._orders.append(np.array(order))

    def _take_over(self, molecule: Molecule) -> None:
        """Number the atoms as the data set that is added to does."""
        assert self._known is not None
        solute = self._solute
        order = match_atoms(self._known, solute.table.graph(solute.copies[0]))
        if order is None:
            raise ValueError(
                f"the data set is of {self._known.name} ({self._known.formula}), the topology has "
                f"another molecule, {molecule.name} ({molecule.formula})"
            )
        self._orders.append(np.array(order))
        self._check = FrameCheck(self._known)

    def _spacing(self, path: Path, times: NDArray[np.float64]) -> tuple[float, str]:
        """Return the spacing of the file's frames, ps, and where it is known from."""
        if self._settings.spacing_ps is not None:
            return float(self._settings.spacing_ps), "user"
        if not path.name.lower().endswith(_WITH_TIMES):
            raise ValueError(
                f"{path} does not say at what times its frames are: give the time between two "
                "frames (--spacing, in ps)"
            )
        if len(times) < 2:
            raise ValueError(f"{path} has a single frame: give the spacing (--spacing, in ps)")
        spacing = float(times[-1] - times[0]) / (len(times) - 1)
        # Times are single precision in most files.
        slack = max(_UNEVEN * abs(spacing), 4.0 * float(np.spacing(np.float32(abs(times).max()))))
        steps = np.diff(times)
        wrong = np.abs(steps - np.median(steps)) > slack
        if spacing <= 0 or wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"{path}: the frames are not evenly spaced: frame {at} is at {times[at]:g} ps and "
                f"frame {at + 1} at {times[at + 1]:g} ps, others are {np.median(steps):g} ps "
                "apart; split the file there, or give --spacing if the times are wrong"
            )
        # Rounding noise of the file's times must not make 0.999997 ps out of 1.
        return float(f"{spacing:.5g}"), "times"


def _log_weights(settings: ImportSettings, frames: int) -> NDArray[np.float64] | None:
    """Read the weights of a biased run, one a kept frame."""
    if settings.log_weights is None:
        return None
    path = Path(settings.log_weights)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        given = np.load(path) if path.suffix == ".npy" else np.loadtxt(path)
    except ValueError as error:
        raise ValueError(f"{path}: {unreadable(error)}") from None
    kept = np.asarray(given, dtype=np.float64).reshape(-1)[:: settings.stride]
    if len(kept) != frames or not np.isfinite(kept).all():
        raise ValueError(
            f"{path} must hold a finite number for each frame: {frames} are kept of the "
            f"trajectory, {len(kept)} of the weights"
        )
    return kept


def _free_name(stem: str, taken: Sequence[str]) -> str:
    base = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem)
    base = base if base[:1].isalnum() else f"run{base}"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _edges(box: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(np.diagonal(box, axis1=-2, axis2=-1), dtype=np.float64)


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader whose warnings say nothing about the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)
