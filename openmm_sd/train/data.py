"""What a training has of a molecule: its runs, the pairs in them, and what a card says of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis import dihedral
from ..data.dataset import BIASED, Dataset, Run, merge, read_dataset
from ..model.card import Card, NoveltyOrigin, Training
from ..model.novelty import Novelty, fit_novelty, hold_out
from ..model.windows import angle_windows, bond_windows, contact_distances, torsion_windows
from ..molecule.frames import constraint_lengths
from ..molecule.matching import difference
from ..molecule.molecule import Molecule
from ..molecule.torsions import slow_torsions
from ..progress import Progress, silence
from ..propagator.alignment import align_frames
from ..system.structure import load_structure
from ..version import __version__
from .markov import CellModel, Cells
from .pairs import TransitionPairs, methyl_rotors
from .settings import FAMILY, TRANSFERABLE, StageSettings

#: Frames at which a network looks to choose its coordinates.
_LOOK_AT: Final = 2000
#: Equilibrium weights are estimated at this lag, ps, or that of the Markov model if it is shorter.
_WEIGHTS_LAG_PS: Final = 1.0
#: Lags at which the data's own implied timescales are looked at, ps.
_TIMESCALE_LAGS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
#: A lag is recommended when the slowest timescale has come this close to its value at longer lags.
_CONVERGED: Final = 0.93
#: Frames of a run that are needed for half of it to be worth holding out.
_SHORTEST_HELD_OUT: Final = 20
#: Frames that a novelty score is made from, and held-out ones that its threshold is made from.
_NOVELTY_FRAMES: Final = 20_000
#: The displacement bound is this many times the largest displacement seen.
_DISPLACEMENT_MARGIN: Final = 1.5


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a training has of one molecule.

    Attributes
    ----------
    dataset : Dataset
        Without the runs that are left out.
    runs, kept, held : list of Run
        Unbiased runs of one spacing, and those of them that are trained on and held out.
    kept_cells, markov : Cells and CellModel, or None
        Of what is kept; None without time reversal.
    pairs, held_out : TransitionPairs
        The latter None if nothing is held out.
    """

    dataset: Dataset
    settings: StageSettings
    runs: list[Run]
    kept: list[Run]
    held: list[Run]
    kept_cells: Cells | None
    markov: CellModel | None
    pairs: TransitionPairs
    held_out: TransitionPairs | None

    @classmethod
    def of(
        cls, dataset: Dataset, settings: StageSettings, device: torch.device | str, say: Progress
    ) -> TrainingData:
        """Prepare a data set; its pairs are held on a device."""
        runs, kept, held = prepared_runs(dataset, settings)
        dataset = replace(dataset, runs=tuple(_left_in(dataset.runs, settings)))
        cells, markov = None, None
        if settings.time_reversal:
            say("fitting the Markov model", f"{sum(r.n_frames for r in kept)} frames")
            cells = _cells_of(dataset, kept, settings)
            markov = cells.model(settings.markov_lag_ps)
        spacing = runs[0].spacing_ps
        pairs = TransitionPairs(
            [run.positions for run in kept],
            spacing,
            device,
            markov=markov,
            compose_from_ps=settings.compose_from_ps,
            rotors=methyl_rotors(dataset.molecule),
        )
        # Held-out pairs are read forwards only: nothing that was estimated enters them.
        held_out = (
            TransitionPairs([run.positions for run in held], spacing, device) if held else None
        )
        return cls(dataset, settings, runs, kept, held, cells, markov, pairs, held_out)

    @property
    def molecule(self) -> Molecule:
        """What the data set is of."""
        return self.dataset.molecule

    @property
    def spacing_ps(self) -> float:
        """Time between frames of the runs, ps."""
        return self.pairs.spacing_ps

    @cached_property
    def cells(self) -> Cells | None:
        """Cells of all runs, including those held out; None without time reversal."""
        if self.kept_cells is None or list(map(id, self.kept)) == list(map(id, self.runs)):
            return self.kept_cells
        return _cells_of(self.dataset, self.runs, self.settings)

    @property
    def lag_range_ps(self) -> tuple[float, float]:
        """Shortest and longest of the lags asked for that the data supports, ps."""
        low, high = max(self.settings.lag_min_ps, self.spacing_ps), self.settings.lag_max_ps
        longest = self.pairs.longest_lag_ps()
        composed_from = self.pairs.compose_from_ps
        if composed_from is not None and longest >= composed_from:
            return low, high
        # Half of the longest run, so that the longest lag has pairs from more than one start.
        high = min(high, 0.5 * longest)
        if high <= low:
            raise ValueError(
                f"the longest run covers {longest:g} ps: too short for lags from {low:g} ps on"
            )
        return low, high

    def some_frames(self) -> NDArray[np.float32]:
        """Return frames that show how the molecule moves, (T, N, 3), nm."""
        frames = np.concatenate([run.positions for run in self.kept])
        return frames[:: max(1, len(frames) // _LOOK_AT)]

    def account(self) -> Training:
        """Return what the card says of it."""
        markov = self.markov
        return {
            **sizes_of([self]),
            # The last so many ps of these runs, as `openmm_sd.data.reference` reads it.
            "held_out_ps": {run.name: round(run.length_ps, 6) for run in self.held},
            "spacing_ps": self.spacing_ps,
            "composed_from_ps": self.pairs.compose_from_ps,
            "markov_lag_ps": markov.lag_ps if markov is not None else None,
            "conformations": markov.n_conformations if markov is not None else None,
            "markov_timescales_ps": (
                [round(float(t), 1) for t in markov.timescales(3)] if markov is not None else None
            ),
        }

    def start_frames(self) -> NDArray[np.float32]:
        """Draw frames with their equilibrium weights, each at most once if there are enough."""
        frames = np.concatenate([run.positions for run in self.runs])
        rng = np.random.default_rng(self.settings.training.seed)
        if self.cells is not None:
            weights = self.cells.model(self.settings.markov_lag_ps).frame_weights()
        else:
            plain = np.concatenate([np.full(r.n_frames, r.kind != "seeded") for r in self.runs])
            weights = (plain if plain.any() else np.ones(len(plain))).astype(float)
            weights /= weights.sum()
        # Systematic resampling: a frame of weight w comes up w * count times, give or take one.
        count = min(self.settings.start_frames, len(frames))
        places = (np.arange(count) + rng.random()) / count
        shuffled = rng.permutation(len(frames))
        chosen = shuffled[
            np.searchsorted(np.cumsum(weights[shuffled]), places).clip(max=len(frames) - 1)
        ]
        return frames[np.sort(chosen)]

    @cached_property
    def timescales_ps(self) -> dict[str, list[float]]:
        """The slowest implied timescales of the data, ps, by lag; none without time reversal."""
        longest = max(run.n_frames for run in self.runs) * self.spacing_ps / 2
        lags = [lag for lag in _TIMESCALE_LAGS if self.spacing_ps <= lag < longest]
        if self.cells is None or not lags:
            return {}
        found = {lag: self.cells.model(lag).timescales(3) for lag in lags}
        return {
            f"{lag:g}": np.round(times, 2).tolist() for lag, times in found.items() if len(times)
        }

    def recommended_lag_ps(self, lags: tuple[float, float], say: Progress = silence) -> float:
        """Return the lag that is asked for, or the one that the data recommend within a range, ps.

        It is the shortest one at which the second slowest timescale of the data has converged, as
        longer lags show. Where none does, `say` is told, and 10 ps is taken.
        """
        if self.settings.recommended_lag_ps:
            return self.settings.recommended_lag_ps
        found = [(float(lag), t[min(1, len(t) - 1)]) for lag, t in self.timescales_ps.items()]
        for k, (lag, slowest) in enumerate(found):
            later = [t for _, t in found[k:]]
            known = len(later) > 1 and slowest >= _CONVERGED * max(later)
            if known and lags[0] <= lag <= lags[1]:
                return lag
        taken = float(np.clip(10.0, *lags))
        ns = sum(run.length_ps for run in self.runs) / 1000.0
        times = ", ".join(f"{t:.3g} ps at {lag:g} ps" for lag, t in found) or "none was found"
        say(
            "note",
            f"{self.molecule.name}: {ns:.3g} ns of data are too few to say from which lag on they "
            f"are Markovian (second slowest timescale: {times}); {taken:g} ps is recommended "
            "without such evidence",
        )
        return taken

    def displacement_bound_nm(self, lags: tuple[float, float]) -> float:
        """Return how far an atom may go in a jump of a range of lags (ps), nm."""
        pairs = TransitionPairs([run.positions for run in self.runs], self.spacing_ps)
        generator = torch.Generator().manual_seed(self.settings.training.seed)
        longest = min(lags[1], pairs.longest_lag_ps())
        frame, later, _ = pairs.draw(20_000, min(lags[0], longest), longest, generator)
        # Frames from anywhere may follow at long lags: pairs of unrelated frames as well.
        other = frame[torch.randperm(len(frame), generator=generator)]
        atoms = torch.arange(frame.shape[1])
        most = 0.0
        for end in (later, other):
            moved = align_frames(end, frame, atoms) - frame
            most = max(most, float(torch.linalg.vector_norm(moved, dim=-1).max()))
        return _DISPLACEMENT_MARGIN * most


def sizes_of(several: Sequence[TrainingData]) -> Training:
    """Return what a card says of how much data there is."""
    return {
        "frames": sum(len(data.pairs) for data in several),
        "ns": round(sum(run.length_ps for data in several for run in data.kept) / 1000.0, 3),
        "runs": sum(len(data.kept) for data in several),
        "held_out_runs": sum(len(data.held) for data in several),
    }


def make_card(
    data: TrainingData,
    lags: tuple[float, float],
    recommended_lag_ps: float,
    training: Training,
    name: str,
    description: str,
) -> Card:
    """Return the card of a trained model, without its measured fidelity; lags are in ps."""
    molecule = data.molecule
    frames = np.concatenate([run.positions for run in data.runs])
    known = data.dataset.provenance
    card = Card()
    card.name, card.description = name, description
    card.kind = {
        "internal": "dense network in internal coordinates: this one molecule only",
        "dense": "dense network on a local frame: this one molecule only",
        TRANSFERABLE: "network in internal coordinates, one set of weights for any molecule that a "
        "force field knows",
        FAMILY: "network in internal coordinates, one set of weights for several molecules",
    }[training["network"]]
    card.lag_range = [round(lags[0], 6), round(lags[1], 6)]
    card.recommended_lag = recommended_lag_ps
    card.recommended_burst = data.settings.recommended_burst_ps
    card.max_displacement = round(data.displacement_bound_nm(lags), 4)
    card.bond_windows = bond_windows(molecule, frames)
    card.angle_windows = angle_windows(molecule, frames)
    card.torsion_windows = torsion_windows(molecule, frames)
    # Biased runs too: their weights are not those of equilibrium, their frames are real.
    runs = data.dataset.runs
    card.contact_distances = contact_distances(molecule, *(run.positions for run in runs))
    card.constraint_lengths = known.get("constraint_lengths_nm") or constraint_lengths(
        molecule, frames
    )
    card.temperature = known.get("temperature_K")
    card.force_field = known.get("force_field")
    card.constraints = known.get("constraints")
    card.solvent = known.get("water")
    card.data = known
    card.data_timescales = data.timescales_ps
    card.training = training
    card.versions = {
        "openmm_sd": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    card.limits = [
        "There is no Metropolis test: the sampled law is the model's. Validate before use.",
        "One temperature and one friction: those of the training data.",
    ]
    return card


def read_by_molecule(datasets: Sequence[Path | str], say: Progress) -> list[Dataset]:
    """Read data sets and merge those of one molecule."""
    say("reading", ", ".join(Path(d).name for d in datasets))
    groups: list[list[Dataset]] = []
    for part in map(read_dataset, datasets):
        for group in groups:
            if not difference(group[0].molecule, part.molecule):
                group.append(part)
                break
        else:
            groups.append([part])
    return [merge(group) if len(group) > 1 else group[0] for group in groups]


def read_relative(file: Path) -> Molecule:
    """Read a molecule that no data is seen of; its name is the file's."""
    structure = load_structure(file)
    centred = structure.positions - structure.positions.mean(axis=0)
    try:
        return Molecule.from_topology(structure.topology, centred, file.stem)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def check_names(without: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse to leave out runs that are not there."""
    unknown = sorted(set(without) - {run.name for run in runs})
    if unknown:
        raise ValueError(f"there is no run {unknown[0]} in the data sets")


def prepared_runs(data: Dataset, settings: StageSettings) -> tuple[list[Run], list[Run], list[Run]]:
    """Bring a data set's unbiased runs to one spacing: return all, those kept, those held out.

    What seeded runs owe to their start is dropped. Runs are left out after the split, so that
    nothing changes sides.
    """
    unbiased = [run for run in data.runs if run.kind != BIASED]
    if not unbiased:
        raise ValueError("all runs are biased: their dynamics cannot be learned")
    spacing = max(run.spacing_ps for run in unbiased)
    runs = []
    for run in unbiased:
        stride = spacing / run.spacing_ps
        if abs(stride - round(stride)) > 1e-6:
            raise ValueError(
                f"run {run.name} has a frame each {run.spacing_ps:g} ps, which does not divide the "
                f"{spacing:g} ps of another run"
            )
        first = round(settings.drop_ps / run.spacing_ps) if run.kind == "seeded" else 0
        thinned = run.positions[first :: round(stride)]
        if len(thinned) > 1:
            runs.append(Run(run.name, run.kind, thinned, spacing, run.info))
    if not runs:
        raise ValueError("no run has two frames left after its beginning is dropped")
    kept, held = (
        _left_in(some, settings)
        for some in split_runs(runs, settings.held_out, settings.training.seed)
    )
    if not kept:
        raise ValueError("every run is left out")
    return _left_in(runs, settings), kept, held


def _left_in(runs: Sequence[Run], settings: StageSettings) -> list[Run]:
    return [run for run in runs if run.name not in settings.without]


def split_runs(runs: Sequence[Run], share: float, seed: int) -> tuple[list[Run], list[Run]]:
    """Split runs into those that are trained on and those that are held out; no frame is in both.

    `share` is that of the time to hold out. Of every kind of which there are enough, whole runs are
    held out, chosen by the seed; of a kind with few runs the ends of all of them.
    """
    if share == 0.0:
        return list(runs), []
    kept: list[Run] = []
    held: list[Run] = []
    rng = np.random.default_rng(seed)
    for kind in sorted({run.kind for run in runs}):
        ours = [run for run in runs if run.kind == kind]
        if len(ours) * share >= 1.0:
            chosen = set(rng.choice(len(ours), round(len(ours) * share), replace=False).tolist())
            for k, run in enumerate(ours):
                (held if k in chosen else kept).append(run)
            continue
        for run in ours:
            cut = round(run.n_frames * (1.0 - share))
            if run.n_frames - cut < _SHORTEST_HELD_OUT:
                kept.append(run)
                continue
            kept.append(replace(run, positions=run.positions[:cut]))
            held.append(replace(run, positions=run.positions[cut:]))
    return kept, held


def _cells_of(data: Dataset, runs: Sequence[Run], settings: StageSettings) -> Cells:
    """Return the cells of some runs of a molecule over its slow torsions."""
    biased = [run for run in data.runs if run.kind == BIASED]
    weights = [run.log_weights for run in biased if run.log_weights is not None]
    return Cells.of(
        _angles_of(data.molecule, runs),
        runs[0].spacing_ps,
        weights_lag_ps=min(_WEIGHTS_LAG_PS, settings.markov_lag_ps),
        weighted=list(zip(_angles_of(data.molecule, biased), weights, strict=True)),
        seed=settings.training.seed,
    )


def _angles_of(molecule: Molecule, runs: Sequence[Run]) -> list[NDArray[np.float64]]:
    """Return the slow torsions of each run, (T, D) radians; one zero where there are none."""
    torsions = slow_torsions(molecule)
    if not torsions:
        return [np.zeros((run.n_frames, 1)) for run in runs]
    return [
        np.stack([dihedral(run.positions, torsion) for torsion in torsions], axis=1) for run in runs
    ]


def novelty_of(
    molecule: Molecule, kept: Sequence[Run], held: Sequence[Run], seed: int
) -> tuple[Novelty, NoveltyOrigin]:
    """Make the novelty score of training runs, and what the card says about it.

    Without held-out runs the threshold is made from the last tenth of the frames. The seed is that
    of the choice among more frames than are needed.
    """
    frames, others = novelty_frames(kept, held, seed)
    novelty = fit_novelty(molecule, frames, others, seed=seed)
    scores = torch.cat([novelty(part) for part in torch.from_numpy(others).split(1000)])
    return novelty, {
        "threshold": novelty.threshold,
        "frames": len(frames),
        "held_out_frames": len(others),
        "held_out_fired": int((scores > novelty.threshold).sum()),
        "held_out_highest": round(float(scores.max()), 4),
        "environment": "atomic environment vectors with the symmetry functions of ANI-2x",
    }


def novelty_frames(
    kept: Sequence[Run], held: Sequence[Run], seed: int
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Return the frames that a novelty score is made from, and those of its threshold."""
    rng = np.random.default_rng(seed)
    frames = _some(kept, rng)
    return (frames, _some(held, rng)) if held else hold_out(frames)


def _some(runs: Sequence[Run], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return some of the runs' frames in their order, all of them if there are few."""
    frames = np.concatenate([run.positions for run in runs]).astype(np.float32)
    if len(frames) > _NOVELTY_FRAMES:
        frames = frames[np.sort(rng.choice(len(frames), _NOVELTY_FRAMES, replace=False))]
    return frames
