"""The bridge through the project's own OpenMM plugin: the scripted propagator, without Python."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import ModuleType

import openmm
import torch

from ..jump.jump import Jump
from ..propagator.script import script
from .base import FORCE_NAME, Bridge, NotScriptable


class NativeBridge(Bridge):
    """Holds the scripted propagator in the plugin's ScoreDynamicsForce, on the solute only."""

    name = "native"
    install_hint = "needs a C++ compiler, then: pip install --force-reinstall --no-deps ./plugin"
    package = "openmm_sd_native"

    def create_force(self, jump: Jump, particles: Sequence[int], periodic: bool) -> openmm.Force:
        plugin = load_plugin()
        try:
            # Not frozen: the plugin does that where the weights are to stay.
            module = script(jump)
        except Exception as error:
            raise NotScriptable(self.name, error) from error
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        return plugin.create_force(buffer.getvalue(), particles, periodic, FORCE_NAME)

    def versions(self) -> dict[str, str]:
        plugin = load_plugin()
        return {
            "openmm": openmm.__version__,
            "torch": torch.__version__,
            "openmm_sd_native": plugin.__version__,
        }


def load_plugin() -> ModuleType:
    """Import the plugin's Python package and let OpenMM load its libraries."""
    try:
        import openmm_sd_native
    except ModuleNotFoundError as error:
        if error.name != "openmm_sd_native":
            raise
        raise ImportError("openmm-sd-native is not installed") from error
    openmm_sd_native.load()
    return openmm_sd_native
