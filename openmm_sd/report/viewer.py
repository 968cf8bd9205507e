"""The moving molecule on a page: frames of the solute as a few hundred kilobytes of script."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .page import Page, text

#: Frames shown at most, and bytes of coordinates (before base64) at most.
MOST_FRAMES: Final = 300
MOST_BYTES: Final = 1_000_000

# Element: colour, radius of its ball in nm. The usual colours, with a hydrogen that shows on white.
_LOOKS: Final = {
    1: ("#c9ced4", 0.028),
    6: ("#6d747c", 0.041),
    7: ("#3b68d8", 0.040),
    8: ("#d8322a", 0.039),
    9: ("#52b84e", 0.036),
    15: ("#e08a1e", 0.046),
    16: ("#dcb818", 0.046),
    17: ("#2fa836", 0.044),
    35: ("#9c3d22", 0.047),
}
_OTHER: Final = ("#b667b0", 0.045)
_STICK_NM: Final = 0.026

_HINT: Final = (
    "Drag to turn, click and use the wheel to zoom. Keys: arrows turn, + and - zoom, space plays "
    "and stops, comma and full stop go one frame back and on, Home undoes turning and zooming."
)


def shown_frames(n_frames: int, n_atoms: int) -> NDArray[np.int64]:
    """Return which of so many frames a viewer shows: evenly spread, from the first to the last."""
    most = min(MOST_FRAMES, max(2, MOST_BYTES // (6 * max(n_atoms, 1))))
    if n_frames <= most:
        return np.arange(n_frames)
    return np.unique(np.linspace(0, n_frames - 1, most).round().astype(np.int64))


def superposed(frames: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return frames (T, N, 3) about their centres, each turned onto the first.

    The weights, (N,), are what each atom counts for, 0 or more.
    """
    x = np.array(frames, dtype=np.float64)
    w = np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    x -= (x * w[None, :, None]).sum(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("n,tni,nj->tij", w, x, x[0]))
    # A turn and no reflection.
    sign = np.ones((len(x), 3))
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    turned: NDArray[np.float64] = x @ (u * sign[:, None, :] @ vt)
    return turned


def add_viewer(
    page: Page,
    frames: ArrayLike,
    atomic_numbers: Sequence[int],
    bonds: Sequence[tuple[int, int]],
    labels: Sequence[str],
    what: str,
) -> None:
    """Add a viewer to a page, which can have one.

    Frames are (T, N, 3), nm, at least one, molecules whole; labels say something of each, and
    `what` what is shown, for those who cannot see it.
    """
    heavy = np.array([number > 1 for number in atomic_numbers], dtype=np.float64)
    x = superposed(frames, heavy if heavy.sum() >= 3 else np.ones(len(heavy)))
    unit = max(float(np.abs(x).max()), 1e-3) / 32_000.0
    packed = np.round(x / unit).astype("<i2").tobytes()
    known = sorted(set(atomic_numbers))
    scene: dict[str, Any] = {
        "unit": unit,
        "elements": [known.index(number) for number in atomic_numbers],
        "colours": [_LOOKS.get(number, _OTHER)[0] for number in known],
        "radii": [_LOOKS.get(number, _OTHER)[1] for number in known],
        "stick": _STICK_NM,
        "bonds": [list(bond) for bond in bonds],
        "labels": list(labels),
        "coordinates": base64.b64encode(packed).decode("ascii"),
    }
    page.add(
        f'<div class="viewer" id="viewer"><canvas tabindex="0" role="img" aria-label="{text(what)}'
        f'. {text(_HINT)}">{text(what)}, which this browser cannot show.</canvas>'
        '<div class="controls"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{len(labels) - 1}" value="0" aria-label="frame"></div>'
        '<output aria-live="off"></output></div>',
        f"<noscript><p>{text(what)}: shown where scripts are allowed. No other part of this page "
        "needs them.</p></noscript>",
        f'<p class="small screen">{text(_HINT)}</p>',
    )
    # "<" must not end the script early, whatever a label says.
    data = json.dumps(scene, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    source = (files(__package__) / "viewer.js").read_text(encoding="utf-8")
    page.script(f'{source}\nshowMolecule(document.getElementById("viewer"), {data});')
