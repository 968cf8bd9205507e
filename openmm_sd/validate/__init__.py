"""Validation: a model's equilibrium, kinetics and geometry against MD, with errors.

:func:`validate` does all of it and writes the report; ``docs/validation.md`` defines every figure.
"""

from ..data.reference import (
    Reference,
    ReferenceRun,
    held_out_reference,
    read_reference,
    reference_from_arrays,
    reference_from_dataset,
    reference_from_trajectory,
)
from .driver import FILES, validate
from .settings import ValidateSettings

__all__ = [
    "FILES",
    "Reference",
    "ReferenceRun",
    "ValidateSettings",
    "held_out_reference",
    "read_reference",
    "reference_from_arrays",
    "reference_from_dataset",
    "reference_from_trajectory",
    "validate",
]
