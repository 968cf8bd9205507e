"""What OpenMM's own integrators cannot do: three programs, and the table of their variables.

One program jumps, settles or takes back, one makes the MD step after a jump, one lets everything
but the solute settle. Their variables have the prefix `PREFIX`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import openmm
from openmm import unit

from ..bridges.base import ATTEMPT, CANDIDATES, FORCE_NAME, LAG, NOVELTY, NUMBER, SEED
from ..jump.jump import REJECTIONS, STATUS_BASE

#: Boltzmann's constant, kJ/mol/K.
BOLTZMANN = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)

#: Names under which settled jumps are counted that raised the system's energy too far: above what
#: MD itself reaches, and by more than the surroundings of the solute can owe.
ENERGY, ENERGY_RISE = "energy", "energy_rise"

#: All gates: of the frame, and of the settled system.
ALL_REJECTIONS = (*REJECTIONS.values(), ENERGY, ENERGY_RISE)

#: Of every variable of the jump program: context parameters share their namespace.
PREFIX = "sd_"

#: Everything that a restart needs lives in global variables of the jump program, because OpenMM
#: carries those in States and checkpoints. Name -> value at the start.
STATE: dict[str, float] = {
    # Steps are counted rather than times added: the sum's last digits would depend on where a run
    # was interrupted.
    "md_steps": 0.0,  # steps of ordinary MD done under this integrator, of the present size
    "md_earlier": 0.0,  # ps of ordinary MD done in steps of another size
    # MD steps since the last jump; with a whole burst of them the next one is due.
    "burst_done": 0.0,
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
    **{f"rejected_{name}": 0.0 for name in ALL_REJECTIONS},
}

#: What the user chose; variables of the program as well.
SETTINGS = (
    "temperature", "friction", "step", "burst", "lag", "seed", "max_tries", "candidates",
    "max_rise", "max_sigma", "max_novelty", "settle_steps", "settle_ps", "enabled", "tolerance",
)  # fmt: skip
# What only lives while the program runs: its switches, and what it finds.
_SCRATCH = (
    "jumping", "settling", "looking", "returning", "number",
    "tries", "drawn", "status", "ok", "again", "back", "energy", "energy_before", "rise",
)  # fmt: skip
# OpenMM's checkpoints hold variables by their place and not by name. The first and the last one are
# this number, so that a checkpoint of another version shows. To be changed with what they mean.
_LAYOUT_NAMES = ("layout", "layout_again")
_MEANING = "a jump begins the step after its burst"
LAYOUT = float(zlib.crc32(",".join((_MEANING, *STATE, *SETTINGS, *_SCRATCH)).encode()))

#: Settling ends when the energy is within this of what it was, kJ/mol: ten kT. A step of a box of
#: water takes some tens, so that the energy ends on either side of the old one, and a jump that
#: changes next to nothing moves no water at all.
SETTLE_TARGET = 25.0
# Settling: nm that a particle moves per kJ/mol/nm of force, and at most, a coordinate and step. In
# a box of 1,903 atoms five such steps took the water around a jumped alanine dipeptide from 205
# kJ/mol above its energy to 85 below; steps seven times longer heated the box.
_SETTLE_RATE = 3e-7
_SETTLE_LIMIT = 0.005
# Friction of the MD in which everything but the solute settles, 1/ps.
_SETTLE_FRICTION = 1.0
# Two positions closer than this, nm, differ by rounding.
_SAME_PLACE = 1e-4


def carried_variables(jumper: openmm.CustomIntegrator) -> dict[str, float]:
    """Return the variables of a jump program, which may come from XML, by name.

    Raises
    ------
    ValueError
        If it is that of another version.
    """
    found = {
        jumper.getGlobalVariableName(i).removeprefix(PREFIX): jumper.getGlobalVariable(i)
        for i in range(jumper.getNumGlobalVariables())
    }
    missing = [name for name in (*STATE, *SETTINGS) if name not in found]
    if missing or any(found.get(name) != LAYOUT for name in _LAYOUT_NAMES):
        raise ValueError(
            "integrator is not one that this version of openmm-sd wrote"
            + (f": it lacks {missing}" if missing else "")
        )
    return found


def check_layout(jumper: openmm.CustomIntegrator) -> None:
    """Notice a checkpoint whose variables are others than this version's."""
    if any(jumper.getGlobalVariableByName(PREFIX + name) != LAYOUT for name in _LAYOUT_NAMES):
        raise RuntimeError(
            "the checkpoint or State that was loaded is of another version of openmm-sd, whose "
            "variables mean something else; make a new integrator and Context"
        )


def write_jump(
    jumper: openmm.CustomIntegrator,
    variables: dict[str, float],
    group: int,
    mobile: Sequence[openmm.Vec3],
) -> None:
    """Write the program that jumps, settles or takes back, as its switches say.

    The parts stand in this order because no ConstrainPositions may follow the jump: on GPU
    kernels a position written before one is only stored, and forces would be evaluated at the
    old place.
    """
    jumper.addGlobalVariable(PREFIX + _LAYOUT_NAMES[0], LAYOUT)
    for name, value in variables.items():
        jumper.addGlobalVariable(PREFIX + name, value)
    for name in _SCRATCH:
        jumper.addGlobalVariable(PREFIX + name, 0.0)
    jumper.addGlobalVariable(PREFIX + _LAYOUT_NAMES[1], LAYOUT)
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
    downhill = f"sd_settling*step(sd_rise-{SETTLE_TARGET})*sd_mobile*{bounded}"
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


def write_refresh(refresher: openmm.CustomIntegrator, temperature: float) -> None:
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


def write_settle(
    settler: openmm.CustomIntegrator, temperature: float, mobile: Sequence[openmm.Vec3]
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


def _digit(place: int) -> str:
    """Expression for a digit of the status, zero where it counts nothing."""
    low, high = STATUS_BASE**place, STATUS_BASE ** (place + 1)
    status = "max(sd_status,0)"
    return f"floor({status}/{low})-{STATUS_BASE}*floor({status}/{high})"


def jump_group(jumper: openmm.CustomIntegrator) -> int:
    """Return the force group of the jump: the one that the program's plain forces leave out."""
    groups = jumper.getIntegrationForceGroups() & 0xFFFFFFFF
    return next(g for g in range(32) if not groups >> g & 1)


def free_group(system: openmm.System) -> int:
    """Return a force group that no force but an earlier jump's has."""
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
