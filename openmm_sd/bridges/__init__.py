"""Bridges: how a propagator reaches OpenMM. One contract (`base`), one file a bridge."""

from .base import Bridge, NotScriptable, platform_names
from .probe import Probe, choose_bridge, probe
from .registry import BRIDGES

__all__ = [
    "BRIDGES",
    "Bridge",
    "NotScriptable",
    "Probe",
    "choose_bridge",
    "platform_names",
    "probe",
]
