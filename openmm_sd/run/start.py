"""Where a run starts: a prepared directory, a structure file, or objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..bridges.base import FORCE_NAME
from ..imaging import make_whole
from ..notes import is_implicit
from ..prepare import PreparedBox, PreparedSystem, equilibrate, read_prepared, solvate
from ..prepare.directory import prepared_sha256
from ..prepare.structure import count_waters, read_structure
from ..propagator.model import ScoreModel
from ..solute import NoSoluteError
from .settings import RunSettings

#: Heavy hydrogens allow steps of 4 fs, the usual pair of settings with constrained X-H bonds.
HYDROGEN_MASS_AMU: Final = 3.0
HEAVY_STEP_PS: Final = 0.004
#: Step of a System that somebody else has made, ps.
LIGHT_STEP_PS: Final = 0.002
# Pressure at which a new box relaxes where the run has none of its own, bar.
_PRESSURE_BAR: Final = 1.0
_FORCE_FIELD: Final = ("amber99sbildn.xml", "tip3p.xml")
_COMPLETE: Final = (
    "nothing is repaired here: the structure must be complete, hydrogens included, and known to "
    "the force field; PDBFixer and OpenMM's Modeller add what is missing"
)


@dataclass(frozen=True)
class Source:
    """What a run is to start from.

    Attributes
    ----------
    name : str
        What the user gave.
    digest : str
        SHA-256 of it.
    topology : openmm.app.Topology
    positions : ndarray, shape (N, 3)
        nm.
    prepared : PreparedSystem or None
        None where the System is yet to be made.
    """

    name: str
    digest: str
    topology: app.Topology
    positions: NDArray[np.float64]
    prepared: PreparedSystem | None

    @property
    def solvated(self) -> bool:
        """Whether there is water already."""
        return count_waters(self.topology) > 0

    def step_ps(self) -> float:
        """MD step that the System allows, as far as is known, ps."""
        if self.prepared is None:
            return HEAVY_STEP_PS
        return self.prepared.step_ps or LIGHT_STEP_PS


def open_start(start: str | os.PathLike[str] | PreparedSystem | PreparedBox) -> Source:
    """Read what a run is to start from.

    Parameters
    ----------
    start : str, PathLike, PreparedSystem or PreparedBox
        A prepared directory; a PDB or mmCIF file of a complete solvated system, or of the solute
        alone; or objects.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if isinstance(start, PreparedBox):
        start = PreparedSystem.from_box(start)
    if isinstance(start, PreparedSystem):
        _refuse_jump(start.system)
        return _taken("objects", _digest(start), start)
    if not isinstance(start, (str, os.PathLike)):
        raise ValueError(
            "start must be a prepared directory, a PDB or mmCIF file, or a PreparedSystem, got "
            f"{type(start).__name__}"
        )
    path = Path(start)
    if path.is_dir():
        prepared = read_prepared(path)
        return _taken(os.fspath(start), prepared_sha256(path), prepared)
    topology, positions = read_structure(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = Source(os.fspath(start), digest, topology, positions, None)
    if source.solvated and topology.getPeriodicBoxVectors() is None:
        raise ValueError(f"{path} holds water but no box (a CRYST1 line or a cell)")
    return source


def _taken(name: str, digest: str, prepared: PreparedSystem) -> Source:
    if prepared.box_vectors is not None and prepared.system.usesPeriodicBoundaryConditions():
        # Many programs write every atom wrapped into the box.
        whole = make_whole(
            prepared.topology, prepared.positions, prepared.box_vectors, prepared.system
        )
        prepared = replace(prepared, positions=whole)
    return Source(name, digest, prepared.topology, prepared.positions, prepared)


def model_mismatch(source: Source, error: ValueError) -> ValueError:
    """Say with a mismatch of model and structure what is expected of a file."""
    if source.prepared is not None:
        return error
    hint = " (nothing is repaired here)" if isinstance(error, NoSoluteError) else ""
    return ValueError(f"{source.name}: {error}{hint}")


def force_field(settings: RunSettings, model: ScoreModel) -> tuple[str, ...]:
    """Return the force field of a System that is made here: the user's choice, or the model's."""
    if settings.force_field is not None:
        return settings.force_field
    named = model.card.get("force_field")
    if (
        isinstance(named, list)
        and named
        and all(isinstance(f, str) and f.endswith(".xml") for f in named)
        and not is_implicit(model)
    ):
        return tuple(named)
    return _FORCE_FIELD


def other_force_field(files: tuple[str, ...], model: ScoreModel) -> str | None:
    """Say it where a System's force field is known and is not the one on the model's card.

    Parameters
    ----------
    files : tuple of str
        What the System was made from; empty if that is not known.
    model : ScoreModel
        Whose card names its force field, or not.
    """
    named = model.card.get("force_field")
    named = [named] if isinstance(named, str) else named
    # A model of implicit solvent has a note of its own.
    if not files or not isinstance(named, list) or not named or is_implicit(model):
        return None
    if {os.path.basename(file) for file in files} == {os.path.basename(str(f)) for f in named}:
        return None
    return (
        f"The system's force field ({', '.join(files)}) is not the one that the model was trained "
        f"with ({', '.join(map(str, named))}): its jumps keep sampling that one."
    )


def build(
    source: Source,
    settings: RunSettings,
    files: tuple[str, ...],
    temperature: float,
    platform: str,
    say: Callable[[str, str], None],
) -> PreparedSystem:
    """Make the System, where it is not there yet, and relax it.

    Parameters
    ----------
    source : Source
        Where the run starts.
    settings : RunSettings
        How.
    files : tuple of str
        The force field.
    temperature : float
        K.
    platform : str
        Of the equilibration.
    say : callable
        Is told what is being done.
    """
    if source.prepared is not None:
        return source.prepared
    try:
        field = app.ForceField(*files)
    except ValueError as error:
        raise ValueError(f"force field: {' '.join(str(error).split())}") from None
    if source.solvated:
        say("building the system", "")
        box = _solvated(source, settings, field, files)
    else:
        say("building the box", "adding water")
        source.topology.setPeriodicBoxVectors(None)
        try:
            box = solvate(
                source.topology,
                source.positions,
                waters=settings.waters,
                padding=settings.padding_nm,
                force_field=files,
                water_model=settings.water_model,
                cutoff=settings.cutoff_nm,
                hydrogen_mass=HYDROGEN_MASS_AMU,
                seed=settings.seed,
            )
        except ValueError as error:
            raise ValueError(_one_line(error)) from None
    box = equilibrate(
        box,
        temperature=temperature,
        pressure=settings.pressure_bar or _PRESSURE_BAR,
        time=settings.equilibration_ps,
        platform=platform,
        seed=settings.seed,
        report=say,
    )
    made: dict[str, Any] = {"made_by": "openmm-sd run", "from": source.name}
    return PreparedSystem.from_box(
        box, temperature_K=temperature, step_ps=HEAVY_STEP_PS, provenance=made
    )


def _solvated(
    source: Source, settings: RunSettings, field: app.ForceField, files: tuple[str, ...]
) -> PreparedBox:
    vectors = source.topology.getPeriodicBoxVectors()
    edges = np.array(vectors.value_in_unit(unit.nanometer), dtype=np.float64)
    if min(np.diag(edges)) <= 2.0 * settings.cutoff_nm:
        raise ValueError(
            f"{source.name}: the box is only {min(np.diag(edges)):.2f} nm wide and a cutoff of "
            f"{settings.cutoff_nm:g} nm needs more than {2.0 * settings.cutoff_nm:g} nm: take a "
            "shorter cutoff"
        )
    try:
        system = field.createSystem(
            source.topology,
            nonbondedMethod=app.PME,
            nonbondedCutoff=settings.cutoff_nm * unit.nanometer,
            constraints=app.HBonds,
            hydrogenMass=HYDROGEN_MASS_AMU * unit.amu,
        )
    except ValueError as error:
        raise ValueError(_one_line(error)) from None
    return PreparedBox(
        source.topology,
        system,
        make_whole(source.topology, source.positions, edges, system),
        edges,
        count_waters(source.topology),
        files,
    )


def _one_line(error: ValueError) -> str:
    text = " ".join(str(error).split())
    return f"{text} ({_COMPLETE})" if "template" in text.lower() else text


def _refuse_jump(system: openmm.System) -> None:
    if any(force.getName() == FORCE_NAME for force in system.getForces()):
        raise ValueError(
            "start: the System holds a jump already; give one that no integrator was attached to"
        )


def _digest(prepared: PreparedSystem) -> str:
    hasher = hashlib.sha256(openmm.XmlSerializer.serialize(prepared.system).encode())
    for array in (prepared.positions, prepared.velocities, prepared.box_vectors):
        if array is not None:
            hasher.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    return hasher.hexdigest()
