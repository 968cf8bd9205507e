"""What happens in a step: a jump that is due, with its settling, and then ordinary MD."""

from __future__ import annotations

import gc
import math
import operator
import time
import weakref

import openmm

from ..bridges.base import FORCE_NAME, INTERRUPTED, NUMBER
from ..jump.jump import ERRORS, STATUS_NOVEL, JumpError
from .adjustable import NO_LIMIT, AdjustableIntegrator
from .programs import ENERGY, ENERGY_RISE, PREFIX, SETTLE_TARGET, jump_group

# Places in the CompoundIntegrator.
_LANGEVIN, _JUMPER, _REFRESHER, _SETTLER = 0, 1, 2, 3
# The energy's running mean and variance forget all but the last quarter of a run, and what is
# further back than this many bursts, so that they follow a box that is still being equilibrated.
# They are believed from so many on.
_ENERGY_MEMORY = 500
_ENERGY_ENOUGH = 20


class SteppingIntegrator(AdjustableIntegrator):
    """Steps and jumps; what a jump is, is up to the force in the jump's group."""

    def step(self, steps: int) -> None:
        """Advance by MD steps; where a burst is full the next step begins with a jump.

        Parameters
        ----------
        steps : int
            Number of MD steps.
        """
        steps = operator.index(steps)
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        self._make_ready()
        while steps > 0:
            self._jump_if_due()
            if self._get("fresh"):
                steps -= self._md(_REFRESHER, 1)
            else:
                left = self._due_steps() - int(self._get("burst_done"))
                steps -= self._md(_LANGEVIN, min(steps, left) if self.getJumping() else steps)

    def isJumpDue(self) -> bool:
        """Whether the burst is full, so that the next MD step begins with a jump."""
        return self.getJumping() and self._get("burst_done") >= self._due_steps()

    def makeDueJump(self) -> bool:
        """Make the jump that is due at once, with its settling, instead of with the next MD step.

        For looking at what a jump does: with or without this call the trajectory is the same.

        Returns
        -------
        bool
            Whether a jump was due; `getStatistics` tells what became of it.
        """
        self._make_ready()
        return self._jump_if_due()

    def getLastEvent(self) -> str:
        """Return what became of the last jump that was due.

        Returns
        -------
        str
            ``jump``; ``fallback``, every proposal failed and MD went on; ``novel``, the frame is
            unlike the training data and MD covers the lag until the next jump; empty before the
            first. Checkpoints and States keep it.
        """
        if not self._get("tried"):
            return ""
        if self._get("waiting"):
            return "novel"
        return "jump" if self._get("ok") else "fallback"

    def _make_ready(self) -> None:
        """Refuse a Context that does not fit, and take over what was loaded into it."""
        if self._jumper is None:
            raise RuntimeError(
                "the integrator is not attached: call attach(system, topology) before making the "
                "Context or Simulation"
            )
        if not self._checked:
            self._check_context()
            self._checked = True
        self._follow_checkpoint()

    def _jump_if_due(self) -> bool:
        """Make the jump that is due, and whatever settling is left to do after the last one."""
        due = self.isJumpDue()
        if due:
            self._set("burst_done", 0)
            self._set("waiting", 0)
            self._jump()
        self._settle_by_dynamics()
        return due

    def _check_context(self) -> None:
        """See before the first step whether the Context is one that `attach` was made for."""
        system = self._context().getSystem()
        forces = [f for f in system.getForces() if f.getName() == FORCE_NAME]
        if len(forces) != 1:
            raise RuntimeError(
                "the Context's System holds no jump force: make the Context from the System that "
                "was given to attach()"
            )
        group = forces[0].getForceGroup()
        assert self._jumper is not None
        if group != jump_group(self._jumper) or any(
            f.getForceGroup() == group for f in system.getForces() if f.getName() != FORCE_NAME
        ):
            raise RuntimeError(
                f"the jump's force must stay alone in force group {jump_group(self._jumper)}: "
                "call attach() after all other forces have their groups"
            )

    def _follow_checkpoint(self) -> None:
        """Take over settings that a checkpoint or State has put into the jump program.

        OpenMM saves a CustomIntegrator's variables, but not the settings of its own integrators.
        """
        self._check_loaded()
        if self._own_seed is not None:
            self._set("seed", self._own_seed)
        temperature, friction, step = (self._get(n) for n in ("temperature", "friction", "step"))
        if self._langevin.getTemperature()._value != temperature:
            self._langevin.setTemperature(temperature)
        if self._langevin.getFriction()._value != friction:
            self._langevin.setFriction(friction)
        if self._langevin.getStepSize()._value != step:
            self.setStepSize(step)
        if self.getConstraintTolerance() != self._get("tolerance"):
            self.setConstraintTolerance(self._get("tolerance"))

    def _md(self, integrator: int, steps: int) -> int:
        """Do MD steps, with OpenMM's own integrator or the one for the step after a jump.

        Returns
        -------
        int
            The number of steps.
        """
        began = time.perf_counter()
        context = self._context()
        before = context.getStepCount()
        self.setCurrentIntegrator(integrator)
        try:
            super().step(steps)
        finally:
            # Ctrl-C is raised here, after the steps: they count.
            done = context.getStepCount() - before
            self.setCurrentIntegrator(_LANGEVIN)
            self._add("md_steps", done)
            if self.getJumping():
                self._add("burst_done", done)
            if done and integrator == _REFRESHER:
                self._set("fresh", 0)
            self._seconds["md"] += time.perf_counter() - began
        return steps

    def _run_jumper(self, switch: str) -> None:
        """Run the jump program with one of its switches on. It takes no time and is no step."""
        context = self._context()
        # OpenMM counts every run of a program as a step.
        count, now = context.getStepCount(), context.getTime()
        self._set(switch, 1)
        self.setCurrentIntegrator(_JUMPER)
        try:
            super().step(1)
        finally:
            self.setCurrentIntegrator(_LANGEVIN)
            self._set(switch, 0)
            context.setStepCount(count)
            context.setTime(now)

    def _jump(self) -> None:
        """Try a jump: propose, apply, settle, keep or take back, and count."""
        number = int(self._get("tried"))
        self._add("tried", 1)
        for name in ("ok", "tries", "status"):
            self._set(name, 0)
        stands = False
        try:
            while not stands and self._get("tries") < self._get("max_tries"):
                if not self._propose(number):
                    break
                stands = self._settle()
        except BaseException:
            # Ctrl-C, or a model that fails: no half-made jump stays, and the force is silent.
            self._context().setParameter(NUMBER, 0.0)
            if self._get("ok"):
                self._run_jumper("returning")
                self._set("ok", 0)
            stands = False
            raise
        finally:
            self._add("redraws", max(0.0, self._get("tries") - 1))
            if stands:
                self._set("fresh", 1)
                self._add("accepted", 1)
                self._add("effective_extra", self._get("lag"))
                if self._surroundings:
                    self._set("settle_begun", 0)
                    self._set("settle_left", round(self.settle_ps / self.step_ps))
            elif self._get("status") == STATUS_NOVEL:
                self._set("waiting", 1)
                self._add("novel", 1)
            else:
                self._add("fallbacks", 1)

    def _propose(self, number: int) -> bool:
        """Run the model and apply what passes the gates; return whether anything did."""
        began = time.perf_counter()
        redraw = self._get("tries") > 0
        # Read by the program, which counts jumps from 1 because 0 means none.
        self._set("number", number + 1)
        try:
            self._run_jumper("jumping")
        except openmm.OpenMMException as error:
            if INTERRUPTED in str(error):
                raise KeyboardInterrupt from None
            if "NaN" in str(error):
                raise
            raise JumpError(f"jump {number}: the propagator failed: {error}") from error
        finally:
            self._seconds["model"] += time.perf_counter() - began
        status = self._get("status")
        if status <= 0 and status != STATUS_NOVEL:
            reason = ERRORS.get(int(-status), f"status {status:g} is none that a jump reports")
            raise JumpError(f"jump {number}: {reason}; positions are as they were before it")
        if not redraw:
            self._learn_energy(self._get("energy_before"))
        return bool(self._get("ok"))

    def _learn_energy(self, energy: float) -> None:
        """Take an energy of MD into the running mean and variance."""
        if not math.isfinite(energy):
            return
        seen = self._get("energy_count") + 1
        # What is remembered grows with the run, so that a start far from equilibrium is forgotten.
        memory = min(max(seen / 4, _ENERGY_ENOUGH), seen, _ENERGY_MEMORY)
        away = energy - self._get("energy_mean")
        self._set("energy_count", seen)
        self._add("energy_mean", away / memory)
        variance = self._get("energy_variance")
        self._set("energy_variance", (1 - 1 / memory) * (variance + away**2 / memory))

    def _highest_energy(self) -> float:
        """Potential energy that a settled jump may not exceed, kJ/mol: what MD itself reaches."""
        sigmas, before = self._get("max_sigma"), self._get("energy_before")
        if sigmas >= NO_LIMIT or self._get("energy_count") < _ENERGY_ENOUGH:
            return math.inf
        width = math.sqrt(self._get("energy_variance"))
        # Where MD is up there already it was not the jump.
        return max(before + SETTLE_TARGET, self._get("energy_mean") + sigmas * width)

    def _settle(self) -> bool:
        """Let the surroundings of a jumped solute give way; take the jump back if they cannot.

        Returns
        -------
        bool
            Whether the jump stands.
        """
        limit, moves = self._get("max_rise"), int(self._get("settle_steps"))
        highest = self._highest_energy()
        if moves == 0 and limit >= NO_LIMIT and highest == math.inf:
            return True
        began = time.perf_counter()
        rises = []
        for _ in range(moves):
            self._run_jumper("settling")
            rises.append(self._get("rise"))
            if not rises[-1] > SETTLE_TARGET:  # a NaN stops here too
                break
        else:
            self._run_jumper("looking")  # the last step's energy
            rises.append(self._get("rise"))
        fails = None
        if not rises[-1] <= limit:
            fails = ENERGY_RISE
        elif not self._get("energy_before") + rises[-1] <= highest:
            fails = ENERGY
        if fails is not None:
            self._run_jumper("returning")
            self._set("ok", 0)
            self._add(f"rejected_{fails}", 1)
        else:
            self._add("settled", 1)
            self._add("settle_moves", len(rises) - 1)
            self._add("settle_before", rises[0])
            self._add("settle_after", rises[-1])
        self._seconds["settle"] += time.perf_counter() - began
        return fails is None

    def _settle_by_dynamics(self) -> None:
        """Let everything but the solute do the MD that is left to do after a jump.

        Ctrl-C may come before its end: the next step goes on with it.
        """
        assert self._settler is not None
        began = time.perf_counter()
        context = self._context()
        while left := int(self._get("settle_left")):
            first = not self._get("settle_begun")
            self._settler.setGlobalVariableByName(PREFIX + "first", float(first))
            count, now = context.getStepCount(), context.getTime()
            self.setCurrentIntegrator(_SETTLER)
            try:
                super().step(1 if first else left)
            finally:
                done = context.getStepCount() - count
                self.setCurrentIntegrator(_LANGEVIN)
                context.setStepCount(count)
                context.setTime(now)
                if done:
                    self._set("settle_begun", 1)
                self._set("settle_left", left - done)
                self._add("settle_time", done * self.step_ps)
                self._seconds["settle"] += time.perf_counter() - began
                began = time.perf_counter()

    def _context(self) -> openmm.Context:
        """The Context that this integrator belongs to.

        OpenMM tells an integrator's C++ side only, so the first call looks through all objects.
        """
        context = self._context_ref() if self._context_ref is not None else None
        if context is None:
            context = self._find_context()
            if context is None:
                raise RuntimeError("this integrator is not bound to a Context: make one first")
            self._context_ref = weakref.ref(context)
        return context

    def _find_context(self) -> openmm.Context | None:
        for thing in gc.get_objects():
            # type() rather than isinstance(), which would touch every lazy module there is.
            if issubclass(type(thing), openmm.Context):
                # One that could not be made has no integrator.
                if getattr(thing, "_integrator", None) is self:
                    return thing
        return None
