"""Irreps: strings, products and order as e3nn has them."""

from __future__ import annotations

import pytest
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st

from equipes.errors import InputError
from equipes.irreps import Irrep, Irreps

irreps = st.builds(Irrep, st.integers(0, 6), st.sampled_from([1, -1]))
sums = st.builds(Irreps, st.lists(st.tuples(st.integers(1, 40), irreps), max_size=6))


@given(sums)
def test_string_reads_back_and_means_the_same_in_e3nn(value: Irreps) -> None:
    theirs = o3.Irreps(str(value))
    assert Irreps(str(value)) == Irreps(str(theirs)) == value
    assert theirs.dim == value.dim
    assert [(s.start, s.stop) for s in theirs.slices()] == [(s.start, s.stop) for s in value.slices()]


@given(irreps, irreps)
def test_product(first: Irrep, second: Irrep) -> None:
    theirs = [str(irrep) for irrep in o3.Irrep(str(first)) * o3.Irrep(str(second))]
    assert [str(irrep) for irrep in first * second] == theirs


@given(sums)
def test_merged_is_sorted_by_degree_then_odd_before_even(value: Irreps) -> None:
    merged = value.merged()
    assert merged.irreps == sorted(set(value.irreps), key=lambda irrep: (irrep.l, irrep.p))
    assert all(merged.multiplicity(irrep) == value.multiplicity(irrep) for irrep in value.irreps)
    assert merged.dim == value.dim


def test_order_of_parities() -> None:
    assert str(Irreps("2x1e + 3x0e + 4x1o + 5x0o").merged()) == "5x0o + 3x0e + 4x1o + 2x1e"


def test_multiplicity_of_one_may_be_left_out() -> None:
    assert Irreps("0e + 2x1o") == ((1, Irrep(0, 1)), (2, Irrep(1, -1)))
    assert Irreps("") == ()
    assert Irreps("").dim == 0


@pytest.mark.parametrize("text", ["3x1", "x1o", "1.5x0e", "0e + ", "2x-1o", "nonsense", "3x1o 2x0e"])
def test_unreadable_string(text: str) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Irreps(text)


@pytest.mark.parametrize(("degree", "parity"), [(-1, 1), (0, 0), (1, 2)])
def test_no_such_irrep(degree: int, parity: int) -> None:
    with pytest.raises(InputError, match="an irrep needs"):
        Irrep(degree, parity)
