"""The molecule that a model is adapted to, and how MD of it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..files.atomic import file_sha256
from ..generate.settings import GenerateSettings
from ..generate.start import read_solute
from ..model.model import ScoreModel
from ..molecule.molecule import Molecule
from ..molecule.torsions import TorsionAtoms, slow_torsions
from ..system.fitting import Solvated, serving
from .settings import AdaptSettings

#: How the model's data were made, so that more of it is alike.
_ALIKE: Final = ("temperature_K", "friction_per_ps", "step_fs", "hydrogen_mass_amu")
#: What a network is built with, so that it takes the weights of the model's.
_BUILT: Final = (
    *("turn_scales", "width", "heads", "pair_width", "depth", "encoder_depth"),
    *("n_lag_nodes", "n_calls", "sigma_min", "sigma_max", "rho"),
)
#: Longest time between frames of the MD, ps.
_SPACING_PS: Final = 1.0


@dataclass(frozen=True)
class Subject:
    """The molecule, with what its adaptation begins with.

    Attributes
    ----------
    structure : Path
        Its file.
    parent : ScoreModel or None
        The model that is adapted, as it serves the molecule; None if there is none.
    source : str or None
        Name or path of the model, with or without its weights.
    md : GenerateSettings
        How its MD is made; how much is for later.
    torsions : list of four int
        What runs are seeded over.
    """

    structure: Path
    molecule: Molecule
    parent: ScoreModel | None
    source: str | None
    sha256: str | None
    md: GenerateSettings
    torsions: list[TorsionAtoms]

    @classmethod
    def read(cls, model: str | None, structure: Path, settings: AdaptSettings) -> Subject:
        """Read molecule and model; a ValueError says in one line what does not fit."""
        if model is None and not settings.from_scratch:
            raise ValueError("model: name one, or begin with none (--from-scratch)")
        known = None if model is None else ScoreModel.load(model)
        md = _md_settings(known, settings)
        topology, positions = read_solute(structure, md)
        if known is not None and not known.serves_others and not settings.from_scratch:
            raise ValueError(
                f"model: {model} serves no molecules but its own "
                f"({', '.join(m.name for m in known.molecules)}); wanted is one whose network is "
                "transferable, or --from-scratch"
            )
        parent = None
        if known is not None and not settings.from_scratch:
            solute = Solvated(topology, positions, implicit=md.solvent == "implicit")
            parent = serving(known, solute, md.force_field)
            assert parent is not None, "the network serves others"
            _check_lags(parent, settings)
        name = "-".join(residue.name for residue in topology.residues())
        molecule = Molecule.from_topology(topology, positions - positions.mean(axis=0), name)
        torsions = slow_torsions(molecule)
        if not torsions:
            raise ValueError(f"{structure}: {name} has no torsion that turns and changes its shape")
        sha256 = None if known is None else known.sha256
        return cls(structure, molecule, parent, model, sha256, md, torsions)

    @property
    def network_settings(self) -> dict[str, Any]:
        """What a network is built with that takes the parent's weights."""
        if self.parent is None:
            return {}
        own: dict[str, Any] = self.parent.propagator.hyperparameters  # type: ignore[assignment]
        return {name: own[name] for name in _BUILT}

    def identity(self, settings: AdaptSettings) -> dict[str, Any]:
        """Return what must be the same when an adaptation goes on, in JSON types."""
        kept = ("run_ps", "lags", "learning_rate", "keep", "from_scratch", "seed")
        chosen = {name: getattr(settings, name) for name in kept}
        return {
            "model": self.sha256,
            "structure": file_sha256(self.structure),
            "molecule": self.molecule.name,
            "solvent": self.md.solvent,
            "force_field": list(self.md.force_field),
            **chosen,
            "lags": list(settings.lags),
        }


def _md_settings(known: ScoreModel | None, settings: AdaptSettings) -> GenerateSettings:
    """Return how the MD is made: as the model's was, or as is asked for."""
    if known is None:
        if settings.solvent == "model":
            raise ValueError("solvent: without a model say explicit or implicit")
        return GenerateSettings(
            solvent=settings.solvent,
            force_field=settings.force_field,
            seed=settings.seed,
            equilibration_ps=20.0,
        )
    if settings.solvent != "model" or settings.force_field:
        what = "force_field" if settings.force_field else "solvent"
        raise ValueError(f"{what}: the model says it; it can be chosen without a model only")
    card = known.members[0].card
    implicit = card.is_implicit
    files = card.openmm_force_field(implicit)
    if not files:
        raise ValueError("model: its card names no OpenMM force field to make MD with")
    data = {key: card.data[key] for key in _ALIKE if card.data.get(key) is not None}
    if not implicit and card.data.get("cutoff_nm") is not None:
        data["cutoff_nm"] = card.data["cutoff_nm"]
    made = GenerateSettings(
        solvent="implicit" if implicit else "explicit",
        force_field=files,
        seed=settings.seed,
        **data,  # type: ignore[arg-type]
    )
    shortest = (known.lag_range or (_SPACING_PS, _SPACING_PS))[0]
    return replace(made, spacing_ps=min(_SPACING_PS, shortest))


def _check_lags(model: ScoreModel, settings: AdaptSettings) -> None:
    trained = model.lag_range
    for lag in settings.lags:
        if trained is not None and not trained[0] <= lag <= trained[1]:
            raise ValueError(
                f"lags: {lag:g} ps is outside the {trained[0]:g} to {trained[1]:g} ps that the "
                "model was trained for"
            )
