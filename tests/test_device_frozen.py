"""The frozen form for GPUs, here on the CPU: the same code with the kernels in plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from ase.stress import full_3x3_to_voigt_6_stress
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equipes import AtomGraph, InputError
from equipes.foundation import read_sevennet
from equipes.harmonics import spherical_harmonics
from equipes.kernels import native
from equipes.models import convert
from equipes.models.description import Description
from equipes.models.device_frozen import DevicePotential, freeze_on_device
from equipes.models.device_geometry import DeviceAtoms, harmonics_of, harmonics_reverse
from equipes.models.frozen import describe_potential
from laws import PhysicalLaws
from potentials import MODELS
from test_device_steps import without_kernels
from test_frozen import CASES, differences, ensemble, graph_of, make

NAMES = [name for name, (architecture, _) in CASES.items() if architecture in ("nequip", "sevennet", "mace")]
# Each with something that the others do not have; all of them are asked on a GPU (test_gpu.py).
DIFFERENT = [
    "scalars only",
    "l_max 4",
    "without parity",
    "one layer",
    "norms per species",
    "cutoffs per pair",
    "readout network",
    "zbl",
    "sevennet harmonics of vectors",
    "sevennet modalities",
]


def described(name: str, tolerance: float = 1e-4, dtype: str = "float64") -> Description:
    return describe_potential(make(name, dtype), None, tolerance)[0]


def on_cpu(name: str, tolerance: float = 1e-4) -> DevicePotential:
    return DevicePotential(described(name, tolerance), "cpu")


@pytest.fixture(scope="module")
def graph() -> AtomGraph:
    return graph_of(ensemble())


@pytest.mark.skipif(not native.usable_instruction_sets(), reason="the native code was not built")
@pytest.mark.parametrize("name", DIFFERENT)
def test_it_is_the_native_frozen_form(name: str, graph: AtomGraph) -> None:
    """Coarse splines: both must have the same errors."""
    native_form = make(name).freeze(tolerance=1e-4)
    found, expected = native_form.on("cpu")(graph), native_form(graph)
    for what, difference in differences(found, expected).items():
        assert difference < 1e-13, f"{what}: {difference:.1e}"
    assert torch.equal(torch.isnan(found.stress), torch.isnan(expected.stress))
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["zbl", "sevennet xplor"])
def test_denser_knots_bring_it_to_the_model(name: str, graph: AtomGraph) -> None:
    potential = make(name)
    found = freeze_on_device(potential, "cpu", tolerance=1e-9)
    assert max(differences(found(graph), potential(graph)).values()) < 2e-8
    assert 0 < found.deviation["forces"] < 1e-8 * found.deviation["largest_force"]


def test_in_float32_only_round_off_is_left(graph: AtomGraph) -> None:
    potential = make("sevennet xplor")
    single = convert(potential, "float32").eval()
    expected = potential(graph)
    found = freeze_on_device(single, "cpu")(graph)
    assert found.energies.dtype == found.forces.dtype == torch.float64
    own = differences(single(graph), expected)
    for what, difference in differences(found, expected).items():
        assert difference < max(5 * own[what], 5e-6), f"{what}: {difference:.1e}, the model {own[what]:.1e}"


LAWFUL = [
    replace(
        model, name=f"{model.name}, on a device", broken=lambda potential: freeze_on_device(potential, "cpu")
    )
    for model in MODELS
    if model.name in ("sevennet l_max 2, XPLOR, 3 layers", "mace pseudovectors")
]


@pytest.mark.parametrize("model", LAWFUL, ids=str)
class TestLawsOnADevice(PhysicalLaws):
    # It has no parameters.
    test_loss_gradient_of_every_parameter = None


@pytest.mark.parametrize("l_max", range(5))
def test_harmonics_and_their_reverse(l_max: int) -> None:
    directions = torch.randn(7, 3, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).requires_grad_()
    expected = spherical_harmonics(l_max, directions)
    found = harmonics_of(l_max, directions.detach())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    cotangents = torch.randn_like(found)
    reverse = harmonics_reverse(l_max, found, cotangents)
    if l_max == 0:
        assert not reverse.any()
        return
    (gradient,) = torch.autograd.grad((expected * cotangents).sum(), directions)
    torch.testing.assert_close(reverse, gradient, rtol=0, atol=1e-12)


def test_energies_alone(graph: AtomGraph) -> None:
    potential = on_cpu("zbl")
    whole, energies, forces = (
        potential(graph),
        potential(graph, forces=False, stress=False),
        potential(graph, stress=False),
    )
    assert energies.forces is None and energies.stress is None and forces.virial is None
    assert torch.equal(energies.energies, whole.energies) and torch.equal(forces.forces, whole.forces)


def test_a_position_that_is_no_number_is_not_an_atom_alone() -> None:
    """Its edges do not compare with any cutoff; what comes out must be no number either."""
    potential = on_cpu("base")
    atoms = ensemble()[0]
    graph = AtomGraph.from_atoms(atoms, 3.0)
    graph.positions[2, 1] = float("nan")
    found = potential(graph)
    assert torch.isnan(found.energy).all() and torch.isnan(found.forces[2]).any()


def test_the_same_potential_on_other_atoms() -> None:
    """Species are looked up again when they must be: for another graph, one written to, one of inference mode."""
    potential = on_cpu("base")
    water, other = Atoms("OHH", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]]), Atoms("COH")
    other.positions = water.positions
    expected = [float(potential(graph_of([atoms])).energy) for atoms in (water, other)]
    assert abs(expected[0] - expected[1]) > 1e-3
    graph = graph_of([water])
    assert float(potential(graph).energy) == float(potential(graph).energy) == expected[0]
    graph.numbers.copy_(torch.tensor(other.numbers))
    assert float(potential(graph).energy) == expected[1]
    with torch.inference_mode():
        graph = graph_of([water])
        assert float(potential(graph).energy) == expected[0]
        graph.numbers.copy_(torch.tensor(other.numbers))
        assert float(potential(graph).energy) == expected[1]


def test_edges_beyond_the_cutoff_do_not_count(graph: AtomGraph) -> None:
    """As those in the skin of a list."""
    potential = on_cpu("sevennet xplor")
    long = graph_of(ensemble(), 3.7)
    assert long.n_edges > graph.n_edges
    assert max(differences(potential(long), potential(graph)).values()) < 1e-14


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside had at a time, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize("name", ["base", "mace", "mace with densities and repulsion"])
def test_memory_is_what_is_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the kernels in plain torch take; the difference of two sizes, so that matrices do not count."""
    without_kernels(monkeypatch)
    potential = DevicePotential(described(name, 1e-2), "cpu")
    peaks, counted = [], []
    for cells in (2, 3):
        graph = AtomGraph.from_atoms(bulk("CO", "rocksalt", a=4.0) * (cells, cells, cells), 3.0)
        types = potential.types(graph.numbers.numpy())
        atoms = DeviceAtoms.of(graph, torch.tensor(types), potential.groups(types))
        with Peak() as peak:
            potential.evaluate(atoms)
        peaks.append(peak.bytes)
        counted.append(potential.workspace_bytes(graph.n_atoms, graph.n_edges))
    assert 0.75 < (peaks[1] - peaks[0]) / (counted[1] - counted[0]) < 1.0
    # No weights for each edge.
    assert peak.largest < graph.n_edges * 8 * min(layer.splines.n_weights for layer in potential._layers)


def test_what_runs_on_the_cpu_only_is_refused() -> None:
    with pytest.raises(InputError, match="exact"):
        freeze_on_device(make("schnet"), "cpu")
    if native.usable_instruction_sets():
        with pytest.raises(InputError, match="runs on the CPU"):
            make("schnet").freeze(tolerance=1e-2).on("cpu")
    potential = on_cpu("base")
    with pytest.raises(InputError, match="does not know Cu"):
        potential(AtomGraph.from_atoms(bulk("Cu"), 3.0))
    with pytest.raises(InputError, match="reaches 3 Å"):
        potential(AtomGraph.from_atoms(Atoms("H"), 2.0))


def test_published_weights_give_the_golden_numbers(shared_data: Path, published: Path) -> None:
    frames = read(shared_data / "goldens" / "sevennet0_float64.extxyz", ":")
    frames = sorted(frames, key=len)[:4]
    species = sorted({symbol for atoms in frames for symbol in atoms.symbols})
    potential = freeze_on_device(convert(read_sevennet(published), "float64"), "cpu", species)
    for atoms in frames:
        found, expected = potential(AtomGraph.from_atoms(atoms, potential.cutoff)), atoms.calc.results
        assert abs(found.energy.item() - expected["energy"]) < 1e-6 * len(atoms)
        assert np.abs(found.forces.numpy() - expected["forces"]).max() < 2e-6
        if "stress" in expected:
            stress = full_3x3_to_voigt_6_stress(found.stress[0].numpy())
            assert np.abs(stress - expected["stress"]).max() < 1e-7
