"""What a report shows, brought out of frames and predictions: pairs of values, figures, the worst structures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from equipes.report.plots import error_histogram, group_plot, parity_plot
from equipes.report.tables import COUNTS

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.training.metrics import FramePrediction

QUANTITIES = ("energy", "forces", "stress")


def compared(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reference and predicted values of each quantity that has any: energies per atom in eV, forces in eV/Å and stress
    in eV/Å³ by component, flat."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {quantity: [] for quantity in QUANTITIES}
    for frame, prediction in zip(frames, predictions, strict=True):
        for quantity in QUANTITIES:
            reference, predicted = getattr(frame, quantity), getattr(prediction, quantity)
            if reference is None or predicted is None:
                continue
            per = len(frame.atoms) if quantity == "energy" else 1
            pairs[quantity].append((np.ravel(reference) / per, np.ravel(predicted) / per))
    return {
        quantity: (np.concatenate([r for r, _ in found]), np.concatenate([p for _, p in found]))
        for quantity, found in pairs.items()
        if found
    }


def error_figures(
    frames: Sequence[Frame], values: Mapping[str, tuple[np.ndarray, np.ndarray]], metrics: Mapping[str, Any]
) -> Iterator[tuple[str, str, Figure]]:
    """(name, description, figure) of every plot of errors that the labels allow; `values` are `compared(…)`."""
    from equipes.training.metrics import composition_energies

    for quantity, (reference, predicted) in values.items():
        words = None
        if quantity == "energy":
            # Energies of different compositions lie so far apart that every model looks perfect beside them.
            fitted = composition_energies([frame for frame in frames if frame.energy is not None])
            if fitted is not None:
                reference, predicted, words = reference - fitted, predicted - fitted, "composition"
        figure = parity_plot(reference, predicted, quantity, relative_to=words)
        yield f"parity_{quantity}", f"predicted against reference {quantity}", figure
    for quantity, (reference, predicted) in values.items():
        yield (
            f"errors_{quantity}",
            f"distribution of {quantity} errors",
            error_histogram(reference, predicted, quantity),
        )
    if "forces" in values:
        yield "forces_by_element", "force errors by element", group_plot(metrics["per_element"], "forces")
    for quantity in values:
        groups = metrics["per_config_type"]
        if any(group[COUNTS[quantity]] for group in groups.values()):
            yield (
                f"{quantity}_by_config_type",
                f"{quantity} errors by configuration type",
                group_plot(groups, quantity),
            )


def worst_structures(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction], most: int
) -> list[dict[str, Any]]:
    """The `most` frames with the largest errors by each quantity (together, without repetition), for the 3D view.

    Errors are the size of the energy error per atom (meV/atom), and the root mean square over components of the
    forces (meV/Å) and of the stress (meV/Å³); None without a label. Positions, cells and forces in Å and eV/Å.
    """
    errors = [_frame_errors(frame, prediction) for frame, prediction in zip(frames, predictions, strict=True)]
    chosen: set[int] = set()
    for quantity in QUANTITIES:
        known = [i for i in range(len(frames)) if errors[i][quantity] is not None]
        chosen.update(sorted(known, key=lambda i: (-(errors[i][quantity] or 0.0), i))[:most])
    return [_structure(frames[i], predictions[i], errors[i]) for i in sorted(chosen)]


def _frame_errors(frame: Frame, prediction: FramePrediction) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(QUANTITIES)
    for quantity in QUANTITIES:
        reference, predicted = getattr(frame, quantity), getattr(prediction, quantity)
        if reference is not None and predicted is not None:
            per = len(frame.atoms) if quantity == "energy" else 1
            found[quantity] = 1000.0 * float(np.sqrt(np.mean((predicted - reference) ** 2))) / per
    return found


def _structure(
    frame: Frame, prediction: FramePrediction, errors: Mapping[str, float | None]
) -> dict[str, Any]:
    atoms = frame.atoms
    return {
        "label": f"{os.path.basename(frame.source)} frame {frame.index}",
        "formula": atoms.get_chemical_formula(),
        "config_type": frame.config_type,
        "errors": dict(errors),
        "symbols": atoms.get_chemical_symbols(),
        "positions": _rounded(atoms.positions),
        "cell": _rounded(atoms.cell.array) if atoms.cell.rank == 3 and atoms.pbc.any() else None,
        "reference": None if frame.forces is None else _rounded(frame.forces),
        "predicted": None if prediction.forces is None else _rounded(prediction.forces),
    }


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 5) for value in row] for row in values]
