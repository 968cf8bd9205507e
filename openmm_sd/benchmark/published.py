"""A network as large as that of the published Score Dynamics, to measure what it costs.

Written from the description in the literature (Hsu, Sadigh, Bulatov and Zhou, JCTC 2024, 20, 2335,
and the settings of its code): a message-passing network in the manner of MeshGraphNets. Its weights
are random. It is timed, and never used to move anything.
"""

# No postponed annotations here: TorchScript reads those of forward.
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..propagator.contract import Propagator

#: Message layers, width, and network calls a jump (20 steps of a solver of third order).
LAYERS = 5
WIDTH = 200
CALLS = 60
#: Atoms closer than this in the conditioning frame exchange messages, nm.
CUTOFF_NM = 0.4

_ELEMENTS = 118
_NOISE_WAVES = 8
# Of both frames: the vector between two atoms and its length.
_EDGE_FEATURES = 8
# Displacements are scaled to about one: the published factor of 2 for each angstrom.
_SCALE_PER_NM = 20.0
# Linear schedule of the variance-preserving process.
_BETA_MIN, _BETA_MAX = 0.1, 20.0


class PublishedNetwork(Propagator):
    """Noise prediction by message passing, called 60 times a jump.

    Atoms closer than the cutoff in the frame exchange messages; all perceptrons have two hidden
    layers of the same width.

    Made as fast as ours are: the graph is built once a jump, all graphs of a batch are one list of
    edges, TorchScript compiles the whole jump with the weights as constants, and of the first layer
    of an edge's perceptron the parts that belong to its atoms are computed once an atom and not
    once an edge. The solver between calls is of first order, which costs less than the published
    one of third order; the number of calls is the published one. There is no lag among the inputs.
    """

    numbers: Tensor
    waves: Tensor

    def __init__(
        self,
        atomic_numbers: Sequence[int],
        layers: int = LAYERS,
        width: int = WIDTH,
        n_calls: int = CALLS,
        cutoff_nm: float = CUTOFF_NM,
    ) -> None:
        n_atoms = len(atomic_numbers)
        super().__init__(n_atoms, 3 * n_atoms)
        self.n_calls = int(n_calls)
        self.cutoff_nm = float(cutoff_nm)
        self.scale = _SCALE_PER_NM
        self.register_buffer("numbers", torch.tensor([int(z) for z in atomic_numbers]))
        self.register_buffer("waves", 2.0 ** torch.arange(_NOISE_WAVES) * math.pi)
        times = torch.linspace(1.0, 1e-3, self.n_calls + 1).tolist()
        integral = [0.5 * t * t * (_BETA_MAX - _BETA_MIN) + t * _BETA_MIN for t in times]
        signal = [math.exp(-0.5 * value) for value in integral]
        #: What a step of the sampler needs: time, and signal and noise before and after.
        self.steps = [
            (t, a, math.sqrt(1.0 - a * a), b, math.sqrt(1.0 - b * b))
            for t, a, b in zip(times, signal, signal[1:], strict=False)
        ]
        self.element = torch.nn.Embedding(_ELEMENTS + 1, width)
        self.time_in = torch.nn.Linear(2 * _NOISE_WAVES, width)
        self.node_in = _Rest(width, width, True)
        self.edge_in = _Perceptron(_EDGE_FEATURES, width)
        self.messages = torch.nn.ModuleList([_MessageLayer(width) for _ in range(layers)])
        self.out = _Perceptron(width, width, 3, normalised=False)

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        """Return the frame one jump later; see `Propagator` for shapes and units."""
        senders, receivers = self.edges(frame)
        known = self.known(frame, senders, receivers)
        y = noise.view(-1, 3)
        for time, signal, spread, next_signal, next_spread in self.steps:
            predicted = self.predict(y, time, frame, known, senders, receivers)
            clean = (y - spread * predicted) / signal
            y = torch.add(next_signal * clean, predicted, alpha=next_spread)
        return frame + (y / self.scale).view_as(frame)

    def edges(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return who sends to whom, (E,) each, atoms counted through the batch (B, N, 3)."""
        apart = frame.unsqueeze(1) - frame.unsqueeze(2)
        near = (apart * apart).sum(-1) < self.cutoff_nm * self.cutoff_nm
        near = near & torch.logical_not(
            torch.eye(self.n_atoms, dtype=torch.bool, device=frame.device)
        )
        which, receiver, sender = torch.nonzero(near).unbind(1)
        return which * self.n_atoms + sender, which * self.n_atoms + receiver

    def known(self, frame: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        """Return the vectors along edges in the frame and their lengths, (E, 4), scaled."""
        return self._along(self.scale * frame.reshape(-1, 3), senders, receivers)

    def predict(
        self,
        y: Tensor,
        time: float,
        frame: Tensor,
        known: Tensor,
        senders: Tensor,
        receivers: Tensor,
    ) -> Tensor:
        """Return the noise in scaled displacements (B * N, 3): one network call.

        `y` are noised scaled displacements of that shape, `time` is that of the noising process, 0
        to 1.
        """
        noised = self._along(self.scale * frame.reshape(-1, 3) + y, senders, receivers)
        phase = time * self.waves
        clock = self.time_in(torch.cat([torch.sin(phase), torch.cos(phase)]))
        atoms = self.node_in(self.element(self.numbers) + clock)
        nodes = atoms.repeat(frame.shape[0], 1)
        edges = self.edge_in(torch.cat([known, noised], dim=-1))
        for layer in self.messages:
            nodes, edges = layer(nodes, edges, senders, receivers)
        return self.out(nodes)

    def _along(self, x: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        vector = x.index_select(0, senders) - x.index_select(0, receivers)
        return torch.cat([vector, torch.linalg.vector_norm(vector, dim=-1, keepdim=True)], dim=-1)


class _Perceptron(torch.nn.Module):
    """Two hidden layers, and a layer norm at the end."""

    def __init__(self, size: int, width: int, out: int = 0, normalised: bool = True) -> None:
        super().__init__()
        self.first = torch.nn.Linear(size, width)
        self.rest = _Rest(width, out or width, normalised)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


class _Rest(torch.nn.Module):
    """What follows the first linear layer of a perceptron."""

    def __init__(self, width: int, out: int, normalised: bool) -> None:
        super().__init__()
        self.second = torch.nn.Linear(width, width)
        self.third = torch.nn.Linear(width, out)
        self.norm = torch.nn.LayerNorm(out) if normalised else torch.nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.third(F.silu(self.second(F.silu(x)))))


class _MessageLayer(torch.nn.Module):
    """Edges learn from their two atoms, atoms from the sum over their edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_edge = torch.nn.Linear(width, width)
        self.of_atoms = torch.nn.Linear(width, 2 * width, bias=False)
        self.edge = _Rest(width, width, True)
        self.of_node = torch.nn.Linear(width, width)
        self.of_messages = torch.nn.Linear(width, width, bias=False)
        self.node = _Rest(width, width, True)

    def forward(
        self, nodes: Tensor, edges: Tensor, senders: Tensor, receivers: Tensor
    ) -> tuple[Tensor, Tensor]:
        sent, received = self.of_atoms(nodes).chunk(2, dim=-1)
        first = self.of_edge(edges) + sent.index_select(0, senders)
        edges = edges + self.edge(first + received.index_select(0, receivers))
        summed = torch.zeros_like(nodes).index_add(0, receivers, edges)
        nodes = nodes + self.node(self.of_node(nodes) + self.of_messages(summed))
        return nodes, edges


class OneCall(torch.nn.Module):
    """One of the network calls of a jump, with the building of the graph left out."""

    def __init__(self, network: PublishedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, y: Tensor, frame: Tensor, known: Tensor, senders: Tensor, receivers: Tensor
    ) -> Tensor:
        """Return what `PublishedNetwork.predict` does, half-way through the noise."""
        return self.network.predict(y, 0.5, frame, known, senders, receivers)
