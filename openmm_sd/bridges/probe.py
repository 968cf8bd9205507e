"""Finding out whether a bridge works, by evaluating it for real.

An import proves nothing: builds of openmm-torch exist that import and then crash the process at the
first force evaluation. So a bridge is tried by a jump with a known answer. One with binaries of its
own is tried in a process of its own, whose crash is an answer too. That a busy machine is slow is
none: an answer is waited for, however long it takes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import openmm

from ..files.atomic import first_line, write_atomically
from ..progress import Progress
from ..version import versions
from .base import CANDIDATES, NUMBER
from .registry import BRIDGES

#: Seconds after which it is said that a bridge is being tried.
PATIENCE = 2.0

#: Signals that come from outside, as for want of memory; a crash has others.
_KILLED = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU}

_PACKAGES = ("openmm", "torch", "openmmtorch", "openmm-sd", "openmm-sd-native")
_MODULES = ("openmm", "torch", "openmmtorch", "openmm_sd_native")


@dataclass(frozen=True)
class Probe:
    """What the evaluation of one bridge on one platform gave.

    `ok` if the known answer came out; `detail` is the deviation from it, or the reason of the
    failure. If `timed_out` the process was too slow or was ended: no verdict.
    """

    bridge: str
    platform: str
    ok: bool
    detail: str
    versions: dict[str, str] = field(default_factory=dict)
    timed_out: bool = False


class NoAnswer(Exception):
    """A process that tries a bridge was ended from outside, or by its time-out."""


def evaluate(bridge_name: str, platform_name: str) -> Probe:
    """Evaluate a bridge in this process: one molecule, one known displacement.

    A crash in here is a crash of the caller; use `probe`.
    """
    import numpy as np

    from ..jump.jump import STATUS_ACCEPTED, Jump, build_gates
    from ..molecule.molecule import Molecule
    from ..propagator.kernels import Shift

    bridge = BRIDGES[bridge_name]
    versions = bridge.versions()
    shift = np.array([0.03, -0.02, 0.01])
    molecule = Molecule(
        name="hydrogen cyanide",
        atomic_numbers=(1, 6, 7),
        bonds=((0, 1), (1, 2)),
        atom_names=("H", "C", "N"),
        residue_names=("HCN",) * 3,
        residue_ids=("1",) * 3,
        positions=np.array([[0.0, 0.0, -0.1064], [0.0, 0.0, 0.0], [0.0, 0.0, 0.1156]]),
    )
    system = openmm.System()
    for mass in (12.0, 1.0, 12.0, 14.0):
        system.addParticle(mass)
    system.setDefaultPeriodicBoxVectors([2, 0, 0], [0, 2, 0], [0, 0, 2])
    bonds = openmm.HarmonicBondForce()
    bonds.setUsesPeriodicBoundaryConditions(True)
    bonds.addBond(1, 2, 0.1064, 1000.0)
    system.addForce(bonds)
    jump = Jump(Shift(3, tuple(shift)), molecule, build_gates(molecule, 1.0, []))
    force = bridge.create_force(jump, [1, 2, 3], periodic=True)
    force.setForceGroup(5)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName(platform_name)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    # The molecule lies across the box, its nitrogen wrapped to the other side.
    solute = molecule.positions + np.array([1.0, 1.0, 1.95])
    positions = np.vstack([[0.5, 0.5, 0.5], solute])
    positions[3, 2] -= 2.0
    context.setPositions(positions)

    def read() -> tuple[np.ndarray, float]:
        state = context.getState(forces=True, energy=True, groups={5})
        return (
            np.array(state.getForces(asNumpy=True)._value),
            state.getPotentialEnergy()._value,
        )

    displacement, status = read()
    if status != 0.0 or displacement.any():
        return Probe(bridge_name, platform_name, False, "not silent while idle", versions)
    context.setParameter(NUMBER, 1.0)
    context.setParameter(CANDIDATES, 1.0)
    displacement, status = read()
    deviation = float(np.abs(displacement - np.vstack([[0.0, 0.0, 0.0], [shift] * 3])).max())
    ok = status == STATUS_ACCEPTED and deviation < 1e-6
    return Probe(
        bridge_name,
        platform_name,
        ok,
        f"deviates by {deviation:.0e} nm" + ("" if ok else f" with status {status:g}"),
        versions,
    )


def probe(
    bridge: str, platform: str, timeout: float | None = None, say: Progress | None = None
) -> Probe:
    """Evaluate a bridge on a platform; without a timeout (s) it takes as long as it takes.

    Never raises for a bridge that does not work: that is its answer.
    """
    if (absent := not_installed(bridge, platform)) is not None:
        return absent
    with _announced(bridge, platform, say or _on_stderr):
        if BRIDGES[bridge].package is None:
            # Made of nothing but OpenMM and torch, which this process has loaded.
            return attempt(bridge, platform)
        answers, failure = answers_of("openmm_sd.bridges", bridge, [platform], timeout)
    return Probe(**answers[-1]) if answers else unanswered(bridge, platform, failure)


@contextlib.contextmanager
def _announced(bridge: str, platform: str, say: Progress) -> Iterator[None]:
    """Say what takes so long, if it does."""
    timer = threading.Timer(PATIENCE, say, ("trying the bridge", f"{bridge} on {platform}"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _on_stderr(what: str, how_far: str) -> None:
    print(f"openmm-sd: {what} {how_far}", file=sys.stderr, flush=True)


def not_installed(bridge: str, platform: str) -> Probe | None:
    """Return the answer of a bridge whose package is not there."""
    package = BRIDGES[bridge].package if bridge in BRIDGES else None
    if package is not None and not BRIDGES[bridge].installed():
        return Probe(bridge, platform, False, f"{package} is not installed")
    return None


def unanswered(bridge: str, platform: str, failure: Exception) -> Probe:
    """Return the answer of a process that ended without one."""
    ended = isinstance(failure, NoAnswer)
    return Probe(bridge, platform, False, str(failure), timed_out=ended)


def attempt(bridge: str, platform: str) -> Probe:
    """Evaluate a bridge in this process; whatever goes wrong is the finding."""
    try:
        return evaluate(bridge, platform)
    except Exception as error:
        return Probe(bridge, platform, False, first_line(error))


def answers_of(
    module: str, bridge: str, platforms: Sequence[str], timeout: float | None
) -> tuple[list[dict[str, Any]], Exception]:
    """Run a module for a bridge and platforms in a process of its own, which may crash.

    Returns what its lines of JSON hold, and why there are no more of them. The timeout is in s.
    """
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [environment.get("PYTHONPATH")])]
    )
    failure: Exception
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, bridge, *platforms],
            capture_output=True,
            timeout=timeout,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        failure = NoAnswer(f"no answer within {timeout:g} s, which is no verdict")
    else:
        said = done.stdout
        if done.returncode < 0:
            reason = f"the process was killed by signal {-done.returncode}"
        else:
            reason = f"the process ended with exit code {done.returncode}"
        lines = [line.strip() for line in done.stderr.decode().splitlines() if line.strip()]
        reason += f": {lines[-1]}" if lines else ""
        if -done.returncode in _KILLED:
            failure = NoAnswer(f"{reason}, which is no verdict")
        else:
            failure = RuntimeError(reason)
    return [json.loads(line) for line in said.splitlines() if line.startswith(b"{")], failure


def _cache_file() -> Path:
    """Where probes of this installation are remembered; another one is another file."""
    parts = [os.uname().nodename, str(versions(_PACKAGES))]
    for module in _MODULES:
        spec = importlib.util.find_spec(module)
        parts.append(os.path.realpath(spec.origin) if spec and spec.origin else "")
    try:
        # Built again, for whatever reason, it deserves another try.
        parts.append(importlib.metadata.distribution("openmm-sd-native").read_text("RECORD") or "")
    except importlib.metadata.PackageNotFoundError:
        parts.append("")
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "openmm-sd" / f"bridges-{key}.json"


def _read_cache() -> dict[str, dict]:
    try:
        return json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}


def _write_cache(results: dict[str, dict]) -> None:
    path = _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(results))
    except OSError:
        return  # a home that cannot be written costs a few seconds at the next start, no more


def probe_all(
    bridges: list[str], platforms: list[str], fresh: bool = False, say: Progress | None = None
) -> dict[tuple[str, str], Probe]:
    """Probe several bridges on several platforms, each with each, two at a time.

    What an earlier run of the same versions has found out is evaluated again only if `fresh`.
    """
    cache = {} if fresh else _read_cache()
    pairs = [(b, p) for b in bridges for p in platforms]
    missing = [pair for pair in pairs if "/".join(pair) not in cache]

    def ask(pair: tuple[str, str]) -> Probe:
        return probe(*pair, say=say)

    if len(missing) > 1:
        with ThreadPoolExecutor(2) as pool:
            found = dict(zip(missing, pool.map(ask, missing), strict=True))
    else:
        found = {pair: ask(pair) for pair in missing}
    results = {
        pair: found[pair] if pair in found else Probe(**cache["/".join(pair)]) for pair in pairs
    }
    if found:
        remember(found)
    return results


def remember(found: Mapping[tuple[str, str], Probe]) -> None:
    """Keep answers for later runs of the same versions."""
    # No answer is no verdict.
    kept = {"/".join(k): asdict(v) for k, v in found.items() if not v.timed_out}
    _write_cache({**_read_cache(), **kept})


@functools.cache
def default_platform() -> str:
    """Return the platform that OpenMM takes where it is left to choose."""
    system = openmm.System()
    system.addParticle(1.0)
    return openmm.Context(system, openmm.VerletIntegrator(0.001)).getPlatform().getName()


def choose_bridge(
    platform: str | None = None, without: Collection[str] = (), say: Progress | None = None
) -> str:
    """Return the name of the first bridge that passes a real evaluation.

    Without a platform it is the one that OpenMM takes by default. Bridges named in `without` will
    not do. What is being tried is said to `say`, else on standard error, if it takes long.
    """
    name = platform or default_platform()
    failures = []
    for bridge in (name for name in BRIDGES if name not in without):
        answer = probe_all([bridge], [name], say=say)[bridge, name]
        if answer.ok:
            return bridge
        failures.append(f"{bridge} on {name}: {answer.detail}")
    raise RuntimeError(
        "no bridge works here (" + "; ".join(failures) + "); 'openmm-sd doctor' says more"
    )
