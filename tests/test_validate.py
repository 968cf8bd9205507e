"""Validation: the report end to end, references of every kind, verdicts, energies."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import openmm
import pytest
from conftest import IMPLICIT
from openmm import app, unit

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis.figures import correlations, drift, energy_excess
from openmm_sd.analysis.sample import Sample
from openmm_sd.analysis.verdicts import AGREES, CLOSE, DIFFERS, UNDECIDED, judge
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset
from openmm_sd.files.atomic import file_sha256
from openmm_sd.files.folder import locked
from openmm_sd.molecule.torsions import Torsion
from openmm_sd.propagator.kernels import Identity
from openmm_sd.report.page import number
from openmm_sd.rollout.driver import run_rollout
from openmm_sd.rollout.settings import RolloutSettings
from openmm_sd.validate import (
    ValidateSettings,
    held_out_reference,
    plots as plots_module,
    read_reference,
    reference_from_arrays,
    reference_from_dataset,
    reference_from_trajectory,
    validate,
)
from openmm_sd.validate.energy import VacuumEnergy

KEYS = {
    "jsd_phi_psi_bits",
    "populations",
    "implied_timescales_ps",
    "mfpt_ps",
    "gate_failure_fraction",
    "chirality_flip_fraction",
    "solute_energy_excess_kT",
}


def basin_walk(frames, seed):
    """(phi, psi) that hops between four basins, 10 ps a frame."""
    rng = np.random.default_rng(seed)
    centres = np.deg2rad([[-150, 155], [-70, 150], [-75, -20], [55, 45]])
    matrix = np.array(
        [[0.6, 0.3, 0.1, 0.0], [0.2, 0.6, 0.2, 0.0], [0.1, 0.19, 0.7, 0.01], [0, 0, 0.04, 0.96]]
    )
    state, states = 2, []
    for draw in rng.random(frames):
        state = int((draw > matrix[state].cumsum()).sum())
        states.append(state)
    angles = centres[states] + rng.normal(0.0, 0.2, (frames, 2))
    return np.angle(np.exp(1j * angles)).astype(np.float32)


@pytest.fixture(scope="module")
def walk():
    return reference_from_arrays([basin_walk(2500, 1), basin_walk(2500, 2)], 10.0, "walk")


SETTINGS = ValidateSettings(lags=(10.0, 50.0), chains=16, steps=20, seed=3, one_step_starts=64)


@pytest.fixture(scope="module")
def made(walk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    said = []
    report = validate(IMPLICIT, walk, folder, SETTINGS, lambda what, how_far: said.append(what))
    return report, folder, said


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than all else in a tiny validation."""
    monkeypatch.setattr(plots_module, "draw_all", lambda *arguments: [])


@pytest.fixture(scope="module")
def frames(ala2):
    """MD of a kind: the dipeptide with every atom shaken, its phi turned now and then."""
    rng = np.random.default_rng(4)
    return (ala2.positions + rng.normal(0.0, 0.002, (600, ala2.n_atoms, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(ala2, frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set.h5"
    runs = [
        Run(f"run{k}", "plain" if k < 4 else "seeded", part, 5.0)
        for k, part in enumerate(np.split(frames, 6))
    ]
    write_dataset(path, ala2, runs, {})
    return path


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (None, "does not say what its training held out"),
        ({"data_sets": [{"file": "set.h5", "sha256": ""}]}, "does not say what its training held"),
        ({"data_sets": [{"file": "set.h5"}], "held_out_ps": {}}, "training held nothing out"),
        ("runs", "holds no plain run"),
    ],
)
def test_without_a_reference_what_was_held_out_must_do(ala2, dataset, training, said):
    if training == "runs":
        files = [{"file": dataset.name, "sha256": file_sha256(dataset)}]
        training = {"data_sets": files, "held_out_ps": {"run5": 50.0}}
    with pytest.raises(ValueError, match=said):
        held_out_reference({"training": training}, ala2, [dataset.parent])


def test_what_was_held_out_is_the_end_of_its_runs(ala2, frames, dataset):
    files = [{"file": dataset.name, "sha256": file_sha256(dataset)}]
    training = {"data_sets": files, "held_out_ps": {"run1": 100.0, "run3": 495.0, "run4": 5.0}}
    found = held_out_reference({"training": training}, ala2, ["/nowhere", dataset.parent])
    assert [run.n_frames for run in found.runs] == [21, 100, 2]
    assert [run.equilibrium for run in found.runs] == [True, True, False]
    np.testing.assert_allclose(
        found.runs[0].positions - found.runs[0].positions.mean(1, keepdims=True),
        frames[179:200] - frames[179:200].mean(1, keepdims=True),
        atol=1e-4,
    )


@pytest.fixture
def still(ala2):
    """A model that never moves."""
    card = {"temperature_K": 300.0, "force_field": ["amber99sbildn.xml"]}
    return ScoreModel(Identity(ala2.n_atoms), ala2, card)


def every_figure(value):
    """All dicts with a value and an error."""
    if isinstance(value, dict):
        if {"value", "error"} <= value.keys():
            yield value
        for one in value.values():
            yield from every_figure(one)


# -- the report ----------------------------------------------------------------------------------


def test_report_has_the_keys_that_other_tools_rely_on(made):
    report, _, _ = made
    assert list(report["lags"]) == ["10", "50"]
    for entry in report["lags"].values():
        assert entry.keys() >= KEYS
        for key in ("jsd_phi_psi_bits", "gate_failure_fraction", "chirality_flip_fraction"):
            assert 0 <= entry[key]["value"] <= 1
            assert 0 < entry[key]["error"] < 1
        assert len(entry["mfpt_ps"]) == 8
        shares = [entry["populations"][name]["value"] for name in ("beta_C5", "PII", "alphaR")]
        assert 0.9 < sum(shares) <= 1.0
        assert all("reference" in one for one in entry["populations"].values())
        assert entry["frames"] == 16 * 19  # the start and two steps are discarded
        assert {row["verdict"] for row in entry["verdicts"]} <= {AGREES, CLOSE, DIFFERS, UNDECIDED}
    assert report["lags"]["50"]["mfpt_msm_lag_ps"] == 50.0
    assert "50" in report["reference"]["mfpt_ps"]


def test_reference_is_measured_with_errors(made):
    report, _, _ = made
    reference = report["reference"]
    assert reference["ns"] == pytest.approx(50.0)
    # Hops into and out of alphaL with 0.01 and 0.04 a frame.
    slowest = reference["implied_timescales_ps"]["20"]
    assert 100 < slowest["value"][0] < 500
    assert 0 < slowest["error"][0] < slowest["value"][0]
    out = reference["mfpt_ps"]["20"]["phi>0 -> phi<0"]
    assert abs(out["value"] - 10.0 / 0.04) < 4 * out["error"] + 20.0
    assert 0 < reference["jsd_phi_psi_bits"]["two_halves"] < 0.5


def test_json_is_what_was_returned_and_holds_what_repeats_it(made):
    report, folder, said = made
    assert json.loads((folder / "validation.json").read_text()) == report
    assert report["settings"]["seed"] == 3
    assert report["settings"]["lags"] == [10.0, 50.0]
    assert any("rollout" in line for line in said)
    found = list(every_figure(report))
    assert len(found) > 100


def test_page_needs_nothing_else(made):
    report, folder, _ = made
    page = (folder / "validation.html").read_text()
    pictures = sorted(file.name for file in folder.glob("*.png"))
    assert page.count('<svg class="plot"') == len(pictures) >= 6
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"https?:|xmlns|@import|url\((?!#)", page)
    assert "ACE-ALA-NME" in page
    shown = re.sub(r"base64,[^\"]*|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", shown, flags=re.IGNORECASE)

    stack = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "br"):
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Tags().feed(page)
    assert stack == []


def test_same_seed_same_report_and_an_earlier_one_stays(made, walk, tmp_path, no_pictures):
    report, folder, _ = made
    with pytest.raises(ValueError, match="--force"):
        validate(IMPLICIT, walk, folder, SETTINGS)
    with locked(folder, "test"), pytest.raises(ValueError, match="another validation is writing"):
        validate(IMPLICIT, walk, folder, SETTINGS, force=True)
    settings = dataclasses.replace(SETTINGS, lags=(10.0,))
    again = validate(IMPLICIT, walk, tmp_path / "again", settings)
    for key in KEYS:
        assert again["lags"]["10"][key] == report["lags"]["10"][key]


def test_a_model_that_never_moves_is_seen_through(still, dataset, tmp_path, no_pictures):
    settings = ValidateSettings(lags=(10.0,), chains=400, steps=8, one_step_starts=300)
    entry = validate(still, dataset, tmp_path, settings)["lags"]["10"]
    # Its frames are those of MD ...
    assert (
        abs(entry["solute_energy_excess_kT"]["value"])
        < 5 * entry["solute_energy_excess_kT"]["error"]
    )
    for row in entry["geometry"]["bonds"]:
        assert abs(row["mean_shift_nm"]["value"]) < 5 * row["mean_shift_nm"]["error"]
        assert row["width_ratio"]["value"] == pytest.approx(1.0, abs=0.15)
    assert entry["geometry"]["clash_fraction"]["value"] == 0.0
    assert entry["gate_failure_fraction"]["value"] == 0.0
    assert entry["drift"]["last_half_bits"]["value"] == 0.0
    # ... but where MD shakes, it stands.
    step = entry["one_step"]["mean_cos_change"]["phi"]
    assert step["value"] == pytest.approx(1.0, abs=1e-6)
    assert step["reference"]["value"] < 1.0
    assert all(one["value"] is None for one in entry["mfpt_ps"].values())


@pytest.mark.parametrize("init", [None, "first.safetensors"])
def test_what_first_weights_may_have_seen_is_said(
    still, ala2, dataset, frames, tmp_path, no_pictures, init
):
    files = [{"file": dataset.name, "sha256": file_sha256(dataset)}]
    held = {f"run{k}": 495.0 for k in range(4)}
    training = {"data_sets": files, "held_out_ps": held, "init": init}
    path = dataset.parent / "model.safetensors"
    card = still.card | {"training": training}
    ScoreModel(still.propagator, ala2, card, start_frames=frames[::6]).save(path)
    settings = ValidateSettings(lags=(10.0,), chains=40, steps=8, one_step_starts=64)
    report = validate(path, None, tmp_path / "out", settings)
    assert any("No reference was named" in note for note in report["notes"])
    assert any("first.safetensors" in note for note in report["notes"]) == (init is not None)


def test_a_rollout_from_before_is_judged(still, dataset, frames, tmp_path, no_pictures):
    rollout = tmp_path / "rollout"
    run_rollout(
        still,
        rollout,
        RolloutSettings(chains=40, steps=10, lag_ps=20.0),
        start=frames[:40],
        every=2,
    )
    report = validate(still, dataset, tmp_path / "out", rollouts=[rollout])
    entry = report["lags"]["20"]
    assert entry["spacing_ps"] == 40.0
    assert entry["frames"] == 40 * 5
    assert entry["statistics"]["draws"] == 400


# -- references ----------------------------------------------------------------------------------


def test_arrays_of_every_shape(tmp_path, ala2):
    one, two = basin_walk(50, 1), basin_walk(50, 2)
    np.save(tmp_path / "both.npy", np.stack([one, two]))
    np.savez(tmp_path / "both.npz", a=one, b=two)
    for name in ("both.npy", "both.npz"):
        found = read_reference([tmp_path / name], ala2, spacing_ps=2.0)
        assert [run.n_frames for run in found.runs] == [50, 50]
        assert found.runs[0].spacing_ps == 2.0
        np.testing.assert_array_equal(found.runs[1].angles, two)
    wrapped = reference_from_arrays(np.where(one < 0, one + 2 * np.pi, one))
    np.testing.assert_allclose(wrapped.runs[0].angles, one, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), "shape"),
        (np.full((5, 2), 170.0), "radians"),
        (np.full((5, 2), np.nan), "finite"),
        ("text", "array of numbers"),
    ],
)
def test_arrays_that_are_no_angles(array, message):
    with pytest.raises(ValueError, match=message):
        reference_from_arrays([array])


def test_a_trajectory_in_another_atom_order_is_put_into_the_model_s(tmp_path, ala2, frames):
    mdtraj = pytest.importorskip("mdtraj")
    topology, given = mdtraj.Topology(), mdtraj.Topology.from_openmm(ala2.to_topology())
    chain, order, atoms = topology.add_chain(), [], {}
    for residue in given.residues:
        new = topology.add_residue(residue.name, chain, residue.resSeq)
        for atom in reversed(list(residue.atoms)):
            atoms[atom.index] = topology.add_atom(atom.name, atom.element, new)
            order.append(atom.index)
    for first, second in given.bonds:
        topology.add_bond(atoms[first.index], atoms[second.index])
    whole = mdtraj.Trajectory(frames[:20, order], topology, time=np.arange(20) * 2.0)
    whole.save(str(tmp_path / "md.xtc"))
    whole[0].save(str(tmp_path / "md.pdb"))
    found = read_reference([tmp_path / "md.xtc"], ala2, topology=tmp_path / "md.pdb").runs[0]
    again = mdtraj.load(str(tmp_path / "md.xtc"), top=whole.topology)
    loaded = reference_from_trajectory(again, ala2)
    np.testing.assert_array_equal(loaded.runs[0].positions, found.positions)
    assert loaded.runs[0].spacing_ps == found.spacing_ps
    assert found.spacing_ps == 2.0
    heavy = list(ala2.heavy)
    np.testing.assert_allclose(found.positions[:, heavy], frames[:20][:, heavy], atol=1e-3)
    whole.save(str(tmp_path / "md.dcd"))
    with pytest.raises(ValueError, match="--reference-spacing"):
        read_reference([tmp_path / "md.dcd"], ala2, topology=tmp_path / "md.pdb")
    with pytest.raises(ValueError, match="--topology"):
        read_reference([tmp_path / "md.dcd"], ala2)


def test_data_sets_and_arrays_beside_each_other(ala2, dataset):
    torsion = Torsion("psi", (0, 1, 2, 3))
    whole = reference_from_dataset(dataset, ala2)
    assert [run.equilibrium for run in whole.runs] == [True] * 4 + [False] * 2
    assert whole.sample([torsion]).n_frames == 400
    assert len(whole.frames(100)) == 100
    both = whole + reference_from_arrays(np.zeros((7, 1)))
    assert both.sample([torsion]).n_frames == 7
    seeded = type(whole)(whole.runs[4:])
    with pytest.raises(ValueError, match="seeded runs only"):
        seeded.sample([torsion])


def test_a_data_set_of_another_molecule(dataset):
    other = Molecule(
        "CO", (6, 8), ((0, 1),), ("C", "O"), ("M",) * 2, ("1",) * 2, [[0, 0, 0], [0.12, 0, 0]]
    )
    with pytest.raises(ValueError, match="the model knows CO"):
        reference_from_dataset(dataset, other)


# -- wrong input on the command line ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lags", "1000"], "outside"),
        (["--lags", "ten"], "--lags: must be numbers"),
        (["--lags", "10,10"], "differ from each other"),
        (["--chains", "1"], "at least 2"),
        (["--total-us", "-1"], "positive"),
        (["--torsions", "1,2,3"], "must be 4 numbers"),
        (["--torsions", "1,2,3,99", "1,4,6,8"], "four different atoms"),
        (["--rollout", "nowhere"], "holds no rollout"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    np.save(tmp_path / "r.npy", basin_walk(50, 1))
    given = ["validate", str(IMPLICIT), "-r", str(tmp_path / "r.npy"), "-o", str(tmp_path / "o")]
    assert main([*given, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_references_that_are_none(tmp_path, capsys):
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for name, message in (("gone.npy", "no file"), ("bad.npy", "not a NumPy file")):
        given = ["validate", str(IMPLICIT), "-r", str(tmp_path / name), "-o", str(tmp_path / "o")]
        assert main(given) == 2
        assert message in capsys.readouterr().err


# -- figures -------------------------------------------------------------------------------------


def test_correlation_of_an_ornstein_uhlenbeck_torsion():
    # <cos(x(t) - x(0))> of a Gaussian of width s is exp(-s^2 (1 - exp(-t / tau))).
    rng, width, decay = np.random.default_rng(12), 0.5, np.exp(-1.0 / 8.0)
    x = np.empty((200, 400))
    x[:, 0] = rng.normal(0, width, 200)
    for t in range(1, 400):
        x[:, t] = decay * x[:, t - 1] + rng.normal(0, width * np.sqrt(1 - decay**2), 200)
    sample = Sample.from_runs(list(x[:, :, None]), 1.0)
    found = correlations(sample, [Torsion("x", (0, 1, 2, 3))], (1.0, 4.0, 16.0, 0.5))["x"]
    assert list(found) == ["1", "4", "16"]
    for time, one in found.items():
        exact = np.exp(-(width**2) * (1 - np.exp(-float(time) / 8.0)))
        assert abs(one["value"] - exact) < 4 * one["error"]
        assert one["error"] < 0.01


def test_drift_is_found(walk):
    from openmm_sd.analysis.figures import Baseline

    phi, psi = Torsion("phi", (4, 6, 8, 14)), Torsion("psi", (6, 8, 14, 16))
    model = ScoreModel.load(IMPLICIT)
    baseline = Baseline.of(model.molecules[0], [phi, psi], walk.sample([phi, psi]), 1)
    steady = np.stack([basin_walk(200, 100 + k) for k in range(32)])
    moving = steady.copy()
    moving[:, 150:, 0] += 1.5
    found = [drift(baseline, Sample.from_runs(list(x), 10.0)) for x in (steady, moving)]
    last = [one["last_half_bits"] for one in found]
    assert abs(last[0]["value"]) < 4 * last[0]["error"]
    assert last[1]["value"] > 10 * last[1]["error"]


def test_vacuum_energy_is_openmm_s_and_leaves_solvent_out(ala2, frames):
    system = app.ForceField("amber99sbildn.xml").createSystem(ala2.to_topology())
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(frames[0].astype(float))
    energy = context.getState(energy=True).getPotentialEnergy()
    plain = VacuumEnergy(ala2, ["amber99sbildn.xml"])
    implicit = VacuumEnergy(ala2, ["amber99sbildn.xml", "amber99_obc.xml"])
    expected = energy.value_in_unit(unit.kilojoule_per_mole)
    assert plain(frames[:1])[0] == pytest.approx(expected)
    np.testing.assert_allclose(implicit(frames[:5]), plain(frames[:5]))
    with pytest.raises(ValueError, match="nonsense"):
        VacuumEnergy(ala2, ["nonsense.xml"])


def test_energy_excess_in_units_of_kT():
    rng = np.random.default_rng(13)
    reference = rng.normal(100.0, 10.0, 5000)
    found = energy_excess(lambda f: f[:, 0, 0], rng.normal(105, 10, (5000, 1, 3)), reference, 2.5)
    assert abs(found["value"] - 2.0) < 4 * found["error"]
    assert sum(found["histogram"]["reference"]) == pytest.approx(1.0, abs=0.01)


def test_verdicts():
    assert judge(0.01, 0.01, 0.03) == AGREES
    assert judge(0.025, 0.01, 0.03) == CLOSE
    assert judge(0.05, 0.01, 0.03) == DIFFERS
    assert judge(-0.05, 0.01, 0.03) == DIFFERS
    assert judge(0.05, 0.05, 0.03) == UNDECIDED
    assert judge(None, 0.1, 0.1) == UNDECIDED
    assert judge(0.1, float("nan"), 0.1) == UNDECIDED


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.28579, 0.01445, "0.286 &plusmn; 0.014"),
        (39702.9, 31371.4, "39703 &plusmn; 31371"),
        (1.2e-7, 3e-8, "(1.20 &plusmn; 0.30)e-7"),
        (None, None, "&ndash;"),
        (0.0, 0.0, "0"),
        (12.0, None, "12"),
    ],
)
def test_numbers_for_people(value, error, text):
    assert number(value, error) == text
