"""Building a potential, what it refuses, and how it behaves under torch's modes."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

import equipes
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import ARCHITECTURES, Potential, build, convert

SMALL = {
    "r_max": 3.0,
    "num_layers": 2,
    "l_max": 1,
    "num_features": 3,
    "num_bessels": 3,
    "radial_mlp_width": 5,
}
WATER = Atoms("OHH", positions=[[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.05, -0.75, -0.5]])


def small(**changes: Any) -> Potential:
    dtype, seed = changes.pop("dtype", "float32"), changes.pop("seed", 0)
    return build("nequip", ["H", "O"], SMALL | changes, dtype=dtype, seed=seed)


def weights(potential: Potential) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in potential.parameters()]


def test_public_names() -> None:
    assert equipes.Potential is Potential
    assert equipes.AtomGraph is AtomGraph
    assert issubclass(equipes.InputError, ValueError)
    assert callable(equipes.load)
    with pytest.raises(AttributeError, match="no attribute 'potentials'"):
        _ = equipes.potentials


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_build(architecture: str) -> None:
    potential = build(architecture, ["Si"])
    assert potential.architecture == architecture
    assert potential.cutoff == (5.2 if architecture == "ani" else 5.0)  # ANI's is that of its paper
    assert potential.dtype == torch.float32
    energy = potential(AtomGraph.from_atoms(Atoms("Si"), potential.cutoff)).energy.item()
    # In the others an atom alone goes through layers of its own.
    assert energy == 0.0 if architecture in ("nequip", "mace") else math.isfinite(energy)


def test_same_seed_same_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    one, two, other = small(seed=5), small(seed=5), small(seed=6)
    assert torch.equal(torch.rand(2), first)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_number_types() -> None:
    """One seed means one model: the float64 network starts from the same numbers."""
    single, double = small(), small(dtype="float64")
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    for a, b in zip(weights(single), weights(double), strict=True):
        assert torch.equal(a.double(), b)
    graph = AtomGraph.from_atoms(WATER, 3.0)
    for potential in (single, double):
        prediction = potential(graph)
        for name in ("energy", "energies", "forces", "stress", "virial"):
            assert getattr(prediction, name).dtype == torch.float64


def test_convert_copies() -> None:
    single = small().eval()
    double = convert(single, "float64")
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    assert not double.training
    assert all(
        torch.equal(a.double(), b.double()) for a, b in zip(weights(single), weights(double), strict=True)
    )
    with torch.no_grad():
        next(double.parameters()).add_(1.0)
    again = convert(single, "float32")
    assert all(torch.equal(a, b) for a, b in zip(weights(single), weights(again), strict=True))
    with pytest.raises(InputError, match="unknown dtype 'float16'"):
        convert(single, "float16")


def test_energies_stay_exact_in_a_float32_network() -> None:
    """Reference energies of thousands of eV must not be rounded to 32 bits."""
    shifts = {"H": -13.587222780835477, "O": -2041.8396277138045}
    potential = small(per_type_energy_shifts=shifts).eval()
    for symbol, shift in shifts.items():
        assert potential(AtomGraph.from_atoms(Atoms(symbol), 3.0)).energy.item() == shift


BAD = [
    ({"l_max": 7}, "l_max must be from 0 to 6"),
    ({"l_max": -1}, "l_max"),
    ({"r_max": 0.0}, "r_max must be a positive length"),
    ({"r_max": -2.0}, "r_max"),
    ({"r_max": float("nan")}, "r_max"),
    ({"num_layers": 0}, "num_layers must be at least 1"),
    ({"num_features": 0}, "num_features must be positive"),
    ({"num_features": [4, 4, 4]}, "num_features must be one number, or 2"),
    ({"num_features": [4, 0]}, "num_features must be positive"),
    ({"num_bessels": 0}, "num_bessels must be at least 1"),
    ({"radial_mlp_width": 0}, "radial_mlp_width"),
    ({"radial_mlp_depth": -1}, "radial_mlp_depth"),
    ({"readout_mlp_hidden_layers_depth": -1}, "readout_mlp_hidden_layers_depth"),
    ({"polynomial_cutoff_p": 1}, "polynomial_cutoff_p must be at least 2"),
    ({"avg_num_neighbors": 0.0}, "avg_num_neighbors must be positive"),
    ({"avg_num_neighbors": {"H": 3.0}}, "avg_num_neighbors has no value for O"),
    ({"per_type_energy_shifts": {"H": 1.0, "O": 2.0, "N": 3.0}}, "per_type_energy_shifts names N"),
    ({"per_type_energy_scales": {"O": 2.0}}, "per_type_energy_scales has no value for H"),
    ({"per_edge_type_cutoff": {"H": 3.5}}, "per_edge_type_cutoff must be in"),
    ({"per_edge_type_cutoff": {"H": {"O": 0.0}}}, "per_edge_type_cutoff must be in"),
    ({"per_edge_type_cutoff": {"H": {"N": 2.0}}}, "per_edge_type_cutoff.H names N"),
    ({"per_edge_type_cutoff": {"C": 2.0}}, "per_edge_type_cutoff names C"),
    ({"rmax": 4.0}, "no hyperparameter 'rmax'; it has r_max"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda value: str(value)[:40])
def test_hyperparameters_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("schnett", ["H"]), "unknown architecture 'schnett'; equipes has nequip"),
        (("nequip", []), "one at least"),
        (("nequip", ["H", "H"]), "named once"),
        (("nequip", ["H", "Xx"]), "Xx is no element"),
        (("nequip", ["X"]), "X is no element"),
    ],
)
def test_nothing_to_build(arguments: tuple[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(*arguments)


def test_unknown_dtype() -> None:
    with pytest.raises(InputError, match="unknown dtype 'half'; use float32 or float64"):
        build("nequip", ["H"], SMALL, dtype="half")


def test_unknown_element() -> None:
    with pytest.raises(InputError, match=r"does not know C, N; it knows H, O"):
        small()(AtomGraph.from_atoms(Atoms("CNH", positions=[[0, 0, 0], [1.2, 0, 0], [0, 1, 0]]), 3.0))


def test_graph_with_too_short_edges() -> None:
    with pytest.raises(InputError, match=r"edges up to 2\.5 Å, the potential reaches 3 Å"):
        small()(AtomGraph.from_atoms(WATER, 2.5))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_forces_under_no_grad(mode: Any, training: bool) -> None:
    """Forces are derivatives, so they need autograd even where the caller switched it off (as validation loops do)."""
    potential, graph = small(dtype="float64").train(training), AtomGraph.from_atoms(WATER, 3.0)
    expected = potential(graph)
    with mode():
        found = potential(graph)
        made_inside = potential(AtomGraph.batch([AtomGraph.from_atoms(WATER, 3.0) for _ in range(2)]))
        energy = potential(graph, forces=False, stress=False)
    torch.testing.assert_close(found.forces.detach(), expected.forces.detach())
    torch.testing.assert_close(energy.energy.detach(), expected.energy.detach())
    torch.testing.assert_close(made_inside.forces[:3].detach(), expected.forces.detach())
    assert found.forces.abs().max() > 0
    assert not energy.energy.requires_grad


def test_modes() -> None:
    potential, graph = small(), AtomGraph.from_atoms(WATER, 3.0)
    training = potential.train()(graph)
    assert all(getattr(training, name).requires_grad for name in ("energy", "energies", "forces", "virial"))
    evaluating = potential.eval()(graph)
    assert not any(
        getattr(evaluating, name).requires_grad for name in ("energy", "energies", "forces", "virial")
    )
    torch.testing.assert_close(training.forces.detach(), evaluating.forces, rtol=1e-5, atol=1e-6)
    # A second prediction leaves the graph and the first prediction alone.
    assert not graph.positions.requires_grad
    assert potential.train()(graph, forces=False, stress=False).energy.requires_grad


def test_training_on_atoms_without_neighbours() -> None:
    """No edges, no forces: gradients are zero, not an error and not NaN."""
    potential = small(per_type_energy_shifts_trainable=True).train()
    prediction = potential(AtomGraph.from_atoms(Atoms("OH", positions=[[0, 0, 0], [20, 0, 0]]), 3.0))
    (prediction.energy.sum() + prediction.forces.square().sum() + prediction.virial.square().sum()).backward()
    for name, parameter in potential.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            expected = 1.0 if name.endswith("shifts") else 0.0
            assert (parameter.grad == expected).all(), name


def test_same_input_same_bits() -> None:
    potential, graph = small().eval(), AtomGraph.from_atoms(WATER, 3.0)
    first, second = potential(graph), potential(graph)
    assert torch.equal(first.energies, second.energies) and torch.equal(first.forces, second.forces)


def test_copies_are_independent() -> None:
    potential, graph = small().eval(), AtomGraph.from_atoms(WATER, 3.0)
    before = potential(graph).energy
    other = copy.deepcopy(potential)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    assert torch.equal(potential(graph).energy, before)
    assert not torch.equal(other(graph).energy, before)


def test_summary_is_json() -> None:
    potential = small(per_type_energy_shifts={"H": -1.0, "O": -2.0}, per_edge_type_cutoff={"H": {"O": 2.5}})
    potential.provenance = {"data": ["a.xyz"]}
    summary = json.loads(json.dumps(potential.summary()))
    assert summary["architecture"] == "nequip"
    assert summary["species"] == ["H", "O"]
    assert summary["cutoff"] == 3.0
    assert summary["dtype"] == "float32"
    assert summary["units"] == {"energy": "eV", "length": "Ang", "forces": "eV/Ang", "stress": "eV/Ang^3"}
    assert summary["hyperparameters"]["per_type_energy_shifts"] == {"H": -1.0, "O": -2.0}
    assert summary["parameters"] > 100
    assert summary["provenance"] == {"data": ["a.xyz"]}


def test_numbers_of_numpy_are_accepted(tmp_path: Any) -> None:
    """What statistics of the data return goes straight into a model and into its file."""
    potential = small(
        avg_num_neighbors=np.float64(3.5),
        per_type_energy_shifts={"H": np.float64(-1.5), "O": np.float64(-2.5)},
    )
    potential.save(tmp_path / "m.safetensors")
    assert equipes.load(tmp_path / "m.safetensors").hyperparameters["avg_num_neighbors"] == 3.5
