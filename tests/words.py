"""Words of a command line."""

from __future__ import annotations

from collections.abc import Iterable


def shortened(words: Iterable[str], small: str) -> list[str]:
    """Return a command of the documentation with options that make it small instead of its own."""
    result, options = list(words), small.split()
    while options:
        option, *rest = options
        count = next((k for k, word in enumerate(rest) if word.startswith("--")), len(rest))
        if option in result:
            at = result.index(option)
            del result[at : at + 1 + count]
        result += [option, *rest[:count]]
        options = rest[count:]
    return result
