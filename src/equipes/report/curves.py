"""Curves over time: a training's metrics and a dynamics log."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipes.errors import InputError
from equipes.report.figures import COLORS, INK, new_figure, plain_log_axis, save, short, styled
from equipes.report.logs import read_columns

# Longer lines are drawn as images inside the vector figure, or a long run would make a page of megabytes.
_VECTOR_POINTS = 3000

_PANELS = (
    ("loss", ("train_loss", "val_loss"), "", "other"),
    ("energy MAE", ("val_energy_mae_mev_per_atom",), "meV/atom", "energy"),
    ("forces MAE", ("val_forces_mae_mev_per_ang",), "meV/Å", "forces"),
    ("stress MAE", ("val_stress_mae_mev_per_ang3",), "meV/Å³", "stress"),
    ("learning rate", ("lr",), "", "quiet"),
)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **style: object) -> None:
    axes.plot(x, y, rasterized=len(x) > _VECTOR_POINTS, **style)  # type: ignore[arg-type]


@styled
def learning_curves(
    metrics_csv: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Figure:
    """Loss, validation errors and learning rate over training steps, from a run's `metrics.csv`.

    Quantities that the log lacks get no panel. Written to `path` (.png, .svg, .pdf) if given.
    Raises `InputError` for a log that cannot be read or holds none of these quantities.
    """
    columns = read_columns(metrics_csv)
    x_name = next((name for name in ("step", "epoch") if name in columns), None)
    logged = {name for name, values in columns.items() if np.isfinite(values).any()}
    panels = [
        (title, [name for name in names if name in logged], unit, color)
        for title, names, unit, color in _PANELS
        if logged.intersection(names)
    ]
    if x_name is None or not panels:
        raise InputError(
            f"{os.fspath(metrics_csv)}: no learning curves in it (looked for 'step' and 'train_loss' or a "
            "validation error); give the metrics.csv of a training"
        )
    x = columns[x_name]
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(3.4 * across, 2.5 * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (title, names, unit, color) in zip(grid, panels, strict=False):
        values = np.concatenate([columns[name] for name in names])
        for name, shade, width in zip(names, (color, "forces"), (1.0, 1.5), strict=False):
            present = np.isfinite(columns[name])
            style = {"color": COLORS[shade], "lw": width, "marker": "o" if present.sum() < 3 else "", "ms": 4}
            label = {"train_loss": "training", "val_loss": "validation"}.get(name, name)
            _line(axes, x[present], columns[name][present], label=label, **style)
        if unit:
            best = int(np.nanargmin(columns[names[0]]))
            lowest = float(columns[names[0]][best])
            axes.plot(x[best], lowest, "o", color=COLORS[color], ms=4)
            axes.text(
                0.98,
                0.95,
                f"best {short(lowest)}",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=8.5,
            )
        if len(names) > 1:
            axes.legend()
        axes.set_title(f"{title} ({unit})" if unit else title)
        axes.set_xlabel(x_name)
        if (values[np.isfinite(values)] > 0).all():
            plain_log_axis(axes)
        axes.margins(y=0.12)
        if (
            title == "learning rate"
        ):  # the last steps of a schedule that ends in zero would take the whole panel
            axes.set_ylim(bottom=max(np.nanmin(values), 1e-4 * np.nanmax(values)) / 1.5)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if path is not None:
        save(figure, path, overwrite=overwrite)
    return figure


@styled
def md_plot(
    csv_path: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Figure:
    """Energies and temperature of a dynamics run over time.

    Reads the columns `time_fs`, `potential_energy_ev`, `kinetic_energy_ev`, `total_energy_ev` and
    `temperature_k`, and `conserved_energy_ev` where there is one. The slope in a title is that of a straight line
    through the conserved energy, or the total one; it is a drift where that should not change. Written to `path`
    (.png, .svg, .pdf) if given. Raises `InputError` for a log that cannot be read or lacks a column.
    """
    names = ("time_fs", "potential_energy_ev", "kinetic_energy_ev", "total_energy_ev", "temperature_k")
    columns = read_columns(csv_path, required=names)
    time = columns["time_fs"] / 1000.0
    unit = "ps"
    if time.max() - time.min() < 1.0:
        time, unit = time * 1000.0, "fs"
    # A thermostat exchanges energy; what it conserves instead is logged where there is such a quantity.
    conserved_energy = columns.get("conserved_energy_ev", columns["total_energy_ev"])
    kept = "total" if np.array_equal(conserved_energy, columns["total_energy_ev"]) else "conserved"
    total = columns[f"{kept}_energy_ev"] - columns[f"{kept}_energy_ev"][0]

    figure = new_figure(7.2, 6.0)
    exchange, conserved, temperature = figure.subplots(3, 1, sharex=True)
    for name, color in (("potential", "energy"), ("kinetic", "forces"), ("total", "stress")):
        value = columns[f"{name}_energy_ev"]
        _line(exchange, time, value - value[0], color=COLORS[color], label=name)
    exchange.set_title("energy since the start (eV)")
    exchange.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 0.98), fontsize=8.5)

    _line(conserved, time, 1000.0 * total, color=COLORS["stress"])
    title = f"{kept} energy since the start (meV)"
    if len(time) > 2 and np.isfinite(total).all() and np.ptp(columns["time_fs"]) > 0:
        slope = np.polyfit(columns["time_fs"] / 1000.0, 1000.0 * total, 1)[0]
        title += f" · slope {short(slope, sign=True)} meV/ps"
    conserved.set_title(title)

    kelvin = columns["temperature_k"]
    _line(temperature, time, kelvin, color=COLORS["forces"])
    temperature.axhline(float(np.nanmean(kelvin)), color=INK, lw=0.9, ls="--")
    mean, deviation = np.nanmean(kelvin), np.nanstd(kelvin)
    temperature.set_title(f"temperature (K) · mean {mean:.1f}, standard deviation {deviation:.1f}")
    temperature.set_xlabel(f"time ({unit})")
    for axes in (exchange, conserved, temperature):
        axes.margins(x=0.01)
        axes.ticklabel_format(axis="y", useOffset=False)
    if path is not None:
        save(figure, path, overwrite=overwrite)
    return figure
