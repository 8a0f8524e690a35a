"""Potentials as calculators of other packages."""

from __future__ import annotations

from equipes.calculators.ase import Calculator
from equipes.calculators.committee import Committee

__all__ = ["Calculator", "Committee"]
