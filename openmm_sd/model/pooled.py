"""How far a frame of a molecule without data is from what a model's own molecules looked like.

The surroundings of atoms, as `novelty` describes them, are pooled over all molecules that a model
was trained on. What makes them comparable is the kind of an atom: its element, its hydrogens, and
the elements that it is bonded to; of a hydrogen, those of the atom that it sits on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..molecule.graph import atom_kinds, neighbours_of
from ..molecule.molecule import Molecule
from .card import Window
from .novelty import EnvironmentVectors, Novelty

#: Hydrogen or not, then of the heavy atom: element, hydrogens, heavy neighbours, their elements.
Surroundings: TypeAlias = tuple[int, ...]

_MOST_NEIGHBOURS: Final = 4
_LENGTH: Final = 4 + _MOST_NEIGHBOURS
#: Directions in which an element's kinds differ from their means; they share these.
_COMPONENTS: Final = 24
#: Frames of a molecule that are looked at, at most; held-out ones likewise.
_MOST_FRAMES: Final = 500
#: A kind that one place of one molecule shows is taken to be this much wider than there: squared,
#: and falling with the number of places. How it differs from place to place is not known then.
_UNKNOWN_SPREAD: Final = 15.0
_FLOOR: Final = 1e-5
_OUTLIERS: Final = 1e-4
_MARGIN: Final = 1.25
_CHUNK: Final = 64
#: Weight of what was never seen: any frame is novel.
_NEVER: Final = 1e6


class PooledNovelty:
    """What the surroundings of atoms were, by kind, in the molecules that a model was trained on.

    Attributes
    ----------
    tensors : dict of str to Tensor
        ``elements`` (E) int64, ascending; ``kinds`` (M, 8) int64, see `Surroundings`, zeros where
        there is no neighbour; ``mean`` (M, D) float16 of the roots of the vectors; ``basis``
        (E, D, K) float16, the directions of an element's kinds; ``turn`` (M, K, K) float16, the
        axes of a kind in them; ``weight`` (M, K + 1) float32 as `Novelty` has it; ``threshold``
        (1) float32.
    """

    TENSORS: Final = ("elements", "kinds", "mean", "basis", "turn", "weight", "threshold")

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors.keys() != set(self.TENSORS):
            raise ValueError(
                f"pooled novelty: wanted are the tensors {', '.join(self.TENSORS)}, found "
                f"{', '.join(sorted(tensors))}"
            )
        self.tensors = {name: tensors[name].detach().cpu() for name in self.TENSORS}
        self.elements = [int(z) for z in self.tensors["elements"].reshape(-1)]
        _check(self.tensors)
        self.threshold = round(float(self.tensors["threshold"]), 4)
        self._row = {tuple(row): k for k, row in enumerate(self.tensors["kinds"].tolist())}

    def unknown(self, molecule: Molecule) -> list[int]:
        """Return the atoms of kinds that no molecule trained on has."""
        return [k for k, kind in enumerate(surroundings(molecule)) if kind not in self._row]

    def of(self, molecule: Molecule, windows: Sequence[Window] = ()) -> Novelty:
        """Return the score of a molecule's frames, every one novel if it has unknown atoms.

        A frame with a distance outside of its window is novel, too: bonds, and torsions that do
        not turn, say more about themselves than surroundings that are pooled.
        """
        own = surroundings(molecule)
        kinds = list(dict.fromkeys(own))
        elements = sorted({*self.elements, *molecule.atomic_numbers})
        # Columns that vectors of more elements have beside those that were seen.
        place = _columns(self.elements, elements)
        t = self.tensors
        length, count = _length(len(elements)), t["basis"].shape[-1]
        mean = torch.zeros(len(kinds), length)
        axes = torch.zeros(len(kinds), length, count)
        weight = torch.full((len(kinds), count + 1), _NEVER)
        for k, kind in enumerate(kinds):
            row = self._row.get(kind)
            if row is not None:
                basis = t["basis"][self.elements.index(_element(kind))].float()
                mean[k, place] = t["mean"][row].float()
                axes[k, place] = basis @ t["turn"][row].float()
                weight[k] = t["weight"][row]
        return Novelty(
            molecule.atomic_numbers,
            torch.tensor([kinds.index(kind) for kind in own]),
            mean,
            axes.half(),
            weight,
            self.threshold,
            elements=elements,
            windows=windows,
        )


def surroundings(molecule: Molecule) -> list[Surroundings]:
    """Return the kind of each atom."""
    z = molecule.atomic_numbers
    kinds = atom_kinds(z, molecule.bonds)
    near = neighbours_of(molecule.n_atoms, molecule.bonds)

    def kind(atom: int) -> Surroundings:
        heavy = atom if z[atom] != 1 or not near[atom] else near[atom][0]
        around = sorted(int(z[k]) for k in near[heavy] if z[k] != 1)[:_MOST_NEIGHBOURS]
        around += [0] * (_MOST_NEIGHBOURS - len(around))
        return (int(z[atom] == 1), *kinds[heavy], *around)

    return [kind(atom) for atom in range(molecule.n_atoms)]


def fit_pooled(
    data: Sequence[tuple[Molecule, NDArray[np.floating[Any]], NDArray[np.floating[Any]]]],
) -> PooledNovelty:
    """Make the statistics of several molecules.

    Each comes with frames trained on and frames held out, (T, N, 3), nm, whole, in its atom order;
    at most 500 of each are looked at. The threshold is 1.25 times the score that 1 in 10,000 of
    the held-out frames exceeds, and at least 1.25.
    """
    elements = sorted({z for molecule, *_ in data for z in molecule.atomic_numbers})
    length = _length(len(elements))
    kinds = sorted({kind for molecule, *_ in data for kind in surroundings(molecule)})
    row = {kind: k for k, kind in enumerate(kinds)}
    places = [set[tuple[int, int]]() for _ in kinds]
    total = torch.zeros(len(kinds), length, dtype=torch.float64)
    squares = torch.zeros(len(kinds), length, length, dtype=torch.float64)
    number = torch.zeros(len(kinds), dtype=torch.float64)
    for one, (molecule, frames, _) in enumerate(data):
        rows = torch.tensor([row[kind] for kind in surroundings(molecule)])
        for atom, k in enumerate(rows.tolist()):
            places[k].add((one, molecule.equivalent_atoms[atom]))
        for root in _roots(molecule, elements, frames):
            for k in set(rows.tolist()):
                part = root[:, rows == k].reshape(-1, length).double()
                total[k] += part.sum(0)
                squares[k] += part.T @ part
                number[k] += len(part)
    mean = (total / number[:, None]).half()
    away = mean.double()
    # About the mean as it is stored.
    covariance = squares / number[:, None, None] - 2.0 * _outer(away, total / number[:, None])
    covariance += _outer(away, away)
    covariance = 0.5 * (covariance + covariance.transpose(1, 2))
    basis = torch.zeros(len(elements), length, min(_COMPONENTS, length - 1), dtype=torch.float64)
    for e, z in enumerate(elements):
        own = [covariance[row[k]] for k in kinds if _element(k) == z]
        common = sum(c / c.trace().clamp(min=_FLOOR) for c in own)
        basis[e] = torch.linalg.eigh(torch.as_tensor(common))[1].flip(1)[:, : basis.shape[-1]]
    stored = basis.half()
    turn, weight = [], []
    for k, kind in enumerate(kinds):
        axes = stored[elements.index(_element(kind))].double()
        inside = axes.T @ covariance[k] @ axes
        variance, own_axes = torch.linalg.eigh(inside)
        rest = (covariance[k].trace() - inside.trace()) / (length - len(inside))
        variance = torch.cat([variance, rest.reshape(1)]).clamp(min=0.0) + _FLOOR
        turn.append(own_axes)
        weight.append(variance.rsqrt())
    tensors = {
        "elements": torch.tensor(elements),
        "kinds": torch.tensor(kinds),
        "mean": mean,
        "basis": stored,
        "turn": torch.stack(turn).half(),
        "weight": torch.stack(weight).float(),
        "threshold": torch.ones(1),
    }
    farthest = _farthest(PooledNovelty(tensors), data, row)
    spread = torch.tensor([1.0 + _UNKNOWN_SPREAD / len(some) for some in places])
    tensors["weight"] = tensors["weight"] / (farthest * spread.sqrt())[:, None]
    found = PooledNovelty(tensors)
    scores = [found.of(molecule)(_some(held)) for molecule, _, held in data]
    edge = float(torch.quantile(torch.cat(scores), 1.0 - _OUTLIERS, interpolation="higher"))
    tensors["threshold"] = torch.tensor([_MARGIN * max(1.0, edge)])
    return PooledNovelty(tensors)


def _farthest(
    pooled: PooledNovelty,
    data: Sequence[tuple[Molecule, NDArray[np.floating[Any]], NDArray[np.floating[Any]]]],
    row: Mapping[Surroundings, int],
) -> Tensor:
    """Return the largest score that a training frame has for each kind."""
    farthest = torch.zeros(len(row))
    for molecule, frames, _ in data:
        rows = torch.tensor([row[kind] for kind in surroundings(molecule)])
        score = pooled.of(molecule)
        for part in _some(frames).split(_CHUNK):
            farthest.scatter_reduce_(0, rows, score.by_atom(part).amax(dim=0), "amax")
    return farthest.clamp(min=1e-6)


def _some(frames: NDArray[np.floating[Any]]) -> Tensor:
    """Return frames evenly from a run's beginning to its end."""
    count = min(len(frames), _MOST_FRAMES)
    chosen = np.linspace(0, len(frames) - 1, count).astype(int)
    return torch.from_numpy(np.asarray(frames[chosen], dtype=np.float32))


def _roots(molecule: Molecule, elements: Sequence[int], frames: NDArray[Any]) -> list[Tensor]:
    vectors = EnvironmentVectors(molecule.atomic_numbers, elements)
    parts = _some(frames).split(_CHUNK)
    return [torch.sqrt(torch.clamp(vectors(part), min=0.0)) for part in parts]


def _element(kind: Surroundings) -> int:
    return 1 if kind[0] else kind[1]


def _outer(one: Tensor, two: Tensor) -> Tensor:
    product = one.unsqueeze(2) * two.unsqueeze(1)
    return 0.5 * (product + product.transpose(1, 2))


def _length(n_elements: int) -> int:
    """Numbers in the vector of an atom: see `EnvironmentVectors`."""
    return 16 * n_elements + 16 * n_elements * (n_elements + 1)


def _columns(some: Sequence[int], all_: Sequence[int]) -> Tensor:
    """Return where the numbers of vectors of some elements stand in those of more."""
    n, place = len(all_), [all_.index(z) for z in some]
    pairs = [(i, j) for i in range(n) for j in range(i, n)]
    mine = [(place[i], place[j]) for i in range(len(some)) for j in range(i, len(some))]
    starts = [16 * k for k in place]
    columns = [start + k for start in starts for k in range(16)]
    starts = [16 * n + 32 * pairs.index(pair) for pair in mine]
    return torch.tensor(columns + [start + k for start in starts for k in range(32)])


def _check(t: Mapping[str, Tensor]) -> None:
    n_elements, n_kinds = t["elements"].numel(), len(t["kinds"]) if t["kinds"].dim() else 0
    length, count = _length(n_elements), t["basis"].shape[-1] if t["basis"].dim() else 0
    wanted = {
        "elements": ((n_elements,), torch.int64),
        "kinds": ((n_kinds, _LENGTH), torch.int64),
        "mean": ((n_kinds, length), torch.float16),
        "basis": ((n_elements, length, count), torch.float16),
        "turn": ((n_kinds, count, count), torch.float16),
        "weight": ((n_kinds, count + 1), torch.float32),
        "threshold": ((1,), torch.float32),
    }
    for name, (shape, dtype) in wanted.items():
        if tuple(t[name].shape) != shape or t[name].dtype != dtype:
            raise ValueError(
                f"pooled novelty: {name} must be {dtype} of shape {shape}, got "
                f"{tuple(t[name].shape)} {t[name].dtype}"
            )
    if any(_element(tuple(kind)) not in t["elements"] for kind in t["kinds"].tolist()):
        raise ValueError("pooled novelty: a kind is of none of its elements")
