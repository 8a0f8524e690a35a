"""Reference against prediction: parity plots, error histograms, errors by element or configuration type."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from equipes.errors import InputError
from equipes.report.figures import COLORS, INK, new_figure, save, short, styled
from equipes.report.tables import STEMS, UNITS

# From here on single points cannot be told apart and their density is shown.
_DENSE = 2000
# Bluish green to yellow: both ends stand out from a white and from a black page.
_DENSITY = LinearSegmentedColormap.from_list("density", ["#3b6fb6", "#23a29b", "#6cc26a", "#f2d337"])


def _pairs(reference: ArrayLike, predicted: ArrayLike, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    if quantity not in UNITS:
        raise InputError(f"no parity plot of '{quantity}'; choose one of {', '.join(UNITS)}")
    x = np.asarray(reference, dtype=float).ravel()
    y = np.asarray(predicted, dtype=float).ravel()
    if x.shape != y.shape or not len(x):
        raise InputError(
            f"{quantity}: {len(x)} reference and {len(y)} predicted values; give as many of both, at least one"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(f"{quantity}: non-finite values cannot be plotted; leave out what has no label")
    return x, y


@styled
def parity_plot(
    reference: ArrayLike,
    predicted: ArrayLike,
    quantity: str,
    path: str | os.PathLike[str] | None = None,
    *,
    relative_to: str | None = None,
    overwrite: bool = False,
) -> Figure:
    """Predicted against reference values of a quantity.

    `quantity` is "energy" (values in eV/atom), "forces" (eV/Å) or "stress" (eV/Å³); the arrays have any, but
    equal shape; `relative_to` says in words what was subtracted from both, if anything. Every component is a
    point, and many points are drawn as their density. MAE and RMSE over all components stand in the corner. Written
    to `path` (.png, .svg, .pdf) if given. Raises `InputError` for another quantity, for different numbers of values,
    none, or non-finite ones.
    """
    x, y = _pairs(reference, predicted, quantity)
    unit, error_unit = UNITS[quantity]
    figure = new_figure(3.7, 3.6)
    axes = figure.subplots()
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    limits = (low - margin, high + margin)
    axes.axline((low, low), slope=1.0, color=INK, lw=0.8, alpha=0.7, zorder=3)
    if len(x) > _DENSE:
        axes.hexbin(
            x,
            y,
            gridsize=110,
            extent=(*limits, *limits),
            mincnt=1,
            norm=LogNorm(),
            cmap=_DENSITY,
            lw=0.1,
            rasterized=True,
            zorder=2,
        )
    else:
        axes.scatter(x, y, s=11, color=COLORS[quantity], alpha=0.55, lw=0, rasterized=len(x) > 500, zorder=2)
    error = 1000.0 * (y - x)
    axes.text(
        0.04,
        0.96,
        f"MAE {short(np.abs(error).mean())} {error_unit}\nRMSE {short(np.sqrt((error**2).mean()))} {error_unit}\n"
        f"{len(x)} values",
        transform=axes.transAxes,
        va="top",
        fontsize=8.5,
        linespacing=1.5,
    )
    axes.set(
        xlim=limits, ylim=limits, aspect="equal", xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})"
    )
    axes.set_title(quantity if relative_to is None else f"{quantity}, relative to {relative_to}")
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=5)
    if path is not None:
        save(figure, path, overwrite=overwrite)
    return figure


@styled
def error_histogram(
    reference: ArrayLike,
    predicted: ArrayLike,
    quantity: str,
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Figure:
    """Distribution of predicted minus reference values; counts are logarithmic so that rare large errors are seen.

    Same arguments as `parity_plot`.
    """
    x, y = _pairs(reference, predicted, quantity)
    error_unit = UNITS[quantity][1]
    error = 1000.0 * (y - x)
    figure = new_figure(3.7, 2.5)
    axes = figure.subplots()
    bins = int(np.clip(np.sqrt(len(error)), 8, 81)) | 1  # an odd number puts one bin in the middle
    reach = float(np.abs(error).max()) or 1.0
    # A set with one common offset is not spread around zero; its bins then follow the data.
    span = (-reach, reach) if error.min() < 0 < error.max() else (float(error.min()), float(error.max()))
    if span[0] == span[1]:
        span = (span[0] - 0.5, span[1] + 0.5)
    axes.hist(error, bins=bins, range=span, color=COLORS[quantity], alpha=0.85, lw=0)
    axes.axvline(float(error.mean()), color=INK, lw=0.9, ls="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0.7)
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel=f"predicted − reference ({error_unit})", ylabel="values")
    # Forces of a frame sum to zero in labels and predictions alike; what is left of their mean is round-off.
    mean = error.mean() if abs(error.mean()) > 1e-6 * reach else 0.0
    axes.set_title(f"{quantity} · mean {short(mean, sign=True)}, largest {short(reach)}")
    if path is not None:
        save(figure, path, overwrite=overwrite)
    return figure


@styled
def group_plot(
    errors: Mapping[str, Mapping[str, float | int | None]],
    quantity: str,
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    most: int = 30,
) -> Figure:
    """MAE (bar) and RMSE (mark) of a quantity for each group, the largest MAE on top.

    `errors` is `per_element` or `per_config_type` of `error_metrics`. At most `most` groups are shown, and those
    without such labels are left out. Raises `InputError` when none has any.
    """
    unit = UNITS[quantity][1]
    stem = STEMS[quantity]
    known = []
    for name, group in errors.items():
        mae, rmse = group.get(f"{quantity}_mae_{stem}"), group.get(f"{quantity}_rmse_{stem}")
        if mae is not None and rmse is not None:
            known.append((name, float(mae), float(rmse)))
    known.sort(key=lambda row: row[1])
    if not known:
        raise InputError(f"no errors of {quantity} to plot: none of the groups has such labels")
    hidden = max(0, len(known) - most)
    known = known[hidden:]
    figure = new_figure(3.7, 0.9 + 0.27 * max(len(known), 2))
    axes = figure.subplots()
    places = np.arange(len(known))
    axes.barh(
        places, [mae for _, mae, _ in known], height=0.62, color=COLORS[quantity], alpha=0.85, label="MAE"
    )
    axes.plot([rmse for _, _, rmse in known], places, "|", color=INK, ms=9, mew=1.4, label="RMSE")
    axes.set_yticks(places, [name if len(name) < 26 else name[:24] + "…" for name, _, _ in known])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{quantity} error ({unit})" + (f", {hidden} smaller not shown" if hidden else ""))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8.5, borderaxespad=0.2)
    if path is not None:
        save(figure, path, overwrite=overwrite)
    return figure
