"""Data sets: the solute's frames, run by run, in one HDF5 file.

A data set is what ``openmm-sd generate`` and ``openmm-sd import`` write and what training and
validation read. ``docs/dataset-format.md`` describes the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files.atomic import check_target, file_sha256, one_line, replacing
from ..molecule.matching import difference
from ..molecule.molecule import Molecule

FORMAT: Final = "openmm-sd-dataset"
VERSION: Final = 1

UNIT_NM: Final = 1e-4
"""One integer step of the stored positions, nm; the thermal width of a bond is about 30 of them."""

BIASED: Final = "biased"
"""Kind of runs that were made with a bias and carry weights."""

REACH_NM: Final = 32767 * UNIT_NM
"""Farthest coordinate from the centroid that 16 bits hold, nm."""

# Frames a compressed chunk; large enough for gzip, small enough to read a piece of a long run.
_CHUNK_FRAMES: Final = 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, eq=False)
class Run:
    """One unbroken trajectory of the solute.

    Attributes
    ----------
    name : str
        Unique in its data set; letters, digits, dot, dash and underscore.
    kind : str
        ``plain`` (a long run at equilibrium), ``seeded`` (a short one from a chosen start),
        ``imported``, or a word of your own.
    positions : ndarray
        (T, N, 3) float32, nm, whole molecule, centroid of each frame at the origin.
    spacing_ps : float
        Time from one frame to the next, ps.
    info : dict
        What else is known of the run, in JSON types: seed, start, source file.
    log_weights : ndarray or None
        (T,) logarithm of each frame's weight at equilibrium, up to one constant for all runs of a
        data set: of runs with a bias (umbrella sampling, metadynamics), whose kind is ``biased``.
        Their dynamics mean nothing; they tell how likely regions are.
    """

    name: str
    kind: str
    positions: NDArray[np.float32]
    spacing_ps: float
    info: dict[str, Any] = field(default_factory=dict)
    log_weights: NDArray[np.float64] | None = None

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.positions)

    @property
    def length_ps(self) -> float:
        """Time from the first frame to the last, ps."""
        return (len(self.positions) - 1) * self.spacing_ps


@dataclass(frozen=True, eq=False)
class Dataset:
    """A molecule, its runs, and how they were made.

    Attributes
    ----------
    molecule : Molecule
        Atoms, bonds, names and handedness; its atom order is that of the frames.
    provenance : dict
        Force field, water, thermostat, versions and so on, as far as known.
    runs : tuple of Run
        Sorted by name.
    """

    molecule: Molecule
    provenance: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def n_frames(self) -> int:
        """Number of frames of all runs together."""
        return sum(run.n_frames for run in self.runs)

    @property
    def total_ps(self) -> float:
        """Length of all runs together, ps."""
        return float(sum(run.length_ps for run in self.runs))

    def to_mdtraj(self) -> dict[str, Any]:
        """Return each run as an ``mdtraj.Trajectory`` with its times in ps, by name."""
        import mdtraj

        topology = mdtraj.Topology.from_openmm(self.molecule.to_topology())
        return {
            run.name: mdtraj.Trajectory(
                run.positions, topology, time=run.spacing_ps * np.arange(run.n_frames)
            )
            for run in self.runs
        }


def quantise(positions: ArrayLike) -> NDArray[np.int16]:
    """Centre whole molecules (..., N, 3), nm, and round them to the int16 that the file holds.

    These count in `UNIT_NM`. ValueError if a coordinate is not finite or farther than `REACH_NM`
    from the centroid.
    """
    x = np.asarray(positions, dtype=np.float64)
    if x.ndim < 2 or x.shape[-1] != 3:
        raise ValueError(f"positions must have shape (frames, atoms, 3), got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("positions are not finite")
    x = np.rint((x - x.mean(axis=-2, keepdims=True)) / UNIT_NM)
    reach = float(np.abs(x).max(initial=0.0)) * UNIT_NM
    if reach > REACH_NM:
        raise ValueError(
            f"an atom is {reach:.2f} nm from the centre of its molecule and the format holds "
            f"{REACH_NM:.2f} nm: is the molecule whole, and in nm?"
        )
    return x.astype(np.int16)


def restore(stored: ArrayLike) -> NDArray[np.float32]:
    """Turn the integers of the file, (..., N, 3), into positions in nm."""
    return np.asarray(stored).astype(np.float32) * np.float32(UNIT_NM)


def write_dataset(
    path: str | os.PathLike[str],
    molecule: Molecule,
    runs: Iterable[Run],
    provenance: dict[str, Any],
) -> None:
    """Write a data set; the file appears complete or not at all.

    Parameters
    ----------
    path : str or PathLike
        An existing file is replaced.
    molecule : Molecule
        Whose frames they are.
    runs : iterable of Run
        At least one. May be a generator: one run at a time is held in memory.
    provenance : dict
        In JSON types.

    Raises
    ------
    ValueError
        If runs and molecule do not fit each other or the format.
    OSError
        If the file cannot be written, e.g. on a full disk.
    """
    target = Path(path)
    check_target(target)
    texts = {
        "provenance": _to_json("provenance", provenance),
        "molecule": _to_json("molecule", molecule.to_dict()),
    }
    try:
        # This version of the format keeps checksums of its own structure and long attributes.
        with (
            replacing(target) as partial,
            h5py.File(partial, "w", libver=("v108", "v108")) as file,
        ):
            file.attrs["format"] = FORMAT
            file.attrs["version"] = VERSION
            for key, text in texts.items():
                file.attrs[key] = text
            group = file.create_group("runs")
            for run in runs:
                _write_run(group, run, molecule)
            if not len(group):
                raise ValueError("a data set needs at least one run")
    except (OSError, RuntimeError) as error:
        # HDF5's own messages run over several lines and name its C functions.
        raise OSError(f"cannot write {target}: {_reason(error)}") from error


def _write_run(group: h5py.Group, run: Run, molecule: Molecule) -> None:
    if not _NAME.fullmatch(run.name):
        raise ValueError(
            f"the name of a run must be of letters, digits, dot, dash or underscore: {run.name!r}"
        )
    if run.name in group:
        raise ValueError(f"two runs are named {run.name!r}")
    shape = np.shape(run.positions)
    if len(shape) != 3 or shape[0] < 1 or shape[1:] != (molecule.n_atoms, 3):
        raise ValueError(
            f"positions of run {run.name} must have shape (frames, {molecule.n_atoms}, 3), "
            f"got {shape}"
        )
    if not 0 < run.spacing_ps < float("inf"):
        raise ValueError(f"spacing of run {run.name} must be a positive time in ps")
    try:
        stored = quantise(run.positions)
    except ValueError as error:
        raise ValueError(f"run {run.name}: {error}") from None
    if (run.kind == BIASED) != (run.log_weights is not None):
        raise ValueError(f"run {run.name}: log weights belong to runs of kind {BIASED}, only")
    one = group.create_group(run.name)
    one.attrs["kind"] = run.kind
    one.attrs["spacing_ps"] = float(run.spacing_ps)
    one.attrs["info"] = _to_json(f"info of run {run.name}", run.info)
    if run.log_weights is not None:
        weights = np.asarray(run.log_weights, dtype=np.float64)
        if weights.shape != (shape[0],) or not np.isfinite(weights).all():
            raise ValueError(
                f"log weights of run {run.name} must be {shape[0]} finite numbers, one a frame"
            )
        one.create_dataset("log_weights", data=weights, compression="gzip", fletcher32=True)
    one.create_dataset(
        "positions",
        data=stored,
        chunks=(min(len(stored), _CHUNK_FRAMES), *stored.shape[1:]),
        compression="gzip",
        shuffle=True,
        fletcher32=True,
    )


def read_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Read what `write_dataset` wrote, with all frames in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no data set, of an unknown version, damaged, or has no runs.
    """
    source = Path(path)
    with _opened(source) as file:
        molecule, provenance = _read_head(file, source)
        names = sorted(file["runs"])
        runs = tuple(_read_run(file["runs"], name, molecule, source) for name in names)
    if not runs:
        raise ValueError(f"{source} holds no runs")
    return Dataset(molecule, provenance, runs)


def described(dataset: Dataset, path: Path) -> dict[str, Any]:
    """Return what the commands that write a data set tell of it."""
    return {
        "path": str(path),
        "molecule": dataset.molecule.name,
        "formula": dataset.molecule.formula,
        "runs": len(dataset.runs),
        "frames": dataset.n_frames,
        "ns": dataset.total_ps / 1000.0,
        "atoms": dataset.molecule.n_atoms,
        "provenance": dataset.provenance,
        "sha256": file_sha256(path),
    }


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Put the runs of several data sets of one molecule together.

    Parameters
    ----------
    datasets : sequence of Dataset
        Of the same molecule, atom by atom and with the same handedness, at the same temperature.

    Returns
    -------
    Dataset
        With the first one's molecule. A run whose name is taken gets the number of its data set
        at the end of its name. The provenance is the common one, or ``{"merged": [...]}``.

    Raises
    ------
    ValueError
        If the molecules or the temperatures differ, or there is nothing to merge.
    """
    if not datasets:
        raise ValueError("there are no data sets to merge")
    first = datasets[0]
    runs: dict[str, Run] = {}
    for number, dataset in enumerate(datasets):
        different = difference(first.molecule, dataset.molecule)
        if different:
            raise ValueError(
                f"data set {number} is of another molecule than data set 0: {different}"
            )
        ours, theirs = (d.provenance.get("temperature_K") for d in (first, dataset))
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"data sets 0 and {number} are of different temperatures, {ours} and {theirs} K"
            )
        for run in dataset.runs:
            name = run.name
            while name in runs:
                name = f"{name}-{number}"
            runs[name] = replace(run, name=name)
    sources = [s for d in datasets for s in d.provenance.get("merged", [d.provenance])]
    provenance = sources[0] if all(s == sources[0] for s in sources) else {"merged": sources}
    # What no source contradicts stays where readers look for it.
    known = {key: value for source in reversed(sources) for key, value in source.items()}
    common = {
        key: value
        for key, value in known.items()
        if key != "command" and all(source.get(key, value) == value for source in sources)
    }
    return Dataset(
        first.molecule,
        {**common, **provenance},
        tuple(runs[name] for name in sorted(runs)),
    )


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[h5py.File]:
    """Open a file for reading; whatever HDF5 says about it becomes one line."""
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if not source.is_file():
        raise ValueError(f"{source} is not a file")
    try:
        with h5py.File(source, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        if not h5py.is_hdf5(source):
            raise ValueError(f"{source} is not a data set: it is not an HDF5 file") from None
        raise ValueError(f"{source} is damaged: {_reason(error)}") from error


def _read_head(file: h5py.File, source: Path) -> tuple[Molecule, dict[str, Any]]:
    if file.attrs.get("format") != FORMAT:
        raise ValueError(
            f"{source} is not a data set of openmm-sd: its attribute 'format' is "
            f"{file.attrs.get('format')!r}, wanted is {FORMAT!r}"
        )
    version = file.attrs.get("version")
    if version != VERSION:
        raise ValueError(
            f"{source} has version {version} of the format, this openmm-sd reads {VERSION}"
        )
    missing = [key for key in ("molecule", "provenance") if key not in file.attrs]
    if missing or not isinstance(file.get("runs"), h5py.Group):
        raise ValueError(f"{source} is damaged: it has no {(missing or ['runs'])[0]}")
    try:
        molecule = Molecule.from_dict(json.loads(file.attrs["molecule"]))
        provenance = json.loads(file.attrs["provenance"])
        if not isinstance(provenance, dict):
            raise ValueError("provenance must be a JSON object")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source} is damaged: {error}") from error
    return molecule, provenance


def _read_run(group: h5py.Group, name: str, molecule: Molecule, source: Path) -> Run:
    where = f"{source} is damaged: run {name}"
    one = group[name]
    positions = one.get("positions") if isinstance(one, h5py.Group) else None
    missing = {"kind", "spacing_ps", "info"} - set(one.attrs)
    if not isinstance(positions, h5py.Dataset) or missing:
        raise ValueError(f"{where} has no {min(missing, default='positions')}")
    if positions.dtype != np.int16:
        raise ValueError(f"{where} has positions of type {positions.dtype}, wanted is int16")
    shape = positions.shape
    if len(shape) != 3 or shape[0] < 1 or shape[1:] != (molecule.n_atoms, 3):
        raise ValueError(f"{where} has positions of shape {shape} for {molecule.n_atoms} atoms")
    try:
        spacing = float(one.attrs["spacing_ps"])
        info = json.loads(one.attrs["info"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not 0 < spacing < float("inf") or not isinstance(info, dict):
        raise ValueError(f"{where} has no positive spacing or no info")
    kind, log_weights = str(one.attrs["kind"]), None
    if kind == BIASED:
        stored = one.get("log_weights")
        if not isinstance(stored, h5py.Dataset) or stored.shape != shape[:1]:
            raise ValueError(f"{where} is {BIASED} and has no weight for each frame")
        log_weights = np.asarray(stored[()], dtype=np.float64)
    return Run(name, kind, restore(positions[()]), spacing, info, log_weights)


def _to_json(what: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be of JSON types: {error}") from None


def _reason(error: BaseException) -> str:
    found = re.search(r"error message = '([^']*)'", text := one_line(error))
    return found.group(1) if found else text
