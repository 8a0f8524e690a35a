"""The pressure that dynamics writes is the derivative of the energy by strain and the momentum that atoms carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk

import equipes
from equipes.simulate import MDSettings, run_md
from equipes.simulate.records import TABLE, read_table


@pytest.fixture(scope="module")
def calculator() -> equipes.Calculator:
    hyperparameters = {
        "num_layers": 2,
        "num_features": 4,
        "l_max": 2,
        "r_max": 3.2,
        "per_type_energy_scales": 0.3,
    }
    potential = equipes.build("nequip", ["Cu", "Si"], hyperparameters, seed=2)
    return equipes.Calculator(potential, dtype="float64")


def crystal() -> Atoms:
    atoms = bulk("CuSi", "zincblende", a=5.2, cubic=True)
    atoms.set_cell(
        atoms.cell.array @ [[1.0, 0.03, 0.0], [0.0, 0.97, 0.02], [0.0, 0.0, 1.01]], scale_atoms=True
    )
    return atoms


def energy_under(atoms: Atoms, strain: np.ndarray, calculator) -> float:
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    strained.calc = calculator
    return strained.get_potential_energy()


def test_virial_stress_in_dynamics_is_stress_from_strain(tmp_path: Path, calculator) -> None:
    settings = MDSettings("nvt", steps=20, timestep=1.0, temperature=900.0, interval=20, closest_fraction=0.0)
    result = run_md(crystal(), calculator, settings, tmp_path / "run")
    atoms, step = result.atoms, 1e-4
    slope = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            strain = np.zeros((3, 3))
            strain[i, j] += step / 2
            strain[j, i] += step / 2
            ends = [energy_under(atoms, sign * strain, calculator) for sign in (1, -1)]
            slope[i, j] = (ends[0] - ends[1]) / (2 * step)
    momenta = atoms.get_momenta()
    kinetic = (momenta / atoms.get_masses()[:, None]).T @ momenta
    stress = (slope - kinetic) / atoms.get_volume()
    found = atoms.get_stress(voigt=False, include_ideal_gas=True)
    np.testing.assert_allclose(found, stress, atol=1e-6 * np.abs(stress).max())
    row = read_table(result.out / TABLE)[-1]
    assert row.pressure_gpa == pytest.approx(-np.trace(stress) / 3 / units.GPa, rel=1e-5)
    # Both parts are there, and neither is all of it.
    assert 0.02 < abs(np.trace(kinetic) / np.trace(slope)) < 50
