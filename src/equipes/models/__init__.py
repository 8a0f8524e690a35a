"""Architectures, and the potential that turns their energies into forces and stress."""

from __future__ import annotations

from equipes.models.files import convert, is_frozen, load, load_frozen
from equipes.models.frozen import FrozenPotential
from equipes.models.nequip import NequIP
from equipes.models.potential import Potential, Prediction
from equipes.models.registry import ARCHITECTURES, DTYPES, build
from equipes.models.sevennet import SevenNet
from equipes.models.variants import adapted, add_species, choose_modality, keep_species, nearest_element

__all__ = [
    "ARCHITECTURES",
    "DTYPES",
    "FrozenPotential",
    "NequIP",
    "Potential",
    "Prediction",
    "SevenNet",
    "adapted",
    "add_species",
    "build",
    "choose_modality",
    "convert",
    "is_frozen",
    "keep_species",
    "load",
    "load_frozen",
    "nearest_element",
]
