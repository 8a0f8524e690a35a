"""Phonons of a crystal: bands, density of states, thermal properties, instabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.simulate.crystals import checked_supercell, conventional_cell, supercell_for, symmetrized
from equipes.simulate.errors import SimulationError
from equipes.simulate.evaluations import checked_start
from equipes.simulate.harmonic import (
    PHONOPY,
    Band,
    add_born_charges,
    ase_atoms,
    bands,
    frequencies_at,
    harmonic,
    harmonic_from_forces,
)
from equipes.simulate.packages import require
from equipes.simulate.relax import relax
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.store import Store

_CITATIONS = (
    PHONOPY,
    "A. Togo, L. Chaput, T. Tadano, I. Tanaka, J. Phys. Condens. Matter 35, 353001 (2023)",
    "Y. Hinuma, G. Pizzi, Y. Kumagai, F. Oba, I. Tanaka, Comput. Mater. Sci. 128, 140 (2017)",
)
_SAID = 5  # so many imaginary modes are named
FORCE_LIMIT = 0.001  # eV/Å, that structures are relaxed to before small displacements


@dataclass(frozen=True)
class PhononOptions:
    """What `phonons` does.

    Attributes:
        supercell: how often the cell given is repeated; None takes the conventional cell, repeated to `length`.
        length: Å between opposite faces of the supercell, at least.
        displacement: Å.
        relax: relax atoms and cell first, keeping the symmetry.
        mesh: the q-points of density of states and thermal properties are those of a supercell of this size, Å.
        points: q-points along the path of the bands, in all.
        temperatures: highest one and step, K.
        check_supercell: calculate a smaller supercell too, and say how much changes.
        born: a BORN file of phonopy, for the splitting of longitudinal and transverse modes.
        imaginary: modes below minus this frequency, THz, are called imaginary; nearer to 0 is round-off at Γ.
        limit: the largest change of a frequency from the smaller supercell that counts as converged, as a fraction
            of the highest frequency.
    """

    supercell: tuple[int, int, int] | None = None
    length: float = 10.0
    displacement: float = 0.01
    relax: bool = True
    mesh: float = 100.0
    points: int = 200
    temperatures: tuple[float, float] = (1000.0, 10.0)
    check_supercell: bool = True
    born: str | None = None
    imaginary: float = 0.1
    limit: float = 0.03

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        require("phonons", "phonons", "phonopy", "seekpath", "spglib")
        if self.supercell is not None:
            checked_supercell(self.supercell)
        if not 0 < self.displacement <= 0.3:
            raise InputError(f"the displacement must lie between 0 and 0.3 Å, not {self.displacement}")
        for name in ("length", "mesh", "imaginary", "limit"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.points < 2:
            raise InputError(f"a band structure needs at least 2 points, not {self.points}")
        highest, step = self.temperatures
        if not (highest > 0 and 0 < step <= highest):
            raise InputError(f"temperatures need a highest above 0 K and a step, not {highest} and {step}")
        if self.born is not None and not Path(self.born).is_file():
            raise InputError(f"{self.born}: no such file; give Born charges as a BORN file of phonopy")


@dataclass(frozen=True)
class Thermal:
    """Thermal properties in the harmonic approximation, per mole of primitive cells, over `temperatures_k`."""

    temperatures_k: np.ndarray
    free_energy_kj_per_mol: np.ndarray
    entropy_j_per_k_per_mol: np.ndarray
    heat_capacity_j_per_k_per_mol: np.ndarray
    zero_point_energy_kj_per_mol: float


@dataclass(frozen=True)
class PhononResult:
    """Phonons and what follows from them.

    Attributes:
        atoms: the primitive cell.
        supercell: repetition of `unit_atoms` atoms that forces were calculated in.
        bands: along the path through the Brillouin zone.
        points_thz: frequencies at its corners, by label.
        dos_thz, dos: density of states, per THz and primitive cell.
        thermal: free energy, entropy, heat capacity.
        lowest_thz: the lowest frequency found, imaginary ones negative.
        imaginary: (q-point, THz) of imaginary modes, the worst first; empty for a stable crystal.
        provenance: method, citations, convergence, warnings.
        phonopy: the `Phonopy` object, for everything else that it can do; not part of the summary.
    """

    atoms: ase.Atoms
    supercell: tuple[int, int, int]
    unit_atoms: int
    displaced_supercells: int
    bands: list[Band]
    points_thz: dict[str, np.ndarray]
    dos_thz: np.ndarray
    dos: np.ndarray
    thermal: Thermal
    lowest_thz: float
    imaginary: list[tuple[np.ndarray, float]]
    provenance: Provenance
    phonopy: Any

    @property
    def stable(self) -> bool:
        """Whether no mode is imaginary."""
        return not self.imaginary

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "phonopy"}
        return plain({**own, "stable": self.stable})


def phonons(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: PhononOptions | None = None,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> PhononResult:
    """Phonons by finite displacements in a supercell.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator; in float64, or round-off of forces shows.
        options: see `PhononOptions`.
        store: keeps forces, so that a stopped calculation goes on.
        progress: called as supercells are done.

    Raises:
        InputError: not a crystal, or options out of range.
        SimulationError: a crystal that does not relax.
    """
    options = PhononOptions() if options is None else options
    options.check()
    checked_start(atoms, calculator, "a calculation of phonons")
    store = Store() if store is None else store
    crystal = relaxed_crystal(atoms, calculator, relax_first=options.relax, store=store, progress=progress)
    unit, supercell = unit_and_supercell(crystal, options.supercell, options.length)
    phonon, by_half = harmonic(
        unit,
        calculator,
        supercell,
        options.displacement,
        check_displacement=True,
        store=store,
        progress=progress,
    )
    if options.born is not None:
        add_born_charges(phonon, options.born)
    checks = [] if by_half is None else [by_half]
    smaller = tuple(max(1, n - 1) for n in supercell)
    notes = []
    if options.check_supercell and smaller != supercell:
        name = "smaller supercells"
        other, _ = harmonic(
            unit, calculator, smaller, options.displacement, name=name, store=store, progress=progress
        )
        if options.born is not None:
            add_born_charges(other, options.born)
        checks.append(_supercell_check(phonon, other, supercell, smaller, options.limit))
    else:
        notes.append("whether the supercell is large enough was not looked at")
    return analyzed(phonon, options, len(unit), tuple(checks), tuple(notes), supercell)


def phonons_from_forces(
    unit: ase.Atoms,
    displaced: Sequence[ase.Atoms],
    supercell: tuple[int, int, int],
    options: PhononOptions | None = None,
) -> PhononResult:
    """The same from supercells whose forces are known, such as those of DFT, with one atom displaced in each.

    See `harmonic_from_forces` for the arguments and for what is raised. Supercell and displacement are as given.
    """
    options = PhononOptions() if options is None else options
    options.check()
    phonon = harmonic_from_forces(unit, displaced, checked_supercell(supercell))
    if options.born is not None:
        add_born_charges(phonon, options.born)
    notes = ("whether supercell and displacement are converged was not looked at: the forces were given",)
    return analyzed(phonon, options, len(unit), (), notes, supercell)


def analyzed(
    phonon: Any,
    options: PhononOptions,
    unit_atoms: int,
    checks: tuple[Check, ...],
    notes: tuple[str, ...],
    supercell: tuple[int, int, int],
) -> PhononResult:
    """Everything that follows from force constants."""
    pieces = bands(phonon, options.points)
    corners: dict[str, np.ndarray] = {}
    for band in pieces:
        for label, end in zip(band.labels, (0, -1), strict=True):
            corners.setdefault(label, band.frequencies_thz[end])
    phonon.run_mesh(options.mesh)
    phonon.run_total_dos()
    highest, step = options.temperatures
    phonon.run_thermal_properties(t_min=0, t_max=highest, t_step=step, cutoff_frequency=1e-3)
    found = phonon.thermal_properties
    imaginary, lowest = _imaginary(phonon, pieces, options.imaginary)
    warnings = list(notes)
    if imaginary:
        q, frequency = imaginary[0]
        warnings.append(
            f"imaginary modes: {len(imaginary)} frequencies below {-options.imaginary:g} THz, the lowest"
            f" {frequency:.2f} THz at q = ({q[0]:.3f} {q[1]:.3f} {q[2]:.3f}); the crystal is not stable in this model,"
            " and the thermal properties leave these modes out"
        )
    if options.born is None and len(set(phonon.primitive.numbers)) > 1:
        warnings.append(
            "without Born charges the splitting of longitudinal and transverse optical modes near Γ is missing, as it"
            " must be in a polar insulator; give them with --born"
        )
    return PhononResult(
        atoms=ase_atoms(phonon.primitive),
        supercell=supercell,
        unit_atoms=unit_atoms,
        displaced_supercells=len(phonon.displacements),
        bands=pieces,
        points_thz=corners,
        dos_thz=np.array(phonon.total_dos.frequency_points),
        dos=np.array(phonon.total_dos.dos),
        thermal=Thermal(
            temperatures_k=np.array(found.temperatures),
            free_energy_kj_per_mol=np.array(found.free_energy),
            entropy_j_per_k_per_mol=np.array(found.entropy),
            heat_capacity_j_per_k_per_mol=np.array(found.heat_capacity),
            zero_point_energy_kj_per_mol=float(found.zero_point_energy),
        ),
        lowest_thz=lowest,
        imaginary=imaginary,
        provenance=Provenance(
            _method(phonon, options, unit_atoms, supercell), _CITATIONS, checks, tuple(warnings)
        ),
        phonopy=phonon,
    )


def relaxed_crystal(
    atoms: ase.Atoms, calculator: BaseCalculator, *, relax_first: bool, store: Store, progress: Progress
) -> ase.Atoms:
    """The crystal made exactly symmetric, and relaxed if asked: what small displacements start from."""
    if not relax_first:
        return symmetrized(atoms)
    known = store.get("relaxed")
    if known is None:
        progress("relaxing", 0, 1)
        bare = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        result = relax(bare, calculator, fmax=FORCE_LIMIT, smax=0.01, symmetry=True)
        if not result.converged:
            raise SimulationError(
                f"the crystal did not relax (largest force {result.max_force_ev_per_ang:.2g} eV/Å, stress"
                f" {result.max_stress_deviation_gpa:.2g} GPa off); relax it first, or take --dtype float64"
            )
        known = {"positions": result.atoms.positions, "cell": result.atoms.cell.array}
        store.put("relaxed", **known)
    relaxed = atoms.copy()
    relaxed.set_cell(known["cell"])
    relaxed.set_positions(known["positions"], apply_constraint=False)
    return symmetrized(relaxed)


def unit_and_supercell(
    crystal: ase.Atoms, supercell: tuple[int, int, int] | None, length: float
) -> tuple[ase.Atoms, tuple[int, int, int]]:
    """The cell that is repeated, and how often."""
    if supercell is not None:
        return crystal, checked_supercell(supercell)
    unit = conventional_cell(crystal)
    return unit, supercell_for(unit, length)


def _supercell_check(
    phonon: Any, other: Any, supercell: Sequence[int], smaller: Sequence[int], limit: float
) -> Check:
    qpoints = np.concatenate([band.qpoints for band in bands(phonon, 60)])
    here, there = frequencies_at(phonon, qpoints), frequencies_at(other, qpoints)
    what = (
        f"supercell {' '.join(map(str, smaller))} instead of {' '.join(map(str, supercell))}: the frequency that"
        " differs most, of the highest,"
    )
    return Check(what, float(np.abs(here - there).max() / here.max()), limit)


def _imaginary(
    phonon: Any, pieces: Sequence[Band], limit: float
) -> tuple[list[tuple[np.ndarray, float]], float]:
    qpoints = np.concatenate([*(band.qpoints for band in pieces), phonon.mesh.qpoints])
    frequencies = np.concatenate([*(band.frequencies_thz for band in pieces), phonon.mesh.frequencies])
    lowest = frequencies.min(axis=1)
    order = [int(i) for i in np.argsort(lowest) if lowest[i] < -limit]
    return [(qpoints[i], float(lowest[i])) for i in order], float(lowest.min())


def _method(phonon: Any, options: PhononOptions, unit_atoms: int, supercell: Sequence[int]) -> str:
    size = "×".join(map(str, supercell))
    mesh = "×".join(map(str, phonon.mesh.mesh_numbers))
    return (
        f"Finite displacements ({len(phonon.displacements)} supercells, {size} of {unit_atoms} atoms, that is"
        f" {len(phonon.supercell)} atoms; {np.linalg.norm(phonon.displacements[0][1:]):.3g} Å); density of states and"
        f" thermal properties on {mesh} q-points"
        + (", with Born charges" if options.born is not None else "")
    )
