"""Training of diffusion propagators from molecular dynamics frames.

:func:`train_bundle` is what ``openmm-sd train`` does; the rest are its parts.
"""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from .driver import train_bundle as train_bundle
    from .networks import family_statistics as family_statistics, fit_statistics as fit_statistics
    from .pairs import TransitionPairs as TransitionPairs, methyl_rotors as methyl_rotors
    from .settings import (
        DistillOptions as DistillOptions,
        StageSettings as StageSettings,
        TrainOptions as TrainOptions,
        TrainSettings as TrainSettings,
    )
    from .trainer import (
        Part as Part,
        TrainingRecord as TrainingRecord,
        denoising_loss as denoising_loss,
        held_out_loss as held_out_loss,
        train as train,
    )
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".driver": "train_bundle",
            ".networks": "family_statistics fit_statistics",
            ".pairs": "TransitionPairs methyl_rotors",
            ".settings": "DistillOptions StageSettings TrainOptions TrainSettings",
            ".trainer": "Part TrainingRecord denoising_loss held_out_loss train",
        },
    )

callable_package(__name__)
