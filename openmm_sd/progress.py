"""How long work says what it is doing: a callback of two words, what and how far."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is being done and how far it is. What is called ``note`` is for people to keep.
Progress = Callable[[str, str], None]


def silence(what: str, how_far: str) -> None:
    """Say nothing."""
