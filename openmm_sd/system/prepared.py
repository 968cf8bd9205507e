"""The prepared directory: a system that is ready to run, in four files.

``topology.cif``
    Atoms, residues, chains and box as mmCIF, in the order of the System.
``system.xml``
    OpenMM's System, with its constraints; no barostat, no thermostat, no jump.
``state.xml``
    OpenMM's State: positions, box, and velocities where there are any.
``prepared.json``
    ``format_version`` (1), ``periodic``, ``temperature_K``, ``step_ps`` (the MD step that the
    masses allow), ``force_field``, ``waters``, ``atoms``, ``bonds`` and ``provenance``. It is
    written last: a directory without it is none.

mmCIF rebuilds the bonds of amino acids, nucleotides and water from their names. All others are in
``bonds``, as pairs of atom numbers from 0.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..files.atomic import one_line, write_atomically, write_json
from .box import PreparedBox
from .structure import count_waters, nanometers

#: The format that this package writes and reads.
FORMAT_VERSION: Final = 1

#: The files of a prepared directory.
FILES: Final = ("topology.cif", "system.xml", "state.xml", "prepared.json")


@dataclass(frozen=True)
class PreparedSystem:
    """A System with a place to start from, as a run takes it.

    Attributes
    ----------
    topology : openmm.app.Topology
        All particles, bonds included.
    system : openmm.System
        Without a jump; not changed by a run.
    positions : ndarray, shape (N, 3)
        nm.
    box_vectors : ndarray, shape (3, 3), optional
        nm, one vector a row; None without periodic boundaries.
    velocities : ndarray, shape (N, 3), optional
        nm/ps; drawn at the temperature by default.
    temperature_K : float, optional
        K, what it was equilibrated at.
    step_ps : float, optional
        MD step that its masses and constraints allow, ps.
    force_field : tuple of str
        Files the System was made from.
    provenance : mapping
        What else there is to know, as JSON can hold it.
    """

    topology: app.Topology
    system: openmm.System
    positions: NDArray[np.float64]
    box_vectors: NDArray[np.float64] | None = None
    velocities: NDArray[np.float64] | None = None
    temperature_K: float | None = None
    step_ps: float | None = None
    force_field: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.system.getNumParticles()
        if self.topology.getNumAtoms() != count:
            raise ValueError(
                f"the topology has {self.topology.getNumAtoms()} atoms, the system {count}"
            )
        for name, shape in (("positions", (count, 3)), ("velocities", (count, 3))):
            _check_array(name, getattr(self, name), shape)
        _check_array("box_vectors", self.box_vectors, (3, 3))

    def place(self, simulation: app.Simulation | openmm.Context) -> None:
        """Put positions, box and velocities into a simulation of this System.

        Velocities are drawn at `temperature_K` (300 K by default) where there are none.
        """
        context = getattr(simulation, "context", simulation)
        if self.box_vectors is not None:
            context.setPeriodicBoxVectors(*self.box_vectors)
        context.setPositions(self.positions)
        if self.velocities is not None:
            context.setVelocities(self.velocities)
        else:
            context.setVelocitiesToTemperature(self.temperature_K or 300.0)

    def to_mdtraj(self) -> Any:
        """Return an ``mdtraj.Trajectory`` of one frame."""
        import mdtraj

        frame = mdtraj.Trajectory(self.positions, mdtraj.Topology.from_openmm(self.topology))
        if self.box_vectors is not None:
            frame.unitcell_vectors = np.array(self.box_vectors)[None]
        return frame

    @classmethod
    def from_simulation(cls, simulation: app.Simulation) -> PreparedSystem:
        """Take a System with the place where its simulation is; the simulation is not changed.

        Its System must have neither a jump nor a thermostat.
        """
        state = simulation.context.getState(positions=True, velocities=True)
        periodic = simulation.system.usesPeriodicBoundaryConditions()
        speed = unit.nanometer / unit.picosecond
        step = simulation.integrator.getStepSize()
        return cls(
            simulation.topology,
            simulation.system,
            nanometers(state.getPositions(asNumpy=True)),
            nanometers(state.getPeriodicBoxVectors(asNumpy=True)) if periodic else None,
            np.array(state.getVelocities(asNumpy=True).value_in_unit(speed)),
            step_ps=float(step.value_in_unit(unit.picosecond)),
        )

    @classmethod
    def from_box(
        cls,
        box: PreparedBox,
        *,
        temperature_K: float | None = None,
        step_ps: float | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> PreparedSystem:
        """Take what `solvate` and `equilibrate` give, with what the class has beside it (K, ps)."""
        return cls(
            box.topology,
            box.system,
            box.positions,
            box.box_vectors,
            box.velocities,
            temperature_K,
            step_ps,
            box.force_field,
            dict(provenance or {}),
        )


def _check_array(name: str, values: Any, shape: tuple[int, ...]) -> None:
    if values is None:
        return
    array = np.asarray(values)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")


def write_prepared(
    prepared: PreparedSystem | PreparedBox, directory: str | os.PathLike[str]
) -> None:
    """Write a prepared directory, which is made where it does not exist.

    Parameters
    ----------
    prepared : PreparedSystem or PreparedBox
        What to write.
    directory : str or PathLike
        Files of the same names are replaced.

    Raises
    ------
    ValueError
        If the topology would not come back as it is.
    OSError
        If a file cannot be written.
    """
    if isinstance(prepared, PreparedBox):
        prepared = PreparedSystem.from_box(prepared)
    folder = Path(directory)
    text, bonds = _encoded_topology(prepared.topology, prepared.positions)
    content = {
        "format_version": FORMAT_VERSION,
        "periodic": prepared.box_vectors is not None,
        "temperature_K": prepared.temperature_K,
        "step_ps": prepared.step_ps,
        "force_field": list(prepared.force_field),
        "waters": count_waters(prepared.topology),
        "atoms": prepared.topology.getNumAtoms(),
        "bonds": bonds,
        "provenance": dict(prepared.provenance),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prepared.json").unlink(missing_ok=True)
    write_atomically(folder / "topology.cif", text)
    write_atomically(folder / "system.xml", openmm.XmlSerializer.serialize(prepared.system))
    write_atomically(folder / "state.xml", _encoded_state(prepared))
    write_json(folder / "prepared.json", content, indent=1)


def read_prepared(directory: str | os.PathLike[str]) -> PreparedSystem:
    """Read what `write_prepared` wrote.

    Raises
    ------
    ValueError
        One line: what is missing, damaged or of another version.
    """
    folder = Path(directory)
    for name in reversed(FILES):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a prepared directory: it has no {name}")
    content = _read(folder / "prepared.json", lambda text: dict(json.loads(text)))
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder}: prepared.json has format version {content.get('format_version')!r}, "
            f"this version of openmm-sd reads {FORMAT_VERSION}"
        )
    missing = [k for k in ("periodic", "bonds", "force_field", "atoms") if k not in content]
    if missing:
        raise ValueError(f"{folder}: prepared.json lacks {', '.join(missing)}")
    topology = _read(folder / "topology.cif", lambda text: app.PDBxFile(io.StringIO(text)).topology)
    system = _read(folder / "system.xml", openmm.XmlSerializer.deserialize)
    if not isinstance(system, openmm.System):
        raise ValueError(f"{folder / 'system.xml'} holds no System")
    positions, velocities, box = _read(folder / "state.xml", _decoded_state)
    if not content["periodic"]:
        box = None
    if topology.getNumAtoms() != content["atoms"]:
        raise ValueError(
            f"{folder}: topology.cif has {topology.getNumAtoms()} atoms, prepared.json says "
            f"{content['atoms']}"
        )
    atoms = list(topology.atoms())
    for one, two in content["bonds"]:
        topology.addBond(atoms[one], atoms[two])
    topology.setPeriodicBoxVectors(None if box is None else box * unit.nanometer)
    try:
        return PreparedSystem(
            topology,
            system,
            positions,
            box,
            velocities,
            content.get("temperature_K"),
            content.get("step_ps"),
            tuple(content["force_field"]),
            content.get("provenance", {}),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def prepared_sha256(directory: str | os.PathLike[str]) -> str:
    """Return a hash of the files of a prepared directory; OSError if one cannot be read."""
    hasher = hashlib.sha256()
    for name in FILES:
        hasher.update((Path(directory) / name).read_bytes())
    return hasher.hexdigest()


def _read(file: Path, parse: Any) -> Any:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(f"{file} is damaged: {one_line(error)}") from None


def _encoded_topology(
    topology: app.Topology, positions: NDArray[np.float64]
) -> tuple[str, list[list[int]]]:
    """Return mmCIF, and the bonds that reading it does not bring back."""
    for residue in topology.residues():
        given = [atom.name for atom in residue.atoms()]
        if len(set(given)) < len(given):
            raise ValueError(
                f"the topology cannot be kept as mmCIF: atoms of residue {residue.name} "
                f"{residue.id} need names of their own, several are called "
                f"{max(given, key=given.count)!r}"
            )
    # An empty name or one with a space would shift the columns of the file.
    ids = [c.id for c in topology.chains()] + [r.id for r in topology.residues()]
    stream = io.StringIO()
    app.PDBxFile.writeFile(
        topology,
        np.asarray(positions) * unit.nanometer,
        stream,
        keepIds=all(_is_word(text) for text in ids),
    )
    try:
        again = app.PDBxFile(io.StringIO(stream.getvalue())).topology
    except Exception as error:  # readers fail in many ways
        raise ValueError(f"the topology cannot be kept as mmCIF: {error}") from None
    if _labels(topology) != _labels(again):
        raise ValueError(
            "the topology cannot be kept as mmCIF: atoms come back in another order or under other "
            "names"
        )
    wanted, found = _bonds(topology), _bonds(again)
    if found - wanted:
        one, two = sorted(found - wanted)[0]
        atoms = list(topology.atoms())
        raise ValueError(
            f"the topology lacks a bond that its names ask for: {atoms[one]} to {atoms[two]}"
        )
    return stream.getvalue(), [list(pair) for pair in sorted(wanted - found)]


def _is_word(text: str) -> bool:
    return bool(text) and not any(c.isspace() for c in text)


def _labels(topology: app.Topology) -> list[tuple[str, str, int]]:
    return [
        (a.name, "" if a.element is None else a.element.symbol, a.residue.index)
        for a in topology.atoms()
    ]


def _bonds(topology: app.Topology) -> set[tuple[int, int]]:
    return {(min(one.index, two.index), max(one.index, two.index)) for one, two in topology.bonds()}


def _encoded_state(prepared: PreparedSystem) -> str:
    """Write a State without a Context of the whole System, which may need a GPU's memory."""
    bare = openmm.System()
    for _ in range(len(prepared.positions)):
        bare.addParticle(1.0)
    if prepared.box_vectors is not None:
        bare.setDefaultPeriodicBoxVectors(*prepared.box_vectors)
    context = openmm.Context(
        bare, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(prepared.positions)
    if prepared.velocities is not None:
        context.setVelocities(prepared.velocities)
    state = context.getState(positions=True, velocities=prepared.velocities is not None)
    return openmm.XmlSerializer.serialize(state)


def _decoded_state(
    text: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64]]:
    state = openmm.XmlSerializer.deserialize(text)
    velocities = None
    if "<Velocities>" in text:
        speed = unit.nanometer / unit.picosecond
        velocities = np.array(state.getVelocities(asNumpy=True).value_in_unit(speed))
    positions, box = state.getPositions(asNumpy=True), state.getPeriodicBoxVectors(asNumpy=True)
    return nanometers(positions), velocities, nanometers(box)
