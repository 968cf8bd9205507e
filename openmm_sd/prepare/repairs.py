"""From a structure as it comes to one that a force field takes; every change is written down.

PDBFixer builds missing atoms and residues, OpenMM's Modeller adds hydrogens. What would be a guess
(a broken chain, a missing backbone, a ligand without parameters) is refused unless it was asked
for. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import openmm
import pdbfixer
from numpy.typing import NDArray
from openmm import app, unit

from ..files.atomic import one_line
from ..molecule.whole import make_whole
from ..progress import Progress, silence
from ..system.box import seeded
from ..system.force_field import (
    DEFAULT_FORCE_FIELD,
    ForceFieldLike,
    complete_bonds,
    load_force_field,
    make_system,
    refusal,
)
from ..system.structure import (
    Structure,
    is_d,
    is_trans,
    is_water,
    nanometers,
    residue_label,
)
from .sequence import placed
from .settings import PrepareSettings

_PROTEIN: Final = frozenset(pdbfixer.pdbfixer.proteinResidues)
_NUCLEIC: Final = frozenset(pdbfixer.pdbfixer.rnaResidues + pdbfixer.pdbfixer.dnaResidues)
_CAPS: Final = frozenset(("ACE", "NME"))
_KNOWN: Final = _PROTEIN | _NUCLEIC | _CAPS
# One that is longer is no bond: about twice the length of a C-C bond, nm.
_BROKEN_NM: Final = 0.28
# Above so many atoms the Reference platform takes longer than the CPU platform, seconds to minutes.
_REFERENCE_ATOMS: Final = 500
# PDBFixer's minimisations take tens to hundreds of iterations, and seconds for a large protein.
_MOST_ITERATIONS: Final = 5000
_MOST_SECONDS: Final = 300.0
_SAID_EVERY: Final = 1.0
# What tells the forms of a residue apart: hydrogens, and the form that has them.
_FORMS: Final = {
    "HIS": ((("HD1", "HE2"), "HIP"), (("HD1",), "HID"), (("HE2",), "HIE"), ((), "HIN")),
    "ASP": ((("HD2",), "ASH"), (("HD1",), "ASH"), ((), "ASP")),
    "GLU": ((("HE2",), "GLH"), (("HE1",), "GLH"), ((), "GLU")),
    "LYS": ((("HZ1", "HZ2", "HZ3"), "LYS"), ((), "LYN")),
    "CYS": ((("HG",), "CYS"), ((), "CYX")),
}


@dataclass
class Repaired:
    """A structure that is complete, without a box; positions (N, 3) are in nm.

    `record` has what was done and decided, as JSON can hold it; `notes` say what the user should
    know.
    """

    topology: app.Topology
    positions: NDArray[np.float64]
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def repair(
    structure: Structure, settings: PrepareSettings, progress: Progress = silence
) -> Repaired:
    """Complete a structure, which is not changed.

    ValueError in one line: what cannot be repaired without a decision, or at all. What `progress`
    raises, called once a second while atoms are built, ends it.
    """
    files: ForceFieldLike = settings.force_field or DEFAULT_FORCE_FIELD
    work = _Work(structure, settings, progress)
    work.leave_out()
    work.replace_nonstandard(files)
    hydrogens = work.take_heterogens(files)
    work.check_backbones()
    work.find_missing()
    work.build_missing()
    work.add_hydrogens(hydrogens)
    work.check_hands()
    return Repaired(work.topology, work.positions, work.record, work.notes)


class _Work:
    """The state of a repair, in PDBFixer's hands."""

    def __init__(self, structure: Structure, settings: PrepareSettings, say: Progress) -> None:
        self.settings = settings
        self.name = structure.name
        self._say = say
        self._given: set[tuple[str, str, str]] = set()
        self.notes: list[str] = []
        self.record: dict[str, Any] = {
            "frame": structure.frame,
            "alternate_locations": list(structure.alternates),
            "pdbfixer": importlib.metadata.version("pdbfixer"),
        }
        if structure.alternates:
            self.notes.append(
                f"{len(structure.alternates)} residues have alternate locations; of each the one "
                "with the highest occupancy is kept."
            )
        # A copy without the box: a new one is made.
        modeller = app.Modeller(structure.topology, structure.positions * unit.nanometer)
        modeller.delete([])
        topology, x = modeller.topology, structure.positions
        vectors = topology.getPeriodicBoxVectors()
        if vectors is not None:
            box = nanometers(vectors)
            # Files that no crystal is behind have a box of one angstrom.
            if np.diag(box).min() > 0.5:
                x = make_whole(topology, x, box)
            topology.setPeriodicBoxVectors(None)
        # PDBFixer wants a file; what it made of this one is replaced.
        atom = "ATOM      1  N   ALA A   1       0.000   0.000   0.000  1.00  0.00           N\n"
        self.fixer = pdbfixer.PDBFixer(
            pdbfile=io.StringIO(atom), platform=_platform(len(structure.positions))
        )
        self.fixer.sequences = list(structure.sequences)
        self.fixer.modifiedResidues = list(structure.modified)
        self._set(topology, x * unit.nanometer)

    @property
    def topology(self) -> app.Topology:
        return self.fixer.topology

    @property
    def positions(self) -> NDArray[np.float64]:
        values = self.fixer.positions.value_in_unit(unit.nanometer)
        return np.array([tuple(place) for place in values], dtype=np.float64)

    def _set(self, topology: app.Topology, positions: Any) -> None:
        self.fixer.topology = topology
        places = np.array([tuple(x) for x in positions.value_in_unit(unit.nanometer)])
        # PDBFixer does sums with Vec3.
        self.fixer.positions = [openmm.Vec3(*map(float, x)) for x in places] * unit.nanometer

    def _delete(self, what: Iterable[Any]) -> None:
        modeller = app.Modeller(self.topology, self.fixer.positions)
        modeller.delete(list(what))
        self._set(modeller.topology, modeller.positions)

    # -- what stays ------------------------------------------------------------------------------

    def leave_out(self) -> None:
        """Take out water and heterogens that are not wanted."""
        settings = self.settings
        water = [r for r in self.topology.residues() if r.name == "HOH" or is_water(r)]
        self.record["waters_in_file"] = len(water)
        self.record["waters_kept"] = len(water) if settings.keep_water else 0
        if water and not settings.keep_water:
            self.notes.append(
                f"{len(water)} waters of {self.name} are left out; others are added "
                "(openmm-sd prepare --keep-water keeps them)."
            )
            self._delete(water)
        dropped = []
        if settings.drop_heterogens:
            dropped = [r for r in self.topology.residues() if r.name not in _KNOWN | {"HOH"}]
            if len(dropped) == self.topology.getNumResidues():
                raise ValueError(
                    f"{self.name} holds nothing but heterogens, and those were to be dropped "
                    f"({_listing(dropped)})"
                )
        self.record["heterogens_dropped"] = [residue_label(r) for r in dropped]
        if dropped:
            self.notes.append(f"Left out: {_listing(dropped)}.")
            self._delete(dropped)
        if not self.topology.getNumAtoms():
            raise ValueError(f"{self.name} holds nothing but water, and that was to be left out")

    def replace_nonstandard(self, files: ForceFieldLike) -> None:
        """Replace modified residues that the force field does not know, where that is wanted."""
        fixer = self.fixer
        fixer.findNonstandardResidues()
        if fixer.nonstandardResidues:
            templates = load_force_field(files)._templates
            fixer.nonstandardResidues = [
                (residue, standard)
                for residue, standard in fixer.nonstandardResidues
                if residue.name not in templates
            ]
        found = fixer.nonstandardResidues
        if found and not self.settings.replace_modified:
            residue, standard = found[0]
            raise ValueError(
                f"{self.name}: the force field does not know {residue_label(residue)}, a "
                f"modification of {standard}: replace it (openmm-sd prepare "
                "--replace-modified), or add a file with its parameters (--force-field)"
            )
        self.record["residues_replaced"] = [
            {"residue": residue_label(residue), "by": standard} for residue, standard in found
        ]
        if found:
            self.notes.append(
                "Replaced: " + ", ".join(f"{residue_label(r)} by {by}" for r, by in found) + "."
            )
            fixer.replaceNonstandardResidues()
            self._set(fixer.topology, fixer.positions)
            # Names decide which bonds there are.
            self._restore_bonds()

    def _restore_bonds(self) -> None:
        topology = self.topology
        there = {frozenset(bond) for bond in topology.bonds()}
        names = app.Topology()
        atoms = {}
        for chain in topology.chains():
            new = names.addChain(chain.id)
            for residue in chain.residues():
                copy = names.addResidue(residue.name, new, residue.id)
                for atom in residue.atoms():
                    atoms[names.addAtom(atom.name, atom.element, copy)] = atom
        names.createStandardBonds()
        for one, two in names.bonds():
            if frozenset((atoms[one], atoms[two])) not in there:
                topology.addBond(atoms[one], atoms[two])

    def take_heterogens(self, files: ForceFieldLike) -> dict[tuple[str, str, str], list[Any]]:
        """Complete what is neither protein, nucleic acid nor water; refuse what nobody knows.

        Returns the hydrogens that belong to those, by chain, number and name.
        """
        others = [r for r in self.topology.residues() if r.name not in _KNOWN | {"HOH"}]
        self.record["heterogens_kept"] = [residue_label(r) for r in others]
        self.record["bonds_from_force_field"] = []
        if not others:
            return {}
        force_field = load_force_field(files)
        completed = complete_bonds(self.topology, force_field)
        self.record["bonds_from_force_field"] = [residue_label(r) for r in completed]
        # Hydrogens may be missing still where they are known.
        bare = [r for r in others if r not in completed and r.name not in _known_hydrogens()]
        for residue in force_field.getUnmatchedResidues(self.topology):
            if residue not in bare:
                continue
            hint = ""
            if residue.name.upper() in pdbfixer.pdbfixer.substitutions:
                hint = " (a modified amino acid)"
            raise ValueError(f"{self.name}: {refusal(residue, force_field, files)}{hint}")
        return {_key(residue): hydrogens for residue, hydrogens in completed.items()}

    # -- what is missing -------------------------------------------------------------------------

    def check_backbones(self) -> None:
        """Refuse amino acids of which the backbone is missing: all else hangs on it."""
        for residue in self.topology.residues():
            if residue.name not in _PROTEIN:
                continue
            names = {atom.name for atom in residue.atoms()}
            missing = [name for name in ("N", "CA", "C") if name not in names]
            if missing:
                raise ValueError(
                    f"{self.name}: {residue_label(residue)} lacks {', '.join(missing)} of its "
                    "backbone; where these go would be a guess: complete it with a modelling "
                    "program, or take the residue out"
                )

    def find_missing(self) -> None:
        """Decide which residues to build: in gaps, at ends, as caps."""
        fixer, settings = self.fixer, self.settings
        self._given = {(*_key(a.residue)[:2], a.name) for a in self.topology.atoms()}
        fixer.missingResidues = {}
        if fixer.sequences:
            fixer.findMissingResidues()
        listed = fixer.missingResidues
        chains = list(self.topology.chains())
        lengths = [len(list(chain.residues())) for chain in chains]
        inside = {key: names for key, names in listed.items() if 0 < key[1] < lengths[key[0]]}
        ends = {key: names for key, names in listed.items() if key not in inside}
        self._check_gaps(inside)
        built = dict(inside) if settings.missing_residues != "none" else {}
        if settings.missing_residues == "all":
            built |= ends
        for names in built.values():
            unknown = [name for name in names if name not in fixer.templates]
            if unknown:
                raise ValueError(
                    f"{self.name}: SEQRES lists {unknown[0]}, which PDBFixer cannot build"
                )
        left = {key: names for key, names in ends.items() if key not in built}
        self.record["missing_residues_built"] = _by_chain(chains, built)
        self.record["missing_residues_left_out"] = _by_chain(chains, left)
        if built:
            self.notes.append(
                f"{sum(map(len, built.values()))} missing residues were built. Where they are is a "
                "guess: equilibrate for long, and do not trust their conformation."
            )
        if left:
            self.notes.append(
                f"{sum(map(len, left.values()))} residues that SEQRES lists at the ends of chains "
                "are left out."
            )
        fixer.missingResidues = {key: list(names) for key, names in built.items()}

    def _check_gaps(self, listed: dict[tuple[int, int], list[str]]) -> None:
        """Refuse bonds that are none, unless what lies between is built."""
        x = self.positions
        for one, two in self.topology.bonds():
            length = float(np.linalg.norm(x[one.index] - x[two.index]))
            if length < _BROKEN_NM:
                continue
            first, second = one.residue, two.residue
            if first is second:
                raise ValueError(
                    f"{self.name}: the bond from {one.name} to {two.name} of "
                    f"{residue_label(first)} is {length:.2f} nm long: the residue is torn apart"
                )
            chain = first.chain
            order = list(chain.residues())
            key = (chain.index, order.index(second) if second in order else -1)
            if key in listed and self.settings.missing_residues != "none":
                continue
            names = listed.get(key)
            what = (
                f"SEQRES lists {' '.join(names)} between them; PDBFixer builds them with "
                "'openmm-sd prepare --missing-residues gaps'"
                if names
                else "add the missing residues to SEQRES and let them be built (openmm-sd prepare "
                "--missing-residues gaps), or part the chain with a TER record"
            )
            raise ValueError(
                f"{self.name}: the chain is broken between {residue_label(first)} and "
                f"{residue_label(second)}, which are {length:.2f} nm apart; {what}"
            )

    def build_missing(self) -> None:
        """Build missing heavy atoms."""
        fixer = self.fixer
        added: dict[str, list[str]] = {label: ["CB"] for label in self._place_beta_carbons()}
        fixer.findMissingAtoms()
        for residue, atoms in fixer.missingAtoms.items():
            added.setdefault(residue_label(residue), []).extend(atom.name for atom in atoms)
        self.record["atoms_added"] = [
            {"residue": label, "atoms": names} for label, names in added.items()
        ]
        if self.settings.caps:
            # An end that gets a cap has no terminal oxygen.
            fixer.missingTerminals = {
                r: names for r, names in fixer.missingTerminals.items() if not _is_peptide(r.chain)
            }
        self.record["terminal_atoms_added"] = [
            {"residue": residue_label(residue), "atoms": list(names)}
            for residue, names in fixer.missingTerminals.items()
        ]
        if added:
            count = sum(map(len, added.values()))
            self.notes.append(f"{count} missing atoms were built ({_listed(list(added))}).")
        if fixer.missingTerminals:
            self.notes.append(
                f"{_listing(list(fixer.missingTerminals))}: the end of a chain, which gets OXT and "
                "a charge (openmm-sd prepare --caps makes it neutral)."
            )
        if fixer.missingResidues or fixer.missingAtoms or fixer.missingTerminals:
            try:
                with _ending_minimiser(lambda: self._say("repairing", self.name)):
                    fixer.addMissingAtoms(seed=self.settings.seed)
            except Exception as error:  # it fails in many ways
                raise ValueError(
                    f"{self.name}: PDBFixer cannot build what is missing ({one_line(error)})"
                ) from None
            self._set(fixer.topology, fixer.positions)
        self.record["caps_added"] = []
        if self.settings.caps:
            self._add_caps()

    def _place_beta_carbons(self) -> list[str]:
        """Put CB where an L amino acid has it, and name the residues: PDBFixer may build it D."""
        places = self.positions
        new, atoms, x, residues = app.Topology(), {}, [], []
        new.setPeriodicBoxVectors(self.topology.getPeriodicBoxVectors())
        for chain in self.topology.chains():
            new_chain = new.addChain(chain.id)
            for residue in chain.residues():
                there = {atom.name: places[atom.index] for atom in residue.atoms()}
                new_residue = new.addResidue(
                    residue.name, new_chain, residue.id, residue.insertionCode
                )
                for atom in residue.atoms():
                    atoms[atom] = new.addAtom(atom.name, atom.element, new_residue, atom.id)
                    x.append(places[atom.index])
                chiral = residue.name in _PROTEIN and residue.name != "GLY"
                if chiral and {"N", "CA", "C"} <= there.keys() and "CB" not in there:
                    new.addAtom("CB", app.element.carbon, new_residue)
                    # As seen along N-CA, an L residue has CB 120 degrees behind C.
                    x.append(placed(there["C"], there["N"], there["CA"], 0.153, 110.5, -120.0))
                    residues.append(residue_label(residue))
        if residues:
            for one, two in self.topology.bonds():
                new.addBond(atoms[one], atoms[two])
            self._set(new, np.array(x) * unit.nanometer)
        return residues

    def _add_caps(self) -> None:
        """Put ACE and NME to the ends of peptides, the new peptide bonds trans."""
        x = self.positions
        heavy = np.array(
            [x[a.index] for a in self.topology.atoms() if a.element is not app.element.hydrogen]
        )
        topology = app.Topology()
        places: list[Any] = []
        new: dict[Any, Any] = {}

        def add(name: str, element: Any, residue: Any, place: Any) -> None:
            topology.addAtom(name, element, residue)
            places.append(place)

        element = app.element
        for chain in self.topology.chains():
            copy = topology.addChain(chain.id)
            residues = list(chain.residues())
            wanted = _is_peptide(chain)
            first = residues[0] if wanted and residues[0].name in _PROTEIN else None
            last = residues[-1] if wanted and residues[-1].name in _PROTEIN else None
            if first is not None:
                atoms = {a.name: x[a.index] for a in first.atoms()}
                c, o, methyl = _acetyl(atoms, heavy)
                cap = topology.addResidue("ACE", copy, _shifted(first.id, -1))
                add("CH3", element.carbon, cap, methyl)
                add("C", element.carbon, cap, c)
                add("O", element.oxygen, cap, o)
                self.record["caps_added"].append(f"ACE before {residue_label(first)}")
            for residue in residues:
                mine = topology.addResidue(residue.name, copy, residue.id, residue.insertionCode)
                gone = {"H", "H1", "H2", "H3"} if residue is first else set()
                gone |= {"OXT", "HXT"} if residue is last else set()
                for atom in residue.atoms():
                    if atom.name not in gone:
                        new[atom] = topology.addAtom(atom.name, atom.element, mine)
                        places.append(x[atom.index])
            if last is not None:
                atoms = {a.name: x[a.index] for a in last.atoms()}
                nitrogen, methyl = _methylamide(atoms)
                cap = topology.addResidue("NME", copy, _shifted(last.id, 1))
                add("N", element.nitrogen, cap, nitrogen)
                add("C", element.carbon, cap, methyl)
                self.record["caps_added"].append(f"NME after {residue_label(last)}")
        topology.createStandardBonds()
        there = {frozenset(bond) for bond in topology.bonds()}
        for one, two in self.topology.bonds():
            if one in new and two in new and frozenset((new[one], new[two])) not in there:
                topology.addBond(new[one], new[two])
        self._set(topology, np.array(places) * unit.nanometer)

    def add_hydrogens(self, known: dict[tuple[str, str, str], list[Any]]) -> None:
        """Add hydrogens that are missing; those that are there stay."""
        settings = self.settings
        residues = list(self.topology.residues())
        variants: list[Any] = [known.get(_key(residue)) for residue in residues]
        for where, variant in settings.variants.items():
            fitting = [r for r in residues if f"{r.chain.id}:{r.id}" == where]
            if len(fitting) != 1:
                raise ValueError(
                    f"variant: {self.name} has {len(fitting) or 'no'} residue {where!r}; wanted is "
                    "CHAIN:NUMBER"
                )
            allowed = _known_hydrogens().get(fitting[0].name)
            if allowed is None or variant not in allowed.variants:
                forms = ", ".join(allowed.variants) if allowed is not None else ""
                raise ValueError(
                    f"variant: {residue_label(fitting[0])} cannot be {variant}; "
                    f"{'it can be ' + forms if forms else 'it has one form only'}"
                )
            variants[fitting[0].index] = variant
        before = _hydrogens(self.topology)
        files: ForceFieldLike = settings.force_field or DEFAULT_FORCE_FIELD
        modeller = app.Modeller(self.topology, self.fixer.positions)
        options = {
            "pH": settings.ph,
            "variants": variants,
            "platform": _platform(modeller.topology.getNumAtoms()),
        }
        with seeded(settings.seed):
            try:
                modeller.addHydrogens(load_force_field(files), **options)
            except Exception:  # not always a ValueError
                # With its hydrogens the force field says better what it misses.
                modeller.addHydrogens(None, **options)
                make_system(files, modeller.topology)
                raise
        after = _hydrogens(modeller.topology)
        if after != before:
            self._set(modeller.topology, modeller.positions)
        added = sum(after.values()) - sum(before.values())
        self.record["ph"] = settings.ph
        self.record["hydrogens_in_file"] = sum(before.values())
        self.record["hydrogens_added"] = added
        self.record["protonation"] = [
            {"residue": residue_label(residue), "form": _form(residue)}
            for residue in self.topology.residues()
            if residue.name in _FORMS
        ]
        if added:
            self.notes.append(f"{added} hydrogens were added (pH {settings.ph:g}).")

    def check_hands(self) -> None:
        """Refuse D amino acids, and say where a peptide bond is cis."""
        x = self.positions
        for residue in self.topology.residues():
            atoms = {atom.name: x[atom.index] for atom in residue.atoms()}
            if residue.name in _PROTEIN and is_d(atoms):
                what = (
                    "no residue of that name is, and the models know L amino acids"
                    if (*_key(residue)[:2], "CB") in self._given
                    else "PDBFixer built it so: complete it with a modelling program"
                )
                raise ValueError(
                    f"{self.name}: {residue_label(residue)} is a D amino acid, or flat; {what}"
                )
        cis = _cis_peptides(self.topology, x)
        self.record["cis_peptide_bonds"] = [residue_label(residue) for residue in cis]
        if cis:
            self.notes.append(
                f"The peptide bond before {_listing(cis)} is cis: it will stay so, and models "
                "trained on trans bonds do not jump from there."
            )


def _is_peptide(chain: Any) -> bool:
    names = {residue.name for residue in chain.residues()}
    return bool(names) and names <= _PROTEIN | _CAPS


def _shifted(number: str, by: int) -> str:
    return str(int(number) + by) if number.lstrip("-").isdigit() else number


# Lengths and angles of peptides: Engh and Huber, Acta Cryst. A47 (1991) 392.
def _acetyl(
    atoms: dict[str, NDArray[np.float64]], heavy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Return places for C, O and CH3 before an amino acid, where there is most room."""
    n, alpha, c = atoms["N"], atoms["CA"], atoms["C"]
    best: tuple[float, tuple[NDArray[np.float64], ...]] | None = None
    for phi in range(-160, 0, 10):
        carbon = placed(c, alpha, n, 0.1329, 121.7, phi)
        oxygen = placed(alpha, n, carbon, 0.1231, 123.0, 0.0)
        methyl = placed(alpha, n, carbon, 0.1507, 116.2, 180.0)
        others = heavy[np.linalg.norm(heavy - n, axis=1) > 0.01]
        room = min(
            float(np.linalg.norm(others - place, axis=1).min()) for place in (oxygen, methyl)
        )
        if best is None or room > best[0]:
            best = room, (carbon, oxygen, methyl)
    assert best is not None
    return best[1]


def _methylamide(atoms: dict[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    """Return places for N and C behind an amino acid, across from its oxygen."""
    alpha, c, o = atoms["CA"], atoms["C"], atoms["O"]
    arms = [(place - c) / np.linalg.norm(place - c) for place in (alpha, o)]
    away = -(arms[0] + arms[1])
    nitrogen = c + 0.1329 * away / np.linalg.norm(away)
    return nitrogen, placed(alpha, c, nitrogen, 0.1458, 121.7, 180.0)


def _cis_peptides(topology: app.Topology, x: NDArray[np.float64]) -> list[Any]:
    """Return residues after a cis peptide bond; before proline it is nothing unusual."""
    found = []
    for bond in topology.bonds():
        c, n = sorted(bond, key=lambda atom: atom.name)
        if (c.name, n.name) != ("C", "N") or c.residue is n.residue or n.residue.name == "PRO":
            continue
        before = {atom.name: x[atom.index] for atom in c.residue.atoms()}
        after = {atom.name: x[atom.index] for atom in n.residue.atoms()}
        one = before.get("CA", before.get("CH3"))
        # NME has its carbon under one of two names.
        two = after.get("CA", after.get("C", after.get("CH3")))
        if one is None or two is None:
            continue
        if not is_trans(np.array([one, before["C"], after["N"], two])):
            found.append(n.residue)
    return found


def _platform(atoms: int) -> openmm.Platform:
    """Never one of a GPU: the minimiser of OpenMM 8.6.1 crashes under pocl."""
    with contextlib.suppress(openmm.OpenMMException):
        if atoms > _REFERENCE_ATOMS:
            return openmm.Platform.getPlatformByName("CPU")
    return openmm.Platform.getPlatformByName("Reference")


class _End(openmm.MinimizationReporter):
    """Ends a minimisation that takes too long, or that the user has given up."""

    def __init__(self, say: Callable[[], None]) -> None:
        super().__init__()
        self._say = say
        self._began = self._said = time.monotonic()
        self.reason: BaseException | None = None

    def report(self, iteration: int, x: object, gradient: object, numbers: object) -> bool:
        now = time.monotonic()
        if now - self._began > _MOST_SECONDS:
            self.reason = ValueError(f"the minimisation is not done after {_MOST_SECONDS:g} s")
        elif now - self._said > _SAID_EVERY:
            self._said = now
            try:
                self._say()
            except BaseException as error:  # through OpenMM's C++ it would not come
                self.reason = error
        return self.reason is not None


@contextlib.contextmanager
def _ending_minimiser(say: Callable[[], None]) -> Iterator[None]:
    """Give minimisations of others an end: PDBFixer sets none, and C++ hears no signals."""
    before = openmm.LocalEnergyMinimizer.minimize

    def minimize(context: openmm.Context) -> None:
        end = _End(say)
        before(context, maxIterations=_MOST_ITERATIONS, reporter=end)
        if end.reason is not None:
            raise end.reason

    openmm.LocalEnergyMinimizer.minimize = staticmethod(minimize)
    try:
        yield
    finally:
        openmm.LocalEnergyMinimizer.minimize = staticmethod(before)


def _known_hydrogens() -> dict[str, Any]:
    """Return what OpenMM knows of residues' hydrogens and their forms, by the residue's name."""
    app.Modeller._loadStandardHydrogenDefinitions()
    known: dict[str, Any] = app.Modeller._residueHydrogens
    return known


def _hydrogens(topology: app.Topology) -> Counter[int]:
    return Counter(
        atom.residue.index
        for atom in topology.atoms()
        if atom.element is not None and atom.element.symbol == "H"
    )


def _form(residue: Any) -> str:
    names = {atom.name for atom in residue.atoms()}
    return next(form for wanted, form in _FORMS[residue.name] if names.issuperset(wanted))


def _key(residue: Any) -> tuple[str, str, str]:
    return residue.chain.id, f"{residue.id}{residue.insertionCode}", residue.name


def _listing(residues: list[Any]) -> str:
    return _listed(list(dict.fromkeys(map(residue_label, residues))))


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def _by_chain(chains: list[Any], missing: dict[Any, list[str]]) -> list[dict[str, Any]]:
    return [
        {"chain": chains[chain].id, "before_residue": place, "residues": list(names)}
        for (chain, place), names in missing.items()
    ]
