"""One jump, from the positions OpenMM holds to the displacement it should add.

:class:`Jump` is the single place where a propagator meets a running simulation. Every bridge calls
the same module, so all of them propose the same frames; rollouts call its parts for many frames at
once. It does, in this order:

1. make the solute whole across the periodic box;
2. relabel equivalent atoms (the hydrogens of a methyl, say) so that the frame has the handedness
   the model was trained on;
3. ask whether the frame is like those the model was trained on;
4. draw the noise of this jump and its tries, one row a candidate, and call the propagator once;
5. put hydrogens back to their constrained bond lengths;
6. ask the gates, and take the first candidate that passes;
7. return the displacement relative to the positions that came in, and a status.

The status is one number, because an OpenMM force has one energy. What it says is in `read_status`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..model.model import ScoreModel
from ..molecule.graph import spanning_edges
from ..molecule.molecule import Molecule
from ..propagator.noise import standard_normal
from .gates import (
    GATES,
    AngleGate,
    BondGate,
    ChiralityGate,
    ContactGate,
    DisplacementGate,
    FiniteGate,
    Gate,
    TorsionGate,
    signed_volumes,
)

#: What `Jump.judge` says of a proposal that passed every gate.
STATUS_ACCEPTED = 1
#: Status of a jump from a frame unlike those that the model was trained on: nothing was drawn.
STATUS_NOVEL = -1
#: Candidates are counted in digits of this base.
STATUS_BASE = 8
#: Most candidates that one call can draw: what a digit holds.
MAX_CANDIDATES = STATUS_BASE - 1

#: Errors of the model or its input, which drawing again does not mend. The status is the code with
#: a minus sign.
ERRORS = {
    101: "the propagator returned a frame of the wrong shape",
    102: "the propagator returned a frame of the wrong dtype (float32 is required)",
    103: "the solute is a mirror image of the model's molecule at a stereocentre",
    104: "the solute's positions were not finite before the jump: MD blew up",
}

#: Rejections by the gate's code: the names under which the integrator counts them.
REJECTIONS = {gate.code: gate.name for gate in GATES}


def read_status(status: float) -> tuple[bool, dict[str, int]]:
    """Read the positive status of a `Jump` at which something was drawn.

    In base `STATUS_BASE` its last digit is 1 if a candidate passed and was taken, else 0. The digit
    ``code - 1`` places further up counts the candidates before it that the gate of that code turned
    down. Returns whether one was taken, and the candidates turned down by the gate's name.
    """
    digits = [int(status) // STATUS_BASE**k % STATUS_BASE for k in range(max(REJECTIONS))]
    return digits[0] == 1, {name: digits[code - 1] for code, name in REJECTIONS.items()}


class JumpError(RuntimeError):
    """The propagator failed in a way that drawing again does not mend."""


def build_gates(
    molecule: Molecule,
    max_displacement: float,
    bond_windows: Sequence,
    contact_distances: Sequence = (),
    angle_windows: Sequence = (),
    torsion_windows: Sequence = (),
) -> list[Gate]:
    """Build the gates of one molecule, in the order in which they are asked.

    `max_displacement` is the largest of an atom in one jump, nm. A window is atom, atom, shortest
    and longest distance in nm, of bonds, or of the ends of angles and of torsions that do not turn;
    a contact is atom, atom and shortest distance in nm.
    """
    gates: list[Gate] = [FiniteGate(), DisplacementGate(max_displacement)]
    if len(bond_windows):
        gates.append(BondGate([tuple(w) for w in bond_windows]))
    hand = molecule.handedness
    stereo = np.flatnonzero(hand.stereo)
    if len(stereo):
        gates.append(ChiralityGate(hand.centres[stereo].tolist(), hand.signs[stereo].tolist()))
    if len(contact_distances):
        gates.append(ContactGate([tuple(c) for c in contact_distances]))
    if len(angle_windows):
        gates.append(AngleGate([tuple(w) for w in angle_windows]))
    if len(torsion_windows):
        gates.append(TorsionGate([tuple(w) for w in torsion_windows]))
    return gates


def gates_of(model: ScoreModel, molecule: Molecule) -> list[Gate]:
    """Build the gates that a model's card asks for, in the atom order of one of its molecules."""
    return build_gates(
        molecule,
        model.max_displacement,
        model.bond_windows,
        model.contact_distances,
        model.angle_windows,
        model.torsion_windows,
    )


class Jump(torch.nn.Module):
    """The work of one jump, as a scriptable module.

    Parameters
    ----------
    propagator : torch.nn.Module
        See :class:`~openmm_sd.propagator.contract.Propagator`.
    molecule : Molecule
        The molecule it knows; all atom indices below are in this molecule's order.
    gates : list of Gate
        What a proposal must pass.
    constraints : sequence of (int, int, float)
        Heavy atom, hydrogen and constrained distance (nm) of the System.
    novelty : torch.nn.Module, optional
        Gives each frame of a batch a number that grows with its distance from the training data.
    """

    bond_sums: Tensor
    bond_from: Tensor
    bond_to: Tensor
    centres: Tensor
    signs: Tensor
    swaps: Tensor
    heavy: Tensor
    hydrogen: Tensor
    length: Tensor

    def __init__(
        self,
        propagator: torch.nn.Module,
        molecule: Molecule,
        gates: Sequence[Gate],
        constraints: Sequence[tuple[int, int, float]] = (),
        novelty: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.propagator = propagator
        self.novelty = NothingNew() if novelty is None else novelty
        self.gates = torch.nn.ModuleList(gates)
        self.n_atoms = molecule.n_atoms
        self.noise_size = int(propagator.noise_size)  # type: ignore[arg-type]

        edges = np.array(spanning_edges(molecule.n_atoms, molecule.bonds), dtype=np.int64)
        parents, children = edges.reshape(-1, 2).T
        # Sums bond vectors along the way from the first atom to each atom.
        sums = np.zeros((molecule.n_atoms, len(edges)))
        for k, (parent, child) in enumerate(edges):
            sums[child] = sums[parent]
            sums[child, k] = 1.0
        self.register_buffer("bond_from", torch.tensor(parents))
        self.register_buffer("bond_to", torch.tensor(children))
        self.register_buffer("bond_sums", torch.from_numpy(sums))

        hand = molecule.handedness
        self.n_centres = len(hand.signs)
        self.register_buffer(
            "centres", torch.as_tensor(np.array(hand.centres, dtype=np.int64)).reshape(-1, 4)
        )
        self.register_buffer("signs", torch.as_tensor(np.array(hand.signs, dtype=np.float64)))
        self.register_buffer(
            "swaps", torch.as_tensor(np.array(hand.swaps, dtype=np.int64)).reshape(-1, self.n_atoms)
        )
        self.n_constraints = len(constraints)
        self.register_buffer("heavy", torch.tensor([c[0] for c in constraints], dtype=torch.int64))
        self.register_buffer(
            "hydrogen", torch.tensor([c[1] for c in constraints], dtype=torch.int64)
        )
        self.register_buffer(
            "length",
            torch.tensor([[c[2]] for c in constraints], dtype=torch.float64).reshape(-1, 1),
        )

    def forward(
        self,
        positions: Tensor,
        box: Tensor,
        number: int,
        attempt: int,
        candidates: int,
        seed: int,
        lag: float,
        max_novelty: float,
    ) -> tuple[Tensor, Tensor]:
        """Propose one jump.

        Parameters
        ----------
        positions : Tensor
            (N, 3), nm, any floating dtype: the solute as OpenMM holds it, perhaps broken across the
            box.
        box : Tensor
            (3, 3), nm, OpenMM's reduced box vectors as rows; all zeros without a periodic box.
        number, attempt : int
            Of the jump, and of the first try; from 0.
        candidates : int
            How many tries to draw in one batch, 1 to `MAX_CANDIDATES`. The first that passes the
            gates is taken, so that the outcome does not depend on how tries are spread over calls.
        seed : int
            Seed of the run.
        lag : float
            ps.
        max_novelty : float
            Above this score of the frame nothing is drawn.

        Returns
        -------
        displacement : Tensor
            (N, 3) float64, nm: zeros unless a candidate was taken.
        status : Tensor
            Scalar float64, a whole number: `STATUS_NOVEL`, the negative of an error's code, or what
            `read_status` reads.
        """
        given = positions.to(torch.float64)
        nothing = torch.zeros_like(given)
        start = self.make_whole(given, box)
        if not bool(torch.isfinite(start).all()):
            return nothing, _status(-104, given)

        order = torch.arange(self.n_atoms, device=given.device)
        if self.n_centres > 0:
            orders, mirrored = self.relabel(start.unsqueeze(0))
            if bool(mirrored[0]):
                return nothing, _status(-103, given)
            order = orders[0]
        start = start[order]
        start = (start - start.mean(dim=0, keepdim=True)).unsqueeze(0)
        # A score that is no number is no reason to trust the frame.
        if not bool((self.novelty(start.to(torch.float32)) <= max_novelty).all()):
            return nothing, _status(-1, given)

        noise = standard_normal(seed, number, attempt, candidates, self.noise_size, given.device)
        time = torch.full([candidates], lag, dtype=torch.float32, device=given.device)
        start = start.expand(candidates, -1, -1).contiguous()
        moved, error = self.propose(start, time, noise)
        if error != 0:
            return nothing, _status(-error, given)
        verdicts: list[int] = self.judge(start, moved).tolist()
        status = 0
        for k in range(len(verdicts)):
            if verdicts[k] == 1:
                displacement = torch.zeros_like(given)
                displacement[order] = moved[k] - start[k]
                return displacement, _status(status + 1, given)
            status += 1 << 3 * (verdicts[k] - 1)  # a digit of STATUS_BASE
        return nothing, _status(status, given)

    def propose(self, start: Tensor, lag: Tensor, noise: Tensor) -> tuple[Tensor, int]:
        """Call the propagator once for a batch and put hydrogens back to their bond lengths.

        `start` is (B, N, 3) float64, nm, whole, in the model's handedness, centroids at the origin;
        `lag` (B,) float32, ps; `noise` (B, noise_size) float32, standard normal. Returns the
        proposals, (B, N, 3) float64, nm, not judged yet, and 0, or a code of `ERRORS` if the
        propagator returned something that is no frame.
        """
        frame = start.to(torch.float32)
        proposal = self.propagator(frame, lag, noise)
        if proposal.shape != frame.shape:
            return start, 101
        if proposal.dtype != torch.float32:
            return start, 102
        # The difference is taken in the precision the propagator saw, so that a kernel that moves
        # nothing displaces nothing.
        return self.constrain(start + (proposal - frame).to(torch.float64)), 0

    def judge(self, start: Tensor, moved: Tensor) -> Tensor:
        """Ask the gates about a batch: what went into `propose` and what came out.

        Returns (B,) int64: `STATUS_ACCEPTED`, or the code of the first gate that said no.
        """
        frame = start.to(torch.float32)
        judged = moved.to(torch.float32)
        status = torch.ones([start.shape[0]], dtype=torch.int64, device=start.device)
        for gate in self.gates:
            refused = torch.logical_and(status == 1, torch.logical_not(gate(frame, judged)))
            status = torch.where(refused, torch.full_like(status, gate.code), status)  # type: ignore[arg-type]
        return status

    def make_whole(self, positions: Tensor, box: Tensor) -> Tensor:
        """Undo breaks of positions (N, 3) across the box, by minimum image along the bonds.

        Both are in nm, positions float64; the box, (3, 3), is all zeros where there is none. The
        first atom stays where it is.
        """
        edges = box.to(torch.float64)
        if self.n_atoms < 2 or not bool(edges[0, 0] > 0.0):
            return positions
        bond = positions[self.bond_to] - positions[self.bond_from]
        # The box is in OpenMM's reduced form (lower triangular), so one pass from c to a suffices.
        bond = bond - torch.round(bond[:, 2:3] / edges[2, 2]) * edges[2]
        bond = bond - torch.round(bond[:, 1:2] / edges[1, 1]) * edges[1]
        bond = bond - torch.round(bond[:, 0:1] / edges[0, 0]) * edges[0]
        return positions[0:1] + torch.matmul(self.bond_sums, bond)

    def relabel(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Find the numbering of equivalent atoms that has the model's handedness.

        Takes frames (B, N, 3) float64, whole. Returns an order (B, N) int64, where
        ``start[b, order[b]]`` is the frame the propagator may see, and (B,) bool: True if a
        stereocentre has the wrong hand, which no numbering mends.
        """
        plain = torch.arange(self.n_atoms, device=start.device)
        order = plain.expand(start.shape[0], self.n_atoms)
        right = (signed_volumes(start, self.centres) * self.signs > 0).all(dim=1)
        if bool(right.all()):
            return order, torch.logical_not(right)
        # Outer branches come first: exchanging them may change the hand seen further in.
        for k in range(self.n_centres):
            centre = self.centres[k : k + 1]
            hand = signed_volumes(self.reorder(start, order), centre)[:, 0] * self.signs[k]
            order = torch.where((hand > 0).unsqueeze(1), order, order[:, self.swaps[k]])
        # What is still wrong is a stereocentre, or a relation between centres (cis and trans on a
        # ring), of the other kind.
        volumes = signed_volumes(self.reorder(start, order), self.centres)
        return order, torch.logical_not((volumes * self.signs > 0).all(dim=1))

    def reorder(self, frames: Tensor, order: Tensor) -> Tensor:
        """Renumber the atoms of frames, (B, N, 3), by orders from `relabel`, (B, N)."""
        return torch.gather(frames, 1, order.unsqueeze(2).expand(-1, -1, 3))

    def constrain(self, positions: Tensor) -> Tensor:
        """Set constrained hydrogens to their exact distance, along the bond as it points now.

        The hydrogen moves and the heavy atom stays: moving the heavy atom would break the bonds of
        the skeleton. Takes and returns (B, N, 3) float64, nm.
        """
        if self.n_constraints == 0:
            return positions
        anchor = positions[:, self.heavy]
        bond = positions[:, self.hydrogen] - anchor
        bond = bond / torch.linalg.vector_norm(bond, dim=2, keepdim=True)
        out = positions.clone()
        out[:, self.hydrogen] = anchor + self.length * bond
        return out


class NothingNew(torch.nn.Module):
    """The novelty of a model that does not know its training data: zero for every frame."""

    def forward(self, frames: Tensor) -> Tensor:
        return torch.zeros([frames.shape[0]], dtype=frames.dtype, device=frames.device)


def _status(code: int, like: Tensor) -> Tensor:
    return torch.full([], float(code), dtype=torch.float64, device=like.device)
