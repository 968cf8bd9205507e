"""The frames that chains start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..files.trajectories import ascii_path, unreadable
from ..molecule.graph import spanning_edges
from ..molecule.matching import find_copies
from ..molecule.molecule import Molecule
from ..molecule.topology import read_topology
from ..molecule.whole import join_bonded

_MAX_BOND: Final = 0.4
"""Longest bond (nm) believed in a start frame; I-I, a long one, has 0.27 nm."""


def read_start_frames(
    path: Any,
    molecule: Molecule,
    topology: str | os.PathLike[str] | None = None,
) -> NDArray[np.float64]:
    """Read frames of a molecule, (M, N, 3), nm, whole, from a structure or a trajectory.

    It takes anything that mdtraj reads, or an ``mdtraj.Trajectory``, and a `topology` for formats
    that have none (XTC, DCD). The molecule is found by its bond graph, in any numbering, among
    water and ions if there are any, broken across the box or not; the frames have its own order of
    atoms. Several copies give as many frames. ValueError if the file cannot be read or does not
    hold the molecule.
    """
    import mdtraj

    loaded = path if isinstance(path, mdtraj.Trajectory) else None
    file: Path | str = "the trajectory" if loaded is not None else Path(path)
    for given in (None if loaded is not None else path, topology):
        if given is not None and not Path(given).is_file():
            raise ValueError(f"start: {given}: no such file")
    try:
        with ascii_path(file) as name, ascii_path(topology or "") as beside:
            extra = {} if topology is None else {"top": beside}
            first = loaded if loaded is not None else mdtraj.load_frame(name, 0, **extra)
            # Without a molecule to select: a box of water is read atom by atom of interest.
            copies = _copies(molecule, first.topology.copy())
            if loaded is not None:
                trajectory = loaded.atom_slice(np.unique(copies))
            else:
                trajectory = mdtraj.load(name, atom_indices=np.unique(copies), **extra)
    except _NotFound as error:
        raise ValueError(f"start: {file}: {error}") from None
    except Exception as error:  # readers of many formats raise whatever they stumble over
        raise ValueError(f"start: mdtraj cannot read {file}: {unreadable(error)}") from error
    place = np.searchsorted(np.unique(copies), copies)
    frames = np.asarray(trajectory.xyz[:, place], dtype=np.float64).reshape(-1, molecule.n_atoms, 3)
    if trajectory.unitcell_vectors is not None:
        boxes = np.asarray(trajectory.unitcell_vectors, dtype=np.float64).repeat(len(copies), 0)
        edges = spanning_edges(molecule.n_atoms, molecule.bonds)
        frames = join_bonded(frames, boxes, edges)
    i, j = np.array(molecule.bonds).reshape(-1, 2).T
    longest = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1).max(axis=1, initial=0.0)
    if not np.isfinite(frames).all():
        raise ValueError(f"start: {file}: not all coordinates are finite")
    if (longest > _MAX_BOND).any():
        raise ValueError(
            f"start: {file}: frame {int(longest.argmax())} has a bond of {longest.max():.3f} nm: "
            "the molecule is broken, perhaps across a box that the file does not hold"
        )
    return frames


class _NotFound(ValueError):
    """The molecule is not in a topology."""


def _copies(molecule: Molecule, topology: Any) -> NDArray[np.int64]:
    """Return the atoms, (copies, N), of every copy of a molecule in an mdtraj Topology."""
    if topology.n_bonds == 0:
        topology.create_standard_bonds()
    table = read_topology(topology)
    copies = [copy.mapping for copy in find_copies([molecule], table)]
    if not copies:
        from ..system.solute import find_solute

        try:
            find_solute(molecule, topology)  # says what is there instead
        except ValueError as error:
            raise _NotFound(str(error)) from None
    return np.array(copies, dtype=np.int64).reshape(-1, molecule.n_atoms)
