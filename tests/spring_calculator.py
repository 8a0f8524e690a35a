"""A harmonic molecule in place of a costly calculator."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes


class Springs(Calculator):
    """Every pair of atoms joined by a spring at its length in `rest`; fails at every `fails`-th call."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, rest: Atoms, stiffness: float = 20.0, fails: int = 0) -> None:
        super().__init__()
        self.rest = rest.get_all_distances()
        self.stiffness, self.fails, self.calls = stiffness, fails, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        self.calls += 1
        if self.fails and self.calls % self.fails == 0:
            raise CalculationFailed("SCF not converged")
        i, j = np.triu_indices(len(atoms), 1)
        vectors = atoms.positions[j] - atoms.positions[i]
        lengths = np.linalg.norm(vectors, axis=1)
        stretch = lengths - self.rest[i, j]
        forces = np.zeros((len(atoms), 3))
        pull = (self.stiffness * stretch / lengths)[:, None] * vectors
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        self.results = {"energy": float(0.5 * self.stiffness * (stretch**2).sum()), "forces": forces}
