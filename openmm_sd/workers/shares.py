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


def shares(count: int | None, devices: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Share this machine out: return the environment of each of several processes.

    Their number is one a GPU by default, without GPUs one a core; `devices` are the names of the
    GPUs to use, by default all.
    """
    devices, cores = gpus() if devices is None else devices, len(os.sched_getaffinity(0))
    count = count if count is not None else len(devices) or cores
    if count < 1:
        raise ValueError(f"the number of workers must be at least 1, got {count}")
    threads = str(max(1, cores // count))
    common = {name: threads for name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS")}
    common |= {"MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    return [
        common | ({"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} if devices else {})
        for k in range(count)
    ]
