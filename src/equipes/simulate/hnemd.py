"""Thermal conductivity of any solid by driving heat through it: homogeneous non-equilibrium molecular dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.simulate.evaluations import checked_start
from equipes.simulate.flux_runs import FluxOptions, FluxRun, FluxSettings, flux_run, require_positive
from equipes.simulate.heat_flux import CITATIONS, WATTS, checked_solid, potential_of
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.statistics import mean_with_error
from equipes.simulate.store import Store

_CITATIONS = (
    "D. J. Evans, Phys. Lett. A 91, 457 (1982)",
    "Z. Fan, H. Dong, A. Harju, T. Ala-Nissila, Phys. Rev. B 99, 064308 (2019)",
    *CITATIONS,
)
_SMALL_ERROR = 0.2
_HEATED = 0.03
_MOVED = 2.0  # Å


@dataclass(frozen=True)
class HNEMDOptions(FluxOptions):
    """What `hnemd` does; steps are driven, runs are those with each field.

    Attributes:
        field: 1/Å, the driving force; half of it is applied too, to see whether the response is linear. Too small and
            noise buries the flux, too large and phonons that fly farther than about 1 / field do not respond in
            proportion.
        direction: of the field and the flux.
        settling: fraction of the steps at the start that is left out, while the flux sets in.
    """

    fewest_fluxes = 100

    field: float = 1e-4
    direction: tuple[float, float, float] = (1.0, 0.0, 0.0)
    settling: float = 0.1

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        super().check()
        require_positive(self, "field")
        if not np.isfinite(self.direction).all() or not np.linalg.norm(self.direction) > 0:
            raise InputError(f"the direction must be a vector that is not zero, not {self.direction}")
        if not 0 <= self.settling <= 0.5:
            raise InputError(f"settling must be a fraction from 0 to 0.5, not {self.settling}")


@dataclass(frozen=True)
class HNEMDResult:
    """Thermal conductivity along a direction from a driven flux, W/(m K).

    Attributes:
        atoms: the structure that was simulated.
        temperature_k: the mean while driven.
        direction: `[3]`, of length one.
        conductivity: from both fields, by their errors.
        error: its standard error.
        fields: `[2]` 1/Å, the whole one and its half.
        at_field: `[2]`, the conductivity from each.
        at_field_error: `[2]`.
        times_ps: `[L]`.
        running: `[2, L]`, the mean up to each time, of all runs, from each field.
        picoseconds: length of the record, all runs together.
        moved_ang: the farthest that an atom went from its place.
        provenance: method, citations, convergence, warnings.
    """

    atoms: ase.Atoms
    temperature_k: float
    direction: np.ndarray
    conductivity: float
    error: float
    fields: np.ndarray
    at_field: np.ndarray
    at_field_error: np.ndarray
    times_ps: np.ndarray
    running: np.ndarray
    picoseconds: float
    moved_ang: float
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def hnemd(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: HNEMDOptions,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> HNEMDResult:
    """Thermal conductivity of a solid, crystalline or not, from the flux that a small field drives through it.

    Each atom is pulled by F_i = (U_i + W_i) F_e, with the same virials W_i that make up the heat flux: then the
    field's power is J · F_e, and linear response gives κ = <J · F_e> / (T V F_e²). The heat that the field makes goes
    into a thermostat. Every step costs a calculation of forces and about another for the field, none of them frozen.

    Args:
        atoms: a solid, periodic in three directions, relaxed to the density that it shall have; not changed.
        calculator: a `Calculator` of this package.
        options: see `HNEMDOptions`.
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
    direction = np.array(options.direction) / np.linalg.norm(options.direction)
    runs: list[list[FluxRun]] = []
    for number, strength in enumerate((options.field, options.field / 2)):
        x, y, z = (strength * direction).tolist()
        settings = FluxSettings(
            options.temperature,
            options.equilibration,
            options.steps,
            options.timestep,
            options.interval,
            field=(x, y, z),
        )
        runs.append(
            [
                flux_run(
                    structure,
                    calculator,
                    settings,
                    (options.seed, 2 * k + number),
                    name=f"field {strength:.3g}/Å, run {k + 1} of {options.runs}",
                    store=store,
                    progress=progress,
                )
                for k in range(options.runs)
            ]
        )
    return _analyzed(structure, runs, direction, options)


def _analyzed(
    atoms: ase.Atoms, runs: Sequence[Sequence[FluxRun]], direction: np.ndarray, options: HNEMDOptions
) -> HNEMDResult:
    fields = np.array([options.field, options.field / 2])
    skipped = int(options.settling * len(runs[0][0].flux))
    temperature = float(np.mean([run.temperature_k[skipped:].mean() for both in runs for run in both]))
    series = [
        [WATTS * (run.flux @ direction) / (temperature * atoms.get_volume() * field) for run in both]
        for field, both in zip(fields, runs, strict=True)
    ]
    values, errors = np.zeros(2), np.zeros(2)
    for k, both in enumerate(series):
        found = [mean_with_error(list(one[skipped:])) for one in both]
        values[k] = np.mean([mean for mean, _ in found])
        errors[k] = np.sqrt(sum((error or np.inf) ** 2 for _, error in found)) / len(both)
    weights = 1 / errors**2
    value, error = float(weights @ values / weights.sum()), float(weights.sum() ** -0.5)
    mean_series = np.array([np.mean(both, axis=0) for both in series])
    spacing = options.timestep * options.interval / 1000
    counts = np.arange(1, mean_series.shape[1] + 1)
    moved = max(run.moved_ang for both in runs for run in both)
    heated = abs(temperature / options.temperature - 1)
    checks = (
        Check(
            "half the field: the conductivity",
            float(abs(values[1] - values[0])),
            2 * float(np.hypot(*errors)),
            "W/(m K)",
        ),
        Check(
            "more data: the conductivity, by its standard error,",
            error / max(abs(value), 1e-12),
            _SMALL_ERROR,
        ),
        Check("the field: the temperature", heated, _HEATED),
    )
    warned = [
        "cells of other sizes were not tried; give --supercell to see whether the conductivity depends on it",
        "vibrations are classical: those that quantum mechanics freezes carry heat here",
    ]
    if moved > _MOVED:
        warned.append(f"an atom went {moved:.1f} Å: where atoms diffuse this is not the conductivity")
    along = " ".join(f"{component:g}" for component in np.round(direction, 4))
    method = (
        f"Homogeneous non-equilibrium dynamics: {options.runs} run{'s' if options.runs > 1 else ''} of"
        f" {options.steps * options.timestep / 1000:g} ps with each of the fields {fields[0]:g} and {fields[1]:g}/Å"
        " along"
        f" {along}, {len(atoms)} atoms, time step {options.timestep:g} fs, velocity rescaling at"
        f" {options.temperature:g} K,"
        f" the first {100 * options.settling:g} % left out; heat flux with the exact virials of atoms under message"
        " passing"
    )
    return HNEMDResult(
        atoms=atoms,
        temperature_k=temperature,
        direction=direction,
        conductivity=value,
        error=error,
        fields=fields,
        at_field=values,
        at_field_error=errors,
        times_ps=spacing * counts,
        running=np.cumsum(mean_series, axis=1) / counts,
        picoseconds=spacing * mean_series.shape[1] * sum(len(both) for both in runs),
        moved_ang=moved,
        provenance=Provenance(method, _CITATIONS, checks, tuple(warned)),
    )
