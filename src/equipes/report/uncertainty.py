"""Uncertainty against error: what a potential says of itself, and what is true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from equipes.report.figures import COLORS, INK, new_figure, plain_log_axis, short, styled
from equipes.report.tables import Rows

if TYPE_CHECKING:
    from equipes.data import Frame
    from equipes.training.metrics import FramePrediction

# measure: (name, its unit here, how many of it are one of `against_errors`)
_NAMES = {
    "forces_std": ("forces std", "meV/Å", 1000.0),
    "feature_distance": ("feature distance", "", 1.0),
    "energy_std": ("energy std", "meV/atom", 1.0),
}
_COLUMNS = ["mean", "largest", "rank", "error/std", "above 1", "error below 1", "error above 1"]
_MOST_POINTS = 20_000


def uncertainty_rows(metrics: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Column names, and a row for each measure of `uncertainty_metrics`; RMS errors are lengths, in meV/Å."""
    rows: Rows = []
    for measure, (name, unit, _) in _NAMES.items():
        if measure in metrics:
            facts = metrics[measure]
            share = facts.get("above_1")
            cells = [_cell(facts.get(key)) for key in ("mean", "max", "spearman", "factor")]
            cells.append("" if share is None else f"{100 * share:.3g} %")
            cells += [_cell(facts.get(f"error_rms_{side}_1_mev_per_ang")) for side in ("below", "above")]
            rows.append((f"{name} ({unit})" if unit else name, cells))
    return _COLUMNS, rows


def uncertainty_figures(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction]
) -> Iterator[tuple[str, str, Figure]]:
    """(name, description, figure) for each measure of uncertainty that predictions and labels allow."""
    from equipes.training.uncertainty import MEASURES, against_errors

    for measure in MEASURES:
        values, errors = against_errors(frames, predictions, measure)
        if len(values) >= 3 and values.max() > 0:
            about = f"error of the force on each atom over its {_NAMES[measure][0]}"
            yield f"{measure}_uncertainty", about, uncertainty_plot(values, errors, measure)


@styled
def uncertainty_plot(values: np.ndarray, errors: np.ndarray, measure: str) -> Figure:
    """Length of the error of each atom's force (eV/Å) over a measure of its uncertainty, both logarithmic.

    The line joins root mean squares of the error in twenty parts of equal number. Of a committee, the grey line is
    where error and standard deviation are alike; of feature distances, it is the limit 1.
    """
    name, unit, scale = _NAMES[measure]
    floor = 1e-3 * float(values.max())
    x, y = scale * np.maximum(values, floor), 1000.0 * np.maximum(errors, 1e-3 * float(errors.max()) + 1e-12)
    figure = new_figure(3.7, 3.2)
    axes = figure.subplots()
    shown = np.random.default_rng(0).permutation(len(x))[:_MOST_POINTS]
    axes.scatter(x[shown], y[shown], s=5, color=COLORS["forces"], alpha=0.25, lw=0, rasterized=True)
    parts = np.array_split(np.argsort(x), min(20, max(1, len(x) // 5)))
    axes.plot(
        [np.median(x[part]) for part in parts],
        [np.sqrt(np.mean(y[part] ** 2)) for part in parts],
        color=INK,
        marker="o",
        ms=3,
        label="RMS error",
    )
    axes.set(xscale="log", yscale="log")
    if measure == "forces_std":
        ends = (float(x.min()), float(x.max()))
        axes.plot(ends, ends, color=COLORS["quiet"], lw=0.9, ls="--")
    else:
        axes.axvline(1.0, color=COLORS["quiet"], lw=0.9, ls="--")
    axes.set(xlabel=f"{name} ({unit})" if unit else name, ylabel="error of the force (meV/Å)")
    plain_log_axis(axes, "x")
    plain_log_axis(axes, "y")
    axes.legend(fontsize=8.5, loc="upper left")
    return figure


def _cell(value: float | None) -> str:
    return "" if value is None else short(value)
