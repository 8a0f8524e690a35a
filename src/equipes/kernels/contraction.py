"""Symmetric contractions for frozen models on a device: values, and cotangents of the features, without autograd.

Tensors on a GPU go to Triton, all others to plain torch (to Triton's interpreter with `EQUIPES_KERNEL=triton`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from equipes.kernels import kernel_name
from equipes.kernels.polynomials import PolynomialTable


def contract(
    table: PolynomialTable,
    A: Tensor,
    coefficients: Tensor,
    types: Tensor,
    groups: Sequence[Tensor] | None = None,
) -> Tensor:
    """m_M = Σ_t c[M, t] Π_{k in t} A_k, channel by channel.

    Args:
        table: the polynomials; the couplings are not looked at.
        A: `[N, inputs · C]`, channels last.
        coefficients: `[n_species, coefficients, C]`, c.
        types: `[N]` int64, the species of each atom.
        groups: the atoms of each species, `[n_s]` int64, which a GPU works on one after the other; None: all atoms as
            they come. What is in no group may get anything, and so may what is in them more than once.

    Returns:
        `[N, outputs · C]`.

    Raises:
        ValueError: operands that do not fit.
    """
    check_shapes(table, A, coefficients, types)
    if _by_triton(table, A):
        from equipes.kernels.triton import contraction as on_triton

        return on_triton.contract(table, A, coefficients, types, groups)
    return reference_contract(table, A, coefficients, types)


def contract_reverse(
    table: PolynomialTable,
    A: Tensor,
    coefficients: Tensor,
    types: Tensor,
    groups: Sequence[Tensor] | None,
    cotangents: Tensor,
) -> Tensor:
    """From the cotangents of m, `[N, outputs · C]`, those of A, `[N, inputs · C]`; see `contract`.

    Raises:
        ValueError: operands that do not fit.
    """
    check_shapes(table, A, coefficients, types)
    if tuple(cotangents.shape) != (len(A), table.outputs * coefficients.shape[2]):
        raise ValueError(f"the cotangents of {len(A)} atoms have the shape {tuple(cotangents.shape)}")
    if _by_triton(table, A):
        from equipes.kernels.triton import contraction as on_triton

        return on_triton.contract_reverse(table, A, coefficients, types, groups, cotangents)
    return reference_contract_reverse(table, A, coefficients, types, cotangents)


def check_shapes(table: PolynomialTable, A: Tensor, coefficients: Tensor, types: Tensor) -> None:
    """Raises `ValueError` where a kernel would read beyond its operands."""
    _, n, channels = coefficients.shape
    if n != table.n_coefficients or tuple(A.shape) != (len(types), table.inputs * channels):
        raise ValueError(
            f"polynomials of {table.inputs} components with {table.n_coefficients} coefficients do not fit features "
            f"{tuple(A.shape)} and coefficients {tuple(coefficients.shape)} of {len(types)} atoms"
        )


def _by_triton(table: PolynomialTable, A: Tensor) -> bool:
    known = A.dtype in (torch.float32, torch.float64) and table.n_coefficients > 0
    return known and kernel_name(A.device.type) == "triton"


def reference_contract(table: PolynomialTable, A: Tensor, coefficients: Tensor, types: Tensor) -> Tensor:
    """The truth in plain torch, with all monomials written down."""
    channels = coefficients.shape[2]
    features = A.unflatten(1, (table.inputs, channels))
    factors, terms, output = _indices(table, A.device)
    monomials = [
        torch.stack([features.index_select(1, each) for each in degree]).prod(0) for degree in factors
    ]
    # [N, coefficients, C]
    added = torch.cat(monomials, dim=1).index_select(1, terms) * coefficients.index_select(0, types)
    return A.new_zeros(len(A), table.outputs, channels).index_add(1, output, added).flatten(1)


def reference_contract_reverse(
    table: PolynomialTable, A: Tensor, coefficients: Tensor, types: Tensor, cotangents: Tensor
) -> Tensor:
    """See `contract_reverse`."""
    with torch.enable_grad():
        features = A.detach().requires_grad_()
        m = reference_contract(table, features, coefficients, types)
        (found,) = torch.autograd.grad(m, features, cotangents)
    return found


@lru_cache(maxsize=32)
def _indices(
    table: PolynomialTable, device: torch.device
) -> tuple[tuple[tuple[Tensor, ...], ...], Tensor, Tensor]:
    """Factors `[terms]` by degree and place; the term of each coefficient, and the component that it adds to."""

    def there(values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device)

    factors = tuple(
        tuple(there(rows[:, k]) for k in range(degree))
        for degree, (rows, _) in enumerate(table.degrees, start=1)
    )
    counts = np.concatenate([np.diff(begin) for _, begin in table.degrees])
    return factors, there(np.repeat(np.arange(len(counts)), counts)), there(table.output)
