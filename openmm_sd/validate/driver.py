"""Runs a validation from a model and a reference to the report."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import figures
from ..analysis.equilibrium import grouped_histograms
from ..analysis.sample import Sample
from ..analysis.verdicts import TOLERANCES, figure
from ..data.reference import (
    Reference,
    ReferenceRun,
    angles_of,
    chosen_torsions,
    held_out_reference,
    read_reference,
    reference_from_trajectory,
)
from ..files.atomic import finite, write_json
from ..files.folder import check_folder, locked
from ..model.model import ScoreModel
from ..molecule.torsions import Torsion
from ..progress import Progress, silence
from ..version import versions
from . import plots
from .energy import BOLTZMANN_KJ_PER_MOL_K, VacuumEnergy
from .onestep import STEP_GROUPS, compare_steps, step_from_runs
from .page import write_page
from .sampling import Chains, one_step, read_chains, run_chains
from .settings import USUAL_LAGS, ValidateSettings
from .verdicts import verdicts

#: The files of a report beside its pictures.
FILES = ("validation.json", "validation.html")

_PACKAGES = ("openmm-sd", "openmm", "torch", "numpy", "deeptime", "mdtraj")
_ROOM_TEMPERATURE_K = 300.0
# Without equilibrated frames, chains start from few places, and forget them slowly.
_FEW_STARTS = 20
# Torsions alone decide the one-step test where they are so many times longer than all else.
_MUCH_LONGER = 2.0


def validate(
    model: ScoreModel | str | os.PathLike[str],
    reference: Any | None,
    output: str | os.PathLike[str],
    settings: ValidateSettings | None = None,
    progress: Progress | None = None,
    *,
    topology: str | os.PathLike[str] | None = None,
    spacing_ps: float | None = None,
    rollouts: Sequence[str | os.PathLike[str]] = (),
    force: bool = False,
    molecule: str | None = None,
) -> dict[str, Any]:
    """Compare a model with MD and write the report.

    Parameters
    ----------
    model : ScoreModel, str or PathLike
        A model, the name of a shipped one, or a bundle.
    reference : Reference, mdtraj.Trajectory, path or sequence of paths, or None
        The MD: see :func:`~openmm_sd.data.reference.read_reference`. None for what the training
        held out, of data sets that lie beside the bundle or in the current directory: see
        :func:`~openmm_sd.data.reference.held_out_reference`.
    output : str or PathLike
        Directory for ``validation.json``, ``validation.html`` and the pictures.
    settings : ValidateSettings, optional
        What to do.
    progress : callable, optional
        Called with what is being done and how far it is.
    topology : str or PathLike, optional
        Topology of trajectories that have none.
    spacing_ps : float, optional
        Time between the reference's frames, ps, where its files do not say.
    rollouts : sequence of str or PathLike
        Directories of ``openmm-sd rollout``, one a lag, to be judged instead of new chains.
    force : bool
        Whether to replace an earlier report.
    molecule : str, optional
        Which of a family's molecules.

    Returns
    -------
    dict
        What ``validation.json`` holds; ``docs/validation.md`` defines every figure.

    Raises
    ------
    ValueError
        If something does not fit, before anything is run.
    """
    settings = settings or ValidateSettings()
    say = progress or silence
    began = time.perf_counter()
    folder = _checked_output(Path(output), force)
    name = str(model) if isinstance(model, (str, os.PathLike)) else ""
    if not isinstance(model, ScoreModel):
        say("loading the model", name)
        model = ScoreModel.load(model)
    model = model.only(molecule)
    solute = model.molecules[0]
    own = reference is None
    reference = _opened(reference, model, Path(name).parent, topology, spacing_ps, say)
    chosen = chosen_torsions(solute, reference, settings.torsions)
    sample = reference.sample(chosen)
    ready = [read_chains(path, solute, settings, chosen) for path in rollouts]
    lags = [chains.lag_ps for chains in ready] if ready else _lags(model, settings)
    if len(set(lags)) < len(lags):
        raise ValueError(
            f"lags must differ from each other, got {', '.join(f'{v:g}' for v in lags)}"
        )
    run = _Validation(model, reference, settings, chosen, sample, say)
    if own:
        run.notes += _own_notes(model, sample)
    with locked(folder, "validation"):
        say("analysing the reference", "")
        spacings = [chains.spacing_ps for chains in ready] or lags
        run.prepare(spacings)
        entries = {}
        for k, lag in enumerate(lags):
            chains = ready[k] if ready else run.chains(lag)
            entries[f"{lag:g}"] = run.lag(chains)
        result = {
            "format": "openmm-sd-validation",
            "version": 1,
            "model": name or solute.name,
            "molecule": solute.name,
            "description": model.card.description or "",
            "temperature_K": run.temperature,
            "settings": {**asdict(settings), "lags": lags},
            "reference": {"runs": _summed_up(reference), **run.reference_report()},
            "lags": entries,
            "tolerances": TOLERANCES,
            "notes": run.notes,
            "versions": versions(_PACKAGES),
            "seconds": time.perf_counter() - began,
        }
        result = finite(result)
        for entry in result["lags"].values():
            entry["verdicts"] = verdicts(entry, run.baseline.jsd_key)
        say("drawing", "")
        pictures = plots.draw_all(result, folder, run.histograms)
        write_json(folder / FILES[0], result)
        write_page(result, pictures, folder / FILES[1])
        say("done", f"{time.perf_counter() - began:.0f} s, the report is {folder / FILES[1]}")
    return result


def _opened(
    reference: Any | None,
    model: ScoreModel,
    beside: Path,
    topology: str | os.PathLike[str] | None,
    spacing_ps: float | None,
    say: Progress,
) -> Reference:
    """Return the reference, however it was given; see `validate`."""
    solute = model.molecules[0]
    if reference is None:
        for option, value in (("topology", topology), ("spacing_ps", spacing_ps)):
            if value is not None:
                raise ValueError(f"{option} has no effect without a reference")
        say("reading the reference", "what the training held out")
        return held_out_reference(model.card, solute, [beside, Path()])
    if isinstance(reference, Reference):
        return reference
    if hasattr(reference, "xyz"):
        return reference_from_trajectory(reference, solute, spacing_ps=spacing_ps)
    say("reading the reference", "")
    paths = [reference] if isinstance(reference, (str, os.PathLike)) else list(reference)
    return read_reference(paths, solute, topology, spacing_ps)


def _own_notes(model: ScoreModel, sample: Sample) -> list[str]:
    """Say what it means that the reference is what the training held out."""
    notes = [
        f"No reference was named: this is {sample.total_ps / 1000.0:.3g} ns of the MD that the "
        "model's training held out. Longer MD of its own says more."
    ]
    if init := model.card.training.get("init"):
        notes.append(
            f"The training began with the weights of {init}, whose own training may have seen "
            "this MD, if its data, --seed or --held-out were others."
        )
    return notes


class _Validation:
    """A model, a reference, and what the figures of all lags share."""

    def __init__(
        self,
        model: ScoreModel,
        reference: Reference,
        settings: ValidateSettings,
        chosen: Sequence[Torsion],
        sample: Sample,
        say: Progress,
    ) -> None:
        self.model, self.settings, self.say = model, settings, say
        self.molecule = model.molecules[0]
        self.reference = reference
        self.notes: list[str] = []
        self.baseline = figures.Baseline.of(self.molecule, chosen, sample, settings.seed)
        self.temperature = model.temperature or _ROOM_TEMPERATURE_K
        if model.temperature is None:
            self.notes.append(
                f"The model card names no temperature; {self.temperature:g} K is taken for kT."
            )
        own = model.start_frames
        frames = reference.frames(settings.kept_frames)
        self.frames = own if frames is None else frames
        if self.frames is None:
            self.notes.append(
                "Neither the reference nor the model has all-atom frames: geometry, energies and "
                "one-step tests have nothing to compare with."
            )
        elif frames is None:
            self.notes.append(
                f"Geometry and energies are compared with the {len(self.frames)} frames that the "
                "model carries, for the reference has angles only."
            )
        self.starts = own if own is not None else frames
        if self.starts is None:
            self.starts = np.asarray(self.molecule.positions, dtype=np.float32)[None]
        if len(self.starts) < _FEW_STARTS:
            self.notes.append(
                f"All chains start from {len(self.starts)} structure(s), not from an equilibrium "
                "sample: figures that relax more slowly than the chains are long are biased."
            )
        self._energy, self._reference_energies, self._no_energy = self._force_field()
        self._maps: dict[str, NDArray[np.float64]] = {}
        self._passages: dict[float, Any] = {}

    def _force_field(self) -> tuple[VacuumEnergy | None, NDArray[np.float64], str]:
        files = self.model.card.force_field
        nothing = np.zeros(0)
        if self.frames is None:
            return None, nothing, "there are no all-atom frames of MD to compare with"
        if not files:
            return None, nothing, "the model card names no OpenMM force field files"
        try:
            energy = VacuumEnergy(self.molecule, files)
        except ValueError as error:
            return None, nothing, str(error)
        return energy, energy(self.frames), ""

    def prepare(self, spacings: Sequence[float]) -> None:
        """Compute what the reference says of itself at the lags of the model."""
        baseline, sample = self.baseline, self.baseline.sample
        blocks = sample.n_groups
        if blocks < 8:
            self.notes.append(
                f"The reference falls into {blocks} independent blocks only: its errors are rough."
            )
        lags = {lag for spacing in spacings for lag in figures.msm_lags(sample, spacing)}
        self._msm = sorted(lags | set(figures.msm_lags(sample, sample.spacing_ps)))
        kinetics: dict[str, Any] = {"implied_timescales_ps": {}, "slow_modes": {}}
        if baseline.discretisation is None:
            self.notes.append("No torsion of the reference moves: there is no kinetics in it.")
        else:
            kinetics = figures.timescales(baseline, baseline.states, self._msm)
        self._kinetics = kinetics
        slowest = [
            one["value"][0]
            for one in kinetics["implied_timescales_ps"].values()
            if np.isfinite(one["value"][0])
        ]
        if slowest and sample.block_ps < 2 * slowest[-1] and len(sample.runs) < blocks:
            self.notes.append(
                f"The reference is cut into blocks of {sample.block_ps:.0f} ps for its errors, "
                f"less than twice its slowest timescale ({slowest[-1]:.0f} ps): errors of what "
                "that process governs are too small."
            )
        times = {*figures.MSM_LAGS, *(k * s for s in spacings for k in (1, 2, 3, 5, 10))}
        self._times = sorted(t for t in times if sample.stride(t) is not None)
        self._correlations = figures.correlations(sample, baseline.torsions, self._times)
        self._crossings = figures.crossing_times(baseline, sample)
        pair = baseline.jsd_columns[0]
        if len(pair) == 2:
            self._maps["MD"] = grouped_histograms(sample, pair).sum(0)

    def reference_report(self) -> dict[str, Any]:
        """Return what the report says of the reference."""
        sample = self.baseline.sample
        return {
            "frames": sample.n_frames,
            "ns": sample.total_ps / 1000.0,
            "spacing_ps": sample.spacing_ps,
            "groups": sample.n_groups,
            "torsions": [asdict(torsion) for torsion in self.baseline.torsions],
            "microstates": self.baseline.n_states,
            **figures.reference_equilibrium(self.baseline),
            **self._kinetics,
            "mfpt_ps": {
                f"{lag:g}": {name: figure(*pair) for name, pair in (found or {}).items()}
                for lag, found in self._passages.items()
            },
            "mean_cos_change": self._correlations,
            "crossing_times_ps": self._crossings,
        }

    @property
    def histograms(self) -> plots.MapHistograms:
        """What the free-energy maps show."""
        pair = self.baseline.jsd_columns[0] if self._maps else ()
        return plots.MapHistograms(tuple(self.baseline.torsions[k].name for k in pair), self._maps)

    def chains(self, lag: float) -> Chains:
        """Run chains at a lag."""
        assert self.starts is not None
        return run_chains(
            self.model, self.settings, lag, self.starts, self.baseline.torsions, self.say
        )

    def lag(self, chains: Chains) -> dict[str, Any]:
        """Return the report's entry for one lag."""
        baseline, name = self.baseline, f"{chains.lag_ps:g}"
        sample = chains.sample()
        self.say(f"analysing the chains of {name} ps", "equilibrium")
        numbers = chains.statistics
        draws = int(numbers["draws"])
        entry: dict[str, Any] = {
            "lag_ps": chains.lag_ps,
            "spacing_ps": chains.spacing_ps,
            "chains": len(sample.runs),
            "steps": chains.steps,
            "frames": sample.n_frames,
            "microseconds": sample.total_ps * 1e-6,
            **figures.equilibrium(baseline, sample),
        }
        if self._maps:
            counts = grouped_histograms(sample, baseline.jsd_columns[0])
            self._maps[name] = counts.sum(0)
        self.say(f"analysing the chains of {name} ps", "kinetics")
        entry |= self._kinetics_of(sample, chains.spacing_ps)
        self.say(f"analysing the chains of {name} ps", "geometry and energy")
        entry |= {
            "gate_failure_fraction": {
                **figures.counted(sum(numbers["rejections"].values()), draws),
                "by_gate": {
                    gate: figures.counted(count, draws)
                    for gate, count in numbers["rejections"].items()
                },
            },
            "chirality_flip_fraction": figures.counted(int(numbers["chirality_flips"]), draws),
            "fallback_fraction": figures.counted(
                int(numbers["fallbacks"]), int(numbers["jumps"]) + int(numbers["fallbacks"])
            ),
            "statistics": numbers,
            "solute_energy_excess_kT": self._excess(chains.frames),
            "geometry": None
            if self.frames is None
            else figures.geometry(self.molecule, chains.frames, self.frames),
            "one_step": self._step(chains.lag_ps),
        }
        return entry

    def _kinetics_of(self, sample: Sample, spacing: float) -> dict[str, Any]:
        baseline = self.baseline
        empty: dict[str, Any] = {"implied_timescales_ps": {}, "slow_modes": {}, "mfpt_ps": {}}
        if baseline.discretisation is None:
            return {**empty, "chapman_kolmogorov": {}, "crossing_times_ps": {}}
        states = baseline.microstates(sample)
        by_lag = figures.timescales(baseline, states, figures.msm_lags(sample, spacing))
        for key, rows in by_lag.items():
            for when, several in rows.items():
                if when in self._kinetics[key]:
                    several["reference"] = self._kinetics[key][when]
        lag = figures.passage_lag(spacing)
        if lag not in self._passages:
            self._passages[lag] = figures.passages(baseline, baseline.states, lag)
        ours, theirs = figures.passages(baseline, states, lag) or {}, self._passages[lag] or {}
        nothing = (math.nan, math.nan)
        tests = figures.chapman_kolmogorov(baseline, states, lag)
        for name, test in figures.chapman_kolmogorov(baseline, baseline.states, lag).items():
            if name in tests:
                tests[name]["reference"] = test
        cosines = figures.correlations(sample, baseline.torsions, self._times)
        for torsion, by_time in cosines.items():
            for when, one in by_time.items():
                one["reference"] = self._correlations[torsion].get(when)
        crossings = figures.crossing_times(baseline, sample)
        coarse = figures.thinned(baseline.sample, spacing)
        if coarse is not None:
            for name, crossing in figures.crossing_times(baseline, coarse).items():
                crossings[name]["reference"] = crossing
        return {
            **by_lag,
            "mfpt_ps": {
                name: figure(*ours.get(name, nothing), theirs.get(name, nothing))
                for partition in baseline.partitions
                for name, _, _ in partition.passages
            },
            "mfpt_msm_lag_ps": lag,
            "chapman_kolmogorov": tests,
            "mean_cos_change": cosines,
            "crossing_times_ps": crossings,
        }

    def _excess(self, frames: NDArray[Any]) -> dict[str, Any]:
        if self._energy is None:
            return {**figure(math.nan, math.nan), "reason": self._no_energy}
        thermal = BOLTZMANN_KJ_PER_MOL_K * self.temperature
        return figures.energy_excess(self._energy, frames, self._reference_energies, thermal)

    # -- one step ----------------------------------------------------------------------------------

    def _step(self, lag: float) -> dict[str, Any]:
        runs = self.reference.with_positions
        known = sum(run.n_frames * run.spacing_ps for run in runs)
        # Torsions of a run much longer than those with positions say more about what MD does.
        longer = self.baseline.sample.total_ps > _MUCH_LONGER * known
        if runs and not (longer and self.model.start_frames is not None):
            found = self._step_from_runs(lag)
            if found is not None:
                return found
        found = self._step_from_starts(lag)
        if "reason" in found and runs and longer:
            return self._step_from_runs(lag) or found
        return found

    def _step_from_runs(self, lag: float) -> dict[str, Any] | None:
        """Start from frames of MD; what MD did from all of its frames is known."""
        positions, sample = self._with_positions
        return step_from_runs(
            self.baseline, sample, positions, lag, self.model, self.settings, self.say
        )

    def _step_from_starts(self, lag: float) -> dict[str, Any]:
        """Start from the model's own frames, weighted as the reference's basins are populated."""
        baseline = self.baseline
        starts, stride = self.model.start_frames, baseline.sample.stride(lag)
        if starts is None:
            return {"reason": "there are no all-atom frames of MD to start from"}
        if stride is None or stride >= max(map(len, baseline.sample.runs)):
            return {"reason": f"the reference has no frames that are {lag:g} ps apart"}
        before: list[NDArray[Any]] = []
        after: list[NDArray[Any]] = []
        for _, first, second in baseline.sample.pairs(stride):
            before.append(first)
            after.append(second)
        theirs = figures.step_figures(baseline, before, after)
        step = one_step(self.model, self.settings, lag, starts, baseline.torsions, self.say)
        weights = None
        if baseline.partitions:
            label = baseline.partitions[0].label
            number = len(baseline.partitions[0].states)
            wanted = np.bincount(label(baseline.sample.frames()), minlength=number)
            there = np.bincount(label(step.before), minlength=number)
            ratio = wanted / np.maximum(there, 1)
            weights = (ratio / (ratio * there).sum() * there.sum())[label(step.before)]
        source = f"{len(starts)} frames of the model, weighted by basin"
        groups = step.start % min(STEP_GROUPS, len(starts))
        return compare_steps(baseline, source, step, groups, weights, theirs)

    @cached_property
    def _with_positions(self) -> tuple[list[NDArray[np.float32]], Sample]:
        """The runs with positions, of the spacing that most frames have, and their angles."""
        runs = _most_common_spacing(self.reference.with_positions)
        positions = [_positions(run) for run in runs]
        angles = [angles_of(frames, self.baseline.torsions) for frames in positions]
        return positions, Sample.from_runs(angles, runs[0].spacing_ps, STEP_GROUPS)


def _positions(run: ReferenceRun) -> NDArray[np.float32]:
    assert run.positions is not None
    return run.positions


def _most_common_spacing(runs: Sequence[ReferenceRun]) -> list[ReferenceRun]:
    """The runs of the spacing that most frames have."""
    frames: dict[float, int] = {}
    for run in runs:
        frames[run.spacing_ps] = frames.get(run.spacing_ps, 0) + run.n_frames
    best = max(frames, key=lambda spacing: frames[spacing])
    return [run for run in runs if run.spacing_ps == best]


def _checked_output(folder: Path, force: bool) -> Path:
    check_folder(folder)
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise ValueError(f"output: {folder} holds a report already; --force replaces it")
    return folder


def _lags(model: ScoreModel, settings: ValidateSettings) -> list[float]:
    known = model.lag_range
    if settings.lags is not None:
        for lag in settings.lags:
            if known is not None and not known[0] <= lag <= known[1]:
                raise ValueError(
                    f"lags: {lag:g} ps is outside the {known[0]:g} to {known[1]:g} ps that the "
                    "model was trained for"
                )
        return [float(lag) for lag in settings.lags]
    usual = [lag for lag in USUAL_LAGS if known is not None and known[0] <= lag <= known[1]]
    return usual or [model.recommended_lag]


def _summed_up(reference: Reference) -> list[dict[str, Any]]:
    rows = reference.description()
    if len(rows) <= 12:
        return rows
    rest = rows[12:]
    return [
        *rows[:12],
        {
            "name": f"and {len(rest)} more runs",
            "frames": sum(row["frames"] for row in rest),
            "ns": sum(row["ns"] for row in rest),
        },
    ]
