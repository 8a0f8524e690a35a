"""The energy of a crystal over its volume: lattice constant and bulk modulus."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator
from ase.eos import EquationOfState, birchmurnaghan

from equipes.errors import InputError
from equipes.simulate.errors import SimulationError
from equipes.simulate.relax import relax, relaxes_cell
from equipes.simulate.safety import check_finite

# How far from the volume given a minimum is looked for, and how often the range is centred on it.
_FARTHEST = 3.0
_ROUNDS = 5
_REMEDY = "start from a structure nearer to one, or train on more volumes"


@dataclass(frozen=True)
class EquationOfStateResult:
    """A Birch-Murnaghan fit and the points behind it; energies and volumes are those of the whole cell.

    Attributes:
        atoms: the structure at the volume of lowest energy.
        volumes_ang3, energies_ev: the points.
        volume_ang3: volume of lowest energy.
        energy_ev: the energy there.
        bulk_modulus_gpa: at zero pressure.
        bulk_modulus_derivative: its derivative by pressure, B'.
        fit_rms_mev_per_atom: how far the points lie from the curve.
        lattice: name of the Bravais lattice of the cell, such as FCC.
        lattice_constants: its conventional constants, lengths in Å and angles in degrees.
    """

    atoms: ase.Atoms
    volumes_ang3: np.ndarray
    energies_ev: np.ndarray
    volume_ang3: float
    energy_ev: float
    bulk_modulus_gpa: float
    bulk_modulus_derivative: float
    fit_rms_mev_per_atom: float
    lattice: str
    lattice_constants: dict[str, float]

    def energies_at(self, volumes: np.ndarray) -> np.ndarray:
        """The fitted curve, eV, at `volumes` in Å³."""
        modulus = self.bulk_modulus_gpa * units.GPa
        return birchmurnaghan(
            volumes, self.energy_ev, modulus, self.bulk_modulus_derivative, self.volume_ang3
        )

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values, the structure as its cell parameters."""
        values = {name: value for name, value in vars(self).items() if name != "atoms"}
        values.update(volumes_ang3=self.volumes_ang3.tolist(), energies_ev=self.energies_ev.tolist())
        return {**values, "n_atoms": len(self.atoms), "cell": self.atoms.cell.cellpar().tolist()}


def equation_of_state(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    *,
    volume_range: float = 0.08,
    points: int = 11,
    relax_positions: bool = True,
    fmax: float = 0.005,
    on_point: Callable[[float, float], None] | None = None,
) -> EquationOfStateResult:
    """Energies at volumes around the minimum, and the third-order Birch-Murnaghan curve through them.

    F. Birch, Phys. Rev. 71, 809 (1947). The cell keeps its shape, and at every volume the atoms are relaxed (where
    symmetry holds them in place that costs nothing). The range of volumes follows the minimum, which may lie far from
    the structure given.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator.
        volume_range: the points span this fraction of the volume to either side.
        points: how many, at least 5.
        relax_positions: relax the atoms at every volume.
        fmax: the limit of their forces, eV/Å.
        on_point: called with volume and energy of every point.

    Raises:
        InputError: not a crystal, or options out of range.
        SimulationError: no minimum of the energy can be found or fitted.
    """
    if not relaxes_cell(atoms):
        raise InputError("an equation of state needs a crystal, periodic in all three directions")
    if not 0 < volume_range < 0.5 or points < 5:
        raise InputError(
            f"the range must lie between 0 and 0.5 with at least 5 points, not {volume_range} and {points}"
        )

    def relaxed_at(volume: float) -> ase.Atoms:
        structure = _relaxed_at(atoms, calculator, volume, relax_positions=relax_positions, fmax=fmax)
        if on_point is not None:
            on_point(volume, structure.get_potential_energy())
        return structure

    centre = _lowest_volume(relaxed_at, float(atoms.get_volume()), volume_range)
    for _ in range(_ROUNDS):
        volumes = centre * np.linspace(1 - volume_range, 1 + volume_range, points)
        structures = [relaxed_at(float(volume)) for volume in volumes]
        energies = np.array([structure.get_potential_energy() for structure in structures])
        curve = _fit(volumes, energies)
        if abs(curve[3] / centre - 1) < volume_range / 4:
            return _result(structures[int(energies.argmin())], volumes, energies, curve)
        centre = float(np.clip(curve[3], volumes[0], volumes[-1]))
    raise SimulationError(f"the energy has no single minimum around {centre:.1f} Å³; {_REMEDY}")


def _lowest_volume(relaxed_at: Callable[[float], ase.Atoms], start: float, step: float) -> float:
    """Walk down the energy in steps of the volume, to the last before it rises again."""
    energies = {k: relaxed_at(start * (1 + step) ** k).get_potential_energy() for k in (-1, 0, 1)}
    best = min(energies, key=energies.__getitem__)
    while best in (min(energies), max(energies)):
        following = best + (1 if best > 0 else -1)
        volume = start * (1 + step) ** following
        if not 1 / _FARTHEST < volume / start < _FARTHEST:
            raise SimulationError(
                f"the energy has no minimum between {start:.1f} and {volume:.1f} Å³, it still falls there; {_REMEDY}"
            )
        energies[following] = relaxed_at(volume).get_potential_energy()
        best = min(energies, key=energies.__getitem__)
    return start * (1 + step) ** best


def _relaxed_at(
    atoms: ase.Atoms, calculator: BaseCalculator, volume: float, *, relax_positions: bool, fmax: float
) -> ase.Atoms:
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell.array * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    result = relax(scaled, calculator, cell=False, fmax=fmax, steps=200 if relax_positions else 0)
    check_finite(result.atoms, f"at {volume:.2f} Å³")
    if relax_positions and not result.converged:
        raise SimulationError(
            f"at {volume:.2f} Å³ the atoms did not relax to {fmax:g} eV/Å (reached"
            f" {result.max_force_ev_per_ang:.3g}); relax the structure first, or raise the limit"
        )
    return result.atoms


def _fit(volumes: np.ndarray, energies: np.ndarray) -> tuple[float, float, float, float]:
    """Energy, bulk modulus (eV/Å³), its pressure derivative and volume of the Birch-Murnaghan curve."""
    # Total energies of thousands of eV would hide the differences from the fit.
    offset = energies.min()
    fit = EquationOfState(volumes, energies - offset, eos="birchmurnaghan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a minimum outside the range, which is looked at here
            fit.fit()
    except RuntimeError as error:
        raise SimulationError(
            "no Birch-Murnaghan curve fits the energies; widen the range, or train on more volumes"
        ) from error
    energy, modulus, derivative, volume = (float(value) for value in fit.eos_parameters)
    if not (modulus > 0 and volume > 0):
        raise SimulationError(
            "the energies have no minimum over the volume; start nearer to it, or widen the range"
        )
    return energy + float(offset), modulus, derivative, volume


def _result(
    nearest: ase.Atoms, volumes: np.ndarray, energies: np.ndarray, curve: tuple[float, float, float, float]
) -> EquationOfStateResult:
    energy, modulus, derivative, volume = curve
    best = nearest.copy()
    best.set_cell(nearest.cell.array * (volume / nearest.get_volume()) ** (1 / 3), scale_atoms=True)
    lattice = best.cell.get_bravais_lattice(eps=1e-3)
    residuals = energies - birchmurnaghan(volumes, energy, modulus, derivative, volume)
    return EquationOfStateResult(
        atoms=best,
        volumes_ang3=volumes,
        energies_ev=energies,
        volume_ang3=volume,
        energy_ev=energy,
        bulk_modulus_gpa=modulus / units.GPa,
        bulk_modulus_derivative=derivative,
        fit_rms_mev_per_atom=1000 * float(np.sqrt(np.mean(residuals**2))) / len(best),
        lattice=lattice.name,
        lattice_constants={name: float(value) for name, value in lattice.vars().items()},
    )
