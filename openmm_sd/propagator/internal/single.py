"""A diffusion propagator in internal coordinates, for one molecule.

Bond lengths, angles and torsions are diffused instead of Cartesian coordinates. A molecule's energy
is mostly that of stiff bonds and angles. Here each of them is a coordinate of its own, nearly
Gaussian and measured in its own width, so that an error of some per cent of a width costs little
energy; in Cartesian coordinates the same bond is a thin shell in a space scaled by how far atoms
travel. Torsions that turn are unit vectors in a plane, turned along with the frame's own torsion.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...molecule.molecule import Molecule
from ..alignment import alignment_atoms, choose_frame_atoms
from ..sampler import preconditioning
from .base import HARMONICS, LAG_FREQUENCIES, NOISE_FREQUENCIES, InternalPropagator
from .tree import NotInternal, build_tree, constant_lengths, turning_torsions

_NOISE_WIDTH = 64
_BOTTLENECK = 128


class InternalDiffusion(InternalPropagator):
    """Lag-conditional diffusion of one molecule's next frame in internal coordinates.

    Parameters
    ----------
    n_atoms : int
        Number of atoms N.
    root : sequence of int
        Three bonded atoms (a, b, c), not on a line, b in the middle, that are placed first.
    tree : sequence of (int, int, int, int, int)
        How the other atoms are placed, see `InternalTree`.
    turning : sequence of int
        Rows of `tree` whose torsion turns; the others stay near one value.
    constant : sequence of int
        Which bond lengths (0 and 1: a-b and c-b; 2 + k: row k of `tree`) never change.
    heavy_atoms : sequence of int
        The atoms on which a proposal is aligned to the frame.
    lag_min_ps, lag_max_ps : float
        Range of lags the model is trained for, ps.
    width, depth : int
        Width of the network and number of its residual blocks.
    n_lag_nodes : int
        The scale by which torsions turn is stored at this many lags, evenly spaced in log(lag).
    n_calls : int
        Denoiser calls a jump. With 4, 6, 8, 10 and 32, hops of alanine dipeptide in water from
        beta to alphaR in 10 ps came out at 0.051, 0.065, 0.065, 0.065 and 0.064 (MD: 0.063).
    sigma_min, sigma_max, rho : float
        Noise levels of the sampler in widths of the coordinates; see `karras_levels`.

    Attributes
    ----------
    hyperparameters : dict
        The arguments above in plain JSON types: ``InternalDiffusion(**hyperparameters)`` rebuilds
        it.

    Notes
    -----
    Coordinates, in this order: bond lengths that vary, angles and stiff torsions, each minus its
    mean and over its width in the data; then two for every turning torsion phi, (cos d - 1) / s and
    sin d / s, where d is how far phi turns in the jump and s(lag) how far it typically does. Of
    several atoms on one bond the first carries the torsion, the others the angle between their
    plane and the first one's.

    The noise is the initial noise only; the solver is deterministic. A proposal is placed so that
    its heavy atoms are aligned to the frame's: a jump carries no net translation or rotation.
    """

    plain: Tensor

    def __init__(
        self,
        *,
        n_atoms: int,
        root: Sequence[int],
        tree: Sequence[Sequence[int]],
        turning: Sequence[int],
        constant: Sequence[int],
        heavy_atoms: Sequence[int],
        lag_min_ps: float,
        lag_max_ps: float,
        width: int = 384,
        depth: int = 4,
        n_lag_nodes: int = 12,
        n_calls: int = 8,
        sigma_min: float = 0.05,
        sigma_max: float = 10.0,
        rho: float = 10.0,
    ) -> None:
        super().__init__(
            n_atoms=n_atoms,
            root=root,
            tree=tree,
            turning=turning,
            constant=constant,
            heavy_atoms=heavy_atoms,
            lag_min_ps=lag_min_ps,
            lag_max_ps=lag_max_ps,
            n_lag_nodes=n_lag_nodes,
            n_calls=n_calls,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            rho=rho,
            network={"width": int(width), "depth": int(depth)},
        )
        self.width = int(width)
        self.depth = int(depth)
        n_stiff, size = self.n_stiff, self.n_coordinates

        n_lag = 1 + 2 * LAG_FREQUENCIES
        n_angles = 2 * HARMONICS * self.n_turning
        modulation = 2 * depth * width
        self.condition_in = torch.nn.Linear(n_stiff + n_angles + n_lag, width)
        self.condition_out = torch.nn.Linear(width, width)
        self.condition_neck = torch.nn.Linear(width, _BOTTLENECK)
        self.condition_modulation = torch.nn.Linear(_BOTTLENECK, modulation)
        self.noise_in = torch.nn.Linear(2 * NOISE_FREQUENCIES, _NOISE_WIDTH)
        self.noise_modulation = torch.nn.Linear(_NOISE_WIDTH, modulation)
        # Unmodulated, a block's numbers are multiplied by one and shifted by zero.
        plain = torch.tensor([1.0, 0.0]).repeat_interleave(width).repeat(depth)
        self.register_buffer("plain", plain, persistent=False)
        self.embed = torch.nn.Linear(size + n_angles + self.n_turning, width)
        self.expand = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(depth)])
        self.contract = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(depth)])
        self.head = torch.nn.Linear(width, size)
        # The untrained network then answers zero and the denoiser falls back on its skip part,
        # which for a Gaussian coordinate is the right answer already.
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    @classmethod
    def for_molecule(
        cls,
        molecule: Molecule,
        frames: np.ndarray | None = None,
        **settings: Any,
    ) -> "InternalDiffusion":
        """Build a network for a molecule.

        Parameters
        ----------
        molecule : Molecule
            The molecule.
        frames : ndarray
            (T, N, 3), nm: a few hundred frames that show which bonds are constrained and which
            torsions turn.
        **settings
            The other parameters of the class, lags at least.

        Raises
        ------
        NotInternal
            If there are no frames, or three atoms come near a line.
        """
        if frames is None or len(frames) < 2:
            raise NotInternal("internal coordinates need frames that show what moves")
        if molecule.n_atoms < 4:
            raise NotInternal(f"internal coordinates need 4 atoms, {molecule.name} has fewer")
        root = choose_frame_atoms(molecule, frames)
        tree = build_tree(molecule, root)
        return cls(
            n_atoms=molecule.n_atoms,
            root=root,
            tree=tree.rows,
            turning=turning_torsions(tree, frames),
            constant=constant_lengths(tree, frames),
            heavy_atoms=alignment_atoms(molecule),
            **settings,
        )

    def encode(self, stiff: Tensor, turned: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the denoiser needs to know of frame and lag; made once a jump.

        Parameters
        ----------
        stiff, turned : Tensor
            From `measure`.
        lag : Tensor
            (B,), ps.

        Returns
        -------
        tuple of Tensor
            Context (B, width) and modulation (B, 2 * depth * width).
        """
        features = [self.squashed(stiff), self.lag_features(lag), self.torsion_features(turned)]
        context = self.condition_out(F.silu(self.condition_in(torch.cat(features, dim=-1))))
        return context, self.condition_modulation(F.silu(self.condition_neck(F.silu(context))))

    def encode_noise(self, sigma: Tensor) -> Tensor:
        """Return the modulation (L, 2 * depth * width) that belongs to noise levels (L,)."""
        modulation = self.noise_modulation(F.silu(self.noise_in(self.noise_features(sigma))))
        return modulation + self.plain

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        """Return D (B, K); see `InternalPropagator.denoise`."""
        c_skip, c_out, c_in = preconditioning(sigma.view(-1, 1))
        h = context + self.embed(self.noised_features(y, c_in * y, turned, scale))
        parts = modulation.split(self.width, dim=-1)
        for k, (expand, contract) in enumerate(zip(self.expand, self.contract)):  # noqa: B905
            z = expand(F.layer_norm(h, [self.width]))
            h = h + contract(F.silu(torch.addcmul(parts[2 * k + 1], z, parts[2 * k])))
        answer = self.head(F.layer_norm(h, [self.width]))
        return torch.addcmul(c_skip * y, c_out, answer)
