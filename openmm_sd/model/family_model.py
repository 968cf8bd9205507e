"""A model of a family: several molecules, one set of weights."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import networkx as nx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..molecule.molecule import Molecule
from .bundle import FORMAT_VERSION, save_bundle
from .card import common
from .model import ScoreModel, architecture_to_save, built, own_tensors, read_single

_PREFIX: Final = "member{}."
"""What the names of a member's own tensors begin with in a bundle."""


class FamilyModel(ScoreModel):
    """Models of several molecules that share their weights.

    What depends on the molecule (its propagator, its windows, its start frames) is asked of a
    member. An integrator takes the member whose molecule it finds in the Topology.

    Parameters
    ----------
    members : sequence of ScoreModel
        One a molecule, with different names. Their propagators are of one class with the methods
        ``weights`` and ``load_weights`` and have equal weights.

    Attributes
    ----------
    members : tuple of ScoreModel
    molecules : tuple of Molecule
        One of each member.

    Raises
    ------
    ValueError
        If the members do not go together.

    Examples
    --------
    >>> family = ScoreModel.load("alkanes-water")            # doctest: +SKIP
    >>> butane = family.member("butane")                     # doctest: +SKIP
    """

    def __init__(self, members: Sequence[ScoreModel]) -> None:
        found = tuple(members)
        if not found:
            raise ValueError("members is empty: a family has at least one member")
        for member in found:
            if isinstance(member, FamilyModel) or not isinstance(member, ScoreModel):
                raise ValueError(f"members must be single models, got {type(member).__name__}")
            if len(member.molecules) != 1:
                raise ValueError(f"members must know one molecule each, got {member!r}")
        names = [member.molecules[0].name for member in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"members: {', '.join(twice)} is there twice")
        first = found[0]
        for member in found[1:]:
            _compare(first, member)
        for one, other in itertools.combinations(found, 2):
            if _same(one.molecules[0], other.molecules[0]):
                raise ValueError(
                    f"members: {one.molecules[0].name} and {other.molecules[0].name} are the same "
                    "molecule"
                )
        self._members = found
        self.novelty = None
        self.molecules = tuple(member.molecules[0] for member in found)
        self._card = common([member.card for member in found])

    def __repr__(self) -> str:
        kind = type(self.members[0].propagator).__name__
        return f"FamilyModel({kind} of {', '.join(m.name for m in self.molecules)})"

    @property
    def members(self) -> tuple[ScoreModel, ...]:
        """Models of one molecule each."""
        return self._members

    def member(self, molecule: Molecule | str) -> ScoreModel:
        """Return the model of one molecule.

        Parameters
        ----------
        molecule : Molecule or str
            One of `molecules`, or its name.
        """
        wanted = molecule.name if isinstance(molecule, Molecule) else molecule
        for member in self.members:
            if member.molecules[0].name == wanted:
                return member
        raise ValueError(f"the model does not know {wanted!r}, but {self._names()}")

    def only(self, molecule: str | None = None) -> ScoreModel:
        """Return the member that is named, or the only one there is."""
        if molecule is not None:
            return self.member(molecule)
        if len(self.members) == 1:
            return self.members[0]
        raise ValueError(f"the model knows several molecules, name one: {self._names()}")

    def _names(self) -> str:
        return ", ".join(molecule.name for molecule in self.molecules)

    def _ask_a_member(self, what: str) -> NoReturn:
        raise ValueError(
            f"{what} depends on the molecule: ask a member, such as "
            f"model.member({self.molecules[0].name!r})"
        )

    @property
    def n_atoms(self) -> int:
        """Not there: the members differ."""
        self._ask_a_member("n_atoms")

    @property
    def noise_size(self) -> int:
        """Not there: the members differ."""
        self._ask_a_member("noise_size")

    @property
    def start_frames(self) -> NDArray[Any] | None:
        """Not there: the members differ."""
        self._ask_a_member("start_frames")

    @property
    def bond_windows(self) -> NoReturn:
        """Not there: the members differ."""
        self._ask_a_member("bond_windows")

    @property
    def angle_windows(self) -> NoReturn:
        """Not there: the members differ."""
        self._ask_a_member("angle_windows")

    @property
    def torsion_windows(self) -> NoReturn:
        """Not there: the members differ."""
        self._ask_a_member("torsion_windows")

    @property
    def contact_distances(self) -> tuple[tuple[int, int, float], ...]:
        """Not there: the members differ."""
        self._ask_a_member("contact_distances")

    @property
    def constraint_lengths(self) -> tuple[tuple[int, int, float], ...]:
        """Not there: the members differ."""
        self._ask_a_member("constraint_lengths")

    def scripted(self, device: torch.device | str | None = None) -> torch.jit.ScriptModule:
        """Not there: the members differ."""
        self._ask_a_member("scripted")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the family as one bundle.

        Parameters
        ----------
        path : str or PathLike
            Where to, usually with the ending ``.safetensors``; an existing file is replaced.

        Raises
        ------
        BundleError
            If it could not be loaded again.
        """
        name = architecture_to_save(self.members[0], f"cannot save {path}")
        shared = self.members[0].propagator.weights()  # type: ignore[operator]
        tensors: dict[str, Tensor] = dict(shared)
        entries = []
        for k, member in enumerate(self.members):
            hyperparameters, own, card = own_tensors(member, f"cannot save {path}")
            tensors |= {
                _PREFIX.format(k) + key: tensor for key, tensor in own.items() if key not in shared
            }
            differing = {key: value for key, value in card.items() if key not in self._card}
            entries.append({"hyperparameters": hyperparameters, "card": differing})
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": {"name": name, "hyperparameters": {}},
            "molecules": [molecule.to_dict() for molecule in self.molecules],
            "members": entries,
            "card": self.card,
        }
        save_bundle(path, tensors, content)

    @classmethod
    def from_content(cls, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> FamilyModel:
        """Make a family of what a bundle holds.

        Parameters
        ----------
        tensors, content
            From :func:`~openmm_sd.model.bundle.load_bundle`.
        """
        left = dict(tensors)
        members = []
        own_parts = []
        for k in range(len(content["members"])):
            prefix = _PREFIX.format(k)
            names = [name for name in left if name.startswith(prefix)]
            own_parts.append({name.removeprefix(prefix): left.pop(name) for name in names})
        # What is left belongs to all.
        for entry, own, molecule in zip(
            content["members"], own_parts, content["molecules"], strict=True
        ):
            propagator = built(content["architecture"]["name"], entry["hyperparameters"])
            if not hasattr(propagator, "load_weights"):
                raise ValueError(
                    f"architecture {content['architecture']['name']!r} is none of a family"
                )
            members.append(
                read_single(
                    propagator,
                    own | left,
                    [Molecule.from_dict(molecule)],
                    {**content["card"], **entry["card"]},
                )
            )
        return cls(members)

    def summary(self) -> str:
        """Return a description for people, several lines."""
        return "\n\n".join(
            [f"A family of {len(self.members)} molecules with the same weights: {self._names()}."]
            + [member.summary() for member in self.members]
        )


def _same(one: Molecule, other: Molecule) -> bool:
    """Whether two molecules have the same elements, bonded in the same way."""
    if sorted(one.atomic_numbers) != sorted(other.atomic_numbers):
        return False
    match = nx.algorithms.isomorphism.categorical_node_match("z", 0)
    return bool(nx.is_isomorphic(one.graph(), other.graph(), node_match=match))


def _compare(first: ScoreModel, other: ScoreModel) -> None:
    """Raise ValueError unless two members have the same weights and the same range of use."""
    names = f"{first.molecules[0].name} and {other.molecules[0].name}"
    kinds = (type(first.propagator), type(other.propagator))
    for kind in kinds:
        if not (hasattr(kind, "weights") and hasattr(kind, "load_weights")):
            raise ValueError(
                f"members: {kind.__name__} cannot share its weights between molecules; it needs "
                "the methods weights and load_weights"
            )
    if kinds[0] is not kinds[1]:
        raise ValueError(f"members: {names} have propagators of different classes")
    weights, theirs = (model.propagator.weights() for model in (first, other))  # type: ignore[operator]
    if weights.keys() != theirs.keys() or any(
        not torch.equal(weights[name], theirs[name]) for name in weights
    ):
        raise ValueError(f"members: {names} have different weights")
    for what in ("temperature", "lag_range", "recommended_lag", "recommended_burst"):
        if getattr(first, what) != getattr(other, what):
            raise ValueError(f"members: {names} differ in {what}")
