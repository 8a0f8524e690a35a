"""Crystals between spglib, phonopy and ASE: standard axes, point groups, supercells."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np

from equipes.errors import InputError
from equipes.simulate.packages import require

SYMMETRY_TOLERANCE = 1e-3  # Å; relaxed structures are symmetric to much less


def symmetry_of(atoms: ase.Atoms, tolerance: float = SYMMETRY_TOLERANCE) -> Any:
    """spglib's dataset: space group, operations, rotation to the standard axes.

    Raises:
        InputError: spglib is missing, or finds no symmetry at all (atoms on top of each other, a flat cell).
    """
    require("the symmetry of a crystal", "phonons", "spglib")
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=tolerance)
    if dataset is None:
        raise InputError(
            "no symmetry can be found in the structure; check that no two atoms are at one place"
        )
    return dataset


def to_standard_axes(atoms: ase.Atoms) -> ase.Atoms:
    """The same crystal with its conventional axes as tensors are tabulated: a along x, b in the xy plane."""
    rotation = np.array(symmetry_of(atoms).std_rotation_matrix)
    turned = atoms.copy()
    turned.set_constraint()
    turned.set_cell(atoms.cell.array @ rotation.T, scale_atoms=True)
    if turned.has("momenta"):
        turned.set_momenta(atoms.get_momenta() @ rotation.T)
    return turned


def point_group(atoms: ase.Atoms) -> np.ndarray:
    """The rotations of the crystal as Cartesian matrices, `[n, 3, 3]`."""
    lattice = atoms.cell.array.T
    rotations = np.unique(np.array(symmetry_of(atoms).rotations), axis=0)
    return np.array([lattice @ rotation @ np.linalg.inv(lattice) for rotation in rotations])


def supercell_for(atoms: ase.Atoms, length: float) -> tuple[int, int, int]:
    """How often to repeat the cell along each vector so that opposite faces are at least `length` (Å) apart.

    >>> from ase.build import bulk
    >>> supercell_for(bulk("Cu", a=3.6, cubic=True), 10.0)
    (3, 3, 3)
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    repeats = np.maximum(1, np.ceil(length / heights - 1e-6)).astype(int)
    return int(repeats[0]), int(repeats[1]), int(repeats[2])


def checked_supercell(supercell: tuple[int, int, int]) -> tuple[int, int, int]:
    """Raises `InputError` unless it is three whole numbers of at least 1."""
    if len(supercell) != 3 or any(int(n) != n or n < 1 for n in supercell):
        raise InputError(f"a supercell is three whole numbers of at least 1, such as 2 2 2, not {supercell}")
    return int(supercell[0]), int(supercell[1]), int(supercell[2])


def symmetrized(atoms: ase.Atoms, tolerance: float = SYMMETRY_TOLERANCE) -> ase.Atoms:
    """A copy made exactly symmetric, without calculator, constraints or anything else that came with it."""
    from ase.spacegroup.symmetrize import refine_symmetry

    copy = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
    if atoms.has("masses"):
        copy.set_masses(atoms.get_masses())
    symmetry_of(copy, tolerance)  # which says in our words when there is none
    refine_symmetry(copy, symprec=tolerance, verbose=False)
    return copy


def conventional_cell(atoms: ase.Atoms) -> ase.Atoms:
    """The crystal in its conventional cell, not turned. Isotopes (masses of one's own) are refused.

    >>> from ase.build import bulk
    >>> len(conventional_cell(bulk("Cu", a=3.6)))
    4
    """
    if atoms.has("masses"):
        raise InputError(
            "a supercell cannot be chosen for a structure with masses of its own; give --supercell"
        )
    dataset = symmetry_of(atoms)
    rotation = np.array(dataset.std_rotation_matrix)
    return ase.Atoms(
        numbers=dataset.std_types,
        scaled_positions=dataset.std_positions,
        cell=np.array(dataset.std_lattice) @ rotation,
        pbc=True,
    )
