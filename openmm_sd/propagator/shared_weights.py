"""Weights that do not depend on the molecule: how networks of several molecules have the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class SharedWeights(torch.nn.Module):
    """Part of networks whose parameters have shapes that know nothing of the molecule.

    What belongs to the molecule is in buffers and stays each network's own.
    """

    def weights(self) -> dict[str, Tensor]:
        """Return what is learned and does not depend on the molecule, by name."""
        return {name: value.detach() for name, value in self.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a network with the same widths and depths, of any molecule.

        Parameters
        ----------
        weights : mapping
            From `weights`.

        Raises
        ------
        ValueError
            If names or shapes differ; nothing is changed then.
        """
        for name, value in self._matching(weights).items():
            value.copy_(weights[name])

    def share_weights(self, other: SharedWeights) -> None:
        """Use the very parameters of another molecule's network: training either trains both.

        Raises
        ------
        ValueError
            If names or shapes differ; nothing is changed then.
        """
        theirs = dict(other.named_parameters())
        self._matching(theirs)
        for name, value in theirs.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, value)

    def _matching(self, weights: Mapping[str, Tensor]) -> dict[str, torch.nn.Parameter]:
        own = dict(self.named_parameters())
        different = sorted(
            name
            for name in own.keys() | weights.keys()
            if name not in own or name not in weights or own[name].shape != weights[name].shape
        )
        if different:
            raise ValueError(f"the weights are of another network: {', '.join(different[:3])}")
        return own
