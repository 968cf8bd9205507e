"""The bridge through openmm-torch: the scripted propagator runs inside the Context, in C++."""

import contextlib
import io
import re
import warnings
from collections.abc import Sequence

import openmm
import torch
from torch import Tensor

from ..files.atomic import first_line
from ..jump.jump import Jump
from ..propagator.script import script, script_frozen
from ..version import versions
from .base import FORCE_NAME, PARAMETERS, Bridge, NotScriptable, platform_names

# Platforms on which openmm-torch moves the module to the GPU.
_GPU_PLATFORMS = {"CUDA", "HIP"}
# How OpenMM words a plugin that it could not load.
_FAILURE = re.compile(r"Error loading library (.*?): ")
_loaded: set[str] = set()


class PeriodicJump(torch.nn.Module):
    """A jump as openmm-torch calls it in a periodic System; `particles` are the solute's in it."""

    particles: Tensor

    def __init__(self, jump: torch.nn.Module, particles: Sequence[int]) -> None:
        super().__init__()
        self.jump = jump
        self.register_buffer("particles", torch.tensor(list(particles), dtype=torch.int64))

    def forward(
        self,
        positions: Tensor,
        box: Tensor,
        number: Tensor,
        attempt: Tensor,
        candidates: Tensor,
        seed: Tensor,
        lag: Tensor,
        novelty: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # openmm-torch asks for gradients of the positions, even of a module that outputs forces.
        # A return within this block is all that freezing can take.
        with torch.no_grad():
            return self.asked(positions, box, number, attempt, candidates, seed, lag, novelty)

    def asked(
        self,
        positions: Tensor,
        box: Tensor,
        number: Tensor,
        attempt: Tensor,
        candidates: Tensor,
        seed: Tensor,
        lag: Tensor,
        novelty: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return status and displacement, or zeros where no jump is under way."""
        forces = torch.zeros_like(positions)
        if float(number) == 0.0:
            return torch.zeros([], dtype=positions.dtype, device=positions.device), forces
        displacement, status = self.jump(
            positions[self.particles],
            box,
            int(float(number)) - 1,
            int(float(attempt)),
            int(float(candidates)),
            int(float(seed)),
            float(lag),
            float(novelty),
        )
        forces[self.particles] = displacement.to(positions.dtype)
        return status.to(positions.dtype), forces


class OpenJump(torch.nn.Module):
    """The same in a System without a periodic box."""

    def __init__(self, jump: torch.nn.Module, particles: Sequence[int]) -> None:
        super().__init__()
        self.inner = PeriodicJump(jump, particles)

    def forward(
        self,
        positions: Tensor,
        number: Tensor,
        attempt: Tensor,
        candidates: Tensor,
        seed: Tensor,
        lag: Tensor,
        novelty: Tensor,
    ) -> tuple[Tensor, Tensor]:
        box = torch.zeros([3, 3], dtype=positions.dtype, device=positions.device)
        return self.inner(positions, box, number, attempt, candidates, seed, lag, novelty)


class TorchForceBridge(Bridge):
    """Holds the scripted propagator in an openmm-torch TorchForce, on the Context's device."""

    name = "torchforce"
    install_hint = "pip install 'openmm-sd[openmm-torch]'"
    package = "openmmtorch"

    def create_force(
        self, jump: Jump, particles: Sequence[int], periodic: bool, file: str | None = None
    ) -> openmm.Force:
        torch_force = load_plugin()
        wrapped = (PeriodicJump if periodic else OpenJump)(jump, particles)
        try:
            # Frozen it is faster, and survives an exception in the propagator, which otherwise
            # crashes openmm-torch 1.10. But weights that have become constants would stay on the
            # CPU when openmm-torch moves the module to a GPU.
            gpu = bool(_GPU_PLATFORMS & set(platform_names()))
            module = script(wrapped) if gpu else script_frozen(wrapped)
        except Exception as error:
            raise NotScriptable(self.name, error) from error
        force = torch_force(module)
        force.setOutputsForces(True)
        force.setUsesPeriodicBoundaryConditions(periodic)
        for parameter in PARAMETERS:
            force.addGlobalParameter(parameter, 0.0)
        force.setName(FORCE_NAME)
        return force

    def versions(self) -> dict[str, str]:
        load_plugin()
        return {
            "openmm": openmm.__version__,
            "torch": torch.__version__,
            "openmmtorch": versions(("openmmtorch",)).get("openmmtorch", "unknown"),
        }


def load_plugin() -> type[openmm.Force]:
    """Import openmm-torch and make sure that OpenMM has its kernels; returns its TorchForce.

    OpenMM loads its plugins when it is imported. If that was before torch, openmm-torch's libraries
    did not find torch's and were left out without a word, so they are loaded here once more.
    """
    try:
        # openmm-torch 1.10 imports OpenMM by its old name, which prints a line on standard error.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import openmmtorch
    except Exception as error:
        raise ImportError(f"openmm-torch cannot be imported ({first_line(error)})") from error
    for failure in openmm.Platform.getPluginLoadFailures():
        library = _FAILURE.match(failure)
        if library and "OpenMMTorch" in library[1] and library[1] not in _loaded:
            try:
                openmm.Platform.loadPluginLibrary(library[1])
            except openmm.OpenMMException:
                # A library for a platform that this machine lacks; evaluating the bridge tells.
                continue
            _loaded.add(library[1])
    return openmmtorch.TorchForce
