"""Spherical harmonics against e3nn, and what must hold of them by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given

from equipes.harmonics import MAX_L, spherical_harmonics
from structures import rotations, seeds, wigner_d

POLES = torch.cat([torch.eye(3), -torch.eye(3)]).double()


def directions(n: int, seed: int = 0) -> torch.Tensor:
    """Random unit vectors, the six on the axes, and pairs that almost coincide with those."""
    generator = torch.Generator().manual_seed(seed)
    near = POLES + 1e-9 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    rows = torch.cat([torch.randn(n, 3, generator=generator, dtype=torch.float64), POLES, near])
    return rows / rows.norm(dim=1, keepdim=True)


def theirs(l_max: int, vectors: torch.Tensor) -> torch.Tensor:
    return o3.spherical_harmonics(list(range(l_max + 1)), vectors, normalize=True, normalization="component")


def ours(l_max: int, vectors: torch.Tensor) -> torch.Tensor:
    return spherical_harmonics(l_max, vectors / vectors.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("l_max", range(MAX_L + 1))
def test_values(l_max: int) -> None:
    vectors = directions(20)
    torch.testing.assert_close(ours(l_max, vectors), theirs(l_max, vectors), rtol=0, atol=1e-13)
    single = ours(l_max, vectors.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), theirs(l_max, vectors), rtol=0, atol=5e-6)


@pytest.mark.parametrize("l_max", [3, MAX_L])
def test_first_and_second_derivative_by_the_vector(l_max: int) -> None:
    """Exact also on the axes, where angles would be undefined."""
    vectors = 1.7 * directions(5)
    n = (l_max + 1) ** 2
    cotangent = torch.randn(len(vectors), n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tangent = torch.randn(len(vectors), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def derivatives(function: object) -> tuple[torch.Tensor, torch.Tensor]:
        x = vectors.clone().requires_grad_()
        (first,) = torch.autograd.grad((function(l_max, x) * cotangent).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * tangent).sum(), x)
        return first.detach(), second

    for mine, reference in zip(derivatives(ours), derivatives(theirs), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-11 * float(reference.abs().max()))


@pytest.mark.parametrize("l_max", [2, MAX_L])
def test_derivatives_are_finite_differences(l_max: int) -> None:
    vectors = 1.3 * torch.cat([directions(2, seed=5)[:2], POLES]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(l_max, x), vectors, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x: ours(l_max, x), vectors, rtol=1e-6, atol=1e-6)


def test_coincident_directions() -> None:
    """Equal directions give equal values and derivatives, bit for bit, wherever they stand in the batch."""
    vectors = directions(3)[[0, 1, 0, 2, 0]].requires_grad_()
    values = ours(4, vectors)
    (gradient,) = torch.autograd.grad(values.square().sum() + values[:, 5].sum(), vectors)
    for rows in (values, gradient):
        assert torch.equal(rows[0], rows[2])
        assert torch.equal(rows[0], rows[4])
        assert not torch.equal(rows[0], rows[1])


@given(seed=seeds)
def test_component_normalisation_and_parity(seed: int) -> None:
    vectors = directions(4, seed)
    values, mirrored = ours(MAX_L, vectors), ours(MAX_L, -vectors)
    for degree in range(MAX_L + 1):
        rows = slice(degree**2, (degree + 1) ** 2)
        norms = values[:, rows].square().sum(1)
        torch.testing.assert_close(norms, torch.full_like(norms, 2 * degree + 1), rtol=1e-12, atol=0)
        torch.testing.assert_close(mirrored[:, rows], (-1) ** degree * values[:, rows], rtol=0, atol=1e-13)


@given(rotation=rotations())
def test_rotation_turns_each_degree_by_its_wigner_d(rotation: np.ndarray) -> None:
    vectors = directions(4)
    values, turned = ours(MAX_L, vectors), ours(MAX_L, vectors @ torch.tensor(rotation).T)
    for degree, matrix in enumerate(wigner_d(rotation)):
        rows = slice(degree**2, (degree + 1) ** 2)
        assert np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < 1e-12
        torch.testing.assert_close(
            turned[:, rows], values[:, rows] @ torch.tensor(matrix).T, rtol=0, atol=1e-12
        )


def test_orthogonal_over_the_sphere() -> None:
    """A product quadrature exact for degree 12: the Gram matrix is the unit matrix."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = 2 * np.pi * np.arange(16) / 16
    polar, azimuth = np.meshgrid(nodes, angles, indexing="ij")
    radius = np.sqrt(1 - polar**2)
    points = np.stack([radius * np.cos(azimuth), polar, radius * np.sin(azimuth)], -1).reshape(-1, 3)
    values = spherical_harmonics(MAX_L, torch.tensor(points))
    measure = torch.tensor(np.repeat(weights, 16) / 32)
    gram = values.T @ (values * measure[:, None])
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-13)


def test_any_leading_shape() -> None:
    vectors = directions(6).reshape(2, 9, 3)
    assert spherical_harmonics(2, vectors).shape == (2, 9, 9)
    assert spherical_harmonics(2, vectors[:0]).shape == (0, 9, 9)


@pytest.mark.parametrize("l_max", [-1, MAX_L + 1])
def test_degree_out_of_range(l_max: int) -> None:
    with pytest.raises(ValueError, match="l_max must be"):
        spherical_harmonics(l_max, POLES)
