"""Wigner 3j tensors of real irreps, in the basis and with the signs of e3nn."""

from __future__ import annotations

from functools import cache
from math import factorial

import numpy as np


def _su2_coefficient(j1: int, m1: int, j2: int, m2: int, j3: int, m3: int) -> float:
    """The Clebsch-Gordan coefficient <j1 m1 j2 m2 | j3 m3> by Racah's formula, summed in exact integers."""
    if m3 != m1 + m2:
        return 0.0
    first = max(-j1 + j2 + m3, -j1 + m1, 0)
    last = min(j2 + j3 + m1, j3 - j1 + j2, j3 + m3)
    numerator = (
        (2 * j3 + 1)
        * factorial(j3 + j1 - j2) * factorial(j3 - j1 + j2) * factorial(j1 + j2 - j3)
        * factorial(j3 + m3) * factorial(j3 - m3)
    )  # fmt: skip
    denominator = (
        factorial(j1 + j2 + j3 + 1)
        * factorial(j1 - m1) * factorial(j1 + m1) * factorial(j2 - m2) * factorial(j2 + m2)
    )  # fmt: skip
    # Each term is a whole number over one common denominator; Python's integers keep the alternating sum exact.
    common = factorial(last) * factorial(j3 - j1 + j2) * factorial(j3 + m3) * factorial(j1 - j2 + j3 + last)
    total = 0
    for v in range(first, last + 1):
        term = (
            common * factorial(j2 + j3 + m1 - v) * factorial(j1 - m1 + v)
        ) // (
            factorial(v) * factorial(j3 - j1 + j2 - v) * factorial(j3 + m3 - v) * factorial(v + j1 - j2 - m3)
        )  # fmt: skip
        total += (-1) ** (v + j2 + m2) * term
    return float(np.sqrt(numerator / denominator)) * (total / common)


@cache
def _real_to_complex(l: int) -> np.ndarray:
    """[2l+1, 2l+1] complex: rows are complex components m = -l..l, columns the real ones.

    The phase (-i)^l makes all coupling tensors real.
    """
    q = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l - m, l + m] = 1 / np.sqrt(2)
        q[l - m, l - m] = -1j / np.sqrt(2)
        q[l + m, l + m] = (-1) ** m / np.sqrt(2)
        q[l + m, l - m] = 1j * (-1) ** m / np.sqrt(2)
    return (-1j) ** l * q


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """The invariant tensor of three real irreps of SO(3), `[2l1+1, 2l2+1, 2l3+1]` float64, Frobenius norm 1.

    Unique up to sign; the sign is e3nn's (0.4 and later). Read-only, since it is shared.

    Raises `ValueError` when |l1 - l2| <= l3 <= l1 + l2 does not hold.

    >>> wigner_3j(1, 1, 0)[:, :, 0].round(4).tolist()
    [[0.5774, 0.0, 0.0], [0.0, 0.5774, 0.0], [0.0, 0.0, 0.5774]]
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(
            f"no coupling of l = {l1} and {l2} to {l3}: |l1 - l2| <= l3 <= l1 + l2 does not hold"
        )
    coupling = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            coupling[l1 + m1, l2 + m2, l3 + m1 + m2] = _su2_coefficient(l1, m1, l2, m2, l3, m1 + m2)
    complex_tensor = np.einsum(
        "ia,jb,kc,ijk->abc", _real_to_complex(l1), _real_to_complex(l2), _real_to_complex(l3).conj(), coupling
    )
    tensor: np.ndarray = np.real(complex_tensor)
    tensor[np.abs(tensor) < 1e-14] = 0.0
    tensor /= np.linalg.norm(tensor)
    tensor.setflags(write=False)
    return tensor
