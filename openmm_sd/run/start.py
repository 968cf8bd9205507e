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
from openmm import app

from ..bridges.base import FORCE_NAME
from ..integrator.notes import FORCE_FIELD, Note
from ..model.model import ScoreModel
from ..molecule.whole import make_whole
from ..prepare import (
    PreparedBox,
    PreparedSystem,
    PrepareSettings,
    Repaired,
    equilibrate,
    read_prepared,
    repair,
)
from ..prepare.driver import box_of, read_source
from ..prepare.settings import HEAVY_STEP_PS, HYDROGEN_MASS_AMU, LIGHT_STEP_PS
from ..system.fitting import Solvated
from ..system.force_field import (
    DEFAULT_FORCE_FIELD,
    differ,
    has_implicit_solvent,
    make_water_system,
)
from ..system.prepared import prepared_sha256
from ..system.structure import Structure, count_waters, nanometers
from .settings import RunSettings

# Pressure at which a new box relaxes where the run has none of its own, bar.
_PRESSURE_BAR: Final = 1.0


@dataclass(frozen=True)
class Source:
    """What a run is to start from.

    Attributes
    ----------
    name, digest : str
        What the user gave, and its SHA-256.
    positions : ndarray, shape (N, 3)
        nm.
    prepared : PreparedSystem or None
        None where the System is yet to be made.
    structure, repaired : Structure, Repaired or None
        Of a solute that gets its water: as it came, and complete.
    """

    name: str
    digest: str
    topology: app.Topology
    positions: NDArray[np.float64]
    prepared: PreparedSystem | None
    structure: Structure | None = None
    repaired: Repaired | None = None

    @property
    def solvated(self) -> bool:
        """Whether there is water already."""
        return count_waters(self.topology) > 0

    @property
    def implicit(self) -> bool:
        """Whether it is in implicit solvent."""
        return self.prepared is not None and has_implicit_solvent(self.prepared.system)

    @property
    def box_vectors(self) -> NDArray[np.float64] | None:
        """The box, nm, one vector a row; None without periodic boundaries."""
        prepared = self.prepared
        if prepared is not None:
            return (
                prepared.box_vectors if prepared.system.usesPeriodicBoundaryConditions() else None
            )
        return nanometers(self.topology.getPeriodicBoxVectors()) if self.solvated else None

    def solvated_in(self, files: tuple[str, ...] | None) -> Solvated:
        """Return what a model is looked for; the files are those of the user's choice, if any."""
        prepared = self.prepared
        return Solvated(
            self.topology,
            self.positions,
            self.box_vectors,
            prepared.system if prepared is not None else None,
            (files or ()) if prepared is None else prepared.force_field,
            self.implicit,
        )

    def step_ps(self) -> float:
        """Return the MD step that the System allows, as far as is known, ps."""
        if self.prepared is None:
            return HEAVY_STEP_PS
        return self.prepared.step_ps or LIGHT_STEP_PS


def open_start(start: Any, files: tuple[str, ...] | None = None) -> Source:
    """Read what a run is to start from, which is what `run_mixed` takes; ValueError if it is not.

    `files` name the force field, for what a structure file does not say.
    """
    if isinstance(start, PreparedBox):
        start = PreparedSystem.from_box(start)
    elif isinstance(start, app.Simulation):
        start = PreparedSystem.from_simulation(start)
    if isinstance(start, PreparedSystem):
        _refuse_jump(start.system)
        return _taken("objects", _digest(start), start)
    path = isinstance(start, (str, os.PathLike))
    if path and Path(start).is_dir():
        prepared = read_prepared(Path(start))
        return _taken(os.fspath(start), prepared_sha256(Path(start)), prepared)
    if not path and not hasattr(start, "topology"):
        raise ValueError(
            "start must be a prepared directory, a PDB or mmCIF file, a PreparedSystem, a "
            "Simulation, or an object with topology and positions, got "
            f"{type(start).__name__}"
        )
    structure = read_source(start)
    digest = structure.sha256 or _digest_of(structure)
    if count_waters(structure.topology):
        if structure.topology.getPeriodicBoxVectors() is None:
            raise ValueError(
                f"{structure.name} holds water but no box (a CRYST1 line or a cell): add it, or "
                "let openmm-sd prepare put the solute into new water"
            )
        return Source(structure.name, digest, structure.topology, structure.positions, None)
    repaired = repair(structure, PrepareSettings(force_field=files))
    return Source(
        structure.name,
        digest,
        repaired.topology,
        repaired.positions,
        None,
        structure,
        repaired,
    )


def _taken(name: str, digest: str, prepared: PreparedSystem) -> Source:
    if prepared.box_vectors is not None and prepared.system.usesPeriodicBoundaryConditions():
        # Many programs write every atom wrapped into the box.
        whole = make_whole(
            prepared.topology, prepared.positions, prepared.box_vectors, prepared.system
        )
        prepared = replace(prepared, positions=whole)
    return Source(name, digest, prepared.topology, prepared.positions, prepared)


def model_mismatch(source: Source, error: ValueError) -> ValueError:
    """Name the file in what is said of a model that does not fit a structure."""
    if source.prepared is not None:
        return error
    return ValueError(f"{source.name}: {error}")


def force_field(settings: RunSettings, model: ScoreModel | None) -> tuple[str, ...]:
    """Return the force field of a System that is made here: the user's choice, or the model's."""
    if settings.force_field is not None:
        return settings.force_field
    return (model.card.openmm_force_field() if model is not None else ()) or DEFAULT_FORCE_FIELD


def other_force_field(
    files: tuple[str, ...], model: ScoreModel, implicit: bool = False
) -> Note | None:
    """Return a note if a System's force field is known and is not the one on the model's card.

    `files` are what the System was made from, empty if that is not known.
    """
    card = model.card
    named = card.force_field
    if card.is_implicit and not implicit:
        return None  # there is a note of its own for it
    if not differ(files, named):
        return None
    return Note(
        FORCE_FIELD,
        f"The system's force field ({', '.join(files)}) is not the one that the model was trained "
        f"with ({', '.join(named)}): its jumps keep sampling that one.",
    )


def build(
    source: Source,
    settings: RunSettings,
    files: tuple[str, ...],
    temperature: float,
    platform: str,
    say: Callable[[str, str], None],
) -> PreparedSystem:
    """Make the System from these force field files, where it is not there yet, and relax it.

    The temperature is in K; the platform is that of the equilibration.
    """
    if source.prepared is not None:
        return source.prepared
    made_by = "openmm-sd run"
    if source.repaired is not None:
        assert source.structure is not None
        chosen = PrepareSettings(
            force_field=files,
            water_model=settings.water_model,
            waters=settings.waters,
            padding_nm=settings.padding_nm,
            cutoff_nm=settings.cutoff_nm,
            temperature_K=temperature,
            pressure_bar=settings.pressure_bar or _PRESSURE_BAR,
            equilibration_ps=settings.equilibration_ps,
            seed=settings.seed,
        )
        structure = source.structure
        return box_of(source.repaired, chosen, platform, say, made_by=made_by, source=structure)
    say("building the system", "")
    box = _solvated(source, settings, files)
    box = equilibrate(
        box,
        temperature=temperature,
        pressure=settings.pressure_bar or _PRESSURE_BAR,
        time=settings.equilibration_ps,
        platform=platform,
        seed=settings.seed,
        progress=say,
    )
    made = {"made_by": made_by, "from": source.name}
    return PreparedSystem.from_box(
        box, temperature_K=temperature, step_ps=HEAVY_STEP_PS, provenance=made
    )


def _solvated(source: Source, settings: RunSettings, files: tuple[str, ...]) -> PreparedBox:
    edges = nanometers(source.topology.getPeriodicBoxVectors())
    if min(np.diag(edges)) <= 2.0 * settings.cutoff_nm:
        raise ValueError(
            f"{source.name}: the box is only {min(np.diag(edges)):.2f} nm wide and a cutoff of "
            f"{settings.cutoff_nm:g} nm needs more than {2.0 * settings.cutoff_nm:g} nm: take a "
            "shorter cutoff"
        )
    system = make_water_system(files, source.topology, settings.cutoff_nm, HYDROGEN_MASS_AMU)
    return PreparedBox(
        source.topology,
        system,
        make_whole(source.topology, source.positions, edges, system),
        edges,
        count_waters(source.topology),
        files,
    )


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


def _digest_of(structure: Structure) -> str:
    """Hash a structure that was given as objects."""
    hasher = hashlib.sha256(np.ascontiguousarray(structure.positions).tobytes())
    for atom in structure.topology.atoms():
        hasher.update(f"{atom.name} {atom.element} {atom.residue.name} {atom.residue.id};".encode())
    for one, two in structure.topology.bonds():
        hasher.update(f"{one.index} {two.index};".encode())
    return hasher.hexdigest()
