"""What a network of a family is told of a force field's torsions."""

import functools
from dataclasses import replace

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from small_molecules import alkane, constrained, rotated, turned_about

from openmm_sd import ScoreDynamicsIntegrator, ScoreModel
from openmm_sd.analysis import dihedral
from openmm_sd.cli import main
from openmm_sd.data.dataset import Run, write_dataset
from openmm_sd.propagator.internal.family import FamilyDiffusion
from openmm_sd.propagator.internal.family_tree import family_tree
from openmm_sd.propagator.internal.statistics import CoordinateStatistics
from openmm_sd.propagator.internal.torsion_potential import (
    ORDERS,
    largest_difference,
    turning_potentials,
)
from openmm_sd.system.force_field import make_system
from openmm_sd.system.solute import torsion_terms

FILES = ("charmm36.xml", "charmm36/water.xml")
NAMES = {2: "ethane", 4: "butane", 5: "pentane", 6: "hexane"}


def named(n):
    return replace(alkane(n), name=NAMES[n])


@functools.cache
def system_of(n):
    return make_system(FILES, named(n).to_topology(), nonbondedMethod=app.NoCutoff)


def terms_of(n):
    return torsion_terms(system_of(n), range(named(n).n_atoms))


def potential_of(n, carbons):
    """The row of a torsion of four carbons, and its potential."""
    tree = family_tree(named(n))
    (row,) = (k for k, row in enumerate(tree.rows) if sorted(row[:4]) == carbons)
    return turning_potentials(named(n), tree, [row], terms_of(n))[0]


def value(potential, phi):
    turns = np.arange(1, ORDERS + 1)[:, None] * phi
    return np.asarray(potential) @ np.concatenate([np.cos(turns), np.sin(turns)])


@pytest.mark.parametrize(
    ("n", "carbons"), [(4, [0, 1, 2, 3]), (5, [0, 1, 2, 3]), (6, [1, 2, 3, 4])]
)
def test_potentials_are_what_openmm_calculates(n, carbons):
    molecule = named(n)
    angles = np.linspace(0.0, 2 * np.pi, 25)[:-1]
    frames = turned_about(
        np.repeat(molecule.positions[None], len(angles), 0), molecule, tuple(carbons[1:3]), angles
    )
    # The periodic torsions alone.
    system = openmm.System()
    for _ in range(molecule.n_atoms):
        system.addParticle(1.0)
    (force,) = (f for f in system_of(n).getForces() if isinstance(f, openmm.PeriodicTorsionForce))
    system.addForce(openmm.XmlSerializer.clone(force))
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies = []
    for frame in frames:
        context.setPositions(frame)
        energy = context.getState(energy=True).getPotentialEnergy()
        energies.append(energy.value_in_unit(unit.kilojoule_per_mole))
    expected = value(potential_of(n, carbons), dihedral(frames, carbons))
    assert np.ptp(energies) > 10.0
    np.testing.assert_allclose(
        energies - np.mean(energies), expected - np.mean(expected), atol=0.05
    )


def test_a_slanted_potential_keeps_its_sign():
    """Phases and sines: a lone term of any phase, on any of the torsions about a bond."""
    molecule, tree = named(4), family_tree(named(4))
    (row,) = (k for k, row in enumerate(tree.rows) if sorted(row[:4]) == [0, 1, 2, 3])
    graph = molecule.graph()
    hydrogen = next(k for k in graph[1] if molecule.atomic_numbers[k] == 1)
    angles = np.linspace(0.0, 2 * np.pi, 25)[:-1]
    frames = turned_about(np.repeat(molecule.positions[None], 24, 0), molecule, (1, 2), angles)
    for atoms in ((hydrogen, 1, 2, 3), (3, 2, 1, hydrogen)):
        term = [*atoms, 1, 0.7, 2.0]
        (potential,) = turning_potentials(molecule, tree, [row], [term])
        expected = 2.0 * np.cos(dihedral(frames, atoms) - 0.7)
        found = value(potential, dihedral(frames, [0, 1, 2, 3]))
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_butane_has_terms_of_its_own():
    butane, pentane = potential_of(4, [0, 1, 2, 3]), potential_of(5, [0, 1, 2, 3])
    ends = potential_of(6, [0, 1, 2, 3])
    assert largest_difference([pentane], [ends]) == pytest.approx(0.0, abs=1e-6)
    assert largest_difference([butane], [pentane])[0] > 1.0
    at = np.deg2rad([180.0, 120.0])
    barriers = [np.diff(value(v, at))[0] for v in (butane, pentane)]
    assert barriers == pytest.approx([13.15, 11.76], abs=0.02)


def test_terms_that_turn_too_often_are_refused():
    tree = family_tree(named(4))
    with pytest.raises(ValueError, match="repeats 7 times"):
        turning_potentials(named(4), tree, [0], [[0, 1, 2, 3, 7, 0.0, 1.0]])


def test_a_network_heeds_them():
    statistics = CoordinateStatistics([1.0, 10.0])
    for n in (2, 4, 5):
        x = torch.tensor(rotated(named(n)))
        statistics.add(named(n), x, [(x, x.roll(1, 0))] * 2)
    answers = []
    for terms in ((), terms_of(4), [[*row[:6], 2 * row[6]] for row in terms_of(4)]):
        torch.manual_seed(0)
        network = FamilyDiffusion.for_molecule(
            named(4), statistics=statistics, torsion_terms=terms, width=32, depth=1
        )
        torch.nn.init.normal_(network.head.weight, std=0.05)
        x = torch.tensor(rotated(named(4), 4), dtype=torch.float32)
        noise = torch.randn(4, network.noise_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            answers.append(network.eval()(x, torch.full((4,), 5.0), noise))
    assert float((answers[0] - answers[1]).abs().max()) > 1e-3
    assert float((answers[1] - answers[2]).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="potentials must hold 12 numbers"):
        FamilyDiffusion(**{**network.hyperparameters, "potentials": [[0.0] * 12]})


def test_a_system_with_other_torsions_is_noticed():
    statistics = CoordinateStatistics([1.0, 10.0])
    x = torch.tensor(rotated(named(4)))
    statistics.add(named(4), x, [(x, x.roll(1, 0))] * 2)
    network = FamilyDiffusion.for_molecule(
        named(4), statistics=statistics, torsion_terms=terms_of(4), width=16, depth=1
    )
    model = ScoreModel(network.eval(), named(4), {"temperature_K": 300.0})

    def attach(change):
        system = openmm.XmlSerializer.clone(system_of(4))
        (force,) = (f for f in system.getForces() if isinstance(f, openmm.PeriodicTorsionForce))
        for k in range(force.getNumTorsions()):
            *others, strength = force.getTorsionParameters(k)
            force.setTorsionParameters(k, *others, change * strength)
        integrator = ScoreDynamicsIntegrator(model, strict=True, bridge="pythonforce")
        integrator.attach(system, named(4).to_topology())

    attach(1.0)
    with pytest.raises(ValueError, match=r"bond A\d+-A\d+ are not those .* by \d\.\d kJ/mol"):
        attach(1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terms")
    for n in (2, 5):
        molecule = named(n)
        frames = constrained(rotated(molecule, 100), molecule, 0.11).astype(np.float32)
        known = {"temperature_K": 300.0, "force_field": list(FILES)}
        runs = [Run("plain0", "plain", frames, 1.0)]
        write_dataset(folder / f"{molecule.name}-untold.h5", molecule, runs, known)
        known["torsion_terms"] = terms_of(n)
        write_dataset(folder / f"{molecule.name}.h5", molecule, runs, known)
        other = replace(molecule, name=f"{molecule.name}-stiff")
        known["torsion_terms"] = [[*row[:6], 2 * row[6]] for row in terms_of(n)]
        write_dataset(folder / f"{other.name}.h5", other, runs, known)
    molecule = named(4)
    with open(folder / "butane.pdb", "w") as file:
        app.PDBFile.writeFile(molecule.to_topology(), molecule.positions * unit.nanometer, file)
    return folder


def trained(folder, output, *names, aside=()):
    small = ["--width", "16", "--depth", "1", "--max-steps", "2", "--batch-size", "8", "--no-bf16"]
    small += ["--lag-max", "20", "--start-frames", "5", "--device", "cpu", "--also"]
    data = [str(folder / f"{name}.h5") for name in names]
    small += [str(folder / "butane.pdb")]
    for name in aside:
        small += ["--aside", str(folder / f"{name}.h5")]
    return main(["train", *data, "-o", str(output), *small])


def test_a_molecule_without_data_has_those_of_the_force_field(folder, tmp_path):
    output = tmp_path / "family.safetensors"
    assert trained(folder, output, "ethane", "pentane") == 0
    family = ScoreModel.load(output)
    found = {}
    for n in (4, 5):
        network = family.member(NAMES[n]).propagator
        rows = network.hyperparameters["turning"]
        tree = family_tree(named(n))
        expected = turning_potentials(named(n), tree, rows, terms_of(n))
        np.testing.assert_allclose(network.hyperparameters["potentials"], expected, atol=1e-6)
        found[n] = network.hyperparameters["potentials"]
    assert found[4] != found[5][: len(found[4])]


def test_some_data_with_terms_and_some_without_are_refused(folder, tmp_path, capsys):
    output = tmp_path / "family.safetensors"
    assert trained(folder, output, "ethane-untold", "pentane") == 2
    assert "the data of ethane do not say" in capsys.readouterr().err
    assert not output.exists()
    assert trained(folder, output, "ethane-untold", "pentane-untold") == 0
    for member in ScoreModel.load(output).members:
        assert member.propagator.hyperparameters["potentials"] == []


def test_data_that_only_teach(folder, tmp_path, capsys):
    with_it, without = tmp_path / "with.safetensors", tmp_path / "without.safetensors"
    assert trained(folder, with_it, "ethane", "pentane", aside=["pentane-stiff"]) == 0
    assert trained(folder, without, "ethane", "pentane") == 0
    family, other = ScoreModel.load(with_it), ScoreModel.load(without)
    assert [m.name for m in family.molecules] == ["ethane", "pentane", "butane"]
    assert family.card["training"]["aside"] == ["pentane-stiff"]
    assert [one["file"] for one in family.card["training"]["data_sets"]] == [
        "ethane.h5",
        "pentane.h5",
        "pentane-stiff.h5",
    ]
    for name in ("pentane", "butane"):
        one, two = (model.member(name).propagator for model in (family, other))
        assert one.hyperparameters == two.hyperparameters
    assert not torch.equal(
        family.member("pentane").propagator.embed.weight,
        other.member("pentane").propagator.embed.weight,
    )
    output = tmp_path / "refused.safetensors"
    assert trained(folder, output, "ethane", "pentane", aside=["ethane"]) == 2
    assert "ethane is the name of two" in capsys.readouterr().err
