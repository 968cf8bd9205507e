"""The figures of ``docs/concepts.md``: the schedule of a mixed run; lags, chains and MD.

    python benchmarks/figures.py docs --chains 512 --only lags

From the shipped model ``ala2-water`` and the two plain runs (17.1 ns) of ``data/ala2-water.h5``; on
one CPU core some five minutes. The schedule is a drawing, not to scale; all else is measured, and
printed. Errors are standard errors over blocks of MD and groups of chains.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from shared import SEED, Command, new_figure, option, phi_psi, plain_runs, run_command

from openmm_sd import Rollout, RolloutSettings, ScoreModel
from openmm_sd.analysis import basins
from openmm_sd.analysis.equilibrium import histogram_1d
from openmm_sd.analysis.kinetics import grouped_counts, mode_correlations
from openmm_sd.analysis.sample import Sample, mean_and_error, resamplings, spread, weighted
from openmm_sd.data.dataset import Run, read_dataset

MODEL = "ala2-water"
DATA = Path(__file__).parents[1] / "data" / "ala2-water.h5"
ALPHA_R = 2
RESAMPLES = 200
#: Lags whose answer is shown, ps, and the number of frames of MD that jump.
SHOWN_LAGS_PS = (1.0, 10.0, 100.0)
JUMPS = 8192
#: Lags of the chains, ps, and their length at least; correlations are looked at after this time.
CHAIN_LAGS_PS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
CHAIN_PS = 200.0
LONGEST_MD_LAG_PS = 60.0
LOOK_PS = 50.0
#: Length of what is shown of a trajectory, and around a crossing, ps.
STRETCH_PS = 1500.0
CROSSING_PS = 30.0
BLUE, RED, GREY = "#0072b2", "#d55e00", "0.35"


def figures(options: argparse.Namespace) -> None:
    """Draw the figures into a folder, and print what they show."""
    model, runs = ScoreModel.load(MODEL), plain_runs(read_dataset(DATA))
    for name, draw in DRAWINGS.items():
        if options.only in (None, name):
            draw(model, runs, options).savefig(options.folder / f"concepts-{name}.png")


def chains_of(model: ScoreModel, lag: float, steps: int, chains: int, seed: int) -> NDArray:
    """phi and psi of chains of jumps, (chains, 1 + steps, 2) in radians."""
    settings = RolloutSettings(chains=chains, lag_ps=lag, seed=seed, batch=256)
    rollout = Rollout(model, settings)
    frames = [rollout.frames, *(rollout.advance() for _ in range(steps))]
    return np.stack([phi_psi(f) for f in frames], axis=1)


def helical(torsions: NDArray) -> NDArray[np.int64]:
    """1 where phi and psi are those of alphaR."""
    return (basins(torsions[..., 0], torsions[..., 1]) == ALPHA_R).astype(np.int64)


# -- the schedule ----------------------------------------------------------------------------------


def draw_schedule(model: ScoreModel, runs: list[Run], options: argparse.Namespace) -> Figure:
    """Draw what moves when, and what the clocks say meanwhile."""
    burst, settle, jump = 3.0, 2.4, 0.5
    figure = new_figure(9.0, 4.4)
    strip, clocks = figure.subplots(2, 1, sharex=True, height_ratios=(1.0, 1.5))
    now, md, effective = 0.0, 0.0, 0.0
    times, mds, effectives = [0.0], [0.0], [0.0]
    for turn in range(3):
        for what, length, colour in (
            ("burst\nMD of everything", burst, "#9ecae1"),
            ("jump", jump, RED),
            ("settle\nMD of the water", settle, "#d9d9d9"),
        ):
            if turn == 2 and what != "burst\nMD of everything":
                continue
            strip.barh(0, length, left=now, height=1, color=colour, edgecolor="white")
            if what == "jump":
                strip.annotate(
                    "jump\n+ gates", (now + length / 2, 0.5), (now + length / 2, 1.0),
                    ha="center", fontsize=9, arrowprops={"arrowstyle": "-", "color": GREY},
                )  # fmt: skip
                effective += 6.0
            else:
                strip.text(now + length / 2, 0, what, ha="center", va="center", fontsize=9)
            now += length
            if what.startswith("burst"):
                md, effective = md + 1.0, effective + 1.0
                strip.plot(now, -0.5, marker="^", color="k", clip_on=False, zorder=5)
            times.append(now)
            mds.append(md)
            effectives.append(effective)
    strip.set(ylim=(-0.75, 1.65), xlim=(-0.1, now + 0.1))
    strip.axis("off")
    clocks.plot(times, effectives, color=RED, label="effective time: MD time + lags")
    clocks.plot(times, mds, color=BLUE, label="MD time: bursts only")
    clocks.set(xlabel="what the computer does, one after the other", ylabel="clock")
    clocks.set(xticks=[], yticks=[])
    clocks.plot([], [], "k^", label="a frame is written")
    clocks.legend(frameon=False, loc="upper left")
    clocks.spines[["top", "right"]].set_visible(False)
    return figure


# -- one model, any lag ----------------------------------------------------------------------------


def draw_lags(model: ScoreModel, runs: list[Run], options: argparse.Namespace) -> Figure:
    """Draw where psi is, a lag after alphaR: in MD, and after one jump from the same frames."""
    figure = new_figure(9.0, 3.0)
    axes = figure.subplots(1, len(SHOWN_LAGS_PS), sharex=True)
    torsions = [phi_psi(run.positions) for run in runs]
    spacing = runs[0].spacing_ps
    sample = Sample.from_runs(torsions, spacing)
    centres = np.linspace(-180, 180, 73)[:-1] + 2.5
    generator = torch.Generator().manual_seed(options.seed)
    print("psi a lag after alphaR: largest difference, model from MD, of the share in a bin")
    for axis, lag in zip(axes, SHOWN_LAGS_PS, strict=True):
        stride = round(lag / spacing)

        def later(before: NDArray, after: NDArray) -> NDArray:
            return histogram_1d(after[helical(before) == 1, 1])

        counts, _ = sample.sums(later, stride)
        draws = resamplings(len(counts), RESAMPLES, options.seed)
        found = counts.sum(0) / counts.sum()
        many = weighted(counts, draws)
        error = spread(many / many.sum(1, keepdims=True))
        start = np.concatenate(
            [
                run.positions[:-stride][helical(t[:-stride]) == 1]
                for run, t in zip(runs, torsions, strict=True)
            ]
        )
        start = start[np.linspace(0, len(start) - 1, JUMPS).astype(int)]
        noise = torch.randn(JUMPS, model.noise_size, generator=generator)
        with torch.no_grad():
            frames = model.propagator(torch.tensor(start), torch.full((JUMPS,), lag), noise)
        mine = histogram_1d(phi_psi(frames.numpy())[:, 1]) / JUMPS
        axis.bar(centres, mine, 5.0, color=RED, alpha=0.55, label="model, one jump")
        axis.plot(centres, found, color="k", lw=1.2, label="MD")
        axis.fill_between(
            centres, found - 2 * error, found + 2 * error, color="k", alpha=0.25, lw=0
        )
        axis.set(title=f"{lag:g} ps later", xlabel="psi (deg)", xticks=(-180, -90, 0, 90, 180))
        axis.set(yticks=[], ylim=(0, None))
        print(f"{lag:g} ps: {np.abs(mine - found).max():.4f} of {found.max():.4f}")
    axes[0].set_ylabel("share of frames")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


# -- timescales and populations --------------------------------------------------------------------


def relaxation(states: Sample, lag: float, seed: int) -> tuple[float, float]:
    """How long alphaR is remembered: -lag / ln(its correlation a lag later), and the error, ps."""
    stride = states.stride(lag)
    if stride is None:
        raise ValueError(f"{lag:g} ps is no multiple of {states.spacing_ps:g} ps")
    counts = grouped_counts(states, stride, 2)
    mode = np.array([[0.0], [1.0]])
    draws = resamplings(len(counts), RESAMPLES, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = -lag / np.log(mode_correlations(counts.sum(0), mode))
        many = -lag / np.log(mode_correlations(weighted(counts, draws), mode))
    return float(value[0]), float(spread(many)[0])


def population(states: Sample, seed: int) -> tuple[float, float]:
    """Share of alphaR and its error."""
    sums, numbers = states.sums(lambda before, _: before.sum(keepdims=True)[:1].reshape(1))
    value, error = mean_and_error(sums, numbers, resamplings(len(sums), RESAMPLES, seed))
    return float(value[0]), float(error[0])


def draw_timescales(model: ScoreModel, runs: list[Run], options: argparse.Namespace) -> Figure:
    """Draw what chains of jumps of many lags say of alphaR, beside MD."""
    seed, spacing = options.seed, runs[0].spacing_ps
    md = Sample.from_runs([helical(phi_psi(run.positions)) for run in runs], spacing)
    lags = np.unique(np.round(np.geomspace(spacing, LONGEST_MD_LAG_PS, 22) / spacing)) * spacing
    curve = np.array([relaxation(md, lag, seed) for lag in lags])
    known, known_error = population(md, seed)
    rows = []
    for lag in CHAIN_LAGS_PS:
        steps = max(2, round(CHAIN_PS / lag))
        states = helical(chains_of(model, lag, steps, options.chains, seed))
        sample = Sample.from_runs(list(states), lag)
        look = lag * np.ceil(LOOK_PS / lag)
        # Equilibrium: what is left when the chains have forgotten the frames they were given.
        late = Sample.from_runs(list(states[:, -(steps // 2) :]), lag)
        rows.append((lag, *relaxation(sample, look, seed), *population(late, seed)))
    print("MD: lag, relaxation time of alphaR (ps)")
    for lag, (value, error) in zip(lags, curve, strict=True):
        print(f"  {lag:g}: {value:.1f} +- {error:.1f}")
    print(f"MD: share of alphaR {known:.3f} +- {known_error:.3f}")
    print("chains: lag, relaxation time (ps), share of alphaR")
    for lag, time, time_error, share, share_error in rows:
        print(f"  {lag:g}: {time:.1f} +- {time_error:.1f}, {share:.3f} +- {share_error:.3f}")

    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot(lags, curve[:, 0], color="k", label="MD, looked at after this time")
    band = (curve[:, 0] - 2 * curve[:, 1], curve[:, 0] + 2 * curve[:, 1])
    left.fill_between(lags, *band, color="k", alpha=0.2, lw=0)
    x = np.array([row[0] for row in rows])
    times, shares = (np.array([row[k : k + 2] for row in rows]).T for k in (1, 3))
    label = "chains of jumps of this lag"
    style = {"fmt": "o", "color": RED, "ms": 4, "capsize": 2}
    left.errorbar(x, times[0], 2 * times[1], label=label, **style)
    left.set(xscale="log", xlabel="time or lag (ps)", ylabel="relaxation time of alphaR (ps)")
    left.set(ylim=(0, None), title="Kinetics")
    left.legend(frameon=False, loc="lower right", fontsize=9)
    right.axhspan(known - 2 * known_error, known + 2 * known_error, color="k", alpha=0.2, lw=0)
    right.axhline(known, color="k", label="MD")
    right.errorbar(x, shares[0], 2 * shares[1], label=label, **style)
    right.set(xscale="log", xlabel="lag (ps)", ylabel="population of alphaR", ylim=(0, 0.5))
    right.set_title("Equilibrium")
    right.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


# -- paths -----------------------------------------------------------------------------------------


def unbroken(torsions: NDArray) -> NDArray:
    """psi in degrees from -120 to 240, so that no basin is cut in two."""
    return (np.rad2deg(torsions[:, 1]) + 120.0) % 360.0 - 120.0


def crossing(torsions: NDArray) -> int:
    """Where psi first goes from the extended to the helical side for good, a frame."""
    psi = unbroken(torsions)
    inside = np.where(np.abs(psi - 150) < 40, 0, np.where(np.abs(psi + 30) < 40, 1, -1))
    known = np.flatnonzero(inside >= 0)
    change = np.flatnonzero(np.diff(inside[known]) == 1)
    return int(known[change[0] + 1])


def draw_paths(model: ScoreModel, runs: list[Run], options: argparse.Namespace) -> Figure:
    """Draw psi along MD and along chains: what lies between two frames is not there."""
    spacing = runs[0].spacing_ps
    steps = round(STRETCH_PS / spacing)
    traces = [("MD", spacing, phi_psi(runs[0].positions[: steps + 1]))]
    for lag in (10.0, 100.0):
        chain = chains_of(model, lag, round(STRETCH_PS / lag), 1, options.seed)[0]
        traces.append((f"chain of jumps, lag {lag:g} ps", lag, chain))
    figure = new_figure(9.0, 4.8)
    grid = figure.add_gridspec(3, 2, width_ratios=(2.2, 1.0))
    zoom = figure.add_subplot(grid[:, 1])
    for k, (name, step, torsions) in enumerate(traces):
        axis = figure.add_subplot(grid[k, 0])
        psi = unbroken(torsions)
        time = step * np.arange(len(psi))
        colour = "k" if k == 0 else (RED, BLUE)[k - 1]
        axis.plot(time, psi, ".", ms=1.2 if k == 0 else 4, color=colour, alpha=0.5 if k == 0 else 1)
        if k:
            axis.plot(time, psi, lw=0.4, color=colour)
        axis.set(
            ylim=(-120, 240), yticks=(-90, 0, 90, 180), xlim=(0, STRETCH_PS), ylabel="psi (deg)"
        )
        axis.set_title(name, fontsize=9, loc="left")
        axis.tick_params(labelbottom=k == 2)
        if k == 2:
            axis.set_xlabel("time (ps)")
        else:
            at = crossing(torsions)
            near = np.abs(time - time[at]) <= CROSSING_PS
            style = {"ms": 2.5, "lw": 0.6} if k == 0 else {"ms": 6, "lw": 0.6, "ls": "--"}
            zoom.plot(time[near] - time[at], psi[near], marker=".", color=colour, **style,
                      label=name)  # fmt: skip
    zoom.set(ylim=(-120, 240), xlabel="time from arriving at alphaR (ps)")
    zoom.set(yticks=(-90, 0, 90, 180))
    zoom.set_title("the first crossing of each", fontsize=9)
    zoom.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


DRAWINGS = {
    "schedule": draw_schedule,
    "lags": draw_lags,
    "timescales": draw_timescales,
    "paths": draw_paths,
}
COMMANDS = {
    "figures": Command(
        figures,
        [
            option("folder", type=Path, help="where the figures go"),
            option("--chains", type=int, default=512),
            option("--only", choices=tuple(DRAWINGS)),
            SEED,
        ],
    )
}

if __name__ == "__main__":
    sys.exit(run_command(__doc__, COMMANDS))
