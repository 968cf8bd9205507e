"""The driver of a mixed run: stepping, saving, stopping, going on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..bridges import platform_names
from ..files.atomic import finite, one_line, writing
from ..files.folder import check_folder, interrupts, locked, refuse_others, require_same, sweep
from ..files.trajectories import FORMATS
from ..integrator.notes import OTHER, Note, dropped_jumps, ensemble_notes, mismatches
from ..integrator.reporter import ScoreDynamicsReporter
from ..jump.jump import ERRORS, JumpError
from ..model.model import ScoreModel
from ..molecule.topology import pdb_text, subtopology
from ..prepare import PreparedSystem, read_prepared, write_prepared
from ..progress import Progress, silence
from ..propagator.noise import MAX_SEED
from ..system.imaging import Imaging
from ..system.plain_md import PlainMD, ns_per_day
from ..system.platforms import platform_and_bridge
from ..system.prepared import prepared_sha256
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
from .plan import Plan, Start, noting, plan_run
from .settings import PRECISE_PLATFORMS, RunSettings
from .start import build
from .status import FrameStatus

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
# The Reference platform has one stream of random numbers for all Contexts of a process.
_SHARED_STREAM: Final = "Reference"
_BLOWN_UP: Final = (
    "going on would most likely repeat it: what may be needed is a smaller step, or a start that "
    "was minimised and equilibrated"
)
# Progress is told no more often than anyone reads, s.
_REPORT_SECONDS: Final = 0.2
_BAR: Final = 10


def run_mixed(
    model: ScoreModel | str | os.PathLike[str] | None,
    start: Start,
    output: str | os.PathLike[str],
    settings: RunSettings,
    *,
    progress: Progress | None = None,
    stopped: Callable[[], bool] | None = None,
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
    progress : callable, optional
        Called with what is being done and how far it is.
    stopped : callable, optional
        Whether to stop; by default that is up to SIGINT and SIGTERM, of which a second one stops at
        once.

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
        If stopped, after the checkpoint is written.
    """
    say = progress or silence
    folder = Path(output)
    check_folder(folder)
    plan = plan_run(model, start, settings, say)
    for note in plan.notes:
        say("note", note)
    say("plan", plan.schedule().text)
    asked = interrupts() if stopped is None else contextlib.nullcontext(stopped)
    with asked as stop, locked(folder, "run"):
        return _Run(plan, folder, say, stop)()


class _Run:
    """A run and the directory it is written to."""

    def __init__(
        self, plan: Plan, folder: Path, say: Progress, stopped: Callable[[], bool]
    ) -> None:
        self._plan, self._folder = plan, folder
        self._say, self._stopped = say, stopped
        self._steps = 0
        self._wall = 0.0
        self._sampling = 0.0
        self._seconds: dict[str, float] = {}
        self._plain = _PlainBeside(plan, stopped)
        self._parts = 0
        self._notes: list[Note] = []
        self._precision: str | None = None

    def __call__(self) -> dict[str, Any]:
        plan, settings = self._plan, self._plan.settings
        self._began = self._session_began = time.monotonic()
        identity = plan.identity()
        sweep(self._folder / START)
        checkpoint = read_checkpoint(self._folder)
        if checkpoint is not None:
            there = checkpoint.state["identity"]
            require_same(f"output: {self._folder} holds a run", there, identity)
            self._compare_start(checkpoint)
            self._take_up(checkpoint)
            if plan.share(checkpoint.state["numbers"]) >= 1.0:
                return self._finished(checkpoint)
        else:
            refuse_others(self._folder, "run", {START, TOPOLOGY}.__contains__)
        self._say_or_stop("trying the bridge", "")
        wanted = settings.platform
        if wanted is None and checkpoint is not None:
            # A run keeps its platform, where it is there.
            before = str(checkpoint.state["engine"]["platform"])
            wanted = before if before in platform_names() else None
        self._platform, self._bridge = platform_and_bridge(wanted, settings.bridge, self._say)
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
        self._output.write(SUMMARY, summary)
        if not summary["complete"]:
            self._say("stopped", "the same command resumes the run")
            raise KeyboardInterrupt
        self._say("done", f"files are in {self._folder}")
        return summary

    def _say_or_stop(self, what: str, how_far: str) -> None:
        """Before the first checkpoint there is nothing to save: a stop takes effect at once."""
        self._say(what, how_far)
        if self._stopped():
            raise KeyboardInterrupt

    # -- before ----------------------------------------------------------------------------------

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
        self._plain.ps, self._plain.seconds = map(float, state["plain"])
        self._parts = int(state["parts"])
        kinds = {text: kind for kind, text in state.get("mismatches", ())}
        self._notes = [Note(kinds.get(text, OTHER), text) for text in state["notes"]]

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
        self._output.write(SUMMARY, summary)
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
        kept = replace(prepared, provenance={**prepared.provenance, "run": identity})
        with writing(folder, "nothing has been run yet", RunError):
            write_prepared(kept, folder)
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
        self._plain.begin(openmm.XmlSerializer.clone(system), prepared, self._platform, properties)

        met: list[Note] = []
        with noting(met):
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
        framed = (0, 0, 0) if checkpoint is None else checkpoint.state["framed"]
        self._status = FrameStatus(plan.model, solute, framed)
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
                reason = one_line(error)
        if reason:
            # Another machine, platform or version of OpenMM.
            try:
                self._context.setState(openmm.XmlSerializer.deserialize(checkpoint.portable))
            except openmm.OpenMMException as error:
                raise RunError(
                    f"{self._folder / CHECKPOINT} cannot be taken up here: neither OpenMM's "
                    f"checkpoint ({reason}) nor the portable state "
                    f"({one_line(error)}); {self._output.standing}: give the same "
                    "command on the machine, platform and version of OpenMM that wrote it, or a "
                    "new directory"
                ) from error
            note = Note(
                OTHER,
                f"At MD step {self._steps} the run was taken up from its portable state "
                f"({reason}): from there on the Langevin noise is not that of a run without a "
                "stop.",
            )
            self._notes.append(note)
            self._say("taken up elsewhere", note)
        if self._context.getStepCount() != self._steps:
            raise RunError(
                f"{self._folder / CHECKPOINT} does not fit itself: MD step "
                f"{self._context.getStepCount()} and {self._steps}"
            )
        try:
            self._integrator.getStatistics()
        except RuntimeError:
            raise ValueError(
                f"output: {self._folder} holds a run that another version of openmm-sd has begun, "
                "which this one cannot go on with; give a new directory"
            ) from None

    # -- sampling --------------------------------------------------------------------------------

    def _sample(self) -> None:
        plan = self._plan
        last = said = self._session_began = time.monotonic()
        numbers = self._numbers()
        first, warned = plan.share(numbers), False
        while plan.share(numbers) < 1.0 and not self._stopped():
            self._advance(self._next(numbers) - self._steps)
            if self._steps % plan.every_steps == 0:
                self._record()
            # At once, so that a run can end with it.
            self._go(self._integrator.makeDueJump)
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
                self._output.write(SUMMARY, self._summary(numbers))
                self._plain.go_on(self._sampling)
                last = time.monotonic()
            elif waiting and not self._output.frames and now - last >= _FIRST_SECONDS:
                self._commit()
        self._say("running", self._progress(numbers, first))
        self._commit()
        self._output.publish(self._saved_topology(), complete=plan.share(numbers) >= 1.0)

    def _next(self, numbers: dict[str, Any]) -> int:
        """Return the MD step to go to: the next at which anything may be due."""
        plan, here = self._plan, self._steps
        frame = (here // plan.every_steps + 1) * plan.every_steps
        burst = (here // plan.burst_steps + 1) * plan.burst_steps
        chunk = (here // _CHUNK_STEPS + 1) * _CHUNK_STEPS
        return int(min(frame, burst, chunk, here + plan.steps_left(numbers)))

    def _advance(self, steps: int) -> None:
        self._go(lambda: self._integrator.step(steps))
        self._steps += steps

    def _go(self, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        try:
            work()
        except (openmm.OpenMMException, JumpError) as error:
            reason = one_line(error)
            hint = "the same command resumes from there"
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

    def _record(self) -> None:
        """Take a frame and a log line."""
        began = time.perf_counter()
        state = self._context.getState(**self._wanted)
        # On a GPU this waits for the steps that were asked for.
        self._sampling += time.perf_counter() - began
        x = _positions(state)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        self._check(bool(np.isfinite(x).all()) and math.isfinite(energy))
        jumped = x[list(self._plan.solute.particles)]
        box = None
        if self._imaging is not None:
            box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value, dtype=np.float64)
            x = self._imaging(x, box)
        if self._atoms is not None:
            x = x[self._atoms]
        self._reporter.report(self._simulation, state)
        effective = self._integrator.getEffectiveTime().value_in_unit(unit.picosecond)
        status = self._status(jumped, box, self._integrator)
        line = self._status.in_log(self._line(), status)
        self._output.add(x.astype(np.float32), effective, box, status, line)

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
        numbers = self._numbers()
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
                "numbers": numbers,
                "atoms": self._atoms,
                "framed": self._status.before,
                "wall_s": self._wall,
                "sampling_s": self._sampling,
                "plain": [self._plain.ps, self._plain.seconds],
                "parts": self._parts,
                "notes": self._notes,
                "mismatches": [(note.kind, note) for note in mismatches(self._told(numbers))],
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
        return finite(numbers)

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
        plan, settings, plain = self._plan, self._plan.settings, self._plain
        now = time.monotonic()
        mixed = ns_per_day(numbers["effective_time_ps"], self._sampling) if self._sampling else None
        return {
            **numbers,
            "effective_ns_per_day": mixed,
            "md_ns_per_day": ns_per_day(plain.ps, plain.seconds) if plain.seconds else None,
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
            "schedule": plan.schedule().as_json(),
            "step_ps": plan.step_ps,
            "seed": settings.seed,
            "platform": self._platform,
            "precision": self._precision,
            "bridge": self._bridge,
            "parts": self._parts,
            "wall_clock_s": self._wall + now - self._began,
            "settings": asdict(settings),
            "versions": versions(),
            "notes": self._told(numbers),
        }

    def _told(self, numbers: dict[str, Any]) -> list[Note]:
        """Return what a reader of the numbers has to know."""
        plan, complaint = self._plan, dropped_jumps(numbers)
        return [
            *([complaint] if complaint else []),
            *plan.notes,
            *ensemble_notes(
                plan.model, numbers, plan.lag_ps, plan.burst_ps, implicit=plan.source.implicit
            ),
            Note(
                OTHER,
                "Speeds count MD, model and settling, without the writing of files. Plain MD was "
                "measured in short stretches on the same system and machine. Effective time is no "
                "MD time.",
            ),
            *self._notes,
        ]

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
        self._output.write(TOPOLOGY, pdb_text(self._saved_topology(), x))


class _PlainBeside:
    """Plain MD of the same system and machine in short stretches: how far it got, and how long."""

    def __init__(self, plan: Plan, stopped: Callable[[], bool]) -> None:
        self._plan, self._stopped = plan, stopped
        self._md: PlainMD | None = None
        self.ps = self.seconds = 0.0

    def begin(
        self,
        system: openmm.System,
        prepared: PreparedSystem,
        platform: str,
        properties: dict[str, str],
    ) -> None:
        """Make the Context and the first stretch; RunError if that blows up."""
        plan = self._plan
        try:
            self._md = PlainMD(
                system,
                prepared.positions,
                prepared.box_vectors,
                temperature=plan.temperature,
                friction=plan.settings.friction_per_ps,
                step_ps=plan.step_ps,
                seed=plan.settings.seed,
                platform=platform,
                properties=properties,
            )
            blows_up = self._md.blows_up(_WARM_STEPS)
        except openmm.OpenMMException:
            self._md = None  # no memory for two; the run itself will say what is wrong, if it is
            return
        if blows_up:
            raise RunError(
                f"{plan.source.name}: plain MD blows up within {_WARM_STEPS} steps of "
                f"{1000.0 * plan.step_ps:g} fs from where the run starts: are there atoms that "
                "clash, or is the step too long?"
            )
        self._stretch(self._md)
        if platform == _SHARED_STREAM:
            self._md = None

    def go_on(self, sampling: float) -> None:
        """Make another stretch, if its share of so many seconds is not used up."""
        if self._md is not None and self.seconds < _PLAIN_SHARE * sampling:
            self._stretch(self._md)

    def _stretch(self, md: PlainMD) -> None:
        until = time.monotonic() + _PLAIN_SHARE * self._plan.settings.checkpoint_seconds
        try:
            while True:
                self.seconds += md.steps(_PLAIN_STEPS)
                self.ps += _PLAIN_STEPS * self._plan.step_ps
                if time.monotonic() >= until or self._stopped():
                    return
        except openmm.OpenMMException:
            self._md = None


def _positions(state: openmm.State) -> NDArray[np.float64]:
    return np.array(state.getPositions(asNumpy=True)._value, dtype=np.float64)


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
