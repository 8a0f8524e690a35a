"""Structures of a model's first training domain, for it to remember: small crystals, rattled and strained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import ase
import numpy as np
from ase.build import bulk
from ase.collections import dcdft
from ase.data import atomic_numbers, covalent_radii

from equipes.data.crystals import CRYSTALS

# Structure, cations, anions: of each family nearly all pairs are known compounds.
_FAMILIES = (
    ("rocksalt", "Li Na K Rb Cs Ag", "F Cl Br I"),
    ("rocksalt", "Mg Ca Sr Ba Mn Fe Co Ni Cd Eu Yb Pb Sn", "O S Se Te"),
    ("rocksalt", "Sc Y La Ce Nd Sm Gd Dy Er Lu Ti Zr Hf V Nb Ta Cr", "N P As"),
    ("rocksalt", "Ti Zr Hf V Nb Ta Th U", "C"),
    ("zincblende", "B Al Ga In", "N P As Sb"),
    ("zincblende", "Be Zn Cd Hg Mg Mn", "O S Se Te"),
    ("zincblende", "Cu Ag", "Cl Br I"),
)
_NOBLE_GASES = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")
_FEWEST_ATOMS, _MOST_ATOMS = 4, 12
_RATTLE, _STRAIN, _DILATION = 0.05, 0.015, 0.03  # Å, and parts of one


def replayed(species: Collection[str], number: int, seed: int) -> list[ase.Atoms]:
    """Crystals to replay: elements, and compounds of two in the structures of rock salt and zinc blende.

    The elements are those of the Delta project at their PBE volumes, but noble gases; the compounds are mostly known
    ones, their atoms as far apart as the sum of their covalent radii, which is near enough for a model that labels them
    itself. None is among `held_out`.

    Args:
        species: chemical symbols that may occur.
        number: how many structures; fewer, even none, where the species make none.
        seed: of the choice and of the displacements.
    """
    rng = np.random.default_rng((seed % 2**64, 1))
    known = {frozenset(item.make().symbols) for item in CRYSTALS}
    elements = [
        symbol
        for symbol in dcdft.names
        if symbol in species and symbol not in _NOBLE_GASES and {symbol} not in known
    ]
    compounds = [
        (structure, cation, anion)
        for structure, cations, anions in _FAMILIES
        for cation in cations.split()
        for anion in anions.split()
        if {cation, anion} <= set(species) and {cation, anion} not in known
    ]
    kinds: list[Callable[[], ase.Atoms]] = []
    if elements:
        kinds.append(lambda: dcdft[elements[rng.integers(len(elements))]])
    if compounds:
        kinds += [lambda: _compound(*compounds[rng.integers(len(compounds))])] * 2
    if not kinds:
        return []
    return [disturbed(kinds[k % len(kinds)](), rng) for k in range(number)]


def held_out(species: Collection[str], number: int, seed: int) -> list[ase.Atoms]:
    """Crystals to measure forgetting on: those of `equipes benchmark crystals` that the species make.

    Arguments as of `replayed`.
    """
    rng = np.random.default_rng((seed % 2**64, 2))
    chosen = [item for item in CRYSTALS if set(item.make().symbols) <= set(species)]
    return [disturbed(chosen[k % len(chosen)].make(), rng) for k in range(number if chosen else 0)]


def disturbed(atoms: ase.Atoms, rng: np.random.Generator) -> ase.Atoms:
    """The crystal as a cell of a few atoms, dilated by some percent, strained and rattled."""
    while len(atoms) < _FEWEST_ATOMS and 2 * len(atoms) <= _MOST_ATOMS:
        times = [1, 1, 1]
        times[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(times)
    made = ase.Atoms(atoms.symbols, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell, pbc=True)
    strain = rng.normal(0, _STRAIN, (3, 3))
    dilation = 1 + rng.normal(0, _DILATION)
    made.set_cell(made.cell.array @ (dilation * np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    made.positions += rng.normal(0, _RATTLE, (len(made), 3))
    return made


def apart(items: Sequence[ase.Atoms], seed: int) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """Structures of a user to replay, and a fifth of them (one at least) held out."""
    order = np.random.default_rng((seed % 2**64, 3)).permutation(len(items))
    n_held_out = max(1, round(len(items) / 5))
    shuffled = [items[i] for i in order]
    return shuffled[n_held_out:], shuffled[:n_held_out]


def _compound(structure: str, cation: str, anion: str) -> ase.Atoms:
    distance = covalent_radii[atomic_numbers[cation]] + covalent_radii[atomic_numbers[anion]]
    return bulk(cation + anion, structure, a=distance * (2 if structure == "rocksalt" else 4 / 3**0.5))
