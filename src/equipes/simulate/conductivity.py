"""Lattice thermal conductivity from phonons and their third-order interaction, by phono3py."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator

from equipes.errors import InputError
from equipes.simulate.crystals import checked_supercell
from equipes.simulate.evaluations import checked_start, evaluate
from equipes.simulate.harmonic import add_born_charges, ase_atoms, phonopy_atoms
from equipes.simulate.packages import require
from equipes.simulate.phonons import relaxed_crystal, unit_and_supercell
from equipes.simulate.results import Check, Progress, Provenance, plain, silent
from equipes.simulate.store import Store

_CITATIONS = (
    "A. Togo, L. Chaput, I. Tanaka, Phys. Rev. B 91, 094306 (2015)",
    "A. Togo, L. Chaput, T. Tadano, I. Tanaka, J. Phys. Condens. Matter 35, 353001 (2023)",
)
_FULL_CITATION = "L. Chaput, Phys. Rev. Lett. 110, 265506 (2013)"
_ISOTOPE_CITATION = "S. Tamura, Phys. Rev. B 27, 858 (1983)"
_IMAGINARY = 0.1  # THz


@dataclass(frozen=True)
class ConductivityOptions:
    """What `conductivity` does.

    Attributes:
        supercell: for the third order; None takes the conventional cell, repeated to `length`.
        length: Å between opposite faces of the supercell, at least.
        displacement: Å.
        cutoff_pair: leave out pairs of displaced atoms farther apart, Å; None takes all.
        meshes: the q-point meshes, ascending, as the sizes in Å of the supercells whose q-points they have; the last is
            the answer, and all together tell whether it is converged.
        temperatures: K.
        full: solve the linearised Boltzmann equation too, not only in the relaxation-time approximation.
        isotopes: add the scattering by the natural mixture of isotopes.
        relax: relax atoms and cell first, keeping the symmetry. Leave it out for a strained film.
        born: a BORN file of phonopy, for the splitting of longitudinal and transverse modes.
        limit: the relative change by the last mesh that counts as converged.
    """

    supercell: tuple[int, int, int] | None = None
    length: float = 10.0
    displacement: float = 0.03
    cutoff_pair: float | None = None
    meshes: tuple[float, ...] = (28.0, 36.0, 44.0)
    temperatures: tuple[float, ...] = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 800.0, 1000.0)
    full: bool = True
    isotopes: bool = True
    relax: bool = True
    born: str | None = None
    limit: float = 0.05

    def check(self) -> None:
        """Raises `InputError` for what makes no sense."""
        require("thermal conductivity", "phonons", "phono3py", "phonopy", "spglib")
        if self.supercell is not None:
            checked_supercell(self.supercell)
        if not 0 < self.displacement <= 0.3:
            raise InputError(f"the displacement must lie between 0 and 0.3 Å, not {self.displacement}")
        if (
            not self.meshes
            or any(a <= 0 for a in self.meshes)
            or sorted(set(self.meshes)) != list(self.meshes)
        ):
            raise InputError(f"meshes must be ascending lengths above 0 Å, not {self.meshes}")
        if not self.temperatures or any(not (np.isfinite(t) and t > 0) for t in self.temperatures):
            raise InputError(f"temperatures must be above 0 K, not {self.temperatures}")
        if self.cutoff_pair is not None and not self.cutoff_pair > 0:
            raise InputError(f"the cutoff of pairs must be above 0 Å, not {self.cutoff_pair}")
        if not (self.length > 0 and self.limit > 0):
            raise InputError(f"length and limit must be above 0, not {self.length} and {self.limit}")
        if self.born is not None and not Path(self.born).is_file():
            raise InputError(f"{self.born}: no such file; give Born charges as a BORN file of phonopy")


@dataclass(frozen=True)
class ConductivityResult:
    """Lattice thermal conductivity, W/(m K), Voigt order xx yy zz yz xz xy.

    Attributes:
        atoms: the primitive cell.
        supercell_atoms: in the supercell of the third order.
        displaced_supercells: how many were calculated.
        temperatures_k: `[T]`.
        meshes: `[M]`, numbers of q-points along each reciprocal vector.
        relaxation_time: `[M, T, 6]`, in the relaxation-time approximation, for each mesh.
        full: `[M, T, 6]`, the full solution of the linearised Boltzmann equation; None if not asked for.
        lowest_thz: the lowest frequency on the last mesh.
        provenance: method, citations, convergence, warnings.
    """

    atoms: ase.Atoms
    supercell_atoms: int
    displaced_supercells: int
    temperatures_k: np.ndarray
    meshes: list[tuple[int, int, int]]
    relaxation_time: np.ndarray
    full: np.ndarray | None
    lowest_thz: float
    provenance: Provenance

    @property
    def best(self) -> np.ndarray:
        """`[T, 6]`: on the last mesh, in full where it was solved."""
        return (self.relaxation_time if self.full is None else self.full)[-1]

    def isotropic(self, temperature: float) -> float:
        """The mean over directions at the temperature calculated nearest to `temperature`."""
        return float(self.best[int(np.abs(self.temperatures_k - temperature).argmin()), :3].mean())

    def summary(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return plain(self)


def conductivity(
    atoms: ase.Atoms,
    calculator: BaseCalculator,
    options: ConductivityOptions | None = None,
    *,
    store: Store | None = None,
    progress: Progress = silent,
) -> ConductivityResult:
    """Lattice thermal conductivity of a crystal, from forces of supercells with one and with two atoms displaced.

    Args:
        atoms: a crystal; not changed.
        calculator: any ASE calculator; in float64, or round-off of forces shows.
        options: see `ConductivityOptions`.
        store: keeps forces and finished meshes, so that a stopped calculation goes on.
        progress: called as supercells and meshes are done.

    Raises:
        InputError: not a crystal, or options out of range.
        SimulationError: a crystal that does not relax.
    """
    options = ConductivityOptions() if options is None else options
    options.check()
    checked_start(atoms, calculator, "a thermal conductivity")
    store = Store() if store is None else store
    crystal = relaxed_crystal(atoms, calculator, relax_first=options.relax, store=store, progress=progress)
    unit, supercell = unit_and_supercell(crystal, options.supercell, options.length)
    from phono3py import Phono3py

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces that it found the primitive cell
        interaction = Phono3py(
            phonopy_atoms(unit), supercell_matrix=np.diag(supercell), primitive_matrix="auto"
        )
    interaction.generate_displacements(
        distance=options.displacement, cutoff_pair_distance=options.cutoff_pair
    )
    displaced = interaction.supercells_with_displacements
    wanted = [ase_atoms(cell) for cell in displaced if cell is not None]
    structures = [ase_atoms(interaction.supercell), *wanted]
    rest, *found = (
        result.forces
        for result in evaluate(
            structures, calculator, name="displaced supercells", store=store, progress=progress
        )
    )
    # Pairs beyond the cutoff were not calculated; phono3py takes no notice of what stands in their place.
    remaining = iter(found)
    interaction.forces = np.array(
        [np.zeros_like(rest) if cell is None else next(remaining) - rest for cell in displaced]
    )
    _produce(interaction)
    notes = (
        () if options.relax else ("the structure was not relaxed: what stress it has is part of the answer",)
    )
    return solved(interaction, options, len(wanted), notes, store, progress)


def conductivity_from_forces(
    displacements: str | os.PathLike[str],
    forces: str | os.PathLike[str],
    options: ConductivityOptions | None = None,
    *,
    progress: Progress = silent,
) -> ConductivityResult:
    """The same from forces that are known, in the files of phono3py: phono3py_disp.yaml and FORCES_FC3.

    Supercell and displacements are as given. Raises `InputError` for files that are missing or do not fit together.
    """
    options = ConductivityOptions() if options is None else options
    options.check()
    import phono3py

    for path in (displacements, forces):
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; give phono3py_disp.yaml and FORCES_FC3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interaction = phono3py.load(
                phono3py_yaml=os.fspath(displacements),
                forces_fc3_filename=os.fspath(forces),
                produce_fc=False,
                log_level=0,
            )
    except Exception as error:  # phono3py raises whatever its parsing meets
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{displacements} and {forces} cannot be read together ({reason})") from error
    _produce(interaction)
    notes = ("whether supercell and displacement are converged was not looked at: the forces were given",)
    return solved(interaction, options, len(interaction.displacements), notes, Store(), progress)


def solved(
    interaction: Any,
    options: ConductivityOptions,
    displaced: int,
    notes: tuple[str, ...],
    store: Store,
    progress: Progress = silent,
) -> ConductivityResult:
    """The conductivity on each mesh, from a `Phono3py` with force constants."""
    if options.born is not None:
        add_born_charges(interaction, options.born)
    temperatures = np.array(options.temperatures)
    meshes: list[tuple[int, int, int]] = []
    relaxation, full, lowest = [], [], 0.0
    for number, length in enumerate(options.meshes):
        interaction.mesh_numbers = length
        counts = [int(n) for n in interaction.mesh_numbers]
        meshes.append((counts[0], counts[1], counts[2]))
        progress(f"mesh {'×'.join(map(str, counts))}", number, len(options.meshes))
        known = store.get(f"mesh {length}")
        if known is None:
            known = _on_mesh(interaction, temperatures, options)
            store.put(f"mesh {length}", **known)
        relaxation.append(known["relaxation_time"])
        if options.full:
            full.append(known["full"])
        lowest = float(known["lowest"])
    progress("meshes", len(options.meshes), len(options.meshes))
    best = full if options.full else relaxation
    checks, warned = _checks(best, temperatures, meshes, options), list(notes)
    if lowest < -_IMAGINARY:
        warned.append(
            f"imaginary modes down to {lowest:.2f} THz are left out: the crystal is not stable in this model, and the"
            " conductivity means little; see `phonons`"
        )
    if options.born is None and len(set(interaction.primitive.numbers)) > 1:
        warned.append(
            "without Born charges (--born) the optical modes of a polar insulator are not split near Γ"
        )
    citations = (*_CITATIONS, *([_FULL_CITATION] if options.full else []))
    citations += (_ISOTOPE_CITATION,) if options.isotopes else ()
    method = (
        f"Third-order force constants by finite displacements ({displaced} supercells of {len(interaction.supercell)}"
        f" atoms{'' if options.cutoff_pair is None else f', pairs within {options.cutoff_pair:g} Å'}),"
        f" Boltzmann equation on {'×'.join(map(str, meshes[-1]))} q-points"
        f" {'in full and ' if options.full else ''}in the relaxation-time approximation, three-phonon scattering"
        f"{' and that by natural isotopes' if options.isotopes else ''}; tetrahedron method"
    )
    return ConductivityResult(
        atoms=ase_atoms(interaction.primitive),
        supercell_atoms=len(interaction.supercell),
        displaced_supercells=displaced,
        temperatures_k=temperatures,
        meshes=meshes,
        relaxation_time=np.array(relaxation),
        full=np.array(full) if options.full else None,
        lowest_thz=lowest,
        provenance=Provenance(method, citations, checks, tuple(warned)),
    )


def _produce(interaction: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interaction.produce_fc3()
        interaction.produce_fc2()


def _on_mesh(interaction: Any, temperatures: np.ndarray, options: ConductivityOptions) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interaction.init_phph_interaction()
        interaction.run_thermal_conductivity(
            is_LBTE=options.full, temperatures=temperatures, is_isotope=options.isotopes, log_level=0
        )
    found = interaction.thermal_conductivity
    shape = (len(temperatures), 6)
    values = {
        "relaxation_time": np.array(found.kappa_RTA if options.full else found.kappa).reshape(shape),
        "lowest": float(np.min(found.frequencies)),
    }
    return {**values, "full": np.array(found.kappa).reshape(shape)} if options.full else values


def _checks(
    kappa: Sequence[np.ndarray],
    temperatures: np.ndarray,
    meshes: Sequence[tuple[int, ...]],
    options: ConductivityOptions,
) -> tuple[Check, ...]:
    if len(kappa) < 2:
        return ()
    at = int(np.abs(temperatures - 300).argmin())
    values = np.array([entry[at, :3].mean() for entry in kappa])
    # The conductivity approaches its limit with the inverse of the number of points along a vector, and not smoothly:
    # two meshes can agree by chance, so all of them take part.
    inverse = np.array([np.prod(mesh) ** (-1 / 3) for mesh in meshes])
    endless = np.polyfit(inverse, values, 1)[1]
    what = f"a mesh without end instead of {'×'.join(map(str, meshes[-1]))}: the conductivity at {temperatures[at]:g} K"
    return (Check(what, float(abs(endless - values[-1]) / max(abs(values[-1]), 1e-12)), options.limit),)
