"""The loss: energy per atom, forces and virial per atom, each in units of the training forces rms.

With sigma the rms of the training forces (eV/Å) the residuals are

    energy  (E - E_ref) / n_atoms / (sigma · 1 Å)             one per structure
    forces  (F - F_ref) / sigma                               three per atom
    stress  (S - S_ref) V / n_atoms / (sigma · 1 Å)           nine per structure

so that the same weights suit molecules and metals, and vacuum around a slab does not dilute its stress. Each term is
the mean over the labels that exist: over the joint batch of all processes, not the mean of their means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from equipes.data import LabelledGraph

TERMS = ("energy", "forces", "stress")


class Predicted(Protocol):
    """The fields of `equipes.Prediction` that the loss reads."""

    @property
    def energy(self) -> Tensor: ...

    @property
    def forces(self) -> Tensor | None: ...

    @property
    def virial(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Loss:
    """Residuals summed per term: squares ("mse"), absolute values ("mae") or Huber's mixture of both ("huber").

    Of forces, "mae" takes the length of an atom's residual, which does not depend on how the axes lie, times √3 so that
    it is as large as the sum of three components of the same rms.

    `scale` is the training forces rms in eV/Å.
    """

    kind: str = "mse"
    scale: float = 1.0
    huber_delta: float = 0.1

    def sums(self, predicted: Predicted, batch: LabelledGraph) -> Tensor:
        """[3] float64: sums of the energy, forces and stress terms over the labels that exist.

        Labels that are NaN contribute neither value nor gradient.
        """
        per_atom = 1.0 / batch.graph.atoms_per_structure.to(batch.energy.dtype)  # [S]
        total = self._sum((predicted.energy - batch.energy) * per_atom, batch.energy)
        terms = [total, torch.zeros_like(total), torch.zeros_like(total)]
        if predicted.forces is not None:
            residual = predicted.forces - batch.forces
            if self.kind == "mae":
                terms[1] = self._sum_lengths(residual, batch.forces)
            else:
                terms[1] = self._sum(residual, batch.forces)
        if predicted.virial is not None:
            # stress = -virial / volume: multiplied by the volume, nothing is divided by that of a molecule.
            volume = batch.graph.volumes[:, None, None]  # [S, 1, 1]
            residual = (predicted.virial + batch.stress * volume) * per_atom[:, None, None]
            terms[2] = self._sum(residual, batch.stress)
        return torch.stack(terms)

    def _sum(self, residual: Tensor, label: Tensor) -> Tensor:
        # where() on the residual itself passes a gradient of exactly zero to what is not labelled.
        residual = torch.where(label.isnan(), 0.0, residual) / self.scale
        if self.kind == "mse":
            return residual.square().sum()
        if self.kind == "mae":
            return residual.abs().sum()
        # Twice torch's definition, so that small residuals weigh what they weigh in "mse".
        zero = torch.zeros_like(residual)
        return 2 * torch.nn.functional.huber_loss(residual, zero, reduction="sum", delta=self.huber_delta)

    def _sum_lengths(self, residual: Tensor, label: Tensor) -> Tensor:
        residual = torch.where(label.isnan(), 0.0, residual) / self.scale  # [N, 3]
        squares = residual.square().sum(1)
        # The length has no gradient at zero; there it is made one of zero.
        zero = squares == 0
        return math.sqrt(3) * torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt()).sum()


def label_counts(batch: LabelledGraph) -> Tensor:
    """[3] float64: how many energy, force and stress numbers the batch is labelled with."""
    counts = [(~label.isnan()).sum() for label in (batch.energy, batch.forces, batch.stress)]
    return torch.stack(counts).to(torch.float64)


def weighted_mean(sums: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """The loss: `sum_q weights[q] · sums[q] / counts[q]`; a term without labels is zero."""
    return (weights * sums / counts.clamp(min=1)).sum()
