"""Thermal expansion in the quasi-harmonic approximation: phonons at several volumes, and the minimum of F(V, T)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.simulate.crystals import checked_supercell, symmetrized
from equipes.simulate.errors import SimulationError
from equipes.simulate.evaluations import checked_start
from equipes.simulate.harmonic import PHONOPY, harmonic
from equipes.simulate.packages import require
from equipes.simulate.phonons import FORCE_LIMIT, relaxed_crystal, unit_and_supercell
from equipes.simulate.processes import processes_for, spread
from equipes.simulate.relax import relax
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.store import Store

_CITATIONS = (
    PHONOPY,
    "A. Togo, L. Chaput, I. Tanaka, G. Hug, Phys. Rev. B 81, 174301 (2010)",
    "P. Vinet, J. H. Rose, J. Ferrante, J. R. Smith, J. Phys. Condens. Matter 1, 1941 (1989)",
)
_FEWEST_VOLUMES = 5
_EOS = ("vinet", "birch_murnaghan")


@dataclass(frozen=True)
class ExpansionOptions:
    """What `expansion` does.

    Attributes:
        supercell: how often the cell given is repeated; None takes the conventional cell, repeated to `length`.
        length: Å between opposite faces of the supercell, at least.
        displacement: Å.
        volumes: how many, at least 5.
        smallest, largest: the volumes, over that of lowest energy.
        mesh: the q-points are those of a supercell of this size, Å.
        highest: temperature, K.
        step: of the temperatures, K.
        relax: relax atoms and cell first; the atoms, and the shape of a cell that is not cubic, relax at every volume.
        imaginary: volumes with modes below minus this frequency, THz, are left out.
        limit: the relative change of the expansion coefficient by another equation of state that counts as converged.
    """

    supercell: tuple[int, int, int] | None = None
    length: float = 8.0
    displacement: float = 0.01
    volumes: int = 9
    smallest: float = 0.97
    largest: float = 1.07
    mesh: float = 60.0
    highest: float = 800.0
    step: float = 10.0
    relax: bool = True
    imaginary: float = 0.1
    limit: float = 0.05

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        require("thermal expansion", "phonons", "phonopy", "spglib")
        if self.supercell is not None:
            checked_supercell(self.supercell)
        if self.volumes < _FEWEST_VOLUMES or not 0.5 < self.smallest < 1 < self.largest < 1.5:
            raise InputError(
                f"at least {_FEWEST_VOLUMES} volumes from below to above 1 are needed, not {self.volumes} from"
                f" {self.smallest} to {self.largest}"
            )
        if not 0 < self.displacement <= 0.3:
            raise InputError(f"the displacement must lie between 0 and 0.3 Å, not {self.displacement}")
        if not (self.highest >= 5 * self.step > 0):
            raise InputError(
                f"temperatures need a step above 0 and at least 5 of them, not {self.step} to {self.highest} K"
            )
        if not (self.length > 0 and self.mesh > 0 and self.limit > 0):
            raise InputError("length, mesh and limit must be above 0")


@dataclass(frozen=True)
class ExpansionResult:
    """Thermal expansion; volumes are those of the primitive cell.

    Attributes:
        atoms: the structure of lowest energy.
        volumes_ang3, energies_ev: `[V]`, what was calculated, without those left out.
        temperatures_k: `[T]`.
        volume_ang3: `[T]`, of the lowest free energy.
        expansion_per_k: `[T]`, of the volume, (dV/dT) / V.
        bulk_modulus_gpa: `[T]`, isothermal.
        heat_capacity_j_per_k_per_mol: `[T]`, at constant pressure, per mole of primitive cells.
        gruneisen: `[T]`, thermal Grüneisen parameter.
        provenance: method, citations, convergence, warnings.
        volume_error_ang3, expansion_error_per_k, bulk_modulus_error_gpa: `[T]`, standard errors, where they come from
            molecular dynamics; None in the quasi-harmonic approximation, which samples nothing.
    """

    atoms: ase.Atoms
    volumes_ang3: np.ndarray
    energies_ev: np.ndarray
    temperatures_k: np.ndarray
    volume_ang3: np.ndarray
    expansion_per_k: np.ndarray
    bulk_modulus_gpa: np.ndarray
    heat_capacity_j_per_k_per_mol: np.ndarray
    gruneisen: np.ndarray
    provenance: Provenance
    volume_error_ang3: np.ndarray | None = None
    expansion_error_per_k: np.ndarray | None = None
    bulk_modulus_error_gpa: np.ndarray | None = None

    def at(self, temperature: float) -> int:
        """The index of the temperature calculated nearest to `temperature`."""
        return int(np.abs(self.temperatures_k - temperature).argmin())

    def linear_per_k(self, temperature: float) -> float:
        """The mean linear expansion coefficient, a third of that of the volume."""
        return float(self.expansion_per_k[self.at(temperature)]) / 3

    def linear_error_per_k(self, temperature: float) -> float | None:
        """Its standard error; None in the quasi-harmonic approximation."""
        errors = self.expansion_error_per_k
        return None if errors is None else float(errors[self.at(temperature)]) / 3

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def expansion(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: ExpansionOptions | None = None,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> ExpansionResult:
    """Volume, expansion coefficient and bulk modulus of a crystal against temperature, at zero pressure.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator; in float64, or round-off of forces shows.
        options: see `ExpansionOptions`.
        store: keeps structures and forces, so that a stopped calculation goes on.
        progress: called as volumes are done.

    Raises:
        InputError: not a crystal, or options out of range.
        SimulationError: a structure that does not relax, or one that is unstable at too many volumes.
    """
    options = ExpansionOptions() if options is None else options
    options.check()
    checked_start(atoms, calculator, "thermal expansion")
    store = Store() if store is None else store
    crystal = relaxed_crystal(atoms, calculator, relax_first=options.relax, store=store, progress=progress)
    unit, supercell = unit_and_supercell(crystal, options.supercell, options.length)
    factors = np.linspace(options.smallest, options.largest, options.volumes)
    names = [f"volume {number}" for number in range(len(factors))]
    known = [store.get(name) for name in names]
    missing = [number for number, found in enumerate(known) if found is None]
    processes = processes_for(calculator, 20 * len(unit) * len(missing), len(missing))

    def relaxed(number: int, _: Callable[[Any], None]) -> dict[str, np.ndarray]:
        return _at_volume(unit, calculator, float(factors[number]), options)

    energies, harmonics = [], []
    with closing(spread(relaxed, missing, processes)) as fresh:
        for number, name in enumerate(names):
            progress("volumes", number, len(factors))
            entry = known[number]
            if entry is None:
                entry = next(fresh)
                store.put(name, **entry)
            scaled = unit.copy()
            scaled.set_cell(entry["cell"])
            scaled.set_positions(entry["positions"])
            phonon, _ = harmonic(
                symmetrized(scaled),
                calculator,
                supercell,
                options.displacement,
                name=f"{name} displaced",
                store=store,
            )
            energies.append(float(entry["energy"]) * len(phonon.primitive) / len(unit))
            harmonics.append(phonon)
    progress("volumes", len(factors), len(factors))
    return expansion_from_harmonics(harmonics, energies, options, unit)


def expansion_from_harmonics(
    harmonics: Sequence[Any],
    energies: Sequence[float],
    options: ExpansionOptions,
    atoms: ase.Atoms,
) -> ExpansionResult:
    """The same from force constants (`Phonopy` objects) and energies (eV per primitive cell) at several volumes.

    Raises `SimulationError` when fewer than five of them are stable, or the free energy has no minimum among them.
    """
    from phonopy import PhonopyQHA

    # phonopy takes differences of temperatures and loses the last ones.
    temperatures = np.arange(0.0, options.highest + 3 * options.step, options.step)
    kept, left_out, free, entropy, capacity = [], [], [], [], []
    for number, phonon in enumerate(harmonics):
        phonon.run_mesh(options.mesh)
        if phonon.mesh.frequencies.min() < -options.imaginary:
            left_out.append(phonon.primitive.volume)
            continue
        phonon.run_thermal_properties(temperatures=temperatures, cutoff_frequency=1e-3)
        found = phonon.thermal_properties
        kept.append(number)
        free.append(np.array(found.free_energy))
        entropy.append(np.array(found.entropy))
        capacity.append(np.array(found.heat_capacity))
    if len(kept) < _FEWEST_VOLUMES:
        raise SimulationError(
            f"the crystal is stable at only {len(kept)} of {len(harmonics)} volumes (imaginary modes at the others);"
            " see `equipes phonons`, or take a smaller range of volumes"
        )
    volumes = np.array([harmonics[number].primitive.volume for number in kept])
    statics = np.array([energies[number] for number in kept])
    fits = {}
    for eos in _EOS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fits[eos] = PhonopyQHA(
                    volumes=volumes,
                    electronic_energies=statics - statics.min(),
                    temperatures=temperatures,
                    free_energy=np.array(free).T,
                    cv=np.array(capacity).T,
                    entropy=np.array(entropy).T,
                    eos=eos,
                    t_max=options.highest,
                )
        except (RuntimeError, ValueError, TypeError) as error:
            raise SimulationError(
                f"no equation of state fits the free energies over the volume ({error}); take other volumes"
            ) from error
    best = fits[_EOS[0]]
    length = int(options.highest / options.step) + 1
    volume = np.array(best.volume_temperature)[:length]
    notes = []
    if volume.min() < volumes.min() or volume.max() > volumes.max():
        notes.append(
            f"the volume leaves the range calculated ({volumes.min():.2f} to {volumes.max():.2f} Å³); take a larger one"
        )
    if left_out:
        listed = ", ".join(f"{value:.2f}" for value in left_out)
        notes.append(f"left out for imaginary modes: {listed} Å³")
    notes.append(
        "the quasi-harmonic approximation misses anharmonicity at constant volume, near melting above all"
    )
    at = min(int(300 / options.step), length - 1)
    ours, other = (np.array(fit.thermal_expansion)[at] for fit in fits.values())
    check = Check(
        f"another equation of state: the expansion coefficient at {at * options.step:g} K",
        float(abs(other - ours) / max(abs(ours), 1e-12)),
        options.limit,
    )
    phonon = harmonics[kept[0]]
    method = (
        f"Quasi-harmonic approximation with {len(kept)} volumes, phonons by finite displacements in supercells of"
        f" {len(phonon.supercell)} atoms on {'×'.join(map(str, phonon.mesh.mesh_numbers))} q-points, Vinet equation of"
        " state"
    )
    return ExpansionResult(
        atoms=atoms,
        volumes_ang3=volumes,
        energies_ev=statics,
        temperatures_k=temperatures[:length],
        volume_ang3=volume,
        expansion_per_k=np.array(best.thermal_expansion)[:length],
        bulk_modulus_gpa=np.array(best.bulk_modulus_temperature)[:length],
        heat_capacity_j_per_k_per_mol=np.array(best.heat_capacity_P_polyfit)[:length],
        gruneisen=np.array(best.gruneisen_temperature)[:length],
        provenance=Provenance(method, _CITATIONS, (check,), tuple(notes)),
    )


def _at_volume(
    unit: ase.Atoms, calculator: BaseCalculator, factor: float, options: ExpansionOptions
) -> dict[str, np.ndarray]:
    """The unit cell at a volume, relaxed there, and its energy in eV."""
    scaled = unit.copy()
    scaled.set_cell(unit.cell.array * factor ** (1 / 3), scale_atoms=True)
    result = relax(
        scaled,
        calculator,
        cell=options.relax,
        constant_volume=options.relax,
        fmax=FORCE_LIMIT,
        smax=0.01,
        steps=500 if options.relax else 0,
        symmetry=True,
    )
    if options.relax and not result.converged:
        raise SimulationError(
            f"at {factor * unit.get_volume():.2f} Å³ the crystal did not relax (largest force"
            f" {result.max_force_ev_per_ang:.2g} eV/Å); take --dtype float64, or other volumes"
        )
    return {
        "positions": result.atoms.positions,
        "cell": result.atoms.cell.array,
        "energy": np.array(result.energy_ev),
    }
