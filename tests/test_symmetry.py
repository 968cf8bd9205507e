"""Symmetries of the learned kernels: rotations yes, reflections no, equivalent atoms yes.

All network designs with random weights, so that nothing holds by training, and a trained model.
"""

import functools

import numpy as np
import pytest
import torch
from conftest import IMPLICIT

from openmm_sd import ScoreModel
from openmm_sd.jump.gates import FiniteGate
from openmm_sd.jump.jump import STATUS_ACCEPTED, Jump
from openmm_sd.propagator.alignment import alignment_atoms, choose_frame_atoms
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.propagator.internal.single import InternalDiffusion
from openmm_sd.propagator.internal.tree import build_tree

LAGS = {"lag_min_ps": 1.0, "lag_max_ps": 100.0}
#: Rounding of float32 through ten calls of a network, nm.
ROUNDING = 2e-5
#: What counts as another answer, nm: far above rounding, far below a typical displacement.
DIFFERENT = 2e-3
KERNELS = ["internal", "dense", "ala2-implicit"]


def frames_of(molecule, count=8, seed=0):
    """Shaken copies of the reference frame, in all orientations, (count, N, 3) float32 nm."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.tensor(molecule.positions, dtype=torch.float32)
    x = x + 0.003 * torch.randn(count, *x.shape, generator=generator)
    x = torch.stack([frame @ rotation(seed + k).T for k, frame in enumerate(x)])
    return x - x.mean(1, keepdim=True)


def rotation(seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q[:, 0] *= torch.linalg.det(q)
    return q.float()


@functools.cache
def shipped():
    return ScoreModel.load(IMPLICIT)


def molecule():
    return shipped().molecules[0]


@functools.cache
def kernel(name):
    """A kernel whose answers are neither zero nor wild."""
    if name == "ala2-implicit":
        return shipped().propagator
    torch.manual_seed(3)
    frames = frames_of(molecule(), 64, 1)
    if name == "internal":
        # The shaken frames do not show that torsions turn, so it is said.
        root = choose_frame_atoms(molecule(), frames.numpy())
        tree = build_tree(molecule(), root)
        hydrogens = {k for k, z in enumerate(molecule().atomic_numbers) if z == 1}
        turning = [k for k, row in enumerate(tree.rows) if row[4] < 0 and row[0] not in hydrogens]
        model = InternalDiffusion(
            n_atoms=molecule().n_atoms,
            root=root,
            tree=tree.rows,
            turning=turning,
            constant=[],
            heavy_atoms=alignment_atoms(molecule()),
            width=48,
            depth=2,
            **LAGS,
        )
        torch.nn.init.normal_(model.head.weight, std=0.06)
        model.fit_statistics(frames, torch.full((12, len(turning)), 0.3))
        return model.eval().requires_grad_(False)
    model = DenseDiffusion(
        n_atoms=molecule().n_atoms,
        frame_atoms=choose_frame_atoms(molecule(), frames.numpy()),
        heavy_atoms=alignment_atoms(molecule()),
        width=48,
        depth=2,
        **LAGS,
    )
    with torch.no_grad():
        # Their last layers begin at zero, which has every symmetry.
        for head in (model.vector_head, model.pair_head):
            head.weight.normal_(std=0.02)
    model.fit_statistics(frames, torch.full((12, molecule().n_atoms), 0.03))
    return model.eval().requires_grad_(False)


def inputs(model, count=8, seed=5):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, model.noise_size, generator=generator)
    return frames_of(molecule(), count), torch.full((count,), 10.0), noise


def largest(difference):
    return float(difference.abs().max())


@pytest.mark.parametrize("name", KERNELS)
def test_a_rotated_and_shifted_frame_gives_the_rotated_and_shifted_answer(name):
    model = kernel(name)
    x, lag, noise = inputs(model)
    answer = model(x, lag, noise)
    assert largest(answer - x) > 10 * DIFFERENT, "the kernel must move something to test this"
    for seed in range(3):
        turn, shift = rotation(seed), torch.tensor([0.3, -0.8, 0.5])
        moved = model(x @ turn.T + shift, lag, noise)
        assert largest(moved - (answer @ turn.T + shift)) < 5 * ROUNDING
    # The comparison notices a wrong rotation.
    assert largest(moved - (answer @ rotation(7).T + shift)) > DIFFERENT


def mirrored_answer_differs(model):
    """By how much (nm) the mirror image's answer differs from the answer's mirror image.

    The noise is mirrored too, so that a kernel blind to handedness would answer with the exact
    mirror image. In Cartesian coordinates it is given in the molecule's own axes, of which the
    mirror turns round the third; in internal ones torsions and the sines of turns change sign.
    """
    x, lag, noise = inputs(model)
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    if isinstance(model, InternalDiffusion):
        sign = torch.ones(model.noise_size)
        sign[model.n_straight : model.n_stiff] = -1.0
        sign[model.n_stiff + model.n_turning :] = -1.0
    else:
        sign = torch.tensor([1.0, 1.0, -1.0]).repeat(model.n_atoms)
    answer = model(x, lag, noise)
    reflected = model(x * mirror, lag, noise * sign)
    return (reflected - answer * mirror).abs().amax(dim=(1, 2))


@pytest.mark.parametrize("name", KERNELS)
def test_the_mirror_image_of_the_molecule_is_not_the_molecule(name):
    assert float(mirrored_answer_differs(kernel(name)).min()) > DIFFERENT


def test_the_internal_network_learns_handedness_and_is_told_it():
    def variant(told, learned):
        model = InternalDiffusion(**kernel("internal").hyperparameters).eval().requires_grad_(False)
        model.load_state_dict(kernel("internal").state_dict())
        if not told:
            # The mean torsions say which mirror image this is: flat, it is neither.
            model.stiff_mean[model.n_straight :] = 0.0
            model.stiff_width[model.n_straight :] = 1.0
        if not learned:
            model.head.weight.zero_()
        return mirrored_answer_differs(model)

    # Of neither, the answer's mirror image is the mirror image's answer: the measure is sound.
    assert float(variant(told=False, learned=False).max()) < 5 * ROUNDING
    assert float(variant(told=True, learned=False).min()) > DIFFERENT
    assert float(variant(told=False, learned=True).min()) > DIFFERENT


def hydrogen_swaps():
    """Permutations that exchange two hydrogens of one carbon, one a methyl group."""
    graph = molecule().graph()
    swaps = []
    for atom in graph:
        hydrogens = sorted(k for k in graph[atom] if molecule().atomic_numbers[k] == 1)
        if len(hydrogens) == 3:
            order = np.arange(molecule().n_atoms)
            order[hydrogens[:2]] = hydrogens[1::-1]
            swaps.append(order)
    assert len(swaps) == 3
    return swaps


def jump_of(model, x, attempt=0):
    jump = Jump(model, molecule(), [FiniteGate()])
    displacement, status = jump(x.double(), torch.zeros(3, 3), 0, attempt, 1, 1, 10.0, 0.0)
    assert int(status) == STATUS_ACCEPTED
    return displacement


@pytest.mark.parametrize("name", KERNELS)
def test_methyl_hydrogens_are_exchangeable_in_a_jump(name):
    # A network knows one numbering of each methyl group; Jump gives them that one.
    model = kernel(name)
    x, lag, noise = inputs(model, 1)
    start = jump_of(model, x[0])
    assert largest(start) > DIFFERENT
    for order in hydrogen_swaps():
        assert largest(jump_of(model, x[0, order]) - start[order]) < 10 * ROUNDING
    order = hydrogen_swaps()[0]
    # The noise of internal coordinates is not the atoms' and stays as it is.
    own = name == "internal"
    theirs = noise if own else noise.view(x.shape)[:, order].flatten(1)
    swapped = model(x[:, order], lag, theirs)
    assert largest(swapped - model(x, lag, noise)[:, order]) > DIFFERENT
