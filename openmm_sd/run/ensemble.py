"""Several copies of a mixed run, at the same time, and what they say together.

`run_ensemble` makes N runs that differ in their seeds, each in a process of its own and in an
ordinary run's directory: ``DIR/run-000``, ``DIR/run-001``, ... . ``DIR/ensemble.json`` has what
`merge_runs` makes of them: counters added up, and populations with errors from independent runs.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..analysis.figures import Baseline, durations
from ..analysis.sample import Sample
from ..analysis.timeline import Timeline, mean_error, visits
from ..files.atomic import write_json
from ..files.folder import check_folder, interrupts, locked, refuse_others
from ..model.model import ScoreModel, model_digest
from ..prepare import PreparedSystem, read_prepared, write_prepared
from ..progress import Progress, silence
from ..settings import MAX_SEED, check_whole
from ..system.prepared import prepared_sha256
from ..workers.processes import ProcessPool
from ..workers.schedule import share_out
from ..workers.shares import shares
from .files import START, SUMMARY, RunError
from .plan import Start, plan_run
from .record import RunRecord, read_run
from .report.page import compared_with
from .settings import RunSettings

#: The file with what all runs say together.
ENSEMBLE: Final = "ensemble.json"
_MODEL: Final = "model.safetensors"
_NAME: Final = re.compile(r"run-\d{3,}")
_SEED: Final = 1

#: Counters and clocks of single runs that are added up.
_SUMMED: Final = (
    "jumps_tried",
    "jumps_accepted",
    "redraws",
    "fallbacks",
    "novel",
    "md_time_ps",
    "effective_time_ps",
    "frames",
)


def run_ensemble(
    model: ScoreModel | str | os.PathLike[str] | None,
    start: Start,
    output: str | os.PathLike[str],
    settings: RunSettings,
    copies: int,
    *,
    devices: Sequence[str] | None = None,
    processes: int | None = None,
    reports: bool = False,
    reference: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make several copies of a mixed run, with different seeds, and merge what they say.

    Called again with the same arguments it goes on where it was; with more copies or a greater
    length it extends the ensemble.

    Parameters
    ----------
    model, start, settings
        As for `openmm_sd.run.run_mixed`. Copy k has the seed ``settings.seed + k``. From a file
        each copy builds and relaxes a box of its own; from a prepared system all start at the same
        place, with other noise. Objects are written to the directory first, so that other
        processes can read them; of the starts only prepared systems can be.
    output : str or PathLike
        Directory, made where it does not exist; new, empty, or with an ensemble.
    copies : int
        How many.
    devices : sequence of str, optional
        GPUs, as in ``CUDA_VISIBLE_DEVICES``: one copy at a time on each. By default all that
        PyTorch sees, unless `settings` name a platform without.
    processes : int, optional
        How many copies run at the same time; by default one a GPU, or else one a core.
    reports : bool
        Whether each copy gets its ``report.html``.
    reference : sequence of str or PathLike
        For these reports, and for the basins of the merged populations.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        What ``ensemble.json`` holds: that of `merge_runs`, and ``failed``: why copies could not go
        on, by name.

    Raises
    ------
    ValueError
        If an argument is wrong, or the directory holds something else.
    KeyboardInterrupt
        On SIGINT or SIGTERM, after all copies have written their checkpoints.
    """
    say = progress or silence
    check_whole("copies", copies)
    if settings.seed + copies - 1 > MAX_SEED:
        raise ValueError(f"seed: the last of {copies} copies would have one above {MAX_SEED}")
    for name, value in (("processes", processes), ("devices", devices)):
        if value is not None and not value:
            raise ValueError(f"{name} must name at least one, got {value!r}")
    environments = _environments(settings, copies, devices, processes)
    folder = Path(output)
    check_folder(folder)
    plan = plan_run(model, start, settings, say)
    with interrupts() as stopped, locked(folder, "ensemble"):
        known = {ENSEMBLE, START, _MODEL}
        refuse_others(folder, "ensemble", lambda name: name in known or _NAME.fullmatch(name))
        named = _model_path(model, folder)
        job = {
            "model": named,
            "start": _start_path(start, plan.source.prepared, folder),
            "report": reports,
            "reference": [os.fspath(path) for path in reference],
        }
        crew = _Crew(folder, job, settings, copies, say, stopped)
        crew.work(environments)
        say("merging", f"{copies} runs")
        names = [name for name in crew.names if (folder / name / SUMMARY).is_file()]
        if not names:
            if stopped():
                raise KeyboardInterrupt
            raise RunError(next(iter(crew.failed.values()), "no copy has got to its first step"))
        folders = [folder / name for name in names]
        try:
            merged = merge_runs(folders, model=named, reference=reference)
        except (ValueError, OSError) as error:
            if not reference:
                raise
            merged = merge_runs(folders, model=named)
            merged["notes"].append(f"Not compared with the reference: {error}")
            say("note", merged["notes"][-1])
        merged["copies"] = copies
        merged["complete"] = merged["complete"] and len(names) == copies
        merged["failed"] = crew.failed
        write_json(folder / ENSEMBLE, merged)
        if stopped():
            raise KeyboardInterrupt
        return merged


def _environments(
    settings: RunSettings, copies: int, devices: Sequence[str] | None, processes: int | None
) -> list[dict[str, str]]:
    """Return the environment of each of the copies that run at the same time."""
    if settings.platform in ("CPU", "Reference"):
        if devices is not None:
            raise ValueError(f"devices are GPUs, and platform is {settings.platform}")
        devices = []
    found = shares(processes, devices)
    return found if len(found) <= copies else shares(copies, devices)


def _model_path(model: ScoreModel | str | os.PathLike[str] | None, folder: Path) -> str | None:
    """Return what other processes can load the model by."""
    if model is None or not isinstance(model, ScoreModel):
        return None if model is None else os.fspath(model)
    file = folder / _MODEL
    if not file.exists():
        model.save(file)
    elif model_digest(ScoreModel.load(file)) != model_digest(model):
        raise ValueError(f"output: {folder} holds an ensemble of another model; give a new one")
    return str(file)


def _start_path(start: Start, prepared: PreparedSystem | None, folder: Path) -> str:
    """Return what other processes can read the start from."""
    if isinstance(start, (str, os.PathLike)):
        return os.fspath(start)
    if prepared is None:
        raise ValueError(
            "start: copies run in processes of their own: give a file, a prepared directory, or a "
            f"prepared system, got {type(start).__name__}"
        )
    kept = folder / START
    if (kept / "prepared.json").exists():
        fresh = folder / f".{START}"
        write_prepared(prepared, fresh)
        same = prepared_sha256(fresh) == prepared_sha256(kept)
        for file in fresh.iterdir():
            file.unlink()
        fresh.rmdir()
        if not same:
            raise ValueError(f"output: {folder} holds an ensemble with another start")
    else:
        write_prepared(prepared, kept)
    read_prepared(kept)
    return str(kept)


@dataclass
class _Crew:
    """The processes that make the copies; `failed` says by name why some could not go on."""

    folder: Path
    job: dict[str, Any]
    settings: RunSettings
    copies: int
    say: Progress
    stopped: Callable[[], bool]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the copies' directories."""
        return [f"run-{k:03d}" for k in range(self.copies)]

    def work(self, environments: list[dict[str, str]]) -> None:
        """Make all copies, so many at the same time as there are environments."""
        pool = ProcessPool("openmm_sd.run.worker", environments, self._order)
        waiting, noted = self.copies, set[str]()
        wrong: str | None = None

        def look(count: int) -> None:
            nonlocal waiting
            waiting = count

        def hear(k: int, event: dict[str, Any]) -> None:
            nonlocal wrong
            name = self.names[k]
            if "lost" in event:
                self.say("note", f"{name}: its process ended ({event['lost']}); another takes over")
            elif "error" in event:
                self.failed[name] = event["error"]
                if "kind" in event:
                    self.say("note", f"{name}: {event['error']}")
                if event.get("kind") == "ValueError":
                    wrong = wrong or f"{name}: {event['error']}"
            elif event.get("what") == "note":
                if event["how_far"] not in noted:
                    noted.add(event["how_far"])
                    self.say("note", event["how_far"])
            elif "what" in event:
                done = self.copies - waiting - pool.busy
                where = f"{name}: {event['what']} {event['how_far']}".strip()
                self.say("running", f"{done} of {self.copies} copies done; {where}")

        def stopped() -> bool:
            return self.stopped() or wrong is not None

        share_out(range(self.copies), pool, hear, stopped=stopped, look=look)
        if wrong is not None:
            raise ValueError(wrong)

    def _order(self, k: int) -> dict[str, Any]:
        settings = asdict(replace(self.settings, seed=self.settings.seed + k))
        return {**self.job, "output": str(self.folder / self.names[k]), "settings": settings}


# -- together --------------------------------------------------------------------------------------


def merge_runs(
    folders: Sequence[str | os.PathLike[str]],
    *,
    model: ScoreModel | str | os.PathLike[str] | None = None,
    reference: Sequence[str | os.PathLike[str]] = (),
) -> dict[str, Any]:
    """Say what several runs of the same solute have found together.

    Parameters
    ----------
    folders : sequence of str or PathLike
        The runs' directories; the runs may be finished or not.
    model : ScoreModel, str or PathLike, optional
        The model of the runs, whose frames say where basins are; a shipped one is found by itself.
        Without frames the runs' own do.
    reference : sequence of str or PathLike
        MD that says it instead, see `openmm_sd.data.reference.read_reference`.

    Returns
    -------
    dict
        The counters and clocks of the runs' summaries, added up; ``complete``;
        ``effective_ns_per_day`` and ``md_ns_per_day`` (means over the runs; each of one copy beside
        the others); ``populations``: by state ``value`` (mean over the runs, by their effective
        times), ``error`` (its standard error from the differences between runs; None with a single
        run or where all runs say the same), ``runs`` (each run's own) and ``visits``; ``crossings``
        between basins, added up; ``runs``: of each run its folder, seed and main figures.

    Raises
    ------
    ValueError
        If a directory holds no run, or the runs are not of one molecule, model, force field,
        temperature, lag and burst.
    """
    records = [read_run(folder) for folder in folders]
    if not records:
        raise ValueError("there are no runs to merge")
    first = records[0]
    for record in records:
        if record.molecule.to_dict()["bonds"] != first.molecule.to_dict()["bonds"]:
            raise ValueError(
                f"{record.folder} is a run of another molecule ({record.molecule.name}) than "
                f"{first.folder} ({first.molecule.name})"
            )
        for (name, here), there in zip(
            _kind(record.summary).items(), _kind(first.summary).values(), strict=True
        ):
            # A model that was made in Python has no file.
            if here != there and None not in (here, there):
                raise ValueError(
                    f"{record.folder} and {first.folder} are no runs of one kind: {name} "
                    f"{here} and {there}"
                )
    summaries = [record.summary for record in records]
    merged: dict[str, Any] = {name: sum(s[name] for s in summaries) for name in _SUMMED}
    for name in ("rejections", "seconds"):
        merged[name] = dict(sum((Counter(s[name]) for s in summaries), Counter()))
        merged[name] = {key: merged[name].get(key, 0) for key in summaries[0][name]}
    for name in ("effective_ns_per_day", "md_ns_per_day"):
        known = [s[name] for s in summaries if s[name] is not None]
        merged[name] = sum(known) / len(known) if known else None
    merged["complete"] = all(s["complete"] for s in summaries)
    merged |= {name: first.summary[name] for name in ("lag_ps", "temperature_K")}
    merged |= _together(records, model, reference)
    merged["notes"] = list(dict.fromkeys(note for s in summaries for note in s["notes"]))
    merged["runs"] = [
        {
            "folder": record.folder.name,
            **{
                name: record.summary[name]
                for name in ("seed", "complete", *_SUMMED, "effective_ns_per_day", "platform")
            },
        }
        for record in records
    ]
    return merged


def _kind(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what runs must have in common for their statistics to be of one ensemble."""
    return {
        "model": summary["model"]["sha256"],
        "force field": summary["force_field"],
        "temperature (K)": summary["temperature_K"],
        "lag (ps)": summary["lag_ps"],
        "burst (ps)": summary["burst_ps"],
    }


def _together(
    records: Sequence[RunRecord],
    model: ScoreModel | str | os.PathLike[str] | None,
    reference: Sequence[str | os.PathLike[str]],
) -> dict[str, Any]:
    """Return populations and crossings."""
    seen = [record for record in records if record.n_frames]
    chosen, comparison, _ = compared_with(records[0], model, reference)
    if not chosen or not seen:
        return {"populations": {}, "crossings": {}}
    nothing = np.zeros(0, dtype=np.int64)
    angles = [record.look(chosen, nothing)[0] for record in seen]
    sample = comparison.sample if comparison else Sample.from_runs(angles, 1.0)
    baseline = Baseline.of(records[0].molecule, chosen, sample, _SEED)
    # By the time that the frames stand for.
    times = [float(record.times_ps[-1]) for record in seen]
    crossed = durations(baseline.partitions, angles)
    populations: dict[str, Any] = {}
    for partition in baseline.partitions:
        states = [partition.inside(one) for one in angles]
        for name in states[0]:
            inside = [of_run[name].astype(np.int64) for of_run in states]
            populations[name] = population(
                [Timeline(record.times_ps) for record in seen], inside, times
            )
    return {
        "populations": populations,
        "crossings": {" -> ".join(pair): len(frames) for pair, frames in crossed.items()},
    }


def population(
    timelines: Sequence[Timeline], inside: Sequence[NDArray[np.int64]], times_ps: Sequence[float]
) -> dict[str, Any]:
    """Return ``value``, ``error``, ``runs`` and ``visits`` of a state, see `merge_runs`.

    For each run: when its frames are, whether each is in the state (1 or 0), and its length, ps.
    """
    weights = np.array(times_ps, dtype=np.float64)
    own = np.array(
        [
            one.grouped(where, 2, 1)[0, 1] / one.weights.sum()
            for one, where in zip(timelines, inside, strict=True)
        ]
    )
    value = float((own * weights).sum() / weights.sum())
    error = float(mean_error((own * weights)[:, None], weights)[0])
    return {
        "value": value,
        "error": error if math.isfinite(error) and error > 0 else None,
        "runs": own.tolist(),
        "visits": int(sum(visits(where, 2)[1] for where in inside)),
    }
