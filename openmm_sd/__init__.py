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

import sys
from typing import TYPE_CHECKING

from .lazy import lazy
from .moved import Moved
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .integrator.integrator import ScoreDynamicsIntegrator as ScoreDynamicsIntegrator
    from .integrator.reporter import ScoreDynamicsReporter as ScoreDynamicsReporter
    from .jump.jump import JumpError as JumpError
    from .model.bundle import BundleError as BundleError
    from .model.model import ScoreModel as ScoreModel
    from .molecule.molecule import Molecule as Molecule
    from .propagator.contract import (
        Conformance as Conformance,
        Propagator as Propagator,
        check_propagator as check_propagator,
    )
    from .propagator.density import (
        TransitionDensity as TransitionDensity,
        check_density as check_density,
    )
    from .propagator.registry import register_architecture as register_architecture
    from .rollout.rollout import Rollout as Rollout
    from .rollout.settings import RolloutSettings as RolloutSettings
    from .verbs import (
        adapt as adapt,
        distill as distill,
        generate as generate,
        import_trajectories as import_trajectories,
        prepare as prepare,
        report as report,
        rollout as rollout,
        run as run,
        train as train,
        validate as validate,
    )
else:
    # torch comes before OpenMM, because OpenMM loads openmm-torch's plugin when it is imported and
    # that needs torch's libraries.
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".integrator.integrator": "ScoreDynamicsIntegrator",
            ".integrator.reporter": "ScoreDynamicsReporter",
            ".jump.jump": "JumpError",
            ".model.bundle": "BundleError",
            ".model.model": "ScoreModel",
            ".molecule.molecule": "Molecule",
            ".propagator.contract": "Conformance Propagator check_propagator",
            ".propagator.density": "TransitionDensity check_density",
            ".propagator.registry": "register_architecture",
            ".rollout.rollout": "Rollout",
            ".rollout.settings": "RolloutSettings",
            ".verbs": "distill import_trajectories",
        },
        first="torch",
        packages="adapt generate prepare report rollout run train validate",
    )
    __all__ += ["__version__"]

sys.meta_path.insert(0, Moved())
