"""A diffusion propagator in internal coordinates, for one molecule.

Bond lengths, angles and torsions are diffused instead of Cartesian coordinates. A molecule's energy
is mostly that of stiff bonds and angles. Here each of them is a coordinate of its own, nearly
Gaussian and measured in its own width, so that an error of some per cent of a width costs little
energy; in Cartesian coordinates the same bond is a thin shell in a space scaled by how far atoms
travel. Torsions that turn are unit vectors in a plane, turned along with the frame's own torsion.
"""

# No postponed annotations here: TorchScript reads those of the class's tensors.
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...molecule.molecule import Molecule
from ..alignment import alignment_atoms, choose_frame_atoms
from ..diffusion import LAG_FEATURES, start_at_zero
from ..sampler import preconditioning
from .base import HARMONICS, InternalArguments, InternalPropagator
from .density import InternalDensity
from .tangents import layer_norm_tangents, noised_tangents, silu_slope
from .tree import NotInternal, build_tree, constant_lengths, turning_torsions

_BOTTLENECK = 128


class InternalDiffusion(InternalPropagator):
    """Lag-conditional diffusion of one molecule's next frame in internal coordinates.

    Parameters
    ----------
    width, depth : int
        Width of the network and number of its residual blocks.
    n_atoms, **coordinates
        The arguments of `InternalPropagator`, which says what the coordinates are.
    """

    plain: Tensor

    def __init__(
        self,
        *,
        n_atoms: int,
        width: int = 384,
        depth: int = 4,
        **coordinates: Unpack[InternalArguments],
    ) -> None:
        network = {"width": int(width), "depth": int(depth)}
        super().__init__(n_atoms=n_atoms, network=network, **coordinates)
        self.width = int(width)
        self.depth = int(depth)
        n_angles = 2 * HARMONICS * self.n_turning
        self.condition_in = torch.nn.Linear(self.n_stiff + n_angles + LAG_FEATURES, width)
        self.make_modulation(width, _BOTTLENECK, 2 * depth * width)
        # Unmodulated, a block's numbers are multiplied by one and shifted by zero.
        plain = torch.tensor([1.0, 0.0]).repeat_interleave(width).repeat(depth)
        self.keep("plain", plain)
        self.embed = torch.nn.Linear(self.n_coordinates + n_angles + self.n_turning, width)
        self.expand = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(depth)])
        self.contract = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(depth)])
        self.head = torch.nn.Linear(width, self.n_coordinates)
        # For a Gaussian coordinate the skip part is the right answer already.
        start_at_zero(self.head)

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

    @torch.jit.ignore
    def transition_density(self) -> InternalDensity:
        """Return the density of the next frame."""
        return InternalDensity(self)

    def encode(self, stiff: Tensor, turned: Tensor, lag: Tensor) -> tuple[Tensor, Tensor]:
        """Return context (B, width) and modulation (B, 2 * depth * width) of frame and lag."""
        features = [self.squashed(stiff), self.lag_features(lag), self.torsion_features(turned)]
        context = self.condition_out(F.silu(self.condition_in(torch.cat(features, dim=-1))))
        return context, self.modulation_by_frame(context)

    def encode_noise(self, sigma: Tensor) -> Tensor:
        """Return the modulation (L, 2 * depth * width) that belongs to noise levels (L,)."""
        return self.modulation_by_noise(sigma) + self.plain

    def denoise(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        c_skip, c_out, c_in = preconditioning(sigma.view(-1, 1))
        h = context + self.embed(self.noised_features(y, c_in * y, turned, scale))
        parts = modulation.split(self.width, dim=-1)
        for k, (expand, contract) in enumerate(zip(self.expand, self.contract)):  # noqa: B905
            z = expand(F.layer_norm(h, [self.width]))
            h = h + contract(F.silu(torch.addcmul(parts[2 * k + 1], z, parts[2 * k])))
        answer = self.head(F.layer_norm(h, [self.width]))
        return torch.addcmul(c_skip * y, c_out, answer)

    @torch.jit.ignore
    def denoise_tangents(
        self,
        y: Tensor,
        sigma: Tensor,
        turned: Tensor,
        scale: Tensor,
        context: Tensor,
        modulation: Tensor,
        tangents: Tensor,
    ) -> Tensor:
        c_skip, c_out, c_in = preconditioning(sigma.view(-1, 1))
        h = context + self.embed(self.noised_features(y, c_in * y, turned, scale))
        moved = noised_tangents(self, y, c_in, turned, scale, tangents)
        moved = F.linear(moved, self.embed.weight)
        parts = modulation.split(self.width, dim=-1)
        for k, (expand, contract) in enumerate(zip(self.expand, self.contract, strict=True)):
            assert isinstance(expand, torch.nn.Linear)
            assert isinstance(contract, torch.nn.Linear)
            normed, along = layer_norm_tangents(h, moved)
            gain = parts[2 * k]
            z = torch.addcmul(parts[2 * k + 1], expand(normed), gain)
            h = h + contract(F.silu(z))
            along = F.linear(along, expand.weight) * (gain * silu_slope(z))
            moved = moved + F.linear(along, contract.weight)
        _, along = layer_norm_tangents(h, moved)
        return c_skip * tangents + c_out * F.linear(along, self.head.weight)
