"""What sampling gives: labelled frames, and how many geometries were thrown away and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

from equipes.data import Frame
from equipes.errors import InputError
from equipes.simulate.errors import SimulationError
from equipes.simulate.safety import Distances

# What a calculator may raise of one geometry without being of no use for the next (ASE's errors are RuntimeErrors).
FAILURES = (RuntimeError, InputError, FloatingPointError)
NOT_CONVERGED = "the calculator failed"
_LARGEST_FORCE = 30.0  # eV/Å
_FAILURES_ALLOWED = 20


@dataclass
class Sample:
    """Labelled frames in the order they were made.

    Attributes:
        frames: with energy (eV), forces (eV/Å) and, in a cell, stress (eV/Å³) where the calculator has it.
        discarded: how many geometries were left out, by reason.
    """

    frames: list[Frame] = field(default_factory=list)
    discarded: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, other: Sample) -> None:
        """Take in another sample."""
        self.frames += other.frames
        self.discarded += other.discarded

    def discard(self, reason: str, wanted: int) -> None:
        """Count a geometry that is not used.

        Raises:
            SimulationError: so many that the calculator or the structure must be at fault.
        """
        self.discarded[reason] += 1
        total = self.discarded.total()
        if total > max(_FAILURES_ALLOWED, wanted):
            raise SimulationError(
                f"{total} geometries were of no use ({describe(self.discarded)}) before {wanted} were found; relax the "
                "structure first, or lower the temperatures"
            )


def describe(discarded: Counter[str]) -> str:
    """`3 × the calculator failed, 1 × forces above 30 eV/Å`.

    >>> describe(Counter({"too close": 2}))
    '2 × too close'
    """
    return ", ".join(f"{count} × {reason}" for reason, count in sorted(discarded.items()))


def bare(structure: ase.Atoms) -> ase.Atoms:
    """Numbers, positions, cell and periodicity alone."""
    return ase.Atoms(
        numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc
    )


class Labeller:
    """Labels geometries of one set of atoms with a calculator and refuses those that teach nothing.

    Args:
        atoms: for the elements.
        calculator: any.
        kind: what the frames are called, such as "dynamics 600 K".
        largest_force: eV/Å; with a larger one a geometry is left out.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        calculator: BaseCalculator,
        kind: str,
        largest_force: float = _LARGEST_FORCE,
    ) -> None:
        self.calculator = calculator
        self.kind = kind
        self.largest_force = largest_force
        self.distances = Distances(atoms)

    def add(self, atoms: ase.Atoms, sample: Sample, wanted: int) -> bool:
        """Label `atoms` and add the frame; False, with the reason counted, where it is of no use."""
        try:
            frame = self._label(atoms, len(sample))
        except FAILURES:
            sample.discard(NOT_CONVERGED, wanted)
            return False
        reason = self._fault(frame)
        if reason:
            sample.discard(reason, wanted)
            return False
        sample.frames.append(frame)
        return True

    def _label(self, atoms: ase.Atoms, index: int) -> Frame:
        own = atoms
        if atoms.calc is not self.calculator:
            own = atoms.copy()
            own.calc = self.calculator
        energy, forces = float(own.get_potential_energy()), np.array(own.get_forces(), dtype=float)
        stress = None
        if own.pbc.all() and own.cell.rank == 3:
            try:
                stress = voigt_6_to_full_3x3_stress(own.get_stress())
            except PropertyNotImplementedError:
                stress = None
        return Frame(bare(own), energy, forces, stress, self.kind, self.kind, index)

    def _fault(self, frame: Frame) -> str | None:
        assert frame.energy is not None and frame.forces is not None
        labels = [np.array(frame.energy), frame.forces, frame.stress]
        if not all(np.isfinite(label).all() for label in labels if label is not None):
            return "labels that are no numbers"
        if np.linalg.norm(frame.forces, axis=1).max() > self.largest_force:
            return f"forces above {self.largest_force:g} eV/Å"
        try:
            self.distances.check(frame.atoms, self.kind)
        except SimulationError:
            return "atoms inside each other"
        return None
