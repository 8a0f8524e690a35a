"""Geometries from molecular dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.sampling.sample import FAILURES, NOT_CONVERGED, Labeller, Sample, bare
from equipes.simulate.ensembles import integrator, thermal_momenta


@dataclass(frozen=True)
class DynamicsOptions:
    """Langevin dynamics in the cell that is given.

    Attributes:
        count: frames wanted.
        temperature: K.
        timestep: fs; 1 suits structures with hydrogen, which need not be sampled to the last per cent.
        interval: steps from one frame to the next.
        settle: steps before the first.
        thermostat_time: fs; short, as only the distribution counts.
        largest_force: eV/Å; geometries with a larger one are left out, and the walk begins anew.
    """

    count: int = 100
    temperature: float = 600.0
    timestep: float = 1.0
    interval: int = 20
    settle: int = 100
    thermostat_time: float = 100.0
    largest_force: float = 30.0

    def check(self) -> None:
        """Raises `InputError` for numbers without sense."""
        if self.count < 1 or self.interval < 1 or self.settle < 0:
            raise InputError(
                f"count and interval must be 1 or more and settle 0 or more, not {self.count}, {self.interval} and "
                f"{self.settle}"
            )
        for name in ("temperature", "timestep", "thermostat_time", "largest_force"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")


def dynamics(
    structure: ase.Atoms,
    calculator: BaseCalculator,
    options: DynamicsOptions,
    rng: np.random.Generator,
) -> Sample:
    """Frames of Langevin dynamics (BAOAB) that starts at `structure` with random velocities.

    Where the calculator fails, or the walk comes to where nothing can be learnt, it begins anew with other velocities;
    the sample counts how often.

    Args:
        structure: not changed; constraints do not hold.
        calculator: any ASE calculator.
        options: length and temperature.
        rng: of velocities and thermostat.

    Raises:
        InputError: options without sense.
        SimulationError: more failures than frames.
    """
    options.check()
    sample = Sample()
    labeller = Labeller(structure, calculator, f"dynamics {options.temperature:g} K", options.largest_force)
    while len(sample) < options.count:
        atoms = bare(structure)
        atoms.calc = calculator
        thermal_momenta(atoms, options.temperature, "nvt-langevin", rng)
        steps = options.settle + options.interval
        try:
            walk: Any = integrator(
                atoms,
                "nvt-langevin",
                timestep=options.timestep,
                temperature=options.temperature,
                pressure=0.0,
                thermostat_time=options.thermostat_time,
                barostat_time=1000.0,
                flexible_cell=False,
                rng=rng,
            )
            while len(sample) < options.count:
                for _ in range(steps):
                    walk.step()
                if not labeller.add(atoms, sample, options.count):
                    break
                steps = options.interval
        except FAILURES:
            sample.discard(NOT_CONVERGED, options.count)
    return sample
