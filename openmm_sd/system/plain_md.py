"""Plain MD of a System: how fast it is, and whether it blows up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openmm
    from numpy.typing import NDArray

# No atom of a simulation gets as far as this, nm.
_FAR = 1e6


class PlainMD:
    """Plain MD of a System in a Context of its own: the speed that jumps are compared with.

    The System has no force of a jump. Positions (N, 3) and box vectors (3, 3) are in nm,
    temperature in K, friction in 1/ps; the seed is that of velocities and thermostat.
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

    def positions(self) -> NDArray[Any]:
        """Return where all atoms are, (N, 3) nm; molecules are not cut at the faces of the box."""
        import numpy as np

        return np.asarray(self._context.getState(positions=True).getPositions(asNumpy=True)._value)


def ns_per_day(ps: float, seconds: float) -> float:
    """Return a speed in ns per day."""
    return ps / 1000.0 / seconds * 86400.0
