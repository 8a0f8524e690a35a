"""Real spherical harmonics in e3nn's order and sign, differentiable to any order."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from equipes.clebsch_gordan import wigner_3j

MAX_L = 6


@cache
def _raising(l: int) -> np.ndarray:
    """`[2l+1, 3, 2l+3]`: the tensor that takes Y_l and Y_1 to Y_{l+1}.

    The coupling of Y_l and Y_1 to degree l+1 is proportional to Y_{l+1} (Schur's lemma); the factor, sign included,
    follows from the value at the pole, where only m = 0 is not zero and Y_l = sqrt(2l+1).
    """
    tensor = wigner_3j(l, 1, l + 1)
    at_pole = tensor[l, 1, l + 1] * np.sqrt(2 * l + 1) * np.sqrt(3)
    return tensor * (np.sqrt(2 * l + 3) / at_pole)


@cache
def raising_matrix(l: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[3 (2l+1), 2l+3]`: from the products of Y_l and Y_1, Y_1 innermost, to Y_{l+1}."""
    return torch.tensor(_raising(l).reshape(3 * (2 * l + 1), 2 * l + 3), dtype=dtype).to(device)


def spherical_harmonics(l_max: int, directions: Tensor) -> Tensor:
    """Y_lm of unit vectors for l = 0..l_max.

    Component normalisation: Σ_m Y_lm² = 2l + 1. The order is e3nn's: y is the polar axis, and Y_1 ∝ (x, y, z). Each
    Y_{l+1} is a polynomial in the direction built from Y_l and Y_1, so nothing is singular at the poles and autograd
    is exact to any order.

    Args:
        l_max: highest degree, 0 to 6.
        directions: `[..., 3]` unit vectors.

    Returns:
        `[..., (l_max+1)²]`, degree after degree.

    Raises:
        ValueError: l_max is out of range.

    >>> spherical_harmonics(1, torch.tensor([0.0, 1.0, 0.0])).tolist()
    [1.0, 0.0, 1.7320507764816284, 0.0]
    """
    if not 0 <= l_max <= MAX_L:
        raise ValueError(f"l_max must be from 0 to {MAX_L}, not {l_max}")
    harmonics = [torch.ones_like(directions[..., :1])]
    if l_max > 0:
        y1 = directions * 3**0.5
        harmonics.append(y1)
        for l in range(1, l_max):
            product = harmonics[l].unsqueeze(-1) * y1.unsqueeze(-2)  # [..., 2l+1, 3]
            harmonics.append(product.flatten(-2) @ raising_matrix(l, directions.dtype, directions.device))
    return torch.cat(harmonics, dim=-1)
