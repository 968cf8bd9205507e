"""Score Dynamics for OpenMM.

A conditional diffusion model learns how a solute in water moves over 10 ps to 1 ns, and an OpenMM
integrator alternates ordinary molecular dynamics with those learned steps::

    from openmm_sd import ScoreDynamicsIntegrator, ScoreModel

    model = ScoreModel.load("ala2-water")
    integrator = ScoreDynamicsIntegrator(model)
    integrator.attach(system, topology)
    simulation = Simulation(topology, system, integrator)
    simulation.step(50_000)

Importing this package imports nothing heavy; each name is loaded at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .integrator.integrator import ScoreDynamicsIntegrator
    from .integrator.reporter import ScoreDynamicsReporter
    from .jump.jump import JumpError
    from .model.bundle import BundleError
    from .model.model import ScoreModel
    from .molecule.molecule import Molecule
    from .propagator.contract import Conformance, Propagator, check_propagator
    from .propagator.registry import register_architecture
    from .rollout.rollout import Rollout
    from .rollout.settings import RolloutSettings

_HOMES = {
    "BundleError": "model.bundle",
    "Conformance": "propagator.contract",
    "JumpError": "jump.jump",
    "Molecule": "molecule.molecule",
    "Propagator": "propagator.contract",
    "Rollout": "rollout.rollout",
    "RolloutSettings": "rollout.settings",
    "ScoreDynamicsIntegrator": "integrator.integrator",
    "ScoreDynamicsReporter": "integrator.reporter",
    "ScoreModel": "model.model",
    "check_propagator": "propagator.contract",
    "register_architecture": "propagator.registry",
}

__all__ = [
    "BundleError",
    "Conformance",
    "JumpError",
    "Molecule",
    "Propagator",
    "Rollout",
    "RolloutSettings",
    "ScoreDynamicsIntegrator",
    "ScoreDynamicsReporter",
    "ScoreModel",
    "__version__",
    "check_propagator",
    "register_architecture",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # torch comes before OpenMM, because OpenMM loads openmm-torch's plugin when it is imported and
    # that needs torch's libraries.
    import_module("torch")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
