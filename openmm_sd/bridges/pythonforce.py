"""The bridge through core OpenMM's PythonForce: needs no plugin and works with any torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import zlib
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import openmm
import torch

from ..jump.jump import Jump
from ..propagator.script import script_if_possible
from .base import (
    ATTEMPT,
    CANDIDATES,
    FORCE_NAME,
    INTERRUPTED,
    LAG,
    NOVELTY,
    NUMBER,
    PARAMETERS,
    SEED,
    Bridge,
)
from .parts import join, split

# Compiled jumps that some callback of this process holds, by the hash of what is written of them.
_known: WeakValueDictionary[str, torch.nn.Module] = WeakValueDictionary()


class JumpCallback:
    """The function that PythonForce calls with a State of the solute's particles.

    The jump is a :class:`~openmm_sd.jump.jump.Jump`, scripted or not. It can be pickled, because
    OpenMM pickles it when a System is copied or written to XML; what stands in the model's file is
    left there. Copies of a scripted one share it.
    """

    def __init__(
        self, jump: torch.nn.Module, n_atoms: int, periodic: bool, file: str | None = None
    ) -> None:
        self._jump: torch.nn.Module | None = jump
        self.periodic = periodic
        self._file = file
        self._written: dict[str, Any] = {}  # filled by the first copy
        self._idle = np.zeros((n_atoms, 3))

    @property
    def jump(self) -> torch.nn.Module:
        """The jump; ValueError, in one line, if that needs a model's file which is not there."""
        if self._jump is None:
            self._jump = self._read()
        return self._jump

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        jump = self.jump
        parameters = state.getParameters()
        number = int(parameters[NUMBER])
        if number == 0:
            return 0.0, self._idle
        positions = torch.from_numpy(
            np.array(state.getPositions(asNumpy=True)._value, dtype=np.float64)
        )
        if self.periodic:
            vectors = state.getPeriodicBoxVectors(asNumpy=True)
            box = torch.from_numpy(np.array(vectors._value, dtype=np.float64))
        else:
            box = torch.zeros(3, 3, dtype=torch.float64)
        try:
            with torch.inference_mode():
                displacement, status = jump(
                    positions,
                    box,
                    number - 1,
                    int(parameters[ATTEMPT]),
                    int(parameters[CANDIDATES]),
                    int(parameters[SEED]),
                    float(parameters[LAG]),
                    float(parameters[NOVELTY]),
                )
        except KeyboardInterrupt:
            raise RuntimeError(INTERRUPTED) from None
        return float(status), displacement.numpy()

    def __getstate__(self) -> dict[str, Any]:
        written = self._written or self._write()
        return written | {"periodic": self.periodic, "n_atoms": len(self._idle)}

    def _write(self) -> dict[str, Any]:
        """Return what is written of the jump."""
        scripted = isinstance(self.jump, torch.jit.ScriptModule)
        if scripted:
            buffer = io.BytesIO()
            torch.jit.save(self.jump, buffer)
            content = buffer.getvalue()
        else:
            content = pickle.dumps(self.jump)
        parts = split(content, self._file)
        digest = hashlib.sha256(content).hexdigest()
        written = {
            "scripted": scripted,
            "file": None if all(isinstance(part, bytes) for part in parts) else self._file,
            "sha256": digest,
            "parts": zlib.compress(pickle.dumps(parts), 1),
        }
        if scripted:  # and so it stays what it is
            self._written = written
            _known[digest] = self.jump
        return written

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.periodic = state["periodic"]
        self._idle = np.zeros((state["n_atoms"], 3))
        self._jump, self._file, self._written = None, state.get("file"), state
        # OpenMM 8.6 crashes on an exception in here, so the first call says what is wrong.
        with contextlib.suppress(Exception):
            self._jump = self._read()

    def _read(self) -> torch.nn.Module:
        """Make the jump of what is written of it."""
        written = self._written
        if "parts" not in written:  # of version 0.1.0
            self._written = {}
            script = written["script"]
            return torch.jit.load(io.BytesIO(script)) if script else written["module"]
        digest: str = written["sha256"]
        if written["scripted"] and digest in _known:
            return _known[digest]
        parts = pickle.loads(zlib.decompress(written["parts"]))
        content = join(parts, self._file, digest)
        if written["scripted"]:
            _known[digest] = module = torch.jit.load(io.BytesIO(content))
            return module
        self._written = {}
        return pickle.loads(content)


class PythonForceBridge(Bridge):
    """Calls the propagator from Python, on the solute's particles only."""

    name = "pythonforce"
    install_hint = "pip install 'openmm>=8.6'"

    def installed(self) -> bool:
        return hasattr(getattr(openmm, "PythonForce", None), "setParticles")

    def create_force(
        self, jump: Jump, particles: Sequence[int], periodic: bool, file: str | None = None
    ) -> openmm.Force:
        callback = JumpCallback(script_if_possible(jump), len(particles), periodic, file)
        force = openmm.PythonForce(callback, dict.fromkeys(PARAMETERS, 0.0), list(particles))
        force.setUsesPeriodicBoundaryConditions(periodic)
        force.setName(FORCE_NAME)
        return force

    def versions(self) -> dict[str, str]:
        if not self.installed():
            raise ImportError(
                f"OpenMM {openmm.__version__} has no PythonForce with particles; 8.6 or newer has"
            )
        return {"openmm": openmm.__version__, "torch": torch.__version__}
