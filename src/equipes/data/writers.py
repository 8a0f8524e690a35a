"""Writing frames: extended XYZ without loss, and the other formats of ASE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from equipes.data.frames import Frame
from equipes.errors import InputError
from equipes.files import atomic_write

EXTENDED_XYZ = (".xyz", ".extxyz")
BY_ASE = (".db", ".traj", ".json")


def write_frames(frames: Sequence[Frame], path: str | Path, *, overwrite: bool = False) -> None:
    """Write frames with the labels they have, as `energy` (eV), `forces` (eV/Å), `stress` (eV/Å³) and `config_type`.

    The suffix chooses the format: `.xyz` or `.extxyz` (every number with all its digits, so that reading gives the same
    bits), `.db` (ASE database), `.traj`, `.json`.

    Raises:
        InputError: another suffix, no frames, an existing file without `overwrite`, or a place that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in EXTENDED_XYZ + BY_ASE:
        raise InputError(
            f"cannot write {path}: unknown format {path.suffix!r}; use one of {', '.join(EXTENDED_XYZ + BY_ASE)}"
        )
    if not frames:
        raise InputError(f"cannot write {path}: there are no frames; give at least one")
    with atomic_write(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() in EXTENDED_XYZ:
            with open(temporary, "w", encoding="utf-8") as file:
                for frame in frames:
                    _write_extended_xyz(frame, file)
        else:
            _write_by_ase(frames, temporary)


def _write_by_ase(frames: Sequence[Frame], path: Path) -> None:
    path.unlink()  # a database is created, not found
    if path.suffix.lower() == ".traj":
        from ase.io import write

        write(path, [labelled_atoms(frame) for frame in frames])
        return
    from ase.db import connect

    with connect(path) as database:
        for frame in frames:
            # Not a column of its own: those refuse names that look like numbers or formulas.
            database.write(labelled_atoms(frame), data=labelled_atoms(frame).info)


# Columns that a prediction may have beside its labels.
_OF_PREDICTIONS = ("forces_std", "feature_distance")


def labelled_atoms(frame: Frame) -> ase.Atoms:
    """The structure with its labels as results of a calculator, the way ASE keeps them."""
    atoms = frame.atoms.copy()
    results: dict[str, object] = {}
    if frame.energy is not None:
        results["energy"] = float(frame.energy)
    if frame.forces is not None:
        results["forces"] = frame.forces
    if frame.stress is not None:
        s = frame.stress
        results["stress"] = np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    if frame.config_type is not None:
        atoms.info["config_type"] = frame.config_type
    return atoms


def _write_extended_xyz(frame: Frame, file: TextIO) -> None:
    # ASE's own writer keeps eight decimals; the shortest text that reads back to the same float64 is written here.
    atoms = frame.atoms
    header = []
    if atoms.cell.any():
        header.append(f'Lattice="{_row(atoms.cell.array.ravel())}"')
    columns = {"pos": atoms.positions, "forces": frame.forces}
    columns |= {name: atoms.arrays.get(name) for name in _OF_PREDICTIONS}
    present = {
        name: np.reshape(values, (len(atoms), -1)) for name, values in columns.items() if values is not None
    }
    header.append(
        "Properties=species:S:1" + "".join(f":{name}:R:{v.shape[1]}" for name, v in present.items())
    )
    if frame.config_type is not None:
        header.append(f"config_type={_quoted(frame.config_type)}")
    if frame.energy is not None:
        header.append(f"energy={float(frame.energy)!r}")
    if frame.stress is not None:
        header.append(f'stress="{_row(frame.stress.ravel())}"')
    if "energy_std" in atoms.info:
        header.append(f"energy_std={float(atoms.info['energy_std'])!r}")
    header.append('pbc="{}"'.format(" ".join("FT"[int(periodic)] for periodic in atoms.pbc)))
    numbers = np.hstack(list(present.values()))
    rows = (
        f"{symbol:2} {_row(row)}\n" for symbol, row in zip(atoms.get_chemical_symbols(), numbers, strict=True)
    )
    file.write(f"{len(atoms)}\n{' '.join(header)}\n")
    file.writelines(rows)


def _row(numbers: Iterable[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def _quoted(text: str) -> str:
    # Quotes keep a text a text: ASE would read 1 as a number, T as true, and stop at a space.
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " "))
