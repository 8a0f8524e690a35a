"""Crystals under random strain with displaced atoms."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.sampling.sample import Labeller, Sample, bare


@dataclass(frozen=True)
class StrainOptions:
    """Random cells around the one that is given.

    Attributes:
        count: frames wanted.
        largest: of each of the six components of the strain.
        displacement: of each coordinate, standard deviation, Å.
        largest_force: eV/Å; geometries with a larger one are left out.
    """

    count: int = 100
    largest: float = 0.04
    displacement: float = 0.05
    largest_force: float = 30.0

    def check(self) -> None:
        """Raises `InputError` for numbers without sense."""
        if self.count < 1 or not 0 <= self.largest < 0.3 or not 0 <= self.displacement < 1:
            raise InputError(
                "of strained cells, count must be 1 or more, the largest strain 0 to 0.3 and the displacement 0 to 1 "
                f"Å, not {self.count}, {self.largest} and {self.displacement}"
            )


def strains(
    structure: ase.Atoms,
    calculator: BaseCalculator,
    options: StrainOptions,
    rng: np.random.Generator,
) -> Sample:
    """Frames with a strain drawn evenly (no rotation) and every atom displaced at random.

    Args:
        structure: periodic in all three directions; not changed.
        calculator: any ASE calculator.
        options: sizes of both.
        rng: of both.

    Raises:
        InputError: a structure that is no crystal, or options without sense.
        SimulationError: more failures than frames.
    """
    options.check()
    if not (structure.pbc.all() and structure.cell.rank == 3):
        raise InputError(
            "only a crystal, periodic in all three directions, can be strained; set cell and pbc"
        )
    labeller = Labeller(structure, calculator, "strains", options.largest_force)
    sample = Sample()
    while len(sample) < options.count:
        strain = np.diag(rng.uniform(-1, 1, 3)) * options.largest
        for row, column, value in zip((0, 0, 1), (1, 2, 2), rng.uniform(-1, 1, 3), strict=True):
            strain[row, column] = strain[column, row] = 0.5 * options.largest * value
        atoms = bare(structure)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += options.displacement * rng.standard_normal((len(atoms), 3))
        labeller.add(atoms, sample, options.count)
    return sample
