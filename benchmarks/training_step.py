"""How long one training step takes, native engine against the reference kernel, in one run.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py

A step is everything from a batch to updated parameters: energies, forces, loss, gradient, AdamW. The model is 4 layers,
l_max 2, 32 features, both parities, radial network 2×64, 5 Å, float32. Kernels take turns, and medians are
printed, since a shared machine is noisy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import machine
import torch

from equipes.data import LabelledGraph, Units, forces_rms, mean_neighbors, read_frames
from equipes.data.dataset import GraphDataset
from equipes.kernels import KERNELS
from equipes.models import build
from equipes.training.losses import Loss, label_counts, weighted_mean

CASES = (("ethanol", 5), ("aspirin", 5), ("aspirin", 1))
CUTOFF = 5.0


def stepper(batch: LabelledGraph, scale: float) -> Callable[[], None]:
    """One step on a batch, with a model of its own."""
    symbols = ("H", "C", "O")
    potential = build(
        "nequip", symbols, {"r_max": CUTOFF, "avg_num_neighbors": mean_neighbors([batch.graph])}
    ).train()
    optimizer = torch.optim.AdamW([p for p in potential.parameters() if p.requires_grad], lr=1e-4, fused=True)
    loss, counts = Loss(scale=scale), label_counts(batch)
    weights = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prediction = potential(batch.graph, stress=False)
        weighted_mean(loss.sums(prediction, batch), counts, weights).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    kernels = list(KERNELS)
    print("| batch | edges | " + " | ".join(f"{kernel}, ms" for kernel in kernels) + " | ratio |")
    print("|---|---|" + "---|" * (len(kernels) + 1))
    for molecule, size in CASES:
        path = options.shared / "data" / "rmd17" / f"rmd17_{molecule}_train_01.npz"
        frames = read_frames(path, units=Units(energy="kcal/mol"))[:size]
        dataset = GraphDataset(frames, CUTOFF)
        batch = LabelledGraph.batch([dataset[index] for index in range(size)])
        step = stepper(batch, forces_rms(frames))
        times: dict[str, list[float]] = {kernel: [] for kernel in kernels}
        for repeat in range(options.repeats + 2):
            for kernel in kernels:
                os.environ["EQUIPES_KERNEL"] = kernel
                began = time.perf_counter()
                step()
                if repeat >= 2:  # the first ones allocate
                    times[kernel].append(1e3 * (time.perf_counter() - began))
        medians = [statistics.median(times[kernel]) for kernel in kernels]
        cells = " | ".join(f"{median:.1f}" for median in medians)
        print(
            f"| {molecule} × {size} | {batch.graph.n_edges} | {cells} | {medians[-1] / medians[0]:.1f} |",
            flush=True,
        )
    print("\n" + machine.sentence(machine.conditions()))


if __name__ == "__main__":
    main()
