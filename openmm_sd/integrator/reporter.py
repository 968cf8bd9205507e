"""Reporters: what a running simulation tells about its jumps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO, Any

import openmm
from openmm import unit

from .integrator import BOLTZMANN, ScoreDynamicsIntegrator


class ScoreDynamicsReporter:
    """Write the three clocks and the jump counters of a simulation as CSV.

    Parameters
    ----------
    file : str, path or file object
        Where to write; a path is opened and closed by the reporter.
    reportInterval : int
        MD steps between two lines.
    append : bool
        Continue an existing file, without a second header, after a restart. Its columns must be
        the same.
    seconds : bool
        Whether to write the wall-clock seconds and the speed.

    Notes
    -----
    Columns: ``Step`` (MD steps), ``MD Time (ps)`` (ordinary MD), ``Jumps`` (accepted), ``Effective
    Time (ps)`` (MD time plus the lags of accepted jumps), ``Jumps Tried``, ``Redraws``,
    ``Fallbacks``, ``Novel``, ``Last Event`` (`ScoreDynamicsIntegrator.getLastEvent`: ``jump``,
    ``fallback`` or ``novel``), one ``Rejected: ...`` a gate, ``Settle Steps`` (mean number a jump),
    ``Jump Energy (kJ/mol)`` and ``Settled Energy (kJ/mol)`` (mean potential energy after a jump
    above that before it, unsettled and settled), ``Settle Time (ps)`` (all MD in which everything
    but the solute settled; it is in none of the clocks), ``Potential Energy (kJ/mol)``,
    ``Temperature (K)``, ``Effective Speed (ns/day)`` (by the wall clock since this reporter's first
    line, where it is empty) and the wall-clock seconds spent in MD, in the model and in settling,
    ``Seconds: ...``. See `ScoreDynamicsIntegrator.getStatistics` for what they count. Counters and
    means are over all jumps since the integrator was made, restarts included; the seconds are those
    of this process.

    Examples
    --------
    >>> simulation.reporters.append(ScoreDynamicsReporter("jumps.csv", 1000))
    """

    def __init__(
        self,
        file: str | os.PathLike | IO[str],
        reportInterval: int,
        append: bool = False,
        *,
        seconds: bool = True,
    ):
        if (
            isinstance(reportInterval, bool)
            or int(reportInterval) != reportInterval
            or reportInterval < 1
        ):
            raise ValueError(
                f"reportInterval must be a whole number of at least 1, got {reportInterval!r}"
            )
        self._interval = int(reportInterval)
        self._seconds = bool(seconds)
        self._own = isinstance(file, (str, os.PathLike))
        self._header = True
        self._before: str | None = None
        if self._own:
            path = Path(os.fspath(file))  # type: ignore[arg-type]
            self._header = not (append and path.exists() and path.stat().st_size > 0)
            if not self._header:
                with path.open(encoding="utf-8") as before:
                    self._before = before.readline().rstrip("\n")
            self._file: IO[str] = path.open("a" if append else "w", encoding="utf-8")
        else:
            self._file = file  # type: ignore[assignment]
            self._header = not append
        self._dof: int | None = None
        self._first: tuple[float, float] | None = None

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """Tell OpenMM when the next line is due and what it needs."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": ["energy"]}

    def report(self, simulation: Any, state: openmm.State) -> None:
        integrator = simulation.integrator
        if not isinstance(integrator, ScoreDynamicsIntegrator):
            raise ValueError(
                "ScoreDynamicsReporter needs a simulation with a ScoreDynamicsIntegrator, got "
                f"{type(integrator).__name__}"
            )
        if self._dof is None:
            self._dof = degrees_of_freedom(simulation.system)
        numbers = integrator.getStatistics()
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
        row = {
            "Step": simulation.currentStep,
            "MD Time (ps)": f"{numbers['md_time_ps']:.10g}",
            "Jumps": numbers["jumps_accepted"],
            "Effective Time (ps)": f"{numbers['effective_time_ps']:.10g}",
            "Jumps Tried": numbers["jumps_tried"],
            "Redraws": numbers["redraws"],
            "Fallbacks": numbers["fallbacks"],
            "Novel": numbers["novel"],
            "Last Event": integrator.getLastEvent(),
            **{f"Rejected: {name}": n for name, n in numbers["rejections"].items()},
            "Settle Steps": _or_nothing(numbers["settle"]["steps"]),
            "Jump Energy (kJ/mol)": _or_nothing(numbers["settle"]["energy_before_kJ_per_mol"]),
            "Settled Energy (kJ/mol)": _or_nothing(numbers["settle"]["energy_after_kJ_per_mol"]),
            "Settle Time (ps)": f"{numbers['settle']['time_ps']:.10g}",
            "Potential Energy (kJ/mol)": repr(
                state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            ),
            "Temperature (K)": f"{2.0 * kinetic / (self._dof * BOLTZMANN):.6g}",
        }
        if self._seconds:
            row["Effective Speed (ns/day)"] = self._speed(numbers["effective_time_ps"])
            row |= {f"Seconds: {part}": f"{n:.6f}" for part, n in numbers["seconds"].items()}
        header = ",".join(f'"{name}"' for name in row)
        if self._before is not None and self._before != header:
            raise ValueError(
                "the file to append to has other columns, perhaps from another version of "
                f"openmm-sd; its first line is {self._before[:80]!r}"
            )
        self._before = None
        if self._header:
            print(header, file=self._file)
            self._header = False
        print(",".join(str(value) for value in row.values()), file=self._file)
        self._file.flush()

    def _speed(self, effective_ps: float) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = now, effective_ps
        began, before = self._first
        return f"{86.4 * (effective_ps - before) / (now - began):.6g}" if now > began else ""

    def __del__(self) -> None:
        if getattr(self, "_own", False) and hasattr(self, "_file"):
            self._file.close()


def _or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def degrees_of_freedom(system: openmm.System) -> int:
    """Degrees of freedom that carry kinetic energy."""
    massive = [
        system.getParticleMass(i).value_in_unit(unit.dalton) > 0
        for i in range(system.getNumParticles())
    ]
    count = 3 * sum(massive)
    for k in range(system.getNumConstraints()):
        i, j, _ = system.getConstraintParameters(k)
        count -= massive[i] or massive[j]
    if any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces()):
        count -= 3
    return count
