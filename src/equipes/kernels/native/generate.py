"""Writes `couplings.hpp`: the coupling coefficients that the native kernels are compiled with.

    python src/equipes/kernels/native/generate.py

A test compares the file with a fresh one, and its numbers with e3nn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equipes.clebsch_gordan import wigner_3j
from equipes.harmonics import _raising

MAX_L = 4
TARGET = Path(__file__).with_name("couplings.hpp")

_HEADER = """\
// Written by generate.py; edit that instead.
//
// Couplings<L1, L2, L3>::terms are the elements of sqrt(2 L3 + 1) times the Wigner 3j tensor that are not zero,
// sorted by (m1, m3, m2). Raising<L>::terms take Y_L (m1) and Y_1 (m2) to Y_{L+1} (m3).
#pragma once

namespace equipes {

#ifdef EQUIPES_MAX_L
constexpr int kMaxL = EQUIPES_MAX_L;
#else
constexpr int kMaxL = %d;
#endif

struct Term {
  int m1, m2, m3;
  double value;
};

template <int L1, int L2, int L3>
struct Couplings;

template <int L>
struct Raising;
"""


def terms(tensor: np.ndarray) -> list[tuple[int, int, int, float]]:
    """`(m1, m2, m3, value)` of the elements that are not zero, sorted by (m1, m3, m2)."""
    places = sorted(np.argwhere(tensor).tolist(), key=lambda m: (m[0], m[2], m[1]))
    return [(m1, m2, m3, float(tensor[m1, m2, m3])) for m1, m2, m3 in places]


def _struct(name: str, tensor: np.ndarray) -> str:
    rows = ",\n".join(f"      {{{m1}, {m2}, {m3}, {value!r}}}" for m1, m2, m3, value in terms(tensor))
    return f"\ntemplate <>\nstruct {name} {{\n  static constexpr Term terms[] = {{\n{rows}}};\n}};\n"


def header() -> str:
    """The text of `couplings.hpp`."""
    parts = [_HEADER % MAX_L]
    for l1 in range(MAX_L + 1):
        for l2 in range(MAX_L + 1):
            parts += [
                _struct(f"Couplings<{l1}, {l2}, {l3}>", np.sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3))
                for l3 in range(abs(l1 - l2), min(l1 + l2, MAX_L) + 1)
            ]
    parts += [_struct(f"Raising<{l}>", _raising(l)) for l in range(1, MAX_L)]
    return "".join(parts) + "\n}  // namespace equipes\n"


if __name__ == "__main__":
    TARGET.write_text(header(), encoding="utf-8")
