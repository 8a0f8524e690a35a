"""The ensembles of molecular dynamics: which integrator of ASE serves each, its degrees of freedom, and its state.

nve: velocity Verlet, whose energy oscillates but does not drift.

nvt: velocity Verlet with stochastic velocity rescaling (Bussi, Donadio & Parrinello, J. Chem. Phys. 126, 014101, 2007).
It is canonical, keeps momentum at zero and the dynamics nearly undisturbed, and has a conserved energy. The kinetic
energy that it controls is the one that is measured, so the mean temperature carries no error of the time step.

Instead of it: a chain of Nosé-Hoover thermostats (Martyna, Klein & Tuckerman, J. Chem. Phys. 97, 2635, 1992), which is
deterministic; or Langevin dynamics in the BAOAB splitting, which is ergodic in harmonic solids and slows diffusion.

npt: Langevin dynamics of atoms and cell, BAOAB splitting (Quigley & Probert, J. Chem. Phys. 120, 11432, 2004;
Leimkuhler & Matthews, J. Chem. Phys. 138, 174102, 2013). It samples volumes rightly also in small cells, where
Nosé-Hoover chains take long to become ergodic. Configurations carry almost no error of the time step; the kinetic
temperature of a vibration reads low by about (angular frequency * time step)² / 4 of it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import ase
import numpy as np
from ase import units
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet

from equipes.errors import InputError
from equipes.simulate.barostat import ShapeBarostat
from equipes.simulate.nose_hoover import NoseHooverChain

Ensemble = Literal["nve", "nvt", "npt"]
Thermostat = Literal["bussi", "nose-hoover", "langevin"]
# An ensemble with its integrator; "nvt" alone is velocity rescaling.
Kind = Literal["nve", "nvt", "nvt-nose-hoover", "nvt-langevin", "npt"]

# What an integrator carries from one step to the next besides atoms and random numbers. All of it is public in ASE.
_STATE = {
    "nve": (),
    "nvt": ("transferred_energy",),
    "nvt-nose-hoover": ("transferred_energy", "chain"),
    "nvt-langevin": (),
    "npt": ("p_eps", "force_eps"),
}


@dataclass(frozen=True)
class MotionRemoved:
    """Rigid motion that starts at zero, that the ensemble keeps there, and that carries no temperature."""

    translation: bool
    rotations: int

    @property
    def degrees(self) -> int:
        """How many degrees of freedom that takes away."""
        return 3 * self.translation + self.rotations


def motion_removed(atoms: ase.Atoms, ensemble: Kind) -> MotionRemoved:
    """What rigid motion is taken out: translation; rotation too of a molecule in vacuum.

    None with constraints, which do not conserve momentum, nor in Langevin dynamics (npt too), whose random forces give
    temperature to the centre of mass as well.
    """
    if ensemble in ("npt", "nvt-langevin") or atoms.constraints:
        return MotionRemoved(translation=False, rotations=0)
    # Two atoms have no moment of inertia around their axis; three that start in a line will leave it.
    rotations = 0 if atoms.pbc.any() else {1: 0, 2: 2}.get(len(atoms), 3)
    return MotionRemoved(translation=True, rotations=rotations)


def degrees_of_freedom(atoms: ase.Atoms, ensemble: Kind) -> int:
    """The number of momenta that share the kinetic energy.

    Raises:
        InputError: none is left to move.
    """
    degrees = atoms.get_number_of_degrees_of_freedom() - motion_removed(atoms, ensemble).degrees
    if degrees < 1:
        raise InputError(
            f"nothing can move: {len(atoms)} atom(s), without rigid motion and with {len(atoms.constraints)}"
            " constraint(s), have no degree of freedom; take a larger structure or a supercell"
        )
    return degrees


def thermal_momenta(atoms: ase.Atoms, temperature: float, ensemble: Kind, rng: np.random.Generator) -> None:
    """Set Maxwell-Boltzmann momenta at `temperature` (K), without the rigid motion that the ensemble removes."""
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    atoms.set_momenta(momenta)  # constraints apply
    remove_rigid_motion(atoms, ensemble)
    kinetic_energy = atoms.get_kinetic_energy()
    if ensemble == "nve" and kinetic_energy > 0:
        wanted = degrees_of_freedom(atoms, ensemble) / 2 * units.kB * temperature
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(wanted / kinetic_energy))


def remove_rigid_motion(atoms: ase.Atoms, ensemble: Kind) -> None:
    """Take out the momentum and angular momentum that the ensemble keeps at zero."""
    removed = motion_removed(atoms, ensemble)
    masses = atoms.get_masses()
    velocities = atoms.get_velocities()
    if removed.translation:
        velocities -= masses @ velocities / masses.sum()
    if removed.rotations:
        arms = atoms.positions - atoms.get_center_of_mass()
        angular_momentum = (masses[:, None] * np.cross(arms, velocities)).sum(axis=0)
        # Atoms in a line have no inertia around it: the pseudo-inverse leaves that direction out.
        spin = np.linalg.pinv(_inertia(atoms), rcond=1e-8, hermitian=True) @ angular_momentum
        velocities -= np.cross(spin, arms)
    atoms.set_velocities(velocities)


def integrator(
    atoms: ase.Atoms,
    ensemble: Kind,
    *,
    timestep: float,
    temperature: float | None,
    pressure: float,
    thermostat_time: float,
    barostat_time: float,
    flexible_cell: bool,
    flexible_lengths: bool = False,
    rng: np.random.Generator,
) -> MolecularDynamics:
    """The integrator of an ensemble; times in fs, temperature in K, pressure in GPa."""
    dt = timestep * units.fs
    if ensemble == "nve":
        return VelocityVerlet(atoms, dt)
    assert temperature is not None
    if ensemble == "nvt":
        bussi = Bussi(atoms, dt, temperature_K=temperature, taut=thermostat_time * units.fs, rng=rng)
        # ASE counts every momentum as free; those of rigid motion are kept at zero here.
        bussi.ndof = degrees_of_freedom(atoms, ensemble)
        bussi.target_kinetic_energy = 0.5 * bussi.temp * bussi.ndof
        return bussi
    if ensemble == "nvt-nose-hoover":
        return NoseHooverChain(
            atoms,
            dt,
            temperature_K=temperature,
            relaxation=thermostat_time * units.fs,
            degrees=degrees_of_freedom(atoms, ensemble),
        )
    if ensemble == "nvt-langevin":
        return LangevinBAOAB(atoms, dt, temperature_K=temperature, T_tau=thermostat_time * units.fs, rng=rng)
    options: dict[str, Any] = {
        "temperature_K": temperature,
        "externalstress": -pressure * units.GPa,
        "T_tau": thermostat_time * units.fs,
        "P_tau": barostat_time * units.fs,
        "rng": rng,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces that it chose the mass of the cell
        if flexible_cell or flexible_lengths:
            return ShapeBarostat(atoms, dt, lengths_only=flexible_lengths, **options)
        return LangevinBAOAB(atoms, dt, hydrostatic=True, **options)


def set_target(dynamics: MolecularDynamics, temperature: float, pressure: float) -> None:
    """Change what a thermostat (K) and a barostat (GPa) aim at, in the middle of a run."""
    if isinstance(dynamics, Bussi):
        dynamics.temp = units.kB * temperature
        dynamics.target_kinetic_energy = 0.5 * dynamics.temp * dynamics.ndof
    elif isinstance(dynamics, NoseHooverChain):
        dynamics.thermal_energy = units.kB * temperature
    elif isinstance(dynamics, LangevinBAOAB):
        dynamics.set_temperature(temperature)
        if dynamics.externalstress is not None:
            stress = -pressure * units.GPa
            dynamics.externalstress = stress if dynamics.hydrostatic else stress * np.identity(3)


def integrator_state(dynamics: MolecularDynamics, ensemble: Kind) -> dict[str, np.ndarray]:
    """What must be stored, besides atoms and random numbers, to go on exactly."""
    return {name: np.array(getattr(dynamics, name), dtype=float) for name in _STATE[ensemble]}


def restore_integrator(dynamics: MolecularDynamics, ensemble: Kind, state: dict[str, Any]) -> None:
    """Undo `integrator_state`."""
    for name in _STATE[ensemble]:
        value = np.asarray(state[name], dtype=float)
        setattr(dynamics, name, value.copy() if value.ndim else float(value))


def conserved_energy(dynamics: MolecularDynamics, ensemble: Kind, total_energy: float) -> float | None:
    """The energy that exact dynamics would keep constant, in eV; None where there is none (Langevin)."""
    if ensemble == "nve":
        return total_energy
    return (
        total_energy - dynamics.transferred_energy if isinstance(dynamics, Bussi | NoseHooverChain) else None
    )


def _inertia(atoms: ase.Atoms) -> np.ndarray:
    arms = atoms.positions - atoms.get_center_of_mass()
    second_moment = (atoms.get_masses()[:, None] * arms).T @ arms
    return np.trace(second_moment) * np.eye(3) - second_moment
