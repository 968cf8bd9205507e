"""Names of a package that are loaded at their first use, so that importing it loads nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy(
    package: str, homes: Mapping[str, str], first: str | None = None
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return a package's ``__getattr__``, ``__dir__`` and ``__all__``.

    `homes` has modules, as relative imports spell them, with the names that come from each;
    `first` is imported before any of them.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}
    names = sorted(home_of)

    def load(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if first is not None:
            import_module(first)
        value = getattr(import_module(home_of[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: names, names
