"""Thermostats of dynamics that stay on a device: those of ASE, with its random numbers, step by step.

What is random is drawn on the host, by the generator of the integrator of ASE that a run has on the CPU, and goes to
the device for many steps at once. So a run is the same on both, to round-off, and either continues the other.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from torch import Tensor


class DeviceThermostat(Protocol):
    """What a thermostat does in a step.

    Attributes:
        shape: of the numbers that the host draws for a step.
        divides: whether it acts in the middle of the drift too.
    """

    shape: tuple[int, ...]
    divides: bool

    def draw(self) -> np.ndarray:
        """The numbers for the next step, on the host."""

    def scale(self, velocities: Tensor, masses: Tensor, numbers: Tensor) -> Tensor | float:
        """Change the velocities in place where a step begins; returns the energy given to the atoms, eV."""

    def rub(self, velocities: Tensor, masses: Tensor, numbers: Tensor) -> None:
        """Change the velocities in place between the halves of the drift."""


class Rescaling:
    """Stochastic velocity rescaling; G. Bussi et al., J. Chem. Phys. 126, 014101 (2007), eq. A7.

    Args:
        bussi: ASE's, for its random numbers, target and degrees of freedom.
    """

    shape: tuple[int, ...] = (3,)
    divides = False

    def __init__(self, bussi: Bussi) -> None:
        self.bussi = bussi
        self._kept = math.exp(-bussi.dt / bussi.taut)

    def draw(self) -> np.ndarray:
        """A normal number, a sum of squares of all others, and the target of the kinetic energy."""
        normal = self.bussi.rng.standard_normal()
        others = 2.0 * self.bussi.rng.standard_gamma(0.5 * (self.bussi.ndof - 1))
        return np.array([normal, others, self.bussi.target_kinetic_energy])

    def scale(self, velocities: Tensor, masses: Tensor, numbers: Tensor) -> Tensor:
        """Scale the kinetic energy; see `DeviceThermostat`."""
        normal, others, target = numbers.unbind()
        kinetic = (masses * velocities.square()).sum() / 2
        share = (1 - self._kept) * target / kinetic / self.bussi.ndof
        squared = self._kept + share * (others + normal**2) + 2 * normal * (self._kept * share).sqrt()
        velocities.mul_(squared.sqrt())
        return (squared - 1) * kinetic

    def rub(self, velocities: Tensor, masses: Tensor, numbers: Tensor) -> None:
        """Nothing."""


class Friction:
    """Friction and noise of Langevin dynamics in the splitting BAOAB; B. Leimkuhler and C. Matthews, J. Chem. Phys.
    138, 174102 (2013).

    Args:
        langevin: ASE's, for its random numbers, friction and temperature.
        n_atoms: of the structure.
    """

    divides = True

    def __init__(self, langevin: LangevinBAOAB, n_atoms: int) -> None:
        self.langevin = langevin
        self.shape: tuple[int, ...] = (n_atoms, 3)
        self._kept = math.exp(-langevin.gamma * langevin.dt)

    def draw(self) -> np.ndarray:
        """The noise, `[N, 3]`, in units of the square root of energy."""
        return self.langevin.BAOAB_prefactor * self.langevin.rng.normal(size=self.shape)

    def scale(self, velocities: Tensor, masses: Tensor, numbers: Tensor) -> float:
        """Nothing."""
        return 0.0

    def rub(self, velocities: Tensor, masses: Tensor, numbers: Tensor) -> None:
        """Friction and noise; see `DeviceThermostat`."""
        n = self.shape[0]
        velocities.mul_(self._kept)
        velocities.narrow(0, 0, n).addcdiv_(numbers, masses.narrow(0, 0, n).sqrt())
