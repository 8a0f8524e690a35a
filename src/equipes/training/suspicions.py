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
_ENERGY_RATIOS = {
    units.mol / units.kcal: "kcal/mol",
    units.mol / units.kJ: "kJ/mol",
    1.0 / units.Hartree: "Ha",
    1.0 / units.Rydberg: "Ry",
    1000.0: "meV",
}
_STRESS_RATIOS = {1.0 / units.GPa: "GPa", 10.0 / units.GPa: "kbar"}

# How well two sets of numbers must go together before their ratio means anything, and how near to a known ratio
# between units it must then come.
_CORRELATED = 0.8
_NEAR = 0.08


def suspicions(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction], *, offsets: bool = True
) -> list[str]:
    """One sentence for each sign that labels and model differ by a convention rather than by the model's errors.

    Looks for forces, stresses and energies (those of one composition around their mean) that follow the predictions but
    for a known ratio between units or the sign, and for energies that differ by one constant for each composition.
    Nothing is corrected. Without `offsets` such constants are not looked for: a training that was too short has them.
    """
    pairs = list(zip(frames, predictions, strict=True))
    forces = [(f.forces, p.forces) for f, p in pairs if f.forces is not None and p.forces is not None]
    stress = [(f.stress, p.stress) for f, p in pairs if f.stress is not None and p.stress is not None]
    found = [
        _energies([(f, p) for f, p in pairs if f.energy is not None]),
        _convention("forces", forces, _FORCE_RATIOS),
        _convention("stress", stress, _STRESS_RATIOS),
        _offset([(f, p) for f, p in pairs if f.energy is not None]) if offsets else None,
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
        f"the reference {quantity} {'follows' if quantity == 'stress' else 'follow'} the model's but "
        f"{' and '.join(parts)} (ratio {ratio:.4g}); check the units and the sign of the data"
    )


def _energies(pairs: Sequence[tuple[Frame, FramePrediction]]) -> str | None:
    """Energies whose changes are the model's in another unit, per atom, or of the other sign.

    Only changes between frames of one composition are compared: what does not change may be another reference.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    sizes: dict[str, int] = {}
    for frame, prediction in pairs:
        formula = frame.atoms.get_chemical_formula()
        groups.setdefault(formula, []).append((float(frame.energy or 0.0), prediction.energy))
        sizes[formula] = len(frame.atoms)
    changes = {
        formula: np.array(members) - np.mean(members, axis=0)
        for formula, members in groups.items()
        if len(members) > 2
    }
    if sum(map(len, changes.values())) < 9:
        return None
    reference, predicted = np.concatenate(list(changes.values())).T
    per_atom = np.concatenate([members[:, 0] * sizes[formula] for formula, members in changes.items()])
    correlation = _cosine(reference, predicted)
    if correlation < -_CORRELATED:
        return (
            "the reference energies rise where the model's fall (correlation "
            f"{correlation:.2f}): check the sign of the energies and of the forces that the model was trained on"
        )
    ratio = float(np.linalg.norm(per_atom)) / max(float(np.linalg.norm(predicted)), 1e-300)
    smallest = min(sizes[formula] for formula in changes)
    if smallest > 1 and _cosine(per_atom, predicted) > _CORRELATED and abs(ratio - 1) < 2 * _NEAR:
        return (
            "the reference energies follow the model's but look like energies per atom; they should be total"
        )
    values = list(changes.values())
    return _convention("energies", [(v[:, 0], v[:, 1]) for v in values], _ENERGY_RATIOS)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms > 0 else 0.0


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
