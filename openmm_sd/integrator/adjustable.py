"""The parts of the integrator, their variables, and the settings that concern no model."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import openmm
from openmm import unit

from ..jump.jump import MAX_CANDIDATES
from .arguments import positive, whole
from .programs import (
    PREFIX,
    SETTINGS,
    STATE,
    check_layout,
    write_jump,
    write_refresh,
    write_settle,
)

#: Stands for "no limit": OpenMM's XML keeps it, unlike infinity.
NO_LIMIT = 1e30


class AdjustableIntegrator(openmm.CompoundIntegrator):
    """OpenMM's Langevin integrator with the three programs beside it, and their variables.

    It knows nothing of models: its jump is whatever force lies in the jump's group. Temperature in
    K, friction in 1/ps, step in ps.
    """

    def __init__(self, temperature: float, friction: float, step: float) -> None:
        super().__init__()
        self._jumper: openmm.CustomIntegrator | None = None
        self._refresher: openmm.CustomIntegrator | None = None
        self._settler: openmm.CustomIntegrator | None = None
        self._surroundings = False
        self._context_ref: weakref.ref[openmm.Context] | None = None
        self._checked = False
        # Given after this object was made: no checkpoint or State replaces it.
        self._own_seed: int | None = None
        self._seconds = {"md": 0.0, "model": 0.0, "settle": 0.0}
        self._langevin = openmm.LangevinMiddleIntegrator(temperature, friction, step)
        self.addIntegrator(self._langevin)
        # Until the jump program is written, its variables wait here, in the order of their places.
        self._waiting = dict(STATE)
        self._waiting.update(temperature=temperature, friction=friction, step=step, enabled=1.0)
        self._waiting["tolerance"] = self._langevin.getConstraintTolerance()

    def _add_programs(self, group: int, mobile: Sequence[openmm.Vec3]) -> None:
        """Add what OpenMM's own integrator cannot do: the jump, and the MD step right after it.

        Parameters
        ----------
        group : int
            Force group of the jump.
        mobile : sequence of Vec3
            1 for every particle that settles after a jump, 0 for the solute's.
        """
        self._surroundings = any(particle[0] for particle in mobile)
        others = set(range(32)) - {group}
        self._langevin.setIntegrationForceGroups(others)
        self._jumper = openmm.CustomIntegrator(self._langevin.getStepSize())
        self._refresher = openmm.CustomIntegrator(self._langevin.getStepSize())
        self._settler = openmm.CustomIntegrator(self._langevin.getStepSize())
        for program in self._programs():
            program.setIntegrationForceGroups(others)
            program.setConstraintTolerance(self._langevin.getConstraintTolerance())
            program.setRandomNumberSeed(self._langevin.getRandomNumberSeed())
            # A program may end with forces evaluated, and believes them still good at its next
            # turn, although another integrator has moved everything since. Writing the positions
            # onto themselves makes it evaluate them anew.
            program.addComputePerDof("x", "x")
        write_jump(self._jumper, self._waiting, group, mobile)
        write_refresh(self._refresher, self._waiting["temperature"])
        write_settle(self._settler, self._waiting["temperature"], mobile)
        for program in self._programs():
            self.addIntegrator(program)

    def _programs(self) -> list[openmm.CustomIntegrator]:
        programs = (self._jumper, self._refresher, self._settler)
        return [program for program in programs if program is not None]

    # -- variables of the program ----------------------------------------------------------------

    def _get(self, name: str) -> float:
        if self._jumper is None:
            return self._waiting[name]
        return self._jumper.getGlobalVariableByName(PREFIX + name)

    def _add(self, name: str, amount: float) -> None:
        self._set(name, self._get(name) + amount)

    def _set(self, name: str, value: float) -> None:
        if self._jumper is None:
            self._waiting[name] = float(value)
        else:
            self._jumper.setGlobalVariableByName(PREFIX + name, float(value))

    def _settings(self) -> dict[str, float]:
        return {name: self._get(name) for name in (*STATE, *SETTINGS)}

    @property
    def temperature_K(self) -> float:
        """Temperature of the heat bath, K."""
        return self._get("temperature")

    @property
    def friction_per_ps(self) -> float:
        """Friction coefficient of the Langevin dynamics, 1/ps."""
        return self._get("friction")

    @property
    def step_ps(self) -> float:
        """Size of an MD step, ps."""
        return self._get("step")

    @property
    def burst_ps(self) -> float:
        """MD time between two jumps, ps: whole MD steps."""
        asked, done = self._get("burst"), self._burst_steps() * self.step_ps
        return asked if math.isclose(asked, done) else done

    @property
    def lag_ps(self) -> float:
        """Physical time that one jump covers, ps."""
        return self._get("lag")

    @property
    def settle_ps(self) -> float:
        """MD time for which everything but the solute settles after a jump, ps."""
        return self._get("settle_ps")

    @property
    def md_time_ps(self) -> float:
        """Time covered by ordinary MD steps under this integrator, ps."""
        self._check_loaded()
        return self._get("md_earlier") + self._get("md_steps") * self.step_ps

    @property
    def effective_time_ps(self) -> float:
        """MD time plus the lags of all accepted jumps, ps."""
        return self.md_time_ps + self._get("effective_extra")

    def _burst_steps(self) -> int:
        """MD steps of a burst."""
        return max(1, round(self._get("burst") / self.step_ps))

    def _due_steps(self) -> int:
        """MD steps between two jumps, or those that cover a lag without a jump."""
        burst = self._burst_steps()
        if not self._get("waiting"):
            return burst
        # Whole bursts, so that whoever looks at their ends goes on doing so.
        lag = max(1, round(self.lag_ps / self.step_ps))
        return burst * math.ceil(lag / burst)

    def _check_loaded(self) -> None:
        """Refuse to make anything of a checkpoint of another version."""
        if self._jumper is not None:
            check_layout(self._jumper)

    # -- settings --------------------------------------------------------------------------------

    def setJumping(self, enabled: bool) -> None:
        """Switch jumps on or off, to equilibrate with plain MD for instance. On at first."""
        self._set("enabled", float(bool(enabled)))

    def getJumping(self) -> bool:
        """Whether jumps are switched on."""
        return bool(self._get("enabled"))

    def getFriction(self) -> unit.Quantity:
        """Friction coefficient of the Langevin dynamics."""
        return self.friction_per_ps / unit.picosecond

    def setFriction(self, coeff: Any) -> None:
        """Set the friction coefficient, 1/ps."""
        value = positive("coeff", coeff, unit.picosecond**-1, zero=True)
        self._langevin.setFriction(value)
        self._set("friction", value)

    def getStepSize(self) -> unit.Quantity:
        """Size of an MD step."""
        return self.step_ps * unit.picosecond

    def setStepSize(self, size: Any) -> None:
        """Set the size of an MD step, ps. The burst, and what is done of it, keep their ps."""
        value = positive("size", size, unit.picosecond)
        self._langevin.setStepSize(value)
        for program in self._programs():
            program.setStepSize(value)
        before = self._get("step")
        if value != before:
            self._set("md_earlier", self.md_time_ps)
            self._set("md_steps", 0)
            self._set("settle_left", math.ceil(self._get("settle_left") * before / value))
        left = max(0.0, self._due_steps() - self._get("burst_done")) * before / value
        self._set("step", value)
        self._set("burst_done", max(0, self._due_steps() - round(left)))

    def getBurst(self) -> unit.Quantity:
        """MD time between two jumps: whole MD steps."""
        return self.burst_ps * unit.picosecond

    def setBurst(self, burst: Any) -> None:
        """Set the MD time between two jumps, ps; the nearest number of whole MD steps is done."""
        value = positive("burst", burst, unit.picosecond)
        step = self.step_ps
        if round(value / step) < 1:
            raise ValueError(f"burst must be at least one MD step of {step:g} ps, got {value:g} ps")
        self._set("burst", value)

    def getMaxTries(self) -> int:
        """How many proposals are drawn before a jump is dropped."""
        return int(self._get("max_tries"))

    def setMaxTries(self, tries: int) -> None:
        """Set how many proposals are drawn before a jump is dropped; at least 1."""
        self._set("max_tries", whole("maxTries", tries, 1))

    def getCandidates(self) -> int:
        """How many proposals are drawn in one batch once the first has failed."""
        return int(self._get("candidates"))

    def setCandidates(self, candidates: int) -> None:
        """Set how many proposals are drawn in one batch once the first has failed."""
        self._set("candidates", whole("candidates", candidates, 1, MAX_CANDIDATES))

    def getSettleSteps(self) -> int:
        """Largest number of settling steps after a jump."""
        return int(self._get("settle_steps"))

    def setSettleSteps(self, steps: int) -> None:
        """Set the largest number of settling steps after a jump; 0 for none."""
        self._set("settle_steps", whole("settleSteps", steps, 0))

    def getSettleTime(self) -> unit.Quantity:
        """MD time for which everything but the solute settles after a jump."""
        return self.settle_ps * unit.picosecond

    def setSettleTime(self, length: Any) -> None:
        """Set for how much MD time everything but the solute settles after a jump, ps; 0: none."""
        self._set("settle_ps", positive("settleTime", length, unit.picosecond, zero=True))

    def getMaxEnergyRise(self) -> unit.Quantity | None:
        """How far a settled jump may raise the potential energy; None for no limit."""
        limit = self._limit("max_rise")
        return None if limit is None else limit * unit.kilojoule_per_mole

    def setMaxEnergyRise(self, energy: Any) -> None:
        """Set how far a settled jump may raise the potential energy, kJ/mol; None: no limit."""
        limit = positive("maxEnergyRise", energy, unit.kilojoule_per_mole, NO_LIMIT)
        self._set("max_rise", limit)

    def getMaxEnergySigma(self) -> float | None:
        """How high a jump may raise the potential energy, in sigma of MD; None for no limit."""
        return self._limit("max_sigma")

    def setMaxEnergySigma(self, sigma: float | None) -> None:
        """Set how high a jump may raise the potential energy above its mean, in sigma of MD."""
        self._set("max_sigma", positive("maxEnergySigma", sigma, unit.dimensionless, NO_LIMIT))

    def setConstraintTolerance(self, tol: float) -> None:
        """Set the relative tolerance of constraints."""
        self._langevin.setConstraintTolerance(tol)
        for program in self._programs():
            program.setConstraintTolerance(tol)
        self._set("tolerance", tol)

    def getConstraintTolerance(self) -> float:
        """Relative tolerance of constraints."""
        return self._langevin.getConstraintTolerance()

    def _limit(self, name: str) -> float | None:
        value = self._get(name)
        return None if value >= NO_LIMIT else value
