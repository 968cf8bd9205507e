"""One part of a model: a propagator, and what is known of the molecule that it moves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..molecule.molecule import Molecule
from ..propagator.registry import architecture, architecture_name
from ..propagator.script import script_frozen
from .bundle import NOVELTY, START_FRAMES, START_FRAMES_UNIT_NM, BundleError, canonical_json
from .card import Card
from .novelty import Novelty
from .pooled import PooledNovelty

# What building a network may take besides what its weights account for: numbers, and numbers that
# one call of torch counts for.
_SMALL_NETWORK: Final = 2**27
_CALL: Final = 2**10
_TOO_LARGE: Final = "they make a network far larger than the file's weights"

# Numbers that a novelty score keeps at most, once an atom each: 2 GB.
_MOST_STATISTICS: Final = 2**29


class Member:
    """A propagator with the molecules that it knows, a card, start frames and a novelty score.

    Parameters and errors are those of :class:`~openmm_sd.ScoreModel`. There is nearly always one
    molecule; several have the same atoms in the same order.
    """

    def __init__(
        self,
        propagator: torch.nn.Module,
        molecules: Molecule | Sequence[Molecule],
        card: Mapping[str, Any] | None = None,
        start_frames: ArrayLike | None = None,
        novelty: Novelty | None = None,
    ) -> None:
        if not isinstance(propagator, torch.nn.Module):
            raise ValueError(
                f"propagator must be a torch.nn.Module, got {type(propagator).__name__}"
            )
        self.n_atoms = _whole_number(propagator, "n_atoms", 1)
        self.noise_size = _whole_number(propagator, "noise_size", 0)
        self.molecules = (molecules,) if isinstance(molecules, Molecule) else tuple(molecules)
        self._check_molecules()
        if card is not None and not isinstance(card, Mapping):
            raise ValueError(f"card must be a mapping, got {type(card).__name__}")
        # Through JSON and back: what is used before saving is then what is read afterwards.
        self.card = Card(json.loads(canonical_json(dict(card or {}), "card")))
        self._scripted: dict[torch.device, torch.jit.ScriptModule] = {}
        self.propagator = propagator.eval().requires_grad_(False)
        # As stored in the bundle, for the same reason as the card's way through JSON.
        self._start_frames = None if start_frames is None else _packed(start_frames, self.n_atoms)
        self._novelty = None if novelty is None else novelty.eval().requires_grad_(False)
        #: What the score is made from where the model has none of its own.
        self.pooled: PooledNovelty | None = None
        self._made: Novelty | None = None
        self._check_novelty()
        self.card.check(self.molecules)

    @property
    def start_frames(self) -> NDArray[np.float32] | None:
        """Equilibrium frames to start chains from, (M, N, 3) nm, a fresh copy; None without."""
        if self._start_frames is None:
            return None
        return (self._start_frames * START_FRAMES_UNIT_NM).astype(np.float32)

    @property
    def novelty(self) -> Novelty | None:
        """Score of a frame: its own, or else the pooled one of all members."""
        if self._novelty is None and self._made is None and self.pooled is not None:
            made = self.pooled.of(self.molecules[0], self.card.windows)
            self._made = made.eval().requires_grad_(False)
        return self._made if self._novelty is None else self._novelty

    @novelty.setter
    def novelty(self, score: Novelty | None) -> None:
        self._novelty = score

    @property
    def architecture(self) -> str | None:
        """Name under which the propagator's class is registered; None if it is not."""
        return architecture_name(type(self.propagator))

    def scripted(self, device: torch.device | str | None = None) -> torch.jit.ScriptModule:
        place = self._device() if device is None else torch.device(device)
        if place not in self._scripted:
            module = copy.deepcopy(self.propagator).to(place).eval()
            try:
                self._scripted[place] = script_frozen(module)
            except Exception as error:  # the compiler raises whatever it stumbles over
                raise ValueError(
                    f"{type(self.propagator).__name__} cannot be scripted for TorchForce: "
                    f"{' '.join(str(error).split())}"
                ) from error
        return self._scripted[place]

    def stored(self, refused: str) -> tuple[str, dict[str, Any], dict[str, Tensor], Card]:
        """Return what a bundle holds of this part.

        That is the architecture's name, the propagator's hyperparameters, all tensors by name, and
        the card. BundleError, beginning with `refused`, if it could not be read again.
        """
        name, kind = self.architecture, type(self.propagator).__name__
        if name is None:
            raise BundleError(
                f"{refused}: {kind} is not a known architecture; call "
                "register_architecture(name, cls) first"
            )
        hyperparameters = getattr(self.propagator, "hyperparameters", None)
        if not isinstance(hyperparameters, Mapping):
            raise BundleError(
                f"{refused}: {kind} needs the attribute hyperparameters, the "
                f"dict of its constructor's arguments; got {type(hyperparameters).__name__}"
            )
        plain = json.loads(canonical_json(dict(hyperparameters), f"{refused}: hyperparameters"))
        tensors = dict(self.propagator.state_dict())
        try:
            _compare(_built(name, plain).state_dict(), tensors)
        except ValueError as error:
            raise BundleError(
                f"{refused}: the hyperparameters do not rebuild the module: {error}"
            ) from error
        for kept, what in ((START_FRAMES, "the start frames"), (NOVELTY, "the novelty score")):
            taken = next((key for key in tensors if key.startswith(kept)), None)
            if taken is not None:
                raise BundleError(f"{refused}: the weights hold {taken}, a name kept for {what}")
        if self._start_frames is not None:
            tensors[START_FRAMES] = torch.from_numpy(self._start_frames.copy())
        card = copy.deepcopy(self.card)
        if self._novelty is not None:
            card.novelty = {**(card.novelty or {}), "threshold": self._novelty.threshold}
            tensors |= {NOVELTY + k: tensor for k, tensor in self._novelty.state_dict().items()}
        return name, plain, tensors, card

    def _device(self) -> torch.device:
        for tensor in (*self.propagator.parameters(), *self.propagator.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _check_molecules(self) -> None:
        if not self.molecules:
            raise ValueError("molecules is empty: a model knows at least one molecule")
        for molecule in self.molecules:
            if not isinstance(molecule, Molecule):
                raise ValueError(
                    f"molecules must hold Molecule objects, got {type(molecule).__name__}"
                )
            if molecule.n_atoms != self.n_atoms:
                raise ValueError(
                    f"molecules: {molecule.name} has {molecule.n_atoms} atoms, the propagator "
                    f"works on n_atoms = {self.n_atoms}"
                )

    def _check_novelty(self) -> None:
        """Make the card and the score say the same threshold."""
        if self._novelty is None:
            if self.card.get(Card.novelty.key) is not None:
                raise ValueError("card: novelty is described, but the model has no novelty score")
            return
        for molecule in self.molecules:
            if self._novelty.atomic_numbers != molecule.atomic_numbers:
                raise ValueError(f"novelty: the score is of other atoms than {molecule.name} has")
        said = self.card.novelty
        if said is None:
            self.card.novelty = {"threshold": self._novelty.threshold}
        elif said["threshold"] != self._novelty.threshold:
            raise ValueError(
                f"card: novelty has the threshold {said['threshold']}, the score "
                f"{self._novelty.threshold}"
            )


#: What a `Member` is made of, in the order of its parameters.
Parts: TypeAlias = tuple[
    torch.nn.Module,
    Sequence[Molecule],
    Mapping[str, Any],
    NDArray[np.float64] | None,
    Novelty | None,
]


def restored(
    name: str,
    hyperparameters: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    molecules: Sequence[Molecule],
    card: Mapping[str, Any],
) -> Parts:
    """Return what a member is made of, from what `Member.stored` gave and its molecules."""
    asked, known = hyperparameters.get("n_atoms"), molecules[0].n_atoms
    if isinstance(asked, int) and asked > known:
        raise ValueError(f"the network is of {asked} atoms, {molecules[0].name} has {known}")
    with _Bounded(sum(tensor.numel() for tensor in tensors.values())):
        propagator = _built(name, hyperparameters)
    left = dict(tensors)
    start = left.pop(START_FRAMES, None)
    statistics = {key: left.pop(key) for key in list(left) if key.startswith(NOVELTY)}
    _compare(propagator.state_dict(), left)
    propagator.load_state_dict(left)
    frames = None if start is None else _unpacked(start)
    return propagator, molecules, card, frames, _read_novelty(statistics, molecules[0], card)


def _read_novelty(
    tensors: Mapping[str, Tensor], molecule: Molecule, card: Mapping[str, Any]
) -> Novelty | None:
    """Return the score that a bundle's tensors and card describe; None if it has none."""
    if not tensors:
        return None
    found = {name.removeprefix(NOVELTY): tensor for name, tensor in tensors.items()}
    if found.keys() != set(Novelty.STATISTICS):
        raise ValueError(
            f"novelty: wanted are the tensors {', '.join(Novelty.STATISTICS)}, found "
            f"{', '.join(sorted(found))}"
        )
    axes = found["axes"]
    if len(axes) and axes[0].numel() * molecule.n_atoms > _MOST_STATISTICS:
        raise ValueError(f"novelty: axes of shape {tuple(axes.shape)} are too many directions")
    said = Card.novelty.of(card)
    if said is None:
        raise ValueError("card: novelty must hold a positive threshold, got None")
    elements = said.get("elements")
    windows = () if elements is None else Card(card).windows
    return Novelty(
        molecule.atomic_numbers,
        **found,
        threshold=float(said["threshold"]),
        elements=elements,
        windows=windows,
    )


def _packed(frames: ArrayLike, n_atoms: int) -> NDArray[np.int16]:
    """Return start frames as a bundle stores them."""
    try:
        given = np.asarray(frames, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"start_frames must be numbers of shape (M, {n_atoms}, 3), in nm"
        ) from None
    if given.ndim != 3 or given.shape[0] < 1 or given.shape[1:] != (n_atoms, 3):
        raise ValueError(f"start_frames must have shape (M, {n_atoms}, 3), got {given.shape}")
    wrong = np.flatnonzero(~np.isfinite(given).all(axis=(1, 2)))
    if len(wrong):
        raise ValueError(f"start_frames: frame {wrong[0]} holds NaN or infinity")
    units = np.round((given - given.mean(axis=1, keepdims=True)) / START_FRAMES_UNIT_NM)
    limit = np.iinfo(np.int16).max
    if np.abs(units).max() > limit:
        frame = int(np.abs(units).max(axis=(1, 2)).argmax())
        raise ValueError(
            f"start_frames: an atom of frame {frame} is more than {limit * START_FRAMES_UNIT_NM:g} "
            "nm away from the centroid; wanted are whole molecules, in nm (not angstrom)"
        )
    return units.astype(np.int16)


def _unpacked(stored: Tensor) -> NDArray[np.float64]:
    if stored.dtype != torch.int16 or stored.dim() != 3:
        raise ValueError(
            f"{START_FRAMES} must be int16 of shape (M, N, 3), got {tuple(stored.shape)} "
            f"{stored.dtype}"
        )
    return stored.numpy().astype(np.float64) * START_FRAMES_UNIT_NM


def _whole_number(module: torch.nn.Module, attribute: str, least: int) -> int:
    value = getattr(module, attribute, None)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"propagator: {type(module).__name__}.{attribute} must be an integer of at least "
            f"{least}, got {value!r}"
        )
    return value


class _Bounded(TorchFunctionMode):
    """Within this, networks are built whose size accords with a file of so many numbers.

    A damaged or malicious file can ask for one that does not fit into memory. ValueError is raised
    between a tensor's creation and its first use, when it does not take memory yet.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        # Shipped networks use 2 for each number of theirs, and 400 calls.
        self.left = _SMALL_NETWORK + 8 * numbers

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        try:
            result = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "allocate memory" in str(error):
                raise ValueError(_TOO_LARGE) from error
            raise
        self.left -= _CALL + (result.numel() if isinstance(result, Tensor) else 0)
        if self.left < 0:
            raise ValueError(_TOO_LARGE)
        return result


def _built(name: str, hyperparameters: Mapping[str, Any]) -> torch.nn.Module:
    """Build a propagator of a registered architecture, with weights that are yet to be read."""
    cls = architecture(name)
    # Building draws initial weights that are thrown away: the user's random numbers stay put.
    with torch.random.fork_rng(devices=[]):
        try:
            return cls(**hyperparameters)
        except Exception as error:  # somebody else's constructor may raise anything
            reason = f"{error}" or type(error).__name__
            raise ValueError(
                f"architecture {name!r} refuses its hyperparameters: {reason}"
            ) from error


def _compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line, unless both sets of weights have one shape."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing:
        raise ValueError(f"the weights lack {', '.join(missing)}")
    if extra:
        raise ValueError(f"the weights hold unknown {', '.join(extra)}")
    for name in sorted(expected):
        ours, theirs = expected[name], found[name]
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
            raise ValueError(f"the state {name} is not a tensor")
        # Half precision is how a bundle stores what it holds exactly.
        known = (ours.dtype, torch.float16) if ours.dtype == torch.float32 else (ours.dtype,)
        if ours.shape != theirs.shape or theirs.dtype not in known:
            raise ValueError(
                f"the weights {name} are {tuple(theirs.shape)} {theirs.dtype}, "
                f"the architecture has {tuple(ours.shape)} {ours.dtype}"
            )
