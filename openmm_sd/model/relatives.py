"""What a molecule that a model was not trained on takes from those that it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import networkx as nx
import numpy as np
import torch

from ..molecule.graph import atom_kinds, bond_graph, distant_pairs, heavy_bonds
from ..molecule.molecule import Molecule
from ..molecule.terms import ForceFieldTerms
from ..propagator.internal.transferable import TransferableDiffusion
from .card import Card, Distance, Entry, Rows, Window
from .novelty import Novelty
from .pooled import PooledNovelty
from .windows import angle_ends, angle_windows, bond_windows, torsion_windows

#: Entries of a card that a molecule without data takes from its relatives as they are.
_SHARED: Final = tuple(
    entry.key
    for entry in (
        *(Card.description, Card.kind, Card.training, Card.versions),
        *(Card.lag_range, Card.recommended_lag, Card.recommended_burst),
        *(Card.temperature, Card.force_field, Card.constraints, Card.solvent),
    )
)
#: What the card of a molecule says that was not trained on.
_NO_NOVELTY: Final = "There is no novelty score."
_UNSEEN: Final = (
    "No frame of {} was seen in training: all that is known of it is its force field. "
    f"{_NO_NOVELTY}"
)
#: Residues of a chain that are caps.
_N_CAPS: Final = 2
#: Structures drawn from the force field's springs that windows are measured on.
_DRAWN: Final = 2000
#: Constrained bonds of one kind agree to this, nm.
_SAME_LENGTH_NM: Final = 1e-4


def windows_of_relatives(
    molecule: Molecule, relatives: Sequence[tuple[Molecule, Mapping[str, Any]]]
) -> Card:
    """Return windows and contact distances of a molecule without data, from its relatives' cards.

    ValueError if no relative has a bond or an angle of a kind that the molecule has.
    """
    found = Card()
    named = [(_Kinds(other), card) for other, card in relatives]
    own = _Kinds(molecule)
    bonds, angles = heavy_bonds(molecule).tolist(), angle_ends(molecule)
    found.bond_windows = _alike(bonds, own, _pooled(named, Card.bond_windows))
    found.angle_windows = _alike(angles, own, _pooled(named, Card.angle_windows))
    for pairs, rows in ((bonds, found.bond_windows), (angles, found.angle_windows)):
        seen = {row[:2] for row in rows}
        for i, j in pairs:
            if (i, j) not in seen:
                raise ValueError(
                    f"{molecule.name}: none of the molecules with data has a distance of the kind "
                    f"between its atoms {i} and {j}"
                )
    # What is not known of a torsion that does not turn, or of a contact, is not asked about.
    apart = _apart(molecule)
    stiff = _pooled(named, Card.torsion_windows)
    # What turns in one molecule and not in another turns.
    for kinds, card in named:
        kept = {(i, j) for i, j, *_ in Card.torsion_windows.of(card)}
        for pair in kinds.torsion_ends() - kept:
            stiff.pop(kinds.keys(*pair)[0], None)
    found.torsion_windows = _alike(apart, own, stiff, names=1)
    found.contact_distances = _alike(apart, own, _pooled(named, Card.contact_distances))
    return found


def constraints_of_relatives(
    molecule: Molecule, relatives: Sequence[tuple[Molecule, Mapping[str, Any]]]
) -> list[list[float]]:
    """Return the constrained bonds of a molecule without data: (heavy atom, hydrogen, nm)."""
    held = [(_Kinds(other), Card.constraint_lengths.of(card)) for other, card in relatives]
    if not any(rows for _, rows in held):
        return []
    own = _Kinds(molecule)
    lengths: dict[tuple[Any, ...], list[float]] = {}
    for kinds, rows in held:
        for i, j, length in rows:
            for key in kinds.keys(i, j):
                lengths.setdefault(key, []).append(length)
    found: list[list[float]] = []
    for bond in molecule.bonds:
        heavy, hydrogen = sorted(bond, key=lambda k: molecule.atomic_numbers[k] == 1)
        if molecule.atomic_numbers[hydrogen] != 1:
            continue
        known = next((lengths[key] for key in own.keys(heavy, hydrogen) if key in lengths), None)
        if known is None or np.ptp(known) > _SAME_LENGTH_NM:
            raise ValueError(
                f"{molecule.name}: the molecules with data do not say, or not with one voice, at "
                f"which length the bond between its atoms {heavy} and {hydrogen} is constrained"
            )
        found.append([heavy, hydrogen, round(float(np.mean(known)), 6)])
    return found


class _Kinds:
    """Names of a molecule's pairs of atoms, so that relatives call the same thing alike."""

    def __init__(self, molecule: Molecule) -> None:
        self._atoms = atom_kinds(molecule.atomic_numbers, molecule.bonds)
        self._paths = dict(nx.all_pairs_shortest_path(bond_graph(molecule)))

    def torsion_ends(self) -> set[tuple[int, int]]:
        """Return the ends of all torsions, the lower number first."""
        return {
            (i, j)
            for i in self._paths
            for j, path in self._paths[i].items()
            if i < j and len(path) == 4
        }

    def keys(self, i: int, j: int) -> list[tuple[Any, ...]]:
        """Return the names of a pair, the most specific first."""
        path = self._paths[i][j]
        kinds = tuple(self._atoms[k] for k in path)
        elements = tuple(kind[0] for kind in kinds)
        return [min(kinds, kinds[::-1]), min(elements, elements[::-1])]


def _apart(molecule: Molecule) -> list[list[int]]:
    """Return the pairs of atoms, hydrogens too, three bonds apart or more, in order."""
    return sorted([min(pair), max(pair)] for pair in distant_pairs(molecule, True).tolist())


def _alike(
    pairs: Sequence[Sequence[int]],
    own: _Kinds,
    known: Mapping[tuple[Any, ...], tuple[float, ...]],
    names: int = 2,
) -> list[list[float]]:
    """Return the pairs whose kind is known, by so many of its names, each with its window."""
    found: list[list[float]] = []
    for i, j in pairs:
        window = next((known[key] for key in own.keys(i, j)[:names] if key in known), None)
        if window is not None:
            found.append([i, j, *window])
    return found


def _pooled(
    relatives: Sequence[tuple[_Kinds, Mapping[str, Any]]],
    entry: Entry[tuple[Window, ...], Rows] | Entry[tuple[Distance, ...], Rows],
) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """Return the widest window of each kind of pair."""
    known: dict[tuple[Any, ...], tuple[float, ...]] = {}
    for kinds, card in relatives:
        for i, j, *window in entry.of(card):
            for key in kinds.keys(i, j):
                if key in known:
                    low = min(known[key][0], window[0])
                    known[key] = (
                        low,
                        *(max(a, b) for a, b in zip(known[key][1:], window[1:], strict=True)),
                    )
                else:
                    known[key] = tuple(window)
    return known


def card_of_relative(molecule: Molecule, relatives: Sequence[tuple[Molecule, Card]]) -> Card:
    """Return the card of a molecule without data, from the cards of those with data."""
    first = relatives[0][1]
    card = Card({key: first[key] for key in _SHARED if key in first})
    card |= windows_of_relatives(molecule, relatives)
    card.name = molecule.name
    card.constraint_lengths = constraints_of_relatives(molecule, relatives)
    card.max_displacement = round(_displacement(molecule, relatives), 4)
    card.data = {"none": f"no frame of {molecule.name} was seen in training"}
    card.limits = [
        *first.limits,
        f"No data of {molecule.name}: its weights, widths and windows are those of "
        f"{', '.join(other.name for other, _ in relatives)}. There is no novelty score.",
    ]
    return card


def _displacement(molecule: Molecule, relatives: Sequence[tuple[Molecule, Card]]) -> float:
    """Guess how far an atom may go in a jump, from relatives: it grows with the size."""
    sizes = np.log([other.n_atoms for other, _ in relatives])
    bounds = np.log([card[Card.max_displacement.key] for _, card in relatives])
    if len(relatives) == 1 or np.ptp(sizes) == 0.0:
        return float(np.exp(bounds.max()))
    slope, level = np.polyfit(sizes, bounds, 1)
    return float(math.exp(max(bounds.min(), slope * math.log(molecule.n_atoms) + level)))


def served(
    propagator: torch.nn.Module,
    relatives: Sequence[tuple[Molecule, Card]],
    molecule: Molecule,
    terms: ForceFieldTerms,
    pooled: PooledNovelty | None,
) -> tuple[TransferableDiffusion, Card, Novelty | None]:
    """Return what serves a molecule that is none of a model's; see `ScoreModel.serve`."""
    if not isinstance(propagator, TransferableDiffusion):
        raise ValueError(
            f"{type(propagator).__name__} knows its own molecules only: {molecule.name} is none of "
            f"{', '.join(known.name for known, _ in relatives)}"
        )
    first = relatives[0][1]
    network = propagator.of(molecule, terms, first.temperature or 300.0)
    named = [(_Kinds(known), card) for known, card in relatives]
    card = Card({key: first[key] for key in _SHARED if key in first})
    frames = network.drawn_from_springs(_DRAWN)
    card.bond_windows = bond_windows(molecule, frames)
    card.angle_windows = angle_windows(molecule, frames)
    card.torsion_windows = torsion_windows(molecule, frames)
    contacts = _pooled(named, Card.contact_distances)
    card.contact_distances = _alike(_apart(molecule), _Kinds(molecule), contacts)
    lengths = {frozenset(row[:2]): row[2] for row in terms.bonds}
    card.constraint_lengths = [
        [*sorted(pair, key=lambda k: molecule.atomic_numbers[k] == 1), lengths[frozenset(pair)]]
        for pair in terms.constrained
    ]
    if all(Card.max_displacement.key in known for _, known in relatives):
        card.max_displacement = round(_displacement(molecule, relatives), 4)
    card.name = molecule.name
    card.data = {"none": f"no frame of {molecule.name} was seen in training"}
    said = _UNSEEN.format(molecule.name)
    novelty = None
    if pooled is not None:
        novelty = pooled.of(molecule, card.windows)
        card.novelty = {"threshold": novelty.threshold, "elements": list(novelty.elements)}
        said = said.removesuffix(_NO_NOVELTY) + _novelty_of(molecule, pooled)
    card.limits = [*first.limits, said + _untested(molecule, first)]
    return network, card, novelty


def _novelty_of(molecule: Molecule, pooled: PooledNovelty) -> str:
    """Say what the novelty score of a molecule without data is worth."""
    unknown = pooled.unknown(molecule)
    if not unknown:
        return "Its novelty score compares each atom with those of its kind in other molecules."
    return (
        f"No molecule trained on has an atom of the kind of {molecule.label(unknown[0])}: every "
        "frame counts as novel, and MD covers every lag."
    )


def _untested(molecule: Molecule, card: Card) -> str:
    """Say that a chain is longer than those that were tested, if it is."""
    serves = card.serves
    residues = set(zip(molecule.residue_names, molecule.residue_ids, strict=True))
    if serves is None or len(residues) - _N_CAPS <= serves["tested"]:
        return ""
    longest = "one residue" if serves["tested"] == 1 else f"{serves['tested']} residues"
    return f" No chain of more than {longest} was tested."
