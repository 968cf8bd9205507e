"""From a data set to a bundle: what ``openmm-sd train`` does."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..analysis import dihedral
from ..data.dataset import BIASED, Dataset, Run, merge, read_dataset
from ..files.atomic import file_sha256
from ..model.card import Card, NoveltyOrigin, Training
from ..model.model import ScoreModel
from ..model.novelty import Novelty, fit_novelty, hold_out
from ..molecule.frames import constraint_lengths
from ..molecule.matching import difference
from ..molecule.molecule import Molecule
from ..molecule.torsions import slow_torsions
from ..propagator.alignment import align_frames
from ..propagator.cartesian.dense import DenseDiffusion
from ..propagator.internal.family import FamilyDiffusion
from ..propagator.internal.single import InternalDiffusion
from ..propagator.internal.tree import InternalTree, NotInternal, constant_lengths, turning_torsions
from ..version import __version__
from .markov import MarkovModel, fit_markov, timescales_by_lag
from .pairs import TransitionPairs, methyl_rotors
from .team import Team, leads, team
from .trainer import TrainingRecord, TrainSettings, fit_statistics, held_out_loss, train
from .windows import angle_windows, bond_windows, contact_distances, torsion_windows

NETWORKS: Final = {
    "internal": InternalDiffusion,
    "dense": DenseDiffusion,
}
"""Networks by the name that ``--network`` takes."""

AUTO: Final = "auto"
"""What ``--network`` is by default: the first of them that suits the molecule."""

FAMILY: Final = "family"
"""The network for several molecules, and what ``auto`` takes for them."""

#: What says which coordinates a network's weights belong to.
_COORDINATES: Final = (
    "n_atoms",
    "frame_atoms",
    "heavy_atoms",
    "root",
    "tree",
    "turning",
    "constant",
)
#: Frames at which a network looks to choose its coordinates.
_LOOK_AT: Final = 2000
#: Lags of the reported losses, ps, as far as the model covers them.
REPORT_LAGS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
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

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class StageSettings:
    """What is trained, on what, for how long.

    Attributes
    ----------
    network : str
        ``internal`` (one molecule, internal coordinates), ``dense`` (one molecule, Cartesian) or
        ``family`` (several molecules, internal coordinates). ``auto`` takes ``family`` for several
        molecules; for one ``internal`` where it suits the molecule, which is without rings and
        straight chains, and else ``dense``.
    network_settings : dict
        Arguments of the network's class, e.g. ``{"width": 256}``.
    lag_min_ps, lag_max_ps : float
        Lags the model learns, ps. The longest is cut to what the data supports.
    time_reversal : bool
        Read pairs in both directions, weighted as equilibrium demands.
    compose_from_ps : float or None
        Lags from here on are composed with the Markov model of the data; None: never. Without
        `time_reversal` there is no Markov model.
    markov_lag_ps : float
        Lag of that Markov model, ps.
    drop_ps : float
        Left out at the beginning of every run that is not plain: what it still owes to its start.
    held_out : float
        Share of the data kept for the held-out loss: whole runs, or the ends of long ones.
    without : tuple of str
        Names of runs that are left out.
    also : tuple of Molecule
        Molecules without data that a family's weights shall serve as well.
    aside : tuple of str
        Data sets that a family learns from without having their molecules: the same molecules with
        other torsion terms, for instance.
    start_frames : int
        Equilibrium frames that the bundle carries for rollouts.
    init : str or None
        Bundle whose weights are the first ones; the same network for the same number of atoms.
    name, description : str or None
        For the card.
    recommended_lag_ps, recommended_burst_ps : float or None
        For the card; the lag is worked out from the data by default.
    device : str
        ``cpu``, ``cuda``, or ``auto``.
    training : TrainSettings
        How.
    """

    network: str = "auto"
    network_settings: dict[str, Any] = field(default_factory=dict)
    lag_min_ps: float = 1.0
    lag_max_ps: float = 1000.0
    time_reversal: bool = True
    compose_from_ps: float | None = 100.0
    markov_lag_ps: float = 10.0
    drop_ps: float = 1.0
    held_out: float = 0.1
    without: tuple[str, ...] = ()
    also: tuple[Molecule, ...] = ()
    aside: tuple[str, ...] = ()
    start_frames: int = 1000
    init: str | None = None
    name: str | None = None
    description: str | None = None
    recommended_lag_ps: float | None = None
    recommended_burst_ps: float | None = None
    device: str = "auto"
    training: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if self.network not in (AUTO, *NETWORKS, FAMILY):
            known = ", ".join((AUTO, *NETWORKS, FAMILY))
            raise ValueError(f"network must be one of {known}, got {self.network!r}")
        if not 0.0 < self.lag_min_ps < self.lag_max_ps:
            raise ValueError(
                f"the shortest lag must be positive and below the longest, got {self.lag_min_ps:g} "
                f"and {self.lag_max_ps:g} ps"
            )
        if not 0.0 <= self.held_out <= 0.5:
            raise ValueError(f"the held-out share must lie in 0 to 0.5, got {self.held_out:g}")
        if self.start_frames < 1:
            raise ValueError(f"start frames must be at least 1, got {self.start_frames}")


def train_bundle(
    datasets: Sequence[Path | str],
    output: Path | str,
    settings: StageSettings | None = None,
    *,
    report: Report | None = None,
) -> dict[str, Any] | None:
    """Train a model on data sets and write its bundle.

    Started by ``torchrun``, all processes train together; the first one writes the bundle.

    Parameters
    ----------
    datasets : sequence of Path or str
        Files of :mod:`openmm_sd.data.dataset`: of one molecule, or of several that share weights.
    output : Path or str
        The bundle, with the ending ``.safetensors``. While training is under way its state is in
        the file of that name with ``.checkpoint`` added; the same call goes on from it.
    settings : StageSettings, optional
        What and how.
    report : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        The card's training part, and where the bundle is. None in all processes but the first.
    """
    settings = settings or StageSettings()
    say = (report if leads() else None) or (lambda what, how_far: None)
    output = Path(output)
    check_output(output, datasets)
    several = read_by_molecule(datasets, say)
    check_names(settings.without, [run for data in several for run in data.runs])
    device = chosen_device(settings.device)
    if len(several) > 1 or settings.network == FAMILY or _goes_on_with_a_family(settings):
        from .family_driver import train_family

        with team(device) as crew:
            return train_family(several, datasets, output, settings, crew, say)
    if settings.also or settings.aside:
        what = "also: a molecule without data" if settings.also else "aside: data of no member"
        raise ValueError(f"{what} can only join a family; take --network family")
    with team(device) as crew:
        device = crew.device
        material = Material.of(several[0], settings, device, say)
        data, molecule, spacing = material.data, material.molecule, material.spacing_ps
        runs, kept, held, biased = material.runs, material.kept, material.held, material.biased
        pairs, held_out = material.pairs, material.held_out
        lag_min, lag_max = lag_range(kept, spacing, settings)

        torch.manual_seed(settings.training.seed)
        some = np.concatenate([run.positions for run in kept])
        lags = {"lag_min_ps": lag_min, "lag_max_ps": lag_max}
        network = build_network(molecule, some[:: max(1, len(some) // _LOOK_AT)], lags, settings)
        network = network.to(device)
        fit_statistics(network, pairs, settings.training.seed)
        began = time.monotonic()
        progress = teller(settings.training, say)
        shown = [lag for lag in REPORT_LAGS if lag_min * 0.999 <= lag <= lag_max * 1.001]
        if held_out is not None:
            shown = [lag for lag in shown if lag <= held_out.longest_lag_ps()]
        record = train(
            network,
            pairs,
            settings.training,
            held_out=held_out if shown else None,
            lags_ps=shown[::2],
            checkpoint=checkpoint_of(output),
            report=progress,
            crew=crew,
        )
    if not crew.leads:
        return None
    say("writing", output.name)
    network = network.to("cpu")
    description: Training = {
        "network": next(name for name, cls in NETWORKS.items() if isinstance(network, cls)),
        **material.account(settings),
        "data_sets": [{"file": Path(path).name, "sha256": file_sha256(path)} for path in datasets],
        "runs_left_out": sorted(settings.without),
        "lags": f"log-uniform, {lag_min:g} to {lag_max:g} ps",
        "time_reversal": settings.time_reversal,
        "init": Path(settings.init).name if settings.init else None,
        **course(record, settings.training, crew),
    }
    if held_out is not None and shown:
        losses = held_out_loss(network.to(device), held_out, settings.training, shown, 4096)
        description["held_out_loss_by_lag_ps"] = {f"{k:g}": round(v, 5) for k, v in losses.items()}
        network = network.to("cpu")
    card = make_card(data, runs, spacing, (lag_min, lag_max), settings, description)
    frames = equilibrium_frames(runs, biased, molecule, settings)
    say("measuring what the training frames cover", f"{len(pairs)} frames")
    novelty, card.novelty = novelty_of(molecule, kept, held, settings.training.seed)
    model = ScoreModel(network, molecule, card, start_frames=frames, novelty=novelty)
    return finish(model, output, description, began)


def checkpoint_of(output: Path) -> Path:
    """Return where the state of a training is kept until the bundle is written."""
    return output.with_name(output.name + ".checkpoint")


def finish(model: ScoreModel, output: Path, training: Training, began: float) -> dict[str, Any]:
    """Write the bundle of a training and do away with its checkpoint.

    Parameters
    ----------
    model : ScoreModel
        What was trained.
    output : Path
        The bundle.
    training : Training
        The card's training part.
    began : float
        By the monotonic clock.

    Returns
    -------
    dict
        The training part without its history, where the bundle is, and how long it took.
    """
    model.save(output)
    checkpoint_of(output).unlink(missing_ok=True)
    return {
        "bundle": str(output),
        "sha256": file_sha256(output),
        "seconds": round(time.monotonic() - began, 1),
        "recommended_lag_ps": model.recommended_lag,
        **{k: v for k, v in training.items() if k != "history"},
    }


@dataclass(frozen=True, eq=False)
class Material:
    """What a training has of one molecule.

    Attributes
    ----------
    data : Dataset
        Without the runs that are left out.
    runs, kept, held, biased : list of Run
        Unbiased runs of one spacing, those of them that are trained on and held out, and the
        biased ones.
    spacing_ps : float
        Of these runs, ps.
    markov : MarkovModel or None
        Of what is kept.
    pairs, held_out : TransitionPairs
        The latter None if nothing is held out.
    """

    data: Dataset
    runs: list[Run]
    kept: list[Run]
    held: list[Run]
    biased: list[Run]
    spacing_ps: float
    markov: MarkovModel | None
    pairs: TransitionPairs
    held_out: TransitionPairs | None

    @property
    def molecule(self) -> Molecule:
        """The molecule."""
        return self.data.molecule

    @classmethod
    def of(
        cls, data: Dataset, settings: StageSettings, device: torch.device, say: Report
    ) -> Material:
        """Prepare a data set.

        Parameters
        ----------
        data : Dataset
            All of the molecule.
        settings, device, say
            As `train_bundle` has them.
        """
        runs, spacing = _prepared(data, settings)
        kept, held = _kept_and_held(runs, settings)
        runs = left_in(runs, settings.without)
        data = replace(data, runs=tuple(left_in(data.runs, settings.without)))
        biased = [run for run in data.runs if run.kind == BIASED]
        molecule = data.molecule
        markov = None
        if settings.time_reversal:
            say("fitting the Markov model", f"{sum(r.n_frames for r in kept)} frames")
            seed = settings.training.seed
            markov = markov_of(molecule, kept, biased, settings.markov_lag_ps, seed)
        pairs = TransitionPairs(
            [run.positions for run in kept],
            spacing,
            device,
            markov=markov,
            compose_from_ps=settings.compose_from_ps,
            rotors=methyl_rotors(molecule),
        )
        # Held-out pairs are read forwards only: nothing that was estimated enters them.
        held_out = (
            TransitionPairs([run.positions for run in held], spacing, device) if held else None
        )
        return cls(data, runs, kept, held, biased, spacing, markov, pairs, held_out)

    def account(self, settings: StageSettings) -> Training:
        """Return what the card says of it."""
        markov = self.markov
        return {
            "frames": len(self.pairs),
            "ns": round(sum(run.length_ps for run in self.kept) / 1000.0, 3),
            "runs": len(self.kept),
            "held_out_runs": len(self.held),
            # The last so many ps of these runs, as `openmm_sd.data.reference` reads it.
            "held_out_ps": {run.name: round(run.length_ps, 6) for run in self.held},
            "spacing_ps": self.spacing_ps,
            "composed_from_ps": settings.compose_from_ps if markov is not None else None,
            "markov_lag_ps": markov.lag_ps if markov is not None else None,
            "conformations": markov.n_states if markov is not None else None,
            "markov_timescales_ps": (
                [round(float(t), 1) for t in markov.timescales(3)] if markov is not None else None
            ),
        }


def course(record: TrainingRecord, settings: TrainSettings, crew: Team) -> Training:
    """Return what a card says of how a training went."""
    return {
        "steps": record.steps,
        "wall_minutes": round(record.minutes, 1),
        "device": str(crew.device),
        "processes": crew.size,
        "threads": torch.get_num_threads(),
        "settings": asdict(settings),
        "history": record.history,
    }


def teller(settings: TrainSettings, say: Report) -> Callable[[TrainingRecord], None]:
    """Return what tells how far a training is."""

    def progress(record: TrainingRecord) -> None:
        entry = record.history[-1]
        held_text = ", ".join(f"{k} ps {v:.4f}" for k, v in entry.get("held_out", {}).items())
        say(
            "training",
            f"{record.minutes:.1f} of {settings.minutes:g} min, step {record.steps}, "
            f"loss {entry['loss']:.4f}" + (f", held out {held_text}" if held_text else ""),
        )

    return progress


def add_novelty(
    bundle: Path | str,
    datasets: Sequence[Path | str],
    output: Path | str,
    settings: StageSettings | None = None,
    *,
    report: Report | None = None,
) -> dict[str, Any]:
    """Give a bundle a novelty score made from its training data; all else stays as it is.

    Parameters
    ----------
    bundle : Path or str
        A bundle, or the name of a shipped model.
    datasets : sequence of Path or str
        The data sets that it was trained on.
    output : Path or str
        The new bundle, with the ending ``.safetensors``; it may be the old one's path.
    settings : StageSettings, optional
        `held_out`, `drop_ps` and the seed of training are used: those that the model was trained
        with, so that the held-out runs are the same. And `without`: what only the runs show that
        are left out is novel.
    report : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        The card's entry ``novelty``, and where the new bundle is.
    """
    settings = settings or StageSettings()
    say = report or (lambda what, how_far: None)
    output = Path(output)
    check_output(output, datasets)
    model = ScoreModel.load(bundle).only()
    data = _read(datasets, say)
    molecule = model.molecules[0]
    different = difference(molecule, data.molecule)
    if different:
        raise ValueError(f"{bundle} is of another molecule than the data: {different}")
    runs, _ = _prepared(data, settings)
    check_names(settings.without, runs)
    kept, held = _kept_and_held(runs, settings)
    say("measuring what the training frames cover", f"{sum(r.n_frames for r in kept)} frames")
    novelty, entry = novelty_of(molecule, kept, held, settings.training.seed)
    entry["data_sets"] = [{"file": Path(d).name, "sha256": file_sha256(d)} for d in datasets]
    entry["runs_left_out"] = sorted(settings.without)
    card = model.card
    card.novelty = entry
    say("writing", output.name)
    ScoreModel(
        model.propagator, model.molecules, card, start_frames=model.start_frames, novelty=novelty
    ).save(output)
    return {"bundle": str(output), "sha256": file_sha256(output), **entry}


def novelty_of(
    molecule: Molecule, kept: Sequence[Run], held: Sequence[Run], seed: int
) -> tuple[Novelty, NoveltyOrigin]:
    """Make the novelty score of training runs, and what the card says about it.

    Parameters
    ----------
    molecule : Molecule
        The molecule.
    kept, held : sequence of Run
        Runs that were trained on, and runs held out; without the latter the threshold is made
        from the last tenth of the former's frames.
    seed : int
        Seed of the choice among more frames than are needed.

    Returns
    -------
    novelty : Novelty
        The score.
    entry : NoveltyOrigin
        What the card says of it.
    """
    rng = np.random.default_rng(seed)
    frames = _some(kept, rng)
    if held:
        others = _some(held, rng)
    else:
        frames, others = hold_out(frames)
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


def _some(runs: Sequence[Run], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return some of the runs' frames in their order, all of them if there are few."""
    frames = np.concatenate([run.positions for run in runs]).astype(np.float32)
    if len(frames) > _NOVELTY_FRAMES:
        frames = frames[np.sort(rng.choice(len(frames), _NOVELTY_FRAMES, replace=False))]
    return frames


def read_by_molecule(datasets: Sequence[Path | str], say: Report) -> list[Dataset]:
    """Read data sets and merge those of one molecule.

    Parameters
    ----------
    datasets : sequence of Path or str
        Files.
    say : callable
        Told what is being done.
    """
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


def _read(datasets: Sequence[Path | str], say: Report) -> Dataset:
    say("reading", ", ".join(Path(d).name for d in datasets))
    parts = [read_dataset(path) for path in datasets]
    return merge(parts) if len(parts) > 1 else parts[0]


def check_names(without: Sequence[str], runs: Sequence[Run]) -> None:
    unknown = sorted(set(without) - {run.name for run in runs})
    if unknown:
        raise ValueError(f"there is no run {unknown[0]} in the data sets")


def _kept_and_held(runs: Sequence[Run], settings: StageSettings) -> tuple[list[Run], list[Run]]:
    """Split runs, and leave some out: after the split, so that nothing changes sides."""
    kept, held = (
        left_in(some, settings.without)
        for some in split_runs(runs, settings.held_out, settings.training.seed)
    )
    if not kept:
        raise ValueError("every run is left out")
    return kept, held


def check_output(output: Path, datasets: Sequence[Path | str]) -> None:
    """Refuse a bundle that cannot be written, and data sets that are not there."""
    check_bundle_path(output)
    if not datasets:
        raise ValueError("name at least one data set")


def check_bundle_path(output: Path) -> None:
    """Refuse a bundle that cannot be written."""
    if output.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {output.name}")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is not a directory: make it first")


def build_network(
    molecule: Molecule,
    frames: NDArray[np.floating[Any]],
    lags: dict[str, float],
    settings: StageSettings,
) -> DenseDiffusion | InternalDiffusion:
    """Build the network that the settings ask for, or that suits the molecule.

    Parameters
    ----------
    molecule : Molecule
        The molecule.
    frames : ndarray
        (T, N, 3), nm: frames that show how it moves.
    lags : dict
        ``lag_min_ps`` and ``lag_max_ps``.
    settings : StageSettings
        For the network, its arguments, and the bundle that weights are taken from.
    """
    name = settings.network
    arguments = {**lags, **settings.network_settings}
    if settings.init is not None:
        return _like_bundle(molecule, frames, arguments, settings)
    if name != AUTO:
        return NETWORKS[name].for_molecule(molecule, frames, **arguments)  # type: ignore[attr-defined]
    # A ring's last bond is no internal coordinate: its length would be what the others leave it.
    if not molecule.n_rings:
        with contextlib.suppress(NotInternal):
            return InternalDiffusion.for_molecule(molecule, frames, **arguments)
    return DenseDiffusion.for_molecule(molecule, frames, **arguments)


def _goes_on_with_a_family(settings: StageSettings) -> bool:
    """Whether the first weights, and with them the network, are a family's."""
    if settings.network != AUTO or settings.init is None:
        return False
    return isinstance(ScoreModel.load(settings.init).members[0].propagator, FamilyDiffusion)


def left_in(runs: Sequence[Run], without: Sequence[str]) -> list[Run]:
    """Return the runs whose names are not among those to leave out."""
    return [run for run in runs if run.name not in without]


def split_runs(runs: Sequence[Run], share: float, seed: int) -> tuple[list[Run], list[Run]]:
    """Split runs into those that are trained on and those that are held out.

    Of every kind of which there are enough, whole runs are held out, chosen by the seed; of a kind
    with few runs the ends of all of them.

    Parameters
    ----------
    runs : sequence of Run
        All.
    share : float
        Share of the time to hold out.
    seed : int
        Seed of the choice.

    Returns
    -------
    kept, held : list of Run
        No frame is in both.
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
            kept.append(_part(run, slice(0, cut)))
            held.append(_part(run, slice(cut, None)))
    return kept, held


def markov_of(
    molecule: Molecule,
    runs: Sequence[Run],
    biased: Sequence[Run],
    lag_ps: float,
    seed: int = 1,
) -> MarkovModel:
    """Fit the Markov model of some runs over the molecule's slow torsions."""
    spacing = runs[0].spacing_ps
    weighted = _weighted(molecule, biased)
    return fit_markov(angles_of(molecule, runs), spacing, lag_ps, weighted=weighted, seed=seed)


def _weighted(
    molecule: Molecule, biased: Sequence[Run]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the slow torsions and logarithmic weights of biased runs."""
    weights = [run.log_weights for run in biased if run.log_weights is not None]
    return list(zip(angles_of(molecule, biased), weights, strict=True))


def angles_of(molecule: Molecule, runs: Sequence[Run]) -> list[NDArray[np.float64]]:
    """Return the slow torsions of each run, (T, D) radians; one zero where there are none."""
    torsions = slow_torsions(molecule)
    if not torsions:
        return [np.zeros((run.n_frames, 1)) for run in runs]
    return [
        np.stack([dihedral(run.positions, torsion) for torsion in torsions], axis=1) for run in runs
    ]


def equilibrium_frames(
    runs: Sequence[Run], biased: Sequence[Run], molecule: Molecule, settings: StageSettings
) -> NDArray[np.float32]:
    """Draw frames with their equilibrium weights, each at most once where there are enough."""
    frames = np.concatenate([run.positions for run in runs])
    rng = np.random.default_rng(settings.training.seed)
    if settings.time_reversal:
        model = markov_of(molecule, runs, biased, settings.markov_lag_ps, settings.training.seed)
        weights = model.frame_weights()
    else:
        plain = np.concatenate([np.full(r.n_frames, r.kind != "seeded") for r in runs])
        weights = (plain if plain.any() else np.ones(len(plain))).astype(float)
        weights /= weights.sum()
    # Systematic resampling: a frame of weight w comes up w * count times, give or take one.
    count = min(settings.start_frames, len(frames))
    places = (np.arange(count) + rng.random()) / count
    shuffled = rng.permutation(len(frames))
    chosen = shuffled[
        np.searchsorted(np.cumsum(weights[shuffled]), places).clip(max=len(frames) - 1)
    ]
    return frames[np.sort(chosen)]


def make_card(
    data: Dataset,
    runs: Sequence[Run],
    spacing: float,
    lags: tuple[float, float],
    settings: StageSettings,
    training: Training,
) -> Card:
    """Return the card of a model trained on a data set, the measured fidelity excepted."""
    molecule = data.molecule
    frames = np.concatenate([run.positions for run in runs])
    known = data.provenance
    biased = [run for run in data.runs if run.kind == BIASED]
    timescales = _data_timescales(molecule, runs, biased) if settings.time_reversal else {}
    recommended = settings.recommended_lag_ps or _recommended(timescales, lags)
    card = Card()
    card.name = settings.name or molecule.name
    card.description = settings.description or (
        f"{molecule.name} ({molecule.formula}), trained with openmm-sd train."
    )
    card.kind = {
        "internal": "dense network in internal coordinates: this one molecule only",
        "dense": "dense network on a local frame: this one molecule only",
        FAMILY: "network in internal coordinates, one set of weights for several molecules",
    }[training["network"]]
    card.lag_range = [round(lags[0], 6), round(lags[1], 6)]
    card.recommended_lag = recommended
    card.recommended_burst = settings.recommended_burst_ps
    card.max_displacement = round(_displacement_bound(runs, spacing, lags, settings), 4)
    card.bond_windows = bond_windows(molecule, frames)
    card.angle_windows = angle_windows(molecule, frames)
    card.torsion_windows = torsion_windows(molecule, frames)
    # Biased runs too: their weights are not those of equilibrium, their frames are real.
    card.contact_distances = contact_distances(molecule, *(run.positions for run in data.runs))
    card.constraint_lengths = known.get("constraint_lengths_nm") or constraint_lengths(
        molecule, frames
    )
    card.temperature = known.get("temperature_K")
    card.force_field = known.get("force_field")
    card.constraints = known.get("constraints")
    card.solvent = known.get("water")
    card.data = known
    card.data_timescales = timescales
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


def _displacement_bound(
    runs: Sequence[Run], spacing: float, lags: tuple[float, float], settings: StageSettings
) -> float:
    pairs = TransitionPairs([run.positions for run in runs], spacing)
    generator = torch.Generator().manual_seed(settings.training.seed)
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


def _data_timescales(
    molecule: Molecule, runs: Sequence[Run], biased: Sequence[Run]
) -> dict[str, list[float]]:
    spacing = runs[0].spacing_ps
    longest = max(run.n_frames for run in runs) * spacing / 2
    lags = [lag for lag in _TIMESCALE_LAGS if spacing <= lag < longest]
    if not lags:
        return {}
    found = timescales_by_lag(
        angles_of(molecule, runs), spacing, lags, 3, weighted=_weighted(molecule, biased)
    )
    return {f"{lag:g}": np.round(times, 2).tolist() for lag, times in found.items() if len(times)}


def _recommended(timescales: dict[str, list[float]], lags: tuple[float, float]) -> float:
    """Shortest lag at which the second slowest timescale of the data has converged."""
    found = [(float(lag), t[min(1, len(t) - 1)]) for lag, t in timescales.items()]
    for k, (lag, slowest) in enumerate(found):
        later = [t for _, t in found[k:]]
        if lags[0] <= lag <= lags[1] and slowest >= _CONVERGED * max(later):
            return lag
    return float(np.clip(10.0, *lags))


def lag_range(runs: Sequence[Run], spacing: float, settings: StageSettings) -> tuple[float, float]:
    low = max(settings.lag_min_ps, spacing)
    high = settings.lag_max_ps
    longest = max(run.n_frames - 1 for run in runs) * spacing
    composing = settings.time_reversal and settings.compose_from_ps is not None
    if composing and settings.compose_from_ps is not None and longest >= settings.compose_from_ps:
        return low, high
    # Half of the longest run, so that the longest lag has pairs from more than one start.
    high = min(high, 0.5 * longest)
    if high <= low:
        raise ValueError(
            f"the longest run covers {longest:g} ps: too short for lags from {low:g} ps on"
        )
    return low, high


def _prepared(data: Dataset, settings: StageSettings) -> tuple[list[Run], float]:
    """Bring runs to one spacing, drop what seeded ones owe to their start."""
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
    return runs, spacing


def _part(run: Run, part: slice) -> Run:
    return Run(run.name, run.kind, run.positions[part], run.spacing_ps, run.info)


def _like_bundle(
    molecule: Molecule,
    frames: NDArray[np.floating[Any]],
    arguments: dict[str, Any],
    settings: StageSettings,
) -> DenseDiffusion | InternalDiffusion:
    """Build a network that starts with the weights, and the coordinates, of a bundle."""
    path = settings.init
    bundle = ScoreModel.load(str(path)).members[0]
    other = bundle.propagator
    name = next((key for key, cls in NETWORKS.items() if isinstance(other, cls)), "")
    if not name or settings.network not in (AUTO, name):
        wanted = "" if settings.network == AUTO else f", wanted is {settings.network}"
        raise ValueError(f"{path} holds a {type(other).__name__}{wanted}")
    # Weights mean something for the coordinates they were trained in only.
    different = difference(bundle.molecules[0], molecule)
    if different:
        raise ValueError(f"{path} is of another molecule than the data: {different}")
    known: dict[str, Any] = other.hyperparameters  # type: ignore[assignment]
    taken: dict[str, Any] = {key: known[key] for key in _COORDINATES if key in known}
    if isinstance(other, InternalDiffusion):
        tree = InternalTree(molecule.n_atoms, tuple(taken["root"]), taken["tree"])
        if not set(turning_torsions(tree, frames)) <= set(taken["turning"]):
            raise ValueError(f"in the data torsions turn that keep one value in {path}")
        if set(constant_lengths(tree, frames)) != set(taken["constant"]):
            raise ValueError(f"the data has other bonds constrained than {path}")
    elif isinstance(other, DenseDiffusion):
        taken["centred"] = True
    network: DenseDiffusion | InternalDiffusion = NETWORKS[name](**{**taken, **arguments})
    mine, theirs = dict(network.named_parameters()), dict(other.named_parameters())
    changed = [k for k in mine if k not in theirs or theirs[k].shape != mine[k].shape]
    if changed:
        raise ValueError(f"the network of {path} has another size ({changed[0]})")
    with torch.no_grad():
        for key, parameter in mine.items():
            parameter.copy_(theirs[key])
    return network


def use_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None leaves the choice to it."""
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def chosen_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, and this PyTorch finds no GPU")
    return device
