"""Relaxation of atoms, and of the cell with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from equipes.errors import InputError
from equipes.simulate.errors import SimulationError
from equipes.simulate.remembering import Remembering
from equipes.simulate.results import Provenance, plain
from equipes.simulate.safety import Distances, check_finite
from equipes.simulate.store import Store

OptimizerName = Literal["lbfgs", "bfgs", "fire"]
CellFreedom = Literal["all", "hydrostatic", "in-plane"]
# Voigt components of the strain that a cell may take: xx yy zz yz xz xy.
_MASKS: dict[str, tuple[int, ...]] = {
    "all": (1, 1, 1, 1, 1, 1),
    "hydrostatic": (1, 1, 1, 1, 1, 1),
    "in-plane": (1, 1, 0, 0, 0, 1),
}
_OPTIMIZERS: dict[str, type[Optimizer]] = {"lbfgs": LBFGS, "bfgs": BFGS, "fire": FIRE}
_CITATIONS = {
    "lbfgs": "D. C. Liu, J. Nocedal, Math. Program. 45, 503 (1989)",
    "bfgs": "J. Nocedal, S. J. Wright, Numerical Optimization, 2nd ed. (2006)",
    "fire": "E. Bitzek, P. Koskinen, F. Gähler, M. Moseler, P. Gumbsch, Phys. Rev. Lett. 97, 170201 (2006)",
    "symmetry": "A. Togo, K. Shinohara, I. Tanaka, Sci. Technol. Adv. Mater. Methods 4, 2384822 (2024)",
}
# A cell that shrinks or grows this much has been lost, not relaxed.
_VOLUME_FACTOR = 3.0
_SYMMETRY_TOLERANCE = 0.01  # Å


@dataclass(frozen=True)
class RelaxResult:
    """A relaxed structure and how it came about.

    Attributes:
        atoms: the structure, carrying its energy, forces and (with a cell of some volume) stress.
        converged: whether forces, and the stress where the cell was relaxed, came under their limits.
        steps: optimiser steps taken.
        cell_relaxed: whether the cell took part.
        pressure_gpa: the pressure that it was relaxed under.
        energy_before_ev, energy_ev: potential energy at the start and at the end.
        max_force_ev_per_ang: the largest force on an atom at the end.
        max_stress_deviation_gpa: the largest component of stress + pressure; None where the cell was not relaxed.
        volume_before_ang3, volume_ang3: None without a cell.
        spacegroup_before, spacegroup: where symmetry was kept, else None.
        provenance: method, citations, warnings.
    """

    atoms: ase.Atoms
    converged: bool
    steps: int
    cell_relaxed: bool
    pressure_gpa: float
    energy_before_ev: float
    energy_ev: float
    max_force_ev_per_ang: float
    max_stress_deviation_gpa: float | None
    volume_before_ang3: float | None
    volume_ang3: float | None
    provenance: Provenance
    spacegroup_before: str | None = None
    spacegroup: str | None = None

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values; the structure as its cell parameters (Å and degrees)."""
        values = {name: value for name, value in vars(self).items() if name not in ("atoms", "provenance")}
        values["provenance"] = plain(self.provenance)
        return {**values, "n_atoms": len(self.atoms), "cell": self.atoms.cell.cellpar().tolist()}


def relaxes_cell(atoms: ase.Atoms) -> bool:
    """Whether `relax` lets the cell of a structure relax when it is not told: if it is periodic in all directions."""
    return bool(atoms.pbc.all() and atoms.cell.rank == 3)


def relax(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    *,
    cell: bool | None = None,
    pressure: float = 0.0,
    fmax: float = 0.01,
    smax: float = 0.05,
    steps: int = 1000,
    symmetry: bool = False,
    constant_volume: bool = False,
    freedom: CellFreedom = "all",
    optimizer: OptimizerName = "lbfgs",
    on_step: Callable[[int, ase.Atoms, float, float | None], None] | None = None,
    store: Store | None = None,
) -> RelaxResult:
    """The nearest minimum of the energy, or of the enthalpy under pressure.

    Args:
        atoms: the structure; not changed. Its constraints hold.
        calculator: any ASE calculator.
        cell: relax the cell too; None means yes for a structure that is periodic in all three directions, else no.
        pressure: GPa, for the cell.
        fmax: the force on every atom shall be smaller, eV/Å.
        smax: every component of stress + pressure shall be smaller, GPa, where the cell relaxes.
        steps: at most so many.
        symmetry: keep the space group (needs spglib); positions and cell are first made exactly symmetric.
        constant_volume: of the cell, relax only the shape; smax then holds for the stress without its trace.
        freedom: "all" of the cell relaxes; or its volume alone ("hydrostatic"); or ("in-plane") xx, yy and xy, as of a
            film or a sheet, whose third vector must stand on the xy plane.
        optimizer: "lbfgs", which takes the fewest steps, "bfgs", or "fire" (Bitzek et al., Phys. Rev. Lett. 97, 170201,
            2006), for a start so far from a minimum that the others lose their way.
        on_step: called with step, structure, largest force and largest stress deviation, also before the first step.
        store: where energies, forces and stresses of every step are kept and looked for first, so that a relaxation
            that was stopped, or given too few steps, goes the same way again at once.

    Raises:
        InputError: options that do not fit the structure.
        SimulationError: an energy or force that is no number, a cell that collapses or expands threefold, or atoms that
            end inside each other.
    """
    relaxed = atoms.copy()
    relaxed.calc = calculator if store is None else Remembering(calculator, store)
    with_cell = relaxes_cell(atoms) if cell is None else cell
    _check_options(
        atoms, with_cell, pressure, fmax, smax, steps, symmetry, constant_volume, freedom, optimizer
    )
    before = _spacegroup(relaxed) if symmetry else None
    if symmetry:
        relaxed.set_constraint([*relaxed.constraints, FixSymmetry(relaxed, symprec=_SYMMETRY_TOLERANCE)])
    check_finite(relaxed, "step 0")
    energy_before, volume_before = float(relaxed.get_potential_energy()), _volume(relaxed)
    target: Any = relaxed
    if with_cell:
        target = FrechetCellFilter(
            relaxed,
            mask=_MASKS[freedom],
            hydrostatic_strain=freedom == "hydrostatic",
            scalar_pressure=pressure * units.GPa,
            constant_volume=constant_volume,
        )
    # The optimiser's own criterion mixes forces with scaled stresses; ours names both, so it is asked never to stop.
    dynamics = _OPTIMIZERS[optimizer](target, logfile=None)
    step, converged, force, stress = 0, False, 0.0, None
    for step in _steps_of(dynamics, steps):
        check_finite(relaxed, f"step {step}")
        _check_volume(relaxed, volume_before, step)
        force = float(np.linalg.norm(relaxed.get_forces(), axis=1).max())
        stress = _stress_deviation(relaxed, pressure, constant_volume, freedom) if with_cell else None
        if on_step is not None:
            on_step(step, relaxed, force, stress)
        converged = force < fmax and (stress is None or stress < smax)
        if converged:
            break
    Distances(relaxed).check(relaxed, f"step {step}")
    return RelaxResult(
        atoms=_with_results(relaxed, atoms),
        converged=converged,
        steps=step,
        cell_relaxed=with_cell,
        pressure_gpa=pressure,
        energy_before_ev=energy_before,
        energy_ev=float(relaxed.get_potential_energy()),
        max_force_ev_per_ang=force,
        max_stress_deviation_gpa=stress,
        volume_before_ang3=volume_before,
        volume_ang3=_volume(relaxed),
        spacegroup_before=before,
        spacegroup=_spacegroup(relaxed) if symmetry else None,
        provenance=_provenance(with_cell, pressure, fmax, smax, symmetry, freedom, optimizer, converged),
    )


def _provenance(
    with_cell: bool,
    pressure: float,
    fmax: float,
    smax: float,
    symmetry: bool,
    freedom: CellFreedom,
    optimizer: OptimizerName,
    converged: bool,
) -> Provenance:
    what = {"all": "cell", "hydrostatic": "volume", "in-plane": "cell in its plane"}[freedom]
    method = (
        f"Relaxation of the atoms{f' and the {what} at {pressure:g} GPa' if with_cell else ''} by"
        f" {optimizer.upper()} until every force is below {fmax:g} eV/Å"
        f"{f' and every component of stress + pressure below {smax:g} GPa' if with_cell else ''}"
        f"{', keeping the space group' if symmetry else ''}"
    )
    citations = (_CITATIONS[optimizer], *([_CITATIONS["symmetry"]] if symmetry else []))
    return Provenance(method, citations, (), () if converged else ("not converged",))


def _steps_of(dynamics: Optimizer, steps: int) -> Iterator[int]:
    """Run an optimiser; what goes wrong inside it is told with the step."""
    step = 0
    try:
        for step, _ in enumerate(dynamics.irun(fmax=0.0, steps=steps)):
            yield step
    except (InputError, RuntimeError) as error:
        # Of the potential, of atoms that came to the same place, or of a step too large for the symmetry.
        raise SimulationError(f"step {step + 1}: {error}") from error


def _check_options(
    atoms: ase.Atoms,
    with_cell: bool,
    pressure: float,
    fmax: float,
    smax: float,
    steps: int,
    symmetry: bool,
    constant_volume: bool,
    freedom: str,
    optimizer: str,
) -> None:
    if freedom not in _MASKS:
        raise InputError(f"unknown freedom {freedom!r} of the cell; choose one of {', '.join(_MASKS)}")
    if freedom != "all" and (not with_cell or constant_volume):
        raise InputError(f"the freedom {freedom} belongs to a cell that relaxes, volume included (--cell)")
    if with_cell and freedom == "in-plane":
        if not (atoms.pbc[:2].all() and atoms.cell.rank == 3):
            raise InputError(
                "an in-plane relaxation needs a cell that is periodic along its first two vectors; set cell and pbc"
            )
        lengths = np.abs(atoms.cell.array)
        if max(lengths[0, 2], lengths[1, 2], *lengths[2, :2]) > 1e-6 * lengths.max():
            raise InputError(
                "an in-plane relaxation needs the first two cell vectors in the xy plane and the third along z; turn it"
            )
    elif with_cell and not relaxes_cell(atoms):
        raise InputError(
            "the cell can only relax where the structure is periodic in all three directions; hold it (--no-cell)"
        )
    if not with_cell and (pressure != 0.0 or constant_volume):
        raise InputError(
            "a pressure acts through the cell, which is not being relaxed; relax it too (--cell)"
        )
    if not np.isfinite(pressure):
        raise InputError(f"the pressure must be a number in GPa, not {pressure}")
    if not (fmax > 0 and smax > 0):
        raise InputError(f"the limits of force and stress must be above 0, not {fmax} eV/Å and {smax} GPa")
    if steps < 0:
        raise InputError(f"the number of steps must be 0 or more, not {steps}")
    if optimizer not in _OPTIMIZERS:
        raise InputError(f"unknown optimizer {optimizer!r}; choose one of {', '.join(_OPTIMIZERS)}")
    if symmetry and find_spec("spglib") is None:
        raise InputError("keeping the symmetry needs the package spglib; pip install spglib")
    if symmetry and not relaxes_cell(atoms):
        raise InputError(
            "only a structure that is periodic in all three directions has a space group to keep"
        )


def _stress_deviation(
    atoms: ase.Atoms, pressure: float, constant_volume: bool, freedom: CellFreedom = "all"
) -> float:
    """The largest component of stress + pressure, of those that the cell can follow, in GPa."""
    deviation = atoms.get_stress(voigt=False) / units.GPa
    if freedom == "hydrostatic":
        return float(abs(np.trace(deviation) / 3 + pressure))
    if freedom == "in-plane":
        return float(np.abs(deviation[:2, :2] + pressure * np.eye(2)).max())
    if constant_volume:
        return float(np.abs(deviation - np.trace(deviation) / 3 * np.eye(3)).max())
    return float(np.abs(deviation + pressure * np.eye(3)).max())


def _volume(atoms: ase.Atoms) -> float | None:
    return float(atoms.get_volume()) if atoms.cell.rank == 3 else None


def _check_volume(atoms: ase.Atoms, before: float | None, step: int) -> None:
    if before is None:
        return
    ratio = atoms.get_volume() / before
    if not 1 / _VOLUME_FACTOR < ratio < _VOLUME_FACTOR:
        raise SimulationError(
            f"step {step}: the volume of the cell is {ratio:.2f} times what it was, so there is no minimum near the"
            " structure; start from a better one, relax without the cell, or train on structures like this one"
        )


def _spacegroup(atoms: ase.Atoms) -> str:
    import spglib

    crystal = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    name = spglib.get_spacegroup(crystal, symprec=_SYMMETRY_TOLERANCE)
    return name if name is not None else "unknown"


def _with_results(relaxed: ase.Atoms, original: ase.Atoms) -> ase.Atoms:
    """The relaxed structure with numbers instead of a calculator, and the constraints it came with."""
    results = {
        "energy": relaxed.get_potential_energy(),
        "forces": relaxed.get_forces(apply_constraint=False),
    }
    if relaxed.cell.rank == 3 and relaxed.pbc.any() and "stress" in relaxed.calc.implemented_properties:
        results["stress"] = relaxed.get_stress(apply_constraint=False)
    structure = relaxed.copy()
    structure.set_constraint([constraint.copy() for constraint in original.constraints])
    structure.info = {}
    structure.calc = SinglePointCalculator(structure, **results)
    return structure
