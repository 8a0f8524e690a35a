"""Many structures at once: neighbours and numbers of each as if it were alone, and torch-sim with our model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given
from hypothesis import strategies as st

import equipes
from equipes import AtomGraph, InputError
from equipes.calculators.batched import BatchedEvaluator, BatchedNeighbors, StructureError, Structures
from equipes.calculators.torch_sim import TorchSimModel

CUTOFF = 3.5
SMALL = {"num_layers": 2, "num_features": 4, "l_max": 1, "r_max": CUTOFF}
FIELDS = ("receiver", "sender", "shift", "row_pointer", "sender_order")


@pytest.fixture(scope="module")
def potential() -> equipes.Potential:
    return equipes.build("nequip", ["H", "O", "Cu", "Si", "Fe", "Mg"], SMALL, dtype="float64", seed=3)


@pytest.fixture
def mixed(slab: Atoms, rattled_oxide: Atoms, water: Atoms, copper: Atoms) -> list[Atoms]:
    """Different sizes, elements and periodicities."""
    far = molecule("H2O")
    far.positions += 50.0
    return [rattled_oxide, water, slab, copper, far]


def moved(structures: list[Atoms], rng: np.random.Generator, size: float, strain: float) -> list[Atoms]:
    result = []
    for atoms in structures:
        atoms = atoms.copy()
        if strain and atoms.cell.rank == 3:
            atoms.set_cell(
                atoms.cell.array @ (np.eye(3) + strain * rng.normal(size=(3, 3))), scale_atoms=True
            )
        atoms.positions += size * rng.normal(size=atoms.positions.shape)
        result.append(atoms)
    return result


def same(graph: AtomGraph, structures: list[Atoms]) -> bool:
    """Whether a graph is bit for bit the batch of fresh graphs."""
    fresh = AtomGraph.batch([AtomGraph.from_atoms(atoms, CUTOFF) for atoms in structures])
    return all(torch.equal(getattr(graph, name), getattr(fresh, name)) for name in FIELDS)


@pytest.mark.parametrize("strain", [0.0, 0.01])
@pytest.mark.parametrize("skin", [0.0, 0.6])
def test_lists_used_again_hold_exactly_the_edges_of_fresh_ones(
    mixed: list[Atoms], rng: np.random.Generator, skin: float, strain: float
) -> None:
    neighbors = BatchedNeighbors(CUTOFF, skin)
    for _ in range(25):
        mixed = moved(mixed, rng, 0.08, strain)
        assert same(neighbors.graph(Structures.from_atoms(mixed)), mixed)
    if skin and not strain:
        assert len(mixed) <= neighbors.builds < 25 * len(mixed)
    if not skin:
        assert neighbors.builds == 25 * len(mixed)


def test_two_atoms_that_approach_are_seen_in_time() -> None:
    """Just beyond the skin at first, and then both moving: the worst that there can be."""
    neighbors = BatchedNeighbors(CUTOFF, 0.6)
    far = Atoms("H2", positions=[[0.0, 0.0, 0.0], [CUTOFF + 0.601, 0.0, 0.0]])
    for _ in range(80):
        assert same(neighbors.graph(Structures.from_atoms([far])), [far])
        far.positions[:, 0] += [0.005, -0.005]
    assert neighbors.builds == 2


def test_only_the_structure_that_moved_too_far_gets_a_new_list(mixed: list[Atoms]) -> None:
    neighbors = BatchedNeighbors(CUTOFF, 0.5)
    neighbors.graph(Structures.from_atoms(mixed))
    mixed[2].positions[1] += [0.3, 0.0, 0.0]
    assert same(neighbors.graph(Structures.from_atoms(mixed)), mixed)
    assert neighbors.builds == len(mixed) + 1
    # What has moved little from its new list is not compared with the old one.
    mixed[2].positions[1] += [0.2, 0.0, 0.0]
    neighbors.graph(Structures.from_atoms(mixed))
    assert neighbors.builds == len(mixed) + 1


def test_a_cell_without_volume_that_changes_gets_a_new_list(slab: Atoms) -> None:
    slab.cell[2] = 0.0
    neighbors = BatchedNeighbors(CUTOFF, 0.5)
    neighbors.graph(Structures.from_atoms([slab]))
    slab.set_cell(slab.cell.array * [[1.002], [1.0], [1.0]])
    assert same(neighbors.graph(Structures.from_atoms([slab])), [slab])
    assert neighbors.builds == 2


@given(st.lists(st.integers(-2, 2), min_size=24, max_size=24))
def test_atoms_wrapped_into_the_cell_need_no_new_list(images: list[int]) -> None:
    atoms = bulk("CuO", "rocksalt", a=4.25, cubic=True)
    atoms.rattle(0.1, seed=3)
    neighbors = BatchedNeighbors(CUTOFF, 0.5)
    before = neighbors.graph(Structures.from_atoms([atoms]))
    atoms.positions += np.reshape(images, (8, 3)) @ atoms.cell.array
    after = neighbors.graph(Structures.from_atoms([atoms]), wrapped=True)
    assert neighbors.builds == 1
    torch.testing.assert_close(after.edge_vectors(), before.edge_vectors(), rtol=0, atol=1e-13)


def test_the_structure_without_sense_is_told(mixed: list[Atoms]) -> None:
    mixed[2].positions[1] = mixed[2].positions[0]
    with pytest.raises(StructureError, match="same place") as caught:
        BatchedNeighbors(CUTOFF, 0.5).graph(Structures.from_atoms(mixed))
    assert caught.value.index == 2
    neighbors = BatchedNeighbors(CUTOFF, 0.5)
    mixed[2].positions[1] += 2.0
    neighbors.graph(Structures.from_atoms(mixed))
    mixed[3].positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="not finite") as caught:
        neighbors.graph(Structures.from_atoms(mixed))
    assert caught.value.index == 3


@pytest.mark.parametrize(("dtype", "exact", "tolerance"), [
    ("float64", True, 1e-13), ("float64", False, 1e-13), ("float32", False, 1e-5), ("float32", True, 1e-5),
])  # fmt: skip
def test_numbers_are_those_of_the_calculator_for_each_alone(
    potential: equipes.Potential, mixed: list[Atoms], dtype: str, exact: bool, tolerance: float
) -> None:
    calculator = equipes.Calculator(potential, dtype=dtype, exact=exact, freeze=not exact)
    found = BatchedEvaluator(calculator)(Structures.from_atoms(mixed))
    assert (calculator.frozen is None) == exact
    start = 0
    for index, atoms in enumerate(mixed):
        atoms.calc = calculator
        forces = found.forces[start : start + len(atoms)].numpy()
        largest = np.abs(found.forces.numpy()).max()
        assert abs(float(found.energy[index]) - atoms.get_potential_energy()) < tolerance * len(atoms)
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=tolerance * largest)
        if atoms.cell.rank == 3:
            expected = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(found.stress[index], expected, rtol=0, atol=tolerance)
        else:
            assert torch.isnan(found.stress[index]).all()
        start += len(atoms)


def test_an_element_that_the_potential_does_not_know(potential: equipes.Potential) -> None:
    evaluator = BatchedEvaluator(equipes.Calculator(potential))
    with pytest.raises(InputError, match="does not know Au"):
        evaluator(Structures.from_atoms([bulk("Cu"), bulk("Au")]))


# -- torch-sim -------------------------------------------------------------------------------------------------------


def test_without_torch_sim_the_extra_is_named(
    potential: equipes.Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equipes.calculators.torch_sim._missing", ImportError("no module"))
    with pytest.raises(InputError, match=r"equipes\[batched\]"):
        TorchSimModel(potential)


@pytest.mark.parametrize(("dtype", "exact"), [("float32", False), ("float64", True)])
def test_torch_sim_finds_the_model_in_order(potential: equipes.Potential, dtype: str, exact: bool) -> None:
    pytest.importorskip("torch_sim", reason="torch-sim is not installed (extra batched)")
    from torch_sim.models.interface import validate_model_outputs

    model = TorchSimModel(potential, dtype=dtype, exact=exact)
    for number_type in (torch.float32, torch.float64):
        validate_model_outputs(model, torch.device("cpu"), number_type)


@pytest.mark.parametrize("periodic", [True, False])
def test_the_model_gives_torch_sim_the_numbers_of_the_calculator(
    potential: equipes.Potential, rattled_oxide: Atoms, copper: Atoms, water: Atoms, periodic: bool
) -> None:
    ts = pytest.importorskip("torch_sim", reason="torch-sim is not installed (extra batched)")
    structures = [rattled_oxide, bulk("Mg", a=3.2, c=5.2), copper] if periodic else [water, molecule("H2O2")]
    model = TorchSimModel(potential, dtype="float64", exact=True)
    state = ts.io.atoms_to_state(structures, model.device, model.dtype)
    found = model(state)
    of_dictionary = model(vars(state))
    for index, atoms in enumerate(structures):
        atoms.calc = equipes.Calculator(potential, dtype="float64", exact=True)
        mine = state.system_idx == index
        assert float(found["energy"][index]) == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(found["forces"][mine], atoms.get_forces(), rtol=0, atol=1e-12)
        if periodic:
            expected = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(found["stress"][index], expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(of_dictionary["forces"], found["forces"])
    model.compute_stress = False
    assert "stress" not in model(state)
    # Atoms that are wrapped into the cell are where they were.
    builds = model._evaluator.neighbor_list_builds
    if periodic:
        state.positions[0] += state.row_vector_cell[0, 1] - state.row_vector_cell[0, 2]
        torch.testing.assert_close(model(state)["forces"], found["forces"], rtol=0, atol=1e-12)
    assert model._evaluator.neighbor_list_builds == builds


def test_torch_sim_conserves_energy_and_uses_lists_again(potential: equipes.Potential) -> None:
    """Its own integrator, which wraps atoms back into the cell at every step."""
    ts = pytest.importorskip("torch_sim", reason="torch-sim is not installed (extra batched)")
    from torch_sim.quantities import calc_kinetic_energy

    structures = [bulk("Cu", a=3.7, cubic=True), bulk("Cu", a=3.9, cubic=True) * (2, 1, 1)]
    for atoms in structures:
        atoms.rattle(0.1, seed=1)
        atoms.positions -= 0.1  # so that some are outside from the start
    model = TorchSimModel(potential, dtype="float64", exact=True)
    state = ts.initialize_state(structures, model.device, model.dtype)
    if not hasattr(ts, "nve"):
        pytest.skip("the integrators of this torch-sim have another interface")
    kT, dt = torch.tensor(0.05).double(), torch.tensor(0.1).double()
    begin, step = ts.nve(model=model, dt=dt, kT=kT, seed=1)
    state = begin(state)

    def total() -> torch.Tensor:
        kinetic = calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
        return state.energy + kinetic

    energies = [total()]
    for _ in range(60):
        state = step(state)
        energies.append(total())
    spread = torch.stack(energies).std(dim=0)
    assert (spread < 1e-4).all() and (spread > 0).all()
    assert 2 <= model._evaluator.neighbor_list_builds < 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(
    potential: equipes.Potential, mixed: list[Atoms], rng: np.random.Generator
) -> None:
    here = BatchedEvaluator(equipes.Calculator(potential, dtype="float64", exact=True))
    there = BatchedEvaluator(equipes.Calculator(potential, "cuda", dtype="float64", exact=True))
    for _ in range(3):
        mixed = moved(mixed, rng, 0.05, 0.002)
        expected = here(Structures.from_atoms(mixed))
        found = there(Structures.from_atoms(mixed, "cuda"))
        torch.testing.assert_close(found.energy.cpu(), expected.energy, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.forces.cpu(), expected.forces, rtol=0, atol=1e-11)
        torch.testing.assert_close(found.stress.cpu(), expected.stress, rtol=0, atol=1e-12, equal_nan=True)
