"""Low-rank adapters: weights that move only along a product of two thin matrices (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from equipes.nn.linear import Linear, SpeciesLinear


class LowRankAdapters(nn.Module):
    """Each matrix W of some linear layers is W_0 + A B / √r, with A `[in, r]`, B `[r, out]`, and W_0 as it was.

    A matrix mixes the channels of one irrep, and so does A B: whatever they are, the model stays equivariant. A starts
    random with unit variance and B with zero, so that the model starts as it was; with the root of the rank r below
    (Kalajdzievski, arXiv:2312.03732) a step of one learning rate changes W as much as it would without adapters.

    The products are always merged: the model is an ordinary one at any moment, which any kernel runs, and which can be
    saved, averaged and converted. Its gradient by W gives those of the factors, dL/dA = dL/dW Bᵀ / √r and
    dL/dB = Aᵀ dL/dW / √r. In a step: `backward()`, `pull_back()`, `optimizer.step()`, `merge()`.

    A tensor with more than two axes counts as a matrix of all but its last axis by the last.

    Args:
        model: has the layers. Its weights are changed in place by `merge`.
        names: parameters to adapt; see `adaptable`.
        rank: of the products; where a matrix is thinner than that, its width.
        seed: of the A.
    """

    def __init__(self, model: nn.Module, names: Collection[str], rank: int, *, seed: int = 0) -> None:
        super().__init__()
        self._weights = {name: model.get_parameter(name) for name in names}
        generator = torch.Generator().manual_seed(seed % 2**63)
        for name, weight in self._weights.items():
            matrix = weight.detach().flatten(0, -2)
            width = min(rank, *matrix.shape)
            left = torch.randn(matrix.shape[0], width, generator=generator, dtype=torch.float64)
            # Buffers, not parameters: no gradient ever flows to them by itself.
            self.register_buffer(_key("left", name), left.to(matrix))
            self.register_buffer(_key("right", name), matrix.new_zeros(width, matrix.shape[1]))
            self.register_buffer(_key("base", name), matrix.clone())

    def factors(self) -> list[tuple[str, Tensor]]:
        """The A and B of each weight, with its name: what an optimiser moves."""
        return [(name, factor) for name, _, left, right, _ in self._each() for factor in (left, right)]

    @torch.no_grad()
    def pull_back(self) -> None:
        """Set the gradients of the factors from those of the weights, and take the latter away."""
        for _, weight, left, right, _ in self._each():
            if weight.grad is None:
                left.grad = right.grad = None
                continue
            gradient = weight.grad.flatten(0, -2) / math.sqrt(len(right))  # [in, out]
            left.grad, right.grad = gradient @ right.T, left.T @ gradient
            weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Set the model's weights to what the factors say."""
        for _, weight, left, right, base in self._each():
            weight.copy_((base + left @ right / math.sqrt(len(right))).view_as(weight))

    def _each(self) -> Iterator[tuple[str, nn.Parameter, Tensor, Tensor, Tensor]]:
        for name, weight in self._weights.items():
            left, right, base = (self.get_buffer(_key(kind, name)) for kind in ("left", "right", "base"))
            yield name, weight, left, right, base


def adaptable(model: nn.Module) -> list[str]:
    """Names of the parameters of a model that are matrices of its linear layers."""
    names = []
    for prefix, module in model.named_modules():
        if isinstance(module, Linear | SpeciesLinear):
            names += [f"{prefix}.weights.{name}" for name in module.weights]
        elif isinstance(module, nn.Linear):
            names.append(f"{prefix}.weight")
    return names


def _key(kind: str, name: str) -> str:
    """Names of buffers have no dots."""
    return f"{kind}:{name.replace('.', '/')}"
