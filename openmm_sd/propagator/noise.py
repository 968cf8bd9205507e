"""Counter-based noise: the same numbers for the same (seed, jump, try) on any bridge and platform.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC11), written with int64 tensor operations so that it can be scripted and runs wherever
the propagator runs. There is no state to save: a restart needs the jump number only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..settings import MAX_SEED as MAX_SEED


def philox(counter: Tensor, key_0: int, key_1: int) -> Tensor:
    """Ten rounds of Philox4x32 of a counter, (4, n) int64 with entries in [0, 2**32).

    The keys are 32-bit words. Returns the same shape, each entry uniform in [0, 2**32).
    """
    device = counter.device
    multiplier = torch.tensor([[0xD2511F53], [0xCD9E8D57]], dtype=torch.int64, device=device)
    weyl = torch.tensor([[0x9E3779B9], [0xBB67AE85]], dtype=torch.int64, device=device)
    key = torch.tensor([[key_0], [key_1]], dtype=torch.int64, device=device)
    even = counter[0::2]
    odd = counter[1::2]
    for _ in range(10):
        # The product needs 64 bits unsigned; int64 wraps, and masking after the arithmetic shift
        # recovers the high word all the same.
        product = even * multiplier
        even = ((product >> 32) & 0xFFFFFFFF).flip(0) ^ odd ^ key
        odd = (product & 0xFFFFFFFF).flip(0)
        key = (key + weyl) & 0xFFFFFFFF
    return torch.stack([even[0], odd[0], even[1], odd[1]])


def standard_normal(
    seed: int, jump: int, attempt: int, candidates: int, size: int, device: torch.device
) -> Tensor:
    """Draw standard normal numbers, (candidates, size) float32, that depend only on the arguments.

    `seed` is 0 to `MAX_SEED`; `jump`, from 0, any non-negative 64-bit integer; `attempt` the number
    of the first try within the jump, from 0; `candidates` how many tries to draw for; `size` the
    propagator's ``noise_size``. The row of a try does not depend on the others drawn with it.
    """
    rows = torch.arange(candidates, dtype=torch.int64, device=device) + attempt
    return _normals(rows, jump, size, seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)


def standard_normal_rows(seed: int, jump: int, attempt: int, rows: Tensor, size: int) -> Tensor:
    """Draw standard normal numbers, (n, size) float32, for chosen chains of a rollout.

    `rows`, (n,) int64, each in [0, 2**32), are the chains, on the device where the numbers are to
    be made; `jump` is the number of the step and `attempt` that of the try within it, from 0 to
    2**31 - 1. What a chain gets does not depend on the other chains asked for.
    """
    # The try goes into the key's second word, which `standard_normal` leaves at zero; the top bit
    # keeps a rollout's numbers apart from those of a mixed run with the same seed.
    return _normals(rows, jump, size, seed & 0xFFFFFFFF, (attempt & 0x7FFFFFFF) | 0x80000000)


def _normals(rows: Tensor, jump: int, size: int, key_0: int, key_1: int) -> Tensor:
    count = rows.shape[0]
    device = rows.device
    blocks = (size + 3) // 4
    n = count * blocks
    if n == 0:
        return torch.zeros([count, size], dtype=torch.float32, device=device)
    block = torch.arange(blocks, dtype=torch.int64, device=device).repeat(count)
    row = rows.repeat_interleave(blocks)
    words = torch.tensor(
        [jump & 0xFFFFFFFF, (jump >> 32) & 0xFFFFFFFF], dtype=torch.int64, device=device
    )
    counter = torch.stack([block, row, words[0].expand(n), words[1].expand(n)])
    bits = philox(counter, key_0, key_1).to(torch.float64)
    # Box-Muller; the half keeps the logarithm's argument off zero.
    radius = torch.sqrt(-2.0 * torch.log((bits[0::2] + 0.5) / 4294967296.0))
    angle = bits[1::2] * (2.0 * math.pi / 4294967296.0)
    normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return normal.t().reshape(count, blocks * 4)[:, :size].to(torch.float32)
