"""Sparse polynomials with coefficients that depend on the species: what the symmetric contraction is to the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class PolynomialTable:
    """m_M = Σ_t c[M, t] Π_{k in t} A_k with c = Σ_r K_r W_r, for each channel.

    Attributes:
        inputs, outputs: components of A and of m.
        degrees: for degree 1, 2, ..: factors `[terms, degree]` and where the coefficients of each begin, `[terms + 1]`.
        output: `[coefficients]`, the component of m that each adds to.
        couplings: `[coefficients, rows of weights]`, K.
    """

    inputs: int
    outputs: int
    degrees: tuple[tuple[np.ndarray, np.ndarray], ...]
    output: np.ndarray
    couplings: np.ndarray

    @property
    def n_coefficients(self) -> int:
        return len(self.output)

    def native(self) -> tuple[Any, ...]:
        """The table as the native side wants to have it, K as compressed rows."""
        rows, columns = np.nonzero(self.couplings)
        begin = np.searchsorted(rows, np.arange(self.n_coefficients + 1))
        return (
            self.inputs,
            self.outputs,
            [(factors.ravel().tolist(), start.tolist()) for factors, start in self.degrees],
            self.output.tolist(),
            begin.tolist(),
            columns.tolist(),
            self.couplings[rows, columns].tolist(),
        )


def polynomial_table(
    inputs: int, outputs: Sequence[int], couplings: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]
) -> PolynomialTable:
    """The table of several polynomials in the same components, united term by term.

    Args:
        inputs: components of A.
        outputs: components of each irrep of m.
        couplings: for each irrep of m and each degree monomials `[T, degree]`, coefficients `[paths, components, T]`;
            rows of weights are the paths in this order.
    """
    n_rows = sum(coefficients.shape[0] for each in couplings for _, coefficients in each)
    starts = np.cumsum([0, *outputs])
    first_row = {}
    row = 0
    for i, each in enumerate(couplings):
        for degree, (_, coefficients) in enumerate(each):
            first_row[i, degree] = row
            row += coefficients.shape[0]
    degrees, matrix = [], []
    output: list[int] = []
    for degree in range(len(couplings[0])):
        terms: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for i, each in enumerate(couplings):
            monomials, coefficients = each[degree]
            for t, monomial in enumerate(monomials.tolist()):
                for m in range(outputs[i]):
                    if not coefficients[:, m, t].any():
                        continue
                    line = np.zeros(n_rows)
                    line[first_row[i, degree] : first_row[i, degree] + coefficients.shape[0]] = coefficients[
                        :, m, t
                    ]
                    terms.setdefault(tuple(monomial), []).append((int(starts[i]) + m, line))
        begin = [len(output)]
        for monomial in sorted(terms):
            for place, line in terms[monomial]:
                output.append(place)
                matrix.append(line)
            begin.append(len(output))
        factors = np.array(sorted(terms), dtype=np.int32).reshape(-1, degree + 1)
        degrees.append((factors, np.array(begin, dtype=np.int32)))
    return PolynomialTable(
        inputs,
        int(starts[-1]),
        tuple(degrees),
        np.array(output, dtype=np.int32),
        np.array(matrix).reshape(len(output), n_rows),
    )
