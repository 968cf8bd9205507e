"""A model: a propagator, the molecule or molecules it knows, and its card."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..molecule.matching import match_atoms
from ..molecule.molecule import Molecule
from ..molecule.terms import ForceFieldTerms
from ..propagator.internal.transferable import TransferableDiffusion
from .bundle import FORMAT_VERSION, POOLED, BundleError, load_bundle, save_bundle
from .card import Card, Distance, Window, common
from .member import Member, restored
from .names import bundle_path, registered, shipped
from .novelty import Novelty
from .pooled import PooledNovelty
from .relatives import served
from .schedules import PURPOSES, USUAL_SETTLE_PS, Schedule, beside_bundle

if TYPE_CHECKING:
    import openmm

    from ..integrator.integrator import ScoreDynamicsIntegrator

_PREFIX: Final = "member{}."
"""What the names of a member's own tensors begin with in the bundle of a family."""

# What a summary says in its own words, or leaves out because it is for gates.
_SAID_ABOVE: Final = frozenset(
    entry.key
    for entry in (
        *(Card.description, Card.temperature, Card.lag_range, Card.recommended_lag),
        *(Card.recommended_burst, Card.max_displacement, Card.novelty, Card.bond_windows),
        *(Card.angle_windows, Card.torsion_windows, Card.contact_distances),
        *(Card.constraint_lengths, Card.schedules),
    )
)

# Parts of a card's entries that a summary leaves out.
_LONG: Final = ("history", "merged", "constraint_lengths_nm", "torsion_terms")

_DEFAULT_MAX_DISPLACEMENT: Final = 2.0
"""Displacement bound (nm) of a model whose card has none: catches only a network gone astray."""


class ScoreModel:
    """A propagator together with what one has to know to use it.

    A model knows one molecule, as a rule. A family knows several that share the weights: it has a
    member for each, which is a model like any other, and what depends on the molecule is asked of
    the member.

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
        See :func:`~openmm_sd.model.novelty.fit_novelty`.

    Attributes
    ----------
    name : str or None
        The shipped name or the path it was loaded from; None for a model made in this process.
    sha256 : str or None
        SHA-256 of that file.
    file : str or None
        The file's absolute path.
    pooled_novelty : PooledNovelty or None
        What the novelty score of molecules without data is made from, see `serve`.

    Raises
    ------
    ValueError
        If the parts do not fit each other or the card holds nonsense.

    Examples
    --------
    >>> model = ScoreModel.load("ala2-water")            # doctest: +SKIP
    >>> model.recommended_lag_ps                         # doctest: +SKIP
    10.0
    """

    name: str | None = None
    sha256: str | None = None
    file: str | None = None
    _pooled: PooledNovelty | None = None

    def __init__(
        self,
        propagator: torch.nn.Module,
        molecules: Molecule | Sequence[Molecule],
        card: Mapping[str, Any] | None = None,
        start_frames: ArrayLike | None = None,
        novelty: Novelty | None = None,
    ) -> None:
        self._own: Member | None = Member(propagator, molecules, card, start_frames, novelty)
        self._card = self._own.card
        self._parts: tuple[ScoreModel, ...] = ()

    def createIntegrator(
        self, system: openmm.System, topology: Any, *arguments: Any, **settings: Any
    ) -> ScoreDynamicsIntegrator:
        """Make an integrator that is attached to a System.

        Parameters
        ----------
        system : openmm.System
            With all its other forces. It gets one more, for the jumps.
        topology : openmm.app.Topology or mdtraj.Topology
            Describes the System's particles, bonds included.
        *arguments, **settings
            Those of :class:`~openmm_sd.ScoreDynamicsIntegrator` behind the model: `temperature`,
            `frictionCoeff` and `stepSize`, in this order or by name, and all others by name.

        Examples
        --------
        >>> integrator = model.createIntegrator(system, topology, temperature=300*kelvin,
        ...                                     lag=100*picoseconds)     # doctest: +SKIP
        """
        # Asked of the package, which stands above: nothing else here knows of OpenMM.
        from .. import ScoreDynamicsIntegrator

        return ScoreDynamicsIntegrator(
            self, *arguments, system=system, topology=topology, **settings
        )

    @classmethod
    def family(cls, models: Sequence[ScoreModel]) -> ScoreModel:
        """Make one model of several that share their weights.

        An integrator takes the member whose molecule it finds in the Topology.

        Parameters
        ----------
        models : sequence of ScoreModel
            Of one molecule each, with different names. Their propagators are of one class with the
            methods ``weights`` and ``load_weights``, and have equal weights.

        Examples
        --------
        >>> family = ScoreModel.load("alkanes-water")            # doctest: +SKIP
        >>> butane = family.member("butane")                     # doctest: +SKIP
        """
        found = tuple(models)
        _check_family(found)
        family = cls.__new__(cls)
        family._own = None
        family._card = common([model._card for model in found])
        family._parts = found
        return family

    def _one(self, what: str) -> Member:
        """Return the member of a model of one molecule; a family, which has several, is refused."""
        if self._own is None:
            raise ValueError(
                f"{what} depends on the molecule: ask a member, such as "
                f"model.member({self.molecules[0].name!r})"
            )
        return self._own

    def __repr__(self) -> str:
        kind = type(self.members[0].propagator).__name__
        atoms = "" if self.is_family else f"; {self.n_atoms} atoms"
        return f"ScoreModel({kind} of {self._names()}{atoms})"

    @property
    def is_family(self) -> bool:
        """Whether this is a model of several molecules, made by `family`."""
        return self._own is None

    @property
    def serves_others(self) -> bool:
        """Whether the network knows molecules that are none of `molecules`, see `serve`."""
        return isinstance(self.members[0].propagator, TransferableDiffusion)

    @property
    def members(self) -> tuple[ScoreModel, ...]:
        """Models of one molecule each: the parts of a family, or this one."""
        return self._parts or (self,)

    @property
    def molecules(self) -> tuple[Molecule, ...]:
        """What the model was trained on; of a family, one for each member."""
        if self._own is not None:
            return self._own.molecules
        return tuple(model.molecules[0] for model in self._parts)

    @property
    def propagator(self) -> torch.nn.Module:
        """The learned kernel."""
        return self._one("propagator").propagator

    @property
    def novelty(self) -> Novelty | None:
        """Score of a frame: how unlike the training frames it is.

        None for a model without, and for a family: its members have their own.
        """
        return None if self._own is None else self._own.novelty

    @novelty.setter
    def novelty(self, score: Novelty | None) -> None:
        self._one("novelty").novelty = score

    @property
    def pooled_novelty(self) -> PooledNovelty | None:
        """What the score of molecules without one of their own is made from, see `serve`."""
        return self._pooled

    @pooled_novelty.setter
    def pooled_novelty(self, pooled: PooledNovelty | None) -> None:
        for part in (self, *self.members):
            part._pooled = pooled
            if part._own is not None:
                part._own.pooled = pooled

    @property
    def n_atoms(self) -> int:
        """Number of atoms of the solute."""
        return self._one("n_atoms").n_atoms

    @property
    def noise_size(self) -> int:
        """Number of standard normal numbers that one jump consumes."""
        return self._one("noise_size").noise_size

    @property
    def card(self) -> Card:
        """The model card, a fresh copy each time: changing it does not change the model."""
        return copy.deepcopy(self._card)

    @property
    def start_frames(self) -> NDArray[np.float32] | None:
        """Equilibrium frames to start chains from, (M, N, 3) nm, a fresh copy; None without."""
        return self._one("start_frames").start_frames

    @property
    def temperature_K(self) -> float | None:
        """Temperature of the training data, K; None if the card does not say."""
        return self._card.temperature

    @property
    def lag_range_ps(self) -> tuple[float, float] | None:
        """Shortest and longest lag the model was trained for, ps; None if not said."""
        return self._card.lag_range

    @property
    def recommended_lag_ps(self) -> float:
        """Lag to use when the user names none, ps."""
        return self._card.usual_lag

    @property
    def recommended_burst_ps(self) -> float:
        """Length of the ordinary MD between jumps when the user names none, ps."""
        return self._card.usual_burst

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """Lags with burst and settling, what each is good for, and what was measured of it.

        Those of the card; of a shipped model without, those that were measured later.
        """
        return self._card.schedules or beside_bundle(self.sha256)

    def schedule(self, purpose: str | None = None) -> Schedule:
        """Return the schedule for ``populations`` or ``kinetics``.

        Without a purpose, or where no schedule is known to be good for it, the recommended lag and
        burst.
        """
        if purpose is not None and purpose not in PURPOSES:
            raise ValueError(f"purpose must be one of {', '.join(PURPOSES)}, got {purpose!r}")
        for one in self.schedules:
            if purpose in one.good_for:
                return one
        return Schedule(
            self.recommended_lag_ps,
            self.recommended_burst_ps,
            USUAL_SETTLE_PS,
            measured=self.measured_at(self.recommended_lag_ps),
        )

    def measured_at(self, lag_ps: float) -> Mapping[str, Mapping[str, float]]:
        """Return what was measured of chains of a lag; empty if nothing was."""
        return next((one.measured for one in self.schedules if one.lag_ps == lag_ps), {})

    @property
    def max_displacement_nm(self) -> float:
        """Largest displacement of an atom in one jump that is believed, nm."""
        return self._card.max_displacement or _DEFAULT_MAX_DISPLACEMENT

    @property
    def temperature(self) -> float | None:
        """Short name of `temperature_K`."""
        return self.temperature_K

    @property
    def lag_range(self) -> tuple[float, float] | None:
        """Short name of `lag_range_ps`."""
        return self.lag_range_ps

    @property
    def recommended_lag(self) -> float:
        """Short name of `recommended_lag_ps`."""
        return self.recommended_lag_ps

    @property
    def recommended_burst(self) -> float:
        """Short name of `recommended_burst_ps`."""
        return self.recommended_burst_ps

    @property
    def max_displacement(self) -> float:
        """Short name of `max_displacement_nm`."""
        return self.max_displacement_nm

    @property
    def bond_windows(self) -> tuple[Window, ...]:
        """Pairs of bonded atoms with their shortest and longest distance, nm; may be empty."""
        return self._one("bond_windows").card.bond_windows

    @property
    def angle_windows(self) -> tuple[Window, ...]:
        """The same for the ends of angles; may be empty."""
        return self._one("angle_windows").card.angle_windows

    @property
    def torsion_windows(self) -> tuple[Window, ...]:
        """The same for the ends of torsions that do not turn; may be empty."""
        return self._one("torsion_windows").card.torsion_windows

    @property
    def contact_distances(self) -> tuple[Distance, ...]:
        """Pairs of atoms with the shortest distance they may have, nm; may be empty."""
        return self._one("contact_distances").card.contact_distances

    @property
    def constraint_lengths(self) -> tuple[Distance, ...]:
        """Heavy atom, hydrogen and the distance held in the training MD, nm; may be empty."""
        return self._one("constraint_lengths").card.constraint_lengths

    @classmethod
    def shipped(cls) -> list[str]:
        """Return the names of the models that come with the package, sorted."""
        return shipped()

    @classmethod
    def registered(cls) -> list[str]:
        """Return the names of models that other packages register, sorted; not whether they load.

        Such a package declares, in the group ``openmm_sd.models`` of its entry points, a name and
        an object: the path of a bundle, or a function without arguments that returns one. Names of
        shipped models are not taken.
        """
        return registered()

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
        return cls._from_bundle(bundle_path(name_or_path), os.fspath(name_or_path))

    @classmethod
    def _from_bundle(cls, path: Path, name: str) -> ScoreModel:
        tensors, content = load_bundle(path)
        try:
            model = cls._read(tensors, content)
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise BundleError(f"{path}: {' '.join(str(error).split())}") from error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for part in (model, *model.members):
            part.name, part.sha256, part.file = name, digest, os.path.abspath(path)
        return model

    @classmethod
    def _read(cls, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> ScoreModel:
        """Make a model of what a bundle holds."""
        pooled = {key: tensor for key, tensor in tensors.items() if key.startswith(POOLED)}
        model = cls._without_pooled({k: t for k, t in tensors.items() if k not in pooled}, content)
        if pooled:
            named = {key.removeprefix(POOLED): tensor for key, tensor in pooled.items()}
            model.pooled_novelty = PooledNovelty(named)
        return model

    @classmethod
    def _without_pooled(
        cls, tensors: Mapping[str, Tensor], content: Mapping[str, Any]
    ) -> ScoreModel:
        name = content["architecture"]["name"]
        molecules = [Molecule.from_dict(molecule) for molecule in content["molecules"]]
        if "members" not in content:
            given = content["architecture"]["hyperparameters"]
            return cls(*restored(name, given, tensors, molecules, content["card"]))
        left = dict(tensors)
        own = []
        for k in range(len(molecules)):
            prefix = _PREFIX.format(k)
            keys = [key for key in left if key.startswith(prefix)]
            own.append({key.removeprefix(prefix): left.pop(key) for key in keys})
        models = []
        for entry, theirs, molecule in zip(content["members"], own, molecules, strict=True):
            # What is left belongs to all.
            card = {**content["card"], **entry["card"]}
            parts = restored(name, entry["hyperparameters"], theirs | left, [molecule], card)
            models.append(cls(*parts))
        return cls.family(models)

    def member(self, molecule: Molecule | str) -> ScoreModel:
        """Return the model of one of `molecules`, given it or its name."""
        wanted = molecule.name if isinstance(molecule, Molecule) else molecule
        for model in self.members:
            if any(known.name == wanted for known in model.molecules):
                return model
        raise ValueError(f"the model does not know {wanted!r}, but {self._names()}")

    def serve(self, molecule: Molecule, terms: ForceFieldTerms) -> ScoreModel:
        """Return the model of a molecule that is none of `molecules`.

        For networks that know any molecule of a force field (`train --network transferable`).
        What is known of the molecule is the terms alone: validate before use.

        Parameters
        ----------
        molecule : Molecule
            With a whole structure of the right hands.
        terms : ForceFieldTerms
            What `openmm_sd.system.solute.force_field_terms` returns, in the force field and with
            the constraints of the training data.

        Raises
        ------
        ValueError
            If the network knows its own molecules only, or the molecule has no such coordinates.
        """
        relatives = [(member.molecules[0], member.card) for member in self.members]
        network, card, novelty = served(
            self.members[0].propagator, relatives, molecule, terms, self.pooled_novelty
        )
        start = np.asarray(molecule.positions)[None]
        model = ScoreModel(network, molecule, card, start, novelty)
        model.name = self.name
        model.file = self.file  # where the weights are
        return model

    def only(self, molecule: str | None = None) -> ScoreModel:
        """Return the member that is named, or the only one there is."""
        if molecule is not None:
            return self.member(molecule)
        if len(self.members) == 1:
            return self.members[0]
        raise ValueError(f"the model knows several molecules, name one: {self._names()}")

    def _names(self) -> str:
        return ", ".join(molecule.name for molecule in self.molecules)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one bundle, a family with all its members.

        The usual ending is ``.safetensors``; an existing file is replaced.

        Raises
        ------
        BundleError
            If the model could not be loaded again: its class is not registered, it lacks
            `hyperparameters`, or these build a module with other weights.
        """
        refused = f"cannot save {path}"
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "molecules": [molecule.to_dict() for molecule in self.molecules],
            "card": self.card,
        }
        pooled = self.pooled_novelty
        shared_by_all = {} if pooled is None else {POOLED + k: t for k, t in pooled.tensors.items()}
        if self._own is not None:
            name, plain, tensors, content["card"] = self._own.stored(refused)
            tensors |= shared_by_all
            content["architecture"] = {"name": name, "hyperparameters": plain}
            save_bundle(path, tensors, content)
            return
        shared = self.members[0].propagator.weights()  # type: ignore[operator]
        tensors, entries = dict(shared), []
        for k, model in enumerate(self.members):
            name, plain, own, card = model._one("save").stored(refused)
            tensors |= {_PREFIX.format(k) + key: own[key] for key in own if key not in shared}
            differing = {key: value for key, value in card.items() if key not in self._card}
            entries.append({"hyperparameters": plain, "card": differing})
        content["architecture"] = {"name": name, "hyperparameters": {}}
        content["members"] = entries
        save_bundle(path, tensors | shared_by_all, content)

    def scripted(self, device: torch.device | str | None = None) -> torch.jit.ScriptModule:
        """Return the propagator as frozen TorchScript in evaluation mode.

        A second call with the same device returns the same object. Later changes of the
        propagator's weights do not reach it.

        Parameters
        ----------
        device : torch.device or str, optional
            Where it will run; by default where the propagator's weights are now. Freezing turns
            weights into constants, and constants do not follow ``.to(device)``, so the device is
            settled here.

        Raises
        ------
        ValueError
            If the propagator cannot be scripted.
        """
        return self._one("scripted").scripted(device)

    def summary(self) -> str:
        """Return a description for people, several lines."""
        if self._own is None:
            intro = (
                f"A family of {len(self.members)} molecules with the same weights: {self._names()}."
            )
            return "\n\n".join([intro, *(model.summary() for model in self.members)])
        weights = sum(parameter.numel() for parameter in self.propagator.parameters())
        lines = []
        if self._card.description is not None:
            lines.append(self._card.description.strip())
        for molecule in self.molecules:
            lines.append(
                f"molecule:      {molecule.name} ({molecule.formula}, {self.n_atoms} atoms)"
            )
        kind = self._own.architecture or type(self.propagator).__name__
        lines.append(f"architecture:  {kind}, {weights:,} weights, noise {self.noise_size}")
        temperature, lags = self.temperature, self.lag_range
        lines.append(
            f"temperature:   {'not said' if temperature is None else f'{temperature:g} K'}"
        )
        trained = "not said" if lags is None else f"{lags[0]:g} to {lags[1]:g} ps"
        lines.append(f"lag:           {trained}; recommended {self.recommended_lag:g} ps")
        lines.append(f"burst:         recommended {self.recommended_burst:g} ps")
        for one in self.schedules:
            use = f"for {' and '.join(one.good_for)}" if one.good_for else "measured"
            lines.append(f"schedule:      {one.lag_ps:g} ps, {use}: {one.fidelity}")
        if self.start_frames is not None:
            lines.append(f"start frames:  {len(self.start_frames)}")
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


def _check_family(models: Sequence[ScoreModel]) -> None:
    """Raise ValueError unless models of one molecule each are those of a family."""
    if not models:
        raise ValueError("members is empty: a family has at least one member")
    for model in models:
        if not isinstance(model, ScoreModel) or model.is_family:
            raise ValueError(f"members must be single models, got {model!r}")
        if len(model.molecules) != 1:
            raise ValueError(f"members must know one molecule each, got {model!r}")
        kind = type(model.propagator)
        if not (hasattr(kind, "weights") and hasattr(kind, "load_weights")):
            raise ValueError(
                f"members: {kind.__name__} cannot share its weights between molecules; it needs "
                "the methods weights and load_weights"
            )
    names = [model.molecules[0].name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"members: {', '.join(twice)} is there twice")
    for model in models[1:]:
        _check_alike(models[0], model)
    for one, other in itertools.combinations([model.molecules[0] for model in models], 2):
        if match_atoms(one, other.graph()) is not None:
            raise ValueError(f"members: {one.name} and {other.name} are the same molecule")


def _check_alike(first: ScoreModel, other: ScoreModel) -> None:
    """Raise ValueError unless two members have the same weights and the same range of use."""
    names = f"{first.molecules[0].name} and {other.molecules[0].name}"
    if type(first.propagator) is not type(other.propagator):
        raise ValueError(f"members: {names} have propagators of different classes")
    weights, theirs = (model.propagator.weights() for model in (first, other))  # type: ignore[operator]
    if weights.keys() != theirs.keys() or any(
        not torch.equal(weights[name], theirs[name]) for name in weights
    ):
        raise ValueError(f"members: {names} have different weights")
    for what in ("temperature", "lag_range", "recommended_lag", "recommended_burst"):
        if getattr(first, what) != getattr(other, what):
            raise ValueError(f"members: {names} differ in {what}")


def model_digest(model: ScoreModel) -> str:
    """Return a hash of all that decides what a model does, however it was loaded."""
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
