"""The symmetric contraction for devices: plain torch against the layer, Triton's interpreter against plain torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from equipes.kernels import kernel_name
from equipes.kernels import triton as ours
from equipes.kernels.contraction import (
    contract,
    contract_reverse,
    reference_contract,
    reference_contract_reverse,
)
from equipes.kernels.polynomials import PolynomialTable
from equipes.kernels.triton.writer import Kernel
from made_up_gpu import compile_for_an_h100
from test_contraction_native import layer_of

EXACT = 1e-12
SINGLE = 3e-6

CASES = {
    "two bodies": ("0e + 1o", "0e + 1o", 1, 4),
    "three bodies": ("0e + 1o + 2e", "0e + 1o", 2, 3),
    "four bodies": ("0e + 1o + 2e", "0e + 1o", 3, 2),
    "five bodies": ("0e + 1o", "0e", 4, 2),
    "to l = 3": ("0e + 1o + 2e + 3o", "0e", 3, 2),
    "l = 4": ("0e + 1o + 2e + 3o + 4e", "0e + 1o", 2, 1),
    "both parities": ("0o + 0e + 1o + 1e", "0o + 0e + 1o + 1e", 2, 3),
    # Two channels for each lane; tiles that are not full, in two programs; whole tiles in three programs.
    "64 channels": ("0e + 1o", "0e + 1o", 2, 64),
    "33 channels": ("0e + 1o", "0e", 2, 33),
    "96 channels": ("0e + 1o", "0e", 1, 96),
    # One component of A reaches nothing, and one of m gets nothing.
    "uncoupled": ("0e + 1o + 2o", "0e + 1e", 1, 2),
}


@dataclass(frozen=True, eq=False)
class Operands:
    """Of the last species there are no atoms; those of a group come in any order."""

    table: PolynomialTable
    A: Tensor
    coefficients: Tensor
    types: Tensor
    groups: tuple[Tensor, ...]
    g: Tensor

    def to(self, where: torch.dtype | str) -> Operands:
        A, coefficients, g = (t.to(where) for t in (self.A, self.coefficients, self.g))
        groups = self.groups if isinstance(where, torch.dtype) else tuple(t.to(where) for t in self.groups)
        types = self.types if isinstance(where, torch.dtype) else self.types.to(where)
        return Operands(self.table, A, coefficients, types, groups, g)

    def results(self, *, grouped: bool = True) -> tuple[Tensor, Tensor]:
        given = self.table, self.A, self.coefficients, self.types, self.groups if grouped else None
        return contract(*given), contract_reverse(*given, self.g)

    def expected(self) -> tuple[Tensor, Tensor]:
        given = self.table, self.A, self.coefficients, self.types
        return reference_contract(*given), reference_contract_reverse(*given, self.g)


def operands_of(case: str, n: int = 5) -> Operands:
    layer = layer_of(*CASES[case])
    torch.manual_seed(n)
    A = torch.randn(n, layer.irreps_in.dim, dtype=torch.float64)
    types = torch.arange(n) % 3
    couplings = torch.as_tensor(layer.table.couplings, dtype=torch.float64)
    coefficients = (couplings @ layer.weight_rows()).detach()
    groups = tuple(torch.nonzero(types == s).squeeze(1).flip(0) for s in range(4))
    g = torch.randn(n, layer.irreps_out.dim, dtype=torch.float64)
    return Operands(layer.table, A, coefficients, types, groups, g)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels run; they are chosen by the variable on the CPU, by themselves on a GPU."""
    if not ours.installed():
        pytest.skip("Triton is not installed (extra gpu)")
    if request.param == "cpu":
        monkeypatch.setenv("EQUIPES_KERNEL", "triton")
    else:
        monkeypatch.delenv("EQUIPES_KERNEL", raising=False)
    assert kernel_name(request.param) == "triton"
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_plain_torch_is_the_layer(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPES_KERNEL", "reference")
    given = operands_of(case)
    layer = layer_of(*CASES[case])
    A = given.A.clone().requires_grad_()
    m = layer._reference(A, given.types)
    (by_A,) = torch.autograd.grad(m, A, given.g)
    for found, expected in zip(given.results(), (m.detach(), by_A), strict=True):
        assert error(found, expected) < EXACT


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_are_plain_torch(case: str, device: str) -> None:
    given = operands_of(case).to(device)
    for found, expected in zip(given.results(), given.expected(), strict=True):
        assert error(found, expected) < EXACT


def test_groups_change_no_bit(device: str) -> None:
    given = operands_of("three bodies").to(device)
    for one, other in zip(given.results(), given.results(grouped=False), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", ["three bodies", "64 channels"])
def test_single_precision(case: str, device: str) -> None:
    given = operands_of(case).to(device)
    for found, expected in zip(given.to(torch.float32).results(), given.expected(), strict=True):
        assert found.dtype == torch.float32
        assert error(found, expected) < SINGLE


@pytest.mark.parametrize("most", [7, 54])
def test_many_terms_in_several_kernels(most: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from equipes.kernels.triton import contraction as module

    given = operands_of("four bodies", 3).to(device)
    parts = module.parts(given.table, most)
    assert len(parts) > 1
    sizes = [sum(root.size() for root in part.values()) for part in parts]
    assert sum(sizes) == given.table.n_coefficients and most - 1 <= min(sizes) <= max(sizes) <= most
    monkeypatch.setattr(module, "MOST_COEFFICIENTS", most)
    for found, expected in zip(given.results(), given.expected(), strict=True):
        assert error(found, expected) < EXACT


def test_atoms_do_not_see_each_other(device: str) -> None:
    """What one is that means nothing, and comes several times, as in padding, does not matter to others."""
    given = operands_of("three bodies", 6).to(device)
    A = given.A.clone()
    A[5] = torch.nan
    groups = tuple(torch.cat([atoms, torch.full_like(atoms[:1], 5)]) for atoms in given.groups)
    m = contract(given.table, A, given.coefficients, given.types, groups)
    dA = contract_reverse(given.table, A, given.coefficients, given.types, groups, given.g)
    for found, expected in zip((m, dA), given.expected(), strict=True):
        assert error(found[:5], expected[:5]) < EXACT


def test_operands_in_any_place(device: str) -> None:
    """Not contiguous, and every second atom of a longer list."""
    given = operands_of("three bodies").to(device)
    wide = torch.stack([given.A, torch.full_like(given.A, torch.nan)], dim=2)[..., 0]
    groups = tuple(torch.stack([atoms, atoms + 10**9], dim=1)[:, 0] for atoms in given.groups)
    c = given.coefficients.transpose(0, 1).contiguous().transpose(0, 1)
    types = torch.stack([given.types, given.types + 10**9], dim=1)[:, 0]
    found = contract(given.table, wide, c, types, groups)
    assert not wide.is_contiguous() and not c.is_contiguous() and not types.is_contiguous()
    assert torch.equal(found, given.results()[0])


def test_without_atoms_and_without_terms(device: str) -> None:
    given = operands_of("three bodies").to(device)
    nobody = tuple(atoms[:0] for atoms in given.groups)
    m = contract(given.table, given.A[:0], given.coefficients, given.types[:0], nobody)
    assert m.shape == (0, given.g.shape[1])
    nothing = PolynomialTable(
        2, 1, ((np.zeros((0, 1), int), np.zeros(1, int)),), np.zeros(0, int), np.zeros((0, 0))
    )
    A, c = torch.ones(3, 8, device=device), torch.ones(1, 0, 4, device=device)
    types = torch.zeros(3, dtype=torch.int64, device=device)
    m = contract(nothing, A, c, types)
    assert m.shape == (3, 4) and not m.any()
    assert not contract_reverse(nothing, A, c, types, None, torch.ones(3, 4, device=device)).any()


def test_operands_that_do_not_fit() -> None:
    given = operands_of("three bodies")
    for A, c, types in (
        (given.A[:, 1:], given.coefficients, given.types),
        (given.A, given.coefficients[:, 1:], given.types),
        (given.A, given.coefficients, given.types[1:]),
    ):
        with pytest.raises(ValueError, match="polynomials of 9 components"):
            contract(given.table, A, c, types)
    with pytest.raises(ValueError, match="cotangents of 5 atoms"):
        contract_reverse(given.table, given.A, given.coefficients, given.types, None, given.g[1:])


@pytest.mark.skipif(not ours.installed(), reason="Triton is not installed (extra gpu)")
def test_the_host_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that are said to be on a GPU and hold nothing: looking at a number in one raises."""
    from equipes.kernels.triton import contraction as module

    grids: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "start", lambda code, grid, operands, **options: grids.append(grid))
    monkeypatch.delenv("EQUIPES_KERNEL", raising=False)
    given = operands_of("33 channels")
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.no_grad():

        def there(tensor: Tensor) -> Tensor:
            return torch.empty_like(mode.from_tensor(tensor), device="cuda")

        groups = tuple(there(atoms) for atoms in given.groups)
        A, c, g, types = (there(t) for t in (given.A, given.coefficients, given.g, given.types))
        operands = given.table, A, c, types, groups
        found = contract(*operands), contract_reverse(*operands, g)
        assert [t.device.type for t in found] == ["cuda"] * 2
    # A program for each atom and tile of channels.
    assert grids == [(5, 2)] * 2


@pytest.mark.skipif(not ours.installed(), reason="Triton is not installed (extra gpu)")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_for_an_h100_nothing_is_spilled(dtype: torch.dtype) -> None:
    """The last layer of MACE-MP-0; `benchmarks/gpu_kernels.py --resources` looks at the first as well."""
    from equipes.kernels.triton.contraction import assemble

    table = layer_of("0e + 1o + 2e + 3o", "0e", 3, 1).table
    for kind in ("forward", "reverse"):
        for assembly in assemble(table, 128, dtype, kind):
            assert assembly.local_bytes == 0 and assembly.registers <= 200
            assert not {"atom", "red", "mma", "wgmma"} & set(assembly.ptx.replace(".", " ").split())
            assert ("fma.rn.f64" if dtype == torch.float64 else "fma.rn.f32") in assembly.ptx


@pytest.mark.skipif(not ours.installed(), reason="Triton is not installed (extra gpu)")
def test_arguments_as_a_gpu_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a launch but the launch, for a GPU that is made up: types, warps, and no number compiled in."""
    from equipes.kernels.triton import contraction as module
    from equipes.kernels.triton.launch import OPTIONS, compiled

    found = []

    def warm_up(code: Kernel, grid: tuple[int, int], operands: list[Tensor], **options: int) -> None:
        found.append(compiled(code).warmup(*operands, grid=grid, **OPTIONS | options))

    compile_for_an_h100(monkeypatch)
    monkeypatch.setattr(module, "start", warm_up)
    monkeypatch.setenv("EQUIPES_KERNEL", "triton")
    operands_of("64 channels", 1).to(torch.float32).results()
    assert [list(each.src.signature.values()) for each in found] == [
        ["*fp32"] * 3 + ["*i64"] * 2,
        ["*fp32"] * 4 + ["*i64"] * 2,
    ]
    assert not any(each.src.constants for each in found)
    # 64 channels are two for each lane of a warp.
    assert [each.metadata.num_warps for each in found] == [1, 1]


def test_places_in_rows_need_64_bits() -> None:
    """A million atoms have more numbers in A than 2³¹."""
    from equipes.kernels.triton.contraction import Shape, kernels

    table = operands_of("three bodies").table
    for kind in ("forward", "reverse"):
        (code,) = kernels(table, Shape.of(table, 128, torch.float32), kind, 1000)
        assert "i = tl.load(order + tl.program_id(0)).to(tl.int64)" in code.text
        assert "c += tl.load(types + i).to(tl.int64) * " in code.text
        assert len(re.findall(r"\w+ \+= i \* \d+ \+ u", code.text)) == (2 if kind == "forward" else 3)
