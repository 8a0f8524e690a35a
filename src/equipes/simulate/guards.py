"""Stopping a simulation where the potential no longer knows what it is talking about."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np

from equipes.errors import InputError
from equipes.simulate.settings import MDSettings


class Guard:
    """Compares the uncertainty of every atom with the limits of a run.

    `max_forces_std` looks at every step, since a committee has calculated it anyway; `max_feature_distance` every
    `uncertainty_interval` steps, because it costs a forward pass.

    Args:
        settings: of the run.
        calculator: `equipes.Calculator`, `equipes.Committee`, or another that puts `forces_std` into its results and
            has a method `feature_distances(atoms)`.

    Raises:
        InputError: limits that are not positive, or a calculator that cannot tell.
    """

    def __init__(self, settings: MDSettings, calculator: Any) -> None:
        self.forces_std = _limit("max_forces_std", settings.max_forces_std)
        self.distance = _limit("max_feature_distance", settings.max_feature_distance)
        self.interval = settings.uncertainty_interval
        self.calculator = calculator
        self._looked = False
        if self.interval < 1:
            raise InputError(f"uncertainty_interval must be 1 or more, not {self.interval}")
        if self.distance is not None and not hasattr(calculator, "feature_distances"):
            raise InputError(
                "max_feature_distance needs a calculator that tells feature distances (equipes.Calculator)"
            )

    def check(self, step: int, atoms: ase.Atoms) -> str | None:
        """Look at the structure after a step, whose forces are known.

        Returns:
            None, or a sentence that names step, atom, value and limit: there the run ends, as no failure.

        Raises:
            InputError: no committee, or a potential that does not know what it was trained on.
        """
        found = None
        results = atoms.calc.results
        if self.forces_std is not None:
            if "forces_std" not in results:
                raise InputError(
                    "max_forces_std needs a committee: several models (MODEL,MODEL on the command line, "
                    "equipes.Committee in Python)"
                )
            found = _too_scattered(results["forces_std"], atoms, self.forces_std)
        if self.distance is not None and (step % self.interval == 0 or not self._looked):
            self._looked = True
            results["feature_distance"] = self.calculator.feature_distances(atoms)
            found = found or _too_far(results["feature_distance"], atoms, self.distance)
        return None if found is None else f"step {step}: {found}"


def _too_scattered(values: np.ndarray, atoms: ase.Atoms, limit: float) -> str | None:
    worst = int(np.argmax(values))
    if values[worst] <= limit:
        return None
    return (
        f"the committee's forces on atom {worst} ({atoms.symbols[worst]}) scatter by {values[worst]:.3g} eV/Å, more "
        f"than max_forces_std = {limit:g} eV/Å"
    )


def _too_far(values: np.ndarray, atoms: ase.Atoms, limit: float) -> str | None:
    worst = int(np.argmax(values))
    if values[worst] <= limit:
        return None
    if np.isinf(values[worst]):
        return f"the potential was never shown atoms like {worst} ({atoms.symbols[worst]}), of that element"
    return (
        f"atom {worst} ({atoms.symbols[worst]}) has the feature distance {values[worst]:.3g} from what the potential "
        f"was trained on, more than max_feature_distance = {limit:g}"
    )


def _limit(name: str, value: float | None) -> float | None:
    if value is not None and not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} must be positive, not {value}")
    return value
