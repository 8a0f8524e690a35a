"""Simulations with any ASE calculator: relaxation, molecular dynamics, equation of state."""

from __future__ import annotations

from equipes.simulate.eos import EquationOfStateResult, equation_of_state
from equipes.simulate.errors import SimulationError
from equipes.simulate.md import MDResult, run_md
from equipes.simulate.relax import RelaxResult, relax
from equipes.simulate.settings import MDSettings

__all__ = [
    "EquationOfStateResult",
    "MDResult",
    "MDSettings",
    "RelaxResult",
    "SimulationError",
    "equation_of_state",
    "relax",
    "run_md",
]
