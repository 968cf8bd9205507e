"""From a PDB file, or objects, to a relaxed system with a record of every decision."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..files.atomic import why, write_atomically
from ..files.folder import check_folder, interrupts
from ..molecule.topology import pdb_text
from ..progress import Progress, silence
from ..system.box import PreparedBox, count_ions, equilibrate, in_implicit_solvent, solvate
from ..system.fitting import Solvated, fitting_models, remarks, unseen
from ..system.force_field import (
    DEFAULT_FORCE_FIELD,
    IMPLICIT_FORCE_FIELD,
    file_names,
    water_box,
)
from ..system.platforms import working_platform
from ..system.prepared import FILES, PreparedSystem, write_prepared
from ..system.structure import Structure, as_structure, load_structure
from ..version import versions
from .repairs import Repaired, repair
from .settings import PrepareSettings

#: The repaired solute alone, as ``openmm-sd generate`` and ``train --also`` take it.
SOLUTE: Final = "solute.pdb"
_PDB_ATOMS: Final = 99_999
# Where neither the user nor a model says otherwise; what `openmm-sd generate` takes, too.
ROOM_TEMPERATURE_K: Final = 300.0


def prepare(
    source: Any,
    output: str | os.PathLike[str],
    settings: PrepareSettings | None = None,
    *,
    positions: Any = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a prepared directory, whole or not at all.

    Parameters
    ----------
    source, positions, progress
        As for `prepare_system`.
    output : str or PathLike
        The directory; see `openmm_sd.system.prepared`. ``solute.pdb`` is there too: the repaired
        solute alone.
    settings : PrepareSettings, optional
        What is decided.
    force : bool
        Whether to replace a prepared directory that is there.

    Returns
    -------
    dict
        The record, as ``provenance`` in ``prepared.json`` holds it, with ``directory``.

    Raises
    ------
    ValueError
        If the input is wrong or the directory cannot be written.
    OSError
        If the disk is full.
    KeyboardInterrupt
        On SIGINT or SIGTERM; nothing is left behind.
    """
    settings = settings or PrepareSettings()
    target = Path(os.path.abspath(output))
    _check_target(target, force)
    with interrupts() as stopped, _unfinished(target) as folder:

        def say(what: str, how_far: str) -> None:
            if progress is not None:
                progress(what, how_far)
            if stopped():
                raise KeyboardInterrupt

        prepared, repaired = _prepared(source, positions, settings, say)
        say("writing", str(output))
        write_prepared(prepared, folder)
        if repaired.topology.getNumAtoms() <= _PDB_ATOMS:
            write_atomically(folder / SOLUTE, pdb_text(repaired.topology, repaired.positions))
        say("writing", str(output))
        _put_in_place(folder, target)
    return {**prepared.provenance, "directory": os.fspath(output)}


def prepare_system(
    source: Any,
    settings: PrepareSettings | None = None,
    *,
    positions: Any = None,
    progress: Progress | None = None,
) -> PreparedSystem:
    """Repair a structure, put it into a box of water, or implicit solvent, and relax it.

    Parameters
    ----------
    source : path, Structure, Topology, PDBFile, PDBxFile, Modeller or mdtraj.Trajectory
        A PDB or mmCIF file; what `from_sequence` builds; a Topology of OpenMM or mdtraj with
        `positions`; an object of OpenMM that has a topology and positions; or a trajectory of one
        frame. What is missing in it is added, as in a file.
    settings : PrepareSettings, optional
        What is decided.
    positions : Quantity or array, shape (N, 3), optional
        Of a Topology; bare numbers are nm.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    PreparedSystem
        Its ``provenance`` records all decisions.

    Raises
    ------
    ValueError
        If it cannot be done; one line that says why.
    """
    say = progress or silence
    return _prepared(source, positions, settings or PrepareSettings(), say)[0]


def read_source(source: Any, positions: Any = None, frame: int | None = None) -> Structure:
    """Read what `prepare_system` takes."""
    if isinstance(source, Structure):
        return source
    if isinstance(source, (str, os.PathLike)):
        if positions is not None:
            raise ValueError("positions: a file has its own")
        return load_structure(source, frame)
    return as_structure(source, positions)


def _prepared(
    source: Any, positions: Any, settings: PrepareSettings, say: Progress
) -> tuple[PreparedSystem, Repaired]:
    structure = read_source(source, positions, settings.frame)
    say("repairing", structure.name)
    repaired = repair(structure, settings, say)
    say("looking for a model", "")
    implicit = settings.solvent == "implicit"
    what = Solvated(
        repaired.topology,
        repaired.positions,
        files=file_names(settings.force_field or ()),
        implicit=implicit,
    )
    fitting, reasons = fitting_models(what)
    model = next(iter(fitting.values()), None)
    files = settings.force_field or (model.card.openmm_force_field(implicit) if model else ())
    files = files or (IMPLICIT_FORCE_FIELD if implicit else DEFAULT_FORCE_FIELD)
    temperature = settings.temperature_K or (model.temperature if model else None)
    temperature = temperature or ROOM_TEMPERATURE_K
    for name, model in list(fitting.items()):
        if model.temperature not in (None, temperature):
            del fitting[name]
            reasons[name] = (
                f"it was trained at {model.temperature:g} K, and this is for {temperature:g} K"
            )
    prepared = box_of(
        repaired,
        replace(settings, force_field=files, temperature_K=temperature),
        working_platform(settings.platform),
        say,
        made_by="openmm-sd prepare",
        source=structure,
    )
    notes = [*prepared.provenance["notes"]]
    if fitting and (served := unseen(next(iter(fitting.values())), what, files)):
        for text in remarks(served):
            notes.append(f"{next(iter(fitting))}: {text}")
            say("note", notes[-1])
    record = {
        **prepared.provenance,
        "notes": notes,
        "models": {"fitting": list(fitting), "others": reasons},
        "next": next_steps(
            *(list(fitting), prepared.force_field, settings.solvent == "implicit", temperature),
            platform=settings.platform,
        ),
    }
    return replace(prepared, provenance=record), repaired


def box_of(
    repaired: Repaired,
    settings: PrepareSettings,
    platform: str,
    say: Progress,
    *,
    made_by: str,
    source: Structure,
) -> PreparedSystem:
    """Put a repaired structure into its solvent and relax it; record who made it, and from what.

    The settings name a force field and a temperature; the platform is that of the equilibration.
    """
    assert settings.force_field is not None
    assert settings.temperature_K is not None
    for note in repaired.notes:
        say("note", note)
    began = time.monotonic()
    box = _solvated(repaired, settings, say)
    solvation = _solvation(repaired, settings, box)
    box = equilibrate(
        box,
        temperature=settings.temperature_K,
        pressure=settings.pressure_bar,
        time=settings.equilibration_ps,
        step_size=settings.step_ps,
        platform=platform,
        seed=settings.seed,
        progress=say,
    )
    notes = list(repaired.notes)
    if not settings.neutralise and abs(solvation["solute_charge_e"]) > 0.01:
        notes.append("The box has a net charge, which PME makes up for by a uniform background.")
    implicit = settings.solvent == "implicit"
    record = {
        "made_by": made_by,
        "from": source.name,
        "sha256": source.sha256,
        "settings": {
            **asdict(replace(settings, force_field=None)),
            "force_field": list(file_names(settings.force_field)) or "a ForceField object",
            "variants": dict(settings.variants),
        },
        "repair": repaired.record,
        "solvation": solvation,
        "system": {
            "nonbonded": "implicit solvent, no cutoff" if implicit else "PME",
            "constraints": "HBonds",
            "rigid_water": not implicit,
        },
        "equilibration": {
            "minimiser_iterations": 100,
            "platform": platform,
            "step_ps": settings.step_ps,
            "steps": round(settings.equilibration_ps / settings.step_ps),
            "box_vectors_nm": _listed(box.box_vectors),
            "seconds": round(time.monotonic() - began, 1),
        },
        "versions": versions(),
        "notes": notes,
    }
    return PreparedSystem.from_box(
        box,
        temperature_K=settings.temperature_K,
        step_ps=settings.step_ps,
        # What JSON holds is what is read again.
        provenance=json.loads(json.dumps(record)),
    )


def _solvated(repaired: Repaired, settings: PrepareSettings, say: Progress) -> PreparedBox:
    """Put a structure into the solvent that the settings name."""
    assert settings.force_field is not None
    if settings.solvent == "implicit":
        say("building the system", "implicit solvent")
        return in_implicit_solvent(
            repaired.topology,
            repaired.positions,
            force_field=settings.force_field,
            hydrogen_mass=settings.hydrogen_mass_amu,
        )
    say("building the box", "adding water")
    return solvate(
        repaired.topology,
        repaired.positions,
        waters=settings.waters,
        padding=settings.padding_nm,
        width=settings.box_nm,
        shape=settings.box_shape,
        force_field=settings.force_field,
        water_model=settings.water_model,
        ionic_strength=settings.ionic_strength_M,
        ions=(settings.positive_ion, settings.negative_ion),
        neutralise=settings.neutralise,
        cutoff=settings.cutoff_nm,
        hydrogen_mass=settings.hydrogen_mass_amu,
        seed=settings.seed,
    )


def _solvation(repaired: Repaired, settings: PrepareSettings, box: PreparedBox) -> dict[str, Any]:
    """Record what a structure was put into."""
    assert settings.force_field is not None
    implicit = settings.solvent == "implicit"
    count = repaired.topology.getNumAtoms()
    water = settings.water_model or water_box(settings.force_field)
    return {
        "waters": box.n_waters,
        "water_box": None if implicit else water,
        "ions": count_ions(box.topology, count),
        "solute_atoms": count,
        "solute_charge_e": _charge(box.system, count),
        "box_shape": None if implicit else settings.box_shape,
        "box_vectors_nm": _listed(box.box_vectors),
    }


def _listed(vectors: NDArray[np.float64] | None) -> list[list[float]] | None:
    return None if vectors is None else vectors.tolist()


def _charge(system: openmm.System, count: int) -> float:
    total = 0.0
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for i in range(count):
                total += force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
    return round(total, 4) + 0.0


def next_steps(
    fitting: list[str],
    files: tuple[str, ...],
    implicit: bool,
    temperature: float,
    *,
    platform: str | None = None,
) -> list[str]:
    """Return the commands that follow in a prepared directory DIR.

    One that runs with a model that fits; without one, those that train it.
    """
    where = f" --platform {platform}" if platform is not None else ""
    if fitting:
        return [f"openmm-sd run DIR -o OUT --effective-ns 100{where}"]
    how = " --solvent implicit" if implicit else ""
    if set(files) != set(IMPLICIT_FORCE_FIELD if implicit else DEFAULT_FORCE_FIELD):
        how += "".join(f" --force-field {file}" for file in files)
    if temperature != ROOM_TEMPERATURE_K:
        how += f" --temperature {temperature:g}"
    return [
        f"openmm-sd generate DIR/{SOLUTE} -o data.h5 --plain 4 --plain-ps 5000 --seeded 100 "
        f"--seeded-ps 100{where}{how}",
        "openmm-sd train data.h5 -o model.safetensors --minutes 60",
        "openmm-sd validate model.safetensors -o report",
        f"openmm-sd run DIR -o OUT --effective-ns 100 --model model.safetensors{where}",
    ]


# -- the directory -------------------------------------------------------------------------------


def _check_target(target: Path, force: bool) -> None:
    check_folder(target)
    if not target.exists():
        return
    others = sorted(file.name for file in target.iterdir() if file.name not in (*FILES, SOLUTE))
    if others:
        raise ValueError(
            f"output: {target} holds other files ({', '.join(others[:4])}); give a new directory"
        )
    if any(target.iterdir()) and not force:
        raise ValueError(f"output: {target} holds a prepared system; --force replaces it")


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """Make a hidden directory beside the target; what is left of it at the end goes."""
    made = [parent for parent in target.parents if not parent.exists()]
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            folder.mkdir(parents=True)
            (folder / "try").touch()
            (folder / "try").unlink()
        except OSError as error:
            raise ValueError(f"output: cannot write to {target.parent}: {why(error)}") from None
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not target.exists():
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()  # only an empty one goes


def _put_in_place(folder: Path, target: Path) -> None:
    if not target.exists():
        os.rename(folder, target)
        return
    # An empty directory is replaced by a rename; the files of another go with it, after it.
    old = folder.with_name(f"{folder.name}.old")
    os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
