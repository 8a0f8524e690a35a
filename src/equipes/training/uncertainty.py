"""What a potential says of its own uncertainty, beside its true errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.stats import spearmanr

from equipes.graph import AtomGraph
from equipes.models.committee import deviation_of_energies, deviation_of_forces
from equipes.training.metrics import FramePrediction, batches_of, predict_frames

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.models.potential import Potential

# The measures of each atom that are set against the error of its force.
MEASURES = ("forces_std", "feature_distance")
_BINS = 10


def predict_with_uncertainty(
    potentials: Sequence[Potential],
    frames: Sequence[Frame],
    *,
    batch_size: int | Literal["auto"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[FramePrediction]:
    """Predictions with all that is known of their uncertainty.

    Of several potentials they are means, with standard deviations as `equipes.Committee` gives them. Feature distances,
    means over the potentials, are there if all of them know what they were trained on; they cost another forward pass.

    Args:
        potentials: one, or the members of a committee.
        frames, batch_size, progress: see `predict_frames`.

    Raises:
        InputError: see `predict_frames`.
    """
    n = len(frames) * len(potentials)
    said: list[list[FramePrediction]] = []
    for k, potential in enumerate(potentials):
        done = k * len(frames)
        report = None if progress is None else lambda now, _, before=done: progress(before + now, n)
        said.append(predict_frames(potential, frames, batch_size=batch_size, progress=report))
    predictions = said[0] if len(said) == 1 else [_mean(members) for members in zip(*said, strict=True)]
    if any(potential.familiarity is None for potential in potentials):
        return predictions
    distances = np.mean([_distances(potential, frames, batch_size) for potential in potentials], axis=0)
    places = np.cumsum([len(frame.atoms) for frame in frames])[:-1]
    return [
        replace(prediction, feature_distance=own)
        for prediction, own in zip(predictions, np.split(distances, places), strict=True)
    ]


def _mean(members: Sequence[FramePrediction]) -> FramePrediction:
    energies = np.array([member.energy for member in members])
    forces = np.array([member.forces for member in members])
    stresses = [member.stress for member in members if member.stress is not None]
    whole = len(stresses) == len(members)
    return FramePrediction(
        energy=float(energies.mean()),
        forces=forces.mean(axis=0),
        stress=np.mean(stresses, axis=0) if whole else None,
        energy_std=float(deviation_of_energies(energies)),
        forces_std=deviation_of_forces(forces),
        stress_std=np.std(stresses, axis=0, ddof=1) if whole else None,
    )


def _distances(
    potential: Potential, frames: Sequence[Frame], batch_size: int | Literal["auto"] | None
) -> np.ndarray:
    # Without derivatives the usual batches take little.
    batches = batches_of(frames, potential.cutoff, None if batch_size == "auto" else batch_size)
    graphs = (AtomGraph.batch(batch).to(potential.device) for batch in batches)
    return np.concatenate([potential.feature_distances(graph).numpy() for graph in graphs])


def against_errors(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """A measure of each atom's uncertainty and the length of its force's error (eV/Å), of all atoms that have both.

    `measure` is "forces_std" (eV/Å) or "feature_distance"; infinite distances, of elements never seen, are left out.
    """
    values, errors = [np.empty(0)], [np.empty(0)]
    for frame, prediction in zip(frames, predictions, strict=True):
        own = getattr(prediction, measure)
        if own is not None and frame.forces is not None and prediction.forces is not None:
            values.append(own)
            errors.append(np.linalg.norm(prediction.forces - frame.forces, axis=1))
    uncertainty, error = np.concatenate(values), np.concatenate(errors)
    finite = np.isfinite(uncertainty)
    return uncertainty[finite], error[finite]


def uncertainty_metrics(frames: Sequence[Frame], predictions: Sequence[FramePrediction]) -> dict[str, Any]:
    """How uncertainties go with errors; JSON-able, empty where the predictions have none.

    For each measure there is (`forces_std` in meV/Å, `feature_distance` without a unit):

    - `n_atoms`, `mean`, `max`, and `unseen`, the atoms of elements that the potential was never shown;
    - `spearman`: rank correlation over atoms with the length of the force's error;
    - `bins`: atoms in ten parts of equal number by the measure: its mean, and the root mean square of the error's
      length (`error_rms_mev_per_ang`); in a calibrated committee the two are alike;
    - of `forces_std`, `factor`: what it must be multiplied by for the two to be alike over all atoms;
    - of `feature_distance`, `above_1`: the share of atoms above the limit, and the root mean square error of those
      below and above (`error_rms_below_1_mev_per_ang`, `error_rms_above_1_mev_per_ang`).

    Of a committee also `energy_std`: the mean in meV per atom, `spearman` with the size of the energy's error over
    frames, and `factor`.
    """
    found: dict[str, Any] = {}
    for measure in MEASURES:
        if all(getattr(prediction, measure) is None for prediction in predictions):
            continue
        values, errors = against_errors(frames, predictions, measure)
        every = np.concatenate([p for p in (getattr(q, measure) for q in predictions) if p is not None])
        finite = every[np.isfinite(every)]
        unit = 1000.0 if measure == "forces_std" else 1.0
        found[measure] = {
            "n_atoms": len(every),
            "mean": unit * float(finite.mean()) if len(finite) else None,
            "max": unit * float(finite.max()) if len(finite) else None,
            "unseen": len(every) - len(finite),
            "spearman": rank_correlation(values, errors),
            "bins": _bins(values, errors, unit),
        }
        if measure == "forces_std":
            found[measure]["factor"] = _factor(values, errors)
        else:
            above = values > 1
            found[measure] |= {
                "above_1": float((every > 1).mean()),
                "error_rms_below_1_mev_per_ang": _rms(errors[~above]),
                "error_rms_above_1_mev_per_ang": _rms(errors[above]),
            }
    energy = [
        (p.energy_std / len(f.atoms), abs(p.energy - f.energy) / len(f.atoms))
        for f, p in zip(frames, predictions, strict=True)
        if p.energy_std is not None and f.energy is not None
    ]
    if energy:
        deviations, errors = np.array(energy).T
        found["energy_std"] = {
            "n_frames": len(energy),
            "mean": 1000.0 * float(deviations.mean()),
            "spearman": rank_correlation(deviations, errors),
            "factor": _factor(deviations, errors),
        }
    return found


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None of fewer than three values, or where one of the two does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def _factor(deviations: np.ndarray, errors: np.ndarray) -> float | None:
    size = float(np.mean(deviations**2)) if len(deviations) else 0.0
    return float(np.sqrt(np.mean(errors**2) / size)) if size > 0 else None


def _rms(errors: np.ndarray) -> float | None:
    return 1000.0 * float(np.sqrt(np.mean(errors**2))) if len(errors) else None


def _bins(values: np.ndarray, errors: np.ndarray, unit: float) -> list[dict[str, Any]]:
    order = np.argsort(values, kind="stable")
    return [
        {
            "n_atoms": len(part),
            "mean": unit * float(values[part].mean()),
            "error_rms_mev_per_ang": _rms(errors[part]),
        }
        for part in np.array_split(order, min(_BINS, len(order)) or 1)
        if len(part)
    ]
