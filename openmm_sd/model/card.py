"""What a model's card says."""

from __future__ import annotations

from .model import ScoreModel


def card_force_field(model: ScoreModel, implicit: bool = False) -> tuple[str, ...] | None:
    """Return the force field files on a model's card; None where it has none for such a solvent.

    Parameters
    ----------
    model : ScoreModel
        The model.
    implicit : bool
        Whether the solvent is implicit.
    """
    named = model.card.get("force_field")
    if (
        isinstance(named, list)
        and named
        and all(isinstance(f, str) and f.endswith(".xml") for f in named)
        and is_implicit(model) == implicit
    ):
        return tuple(named)
    return None


def is_implicit(model: ScoreModel) -> bool:
    """Whether a model was trained in implicit solvent."""
    return "implicit" in str(model.card.get("solvent", "")).lower()
