"""What an edge knows of its length: radial basis, cutoff, and the network that makes weights of them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class BesselBasis(nn.Module):
    """b_n(x) = sin(n π x) / (π x), n = 1..`size`, of the reduced distance x = r / r_c (Gasteiger et al., ICLR 2020).

    With `trainable` the roots n are parameters.
    """

    def __init__(self, size: int, *, trainable: bool = False) -> None:
        super().__init__()
        roots = torch.arange(1, size + 1, dtype=torch.float64)
        self.roots: Tensor
        if trainable:
            self.roots = nn.Parameter(roots)
        else:
            self.register_buffer("roots", roots)

    def forward(self, x: Tensor) -> Tensor:
        """`[E]` -> `[E, size]`."""
        x = x.unsqueeze(-1)
        return torch.sin(self.roots.to(x.dtype) * math.pi * x) / (math.pi * x)


def polynomial_cutoff(x: Tensor, p: int) -> Tensor:
    """u(x): 1 at x = 0, 0 from x = 1 on, with p - 1 continuous derivatives at 0 and two at 1 (Gasteiger et al. 2020).

    Args:
        x: reduced distances, any shape.
        p: the power; larger keeps neighbours longer.
    """
    u = (
        1
        - (p + 1) * (p + 2) / 2 * x**p
        + p * (p + 2) * x ** (p + 1)
        - p * (p + 1) / 2 * x ** (p + 2)
    )  # fmt: skip
    return u * (x < 1)


class ScalarMLP(nn.Module):
    """A network on scalars without bias: SiLU between linear layers, weights of order one, scales in the forward pass.

    Layer k computes `h W_k c_k` with c_0 = 1/√fan_in and c_k = √2/√fan_in, as NequIP has it; W_k starts uniform in
    (-√3, √3), that is with unit variance.
    """

    def __init__(self, n_in: int, hidden: list[int], n_out: int) -> None:
        super().__init__()
        widths = [n_in, *hidden, n_out]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(a, b).uniform_(-math.sqrt(3), math.sqrt(3))) for a, b in pairwise(widths)
        )

    def forward(self, h: Tensor) -> Tensor:
        """`[..., n_in]` -> `[..., n_out]`."""
        for k, weight in enumerate(self.weights):
            if k > 0:
                h = nn.functional.silu(h)
            h = h @ (weight * math.sqrt((1 if k == 0 else 2) / weight.shape[0]))
        return h
