"""Molecules that a model was not trained on: found by prepare and run, or refused in one line."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from openmm import app, unit

from openmm_sd import Molecule, ScoreModel
from openmm_sd.cli import main
from openmm_sd.data.dataset import read_dataset
from openmm_sd.generate.peptides import Amides
from openmm_sd.jump.gates import ChiralityGate, TorsionGate
from openmm_sd.model.pooled import fit_pooled
from openmm_sd.molecule.graph import branch, neighbours_of
from openmm_sd.prepare import PrepareSettings, from_sequence, prepare_system, repair
from openmm_sd.propagator.internal.transferable import TransferableDiffusion
from openmm_sd.run import RunSettings, run_mixed
from openmm_sd.system.chains import NotServedError, check_served, wrong_hands
from openmm_sd.system.fitting import Solvated, fitting_model, fitting_models, remarks
from openmm_sd.system.force_field import make_system
from openmm_sd.system.solute import force_field_terms

WATER = Path(__file__).parents[1] / "data" / "peptides-water"
FIELD = ("amber99sbildn.xml", "tip3p.xml")
SMALL = {"width": 16, "heads": 2, "depth": 1, "encoder_depth": 1, "pair_width": 4}
SERVES = {"residues": ["ALA", "GLY", "ILE", "SER", "HIE"], "longest": 3, "tested": 2}


@functools.cache
def peptide(sequence):
    structure, variants = from_sequence(sequence)
    whole = repair(structure, PrepareSettings(variants=variants))
    return Molecule.from_topology(whole.topology, whole.positions, sequence)


def mirrored(molecule):
    """Return its mirror image, as the same atoms."""
    return at(molecule, molecule.positions * [1.0, 1.0, -1.0])


def at(molecule, positions):
    return Molecule(**{**molecule.to_dict(), "positions": positions})


def server(solvent="explicit water", files=FIELD, serves=SERVES, known="ACE-GLY-NME", **more):
    molecule = peptide(known)
    system = make_system(
        files[:1],
        molecule.to_topology(),
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        flexibleConstraints=True,
    )
    terms = force_field_terms(system, range(molecule.n_atoms))
    torch.manual_seed(3)
    network = TransferableDiffusion.for_molecule(
        molecule, terms=terms, lag_min_ps=1.0, lag_max_ps=100.0, **SMALL
    )
    card = {
        "temperature_K": 300.0,
        "constraints": "HBonds",
        "lag_range_ps": [1.0, 100.0],
        "force_field": list(files),
        "solvent": solvent,
        "serves": serves,
        **more,
    }
    return ScoreModel(network, molecule, {k: v for k, v in card.items() if v is not None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    server().save(folder / "water.safetensors")
    files = ("amber99sbildn.xml", "amber99_obc.xml")
    server("implicit (OBC)", files).save(folder / "implicit.safetensors")
    return folder


@pytest.fixture
def installed(folder, monkeypatch):
    """Two models that serve chains, of water and of implicit solvent, and no shipped one."""
    names = [str(folder / f"{name}.safetensors") for name in ("water", "implicit")]
    monkeypatch.setattr(ScoreModel, "shipped", lambda: ["ala2-water", "alkanes-water"])
    monkeypatch.setattr(ScoreModel, "registered", lambda: names)
    return names


def solvated(molecule, **more):
    return Solvated(molecule.to_topology(), molecule.positions, **more)


def test_a_chain_finds_the_model_of_its_solvent(installed):
    water, implicit = installed
    chain = peptide("ACE-ALA-SER-NME")
    fitting, reasons = fitting_models(solvated(chain))
    assert list(fitting) == [water]
    assert "trained in implicit solvent" in reasons[implicit]
    fitting, reasons = fitting_models(solvated(chain, implicit=True))
    assert list(fitting) == [implicit]
    assert "trained in explicit solvent" in reasons[water]
    assert fitting_models(chain.to_topology())[0] == {}, "nothing is served without a structure"


def test_a_model_of_the_very_molecule_comes_first(installed, ala2):
    fitting, reasons = fitting_models(solvated(ala2))
    assert list(fitting) == ["ala2-water"]
    assert "another one was trained on it" in reasons[installed[0]]
    # One of the other solvent does not.
    assert list(fitting_models(solvated(ala2, implicit=True))[0]) == installed[1:]


def test_another_force_field_is_not_served(installed):
    chain = solvated(peptide("ACE-ALA-SER-NME"), files=("amber14-all.xml", "amber14/tip3pfb.xml"))
    fitting, reasons = fitting_models(chain)
    assert fitting == {}
    assert "its force field is amber99sbildn.xml, tip3p.xml, not amber14" in reasons[installed[0]]
    with pytest.raises(ValueError, match="none of the shipped models fits"):
        fitting_model(chain)


def without(molecule, names, residue="ALA"):
    """Return it without some atoms of a residue."""
    left = [
        k
        for k in range(molecule.n_atoms)
        if molecule.residue_names[k] != residue or molecule.atom_names[k] not in names
    ]
    number = {k: n for n, k in enumerate(left)}
    return Molecule(
        molecule.name,
        *(
            tuple(molecule.atomic_numbers[k] for k in left),
            tuple((number[i], number[j]) for i, j in molecule.bonds if i in number and j in number),
            tuple(molecule.atom_names[k] for k in left),
            tuple(molecule.residue_names[k] for k in left),
            tuple(molecule.residue_ids[k] for k in left),
            molecule.positions[left],
        ),
    )


def swapped_at_cb(molecule):
    """Return isoleucine with CG2 and HB in each other's direction."""
    x = np.array(molecule.positions)
    at_name = {name: k for k, name in enumerate(molecule.atom_names)}
    b, g, h = (at_name[name] for name in ("CB", "CG2", "HB"))
    x[[g, h]] = x[b] + (x[h] - x[b]) * 1.4, x[b] + (x[g] - x[b]) * 0.7
    return at(molecule, x)


def phosphorylated():
    molecule = peptide("ACE-SER-NME")
    numbers = list(molecule.atomic_numbers)
    numbers[molecule.atom_names.index("HG")] = 15
    content = {**molecule.to_dict(), "atomic_numbers": numbers}
    content["residue_names"] = ["SEP" if n == "SER" else n for n in molecule.residue_names]
    return Molecule(**content)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: mirrored(peptide("ACE-ALA-NME")), "ALA 2 is a D amino acid: it knows L"),
        (lambda: swapped_at_cb(peptide("ACE-ILE-NME")), "ILE 2 has the wrong hand at CB"),
        (
            lambda: without(peptide("ACE-ALA-NME"), ("HB1", "HB2", "HB3")),
            r"ALA 2 lacks hydrogens \(HB1, HB2, HB3\): openmm-sd prepare adds them",
        ),
        (lambda: peptide("AA"), "the amino end of ALA 1 is not capped.*--caps"),
        (lambda: peptide("ACE-ALA"), "the acid end of ALA 2 is not capped"),
        (lambda: phosphorylated(), "SEP 2 is no residue that it serves"),
        (
            lambda: peptide("ACE-VAL-NME"),
            r"VAL is none of the residues that it serves \(ALA, GLY, ILE, SER, HIE\)",
        ),
        (
            lambda: peptide("ACE-ALA-ALA-ALA-ALA-NME"),
            "chains of 1 to 3 residues, and this one has 4",
        ),
    ],
)
def test_what_is_not_served_is_told_in_one_line(folder, what, said):
    model = ScoreModel.load(folder / "water.safetensors")
    with pytest.raises(NotServedError, match=said) as caught:
        check_served(model, what(), False)
    assert "\n" not in str(caught.value)


def test_hands_are_told_without_names():
    molecule = peptide("ACE-ILE-NME")
    nameless = Molecule(**{**molecule.to_dict(), "atom_names": ["X"] * molecule.n_atoms})
    assert wrong_hands(nameless) == []
    assert len(wrong_hands(mirrored(nameless))) == 2
    assert wrong_hands(peptide("ACE-GLY-NME")) == []


def test_forms_of_residues_are_told_apart(folder):
    model = ScoreModel.load(folder / "water.safetensors")
    check_served(model, peptide("ACE-HIE-NME"), False)
    with pytest.raises(NotServedError, match="HID is none of"):
        check_served(model, peptide("ACE-HID-NME"), False)


def test_a_card_that_says_nothing_refuses_nothing():
    check_served(server(serves=None), mirrored(peptide("ACE-VAL-NME")), False)
    for wrong in ({"residues": [], "longest": 2, "tested": 1}, [1], {"residues": ["ALA"]}):
        with pytest.raises(ValueError, match="card: serves must hold residues"):
            server(serves=wrong)
    with pytest.raises(ValueError, match="tested not above longest"):
        server(serves={"residues": ["ALA"], "longest": 2, "tested": 3})


def test_prepare_and_run_find_it_by_themselves(installed, tmp_path, capsys):
    """From a sequence to jumps, without a model's name; a third residue was never tested."""
    said = ["prepare", "--sequence", "ACE-ALA-SER-GLY-NME", "-o", str(tmp_path / "chain")]
    said += ["--solvent", "implicit", "--equilibration", "0.04", "--platform", "Reference"]
    assert main(said) == 0
    out = capsys.readouterr().out
    assert f"models that fit: {installed[1]}. Next:" in out
    note = "No chain of more than 2 residues was tested."
    assert note in out
    settings = RunSettings(
        jumps=1,
        burst_ps=0.02,
        bridge="pythonforce",
        platform="Reference",
        checkpoint_seconds=1.0,
    )
    summary = run_mixed(None, tmp_path / "chain", tmp_path / "out", settings)
    assert summary["jumps_tried"] == 1
    (line,) = [text for text in summary["notes"] if note in text]
    assert "No frame of ACE-ALA-SER-GLY-NME was seen in training" in line
    assert main(["report", str(tmp_path / "out")]) == 0
    assert note in (tmp_path / "out" / "report.html").read_text()


def test_prepare_says_why_no_model_fits(installed):
    structure, _ = from_sequence("ACE-VAL-NME")
    settings = PrepareSettings(solvent="implicit", equilibration_ps=0.04, platform="Reference")
    record = prepare_system(structure, settings).provenance
    assert record["models"]["fitting"] == []
    assert "VAL is none of the residues" in record["models"]["others"][installed[1]]


def test_a_named_model_refuses_what_it_does_not_serve(folder, tmp_path, capsys):
    molecule = peptide("ACE-VAL-NME")
    with open(tmp_path / "val.pdb", "w") as file:
        x = molecule.positions * unit.nanometer
        app.PDBFile.writeFile(molecule.to_topology(), x, file)
    said = ["run", str(tmp_path / "val.pdb"), "-o", str(tmp_path / "out"), "--jumps", "1"]
    assert main([*said, "--model", str(folder / "water.safetensors")]) == 2
    assert "val.pdb: the model was not trained on this solute, and does not serve it; VAL" in (
        capsys.readouterr().err
    )


@functools.cache
def data(name):
    return read_dataset(WATER / f"ACE-{name}-NME.1.h5")


def frames_of(name, first):
    """Return frames of its MD, every so many from the first on."""
    frames = np.concatenate([run.positions for run in data(name).runs])
    return frames[first :: len(frames) // 60]


@functools.cache
def pooled():
    names = ("ALA", "LYS", "VAL")
    return fit_pooled([(data(n).molecule, frames_of(n, 0), frames_of(n, 20)) for n in names])


def terms_of(molecule):
    system = make_system(
        FIELD[:1], molecule.to_topology(), nonbondedMethod=app.NoCutoff, constraints=app.HBonds
    )
    return force_field_terms(system, range(molecule.n_atoms))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model with a score for molecules without data, as its bundle gives it back."""
    model = server(serves=None, known="ACE-ALA-NME")
    model.pooled_novelty = pooled()
    path = tmp_path_factory.mktemp("scored") / "m.safetensors"
    model.save(path)
    assert path.stat().st_size < 800_000
    return ScoreModel.load(path)


def test_surroundings_are_pooled_by_kind(scored):
    """Leucine's atoms are of kinds that lysine or valine have; a carboxylate is not."""
    again = scored.pooled_novelty
    assert all(torch.equal(again.tensors[k], t) for k, t in pooled().tensors.items())
    aspartate, leucine = data("ASP").molecule, data("LEU").molecule
    assert again.unknown(leucine) == []
    assert {aspartate.atom_names[k] for k in again.unknown(aspartate)} == {"CG"}
    novelty = again.of(leucine)
    usual = frames_of("LEU", 0)
    score = novelty(torch.from_numpy(usual))
    assert float((score > novelty.threshold).float().mean()) < 0.1
    mirrored = torch.from_numpy(np.ascontiguousarray(usual * np.float32([1, 1, -1])))
    assert torch.allclose(novelty(mirrored), score, atol=1e-3)
    close = usual.copy()
    oxygen, beta = (leucine.atom_names.index(name) for name in ("O", "CB"))
    close[:, oxygen] = close[:, beta] + np.float32([0.0, 0.0, 0.12])
    assert bool((novelty(torch.from_numpy(close)) > novelty.threshold).all())
    assert bool((again.of(aspartate)(torch.from_numpy(frames_of("ASP", 0))) > 1e3).all())


def test_a_served_molecule_has_the_score(scored, tmp_path):
    leucine = data("LEU").molecule
    served = scored.serve(leucine, terms_of(leucine))
    frame = torch.from_numpy(frames_of("LEU", 0)[:1])
    assert float(served.novelty(frame)) < served.novelty.threshold
    assert "compares each atom with those of its kind" in served.card.limits[-1]
    # Cis: the distances of torsions that do not turn tell.
    _, c, n, _ = Amides(leucine).torsions[0]
    cis = torch.from_numpy(turned(leucine, c, n, np.pi)).float().unsqueeze(0)
    assert float(served.novelty(cis)) > served.novelty.threshold
    served.save(tmp_path / "served.safetensors")
    again = ScoreModel.load(tmp_path / "served.safetensors")
    for x in (frame, cis):
        assert torch.equal(again.novelty(x), served.novelty(x))
    scripted = torch.jit.script(again.novelty)
    assert torch.allclose(scripted(cis), served.novelty(cis))


def test_atoms_of_a_kind_never_seen_are_said(scored):
    aspartate = data("ASP").molecule
    said = remarks(scored.serve(aspartate, terms_of(aspartate)))
    assert "No molecule trained on has an atom of the kind of atom" in said[0]
    assert "every frame counts as novel" in said[0]
    assert "The structure at the start is unlike all that was trained on" in said[1]


def turned(molecule, one, two, angle):
    """Return positions with what is behind a bond turned about it."""
    x = np.array(molecule.positions)
    side = sorted(branch(neighbours_of(molecule.n_atoms, molecule.bonds), two, one))
    axis = (x[two] - x[one]) / np.linalg.norm(x[two] - x[one])
    away = x[side] - x[two]
    along = np.outer(away @ axis, axis)
    x[side] = x[two] + along + np.cos(angle) * (away - along)
    x[side] += np.sin(angle) * np.cross(axis, away)
    return x


def test_ten_thousand_jumps_keep_rings_hands_and_amides():
    """500 chains of 20 jumps without a gate, by a network with weights at random.

    Rings close by their coordinates. Hands and sides of amides are stiff torsions about their
    rest; that none turns whatever a network says is for the gates `chirality` and `torsions`.
    """
    molecule = peptide("ACE-PRO-NME")
    served = server(serves=None).serve(molecule, terms_of(molecule))
    torch.manual_seed(1)
    for parameter in served.propagator.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    inside = {k for k, name in enumerate(molecule.residue_names) if name == "PRO"}
    windows = [row for row in served.bond_windows if {row[0], row[1]} <= inside]
    names = [{molecule.atom_names[k] for k in row[:2]} for row in windows]
    assert {"CG", "CB"} in names
    assert {"N", "CD"} in names
    hand = molecule.handedness
    centres = [tuple(row) for row in hand.centres[hand.stereo].tolist()]
    gates = (
        ChiralityGate(centres, hand.signs[hand.stereo].tolist()),
        TorsionGate(list(served.torsion_windows)),
    )
    i, j, low, high = zip(*windows, strict=True)
    start = np.repeat(np.float32(molecule.positions)[None], 500, axis=0)
    x, lag = torch.from_numpy(start), torch.full((500,), 100.0)
    with torch.no_grad():
        for _ in range(20):
            later = served.propagator(x, lag, torch.randn(500, served.noise_size))
            lengths = torch.linalg.vector_norm(later[:, i] - later[:, j], dim=-1)
            assert bool((lengths > torch.tensor(low) - 0.003).all())
            assert bool((lengths < torch.tensor(high) + 0.003).all())
            for gate in gates:
                assert bool(gate(x, later).all()), gate.name
            x = later
