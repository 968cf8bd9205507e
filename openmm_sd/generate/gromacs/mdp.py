"""What GROMACS is told of integrator, thermostat, cutoffs and output."""

from __future__ import annotations

from typing import Any, Final

from ..settings import GenerateSettings

#: Spacing of PME's grid at a cutoff of 0.9 nm, nm; it grows with the cutoff.
_GRID_NM, _GRID_CUTOFF_NM = 0.115, 0.9
#: The same where errors of PME shall not be seen.
_FINE_GRID_NM: Final = 0.06
# A spacing that follows the cutoff keeps PME's error; rounding coordinates to 1e-4 nm is what a
# data set does anyway.
_XTC_PRECISION: Final = 10000


def dynamics(
    settings: GenerateSettings,
    seed: int,
    steps: int,
    *,
    every: int = 0,
    step_ps: float | None = None,
    velocities: bool = True,
) -> dict[str, Any]:
    """Return settings of Langevin dynamics at constant volume.

    A frame of the solute is saved every so many steps; 0 saves none. `step_ps` takes the place of
    the settings' time step. Without `velocities` those of the start are taken, else new ones are
    drawn, with the same `seed` as the thermostat.
    """
    return {
        "integrator": "sd",
        "dt": settings.step_fs / 1000.0 if step_ps is None else step_ps,
        "nsteps": steps,
        "tc-grps": "System",
        "tau-t": 1.0 / settings.friction_per_ps,
        "ref-t": settings.temperature_K,
        **nonbonded(settings),
        "nstcomm": 100,
        "nstlist": 20,
        "nstenergy": 0,
        "nstlog": 0,
        "nstxout-compressed": every,
        "compressed-x-grps": "Solute",
        "compressed-x-precision": _XTC_PRECISION,
        "ld-seed": seed,
        "gen-vel": "yes" if velocities else "no",
        "gen-temp": settings.temperature_K,
        "gen-seed": seed,
        "continuation": "no" if velocities else "yes",
    }


def nonbonded(settings: GenerateSettings) -> dict[str, Any]:
    """Return settings of Lennard-Jones and Coulomb forces."""
    return {
        "cutoff-scheme": "Verlet",
        "coulombtype": "PME",
        "rcoulomb": settings.cutoff_nm,
        "rvdw": settings.cutoff_nm,
        "fourierspacing": round(_GRID_NM * settings.cutoff_nm / _GRID_CUTOFF_NM, 4),
        # Constrained bonds stand in the topology.
        "constraints": "none",
    }


def pressure(settings: GenerateSettings, tail: bool) -> dict[str, Any]:
    """Return what is added for constant pressure; `tail` corrects for the cutoff as OpenMM does."""
    return {
        "pcoupl": "C-rescale",
        "pcoupltype": "isotropic",
        "tau-p": 1.0,
        "ref-p": settings.pressure_bar,
        "compressibility": 4.5e-5,
        "DispCorr": "EnerPres" if tail else "no",
    }


def single_point(settings: GenerateSettings, *, exact: bool) -> dict[str, Any]:
    """Return settings of one evaluation of energies and forces.

    With `exact` the errors of PME are small; else it computes as in the runs.
    """
    fine = {
        "pme-order": 6,
        "fourierspacing": round(_FINE_GRID_NM * settings.cutoff_nm / _GRID_CUTOFF_NM, 4),
        "ewald-rtol": 1e-6,
        **{"vdw-modifier": "None", "coulomb-modifier": "None"},
    }
    return {
        "integrator": "md",
        "dt": 0.001,
        "nsteps": 0,
        **nonbonded(settings),
        **(fine if exact else {"vdw-modifier": "None"}),
        "nstenergy": 1,
        "nstfout": 1,
        "continuation": "yes",
        "define": "-DFLEXIBLE",
    }
