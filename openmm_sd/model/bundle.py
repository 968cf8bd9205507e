"""The bundle: one file that holds a model, and nothing that can be executed.

A bundle is a safetensors file. Its header's ``__metadata__`` has two entries:

``openmm_sd``
    Canonical JSON (sorted keys, no spaces, ASCII, no NaN) with the keys ``format_version``,
    ``architecture`` (``name`` and ``hyperparameters``), ``molecules`` and ``card``. A family of
    molecules that share weights has ``members`` as well: ``hyperparameters`` and ``card`` of each
    molecule in turn.
``sha256``
    The SHA-256 of the whole file with these 64 hex digits replaced by 64 times ``0``. It covers
    header and weights alike, so no byte of the file can change unnoticed.

The tensors are the network's weights and, if the model has them, its start frames (`START_FRAMES`)
and the statistics of its novelty score (`NOVELTY`), or of one for molecules without data
(`POOLED`). What a member of a family has for itself begins
with ``member0.``, ``member1.`` and so on.

What a bundle says of its model is read without torch, which takes seconds to import.

Pickle and zip files, which is what PyTorch itself writes, are refused by their first bytes and
never opened: unpickling a file runs whatever code its author put there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard

from ..files.atomic import one_line, why, write_atomically
from ..molecule.molecule import Molecule

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION: Final = 1
"""The format this package writes and reads."""

START_FRAMES: Final = "openmm_sd.start_frames"
"""Name of the optional tensor with frames to start rollouts from; not one of the weights."""

START_FRAMES_UNIT_NM: Final = 1e-4
"""Unit of the start frames, which are stored as int16."""

NOVELTY: Final = "openmm_sd.novelty."
"""What the names of the optional tensors of the novelty score begin with; no weights either."""

POOLED: Final = "openmm_sd.pooled_novelty."
"""The same of the surroundings pooled over a model's molecules; they belong to the whole bundle."""

MOST_ATOMS: Final = 5_000
"""Atoms of a bundle's molecule at most: a jump holds a square table of them, 0.2 GB then."""

#: Tensors that are no weights begin with this; smaller ones are not worth it in half precision.
_OWN: Final = "openmm_sd."
_FEW: Final = 1_000

_CONTENT_KEYS: Final = ("architecture", "card", "format_version", "molecules")
_MEMBER_KEYS: Final = ("card", "hyperparameters")
_ARCHITECTURE_KEYS: Final = ("hyperparameters", "name")
_METADATA_KEYS: Final = ("openmm_sd", "sha256")
_NO_HASH: Final = "0" * 64
_LENGTH_BYTES: Final = 8
"""A safetensors file begins with the length of its header as a little-endian 64-bit integer."""


class BundleError(ValueError):
    """A file is not a bundle this package can read, or a model cannot be written as one."""


def save_bundle(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write a bundle; the file appears whole under its name or not at all.

    An existing file is replaced. The tensors are weights and buffers on any device; the content has
    the keys of the module's docstring. BundleError if what is to be written would not be read
    again; OSError if the file cannot be written, and what stood there before is untouched.
    """
    import safetensors.torch
    import torch

    target = Path(path)
    text = canonical_json(content, f"cannot save {target}: content")
    _check_content(target, json.loads(text))
    # Copies, because safetensors refuses tensors that share memory (tied weights).
    copies = {
        name: _halved(name, tensor.detach().to("cpu")).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    _check_finite(target, copies)
    data = _sorted_header(safetensors.torch.save(copies, {"openmm_sd": text, "sha256": _NO_HASH}))
    place = _hash_place(target, data, _NO_HASH)
    digest = hashlib.sha256(data).hexdigest().encode()
    data = data[:place] + digest + data[place + len(digest) :]
    if target.is_dir():
        _refuse(target, "is a directory")
    if not target.parent.is_dir():
        _refuse(target, f"cannot be written: there is no folder {target.parent}")
    # Read back before it gets its name: a file that is refused later may be the only copy.
    _verified(target, data)
    write_atomically(target, data)


def _halved(name: str, tensor: Tensor) -> Tensor:
    """Return weights in half precision where that holds each of them exactly."""
    import torch

    if name.startswith(_OWN) or tensor.dtype != torch.float32 or tensor.numel() < _FEW:
        return tensor
    half = tensor.to(torch.float16)
    return half if torch.equal(half.to(torch.float32), tensor) else tensor


def load_bundle(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a bundle: its tensors, on the CPU, and its content.

    BundleError, in one line that names the file and what is wrong with it.
    """
    file = Path(path)
    return _verified(file, _read(file))


def load_content(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and verify a bundle, as `load_bundle` does, but for what its weights are."""
    file = Path(path)
    return _verified_content(file, _read(file))


def _read(file: Path) -> bytes:
    try:
        # Reading a pipe or a device need not end.
        if file.exists() and not file.is_file() and not file.is_dir():
            _refuse(file, "is not a regular file")
        return file.read_bytes()
    except FileNotFoundError:
        _refuse(file, "no such file")
    except IsADirectoryError:
        _refuse(file, "is a directory")
    except OSError as error:
        _refuse(file, f"cannot be read: {why(error)}")


def canonical_json(content: Any, what: str) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII, finite numbers only.

    BundleError, which calls the value `what`, if JSON cannot hold it.
    """
    # json.dumps would write the key 1 as "1", and the reader would miss it.
    odd = _key_that_is_no_string(content)
    if odd is not None:
        raise BundleError(f"{what} cannot be written as JSON: the key {odd!r} is not a string")
    try:
        return json.dumps(
            content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{what} cannot be written as JSON: {one_line(error)}") from None


def _key_that_is_no_string(value: Any) -> Any:
    stack, seen = [value], set()
    while stack:
        item = stack.pop()
        if not isinstance(item, (dict, list, tuple)) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            for key in item:
                if not isinstance(key, str):
                    return key
            stack.extend(item.values())
        else:
            stack.extend(item)
    return None


def _refuse(file: Path, reason: str) -> NoReturn:
    raise BundleError(f"{file}: {reason}") from None


def _verified(file: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import safetensors.torch

    content = _verified_content(file, data)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # the library raises its own and several built-in kinds
        _refuse(file, f"safetensors cannot read the weights: {one_line(error)}")
    _check_finite(file, tensors)
    return tensors, content


def _verified_content(file: Path, data: bytes) -> dict[str, Any]:
    """Check everything about the file but its weights, and return its content."""
    if not data:
        _refuse(file, "the file is empty")
    _refuse_executable(file, data)
    start = _LENGTH_BYTES
    if len(data) <= start:
        _refuse(file, f"the file is cut short ({len(data)} bytes)")
    length = int.from_bytes(data[:start], "little")
    if data[start : start + 1] != b"{" or length < 2:
        _refuse(file, "not a safetensors file")
    if length > len(data) - start:
        _refuse(
            file,
            f"the file is cut short or damaged: the header should have {length} bytes, "
            f"{len(data) - start} follow",
        )
    header = _parsed(file, data[start : start + length], "its header")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "openmm_sd" not in metadata:
        _refuse(file, "a safetensors file but not an openmm-sd bundle (no openmm_sd metadata)")
    content = _parsed(file, str(metadata["openmm_sd"]).encode(), "its content")

    # Before anything else is judged: another format may keep its hash elsewhere.
    version = content.get("format_version") if isinstance(content, dict) else None
    if _is_integer(version) and version != FORMAT_VERSION:
        _refuse(
            file,
            f"this file has format {version}, this openmm-sd reads {FORMAT_VERSION}; "
            f"{'upgrade openmm-sd' if version > FORMAT_VERSION else 'write it again'}",
        )
    _check_keys(file, "the header's metadata", metadata, _METADATA_KEYS)
    _check_hash(file, data, metadata["sha256"])
    _check_content(file, content)
    return dict(content)


def _refuse_executable(file: Path, data: bytes) -> None:
    # The length of a safetensors header may begin with the same two bytes; the third is then zero
    # or the header's opening brace stands at byte 8.
    if data[2:3] in (b"", b"\0") or data[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{":
        return
    kind = "pickle" if data[:1] == b"\x80" else "zip" if data[:2] == b"PK" else None
    if kind is not None:
        _refuse(
            file,
            f"is a {kind} file (torch.save writes such files), refused because loading it can "
            "execute code; openmm-sd reads safetensors bundles only",
        )


def _parsed(file: Path, text: bytes, what: str) -> Any:
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not allowed")

    try:
        return json.loads(text.decode("utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(file, f"{what} is not valid JSON: {one_line(error)}")


def _sorted_header(data: bytes) -> bytes:
    """Sort the header's keys: safetensors writes them in another order every time.

    The same model then gives the same file, byte for byte, which is what people compare.
    """
    start = _LENGTH_BYTES
    end = start + int.from_bytes(data[:start], "little")
    header = json.dumps(json.loads(data[start:end]), sort_keys=True, separators=(",", ":"))
    text = header.encode()
    text += b" " * (-len(text) % start)  # the weights stay aligned to 8 bytes
    return len(text).to_bytes(start, "little") + text + data[end:]


def _hash_place(file: Path, data: bytes, digest: str) -> int:
    """Return where the digest stands. Inside the content quotes are escaped: no confusion."""
    header = data[: _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")]
    key = b'"sha256":"'
    pattern = key + digest.encode() + b'"'
    if header.count(pattern) != 1:
        _refuse(file, "the sha256 in its header cannot be located")
    return header.index(pattern) + len(key)


def _check_hash(file: Path, data: bytes, digest: Any) -> None:
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        _refuse(file, "the file is damaged: its sha256 is not 64 lower-case hex digits")
    place = _hash_place(file, data, digest)
    hasher = hashlib.sha256(data[:place])
    hasher.update(_NO_HASH.encode())
    hasher.update(memoryview(data)[place + len(_NO_HASH) :])
    if hasher.hexdigest() != digest:
        _refuse(file, "the file is damaged: its sha256 does not match (cut short or altered)")


def _check_keys(file: Path, what: str, mapping: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in mapping]
    extra = sorted(key for key in mapping if key not in keys)
    if missing:
        _refuse(file, f"{what} lacks {', '.join(missing)}")
    if extra:
        _refuse(file, f"{what} has unknown keys: {', '.join(extra)}")


def _check_content(file: Path, content: Any) -> None:
    if not isinstance(content, dict):
        _refuse(file, f"the content must be a JSON object, got {type(content).__name__}")
    several = ("members",) if "members" in content else ()
    _check_keys(file, "the content", content, (*_CONTENT_KEYS, *several))
    version = content["format_version"]
    if not _is_integer(version) or version != FORMAT_VERSION:
        _refuse(file, f"format_version must be {FORMAT_VERSION}, got {version!r}")
    architecture = content["architecture"]
    if not isinstance(architecture, dict):
        _refuse(file, f"architecture must be an object, got {type(architecture).__name__}")
    _check_keys(file, "architecture", architecture, _ARCHITECTURE_KEYS)
    if not isinstance(architecture["name"], str) or not architecture["name"]:
        _refuse(file, f"architecture name must be a string, got {architecture['name']!r}")
    if not isinstance(architecture["hyperparameters"], dict):
        _refuse(file, "architecture hyperparameters must be an object")
    if not isinstance(content["card"], dict):
        _refuse(file, f"card must be an object, got {type(content['card']).__name__}")
    molecules = content["molecules"]
    if not isinstance(molecules, list) or not molecules:
        _refuse(file, "molecules must be a list of at least one molecule")
    for k, molecule in enumerate(molecules):
        numbers = molecule.get("atomic_numbers") if isinstance(molecule, dict) else None
        if isinstance(numbers, list) and len(numbers) > MOST_ATOMS:
            _refuse(
                file,
                f"molecule {k} has {len(numbers)} atoms, a bundle holds {MOST_ATOMS} at most",
            )
        try:
            Molecule.from_dict(molecule)
        except (TypeError, ValueError) as error:
            _refuse(file, f"molecule {k}: {one_line(error)}")
    if not several:
        return
    members = content["members"]
    if not isinstance(members, list) or len(members) != len(molecules):
        _refuse(file, f"members must be a list of {len(molecules)}, one for each molecule")
    for k, member in enumerate(members):
        if not isinstance(member, dict):
            _refuse(file, f"member {k} must be an object, got {type(member).__name__}")
        _check_keys(file, f"member {k}", member, _MEMBER_KEYS)
        for key in _MEMBER_KEYS:
            if not isinstance(member[key], dict):
                _refuse(file, f"member {k}: {key} must be an object")


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch

    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and tensor.element_size() < 2:
            tensor = tensor.float()  # torch has no isfinite for the 8-bit kinds
        if not bool(torch.isfinite(tensor).all()):
            _refuse(file, f"the weights {name} hold NaN or infinity")
