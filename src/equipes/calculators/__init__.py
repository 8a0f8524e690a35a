"""Potentials as calculators of other packages."""

from __future__ import annotations

from equipes.calculators.ase import Calculator
from equipes.calculators.committee import Committee
from equipes.calculators.dispersion import WithDispersion

__all__ = ["Calculator", "Committee", "WithDispersion"]
