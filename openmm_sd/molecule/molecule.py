"""The molecule a model knows: its atoms, bonds, one reference frame, and its handedness.

A model is trained on one numbering of one molecule; a user's Topology holds the same molecule with
other names, another atom order, split into other residues. What both share is the bond graph with
its elements, so matching is graph isomorphism and names only break ties. The graph cannot tell left
from right; :class:`Handedness` does that, from coordinates.

Nothing here imports OpenMM when the module is loaded: Topology objects are read by their shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .graph import isomorphisms
from .handedness import Handedness, handedness_of
from .topology import ELEMENT_SYMBOLS, formula, read_topology

_MAX_BOND: Final = 0.4
"""Longest bond (nm) believed in a reference frame; I-I, a long one, has 0.27 nm."""


_DECIMALS: Final = 5
"""Decimals of a stored position in nm; 1e-5 nm is a hundredth of any vibration."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule as a model knows it.

    Parameters
    ----------
    name : str
        What people call it.
    atomic_numbers : tuple of int
        One an atom, 1 to 118.
    bonds : tuple of (int, int)
        Pairs of atom indices; stored with i < j and sorted.
    atom_names, residue_names, residue_ids : tuple of str
        One an atom. Used to break ties when matching and to write files, never to identify.
    positions : ndarray, shape (N, 3)
        One realistic whole frame, nm. It defines the handedness.

    Raises
    ------
    ValueError
        If the parts do not describe one connected molecule.
    """

    name: str
    atomic_numbers: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]
    atom_names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: tuple[str, ...]
    positions: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        numbers = _integers("atomic_numbers", self.atomic_numbers)
        n = len(numbers)
        if n == 0:
            raise ValueError("atomic_numbers is empty: a molecule has at least one atom")
        for i, z in enumerate(numbers):
            if not 1 <= z < len(ELEMENT_SYMBOLS):
                raise ValueError(
                    f"atomic_numbers[{i}] is {z}, allowed are 1 to {len(ELEMENT_SYMBOLS) - 1}"
                )
        self._set("atomic_numbers", numbers)
        for field in ("atom_names", "residue_names", "residue_ids"):
            labels = _strings(field, getattr(self, field))
            if len(labels) != n:
                raise ValueError(f"{field} has {len(labels)} entries for {n} atoms")
            self._set(field, labels)
        self._set("bonds", _checked_bonds(self.bonds, n))
        try:
            positions = np.array(self.positions, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"positions must be numbers of shape ({n}, 3), in nm") from None
        if positions.shape != (n, 3):
            raise ValueError(f"positions must have shape ({n}, 3), got {positions.shape}")
        if not np.isfinite(positions).all():
            atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
            raise ValueError(f"positions of atom {atom} are not finite: {positions[atom]}")
        positions.flags.writeable = False
        self._set("positions", positions)
        pieces = nx.number_connected_components(self.graph())
        if pieces != 1:
            raise ValueError(f"bonds leave {pieces} separate pieces: a molecule is connected")

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Molecule):
            return NotImplemented
        return self._labels() == other._labels() and np.array_equal(self.positions, other.positions)

    def __hash__(self) -> int:
        return hash(self._labels())

    def _labels(self) -> tuple[object, ...]:
        return (
            self.name,
            self.atomic_numbers,
            self.bonds,
            self.atom_names,
            self.residue_names,
            self.residue_ids,
        )

    def __repr__(self) -> str:
        return f"Molecule({self.name!r}, {self.formula}, {self.n_atoms} atoms)"

    @property
    def n_atoms(self) -> int:
        """Number of atoms, hydrogens included."""
        return len(self.atomic_numbers)

    @property
    def heavy(self) -> tuple[int, ...]:
        """Indices of the atoms that are not hydrogen."""
        return tuple(i for i, z in enumerate(self.atomic_numbers) if z != 1)

    @property
    def n_rings(self) -> int:
        """Number of bonds that close a ring: those that could go without a piece coming off."""
        return len(self.bonds) - self.n_atoms + 1

    @property
    def formula(self) -> str:
        """Chemical formula in Hill order, e.g. ``C6H12N2O2``."""
        return formula(Counter(self.atomic_numbers))

    def residue(self, atom: int) -> str:
        """Return how messages name an atom's residue, e.g. ``ALA 2``."""
        return f"{self.residue_names[atom]} {self.residue_ids[atom]}"

    def label(self, atom: int) -> str:
        """Return how messages name an atom, e.g. ``atom 14 (HB1 of ALA 2)``."""
        return f"atom {atom} ({self.atom_names[atom]} of {self.residue(atom)})"

    def graph(self) -> nx.Graph:
        """Return the bond graph; nodes are atom indices with ``z``, ``name`` and ``residue``."""
        graph = nx.Graph()
        for i, z in enumerate(self.atomic_numbers):
            graph.add_node(i, z=z, name=self.atom_names[i], residue=self.residue(i))
        graph.add_edges_from(self.bonds)
        return graph

    @cached_property
    def handedness(self) -> Handedness:
        """The handedness of the reference frame; see :class:`Handedness`."""
        return handedness_of(self.graph(), self.positions)

    @cached_property
    def equivalent_atoms(self) -> tuple[int, ...]:
        """A number for each atom, from 0, the same for atoms that the bond graph exchanges.

        Handedness plays no part: the two hydrogens of a CH2 beside a stereocentre are equivalent.
        """
        graph = self.graph()
        colours: dict[Any, Any] = dict(graph.nodes(data="z"))
        classes: list[int] = []
        first: list[int] = []
        for atom in graph:
            for number, other in enumerate(first):
                one, two = colours | {other: "marked"}, colours | {atom: "marked"}
                if next(isomorphisms(graph, graph, one, two), None) is not None:
                    classes.append(number)
                    break
            else:
                classes.append(len(first))
                first.append(atom)
        return tuple(classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the molecule as JSON-able values, positions (nm) rounded to 1e-5 nm."""
        return {
            "name": self.name,
            "atomic_numbers": list(self.atomic_numbers),
            "bonds": [list(bond) for bond in self.bonds],
            "atom_names": list(self.atom_names),
            "residue_names": list(self.residue_names),
            "residue_ids": list(self.residue_ids),
            # adding zero turns -0.0 into 0.0, so that equal molecules give equal files
            "positions": (np.round(self.positions, _DECIMALS) + 0.0).tolist(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Molecule:
        """Rebuild a molecule from what :meth:`to_dict` returned.

        Raises
        ------
        ValueError
            One line, for a missing or unknown key or a value that makes no molecule.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a molecule must be a mapping, got {type(content).__name__}")
        fields = list(cls.__dataclass_fields__)
        missing = [key for key in fields if key not in content]
        unknown = sorted(str(key) for key in content if key not in fields)
        if missing or unknown:
            raise ValueError(
                f"a molecule has the keys {', '.join(fields)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
        return cls(**content)

    @classmethod
    def from_topology(cls, topology: Any, positions: Any, name: str) -> Molecule:
        """Make a molecule from a Topology that holds it and nothing else.

        Parameters
        ----------
        topology : openmm.app.Topology or mdtraj.Topology
            With bonds and hydrogens.
        positions : Quantity or array, shape (N, 3)
            One whole frame; bare numbers are nm.
        name : str
            What people call it.

        Raises
        ------
        ValueError
            If the Topology is not one molecule or the frame is not whole or not in nm.
        """
        table = read_topology(topology)
        if hasattr(positions, "value_in_unit"):
            from openmm import unit

            positions = positions.value_in_unit(unit.nanometer)
        extra = [i for i, z in enumerate(table.atomic_numbers) if z == 0]
        if extra:
            raise ValueError(
                f"topology: {table.label(extra[0])} has no element (a virtual site?); a molecule "
                "is made of atoms only"
            )
        components = table.components()
        if len(components) != 1:
            sizes = ", ".join(str(len(atoms)) for atoms in components[:5])
            raise ValueError(
                f"topology must hold a single molecule, got {len(components)} unconnected pieces "
                f"(of {sizes}{', ...' if len(components) > 5 else ''} atoms)"
            )
        molecule = cls(
            name,
            tuple(table.atomic_numbers),
            tuple(table.bonds),
            tuple(table.names),
            tuple(table.residue_names),
            tuple(table.residue_ids),
            positions,
        )
        for i, j in molecule.bonds:
            length = float(np.linalg.norm(molecule.positions[i] - molecule.positions[j]))
            if length > _MAX_BOND:
                raise ValueError(
                    f"positions: the bond between {table.label(i)} and {table.label(j)} is "
                    f"{length:.3f} nm long, allowed is up to {_MAX_BOND} nm; wanted is a whole "
                    "molecule, not broken across the box, in nm (not angstrom)"
                )
        return molecule

    def to_topology(self) -> Any:
        """Return an ``openmm.app.Topology`` with one chain, the residues, atom names and bonds."""
        from openmm import app

        topology = app.Topology()
        chain = topology.addChain()
        residue = None
        label: tuple[str, str] | None = None
        atoms = []
        for i, z in enumerate(self.atomic_numbers):
            # A residue is a run of atoms: going back to an earlier one would renumber the atoms.
            if residue is None or label != (self.residue_names[i], self.residue_ids[i]):
                label = (self.residue_names[i], self.residue_ids[i])
                residue = topology.addResidue(label[0], chain, id=label[1])
            element = app.Element.getByAtomicNumber(z)
            atoms.append(topology.addAtom(self.atom_names[i], element, residue))
        for i, j in self.bonds:
            topology.addBond(atoms[i], atoms[j])
        return topology


def _integers(field: str, values: Any) -> tuple[int, ...]:
    result = []
    for i, value in enumerate(_sequence(field, values)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{field}[{i}] must be an integer, got {value!r}")
        result.append(int(value))
    return tuple(result)


def _strings(field: str, values: Any) -> tuple[str, ...]:
    result = tuple(_sequence(field, values))
    for i, value in enumerate(result):
        if not isinstance(value, str):
            raise ValueError(f"{field}[{i}] must be a string, got {value!r}")
    return result


def _sequence(field: str, values: Any) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)):
        raise ValueError(f"{field} must be a sequence, got {type(values).__name__}")
    return list(values)


def _checked_bonds(bonds: Any, n_atoms: int) -> tuple[tuple[int, int], ...]:
    seen: set[tuple[int, int]] = set()
    for k, bond in enumerate(_sequence("bonds", bonds)):
        pair = _integers(f"bonds[{k}]", bond)
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"bonds[{k}] must be two different atoms, got {pair}")
        i, j = sorted(pair)
        if i < 0 or j >= n_atoms:
            raise ValueError(f"bonds[{k}] is {pair}, allowed are atoms 0 to {n_atoms - 1}")
        if (i, j) in seen:
            raise ValueError(f"bonds[{k}] repeats the bond between atoms {i} and {j}")
        seen.add((i, j))
    return tuple(sorted(seen))
