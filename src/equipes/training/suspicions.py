"""Signs that data and model do not speak of the same thing: other units, another sign, another level of theory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase import units

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.training.metrics import FramePrediction

# reference / predicted when a file's numbers are in the unit on the right but were read as eV, eV/Å or eV/Å³
_FORCE_RATIOS = {
    units.mol / units.kcal: "kcal/mol/Å",
    units.mol / units.kJ: "kJ/mol/Å",
    units.Bohr / units.Hartree: "Ha/Bohr",
    1.0 / units.Hartree: "Ha/Å",
    1000.0: "meV/Å",
}
_STRESS_RATIOS = {1.0 / units.GPa: "GPa", 10.0 / units.GPa: "kbar"}

# How well two sets of numbers must go together before their ratio means anything, and how near to a known ratio
# between units it must then come.
_CORRELATED = 0.8
_NEAR = 0.08


def suspicions(frames: Sequence[Frame], predictions: Sequence[FramePrediction]) -> list[str]:
    """One sentence for each sign that labels and model differ by a convention rather than by the model's errors.

    Looks for forces and stresses that follow the predictions but for a known ratio between units or the sign, and
    for energies that differ by one constant for each composition. Nothing is corrected.
    """
    pairs = list(zip(frames, predictions, strict=True))
    forces = [(f.forces, p.forces) for f, p in pairs if f.forces is not None and p.forces is not None]
    stress = [(f.stress, p.stress) for f, p in pairs if f.stress is not None and p.stress is not None]
    found = [
        _convention("forces", forces, _FORCE_RATIOS),
        _convention("stress", stress, _STRESS_RATIOS),
        _offset([(f, p) for f, p in pairs if f.energy is not None]),
    ]
    return [sentence for sentence in found if sentence is not None]


def _convention(
    quantity: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], known: dict[float, str]
) -> str | None:
    if not pairs:
        return None
    reference = np.concatenate([pair[0].ravel() for pair in pairs])
    predicted = np.concatenate([pair[1].ravel() for pair in pairs])
    norms = np.linalg.norm(reference), np.linalg.norm(predicted)
    if len(reference) < 9 or min(norms) == 0:
        return None
    correlation = float(reference @ predicted / (norms[0] * norms[1]))
    if abs(correlation) < _CORRELATED:
        return None
    ratio = float(norms[0] / norms[1])
    parts = []
    if correlation < 0:
        parts.append("have the opposite sign")
    parts += [
        f"look like {unit} instead of the unit declared"
        for r, unit in known.items()
        if abs(ratio / r - 1) < _NEAR
    ]
    if not parts:
        return None
    return (
        f"the reference {quantity} follow the model's but {' and '.join(parts)} (ratio {ratio:.4g}); "
        "check the units and the sign of the data"
    )


def _offset(pairs: Sequence[tuple[Frame, FramePrediction]]) -> str | None:
    if len(pairs) < 3:
        return None
    per_composition: dict[str, list[float]] = {}
    for frame, prediction in pairs:
        error = (prediction.energy - float(frame.energy or 0.0)) / len(frame.atoms)
        per_composition.setdefault(frame.atoms.get_chemical_formula(), []).append(error)
    groups = [np.array(errors) for errors in per_composition.values() if len(errors) > 2]
    if not groups:
        return None
    offset = np.concatenate([np.full(len(errors), errors.mean()) for errors in groups])
    scatter = np.concatenate([errors - errors.mean() for errors in groups])
    size, rest = np.sqrt(np.mean(offset**2)), np.sqrt(np.mean(scatter**2))
    # A tenth of an eV per atom is beyond any training's error; another code or functional differs by more than that.
    if size < 0.1 or size < 20.0 * rest:
        return None
    return (
        f"predicted and reference energies differ by a nearly constant {1000.0 * size:.0f} meV/atom (scatter "
        f"{1000.0 * rest:.3g}): the data may come from another level of theory, or have other reference energies, "
        "than what the model was trained on"
    )
