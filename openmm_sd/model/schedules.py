"""What a lag is good for: schedules of a model with the fidelity that was measured of them.

A schedule is a lag with the burst and the settling that go with it. A card lists those that were
measured, each with what it is good for: ``populations``, the longest lag whose chains have the
right populations, or ``kinetics``, a lag at which the solute alone is Markov and the rates are
right. What was measured of a shipped model after its bundle was written stands beside the bundles,
by their SHA-256: a bundle does not change.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

#: What a schedule can be asked for.
PURPOSES: Final = ("populations", "kinetics")
#: MD of everything but the solute after a jump where nothing else is known, ps.
USUAL_SETTLE_PS: Final = 1.0

_FILE: Final = "schedules.json"
# What people read for the figures that every model has; others are called by their keys.
_CALLED: Final = {
    "jsd_phi_psi_bits": ("JSD of phi and psi", "bits"),
    "jsd_dihedral_bits": ("JSD of torsions", "bits"),
    "population_phi_positive": ("phi > 0", ""),
    "population_alphaR": ("alphaR", ""),
    "slowest_timescale_ps": ("slowest timescale", "ps"),
}


@dataclass(frozen=True)
class Schedule:
    """A lag, burst and settling, ps, and what was measured of chains of that lag.

    Attributes
    ----------
    good_for : tuple of str
        Of `PURPOSES`.
    measured : mapping
        Figures by name, the unit at its end, each with ``value``, ``error`` and, where MD has one
        to compare with, ``md`` and ``md_error``.
    """

    lag_ps: float
    burst_ps: float
    settle_ps: float = USUAL_SETTLE_PS
    good_for: tuple[str, ...] = ()
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def fidelity(self) -> str:
        """What was measured, for people; empty if nothing was."""
        return "; ".join(_figure(name, one) for name, one in self.measured.items())

    @property
    def text(self) -> str:
        """The schedule in a line for people, with its fidelity where it was measured."""
        use = f" for {' and '.join(self.good_for)}" if self.good_for else ""
        said = f"; chains of such jumps: {self.fidelity}" if self.measured else ""
        return (
            f"jumps of {self.lag_ps:g} ps{use}, bursts of {self.burst_ps:g} ps, settling of "
            f"{self.settle_ps:g} ps{said}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return what a card and a summary hold."""
        return asdict(self) | {"good_for": list(self.good_for)}


def schedule_text(one: Mapping[str, object]) -> str:
    """Return `Schedule.text` of what `Schedule.as_json` gave."""
    return read_schedules("schedules", [one])[0].text


def _figure(name: str, one: Mapping[str, float]) -> str:
    called, unit = _CALLED.get(name, (name.replace("_", " "), ""))
    text = f"{called} {_rounded(one['value'], one.get('error'))}{unit and ' ' + unit}"
    if "md" in one:
        text += f" (MD {_rounded(one['md'], one.get('md_error'))})"
    return text


def _rounded(value: float, error: float | None) -> str:
    """A value with as many digits as its error has two of."""
    if not error:
        return f"{value:.3g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def read_schedules(key: str, value: object) -> tuple[Schedule, ...]:
    """Read a card's list of schedules; ValueError, which names the key, for what is none."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"card: {key} must be a list of schedules, got {value!r}")
    return tuple(_read(key, one) for one in value)


def _read(key: str, one: object) -> Schedule:
    wrong = ValueError(
        f"card: {key} must be a list of schedules with lag_ps, burst_ps, settle_ps, good_for (of "
        f"{', '.join(PURPOSES)}) and measured (figures with a value), got {one!r}"
    )
    if not isinstance(one, Mapping):
        raise wrong
    times: list[Any] = [one.get(name) for name in ("lag_ps", "burst_ps", "settle_ps")]
    good_for, measured = one.get("good_for", ()), one.get("measured", {})
    if not (
        all(_is_number(time) and time >= 0 for time in times)
        and all(times[:2])
        and isinstance(good_for, (list, tuple))
        and set(good_for) <= set(PURPOSES)
        and isinstance(measured, Mapping)
        and all(
            isinstance(figure, Mapping)
            and "value" in figure
            and all(_is_number(number) for number in figure.values())
            for figure in measured.values()
        )
    ):
        raise wrong
    lag, burst, settle = map(float, times)
    return Schedule(lag, burst, settle, tuple(good_for), measured)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def beside_bundle(sha256: str | None) -> tuple[Schedule, ...]:
    """Return what was measured of the shipped model whose bundle has this hash; none of others."""
    return _beside().get(sha256 or "", ())


@functools.cache
def _beside() -> dict[str, tuple[Schedule, ...]]:
    from .names import shipped_folder  # which needs numpy, and settings import this module

    content = json.loads((shipped_folder() / _FILE).read_text(encoding="utf-8"))
    return {one["sha256"]: read_schedules(name, one["schedules"]) for name, one in content.items()}
