"""The build backend: scikit-build-core, and which OpenMM and torch a wheel is built for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locate import CannotBuild, locate
from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403

NEEDED = ["openmm>=8.6", "torch>=2.9"]
_state = ""


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Ask for OpenMM and torch where the environment that pip installs into has none."""
    requires = build.get_requires_for_build_wheel(config_settings)
    try:
        locate()
    except CannotBuild:
        return [*requires, *NEEDED]
    return requires


def build_state(state: str) -> None:
    """Hear what is being built; a hook of dynamic metadata, like those that follow."""
    global _state
    _state = state


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a wheel depends on: the very versions that it is compiled for."""
    if _state == "sdist":
        return {"dependencies": NEEDED}
    found = locate()
    # Builds of torch for another CUDA, or for none, have the same libraries but those for CUDA.
    torch = found.torch_version.partition("+")[0]
    return {"dependencies": [f"openmm=={found.openmm_version}", f"torch=={torch}"]}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Say what differs between a wheel and the source distribution."""
    return {"dependencies": True}
