"""What a model's card says: each key once, with its type, its unit and its check.

A card is a JSON object in a bundle. Entries with a number or with atoms decide what a model does:
nonsense in them is refused. The others are for people and for other programs: one of another type
reads as not there. Keys that are not listed are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeAlias, TypedDict, TypeGuard, TypeVar, overload

from ..molecule.molecule import Molecule
from .schedules import Schedule, read_schedules

#: Atom, atom, shortest and longest distance in nm.
Window: TypeAlias = tuple[int, int, float, float]
#: Atom, atom, distance in nm.
Distance: TypeAlias = tuple[int, int, float]
#: How windows and distances are written: lists of numbers.
Rows: TypeAlias = Sequence[Sequence[float]]

Read = TypeVar("Read")
Written = TypeVar("Written")


_DEFAULT_LAG: Final = 10.0
"""Lag (ps) of a model whose card recommends none."""

_DEFAULT_BURST: Final = 2.0
"""Burst between jumps (ps) of a model whose card recommends none."""


class DataSet(TypedDict):
    """A data set that a model was made from: name and SHA-256 of its file."""

    file: str
    sha256: str


class Training(TypedDict, total=False):
    """How a model was trained; times in ps where the name does not say otherwise."""

    network: str
    init: str | None
    """File with the weights that it began with."""
    data_sets: list[DataSet]
    runs_left_out: list[str]
    lags: str
    time_reversal: bool
    held_out_loss_by_lag_ps: Mapping[str, float | Mapping[str, float]]

    # Of the data of one molecule.
    frames: int
    ns: float
    runs: int
    held_out_runs: int
    held_out_ps: dict[str, float]
    """Length of the end of a run, by its name, that was not trained on."""
    spacing_ps: float
    composed_from_ps: float | None
    markov_lag_ps: float | None
    conformations: int | None
    markov_timescales_ps: list[float] | None

    # Of a family.
    molecules: list[str]
    aside: list[str]
    without_data: list[str]
    by_molecule: dict[str, Training]

    # Of a distilled model.
    distilled_from: str
    teacher_calls: int
    calls: int
    teacher: Training | None

    # How it went.
    steps: int
    wall_minutes: float
    device: str
    processes: int
    threads: int
    settings: Mapping[str, object]
    history: Sequence[Mapping[str, object]]


class NoveltyOrigin(TypedDict, total=False):
    """The threshold of a novelty score, and the frames that it is from."""

    threshold: float
    """Score beyond which a frame is novel; all that a card must have of this."""
    frames: int
    held_out_frames: int
    held_out_fired: int
    held_out_highest: float
    environment: str
    data_sets: list[DataSet]
    runs_left_out: list[str]
    elements: list[int]
    """Of a molecule that was not trained on: the elements that its score tells apart. Distances
    outside of the card's windows are novel then."""


class Serves(TypedDict):
    """Capped chains of amino acids that a model serves without having been trained on them."""

    residues: list[str]
    """As the card's force field calls them: HIE, not HIS."""
    longest: int
    """Residues between the caps, at most."""
    tested: int
    """The longest chain on which the model was compared with MD, in residues."""


class Entry(Generic[Read, Written]):
    """One key of a card: an attribute that reads it, checked, and writes it.

    `read` takes the key and what stands there, None for nothing, and returns what the attribute
    gives; it raises ValueError for what nobody could use.
    """

    def __init__(self, key: str, read: Callable[[str, object], Read]) -> None:
        self.key = key
        self.read = read

    @overload
    def __get__(self, card: None, owner: type[Card]) -> Entry[Read, Written]: ...

    @overload
    def __get__(self, card: Card, owner: type[Card]) -> Read: ...

    def __get__(self, card: Card | None, owner: type[Card]) -> Entry[Read, Written] | Read:
        return self if card is None else self.of(card)

    def __set__(self, card: Card, value: Written | None) -> None:
        """Write it; None takes it off the card."""
        self.read(self.key, value)
        card.pop(self.key, None)
        if value is not None:
            card[self.key] = value

    def of(self, card: Mapping[str, object]) -> Read:
        """Read it from a card or from a mapping like one."""
        return self.read(self.key, card.get(self.key))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _positive(key: str, value: object) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or value <= 0:
        raise ValueError(f"card: {key} must be a positive number, got {value!r}")
    return float(value)


def _two_lags(key: str, value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(_is_number(v) for v in value)
        and 0 < value[0] <= value[1]
    ):
        return float(value[0]), float(value[1])
    raise ValueError(f"card: {key} must be two positive ascending lags in ps, got {value!r}")


def _rows(
    key: str, value: object, wanted: str, fine: Callable[[Sequence[float]], bool]
) -> list[tuple[int, int, list[float]]]:
    """Read a list of two different atoms and distances; `fine` judges the distances."""
    rows = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    found = []
    for row in rows:
        if not (
            isinstance(row, (list, tuple))
            and len(row) >= 2
            and all(_is_number(v) for v in row)
            and all(isinstance(v, int) and v >= 0 for v in row[:2])
            and row[0] != row[1]
            and fine(row[2:])
        ):
            raise ValueError(f"card: {key} must be a list of {wanted}, got {row!r}")
        found.append((row[0], row[1], [float(v) for v in row[2:]]))
    return found


def _windows(key: str, value: object) -> tuple[Window, ...]:
    rows = _rows(
        key,
        value,
        "[atom, atom, shortest nm, longest nm] with different atoms",
        lambda distances: len(distances) == 2 and 0 <= distances[0] < distances[1],
    )
    return tuple((i, j, low, high) for i, j, (low, high) in rows)


def _contacts(key: str, value: object) -> tuple[Distance, ...]:
    rows = _rows(
        key,
        value,
        "[atom, atom, shortest nm] with different atoms",
        lambda distances: len(distances) == 1 and distances[0] >= 0,
    )
    return tuple((i, j, shortest) for i, j, (shortest,) in rows)


_CONSTRAINT: Final = "[heavy atom, hydrogen bonded to it, distance in nm]"


def _constraints(key: str, value: object) -> tuple[Distance, ...]:
    rows = _rows(
        key, value, _CONSTRAINT, lambda distances: len(distances) == 1 and distances[0] > 0
    )
    return tuple((i, j, length) for i, j, (length,) in rows)


def _novelty(key: str, value: object) -> NoveltyOrigin | None:
    if value is None:
        return None
    threshold: object = value.get("threshold") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not _is_number(threshold) or threshold <= 0:
        raise ValueError(f"card: {key} must hold a positive threshold, got {value!r}")
    return NoveltyOrigin(**value)


def _serves(key: str, value: object) -> Serves | None:
    if value is None:
        return None
    given: Mapping[str, object] = value if isinstance(value, Mapping) else {}
    residues = _texts(key, given.get("residues"))
    longest, tested = (_whole(given.get(name)) for name in ("longest", "tested"))
    if not residues or not 1 <= tested <= longest:
        raise ValueError(
            f"card: {key} must hold residues (names), and longest and tested (numbers of residues, "
            f"tested not above longest), got {value!r}"
        )
    return Serves(residues=list(residues), longest=longest, tested=tested)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(key: str, value: object) -> str | None:
    return value if isinstance(value, str) else None


def _texts(key: str, value: object) -> tuple[str, ...]:
    """Read a list of texts, or a single one."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
        return tuple(value)
    return ()


def _mapping(key: str, value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _training(key: str, value: object) -> Training:
    return Training(**_mapping(key, value))  # type: ignore[typeddict-item]


class Card(dict[str, Any]):
    """What a model says about itself: a dict for JSON whose entries are also typed attributes.

    An attribute reads the entry of its key: ``card.temperature`` is a float, or None if the card
    has no ``temperature_K``; lists of windows and the like are empty then. Setting it writes the
    entry, setting it to None takes it away. ``Card.temperature.key`` is the key.
    """

    # What decides what a model does; nonsense is refused.
    temperature = Entry[float | None, float]("temperature_K", _positive)
    """Temperature of the training data, K."""
    lag_range = Entry[tuple[float, float] | None, Sequence[float]]("lag_range_ps", _two_lags)
    """Shortest and longest lag the model was trained for, ps."""
    recommended_lag = Entry[float | None, float]("recommended_lag_ps", _positive)
    """Lag to use when the user names none, ps; in `lag_range`."""
    recommended_burst = Entry[float | None, float]("recommended_burst_ps", _positive)
    """Length of the ordinary MD between jumps when the user names none, ps."""
    schedules = Entry[tuple[Schedule, ...], Sequence[Mapping[str, object]]](
        "schedules", read_schedules
    )
    """Lags with burst and settling, what they are good for, and what was measured of them."""
    max_displacement = Entry[float | None, float]("max_displacement_nm", _positive)
    """Largest displacement of an atom in one jump that is believed, nm."""
    bond_windows = Entry[tuple[Window, ...], Rows]("bond_windows_nm", _windows)
    """Bonded atoms with their shortest and longest distance, nm."""
    angle_windows = Entry[tuple[Window, ...], Rows]("angle_windows_nm", _windows)
    """The same for the ends of angles."""
    torsion_windows = Entry[tuple[Window, ...], Rows]("torsion_windows_nm", _windows)
    """The same for the ends of torsions that do not turn."""
    contact_distances = Entry[tuple[Distance, ...], Rows]("contact_distances_nm", _contacts)
    """Atoms three or more bonds apart with the shortest distance they may have, nm."""
    constraint_lengths = Entry[tuple[Distance, ...], Rows]("constraint_lengths_nm", _constraints)
    """Heavy atom, hydrogen and the distance that the training MD held, nm."""
    novelty = Entry[NoveltyOrigin | None, Mapping[str, object]]("novelty", _novelty)
    """There if and only if the model has a novelty score."""
    serves = Entry[Serves | None, Mapping[str, object]]("serves", _serves)
    """Chains that it serves beside those it was trained on; without it, any molecule."""

    # Where it is from.
    name = Entry[str | None, str]("name", _text)
    """What the model is called."""
    description = Entry[str | None, str]("description", _text)
    """A sentence or two for people."""
    kind = Entry[str | None, str]("kind", _text)
    """What kind of network it is, for people."""
    solvent = Entry[str | None, str]("solvent", _text)
    """Solvent of the training data; has the word implicit in it if there was none."""
    force_field = Entry[tuple[str, ...], Sequence[str]]("force_field", _texts)
    """Of the training data: OpenMM's files, or what another program calls it."""
    constraints = Entry[str | None, str]("constraints", _text)
    """Of the training MD: ``HBonds`` if it held the bonds to hydrogen."""
    data = Entry[Mapping[str, object], Mapping[str, object]]("data", _mapping)
    """Provenance of the training data, see the data set's format."""
    data_timescales = Entry[Mapping[str, object], Mapping[str, object]](
        "data_timescales_ps", _mapping
    )
    """Slowest implied timescales of the training data, ps, by lag in ps."""
    training = Entry[Training, Mapping[str, object]]("training", _training)
    """How it was trained."""
    versions = Entry[Mapping[str, object], Mapping[str, object]]("versions", _mapping)
    """Versions of the programs that made it."""
    limits = Entry[tuple[str, ...], Sequence[str]]("limits", _texts)
    """What it is not good for, sentences."""
    fidelity = Entry[Mapping[str, object], Mapping[str, object]]("fidelity", _mapping)
    """Measured errors."""
    adaptation = Entry[Mapping[str, object], Mapping[str, object]]("adaptation", _mapping)
    """How `openmm_sd.adapt` made it: from which model, in which rounds, at what cost."""

    @property
    def windows(self) -> tuple[Window, ...]:
        """Windows of bonds, angles and stiff torsions."""
        return (*self.bond_windows, *self.angle_windows, *self.torsion_windows)

    @property
    def usual_lag(self) -> float:
        """Lag to use when the user names none, ps."""
        shortest, longest = self.lag_range or (_DEFAULT_LAG, _DEFAULT_LAG)
        return self.recommended_lag or min(max(_DEFAULT_LAG, shortest), longest)

    @property
    def usual_burst(self) -> float:
        """Length of the ordinary MD between jumps when the user names none, ps."""
        return self.recommended_burst or _DEFAULT_BURST

    @property
    def is_implicit(self) -> bool:
        """Whether the model was trained in implicit solvent."""
        return "implicit" in (self.solvent or "").lower()

    def openmm_force_field(self, implicit: bool = False) -> tuple[str, ...]:
        """Return OpenMM's files of the force field; none where it has none for that solvent."""
        files = self.force_field
        known = self.is_implicit == implicit and all(name.endswith(".xml") for name in files)
        return files if known else ()

    def check(self, molecules: Sequence[Molecule]) -> None:
        """Read all that decides what a model does: nonsense is found now, not in a running job.

        The molecules are what the model knows, all with the same atoms. A ValueError names the key.
        """
        for number in _NUMBERS:
            number.of(self)
        Card.serves.of(self)
        lags, lag = self.lag_range, self.recommended_lag
        if lags is not None and lag is not None and not lags[0] <= lag <= lags[1]:
            raise ValueError(
                f"card: {Card.recommended_lag.key} {lag:g} ps is outside {Card.lag_range.key} "
                f"{lags[0]:g} to {lags[1]:g} ps"
            )
        for one in self.schedules:
            if lags is not None and not lags[0] <= one.lag_ps <= lags[1]:
                raise ValueError(
                    f"card: {Card.schedules.key} has a lag of {one.lag_ps:g} ps outside "
                    f"{Card.lag_range.key} {lags[0]:g} to {lags[1]:g} ps"
                )
        last = molecules[0].n_atoms - 1
        for entry in (*_WINDOWS, Card.contact_distances):
            for row in entry.of(self):
                if max(row[0], row[1]) > last:
                    raise ValueError(
                        f"card: {entry.key} must be of atoms 0 to {last}, got {list(row)}"
                    )
        self._check_constraints(molecules)

    def _check_constraints(self, molecules: Sequence[Molecule]) -> None:
        key, numbers = Card.constraint_lengths.key, molecules[0].atomic_numbers
        bonds = {frozenset(bond) for molecule in molecules for bond in molecule.bonds}
        hydrogens: set[int] = set()
        for heavy, hydrogen, length in self.constraint_lengths:
            if frozenset((heavy, hydrogen)) not in bonds or numbers[hydrogen] != 1:
                raise ValueError(
                    f"card: {key} must be a list of {_CONSTRAINT}, got "
                    f"{[heavy, hydrogen, length]!r}"
                )
            if hydrogen in hydrogens:
                raise ValueError(f"card: {key} names hydrogen {hydrogen} twice")
            hydrogens.add(hydrogen)


_NUMBERS: Final = (Card.temperature, Card.recommended_burst, Card.max_displacement)
_WINDOWS: Final = (Card.bond_windows, Card.angle_windows, Card.torsion_windows)


def common(cards: Sequence[Card]) -> Card:
    """Return the entries that are the same on all cards."""
    return Card(
        (key, value)
        for key, value in cards[0].items()
        if all(key in card and card[key] == value for card in cards)
    )
