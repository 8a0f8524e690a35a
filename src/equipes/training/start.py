"""Where a training begins, if its reference energies are far from what bonds make of them.

With reference energies of isolated atoms every atom in a bond is several eV below them, and a network of random weights
would spend its first hundreds of steps on nothing else. The energy is linear in the weights of a readout, so that the
part of it that the features of random layers already explain is found at once, by ridge regression.
"""

from __future__ import annotations

import re

import torch

from equipes.data import GraphDataset
from equipes.models import Potential

_READOUTS = (
    r"model\.readout\.weights\.\d+",
    r"model\.readout\.\d+\.weights\.0e",
    r"model\.readouts\.0\.weights\.0",
)
_STRUCTURES = 64
_RIDGE = 1e-3


def begin_at_mean_energies(potential: Potential, dataset: GraphDataset, scale: float) -> bool:
    """Move the weights of the (first, or last linear) readout so that energies begin near their labels.

    Nothing happens where the rms of what the references leave is below `scale`, that of the forces in eV/Å, times 1 Å,
    or where the architecture has no readout in which the energy is linear; invariant models have a bias for it.

    Args:
        potential: with random weights, or one whose reference energies became others; changed in place.
        dataset: training frames; up to 64 of those that are labelled with an energy are looked at, and as many isolated
            atoms.

    Returns:
        Whether the weights were moved.
    """
    names = [
        name for name, _ in potential.named_parameters() if any(re.fullmatch(p, name) for p in _READOUTS)
    ]
    labelled = [index for index, frame in enumerate(dataset.frames) if frame.energy is not None]
    bonded = [index for index in labelled if dataset.graphs[index].n_edges]
    if not names or not bonded:
        return False
    # Atoms alone, which have some energy of the network in SevenNet, shall stay where they are.
    alone = [index for index in labelled if not dataset.graphs[index].n_edges][:_STRUCTURES]
    weights = potential.get_parameter(names[-1])
    if not weights.requires_grad:  # frozen by a fine-tuning
        return False
    columns, rest = [], []
    for index in [*bonded[:: -(-len(bonded) // _STRUCTURES)], *alone]:
        graph, atoms = dataset.graphs[index], len(dataset.frames[index].atoms)
        energy = potential(graph, forces=False, stress=False).energy
        (gradient,) = torch.autograd.grad(energy.sum(), weights)
        columns.append(gradient.flatten().double() / atoms)
        rest.append((float(dataset.frames[index].energy or 0.0) - float(energy.detach())) / atoms)
    residual = torch.tensor(rest, dtype=torch.float64)  # [S] eV/atom
    if float(residual.square().mean().sqrt()) < scale:
        return False
    slopes = torch.stack(columns)  # [S, W]
    products = slopes @ slopes.T
    products += _RIDGE * products.diagonal().mean() * torch.eye(len(rest), dtype=torch.float64)
    step = slopes.T @ torch.linalg.solve(products, residual)
    with torch.no_grad():
        weights.add_(step.reshape(weights.shape).to(weights.dtype))
    return True
