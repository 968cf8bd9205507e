"""Propagators that AOTInductor compiles to machine code.

A jump has branches that depend on numbers (gates, tries, relabelled atoms), which ``torch.export``
does not take. Its network has none. So only the propagator is compiled, and the module of the jump
stays what it is: TorchScript, which calls the compiled propagator.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from . import load


class PackagedPropagator(torch.nn.Module):
    """A propagator from an AOTInductor package, for use wherever a propagator is expected.

    Parameters
    ----------
    package : bytes
        A ``.pt2`` file that takes one frame, one lag and one row of noise.
    n_atoms : int
        Number of solute atoms N.
    noise_size : int
        Number K of standard normal numbers that one jump consumes.

    Notes
    -----
    A package is machine code for the device, the processor and the torch it was made with. It can
    be scripted, saved and copied, but is no part of a bundle: compile it where it is to run, and
    take packages from nobody else, as they are programs.
    """

    def __init__(self, package: bytes, n_atoms: int, noise_size: int) -> None:
        super().__init__()
        load()
        self.n_atoms = n_atoms
        self.noise_size = noise_size
        content = torch.frombuffer(bytearray(package), dtype=torch.uint8)
        self.package = torch.classes.openmm_sd.PackagedPropagator(content)

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        """Return the next frames, (B, N, 3) float32, nm; the frames of a batch in turn."""
        return self.package.run(frame, lag, noise)


def compile_propagator(
    propagator: torch.nn.Module, frame: Tensor, lag: float
) -> PackagedPropagator:
    """Compile a propagator with ``torch.export`` and AOTInductor.

    Parameters
    ----------
    propagator : torch.nn.Module
        Follows the propagator contract; what it computes may not depend on numbers by way of
        Python's ``if``.
    frame : Tensor
        (N, 3) float32, nm: an example, on the device where the propagator is to run.
    lag : float
        An example, ps; other lags work as well.

    Returns
    -------
    PackagedPropagator
        Computes the same to rounding.

    Notes
    -----
    A C++ compiler must be there. It takes a minute or two.
    """
    start = (frame - frame.mean(dim=0)).to(torch.float32).unsqueeze(0)
    noise_size = int(propagator.noise_size)  # type: ignore[arg-type]
    example = (
        start,
        torch.full((1,), float(lag), device=start.device),
        torch.zeros(1, noise_size, device=start.device),
    )
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(propagator.eval(), example)
        path = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(Path(folder) / "propagator.pt2")
        )
        package = Path(path).read_bytes()
    return PackagedPropagator(package, start.shape[1], noise_size)
