"""Models for openmm-sd that few need: ``ScoreModel.load`` and every command know them by name."""

from pathlib import Path

#: A student of ala2-water, for long rollouts: two network calls a jump.
ALA2_WATER_2CALLS = Path(__file__).with_name("ala2-water-2calls.safetensors")
