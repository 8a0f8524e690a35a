"""Figures of held-out errors: predicted against reference forces with their slope, and the periodic table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from equipes.report.figures import COLORS, INK, new_figure, short, styled
from equipes.report.tables import Rows
from equipes.report.workflow import write_workflow_page

if TYPE_CHECKING:
    import os

    from equipes.benchmark.held_out import HeldOutResult
    from equipes.data import Frame
    from equipes.training.metrics import FramePrediction

COLUMNS = [
    "frames", "atoms", "left out", "energy MAE (meV/atom)", "after fit", "forces MAE (meV/Å)", "median",
    "RMS of labels", "stress MAE (GPa)", "RMS of labels", "slope", "robust slope",
]  # fmt: skip
ELEMENT_COLUMNS = ["atoms", "forces MAE (meV/Å)", "RMS of labels", "slope", "robust slope"]
_MOST_POINTS = 20_000


def rows(results: Sequence[HeldOutResult]) -> Rows:
    """A row of `COLUMNS` for each set."""
    return [
        (
            result.name,
            [
                str(result.n_frames),
                str(result.n_atoms),
                str(result.left_out),
                _cell(result.energy_mae_mev_per_atom),
                _cell(result.energy_mae_after_fit_mev_per_atom),
                _cell(result.force_mae_mev_per_ang),
                _cell(result.force_median_mev_per_ang),
                _cell(result.force_rms_mev_per_ang),
                _cell(result.stress_mae_gpa),
                _cell(result.stress_rms_gpa),
                _cell(result.softening),
                _cell(result.softening_robust),
            ],
        )
        for result in results
    ]


def element_rows(result: HeldOutResult) -> Rows:
    """A row of `ELEMENT_COLUMNS` for each element, the largest error first."""
    ordered = sorted(result.per_element.items(), key=lambda item: -item[1]["force_mae_mev_per_ang"])
    keys = ("force_mae_mev_per_ang", "force_rms_mev_per_ang", "softening", "softening_robust")
    return [
        (symbol, [str(facts["n_atoms"]), *(_cell(facts[key]) for key in keys)]) for symbol, facts in ordered
    ]


def write_page(
    path: str | os.PathLike[str],
    model: str,
    done: Sequence[tuple[HeldOutResult, Sequence[Frame], Sequence[FramePrediction]]],
    *,
    overwrite: bool = False,
) -> None:
    """One page: numbers, slopes, periodic tables, the worst-predicted structure of each set."""
    from equipes.benchmark.held_out import SOFTENING
    from equipes.simulate.results import Provenance

    figures: dict[str, Figure] = {}
    lines: list[tuple[str, object]] = []
    worst = []
    for result, frames, predictions in done:
        lines += [(result.name, result.about)] if result.about else []
        cells = rows([result])[0][1]
        lines += [
            (f"{result.name}: {column}", cell) for column, cell in zip(COLUMNS, cells, strict=True) if cell
        ]
        if result.softening_robust is not None:
            slope = softening_plot(frames, predictions, result.softening_robust, result.name)
            figures[f"predicted over reference forces, {result.name}"] = slope
        if result.per_element:
            title = f"{result.name}: mean absolute error of forces (meV/Å)"
            figures[f"errors of forces by element, {result.name}"] = element_map(result.per_element, title)
        worst.append(_worst(frames, predictions, result.name))
    provenance = Provenance(
        method="Predictions of the potential as it is, compared with the labels of the frames; nothing is fitted but "
        "the constants of the elements that are said to be",
        citations=tuple(dict.fromkeys([result.source for result, _, _ in done] + [SOFTENING])),
        warnings=tuple(f"{result.name}: {text}" for result, _, _ in done for text in result.warnings),
    )
    write_workflow_page(
        path,
        title=f"{model} on labelled frames",
        subtitle=", ".join(result.name for result, _, _ in done),
        rows=lines,
        figures=figures,
        structures=worst,
        provenance=provenance,
        overwrite=overwrite,
    )


def _worst(frames: Sequence[Frame], predictions: Sequence[FramePrediction], name: str) -> Atoms:
    """The structure with the largest root mean square error of its forces."""
    sizes = [
        -1.0 if f.forces is None or p.forces is None else float(np.mean((p.forces - f.forces) ** 2))
        for f, p in zip(frames, predictions, strict=True)
    ]
    atoms: Atoms = frames[int(np.argmax(sizes))].atoms.copy()
    atoms.info["label"] = f"worst of {name}"
    return atoms


def _cell(value: float | None) -> str:
    return "" if value is None else short(value)


@styled
def softening_plot(
    frames: Sequence[Frame], predictions: Sequence[FramePrediction], slope: float, title: str
) -> Figure:
    """Components of predicted over reference forces, the line of equality, and the line of the slope."""
    pairs = [
        (frame.forces.ravel(), prediction.forces.ravel())
        for frame, prediction in zip(frames, predictions, strict=True)
        if frame.forces is not None and prediction.forces is not None
    ]
    reference, predicted = (np.concatenate(part) for part in zip(*pairs, strict=True))
    figure = new_figure(3.7, 3.6)
    axes = figure.subplots()
    shown = np.random.default_rng(0).permutation(len(reference))[:_MOST_POINTS]
    axes.scatter(
        reference[shown], predicted[shown], s=4, color=COLORS["forces"], alpha=0.25, lw=0, rasterized=True
    )
    axes.axline((0, 0), slope=1.0, color=COLORS["quiet"], lw=0.9, ls="--")
    axes.axline((0, 0), slope=slope, color=INK, lw=1.1, label=f"robust slope {short(slope)}")
    # A few forces of tens of eV/Å would press all others into a dot.
    reach = 1.1 * float(np.quantile(np.abs(np.concatenate([reference, predicted])), 0.999)) or 1.0
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.set(xlabel="reference force (eV/Å)", ylabel="predicted force (eV/Å)")
    axes.set_title(title)
    axes.legend(fontsize=8.5, loc="upper left")
    return figure


@styled
def element_map(per_element: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """The periodic table, coloured by the mean absolute error of force components (meV/Å) on atoms of each element."""
    errors = {symbol: facts["force_mae_mev_per_ang"] for symbol, facts in per_element.items()}
    figure = new_figure(8.4, 4.3)
    axes = figure.subplots()
    values = [value for value in errors.values() if value > 0] or [1.0]
    norm = LogNorm(min(values), max(max(values), 1.01 * min(values)))
    colors = colormaps["viridis"]
    for symbol, value in errors.items():
        column, row = place(atomic_numbers[symbol])
        shade = colors(norm(max(value, min(values))))
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, color=shade, lw=0))
        dark = float(np.dot(shade[:3], (0.3, 0.59, 0.11))) < 0.5
        ink = "white" if dark else "black"
        axes.text(column, row - 0.16, symbol, ha="center", va="center", fontsize=8.5, color=ink)
        axes.text(column, row + 0.24, short(value), ha="center", va="center", fontsize=5.5, color=ink)
    axes.set(xlim=(0.4, 18.6), ylim=(9.6, 0.4), aspect="equal")
    axes.axis("off")
    axes.set_title(title)
    return figure


def place(number: int) -> tuple[int, int]:
    """Column and row of an element in the periodic table; lanthanides and actinides are below it.

    >>> place(1), place(2), place(26), place(57), place(72), place(92)
    ((1, 1), (18, 1), (8, 4), (3, 8), (4, 6), (6, 9))
    """
    for row, (first, last) in enumerate(
        ((1, 2), (3, 10), (11, 18), (19, 36), (37, 54), (55, 86), (87, 118)), 1
    ):
        if number > last:
            continue
        step = number - first
        if row == 1:
            return (1 if step == 0 else 18), 1
        if row <= 3:
            return (step + 1 if step < 2 else step + 11), row
        if row <= 5:
            return step + 1, row
        if 2 <= step <= 16:
            return step + 1, row + 2
        return (step + 1 if step < 2 else step - 13), row
    raise ValueError(f"no element has the number {number}")
