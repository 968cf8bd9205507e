"""Molecule: validation, matching, and handedness that no atom name decides."""

import json
from pathlib import Path

import mdtraj
import networkx as nx
import numpy as np
import openmm
import pytest
from openmm import app, unit
from small_molecules import grown

from openmm_sd.molecule.matching import closest_mismatch, match_atoms
from openmm_sd.molecule.molecule import Molecule

PDB = Path(__file__).parent / "data" / "ace-ala-nme.pdb"
MIRROR = np.array([1.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def ala2():
    """ACE-ALA-NME with the force field's hydrogens, minimised."""
    pdb = app.PDBFile(str(PDB))
    forcefield = app.ForceField("amber99sbildn.xml")
    platform = openmm.Platform.getPlatform("Reference")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(forcefield, platform=platform)
    system = forcefield.createSystem(modeller.topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    state = context.getState(positions=True, energy=True)
    assert state.getPotentialEnergy() < -50 * unit.kilojoule_per_mole
    return Molecule.from_topology(modeller.topology, state.getPositions(asNumpy=True), "ala2")


def renumbered(molecule, order):
    """The same molecule with atom k of the new numbering being atom order[k] of the old."""
    place = {int(old): new for new, old in enumerate(order)}
    return Molecule(
        molecule.name,
        tuple(molecule.atomic_numbers[k] for k in order),
        tuple((place[i], place[j]) for i, j in molecule.bonds),
        tuple(f"X{k}" for k in range(len(order))),
        ("UNK",) * len(order),
        ("7",) * len(order),
        molecule.positions[np.asarray(order)],
    )


def parts(**changes):
    """Water, as keyword arguments, with some of them changed."""
    water = {
        "name": "water",
        "atomic_numbers": (8, 1, 1),
        "bonds": ((0, 1), (0, 2)),
        "atom_names": ("O", "H1", "H2"),
        "residue_names": ("HOH",) * 3,
        "residue_ids": ("1",) * 3,
        "positions": np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]),
    }
    return water | changes


def test_basic_properties(ala2):
    assert ala2.n_atoms == 22
    assert ala2.formula == "C6H12N2O2"
    assert len(ala2.heavy) == 10
    assert len(ala2.bonds) == 21
    assert nx.get_node_attributes(ala2.graph(), "z")[0] == 6
    assert not ala2.positions.flags.writeable
    assert "C6H12N2O2" in repr(ala2)


def test_bonds_are_stored_sorted():
    assert Molecule(**parts(bonds=[(2, 0), (1, 0)])).bonds == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name must be"),
        ({"atomic_numbers": ()}, "atomic_numbers is empty"),
        ({"atomic_numbers": (8, 1, 0)}, r"atomic_numbers\[2\] is 0, allowed are 1 to 118"),
        ({"atomic_numbers": (8, 1, 1.0)}, r"atomic_numbers\[2\] must be an integer"),
        ({"atomic_numbers": 8}, "atomic_numbers must be a sequence"),
        ({"atom_names": ("O", "H1")}, "atom_names has 2 entries for 3 atoms"),
        ({"residue_ids": (1, 1, 1)}, r"residue_ids\[0\] must be a string"),
        ({"bonds": ((0, 1), (0, 3))}, r"bonds\[1\] is \(0, 3\), allowed are atoms 0 to 2"),
        ({"bonds": ((0, 1), (1, 0), (0, 2))}, r"bonds\[1\] repeats"),
        ({"bonds": ((0, 0), (0, 2))}, "two different atoms"),
        ({"bonds": ((0, 1),)}, "2 separate pieces"),
        ({"positions": np.zeros((2, 3))}, r"shape \(3, 3\), got \(2, 3\)"),
        ({"positions": "here"}, "positions must be numbers"),
        ({"positions": np.full((3, 3), np.nan)}, "atom 0 are not finite"),
    ],
)
def test_wrong_parts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Molecule(**parts(**changes))


def test_dict_round_trip_through_json(ala2):
    again = Molecule.from_dict(json.loads(json.dumps(ala2.to_dict(), allow_nan=False)))
    np.testing.assert_allclose(again.positions, ala2.positions, atol=0.5e-5, rtol=0)
    assert again == Molecule.from_dict(again.to_dict())
    assert hash(again) == hash(ala2)
    assert again != ala2  # the positions are rounded


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_dict_with_other_keys_is_refused(ala2, change):
    content = ala2.to_dict()
    if change == "missing":
        del content["bonds"]
    else:
        content["charge"] = 0
    with pytest.raises(ValueError, match=f"{change}: (bonds|charge)") as caught:
        Molecule.from_dict(content)
    assert "\n" not in str(caught.value)


def test_topology_round_trip(ala2):
    topology = ala2.to_topology()
    again = Molecule.from_topology(topology, ala2.positions, "ala2")
    assert again == ala2
    traj = mdtraj.Topology.from_openmm(topology)
    from_mdtraj = Molecule.from_topology(traj, ala2.positions * unit.nanometer, "ala2")
    assert from_mdtraj == ala2
    assert [r.name for r in topology.residues()] == ["ACE", "ALA", "NME"]


def test_from_topology_refuses_what_is_no_molecule(ala2):
    topology = ala2.to_topology()
    with pytest.raises(ValueError, match="nm long"):
        Molecule.from_topology(topology, ala2.positions * 10, "angstrom")
    with pytest.raises(ValueError, match=r"must be an openmm.app.Topology .* got str"):
        Molecule.from_topology("ala2.pdb", ala2.positions, "x")
    chain = topology.addChain()
    topology.addAtom("NA", app.Element.getBySymbol("Na"), topology.addResidue("NA", chain))
    with pytest.raises(ValueError, match="single molecule, got 2 unconnected pieces"):
        Molecule.from_topology(topology, np.zeros((23, 3)), "x")


def test_it_is_l_alanine(ala2):
    names = {
        (r, a): i for i, (r, a) in enumerate(zip(ala2.residue_names, ala2.atom_names, strict=True))
    }
    centre = ala2.positions[names["ALA", "CA"]]
    arms = [ala2.positions[names["ALA", k]] - centre for k in ("N", "C", "CB")]
    assert np.linalg.det(arms) > 0


def test_handedness_of_ala2(ala2):
    hand = ala2.handedness
    assert hand is ala2.handedness
    assert hand.centres.shape == (4, 4)
    assert hand.stereo.tolist() == [False, False, False, True]
    assert ala2.atom_names[hand.centres[-1, 0]] == "CA"
    moved = (hand.swaps != np.arange(22)).sum(axis=1)
    assert moved.tolist() == [2, 2, 2, 0]
    np.testing.assert_array_equal(hand.measure(ala2.positions), hand.signs)


def test_enantiomer_keeps_only_its_stereocentre_wrong(ala2):
    hand = ala2.handedness
    mirrored = ala2.positions * MIRROR
    np.testing.assert_array_equal(hand.measure(mirrored), -hand.signs)
    repaired = mirrored[hand.relabelling(mirrored)]
    wrong = hand.measure(repaired) != hand.signs
    np.testing.assert_array_equal(wrong, hand.stereo)


def test_methyl_hydrogens_in_any_order_are_repaired(ala2):
    hand = ala2.handedness
    rng = np.random.default_rng(1)
    graph = ala2.graph()
    carbons = [int(c) for c in hand.centres[~hand.stereo, 0]]
    for _ in range(50):
        order = np.arange(22)
        for carbon in carbons:
            hydrogens = [k for k in graph[carbon] if graph.nodes[k]["z"] == 1]
            order[hydrogens] = rng.permutation(hydrogens)
        frame = ala2.positions[order]
        repaired = frame[hand.relabelling(frame)]
        np.testing.assert_array_equal(hand.measure(repaired), hand.signs)


def is_automorphism(molecule, permutation):
    bonds = {tuple(sorted((int(permutation[i]), int(permutation[j])))) for i, j in molecule.bonds}
    numbers = [molecule.atomic_numbers[k] for k in permutation]
    return bonds == set(molecule.bonds) and numbers == list(molecule.atomic_numbers)


def branched():
    """(CH3)2CH-CHF-OH: an isopropyl group beside a stereocentre."""
    elements = [6, 6, 9, 8, 1, 6, 6, 1, 1] + [1] * 6
    bonds = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7), (3, 8)]
    bonds += [(5, 9), (5, 10), (5, 11), (6, 12), (6, 13), (6, 14)]
    return grown(elements, bonds)


def test_outer_branches_come_first_and_swaps_restore_signs():
    molecule = branched()
    hand = molecule.handedness
    assert hand.centres[:, 0].tolist() == [1, 5, 6, 0]
    assert hand.stereo.tolist() == [False, False, False, True]
    assert (hand.swaps[0] != np.arange(15)).sum() == 8
    for row, swap in enumerate(hand.swaps):
        assert is_automorphism(molecule, swap)
        if not hand.stereo[row]:
            assert hand.measure(molecule.positions[swap])[row] == -hand.signs[row]
    # every symmetric renumbering of the graph is repaired
    colours = nx.algorithms.isomorphism.categorical_node_match("z", 0)
    graph = molecule.graph()
    matcher = nx.algorithms.isomorphism.GraphMatcher(graph, graph, node_match=colours)
    tried = 0
    for mapping in matcher.isomorphisms_iter():
        frame = molecule.positions[[mapping[i] for i in range(15)]]
        repaired = frame[hand.relabelling(frame)]
        np.testing.assert_array_equal(hand.measure(repaired), hand.signs)
        tried += 1
    assert tried == 72


def difluoro(mirror_one_side):
    """CHF(CH3)-CH(OH)-CHF(CH3): the middle is a centre only if its two sides are unlike."""
    elements = [6, 1, 8, 1, 6, 6, 9, 1, 6, 1, 1, 1, 9, 1, 6, 1, 1, 1]
    bonds = [(0, 1), (0, 2), (2, 3), (0, 4), (0, 5)]
    for carbon, start in ((4, 6), (5, 12)):
        bonds += [(carbon, start), (carbon, start + 1), (carbon, start + 2)]
        bonds += [(start + 2, start + k) for k in (3, 4, 5)]
    molecule = grown(elements, bonds)
    positions = np.array(molecule.positions)

    def hand_of(carbon, start):
        arms = positions[[0, start, start + 1]] - positions[carbon]
        return np.sign(np.linalg.det(arms))

    alike = hand_of(4, 6) == hand_of(5, 12)
    if alike == mirror_one_side:
        positions[[12, 13]] = positions[[13, 12]]
    return Molecule.from_dict(molecule.to_dict() | {"positions": positions.tolist()})


@pytest.mark.parametrize("unlike", [False, True])
def test_branches_of_opposite_hand_make_a_stereocentre(unlike):
    hand = difluoro(unlike).handedness
    stereo = dict(zip(hand.centres[:, 0].tolist(), hand.stereo.tolist(), strict=True))
    assert stereo[4]
    assert stereo[5]
    assert stereo[0] == unlike


def test_rings_have_swaps_too():
    """Cyclohexane with one methyl group: nothing in it is a stereocentre."""
    carbons = 7
    ring = [(k, (k + 1) % 6) for k in range(6)]
    bonds, elements = [*ring, (0, 6)], [6] * carbons
    for carbon, count in [(0, 1), (1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 3)]:
        for _ in range(count):
            bonds.append((carbon, len(elements)))
            elements.append(1)
    n = len(elements)
    angle = np.arange(6) * np.pi / 3
    positions = np.zeros((n, 3))
    zigzag = 0.025 * (-1) ** np.arange(6)
    positions[:6] = np.stack([0.145 * np.cos(angle), 0.145 * np.sin(angle), zigzag], axis=1)
    graph = nx.Graph(bonds)
    for carbon in range(6):
        outward = positions[carbon] * [1, 1, 0] / 0.145
        axis = np.array([0, 0, np.sign(zigzag[carbon])])
        # equatorial and axial
        sites = [outward - 0.35 * axis, axis]
        for other, site in zip([k for k in graph[carbon] if k > 5], sites, strict=True):
            positions[other] = positions[carbon] + 0.11 * site / np.linalg.norm(site)
    for k, other in enumerate(sorted(k for k in graph[6] if k > 6)):
        turn = 2 * np.pi * k / 3
        positions[other] = positions[6] + [0.04, 0.1 * np.cos(turn), 0.1 * np.sin(turn)]
    labels = ("X",) * n
    molecule = Molecule("ring", tuple(elements), tuple(bonds), labels, labels, labels, positions)
    hand = molecule.handedness
    assert not hand.stereo.any()
    assert len(hand.signs) == 7
    for swap in hand.swaps:
        assert is_automorphism(molecule, swap)
    mirrored = positions * [1, -1, 1]
    repaired = mirrored[hand.relabelling(mirrored)]
    np.testing.assert_array_equal(hand.measure(repaired), hand.signs)


def test_molecule_without_centres():
    hand = Molecule(**parts()).handedness
    assert hand.centres.shape == (0, 4)
    assert hand.swaps.shape == (0, 3)
    assert hand.relabelling(np.zeros((3, 3))).tolist() == [0, 1, 2]


def test_match_any_numbering(ala2):
    rng = np.random.default_rng(2)
    for _ in range(20):
        order = rng.permutation(22)
        other = renumbered(ala2, order)
        mapping = match_atoms(ala2, other.graph())
        assert sorted(mapping) == list(range(22))
        bonds = {tuple(sorted((mapping[i], mapping[j]))) for i, j in ala2.bonds}
        assert bonds == set(other.bonds)
        assert [other.atomic_numbers[k] for k in mapping] == list(ala2.atomic_numbers)


def test_match_prefers_agreeing_names(ala2):
    rng = np.random.default_rng(3)
    for _ in range(10):
        order = rng.permutation(22)
        graph = renumbered(ala2, order).graph()
        for new, old in enumerate(order):
            graph.nodes[new]["name"] = ala2.atom_names[old]
        mapping = match_atoms(ala2, graph)
        assert [int(order[k]) for k in mapping] == list(range(22))


def test_mismatches_are_described(ala2):
    graph = ala2.graph()
    hydrogens = [n for n, z in graph.nodes(data="z") if z == 1]
    bare = graph.subgraph(ala2.heavy)
    assert match_atoms(ala2, bare) is None
    assert "0 of 12 hydrogens: add hydrogens first" in closest_mismatch(ala2, bare)

    amide = next(n for n in hydrogens if ala2.atom_names[n] == "H")
    fewer = graph.subgraph([n for n in graph if n != amide])
    text = closest_mismatch(ala2, fewer)
    assert "11 hydrogens instead of 12" in text
    assert "(N of ALA 2) carries 0" in text

    other = graph.copy()
    other.nodes[0]["z"] = 7
    assert closest_mismatch(ala2, other) == "element counts differ: C 5 vs 6, N 3 vs 2"

    moved = graph.copy()
    beta = next(n for n in hydrogens if ala2.atom_names[n] == "HB1")
    moved.remove_edge(*next(iter(graph.edges(beta))))
    oxygen = ala2.atom_names.index("O")
    moved.add_edge(beta, oxygen)
    assert match_atoms(ala2, moved) is None
    text = closest_mismatch(ala2, moved)
    assert "bonded differently: atom" in text
    assert "is bonded to" in text

    ring = graph.copy()
    ring.add_edge(0, ala2.n_atoms - 1)
    assert "22 bonds instead of 21" in closest_mismatch(ala2, ring)
