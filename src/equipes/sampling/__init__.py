"""Geometries around a structure, labelled by any ASE calculator: what cheap or fast teachers are asked about.

Each way of sampling is a function of structure, calculator, options and a random generator that returns a `Sample`;
`collect` runs several of them and keeps what is done on the disk.
"""

from __future__ import annotations

from equipes.sampling.collect import Part, collect
from equipes.sampling.defects import DefectOptions, defective, defects
from equipes.sampling.dynamics import DynamicsOptions, dynamics
from equipes.sampling.normal_modes import NormalModeOptions, normal_modes
from equipes.sampling.sample import Sample, describe
from equipes.sampling.strains import StrainOptions, strains
from equipes.sampling.xtb import METHODS, one_thread, xtb_calculator

__all__ = [
    "METHODS",
    "DefectOptions",
    "DynamicsOptions",
    "NormalModeOptions",
    "Part",
    "Sample",
    "StrainOptions",
    "collect",
    "defective",
    "defects",
    "describe",
    "dynamics",
    "normal_modes",
    "one_thread",
    "strains",
    "xtb_calculator",
]
