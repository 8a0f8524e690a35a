"""The energy of a crystal over its volume: lattice constant and bulk modulus."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator
from ase.eos import EquationOfState, birchmurnaghan

from equipes.errors import InputError
from equipes.simulate.errors import SimulationError
from equipes.simulate.processes import processes_for, spread
from equipes.simulate.relax import relax, relaxes_cell
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.safety import check_finite
from equipes.simulate.store import Store

# How far from the volume given a minimum is looked for, and how often the range is centred on it.
_FARTHEST = 3.0
_ROUNDS = 5
_REMEDY = "start from a structure nearer to one, or train on more volumes"
_CITATIONS = (
    "F. Birch, Phys. Rev. 71, 809 (1947)",
    "P. Vinet, J. H. Rose, J. Ferrante, J. R. Smith, J. Phys. Condens. Matter 1, 1941 (1989)",
)
_LIMIT = 0.02
_FEWEST_POINTS = 5


@dataclass(frozen=True)
class EquationOfStateOptions:
    """What `equation_of_state` does.

    Attributes:
        volume_range: the points span this fraction of the volume to either side.
        points: how many, at least 5.
        relax_positions: relax the atoms at every volume.
        fmax: the limit of their forces, eV/Å.
    """

    volume_range: float = 0.08
    points: int = 11
    relax_positions: bool = True
    fmax: float = 0.005

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        if not 0 < self.volume_range < 0.5 or self.points < _FEWEST_POINTS:
            raise InputError(
                f"the range must lie between 0 and 0.5 with at least {_FEWEST_POINTS} points, not {self.volume_range}"
                f" and {self.points}"
            )
        if not self.fmax > 0:
            raise InputError(f"fmax must be above 0, not {self.fmax}")


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
        provenance: method, citations, convergence.
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
    provenance: Provenance

    def energies_at(self, volumes: np.ndarray) -> np.ndarray:
        """The fitted curve, eV, at `volumes` in Å³."""
        modulus = self.bulk_modulus_gpa * units.GPa
        return birchmurnaghan(
            volumes, self.energy_ev, modulus, self.bulk_modulus_derivative, self.volume_ang3
        )

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values, the structure as its cell parameters."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "atoms"}
        return plain({**own, "n_atoms": len(self.atoms), "cell": self.atoms.cell.cellpar()})


def equation_of_state(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    *,
    volume_range: float = 0.08,
    points: int = 11,
    relax_positions: bool = True,
    fmax: float = 0.005,
    store: Store | None = None,
    progress: Progress = silent,
) -> EquationOfStateResult:
    """Energies at volumes around the minimum, and the third-order Birch-Murnaghan curve through them.

    F. Birch, Phys. Rev. 71, 809 (1947). The cell keeps its shape, and at every volume the atoms are relaxed (where
    symmetry holds them in place that costs nothing). The range of volumes follows the minimum, which may lie far from
    the structure given.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator.
        volume_range, points, relax_positions, fmax: see `EquationOfStateOptions`.
        store: keeps what was calculated, so that a stopped calculation goes on.
        progress: called as points are done.

    Raises:
        InputError: not a crystal, or options out of range.
        SimulationError: no minimum of the energy can be found or fitted.
    """
    if not relaxes_cell(atoms):
        raise InputError("an equation of state needs a crystal, periodic in all three directions")
    options = EquationOfStateOptions(volume_range, points, relax_positions, fmax)
    options.check()
    at = _Points(atoms, calculator, options, Store() if store is None else store, progress)
    centre = _lowest_volume(at, float(atoms.get_volume()), volume_range)
    for _ in range(_ROUNDS):
        volumes = centre * np.linspace(1 - volume_range, 1 + volume_range, points)
        structures = at(volumes)
        energies = np.array([structure.info["energy"] for structure in structures])
        curve = _fit(volumes, energies)
        if abs(curve[3] / centre - 1) < volume_range / 4:
            return _result(structures[int(energies.argmin())], volumes, energies, curve, options)
        centre = float(np.clip(curve[3], volumes[0], volumes[-1]))
    raise SimulationError(f"the energy has no single minimum around {centre:.1f} Å³; {_REMEDY}")


class _Points:
    """Structures at given volumes, relaxed there, with their energy in `info`; each is calculated once."""

    def __init__(
        self,
        atoms: ase.Atoms,
        calculator: BaseCalculator,
        options: EquationOfStateOptions,
        store: Store,
        progress: Progress,
    ) -> None:
        self.atoms, self.calculator, self.options = atoms, calculator, options
        self.store, self.progress = store, progress

    def __call__(self, volumes: Sequence[float] | np.ndarray) -> list[ase.Atoms]:
        names = [f"volume {float(volume)!r}" for volume in volumes]
        known = [self.store.get(name) for name in names]
        missing = [float(v) for v, found in zip(volumes, known, strict=True) if found is None]
        processes = processes_for(self.calculator, 10 * len(self.atoms) * len(missing), len(missing))
        results = []
        with closing(spread(self._relaxed, missing, processes)) as fresh:
            for number, (name, entry) in enumerate(zip(names, known, strict=True)):
                self.progress("volumes", number, len(names))
                if entry is None:
                    entry = next(fresh)
                    self.store.put(name, **entry)
                structure = self.atoms.copy()
                structure.set_cell(entry["cell"])
                structure.set_positions(entry["positions"], apply_constraint=False)
                structure.info = {"energy": float(entry["energy"])}
                results.append(structure)
        self.progress("volumes", len(names), len(names))
        return results

    def _relaxed(self, volume: float, _: Callable[[Any], None]) -> dict[str, np.ndarray]:
        relax_positions, fmax = self.options.relax_positions, self.options.fmax
        found = _relaxed_at(self.atoms, self.calculator, volume, relax_positions=relax_positions, fmax=fmax)
        energy = np.array(found.get_potential_energy())
        return {"positions": found.positions, "cell": found.cell.array, "energy": energy}


def _lowest_volume(at: _Points, start: float, step: float) -> float:
    """Walk down the energy in steps of the volume, to the last before it rises again."""
    first = at([start * (1 + step) ** k for k in (-1, 0, 1)])
    energies = {k: structure.info["energy"] for k, structure in zip((-1, 0, 1), first, strict=True)}
    best = min(energies, key=energies.__getitem__)
    while best in (min(energies), max(energies)):
        following = best + (1 if best > 0 else -1)
        volume = start * (1 + step) ** following
        if not 1 / _FARTHEST < volume / start < _FARTHEST:
            raise SimulationError(
                f"the energy has no minimum between {start:.1f} and {volume:.1f} Å³, it still falls there; {_REMEDY}"
            )
        energies[following] = at([volume])[0].info["energy"]
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


def _fit(
    volumes: np.ndarray, energies: np.ndarray, eos: str = "birchmurnaghan"
) -> tuple[float, float, float, float]:
    """Energy, bulk modulus (eV/Å³), its pressure derivative and volume of the curve."""
    # Total energies of thousands of eV would hide the differences from the fit.
    offset = energies.min()
    fit = EquationOfState(volumes, energies - offset, eos=eos)
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
    nearest: ase.Atoms,
    volumes: np.ndarray,
    energies: np.ndarray,
    curve: tuple[float, float, float, float],
    options: EquationOfStateOptions,
) -> EquationOfStateResult:
    energy, modulus, derivative, volume = curve
    best = nearest.copy()
    best.info = {}
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
        provenance=_provenance(volumes, energies, modulus, options),
    )


def _provenance(
    volumes: np.ndarray, energies: np.ndarray, modulus: float, options: EquationOfStateOptions
) -> Provenance:
    method = (
        f"Third-order Birch-Murnaghan curve through {len(volumes)} volumes within"
        f" {100 * options.volume_range:g} % of the best, the cell in its shape, the atoms"
        f" {'relaxed' if options.relax_positions else 'held'}"
    )
    checks = []
    half = len(volumes) // 4
    inner = slice(half, len(volumes) - half)
    for what, part, curve in (
        ("the Vinet equation of state: the bulk modulus", slice(None), "vinet"),
        ("the inner half of the volumes: the bulk modulus", inner, "birchmurnaghan"),
    ):
        if len(volumes[part]) < _FEWEST_POINTS:
            continue
        try:
            other = _fit(volumes[part], energies[part], curve)[1]
        except SimulationError:
            other = float("inf")
        checks.append(Check(what, abs(other / modulus - 1), _LIMIT))
    return Provenance(method, _CITATIONS, tuple(checks))
