"""What works on this machine: a real jump through every bridge on every platform.

Every bridge runs in a process of its own: ``python -m openmm_sd.doctor BRIDGE PLATFORM ...``
evaluates one bridge on platforms and jumps through it, and prints a line of JSON for each of the
two. After a crash another process goes on with the platforms that are left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from .progress import Progress, silence

# torch before OpenMM, which loads openmm-torch's plugin when it is imported.
import torch  # isort: skip
import numpy as np
import openmm
from openmm import app

from .bridges import BRIDGES, platform_names
from .bridges.probe import (
    Probe,
    answers_of,
    attempt,
    not_installed,
    remember,
    unanswered,
)
from .files.atomic import one_line
from .integrator.integrator import ScoreDynamicsIntegrator
from .model.model import ScoreModel
from .molecule.molecule import Molecule
from .propagator.kernels import Shift
from .version import versions

# Farther from the known answer than this is wrong, nm: single precision places an atom within 1e-6.
_LANDING_NM = 1e-5
# No atom flies further while the surroundings settle.
_SETTLING_NM = 0.05
# Farther from its constraint than this is wrong, relative; OpenMM's own tolerance is 1e-5.
_CONSTRAINT = 1e-4
_SHIFT_NM = (0.03, -0.02, 0.01)
_BURST_STEPS = 5
_STEP_PS = 0.001
# All tries of a bridge take some twenty seconds on a quiet machine; after so many it hangs.
_TIMEOUT = 600.0
# A learned model may refuse some proposals; of so many jumps one has to be accepted.
_MODEL_JUMPS = 5

_OPENCL_DRIVERS = Path("/etc/OpenCL/vendors")

_INSTALLED = "is installed as it should be, so that installing it again changes nothing"

_PACKAGES = (
    *("openmm-sd", "openmm-sd-native", "openmm", "torch", "openmmtorch"),
    *("torchani", "safetensors", "mdtraj", "numpy"),
)


# -- one bridge on one platform, in this process -------------------------------------------------


def try_jumps(bridge: str, platform: str, models: Sequence[str] | None = None) -> str:
    """Jump through the integrator, with a known answer and with models, if not told all shipped.

    Returns what was found, where all is well. RuntimeError if the solute did not land where it
    should or the state after it is broken. A crash in here is a crash of the caller; use `examine`.
    """
    details = [_known_answer(bridge, platform)]
    for name in ScoreModel.shipped() if models is None else models:
        # Of a family one member stands for all.
        model = ScoreModel.load(name).members[0]
        details.append(f"{name}: {_learned_jump(model, bridge, platform)}")
    return "; ".join(details)


def _known_answer(bridge: str, platform: str) -> str:
    molecule = Molecule(
        name="formaldehyde",
        atomic_numbers=(6, 8, 1, 1),
        bonds=((0, 1), (0, 2), (0, 3)),
        atom_names=("C", "O", "H1", "H2"),
        residue_names=("FOR",) * 4,
        residue_ids=("1",) * 4,
        positions=np.array(
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.1205], [0.0, 0.0943, -0.0587], [0.0, -0.0943, -0.0587]]
        ),
    )
    model = ScoreModel(Shift(molecule.n_atoms, _SHIFT_NM), molecule)
    context, integrator = _simulation(model, bridge, platform)
    # Nothing moves of itself: the molecule is at rest where no force acts, and without friction
    # there are no random kicks. So the solute moves by the jump alone, and the atom beside it only
    # while the surroundings settle.
    before = _positions(context)
    integrator.step(_BURST_STEPS)
    integrator.makeDueJump()
    moved = _positions(context) - before
    deviation = float(np.abs(moved[: molecule.n_atoms] - _SHIFT_NM).max())
    if not 0.0 < np.abs(moved[molecule.n_atoms :]).max() < _SETTLING_NM:
        raise RuntimeError("what surrounds the solute did not settle after the jump")
    if integrator.getNumJumps() != 1 or deviation > _LANDING_NM:
        raise RuntimeError(f"the solute landed {deviation:.0e} nm from where it should")
    # The next step draws velocities, so the next burst is ordinary dynamics.
    integrator.step(_BURST_STEPS)
    integrator.makeDueJump()
    _check_state(context, integrator)
    if integrator.getNumJumps() != 2:
        raise RuntimeError("the second jump did not happen")
    return f"landed within {deviation:.0e} nm"


def _learned_jump(model: ScoreModel, bridge: str, platform: str) -> str:
    context, integrator = _simulation(model, bridge, platform)
    for _ in range(_MODEL_JUMPS):
        integrator.step(_BURST_STEPS)
        integrator.makeDueJump()
        _check_state(context, integrator)
        if integrator.getNumJumps():
            return f"jumped at try {1 + integrator.getStatistics()['redraws']}"
    raise RuntimeError(f"none of {_MODEL_JUMPS} jumps passed the gates")


def _simulation(
    model: ScoreModel, bridge: str, platform: str
) -> tuple[openmm.Context, ScoreDynamicsIntegrator]:
    """Put the model's molecule on springs, in its reference geometry, a loose atom beside it."""
    molecule = model.molecules[0]
    topology = molecule.to_topology()
    loose = topology.addResidue("AR", topology.addChain())
    topology.addAtom("AR", app.Element.getBySymbol("Ar"), loose)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(atom.element.mass)
    size = 4.0 + float(np.ptp(molecule.positions, axis=0).max())
    system.setDefaultPeriodicBoxVectors([size, 0, 0], [0, size, 0], [0, 0, size])
    springs = openmm.HarmonicBondForce()
    springs.setUsesPeriodicBoundaryConditions(True)
    distances = np.linalg.norm(molecule.positions[:, None] - molecule.positions[None, :], axis=-1)
    for i, j in molecule.bonds:
        if 1 in (molecule.atomic_numbers[i], molecule.atomic_numbers[j]):
            system.addConstraint(i, j, distances[i, j])
        else:
            springs.addBond(i, j, distances[i, j], 1e5)
    neighbours = molecule.graph().adj
    for centre in neighbours:
        around = sorted(neighbours[centre])
        for k, i in enumerate(around):
            for j in around[k + 1 :]:
                springs.addBond(i, j, distances[i, j], 1e4)
    system.addForce(springs)

    integrator = ScoreDynamicsIntegrator(
        model,
        frictionCoeff=0.0,
        stepSize=_STEP_PS,
        burst=_BURST_STEPS * _STEP_PS,
        settleTime=_BURST_STEPS * _STEP_PS,
        bridge=bridge,
        seed=1,
    )
    integrator.attach(system, topology, platform=platform)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    middle = molecule.positions - molecule.positions.mean(axis=0) + 0.5 * size
    context.setPositions(np.vstack([middle, [[0.3, 0.3, 0.3]]]))
    return context, integrator


def _positions(context: openmm.Context) -> np.ndarray:
    state = context.getState(positions=True)
    return np.array(state.getPositions(asNumpy=True)._value, dtype=np.float64)


def _check_state(context: openmm.Context, integrator: ScoreDynamicsIntegrator) -> None:
    state = context.getState(positions=True, energy=True)
    energy = (state.getPotentialEnergy() + state.getKineticEnergy())._value
    if not np.isfinite(energy):
        raise RuntimeError("the energy is not finite")
    positions = _positions(context)
    assert integrator.solute is not None
    for heavy, hydrogen, length in integrator.solute.constraints:
        error = abs(np.linalg.norm(positions[heavy] - positions[hydrogen]) / length - 1.0)
        if not error < _CONSTRAINT:
            raise RuntimeError(f"a constraint is off by {error:.0e} after the jump")


#: What the evaluation gave, whether the jumps went well, and details of them.
Try: TypeAlias = tuple[Probe, bool, str]


# -- all of them, each in a process of its own ---------------------------------------------------


def examine(
    platforms: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try every bridge on every platform, or on some.

    Returns ``versions``; ``bridges``: bridge -> platform -> ``ok``, ``detail``; ``auto``: platform
    -> the bridge that ``bridge="auto"`` takes there, or None; ``hints``: list of str.
    """
    here = platform_names()
    unknown = [name for name in platforms or [] if name not in here]
    if unknown:
        raise ValueError(f"platform must be one of {here}, got {unknown[0]!r}")
    chosen = [name for name in here if platforms is None or name in platforms]
    say = progress or silence
    say("jumping", f"{len(BRIDGES)} bridges on {', '.join(chosen)}, two at a time")

    def one(bridge: str) -> dict[str, Try]:
        row = _in_processes(bridge, chosen)
        say("jumping", f"{bridge} is done")
        return row

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(one, BRIDGES))
    tries = {
        (bridge, platform): row[platform]
        for bridge, row in zip(BRIDGES, rows, strict=True)
        for platform in chosen
    }
    probes = {pair: probe for pair, (probe, _, _) in tries.items()}
    remember(probes)
    bridges: dict[str, dict[str, dict[str, Any]]] = {}
    for (bridge, platform), (_, ok, detail) in tries.items():
        bridges.setdefault(bridge, {})[platform] = {"ok": ok, "detail": detail}
    # A build's own name says more than the package's: 2.9.1+cu128 or 2.9.1+cpu.
    builds = {"torch": str(torch.__version__), "openmm": str(openmm.__version__)}
    names = ("python", *(package.replace("-", "_") for package in _PACKAGES))
    installed = dict.fromkeys(names) | versions(_PACKAGES) | builds
    return {
        "versions": installed,
        "bridges": bridges,
        "auto": {name: next((b for b in BRIDGES if probes[b, name].ok), None) for name in chosen},
        "hints": _hints(bridges, installed, here),
    }


def _in_processes(bridge: str, platforms: Sequence[str]) -> dict[str, Try]:
    """Try a bridge on platforms; each process goes on where a crash has ended the last."""
    tries: dict[str, Try] = {}
    while left := [platform for platform in platforms if platform not in tries]:
        if (absent := not_installed(bridge, left[0])) is not None:
            tries[left[0]] = (absent, False, absent.detail)
            continue
        answers, failure = answers_of("openmm_sd.doctor", bridge, left, _TIMEOUT)
        for platform in left:
            said = [answer for answer in answers if answer["platform"] == platform]
            probe = Probe(**said[0]) if said else unanswered(bridge, platform, failure)
            if len(said) == 2:
                tries[platform] = (probe, said[1]["ok"], said[1]["detail"])
            elif said and not probe.ok:
                tries[platform] = (probe, False, probe.detail)
            else:  # here the process ended
                tries[platform] = (probe, False, f"no jump: {failure}" if said else probe.detail)
                break
    return tries


def _hints(
    bridges: dict[str, dict[str, dict[str, Any]]],
    versions: dict[str, str | None],
    platforms: Sequence[str],
) -> list[str]:
    """Say what to install or to know where something fails."""
    hints = []
    for name, bridge in BRIDGES.items():
        broken = [platform for platform, cell in bridges[name].items() if not cell["ok"]]
        if not broken:
            continue
        here = versions["openmmtorch"] if name == "torchforce" else bridge.installed()
        if not here:
            hints.append(f"{name}: {bridge.install_hint}")
        elif name == "torchforce":
            hints.append(_torchforce_hint(broken, versions))
        else:
            hints.append(f"{name} {_INSTALLED}")
    drivers = any(_OPENCL_DRIVERS.glob("*.icd"))
    if "OpenCL" not in platforms and not {"CUDA", "HIP"} & set(platforms) and not drivers:
        hints.append(
            "OpenCL is not here; on a machine without a GPU the Debian package pocl-opencl-icd "
            "brings it"
        )
    return hints


def _torchforce_hint(broken: list[str], versions: dict[str, str | None]) -> str:
    ours, build = versions["torch"] or "", versions["openmmtorch"] or ""
    if not ours.startswith(("2.10.", "2.11.", "2.12.")):
        return (
            f"torchforce: openmm-torch 1.10 works with torch 2.10 to 2.12, here is {ours}; "
            "pythonforce works with any"
        )
    if broken == ["CUDA"] and build.endswith("+cpu"):
        return (
            "torchforce on CUDA: acellera-openmmtorch-cpu has no kernels for it; uninstall it and "
            "install acellera-openmmtorch-cu13 (with torch 2.10: acellera-openmmtorch-cu12)"
        )
    return f"torchforce on {', '.join(broken)} {_INSTALLED}"


def as_text(findings: dict[str, Any]) -> str:
    """Return what `examine` found as text for people."""
    lines = ["  ".join(f"{k} {v or 'none'}" for k, v in findings["versions"].items()), ""]
    for bridge, row in findings["bridges"].items():
        for platform, cell in row.items():
            mark = "ok" if cell["ok"] else "--"
            lines.append(f"{bridge:<12} {platform:<10} {mark}  {cell['detail']}")
    lines.append("")
    by_bridge: dict[str | None, list[str]] = {}
    for platform, bridge in findings["auto"].items():
        by_bridge.setdefault(bridge, []).append(platform)
    for bridge, names in by_bridge.items():
        lines.append(f"bridge='auto' takes {bridge or 'nothing'} on {', '.join(names)}")
    lines += [f"hint: {hint}" for hint in findings["hints"]]
    return "\n".join(lines)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m openmm_sd.doctor", description=__doc__)
    parser.add_argument("bridge")
    parser.add_argument("platforms", nargs="+", metavar="platform")
    arguments = parser.parse_args()
    # Compiling a network takes a second: where all jump on one platform, one will on the others.
    models = ScoreModel.shipped()
    for platform in arguments.platforms:
        probe = attempt(arguments.bridge, platform)
        print(json.dumps(asdict(probe)), flush=True)
        if not probe.ok:
            continue
        try:
            ok, detail = True, try_jumps(arguments.bridge, platform, models)
            models = models[:1]
        except Exception as error:  # whatever went wrong is the finding
            ok, detail = False, f"{type(error).__name__}: {one_line(error)}"
        print(json.dumps({"platform": platform, "ok": ok, "detail": detail}), flush=True)


if __name__ == "__main__":
    _main()
