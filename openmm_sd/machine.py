"""What this machine offers: the platform and bridge to use, the speed of plain MD, versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform as machine
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openmm
    from numpy.typing import NDArray

# OpenCL is left to those who ask for it: on a machine without a GPU it is an emulation that runs
# slower than the CPU platform, yet OpenMM would choose it.
_PLATFORMS = ("CUDA", "HIP", "CPU")

# No atom of a simulation gets as far as this, nm.
_FAR = 1e6

_PACKAGES = ("openmm-sd", "openmm", "torch", "openmmtorch", "numpy", "mdtraj", "h5py")


def platform_and_bridge(platform: str | None, bridge: str) -> tuple[str, str]:
    """Choose what was left open, by evaluating bridges for real.

    Parameters
    ----------
    platform : str, optional
        OpenMM platform; a GPU's if one works here, else CPU.
    bridge : str
        Name of a bridge, or ``auto``.

    Returns
    -------
    platform, bridge : str

    Raises
    ------
    RuntimeError
        If nothing works, with the reason for each.
    """
    from .bridges import BRIDGES, choose_bridge, platform_names
    from .bridges.probe import probe_all

    here = platform_names()
    if platform is not None:
        candidates = [platform]
    else:
        candidates = [name for name in _PLATFORMS if name in here] or here
    reasons = []
    for name in candidates:
        if bridge != "auto":
            answer = probe_all([bridge], [name])[bridge, name]
            if answer.ok:
                return name, bridge
            hint = BRIDGES[bridge].install_hint
            reasons.append(f"{bridge} on {name}: {answer.detail} ({hint})")
            continue
        try:
            return name, choose_bridge(name)
        except RuntimeError as error:
            reasons.append(str(error))
    raise RuntimeError("; ".join(reasons))


def working_platform(wanted: str | None) -> str:
    """Choose a platform for MD alone: a GPU's if one works here, else CPU.

    Parameters
    ----------
    wanted : str, optional
        Name of an OpenMM platform, in upper or lower case.

    Raises
    ------
    ValueError
        If there is none of that name.
    RuntimeError
        If it does not work.
    """
    import openmm

    from .bridges import platform_names

    here = platform_names()
    if wanted is not None:
        names = {name.lower(): name for name in here}
        if wanted.lower() not in names:
            raise ValueError(f"platform must be one of {', '.join(here)}, got {wanted!r}")
        candidates = [names[wanted.lower()]]
    else:
        candidates = [name for name in _PLATFORMS if name in here] or here
    for name in candidates:
        system = openmm.System()
        system.addParticle(1.0)
        try:
            openmm.Context(
                system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(name)
            )
            return name
        except openmm.OpenMMException as error:
            reason = f"the {name} platform does not work here: {error}"
    raise RuntimeError(reason)


def gpus() -> list[str]:
    """Return what the GPUs that may be used here are called in CUDA_VISIBLE_DEVICES."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]


def shares(count: int | None, devices: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Share this machine out: return the environment of each of several processes.

    Parameters
    ----------
    count : int, optional
        Number of processes; one a GPU by default, without GPUs one a core.
    devices : sequence of str, optional
        Names of the GPUs to use; all by default.
    """
    devices, cores = gpus() if devices is None else devices, len(os.sched_getaffinity(0))
    count = count if count is not None else len(devices) or cores
    if count < 1:
        raise ValueError(f"the number of workers must be at least 1, got {count}")
    threads = str(max(1, cores // count))
    common = {name: threads for name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS")}
    common |= {"MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    return [
        common | ({"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} if devices else {})
        for k in range(count)
    ]


class PlainMD:
    """Plain MD of a System in a Context of its own: the speed that jumps are compared with.

    Parameters
    ----------
    system : openmm.System
        Without the force of a jump.
    positions : ndarray, shape (N, 3)
        nm.
    box_vectors : ndarray, shape (3, 3), optional
        nm.
    temperature : float
        K.
    friction : float
        1/ps.
    step_ps : float
        MD step, ps.
    seed : int
        Of velocities and thermostat.
    platform : str
        OpenMM platform.
    properties : dict, optional
        Of the platform.
    """

    def __init__(
        self,
        system: openmm.System,
        positions: NDArray[Any],
        box_vectors: NDArray[Any] | None,
        *,
        temperature: float,
        friction: float,
        step_ps: float,
        seed: int,
        platform: str,
        properties: dict[str, str] | None = None,
    ) -> None:
        import openmm

        integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step_ps)
        integrator.setRandomNumberSeed(seed)
        self.step_ps = step_ps
        self._context = openmm.Context(
            system, integrator, openmm.Platform.getPlatformByName(platform), properties or {}
        )
        if box_vectors is not None:
            self._context.setPeriodicBoxVectors(*box_vectors)
        self._context.setPositions(positions)
        self._context.setVelocitiesToTemperature(temperature, seed)

    def blows_up(self, steps: int) -> bool:
        """Make MD steps one by one; return whether positions or energy stop being numbers.

        The Reference platform dies of positions that are none, or that lie beyond what an integer
        counts, when it puts them on the grid of PME: such steps are not made.
        """
        import numpy as np
        import openmm

        try:
            for _ in range(steps):
                state = self._context.getState(positions=True, energy=True)
                x = np.asarray(state.getPositions(asNumpy=True)._value)
                # A NaN fails both comparisons.
                if not (np.abs(x).max() < _FAR and abs(state.getPotentialEnergy()._value) < np.inf):
                    return True
                self._context.getIntegrator().step(1)
            x = np.asarray(self._context.getState(positions=True).getPositions(asNumpy=True)._value)
            return not np.abs(x).max() < _FAR
        except openmm.OpenMMException as error:
            if "NaN" in str(error):
                return True
            raise

    def steps(self, steps: int) -> float:
        """Make MD steps and return the seconds they took."""
        began = time.perf_counter()
        self._context.getIntegrator().step(steps)
        # GPU platforms work ahead of the caller; reading something waits for them.
        self._context.getState(positions=True)
        return time.perf_counter() - began


def ns_per_day(ps: float, seconds: float) -> float:
    """Return a speed in ns per day."""
    return ps / 1000.0 / seconds * 86400.0


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": machine.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package.replace("-", "_")] = importlib.metadata.version(package)
    return found
