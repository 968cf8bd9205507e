"""All bridges, by name."""

from __future__ import annotations

from .base import Bridge
from .native import NativeBridge
from .pythonforce import PythonForceBridge
from .torchforce import TorchForceBridge

#: Every bridge, in the order in which ``bridge="auto"`` tries them.
BRIDGES: dict[str, Bridge] = {
    b.name: b for b in (NativeBridge(), PythonForceBridge(), TorchForceBridge())
}
