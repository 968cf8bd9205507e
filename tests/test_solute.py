"""Finding the solute: any order, any names, several copies, and what is refused."""

import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_sd.molecule.molecule import Molecule
from openmm_sd.system.solute import find_solute

PDB = Path(__file__).parent / "data" / "ace-ala-nme.pdb"


@pytest.fixture(scope="module")
def modeller():
    """ACE-ALA-NME with hydrogens; copy before changing it."""
    pdb = app.PDBFile(str(PDB))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    platform = openmm.Platform.getPlatform("Reference")
    modeller.addHydrogens(app.ForceField("amber99sbildn.xml"), platform=platform)
    return modeller


@pytest.fixture(scope="module")
def ala2(modeller):
    return Molecule.from_topology(modeller.topology, modeller.positions, "ala2")


@pytest.fixture(scope="module")
def tip4p(modeller):
    """ACE-ALA-NME in TIP4P-Ew with ions: the Topology and the force field that made it."""
    forcefield = app.ForceField("amber99sbildn.xml", "tip4pew.xml")
    solvated = app.Modeller(modeller.topology, modeller.positions)
    solvated.addSolvent(
        forcefield,
        model="tip4pew",
        boxSize=openmm.Vec3(2.4, 2.4, 2.4),
        ionicStrength=0.3 * unit.molar,
    )
    return solvated.topology, forcefield


def permuted(molecule, order, split=5):
    """A Topology of the molecule in another atom order, with meaningless names and residues."""
    topology = app.Topology()
    atoms = {}
    for k, old in enumerate(order):
        if k % split == 0:
            chain = topology.addChain(f"C{k}")
            residue = topology.addResidue(f"R{k}", chain)
        element = app.Element.getByAtomicNumber(molecule.atomic_numbers[old])
        atoms[int(old)] = topology.addAtom(f"Q{k}", element, residue)
    for i, j in molecule.bonds:
        topology.addBond(atoms[i], atoms[j])
    return topology


def without(topology, drop):
    """A copy of a Topology without the atoms for which drop(atom) is true."""
    modeller = app.Modeller(topology, np.zeros((topology.getNumAtoms(), 3)) * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if drop(atom)])
    return modeller.topology


def assert_matches(solute, topology):
    atoms = list(topology.atoms())
    molecule = solute.molecule
    numbers = [atoms[p].element.atomic_number for p in solute.particles]
    assert numbers == list(molecule.atomic_numbers)
    bonds = {frozenset((a.index, b.index)) for a, b in topology.bonds()}
    for i, j in molecule.bonds:
        assert frozenset((solute.particles[i], solute.particles[j])) in bonds


def two_copies(modeller):
    double = app.Modeller(modeller.topology, modeller.positions)
    for chain in double.topology.chains():
        chain.id = "A"
    double.add(modeller.topology, modeller.positions)
    list(double.topology.chains())[1].id = "B"
    return double.topology


def test_itself(ala2, modeller):
    solute = find_solute(ala2, modeller.topology)
    assert solute.particles == tuple(range(22))
    assert solute.constraints == ()
    assert solute.molecule is ala2
    assert "C6H12N2O2" in solute.description
    assert "ACE 1 to NME 3" in solute.description


def test_any_order_names_residues_and_chains(ala2):
    rng = np.random.default_rng(5)
    for split in (1, 3, 22):
        for _ in range(5):
            topology = permuted(ala2, rng.permutation(22), split)
            assert_matches(find_solute([ala2], topology), topology)


def test_mdtraj_topology(ala2, modeller):
    topology = mdtraj.Topology.from_openmm(modeller.topology)
    assert find_solute(ala2, topology).particles == tuple(range(22))


def test_names_settle_the_symmetric_hydrogens(ala2, modeller):
    topology = modeller.topology
    names = [a.name for a in topology.atoms()]
    order = np.arange(22)
    hb = [names.index(k) for k in ("HB1", "HB2", "HB3")]
    order[hb] = order[hb[::-1]]
    shuffled = permuted(ala2, order, 22)
    for atom, old in zip(shuffled.atoms(), order, strict=True):
        atom.name = names[old]
    particles = find_solute(ala2, shuffled).particles
    assert [int(order[p]) for p in particles] == list(range(22))


def test_two_copies_need_a_choice(ala2, modeller):
    topology = two_copies(modeller)
    with pytest.raises(ValueError, match="2 copies") as caught:
        find_solute(ala2, topology)
    text = str(caught.value)
    assert "0: chain A, ACE 1 to NME 3, atoms 0 to 21" in text
    assert "1: chain B, ACE 1 to NME 3, atoms 22 to 43" in text
    assert "solute = its number, its chain id, or the list" in text
    second = tuple(range(22, 44))
    for select in (1, np.int64(1), "B", list(second), np.array(second)):
        assert find_solute(ala2, topology, solute=select).particles == second
    assert find_solute(ala2, topology, solute=0).particles == tuple(range(22))


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (2, "there is no copy 2, allowed are 0 to 1"),
        (-1, "there is no copy -1"),
        ("Z", "chain 'Z' does not exist"),
        ([0, 1, 2], "the 3 atoms given are not exactly those of one copy"),
        ([99], "there is no atom 99, allowed are 0 to 43"),
        ([0.5], "must hold atom indices"),
        (True, "must be the number of a copy"),
        (1.5, "must be the number of a copy"),
    ],
)
def test_bad_select(ala2, modeller, select, message):
    with pytest.raises(ValueError, match=message):
        find_solute(ala2, two_copies(modeller), solute=select)


def test_select_is_checked_even_for_a_single_copy(ala2, modeller):
    with pytest.raises(ValueError, match="there is no copy 1"):
        find_solute(ala2, modeller.topology, solute=1)


def test_chain_with_two_copies_is_no_choice(ala2, modeller):
    topology = two_copies(modeller)
    for chain in topology.chains():
        chain.id = "A"
    with pytest.raises(ValueError, match="chain 'A' holds 2 copies"):
        find_solute(ala2, topology, solute="A")


def test_tip4p_water_and_ions(ala2, tip4p):
    topology, forcefield = tip4p
    assert any(atom.element is None for atom in topology.atoms())
    system = forcefield.createSystem(topology, nonbondedMethod=app.PME, constraints=app.HBonds)
    solute = find_solute(ala2, topology, system)
    assert_matches(solute, topology)
    hydrogens = {i for i, z in enumerate(ala2.atomic_numbers) if z == 1}
    assert {j for _, j, _ in solute.constraints} == hydrogens
    for heavy, hydrogen, length in solute.constraints:
        assert (min(heavy, hydrogen), max(heavy, hydrogen)) in ala2.bonds
        assert ala2.atomic_numbers[heavy] != 1
        assert 0.095 < length < 0.12
    flexible = forcefield.createSystem(topology, nonbondedMethod=app.PME)
    assert find_solute(ala2, topology, flexible).constraints == ()


def test_constraints_follow_the_numbering(ala2):
    forcefield = app.ForceField("amber99sbildn.xml")
    system = forcefield.createSystem(ala2.to_topology(), constraints=app.HBonds)
    straight = find_solute(ala2, ala2.to_topology(), system).constraints
    order = np.random.default_rng(6).permutation(22)
    place = {int(old): new for new, old in enumerate(order)}
    other = openmm.System()
    for old in order:
        other.addParticle(system.getParticleMass(int(old)))
    for k in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(k)
        other.addConstraint(place[j], place[i], length)
    solute = find_solute(ala2, permuted(ala2, order), other)
    assert {(ala2.atom_names[i], round(d, 6)) for i, _, d in solute.constraints} == {
        (ala2.atom_names[i], round(d, 6)) for i, _, d in straight
    }
    assert len(solute.constraints) == len(straight) == 12


@pytest.mark.parametrize(
    ("kind", "message"),
    [(app.AllBonds, "two heavy atoms"), (app.HAngles, "two heavy atoms|not bonded")],
)
def test_other_constraints_are_refused(ala2, modeller, kind, message):
    forcefield = app.ForceField("amber99sbildn.xml")
    system = forcefield.createSystem(modeller.topology, constraints=kind)
    with pytest.raises(ValueError, match=message) as caught:
        find_solute(ala2, modeller.topology, system)
    assert "constraints=HBonds or constraints=None" in str(caught.value)
    assert " of ACE 1)" in str(caught.value)


def masses(topology):
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(0 if atom.element is None else atom.element.mass)
    return system


def test_single_faults_of_a_system(ala2, modeller):
    topology = two_copies(modeller)
    system = masses(topology)
    system.addConstraint(3, 30, 0.2)
    with pytest.raises(ValueError, match=r"atom 3 .* ties the solute to something else"):
        find_solute(ala2, topology, system, solute=0)

    topology = modeller.topology
    system = masses(topology)
    heavy, hydrogen = next(
        (i, j) for i, j in ala2.bonds if ala2.atomic_numbers[j] == 1 != ala2.atomic_numbers[i]
    )
    system.addConstraint(heavy, hydrogen, 0.1)
    system.addConstraint(hydrogen, heavy, 0.1)
    with pytest.raises(ValueError, match="second one of that hydrogen"):
        find_solute(ala2, topology, system)

    system = masses(topology)
    system.setParticleMass(10, 0)
    with pytest.raises(ValueError, match=r"atom 10 \(CB of ALA 2\) of the solute has zero mass"):
        find_solute(ala2, topology, system)

    system = masses(topology)
    system.setVirtualSite(10, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"atom 10 .* is a virtual site of the solute"):
        find_solute(ala2, topology, system)

    system = masses(topology)
    system.addParticle(1)
    with pytest.raises(ValueError, match="system has 23 particles, the topology 22 atoms"):
        find_solute(ala2, topology, system)

    with pytest.raises(ValueError, match=r"system must be an openmm\.System, got str"):
        find_solute(ala2, topology, "system.xml")


def test_extra_particles_of_the_solute_are_refused(ala2):
    topology = ala2.to_topology()
    residue = list(topology.residues())[-1]
    topology.addAtom("LP", None, residue)
    with pytest.raises(ValueError, match=r"\(LP of NME 3\) is a virtual site or Drude particle"):
        find_solute(ala2, topology)


def test_one_residue_for_everything(ala2, tip4p):
    topology = app.Topology()
    residue = topology.addResidue("SYS", topology.addChain())
    atoms = [topology.addAtom(a.name, a.element, residue) for a in tip4p[0].atoms()]
    for one, two in tip4p[0].bonds():
        topology.addBond(atoms[one.index], atoms[two.index])
    assert find_solute(ala2, topology).particles == find_solute(ala2, tip4p[0]).particles


def test_missing_hydrogens(ala2):
    with pytest.raises(ValueError, match="0 of 12 hydrogens: add hydrogens first") as caught:
        find_solute(ala2, app.PDBFile(str(PDB)).topology)
    assert "ala2 (C6H12N2O2)" in str(caught.value)
    assert "contains C6N2O2" in str(caught.value)


def test_one_missing_hydrogen_is_located(ala2, modeller):
    topology = without(modeller.topology, lambda a: a.name == "H" and a.residue.name == "ALA")
    with pytest.raises(ValueError, match="11 hydrogens instead of 12") as caught:
        find_solute(ala2, topology)
    assert "(N of ALA 2) carries 0" in str(caught.value)


def test_no_bonds(ala2, modeller):
    bare = app.Topology()
    residue = bare.addResidue("ALL", bare.addChain())
    for atom in modeller.topology.atoms():
        bare.addAtom(atom.name, atom.element, residue)
    with pytest.raises(ValueError, match="the Topology has no bonds"):
        find_solute(ala2, bare)
    # water has its bonds, the solute lost them: what a PDB file without CONECT records gives
    water = bare.addResidue("HOH", bare.addChain())
    oxygen = bare.addAtom("O", app.element.oxygen, water)
    for name in ("H1", "H2"):
        bare.addBond(oxygen, bare.addAtom(name, app.element.hydrogen, water))
    with pytest.raises(ValueError, match="falls into 22 unconnected pieces: bonds are missing"):
        find_solute(ala2, bare)


def test_another_molecule(ala2, tip4p):
    topology = without(tip4p[0], lambda a: a.residue.name in ("ACE", "NME", "ALA"))
    with pytest.raises(ValueError, match="does not contain ala2") as caught:
        find_solute(ala2, topology)
    assert "Na" in str(caught.value)
    assert "Cl" in str(caught.value)
    assert "closest" not in str(caught.value)
    changed = app.Topology()
    residue = changed.addResidue("XXX", changed.addChain("L"))
    atoms = [
        changed.addAtom(name, app.Element.getByAtomicNumber(16 if z == 8 else z), residue)
        for name, z in zip(ala2.atom_names, ala2.atomic_numbers, strict=True)
    ]
    for i, j in ala2.bonds:
        changed.addBond(atoms[i], atoms[j])
    with pytest.raises(ValueError, match="element counts differ: O 0 vs 2, S 2 vs 0") as caught:
        find_solute(ala2, changed)
    assert "chain L, XXX 1, atoms 0 to 21" in str(caught.value)


def test_empty_and_wrong_arguments(ala2):
    with pytest.raises(ValueError, match="it has no atoms"):
        find_solute(ala2, app.Topology())
    with pytest.raises(ValueError, match="molecules must be"):
        find_solute([], app.Topology())
    with pytest.raises(ValueError, match="topology must be"):
        find_solute(ala2, "ala2.pdb")


def test_a_large_box_is_fast(ala2):
    topology = ala2.to_topology()
    chain = topology.addChain()
    for _ in range(33_000):
        water = topology.addResidue("HOH", chain)
        oxygen = topology.addAtom("O", app.element.oxygen, water)
        for name in ("H1", "H2"):
            topology.addBond(oxygen, topology.addAtom(name, app.element.hydrogen, water))
    start = time.process_time()
    solute = find_solute(ala2, topology)
    taken = time.process_time() - start
    assert solute.particles == tuple(range(22))
    # measured 0.4 s; the bound leaves room for a slow machine
    assert taken < 5
