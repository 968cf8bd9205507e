"""What every bridge does, and the names of the parameters through which a jump is triggered.

A bridge turns a :class:`~openmm_sd.jump.jump.Jump` into an OpenMM Force. While no jump is
under way the force returns zeros without touching the model. When the parameter
``openmm_sd_number`` is not zero it returns *the displacement* (nm) as the force on the solute's
particles and *the status* as its energy.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import openmm

from ..files.atomic import first_line
from ..jump.jump import Jump

#: Name of the force in the System, by which it is found again.
FORCE_NAME = "openmm-sd jump"

#: 0 while no jump is under way, else the number of the jump, counted from 1.
NUMBER = "openmm_sd_number"
#: Number of the try within the jump, from 0.
ATTEMPT = "openmm_sd_try"
#: Seed of the run.
SEED = "openmm_sd_seed"
#: Lag in ps.
LAG = "openmm_sd_lag"
#: How many tries are drawn in one batch.
CANDIDATES = "openmm_sd_candidates"
#: Novelty of a frame above which nothing is drawn.
NOVELTY = "openmm_sd_novelty"

#: What a bridge's exception says when the user pressed ctrl-C in the middle of the model: OpenMM
#: passes on an exception's message, but not its type.
INTERRUPTED = "openmm-sd: stopped by the user"

#: In the order in which they are added to a force (openmm-torch passes them by position).
PARAMETERS = (NUMBER, ATTEMPT, CANDIDATES, SEED, LAG, NOVELTY)


def platform_names() -> list[str]:
    """Names of the OpenMM platforms on this machine."""
    count = openmm.Platform.getNumPlatforms()
    return [openmm.Platform.getPlatform(i).getName() for i in range(count)]


class NotScriptable(ValueError):
    """TorchScript cannot compile the propagator, and the bridge takes nothing else."""

    def __init__(self, bridge: str, error: BaseException) -> None:
        super().__init__(
            f"bridge={bridge!r} needs a propagator that TorchScript can compile: "
            f"{first_line(error)}; bridge='pythonforce' runs it as it is"
        )


class Bridge(ABC):
    """One way for a propagator to reach OpenMM.

    Attributes
    ----------
    name : str
        What a user writes as ``bridge=``.
    install_hint : str
        What to install where the bridge does not work.
    package : str or None
        The Python package that it needs beside OpenMM and torch.
    """

    name: ClassVar[str]
    install_hint: ClassVar[str]
    package: ClassVar[str | None] = None

    def installed(self) -> bool:
        """Whether what it needs is there, be it in working order or not."""
        return self.package is None or importlib.util.find_spec(self.package) is not None

    @abstractmethod
    def create_force(
        self, jump: Jump, particles: Sequence[int], periodic: bool, file: str | None = None
    ) -> openmm.Force:
        """Build a force named `FORCE_NAME`, with the global parameters `PARAMETERS`.

        `particles` are the System indices of the solute's atoms, in the order of the model's
        molecule. The caller sets the force group. `file` is the model's, where there is one: what
        stands in it need not be written with the force. NotScriptable if the bridge needs a
        propagator that TorchScript can compile, and it cannot.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of what the bridge is made of; raises ImportError where a part is missing."""
