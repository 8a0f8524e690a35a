"""What only a GPU can show: its kernels, its search for neighbours, recorded steps. Skipped where there is none."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from equipes import AtomGraph, Calculator
from equipes.data import GraphDataset
from equipes.device_neighbors import neighbors_on_device
from equipes.graph import lattice_box
from equipes.kernels import kernel_name
from equipes.models import Potential, convert
from equipes.models.device_frozen import DevicePotential, DeviceResult, freeze_on_device
from equipes.models.device_geometry import DeviceAtoms
from equipes.models.device_padding import PaddedAtoms, Replay, Room
from equipes.models.frozen import describe_potential
from equipes.simulate import MDSettings, run_md
from equipes.simulate.device_dynamics import DeviceDynamics
from equipes.training.stream import BatchStream
from test_device_dynamics import far, moving
from test_device_frozen import NAMES
from test_device_steps import far_from_home, rattled
from test_frozen import differences, ensemble, graph_of, make
from test_recorded_steps import CHANGING, RECORDED, module_of, steps
from test_recorded_steps import make as trainable
from training_samples import uneven_frames

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def both(name: str, dtype: torch.dtype = torch.float64) -> tuple[DevicePotential, DevicePotential]:
    """On the GPU and on the CPU."""
    description = replace(describe_potential(make(name), None, 1e-4)[0], dtype=dtype)
    return DevicePotential(description, "cuda"), DevicePotential(description, "cpu")


def on_gpu(potential: DevicePotential, graph: AtomGraph) -> DeviceAtoms:
    types = potential.types(graph.numbers.numpy())
    return DeviceAtoms.of(graph.to("cuda"), torch.tensor(types, device="cuda"), potential.groups(types))


def on_host(prediction: object) -> object:
    tensors = {field.name: getattr(prediction, field.name) for field in fields(prediction)}  # type: ignore[arg-type]
    return replace(prediction, **{name: tensor.cpu() for name, tensor in tensors.items()})  # type: ignore[type-var]


def test_messages_are_computed_by_triton() -> None:
    assert kernel_name("cuda") == "triton"


@pytest.mark.parametrize("name", NAMES)
def test_the_gpu_computes_what_the_cpu_does(name: str) -> None:
    there, here = both(name)
    graph = graph_of(ensemble())
    assert max(differences(on_host(there(graph)), here(graph)).values()) < 1e-12


@pytest.mark.parametrize("name", ["base", "sevennet xplor", "zbl", "mace with densities and repulsion"])
def test_in_float32_to_round_off(name: str) -> None:
    there, _ = both(name, torch.float32)
    _, here = both(name)
    graph = graph_of(ensemble())
    assert max(differences(on_host(there(graph)), here(graph)).values()) < 2e-5


@pytest.mark.parametrize("name", ["sevennet xplor", "mace"])
def test_the_same_bits_every_time(name: str) -> None:
    potential, _ = both(name, torch.float32)
    graph = graph_of([rattled(1, (3, 3, 3))])
    first, second = potential(graph), potential(graph)
    for what in ("energies", "forces", "virial"):
        assert torch.equal(getattr(first, what), getattr(second, what)), what


@pytest.mark.parametrize(
    "atoms",
    [*ensemble(), rattled(1, (2, 2, 2)), far_from_home(), Atoms("H"), bulk("Si", cubic=True) * 8],
    ids=lambda atoms: f"{atoms.symbols} {atoms.pbc}",
)
def test_neighbours_found_on_the_gpu_are_those_of_the_cpu(
    atoms: Atoms, recwarn: pytest.WarningsRecorder
) -> None:
    pbc = np.array(atoms.pbc)
    found = neighbors_on_device(
        torch.tensor(atoms.positions).cuda(),
        torch.tensor(lattice_box(atoms.cell.array, pbc)).cuda(),
        torch.tensor(pbc).cuda(),
        3.3,
    )
    assert not recwarn.list, "the search fell back to the CPU"
    expected = AtomGraph.from_atoms(atoms, 3.3)
    for name in ("receiver", "sender", "row_pointer", "sender_order", "sender_pointer"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    assert torch.equal(found.shift.cpu().double(), expected.shift)


def test_large_structures_are_searched_on_the_gpu() -> None:
    atoms = bulk("Si", cubic=True) * 8
    graph = AtomGraph.from_atoms(atoms, 5.0, "cuda")
    assert graph.receiver.is_cuda and graph.n_edges == 28 * len(atoms)


@pytest.mark.parametrize("name", ["base", "mace with densities and repulsion"])
def test_a_step_waits_for_nothing(name: str) -> None:
    potential, _ = both(name)
    given = on_gpu(potential, graph_of(ensemble()))
    padded = PaddedAtoms(Room.for_(given), "cuda")
    padded.fill(given)
    potential.evaluate(padded.atoms)  # kernels are compiled
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        potential.evaluate(padded.atoms)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def recorded(potential: DevicePotential, given: DeviceAtoms) -> tuple[PaddedAtoms, Replay[DeviceResult]]:
    padded = PaddedAtoms(Room.for_(given), "cuda")
    return padded, Replay(lambda: potential.evaluate(padded.atoms), "cuda")


@pytest.mark.parametrize("several", [False, True], ids=["one structure", "several"])
@pytest.mark.parametrize("name", ["zbl", "mace", "mace with densities and repulsion"])
def test_a_recorded_step_is_the_step(name: str, several: bool) -> None:
    potential, _ = both(name)
    structures = ensemble() if several else [rattled(1, (2, 1, 1))]
    padded, step = recorded(potential, on_gpu(potential, graph_of(structures)))
    for seed in range(4):
        for atoms in structures:
            atoms.rattle(0.02, seed=seed)
        given = on_gpu(potential, graph_of(structures))
        if not padded.fits(given):
            padded, step = recorded(potential, given)
        padded.fill(given)
        found, expected = step(), potential.evaluate(given)
        for what in ("energies", "forces", "virial"):
            one, other = getattr(found, what), getattr(expected, what)
            size = float(other.abs().max())
            torch.testing.assert_close(one[: len(other)], other, rtol=0, atol=1e-12 * size)


def _exact(potential: Potential, atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    other = atoms.copy()
    other.calc = Calculator(potential, dtype="float64", exact=True)
    return other.get_potential_energies(), other.get_forces(), other.get_stress()


@pytest.mark.parametrize("name", ["base", "sevennet xplor", "mace"])
def test_the_calculator(name: str) -> None:
    potential = make(name)
    atoms = rattled(4, (2, 1, 1))
    atoms.calc = Calculator(convert(potential, "float32"), device="cuda")
    rng = np.random.default_rng(3)
    for step in range(8):
        found = atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()
        assert isinstance(atoms.calc.frozen, DevicePotential)
        for one, other in zip(found, _exact(potential, atoms), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
        atoms.positions += 0.06 * rng.normal(size=(len(atoms), 3))
        if step == 5:
            atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    assert 1 < atoms.calc.neighbor_list_builds < 8


def test_dynamics_are_those_of_the_cpu() -> None:
    results = []
    for potential in both("base"):
        atoms = moving(1)
        dynamics = DeviceDynamics(atoms, potential, skin=0.1, block=7)
        dynamics.run(40)
        dynamics.update(atoms)
        results.append(atoms)
        assert dynamics.neighbor_list_builds > 1 and dynamics.blocks_repeated > 0
    assert far(*results) < 1e-9


def test_energy_is_conserved_in_float32_as_on_the_cpu() -> None:
    changes = []
    for dtype, index in ((torch.float32, 0), (torch.float64, 1)):
        dynamics = DeviceDynamics(moving(2, kelvin=600.0), both("base", dtype)[index], timestep=0.5)
        before = dynamics.potential_energy + dynamics.kinetic_energy
        dynamics.run(200)
        changes.append(dynamics.potential_energy + dynamics.kinetic_energy - before)
    assert abs(changes[0] - changes[1]) < 1e-4


@pytest.mark.parametrize("thermostat", ["bussi", "langevin"])
def test_runs_with_thermostats_are_those_of_the_cpu(thermostat: str, tmp_path: Path) -> None:
    settings = MDSettings("nvt", steps=40, timestep=0.5, temperature=300.0, thermostat=thermostat, interval=8)
    atoms = moving(2)
    ends = [
        run_md(
            atoms, Calculator(make("base"), device, dtype="float64", freeze=True), settings, tmp_path / device
        )
        for device in ("cpu", "cuda")
    ]
    assert far(*(end.atoms for end in ends)) < 1e-6
    energies = [end.summary["mean_potential_energy_ev"] for end in ends]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)


def test_memory_is_what_was_counted() -> None:
    """The difference of two sizes, so that tables and libraries do not count."""
    single = convert(make("several vectors"), "float32").eval()
    potential = freeze_on_device(single, "cuda", ["C", "O"], tolerance=1e-3)
    peaks, counted = [], []
    for cells in (12, 16):
        atoms = bulk("CO", "rocksalt", a=4.0) * (cells, cells, cells)
        given = on_gpu(potential, AtomGraph.from_atoms(atoms, 3.0))
        potential.evaluate(given)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        potential.evaluate(given)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        counted.append(potential.workspace_bytes(given.n_atoms, given.n_edges))
    assert 0.5 < (peaks[1] - peaks[0]) / (counted[1] - counted[0]) < 1.1


def test_a_training_step_gives_the_gradients_of_the_cpu() -> None:
    gradients: list[Tensor] = []
    for device in ("cpu", "cuda"):
        potential = make("base").to(device).train()
        prediction = potential(graph_of(ensemble()).to(device), stress=False)
        (prediction.energy.sum() + prediction.forces.square().sum()).backward()
        gradients.append(
            torch.cat([p.grad.flatten().cpu() for p in potential.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=0, atol=1e-9 * float(gradients[0].abs().max())
    )


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_training_steps_are_the_steps(
    name: str, optimizer: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Batches of several sizes, weights, rates and clipping that change. SOAP follows its first five steps only to
    a percent: axes without curvature are turned by round-off."""
    dataset = GraphDataset(uneven_frames(), 4.0)
    number = 10 if optimizer == "adamw" else 5
    told, ends = [], []
    for record in (True, False):
        module = module_of(
            trainable(name).to("cuda"), dataset, record_steps=record, optimizer=optimizer, **CHANGING
        )
        told.append(steps(module, BatchStream(dataset, 3, 0), number))
        assert module.records_steps == record
        ends.append(torch.cat([parameter.detach().flatten() for parameter in module.potential.parameters()]))
    assert not [w for w in recwarn.list if "not recorded" in str(w.message)]
    # The fused kernel reads learning rates as float32.
    tolerance = 1e-5 if optimizer == "adamw" else 1e-2
    for (loss, _), (expected, _) in zip(*told, strict=True):
        assert abs(loss - expected) < tolerance * expected
    moved = ends[1] - torch.cat([p.detach().flatten() for p in trainable(name).parameters()]).cuda()
    assert float((ends[0] - ends[1]).abs().max()) < tolerance * float(moved.abs().max())


def test_a_recorded_training_step_waits_for_nothing() -> None:
    dataset = GraphDataset(uneven_frames(), 4.0)
    for optimizer in ("adamw", "soap"):
        module = module_of(trainable("nequip").to("cuda"), dataset, optimizer=optimizer)
        stream = BatchStream(dataset, 3, 0)
        batches = [stream._batch(0, 0, 1) for _ in range(4)]
        for batch in batches[:3]:  # the plain step, both recordings, and one that is played
            module.training_step(batch, 0)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            module.training_step(batches[3], 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
