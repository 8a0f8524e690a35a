"""The heat flux of atoms as they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase import units
from ase.calculators.calculator import BaseCalculator

from equipes.calculators.ase import Calculator
from equipes.calculators.neighbors import SkinnedNeighbors
from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.models import Potential
from equipes.models.atomic_virials import atomic_virials

# eV/(fs Å K) in W/(m K).
WATTS = 1e25 / units.J
CITATIONS = (
    "Z. Fan et al., Phys. Rev. B 92, 094301 (2015)",
    "M. F. Langer, F. Knoop, C. Carbogno, M. Scheffler, M. Rupp, Phys. Rev. B 108, L100302 (2023)",
)


@dataclass(frozen=True)
class Carried:
    """What each atom carries when it moves: `energies` `[N]` (potential, eV) and `virials` `[N, D, 3]` (eV, by default
    along x, y, z); and its `forces` `[N, 3]` (eV/Å), which come with them."""

    energies: np.ndarray
    virials: np.ndarray
    forces: np.ndarray | None = None

    def flux(self, atoms: ase.Atoms, rest: Carried | None = None) -> np.ndarray:
        """J = Σ (U_i + m v² / 2) v_i + W_i v_i, `[3]`, eV Å/fs.

        `rest` is taken off U and W. What an atom that only vibrates around its place carries at rest comes back with
        it: that part of J is the derivative of something bounded, which conducts nothing and makes noise
        (A. Marcolongo, P. Umari, S. Baroni, Nat. Phys. 12, 80, 2016; F. Knoop, M. Scheffler, C. Carbogno, Phys. Rev. B
        107, 224304, 2023).
        """
        v = atoms.get_velocities() * units.fs  # Å/fs
        energies = 0.5 * atoms.get_masses() * np.einsum("na,na->n", v, v) / units.fs**2 + self.energies
        virials = self.virials
        if rest is not None:
            energies, virials = energies - rest.energies, virials - rest.virials
        return energies @ v + np.einsum("nab,nb->a", virials, v)


class FluxOf:
    """Energies and virials of the atoms of one structure as it moves.

    Args:
        calculator: a `Calculator` of this package with its potential; what it froze for speed does not know atomic
            virials, and the model that it was made from calculates them.

    Raises:
        InputError: another calculator, or one of a potential that was frozen into a file.
    """

    def __init__(self, calculator: BaseCalculator) -> None:
        self.potential = potential_of(calculator)
        self._neighbors = SkinnedNeighbors(self.potential.cutoff, 0.5)

    def __call__(self, frames: Sequence[ase.Atoms], directions: np.ndarray | None = None) -> list[Carried]:
        """Of each frame, all in one batch; `directions` as in `atomic_virials`."""
        graph = AtomGraph.batch([self._neighbors.graph(atoms) for atoms in frames])
        along = None if directions is None else torch.tensor(np.atleast_2d(directions))
        found = atomic_virials(self.potential, graph.to(self.potential.device), along)
        ends = np.cumsum([len(atoms) for atoms in frames])[:-1]
        energies = np.split(found.energies.cpu().numpy(), ends)
        virials = np.split(found.virials.cpu().numpy(), ends)
        forces = np.split(found.forces.cpu().numpy(), ends)
        return [Carried(*each) for each in zip(energies, virials, forces, strict=True)]


def heat_flux(atoms: ase.Atoms, calculator: BaseCalculator) -> np.ndarray:
    """The heat flux J = d/dt Σ r_i E_i of a structure with velocities, `[3]`, eV Å/fs.

    Exact for potentials with message passing; see `equipes.models.atomic_virials`. The energies of the atoms are the
    potential's own: a constant added to those of one element changes J, and not the conductivity of a solid.

    Raises:
        InputError: a calculator without a potential of this package.
    """
    (carried,) = FluxOf(calculator)([atoms])
    return carried.flux(atoms)


def potential_of(calculator: BaseCalculator) -> Potential:
    """The potential behind a calculator; raises `InputError` where there is none."""
    if not isinstance(calculator, Calculator):
        raise InputError(
            "the heat flux needs energies of atoms and their derivatives, which only a potential of this package has"
            " (alone, without dispersion); take equipes.Calculator, or the conductivity from phonons"
        )
    if calculator.potential is None:
        raise InputError(
            "a frozen potential has forgotten what its heat flux needs; give the model that it was made from"
        )
    return calculator.potential


def checked_solid(atoms: ase.Atoms, supercell: tuple[int, int, int]) -> ase.Atoms:
    """The structure that is simulated; raises `InputError` for atoms that are held."""
    if atoms.constraints:
        raise InputError("atoms that are held carry no heat; remove the constraints of the structure")
    return atoms.repeat(supercell)
