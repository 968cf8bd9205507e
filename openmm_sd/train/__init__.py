"""Training of diffusion propagators from molecular dynamics frames."""

from .trainer import (
    TrainingRecord,
    TrainSettings,
    TransitionPairs,
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
    "train",
]
