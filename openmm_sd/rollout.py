"""Rollouts: many chains of pure Score Dynamics, without water and without OpenMM, in batches.

`Rollout` holds the chains and moves all of them by one lag at a time; `run_rollout` writes them to
a directory, from which a run that was stopped or killed goes on exactly:

``trajectory.xtc`` or ``trajectory.h5``
    The frames of all chains in one file, step by step: first every chain after the first recorded
    step, in the order of the chains, then every chain after the second, and so on. Frame
    ``record * chains + chain`` is chain ``chain`` after step ``(record + 1) * every``; its time is
    that step's number times the lag, in ps. `read_rollout` puts them into an array. XTC rounds
    coordinates to 0.001 nm (bond lengths thus to about as much); HDF5, in mdtraj's layout, holds
    the float32 numbers that were computed (mdtraj needs PyTables to open it, `read_rollout` does
    not), and is written when the run ends.
``topology.pdb``
    The molecule, with the first chain's start.
``rollout.json``
    Counters, speeds and settings, see `run_rollout`.
``checkpoint.npz``
    Where the run stands.

Frames have their centroid at the origin and do not tumble: a learned jump carries no rotation.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .machine import versions
from .propagator.bundle import write_atomically
from .propagator.draw import STATUSES, Draw
from .propagator.jump import ERRORS, REJECTIONS, STATUS_ACCEPTED, Jump, JumpError, gates_of
from .propagator.model import ScoreModel
from .propagator.molecule import Molecule, match_atoms, read_topology
from .propagator.noise import MAX_SEED
from .propagator.script import script_if_possible
from .resumable import interrupts, locked, model_digest
from .trajectories import FORMATS as _TRAJECTORIES
from .trajectories import RAW_FILE, XTC_PRECISION_NM, write_hdf5, xtc_bytes

if TYPE_CHECKING:
    from .cluster import Where

#: File formats of a trajectory, with the file each one gives.
FORMATS: Final = {name: _TRAJECTORIES[name] for name in ("xtc", "h5")}

_CHECKPOINT: Final = "checkpoint.npz"
_SUMMARY: Final = "rollout.json"
_TOPOLOGY: Final = "topology.pdb"
_CHUNK_FRAMES: Final = 8192
"""Frames gathered before they are encoded and written."""

_REPORT_SECONDS: Final = 0.2
"""Steps of few chains are faster than anyone reads."""

_MAX_BOND: Final = 0.4
"""Longest bond (nm) believed in a start frame; I-I, a long one, has 0.27 nm."""

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class RolloutSettings:
    """What a rollout does.

    Attributes
    ----------
    chains : int
        Number of independent chains.
    steps : int
        Jumps a chain.
    lag_ps : float, optional
        Time that one jump covers, ps; the model's recommendation by default.
    seed : int
        Of the noise and of the choice of start frames.
    max_tries : int
        Draws of one step before a chain stays where it is for that step.
    device : str
        ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.
    batch : int
        Chains given to the network at once. Results depend on it by rounding only.
    """

    chains: int = 512
    steps: int = 100
    lag_ps: float | None = None
    seed: int = 1
    max_tries: int = 10
    device: str = "cpu"
    batch: int = 512

    def __post_init__(self) -> None:
        for name, limit in (
            ("chains", 2**31 - 1),
            ("steps", 2**31 - 1),
            ("max_tries", 2**31 - 1),
            ("batch", 2**31 - 1),
        ):
            _whole(name, getattr(self, name), 1, limit)
        _whole("seed", self.seed, 0, MAX_SEED)
        lag = self.lag_ps
        if lag is not None and (
            isinstance(lag, bool)
            or not isinstance(lag, (int, float))
            or not (0 < lag < float("inf"))
        ):
            raise ValueError(f"lag must be a positive number of ps, got {lag!r}")
        if not isinstance(self.device, str):
            raise ValueError(f"device must be a string, got {type(self.device).__name__}")


class Mover:
    """Moves chains by one lag: any chains, at any step.

    Parameters
    ----------
    model : ScoreModel
        Its first molecule is what the chains hold.
    settings : RolloutSettings
        `chains` and `steps` are not used here.

    Attributes
    ----------
    model : ScoreModel
    settings : RolloutSettings
    molecule : Molecule
    lag_ps : float
    device : torch.device
    """

    def __init__(self, model: ScoreModel, settings: RolloutSettings) -> None:
        self.model, self.settings = model, settings
        self.molecule = model.molecules[0]
        self.lag_ps = _checked_lag(model, settings.lag_ps)
        self.device = checked_device(settings.device)
        propagator = model.propagator
        if any(
            tensor.device != self.device
            for tensor in (*propagator.parameters(), *propagator.buffers())
        ):
            propagator = copy.deepcopy(propagator)
        jump = Jump(
            propagator,
            self.molecule,
            gates_of(model, self.molecule),
            model.constraint_lengths,
        )
        self._jump = jump.to(self.device).eval()
        # Compiled when it is first needed.
        self._draw: torch.nn.Module | None = None

    @torch.no_grad()
    def place(self, frames: NDArray[np.float64], numbers: NDArray[np.int64]) -> Tensor:
        """Return where chains start that begin with some of the frames.

        Raises
        ------
        ValueError
            If such a frame is a mirror image of the model's molecule.
        """
        start = torch.from_numpy(frames[numbers]).to(self.device)
        order, mirrored = self._jump.relabel(start)
        if bool(mirrored.any()):
            frame = int(numbers[int(mirrored.cpu().numpy().argmax())])
            raise ValueError(
                f"start frame {frame} is a mirror image of the model's {self.molecule.name} "
                "at a stereocentre"
            )
        start = self._jump.constrain(self._jump.reorder(start, order))
        return _centred(start).to(torch.float32)

    @torch.inference_mode()
    def __call__(self, frames: Tensor, step: int, first: int = 0) -> tuple[Tensor, Counter[str]]:
        """Move chains by one lag.

        Parameters
        ----------
        frames : Tensor
            (chains, N, 3) float32, where they are.
        step : int
            Number of the step, from 0.
        first : int
            Number of the first of these chains, from 0; the others follow it.

        Returns
        -------
        frames : Tensor
            Where they are then.
        counts : Counter
            What happened on the way.

        Raises
        ------
        JumpError
            If the propagator returns something that is no frame.
        """
        start = _centred(frames.to(torch.float64))
        new = frames.clone()
        chains = len(frames)
        counts: Counter[str] = Counter()
        pending = torch.arange(chains, dtype=torch.int64, device=self.device)
        for attempt in range(self.settings.max_tries):
            failed = torch.zeros(chains, dtype=torch.bool, device=self.device)
            found = torch.zeros(2 + STATUSES, dtype=torch.int64, device=self.device)
            for rows in pending.split(self.settings.batch):
                moved, status, tallies = self._draws(start[rows], rows + first, step, attempt)
                passed = status == STATUS_ACCEPTED
                new[rows] = torch.where(passed.reshape(-1, 1, 1), moved, new[rows])
                failed[rows] = ~passed
                found += tallies
            # The only places where a GPU is waited for.
            flips, swaps, *statuses = found.tolist()
            counts["chirality_flips"] += flips
            counts["equivalent_swaps"] += swaps
            counts["draws"] += len(pending)
            for code, name in REJECTIONS.items():
                counts[name] += statuses[code]
            failures = len(pending) - statuses[STATUS_ACCEPTED]
            if attempt == 0:
                counts["first_draw_failures"] += failures
            else:
                counts["redraws"] += len(pending)
            pending = pending[:0] if failures == 0 else failed.nonzero().squeeze(1)
            if failures == 0:
                break
        counts["fallbacks"] += len(pending)
        return new, counts

    def _draws(
        self, start: Tensor, rows: Tensor, step: int, attempt: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw once for some chains: frames, statuses, and the counts of what happened."""
        if self._draw is None:
            self._draw = script_if_possible(Draw(self._jump))
        frames, status, tallies, error = self._draw(
            start, rows, step, attempt, self.settings.seed, self.lag_ps
        )
        if error:
            raise JumpError(ERRORS[error])
        return frames, status, tallies


class Rollout:
    """Chains of pure Score Dynamics, moved all at once.

    Parameters
    ----------
    model : ScoreModel
        Its first molecule is what the chains hold. Of a family give a member.
    settings : RolloutSettings, optional
        `steps` is not used here: call `advance` as often as you like.
    frames : array, shape (M, N, 3), optional
        Frames to start from, nm, whole, in the order of the molecule's atoms. The model's own
        `start_frames` by default. Every chain draws one: with up to M chains no frame is drawn
        twice, with up to 2 M none three times, and so on.

    Attributes
    ----------
    model : ScoreModel
    settings : RolloutSettings
    molecule : Molecule
    lag_ps : float
    device : torch.device

    Raises
    ------
    ValueError
        If the lag is outside the model's range, or there are no frames to start from, or they are
        not the model's molecule.

    Notes
    -----
    One step of a chain: draw noise, call the propagator, put constrained X-H bonds to their length,
    ask the gates; if one says no, draw again, up to `max_tries` times, only then stay; renumber
    equivalent atoms (methyl hydrogens) that came back in another order. The code is that of the
    jumps in a mixed run.

    The noise of a chain depends on the seed, the step, the try and the number of the chain: not on
    how many chains there are, nor on what happens to the others.

    Examples
    --------
    >>> model = ScoreModel.load("ala2-water")                    # doctest: +SKIP
    >>> rollout = Rollout(model, RolloutSettings(chains=100))    # doctest: +SKIP
    >>> frames = rollout.advance()                               # doctest: +SKIP
    """

    def __init__(
        self,
        model: ScoreModel,
        settings: RolloutSettings | None = None,
        frames: ArrayLike | None = None,
    ) -> None:
        self.model = model = model.only()
        self.settings = settings or RolloutSettings()
        self._mover = Mover(model, self.settings)
        self.molecule, self.lag_ps = self._mover.molecule, self._mover.lag_ps
        self.device = self._mover.device
        if frames is None:
            frames = model.start_frames
            if frames is None:
                raise ValueError(
                    "the model carries no start frames: give a structure or trajectory of "
                    f"{self.molecule.name} to start from"
                )
        given = _checked_frames(frames, self.molecule.n_atoms)
        chosen = _draw(len(given), self.settings.chains, self.settings.seed)
        self._frames = self._mover.place(given, chosen)
        self._step = 0
        self._seconds = 0.0
        self._counts: Counter[str] = Counter()

    @property
    def device_kind(self) -> str:
        """Kind of device that the chains are moved on."""
        return self.device.type

    @property
    def device_name(self) -> str:
        """The device for people."""
        return device_name(self.device)

    @property
    def step_number(self) -> int:
        """Number of steps made."""
        return self._step

    @property
    def frames(self) -> NDArray[np.float32]:
        """Where the chains are, (chains, N, 3), nm, each with its centroid at the origin."""
        return self._frames.cpu().numpy().copy()

    def advance(self) -> NDArray[np.float32]:
        """Move every chain by one lag.

        Returns
        -------
        ndarray, shape (chains, N, 3)
            The new frames, nm.

        Raises
        ------
        JumpError
            If the propagator returns something that is no frame.
        """
        self.step()
        return self.frames

    def step(self, stopped: Callable[[], bool] | None = None) -> bool:
        """Move every chain by one lag and leave the frames on the device.

        Parameters
        ----------
        stopped : callable, optional
            Asked whether to give up where others have to be waited for; nothing is moved then.

        Returns
        -------
        bool
            Whether the chains were moved.
        """
        began = time.perf_counter()
        self._frames, counts = self._mover(self._frames, self._step)
        self._counts += counts
        self._step += 1
        self._seconds += time.perf_counter() - began
        return True

    def statistics(self) -> dict[str, Any]:
        """Return what was counted so far.

        Returns
        -------
        dict
            ``jumps``: proposals that were accepted; ``draws``: all proposals;
            ``first_draw_failures``: steps of a chain whose first proposal failed; ``rejections``:
            by gate, the proposals it turned down, the first gate that said no counting;
            ``chirality_flips``: proposals with a stereocentre turned over, whatever gate turned
            them down; ``equivalent_swaps``: accepted proposals in which equivalent atoms came back
            in another order; ``redraws``; ``fallbacks``: steps at which a chain stayed where it
            was; ``seconds``: time in `advance`.
        """
        counts = self._counts
        rejections = {name: counts[name] for name in REJECTIONS.values()}
        return {
            "jumps": counts["draws"] - sum(rejections.values()),
            "draws": counts["draws"],
            "first_draw_failures": counts["first_draw_failures"],
            "rejections": rejections,
            "chirality_flips": counts["chirality_flips"],
            "equivalent_swaps": counts["equivalent_swaps"],
            "redraws": counts["redraws"],
            "fallbacks": counts["fallbacks"],
            "seconds": self._seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on exactly: one array, the rest JSON-able."""
        return {
            "frames": self.frames,
            "step": self._step,
            "seconds": self._seconds,
            "counts": dict(self._counts),
            "lag_ps": self.lag_ps,
            "seed": self.settings.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a rollout with the same model and settings.

        Parameters
        ----------
        state : mapping
            From `state_dict`.

        Raises
        ------
        ValueError
            If it belongs to another rollout.
        """
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise ValueError(f"state lacks {', '.join(missing)}")
        for key, own in (("lag_ps", self.lag_ps), ("seed", self.settings.seed)):
            if state[key] != own:
                raise ValueError(f"state belongs to {key} = {state[key]}, this rollout has {own}")
        frames = np.asarray(state["frames"], dtype=np.float32)
        if frames.shape != tuple(self._frames.shape):
            raise ValueError(
                f"state has frames of shape {frames.shape}, this rollout "
                f"{tuple(self._frames.shape)}"
            )
        self._frames = torch.from_numpy(frames.copy()).to(self.device)
        self._step = int(state["step"])
        self._seconds = float(state["seconds"])
        self._counts = Counter({str(k): int(n) for k, n in state["counts"].items()})


def read_start_frames(
    path: Any,
    molecule: Molecule,
    topology: str | os.PathLike[str] | None = None,
) -> NDArray[np.float64]:
    """Read frames of a molecule from a structure or a trajectory.

    Parameters
    ----------
    path : str, PathLike or mdtraj.Trajectory
        Anything mdtraj reads, or what it has read. The molecule is found by its bond graph, in any
        numbering, among water and ions if there are any, broken across the box or not. Several
        copies give as many frames.
    molecule : Molecule
        What is looked for.
    topology : str or PathLike, optional
        A file with the topology, for formats that have none (XTC, DCD).

    Returns
    -------
    ndarray, shape (M, N, 3)
        nm, whole, in the order of the molecule's atoms.

    Raises
    ------
    ValueError
        If the file cannot be read or does not hold the molecule.
    """
    import mdtraj

    loaded = path if isinstance(path, mdtraj.Trajectory) else None
    file: Path | str = "the trajectory" if loaded is not None else Path(path)
    for given in (None if loaded is not None else path, topology):
        if given is not None and not Path(given).is_file():
            raise ValueError(f"start: {given}: no such file")
    extra = {} if topology is None else {"top": os.fspath(topology)}
    try:
        first = loaded if loaded is not None else mdtraj.load_frame(str(file), 0, **extra)
        # Without a molecule to select, so that a box of water is read atom by atom of interest.
        copies = _copies(molecule, first.topology.copy())
        if loaded is not None:
            trajectory = loaded.atom_slice(np.unique(copies))
        else:
            trajectory = mdtraj.load(str(file), atom_indices=np.unique(copies), **extra)
    except _NotFound as error:
        raise ValueError(f"start: {file}: {error}") from None
    except Exception as error:  # readers of many formats raise whatever they stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "" if topology is not None else "; a format without a topology needs one beside it"
        raise ValueError(f"start: mdtraj cannot read {file}: {reason}{hint}") from error
    place = np.searchsorted(np.unique(copies), copies)
    frames = np.asarray(trajectory.xyz[:, place], dtype=np.float64)
    if trajectory.unitcell_vectors is not None:
        for frame, box in zip(frames, trajectory.unitcell_vectors, strict=True):
            for one in frame:
                one[:] = _whole_molecule(molecule, one, np.asarray(box, dtype=np.float64))
    frames = frames.reshape(-1, molecule.n_atoms, 3)
    i, j = np.array(molecule.bonds).reshape(-1, 2).T
    longest = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1).max(axis=1, initial=0.0)
    if not np.isfinite(frames).all():
        raise ValueError(f"start: {file}: not all coordinates are finite")
    if (longest > _MAX_BOND).any():
        raise ValueError(
            f"start: {file}: frame {int(longest.argmax())} has a bond of {longest.max():.3f} nm: "
            "the molecule is broken, perhaps across a box that the file does not hold"
        )
    return frames


class _NotFound(ValueError):
    """The molecule is not in a topology."""


def _copies(molecule: Molecule, topology: Any) -> NDArray[np.int64]:
    """Atoms of every copy of a molecule in an mdtraj Topology, (copies, N), molecule's order."""
    if topology.n_bonds == 0:
        topology.create_standard_bonds()
    table = read_topology(topology)
    wanted = Counter(molecule.atomic_numbers)
    copies = []
    for atoms in table.components():
        if len(atoms) == molecule.n_atoms and wanted == Counter(
            table.atomic_numbers[i] for i in atoms
        ):
            mapping = match_atoms(molecule, table.graph(atoms))
            if mapping is not None:
                copies.append(mapping)
    if not copies:
        from .solute import find_solute

        try:
            find_solute(molecule, topology)  # says what is there instead
        except ValueError as error:
            raise _NotFound(str(error)) from None
    return np.array(copies, dtype=np.int64).reshape(-1, molecule.n_atoms)


def _whole_molecule(
    molecule: Molecule, positions: NDArray[np.float64], box: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Undo breaks across the box, atom by atom along the bonds."""
    neighbours: dict[int, list[int]] = {i: [] for i in range(molecule.n_atoms)}
    for i, j in molecule.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    out = positions.copy()
    done, queue = {0}, [0]
    inverse = np.linalg.inv(box)
    while queue:
        atom = queue.pop()
        for other in neighbours[atom]:
            if other not in done:
                bond = positions[other] - positions[atom]
                out[other] = out[atom] + bond - np.round(bond @ inverse) @ box
                done.add(other)
                queue.append(other)
    return out


# -- to files ------------------------------------------------------------------------------------


def run_rollout(
    model: ScoreModel | str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: RolloutSettings | None = None,
    *,
    start: Any = None,
    topology: str | os.PathLike[str] | None = None,
    format: str = "xtc",
    every: int = 1,
    minutes: float | None = None,
    checkpoint_seconds: float = 60.0,
    report: Report | None = None,
    molecule: str | None = None,
    dask: Where | None = None,
) -> dict[str, Any]:
    """Run chains of pure Score Dynamics and write them to a directory.

    Called again with the same arguments it goes on where a stopped or killed run was at its last
    checkpoint, and gives, on the CPU with the same number of threads, the same trajectory to the
    last bit.

    Parameters
    ----------
    model : ScoreModel, str or PathLike
        A model, a shipped model's name or a bundle's path.
    output : str or PathLike
        Directory, made where it does not exist; new, empty, or with an unfinished run of the same
        settings.
    settings : RolloutSettings, optional
        What to do.
    start : str, PathLike, mdtraj.Trajectory or array, optional
        For `read_start_frames`, or frames (M, N, 3) in nm; the model's own by default.
    topology : str or PathLike, optional
        Topology for a `start` without one.
    format : str
        ``xtc`` (compressed, rounded to 0.001 nm) or ``h5`` (HDF5, float32).
    every : int
        Record every so many steps.
    minutes : float, optional
        Stop after this time, with a checkpoint; the same call goes on from there.
    checkpoint_seconds : float
        Time between checkpoints, s.
    report : callable, optional
        Called with what is being done and how far it is.
    molecule : str, optional
        Which of a family's molecules.
    dask : str, int, distributed.Client or cluster, optional
        Have the chains moved by the workers of a Dask cluster: ``"local"`` or a number of workers
        for one that is started here, with a worker a GPU or else a core; the address or the file
        of a scheduler; or an object of Dask. The chains are the same, see `SharedRollout`.

    Returns
    -------
    dict
        What ``rollout.json`` holds: ``chains``, ``steps``, ``steps_done``, ``complete``, ``every``,
        ``frames`` (in the trajectory), ``order`` (of the frames, in words), ``lag_ps``, ``seed``,
        the counters of `Rollout.statistics`, ``gate_failure_fraction`` and
        ``chirality_flip_fraction`` (of all draws), ``jumps_per_second`` and
        ``effective_ns_per_day`` (all chains together, without the writing of files),
        ``wall_seconds``, ``device``, ``versions``, ``model``.

    Raises
    ------
    ValueError
        If an argument is wrong, or the directory holds something else.
    KeyboardInterrupt
        When the user stops it, after the checkpoint is written.
    """
    settings = settings or RolloutSettings()
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    _whole("every", every, 1, settings.steps)
    for name, value in (("minutes", minutes), ("checkpoint_seconds", checkpoint_seconds)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    say = report or (lambda what, how_far: None)
    if not isinstance(model, ScoreModel):
        say("loading the model", os.fspath(model))
        model = ScoreModel.load(model)
    model = model.only(molecule)
    source = "array"
    frames: Any = start
    if start is None:
        source = "model"
    elif isinstance(start, (str, os.PathLike)) or hasattr(start, "xyz"):
        source = os.fspath(start) if isinstance(start, (str, os.PathLike)) else "trajectory"
        frames = read_start_frames(start, model.molecules[0], topology)
    if dask is None:
        run = _Run(Rollout(model, settings, frames), Path(output), format, every, source)
        with run.locked():
            return run(minutes, checkpoint_seconds, say)
    from .shared_rollout import SharedRollout

    with closing(SharedRollout(model, settings, frames, dask, every, say)) as shared:
        run = _Run(shared, Path(output), format, every, source)
        with run.locked():
            return run(minutes, checkpoint_seconds, say)


def read_rollout(output: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read the frames of a rollout, finished or not.

    Parameters
    ----------
    output : str or PathLike
        Directory that `run_rollout` wrote to.

    Returns
    -------
    ndarray, shape (records, chains, N, 3)
        nm. Record k holds the chains after step ``(k + 1) * every``; the start is not among them.

    Raises
    ------
    ValueError
        If there is no rollout.
    """
    folder = Path(output)
    try:
        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        count, chains = int(summary["frames"]), int(summary["chains"])
        n_atoms, file = int(summary["atoms"]), folder / str(summary["trajectory"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no rollout: {error}") from None
    shape = (count // chains, chains, n_atoms, 3)
    if not count:
        return np.zeros(shape, dtype=np.float32)
    raw = folder / RAW_FILE
    if raw.exists():
        frames = np.fromfile(raw, dtype="<f4", count=count * n_atoms * 3)
    elif file.suffix == ".h5":
        import h5py

        with h5py.File(file, "r") as content:
            frames = np.asarray(content["coordinates"], dtype=np.float32)
    else:
        import mdtraj

        with mdtraj.formats.XTCTrajectoryFile(str(file)) as content:
            frames = content.read(n_frames=count)[0]
    if frames.size != math.prod(shape):
        raise ValueError(f"{folder}: the trajectory is shorter than {_SUMMARY} says")
    return frames.reshape(shape)


class _Run:
    """A rollout and the directory it is written to."""

    def __init__(
        self, rollout: Rollout, folder: Path, format: str, every: int, source: str
    ) -> None:
        self._rollout = rollout
        self._folder = folder
        self._every = every
        self._source = source
        self._trajectory = FORMATS[format]
        self._stream = folder / (RAW_FILE if format == "h5" else FORMATS[format])
        self._encode = _raw_bytes if format == "h5" else self._xtc_bytes
        settings = rollout.settings
        self._arguments = {
            "model": model_digest(rollout.model),
            "start": hashlib.sha256(rollout.frames.tobytes()).hexdigest(),
            "chains": settings.chains,
            "steps": settings.steps,
            "lag_ps": rollout.lag_ps,
            "seed": settings.seed,
            "max_tries": settings.max_tries,
            "batch": settings.batch,
            "every": every,
            "format": format,
            "device": rollout.device_kind,
        }
        self._wall = 0.0
        self._size = 0
        self._buffer: list[tuple[int, NDArray[np.float32]]] = []

    def locked(self) -> AbstractContextManager[None]:
        """Make the directory and keep other processes out of it."""
        return locked(self._folder, "rollout")

    def __call__(self, minutes: float | None, interval: float, say: Report) -> dict[str, Any]:
        rollout, settings = self._rollout, self._rollout.settings
        if self._resume():
            summary: dict[str, Any] = json.loads(
                (self._folder / _SUMMARY).read_text(encoding="utf-8")
            )
            say("done before", f"{self._folder} holds this rollout already")
            return summary
        began = last = said = time.monotonic()
        before = self._wall
        with open(self._stream, "ab") as stream, interrupts() as interrupted:
            stream.truncate(self._size)
            stream.seek(0, os.SEEK_END)

            def over() -> bool:
                late = minutes is not None and time.monotonic() - began >= 60.0 * minutes
                return late or interrupted()

            while rollout.step_number < settings.steps:
                if not rollout.step(over):
                    break
                self._record(stream)
                now = time.monotonic()
                self._wall = before + now - began
                done = rollout.step_number
                if now - said >= _REPORT_SECONDS or done == settings.steps:
                    say("rollout", f"step {done} of {settings.steps}, {settings.chains} chains")
                    said = now
                if over():
                    break
                if now - last >= interval:
                    self._checkpoint(stream)
                    last = time.monotonic()
            self._checkpoint(stream)
        self._publish()
        self._wall = before + time.monotonic() - began
        complete = rollout.step_number == settings.steps
        summary = self._summary(complete)
        if complete:
            self._save(complete=True)
            if self._stream.name == RAW_FILE:
                self._stream.unlink(missing_ok=True)
        if interrupted():
            raise KeyboardInterrupt
        return summary

    def _resume(self) -> bool:
        """Take up an earlier run; return whether it was finished."""
        checkpoint = self._folder / _CHECKPOINT
        if not checkpoint.exists():
            others = sorted(
                file.name for file in self._folder.iterdir() if not file.name.startswith(".")
            )
            if others:
                raise ValueError(
                    f"output: {self._folder} holds files but no rollout ({', '.join(others[:4])}); "
                    "give a new directory"
                )
            self._write_topology()
            self._save(complete=False)
            self._summary(complete=False)
            return False
        try:
            with np.load(checkpoint, allow_pickle=False) as content:
                state = json.loads(str(content["state"]))
                frames = content["frames"]
        except Exception as error:  # a damaged archive fails in many ways
            reason = " ".join(str(error).split())
            raise ValueError(f"output: {checkpoint} is damaged: {reason}") from None
        there = state["arguments"]
        different = [
            f"{name} {there.get(name)!r} there, {value!r} here"
            for name, value in self._arguments.items()
            if there.get(name) != value
            # Workers elsewhere choose their devices.
            and not (name == "device" and "auto" in (there.get(name), value))
        ]
        if different:
            raise ValueError(
                f"output: {self._folder} holds a rollout with other settings "
                f"({'; '.join(different)}); give a new directory"
            )
        if state["complete"]:
            return True
        self._rollout.load_state_dict({**state["rollout"], "frames": frames})
        self._wall, self._size = float(state["wall_seconds"]), int(state["size"])
        found = self._stream.stat().st_size if self._stream.exists() else 0
        if found < self._size:
            raise ValueError(
                f"output: {self._stream} has {found} bytes, its checkpoint {self._size}: it was "
                "changed after the run was stopped"
            )
        return False

    def _record(self, stream: io.BufferedWriter) -> None:
        step = self._rollout.step_number
        if step % self._every:
            return
        self._buffer.append((step, self._rollout.frames))
        if len(self._buffer) * self._rollout.settings.chains >= _CHUNK_FRAMES:
            self._flush(stream)

    def _flush(self, stream: io.BufferedWriter) -> None:
        if self._buffer:
            steps = np.repeat([step for step, _ in self._buffer], self._rollout.settings.chains)
            stream.write(self._encode(np.concatenate([f for _, f in self._buffer]), steps))
            self._buffer.clear()

    def _xtc_bytes(self, frames: NDArray[np.float32], steps: NDArray[np.int64]) -> bytes:
        times = (steps * self._rollout.lag_ps).astype(np.float32)
        return xtc_bytes(frames, times, steps.astype(np.int32), None, self._folder)

    def _checkpoint(self, stream: io.BufferedWriter) -> None:
        self._flush(stream)
        stream.flush()
        os.fsync(stream.fileno())
        self._size = stream.tell()
        self._save(complete=False)
        self._summary(complete=False)

    def _save(self, complete: bool) -> None:
        """Write the checkpoint; before this the frames it speaks of are on the disk."""
        state = self._rollout.state_dict()
        frames = state.pop("frames")
        text = json.dumps(
            {
                "arguments": self._arguments,
                "rollout": state,
                "size": self._size,
                "wall_seconds": self._wall,
                "complete": complete,
            }
        )
        memory = io.BytesIO()
        np.savez(memory, frames=frames, state=np.array(text))
        write_atomically(self._folder / _CHECKPOINT, memory.getvalue())

    def _summary(self, complete: bool) -> dict[str, Any]:
        rollout, settings = self._rollout, self._rollout.settings
        numbers = rollout.statistics()
        draws, seconds = max(numbers["draws"], 1), numbers["seconds"]
        speed = numbers["jumps"] / seconds if seconds > 0 else 0.0
        summary = {
            "chains": settings.chains,
            "steps": settings.steps,
            "steps_done": rollout.step_number,
            "complete": complete,
            "every": self._every,
            "frames": rollout.step_number // self._every * settings.chains,
            "order": "step by step: frame record * chains + chain is that chain after step "
            "(record + 1) * every, both counted from 0; the start is not among them",
            "atoms": rollout.molecule.n_atoms,
            "molecule": rollout.molecule.name,
            "trajectory": self._trajectory,
            "precision_nm": XTC_PRECISION_NM if self._trajectory == FORMATS["xtc"] else None,
            "lag_ps": rollout.lag_ps,
            "seed": settings.seed,
            "max_tries": settings.max_tries,
            "batch": settings.batch,
            "start": self._source,
            **numbers,
            "gate_failure_fraction": sum(numbers["rejections"].values()) / draws,
            "chirality_flip_fraction": numbers["chirality_flips"] / draws,
            "jumps_per_second": speed,
            "effective_ns_per_day": speed * rollout.lag_ps / 1000.0 * 86400.0,
            "wall_seconds": self._wall,
            "device": rollout.device_name,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "model": {"name": rollout.model.name, "sha256": rollout.model.sha256},
        }
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_atomically(self._folder / _SUMMARY, text.encode())
        return summary

    def _write_topology(self) -> None:
        from openmm import app, unit

        positions = self._rollout.frames[0].astype(np.float64)
        text = io.StringIO()
        topology = self._rollout.molecule.to_topology()
        app.PDBFile.writeFile(topology, positions * unit.nanometer, text, keepIds=True)
        write_atomically(self._folder / _TOPOLOGY, text.getvalue().encode())

    def _publish(self) -> None:
        """Make the HDF5 file of the raw frames."""
        if self._stream.name != RAW_FILE or not self._stream.exists():
            return
        settings, molecule = self._rollout.settings, self._rollout.molecule
        write_hdf5(
            self._folder / self._trajectory,
            molecule.to_topology(),
            self._rollout.step_number // self._every * settings.chains,
            self._blocks(),
            application="openmm-sd rollout",
            title=f"{settings.chains} chains of {molecule.name}, step by step",
        )

    def _blocks(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Read the raw frames, some records at a time."""
        rollout, chains = self._rollout, self._rollout.settings.chains
        n_atoms, records = rollout.molecule.n_atoms, rollout.step_number // self._every
        per_block = max(1, _CHUNK_FRAMES // chains)
        with open(self._stream, "rb") as raw:
            for begin in range(0, records, per_block):
                numbers = np.arange(begin, min(begin + per_block, records)) + 1
                steps = np.repeat(numbers * self._every, chains)
                block = np.fromfile(raw, dtype="<f4", count=len(steps) * n_atoms * 3)
                yield {
                    "coordinates": block.reshape(len(steps), n_atoms, 3),
                    "time": (steps * rollout.lag_ps).astype("<f4"),
                }


def _raw_bytes(frames: NDArray[np.float32], steps: NDArray[np.int64]) -> bytes:
    return frames.astype("<f4").tobytes()


# -- checks --------------------------------------------------------------------------------------


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def _checked_lag(model: ScoreModel, lag: float | None) -> float:
    if lag is None:
        return model.recommended_lag
    trained = model.lag_range
    if trained is not None and not trained[0] <= lag <= trained[1]:
        raise ValueError(
            f"lag is {lag:g} ps, the model was trained for {trained[0]:g} to {trained[1]:g} ps"
        )
    return float(lag)


def checked_device(name: str) -> torch.device:
    """Return the device of a name: cpu, cuda, cuda:N, or auto for a GPU where there is one.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda, cuda:N or auto, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device {name}: PyTorch sees {count} CUDA GPUs on this machine")
        return torch.device("cuda", device.index or 0)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a device for people."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return "cpu"


def _checked_frames(frames: ArrayLike, n_atoms: int) -> NDArray[np.float64]:
    try:
        given = np.asarray(frames, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"start frames must be numbers of shape (M, {n_atoms}, 3), nm") from None
    if given.ndim != 3 or given.shape[0] < 1 or given.shape[1:] != (n_atoms, 3):
        raise ValueError(f"start frames must have shape (M, {n_atoms}, 3), got {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("start frames hold NaN or infinity")
    return given


def _draw(available: int, chains: int, seed: int) -> NDArray[np.int64]:
    """Which frame each chain starts from: one shuffled pass over the frames after the other.

    The first chains get the same frames however many chains follow.
    """
    passes = [
        np.random.default_rng([seed, k]).permutation(available)
        for k in range(-(-chains // available))
    ]
    return np.concatenate(passes)[:chains].astype(np.int64)


def _centred(frames: Tensor) -> Tensor:
    return frames - frames.mean(dim=1, keepdim=True)
