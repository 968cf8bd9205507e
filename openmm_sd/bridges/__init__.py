"""Bridges: how a propagator reaches OpenMM. One contract (`base`), one file a bridge."""

from __future__ import annotations

from .base import Bridge, NotScriptable, platform_names
from .native import NativeBridge
from .probe import Probe, choose_bridge, probe
from .pythonforce import PythonForceBridge
from .torchforce import TorchForceBridge

#: Every bridge, in the order in which ``bridge="auto"`` tries them.
BRIDGES: dict[str, Bridge] = {
    b.name: b for b in (NativeBridge(), PythonForceBridge(), TorchForceBridge())
}

__all__ = [
    "BRIDGES",
    "Bridge",
    "NotScriptable",
    "Probe",
    "choose_bridge",
    "platform_names",
    "probe",
]
