"""Molecular dynamics of one small solute in implicit solvent, as training data.

A learned kernel needs to see transitions *from everywhere*, not a Boltzmann sample, so two kinds
of run are made:

- ``plain``: long unbiased runs from the minimised structure. They define equilibrium and kinetics
  and are what a model is validated against.
- ``seeded``: short unbiased runs from starting points spread evenly over two torsions. Each start
  is pulled to its torsions, relaxed under the restraint, then released with fresh velocities.
  Only the part after the release is saved.

File format
-----------
``DIR/plain-000.npz``, ``DIR/seeded-000.npz``, ... one compressed npz a run, written atomically, so
a run that was cut off is made again and a finished one is never touched:

==============  ======================  ==========================================================
array           shape and type          meaning
==============  ======================  ==========================================================
``frames``      (T, N, 3) int16         positions in units of 1e-4 nm, centroid at the origin
``spacing_ps``  () float64              time from one frame to the next
``kind``        () str                  ``plain`` or ``seeded``
``seed``        () int64                random seed of the run
``start_deg``   (2,) float64            torsions pulled to; NaN for plain runs
==============  ======================  ==========================================================

``DIR/provenance.json`` holds force field, thermostat, time step, seeds and software versions. A
directory made with other settings is refused.

The rounding to 1e-4 nm is about a thirtieth of a heavy-atom bond's thermal width.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm as mm
from openmm import app, unit

UNIT_NM = 1e-4
"""Size of one integer step of the stored positions, in nm."""

# Atoms of ACE-ALA-NME in OpenMM's own naming: (name, element, residue).
_ALA2_ATOMS = tuple(
    (name, name[0], residue)
    for residue, names in enumerate(
        ("H1 CH3 H2 H3 C O", "N H CA HA CB HB1 HB2 HB3 C O", "N H C H1 H2 H3")
    )
    for name in names.split()
)
_ALA2_BONDS = (
    *((0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9), (8, 10), (10, 11)),
    *((10, 12), (10, 13), (8, 14), (14, 15), (14, 16), (16, 17), (16, 18)),
    *((18, 19), (18, 20), (18, 21)),
)
# Textbook geometry: (atom, c, b, a, r in nm, angle b-c-atom in degrees, dihedral a-b-c-atom in
# degrees). CB stands at +122 degrees from C seen along N-CA: that makes the residue L.
_ALA2_INTERNAL = (
    (5, 4, 1, 6, 0.1229, 120.4, 180.0),
    (8, 6, 4, 1, 0.1449, 121.9, 180.0),
    (7, 6, 4, 1, 0.1010, 119.8, 0.0),
    (14, 8, 6, 4, 0.1522, 111.0, -80.0),
    (10, 8, 6, 14, 0.1526, 109.7, -122.0),
    (9, 8, 6, 14, 0.1090, 109.5, 119.0),
    (16, 14, 8, 6, 0.1335, 116.6, 80.0),
    (15, 14, 8, 6, 0.1229, 120.4, -100.0),
    (18, 16, 14, 8, 0.1449, 121.9, 180.0),
    (17, 16, 14, 8, 0.1010, 119.8, 0.0),
    (0, 1, 4, 6, 0.1090, 109.5, 60.0),
    (2, 1, 4, 6, 0.1090, 109.5, 180.0),
    (3, 1, 4, 6, 0.1090, 109.5, -60.0),
    (11, 10, 8, 6, 0.1090, 109.5, 60.0),
    (12, 10, 8, 6, 0.1090, 109.5, 180.0),
    (13, 10, 8, 6, 0.1090, 109.5, -60.0),
    (19, 18, 16, 14, 0.1090, 109.5, 60.0),
    (20, 18, 16, 14, 0.1090, 109.5, 180.0),
    (21, 18, 16, 14, 0.1090, 109.5, -60.0),
)

PHI = (4, 6, 8, 14)
"""Atoms of phi in :func:`alanine_dipeptide`."""
PSI = (6, 8, 14, 16)
"""Atoms of psi in :func:`alanine_dipeptide`."""

# Stiff enough to hold a torsion within about 7 degrees of its target at 300 K.
_PULL_KJ_PER_MOL_RAD2 = 200.0
# Bond, angle and methyl degrees of freedom forget the pull within a few ps.
_PULL_PS = 10.0


@dataclass(frozen=True)
class ImplicitSettings:
    """How the data is made; everything that changes the sampled law or the amount of data.

    Attributes
    ----------
    force_field : tuple of str
        Force field files as OpenMM names them, the implicit solvent's included.
    temperature_K : float
        Temperature, in K.
    friction_per_ps : float
        Langevin friction, in 1/ps. It sets the time scale: a model learns the kinetics at this one.
    step_fs : float
        Time step, in fs. 4 fs with 3 amu hydrogens is a sampling setting: it leaves the
        equilibrium of heavy atoms as it is, slows hydrogen librations, and is the usual
        hydrogen-mass-repartitioning choice with HBonds constraints.
    hydrogen_mass_amu : float
        Mass of the hydrogens, taken from the heavy atom they are bonded to.
    spacing_ps : float
        Time from one saved frame to the next, in ps.
    plain_runs, seeded_runs : int
        Number of runs of each kind.
    plain_ps, seeded_ps : float
        Length of one run of each kind, in ps.
    seed : int
        Seed of the whole data set; each run derives its own.
    """

    force_field: tuple[str, ...] = ("amber99sbildn.xml", "amber99_obc.xml")
    temperature_K: float = 300.0
    friction_per_ps: float = 1.0
    step_fs: float = 4.0
    hydrogen_mass_amu: float = 3.0
    spacing_ps: float = 1.0
    plain_runs: int = 8
    plain_ps: float = 8000.0
    seeded_runs: int = 120
    seeded_ps: float = 400.0
    seed: int = 1


@dataclass(frozen=True)
class Run:
    """One trajectory.

    Attributes
    ----------
    name : str
        Name of its file without the extension.
    kind : str
        ``plain`` or ``seeded``.
    positions : ndarray
        (T, N, 3) float32, nm, each frame with its centroid at the origin.
    spacing_ps : float
        Time between frames, in ps.
    """

    name: str
    kind: str
    positions: np.ndarray
    spacing_ps: float


def alanine_dipeptide() -> tuple[app.Topology, np.ndarray]:
    """Build ACE-ALA-NME (L) from its bonds and textbook geometry.

    Returns
    -------
    topology : openmm.app.Topology
        22 atoms, 3 residues, 21 bonds, no box.
    positions : ndarray
        (22, 3) nm, not minimised, near phi = -80, psi = 80 degrees.
    """
    topology = app.Topology()
    chain = topology.addChain("A")
    residues = [topology.addResidue(name, chain) for name in ("ACE", "ALA", "NME")]
    atoms = [
        topology.addAtom(name, app.Element.getBySymbol(symbol), residues[residue])
        for name, symbol, residue in _ALA2_ATOMS
    ]
    for i, j in _ALA2_BONDS:
        topology.addBond(atoms[i], atoms[j])

    x = np.zeros((len(atoms), 3))
    x[4] = (0.152, 0.0, 0.0)
    bend = np.deg2rad(116.6)
    x[6] = x[4] + 0.1335 * np.array([-np.cos(bend), np.sin(bend), 0.0])
    for i, c, b, a, r, angle, dihedral in _ALA2_INTERNAL:
        x[i] = _place(x[a], x[b], x[c], r, np.deg2rad(angle), np.deg2rad(dihedral))
    return topology, x - x.mean(0)


def _place(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, r: float, angle: float, dihedral: float
) -> np.ndarray:
    """Return the point d with |cd| = r, angle b-c-d and IUPAC dihedral a-b-c-d (radians)."""
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    third = np.cross(normal, axis)
    return c + r * (
        -np.cos(angle) * axis
        + np.sin(angle) * (np.cos(dihedral) * third + np.sin(dihedral) * normal)
    )


def generate_implicit(
    topology: app.Topology,
    positions: np.ndarray,
    directory: Path | str,
    torsions: tuple[tuple[int, int, int, int], tuple[int, int, int, int]] = (PHI, PSI),
    settings: ImplicitSettings | None = None,
    *,
    seconds: float | None = None,
) -> list[Path]:
    """Make (or finish making) a data set; see the module docstring for what and in which format.

    Parameters
    ----------
    topology : openmm.app.Topology
        The solute.
    positions : ndarray
        (N, 3) nm; any reasonable structure, it is minimised first.
    directory : Path or str
        Where the runs go; made if missing.
    torsions : pair of 4-tuples
        The two torsions over which the seeded starts are spread.
    settings : ImplicitSettings, optional
        What to make.
    seconds : float, optional
        Stop starting new runs after this wall time. Plain and seeded runs are made in turn, so what
        exists then is a balanced smaller data set.

    Returns
    -------
    list of Path
        The finished runs' files.

    Notes
    -----
    The Reference platform is used: for 22 atoms on one core it makes 27,000 steps/s against 1,900
    of the CPU platform with one thread, whose cost a step is overhead, and 11,000 molecule steps/s
    of 16 molecules far apart in one System (AMD EPYC, OpenMM 8.6.1). It is also double precision.
    """
    settings = settings or ImplicitSettings()
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write_or_check_provenance(directory, settings, torsions)

    md = _Dynamics(topology, positions, torsions, settings)
    starts = _spread_starts(settings.seeded_runs, settings.seed)
    finished: list[Path] = []
    began = time.monotonic()
    total_ps = settings.plain_runs * settings.plain_ps + settings.seeded_runs * settings.seeded_ps
    done_ps = 0.0
    for kind, index in _in_turn(settings):
        path = directory / f"{kind}-{index:03d}.npz"
        length = settings.plain_ps if kind == "plain" else settings.seeded_ps
        if not path.exists():
            if seconds is not None and time.monotonic() - began > seconds:
                print(f"generate: out of time before {path.name}", file=sys.stderr)
                break
            seed = settings.seed * 100_000 + index + (50_000 if kind == "seeded" else 0)
            start = starts[index] if kind == "seeded" else None
            frames = md.run(length, seed, start)
            _save_run(path, frames, settings.spacing_ps, kind, seed, start)
        finished.append(path)
        done_ps += length
        elapsed = time.monotonic() - began
        print(
            f"generate: {path.name}  {done_ps / 1000:.1f} of {total_ps / 1000:.1f} ns"
            f"  {elapsed:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return finished


def read_runs(directory: Path | str) -> list[Run]:
    """Read every finished run of a data set, ordered by name.

    Parameters
    ----------
    directory : Path or str
        What :func:`generate_implicit` wrote.

    Returns
    -------
    list of Run
        Positions in nm.
    """
    paths = sorted(Path(directory).glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"no runs (*.npz) in {directory}")
    runs = []
    for path in paths:
        with np.load(path) as data:
            positions = data["frames"].astype(np.float32) * np.float32(UNIT_NM)
            runs.append(Run(path.stem, str(data["kind"]), positions, float(data["spacing_ps"])))
    return runs


def molecule_record(topology: app.Topology, positions: np.ndarray) -> dict[str, Any]:
    """Describe a molecule in plain JSON types, as a bundle's ``molecule.json`` wants it.

    Parameters
    ----------
    topology : openmm.app.Topology
        The solute.
    positions : ndarray
        (N, 3) nm.

    Returns
    -------
    dict
        ``atomic_numbers``, ``bonds``, ``atom_names``, ``residue_names`` and ``residue_ids`` (one an
        atom), ``positions`` (nm).
    """
    atoms = list(topology.atoms())
    return {
        "atomic_numbers": [a.element.atomic_number for a in atoms],
        "bonds": [[b[0].index, b[1].index] for b in topology.bonds()],
        "atom_names": [a.name for a in atoms],
        "residue_names": [a.residue.name for a in atoms],
        "residue_ids": [a.residue.id for a in atoms],
        "positions": np.round(np.asarray(positions, dtype=float), 5).tolist(),
    }


class _Dynamics:
    """One Context for plain dynamics and one with torsion restraints, used run after run."""

    def __init__(
        self,
        topology: app.Topology,
        positions: np.ndarray,
        torsions: tuple[tuple[int, int, int, int], tuple[int, int, int, int]],
        settings: ImplicitSettings,
    ) -> None:
        self.settings = settings
        self.restraint = _restraint(torsions)
        force_field = app.ForceField(*settings.force_field)

        def context(pulled: bool) -> mm.Context:
            system = force_field.createSystem(
                topology,
                nonbondedMethod=app.NoCutoff,
                constraints=app.HBonds,
                hydrogenMass=settings.hydrogen_mass_amu * unit.amu,
                removeCMMotion=False,
            )
            if pulled:
                system.addForce(self.restraint)
            integrator = mm.LangevinMiddleIntegrator(
                settings.temperature_K,
                settings.friction_per_ps,
                settings.step_fs * 1e-3,
            )
            integrator.setConstraintTolerance(1e-6)
            return mm.Context(system, integrator, mm.Platform.getPlatformByName("Reference"))

        self.free = context(pulled=False)
        self.pulled = context(pulled=True)
        self.free.setPositions(positions)
        mm.LocalEnergyMinimizer.minimize(self.free)
        self.minimum = self.free.getState(positions=True).getPositions(asNumpy=True)

    def run(self, length_ps: float, seed: int, start: np.ndarray | None) -> np.ndarray:
        """Return one run's frames, (T, N, 3) int16; `start` is in degrees."""
        settings = self.settings
        # Plain runs get their own heating-up time too; it is not saved.
        context = self.free if start is None else self.pulled
        context.setPositions(self.minimum)
        if start is not None:
            self._pull(start)
        integrator = context.getIntegrator()
        integrator.setRandomNumberSeed(seed)
        context.setVelocitiesToTemperature(settings.temperature_K, seed)
        integrator.step(round(_PULL_PS / (settings.step_fs * 1e-3)))
        released = context.getState(positions=True).getPositions(asNumpy=True)

        self.free.setPositions(released)
        self.free.setVelocitiesToTemperature(settings.temperature_K, seed + 1)
        integrator = self.free.getIntegrator()
        integrator.setRandomNumberSeed(seed + 1)
        stride = round(settings.spacing_ps / (settings.step_fs * 1e-3))
        frames = []
        # The frame at the release is kept: it may lie where unbiased dynamics hardly ever is.
        for frame in range(round(length_ps / settings.spacing_ps) + 1):
            if frame > 0:
                integrator.step(stride)
            x = self.free.getState(positions=True).getPositions(asNumpy=True)
            x = x.value_in_unit(unit.nanometer)
            frames.append(np.round((x - x.mean(0)) / UNIT_NM).astype(np.int16))
        if not np.isfinite(x).all():
            raise ValueError(f"the dynamics with seed {seed} blew up")
        return np.stack(frames)

    def _pull(self, target_deg: np.ndarray) -> None:
        for index, target in enumerate(np.deg2rad(target_deg)):
            particles = self.restraint.getTorsionParameters(index)[:4]
            self.restraint.setTorsionParameters(index, *particles, [target])
        self.restraint.updateParametersInContext(self.pulled)
        # Minimising first turns the torsions without heating the molecule.
        mm.LocalEnergyMinimizer.minimize(self.pulled, maxIterations=500)


def _restraint(
    torsions: tuple[tuple[int, int, int, int], tuple[int, int, int, int]],
) -> mm.CustomTorsionForce:
    force = mm.CustomTorsionForce(
        f"0.5*{_PULL_KJ_PER_MOL_RAD2}*d^2; d=min(raw, {2 * np.pi}-raw); raw=abs(theta-target)"
    )
    force.addPerTorsionParameter("target")
    for atoms in torsions:
        force.addTorsion(*atoms, [0.0])
    return force


def _spread_starts(count: int, seed: int) -> np.ndarray:
    """Return (count, 2) torsion targets in degrees, evenly spread over the torus."""
    # A rank-1 lattice with the golden ratio covers the torus evenly for every count.
    shift = np.random.default_rng(seed).random(2)
    steps = np.arange(count)[:, None] * np.array([1.0 / max(count, 1), (np.sqrt(5.0) - 1.0) / 2.0])
    starts = 360.0 * ((steps + shift) % 1.0) - 180.0
    # Shuffled, so that the first few runs already cover the torus.
    return np.random.default_rng(seed + 1).permutation(starts)


def _in_turn(settings: ImplicitSettings) -> list[tuple[str, int]]:
    """Order the runs so that both kinds are equally far along at any time."""
    order = [((i + 1) / settings.plain_runs, "plain", i) for i in range(settings.plain_runs)]
    order += [((i + 1) / settings.seeded_runs, "seeded", i) for i in range(settings.seeded_runs)]
    return [(kind, index) for _, kind, index in sorted(order)]


def _provenance(
    settings: ImplicitSettings,
    torsions: tuple[tuple[int, int, int, int], tuple[int, int, int, int]],
) -> dict[str, Any]:
    return {
        "settings": json.loads(json.dumps(asdict(settings))),
        "torsions": [list(t) for t in torsions],
        "integrator": "LangevinMiddleIntegrator",
        "constraints": "HBonds",
        "cutoff": "none",
        "pull": {"k_kJ_per_mol_rad2": _PULL_KJ_PER_MOL_RAD2, "relaxed_ps": _PULL_PS},
        "unit_nm": UNIT_NM,
    }


def _write_or_check_provenance(
    directory: Path,
    settings: ImplicitSettings,
    torsions: tuple[tuple[int, int, int, int], tuple[int, int, int, int]],
) -> None:
    path = directory / "provenance.json"
    wanted = _provenance(settings, torsions)
    if path.exists():
        found = json.loads(path.read_text())
        different = [key for key, value in wanted.items() if found.get(key) != value]
        if different:
            raise ValueError(
                f"{directory} holds data made with other settings ({', '.join(different)}):"
                " choose another directory"
            )
        return
    wanted["versions"] = {
        "openmm": mm.Platform.getOpenMMVersion(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def _save_run(
    path: Path,
    frames: np.ndarray,
    spacing_ps: float,
    kind: str,
    seed: int,
    start: np.ndarray | None,
) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(
            file,
            frames=frames,
            spacing_ps=np.float64(spacing_ps),
            kind=np.str_(kind),
            seed=np.int64(seed),
            start_deg=np.full(2, np.nan) if start is None else start,
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
