"""The demonstration: a mixed run of a small peptide in water, from nothing to a picture.

Builds a box of water around the model's own molecule, then lets MD bursts and learned jumps
alternate, in turn with stretches of plain MD on the same system, which give the speed to compare
with. It writes, into one directory:

``trajectory.xtc``
    Two frames a burst, one half-way and one at its end, all atoms, nm. Every molecule is whole and
    in the periodic image closest to the solute. Its times are effective times in ps.
``topology.pdb``
    The first of those frames, with the box.
``ramachandran.png``
    (phi, psi) of the frames and of the places where jumps landed.
``summary.json``
    Counters, clocks and speeds, see `run_demo`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from .bridges import platform_names
from .files.atomic import write_json
from .integrator.integrator import ScoreDynamicsIntegrator
from .integrator.notes import ensemble_notes
from .model.model import ScoreModel
from .molecule.molecule import Molecule
from .molecule.torsions import dihedral
from .prepare import PreparedBox, equilibrate, solvate
from .system.imaging import Imaging
from .system.plain_md import PlainMD, ns_per_day
from .system.platforms import platform_and_bridge
from .version import versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What the demonstration writes.
FILES = ("trajectory.xtc", "topology.pdb", "ramachandran.png", "summary.json")

#: Heavy hydrogens allow steps of 4 fs, the usual pair of settings with constrained X-H bonds.
HYDROGEN_MASS_AMU = 3.0
STEP_PS = 0.004
FRICTION_PER_PS = 1.0

# Medians are taken over this many pairs of a plain and a mixed stretch.
_REPEATS = 5
# Share of the time that goes to plain MD.
_PLAIN_SHARE = 0.2


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration does.

    Attributes
    ----------
    model : str
        Name of a shipped model or path of a bundle.
    seconds : float
        Wall-clock time of the sampling, s; building the box comes on top.
    jumps : int, optional
        Number of jumps to try, instead of `seconds`.
    waters : int
        Number of water molecules.
    equilibration : float
        Length of the MD, at constant pressure, that relaxes the new box, ps.
    lag, burst : float, optional
        Time that a jump covers, and MD time between two jumps, ps. The lag is the model card's by
        default.
    platform : str, optional
        OpenMM platform; a GPU's if one works here, else CPU.
    bridge : str
        How the model reaches OpenMM.
    seed : int
        Of the jumps, the velocities and the Langevin dynamics.
    """

    model: str = "ala2-water"
    seconds: float = 120.0
    jumps: int | None = None
    waters: int = 651
    equilibration: float = 10.0
    lag: float | None = None
    burst: float = 1.0
    platform: str | None = None
    bridge: str = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be a positive number, got {self.seconds!r}")
        if self.jumps is not None and self.jumps < 1:
            raise ValueError(f"jumps must be a whole number of at least 1, got {self.jumps!r}")
        if self.waters < 1:
            raise ValueError(f"waters must be a whole number of at least 1, got {self.waters!r}")
        if not 0 < self.equilibration < float("inf"):
            raise ValueError(
                f"equilibration must be a positive number of ps, got {self.equilibration!r}"
            )
        # A burst is halved, and its last step belongs to the jump.
        if not self.burst >= 2 * STEP_PS:
            raise ValueError(f"burst must be at least {2 * STEP_PS:g} ps, got {self.burst!r}")
        if self.platform is not None and self.platform not in platform_names():
            raise ValueError(f"platform must be one of {platform_names()}, got {self.platform!r}")


Report = Callable[[str, str], None]


def run_demo(
    output: str | os.PathLike[str],
    settings: DemoSettings | None = None,
    *,
    force: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Run the demonstration and write its four files.

    Parameters
    ----------
    output : str or PathLike
        Directory to write to; it is made where it does not exist.
    settings : DemoSettings, optional
        What to do.
    force : bool
        Whether to replace the files of an earlier run.
    report : callable, optional
        Called with what is being done and how far it is.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``jumps_tried``, ``jumps_accepted``, ``redraws``,
        ``fallbacks``, ``rejections`` (by gate), ``md_time_ps``, ``effective_time_ps``,
        ``effective_ns_per_day``, ``md_ns_per_day``, ``seconds`` (``md``, ``model``, ``settle``),
        the settings that were used, ``versions``, and ``notes`` in plain language.
    """
    settings = settings or DemoSettings()
    say = report or (lambda what, how_far: None)
    began = time.perf_counter()
    folder = _output_folder(Path(output), force)

    # Everything that can be refused is refused before the box is built.
    say("loading the model", settings.model)
    model = ScoreModel.load(settings.model).only()
    molecule = model.molecules[0]
    torsions = _torsions(molecule)
    integrator = ScoreDynamicsIntegrator(
        model,
        frictionCoeff=FRICTION_PER_PS,
        stepSize=STEP_PS,
        burst=settings.burst,
        lag=settings.lag,
        bridge=settings.bridge,
        seed=settings.seed,
    )
    say("trying the bridge", "")
    platform, bridge = platform_and_bridge(settings.platform, settings.bridge)
    integrator.bridge = bridge
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        # A run that is stopped must not leave its files beside those of an earlier one.
        (folder / name).unlink(missing_ok=True)

    say("building the box", f"{molecule.name} in {settings.waters} waters")
    temperature = integrator.getTemperature().value_in_unit(unit.kelvin)
    box = solvate(
        molecule.to_topology(),
        molecule.positions,
        waters=settings.waters,
        hydrogen_mass=HYDROGEN_MASS_AMU,
        seed=settings.seed,
    )
    box = equilibrate(
        box,
        temperature=temperature,
        time=settings.equilibration,
        platform=platform,
        seed=settings.seed,
        report=say,
    )
    run = _MixedRun(box, integrator, platform, folder, torsions)
    try:
        plain_speeds, mixed_speeds = _sample(run, settings, say)
    finally:
        run.close()

    say("drawing", "ramachandran.png")
    numbers = integrator.getStatistics()
    _draw(run, molecule.name, numbers, folder / "ramachandran.png")
    lag = integrator.getLag().value_in_unit(unit.picosecond)
    burst = integrator.getBurst().value_in_unit(unit.picosecond)
    summary: dict[str, Any] = {
        **numbers,
        "effective_ns_per_day": statistics.median(mixed_speeds),
        "md_ns_per_day": statistics.median(plain_speeds),
        "repeats": len(plain_speeds),
        "frames": len(run.frames),
        "model": settings.model,
        "molecule": molecule.name,
        "waters": box.n_waters,
        "force_field": list(box.force_field),
        "temperature_K": temperature,
        "lag_ps": lag,
        "burst_ps": burst,
        "step_ps": STEP_PS,
        "hydrogen_mass_amu": HYDROGEN_MASS_AMU,
        "seed": settings.seed,
        "platform": platform,
        "bridge": bridge,
        "wall_clock_s": time.perf_counter() - began,
        "versions": versions(),
        "notes": [
            *ensemble_notes(model, numbers, lag, burst),
            "Speeds are medians over stretches of plain MD and mixed run in turn, on the same "
            "system and machine, without the writing of files; effective time is no MD time.",
        ],
    }
    write_json(folder / "summary.json", summary)
    say("done", f"{time.perf_counter() - began:.0f} s, files are in {folder}")
    return summary


# -- before the run ------------------------------------------------------------------------------


def _output_folder(folder: Path, force: bool) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is a file, wanted is a directory")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(
            f"output: {folder} holds files already; --force replaces the demonstration's own "
            f"({', '.join(FILES)})"
        )
    return folder


def _torsions(molecule: Molecule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Atoms of the first phi and the first psi."""
    import mdtraj

    topology = mdtraj.Topology.from_openmm(molecule.to_topology())
    frame = mdtraj.Trajectory(molecule.positions[None], topology)
    phi, _ = mdtraj.compute_phi(frame)
    psi, _ = mdtraj.compute_psi(frame)
    if not len(phi) or not len(psi):
        raise ValueError(
            f"model: the demonstration needs a peptide with phi and psi, {molecule.name} "
            f"({molecule.formula}) has none"
        )
    return tuple(map(int, phi[0])), tuple(map(int, psi[0]))


# -- the run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """One frame of the trajectory: torsions in radians, effective time in ps."""

    phi: float
    psi: float
    time_ps: float


class _MixedRun:
    """A mixed run and, on the same System, plain MD beside it."""

    def __init__(
        self,
        box: PreparedBox,
        integrator: ScoreDynamicsIntegrator,
        platform: str,
        folder: Path,
        torsions: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        import mdtraj

        self.integrator = integrator
        self.frames: list[_Frame] = []
        self.landings: list[_Frame] = []
        self._box = box
        self._folder = folder
        self._torsions = torsions
        self._temperature = integrator.getTemperature().value_in_unit(unit.kelvin)
        self._seed = integrator.getRandomNumberSeed()
        burst = integrator.getBurst().value_in_unit(unit.picosecond)
        self.burst_steps = round(burst / STEP_PS)

        self._plain = PlainMD(
            openmm.XmlSerializer.clone(box.system),
            box.positions,
            box.box_vectors,
            temperature=self._temperature,
            friction=FRICTION_PER_PS,
            step_ps=STEP_PS,
            seed=self._seed,
            platform=platform,
        )
        mixed = openmm.XmlSerializer.clone(box.system)
        solute = integrator.attach(mixed, box.topology, platform=platform)
        self._solute = list(solute.particles)
        self._mixed = self._context(mixed, integrator, platform)
        self._imaged = Imaging(self._mixed.getMolecules(), self._solute)
        self._file = mdtraj.formats.XTCTrajectoryFile(
            str(folder / "trajectory.xtc"), "w", force_overwrite=True
        )

    def _context(
        self, system: openmm.System, integrator: openmm.Integrator, platform: str
    ) -> openmm.Context:
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
        assert self._box.box_vectors is not None
        context.setPeriodicBoxVectors(*self._box.box_vectors)
        context.setPositions(self._box.positions)
        context.setVelocitiesToTemperature(self._temperature, self._seed)
        return context

    def close(self) -> None:
        """Close the trajectory."""
        self._file.close()

    def plain_steps(self, steps: int) -> float:
        """Run plain MD and return the seconds it took."""
        return self._plain.steps(steps)

    def burst(self) -> float:
        """Run one burst and its jump, write two frames, return the seconds without writing."""
        half = self.burst_steps // 2
        seconds = self._steps(half)
        self._write()
        seconds += self._steps(self.burst_steps - 1 - half)
        self._write()
        jumps = self.integrator.getNumJumps()
        seconds += self._steps(1)
        if self.integrator.getNumJumps() > jumps:
            self.landings.append(self._frame(_positions(self._mixed)))
        return seconds

    def _steps(self, steps: int) -> float:
        began = time.perf_counter()
        self.integrator.step(steps)
        # GPU platforms work ahead of the caller; reading something waits for them.
        self._mixed.getState(positions=True)
        return time.perf_counter() - began

    def effective_time(self) -> float:
        """MD time plus the lags of accepted jumps, ps."""
        return self.integrator.getEffectiveTime().value_in_unit(unit.picosecond)

    def _write(self) -> None:
        box = self._box.box_vectors
        assert box is not None
        positions = self._imaged(_positions(self._mixed), box)
        if not self.frames:
            with open(self._folder / "topology.pdb", "w", encoding="utf-8") as file:
                app.PDBFile.writeFile(self._box.topology, positions * unit.nanometer, file)
        self.frames.append(self._frame(positions))
        self._file.write(
            positions[None].astype(np.float32),
            time=np.array([self.frames[-1].time_ps], dtype=np.float32),
            step=np.array([len(self.frames) - 1], dtype=np.int32),
            box=box[None].astype(np.float32),
        )

    def _frame(self, positions: NDArray[np.float64]) -> _Frame:
        solute = positions[self._solute]
        phi, psi = (float(dihedral(solute, torsion)) for torsion in self._torsions)
        return _Frame(phi, psi, self.effective_time())


def _positions(context: openmm.Context) -> NDArray[np.float64]:
    state = context.getState(positions=True)
    return np.array(state.getPositions(asNumpy=True)._value, dtype=np.float64)


def _sample(run: _MixedRun, settings: DemoSettings, say: Report) -> tuple[list[float], list[float]]:
    """Alternate plain and mixed stretches; return the speeds of both, ns of time per day."""
    plain_speeds, mixed_speeds = [], []
    run.plain_steps(10)  # the first steps compile and tune kernels
    began = time.perf_counter()
    for repeat, bursts in enumerate(_stretches(settings)):
        until = began + settings.seconds * (repeat + 1) / _REPEATS
        plain_until = time.perf_counter() + _PLAIN_SHARE * settings.seconds / _REPEATS
        steps, seconds = 0, 0.0
        while steps == 0 or (bursts is None and time.perf_counter() < plain_until):
            say("plain MD", f"stretch {repeat + 1}")
            seconds += run.plain_steps(run.burst_steps)
            steps += run.burst_steps
        plain_speeds.append(ns_per_day(steps * STEP_PS, seconds))

        start, seconds, done = run.effective_time(), 0.0, 0
        while done == 0 or (time.perf_counter() < until if bursts is None else done < bursts):
            seconds += run.burst()
            done += 1
            tried = run.integrator.getStatistics()["jumps_tried"]
            elapsed = time.perf_counter() - began
            goal = f" of {settings.seconds:.0f}" if settings.jumps is None else ""
            say("bursts and jumps", f"{tried} jumps, {elapsed:.0f}{goal} s")
        mixed_speeds.append(ns_per_day(run.effective_time() - start, seconds))
    return plain_speeds, mixed_speeds


def _stretches(settings: DemoSettings) -> Iterator[int | None]:
    """Number of bursts in each mixed stretch; None where the clock decides."""
    if settings.jumps is None:
        yield from [None] * _REPEATS
        return
    repeats = min(_REPEATS, settings.jumps)
    for k in range(repeats):
        yield settings.jumps // repeats + (k < settings.jumps % repeats)


# -- after the run -------------------------------------------------------------------------------


def _draw(run: _MixedRun, name: str, numbers: dict[str, Any], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    axes.axhline(0.0, color="0.88", linewidth=0.8, zorder=0)
    axes.axvline(0.0, color="0.88", linewidth=0.8, zorder=0)
    layers: tuple[tuple[list[_Frame], str, dict[str, Any]], ...] = (
        (run.frames, "MD frames", {"marker": "o", "s": 16, "color": "#4477aa", "alpha": 0.6}),
        (run.landings, "where a jump landed", {"marker": "x", "s": 34, "color": "#cc3311"}),
    )
    for frames, label, style in layers:
        angles = np.rad2deg([(f.phi, f.psi) for f in frames]).reshape(-1, 2)
        axes.scatter(angles[:, 0], angles[:, 1], label=f"{label} ({len(frames)})", **style)
    ticks = range(-180, 181, 60)
    axes.set(
        xlim=(-180, 180),
        ylim=(-180, 180),
        xticks=ticks,
        yticks=ticks,
        xlabel="phi (degrees)",
        ylabel="psi (degrees)",
        aspect="equal",
        title=f"{name} in water: {len(run.frames)} frames, {numbers['jumps_accepted']} of "
        f"{numbers['jumps_tried']} jumps accepted",
    )
    axes.legend(loc="lower right", framealpha=0.9)
    figure.savefig(file)
