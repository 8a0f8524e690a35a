"""Point defects of crystals, and what heat does to them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator
from ase.geometry import get_distances

from equipes.errors import InputError
from equipes.sampling.dynamics import DynamicsOptions, dynamics
from equipes.sampling.sample import Sample, bare

Defect = Literal["vacancy", "interstitial", "antisite"]
_TRIALS = 400


@dataclass(frozen=True)
class DefectOptions:
    """Dynamics of cells with one defect each.

    Attributes:
        kinds: which; they take turns. Atoms of different elements in each other's place ("antisite") cost so much in
            ionic crystals that they are made only when asked for.
        cells: how many cells with a defect.
        dynamics: of each; `count` is for all together.
    """

    kinds: tuple[Defect, ...] = ("vacancy", "interstitial")
    cells: int = 4
    dynamics: DynamicsOptions = field(default_factory=DynamicsOptions)

    def check(self) -> None:
        """Raises `InputError` for unknown kinds or numbers without sense."""
        unknown = [kind for kind in self.kinds if kind not in get_args(Defect)]
        if unknown or not self.kinds:
            raise InputError(
                f"unknown defect {unknown[0] if unknown else ''!r}; choose of {', '.join(get_args(Defect))}"
            )
        if self.cells < 1:
            raise InputError(f"the number of cells with a defect must be 1 or more, not {self.cells}")
        self.dynamics.check()


def defective(structure: ase.Atoms, kind: Defect, rng: np.random.Generator) -> ase.Atoms:
    """The structure with one defect: an atom taken out at random, put into a large hole, or two of different elements
    exchanged.

    Raises:
        InputError: a crystal with one element cannot have an antisite, one with one atom no vacancy.
    """
    atoms = bare(structure)
    if kind == "vacancy":
        if len(atoms) < 2:
            raise InputError("a cell with one atom can have no vacancy; take a supercell")
        del atoms[int(rng.integers(len(atoms)))]
        return atoms
    if kind == "antisite":
        first = int(rng.integers(len(atoms)))
        others = np.flatnonzero(atoms.numbers != atoms.numbers[first])
        if not len(others):
            raise InputError("a crystal of one element has no antisites; leave that defect out")
        second = int(others[rng.integers(len(others))])
        atoms.numbers[[first, second]] = atoms.numbers[[second, first]]
        return atoms
    points = rng.random((_TRIALS, 3)) @ atoms.cell.array
    _, lengths = get_distances(points, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    symbol = str(atoms.symbols[int(rng.integers(len(atoms)))])
    # Not always the very largest hole: crystals have several kinds.
    roomy = np.argsort(lengths.min(axis=1))[-5:]
    atoms.append(ase.Atom(symbol, points[int(rng.choice(roomy))]))
    return atoms


def defects(
    structure: ase.Atoms,
    calculator: BaseCalculator,
    options: DefectOptions,
    rng: np.random.Generator,
) -> Sample:
    """Frames of Langevin dynamics of cells with one defect each.

    Args:
        structure: a supercell, large enough that a defect does not meet its image; not changed.
        calculator: any ASE calculator.
        options: kinds, and the dynamics.
        rng: of everything.

    Raises:
        InputError: a structure that is no crystal or cannot have such a defect, or options without sense.
        SimulationError: more failures than frames.
    """
    options.check()
    if not (structure.pbc.all() and structure.cell.rank == 3):
        raise InputError(
            "only a crystal, periodic in all three directions, has point defects; set cell and pbc"
        )
    sample = Sample()
    shares = [len(part) for part in np.array_split(np.arange(options.dynamics.count), options.cells)]
    for number, share in enumerate(shares):
        if not share:
            continue
        kind = options.kinds[number % len(options.kinds)]
        atoms = defective(structure, kind, rng)
        own = dynamics(atoms, calculator, replace(options.dynamics, count=share), rng)
        own.frames = [
            replace(frame, config_type=f"{kind}, {frame.config_type}", source=f"{kind}, {frame.source}")
            for frame in own.frames
        ]
        sample.add(own)
    return sample
