"""Topologies of OpenMM and mdtraj: read into plain tables, described in JSON, cut to a part."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .graph import neighbours_of

# Atoms of a PDB file that certainly have numbers of their own: TER lines take some of 99,999.
_NUMBERED: Final = 90_000

ELEMENT_SYMBOLS: Final[tuple[str, ...]] = tuple(
    """
    VS H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se
    Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy
    Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf
    Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
    """.split()
)
"""Element symbols by atomic number; 0 is a virtual site or another particle without an element."""


@dataclass(frozen=True)
class TopologyTable:
    """What this package reads from a Topology, one entry an atom, whatever package made it.

    A particle without an element has the atomic number 0. The residue id includes the insertion
    code; indices are those of the residue and of the chain in the Topology. Bonds are pairs of atom
    indices, i < j, sorted, each once.
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

    def residue(self, atom: int) -> str:
        """Return how messages name an atom's residue, e.g. ``ALA 2``."""
        return f"{self.residue_names[atom]} {self.residue_ids[atom]}"

    def label(self, atom: int) -> str:
        """Return how messages name an atom, e.g. ``atom 14 (HB1 of ALA 2)``."""
        return f"atom {atom} ({self.names[atom]} of {self.residue(atom)})"

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

    def elements(self, atoms: Iterable[int]) -> Counter[int]:
        """Count some atoms by atomic number."""
        return Counter(self.atomic_numbers[i] for i in atoms)

    def graph(self, atoms: Sequence[int]) -> nx.Graph:
        """Return the bond graph of some atoms, with the node attributes of `Molecule.graph`."""
        graph = nx.Graph()
        for i in atoms:
            graph.add_node(i, z=self.atomic_numbers[i], name=self.names[i], residue=self.residue(i))
        for i in atoms:
            graph.add_edges_from((i, j) for j in self._neighbours[i] if j in graph)
        return graph

    @cached_property
    def _neighbours(self) -> list[list[int]]:
        return neighbours_of(self.n_atoms, self.bonds)


def read_topology(topology: Any) -> TopologyTable:
    """Read an OpenMM or mdtraj Topology, told apart by their shape, without importing either.

    ValueError if it is neither, or does not number its atoms residue by residue, as both packages
    do.
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


def mdtraj_topology(topology: Any) -> dict[str, Any]:
    """Return an OpenMM Topology as mdtraj's HDF5 files describe one."""
    chains = []
    residues = 0
    for chain in topology.chains():
        listed = []
        for residue in chain.residues():
            residues += 1
            digits = "".join(c for c in residue.id if c.isdigit())
            listed.append(
                {
                    "index": residues - 1,
                    "name": residue.name,
                    "resSeq": int(digits) if digits else residues,
                    "segmentID": "",
                    "atoms": [
                        {
                            "index": atom.index,
                            "name": atom.name,
                            # mdtraj's symbol for a virtual site.
                            "element": "VS" if atom.element is None else atom.element.symbol,
                        }
                        for atom in residue.atoms()
                    ],
                }
            )
        chains.append({"index": chain.index, "residues": listed})
    return {
        "chains": chains,
        "bonds": [[one.index, two.index] for one, two in topology.bonds()],
    }


def subtopology(topology: Any, atoms: Sequence[int]) -> Any:
    """Return an OpenMM Topology of some atoms of another, ascending, with its box."""
    from openmm import app

    new = app.Topology()
    new.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    wanted, made = set(atoms), {}
    for chain in topology.chains():
        chosen = [[a for a in r.atoms() if a.index in wanted] for r in chain.residues()]
        if not any(chosen):
            continue
        new_chain = new.addChain(chain.id)
        for residue, kept in zip(chain.residues(), chosen, strict=True):
            if kept:
                new_residue = new.addResidue(
                    residue.name, new_chain, residue.id, residue.insertionCode
                )
                for atom in kept:
                    made[atom.index] = new.addAtom(atom.name, atom.element, new_residue)
    for one, two in topology.bonds():
        if one.index in made and two.index in made:
            new.addBond(made[one.index], made[two.index])
    return new


def pdb_text(topology: Any, positions: NDArray[np.float64]) -> str:
    """Return a PDB file of an OpenMM Topology at positions (nm), with its own residue ids.

    OpenMM writes the bonds of residues that are no standard ones only; here all are written, as
    far as numbers of five digits go, because readers like MDAnalysis know no others.
    """
    from openmm import app, unit

    file = io.StringIO()
    app.PDBFile.writeFile(topology, positions * unit.nanometer, file, keepIds=True)
    lines = [t for t in file.getvalue().splitlines() if not t.startswith(("CONECT", "END"))]
    # TER has a number of its own.
    serials = [t[6:11] for t in lines if t.startswith(("ATOM  ", "HETATM"))][:_NUMBERED]
    partners: dict[int, list[int]] = {}
    for bond in topology.bonds():
        one, two = sorted(atom.index for atom in bond)
        if two < len(serials):
            partners.setdefault(one, []).append(two)
            partners.setdefault(two, []).append(one)
    for atom, bonded in sorted(partners.items()):
        for begin in range(0, len(bonded), 4):
            four = sorted(bonded)[begin : begin + 4]
            lines.append("CONECT" + "".join(serials[k] for k in (atom, *four)))
    return "\n".join([*lines, "END", ""])
