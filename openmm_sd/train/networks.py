"""The networks of a training: chosen, built, and set to the scales of the data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.model import ScoreModel
from ..molecule.matching import difference
from ..molecule.molecule import Molecule
from ..molecule.terms import ForceFieldTerms
from ..propagator.cartesian.dense import DenseDiffusion
from ..propagator.internal.base import TURN_FLOOR, InternalPropagator
from ..propagator.internal.family import FamilyDiffusion
from ..propagator.internal.single import InternalDiffusion
from ..propagator.internal.statistics import CoordinateStatistics
from ..propagator.internal.transferable import TransferableDiffusion
from ..propagator.internal.tree import InternalTree, NotInternal, constant_lengths, turning_torsions
from .pairs import TransitionPairs
from .settings import AUTO, FAMILY, TRANSFERABLE

Network = DenseDiffusion | InternalPropagator
"""What can be trained."""

NETWORKS: Final = {
    "internal": InternalDiffusion,
    "dense": DenseDiffusion,
}
"""Networks for one molecule by the name that ``--network`` takes."""

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
# The largest lags' pairs come from few independent stretches; this many pairs make the scale of a
# displacement good to about one per cent all the same.
_STATISTICS_PAIRS = 8192


def network_name(network: torch.nn.Module) -> str:
    """Return the name that ``--network`` takes for a network; empty where it has none."""
    known = {**NETWORKS, FAMILY: FamilyDiffusion, TRANSFERABLE: TransferableDiffusion}
    return next((name for name, cls in known.items() if isinstance(network, cls)), "")


def network_of(bundle: str) -> str:
    """Return the name of a bundle's network; see `network_name`."""
    return network_name(ScoreModel.load(bundle).members[0].propagator)


def build_network(
    molecule: Molecule,
    frames: NDArray[np.floating[Any]],
    arguments: dict[str, Any],
    name: str = AUTO,
    init: str | None = None,
) -> DenseDiffusion | InternalDiffusion:
    """Build the network that is asked for, or that suits the molecule.

    The frames, (T, N, 3), nm, show how it moves. The arguments are those of the network's class,
    ``lag_min_ps`` and ``lag_max_ps`` among them; `init` is a bundle that the first weights are
    from.
    """
    if init is not None:
        return _like_bundle(molecule, frames, arguments, name, init)
    if name != AUTO:
        return NETWORKS[name].for_molecule(molecule, frames, **arguments)  # type: ignore[attr-defined]
    # A ring's last bond is no internal coordinate: its length would be what the others leave it.
    if not molecule.n_rings:
        with contextlib.suppress(NotInternal):
            return InternalDiffusion.for_molecule(molecule, frames, **arguments)
    return DenseDiffusion.for_molecule(molecule, frames, **arguments)


def build_family(
    molecules: Sequence[Molecule],
    terms: Sequence[list[list[float]]],
    statistics: CoordinateStatistics,
    arguments: dict[str, Any],
    init: str | None = None,
    device: torch.device | str = "cpu",
) -> list[FamilyDiffusion]:
    """Build the networks of several molecules, which share their weights; some may have no data.

    The terms of each molecule are from `~openmm_sd.train.relatives.torsion_terms_of`; arguments and
    `init` are those of `build_network`.
    """
    networks = [
        FamilyDiffusion.for_molecule(
            molecule, statistics=statistics, torsion_terms=own, **arguments
        ).to(device)
        for molecule, own in zip(molecules, terms, strict=True)
    ]
    if init is not None:
        first = ScoreModel.load(init).members[0].propagator
        if not isinstance(first, FamilyDiffusion):
            raise ValueError(f"{init} holds a {type(first).__name__}, wanted is {FAMILY}")
        networks[0].load_weights(first.weights())
    for network in networks[1:]:
        network.share_weights(networks[0])
    return networks


def build_transferable(
    members: Sequence[tuple[Molecule, TransitionPairs]],
    also: Sequence[Molecule],
    terms: Sequence[ForceFieldTerms],
    temperature_K: float,
    arguments: dict[str, Any],
    init: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[TransferableDiffusion]:
    """Build the networks of molecules with data, then of those without; they share their weights.

    There are terms of each. How far torsions turn is measured on the data and told to all, unless
    the arguments say it.
    """
    molecules = [*(molecule for molecule, _ in members), *also]
    networks = [
        TransferableDiffusion.for_molecule(
            molecule, terms=own, temperature_K=temperature_K, **arguments
        )
        for molecule, own in zip(molecules, terms, strict=True)
    ]
    if "turn_scales" not in arguments:
        _measure_turns(networks, [pairs for _, pairs in members], seed)
    if init is not None:
        first = ScoreModel.load(init).members[0].propagator
        if not isinstance(first, TransferableDiffusion):
            raise ValueError(f"{init} holds a {type(first).__name__}, wanted is {TRANSFERABLE}")
        networks[0].load_weights(first.weights())
    for network in networks:
        network.share_weights(networks[0])
        network.to(device)
    return networks


def _measure_turns(
    networks: Sequence[TransferableDiffusion], data: Sequence[TransitionPairs], seed: int
) -> None:
    """Measure how far torsions turn, and tell it to all networks; the first ones have data."""
    squares: dict[str, list[Tensor]] = {}
    for network, pairs in zip(networks, data, strict=False):
        _, at_lags = _drawn(pairs, network.lag_nodes(), seed)
        measured = torch.stack(
            [network.measure_scale(frame.cpu(), later.cpu()) for frame, later in at_lags]
        )
        for keys, row in zip(network.turn_kinds(), (measured**2).unbind(1), strict=True):
            for key in keys:
                squares.setdefault(key, []).append(row)
    scales = {
        key: torch.stack(rows).mean(0).sqrt().clamp(min=TURN_FLOOR).tolist()
        for key, rows in squares.items()
    }
    for network in networks:
        network.set_turn_scales(scales)


def _like_bundle(
    molecule: Molecule,
    frames: NDArray[np.floating[Any]],
    arguments: dict[str, Any],
    wanted: str,
    path: str,
) -> DenseDiffusion | InternalDiffusion:
    """Build a network that starts with the weights, and the coordinates, of a bundle."""
    bundle = ScoreModel.load(path).members[0]
    other = bundle.propagator
    name = network_name(other)
    if name not in NETWORKS or wanted not in (AUTO, name):
        asked = "" if wanted == AUTO else f", wanted is {wanted}"
        raise ValueError(f"{path} holds a {type(other).__name__}{asked}")
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


def fit_statistics(model: Network, pairs: TransitionPairs, seed: int = 0) -> None:
    """Set a model's normalisation and displacement scales from pairs drawn by a seed."""
    frames, at_lags = _drawn(pairs, model.lag_nodes(), seed)
    scales = [model.measure_scale(frame, later) for frame, later in at_lags]
    model.fit_statistics(frames, torch.stack(scales))


def _drawn(
    pairs: TransitionPairs, lags_ps: Iterable[float], seed: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Draw frames for a normalisation, and pairs at each of the lags, ps."""
    device = pairs.frames.device
    generator = torch.Generator(device).manual_seed(seed)
    at_lags = [pairs.draw(_STATISTICS_PAIRS, lag, lag, generator)[:2] for lag in lags_ps]
    count = 4 * _STATISTICS_PAIRS
    chosen = torch.randint(len(pairs), (count,), generator=generator, device=device)
    return pairs.frames[chosen], at_lags


def family_statistics(
    members: Sequence[tuple[Molecule, TransitionPairs]],
    lag_min_ps: float,
    lag_max_ps: float,
    n_lag_nodes: int = 12,
    seed: int = 0,
) -> CoordinateStatistics:
    """Measure the normalisation of internal coordinates by kind, from a family's training data.

    How far torsions turn is measured at lags that are evenly spaced in log(lag). From the result
    `FamilyDiffusion.for_molecule` builds members, with or without data.
    """
    if n_lag_nodes < 2:
        raise ValueError(f"n_lag_nodes must be at least 2, got {n_lag_nodes}")
    if not 0.0 < lag_min_ps < lag_max_ps:
        raise ValueError(f"need 0 < lag_min_ps < lag_max_ps, got {lag_min_ps}, {lag_max_ps}")
    growth = math.log(lag_max_ps / lag_min_ps) / (n_lag_nodes - 1)
    statistics = CoordinateStatistics(
        [lag_min_ps * math.exp(k * growth) for k in range(n_lag_nodes)]
    )
    for molecule, pairs in members:
        statistics.add(molecule, *_drawn(pairs, statistics.lags_ps, seed))
    return statistics
