"""From data sets to a bundle: what ``openmm-sd train`` does.

One molecule is a family of one: whatever is trained, it is a list of members that share a training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..data.dataset import Dataset, read_dataset
from ..files.atomic import check_target, file_sha256
from ..model.card import Training
from ..model.model import ScoreModel
from ..model.pooled import PooledNovelty, fit_pooled
from ..model.relatives import card_of_relative, windows_of_relatives
from ..molecule.matching import difference
from ..progress import Progress, silence
from ..propagator.device import chosen_device
from ..propagator.internal.transferable import TransferableDiffusion
from ..settings import check_whole
from .data import (
    TrainingData,
    check_names,
    make_card,
    novelty_frames,
    novelty_of,
    prepared_runs,
    read_by_molecule,
    sizes_of,
)
from .family import check_family, terms_of, torsion_terms_of
from .networks import (
    Network,
    build_family,
    build_network,
    build_transferable,
    family_statistics,
    fit_statistics,
    network_name,
    network_of,
)
from .settings import AUTO, FAMILIES, FAMILY, TRANSFERABLE, StageSettings, TrainSettings
from .team import Team, join_team, leads
from .together import Together
from .trainer import Part, TrainingRecord, held_out_loss, train

#: Lags of the reported losses, ps, as far as the model covers them.
_REPORT_LAGS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
#: Pairs for the held-out loss at each of them, on the card.
_HELD_OUT_PAIRS: Final = 4096
#: Lags between those that the scale of turning is stored at, if the settings do not say.
_LAG_NODES: Final = 12


def train_bundle(
    datasets: Sequence[Path | str],
    output: Path | str,
    settings: StageSettings | None = None,
    *,
    progress: Progress | None = None,
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
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        The card's training part, and where the bundle is. None in all processes but the first.
    """
    settings = settings or StageSettings()
    say = (progress if leads() else None) or silence
    output = Path(output)
    check_output(output, datasets)
    several = read_by_molecule(datasets, say)
    check_names(settings.without, [run for data in several for run in data.runs])
    kind = settings.network
    if kind == AUTO and settings.init is not None:
        kind = network_of(settings.init)
    if kind not in FAMILIES and len(several) > 1:
        kind = FAMILY
    family = kind in FAMILIES
    with join_team(chosen_device(settings.device)) as team:
        extra = _extra_data(several, settings, family)
        taught = [TrainingData.of(data, settings, team.device, say) for data in (*several, *extra)]
        members = taught[: len(several)]
        lags = _lags_in_common(taught)
        torch.manual_seed(settings.training.seed)
        say("measuring the coordinates", f"{len(members)} molecules" if family else "")
        if family:
            networks = _family(kind, taught, members, lags, settings, team.device)
        else:
            networks = [_single(taught[0], lags, settings, team.device)]
        # A step has more pairs of a larger molecule.
        parts = [
            Part(network, data.pairs, data.held_out, _heavy_atoms(data) if family else 1.0)
            for network, data in zip(networks, taught, strict=False)
        ]
        began = time.monotonic()
        shown = [lag for lag in _REPORT_LAGS if lags[0] * 0.999 <= lag <= lags[1] * 1.001]
        record = train(
            [Together(parts)] if kind == TRANSFERABLE else parts,
            settings.training,
            lags_ps=shown[:: 3 if family else 2],
            checkpoint=checkpoint_of(output),
            progress=progress_report(settings.training, say),
            team=team,
        )
    if not team.leads:
        return None
    say("writing", output.name)
    if isinstance(networks[0], TransferableDiffusion):
        networks[0].round_weights()
    losses = _held_out_losses(parts, taught, settings.training, shown)
    files = [*datasets, *settings.extra_data]
    training: Training = {
        "network": network_name(networks[0]),
        **(_account_of_family(taught, members, settings) if family else taught[0].account()),
        "data_sets": [{"file": Path(path).name, "sha256": file_sha256(path)} for path in files],
        "runs_left_out": sorted(settings.without),
        "lags": f"log-uniform, {lags[0]:g} to {lags[1]:g} ps",
        "time_reversal": settings.time_reversal,
        **({"by_molecule": {d.molecule.name: d.account() for d in taught}} if family else {}),
        "init": Path(settings.init).name if settings.init else None,
        **history_entry(record, settings.training, team),
    }
    if family:
        training["held_out_loss_by_lag_ps"] = losses
    elif any(losses.values()):
        training["held_out_loss_by_lag_ps"] = losses[members[0].molecule.name]
    for network in networks:
        network.to("cpu")
    models = _models(networks, members, lags, training, settings, say)
    cards = [(model.molecules[0], model.card) for model in models]
    for molecule, network in zip(settings.also, networks[len(taught) :], strict=True):
        card = card_of_relative(molecule, cards)
        # A single structure, until somebody has more.
        start = np.asarray(molecule.positions)[None]
        models.append(ScoreModel(network, molecule, card, start_frames=start))
    model = ScoreModel.family(models) if family else models[0]
    if kind == TRANSFERABLE:
        model.pooled_novelty = _pooled(taught, settings, say)
    return finish(model, output, training, began)


def _extra_data(several: Sequence[Dataset], settings: StageSettings, family: bool) -> list[Dataset]:
    """Check what is to be trained together, and read the data of no member."""
    if not family:
        if settings.also or settings.extra_data:
            what = "also: a molecule without data" if settings.also else "aside: data of no member"
            raise ValueError(f"{what} can only join a family; take --network {FAMILY}")
        return []
    if settings.network not in (AUTO, *FAMILIES):
        names = ", ".join(data.molecule.name for data in several)
        raise ValueError(
            f"the data sets are of several molecules ({names}), which only --network family can "
            f"learn together, got {settings.network}"
        )
    extra = [read_dataset(path) for path in settings.extra_data]
    check_family([*several, *extra], settings.also)
    return extra


def _lags_in_common(taught: Sequence[TrainingData]) -> tuple[float, float]:
    ranges = [data.lag_range_ps for data in taught]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if not low < high:
        raise ValueError(
            f"the molecules' data have no lags in common: from {low:g} ps, up to {high:g} ps"
        )
    return low, high


def _single(
    data: TrainingData, lags: tuple[float, float], settings: StageSettings, device: torch.device
) -> Network:
    """Return the network of one molecule."""
    arguments = {"lag_min_ps": lags[0], "lag_max_ps": lags[1], **settings.network_settings}
    network = build_network(
        data.molecule, data.some_frames(), arguments, settings.network, settings.init
    ).to(device)
    fit_statistics(network, data.pairs, settings.training.seed)
    return network


def _family(
    kind: str,
    taught: Sequence[TrainingData],
    members: Sequence[TrainingData],
    lags: tuple[float, float],
    settings: StageSettings,
    device: torch.device,
) -> list[Network]:
    """Return networks that share their weights: of those with data, then of those without."""
    arguments = {**settings.network_settings, "lag_min_ps": lags[0], "lag_max_ps": lags[1]}
    if kind == TRANSFERABLE:
        molecules = [*(data.molecule for data in taught), *settings.also]
        known = [data.dataset for data in taught] + [taught[0].dataset] * len(settings.also)
        return [
            *build_transferable(
                [(data.molecule, data.pairs) for data in taught],
                settings.also,
                [terms_of(molecule, data) for molecule, data in zip(molecules, known, strict=True)],
                float(taught[0].dataset.provenance["temperature_K"]),
                arguments,
                settings.init,
                settings.training.seed,
                device,
            )
        ]
    statistics = family_statistics(
        [(data.molecule, data.pairs) for data in members],
        *lags,
        int(arguments.get("n_lag_nodes", _LAG_NODES)),
        settings.training.seed,
    )
    # Those without data as well: what the data does not say of them shows before the training.
    molecules = [*(data.molecule for data in taught), *settings.also]
    terms = torsion_terms_of([data.dataset for data in taught], settings.also)
    return [*build_family(molecules, terms, statistics, arguments, settings.init, device)]


def _heavy_atoms(data: TrainingData) -> float:
    return float(sum(z != 1 for z in data.molecule.atomic_numbers))


def _account_of_family(
    taught: Sequence[TrainingData], members: Sequence[TrainingData], settings: StageSettings
) -> Training:
    return {
        "molecules": [data.molecule.name for data in members],
        "aside": [data.molecule.name for data in taught[len(members) :]],
        "without_data": [molecule.name for molecule in settings.also],
        **sizes_of(taught),
    }


def _held_out_losses(
    parts: Sequence[Part],
    taught: Sequence[TrainingData],
    settings: TrainSettings,
    lags: Sequence[float],
) -> dict[str, dict[str, float]]:
    """Return the held-out losses by molecule and lag."""
    found = {}
    for part, data in zip(parts, taught, strict=True):
        if part.held_out is None:
            continue
        possible = [lag for lag in lags if lag <= part.held_out.longest_lag_ps()]
        losses = held_out_loss(part.model, part.held_out, settings, possible, _HELD_OUT_PAIRS)
        found[data.molecule.name] = {f"{k:g}": round(v, 5) for k, v in losses.items()}
    return found


def _models(
    networks: Sequence[Network],
    members: Sequence[TrainingData],
    lags: tuple[float, float],
    training: Training,
    settings: StageSettings,
    say: Progress,
) -> list[ScoreModel]:
    """Return the models of the molecules with data."""
    # What is recommended goes for the slowest of them.
    recommended = max(data.recommended_lag_ps(lags, say) for data in members)
    family = training["network"] in FAMILIES
    models = []
    for network, data in zip(networks, members, strict=False):
        molecule = data.molecule
        if family:
            name = molecule.name
            names = ", ".join(training["molecules"])
            description = f"One set of weights for {names}."
        else:
            name = settings.name or molecule.name
            description = f"{molecule.name} ({molecule.formula}), trained with openmm-sd train."
        description = settings.description or description
        card = make_card(data, lags, recommended, training, name, description)
        if family:
            # The same for atoms that are alike: the law of the jumps does not tell them apart.
            card |= windows_of_relatives(molecule, [(molecule, card)])
        frames = data.start_frames()
        novelty = None
        if training["network"] != TRANSFERABLE:  # that has one for all molecules
            what = f"{molecule.name}, {len(data.pairs)} frames"
            say("measuring what the training frames cover", what)
            seed = settings.training.seed
            novelty, card.novelty = novelty_of(molecule, data.kept, data.held, seed)
        models.append(ScoreModel(network, molecule, card, start_frames=frames, novelty=novelty))
    return models


def _pooled(
    taught: Sequence[TrainingData], settings: StageSettings, say: Progress
) -> PooledNovelty:
    """Return the novelty score of whatever a network serves."""
    say("measuring what the training frames cover", f"{len(taught)} molecules together")
    seed = settings.training.seed
    return fit_pooled(
        [(data.molecule, *novelty_frames(data.kept, data.held, seed)) for data in taught]
    )


def checkpoint_of(output: Path) -> Path:
    """Return where the state of a training is kept until the bundle is written."""
    return output.with_name(output.name + ".checkpoint")


def finish(model: ScoreModel, output: Path, training: Training, began: float) -> dict[str, Any]:
    """Write the bundle of a training and remove its checkpoint.

    Returns the training part without its history, where the bundle is, and how long it took;
    `began` is by the monotonic clock.
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


def history_entry(record: TrainingRecord, settings: TrainSettings, team: Team) -> Training:
    """Return what a card says of how a training went."""
    return {
        "steps": record.steps,
        "wall_minutes": round(record.minutes, 1),
        "device": str(team.device),
        "processes": team.size,
        "threads": torch.get_num_threads(),
        "settings": settings.told(),
        "history": record.history,
    }


def progress_report(settings: TrainSettings, say: Progress) -> Callable[[TrainingRecord], None]:
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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Give a bundle a novelty score made from its training data; all else stays as it is.

    A network that serves any molecule gets the score of those that it was not trained on, made from
    data of as many molecules as there are.

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
    progress : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        The card's entry ``novelty``, and where the new bundle is.
    """
    settings = settings or StageSettings()
    say = progress or silence
    output = Path(output)
    check_output(output, datasets)
    loaded = ScoreModel.load(bundle)
    if loaded.serves_others:
        return _add_pooled(loaded, datasets, output, settings, say)
    model = loaded.only()
    molecule = model.molecules[0]
    several = read_by_molecule(datasets, say)
    for data in several:
        different = difference(molecule, data.molecule)
        if different:
            raise ValueError(f"{bundle} is of another molecule than the data: {different}")
    check_names(settings.without, several[0].runs)
    _, kept, held = prepared_runs(several[0], settings)
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


def _add_pooled(
    model: ScoreModel,
    datasets: Sequence[Path | str],
    output: Path,
    settings: StageSettings,
    say: Progress,
) -> dict[str, Any]:
    """Give a bundle what the novelty score of molecules without data is made from."""
    several = read_by_molecule(datasets, say)
    check_names(settings.without, [run for data in several for run in data.runs])
    known = []
    for data in several:
        _, kept, held = prepared_runs(data, settings)
        known.append((data.molecule, *novelty_frames(kept, held, settings.training.seed)))
    say("measuring what the training frames cover", f"{len(several)} molecules together")
    pooled = model.pooled_novelty = fit_pooled(known)
    say("writing", output.name)
    model.save(output)
    return {
        "bundle": str(output),
        "sha256": file_sha256(output),
        "threshold": pooled.threshold,
        "molecules": [molecule.name for molecule, *_ in known],
        "kinds": len(pooled.tensors["kinds"]),
    }


def check_output(output: Path, datasets: Sequence[Path | str]) -> None:
    """Refuse a bundle that cannot be written, and data sets that are not there."""
    check_bundle_path(output)
    if not datasets:
        raise ValueError("name at least one data set")


def check_bundle_path(output: Path) -> None:
    """Refuse a bundle that cannot be written."""
    if output.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {output.name}")
    check_target(output)


def use_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None leaves the choice to it."""
    check_whole("threads", threads)
    if threads is not None:
        torch.set_num_threads(threads)
