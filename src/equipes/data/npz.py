"""The `.npz` layouts of MD17 and rMD17: many frames of one molecule in a few arrays."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import ase
import numpy as np

from equipes.data.frames import Frame, LabelKeys
from equipes.data.units import Units
from equipes.errors import InputError

# Names of the arrays in rMD17, then in MD17.
_NUMBERS = ("nuclear_charges", "z", "Z", "numbers")
_POSITIONS = ("coords", "R", "positions")
_USUAL = {"energy": ("energies", "E", "energy"), "forces": ("forces", "F"), "config_type": ("config_type",)}
_CELLS = ("lattice", "cell", "cells", "pbc")


def read_npz(path: Path, source: str, keys: LabelKeys, units: Units | None) -> list[Frame]:
    """All frames of an MD17 (`z R E F`) or rMD17 (`nuclear_charges coords energies forces`) file.

    Args:
        path: the file.
        source: its name as it was given.
        keys: names of the arrays of labels, where they are not the usual ones (`old_energies`, for instance).
        units: of the file; may be None only when the file states them (`e_unit` and `r_unit`).

    Raises:
        InputError: not a readable npz, undeclared units, missing arrays, shapes that do not fit together.
    """
    arrays = _load(path, source)
    units = _declared_units(arrays, source, units)
    if cell := [name for name in _CELLS if name in arrays]:
        raise InputError(
            f"{source}: {cell[0]!r}: periodic npz files are not read; write them as extended XYZ"
        )
    z = _first(arrays, _NUMBERS, source, "atomic numbers")
    positions = _first(arrays, _POSITIONS, source, "positions")
    if positions.ndim != 3 or positions.shape[2] != 3 or positions.shape[0] == 0:
        raise InputError(
            f"{source}: positions have shape {positions.shape}, not (frames, atoms, 3); correct the file"
        )
    n_frames, n_atoms = positions.shape[:2]
    if z.shape not in ((n_atoms,), (n_frames, n_atoms)):
        raise InputError(
            f"{source}: atomic numbers have shape {z.shape}, but positions are of {n_atoms} atoms; correct the file"
        )
    if not np.all((z >= 1) & (z <= 118) & (z == np.round(z))):
        raise InputError(
            f"{source}: atomic numbers are not all whole numbers from 1 to 118; correct the file"
        )
    numbers = np.broadcast_to(z.astype(int), (n_frames, n_atoms))
    energy_key, energies = _label(arrays, "energy", keys.energy, source)
    forces_key, forces = _label(arrays, "forces", keys.forces, source)
    type_key, types = _label(arrays, "config_type", keys.config_type, source)
    if keys.stress is not None:
        raise InputError(f"{source}: npz files have no stress; leave data.keys.stress out")
    if energies is not None:
        energies = _shaped(energies, (n_frames,), energy_key, source) * units.to_ev
    if forces is not None:
        forces = _shaped(forces, (n_frames, n_atoms, 3), forces_key, source) * units.to_ev_per_angstrom
    if types is not None and types.shape != (n_frames,):
        raise InputError(
            f"{source}: {type_key!r} has shape {types.shape}, not ({n_frames},); correct the file"
        )
    positions = positions.astype(np.float64) * units.to_angstrom
    found = LabelKeys(energy=energy_key, forces=forces_key, config_type=type_key)
    return [
        Frame(
            atoms=ase.Atoms(numbers=numbers[index], positions=positions[index]),
            energy=None if energies is None else float(energies[index]),
            forces=None if forces is None else forces[index],
            stress=None,
            config_type=None if types is None else str(types[index]),
            source=source,
            index=index,
            keys=found,
        )
        for index in range(n_frames)
    ]


def _load(path: Path, source: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(
                f"{source}: holds a single array, not an npz archive; give the MD17 or rMD17 file"
            )
        with archive:
            for name in archive.files:
                array = _array(archive, name, source)
                if array is not None:
                    arrays[name] = array
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError) as error:
        where = f" at {name!r}" if name else ""
        raise InputError(
            f"{source}: not a whole npz file (it breaks off or is another format{where}); copy or download it again"
        ) from error
    return arrays


def _array(archive: np.lib.npyio.NpzFile, name: str, source: str) -> np.ndarray | None:
    """An array of the archive; None for Python objects that are no labels, which are never loaded."""
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
    # Some MD17 files carry such (their name, say), but what is read here must be numbers.
    if name in (*_NUMBERS, *_POSITIONS, *(key for usual in _USUAL.values() for key in usual)):
        raise InputError(
            f"{source}: {name!r} holds pickled Python objects, which are not loaded; save it as numbers"
        )
    return None


def _declared_units(arrays: dict[str, np.ndarray], source: str, declared: Units | None) -> Units:
    if "e_unit" in arrays and "r_unit" in arrays:
        stated = Units(energy=str(arrays["e_unit"]), length=str(arrays["r_unit"]))
        if declared is None:
            return stated
        for quantity, ours, theirs in (
            ("energy", declared.to_ev, stated.to_ev),
            ("length", declared.to_angstrom, stated.to_angstrom),
        ):
            if not np.isclose(ours, theirs, rtol=1e-4):
                raise InputError(
                    f"{source}: says that its {quantity} is in {getattr(stated, quantity)}, "
                    f"but data.units.{quantity} is {getattr(declared, quantity)}; correct the setting"
                )
        return declared
    if declared is None:
        raise InputError(
            f"{source}: an npz file does not say its units; "
            "set data.units, for MD17 and rMD17 {energy: kcal/mol, length: Ang}"
        )
    return declared


def _first(arrays: dict[str, np.ndarray], names: tuple[str, ...], source: str, what: str) -> np.ndarray:
    for name in names:
        if name in arrays:
            return _numeric(arrays[name], name, source)
    raise InputError(
        f"{source}: no {what} (looked for {_list(names)}; there are {_list(arrays)}); "
        "give a file in the layout of MD17 or rMD17"
    )


def _label(
    arrays: dict[str, np.ndarray], quantity: str, configured: str | None, source: str
) -> tuple[str | None, np.ndarray | None]:
    if configured is not None:
        if configured not in arrays:
            raise InputError(
                f"{source}: no array {configured!r} (there are {_list(arrays)}); "
                f"set data.keys.{quantity} to one of them"
            )
        return configured, arrays[configured]
    for name in _USUAL[quantity]:
        if name in arrays:
            return name, arrays[name]
    return None, None


def _shaped(array: np.ndarray, shape: tuple[int, ...], name: str | None, source: str) -> np.ndarray:
    array = _numeric(array, name, source)
    if array.shape == (*shape, 1):
        array = array[..., 0]
    if array.shape != shape:
        raise InputError(
            f"{source}: {name!r} has shape {array.shape}, but by the positions it should have {shape}; correct the file"
        )
    return array.astype(np.float64)


def _numeric(array: np.ndarray, name: str | None, source: str) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise InputError(f"{source}: {name!r} does not hold numbers (type {array.dtype}); name another array")
    return array


def _list(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "nothing"
