"""How far a frozen potential is from the model it was made from, on structures made for the purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from equipes.graph import AtomGraph

if TYPE_CHECKING:
    from equipes.models.frozen import FrozenPotential
    from equipes.models.potential import Potential

# Species in one structure: with many elements the structures share them out.
_TOGETHER = 6
_ATOMS = 12


def check_structures(species: Sequence[str], seed: int = 0) -> list[ase.Atoms]:
    """Crystals with displaced atoms and disordered, dense packings of the species, the same for the same species.

    Bonds are as long as covalent radii tell, some shorter, some longer; cells are skewed, so that distances up to any
    cutoff occur.
    """
    rng = np.random.default_rng(seed)
    structures = []
    for start in range(0, len(species), _TOGETHER):
        symbols = list(species[start : start + _TOGETHER])
        elements = (symbols * _ATOMS)[: max(_ATOMS, len(symbols))]
        radii = np.array([covalent_radii[atomic_numbers[symbol]] for symbol in elements])
        bond = 2 * float(radii.mean())
        for stretch in (0.95, 1.1):
            # Two interleaved face-centred lattices, skewed and displaced.
            sites = [(i, j, k) for i in range(3) for j in range(2) for k in range(2)]
            scaled = np.array(sites[: len(elements)], dtype=float) / [3, 2, 2]
            cell = stretch * bond * np.diag([3.0, 2.0, 2.0]) @ (np.eye(3) + 0.08 * rng.normal(size=(3, 3)))
            crystal = ase.Atoms(elements, cell=cell, scaled_positions=scaled, pbc=True)
            crystal.positions += 0.06 * bond * rng.normal(size=crystal.positions.shape)
            structures.append(crystal)
        for filling in (0.5, 0.25):
            structures.append(_packing(elements, radii, filling, rng))
    return structures


def _packing(elements: list[str], radii: np.ndarray, filling: float, rng: np.random.Generator) -> ase.Atoms:
    """Atoms at random places of a cubic cell, pushed apart until none overlap much."""
    edge = float((4 / 3 * np.pi * (radii**3).sum() / filling) ** (1 / 3))
    positions = rng.uniform(0, edge, (len(elements), 3))
    least = 0.8 * (radii[:, None] + radii)
    np.fill_diagonal(least, 0.0)
    for _ in range(300):
        vectors = positions[:, None] - positions
        vectors -= edge * np.round(vectors / edge)
        distances = np.linalg.norm(vectors, axis=2) + 1e-9
        overlap = np.clip(least - distances, 0.0, None)
        positions += 0.3 * (vectors / distances[:, :, None] * overlap[:, :, None]).sum(axis=1)
    return ase.Atoms(elements, positions=positions, cell=[edge] * 3, pbc=True)


def measure(frozen: FrozenPotential, exact: Potential) -> dict[str, float]:
    """Largest differences of energies per atom (eV), forces (eV/Å) and stress (eV/Å³) from the model in float64, and how
    large forces and stress are there."""
    structures = check_structures(frozen.species)
    graph = AtomGraph.batch([AtomGraph.from_atoms(atoms, frozen.cutoff) for atoms in structures])
    found, expected = frozen(graph), exact(graph)
    assert found.forces is not None and found.stress is not None
    assert expected.forces is not None and expected.stress is not None
    counts = graph.atoms_per_structure
    return {
        "energy": float(((found.energy - expected.energy).abs() / counts).max()),
        "forces": float((found.forces - expected.forces).abs().max()),
        "stress": float((found.stress - expected.stress).abs().max()),
        "largest_force": float(expected.forces.abs().max()),
        "largest_stress": float(expected.stress.abs().max()),
    }
