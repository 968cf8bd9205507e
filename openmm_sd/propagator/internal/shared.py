"""Networks of several molecules whose weights are the same."""

# No postponed annotations here: TorchScript reads those of the class's tensors.
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from .base import InternalPropagator


class SharedWeights(InternalPropagator):
    """Base of networks whose parameters know nothing of the molecule.

    What belongs to it is in buffers, so that a network of another molecule, with the same widths
    and depths, has parameters of the same names and shapes.
    """

    def weights(self) -> dict[str, Tensor]:
        """Return what is learned and does not depend on the molecule, by name."""
        return {name: value.detach() for name, value in self.named_parameters()}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `weights` of a network with the same widths and depths gives, of any molecule.

        ValueError if names or shapes differ; nothing is changed then.
        """
        for name, value in self._matching(weights).items():
            value.copy_(weights[name])

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round each weight to half precision, in which a bundle of them is half as large."""
        for value in self.parameters():
            value.copy_(value.to(torch.float16))

    def share_weights(self, other: Self) -> None:
        """Use the very parameters of another molecule's network: training either trains both.

        ValueError if names or shapes differ; nothing is changed then.
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
