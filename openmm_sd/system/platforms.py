"""The platform and the bridge to use on this machine."""

from __future__ import annotations

from ..progress import Progress, silence

# OpenCL is left to those who ask for it: on a machine without a GPU it is an emulation that runs
# slower than the CPU platform, yet OpenMM would choose it.
_PLATFORMS = ("CUDA", "HIP", "CPU")


def known_platform(name: str) -> str:
    """Return an OpenMM platform's name as OpenMM spells it; it may be in upper or lower case."""
    from ..bridges import platform_names

    here = {platform.lower(): platform for platform in platform_names()}
    if str(name).lower() not in here:
        raise ValueError(f"platform must be one of {', '.join(here.values())}, got {name!r}")
    return here[str(name).lower()]


def platform_and_bridge(
    platform: str | None, bridge: str, say: Progress = silence
) -> tuple[str, str]:
    """Choose what was left open, by evaluating bridges for real.

    The platform is a GPU's if one works here, else CPU. What is being tried is said, if it takes
    long. RuntimeError if nothing works, with the reason for each.
    """
    from ..bridges import BRIDGES, choose_bridge
    from ..bridges.probe import probe_all

    reasons = []
    for name in _usual_platforms() if platform is None else [platform]:
        if bridge != "auto":
            answer = probe_all([bridge], [name], say=say)[bridge, name]
            if answer.ok:
                return name, bridge
            there = BRIDGES[bridge].installed()
            hint = "" if there else f" ({BRIDGES[bridge].install_hint})"
            reasons.append(f"{bridge} on {name}: {answer.detail}{hint}")
            continue
        try:
            return name, choose_bridge(name, say=say)
        except RuntimeError as error:
            reasons.append(str(error))
    raise RuntimeError("; ".join(reasons))


def working_platform(wanted: str | None) -> str:
    """Choose a platform for MD alone: a GPU's if one works here, else CPU.

    The one that is wanted may be in upper or lower case: ValueError if there is none of that name,
    RuntimeError if it does not work.
    """
    import openmm

    candidates = [known_platform(wanted)] if wanted is not None else _usual_platforms()
    for name in candidates:
        system = openmm.System()
        system.addParticle(1.0)
        try:
            openmm.Context(
                system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(name)
            )
            return name
        except openmm.OpenMMException as error:
            reason = f"the {name} platform does not work here: {error}"
    raise RuntimeError(reason)


def md_platform(wanted: str | None, implicit: bool) -> str:
    """Choose a platform for MD of many runs, without trying it; ValueError for an unknown name.

    In implicit solvent it is Reference: of a few dozen atoms, what the other platforms do beside
    the forces costs more than those.
    """
    if wanted is not None:
        return known_platform(wanted)
    return "Reference" if implicit else _usual_platforms()[0]


def _usual_platforms() -> list[str]:
    """Return the platforms worth trying here, the fastest first."""
    from ..bridges import platform_names

    here = platform_names()
    return [name for name in _PLATFORMS if name in here] or here
