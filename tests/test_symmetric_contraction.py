"""The many-body couplings of MACE: as many as theory says, equivariant, complete, and summed as written."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from equipes.irreps import Irrep, Irreps
from equipes.nn import SymmetricContraction
from equipes.nn.symmetric_contraction import couplings
from structures import wigner_d

NATURAL = {l_max: tuple(Irrep(l, (-1) ** l) for l in range(l_max + 1)) for l_max in range(4)}
BOTH = tuple(Irrep(l, p) for l in range(3) for p in (-1, 1))


def characters(irreps: tuple[Irrep, ...], angle: float, sign: int, degree: int) -> float:
    """The character of the symmetric power of degree ν, by Newton's recursion over powers of the element."""
    powers = [1.0]
    for n in range(1, degree + 1):
        trace = [
            sum(
                irrep.p ** (k if sign < 0 else 0)
                * (1 + 2 * sum(math.cos(m * k * angle) for m in range(1, irrep.l + 1)))
                for irrep in irreps
            )
            for k in range(1, n + 1)
        ]
        powers.append(sum(trace[k - 1] * powers[n - k] for k in range(1, n + 1)) / n)
    return powers[degree]


def expected_paths(irreps: tuple[Irrep, ...], out: Irrep, degree: int) -> int:
    """How often `out` is in the symmetric power: an integral of characters over O(3)."""
    n = 400
    total = 0.0
    for step in range(n):
        angle = math.pi * (step + 0.5) / n
        weight = (1 - math.cos(angle)) / n  # Haar measure of the rotation angle on (0, π)
        own = 1 + 2 * sum(math.cos(m * angle) for m in range(1, out.l + 1))
        for sign in (1, -1):
            parity = out.p if sign < 0 else 1
            total += 0.5 * weight * own * parity * characters(irreps, angle, sign, degree)
    return round(total)


@pytest.mark.parametrize(
    ("irreps", "correlation"), [(NATURAL[1], 4), (NATURAL[2], 3), (NATURAL[3], 3), (BOTH, 2)], ids=str
)
def test_there_are_as_many_as_characters_count(irreps: tuple[Irrep, ...], correlation: int) -> None:
    for out in (Irrep(0, 1), Irrep(1, -1), Irrep(2, 1), Irrep(1, 1), Irrep(0, -1)):
        for degree, coupling in enumerate(couplings(irreps, out, correlation), start=1):
            assert coupling.n_paths == expected_paths(irreps, out, degree), (out, degree)


def test_published_counts() -> None:
    """Independent cubic couplings and their distinct terms for features up to l = 3."""
    found = {
        l: (
            couplings(NATURAL[3], Irrep(l, (-1) ** l), 3)[2].n_paths,
            couplings(NATURAL[3], Irrep(l, (-1) ** l), 3)[2].n_terms,
        )
        for l in range(3)
    }
    assert found == {0: (8, 77), 1: (12, 278), 2: (14, 398)}


def test_deterministic() -> None:
    """Weights in files belong to these couplings: they may never change."""
    cubic = couplings(NATURAL[2], Irrep(1, -1), 3)[2].coefficients
    signature = np.round([cubic.sum(), np.abs(cubic).sum(), (cubic**2).sum(), *cubic[:, 1].sum(1)], 9)
    assert signature.tolist() == pytest.approx(SIGNATURE, abs=1e-8)


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "correlation"),
    [
        ("3x0e + 3x1o + 3x2e + 3x3o", "3x0e + 3x1o + 3x2e", 3),
        ("2x0e + 2x1o", "2x0e + 2x1o + 2x2e", 4),
        ("2x0o + 2x0e + 2x1o + 2x1e + 2x2o + 2x2e", "2x0o + 2x0e + 2x1o + 2x1e + 2x2o", 3),
    ],
)
def test_equivariant(irreps_in: str, irreps_out: str, correlation: int) -> None:
    torch.manual_seed(0)
    layer = SymmetricContraction(Irreps(irreps_in), Irreps(irreps_out), correlation, 2).double()
    rotation = Rotation.random(random_state=3).as_matrix()
    matrices = wigner_d(rotation)

    def turned(x: torch.Tensor, irreps: Irreps, *, mirrored: bool) -> torch.Tensor:
        parts = []
        for (mul, irrep), place in zip(irreps, irreps.slices(), strict=True):
            block = x[:, place].unflatten(1, (irrep.dim, mul))
            sign = irrep.p if mirrored else 1
            parts.append(
                sign * torch.einsum("ab,nbc->nac", torch.tensor(matrices[irrep.l]), block).flatten(1)
            )
        return torch.cat(parts, 1)

    A, types = torch.randn(5, layer.irreps_in.dim, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    expected = layer(A, types)
    for (_, irrep), place in zip(layer.irreps_out, layer.irreps_out.slices(), strict=True):
        assert expected[:, place].abs().max() > 1e-3, f"{irrep} is always zero"
    for mirrored in (False, True):
        actual = layer(turned(A, layer.irreps_in, mirrored=mirrored), types)
        reference = turned(expected, layer.irreps_out, mirrored=mirrored)
        assert (actual - reference).abs().max() < 1e-11 * reference.abs().max()


def test_summed_as_written() -> None:
    """m = Σ_ν Σ_η W Σ_t C Π A in plain loops."""
    torch.manual_seed(1)
    layer = SymmetricContraction(Irreps("2x0e + 2x1o"), Irreps("2x0e + 2x1o"), 3, 2).double()
    A, types = torch.randn(2, layer.irreps_in.dim, dtype=torch.float64), [1, 0]
    found = layer(A, torch.tensor(types))
    components = A.view(2, 4, 2)
    for atom, channel in product(range(2), range(2)):
        for (mul, irrep), place in zip(layer.irreps_out, layer.irreps_out.slices(), strict=True):
            for m in range(irrep.dim):
                total = 0.0
                for degree, coupling in enumerate(layer.couplings[irrep], start=1):
                    for path in range(coupling.n_paths):
                        weight = layer.weights[f"{irrep}_{degree}"][types[atom], path, channel].item()
                        for term, row in enumerate(coupling.monomials):
                            factors = math.prod(components[atom, index, channel].item() for index in row)
                            total += weight * coupling.coefficients[path, m, term] * factors
                assert found[atom, place][m * mul + channel].item() == pytest.approx(total, rel=1e-12)


def test_multiplicities_must_be_equal() -> None:
    with pytest.raises(ValueError, match="multiplicities must be equal"):
        SymmetricContraction(Irreps("2x0e + 3x1o"), Irreps("2x0e"), 2, 1)


SIGNATURE = [22.9906917, 28.629508848, 14.4, 1.0, 1.732050808, 2.236067977, 1.727900647, 1.946410162]
