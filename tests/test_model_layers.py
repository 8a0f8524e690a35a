"""Layers one by one, against e3nn and the formulas of the papers.

Odd scalars need five NequIP layers to reach the energy, so no golden output sees them; these tests do.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import normalize2mom
from scipy import integrate
from torch import Tensor

from equipes.graph import AtomGraph, SpeciesGroups
from equipes.irreps import Irreps
from equipes.nn import ZBL, BesselBasis, Gate, Linear, ScalarMLP, SpeciesLinear, polynomial_cutoff
from equipes.nn.gate import SILU_SCALE, TANH_SCALE


@pytest.fixture(autouse=True)
def double() -> object:
    """Layers are built in the default number type; here everything is float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def transposed(x: Tensor, irreps: Irreps, *, to_e3nn: bool) -> Tensor:
    """From our blocks `[2l+1, multiplicity]` to e3nn's `[multiplicity, 2l+1]`, or back."""
    blocks = []
    for (mul, irrep), s in zip(irreps, irreps.slices(), strict=True):
        shape = (irrep.dim, mul) if to_e3nn else (mul, irrep.dim)
        blocks.append(x[:, s].unflatten(1, shape).transpose(1, 2).flatten(1))
    return torch.cat(blocks, dim=1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float(((actual - expected).abs().max() / expected.abs().max()).detach())


def test_scales_of_the_activations_are_the_reference_packages() -> None:
    assert pytest.approx(normalize2mom(torch.nn.functional.silu).cst, rel=1e-12) == SILU_SCALE
    assert pytest.approx(normalize2mom(torch.tanh).cst, rel=1e-12) == TANH_SCALE
    for scale, function in ((SILU_SCALE, lambda x: x / (1 + np.exp(-x))), (TANH_SCALE, np.tanh)):
        density = integrate.quad(lambda x, f=function: f(x) ** 2 * math.exp(-(x**2) / 2), -12, 12)[0]
        # Sampled by the reference, so near the second moment but not equal to it.
        assert scale == pytest.approx((density / math.sqrt(2 * math.pi)) ** -0.5, rel=5e-3)


@pytest.mark.parametrize(
    ("scalars", "gated"),
    [
        ("3x0e", "2x1o"),
        ("3x0e + 2x0o", "2x1e + 3x1o + 1x2e"),
        ("4x0e + 4x0o", "4x1e + 4x1o + 4x2e + 4x2o"),
        ("5x0e", ""),
    ],
)
def test_gate(scalars: str, gated: str) -> None:
    gate = Gate(Irreps(scalars), Irreps(gated))
    gates = Irreps(f"{sum(mul for mul, _ in Irreps(gated))}x0e") if gated else Irreps()
    silu, tanh = torch.nn.functional.silu, torch.tanh
    theirs = e3nn_nn.Gate(
        scalars,
        [silu if irrep.p == 1 else tanh for _, irrep in Irreps(scalars)],
        str(gates),
        [silu] * len(gates),
        gated,
    )
    assert Irreps(str(theirs.irreps_in)) == gate.irreps_in
    assert Irreps(str(theirs.irreps_out)) == gate.irreps_out
    x = torch.randn(7, gate.irreps_in.dim)
    expected = transposed(theirs(transposed(x, gate.irreps_in, to_e3nn=True)), gate.irreps_out, to_e3nn=False)
    assert relative_error(gate(x), expected) < 1e-13


PAIRS = [
    ("4x0e + 3x1o", "5x0e + 2x1o"),
    ("3x1o + 2x0o + 4x0e", "2x0o + 3x0e + 4x1o + 2x2e"),
    ("2x1e", "3x1e"),
]


@pytest.mark.parametrize(("irreps_in", "irreps_out"), PAIRS)
def test_linear(irreps_in: str, irreps_out: str) -> None:
    ours = Linear(Irreps(irreps_in), Irreps(irreps_out))
    theirs = o3.Linear(irreps_in, irreps_out, path_normalization="element")
    blocks = [
        ours.weights[str(irrep)].flatten() for irrep in Irreps(irreps_in).irreps if str(irrep) in ours.weights
    ]
    x = torch.randn(6, ours.irreps_in.dim)
    expected = theirs(transposed(x, ours.irreps_in, to_e3nn=True), torch.cat(blocks).detach())
    assert relative_error(ours(x), transposed(expected, ours.irreps_out, to_e3nn=False)) < 1e-13


@pytest.mark.parametrize(("irreps_in", "irreps_out"), PAIRS)
def test_self_connection(irreps_in: str, irreps_out: str) -> None:
    n_attributes, n_atoms = 3, 8
    ours = SpeciesLinear(Irreps(irreps_in), n_attributes, Irreps(irreps_out))
    theirs = o3.FullyConnectedTensorProduct(
        irreps_in, f"{n_attributes}x0e", irreps_out, shared_weights=True, internal_weights=False
    )
    order = [str(ins.i_in1) for ins in theirs.instructions]
    assert order == sorted(order)
    blocks = [
        ours.weights[str(irrep)].flatten() for irrep in Irreps(irreps_in).irreps if str(irrep) in ours.weights
    ]
    x, embedding = torch.randn(n_atoms, ours.irreps_in.dim), torch.randn(3, n_attributes)
    types = torch.tensor([0, 2, 0, 2, 2, 0, 2, 0])  # the second species is absent
    groups = SpeciesGroups.of(types, 3)
    expected = theirs(
        transposed(x, ours.irreps_in, to_e3nn=True), embedding[types], torch.cat(blocks).detach()
    )
    found = ours(x, embedding, groups)
    assert relative_error(found, transposed(expected, ours.irreps_out, to_e3nn=False)) < 1e-13


def test_linear_refuses_an_irrep_that_stands_twice() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        Linear(Irreps("2x0e + 3x0e"), Irreps("1x0e"))


@pytest.mark.parametrize("trainable", [False, True])
def test_bessel_basis(trainable: bool) -> None:
    basis = BesselBasis(8, trainable=trainable)
    assert bool(list(basis.parameters())) == trainable
    x = torch.linspace(0.01, 1.0, 40)
    expected = torch.tensor([[np.sinc(n * float(v)) * n for n in range(1, 9)] for v in x])
    assert relative_error(basis(x), expected) < 1e-13
    # Orthonormal on the unit ball up to one factor.
    grid = torch.linspace(1e-6, 1, 4001)
    values = basis(grid).detach() * grid.unsqueeze(1)
    gram = values.T @ values * (grid[1] - grid[0]) * 2 * math.pi**2
    assert (gram - torch.eye(8)).abs().max() < 1e-3


@pytest.mark.parametrize("p", [2, 5, 6])
def test_polynomial_cutoff(p: int) -> None:
    x = torch.linspace(0.05, 1.4, 28).requires_grad_()
    values = polynomial_cutoff(x, p)
    inside = x.detach()[x < 1].numpy()
    expected = 1 - sum(
        c * inside ** (p + k) for k, c in enumerate(((p + 1) * (p + 2) / 2, -p * (p + 2), p * (p + 1) / 2))
    )
    assert np.abs(values.detach().numpy()[: len(inside)] - expected).max() < 1e-14
    assert (values[len(inside) :] == 0).all()
    assert (values.diff() <= 0).all()
    edge = torch.tensor([1 - 1e-4, 1.0, 1 + 1e-4]).requires_grad_()
    for order in range(3):
        # The value falls like (1-x)³, so that the first two derivatives are zero too.
        result = polynomial_cutoff(edge, p)
        for _ in range(order):
            (result,) = torch.autograd.grad(result.sum(), edge, create_graph=True)
        assert result[0].abs() < p**3 * 10 * (1e-4) ** (3 - order)
        assert (result[1:].abs() < 1e-10).all()


def test_scalar_network() -> None:
    network = ScalarMLP(4, [6, 5], 3)
    first, second, third = network.weights
    for weight in network.weights:
        assert weight.abs().max() <= math.sqrt(3)
    h = torch.randn(9, 4)
    silu = torch.nn.functional.silu
    expected = silu(silu(h @ first / 2) @ second * math.sqrt(2 / 6)) @ third * math.sqrt(2 / 5)
    assert relative_error(network(h), expected) < 1e-14
    linear = ScalarMLP(4, [], 1)
    assert relative_error(linear(h), h @ linear.weights[0] / 2) < 1e-14


def test_initial_weights_keep_the_size_of_signals() -> None:
    network = ScalarMLP(64, [128, 128], 64)
    h = torch.randn(500, 64)
    assert 0.5 < network(h).square().mean().item() < 2.0


def test_zbl() -> None:
    """Half of the repulsion to each end of a pair, by the formula of Ziegler, Biersack and Littmark."""
    from ase import Atoms

    graph = AtomGraph.from_atoms(Atoms("CuO", positions=[[0, 0, 0], [0.9, 0.4, -0.3]]), 3.0)
    lengths = graph.edge_vectors().norm(dim=1)
    energies = ZBL([29, 8], 5)(torch.tensor([0, 1]), lengths, lengths / 2.5, graph)
    r = math.sqrt(0.81 + 0.16 + 0.09)
    a = 0.46850 / (29**0.23 + 8**0.23)
    screening = sum(
        c * math.exp(-k * r / a)
        for c, k in ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
    )
    half = 0.5 * 14.399645 * 29 * 8 / r * screening * float(polynomial_cutoff(torch.tensor(r / 2.5), 5))
    assert energies.tolist() == pytest.approx([half, half], rel=1e-12)
