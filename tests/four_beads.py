"""Four beads in a row with a two-well torsion: a molecule whose answers are known.

Harmonic bonds and angles, and a torsion with wells of unequal depth near +90 and -90 degrees.
Nothing else acts between the beads, so in the coordinates (bonds, angles, torsion) the Boltzmann
law is a product: the Jacobian r1^2 r2^2 r3^2 sin(a1) sin(a2) does not depend on the torsion, whose
law is exp(-U / kT) exactly. The two wells are mirror images but for the torsion's own energy, which
tells left from right: a kernel that mixes up mirror images finds one half on either side.
"""

import itertools

import numpy as np
import openmm
from openmm import app

from openmm_sd import Molecule

TEMPERATURE_K = 300.0
KT = 0.00831446261815324 * TEMPERATURE_K  # kJ/mol
BOND_NM, BOND_K = 0.15, 20_000.0  # kJ/mol/nm^2: a width of 0.011 nm
ANGLE_RAD, ANGLE_K = np.deg2rad(111.0), 300.0  # kJ/mol/rad^2: a width of 5 degrees
BARRIER = 10.5  # kJ/mol, from the mean of the wells
TILT = 1.0  # kJ/mol; the wells differ by about twice this
FRICTION_PER_PS = 5.0
STEP_PS = 0.01


def torsion_energy(phi):
    """U(phi), kJ/mol, phi in radians."""
    return 0.5 * BARRIER * (1.0 + np.cos(2.0 * phi)) + TILT * np.sin(phi)


def exact_population():
    """Probability that the torsion is positive, by quadrature."""
    phi = np.linspace(-np.pi, np.pi, 20_000, endpoint=False) + np.pi / 20_000
    weight = np.exp(-torsion_energy(phi) / KT)
    return float(weight[phi > 0].sum() / weight.sum())


def start_positions():
    """(4, 3) nm, with the torsion at -90 degrees."""
    along, up = -np.cos(ANGLE_RAD) * BOND_NM, np.sin(ANGLE_RAD) * BOND_NM
    return np.array([[-along, up, 0], [0, 0, 0], [BOND_NM, 0, 0], [BOND_NM + along, 0, -up]])


def molecule():
    """The chain, of four carbons."""
    topology = app.Topology()
    residue = topology.addResidue("BED", topology.addChain("A"))
    carbon = app.Element.getBySymbol("C")
    atoms = [topology.addAtom(f"C{k}", carbon, residue) for k in range(1, 5)]
    for first, second in itertools.pairwise(atoms):
        topology.addBond(first, second)
    return Molecule.from_topology(topology, start_positions(), "four beads")


def simulate(copies, length_ps, spacing_ps=1.0, seed=1):
    """Return (copies, T, 4, 3) float32 frames, nm, of independent chains in equilibrium.

    The chains do not see each other: they share a Context because that is faster than many.
    """
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    torsions = openmm.CustomTorsionForce(
        "0.5*barrier*(1 + cos(2*theta)) + tilt*sin(theta)",
    )
    torsions.addGlobalParameter("barrier", BARRIER)
    torsions.addGlobalParameter("tilt", TILT)
    system = openmm.System()
    for copy in range(copies):
        a, b, c, d = range(4 * copy, 4 * copy + 4)
        for _ in range(4):
            system.addParticle(12.0)
        for pair in ((a, b), (b, c), (c, d)):
            bonds.addBond(*pair, BOND_NM, BOND_K)
        for triple in ((a, b, c), (b, c, d)):
            angles.addAngle(*triple, ANGLE_RAD, ANGLE_K)
        torsions.addTorsion(a, b, c, d, [])
    for force in (bonds, angles, torsions):
        system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE_K, FRICTION_PER_PS, STEP_PS)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    # Each chain starts in a well drawn with its known probability; what is left to settle takes
    # picoseconds.
    generator = np.random.default_rng(seed)
    mirror = np.where(generator.random(copies) < exact_population(), -1.0, 1.0)
    start = start_positions() * np.stack([np.ones(copies), np.ones(copies), mirror], -1)[:, None]
    context.setPositions(start.reshape(-1, 3))
    context.setVelocitiesToTemperature(TEMPERATURE_K, seed)
    integrator.step(round(20.0 / STEP_PS))
    frames = []
    for _ in range(round(length_ps / spacing_ps)):
        integrator.step(round(spacing_ps / STEP_PS))
        x = context.getState(positions=True).getPositions(asNumpy=True)._value
        frames.append(x.reshape(copies, 4, 3))
    x = np.stack(frames, axis=1)
    # Each chain diffuses away; the propagator's frames have their centroid at the origin.
    return (x - x.mean(2, keepdims=True)).astype(np.float32)


def torsion(frames):
    """The torsion, radians, IUPAC sign, of frames (..., 4, 3)."""
    b1, b2, b3 = (frames[..., k + 1, :] - frames[..., k, :] for k in range(3))
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    sine = np.linalg.norm(b2, axis=-1) * (b1 * n2).sum(-1)
    return np.arctan2(sine, (n1 * n2).sum(-1))


def population(frames):
    """Share of frames (copies, T, 4, 3) with a positive torsion, and its standard error."""
    by_copy = (torsion(frames) > 0).mean(axis=1)
    return float(by_copy.mean()), float(by_copy.std(ddof=1) / np.sqrt(len(by_copy)))


def relaxation_time(frames, spacing_ps, lag_ps, blocks=10):
    """Relaxation time (ps) of the two wells, and its standard error over blocks of chains.

    From the autocorrelation C of the well's indicator over the known population, between one lag
    and two: ``lag / ln(C(lag) / C(2 lag))``. Recrossings shortly after a hop make C fall at once
    by a constant factor, which cancels in the ratio.
    """
    well = (torsion(frames) > 0) - exact_population()
    stride = round(lag_ps / spacing_ps)

    def correlation(part, shift):
        return (part[:, :-shift] * part[:, shift:]).mean()

    def estimate(part):
        once, twice = correlation(part, stride), correlation(part, 2 * stride)
        # Chains that do not relax as two wells do have no relaxation time.
        return lag_ps / np.log(once / twice) if once > twice > 0 else np.nan

    groups = np.array_split(well, blocks)
    left_out = [estimate(np.concatenate(groups[:k] + groups[k + 1 :])) for k in range(blocks)]
    error = np.sqrt((blocks - 1) * np.var(left_out))
    return float(estimate(well)), float(error)
