"""What a mixed run does: settings with all that was left open decided, and what cannot be run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from openmm import unit

from ..files.atomic import one_line
from ..integrator.biases import refuse_biases
from ..integrator.comparisons import DiffersFromModel
from ..integrator.integrator import ScoreDynamicsIntegrator
from ..integrator.notes import OTHER, Note
from ..jump.jump import ERRORS, Jump
from ..model.model import ScoreModel, model_digest
from ..model.schedules import Schedule
from ..prepare.driver import ROOM_TEMPERATURE_K, next_steps
from ..progress import Progress
from ..system.fitting import fitting_model, remarks, serving
from ..system.force_field import water_box
from ..system.solute import NoSoluteError, find_solute
from .settings import RunSettings
from .start import Source, force_field, model_mismatch, open_start, other_force_field

Start = Any  # what `run_mixed` says

# What the solute alone, in water already, and a prepared system have no use for.
_FOR_WATER: Final = ("waters", "padding_nm", "water_model")
_FOR_BUILDING: Final = ("force_field", "cutoff_nm", "equilibration_ps")


def plan_run(
    model: ScoreModel | str | os.PathLike[str] | None,
    start: Start,
    settings: RunSettings,
    say: Progress,
) -> Plan:
    """Decide all that was left open, and refuse what cannot be run; see `run_mixed`."""
    given = model
    if not isinstance(given, ScoreModel) and given is not None:
        say("loading the model", os.fspath(given))
        given = ScoreModel.load(given)
    source = open_start(start, force_field(settings, given))
    if given is None:
        say("loading the model", "")
        try:
            given = fitting_model(source.solvated_in(settings.force_field))
        except NoSoluteError as error:
            raise _advised(model_mismatch(source, error), source, settings) from None
        except ValueError as error:
            raise model_mismatch(source, error) from None
    return Plan(given, source, settings)


def _advised(error: ValueError, source: Source, settings: RunSettings) -> ValueError:
    """Add the commands that lead to a model, those of ``openmm-sd prepare``."""
    prepared, temperature = source.prepared, settings.temperature_K
    if temperature is None and prepared is not None:
        temperature = prepared.temperature_K
    commands = next_steps(
        *([], force_field(settings, None) if prepared is None else prepared.force_field),
        *(source.implicit, temperature or ROOM_TEMPERATURE_K),
        platform=settings.platform,
    )
    folder = "DIR"
    if prepared is None:
        said = "" if settings.platform is None else f" --platform {settings.platform}"
        said += "".join(f" --force-field {file}" for file in settings.force_field or ())
        said += "" if temperature is None else f" --temperature {temperature:g}"
        commands.insert(0, f"openmm-sd prepare {source.name} -o DIR{said}")
    elif Path(source.name).is_dir():
        folder = source.name
    lines = [f"  {command.replace('DIR', folder)}" for command in commands]
    error.add_note("\n".join(["to train a model, and run with it:", *lines]))
    return error


@contextlib.contextmanager
def noting(notes: list[Note]) -> Iterator[None]:
    """Put warnings for users among the notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        text = one_line(warning.message)
        said = warning.message
        kind = said.note.kind if isinstance(said, DiffersFromModel) else OTHER
        note = Note(kind, f"{text[:1].upper()}{text[1:]}.")
        if not issubclass(warning.category, UserWarning):
            warnings.warn_explicit(text, warning.category, warning.filename, warning.lineno)
        elif note not in notes:
            notes.append(note)


class Plan:
    """Settings with all that was left open decided, as far as that needs no machine.

    `notes` say where the simulation is not what the model was made for.
    """

    def __init__(self, model: ScoreModel, source: Source, settings: RunSettings) -> None:
        self.source = source
        self.settings = settings
        self.notes: list[Note] = []
        prepared = source.prepared
        self._refuse_idle_options()
        system = prepared.system if prepared is not None else None
        looked_at = source.topology, system, settings.solute
        try:
            try:
                self.solute = find_solute(model.molecules, *looked_at)
            except NoSoluteError:
                served = self._serving(model)
                if served is None:
                    raise
                model = served
                self.solute = find_solute(model.molecules, *looked_at)
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
        with noting(self.notes):
            integrator = self.integrator("auto", settings.seed)
        self.max_novelty = integrator.getMaxNovelty()
        self.lag_ps = integrator.getLag().value_in_unit(unit.picosecond)
        self.burst_ps = integrator.getBurst().value_in_unit(unit.picosecond)
        self.settle_ps = integrator.getSettleTime().value_in_unit(unit.picosecond)
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

    def _serving(self, model: ScoreModel) -> ScoreModel | None:
        """Return the model of a solute that was not trained on, with a note, if there can be."""
        what = self.source.solvated_in(self.settings.force_field)
        served = serving(model, what, force_field(self.settings, model))
        if served is not None:
            self.notes += [Note(OTHER, text) for text in remarks(served)]
        return served

    def integrator(self, bridge: str, seed: int) -> ScoreDynamicsIntegrator:
        """Make an integrator; the seed is that of this part of the run."""
        return ScoreDynamicsIntegrator(
            self.model,
            self.temperature,
            self.settings.friction_per_ps,
            self.step_ps,
            burst=self.settings.burst_ps,
            lag=self.settings.lag_ps,
            purpose=self.settings.purpose,
            bridge=bridge,
            seed=seed,
            maxTries=self.settings.max_tries,
            candidates=self.settings.candidates,
            settleSteps=self.settings.settle_steps,
            settleTime=self.settings.settle_ps,
            maxEnergyRise=self.settings.max_energy_rise,
            maxEnergySigma=self.settings.max_energy_sigma,
            maxNovelty=self.settings.max_novelty,
            allowBias=self.settings.allow_bias,
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
        vectors = self.source.box_vectors
        box = np.zeros((3, 3)) if vectors is None else vectors
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
        if prepared is None:
            return
        if not self.settings.allow_bias:
            refuse_biases(prepared.system, self.solute, "run it without, or with --allow-bias")
        if self.settings.pressure_bar is None:
            return
        if prepared.box_vectors is None or not prepared.system.usesPeriodicBoundaryConditions():
            raise ValueError("pressure_bar: a system without periodic boundaries has no pressure")
        kinds = [type(force).__name__ for force in prepared.system.getForces()]
        if any("Barostat" in kind for kind in kinds):
            raise ValueError("pressure_bar: the system has a barostat already")

    def schedule(self) -> Schedule:
        """Return lag, burst and settling, and the fidelity measured of chains of that lag."""
        chosen = self.model.schedule(self.settings.purpose)
        same = chosen.lag_ps == self.lag_ps
        return Schedule(
            self.lag_ps,
            self.burst_ps,
            self.settle_ps,
            chosen.good_for if same else (),
            self.model.measured_at(self.lag_ps),
        )

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
            "settle_ps": self.settle_ps,
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
