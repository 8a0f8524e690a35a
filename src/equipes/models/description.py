"""What frozen potentials are made from, whatever runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from equipes.errors import InputError


@dataclass(frozen=True, eq=False)
class Description:
    """What a frozen potential is made from; the attributes are those of `FrozenPotential`."""

    architecture: str
    species: tuple[str, ...]
    cutoff: float
    dtype: torch.dtype
    structure: dict[str, Any]
    arrays: dict[str, np.ndarray]
    deviation: dict[str, float]
    provenance: dict[str, Any]


class SpeciesTable:
    """Indices of species by atomic numbers."""

    def __init__(self, species: Sequence[str]) -> None:
        self.species = tuple(species)
        self._type_of_number = np.full(len(chemical_symbols), -1, dtype=np.int64)
        for index, symbol in enumerate(self.species):
            self._type_of_number[atomic_numbers[symbol]] = index

    def types(self, numbers: np.ndarray) -> np.ndarray:
        """`[N]`; raises `InputError` for an element that is none of them."""
        types = self._type_of_number[numbers]
        if (types < 0).any():
            unknown = ", ".join(sorted({chemical_symbols[z] for z in numbers[types < 0]}))
            raise InputError(
                f"the frozen potential does not know {unknown}; it was frozen for {', '.join(self.species)}. "
                "Freeze the model for all elements of the structure, or use the model itself"
            )
        return types
