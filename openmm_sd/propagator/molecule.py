"""The molecule a model knows: its atoms, bonds, one reference frame, and its handedness.

A model is trained on one numbering of one molecule; a user's Topology holds the same molecule with
other names, another atom order, split into other residues. What both share is the bond graph with
its elements, so matching is graph isomorphism and names only break ties. The graph cannot tell left
from right; :class:`Handedness` does that, from coordinates.

Nothing here imports OpenMM when the module is loaded: Topology objects are read by their shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from typing import Any, Final

import networkx as nx
import numpy as np
from numpy.typing import NDArray

ELEMENT_SYMBOLS: Final[tuple[str, ...]] = tuple(
    """
    VS H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se
    Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy
    Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf
    Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
    """.split()
)
"""Element symbols by atomic number; 0 is a virtual site or another particle without an element."""

_MAX_BOND: Final = 0.4
"""Longest bond (nm) believed in a reference frame; I-I, a long one, has 0.27 nm."""

_FLAT: Final = 0.1
"""Below this volume (three unit bond vectors; tetrahedral 0.77) a centre is flat, not handed."""

_RING_SWAPS: Final = 64
"""How many automorphisms of a ring are looked at for the one that moves the fewest atoms."""

_DECIMALS: Final = 5
"""Decimals of a stored position in nm; 1e-5 nm is a hundredth of any vibration."""


@dataclass(frozen=True, eq=False)
class Handedness:
    """Which way round every four-bonded atom of a molecule is, and how to turn it over.

    Attributes
    ----------
    centres : ndarray of int, shape (M, 4)
        One row an atom with exactly four neighbours: the centre and its three neighbours with the
        lowest indices, ascending.
    signs : ndarray of int, shape (M,)
        Sign (+1 or -1) of ``det[a - centre, b - centre, c - centre]`` in the reference frame.
    stereo : ndarray of bool, shape (M,)
        True where no relabelling can change the sign: a real stereocentre.
    swaps : ndarray of int, shape (M, N)
        Permutation p that exchanges two equivalent branches of the centre: ``frame[p]`` is the same
        molecule with the other sign there. The identity for a stereocentre.

    Notes
    -----
    A Topology that numbers the three hydrogens of a methyl group the other way round describes the
    same molecule, yet what the network sees is the mirror image of every methyl group it was
    trained on. No atom name settles this: naming conventions differ and are rarely kept. So the
    numbering is settled by geometry at the time of the jump: go through the rows in order, compute
    the sign, and where it is wrong and the row is not ``stereo``, relabel the frame with its swap.
    Rows come with the largest swaps first, because exchanging two methyl groups renumbers the
    hydrogens inside them, and stereocentres last. If any sign is still wrong after the pass, the
    frame is another stereoisomer; this also tells cis from trans in a symmetric ring, where no
    single centre does.

    A centre that is flat in the reference frame (square-planar metals) has no row. Double bonds
    (E and Z), axes and three-coordinate sulphur are not looked at: a jump that inverts them has to
    be caught by the other gates.
    """

    centres: NDArray[np.int64]
    signs: NDArray[np.int64]
    stereo: NDArray[np.bool_]
    swaps: NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.centres, self.signs, self.stereo, self.swaps):
            array.flags.writeable = False

    def measure(self, frame: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Return the sign (+1 or -1) of every row in a frame, shape (N, 3), nm; 0 if undefined."""
        return np.sign(_volumes(np.asarray(frame, dtype=np.float64), self.centres)).astype(np.int64)

    def relabelling(self, frame: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Return the permutation p that gives ``frame[p]`` the handedness of the reference.

        Parameters
        ----------
        frame : ndarray, shape (N, 3)
            Whole frame in the molecule's atom order, nm.

        Returns
        -------
        ndarray of int, shape (N,)
            Apply as ``frame[p]``. Signs that no relabelling can repair stay wrong: compare
            ``measure(frame[p])`` with `signs`.
        """
        relabelling = np.arange(self.swaps.shape[1], dtype=np.int64)
        for row in np.flatnonzero(~self.stereo):
            volume = _volumes(np.asarray(frame)[relabelling], self.centres[row : row + 1])[0]
            if volume * self.signs[row] < 0:
                relabelling = relabelling[self.swaps[row]]
        return relabelling


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
    def formula(self) -> str:
        """Chemical formula in Hill order, e.g. ``C6H12N2O2``."""
        return formula(Counter(self.atomic_numbers))

    def graph(self) -> nx.Graph:
        """Return the bond graph; nodes are atom indices with ``z``, ``name`` and ``residue``."""
        graph = nx.Graph()
        for i, z in enumerate(self.atomic_numbers):
            residue = f"{self.residue_names[i]} {self.residue_ids[i]}"
            graph.add_node(i, z=z, name=self.atom_names[i], residue=residue)
        graph.add_edges_from(self.bonds)
        return graph

    @cached_property
    def handedness(self) -> Handedness:
        """The handedness of the reference frame; see :class:`Handedness`."""
        return _handedness(self.graph(), self.positions)

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
                if next(_isomorphisms(graph, graph, one, two), None) is not None:
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


@dataclass(frozen=True)
class TopologyTable:
    """What this package reads from a Topology, one entry an atom, whatever package made it.

    Attributes
    ----------
    atomic_numbers : list of int
        0 for a particle without an element.
    names, residue_names, residue_ids, chain_ids : list of str
        Labels; the residue id includes the insertion code.
    residue_indices, chain_indices : list of int
        Number of the residue and of the chain in the Topology.
    bonds : list of (int, int)
        Pairs of atom indices, i < j, sorted, each once.
    """

    atomic_numbers: list[int]
    names: list[str]
    residue_names: list[str]
    residue_ids: list[str]
    chain_ids: list[str]
    residue_indices: list[int]
    chain_indices: list[int]
    bonds: list[tuple[int, int]]

    @property
    def n_atoms(self) -> int:
        """Number of atoms, particles without an element included."""
        return len(self.atomic_numbers)

    def label(self, atom: int) -> str:
        """Return how messages name an atom, e.g. ``atom 14 (HB1 of ALA 2)``."""
        residue = f"{self.residue_names[atom]} {self.residue_ids[atom]}"
        return f"atom {atom} ({self.names[atom]} of {residue})"

    def components(self) -> list[list[int]]:
        """Return the connected components, each a sorted list of atoms, in order of first atom."""
        # Union-find on a flat list: a networkx graph of a water box takes seconds.
        parent = list(range(self.n_atoms))

        def root(atom: int) -> int:
            while parent[atom] != atom:
                parent[atom] = parent[parent[atom]]
                atom = parent[atom]
            return atom

        for i, j in self.bonds:
            a, b = root(i), root(j)
            if a < b:
                parent[b] = a
            elif b < a:
                parent[a] = b
        members: dict[int, list[int]] = {}
        for atom in range(self.n_atoms):
            members.setdefault(root(atom), []).append(atom)
        return list(members.values())

    def graph(self, atoms: Sequence[int]) -> nx.Graph:
        """Return the bond graph of some atoms, with the node attributes of `Molecule.graph`."""
        graph = nx.Graph()
        for i in atoms:
            residue = f"{self.residue_names[i]} {self.residue_ids[i]}"
            graph.add_node(i, z=self.atomic_numbers[i], name=self.names[i], residue=residue)
        for i in atoms:
            graph.add_edges_from((i, j) for j in self._neighbours.get(i, ()) if j in graph)
        return graph

    @cached_property
    def _neighbours(self) -> dict[int, list[int]]:
        neighbours: dict[int, list[int]] = {}
        for i, j in self.bonds:
            neighbours.setdefault(i, []).append(j)
            neighbours.setdefault(j, []).append(i)
        return neighbours


def read_topology(topology: Any) -> TopologyTable:
    """Read an OpenMM or mdtraj Topology, told apart by their shape, without importing either.

    Parameters
    ----------
    topology : openmm.app.Topology or mdtraj.Topology
        Atoms numbered residue by residue, as both packages do.

    Raises
    ------
    ValueError
        If it is neither, or numbers its atoms out of order.
    """
    if not hasattr(topology, "atoms") or not hasattr(topology, "bonds"):
        raise ValueError(
            "topology must be an openmm.app.Topology or an mdtraj.Topology, "
            f"got {type(topology).__name__}"
        )
    # OpenMM has methods where mdtraj has properties.
    atoms = topology.atoms() if callable(topology.atoms) else topology.atoms
    bonds = topology.bonds() if callable(topology.bonds) else topology.bonds
    table = TopologyTable([], [], [], [], [], [], [], [])
    last_residue: Any = None
    labels = ("", "", "", 0, 0)
    for position, atom in enumerate(atoms):
        if atom.index != position:
            raise ValueError(
                f"topology lists atom {atom.index} ({atom.name}) at place {position}: its atoms "
                "must be numbered residue by residue"
            )
        residue = atom.residue
        if residue is not last_residue:
            last_residue = residue
            labels = _residue_labels(residue)
        table.atomic_numbers.append(0 if atom.element is None else atom.element.atomic_number)
        table.names.append(str(atom.name))
        table.residue_names.append(labels[0])
        table.residue_ids.append(labels[1])
        table.chain_ids.append(labels[2])
        table.residue_indices.append(labels[3])
        table.chain_indices.append(labels[4])
    pairs = {(min(i, j), max(i, j)) for i, j in ((b[0].index, b[1].index) for b in bonds)}
    table.bonds.extend(sorted(pairs))
    return table


def _residue_labels(residue: Any) -> tuple[str, str, str, int, int]:
    chain = residue.chain
    if hasattr(residue, "resSeq"):
        identity = str(residue.resSeq)
        chain_id = getattr(chain, "chain_id", None) or str(chain.index)
    else:
        identity = f"{residue.id}{residue.insertionCode.strip()}"
        chain_id = str(chain.id)
    return str(residue.name), identity, chain_id, residue.index, chain.index


def formula(counts: Mapping[int, int]) -> str:
    """Return the formula in Hill order of a count of atoms by atomic number (0: virtual site)."""
    symbols = {ELEMENT_SYMBOLS[z]: count for z, count in counts.items() if count}
    first = ["C", "H"] if "C" in symbols else []
    order = [s for s in first if s in symbols] + sorted(s for s in symbols if s not in first)
    return "".join(s if symbols[s] == 1 else f"{s}{symbols[s]}" for s in order)


def match_atoms(molecule: Molecule, candidate: nx.Graph) -> list[int] | None:
    """Find the molecule in a bond graph of the same size.

    Parameters
    ----------
    molecule : Molecule
        What is looked for.
    candidate : networkx.Graph
        Nodes have the attributes ``z`` (atomic number) and, if there are any, ``name``.

    Returns
    -------
    list or None
        ``mapping[i]`` is the candidate's node for atom i of the molecule; None if the two are not
        the same molecule. Where symmetry leaves a choice, a mapping under which all atom names
        agree is preferred, then one under which those of the heavy atoms agree, then any.
    """
    graph = molecule.graph()
    if (
        len(graph) != len(candidate)
        or graph.number_of_edges() != candidate.number_of_edges()
        or _counts(graph) != _counts(candidate)
    ):
        return None

    def elements(_: int, data: Mapping[str, Any]) -> object:
        return data["z"]

    def heavy_names(_: int, data: Mapping[str, Any]) -> object:
        return (data["z"], data.get("name") if data["z"] != 1 else None)

    def names(_: int, data: Mapping[str, Any]) -> object:
        return (data["z"], data.get("name"))

    for colour in (names, heavy_names, elements):
        mapping = next(
            _isomorphisms(
                graph,
                candidate,
                {node: colour(node, data) for node, data in graph.nodes(data=True)},
                {node: colour(node, data) for node, data in candidate.nodes(data=True)},
            ),
            None,
        )
        if mapping is not None:
            return [mapping[i] for i in range(molecule.n_atoms)]
    return None


def closest_mismatch(molecule: Molecule, candidate: nx.Graph) -> str:
    """Say in one phrase why a bond graph is not the molecule, for error messages.

    Parameters
    ----------
    molecule : Molecule
        What is looked for.
    candidate : networkx.Graph
        What was found; nodes have the attributes ``z``, ``name`` and ``residue``.
    """
    graph = molecule.graph()
    ours, theirs = _counts(graph), _counts(candidate)
    if {z: k for z, k in ours.items() if z != 1} != {z: k for z, k in theirs.items() if z != 1}:
        different = sorted(z for z in ours | theirs if ours[z] != theirs[z])
        listing = ", ".join(f"{ELEMENT_SYMBOLS[z]} {theirs[z]} vs {ours[z]}" for z in different)
        return f"element counts differ: {listing}"
    if ours[1] != theirs[1]:
        if theirs[1] == 0:
            return (
                f"has the same heavy atoms but 0 of {ours[1]} hydrogens: add hydrogens first "
                "(openmm.app.Modeller.addHydrogens)"
            )
        return (
            f"has the same heavy atoms but {theirs[1]} hydrogens instead of {ours[1]}"
            f"{_protonation(graph, candidate)}"
        )
    if graph.number_of_edges() != candidate.number_of_edges():
        return (
            f"has the same atoms but {candidate.number_of_edges()} bonds instead of "
            f"{graph.number_of_edges()}{_bonding(graph, candidate)}"
        )
    return f"has the same atoms bonded differently{_bonding(graph, candidate)}"


def _protonation(graph: nx.Graph, candidate: nx.Graph) -> str:
    """Say which heavy atom has another number of hydrogens, if the skeletons agree."""
    ours = graph.subgraph([n for n, z in graph.nodes(data="z") if z != 1])
    theirs = candidate.subgraph([n for n, z in candidate.nodes(data="z") if z != 1])

    def hydrogens(whole: nx.Graph, node: int) -> int:
        return sum(whole.nodes[k]["z"] == 1 for k in whole[node])

    best: list[tuple[int, int]] | None = None
    # Symmetry offers several alignments of the skeletons; the one with the fewest differences is
    # what a chemist would say.
    colours = (dict(ours.nodes(data="z")), dict(theirs.nodes(data="z")))
    for mapping in islice(_isomorphisms(ours, theirs, *colours), _RING_SWAPS):
        wrong = [
            (i, j) for i, j in mapping.items() if hydrogens(graph, i) - hydrogens(candidate, j)
        ]
        if best is None or len(wrong) < len(best):
            best = wrong
    if not best:
        return ""
    i, j = min(best, key=lambda pair: pair[1])
    return (
        f" (protonation or missing hydrogens): {_label(candidate, j)} carries "
        f"{hydrogens(candidate, j)}, the model's {_label(graph, i)} carries {hydrogens(graph, i)}"
    )


def _bonding(graph: nx.Graph, candidate: nx.Graph) -> str:
    """Name an atom of the candidate whose surroundings do not occur in the molecule."""
    ours: dict[Any, Any] = dict(graph.nodes(data="z"))
    theirs: dict[Any, Any] = dict(candidate.nodes(data="z"))
    for reach in range(1, len(graph) + 1):
        ours, theirs = _refine_once(graph, candidate, ours, theirs)
        surplus = Counter(theirs.values()) - Counter(ours.values())
        if surplus:
            node = next(n for n in candidate if theirs[n] in surplus)
            partners = ", ".join(str(candidate.nodes[k].get("name")) for k in candidate[node])
            which = (
                "which occurs less often in the model"
                if reach == 1
                else f"but its surroundings within {reach} bonds do not occur so in the model"
            )
            return f": {_label(candidate, node)} is bonded to {partners or 'nothing'}, {which}"
    return ""


def _label(graph: nx.Graph, node: int) -> str:
    data = graph.nodes[node]
    return f"atom {node} ({data.get('name')} of {data.get('residue')})"


def _counts(graph: nx.Graph) -> Counter[int]:
    return Counter(z for _, z in graph.nodes(data="z"))


def _refine_once(
    first: nx.Graph, second: nx.Graph, one: Mapping[Any, Any], two: Mapping[Any, Any]
) -> tuple[dict[Any, int], dict[Any, int]]:
    """One round of colour refinement (Weisfeiler-Leman) with a palette common to both graphs."""
    palette: dict[Any, int] = {}
    before: dict[Any, int] = {}

    def number(colour: Any) -> int:
        return before.setdefault(colour, len(before))

    def refined(graph: nx.Graph, colours: Mapping[Any, Any]) -> dict[Any, int]:
        result = {}
        for node in graph:
            around = tuple(sorted(number(colours[k]) for k in graph[node]))
            result[node] = palette.setdefault((number(colours[node]), around), len(palette))
        return result

    return refined(first, one), refined(second, two)


def _isomorphisms(
    first: nx.Graph, second: nx.Graph, one: Mapping[Any, Any], two: Mapping[Any, Any]
) -> Iterator[dict[Any, Any]]:
    """Yield the isomorphisms from one coloured graph to another.

    The colours are refined first: that settles almost every molecule by itself, and it keeps the
    search that follows from backtracking through equivalent hydrogens.
    """
    classes = -1
    while True:
        if Counter(one.values()) != Counter(two.values()):
            return
        if len(set(one.values())) == classes:
            break
        classes = len(set(one.values()))
        one, two = _refine_once(first, second, one, two)
    coloured = []
    for graph, colours in ((first, one), (second, two)):
        copy = nx.Graph()
        copy.add_nodes_from((node, {"colour": colours[node]}) for node in graph)
        copy.add_edges_from(graph.edges)
        coloured.append(copy)
    matcher = nx.algorithms.isomorphism.GraphMatcher(
        *coloured, node_match=lambda a, b: a["colour"] == b["colour"]
    )
    for mapping in matcher.isomorphisms_iter():
        yield dict(mapping)


def _volumes(
    positions: NDArray[np.floating[Any]], centres: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return det of the unit vectors from each centre to its three neighbours."""
    arms = positions[centres[:, 1:]] - positions[centres[:, :1]]
    lengths = np.linalg.norm(arms, axis=-1, keepdims=True)
    arms = np.divide(arms, lengths, out=np.zeros_like(arms), where=lengths > 0)
    return np.asarray(np.linalg.det(arms), dtype=np.float64)


def _handedness(graph: nx.Graph, positions: NDArray[np.float64]) -> Handedness:
    n = len(graph)
    identity = np.arange(n, dtype=np.int64)
    rows = np.array(
        [[i, *sorted(graph[i])[:3]] for i in graph if len(graph[i]) == 4], dtype=np.int64
    ).reshape(-1, 4)
    volumes = _volumes(positions, rows)
    rows = rows[np.abs(volumes) > _FLAT]
    signs = np.sign(_volumes(positions, rows)).astype(np.int64)
    candidates = [_swaps(graph, int(centre)) for centre in rows[:, 0]]

    # Two branches with the same bonds may still be mirror images of each other (one R, one S).
    # Exchanging them would turn over the stereocentres inside, so such a swap does not count; a
    # centre that loses its last swap is a stereocentre itself and may disqualify others.
    stereo = np.array([not swaps for swaps in candidates], dtype=np.bool_)
    while True:
        for row, swaps in enumerate(candidates):
            candidates[row] = [
                p
                for p in swaps
                if (np.sign(_volumes(positions[p], rows[stereo])) == signs[stereo]).all()
            ]
        found = np.array([not swaps for swaps in candidates], dtype=np.bool_)
        if (found == stereo).all():
            break
        stereo = found

    def moved(permutation: NDArray[np.int64]) -> int:
        return int((permutation != identity).sum())

    chosen = [min(swaps, key=moved) if swaps else identity for swaps in candidates]
    order = sorted(range(len(rows)), key=lambda r: (-moved(chosen[r]), int(rows[r, 0])))
    return Handedness(
        rows[order],
        signs[order],
        stereo[order],
        np.array([chosen[r] for r in order], dtype=np.int64).reshape(-1, n),
    )


def _swaps(graph: nx.Graph, centre: int) -> list[NDArray[np.int64]]:
    """Return automorphisms that exchange two neighbours of the centre and leave the rest alone."""
    neighbours = sorted(graph[centre])
    without = graph.subgraph([k for k in graph if k != centre])
    branch = {k: nx.node_connected_component(without, k) for k in neighbours}
    swaps = []
    for u, v in combinations(neighbours, 2):
        if graph.nodes[u]["z"] != graph.nodes[v]["z"] or len(branch[u]) != len(branch[v]):
            continue
        part = graph.subgraph(branch[u] | branch[v] | {centre})
        one = dict(part.nodes(data="z"))
        # Atoms that must stay where they are get a colour of their own.
        one |= {k: ("fixed", k) for k in (centre, *neighbours) if k in one and k not in (u, v)}
        two = dict(one)
        one |= {u: ("u", 0), v: ("v", 0)}
        two |= {v: ("u", 0), u: ("v", 0)}
        # Separate branches exchange as a whole, so every isomorphism moves as many atoms.
        limit = _RING_SWAPS if v in branch[u] else 1
        for mapping in islice(_isomorphisms(part, part, one, two), limit):
            permutation = np.arange(len(graph), dtype=np.int64)
            permutation[list(mapping)] = list(mapping.values())
            swaps.append(permutation)
    return swaps


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
