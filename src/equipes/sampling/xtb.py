"""Cheap labels: the tight-binding method GFN-xTB of the package tblite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.simulate.packages import require

METHODS = ("GFN2-xTB", "GFN1-xTB")


def xtb_calculator(
    method: str = "GFN2-xTB", *, charge: int = 0, multiplicity: int | None = None
) -> BaseCalculator:
    """A calculator of GFN2-xTB (Bannwarth, Ehlert & Grimme, J. Chem. Theory Comput. 15, 1652, 2019) or GFN1-xTB
    (Grimme, Bannwarth & Shushkov, J. Chem. Theory Comput. 13, 1989, 2017), in eV and Å.

    A self-consistent field that does not converge is an exception of ASE (`CalculationFailed`).

    Args:
        method: one of `METHODS`.
        charge: of the whole structure.
        multiplicity: 2 S + 1; None is the lowest possible.

    Raises:
        InputError: tblite is not installed, or an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r} for cheap labels; choose {' or '.join(METHODS)}")
    require("pre-training on xTB labels", "pretraining", "tblite")
    from tblite.ase import TBLite

    return TBLite(method=method, charge=charge, multiplicity=multiplicity, verbosity=0)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside the block, for torch and for whatever shares its OpenMP, as tblite does.

    Molecules are so small that a second thread makes each step slower, several times so where others compute too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
