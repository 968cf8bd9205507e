"""The bridge through core OpenMM's PythonForce: needs no plugin and works with any torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

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


class JumpCallback:
    """The function that PythonForce calls with a State of the solute's particles.

    The jump is a :class:`~openmm_sd.jump.jump.Jump`, scripted or not. It can be pickled, because
    OpenMM pickles it when a System is copied or written to XML.
    """

    def __init__(self, jump: torch.nn.Module, n_atoms: int, periodic: bool) -> None:
        self.jump = jump
        self.periodic = periodic
        self._idle = np.zeros((n_atoms, 3))

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
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
                displacement, status = self.jump(
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
        buffer = io.BytesIO()
        scripted = isinstance(self.jump, torch.jit.ScriptModule)
        if scripted:
            torch.jit.save(self.jump, buffer)
        return {
            "script": buffer.getvalue() if scripted else None,
            "module": None if scripted else self.jump,
            "periodic": self.periodic,
            "n_atoms": len(self._idle),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["script"] is not None:
            self.jump = torch.jit.load(io.BytesIO(state["script"]))
        else:
            self.jump = state["module"]
        self.periodic = state["periodic"]
        self._idle = np.zeros((state["n_atoms"], 3))


class PythonForceBridge(Bridge):
    """Calls the propagator from Python, on the solute's particles only."""

    name = "pythonforce"
    install_hint = "pip install 'openmm>=8.6'"

    def create_force(self, jump: Jump, particles: Sequence[int], periodic: bool) -> openmm.Force:
        callback = JumpCallback(script_if_possible(jump), len(particles), periodic)
        force = openmm.PythonForce(callback, dict.fromkeys(PARAMETERS, 0.0), list(particles))
        force.setUsesPeriodicBoundaryConditions(periodic)
        force.setName(FORCE_NAME)
        return force

    def versions(self) -> dict[str, str]:
        if not hasattr(openmm, "PythonForce") or not hasattr(openmm.PythonForce, "setParticles"):
            raise ImportError(
                f"OpenMM {openmm.__version__} has no PythonForce with particles; 8.6 or newer has"
            )
        return {"openmm": openmm.__version__, "torch": torch.__version__}
