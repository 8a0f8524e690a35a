"""SchNet, PhysNet and ANI against their papers' formulas, written out in plain loops."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from ase import Atoms

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import build

ATOMS = Atoms(
    "COHHC", positions=[[0, 0, 0], [1.3, 0.1, 0], [-0.6, 0.9, 0.1], [0.2, -0.8, 0.9], [2.9, 1.1, 0.4]]
)


def energies(architecture: str, **hyperparameters: object) -> tuple[np.ndarray, torch.nn.Module]:
    potential = build(architecture, ["H", "C", "O"], hyperparameters, dtype="float64", seed=2).eval()
    graph = AtomGraph.from_atoms(ATOMS, potential.cutoff)
    return potential(graph, forces=False, stress=False).energies.numpy(), potential.model


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log(0.5 * np.exp(x) + 0.5)


def dense(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    y = layer.weight.detach().numpy() @ x
    return y if layer.bias is None else y + layer.bias.detach().numpy()


TYPES = [{"H": 0, "C": 1, "O": 2}[symbol] for symbol in ATOMS.symbols]
DISTANCES = ATOMS.get_all_distances()


def polynomial(u: float, p: int = 6) -> float:
    return (
        1 - (p + 1) * (p + 2) / 2 * u**p + p * (p + 2) * u ** (p + 1) - p * (p + 1) / 2 * u ** (p + 2)
        if u < 1
        else 0
    )


def test_schnet() -> None:
    found, model = energies("schnet", r_max=2.5, num_features=4, num_interactions=2, gaussian_spacing=0.25)
    x = model.embedding.detach().numpy()[TYPES]
    for block in model.interactions:
        v = np.zeros_like(x)
        for i in range(len(x)):
            for j in range(len(x)):
                r = DISTANCES[i, j]
                if i != j and r < 2.5:
                    gaussians = np.exp(-10 * (r - np.arange(11) * 0.25) ** 2)
                    filters = softplus(dense(block.filter_2, softplus(dense(block.filter_1, gaussians))))
                    v[i] += dense(block.atomwise_1, x[j]) * filters * polynomial(r / 2.5)
        x = x + np.array([dense(block.atomwise_3, softplus(dense(block.atomwise_2, row))) for row in v])
    expected = [dense(model.readout_2, softplus(dense(model.readout_1, row)))[0] for row in x]
    assert found == pytest.approx(np.array(expected), rel=1e-10)


def test_physnet() -> None:
    found, model = energies("physnet", r_max=2.5, num_features=4, num_basis=6, num_modules=2)

    def residuals(layers: torch.nn.Sequential, x: np.ndarray) -> np.ndarray:
        for layer in layers:
            x = x + dense(layer.dense_2, softplus(dense(layer.dense_1, softplus(x))))
        return x

    x = model.embedding.detach().numpy()[TYPES]
    expected = np.zeros(len(x))
    nearest = math.exp(-2.5)
    centres = np.linspace(nearest, 1, 6)
    width = (2 / 6 * (1 - nearest)) ** -2
    for block in model.blocks:
        v = np.array([softplus(dense(block.dense_i, softplus(row))) for row in x])
        for i in range(len(x)):
            for j in range(len(x)):
                u = DISTANCES[i, j] / 2.5
                if i != j and u < 1:
                    envelope = 1 - 6 * u**5 + 15 * u**4 - 10 * u**3
                    basis = envelope * np.exp(-width * (math.exp(-2.5 * u) - centres) ** 2)
                    v[i] += dense(block.attention, basis) * softplus(dense(block.dense_j, softplus(x[j])))
        v = np.array([residuals(block.interaction_residuals, row) for row in v])
        gate = block.gate.detach().numpy()
        x = np.array([gate * row + dense(block.dense_v, softplus(w)) for row, w in zip(x, v, strict=True)])
        x = np.array([residuals(block.atomic_residuals, row) for row in x])
        expected += [dense(block.output, softplus(residuals(block.output_residuals, row)))[0] for row in x]
    assert found == pytest.approx(expected, rel=1e-10)


def test_ani() -> None:
    found, model = energies(
        "ani",
        r_max=3.2,
        angular_r_max=2.4,
        num_radial=3,
        num_angular_shells=2,
        num_angles=3,
        angular_zeta=5.0,
        radial_eta=3.0,
        angular_eta=2.0,
        hidden=[6],
    )
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    radial_centres = np.linspace(0.9, 3.2, 4)[:-1]
    shells, angles = np.linspace(0.9, 2.4, 3)[:-1], (np.arange(3) + 0.5) * math.pi / 3

    def cutoff(r: float, end: float) -> float:
        return 0.5 * (math.cos(math.pi * r / end) + 1) if r < end else 0.0

    for i in range(len(ATOMS)):
        radial, angular = np.zeros((3, 3)), np.zeros((6, 2, 3))
        others = [j for j in range(len(ATOMS)) if j != i]
        for j in others:
            r = DISTANCES[i, j]
            radial[TYPES[j]] += np.exp(-3.0 * (r - radial_centres) ** 2) * cutoff(r, 3.2)
        for j, k in combinations(others, 2):
            a, b = (ATOMS.positions[n] - ATOMS.positions[i] for n in (j, k))
            r_j, r_k = np.linalg.norm(a), np.linalg.norm(b)
            theta = math.acos(0.95 * a @ b / (r_j * r_k))
            shape = 2 ** (1 - 5.0) * (1 + np.cos(theta - angles)) ** 5.0
            shell = np.exp(-2.0 * ((r_j + r_k) / 2 - shells) ** 2) * cutoff(r_j, 2.4) * cutoff(r_k, 2.4)
            angular[pairs.index(tuple(sorted((TYPES[j], TYPES[k]))))] += np.outer(shell, shape)
        h = np.concatenate([radial.ravel(), angular.ravel()])
        networks, own = model.networks, TYPES[i]
        h = h @ networks.weights[0][own].detach().numpy() + networks.biases[0][own].detach().numpy()
        h = h / (1 + np.exp(-h))
        h = h @ networks.weights[1][own].detach().numpy() + networks.biases[1][own].detach().numpy()
        assert found[i] == pytest.approx(h[0], rel=1e-9)


@pytest.mark.parametrize(
    ("architecture", "hyperparameters", "message"),
    [
        ("schnet", {"num_features": 0}, "num_features must be at least 1"),
        ("schnet", {"gaussian_spacing": 9.0}, "gaussian_spacing must be in"),
        ("physnet", {"num_modules": 0}, "num_modules must be at least 1"),
        ("physnet", {"r_max": -1.0}, "r_max must be a positive length"),
        ("ani", {"angular_r_max": 9.0}, "angular_r_max must be in"),
        ("ani", {"angular_zeta": 0.0}, "angular_zeta must be positive"),
        ("mace", {"hidden_irreps": "4x0e + 3x1o"}, "hidden_irreps must be irreps with scalars"),
        ("mace", {"hidden_irreps": "4x1o"}, "hidden_irreps must be irreps with scalars"),
        ("mace", {"hidden_irreps": "four"}, "cannot read 'four'"),
        ("mace", {"MLP_irreps": "4x1o"}, "MLP_irreps must be scalars"),
        ("mace", {"correlation": [3]}, "correlation must be one number, or 2"),
        ("mace", {"correlation": 0}, "correlation must be at least 1"),
        ("mace", {"max_ell": 9}, "max_ell must be from 0 to"),
        ("mace", {"interaction_cls": "Other"}, "interaction_cls must be one of"),
        ("mace", {"distance_transform": "Other"}, "distance_transform must be one of None, Agnesi, Soft"),
        ("mace", {"pair_repulsion": True, "r_max": 1.0}, "r_max must be at least"),
        ("mace", {"heads": ["a", "b"]}, "say which to use with model.head"),
        ("mace", {"atomic_energies": {"H": 1.0}}, "atomic_energies has no value for C, O"),
        ("mace", {"avg_num_neighbors": 0.0}, "avg_num_neighbors must be positive"),
    ],
)
def test_values_out_of_range(architecture: str, hyperparameters: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(architecture, ["H", "C", "O"], hyperparameters)
