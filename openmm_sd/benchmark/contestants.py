"""Who takes part in the benchmark."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openmm
import torch

from ..bridges import BRIDGES, NotScriptable
from ..bridges.probe import probe_all
from ..integrator.integrator import ScoreDynamicsIntegrator
from ..jump.jump import Jump, gates_of
from ..model.model import ScoreModel
from ..molecule.molecule import Molecule
from ..prepare.settings import HEAVY_STEP_PS, HYDROGEN_MASS_AMU
from ..progress import Progress
from ..propagator.kernels import Identity
from ..propagator.script import script_frozen
from ..rollout.rollout import Rollout
from ..rollout.settings import RolloutSettings
from ..run import RunSettings
from ..system.box import PreparedBox, equilibrate, solvate
from ..system.plain_md import PlainMD
from .bridged import ANY_NOVELTY, jump_context
from .chains import alkane, shaken, untrained
from .measure import Contestant
from .published import CALLS, OneCall, PublishedNetwork

#: What everything is compared with.
PLAIN: Final = "plain MD"

#: Groups of contestants, each with the words that their names hold.
GROUPS: Final = {
    "md": PLAIN,
    "burst": "burst jump that moves nothing torchforce pythonforce native",
    "mixed": "mixed run lag ps",
    "rollout": "rollout lag ps batch",
    "propagator": "propagator batch",
    "published": "published network batch",
    "bridges": "jump through called directly torchforce pythonforce native",
    "atoms": "propagator published network of atoms batch",
    "memory": "memory of a rollout",
    "statistics": "mixed run for chains at once populations kinetics plain md by gromacs",
}

# Those that are compared with plain MD.
_COMPARED: Final = ("md", "burst", "mixed", "rollout", "statistics")
#: Steps of plain MD that are timed as one.
MD_STEPS: Final = 10
_SEED: Final = 1
# So many bursts that none ends.
_ENDLESS: Final = 1e9
# A batch of the published network beyond this takes minutes.
_LARGEST_PUBLISHED: Final = 256
# Particles of the System in which bridges are compared.
_PARTICLES: Final = 2000
_UNTRAINED: Final = "untrained: cost only"


@dataclass(frozen=True)
class Scene:
    """What all contestants share: a model of one molecule, and where and how large things are.

    Platform and bridge are those of MD and mixed runs, the device that of networks and rollouts;
    `atoms` are sizes of molecules.
    """

    model: ScoreModel
    platform: str
    bridge: str
    device: str
    waters: int
    equilibration_ps: float
    batches: tuple[int, ...]
    lags_ps: tuple[float, ...]
    atoms: tuple[int, ...]
    say: Progress

    @property
    def molecule(self) -> Molecule:
        """The model's molecule."""
        return self.model.molecules[0]

    @functools.cached_property
    def temperature(self) -> float:
        """Of the model, K."""
        return self.model.temperature or 300.0

    @functools.cached_property
    def box(self) -> PreparedBox:
        """The molecule in water, relaxed, with heavy hydrogens."""
        self.say("building the box", f"{self.molecule.name} in {self.waters} waters")
        box = solvate(
            self.molecule.to_topology(),
            self.molecule.positions,
            waters=self.waters,
            hydrogen_mass=HYDROGEN_MASS_AMU,
            seed=_SEED,
        )
        return equilibrate(
            box,
            temperature=self.temperature,
            time=self.equilibration_ps,
            platform=self.platform,
            seed=_SEED,
            progress=self.say,
        )

    def context(self, system: openmm.System, integrator: openmm.Integrator) -> openmm.Context:
        """Make a Context of the box."""
        platform = openmm.Platform.getPlatformByName(self.platform)
        context = openmm.Context(system, integrator, platform)
        assert self.box.box_vectors is not None
        context.setPeriodicBoxVectors(*self.box.box_vectors)
        context.setPositions(self.box.positions)
        context.setVelocitiesToTemperature(self.temperature, _SEED)
        return context

    def jumping(
        self, model: ScoreModel, bridge: str, **settings: Any
    ) -> tuple[openmm.Context, ScoreDynamicsIntegrator]:
        """Make a Context of the box whose integrator jumps."""
        integrator = ScoreDynamicsIntegrator(
            model,
            self.temperature,
            RunSettings.friction_per_ps,
            HEAVY_STEP_PS,
            bridge=bridge,
            seed=_SEED,
            **settings,
        )
        system = openmm.XmlSerializer.clone(self.box.system)
        integrator.attach(system, self.box.topology, platform=self.platform)
        return self.context(system, integrator), integrator

    @functools.cached_property
    def bridges(self) -> list[str]:
        """Bridges that work on the platform."""
        answers = probe_all(list(BRIDGES), [self.platform])
        return [name for name in BRIDGES if answers[name, self.platform].ok]


def contestants(scene: Scene, wanted: dict[str, str | None]) -> list[Contestant]:
    """Set up the contestants of some groups, each with a word that their names must have."""
    makers: dict[str, Callable[[Scene], Iterator[Contestant]]] = {
        "burst": _bursts,
        "mixed": _mixed,
        "rollout": _rollouts,
        "propagator": _propagators,
        "published": _published,
        "bridges": _bridges,
        "atoms": _atoms,
    }
    found = []
    if any(group in wanted for group in _COMPARED):
        found.append(_plain(scene))
    for group, make in makers.items():
        if group in wanted:
            scene.say("setting up", group)
            word = wanted[group]
            mine = list(make(scene))
            named = {c.what for c in mine if word is None or word in c.what}
            # What is taken off is measured too.
            named |= {c.minus[0] for c in mine if c.what in named and c.minus is not None}
            found += [c for c in mine if c.what in named]
    return found


def _plain(scene: Scene) -> Contestant:
    md = PlainMD(
        openmm.XmlSerializer.clone(scene.box.system),
        scene.box.positions,
        scene.box.box_vectors,
        temperature=scene.temperature,
        friction=RunSettings.friction_per_ps,
        step_ps=HEAVY_STEP_PS,
        seed=_SEED,
        platform=scene.platform,
    )

    def work() -> float:
        md.steps(MD_STEPS)
        return MD_STEPS * HEAVY_STEP_PS

    return Contestant(PLAIN, work, facts=in_box(scene))


def in_box(scene: Scene) -> dict[str, Any]:
    """Return what the table says of whoever moves the whole box."""
    atoms = scene.box.topology.getNumAtoms()
    return {"platform": scene.platform, "atoms": atoms, "step_fs": 1000.0 * HEAVY_STEP_PS}


def _bursts(scene: Scene) -> Iterator[Contestant]:
    model = ScoreModel(Identity(scene.molecule.n_atoms), scene.molecule)
    for bridge in scene.bridges:
        facts = in_box(scene) | {"bridge": bridge}
        context, integrator = scene.jumping(model, bridge, burst=_ENDLESS)
        yield Contestant(f"burst, {bridge}", _stepping(context, integrator, MD_STEPS), facts=facts)
        context, integrator = scene.jumping(model, bridge, burst=HEAVY_STEP_PS, settleTime=0.0)
        step = _stepping(context, integrator, 1, counts=False)
        note = "beside the step of MD"
        yield Contestant(
            f"jump that moves nothing, {bridge}",
            step,
            jumps=1.0,
            minus=(PLAIN, 1.0 / MD_STEPS),
            facts=facts | {"note": note},
        )


def _stepping(
    context: openmm.Context, integrator: openmm.Integrator, steps: int, counts: bool = True
) -> Callable[[], float]:
    def work() -> float:
        integrator.step(steps)
        # GPU platforms work ahead of the caller; reading something waits for them.
        context.getState(positions=True)
        return steps * HEAVY_STEP_PS if counts else 0.0

    return work


def _mixed(scene: Scene) -> Iterator[Contestant]:
    for lag in scene.lags_ps:
        context, integrator = scene.jumping(scene.model, scene.bridge, lag=lag)
        burst = integrator.getBurst()._value
        steps = max(1, round(burst / HEAVY_STEP_PS))
        yield Contestant(
            f"mixed run, lag {lag:g} ps",
            _cycle(context, integrator, steps),
            facts=in_box(scene)
            | {
                "bridge": scene.bridge,
                "lag_ps": lag,
                "burst_ps": burst,
                "recommended": lag == scene.model.recommended_lag,
            },
        )


def _cycle(
    context: openmm.Context, integrator: ScoreDynamicsIntegrator, steps: int
) -> Callable[[], float]:
    def work() -> float:
        before = integrator.getEffectiveTime()._value
        integrator.step(steps)
        context.getState(positions=True)
        return float(integrator.getEffectiveTime()._value - before)

    return work


def _rollouts(scene: Scene) -> Iterator[Contestant]:
    for lag in scene.lags_ps:
        for size in (1, *scene.batches):
            settings = RolloutSettings(
                chains=size, batch=size, lag_ps=lag, device=scene.device, seed=_SEED
            )
            rollout = Rollout(scene.model, settings, start_frames(scene))
            yield Contestant(
                f"rollout, lag {lag:g} ps, batch {size}",
                _advancing(rollout, size * lag),
                jumps=float(size),
                facts=of_network(scene, size) | {"lag_ps": lag},
            )


def start_frames(scene: Scene) -> Any:
    """Return frames to start chains from where the model has none of its own."""
    return None if scene.model.start_frames is not None else scene.molecule.positions[None]


def _advancing(rollout: Rollout, ps: float) -> Callable[[], float]:
    def work() -> float:
        rollout.advance()
        return ps

    return work


def of_network(scene: Scene, batch: int, atoms: int | None = None) -> dict[str, Any]:
    """Return what the table says of whoever calls a network alone."""
    return {"device": scene.device, "batch": batch, "atoms": atoms or scene.molecule.n_atoms}


def _inputs(frames: np.ndarray, size: int, noise: int, device: str) -> list[torch.Tensor]:
    """Return frames, a lag of 10 ps and noise for a batch."""
    chosen = torch.from_numpy(np.resize(frames, (size, *frames.shape[1:])).astype(np.float32))
    generator = torch.Generator().manual_seed(_SEED)
    numbers = torch.randn(size, noise, generator=generator)
    return [x.to(device) for x in (chosen, torch.full([size], 10.0), numbers)]


def _calling(module: torch.nn.Module, inputs: Sequence[Any]) -> Callable[[], float]:
    on_gpu = any(isinstance(x, torch.Tensor) and x.is_cuda for x in inputs)

    def work() -> float:
        with torch.inference_mode():
            module(*inputs)
        if on_gpu:
            torch.cuda.synchronize()
        return 0.0

    return work


def _model_frames(scene: Scene) -> np.ndarray:
    frames = scene.model.start_frames
    return shaken(scene.molecule, 1) if frames is None else frames


def _propagators(scene: Scene) -> Iterator[Contestant]:
    compiled = script_frozen(_on(scene.model.propagator, scene.device))
    for size in (1, *scene.batches):
        inputs = _inputs(_model_frames(scene), size, scene.model.noise_size, scene.device)
        facts = of_network(scene, size) | _about(scene.model.propagator)
        yield Contestant(
            f"propagator, batch {size}", _calling(compiled, inputs), jumps=float(size), facts=facts
        )


def _on(module: torch.nn.Module, device: str) -> torch.nn.Module:
    return module if device == "cpu" else copy.deepcopy(module).to(device)


def _about(module: torch.nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in module.parameters())}
    if hasattr(module, "n_calls"):
        found["calls"] = module.n_calls
    return found


def _published(scene: Scene) -> Iterator[Contestant]:
    for size in (1, *(b for b in scene.batches if b <= _LARGEST_PUBLISHED)):
        yield _published_one(
            scene, f"published network, batch {size}", scene.molecule, _model_frames(scene), size
        )


def _published_one(
    scene: Scene, what: str, molecule: Molecule, frames: np.ndarray, size: int
) -> Contestant:
    """Return one call of the published network, which makes 60 a jump."""
    torch.manual_seed(_SEED)
    network = _on(PublishedNetwork(molecule.atomic_numbers).eval(), scene.device)
    compiled = script_frozen(OneCall(network))  # type: ignore[arg-type]
    frame, _, noise = _inputs(frames, size, network.noise_size, scene.device)  # type: ignore[arg-type]
    with torch.inference_mode():
        senders, receivers = network.edges(frame)  # type: ignore[operator]
        known = network.known(frame, senders, receivers)  # type: ignore[operator]
    facts = of_network(scene, size, molecule.n_atoms) | _about(network)
    return Contestant(
        what,
        _calling(compiled, [noise.view(-1, 3), frame, known, senders, receivers]),
        jumps=size / CALLS,
        facts=facts | {"edges": len(senders) // size, "note": _UNTRAINED},
    )


def _bridges(scene: Scene) -> Iterator[Contestant]:
    model, molecule = scene.model, scene.molecule
    facts = {"platform": scene.platform, "batch": 1, "atoms": _PARTICLES}
    nothing = jump_context(scene.platform, _PARTICLES, None, molecule.positions)
    yield Contestant("a step with no bridge", _jumping(*nothing), facts=facts)
    gates = gates_of(model, molecule)
    constraints = model.constraint_lengths
    jump = Jump(model.propagator, molecule, gates, constraints, model.novelty)
    inputs = _inputs(molecule.positions[None], 1, model.noise_size, "cpu")
    own = of_network(scene, 1) | {"device": "cpu"}
    yield Contestant(
        "propagator called directly",
        _calling(script_frozen(model.propagator), inputs),
        jumps=1.0,
        facts=own,
    )
    yield Contestant(
        "jump called directly",
        _drawing(script_frozen(jump), molecule.positions),
        jumps=1.0,
        facts=own,
    )
    for bridge in scene.bridges:
        try:
            force = BRIDGES[bridge].create_force(jump, range(molecule.n_atoms), periodic=True)
        except NotScriptable as error:
            scene.say("note", f"left out: {error}")
            continue
        jumping = jump_context(scene.platform, _PARTICLES, force, molecule.positions)
        yield Contestant(
            f"jump through {bridge}",
            _jumping(*jumping),
            jumps=1.0,
            minus=("a step with no bridge", 1.0),
            facts=facts | {"bridge": bridge},
        )


def _jumping(context: openmm.Context, integrator: openmm.CustomIntegrator) -> Callable[[], float]:
    integrator.setGlobalVariableByName("under_way", 1.0)

    def work() -> float:
        integrator.step(1)
        context.getState(positions=True)
        return 0.0

    return work


def _drawing(jump: torch.nn.Module, positions: np.ndarray) -> Callable[[], float]:
    numbers = itertools.count()
    x, box = torch.tensor(positions), torch.zeros(3, 3, dtype=torch.float64)

    def work() -> float:
        with torch.inference_mode():
            jump(x, box, next(numbers), 0, 1, _SEED, 10.0, ANY_NOVELTY)
        return 0.0

    return work


def _atoms(scene: Scene) -> Iterator[Contestant]:
    for size in scene.atoms:
        molecule = alkane(size)
        network = untrained(molecule)
        compiled = script_frozen(_on(network, scene.device))
        frames = shaken(molecule, 50)
        for batch in (1, 64):
            facts = of_network(scene, batch, molecule.n_atoms) | _about(network)
            yield Contestant(
                f"propagator of {molecule.n_atoms} atoms, batch {batch}",
                _calling(compiled, _inputs(frames, batch, network.noise_size, scene.device)),
                jumps=float(batch),
                facts=facts | {"note": _UNTRAINED},
            )
        what = f"published network of {molecule.n_atoms} atoms, batch 1"
        yield _published_one(scene, what, molecule, frames, 1)
