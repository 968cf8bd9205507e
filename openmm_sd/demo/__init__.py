"""The demonstration: a mixed run of a small peptide in water, from nothing to a picture."""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .driver import FILES as FILES, run_demo as run_demo
    from .settings import DemoSettings as DemoSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".driver": "FILES run_demo",
            ".settings": "DemoSettings",
        },
    )
