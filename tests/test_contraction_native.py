"""The native symmetric contraction against plain torch: values, first and second derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equipes.irreps import Irreps
from equipes.kernels import native
from equipes.kernels.native.contraction import supports
from equipes.nn import SymmetricContraction

pytestmark = pytest.mark.skipif(native.module() is None, reason="the native code was not built")

CASES = [
    ("0e + 1o + 2e + 3o", "0e", 3),
    ("0e + 1o + 2e + 3o", "0e + 1o + 2e", 2),
    ("0e + 1o + 2e", "0e + 1o", 3),
    ("0e + 1o", "0e + 1o + 2e", 4),
    ("0o + 0e + 1o + 1e", "0o + 0e + 1o + 1e", 3),
    ("0e + 1o + 2e + 3o + 4e", "0e + 1o", 2),
    ("0e", "0e", 1),
]


def layer_of(irreps_in: str, irreps_out: str, correlation: int, channels: int) -> SymmetricContraction:
    def wide(irreps: str) -> Irreps:
        return Irreps(" + ".join(f"{channels}x{irrep}" for irrep in irreps.split(" + ")))

    torch.manual_seed(0)
    return SymmetricContraction(wide(irreps_in), wide(irreps_out), correlation, 4).double()


def everything(layer: SymmetricContraction, A: Tensor, types: Tensor, *, use_native: bool) -> list[Tensor]:
    """m; a scalar's derivatives by A and the weights; and the derivatives of a scalar made of those."""
    compute = layer if use_native else layer._reference
    weights = list(layer.weights.values())
    A = A.clone().requires_grad_()
    g = torch.linspace(-1, 1, A.shape[0] * layer.irreps_out.dim, dtype=A.dtype)
    g = g.view(A.shape[0], -1).requires_grad_()
    m = compute(A, types)
    first = torch.autograd.grad((m * g).sum(), [A, *weights], create_graph=True)
    mixed = sum((x * torch.cos(3 * torch.arange(x.numel(), dtype=x.dtype)).view_as(x)).sum() for x in first)
    second = torch.autograd.grad(mixed, [A, g, *weights], allow_unused=True, materialize_grads=True)
    return [m.detach(), *(x.detach() for x in first), *second]


def check(layer: SymmetricContraction, n: int, *, types: Tensor | None = None) -> None:
    torch.manual_seed(n)
    A = torch.randn(n, layer.irreps_in.dim, dtype=torch.float64)
    assert supports(layer.table, A)
    types = torch.randint(0, 3, (n,)) if types is None else types  # the last species has no atoms
    found = everything(layer, A, types, use_native=True)
    expected = everything(layer, A, types, use_native=False)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max() + 1e-300


@pytest.mark.parametrize(("irreps_in", "irreps_out", "correlation"), CASES)
def test_like_reference(irreps_in: str, irreps_out: str, correlation: int) -> None:
    check(layer_of(irreps_in, irreps_out, correlation, 8), 11)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 35),
    st.integers(1, 14),
    st.sampled_from(["0e", "0e + 1o", "0e + 1o + 2e"]),
)
def test_any_shape(correlation: int, channels: int, n: int, irreps: str) -> None:
    check(layer_of(irreps, "0e" if correlation == 4 else "0e + 1o", correlation, channels), n)


def test_threads_change_nothing_but_round_off() -> None:
    layer = layer_of("0e + 1o + 2e", "0e + 1o", 3, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        check(layer, 10)
        check(layer, 2)
    finally:
        torch.set_num_threads(before)


def test_float32() -> None:
    layer = layer_of("0e + 1o + 2e + 3o", "0e", 3, 20).float()
    A, types = torch.randn(9, layer.irreps_in.dim), torch.randint(0, 4, (9,))
    found, expected = layer(A, types), layer._reference(A, types)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_no_atoms() -> None:
    layer = layer_of("0e + 1o", "0e", 3, 4)
    A = torch.zeros(0, layer.irreps_in.dim, dtype=torch.float64, requires_grad=True)
    assert layer(A, torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_what_native_cannot_do_torch_does() -> None:
    layer = layer_of("0e", "0e", 5, 2)  # degree 5
    A = torch.randn(3, 2, dtype=torch.float64)
    assert not supports(layer.table, A)
    assert torch.equal(layer(A, torch.tensor([0, 1, 2])), layer._reference(A, torch.tensor([0, 1, 2])))
