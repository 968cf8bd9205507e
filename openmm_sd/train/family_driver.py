"""Training of one set of weights for several molecules, and for relatives without data."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..data.dataset import Dataset, read_dataset
from ..files.atomic import file_sha256
from ..model.card import Card, Training
from ..model.model import ScoreModel
from ..molecule.matching import difference
from ..molecule.molecule import Molecule
from ..propagator.internal.family import FamilyDiffusion
from .driver import (
    AUTO,
    FAMILY,
    REPORT_LAGS,
    Material,
    Report,
    StageSettings,
    checkpoint_of,
    course,
    equilibrium_frames,
    finish,
    lag_range,
    make_card,
    novelty_of,
    teller,
)
from .team import Team
from .trainer import Part, family_statistics, held_out_loss, train_together
from .windows import constraints_of_kin, windows_of_kin

#: Lags between those that the scale of turning is stored at, if the settings do not say.
_LAG_NODES: Final = 12
#: What must be the same of all data.
_MADE_ALIKE: Final = ("temperature_K", "force_field", "water", "constraints", "friction_per_ps")
#: Entries of a card that a molecule without data takes from its relatives as they are.
_SHARED: Final = tuple(
    entry.key
    for entry in (
        *(Card.description, Card.kind, Card.training, Card.versions),
        *(Card.lag_range, Card.recommended_lag, Card.recommended_burst),
        *(Card.temperature, Card.force_field, Card.constraints, Card.solvent),
    )
)


def train_family(
    several: Sequence[Dataset],
    datasets: Sequence[Path | str],
    output: Path,
    settings: StageSettings,
    crew: Team,
    say: Report,
) -> dict[str, Any] | None:
    """Train on several molecules at once and write the bundle of the family.

    Parameters
    ----------
    several : sequence of Dataset
        One of each molecule.
    datasets : sequence of Path or str
        The files they came from.
    output : Path
        The bundle.
    settings : StageSettings
        What and how.
    crew : Team
        Who trains, and where.
    say : callable
        Told what is being done.

    Returns
    -------
    dict
        As ``train_bundle``.
    """
    device = crew.device
    if settings.network not in (AUTO, FAMILY):
        names = ", ".join(data.molecule.name for data in several)
        raise ValueError(
            f"the data sets are of several molecules ({names}), which only --network family can "
            f"learn together, got {settings.network}"
        )
    aside = [read_dataset(path) for path in settings.aside]
    _check_names([*several, *aside], settings.also)
    _check_made_alike([*several, *aside])
    taught = [Material.of(data, settings, device, say) for data in (*several, *aside)]
    materials = taught[: len(several)]
    ranges = [lag_range(m.kept, m.spacing_ps, settings) for m in taught]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if not low < high:
        raise ValueError(
            f"the molecules' data have no lags in common: from {low:g} ps, up to {high:g} ps"
        )
    say("measuring the coordinates", f"{len(materials)} molecules")
    arguments = dict(settings.network_settings)
    statistics = family_statistics(
        [(m.molecule, m.pairs) for m in materials],
        low,
        high,
        int(arguments.get("n_lag_nodes", _LAG_NODES)),
        settings.training.seed,
    )
    torch.manual_seed(settings.training.seed)
    arguments |= {"lag_min_ps": low, "lag_max_ps": high}
    # Those without data as well: what the data does not say of them shows before the training.
    networks = [
        FamilyDiffusion.for_molecule(
            molecule, statistics=statistics, torsion_terms=terms, **arguments
        ).to(device)
        for molecule, terms in zip(
            (*(m.molecule for m in taught), *settings.also),
            torsion_terms_of([*several, *aside], settings.also),
            strict=True,
        )
    ]
    if settings.init is not None:
        networks[0].load_weights(_first_weights(settings.init))
    for network in networks[1:]:
        network.share_weights(networks[0])
    parts = [
        Part(network, m.pairs, m.held_out, float(_heavy(m.molecule)))
        for network, m in zip(networks, taught, strict=False)
    ]
    began = time.monotonic()
    shown = [lag for lag in REPORT_LAGS if low * 0.999 <= lag <= high * 1.001]
    record = train_together(
        parts,
        settings.training,
        lags_ps=shown[::3],
        checkpoint=checkpoint_of(output),
        report=teller(settings.training, say),
        crew=crew,
    )
    if not crew.leads:
        return None
    say("writing", output.name)
    training: Training = {
        "network": FAMILY,
        "molecules": [m.molecule.name for m in materials],
        "aside": [m.molecule.name for m in taught[len(materials) :]],
        "without_data": [molecule.name for molecule in settings.also],
        "frames": sum(len(m.pairs) for m in taught),
        "ns": round(sum(run.length_ps for m in taught for run in m.kept) / 1000.0, 3),
        "runs": sum(len(m.kept) for m in taught),
        "held_out_runs": sum(len(m.held) for m in taught),
        "data_sets": [
            {"file": Path(path).name, "sha256": file_sha256(path)}
            for path in (*datasets, *settings.aside)
        ],
        "runs_left_out": sorted(settings.without),
        "lags": f"log-uniform, {low:g} to {high:g} ps",
        "time_reversal": settings.time_reversal,
        "by_molecule": {m.molecule.name: m.account(settings) for m in taught},
        "init": Path(settings.init).name if settings.init else None,
        **course(record, settings.training, crew),
        "held_out_loss_by_lag_ps": _held_out(parts, taught, settings, shown),
    }
    for network in networks:
        network.to("cpu")
    members = []
    for network, m in zip(networks, materials, strict=False):
        members.append(_member(network, m, (low, high), training, settings, say))
    # What is recommended goes for the slowest of them.
    lag = max(member["card"].recommended_lag for member in members)
    models = []
    for member in members:
        member["card"].recommended_lag = lag
        models.append(ScoreModel(**member))
    kin = [(model.molecules[0], model.card) for model in models]
    for molecule, network in zip(settings.also, networks[len(taught) :], strict=True):
        models.append(_relative(molecule, network, kin))
    return finish(ScoreModel.family(models), output, training, began)


def torsion_terms_of(
    several: Sequence[Dataset], also: Sequence[Molecule]
) -> list[list[list[float]]]:
    """Return the torsion terms of molecules with data, then of those without.

    Parameters
    ----------
    several : sequence of Dataset
        Their provenance has ``torsion_terms``.
    also : sequence of Molecule
        Theirs come from the force field that the data were made with.

    Returns
    -------
    list of list of terms
        As `openmm_sd.system.solute.torsion_terms` has them; none at all where no data has any.

    Raises
    ------
    ValueError
        If some data have them and others do not, or the force field does not know a molecule.
    """
    found: list[list[list[float]]] = [
        data.provenance.get("torsion_terms") or [] for data in several
    ]
    without = [data.molecule.name for data, terms in zip(several, found, strict=True) if not terms]
    if len(without) == len(found):
        return [[]] * (len(several) + len(also))
    if without:
        raise ValueError(
            f"the data of {', '.join(without)} do not say what torsion terms the force field has "
            "(torsion_terms in their provenance), those of the others do: make them alike"
        )
    return [*found, *(_terms_without_data(molecule, several[0]) for molecule in also)]


def _terms_without_data(molecule: Molecule, data: Dataset) -> list[list[float]]:
    from openmm import app

    from ..system.force_field import make_system
    from ..system.solute import torsion_terms

    files = data.provenance.get("force_field")
    if not files:
        raise ValueError(
            f"{molecule.name}: the data do not say with which force field they were made, from "
            "which its torsion terms would come"
        )
    system = make_system(files, molecule.to_topology(), nonbondedMethod=app.NoCutoff)
    return torsion_terms(system, range(molecule.n_atoms))


def _check_names(several: Sequence[Dataset], also: Sequence[Molecule]) -> None:
    """Refuse two molecules of one name, and data of what shall have none."""
    seen: dict[str, Molecule] = {}
    for molecule in (*(data.molecule for data in several), *also):
        if molecule.name in seen:
            raise ValueError(
                f"{molecule.name} is the name of two of the molecules: give them different ones"
            )
        seen[molecule.name] = molecule
    for molecule in also:
        for data in several:
            if not difference(data.molecule, molecule):
                raise ValueError(
                    f"{molecule.name} shall have no data, but {data.molecule.name} is it"
                )


def _check_made_alike(several: Sequence[Dataset]) -> None:
    """Refuse data whose laws one set of weights would mix."""
    for key in _MADE_ALIKE:
        values = {data.molecule.name: data.provenance.get(key) for data in several}
        if len({json.dumps(value) for value in values.values()}) > 1:
            found = ", ".join(f"{name} {value}" for name, value in values.items())
            raise ValueError(f"the data sets differ in {key}: {found}")


def _heavy(molecule: Molecule) -> int:
    return sum(z != 1 for z in molecule.atomic_numbers)


def _first_weights(path: str) -> dict[str, torch.Tensor]:
    propagator = ScoreModel.load(path).members[0].propagator
    if not isinstance(propagator, FamilyDiffusion):
        raise ValueError(f"{path} holds a {type(propagator).__name__}, wanted is {FAMILY}")
    return propagator.weights()


def _held_out(
    parts: Sequence[Part],
    materials: Sequence[Material],
    settings: StageSettings,
    lags: Sequence[float],
) -> dict[str, dict[str, float]]:
    found = {}
    for part, material in zip(parts, materials, strict=True):
        if part.held_out is None:
            continue
        possible = [lag for lag in lags if lag <= part.held_out.longest_lag_ps()]
        losses = held_out_loss(part.model, part.held_out, settings.training, possible, 4096)
        found[material.molecule.name] = {f"{k:g}": round(v, 5) for k, v in losses.items()}
    return found


def _member(
    network: FamilyDiffusion,
    material: Material,
    lags: tuple[float, float],
    training: Training,
    settings: StageSettings,
    say: Report,
) -> dict[str, Any]:
    """Return the arguments of a member's ScoreModel."""
    m = material
    card = make_card(m.data, m.runs, m.spacing_ps, lags, settings, training)
    # The same for atoms that are alike: the law of the jumps does not tell them apart.
    card |= windows_of_kin(m.molecule, [(m.molecule, card)])
    card.name = m.molecule.name
    names = ", ".join(training["molecules"])
    card.description = settings.description or f"One set of weights for {names}."
    frames = equilibrium_frames(m.runs, m.biased, m.molecule, settings)
    say("measuring what the training frames cover", f"{m.molecule.name}, {len(m.pairs)} frames")
    novelty, card.novelty = novelty_of(m.molecule, m.kept, m.held, settings.training.seed)
    return {
        "propagator": network,
        "molecules": m.molecule,
        "card": card,
        "start_frames": frames,
        "novelty": novelty,
    }


def _relative(
    molecule: Molecule,
    network: FamilyDiffusion,
    kin: Sequence[tuple[Molecule, Card]],
) -> ScoreModel:
    """Return the model of a molecule without data."""
    first = kin[0][1]
    card = Card({key: first[key] for key in _SHARED if key in first})
    card |= windows_of_kin(molecule, kin)
    card.name = molecule.name
    card.constraint_lengths = constraints_of_kin(molecule, kin)
    card.max_displacement = round(_displacement(molecule, kin), 4)
    card.data = {"none": f"no frame of {molecule.name} was seen in training"}
    card.limits = [
        *first.limits,
        f"No data of {molecule.name}: its weights, widths and windows are those of "
        f"{', '.join(other.name for other, _ in kin)}. There is no novelty score.",
    ]
    # A single structure, until somebody has more.
    start = np.asarray(molecule.positions)[None]
    return ScoreModel(network, molecule, card, start_frames=start)


def _displacement(molecule: Molecule, kin: Sequence[tuple[Molecule, Card]]) -> float:
    """Guess how far an atom may go in a jump, from relatives: it grows with the size."""
    sizes = np.log([other.n_atoms for other, _ in kin])
    bounds = np.log([card[Card.max_displacement.key] for _, card in kin])
    if len(kin) == 1 or np.ptp(sizes) == 0.0:
        return float(np.exp(bounds.max()))
    slope, level = np.polyfit(sizes, bounds, 1)
    return float(math.exp(max(bounds.min(), slope * math.log(molecule.n_atoms) + level)))
