"""A fast calculator with known physics: shifted-force Lennard-Jones in orthorhombic cells or vacuum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from equipes.simulate import MDSettings
from equipes.simulate.records import FINAL, TABLE, TRAJECTORY


class PairCalculator(Calculator):
    """E = Σ 4 ε ((σ/r)^12 - (σ/r)^6), energy and force brought to zero at the cutoff; minimum images only."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def __init__(self, epsilon: float = 0.0104, sigma: float = 3.4, cutoff: float = 5.2) -> None:
        super().__init__()
        self.epsilon, self.sigma, self.cutoff = epsilon, sigma, cutoff

    def _pair(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        power = (self.sigma / r) ** 6
        return 4 * self.epsilon * (power**2 - power), 4 * self.epsilon * (-12 * power**2 + 6 * power) / r

    def check_state(self, atoms, tol=0.0) -> list[str]:
        same = (
            self.atoms is not None and self.atoms == atoms
        )  # ASE's own comparison takes longer than all the rest
        return [] if same else list(all_changes)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        i, j = np.triu_indices(len(atoms), 1)
        vectors = atoms.positions[j] - atoms.positions[i]
        if atoms.pbc.all():
            lengths = np.diag(atoms.cell.array)
            vectors = vectors - lengths * np.round(vectors / lengths)
        r = np.linalg.norm(vectors, axis=1)
        near = r < self.cutoff
        i, j, r, vectors = i[near], j[near], r[near], vectors[near]
        energy, slope = self._pair(r)
        energy_at_cutoff, slope_at_cutoff = self._pair(np.array([self.cutoff]))
        pull = ((slope - slope_at_cutoff) / r)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        shifted = energy - energy_at_cutoff - (r - self.cutoff) * slope_at_cutoff
        self.results = {"energy": float(shifted.sum()), "forces": forces}
        if atoms.cell.rank == 3:
            virial = vectors.T @ pull / atoms.get_volume()
            self.results["stress"] = virial.flat[[0, 4, 8, 5, 2, 1]]


def argon() -> Atoms:
    return bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)


def settings_for(ensemble: str, steps: int) -> MDSettings:
    return MDSettings(
        ensemble, steps=steps, timestep=4.0, temperature=60.0, interval=3, barostat_time=200.0, seed=7
    )


def same_record(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in (TABLE, TRAJECTORY, FINAL))
