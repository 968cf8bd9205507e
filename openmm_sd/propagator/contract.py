"""The propagator contract: what a learned kernel must be, and a check anyone can run on their own.

A propagator is a pure function ``next = propagator(frame, lag, noise)``. Everything else in this
package (bridges, gates, rollouts, restarts) leans on that purity, so the contract is checked by
measurement in :func:`check_propagator` rather than trusted.
"""

import copy
import io
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..files.atomic import first_line


class Propagator(torch.nn.Module):
    """Base class of learned kernels; any ``torch.nn.Module`` with the same shape will do.

    Parameters
    ----------
    n_atoms : int
        Number of solute atoms N.
    noise_size : int
        Number K of standard normal numbers that one jump consumes. Fixed by the model, because the
        noise comes from a counter-based generator outside it. A deterministic kernel has K = 0.

    Notes
    -----
    ``forward(frame, lag, noise)`` receives

    - ``frame``: (B, N, 3) float32, nm. The whole solute (not broken across a box), in the atom
      order of the model's molecule, with its centroid at the origin;
    - ``lag``: (B,) float32, ps. The physical time that the jump covers;
    - ``noise``: (B, K) float32, standard normal,

    and returns the next frame, (B, N, 3) float32, nm, in the same coordinate system. All denoising
    steps happen inside. The kernel keeps no state between calls, draws no random numbers of its
    own and treats each element of a batch independently. It commutes with translations and proper
    rotations, pathwise (same noise) or at least in distribution; it need not, and for a chiral
    molecule must not, commute with reflections.
    """

    n_atoms: int
    noise_size: int

    def __init__(self, n_atoms: int, noise_size: int) -> None:
        super().__init__()
        if n_atoms < 1:
            raise ValueError(f"n_atoms must be at least 1, got {n_atoms}")
        if noise_size < 0:
            raise ValueError(f"noise_size must not be negative, got {noise_size}")
        self.n_atoms = n_atoms
        self.noise_size = noise_size

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define forward(frame, lag, noise)")


@dataclass(frozen=True)
class Check:
    """One line of a conformance report; its `detail` is the measured figure or the reason.

    A line that is not `required` informs and does not decide.
    """

    name: str
    passed: bool
    detail: str
    required: bool = True


@dataclass(frozen=True)
class Conformance:
    """The outcome of :func:`check_propagator`; printing it gives one line a check.

    Attributes
    ----------
    checks : list of Check
        In the order they were made. A kernel that cannot be called at all has only the first few.
    """

    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every required check passed."""
        return all(c.passed for c in self.checks if c.required)

    @property
    def failures(self) -> list[Check]:
        """The required checks that failed."""
        return [c for c in self.checks if c.required and not c.passed]

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check called {name!r}; there are: {[c.name for c in self.checks]}")

    def __str__(self) -> str:
        marks = {
            (True, True): "ok  ",
            (True, False): "FAIL",
            (False, True): "yes ",
            (False, False): "no  ",
        }
        width = max((len(c.name) for c in self.checks), default=0)
        return "\n".join(
            f"{marks[(c.required, c.passed)]}  {c.name:<{width}}  {c.detail}" for c in self.checks
        )

    def raise_on_failure(self) -> None:
        """Raise ValueError naming the failed checks, if any."""
        if not self.passed:
            lines = "; ".join(f"{c.name}: {c.detail}" for c in self.failures)
            raise ValueError(f"the propagator does not keep the contract: {lines}")


# float32 coordinates of a few nm carry rounding of about 1e-7 nm; a deep network amplifies it.
_TOLERANCE_NM = 1e-4
# The distribution test compares several hundred moments, of which single ones stray beyond 3 sigma.
_MAX_SIGMA = 6.0


def check_propagator(
    propagator: torch.nn.Module,
    frames: Tensor | None = None,
    *,
    lags: tuple[float, ...] = (1.0, 10.0, 100.0),
    samples: int = 2048,
    seed: int = 0,
) -> Conformance:
    """Measure whether a kernel keeps the propagator contract.

    Parameters
    ----------
    propagator : torch.nn.Module
        The kernel, with the attributes ``n_atoms`` and ``noise_size``.
    frames : Tensor, optional
        (B, N, 3) float32, nm: realistic frames of the molecule. Random points 0.2 nm apart are
        used without it, which a learned kernel may rightly dislike: give real frames for those.
    lags : tuple of float
        Lags in ps, used in turn along the batch.
    samples : int
        Noise draws for the rotation test in distribution, which is made only when the kernel does
        not commute with rotations pathwise.
    seed : int
        Seed of the test's own noise and rotations.

    Returns
    -------
    Conformance
        Truthful lines rather than an exception; see `Conformance.passed` and
        `Conformance.raise_on_failure`.
    """
    checks: list[Check] = []
    report = Conformance(checks)
    n_atoms = getattr(propagator, "n_atoms", None)
    noise_size = getattr(propagator, "noise_size", None)
    good = isinstance(n_atoms, int) and isinstance(noise_size, int)
    checks.append(Check("attributes", good, f"n_atoms = {n_atoms!r}, noise_size = {noise_size!r}"))
    if not good:
        return report
    assert isinstance(n_atoms, int)
    assert isinstance(noise_size, int)

    generator = torch.Generator().manual_seed(seed)
    if frames is None:
        frames = 0.2 * torch.randn(4, n_atoms, 3, generator=generator)
    if frames.dim() != 3 or tuple(frames.shape[1:]) != (n_atoms, 3):
        raise ValueError(f"frames must have shape (B, {n_atoms}, 3), got {tuple(frames.shape)}")
    frames = frames.to(torch.float32)
    if frames.shape[0] < 3:
        frames = frames.repeat(3, 1, 1)
    frames = frames - frames.mean(1, keepdim=True)
    batch = frames.shape[0]
    lag = torch.tensor([lags[i % len(lags)] for i in range(batch)], dtype=torch.float32)
    given = _Inputs(frames, lag, torch.randn(batch, noise_size, generator=generator))

    weights_before = copy.deepcopy(propagator.state_dict())
    inputs_before = [x.clone() for x in given]
    first = _first_answer(propagator, given, checks)
    if first is None:
        return report
    checks.append(_check_repeats(propagator, given, first, seed))
    weights_after = propagator.state_dict()
    unchanged = all(torch.equal(v, weights_after[k]) for k, v in weights_before.items()) and all(
        torch.equal(one, other) for one, other in zip(inputs_before, given, strict=True)
    )
    checks.append(Check("no side effects", unchanged, "weights and inputs are left as they were"))
    checks += _check_elements_and_shifts(propagator, given, first)
    checks.append(_check_rotation(propagator, given, first, samples, generator))
    mirror = torch.tensor([1.0, 1.0, -1.0])
    reflected = _call(propagator, given._replace(frames=frames * mirror))
    deviation = float((reflected - first * mirror).abs().max())
    checks.append(
        Check(
            "tells mirror images apart",
            deviation > _TOLERANCE_NM,
            f"reflection deviates by {deviation:.1e} nm",
            required=False,
        )
    )
    checks.append(_check_scripting(propagator, given, first))
    return report


class _Inputs(NamedTuple):
    frames: Tensor
    lag: Tensor
    noise: Tensor


def _call(module: torch.nn.Module, given: _Inputs) -> Tensor:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.no_grad():
        out = module(*(x.to(device) for x in given))
    return out.cpu() if isinstance(out, Tensor) else out


def _first_answer(
    propagator: torch.nn.Module, given: _Inputs, checks: list[Check]
) -> Tensor | None:
    """Call a kernel and check that what it returns is a frame; None where no more can be asked."""
    try:
        first = _call(propagator, given)
    except Exception as error:  # the kernel is foreign code: whatever it raises is the finding
        checks.append(Check("callable", False, f"{type(error).__name__}: {error}"))
        return None
    checks.append(Check("callable", True, f"batch of {len(given.frames)}"))
    if not isinstance(first, Tensor):
        checks.append(Check("shape", False, f"returned {type(first).__name__}, not a Tensor"))
        return None
    wanted = given.frames.shape
    shape_ok = first.shape == wanted
    checks.append(Check("shape", shape_ok, f"{tuple(first.shape)} for a frame of {tuple(wanted)}"))
    checks.append(Check("dtype", first.dtype == torch.float32, f"{first.dtype}"))
    if not shape_ok:
        return None
    first = first.to(torch.float32)
    bad = int((~torch.isfinite(first)).sum())
    checks.append(Check("finite", not bad, f"{bad} NaN or infinite" if bad else "all finite"))
    return None if bad else first


def _check_repeats(propagator: torch.nn.Module, given: _Inputs, first: Tensor, seed: int) -> Check:
    """Check that a second call gives the same, and draws no random numbers."""
    rng_before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        second = _call(propagator, given)
        drew = not torch.equal(
            torch.get_rng_state(), torch.Generator().manual_seed(seed + 1).get_state()
        )
    torch.set_rng_state(rng_before)
    deviation = float((first - second).abs().max())
    return Check(
        "deterministic",
        bool(torch.equal(first, second)) and not drew,
        f"two calls differ by {deviation:.1e} nm"
        + ("; it draws random numbers of its own" if drew else ""),
    )


def _check_elements_and_shifts(
    propagator: torch.nn.Module, given: _Inputs, first: Tensor
) -> list[Check]:
    """Check that elements of a batch are treated one by one, and shifts of a frame carried over."""
    single = torch.cat(
        [
            _call(propagator, _Inputs(*(x[i : i + 1] for x in given)))
            for i in range(len(given.frames))
        ]
    )
    apart = float((single - first).abs().max())
    shift = torch.tensor([1.5, -0.7, 0.4])
    shifted = _call(propagator, given._replace(frames=given.frames + shift))
    moved = float((shifted - shift - first).abs().max())
    return [
        Check("batch consistency", apart < _TOLERANCE_NM, f"one by one differs by {apart:.1e} nm"),
        Check("translation", moved < _TOLERANCE_NM, f"deviates by {moved:.1e} nm"),
    ]


def _check_rotation(
    propagator: torch.nn.Module,
    given: _Inputs,
    first: Tensor,
    samples: int,
    generator: torch.Generator,
) -> Check:
    """Check that a kernel commutes with a rotation, for each noise or at least in distribution."""
    rotation = _random_rotation(generator)
    turned = _call(propagator, given._replace(frames=given.frames @ rotation.T))
    deviation = float((turned - first @ rotation.T).abs().max())
    if deviation < _TOLERANCE_NM:
        return Check("rotation", True, f"pathwise, deviates by {deviation:.1e} nm")
    if given.noise.shape[1] == 0:
        return Check("rotation", False, f"deviates by {deviation:.1e} nm, and has no noise")
    sigma = _rotation_in_distribution(propagator, given, rotation, samples, generator)
    return Check(
        "rotation",
        sigma < _MAX_SIGMA,
        f"not pathwise ({deviation:.1e} nm); moments agree within {sigma:.1f} sigma",
    )


def _random_rotation(generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    if torch.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q.to(torch.float32)


def _rotation_in_distribution(
    propagator: torch.nn.Module,
    given: _Inputs,
    rotation: Tensor,
    samples: int,
    generator: torch.Generator,
) -> float:
    """Largest deviation, in standard errors, of the first two moments after a rotation."""
    frame, lag = given.frames[:1], given.lag[:1]
    size = given.noise.shape[1]

    def draws(x: Tensor) -> Tensor:
        z = torch.randn(samples, size, generator=generator)
        many = _Inputs(x.expand(samples, -1, -1).contiguous(), lag.expand(samples), z)
        return _call(propagator, many).double()

    plain = draws(frame) @ rotation.T.double()
    turned = draws(frame @ rotation.T)
    worst = 0.0
    centre = plain.mean(0, keepdim=True)
    for power in (1, 2):
        a, b = (plain - centre) ** power, (turned - centre) ** power
        error = torch.sqrt((a.var(0) + b.var(0)) / samples) + 1e-9
        worst = max(worst, float(((a.mean(0) - b.mean(0)).abs() / error).max()))
    return worst


def _check_scripting(propagator: torch.nn.Module, given: _Inputs, expected: Tensor) -> Check:
    # TorchScript is what openmm-torch's bridge runs; a kernel that cannot be scripted still works
    # through PythonForce, so this line informs and does not decide.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = (
                propagator
                if isinstance(propagator, torch.jit.ScriptModule)
                else torch.jit.script(copy.deepcopy(propagator).eval())
            )
            buffer = io.BytesIO()
            torch.jit.save(scripted, buffer)
            buffer.seek(0)
            again = torch.jit.load(buffer)
        deviation = float((_call(again, given) - expected).abs().max())
    except Exception as error:
        return Check("scriptable", False, first_line(error), required=False)
    return Check(
        "scriptable",
        deviation < _TOLERANCE_NM,
        f"scripted, saved and loaded, differs by {deviation:.1e} nm",
        required=False,
    )
