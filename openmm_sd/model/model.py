"""A model: a propagator, the molecule or molecules it knows, and its card."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.resources
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..molecule.molecule import Molecule
from ..propagator.registry import architecture, architecture_name
from ..propagator.script import script_frozen
from .bundle import (
    FORMAT_VERSION,
    NOVELTY,
    START_FRAMES,
    START_FRAMES_UNIT_NM,
    BundleError,
    canonical_json,
    load_bundle,
    save_bundle,
)
from .card import Card, Distance, Window
from .novelty import Novelty

_SUFFIX: Final = ".safetensors"

#: Group of entry points by which other packages register models: a name, and an object that is the
#: path of a bundle, or a function that returns one.
ENTRY_POINTS: Final = "openmm_sd.models"

_DEFAULT_LAG: Final = 10.0
"""Lag (ps) of a model whose card recommends none."""

_DEFAULT_BURST: Final = 2.0
"""Burst between jumps (ps) of a model whose card recommends none."""

# What a summary says in its own words, or leaves out because it is for gates.
_SAID_ABOVE: Final = frozenset(
    entry.key
    for entry in (
        *(Card.description, Card.temperature, Card.lag_range, Card.recommended_lag),
        *(Card.recommended_burst, Card.max_displacement, Card.novelty, Card.bond_windows),
        *(Card.angle_windows, Card.torsion_windows, Card.contact_distances),
        Card.constraint_lengths,
    )
)

# Parts of a card's entries that a summary leaves out.
_LONG: Final = ("history", "merged", "constraint_lengths_nm", "torsion_terms")

_DEFAULT_MAX_DISPLACEMENT: Final = 2.0
"""Displacement bound (nm) of a model whose card has none: catches only a network gone astray."""


def _registered_path(name: str) -> Path:
    """Ask the package that registers a model for its bundle."""
    point = next(iter(importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)))
    owner = point.dist.name if point.dist is not None else "another package"
    try:
        found = point.load()
        path = Path(os.fspath(found() if callable(found) else found))
    except Exception as error:  # code of others fails in any way
        raise BundleError(
            f"{name}: registered by {owner} ({point.value}), which fails: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if not path.is_file():
        raise BundleError(f"{name}: registered by {owner}, which names {path}: there is no file")
    return path


class ScoreModel:
    """A propagator together with what one has to know to use it.

    Parameters
    ----------
    propagator : torch.nn.Module
        Follows the contract of :class:`~openmm_sd.propagator.contract.Propagator`. It is put into
        evaluation mode and its parameters stop asking for gradients, in place.
    molecules : Molecule or sequence of Molecule
        What the model was trained on; all with the propagator's number of atoms.
    card : mapping, optional
        JSON-able facts about the model. :class:`~openmm_sd.model.card.Card` lists the keys with a
        meaning to this package, all optional; others are kept.
    start_frames : array, shape (M, N, 3), optional
        Equilibrium frames of the first molecule, nm, whole, in its atom order: where rollouts
        begin. Each is moved so that its centroid is at the origin and rounded to 1e-4 nm.
    novelty : Novelty, optional
        Score of a frame: how unlike the training frames it is; see
        :func:`~openmm_sd.model.novelty.fit_novelty`.

    Attributes
    ----------
    propagator : torch.nn.Module
    molecules : tuple of Molecule
    novelty : Novelty or None
        None for a model without: then nothing is known about how novel a frame is.
    name : str or None
        The shipped name or the path it was loaded from; None for a model made in this process.
    sha256 : str or None
        SHA-256 of that file.

    Raises
    ------
    ValueError
        If the parts do not fit each other or the card holds nonsense.

    Examples
    --------
    >>> model = ScoreModel.load("ala2-water")            # doctest: +SKIP
    >>> model.recommended_lag                            # doctest: +SKIP
    10.0
    """

    propagator: torch.nn.Module
    molecules: tuple[Molecule, ...]
    novelty: Novelty | None
    name: str | None = None
    sha256: str | None = None

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
        n_atoms = _whole_number(propagator, "n_atoms", 1)
        _whole_number(propagator, "noise_size", 0)
        known = (molecules,) if isinstance(molecules, Molecule) else tuple(molecules)
        if not known:
            raise ValueError("molecules is empty: a model knows at least one molecule")
        for molecule in known:
            if not isinstance(molecule, Molecule):
                raise ValueError(
                    f"molecules must hold Molecule objects, got {type(molecule).__name__}"
                )
            if molecule.n_atoms != n_atoms:
                raise ValueError(
                    f"molecules: {molecule.name} has {molecule.n_atoms} atoms, the propagator "
                    f"works on n_atoms = {n_atoms}"
                )
        if card is not None and not isinstance(card, Mapping):
            raise ValueError(f"card must be a mapping, got {type(card).__name__}")
        # Through JSON and back: what is used before saving is then what is read afterwards.
        self._card = Card(json.loads(canonical_json(dict(card or {}), "card")))
        self._scripted: dict[torch.device, torch.jit.ScriptModule] = {}
        self.propagator = propagator.eval().requires_grad_(False)
        self.molecules = known
        # As stored in the bundle, for the same reason as the card's way through JSON.
        self._start_frames = None if start_frames is None else _packed(start_frames, n_atoms)
        self.novelty = None if novelty is None else novelty.eval().requires_grad_(False)
        self._check_novelty()
        self._card.check(known)

    def __repr__(self) -> str:
        names = ", ".join(molecule.name for molecule in self.molecules)
        kind = type(self.propagator).__name__
        return f"ScoreModel({kind} of {names}; {self.n_atoms} atoms)"

    @property
    def n_atoms(self) -> int:
        """Number of atoms of the solute."""
        return int(self.propagator.n_atoms)  # type: ignore[arg-type]

    @property
    def noise_size(self) -> int:
        """Number of standard normal numbers that one jump consumes."""
        return int(self.propagator.noise_size)  # type: ignore[arg-type]

    @property
    def card(self) -> Card:
        """The model card, a fresh copy each time: changing it does not change the model."""
        return copy.deepcopy(self._card)

    @property
    def start_frames(self) -> NDArray[np.float32] | None:
        """Equilibrium frames to start chains from, (M, N, 3) nm, a fresh copy; None without."""
        if self._start_frames is None:
            return None
        return (self._start_frames * START_FRAMES_UNIT_NM).astype(np.float32)

    @property
    def temperature(self) -> float | None:
        """Temperature of the training data, K; None if the card does not say."""
        return self._card.temperature

    @property
    def lag_range(self) -> tuple[float, float] | None:
        """Shortest and longest lag the model was trained for, ps; None if not said."""
        return self._card.lag_range

    @property
    def recommended_lag(self) -> float:
        """Lag to use when the user names none, ps."""
        shortest, longest = self._card.lag_range or (_DEFAULT_LAG, _DEFAULT_LAG)
        return self._card.recommended_lag or min(max(_DEFAULT_LAG, shortest), longest)

    @property
    def recommended_burst(self) -> float:
        """Length of the ordinary MD between jumps when the user names none, ps."""
        return self._card.recommended_burst or _DEFAULT_BURST

    @property
    def max_displacement(self) -> float:
        """Largest displacement of an atom in one jump that is believed, nm."""
        return self._card.max_displacement or _DEFAULT_MAX_DISPLACEMENT

    @property
    def bond_windows(self) -> tuple[Window, ...]:
        """Pairs of bonded atoms with their shortest and longest distance, nm; may be empty."""
        return self._card.bond_windows

    @property
    def angle_windows(self) -> tuple[Window, ...]:
        """The same for the ends of angles; may be empty."""
        return self._card.angle_windows

    @property
    def torsion_windows(self) -> tuple[Window, ...]:
        """The same for the ends of torsions that do not turn; may be empty."""
        return self._card.torsion_windows

    @property
    def contact_distances(self) -> tuple[Distance, ...]:
        """Pairs of atoms with the shortest distance they may have, nm; may be empty."""
        return self._card.contact_distances

    @property
    def constraint_lengths(self) -> tuple[Distance, ...]:
        """Heavy atom, hydrogen and the distance held in the training MD, nm; may be empty."""
        return self._card.constraint_lengths

    @classmethod
    def shipped(cls) -> list[str]:
        """Return the names of the models that come with the package, sorted."""
        folder = importlib.resources.files("openmm_sd").joinpath("models")
        if not folder.is_dir():
            return []
        files = (entry.name for entry in folder.iterdir())
        return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))

    @classmethod
    def registered(cls) -> list[str]:
        """Return the names of models that other packages register, sorted; not whether they load.

        Such a package declares, in the group ``openmm_sd.models`` of its entry points, a name and
        an object: the path of a bundle, or a function without arguments that returns one. Names of
        shipped models are not taken.
        """
        shipped = cls.shipped()
        points = importlib.metadata.entry_points(group=ENTRY_POINTS)
        return sorted({point.name for point in points} - set(shipped))

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> ScoreModel:
        """Load a model that comes with the package or another one, or one from a file.

        Parameters
        ----------
        name_or_path : str or PathLike
            A name from :meth:`shipped` or :meth:`registered`, or the path of a bundle. Names come
            first, shipped ones before others; write ``./name`` for a file of the same name.

        Returns
        -------
        ScoreModel
            On the CPU.

        Raises
        ------
        BundleError
            One line; nothing is half loaded.
        """
        if not isinstance(name_or_path, (str, os.PathLike)):
            raise ValueError(
                f"name_or_path must be a name or a path, got {type(name_or_path).__name__}"
            )
        shipped = cls.shipped()
        if isinstance(name_or_path, str) and name_or_path in shipped:
            resource = importlib.resources.files("openmm_sd").joinpath(
                "models", name_or_path + _SUFFIX
            )
            with importlib.resources.as_file(resource) as file:
                return cls._from_bundle(file, name_or_path)
        registered = cls.registered()
        if isinstance(name_or_path, str) and name_or_path in registered:
            return cls._from_bundle(_registered_path(name_or_path), name_or_path)
        path = Path(name_or_path)
        if not path.exists():
            others = (
                f"; registered by other packages: {', '.join(registered)}" if registered else ""
            )
            raise BundleError(
                f"{name_or_path}: neither a file nor a shipped model; shipped models: "
                f"{', '.join(shipped) or 'none'}{others}"
            )
        return cls._from_bundle(path, os.fspath(name_or_path))

    @classmethod
    def _from_bundle(cls, path: Path, name: str) -> ScoreModel:
        tensors, content = load_bundle(path)
        model: ScoreModel
        try:
            if "members" in content:
                from .family_model import FamilyModel

                model = FamilyModel.from_content(tensors, content)
            else:
                kind = content["architecture"]
                model = read_single(
                    built(kind["name"], kind["hyperparameters"]),
                    tensors,
                    [Molecule.from_dict(molecule) for molecule in content["molecules"]],
                    content["card"],
                )
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise BundleError(f"{path}: {' '.join(str(error).split())}") from error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for part in (model, *model.members):
            part.name, part.sha256 = name, digest
        return model

    @property
    def members(self) -> tuple[ScoreModel, ...]:
        """Models of one molecule each: this one, or the parts of a `FamilyModel`."""
        return (self,)

    def member(self, molecule: Molecule | str) -> ScoreModel:
        """Return the model of one molecule: of a model of several, see `FamilyModel`, a part.

        Parameters
        ----------
        molecule : Molecule or str
            One of `molecules`, or its name.
        """
        wanted = molecule.name if isinstance(molecule, Molecule) else molecule
        if all(known.name != wanted for known in self.molecules):
            names = ", ".join(known.name for known in self.molecules)
            raise ValueError(f"the model does not know {wanted!r}, but {names}")
        return self

    def only(self, molecule: str | None = None) -> ScoreModel:
        """Return this model, after a look at whether it knows the molecule that is named."""
        return self if molecule is None else self.member(molecule)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a bundle.

        Parameters
        ----------
        path : str or PathLike
            Where to, usually with the ending ``.safetensors``; an existing file is replaced.

        Raises
        ------
        BundleError
            If the model could not be loaded again: its class is not registered, it lacks
            `hyperparameters`, or these build a module with other weights.
        """
        name = architecture_to_save(self, f"cannot save {path}")
        plain, tensors, card = own_tensors(self, f"cannot save {path}")
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": {"name": name, "hyperparameters": plain},
            "molecules": [molecule.to_dict() for molecule in self.molecules],
            "card": card,
        }
        save_bundle(path, tensors, content)

    def scripted(self, device: torch.device | str | None = None) -> torch.jit.ScriptModule:
        """Return the propagator as frozen TorchScript in evaluation mode.

        Parameters
        ----------
        device : torch.device or str, optional
            Where it will run; by default where the propagator's weights are now. Freezing turns
            weights into constants, and constants do not follow ``.to(device)``, so the device is
            settled here.

        Returns
        -------
        torch.jit.ScriptModule
            Kept: a second call with the same device returns the same object. Later changes of
            the propagator's weights do not reach it.

        Raises
        ------
        ValueError
            If the propagator cannot be scripted.
        """
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

    def summary(self) -> str:
        """Return a description for people, several lines."""
        weights = sum(parameter.numel() for parameter in self.propagator.parameters())
        lines = []
        if self._card.description is not None:
            lines.append(self._card.description.strip())
        for molecule in self.molecules:
            lines.append(
                f"molecule:      {molecule.name} ({molecule.formula}, {self.n_atoms} atoms)"
            )
        kind = architecture_name(type(self.propagator)) or type(self.propagator).__name__
        lines.append(f"architecture:  {kind}, {weights:,} weights, noise {self.noise_size}")
        temperature, lags = self.temperature, self.lag_range
        lines.append(
            f"temperature:   {'not said' if temperature is None else f'{temperature:g} K'}"
        )
        trained = "not said" if lags is None else f"{lags[0]:g} to {lags[1]:g} ps"
        lines.append(f"lag:           {trained}; recommended {self.recommended_lag:g} ps")
        lines.append(f"burst:         recommended {self.recommended_burst:g} ps")
        if self._start_frames is not None:
            lines.append(f"start frames:  {len(self._start_frames)}")
        if self.constraint_lengths:
            lines.append(f"constraints:   {len(self.constraint_lengths)} bonds to hydrogen")
        if self.novelty is not None:
            lines.append(
                f"novelty:       scores frames; beyond {self.novelty.threshold:g} is novel"
            )
        for key in sorted(self._card.keys() - _SAID_ABOVE):
            value = self._card[key]
            if isinstance(value, dict):
                # What is too long for a screen; `card` has all of it.
                value = {k: v for k, v in value.items() if k not in _LONG}
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            lines.append(f"{key + ':':<14} {text}")
        return "\n".join(lines)

    def _device(self) -> torch.device:
        for tensor in (*self.propagator.parameters(), *self.propagator.buffers()):
            return tensor.device
        return torch.device("cpu")

    def _check_novelty(self) -> None:
        """Make the card and the score say the same threshold."""
        if self.novelty is None:
            if self._card.get(Card.novelty.key) is not None:
                raise ValueError("card: novelty is described, but the model has no novelty score")
            return
        for molecule in self.molecules:
            if self.novelty.atomic_numbers != molecule.atomic_numbers:
                raise ValueError(f"novelty: the score is of other atoms than {molecule.name} has")
        said = self._card.novelty
        if said is None:
            self._card.novelty = {"threshold": self.novelty.threshold}
        elif said["threshold"] != self.novelty.threshold:
            raise ValueError(
                f"card: novelty has the threshold {said['threshold']}, the score "
                f"{self.novelty.threshold}"
            )


def architecture_to_save(model: ScoreModel, refused: str) -> str:
    """Return the name under which the class of a model's propagator is found again.

    Parameters
    ----------
    model : ScoreModel
        Of one molecule.
    refused : str
        What an error's message begins with.
    """
    kind = type(model.propagator)
    name = architecture_name(kind)
    if name is None:
        raise BundleError(
            f"{refused}: {kind.__name__} is not a known architecture; call "
            "register_architecture(name, cls) first"
        )
    return name


def own_tensors(
    model: ScoreModel, refused: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Return what a bundle holds of a model of one molecule.

    Parameters
    ----------
    model : ScoreModel
        The model.
    refused : str
        What an error's message begins with.

    Returns
    -------
    tuple
        The propagator's hyperparameters, all tensors by name, and the card.

    Raises
    ------
    BundleError
        If the model could not be read again.
    """
    name = architecture_to_save(model, refused)
    kind = type(model.propagator)
    hyperparameters = getattr(model.propagator, "hyperparameters", None)
    if not isinstance(hyperparameters, Mapping):
        raise BundleError(
            f"{refused}: {kind.__name__} needs the attribute hyperparameters, the "
            f"dict of its constructor's arguments; got {type(hyperparameters).__name__}"
        )
    plain = json.loads(canonical_json(dict(hyperparameters), f"{refused}: hyperparameters"))
    tensors = dict(model.propagator.state_dict())
    try:
        _compare(built(name, plain).state_dict(), tensors)
    except ValueError as error:
        raise BundleError(
            f"{refused}: the hyperparameters do not rebuild the module: {error}"
        ) from error
    for kept, what in ((START_FRAMES, "the start frames"), (NOVELTY, "the novelty score")):
        taken = next((key for key in tensors if key.startswith(kept)), None)
        if taken is not None:
            raise BundleError(f"{refused}: the weights hold {taken}, a name kept for {what}")
    if model._start_frames is not None:
        tensors[START_FRAMES] = torch.from_numpy(model._start_frames.copy())
    card = model.card
    if model.novelty is not None:
        card.novelty = {**(card.novelty or {}), "threshold": model.novelty.threshold}
        tensors |= {NOVELTY + k: tensor for k, tensor in model.novelty.state_dict().items()}
    return plain, tensors, card


def read_single(
    propagator: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    molecules: Sequence[Molecule],
    card: Mapping[str, Any],
) -> ScoreModel:
    """Return the model of one propagator, from what `own_tensors` gave.

    Parameters
    ----------
    propagator : torch.nn.Module
        As its hyperparameters build it; takes its weights here.
    tensors : mapping
        By name.
    molecules : sequence of Molecule
        What the propagator knows.
    card : mapping
        The card.
    """
    left = dict(tensors)
    start = left.pop(START_FRAMES, None)
    statistics = {name: left.pop(name) for name in list(left) if name.startswith(NOVELTY)}
    _compare(propagator.state_dict(), left)
    propagator.load_state_dict(left)
    return ScoreModel(
        propagator,
        molecules,
        card,
        None if start is None else _unpacked(start),
        _read_novelty(statistics, molecules[0], Card(card)),
    )


def _read_novelty(tensors: Mapping[str, Tensor], molecule: Molecule, card: Card) -> Novelty | None:
    """Return the score that a bundle's tensors and card describe; None if it has none."""
    if not tensors:
        return None
    found = {name.removeprefix(NOVELTY): tensor for name, tensor in tensors.items()}
    if found.keys() != set(Novelty.STATISTICS):
        raise ValueError(
            f"novelty: wanted are the tensors {', '.join(Novelty.STATISTICS)}, found "
            f"{', '.join(sorted(found))}"
        )
    said = card.novelty
    if said is None:
        raise ValueError("card: novelty must hold a positive threshold, got None")
    return Novelty(molecule.atomic_numbers, **found, threshold=float(said["threshold"]))


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


def built(name: str, hyperparameters: Mapping[str, Any]) -> torch.nn.Module:
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
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ValueError(
                f"the weights {name} are {tuple(theirs.shape)} {theirs.dtype}, "
                f"the architecture has {tuple(ours.shape)} {ours.dtype}"
            )


def model_digest(model: ScoreModel) -> str:
    """Return a hash of all that decides what a model does, however it was loaded."""
    import torch

    hasher = hashlib.sha256(type(model.propagator).__qualname__.encode())
    hyperparameters = getattr(model.propagator, "hyperparameters", None)
    hasher.update(repr(hyperparameters).encode())
    hasher.update(json.dumps(model.card, sort_keys=True).encode())
    for molecule in model.molecules:
        hasher.update(json.dumps(molecule.to_dict(), sort_keys=True).encode())
    parts: list[torch.nn.Module] = [model.propagator]
    if model.novelty is not None:
        hasher.update(f"novelty {model.novelty.threshold!r}".encode())
        parts.append(model.novelty)
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            hasher.update(name.encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()
