"""How far a frozen potential is from the model it was made from, on structures made for the purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from equipes.graph import AtomGraph

if TYPE_CHECKING:
    from equipes.models.device_frozen import DevicePotential
    from equipes.models.frozen import FrozenPotential
    from equipes.models.potential import Potential

# Species in one structure: with many elements the structures share them out.
_TOGETHER = 12
_ATOMS = 12
# Å; hydrogen's covalent radius is for its bonds to others.
_LEAST_RADIUS = 0.45


def check_structures(species: Sequence[str], seed: int = 0) -> list[ase.Atoms]:
    """Lattices with displaced atoms and disordered packings of the species, the same for the same species.

    Cells are skewed, so that distances up to any cutoff occur. The shortest distance, in units of the sum of covalent
    radii, is 1.15 in some and 1.4 in others: close for a solid, but not so close that no potential knows the like.
    """
    rng = np.random.default_rng(seed)
    structures = []
    for start in range(0, len(species), _TOGETHER):
        symbols = list(species[start : start + _TOGETHER])
        elements = (symbols * _ATOMS)[: max(_ATOMS, len(symbols))]
        radii = np.array([max(covalent_radii[atomic_numbers[symbol]], _LEAST_RADIUS) for symbol in elements])
        for closest in (1.15, 1.4):
            sites = np.array([(i, j, k) for i in range(3) for j in range(2) for k in range(2)]) / [3, 2, 2]
            cell = np.diag([3.0, 2.0, 2.0]) @ (np.eye(3) + 0.08 * rng.normal(size=(3, 3)))
            positions = sites @ cell + 0.06 * rng.normal(size=sites.shape)
            structures.append(_scaled(elements, positions, cell, radii, closest))
            edge = 1.8 * len(elements) ** (1 / 3) * float(radii.mean())
            positions = _apart(rng.uniform(0, edge, (len(elements), 3)), edge, radii)
            structures.append(_scaled(elements, positions, edge * np.eye(3), radii, closest))
    return structures


def _apart(positions: np.ndarray, edge: float, radii: np.ndarray) -> np.ndarray:
    """Atoms in a cubic cell, pushed until they hardly overlap."""
    for _ in range(200):
        vectors = positions[:, None] - positions
        vectors -= edge * np.round(vectors / edge)
        distances = np.linalg.norm(vectors, axis=2) + 1e-9
        overlap = np.clip(radii[:, None] + radii - distances, 0.0, None)
        np.fill_diagonal(overlap, 0.0)
        positions = positions + 0.3 * (vectors / distances[:, :, None] * overlap[:, :, None]).sum(axis=1)
    return positions


def _scaled(
    elements: list[str], positions: np.ndarray, cell: np.ndarray, radii: np.ndarray, closest: float
) -> ase.Atoms:
    """A periodic structure whose shortest distance is `closest` times the sum of the radii."""
    images = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]) @ cell
    vectors = positions[:, None, None] - positions[:, None] + images
    distances = np.linalg.norm(vectors, axis=3) / (radii[:, None] + radii)[:, :, None]
    factor = closest / distances[distances > 1e-6].min()
    return ase.Atoms(elements, positions=factor * positions, cell=factor * cell, pbc=True)


def measure(frozen: FrozenPotential | DevicePotential, exact: Potential) -> dict[str, float]:
    """Largest differences of energies per atom (eV), forces (eV/Å) and stress (eV/Å³) from the model in float64.

    And how large forces and stress are there.
    """
    structures = check_structures(frozen.species)
    graph = AtomGraph.batch([AtomGraph.from_atoms(atoms, frozen.cutoff) for atoms in structures])
    found, expected = frozen(graph), exact(graph)
    assert found.forces is not None and found.stress is not None
    assert expected.forces is not None and expected.stress is not None
    counts = graph.atoms_per_structure
    return {
        "energy": float(((found.energy.cpu() - expected.energy).abs() / counts).max()),
        "forces": float((found.forces.cpu() - expected.forces).abs().max()),
        "stress": float((found.stress.cpu() - expected.stress).abs().max()),
        "largest_force": float(expected.forces.abs().max()),
        "largest_stress": float(expected.stress.abs().max()),
    }
