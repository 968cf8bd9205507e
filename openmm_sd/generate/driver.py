"""Molecular dynamics of a solute, run by run, to a data set: what ``openmm-sd generate`` does."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.dataset import Dataset, Run, described, read_dataset, restore, write_dataset
from ..files.atomic import check_target
from ..files.folder import interrupts, require_same
from ..molecule.molecule import Molecule
from ..molecule.torsions import TorsionAtoms, check_torsions, parse_torsion, slow_torsions
from ..progress import Progress, silence
from ..settings import check_number, check_whole
from ..system.platforms import md_platform
from ..system.solute import torsion_terms
from ..version import __version__
from ..workers.schedule import Pool, share_out
from ..workers.shares import cores
from .dynamics import Machine, Task, task_name
from .engines import run_maker, settled_engine
from .parts import ATTEMPTS, Parts, describe
from .peptides import REMARKS, unusual
from .pool import DaskWorkers, local_processes
from .settings import AMOUNTS, GenerateSettings
from .start import Plan, Start, make_start, read_solute

if TYPE_CHECKING:
    from ..workers.cluster import Where


def generate(
    structure: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: GenerateSettings | None = None,
    *,
    torsions: Sequence[str | TorsionAtoms] = (),
    goals: ArrayLike | None = None,
    name: str | None = None,
    platform: str | None = None,
    processes: int | None = None,
    threads: int | None = None,
    gmx: str | None = None,
    minutes: float | None = None,
    save_seconds: float = 30.0,
    force: bool = False,
    progress: Progress | None = None,
    dask: Where | None = None,
) -> dict[str, Any]:
    """Make a data set by molecular dynamics, or go on with one.

    Parameters
    ----------
    structure : path
        PDB or mmCIF file of the solute, alone and with hydrogens.
    output : path
        The data set. While it is under way, a folder with ``.parts`` added to its name holds what
        there is; called again with the same arguments, the function goes on from there.
    settings : GenerateSettings, optional
        How much is made and how.
    torsions : sequence of str or of four int, optional
        Torsions that seeded runs are spread over; by default those of `slow_torsions`.
    goals : array, shape (seeded runs * copies, torsions), optional
        Where seeded runs begin, rad; spread evenly by default.
    name : str, optional
        What people call the molecule; its residues by default.
    platform : str, optional
        OpenMM platform: a GPU's if there is one, else CPU; Reference for implicit solvent.
    processes : int, optional
        How many runs are made at the same time: by default one on a GPU, else one a core.
    threads : int, optional
        Of each run on CPUs: by default one with GROMACS, else as many as leave no core idle.
    gmx : str, optional
        The program of GROMACS, ``gmx`` by default.
    minutes : float, optional
        Stop after this wall time, and write what there is.
    save_seconds : float
        Each run is saved this often; a kill loses no more.
    force : bool
        Whether to replace an existing data set.
    progress : callable, optional
        Called with what is being done and how far it is.
    dask : str, int, distributed.Client or cluster, optional
        Have the runs made by the workers of a Dask cluster: ``"local"`` or a number of workers for
        one that is started here, with a worker a GPU or else a core; the address or the file of a
        scheduler; or an object of Dask. Workers hand their pieces in, and this process writes them.

    Returns
    -------
    dict
        ``path``, ``runs``, ``frames``, ``ns``, ``atoms``, ``seconds``, ``ns_per_day``, ``sha256``,
        ``complete``, ``stopped`` (by Ctrl-C), ``left_out`` (runs that blew up twice),
        ``platform``, ``processes`` and the ``provenance``.

    Raises
    ------
    ValueError
        If the input cannot be used, or parts were made with other settings.
    KeyboardInterrupt
        If stopped before there was anything to write.
    """
    settings = settings or GenerateSettings()
    say = progress or silence
    target = Path(output)
    check_target(target)
    check_whole("processes", processes)
    check_whole("threads", threads)
    check_number("minutes", minutes, "minutes")
    check_number("save_seconds", save_seconds, "s")
    topology, positions = read_solute(Path(structure), settings)
    residues = name or "-".join(residue.name for residue in topology.residues())
    molecule = Molecule.from_topology(topology, positions - positions.mean(axis=0), residues)
    chosen = [
        parse_torsion(t if isinstance(t, str) else ",".join(map(str, t)), molecule)
        for t in torsions
    ] or slow_torsions(molecule)
    check_torsions(chosen, settings.seeded_runs)
    points = _checked_goals(goals, settings, len(chosen))
    parts = Parts(target.with_name(f"{target.name}.parts"))
    solute = topology, positions
    settings = settled_engine(settings, parts, target, solute, platform, gmx, dask, say)
    on_workers, elsewhere = platform, False
    if dask is not None:
        from ..workers.cluster import local_workers

        elsewhere, processes = local_workers(dask, processes)
    # Workers elsewhere may have platforms that this machine has not.
    gromacs, implicit = settings.engine == "gromacs", settings.solvent == "implicit"
    platform = "CPU" if gromacs else md_platform(None if elsewhere else platform, implicit)
    processes, threads = _shared(processes, threads, platform, settings)
    machine = Machine(platform, threads, save_seconds, gmx)
    for what, where in unusual(molecule).items():
        say("warning", f"{', '.join(where)} {REMARKS[what]}")
    identity = describe(settings, molecule, chosen, points)
    if not parts.started and target.exists() and not force:
        return _already(target, identity, settings)
    parts.folder.mkdir(exist_ok=True)
    lock = parts.lock()
    try:
        if parts.started:
            parts.check(identity)
        else:
            parts.settle(identity)
        with interrupts() as signalled:
            stop = _Stop(signalled, minutes)
            start = _start(
                parts, topology, positions, molecule, settings, chosen, machine, stop, say
            )
            plan = Plan(start, settings, chosen, points)
            job = _Job(parts, plan, machine, processes, stop, say)

            def makers() -> Pool[Task] | None:
                if dask is not None:
                    where = on_workers if elsewhere else platform
                    count = None if elsewhere else processes
                    return DaskWorkers(dask, parts, plan, where, save_seconds, count)
                count = min(processes, len(job.open))
                return None if count < 2 else local_processes(parts, plan, machine, count, lock)

            if job.open and not stop():
                job.work(makers())
        return _collect(job, target, identity, stop)
    finally:
        os.close(lock)


def _checked_goals(
    goals: ArrayLike | None, settings: GenerateSettings, torsions: int
) -> NDArray[np.float64] | None:
    if goals is None:
        return None
    points = np.asarray(goals, dtype=np.float64)
    wanted = (settings.seeded_runs * settings.copies, torsions)
    if points.shape != wanted or not np.isfinite(points).all():
        raise ValueError(f"goals must be finite numbers of shape {wanted}, got {points.shape}")
    return points


class _Stop:
    """Whether to stop: Ctrl-C or SIGTERM came (`signalled`), or time is up."""

    def __init__(self, signalled: Callable[[], bool], minutes: float | None) -> None:
        self.signalled = signalled
        self._end = None if minutes is None else time.monotonic() + 60.0 * minutes

    def __call__(self) -> bool:
        return self.signalled() or (self._end is not None and time.monotonic() > self._end)


def _shared(
    wanted: int | None, threads: int | None, platform: str, settings: GenerateSettings
) -> tuple[int, int]:
    """Return how many processes there are, and threads in each."""
    tasks = len(settings.tasks())
    if threads is None and settings.engine == "gromacs":
        threads = 1  # so small a system gains more from a second run
    if wanted is None:
        wanted = max(1, cores() // (threads or 1)) if platform in ("CPU", "Reference") else 1
    processes = min(wanted, tasks)
    return processes, threads or max(1, cores() // processes)


def _start(
    parts: Parts,
    topology: Any,
    positions: Any,
    molecule: Molecule,
    settings: GenerateSettings,
    torsions: list[TorsionAtoms],
    machine: Machine,
    stop: _Stop,
    say: Progress,
) -> Start:
    def say_and_stop(what: str, how_far: str) -> None:
        say(what, how_far)
        if stop.signalled():  # nothing is lost that was kept: there is no start yet
            raise KeyboardInterrupt

    start = parts.load_start()
    if start is not None:
        return start
    try:
        if settings.engine == "gromacs":
            from . import gromacs

            start = gromacs.make_start(
                *(topology, positions, molecule, settings, gromacs.find_gromacs(machine.gmx)),
                *(machine.threads, parts.folder / "gromacs", say_and_stop),
            )
        else:
            start = make_start(
                *(topology, positions, molecule, settings, torsions, machine.platform, cores()),
                say_and_stop,
            )
        parts.save_start(start)
    except BaseException:
        # Nothing was made yet: what was refused must not stand in the way of what follows.
        parts.remove()
        raise
    return start


class _Job:
    """All the runs, shared out among processes."""

    def __init__(
        self,
        parts: Parts,
        plan: Plan,
        machine: Machine,
        processes: int,
        stop: _Stop,
        say: Progress,
    ) -> None:
        self.parts, self.plan, self.machine = parts, plan, machine
        self.processes, self.stop, self.say = processes, stop, say
        settings, copies = plan.settings, len(plan.start.solutes)
        self.total_ps = 0.0
        self.made_ps = 0.0
        self.open: list[Task] = []
        for kind, index in settings.tasks():
            length, spacing = settings.frames(kind), settings.spacing_ps
            done = min(length, parts.frames(task_name(kind, index)))
            failed = parts.attempt(task_name(kind, index)) >= ATTEMPTS
            self.total_ps += copies * spacing * (length - 1)
            self.made_ps += copies * spacing * (length - 1 if failed else max(0, done - 1))
            if done < length and not failed:
                self.open.append((kind, index))
        self._before_ps = self.made_ps
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time since the runs began."""
        return time.monotonic() - self._began

    @property
    def ns_per_day(self) -> float:
        """How fast, of all runs together."""
        return (self.made_ps - self._before_ps) / 1000.0 / max(self.seconds, 1e-9) * 86400.0

    def work(self, pool: Pool[Task] | None) -> None:
        """Make what is missing, until it is made or time to stop; without a pool, here."""
        if pool is not None:
            self._share_out(pool)
            return
        make_run = run_maker(self.plan.settings.engine)
        for task in self.open:
            if self.stop():
                return
            make_run(self.parts, self.plan, task, self.machine, self.stop, self._tell, self._warn)

    def _tell(self, ps: float) -> None:
        self.made_ps += ps
        made = self.made_ps - self._before_ps
        left = "" if made <= 0 else _clock((self.total_ps - self.made_ps) / made * self.seconds)
        self.say(
            "generating",
            f"{self.made_ps / 1000:.3f} of {self.total_ps / 1000:g} ns, "
            f"{self.ns_per_day:.1f} ns/day, {left} left",
        )

    def _warn(self, text: str) -> None:
        self.say("warning", text)

    def _share_out(self, pool: Pool[Task]) -> None:
        error: dict[str, Any] | None = None
        self.processes = 1

        def hear(task: Task, event: dict[str, Any]) -> None:
            nonlocal error
            if "ps" in event:
                self._tell(float(event["ps"]))
            if "warn" in event:
                self._warn(event["warn"])
            if "lost" in event:
                self._warn(f"{task_name(*task)}: its process ended; another takes over")
            if "error" in event and error is None:
                named = {"error": f"{task_name(*task)}: {event['error']}"}
                error = event if "kind" in event else named

        def look(waiting: int) -> None:
            self.processes = max(self.processes, pool.slots)
            if waiting and not pool.slots:
                self.say("waiting for workers", f"{waiting} runs to make")

        share_out(
            self.open, pool, hear, stopped=lambda: error is not None or self.stop(), look=look
        )
        if error is not None:
            kind = OSError if error.get("kind") == "OSError" else RuntimeError
            raise kind(error["error"])


# -- the data set --------------------------------------------------------------------------------


def _collect(job: _Job, target: Path, identity: dict[str, Any], stop: _Stop) -> dict[str, Any]:
    """Write the data set from the parts, complete or not."""
    parts, settings = job.parts, job.plan.settings
    seconds, speed = job.seconds, job.ns_per_day
    job.say("writing", str(target))
    steps = np.zeros(2)
    platforms: set[str] = set()
    complete = True
    for kind, index in settings.tasks():
        task = task_name(kind, index)
        complete &= parts.attempt(task) >= ATTEMPTS or parts.frames(task) >= settings.frames(kind)
        for path in parts.chunks(task):
            meta = parts.load_chunk(path).meta
            steps += meta["steps"], meta["seconds"]
            platforms.add(meta["platform"])
    if not platforms:
        if stop.signalled():
            raise KeyboardInterrupt
        raise RuntimeError(
            "nothing was made: every run blew up; is the structure sound, and the time step short?"
            if complete
            else f"there was no time for a single run; {parts.folder} holds the start"
        )
    failures = parts.failures()
    left_out = sorted(task for task, reasons in failures.items() if len(reasons) >= ATTEMPTS)
    provenance = _provenance(job, platforms, steps, identity)
    provenance |= {"complete": complete, "left_out": left_out, "made_again": len(failures)}
    write_dataset(target, job.plan.start.molecule, _runs(parts, settings), provenance)
    if complete:
        parts.remove()
    return _result(read_dataset(target), target) | {
        "seconds": seconds,
        "ns_per_day": speed,
        "complete": complete,
        "stopped": stop.signalled(),
        "platform": ", ".join(sorted(platforms)),
        "processes": job.processes,
    }


def _runs(parts: Parts, settings: GenerateSettings) -> Iterator[Run]:
    for kind, index in settings.tasks():
        task = task_name(kind, index)
        chunks = [parts.load_chunk(path) for path in parts.chunks(task)]
        if not chunks:
            continue
        frames = np.concatenate([chunk.frames for chunk in chunks])
        for copy in range(frames.shape[1]):
            info: dict[str, Any] = {
                "seed": chunks[0].meta["seed"],
                "seeds": sorted({chunk.meta["seed"] for chunk in chunks}),
                "complete": len(frames) >= settings.frames(kind),
            }
            if "start_deg" in chunks[0].meta:
                info["start_deg"] = chunks[0].meta["start_deg"][copy]
            several = frames.shape[1] > 1
            if several:
                info["copy"] = copy
            name = f"{task}-{copy:04d}" if several else task
            yield Run(name, kind, restore(frames[:, copy]), settings.spacing_ps, info)


def _provenance(
    job: _Job, platforms: set[str], steps: Any, identity: dict[str, Any]
) -> dict[str, Any]:
    import openmm

    settings, start = job.plan.settings, job.plan.start
    explicit = settings.solvent == "explicit"
    engine = {
        "engine": f"OpenMM {openmm.Platform.getOpenMMVersion()}",
        "integrator": "LangevinMiddleIntegrator",
    }
    if settings.engine == "gromacs":
        from . import gromacs

        engine = gromacs.provenance(job.parts.folder / "gromacs")
    return {
        **engine,
        "force_field": list(settings.force_field),
        "water": settings.water_model if explicit else "implicit",
        "waters": start.waters,
        "box_nm": None if start.cell_nm is None else [round(float(e), 6) for e in start.cell_nm],
        "copies": settings.copies,
        "temperature_K": settings.temperature_K,
        "friction_per_ps": settings.friction_per_ps,
        "step_fs": settings.step_fs,
        "hydrogen_mass_amu": settings.hydrogen_mass_amu,
        "cutoff_nm": settings.cutoff_nm if explicit else None,
        "electrostatics": "PME" if explicit else "none beyond implicit solvent, no cutoff",
        "constraints": "HBonds",
        "constraint_lengths_nm": start.constraints(),
        "torsion_terms": torsion_terms(start.system, start.solutes[0]),
        "seed": settings.seed,
        "torsions": identity["torsions"],
        **{key: identity[key] for key in ("goals",) if key in identity},
        "platform": sorted(platforms),
        "steps_per_s": round(float(steps[0] / max(steps[1], 1e-9)), 1),
        **unusual(start.molecule),
        "versions": {
            "openmm-sd": __version__,
            "openmm": openmm.Platform.getOpenMMVersion(),
            "numpy": np.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "",
        "generate": _asked_for(identity, settings),
    }


def _asked_for(identity: dict[str, Any], settings: GenerateSettings) -> dict[str, Any]:
    return {**identity["settings"], **{name: getattr(settings, name) for name in AMOUNTS}}


def _already(target: Path, identity: dict[str, Any], settings: GenerateSettings) -> dict[str, Any]:
    """Answer for a data set that is complete, if it is the one that was asked for."""
    dataset = read_dataset(target)
    require_same(
        f"{target} exists and was",
        {
            **(dataset.provenance.get("generate") or {}),
            "molecule": dataset.molecule.to_dict(),
            "torsions": dataset.provenance.get("torsions"),
            "goals": dataset.provenance.get("goals"),
        },
        {
            **_asked_for(identity, settings),
            "molecule": identity["molecule"],
            "torsions": identity["torsions"],
            "goals": identity.get("goals"),
        },
        "choose another name, or replace it (--force)",
    )
    if not dataset.provenance.get("complete"):
        raise ValueError(
            f"{target} is not complete and the folder with its parts, {target.name}.parts, is "
            "gone: choose another name, or make it again (--force)"
        )
    return _result(dataset, target)


def _result(dataset: Dataset, target: Path) -> dict[str, Any]:
    return {
        **described(dataset, target),
        "left_out": dataset.provenance.get("left_out", []),
        # Of a data set that was there already.
        "seconds": 0.0,
        "ns_per_day": None,
        "complete": True,
        "stopped": False,
        "platform": None,
        "processes": 0,
    }


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
