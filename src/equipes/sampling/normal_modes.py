"""Geometries displaced along the normal modes of a minimum, as much as temperature would displace them."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.sampling.sample import Labeller, Sample, bare
from equipes.simulate.relax import relax

_STEP = 0.01  # Å
# Modes softer than this are no springs but torsions and the like: dynamics samples those.
_SOFTEST = 100.0  # cm⁻¹
# cm⁻¹ of a square root of eV/(Å² u), ASE's unit of frequency
_WAVENUMBER = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / (units.invcm)
_LARGEST = 400  # atoms


@dataclass(frozen=True)
class NormalModeOptions:
    """Classical harmonic displacements.

    Attributes:
        count: frames wanted.
        temperatures: K; each frame takes one of them at random.
        relax: go to the nearest minimum first.
        largest_force: eV/Å; geometries with a larger one are left out.
    """

    count: int = 100
    temperatures: tuple[float, ...] = (300.0, 600.0, 1000.0)
    relax: bool = True
    largest_force: float = 30.0

    def check(self) -> None:
        """Raises `InputError` for numbers without sense."""
        if self.count < 1:
            raise InputError(f"count must be 1 or more, not {self.count}")
        if not self.temperatures or not all(np.isfinite(t) and t > 0 for t in self.temperatures):
            raise InputError(f"temperatures must be above 0 K, not {list(self.temperatures)}")


def normal_modes(
    structure: ase.Atoms,
    calculator: BaseCalculator,
    options: NormalModeOptions,
    rng: np.random.Generator,
) -> Sample:
    """Frames displaced from a minimum, every mode by a normal deviate of variance kT / ω² (mass-weighted, classical).

    The Hessian comes from central differences of the forces, `6 N` of them. Rigid motion is taken out; modes below
    100 cm⁻¹, and unstable ones, are displaced as if they had 100 cm⁻¹.

    Args:
        structure: not changed; constraints do not hold.
        calculator: any ASE calculator.
        options: number and temperatures.
        rng: of the displacements.

    Raises:
        InputError: options without sense, or more than 400 atoms.
        SimulationError: a structure that cannot be relaxed, or more failures than frames.
    """
    options.check()
    if len(structure) > _LARGEST:
        raise InputError(
            f"normal modes of {len(structure)} atoms take too long to find; sample at most {_LARGEST}, or by dynamics"
        )
    atoms = bare(structure)
    if options.relax:
        atoms = bare(relax(atoms, calculator, cell=False, fmax=0.02, steps=300).atoms)
    atoms.calc = calculator
    frequencies, modes = vibrations(atoms)
    rest = atoms.positions.copy()
    root_mass = np.sqrt(atoms.get_masses())[:, None]
    labeller = Labeller(atoms, calculator, "normal modes", options.largest_force)
    sample = Sample()
    while len(sample) < options.count:
        temperature = options.temperatures[rng.integers(len(options.temperatures))]
        widths = np.sqrt(units.kB * temperature) / np.maximum(frequencies, _SOFTEST / _WAVENUMBER)
        amplitudes = rng.standard_normal(len(widths)) * widths
        atoms.positions = rest + (modes @ amplitudes).reshape(-1, 3) / root_mass
        labeller.add(atoms, sample, options.count)
    return sample


def vibrations(atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies `[M]` and mass-weighted modes `[3 N, M]` of a structure with its calculator, without rigid motion.

    Frequencies are in ASE's units, √(eV/(Å² u)); unstable ones are zero. M is 3 N less 3 translations and, without
    periodicity, the rotations.
    """
    rest = atoms.positions.copy()
    n = len(atoms)
    hessian = np.zeros((3 * n, 3 * n))
    for coordinate in range(3 * n):
        forces = []
        for sign in (1, -1):
            positions = rest.copy()
            positions.flat[coordinate] += sign * _STEP
            atoms.positions = positions
            forces.append(atoms.get_forces().ravel())
        hessian[coordinate] = (forces[1] - forces[0]) / (2 * _STEP)
    atoms.positions = rest
    root_mass = np.repeat(np.sqrt(atoms.get_masses()), 3)
    weighted = 0.5 * (hessian + hessian.T) / np.outer(root_mass, root_mass)
    # An orthonormal basis of everything but rigid motion.
    rigid = _rigid_motion(atoms) * root_mass[:, None]
    left, sizes, _ = np.linalg.svd(rigid, full_matrices=True)
    internal = left[:, int((sizes > 1e-6 * sizes[0]).sum()) :]
    squares, vectors = np.linalg.eigh(internal.T @ weighted @ internal)
    return np.sqrt(np.maximum(squares, 0.0)), internal @ vectors


def _rigid_motion(atoms: ase.Atoms) -> np.ndarray:
    """`[3 N, 6]`, translations and rotations; `[3 N, 3]` of a periodic structure, which cannot turn."""
    shifts = np.tile(np.eye(3), (len(atoms), 1))
    if atoms.pbc.any():
        return shifts
    arms = atoms.positions - atoms.get_center_of_mass()
    turns = [np.cross(axis, arms).ravel() for axis in np.eye(3)]
    return np.column_stack([shifts, *turns])
