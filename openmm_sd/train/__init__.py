"""Training of diffusion propagators from molecular dynamics frames.

:func:`train_bundle` is what ``openmm-sd train`` does; the rest are its parts.
"""

from .driver import train_bundle
from .networks import family_statistics, fit_statistics
from .pairs import TransitionPairs, methyl_rotors
from .settings import StageSettings, TrainSettings
from .trainer import Part, TrainingRecord, denoising_loss, held_out_loss, train

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
]
