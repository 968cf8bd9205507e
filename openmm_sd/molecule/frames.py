"""What every frame of a data set must be: whole, plausible, and of one handedness."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .graph import neighbours_of, spanning_edges
from .handedness import signed_volume
from .molecule import Molecule
from .whole import join_bonded

# Shortest and longest bond that a simulation shows, nm: O-H and H-I, C-C and I-I with room to move.
_HYDROGEN_BOND_NM: Final = (0.06, 0.20)
_HEAVY_BOND_NM: Final = (0.09, 0.35)
# A bond's share of its usual length that no thermal vibration adds or takes away.
_STRETCH: Final = 0.4
# X-H lengths that scatter less than this (nm) were constrained: vibration gives 0.003 nm at 300 K,
# the rounding of an XTC file 0.0004 nm.
_CONSTRAINED_NM: Final = 8e-4


class FrameCheck:
    """Makes frames of a molecule whole, checks them, and numbers equivalent hydrogens alike.

    The molecule's own frame says which handedness is wanted.
    """

    def __init__(self, molecule: Molecule) -> None:
        self.molecule = molecule
        self._edges = spanning_edges(molecule.n_atoms, molecule.bonds)
        self._bonds = np.array(molecule.bonds, dtype=np.int64).reshape(-1, 2)
        hydrogen = np.array([z == 1 for z in molecule.atomic_numbers])
        self._to_hydrogen = np.asarray(hydrogen[self._bonds].any(axis=1))

    def whole(
        self, frames: NDArray[np.floating[Any]], box: NDArray[np.floating[Any]] | None
    ) -> NDArray[np.float64]:
        """Bring every atom to the image next to the atom that it is bonded to.

        Frames are (T, N, 3), nm. Box vectors, (T, 3, 3) nm, one a row, are lower triangular as
        OpenMM, GROMACS and mdtraj have them; None where there is no box.
        """
        x = np.array(frames, dtype=np.float64)
        if box is None:
            return x
        return join_bonded(x, np.asarray(box, dtype=np.float64), self._edges)

    def __call__(
        self, frames: NDArray[np.float64], first: int = 0
    ) -> tuple[NDArray[np.float64], int]:
        """Check whole frames (T, N, 3), nm, and number equivalent atoms as in the molecule.

        `first` is the number of the first of them, for messages. Returns the frames with equivalent
        hydrogens (and other branches) renumbered, and how many frames that changed. For a frame
        that is not finite, has an impossible bond, or another handedness, a ValueError names frame
        and atoms.
        """
        finite = np.isfinite(frames).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(f"frame {first + int(np.argmin(finite))} is not finite")
        self.bonds(frames, first)
        return self._check_handedness(frames, first)

    def bonds(self, frames: NDArray[np.float64], first: int) -> None:
        """Refuse frames with an impossible bond; arguments and errors as of a call."""
        vectors = frames[:, self._bonds[:, 1]] - frames[:, self._bonds[:, 0]]
        lengths = np.linalg.norm(vectors, axis=-1)
        if not lengths.size:
            return
        usual = np.median(lengths, axis=0)
        windows = np.array([_HEAVY_BOND_NM, _HYDROGEN_BOND_NM])[self._to_hydrogen.astype(int)]
        low = np.maximum(windows[:, 0], usual * (1.0 - _STRETCH))
        high = np.minimum(windows[:, 1], usual * (1.0 + _STRETCH))
        wrong = np.argwhere((lengths < low) | (lengths > high))
        if not len(wrong):
            return
        frame, bond = map(int, wrong[0])
        one, two = (self.molecule.label(int(k)) for k in self._bonds[bond])
        raise ValueError(
            f"frame {first + frame}: the bond between {one} and {two} is "
            f"{lengths[frame, bond]:.3f} nm long, which is impossible: is the molecule broken "
            "across a box that the file does not tell, are the atoms those of the topology, and "
            "are the lengths in nm?"
        )

    def _check_handedness(
        self, frames: NDArray[np.float64], first: int
    ) -> tuple[NDArray[np.float64], int]:
        handedness = self.molecule.handedness
        changed = np.zeros(len(frames), dtype=np.bool_)
        # The order of the rows matters: see Handedness.
        for row in map(int, np.flatnonzero(~handedness.stereo)):
            other = signed_volume(frames, handedness.centres[row]) * handedness.signs[row] < 0
            if other.any():
                frames = frames.copy() if not changed.any() else frames
                frames[other] = frames[other][:, handedness.swaps[row]]
                changed |= other
        for row in range(len(handedness.signs)):
            wrong = signed_volume(frames, handedness.centres[row]) * handedness.signs[row] <= 0
            if wrong.any():
                centre = self.molecule.label(int(handedness.centres[row, 0]))
                how = "in every frame" if wrong.all() else "but not in every frame"
                raise ValueError(
                    f"frame {first + int(np.argmax(wrong))}: {centre} has the other "
                    f"handedness than the molecule ({how}): this is another stereoisomer, or the "
                    "atoms are in another order"
                )
        return frames, int(changed.sum())


def constraint_lengths(molecule: Molecule, frames: NDArray[np.float64]) -> list[list[float]]:
    """Find the bonds to hydrogen that do not vibrate: [heavy atom, hydrogen, length in nm] each.

    Frames are (T, N, 3), nm; fewer than ten do not tell, and nothing is found in them.
    """
    if len(frames) < 10:
        return []
    found: list[list[float]] = []
    for i, j in molecule.bonds:
        if molecule.atomic_numbers[i] == 1:
            i, j = j, i
        if molecule.atomic_numbers[i] == 1 or molecule.atomic_numbers[j] != 1:
            continue
        lengths = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)
        if lengths.std() < _CONSTRAINED_NM:
            found.append([i, j, round(float(lengths.mean()), 6)])
    return found


def missing_hydrogens(molecule: Molecule, frames: NDArray[np.float64]) -> str:
    """Say where carbon has fewer neighbours than its geometry asks for; nothing if it has them all.

    Carbon with three neighbours is flat and with two it is straight; where it is not, hydrogens
    were left out. Force fields with united atoms leave out just those of carbon. The mean geometry
    of the frames, (T, N, 3) nm, counts.
    """
    for atom, around in enumerate(neighbours_of(molecule.n_atoms, molecule.bonds)):
        if molecule.atomic_numbers[atom] != 6:
            continue
        arms = frames[:, around] - frames[:, atom : atom + 1]
        lengths = np.linalg.norm(arms, axis=-1, keepdims=True)
        arms = arms / lengths
        if len(around) == 3:
            # A tetrahedral centre has 0.77.
            complete = abs(float(np.linalg.det(arms).mean())) < 0.45
        elif len(around) == 2:
            complete = float((arms[:, 0] * arms[:, 1]).sum(-1).mean()) < -0.87  # 150 degrees
        elif len(around) == 1:
            complete = float(lengths.mean()) < 0.13  # a triple bond: isonitriles, carbon monoxide
        else:
            complete = len(around) > 3
        if not complete:
            return (
                f"hydrogens are missing: {molecule.label(atom)} is carbon with {len(around)} "
                "neighbours and no geometry that goes with it; models need all atoms"
            )
    return ""
