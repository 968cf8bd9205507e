"""List the models that come with openmm-sd, or show the card of one.

Models that other installed packages register are listed too.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .outcome import Outcome
from .progress import Progress

if TYPE_CHECKING:
    from ..model.listing import Listed
    from ..model.model import ScoreModel

EXAMPLE = "openmm-sd models ala2-water"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", nargs="?", metavar="NAME", help="a model's name, or a file's path")


def run(arguments: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    if arguments.model is not None:
        from ..model.model import ScoreModel

        model = ScoreModel.load(arguments.model)
        return Outcome(_described(arguments.model, model), model.summary())
    # Without the weights: torch takes longer to import than all the rest.
    from ..model.listing import read_listed
    from ..model.names import registered, shipped

    models, broken = {}, {}
    for name in (*shipped(), *registered()):
        try:
            models[name] = read_listed(name)
        except ValueError as error:
            # What another package has broken must not hide the rest.
            broken[name] = str(error)
    lines = [
        f"{name:<18} {', '.join(m.name for m in model.molecules)}; lag "
        f"{model.card.usual_lag:g} ps{_for(model)}\n  {model.card.description or ''}"
        for name, model in models.items()
    ]
    lines += [f"{name:<18} cannot be loaded\n  {reason}" for name, reason in broken.items()]
    result: dict[str, Any] = {"models": [_described(name, m) for name, m in models.items()]}
    if broken:
        result["broken"] = broken
    return Outcome(
        result,
        "\n".join(lines) or "no models come with this version of openmm-sd",
    )


def _for(model: Listed) -> str:
    uses = [f", {one.lag_ps:g} ps for {use}" for one in model.schedules for use in one.good_for]
    return "".join(uses)


def _described(name: str, model: ScoreModel | Listed) -> dict[str, Any]:
    card = model.card
    return {
        "name": name,
        "molecules": [
            {"name": m.name, "formula": m.formula, "atoms": m.n_atoms} for m in model.molecules
        ],
        "temperature_K": card.temperature,
        "lag_range_ps": card.lag_range,
        "recommended_lag_ps": card.usual_lag,
        "recommended_burst_ps": card.usual_burst,
        "schedules": [one.as_json() for one in model.schedules],
        "card": card,
    }
