"""A loop of chains, MD where they go, training and comparison: what ``openmm-sd adapt`` does.

Round k compares model k with MD that it was not trained on, made where its chains go, and trains
model k + 1 on all MD so far. Model 0 is the one that is adapted; without one there is none, and the
first MD is spread evenly. Everything is in a folder beside the bundle, from which it goes on.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import read_dataset
from ..files.atomic import file_sha256, finite, read_arrays, write_arrays, write_json
from ..files.folder import locked
from ..generate.driver import generate
from ..model.model import ScoreModel
from ..progress import Progress, silence
from ..train.driver import check_bundle_path
from ..validate.settings import ValidateSettings
from .explore import chain_settings, explore
from .laws import compare_laws, hold, in_words
from .page import write_page
from .record import Record
from .settings import AdaptSettings
from .subject import Subject
from .tuning import stage_settings, train_halves, train_on

#: Share of a round's time that is for MD, exploring before it and comparing with it.
_MD_SHARE: Final = 0.4
#: Shares of that for exploring and for comparing with it; the rest is for MD.
_EXPLORE_SHARE, _COMPARE_SHARE = 0.12, 0.25
#: Share of the time of training that each of the two short ones has.
_HALF_SHARE: Final = 0.1
#: Runs of MD that a round needs: fewer give no error.
_FEWEST_RUNS: Final = 4
_MOST_RUNS: Final = 1000
_FIRST_RUNS: Final = 200
#: Draws of the one-step test at each lag.
_FEWEST_DRAWS, _MOST_DRAWS = 128, 4096
#: A training shorter than this is none, minutes.
_LEAST_MINUTES: Final = 0.03

TARGETS: Final = "the one-step laws are those of MD within the tolerance"
SPENT: Final = "the budget, or its last round, is spent"


def adapt(
    model: str | os.PathLike[str] | None,
    structure: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: AdaptSettings | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a model of a molecule, from one that serves it or from nothing.

    Called again with the same arguments it goes on where it was stopped or killed; with a larger
    budget it goes on where the smaller one was spent.

    Parameters
    ----------
    model : str or PathLike, or None
        Bundle or name of a model whose network is transferable. With `from_scratch` it says only
        how its MD was made, and may be None.
    structure : path
        PDB or mmCIF file of the molecule, alone and with hydrogens.
    output : path
        The bundle, with the ending ``.safetensors``. The folder of that name with ``.adapt`` added
        has the MD, the state, and the report.
    settings : AdaptSettings, optional
        How.
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        ``bundle``, ``sha256``, ``finished`` (why), ``targets_hold``, ``rounds``, ``ns``,
        ``seconds``, ``core_hours`` (of MD, training, comparing), and ``report``.

    Raises
    ------
    ValueError
        If the input does not fit, the budget is too small for one round, or the folder holds
        something else.
    KeyboardInterrupt
        When the user stops it.
    """
    settings = settings or AdaptSettings()
    say = progress or silence
    output = Path(output)
    check_bundle_path(output)
    folder = output.with_name(output.name + ".adapt")
    if output.exists() and not folder.is_dir():
        raise ValueError(f"output: {output} exists; choose another name, or remove it")
    say("reading", str(structure))
    source = None if model is None else os.fspath(model)
    subject = Subject.read(source, Path(structure), settings)
    with locked(folder, "adaptation"):
        record = Record(folder, subject.identity(settings))
        return _Loop(record, subject, settings, output, say).run()


class _Loop:
    """An adaptation under way."""

    def __init__(
        self,
        record: Record,
        subject: Subject,
        settings: AdaptSettings,
        output: Path,
        say: Progress,
    ) -> None:
        self.record, self.subject, self.settings = record, subject, settings
        self.folder, self.output = record.folder, output
        self.say = record.ticking(say)
        #: Trainings that the budget is shared out to.
        self.planned = settings.rounds

    @property
    def left(self) -> float:
        """What is left of the budget, s."""
        return self.settings.budget_s - self.record.seconds

    def run(self) -> dict[str, Any]:
        """Go on until the laws are those of MD or the budget is spent; return the summary."""
        reason = self.record.finished
        if reason is not None and self.output.exists():
            if reason == TARGETS or not self.record.go_on(self.settings.budget_s):
                self.say("done before", f"{self.output}: {reason}")
                return self._summary(reason)
        self.planned = self.record.before + self.settings.rounds
        number = 0
        while True:
            model = self._model(number)
            step = self.record.round(number)
            self._make_md(number, step, model)
            if model is not None:
                self._compare(number, step, model)
            reason = self._over(number, step)
            if reason is not None and model is not None:
                return self._finish(number, model, reason)
            self._train(number, step)
            number += 1

    def _over(self, number: int, step: dict[str, Any]) -> str | None:
        """Return why this is the last round; None if it is not."""
        if number == 0:
            return None
        if hold(step["laws"], self.settings.tolerance):
            return TARGETS
        # What a training and the MD that judges it take at least.
        least = 60.0 * _LEAST_MINUTES + step["seconds"]
        return SPENT if number >= self.planned or self.left < least else None

    def _model(self, number: int) -> ScoreModel | None:
        if number == 0:
            return self.subject.parent
        return ScoreModel.load(self.folder / _bundle(number)).only()

    # -- MD ----------------------------------------------------------------------------------------

    def _make_md(self, number: int, step: dict[str, Any], model: ScoreModel | None) -> None:
        """Explore, and make MD from there."""
        if "md" in step:
            return
        if "runs" not in step:
            step["runs"] = self._runs_wanted(number)
            step["began"] = round(self.record.seconds, 2)
            self.record.save()
        runs = step["runs"]
        seconds = self._md_seconds(number, step)
        goals = None if model is None else self._goals(number, step, model, runs, seconds)
        used = self.record.seconds - step["began"]
        minutes = max((1.0 - _COMPARE_SHARE) * seconds - used, 1.0) / 60.0
        target = self.folder / _data(number)
        md = replace(
            self.subject.md,
            plain_runs=0,
            seeded_runs=runs,
            seeded_ps=self.settings.run_ps,
            engine=self._engine(),
            seed=self.settings.seed + number,
        )
        self.say("MD", f"round {number}: up to {runs * self.settings.run_ps / 1000.0:g} ns")
        with self.record.at_work("md"):
            try:
                made = generate(
                    self.subject.structure,
                    target,
                    md,
                    torsions=[",".join(str(k) for k in t) for t in self.subject.torsions],
                    goals=goals,
                    platform=self.settings.platform,
                    processes=self.settings.processes,
                    minutes=minutes,
                    save_seconds=10.0,
                    progress=self.say,
                )
            except RuntimeError as error:
                if "no time for a single run" not in str(error):
                    raise
                raise self._too_small("not a frame of MD was made") from None
        if made["stopped"]:
            raise KeyboardInterrupt
        whole = [r for r in read_dataset(target).runs if r.length_ps >= self._shortest_ps]
        if len(whole) < _FEWEST_RUNS:
            raise self._too_small(f"{len(whole)} runs of {_FEWEST_RUNS} were made")
        step["md"] = {
            "file": target.name,
            "sha256": made["sha256"],
            "ns": round(made["ns"], 4),
            "runs": made["runs"],
            "engine": made["provenance"]["engine"],
            "seconds": round(self.record.seconds - step["began"], 2),
        }
        self.record.save()

    def _md_seconds(self, number: int, step: dict[str, Any]) -> float:
        """Return the time that a round has for MD, exploring before it and comparing with it, s."""
        trainings = max(self.planned - number, 0)
        before = self.left + self.record.seconds - step["began"]
        return _MD_SHARE * max(before, 0.0) / (trainings + _MD_SHARE)

    @property
    def _shortest_ps(self) -> float:
        """How long a run must be to say something of every lag, ps."""
        return 1.5 * max(self.settings.lags)

    def _too_small(self, what: str) -> ValueError:
        return ValueError(
            f"budget: {self.settings.budget} is too small for one round, {what}; the same command "
            "with a larger one continues"
        )

    def _runs_wanted(self, number: int) -> int:
        """Return how many runs are made at most; time may be up before."""
        limit = _FIRST_RUNS if number == 0 else _MOST_RUNS
        if self.settings.round_ns is not None:
            limit = math.ceil(1000.0 * self.settings.round_ns / self.settings.run_ps - 1e-9)
        return max(limit, _FEWEST_RUNS)

    def _engine(self) -> str:
        """Return who runs the MD: who did before, so that it is not measured again."""
        done = [step["md"]["engine"] for step in self.record.rounds if "md" in step]
        if not done:
            return self.settings.engine
        return "gromacs" if "GROMACS" in done[0] else "openmm"

    def _goals(
        self, number: int, step: dict[str, Any], model: ScoreModel, runs: int, seconds: float
    ) -> NDArray[np.float64]:
        """Return where the runs of a round start, (runs, torsions), rad."""
        file = self.folder / f"goals-{number}.npz"
        if "explored" not in step:
            settings = self.settings
            lag = max(settings.lags)
            halves = [self.folder / name for name in _halves(number)]
            with self.record.at_work("exploring"):
                there = explore(
                    model,
                    [ScoreModel.load(half).only() for half in halves if half.exists()],
                    self.subject.torsions,
                    runs,
                    _EXPLORE_SHARE * seconds,
                    chain_settings(lag, settings.device, settings.seed + number),
                    self.say,
                )
            write_arrays(file, goals=there.goals)
            step["explored"] = there.found
            self.record.save()
        return read_arrays(file, lambda data: np.asarray(data["goals"]))

    # -- laws --------------------------------------------------------------------------------------

    def _compare(self, number: int, step: dict[str, Any], model: ScoreModel) -> None:
        """Compare the laws of a model with MD that it was not trained on."""
        if "laws" in step:
            return
        speed = step["explored"]["jumps_per_second"]
        seconds = _COMPARE_SHARE * self._md_seconds(number, step) / len(self.settings.lags)
        draws = int(np.clip(speed * seconds, _FEWEST_DRAWS, _MOST_DRAWS))
        settings = ValidateSettings(
            one_step_starts=draws, seed=self.settings.seed, device=self.settings.device
        )
        data = read_dataset(self.folder / _data(number))
        with self.record.at_work("comparing"):
            laws = compare_laws(model, data, self.settings.lags, settings, self.say)
        step["laws"] = finite(laws)
        step["seconds"] = round(self.record.seconds - step["began"], 2)
        self.record.save()
        ns = sum(one["md"]["ns"] for one in self.record.rounds[:number])
        self.say("note", f"laws after {ns:.3g} ns of MD: {in_words(step['laws'])}")

    # -- training ----------------------------------------------------------------------------------

    def _train(self, number: int, step: dict[str, Any]) -> None:
        """Train the next model on all MD so far, and two for a short time on halves of it."""
        if "trained" in step:
            return
        rounds = max(self.planned - number, 1)
        if "trained_from" not in step:
            step["trained_from"] = round(self.record.seconds, 2)
            # After the last training nothing is explored to learn from.
            step["halves"] = rounds > 1
            self.record.save()
        before = self.left + self.record.seconds - step["trained_from"]
        minutes = round((1.0 - _MD_SHARE) * before / 60.0 / rounds, 4)
        if minutes < _LEAST_MINUTES:
            raise self._too_small("there is no time to train")
        files = [self.folder / _data(k) for k in range(number + 1)]
        init = self._weights(number)
        self.say("training", f"round {number}: {minutes:.1f} minutes")
        with self.record.at_work("training"):
            main = (1.0 - 2.0 * _HALF_SHARE) * minutes if step["halves"] else minutes
            seed = self.settings.seed + number
            stage = stage_settings(self.subject, self.settings, main, init, seed)
            target = self.folder / _bundle(number + 1)
            step["training"] = train_on(files, target, stage, self.say)
            self.record.save()
            if step["halves"]:
                halves = [self.folder / name for name in _halves(number + 1)]
                train_halves(
                    *(files, halves, self.subject, self.settings, _HALF_SHARE * minutes, init),
                    self.say,
                )
        step["trained"] = True
        self.record.save()

    def _weights(self, number: int) -> str | None:
        """Return the bundle whose weights a round begins with; None for none."""
        if number > 0:
            return str(self.folder / _bundle(number))
        return self.subject.source if self.subject.parent is not None else None

    # -- the end -----------------------------------------------------------------------------------

    def _finish(self, number: int, model: ScoreModel, reason: str) -> dict[str, Any]:
        """Write the bundle with its card, and the report."""
        self.say("writing", self.output.name)
        summary = self._summary(reason)
        card = model.card
        name = self.subject.molecule.name
        origin = "from nothing" if self.subject.parent is None else f"from {self.subject.source}"
        card.name = name
        card.description = (
            f"{name} ({self.subject.molecule.formula}), adapted {origin} on "
            f"{summary['ns']:.3g} ns of MD."
        )
        card.adaptation = {
            "parent": self.subject.source if self.subject.parent is not None else None,
            "parent_sha256": self.subject.sha256 if self.subject.parent is not None else None,
            **{key: summary[key] for key in ("finished", "ns", "seconds", "core_hours")},
            "rounds": summary["rounds"],
        }
        card.fidelity = {**card.fidelity, "one_step": self.record.rounds[number]["laws"]}
        pooled = model.pooled_novelty
        own = model.novelty if pooled is None else None
        made = ScoreModel(model.propagator, model.molecules, card, model.start_frames, own)
        made.pooled_novelty = pooled
        made.save(self.output)
        for half in self.folder.glob("half-*"):
            half.unlink()
        summary = self._summary(reason)
        write_page(summary, self.record.rounds[number]["laws"], self.folder / "report.html")
        write_json(self.folder / "report.json", summary)
        self.record.finish(reason, self.settings.budget_s)
        self.say("done", f"{reason}; the report is {self.folder / 'report.html'}")
        return summary

    def _summary(self, reason: str) -> dict[str, Any]:
        record = self.record
        rounds = [_told(k, step) for k, step in enumerate(record.rounds)]
        return {
            "bundle": str(self.output),
            "sha256": file_sha256(self.output) if self.output.exists() else None,
            "molecule": self.subject.molecule.name,
            "parent": self.subject.source if self.subject.parent is not None else None,
            "finished": reason,
            "targets_hold": reason == TARGETS,
            "tolerance": self.settings.tolerance,
            "ns": round(sum(one["ns"] for one in rounds), 4),
            "seconds": round(record.seconds, 1),
            "core_hours": {k: round(v / 3600.0, 4) for k, v in record.core_seconds.items()},
            "rounds": rounds,
            "report": str(self.folder / "report.html"),
        }


def _told(number: int, step: dict[str, Any]) -> dict[str, Any]:
    """Return what people are told of a round."""
    laws = step.get("laws") or {}
    return {
        "round": number,
        "ns": step["md"]["ns"] if "md" in step else 0.0,
        "data": {key: step["md"][key] for key in ("file", "sha256")} if "md" in step else None,
        "engine": step["md"]["engine"] if "md" in step else None,
        "explored": step.get("explored"),
        "laws": {
            lag: {
                **{what: entry[what] for what in ("hops", "turning")},
                "gate_failure_fraction": entry["gate_failure_fraction"],
            }
            for lag, entry in laws.items()
        },
        "training": step.get("training"),
    }


def _bundle(number: int) -> str:
    return f"model-{number}.safetensors"


def _halves(number: int) -> list[str]:
    return [f"half-{number}-{k}.safetensors" for k in range(2)]


def _data(number: int) -> str:
    return f"md-{number}.h5"
