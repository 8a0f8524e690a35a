"""Simulations with any ASE calculator: relaxation, molecular dynamics, and workflows from a potential to an answer.

A workflow is a function of structure, calculator and options that returns a frozen dataclass with a `summary()`, and
says in its `provenance` how it was done, whom to cite, what was converged and what to beware of.
"""

from __future__ import annotations

from equipes.simulate.conductivity import (
    ConductivityOptions,
    ConductivityResult,
    conductivity,
    conductivity_from_forces,
)
from equipes.simulate.device_dynamics import DeviceDynamics
from equipes.simulate.diffusion import (
    ArrheniusResult,
    DiffusionOptions,
    DiffusionResult,
    Motion,
    analyze_diffusion,
    arrhenius,
    motion_of,
)
from equipes.simulate.diffusion_runs import DiffusionRunOptions, DiffusionRunResult, diffusion
from equipes.simulate.elastic import ElasticOptions, ElasticResult, elastic
from equipes.simulate.eos import EquationOfStateResult, equation_of_state
from equipes.simulate.errors import SimulationError
from equipes.simulate.expansion import ExpansionOptions, ExpansionResult, expansion
from equipes.simulate.expansion_npt import NPTExpansionOptions, expansion_npt
from equipes.simulate.green_kubo import GreenKuboOptions, GreenKuboResult, green_kubo
from equipes.simulate.heat_flux import heat_flux
from equipes.simulate.hnemd import HNEMDOptions, HNEMDResult, hnemd
from equipes.simulate.md import MDResult, run_md
from equipes.simulate.melt_quench import MeltQuenchOptions, MeltQuenchResult, melt_quench
from equipes.simulate.neb import NEBOptions, NEBResult, neb, vacancy_hop
from equipes.simulate.order import RadialDistribution, coordination_numbers, radial_distributions
from equipes.simulate.phonons import PhononOptions, PhononResult, phonons, phonons_from_forces
from equipes.simulate.relax import RelaxResult, relax
from equipes.simulate.results import Check, Provenance
from equipes.simulate.settings import MDSettings
from equipes.simulate.store import Store

__all__ = [
    "ArrheniusResult",
    "Check",
    "ConductivityOptions",
    "ConductivityResult",
    "DeviceDynamics",
    "DiffusionOptions",
    "DiffusionResult",
    "DiffusionRunOptions",
    "DiffusionRunResult",
    "ElasticOptions",
    "ElasticResult",
    "EquationOfStateResult",
    "ExpansionOptions",
    "ExpansionResult",
    "GreenKuboOptions",
    "GreenKuboResult",
    "HNEMDOptions",
    "HNEMDResult",
    "MDResult",
    "MDSettings",
    "MeltQuenchOptions",
    "MeltQuenchResult",
    "Motion",
    "NEBOptions",
    "NEBResult",
    "NPTExpansionOptions",
    "PhononOptions",
    "PhononResult",
    "Provenance",
    "RelaxResult",
    "RadialDistribution",
    "SimulationError",
    "Store",
    "analyze_diffusion",
    "arrhenius",
    "conductivity",
    "conductivity_from_forces",
    "diffusion",
    "elastic",
    "coordination_numbers",
    "equation_of_state",
    "expansion",
    "expansion_npt",
    "green_kubo",
    "heat_flux",
    "hnemd",
    "melt_quench",
    "motion_of",
    "neb",
    "phonons",
    "phonons_from_forces",
    "radial_distributions",
    "relax",
    "run_md",
    "vacancy_hop",
]
