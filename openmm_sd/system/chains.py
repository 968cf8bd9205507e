"""Capped chains of amino acids, and which of them a model serves that was not trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..model.card import Serves
from ..model.model import ScoreModel
from ..molecule.graph import neighbours_of
from ..molecule.handedness import signed_volume
from ..molecule.molecule import Molecule
from .force_field import ForceFieldLike, load_force_field
from .solute import NoSoluteError

_CAPS: Final = ("ACE", "NME")
#: Atoms that a message names at most.
_NAMED: Final = 4


class NotServedError(NoSoluteError):
    """A model that serves molecules it was not trained on does not serve this one."""

    def __init__(self, found: str) -> None:
        super().__init__("the model was not trained on this solute, and does not serve it", found)


def check_served(model: ScoreModel, molecule: Molecule, implicit: bool) -> None:
    """Refuse a molecule that is not what the card says the model serves.

    NotServedError in one line. A card that says nothing refuses nothing.
    """
    serves = model.card.serves
    if serves is None:
        return
    files = model.card.openmm_force_field(implicit)
    if not files:
        raise NotServedError(
            f"it was trained in {'explicit' if implicit else 'implicit'} solvent"
            if model.card.is_implicit != implicit
            else "its card names no files of a force field, which would name the residues"
        )
    names = _residues(molecule, files, serves)
    others = [name for name in names if name not in serves["residues"]]
    if others:
        raise NotServedError(
            f"{others[0]} is none of the residues that it serves ({', '.join(serves['residues'])})"
        )
    if not 1 <= len(names) <= serves["longest"]:
        raise NotServedError(
            f"it serves chains of 1 to {serves['longest']} residues, and this one has {len(names)}"
        )
    wrong = wrong_hands(molecule)
    if wrong:
        raise NotServedError(f"{wrong[0]}: it knows L amino acids only")


def _residues(molecule: Molecule, files: ForceFieldLike, serves: Serves) -> list[str]:
    """Return what a force field calls the residues between the caps; NotServedError without any."""
    field = load_force_field(files)
    topology = molecule.to_topology()
    for residue in field.getUnmatchedResidues(topology):
        raise NotServedError(_unknown(residue, field))
    residues = list(topology.residues())
    names = [template.name for template in field.getMatchingTemplates(topology)]
    known = {*serves["residues"], *_CAPS}
    # A force field has templates of their own for residues at the ends of a chain: NALA, CALA.
    for place, cap, end in ((0, "ACE", "amino"), (-1, "NME", "acid")):
        name = names[place]
        if name == cap:
            continue
        if name in known or name[1:] in known:
            label = f"{residues[place].name} {residues[place].id}"
            raise NotServedError(
                f"the {end} end of {label} is not capped, and it serves chains from ACE to NME "
                "only: openmm-sd prepare --caps puts them there"
            )
        raise NotServedError(f"{name} is no residue of a chain from ACE to NME")
    return names[1:-1]


def _unknown(residue: Any, field: Any) -> str:
    """Say what is wrong with a residue that the force field has no template for."""
    label = f"{residue.name} {residue.id}"
    template = field._templates.get(residue.name)
    there = {atom.name for atom in residue.atoms()}
    if residue.name == "HIS":
        template = field._templates.get("HIE")
    if template is None:
        return f"{label} is no residue that it serves, nor one that its force field knows"
    lacking = [atom for atom in template.atoms if atom.name not in there]
    hydrogens = [a.name for a in lacking if a.element is not None and a.element.symbol == "H"]
    if hydrogens and len(hydrogens) == len(lacking):
        return (
            f"{label} lacks hydrogens ({', '.join(hydrogens[:_NAMED])}"
            f"{', ...' if len(hydrogens) > _NAMED else ''}): openmm-sd prepare adds them"
        )
    return f"{label} has other atoms or bonds than the residue of that name that it serves"


def wrong_hands(molecule: Molecule) -> list[str]:
    """Name the stereocentres of a chain of amino acids that are not as in L ones.

    Told by the bonds and the molecule's own frame: names may be anybody's. Beside the alpha carbon
    these are the beta carbons of isoleucine and threonine.
    """
    z = molecule.atomic_numbers
    near = neighbours_of(molecule.n_atoms, molecule.bonds)
    hand = molecule.handedness
    found = []
    for row, stereo in zip(hand.centres, hand.stereo, strict=True):
        centre = int(row[0])
        heavy = [k for k in near[centre] if z[k] != 1]
        if not stereo or z[centre] != 6 or len(heavy) != 3:
            continue
        # N, C, CB about the alpha carbon; CA, then CG1 or OG1, then CG2 about a beta carbon.
        heavy.sort(key=lambda k: _rank(k, z, near), reverse=True)
        if signed_volume(molecule.positions, (centre, *heavy)) <= 0.0:
            alpha = z[heavy[0]] == 7
            label = molecule.residue(centre)
            at = f"has the wrong hand at {molecule.atom_names[centre]}"
            found.append(f"{label} {'is a D amino acid' if alpha else at}")
    return found


def _rank(atom: int, z: Sequence[int], near: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    elements = [z[k] for k in near[atom]]
    carbonyl = z[atom] == 6 and len(elements) == 3 and 8 in elements and 7 in elements
    return z[atom] == 7, carbonyl, z[atom] == 6 and 7 in elements, z[atom], -elements.count(1)
