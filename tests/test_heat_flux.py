"""The heat flux: virials of atoms against their definition in the unfolded crystal, and conservation of energy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms

from equipes.graph import AtomGraph
from equipes.models import Potential
from equipes.models.atomic_virials import AtomicVirials, atomic_virials
from laws import Model
from potentials import MODELS
from structures import KINDS, random_structure

ROUND_OFF = 1e-10
LAYERS = {
    "nequip": "num_layers",
    "sevennet": "num_layers",
    "mace": "num_interactions",
    "schnet": "num_interactions",
}
# One of each architecture, of each kernel feature that carries information along edges.
CHOSEN = (
    "nequip l_max 2, 3 layers",
    "nequip zbl",
    "nequip norms per species",
    "mace two layers",
    "mace density, Soft, repulsion, two heads, hidden to l = 2",
    "sevennet l_max 2, XPLOR, 3 layers",
    "schnet three blocks, broad",
    "physnet two modules",
    "ani smooth",
)


def reach(model: Model) -> float:
    """How far an atom's energy sees, Å."""
    layers = {"physnet": 2, "ani": 1}.get(model.architecture)
    if layers is None:
        layers = model.hyperparameters.get(LAYERS[model.architecture], 2)
    return layers * float(model.hyperparameters["r_max"])


def unfolded(atoms: Atoms, distance: float) -> tuple[Atoms, np.ndarray]:
    """The atoms of the cell, then all images within a distance of any of them, without periodicity; whose image each
    is.
    """
    cell, size = atoms.cell.array, np.ptp(atoms.positions, axis=0).max() if len(atoms) > 1 else 0.0
    heights = [1.0 if not p else abs(np.linalg.det(atoms.cell.complete())) for p in atoms.pbc]
    box = atoms.cell.complete().array
    for axis in range(3):
        if atoms.pbc[axis]:
            heights[axis] /= np.linalg.norm(np.cross(box[axis - 2], box[axis - 1]))
    counts = [
        int(np.ceil((distance + 2 * size) / h)) + 1 if p else 0
        for h, p in zip(heights, atoms.pbc, strict=True)
    ]
    positions, owners = [atoms.positions], [np.arange(len(atoms))]
    for shift in product(*(range(-n, n + 1) for n in counts)):
        if any(shift):
            moved = atoms.positions + np.array(shift) @ cell
            away = np.linalg.norm(moved[:, None] - atoms.positions, axis=2).min(axis=1)
            positions.append(moved[away < distance])
            owners.append(np.flatnonzero(away < distance))
    owner = np.concatenate(owners)
    return Atoms(atoms.numbers[owner], positions=np.concatenate(positions)), owner


def by_definition(potential: Potential, atoms: Atoms, distance: float) -> np.ndarray:
    """W_j = Σ_i (r_i - r_j) ⊗ ∂U_i/∂r_j, `[N, 3, 3]`, i in the cell and j any of the images of j."""
    cluster, owner = unfolded(atoms, distance)
    graph = AtomGraph.from_atoms(cluster, potential.cutoff)
    positions = graph.positions.clone().requires_grad_()
    energies = potential.model(potential.type_of_number[graph.numbers], graph.edge_vectors(positions), graph)
    virials = np.zeros((len(atoms), 3, 3))
    for i in range(len(atoms)):
        (slope,) = torch.autograd.grad(energies[i], positions, retain_graph=True)
        arms = cluster.positions[i] - cluster.positions
        np.add.at(virials, owner, arms[:, :, None] * slope.numpy()[:, None, :])
    return virials


def virials_of(potential: Potential, atoms: Atoms) -> AtomicVirials:
    return atomic_virials(potential, AtomGraph.from_atoms(atoms, potential.cutoff))


def chosen() -> list[Model]:
    by_name = {model.name: model for model in MODELS}
    return [by_name[name] for name in CHOSEN]


@pytest.mark.parametrize("model", chosen(), ids=lambda model: model.name)
def test_virials_are_those_of_the_unfolded_crystal(model: Model, rng: np.random.Generator) -> None:
    potential = model.potential()
    for kind in KINDS:
        atoms = random_structure(kind, 3, rng)
        ours = virials_of(potential, atoms)
        definition = by_definition(potential, atoms, reach(model))
        scale = np.abs(definition).max()
        np.testing.assert_allclose(ours.virials.numpy(), definition, rtol=0, atol=ROUND_OFF * scale)
        graph = AtomGraph.from_atoms(atoms, potential.cutoff)
        plain = potential(graph)
        np.testing.assert_allclose(ours.forces, plain.forces, rtol=0, atol=ROUND_OFF * scale)
        np.testing.assert_allclose(ours.virials.sum(0), plain.virial[0], rtol=0, atol=ROUND_OFF * scale)
