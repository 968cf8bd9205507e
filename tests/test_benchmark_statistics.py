"""What the benchmark says of samples and errors, of series whose memory is known."""

import json
import math
import shutil
import types

import numpy as np
import pytest

from openmm_sd import ScoreModel
from openmm_sd.benchmark import BenchmarkSettings, as_text, gromacs as gromacs_module, run_benchmark
from openmm_sd.benchmark.contestants import PLAIN
from openmm_sd.benchmark.gromacs import GROMACS, gromacs_contestant
from openmm_sd.benchmark.measure import Contestant, Turn, take_turns
from openmm_sd.benchmark.statistics import Field, Looks, as_lines, judged
from openmm_sd.data.reference import reference_from_arrays
from openmm_sd.model.schedules import PURPOSES
from openmm_sd.molecule.torsions import backbone_torsions

ENTER, LEAVE = 0.02, 0.06
POPULATION, TIME = 0.25, 0.5 * (1 + 0.92) / (1 - 0.92)


def jumping_phi(chains, looks, seed=1):
    """Angles (chains, looks, 2) of a chain between PII and alphaL with known rates."""
    rng = np.random.default_rng(seed)
    inside = np.empty((chains, looks), dtype=bool)
    inside[:, 0] = rng.random(chains) < POPULATION
    for k in range(1, looks):
        draw = rng.random(chains)
        inside[:, k] = np.where(inside[:, k - 1], draw >= LEAVE, draw < ENTER)
    return np.stack([np.where(inside, 1.0, -1.2), np.where(inside, 0.5, 2.5)], axis=-1)


def arena(ala2, own_looks=0):
    (pair,) = backbone_torsions(ala2)
    chains = Looks("chains", 100.0, 40, list(jumping_phi(40, 3000).swapaxes(0, 1)))
    own = jumping_phi(1, own_looks, seed=7).swapaxes(0, 1) if own_looks else []
    mixed = Looks("mixed", 101.0, 1, list(own))
    return Field(tuple(pair), (), (mixed,), (chains,), ())


def turns(seconds, ps):
    return [Turn(2, 2 * seconds * k, 0.0, 2 * ps * k) for k in (0.9, 1.0, 1.1)]


def found_of(ala2, reference=None, **more):
    # A look of 0.04 ps of MD takes 1 ms, one of the mixed run 2 s, one of 40 chains 0.05 s.
    times = {PLAIN: turns(0.001, 0.04), "mixed": turns(2.0, 101.0), "chains": turns(0.05, 4000.0)}
    scene = types.SimpleNamespace(molecule=ala2)
    return judged(scene, arena(ala2, **more), times, reference)


def test_samples_a_second_and_the_time_to_an_error(ala2):
    found = found_of(ala2)
    assert set(found) == {PLAIN, "mixed", "chains"}
    for one, samples in (
        (found["chains"], 40 / (2 * TIME * 0.05)),
        (found["mixed"], 1 / (2 * TIME * 2.0)),
        (found[PLAIN], 1 / (2 * (TIME * 100.0 / 0.04) * 0.001)),
    ):
        rate = one["effective_samples_per_s"]
        assert abs(rate["value"] - samples) < 4 * rate["error"]
        assert 0.005 < rate["error"] / rate["value"] < 0.2
        assert one["slowest"] in ("phi>0", "alphaL", "PII")
        needed = one["seconds_to_population_error"]
        chains = 40 if one is found["chains"] else 1
        expected = POPULATION * (1 - POPULATION) / 0.02**2 / samples
        expected += 3 * chains / (2 * samples)
        assert abs(needed["value"] - expected) < 4 * needed["error"]
    over = found["mixed"]["effective_samples_over_md"]
    assert abs(over["value"] - 101 / 100 * (100 / 2.0) / (0.04 / 0.001)) < 4 * over["error"]
    assert found[PLAIN]["effective_samples_over_md"]["value"] == pytest.approx(1.0)
    assert "chains of 100 ps" in found["mixed"]["correlation_times_from"]
    text = "\n".join(as_lines(found))
    assert "samples/s" in text
    assert "not known" not in text


def test_a_mixed_run_s_own_looks_count_once_they_are_enough(ala2):
    short, long = (found_of(ala2, own_looks=n)["mixed"] for n in (300, 30_000))
    assert short["correlation_times_from"] == "chains of 100 ps"
    assert long["correlation_times_from"] == "its own looks"
    rate = long["effective_samples_per_s"]
    assert abs(rate["value"] - 1 / (2 * TIME * 2.0)) < 4 * rate["error"]


def test_plain_md_has_the_memory_of_its_reference(ala2):
    # Frames of 2 ps: MD forgets fifty times sooner than chains of 100 ps do.
    reference = reference_from_arrays([jumping_phi(1, 100_000, seed=3)[0]], 2.0, "md")
    found = found_of(ala2, reference)
    assert found[PLAIN]["correlation_times_from"] == "reference"
    time = found[PLAIN]["correlation_time_ps"]
    assert abs(time["value"] - 2.0 * TIME) < 4 * time["error"]
    assert found["mixed"]["effective_samples_over_md"]["value"] < 1.0


def test_chains_that_are_too_short_give_no_figures(ala2):
    one = arena(ala2)
    short = Looks("chains", 100.0, 40, one.chains[0].angles[:20])
    scene = types.SimpleNamespace(molecule=ala2)
    found = judged(
        scene, Field(one.torsions, (), one.mixed, (short,), ()), {PLAIN: turns(0.1, 1)}, None
    )
    assert found[PLAIN]["effective_samples_per_s"] is None
    assert "not known" in "\n".join(as_lines(found))


def test_a_contestant_with_a_clock_is_timed_by_it():
    told = Contestant("starts slowly", lambda: 10.0, clock=lambda: 0.5)
    (turn,) = take_turns([told], 1, 0.0, lambda *_: None)["starts slowly"]
    assert turn == Turn(1, 0.5, turn.cpu_seconds, 10.0)


def test_without_gromacs_there_is_a_note(tmp_path, monkeypatch):
    def none(path):
        raise ValueError("there is no program gmx")

    monkeypatch.setattr(gromacs_module, "find_gromacs", none)
    said = []
    scene = types.SimpleNamespace(say=lambda *words: said.append(words))
    assert gromacs_contestant(scene, None, tmp_path) is None
    assert said == [("note", "left out: GROMACS: there is no program gmx")]


@pytest.fixture(scope="module")
def quick_model(tmp_path_factory):
    """The shipped network with a schedule of some MD steps."""
    model = ScoreModel.load("ala2-water")
    short = {"burst_ps": 0.02, "settle_ps": 0.02}
    uses = ((500.0, "populations"), (100.0, "kinetics"))
    schedules = [short | {"lag_ps": lag, "good_for": [use]} for lag, use in uses]
    card = model.card | {"schedules": schedules}
    path = tmp_path_factory.mktemp("model") / "quick.safetensors"
    ScoreModel(model.propagator, model.molecules, card, model.start_frames, model.novelty).save(
        path
    )
    return str(path)


def everything(model, **more):
    return BenchmarkSettings(
        model=model,
        **{"seconds": 0.02, "platform": "CPU", "only": "statistics", "equilibration_ps": 0.0},
        **more,
    )


def test_all_of_it_in_one_run(quick_model, tmp_path):
    settings = everything(
        quick_model, repeats=1, waters=240, chain_seconds=1.0, gmx=str(tmp_path / "no-gmx")
    )
    result = run_benchmark(settings, figure=tmp_path / "errors.png", output=tmp_path / "all.json")
    rows = {row["what"]: row["statistics"] for row in result["rows"]}
    names = [f"{kind} for {use}" for use in PURPOSES for kind in ("mixed run", "chains")]
    assert [name.partition(",")[0] for name in rows] == [PLAIN, *names]
    one = rows["chains for populations, 64 at once"]
    assert one["effective_samples_per_s"]["error"] > 0
    assert 0.2 < one["populations"]["alphaR"]["value"] < 0.45
    assert math.isfinite(one["seconds_to_population_error"]["value"])
    assert "samples/s" in as_text(result)
    assert (tmp_path / "errors.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "all.json").read_text())["rows"] == result["rows"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gmx") is None, reason="there is no GROMACS")
def test_gromacs_takes_part(quick_model, monkeypatch):
    monkeypatch.setattr(gromacs_module, "_STEPS", 50)
    result = run_benchmark(everything(quick_model, repeats=1, waters=320, chain_seconds=1.0))
    (row,) = (row for row in result["rows"] if row["what"] == GROMACS)
    assert row["ns_per_day"] > 0
    assert row["statistics"]["effective_samples_per_s"]["value"] > 0
