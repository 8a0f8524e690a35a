"""What a set of frames contains, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import units

from equipes.data.consistency import WorkRatio, work_ratios
from equipes.data.frames import Frame
from equipes.data.statistics import elements, fit_reference_energies, forces_rms

_COMPOSITIONS = 10


def describe(frames: Sequence[Frame]) -> dict[str, Any]:
    """Content of a set of frames, ready for JSON: sizes, elements, compositions, cells, ranges of labels.

    Energies per atom in eV, forces in eV/Å, pressure (-trace of the stress / 3) in GPa, volumes in Å³ per atom.
    `work_ratio` is 1 where energies and forces (or stress) belong together, None where no structures are similar
    enough to tell (`equipes.data.consistency`). What does not exist is None.
    """
    sizes = np.array([len(frame.atoms) for frame in frames])
    atoms = Counter(symbol for frame in frames for symbol in frame.atoms.symbols)
    compositions = Counter(frame.composition for frame in frames)
    # A measure of many labels must survive those that are not finite; the checks say which they are.
    energies = _finite(f.energy / len(f.atoms) for f in frames if f.energy is not None)
    largest = _finite(np.linalg.norm(f.forces, axis=1).max() for f in frames if f.forces is not None)
    pressures = _finite(-np.trace(f.stress) / 3 / units.GPa for f in frames if f.stress is not None)
    bulk = [frame for frame in frames if frame.atoms.pbc.all()]
    volumes = _finite(frame.atoms.cell.volume / len(frame.atoms) for frame in bulk)
    labelled = [f for f in frames if f.energy is not None and np.isfinite(f.energy)]
    references = fit_reference_energies(labelled) if labelled else None
    finite = [frame for frame in frames if frame.forces is not None and _all_finite(frame)]
    of_forces, of_stress = work_ratios([frame for frame in finite if frame.energy is not None])
    return {
        "files": list(dict.fromkeys(frame.source for frame in frames)),
        "n_frames": len(frames),
        "n_atoms": int(sizes.sum()),
        "atoms_per_frame": _range(sizes),
        "elements": {symbol: atoms[symbol] for symbol in elements(frames)},
        "n_compositions": len(compositions),
        "compositions": dict(compositions.most_common(_COMPOSITIONS)),
        "config_types": dict(Counter(f.config_type for f in frames if f.config_type is not None)),
        "periodic": dict(Counter("".join("FT"[int(p)] for p in frame.atoms.pbc) for frame in frames)),
        "volume_per_atom": _range(volumes),
        "energy": {
            "n_frames": sum(frame.energy is not None for frame in frames),
            "keys": _keys(frame.keys.energy for frame in frames),
            "per_atom": _range(energies),
            "reference_energies": None if references is None else references.values,
            "reference_energies_determined": None if references is None else references.determined,
            "rms_without_references_mev_per_atom": None
            if references is None
            else references.residual_rms_mev_per_atom,
        },
        "forces": {
            "n_frames": sum(frame.forces is not None for frame in frames),
            "keys": _keys(frame.keys.forces for frame in frames),
            "rms": forces_rms(finite) if finite else None,
            "largest": float(largest.max()) if largest.size else None,
            "work_ratio": _ratio(of_forces),
        },
        "stress": {
            "n_frames": sum(frame.stress is not None for frame in frames),
            "keys": _keys(frame.keys.stress for frame in frames),
            "pressure_gpa": _range(pressures),
            "work_ratio": _ratio(of_stress),
        },
    }


def _finite(values: Iterable[Any]) -> np.ndarray:
    array = np.array(list(values), dtype=float)
    return array[np.isfinite(array)]


def _all_finite(frame: Frame) -> bool:
    arrays = (frame.energy, frame.forces, frame.stress, frame.atoms.positions, frame.atoms.cell.array)
    return all(np.isfinite(array).all() for array in arrays if array is not None)


def _range(values: np.ndarray) -> list[float] | None:
    return [values.min().item(), values.max().item()] if values.size else None


def _keys(found: Iterable[str | None]) -> list[str]:
    return sorted({key for key in found if key is not None})


def _ratio(measured: WorkRatio | None) -> float | None:
    return None if measured is None or not measured.decided else measured.ratio
