"""Compiling modules with TorchScript."""

import io
import warnings

import torch


def script(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """Compile a module with TorchScript; it is set to evaluation and otherwise left as it is."""
    with warnings.catch_warnings():
        # PyTorch deprecates TorchScript; openmm-torch takes nothing else. Versions differ in the
        # category they say it with.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", "`?torch.jit", category)
        return torch.jit.script(module.eval())


def script_frozen(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """Compile a module with TorchScript and turn its weights into constants, which is faster.

    A frozen module goes on pointing to functions of the module it was made from, and reads them
    when it reports an exception: with that module gone, the process crashes (torch 2.9 to 2.13).
    Written and read once, it stands on its own.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", "`?torch.jit", category)
        torch.jit.save(torch.jit.freeze(script(module)), buffer)
        buffer.seek(0)
        return torch.jit.load(buffer)


def script_if_possible(module: torch.nn.Module) -> torch.nn.Module:
    """Compile a module as `script_frozen` does; leave it alone where TorchScript cannot read it."""
    try:
        return script_frozen(module)
    except Exception:  # any module that TorchScript cannot read still runs as plain Python
        return module.eval()
