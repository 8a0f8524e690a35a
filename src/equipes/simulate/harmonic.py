"""Force constants by finite displacements, and the frequencies that follow: what phonopy does, on ASE structures."""

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
from ase.geometry import find_mic

from equipes.errors import InputError
from equipes.simulate.evaluations import evaluate
from equipes.simulate.packages import require
from equipes.simulate.results import Check, Progress, silent
from equipes.simulate.store import Store

PHONOPY = "A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023)"
_SAME_PLACE = 1e-4  # Å


@dataclass(frozen=True)
class Band:
    """One straight piece of a path through the Brillouin zone.

    `labels` of its ends, `qpoints` `[n, 3]` in reciprocal vectors of the primitive cell, `distances` `[n]` along the
    whole path (1/Å, without 2π), and `frequencies_thz` `[n, 3 N]`, imaginary ones negative.
    """

    labels: tuple[str, str]
    qpoints: np.ndarray
    distances: np.ndarray
    frequencies_thz: np.ndarray


def phonopy_atoms(atoms: ase.Atoms) -> Any:
    """A structure as phonopy has it."""
    require("phonons", "phonons", "phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    return PhonopyAtoms(
        numbers=atoms.numbers,
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )


def ase_atoms(atoms: Any) -> ase.Atoms:
    """A structure of phonopy as ASE has it."""
    return ase.Atoms(
        numbers=atoms.numbers, cell=atoms.cell, scaled_positions=atoms.scaled_positions, pbc=True
    )


def harmonic(
    unit: ase.Atoms,
    calculator: BaseCalculator,
    supercell: Sequence[int],
    displacement: float,
    *,
    name: str = "displaced supercells",
    check_displacement: bool = False,
    store: Store | None = None,
    progress: Progress = silent,
) -> tuple[Any, Check | None]:
    """A `Phonopy` with force constants, by displacing atoms one by one, as few as the symmetry allows.

    The forces of the supercell at rest are subtracted. With `check_displacement` the first displacement is done by
    half, too, and the check compares the force constants.
    """
    phonon = _new(unit, supercell)
    phonon.generate_displacements(distance=displacement)
    structures = [ase_atoms(phonon.supercell), *map(ase_atoms, phonon.supercells_with_displacements)]
    if check_displacement:
        half = structures[0].copy()
        half.positions += 0.5 * find_mic(structures[1].positions - half.positions, half.cell)[0]
        structures.append(half)
    forces = [
        result.forces
        for result in evaluate(structures, calculator, name=name, store=store, progress=progress)
    ]
    rest = forces[0]
    check = None
    if check_displacement:
        whole, halved = forces[1] - rest, 2 * (forces.pop() - rest)
        change = float(np.abs(whole - halved).max() / max(np.abs(whole).max(), 1e-12))
        check = Check("half the displacement: the largest force constant", change, 0.05)
    phonon.forces = np.array(forces[1:]) - rest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        phonon.produce_force_constants(show_drift=False)
        phonon.symmetrize_force_constants(show_drift=False)
    return phonon, check


def harmonic_from_forces(unit: ase.Atoms, displaced: Sequence[ase.Atoms], supercell: Sequence[int]) -> Any:
    """A `Phonopy` with force constants from forces that are known already, such as those of DFT.

    Args:
        unit: the unit cell.
        displaced: supercells with forces, each with one atom displaced; their atoms may come in any order.
        supercell: how often the unit cell is repeated in them.

    Raises:
        InputError: a structure without forces, of other size, or with other than one atom displaced; or too few
            displacements for the symmetry.
    """
    phonon = _new(unit, supercell)
    perfect = ase_atoms(phonon.supercell)
    entries = []
    for number, atoms in enumerate(displaced):
        order, moves = match_atoms(perfect, atoms, f"displaced structure {number}")
        moved = np.flatnonzero(np.linalg.norm(moves, axis=1) > _SAME_PLACE)
        if len(moved) != 1:
            raise InputError(
                f"displaced structure {number}: {len(moved)} atoms are displaced, not one; give single displacements"
            )
        forces = atoms.get_forces(apply_constraint=False)[order]
        entries.append({"number": int(moved[0]), "displacement": moves[moved[0]], "forces": forces})
    phonon.dataset = {"natom": len(perfect), "first_atoms": entries}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            phonon.produce_force_constants(show_drift=False)
        except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
            raise InputError(
                f"the {len(entries)} displacements do not fix the force constants ({error}); give one along each"
                " direction that the symmetry does not relate"
            ) from error
        phonon.symmetrize_force_constants(show_drift=False)
    return phonon


def _new(unit: ase.Atoms, supercell: Sequence[int]) -> Any:
    from phonopy import Phonopy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces that it found the primitive cell
        return Phonopy(phonopy_atoms(unit), supercell_matrix=np.diag(supercell), primitive_matrix="auto")


def match_atoms(perfect: ase.Atoms, displaced: ase.Atoms, where: str) -> tuple[np.ndarray, np.ndarray]:
    """For each atom of `perfect` its index in `displaced`, and how far it has moved, `[N, 3]`.

    Raises `InputError`, beginning with `where`, when the two are not the same crystal or forces are missing.
    """
    if len(displaced) != len(perfect) or not np.allclose(displaced.cell, perfect.cell, atol=1e-3):
        raise InputError(
            f"{where}: {len(displaced)} atoms in another cell than the supercell's {len(perfect)};"
            " give the repetition that belongs to it"
        )
    if displaced.calc is None or "forces" not in displaced.calc.results:
        raise InputError(f"{where}: no forces; give structures with calculated forces")
    n = len(perfect)
    vectors = (displaced.positions[None] - perfect.positions[:, None]).reshape(-1, 3)
    shortest, lengths = find_mic(vectors, perfect.cell)
    alike = displaced.numbers[None] == perfect.numbers[:, None]
    order = np.where(alike, lengths.reshape(n, n), np.inf).argmin(axis=1)
    moves = shortest.reshape(n, n, 3)[np.arange(n), order]
    if len(set(order.tolist())) != len(perfect) or np.linalg.norm(moves, axis=1).max() > 0.5:
        raise InputError(f"{where}: its atoms are not those of the supercell, slightly displaced")
    return order, moves


def add_born_charges(phonon: Any, path: str | os.PathLike[str]) -> None:
    """Add the dipole-dipole part that splits longitudinal from transverse modes, from a BORN file of phonopy."""
    from phonopy.file_IO import parse_BORN

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give Born charges as a BORN file of phonopy")
    try:
        phonon.nac_params = parse_BORN(phonon.primitive, filename=os.fspath(path))
    except Exception as error:  # phonopy raises whatever its parsing meets
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a BORN file of phonopy for this crystal ({reason})") from error


def bands(phonon: Any, points: int) -> list[Band]:
    """Frequencies along the path of Hinuma et al. (seekpath), with about `points` q-points in all."""
    require("a band structure", "phonons", "seekpath")
    import seekpath

    cell = phonon.primitive
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = seekpath.get_path_orig_cell((cell.cell, cell.scaled_positions, cell.numbers), symprec=1e-4)
    corners = {name: np.array(point) for name, point in found["point_coords"].items()}
    reciprocal = np.linalg.inv(cell.cell)
    lengths = [float(np.linalg.norm(reciprocal @ (corners[b] - corners[a]))) for a, b in found["path"]]
    pieces, start = [], 0.0
    for (a, b), length in zip(found["path"], lengths, strict=True):
        n = max(2, round(points * length / sum(lengths)))
        fractions = np.linspace(0, 1, n)
        qpoints = corners[a] + fractions[:, None] * (corners[b] - corners[a])
        pieces.append(((_label(a), _label(b)), qpoints, start + fractions * length))
        start += length
    return [
        Band(labels, qpoints, distances, frequencies_at(phonon, qpoints))
        for labels, qpoints, distances in pieces
    ]


def frequencies_at(phonon: Any, qpoints: np.ndarray) -> np.ndarray:
    """Frequencies in THz, `[n, 3 N]`, imaginary ones negative."""
    phonon.run_qpoints(qpoints)
    return np.array(phonon.qpoints.frequencies)


def _label(name: str) -> str:
    return {"GAMMA": "Γ", "SIGMA": "Σ", "DELTA": "Δ", "LAMBDA": "Λ"}.get(name.split("_")[0], name)
