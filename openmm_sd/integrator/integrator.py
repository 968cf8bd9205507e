"""The integrator: ordinary molecular dynamics, and learned jumps of the solute in between."""

from __future__ import annotations

import gc
import math
import operator
import random
import time
import warnings
import weakref
import zlib
from collections.abc import Sequence
from typing import Any

import openmm
from openmm import unit

from ..bridges import BRIDGES, NotScriptable, choose_bridge, platform_names
from ..bridges.base import ATTEMPT, CANDIDATES, FORCE_NAME, INTERRUPTED, LAG, NOVELTY, NUMBER, SEED
from ..jump.jump import (
    ERRORS,
    MAX_CANDIDATES,
    REJECTIONS,
    STATUS_BASE,
    STATUS_NOVEL,
    Jump,
    JumpError,
    gates_of,
)
from ..model.model import ScoreModel
from ..propagator.internal.family_tree import family_tree
from ..propagator.internal.torsion_potential import largest_difference, turning_potentials
from ..propagator.noise import MAX_SEED
from ..system.solute import Solute, find_solute, torsion_terms

#: Boltzmann's constant, kJ/mol/K.
BOLTZMANN = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)

#: Names under which settled jumps are counted that raised the system's energy too far: above what
#: MD itself reaches, and by more than the surroundings of the solute can owe.
ENERGY, ENERGY_RISE = "energy", "energy_rise"

_REJECTIONS = (*REJECTIONS.values(), ENERGY, ENERGY_RISE)

# Of every variable of the jump program: context parameters share their namespace.
PREFIX = "sd_"

# Everything that a restart needs lives in global variables of the jump program, because OpenMM
# carries those in States and checkpoints. Name -> value at the start.
_STATE: dict[str, float] = {
    # Steps are counted rather than times added: the sum's last digits would depend on where a run
    # was interrupted.
    "md_steps": 0.0,  # steps of ordinary MD done under this integrator, of the present size
    "md_earlier": 0.0,  # ps of ordinary MD done in steps of another size
    "burst_done": 0.0,  # MD steps since the last jump was due
    "fresh": 0.0,  # 1 after a jump, until the next MD step has drawn new velocities
    "tried": 0.0,  # jumps tried; the number of the next jump
    "accepted": 0.0,
    "redraws": 0.0,
    "fallbacks": 0.0,
    "novel": 0.0,
    "waiting": 0.0,  # 1 while MD covers the lag that a jump from a novel frame would have covered
    "effective_extra": 0.0,  # ps covered by accepted jumps
    "energy_count": 0.0,  # energies of MD seen, and their running mean and variance, (kJ/mol)**2
    "energy_mean": 0.0,
    "energy_variance": 0.0,
    "settled": 0.0,  # jumps whose energy was looked at
    "settle_moves": 0.0,  # settling steps made after them
    "settle_before": 0.0,  # sums over them: energy above that before the jump, kJ/mol, unsettled
    "settle_after": 0.0,  # and settled
    "settle_left": 0.0,  # MD steps of settling still to do after the last jump
    "settle_begun": 0.0,  # 1 once the first of them has drawn velocities
    "settle_time": 0.0,  # ps of MD in which everything but the solute settled
    **{f"rejected_{name}": 0.0 for name in _REJECTIONS},
}

# What the user chose; variables of the program as well.
_SETTINGS = (
    "temperature", "friction", "step", "burst", "lag", "seed", "max_tries", "candidates",
    "max_rise", "max_sigma", "max_novelty", "settle_steps", "settle_ps", "enabled", "tolerance",
)  # fmt: skip
# What only lives while the program runs: its switches, and what it finds.
_SCRATCH = (
    "jumping", "settling", "looking", "returning", "number",
    "tries", "drawn", "status", "ok", "again", "back", "energy", "energy_before", "rise",
)  # fmt: skip
# OpenMM's checkpoints hold variables by their place and not by name. The first and the last one are
# this number, so that a checkpoint of another version shows.
_LAYOUT_NAMES = ("layout", "layout_again")
_LAYOUT = float(zlib.crc32(",".join((*_STATE, *_SETTINGS, *_SCRATCH)).encode()))
# Places in the CompoundIntegrator.
_LANGEVIN, _JUMPER, _REFRESHER, _SETTLER = 0, 1, 2, 3
# Settling: nm that a particle moves per kJ/mol/nm of force, and at most, a coordinate and step. In
# a box of 1,903 atoms five such steps took the water around a jumped alanine dipeptide from 205
# kJ/mol above its energy to 85 below; steps seven times longer heated the box.
_SETTLE_RATE = 3e-7
_SETTLE_LIMIT = 0.005
# Settling ends when the energy is within this of what it was, kJ/mol: ten kT. A step of a box of
# water takes some tens, so that the energy ends on either side of the old one, and a jump that
# changes next to nothing moves no water at all.
_SETTLE_TARGET = 25.0
# Friction of the MD in which everything but the solute settles, 1/ps.
_SETTLE_FRICTION = 1.0
# The energy's running mean and variance forget all but the last quarter of a run, and what is
# further back than this many bursts, so that they follow a box that is still being equilibrated.
# They are believed from so many on.
_ENERGY_MEMORY = 500
_ENERGY_ENOUGH = 20
# Two positions closer than this, nm, differ by rounding.
_SAME_PLACE = 1e-4
# Hydrogen mass repartitioning goes up to about 4 Da.
_HEAVIEST_HYDROGEN = 4.6
# Barriers that differ by this change rates by a tenth at 300 K, kJ/mol.
_SAME_POTENTIAL = 0.25
# No all-atom MD makes steps as long as this, ps.
_LONG_STEP = 0.02
# Stands for "no limit": OpenMM's XML keeps it, unlike infinity.
_NO_LIMIT = 1e30


class ScoreDynamicsIntegrator(openmm.CompoundIntegrator):
    """Alternate bursts of Langevin dynamics with learned jumps of the solute.

    Ordinary MD steps are done by OpenMM's own LangevinMiddleIntegrator. At the end of every burst a
    learned kernel proposes where the solute will be one lag later. A proposal that passes the gates
    is applied, everything else gives way by a few small steps downhill and then by a short MD
    around the solute at rest, and the next MD step draws all velocities anew. A proposal that
    fails, or to which the surroundings cannot give way, is taken back and drawn again, a limited
    number of times; then the jump is dropped and MD carries on. From a frame unlike those the model
    was trained on there is no jump: MD covers that lag instead. All of this is counted. One
    ``step()`` is one MD step, whatever happens at its end, so reporters, barostats and step counts
    behave as with any other integrator.

    There is no Metropolis test: the ensemble that a mixed run samples is the model's as much as the
    force field's. Read the model card for its measured error.

    Parameters
    ----------
    model : ScoreModel
        The learned kernel, the molecule it knows and its card.
    temperature : Quantity or float, optional
        K. The card's by default (300 K if it names none).
    frictionCoeff : Quantity or float, optional
        Friction of the Langevin dynamics, 1/ps. 1/ps by default.
    stepSize : Quantity or float, optional
        MD step, ps. 0.002 ps by default.
    burst : Quantity or float, optional
        MD time between two jumps, ps. The card's recommendation by default.
    lag : Quantity or float, optional
        Physical time that one jump covers, ps. The card's recommendation by default.
    bridge : {"auto", "native", "pythonforce", "torchforce"}
        How the kernel reaches OpenMM; "auto" takes the first that passes a real evaluation.
    seed : int, optional
        1 to 2**31 - 1. Fixes the noise of the jumps and of the Langevin dynamics. Drawn at random
        by default; see `getRandomNumberSeed`.
    maxTries : int
        How many proposals to draw for a jump before it is dropped.
    candidates : int
        How many of them to draw at once, in one batch, after the first has failed. Of a batch the
        first that passes is taken, so that this decides about speed and not about results.
    settleSteps : int
        After a jump everything but the solute makes up to so many small bounded steps downhill,
        until the potential energy is back within 25 kJ/mol of what it was. 0 for none.
    settleTime : Quantity or float
        Then everything but the solute does so much MD, ps, while the solute rests: without it the
        water, which still stands as before the jump, draws the solute back. This MD counts
        neither as steps nor as time. 0 for none. Without surroundings there is none either.
    maxEnergyRise : Quantity or float or None
        A jump after which, settled, the potential energy is higher than before it by more is taken
        back, kJ/mol. None for no limit: then a jump into water molecules blows the run up.
    maxEnergySigma : float or None
        So is one that raises the potential energy to more than this many standard deviations above
        its mean. Both are running figures of this run's MD, taken at the ends of bursts. None for
        no limit.
    maxNovelty : float or None
        From a frame whose novelty score is higher there is no jump, and MD covers the lag instead.
        The model card's by default, if the model has such a score; None for no limit.
    strict : bool
        Raise, instead of warn, where the simulation differs from what the model was made for.

    Attributes
    ----------
    model : ScoreModel
        As given.
    solute : Solute or None
        The atoms that jump; known after `attach`.
    bridge : str
        Name of the bridge in use; "auto" until `attach` has chosen.

    Examples
    --------
    >>> integrator = ScoreDynamicsIntegrator(model, 300*kelvin, 1/picosecond, 2*femtoseconds)
    >>> integrator.attach(system, topology)
    >>> simulation = Simulation(topology, system, integrator)
    >>> simulation.step(50_000)

    Notes
    -----
    *Jumps.* The jump happens at the end of the last MD step of a burst: positions before it are
    never seen by a reporter. Jump number k uses noise keyed by (seed, k,
    try), so it does not depend on platform or bridge.

    *Velocities.* The first MD step after a jump draws all velocities anew: velocities that you set
    between a jump and that step are lost.

    *Resuming.* Clocks, counters and the position within a burst are part of OpenMM's State
    (``integratorParameters=True``) and checkpoints. A checkpoint continues exactly where forces
    are deterministic (Reference platform). A State does not hold OpenMM's own random numbers, so
    after loading one the Langevin noise differs while the jumps' noise continues. XML of the
    integrator alone gives back a plain CompoundIntegrator: see `restore`.
    """

    def __init__(
        self,
        model: ScoreModel,
        temperature: Any = None,
        frictionCoeff: Any = None,
        stepSize: Any = None,
        *,
        burst: Any = None,
        lag: Any = None,
        bridge: str = "auto",
        seed: int | None = None,
        maxTries: int = 4,
        candidates: int = 4,
        settleSteps: int = 40,
        settleTime: Any = 1.0,
        maxEnergyRise: Any = 200.0,
        maxEnergySigma: float | None = 4.0,
        maxNovelty: float | str | None = "card",
        strict: bool = False,
    ) -> None:
        if not isinstance(model, ScoreModel):
            raise ValueError(
                f"model must be a ScoreModel, got {type(model).__name__}; "
                "ScoreModel.load(...) gives one, ScoreModel(module, molecule) wraps a module"
            )
        if bridge != "auto" and bridge not in list(BRIDGES):
            raise ValueError(f"bridge must be 'auto' or one of {sorted(BRIDGES)}, got {bridge!r}")
        super().__init__()
        self.model = model
        self.solute: Solute | None = None
        self.bridge = bridge
        self.strict = bool(strict)
        self._jumper: openmm.CustomIntegrator | None = None
        self._refresher: openmm.CustomIntegrator | None = None
        self._settler: openmm.CustomIntegrator | None = None
        self._surroundings = False
        self._context_ref: weakref.ref[openmm.Context] | None = None
        self._seconds = {"md": 0.0, "model": 0.0, "settle": 0.0}
        # Until attach() writes the jump program, its variables wait here.
        self._waiting = dict(_STATE)

        card_temperature = model.temperature if model.temperature is not None else 300.0
        temperature = _positive("temperature", temperature, unit.kelvin, card_temperature)
        friction = _positive("frictionCoeff", frictionCoeff, unit.picosecond**-1, 1.0, zero=True)
        step = _positive("stepSize", stepSize, unit.picosecond, 0.002)
        if step > _LONG_STEP:
            warnings.warn(
                f"stepSize is {1000 * step:g} fs; a bare number counts ps",
                UserWarning,
                stacklevel=2,
            )
        self._langevin = openmm.LangevinMiddleIntegrator(temperature, friction, step)
        self.addIntegrator(self._langevin)
        self._waiting.update(temperature=temperature, friction=friction, step=step, enabled=1.0)
        self._waiting["tolerance"] = self._langevin.getConstraintTolerance()
        self.setMaxTries(maxTries)
        self.setCandidates(candidates)
        self.setSettleSteps(settleSteps)
        self.setSettleTime(settleTime)
        self.setMaxEnergyRise(maxEnergyRise)
        self.setMaxEnergySigma(maxEnergySigma)
        self.setMaxNovelty(maxNovelty)
        self.setBurst(model.recommended_burst if burst is None else burst)
        self.setLag(model.recommended_lag if lag is None else lag)
        self.setRandomNumberSeed(
            random.SystemRandom().randint(1, MAX_SEED) if seed is None else seed
        )
        self._compare_with_card(temperature)

    # -- attaching -------------------------------------------------------------------------------

    def attach(
        self,
        system: openmm.System,
        topology: Any,
        solute: int | str | Sequence[int] | None = None,
        platform: str | openmm.Platform | None = None,
    ) -> Solute:
        """Find the solute and add the learned kernel to a System. Call it before making a Context.

        Parameters
        ----------
        system : openmm.System
            Gets one more force, in a force group of its own. A force from an earlier `attach` is
            replaced.
        topology : openmm.app.Topology or mdtraj.Topology
            Describes the System's particles, bonds included.
        solute : int, str or sequence of int, optional
            Which copy of the molecule jumps, where there are several: its number in the order of
            the Topology, its chain's id, or its atoms' indices.
        platform : str or openmm.Platform, optional
            The platform the Context will use. It only helps ``bridge="auto"``, which without it
            asks for a bridge that works on all platforms of this machine.

        Returns
        -------
        Solute
            What was found.
        """
        if self._jumper is not None:
            raise ValueError(
                "this integrator is attached already: make another one for another System"
            )
        if self._find_context() is not None:
            raise ValueError("attach(system, topology) must come before the Context is made")
        if isinstance(platform, openmm.Platform):
            platform = platform.getName()
        if platform is not None and platform not in platform_names():
            raise ValueError(f"platform must be one of {platform_names()}, got {platform!r}")
        found = find_solute(self.model.molecules, topology, system, solute)
        # Of a family, the part that knows this molecule; put in place when nothing can fail.
        member = self.model.member(found.molecule)
        if self._get("max_novelty") < _NO_LIMIT:
            _needs_novelty(member)
        propagator = member.propagator
        self._dry_run(propagator, found)
        if member.card.constraints == "HBonds" and not found.constraints:
            self._differs(
                "system does not constrain the solute's bonds to hydrogen, but the model was "
                "trained with constraints=HBonds: after a jump those bonds lack their vibration"
            )

        self._compare_masses(system, found)
        self._compare_torsions(system, found, member)
        group = _free_group(system)
        jump = Jump(
            propagator,
            found.molecule,
            gates_of(member, found.molecule),
            found.constraints,
            member.novelty,
        )
        bridge, force = self._make_force(
            jump, found.particles, system.usesPeriodicBoundaryConditions(), platform
        )
        force.setForceGroup(group)
        # Only now that nothing can fail any more is anything changed.
        self.bridge = bridge
        self.detach(system)
        system.addForce(force)
        if self.model is not member:
            self.model = member
            if self._novelty_of_card:
                self.setMaxNovelty("card")
        self.solute = found
        solute_particles = set(found.particles)
        self._add_programs(
            group,
            [
                openmm.Vec3(*[float(i not in solute_particles)] * 3)
                for i in range(system.getNumParticles())
            ],
        )
        return found

    def _make_force(
        self, jump: Jump, particles: Sequence[int], periodic: bool, platform: str | None
    ) -> tuple[str, openmm.Force]:
        """The bridge to use and its force; "auto" passes over bridges that refuse the kernel."""
        if self.bridge != "auto":
            return self.bridge, BRIDGES[self.bridge].create_force(jump, particles, periodic)
        refused: list[str] = []
        while True:
            bridge = choose_bridge(platform, refused)
            try:
                return bridge, BRIDGES[bridge].create_force(jump, particles, periodic)
            except NotScriptable:
                refused.append(bridge)

    @staticmethod
    def detach(system: openmm.System) -> None:
        """Take the learned kernel's force out of a System again, if there is one.

        Parameters
        ----------
        system : openmm.System
            Existing Contexts keep what they were made with.

        Notes
        -----
        openmm-torch 1.5 crashes when a System with its force is copied or read from XML under
        OpenMM 8.6; without the force both work. `attach` of another integrator adds it again.
        """
        for index in reversed(range(system.getNumForces())):
            if system.getForce(index).getName() == FORCE_NAME:
                system.removeForce(index)

    def _dry_run(self, propagator: Any, found: Solute) -> None:
        """Call the kernel once on the molecule's own frame, so that a bad one is refused here."""
        import torch

        frame = torch.tensor(found.molecule.positions, dtype=torch.float32)
        frame = (frame - frame.mean(0)).unsqueeze(0)
        lag = torch.tensor([self._get("lag")], dtype=torch.float32)
        noise = torch.zeros(1, int(propagator.noise_size))
        try:
            with torch.no_grad():
                out = propagator(frame, lag, noise)
        except Exception as error:  # the kernel is foreign code
            raise ValueError(
                f"model: its propagator fails on its own molecule ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(out, torch.Tensor) or out.shape != frame.shape:
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"model: its propagator must return a Tensor of shape {tuple(frame.shape)}, "
                f"got {got}"
            )
        if out.dtype != torch.float32:
            raise ValueError(f"model: its propagator must return float32, got {out.dtype}")

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
        self._write_jump(self._jumper, group, mobile)
        self._write_refresh(self._refresher, self._waiting["temperature"])
        self._write_settle(self._settler, self._waiting["temperature"], mobile)
        for program in self._programs():
            self.addIntegrator(program)

    def _write_jump(
        self, jumper: openmm.CustomIntegrator, group: int, mobile: Sequence[openmm.Vec3]
    ) -> None:
        """Write the program that jumps, settles or takes back, as its switches say.

        The parts stand in this order because no ConstrainPositions may follow the jump: on GPU
        kernels a position written before one is only stored, and forces would be evaluated at the
        old place.
        """
        jumper.addGlobalVariable(PREFIX + _LAYOUT_NAMES[0], _LAYOUT)
        for name, value in self._waiting.items():
            jumper.addGlobalVariable(PREFIX + name, value)
        for name in _SCRATCH:
            jumper.addGlobalVariable(PREFIX + name, 0.0)
        jumper.addGlobalVariable(PREFIX + _LAYOUT_NAMES[1], _LAYOUT)
        for name in ("mobile", "force", "displacement", "moved", "position", "saved"):
            jumper.addPerDofVariable(PREFIX + name, 0.0)
        jumper.setPerDofVariableByName("sd_mobile", mobile)

        jumper.addComputePerDof("sd_saved", "select(sd_jumping, x, sd_saved)")
        # Settling: one step of the surroundings downhill. Wherever both are wanted the force is
        # stored before the energy is read: the other way round GPU kernels give a stale force.
        jumper.addComputePerDof("sd_force", "f")
        jumper.addComputeGlobal("sd_energy", "energy")
        jumper.addComputeGlobal("sd_rise", "sd_energy-sd_energy_before")
        bounded = f"max(-{_SETTLE_LIMIT},min({_SETTLE_LIMIT},{_SETTLE_RATE}*sd_force))"
        downhill = f"sd_settling*step(sd_rise-{_SETTLE_TARGET})*sd_mobile*{bounded}"
        jumper.addComputePerDof("sd_position", "x")
        jumper.addComputePerDof("x", f"x+{downhill}")
        jumper.addConstrainPositions()
        # What has moved since before the jump. Not the positions then: between two runs of the
        # program GPU kernels may carry a molecule to another periodic image.
        jumper.addComputePerDof("sd_moved", "sd_moved+x-sd_position")

        # The jump.
        jumper.beginIfBlock("sd_jumping > 0.5")
        jumper.addComputeGlobal("sd_energy_before", "sd_energy")
        jumper.addComputeGlobal(SEED, "sd_seed")
        jumper.addComputeGlobal(LAG, "sd_lag")
        jumper.addComputeGlobal(NOVELTY, "sd_max_novelty")
        jumper.addComputeGlobal(NUMBER, "sd_number")
        jumper.addComputeGlobal("sd_again", "1")
        jumper.beginWhileBlock("sd_again > 0.5")
        jumper.addComputeGlobal(ATTEMPT, "sd_tries")
        # Nearly always the first passes, and one alone is the cheapest.
        several = "min(sd_candidates, sd_max_tries-sd_tries)"
        jumper.addComputeGlobal(CANDIDATES, f"select(sd_tries, {several}, 1)")
        # Force before energy again: the other way round the model would be called twice.
        jumper.addComputePerDof("sd_displacement", f"f{group}")
        jumper.addComputeGlobal("sd_status", f"energy{group}")
        # The status digit by digit, see `read_status`.
        jumper.addComputeGlobal("sd_ok", _digit(0))
        jumper.addComputeGlobal("sd_tries", "sd_tries+sd_ok")
        for code, name in REJECTIONS.items():
            counter = f"{PREFIX}rejected_{name}"
            jumper.addComputeGlobal("sd_drawn", _digit(code - 1))
            jumper.addComputeGlobal(counter, f"{counter}+sd_drawn")
            jumper.addComputeGlobal("sd_tries", "sd_tries+sd_drawn")
        jumper.addComputeGlobal(
            "sd_again", "(1-sd_ok)*step(sd_max_tries-sd_tries-0.5)*step(sd_status-0.5)"
        )
        jumper.endBlock()
        jumper.addComputeGlobal(NUMBER, "0")
        jumper.addComputePerDof("sd_moved", "sd_ok*sd_displacement")
        jumper.addComputePerDof("x", "x+sd_moved")
        jumper.endBlock()

        # Taking back: to the very positions before the jump, unless they are in another periodic
        # image by now. Constraints have touched them as well where nothing was accepted.
        jumper.addComputeGlobal("sd_back", "max(sd_returning, sd_jumping*(1-sd_ok))")
        here = f"step({_SAME_PLACE}-abs(x-sd_moved-sd_saved))"
        jumper.addComputePerDof("x", f"select(sd_back, select({here}, sd_saved, x-sd_moved), x)")
        jumper.addComputePerDof("sd_moved", "(1-sd_back)*sd_moved")

    def _write_refresh(self, refresher: openmm.CustomIntegrator, temperature: float) -> None:
        """Write the MD step after a jump: the Langevin scheme, velocities forgotten in its middle.

        There the scheme's velocities are thermal and independent of the positions, so forgetting
        them there, and only there, leaves the scheme's ensemble as it is: it is the same scheme
        with an endless friction. Drawn at the end of a step they would heat stiff bonds.
        """
        refresher.addGlobalVariable("sd_kT", BOLTZMANN * temperature)
        refresher.addPerDofVariable("unconstrained", 0.0)
        refresher.addUpdateContextState()
        refresher.addComputePerDof("v", "v+dt*f/m")
        refresher.addConstrainVelocities()
        refresher.addComputePerDof("x", "x+0.5*dt*v")
        refresher.addComputePerDof("v", "sqrt(sd_kT/m)*gaussian")
        refresher.addComputePerDof("x", "x+0.5*dt*v")
        refresher.addComputePerDof("unconstrained", "x")
        refresher.addConstrainPositions()
        refresher.addComputePerDof("v", "v+(x-unconstrained)/dt")
        # The scheme draws velocities without regard to constraints and mends that at its next step.
        # After a whole draw a reporter would read a temperature 40 K too high: mended here.
        refresher.addConstrainVelocities()

    def _write_settle(
        self,
        settler: openmm.CustomIntegrator,
        temperature: float,
        mobile: Sequence[openmm.Vec3],
    ) -> None:
        """Write an MD step of everything but the solute, in the Langevin scheme.

        The first one forgets all velocities, as the step after it does that moves the solute again.
        The solute keeps those it had before the jump. The next MD step begins with them: from rest
        its bonds would contract. And whoever reads a temperature right after the jump would find
        the solute at zero kelvin.
        """
        for name, value in (("kT", BOLTZMANN * temperature), ("first", 0.0), ("keep", 0.0)):
            settler.addGlobalVariable(PREFIX + name, value)
        for name in ("mobile", "unconstrained", "before"):
            settler.addPerDofVariable(PREFIX + name, 0.0)
        settler.setPerDofVariableByName("sd_mobile", mobile)
        settler.addComputePerDof("sd_before", "v")
        settler.addComputeGlobal("sd_keep", f"(1-sd_first)*exp(-dt*{_SETTLE_FRICTION})")
        settler.addComputePerDof("v", "sd_mobile*(v+dt*f/m)")
        settler.addConstrainVelocities()
        settler.addComputePerDof("x", "x+0.5*dt*v")
        thermal = "sqrt((1-sd_keep^2)*sd_kT/m)*gaussian"
        settler.addComputePerDof("v", f"sd_mobile*(sd_keep*v+{thermal})")
        settler.addComputePerDof("x", "x+0.5*dt*v")
        settler.addComputePerDof("sd_unconstrained", "x")
        settler.addConstrainPositions()
        settler.addComputePerDof("v", "sd_mobile*(v+(x-sd_unconstrained)/dt)")
        # As in the step after a jump, for the case that this step is the only one.
        settler.addConstrainVelocities()
        settler.addComputePerDof("v", "select(sd_mobile, v, sd_before)")

    # -- stepping --------------------------------------------------------------------------------

    def step(self, steps: int) -> None:
        """Advance by MD steps, with a jump at the end of every full burst.

        Parameters
        ----------
        steps : int
            Number of MD steps.
        """
        if self._jumper is None:
            raise RuntimeError(
                "the integrator is not attached: call attach(system, topology) before making the "
                "Context or Simulation"
            )
        steps = operator.index(steps)
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        if self._context_ref is None:
            self._check_context()
        self._follow_checkpoint()
        self._settle_by_dynamics()
        while steps > 0:
            # A burst that was made shorter than what is done of it ends with the next step.
            left = max(1, self._due_steps() - int(self._get("burst_done")))
            if self._get("fresh"):
                done = self._md(_REFRESHER, 1)
            else:
                done = self._md(_LANGEVIN, min(steps, left) if self.getJumping() else steps)
            steps -= done
            if self.getJumping() and done >= left:
                self._set("burst_done", 0)
                self._set("waiting", 0)
                self._jump()
                self._settle_by_dynamics()

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
        if group != _jump_group(self._jumper) or any(
            f.getForceGroup() == group for f in system.getForces() if f.getName() != FORCE_NAME
        ):
            raise RuntimeError(
                f"the jump's force must stay alone in force group {_jump_group(self._jumper)}: "
                "call attach() after all other forces have their groups"
            )

    def _follow_checkpoint(self) -> None:
        """Take over settings that a checkpoint or State has put into the jump program.

        OpenMM saves a CustomIntegrator's variables, but not the settings of its own integrators.
        """
        self._check_layout()
        temperature, friction, step = (self._get(n) for n in ("temperature", "friction", "step"))
        if self._langevin.getTemperature()._value != temperature:
            self._langevin.setTemperature(temperature)
        if self._langevin.getFriction()._value != friction:
            self._langevin.setFriction(friction)
        if self._step_size() != step:
            self.setStepSize(step)
        if self.getConstraintTolerance() != self._get("tolerance"):
            self.setConstraintTolerance(self._get("tolerance"))

    def _check_layout(self) -> None:
        """Notice a checkpoint whose variables are others than this version's."""
        if self._jumper is None:
            return
        if any(self._get(name) != _LAYOUT for name in _LAYOUT_NAMES):
            raise RuntimeError(
                "the checkpoint that was loaded is of another version of openmm-sd: what it holds "
                "has been read into the wrong variables; make a new integrator and Context"
            )

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
                    self._set("settle_left", round(self._get("settle_ps") / self._step_size()))
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
        if sigmas >= _NO_LIMIT or self._get("energy_count") < _ENERGY_ENOUGH:
            return math.inf
        width = math.sqrt(self._get("energy_variance"))
        # Where MD is up there already it was not the jump.
        return max(before + _SETTLE_TARGET, self._get("energy_mean") + sigmas * width)

    def _settle(self) -> bool:
        """Let the surroundings of a jumped solute give way; take the jump back if they cannot.

        Returns
        -------
        bool
            Whether the jump stands.
        """
        limit, moves = self._get("max_rise"), int(self._get("settle_steps"))
        highest = self._highest_energy()
        if moves == 0 and limit >= _NO_LIMIT and highest == math.inf:
            return True
        began = time.perf_counter()
        rises = []
        for _ in range(moves):
            self._run_jumper("settling")
            rises.append(self._get("rise"))
            if not rises[-1] > _SETTLE_TARGET:  # a NaN stops here too
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
                self._add("settle_time", done * self._step_size())
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

    def setJumping(self, enabled: bool) -> None:
        """Switch jumps on or off, to equilibrate with plain MD for instance. On at first."""
        self._set("enabled", float(bool(enabled)))

    def getJumping(self) -> bool:
        """Whether jumps are switched on."""
        return bool(self._get("enabled"))

    # -- clocks and counters ---------------------------------------------------------------------

    def getMDTime(self) -> unit.Quantity:
        """Time covered by ordinary MD steps under this integrator."""
        return self._md_time() * unit.picosecond

    def getNumJumps(self) -> int:
        """Number of jumps that were accepted."""
        return int(self._get("accepted"))

    def getEffectiveTime(self) -> unit.Quantity:
        """MD time plus the lags of all accepted jumps."""
        return (self._md_time() + self._get("effective_extra")) * unit.picosecond

    def _md_time(self) -> float:
        return self._get("md_earlier") + self._get("md_steps") * self._get("step")

    def getStatistics(self) -> dict[str, Any]:
        """Counters and times.

        Returns
        -------
        dict
            ``jumps_tried``: of which ``jumps_accepted``, ``fallbacks`` (dropped because every
            proposal failed) and ``novel`` (not made, because the frame is unlike the training
            data); ``redraws`` (proposals beyond the first of a jump) and ``rejections`` (proposals
            turned down, by gate: of the frame, or of the settled system, ``energy`` and
            ``energy_rise``); ``settle``: of the accepted jumps, ``steps`` (settling steps a jump),
            ``energy_before_kJ_per_mol`` and ``energy_after_kJ_per_mol`` (mean potential energy
            above that before the jump, unsettled and settled; None where no energy was looked at)
            and ``time_ps`` (all MD in which everything but the solute settled); ``md_time_ps``,
            ``effective_time_ps`` and ``seconds`` (wall-clock in this process: ``md``, ``model``,
            ``settle``; on a GPU, which works behind the program's back, the shares are rough).
        """
        self._check_layout()
        settled = self._get("settled")

        def mean(name: str) -> float | None:
            return self._get(name) / settled if settled else None

        return {
            "jumps_tried": int(self._get("tried")),
            "jumps_accepted": int(self._get("accepted")),
            "redraws": int(self._get("redraws")),
            "fallbacks": int(self._get("fallbacks")),
            "novel": int(self._get("novel")),
            "rejections": {name: int(self._get(f"rejected_{name}")) for name in _REJECTIONS},
            "settle": {
                "steps": mean("settle_moves"),
                "energy_before_kJ_per_mol": mean("settle_before"),
                "energy_after_kJ_per_mol": mean("settle_after"),
                "time_ps": self._get("settle_time"),
            },
            "md_time_ps": self._md_time(),
            "effective_time_ps": self._md_time() + self._get("effective_extra"),
            "seconds": dict(self._seconds),
        }

    # -- settings --------------------------------------------------------------------------------

    def getTemperature(self) -> unit.Quantity:
        """Temperature of the heat bath."""
        return self._get("temperature") * unit.kelvin

    def setTemperature(self, temperature: Any) -> None:
        """Set the temperature of the heat bath, K. The model keeps the one it was trained at."""
        value = _positive("temperature", temperature, unit.kelvin)
        self._compare_with_card(value)
        self._langevin.setTemperature(value)
        for program in (self._refresher, self._settler):
            if program is not None:
                program.setGlobalVariableByName("sd_kT", BOLTZMANN * value)
        if value != self._get("temperature"):
            self._set("energy_count", 0)  # the energies seen belong to another temperature
        self._set("temperature", value)

    def getFriction(self) -> unit.Quantity:
        """Friction coefficient of the Langevin dynamics."""
        return self._get("friction") / unit.picosecond

    def setFriction(self, coeff: Any) -> None:
        """Set the friction coefficient, 1/ps."""
        value = _positive("coeff", coeff, unit.picosecond**-1, zero=True)
        self._langevin.setFriction(value)
        self._set("friction", value)

    def getStepSize(self) -> unit.Quantity:
        """Size of an MD step."""
        return self._langevin.getStepSize()

    def setStepSize(self, size: Any) -> None:
        """Set the size of an MD step, ps. The burst keeps its length in ps."""
        value = _positive("size", size, unit.picosecond)
        self._langevin.setStepSize(value)
        for program in self._programs():
            program.setStepSize(value)
        before = self._get("step")
        if value != before:
            self._set("md_earlier", self._md_time())
            self._set("md_steps", 0)
            self._set("settle_left", math.ceil(self._get("settle_left") * before / value))
        self._set("step", value)

    def setConstraintTolerance(self, tol: float) -> None:
        """Set the relative tolerance of constraints."""
        self._langevin.setConstraintTolerance(tol)
        for program in self._programs():
            program.setConstraintTolerance(tol)
        self._set("tolerance", tol)

    def getConstraintTolerance(self) -> float:
        """Relative tolerance of constraints."""
        return self._langevin.getConstraintTolerance()

    def getBurst(self) -> unit.Quantity:
        """MD time between two jumps."""
        return self._get("burst") * unit.picosecond

    def setBurst(self, burst: Any) -> None:
        """Set the MD time between two jumps, ps; at least one MD step."""
        value = _positive("burst", burst, unit.picosecond)
        step = self._step_size()
        if round(value / step) < 1:
            raise ValueError(f"burst must be at least one MD step of {step:g} ps, got {value:g} ps")
        self._set("burst", value)

    def getLag(self) -> unit.Quantity:
        """Physical time that one jump covers."""
        return self._get("lag") * unit.picosecond

    def setLag(self, lag: Any) -> None:
        """Set the time that one jump covers, ps, within the range of the model's card."""
        value = _positive("lag", lag, unit.picosecond)
        allowed = self.model.lag_range
        if allowed is not None and not allowed[0] <= value <= allowed[1]:
            raise ValueError(
                f"lag must be between {allowed[0]:g} and {allowed[1]:g} ps for this model, "
                f"got {value:g} ps"
            )
        self._set("lag", value)

    def getMaxTries(self) -> int:
        """How many proposals are drawn before a jump is dropped."""
        return int(self._get("max_tries"))

    def setMaxTries(self, tries: int) -> None:
        """Set how many proposals are drawn before a jump is dropped; at least 1."""
        self._set("max_tries", _whole("maxTries", tries, 1))

    def getSettleSteps(self) -> int:
        """Largest number of settling steps after a jump."""
        return int(self._get("settle_steps"))

    def setSettleSteps(self, steps: int) -> None:
        """Set the largest number of settling steps after a jump; 0 for none."""
        self._set("settle_steps", _whole("settleSteps", steps, 0))

    def getSettleTime(self) -> unit.Quantity:
        """MD time for which everything but the solute settles after a jump."""
        return self._get("settle_ps") * unit.picosecond

    def setSettleTime(self, length: Any) -> None:
        """Set for how much MD time everything but the solute settles after a jump, ps; 0: none."""
        self._set("settle_ps", _positive("settleTime", length, unit.picosecond, zero=True))

    def getMaxEnergyRise(self) -> unit.Quantity | None:
        """How far a settled jump may raise the potential energy; None for no limit."""
        value = self._get("max_rise")
        return None if value >= _NO_LIMIT else value * unit.kilojoule_per_mole

    def setMaxEnergyRise(self, energy: Any) -> None:
        """Set how far a settled jump may raise the potential energy, kJ/mol; None: no limit."""
        if energy is None:
            self._set("max_rise", _NO_LIMIT)
        else:
            self._set("max_rise", _positive("maxEnergyRise", energy, unit.kilojoule_per_mole))

    def getMaxEnergySigma(self) -> float | None:
        """How high a jump may raise the potential energy, in sigma of MD; None for no limit."""
        value = self._get("max_sigma")
        return None if value >= _NO_LIMIT else value

    def setMaxEnergySigma(self, sigma: float | None) -> None:
        """Set how high a jump may raise the potential energy above its mean, in sigma of MD."""
        if sigma is None:
            self._set("max_sigma", _NO_LIMIT)
        else:
            self._set("max_sigma", _positive("maxEnergySigma", sigma, unit.dimensionless))

    def getMaxNovelty(self) -> float | None:
        """Novelty of a frame from which no jump is made any more; None for no limit."""
        value = self._get("max_novelty")
        return None if value >= _NO_LIMIT else value

    def setMaxNovelty(self, novelty: float | str | None = "card") -> None:
        """Set the novelty of a frame above which MD covers the lag instead of a jump.

        Parameters
        ----------
        novelty : float or "card" or None
            "card" takes the model's own threshold, None sets no limit.
        """
        score = self.model.novelty
        # The members of a family have scores of their own: `attach` tells which one counts.
        self._novelty_of_card = novelty == "card"
        if novelty is None or (score is None and novelty == "card"):
            self._set("max_novelty", _NO_LIMIT)
            return
        value = score.threshold if score is not None and novelty == "card" else novelty
        self._set("max_novelty", _positive("maxNovelty", value, unit.dimensionless))
        if not self.model.is_family:
            _needs_novelty(self.model)

    def getCandidates(self) -> int:
        """How many proposals are drawn in one batch once the first has failed."""
        return int(self._get("candidates"))

    def setCandidates(self, candidates: int) -> None:
        """Set how many proposals are drawn in one batch once the first has failed."""
        self._set("candidates", _whole("candidates", candidates, 1, MAX_CANDIDATES))

    def getRandomNumberSeed(self) -> int:
        """Seed of the jumps and of the Langevin dynamics."""
        return int(self._get("seed"))

    def setRandomNumberSeed(self, seed: int) -> None:
        """Set the seed, 1 to 2**31 - 1.

        The jumps use it at once; OpenMM's own random numbers take it when a Context is made.
        """
        seed = _whole("seed", seed, 1, MAX_SEED)
        self._langevin.setRandomNumberSeed(seed)
        for program in self._programs():
            program.setRandomNumberSeed(seed)
        self._set("seed", seed)

    # -- copies ----------------------------------------------------------------------------------

    def __copy__(self) -> ScoreDynamicsIntegrator:
        new = self._build(self.model, self._settings(), self.bridge, self.strict)
        new._novelty_of_card = self._novelty_of_card
        if self._jumper is not None:
            new.solute = self.solute
            mobile = self._jumper.getPerDofVariableByName("sd_mobile")
            new._add_programs(_jump_group(self._jumper), mobile)
        return new

    def __deepcopy__(self, memo: dict) -> ScoreDynamicsIntegrator:
        # The model is immutable, so copies share it.
        return self.__copy__()

    @classmethod
    def restore(
        cls,
        integrator: openmm.CompoundIntegrator,
        model: ScoreModel,
        system: openmm.System | None = None,
        topology: Any = None,
        solute: int | str | Sequence[int] | None = None,
        platform: str | openmm.Platform | None = None,
        *,
        bridge: str = "auto",
        strict: bool = False,
    ) -> ScoreDynamicsIntegrator:
        """Make a ScoreDynamicsIntegrator again from what XmlSerializer gave back.

        Parameters
        ----------
        integrator : openmm.CompoundIntegrator
            The deserialised integrator, which has lost its Python class.
        model : ScoreModel
            The model; it is not part of the XML.
        system : openmm.System, optional
            Give it, with the topology, to attach the result as well, with a new force. Without
            it the result expects a System that carries the force of the saved run.
        topology : openmm.app.Topology or mdtraj.Topology, optional
            Goes with `system`.
        solute, platform
            As in `attach`.
        bridge, strict
            As for a new integrator; the XML does not hold them.

        Returns
        -------
        ScoreDynamicsIntegrator
            With the settings, clocks and counters of the saved one.
        """
        if (
            not isinstance(integrator, openmm.CompoundIntegrator)
            or integrator.getNumIntegrators() != 4
            or not isinstance(integrator.getIntegrator(1), openmm.CustomIntegrator)
        ):
            raise ValueError(
                "integrator must be the CompoundIntegrator of an attached "
                f"ScoreDynamicsIntegrator, got {type(integrator).__name__}"
            )
        jumper = integrator.getIntegrator(1)
        settings = {
            jumper.getGlobalVariableName(i).removeprefix(PREFIX): jumper.getGlobalVariable(i)
            for i in range(jumper.getNumGlobalVariables())
        }
        missing = [name for name in (*_STATE, *_SETTINGS) if name not in settings]
        if missing:
            raise ValueError(
                f"integrator is not one that this version of openmm-sd wrote: it lacks {missing}"
            )
        if system is None and model.is_family:
            raise ValueError(
                "model must be that of the molecule which jumps, model.member(...), or system and "
                "topology must be given"
            )
        new = cls._build(model, settings, bridge, strict)
        if system is not None:
            new.attach(system, topology, solute, platform)
        else:
            new._add_programs(_jump_group(jumper), jumper.getPerDofVariableByName("sd_mobile"))
        return new

    def _settings(self) -> dict[str, float]:
        return {name: self._get(name) for name in (*_STATE, *_SETTINGS)}

    @classmethod
    def _build(
        cls, model: ScoreModel, settings: dict[str, float], bridge: str, strict: bool
    ) -> ScoreDynamicsIntegrator:
        with warnings.catch_warnings():
            # The original has warned about its settings already.
            warnings.simplefilter("ignore", UserWarning)
            new = cls(
                model,
                settings["temperature"],
                settings["friction"],
                settings["step"],
                burst=settings["burst"],
                lag=settings["lag"],
                bridge=bridge,
                seed=int(settings["seed"]),
                maxTries=int(settings["max_tries"]),
                candidates=int(settings["candidates"]),
                settleSteps=int(settings["settle_steps"]),
                settleTime=settings["settle_ps"],
                strict=strict,
            )
        for name in ("max_rise", "max_sigma", "max_novelty"):
            new._set(name, settings[name])
        new._novelty_of_card = False
        new.setConstraintTolerance(settings["tolerance"])
        new.setJumping(bool(settings["enabled"]))
        for name in _STATE:
            new._set(name, settings[name])
        return new

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

    def _step_size(self) -> float:
        return self._langevin.getStepSize().value_in_unit(unit.picosecond)

    def _due_steps(self) -> int:
        """MD steps between two jumps, or those that cover a lag without a jump."""
        burst = max(1, round(self._get("burst") / self._step_size()))
        if not self._get("waiting"):
            return burst
        # Whole bursts, so that whoever looks at their ends goes on doing so.
        lag = max(1, round(self._get("lag") / self._step_size()))
        return burst * math.ceil(lag / burst)

    def _compare_with_card(self, mine: float) -> None:
        card = self.model.temperature
        if card is not None and abs(card - mine) > 0.5:
            message = (
                f"temperature is {mine:g} K, but the model was trained at {card:g} K: its jumps "
                f"keep sampling {card:g} K"
            )
            self._differs(message)

    def _compare_masses(self, system: openmm.System, found: Solute) -> None:
        """Notice a System whose particles are not in the order of the Topology."""
        for number, particle in zip(found.molecule.atomic_numbers, found.particles, strict=True):
            mass = system.getParticleMass(particle).value_in_unit(unit.dalton)
            if (number == 1) != (mass < _HEAVIEST_HYDROGEN):
                kind = "hydrogen" if number == 1 else "a heavy atom"
                self._differs(
                    f"system: particle {particle} has a mass of {mass:g} Da, but is {kind} in the "
                    "topology: do the two have the same atom order?"
                )
                return

    def _compare_torsions(self, system: openmm.System, found: Solute, member: ScoreModel) -> None:
        """Notice a force field that hinders turns in another way than the model was told."""
        known = getattr(member.propagator, "hyperparameters", {})
        if not known.get("potentials"):
            return
        tree = family_tree(found.molecule)
        terms = torsion_terms(system, found.particles)
        mine = turning_potentials(found.molecule, tree, known["turning"], terms)
        differences = largest_difference(mine, known["potentials"])
        if differences.max(initial=0.0) > _SAME_POTENTIAL:
            most = int(differences.argmax())
            _, *bond, _, _ = tree.rows[known["turning"][most]]
            first, second = (found.molecule.atom_names[atom] for atom in bond)
            self._differs(
                f"system: the torsion terms about the bond {first}-{second} are not those that the "
                f"model of {found.molecule.name} learned, they differ by {differences[most]:.1f} "
                "kJ/mol: its jumps follow its own force field"
            )

    def _differs(self, message: str) -> None:
        """Say that the simulation is not what the model was made for, as loudly as asked for."""
        if self.strict:
            raise ValueError(message)
        warnings.warn(message, UserWarning, stacklevel=4)


def _positive(
    name: str, value: Any, wanted: unit.Unit, default: float | None = None, zero: bool = False
) -> float:
    """A positive number in the wanted unit, from a Quantity or a bare number in md units."""
    if value is None:
        value = default
    if unit.is_quantity(value):
        if not value.unit.is_compatible(wanted):
            raise ValueError(f"{name} must be in {wanted} or a unit of that kind, got {value}")
        value = value.value_in_unit(wanted)
    allowed = f"a {'non-negative' if zero else 'positive'} number"
    if wanted != unit.dimensionless:
        allowed += f" of {wanted}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            value = float(value.__float__())  # numpy numbers
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"{name} must be {allowed}, got {value!r}") from None
    value = float(value)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number within bounds, numpy's included."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")
    return number


def _needs_novelty(model: ScoreModel) -> None:
    if model.novelty is None:
        raise ValueError(
            "maxNovelty needs a model that knows its training data, and this one carries no "
            "novelty statistics"
        )


def _jump_group(jumper: openmm.CustomIntegrator) -> int:
    """Force group of the jump: the one that the program's plain forces leave out."""
    groups = jumper.getIntegrationForceGroups() & 0xFFFFFFFF
    return next(g for g in range(32) if not groups >> g & 1)


def _digit(place: int) -> str:
    """Expression for a digit of the status, zero where it counts nothing."""
    low, high = STATUS_BASE**place, STATUS_BASE ** (place + 1)
    status = "max(sd_status,0)"
    return f"floor({status}/{low})-{STATUS_BASE}*floor({status}/{high})"


def _free_group(system: openmm.System) -> int:
    others = [force for force in system.getForces() if force.getName() != FORCE_NAME]
    used = {force.getForceGroup() for force in others}
    for force in others:
        if isinstance(force, openmm.NonbondedForce):
            used.add(force.getReciprocalSpaceForceGroup())
    for group in reversed(range(32)):
        if group not in used:
            return group
    raise ValueError(
        "system has no free force group: all of 0 to 31 are in use, and the jump needs one"
    )
