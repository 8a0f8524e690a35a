"""A calculator of numbers that somebody else calculated, for structures that move in batches or on a device."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.stress import full_3x3_to_voigt_6_stress


class Held(AseCalculator):
    """Gives out the numbers that were last calculated for a structure, elsewhere."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True) -> Any:
        """The number or a copy of the array; whoever moves the atoms keeps it up to date."""
        value = self.results[name]
        return value.copy() if isinstance(value, np.ndarray) else value


def hold(calculator: AseCalculator, energy: float, forces: np.ndarray, stress: np.ndarray | None) -> None:
    """Give a `Held` calculator its numbers; `stress` is `[3, 3]`, or None where nobody will ask."""
    calculator.results = {"energy": energy, "free_energy": energy, "forces": forces}
    if stress is not None:
        calculator.results["stress"] = full_3x3_to_voigt_6_stress(stress)
