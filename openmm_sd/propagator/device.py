"""The device that networks run on."""

from __future__ import annotations

import torch


def chosen_device(name: str) -> torch.device:
    """Return the device of a name: cpu, cuda, cuda:N, or auto for a GPU where there is one.

    A ValueError says so if there is none of that name here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
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
