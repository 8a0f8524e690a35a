"""Neighbours, buffers and recorded steps of the device form, here on the CPU through the same code."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from equipes import AtomGraph, Calculator
from equipes.device_neighbors import neighbors_on_device, sorted_neighbors
from equipes.graph import lattice_box
from equipes.harmonics import raising_matrix
from equipes.kernels import triton
from equipes.kernels.contraction import check_shapes
from equipes.models import build, device_frozen, device_product
from equipes.models.device_frozen import DevicePotential
from equipes.models.device_geometry import DeviceAtoms
from equipes.models.device_padding import PaddedAtoms, Replay, Room, bucket
from equipes.models.frozen import describe_potential
from test_frozen import ensemble, graph_of, make


def on_cpu(name: str) -> DevicePotential:
    return DevicePotential(describe_potential(make(name), None, 1e-3)[0], "cpu")


def atoms_of(potential: DevicePotential, graph: AtomGraph) -> DeviceAtoms:
    types = potential.types(graph.numbers.numpy())
    return DeviceAtoms.of(graph, torch.tensor(types), potential.groups(types))


def rattled(seed: int, times: tuple[int, int, int] = (1, 1, 1)) -> Atoms:
    """Carbon monoxide of no sense, in a skewed cell."""
    atoms = bulk("CO", "rocksalt", a=4.0) * times
    atoms.set_cell(atoms.cell.array + 0.1 * np.random.default_rng(1).normal(size=(3, 3)), scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


# Neighbours.


def far_from_home() -> Atoms:
    atoms = rattled(3, (2, 1, 2))
    atoms.positions += np.random.default_rng(2).integers(-40, 40, (len(atoms), 3)) @ atoms.cell.array
    return atoms


@pytest.mark.parametrize(
    "atoms",
    [*ensemble(), rattled(1, (2, 2, 2)), far_from_home(), Atoms("H"), bulk("Cu", cubic=True) * 6],
    ids=lambda atoms: f"{atoms.symbols} {atoms.pbc}",
)
def test_the_search_on_tensors_is_the_search_on_arrays(atoms: Atoms) -> None:
    """Row by row, in the same order."""
    expected = AtomGraph.from_atoms(atoms, 3.3)
    found = AtomGraph._searched_on_device(
        atoms, lattice_box(atoms.cell.array, np.array(atoms.pbc)), 3.3, torch.device("cpu")
    )
    for field in fields(AtomGraph):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), field.name
    assert torch.equal(found.sender_pointer, expected.sender_pointer)


def test_pairs_in_any_order_are_sorted_and_a_missing_one_is_noticed() -> None:
    graph = AtomGraph.from_atoms(rattled(1, (2, 2, 1)), 3.0)
    pairs, shift = torch.stack([graph.receiver, graph.sender], dim=1), graph.shift.to(torch.int32)
    order = torch.randperm(len(pairs))
    found = sorted_neighbors(pairs[order], shift[order], graph.n_atoms)
    assert torch.equal(found.receiver, graph.receiver) and torch.equal(found.sender, graph.sender)
    assert torch.equal(found.shift, shift) and torch.equal(found.sender_order, graph.sender_order)
    lost = torch.arange(len(pairs)) != 11
    with pytest.raises(RuntimeError, match="symmetric"):
        sorted_neighbors(pairs[lost], shift[lost], graph.n_atoms)


def test_a_device_without_a_search_falls_back_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's answer is used, and a warning says so."""
    from equipes import device_neighbors

    right = device_neighbors._search
    calls: list[int] = []

    def search(*given: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return right(*given)

    monkeypatch.setattr(device_neighbors, "_search", search)
    atoms = rattled(1)
    positions = _Elsewhere(torch.tensor(atoms.positions))
    given = torch.tensor(atoms.cell.array), torch.tensor([True] * 3)
    with pytest.warns(UserWarning, match="on the CPU, more slowly; on meta: out of luck"):
        found = neighbors_on_device(positions, *given, 3.0)  # type: ignore[arg-type]
    assert len(found.receiver) == AtomGraph.from_atoms(atoms, 3.0).n_edges
    assert found.receiver.device.type == found.sender_order.device.type == "meta"


class _Elsewhere:
    """Positions on another device."""

    device = torch.device("meta")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def cpu(self) -> Tensor:
        return self.tensor


# Buffers.


def test_buckets() -> None:
    counts = np.unique(np.concatenate([np.arange(300), np.geomspace(300, 1e8, 500).astype(int)]))
    rooms = np.array([bucket(int(count)) for count in counts])
    assert (rooms > counts).all() and (np.diff(rooms) >= 0).all()
    assert (rooms[counts >= 32] <= 1.126 * counts[counts >= 32] + 1).all()
    assert len(np.unique(rooms)) < 8 * np.log2(1e8)


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("sevennet xplor", True),
        ("zbl", True),
        ("cutoffs per pair", False),
        ("mace", False),
        ("mace with densities and repulsion", True),
    ],
)
def test_garbage_in_the_padding_changes_no_bit(name: str, several: bool) -> None:
    potential = on_cpu(name)
    graph = graph_of(ensemble() if several else [rattled(1, (2, 1, 1))])
    given = atoms_of(potential, graph)
    padded = PaddedAtoms(Room.for_(given), "cpu")
    padded.fill(given)
    clean = potential.evaluate(padded.atoms)
    n, e, own = graph.n_atoms, graph.n_edges, padded.atoms
    assert own.n_atoms > n and own.n_edges > e and own.shift is not None
    own.positions[n:] = float("nan")
    own.types[n:] = torch.randint(3, (own.n_atoms - n,))
    for indices in (own.receiver, own.sender):
        indices[e:] = torch.randint(own.n_atoms, (own.n_edges - e,))
    own.sender_order[e:] = torch.randint(own.n_edges, (own.n_edges - e,))
    own.shift[e:] = torch.randint(-(2**31), 2**31 - 1, (own.n_edges - e, 3)).int()
    dirty, plain = potential.evaluate(own), potential.evaluate(given)
    for one, other, exact in (
        (dirty.energies, clean.energies, plain.energies),
        (dirty.forces, clean.forces, plain.forces),
    ):
        assert torch.equal(one, other) and not one[n:].any()
        torch.testing.assert_close(one[:n], exact, rtol=0, atol=1e-13 * float(exact.abs().max()))
    assert torch.equal(dirty.virial, clean.virial)
    torch.testing.assert_close(
        dirty.virial, plain.virial, rtol=0, atol=1e-13 * float(plain.virial.abs().max())
    )


def test_buffers_serve_smaller_structures_after_larger_ones() -> None:
    potential = on_cpu("base")
    large, small = (atoms_of(potential, graph_of([atoms])) for atoms in (rattled(1, (2, 2, 1)), rattled(2)))
    padded = PaddedAtoms(Room.for_(large), "cpu")
    padded.fill(large)
    potential.evaluate(padded.atoms)
    padded.fill(small)
    found, expected = potential.evaluate(padded.atoms), potential.evaluate(small)
    size = float(expected.forces.abs().max())
    torch.testing.assert_close(found.forces[: small.n_atoms], expected.forces, rtol=0, atol=1e-13 * size)
    torch.testing.assert_close(found.virial, expected.virial, rtol=0, atol=1e-12 * size)
    with pytest.raises(ValueError, match="no room"):
        PaddedAtoms(Room.for_(small), "cpu").fill(large)


# Recorded steps.


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("zbl", False),
        ("sevennet modalities", True),
        ("mace", True),
        ("mace with densities and repulsion", False),
    ],
)
def test_a_step_never_waits_for_the_device(name: str, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without numbers, said to be on a GPU: to read one on the host, to let a shape depend on one, or to mix
    them with those of the CPU is an error."""
    without_kernels(monkeypatch)
    description = describe_potential(make(name), None, 1e-3)[0]
    given = atoms_of(on_cpu(name), graph_of(ensemble() if several else ensemble()[1:2]))
    raising_matrix.cache_clear()
    with FakeTensorMode(), torch.no_grad():
        potential = DevicePotential(description, "cuda:0")
        atoms = PaddedAtoms(Room.for_(given), "cuda:0").atoms
        result = Replay(lambda: potential.evaluate(atoms), "cpu")()
        for tensor in (result.energies, result.forces, result.virial):
            assert tensor.device.type == "cuda" and tensor.dtype == torch.float64
        with pytest.raises(DataDependentOutputException):
            bool(result.energies.sum() > 0)
    raising_matrix.cache_clear()


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the right sizes in the place of what kernels compute."""
    monkeypatch.setattr(device_frozen, "spline_message_passing", _messages)
    monkeypatch.setattr(device_frozen, "spline_reverse", _cotangents)
    monkeypatch.setattr(device_product, "contract", _contracted)
    monkeypatch.setattr(device_product, "contract_reverse", _contracted_reverse)


def _contracted(table, A, coefficients, types, groups):  # type: ignore[no-untyped-def]
    check_shapes(table, A, coefficients, types)
    return A.new_zeros(len(A), table.outputs * coefficients.shape[2])


def _contracted_reverse(table, A, coefficients, types, groups, cotangents):  # type: ignore[no-untyped-def]
    assert cotangents.shape == _contracted(table, A, coefficients, types, groups).shape
    return torch.zeros_like(A)


def _messages(form, x, harmonics, splines, places, graph):  # type: ignore[no-untyped-def]
    assert x is None or x.shape == (graph.n_atoms, form.irreps_in.dim)
    assert splines.n_weights == form.n_weights and harmonics.shape == (graph.n_edges, (form.l_max + 1) ** 2)
    return harmonics.new_empty(graph.n_atoms, form.irreps_out.dim)


def _cotangents(form, x, harmonics, splines, places, graph, cotangent):  # type: ignore[no-untyped-def]
    assert cotangent.shape == (graph.n_atoms, form.irreps_out.dim)
    by_x = None if x is None else torch.empty_like(x)
    return by_x, torch.empty_like(harmonics), torch.empty_like(places.t)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calculators on the CPU do as on a GPU."""
    monkeypatch.setattr("equipes.calculators.ase.runs_natively", lambda device: False)
    monkeypatch.setattr("equipes.calculators.ase.kernel_name", lambda device: "triton")


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("recorded", [True, False], ids=["padded", "as large as it is"])
def test_the_calculator_on_a_device(recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks of atoms and cell, with lists collected anew now and then: the exact model at every step."""
    if not recorded:
        monkeypatch.setattr("equipes.calculators.device.RECORDED_ATOMS", 0)
    potential = make("base", "float64")
    calculator, exact = (
        Calculator(potential, dtype="float64", freeze=True),
        Calculator(potential, dtype="float64"),
    )
    monkeypatch.setattr("equipes.calculators.ase.TOLERABLE_FLOAT64", 1e-4)
    atoms = rattled(4, (2, 1, 1))
    rng = np.random.default_rng(3)
    for step in range(8):
        atoms.calc = calculator
        found = [atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()]
        assert isinstance(calculator.frozen, DevicePotential) and exact.frozen is None
        atoms.calc = exact
        for one, other in zip(
            found, [atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()], strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3))
        if step == 3:
            atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    assert 3 < calculator.neighbor_list_builds < 8


@pytest.mark.usefixtures("devices")
def test_results_are_the_callers_and_buffers_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipes.calculators.ase.TOLERABLE_FLOAT64", 1.0)
    monkeypatch.setitem(device_frozen.describe_potential.__globals__["TOLERANCES"], torch.float64, 1e-3)
    calculator = Calculator(make("base"), dtype="float64", freeze=True)
    atoms = rattled(4)
    atoms.calc = calculator
    before = atoms.get_forces()
    kept = before.copy()
    atoms.positions += 1.0  # a new list for the same atoms
    atoms.rattle(0.05, seed=2)
    assert not np.array_equal(atoms.get_forces(), kept) and np.array_equal(before, kept)
    assert calculator.neighbor_list_builds == 2 and calculator._evaluator.recordings == 1
    larger = rattled(4, (3, 2, 1))
    larger.calc = calculator
    larger.get_forces()
    assert calculator._evaluator.recordings == 2
    assert atoms.get_potential_energy() == calculator.get_potential_energy(atoms)


@pytest.mark.usefixtures("devices")
def test_what_calculates_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from equipes.simulate.processes import processes_for

    potential = make("schnet", "float32")
    assert Calculator(potential).freeze_for(["C"]) is None  # runs as it is
    assert isinstance(Calculator(make("mace", "float32")).freeze_for(["C", "O"]), DevicePotential)
    potential = make("base", "float32")
    assert Calculator(potential, exact=True).freeze_for(["C"]) is None
    calculator = Calculator(potential)
    frozen = calculator.freeze_for(["C"])
    assert isinstance(frozen, DevicePotential) and frozen.species == ("C",)
    # A copy of the process cannot go on with a GPU.
    assert processes_for(calculator, 10**9, 10**9) == 1
    monkeypatch.setattr("equipes.calculators.ase.kernel_name", lambda device: "reference")
    assert Calculator(potential).freeze_for(["C"]) is None


@pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
@pytest.mark.parametrize("architecture", ["nequip", "mace"])
def test_the_kernels_of_gpus_read_no_padding(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter in the place of plain torch, in padded buffers."""
    small: dict[str, object] = {
        "r_max": 3.0,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 2,
        "num_bessels": 3,
    }
    if architecture == "mace":
        small = {"r_max": 3.0, "max_ell": 1, "hidden_irreps": "2x0e + 2x1o", "num_bessel": 3}
    potential = build(architecture, ["H", "O"], small, dtype="float64", seed=1).eval()
    frozen = DevicePotential(describe_potential(potential, None, 1e-2)[0], "cpu")
    given = atoms_of(frozen, graph_of([molecule("OH")]))
    padded = PaddedAtoms(Room(given.n_atoms + 1, given.n_edges + 1, 1, ()), "cpu")
    padded.fill(replace(given, groups=None))
    expected = frozen.evaluate(given)
    monkeypatch.setenv("EQUIPES_KERNEL", "triton")
    found = frozen.evaluate(replace(padded.atoms, groups=given.groups))
    torch.testing.assert_close(found.forces[:2], expected.forces, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.virial, expected.virial, rtol=0, atol=1e-13)
