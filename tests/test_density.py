"""Transition densities: their parts against brute force, their sum against one."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from bead_kernel import bead_frames, wrong_kernel
from small_molecules import butane, rotated
from test_family import build as build_family
from test_transferable import network as build_transferable, peptide

from openmm_sd import ScoreModel, check_density
from openmm_sd.propagator.density import transition_density
from openmm_sd.propagator.internal.tree import (
    bridged_positions_of,
    internal_coordinates,
    log_volume,
    with_bridges,
)
from openmm_sd.propagator.kernels import (
    Identity,
    OrnsteinUhlenbeck,
    OrnsteinUhlenbeckDensity,
    Shift,
)

LAG = 10.0


@functools.cache
def ala2():
    return ScoreModel.load("ala2-water-2calls")


def ala2_frames(count):
    return torch.tensor(ala2().start_frames[:count]).double()


def alkane_frames(count, seed=1):
    return torch.tensor(rotated(butane(), count, seed=seed))


def proline_frames(count, seed=1):
    molecule = peptide("ACE-PRO-NME")
    noise = np.random.default_rng(seed).normal(size=(count, molecule.n_atoms, 3))
    return torch.tensor(molecule.positions + 0.002 * noise)


NETWORKS = {
    "beads": (wrong_kernel, bead_frames),
    "one molecule": (lambda: ala2().propagator, ala2_frames),
    "family": (lambda: build_family(butane()), alkane_frames),
    "transferable": (lambda: build_transferable(peptide("ACE-PRO-NME")), proline_frames),
}


@pytest.mark.parametrize("name", ["beads", "transferable"])
def test_volume_of_positions(name):
    """log_volume is the determinant of positions by coordinates, shifts and turns: float64."""
    network, frames = NETWORKS[name]
    own = copy.deepcopy(network()).double()
    x = frames(1)
    lengths, angles, torsions = internal_coordinates(x, own.root, own.rows)
    angles = with_bridges(angles, x, own.rows, own.bridged)
    q = torch.cat([lengths, angles, torsions], dim=1)[0]
    sizes = [part.shape[1] for part in (lengths, angles, torsions)]
    tree = own.placing_rows, own.place, own.stage_ends, own.closes

    def positions(q):
        return bridged_positions_of(*(part[None] for part in torch.split(q, sizes)), *tree)[0]

    placed = positions(q)
    slopes = torch.func.jacfwd(positions)(q).reshape(-1, len(q))
    axes = torch.eye(3, dtype=torch.float64)
    shifts = axes.repeat(len(placed), 1)
    turns = torch.stack(
        [torch.linalg.cross(axis.expand_as(placed), placed, dim=-1) for axis in axes], -1
    )
    expected = torch.linalg.slogdet(torch.cat([slopes, shifts, turns.reshape(-1, 3)], dim=1))[1]
    found = log_volume(x, own.root, own.rows, own.bridged)
    assert float(found) == pytest.approx(float(expected), abs=1e-8)


def draws(network, frames, count, seed=2):
    density = transition_density(network)
    generator = torch.Generator().manual_seed(seed)
    frame, lag = frames(count), torch.full((count,), LAG, dtype=torch.float64)
    noise = torch.randn(count, density.noise_size, generator=generator, dtype=torch.float64)
    return density, frame, lag, noise, *density.draw(frame, lag, noise)


@pytest.mark.parametrize("name", NETWORKS)
def test_density_of_a_draw_by_brute_force(name):
    """The Jacobian of the whole map by float64 autograd, through the propagator's own sampler."""
    network, frames = NETWORKS[name]
    network = network()
    density, frame, lag, noise, _, found = draws(network, frames, 4)
    assert int(torch.isfinite(found).sum()) >= 3
    own = density.fine
    order, sign = own.chosen(0.5 + 0.5 * torch.erf(noise[:, own.n_coordinates :] / math.sqrt(2)))
    frame = torch.gather(frame, 1, order.unsqueeze(-1).expand(-1, -1, 3)) * sign.view(-1, 1, 1)
    coordinates = noise[:, : own.n_coordinates]
    if name == "transferable":
        # What training does not see of the map is there all the same.
        own.see = functools.partial(seen, own)
    for k in torch.nonzero(torch.isfinite(found)).flatten().tolist():
        x, t = frame[k : k + 1], lag[k : k + 1]

        def ends(z, x=x, t=t):
            stiff, turned = own.measure(x)
            scale = own.scale_at(t)
            states = own.solve(z[None], turned, scale, *own.encode(stiff, turned, t))
            across, along = own.plane(states[-2], scale)
            later = own.build(states[-1], turned, scale)
            wanted, goal = own.measure(later)
            radius = torch.log(torch.hypot(across, along))
            return torch.cat([wanted, goal, radius], dim=1)[0], (radius, scale, later)

        slopes, (radius, scale, there) = torch.func.jacfwd(ends, has_aux=True)(coordinates[k])
        spread = scale * own.levels[-1]
        stiff = own.coupled(torch.eye(own.n_stiff, dtype=torch.float64)) * own.stiff_width
        expected = (
            torch.distributions.Normal(0.0, 1.0).log_prob(coordinates[k]).sum()
            - torch.linalg.slogdet(slopes)[1]
            - torch.distributions.Normal(0.0, spread).log_prob(radius).sum()
            - torch.linalg.slogdet(stiff)[1]
            - log_volume(there, own.root, own.rows, own.bridged)[0]
        )
        assert float(found[k]) == pytest.approx(float(expected), abs=1e-4)


def seen(own, y, sigma, turned, scale):
    from openmm_sd.propagator.sampler import preconditioning

    c_skip, _, c_in = preconditioning(sigma.view(-1, 1))
    noised = own._slots(own.noised_features(y, c_in * y, turned, scale), own.noised_index)
    return noised, own.standing(own.places(c_skip * y, turned, scale))


@pytest.mark.parametrize("name", ["beads", "one molecule", "family"])
def test_noise_comes_back(name):
    network, frames = NETWORKS[name]
    density, frame, lag, noise, later, found = draws(network(), frames, 12)
    assert float(torch.isfinite(found).double().mean()) > 0.8
    own = density.fine
    known = density._look(frame, lag) if not density.shared_size else None
    if known is None:
        order, sign = own.chosen(0.5 + 0.5 * torch.erf(noise[:, own.n_coordinates :] / 2**0.5))
        frame, later = (
            torch.gather(x, 1, order.unsqueeze(-1).expand(-1, -1, 3)) * sign.view(-1, 1, 1)
            for x in (frame, later)
        )
        known = density._look(frame, lag)
    z = noise[:, : own.n_coordinates]
    path, _ = density._run(z, known, slopes=False)
    rho = density._ends(path, known)[:, own.n_stiff + own.n_turning :]
    back, converged = density._invert(torch.cat([density._goal(later, known), rho], 1), known)
    good = torch.isfinite(found)
    assert bool(converged[good].all())
    assert float((back - z)[good].abs().max()) < 1e-6


def test_it_integrates_to_one():
    """Over positions, drawn from a wider law of lengths and angles and any torsion."""
    count = 4000
    density = transition_density(wrong_kernel())
    own = density.fine
    generator = torch.Generator().manual_seed(3)
    frame = bead_frames(1).expand(count, -1, -1)
    lag = torch.full((count,), LAG, dtype=torch.float64)

    def normal(size):
        return torch.randn(count, size, generator=generator, dtype=torch.float64)

    wider = 1.8
    _, turned = own.measure(frame)
    stiff = wider * normal(own.n_stiff)
    turn = 2 * math.pi * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    scale = own.scale_at(lag)
    plane = (torch.cat([torch.cos(turn), torch.sin(turn)], 1) - own.centre) / torch.cat(
        [scale, scale], 1
    )
    later = own.build(torch.cat([stiff, plane], 1), turned, scale)
    proposed = (
        torch.distributions.Normal(0.0, wider).log_prob(stiff).sum(1)
        - torch.log(own.stiff_width).sum()
        - math.log(2 * math.pi)
        - log_volume(later, own.root, own.rows, own.bridged)
    )
    found = density.log_density(frame, later, lag, normal(density.auxiliary_size))
    # Off the map's image there is no density.
    share = torch.exp(found - proposed).nan_to_num(nan=0.0)
    error = float(share.std() / math.sqrt(count))
    assert error < 0.06
    assert abs(float(share.mean()) - 1.0) < 3 * error


class WrongWidth(OrnsteinUhlenbeck):
    def transition_density(self):
        return WithoutWidth(self)


class WithoutWidth(OrnsteinUhlenbeckDensity):
    """Forgets that a Gaussian's height falls with its width."""

    def log_density(self, frame, later, lag, auxiliary):
        kept = torch.exp(-lag / self.kernel.relaxation_time)
        freedom = 3 * (self.kernel.n_atoms - 1)
        right = super().log_density(frame, later, lag, auxiliary)
        return right + freedom * torch.log(torch.sqrt(1 - kept * kept))


class Forgetful(OrnsteinUhlenbeck):
    def transition_density(self):
        return OrnsteinUhlenbeckDensity(OrnsteinUhlenbeck(self.n_atoms, self.relaxation_time, 0.08))


def cloud(count=6, atoms=5):
    return 0.1 * torch.randn(count, atoms, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kernel", "frames"),
    [
        (lambda: OrnsteinUhlenbeck(5, 20.0, 0.1), cloud),
        (wrong_kernel, lambda: bead_frames(6)),
    ],
    ids=["Ornstein-Uhlenbeck", "network"],
)
def test_a_good_density_passes(kernel, frames):
    report = check_density(kernel(), frames())
    assert report.passed, f"\n{report}"


def test_a_shift_has_all_its_density_at_one_place():
    kernel = Shift(5, (0.1, 0.0, 0.0))
    density = transition_density(kernel)
    frame, lag, none = cloud().double(), torch.ones(6), torch.zeros(6, 0)
    later, there = density.draw(frame, lag, none)
    assert bool((there == 0).all())
    assert bool((density.log_density(later, frame, lag, none) == -math.inf).all())
    assert bool((density.propose(frame, lag, none, none).log_ratio == -math.inf).all())


@pytest.mark.parametrize(
    ("kernel", "check"),
    [
        (Identity(5), "known"),
        (WrongWidth(5, 20.0, 0.1), "normalised"),
        (Forgetful(5, 20.0, 0.1), "of this propagator"),
    ],
    ids=["none", "wrong", "of another kernel"],
)
def test_what_is_wrong_is_found(kernel, check):
    report = check_density(kernel, cloud())
    assert not report.passed
    assert check in [line.name for line in report.failures], f"\n{report}"


def test_lengths_must_be_the_systems():
    model = ala2().propagator
    density = transition_density(model)
    known = model.hyperparameters
    a, b, c = known["root"]
    pairs = [(a, b), (c, b), *((row[0], row[1]) for row in known["tree"])]
    right = [(*pairs[k], 0.1090) for k in known["constant"]]
    density.fix_lengths(right)
    frame = ala2_frames(2)
    lag = torch.full((2,), LAG, dtype=torch.float64)
    later, _ = density.draw(frame, lag, torch.zeros(2, density.noise_size, dtype=torch.float64))
    for i, j, length in right:
        apart = torch.linalg.vector_norm(later[:, i] - later[:, j], dim=-1)
        assert torch.allclose(apart, torch.full_like(apart, length), atol=1e-12)
    with pytest.raises(ValueError, match="only the model"):
        density.fix_lengths(right[1:])
    with pytest.raises(ValueError, match="the System and not the model"):
        density.fix_lengths([*right, (*pairs[0], 0.15)])
