"""Validation: a model's equilibrium, kinetics and geometry against MD, with errors.

:func:`validate` does all of it and writes the report; ``docs/validation.md`` defines every figure.
"""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from ..data.reference import (
        Reference as Reference,
        ReferenceRun as ReferenceRun,
        held_out_reference as held_out_reference,
        read_reference as read_reference,
        reference_from_arrays as reference_from_arrays,
        reference_from_dataset as reference_from_dataset,
        reference_from_trajectory as reference_from_trajectory,
    )
    from .driver import FILES as FILES, validate as validate
    from .settings import ValidateSettings as ValidateSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            "..data.reference": "Reference ReferenceRun held_out_reference read_reference "
            "reference_from_arrays reference_from_dataset reference_from_trajectory",
            ".driver": "FILES validate",
            ".settings": "ValidateSettings",
        },
    )

callable_package(__name__)
