"""The driver of a mixed run: stepping, saving, stopping, going on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import app, unit

from ..bridges import platform_names
from ..files.folder import interrupts, locked
from ..files.trajectories import FORMATS
from ..integrator.integrator import ScoreDynamicsIntegrator
from ..integrator.notes import dropped_jumps, ensemble_notes
from ..integrator.reporter import ScoreDynamicsReporter
from ..jump.jump import ERRORS, Jump, JumpError
from ..model.model import ScoreModel, model_digest
from ..molecule.topology import subtopology
from ..prepare import PreparedSystem, read_prepared, write_prepared
from ..propagator.noise import MAX_SEED
from ..system.fitting import fitting_model
from ..system.force_field import water_box
from ..system.imaging import Imaging
from ..system.plain_md import PlainMD, ns_per_day
from ..system.platforms import platform_and_bridge
from ..system.prepared import prepared_sha256
from ..system.solute import find_solute
from ..version import versions
from .files import (
    CHECKPOINT,
    START,
    SUMMARY,
    TOPOLOGY,
    Checkpoint,
    Layout,
    Output,
    RunError,
    read_checkpoint,
)
from .settings import PRECISE_PLATFORMS, RunSettings
from .start import Source, build, force_field, model_mismatch, open_start, other_force_field

Report = Callable[[str, str], None]
Start = Any  # what `run_mixed` says

# Signals and the clock are looked at after so many MD steps at the latest.
_CHUNK_STEPS: Final = 50
# OpenMM's barostat tries to change the volume every so many MD steps.
_BAROSTAT_STEPS: Final = 25
# Frames in memory are written out early when they grow beyond this.
_MEMORY_BYTES: Final = 256 * 2**20
# Whoever waits for a run to work looks for its first frame: it is kept back no longer than this, s.
_FIRST_SECONDS: Final = 5.0
# Share of the time that goes to plain MD, to know its speed; steps of one stretch at least, and
# steps before the first, in which kernels are compiled and tuned.
_PLAIN_SHARE: Final = 0.02
_PLAIN_STEPS: Final = 20
_WARM_STEPS: Final = 10
# What the solute alone, in water already, and a prepared system have no use for.
_FOR_WATER: Final = ("waters", "padding_nm", "water_model")
_FOR_BUILDING: Final = ("force_field", "cutoff_nm", "equilibration_ps")
_BLOWN_UP: Final = (
    "going on would most likely repeat it: what may be needed is a smaller step, or a start that "
    "was minimised and equilibrated"
)
# Progress is told no more often than anyone reads, s.
_REPORT_SECONDS: Final = 0.2
_BAR: Final = 10
# The Reference platform has one stream of random numbers for all Contexts of a process.
_SHARED_STREAM: Final = "Reference"


def run_mixed(
    model: ScoreModel | str | os.PathLike[str] | None,
    start: Start,
    output: str | os.PathLike[str],
    settings: RunSettings,
    *,
    report: Report | None = None,
) -> dict[str, Any]:
    """Alternate MD bursts and learned jumps, and write what happens to a directory.

    Called again with the same arguments it goes on where a stopped or killed run was at its last
    checkpoint; with a greater length it extends a run. No frame or log line that was once in the
    directory is lost or altered. Where forces are deterministic (Reference platform, constant
    volume) the trajectory is to the last bit that of a run that was never stopped.

    Parameters
    ----------
    model : ScoreModel, str, PathLike or None
        A model, a shipped model's name or a bundle's path; None for the shipped model that fits.
    start : path or object
        A prepared directory (see `openmm_sd.system.prepared`); a PDB or mmCIF file of a complete
        solvated system with its box, or of the solute alone, which is completed and gets its
        water; a PreparedSystem, PreparedBox or ``openmm.app.Simulation``; or what
        `openmm_sd.prepare.prepare_system` takes: PDBFile, Modeller, ``mdtraj.Trajectory``.
    output : str or PathLike
        Directory, made where it does not exist; new, empty, or with a run of the same settings.
    settings : RunSettings
        How long, how, and what to save.
    report : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        What ``summary.json`` holds: the counters of `ScoreDynamicsIntegrator.getStatistics` over
        all parts of the run, ``effective_ns_per_day`` and ``md_ns_per_day`` (plain MD of the same
        system, measured beside the run; None where it could not be), ``complete``, ``frames``,
        ``wall_clock_s``, what was used, ``versions`` and ``notes`` in plain language.

    Raises
    ------
    ValueError
        If an argument is wrong, or the directory holds something else.
    RunError
        If the run cannot go on: a full disk, MD that blows up, a model that fails.
    KeyboardInterrupt
        On SIGINT or SIGTERM, after the checkpoint is written. A second signal stops at once.
    """
    say = report or (lambda what, how_far: None)
    plan = plan_run(model, start, settings, say)
    for note in plan.notes:
        say("note", note)
    folder = Path(output)
    with interrupts() as stopped, locked(folder, "run"):

        def say_or_stop(what: str, how_far: str) -> None:
            # Before the first checkpoint there is nothing to finish.
            say(what, how_far)
            if stopped():
                raise KeyboardInterrupt

        return _Run(plan, folder, say, say_or_stop, stopped)()


def plan_run(
    model: ScoreModel | str | os.PathLike[str] | None,
    start: Start,
    settings: RunSettings,
    say: Report,
) -> _Plan:
    """Decide all that was left open, and refuse what cannot be run; see `run_mixed`."""
    given = _model(model, say)
    source = open_start(start, force_field(settings, given))
    return _Plan(given or _fitting(source, say), source, settings)


def _model(model: ScoreModel | str | os.PathLike[str] | None, say: Report) -> ScoreModel | None:
    if model is None or isinstance(model, ScoreModel):
        return model
    say("loading the model", os.fspath(model))
    return ScoreModel.load(model)


def _fitting(source: Source, say: Report) -> ScoreModel:
    say("loading the model", "")
    try:
        return fitting_model(source.topology, source.implicit)
    except ValueError as error:
        raise model_mismatch(source, error) from None


@contextlib.contextmanager
def _noting(notes: list[str]) -> Iterator[None]:
    """Put warnings for users among the notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        text = " ".join(str(warning.message).split())
        note = f"{text[:1].upper()}{text[1:]}."
        if not issubclass(warning.category, UserWarning):
            warnings.warn_explicit(text, warning.category, warning.filename, warning.lineno)
        elif note not in notes:
            notes.append(note)


class _Plan:
    """Settings with all that was left open decided, as far as that needs no machine.

    Attributes
    ----------
    notes : list of str
        Where the simulation is not what the model was made for.
    """

    def __init__(self, model: ScoreModel, source: Source, settings: RunSettings) -> None:
        self.model = model
        self.source = source
        self.settings = settings
        self.notes: list[str] = []
        prepared = source.prepared
        self._refuse_idle_options()
        try:
            system = prepared.system if prepared is not None else None
            self.solute = find_solute(model.molecules, source.topology, system, settings.solute)
        except ValueError as error:
            raise model_mismatch(source, error) from None
        self.model = model = model.member(self.solute.molecule)
        self.step_ps = source.step_ps()
        if settings.step_fs is not None:
            self.step_ps = settings.step_fs / 1000.0
        temperature = settings.temperature_K
        if temperature is None and prepared is not None:
            temperature = prepared.temperature_K
        self.temperature = float(temperature or model.temperature or 300.0)
        self.force_field = force_field(settings, model)
        files = self.force_field if prepared is None else prepared.force_field
        if other := other_force_field(files, model, source.implicit):
            self.notes.append(other)
        # Refuses what an integrator refuses; another one is made for the run.
        with _noting(self.notes):
            integrator = self.integrator("auto", settings.seed)
        self.max_novelty = integrator.getMaxNovelty()
        self.lag_ps = integrator.getLag().value_in_unit(unit.picosecond)
        self.burst_ps = integrator.getBurst().value_in_unit(unit.picosecond)
        self.burst_steps = max(1, round(self.burst_ps / self.step_ps))
        self.every_steps = self.burst_steps
        if settings.every_ps is not None:
            if settings.every_ps < self.step_ps * (1.0 - 1e-6):
                raise ValueError(
                    f"every_ps must be at least one MD step of {self.step_ps:g} ps, got "
                    f"{settings.every_ps:g}"
                )
            self.every_steps = max(1, round(settings.every_ps / self.step_ps))
        self._check_system()
        self._check_hand()

    def integrator(self, bridge: str, seed: int) -> ScoreDynamicsIntegrator:
        """Make an integrator; the seed is that of this part of the run."""
        return ScoreDynamicsIntegrator(
            self.model,
            self.temperature,
            self.settings.friction_per_ps,
            self.step_ps,
            burst=self.settings.burst_ps,
            lag=self.settings.lag_ps,
            bridge=bridge,
            seed=seed,
            maxTries=self.settings.max_tries,
            candidates=self.settings.candidates,
            settleSteps=self.settings.settle_steps,
            settleTime=self.settings.settle_ps,
            maxEnergyRise=self.settings.max_energy_rise,
            maxEnergySigma=self.settings.max_energy_sigma,
            maxNovelty=self.settings.max_novelty,
        )

    def _refuse_idle_options(self) -> None:
        """Refuse what would change nothing: whoever gives it expects something else."""
        if self.source.prepared is not None:
            names: tuple[str, ...] = (*_FOR_WATER, *_FOR_BUILDING)
            reason = "a prepared system is taken as it is"
        elif self.source.solvated:
            names, reason = _FOR_WATER, f"{self.source.name} holds water already"
        else:
            return
        for name in names:
            if getattr(self.settings, name) != getattr(RunSettings, name):
                raise ValueError(f"{name} has no effect here: {reason}")

    def _check_hand(self) -> None:
        """Refuse the mirror image of what the model knows before anything is built."""
        prepared, topology = self.source.prepared, self.source.topology
        box = np.zeros((3, 3))
        if prepared is not None:
            if (
                prepared.box_vectors is not None
                and prepared.system.usesPeriodicBoundaryConditions()
            ):
                box = prepared.box_vectors
        elif self.source.solvated:
            box = np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
        jump = Jump(self.model.propagator, self.solute.molecule, ())
        if not jump.n_centres:
            return
        x = torch.from_numpy(self.source.positions[list(self.solute.particles)].copy())
        whole = jump.make_whole(x, torch.from_numpy(np.array(box, dtype=np.float64)))
        if bool(jump.relabel(whole.unsqueeze(0))[1][0]):
            raise ValueError(
                f"{self.source.name}: {ERRORS[103]} ({self.solute.description}): a D amino acid "
                "for an L one, say"
            )

    def _check_system(self) -> None:
        prepared = self.source.prepared
        if self.settings.pressure_bar is None or prepared is None:
            return
        if prepared.box_vectors is None or not prepared.system.usesPeriodicBoundaryConditions():
            raise ValueError("pressure_bar: a system without periodic boundaries has no pressure")
        kinds = [type(force).__name__ for force in prepared.system.getForces()]
        if any("Barostat" in kind for kind in kinds):
            raise ValueError("pressure_bar: the system has a barostat already")

    def identity(self) -> dict[str, Any]:
        """Return all that a run must keep when it goes on, as JSON gives it back."""
        settings = self.settings
        kept: dict[str, Any] = {
            "model": model_digest(self.model),
            "start": self.source.digest,
            "lag_ps": self.lag_ps,
            "burst_ps": self.burst_ps,
            "step_ps": self.step_ps,
            "temperature_K": self.temperature,
            "friction_per_ps": settings.friction_per_ps,
            "pressure_bar": settings.pressure_bar,
            "solute": settings.solute,
            "seed": settings.seed,
            "format": settings.format,
            "every_ps": self.every_steps * self.step_ps,
            "solute_only": settings.solute_only,
            "max_novelty": self.max_novelty,
            "max_tries": settings.max_tries,
            "candidates": settings.candidates,
            "settle_steps": settings.settle_steps,
            "settle_ps": settings.settle_ps,
            "max_energy_rise": settings.max_energy_rise,
            "max_energy_sigma": settings.max_energy_sigma,
        }
        if self.source.prepared is None:
            kept |= {
                "force_field": self.force_field,
                "cutoff_nm": settings.cutoff_nm,
                "equilibration_ps": settings.equilibration_ps,
            }
            if not self.source.solvated:
                kept |= {
                    "water_model": settings.water_model or water_box(self.force_field),
                    "waters": settings.waters,
                    "padding_nm": settings.padding_nm,
                }
        return json.loads(json.dumps(kept))

    def share(self, numbers: dict[str, Any]) -> float:
        """Return how much of the run is done; 1 when it is finished."""
        settings = self.settings
        if settings.jumps is not None:
            return numbers["jumps_tried"] / settings.jumps
        done, length = self._clock(numbers)
        return done / length

    def steps_left(self, numbers: dict[str, Any]) -> float:
        """Return after how many MD steps the run is finished if no jump comes before."""
        if self.settings.jumps is not None:
            return math.inf
        done, length = self._clock(numbers)
        return max(1, math.ceil((length - done) / self.step_ps))

    def _clock(self, numbers: dict[str, Any]) -> tuple[float, float]:
        """Return the time that counts and the length of the run, ps."""
        # Sums are rounded; a billionth is less than a step of any run.
        almost = 1.0 - 1e-9
        if self.settings.md_ps is not None:
            return numbers["md_time_ps"], almost * self.settings.md_ps
        assert self.settings.effective_ns is not None
        return numbers["effective_time_ps"], almost * 1000.0 * self.settings.effective_ns


class _Run:
    """A run and the directory it is written to."""

    def __init__(
        self,
        plan: _Plan,
        folder: Path,
        say: Report,
        say_or_stop: Report,
        stopped: Callable[[], bool],
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._say = say
        self._say_or_stop = say_or_stop
        self._stopped = stopped
        self._steps = 0
        self._wall = 0.0
        self._sampling = 0.0
        self._seconds: dict[str, float] = {}
        self._plain_ps = 0.0
        self._plain_seconds = 0.0
        self._parts = 0
        self._notes: list[str] = []
        self._precision: str | None = None

    def __call__(self) -> dict[str, Any]:
        plan, settings = self._plan, self._plan.settings
        self._began = self._session_began = time.monotonic()
        identity = plan.identity()
        # What a kill in the middle of writing has left; nobody else is at work here.
        for pattern in (".*.tmp", ".chunk.xtc", f"{START}/.*.tmp"):
            for file in self._folder.glob(pattern):
                file.unlink()
        checkpoint = read_checkpoint(self._folder)
        if checkpoint is not None:
            self._compare(checkpoint, identity)
            self._compare_start(checkpoint)
            self._take_up(checkpoint)
            if plan.share(checkpoint.state["numbers"]) >= 1.0:
                return self._finished(checkpoint)
        else:
            self._refuse_others()
        self._say_or_stop("trying the bridge", "")
        wanted = settings.platform
        if wanted is None and checkpoint is not None:
            # A run keeps its platform, where it is there.
            before = str(checkpoint.state["engine"]["platform"])
            wanted = before if before in platform_names() else None
        self._platform, self._bridge = platform_and_bridge(wanted, settings.bridge)
        if settings.precision is not None and self._platform not in PRECISE_PLATFORMS:
            raise ValueError(
                f"precision: the {self._platform} platform, which is the one that works here, "
                "has no choice of it"
            )
        self._prepared = self._start(identity)
        self._start_sha256 = prepared_sha256(self._folder / START)
        self._identity = identity
        self._set_up(checkpoint)
        self._sample()
        summary = self._summary(self._numbers())
        self._output.write(SUMMARY, _json(summary))
        if not summary["complete"]:
            self._say("stopped", "the same command goes on")
            raise KeyboardInterrupt
        self._say("done", f"files are in {self._folder}")
        return summary

    # -- before ----------------------------------------------------------------------------------

    def _refuse_others(self) -> None:
        mine = {START, TOPOLOGY}
        others = sorted(
            file.name
            for file in self._folder.iterdir()
            if not file.name.startswith(".") and file.name not in mine
        )
        if others:
            raise ValueError(
                f"output: {self._folder} holds files but no run ({', '.join(others[:4])}); give a "
                "new directory"
            )

    def _compare(self, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
        there = checkpoint.state["identity"]
        different = [
            f"{name} {there.get(name)!r} there, {identity.get(name)!r} here"
            for name in sorted({*there, *identity})
            if there.get(name) != identity.get(name)
        ]
        if different:
            raise ValueError(
                f"output: {self._folder} holds a run with other settings ({'; '.join(different)}); "
                "give a new directory"
            )

    def _compare_start(self, checkpoint: Checkpoint) -> None:
        folder = self._folder / START
        try:
            same = prepared_sha256(folder) == checkpoint.state["start_sha256"]
        except OSError:
            same = False  # a file is missing
        if not same:
            raise ValueError(
                f"output: {folder} was changed after the run was started, and the run is that of "
                "another system now; put it back, or give a new directory"
            )

    def _take_up(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self._steps = int(state["steps"])
        self._wall, self._sampling = float(state["wall_s"]), float(state["sampling_s"])
        self._seconds = dict(state["numbers"]["seconds"])
        self._plain_ps, self._plain_seconds = map(float, state["plain"])
        self._parts, self._notes = int(state["parts"]), list(state["notes"])

    def _finished(self, checkpoint: Checkpoint) -> dict[str, Any]:
        state = checkpoint.state
        self._output = Output(self._folder, Layout(**state["layout"]), checkpoint)
        self._output.recover(going_on=False)
        self._prepared = read_prepared(self._folder / START)
        engine = state["engine"]
        self._platform, self._bridge = engine["platform"], engine["bridge"]
        self._precision = engine["precision"]
        self._atoms = list(state["atoms"]) if state["atoms"] is not None else None
        self._output.publish(self._saved_topology(), complete=True)
        summary = self._summary(state["numbers"])
        self._output.write(SUMMARY, _json(summary))
        self._say("done before", f"{self._folder} holds this run already")
        return summary

    def _start(self, identity: dict[str, Any]) -> PreparedSystem:
        """Return the System to run; it is kept, because no box relaxes to the same place twice."""
        folder = self._folder / START
        if (folder / "prepared.json").exists():
            prepared = read_prepared(folder)
            if prepared.provenance.get("run") == identity:
                return prepared
        plan = self._plan
        prepared = build(
            plan.source,
            plan.settings,
            plan.force_field,
            plan.temperature,
            self._platform,
            self._say_or_stop,
        )
        kept = PreparedSystem(
            **{
                **{name: getattr(prepared, name) for name in prepared.__dataclass_fields__},
                "provenance": {**prepared.provenance, "run": identity},
            }
        )
        try:
            write_prepared(kept, folder)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunError(f"cannot write {folder}: {reason}; nothing has been run yet") from error
        return kept

    def _set_up(self, checkpoint: Checkpoint | None) -> None:
        """Make the Context and put it where the run stands."""
        plan, settings, prepared = self._plan, self._plan.settings, self._prepared
        properties = {}
        if self._platform in PRECISE_PLATFORMS:
            before = None if checkpoint is None else checkpoint.state["engine"]["precision"]
            self._precision = settings.precision or before or "mixed"
            properties = {"Precision": self._precision}
        system = openmm.XmlSerializer.clone(prepared.system)
        # Each part of a run has a seed of its own, in case the stream cannot be taken up.
        seed = _part_seed(settings.seed, self._steps)
        if settings.pressure_bar is not None:
            barostat = openmm.MonteCarloBarostat(
                settings.pressure_bar, plan.temperature, _BAROSTAT_STEPS
            )
            barostat.setRandomNumberSeed(seed)
            system.addForce(barostat)
        self._say_or_stop("measuring plain MD", "")
        self._plain: PlainMD | None = None
        self._measure(openmm.XmlSerializer.clone(system), properties)

        met: list[str] = []
        with _noting(met):
            integrator = plan.integrator(self._bridge, seed)
            solute = integrator.attach(
                system,
                prepared.topology,
                solute=list(plan.solute.particles),
                platform=self._platform,
            )
        for note in met:
            if note not in plan.notes and note not in self._notes:
                self._notes.append(note)
                self._say("note", note)
        self._simulation = app.Simulation(
            prepared.topology,
            system,
            integrator,
            openmm.Platform.getPlatformByName(self._platform),
            properties,
        )
        self._integrator = integrator
        context = self._context = self._simulation.context
        self._imaging: Imaging | None = None
        if prepared.box_vectors is not None:
            self._imaging = Imaging(context.getMolecules(), solute.particles)
            context.setPeriodicBoxVectors(*prepared.box_vectors)
        self._atoms = sorted(solute.particles) if settings.solute_only else None
        context.setPositions(prepared.positions)
        if prepared.velocities is not None:
            context.setVelocities(prepared.velocities)
        else:
            context.setVelocitiesToTemperature(plan.temperature, settings.seed)
        layout = Layout(
            settings.format,
            len(self._atoms) if self._atoms is not None else system.getNumParticles(),
            self._imaging is not None,
            plan.every_steps * plan.step_ps,
        )
        self._output = Output(self._folder, layout, checkpoint)
        if checkpoint is not None:
            self._load(checkpoint)
            self._output.recover(going_on=True)
        else:
            self._write_topology()
        self._parts += 1
        if checkpoint is None:
            self._commit()
        self._lines = io.StringIO()
        # Seconds start anew with each part of a run, and no two runs have the same.
        self._reporter = ScoreDynamicsReporter(
            self._lines, 1, append=self._output.has_lines, seconds=False
        )
        wanted = self._reporter.describeNextReport(self._simulation)["include"]
        self._wanted = {name: True for name in ("positions", *wanted)}

    def _load(self, checkpoint: Checkpoint) -> None:
        """Put the Context where the checkpoint was written, exactly where that is possible."""
        before = checkpoint.state["engine"]
        reason = ""
        for name, now in (("platform", self._platform), ("precision", self._precision)):
            if before[name] != now:
                reason = f"{before[name]} there, {now} here"
        if not reason:
            try:
                self._context.loadCheckpoint(checkpoint.openmm)
            except openmm.OpenMMException as error:
                reason = " ".join(str(error).split())
        if reason:
            # Another machine, platform or version of OpenMM.
            try:
                self._context.setState(openmm.XmlSerializer.deserialize(checkpoint.portable))
            except openmm.OpenMMException as error:
                raise RunError(
                    f"{self._folder / CHECKPOINT} cannot be taken up here: neither OpenMM's "
                    f"checkpoint ({reason}) nor the portable state "
                    f"({' '.join(str(error).split())}); {self._output.standing}: give the same "
                    "command on the machine, platform and version of OpenMM that wrote it, or a "
                    "new directory"
                ) from error
            note = (
                f"At MD step {self._steps} the run was taken up from its portable state "
                f"({reason}): from there on the Langevin noise is not that of a run without a stop."
            )
            self._notes.append(note)
            self._say("taken up elsewhere", note)
        if self._context.getStepCount() != self._steps:
            raise RunError(
                f"{self._folder / CHECKPOINT} does not fit itself: MD step "
                f"{self._context.getStepCount()} and {self._steps}"
            )

    # -- sampling --------------------------------------------------------------------------------

    def _sample(self) -> None:
        plan = self._plan
        last = said = self._session_began = time.monotonic()
        numbers = self._numbers()
        first, warned = plan.share(numbers), False
        while plan.share(numbers) < 1.0 and not self._stopped():
            self._advance(self._next(numbers) - self._steps)
            if (self._steps + 1) % plan.every_steps == 0:
                self._record()
            numbers = self._numbers()
            now = time.monotonic()
            if now - said >= _REPORT_SECONDS:
                self._say("running", self._progress(numbers, first))
                said = now
            if not warned and (complaint := dropped_jumps(numbers)):
                self._say("note", complaint)
                warned = True
            waiting = self._output.waiting_bytes
            if now - last >= plan.settings.checkpoint_seconds or waiting > _MEMORY_BYTES:
                self._commit()
                self._output.write(SUMMARY, _json(self._summary(numbers)))
                self._measure_again()
                last = time.monotonic()
            elif waiting and not self._output.frames and now - last >= _FIRST_SECONDS:
                self._commit()
        self._say("running", self._progress(numbers, first))
        self._commit()
        self._output.publish(self._saved_topology(), complete=plan.share(numbers) >= 1.0)

    def _next(self, numbers: dict[str, Any]) -> int:
        """Return the MD step to go to: the next at which anything may be due."""
        plan, here = self._plan, self._steps
        frame = ((here + 1) // plan.every_steps + 1) * plan.every_steps - 1
        burst = (here // plan.burst_steps + 1) * plan.burst_steps
        chunk = (here // _CHUNK_STEPS + 1) * _CHUNK_STEPS
        return int(min(frame, burst, chunk, here + plan.steps_left(numbers)))

    def _advance(self, steps: int) -> None:
        began = time.perf_counter()
        try:
            self._integrator.step(steps)
        except (openmm.OpenMMException, JumpError) as error:
            reason = " ".join(str(error).split())
            hint = "the same command goes on from there"
            # The start was no mirror image: MD has turned it inside out.
            if any(sign in reason for sign in ("NaN", ERRORS[103], ERRORS[104])):
                hint = _BLOWN_UP
            elif isinstance(error, JumpError):
                hint = "going on would most likely repeat it: the model is what failed"
            raise RunError(
                f"the run failed after MD step {self._steps}: {reason}; {self._output.standing}; "
                f"{hint}"
            ) from error
        finally:
            self._sampling += time.perf_counter() - began
        self._steps += steps

    def _record(self) -> None:
        """Take a frame and a log line."""
        began = time.perf_counter()
        state = self._context.getState(**self._wanted)
        # On a GPU this waits for the steps that were asked for.
        self._sampling += time.perf_counter() - began
        x = _positions(state)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        self._check(bool(np.isfinite(x).all()) and math.isfinite(energy))
        box = None
        if self._imaging is not None:
            box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value, dtype=np.float64)
            x = self._imaging(x, box)
        if self._atoms is not None:
            x = x[self._atoms]
        self._reporter.report(self._simulation, state)
        effective = self._integrator.getEffectiveTime().value_in_unit(unit.picosecond)
        self._output.add(x.astype(np.float32), effective, box, self._line())

    def _line(self) -> str:
        """Return what the reporter has written."""
        text = self._lines.getvalue()
        self._lines.seek(0)
        self._lines.truncate()
        return text

    def _check(self, fine: bool) -> None:
        if not fine:
            raise RunError(
                f"the MD blew up before step {self._steps}: positions or energy are not finite; "
                f"{self._output.standing}; {_BLOWN_UP}"
            )

    def _commit(self) -> None:
        state = self._context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )
        self._check(bool(np.isfinite(_positions(state)).all()))
        now = time.monotonic()
        self._wall += now - self._began
        self._began = now
        self._output.commit(
            {
                "identity": self._identity,
                "engine": {
                    "platform": self._platform,
                    "precision": self._precision,
                    "bridge": self._bridge,
                },
                "start_sha256": self._start_sha256,
                "steps": self._steps,
                "numbers": self._numbers(),
                "atoms": self._atoms,
                "wall_s": self._wall,
                "sampling_s": self._sampling,
                "plain": [self._plain_ps, self._plain_seconds],
                "parts": self._parts,
                "notes": self._notes,
            },
            self._context.createCheckpoint(),
            openmm.XmlSerializer.serialize(state),
        )

    def _numbers(self) -> dict[str, Any]:
        """Return the integrator's counters; times are those of all parts of the run."""
        numbers = self._integrator.getStatistics()
        numbers["seconds"] = {
            name: seconds + self._seconds.get(name, 0.0)
            for name, seconds in numbers["seconds"].items()
        }
        return _finite(numbers)

    # -- plain MD beside it ----------------------------------------------------------------------

    def _measure(self, system: openmm.System, properties: dict[str, str]) -> None:
        """Make the Context for plain MD, and the first stretch."""
        plan, prepared = self._plan, self._prepared
        try:
            self._plain = PlainMD(
                system,
                prepared.positions,
                prepared.box_vectors,
                temperature=plan.temperature,
                friction=plan.settings.friction_per_ps,
                step_ps=plan.step_ps,
                seed=plan.settings.seed,
                platform=self._platform,
                properties=properties,
            )
            blows_up = self._plain.blows_up(_WARM_STEPS)
        except openmm.OpenMMException:
            self._plain = None  # no memory for two; the run itself will say what is wrong, if it is
            return
        if blows_up:
            raise RunError(
                f"{plan.source.name}: plain MD blows up within {_WARM_STEPS} steps of "
                f"{1000.0 * plan.step_ps:g} fs from where the run starts: are there atoms that "
                "clash, or is the step too long?"
            )
        self._stretch()
        if self._platform == _SHARED_STREAM:
            self._plain = None

    def _measure_again(self) -> None:
        if self._plain is not None and self._plain_seconds < _PLAIN_SHARE * self._sampling:
            self._stretch()

    def _stretch(self) -> None:
        assert self._plain is not None
        budget = _PLAIN_SHARE * self._plan.settings.checkpoint_seconds
        until = time.monotonic() + budget
        try:
            while True:
                self._plain_seconds += self._plain.steps(_PLAIN_STEPS)
                self._plain_ps += _PLAIN_STEPS * self._plan.step_ps
                if time.monotonic() >= until or self._stopped():
                    return
        except openmm.OpenMMException:
            self._plain = None

    # -- what is told ----------------------------------------------------------------------------

    def _progress(self, numbers: dict[str, Any], first: float) -> str:
        share = min(1.0, self._plan.share(numbers))
        bar = ("#" * int(_BAR * share)).ljust(_BAR, "-")
        text = f"[{bar}] {100 * share:.1f} %"
        if self._sampling > 0:
            speed = ns_per_day(numbers["effective_time_ps"], self._sampling)
            text += f", {speed:.0f} effective ns/day"
        elapsed = time.monotonic() - self._session_began
        if share > first and elapsed > 0:
            text += f", {_duration((1.0 - share) * elapsed / (share - first))} left"
        return text + f", {numbers['jumps_accepted']}/{numbers['jumps_tried']} jumps"

    def _summary(self, numbers: dict[str, Any]) -> dict[str, Any]:
        plan, settings = self._plan, self._plan.settings
        now = time.monotonic()
        notes = ensemble_notes(
            plan.model, numbers, plan.lag_ps, plan.burst_ps, implicit=plan.source.implicit
        )
        complaint = dropped_jumps(numbers)
        mixed = ns_per_day(numbers["effective_time_ps"], self._sampling) if self._sampling else None
        plain = ns_per_day(self._plain_ps, self._plain_seconds) if self._plain_seconds else None
        return {
            **numbers,
            "effective_ns_per_day": mixed,
            "md_ns_per_day": plain,
            "complete": plan.share(numbers) >= 1.0,
            "frames": self._output.frames,
            "trajectory": FORMATS[settings.format],
            "every_ps": plan.every_steps * plan.step_ps,
            "atoms": self._prepared.system.getNumParticles(),
            "atoms_saved": self._output.layout.n_atoms,
            "solute": plan.solute.description,
            "solute_atoms": list(plan.solute.particles),
            "model": {"name": plan.model.name, "sha256": plan.model.sha256},
            "molecule": plan.solute.molecule.name,
            "start": plan.source.name,
            "force_field": list(self._prepared.force_field),
            "temperature_K": plan.temperature,
            "lag_ps": plan.lag_ps,
            "burst_ps": plan.burst_ps,
            "step_ps": plan.step_ps,
            "seed": settings.seed,
            "platform": self._platform,
            "precision": self._precision,
            "bridge": self._bridge,
            "parts": self._parts,
            "wall_clock_s": self._wall + now - self._began,
            "settings": asdict(settings),
            "versions": versions(),
            "notes": [
                *([complaint] if complaint else []),
                *plan.notes,
                *notes,
                "Speeds count MD, model and settling, without the writing of files. Plain MD was "
                "measured in short stretches on the same system and machine. Effective time is no "
                "MD time.",
                *self._notes,
            ],
        }

    def _saved_topology(self) -> app.Topology:
        topology = self._prepared.topology
        return topology if self._atoms is None else subtopology(topology, self._atoms)

    def _write_topology(self) -> None:
        x = self._prepared.positions
        if self._imaging is not None:
            assert self._prepared.box_vectors is not None
            x = self._imaging(x, self._prepared.box_vectors)
        if self._atoms is not None:
            x = x[self._atoms]
        text = io.StringIO()
        app.PDBFile.writeFile(self._saved_topology(), x * unit.nanometer, text, keepIds=True)
        self._output.write(TOPOLOGY, text.getvalue())


def _positions(state: openmm.State) -> NDArray[np.float64]:
    return np.array(state.getPositions(asNumpy=True)._value, dtype=np.float64)


def _finite(value: Any) -> Any:
    """Put None where a number is none, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _part_seed(seed: int, steps: int) -> int:
    """Return the seed of a part of a run that begins after so many MD steps."""
    if steps == 0:
        return seed
    digest = hashlib.sha256(f"{seed} {steps}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % MAX_SEED + 1


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60.0)
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=2, allow_nan=False) + "\n"
