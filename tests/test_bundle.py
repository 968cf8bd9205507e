"""The bundle file, the registry and ScoreModel: exact round trips, and every fault refused."""

import hashlib
import json
import os
import pickle
import re
import resource
import warnings
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from small_molecules import butane
from torch import Tensor

from openmm_sd.model import bundle
from openmm_sd.model.bundle import BundleError, load_bundle, save_bundle
from openmm_sd.model.card import Card, Entry
from openmm_sd.model.model import ScoreModel
from openmm_sd.molecule.molecule import Molecule
from openmm_sd.propagator import registry
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.propagator.registry import (
    architecture,
    architecture_name,
    known_architectures,
    register_architecture,
)

WATER = Molecule(
    "water",
    (8, 1, 1),
    ((0, 1), (0, 2)),
    ("O", "H1", "H2"),
    ("HOH",) * 3,
    ("1",) * 3,
    np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]),
)


class Linear(torch.nn.Module):
    """A kernel of the smallest kind with weights, a buffer and dropout."""

    def __init__(self, n_atoms: int, width: int = 2) -> None:
        super().__init__()
        self.n_atoms = n_atoms
        self.noise_size = 3 * n_atoms
        self.hyperparameters = {"n_atoms": n_atoms, "width": width}
        self.inner = torch.nn.Linear(3, width)
        self.outer = torch.nn.Linear(width, 3)
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(0.1))

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        step = self.outer(self.dropout(torch.tanh(self.inner(frame))))
        return frame + self.scale * (step + noise.reshape(frame.shape)) * lag.reshape(-1, 1, 1)


class Unregistered(Linear):
    pass


class NoHyperparameters(torch.nn.Module):
    n_atoms = 3
    noise_size = 0

    def forward(self, frame: Tensor, lag: Tensor, noise: Tensor) -> Tensor:
        return frame


class Forgetful(Linear):
    """Its hyperparameters do not describe it."""

    def __init__(self, n_atoms: int, width: int = 2) -> None:
        super().__init__(n_atoms, width)
        self.hyperparameters = {"n_atoms": n_atoms}


class NotScriptable(NoHyperparameters):
    def forward(self, frame, lag, noise):
        return frame + len(os.environ.copy()) * eval("0")


register_architecture("test-linear", Linear)
register_architecture("test-no-hyperparameters", NoHyperparameters)
register_architecture("test-forgetful", Forgetful)

TENSORS = {"w": torch.tensor([[1.5, -2.0]]), "n": torch.tensor(7)}


def content(**changes):
    whole = {
        "format_version": 1,
        "architecture": {"name": "test-linear", "hyperparameters": {"n_atoms": 3}},
        "molecules": [WATER.to_dict()],
        "card": {"temperature_K": 300.0, "name": 'tiny "sha256":"' + "0" * 64 + '" \u00e9'},
    }
    return whole | changes


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ScoreModel(Linear(3), WATER, {"recommended_lag_ps": 5, "description": "A test."})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.safetensors"


def written(path, tensors, metadata):
    """Write a bundle by hand, with a right hash, whatever is in it."""
    data = safetensors.torch.save(tensors, metadata | {"sha256": "0" * 64})
    digest = hashlib.sha256(data).hexdigest().encode()
    pattern = b'"sha256":"' + b"0" * 64 + b'"'
    assert data.count(pattern) == 1
    path.write_bytes(data.replace(pattern, b'"sha256":"' + digest + b'"'))


def refused(path):
    """The reason a file is refused; it is one line that names the file."""
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# --- the file -----------------------------------------------------------------------------------


def test_round_trip_is_exact(path):
    tensors = TENSORS | {
        "half": torch.randn(3, 2).half(),
        "bf16": torch.randn(4).bfloat16(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }
    tensors["tied"] = tensors["w"]
    save_bundle(path, tensors, content())
    again, found = load_bundle(path)
    assert found == content()
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_same_model_gives_the_same_bytes(path):
    files = set()
    for _ in range(20):
        save_bundle(path, {"b": torch.ones(3), "a": torch.zeros(2)}, content())
        files.add(path.read_bytes())
    assert len(files) == 1


def test_no_tensors(path):
    save_bundle(path, {}, content())
    assert load_bundle(path)[0] == {}


def test_other_programs_can_read_it(path):
    save_bundle(path, TENSORS, content())
    assert torch.equal(safetensors.torch.load_file(path)["w"], TENSORS["w"])


def test_every_flipped_byte_is_refused(path):
    small = {**WATER.to_dict(), "atomic_numbers": [1], "bonds": [], "positions": [[0, 0, 0]]}
    small |= {"atom_names": ["H"], "residue_names": ["H"], "residue_ids": ["1"]}
    save_bundle(path, {"w": torch.ones(2)}, content(molecules=[small], card={}))
    data = path.read_bytes()
    load_bundle(path)
    for place in range(len(data)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(BundleError) as caught:
                load_bundle(path)
            assert "\n" not in str(caught.value)


def test_cut_short_anywhere(path):
    save_bundle(path, TENSORS, content())
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        text = refused(path)
        assert "execute code" not in text
    assert "cut short" in text
    path.write_bytes(data + b"\0")
    refused(path)


def test_header_length_is_nonsense(path):
    save_bundle(path, TENSORS, content())
    data = path.read_bytes()
    for length in (0, 1, 2**40, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + data[8:])
        refused(path)


def test_not_a_file(tmp_path, path):
    assert "no such file" in refused(path)
    assert "is a directory" in refused(tmp_path)
    path.write_bytes(b"")
    assert "the file is empty" in refused(path)
    path.write_text("hello, this is no model at all")
    assert "not a safetensors file" in refused(path)
    path.write_bytes(safetensors.torch.save(TENSORS))
    assert "not an openmm-sd bundle" in refused(path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_in_disguise(path, protocol):
    path.write_bytes(pickle.dumps({"w": [1.0] * 100}, protocol=protocol))
    assert "is a pickle file" in refused(path)


def test_torch_save_in_disguise(path):
    torch.save({"w": torch.ones(2)}, path)
    text = refused(path)
    assert "is a zip file" in text
    assert "execute code" in text
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "is a pickle file" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x")
    assert "is a zip file" in refused(path)


def test_header_lengths_that_look_like_magic_numbers(path):
    # 0x0280: the file then begins with the two bytes of a pickle; 0x4b50: with those of a zip
    for wanted in (0x0280, 0x4B50):
        for padding in range(wanted):
            metadata = {"openmm_sd": "x" * padding, "sha256": "0" * 64}
            data = safetensors.torch.save({"w": torch.ones(1)}, metadata)
            length = int.from_bytes(data[:8], "little")
            if length >= wanted:
                break
        assert length == wanted
        path.write_bytes(data)
        assert "execute code" not in refused(path)


def test_unknown_format(path):
    for version in (7, 0):
        whole = content(format_version=version)
        written(path, TENSORS, {"openmm_sd": json.dumps(whole)})
        text = refused(path)
        assert f"this file has format {version}, this openmm-sd reads 1" in text
        assert ("upgrade" in text) == (version > 1)
    for version in ("1", True, 1.0, None):
        written(path, TENSORS, {"openmm_sd": json.dumps(content(format_version=version))})
        assert "format_version must be 1" in refused(path)


@pytest.mark.parametrize("key", ["format_version", "architecture", "molecules", "card"])
def test_missing_key(path, key):
    whole = content()
    del whole[key]
    written(path, TENSORS, {"openmm_sd": json.dumps(whole)})
    assert f"lacks {key}" in refused(path)
    with pytest.raises(BundleError, match=f"lacks {key}"):
        save_bundle(path.with_name("other"), TENSORS, whole)
    assert not path.with_name("other").exists()


def test_extra_key(path):
    written(path, TENSORS, {"openmm_sd": json.dumps(content(code="import os"))})
    assert "unknown keys: code" in refused(path)
    written(path, TENSORS, {"openmm_sd": json.dumps(content()), "more": "x"})
    assert "unknown keys: more" in refused(path)
    odd = {"name": "x", "hyperparameters": {}, "source": ""}
    written(path, TENSORS, {"openmm_sd": json.dumps(content(architecture=odd))})
    assert "unknown keys: source" in refused(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "dense"}, "architecture must be an object"),
        ({"architecture": {"name": 3, "hyperparameters": {}}}, "name must be a string"),
        ({"architecture": {"name": "x", "hyperparameters": []}}, "must be an object"),
        ({"card": []}, "card must be an object"),
        ({"molecules": []}, "at least one molecule"),
        ({"molecules": [{}]}, "molecule 0: a molecule has the keys"),
        ({"molecules": [WATER.to_dict() | {"bonds": [[0, 1]]}]}, "molecule 0: bonds leave 2"),
        ({"card": {"x": float("nan")}}, "NaN is not allowed"),
        ({"card": {"x": float("inf")}}, "Infinity is not allowed"),
    ],
)
def test_wrong_content(path, changes, message):
    written(path, TENSORS, {"openmm_sd": json.dumps(content(**changes))})
    assert message in refused(path)


def test_content_that_is_not_json(path):
    for text in ("", "{", "[" * 100_000, "3", "null"):
        written(path, TENSORS, {"openmm_sd": text})
        refused(path)


def test_non_finite_weights(path):
    for value in (float("nan"), float("inf")):
        bad = {"w": torch.tensor([1.0, value])}
        written(path, bad, {"openmm_sd": json.dumps(content())})
        assert "the weights w hold NaN or infinity" in refused(path)
        path.unlink()
        with pytest.raises(BundleError, match="weights w"):
            save_bundle(path, bad, content())
        assert not path.exists()


def test_content_that_json_cannot_hold(path):
    for bad in ({"x": float("nan")}, {"x": {1, 2}}, {1: "x"}, {"x": [{2: 3}]}):
        with pytest.raises(BundleError, match="cannot be written as JSON"):
            save_bundle(path, TENSORS, content(card=bad))
    assert not path.exists()


def test_failed_write_leaves_the_old_file(path, monkeypatch):
    save_bundle(path, TENSORS, content())
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_bundle(path, {"w": torch.zeros(5)}, content())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_tensor_name_that_breaks_the_header_is_refused(path):
    with pytest.raises(BundleError):
        save_bundle(path, {"__metadata__": torch.ones(1)}, content())
    assert not path.exists()


def test_save_to_no_place(tmp_path):
    with pytest.raises(BundleError, match="there is no folder"):
        save_bundle(tmp_path / "missing" / "tiny.safetensors", TENSORS, content())


def test_save_to_a_directory(tmp_path):
    with pytest.raises(BundleError, match="is a directory"):
        save_bundle(tmp_path, TENSORS, content())


# --- the registry -------------------------------------------------------------------------------


def test_registry():
    assert architecture("test-linear") is Linear
    assert architecture_name(Linear) == "test-linear"
    assert architecture_name(Unregistered) is None
    register_architecture("test-linear", Linear)
    with pytest.raises(ValueError, match="'test-linear' is taken by"):
        register_architecture("test-linear", Unregistered)
    with pytest.raises(ValueError, match="taken by openmm-sd's own"):
        register_architecture("dense-diffusion", Unregistered)
    with pytest.raises(ValueError, match="must be a subclass"):
        register_architecture("test-other", Linear(3))
    with pytest.raises(ValueError, match="unknown architecture 'dance'; known are") as caught:
        architecture("dance")
    assert "dense-diffusion" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_built_in_kernels_are_found_by_name():
    identity = architecture("identity")
    assert identity.__name__ == "Identity"
    assert architecture_name(identity) == "identity"


def test_entry_points(monkeypatch):
    good = EntryPoint("their-net", f"{__name__}:Unregistered", registry.ENTRY_POINT_GROUP)
    bad = EntryPoint("lost-net", "no_such_package.net:Net", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [good, bad])
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__(__name__))
    assert architecture("their-net").__name__ == "Unregistered"
    assert architecture_name(Unregistered) == "their-net"
    assert {"their-net", "lost-net"} <= set(known_architectures())
    with pytest.raises(ValueError, match="no_such_package"):
        architecture("lost-net")


# --- the model ----------------------------------------------------------------------------------


def call(module, batch=2):
    generator = torch.Generator().manual_seed(3)
    frame = torch.randn(batch, 3, 3, generator=generator)
    noise = torch.randn(batch, 9, generator=generator)
    return module(frame, torch.full((batch,), 2.0), noise)


def test_model_round_trip(model, path):
    state = torch.random.get_rng_state()
    model.save(path)
    again = ScoreModel.load(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(call(again.propagator), call(model.propagator))
    assert again.card == model.card
    assert again.molecules == model.molecules
    assert not again.propagator.training
    assert not any(p.requires_grad for p in again.propagator.parameters())
    assert repr(again) == "ScoreModel(Linear of water; 3 atoms)"


def test_card_is_a_copy(model):
    model.card["recommended_lag_ps"] = 1000
    assert model.recommended_lag == 5.0


def test_card_accessors(model):
    assert model.recommended_lag == 5.0
    bare = ScoreModel(Linear(3), [WATER])
    assert bare.temperature is None
    assert bare.lag_range is None
    assert (bare.recommended_lag, bare.recommended_burst) == (10.0, 2.0)
    assert bare.max_displacement == 2.0
    assert bare.bond_windows == ()
    assert bare.contact_distances == bare.angle_windows == bare.torsion_windows == ()
    card = {
        "temperature_K": 300,
        "lag_range_ps": (1, 1000),
        "max_displacement_nm": 0.5,
        "bond_windows_nm": [(0, 1, 0.09, 0.11)],
        "angle_windows_nm": [(1, 2, 0.14, 0.16)],
        "torsion_windows_nm": [(0, 2, 0.24, 0.26)],
        "contact_distances_nm": [(1, 2, 0.14)],
        "training_data": {"ns": 5, "history": [1.0] * 1000},
    }
    full = ScoreModel(Linear(3), WATER, card)
    assert full.temperature == 300.0
    assert full.lag_range == (1.0, 1000.0)
    assert full.bond_windows == ((0, 1, 0.09, 0.11),)
    assert full.angle_windows == ((1, 2, 0.14, 0.16),)
    assert full.torsion_windows == ((0, 2, 0.24, 0.26),)
    assert full.contact_distances == ((1, 2, 0.14),)
    text = full.summary()
    assert "contact_distances" not in text
    for part in ("water (H2O, 3 atoms)", "test-linear", "300 K", "1 to 1000 ps", '{"ns": 5}'):
        assert part in text
    assert "A test." in model.summary()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"temperature_K": -1}, "temperature_K must be a positive number, got -1"),
        ({"temperature_K": "warm"}, "temperature_K must be"),
        ({"recommended_burst_ps": True}, "recommended_burst_ps must be"),
        ({"lag_range_ps": [10, 1]}, "lag_range_ps must be two positive ascending"),
        (
            {"lag_range_ps": [10, 20], "recommended_lag_ps": 30},
            "recommended_lag_ps 30 ps is outside",
        ),
        ({"bond_windows_nm": [[0, 3, 0.1, 0.2]]}, "bond_windows_nm must be"),
        ({"bond_windows_nm": {"0-1": 3}}, "bond_windows_nm must be"),
        ({"angle_windows_nm": [[0, 1, 0.2, 0.1]]}, "angle_windows_nm must be"),
        ({"torsion_windows_nm": [[0, 0, 0.1, 0.2]]}, "torsion_windows_nm must be"),
        ({"contact_distances_nm": [[0, 3, 0.1]]}, "contact_distances_nm must be"),
        ({"contact_distances_nm": [[1, 1, 0.1]]}, "contact_distances_nm must be"),
        ({"contact_distances_nm": [[0, 1, -0.1]]}, "contact_distances_nm must be"),
        ({"contact_distances_nm": [[0, 1, 0.1, 0.2]]}, "contact_distances_nm must be"),
        ({"contact_distances_nm": {"0-1": 3}}, "contact_distances_nm must be"),
        ({"x": object()}, "cannot be written as JSON"),
        ({"x": float("inf")}, "cannot be written as JSON"),
        ([1], "card must be a mapping"),
    ],
)
def test_bad_card(card, message):
    with pytest.raises(ValueError, match=message):
        ScoreModel(Linear(3), WATER, card)


def test_a_card_is_a_dict_with_typed_attributes():
    card = Card({"temperature_K": 300, "more": [1], "force_field": "mine", "name": 3})
    assert (card.temperature, card.force_field, card.name) == (300.0, ("mine",), None)
    assert (card.lag_range, card.bond_windows, card.training) == (None, (), {})
    card.lag_range = [1, 100]
    card.bond_windows = [[0, 1, 0.09, 0.11]]
    card.temperature = None
    assert card == {
        "more": [1],
        "force_field": "mine",
        "name": 3,
        "lag_range_ps": [1, 100],
        "bond_windows_nm": [[0, 1, 0.09, 0.11]],
    }
    with pytest.raises(ValueError, match="max_displacement_nm must be a positive number, got 0"):
        card.max_displacement = 0
    again = ScoreModel(Linear(3), WATER, card).card
    assert isinstance(again, Card)
    assert again == card


def test_the_format_s_page_has_every_key_of_a_card():
    page = (Path(__file__).parents[1] / "docs" / "bundle-format.md").read_text()
    keys = [entry.key for entry in vars(Card).values() if isinstance(entry, Entry)]
    assert keys
    assert not [key for key in keys if f"`{key}`" not in page]


def test_bad_propagator():
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got function"):
        ScoreModel(call, WATER)
    with pytest.raises(ValueError, match=r"Linear\.n_atoms must be an integer"):
        ScoreModel(torch.nn.Linear(3, 3), WATER)
    with pytest.raises(ValueError, match="water has 3 atoms, the propagator works on n_atoms = 4"):
        ScoreModel(Linear(4), WATER)
    with pytest.raises(ValueError, match="molecules is empty"):
        ScoreModel(Linear(3), [])
    with pytest.raises(ValueError, match="must hold Molecule objects, got str"):
        ScoreModel(Linear(3), ["water"])


def test_models_that_cannot_be_saved(path):
    for propagator, message in (
        (Unregistered(3), "call register_architecture"),
        (NoHyperparameters(), "needs the attribute hyperparameters"),
        (Forgetful(3, 5), "do not rebuild the module"),
    ):
        with pytest.raises(BundleError, match=message):
            ScoreModel(propagator, WATER).save(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("scale"), "the weights lack scale"),
        (lambda t: t.update(more=torch.ones(1)), "the weights hold unknown more"),
        (lambda t: t.update(scale=torch.ones(1)), r"the weights scale are (1,) torch.float32"),
        (lambda t: t.update(scale=torch.tensor(1.0).double()), "torch.float64"),
    ],
)
def test_weights_that_do_not_fit(model, path, change, message):
    model.save(path)
    tensors, whole = load_bundle(path)
    change(tensors)
    save_bundle(path, tensors, whole)
    with pytest.raises(BundleError) as caught:
        ScoreModel.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {"name": "dance", "hyperparameters": {}}}, "unknown architecture"),
        ({"architecture": {"name": "test-linear", "hyperparameters": {"x": 1}}}, "refuses its"),
        ({"card": {"temperature_K": -3}}, "temperature_K must be"),
    ],
)
def test_content_that_does_not_fit(model, path, changes, message):
    tensors = model.propagator.state_dict()
    save_bundle(path, tensors, content(**changes))
    with pytest.raises(BundleError, match=message) as caught:
        ScoreModel.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_atoms": 10**9}, "the network is of 1000000000 atoms, grown has 14"),
        ({"width": 10**7}, "a network far larger than the file's weights"),
        ({"depth": 10**6}, "a network far larger than the file's weights"),
        ({"depth": 10**12}, "a network far larger than the file's weights"),
        ({"n_lag_nodes": 10**10}, "n_lag_nodes must be 2 to 1000, got"),
        ({"n_calls": 10**10}, "n_calls must be 1 to 1000, got"),
    ],
    ids=str,
)
def test_a_network_that_fills_memory_is_refused(path, changes, message):
    molecule = butane()
    network = DenseDiffusion.for_molecule(molecule, lag_min_ps=1.0, lag_max_ps=9.0, width=8)
    ScoreModel(network, molecule).save(path)
    tensors, what = load_bundle(path)
    what["architecture"]["hyperparameters"] |= changes
    save_bundle(path, tensors, what)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=message):
        ScoreModel.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_molecule_that_fills_memory_is_refused(path):
    n = bundle.MOST_ATOMS + 1
    labels = ["C"] * n
    huge = WATER.to_dict() | {
        "atomic_numbers": [6] * n,
        "bonds": [[i, i + 1] for i in range(n - 1)],
        **dict.fromkeys(("atom_names", "residue_names", "residue_ids"), labels),
        "positions": [[0.15 * i, 0.0, 0.0] for i in range(n)],
    }
    with pytest.raises(BundleError, match="molecule 0 has 5001 atoms, a bundle holds 5000"):
        save_bundle(path, {}, content(molecules=[huge]))
    written(path, {}, {"openmm_sd": json.dumps(content(molecules=[huge]))})
    assert "molecule 0 has 5001 atoms" in refused(path)


def test_neither_pipe_nor_device(tmp_path):
    """Reading them need not end."""
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    assert refused(pipe).endswith("is not a regular file")
    assert refused(Path("/dev/zero")).endswith("is not a regular file")


def test_load_by_name(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="neither a file nor a shipped model") as caught:
        ScoreModel.load("no-such-model")
    assert "shipped models:" in str(caught.value)
    with pytest.raises(ValueError, match="must be a name or a path"):
        ScoreModel.load(3)
    assert isinstance(ScoreModel.shipped(), list)

    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    monkeypatch.setattr("importlib.resources.files", lambda _: package)
    model.save(package / "models" / "tiny.safetensors")
    assert ScoreModel.shipped() == ["tiny"]
    assert ScoreModel.load("tiny").card == model.card


def test_scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        script = model.scripted()
    assert isinstance(script, torch.jit.ScriptModule)
    assert model.scripted() is script
    assert model.scripted("cpu") is script
    torch.testing.assert_close(call(script), call(model.propagator))
    assert not list(script.parameters())  # frozen: the weights are constants


def test_not_scriptable():
    with pytest.raises(ValueError, match="NotScriptable cannot be scripted") as caught:
        ScoreModel(NotScriptable(), WATER).scripted()
    assert "\n" not in str(caught.value)


# --- start frames -------------------------------------------------------------------------------


def some_frames(count=4):
    rng = np.random.default_rng(2)
    return WATER.positions + rng.normal(scale=0.01, size=(count, 3, 3)) + [3.0, 0.0, -1.0]


def test_start_frames_round_trip(path):
    given = some_frames()
    model = ScoreModel(Linear(3), WATER, start_frames=given)
    frames = model.start_frames
    assert frames.dtype == np.float32
    centred = given - given.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(frames, centred, rtol=0, atol=0.51e-4)
    model.start_frames[:] = 0.0
    model.save(path)
    again = ScoreModel.load(path)
    assert np.array_equal(again.start_frames, frames)
    assert "start frames:  4" in again.summary()
    stored = load_bundle(path)[0]["openmm_sd.start_frames"]
    assert (stored.dtype, tuple(stored.shape)) == (torch.int16, (4, 3, 3))
    # Given its own start frames a model holds the very same: saving again changes nothing.
    first = path.read_bytes()
    ScoreModel(again.propagator, WATER, start_frames=again.start_frames).save(path)
    assert path.read_bytes() == first


def test_start_frames_are_optional(model, path):
    assert model.start_frames is None
    model.save(path)
    assert "openmm_sd.start_frames" not in load_bundle(path)[0]
    assert ScoreModel.load(path).start_frames is None
    assert "start frames" not in model.summary()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 4, 3)), "start_frames must have shape (M, 3, 3), got (2, 4, 3)"),
        (np.zeros((3, 3)), "start_frames must have shape"),
        (np.zeros((0, 3, 3)), "start_frames must have shape"),
        (np.full((2, 3, 3), np.nan), "frame 0 holds NaN"),
        (WATER.positions[None] * 100, "in nm (not angstrom)"),
        ("water", "start_frames must be numbers"),
    ],
)
def test_bad_start_frames(frames, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ScoreModel(Linear(3), WATER, start_frames=frames)


@pytest.mark.parametrize(
    "stored",
    [
        torch.zeros(2, 4, 3, dtype=torch.int16),
        torch.zeros(0, 3, 3, dtype=torch.int16),
        torch.zeros(3, 3, dtype=torch.int16),
        torch.zeros(2, 3, 3),
        torch.zeros(2, 3, 3, dtype=torch.int32),
    ],
)
def test_bad_start_frames_in_a_bundle(model, path, stored):
    model.save(path)
    tensors, whole = load_bundle(path)
    save_bundle(path, tensors | {"openmm_sd.start_frames": stored}, whole)
    with pytest.raises(BundleError, match="start_frames must") as caught:
        ScoreModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_start_frames_that_are_not_finite_in_a_bundle(model, path):
    model.save(path)
    tensors, whole = load_bundle(path)
    tensors["openmm_sd.start_frames"] = torch.full((2, 3, 3), float("nan"))
    written(path, tensors, {"openmm_sd": json.dumps(whole)})
    with pytest.raises(BundleError, match="NaN or infinity"):
        ScoreModel.load(path)


def test_constraint_lengths():
    assert ScoreModel(Linear(3), WATER).constraint_lengths == ()
    card = {"constraint_lengths_nm": [[0, 1, 0.0957], (0, 2, 0.0957)]}
    model = ScoreModel(Linear(3), WATER, card)
    assert model.constraint_lengths == ((0, 1, 0.0957), (0, 2, 0.0957))
    assert "constraints:   2 bonds to hydrogen" in model.summary()
    for bad in ([[1, 0, 0.1]], [[0, 3, 0.1]], [[1, 2, 0.15]], [[0, 1, 0]], {"x": 1}, [[0, 1]]):
        with pytest.raises(ValueError, match="constraint_lengths_nm must be a list"):
            ScoreModel(Linear(3), WATER, {"constraint_lengths_nm": bad})
    with pytest.raises(ValueError, match="names hydrogen 1 twice"):
        ScoreModel(Linear(3), WATER, {"constraint_lengths_nm": [[0, 1, 0.1], [0, 1, 0.1]]})
