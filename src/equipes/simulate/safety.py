"""Watching a simulation: no number that is none, no atoms inside each other, no energy or temperature that explodes."""

from __future__ import annotations

import ase
import numpy as np
from ase import units
from ase.data import covalent_radii

from equipes.calculators.neighbors import SkinnedNeighbors
from equipes.errors import InputError
from equipes.simulate.errors import SimulationError

# Bonds under the highest pressures and thermal collisions stay above about 0.6 of the sum of covalent radii.
CLOSEST_FRACTION = 0.5
ENERGY_CHANGE = 0.5  # eV/atom, in a quantity that should not change at all
_TEMPERATURE_FACTOR = 10.0
_TEMPERATURE_MARGIN = 5000.0  # K
# Looking at distances takes as long as half a step of a small molecule, and thermal motion is slow against ten steps.
STEPS_BETWEEN_DISTANCES = 10
_REMEDY = "take a smaller time step, start from a relaxed structure, or train on structures like this one"


class Distances:
    """Finds atoms of one structure, as it moves, that are inside each other.

    Args:
        atoms: the structure, for its elements.
        fraction: atoms may not come closer than this fraction of the sum of their covalent radii; 0 allows all.
    """

    def __init__(self, atoms: ase.Atoms, fraction: float = CLOSEST_FRACTION) -> None:
        self.radii = fraction * covalent_radii[atoms.numbers]
        reach = 2 * float(self.radii.max())
        self.neighbors = SkinnedNeighbors(reach, skin=1.0) if reach > 0 else None

    def check(self, atoms: ase.Atoms, where: str) -> None:
        """Raises `SimulationError`, beginning with `where`, that names the worst pair and its distance."""
        if self.neighbors is None:
            return
        try:
            graph = self.neighbors.graph(atoms)
        except InputError as error:  # of atoms at the very same place
            raise SimulationError(f"{where}: {error}") from error
        if graph.n_edges == 0:
            return
        receiver, sender = graph.receiver.numpy(), graph.sender.numpy()
        distances = graph.edge_vectors().norm(dim=1).numpy()
        limits = self.radii[receiver] + self.radii[sender]
        worst = int((distances / limits).argmin())
        if distances[worst] < limits[worst]:
            i, j = sorted((int(receiver[worst]), int(sender[worst])))
            raise SimulationError(
                f"{where}: atoms {i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]}) are {distances[worst]:.2f} Å"
                f" apart, closer than physically possible; {_REMEDY}"
            )


class Watch:
    """Checks that follow one simulation; each raises `SimulationError` naming step, atom and value.

    Args:
        atoms: the structure at the start, for its elements.
        degrees: momenta that share the kinetic energy.
        temperature: the highest of target and starting temperature, K.
        conserved: the conserved energy at the start, eV, where the ensemble has one.
        closest_fraction: atoms may not come closer than this fraction of the sum of their covalent radii; 0 allows all.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        *,
        degrees: int,
        temperature: float,
        conserved: float | None,
        closest_fraction: float = CLOSEST_FRACTION,
    ) -> None:
        self.degrees = degrees
        self.temperature_limit = _TEMPERATURE_FACTOR * temperature + _TEMPERATURE_MARGIN
        self.conserved = conserved
        self.distances = Distances(atoms, closest_fraction)

    def check(self, step: int, atoms: ase.Atoms, conserved: float | None) -> None:
        """Everything at once, after a step; `conserved` is the energy that should not have changed (eV)."""
        check_finite(atoms, f"step {step}")
        if step % STEPS_BETWEEN_DISTANCES == 0:
            self.distances.check(atoms, f"step {step}")
        self._check_temperature(step, atoms)
        if conserved is None or self.conserved is None:
            return
        change = (conserved - self.conserved) / len(atoms)
        if not abs(change) < ENERGY_CHANGE:
            raise SimulationError(
                f"step {step}: the conserved energy has changed by {change:.2f} eV/atom since the start"
                f" (atom {_fastest(atoms)} is the fastest); {_REMEDY}"
            )

    def _check_temperature(self, step: int, atoms: ase.Atoms) -> None:
        temperature = 2 * atoms.get_kinetic_energy() / (self.degrees * units.kB)
        if not temperature < self.temperature_limit:
            raise SimulationError(
                f"step {step}: the temperature is {temperature:.0f} K (atom {_fastest(atoms)} is the fastest);"
                f" {_REMEDY}"
            )


def check_finite(atoms: ase.Atoms, where: str) -> None:
    """Raises `SimulationError` when the energy, a force or a position is not a finite number."""
    energy = atoms.get_potential_energy()
    for name, values in (("force", atoms.get_forces()), ("position", atoms.positions)):
        # The sum is not finite exactly when one of the numbers is not (or they are beyond all reason).
        if not np.isfinite(values.sum()):
            atom = int(np.argmax(~np.isfinite(values).all(axis=1)))
            raise SimulationError(
                f"{where}: the {name} on atom {atom} ({atoms.symbols[atom]}) is not a finite number; {_REMEDY}"
            )
    if not np.isfinite(energy):
        raise SimulationError(f"{where}: the energy is not a finite number; {_REMEDY}")


def _fastest(atoms: ase.Atoms) -> str:
    atom = int(np.linalg.norm(atoms.get_velocities(), axis=1).argmax())
    return f"{atom} ({atoms.symbols[atom]})"
