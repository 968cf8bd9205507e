"""What a reader of a mixed run's numbers has to know, in plain language."""

from __future__ import annotations

from typing import Any, Final

from ..model.model import ScoreModel

# Share of accepted jumps below which a run is little else than MD, and where dropping them shows.
_PLAIN: Final = 0.1
_FEW: Final = 0.5
# So many jumps must have been tried before their share says anything.
_ENOUGH: Final = 5


def ensemble_notes(
    model: ScoreModel,
    numbers: dict[str, Any],
    lag: float,
    burst: float,
    *,
    implicit: bool = False,
) -> list[str]:
    """Say what the ensemble of a mixed run is worth.

    Parameters
    ----------
    model : ScoreModel
        That made the jumps.
    numbers : dict
        Of ``ScoreDynamicsIntegrator.getStatistics``.
    lag, burst : float
        ps.
    implicit : bool
        Whether the run is in implicit solvent.
    """
    notes = []
    if model.card.is_implicit and not implicit:
        notes.append(
            f"The model was trained in implicit solvent ({model.card.solvent}), so the "
            "populations of this run in explicit water are not to be believed: it shows the "
            "machinery."
        )
    # By the gates that look at the whole system, after its water has settled.
    back = sum(n for name, n in numbers["rejections"].items() if name.startswith("energy"))
    settled = numbers["settle"]["time_ps"]
    notes += [
        "There is no Metropolis test: what a mixed run samples is the model's ensemble as much as "
        "the force field's.",
        f"Effective time counts {lag:g} ps for every accepted jump beside the MD time; between two "
        f"jumps lie {burst:g} ps of MD. It leaves out the {settled:.10g} ps in "
        "which only the surroundings of a jumped solute moved.",
        f"{back} proposals were taken back because the potential energy stayed too high, whatever "
        "way the surroundings gave; what is taken back is no random selection.",
    ]
    if numbers["novel"]:
        notes.append(
            f"At {numbers['novel']} of {numbers['jumps_tried']} jumps the frame was unlike the "
            "model's training data, and MD covered the lag instead."
        )
    return notes


def dropped_jumps(numbers: dict[str, Any]) -> str | None:
    """Say it where so many jumps are dropped that the run is not what it was meant to be.

    Parameters
    ----------
    numbers : dict
        Of ``ScoreDynamicsIntegrator.getStatistics``.
    """
    tried, accepted = numbers["jumps_tried"], numbers["jumps_accepted"]
    if tried < _ENOUGH or accepted >= _FEW * tried:
        return None
    if numbers["novel"] >= _FEW * tried:
        return (
            f"{numbers['novel']} of {tried} frames were unlike those the model was trained on, so "
            "that MD covered the lag instead of a jump: is it the model for this system?"
        )
    if not accepted:
        return f"None of {tried} jumps was accepted: this is plain MD."
    if accepted < _PLAIN * tried:
        return (
            f"Most jumps are being dropped ({accepted} of {tried} accepted): this is plain MD in "
            "effect."
        )
    return (
        f"Most jumps are being dropped ({accepted} of {tried} accepted); what is dropped is no "
        "random selection, so do not trust populations and rates."
    )
