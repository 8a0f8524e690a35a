"""The structures that the benchmarks are about; none needs data from outside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from equipes.benchmark import CRYSTALS
from equipes.data import Units, read_frames

# The sizes of MACE-MP-0 small but for the cutoff, which there is 6 Å; weights are random.
MACE_SMALL = {
    "architecture": "mace",
    "num_bessel": 10,
    "max_ell": 3,
    "correlation": 3,
    "hidden_irreps": "128x0e",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
}

_DATA = {
    "aspirin": Path(__file__).parent / "data" / "aspirin.npz",
    "ethanol": Path(__file__).parents[1] / "tests" / "data" / "ethanol.npz",
}


def molecules(name: str, count: int) -> list[Atoms]:
    """The first frames of a molecule of rMD17, with their labels."""
    frames = read_frames(_DATA[name], units=Units(energy="kcal/mol"))[:count]
    if len(frames) < count:
        raise ValueError(f"there are {len(frames)} frames of {name}, not {count}")
    result = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
        result.append(atoms)
    return result


def silicon(atoms: int, count: int = 1) -> list[Atoms]:
    """Cubes of diamond silicon, 28 neighbours within 5 Å, the atoms displaced at random; labels mean nothing.

    `atoms` is rounded to the nearest 8 n³, or of unequal sides where that is nearer.
    """
    random = np.random.default_rng(3)
    sides = [(n, n, n + extra) for n in range(1, 30) for extra in (0, 1)]
    side = min(sides, key=lambda s: abs(8 * s[0] * s[1] * s[2] - atoms))
    result = []
    for seed in range(count):
        crystal = bulk("Si", cubic=True) * side
        crystal.rattle(0.05, seed=seed)
        crystal.calc = SinglePointCalculator(
            crystal, energy=0.0, forces=random.normal(size=(len(crystal), 3))
        )
        result.append(crystal)
    return result


def crystal(name: str, atoms: int) -> Atoms:
    """A block of a crystal of `equipes benchmark crystals`, about as wide in each direction, atoms displaced."""
    cell = next(item for item in CRYSTALS if item.name == name).make()
    times = [1, 1, 1]
    while len(cell) * np.prod(times) < 0.8 * atoms:
        times[int(np.argmin(cell.cell.lengths() * times))] += 1
    block = cell * times
    block.rattle(0.05, seed=0)
    block.calc = SinglePointCalculator(block, energy=0.0, forces=np.zeros((len(block), 3)))
    return block
