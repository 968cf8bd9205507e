"""Training of diffusion propagators from molecular dynamics frames."""

from .pairs import TransitionPairs, methyl_rotors
from .trainer import (
    TrainingRecord,
    TrainSettings,
    align_frames,
    denoising_loss,
    fit_statistics,
    held_out_loss,
    train,
)

__all__ = [
    "TrainSettings",
    "TrainingRecord",
    "TransitionPairs",
    "align_frames",
    "denoising_loss",
    "fit_statistics",
    "held_out_loss",
    "methyl_rotors",
    "train",
]
