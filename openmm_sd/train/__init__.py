"""Training of diffusion propagators from molecular dynamics frames.

:func:`train_bundle` is what ``openmm-sd train`` does; the rest are its parts.
"""

from .driver import StageSettings, train_bundle
from .pairs import TransitionPairs, methyl_rotors
from .trainer import (
    Part,
    TrainingRecord,
    TrainSettings,
    denoising_loss,
    family_statistics,
    fit_statistics,
    held_out_loss,
    train,
    train_together,
)

__all__ = [
    "Part",
    "StageSettings",
    "TrainSettings",
    "TrainingRecord",
    "TransitionPairs",
    "denoising_loss",
    "family_statistics",
    "fit_statistics",
    "held_out_loss",
    "methyl_rotors",
    "train",
    "train_bundle",
    "train_together",
]
