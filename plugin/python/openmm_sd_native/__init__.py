"""The native bridge of openmm-sd: an OpenMM plugin that runs learned jumps without Python.

``load()`` makes OpenMM know the plugin: call it before a System with a ScoreDynamicsForce is read
from XML. ``create_force`` makes such a force, ``read_force`` says what is in one.
"""

from __future__ import annotations

import base64
import binascii
import importlib.metadata
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    import openmm

FOLDER = Path(__file__).resolve().parent
#: Folder of the C++ header.
INCLUDE = FOLDER / "include"
#: Folder of the library that C++ programs link with.
LIBRARY = FOLDER / "lib"
#: Folder of the kernels, for ``Platform::loadPluginsFromDirectory``.
PLUGINS = LIBRARY / "plugins"

__version__ = importlib.metadata.version("openmm-sd-native")

# Platforms with a library of their own; the CPU platform uses Reference's.
_PLATFORMS = ("Reference", "OpenCL", "CUDA")
_lock = threading.Lock()
_loaded: set[str] = set()


@dataclass(frozen=True)
class ForceContents:
    """What a ScoreDynamicsForce holds.

    Attributes
    ----------
    module : bytes
        The TorchScript file.
    particles : tuple of int
        System indices of the solute's atoms.
    periodic : bool
        Whether the module is told the periodic box.
    version : int
        Version of the XML.
    """

    module: bytes
    particles: tuple[int, ...]
    periodic: bool
    version: int


def built_for() -> dict[str, str]:
    """Return the versions of ``openmm`` and ``torch`` that this plugin was compiled against."""
    return json.loads((FOLDER / "built_for.json").read_text())


def load() -> None:
    """Load the plugin into this process; calling it again does no harm.

    Raises
    ------
    ImportError
        If OpenMM or torch are not the ones that it was built for.
    """
    import torch  # before OpenMM's libraries, which then find it
    import openmm  # isort: skip

    here = {"openmm": openmm.version.short_version, "torch": str(torch.__version__)}
    if here != built_for():
        was, now = (f"OpenMM {v['openmm']} and torch {v['torch']}" for v in (built_for(), here))
        raise ImportError(
            f"openmm-sd-native was built for {was}, here are {now}: build it again, "
            "'pip install --force-reinstall --no-deps ./plugin'"
        )
    with _lock:
        count = openmm.Platform.getNumPlatforms()
        for name in (openmm.Platform.getPlatform(i).getName() for i in range(count)):
            if name in _PLATFORMS and name not in _loaded:
                library = PLUGINS / f"libOpenMMScoreDynamics{name}.so"
                try:
                    openmm.Platform.loadPluginLibrary(str(library))
                except openmm.OpenMMException as error:
                    raise ImportError(f"openmm-sd-native does not load: {error}") from error
                _loaded.add(name)


def create_force(
    module: bytes, particles: Sequence[int], periodic: bool, name: str
) -> openmm.Force:
    """Make a ScoreDynamicsForce.

    Parameters
    ----------
    module : bytes
        A TorchScript file whose ``forward`` is that of :class:`openmm_sd.jump.jump.Jump`.
    particles : sequence of int
        System indices of the solute's atoms, in the order that the module expects.
    periodic : bool
        Whether the module is told the periodic box.
    name : str
        Name of the force.

    Returns
    -------
    openmm.Force
        The C++ object is a ScoreDynamicsForce; Python sees its base class.
    """
    load()
    import openmm

    # OpenMM's Python layer can make objects of classes that it does not know from XML only.
    places = "".join(f'<Particle index="{int(particle)}"/>' for particle in particles)
    return openmm.XmlSerializer.deserialize(
        f'<Force type="ScoreDynamicsForce" version="1" forceGroup="0" name={quoteattr(name)} '
        f'usesPeriodic="{int(periodic)}" module="{base64.b64encode(module).decode()}">'
        f"<Particles>{places}</Particles></Force>"
    )


def read_force(force: openmm.Force) -> ForceContents:
    """Say what a ScoreDynamicsForce holds.

    Parameters
    ----------
    force : openmm.Force
        From `create_force`, or from a System that holds one.
    """
    import openmm

    root = ElementTree.fromstring(openmm.XmlSerializer.serialize(force))
    if root.get("type") != "ScoreDynamicsForce":
        raise ValueError(f"force is a {root.get('type')}, not a ScoreDynamicsForce")
    try:
        module = base64.b64decode(root.attrib["module"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"force: its module is damaged ({error})") from error
    return ForceContents(
        module,
        tuple(int(particle.attrib["index"]) for particle in root.iter("Particle")),
        root.attrib["usesPeriodic"] == "1",
        int(root.attrib["version"]),
    )
