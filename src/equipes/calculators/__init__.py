"""Potentials as calculators of other packages."""

from __future__ import annotations

from equipes.calculators.ase import Calculator

__all__ = ["Calculator"]
