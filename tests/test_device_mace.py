"""MACE frozen for GPUs, here on the CPU: the same code with the kernels in plain torch, or interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from equipes import AtomGraph, Calculator, InputError
from equipes.kernels import native, triton
from equipes.models import build, convert
from equipes.models.device_frozen import DevicePotential, freeze_on_device
from equipes.models.frozen import describe_potential
from equipes.simulate.device_dynamics import DeviceDynamics
from test_device_dynamics import far, moving
from test_device_steps import rattled
from test_frozen import differences, ensemble, graph_of, make
from test_native_mace import FROZEN, MODELS, potential_of

needs_native = pytest.mark.skipif(
    not native.usable_instruction_sets(), reason="the native code was not built"
)


@pytest.fixture(scope="module")
def graph() -> AtomGraph:
    return graph_of(ensemble())


@needs_native
@pytest.mark.parametrize("name", [*FROZEN, "pseudoscalars", "two bodies", "one channel", "two heads"])
def test_it_is_the_native_frozen_form(name: str, graph: AtomGraph) -> None:
    """Coarse splines: both must have the same errors. Molecules, skewed cells, three species."""
    native_form = potential_of(MODELS[name]).eval().freeze(tolerance=1e-2)
    found, expected = native_form.on("cpu")(graph), native_form(graph)
    for what, difference in differences(found, expected).items():
        assert difference < 1e-13, f"{what}: {difference:.1e}"
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-13, atol=1e-13)


def test_it_is_the_model_without_native_code(graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """And on edges beyond the cutoff, as in the skin of a list."""
    potential = potential_of(MODELS["density"]).eval()
    expected = potential(graph)
    monkeypatch.setattr(native, "module", lambda: None)
    found = freeze_on_device(potential, "cpu", tolerance=1e-9)
    assert max(differences(found(graph), expected).values()) < 2e-8
    assert 0 < found.deviation["forces"] < 1e-8 * found.deviation["largest_force"]
    assert max(differences(found(graph_of(ensemble(), 3.7)), found(graph)).values()) < 1e-13


@pytest.mark.parametrize("name", ["mace", "mace with densities and repulsion"])
def test_in_float32_only_round_off_is_left(name: str, graph: AtomGraph) -> None:
    potential = make(name)
    single = convert(potential, "float32").eval()
    expected = potential(graph)
    found = freeze_on_device(single, "cpu")(graph)
    assert found.energies.dtype == found.forces.dtype == torch.float64
    own = differences(single(graph), expected)
    for what, difference in differences(found, expected).items():
        assert difference < max(5 * own[what], 5e-6), f"{what}: {difference:.1e}, the model {own[what]:.1e}"


@needs_native
def test_one_species_and_some_of_those_there_are(graph: AtomGraph) -> None:
    """All atoms go together, or species have no atoms."""
    potential = potential_of(MODELS["density everywhere, everything"]).eval()
    for species, atoms in ((["C"], Atoms("C3")), (["H", "C", "O"], Atoms("CO2"))):
        atoms.positions = [[0, 0, 0], [0.9, 0.8, 0.1], [-0.2, 0.7, 1.2]]
        frozen = potential.freeze(species, tolerance=1e-1)
        there = frozen.on("cpu")
        assert (there.groups(there.types(atoms.numbers)) is None) == (len(species) == 1)
        here = graph_of([atoms])
        assert max(differences(there(here), frozen(here)).values()) < 1e-13


@pytest.mark.skipif(not triton.installed(), reason="Triton is not installed")
def test_kernels_of_gpus_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter in the place of plain torch: densities, repulsion, a transform, three species."""
    small = {
        "r_max": 3.0,
        "num_bessel": 3,
        "max_ell": 1,
        "hidden_irreps": "3x0e + 3x1o",
        "correlation": 2,
        "radial_MLP": [4],
        "distance_transform": "Soft",
        "pair_repulsion": True,
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    }
    potential = build("mace", ["H", "C", "O"], small, dtype="float64", seed=1).eval()
    frozen = DevicePotential(describe_potential(potential, None, 1e-1)[0], "cpu")
    atoms = Atoms("OHC", positions=[[0, 0, 0], [0.9, 0, 0.2], [-0.3, 1.2, -0.1]], cell=[9, 9, 9], pbc=True)
    expected = frozen(graph_of([atoms]))
    monkeypatch.setenv("EQUIPES_KERNEL", "triton")
    assert max(differences(frozen(graph_of([atoms])), expected).values()) < 1e-13


def test_the_calculator_and_dynamics(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take it as they take the others: padded buffers, species in several groups, forces as of the model."""
    monkeypatch.setattr("equipes.calculators.ase.runs_natively", lambda device: False)
    monkeypatch.setattr("equipes.calculators.ase.kernel_name", lambda device: "triton")
    potential = make("mace")
    atoms = rattled(4, (2, 1, 1))
    calculator = Calculator(convert(potential, "float32"))
    rng = np.random.default_rng(3)
    for _ in range(3):
        atoms.calc = calculator
        found = atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()
        assert isinstance(calculator.frozen, DevicePotential)
        atoms.calc = Calculator(potential, dtype="float64", exact=True)
        exact = atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress()
        for one, other in zip(found, exact, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3))
    frozen = DevicePotential(describe_potential(potential, None, 1e-3)[0], "cpu")
    ends = []
    for skin in (0.1, 3.0):
        dynamics = DeviceDynamics(moving(1), frozen, skin=skin, block=5)
        dynamics.run(15)
        ends.append(moving(1))
        dynamics.update(ends[-1])
        assert (dynamics.neighbor_list_builds > 1) == (skin < 1)
    assert far(*ends) < 1e-10


def test_others_are_still_refused() -> None:
    with pytest.raises(InputError, match="cannot be frozen for cpu"):
        freeze_on_device(make("ani"), "cpu")


def test_torch_sim_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several structures at once, frozen as by the calculator of one."""
    ts = pytest.importorskip("torch_sim", reason="torch-sim is not installed (extra batched)")
    from equipes.calculators.torch_sim import TorchSimModel

    monkeypatch.setattr("equipes.calculators.ase.runs_natively", lambda device: False)
    monkeypatch.setattr("equipes.calculators.ase.kernel_name", lambda device: "triton")
    potential = make("mace")
    model = TorchSimModel(convert(potential, "float32"), dtype="float32")
    structures = [rattled(1), rattled(2, (2, 1, 1))]
    state = ts.io.atoms_to_state(structures, model.device, model.dtype)
    found = model(state)
    assert isinstance(model._evaluator.calculator.frozen, DevicePotential)
    for index, atoms in enumerate(structures):
        expected = potential(graph_of([atoms]))
        forces, stress = found["forces"][state.system_idx == index], found["stress"][index]
        assert float(found["energy"][index]) == pytest.approx(float(expected.energy), abs=1e-5)
        torch.testing.assert_close(forces.double(), expected.forces, rtol=0, atol=1e-5)
        torch.testing.assert_close(stress.double(), expected.stress[0], rtol=0, atol=1e-6)
