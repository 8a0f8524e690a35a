"""Thermal conductivity of any solid from the fluctuations of its heat flux at equilibrium (M. S. Green, R. Kubo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator

from equipes.simulate.correlation import Cepstrum, Integral, cepstrum, integrate
from equipes.simulate.evaluations import checked_start
from equipes.simulate.flux_runs import FluxOptions, FluxRun, FluxSettings, flux_run, require_positive
from equipes.simulate.heat_flux import CITATIONS, WATTS, checked_solid, potential_of
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.statistics import drift
from equipes.simulate.store import Store

_CITATIONS = (
    "R. Kubo, M. Yokota, S. Nakajima, J. Phys. Soc. Jpn. 12, 1203 (1957)",
    *CITATIONS,
    "L. Ercole, A. Marcolongo, S. Baroni, Sci. Rep. 7, 15835 (2017)",
)
_SMALL_ERROR = 0.2
_DRIFT = 0.5  # meV/atom/ps
_TEMPERATURE = 0.05
_MOVED = 2.0  # Å; an atom that went so far has left its place
# The spectrum up to this many times the inverse of the cutoff takes part in the cepstral analysis.
_BAND = 3.0


@dataclass(frozen=True)
class GreenKuboOptions(FluxOptions):
    """What `green_kubo` does; steps are recorded at constant energy.

    Attributes:
        correlation: the longest correlation looked at, ps; at most a quarter of a run.
    """

    fewest_fluxes = 200

    runs: int = 4
    correlation: float = 25.0

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        super().check()
        require_positive(self, "correlation")


@dataclass(frozen=True)
class GreenKuboResult:
    """Thermal conductivity from fluctuations, W/(m K), Voigt order xx yy zz yz xz xy.

    Attributes:
        atoms: the structure that was simulated.
        temperature_k: the mean over the runs.
        conductivity: the mean over directions.
        error: its standard error.
        tensor: `[6]`.
        tensor_error: `[6]`.
        cepstral: the mean over directions by cepstral analysis.
        cepstral_error: its standard error.
        cutoff_ps: the time up to which the correlation was integrated.
        times_ps: `[L]`.
        correlation: `[L]`, of the flux, mean over directions, relative to its square.
        running: `[L]`, the conductivity if the integral stopped at each time, mean over directions.
        running_error: `[L]`.
        frequencies_thz: `[K]`.
        spectrum: `[K]`, whose value at frequency 0 is the conductivity.
        smooth_spectrum: `[K]`, what cepstral analysis makes of it.
        picoseconds: length of the record, all runs together.
        drift_mev: change of the total energy, meV/atom/ps, the largest of all runs.
        moved_ang: the farthest that an atom went from its place.
        provenance: method, citations, convergence, warnings.
    """

    atoms: ase.Atoms
    temperature_k: float
    conductivity: float
    error: float
    tensor: np.ndarray
    tensor_error: np.ndarray
    cepstral: float
    cepstral_error: float
    cutoff_ps: float
    times_ps: np.ndarray
    correlation: np.ndarray
    running: np.ndarray
    running_error: np.ndarray
    frequencies_thz: np.ndarray
    spectrum: np.ndarray
    smooth_spectrum: np.ndarray
    picoseconds: float
    drift_mev: float
    moved_ang: float
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def green_kubo(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: GreenKuboOptions,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> GreenKuboResult:
    """Thermal conductivity of a solid, crystalline or not, from molecular dynamics at equilibrium.

    κ = 1/(V k_B T²) ∫ <J(0) J(t)> dt with the flux of `heat_flux`. Vibrations are classical, and phonons longer than
    the cell are missing.

    Args:
        atoms: a solid, periodic in three directions, relaxed to the density that it shall have; not changed.
        calculator: a `Calculator` of this package.
        options: see `GreenKuboOptions`.
        store: keeps what is done, so that a stopped calculation goes on.
        progress: called after every step.

    Raises:
        InputError: not periodic, options out of range, a calculator that has no heat flux.
        SimulationError: a run that left what is physically possible.
    """
    options.check()
    potential_of(calculator)
    checked_start(atoms, calculator, "a thermal conductivity")
    store = Store() if store is None else store
    structure = checked_solid(atoms, options.supercell)
    settings = FluxSettings(
        options.temperature, options.equilibration, options.steps, options.timestep, options.interval
    )
    runs = [
        flux_run(
            structure,
            calculator,
            settings,
            (options.seed, number),
            name=f"run {number + 1} of {options.runs}",
            store=store,
            progress=progress,
        )
        for number in range(options.runs)
    ]
    return analyze_flux(structure, runs, options)


def analyze_flux(atoms: ase.Atoms, runs: Sequence[FluxRun], options: GreenKuboOptions) -> GreenKuboResult:
    """The conductivity that recorded fluxes give."""
    spacing = options.timestep * options.interval  # fs
    temperatures = [float(run.temperature_k.mean()) for run in runs]
    scale = WATTS / (atoms.get_volume() * units.kB)
    # With this the integral of the correlation is the conductivity.
    fluxes = [np.sqrt(scale) * run.flux / t for run, t in zip(runs, temperatures, strict=True)]
    found = integrate(fluxes, spacing, 1000 * options.correlation)
    at = found.cutoff
    half = len(fluxes[0]) // 2
    halves = [
        _at(integrate([flux[part] for flux in fluxes], spacing, found.times[-1]), at)
        for part in (slice(None, half), slice(half, None))
    ]
    smooth = cepstrum(fluxes, spacing, _BAND / found.times[at])
    slopes = [
        drift(list(spacing / 1000 * np.arange(len(run.energy_ev))), list(run.energy_ev)) or 0.0
        for run in runs
    ]
    worst = max(1000 * abs(slope) / len(atoms) for slope in slopes)
    moved = max(run.moved_ang for run in runs)
    provenance = Provenance(
        _method(atoms, options, found),
        _CITATIONS,
        _checks(found, smooth, halves, worst),
        tuple(_warnings(options, found, float(np.mean(temperatures)), moved)),
    )
    square = found.correlation[0, :3].mean()
    return GreenKuboResult(
        atoms=atoms,
        temperature_k=float(np.mean(temperatures)),
        conductivity=float(found.mean[at]),
        error=float(found.mean_error[found.certain]),
        tensor=found.running[at],
        tensor_error=found.running_error[found.certain],
        cepstral=smooth.value,
        cepstral_error=smooth.error,
        cutoff_ps=float(found.times[at] / 1000),
        times_ps=found.times / 1000,
        correlation=found.correlation[:, :3].mean(axis=1) / square,
        running=found.mean,
        running_error=found.mean_error,
        frequencies_thz=1000 * smooth.frequencies,
        spectrum=smooth.spectrum,
        smooth_spectrum=smooth.smooth,
        picoseconds=len(runs) * len(fluxes[0]) * spacing / 1000,
        drift_mev=worst,
        moved_ang=moved,
        provenance=provenance,
    )


def _at(found: Integral, index: int) -> tuple[float, float]:
    index = min(index, len(found.mean) - 1)
    return float(found.mean[index]), float(found.mean_error[index])


def _checks(
    found: Integral, smooth: Cepstrum, halves: list[tuple[float, float]], worst_drift: float
) -> tuple[Check, ...]:
    value, error = float(found.mean[found.cutoff]), float(found.mean_error[found.certain])
    later, later_error = _at(found, 2 * found.cutoff)
    (first, first_error), (second, second_error) = halves
    unit = "W/(m K)"
    return (
        Check("integrating twice as long: the conductivity", abs(later - value), later_error, unit),
        Check(
            "cepstral analysis instead of the integral: the conductivity",
            abs(smooth.value - value),
            2 * float(np.hypot(error, smooth.error)),
            unit,
        ),
        Check(
            "the second half of the runs instead of the first: the conductivity",
            abs(second - first),
            2 * float(np.hypot(first_error, second_error)),
            unit,
        ),
        Check(
            "more data: the conductivity, by its standard error,",
            error / max(abs(value), 1e-12),
            _SMALL_ERROR,
        ),
        Check("a picosecond: the total energy per atom", worst_drift, _DRIFT, "meV"),
    )


def _warnings(options: GreenKuboOptions, found: Integral, temperature: float, moved: float) -> list[str]:
    warned = [
        "cells of other sizes were not tried; give --supercell to see whether the conductivity depends on it",
        "vibrations are classical: modes above"
        f" {options.temperature * units.kB / units._hplanck * units._e * 1e-12:.1f} THz"
        " (k_B T) carry more heat than in nature",
    ]
    if not found.settled:
        warned.append(
            f"the integral still grows at {found.times[found.cutoff] / 1000:.3g} ps: take longer --correlation and"
            " --steps"
        )
    if abs(temperature / options.temperature - 1) > _TEMPERATURE:
        warned.append(
            f"the runs have {temperature:.0f} K, not {options.temperature:g} K: take more --equilibration, or a larger"
            " --supercell or more --runs, whose mean temperature fluctuates less"
        )
    if moved > _MOVED:
        warned.append(
            f"an atom went {moved:.1f} Å: where atoms diffuse, heat and matter flow together and this is not the"
            " conductivity"
        )
    return warned


def _method(atoms: ase.Atoms, options: GreenKuboOptions, found: Integral) -> str:
    return (
        f"Green-Kubo: {options.runs} run{'s' if options.runs > 1 else ''} of"
        f" {options.steps * options.timestep / 1000:g} ps"
        f" at constant energy, {len(atoms)} atoms, time step {options.timestep:g} fs, flux every"
        f" {options.interval * options.timestep:g} fs, each after"
        f" {options.equilibration * options.timestep / 1000:g} ps with"
        f" velocity rescaling at {options.temperature:g} K; correlation integrated to"
        f" {found.times[found.cutoff] / 1000:.3g} ps;"
        " heat flux with the exact virials of atoms under message passing"
    )
