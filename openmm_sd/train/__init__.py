"""Training of diffusion propagators from molecular dynamics frames."""

from .pairs import TransitionPairs, methyl_rotors
from .trainer import (
    TrainingRecord,
    TrainSettings,
    denoising_loss,
    family_statistics,
    fit_statistics,
    held_out_loss,
    train,
)

__all__ = [
    "TrainSettings",
    "TrainingRecord",
    "TransitionPairs",
    "denoising_loss",
    "family_statistics",
    "fit_statistics",
    "held_out_loss",
    "methyl_rotors",
    "train",
]
