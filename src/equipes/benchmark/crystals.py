"""Lattice constants and bulk moduli of simple crystals against PBE and experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ase.calculators.calculator import BaseCalculator

from equipes.data.crystals import CRYSTALS, Crystal
from equipes.errors import InputError
from equipes.simulate import equation_of_state, relax


@dataclass(frozen=True)
class CrystalResult:
    """What a potential says of one crystal, beside the reference.

    Attributes:
        lattice: conventional lattice constants, Å and degrees.
        error_a_percent, error_volume_percent, error_bulk_modulus_percent: against the PBE reference.
    """

    name: str
    structure: str
    lattice: dict[str, float]
    a_ang: float | None
    reference_a_ang: float | None
    volume_ang3_per_atom: float
    reference_volume_ang3_per_atom: float
    bulk_modulus_gpa: float
    reference_bulk_modulus_gpa: float
    experiment_volume_ang3_per_atom: float | None
    experiment_bulk_modulus_gpa: float | None
    error_a_percent: float | None
    error_volume_percent: float
    error_bulk_modulus_percent: float
    source: str

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)


def crystal_benchmark(
    calculator: BaseCalculator,
    crystals: Sequence[Crystal] = CRYSTALS,
    *,
    on_crystal: Callable[[Crystal], None] | None = None,
) -> list[CrystalResult]:
    """Relax each crystal with its cell, and fit a Birch-Murnaghan curve to energies around its volume.

    The bulk modulus is that of a cell that keeps its shape while the atoms in it relax (Voigt's, where the crystal is
    not cubic).

    Args:
        calculator: any ASE calculator.
        crystals: which.
        on_crystal: called before each.

    Raises:
        SimulationError: a crystal that does not hold together.
    """
    results = []
    for item in crystals:
        if on_crystal is not None:
            on_crystal(item)
        relaxed = relax(item.make(), calculator, fmax=0.005, smax=0.02).atoms
        fit = equation_of_state(relaxed, calculator, volume_range=0.06, points=7)
        volume = fit.volume_ang3 / len(fit.atoms)
        a, reference = item.lattice_constant(volume), item.lattice_constant(item.volume_ang3)
        results.append(
            CrystalResult(
                name=item.name,
                structure=item.structure,
                lattice=fit.lattice_constants,
                a_ang=a,
                reference_a_ang=reference,
                volume_ang3_per_atom=volume,
                reference_volume_ang3_per_atom=item.volume_ang3,
                bulk_modulus_gpa=fit.bulk_modulus_gpa,
                reference_bulk_modulus_gpa=item.bulk_modulus_gpa,
                experiment_volume_ang3_per_atom=item.experiment[0] if item.experiment else None,
                experiment_bulk_modulus_gpa=item.experiment[1] if item.experiment else None,
                error_a_percent=None if a is None or reference is None else 100 * (a / reference - 1),
                error_volume_percent=100 * (volume / item.volume_ang3 - 1),
                error_bulk_modulus_percent=100 * (fit.bulk_modulus_gpa / item.bulk_modulus_gpa - 1),
                source=item.source,
            )
        )
    return results


def chosen(names: Sequence[str], species: Sequence[str]) -> list[Crystal]:
    """The crystals of these names (all without any) whose elements a potential knows.

    Raises:
        InputError: a name that there is not, or none is left.
    """
    known = [item.name for item in CRYSTALS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"no crystal is called {unknown[0]}; there are {', '.join(known)}")
    left = [
        item
        for item in CRYSTALS
        if (not names or item.name in names) and set(item.make().symbols) <= set(species)
    ]
    if not left:
        raise InputError(f"the potential knows none of these crystals; it knows {', '.join(species)}")
    return left
