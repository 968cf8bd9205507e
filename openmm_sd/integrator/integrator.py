"""The integrator: ordinary molecular dynamics, and learned jumps of the solute in between."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import openmm
from openmm import unit

from ..bridges import BRIDGES, NotScriptable, choose_bridge, platform_names
from ..bridges.base import FORCE_NAME
from ..jump.jump import Jump, gates_of
from ..model.model import ScoreModel
from ..propagator.noise import MAX_SEED
from ..system.solute import Solute, find_solute
from .adjustable import NO_LIMIT
from .arguments import positive, whole
from .biases import refuse_biases
from .comparisons import DiffersFromModel, dry_run, other_system, other_temperature
from .notes import Note
from .programs import (
    ALL_REJECTIONS,
    BOLTZMANN,
    SETTINGS,
    STATE,
    carried_variables,
    free_group,
    jump_group,
)
from .stepping import SteppingIntegrator

# No all-atom MD makes steps as long as this, ps.
_LONG_STEP = 0.02


class ScoreDynamicsIntegrator(SteppingIntegrator):
    """Alternate bursts of Langevin dynamics with learned jumps of the solute.

    Ordinary MD steps are done by OpenMM's own LangevinMiddleIntegrator. When a burst is full and
    the next MD step is asked for, a learned kernel proposes where the solute will be one lag later.
    A proposal that passes the gates is applied, everything else gives way by a few small steps
    downhill and then by a short MD around the solute at rest, and the MD step draws all velocities
    anew. A proposal that fails, or to which the surroundings cannot give way, is taken back and
    drawn again, a limited number of times; then the jump is dropped and MD carries on. From a frame
    unlike those the model was trained on there is no jump: MD covers that lag instead. All of this
    is counted. One ``step()`` is one MD step, whatever happens before it, so reporters, barostats
    and step counts behave as with any other integrator.

    There is no Metropolis test: the ensemble that a mixed run samples is the model's as much as the
    force field's. Read the model card for its measured error.

    Methods in camelCase take Quantities, or bare numbers in OpenMM's units, and give Quantities;
    attributes like `burst_ps` are the same as floats. ``model.createIntegrator(system, topology)``
    makes an integrator that is attached already.

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
    system, topology : openmm.System, openmm.app.Topology or mdtraj.Topology, optional
        To attach the integrator at once, which otherwise is to be done before a Context is made.
    solute, platform
        Go with them; see `attach`.
    burst : Quantity or float, optional
        MD time between two jumps, ps. The card's recommendation by default. It is made a whole
        number of MD steps, the nearest; `getBurst` tells what is done.
    lag : Quantity or float, optional
        Physical time that one jump covers, ps. The card's recommendation by default.
    purpose : {"populations", "kinetics"}, optional
        What the run is for: lag, burst and settling of the schedule that the model's measurements
        say is good for it (``model.schedule(purpose)``), where none of them is given. With a `lag`
        of its own it changes nothing.
    bridge : {"auto", "native", "pythonforce", "torchforce"}
        How the kernel reaches OpenMM; "auto" takes the first that passes a real evaluation.
    seed : int, optional
        Up to 2**31 - 1. Fixes the noise of the jumps and of the Langevin dynamics. 0, the default,
        draws one at random, which `getRandomNumberSeed` tells; a copy then draws one of its own.
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
        neither as steps nor as time. 0 for none. Without surroundings there is none either. 1 ps
        by default, or what goes with `purpose`.
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
    allowBias : bool
        Accept forces on the solute that are none of its force field; see `attach`.

    Attributes
    ----------
    model : ScoreModel
        As given.
    solute : Solute or None
        The atoms that jump; known after `attach`.
    bridge : str
        Name of the bridge in use; "auto" until `attach` has chosen.
    md_time_ps, effective_time_ps, temperature_K, friction_per_ps, step_ps : float
        As floats what `getMDTime`, `getEffectiveTime` and so on give.
    burst_ps, lag_ps, settle_ps : float
        So with `getBurst`, `getLag` and `getSettleTime`.

    Examples
    --------
    >>> integrator = model.createIntegrator(system, topology, 300*kelvin, 1/picosecond,
    ...                                     2*femtoseconds, lag=100*picoseconds)
    >>> simulation = Simulation(topology, system, integrator)
    >>> simulation.step(50_000)

    The same in two steps:

    >>> integrator = ScoreDynamicsIntegrator(model, 300*kelvin, 1/picosecond, 2*femtoseconds)
    >>> integrator.attach(system, topology)
    >>> simulation = Simulation(topology, system, integrator)
    >>> simulation.step(50_000)

    Notes
    -----
    *Jumps.* The jump happens at the beginning of the first MD step after a full burst. So a
    reporter whose interval is the burst sees the ends of bursts, where the water has followed.
    Until that step the jump is only due (`isJumpDue`): no clock or counter knows of it, and a
    script that ends there has not made it. It starts from what is there when it is made, after
    ``setPositions`` or ``minimizeEnergy`` too. How the steps are divided among calls of ``step``
    changes nothing. Jump number k uses noise keyed by (seed, k, try), so it does not depend on
    platform or bridge.

    *Velocities.* The MD step after an accepted jump draws all velocities anew: those that you set
    while a jump is due are lost with it, and kept where it is dropped.

    *Resuming.* Clocks, counters and the position within a burst, a jump that is due included, are
    part of OpenMM's State (``integratorParameters=True``) and checkpoints. A checkpoint continues
    exactly where forces are deterministic (Reference platform). A State does not hold OpenMM's own
    random numbers, so after loading one the Langevin noise differs while the jumps' noise
    continues: the seed is part of both, and one given to the constructor gives way to it. One
    given to `setRandomNumberSeed` does not. XML of the integrator alone gives back a plain
    CompoundIntegrator: see `restore`.
    """

    def __init__(
        self,
        model: ScoreModel,
        temperature: Any = None,
        frictionCoeff: Any = None,
        stepSize: Any = None,
        *,
        system: openmm.System | None = None,
        topology: Any = None,
        solute: int | str | Sequence[int] | None = None,
        platform: str | openmm.Platform | None = None,
        burst: Any = None,
        lag: Any = None,
        purpose: str | None = None,
        bridge: str = "auto",
        seed: int | None = None,
        maxTries: int = 4,
        candidates: int = 4,
        settleSteps: int = 40,
        settleTime: Any = None,
        maxEnergyRise: Any = 200.0,
        maxEnergySigma: float | None = 4.0,
        maxNovelty: float | str | None = "card",
        strict: bool = False,
        allowBias: bool = False,
    ) -> None:
        if not isinstance(model, ScoreModel):
            raise ValueError(
                f"model must be a ScoreModel, got {type(model).__name__}; "
                "ScoreModel.load(...) gives one, ScoreModel(module, molecule) wraps a module"
            )
        if (system is None) != (topology is None):
            raise ValueError("give system and topology, or neither and call attach later")
        if system is None and not (solute is None and platform is None):
            raise ValueError("solute and platform go with system and topology")
        if bridge != "auto" and bridge not in list(BRIDGES):
            raise ValueError(f"bridge must be 'auto' or one of {sorted(BRIDGES)}, got {bridge!r}")
        card_temperature = 300.0 if model.temperature_K is None else model.temperature_K
        temperature = positive("temperature", temperature, unit.kelvin, card_temperature)
        friction = positive("frictionCoeff", frictionCoeff, unit.picosecond**-1, 1.0, zero=True)
        step = positive("stepSize", stepSize, unit.picosecond, 0.002)
        super().__init__(temperature, friction, step)
        self.model = model
        self.solute: Solute | None = None
        self.bridge = bridge
        self.strict = bool(strict)
        self._allow_bias = bool(allowBias)
        self._forces_seen = 0
        if step > _LONG_STEP:
            warnings.warn(
                f"stepSize is {1000 * step:g} fs; a bare number counts ps",
                UserWarning,
                stacklevel=2,
            )
        self.setMaxTries(maxTries)
        self.setCandidates(candidates)
        self.setSettleSteps(settleSteps)
        schedule = model.schedule(purpose)
        if lag is not None:
            schedule = model.schedule()  # the rest of a purpose's schedule goes with its lag
        self.setSettleTime(schedule.settle_ps if settleTime is None else settleTime)
        self.setMaxEnergyRise(maxEnergyRise)
        self.setMaxEnergySigma(maxEnergySigma)
        self.setMaxNovelty(maxNovelty)
        self.setBurst(schedule.burst_ps if burst is None else burst)
        self.setLag(schedule.lag_ps if lag is None else lag)
        self._use_seed(0 if seed is None else seed)
        for note in other_temperature(model, temperature):
            self._differs(note)
        if system is not None:
            self.attach(system, topology, solute, platform)

    # -- attaching -------------------------------------------------------------------------------

    def attach(
        self,
        system: openmm.System,
        topology: Any,
        solute: int | str | Sequence[int] | None = None,
        platform: str | openmm.Platform | None = None,
        *,
        allowBias: bool = False,
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
            The platform the Context will use, for ``bridge="auto"``; by default the one that
            OpenMM takes when it is left to choose.
        allowBias : bool
            Accept forces on the solute that are none of its force field: collective variables
            (metadynamics), restraints, alchemical parameters. Jumps know nothing of them and undo
            what they did. What is added after this call is looked at before the first step.

        Returns
        -------
        Solute
            What was found.

        Raises
        ------
        ValueError
            If the model, the Topology and the System do not fit each other, or the solute is
            biased.
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
        allowed = self._allow_bias or bool(allowBias)
        if not allowed:
            refuse_biases(system, found)
        # Of a family, the part that knows this molecule; put in place when nothing can fail.
        member = self.model.member(found.molecule)
        if self._get("max_novelty") < NO_LIMIT:
            _needs_novelty(member)
        dry_run(member, found, self._get("lag"))
        for note in other_system(member, found, system):
            self._differs(note)
        group = free_group(system)
        jump = Jump(
            member.propagator,
            found.molecule,
            gates_of(member, found.molecule),
            found.constraints,
            member.novelty,
        )
        bridge, force = self._make_force(
            jump, found.particles, system.usesPeriodicBoundaryConditions(), member.file, platform
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
        self._allow_bias, self._forces_seen = allowed, system.getNumForces()
        solute_particles = set(found.particles)
        self._add_programs(
            group,
            [
                openmm.Vec3(*[float(i not in solute_particles)] * 3)
                for i in range(system.getNumParticles())
            ],
        )
        return found

    def _check_context(self) -> None:
        super()._check_context()
        system = self._context().getSystem()
        # Metadynamics, for one, adds its force when it is made.
        later = system.getNumForces() != self._forces_seen
        if self.solute is not None and later and not self._allow_bias:
            refuse_biases(system, self.solute)

    def _make_force(
        self,
        jump: Jump,
        particles: Sequence[int],
        periodic: bool,
        file: str | None,
        platform: str | None,
    ) -> tuple[str, openmm.Force]:
        """The bridge to use and its force; "auto" passes over bridges that refuse the kernel."""
        refused: list[str] = []
        while True:
            auto = self.bridge == "auto"
            bridge = choose_bridge(platform, refused) if auto else self.bridge
            try:
                return bridge, BRIDGES[bridge].create_force(jump, particles, periodic, file)
            except NotScriptable:
                if not auto:
                    raise
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
        openmm-torch 1.10 crashes when a System with its force is copied or read from XML under
        OpenMM 8.6; without the force both work. `attach` of another integrator adds it again.
        """
        for index in reversed(range(system.getNumForces())):
            if system.getForce(index).getName() == FORCE_NAME:
                system.removeForce(index)

    # -- clocks and counters ---------------------------------------------------------------------

    def getMDTime(self) -> unit.Quantity:
        """Time covered by ordinary MD steps under this integrator."""
        return self.md_time_ps * unit.picosecond

    def getNumJumps(self) -> int:
        """Number of jumps that were accepted."""
        self._check_loaded()
        return int(self._get("accepted"))

    def getEffectiveTime(self) -> unit.Quantity:
        """MD time plus the lags of all accepted jumps."""
        return self.effective_time_ps * unit.picosecond

    def getStatistics(self) -> dict[str, Any]:
        """Counters and times; a jump that is due is in none of them.

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
        self._check_loaded()
        settled = self._get("settled")

        def mean(name: str) -> float | None:
            return self._get(name) / settled if settled else None

        return {
            "jumps_tried": int(self._get("tried")),
            "jumps_accepted": int(self._get("accepted")),
            "redraws": int(self._get("redraws")),
            "fallbacks": int(self._get("fallbacks")),
            "novel": int(self._get("novel")),
            "rejections": {name: int(self._get(f"rejected_{name}")) for name in ALL_REJECTIONS},
            "settle": {
                "steps": mean("settle_moves"),
                "energy_before_kJ_per_mol": mean("settle_before"),
                "energy_after_kJ_per_mol": mean("settle_after"),
                "time_ps": self._get("settle_time"),
            },
            "md_time_ps": self.md_time_ps,
            "effective_time_ps": self.effective_time_ps,
            "seconds": dict(self._seconds),
        }

    # -- settings --------------------------------------------------------------------------------

    def getTemperature(self) -> unit.Quantity:
        """Temperature of the heat bath."""
        return self.temperature_K * unit.kelvin

    def setTemperature(self, temperature: Any) -> None:
        """Set the temperature of the heat bath, K. The model keeps the one it was trained at."""
        value = positive("temperature", temperature, unit.kelvin)
        for note in other_temperature(self.model, value):
            self._differs(note)
        self._langevin.setTemperature(value)
        for program in (self._refresher, self._settler):
            if program is not None:
                program.setGlobalVariableByName("sd_kT", BOLTZMANN * value)
        if value != self._get("temperature"):
            self._set("energy_count", 0)  # the energies seen belong to another temperature
        self._set("temperature", value)

    def getLag(self) -> unit.Quantity:
        """Physical time that one jump covers."""
        return self.lag_ps * unit.picosecond

    def setLag(self, lag: Any) -> None:
        """Set the time that one jump covers, ps, within the range of the model's card."""
        value = positive("lag", lag, unit.picosecond)
        allowed = self.model.lag_range_ps
        if allowed is not None and not allowed[0] <= value <= allowed[1]:
            raise ValueError(
                f"lag must be between {allowed[0]:g} and {allowed[1]:g} ps for this model, "
                f"got {value:g} ps"
            )
        self._set("lag", value)

    def getMaxNovelty(self) -> float | None:
        """Novelty of a frame from which no jump is made any more; None for no limit."""
        return self._limit("max_novelty")

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
            self._set("max_novelty", NO_LIMIT)
            return
        value = score.threshold if score is not None and novelty == "card" else novelty
        self._set("max_novelty", positive("maxNovelty", value, unit.dimensionless))
        if not self.model.is_family:
            _needs_novelty(self.model)

    def getRandomNumberSeed(self) -> int:
        """Seed of the jumps and of the Langevin dynamics."""
        return self._own_seed or int(self._get("seed"))

    def setRandomNumberSeed(self, seed: int) -> None:
        """Set the seed, up to 2**31 - 1; 0 draws one at random.

        The jumps use it at once, and keep it whatever checkpoint or State is loaded, so that copies
        that start from one State go different ways. OpenMM's own random numbers take it when a
        Context is made, and a checkpoint brings its own.
        """
        self._use_seed(seed)
        self._own_seed = int(self._get("seed"))

    def _use_seed(self, seed: int) -> None:
        seed = whole("seed", seed, 0, MAX_SEED)
        self._random_seed = seed == 0
        seed = seed or random.SystemRandom().randint(1, MAX_SEED)
        self._langevin.setRandomNumberSeed(seed)
        for program in self._programs():
            program.setRandomNumberSeed(seed)
        self._set("seed", seed)

    # -- copies ----------------------------------------------------------------------------------

    def __copy__(self) -> ScoreDynamicsIntegrator:
        new = self._build(self.model, self._settings(), self.bridge, self.strict)
        new._novelty_of_card = self._novelty_of_card
        new._allow_bias, new._forces_seen = self._allow_bias, self._forces_seen
        if self._jumper is not None:
            new.solute = self.solute
            mobile = self._jumper.getPerDofVariableByName("sd_mobile")
            new._add_programs(jump_group(self._jumper), mobile)
        if self._random_seed:
            new._use_seed(0)
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
        allowBias: bool = False,
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
        bridge, strict, allowBias
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
        settings = carried_variables(jumper)
        if system is None and model.is_family:
            raise ValueError(
                "model must be that of the molecule which jumps, model.member(...), or system and "
                "topology must be given"
            )
        new = cls._build(model, settings, bridge, strict)
        if system is not None:
            new.attach(system, topology, solute, platform, allowBias=allowBias)
        else:
            new._add_programs(jump_group(jumper), jumper.getPerDofVariableByName("sd_mobile"))
        return new

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
                strict=strict,
            )
        new._novelty_of_card = False
        new.setConstraintTolerance(settings["tolerance"])
        for name in (*STATE, *SETTINGS):
            new._set(name, settings[name])
        return new

    def _differs(self, note: Note) -> None:
        """Say that the simulation is not what the model was made for, as loudly as asked for."""
        if self.strict:
            raise ValueError(note)
        warnings.warn(DiffersFromModel(note), stacklevel=3)


def _needs_novelty(model: ScoreModel) -> None:
    if model.novelty is None:
        raise ValueError(
            "maxNovelty needs a model that knows its training data, and this one carries no "
            "novelty statistics"
        )
