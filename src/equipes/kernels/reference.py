"""Message passing in plain torch: the truth that every faster kernel is compared with. Differentiable to any order."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from equipes.graph import AtomGraph
from equipes.kernels.form import MessagePassingForm


@lru_cache(maxsize=256)
def _constants(
    form: MessagePassingForm, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], int, Tensor]:
    """Coupling matrices of the blocks and the order of the output, on the device."""
    couplings = [torch.tensor(block.coupling, dtype=dtype, device=device) for block in form.blocks]
    width, order = form.output_order
    return couplings, width, torch.tensor(order, device=device)


def message_passing(
    form: MessagePassingForm, x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph
) -> Tensor:
    """Sum of the messages at every atom; see `equipes.kernels.message_passing`."""
    n_edges, n_atoms = harmonics.shape[0], x.shape[0]
    couplings, width, order = _constants(form, x.dtype, x.device)
    sums: list[Tensor] = []
    for block, coupling in zip(form.blocks, couplings, strict=True):
        d1, mul = 2 * block.l1 + 1, block.multiplicity
        features = x[:, block.start : block.start + d1 * mul].unflatten(1, (d1, mul))
        neighbours = features.index_select(0, graph.sender)  # [E, 2l1+1, u]
        coupled = (harmonics @ coupling).unflatten(1, (-1, d1)) @ neighbours  # [E, (path, m3), u]
        block_weights = weights[:, block.first_weight : block.first_weight + block.n_paths * mul]
        pieces = coupled.split([count * (2 * l3 + 1) for l3, count in block.groups], dim=1)
        piece_weights = block_weights.split([count * mul for _, count in block.groups], dim=1)
        for (l3, count), piece, weight in zip(block.groups, pieces, piece_weights, strict=True):
            messages = piece.unflatten(1, (count, 2 * l3 + 1)) * weight.view(n_edges, count, 1, mul)
            zeros = messages.new_zeros(n_atoms, count * (2 * l3 + 1) * mul)
            sums.append(zeros.index_add(0, graph.receiver, messages.flatten(1)))
    if not sums:
        return x.new_zeros(n_atoms, 0)
    return torch.cat(sums, dim=1).unflatten(1, (-1, width)).index_select(1, order).flatten(1)
