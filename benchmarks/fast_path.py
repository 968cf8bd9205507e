#!/usr/bin/env python3
"""What would make a jump's network faster: ways to run it, in turn, by CPU time.

    OMP_NUM_THREADS=1 python benchmarks/fast_path.py [--batch 1 64 256] [--repeats 15] [--compile]

The network of a shipped model as plain PyTorch, compiled by TorchScript with its weights as
constants (what bridges and rollouts run), the same without autograd's bookkeeping (inference mode),
the same with the blocks' weights in bfloat16, and with --compile by torch.compile, which needs a
C++ compiler and minutes. Printed are medians of CPU time, the ratio to TorchScript within each turn
with quartiles, and the largest deviation of a position from plain PyTorch's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from openmm_sd import ScoreModel
from openmm_sd.benchmark.measure import Contestant, quartiles, take_turns
from openmm_sd.propagator.internal.single import InternalDiffusion
from openmm_sd.propagator.script import script_frozen

SCRIPTED = "TorchScript"


class Half(torch.nn.Module):
    """A linear layer whose weights and products are bfloat16."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().bfloat16())
        self.register_buffer("bias", layer.bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 for float32."""
        answer = torch.nn.functional.linear(x.to(torch.bfloat16), self.weight, self.bias)
        return answer.to(torch.float32)


def halved(network: InternalDiffusion) -> torch.nn.Module:
    """Return a copy whose blocks compute in bfloat16."""
    network = copy.deepcopy(network)
    for layers in (network.expand, network.contract):
        for k, layer in enumerate(layers):
            layers[k] = Half(layer)
    return network


def calling(module: Callable, inputs: list[Tensor], inference: bool) -> Callable[[], float]:
    """Work for a contestant."""

    def work() -> float:
        with torch.inference_mode(inference), torch.no_grad():
            module(*inputs)
        return 0.0

    return work


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ala2-water")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    model = ScoreModel.load(arguments.model)
    network = model.propagator.eval()
    frames = model.start_frames
    if not isinstance(network, InternalDiffusion) or frames is None:
        parser.error(f"{arguments.model} has no network in internal coordinates, or no frames")
    for size in arguments.batch:
        noise = torch.randn(size, network.noise_size, generator=torch.Generator().manual_seed(1))
        start = torch.from_numpy(np.resize(frames, (size, *frames.shape[1:])))
        inputs = [start, torch.full([size], 10.0), noise]
        scripted, halves = script_frozen(network), script_frozen(halved(network))
        ways: dict[str, tuple[Callable, bool]] = {
            SCRIPTED: (scripted, False),
            "plain PyTorch": (network, False),
            "TorchScript, inference mode": (scripted, True),
            "TorchScript, inference mode, bfloat16": (halves, True),
        }
        if arguments.compile:
            ways["torch.compile, inference mode"] = (torch.compile(network), True)
        turns = take_turns(
            [Contestant(name, calling(way, inputs, mode)) for name, (way, mode) in ways.items()],
            arguments.repeats,
            0.1,
            lambda what, how_far: None,
        )
        times = {name: [t.cpu_seconds / t.count for t in mine] for name, mine in turns.items()}
        with torch.no_grad():
            right = network(*inputs)
        print(f"batch {size}")
        for name, (way, mode) in ways.items():
            with torch.inference_mode(mode), torch.no_grad():
                off = float((way(*inputs) - right).abs().max())
            ratios = [a / b for a, b in zip(times[SCRIPTED], times[name], strict=True)]
            low, high = quartiles(ratios)
            print(
                f"  {name:<40} {1e3 * statistics.median(times[name]):8.2f} ms   "
                f"{statistics.median(ratios):.2f} times as fast ({low:.2f} to {high:.2f})   "
                f"off by {off:.0e} nm",
                flush=True,
            )


if __name__ == "__main__":
    main()
