"""Does a potential know what it does not know? Uncertainty against the true error of the force on every atom.

    python benchmarks/uncertainty.py train silicon ethanol --out runs     # three quick models each
    python benchmarks/uncertainty.py errors silicon ethanol 7net-0 --out runs
    python benchmarks/uncertainty.py ways silicon ethanol 7net-0 --out runs
    python benchmarks/uncertainty.py cost --out runs

`silicon`: mlearn's crystals, strained cells and vacancies up to 843 K, three in four of them; asked of the others, of
hotter ones up to the melt, and of surfaces. `ethanol`: 100 frames of rMD17; asked of its test frames and of
malonaldehyde, whose carbonyl groups it never saw. `7net-0`: every other of the random MPtrj frames; asked of the rest,
and of frames at high temperature and pressure. The data are looked for in `--shared` (../shared by default).

`errors` prints Spearman's rank correlation with the length of the force's error over atoms, for a committee of three
and for the feature distance; `ways` that of other ways to make a distance of the same features; `cost` times.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import machine
import numpy as np
import torch
from ase.io import read, write

import equipes
from equipes.calculators import WithDispersion
from equipes.data import Frame, read_frames
from equipes.models.familiarity import _fitted, _shrunk, fit
from equipes.training.inputs import read_splits
from equipes.training.loading import load_config
from equipes.training.metrics import batches_of
from equipes.training.uncertainty import against_errors, predict_with_uncertainty, rank_correlation

SIZE = ["model.architecture=nequip", "model.l_max=1", "model.num_features=16", "model.num_layers=3"]
SETTINGS = {
    "silicon": [*SIZE, "model.r_max=4.5", "train.batch_size=2", "data.n_val=0.1"],
    "ethanol": [*SIZE, "model.r_max=5", "train.batch_size=5", "data.n_train=100", "data.n_val=50"],
}
UNITS = "data.units={energy: kcal/mol, length: Ang}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "errors", "ways", "cost"])
    parser.add_argument("cases", nargs="*", default=["7net-0"], help="silicon, ethanol, 7net-0")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for case in options.cases:
        {"train": train, "errors": errors, "ways": ways, "cost": cost}[options.what](case, options)
    print(machine.sentence(machine.conditions()))


def train(case: str, options: argparse.Namespace) -> None:
    """The members of a committee, which differ in the seed of weights, order and validation frames."""
    for seed in range(1, options.members + 1):
        out = options.out / f"{case}-{seed}"
        if (out / "summary.json").exists():
            continue
        if case == "silicon":
            write(options.out / "silicon.xyz", silicon(options.shared)["train"])
            data = [f"data.train={options.out / 'silicon.xyz'}"]
        else:
            data = [f"data.train={options.shared}/data/rmd17/rmd17_ethanol_train_01.npz", UNITS]
        command = [*data, *SETTINGS[case], f"train.max_minutes={options.minutes}", f"train.seed={seed}"]
        subprocess.run([sys.executable, "-m", "equipes", "train", *command, "--out", str(out)], check=True)


def silicon(shared: Path) -> dict[str, list[ase.Atoms]]:
    """The frames of mlearn by temperature; three in four of the cool ones are for training."""
    sets: dict[str, list[ase.Atoms]] = {"train": [], "like training": []}
    cool = 0
    for part in ("train", "test"):
        for atoms in read(shared / "data" / "mlearn" / f"Si_{part}.xyz", ":"):
            found = re.search(r"at (\d+) K", atoms.info["description"])
            if atoms.info["config_type"] == "Surface":
                sets.setdefault("surfaces", []).append(atoms)
            elif found and int(found[1]) > 843:
                sets.setdefault(f"{found[1]} K", []).append(atoms)
            else:
                sets["like training" if cool % 4 == 3 else "train"].append(atoms)
                cool += 1
    return sets


def potentials_and_sets(
    case: str, options: argparse.Namespace
) -> tuple[list[equipes.Potential], dict[str, list[Frame]]]:
    """The models of a case, and the frames to ask them, by kind; those under "train" are the reference."""
    data = options.shared / "data"
    if case == "silicon":
        sets = {}
        for name, structures in silicon(options.shared).items():
            path = options.out / f"silicon {name}.xyz"
            write(path, structures)
            sets[name] = read_frames(str(path))
        sets["train"] = training_frames(options.out / "silicon-1")
    elif case == "ethanol":
        units = equipes.data.Units(energy="kcal/mol", length="Ang")
        sets = {
            "train": training_frames(options.out / "ethanol-1"),
            "like training": read_frames(str(data / "rmd17" / "rmd17_ethanol_test_01.npz"), units=units)[
                :200
            ],
            "malonaldehyde": read_frames(
                str(data / "rmd17" / "rmd17_malonaldehyde_test_01.npz"), units=units
            )[:200],
        }
    else:
        potential = equipes.load("7net-0")
        frames = [
            frame
            for name in ("mptrj-random-1k", "mpf-TP", "random-TP")
            for frame in read_frames(str(data / "mattersim_benchmarks" / f"{name}.xyz"))
            if len(frame.atoms) < 80 and set(frame.atoms.symbols) <= set(potential.species)
        ]
        by_file = {Path(f.source).stem: [g for g in frames if g.source == f.source] for f in frames}
        mptrj = by_file["mptrj-random-1k"]
        sets = {"train": mptrj[::2], "like training": mptrj[1::2]}
        sets |= {name: by_file[name][:150] for name in ("mpf-TP", "random-TP")}
        batches = (equipes.AtomGraph.batch(b) for b in batches_of(sets["train"], potential.cutoff))
        potential.familiarity = fit(potential, batches)
        return [potential], sets
    return [
        equipes.load(options.out / f"{case}-{k}" / "model.safetensors") for k in range(1, options.members + 1)
    ], sets


def training_frames(run: Path) -> list[Frame]:
    """The frames that the first member was fitted to."""
    config = load_config(run / "config.yaml")
    return read_splits(config.data, config.train.seed).train


def errors(case: str, options: argparse.Namespace) -> None:
    """Rank correlations of committee and distance with the error, set by set and over all but the training frames."""
    potentials, sets = potentials_and_sets(case, options)
    del sets["train"]
    print(f"\n{case}: {potentials[0].familiarity.facts['calibration']}\n")
    print("| frames | atoms | error, median | committee | distance | distance, median | above 1 |")
    print("|---|---|---|---|---|---|---|")
    everything: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"forces_std": [], "feature_distance": []}
    for name, frames in sets.items():
        predictions = predict_with_uncertainty(potentials, frames)
        own = {measure: against_errors(frames, predictions, measure) for measure in everything}
        for measure, pair in own.items():
            everything[measure].append(pair)
        print_row(name, own)
    print_row(
        "all",
        {m: tuple(np.concatenate(part) for part in zip(*p, strict=True)) for m, p in everything.items()},
    )
    print(flush=True)


def print_row(name: str, own: dict[str, Any]) -> None:
    distances, sizes = own["feature_distance"]
    committee = rank_correlation(*own["forces_std"])
    print(
        f"| {name} | {len(distances)} | {1000 * np.median(sizes):.0f} meV/Å | "
        f"{'' if committee is None else f'{committee:.2f}'} | {rank_correlation(distances, sizes):.2f} | "
        f"{np.median(distances):.2g} | {100 * np.mean(distances > 1):.1f} % |"
    )


Way = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ways(case: str, options: argparse.Namespace) -> None:
    """Other distances of the same features: to the mean, to more or other reference atoms, without whitening."""
    potentials, sets = potentials_and_sets(case, options)
    potential = potentials[0]
    seen = {name: features_and_errors(potential, frames) for name, frames in sets.items()}
    features, types, _ = seen.pop("train")
    print(f"\n{case}\n\n| way | {' | '.join(seen)} | all |\n|---|{'---|' * (len(seen) + 1)}")
    for name, way in distances_by(features, types, len(potential.species)).items():
        pairs = [(way(f, t).numpy(), e) for f, t, e in seen.values()]
        pairs.append(tuple(np.concatenate(part) for part in zip(*pairs, strict=True)))
        found = [rank_correlation(*(part[np.isfinite(pair[0])] for part in pair)) for pair in pairs]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in found)} |", flush=True)
    print()


def features_and_errors(
    potential: equipes.Potential, frames: list[Frame]
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    features, types, sizes = [], [], []
    predictions = iter(predict_with_uncertainty([potential], frames))
    for batch in batches_of(frames, potential.cutoff):
        graph = equipes.AtomGraph.batch(batch)
        features.append(potential.features(graph).double())
        types.append(potential.type_of_number[graph.numbers])
    for frame, prediction in zip(frames, predictions, strict=True):
        sizes.append(np.linalg.norm(prediction.forces - frame.forces, axis=1))
    return torch.cat(features), torch.cat(types), np.concatenate(sizes)


def distances_by(features: torch.Tensor, types: torch.Tensor, n_species: int) -> dict[str, Way]:
    """Ways to measure, made of the features of the training frames."""
    reference = _fitted(features, types, n_species)
    spread = features.std(dim=0)
    pooled = _shrunk(features - reference.means[types])
    variances, directions = torch.linalg.eigh(pooled)
    common = directions * variances.clamp(min=1e-9 * float(variances[-1])).rsqrt()

    def nearest(points: dict[int, torch.Tensor], white: Way) -> Way:
        def way(f: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            found = torch.full((len(t),), torch.inf, dtype=torch.float64)
            for s in set(t.tolist()) & set(points):
                found[t == s] = torch.cdist(white(f[t == s], s), points[s]).amin(1)
            return found

        return way

    def own_metric(f: torch.Tensor, s: Any) -> torch.Tensor:
        return (f - reference.means[s]) @ reference.whitening[s]

    def scaled(f: torch.Tensor, _: Any) -> torch.Tensor:
        return f / spread

    def to_mean(f: torch.Tensor, t: torch.Tensor, whitening: Callable[[int], torch.Tensor]) -> torch.Tensor:
        found = torch.full((len(t),), torch.inf, dtype=torch.float64)
        for s in set(t.tolist()) & set(types.tolist()):
            found[t == s] = ((f[t == s] - reference.means[s]) @ whitening(s)).norm(dim=1)
        return found

    kinds = sorted(set(types.tolist()))
    order = torch.randperm(len(types), generator=torch.Generator().manual_seed(0))

    def random(k: int, white: Way) -> dict[int, torch.Tensor]:
        return {s: white(features[order][types[order] == s][:k], s) for s in kinds}

    apart = {s: farthest(own_metric(features[types == s], s), 400) for s in kinds}
    return {
        "nearest of 400 random, own metric (used)": reference.distances,
        "nearest of 100 random, own metric": nearest(random(100, own_metric), own_metric),
        "nearest of 4000 random, own metric": nearest(random(4000, own_metric), own_metric),
        "nearest of 400 far from each other": nearest(apart, own_metric),
        "nearest of 400 random, scaled only": nearest(random(400, scaled), scaled),
        "mean of the species (Mahalanobis)": lambda f, t: to_mean(f, t, lambda s: reference.whitening[s]),
        "mean of the species, metric of all": lambda f, t: to_mean(f, t, lambda _: common),
    }


def farthest(points: torch.Tensor, k: int) -> torch.Tensor:
    """k of the points, each as far as possible from those before."""
    chosen = [0]
    nearest = (points - points[0]).norm(dim=1)
    while len(chosen) < min(k, len(points)):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).norm(dim=1))
    return points[chosen]


def cost(_: str, __: argparse.Namespace) -> None:
    """Milliseconds of energy, forces and stress of SevenNet-0 for silicon, of the distance and of D3 beside it."""
    from ase.build import bulk

    potential = equipes.load("7net-0", species=["Si"])
    cell = bulk("Si", cubic=True) * (2, 2, 2)
    rattled = [cell.copy() for _ in range(10)]
    for k, atoms in enumerate(rattled):
        atoms.rattle(0.05, seed=k)
    graphs = (equipes.AtomGraph.from_atoms(atoms, potential.cutoff) for atoms in rattled)
    potential.familiarity = fit(potential, graphs)
    print("| atoms | frozen, energy to stress | exact | feature distance | D3 alone |\n|---|---|---|---|---|")
    for n in (2, 4):
        atoms = bulk("Si", cubic=True) * (n, n, n)
        atoms.rattle(0.05, seed=1)
        fast, exact = equipes.Calculator(potential), equipes.Calculator(potential, exact=True)
        times = [median_ms(c.calculate, atoms, ["forces", "stress"]) for c in (fast, exact)]
        times.append(median_ms(fast.feature_distances, atoms))
        times.append(median_ms(WithDispersion(fast, "PBE")._dispersion, atoms))
        print(f"| {len(atoms)} | " + " | ".join(f"{value:.1f} ms" for value in times) + " |", flush=True)


def median_ms(function: Callable[..., object], *arguments: object, repeats: int = 7) -> float:
    function(*arguments)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        found.append(1000 * (time.perf_counter() - start))
    return float(np.median(found))


if __name__ == "__main__":
    main()
