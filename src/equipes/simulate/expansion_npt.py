"""Thermal expansion and bulk modulus from molecular dynamics at constant pressure and several temperatures.

With volume V and enthalpy H = U + P V of a run at temperature T,

    B(T) = k T <V> / var(V)          α(T) = d ln <V> / dT   and, within one run,   α = cov(V, H) / (k T² <V>)

(M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids, 2nd ed., 2017, ch. 2.5). The slope of the volumes is the
answer, because it converges sooner; the fluctuations check it. Anharmonicity is there in full; quanta are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.files import new_directory
from equipes.simulate import records
from equipes.simulate.crystals import checked_supercell, conventional_cell, supercell_for, symmetry_of
from equipes.simulate.evaluations import checked_start
from equipes.simulate.expansion import ExpansionResult
from equipes.simulate.phonons import relaxed_crystal
from equipes.simulate.records import Row
from equipes.simulate.results import Check, Provenance, silent
from equipes.simulate.runs import run_all
from equipes.simulate.settings import MDSettings
from equipes.simulate.statistics import blocking_error, mean_with_error
from equipes.simulate.store import Store

_CITATIONS = (
    "D. Quigley, M. I. J. Probert, J. Chem. Phys. 120, 11432 (2004)",
    "B. Leimkuhler, C. Matthews, J. Chem. Phys. 138, 174102 (2013)",
    "H. Flyvbjerg, H. G. Petersen, J. Chem. Phys. 91, 461 (1989)",
    "M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids, 2nd ed. (2017)",
)
CellShape = Literal["isotropic", "lengths", "all"]
_BLOCKS = 10
_FEWEST_ROWS = 160  # that ten blocks of them mean something
_FARTHEST_EXPANSION = 1.15  # solids melt before they have grown so much
_J_PER_MOL = units.mol / units.J


@dataclass(frozen=True)
class NPTExpansionOptions:
    """What `expansion_npt` does.

    Attributes:
        temperatures: K, ascending, at least three.
        steps: of each run, equilibration included.
        equilibration: fraction of them at the start that is left out.
        timestep: fs.
        interval: steps between two rows.
        supercell: how often the cell given is repeated; None takes the conventional cell, repeated to `length`.
        length: Å between opposite faces of the supercell, at least.
        pressure: GPa.
        shape: of the cell only the volume changes, or its three lengths (of an orthorhombic one), or all of it.
        thermostat_time, barostat_time: fs.
        seed: of velocities and random forces.
        relax: relax atoms and cell first, keeping the symmetry.
    """

    temperatures: tuple[float, ...] = (200.0, 300.0, 400.0, 500.0)
    steps: int = 20_000
    equilibration: float = 0.2
    timestep: float = 2.0
    interval: int = 10
    supercell: tuple[int, int, int] | None = None
    length: float = 10.0
    pressure: float = 0.0
    shape: CellShape = "isotropic"
    thermostat_time: float = 100.0
    barostat_time: float = 500.0
    seed: int = 0
    relax: bool = True

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        if self.supercell is not None:
            checked_supercell(self.supercell)
        ascending = sorted(set(self.temperatures)) == list(self.temperatures)
        if len(self.temperatures) < 3 or not ascending or self.temperatures[0] <= 0:
            raise InputError(
                f"a slope over the temperature needs at least three of them, above 0 K and ascending, not"
                f" {self.temperatures}"
            )
        if not 0 <= self.equilibration < 1 or self.interval < 1:
            raise InputError(
                f"equilibration must be a fraction below 1 and interval at least 1, not {self.equilibration} and"
                f" {self.interval}"
            )
        rows = int((1 - self.equilibration) * (self.steps // self.interval))
        if rows < _FEWEST_ROWS:
            raise InputError(
                f"{self.steps} steps with a row every {self.interval} leave {rows} rows, too few for an error of the"
                f" fluctuations ({_FEWEST_ROWS}); take more steps or a smaller interval"
            )
        if self.shape not in ("isotropic", "lengths", "all"):
            raise InputError(f"unknown shape {self.shape!r} of the cell; choose isotropic, lengths or all")
        if not self.length > 0:
            raise InputError(f"length must be above 0, not {self.length}")

    def settings(self) -> dict[str, MDSettings]:
        """The run at each temperature."""
        return {
            f"{temperature:g}K": MDSettings(
                "npt",
                steps=self.steps,
                timestep=self.timestep,
                temperature=temperature,
                pressure=self.pressure,
                interval=self.interval,
                thermostat_time=self.thermostat_time,
                barostat_time=self.barostat_time,
                flexible_cell=self.shape == "all",
                flexible_lengths=self.shape == "lengths",
                seed=self.seed + number,
                trajectory=False,
            )
            for number, temperature in enumerate(self.temperatures)
        }


def expansion_npt(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: NPTExpansionOptions,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    potential: str = "",
    on_step: Callable[[float, int, Row], None] | None = None,
) -> ExpansionResult | None:
    """Volume, expansion and bulk modulus against temperature, each with an error; runs in directories of `out`.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator with stress.
        options: see `NPTExpansionOptions`.
        out: directory.
        resume: go on where the runs in `out` stopped.
        overwrite: replace what is in `out`.
        potential: says which potential it is; runs continue only with the same.
        on_step: called with the temperature, the step and the last row.

    Returns:
        None if a signal stopped it; it can be continued.

    Raises:
        InputError: not a crystal, options out of range, a directory that cannot be used.
        SimulationError: a crystal that does not relax, or a run that left what is physically possible.
    """
    options.check()
    checked_start(atoms, calculator, "thermal expansion")
    folder = Path(out)
    if not resume:
        new_directory(folder, overwrite=overwrite)
    crystal = relaxed_crystal(atoms, calculator, relax_first=options.relax, store=Store(), progress=silent)
    unit = crystal if options.supercell is not None else conventional_cell(crystal)
    structure = unit.repeat(options.supercell or supercell_for(unit, options.length))
    settings = options.settings()
    _, interrupted = run_all(
        structure,
        calculator,
        settings,
        folder,
        resume=resume,
        overwrite=overwrite,
        potential=potential,
        on_step=None
        if on_step is None
        else lambda name, step, row: on_step(settings[name].temperature or 0.0, step, row),
    )
    if interrupted:
        return None
    tables = [records.read_table(folder / name / records.TABLE) for name in settings]
    return expansion_from_tables(tables, structure, options)


def expansion_from_tables(
    tables: Sequence[Sequence[Row]], structure: ase.Atoms, options: NPTExpansionOptions
) -> ExpansionResult:
    """The same from the rows of a run at each temperature of the options; `structure` is what was run."""
    cells = len(structure) / _primitive_atoms(structure)
    series = []
    for rows in tables:
        kept = rows[int(np.ceil(options.equilibration * len(rows))) :]
        volumes = np.array([row.volume_ang3 for row in kept], dtype=float) / cells
        energies = np.array([row.total_energy_ev for row in kept]) / cells
        series.append((volumes, energies, energies + options.pressure * units.GPa * volumes))
    t = np.array(options.temperatures)
    means = [mean_with_error(list(volumes)) for volumes, _, _ in series]
    volume = np.array([mean for mean, _ in means], dtype=float)
    volume_error = np.array([error for _, error in means], dtype=float)
    enthalpy = np.array([mean_with_error(list(h)) for *_, h in series], dtype=float)
    alpha, alpha_error = slope_at(t, np.log(volume), volume_error / volume)
    capacity, _ = slope_at(t, enthalpy[:, 0], enthalpy[:, 1])
    stiffness = [
        _jackknife(_bulk_modulus, cells, temperature, v, h)
        for temperature, (v, _, h) in zip(t, series, strict=True)
    ]
    modulus, modulus_error = (np.array(column) for column in zip(*stiffness, strict=True))
    inside = [
        _jackknife(_fluctuating_expansion, cells, temperature, v, h)
        for temperature, (v, _, h) in zip(t, series, strict=True)
    ]
    at_constant_volume = capacity - alpha**2 * modulus * units.GPa * volume * t
    return ExpansionResult(
        atoms=structure,
        volumes_ang3=volume,
        energies_ev=np.array([energies.mean() for _, energies, _ in series]),
        temperatures_k=t,
        volume_ang3=volume,
        expansion_per_k=alpha,
        bulk_modulus_gpa=modulus,
        heat_capacity_j_per_k_per_mol=capacity * _J_PER_MOL,
        gruneisen=alpha * modulus * units.GPa * volume / at_constant_volume,
        volume_error_ang3=volume_error,
        expansion_error_per_k=alpha_error,
        bulk_modulus_error_gpa=modulus_error,
        provenance=_provenance(structure, options, series, t, (alpha, alpha_error), np.array(inside)),
    )


def slope_at(x: np.ndarray, y: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivative at each `x` of the parabola through the points (a line through three), and its standard error.

    Weighted with the errors, and widened where the points scatter more than these allow.

    >>> slope, _ = slope_at(np.arange(4.0), np.arange(4.0) ** 2, np.ones(4))
    >>> np.round(slope, 9).tolist()
    [0.0, 2.0, 4.0, 6.0]
    """
    degree = 1 if len(x) < 4 else 2
    middle, width = x.mean(), np.ptp(x)
    powers = np.arange(degree + 1)
    scaled = (x - middle) / width
    design = scaled[:, None] ** powers / errors[:, None]
    covariance = np.linalg.inv(design.T @ design)
    line = covariance @ design.T @ (y / errors)
    if len(x) > degree + 1:
        scatter = float(((y / errors - design @ line) ** 2).sum() / (len(x) - degree - 1))
        covariance = covariance * max(1.0, scatter)
    derivative = powers * scaled[:, None] ** np.maximum(powers - 1, 0) / width
    return derivative @ line, np.sqrt(np.einsum("ti,ij,tj->t", derivative, covariance, derivative))


def _bulk_modulus(cells: float, temperature: float, volumes: np.ndarray, _: np.ndarray) -> float:
    """GPa, from volumes and enthalpies per primitive cell of a run of `cells` of them."""
    return float(units.kB * temperature * volumes.mean() / (cells * volumes.var()) / units.GPa)


def _fluctuating_expansion(
    cells: float, temperature: float, volumes: np.ndarray, enthalpies: np.ndarray
) -> float:
    covariance = cells * np.mean((volumes - volumes.mean()) * (enthalpies - enthalpies.mean()))
    return float(covariance / (units.kB * temperature**2 * volumes.mean()))


def _jackknife(
    estimate: Callable[[float, float, np.ndarray, np.ndarray], float],
    cells: float,
    temperature: float,
    volumes: np.ndarray,
    enthalpies: np.ndarray,
) -> tuple[float, float]:
    """The estimate from the whole series, and its error by leaving out one block after the other."""
    ends = np.linspace(0, len(volumes), _BLOCKS + 1).astype(int)
    without = []
    for begin, end in pairwise(ends):
        rest = np.r_[0:begin, end : len(volumes)]
        without.append(estimate(cells, temperature, volumes[rest], enthalpies[rest]))
    spread = np.sqrt((_BLOCKS - 1) * np.var(without))
    return estimate(cells, temperature, volumes, enthalpies), float(spread)


def _primitive_atoms(structure: ase.Atoms) -> int:
    """Atoms in the primitive cell of what was run; translations are what symmetry has without rotation."""
    found = symmetry_of(structure)
    pure = [np.array_equal(rotation, np.eye(3)) for rotation in found.rotations]
    return len(structure) // sum(pure)


def _provenance(
    structure: ase.Atoms,
    options: NPTExpansionOptions,
    series: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    t: np.ndarray,
    slope: tuple[np.ndarray, np.ndarray],
    inside: np.ndarray,
) -> Provenance:
    at = int(np.abs(t - 300.0).argmin())
    limit = 3e6 * float(np.hypot(slope[1][at], inside[at, 1])) / 3
    checks = [
        Check(
            f"fluctuations in the run instead of the slope over the runs: the linear expansion at {t[at]:g} K",
            1e6 * abs(float(inside[at, 0] - slope[0][at])) / 3,
            limit,
            "10⁻⁶/K",
        )
    ]
    for temperature, (volumes, *_) in zip(t, series, strict=True):
        half = len(volumes) // 2
        one, two = float(volumes[:half].mean()), float(volumes[half:].mean())
        # A drift within the halves shall not pass for their correlation.
        e_one, e_two = blocking_error(volumes[:half]), blocking_error(volumes[half:])
        if e_one is None or e_two is None:
            continue
        about = f"{temperature:g} K, the second half of the run instead of the first: the volume"
        checks.append(Check(about, abs(two / one - 1), 3 * float(np.hypot(e_one, e_two)) / one))
    warnings = [
        "classical dynamics: below about the Debye temperature the expansion and the heat capacity are too large, since"
        " nothing freezes; see the quasi-harmonic method there",
        "cells of other sizes were not tried; give --length or --supercell to see whether the volume depends on it",
    ]
    sizes = np.array([volumes.mean() for volumes, *_ in series])
    if (lost := sizes > _FARTHEST_EXPANSION * sizes[0]).any():
        warnings.insert(
            0,
            f"at {t[int(lost.argmax())]:g} K the volume is {sizes[int(lost.argmax())] / sizes[0]:.2f} times that of the"
            " lowest temperature: the crystal has melted or flown apart, and the slope means nothing; stay below",
        )
    if len(t) < 4:
        warnings.append("three temperatures give one slope for all of them; a fourth lets it change")
    picoseconds = options.steps * options.timestep / 1000
    what = {"isotropic": "volume", "lengths": "three lengths of the cell", "all": "shape of the cell"}
    method = (
        f"Molecular dynamics of {len(structure)} atoms at {options.pressure:g} GPa (Langevin dynamics of atoms and the"
        f" {what[options.shape]}), {picoseconds:g} ps at each of {len(t)} temperatures, the first"
        f" {100 * options.equilibration:g} % left out; expansion: slope of the"
        f" {'line' if len(t) < 4 else 'parabola'} through ln V; bulk modulus: fluctuation of the volume; errors by"
        " blocking and jackknife"
    )
    return Provenance(method, _CITATIONS, tuple(checks), tuple(warnings))
