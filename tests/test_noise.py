"""The counter-based generator against published answers and plain statistics."""

import numpy as np
import pytest
import torch

from openmm_sd.propagator.noise import philox, standard_normal

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of Philox4x32-10 from the Random123 distribution.
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = philox(torch.tensor(counter).reshape(4, 1), key[0], key[1])
    assert words[:, 0].tolist() == expected


def test_normal_moments():
    z = standard_normal(11, 3, 0, 4000, 50, CPU).double().numpy().ravel()
    n = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    grid = np.linspace(-3, 3, 25)
    from statistics import NormalDist

    for g in grid:
        p = NormalDist().cdf(g)
        assert abs((z < g).mean() - p) < 4 * np.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("changed", ["seed", "jump", "attempt"])
def test_every_argument_matters(changed):
    arguments = {"seed": 5, "jump": 2**33 + 7, "attempt": 1}
    first = standard_normal(**arguments, candidates=1, size=64, device=CPU)
    arguments[changed] += 1
    second = standard_normal(**arguments, candidates=1, size=64, device=CPU)
    assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.5
    assert not torch.equal(first, second)


def test_jump_numbers_beyond_32_bits_differ():
    low = standard_normal(1, 5, 0, 1, 8, CPU)
    high = standard_normal(1, 5 + 2**32, 0, 1, 8, CPU)
    assert not torch.equal(low, high)


def test_candidates_are_the_later_tries():
    batch = standard_normal(9, 4, 0, 6, 30, CPU)
    alone = torch.cat([standard_normal(9, 4, k, 1, 30, CPU) for k in range(6)])
    assert torch.equal(batch, alone)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 66])
def test_any_size(size):
    z = standard_normal(1, 1, 0, 2, size, CPU)
    assert z.shape == (2, size)
    assert z.dtype == torch.float32
    assert torch.isfinite(z).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_gives_the_same_numbers():
    scripted = torch.jit.script(standard_normal)
    assert torch.equal(scripted(3, 8, 2, 2, 66, CPU), standard_normal(3, 8, 2, 2, 66, CPU))
