"""What a data set is made of while it is under way: one folder of small files beside it.

``DATA.h5.parts/`` holds ``settings.json`` (what is being made), ``start.npz`` and ``system.xml``
(where every run starts), and for each run ``KIND-NUMBER.ATTEMPT.CHUNK.npz``, pieces of its frames.
With the last piece goes ``KIND-NUMBER.ATTEMPT.CHUNK.state.npz``: positions, velocities and box at
its end, from which the run goes on. Of runs made by GROMACS its own files hold that, in a folder
``gromacs``. Every file appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files.atomic import read_arrays, write_arrays, write_atomically, write_json, writing
from ..files.folder import held, require_same
from ..molecule.molecule import Molecule
from ..molecule.torsions import TorsionAtoms
from .settings import GenerateSettings
from .start import Start

#: How often a run that blows up is made.
ATTEMPTS: Final = 2
# Processes whose parent was killed notice that at their next frame.
_LOCK_SECONDS: Final = 30.0
_KEPT: Final = "what was made before is kept, the same command resumes it"
_DAMAGED: Final = "; remove it and run again"


@dataclass(frozen=True)
class Chunk:
    """A piece of a run: frames (T, copies, N, 3) as a data set stores them, and facts about them.

    `meta` has ``seed``, ``start_deg`` (one list a copy; seeded runs), ``steps`` and ``seconds`` of
    production, ``platform`` and ``relabelled``.
    """

    frames: NDArray[np.int16]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """Where a run goes on: positions (nm), velocities (nm/ps), box vectors (nm) or None."""

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    box: NDArray[np.float64] | None


@dataclass(frozen=True)
class Standing:
    """How far a run is: how often it blew up, its pieces and frames, and where it goes on.

    The snapshot is None at the start and at the end.
    """

    attempt: int
    chunks: int
    frames: int
    snapshot: Snapshot | None


class Parts:
    """The folder beside an unfinished data set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- what is being made ----------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / "settings.json").is_file()

    def describe(self) -> dict[str, Any]:
        """Return what `settle` wrote."""
        path = self.folder / "settings.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is damaged")
        return content

    def settle(self, content: dict[str, Any]) -> None:
        """Write down what is being made."""
        path = self.folder / "settings.json"
        with writing(path, _KEPT):
            write_json(path, content, indent=1)

    def check(self, content: dict[str, Any]) -> None:
        """Refuse, naming what differs, to go on with settings other than those of the parts."""
        require_same(
            f"{self.folder} holds parts",
            self.describe(),
            content,
            "go on with those, choose another output, or remove the folder",
        )

    def lock(self) -> int:
        """Take hold of the folder, against a second program; return the lock's descriptor.

        It is inherited by worker processes, so that it lasts until the last of them has gone.
        """
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        if not held(descriptor, _LOCK_SECONDS):
            os.close(descriptor)
            raise ValueError(f"another program is at work in {self.folder}")
        return descriptor

    # -- where runs start ------------------------------------------------------------------------

    def save_start(self, start: Start) -> None:
        """Keep what every run is made of."""
        import openmm

        self._write("system.xml", openmm.XmlSerializer.serialize(start.system))
        self._write_arrays(
            "start.npz",
            positions=start.positions,
            solutes=start.solutes,
            waters=np.int64(start.waters),
            **({} if start.box is None else {"box": start.box}),
            **({} if start.cell_nm is None else {"cell_nm": start.cell_nm}),
            molecule=np.str_(json.dumps(start.molecule.to_dict())),
        )

    def load_start(self) -> Start | None:
        """Return what `save_start` kept; None if nothing."""
        import openmm

        # Written last, so its presence says that both are there.
        path = self.folder / "start.npz"
        if not path.is_file():
            return None
        system = openmm.XmlSerializer.deserialize((self.folder / "system.xml").read_text())
        return read_arrays(
            path,
            lambda data: Start(
                Molecule.from_dict(json.loads(str(data["molecule"]))),
                system,
                data["positions"],
                data.get("box"),
                data["solutes"],
                int(data["waters"]),
                data.get("cell_nm"),
            ),
            _DAMAGED,
        )

    # -- runs ------------------------------------------------------------------------------------

    def attempt(self, task: str) -> int:
        """Return how often a run has blown up so far."""
        return sum((self.folder / f"{task}.{k}.failed").exists() for k in range(ATTEMPTS))

    def fail(self, task: str, reason: str) -> None:
        """Note that a run has blown up; its pieces do not count any more."""
        attempt = self.attempt(task)
        self._write(f"{task}.{attempt}.failed", reason)
        for path in self.folder.glob(f"{task}.{attempt}.*.npz"):
            path.unlink()

    def failures(self) -> dict[str, list[str]]:
        """Return why runs have blown up, by run."""
        result: dict[str, list[str]] = {}
        for path in sorted(self.folder.glob("*.failed")):
            result.setdefault(path.name.split(".")[0], []).append(path.read_text())
        return result

    def chunks(self, task: str) -> list[Path]:
        """Return the pieces of a run, in order."""
        attempt = self.attempt(task)
        paths: list[Path] = []
        while (path := self._chunk_path(task, attempt, len(paths))).is_file():
            paths.append(path)
        return paths

    def save_chunk(self, task: str, chunk: Chunk, snapshot: Snapshot | None) -> None:
        """Add a piece to a run, and where it goes on after it; GROMACS keeps that itself."""
        attempt, number = self.attempt(task), len(self.chunks(task))
        path = self._chunk_path(task, attempt, number)
        # The state first: a piece without one could not be gone on from.
        if snapshot is not None:
            self._write_arrays(
                path.with_suffix(".state.npz").name,
                positions=snapshot.positions,
                velocities=snapshot.velocities,
                **({} if snapshot.box is None else {"box": snapshot.box}),
            )
        self._write_arrays(path.name, frames=chunk.frames, meta=np.str_(json.dumps(chunk.meta)))
        if number:
            before = self._chunk_path(task, attempt, number - 1)
            before.with_suffix(".state.npz").unlink(missing_ok=True)

    def load_chunk(self, path: Path) -> Chunk:
        """Read a piece of a run."""
        return read_arrays(
            path, lambda data: Chunk(data["frames"], json.loads(str(data["meta"]))), _DAMAGED
        )

    def load_snapshot(self, path: Path) -> Snapshot:
        """Read where a run goes on after a piece."""
        return read_arrays(
            path.with_suffix(".state.npz"),
            lambda data: Snapshot(data["positions"], data["velocities"], data.get("box")),
            _DAMAGED,
        )

    def frames(self, task: str) -> int:
        """Return how many frames of a run are kept."""
        return sum(len(self.load_chunk(path).frames) for path in self.chunks(task))

    def standing(self, task: str, wanted: int) -> Standing:
        """Return how far a run is that shall have so many frames."""
        paths, frames = self.chunks(task), self.frames(task)
        # Of a run that is finished nothing is kept but its frames.
        on = paths and frames < wanted
        snapshot = self.load_snapshot(paths[-1]) if on else None
        return Standing(self.attempt(task), len(paths), frames, snapshot)

    def finish(self, task: str) -> None:
        """Remove the states of a run that does not go on."""
        for path in self.folder.glob(f"{task}.*.state.npz"):
            path.unlink()

    def remove(self) -> None:
        """Remove the folder with everything that was written into it."""
        for pattern in ("*.npz", "*.json", "*.xml", "*.failed", ".*.tmp", "*.partial", "lock"):
            for path in self.folder.glob(pattern):
                path.unlink()
        shutil.rmtree(self.folder / "gromacs", ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody has put something else there
            self.folder.rmdir()

    def _chunk_path(self, task: str, attempt: int, number: int) -> Path:
        return self.folder / f"{task}.{attempt}.{number:05d}.npz"

    def _write_arrays(self, name: str, **arrays: ArrayLike) -> None:
        with writing(self.folder / name, _KEPT):
            write_arrays(self.folder / name, True, **arrays)

    def _write(self, name: str, text: str) -> None:
        with writing(self.folder / name, _KEPT):
            write_atomically(self.folder / name, text)


def describe(
    settings: GenerateSettings,
    molecule: Molecule,
    torsions: list[TorsionAtoms],
    goals: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return what must be the same for parts to belong together, in JSON types."""
    chosen = {} if goals is None else {"goals": hashlib.sha256(goals.tobytes()).hexdigest()}
    return {
        **chosen,
        "format": 1,
        "settings": settings.identity(),
        "molecule": molecule.to_dict(),
        "torsions": [list(torsion) for torsion in torsions],
    }
