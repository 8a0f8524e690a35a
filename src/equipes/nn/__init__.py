"""Layers that architectures are made of."""

from __future__ import annotations

from equipes.nn.gate import Gate
from equipes.nn.linear import Linear, SpeciesLinear
from equipes.nn.radial import BesselBasis, ScalarMLP, polynomial_cutoff
from equipes.nn.zbl import ZBL

__all__ = ["ZBL", "BesselBasis", "Gate", "Linear", "ScalarMLP", "SpeciesLinear", "polynomial_cutoff"]
