"""Modules that were elsewhere in version 0.1.0, for scripts that import them from there."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

#: Where modules were, and where they are.
MOVED: Final = {
    "openmm_sd.dataset": "openmm_sd.data",
    "openmm_sd.propagator.novelty": "openmm_sd.model.novelty",
    "openmm_sd.shared_rollout": "openmm_sd.rollout.shared",
    "openmm_sd.train.stage": "openmm_sd.train.driver",
}


class Moved(MetaPathFinder, Loader):
    """Finds a module under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a name in `MOVED`."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the old name stand for the module itself."""
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is {new} now", FutureWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)
