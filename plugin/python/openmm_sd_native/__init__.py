"""The native bridge of openmm-sd: an OpenMM plugin that runs learned jumps without Python.

``load()`` makes OpenMM know the plugin: call it before a System with a ScoreDynamicsForce is read
from XML. ``create_force`` makes such a force, ``read_force`` says what is in one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

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
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_lock = threading.Lock()
_loaded: set[str] = set()

#: Version of the XML that holds a module's parts; the whole module is 1.
VERSION = 2
# The plugin looks there for a model's file that is not at its place.
_FOLDERS = "OPENMM_SD_MODELS"


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
    # What torch was built for after the "+", a version of CUDA or none, changes none of its
    # libraries that the plugin uses.
    if _released(here) != _released(built_for()):
        was, now = (f"OpenMM {v['openmm']} and torch {v['torch']}" for v in (built_for(), here))
        raise ImportError(
            f"openmm-sd-native was built for {was}, here are {now}: build it again, "
            "'pip install --force-reinstall --no-deps ./plugin'"
        )
    with _lock:
        count = openmm.Platform.getNumPlatforms()
        for name in (openmm.Platform.getPlatform(i).getName() for i in range(count)):
            if name in _PLATFORMS and name not in _loaded:
                library = PLUGINS / f"libOpenMMScoreDynamics{name}{_SUFFIX}"
                try:
                    openmm.Platform.loadPluginLibrary(str(library))
                except openmm.OpenMMException as error:
                    raise ImportError(f"openmm-sd-native does not load: {error}") from error
                _loaded.add(name)
        _name_shipped_models()


def _released(versions: dict[str, str]) -> dict[str, str]:
    return {name: version.partition("+")[0] for name, version in versions.items()}


def _name_shipped_models() -> None:
    """Add the folder of the models that come with openmm-sd to those where models are looked for.

    A System that was written elsewhere names the folder of that installation.
    """
    spec = importlib.util.find_spec("openmm_sd")
    for package in (spec and spec.submodule_search_locations) or ():
        folder = os.path.join(package, "models")
        named = [part for part in os.environ.get(_FOLDERS, "").split(":") if part]
        if folder not in named:
            os.environ[_FOLDERS] = ":".join([*named, folder])


def create_force(
    module: bytes,
    particles: Sequence[int],
    periodic: bool,
    name: str,
    file: str | None = None,
    parts: Sequence[bytes | tuple[int, int, bool]] = (),
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
    file : str, optional
        Path of the model's file, of which the XML then holds no copy.
    parts : sequence, optional
        The module's bytes in turn: bytes, or a place in that file as offset, length and whether
        numbers of 16 bits there are of 32 bits in the module.

    Returns
    -------
    openmm.Force
        The C++ object is a ScoreDynamicsForce; Python sees its base class.
    """
    load()
    import openmm

    # OpenMM's Python layer can make objects of classes that it does not know from XML only.
    root = ElementTree.Element("Force", type="ScoreDynamicsForce", forceGroup="0", name=name)
    root.set("usesPeriodic", str(int(periodic)))
    if file is None or all(isinstance(part, bytes) for part in parts):
        root.set("version", "1")
        root.set("module", base64.b64encode(module).decode())
    else:
        root.set("version", str(VERSION))
        root.set("file", file)
        root.set("sha256", hashlib.sha256(module).hexdigest())
        inside = ElementTree.SubElement(root, "Module")
        for part in parts:
            ElementTree.SubElement(inside, "Part", _attributes(part))
    places = ElementTree.SubElement(root, "Particles")
    for particle in particles:
        ElementTree.SubElement(places, "Particle", index=str(int(particle)))
    return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))


def _attributes(part: bytes | tuple[int, int, bool]) -> dict[str, str]:
    if isinstance(part, bytes):
        return {"bytes": base64.b64encode(part).decode()}
    offset, length, widened = part
    return {"offset": str(offset), "length": str(length), "widened": str(int(widened))}


def _part(attributes: dict[str, str]) -> bytes | tuple[int, int, bool]:
    if "bytes" in attributes:
        return base64.b64decode(attributes["bytes"], validate=True)
    offset, length = int(attributes["offset"]), int(attributes["length"])
    return offset, length, attributes["widened"] == "1"


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
        if "module" in root.attrib:
            module = base64.b64decode(root.attrib["module"], validate=True)
        else:
            from openmm_sd.bridges.parts import join

            parts = [_part(part.attrib) for part in root.iter("Part")]
            module = join(parts, root.attrib["file"], root.attrib["sha256"])
    except binascii.Error as error:
        raise ValueError(f"force: its module is damaged ({error})") from error
    return ForceContents(
        module,
        tuple(int(particle.attrib["index"]) for particle in root.iter("Particle")),
        root.attrib["usesPeriodic"] == "1",
        int(root.attrib["version"]),
    )
