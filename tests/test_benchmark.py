"""The benchmark: that it measures what it says, with tiny settings."""

import json
import types

import numpy as np
import pytest
import torch

from openmm_sd.benchmark import BenchmarkSettings, PublishedNetwork, as_text, measure, run_benchmark
from openmm_sd.benchmark.chains import alkane, shaken, untrained
from openmm_sd.benchmark.measure import Contestant, row_of, take_turns
from openmm_sd.benchmark.memory import peak_of_rollout
from openmm_sd.benchmark.published import CALLS, LAYERS, WIDTH, OneCall
from openmm_sd.cli import main
from openmm_sd.propagator.script import script_frozen

TINY = {"seconds": 0.02, "repeats": 2, "platform": "Reference"}


def quiet(what, how_far):
    pass


def ratio(result, what):
    (entry,) = (entry for entry in result["ratios"] if entry["what"] == what)
    return entry


# -- turns ---------------------------------------------------------------------------------------


def test_contestants_take_turns_and_rows_hold_what_was_measured(monkeypatch):
    """On a clock of the test's own."""
    order, now = [], 0.0
    clock = types.SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 2.0 * now)
    monkeypatch.setattr(measure, "time", clock)

    def contestant(name, seconds, ps, **more):
        def work():
            nonlocal now
            order.append(name)
            now += seconds
            return ps

        return Contestant(name, work, **more)

    plain = contestant("md", 0.01, 1.0)
    fast = contestant("fast", 0.01, 5.0, jumps=2.0, facts={"batch": 2})
    slow = contestant("slow", 0.03, 0.0, jumps=1.0, minus=("md", 1.0))
    turns = take_turns([plain, fast, slow], 3, 0.0, quiet)
    warm = [name for name in ("md", "fast", "slow") for _ in range(3)]
    assert order == warm + ["md", "fast", "slow"] * 3
    row = row_of(fast, turns, "md")
    assert row["batch"] == 2
    assert row["repeats"] == 3
    assert row["ratio_to_md"] == pytest.approx(5.0)
    assert row["us_per_jump"] == pytest.approx(5_000)
    assert row["ns_per_day"] == pytest.approx(5e-3 / 0.01 * 86400)
    assert row["cores"] == pytest.approx(2.0)
    assert row["us_per_jump_quartiles"] == pytest.approx([5_000, 5_000])
    row = row_of(slow, turns, "md")
    assert row["us_per_jump"] == pytest.approx(20_000)
    assert row["ns_per_day"] is row["ratio_to_md"] is None
    # A turn lasts as long as it should, whatever one round of work takes.
    (turn,) = take_turns([plain], 1, 0.045, quiet)["md"]
    assert turn.count == 5
    assert turn.seconds == pytest.approx(0.05)


# -- the published network -----------------------------------------------------------------------


def published(molecule, **settings):
    torch.manual_seed(1)
    return PublishedNetwork(molecule.atomic_numbers, **settings).eval()


def jump_inputs(molecule, batch):
    frame = torch.from_numpy(shaken(molecule, batch))
    noise = torch.randn(batch, 3 * molecule.n_atoms, generator=torch.Generator().manual_seed(2))
    return frame, torch.full([batch], 10.0), noise


def test_the_published_network_has_the_published_size():
    network = published(alkane(22))
    assert (LAYERS, WIDTH, CALLS) == (5, 200, 60)
    assert len(network.messages) == LAYERS
    assert len(network.steps) == network.n_calls == CALLS
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.0e6, rel=0.05)


def test_a_jump_of_the_published_network_makes_all_its_calls():
    molecule = alkane(11)
    network = published(molecule, width=16, n_calls=5)
    calls = []
    network.out.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        moved = network(*jump_inputs(molecule, 2))
    assert len(calls) == 5
    assert moved.shape == (2, molecule.n_atoms, 3)
    assert torch.isfinite(moved).all()


def test_the_published_network_s_answer_depends_on_every_layer():
    molecule = alkane(11)
    network = published(molecule, width=16, n_calls=2)
    network(*jump_inputs(molecule, 2)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_graphs_of_a_batch_are_apart_and_follow_the_cutoff():
    molecule = alkane(20)
    network = published(molecule, width=16, n_calls=2)
    frame, lag, noise = jump_inputs(molecule, 3)
    senders, receivers = network.edges(frame)
    found = {tuple(pair) for pair in torch.stack([senders, receivers], 1).tolist()}
    n = molecule.n_atoms
    distance = torch.cdist(frame, frame)
    expected = {
        (k * n + i, k * n + j)
        for k in range(3)
        for i in range(n)
        for j in range(n)
        if i != j and distance[k, i, j] < 0.4
    }
    assert found == expected
    assert 0 < len(expected) < 3 * n * (n - 1)
    with torch.no_grad():
        together = network(frame, lag, noise)
        apart = torch.cat([network(frame[k:][:1], lag[:1], noise[k:][:1]) for k in range(3)])
        compiled = script_frozen(network)(frame, lag, noise)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled, together, atol=1e-5, rtol=0)


def test_one_call_is_what_a_jump_repeats():
    molecule = alkane(11)
    network = published(molecule, width=16, n_calls=2)
    frame, _, noise = jump_inputs(molecule, 2)
    senders, receivers = network.edges(frame)
    known = network.known(frame, senders, receivers)
    y = noise.view(-1, 3)
    with torch.no_grad():
        found = script_frozen(OneCall(network))(y, frame, known, senders, receivers)
        expected = network.predict(y, 0.5, frame, known, senders, receivers)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# -- longer molecules ----------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "atoms"), [(22, 23), (100, 101)])
def test_longer_chains_are_alkanes_with_networks_that_work(wanted, atoms):
    molecule = alkane(wanted)
    assert molecule.n_atoms == atoms
    lengths = {
        1 if 1 in (molecule.atomic_numbers[i], molecule.atomic_numbers[j]) else 6: np.linalg.norm(
            molecule.positions[i] - molecule.positions[j]
        )
        for i, j in molecule.bonds
    }
    assert lengths[1] == pytest.approx(0.109, abs=0.001)
    assert lengths[6] == pytest.approx(0.153, abs=0.002)
    apart = np.linalg.norm(molecule.positions[:, None] - molecule.positions, axis=-1)
    assert apart[np.triu_indices(atoms, 1)].min() > 0.1
    network = untrained(molecule)
    assert (network.width, network.depth) == (384, 4)
    frame = torch.from_numpy(shaken(molecule, 2))
    with torch.no_grad():
        moved = network(frame, torch.full([2], 10.0), torch.randn(2, network.noise_size))
    assert torch.isfinite(moved).all()
    assert (moved - frame).abs().max() > 0.01


# -- the whole -----------------------------------------------------------------------------------


def test_speeds_with_md(tmp_path):
    settings = BenchmarkSettings(
        seconds=0.01,
        repeats=1,
        platform="CPU",
        only="lag 10 ps",
        waters=240,
        equilibration_ps=0.0,
        batches=(2,),
    )
    result = run_benchmark(settings, output=tmp_path / "speed.json")
    rows = {row["what"]: row for row in result["rows"]}
    names = ["mixed run, lag 10 ps", *(f"rollout, lag 10 ps, batch {k}" for k in (1, 2))]
    assert list(rows) == ["plain MD", *names]
    keys = "what platform device batch ns_per_day us_per_jump ratio_to_md repeats".split()
    for row in rows.values():
        assert set(keys) <= set(row)
        assert row["ns_per_day"] > 0
        assert row["repeats"] == 1
    assert rows["plain MD"]["ratio_to_md"] == 1.0
    assert rows["plain MD"]["platform"] == "CPU"
    assert rows[names[2]]["device"] == "cpu"
    # A jump of ten ps of so small a molecule is quicker than ten ps of MD in water.
    assert rows[names[1]]["ratio_to_md"] > 10
    entry = ratio(result, "rollout, lag 10 ps, one chain / plain MD")
    assert entry["target"] == 2000
    assert entry["reached"] == (entry["ratio"] >= 2000)
    assert json.loads((tmp_path / "speed.json").read_text())["rows"] == result["rows"]
    assert "target 2,000" in as_text(result)


def test_bridges_against_the_bare_propagator():
    result = run_benchmark(BenchmarkSettings(**TINY, only="bridges"))
    rows = {row["what"]: row for row in result["rows"]}
    assert rows["jump through pythonforce"]["us_per_jump"] > 0
    entry = ratio(result, "time of jump through pythonforce / jump called directly")
    assert entry["extra_us"] == pytest.approx(
        rows["jump through pythonforce"]["us_per_jump"]
        - rows["jump called directly"]["us_per_jump"],
        abs=5000,
    )


def test_the_command_prints_rows(capsys, tmp_path):
    file = tmp_path / "speed.json"
    arguments = ["benchmark", "--json", "--only", "propagator, batch 16", "--seconds", "0.02"]
    assert main([*arguments, "--repeats", "1", "--output", str(file)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["what"] == "propagator, batch 16"
    assert row["batch"] == 16
    assert row["us_per_jump"] > 0
    assert json.loads(file.read_text())["machine"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--only", "warp drive"), "warp drive"),
        (("--seconds", "0"), "seconds"),
        (("--repeats", "0"), "repeats"),
        (("--platform", "Abacus"), "Abacus"),
        (("--device", "abacus"), "abacus"),
        (("--output", "/nowhere/at/all.json"), "/nowhere/at"),
    ],
)
def test_wrong_input_is_refused_in_one_line(capsys, arguments, word):
    assert main(["benchmark", *arguments]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("openmm-sd")]
    assert word in line


def test_memory_is_that_of_a_process_of_its_own():
    peak = peak_of_rollout("ala2-water", 2, 2, 10.0, "cpu")
    assert 100 < peak < 4000
