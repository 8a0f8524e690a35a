"""Layers that architectures are made of."""

from __future__ import annotations

from equipes.nn.gate import SILU_SCALE, Gate
from equipes.nn.linear import Linear, SpeciesLinear
from equipes.nn.radial import BesselBasis, ScalarMLP, polynomial_cutoff, xplor_cutoff
from equipes.nn.zbl import ZBL

__all__ = [
    "SILU_SCALE",
    "ZBL",
    "BesselBasis",
    "Gate",
    "Linear",
    "ScalarMLP",
    "SpeciesLinear",
    "polynomial_cutoff",
    "xplor_cutoff",
]
