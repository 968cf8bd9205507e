"""Reports: errors along a run, checks with known answers, pages in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import types

import numpy as np
import pytest
from conftest import IMPLICIT, model_of
from small_molecules import butane, random_rotation, turned_about
from test_run import Broken, Killed, settings

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis.sample import Sample
from openmm_sd.analysis.timeline import Timeline, even_steps, visits
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset
from openmm_sd.integrator.notes import SOLVENT, TEMPERATURE, Note
from openmm_sd.model.card import Card
from openmm_sd.molecule.torsions import torsions
from openmm_sd.prepare import PreparedSystem
from openmm_sd.propagator.kernels import Identity, OrnsteinUhlenbeck
from openmm_sd.report.drawing import grid, style, svg
from openmm_sd.report.page import Page, details, figure, number, table
from openmm_sd.report.viewer import MOST_BYTES, add_viewer, shown_frames, superposed
from openmm_sd.run import driver, run_mixed
from openmm_sd.run.record import RunRecord, read_run
from openmm_sd.run.report.checks import BAD, CARE, GOOD, OPEN, check, overall
from openmm_sd.run.report.findings import Comparison, find
from openmm_sd.run.report.page import write_report


def two_states(frames, leave, come, seed):
    """A walk between states 0 and 1 with these probabilities a frame."""
    draws = np.random.default_rng(seed).random(frames)
    state, states = 0, np.empty(frames, dtype=np.int64)
    for k in range(frames):
        if draws[k] < (leave if state == 0 else come):
            state = 1 - state
        states[k] = state
    return states


# -- errors along a run ----------------------------------------------------------------------------


@pytest.mark.parametrize(("leave", "come"), [(0.5, 0.5), (0.02, 0.03), (0.1, 0.3)])
def test_errors_of_shares_are_those_of_many_runs(leave, come):
    found = []
    for seed in range(60):
        timeline = Timeline(np.arange(4000.0))
        value, error = timeline.shares(two_states(4000, leave, come, seed), 2)
        found.append((value[1], error[1]))
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(leave / (leave + come), rel=0.1)
    # The largest of three estimates lies somewhat above the truth, never far below.
    assert 0.9 < errors.mean() / values.std(ddof=1) < 1.6


def test_frames_count_by_the_time_they_stand_for():
    # 100 frames a step apart in state 0, then a hundred times longer steps, half in each.
    times = np.concatenate([np.arange(100.0), 100.0 + 100.0 * np.arange(100)])
    states = np.concatenate([np.zeros(100, int), np.arange(100) % 2])
    value, _ = Timeline(times).shares(states, 2)
    assert value[1] == pytest.approx(0.495, abs=0.01)
    even = Timeline(np.arange(50.0))
    np.testing.assert_allclose(even.weights, 1.0)
    halves = [even.half(second)[1] for second in (False, True)]
    assert [np.arange(50)[part].size for part in halves] == [25, 25]


def test_what_was_seen_once_is_not_known_well():
    states = np.zeros(10_000, int)
    states[4000:5000] = 1
    value, error = Timeline(np.arange(10_000.0)).shares(states, 3)
    assert error[1] >= value[1] * (1 - value[1])
    # Never seen: no error that could be mistaken for knowledge.
    assert value[2] == 0.0
    assert np.isnan(error[2])
    np.testing.assert_array_equal(visits(states, 3), [2, 1, 0])


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
def test_few_frames_have_no_error(frames):
    timeline = Timeline(np.arange(float(frames)))
    assert np.isnan(timeline.mean(np.arange(frames))[1])
    assert np.isnan(timeline.shares(np.arange(frames) % 2, 2)[1]).all()


def test_steps_of_equal_length_are_found():
    # Jumps of 10 after bursts of 1; one is dropped at 34, at 46 MD covers the lag in steps of 1.
    lasts = [1.0, 12.0, 23.0, 34.0, 35.0, 46.0]
    dense = 46.0 + np.arange(1, 12)
    times = np.array([*lasts, *dense, 68.0])
    starts = np.array([0, 1, 2, 4, len(times) - 2, len(times) - 1])
    chains, sample = even_steps(times, starts, 0.01, 4)
    assert sample.spacing_ps == pytest.approx(11.0)
    assert [times[chain].tolist() for chain in chains] == [
        [1.0, 12.0, 23.0, 34.0],
        [35.0, 46.0, 57.0, 68.0],
    ]
    assert sum(s.stop - s.start for s in sample.segments) == 8
    groups = [s.group for s in sample.segments]
    assert groups == sorted(groups)
    assert even_steps(times, starts[:1], 0.01, 4) is None
    # Of steps that differ one that is there is taken, no average.
    assert even_steps(np.array([0.0, 1.0, 5.0]), np.arange(3), 0.01, 4)[1].spacing_ps == 1.0


# -- a page's parts --------------------------------------------------------------------------------


def test_what_is_no_number_is_a_dash():
    for value in (None, float("nan"), float("inf")):
        assert number(value) == number(value, 0.1) == "&ndash;"
    assert figure({"value": float("nan"), "error": None}) == "&ndash;"
    assert number(0.5, float("nan")) == "0.5"


def test_drawings_follow_the_page_and_load_nothing():
    with style():
        drawn, axes = grid(2, (2, 2))
        axes[0].plot([0, 1], [0, 1], color="#0072b2", label="<a&b>")
        axes[0].legend()
        axes[1].imshow(np.eye(3))
        one, other = svg(drawn, "one"), svg(drawn, "other")
    assert one.startswith("<svg ")
    assert "&lt;a&amp;b&gt;" in one
    assert "var(--ink)" in one
    assert "var(--c1)" in one
    assert not re.search(r"#22262b|#0072b2|xmlns|https?:", one)
    names = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert names[0]
    assert not names[0] & names[1]
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', one))
    assert used <= names[0]


def test_cells_with_a_class_and_others():
    assert table(["a"], [["x|y", ("good", "z")]]).count('<td>x|y</td><td class="good">z</td>') == 1


def test_frames_are_turned_onto_each_other_and_never_mirrored():
    rng = np.random.default_rng(1)
    first = rng.normal(size=(9, 3))
    turned = np.stack(
        [first, *(first @ random_rotation(rng) + rng.normal(size=3) for _ in range(9))]
    )
    found = superposed(turned, np.ones(9))
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-12)
    mirrored = superposed(np.stack([first, first * [1, 1, -1]]), np.ones(9))
    assert np.abs(mirrored[1] - mirrored[0]).max() > 0.1


@pytest.mark.parametrize(
    ("frames", "atoms"), [(0, 22), (1, 22), (7, 22), (10**6, 22), (10**5, 5000)]
)
def test_a_viewer_stays_small(frames, atoms):
    shown = shown_frames(frames, atoms)
    assert len(shown) == len(set(shown.tolist())) <= min(frames, 300)
    assert 6 * atoms * len(shown) <= MOST_BYTES
    if frames:
        assert (shown[0], shown[-1]) == (0, frames - 1)


def test_a_viewer_shows_what_it_was_given(tmp_path, ala2):
    page, rng = Page("</title><script>alert(1)</script>"), np.random.default_rng(2)
    frames = ala2.positions + rng.normal(0, 0.002, (5, ala2.n_atoms, 3))
    labels = [f"</script><b>{k}" for k in range(5)]
    add_viewer(page, frames, ala2.atomic_numbers, ala2.bonds, labels, 'a "name" <i>')
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("</script>") == 2
    assert "<b>" not in text
    assert "<i>" not in text
    scene = json.loads(re.search(r'showMolecule\(document.*?, (\{".*\})\);', text)[1])
    assert scene["labels"] == labels
    packed = np.frombuffer(base64.b64decode(scene["coordinates"]), "<i2").reshape(5, -1, 3)
    bonds = np.array(ala2.bonds)
    for given, shown in zip(frames, packed * scene["unit"], strict=True):
        lengths = [np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1) for x in (given, shown)]
        np.testing.assert_allclose(*lengths, atol=1e-4)


# -- checks with known answers ---------------------------------------------------------------------


SUMMARY = {
    "jumps_tried": 1000,
    "jumps_accepted": 1000,
    "fallbacks": 0,
    "novel": 0,
    "redraws": 3,
    "temperature_K": 300.0,
    "step_ps": 0.002,
    "settings": {"max_novelty": "card"},
    "settle": {"energy_after_kJ_per_mol": 10.0},
    "notes": [],
}


def record_of(molecule, states, temperature=300.0, energy=0.0, mismatches=(), **changes):
    """A run of 101 ps steps that was in these wells of butane's torsion, and its torsion."""
    rng = np.random.default_rng(7)
    count = len(states)
    log = {
        "md_ps": np.arange(1.0, count + 1),
        "effective_ps": 101.0 * np.arange(1.0, count + 1),
        "accepted": np.arange(float(count)),
        "tried": np.arange(float(count)),
        "fallbacks": np.zeros(count),
        "novel": np.zeros(count),
        "energy": rng.normal(energy, 100.0, count),
        "temperature": rng.normal(temperature, 9.0, count),
    }
    angles = np.array([-1.1, 1.1, np.pi])[states] + rng.normal(0, 0.15, count)
    angles = np.angle(np.exp(1j * angles)).astype(np.float32)[:, None]
    record = RunRecord(None, {**SUMMARY, **changes}, molecule, log, count, mismatches)
    return record, angles


def wells(frames, seed, gauche=0.3):
    """Wells of butane: trans most of the time, each gauche well as often as said, in total."""
    rng = np.random.default_rng(seed)
    stay = rng.random(frames) < 0.5
    drawn = rng.choice(3, frames, p=[gauche / 2, gauche / 2, 1 - gauche])
    states = drawn.copy()
    for k in range(1, frames):
        if stay[k]:
            states[k] = states[k - 1]
    return states


@pytest.fixture(scope="module")
def butane_torsion():
    molecule = butane()
    return molecule, torsions(molecule)


def beside_of(angles):
    return Comparison("MD", "a walk.", Sample.from_runs([angles], 101.0), True)


@pytest.fixture(scope="module")
def truth(butane_torsion):
    molecule, chosen = butane_torsion
    return beside_of(record_of(molecule, wells(40_000, 99))[1])


def test_a_good_run_passes_every_check(butane_torsion, truth):
    molecule, chosen = butane_torsion
    record, angles = record_of(molecule, wells(6000, 1))
    found = find(record, chosen, angles, truth)
    checks = check(record, found)
    assert {one.verdict for one in checks} == {GOOD}, checks
    assert overall(record, checks)[0] == GOOD
    assert found.reasons == [
        "A Jensen-Shannon divergence needs 10,000 frames in run and reference to mean anything; "
        "the smaller of them has 6,000."
    ]
    assert len(found.populations) == 3
    for one in found.populations.values():
        assert abs(one["value"] - one["reference"]["value"]) < 4 * one["error"]
    # Half of the steps stay: an eigenvalue of a half.
    (by_lag,) = (one["run"] for one in found.timescales.values())
    slowest = by_lag["101"]
    assert abs(slowest["value"][0] - 101 / np.log(2)) < 4 * slowest["error"][0]
    (test,) = found.staying.values()
    assert test["largest_deviation"] < 0.1
    assert "reference" in test


@pytest.mark.parametrize(
    ("changes", "question", "verdict"),
    [
        ({"temperature": 309.0}, "temperature", BAD),
        ({"temperature": 304.5}, "temperature", CARE),
        ({"jumps_accepted": 400}, "Were most", BAD),
        ({"jumps_accepted": 700}, "Were most", CARE),
        ({"jumps_tried": 5, "jumps_accepted": 5}, "Were most", OPEN),
        ({"jumps_tried": 0, "jumps_accepted": 0}, "Were most", OPEN),
        ({"fallbacks": 50}, "dropped", CARE),
        ({"fallbacks": 200}, "dropped", BAD),
        ({"novel": 600}, "know the frames", BAD),
        ({"settings": {"max_novelty": None}}, "know the frames", OPEN),
        ({"settle": {"energy_after_kJ_per_mol": 150.0}}, "give way", BAD),
        ({"mismatches": [Note(SOLVENT, "The model was trained in x.")]}, "made for", BAD),
        ({"mismatches": [Note(TEMPERATURE, "Temperature is 310 K.")]}, "made for", CARE),
        ({"mismatches": None}, "made for", OPEN),
    ],
)
def test_what_is_wrong_is_said(butane_torsion, truth, changes, question, verdict):
    molecule, chosen = butane_torsion
    record, angles = record_of(molecule, wells(3000, 2), **changes)
    checks = check(record, find(record, chosen, angles, truth))
    (one,) = [one for one in checks if question in one.question]
    assert one.verdict == verdict, one
    assert overall(record, checks)[0] != GOOD


def test_wrong_populations_and_drift_are_seen(butane_torsion, truth):
    molecule, chosen = butane_torsion

    def ask(states, question, **changes):
        record, angles = record_of(molecule, states, **changes)
        checks = check(record, find(record, chosen, angles, truth))
        return next(one for one in checks if question in one.question), overall(record, checks)

    one, whole = ask(wells(6000, 3, gauche=0.6), "agree with the reference")
    assert (one.verdict, whole[0]) == (BAD, BAD)
    drifting = np.concatenate([wells(3000, 4, gauche=0.15), wells(3000, 5, gauche=0.45)])
    assert ask(drifting, "two halves")[0].verdict == BAD
    assert ask(wells(6000, 6), "two halves")[0].verdict == GOOD
    energy = np.where(np.arange(6000) < 3000, 0.0, 30.0)
    assert ask(wells(6000, 6), "energy steady", energy=energy)[0].verdict == BAD
    # Never left one well: no crossing, and nothing to be decided about the others.
    one, _ = ask(np.full(3000, 2), "cross between")
    assert one.verdict == BAD
    one, _ = ask(np.full(3000, 2), "agree with the reference")
    assert one.verdict == OPEN


def test_the_driver_s_notes_are_understood(butane_torsion, truth, ala2):
    from openmm_sd.integrator.notes import ensemble_notes, mismatches
    from openmm_sd.run.start import other_force_field

    molecule, chosen = butane_torsion
    numbers = {"rejections": {}, "settle": {"time_ps": 0.0}, "novel": 0, "jumps_tried": 0}
    implicit = types.SimpleNamespace(card=Card({"solvent": "implicit OBC"}))
    named = types.SimpleNamespace(card=Card(force_field=["a.xml"], solvent="tip3p"))
    for note in (ensemble_notes(implicit, numbers, 1, 1)[0], other_force_field(("b.xml",), named)):
        record, angles = record_of(molecule, wells(500, 1), mismatches=mismatches([note]))
        first = check(record, find(record, chosen, angles, truth))[0]
        assert (first.verdict, first.found) == (BAD, note)
    # In implicit solvent it is at home.
    assert not [n for n in ensemble_notes(implicit, numbers, 1, 1, implicit=True) if "trained" in n]
    harmless = ensemble_notes(named, numbers, 1, 1)
    record, angles = record_of(molecule, wells(500, 1), mismatches=mismatches(harmless))
    assert check(record, find(record, chosen, angles, truth))[0].verdict == GOOD


# -- reports of runs -------------------------------------------------------------------------------


def shown_text(folder):
    """What a reader sees of a page, without drawings."""
    page = (folder / "report.html").read_text()
    page = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def honest(folder):
    """No figure on the page is no number."""
    assert not re.search(r"\b(nan|NaN|inf|None(?! of))\b", shown_text(folder))


@pytest.mark.parametrize(
    "changes",
    [{"format": "xtc"}, {"format": "dcd"}, {"format": "h5"}, {"solute_only": True}],
    ids=str,
)
def test_a_run_is_read_as_it_was_written(vacuum, jitter, tmp_path, changes):
    import mdtraj

    run_mixed(jitter, vacuum, tmp_path, settings(jumps=6, **changes))
    record = read_run(tmp_path)
    file = tmp_path / record.summary["trajectory"]
    keywords = {} if file.suffix == ".h5" else {"top": str(tmp_path / "topology.pdb")}
    expected = mdtraj.load(str(file), **keywords).xyz
    frames = np.concatenate(list(record.frames()))
    atoms = np.array(record.summary["solute_atoms"])
    assert record.n_frames == len(expected) > 5
    np.testing.assert_allclose(frames, expected[:, atoms], atol=1e-6)
    chosen = torsions(record.molecule)
    kept = np.array([0, 3, len(expected) - 1])
    angles, positions = record.look(chosen, kept)
    np.testing.assert_array_equal(positions, frames[kept])
    given = mdtraj.Trajectory(frames, None)
    wanted = mdtraj.compute_dihedrals(given, np.array([t.atoms for t in chosen]), periodic=False)
    np.testing.assert_allclose(np.cos(angles - wanted), 1.0, atol=1e-5)
    assert record.molecule.bonds == jitter.molecules[0].bonds


def test_a_solute_between_other_atoms_is_found(water_box, ala2, tmp_path):
    """Saved whole or alone, its atoms come back in the model's order."""
    order = np.random.default_rng(3).permutation(ala2.n_atoms)
    place = {int(old): new for new, old in enumerate(order)}
    take = lambda values: tuple(values[int(k)] for k in order)  # noqa: E731
    other = Molecule(
        *("shuffled", take(ala2.atomic_numbers)),
        tuple((place[i], place[j]) for i, j in ala2.bonds),
        *map(take, (ala2.atom_names, ala2.residue_names, ala2.residue_ids)),
        ala2.positions[order],
    )
    model = model_of(Identity(ala2.n_atoms), other, temperature_K=300.0)
    vectors = np.array(water_box.topology.getPeriodicBoxVectors()._value)
    start = PreparedSystem(water_box.topology, water_box.system(), water_box.positions, vectors)
    found = []
    for name, alone in (("all", False), ("alone", True)):
        run_mixed(model, start, tmp_path / name, settings(jumps=2, solute_only=alone))
        record = read_run(tmp_path / name)
        assert record.summary["solute_atoms"] != sorted(record.summary["solute_atoms"])
        assert record.molecule.atomic_numbers == other.atomic_numbers
        assert record.molecule.bonds == other.bonds
        found.append(np.concatenate(list(record.frames())))
    np.testing.assert_allclose(found[0], found[1], atol=0.002)
    bonds = np.array(other.bonds)
    assert np.linalg.norm(found[0][:, bonds[:, 0]] - found[0][:, bonds[:, 1]], axis=2).max() < 0.2


@pytest.mark.parametrize("format", ["xtc", "h5"])
def test_a_killed_run_is_reported(vacuum, jitter, tmp_path, monkeypatch, format):
    advance = driver._Run._advance

    def dies(self, steps):
        if self._steps >= 70:
            raise Killed
        advance(self, steps)

    with pytest.raises(ValueError, match="no run with a checkpoint"):
        write_report(tmp_path)
    monkeypatch.setattr(driver._Run, "_advance", dies)
    with pytest.raises(Killed):
        run_mixed(jitter, vacuum, tmp_path, settings(checkpoint_seconds=1e-9, format=format))
    monkeypatch.undo()
    with open(tmp_path / "log.csv", "a") as log:
        log.write("71,0.1")  # cut short
    found = write_report(tmp_path)
    assert "not complete" in shown_text(tmp_path)
    assert found["verdict"] != "good"
    honest(tmp_path)
    # Nothing of the run was touched.
    (tmp_path / "log.csv").write_text((tmp_path / "log.csv").read_text()[: -len("71,0.1")])
    summary = run_mixed(jitter, vacuum, tmp_path, settings(format=format))
    assert summary["complete"]


def test_no_jump_one_frame_and_none_at_all(vacuum, jitter, tmp_path):
    run_mixed(jitter, vacuum, tmp_path / "none", settings(jumps=None, md_ps=0.004))
    found = write_report(tmp_path / "none")
    assert found["populations"] == {}
    text = shown_text(tmp_path / "none")
    assert "There are no frames yet" in text
    assert "plain MD: no jump was made" in text
    run_mixed(jitter, vacuum, tmp_path / "one", settings(jumps=None, md_ps=0.016))
    assert read_run(tmp_path / "one").n_frames == 1
    found = write_report(tmp_path / "one")
    assert any("1 frame" in reason for reason in found["missing"])
    run_mixed(jitter, vacuum, tmp_path / "two", settings(jumps=None, md_ps=0.03))
    found = write_report(tmp_path / "two")
    assert {one["error"] for one in found["populations"].values()} == {None}
    assert any("too few for errors" in reason for reason in found["missing"])
    for name in ("none", "one", "two"):
        honest(tmp_path / name)
        json.dumps(write_report(tmp_path / name), allow_nan=False)


def test_nothing_but_fallbacks(vacuum, ala2, tmp_path):
    model = model_of(Broken(ala2.n_atoms), ala2, temperature_K=300.0)
    run_mixed(model, vacuum, tmp_path, settings(jumps=25))
    found = write_report(tmp_path)
    assert found["verdict"] == BAD
    failed = {one["question"] for one in found["checks"] if one["verdict"] == BAD}
    assert {"Were most jumps made?"} <= failed
    assert "25 fallbacks (100 %)" in shown_text(tmp_path)
    assert "What became of the jumps" in shown_text(tmp_path)
    honest(tmp_path)


def test_names_are_shown_as_they_are(vacuum, ala2, tmp_path):
    name = "<img src=x onerror=alert(1)>&amp;"
    renamed = Molecule(name, *(getattr(ala2, f) for f in list(ala2.__dataclass_fields__)[1:]))
    run_mixed(model_of(Identity(ala2.n_atoms), renamed), vacuum, tmp_path, settings(jumps=2))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<img" not in page
    assert name in shown_text(tmp_path)


def test_references_and_models_that_fit_or_not(vacuum, ala2, jitter, tmp_path):
    rng = np.random.default_rng(5)
    frames = (ala2.positions + rng.normal(0, 0.002, (400, ala2.n_atoms, 3))).astype(np.float32)
    bundle = tmp_path / "own.safetensors"
    kernel = OrnsteinUhlenbeck(ala2.n_atoms, 1000.0, 0.01)
    ScoreModel(kernel, ala2, {"temperature_K": 300.0}, start_frames=frames).save(bundle)
    run_mixed(str(bundle), vacuum, tmp_path / "run", settings())
    away = bundle.rename(tmp_path / "away.safetensors")
    found = write_report(tmp_path / "run")
    assert any("--model BUNDLE" in reason for reason in found["missing"])
    assert all("reference" not in one for one in found["populations"].values())
    found = write_report(tmp_path / "run", model=away)
    assert all("reference" in one for one in found["populations"].values())
    assert "the 400 equilibrium frames that own carries" in shown_text(tmp_path / "run")
    with pytest.raises(ValueError, match="is not the one of the run"):
        write_report(tmp_path / "run", model=IMPLICIT)
    write_dataset(tmp_path / "md.h5", ala2, [Run("a", "plain", frames, 1.0)], {})
    write_report(tmp_path / "run", reference=[tmp_path / "md.h5"])
    assert "md.h5: 400 frames, 0.4 ns" in shown_text(tmp_path / "run")
    np.save(tmp_path / "three.npy", np.zeros((9, 3)))
    with pytest.raises(ValueError, match="arrays of 3 angles"):
        write_report(tmp_path / "run", reference=[tmp_path / "three.npy"])
    (tmp_path / "run/trajectory.xtc").write_bytes(b"")
    with pytest.raises(ValueError, match=r"trajectory.xtc"):
        write_report(tmp_path / "run")


def test_commands(vacuum, on_disk, tmp_path, capsys):
    folder = tmp_path / "out"
    command = ["run", str(on_disk / "prepared"), "-o", str(folder), "--jumps", "3"]
    command += ["--model", str(on_disk / "model.safetensors"), "--lag", "10", "--burst", "0.02"]
    command += ["--platform", "Reference", "--bridge", "pythonforce", "--settle", "0.01"]
    command += ["--checkpoint-seconds", "5"]
    assert main([*command, "--reference", str(tmp_path / "gone.h5")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not folder.exists()
    assert main([*command, "--no-report"]) == 0
    assert not (folder / "report.html").exists()
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert (folder / "report.html").exists()
    assert "report: " in said
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["report"] == str(folder / "report.html")
    assert {one["verdict"] for one in found["checks"]} <= {BAD, CARE, OPEN, GOOD}
    assert (folder / "report.html").exists()
    assert len(before) > 10_000
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    # A report that fails says so and leaves the run a success.
    (folder / "log.csv").write_text("")
    assert main(["report", str(folder)]) == 2


# -- in a browser ----------------------------------------------------------------------------------


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
browser = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")


def opened(page, tmp_path, *more):
    """A page after its scripts have run, as a browser without a network sees it."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run([*command, *more, page.as_uri()], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    said = [line for line in done.stderr.decode().splitlines() if ":CONSOLE" in line]
    return done.stdout.decode(), said


@browser
def test_a_run_s_page_in_a_browser(vacuum, jitter, tmp_path):
    run_mixed(jitter, vacuum, tmp_path / "run", settings(jumps=20))
    write_report(tmp_path / "run")
    page = tmp_path / "run/report.html"
    assert page.stat().st_size < 3_000_000
    assert not re.search(r"https?:|xmlns|@import|url\((?!#)", page.read_text())
    dom, said = opened(page, tmp_path)
    assert said == []
    assert re.search(r'<html[^>]* data-script-errors="0"', dom)
    assert int(re.search(r'data-drawn="(\d+)"', dom)[1]) > 1_000
    count = read_run(tmp_path / "run").n_frames
    assert f"frame 1 of {count}: " in dom


@browser
def test_the_viewer_s_controls(tmp_path, ala2):
    page, rng = Page("controls"), np.random.default_rng(2)
    page.add(details("folded", "until it is printed"))
    # A browser without a screen draws when it likes; its virtual clock is exact.
    page.script("window.requestAnimationFrame = draw => setTimeout(draw, 1);")
    frames = turned_about(
        ala2.positions + rng.normal(0, 0.001, (4, ala2.n_atoms, 3)),
        ala2,
        torsions(ala2)[0].atoms[1:3],
        np.array([0.0, 1.0, 2.0, 3.0]),
    )
    add_viewer(page, frames, ala2.atomic_numbers, ala2.bonds, list("abcd"), "ala2")
    page.script(
        """
        const canvas = document.querySelector("canvas"), log = [];
        const look = () => document.querySelector("output").textContent + " "
          + document.querySelector("button").textContent;
        const soon = () => new Promise(done => setTimeout(done, 20));
        const key = name => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
        const image = () => canvas.toDataURL();
        (async () => {
          const first = image();
          log.push(look());
          key("."); await soon(); log.push(look());
          key(","); key(","); await soon(); log.push(look());
          key("."); await soon(); log.push(String(image() === first));
          key("ArrowLeft"); await soon(); log.push(String(image() === first));
          key("Home"); await soon(); log.push(String(image() === first));
          canvas.focus();
          canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -300, cancelable: true }));
          await soon(); log.push(String(image() === first));
          key("Home"); await soon(); log.push(String(image() === first));
          key(" "); await soon(); log.push(look().split(" ").pop());
          await new Promise(done => setTimeout(done, 200));
          key(" "); log.push(String(look().startsWith("frame 1")), look().split(" ").pop());
          dispatchEvent(new Event("beforeprint"));
          log.push(String(document.querySelector("details").open));
          document.body.dataset.log = log.join("; ");
        })();
        """
    )
    page.write(tmp_path / "page.html")
    dom, said = opened(tmp_path / "page.html", tmp_path)
    assert said == []
    log = html.unescape(re.search(r'data-log="([^"]*)"', dom)[1]).split("; ")
    assert log == [
        "frame 1 of 4: a Play",
        "frame 2 of 4: b Play",
        "frame 4 of 4: d Play",
        *("true", "false", "true", "false", "true"),
        "Pause",
        *("false", "Play"),
        "true",
    ]


@browser
def test_a_script_error_would_be_seen(tmp_path):
    page = Page("broken")
    page.script("undefinedFunction();")
    page.write(tmp_path / "page.html")
    dom, said = opened(tmp_path / "page.html", tmp_path)
    assert 'data-script-errors="1"' in dom
    assert any("undefinedFunction" in line for line in said)


@browser
def test_nothing_can_be_fetched(tmp_path):
    page = Page("curious")
    page.add('<img src="http://127.0.0.1:9/a.png">')
    page.write(tmp_path / "page.html")
    _, said = opened(tmp_path / "page.html", tmp_path)
    assert any("Content Security Policy" in line for line in said)
