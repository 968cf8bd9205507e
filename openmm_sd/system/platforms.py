"""The platform and the bridge to use on this machine."""

from __future__ import annotations

# OpenCL is left to those who ask for it: on a machine without a GPU it is an emulation that runs
# slower than the CPU platform, yet OpenMM would choose it.
_PLATFORMS = ("CUDA", "HIP", "CPU")
# No atom of a simulation gets as far as this, nm.
_FAR = 1e6


def known_platform(name: str) -> str:
    """Return an OpenMM platform's name as OpenMM spells it; it may be in upper or lower case."""
    from ..bridges import platform_names

    here = {platform.lower(): platform for platform in platform_names()}
    if str(name).lower() not in here:
        raise ValueError(f"platform must be one of {', '.join(here.values())}, got {name!r}")
    return here[str(name).lower()]


def platform_and_bridge(platform: str | None, bridge: str) -> tuple[str, str]:
    """Choose what was left open, by evaluating bridges for real.

    Parameters
    ----------
    platform : str, optional
        OpenMM platform; a GPU's if one works here, else CPU.
    bridge : str
        Name of a bridge, or ``auto``.

    Returns
    -------
    platform, bridge : str

    Raises
    ------
    RuntimeError
        If nothing works, with the reason for each.
    """
    from ..bridges import BRIDGES, choose_bridge
    from ..bridges.probe import probe_all

    candidates = [platform] if platform is not None else _usual_platforms()
    reasons = []
    for name in candidates:
        if bridge != "auto":
            answer = probe_all([bridge], [name])[bridge, name]
            if answer.ok:
                return name, bridge
            hint = BRIDGES[bridge].install_hint
            reasons.append(f"{bridge} on {name}: {answer.detail} ({hint})")
            continue
        try:
            return name, choose_bridge(name)
        except RuntimeError as error:
            reasons.append(str(error))
    raise RuntimeError("; ".join(reasons))


def working_platform(wanted: str | None) -> str:
    """Choose a platform for MD alone: a GPU's if one works here, else CPU.

    Parameters
    ----------
    wanted : str, optional
        Name of an OpenMM platform, in upper or lower case.

    Raises
    ------
    ValueError
        If there is none of that name.
    RuntimeError
        If it does not work.
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
    """Choose a platform for MD of many runs, without trying it.

    Parameters
    ----------
    wanted : str, optional
        Name of an OpenMM platform.
    implicit : bool
        Whether the solute is alone, in implicit solvent: then it is Reference. Of a few dozen
        atoms, what the other platforms do beside the forces costs more than those.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if wanted is not None:
        return known_platform(wanted)
    return "Reference" if implicit else _usual_platforms()[0]


def _usual_platforms() -> list[str]:
    """Return the platforms worth trying here, the fastest first."""
    from ..bridges import platform_names

    here = platform_names()
    return [name for name in _PLATFORMS if name in here] or here
