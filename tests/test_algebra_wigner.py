"""Wigner 3j tensors against e3nn, and what must hold of them by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given

from equipes.clebsch_gordan import wigner_3j
from structures import rotations, wigner_d

TRIPLETS = [
    (l1, l2, l3) for l1 in range(7) for l2 in range(7) for l3 in range(abs(l1 - l2), min(l1 + l2, 6) + 1)
]


def test_all_triplets_to_degree_6() -> None:
    assert len(TRIPLETS) == 175
    for triplet in TRIPLETS:
        ours, theirs = wigner_3j(*triplet), o3.wigner_3j(*triplet, dtype=torch.float64).numpy()
        assert ours.dtype == np.float64
        assert np.abs(ours - theirs).max() < 1e-13, triplet


def test_beyond_the_tables() -> None:
    """High degrees, where floating-point sums of factorials would cancel."""
    for triplet in [(6, 6, 12), (8, 7, 5), (10, 10, 10)]:
        tensor = wigner_3j(*triplet)
        gram = np.einsum("abc,abd->cd", tensor, tensor)
        assert np.abs(gram - np.eye(len(gram)) / len(gram)).max() < 1e-13, triplet


@pytest.mark.parametrize("triplet", [(1, 1, 1), (2, 3, 4), (5, 6, 3)])
def test_orthogonality(triplet: tuple[int, int, int]) -> None:
    """Contracting two indices leaves the unit matrix over the dimension of the third, for each of them."""
    tensor = wigner_3j(*triplet)
    for axis in range(3):
        rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
        assert np.abs(rows @ rows.T - np.eye(len(rows)) / len(rows)).max() < 1e-14


def test_different_couplings_are_orthogonal_and_complete() -> None:
    l1, l2 = 3, 2
    rows = [
        wigner_3j(l1, l2, l3).reshape(-1, 2 * l3 + 1) * np.sqrt(2 * l3 + 1)
        for l3 in range(l1 - l2, l1 + l2 + 1)
    ]
    change_of_basis = np.concatenate(rows, axis=1)
    assert change_of_basis.shape == (35, 35)
    assert np.abs(change_of_basis @ change_of_basis.T - np.eye(35)).max() < 1e-13


@given(rotation=rotations())
def test_invariant_under_rotation(rotation: np.ndarray) -> None:
    turns = wigner_d(rotation)
    for triplet in [(1, 1, 1), (2, 1, 3), (3, 2, 4), (6, 5, 6)]:
        tensor = wigner_3j(*triplet)
        turned = np.einsum("ai,bj,ck,ijk->abc", *(turns[degree] for degree in triplet), tensor)
        assert np.abs(turned - tensor).max() < 1e-12, triplet


@pytest.mark.parametrize("triplet", [(1, 1, 3), (0, 2, 1), (4, 1, 2)])
def test_no_such_coupling(triplet: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no coupling"):
        wigner_3j(*triplet)


def test_shared_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        wigner_3j(1, 1, 0)[0, 0, 0] = 1.0
