"""Peak memory of a rollout, measured in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])


def peak_of_rollout(model: str, chains: int, steps: int, lag_ps: float, device: str) -> float:
    """Return the peak memory (MiB) of a process that makes a rollout and writes its trajectory."""
    arguments = json.dumps([model, chains, steps, lag_ps, device])
    paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "openmm_sd.benchmark.memory", arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the rollout whose memory is measured failed: {lines[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _main(arguments: str) -> None:
    from ..rollout.driver import run_rollout
    from ..rollout.settings import RolloutSettings

    model, chains, steps, lag_ps, device = json.loads(arguments)
    settings = RolloutSettings(
        chains=chains, steps=steps, lag_ps=lag_ps, device=device, batch=chains
    )
    with tempfile.TemporaryDirectory() as folder:
        run_rollout(model, Path(folder) / "rollout", settings)
    print(json.dumps(_peak()))


def _peak() -> float:
    """Return the peak memory (MiB) of this process."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    # That of this program alone; on Linux getrusage begins with the mark of its parent.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    _main(sys.argv[1])
