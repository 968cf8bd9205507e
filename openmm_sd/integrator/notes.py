"""What a reader of a mixed run's numbers has to know, in plain language."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ..model.model import ScoreModel
from .programs import ENERGY, ENERGY_RISE

#: Kinds of notes: what the model was not made for, and all others.
SOLVENT, FORCE_FIELD, TEMPERATURE, OTHER = "solvent", "force field", "temperature", "other"
#: Kinds that say that the model was made for something else.
MISMATCHES: Final = (SOLVENT, FORCE_FIELD, TEMPERATURE)

# Share of accepted jumps below which a run is little else than MD, and where dropping them shows.
_PLAIN: Final = 0.1
_FEW: Final = 0.5
# So many jumps must have been tried before their share says anything.
_ENOUGH: Final = 5


class Note(str):
    """A sentence or two for people, with a kind for programs.

    The kind is `SOLVENT`, `FORCE_FIELD`, `TEMPERATURE` or `OTHER`.
    """

    kind: str

    def __new__(cls, kind: str, text: str) -> Note:
        note = super().__new__(cls, text)
        note.kind = kind
        return note

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.kind, str(self)


def mismatches(notes: Iterable[Note]) -> list[Note]:
    """Return the notes that say that the model was made for something else."""
    return [note for note in notes if note.kind in MISMATCHES]


def ensemble_notes(
    model: ScoreModel,
    numbers: dict[str, Any],
    lag: float,
    burst: float,
    *,
    implicit: bool = False,
) -> list[Note]:
    """Say what the ensemble of a mixed run is worth.

    `numbers` are those of ``ScoreDynamicsIntegrator.getStatistics``; lag and burst are in ps, and
    `implicit` is of the run, not of the model.
    """
    notes = []
    if model.card.is_implicit and not implicit:
        notes.append(
            Note(
                SOLVENT,
                f"The model was trained in implicit solvent ({model.card.solvent}), so the "
                "populations of this run in explicit water cannot be believed: it shows the "
                "machinery.",
            )
        )
    # By the gates that look at the whole system, after its water has settled.
    back = sum(numbers["rejections"].get(gate, 0) for gate in (ENERGY, ENERGY_RISE))
    settled = numbers["settle"]["time_ps"]
    texts = [
        "There is no Metropolis test: what a mixed run samples is the model's ensemble as much as "
        "the force field's.",
        f"Effective time is MD time plus {lag:g} ps for every accepted jump; between two jumps lie "
        f"{burst:g} ps of MD. It leaves out the {settled:.10g} ps in "
        "which only the surroundings of a jumped solute moved.",
        f"{back} proposals were undone because the potential energy stayed too high however the "
        "surroundings moved; what is undone is not a random selection.",
    ]
    if numbers["novel"]:
        texts.append(
            f"At {numbers['novel']} of {numbers['jumps_tried']} jumps the frame was unlike the "
            "model's training data, and MD covered the lag instead."
        )
    return notes + [Note(OTHER, text) for text in texts]


def dropped_jumps(numbers: dict[str, Any]) -> Note | None:
    """Return a note if so many jumps are dropped that the run is not what it was meant to be.

    `numbers` are those of ``ScoreDynamicsIntegrator.getStatistics``.
    """
    tried, accepted = numbers["jumps_tried"], numbers["jumps_accepted"]
    if tried < _ENOUGH or accepted >= _FEW * tried:
        return None
    if numbers["novel"] >= _FEW * tried:
        text = (
            f"{numbers['novel']} of {tried} frames were unlike those the model was trained on, so "
            "that MD covered the lag instead of a jump: is it the model for this system?"
        )
    elif not accepted:
        text = f"None of {tried} jumps was accepted: this is plain MD."
    else:
        text = f"Most jumps are being dropped ({accepted} of {tried} accepted)" + (
            ": this is plain MD in effect."
            if accepted < _PLAIN * tried
            else "; what is dropped is not a random selection: do not trust populations and rates."
        )
    return Note(OTHER, text)
