"""The errors on the validation frames while training runs, added up over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipes.data import GraphDataset, LabelledGraph
from equipes.models import Potential
from equipes.training.losses import Loss, label_counts, weighted_mean

METRICS = (
    "val_energy_mae_mev_per_atom",
    "val_energy_rmse_mev_per_atom",
    "val_forces_mae_mev_per_ang",
    "val_forces_rmse_mev_per_ang",
    "val_stress_mae_mev_per_ang3",
    "val_stress_rmse_mev_per_ang3",
)


def validation_batches(dataset: GraphDataset, size: int, rank: int, world: int) -> list[LabelledGraph]:
    """The share of one process of the validation frames, in batches that are made once."""
    mine = range(rank, len(dataset), world)
    return [
        LabelledGraph.batch([dataset[index] for index in mine[start : start + size]])
        for start in range(0, len(mine), size)
    ]


def validate(
    potential: Potential, batches: Sequence[LabelledGraph], loss: Loss, weights: Tensor, *, stress: bool
) -> dict[str, float | None]:
    """`val_loss` (the training loss with the given weights) and the errors `METRICS`, None where nothing is labelled.

    Processes call it together, each with its own batches; all get the same numbers.
    """
    device = potential.device
    sums = torch.zeros(3, 4, dtype=torch.float64, device=device)  # loss, count, absolute, square
    for batch in batches:
        batch = batch.to(device) if device.type != "cpu" else batch
        prediction = potential(batch.graph, forces=True, stress=stress)
        n_atoms = batch.graph.atoms_per_structure
        sums[:, 0] += loss.sums(prediction, batch)
        sums[:, 1] += label_counts(batch)
        residuals = [(prediction.energy - batch.energy) / n_atoms, prediction.forces - batch.forces]
        if prediction.stress is not None:
            residuals.append(prediction.stress - batch.stress)
        labels = (batch.energy, batch.forces, batch.stress)
        for row, residual, label in zip(sums, residuals, labels, strict=False):
            residual = residual[~label.isnan()]
            row[2] += residual.abs().sum()
            row[3] += residual.square().sum()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    sums = sums.cpu()
    if not stress:
        sums[2] = 0
    result: dict[str, float | None] = {"val_loss": float(weighted_mean(sums[:, 0], sums[:, 1], weights))}
    for index, (mae, rmse) in enumerate(zip(METRICS[::2], METRICS[1::2], strict=True)):
        _, count, absolute, square = sums[index].tolist()
        result[mae] = 1e3 * absolute / count if count else None
        result[rmse] = 1e3 * (square / count) ** 0.5 if count else None
    return result
