"""Alanine dipeptide at short times: does MD of one data set move as fast as another's?

    python benchmarks/ala2_short_times.py phi-psi.npy DATA.h5 [DATA.h5 ...]

For each basin of phi < 0 the mean cosine of the change of phi and psi, and the chance to be in
another basin, 1, 2 and 5 ps later. These converge within a few ns of MD, long before any population
or timescale does, and show differences in mass, friction or water that would change those. Errors
are those of twenty blocks. ``phi-psi.npy`` is a series (T, 2) of radians, a frame each ps; of data
sets the plain runs count.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from openmm_sd.analysis import basins, dihedral
from openmm_sd.data.dataset import read_dataset

PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
LAGS = (1.0, 2.0, 5.0)
BASINS = ("beta", "PII", "alphaR")
BLOCKS = 20
Series = list[NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("reference", help=".npy of phi and psi, a frame each ps")
    parser.add_argument("datasets", nargs="+")
    options = parser.parse_args()
    columns = {"reference": figures([np.load(options.reference).astype(float)], 1.0)}
    for path in options.datasets:
        runs = [run for run in read_dataset(path).runs if run.kind == "plain"]
        if not runs:
            parser.error(f"{path} has no plain runs")
        series = [
            np.stack([dihedral(run.positions, atoms) for atoms in (PHI, PSI)], 1) for run in runs
        ]
        columns[path] = figures(series, runs[0].spacing_ps)
    names = list(columns)
    print("| figure | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for key in columns["reference"]:
        cells = [f"{columns[n][key][0]:.4f} ± {columns[n][key][1]:.4f}" for n in names]
        print(f"| {key} | " + " | ".join(cells) + " |")
    print(
        "\nHow much more is forgotten in the reference, all basins and lags of 1 and 2 ps together:"
    )
    for name in names[1:]:
        ratio, error = excess(columns["reference"], columns[name])
        print(f"{name}: {100 * ratio:+.1f} ± {100 * error:.1f} %")


def figures(series: Series, spacing_ps: float) -> dict[str, tuple[float, float]]:
    result = {}
    for lag in LAGS:
        step = round(lag / spacing_ps)
        if step < 1:
            raise SystemExit(f"frames are {spacing_ps:g} ps apart: too far for a lag of {lag:g} ps")
        before = np.concatenate([s[:-step] for s in series])
        after = np.concatenate([s[step:] for s in series])
        start, end = basins(*before.T), basins(*after.T)
        for k, name in enumerate(BASINS):
            here = start == k
            turn = np.cos(after[here] - before[here])
            for j, torsion in enumerate(("phi", "psi")):
                result[f"{name}, {lag:g} ps: mean cos of {torsion}"] = blocks(turn[:, j])
            result[f"{name}, {lag:g} ps: elsewhere"] = blocks((end[here] != k).astype(float))
    return result


def blocks(values: NDArray[np.float64]) -> tuple[float, float]:
    means = [part.mean() for part in np.array_split(values, BLOCKS)]
    return float(values.mean()), float(np.std(means, ddof=1) / np.sqrt(BLOCKS))


def excess(
    reference: dict[str, tuple[float, float]], other: dict[str, tuple[float, float]]
) -> tuple[float, float]:
    """Return how much larger 1 - cos of phi is in the reference, relative; phi is the stiffer."""
    values, precisions = [], []
    for key, (mine, my_error) in reference.items():
        if "cos of phi" not in key or "5 ps" in key:
            continue
        theirs, their_error = other[key]
        values.append((1 - mine) / (1 - theirs) - 1)
        precisions.append(1 / ((my_error / (1 - mine)) ** 2 + (their_error / (1 - theirs)) ** 2))
    mean = float(np.average(values, weights=precisions))
    # The two lags hardly tell more than one.
    return mean, float(np.sqrt(2 / np.sum(precisions)))


if __name__ == "__main__":
    main()
