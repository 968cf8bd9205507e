"""Forces on the solute that are none of its force field: restraints, biases, alchemical changes.

A jump knows nothing of them, so it undoes what they did. What a force field consists of is known by
its kind, and by the atoms of its terms: bonds, angles, torsions and impropers of the molecule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import networkx as nx
import openmm

from ..bridges.base import FORCE_NAME
from ..system.solute import Solute

#: Kinds of forces that belong to a simulation or are a force field's as a whole; and what their
#: names begin with.
_OF_THE_SIMULATION: Final = frozenset(
    (
        *("AndersenThermostat", "CMMotionRemover", "CustomVolumeForce", "MonteCarloBarostat"),
        *("MonteCarloAnisotropicBarostat", "MonteCarloFlexibleBarostat"),
        *("MonteCarloMembraneBarostat", "RPMDMonteCarloBarostat"),
    )
)
_OF_THE_FORCE_FIELD: Final = frozenset(
    (
        *("CMAPTorsionForce", "ConstantPotentialForce", "CustomGBForce", "CustomHbondForce"),
        *("CustomManyParticleForce", "DrudeForce", "GBSAOBCForce", "GayBerneForce"),
        *("HippoNonbondedForce", "LCPOForce"),
    )
)
_AMOEBA: Final = "Amoeba"
# Bonds between atoms that no force field treats as bonded.
_FAR: Final = 4

_PAIRS: Final = (openmm.HarmonicBondForce, openmm.CustomBondForce)
_ANGLES: Final = (openmm.HarmonicAngleForce, openmm.CustomAngleForce)
_TORSIONS: Final = (
    *(openmm.PeriodicTorsionForce, openmm.RBTorsionForce, openmm.CustomTorsionForce),
)

_REMEDY: Final = "take it off, or pass allowBias=True if that is what you want"


def refuse_biases(system: openmm.System, solute: Solute, remedy: str = _REMEDY) -> None:
    """Raise ValueError, in one line, if a force other than the force field's acts on the solute."""
    found = find_biases(system, solute)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(
            f"system: {found[0]}{more}; jumps do not know of it and undo its effect, so "
            f"that populations and rates would be neither those with it nor those without: {remedy}"
        )


def find_biases(system: openmm.System, solute: Solute) -> list[str]:
    """Say which forces act on the solute beyond its force field, and how.

    What hides in a force field's own forces is not seen: a charge or a strength that was changed,
    or a term that was added to them on atoms that have such a term already.
    """
    forces = system.getForces()
    look = _Look(forces, solute)
    return [
        f"force {index} ({_label(force)}) {what}"
        for index, force in enumerate(forces)
        if force.getName() != FORCE_NAME and (what := look(force))
    ]


def _label(force: openmm.Force) -> str:
    kind, name = type(force).__name__, force.getName()
    return kind if name in ("", kind) else f"{kind} {name!r}"


class _Look:
    """What forces do to the atoms of a solute."""

    def __init__(self, forces: Sequence[openmm.Force], solute: Solute) -> None:
        self._atom_of = {particle: atom for atom, particle in enumerate(solute.particles)}
        self._names = solute.molecule.atom_names
        self._graph = graph = solute.molecule.graph()
        # Up to three bonds; what is further apart is not in it.
        self._apart = dict(nx.all_pairs_shortest_path_length(graph, cutoff=3))
        # Bonds about which something turns, and that are in no ring.
        self._rotatable = {
            frozenset(bond)
            for bond in nx.bridges(graph)
            if min(graph.degree(bond[0]), graph.degree(bond[1])) > 1
        }
        near = Counter(apart for others in self._apart.values() for apart in others.values())
        n = solute.molecule.n_atoms
        self._pairs_apart = {3: near[3] / 2, _FAR: (n * n - near.total()) / 2}
        torsions = [force for force in forces if isinstance(force, _TORSIONS)]
        self._about = [(force, self._bonds_turned(force)) for force in torsions]

    def __call__(self, force: openmm.Force) -> str | None:
        """Say what a force does that no force field does; None if it does nothing of the kind."""
        kind = type(force).__name__
        if kind in _OF_THE_SIMULATION or kind in _OF_THE_FORCE_FIELD or kind.startswith(_AMOEBA):
            return None
        if isinstance(force, openmm.NonbondedForce):
            return self._offsets(force)
        if isinstance(force, openmm.CustomNonbondedForce):
            return self._custom_nonbonded(force)
        if isinstance(force, openmm.CustomCVForce):
            return self._collective(force)
        if isinstance(force, openmm.ATMForce):
            return self._displaced(force)
        terms = list(self._own_terms(force))
        if not terms:
            return None
        if kind == "CustomCompoundBondForce" and force.getName().startswith(_AMOEBA):
            return None
        judge: dict[tuple[type, ...], Callable[..., str | None]] = {
            _PAIRS: self._pairs,
            _ANGLES: self._angles,
            _TORSIONS: self._torsions,
        }
        for kinds, of_its_atoms in judge.items():
            if isinstance(force, kinds):
                return _with_parameters(force) or self._outside(terms) or of_its_atoms(force, terms)
        return f"acts on {self._list(terms[0])} of the solute"

    # -- which particles a force acts on ---------------------------------------------------------

    def _own_terms(self, force: openmm.Force) -> Iterator[tuple[int, ...]]:
        """Yield the terms, as particles, that have one of the solute's."""
        for term in _terms(force):
            particles = self._atom_of if term is None else term
            if any(particle in self._atom_of for particle in particles):
                yield tuple(particles)

    def _list(self, particles: Iterable[int]) -> str:
        """Names of the solute's atoms among some particles."""
        names = [self._names[self._atom_of[p]] for p in particles if p in self._atom_of]
        if len(names) > 6:
            return f"{len(names)} atoms"
        return f"{'atom' if len(names) == 1 else 'atoms'} {', '.join(names)}"

    def _outside(self, terms: list[tuple[int, ...]]) -> str | None:
        for term in terms:
            if not all(particle in self._atom_of for particle in term):
                return f"ties {self._list(term)} of the solute to other particles"
        return None

    # -- terms within the solute -----------------------------------------------------------------

    def _pairs(self, force: openmm.Force, terms: list[tuple[int, ...]]) -> str | None:
        far: dict[int, list[tuple[int, ...]]] = {3: [], _FAR: []}
        for term in terms:
            apart = self._apart[self._atom_of[term[0]]].get(self._atom_of[term[1]], _FAR)
            if apart in far:
                far[apart].append(term)
        for distance, found in far.items():
            # A force field that treats pairs one by one does so with most of them.
            few = len({frozenset(term) for term in found}) < 0.5 * self._pairs_apart[distance]
            if found and (few or isinstance(force, openmm.HarmonicBondForce)):
                return f"acts on the distance of {self._list(found[0])} of the solute"
        return None

    def _angles(self, force: openmm.Force, terms: list[tuple[int, ...]]) -> str | None:
        for term in terms:
            i, j, k = (self._atom_of[particle] for particle in term)
            if not (self._graph.has_edge(i, j) and self._graph.has_edge(j, k)):
                return f"acts on the angle of {self._list(term)} of the solute, which has no such"
        return None

    def _torsions(self, force: openmm.Force, terms: list[tuple[int, ...]]) -> str | None:
        for term in terms:
            if not (self._is_chain(term) or self._is_star(term)):
                return f"acts on the torsion of {self._list(term)} of the solute, which has no such"
        mine = next(turned for other, turned in self._about if other is force)
        for other, turned in self._about:
            for bond, count in mine.items():
                # The force field turns this bond already, with more terms or of a plainer kind.
                plainer = not isinstance(other, openmm.CustomTorsionForce)
                custom = isinstance(force, openmm.CustomTorsionForce) and plainer
                if turned[bond] and (custom or 2 * count <= turned[bond]):
                    term = next(t for t in terms if self._middle(t) == bond)
                    return f"acts on the torsion of {self._list(term)} of the solute"
        return None

    def _is_chain(self, term: tuple[int, ...]) -> bool:
        atoms = [self._atom_of[particle] for particle in term]
        return all(self._graph.has_edge(*bond) for bond in pairwise(atoms))

    def _is_star(self, term: tuple[int, ...]) -> bool:
        atoms = {self._atom_of[particle] for particle in term}
        return any(atoms - {centre} <= set(self._graph[centre]) for centre in atoms)

    def _middle(self, term: tuple[int, ...]) -> frozenset[int] | None:
        """The bond about which a torsion turns, if it does."""
        bond = frozenset(self._atom_of[particle] for particle in term[1:3])
        return bond if self._is_chain(term) and bond in self._rotatable else None

    def _bonds_turned(self, force: openmm.Force) -> Counter[frozenset[int]]:
        """Count a force's torsions about each rotatable bond."""
        inside = [t for t in self._own_terms(force) if all(p in self._atom_of for p in t)]
        return Counter(bond for term in inside if (bond := self._middle(term)) is not None)

    # -- forces of the whole system --------------------------------------------------------------

    def _offsets(self, force: openmm.NonbondedForce) -> str | None:
        for k in range(force.getNumParticleParameterOffsets()):
            name, particle, *_ = force.getParticleParameterOffset(k)
            if particle in self._atom_of:
                return f"changes {self._list([particle])} of the solute by the parameter {name!r}"
        for k in range(force.getNumExceptionParameterOffsets()):
            name, exception, *_ = force.getExceptionParameterOffset(k)
            pair = force.getExceptionParameters(exception)[:2]
            if any(particle in self._atom_of for particle in pair):
                return f"changes {self._list(pair)} of the solute by the parameter {name!r}"
        return None

    def _custom_nonbonded(self, force: openmm.CustomNonbondedForce) -> str | None:
        solute, parameters = set(self._atom_of), _with_parameters(force)
        groups = [
            [set(part) for part in force.getInteractionGroupParameters(k)]
            for k in range(force.getNumInteractionGroups())
        ]
        if parameters and (not groups or any(a & solute and b & solute for a, b in groups)):
            return f"acts on the solute and {parameters}"
        for part in (part for group in groups for part in group):
            mine = part & solute
            # Where it is one of several molecules, something else is meant.
            if mine and (part <= solute or mine < solute):
                return f"acts on {self._list(sorted(mine))} of the solute alone"
        return None

    def _collective(self, force: openmm.CustomCVForce) -> str | None:
        for k in range(force.getNumCollectiveVariables()):
            variable = force.getCollectiveVariable(k)
            term = next(self._own_terms(variable), None)
            if term is not None:
                name = force.getCollectiveVariableName(k)
                return f"acts on the collective variable {name!r}: {self._list(term)} of the solute"
        return None

    def _displaced(self, force: openmm.ATMForce) -> str | None:
        for particle in self._atom_of:
            if particle < force.getNumParticles():
                given = force.getParticleParameters(particle)
                vectors = given if isinstance(given, (tuple, list)) else [given]
                if any(any(v._value if hasattr(v, "_value") else v) for v in vectors):
                    return f"displaces {self._list([particle])} of the solute"
        return None


def _with_parameters(force: openmm.Force) -> str | None:
    """Say on which parameters a force depends that a script can change while it runs."""
    count = force.getNumGlobalParameters() if hasattr(force, "getNumGlobalParameters") else 0
    names = ", ".join(repr(force.getGlobalParameterName(k)) for k in range(count))
    return f"depends on the parameter{'s' if count > 1 else ''} {names}" if count else None


def _terms(force: openmm.Force) -> Iterator[tuple[int, ...] | None]:
    """Yield the particles of each term; None for one of all particles."""
    if isinstance(force, _PAIRS):
        yield from (tuple(force.getBondParameters(k)[:2]) for k in range(force.getNumBonds()))
    elif isinstance(force, _ANGLES):
        yield from (tuple(force.getAngleParameters(k)[:3]) for k in range(force.getNumAngles()))
    elif isinstance(force, (*_TORSIONS, openmm.CMAPTorsionForce)):
        first, last = (1, 9) if isinstance(force, openmm.CMAPTorsionForce) else (0, 4)
        for k in range(force.getNumTorsions()):
            yield tuple(force.getTorsionParameters(k)[first:last])
    elif isinstance(force, openmm.CustomCompoundBondForce):
        yield from (tuple(force.getBondParameters(k)[0]) for k in range(force.getNumBonds()))
    elif isinstance(force, openmm.CustomCentroidBondForce):
        for k in range(force.getNumBonds()):
            groups = force.getBondParameters(k)[0]
            yield tuple(p for group in groups for p in force.getGroupParameters(group)[0])
    elif isinstance(force, openmm.CustomExternalForce):
        for k in range(force.getNumParticles()):
            yield (force.getParticleParameters(k)[0],)
    elif isinstance(force, openmm.CustomCVForce):
        for k in range(force.getNumCollectiveVariables()):
            yield from _terms(force.getCollectiveVariable(k))
    elif type(force).__name__ not in _OF_THE_SIMULATION:
        # RMSDForce and its like, PythonForce: those named, or all.
        named = force.getParticles() if hasattr(force, "getParticles") else ()
        yield tuple(named) or None
