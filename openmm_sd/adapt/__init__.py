"""A model of the user's molecule in one call: chains, MD where they go, training, in a loop."""

from typing import TYPE_CHECKING

from ..lazy import callable_package, lazy

if TYPE_CHECKING:
    from .driver import adapt as adapt
    from .settings import AdaptSettings as AdaptSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".driver": "adapt",
            ".settings": "AdaptSettings",
        },
    )

callable_package(__name__)
