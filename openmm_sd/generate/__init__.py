"""Making transition data: molecular dynamics of a solute, saved frame by frame."""

from .implicit import (
    ImplicitSettings,
    Run,
    alanine_dipeptide,
    generate_implicit,
    molecule_record,
    read_runs,
)

__all__ = [
    "ImplicitSettings",
    "Run",
    "alanine_dipeptide",
    "generate_implicit",
    "molecule_record",
    "read_runs",
]
