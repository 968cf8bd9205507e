"""Training of diffusion propagators from molecular dynamics frames."""

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
    "TrainSettings",
    "TrainingRecord",
    "TransitionPairs",
    "denoising_loss",
    "family_statistics",
    "fit_statistics",
    "held_out_loss",
    "methyl_rotors",
    "train",
    "train_together",
]
