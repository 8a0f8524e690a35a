"""The ASE calculator: right numbers, the right list of neighbours, and a user's objects left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

import equipes
from equipes import AtomGraph, InputError
from equipes.calculators.neighbors import SkinnedNeighbors

SMALL = {"num_layers": 2, "num_features": 4, "l_max": 1, "r_max": 3.5}


@pytest.fixture(scope="module")
def potential() -> equipes.Potential:
    return equipes.build("nequip", ["H", "O", "Cu"], SMALL, dtype="float64", seed=3)


@pytest.fixture
def calculator(potential: equipes.Potential) -> equipes.Calculator:
    return equipes.Calculator(potential, dtype="float64")


def edges(graph: AtomGraph) -> list[np.ndarray]:
    fields = (graph.receiver, graph.sender, graph.shift, graph.row_pointer, graph.sender_order)
    return [tensor.numpy() for tensor in fields]


def same_edges(a: AtomGraph, b: AtomGraph) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(edges(a), edges(b), strict=True))


def test_results_are_those_of_the_potential(
    potential: equipes.Potential, calculator: equipes.Calculator, rattled_oxide: Atoms
) -> None:
    rattled_oxide.calc = calculator
    expected = potential.eval()(AtomGraph.from_atoms(rattled_oxide, potential.cutoff))
    stress = expected.stress[0].numpy()
    forces = expected.forces.numpy()
    assert rattled_oxide.get_potential_energy() == float(expected.energy)
    assert rattled_oxide.get_potential_energy(force_consistent=True) == float(expected.energy)
    np.testing.assert_array_equal(rattled_oxide.get_potential_energies(), expected.energies.numpy())
    # The calculator's weights need no gradients, which reorders sums on the way back.
    np.testing.assert_allclose(rattled_oxide.get_forces(), forces, rtol=0, atol=1e-13 * np.abs(forces).max())
    np.testing.assert_allclose(
        rattled_oxide.get_stress(voigt=False), stress, rtol=0, atol=1e-13 * np.abs(stress).max()
    )


def test_forces_and_stress_are_the_derivatives_of_the_energy(
    calculator: equipes.Calculator, rattled_oxide: Atoms
) -> None:
    rattled_oxide.calc = calculator
    forces, stress = rattled_oxide.get_forces(), rattled_oxide.get_stress()
    numerical = calculate_numerical_forces(rattled_oxide, eps=1e-4)
    np.testing.assert_allclose(forces, numerical, rtol=0, atol=1e-6 * np.abs(forces).max())
    numerical = calculate_numerical_stress(rattled_oxide, eps=1e-5)
    np.testing.assert_allclose(stress, numerical, rtol=0, atol=1e-6 * np.abs(stress).max())


@pytest.mark.parametrize("skin", [0.0, 0.5, 1.5])
def test_the_skin_changes_nothing_while_atoms_and_cell_move(
    potential: equipes.Potential, skin: float
) -> None:
    """Bit for bit: forces with a skin are those of a fresh list, at every step and whatever came before."""
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", cubic=True, a=3.7) * (2, 1, 1)
    with_skin = equipes.Calculator(potential, dtype="float64", skin=skin)
    for _ in range(25):
        strain = np.eye(3) + 0.01 * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
        fresh = equipes.Calculator(potential, dtype="float64", skin=0.0)
        expected = [fresh.get_property(name, atoms) for name in ("energy", "forces", "stress")]
        found = [with_skin.get_property(name, atoms) for name in ("energy", "forces", "stress")]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert with_skin.neighbor_list_builds in {0.0: [25], 0.5: range(2, 13), 1.5: range(1, 4)}[skin]


@pytest.mark.parametrize("kind", ["crystal", "slab", "wire", "molecule"])
def test_no_edge_is_lost_under_displacement_and_strain(kind: str, rng: np.random.Generator) -> None:
    cutoff, skin = 3.0, 0.8
    pbc = {"crystal": (1, 1, 1), "slab": (1, 1, 0), "wire": (1, 0, 0), "molecule": (0, 0, 0)}[kind]
    reused = 0
    for _ in range(20):
        cell = 4 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
        if kind == "wire":
            cell[1:] = 0
        if kind == "molecule":
            cell[:] = 0
        atoms = Atoms("Cu6", positions=rng.uniform(0, 5, (6, 3)), cell=cell, pbc=pbc)
        neighbors = SkinnedNeighbors(cutoff, skin)
        neighbors.graph(atoms)
        for _ in range(4):
            atoms.positions += 0.07 * rng.normal(size=(6, 3))
            strain = np.eye(3) + 0.02 * rng.normal(size=(3, 3))
            if any(pbc):
                atoms.set_cell(atoms.cell.array @ strain, scale_atoms=bool(rng.integers(2)))
            before = neighbors.builds
            graph = neighbors.graph(atoms)
            reused += neighbors.builds == before
            fresh = AtomGraph.from_atoms(atoms, cutoff)
            assert same_edges(graph, fresh)
            torch.testing.assert_close(graph.edge_vectors(), fresh.edge_vectors(), rtol=0, atol=1e-12)
            assert graph.cutoff == cutoff
    assert reused > 20  # or the test would say nothing about old lists


def test_a_cell_that_shrinks_alone_asks_for_a_new_list() -> None:
    """Atoms that keep their places in the cell come closer than any bound on displacements would tell."""
    atoms = bulk("Cu", cubic=True) * (4, 4, 4)
    neighbors = SkinnedNeighbors(3.0, 0.5)
    neighbors.graph(atoms)
    for factor, builds in ((0.99, 1), (0.9, 1), (0.84, 2)):
        squeezed = atoms.copy()
        squeezed.set_cell(atoms.cell.array * factor, scale_atoms=True)
        assert same_edges(neighbors.graph(squeezed), AtomGraph.from_atoms(squeezed, 3.0))
        assert neighbors.builds == builds


def test_a_little_of_both_asks_for_a_new_list_too() -> None:
    """Neither the shrinking nor the way of the atoms would bring an unlisted pair within the cutoff alone."""
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [3.55, 0, 0]], cell=[20, 20, 20], pbc=True)
    neighbors = SkinnedNeighbors(3.0, 0.5)
    assert neighbors.graph(atoms).n_edges == 0
    atoms.set_cell([18.6, 18.6, 18.6], scale_atoms=True)
    atoms.positions += [[0.2, 0, 0], [-0.2, 0, 0]]
    assert neighbors.graph(atoms).n_edges == 2


def test_a_list_is_used_again_until_an_atom_moved_half_of_the_skin(
    potential: equipes.Potential, copper: Atoms
) -> None:
    atoms = copper * (2, 2, 2)
    atoms.calc = equipes.Calculator(potential, skin=0.6)
    moves = []
    for distance in (0.0, 0.29, 0.31, 0.32):
        atoms.positions[3] = (copper * (2, 2, 2)).positions[3] + [distance, 0, 0]
        atoms.get_forces()
        moves.append(atoms.calc.neighbor_list_builds)
    assert moves == [1, 1, 2, 2]


@pytest.mark.parametrize("change", ["species", "periodicity", "number"])
def test_another_structure_gets_its_own_list(
    potential: equipes.Potential, calculator: equipes.Calculator, rattled_oxide: Atoms, change: str
) -> None:
    calculator.get_property("energy", rattled_oxide)
    other = rattled_oxide.copy()
    if change == "species":
        other.symbols[0] = "H"
    elif change == "periodicity":
        other.pbc = (True, True, False)
    else:
        del other[2]
    expected = potential.eval()(AtomGraph.from_atoms(other, potential.cutoff))
    assert calculator.get_property("energy", other) == float(expected.energy)
    assert calculator.neighbor_list_builds == 2


def test_nothing_is_calculated_twice(
    calculator: equipes.Calculator, rattled_oxide: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    calculator.potential.register_forward_hook(lambda *_: calls.append(1))
    rattled_oxide.calc = calculator
    rattled_oxide.get_potential_energy()
    rattled_oxide.get_forces()
    rattled_oxide.get_stress()
    rattled_oxide.set_initial_magnetic_moments(np.ones(len(rattled_oxide)))
    rattled_oxide.get_potential_energies()
    assert len(calls) == 1
    rattled_oxide.positions[0, 0] += 1e-14  # the smallest step counts
    rattled_oxide.get_forces()
    assert len(calls) == 2
    rattled_oxide.cell[0, 0] += 1e-9
    rattled_oxide.get_forces()
    assert len(calls) == 3


def test_results_belong_to_the_caller(calculator: equipes.Calculator, rattled_oxide: Atoms) -> None:
    rattled_oxide.calc = calculator
    first = rattled_oxide.get_forces()
    kept = first.copy()
    first += 1.0
    np.testing.assert_array_equal(rattled_oxide.get_forces(), kept)
    rattled_oxide.positions[0] += 0.1
    rattled_oxide.get_forces()
    np.testing.assert_array_equal(first, kept + 1.0)


def test_the_users_potential_is_left_alone() -> None:
    mine = equipes.build("nequip", ["Cu"], SMALL, dtype="float64").train()
    trainable = [parameter.requires_grad for parameter in mine.parameters()]
    crystal = bulk("Cu")
    crystal.rattle(0.1)
    crystal.calc = equipes.Calculator(mine, dtype="float32")
    energy = crystal.get_potential_energy()
    assert mine.dtype == torch.float64
    assert mine.training
    assert [parameter.requires_grad for parameter in mine.parameters()] == trainable
    assert crystal.calc.potential.dtype == torch.float32
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.mul_(2.0)
    crystal.calc.reset()
    assert crystal.get_potential_energy() == energy


def test_precision(potential: equipes.Potential, rattled_oxide: Atoms) -> None:
    forces = {}
    for dtype in ("float32", "float64", None):
        rattled_oxide.calc = equipes.Calculator(potential, dtype=dtype)
        forces[dtype] = rattled_oxide.get_forces()
    difference = np.abs(forces["float32"] - forces["float64"]).max() / np.abs(forces["float64"]).max()
    assert 0 < difference < 1e-5
    np.testing.assert_array_equal(forces[None], forces["float64"])


def test_a_path_serves_as_well(potential: equipes.Potential, rattled_oxide: Atoms, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    potential.save(path)
    energies = [
        equipes.Calculator(model).get_property("energy", rattled_oxide)
        for model in (path, str(path), potential)
    ]
    assert len(set(energies)) == 1


def test_a_molecule_has_no_stress(calculator: equipes.Calculator, water: Atoms) -> None:
    water.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="its cell has no volume"):
        water.get_stress()
    assert np.isfinite(water.get_forces()).all()
    water.set_cell([10, 10, 10])
    assert np.isfinite(water.get_stress()).all()


def test_an_unknown_element_names_the_known_ones(calculator: equipes.Calculator) -> None:
    ethanol = molecule("CH3CH2OH")
    ethanol.calc = calculator
    with pytest.raises(InputError, match=r"does not know C; it knows H, O, Cu"):
        ethanol.get_potential_energy()


def test_a_position_that_is_no_number_is_named_and_forgotten(
    calculator: equipes.Calculator, water: Atoms
) -> None:
    water.calc = calculator
    energy = water.get_potential_energy()
    x = water.positions[1, 2]
    water.positions[1, 2] = np.nan
    with pytest.raises(InputError, match=r"atom 1 \(H\)"):
        water.get_potential_energy()
    water.positions[1, 2] = x
    assert water.get_potential_energy() == energy


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"skin": -0.1}, "skin"),
        ({"skin": float("nan")}, "skin"),
        ({"dtype": "float16"}, "float16"),
        ({"device": "nowhere"}, "nowhere"),
        ({"device": "meta:x"}, "meta:x"),
    ],
)
def test_bad_options(potential: equipes.Potential, options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        equipes.Calculator(potential, **options)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        equipes.Calculator(tmp_path / "absent.safetensors")
