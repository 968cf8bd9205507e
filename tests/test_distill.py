"""Models that jump in one or two network calls, taught by those that make more."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_molecules import alkane, methanol, shaken
from test_family import build as kin
from test_internal import ala2, build, largest, lively, some_frames

from openmm_sd import ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.cli import main
from openmm_sd.molecule.torsions import backbone_torsions
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.system.fitting import fitting_models
from openmm_sd.train import TrainSettings, train
from openmm_sd.train.distill import Imitation, distill_bundle, known, student_of
from openmm_sd.train.settings import DistillSettings

CARD = {"name": "wild", "temperature_K": 300.0, "lag_range_ps": [1.0, 100.0], "description": "Odd."}
EVERY = slice(None)
QUICK = {"max_steps": 3, "batch_size": 8, "bf16": False, "report_seconds": 0.0}


def teacher(**card):
    """A model whose jumps depend on frame, lag and noise in ways of their own."""
    return ScoreModel(build(head=0.1), ala2(), CARD | card, start_frames=lively()[:60])


@torch.no_grad()
def test_the_samples_on_the_way_lead_to_the_answer():
    model, x = build(), some_frames(4)
    lag, noise = torch.full((4,), 10.0), torch.randn(4, model.noise_size)
    stiff, turned, scale = known(model, x, lag)
    context, modulation = model.encode(stiff, turned, lag)
    states = model.solve(noise, turned, scale, context, modulation)
    assert len(states) == model.n_calls + 1
    assert torch.equal(states[0], noise * model.begin)
    answer = model(x, lag, noise)
    again, goal = model.measure(answer)
    assert largest(again - states[-1][:, : model.n_stiff]) < 1e-3
    turn = torch.atan2(*model.plane(states[-1], scale))
    assert largest(torch.sin(goal - turned - turn)) < 1e-3


@pytest.mark.parametrize(("calls", "left"), [(1, 0.75), (2, 0.65)])
def test_the_student_comes_near_the_teacher(calls, left):
    """On frames and noise that neither has seen, against the same network with fewer calls."""
    model = teacher()
    task = Imitation.of(model, calls, torch.device("cpu"))
    settings = TrainSettings(max_steps=100, batch_size=64, bf16=False, learning_rate=3e-3)
    lag = torch.exp(torch.linspace(0.0, 4.6, 200))
    noise = torch.randn(200, task.model.noise_size, generator=torch.Generator().manual_seed(9))
    frames = torch.tensor(lively(seed=3)[:200], dtype=torch.float32)

    @torch.no_grad()
    def distance():
        answers = []
        for network in (task.teacher, task.model):
            stiff, turned, scale = known(network, frames, lag)
            context, modulation = network.encode(stiff, turned, lag)
            answers.append(network.solve(noise, turned, scale, context, modulation)[-1])
        return float(((answers[0] - answers[1]) ** 2).mean())

    before = distance()
    train([task], settings, progress=lambda record: None)
    assert before > 0.01
    assert distance() < left * before
    # Both levels are the teacher's own.
    levels = task.teacher.levels
    assert all(bool((levels == level).any()) for level in task.model.levels)


def test_a_perfect_student_has_no_loss():
    """The loss is the distance of both calls' answers, each from where it begins."""
    model = build(n_calls=2)
    task = Imitation(model, student_of(model, 2), torch.tensor(lively()[:9]).float())
    # With as many calls at the same levels, the copy of the teacher is perfect.
    assert torch.equal(task.model.levels, model.levels)
    loss = task.lessons(TrainSettings(bf16=False))(
        32, 0, torch.Generator().manual_seed(1), EVERY
    ).detach()
    assert loss.shape == (32,)
    assert largest(loss) < 1e-8
    with torch.no_grad():
        task.model.head.bias += 0.1
    loss = task.lessons(TrainSettings(bf16=False))(
        32, 0, torch.Generator().manual_seed(1), EVERY
    ).detach()
    assert float(loss.min()) > 1e-4


def test_distill_command(tmp_path, capsys):
    model = teacher(max_displacement_nm=0.7, training={"steps": 7})
    model.save(tmp_path / "many.safetensors")
    output = tmp_path / "few.safetensors"
    command = ["distill", str(tmp_path / "many.safetensors"), "-o", str(output), "--max-steps", "3"]
    command += ["--batch-size", "8", "--device", "cpu", "--threads", "1", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["calls"], told["teacher_calls"], told["steps"]) == (2, 8, 3)
    student = ScoreModel.load(output)
    assert student.propagator.n_calls == 2
    card = student.card
    assert card["name"] == "wild-2"
    assert card["training"]["distilled_from"] == "wild"
    assert card["training"]["teacher"] == {"steps": 7}
    assert card["max_displacement_nm"] == 0.7
    assert "2 network calls" in card["description"]
    np.testing.assert_allclose(student.start_frames, model.start_frames, atol=1e-4)
    assert not output.with_name("few.safetensors.checkpoint").exists()
    # It learned.
    before, after = (m.propagator.head.weight for m in (model, student))
    assert not torch.equal(before, after)


def test_distillation_goes_on(tmp_path):
    model, output = teacher(), tmp_path / "few.safetensors"
    settings = DistillSettings(calls=1, device="cpu", training=TrainSettings(**QUICK))

    class Stop(Exception):
        pass

    def stop(what, how_far):
        if what == "training" and "step 2" in how_far:
            raise Stop

    with pytest.raises(Stop):
        distill_bundle(model, output, settings, progress=stop)
    assert not output.exists()
    steps = []
    distill_bundle(model, output, settings, progress=lambda what, how_far: steps.append(how_far))
    assert not any("step 1," in text for text in steps)
    assert ScoreModel.load(output).card["training"]["steps"] == 3


def test_a_family_keeps_its_weights_in_common(tmp_path):
    members = []
    for name in ("propane", "butane"):
        molecule = replace(alkane(3 if name == "propane" else 4), name=name)
        network = kin(molecule, lag_max_ps=100.0).requires_grad_(True)
        if members:
            network.load_weights(members[0].propagator.weights())
        card = {k: v for k, v in CARD.items() if k != "name"} | {"name": name}
        members.append(ScoreModel(network, molecule, card, start_frames=shaken(molecule, 20)))
    path = tmp_path / "chains.safetensors"
    ScoreModel.family(members).save(path)
    result = distill_bundle(
        path,
        tmp_path / "few.safetensors",
        DistillSettings(device="cpu", training=TrainSettings(**QUICK)),
    )
    assert result["distilled_from"] == "chains"
    student = ScoreModel.load(tmp_path / "few.safetensors")
    assert [m.card["name"] for m in student.members] == ["propane", "butane"]
    assert all(m.propagator.n_calls == 2 for m in student.members)


@pytest.mark.parametrize(
    ("model", "calls", "said"),
    [
        (lambda: teacher(), 3, "calls must be a whole number from 1 to 2, got 3"),
        (
            lambda: ScoreModel(build(n_calls=2), ala2(), CARD, start_frames=lively()[:5]),
            2,
            "makes 2 network calls a jump: nothing to distil to 2",
        ),
        (lambda: ScoreModel(build(), ala2(), CARD), 2, "has no start frames"),
        (
            lambda: ScoreModel(
                DenseDiffusion.for_molecule(methanol(), width=8, lag_min_ps=1.0, lag_max_ps=9.0),
                methanol(),
                CARD,
            ),
            2,
            "only networks in internal coordinates can be distilled",
        ),
    ],
)
def test_what_cannot_be_distilled(tmp_path, capsys, model, calls, said):
    model().save(tmp_path / "many.safetensors")
    output = tmp_path / "few.safetensors"
    command = ["distill", str(tmp_path / "many.safetensors"), "-o", str(output)]
    assert main([*command, "--calls", str(calls)]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_the_shipped_student_gives_its_teachers_answers():
    """Frame by frame, and in which conformation they are."""
    model, student = (ScoreModel.load(name) for name in ("ala2-water", "ala2-water-2calls"))
    assert (model.propagator.n_calls, student.propagator.n_calls) == (8, 2)
    chance = torch.Generator().manual_seed(1)
    start = torch.tensor(model.start_frames, dtype=torch.float32)
    start = start[torch.randperm(len(start), generator=chance)[:400]]
    noise = torch.randn(len(start), model.noise_size, generator=chance)
    for lag in (10.0, 100.0):
        lags = torch.full((len(start),), lag)
        with torch.inference_mode():
            there, here = (m.propagator(start, lags, noise) for m in (model, student))
        apart = (there - here).square().sum(dim=2).mean(dim=1).sqrt()
        assert float(apart.median()) < 0.003
        assert float(apart.quantile(0.95)) < 0.02
        moved = (there - start).square().sum(dim=2).mean(dim=1).sqrt()
        assert float(apart.median()) < 0.05 * float(moved.median())
        for torsion in backbone_torsions(model.molecules[0])[0]:
            turned = dihedral(there.numpy(), torsion.atoms) - dihedral(here.numpy(), torsion.atoms)
            assert np.mean(np.cos(turned) < 0.5) < 0.02


def test_a_student_gives_way_to_its_teacher():
    molecule = ScoreModel.load("ala2-water").molecules[0]
    fitting, reasons = fitting_models(molecule.to_topology())
    assert list(fitting) == ["ala2-water"]
    assert "distilled from ala2-water" in reasons["ala2-water-2calls"]


def test_the_teacher_is_not_written_over(tmp_path):
    path = tmp_path / "teacher.safetensors"
    teacher().save(path)
    with pytest.raises(ValueError, match="is the teacher, give the student a file of its own"):
        distill_bundle(path, path, DistillSettings(calls=1))


def test_a_distillation_does_not_go_on_with_another_teacher():
    one, other = (Imitation.of(teacher(name=name), 1, torch.device("cpu")) for name in "ab")
    assert one.describe() != other.describe()
    assert one.describe() == Imitation.of(teacher(name="a"), 1, torch.device("cpu")).describe()
