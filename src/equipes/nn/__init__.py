"""Layers that architectures are made of."""

from __future__ import annotations

from equipes.nn.adapters import LowRankAdapters
from equipes.nn.gate import SILU_SCALE, Gate
from equipes.nn.linear import Linear, SpeciesLinear
from equipes.nn.radial import (
    AgnesiTransform,
    BesselBasis,
    ScalarMLP,
    SoftTransform,
    polynomial_cutoff,
    xplor_cutoff,
)
from equipes.nn.symmetric_contraction import SymmetricContraction
from equipes.nn.zbl import ZBL, CovalentZBL

__all__ = [
    "SILU_SCALE",
    "ZBL",
    "AgnesiTransform",
    "BesselBasis",
    "CovalentZBL",
    "Gate",
    "Linear",
    "LowRankAdapters",
    "ScalarMLP",
    "SoftTransform",
    "SpeciesLinear",
    "SymmetricContraction",
    "polynomial_cutoff",
    "xplor_cutoff",
]
