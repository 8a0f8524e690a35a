"""The elastic tensor of a crystal from stresses of strained cells.

Strains E are Lagrangian and stresses S of the second Piola-Kirchhoff kind, so dS/dE is the tensor of second-order
elastic constants also where a little stress is left in the cell (D. C. Wallace, Thermodynamics of Crystals, 1972).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from scipy.linalg import sqrtm

from equipes.errors import InputError
from equipes.simulate.crystals import point_group, symmetry_of, to_standard_axes
from equipes.simulate.errors import SimulationError
from equipes.simulate.evaluations import checked_start
from equipes.simulate.packages import require
from equipes.simulate.processes import processes_for, spread
from equipes.simulate.relax import relax
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.store import Store

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_CITATIONS = (
    "R. Hill, Proc. Phys. Soc. A 65, 349 (1952)",
    "F. Mouhat, F.-X. Coudert, Phys. Rev. B 90, 224104 (2014)",
    "M. de Jong et al., Sci. Data 2, 150009 (2015)",
)


@dataclass(frozen=True)
class ElasticOptions:
    """What `elastic` does.

    Attributes:
        strain: the largest strain, to both sides; half of it is calculated too.
        relax_cell: relax cell and atoms first, keeping the symmetry; constants of a cell under stress are others.
        relax_positions: let the atoms relax in every strained cell, which gives the constants that experiments measure.
        fmax: the limit of their forces, eV/Å.
        limit: the change by halving the strain that counts as converged, as a fraction of the largest constant.
    """

    strain: float = 0.01
    relax_cell: bool = True
    relax_positions: bool = True
    fmax: float = 0.001
    limit: float = 0.02

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        if not 0 < self.strain <= 0.1:
            raise InputError(f"the strain must lie between 0 and 0.1, not {self.strain}; 0.01 is usual")
        if not (self.fmax > 0 and self.limit > 0):
            raise InputError(f"fmax and limit must be above 0, not {self.fmax} and {self.limit}")


@dataclass(frozen=True)
class Moduli:
    """Moduli of a polycrystal, GPa: the averages of Voigt (upper bound), Reuss (lower bound) and Hill (their mean)."""

    bulk_voigt_gpa: float
    bulk_reuss_gpa: float
    bulk_hill_gpa: float
    shear_voigt_gpa: float
    shear_reuss_gpa: float
    shear_hill_gpa: float
    young_gpa: float
    poisson_ratio: float
    universal_anisotropy: float


@dataclass(frozen=True)
class ElasticResult:
    """The elastic tensor and what follows from it.

    Attributes:
        atoms: the unstrained crystal, in the axes of the tensor.
        tensor_gpa: `[6, 6]`, Voigt order xx yy zz yz xz xy, engineering shear strains.
        errors_gpa: `[6, 6]`, its change when the strain is halved: what is not linear, and noise.
        spacegroup: of the crystal.
        independent: how many constants the symmetry leaves independent.
        strained_cells: how many were calculated.
        stable: whether the tensor is positive definite (Born).
        eigenvalues_gpa: `[6]`, of the tensor (in Mandel's normalisation), ascending.
        residual_stress_gpa: the largest component of the stress of the unstrained cell.
        moduli: polycrystalline averages.
        debye_temperature_k: from the mean velocity of sound (Anderson, J. Phys. Chem. Solids 24, 909, 1963).
        provenance: method, citations, convergence, warnings.
    """

    atoms: ase.Atoms
    tensor_gpa: np.ndarray
    errors_gpa: np.ndarray
    spacegroup: str
    independent: int
    strained_cells: int
    stable: bool
    eigenvalues_gpa: np.ndarray
    residual_stress_gpa: float
    moduli: Moduli | None
    debye_temperature_k: float | None
    provenance: Provenance

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def elastic(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: ElasticOptions | None = None,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> ElasticResult:
    """The elastic tensor of a crystal, by as few strained cells as its symmetry allows.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator with stress.
        options: see `ElasticOptions`.
        store: keeps finished cells, so that a stopped calculation goes on.
        progress: called after every cell.

    Raises:
        InputError: not a crystal, no stress, or options out of range.
        SimulationError: a cell that does not relax.
    """
    options = ElasticOptions() if options is None else options
    options.check()
    require("the elastic tensor", "phonons", "spglib")
    start = checked_start(atoms, calculator, "an elastic tensor")
    try:
        start.get_stress()
    except PropertyNotImplementedError as error:
        raise InputError(
            "an elastic tensor needs a calculator that gives stresses; choose another"
        ) from error
    store = Store() if store is None else store
    crystal = to_standard_axes(_unstrained(atoms, calculator, options, store, progress))
    invariant = invariant_tensors(point_group(crystal))
    modes = strain_modes(invariant)
    amplitudes = options.strain * np.array([-1.0, -0.5, 0.5, 1.0])
    strains = {"unstrained": np.zeros(6)}
    for number, mode in enumerate(modes):
        strains |= {f"strain {number} {amplitude:+.6f}": amplitude * mode for amplitude in amplitudes}
    at_rest, *stresses = _stresses(crystal, calculator, strains, options, store, progress)
    responses = np.zeros((2, len(modes), 6))  # of the whole and of half the strain
    for number in range(len(modes)):
        four = stresses[4 * number : 4 * number + 4]
        whole = (four[3] - four[0]) / (2 * options.strain)
        half = (four[2] - four[1]) / options.strain
        # The error of a central difference is quadratic in the strain, and this combination is without it.
        responses[0, number], responses[1, number] = (4 * half - whole) / 3, half
    tensor, at_half = (fit_tensor(modes, response, invariant) for response in responses)
    return _result(crystal, tensor, np.abs(tensor - at_half), at_rest, modes, invariant, options)


def invariant_tensors(rotations: np.ndarray) -> np.ndarray:
    """A basis `[k, 6, 6]` of the elastic tensors that a point group `[n, 3, 3]` leaves as they are, orthonormal.

    >>> len(invariant_tensors(np.eye(3)[None]))
    21
    """
    basis = []
    for i in range(6):
        for j in range(i, 6):
            unit = np.zeros((6, 6))
            unit[i, j] = unit[j, i] = 1.0
            full = _full(unit)
            turned = sum(
                np.einsum("ia,jb,kc,ld,abcd->ijkl", r, r, r, r, full, optimize=True) for r in rotations
            )
            basis.append(_voigt(turned / len(rotations)).ravel())
    _, values, vectors = np.linalg.svd(np.array(basis))
    return vectors[: int((values > 1e-6).sum())].reshape(-1, 6, 6)


def strain_modes(invariant: np.ndarray) -> np.ndarray:
    """The fewest of the six Voigt strains (`[m, 6]`, engineering shear) whose stresses fix every constant."""
    modes: list[np.ndarray] = []
    rank = 0
    for index in (0, 3, 2, 5, 4, 1):
        trial = [*modes, np.eye(6)[index]]
        reached = np.linalg.matrix_rank(_design(np.array(trial), invariant), tol=1e-6)
        if reached > rank:
            modes, rank = trial, reached
        if rank == len(invariant):
            break
    return np.array(modes)


def fit_tensor(modes: np.ndarray, responses: np.ndarray, invariant: np.ndarray) -> np.ndarray:
    """The tensor of the crystal's symmetry nearest to the `responses` `[m, 6]` of stress to strain `modes`."""
    coefficients = np.linalg.lstsq(_design(modes, invariant), responses.ravel(), rcond=None)[0]
    return np.tensordot(coefficients, invariant, axes=1)


def polycrystal(tensor: np.ndarray) -> Moduli:
    """Averages of a stable tensor `[6, 6]` in GPa."""
    c, s = tensor, np.linalg.inv(tensor)
    diagonal, off = np.trace(c[:3, :3]), c[0, 1] + c[0, 2] + c[1, 2]
    bulk_voigt, shear_voigt = (diagonal + 2 * off) / 9, (diagonal - off + 3 * np.trace(c[3:, 3:])) / 15
    bulk_reuss = 1 / s[:3, :3].sum()
    off_s = s[0, 1] + s[0, 2] + s[1, 2]
    shear_reuss = 15 / (4 * np.trace(s[:3, :3]) - 4 * off_s + 3 * np.trace(s[3:, 3:]))
    bulk, shear = (bulk_voigt + bulk_reuss) / 2, (shear_voigt + shear_reuss) / 2
    values = (bulk_voigt, bulk_reuss, bulk, shear_voigt, shear_reuss, shear)
    young, poisson = 9 * bulk * shear / (3 * bulk + shear), (3 * bulk - 2 * shear) / (6 * bulk + 2 * shear)
    anisotropy = 5 * shear_voigt / shear_reuss + bulk_voigt / bulk_reuss - 6
    return Moduli(*(float(value) for value in (*values, young, poisson, anisotropy)))


def _unstrained(
    atoms: ase.Atoms, calculator: BaseCalculator, options: ElasticOptions, store: Store, progress: Progress
) -> ase.Atoms:
    if not options.relax_cell:
        return atoms
    known = store.get("relaxed")
    if known is None:
        progress("relaxing", 0, 1)
        result = relax(atoms, calculator, fmax=options.fmax, smax=0.01, symmetry=True)
        if not result.converged:
            raise SimulationError(
                f"the crystal did not relax (largest force {result.max_force_ev_per_ang:.2g} eV/Å, stress"
                f" {result.max_stress_deviation_gpa:.2g} GPa); relax it first, or take --dtype float64"
            )
        store.put("relaxed", positions=result.atoms.positions, cell=result.atoms.cell.array)
        return result.atoms
    relaxed = atoms.copy()
    relaxed.set_cell(known["cell"])
    relaxed.set_positions(known["positions"], apply_constraint=False)
    return relaxed


def _stresses(
    crystal: ase.Atoms,
    calculator: BaseCalculator,
    strains: Mapping[str, np.ndarray],
    options: ElasticOptions,
    store: Store,
    progress: Progress,
) -> list[np.ndarray]:
    """Second Piola-Kirchhoff stresses (Voigt, GPa) under Lagrangian strains (Voigt, engineering shear), by name."""
    known = {name: store.get(name) for name in strains}
    missing = [name for name in strains if known[name] is None]
    # A relaxation is some ten evaluations.
    work = len(missing) * len(crystal) * (10 if options.relax_positions else 1)
    processes = processes_for(calculator, work, len(missing))

    def calculated(name: str, _: Callable[[Any], None]) -> np.ndarray:
        return _cauchy_stress(crystal, calculator, _deformation(strains[name]), options, name)

    results = []
    with closing(spread(calculated, missing, processes)) as fresh:
        for number, (name, found) in enumerate(known.items()):
            cauchy = next(fresh) if found is None else found["stress"]
            if found is None:
                store.put(name, stress=cauchy)
            deformation = _deformation(strains[name])
            inverse = np.linalg.inv(deformation)
            piola = np.linalg.det(deformation) * inverse @ cauchy @ inverse.T / units.GPa
            results.append(np.array([piola[i, j] for i, j in _VOIGT]))
            progress("strained cells", number, len(strains) - 1)
    return results


def _deformation(strain: np.ndarray) -> np.ndarray:
    lagrangian = _symmetric(strain / np.array([1, 1, 1, 2, 2, 2]))
    return np.real(sqrtm(np.eye(3) + 2 * lagrangian))


def _cauchy_stress(
    crystal: ase.Atoms,
    calculator: BaseCalculator,
    deformation: np.ndarray,
    options: ElasticOptions,
    name: str,
) -> np.ndarray:
    strained = crystal.copy()
    strained.set_cell(crystal.cell.array @ deformation, scale_atoms=True)
    steps = 500 if options.relax_positions else 0
    result = relax(strained, calculator, cell=False, fmax=options.fmax, steps=steps)
    if options.relax_positions and not result.converged:
        raise SimulationError(
            f"{name}: the atoms did not relax to {options.fmax:g} eV/Å (reached"
            f" {result.max_force_ev_per_ang:.3g}); raise --fmax, or take --dtype float64"
        )
    cauchy = result.atoms.get_stress(voigt=False)
    if not np.isfinite(cauchy).all():
        raise SimulationError(f"{name}: the stress is not a finite number; train on structures like this one")
    return np.asarray(cauchy)


def _result(
    crystal: ase.Atoms,
    tensor: np.ndarray,
    errors: np.ndarray,
    at_rest: np.ndarray,
    modes: np.ndarray,
    invariant: np.ndarray,
    options: ElasticOptions,
) -> ElasticResult:
    mandel = np.diag([1.0, 1.0, 1.0, *[np.sqrt(2.0)] * 3])
    eigenvalues = np.linalg.eigvalsh(mandel @ tensor @ mandel)
    stable = bool(eigenvalues[0] > 0)
    residual = float(np.abs(at_rest).max())
    scale = float(np.abs(tensor).max())
    moduli = polycrystal(tensor) if stable else None
    warnings = []
    if not stable:
        warnings.append(
            f"not stable: the tensor has the eigenvalue {eigenvalues[0]:.3g} GPa, so the crystal gains energy by some"
            " strain, and no polycrystalline averages are given"
        )
    if residual > 0.005 * scale:
        warnings.append(f"the unstrained cell is under a stress of {residual:.3g} GPa; relax it first")
    if not options.relax_positions:
        warnings.append("the atoms were held in the strained cells (clamped-ion constants)")
    method = (
        f"Stress of {4 * len(modes)} strained cells ({len(modes)} strain modes, ±{options.strain:g} and half of it,"
        f" {'relaxed' if options.relax_positions else 'clamped'} ions), fitted under the"
        f" {len(invariant)} constants that the symmetry allows; axes: a along x, b in the xy plane"
    )
    check = Check(
        "half the strain: the elastic constant that differs most", float(errors.max()) / scale, options.limit
    )
    relaxed = bare(crystal)
    return ElasticResult(
        atoms=relaxed,
        tensor_gpa=tensor,
        errors_gpa=errors,
        spacegroup=str(symmetry_of(crystal).international),
        independent=len(invariant),
        strained_cells=4 * len(modes),
        stable=stable,
        eigenvalues_gpa=eigenvalues,
        residual_stress_gpa=residual,
        moduli=moduli,
        debye_temperature_k=_debye_temperature(crystal, moduli),
        provenance=Provenance(method, _CITATIONS, (check,), tuple(warnings)),
    )


def bare(atoms: ase.Atoms) -> ase.Atoms:
    """A copy without calculator and without what came with the user's file."""
    copy = atoms.copy()
    copy.calc = None
    copy.info = {}
    return copy


def _debye_temperature(crystal: ase.Atoms, moduli: Moduli | None) -> float | None:
    if moduli is None:
        return None
    density = crystal.get_masses().sum() / crystal.get_volume()  # u/Å³
    shear, bulk = moduli.shear_hill_gpa * units.GPa, moduli.bulk_hill_gpa * units.GPa
    transverse, longitudinal = np.sqrt(shear / density), np.sqrt((bulk + 4 * shear / 3) / density)
    mean = ((2 / transverse**3 + 1 / longitudinal**3) / 3) ** (-1 / 3)
    wavevector = (6 * np.pi**2 * len(crystal) / crystal.get_volume()) ** (1 / 3)
    return float(units._hbar * units.J * units.s * mean * wavevector / units.kB)


def _design(modes: np.ndarray, invariant: np.ndarray) -> np.ndarray:
    """`[m * 6, k]`: what each invariant tensor answers to each mode."""
    return np.einsum("kij,mj->mik", invariant, modes).reshape(-1, len(invariant))


def _symmetric(voigt: np.ndarray) -> np.ndarray:
    matrix = np.zeros((3, 3))
    for value, (i, j) in zip(voigt, _VOIGT, strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _full(tensor: np.ndarray) -> np.ndarray:
    full = np.zeros((3, 3, 3, 3))
    for a, (i, j) in enumerate(_VOIGT):
        for b, (k, l) in enumerate(_VOIGT):
            for p, q in {(i, j), (j, i)}:
                for r, s in {(k, l), (l, k)}:
                    full[p, q, r, s] = tensor[a, b]
    return full


def _voigt(full: np.ndarray) -> np.ndarray:
    return np.array([[full[i, j, k, l] for k, l in _VOIGT] for i, j in _VOIGT])
