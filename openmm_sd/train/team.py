"""The processes that train one model together, started by ``torchrun``.

Every process draws the same pairs and the same noise for the whole batch and works on its share of
the rows. Gradients are averaged by PyTorch's DistributedDataParallel, so that all processes take
the step that one process would take with the whole batch, up to rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


class Team:
    """One process alone, or the one that it is among several, with the device that it computes on.

    Number 0 leads: it alone reports and writes.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = device, rank, size

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which of so many rows this process works on."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a module whose gradients are the mean over all processes.

        It starts everywhere with the parameters and buffers of the leader.
        """
        if self.size == 1:
            return module
        module.load_state_dict(self.broadcast({k: v.cpu() for k, v in module.state_dict().items()}))
        device = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(
            module, device_ids=device, broadcast_buffers=False, static_graph=True
        )

    def sums(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def broadcast(self, content: Any) -> Any:
        """Return what the leader has, in all processes."""
        if self.size == 1:
            return content
        box = [content]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def under_torchrun() -> bool:
    """Whether this process is one of several that ``torchrun`` has started."""
    return dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process speaks for all that train together."""
    return not under_torchrun() or int(os.environ["RANK"]) == 0


@contextlib.contextmanager
def join_team(device: torch.device) -> Iterator[Team]:
    """Join the processes that ``torchrun`` has started, or be alone.

    With CUDA each takes the GPU of its number on its machine; ValueError if there are fewer GPUs.
    """
    if not under_torchrun():
        yield Team(device)
        return
    if device.type == "cuda":
        place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= count:
            raise ValueError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on a machine with "
                f"{count} GPUs: give torchrun --nproc-per-node {count}, or train --device cpu"
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
