"""Relaxation finds minima, says what it relaxed, and leaves the user's structure alone."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

import equipes
from equipes import InputError
from equipes.simulate import SimulationError, relax

EMT_COPPER = 3.5898  # Å, lattice constant of copper in this potential


class Broken(Calculator):
    """Forces that are no numbers from the second step on."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE
    calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        self.calls += 1
        forces = np.zeros((len(atoms), 3))
        forces[1] = 1.0 if self.calls == 1 else np.nan
        super().calculate(atoms, list(properties), list(system_changes))
        self.results = {"energy": 0.0, "forces": forces}


class Collapsing(Calculator):
    """A crystal without a minimum: pulled together for ever."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        self.results = {
            "energy": atoms.get_volume(),
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.array([1.0, 1.0, 1.0, 0, 0, 0]),
        }


def strained_copper() -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True)
    strain = np.array([[0.03, 0.02, 0.0], [0.02, -0.02, 0.0], [0.0, 0.0, 0.0]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs", "bfgs"])
def test_a_crystal_relaxes_with_its_cell_unless_told_otherwise(optimizer: str) -> None:
    start = strained_copper()
    given = start.copy()
    result = relax(start, EMT(), smax=0.01, optimizer=optimizer)
    assert result.converged
    assert result.cell_relaxed
    assert result.volume_ang3 / 4 == pytest.approx(EMT_COPPER**3 / 4, rel=2e-4)
    assert np.abs(result.atoms.get_stress()).max() / units.GPa < 0.01
    assert np.linalg.norm(result.atoms.get_forces(), axis=1).max() < 0.01
    assert result.energy_ev == result.atoms.get_potential_energy() < result.energy_before_ev
    distances = result.atoms.get_distances(0, [1, 2, 3], mic=True)
    np.testing.assert_allclose(distances, EMT_COPPER / np.sqrt(2), rtol=1e-3)
    np.testing.assert_array_equal(start.positions, given.positions)
    np.testing.assert_array_equal(start.cell, given.cell)
    assert start.calc is None


def test_the_cell_can_be_held() -> None:
    start = strained_copper()
    result = relax(start, EMT(), cell=False)
    assert result.converged
    assert not result.cell_relaxed
    assert result.max_stress_deviation_gpa is None
    np.testing.assert_array_equal(result.atoms.cell, start.cell)
    assert np.abs(result.atoms.get_stress()).max() / units.GPa > 1


def test_under_pressure_the_stress_is_its_negative() -> None:
    result = relax(bulk("Cu", a=3.6), EMT(), pressure=20.0, smax=0.01)
    assert result.converged
    np.testing.assert_allclose(result.atoms.get_stress() / units.GPa, [-20, -20, -20, 0, 0, 0], atol=0.02)
    assert result.volume_ang3 < 0.95 * EMT_COPPER**3 / 4


def test_only_the_shape_relaxes_at_constant_volume() -> None:
    start = strained_copper()
    result = relax(start, EMT(), constant_volume=True, smax=0.02)
    assert result.converged
    assert result.volume_ang3 == pytest.approx(start.get_volume(), rel=1e-6)
    stress = result.atoms.get_stress() / units.GPa
    np.testing.assert_allclose(stress - stress[:3].mean() * np.array([1, 1, 1, 0, 0, 0]), 0, atol=0.03)
    assert abs(stress[:3].mean()) > 1


def test_a_molecule_in_a_box_keeps_it() -> None:
    water = molecule("H2O", vacuum=5.0)
    water.rattle(0.05, seed=2)
    result = relax(water, EMT())
    assert result.converged
    assert not result.cell_relaxed
    np.testing.assert_array_equal(result.atoms.cell, water.cell)


def test_constraints_hold_and_stay() -> None:
    start = strained_copper()
    start.set_constraint(FixAtoms([0, 1]))
    result = relax(start, EMT(), cell=False)
    assert result.converged
    np.testing.assert_array_equal(result.atoms.positions[:2], start.positions[:2])
    assert [type(constraint) for constraint in result.atoms.constraints] == [FixAtoms]
    # The force that the constraint takes up is told, not hidden.
    assert np.linalg.norm(result.atoms.get_forces(apply_constraint=False)[0]) > result.max_force_ev_per_ang


def test_symmetry_is_kept() -> None:
    pytest.importorskip("spglib")
    start = bulk("Cu", "fcc", a=3.8, cubic=True)
    start.rattle(0.001, seed=1)
    kept = relax(start, EMT(), symmetry=True)
    assert kept.spacegroup_before == kept.spacegroup == "Fm-3m (225)"
    assert kept.converged
    np.testing.assert_allclose(kept.atoms.cell.cellpar()[3:], 90, atol=1e-9)
    np.testing.assert_allclose(kept.atoms.get_forces(), 0, atol=1e-9)
    assert kept.atoms.constraints == []
    free = relax(start, EMT())
    assert np.abs(free.atoms.cell.cellpar()[3:] - 90).max() > 1e-6
    assert free.spacegroup is None


def test_not_converging_is_told() -> None:
    result = relax(strained_copper(), EMT(), steps=3)
    assert not result.converged
    assert result.steps == 3
    assert result.max_force_ev_per_ang > 0.01 or result.max_stress_deviation_gpa > 0.05


def test_every_step_is_reported() -> None:
    seen = []
    result = relax(
        strained_copper(),
        EMT(),
        on_step=lambda step, atoms, force, stress: seen.append((step, force, stress)),
    )
    assert [step for step, _, _ in seen] == list(range(result.steps + 1))
    assert seen[-1][1:] == (result.max_force_ev_per_ang, result.max_stress_deviation_gpa)
    assert seen[0][1] > seen[-1][1]


def test_a_trained_kind_of_potential_relaxes_too() -> None:
    hyperparameters = {"num_layers": 1, "num_features": 4, "l_max": 1, "r_max": 3.0, "zbl": True}
    potential = equipes.build("nequip", ["O", "H"], hyperparameters, dtype="float64", seed=2)
    start = molecule("H2O")
    result = relax(start, equipes.Calculator(potential, dtype="float64"), steps=20, optimizer="lbfgs")
    assert result.energy_ev < result.energy_before_ev


def test_forces_that_are_no_numbers_stop_it_by_name() -> None:
    with pytest.raises(SimulationError, match=r"step 1: the force on atom 1 \(H\) is not a finite number"):
        relax(molecule("H2O"), Broken())


def test_a_collapsing_cell_stops_it() -> None:
    with pytest.raises(SimulationError, match="no minimum near the structure"):
        relax(bulk("Cu", cubic=True), Collapsing())


class Attracting(Calculator):
    """Two atoms that want to be at the same place."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - as in ASE

    def __init__(self, refuse: float) -> None:
        super().__init__()
        self.refuse = refuse

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        vector = atoms.positions[1] - atoms.positions[0]
        if np.linalg.norm(vector) < self.refuse:
            raise InputError("atoms 0 (Cu) and 1 (Cu) are at the same place")
        self.results = {"energy": float(vector @ vector) / 2, "forces": np.array([vector, -vector])}


def test_atoms_that_end_inside_each_other_are_no_result() -> None:
    with pytest.raises(SimulationError, match=r"step \d+: atoms 0 \(Cu\) and 1 \(Cu\) are 0\.\d\d Å apart"):
        relax(Atoms("Cu2", positions=[[0, 0, 0], [2, 0, 0]]), Attracting(0.0), fmax=0.5)
    with pytest.raises(SimulationError, match=r"step \d+: atoms 0 .* same place"):
        relax(Atoms("Cu2", positions=[[0, 0, 0], [2, 0, 0]]), Attracting(0.0), fmax=1e-9)
    with pytest.raises(SimulationError, match=r"step \d+: atoms 0 .* same place"):
        relax(Atoms("Cu2", positions=[[0, 0, 0], [2, 0, 0]]), Attracting(0.5))


@pytest.mark.parametrize(
    ("atoms", "options", "sentence"),
    [
        (molecule("H2O"), {"cell": True}, "periodic in all three directions"),
        (molecule("H2O"), {"pressure": 1.0}, "pressure acts through the cell"),
        (bulk("Cu"), {"cell": False, "pressure": 1.0}, "pressure acts through the cell"),
        (bulk("Cu"), {"pressure": np.nan}, "pressure must be a number"),
        (bulk("Cu"), {"fmax": 0.0}, "limits"),
        (bulk("Cu"), {"smax": -1.0}, "limits"),
        (bulk("Cu"), {"steps": -1}, "steps"),
        (bulk("Cu"), {"optimizer": "newton"}, "fire, lbfgs|lbfgs, bfgs"),
        (molecule("H2O"), {"symmetry": True}, "space group"),
    ],
)
def test_bad_options(atoms: ase.Atoms, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        relax(atoms, EMT(), **options)


def test_the_summary_is_plain() -> None:
    import json

    summary = relax(bulk("Cu", a=3.6), EMT()).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["cell"][:3] == pytest.approx([EMT_COPPER / np.sqrt(2)] * 3, rel=1e-3)


def test_a_cell_relaxes_in_its_volume_alone() -> None:
    strained = bulk("Cu", a=3.6, cubic=True)
    strained.set_cell(strained.cell.array @ np.diag([1.02, 1.0, 0.99]), scale_atoms=True)
    result = relax(strained, EMT(), freedom="hydrostatic")
    assert result.converged
    scale = result.atoms.cell.lengths() / strained.cell.lengths()
    np.testing.assert_allclose(scale, scale[0], rtol=1e-6)
    stress = result.atoms.get_stress() / units.GPa
    assert abs(stress[:3].mean()) < 0.05 < abs(stress[:3]).max()


def test_a_film_relaxes_in_its_plane() -> None:
    for pbc in (True, (True, True, False)):
        film = fcc111("Cu", size=(1, 1, 3), a=3.6, vacuum=6.0)
        film.pbc = pbc
        film.set_cell(film.cell.array @ np.diag([1.02, 1.02, 1.0]), scale_atoms=True)
        result = relax(film, EMT(), cell=True, freedom="in-plane", fmax=0.01)
        assert result.converged
        assert result.atoms.cell[2] == pytest.approx(film.cell[2])
        # The stress is spread over the vacuum, too; a film of three layers is a little narrower than the crystal.
        assert result.atoms.cell.lengths()[0] == pytest.approx(3.59 / np.sqrt(2), rel=0.02)
        assert abs(result.atoms.get_stress()[[0, 1, 5]]).max() / units.GPa < 0.05


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"freedom": "sideways"}, "unknown freedom 'sideways'"),
        ({"freedom": "hydrostatic", "cell": False}, "belongs to a cell that relaxes"),
        ({"freedom": "in-plane"}, "first two cell vectors in the xy plane"),
    ],
)
def test_bad_freedom(options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        relax(bulk("Cu"), EMT(), **options)
