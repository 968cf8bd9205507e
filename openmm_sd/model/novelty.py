"""How far a frame is from the frames a model was trained on.

A network answers any frame, also one that its training data say nothing about. The novelty score
looks at the frame before the network does: each atom's surroundings become a vector that does not
change when the molecule turns, moves, is mirrored or has equivalent atoms exchanged, and each
vector is compared with what the training data have for that kind of atom.

The vectors are the atomic environment vectors of ANI (Smith, Isayev, Roitberg, Chem. Sci. 8, 3192,
2017, equations 3 and 4), with the parameters of ANI-2x (Devereux et al., J. Chem. Theory Comput.
16, 4192, 2020). torchani's ``AEVComputer`` makes them, also in the TorchScript of the bridges.
"""

# No "from __future__ import annotations": TorchScript reads the annotations of what it compiles.

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..molecule.molecule import Molecule

_ANGSTROM_PER_NM = 10.0

#: Directions kept for an environment; what is left over has one variance for all directions.
_COMPONENTS = 48
#: Added to every variance (vectors have no unit): below it lies rounding, and what a short MD run
#: happened not to visit.
_VARIANCE_FLOOR = 1e-5
#: Frames that the statistics are made from, at most: of alanine dipeptide they take 12 s
#: on one CPU core.
_MOST_FRAMES = 20_000
#: Share of the held-out frames whose scores the threshold does not look at.
_OUTLIERS = 1e-4
#: The threshold is this many times the largest held-out score that is looked at.
_MARGIN = 1.25
#: Without held-out frames this share of the frames, the last ones, is kept out of the statistics.
_HELD_OUT = 0.1
#: Frames that are worked on at once: their vectors stay in the processor's cache.
_CHUNK = 64


class EnvironmentVectors(torch.nn.Module):
    """Atomic environment vectors of one molecule, by torchani, with ANI-2x's functions.

    The elements that occur, in ascending order, are the species; `elements` may name more. The
    vector of an atom has `length` numbers: 16 for each element and 32 for each pair of elements.
    """

    species: Tensor

    def __init__(
        self, atomic_numbers: Sequence[int], elements: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # It says which of its CUDA extensions are not compiled; TorchScript cannot hold them.
            warnings.filterwarnings("ignore", "The extensions", UserWarning)
            from torchani.aev import AEVComputer
        elements = sorted(set(atomic_numbers) if elements is None else elements)
        self.computer = AEVComputer.like_2x(num_species=len(elements))
        self.length: int = self.computer.out_dim
        self.angstrom_per_nm = _ANGSTROM_PER_NM
        species = torch.tensor([elements.index(z) for z in atomic_numbers])
        self.register_buffer("species", species)
        # All follow from the molecule: a bundle need not hold them.
        for module in self.modules():
            for name, value in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, value, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the vectors of every atom, (B, N, length) float32.

        Frames are (B, N, 3) float32, nm, whole, finite.
        """
        species = self.species.unsqueeze(0).repeat(frames.shape[0], 1)
        # torchani wants coordinates without gaps.
        return self.computer(species, (frames * self.angstrom_per_nm).contiguous())


class Novelty(torch.nn.Module):
    """Score of a frame: how far its atoms' surroundings are from those of the training frames.

    Parameters
    ----------
    atomic_numbers : sequence of int
        One an atom.
    environment : Tensor
        (N,) int64: which statistics an atom is compared with, 0 to E - 1. Atoms that the bond graph
        cannot tell apart share one.
    mean : Tensor
        (E, D) float32: mean of the square roots of the vectors.
    axes : Tensor
        (E, D, K) float16: orthonormal directions of the largest variance.
    weight : Tensor
        (E, K + 1) float32: what a deviation along each direction is multiplied with, and last what
        lies outside of all of them.
    threshold : float
        Score beyond which a frame is called novel.
    elements : sequence of int, optional
        The elements that the vectors tell apart, where these are more than the molecule has.
    windows : sequence of (int, int, float, float)
        Atom, atom, shortest and longest distance, nm: a frame with a distance outside is novel.

    Notes
    -----
    With the vector v of an atom, c = sqrt(v) - mean, and y the components of c along the axes, the
    atom's score is the root of ``sum((weight[k] * y[k])**2) + (weight[K] * |c - axes y|)**2``: a
    Mahalanobis distance, divided by the largest that a training frame has for that kind of atom.
    The score of the frame is that of its worst atom. 1 is the edge of the training frames.

    The square root makes the far ends of the symmetry functions, which change by orders of
    magnitude within a bond's vibration, comparable with their middle.
    """

    STATISTICS: ClassVar = ("environment", "mean", "axes", "weight")
    atom_mean: Tensor
    atom_axes: Tensor
    atom_weight: Tensor
    ends: Tensor
    middle: Tensor
    half_width: Tensor

    def __init__(
        self,
        atomic_numbers: Sequence[int],
        environment: Tensor,
        mean: Tensor,
        axes: Tensor,
        weight: Tensor,
        threshold: float,
        elements: Sequence[int] | None = None,
        windows: Sequence[tuple[int, int, float, float]] = (),
    ) -> None:
        super().__init__()
        self.vectors = EnvironmentVectors(atomic_numbers, elements)
        self.atomic_numbers = tuple(int(z) for z in atomic_numbers)
        self.elements = sorted(set(atomic_numbers) if elements is None else elements)
        self.n_atoms = len(atomic_numbers)
        tensors = {"environment": environment, "mean": mean, "axes": axes, "weight": weight}
        _check(self.n_atoms, self.vectors.length, tensors)
        if not (math.isfinite(threshold) and threshold > 0.0):
            raise ValueError(f"novelty: the threshold must be a positive number, got {threshold!r}")
        self.threshold = float(threshold)
        self.chunk = _CHUNK
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone())
        # One copy an atom: gathering them for every frame costs more than the rest of the score.
        self.register_buffer("atom_mean", mean[environment].clone(), persistent=False)
        self.register_buffer("atom_axes", axes[environment].float(), persistent=False)
        self.register_buffer("atom_weight", weight[environment].clone(), persistent=False)
        self.n_windows = len(windows)
        ends = torch.tensor([row[:2] for row in windows], dtype=torch.int64).reshape(-1, 2)
        low, high = torch.tensor([row[2:] for row in windows]).reshape(-1, 2).unbind(1)
        self.register_buffer("ends", ends, persistent=False)
        self.register_buffer("middle", 0.5 * (low + high), persistent=False)
        self.register_buffer("half_width", 0.5 * (high - low), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the score of each frame, (B,) float32 without a unit.

        Infinite for a frame that holds NaN or infinity.

        Parameters
        ----------
        frames : Tensor
            (B, N, 3) float32, nm, whole, in the molecule's atom order.
        """
        scores = torch.empty([frames.shape[0]], dtype=frames.dtype, device=frames.device)
        for begin in range(0, frames.shape[0], self.chunk):
            part = frames[begin : begin + self.chunk]
            scores[begin : begin + self.chunk] = self.by_atom(part).amax(dim=1)
        if self.n_windows > 0:
            apart = frames[:, self.ends[:, 0]] - frames[:, self.ends[:, 1]]
            off = torch.linalg.vector_norm(apart, dim=-1) - self.middle
            outside = (off.abs() / self.half_width).amax(dim=1)
            # At a window's edge the score is at the threshold.
            scores = torch.maximum(scores, torch.nan_to_num(self.threshold * outside, math.inf))
        return scores

    def by_atom(self, frames: Tensor) -> Tensor:
        """Return the score of each atom, (B, N): `forward` takes the largest of them."""
        finite = torch.isfinite(frames).flatten(1).all(dim=1)
        safe = torch.where(finite.reshape(-1, 1, 1), frames, torch.zeros_like(frames))
        # The cosine of the cutoff leaves -1e-8 behind.
        root = torch.sqrt(torch.clamp(self.vectors(safe), min=0.0))
        away = (root - self.atom_mean).transpose(0, 1)
        along = torch.matmul(away, self.atom_axes)
        rest = away - torch.matmul(along, self.atom_axes.transpose(1, 2))
        beyond = torch.linalg.vector_norm(rest, dim=2, keepdim=True)
        scaled = torch.cat([along, beyond], dim=2) * self.atom_weight.unsqueeze(1)
        score = torch.linalg.vector_norm(scaled, dim=2).t()
        known = torch.logical_and(finite.unsqueeze(1), torch.isfinite(score))
        return torch.where(known, score, torch.full_like(score, math.inf))


def hold_out(
    frames: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Split frames in their order: all but the last tenth, and the last tenth, at least one."""
    cut = len(frames) - max(1, round(_HELD_OUT * len(frames)))
    return frames[:cut], frames[cut:]


def fit_novelty(
    molecule: Molecule,
    frames: ArrayLike,
    held_out: ArrayLike | None = None,
    *,
    components: int = _COMPONENTS,
    most_frames: int = _MOST_FRAMES,
    seed: int = 1,
) -> Novelty:
    """Make the statistics of the training frames, and a threshold from frames held out.

    Parameters
    ----------
    frames : array
        (T, N, 3), nm, whole, in the molecule's atom order: what the model was trained on.
    held_out : array, optional
        The same of other runs: the threshold is 1.25 times the score that 1 in 10,000 of them
        exceeds, and at least 1.25. By default the last tenth of `frames`, left out of the
        statistics.
    components : int
        Directions kept for an environment.
    most_frames : int
        More frames than this are thinned, those held out likewise.
    seed : int
        Seed of the thinning.

    Returns
    -------
    Novelty
        On the CPU.
    """
    known = _frames("frames", frames, molecule.n_atoms)
    if held_out is None:
        known, others = hold_out(known)
    else:
        others = _frames("held_out", held_out, molecule.n_atoms)
    if len(known) < 2:
        raise ValueError("novelty: wanted are at least 2 training frames and one held out")
    rng = np.random.default_rng(seed)
    known, others = (_thinned(some, most_frames, rng) for some in (known, others))

    environment = torch.tensor(molecule.equivalent_atoms)
    vectors = EnvironmentVectors(molecule.atomic_numbers)
    mean, covariance = _moments(vectors, environment, known)
    variance, axes = torch.linalg.eigh(covariance)
    variance, axes = variance.flip(1).clamp(min=0.0), axes.flip(2)
    count = min(components, vectors.length - 1)
    rest = variance[:, count:].mean(dim=1, keepdim=True)
    variance = torch.cat([variance[:, :count], rest], dim=1) + _VARIANCE_FLOOR

    def novelty(weight: Tensor, threshold: float) -> Novelty:
        return Novelty(
            molecule.atomic_numbers,
            environment,
            mean.float(),
            # Half precision halves a bundle's growth; scores change by less than 1 in 1,000.
            axes[:, :, :count].half(),
            weight.float(),
            threshold,
        )

    weight = variance.rsqrt()
    plain = novelty(weight, 1.0)
    farthest = torch.zeros(len(mean))
    for part in _parts(known):
        most = plain.by_atom(part).amax(dim=0)
        farthest.scatter_reduce_(0, environment, most, "amax")
    weight = weight / farthest.double().clamp(min=1e-6).unsqueeze(1)
    found = novelty(weight, 1.0)
    scores = torch.cat([found(part) for part in _parts(others)])
    edge = float(torch.quantile(scores.double(), 1.0 - _OUTLIERS, interpolation="higher"))
    found.threshold = round(_MARGIN * max(1.0, edge), 4)
    return found


def _check(n_atoms: int, length: int, tensors: dict[str, Tensor]) -> None:
    environment, mean = tensors["environment"], tensors["mean"]
    if environment.dtype != torch.int64 or environment.shape != (n_atoms,):
        raise ValueError(
            f"novelty: environment must be int64 of shape ({n_atoms},), got "
            f"{tuple(environment.shape)} {environment.dtype}"
        )
    count = len(mean) if mean.dim() else 0
    if int(environment.min()) < 0 or int(environment.max()) >= count:
        raise ValueError(f"novelty: environment must lie in 0 to {count - 1}, the rows of mean")
    kept = tensors["axes"].shape[-1] if tensors["axes"].dim() else 0
    for name, shape, dtype in (
        ("mean", (count, length), torch.float32),
        ("axes", (count, length, kept), torch.float16),
        ("weight", (count, kept + 1), torch.float32),
    ):
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(
                f"novelty: {name} must be {dtype} of shape {shape}, got {tuple(tensor.shape)} "
                f"{tensor.dtype}"
            )


def _frames(what: str, frames: ArrayLike, n_atoms: int) -> NDArray[np.float32]:
    array = np.asarray(frames, dtype=np.float32)
    if array.ndim != 3 or array.shape[1:] != (n_atoms, 3) or not len(array):
        raise ValueError(f"novelty: {what} must have shape (T, {n_atoms}, 3), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"novelty: {what} hold NaN or infinity")
    return array


def _thinned(
    frames: NDArray[np.float32], most: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    if len(frames) <= most:
        return frames
    return frames[np.sort(rng.choice(len(frames), most, replace=False))]


def _parts(frames: NDArray[np.float32]) -> list[Tensor]:
    return list(torch.from_numpy(frames).split(_CHUNK))


def _moments(
    vectors: EnvironmentVectors, environment: Tensor, frames: NDArray[np.float32]
) -> tuple[Tensor, Tensor]:
    """Return mean (E, D) and covariance (E, D, D) of the roots of the vectors, float64."""
    count, length = int(environment.max()) + 1, vectors.length
    members = [torch.nonzero(environment == e).flatten() for e in range(count)]
    total = torch.zeros(count, length, dtype=torch.float64)
    squares = torch.zeros(count, length, length, dtype=torch.float64)
    # Sums of differences from the first frame: variances are small beside the means.
    origin: Tensor | None = None
    for part in _parts(frames):
        root = torch.sqrt(torch.clamp(vectors(part), min=0.0))
        if origin is None:
            origin = torch.stack([root[0, atoms[0]] for atoms in members])
        for e, atoms in enumerate(members):
            away = (root[:, atoms] - origin[e]).reshape(-1, length)
            total[e] += away.double().sum(dim=0)
            squares[e] += (away.t() @ away).double()
    size = torch.tensor([[len(atoms) * len(frames)] for atoms in members])
    mean = total / size
    covariance = squares / size.unsqueeze(2) - mean.unsqueeze(2) * mean.unsqueeze(1)
    assert origin is not None
    return mean + origin, covariance
