"""Names of a package that are loaded at their first use, so that importing it loads nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from inspect import Signature

#: Where the functions are that packages do when they are called.
_VERBS: Final = "openmm_sd.verbs"


class _CallablePackage(ModuleType):
    """A package that is also a function: the one of its name in `openmm_sd.verbs`."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._verb()(*arguments, **keywords)

    @property
    def __signature__(self) -> Signature:
        from inspect import signature

        return signature(self._verb())

    def _verb(self) -> Callable[..., Any]:
        verb: Callable[..., Any] = getattr(import_module(_VERBS), self.__name__.rpartition(".")[2])
        return verb


def callable_package(name: str) -> None:
    """Let ``openmm_sd.run(...)`` be a call, where ``openmm_sd.run`` is a package and stays one.

    A package is bound to its name in its parent by every import of it or of its modules, so that no
    function of the same name could stay there.
    """
    sys.modules[name].__class__ = _CallablePackage


def lazy(
    package: str,
    homes: Mapping[str, str],
    first: str | None = None,
    packages: str = "",
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return a package's ``__getattr__``, ``__dir__`` and ``__all__``.

    `homes` has modules, as relative imports spell them, with the names that come from each;
    `first` is imported before any of them. `packages` are inner packages, as they are.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}
    names = sorted([*home_of, *packages.split()])

    def load(name: str) -> object:
        if name in packages.split():
            return import_module(f".{name}", package)
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if first is not None:
            import_module(first)
        value = getattr(import_module(home_of[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: names, names
