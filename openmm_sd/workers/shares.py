"""Shares of this machine: which GPU and how many threads each of several processes gets."""

from __future__ import annotations

import os
from collections.abc import Sequence


def gpus() -> list[str]:
    """Return the names of the GPUs that may be used here, as in CUDA_VISIBLE_DEVICES."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def shares(count: int | None, devices: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Share this machine out: return the environment of each of several processes.

    Their number is one a GPU by default, without GPUs one a core; `devices` are the names of the
    GPUs to use, by default all.
    """
    devices = gpus() if devices is None else devices
    count = count if count is not None else len(devices) or cores()
    if count < 1:
        raise ValueError(f"the number of workers must be at least 1, got {count}")
    threads = str(max(1, cores() // count))
    common = {name: threads for name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS")}
    common |= {"MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    return [
        common | ({"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} if devices else {})
        for k in range(count)
    ]
