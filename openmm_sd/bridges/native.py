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
from .parts import split


class NativeBridge(Bridge):
    """Holds the scripted propagator in the plugin's ScoreDynamicsForce, on the solute only."""

    name = "native"
    install_hint = "needs a C++ compiler, then: pip install --force-reinstall --no-deps ./plugin"
    package = "openmm_sd_native"

    def create_force(
        self, jump: Jump, particles: Sequence[int], periodic: bool, file: str | None = None
    ) -> openmm.Force:
        plugin = load_plugin()
        try:
            # Not frozen: the plugin does that where the weights are to stay.
            scripted = script(jump)
        except Exception as error:
            raise NotScriptable(self.name, error) from error
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
        module = buffer.getvalue()
        parts = split(module, file)
        return plugin.create_force(module, particles, periodic, FORCE_NAME, file, parts)

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
    if not hasattr(openmm_sd_native, "VERSION"):
        raise ImportError(
            f"openmm-sd-native {openmm_sd_native.__version__} is older than this openmm-sd: build "
            "it again, 'pip install --force-reinstall --no-deps ./plugin'"
        )
    openmm_sd_native.load()
    return openmm_sd_native
