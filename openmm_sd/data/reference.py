"""The MD that a model is compared with: arrays of angles, data sets, trajectories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..analysis import dihedral
from ..analysis.sample import Sample
from ..files.atomic import file_sha256
from ..files.trajectories import ascii_path, unreadable
from ..model.card import Card, DataSet
from ..molecule.matching import match_atoms
from ..molecule.molecule import Molecule
from ..molecule.torsions import Torsion, backbone_torsions, torsions
from .dataset import BIASED, Dataset, merge, read_dataset

_EQUILIBRIUM_KINDS = ("plain", "imported")
# Formats whose readers know the time of each frame.
_TIMED = (".xtc", ".trr", ".h5", ".hdf5", ".nc", ".netcdf", ".ncdf", ".lh5", ".gro")
_CHUNK = 2_000


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """One stretch of MD: angles (T, K), rad, or positions (T, N, 3), nm.

    Positions are whole molecules in the atom order of the model. `equilibrium` says whether the run
    samples that; seeded runs do not, but tell what follows upon what.
    """

    name: str
    spacing_ps: float
    equilibrium: bool
    angles: NDArray[np.float32] | None = None
    positions: NDArray[np.float32] | None = None

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        values = self.positions if self.positions is not None else self.angles
        return 0 if values is None else len(values)


@dataclass(frozen=True, eq=False)
class Reference:
    """All the MD that a model is compared with.

    If some runs are arrays of angles, these alone give equilibrium and kinetics, and the runs with
    positions give geometry, energies and one-step tests. Otherwise the runs with positions give
    everything, the ones out of equilibrium only the one-step tests.
    """

    runs: tuple[ReferenceRun, ...]

    @property
    def from_arrays(self) -> bool:
        """Whether equilibrium and kinetics come from arrays of angles."""
        return any(run.angles is not None for run in self.runs)

    @property
    def n_angles(self) -> int | None:
        """Number of columns of the arrays."""
        return next((run.angles.shape[1] for run in self.runs if run.angles is not None), None)

    @property
    def with_positions(self) -> tuple[ReferenceRun, ...]:
        """The runs with positions."""
        return tuple(run for run in self.runs if run.positions is not None)

    def __add__(self, other: Reference) -> Reference:
        return Reference(self.runs + other.runs)

    def sample(self, torsions: Sequence[Torsion]) -> Sample:
        """Return the angles along the runs at equilibrium; arrays must have a column a torsion.

        ValueError if there is nothing at equilibrium, or the spacings do not fit each other.
        """
        if self.from_arrays:
            chosen = [run for run in self.runs if run.angles is not None]
        else:
            chosen = [run for run in self.runs if run.equilibrium]
        if not chosen:
            raise ValueError(
                "reference: there are seeded runs only; equilibrium and kinetics need plain or "
                "imported runs, or an array of angles beside them"
            )
        runs = []
        for run in chosen:
            if run.angles is not None:
                if run.angles.shape[1] != len(torsions):
                    raise ValueError(
                        f"reference: {run.name} has {run.angles.shape[1]} angles a frame, wanted "
                        f"are {len(torsions)} ({', '.join(t.name for t in torsions)})"
                    )
                runs.append(run.angles)
            elif run.positions is not None:
                runs.append(angles_of(run.positions, torsions))
        coarsest = max(run.spacing_ps for run in chosen)
        thinned = []
        for run, angles in zip(chosen, runs, strict=True):
            every = round(coarsest / run.spacing_ps)
            if abs(every * run.spacing_ps - coarsest) > 1e-6 * coarsest:
                raise ValueError(
                    f"reference: frames of {run.name} are {run.spacing_ps:g} ps apart, those of "
                    f"another run {coarsest:g} ps, which is not a multiple of it"
                )
            thinned.append(angles[::every])
        return Sample.from_runs(thinned, coarsest)

    def frames(self, limit: int) -> NDArray[np.float32] | None:
        """Return frames at equilibrium, evenly spread, at most about `limit`; None without any."""
        chosen = [run.positions for run in self.with_positions if run.equilibrium]
        arrays = [positions for positions in chosen if positions is not None]
        if not arrays:
            return None
        every = max(1, -(-sum(map(len, arrays)) // limit))
        return np.concatenate([positions[::every] for positions in arrays])

    def description(self) -> list[dict[str, Any]]:
        """Return what there is, run by run, in JSON types."""
        return [
            {
                "name": run.name,
                "frames": run.n_frames,
                "spacing_ps": run.spacing_ps,
                "ns": run.n_frames * run.spacing_ps / 1000.0,
                "equilibrium": run.equilibrium,
                "holds": "angles" if run.positions is None else "positions",
            }
            for run in self.runs
        ]


def angles_of(positions: NDArray[Any], torsions: Sequence[Torsion]) -> NDArray[np.float32]:
    """Return torsions of frames, (T, K) float32 in radians."""
    columns = [
        np.concatenate(
            [
                dihedral(positions[start : start + 50_000], torsion.atoms)
                for start in range(0, len(positions), 50_000)
            ]
        ).astype(np.float32)
        for torsion in torsions
    ]
    return np.stack(columns, axis=1)


def reference_from_arrays(
    arrays: ArrayLike | Sequence[ArrayLike], spacing_ps: float = 1.0, name: str = "array"
) -> Reference:
    """Make a reference of angles alone.

    Parameters
    ----------
    arrays : array_like or sequence of array_like
        (T, K) radians, or (R, T, K) for R runs, or several of these. For a peptide with one pair
        of them K is 2: phi, psi.
    spacing_ps : float
        Time between frames, ps.
    name : str
        Where they come from.

    Raises
    ------
    ValueError
        If the arrays have another shape, are not finite, or are in degrees.
    """
    if not 0 < spacing_ps < float("inf"):
        raise ValueError(f"reference spacing must be a positive number of ps, got {spacing_ps!r}")
    if isinstance(arrays, np.ndarray) or not isinstance(arrays, Sequence):
        arrays = [arrays]
    runs = []
    for array in arrays:
        try:
            angles = np.asarray(array, dtype=np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"reference {name}: not an array of numbers") from None
        if angles.ndim not in (2, 3) or angles.shape[-1] < 1 or angles.shape[-2] < 2:
            raise ValueError(
                f"reference {name}: wanted are angles (frames, angles) or (runs, frames, angles), "
                f"got shape {angles.shape}"
            )
        if not np.isfinite(angles).all():
            raise ValueError(f"reference {name}: some angles are not finite")
        if np.abs(angles).max() > 2 * np.pi + 1e-3:
            raise ValueError(
                f"reference {name}: angles up to {np.abs(angles).max():.0f}; wanted are radians"
            )
        # Some programs count from 0 to 2 pi.
        angles = np.where(angles >= np.pi, angles - 2 * np.pi, angles).astype(np.float32)
        runs += list(angles) if angles.ndim == 3 else [angles]
    named = [name] if len(runs) == 1 else [f"{name} #{k}" for k in range(len(runs))]
    return Reference(
        tuple(
            ReferenceRun(label, float(spacing_ps), True, angles=angles)
            for label, angles in zip(named, runs, strict=True)
        )
    )


def reference_from_dataset(
    dataset: Dataset | str | os.PathLike[str], molecule: Molecule, name: str | None = None
) -> Reference:
    """Make a reference of a data set.

    Runs of the kinds ``plain`` and ``imported`` count as equilibrium; biased ones are left out.

    Parameters
    ----------
    dataset : Dataset, str or PathLike
        Or its file.
    molecule : Molecule
        The model's; the data set's atoms are put into its order.
    name : str, optional
        Where it comes from; the file's name by default.

    Raises
    ------
    ValueError
        If the data set is of another molecule.
    """
    if not isinstance(dataset, Dataset):
        name = name or Path(dataset).name
        dataset = read_dataset(dataset)
    name = name or "data set"
    order = match_atoms(molecule, dataset.molecule.graph())
    if order is None:
        raise ValueError(
            f"reference {name}: it is of {dataset.molecule.name} ({dataset.molecule.formula}), the "
            f"model knows {molecule.name} ({molecule.formula})"
        )
    return Reference(
        tuple(
            ReferenceRun(
                f"{name}: {run.name}",
                run.spacing_ps,
                run.kind in _EQUILIBRIUM_KINDS,
                positions=_relabelled(run.positions[:, order], molecule, f"{name}: {run.name}"),
            )
            for run in dataset.runs
            if run.kind != BIASED
        )
    )


def held_out_reference(
    card: Mapping[str, Any], molecule: Molecule, folders: Sequence[str | os.PathLike[str]]
) -> Reference:
    """Make a reference of what a model's training held out, and of that alone.

    Parameters
    ----------
    card : mapping
        Of a model that ``openmm-sd train`` made of one molecule: it names the data sets, their
        hashes, and the last part of every run that was not trained on.
    molecule : Molecule
        The model's.
    folders : sequence of str or PathLike
        Where the data sets may be.

    Raises
    ------
    ValueError
        If the card does not say it, a data set is not there or another one, or nothing that
        samples the equilibrium was held out.
    """
    training = Card.training.of(card)
    held, files = training.get("held_out_ps"), training.get("data_sets")
    if not held or not files:
        raise ValueError(
            "reference: name the MD to compare with (--reference): "
            + (
                "the model's card does not say what its training held out"
                if held is None
                else "the model's training held nothing out"
            )
        )
    data = merge([read_dataset(_training_data(one, folders)) for one in files])
    runs = [
        replace(run, positions=run.positions[-(round(held[run.name] / run.spacing_ps) + 1) :])
        for run in data.runs
        if run.name in held
    ]
    if not any(run.kind in _EQUILIBRIUM_KINDS for run in runs):
        raise ValueError(
            "reference: name the MD to compare with (--reference): what the training held out "
            "holds no plain run, so there is no equilibrium in it"
        )
    return reference_from_dataset(replace(data, runs=tuple(runs)), molecule, "held out")


def _training_data(entry: DataSet, folders: Sequence[str | os.PathLike[str]]) -> Path:
    """Find a data set by the name and the hash that a card has of it."""
    name = entry["file"]
    there = [path for path in (Path(folder) / name for folder in folders) if path.is_file()]
    for path in there:
        if file_sha256(path) == entry["sha256"]:
            return path
    what = f"{there[0]} is not the file" if there else f"{name} is not next to the bundle"
    raise ValueError(
        "reference: name the MD to compare with (--reference): without it the model is compared "
        f"with what its training on {name} held out, and {what}"
        + (" that it was trained on" if there else "")
    )


def reference_from_trajectory(
    path: Any,
    molecule: Molecule,
    topology: str | os.PathLike[str] | None = None,
    spacing_ps: float | None = None,
) -> Reference:
    """Make a reference of a trajectory of any MD program.

    Parameters
    ----------
    path : str, PathLike or mdtraj.Trajectory
        Anything that mdtraj reads, or what it has read; solvent is left out.
    molecule : Molecule
        The model's; found in the topology by its bonds and elements.
    topology : str or PathLike, optional
        A file with the topology and bonds, where the trajectory has none.
    spacing_ps : float, optional
        Time between frames; by default what the trajectory says.

    Raises
    ------
    ValueError
        If the molecule is not there, or the time between frames is not known or changes.
    """
    import mdtraj

    if isinstance(path, mdtraj.Trajectory):
        loaded = path
        return _from_pieces(
            None, path.topology, lambda atoms: [loaded.atom_slice(atoms)], molecule, spacing_ps
        )
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"reference: there is no file {path}")
    with ascii_path(path) as name, ascii_path(topology or "") as beside:
        keywords = {} if topology is None else {"top": beside}
        try:
            first = mdtraj.load_frame(name, 0, **keywords)
        except Exception as error:  # mdtraj raises whatever its readers stumble over
            raise ValueError(
                f"reference: mdtraj cannot read {path}: {unreadable(error)}"
            ) from error
        return _from_pieces(
            path,
            first.topology,
            lambda atoms: mdtraj.iterload(name, chunk=_CHUNK, atom_indices=atoms, **keywords),
            molecule,
            spacing_ps,
        )


def _from_pieces(
    file: Path | None,
    topology: Any,
    read: Callable[[NDArray[np.int64]], Iterable[Any]],
    molecule: Molecule,
    spacing_ps: float | None,
) -> Reference:
    """Make a reference of pieces of a file, or of what mdtraj has loaded, read atom by atom."""
    from ..system.solute import find_solute

    atoms = np.array(find_solute(molecule, topology).particles)
    # Readers want rising numbers.
    back = np.argsort(np.argsort(atoms))
    positions: list[NDArray[np.float32]] = []
    times: list[NDArray[np.float64]] = []
    for piece in read(np.sort(atoms)):
        if piece.unitcell_lengths is not None:
            piece.make_molecules_whole()
        positions.append(piece.xyz[:, back].astype(np.float32))
        times.append(np.asarray(piece.time, dtype=np.float64))
    if spacing_ps is None:
        spacing_ps = _spacing(file, np.concatenate(times))
    name = "trajectory" if file is None else file.name
    frames = _relabelled(np.concatenate(positions), molecule, name)
    return Reference((ReferenceRun(name, float(spacing_ps), True, positions=frames),))


def _spacing(file: Path | None, times: NDArray[np.float64]) -> float:
    """Return the time between frames, ps, of a file or of what mdtraj has loaded."""
    steps = np.diff(times)
    known = file is None or file.suffix.lower() in _TIMED
    known = known and len(steps) > 0 and steps[0] > 0
    if not known or np.abs(steps - steps[0]).max() > 1e-3 * steps[0]:
        name, how = "", "give spacing_ps"
        if file is not None:
            name, how = f" {file.name}", "say it with --reference-spacing"
        raise ValueError(
            f"reference{name}: the time between its frames is not known or changes; {how}"
        )
    return float(np.round(np.median(steps), 6))


def _relabelled(
    positions: NDArray[np.float32], molecule: Molecule, name: str
) -> NDArray[np.float32]:
    """Number equivalent hydrogens as the model does; MD never exchanges them."""
    order = molecule.handedness.relabelling(positions[0])
    positions = positions[:, order]
    if (molecule.handedness.measure(positions[0]) != molecule.handedness.signs).any():
        raise ValueError(f"reference {name}: it is of another stereoisomer than the model's")
    return np.ascontiguousarray(positions)


def read_reference(
    paths: Sequence[str | os.PathLike[str]],
    molecule: Molecule,
    topology: str | os.PathLike[str] | None = None,
    spacing_ps: float | None = None,
) -> Reference:
    """Read references of any kind and put them together.

    Files are ``.npy`` or ``.npz`` (angles in radians), data sets, or trajectories, which may need a
    topology. `spacing_ps` is that of arrays, 1 ps by default, and of trajectories that do not know
    theirs.
    """
    if not paths:
        raise ValueError("reference: name at least one file")
    whole = Reference(())
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"reference: there is no file {path}")
        suffix = path.suffix.lower()
        if suffix in (".npy", ".npz"):
            arrays = _load_arrays(path)
            part = reference_from_arrays(
                arrays, 1.0 if spacing_ps is None else spacing_ps, path.name
            )
        elif suffix in (".h5", ".hdf5") and _is_dataset(path):
            part = reference_from_dataset(path, molecule)
        else:
            part = reference_from_trajectory(path, molecule, topology, spacing_ps)
        whole = whole + part
    return whole


def _load_arrays(path: Path) -> list[NDArray[Any]]:
    try:
        content = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"reference {path.name}: not a NumPy file of plain numbers") from error
    if isinstance(content, np.ndarray):
        return [content]
    with content:
        return [content[key] for key in sorted(content.files)]


def _is_dataset(path: Path) -> bool:
    """Whether a HDF5 file is a data set; mdtraj's trajectories end in .h5, too."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("format", "")).startswith("openmm-sd")
    except OSError:
        # Damaged: the data set's reader says so in one line.
        return True


def chosen_torsions(
    molecule: Molecule,
    reference: Reference,
    named: Sequence[tuple[int, int, int, int]] | None = None,
) -> list[Torsion]:
    """Return what is looked at: what the user names, what the arrays hold, or all that can turn.

    Torsions are named by four atoms. ValueError if they are none of the molecule, or do not fit the
    arrays.
    """
    if named is not None:
        chosen = []
        for atoms in named:
            if len(set(atoms)) != 4 or not all(0 <= a < molecule.n_atoms for a in atoms):
                raise ValueError(
                    f"torsions: {atoms} is not four different atoms of 0 to {molecule.n_atoms - 1}"
                )
            chosen.append(Torsion("-".join(molecule.atom_names[a] for a in atoms), atoms))
        return chosen
    if reference.from_arrays:
        pairs = backbone_torsions(molecule)
        if len(pairs) == 1 and reference.n_angles == 2:
            return list(pairs[0])
    found = torsions(molecule)
    if not found:
        raise ValueError(f"{molecule.name} has no torsion to look at; name some with --torsions")
    if reference.from_arrays and reference.n_angles != len(found):
        raise ValueError(
            f"reference: arrays of {reference.n_angles} angles a frame; {molecule.name} has "
            f"{len(found)} torsions: name those of the columns with --torsions"
        )
    return found
