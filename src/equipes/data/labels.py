"""Finding energy, forces and stress among what a structure carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np

from equipes.data.frames import Frame, LabelKeys
from equipes.data.units import Units
from equipes.errors import InputError

USUAL_KEYS: Mapping[str, Sequence[str]] = {
    "energy": (
        "energy", "REF_energy", "ref_energy", "dft_energy", "DFT_energy", "Energy", "total_energy", "TotEnergy", "E",
    ),
    "forces": (
        "forces", "REF_forces", "ref_forces", "dft_forces", "DFT_forces", "Forces", "force", "REF_force", "dft_force",
        "F",
    ),
    "stress": (
        "stress", "REF_stress", "ref_stress", "dft_stress", "DFT_stress", "virial", "virials", "REF_virial",
        "REF_virials", "ref_virial", "dft_virial", "DFT_virial",
    ),
    "config_type": ("config_type",),
}  # fmt: skip
# Codes that smear electronic levels report both; the energy extrapolated to zero smearing is the usual label.
FALLBACK_KEYS: Mapping[str, Sequence[str]] = {"energy": ("free_energy",)}

_NOT_LABELS = {"numbers", "positions"}
_SAME_LABEL = 1e-4
_SYMMETRIC = 0.05


@dataclass(frozen=True)
class _Found:
    key: str
    value: Any


def named_values(atoms: ase.Atoms) -> dict[str, Any]:
    """Everything a structure carries by name: info, columns of an ASE database, per-atom arrays, calculator results.

    The calculator's raw results are taken, because ASE's `get_forces` sets the forces on constrained atoms to zero.
    """
    values: dict[str, Any] = {}
    for name, value in atoms.info.items():
        if name in ("key_value_pairs", "data") and isinstance(value, Mapping):
            values.update(value)
        else:
            values[name] = value
    values.update({name: array for name, array in atoms.arrays.items() if name not in _NOT_LABELS})
    if atoms.calc is not None:
        values.update({name: value for name, value in atoms.calc.results.items() if value is not None})
    return values


def frame_from_atoms(atoms: ase.Atoms, source: str, index: int, keys: LabelKeys, units: Units) -> Frame:
    """The labels of an ASE structure, converted to eV and Å.

    Raises:
        InputError: a label of the wrong shape or type, two usual keys that disagree, or a stress that is not symmetric
            or has no volume.
    """
    label = f"{source} frame {index}"
    values = named_values(atoms)
    geometry = ase.Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions * units.to_angstrom,
        cell=atoms.cell.array * units.to_angstrom,
        pbc=atoms.pbc,
    )
    energy, forces, stress, config_type = (
        _find(quantity, getattr(keys, quantity), values, label) for quantity in USUAL_KEYS
    )
    return Frame(
        atoms=geometry,
        energy=None if energy is None else _scalar(energy, label) * units.to_ev,
        forces=None if forces is None else _per_atom(forces, len(atoms), label) * units.to_ev_per_angstrom,
        stress=None if stress is None else _stress(stress, geometry, label, units),
        config_type=None if config_type is None else str(config_type.value),
        source=source,
        index=index,
        keys=LabelKeys(
            *(None if found is None else found.key for found in (energy, forces, stress, config_type))
        ),
    )


def is_virial(key: str) -> bool:
    """Whether a key of a stress names a virial (eV, -stress times volume); `virial_stress` is a stress."""
    return "virial" in key.lower() and "stress" not in key.lower()


def _find(quantity: str, configured: str | None, values: Mapping[str, Any], label: str) -> _Found | None:
    if configured is not None:
        return _Found(configured, values[configured]) if configured in values else None
    present = [key for key in USUAL_KEYS[quantity] if key in values]
    if not present:
        present = [key for key in FALLBACK_KEYS.get(quantity, ()) if key in values]
    if not present:
        return None
    first = present[0]
    for other in present[1:]:
        if is_virial(first) == is_virial(other) and not _agree(values[first], values[other]):
            raise InputError(
                f"{label}: {first!r} and {other!r} differ; set data.keys.{quantity} to the one that is meant"
            )
    return _Found(first, values[first])


def _agree(a: Any, b: Any) -> bool:
    try:
        x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    except (TypeError, ValueError):
        return False
    if x.size != y.size:
        return False
    scale = max(np.abs(x).max(initial=0.0), np.abs(y).max(initial=0.0))
    return bool(np.allclose(x.ravel(), y.ravel(), rtol=0, atol=_SAME_LABEL * scale, equal_nan=True))


def _numbers(found: _Found, label: str) -> np.ndarray:
    try:
        return np.asarray(found.value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{label}: {found.key!r} is {found.value!r}, not numbers; correct it or name another key"
        ) from None


def _scalar(found: _Found, label: str) -> float:
    value = _numbers(found, label)
    if value.size != 1:
        raise InputError(
            f"{label}: {found.key!r} has shape {value.shape}, an energy is one number; name another key"
        )
    return float(value.reshape(()))


def _per_atom(found: _Found, n_atoms: int, label: str) -> np.ndarray:
    value = _numbers(found, label)
    if value.shape != (n_atoms, 3):
        raise InputError(
            f"{label}: {found.key!r} has shape {value.shape}, forces on {n_atoms} atoms have shape ({n_atoms}, 3); "
            "name another key"
        )
    return np.array(value)


def _stress(found: _Found, atoms: ase.Atoms, label: str, units: Units) -> np.ndarray | None:
    value = _numbers(found, label)
    if value.size == 6:
        xx, yy, zz, yz, xz, xy = value.ravel()
        value = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    elif value.size == 9:
        value = value.reshape(3, 3)
    else:
        raise InputError(
            f"{label}: {found.key!r} has shape {value.shape}; "
            "a stress is 9 numbers, or 6 in the order xx yy zz yz xz xy"
        )
    volume = abs(float(np.linalg.det(atoms.cell.array)))
    if (volume == 0 or not atoms.pbc.any()) and (not value.any() or np.isnan(value).all()):
        return None  # a place holder: molecules have no stress
    if volume == 0:
        raise InputError(
            f"{label}: {found.key!r} is given but the cell has no volume; remove it or add the cell"
        )
    asymmetry = np.abs(value - value.T).max()
    if asymmetry > _SYMMETRIC * np.abs(value).max():
        raise InputError(f"{label}: {found.key!r} is not a symmetric tensor; correct it or name another key")
    value = 0.5 * (value + value.T)
    if is_virial(found.key):
        sign = np.sign(units.to_ev_per_angstrom3)
        return -sign * value * units.to_ev / volume
    return value * units.to_ev_per_angstrom3
