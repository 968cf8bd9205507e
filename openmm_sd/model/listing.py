"""What a bundle says of its model, read without its weights and without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..files.atomic import file_sha256
from ..molecule.molecule import Molecule
from .bundle import BundleError, load_content
from .card import Card, common
from .names import bundle_path
from .schedules import Schedule, beside_bundle


@dataclass(frozen=True)
class Listed:
    """A model as a list of models shows it: molecules, the card that all share, schedules."""

    molecules: tuple[Molecule, ...]
    card: Card
    schedules: tuple[Schedule, ...]


def read_listed(name: str) -> Listed:
    """Read what the bundle of a name or path says; BundleError, in one line, if it is none."""
    path = bundle_path(name)
    content = load_content(path)
    molecules = tuple(Molecule.from_dict(molecule) for molecule in content["molecules"])
    if "members" not in content:
        card = Card(content["card"])
        parts = [(card, molecules)]
    else:
        cards = [Card({**content["card"], **member["card"]}) for member in content["members"]]
        card = common(cards)
        parts = [(one, (molecule,)) for one, molecule in zip(cards, molecules, strict=True)]
    try:
        for one, known in parts:
            one.check(known)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
    return Listed(molecules, card, card.schedules or beside_bundle(file_sha256(path)))
