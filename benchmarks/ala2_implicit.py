"""Make the model ``ala2-implicit`` from nothing: dynamics, training, validation.

    python benchmarks/ala2_implicit.py --out DIR [--minutes-md 30] [--minutes-train 25] [--seed 1]

ACE-ALA-NME in implicit solvent. Stages whose output is in DIR are skipped, and an interrupted one
resumes, so the same command continues. DIR then holds the bundle ``ala2-implicit.safetensors``, the
parts it is made of (``weights.safetensors``, ``card.json``, ``molecule.json``),
``validation.json``, ``validation.png``, and under ``data/`` the dynamics.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
import torch
from safetensors.torch import load_file, save_file

from openmm_sd import Molecule, ScoreModel
from openmm_sd.analysis import (
    BASINS,
    basin_populations,
    basins,
    dihedral,
    hop_probabilities,
    implied_timescales,
    jsd_phi_psi,
    mean_cos_change,
    signed_volume,
)
from openmm_sd.generate import (
    ImplicitSettings,
    Run,
    alanine_dipeptide,
    generate_implicit,
    molecule_record,
    read_runs,
)
from openmm_sd.generate.implicit import PHI, PSI
from openmm_sd.propagator.alignment import align_frames
from openmm_sd.propagator.cartesian.dense import DenseDiffusion
from openmm_sd.train import TrainSettings, TransitionPairs, fit_statistics, held_out_loss, train

LAGS_PS = (1, 2, 5, 10, 20, 50, 100, 200)
# Rollouts by lag: steps, and steps discarded while a chain forgets where it started.
ROLLOUTS = {10: (150, 30), 20: (100, 15), 50: (100, 8), 100: (60, 4)}
# Lags of implied timescales; those that a rollout's lag does not divide are left out.
TIMESCALE_LAGS_PS = (10, 20, 50)
LAG_RANGE_PS = (1.0, 200.0)
RECOMMENDED_LAG_PS = 20.0
RECOMMENDED_BURST_PS = 2.0
# N, CA, C of the residue.
FRAME_ATOMS = (6, 8, 14)
ALPHA_CARBON = (8, 6, 14, 10)
# Runs that training never sees.
HELD_OUT_PLAIN = 2
HELD_OUT_SEEDED_EVERY = 10
# Blocks of 1 ns are four slowest timescales: means over different ones are independent.
BLOCK_PS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes-md", type=float, default=30.0, help="cap on the dynamics")
    parser.add_argument("--minutes-train", type=float, default=25.0)
    parser.add_argument("--chains", type=int, default=512, help="rollout chains")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    runs = data_stage(options.out, options.minutes_md, options.seed)
    model = train_stage(options.out, runs, options.minutes_train, options.seed, options.device)
    validate_stage(options.out, runs, model, options.chains, options.seed)
    bundle(options.out)


def data_stage(out: Path, minutes: float, seed: int) -> list[Run]:
    """Make the dynamics, and settle which runs count, so that a rerun uses the same."""
    listing = out / "data.json"
    if not listing.exists():
        topology, positions = alanine_dipeptide()
        settings = ImplicitSettings(seed=seed)
        paths = generate_implicit(
            topology, positions, out / "data", settings=settings, seconds=60.0 * minutes
        )
        write_json(listing, {"runs": sorted(path.stem for path in paths)})
    names = json.loads(listing.read_text())["runs"]
    return [run for run in read_runs(out / "data") if run.name in names]


def is_held_out(run: Run) -> bool:
    index = int(run.name.split("-")[1])
    if run.kind == "plain":
        return index < HELD_OUT_PLAIN
    return index % HELD_OUT_SEEDED_EVERY == 0


def train_stage(
    out: Path, runs: list[Run], minutes: float, seed: int, device: str
) -> DenseDiffusion:
    """Train, or load the weights that are there."""
    topology, _ = alanine_dipeptide()
    heavy = [atom.index for atom in topology.atoms() if atom.element.symbol != "H"]
    torch.manual_seed(seed)
    model = DenseDiffusion(
        n_atoms=topology.getNumAtoms(),
        frame_atoms=FRAME_ATOMS,
        heavy_atoms=heavy,
        lag_min_ps=LAG_RANGE_PS[0],
        lag_max_ps=LAG_RANGE_PS[1],
    ).to(device)
    weights = out / "weights.safetensors"
    if not weights.exists():
        trained_on = [run.positions for run in runs if not is_held_out(run)]
        kept_out = [run.positions for run in runs if is_held_out(run)]
        pairs = TransitionPairs(trained_on, runs[0].spacing_ps, device)
        held_out = TransitionPairs(kept_out, runs[0].spacing_ps, device)
        fit_statistics(model, pairs, seed)
        settings = TrainSettings(minutes=minutes, seed=seed)
        record = train(
            model, pairs, settings, held_out=held_out, checkpoint=out / "training.checkpoint"
        )
        description = {
            "ns": round(len(pairs) * runs[0].spacing_ps / 1000.0, 1),
            "frames": len(pairs),
            "lags": "log-uniform, {:g} to {:g} ps".format(*LAG_RANGE_PS),
            "steps": record.steps,
            "batch_size": settings.batch_size,
            "condition_noise_nm": settings.condition_noise_nm,
            "seed": seed,
            "wall_minutes": round(record.minutes, 1),
            "device": device,
            "threads": torch.get_num_threads(),
            "held_out_loss_by_lag_ps": held_out_loss(model, held_out, settings, LAGS_PS, 4096),
            "history": record.history,
        }
        write_json(out / "training.json", description)
        partial = weights.with_suffix(".partial")
        save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, partial)
        os.replace(partial, weights)
    model.load_state_dict(load_file(weights, device=device))
    return model.eval()


def validate_stage(
    out: Path, runs: list[Run], model: DenseDiffusion, chains: int, seed: int
) -> None:
    """Measure the model against the dynamics and write the card."""
    if all((out / name).exists() for name in ("validation.json", "validation.png", "card.json")):
        return
    plain = [run for run in runs if run.kind == "plain"]
    bench = Bench(model, runs, seed)
    report: dict[str, Any] = {
        "md": bench.reference(),
        "one_step": {str(lag): bench.one_step(lag) for lag in LAGS_PS},
        "phi_positive": {str(lag): bench.escape(lag) for lag in (10, 100)},
    }
    samples = {}
    report["rollout"] = {}
    for lag in ROLLOUTS:
        report["rollout"][str(lag)], samples[lag] = bench.rollout(lag, chains)
    report["speed"] = bench.speed()
    write_json(out / "validation.json", report)
    draw(
        out / "validation.png",
        report,
        np.concatenate([torsions(r.positions) for r in plain]),
        samples,
    )

    topology, _ = alanine_dipeptide()
    write_json(out / "molecule.json", molecule_record(topology, plain[0].positions[0]))
    training = json.loads((out / "training.json").read_text())
    provenance = json.loads((out / "data" / "provenance.json").read_text())
    write_json(out / "card.json", card(model, report, training, provenance, bench))


def bundle(out: Path) -> None:
    """Put weights, card and molecule into one file, as `ScoreModel.load` reads it."""
    content = json.loads((out / "card.json").read_text())
    architecture = content.pop("architecture")
    molecule = json.loads((out / "molecule.json").read_text())
    propagator = DenseDiffusion(**architecture["hyperparameters"])
    propagator.load_state_dict(load_file(out / "weights.safetensors"))
    model = ScoreModel(propagator, Molecule.from_dict({"name": "ACE-ALA-NME", **molecule}), content)
    model.save(out / f"{content['name']}.safetensors")


class Bench:
    """The measurements; every model's figure stands beside the dynamics' own, with errors."""

    def __init__(self, model: DenseDiffusion, runs: list[Run], seed: int) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed + 7)
        self.runs = runs
        self.plain = [run for run in runs if run.kind == "plain"]
        self.held_out = [run for run in self.plain if is_held_out(run)]
        topology, _ = alanine_dipeptide()
        atoms = list(topology.atoms())
        bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
        hydrogens = {atom.index for atom in atoms if atom.element.symbol == "H"}
        self.heavy_bonds = [b for b in bonds if not hydrogens & set(b)]
        # (heavy atom, hydrogen)
        self.xh_bonds = [
            (i, j) if j in hydrogens else (j, i) for i, j in bonds if hydrogens & {i, j}
        ]
        neighbours: dict[int, list[int]] = {}
        for heavy, hydrogen in self.xh_bonds:
            neighbours.setdefault(heavy, []).append(hydrogen)
        self.methyls = [(c, *sorted(hs)) for c, hs in neighbours.items() if len(hs) == 3]

        frames = np.concatenate([run.positions for run in runs])
        self.xh_lengths = lengths(frames, self.xh_bonds).mean(0)
        self.methyl_signs = [float(np.sign(signed_volume(frames[0], m))) for m in self.methyls]
        spread = lengths(frames, self.heavy_bonds)
        low, high = spread.min(0), spread.max(0)
        # Widened by a quarter of the range seen in 100,000 frames on either side.
        margin = 0.25 * (high - low)
        self.windows = np.stack([low - margin, high + margin], axis=1)
        self.max_displacement = 1.5 * self._largest_displacement()

    def _largest_displacement(self) -> float:
        pairs = TransitionPairs([r.positions for r in self.runs], self.runs[0].spacing_ps)
        generator = torch.Generator().manual_seed(3)
        frame, later, _ = pairs.draw(200_000, *LAG_RANGE_PS, generator)
        moved = align_frames(later, frame, self.model.heavy.cpu()) - frame
        return float(torch.linalg.vector_norm(moved, dim=-1).max())

    @torch.no_grad()
    def jump(self, frames: np.ndarray, lag_ps: float) -> np.ndarray:
        """One propagator call a frame, in batches that fit the cache."""
        x = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)).to(self.device)
        result = []
        for part in x.split(512):
            noise = torch.randn(
                len(part), self.model.noise_size, generator=self.generator, device=self.device
            )
            lag = torch.full((len(part),), float(lag_ps), device=self.device)
            result.append(self.model(part - part.mean(1, keepdim=True), lag, noise).cpu())
        return torch.cat(result).numpy()

    def reference(self) -> dict[str, Any]:
        """The dynamics' own equilibrium, kinetics and how well this much of it knows them."""
        angles = [torsions(run.positions) for run in self.plain]
        half = len(angles) // 2
        first, second = np.concatenate(angles[:half]), np.concatenate(angles[half:])
        populations = np.stack([basin_populations(basins(*a.T)) for a in angles])
        return {
            "plain_ns": round(sum(len(a) for a in angles) * self.plain[0].spacing_ps / 1000.0, 1),
            "held_out_plain_ns": round(
                sum(len(r.positions) for r in self.held_out) * self.plain[0].spacing_ps / 1000.0, 1
            ),
            "frames_in_all": sum(len(run.positions) for run in self.runs),
            "populations": {
                name: measured(populations[:, k].mean(), sem(populations[:, k]))
                for k, name in enumerate(BASINS)
            },
            "jsd_split_half_bits": jsd_phi_psi(first, second),
            "jsd_split_half_left_bits": jsd_phi_psi(left_only(first), left_only(second)),
            "t2_ps": self._timescales(angles, 1),
        }

    def _timescales(
        self, angles: Sequence[np.ndarray], spacing_ps: int
    ) -> dict[str, dict[str, float]]:
        """Slowest timescale among the basins of phi < 0, by lag.

        Three basins, not fine cells: a cell that short data visits once looks like a slow state.
        """
        pieces = [left_pieces(a) for a in angles]

        def estimate(chosen: Sequence[int], stride: int) -> float:
            chains = [p for k in chosen for p in pieces[k] if len(p) > stride]
            return float(implied_timescales(chains, stride, spacing_ps, n_states=3)[0])

        rng = np.random.default_rng(5)
        result = {}
        for lag in TIMESCALE_LAGS_PS:
            if lag % spacing_ps == 0:
                stride = lag // spacing_ps
                draws = [
                    estimate(rng.integers(0, len(pieces), len(pieces)), stride) for _ in range(20)
                ]
                value = estimate(range(len(pieces)), stride)
                result[str(lag)] = measured(value, float(np.std(draws)))
        return result

    def one_step(self, lag: int) -> dict[str, Any]:
        """From held-out equilibrium frames: where do torsions go in one lag?"""
        result: dict[str, Any] = {}
        before = [torsions(run.positions[:-lag]) for run in self.plain]
        after = [torsions(run.positions[lag:]) for run in self.plain]
        kept = [is_held_out(run) for run in self.plain]
        result["md_all"] = kinetics(before, after)
        result["md_held_out"] = kinetics(
            [b for b, k in zip(before, kept, strict=True) if k],
            [a for a, k in zip(after, kept, strict=True) if k],
        )
        # Every fourth frame: more starts would not be more independent.
        starts = [run.positions[:-lag:4] for run in self.held_out]
        ends = [self.jump(x, lag) for x in starts]
        result["model"] = kinetics(
            [torsions(x) for x in starts], [torsions(y) for y in ends], spacing=4
        )
        start, end = np.concatenate(starts), np.concatenate(ends)
        md = np.concatenate([run.positions for run in self.held_out])
        result["geometry"] = self._geometry(start, end, md)
        return result

    def _geometry(self, start: np.ndarray, end: np.ndarray, md: np.ndarray) -> dict[str, Any]:
        heavy = lengths(end, self.heavy_bonds)
        outside = ((heavy < self.windows[:, 0]) | (heavy > self.windows[:, 1])).any(1)
        flips = np.sign(signed_volume(end, ALPHA_CARBON)) != np.sign(
            signed_volume(start, ALPHA_CARBON)
        )
        methyl = np.stack(
            [
                np.sign(signed_volume(end, m)) != s
                for m, s in zip(self.methyls, self.methyl_signs, strict=True)
            ]
        )
        far = np.linalg.norm(end - start, axis=-1).max(1) > self.max_displacement
        n = len(end)
        width = heavy.std(0) / lengths(md, self.heavy_bonds).std(0)
        shift = heavy.mean(0) - lengths(md, self.heavy_bonds).mean(0)
        angles = bond_angles(self.heavy_bonds)
        widths = [angle(end, *a).std() / angle(md, *a).std() for a in angles]
        xh = lengths(end, self.xh_bonds)
        return {
            "frames": n,
            "outside_bond_windows": share(outside),
            "beyond_max_displacement": share(far),
            "alpha_carbon_flips": share(flips),
            "methyl_flips_per_methyl_step": share(methyl.reshape(-1)),
            "heavy_bond_width_over_md": {
                "median": float(np.median(width)),
                "min": float(width.min()),
                "max": float(width.max()),
            },
            "heavy_bond_mean_shift_nm": {"rms": rms(shift), "max": float(np.abs(shift).max())},
            "heavy_angle_width_over_md": {
                "median": float(np.median(widths)),
                "max": float(np.max(widths)),
            },
            "xh_length_rms_error_nm": rms(xh - self.xh_lengths),
        }

    def escape(self, lag: int) -> dict[str, Any]:
        """From frames with phi > 0: the chance to be at phi < 0 one lag later.

        Left of zero means left of the barriers at 0 and 135 degrees.
        """

        def left(angles: np.ndarray) -> np.ndarray:
            return basins(*angles.T) < 3

        counts = {"md_all": [], "md_held_out": [], "model": []}
        for run in self.runs:
            if len(run.positions) <= lag:
                continue
            start = ~left(torsions(run.positions[:-lag]))
            if not start.any():
                continue
            gone = left(torsions(run.positions[lag:]))[start]
            counts["md_all"].append(gone)
            if is_held_out(run):
                counts["md_held_out"].append(gone)
                ends = self.jump(run.positions[:-lag][start][::2], lag)
                counts["model"].append(left(torsions(ends)))
        # Frames of one run are not independent: the error comes from the spread between runs.
        return {name: grouped_share(groups) for name, groups in counts.items()}

    def rollout(self, lag: int, chains: int) -> tuple[dict[str, Any], np.ndarray]:
        """Chains of jumps from equilibrium frames, with the gates and the X-H projection.

        A draw that fails a gate is counted and drawn again, at most four times; a chain whose last
        draw fails stays where it is. Methyl hydrogens that changed hands are exchanged back.
        """
        steps, discard = ROLLOUTS[lag]
        rng = np.random.default_rng(11)
        frames = np.concatenate([run.positions for run in self.plain])
        frames = frames[rng.choice(len(frames), chains, replace=False)]
        angles = np.empty((steps, chains, 2))
        tried = failed = stuck = methyl_flips = alpha_flips = 0
        for step in range(steps):
            waiting = np.arange(chains)
            result = frames.copy()
            for _ in range(5):
                start = frames[waiting]
                proposal = self._project(self.jump(start, lag))
                heavy = lengths(proposal, self.heavy_bonds)
                bad = ((heavy < self.windows[:, 0]) | (heavy > self.windows[:, 1])).any(1)
                bad |= (
                    np.linalg.norm(proposal - (start - start.mean(1, keepdims=True)), axis=-1).max(
                        1
                    )
                    > self.max_displacement
                )
                turned = np.sign(signed_volume(proposal, ALPHA_CARBON)) != np.sign(
                    signed_volume(start, ALPHA_CARBON)
                )
                tried += len(waiting)
                failed += int((bad | turned).sum())
                alpha_flips += int(turned.sum())
                good = ~(bad | turned)
                result[waiting[good]] = proposal[good]
                waiting = waiting[~good]
                if len(waiting) == 0:
                    break
            stuck += len(waiting)
            for methyl, sign in zip(self.methyls, self.methyl_signs, strict=True):
                flipped = np.sign(signed_volume(result, methyl)) != sign
                methyl_flips += int(flipped.sum())
                swap = result[flipped]
                swap[:, [methyl[1], methyl[2]]] = swap[:, [methyl[2], methyl[1]]]
                result[flipped] = swap
            frames = result
            angles[step] = torsions(frames)
            if step % 25 == 24:
                print(f"rollout, lag {lag} ps: step {step + 1}", file=sys.stderr, flush=True)
        kept = angles[discard:]
        sample = kept.reshape(-1, 2)
        md = [torsions(run.positions) for run in self.plain]
        all_md = np.concatenate(md)
        half = np.concatenate(md[len(md) // 2 :])
        held = np.concatenate([torsions(run.positions) for run in self.held_out])

        def thinned(count: int) -> np.ndarray:
            return sample[rng.choice(len(sample), min(count, len(sample)), replace=False)]

        groups = np.array_split(np.arange(chains), 8)
        by_group = np.stack(
            [basin_populations(basins(*kept[:, g].reshape(-1, 2).T)) for g in groups]
        )
        report = {
            "chains": chains,
            "steps": steps,
            "discarded": discard,
            "jsd_vs_md_all_bits": jsd_phi_psi(sample, all_md),
            "jsd_vs_md_held_out_bits": jsd_phi_psi(sample, held),
            "jsd_left_vs_md_all_bits": jsd_phi_psi(left_only(sample), left_only(all_md)),
            "jsd_left_vs_md_half_same_size_bits": jsd_phi_psi(
                left_only(thinned(len(half))), left_only(half)
            ),
            "populations": {
                name: measured(by_group[:, k].mean(), sem(by_group[:, k]))
                for k, name in enumerate(BASINS)
            },
            "t2_ps": self._timescales([kept[:, k] for k in range(chains)], lag),
            "failed_gate": measured(failed / tried, np.sqrt(failed) / tried),
            "stuck_chain_steps": stuck,
            "alpha_carbon_flips": alpha_flips,
            "methyl_flips_per_methyl_step": methyl_flips / (steps * chains * len(self.methyls)),
            "jsd_by_quarter_bits": [
                jsd_phi_psi(left_only(q.reshape(-1, 2)), left_only(all_md))
                for q in np.array_split(kept, 4)
            ],
        }
        return report, sample

    def _project(self, frames: np.ndarray) -> np.ndarray:
        frames = frames.copy()
        for (heavy, hydrogen), length in zip(self.xh_bonds, self.xh_lengths, strict=True):
            bond = frames[:, hydrogen] - frames[:, heavy]
            unit = bond / np.linalg.norm(bond, axis=-1, keepdims=True)
            frames[:, hydrogen] = frames[:, heavy] + length * unit
        return frames

    def speed(self) -> dict[str, float]:
        """Jumps per second, eager, on this machine as it was."""
        frames = self.plain[0].positions
        rates = {}
        for batch in (1, 512):
            self.jump(frames[:batch], 100.0)
            began, count = time.monotonic(), 0
            while time.monotonic() - began < 2.0:
                self.jump(frames[:batch], 100.0)
                count += batch
            rates[f"jumps_per_second_batch_{batch}"] = round(count / (time.monotonic() - began), 1)
        return rates


def torsions(positions: np.ndarray) -> np.ndarray:
    """(T, 2): phi and psi in radians."""
    return np.stack([dihedral(positions, PHI), dihedral(positions, PSI)], axis=-1)


def left_only(angles: np.ndarray) -> np.ndarray:
    return angles[basins(*angles.T) < 3]


def left_pieces(angles: np.ndarray) -> list[np.ndarray]:
    """Basins along the stretches that stay at phi < 0."""
    state = basins(*angles.T)
    left = state < 3
    edges = np.flatnonzero(np.diff(left.astype(int))) + 1
    return [s for s, k in zip(np.split(state, edges), np.split(left, edges), strict=True) if k[0]]


def kinetics(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], spacing: int = 1
) -> dict[str, Any]:
    """Mean cosines and hop probabilities with errors from blocks of 1 ns."""
    size = BLOCK_PS // spacing
    blocks = [
        (b[i : i + size], a[i : i + size])
        for b, a in zip(before, after, strict=True)
        for i in range(0, len(b) - size // 2, size)
    ]
    cosines = np.stack([mean_cos_change(b, a) for b, a in blocks])
    start, end = np.concatenate(before), np.concatenate(after)
    mean = mean_cos_change(start, end)
    hops = hop_probabilities(basins(*start.T), basins(*end.T))
    counts = np.bincount(basins(*start.T), minlength=len(BASINS))
    by_block = np.stack([hop_probabilities(basins(*b.T), basins(*a.T)) for b, a in blocks])
    return {
        "pairs": len(start),
        "mean_cos_dphi": measured(mean[0], sem(cosines[:, 0])),
        "mean_cos_dpsi": measured(mean[1], sem(cosines[:, 1])),
        # Rows that start fewer than 200 times say nothing.
        "hops": {
            f"{BASINS[i]} -> {BASINS[j]}": measured(hops[i, j], sem(by_block[:, i, j]))
            for i in range(3)
            for j in range(3)
            if counts[i] >= 200 and i != j
        },
    }


def lengths(positions: np.ndarray, bonds: Sequence[tuple[int, int]]) -> np.ndarray:
    first, second = (list(side) for side in zip(*bonds, strict=True))
    return np.linalg.norm(positions[:, second] - positions[:, first], axis=-1)


def bond_angles(bonds: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    found = []
    for a, b in bonds:
        for c, d in bonds:
            if (a, b) < (c, d) and len({a, b} & {c, d}) == 1:
                (middle,) = {a, b} & {c, d}
                first, last = sorted({a, b, c, d} - {middle})
                found.append((first, middle, last))
    return found


def angle(positions: np.ndarray, first: int, middle: int, last: int) -> np.ndarray:
    u, v = positions[:, first] - positions[:, middle], positions[:, last] - positions[:, middle]
    cosine = (u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)
    return np.arccos(cosine)


def measured(value: float, error: float) -> dict[str, float]:
    return {"value": float(value), "error": float(error)}


def sem(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def share(flags: np.ndarray) -> dict[str, float]:
    return measured(flags.mean(), np.sqrt(max(flags.sum(), 1)) / len(flags))


def grouped_share(groups: Sequence[np.ndarray]) -> dict[str, float]:
    """Share of True with its error by the ratio estimator over groups."""
    n = np.array([len(g) for g in groups], dtype=float)
    k = np.array([g.sum() for g in groups], dtype=float)
    mean = k.sum() / n.sum()
    error = np.sqrt(((k - mean * n) ** 2).sum()) / n.sum()
    return {**measured(mean, error), "starts": int(n.sum()), "runs": len(groups)}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((np.asarray(values) ** 2).mean()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    def plain(value: Any) -> Any:
        # JSON has no NaN: a figure that could not be measured is null.
        if isinstance(value, dict):
            return {k if isinstance(k, str) else f"{k:g}": plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float):
            return float(f"{value:.6g}") if np.isfinite(value) else None
        return value

    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain(content), indent=1) + "\n")
    os.replace(partial, path)


def draw(
    path: Path, report: dict[str, Any], md: np.ndarray, samples: dict[int, np.ndarray]
) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(14, 8.5), constrained_layout=True)
    panels = [("MD, plain runs", md)]
    panels += [(f"rollout, lag {lag} ps", samples[lag]) for lag in (10, 100)]
    for axis, (title, angles) in zip(axes[0], panels, strict=False):
        counts, x, y = np.histogram2d(
            *np.rad2deg(angles).T, bins=72, range=[[-180, 180], [-180, 180]], density=True
        )
        with np.errstate(divide="ignore"):
            energy = -np.log(counts.T)
        energy -= energy[np.isfinite(energy)].min()
        mesh = axis.pcolormesh(x, y, energy, vmin=0, vmax=8, cmap="viridis")
        axis.set(title=title, xlabel="phi / degrees", ylabel="psi / degrees", aspect="equal")
    figure.colorbar(mesh, ax=axes[0, -1], label="free energy / kT")

    one = report["one_step"]
    lags = [int(lag) for lag in one]
    axis = axes[1, 0]
    for name, colour in (("mean_cos_dphi", "C0"), ("mean_cos_dpsi", "C1")):
        for source, style in (("md_all", "-"), ("md_held_out", ":"), ("model", "o")):
            values = [one[str(lag)][source][name]["value"] for lag in lags]
            errors = [one[str(lag)][source][name]["error"] for lag in lags]
            axis.errorbar(
                lags, values, errors, fmt=style, color=colour, label=f"{name[9:]} {source}"
            )
    axis.set(xscale="log", xlabel="lag / ps", ylabel="mean cos of change", title="one step")
    axis.legend(fontsize=8)

    axis = axes[1, 1]
    for k, lag in enumerate(lags):
        for hop, found in one[str(lag)]["model"]["hops"].items():
            known = one[str(lag)]["md_held_out"]["hops"].get(hop)
            if known and known["value"] > 0 and found["value"] > 0:
                axis.errorbar(
                    known["value"],
                    found["value"],
                    found["error"],
                    known["error"],
                    fmt="o",
                    ms=4,
                    color=plt.get_cmap("plasma")(k / len(lags)),
                )
    axis.plot([1e-3, 1], [1e-3, 1], "k-", lw=0.5)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="MD (held out)",
        ylabel="model",
        title="hop probabilities, phi < 0 (dark: 1 ps, light: 200 ps)",
    )

    axis = axes[1, 2]
    for key, label in (
        ("heavy_bond_width_over_md", "bonds"),
        ("heavy_angle_width_over_md", "angles"),
    ):
        median = [one[str(lag)]["geometry"][key]["median"] for lag in lags]
        most = [one[str(lag)]["geometry"][key]["max"] for lag in lags]
        axis.plot(lags, median, "o-", label=f"{label}, median")
        axis.plot(lags, most, "^:", label=f"{label}, widest")
    axis.axhline(1.0, color="k", lw=0.5)
    axis.set(xscale="log", xlabel="lag / ps", ylabel="width over MD's", title="heavy atoms")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def card(
    model: DenseDiffusion,
    report: dict[str, Any],
    training: dict[str, Any],
    provenance: dict[str, Any],
    bench: Bench,
) -> dict[str, Any]:
    settings = provenance["settings"]
    one = report["one_step"][f"{RECOMMENDED_LAG_PS:g}"]
    rollout = report["rollout"][f"{RECOMMENDED_LAG_PS:g}"]
    gates = {
        "max_displacement_nm": round(bench.max_displacement, 4),
        "bond_windows_nm": [
            [i, j, round(float(low), 5), round(float(high), 5)]
            for (i, j), (low, high) in zip(bench.heavy_bonds, bench.windows, strict=True)
        ],
    }
    return {
        "name": "ala2-implicit",
        "description": (
            "Alanine dipeptide (ACE-ALA-NME) in IMPLICIT solvent (GB/OBC), all 22 atoms. Trained on"
            " implicit-solvent dynamics only: its equilibrium and rates are those of that model,"
            " not of explicit water."
        ),
        "architecture": {"name": "dense-diffusion", "hyperparameters": model.hyperparameters},
        "lag_range_ps": list(LAG_RANGE_PS),
        "recommended_lag_ps": RECOMMENDED_LAG_PS,
        "recommended_burst_ps": RECOMMENDED_BURST_PS,
        "temperature_K": settings["temperature_K"],
        "force_field": settings["force_field"],
        "solvent": "implicit (GB/OBC, amber99_obc.xml)",
        "constraints": "HBonds",
        "training": {
            **{k: v for k, v in training.items() if k != "history"},
            "dynamics": {
                k: settings[k]
                for k in ("friction_per_ps", "step_fs", "hydrogen_mass_amu", "spacing_ps", "seed")
            },
            "versions": {
                "openmm": openmm.Platform.getOpenMMVersion(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
        "fidelity": {
            "lag_ps": RECOMMENDED_LAG_PS,
            "jsd_phi_psi_bits": {
                "value": rollout["jsd_left_vs_md_half_same_size_bits"],
                "md_split_half": report["md"]["jsd_split_half_left_bits"],
                "note": "phi < 0 side, as many frames as half of the plain dynamics",
            },
            "populations": {"model": rollout["populations"], "md": report["md"]["populations"]},
            "implied_timescale_ps": {
                "model": {lag: r["t2_ps"] for lag, r in report["rollout"].items()},
                "md": report["md"]["t2_ps"],
            },
            "mean_cos_dpsi": {
                "model": one["model"]["mean_cos_dpsi"],
                "md": one["md_all"]["mean_cos_dpsi"],
                "md_held_out": one["md_held_out"]["mean_cos_dpsi"],
            },
            "gate_failure_fraction": rollout["failed_gate"],
            "chirality_flip_fraction": one["geometry"]["alpha_carbon_flips"],
            "heavy_bond_width_over_md": one["geometry"]["heavy_bond_width_over_md"],
            "phi_positive_escape": report["phi_positive"],
        },
        **gates,
        "limits": [
            "Implicit solvent only: in explicit water this model's jumps follow another free-energy"
            " surface and other rates than the water's.",
            "One molecule, 300 K, one friction (1/ps): the rates are those of Langevin"
            " dynamics at that friction.",
            "The slowest relaxation at phi < 0 takes about one recommended lag: longer jumps give"
            " equilibrium samples there, and rates of slower processes only.",
            "phi > 0 was seen only in short seeded runs; exchange with phi < 0 is rare and the"
            " model's rates for it are not established.",
            "At lags of a few ps the solute's frame alone is not Markov (velocities are forgotten):"
            " chains of short jumps have other rates than the dynamics.",
            "Draws that fail a gate are drawn again, and failures are commoner among large moves:"
            " redrawing makes the chain a little slower than the model itself.",
            "There is no Metropolis test: the sampled law is the model's, with the errors listed"
            " under fidelity.",
            "Lengths of bonds to hydrogen are only approximate until they are projected, and a"
            " methyl's hydrogens may come back in the other order.",
        ],
    }


if __name__ == "__main__":
    main()
